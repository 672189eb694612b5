# A voter that was away while most of the voters that it knows were replaced: those who are to tell it whether its journal is complete are gone, so it has
# to hear from the one that is left who the others are now.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use Test::More;

my $cluster = QuorumCluster->new(nodes => 5);
my $leader = $cluster->wait_for_leader;
$leader->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); SELECT quorum.replicate('t'); INSERT INTO t VALUES (1, 'before')});
$cluster->wait_applied;

my ($absent, @replaced) = $cluster->followers;
$absent->stop('fast');
foreach my $node (@replaced[0, 1])
{
	$leader->sql(sprintf(q{SELECT quorum.remove_node('%s')}, $node->name), timeout => 90);
	$node->stop('fast');
}
my $newcomer = $cluster->add_instance('n6');
$cluster->join_node($newcomer, $leader);
QuorumCluster::wait_until('the leader to show the new voter, and that it reaches it',
	sub { $cluster->wait_for_leader->query(q{SELECT count(*) FROM quorum.nodes WHERE node_name = 'n6' AND is_voter AND reachable})->{rows} eq '1' });
$leader->sql(sprintf(q{SELECT quorum.remove_node('%s')}, $replaced[2]->name), timeout => 90);
$replaced[2]->stop('fast');
$leader->sql(q{INSERT INTO t VALUES (2, 'without it')});

# ---- it_learns_who_votes_now: three of the four others that it knows are gone, and two would have had to let it in
$absent->start;
my $follows = eval {
	QuorumCluster::wait_until('the node to be back', sub { my ($role, $voters) = $absent->status('role', 'voters'); ($role // '') eq 'follower' && $voters == 3; }, 60);
	1;
};
ok($follows, 'a voter whose configuration names voters that are gone comes back') or diag($absent->query('SELECT role, voters, last_error FROM quorum.status')->{rows});
is($absent->sql(q{SELECT coalesce(last_error, '') FROM quorum.status}), '', 'and has no complaint');

# ---- and_its_vote_counts: without the newcomer it is one of the two that are needed
$newcomer->stop('fast');
$cluster->write_until_ok(q{INSERT INTO t VALUES (3, 'with its vote') ON CONFLICT (id) DO NOTHING});
QuorumCluster::wait_until('its rows', sub { $absent->query('SELECT count(*) FROM t')->{rows} eq '3' });
pass('its vote counts');
done_testing();
