# Hundreds of rounds of faults under load: first kill -9 of a random node (the leader included), then the same with cut links, standstills
# and immediate stops among them.  ROUNDS=n (200) for each part, SEED=n for the same faults again.  Run by `make soak`.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/../tap";
use PostgreSQL::Test::Utils;
use QuorumCluster;
use FaultLoad;
use FaultRounds;
use Test::More;

my $rounds = $ENV{ROUNDS} || 200;
my $namespaces = ($ENV{QUORUM_NAMESPACES} || '') eq 'yes';

# Pauses that keep the tables small enough to be compared often.
sub soak
{
	my ($name, @kinds) = @_;
	diag("$rounds rounds of $name");
	my $cluster = QuorumCluster->new(nodes => 3, namespaces => $namespaces);
	my $load = FaultLoad->new($cluster, clients => 4, pause_us => 10_000);
	my $faults = FaultRounds->new($cluster, $load, kinds => \@kinds);
	$load->start;
	$load->wait_for_writes(50);

	# The whole comparison every 50 rounds, so that a fault is found near to its cause.
	while (($faults->{done} || 0) < $rounds)
	{
		my $left = $rounds - ($faults->{done} || 0);
		$faults->run($left < 50 ? $left : 50);
		$load->stop;
		$load->check(least_acknowledged => 20 * $faults->{done});
		$load->start if $faults->{done} < $rounds;
	}
	$faults->report;
	$cluster->cleanup;
	return;
}

soak('kill -9', FaultRounds::kills());
soak(
	'every fault',
	FaultRounds::kills(),
	FaultRounds::standstills(),
	$namespaces ? FaultRounds::cuts() : ());

done_testing();
