# Any process of an instance dies, by kill -9 or by a request to end, on the leader and on a follower: the cluster recovers without a
# hand, and loses nothing.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use FaultLoad;
use Test::More;
use Time::HiRes qw(time);

my $cluster = QuorumCluster->new(nodes => 3);
my $load = FaultLoad->new($cluster, clients => 3, pause_us => 8000);

my %title_of = (
	'consensus worker' => qr/: quorum consensus\b/,
	'apply worker' => qr/: quorum apply\b/,
	'lock watcher' => qr/: quorum lock watcher\b/,
	'checkpointer' => qr/: checkpointer/);

# Backends that hold a stream from a peer.
sub stream_pid
{
	my ($node) = @_;
	my ($pid) = split(/\n/, $node->sql(q{SELECT pid FROM pg_stat_activity WHERE query LIKE 'peer stream from %' ORDER BY pid}));
	return $pid;
}

sub pid_of
{
	my ($node, $process) = @_;
	return $process eq 'stream backend' ? stream_pid($node) : $node->process_pid($title_of{$process});
}

# Every process that must be there, and not the one that was killed.
sub is_whole
{
	my ($node, $killed) = @_;
	my ($role) = $node->status('role');
	return 0 unless defined $role && $role =~ /^(?:leader|follower)$/;
	foreach my $process (keys %title_of)
	{
		my $pid = $node->process_pid($title_of{$process});
		return 0 if !defined $pid || $pid == $killed;
	}
	my $streams = $node->query(q{SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'peer stream from %'});
	return $streams->{ok} && $streams->{rows} >= 2;
}

my @deaths = (
	(map { [ $_, 'KILL' ] } 'consensus worker', 'apply worker', 'lock watcher', 'stream backend', 'checkpointer'),
	(map { [ $_, 'TERM' ] } 'consensus worker', 'apply worker', 'lock watcher', 'stream backend'));

$load->start;
$load->wait_for_writes(20);
foreach my $role ('follower', 'leader')
{
	foreach my $death (@deaths)
	{
		my ($process, $signal) = @$death;
		my $leader = $cluster->wait_for_leader;
		my ($node) = $role eq 'leader' ? $leader : grep { $_ != $leader } $cluster->nodes;
		QuorumCluster::wait_until("a $process on " . $node->name, sub { pid_of($node, $process) });
		my $pid = pid_of($node, $process);

		kill($signal, $pid);
		my $since = time();
		my $seconds = $load->wait_for_write($since);
		my $whole = eval { QuorumCluster::wait_until($node->name . ' to be whole again', sub { is_whole($node, $pid) }, 30) };
		ok($whole, sprintf('%s of a %s\'s %s: whole again after %.2f s, a write was acknowledged after %.2f s',
			$signal, $role, $process, time() - $since, $seconds)) or diag($@);
		$load->wait_for_writes(10);
	}
}

$load->stop;
$load->check;

# ---- a_smart_shutdown_does_not_wait_for_the_links
foreach my $role ('follower', 'leader')
{
	my $leader = $cluster->wait_for_leader;
	my ($node) = $role eq 'leader' ? $leader : grep { $_ != $leader } $cluster->nodes;
	my $since = time();
	ok($node->stop('smart', fail_ok => 1), sprintf('smart shutdown of a %s ends, after %.1f s', $role, time() - $since));
	$node->start unless $node->is_running;
}
$cluster->assert_same_digest('load_row', 'all nodes are the same after that');

done_testing();
