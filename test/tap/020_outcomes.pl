# "Did my COMMIT happen?"  quorum.outcome() answers on every node, and what it answered stays true.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use WaitingSession;
use Test::More;

my $namespaces = ($ENV{QUORUM_NAMESPACES} || '') eq 'yes';

# Long intervals: a node whose messages are lost must believe for a while that all is well.
my $cluster = QuorumCluster->new(
	nodes => 3,
	namespaces => $namespaces,
	conf => "quorum.heartbeat_interval = '400ms'\nquorum.election_timeout = '1500ms'\nquorum.commit_timeout = 0");
my $leader = $cluster->wait_for_leader;
my ($follower, $other) = $cluster->followers;
$leader->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); SELECT quorum.replicate('t')});
$cluster->wait_applied;

sub token_of
{
	my ($session) = @_;
	my ($token) = $session->error =~ /Transaction token: (.*)\.$/m;
	return $token;
}

# The session's COMMIT is cancelled while it waits.
sub cancel
{
	my ($session, $name) = @_;
	$session->wait_until_waiting;
	$follower->sql('SELECT pg_cancel_backend(' . $session->backend_pid . ')');
	is($session->outcome, '08007', "$name: the client is told that nobody knows") or diag($session->error);
	return;
}

sub outcome { my ($node, $token) = @_; return $node->sql("SELECT outcome FROM quorum.outcome('$token')"); }
sub rows { my ($node, $id) = @_; return $node->sql("SELECT count(*) FROM t WHERE id = $id"); }

# ---- one_that_was_chosen_is_committed: its node is slow, so it waits for its turn
{
	my $session = WaitingSession->new($follower);
	$session->run('BEGIN; INSERT INTO t VALUES (1)');
	my $apply = $follower->worker_pid('apply');
	kill('STOP', $apply);
	$leader->sql('INSERT INTO t VALUES (2)');
	$session->send('COMMIT');
	cancel($session, 'chosen');
	my $token = token_of($session);
	is(outcome($_, $token), 'committed', 'chosen: ' . $_->name . ' says committed') foreach $leader, $other;
	kill('CONT', $apply);
	$cluster->wait_applied;
	is(outcome($follower, $token), 'committed', 'chosen: so does its own node, later');
	is(rows($_, 1), '1', 'chosen: the row is on ' . $_->name) foreach $cluster->nodes;
	(my $forged = $token) =~ s/^(\d+\.\d+\.\d+\.[0-9a-f]{15})([0-9a-f])/sprintf('%s%x', $1, hex($2) ^ 1)/e;
	is($leader->query("SELECT * FROM quorum.outcome('$forged')")->{sqlstate}, '22023', 'chosen: a token that was made up is none');
	is($leader->sql("SELECT origin_node || ' ' || verdict FROM quorum.log JOIN quorum.outcome('$token') USING (log_index)"),
		$follower->name . ' applied', 'chosen: the log index is that of its entry');
	$session->finish;
}

# ---- one_that_lost_is_rejected
{
	my $session = WaitingSession->new($follower);
	$session->run(q{BEGIN; SET LOCAL quorum.token = 'order 3'; INSERT INTO t VALUES (3)});
	my $apply = $follower->worker_pid('apply');
	kill('STOP', $apply);
	$leader->sql(q{INSERT INTO t VALUES (3, 'winner')});
	$session->send('COMMIT');
	is($session->outcome, '40001', 'lost: 40001');
	kill('CONT', $apply);
	is(outcome($_, 'order 3'), 'rejected', 'lost: ' . $_->name . ' says rejected') foreach $cluster->nodes;
	$session->finish;
}

# What the node sends is lost, so its proposal does not leave it, though it goes on repeating it; it hears the leader as before.
sub lost_proposal
{
	my ($name, $sql) = @_;
	my $session = WaitingSession->new($follower);
	$session->run("BEGIN; $sql");
	$cluster->cut_one_way($follower, [ $leader, $other ]);
	$session->send('COMMIT');
	cancel($session, $name);
	return $session;
}

sub heal
{
	$cluster->heal;
	$cluster->wait_for_leader;
	$cluster->wait_applied;
	return;
}

SKIP:
{
	skip('no network namespaces', 1) unless $namespaces;

	# ---- one_that_is_open_is_rejected_from_then_on
	{
		my $session = lost_proposal('open', 'INSERT INTO t VALUES (4)');
		my $token = token_of($session);
		is(outcome($leader, $token), 'rejected', 'open: a node that never heard of it makes it rejected');
		is(outcome($other, $token), 'rejected', 'open: another one says the same');
		heal();
		is(outcome($_, $token), 'rejected', 'open: when the links are back, ' . $_->name . ' still says so') foreach $cluster->nodes;
		is(rows($_, 4), '0', 'open: the row is not on ' . $_->name) foreach $cluster->nodes;
		like($leader->sql(q{SELECT verdict FROM quorum.log WHERE origin_node = '} . $follower->name . q{' AND kind = 'transaction' ORDER BY log_index DESC LIMIT 1}),
			qr/rejected/, 'open: its entry has come into the log since, and takes no effect');
		$session->finish;
	}

	# ---- a_retry_with_the_clients_own_token_never_applies_twice
	{
		my $session = lost_proposal('retried', q{SET LOCAL quorum.token = 'order 5'; INSERT INTO t VALUES (5, 'first attempt')});
		is(token_of($session), 'order 5', 'retried: the token is the one that the client chose');
		$other->sql(q{BEGIN; SET LOCAL quorum.token = 'order 5'; INSERT INTO t VALUES (6, 'second attempt'); COMMIT});
		is(outcome($leader, 'order 5'), 'committed', 'retried: the second attempt was committed');
		heal();
		is($_->sql(q{SELECT string_agg(id::text, ',') FROM t WHERE id IN (5, 6)}), '6', 'retried: only that one took effect, on ' . $_->name)
		  foreach $cluster->nodes;
		my $again = $other->query(q{BEGIN; SET LOCAL quorum.token = 'order 5'; INSERT INTO t VALUES (7, 'third attempt'); COMMIT});
		is($again->{sqlstate}, '23505', 'retried: a third one is told that it was done before');
		like($again->{stderr}, qr/order 5.*log index \d+/s, 'retried: and where');
		$session->finish;
	}

	# ---- a_minority_cannot_make_it_final
	{
		$cluster->isolate($follower);
		QuorumCluster::wait_until('the node to notice that it is alone', sub { $follower->status('has_quorum') eq 'f' });
		my $answer = $follower->query(q{SELECT * FROM quorum.outcome('nothing is known of this one')}, timeout => 30);
		is($answer->{sqlstate}, '25006', 'a node without a quorum does not guess') or diag($answer->{stderr} . $answer->{rows});
		heal();
	}
}

# ---- what_was_not_asked_of_the_log_is_no_answer: whoever asks holds a lock that an agreed entry needs, so that the question is taken out of the queue
{
	$leader = $cluster->wait_for_leader;
	($follower, $other) = $cluster->followers;
	$leader->sql('INSERT INTO t VALUES (20)');
	$cluster->wait_applied;
	my $session = WaitingSession->new($follower);
	$session->run('BEGIN; SELECT * FROM t WHERE id = 20 FOR UPDATE');
	my ($apply, $consensus) = map { $follower->worker_pid($_) } qw(apply consensus);
	kill('STOP', $apply);
	$leader->sql(q{UPDATE t SET v = 'agreed' WHERE id = 20});
	my $chosen = $leader->status('chosen_index');
	QuorumCluster::wait_until('the entry to come', sub { $follower->status('chosen_index') >= $chosen });
	kill('STOP', $consensus);
	$session->send(q{SELECT outcome FROM quorum.outcome('order 20')});
	QuorumCluster::wait_until('the question to be queued', sub { $follower->sql('SELECT wait_event_type FROM pg_stat_activity WHERE pid = ' . $session->backend_pid) eq 'Extension' });
	kill('CONT', $apply);
	is($session->outcome, '40001', 'not asked: the transaction is told that it stood in the way') or diag($session->error);
	kill('CONT', $consensus);
	$cluster->wait_applied;
	ok($leader->query(q{BEGIN; SET LOCAL quorum.token = 'order 20'; INSERT INTO t VALUES (21); COMMIT})->{ok}, 'not asked: the token can be used');
}

# ---- a_token_survives_restarts
$leader->sql(q{BEGIN; SET LOCAL quorum.token = 'order 8'; INSERT INTO t VALUES (8); COMMIT});
foreach my $node ($cluster->nodes)
{
	$node->restart;
	$cluster->wait_for_leader;
}
$cluster->write_until_ok('INSERT INTO t VALUES (9) ON CONFLICT DO NOTHING');
is($cluster->wait_for_leader->query(q{BEGIN; SET LOCAL quorum.token = 'order 8'; INSERT INTO t VALUES (10); COMMIT})->{sqlstate}, '23505',
	'a token is known after a restart of every node');
$cluster->assert_same_digest('t');

done_testing();
