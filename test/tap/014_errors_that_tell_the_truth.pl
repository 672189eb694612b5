# What a client is told when something goes wrong that has nothing to do with the quorum: errors between the grant and the end of the commit, a
# consensus worker that is restarted, concurrent insertions.  And what would hold up other nodes is refused at once.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use QuorumCluster;
use Test::More;
use WaitingSession;

# Intervals that leave time to propose before the leader notices that it is alone.
my $cluster = QuorumCluster->new(
	nodes => 3,
	conf => "quorum.heartbeat_interval = '400ms'\nquorum.election_timeout = '1500ms'\nmax_prepared_transactions = 2");
my $leader = $cluster->wait_for_leader;
$_->sql(q{
	CREATE FUNCTION pause(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM pg_sleep(current_setting('test.pause_s')::float) WHERE current_setting('test.pause_s', true) <> '';
		RETURN $1;
	END $$}) foreach $cluster->nodes;
$leader->sql(q{
	CREATE TABLE local (id int PRIMARY KEY);
	INSERT INTO local VALUES (1);
	CREATE TABLE t (id int PRIMARY KEY, u int);
	CREATE UNIQUE INDEX t_u ON t (u);
	SELECT quorum.replicate('t');
	CREATE TABLE slow (id int, v int);
	CREATE INDEX ON slow (pause(v));
	ALTER TABLE slow ADD PRIMARY KEY (id);
	SELECT quorum.replicate('slow')});
$cluster->wait_applied;

# ---- error_after_the_grant_says_that_the_outcome_is_unknown ----------------------------------------------------------

# ON COMMIT DELETE ROWS locks the temporary table after the grant, and meets somebody who waits for this transaction: a deadlock.
{
	my $session = WaitingSession->new($leader);
	my $blocker = WaitingSession->new($leader);
	my $table = $session->run(q{
		SET deadlock_timeout = '10ms';
		CREATE TEMP TABLE scratch (id int) ON COMMIT DELETE ROWS;
		SELECT relnamespace::regnamespace || '.' || relname FROM pg_class WHERE oid = 'scratch'::regclass});
	$session->run('BEGIN; INSERT INTO t VALUES (1, 1); INSERT INTO scratch VALUES (1); UPDATE local SET id = 1');
	$blocker->run("SET deadlock_timeout = '1min'; BEGIN; LOCK TABLE $table IN ACCESS SHARE MODE");
	$blocker->send('UPDATE local SET id = 1');
	QuorumCluster::wait_until(
		'the blocker to wait',
		sub { $leader->sql('SELECT cardinality(pg_blocking_pids(' . $blocker->backend_pid . '))') eq '1' });
	$session->send('COMMIT');
	is($session->outcome, '08007', 'deadlock after the grant: the outcome is unknown');
	like($session->error, qr/deadlock detected/, 'it says what happened');
	like($session->error, qr/Transaction token: \d+\.\d+\.\d+\.[0-9a-f]{16}/, 'and names the transaction');
	is($blocker->outcome, '00000', 'the other one goes on');
	$_->finish foreach $session, $blocker;
	QuorumCluster::wait_until('the entry to be applied', sub { $leader->sql('SELECT count(*) FROM t WHERE id = 1') eq '1' });
	$leader->sql('UPDATE t SET u = 2 WHERE id = 1');
	$cluster->assert_same_digest('t');
}

# ---- concurrent_insertions_with_on_conflict_do_nothing_succeed -------------------------------------------------------

# The plain index that makes it slow is the first leader's own.  Each has found no conflict when the other has not inserted the key yet; the second takes its row back.
{
	my @sessions = map { WaitingSession->new($leader) } 1 .. 2;
	$_->run("SET test.pause_s = '2'") foreach @sessions;
	$_->send('INSERT INTO slow VALUES (1, 1) ON CONFLICT DO NOTHING') foreach @sessions;
	QuorumCluster::wait_until(
		'both to be inserting',
		sub {
			$_->is_done foreach @sessions;
			return $leader->sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") eq '2';
		});
	is($_->outcome, '00000', 'insertion that met another one') or diag($_->error) foreach @sessions;
	$_->finish foreach @sessions;
	is($leader->sql('SELECT count(*) FROM slow'), 1, 'one row');
	$cluster->assert_same_digest('slow');
}

# ---- token_names_the_incarnation_that_proposed -----------------------------------------------------------------------

{
	my $incarnation = $leader->sql('SELECT incarnation FROM quorum.log ORDER BY log_index DESC LIMIT 1');
	my $session = WaitingSession->new($leader);
	$session->run('BEGIN; INSERT INTO t VALUES (3, 3)');
	$_->sigstop foreach $cluster->followers;
	$session->send('COMMIT');
	$session->wait_until_waiting;
	QuorumCluster::wait_until(
		'the proposal to be in the journal',
		sub {
			return $leader->sql(q{
				SELECT n.accepted_index > s.chosen_index FROM quorum.nodes AS n JOIN quorum.status AS s USING (node_name)}) eq 't';
		},
		5);
	kill('TERM', $leader->worker_pid('consensus'));
	is($session->outcome, '08007', 'consensus worker restarted: the outcome is unknown');
	like($session->error, qr/token: \d+\.$incarnation\./, "the token is of incarnation $incarnation");
	my ($sequence) = $session->error =~ /token: \d+\.\d+\.(\d+)/;
	$session->finish;
	foreach my $node ($cluster->nodes) { $node->sigcont if $node->{stopped_by_signal} }
	my $name = $leader->name;
	$leader = $cluster->wait_for_leader;
	$cluster->write_until_ok('INSERT INTO t VALUES (4, 4)');
	is($leader->sql('SELECT count(*) FROM t WHERE id = 3'),
		$leader->sql("SELECT count(*) FROM quorum.log
			WHERE origin_node = '$name' AND incarnation = $incarnation AND sequence = $sequence AND verdict = 'applied'"),
		'by the token the log says whether it is committed');
	$cluster->assert_same_digest('t');
}

# ---- prepared_transaction_does_not_hold_up_a_follower ----------------------------------------------------------------

foreach my $lock ('SELECT * FROM t WHERE id = 1 FOR UPDATE', 'SELECT * FROM t')
{
	my ($follower) = $cluster->followers;
	is($follower->query("BEGIN; $lock; PREPARE TRANSACTION 'p'")->{sqlstate}, '0A000', "PREPARE after $lock is refused");
	$leader->sql('UPDATE t SET u = u + 100 WHERE id = 1');
	$cluster->assert_same_digest('t');
}
$leader->sql(q{BEGIN; CREATE TABLE other (id int); PREPARE TRANSACTION 'p'});
$leader->sql(q{COMMIT PREPARED 'p'});

# ---- what_would_make_the_nodes_differ_is_refused ---------------------------------------------------------------------

foreach my $sql (
	'DROP INDEX t_u',
	'DROP INDEX CONCURRENTLY t_u',
	'CREATE TABLE child () INHERITS (t)',
	'ALTER TABLE child_by_hand INHERIT t')
{
	$leader->sql('CREATE TABLE IF NOT EXISTS child_by_hand (LIKE t)');
	is($leader->query($sql)->{sqlstate}, '0A000', "$sql is refused");
}
ok($leader->query('REINDEX INDEX CONCURRENTLY t_u')->{ok}, 'an index is rebuilt');

done_testing();
