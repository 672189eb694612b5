# A node that comes with rows keeps those that are the same in the cluster, and only what differs is copied or deleted: one that has forgotten what it
# had promised and joins as new, by the very statements that it is told; one that was away for too long.  Killed in the middle it ends whole; a
# donor of an older build gives all rows; and nobody's rows are deleted unasked.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use IPC::Run;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use Test::More;
use Time::HiRes qw(usleep);

my $cluster = QuorumCluster->new(nodes => 3, conf => <<'CONF');
quorum.log_keep_size = '16MB'
quorum.log_retention_size = '32MB'
max_wal_size = '4GB'
maintenance_work_mem = '1MB'
CONF
my $seed = $ENV{SEED} || time;
srand($seed);
note("SEED=$seed");
my @tables = qw(main parent child exact generated several wide numbered);

$_->sql(q{CREATE TYPE colour AS ENUM ('red', 'green', 'blue')}) foreach $cluster->nodes;
$cluster->wait_for_leader->sql(<<'SQL');
CREATE TABLE main (id int PRIMARY KEY, v text);
CREATE TABLE parent (id int PRIMARY KEY, name text UNIQUE);
CREATE TABLE child (id int PRIMARY KEY, parent_id int REFERENCES parent ON DELETE CASCADE);
CREATE TABLE exact (id int PRIMARY KEY, n numeric, j json, c colour);
CREATE TABLE generated (id int PRIMARY KEY, a numeric, b numeric GENERATED ALWAYS AS (a * 2) STORED, c int);
ALTER TABLE generated DROP COLUMN c;
CREATE TABLE several (id int PRIMARY KEY, a int UNIQUE, b text);
CREATE UNIQUE INDEX several_lower ON several (lower(b));
CREATE TABLE wide (id int PRIMARY KEY, v text);
CREATE TABLE numbered (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text);
CREATE TABLE gone (id int PRIMARY KEY);
SQL
my $leader = $cluster->wait_for_leader;
$leader->sql("SELECT quorum.replicate('$_')", timeout => 60) foreach @tables, 'gone';
$leader->sql(<<'SQL', timeout => 120);
INSERT INTO main SELECT i, 'v' || i FROM generate_series(1, 20000) AS i;
INSERT INTO parent SELECT i, 'p' || i FROM generate_series(1, 100) AS i;
INSERT INTO child SELECT i, i % 100 + 1 FROM generate_series(1, 1000) AS i;
INSERT INTO exact SELECT i, 1.0, '{"a": 1}', 'red' FROM generate_series(1, 100) AS i;
INSERT INTO generated (id, a) SELECT i, i / 3.0 FROM generate_series(1, 100) AS i;
INSERT INTO several SELECT i, -i, 'B' || i FROM generate_series(1, 100) AS i;
INSERT INTO wide SELECT i, (SELECT string_agg(md5(i || '.' || j), '') FROM generate_series(1, 400) AS j) FROM generate_series(1, 50) AS i;
INSERT INTO numbered (v) SELECT 'x' || i FROM generate_series(1, 100) AS i;
INSERT INTO gone VALUES (1);
SQL
$cluster->wait_applied;

# ---- tools

sub join_call
{
	my ($node, $via, $more) = @_;
	return sprintf(q{SELECT quorum.join_cluster('%s', '%s', via => '%s'%s)}, $node->name, $node->peer_conninfo,
		$via->peer_conninfo(user => 'quorum_operator'), $more // '');
}

# Where each row is stored, and which transaction wrote it: a row that was written anew has another place.
sub places { my ($node, $table, $where) = @_; return $node->sql("SELECT id, ctid, xmin FROM $table WHERE $where ORDER BY id"); }

sub log_since
{
	my ($node, $position) = @_;
	return substr(PostgreSQL::Test::Utils::slurp_file($node->logfile), $position);
}

sub counts_of
{
	my ($log, $table) = @_;
	my @all = $log =~ /LOG:  table public\.$table: (\d+ rows kept, \d+ copied, \d+ deleted)/g;
	return $all[-1] // 'not compared';
}

sub is_same_everywhere
{
	my ($name) = @_;
	$cluster->assert_same_digest($_, "$name: $_") foreach @tables;
	return;
}

sub bytes_are_the_same
{
	my ($node, $name) = @_;
	my $other = $cluster->wait_for_leader;
	is($node->sql('SELECT sum(hashtext(n::text || j::text)) FROM exact'), $other->sql('SELECT sum(hashtext(n::text || j::text)) FROM exact'),
		"$name: what is equal and has other bytes has the cluster's");
	my $verify = $other->sql(q{SELECT string_agg(DISTINCT outcome || coalesce(' ' || matches, ''), ',') FROM quorum.verify('exact')}, timeout => 60);
	is($verify, 'checked true', "$name: checksums are the same") or diag($verify);
	return;
}

# The indexes lead to all rows, and to no others.
sub indexes_are_whole
{
	my ($node, $name) = @_;
	$node->sql('CREATE EXTENSION IF NOT EXISTS amcheck');
	my $result = $node->query(q{SET quorum.read_consistency = 'local';
		SELECT bt_index_check(i.indexrelid, true) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
		WHERE a.amname = 'btree' AND (i.indrelid IN (SELECT relation FROM quorum.replicated_table)
			OR i.indrelid IN (SELECT reltoastrelid FROM pg_class WHERE oid IN (SELECT relation FROM quorum.replicated_table)))}, timeout => 60);
	is($result->{stderr}, '', "$name: its indexes are whole");
	is($node->sql(q{SET enable_seqscan = off; SELECT count(*) FROM main WHERE id > 0}), $node->sql(q{SET enable_indexscan = off;
		SET enable_indexonlyscan = off; SET enable_bitmapscan = off; SELECT count(*) FROM main WHERE id > 0}), "$name: and lead to all rows");
	return;
}

# ---- a_node_that_forgot_joins_as_new_with_its_rows -----------------------------------------------------------------------------------------------
my ($victim) = $cluster->followers;
my $name = $victim->name;
my $helper = (grep { $_ != $victim } $cluster->followers)[0];
$victim->stop('fast');
unlink(glob($victim->data_dir . '/pg_quorum/pgsql_tmp_journal/segment_*'), glob($victim->data_dir . '/pg_quorum/pgsql_tmp_journal/chosen_index*'));
my $log_position = -s $victim->logfile;
$victim->start;
$victim->{outside} = 1;
QuorumCluster::wait_until('the node to be refused', sub { ($victim->status(q{coalesce(last_error, '')}) // '') =~ /forgotten/ }, 60);
my ($told) = $victim->sql('SELECT last_error FROM quorum.status') =~ /To rejoin: (.*)/;
like($told, qr/SELECT quorum\.remove_node\('$name'\) on a member; then here SELECT quorum\.leave_cluster\(force => true\) and SELECT quorum\.join_cluster\('$name', \.\.\., keep_rows => true\)/,
	'a node that forgot says by which statements it joins as new');
like(log_since($victim, $log_position), qr/HINT:  .*SELECT quorum\.remove_node\('$name'\)/, 'the HINT in its log, too');

# What it misses, has too much, and has otherwise when it comes back.
$leader = $cluster->wait_for_leader;
$leader->sql(sprintf(q{SELECT quorum.remove_node('%s')}, $name), timeout => 90);
$leader->sql(<<'SQL', timeout => 60);
UPDATE main SET v = 'changed' WHERE id % 1000 = 0;
DELETE FROM main WHERE id % 1000 = 1;
INSERT INTO main SELECT i, 'new' FROM generate_series(20001, 20010) AS i;
UPDATE exact SET n = 1.00, j = '{"a":  1}' WHERE id <= 10;
UPDATE several SET a = -1000 WHERE id = 1;
UPDATE several SET a = -1 WHERE id = 2;
UPDATE several SET b = 'other' WHERE id = 3;
UPDATE several SET b = 'B3' WHERE id = 4;
UPDATE generated SET a = 7 WHERE id = 5;
UPDATE wide SET v = repeat('w', 20000) WHERE id <= 5;
INSERT INTO numbered (v) SELECT 'later' FROM generate_series(1, 5);
SELECT quorum.unreplicate('gone');
SQL
is($victim->query('SELECT quorum.leave_cluster(force => true)', timeout => 60)->{sqlstate}, '', 'it leaves');
$victim->sql(<<'SQL');
INSERT INTO main VALUES (-1, 'only here'), (-2, 'only here');
UPDATE main SET v = 'otherwise' WHERE id = 500;
DELETE FROM main WHERE id = 501;
DELETE FROM child WHERE id = 7;
CREATE TABLE of_this_node_alone (id int REFERENCES parent);
INSERT INTO of_this_node_alone VALUES (1);
SQL

# ---- rows_are_not_deleted_unasked
my $before = $victim->sql('SELECT count(*) FROM main');
my $unasked = $victim->query(join_call($victim, $helper), timeout => 60);
is($unasked->{sqlstate}, '55000', 'a table with rows is refused unless the caller says that its rows may go');
like($unasked->{stderr}, qr/HINT:  quorum\.join_cluster\(\.\.\., keep_rows => true\) keeps those rows .*, and DELETES all others/, 'the HINT names what does it, and its price');
$victim->sql('CREATE TABLE aside AS TABLE several; ALTER TABLE several ADD COLUMN more int');
my $other_shape = $victim->query(join_call($victim, $helper, ', keep_rows => true'), timeout => 60);
is($other_shape->{sqlstate}, '55000', 'a table of another shape is refused even so');
like($other_shape->{stderr}, qr/table "public\.several".*It exists there with another shape/s, 'with the reason');
$victim->sql('ALTER TABLE several DROP COLUMN more, ADD CONSTRAINT here_only CHECK (random() < 2)');
my $other_constraint = $victim->query(join_call($victim, $helper, ', keep_rows => true'), timeout => 60);
is($other_constraint->{sqlstate}, '55000', 'and so is one with a constraint more');
like($other_constraint->{stderr}, qr/table "public\.several".*other constraints.*random/s, 'with the reason');
$victim->sql('ALTER TABLE several DROP CONSTRAINT here_only');
is($victim->sql('SELECT count(*) FROM main'), $before, 'these refusals have changed nothing');
is($leader->sql('SELECT count(*) FROM quorum.nodes'), '2', 'nor the members');

my $unchanged = 'id % 1000 NOT IN (0, 1) AND id BETWEEN 1 AND 20000 AND id NOT IN (500, 501)';
my %kept = (main => places($victim, 'main', $unchanged), wide => places($victim, 'wide', 'id > 5'), exact => places($victim, 'exact', 'id > 10'));
$log_position = -s $victim->logfile;
my $join = $victim->query(join_call($victim, $helper, ', keep_rows => true'), timeout => 120);
ok($join->{ok}, 'it joins with its rows') or BAIL_OUT($join->{stderr});
delete $victim->{outside};
like($join->{stderr}, qr/NOTICE:.* the tables of node "n\d" were taken over: \d+ rows kept, \d+ copied, \d+ deleted/, 'a NOTICE says how many were kept');
note($join->{stderr});
my $log = log_since($victim, $log_position);
is(counts_of($log, 'main'), '19958 rows kept, 32 copied, 43 deleted', 'the log says so of each table: what is the same is kept, what differs is replaced');
is(counts_of($log, 'child'), '999 rows kept, 1 copied, 0 deleted', 'a row that is missing is copied');
is(counts_of($log, 'exact'), '90 rows kept, 10 copied, 10 deleted', 'a row that is equal and has other bytes is replaced');
is(counts_of($log, 'several'), '96 rows kept, 4 copied, 4 deleted', 'unique keys that have changed places are no obstacle');
is(counts_of($log, 'generated'), '99 rows kept, 1 copied, 1 deleted', 'generated columns and dropped ones are no obstacle');
is(counts_of($log, 'wide'), '45 rows kept, 5 copied, 5 deleted', 'nor are large values');
is(counts_of($log, 'parent'), '100 rows kept, 0 copied, 0 deleted', 'a table that is the same stays as it is');
is($victim->sql('SELECT rows_kept, rows_copied, rows_deleted FROM quorum.snapshot_progress'),
	19958 + 999 + 90 + 96 + 99 + 45 + 100 + 100 . '|' . (32 + 1 + 10 + 4 + 1 + 5 + 5) . '|' . (43 + 10 + 4 + 1 + 5), 'quorum.snapshot_progress shows the sums');
is(places($victim, 'main', $unchanged), $kept{main}, 'each row that is kept is where it was, as it was written');
is(places($victim, 'wide', 'id > 5'), $kept{wide}, 'large ones, too');
is(places($victim, 'exact', 'id > 10'), $kept{exact}, 'and those of types whose values have many forms');
is_same_everywhere('after the join');
bytes_are_the_same($victim, 'after the join');
indexes_are_whole($victim, 'after the join');
is($victim->sql('SELECT count(*) FROM gone'), '1', 'a table that is not replicated any more is left alone');
is($victim->sql('SELECT count(*) FROM of_this_node_alone'), '1', 'and so is one of this node alone that refers to a replicated one');
ok($victim->query(q{INSERT INTO numbered (v) VALUES ('from the node'); UPDATE main SET v = 'from the node' WHERE id = 10; DELETE FROM child WHERE id = 8})->{ok},
	'it writes; its sequences go on behind the cluster\'s');
is($victim->query('INSERT INTO several VALUES (1000, -1, $$u$$)')->{sqlstate}, '23505', 'its unique indexes hold');
$cluster->wait_for_leader->sql(q{UPDATE main SET v = 'to the node' WHERE id = 11});
is_same_everywhere('after more writes');
my $votes = $cluster->wait_for_leader->sql("SELECT is_voter FROM quorum.nodes WHERE node_name = '$name'");
is($votes, 't', 'and it votes');
ok(!-e $victim->data_dir . '/pg_quorum/pgsql_tmp_journal/rows_to_keep', 'nothing is left that would have it copy once more');

# ---- killed_in_the_middle_it_ends_whole ------------------------------------------------------------------------------------------------------------
# Enough rows that a kill finds it at work; what it is to get back differs everywhere.
$cluster->wait_for_leader->sql('INSERT INTO main SELECT i, repeat(md5(i::text), 3) FROM generate_series(20011, 100000) AS i', timeout => 120);
$cluster->wait_applied;
my %seen;
sub phase { my ($node) = @_; return $node->query('SELECT phase FROM quorum.snapshot_progress', timeout => 5)->{rows} // ''; }

# It is removed, becomes an ordinary instance, and its rows are changed.
sub leave_and_change
{
	my ($changes) = @_;
	(grep { $_ != $victim } $cluster->awake_nodes)[0]->sql("SELECT quorum.remove_node('$name')", timeout => 90);
	$victim->{outside} = 1;
	QuorumCluster::wait_until('the node to be removed', sub { ($victim->status('role') // '') eq 'removed' }, 60);
	$victim->sql('SELECT quorum.leave_cluster()', timeout => 60);
	$victim->sql($changes);
	return;
}

# Writes meanwhile, so that the copy is of one index and the log has to lead on from there.
sub start_load
{
	my ($node) = @_;
	my $file = "$PostgreSQL::Test::Utils::tmp_check/load.sql";
	open(my $handle, '>', $file) or die $!;
	print $handle "\\set id random(90001, 91000)\nUPDATE main SET v = 'load' || :id WHERE id = :id;\nINSERT INTO numbered (v) VALUES ('load');\n";
	close($handle);
	my ($output, $errors) = ('', '');
	return IPC::Run::start([ 'pgbench', '-n', '-c', 1, '-T', 600, '--rate=100', '--max-tries=100', '-f', $file, $node->connstr('postgres') ],
		'<', '/dev/null', '>', \$output, '2>', \$errors);
}

my $mark = $victim->data_dir . '/pg_quorum/pgsql_tmp_journal/rows_to_keep';
foreach my $round (1 .. 4)
{
	my $via = (grep { $_ != $victim } $cluster->awake_nodes)[0];
	leave_and_change(<<'SQL');
UPDATE main SET v = 'otherwise' WHERE id % 10 = 3;
DELETE FROM main WHERE id % 10 = 4;
INSERT INTO main SELECT -i, 'only here' FROM generate_series(1, 1000) AS i;
DELETE FROM child WHERE id % 2 = 0;
SQL
	my $load = start_load($via);
	my $was = $victim->sql('SELECT count(*), count(*) FILTER (WHERE id < 0) FROM main');
	$log_position = -s $victim->logfile;

	# The caller goes down with the node; the node goes on by itself.
	my ($output, $errors) = ('', '');
	my $caller = IPC::Run::start([ 'psql', '-XAtq', '-d', $victim->connstr('postgres'), '-c', join_call($victim, $via, ', keep_rows => true') ],
		'<', '/dev/null', '>', \$output, '2>', \$errors);
	QuorumCluster::wait_until('the node to be a member', sub { -e $victim->data_dir . '/pg_quorum/pgsql_tmp_journal/identity' }, 60);
	PostgreSQL::Test::Utils::system_or_bail('cp', '-p', $mark, "$mark.kept") if -e $mark;
	my $kills = 0;
	while ($kills < 3)
	{
		usleep(rand(400_000));
		my $phase = phase($victim);
		last if $phase eq 'done';
		$seen{ $phase || 'before' }++;
		my $worker = int(rand(3)) == 0 ? $victim->worker_pid('apply') : 0;
		if ($worker)
		{
			kill('KILL', $worker);
			QuorumCluster::wait_until('the node to answer', sub { $victim->query('SELECT 1', timeout => 5)->{ok} }, 60);
		}
		else
		{
			$victim->kill9(all => 1);
			$victim->start;
		}
		$kills++;
		my $now = $victim->query(q{SET quorum.read_consistency = 'local'; SET lock_timeout = '200ms'; SELECT count(*), count(*) FILTER (WHERE id < 0) FROM main})->{rows};
		ok($now eq '' || $now eq $was || $now =~ /\|0$/, "round $round, kill $kills: its rows are those of before or those of the cluster") or diag("$was, $now");
	}
	$caller->finish;
	my $chosen = $cluster->wait_for_leader(agreed_by => [ grep { $_ != $victim } $cluster->nodes ])->sql('SELECT chosen_index FROM quorum.status');
	QuorumCluster::wait_until('the node to be a voter again', sub {
		my $voter = $cluster->wait_for_leader->query("SELECT is_voter FROM quorum.nodes WHERE node_name = '$name'")->{rows};
		my $applied = $victim->status('applied_index');
		return $voter eq 't' && phase($victim) =~ /^(?:done)?$/ && defined $applied && $applied >= $chosen;
	}, 180, sub { return "up to index $chosen, where its status is " . join(', ', $victim->status('role', 'chosen_index', 'applied_index', q{coalesce(last_error, '')})); });
	$load->kill_kill(grace => 1);
	delete $victim->{outside};
	like(counts_of(log_since($victim, $log_position), 'main'), qr/^7\d{4} rows kept, 2\d{4} copied, 1\d{4} deleted$/, "round $round: only what differed was copied");
	is_same_everywhere("round $round: after $kills kills");
	indexes_are_whole($victim, "round $round");
}
note('killed in the phases: ' . join(', ', map { "$_ ($seen{$_})" } sort keys %seen));

# ---- what_says_that_rows_are_to_be_kept_is_of_no_effect_afterwards ----------------------------------------------------------------------------------
ok(-e "$mark.kept", 'the file was there while the node joined');
$victim->stop('fast');
rename("$mark.kept", $mark) or die "$mark: $!";
$victim->start;
$cluster->wait_applied;
is($victim->sql('SELECT count(*) FROM quorum.snapshot_progress'), '0', 'if it is still there after the copy nothing is copied once more');
ok($victim->query(q{INSERT INTO numbered (v) VALUES ('with the file')})->{ok}, 'and the node takes part');
$victim->stop('fast');
PostgreSQL::Test::Utils::append_to_file($mark, 'x');
$victim->start;
QuorumCluster::wait_until('the node to say what is wrong', sub { ($victim->status(q{coalesce(last_error, '')}) // '') =~ /rows_to_keep" cannot be read/ }, 30);
pass('a damaged one is noticed, and not taken for none');
unlink($mark);
$cluster->wait_applied;
is_same_everywhere('without it');

# ---- what_cannot_be_compared_is_copied_whole: the index that leads to the large values is no index any more
leave_and_change('DELETE FROM wide WHERE id = 1');
my $toast_index = $victim->data_dir . '/' . $victim->sql(q{SELECT pg_relation_filepath(i.indexrelid) FROM pg_class c JOIN pg_index i ON i.indrelid = c.reltoastrelid
	WHERE c.oid = 'wide'::regclass});
$victim->stop('fast');
open(my $damaged, '+<:raw', $toast_index) or die "$toast_index: $!";
print $damaged "\xAB" x -s $toast_index;
close($damaged);
$log_position = -s $victim->logfile;
$victim->start;
$join = $victim->query(join_call($victim, $helper, ', keep_rows => true'), timeout => 120);
ok($join->{ok}, 'a node with a damaged table joins') or diag($join->{stderr});
delete $victim->{outside};
like(log_since($victim, $log_position), qr/table "public\.wide" cannot be read on this node: it is copied whole/, 'what is damaged is copied whole');
like(counts_of(log_since($victim, $log_position), 'main'), qr/^\d{5,} rows kept, 0 copied, 0 deleted$/, 'the others are kept all the same');
is_same_everywhere('after the copy of a damaged table');
indexes_are_whole($victim, 'after the copy of a damaged table');

# ---- a_donor_of_an_older_build_gives_all_rows -------------------------------------------------------------------------------------------------------
foreach my $donor (grep { $_ != $victim } $cluster->nodes)
{
	$donor->sql(q{ALTER EXTENSION pg_quorum DROP PROCEDURE quorum.send_rows(bigint, int, bytea); DROP PROCEDURE quorum.send_rows(bigint, int, bytea)});
}
leave_and_change('DELETE FROM main WHERE id % 10 = 5');
$log_position = -s $victim->logfile;
$join = $victim->query(join_call($victim, $helper, ', keep_rows => true'), timeout => 120);
ok($join->{ok}, 'a node with rows joins by a donor that does not know how to compare them') or diag($join->{stderr});
delete $victim->{outside};
is(counts_of(log_since($victim, $log_position), 'main'), 'not compared', 'it gets all rows anew');
is_same_everywhere('after a copy of all rows');

# ---- who_may_ask -----------------------------------------------------------------------------------------------------------------------------------
my $id = $victim->sql(q{SELECT table_id FROM quorum.replicated_table WHERE table_name = 'main'});
my $begin = 'BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY';
is($victim->query("SET ROLE quorum_operator; $begin; CALL quorum.send_rows($id, 0, '')")->{sqlstate}, '42501', 'nobody but peers may have rows sent');
is($victim->query("SET ROLE quorum_link; $begin; CALL quorum.send_rows($id, 0, '')")->{sqlstate}, '55000', 'nor they without the list of tables before');
is($victim->query("SET ROLE quorum_link; $begin; CALL quorum.send_sums($id, 256)")->{sqlstate}, '55000', 'the same for sums');
is($victim->query("SET ROLE quorum_link; $begin; CALL quorum.send_sums($id, 100000)")->{sqlstate}, '22023', 'the number of buckets is bounded');
is($victim->query("SET ROLE quorum_link; CALL quorum.send_sums($id, 256)")->{sqlstate}, '25001', 'it takes a transaction with one snapshot');

done_testing();
