# A read sees all that was acknowledged anywhere before it began, on whatever node and by whatever statement; or it fails and says why.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use WaitingSession;
use Test::More;

my $namespaces = ($ENV{QUORUM_NAMESPACES} || '') eq 'yes';
my $cluster = QuorumCluster->new(nodes => 3, namespaces => $namespaces);
my $leader = $cluster->wait_for_leader;
$leader->sql(q{
	CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL);
	INSERT INTO t VALUES (1, 0), (2, 0);
	SELECT quorum.replicate('t')});
$cluster->wait_applied;
my ($follower) = $cluster->followers;

# All of it is the follower's own.
$follower->sql(q{
	CREATE TABLE local (id int PRIMARY KEY, n int);
	INSERT INTO local VALUES (1, -1);
	CREATE VIEW v AS SELECT n FROM t WHERE id = 1;
	CREATE VIEW vv AS SELECT n + 0 AS n FROM v;
	CREATE MATERIALIZED VIEW m AS SELECT n FROM t WHERE id = 1;
	CREATE FUNCTION f_inlined() RETURNS SETOF int LANGUAGE sql STABLE AS 'SELECT n FROM t WHERE id = 1';
	CREATE FUNCTION f_sql() RETURNS int LANGUAGE sql VOLATILE SECURITY DEFINER AS 'SELECT n FROM t WHERE id = 1';
	CREATE FUNCTION f_stable() RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN (SELECT n FROM t WHERE id = 1); END';
	CREATE FUNCTION f_volatile() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT n FROM t WHERE id = 1); END';
	CREATE FUNCTION f_nested() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN f_volatile(); END';
	CREATE FUNCTION f_dynamic(what text) RETURNS int LANGUAGE plpgsql AS 'DECLARE r int; BEGIN EXECUTE what INTO r; RETURN r; END';
	CREATE FUNCTION f_operator(int, int) RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN (SELECT n FROM t WHERE id = 1); END';
	CREATE OPERATOR ### (FUNCTION = f_operator, LEFTARG = int, RIGHTARG = int);
	CREATE AGGREGATE f_aggregate(int) (SFUNC = f_operator, STYPE = int, INITCOND = 0);
	CREATE PROCEDURE p(INOUT r int) LANGUAGE plpgsql AS 'BEGIN r := (SELECT n FROM t WHERE id = 1); END';
	CREATE PROCEDURE p_commits(INOUT r int) LANGUAGE plpgsql AS 'BEGIN COMMIT; r := (SELECT n FROM t WHERE id = 1); END';
	CREATE FUNCTION f_trigger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.n := (SELECT n FROM t WHERE id = 1); RETURN NEW; END';
	CREATE TABLE triggered (id serial, n int);
	CREATE TRIGGER reads BEFORE INSERT ON triggered FOR EACH ROW EXECUTE FUNCTION f_trigger();
	CREATE TABLE defaulted (id int, n int DEFAULT f_volatile())});

# What the leader has acknowledged last, row 1.
my $written = 0;

sub write_next
{
	$written++;
	$leader->sql("UPDATE t SET n = $written WHERE id = 1");
	return $written;
}

# The follower falls behind, and is let go.
sub stop_applying { kill('STOP', $follower->worker_pid('apply')); return; }
sub go_on_applying { kill('CONT', $follower->worker_pid('apply')); return; }

sub wait_until_reader_waits
{
	my ($session, $name) = @_;
	my $waits = eval {
		QuorumCluster::wait_until(
			'the reader to wait',
			sub {
				die "it did not wait\n" if $session->is_done;
				return $follower->sql('SELECT wait_event_type FROM pg_stat_activity WHERE pid = ' . $session->backend_pid) eq 'Extension';
			},
			20);
	};
	ok($waits, "$name: waits for what is not applied yet") or diag($@, $session->error);
	return;
}

# ---- no_statement_reads_what_is_stale
#
# Each statement is sent when the follower has not applied the last acknowledged write; what it shows must be that write all the same.
my $one = 'SELECT n FROM t WHERE id = 1';
my @forms = (
	{ name => 'SELECT', sql => $one },
	{ name => 'SELECT in a transaction that has read before', setup => "BEGIN; $one", sql => "$one; COMMIT" },
	{ name => 'SELECT in a savepoint', setup => "BEGIN; $one; SAVEPOINT s", sql => "$one; COMMIT" },
	{ name => 'SELECT FOR UPDATE', setup => 'BEGIN', sql => "$one FOR UPDATE; ROLLBACK" },
	{ name => 'two statements in one message', sql => "SELECT 1 \\; $one" },
	{ name => 'a join', sql => 'SELECT t.n FROM local JOIN t USING (id)' },
	{ name => 'a subquery', sql => "SELECT ($one) FROM local" },
	{ name => 'a CTE', sql => "WITH c AS MATERIALIZED ($one) SELECT n FROM c" },
	{ name => 'UNION', sql => "SELECT -1 UNION ALL $one" },
	{ name => 'TABLE', sql => 'TABLE t' },
	{ name => 'a parallel query', setup => 'SET force_parallel_mode = on', sql => $one },
	{ name => 'PREPARE and EXECUTE', setup => "PREPARE q AS $one", sql => 'EXECUTE q' },
	{
		name => 'EXECUTE of a generic plan',
		setup => "SET plan_cache_mode = force_generic_plan; PREPARE q(int) AS SELECT n FROM t WHERE id = \$1; EXECUTE q(1)",
		sql => 'EXECUTE q(1)'
	},
	{ name => 'a parameter of EXECUTE', setup => 'PREPARE q(int) AS SELECT $1', sql => 'EXECUTE q(f_volatile())' },
	{ name => 'a stable parameter of EXECUTE', setup => 'PREPARE q(int) AS SELECT $1', sql => 'EXECUTE q(f_stable())' },
	{ name => 'a cursor', setup => 'BEGIN', sql => "DECLARE c CURSOR FOR $one; FETCH c; COMMIT" },
	{ name => 'a scrollable cursor', setup => 'BEGIN', sql => "DECLARE c SCROLL CURSOR FOR $one; FETCH LAST FROM c; COMMIT" },
	{ name => 'a cursor WITH HOLD', sql => "DECLARE c CURSOR WITH HOLD FOR $one; FETCH c" },
	{ name => 'a view', sql => 'SELECT n FROM v' },
	{ name => 'a view of a view', sql => 'SELECT n FROM vv' },
	{ name => 'an inlined function', sql => 'SELECT * FROM f_inlined()' },
	{ name => 'a function in SQL', sql => 'SELECT f_sql()' },
	{ name => 'a stable function', sql => 'SELECT f_stable()' },
	{ name => 'a volatile function', sql => 'SELECT f_volatile()' },
	{ name => 'a function that calls another', sql => 'SELECT f_nested()' },
	{ name => 'a function that makes its query', sql => "SELECT f_dynamic('$one')" },
	{ name => 'a function behind an operator', sql => 'SELECT id ### id FROM local' },
	{ name => 'a function behind an aggregate', sql => 'SELECT f_aggregate(id) FROM local' },
	{ name => 'CALL', sql => 'CALL p(NULL)' },
	{ name => 'CALL of a procedure that commits', sql => 'CALL p_commits(NULL)' },
	{ name => 'DO', sql => "DO 'BEGIN UPDATE local SET n = (SELECT n FROM t WHERE id = 1); END'; SELECT n FROM local" },
	{ name => 'COPY of a table', sql => 'COPY t TO STDOUT' },
	{ name => 'COPY of columns', sql => 'COPY t (n) TO STDOUT' },
	{ name => 'COPY of a query', sql => "COPY ($one) TO STDOUT" },
	{ name => 'EXPLAIN ANALYZE', sql => 'EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off) SELECT FROM t WHERE n = WRITTEN', shows => qr/actual rows=1/ },
	{
		name => 'EXPLAIN ANALYZE EXECUTE',
		setup => 'PREPARE q(int) AS SELECT FROM t WHERE n = $1',
		sql => 'EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off) EXECUTE q(WRITTEN)',
		shows => qr/actual rows=1/
	},
	{ name => 'CREATE TABLE AS', sql => "CREATE TEMP TABLE made AS $one; SELECT n FROM made" },
	{ name => 'CREATE TABLE AS EXECUTE', setup => "PREPARE q AS $one", sql => 'CREATE TEMP TABLE made AS EXECUTE q; SELECT n FROM made' },
	{ name => 'SELECT INTO', sql => 'SELECT n INTO TEMP made FROM t WHERE id = 1; SELECT n FROM made' },
	{ name => 'REFRESH MATERIALIZED VIEW', sql => 'REFRESH MATERIALIZED VIEW m; SELECT n FROM m' },
	{ name => 'INSERT SELECT', sql => 'INSERT INTO local SELECT WRITTEN + 100, n FROM t WHERE id = 1 RETURNING n' },
	{ name => 'INSERT of what a function gives', sql => 'INSERT INTO local VALUES (WRITTEN + 100, f_volatile()) RETURNING n' },
	{ name => 'INSERT of a default', sql => 'INSERT INTO defaulted (id) VALUES (1) RETURNING n' },
	{ name => 'INSERT with a trigger that reads', sql => 'INSERT INTO triggered DEFAULT VALUES RETURNING n' },
	{ name => 'UPDATE FROM', sql => 'UPDATE local SET n = t.n FROM t WHERE t.id = 1 AND local.id = 1 RETURNING local.n' },
	{ name => 'DELETE USING', setup => 'BEGIN', sql => 'DELETE FROM local USING t WHERE t.id = 1 AND local.id = 1 RETURNING t.n; ROLLBACK' },
	{
		name => 'MERGE',
		sql => 'MERGE INTO local USING t ON local.id = t.id AND t.id = 1 WHEN MATCHED THEN UPDATE SET n = t.n; SELECT n FROM local WHERE id = 1'
	},
	{ name => 'REPEATABLE READ', sql => "BEGIN ISOLATION LEVEL REPEATABLE READ; $one; COMMIT" },
	{ name => 'SERIALIZABLE', sql => "START TRANSACTION ISOLATION LEVEL SERIALIZABLE; $one; COMMIT" },
	{ name => 'SET TRANSACTION', setup => 'BEGIN', sql => "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; $one; COMMIT" },
	{
		name => 'REPEATABLE READ by default',
		setup => "SET default_transaction_isolation = 'repeatable read'",
		sql => "BEGIN; $one; COMMIT"
	},
	{ name => 'a cursor under REPEATABLE READ', sql => "BEGIN ISOLATION LEVEL REPEATABLE READ; DECLARE c CURSOR FOR $one; FETCH c; COMMIT" });

foreach my $form (@forms)
{
	my $session = WaitingSession->new($follower);
	$session->run($form->{setup}) if $form->{setup};
	$cluster->wait_applied($follower);
	stop_applying();
	my $value = write_next();
	(my $sql = $form->{sql}) =~ s/\bWRITTEN\b/$value/g;
	$session->send($sql);
	wait_until_reader_waits($session, $form->{name});
	go_on_applying();
	my $sqlstate = $session->outcome;
	my $shows = $form->{shows} || qr/(?:^|\|)$value$|\t$value$/m;
	is($sqlstate, '00000', "$form->{name}: succeeds") or diag($session->error);
	like($session->output, $shows, "$form->{name}: sees the last write, $value");
	$session->finish;
}

# ---- extended_and_prepared_protocol_read_nothing_stale
foreach my $protocol ('extended', 'prepared')
{
	my $script = "$PostgreSQL::Test::Utils::tmp_check/read.$protocol.sql";
	$cluster->wait_applied($follower);
	stop_applying();
	my $value = write_next();
	PostgreSQL::Test::Utils::append_to_file($script, "\\set id 1\nSELECT n FROM t WHERE id = :id \\gset\n\\if :n != $value\nSELECT 'stale' / 0;\n\\endif\n");
	my ($out, $err) = ('', '');
	my $run = IPC::Run::start([ 'pgbench', '-n', '-t', 2, '-M', $protocol, '-f', $script, $follower->connstr('postgres') ],
		'<', '/dev/null', '>', \$out, '2>', \$err, IPC::Run::timeout(60));
	my $waits = eval {
		QuorumCluster::wait_until('pgbench to wait', sub {
			die "it did not wait: $err\n" unless $run->pumpable;
			$run->pump_nb;
			$follower->sql(q{SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT n FROM t WHERE id = $1%' AND wait_event_type = 'Extension'}) eq '1' }, 20);
	};
	ok($waits, "$protocol protocol: waits for what is not applied yet") or diag($@);
	go_on_applying();
	ok($run->finish, "$protocol protocol: sees the last write") or diag($err);
}

# ---- what_needs_no_quorum_does_not_wait: while apply stands still
$cluster->wait_applied($follower);
stop_applying();
my $old = $written;
write_next();
is($follower->sql("SET quorum.read_consistency = 'local'; $one", timeout => 10), $old, 'a local read shows what this node has, at once');
is($follower->sql('SELECT count(*) FROM local WHERE id = 1', timeout => 10), '1', 'a table that is not replicated is read at once');
is($follower->sql('INSERT INTO local VALUES (1000, 1) RETURNING id', timeout => 10), '1000', 'and written at once');
like($follower->sql("EXPLAIN $one", timeout => 10), qr/Scan/, 'EXPLAIN without ANALYZE reads nothing');
is($follower->sql('BEGIN; SELECT 1; COMMIT', timeout => 10), '1', 'a transaction begins at once');
is($follower->sql('SELECT count(*) FROM quorum.status', timeout => 10), '1', 'quorum.status answers at once');
is($follower->sql('SELECT count(*) FROM quorum.tables', timeout => 10), '1', 'and so does quorum.tables');
is($follower->sql(q{SELECT count(*) > 0 FROM information_schema.columns WHERE table_name = 't'}, timeout => 10), 't', 'and the information schema');

# ---- snapshot_that_came_first_is_refused_if_it_is_too_old
{
	my $session = WaitingSession->new($follower);
	$session->run("SET default_transaction_isolation = 'repeatable read'");
	$session->send($one);
	wait_until_reader_waits($session, 'REPEATABLE READ without BEGIN');
	go_on_applying();
	is($session->outcome, '40001', 'REPEATABLE READ without BEGIN: its snapshot came first and is too old');
	like($session->error, qr/HINT:.*BEGIN/, 'and the hint says how to have it taken later');
	$cluster->wait_applied($follower);
	is($session->run($one), $written, 'with nothing new it succeeds');
	$session->finish;
}

# ---- asking_for_the_position_of_a_snapshot_is_no_read: all transactions change that row, so it would conflict with each of them
{
	my $session = WaitingSession->new($follower);
	$cluster->wait_applied($follower);
	$session->run("SET quorum.read_consistency = 'local'; BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT 1; SET LOCAL quorum.read_consistency = 'linearizable'");
	is($session->run($one), $written, 'a snapshot that came first is good enough if nothing came after it');
	is($session->run(q{SELECT count(*) FROM pg_locks WHERE mode = 'SIReadLock' AND relation = 't'::regclass}) > 0, 1, 'SERIALIZABLE notes the read of the table');
	is($session->run(q{SELECT count(*) FROM pg_locks WHERE mode = 'SIReadLock' AND relation = 'quorum.position'::regclass}), '0', 'and none of the position');
	$session->run('COMMIT');
	$session->finish;
}

# ---- repeatable_read_stays_repeatable
{
	my $session = WaitingSession->new($follower);
	$cluster->wait_applied($follower);
	$session->run("BEGIN ISOLATION LEVEL REPEATABLE READ; $one");
	my $seen = $written;
	write_next();
	$cluster->wait_applied($follower);
	is($session->run($one), $seen, 'REPEATABLE READ goes on with its snapshot');
	$session->run('COMMIT');
	is($session->run($one), $written, 'and the next statement has a later one');
	$session->finish;
}

# ---- waiting_reader_can_be_stopped
foreach my $case (
	[ 'pg_cancel_backend', '57014' ],
	[ 'pg_terminate_backend', '57P01' ],
	[ 'statement_timeout', '57014' ])
{
	my ($how, $sqlstate) = @$case;
	my $session = WaitingSession->new($follower);
	$cluster->wait_applied($follower);
	stop_applying();
	write_next();
	$session->run("SET statement_timeout = '500ms'") if $how eq 'statement_timeout';
	$session->send($one);
	if ($how ne 'statement_timeout')
	{
		wait_until_reader_waits($session, $how);
		$follower->sql("SELECT $how(" . $session->backend_pid . ')');
	}
	is($session->outcome, $sqlstate, "$how ends the wait");
	go_on_applying();
	is($session->run("SET statement_timeout = 0; $one"), $written, "$how: the session reads again") if $sqlstate eq '57014';
	$session->finish;
}

# ---- reader_that_holds_a_lock_which_apply_needs_is_aborted: else both would wait for ever
{
	my $session = WaitingSession->new($follower);
	$cluster->wait_applied($follower);
	$session->run("BEGIN; $one FOR UPDATE");
	stop_applying();
	write_next();
	$session->send('SELECT n FROM t WHERE id = 2');
	wait_until_reader_waits($session, 'a reader with a row lock');
	go_on_applying();
	is($session->outcome, '40001', 'a reader that holds what apply needs is told to try again') or diag($session->error);
	$session->finish;
	is($follower->sql($one), $written, 'and apply went on');
}

# ---- wait_for_makes_local_reads_causal
{
	my $writer = WaitingSession->new($leader);
	my $reader = WaitingSession->new($follower);
	is($writer->run('SELECT quorum.last_commit_index() IS NULL'), 't', 'a session that has written nothing has no commit index');
	$reader->run("SET quorum.read_consistency = 'local'");
	$cluster->wait_applied($follower);
	stop_applying();
	$written++;
	$writer->run("UPDATE t SET n = $written WHERE id = 1");
	my $index = $writer->run('SELECT quorum.last_commit_index()');
	is($index, $leader->sql(q{SELECT max(log_index) FROM quorum.log WHERE kind = 'transaction'}), 'a session knows the index of its last commit');
	$writer->run('BEGIN; UPDATE t SET n = -1 WHERE id = 2; ROLLBACK');
	is($writer->run('SELECT quorum.last_commit_index()'), $index, 'a rollback does not change it');
	$reader->send("SELECT quorum.wait_for($index)");
	wait_until_reader_waits($reader, 'wait_for');
	go_on_applying();
	is($reader->outcome, '00000', 'wait_for returns once the index is applied');
	is($reader->run($one), $written, 'and then a local read sees the write');
	is($reader->run('SELECT quorum.wait_for(0) IS NULL'), 'f', 'what is applied already is not waited for');

	my $future = $leader->sql('SELECT chosen_index FROM quorum.status') + 1;
	$reader->send("SELECT quorum.wait_for($future)");
	wait_until_reader_waits($reader, 'an index to come');
	write_next();
	is($reader->outcome, '00000', 'an index to come: wait_for returns when it has come');
	is($reader->run($one), $written, 'an index to come: and a local read sees it');
	is($follower->query("SET statement_timeout = '200ms'; SELECT quorum.wait_for(1000000)")->{sqlstate}, '57014', 'statement_timeout ends wait_for');
	is($follower->query('SELECT quorum.wait_for(-1)')->{sqlstate}, '22023', 'a negative index is refused');
	$_->finish foreach $writer, $reader;
}

# ---- restart_of_the_consensus_worker_leaves_no_reader_hanging
{
	my $session = WaitingSession->new($follower);
	kill('TERM', $follower->worker_pid('consensus'));
	$session->send($one);
	my $sqlstate = $session->outcome;
	like($sqlstate, qr/^(?:00000|25006)$/, "a reader gets an answer when the consensus worker is restarted ($sqlstate)");
	QuorumCluster::wait_until('reads to work again', sub { $follower->query($one)->{rows} eq $written }, 30);
	pass('and reads work again');
	$session->finish;
}

# ---- deposed_leader_does_not_serve_what_is_old
SKIP:
{
	skip('links can be cut by those only who may make network namespaces', 4) unless $namespaces;
	my $deposed = $cluster->wait_for_leader;
	my @others = grep { $_ != $deposed } $cluster->nodes;
	my $session = WaitingSession->new($deposed);
	is($session->run($one), $written, 'a leader that leads reads');
	$cluster->isolate($deposed);
	$session->send($one);		# asked before anything newer was acknowledged, and while it may still think that it leads
	like($session->outcome, qr/^(?:00000|25006)$/, 'a read right after the cut sees what there was, or fails');
	$leader = $cluster->wait_for_leader(not => $deposed, agreed_by => \@others);
	write_next();
	$session->send($one);
	is($session->outcome, '25006', 'a leader that was deposed refuses, when others have acknowledged something newer');
	like($session->error, qr/HINT:.*SET quorum\.read_consistency = 'local'/, 'and the hint says what is left');
	is($session->run("SET quorum.read_consistency = 'local'; $one"), $written - 1, 'a local read shows what was');
	$cluster->heal;
	QuorumCluster::wait_until('the deposed leader to read again', sub { $deposed->query($one)->{ok} }, 60);
	is($deposed->sql($one), $written, 'when it is back, it reads what is new');
	$session->finish;
}

# ---- minority_fails_linearizable_reads_and_says_what_is_left
$leader = $cluster->wait_for_leader;
my ($second) = $cluster->followers;
foreach my $survivor ($leader, $second)
{
	my @gone = grep { $_ != $survivor } $cluster->nodes;
	my $name = $survivor == $leader ? 'a leader without the others' : 'a follower without the others';
	$survivor->sql('CREATE TABLE IF NOT EXISTS own (n int)');
	$cluster->wait_applied;
	$_->stop('immediate') foreach @gone;
	foreach my $sql ($one, 'COPY t TO STDOUT', "BEGIN ISOLATION LEVEL REPEATABLE READ; $one", "PREPARE q AS $one; EXECUTE q")
	{
		my $result = $survivor->query($sql, timeout => 20);
		is($result->{sqlstate}, '25006', "$name: $sql") or diag($result->{stderr});
		cmp_ok($result->{seconds}, '<', 4, sprintf('it took %.2f s', $result->{seconds}));
		like($result->{stderr}, qr/DETAIL:.*\b[123] (?:of|voters).*HINT:.*SET quorum\.read_consistency = 'local'/s, "$name: says why, and what is left");
	}
	is($survivor->sql("SET quorum.read_consistency = 'local'; $one", timeout => 10), $written, "$name: a local read works");
	is($survivor->sql('SELECT count(*) FROM own', timeout => 10), '0', "$name: other tables are read");
	is($survivor->sql('BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM own; COMMIT', timeout => 10), '0', "$name: under each isolation level");
	is($survivor->sql('SELECT count(*) FROM quorum.status', timeout => 10), '1', "$name: quorum.status answers");
	$_->start foreach @gone;
	$leader = $cluster->wait_for_leader;
	is($survivor->sql($one), $written, "$name: reads again when they are back");
}

# ---- reads_share_rounds
$leader->sql($one);    # its counters count from its start
my ($reads, $rounds) = split(/\|/, $leader->sql('SELECT linearizable_reads, read_rounds FROM quorum.stats'));
cmp_ok($reads, '>', 0, 'reads are counted');
cmp_ok($rounds, '>', 0, 'and so are the rounds');

done_testing();
