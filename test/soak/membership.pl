# Rounds of changes of members drawn by lot (join, learner, removal, leaving, replacement of a dead node, hand-over), each with a kill, a
# restart, a standstill or a cut in the middle of it, while clients write; everything is compared after each 10 of them.  ROUNDS=n (200), SEED=n
# for the same lots again.  Run by `make soak`.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/../tap";
use PostgreSQL::Test::Utils;
use QuorumCluster;
use FaultLoad;
use MemberRounds;
use Test::More;

my $namespaces = ($ENV{QUORUM_NAMESPACES} || '') eq 'yes';
my $cluster = QuorumCluster->new(nodes => 6, namespaces => $namespaces, form => 0);
my @nodes = $cluster->nodes;
$_->{outside} = 1 foreach @nodes[ 3 .. 5 ];
{
	local $cluster->{nodes} = [ @nodes[ 0 .. 2 ] ];
	$cluster->form;
}
my $load = FaultLoad->new($cluster, clients => 4, watch => 0, pause_us => 10_000, allow_sqlstates => ['42P01']);
my $rounds = MemberRounds->new($cluster, $load, namespaces => $namespaces);

for (my $left = $ENV{ROUNDS} || 200; $left > 0; $left -= 10)
{
	$load->start;
	$load->wait_for_writes(20);
	$rounds->run($left < 10 ? $left : 10);
	$load->stop;
	$rounds->check_load(least_acknowledged => 20);
	$rounds->check_ballots;
	last unless Test::More->builder->is_passing;
}
$rounds->report;

done_testing();
