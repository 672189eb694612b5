# On the link that a node has opened to another, that one may say nothing but answers to read probes. Whoever listens at its address has shown no password, and
# no right to speak for it: what it says otherwise reaches no core.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PeerLink;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use Test::More;

sub log_has
{
	my ($node, $position, $pattern) = @_;
	return substr(PostgreSQL::Test::Utils::slurp_file($node->logfile), $position) =~ $pattern;
}

my $cluster = QuorumCluster->new(nodes => 2);
my ($first, $second) = $cluster->nodes;
$second->stop;

my $position = -s $first->logfile;
my $impostor = PeerLink::listen_at($second->port,
	PeerLink::taken_up() . PeerLink::message('d', PeerLink::frame(PeerLink::PREPARE, pack('Q>NQ>Q>', 1_000_000, 2, 1_000, 1_000))));
QuorumCluster::wait_until('the impostor to be heard, or refused',
	sub { log_has($first, $position, qr/invalid frame/) || $first->status('ballot') =~ /^1000000\./ }, 30);
PeerLink::stop_listening($impostor);
unlike($first->status('ballot'), qr/^1000000\./, 'who was connected to cannot ask for a promise');
ok(log_has($first, $position, qr/closing the link with node "n2" because of an invalid frame/), 'the link is closed, and the log says why');

$position = -s $first->logfile;
$impostor = PeerLink::listen_at($second->port,
	PeerLink::taken_up() . PeerLink::message('d', PeerLink::frame(PeerLink::READ_ANSWER, pack('Q>NQ>Q>C', 1_000_000, 2, 7, 9, 1))));
QuorumCluster::wait_until('a link to the impostor', sub { log_has($first, $position, qr/link to node "n2" is up/) }, 30);
my $result = $first->query('SELECT 1', timeout => 10);
ok($result->{ok} && !log_has($first, $position, qr/invalid frame/), 'an answer that nobody asked for is not taken amiss');
PeerLink::stop_listening($impostor);

$second->start;
$cluster->wait_for_leader;
$first->sql('CREATE TABLE t (id int PRIMARY KEY)');
$first->sql("SELECT quorum.replicate('t')");
$cluster->write_until_ok('INSERT INTO t VALUES (1) ON CONFLICT DO NOTHING');
$cluster->assert_same_digest('t');
$cluster->cleanup;
done_testing();
