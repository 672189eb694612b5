# Two of three nodes are lost: quorum.force_new_cluster() on the third goes on with what it has.  The two, when they return, are a majority among
# themselves, and stop as soon as they hear of it, for good.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use Test::More;

my $force = 'SELECT quorum.force_new_cluster(accept_data_loss => true)';

my $cluster = QuorumCluster->new(nodes => 3);
my $leader = $cluster->wait_for_leader;
$leader->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); SELECT quorum.replicate('t'); INSERT INTO t SELECT i, 'before' FROM generate_series(1, 100) i});
$leader->sql('CREATE ROLE nobody LOGIN');
$cluster->wait_applied;
my ($survivor, $other) = $cluster->followers;
my @lost = ($leader, $other);

# ---- refused_while_a_majority_is_reachable
my $refusal = $survivor->query($force);
is($refusal->{sqlstate}, '55000', 'it is refused while a majority is there');
like($refusal->{stderr}, qr/DETAIL:\s+[23] of 3 voters can be reached/, 'and the refusal says how many are');

# ---- refused_to_the_unprivileged
$refusal = $leader->query("SET ROLE nobody; $force");
is($refusal->{sqlstate}, '42501', 'an ordinary role may not');

# What the survivor never hears of: acknowledged by the two others while it is down, and in their tables for good.
$survivor->stop('immediate');
$cluster->write_until_ok(q{INSERT INTO t VALUES (1000, 'lost') ON CONFLICT (id) DO NOTHING});
$cluster->wait_applied(@lost);
$_->sql('CHECKPOINT') foreach @lost;
QuorumNode::kill_at_once(@lost);
$survivor->start;

QuorumCluster::wait_until('the survivor to notice', sub { my ($quorum, $reachable) = $survivor->status('has_quorum', 'voters_reachable');
		return defined $quorum && $quorum eq 'f' && $reachable == 1; });

# ---- survivor_refuses_writes
is($survivor->query(q{INSERT INTO t VALUES (2000, 'minority')}, timeout => 20)->{sqlstate}, '25006', 'a survivor alone takes no writes');

# ---- refused_without_confirmation
foreach my $call ('quorum.force_new_cluster()', 'quorum.force_new_cluster(false)', 'quorum.force_new_cluster(NULL)')
{
	$refusal = $survivor->query("SELECT $call");
	is($refusal->{sqlstate}, '55000', "$call is refused");
	like($refusal->{stderr}, qr/DETAIL:.*everything behind log index \d+, is lost for good/, 'and says what may be lost');
	like($refusal->{stderr}, qr/HINT:.*accept_data_loss => true/, 'and how it is confirmed');
}
is($survivor->query("BEGIN; $force")->{sqlstate}, '25001', 'not in a transaction block');
is($survivor->query(q{INSERT INTO t VALUES (2000, 'minority')}, timeout => 20)->{sqlstate}, '25006', 'refusals have changed nothing');

# ---- survivor_goes_on_with_its_rows
my $index_before = $survivor->sql('SELECT chosen_index FROM quorum.status');
my $forced = $survivor->query($force, timeout => 60);
ok($forced->{ok}, 'the survivor goes on') or BAIL_OUT($forced->{stderr});
like($forced->{stderr}, qr/WARNING:.*only voter of generation 1/, 'with a warning');
is($survivor->sql(q{SELECT count(*) || ':' || count(*) FILTER (WHERE id BETWEEN 1 AND 100) FROM t}), '100:100', 'all its rows are there');
$survivor->sql(q{INSERT INTO t VALUES (3000, 'after')});
is($survivor->sql(q{SELECT role || ':' || has_quorum || ':' || voters FROM quorum.status}), 'leader:true:1', 'it leads, alone');
is($survivor->sql(q{SELECT count(*) FROM quorum.nodes}), '1', 'the others are no members');

# ---- who_did_it_can_be_read
is($survivor->sql(qq{SELECT string_agg(origin_node, ',') FROM quorum.log WHERE kind = 'new cluster' AND log_index > $index_before}),
	$survivor->name, 'quorum.log shows where the new cluster begins');
like(slurp_file($survivor->logfile), qr/LOG:  quorum\.force_new_cluster\(\) was called by role/, 'the server log says who called it');

# ---- survives_a_crash
$survivor->kill9(all => 1);
$survivor->start;
$cluster->write_until_ok(q{INSERT INTO t VALUES (3001, 'after a crash') ON CONFLICT (id) DO NOTHING});

# ---- old_majority_is_fenced
$_->start foreach @lost;
my $name = $survivor->name;
foreach my $node (@lost)
{
	QuorumCluster::wait_until($node->name . ' to hear of it', sub { ($node->status('role') // '') eq 'removed' }, 60,
		sub { $node->query('SELECT role, last_error FROM quorum.status')->{rows} });
	like($node->sql('SELECT last_error FROM quorum.status'),
		qr/^the cluster was continued without this node by quorum\.force_new_cluster\(\) on node "$name" at 2\d\d\d-.*rejoin as new$/,
		$node->name . ' knows why it stands aside');
	my $write = $node->query(q{INSERT INTO t VALUES (4000, 'old majority')}, timeout => 20);
	is($write->{sqlstate}, '25006', 'it takes no writes');
	like($write->{stderr}, qr/left behind.*DETAIL:.*force_new_cluster\(\) on node "$name"/s, 'and says why');
	my $read = $node->query('SELECT count(*) FROM t', timeout => 20);
	is($read->{sqlstate}, '25006', 'nor linearizable reads');
	like($read->{stderr}, qr/left behind.*DETAIL:.*force_new_cluster\(\) on node "$name"/s, 'and says why');
	is($node->query(q{SET quorum.read_consistency = 'local'; SELECT v FROM t WHERE id = 1000})->{rows}, 'lost',
		'what only the old majority acknowledged can still be read there');
	is($node->query($force)->{sqlstate}, '55000', 'it cannot be forced in its turn');
}

# ---- fenced_for_good
$survivor->stop;
$_->restart foreach @lost;
foreach my $node (@lost)
{
	QuorumCluster::wait_until($node->name . ' to stand aside again', sub { ($node->status('role') // '') eq 'removed' }, 30);
	is($node->query(q{INSERT INTO t VALUES (4001, 'old majority')}, timeout => 20)->{sqlstate}, '25006',
		$node->name . ' takes no writes after a restart either, though it does not hear the survivor and is a majority with the other');
}
$survivor->start;

# ---- rejoin_as_new
foreach my $node (@lost)
{
	$node->sql('SELECT quorum.leave_cluster(force => true)', timeout => 60);
	$node->sql('DROP TABLE t');
	$cluster->join_node($node, $survivor);
}
$cluster->wait_for_leader;
$cluster->write_until_ok(q{INSERT INTO t VALUES (5000, 'three again') ON CONFLICT (id) DO NOTHING});
$cluster->assert_same_digest('t', 'three nodes again, with the same rows');
is($survivor->sql('SELECT count(*) FROM t WHERE id IN (1000, 2000, 4000, 4001)'), '0', 'and nothing of what was lost or refused');

done_testing();
