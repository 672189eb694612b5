# The same as kill_rounds.pl with every other fault among them: two nodes or all of them killed, power cuts that lose what was not synced,
# sessions cancelled, nodes that stand still, links cut in one direction or both.  ROUNDS=n (200), SEED=n for the same faults again.
# Run by `make soak`.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/../tap";
use PostgreSQL::Test::Utils;
use QuorumCluster;
use FaultRounds;
use Test::More;

my $namespaces = ($ENV{QUORUM_NAMESPACES} || '') eq 'yes';
FaultRounds::soak(
	QuorumCluster->new(nodes => 3, namespaces => $namespaces, power_loss => 1),
	FaultRounds::kills(),
	FaultRounds::disasters(),
	FaultRounds::power_cuts(),
	FaultRounds::storms(),
	FaultRounds::standstills(),
	$namespaces ? FaultRounds::cuts() : ());

done_testing();
