# A node dies in the middle of quorum.replicate() or quorum.join_cluster(): what is left is the same on all nodes, says what to do, and can be
# brought to its end.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use WaitingSession;
use Test::More;
use Time::HiRes qw(time usleep);

my $cluster = QuorumCluster->new(nodes => 3);
my $leader = $cluster->wait_for_leader;
my $rows = 60000;
$_->sql('ALTER SYSTEM SET autovacuum = off; SELECT pg_reload_conf()') foreach $cluster->nodes;

sub make_table
{
	my ($node, $table) = @_;
	$node->sql("CREATE TABLE $table (id int PRIMARY KEY, v text); INSERT INTO $table SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, $rows) AS i",
		timeout => 120);
	return;
}

sub state_of
{
	my ($node, $table) = @_;
	my $result = $node->query("SELECT state FROM quorum.tables WHERE table_name = '$table'", timeout => 10);
	return $result->{ok} ? $result->{rows} : '';
}

# Begins to replicate, and returns once it is under way.
sub begin_replicate
{
	my ($node, $table) = @_;
	my $session = WaitingSession->new($node);
	$session->send("SELECT quorum.replicate('$table')");
	QuorumCluster::wait_until("the copy of $table to be under way", sub { state_of($node, $table) eq 'copying' || $session->is_done }, 30);
	return $session;
}

# ---- the_leader_dies_while_it_copies_a_table
make_table($leader, 'half');
my $session = begin_replicate($leader, 'half');
$leader->kill9(all => 1);
my $outcome = $session->outcome;
$session->finish;
isnt($outcome, '00000', "the copy was interrupted ($outcome)");
my $new = $cluster->wait_for_leader(not => $leader);
foreach my $node (grep { $_->is_awake } $cluster->nodes)
{
	isnt(state_of($node, 'half'), 'active', $node->name . ' does not take half a table for a whole one');
}
$leader->start;
$cluster->wait_applied;
is($leader->sql('SELECT count(*) FROM half'), $rows, 'the table has all its rows where they come from');
my $refused = $new->query(q{SELECT quorum.replicate('half')}, timeout => 60);
SKIP:
{
	skip('the new leader has nothing of the table', 1) if $refused->{sqlstate} eq '42P01';
	like($refused->{stderr}, qr/HINT/, 'replicating the half copy is refused, and the error says what to do') or diag($refused->{stderr});
}

# As the hint says: forget the copy where it is half, then replicate where the rows are.
$new->query(q{SELECT quorum.unreplicate('half')}, timeout => 60);
$cluster->wait_applied;
$_->query('DROP TABLE IF EXISTS half') foreach grep { $_ != $leader } $cluster->nodes;
QuorumCluster::wait_until(
	'the first node to lead again',
	sub {
		my $now = $cluster->wait_for_leader;
		return 1 if $now == $leader;
		$now->restart;
		return 0;
	},
	120);
my $again = $leader->query(q{SELECT quorum.replicate('half')}, timeout => 120);
ok($again->{ok}, sprintf('replicated in the second attempt, %.1f s', $again->{seconds})) or diag($again->{stderr});
$cluster->assert_same_digest('half', 'the table is the same on all nodes');

# ---- a_follower_dies_while_a_table_is_copied: the others go on, and it gets all of it later
make_table($leader, 'whole');
my ($follower) = $cluster->followers;
$session = begin_replicate($leader, 'whole');
$follower->kill9(all => 1);
is($session->outcome(120), '00000', 'the copy goes on without a follower') or diag($session->error);
$session->finish;
$leader->sql(q{UPDATE whole SET v = 'changed' WHERE id % 1000 = 0});
$follower->start;
$cluster->assert_same_digest('whole', 'the follower gets the rest when it is back');

# ---- a_joining_node_dies_in_the_middle_of_it, and goes on by itself
my $joining = $cluster->add_instance('n4');
$joining->{outside} = 1;
$session = WaitingSession->new($joining);
$session->send("SELECT quorum.join_cluster('n4', '" . $joining->peer_conninfo . "', via => '" . $leader->peer_conninfo(user => 'quorum_operator') . "')");
# From then on it knows that it is a member; before, whoever called would have to call again.
QuorumCluster::wait_until('the node to have an identity', sub { -e $joining->data_dir . '/pg_quorum/pgsql_tmp_journal/identity' || $session->is_done }, 30);
$joining->kill9(all => 1);
note('join: ' . $session->outcome);
$session->finish;
$leader->sql(q{INSERT INTO whole VALUES (-1, 'while it was down')});
$joining->start;
delete $joining->{outside};
QuorumCluster::wait_until('the node to vote', sub { ($leader->query(q{SELECT is_voter FROM quorum.nodes WHERE node_name = 'n4'})->{rows} // '') eq 't' }, 60);
QuorumCluster::wait_until('the node to follow', sub { ($joining->status('role') // '') eq 'follower' }, 60);
$cluster->assert_same_digest($_, "$_ is the same on all four nodes") foreach 'half', 'whole';
is($joining->sql('SELECT voters, quorum_size FROM quorum.status'), '4|3', 'it counts');

# ---- a_node_joins_while_there_is_no_quorum: it is told so, and nothing is left of it
my @stopped = grep { $_ != $leader } $cluster->nodes;
$leader = $cluster->wait_for_leader;
@stopped = (grep { $_ != $leader } $cluster->nodes)[ 0, 1 ];
my $late = $cluster->add_instance('n5');
$late->{outside} = 1;
$_->stop('fast') foreach @stopped;
QuorumCluster::wait_until('the quorum to be lost', sub { ($leader->status('has_quorum') // '') eq 'f' }, 20);
my $join = $late->query(
	"SELECT quorum.join_cluster('n5', '" . $late->peer_conninfo . "', via => '" . $leader->peer_conninfo(user => 'quorum_operator') . "')", timeout => 60);
is($join->{sqlstate}, '25006', 'a join without a quorum is refused') or diag($join->{stderr});
$_->start foreach @stopped;
$cluster->wait_for_leader;
is($cluster->wait_for_leader->sql('SELECT count(*) FROM quorum.nodes'), '4', 'and there is no fifth member');
$cluster->write_until_ok(q{INSERT INTO whole VALUES (-2, 'again') ON CONFLICT DO NOTHING});
$cluster->assert_same_digest('whole', 'with a quorum all goes on');

# ---- a_join_waits_for_the_end_of_an_election: there is no leader when it asks for the first time
$leader = $cluster->wait_for_leader;
my @asleep = (grep { $_ != $leader } $cluster->awake_nodes)[ 0, 1 ];
$_->sigstop foreach @asleep;
QuorumCluster::wait_until('the quorum to be lost', sub { ($leader->status('has_quorum') // '') eq 'f' }, 20);
$session = WaitingSession->new($late);
$session->send("SELECT quorum.join_cluster('n5', '" . $late->peer_conninfo . "', via => '" . $leader->peer_conninfo(user => 'quorum_operator') . "')");
usleep(1_000_000);
ok(!$session->is_done, 'a join waits while there is no leader') or diag($session->error);
$_->sigcont foreach @asleep;
is($session->outcome, '00000', 'and is taken in when there is one') or diag($session->error);
$session->finish;
delete $late->{outside};
is($late->sql('SELECT count(*) FROM quorum.nodes WHERE is_voter'), '5', 'it votes');
$cluster->assert_same_digest('whole', 'and has the rows');

done_testing();
