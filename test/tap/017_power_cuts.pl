# Power cuts under load, one node or all of them: what was not synced is really lost, and what was acknowledged is there.  The same with
# disks that lie about their syncs shows what these cuts would find.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use IPC::Run;
use QuorumCluster;
use FaultLoad;
use FaultRounds;
use Test::More;

my $cluster = QuorumCluster->new(nodes => 3, power_loss => 1);

# ---- acknowledged_writes_survive_power_cuts: of the leader, a follower, all; all is lost that was not synced, or a part; then by lot.
# ---- The disks are slow when it happens, so that many a write waits for its sync: one that was acknowledged before that is lost.
my $load = FaultLoad->new($cluster, clients => 4);
my $rounds = FaultRounds->new($cluster, $load, kinds => [ FaultRounds::power_cuts() ]);
$load->start;
$load->wait_for_writes(50);
foreach my $keep ('none', 'random')
{
	foreach my $whom ('the leader', 'a follower', 'all nodes')
	{
		my $leader = $cluster->wait_for_leader;
		my ($follower) = grep { $_ != $leader } $cluster->nodes;
		my @victims = $whom eq 'the leader' ? ($leader) : $whom eq 'a follower' ? ($follower) : $cluster->nodes;
		$_->{power_loss}->slow_syncs(20_000) foreach $cluster->nodes;
		$load->wait_for_writes(30);
		my @done = $cluster->power_cut(\@victims, keep => $keep, seed => $rounds->lot(2**31));
		note("power cut of $whom, survivors: $keep; " . join('; ', @done));
		$_->{power_loss}->slow_syncs(0) foreach $cluster->nodes;
		$load->wait_for_writes(20) if @victims == 1;
		$_->start foreach @victims;
		$load->wait_for_writes(100);
	}
}
$rounds->run($ENV{ROUNDS} || 3);
$load->wait_for_writes(50);
$load->stop;
$rounds->report;
$load->check(least_acknowledged => 500);

my %counters = ($cluster->nodes)[0]->{power_loss}->counters;
cmp_ok($counters{syncs}, '>', 100, 'the syncs of the first node were watched');
note(join(', ', map { "$_ $counters{$_}" } sort keys %counters));

# ---- a_new_table_is_durable_at_once_on_each_node, not only when the log is applied again; on the node that starts here nothing applies it
{
	my ($follower) = $cluster->followers;
	$cluster->wait_for_leader->sql(q{CREATE TABLE fresh (id int PRIMARY KEY); SELECT quorum.replicate('fresh')});
	$cluster->wait_applied;
	$cluster->power_cut([$follower], keep => 'none');
	$follower->append_conf('postgresql.conf', "quorum.database = 'template1'\n");
	$follower->start;
	is($follower->sql(q{SELECT to_regclass('fresh') IS NOT NULL}), 't', 'a table that was replicated is there after a power cut');
	$follower->append_conf('postgresql.conf', "quorum.database = 'postgres'\n");
	$follower->restart;
	$cluster->wait_for_leader;
	$cluster->wait_applied;
}

# ---- large_transactions_survive_power_cuts: half a megabyte each, so that segments of the journal are made, filled and left all the time

# Inserts one row after the other, and prints the number of each one that was acknowledged.
sub start_large_writes
{
	my ($node, $first, $count) = @_;
	my $script = join('', map {
		"INSERT INTO large SELECT $_, v, md5(v) FROM"
		  . " (SELECT string_agg(md5(i::text || $_), '') AS v FROM generate_series(1, 16384) AS i) AS made;\n\\echo $_\n"
	} $first .. $first + $count - 1);
	my $file = "$PostgreSQL::Test::Utils::tmp_check/large.$$.sql";
	open(my $handle, '>', $file) or die "$file: $!";
	print $handle $script;
	close($handle);
	my $output = '';
	my $run = IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-f', $file, '-d', $node->connstr('postgres') ],
		'<', '/dev/null', '>', \$output, '2>', '/dev/null');
	return { run => $run, output => \$output };
}

{
	my $first = 1;
	my @acknowledged;
	$cluster->wait_for_leader->sql(q{CREATE TABLE large (id int PRIMARY KEY, v text, check_sum text); SELECT quorum.replicate('large')});
	$cluster->wait_applied;
	foreach my $keep ('none', 'random')
	{
		my $writes = start_large_writes($cluster->wait_for_leader, $first, 1000);
		my $wanted = 30 + $rounds->lot(15);
		$writes->{run}->pump until (() = ${ $writes->{output} } =~ /\n/g) >= $wanted;
		my @done = $cluster->power_cut([ $cluster->nodes ], keep => $keep, seed => $rounds->lot(2**31));
		eval { $writes->{run}->finish };
		push @acknowledged, split(/\n/, ${ $writes->{output} });
		note("large transactions, survivors: $keep; " . join('; ', @done));
		$_->start foreach $cluster->nodes;
		$cluster->assert_same_digest('large', 'large transactions are the same on all nodes');
		$first += 1000;
	}
	my %there = map { split(/\|/, $_) } split(/\n/, $cluster->wait_for_leader->sql('SELECT id, md5(v) = check_sum FROM large'));
	is_deeply([ grep { ($there{$_} // '') ne 't' } @acknowledged ], [], scalar(@acknowledged) . ' acknowledged large rows are there, and whole');
	is_deeply([ grep { $there{$_} ne 't' } keys %there ], [], 'and no other one is broken');
	my @segments = glob(($cluster->nodes)[0]->data_dir . '/pg_quorum/pgsql_tmp_journal/segment_*');
	cmp_ok(scalar(@segments), '>', 2, 'the journal has gone over several segments');
}

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
