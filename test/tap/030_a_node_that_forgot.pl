# P8: a node whose journal lost what it had promised is refused by the others before its first vote, says why, and votes no more: an old backup, a
# journal that was made anew, a disk that lied, a copy that runs beside its original.  What only a mark can tell is tried: in each case the
# node itself finds everything in order.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use Test::More;

my $cluster = QuorumCluster->new(nodes => 3, power_loss => 1);
my $next_id = 0;
my $acknowledged = 0;

sub journal_directory { my ($node) = @_; return $node->data_dir . '/pg_quorum/pgsql_tmp_journal'; }

sub write_rows
{
	my ($count) = @_;
	my $leader = $cluster->wait_for_leader(agreed_by => [ grep { $_->is_awake && !$_->{outside} } $cluster->nodes ]);
	foreach (1 .. $count)
	{
		$next_id++;
		$leader->sql("INSERT INTO t VALUES ($next_id, 'acknowledged')");
		$acknowledged++;
	}
	return;
}

sub copy_directory
{
	my ($from, $to) = @_;
	PostgreSQL::Test::Utils::system_or_bail('rm', '-rf', $to);
	PostgreSQL::Test::Utils::system_or_bail('cp', '-a', $from, $to);
	return;
}

sub is_refused
{
	my ($node, $name, $detail) = @_;
	my $noticed = eval {
		QuorumCluster::wait_until('the node to be refused',
			sub { ($node->status(q{coalesce(last_error, '')}) // '') =~ /has forgotten what it had promised/ }, 30);
	};
	ok($noticed, "$name: the node is refused and says so") or diag($node->sql('SELECT role, last_error FROM quorum.status'));
	like($node->sql('SELECT last_error FROM quorum.status'), $detail, "$name: and why");
	is($node->sql('SELECT role FROM quorum.status'), 'stopped', "$name: it takes no part");
	is($node->query('INSERT INTO t VALUES (-1)')->{sqlstate}, '25006', "$name: it takes no writes");
	is($node->query('SELECT count(*) FROM t')->{sqlstate}, '25006', "$name: nor linearizable reads");
	is($node->query(q{SET quorum.read_consistency = 'local'; SELECT count(*) FROM t})->{sqlstate}, '', "$name: local reads go on");
	return;
}

# The others do without it, and it gives no vote to one of them alone.
sub gives_no_vote
{
	my ($node, $name) = @_;
	$node->{outside} = 1;
	$cluster->write_until_ok('INSERT INTO t VALUES (' . ++$next_id . ", 'without it') ON CONFLICT DO NOTHING");
	my $leader = $cluster->wait_for_leader;
	my ($other) = grep { $_ != $leader && $_ != $node } $cluster->nodes;
	$leader->kill9;
	QuorumCluster::wait_until('the leader to be missed', sub { ($other->status('has_quorum') // '') eq 'f' }, 30);
	QuorumCluster::wait_until('the other one to ask for votes',
		sub { ($other->status('role') // '') eq 'candidate' }, 30);
	is($other->query("INSERT INTO t VALUES (-2)", timeout => 20)->{sqlstate}, '25006', "$name: with it and one other there is no quorum");
	$leader->start;
	$cluster->write_until_ok('INSERT INTO t VALUES (' . ++$next_id . ", 'two are enough') ON CONFLICT DO NOTHING");
	return;
}

sub comes_back
{
	my ($node, $name) = @_;
	delete $node->{outside};
	$node->start;
	my $follows = eval { $cluster->wait_applied; 1 };
	ok($follows, "$name: with its own journal back it takes part again, without a hand") or diag($@);
	return;
}

# ---- a_journal_that_was_made_anew_is_refused: nothing is in the tables yet, so only the peers know.
my $leader = $cluster->wait_for_leader;
{
	my ($victim) = $cluster->followers;
	$victim->stop('fast');
	my $kept = $victim->basedir . '/kept_journal';
	copy_directory(journal_directory($victim), $kept);
	unlink(glob(journal_directory($victim) . '/segment_*'), glob(journal_directory($victim) . '/chosen_index*'));
	$victim->start;
	my $noticed = eval {
		QuorumCluster::wait_until('the node to be refused', sub { ($victim->status(q{coalesce(last_error, '')}) // '') =~ /made anew/ }, 30);
	};
	ok($noticed, 'a journal that was made anew: the node is refused and says so') or diag($victim->sql('SELECT role, last_error FROM quorum.status'));
	$victim->stop('fast');
	copy_directory($kept, journal_directory($victim));
	comes_back($victim, 'a journal that was made anew');
}

$leader = $cluster->wait_for_leader;
$leader->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); SELECT quorum.replicate('t')});
write_rows(5);

# ---- who_forgot_nothing_is_never_refused: crashes and power cuts, of all and of one
{
	$cluster->power_cut([ $cluster->nodes ], keep => 'random', seed => 7);
	$_->start foreach $cluster->nodes;
	write_rows(3);
	$cluster->wait_applied;
	my ($victim) = $cluster->followers;
	$victim->kill9(all => 1);
	$victim->start;
	write_rows(3);
	$cluster->assert_same_digest('t', 'crashes and power cuts: everybody is let in again');
	is(join(',', map { $_->sql(q{SELECT coalesce(last_error, '')}.' FROM quorum.status') } $cluster->nodes), ',,', 'and has no complaint');
}

# ---- an_old_copy_is_refused: a backup of the whole data directory, or a volume's snapshot that was restored
{
	my ($victim) = $cluster->followers;
	my $backup = $victim->basedir . '/backup';
	my $current = $victim->basedir . '/current';
	$victim->stop('fast');
	copy_directory($victim->data_dir, $backup);
	$victim->start;
	$cluster->wait_applied;
	write_rows(5);
	$cluster->wait_applied;
	$victim->stop('fast');
	copy_directory($victim->data_dir, $current);
	copy_directory($backup, $victim->data_dir);
	$victim->start;
	is_refused($victim, 'an old copy', qr/start number \d+|had been durable up to/i);
	gives_no_vote($victim, 'an old copy');

	# The peers remember beyond their own crashes, also those that never led.
	$victim->stop('fast');
	copy_directory($backup, $victim->data_dir);
	$leader = $cluster->wait_for_leader;
	my ($other) = grep { $_ != $leader && $_ != $victim } $cluster->nodes;
	$_->stop('fast') foreach $leader, $other;
	$other->start;
	$victim->start;
	is_refused($victim, 'an old copy beside a follower that was started anew', qr/start number \d+|had been durable up to/i);
	$leader->start;
	$victim->stop('fast');
	copy_directory($current, $victim->data_dir);
	comes_back($victim, 'an old copy');
	$cluster->assert_same_digest('t', 'an old copy: all nodes are the same in the end');
}

# ---- a_copy_beside_its_original_is_refused: and the original is not disturbed
{
	my ($victim) = $cluster->followers;
	my $copy = QuorumNode->new('copy');
	$victim->stop('fast');
	copy_directory($victim->data_dir, $copy->data_dir);
	$copy->append_conf('postgresql.conf', 'port = ' . $copy->port);
	$victim->start;
	$cluster->wait_applied;
	$copy->start;
	is_refused($copy, 'a copy beside its original', qr/one is a copy of the other/);
	write_rows(3);
	$cluster->wait_applied;
	like($victim->status('role'), qr/^(?:follower|leader)$/, 'a copy beside its original: the original goes on');
	$copy->stop('fast');
	$cluster->assert_same_digest('t', 'a copy beside its original: all members are the same');
}

# ---- a_disk_that_lied_is_noticed: everything that it had confirmed is gone, tables and journal alike
{
	my ($victim) = $cluster->followers;
	my $kept = $victim->basedir . '/kept';
	$victim->{power_loss}->lie_about('/');
	write_rows(20);
	$cluster->wait_applied;
	$victim->power_cut(keep => 'none');
	$victim->{power_loss}->lie_about('');
	$victim->start;
	is_refused($victim, 'a disk that lied', qr/Its journal ended at \d+\/\d+ when it started, but had been durable up to \d+\/\d+/);
	gives_no_vote($victim, 'a disk that lied');

	# Its tables have lost what the journal has: what is left of them is kept.
	my $name = $victim->name;
	my $member = $cluster->wait_for_leader;
	$member->sql("SELECT quorum.remove_node('$name')", timeout => 90);
	$victim->sql('SELECT quorum.leave_cluster(force => true)', timeout => 90);
	my $rows = $victim->sql('SELECT count(*) FROM t');
	my $join = $victim->query("SELECT quorum.join_cluster('$name', '" . $victim->peer_conninfo . "', via => '"
		. $member->peer_conninfo(user => 'quorum_operator') . "', keep_rows => true)", timeout => 120);
	ok($join->{ok}, 'a disk that lied: the node joins as new') or diag($join->{stderr});
	is($victim->sql('SELECT rows_kept, rows_copied >= 20, rows_deleted FROM quorum.snapshot_progress'), "$rows|t|0",
		'a disk that lied: the rows that it has not lost are kept, the others are copied');
	delete $victim->{outside};
	write_rows(3);
	$cluster->wait_applied;
	like($victim->status('role'), qr/^(?:follower|leader)$/, 'a disk that lied: it takes part again');
}

$cluster->assert_same_digest('t', 'all are the same in the end');
is($cluster->wait_for_leader->sql('SELECT count(*) FROM t WHERE v = $$acknowledged$$'), $acknowledged, 'and have all that was acknowledged');
done_testing();
