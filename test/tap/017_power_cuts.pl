# Power cuts under load, one node or all of them: what was not synced is really lost, and what was acknowledged is there.  The same with
# disks that lie about their syncs shows what these cuts would find.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use FaultLoad;
use FaultRounds;
use Test::More;

my $cluster = QuorumCluster->new(nodes => 3, power_loss => 1);

# ---- acknowledged_writes_survive_power_cuts
my $load = FaultLoad->new($cluster, clients => 4);
my $rounds = FaultRounds->new($cluster, $load, kinds => [ FaultRounds::power_cuts(), 'kill -9 of all processes' ]);
$load->start;
$load->wait_for_writes(50);
$rounds->run($ENV{ROUNDS} || 9);

# The last word: all at once, in the middle of it.
$load->wait_for_writes(100);
note(join('; ', $cluster->power_cut([ $cluster->nodes ])));
$_->start foreach $cluster->nodes;
$load->wait_for_writes(50);
$load->stop;
$rounds->report;
$load->check(least_acknowledged => 200);

my %counters = ($cluster->nodes)[0]->{power_loss}->counters;
cmp_ok($counters{syncs}, '>', 100, 'the syncs of the first node were watched');
note(join(', ', map { "$_ $counters{$_}" } sort keys %counters));

# ---- a_node_that_forgot_is_noticed: one disk lies about the journal.  The tables are durable, so they know more than the journal.
sub write_rows
{
	my ($node, $from, $to) = @_;
	$node->sql("INSERT INTO t VALUES ($_, 'acknowledged')") foreach $from .. $to;
	return;
}

my $leader = $cluster->wait_for_leader;
$leader->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); SELECT quorum.replicate('t')});
$cluster->wait_applied;
{
	my ($victim) = $cluster->followers;
	$victim->{power_loss}->lie_about('/pgsql_tmp_journal/');
	write_rows($leader, 1, 20);
	$cluster->wait_applied;
	$victim->sql('CHECKPOINT');
	$victim->power_cut;
	$victim->{power_loss}->lie_about('');
	$victim->start;
	my $noticed = eval {
		QuorumCluster::wait_until('the node to notice', sub { ($victim->status('last_error IS NOT NULL') // '') eq 't' }, 30);
	};
	ok($noticed, 'a disk that lied about the journal: the node notices that it has forgotten') or diag($@);
	note($victim->sql('SELECT last_error FROM quorum.status'));
	unlike($victim->sql('SELECT role FROM quorum.status'), qr/^(?:leader|candidate|follower)$/, 'and does not vote');
	$cluster->write_until_ok("INSERT INTO t VALUES (21, 'without it') ON CONFLICT DO NOTHING");
	is($cluster->wait_for_leader(agreed_by => [ grep { $_ != $victim } $cluster->nodes ])->sql('SELECT count(*) FROM t'), 21,
		'the others have all that was acknowledged');
}

# ---- these_power_cuts_find_lost_syncs: every disk lies about everything, and all lose power: acknowledged rows are gone.  If they were
# ---- there, the tests above would prove nothing.
{
	my $liars = QuorumCluster->new(nodes => [ 'l1', 'l2', 'l3' ], power_loss => 1);
	my $first = $liars->wait_for_leader;
	$first->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); SELECT quorum.replicate('t')});
	write_rows($first, 1, 20);
	$liars->wait_applied;
	$_->sql('CHECKPOINT') foreach $liars->nodes;
	$_->{power_loss}->lie_about('/') foreach $liars->nodes;
	write_rows($first, 21, 40);
	$liars->wait_applied;
	$liars->power_cut([ $liars->nodes ]);
	$_->{power_loss}->lie_about('') foreach $liars->nodes;
	$_->start foreach $liars->nodes;
	my $found = eval { $liars->wait_for_leader->sql('SELECT count(*) FROM t') };
	my @errors = map { $_->status(q{coalesce(last_error, '')}) // '' } $liars->nodes;
	note('rows: ' . ($found // "none to be had: $@") . '; errors: ' . join(' | ', @errors));
	ok(!defined $found || $found < 40, 'disks that lied about everything: acknowledged rows are lost, or the cluster stands still');
	cmp_ok($found // 20, '>=', 20, 'but not what was durable before');
}

done_testing();
