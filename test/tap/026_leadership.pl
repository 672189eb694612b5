# The leadership is handed over on request, from any node, and by a leader whose server is stopped as planned; nobody waits for an election timeout,
# which is so long here that a test which had to wait for it would not end in time.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use FaultLoad;
use Test::More;
use Time::HiRes qw(time);

my $cluster = QuorumCluster->new(nodes => 3, conf => "quorum.election_timeout = '30s'\n");
my $load = FaultLoad->new($cluster, clients => 3, watch => 0, pause_us => 5000, commit_timeout => '20s', answer_timeout_ms => 25_000);

sub round_of { my ($node) = @_; my ($round) = $node->status('ballot') =~ /^(\d+)/; return $round; }

sub succeeds
{
	my ($name, $node, $sql) = @_;
	my $result = $node->query($sql, timeout => 60);
	ok($result->{ok}, $name) or diag($result->{stderr});
	return $result;
}

sub refuses
{
	my ($name, $node, $sql, $sqlstate, $message) = @_;
	my $result = $node->query($sql, timeout => 60);
	is($result->{sqlstate}, $sqlstate, $name) or diag($result->{stderr});
	like($result->{stderr}, $message, "$name: the error says why");
	return;
}

# What the server wrote into its log since `position`.
sub log_since
{
	my ($node, $position) = @_;
	return substr(PostgreSQL::Test::Utils::slurp_file($node->logfile), $position);
}

# ---- transfer_under_load_costs_no_error ----------------------------------------------------------------------------
$load->start;
$load->wait_for_writes(50);
foreach my $turn (1 .. 6)
{
	my $leader = $cluster->wait_for_leader;
	my ($target, $other) = $cluster->followers;
	my $caller = ($leader, $target, $other)[ $turn % 3 ];
	my $round = round_of($leader);
	my $name = $target->name;
	succeeds($caller->name . ' lets ' . $leader->name . " hand over to $name", $caller, "SELECT quorum.transfer_leadership('$name')");
	is($caller->status('leader_name'), $name, 'which leads when the call returns');
	my $new = $cluster->wait_for_leader;
	is($new->name, $name, 'for the others too');
	is(round_of($new), $round + 1, 'one election was enough');
	note(sprintf('turn %d: a write after %.3f s', $turn, $load->wait_for_write(time())));
	$load->wait_for_writes(20);
}
my $before = $cluster->wait_for_leader;
succeeds('to whoever is best', ($cluster->followers)[0], 'SELECT quorum.transfer_leadership()');
isnt($cluster->wait_for_leader->name, $before->name, 'is another one');
my $leader = $cluster->wait_for_leader;
like(succeeds('to the one that leads', $leader, "SELECT quorum.transfer_leadership('" . $leader->name . "')")->{stderr}, qr/NOTICE:.*leads already/,
	'is a notice');
$load->wait_for_writes(20);
# All write on one node, so they do not even conflict with each other.
$load->acknowledged;
is($load->sqlstates, 'none', 'no client saw an error in all that') or diag($load->texts);

# ---- a_planned_restart_of_the_leader_hands_over --------------------------------------------------------------------
foreach my $turn (1 .. 4)
{
	my $old = $cluster->wait_for_leader;
	my $round = round_of($old);
	my $position = -s $old->logfile;
	my $stopped_at = time();
	$old->stop('fast');
	my $seconds = $load->wait_for_write($stopped_at);
	my $new = $cluster->wait_for_leader(not => $old);
	note(sprintf('fast stop %d: a write after %.3f s', $turn, $seconds));
	like(log_since($old, $position), qr/after handing the leadership over/, "fast stop $turn: " . $old->name . ' went after another one led');
	is(round_of($new), $round + 1, 'by one election');
	$old->start;
	$cluster->wait_for_leader;
	$load->wait_for_writes(20);
}
$load->stop;

# Sessions keep a smart shutdown waiting; then the streams between the nodes are the last to go, and see to it before.
foreach my $turn (1 .. 2)
{
	my $old = $cluster->wait_for_leader;
	my $round = round_of($old);
	my $position = -s $old->logfile;
	$old->stop('smart');
	my $new = $cluster->wait_for_leader(not => $old);
	is(round_of($new), $round + 1, "smart stop $turn: another one leads, by one election");
	like(log_since($old, $position), qr/is now follower/, 'before ' . $old->name . ' has gone');
	$old->start;
	$cluster->wait_for_leader;
}

# ---- the_end_of_the_worker_alone
{
	my $old = $cluster->wait_for_leader;
	my $round = round_of($old);
	my $pid = $old->worker_pid('consensus');
	kill('TERM', $pid);
	my $new = $cluster->wait_for_leader(not => $old);
	is(round_of($new), $round + 1, 'a consensus worker that is terminated hands over');
	QuorumCluster::wait_until('a new worker', sub { my $now = $old->worker_pid('consensus'); $now && $now != $pid });
	$cluster->wait_for_leader;
	is($old->status('role'), 'follower', 'and comes back as a follower');
}

# ---- what_cannot_be_is_refused
$leader = $cluster->wait_for_leader;
my ($down, $up) = $cluster->followers;
$down->stop('fast');
QuorumCluster::wait_until('the leader to notice', sub { $leader->query(q{SELECT 1 FROM quorum.nodes WHERE NOT reachable})->{rows} eq '1' }, 60);
refuses('to one that is down', $up, "SELECT quorum.transfer_leadership('" . $down->name . "')", '55000', qr/does not reach.*HINT/s);
succeeds('to the one that is there', $up, "SELECT quorum.transfer_leadership('" . $up->name . "')");
$down->start;
$cluster->wait_for_leader;
$leader->sql('CREATE ROLE somebody LOGIN');
refuses('by somebody who may not', $leader, q{SET ROLE somebody; SELECT quorum.transfer_leadership()}, '42501', qr/permission denied/);

# ---- nothing_was_lost
$load->check(least_acknowledged => 100);
done_testing();
