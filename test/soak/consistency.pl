# 016_consistency_under_faults.pl for a long time: segments of five rounds, each with new tables and histories that are judged at its end.
# ROUNDS=n (200) or SOAK_SECONDS=n, SEED=n for the same faults again.  Run by `make soak`.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/../tap";
use PostgreSQL::Test::Utils;
use QuorumCluster;
use Consistency;
use FaultRounds;
use SoakWatch;
use Test::More;

my $namespaces = ($ENV{QUORUM_NAMESPACES} || '') eq 'yes';
my $cluster = QuorumCluster->new(nodes => 3, namespaces => $namespaces, power_loss => 1);
my $consistency = Consistency->new($cluster);
my $rounds = FaultRounds->new($cluster, $consistency, kinds => [
	FaultRounds::kills(), FaultRounds::disasters(), FaultRounds::storms(), FaultRounds::standstills(), FaultRounds::power_cuts(),
	$namespaces ? FaultRounds::cuts() : () ]);
my $watch = SoakWatch->new($cluster);
my $rounds_left = $ENV{SOAK_SECONDS} ? 1e9 : $ENV{ROUNDS} || 200;
my $ends_at = $ENV{SOAK_SECONDS} ? time() + $ENV{SOAK_SECONDS} : 9e18;

while ($rounds_left > 0 && time() < $ends_at)
{
	my $count = $rounds_left < 5 ? $rounds_left : 5;
	$consistency->start;
	$rounds->run($count);
	$consistency->stop;
	$consistency->check(least_acknowledged => 20);
	$watch->look;
	last unless Test::More->builder->is_passing;    # the histories of what went wrong are the last ones
	$rounds_left -= $count;
}
$rounds->report;
$watch->report;

done_testing();
