# On the link that a node has opened to another, that one may say nothing but answers to read probes. Whoever listens at its address has shown no password, and
# no right to speak for it: what it says otherwise reaches no core.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use IO::Socket::INET;
use POSIX ();
use PostgreSQL::Test::Utils;
use QuorumCluster;
use Test::More;

use constant { PREPARE => 3, READ_ANSWER => 12 };

sub crc32c
{
	my ($bytes) = @_;
	my $crc = 0xFFFFFFFF;
	foreach my $byte (unpack('C*', $bytes))
	{
		$crc ^= $byte;
		$crc = ($crc & 1) ? ($crc >> 1) ^ 0x82F63B78 : $crc >> 1 foreach 1 .. 8;
	}
	return $crc ^ 0xFFFFFFFF;
}

sub frame
{
	my ($type, $rest) = @_;
	my $bytes = pack('nCCN', 0x5150, 2, $type, 8 + length($rest) + 4) . $rest;
	return $bytes . pack('N', crc32c($bytes));
}

sub message { my ($type, $body) = @_; return $type . pack('N', 4 + length($body)) . $body; }

# As a server that trusts everybody, and takes up the stream.
sub greet
{
	my ($client) = @_;
	my $packet;
	for (;;)
	{
		$client->read($packet, 4) == 4 or return 0;
		my $length = unpack('N', $packet);
		$client->read($packet, $length - 4) == $length - 4 or return 0;
		last if unpack('N', $packet) == 196608;
		$client->write('N');
		$client->flush;
	}
	$client->write(message('R', pack('N', 0)) . message('Z', 'I'));
	$client->flush;
	for (;;)
	{
		$client->read($packet, 5) == 5 or return 0;
		my ($type, $length) = unpack('aN', $packet);
		next if $length == 4 ? 0 : $client->read($packet, $length - 4) != $length - 4;
		last if $type eq 'S';
	}
	$client->write(message('1', '') . message('2', '') . message('n', '') . message('W', pack('Cn', 0, 0)));
	$client->flush;
	return 1;
}

my $impostor;

END { my $status = $?; stop_impostor($impostor) if $impostor; $? = $status; }

# Says `frame` on each link that is opened to it, and then listens.
sub start_impostor
{
	my ($port, $frame) = @_;
	my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $port, Listen => 5, ReuseAddr => 1) or die "port $port: $!";
	my $pid = fork();
	die "fork: $!" if !defined $pid;
	if ($pid)
	{
		$server->close;
		return $pid;
	}
	$SIG{TERM} = 'DEFAULT';
	open(STDOUT, '>', '/dev/null');
	$SIG{PIPE} = 'IGNORE';
	while (my $client = $server->accept)
	{
		if (greet($client))
		{
			my $byte;
			$client->write(message('d', $frame));
			$client->flush;
			1 while $client->read($byte, 1);
		}
		$client->close;
	}
	POSIX::_exit(0);
}

sub stop_impostor { my ($pid) = @_; kill 'KILL', $pid; waitpid $pid, 0; $impostor = undef; return; }

sub log_has
{
	my ($node, $position, $pattern) = @_;
	return substr(PostgreSQL::Test::Utils::slurp_file($node->logfile), $position) =~ $pattern;
}

my $cluster = QuorumCluster->new(nodes => 2);
my ($first, $second) = $cluster->nodes;
$second->stop;

my $position = -s $first->logfile;
$impostor = start_impostor($second->port, frame(PREPARE, pack('Q>NQ>Q>', 1_000_000, 2, 1_000, 1_000)));
QuorumCluster::wait_until('the impostor to be heard, or refused',
	sub { log_has($first, $position, qr/invalid frame/) || $first->status('ballot') =~ /^1000000\./ }, 30);
stop_impostor($impostor);
unlike($first->status('ballot'), qr/^1000000\./, 'who was connected to cannot ask for a promise');
ok(log_has($first, $position, qr/closing the link with node "n2" because of an invalid frame/), 'the link is closed, and the log says why');

$position = -s $first->logfile;
$impostor = start_impostor($second->port, frame(READ_ANSWER, pack('Q>NQ>Q>C', 1_000_000, 2, 7, 9, 1)));
QuorumCluster::wait_until('a link to the impostor', sub { log_has($first, $position, qr/link to node "n2" is up/) }, 30);
my $result = $first->query('SELECT 1', timeout => 10);
ok($result->{ok} && !log_has($first, $position, qr/invalid frame/), 'an answer that nobody asked for is not taken amiss');
stop_impostor($impostor);

$second->start;
$cluster->wait_for_leader;
$first->sql('CREATE TABLE t (id int PRIMARY KEY)');
$first->sql("SELECT quorum.replicate('t')");
$cluster->write_until_ok('INSERT INTO t VALUES (1) ON CONFLICT DO NOTHING');
$cluster->assert_same_digest('t');
$cluster->cleanup;
done_testing();
