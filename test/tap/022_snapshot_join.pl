# A node that needs what the log no longer holds gets its tables from another node: one that joins, and one that was away for too long.  Killed at any
# moment, on either side, it ends whole, without a hand; what it has is what the others have.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use IPC::Run;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use Test::More;
use Time::HiRes qw(usleep);

my $cluster = QuorumCluster->new(nodes => [ 'n1', 'n2', 'n3' ], conf => <<'CONF');
quorum.log_keep_size = '16MB'
quorum.log_retention_size = '32MB'
max_wal_size = '4GB'
max_wal_senders = 4
CONF
my ($n1, $n2, $n3) = $cluster->nodes;
my @tables = (qw(plain parent child wide generated several numbered mixed other.place), q{"Odd Name"});
my $seed = $ENV{SEED} || time;
srand($seed);
note("SEED=$seed");

# ---- what is copied

$cluster->wait_for_leader->sql(<<'SQL');
CREATE SCHEMA other;
CREATE TYPE colour AS ENUM ('red', 'green', 'blue');
CREATE TABLE plain (id int PRIMARY KEY, v bigint NOT NULL);
CREATE TABLE parent (id int PRIMARY KEY, name text UNIQUE);
CREATE TABLE child (id int PRIMARY KEY, parent_id int REFERENCES parent ON DELETE CASCADE, up int REFERENCES child);
CREATE INDEX child_of ON child (parent_id);
CREATE TABLE wide (id int PRIMARY KEY, v text, w bytea);
ALTER TABLE wide ALTER v SET STORAGE EXTERNAL;
CREATE TABLE generated (id int PRIMARY KEY, a numeric, b numeric GENERATED ALWAYS AS (a * 2) STORED, c int);
ALTER TABLE generated DROP COLUMN c;
CREATE TABLE several (id int PRIMARY KEY, a int UNIQUE, b text, c int);
CREATE UNIQUE INDEX several_lower ON several (lower(b)) WHERE c > 10;
CREATE UNIQUE INDEX several_two ON several (c, b);
CREATE TABLE numbered (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, s serial, v text);
CREATE TABLE mixed (id uuid PRIMARY KEY, t timestamptz, d date, i interval, j jsonb, n inet, r int4range, f float8, b bool, x xml, a int[], z text[]);
CREATE TABLE "Odd Name" ("Id" int PRIMARY KEY, "select" text);
CREATE TABLE other.place (id int PRIMARY KEY, p point);
ALTER TABLE other.place ENABLE ROW LEVEL SECURITY;
CREATE POLICY nobody ON other.place USING (false);
CREATE TABLE empty (id int PRIMARY KEY, v text);
SQL
my $leader = $cluster->wait_for_leader;
$leader->sql("SELECT quorum.replicate('$_')", timeout => 60) foreach @tables, 'empty';
$leader->sql(<<'SQL', timeout => 120);
INSERT INTO plain SELECT i, 0 FROM generate_series(1, 20000) AS i;
INSERT INTO parent SELECT i, 'p' || i FROM generate_series(1, 500) AS i;
INSERT INTO child SELECT i, i % 500 + 1, CASE WHEN i > 1 THEN i / 2 END FROM generate_series(1, 5000) AS i;
INSERT INTO wide SELECT i, repeat(md5(i::text), 400 * (i % 5)), decode(repeat(md5(i::text), 10), 'hex') FROM generate_series(1, 300) AS i;
INSERT INTO wide VALUES (0, NULL, NULL);
INSERT INTO generated (id, a) SELECT i, i / 3.0 FROM generate_series(1, 1000) AS i;
INSERT INTO several SELECT i, -i, 'B' || i, i FROM generate_series(1, 1000) AS i;
INSERT INTO numbered (v) SELECT 'x' || i FROM generate_series(1, 100) AS i;
INSERT INTO mixed SELECT md5(i::text)::uuid, to_timestamp(i * 1e6), '2020-01-01'::date + i, i * interval '1 hour', jsonb_build_object('i', i),
	('10.0.0.' || i % 256)::inet, int4range(i, i + 5), i / 7.0, i % 2 = 0, '<a/>', ARRAY[i, NULL, -i], ARRAY['a' || i, NULL] FROM generate_series(1, 500) AS i;
INSERT INTO mixed (id, f) VALUES (md5('nan')::uuid, 'NaN');
INSERT INTO "Odd Name" SELECT i, 'it''s ' || i FROM generate_series(1, 100) AS i;
INSERT INTO other.place SELECT i, point(i, -i) FROM generate_series(1, 100) AS i;
SQL

$leader->sql(q{BEGIN; SET LOCAL quorum.token = 'a token'; INSERT INTO plain VALUES (0, 0); COMMIT});
$cluster->wait_applied;

# ---- tools

# Writes of several kinds as fast as they go, by pgbench in the background; returns a function that ends it.
sub start_load
{
	my ($node) = @_;
	my $file = pgbench_script('load', <<'SQL');
\set id random(1, 20000)
\set w random(1, 300)
\set k random(1, 1000000000)
\set a random(1, 1000000000)
UPDATE plain SET v = v + 1 WHERE id = :id;
UPDATE wide SET v = repeat(md5(:id::text), 1000) WHERE id = :w;
INSERT INTO numbered (v) VALUES (:id);
INSERT INTO parent VALUES (1000 + :k, 'q' || :k) ON CONFLICT DO NOTHING;
UPDATE several SET a = :a, b = 'c' || :a WHERE id = :w;
SQL
	my ($output, $errors) = ('', '');
	my $load = IPC::Run::start([ 'pgbench', '-n', '-c', 2, '-T', 600, '--max-tries=100', '-f', $file, $node->connstr('postgres') ],
		'<', '/dev/null', '>', \$output, '2>', \$errors);
	return sub { $load->kill_kill(grace => 1); };
}

sub pgbench_script
{
	my ($name, $sql) = @_;
	my $file = "$PostgreSQL::Test::Utils::tmp_check/$name.sql";
	open(my $handle, '>', $file) or die $!;
	print $handle $sql;
	close($handle);
	return $file;
}

# The log of the cluster is trimmed beyond that index, and no leader has in memory what is before it: who is there needs a snapshot.
my $memory_entries = 4096;
sub trim_beyond
{
	my ($index) = @_;
	my $node = $cluster->wait_for_leader;
	my $last = $node->sql('SELECT chosen_index FROM quorum.status');
	if ($last < $index + $memory_entries + 500)
	{
		my $file = pgbench_script('many', "\\set id random(1, 20000)\nUPDATE plain SET v = v + 1 WHERE id = :id;\n");
		my ($output, $errors) = ('', '');
		IPC::Run::run([ 'pgbench', '-n', '-c', 16, '-j', 2, '-t', int(($index + $memory_entries + 500 - $last) / 16) + 1, '--max-tries=100',
				'-f', $file, $node->connstr('postgres') ], '>', \$output, '2>', \$errors, IPC::Run::timeout(120)) or die "pgbench: $errors";
	}
	QuorumCluster::wait_until("the log to be trimmed beyond $index", sub {
		$node->sql(q{UPDATE wide SET v = repeat(md5(random()::text), 3000) WHERE id <= 40}, timeout => 30);
		return $node->sql('SELECT first_held_index FROM quorum.stats') > $index + 1;
	}, 120);
	return;
}

# Its first page is not a page any more.
sub damage
{
	my ($file) = @_;
	open(my $handle, '+<:raw', $file) or die "$file: $!";
	print $handle "\xAB" x 8192;
	close($handle) or die "$file: $!";
	return;
}

sub phase { my ($node) = @_; return $node->query('SELECT phase FROM quorum.snapshot_progress')->{rows} // ''; }

# Up to what was chosen when it is asked for: as others go on writing, the distance to what is chosen later is one of time.
sub wait_caught_up
{
	my ($node, $name) = @_;
	my $chosen = $cluster->wait_for_leader->sql('SELECT chosen_index FROM quorum.status');
	QuorumCluster::wait_until("$name to be a voter that has caught up", sub {
		my $there = $cluster->wait_for_leader->query(
			"SELECT is_voter FROM quorum.nodes WHERE node_name = '" . $node->name . "'")->{rows};
		my $applied = $node->status('applied_index');
		return $there eq 't' && defined $applied && $applied >= $chosen;
	}, 180, sub { return "to index $chosen, where its status is " . join(', ', $node->status('role', 'chosen_index', 'applied_index', q{coalesce(last_error, '')})); });
	return;
}

sub is_same_everywhere
{
	my ($name) = @_;
	$cluster->wait_applied(grep { $_->is_awake } $cluster->nodes);
	$cluster->assert_same_digest($_, "$name: $_") foreach @tables, 'empty';
	return;
}

# ---- a_new_node_copies_the_tables ----------------------------------------------------------------------------------
trim_beyond(10);
my ($token_age) = sort { $a <=> $b } map { $_->sql('SELECT extract(epoch FROM oldest_age) FROM quorum.token_memory') } $cluster->nodes;
my $token_age_asked = time;
my $stop_load = start_load($cluster->wait_for_leader);
my $n4 = $cluster->add_instance('n4', conf => "quorum.log_keep_size = '16MB'\nquorum.log_retention_size = '32MB'\nmax_wal_size = '4GB'");
$n4->{outside} = 1;
$n4->sql(q{CREATE TYPE colour AS ENUM ('red', 'green', 'blue')});
my $join = $n4->query("SELECT quorum.join_cluster('n4', '" . $n4->peer_conninfo . "', via => '" . $n2->peer_conninfo(user => 'quorum_operator') . "')",
	timeout => 60);
ok($join->{ok}, sprintf('a node joins a cluster whose log is trimmed, under load: %.1f s', $join->{seconds})) or BAIL_OUT($join->{stderr});
delete $n4->{outside};
note($join->{stderr});
# The log that follows may be trimmed before it arrives; then it begins anew.
QuorumCluster::wait_until('the copy to have ended', sub { phase($n4) eq 'done' }, 60);
pass('by a copy of the tables');
my ($donor, $rows, $done, $total) = split /\|/, $n4->sql('SELECT donor_name, rows_copied, tables_done, tables_total FROM quorum.snapshot_progress');
note("the donor is $donor, the leader " . $cluster->wait_for_leader->name);
cmp_ok($rows, '>', 27000, "$rows rows were copied");
is("$done of $total", '11 of 11', 'all tables');
cmp_ok($n4->sql('SELECT first_held_index FROM quorum.stats'), '>', 10, 'it does not hold the log from before');
cmp_ok($n4->sql('SELECT extract(epoch FROM oldest_age) FROM quorum.token_memory WHERE remembered = 1'), '>=',
	$token_age + time - $token_age_asked - 2, 'it remembers a token from before, and knows from its donor how old that is');
$stop_load->();
is_same_everywhere('after the join');
is($n4->sql('SELECT count(*) FROM quorum.tables WHERE state = $$active$$'), '11', 'all tables are replicated there');
is($n4->sql(q{SELECT relrowsecurity FROM pg_class WHERE oid = 'other.place'::regclass}), 't', 'row-level security hid nothing, and is there');

# What it has is of use: it writes, its sequences go on behind what is there, its unique indexes and foreign keys hold.
ok($n4->query('INSERT INTO numbered (v) VALUES ($$from n4$$)')->{ok}, 'the new node writes; sequences go on behind the rows');
is($n4->query('INSERT INTO several VALUES (5000, -900, $$u$$, 1)')->{sqlstate}, '23505', 'unique indexes hold') ;
is($n4->query('INSERT INTO child VALUES (6000, 100000)')->{sqlstate}, '23503', 'foreign keys hold');
is($n4->sql('SET enable_seqscan = off; SELECT count(*) FROM child WHERE parent_id = 7'), $n1->sql('SELECT count(*) FROM child WHERE parent_id = 7'), 'plain indexes work');
is($n4->query(q{UPDATE plain SET v = -1 WHERE id = 1; UPDATE several SET b = 'new' WHERE id = 1})->{sqlstate}, '', 'its triggers capture');
is_same_everywhere('after writes of the new node');

# ---- a_node_that_was_away_too_long_comes_back_by_itself -------------------------------------------------------------
my $away = ($cluster->wait_for_leader->name eq 'n3') ? $n2 : $n3;
my $applied = $away->status('applied_index');
my $damaged = $away->data_dir . '/' . $away->sql(q{SELECT pg_relation_filepath('parent')});
my $mixed_rows = q{SELECT id, ctid, xmin FROM mixed ORDER BY id};
my $mixed_before = $away->sql($mixed_rows);
$away->stop('fast');
damage($damaged);
$leader = $cluster->wait_for_leader;
$leader->sql(q{SELECT quorum.unreplicate('empty')});
$leader->sql(q{DROP TABLE empty; CREATE TABLE empty (id bigint PRIMARY KEY, other text NOT NULL, more int)});
foreach my $node (grep { $_->is_awake && $_ != $leader } $cluster->nodes)
{
	$cluster->wait_applied($node);
	$node->sql('DROP TABLE empty');
}
$leader->sql(q{SELECT quorum.replicate('empty'); INSERT INTO empty VALUES (1, 'x', 2)}, timeout => 60);
$leader->sql(q{SELECT quorum.unreplicate('"Odd Name"')});
@tables = grep { $_ ne '"Odd Name"' } @tables;
$leader->sql(q{CREATE TABLE late (id int PRIMARY KEY, v text); INSERT INTO late VALUES (1, 'a'); SELECT quorum.replicate('late')}, timeout => 60);
push @tables, 'late';
$leader->sql('TRUNCATE generated; INSERT INTO generated (id, a) VALUES (1, 1)');
$leader->sql('DELETE FROM child WHERE id > 100; DELETE FROM parent WHERE id > 400 AND id < 500');
trim_beyond($applied);
$away->start;
wait_caught_up($away, 'the node that was away');
is(phase($away), 'done', 'a node that was away for too long copies the tables');
my $log = PostgreSQL::Test::Utils::slurp_file($away->logfile);
like($log, qr/table public\.mixed: 501 rows kept, 0 copied, 0 deleted/, 'but for the rows that it has');
is($away->sql($mixed_rows), $mixed_before, 'which stay where they are');
like($log, qr/table public\.plain: \d{4,} rows kept, \d+ copied, \d+ deleted/, 'of a table that was changed meanwhile, too');
like($log, qr/table "public\.parent" cannot be read on this node: it is copied whole/, 'a table that is damaged is copied whole');
is_same_everywhere('after the return');
is($away->sql(q{SELECT count(*) FROM quorum.tables WHERE table_name = 'Odd Name'}), '0', 'what was unreplicated meanwhile is an ordinary table');
is($away->sql('SELECT count(*) FROM "Odd Name"'), '100', 'with the rows that it had');

# ---- a_node_made_from_a_backup_joins --------------------------------------------------------------------------------
# Its tables are those of another node some time ago; the copy takes their place.  (Its name in there is the origin's, so it must not begin by itself.)
$n1->backup('seed');
trim_beyond($cluster->wait_for_leader->status('applied_index'));
my $n5 = QuorumNode->new('n5');
push @{ $cluster->{nodes} }, $n5;
$n5->{peer_address} = '127.0.0.1';
$n5->{outside} = 1;
$n5->init_from_backup($n1, 'seed');
$n5->start;
is($n5->sql('SELECT role, node_name IS NULL FROM quorum.status'), 'stopped|t', 'an instance made from a backup is nobody at first');
cmp_ok($n5->sql('SELECT applied_index FROM quorum.position'), '>', 0, 'but has tables');
is($n5->query(q{SELECT quorum.create_cluster('n5', '} . $n5->peer_conninfo . q{')})->{sqlstate}, '55000', 'it can make no cluster of its own from them');
$cluster->join_node($n5, $n2);
wait_caught_up($n5, 'the node made from a backup');
is(phase($n5), 'done', 'it joins, by a copy of the tables');
cmp_ok($n5->sql('SELECT rows_kept FROM quorum.snapshot_progress'), '>', 1000, 'and keeps the rows that it has');
is_same_everywhere('after the join of a node made from a backup');
ok($n5->query('INSERT INTO numbered (v) VALUES ($$from n5$$)')->{ok}, 'and writes');

# ---- killed_at_any_moment_it_ends_whole ----------------------------------------------------------------------------
# Rows enough that a kill finds it in the middle.
$cluster->wait_for_leader->sql('INSERT INTO plain SELECT i, 0 FROM generate_series(20001, 150000) AS i', timeout => 120);
$cluster->wait_applied(grep { $_->is_awake } $cluster->nodes);

sub fall_behind
{
	my ($node) = @_;
	my $index = $node->status('applied_index');
	$node->stop('fast');
	trim_beyond($index);
	return;
}

my %seen;
my $kills = 0;
$away = ($cluster->wait_for_leader->name eq 'n3') ? $n2 : $n3;
foreach my $round (1 .. 4)
{
	fall_behind($away);
	$stop_load = start_load($cluster->wait_for_leader);
	$away->start;
	for my $kill (1 .. 3)
	{
		my $target = int(rand(3));
		usleep(rand(1_500_000));
		my $phase = phase($away);
		$seen{$phase || 'before'}++;
		my $worker = $away->worker_pid($target == 1 ? 'apply' : 'consensus');
		if ($target > 0 && $worker)
		{
			kill('KILL', $worker);
		}
		else
		{
			$away->kill9(all => 1);
			$away->start;
		}
		$kills++;
		last if $phase eq 'done';
	}
	# the postmaster may be at restarting everything
	QuorumCluster::wait_until('the node to answer', sub { $away->query('SELECT 1', timeout => 5)->{ok} }, 60);
	wait_caught_up($away, 'the killed node');
	$stop_load->();
	is_same_everywhere("after the kills of round $round");
}
note("$kills kills, in the phases: " . join(', ', map { "$_ ($seen{$_})" } sort keys %seen));

# ---- a_donor_that_dies_is_replaced_by_another ----------------------------------------------------------------------
fall_behind($away);
$away->start;
my $found = '';
QuorumCluster::wait_until('the copy to begin', sub {
	$found = $away->query('SELECT donor_name FROM quorum.snapshot_progress')->{rows} // '';
	return $found ne '';
}, 60);
my $killed = $cluster->node($found);
$killed->kill9(all => 1);
$cluster->wait_for_leader(not => $killed);
wait_caught_up($away, 'the node whose donor died');
$killed->start;
wait_caught_up($killed, 'the donor');
is_same_everywhere('after the death of a donor');

# ---- who_may_ask ---------------------------------------------------------------------------------------------------
my $call = q{BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; CALL quorum.send_tables(1, '1')};
$n1->sql('CREATE ROLE somebody LOGIN');
is($n1->query("SET ROLE somebody; $call")->{sqlstate}, '42501', 'nobody but peers may have the tables sent');
is($n1->query("SET ROLE quorum_link; $call")->{sqlstate}, '55000', 'nor a peer of another cluster');
is($n1->query(q{SET ROLE quorum_link; CALL quorum.send_tables(1, NULL)})->{sqlstate}, '22004', 'nor one that does not say');
is($n1->query(q{SET ROLE quorum_link; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; CALL quorum.send_tables(99, '1')})->{sqlstate}, '0A000',
	'nor one of another version');

# ---- what_a_snapshot_does_not_protect_from_is_noticed --------------------------------------------------------------
# TRUNCATE leaves an empty file, whatever a snapshot of before should see.
my ($identity) = map { PostgreSQL::Test::Utils::slurp_file($_) } $n1->data_dir . '/pg_quorum/pgsql_tmp_journal/identity';
no warnings 'portable';
my $cluster_id = hex(($identity =~ /^cluster_id = (\w+)/m)[0]);
my $session = $n1->session;
$session->query(q{SET quorum.read_consistency = 'local'});
$session->query('BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY');
$session->query('SELECT applied_index FROM quorum.position');
$cluster->wait_for_leader->sql('TRUNCATE late');
$cluster->wait_applied($n1);
$session->query("CALL quorum.send_tables(1, '$cluster_id')");
like($session->{stderr}, qr/have changed since the snapshot was taken/, 'a donor notices that a table was truncated after its snapshot');
$session->quit;

done_testing();
