# Rows that are written from one node only: PostgreSQL's own locks keep its transactions apart, so none of them ever gets a 40001, whatever the
# moment at which they meet.  Each case is a moment that was found by a load that waited for it long enough.
#
# CASES=regex runs the cases with such names only.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use PowerLoss;
use QuorumCluster;
use WaitingSession;
use Test::More;

my $chosen_cases = defined $ENV{CASES} ? qr/$ENV{CASES}/ : undef;
my $cluster = QuorumCluster->new(nodes => 1);
my $node = $cluster->wait_for_leader;

$node->sql(q{
	CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL);
	CREATE TABLE other (id int PRIMARY KEY);
	CREATE SEQUENCE asked;
	SELECT quorum.replicate('t');
	SELECT quorum.replicate('other')});

sub is_chosen { my ($name) = @_; return !$chosen_cases || $name =~ $chosen_cases; }

sub reset_tables
{
	$node->sql('DELETE FROM t; DELETE FROM other; INSERT INTO t VALUES (1, 0), (2, 0)');
	return;
}

sub rows
{
	return $node->sql(q{SELECT string_agg(id || '=' || v, ' ' ORDER BY id) FROM t});
}

sub wait_for_lock
{
	my ($session) = @_;
	QuorumCluster::wait_until('it to wait for a lock',
		sub { $node->sql('SELECT wait_event_type FROM pg_stat_activity WHERE pid = ' . $session->backend_pid) eq 'Lock' });
	return;
}

sub commits
{
	my ($name, @sessions) = @_;
	is($_->outcome, '00000', $name) or diag($_->error) foreach @sessions;
	return;
}

# ---- a commit that is visible, but has not passed its turn on ----------------------------------------------------------------------------------

# The follower's statement began before the first one committed, and waits for an advisory lock before it comes to the row.
sub follows_closely
{
	my ($name, $first_sql, $follower_sql, $expected_rows) = @_;
	return unless is_chosen($name);
	my $module = PowerLoss::build('slow_commit', '-shared', '-fPIC', '-I' . $node->config_data('--includedir-server'));
	my $file = "$PostgreSQL::Test::Utils::tmp_check/commits_stand_still";
	my ($keeper, $first, $follower) = map { WaitingSession->new($node) } 1 .. 3;
	reset_tables();
	$first->run("LOAD '$module'; SET slow_commit.file = '$file'");
	$keeper->run('SELECT pg_advisory_lock(1)');
	$follower->run('BEGIN; INSERT INTO other VALUES (1)');
	$follower->send($follower_sql);
	wait_for_lock($follower);
	my $before = $node->sql(q{SELECT xmin FROM quorum.position});
	PostgreSQL::Test::Utils::append_to_file($file, '');
	$first->send($first_sql);
	QuorumCluster::wait_until('the commit to be visible', sub { $node->sql(q{SELECT xmin FROM quorum.position}) ne $before });
	ok(!$first->is_done, "$name: the first one is about to end");
	$keeper->run('SELECT pg_advisory_unlock(1)');
	is($follower->outcome, '00000', "$name: the one that follows has its lock") or diag($follower->error);
	$follower->send('COMMIT');
	unlink($file);
	commits("$name: it commits, and the one before it", $follower, $first);
	is(rows(), $expected_rows, "$name: both have taken effect");
	$_->finish foreach $keeper, $first, $follower;
	return;
}

my $lock = '(SELECT pg_advisory_lock(1)) AS lock';
follows_closely('an update after an update', 'UPDATE t SET v = 1 WHERE id = 1', "UPDATE t SET v = v + 10 WHERE id = (SELECT 1 FROM $lock)", '1=11 2=0');
follows_closely('a deletion after an update', 'UPDATE t SET v = 1 WHERE id = 1', "DELETE FROM t WHERE id = (SELECT 1 FROM $lock)", '2=0');
follows_closely('an insertion after a deletion', 'DELETE FROM t WHERE id = 1', "INSERT INTO t SELECT 1, 5 FROM $lock", '1=5 2=0');
follows_closely('a locked row after an update', 'UPDATE t SET v = 1 WHERE id = 1',
	"SELECT v FROM t WHERE id = (SELECT 1 FROM $lock) FOR UPDATE", '1=1 2=0');

# ---- a row that appears while the one that found none waits for the quorum ---------------------------------------------------------------------

# UPDATE and DELETE by primary key that find no row pass the read barrier afterwards.
sub appears
{
	my ($name, $sql, $before_sql, $meanwhile_sql, $expected_rows) = @_;
	return unless is_chosen($name);
	my $session = WaitingSession->new($node);
	my $worker = $node->worker_pid('consensus');
	reset_tables();
	$node->sql($before_sql);
	$cluster->wait_applied;
	$session->run('SET enable_seqscan = off; SET enable_bitmapscan = off; BEGIN');
	kill('STOP', $worker);
	$session->send("$sql;\n\\echo rows :ROW_COUNT");
	QuorumCluster::wait_until('it to wait for the quorum',
		sub { $node->sql('SELECT wait_event_type FROM pg_stat_activity WHERE pid = ' . $session->backend_pid) eq 'Extension' });
	kill('STOP', $session->backend_pid);
	kill('CONT', $worker);
	$node->sql($meanwhile_sql);
	kill('CONT', $session->backend_pid);
	is($session->outcome, '00000', "$name: changes it") or diag($session->error);
	like($session->output, qr/^rows 1\b/m, "$name: and says so");
	$session->send('COMMIT');
	commits("$name: commits", $session);
	is(rows(), $expected_rows, "$name: it has taken effect");
	$session->finish;
	return;
}

appears('an update that found no row', 'UPDATE t SET v = v + 10 WHERE id = 3', 'SELECT 1', 'INSERT INTO t VALUES (3, 5)', '1=0 2=0 3=15');
appears('a deletion that found no row', 'DELETE FROM t WHERE id = 3', 'SELECT 1', 'INSERT INTO t VALUES (3, 5)', '1=0 2=0');
appears('an update whose condition was false', 'UPDATE t SET v = v + 10 WHERE id = 1 AND v = 5', 'SELECT 1', 'UPDATE t SET v = 5 WHERE id = 1', '1=15 2=0');

if (is_chosen('a condition that others notice is asked once'))
{
	reset_tables();
	$node->sql(q{SET enable_seqscan = off; SET enable_bitmapscan = off; UPDATE t SET v = 1 WHERE id = 1 AND nextval('asked'::text::regclass) < 0});
	is($node->sql('SELECT last_value FROM asked'), '1', 'a condition that others notice is asked once');
}

# ---- a row that was waited for, and is gone ------------------------------------------------------------------------------------------------------

# Whoever waited for it holds no lock of it, so somebody else may insert it anew.
foreach my $statement ('DELETE FROM t WHERE id = 1', 'UPDATE t SET v = 7 WHERE id = 1', 'UPDATE t SET v = 7 WHERE id + 0 = 1')
{
	my $name = "$statement, of a row that is deleted and inserted anew";
	next unless is_chosen($name);
	my ($first, $session) = map { WaitingSession->new($node) } 1 .. 2;
	reset_tables();
	$first->run('BEGIN; DELETE FROM t WHERE id = 1');
	$session->run('BEGIN; INSERT INTO other VALUES (1)');
	$session->send($statement);
	wait_for_lock($session);
	$first->run('COMMIT');
	is($session->outcome, '00000', "$name: finds none") or diag($session->error);
	$node->sql('INSERT INTO t VALUES (1, 5)');
	$session->send('COMMIT');
	commits("$name: commits", $session);
	is(rows(), '1=5 2=0', "$name: without it");
	is($node->sql('SELECT count(*) FROM other'), '1', "$name: and has written what else it wrote");
	$_->finish foreach $first, $session;
}

$cluster->assert_same_digest('t');
done_testing();
