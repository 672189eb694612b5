# Rounds of power cuts of one node, two or all of them, while clients write; in between kill -9 of one process, whose successor finds what it
# had not synced in the kernel's cache.  ROUNDS=n (200), SEED=n for the same faults again.  Run by `make soak`.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/../tap";
use PostgreSQL::Test::Utils;
use QuorumCluster;
use FaultRounds;
use Test::More;

FaultRounds::soak(QuorumCluster->new(nodes => 3, power_loss => 1), FaultRounds::power_cuts(), 'kill -9 of one process');

done_testing();
