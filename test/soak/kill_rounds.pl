# Hundreds of rounds of kill -9 of a random node, the leader included, or of one of its processes, while clients write.  ROUNDS=n (200),
# SEED=n for the same faults again.  Run by `make soak`.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/../tap";
use PostgreSQL::Test::Utils;
use QuorumCluster;
use FaultRounds;
use Test::More;

FaultRounds::soak(QuorumCluster->new(nodes => 3), FaultRounds::kills());

done_testing();
