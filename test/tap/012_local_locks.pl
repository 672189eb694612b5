# What a session holds on one node never keeps that node from applying what a quorum agreed on: whoever stands in the way is aborted with a
# true 40001, whatever it does at that moment, and nothing of it is committed.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use WaitingSession;
use Test::More;
use Time::HiRes qw(time);

my $cluster = QuorumCluster->new(nodes => 3);
my $leader = $cluster->wait_for_leader;
$leader->sql(q{
	CREATE TABLE t (id int PRIMARY KEY, v text, u int UNIQUE);
	INSERT INTO t SELECT i, 'first', i FROM generate_series(1, 100) AS i;
	SELECT quorum.replicate('t')});
$cluster->wait_applied;
my ($follower) = $cluster->followers;

# A change of row `id` on the leader is on the follower soon, though `holds` stands in its way there; then the holder's end of it.
my $id = 0;

sub stands_in_the_way
{
	my ($name, %with) = @_;
	my $session = WaitingSession->new($follower);
	$id++;
	(my $holds = $with{holds}) =~ s/\bID\b/$id/g;
	(my $change = $with{change} || q{UPDATE t SET v = 'agreed' WHERE id = ID}) =~ s/\bID\b/$id/g;
	$session->run("BEGIN; $holds");
	$session->send($with{does}) if $with{does};
	my $started = time();
	$leader->sql($change);
	my $applied = eval { $cluster->wait_applied($follower); 1 };
	ok($applied, sprintf('%s: the entry was applied after %.2f s', $name, time() - $started)) or diag($@);

	# What it wrote besides must be gone with it.
	my $sqlstate;
	if ($with{does})
	{
		$sqlstate = $session->outcome;
	}
	else
	{
		$session->send('COMMIT');
		$sqlstate = $session->outcome;
	}
	is($sqlstate, '40001', "$name: the session is told to try again") or diag($session->error);
	like($session->error, qr/stood in the way of one that a quorum agreed on.*log index \d+, of node "\Q@{[ $leader->name ]}\E"/s, "$name: and why");
	$session->finish;
	$cluster->assert_same_digest('t', "$name: all nodes are the same");
	return;
}

$follower->sql('CREATE TABLE local (id int PRIMARY KEY); CREATE TABLE other (id int); INSERT INTO local VALUES (0)');
stands_in_the_way('an idle transaction with a row lock', holds => 'SELECT * FROM t WHERE id = ID FOR UPDATE');
stands_in_the_way('an idle transaction with a shared row lock', holds => 'SELECT * FROM t WHERE id = ID FOR SHARE; INSERT INTO local VALUES (1)');
stands_in_the_way('an idle transaction with a table lock', holds => 'LOCK TABLE t IN ACCESS EXCLUSIVE MODE');
stands_in_the_way('a row lock against a deletion', holds => 'SELECT * FROM t WHERE id = ID FOR KEY SHARE', change => 'DELETE FROM t WHERE id = ID');
stands_in_the_way('a row lock within a savepoint', holds => 'SAVEPOINT s; SELECT * FROM t WHERE id = ID FOR UPDATE');
stands_in_the_way('a row lock through a cursor', holds => 'DECLARE c CURSOR FOR SELECT * FROM t WHERE id = ID FOR UPDATE; FETCH c');
stands_in_the_way('an insertion of the same unique key', holds => q{INSERT INTO t VALUES (1000 + ID, 'never', 5000 + ID)},
	change => q{INSERT INTO t VALUES (2000 + ID, 'agreed', 5000 + ID)});
$follower->sql(q{CREATE PROCEDURE sleeper() LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); COMMIT; END'});
stands_in_the_way('a session in a procedure', holds => 'SELECT * FROM t WHERE id = ID FOR UPDATE', does => 'CALL sleeper()');
stands_in_the_way('a session that computes', holds => 'SELECT * FROM t WHERE id = ID FOR UPDATE', does => 'SELECT pg_sleep(60)');
stands_in_the_way(
	'an exception block that would catch the error',
	holds => 'SELECT * FROM t WHERE id = ID FOR UPDATE',
	does => 'DO $$ BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN others THEN PERFORM pg_sleep(60); END $$');
{
	# Blocked itself by a third, local transaction.
	my $third = WaitingSession->new($follower);
	$third->run('BEGIN; UPDATE local SET id = -1 WHERE id = 0');
	stands_in_the_way('a session that waits for somebody else', holds => 'SELECT * FROM t WHERE id = ID FOR UPDATE', does => 'UPDATE local SET id = -2 WHERE id = 0');
	$third->run('COMMIT');
	$third->finish;
}
{
	# At the moment at which it has asked to commit, and nobody has proposed it yet.
	my $name = 'a transaction that waits to be proposed';
	my $session = WaitingSession->new($follower);
	$session->run(q{BEGIN; SELECT * FROM t WHERE id = 50 FOR UPDATE; UPDATE t SET v = 'never' WHERE id = 51});
	kill('STOP', $follower->process_pid(qr/: quorum lock watcher\b/));
	$leader->sql(q{UPDATE t SET v = 'agreed' WHERE id = 50});
	QuorumCluster::wait_until('the apply worker to wait', sub {
		return $follower->sql('SELECT wait_event_type FROM pg_stat_activity WHERE pid = ' . $follower->worker_pid('apply')) eq 'Lock';
	});
	kill('STOP', $follower->worker_pid('consensus'));
	$session->send('COMMIT');
	$session->wait_until_waiting;
	kill('CONT', $follower->process_pid(qr/: quorum lock watcher\b/));
	is($session->outcome, '40001', "$name: the session is told to try again") or diag($session->error);
	kill('CONT', $follower->worker_pid('consensus'));
	like($session->error, qr/stood in the way of one that a quorum agreed on.*log index \d+, of node "\Q@{[ $leader->name ]}\E"/s, "$name: and why");
	$session->finish;
	$cluster->assert_same_digest('t', "$name: all nodes are the same");
}
{
	# It has asked the log something else, and has caught the error.
	my $name = 'a transaction that goes on after it was told';
	$follower->sql(q{CREATE FUNCTION asks() RETURNS text LANGUAGE plpgsql AS
		'BEGIN RETURN (quorum.outcome(''of nobody'')).outcome; EXCEPTION WHEN serialization_failure THEN RETURN ''told''; END'});
	my $session = WaitingSession->new($follower);
	$session->run(q{BEGIN; SET LOCAL quorum.read_consistency = 'local'; SELECT * FROM t WHERE id = 52 FOR UPDATE});
	kill('STOP', $follower->process_pid(qr/: quorum lock watcher\b/));
	$leader->sql(q{UPDATE t SET v = 'agreed' WHERE id = 52});
	QuorumCluster::wait_until('the apply worker to wait', sub {
		return $follower->sql('SELECT wait_event_type FROM pg_stat_activity WHERE pid = ' . $follower->worker_pid('apply')) eq 'Lock';
	});
	kill('STOP', $follower->worker_pid('consensus'));
	$session->send('SELECT asks()');
	QuorumCluster::wait_until('the question to be queued', sub {
		return $follower->sql("SELECT wait_event_type FROM pg_stat_activity WHERE query LIKE 'SELECT asks()%'") eq 'Extension';
	}, 10);
	kill('CONT', $follower->process_pid(qr/: quorum lock watcher\b/));
	is($session->outcome, '00000', "$name: the block has caught the error") or diag($session->error);
	like($session->{output}, qr/^told$/m, "$name: a question that was never proposed has no answer");
	kill('CONT', $follower->worker_pid('consensus'));
	my $agreed = eval {
		QuorumCluster::wait_until('the agreed change', sub {
			return $follower->sql(q{SET quorum.read_consistency = 'local'; SELECT v FROM t WHERE id = 52}) eq 'agreed';
		}, 20);
		1;
	};
	ok($agreed, "$name: it is ended, and the agreed change comes");
	$session->finish;
	$follower->sql('DROP FUNCTION asks()');
	$cluster->assert_same_digest('t', "$name: all nodes are the same");
}
# ---- maintenance_delays_its_node_visibly_and_no_other
{
	$follower->sql(q{CREATE FUNCTION slow(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.04); RETURN $1; END'});
	my $session = WaitingSession->new($follower);
	# It is still at it when it reports no progress any more and only has to commit.
	$follower->sql(q{CREATE FUNCTION linger() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.5); END'});
	$follower->sql('CREATE EVENT TRIGGER linger ON ddl_command_end EXECUTE FUNCTION linger()');
	$session->send('CREATE INDEX slow ON t (slow(id))');
	QuorumCluster::wait_until('the index to be built', sub {
		return $follower->sql(q{SELECT count(*) FROM pg_stat_progress_create_index WHERE phase LIKE 'building%'}) > 0;
	});
	$leader->sql(q{UPDATE t SET v = 'meanwhile' WHERE id = 40});
	my ($other) = grep { $_ != $follower } $cluster->followers;
	$cluster->wait_applied($other);
	QuorumCluster::wait_until('the status to say so', sub { ($follower->status('last_error') // '') =~ /waits for a lock that process \d+ holds/ });
	pass('the node says what it waits for');
	is($session->outcome, '00000', 'the index is built, though the log waits for it') or diag($session->error);
	$session->finish;
	$follower->sql('DROP EVENT TRIGGER linger');
	$cluster->wait_applied;
	is($follower->sql(q{SELECT v FROM t WHERE id = 40}), 'meanwhile', 'and then the node catches up');
	is($follower->status('last_error') // '', '', 'and says nothing any more');
	$follower->sql('DROP INDEX slow');
}

is($follower->sql('SELECT string_agg(id::text, $$,$$) FROM local'), '-1', 'nothing of what was aborted is there');

# ---- an_old_leader_catches_up_in_spite_of_its_open_transactions
{
	my @sessions = map { WaitingSession->new($leader) } 1 .. 3;
	$sessions[0]->run(q{BEGIN; UPDATE t SET v = 'never' WHERE id = 50});
	$sessions[1]->run(q{BEGIN; INSERT INTO t VALUES (200, 'never', 200)});
	$sessions[2]->run(q{BEGIN; SELECT * FROM t WHERE id = 51 FOR UPDATE; INSERT INTO t VALUES (201, 'never', 201)});
	$leader->sigstop;
	my $new = $cluster->wait_for_leader(not => $leader);
	$new->sql(q{UPDATE t SET v = 'new' WHERE id IN (50, 51); INSERT INTO t VALUES (200, 'new', 300), (202, 'new', 201)});
	$leader->sigcont;
	my $applied = eval { $cluster->wait_applied; 1 };
	ok($applied, 'the old leader applies what its open transactions lock') or diag($@);
	foreach my $session (@sessions)
	{
		$session->send('COMMIT');
		my $sqlstate = $session->outcome;
		like($sqlstate, qr/^(?:40001|25006)$/, "an open transaction of the old leader is refused ($sqlstate)");
		$session->finish;
	}
	$cluster->assert_same_digest('t', 'an old leader with open transactions: all nodes are the same');
	is($leader->sql(q{SELECT count(*) FROM t WHERE v = 'never'}), '0', 'nothing of them is there');
}

# ---- nowait_and_skip_locked_see_local_locks_as_on_one_server
{
	my $session = WaitingSession->new($follower);
	$session->run('BEGIN; SELECT * FROM t WHERE id = 70 FOR UPDATE');
	is($follower->query('SELECT * FROM t WHERE id = 70 FOR UPDATE NOWAIT')->{sqlstate}, '55P03', 'NOWAIT does not wait');
	is($follower->sql('SELECT string_agg(id::text, $$,$$) FROM (SELECT id FROM t WHERE id IN (70, 71) FOR UPDATE SKIP LOCKED) AS free'), '71',
		'SKIP LOCKED skips');
	$session->run('ROLLBACK');
	$session->finish;
	is($follower->sql('SELECT count(*) FROM (SELECT id FROM t WHERE id IN (70, 71) FOR UPDATE NOWAIT) AS free'), '2', 'and both find what is free');
}

# ---- local_transactions_of_the_leader_hold_each_other_up_as_ever: between two writers of one node Postgres' own locks decide
{
	my $now = $cluster->wait_for_leader;
	my @sessions = map { WaitingSession->new($now) } 1, 2;
	$sessions[0]->run(q{BEGIN; UPDATE t SET v = v || '1' WHERE id = 60});
	$sessions[1]->send(q{UPDATE t SET v = v || '2' WHERE id = 60});
	$sessions[0]->run('COMMIT');
	is($sessions[1]->outcome, '00000', 'who waited for a row goes on when the other has committed') or diag($sessions[1]->error);
	$_->finish foreach @sessions;
	is($now->sql('SELECT v FROM t WHERE id = 60'), 'first12', 'and none of the two updates is lost');
	$cluster->assert_same_digest('t', 'two writers of a row: all nodes are the same');
}

done_testing();
