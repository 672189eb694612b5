# List-append, bank and register clients on all three nodes, at all isolation levels, while nodes are killed, lose power, stand still
# and are cut off: no lost update, no stale read, no long fork, no write that was reported as failed; registers are linearizable.  ROUNDS=n for more
# rounds, SEED=n for the same faults again; make soak runs for as long as one likes.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use Consistency;
use FaultRounds;
use Test::More;

my $namespaces = ($ENV{QUORUM_NAMESPACES} || '') eq 'yes';
BAIL_OUT('network namespaces are missing') if $ENV{QUORUM_REQUIRE_NAMESPACES} && !$namespaces;

my $cluster = QuorumCluster->new(nodes => 3, namespaces => $namespaces, power_loss => 1);
my $consistency = Consistency->new($cluster);
my $rounds = FaultRounds->new($cluster, $consistency, kinds => [
	FaultRounds::kills(), FaultRounds::disasters(), FaultRounds::storms(), FaultRounds::standstills(), FaultRounds::power_cuts(),
	$namespaces ? FaultRounds::cuts() : () ]);

# Without faults first: what goes wrong here needs none.
$consistency->start;
sleep(5);
$consistency->stop;
$consistency->check(least_acknowledged => 50);

$consistency->start;
$rounds->run($ENV{ROUNDS} || 10);
$consistency->stop;
$rounds->report;
$consistency->check(least_acknowledged => 50);

done_testing();
