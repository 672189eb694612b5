# What can be asked of a cluster that does not make sense gets a clear error and leaves nothing behind; what makes sense works with tables
# that have rows: on other nodes, and on one that joins late.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use Test::More;

# Two nodes make the cluster, the third joins late.
my $cluster = QuorumCluster->new(nodes => [ 'n1', 'n2' ]);
my ($first, $second) = $cluster->nodes;

# One attempt that must fail: with that SQLSTATE, a message that matches, and no word of an internal error.
sub refuses
{
	my ($name, $node, $sql, $sqlstate, $message) = @_;
	my $result = $node->query($sql, timeout => 60);
	is($result->{sqlstate}, $sqlstate, $name) or diag($result->{stderr});
	like($result->{stderr}, $message, "$name: the error says why");
	cmp_ok($result->{seconds}, '<', 30, sprintf('%s: after %.1f s', $name, $result->{seconds}));
	return $result;
}

sub join_sql
{
	my ($node, %with) = @_;
	my $name = $with{name} || $node->name;
	my $conninfo = $with{conninfo} || $node->peer_conninfo;
	my $via = $with{via} || $first->peer_conninfo(user => 'quorum_operator');
	return "SELECT quorum.join_cluster('$name', '$conninfo', via => '$via')";
}

# ---- a_node_outside_a_cluster_says_so ------------------------------------------------------------------------------
my $third = $cluster->add_instance('n3');
$third->{outside} = 1;
is($third->sql('SELECT role, node_name IS NULL, coalesce(has_quorum, false) FROM quorum.status'), 'stopped|t|f', 'status of an instance in no cluster');
$third->sql('CREATE TABLE alone (id int PRIMARY KEY)');
refuses('replicate without a cluster', $third, q{SELECT quorum.replicate('alone')}, '55000', qr/not a member of a cluster/);

# ---- joins_that_cannot_be ------------------------------------------------------------------------------------------
my $free_port = PostgreSQL::Test::Cluster::get_free_port();
refuses('a conninfo of the cluster that answers nothing', $third,
	join_sql($third, via => "host=127.0.0.1 port=$free_port dbname=postgres user=quorum_operator"), '08001', qr/could not connect|refused/);
refuses('a host of the cluster that no one has', $third,
	join_sql($third, via => 'host=no-such-host.invalid port=5432 dbname=postgres user=quorum_operator'), '08001', qr/no-such-host\.invalid/);
refuses('an own conninfo that answers nothing', $third,
	join_sql($third, conninfo => "host=127.0.0.1 port=$free_port dbname=postgres user=quorum_link"), '08001', qr/could not connect|refused/);
refuses('a conninfo that is none', $third, join_sql($third, via => 'host'), '22023', qr/conninfo|via/);
refuses('an own conninfo that leads to somebody else', $third, join_sql($third, conninfo => $second->peer_conninfo), '22023', qr/another server/);
refuses('a via that leads to itself', $third, join_sql($third, via => $third->peer_conninfo(user => 'quorum_operator')), '55000',
	qr/not a member of a cluster/);
refuses('a node name that is taken', $third, join_sql($third, name => 'n2'), '42710', qr/already has a node named "n2"/);
refuses('a node name that is none', $third, join_sql($third, name => 'Not A Name'), '42602', qr/invalid node name/);
$first->sql('CREATE DATABASE bare');
refuses('a database of the cluster without the extension', $third,
	join_sql($third, via => $first->peer_conninfo(dbname => 'bare', user => 'quorum_operator')), '42704', qr/does not have the extension/);
refuses('a database of the cluster that no one has', $third,
	join_sql($third, via => $first->peer_conninfo(dbname => 'nowhere', user => 'quorum_operator')), '08001', qr/"nowhere" does not exist/);
$third->sql('CREATE DATABASE bare');
refuses('an own database without the extension', $third, join_sql($third, conninfo => $third->peer_conninfo(dbname => 'bare')), '42704',
	qr/does not have the extension/);
my $password = refuses('a conninfo with a password', $third, join_sql($third, conninfo => $third->peer_conninfo . ' password=secret%word'), '22023',
	qr/password/);
unlike($password->{stderr}, qr/secret%word/, 'and does not show it');
is($third->sql('SELECT role FROM quorum.status'), 'stopped', 'after all that it is in no cluster');
is($first->sql('SELECT count(*) FROM quorum.nodes'), '2', 'and the cluster has no more members');
refuses('CREATE EXTENSION in another database', $first, q{\c bare
	CREATE EXTENSION pg_quorum}, '55000', qr/only in the database that quorum.database names/);
refuses('creating twice', $first, q{SELECT quorum.create_cluster('again', '} . $first->peer_conninfo . q{')}, '55000', qr/already a member/);
refuses('a member that joins once more', $second, join_sql($second, name => 'other'), '55000', qr/already a member/);

# ---- tables_that_cannot_be_replicated ------------------------------------------------------------------------------
my $leader = $cluster->wait_for_leader;
my ($follower) = $cluster->followers;
$leader->sql(q{
	CREATE TABLE no_key (a int);
	CREATE VIEW looks AS SELECT 1 AS a;
	CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
	CREATE UNLOGGED TABLE fleeting (id int PRIMARY KEY);
	CREATE TABLE shape (id int PRIMARY KEY, a int);
	CREATE TABLE with_rows (id int PRIMARY KEY);
	CREATE TABLE checked (id int PRIMARY KEY, a int CHECK (a > 0));
	CREATE TABLE late_key (id int PRIMARY KEY DEFERRABLE);
	CREATE TABLE points_out (id int PRIMARY KEY REFERENCES shape)});
$follower->sql('CREATE TABLE shape (id int PRIMARY KEY, a text); CREATE TABLE with_rows (id int PRIMARY KEY); INSERT INTO with_rows VALUES (1);'
	. 'CREATE TABLE checked (id int PRIMARY KEY, a int)');
refuses('a table that no one has', $leader, q{SELECT quorum.replicate('nobody')}, '42P01', qr/"nobody" does not exist/);
refuses('no primary key', $leader, q{SELECT quorum.replicate('no_key')}, '55000', qr/primary key/);
refuses('a view', $leader, q{SELECT quorum.replicate('looks')}, '42809', qr/not a table/);
refuses('a partitioned table', $leader, q{SELECT quorum.replicate('parts')}, '0A000', qr/partitioned/);
refuses('an unlogged table', $leader, q{SELECT quorum.replicate('fleeting')}, '0A000', qr/unlogged/);
refuses('a deferrable primary key', $leader, q{SELECT quorum.replicate('late_key')}, '55000', qr/deferrable/);
refuses('a reference to a table that is not replicated', $leader, q{SELECT quorum.replicate('points_out')}, '0A000', qr/not replicated/);
refuses('a system table', $leader, q{SELECT quorum.replicate('pg_class')}, '42809', qr/system table/);
refuses('another shape on the other node', $leader, q{SELECT quorum.replicate('shape')}, '55000', qr/cannot take table "shape"/);
refuses('rows on the other node', $leader, q{SELECT quorum.replicate('with_rows')}, '55000', qr/cannot take table "with_rows"/);
refuses('a constraint that the other node has not', $leader, q{SELECT quorum.replicate('checked')}, '55000', qr/cannot take table "checked".*CHECK/s);
{
	my $user = $follower->session;
	$user->query_safe('BEGIN; SELECT count(*) FROM checked');
	refuses('one that is in use there', $leader, q{SELECT quorum.replicate('checked')}, '55000', qr/cannot take table "checked".*is in use/s);
	$user->quit;
}
refuses('unreplicate of what is not replicated', $leader, q{SELECT quorum.unreplicate('shape')}, '55000', qr/not replicated/);
refuses('another shape on the leader', $follower, q{SELECT quorum.replicate('shape')}, '55000', qr/cannot take table "shape"/);
$leader->sql('CREATE ROLE somebody LOGIN');
refuses('somebody who may not', $leader, q{SET ROLE somebody; SELECT quorum.replicate('shape')}, '42501', qr/permission denied/);
is($_->sql('SELECT count(*) FROM quorum.tables'), '0', 'nothing is replicated on ' . $_->name) foreach $first, $second;
$leader->sql('INSERT INTO shape VALUES (1, 1); INSERT INTO no_key VALUES (1)');
is($follower->sql('SELECT count(*) FROM shape'), '0', 'a refused table stays ordinary');

# What was in the way is put right: then it works.
$follower->sql('DROP TABLE shape; TRUNCATE with_rows; ALTER TABLE checked ADD CHECK (a > 0)');
# The predicate of the index reads otherwise on a node that makes it from this one's text.
$leader->sql(q{CREATE TABLE partly (id int PRIMARY KEY, kind varchar(10)); CREATE UNIQUE INDEX ON partly (kind) WHERE kind IN ('a', 'b'); INSERT INTO partly VALUES (1, 'a'), (2, 'c'), (3, 'c')});
$leader->sql(qq{SELECT quorum.replicate('$_')}) foreach 'shape', 'with_rows', 'checked', 'partly', 'points_out';
$cluster->wait_applied($first, $second);
$follower->sql('CREATE TABLE from_follower (id int PRIMARY KEY, a text); INSERT INTO from_follower SELECT i, $$row $$ || i FROM generate_series(1, 3000) AS i');
$follower->sql(q{SELECT quorum.replicate('from_follower')});
$cluster->wait_applied($first, $second);
is($leader->digest('from_follower'), $follower->digest('from_follower'), 'a follower replicates a table of its own, with its rows');
$follower->sql(q{SELECT quorum.unreplicate('from_follower')});
$cluster->wait_applied($first, $second);
is($_->sql(q{SELECT count(*) FROM quorum.tables WHERE table_name = 'from_follower'}), '0', 'and takes it back on ' . $_->name) foreach $first, $second;
refuses('replicating twice', $leader, q{SELECT quorum.replicate('shape')}, '55000', qr/already replicated/);
$leader->sql('INSERT INTO with_rows VALUES (2)');
$cluster->wait_applied($first, $second);
is($follower->sql('SELECT count(*) FROM shape') . $follower->sql('SELECT string_agg(id::text, $$,$$) FROM with_rows'), '12',
	'rows from before and after are there');

# ---- a_large_table_tells_its_progress ------------------------------------------------------------------------------
$leader->sql(q{
	CREATE TABLE large (id int PRIMARY KEY, a text, b numeric, c timestamptz);
	INSERT INTO large SELECT i, md5(i::text) || repeat(' ', i % 300), i / 7.0, to_timestamp(i) FROM generate_series(1, 20000) AS i});
my $copy = $leader->query(q{SELECT quorum.replicate('large')}, timeout => 120);
ok($copy->{ok}, sprintf('20,000 rows are replicated in %.1f s', $copy->{seconds})) or diag($copy->{stderr});
like($copy->{stderr}, qr/NOTICE:.*20000 rows/s, 'it says how many');
$leader->sql('UPDATE large SET a = a || id WHERE id % 100 = 0; DELETE FROM large WHERE id % 100 = 1');
$cluster->wait_applied($first, $second);
is($follower->digest('large'), $leader->digest('large'), 'both nodes have the same rows');

# A copy that is cancelled is taken back on all nodes.
$leader->sql(q{CREATE TABLE twice (id int PRIMARY KEY, a text); INSERT INTO twice SELECT i, repeat(md5(i::text), 100) FROM generate_series(1, 20000) AS i});
my $interrupted = $leader->query(q{SET statement_timeout = '400ms'; SELECT quorum.replicate('twice')}, timeout => 120);
note('interrupted: ' . ($interrupted->{sqlstate} || 'it was fast enough to end'));
SKIP:
{
	skip('the copy was complete before it could be interrupted', 5) if $interrupted->{ok};
	is($interrupted->{sqlstate}, '57014', 'a copy that is cancelled');
	ok($leader->query('INSERT INTO twice VALUES (0)')->{ok}, 'leaves a table that can be written to');
	$cluster->wait_applied($first, $second);
	is($follower->sql(q{SELECT to_regclass('twice') IS NULL}), 't', 'and no half of it on the other node');

	# One whose transaction is rolled back says what to do.
	$leader->sql(q{BEGIN; SELECT quorum.replicate('twice'); ROLLBACK});
	like($leader->query('INSERT INTO twice VALUES (-1)')->{stderr}, qr/HINT:.*quorum\.replicate\(\)/, 'rolled back, it leaves a table that says what to do');
	ok($leader->query(q{SELECT quorum.replicate('twice')}, timeout => 120)->{ok}, 'and that can be replicated again');
}
$cluster->wait_applied($first, $second);
is($follower->digest('twice'), $leader->digest('twice'), 'with the same rows on both nodes');

# ---- a_node_joins_when_there_are_tables_with_rows ------------------------------------------------------------------
$third->sql('CREATE TABLE large (id int PRIMARY KEY, other text)');
refuses('a table of another shape on the joining node', $third, join_sql($third), '55000', qr/large/);
is($third->sql('SELECT role FROM quorum.status'), 'stopped', 'it has not joined');
is($leader->sql('SELECT count(*) FROM quorum.nodes'), '2', 'and is no member');
$third->sql('DROP TABLE large; CREATE TABLE checked (id int PRIMARY KEY, a int CHECK (a >= 0))');
refuses('one with another constraint', $third, join_sql($third), '55000', qr/checked.*a >= 0.*a > 0/s);
$third->sql('ALTER TABLE checked DROP CONSTRAINT checked_a_check, ADD CONSTRAINT named_otherwise CHECK (a > 0)');
my $joined = $third->query(join_sql($third), timeout => 120);
delete $third->{outside};
ok($joined->{ok}, sprintf('the third node joins in %.1f s', $joined->{seconds})) or diag($joined->{stderr});
like($joined->{stderr}, qr/NOTICE:.*(?:applied|received|caught up)/, 'the join tells its progress');
is($third->sql('SELECT voters, quorum_size, is_voter FROM quorum.status JOIN quorum.nodes USING (node_name)'), '3|2|t', 'it is a voter when the call returns');
refuses('a node that joins twice', $third, join_sql($third), '55000', qr/already a member/);
refuses('and under another name', $third, join_sql($third, name => 'n4'), '55000', qr/already a member/);
$cluster->assert_same_digest($_, "$_ is the same on all three nodes") foreach 'large', 'twice', 'shape', 'with_rows', 'partly', 'points_out';
is($third->query(q{INSERT INTO partly VALUES (4, 'a')})->{sqlstate}, '23505', 'a partial unique index is there, too');
is($third->sql('SELECT string_agg(table_name, $$ $$ ORDER BY table_name) FROM quorum.tables WHERE state = $$active$$'),
	'checked large partly points_out shape twice with_rows', 'and listed there');

# ---- a_table_that_came_in_between_stops_the_node, which says why, and goes on when it is gone
$leader->sql('CREATE TABLE late (id int PRIMARY KEY, a int CHECK (a > 0))');
$cluster->wait_applied;
$third->without_apply(sub {
	$leader->sql(q{SELECT quorum.replicate('late')});
	$third->sql('CREATE TABLE late (id int PRIMARY KEY, a int)');
});
QuorumCluster::wait_until('the node to stop applying', sub { $third->status('last_error') =~ /another shape/ }, 30);
like(slurp_file($third->logfile), qr/"public\.late" is replicated by another node.*\n.*DETAIL:  It has "nothing" where "CHECK/, 'a table without a constraint is not taken by the log either');
$third->sql('DROP TABLE late');
$third->reload;
$cluster->assert_same_digest('late');

# ---- the_new_member_counts: with it the cluster does without one of the old ones
$leader = $cluster->wait_for_leader;
my ($old) = grep { $_ != $leader && $_ != $third } $cluster->nodes;
$old->stop('immediate');
$leader->sql('INSERT INTO with_rows VALUES (3)');
QuorumCluster::wait_until('the leader to notice that one is gone', sub { ($leader->status('voters_reachable') // '') eq '2' }, 20);
is($leader->sql('SELECT has_quorum FROM quorum.status'), 't', 'two of three are a quorum');
$old->start;
$cluster->assert_same_digest('with_rows', 'all are the same again');

done_testing();
