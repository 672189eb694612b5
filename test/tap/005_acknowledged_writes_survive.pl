# kill -9 in many ways, round after round, while clients write: what was acknowledged is there once, what was refused is not, and
# all nodes are the same.  ROUNDS=n for more rounds, SEED=n for the same faults again; make soak runs hundreds.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use FaultLoad;
use FaultRounds;
use Test::More;

my $cluster = QuorumCluster->new(nodes => 3);
my $load = FaultLoad->new($cluster, clients => 4);
my $rounds = FaultRounds->new($cluster, $load, kinds => [ FaultRounds::kills(), FaultRounds::disasters(), FaultRounds::storms() ]);

$load->start;
$load->wait_for_writes(50);
$rounds->run($ENV{ROUNDS} || 12);
$load->wait_for_writes(50);
$load->stop;
$rounds->report;
$load->check(least_acknowledged => 200);

done_testing();
