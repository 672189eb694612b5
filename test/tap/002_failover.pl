# The leader dies by kill -9: the others elect a new one and take writes without a hand, and the dead one comes back as a follower.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use WaitingSession;
use Test::More;

my $cluster = QuorumCluster->new(nodes => 3);
my $leader = $cluster->wait_for_leader;
$leader->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); SELECT quorum.replicate('t')});
$leader->sql(qq{INSERT INTO t VALUES ($_, 'before')}) foreach 1 .. 20;

# ---- acknowledged_rows_survive_the_leader and writes_go_on_at_a_new_leader
foreach my $round (1 .. 3)
{
	my $old = $cluster->wait_for_leader;
	my $id = $round * 100;
	$old->sql(qq{INSERT INTO t VALUES ($id, 'last word of ' || '@{[ $old->name ]}')});
	$old->kill9(all => $round % 2);
	my $seconds = $cluster->write_until_ok(qq{INSERT INTO t VALUES ($id + 1, 'after') ON CONFLICT DO NOTHING});
	cmp_ok($seconds, '<', 10, sprintf('round %d: a write was acknowledged %.2f s after the kill', $round, $seconds));
	my $new = $cluster->wait_for_leader(not => $old);
	is($new->sql(qq{SELECT count(*) FROM t WHERE id = $id}), '1', 'the new leader has what the old one acknowledged');

	# ---- the_old_leader_returns_as_a_follower_and_catches_up
	$new->sql(qq{INSERT INTO t SELECT $id + g, 'while it was away' FROM generate_series(2, 50) AS g});
	$old->start;
	$cluster->wait_for_leader;
	$cluster->assert_same_digest('t', 'the old leader caught up');
	is($old->sql('SELECT elections_started FROM quorum.stats'), '0', 'its return asked for no election');
	is($old->status('role'), 'follower', 'it follows');
}

# ---- a_crashed_process_is_recovered_from_without_a_hand
foreach my $worker ('consensus', 'apply', 'lock watcher')
{
	my $node = $cluster->wait_for_leader;
	my $pid = $node->worker_pid($worker);
	ok($pid, "the leader has a quorum $worker process");
	kill('KILL', $pid);
	my $seconds = $cluster->write_until_ok(
		qq{INSERT INTO t VALUES (1000, '$worker') ON CONFLICT (id) DO UPDATE SET v = '$worker'});
	cmp_ok($seconds, '<', 30, sprintf('quorum %s killed: a write was acknowledged after %.2f s', $worker, $seconds));
	QuorumCluster::wait_until(
		'the node to follow or lead again',
		sub { ($node->status('role') // '') =~ /^(?:leader|follower)$/ && $node->worker_pid($worker) });
	isnt($node->worker_pid($worker), $pid, "there is a new quorum $worker process");
	$cluster->assert_same_digest('t', "all nodes are the same after quorum $worker was killed");
}

# ---- a_leader_that_stands_still_is_replaced_and_steps_down_when_it_wakes
{
	my $old = $cluster->wait_for_leader;
	$old->sigstop;
	my $seconds = $cluster->write_until_ok(q{INSERT INTO t VALUES (2000, 'asleep') ON CONFLICT DO NOTHING});
	cmp_ok($seconds, '<', 10, sprintf('a write was acknowledged %.2f s after the leader stood still', $seconds));
	my $new = $cluster->wait_for_leader(not => $old);
	$old->sigcont;
	$cluster->wait_for_leader;
	is($old->status('role'), 'follower', 'the sleeper follows when it wakes');
	$cluster->assert_same_digest('t', 'the sleeper caught up');
}

# ---- a_followers_transaction_outlives_the_leader_it_was_forwarded_to: it is sent to the next one, and takes effect once
foreach my $round (1 .. 3)
{
	my $old = $cluster->wait_for_leader;
	my ($follower) = $cluster->followers;
	my $id = 3000 + $round;
	$cluster->wait_applied;
	my $session = WaitingSession->new($follower);
	$session->run("BEGIN; INSERT INTO t VALUES ($id, 'forwarded'); UPDATE t SET v = v || '+' WHERE id = 1");
	$old->sigstop;
	$session->send('COMMIT');
	is($session->outcome, '00000', "round $round: the follower's transaction is committed without the leader") or diag($session->error);
	$old->sigcont;
	$session->finish;
	$cluster->wait_applied;
	is($old->sql("SELECT v FROM t WHERE id = 1"), 'before' . '+' x $round, 'it took effect once');
}
$cluster->assert_same_digest('t', 'all nodes have what was forwarded');

done_testing();
