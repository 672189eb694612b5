# Two of three nodes are gone: what is left stops taking writes, says so fast, and goes on reading; when one returns, so do writes.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use Test::More;

my $cluster = QuorumCluster->new(nodes => 3);
my $leader = $cluster->wait_for_leader;
$leader->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); SELECT quorum.replicate('t'); INSERT INTO t VALUES (1, 'a')});
$cluster->wait_applied;

# Once with the leader as the one that is left, once with a follower.
foreach my $survivor_role ('leader', 'follower')
{
	$leader = $cluster->wait_for_leader;
	my @followers = $cluster->followers;
	my ($left, @gone) = $survivor_role eq 'leader' ? ($leader, @followers) : ($followers[0], $leader, $followers[1]);
	$_->stop('immediate') foreach @gone;

	# ---- minority_refuses_writes_within_two_seconds
	foreach my $attempt (1, 2)
	{
		my $result = $left->query(qq{INSERT INTO t VALUES (10 + $attempt, 'minority')}, timeout => 20);
		is($result->{sqlstate}, '25006', "a $survivor_role without the others refuses, attempt $attempt") or diag($result->{stderr});
		cmp_ok($result->{seconds}, '<', 2, sprintf('it took %.2f s', $result->{seconds}));
	}

	# ---- minority_reads_its_own_rows
	my $read = $left->query(q{SET quorum.read_consistency = 'local'; SELECT count(*) FROM t WHERE id = 1}, timeout => 5);
	is($read->{rows}, '1', 'a local read works');

	# ---- status_answers_and_admits_it
	QuorumCluster::wait_until('the node to notice that it is alone', sub { ($left->status('has_quorum') // '') eq 'f' }, 20);
	my $status = $left->query('SELECT has_quorum, voters_reachable FROM quorum.status', timeout => 5);
	is($status->{rows}, 'f|1', 'status admits that there is no quorum');

	# ---- one_returning_node_is_enough
	$gone[0]->start;
	my $seconds = $cluster->write_until_ok(qq{INSERT INTO t VALUES (100, '$survivor_role') ON CONFLICT (id) DO UPDATE SET v = '$survivor_role'});
	cmp_ok($seconds, '<', 20, sprintf('two of three write again, after %.2f s', $seconds));
	is($cluster->wait_for_leader->sql(q{SELECT count(*) FROM t WHERE v = 'minority'}), '0', 'what was refused is nowhere');

	$gone[1]->start;
	$cluster->wait_for_leader;
	$cluster->assert_same_digest('t', 'all three are the same again');
}

done_testing();
