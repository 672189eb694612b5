# Two transactions on two nodes that do not see each other: which of them may both commit, and what the one that may not is told.  Each case is
# run twice: with the loser's node kept from applying the winner's entry, so that the log's certification alone decides; and with
# the entry applied while the loser is idle in its transaction, so that it either stands in the way and is aborted, or does not.
#
# CASES=regex runs the cases with such names only, MODE=certified or MODE=applied only this half of each.  STOP_AT_FAILURE=1 ends the test at once when a
# transaction did not get what it should: nodes that differ by then may wait for each other for long.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use WaitingSession;
use Test::More;

my $chosen_cases = defined $ENV{CASES} ? qr/$ENV{CASES}/ : undef;
my @modes = $ENV{MODE} ? ($ENV{MODE}) : ('certified', 'applied');

my $cluster = QuorumCluster->new(nodes => 3);
my ($first, $second) = $cluster->followers;    # neither leads: both forward what they propose

$first->sql(q{
	CREATE TABLE t (id numeric PRIMARY KEY, v int, u int UNIQUE, n int, active bool DEFAULT false, bits bit(3) UNIQUE);	-- a type that has no hash function
	CREATE UNIQUE INDEX ON t (n) WHERE active;
	CREATE TABLE parent (id int PRIMARY KEY, code int UNIQUE, v int);
	CREATE TABLE child (id int PRIMARY KEY, parent_id int REFERENCES parent ON DELETE CASCADE);
	CREATE TABLE words (id int PRIMARY KEY, w text, a int, b int, UNIQUE NULLS NOT DISTINCT (a, b));
	CREATE UNIQUE INDEX ON words (lower(w));
	CREATE TABLE flags (code bit(3) PRIMARY KEY, v int);
	CREATE TABLE flag_users (id int PRIMARY KEY, code bit(3) REFERENCES flags)});
$first->sql("SELECT quorum.replicate('$_')") foreach qw(t parent child words flags flag_users);
$cluster->wait_applied;
foreach my $node ($cluster->nodes)
{
	# So that its labels have other OIDs on each node.
	$node->sql(q{CREATE TYPE noise AS ENUM ('x')}) if $node != $first;
	$node->sql(q{CREATE TYPE mood AS ENUM ('sad', 'glad')});
}
$first->sql(q{CREATE TABLE moods (m mood PRIMARY KEY, v int); SELECT quorum.replicate('moods')});
$cluster->wait_applied;

sub reset_tables
{
	$first->sql(q{
		DELETE FROM t; DELETE FROM child; DELETE FROM parent; DELETE FROM words; DELETE FROM moods; DELETE FROM flag_users; DELETE FROM flags;
		INSERT INTO t SELECT i, 0, i, i FROM generate_series(1, 9) AS i;
		INSERT INTO parent SELECT i, i, 0 FROM generate_series(1, 9) AS i;
		INSERT INTO child VALUES (1, 1);
		INSERT INTO words VALUES (1, 'one', 1, 1);
		INSERT INTO flags VALUES (B'001', 0), (B'010', 0)});
	$cluster->wait_applied;
	return;
}

sub race
{
	my ($winner_sql, $loser_sql, $mode, $begin) = @_;
	my $winner = WaitingSession->new($first);
	my $loser = WaitingSession->new($second);
	my $commit_both = sub {
		$winner->run('COMMIT');
		my $won_at = $first->sql('SELECT chosen_index FROM quorum.status');
		$cluster->wait_applied($second) if $mode eq 'applied';
		$loser->send('COMMIT');
		return if $mode eq 'applied';
		QuorumCluster::wait_until('the verdict over both', sub {
			return $loser->is_done || $second->status('chosen_index') > $won_at;
		});
		return;
	};

	reset_tables();
	$_->run($begin) foreach $winner, $loser;
	$loser->run($loser_sql);
	$winner->run($winner_sql);
	$mode eq 'applied' ? $commit_both->() : $second->without_apply($commit_both);
	my $sqlstate = $loser->outcome;
	my $error = $loser->error;
	$_->finish foreach $winner, $loser;
	return ($sqlstate, $error);
}

sub stop_here
{
	my ($error) = @_;
	diag($error);
	return unless $ENV{STOP_AT_FAILURE};
	done_testing();
	exit(1);
}

# check($name, winner, loser, expected): expected is 'both', or a pattern of the DETAIL that the loser gets beside 40001.  applied => 'both': if the
# winner's entry can be applied beside the loser, the loser comes after it and may commit.
sub check
{
	my ($name, $winner_sql, $loser_sql, $expected, %options) = @_;
	return if $chosen_cases && $name !~ $chosen_cases;
	foreach my $mode (@modes)
	{
		my ($sqlstate, $error) = race($winner_sql, $loser_sql, $mode, $options{begin} || 'BEGIN');
		is($sqlstate, ($options{$mode} || $expected) eq 'both' ? '00000' : '40001', "$name ($mode)") or stop_here($error);
		like($error, qr/$expected/, "$name: what the loser is told") if $expected ne 'both' && $mode eq 'certified';
		like($error, qr/by node "\Q@{[ $first->name ]}\E" at log index \d+/, "$name: and who won")
		  if $expected ne 'both' && $mode eq 'certified';
		$cluster->assert_same_digest($_, "$name ($mode): $_ is the same everywhere") foreach @{ $options{tables} || ['t'] };
	}
	return;
}

my $family = { tables => [ 'parent', 'child' ] };

# ---- rows
check('the same row', 'UPDATE t SET v = 1 WHERE id = 3', 'UPDATE t SET v = 2 WHERE id = 3', 'Key \(id\)=\(3\) of table "t"');
check('different rows', 'UPDATE t SET v = 1 WHERE id = 3', 'UPDATE t SET v = 2 WHERE id = 4', 'both');
check('deleted and updated', 'DELETE FROM t WHERE id = 3', 'UPDATE t SET v = 2 WHERE id = 3', '\(id\)=\(3\)');
check('updated and deleted', 'UPDATE t SET v = 1 WHERE id = 3', 'DELETE FROM t WHERE id = 3', '\(id\)=\(3\)');
check('deleted twice', 'DELETE FROM t WHERE id = 3', 'DELETE FROM t WHERE id = 3', '\((?:id|u)\)=\(3\)');
check('a changed key and an update', 'UPDATE t SET id = 33 WHERE id = 3', 'UPDATE t SET v = 2 WHERE id = 3', '\(id\)=\(3\)');
check('two keys changed to the same', 'UPDATE t SET id = 33 WHERE id = 3', 'UPDATE t SET id = 33 WHERE id = 4', '\(id\)=\(33\)');
check('an update that a savepoint took back', 'UPDATE t SET v = 1 WHERE id = 3',
	'SAVEPOINT s; UPDATE t SET v = 2 WHERE id = 3; ROLLBACK TO s; UPDATE t SET v = 2 WHERE id = 4', 'both');
check('an update in a savepoint that was released', 'UPDATE t SET v = 1 WHERE id = 3',
	'SAVEPOINT s; UPDATE t SET v = 2 WHERE id = 3; RELEASE s', '\(id\)=\(3\)');

# ---- unique keys
check('inserted twice', 'INSERT INTO t VALUES (20, 1, 20)', 'INSERT INTO t VALUES (20, 2, 21)', '\(id\)=\(20\)');
check('values that are equal though they differ', 'INSERT INTO t VALUES (20.0, 1, 20)', 'INSERT INTO t VALUES (20.00, 2, 21)', '\(id\)=\(20.00\)');
check('a unique key inserted twice', 'INSERT INTO t VALUES (20, 1, 77)', 'INSERT INTO t VALUES (21, 2, 77)', '\(u\)=\(77\)');
check('nulls in a unique key', 'INSERT INTO t VALUES (20, 1, NULL)', 'INSERT INTO t VALUES (21, 2, NULL)', 'both');
check('a unique key taken by an update', 'UPDATE t SET u = 77 WHERE id = 1', 'INSERT INTO t VALUES (21, 2, 77)', '\(u\)=\(77\)');
check('within a partial index', 'UPDATE t SET active = true, n = 50 WHERE id = 1', 'INSERT INTO t VALUES (21, 2, 21, 50, true)', '\(n\)=\(50\)');
check('outside of a partial index', 'INSERT INTO t VALUES (20, 1, 20, 50, false)', 'INSERT INTO t VALUES (21, 2, 21, 50, true)', 'both');
check('an index on an expression', q{INSERT INTO words VALUES (2, 'Two', 2, 2)}, q{INSERT INTO words VALUES (3, 'tWO', 3, 3)},
	'\(lower\(w\)\)=\(two\)', tables => ['words']);
check('nulls that are not distinct', q{INSERT INTO words VALUES (2, 'a', 2, NULL)}, q{INSERT INTO words VALUES (3, 'b', 2, NULL)},
	'\(a, b\)=\(2, null\)', tables => ['words']);
check('a part of a key in common', q{INSERT INTO words VALUES (2, 'a', 2, 5)}, q{INSERT INTO words VALUES (3, 'b', 2, 6)}, 'both', tables => ['words']);
check('an enum', q{INSERT INTO moods VALUES ('glad', 1)}, q{INSERT INTO moods VALUES ('glad', 2)}, '\(m\)=\(glad\)', tables => ['moods']);
check('two labels of an enum', q{INSERT INTO moods VALUES ('glad', 1)}, q{INSERT INTO moods VALUES ('sad', 2)}, 'both', tables => ['moods']);
check('insertion or update, twice',
	map({ "INSERT INTO t VALUES (20, $_, 20) ON CONFLICT (id) DO UPDATE SET v = t.v + 1" } 1, 2), '\((?:id|u)\)=\(20\)');

check('a unique key without a hash, inserted and taken by an update', q{INSERT INTO t (id, bits) VALUES (20, B'111')},
	q{UPDATE t SET bits = B'111' WHERE id = 3}, '\(bits\)=\(111\)');
check('a key without a hash, changed twice to the same', q{UPDATE flags SET code = B'111' WHERE code = B'001'},
	q{UPDATE flags SET code = B'111' WHERE code = B'010'}, '\(code\)=', tables => ['flags']);

# ---- foreign keys
check('parent deleted, child inserted', 'DELETE FROM parent WHERE id = 5', 'INSERT INTO child VALUES (2, 5)', '\(id\)=\(5\) of table "parent"', %$family);
check('child inserted, parent deleted', 'INSERT INTO child VALUES (2, 5)', 'DELETE FROM parent WHERE id = 5', '\(id\)=\(5\) of table "parent"', %$family);
check('child inserted, parent updated', 'INSERT INTO child VALUES (2, 5)', 'UPDATE parent SET v = 1 WHERE id = 5', 'both', %$family);
check('parent updated, child inserted', 'UPDATE parent SET v = 1 WHERE id = 5', 'INSERT INTO child VALUES (2, 5)', 'both', %$family);
check('child inserted, key of parent updated', 'INSERT INTO child VALUES (2, 5)', 'UPDATE parent SET code = 55 WHERE id = 5', '\(id\)=\(5\)', %$family);
check('two children inserted', 'INSERT INTO child VALUES (2, 5)', 'INSERT INTO child VALUES (3, 5)', 'both', %$family);
check('parent deleted with its children, child updated', 'DELETE FROM parent WHERE id = 1', 'UPDATE child SET parent_id = 2 WHERE id = 1',
	'\(id\)=\(1\) of table "child"', %$family);

check('key of parent without a hash updated, child inserted', q{UPDATE flags SET code = B'110' WHERE code = B'001'},
	q{INSERT INTO flag_users VALUES (1, B'001')}, '\(code\)=\(001\)', tables => [ 'flags', 'flag_users' ]);

# ---- row locks
check('locked, updated elsewhere', 'UPDATE t SET v = 1 WHERE id = 3', 'SELECT 1 FROM t WHERE id = 3 FOR UPDATE; UPDATE t SET v = 2 WHERE id = 4', '\(id\)=\(3\)');
check('updated, locked elsewhere', 'SELECT 1 FROM t WHERE id = 3 FOR UPDATE; UPDATE t SET v = 2 WHERE id = 4', 'UPDATE t SET v = 1 WHERE id = 3', '\(id\)=\(3\)');
check('two shared locks', 'SELECT 1 FROM t WHERE id = 3 FOR SHARE; UPDATE t SET v = 2 WHERE id = 4',
	'SELECT 1 FROM t WHERE id = 3 FOR SHARE; UPDATE t SET v = 2 WHERE id = 5', 'both');
check('a shared lock and an update', 'SELECT 1 FROM t WHERE id = 3 FOR SHARE; UPDATE t SET v = 2 WHERE id = 4', 'UPDATE t SET v = 1 WHERE id = 3', '\(id\)=\(3\)');
check('a lock of the key and an update', 'SELECT 1 FROM t WHERE id = 3 FOR KEY SHARE; UPDATE t SET v = 2 WHERE id = 4', 'UPDATE t SET v = 1 WHERE id = 3', 'both');
check('an update and a lock of the key', 'UPDATE t SET v = 1 WHERE id = 3', 'SELECT 1 FROM t WHERE id = 3 FOR KEY SHARE; UPDATE t SET v = 2 WHERE id = 4', 'both');
check('a deletion and a lock of the key', 'DELETE FROM t WHERE id = 3', 'SELECT 1 FROM t WHERE id = 3 FOR KEY SHARE; UPDATE t SET v = 2 WHERE id = 4', '\(id\)=\(3\)');
check('a lock in a savepoint that was rolled back', 'UPDATE t SET v = 1 WHERE id = 3',
	'SAVEPOINT s; SELECT 1 FROM t WHERE id = 3 FOR UPDATE; ROLLBACK TO s; UPDATE t SET v = 2 WHERE id = 4', 'both');
check('a lock through a cursor', 'UPDATE t SET v = 1 WHERE id = 3',
	'DECLARE c CURSOR FOR SELECT 1 FROM t WHERE id = 3 FOR UPDATE; FETCH c; UPDATE t SET v = 2 WHERE id = 4', '\(id\)=\(3\)');
check('a key changed to an equal one that looks different, and a lock of the key', 'UPDATE t SET id = 3.00 WHERE id = 3',
	'SELECT 1 FROM t WHERE id = 3 FOR KEY SHARE; UPDATE t SET v = 2 WHERE id = 4', '\(id\)=\(3\)');
check('a row locked by ON CONFLICT and not updated', 'UPDATE t SET v = 1 WHERE id = 3',
	'INSERT INTO t VALUES (3, 1) ON CONFLICT (id) DO UPDATE SET v = 7 WHERE t.v < 0; UPDATE t SET v = 2 WHERE id = 4', '\(id\)=\(3\)');
$second->sql(q{
	CREATE FUNCTION veto() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
	CREATE TRIGGER veto BEFORE UPDATE OR DELETE ON child FOR EACH ROW EXECUTE FUNCTION veto()});
foreach my $vetoed ('UPDATE child SET parent_id = 3 WHERE id = 1', 'DELETE FROM child WHERE id = 1')
{
	check("a row locked, and its change vetoed by a trigger: $vetoed", 'UPDATE child SET parent_id = 2 WHERE id = 1',
		"$vetoed; UPDATE t SET v = 2 WHERE id = 4", '\(id\)=\(1\) of table "child"', tables => [ 't', 'child' ]);
}
$second->sql('DROP TRIGGER veto ON child');

# ---- tables
check('TRUNCATE and an insertion', 'TRUNCATE t', 'INSERT INTO t VALUES (20, 1, 20)', 'Table "t" was changed or locked as a whole');
check('an insertion and TRUNCATE', 'INSERT INTO t VALUES (20, 1, 20)', 'TRUNCATE t', 'Table "t" was changed or locked as a whole');
check('TRUNCATE of one table, insertion into another', 'TRUNCATE t', q{INSERT INTO words VALUES (2, 'two', 2, 2)}, 'both', tables => [ 't', 'words' ]);
check('TRUNCATE and a reader of the table that writes another', 'TRUNCATE t', q{SELECT count(*) FROM t; INSERT INTO words VALUES (2, 'two', 2, 2)},
	'Table "t" was changed or locked as a whole', tables => [ 't', 'words' ]);
check('TRUNCATE and one who only parsed a statement of the table', 'TRUNCATE t', "SELECT count(*) FROM t \\gdesc\nINSERT INTO words VALUES (2, 'two', 2, 2)",
	'Table "t" was changed or locked as a whole', tables => [ 't', 'words' ]);
check('TRUNCATE of parent and child', 'TRUNCATE parent, child', 'INSERT INTO child VALUES (2, 5)', 'as a whole', %$family);
check('LOCK TABLE and an update', 'LOCK TABLE t IN EXCLUSIVE MODE; UPDATE t SET v = 1 WHERE id = 3', 'UPDATE t SET v = 2 WHERE id = 4', 'as a whole',
	applied => 'both');
check('LOCK TABLE against writers, and a writer', 'UPDATE t SET v = 1 WHERE id = 3',
	q{LOCK TABLE t IN SHARE MODE; INSERT INTO words VALUES (2, 'two', 2, 2)}, 'as a whole', tables => [ 't', 'words' ]);
check('LOCK TABLE in a savepoint that was rolled back', 'UPDATE t SET v = 1 WHERE id = 3',
	q{SAVEPOINT s; LOCK TABLE t IN SHARE MODE; ROLLBACK TO s; INSERT INTO words VALUES (2, 'two', 2, 2)}, 'both', tables => [ 't', 'words' ]);

check('LOCK TABLE that lets others write, by a writer, and a serializable reader',
	'LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE; SELECT sum(v) FROM t; UPDATE t SET v = 1 WHERE id = 3', 'SELECT sum(v) FROM t; UPDATE t SET v = 1 WHERE id = 4',
	'Table "t" was changed after it was read', begin => 'BEGIN ISOLATION LEVEL SERIALIZABLE');

# ---- isolation levels
# A table this small would be read whole, which is certified as such.
my $serializable = 'SET enable_seqscan = off; SET enable_bitmapscan = off; BEGIN ISOLATION LEVEL SERIALIZABLE';
my @skew = ('SELECT sum(v) FROM t; UPDATE t SET v = 1 WHERE id = 3', 'SELECT sum(v) FROM t; UPDATE t SET v = 1 WHERE id = 4');
check('write skew, repeatable read', @skew, 'both', begin => 'BEGIN ISOLATION LEVEL REPEATABLE READ');
check('write skew, serializable', @skew, 'Table "t" was changed after it was read', begin => 'BEGIN ISOLATION LEVEL SERIALIZABLE');
check('write skew of points, serializable', 'SELECT v FROM t WHERE id = 4; UPDATE t SET v = 1 WHERE id = 3',
	'SELECT v FROM t WHERE id = 3; UPDATE t SET v = 1 WHERE id = 4', 'table "t" was changed after it was read', begin => $serializable);
check('points that differ, serializable', 'SELECT v FROM t WHERE id = 1; UPDATE t SET v = 1 WHERE id = 3',
	'SELECT v FROM t WHERE id = 2; UPDATE t SET v = 1 WHERE id = 4', 'both', begin => $serializable);
check('a point that was empty, serializable', 'INSERT INTO t VALUES (20, 1, 20)',
	'SELECT v FROM t WHERE id = 20; UPDATE t SET v = 1 WHERE id = 4', 'table "t" was changed after it was read', begin => $serializable);
check('a point that one of many rows changed, serializable', 'INSERT INTO t SELECT i, 1, i FROM generate_series(100, 33000) AS i',
	q{SELECT v FROM t WHERE id = 200; INSERT INTO words VALUES (2, 'two', 2, 2)}, 'Table "t" was changed or locked as a whole',
	begin => $serializable, tables => [ 't', 'words' ]);
check('COPY of what is written elsewhere, serializable', 'UPDATE t SET v = 1 WHERE id = 3',
	q{COPY t TO '/dev/null'; INSERT INTO words VALUES (2, 'two', 2, 2)}, 'Table "t" was changed after it was read',
	begin => $serializable, tables => [ 't', 'words' ]);

# ---- what is kept of it
cmp_ok($second->sql('SELECT count(*) FROM quorum.conflicts WHERE winner_node = ' . "'" . $first->name . "'"), '>', 20, 'the last conflicts can be looked at')
  unless $chosen_cases;
is($second->sql(q{SELECT count(*) FROM quorum.log l JOIN quorum.conflicts c ON l.log_index = c.log_index WHERE l.verdict <> 'rejected'}), '0',
	'and the log says the same');

done_testing();
