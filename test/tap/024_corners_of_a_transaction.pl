# What a transaction leaves behind, or brings with it, in ways that statements alone do not show: savepoints that were rolled back, PREPARE TRANSACTION,
# snapshots of others, triggers around TRUNCATE.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use WaitingSession;
use Test::More;

my $cluster = QuorumCluster->new(nodes => 3);
my ($first, $second) = $cluster->followers;
$second->append_conf('postgresql.conf', "max_prepared_transactions = 5\n");
$second->restart;
$cluster->wait_applied;

$first->sql('CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE numbered (id serial PRIMARY KEY, v int)');
$first->sql("SELECT quorum.replicate('$_')") foreach qw(t numbered);
$first->sql('INSERT INTO t SELECT i, 0 FROM generate_series(1, 9) AS i; INSERT INTO numbered (v) VALUES (1), (2), (3)');
$cluster->wait_applied;

# ---- a write by key in a savepoint: what it saw would not be certified if the savepoint were rolled back
{
	my $session = WaitingSession->new($second);
	$second->without_apply(sub {
		$first->sql('DELETE FROM t WHERE id = 5');
		$session->run('BEGIN; SAVEPOINT s');
		$session->send("UPDATE t SET v = 1 WHERE id = 5;\n\\echo rows :ROW_COUNT");
		QuorumCluster::wait_until('the update to wait, or to be done', sub {
			return 1 if $session->is_done;
			return $second->query("SELECT wait_event_type FROM pg_stat_activity WHERE pid = $session->{backend_pid} AND query LIKE 'UPDATE%'")->{rows} eq 'Extension';
		});
		ok(!$session->is_done, 'a write by key in a savepoint waits for what was acknowledged before it');
	});
	is($session->outcome, '00000', 'and goes on');
	like($session->output, qr/^rows 0\b/m, 'without the row that is gone');
	$session->finish;
}

# ---- a snapshot of somebody else's
{
	my $owner = WaitingSession->new($second);
	my $snapshot = $owner->run('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_export_snapshot()');
	$first->sql('UPDATE t SET v = 77 WHERE id = 1');
	my $import = "BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '$snapshot'";
	my $result = $second->query("$import; SELECT v FROM t WHERE id = 1");
	is($result->{sqlstate}, '40001', 'an imported snapshot that is too old is no linearizable read');
	is($second->sql("SET quorum.read_consistency = 'local'; $import; SELECT v FROM t WHERE id = 1"), '0', 'a local read may use it');
	$owner->finish;
}

# ---- rows that are locked, and then neither written nor returned: with the winner's entry before it in the log, a transaction that holds one is rejected
sub loses_to
{
	my ($name, $session, $winner_sql) = @_;
	$second->without_apply(sub {
		$first->sql($winner_sql);
		my $won_at = $first->status('chosen_index');
		$session->send('COMMIT');
		QuorumCluster::wait_until('the verdict over both', sub { $session->is_done || $second->status('chosen_index') > $won_at });
	});
	is($session->outcome, '40001', $name) or diag($session->error);
	like($session->error, qr/Key \(id\)=\(\d+\) of table "t"/, "$name: and is told the key");
	return;
}
foreach my $statement ('UPDATE t SET v = 6 WHERE id = 4 AND v = 0', 'DELETE FROM t WHERE id = 4 AND v = 0', 'SELECT 1 FROM t WHERE id = 4 AND v = 0 FOR UPDATE')
{
	$first->sql('UPDATE t SET v = 0 WHERE id = 4');
	$cluster->wait_applied;
	my ($holder, $session) = map { WaitingSession->new($second) } 1, 2;
	$holder->run('BEGIN; UPDATE t SET v = 5 WHERE id = 4');
	$session->run('BEGIN');
	$session->send($statement);
	QuorumCluster::wait_until('it to wait for the row', sub {
		$second->sql("SELECT wait_event_type FROM pg_stat_activity WHERE pid = $session->{backend_pid}") eq 'Lock';
	});
	$holder->run('COMMIT');
	is($session->outcome, '00000', "$statement: finds no row");
	$session->run('UPDATE t SET v = 1 WHERE id = 7');
	$cluster->wait_applied($first);    # or the winner might be rejected itself
	loses_to("$statement: a row that no longer qualified is certified as locked", $session, 'UPDATE t SET v = 7 WHERE id = 4');
	$_->finish foreach $holder, $session;
}
{
	my ($holder, $session) = map { WaitingSession->new($second) } 1, 2;
	$holder->run('BEGIN; SELECT 1 FROM numbered WHERE id = 3 FOR UPDATE');
	$session->run('BEGIN; SELECT 1 FROM t JOIN numbered USING (id) WHERE id = 3 FOR UPDATE SKIP LOCKED; UPDATE t SET v = 1 WHERE id = 7');
	loses_to('a row whose partner in a join was skipped is certified as locked', $session, 'UPDATE t SET v = 7 WHERE id = 3');
	$_->finish foreach $holder, $session;
}

# ---- more locked rows than can be listed
{
	$first->sql(q{CREATE TABLE many (id int PRIMARY KEY); SELECT quorum.replicate('many')});
	$first->sql('INSERT INTO many SELECT i FROM generate_series(1, 70000) AS i');
	$cluster->wait_applied;
	my $session = WaitingSession->new($second);
	$session->run('BEGIN; UPDATE t SET v = 1 WHERE id = 7; DO $$ BEGIN FOR i IN 1 .. 4 LOOP PERFORM 1 FROM many FOR UPDATE; END LOOP; END $$');
	cmp_ok($session->run(q{SELECT total_bytes FROM pg_backend_memory_contexts WHERE name = 'TopTransactionContext'}), '<', 16 * 1024 * 1024,
		'the memory that locked rows take is bounded');
	$second->without_apply(sub {
		$first->sql('DELETE FROM many WHERE id = 1');
		my $won_at = $first->status('chosen_index');
		$session->send('COMMIT');
		QuorumCluster::wait_until('the verdict over both', sub { $session->is_done || $second->status('chosen_index') > $won_at });
	});
	is($session->outcome, '40001', 'and they are certified as their table');
	like($session->error, qr/Table "many" was changed or locked as a whole/, 'which is said');
	$session->finish;
}

# ---- PREPARE TRANSACTION after a savepoint that was rolled back
is($second->sql(q{
	BEGIN ISOLATION LEVEL SERIALIZABLE; CREATE TABLE mine (id int); SAVEPOINT s;
	INSERT INTO t SELECT i, 0 FROM generate_series(100, 400) AS i; ROLLBACK TO s; PREPARE TRANSACTION 'x';
	BEGIN; INSERT INTO t SELECT i, 0 FROM generate_series(1000, 1299) AS i; COMMIT;
	COMMIT PREPARED 'x';
	SELECT count(*) FROM t WHERE id >= 100}), '300', 'a prepared transaction leaves nothing to the next one of its session');
$cluster->assert_same_digest('t', 'and the nodes agree');

# ---- TRUNCATE and its triggers
$second->sql(q{
	CREATE FUNCTION put_before() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO t VALUES (5000, 1); RETURN NULL; END';
	CREATE FUNCTION put_after() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO t VALUES (6000, 1); TRUNCATE numbered CONTINUE IDENTITY; RETURN NULL; END';
	CREATE TRIGGER put BEFORE TRUNCATE ON t FOR EACH STATEMENT EXECUTE FUNCTION put_before()});
foreach my $truncate ('TRUNCATE t', 'BEGIN; SAVEPOINT s; TRUNCATE t; RELEASE s; COMMIT')
{
	is($second->query($truncate)->{sqlstate}, '0A000', "a trigger may not put rows into a table that is about to be truncated: $truncate");
	$cluster->assert_same_digest('t', 'nothing has changed');
}
$second->sql(q{
	DROP TRIGGER put ON t;
	CREATE TRIGGER put AFTER TRUNCATE ON t FOR EACH STATEMENT EXECUTE FUNCTION put_after();
	BEGIN; SAVEPOINT s; TRUNCATE t; RELEASE s; COMMIT});
$cluster->wait_applied;    # a reader that holds the table while it waits for TRUNCATE is aborted after a while
is($first->sql('SELECT id FROM t'), '6000', 'afterwards it may');
$cluster->assert_same_digest('t', 'on all nodes');
$cluster->assert_same_digest('numbered', 'and what it truncates itself');

done_testing();
