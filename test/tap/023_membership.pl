# Members come and go by the log: a removed node knows it, whether it was up, down or cut off; a node that leaves is an ordinary instance and can come
# back as a new one; a learner never votes; all of it under load, from any node, and whoever leads.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use FaultLoad;
use MemberRounds;
use Test::More;

my $namespaces = ($ENV{QUORUM_NAMESPACES} || '') eq 'yes';
my $cluster = QuorumCluster->new(nodes => [ 'n1', 'n2', 'n3', 'n4', 'n5' ], form => 0, namespaces => $namespaces);
my ($n1, $n2, $n3, $n4, $n5) = $cluster->nodes;
$_->{outside} = 1 foreach $n1, $n2, $n3, $n4, $n5;

sub refuses
{
	my ($name, $node, $sql, $sqlstate, $message) = @_;
	my $result = $node->query($sql, timeout => 90);
	is($result->{sqlstate}, $sqlstate, $name) or diag($result->{stderr});
	like($result->{stderr}, $message, "$name: the error says why");
	return;
}

# The members as that node sees them, voters in capitals.
sub members
{
	my ($node) = @_;
	return $node->sql('SELECT string_agg(CASE WHEN is_voter THEN upper(node_name) ELSE node_name END, $$ $$ ORDER BY node_name) FROM quorum.nodes');
}

sub wait_for_role
{
	my ($node, $role) = @_;
	return QuorumCluster::wait_until($node->name . " to be $role", sub { ($node->status('role') // '') eq $role }, 60);
}

sub succeeds
{
	my ($name, $node, $sql) = @_;
	my $result = $node->query($sql, timeout => 120);
	ok($result->{ok}, $name) or diag($result->{stderr});
	return $result;
}

# ---- one_node_alone ------------------------------------------------------------------------------------------------
refuses('removing in no cluster', $n1, q{SELECT quorum.remove_node('n1')}, '55000', qr/not a member of a cluster/);
refuses('leaving no cluster', $n1, q{SELECT quorum.leave_cluster()}, '55000', qr/not a member of a cluster/);
$n1->sql("SELECT quorum.create_cluster('n1', '" . $n1->peer_conninfo . "')");
delete $n1->{outside};
$cluster->wait_for_leader;
refuses('removing the last voter', $n1, q{SELECT quorum.remove_node('n1')}, '55000', qr/last voter.*HINT/s);
like(succeeds('removing nobody', $n1, q{SELECT quorum.remove_node('n9')})->{stderr}, qr/NOTICE:.*no node named "n9"/, 'and says so');
refuses('handing over to nobody', $n1, q{SELECT quorum.transfer_leadership('n9')}, '42704', qr/no node named "n9"/);

# ---- one_to_three_to_five_to_three_under_load ----------------------------------------------------------------------
my $load = FaultLoad->new($cluster, clients => 3, watch => 0, pause_us => 10_000, commit_timeout => '5s', answer_timeout_ms => 8000, allow_sqlstates => ['42P01']);
$load->start;
$load->wait_for_writes(20);
foreach my $node ($n2, $n3)
{
	$cluster->join_node($node, $n1);
	$load->wait_for_writes(20);
}
is(members($n1), 'N1 N2 N3', 'three voters');
foreach my $node ($n4, $n5)
{
	$cluster->join_node($node, $n2);
	$load->wait_for_writes(20);
}
is(members($n3), 'N1 N2 N3 N4 N5', 'five voters');
is($n3->sql('SELECT voters, quorum_size FROM quorum.status'), '5|3', 'of whom three are a quorum');

# A follower is removed by another follower; the leader by a follower.
my $leader = $cluster->wait_for_leader;
my ($first, $second) = $cluster->followers;
succeeds('a follower removes ' . $second->name . ', which runs', $first, qq{SELECT quorum.remove_node('@{[ $second->name ]}')});
unlike(members($first), qr/@{[ $second->name ]}/i, 'it is in force when the call returns');
$second->{outside} = 1;
wait_for_role($second, 'removed');
$load->wait_for_writes(20);
succeeds('a follower removes the leader', $first, qq{SELECT quorum.remove_node('@{[ $leader->name ]}')});
$leader->{outside} = 1;
wait_for_role($leader, 'removed');
$cluster->wait_for_leader;
$load->wait_for_writes(20);
is($first->sql('SELECT voters, quorum_size FROM quorum.status'), '3|2', 'three voters again');
like(succeeds('removing twice', $first, qq{SELECT quorum.remove_node('@{[ $leader->name ]}')})->{stderr}, qr/NOTICE:.*skipping/, 'is a notice');

# ---- a_removed_node_knows_it ---------------------------------------------------------------------------------------
foreach my $node ($second, $leader)
{
	my $name = $node->name;
	like($node->sql('SELECT last_error FROM quorum.status'), qr/removed/, "$name says why it stands still");
	is($node->sql('SELECT has_quorum FROM quorum.status'), 'f', 'has no quorum');
	refuses("a write on $name", $node, q{INSERT INTO load_churn VALUES (-1, 0, '')}, '25006', qr/removed.*HINT:.*leave_cluster/s);
	refuses("a linearizable read on $name", $node, q{SELECT count(*) FROM load_row}, '25006', qr/removed.*HINT:.*leave_cluster/s);
	succeeds("a local read on $name", $node, q{SET quorum.read_consistency = 'local'; SELECT count(*) FROM load_row});
	refuses("joining again at once, $name", $node, "SELECT quorum.join_cluster('$name', '" . $node->peer_conninfo . "', via => '"
		. $first->peer_conninfo(user => 'quorum_operator') . "')", '55000', qr/removed.*HINT:.*leave_cluster/s);
}
$second->restart;
wait_for_role($second, 'removed');
pass('it knows after a restart too');

# ---- it_disturbs_nobody: neither the ballot nor the leader changes while removed nodes run
my $settled = $cluster->wait_for_leader;
my $ballot = $settled->status('ballot');
$load->wait_for_writes(100);
is($settled->status('ballot'), $ballot, 'removed nodes ask for no election that anybody hears');

# ---- leaving_makes_an_ordinary_instance_that_can_join_as_new --------------------------------------------------------
$load->stop;    # no client is to take tables for the cluster's that are ordinary now
refuses('leaving in a transaction block', $second, q{BEGIN; SELECT quorum.leave_cluster()}, '25001', qr/transaction block/);
foreach my $node ($second, $leader)
{
	my $name = $node->name;
	succeeds("$name leaves", $node, 'SELECT quorum.leave_cluster()');
	is($node->sql('SELECT role, node_name IS NULL, last_error IS NULL FROM quorum.status'), 'stopped|t|t', "$name belongs to nobody");
	is($node->sql('SELECT count(*) FROM quorum.tables'), '0', 'it has no replicated tables');
	cmp_ok($node->sql('SELECT count(*) FROM load_row'), '>', 0, 'its tables keep their rows');
	succeeds('and are ordinary', $node, q{INSERT INTO load_churn VALUES (-1, 0, ''); TRUNCATE load_churn});
	refuses('leaving twice', $node, 'SELECT quorum.leave_cluster()', '55000', qr/not a member/);
	$node->restart;
	is($node->sql('SELECT role FROM quorum.status'), 'stopped', 'a restart changes nothing');
	refuses('joining with tables in the way', $node, "SELECT quorum.join_cluster('$name', '" . $node->peer_conninfo . "', via => '"
		. $first->peer_conninfo(user => 'quorum_operator') . "')", '55000', qr/in the way.*HINT/s);
	$node->sql('DROP TABLE load_row, load_counter, load_churn');
}
$load->start;
$load->wait_for_writes(20);
succeeds('it joins as a new node', $second, "SELECT quorum.join_cluster('" . $second->name . "', '" . $second->peer_conninfo . "', via => '"
	. $first->peer_conninfo(user => 'quorum_operator') . "')");
delete $second->{outside};
$load->wait_for_writes(20);

# ---- a_dead_node_is_replaced_by_one_of_its_name --------------------------------------------------------------------
my ($dead) = grep { $_ != $first && $_ != $second } $cluster->followers;
my $dead_name = $dead->name;
$dead->kill9(all => 1);
$dead->{outside} = 1;
$load->wait_for_writes(20);
succeeds("$dead_name is removed though it is dead", $first, qq{SELECT quorum.remove_node('$dead_name')});
$load->wait_for_writes(20);
my $replacement = $leader;    # the instance that left above
succeeds("an instance elsewhere joins as $dead_name", $replacement, "SELECT quorum.join_cluster('$dead_name', '" . $replacement->peer_conninfo
	. "', via => '" . $first->peer_conninfo(user => 'quorum_operator') . "')");
delete $replacement->{outside};
$load->wait_for_writes(20);

# The dead one comes back: it is refused, knows it, and disturbs nobody.
$dead->start;
wait_for_role($dead, 'removed');
like(members($first), qr/\U$dead_name/, 'the new one of its name is a voter');
succeeds('it leaves, and drops its tables in the same transaction', $dead, q{SET quorum.read_consistency = 'local';
	DO $$ BEGIN PERFORM quorum.leave_cluster(); DROP TABLE load_row, load_counter, load_churn; END $$});

# ---- learners_never_vote -------------------------------------------------------------------------------------------
succeeds('a learner joins', $dead, "SELECT quorum.join_cluster('watcher', '" . $dead->peer_conninfo . "', via => '"
	. $first->peer_conninfo(user => 'quorum_operator') . "', as_voter => false)");
my $learner = $dead;
delete $learner->{outside};
is($learner->sql('SELECT role, voters FROM quorum.status'), 'learner|4', 'it is a learner');
is($first->sql(q{SELECT is_voter, as_voter FROM quorum.nodes WHERE node_name = 'watcher'}), 'f|f', 'and listed as one that is not to vote');
$load->wait_for_writes(200);
is($first->sql(q{SELECT is_voter FROM quorum.nodes WHERE node_name = 'watcher'}), 'f', 'nor does it when it has caught up');
succeeds('it forwards writes', $learner, q{INSERT INTO load_churn VALUES (-7, 7, 'by the learner') ON CONFLICT (id) DO UPDATE SET changes = 7});
is($learner->sql(q{SELECT note FROM load_churn WHERE id = -7}), 'by the learner', 'and reads what it wrote, linearizably');
refuses('handing over to it', $first, q{SELECT quorum.transfer_leadership('watcher')}, '55000', qr/does not vote/);

# A learner is no part of a quorum: with it and two of four voters nothing is written, though three of five members are there.
my $chief = $cluster->wait_for_leader;
my @down = (grep { $_ != $chief && $_ != $learner } $cluster->awake_nodes)[ 0, 1 ];
$load->stop;
$_->stop('immediate') foreach @down;
QuorumCluster::wait_until('the leader to notice', sub { ($chief->status('has_quorum') // '') eq 'f' }, 30);
is($chief->query(q{INSERT INTO load_churn VALUES (-8, 8, '')})->{sqlstate}, '25006', 'a learner does not help to a quorum');
refuses('removing without a quorum', $chief, q{SELECT quorum.remove_node('watcher')}, '25006', qr/quorum/);
$_->start foreach @down;
$cluster->wait_for_leader;
succeeds('the learner leaves', $learner, 'SELECT quorum.leave_cluster()');
$learner->{outside} = 1;
unlike(members($first), qr/watcher/, 'and is gone for the others');

# ---- a_removal_that_would_stop_the_cluster_is_refused
$chief = $cluster->wait_for_leader;
my @voters = grep { $_ != $chief } $cluster->awake_nodes;
my $gone = shift @voters;
$gone->stop('immediate');
QuorumCluster::wait_until('the leader to notice', sub { $chief->sql('SELECT voters_reachable FROM quorum.status') eq '3' }, 30);
succeeds('one of four can go', $chief, 'SELECT quorum.remove_node($$' . $voters[0]->sql('SELECT node_name FROM quorum.status') . '$$)');
$voters[0]->{outside} = 1;
refuses('but not another one, with one of the others down', $chief, 'SELECT quorum.remove_node($$' . $voters[1]->sql('SELECT node_name FROM quorum.status') . '$$)',
	'55000', qr/no quorum.*HINT/s);
$gone->start;
$cluster->wait_for_leader;

# ---- two_changes_at_the_same_time: one after the other, and neither is lost
@{ $cluster->{nodes} } = grep { !$_->{outside} } $cluster->nodes;
my @removed = ($voters[0], $learner);
foreach my $turn (1 .. 3)
{
	foreach my $node (@removed)
	{
		# One of them never left, as it was removed a moment ago.
		succeeds($node->name . ' leaves', $node, q{SET quorum.read_consistency = 'local';
			DO $$ BEGIN PERFORM quorum.leave_cluster(); DROP TABLE load_row, load_counter, load_churn; END $$})
		  if $node->status('role') ne 'stopped';
		$node->sql('DROP TABLE IF EXISTS load_row, load_counter, load_churn');
	}
	my @callers = $cluster->awake_nodes;
	my @joins = map {
		MemberRounds::begin_call($removed[$_], "SELECT quorum.join_cluster('m$turn$_', '" . $removed[$_]->peer_conninfo . "', via => '"
			. $callers[ ($_ + $turn) % 3 ]->peer_conninfo(user => 'quorum_operator') . "')") } 0, 1;
	like(MemberRounds::end_call($_), qr/^done/, "turn $turn: a join beside another one") foreach @joins;
	is(scalar(split(/ /, members($callers[0]))), 5, 'both are members');
	my @removals = map { MemberRounds::begin_call($callers[ ($_ + $turn) % 3 ], "SELECT quorum.remove_node('m$turn$_')") } 0, 1;
	like(MemberRounds::end_call($_), qr/^done/, "turn $turn: a removal beside another one") foreach @removals;
	is(scalar(split(/ /, members($callers[0]))), 3, 'both are gone');
	wait_for_role($_, 'removed') foreach @removed;
}

# ---- nothing_was_lost
$load->check(least_acknowledged => 300);

# ---- a_node_that_was_cut_off_learns_of_its_removal_when_it_is_back
my ($cut_off) = $cluster->followers;
my ($asked) = grep { $_ != $cut_off } $cluster->followers;
SKIP:
{
	skip('links cannot be cut here', 4) unless $namespaces;
	$cluster->isolate($cut_off);
	$cut_off->{outside} = 1;
	succeeds('one that is cut off is removed', $asked, q{SELECT quorum.remove_node('} . $cut_off->sql('SELECT node_name FROM quorum.status') . q{')});
	isnt($cut_off->status('role'), 'removed', 'it does not know');
	refuses('and cannot leave without the others', $cut_off, 'SELECT quorum.leave_cluster()', '25006', qr/quorum/);
	$cluster->heal;
	wait_for_role($cut_off, 'removed');
	pass('until it hears of it');
}

# ---- an_operator_can_let_a_node_leave_that_reaches_nobody
my $last = $cluster->wait_for_leader;
$_->stop('immediate') foreach grep { $_ != $last } $cluster->nodes, @removed;
QuorumCluster::wait_until('it to notice', sub { ($last->status('has_quorum') // '') eq 'f' }, 30);
refuses('leaving without a quorum', $last, 'SELECT quorum.leave_cluster()', '25006', qr/quorum/);
succeeds('leaving by force', $last, 'SELECT quorum.leave_cluster(force => true)');
succeeds('leaves ordinary tables', $last, q{INSERT INTO load_churn VALUES (-9, 0, '')});
done_testing();
