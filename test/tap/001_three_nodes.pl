# Three instances become a cluster; what is written on any of them is on all of them.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use WaitingSession;
use Test::More;

my $cluster = QuorumCluster->new(nodes => 3);
my $leader = $cluster->wait_for_leader;
my @followers = $cluster->followers;

# ---- every_node_knows_the_members
foreach my $node ($cluster->nodes)
{
	is($node->sql(q{SELECT string_agg(node_name, ',' ORDER BY node_name) FROM quorum.nodes WHERE is_voter}),
		'n1,n2,n3', $node->name . ' knows three voters');
	is($node->sql('SELECT voters, quorum_size, has_quorum FROM quorum.status'), '3|2|t', $node->name . ' has a quorum');
}

# ---- a_table_with_rows_is_replicated_with_its_rows
$leader->sql(q{
	CREATE TABLE account (id int PRIMARY KEY, owner text, balance numeric(12,2), noted timestamptz, tags text[], extra jsonb);
	INSERT INTO account SELECT i, 'owner ' || i, i * 1.5, '2024-01-01'::timestamptz + i * interval '1 hour', ARRAY['a', NULL], '{"k": 1}'
		FROM generate_series(1, 500) AS i;
	SELECT quorum.replicate('account')});
$cluster->wait_applied;
is($_->sql('SELECT count(*) FROM account'), '500', $_->name . ' has the rows that were there before') foreach $cluster->nodes;
is($_->sql(q{SELECT count(*) FROM quorum.tables}), '1', $_->name . ' lists the table') foreach $cluster->nodes;
$cluster->assert_same_digest('account', 'existing rows are the same on all nodes');

# ---- insert_update_and_delete_reach_all_nodes
$leader->sql(q{
	INSERT INTO account VALUES (1001, NULL, NULL, NULL, NULL, NULL), (1002, repeat('long ', 20000), -0.01, 'infinity', '{}', '[]');
	UPDATE account SET balance = balance + 1 WHERE id <= 100;
	UPDATE account SET id = 2000 WHERE id = 500;
	DELETE FROM account WHERE id BETWEEN 200 AND 300});
$cluster->assert_same_digest('account', 'after inserts, updates and deletes all nodes are the same');
is($followers[0]->sql('SELECT length(owner) FROM account WHERE id = 1002'), '100000', 'a TOASTed value arrived whole');
is($followers[0]->sql('SELECT count(*) FROM account WHERE id = 2000'), '1', 'a changed primary key arrived');

# ---- a_transaction_is_replicated_as_a_whole_and_a_rolled_back_part_is_not
$leader->sql(q{
	BEGIN;
	INSERT INTO account (id) VALUES (3001);
	SAVEPOINT s;
	INSERT INTO account (id) VALUES (3002);
	ROLLBACK TO s;
	INSERT INTO account (id) VALUES (3003);
	COMMIT;
	BEGIN;
	INSERT INTO account (id) VALUES (3004);
	ROLLBACK});
$cluster->wait_applied;
is($_->sql('SELECT string_agg(id::text, $$,$$ ORDER BY id) FROM account WHERE id > 3000'), '3001,3003',
	$_->name . ' has what was committed and not what was rolled back') foreach $cluster->nodes;

# ---- a_follower_takes_writes
foreach my $i (0 .. $#followers)
{
	my ($follower, $id) = ($followers[$i], 4001 + 10 * $i);
	$cluster->wait_applied;
	$follower->sql(qq{INSERT INTO account (id, owner) VALUES ($id, 'written on a follower'), ($id + 1, 'gone again')});
	is($follower->sql("SELECT owner FROM account WHERE id = $id"), 'written on a follower', $follower->name . ' sees its own row at once');
	$follower->sql(qq{BEGIN; UPDATE account SET id = $id + 2, balance = 7 WHERE id = $id; DELETE FROM account WHERE id = $id + 1; COMMIT});
	$cluster->wait_applied;
	is($_->sql("SELECT id || ':' || balance FROM account WHERE id BETWEEN $id AND $id + 5"), ($id + 2) . ':7.00',
		$_->name . ' has what ' . $follower->name . ' wrote') foreach $cluster->nodes;
}
$cluster->assert_same_digest('account', 'after writes on every node all are the same');

# ---- many_sessions_of_a_follower_write_at_once
{
	my $id = 10_000;
	my @sessions = map { WaitingSession->new($followers[0]) } 1 .. 8;
	foreach my $round (1 .. 5)
	{
		$_->send('INSERT INTO account (id) VALUES (' . ++$id . ')') foreach @sessions;
		is(join(' ', map { $_->outcome } @sessions), join(' ', ('00000') x @sessions), "round $round: all are committed");
	}
	$_->finish foreach @sessions;
	$cluster->wait_applied;
	is($leader->sql('SELECT count(*) FROM account WHERE id > 10000'), '40', 'all of them are on the leader');
}

# ---- a_table_that_is_not_replicated_stays_ordinary
$followers[0]->sql('CREATE TABLE local (id int); INSERT INTO local VALUES (1)');
is($followers[0]->sql('SELECT count(*) FROM local'), '1', 'a follower writes to its own tables');
$cluster->assert_same_digest('account');

# ---- the_order_survives_a_restart_of_every_node
foreach my $node ($cluster->nodes)
{
	$node->restart;
	$cluster->wait_for_leader;
}
my $seconds = $cluster->write_until_ok('INSERT INTO account (id) VALUES (5001) ON CONFLICT DO NOTHING');
$cluster->assert_same_digest('account', 'after a restart of one node after the other all nodes are the same');

# ---- unreplicate_leaves_an_ordinary_table_on_each_node
$leader = $cluster->wait_for_leader;
$leader->sql(q{SELECT quorum.unreplicate('account')});
$cluster->wait_applied;
foreach my $node ($cluster->nodes)
{
	is($node->sql('SELECT count(*) FROM quorum.tables'), '0', $node->name . ' lists no table any more');
	$node->sql('INSERT INTO account (id) VALUES (6001)');
	is($node->sql('SELECT count(*) FROM account WHERE id = 6001'), '1', $node->name . ' writes to it as to its own');
}

done_testing();
