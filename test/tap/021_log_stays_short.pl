# The log is trimmed behind what its members have: journal and chosen log stay short while writes go on, a restart begins at the log state and
# decides everything as before, a crash in the middle of trimming leaves a node that starts, and one that lost the state takes no part.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use File::Copy qw(copy);
use File::Path qw(make_path remove_tree);
use IPC::Run;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use WaitingSession;
use Test::More;

my $MB = 1024 * 1024;
my $cluster = QuorumCluster->new(nodes => 3, conf => <<'CONF');
quorum.log_keep_size = '16MB'
quorum.log_retention_size = '64MB'
quorum.log_level = log
CONF

# ---- what the tests look at

sub journal_directory { my ($node) = @_; return $node->data_dir . '/pg_quorum/pgsql_tmp_journal'; }

sub files
{
	my ($node, $prefix) = @_;
	return sort glob(journal_directory($node) . "/$prefix*");
}

sub bytes_of_files { my $sum = 0; $sum += -s $_ // 0 foreach @_; return $sum; }

# KB of a worker, resident and its own.
sub memory_of
{
	my ($node, $worker) = @_;
	my $status = PostgreSQL::Test::Utils::slurp_file('/proc/' . $node->worker_pid($worker) . '/status');
	my ($kb) = $status =~ /^RssAnon:\s+(\d+)/m;
	return $kb;
}

sub stat_of { my ($node, $column) = @_; return $node->sql("SELECT $column FROM quorum.stats"); }

# ---- load

my $script_number = 0;

sub pgbench
{
	my ($node, $sql, $clients, $transactions) = @_;
	my $file = "$PostgreSQL::Test::Utils::tmp_check/script." . ++$script_number . '.sql';
	open(my $handle, '>', $file) or die "$file: $!";
	print $handle $sql;
	close($handle);
	my ($output, $errors) = ('', '');
	IPC::Run::run(
		[ 'pgbench', '-n', '-c', $clients, '-j', 2, '-t', int($transactions / $clients) + 1, '--max-tries=100', '-f', $file, $node->connstr('postgres') ],
		'>', \$output, '2>', \$errors, IPC::Run::timeout(300)) or die "pgbench: $output\n$errors";
	return;
}

# So many megabytes of the journal: 40 kB by a transaction.
sub fill
{
	my ($megabytes, %params) = @_;
	my $node = $params{on} || $cluster->wait_for_leader;
	pgbench($node, "\\set id random(1, 200)\nUPDATE big SET v = repeat(md5(random()::text), 1250) WHERE id = :id;\n", 4, $megabytes * 25);
	return;
}

sub fill_with_small_ones
{
	my ($count) = @_;
	pgbench($cluster->wait_for_leader, "\\set id random(1, 2000)\nUPDATE small SET v = v + 1 WHERE id = :id;\n", 16, $count);
	return;
}

$cluster->wait_for_leader->sql(<<'SQL');
CREATE TABLE big (id int PRIMARY KEY, v text);
ALTER TABLE big ALTER v SET STORAGE EXTERNAL;
CREATE TABLE small (id int PRIMARY KEY, v bigint);
SELECT quorum.replicate('big'); SELECT quorum.replicate('small');
INSERT INTO big SELECT i, '' FROM generate_series(1, 200) AS i;
INSERT INTO small SELECT i, 0 FROM generate_series(1, 2000) AS i;
SQL

# Waits until the node says why it takes no part; the others go on, and so does the instance itself.
sub assert_takes_no_part
{
	my ($node, $pattern, $name) = @_;
	QuorumCluster::wait_until('the node to say what is wrong', sub { ($node->status(q{coalesce(last_error, '')}) // '') ne '' }, 30);
	my ($role, $error) = split(/\|/, $node->sql('SELECT role, last_error FROM quorum.status'), 2);
	is($role, 'stopped', "$name: the node takes no part");
	like($error, $pattern, "and says why: $error");
	my $seconds = $cluster->write_until_ok('UPDATE small SET v = v + 1 WHERE id = 9');
	cmp_ok($seconds, '<', 20, 'the others go on');
	is($node->query(q{SET quorum.read_consistency = 'local'; SELECT count(*) FROM small})->{sqlstate}, '', 'the instance itself runs');
	return;
}

sub assert_takes_part_again
{
	my ($node, $name) = @_;
	QuorumCluster::wait_until('the node to follow', sub { ($node->status('role') // '') eq 'follower' }, 60);
	$cluster->assert_same_digest('small', $name);
	return;
}

sub copy_files
{
	my ($target, @files) = @_;
	remove_tree($target);
	make_path($target);
	copy($_, "$target/" . ($_ =~ m{([^/]+)\z})[0]) or die "$_: $!" foreach @files;
	return;
}

# From a copy into the journal's directory.
sub place
{
	my ($node, @copies) = @_;
	foreach my $file (@copies)
	{
		my $target = journal_directory($node) . '/' . ($file =~ m{([^/]+)\z})[0];
		copy($file, $target) or die "$target: $!";
		chmod 0600, $target;
	}
	return;
}

# ---- a_journal_that_lost_its_end_is_noticed, though a log state covers what is lost; while it is whole, it needs no state
{
	my ($node) = $cluster->followers;
	my $copies = "$PostgreSQL::Test::Utils::tmp_check/whole_journal";
	$node->append_conf('postgresql.conf', "quorum.log_keep_size = '256MB'\nquorum.log_retention_size = '256MB'\nquorum.log_retention_age = 0\n");
	$node->reload;
	fill(60);
	QuorumCluster::wait_until('a log state', sub { stat_of($node, 'log_state_index') > 0 }, 60);
	$cluster->wait_applied;
	is(stat_of($node, 'first_held_index'), 1, 'the log is whole: as much of it is kept as is set');
	$node->stop('fast');
	my @segments = files($node, 'segment_');
	copy_files($copies, @segments);
	foreach my $segment (@segments[1 .. $#segments])
	{
		open(my $handle, '+<:raw', $segment) or die $!;
		seek($handle, 4096, 0);
		print $handle "\0" x ((-s $segment) - 4096);
		close($handle);
	}
	$node->start;
	assert_takes_no_part($node, qr/forgotten/, 'a journal that lost its end');
	$node->stop('fast');
	place($node, glob("$copies/*"));
	rename(journal_directory($node) . '/log_state', "$copies/log_state") or die $!;
	$node->start;
	assert_takes_part_again($node, 'a whole journal without a log state is replayed');
	is(stat_of($node, 'first_held_index'), 1, 'from its beginning');
	$node->append_conf('postgresql.conf', "quorum.log_keep_size = '16MB'\nquorum.log_retention_size = '64MB'\n");
	$node->reload;
}

# ---- the_log_stays_short_while_writes_go_on, in files and in memory
{
	fill_with_small_ones(20_000);
	fill(100);
	my @workers = ('consensus', 'compactor', 'apply');
	my %memory_before = map { my $node = $_; map { ($node->name . " $_" => memory_of($node, $_)) } @workers } $cluster->nodes;
	my %longest;
	foreach my $round (1 .. 5)
	{
		fill_with_small_ones(2_000);
		fill(25);
		foreach my $node ($cluster->nodes)
		{
			my $bytes = bytes_of_files(files($node, 'segment_'));
			$longest{ $node->name } = $bytes if $bytes > ($longest{ $node->name } // 0);
		}
	}
	$cluster->wait_applied;
	foreach my $node ($cluster->nodes)
	{
		my $name = $node->name;
		cmp_ok($longest{$name}, '<=', 112 * $MB, "$name: the journal never had more than 112 MB, of 250 that were written");
		note("$name: at most " . $longest{$name} / $MB . ' MB of journal');
		cmp_ok(stat_of($node, 'first_held_index'), '>', 16384, "$name: the log begins behind the first file of the chosen log");
		my @chosen = files($node, 'chosen_index');
		unlike("@chosen", qr/chosen_index_0000000000000001\b/, "$name: which is gone");
		# What is published is a moment old, and trimming may be under way.
		my $is_told = eval {
			QuorumCluster::wait_until('the size to be published', sub { stat_of($node, 'journal_bytes') == bytes_of_files(files($node, 'segment_')) }, 10);
			1;
		};
		ok($is_told, "$name: quorum.stats tells the journal's size");
		cmp_ok(stat_of($node, 'log_state_index'), '>=', stat_of($node, 'first_held_index') - 1, "$name: nothing is dropped that the log state does not cover");
		is($node->sql('SELECT min(log_index) = (SELECT first_held_index FROM quorum.stats) FROM quorum.log'), 't', "$name: quorum.log shows what is held");
		foreach my $worker (@workers)
		{
			my $growth = memory_of($node, $worker) - $memory_before{"$name $worker"};
			cmp_ok($growth, '<', 12 * 1024, "$name: the $worker worker has not grown much") or diag("by $growth kB");
		}
	}
	$cluster->assert_same_digest('big', 'all nodes are the same');
}

# ---- what_is_gone_is_said_to_be_gone
{
	my $leader = $cluster->wait_for_leader;
	my $result = $leader->query('SELECT quorum.log_state(1)');
	is($result->{sqlstate}, '55000', 'a state of the log that is gone: an error of its own');
	like($result->{stderr}, qr/HINT/, 'with a hint');
	$result = $leader->query(q{SELECT * FROM quorum.outcome('1.1.1.0123456789abcdef')});
	is($result->{sqlstate}, '55000', 'an outcome that may have been in what is gone is not made up');
	like($result->{stderr}, qr/no longer known/, 'but said to be unknown');
	my $held = stat_of($leader, 'log_state_index');
	is($leader->sql("SELECT outcome FROM quorum.outcome('1.1.4000000000.0123456789abcdef.$held')"), 'rejected',
		'one that can only stand in what is held is found out');
}

# ---- the_log_state_is_the_same_on_all_nodes, whoever computes it and from which file
{
	fill_with_small_ones(100);
	my $index = $cluster->wait_applied;
	my %states = map { $_->name => $_->sql("SELECT md5(substring(s from 57 for length(s) - 60)) FROM (SELECT quorum.log_state($index) AS s) AS x") }
	  $cluster->nodes;
	my %different = map { $_ => 1 } values %states;
	is(scalar(keys %different), 1, 'the state of the log at an index is the same on all nodes') or diag(explain(\%states));
}

# All verdicts that two nodes still hold.
sub assert_same_verdicts
{
	my ($name) = @_;
	$cluster->wait_applied;
	my ($first) = sort { $b <=> $a } map { stat_of($_, 'first_held_index') } $cluster->nodes;
	my $last = $cluster->wait_for_leader->status('applied_index');
	my %verdicts = map {
		$_->name => $_->sql("SELECT md5(string_agg(concat_ws(' ', log_index, origin_node, incarnation, sequence, verdict, conflict_index), ',' ORDER BY log_index))"
			  . " FROM quorum.log_entries($first, $last)")
	} $cluster->nodes;
	my %different = map { $_ => 1 } values %verdicts;
	is(scalar(keys %different), 1, $name) or diag(explain(\%verdicts));
	return;
}

# ---- a_restart_begins_at_the_log_state_and_decides_as_before: a transaction that saw what is before the state comes after it
foreach my $round (0, 1)
{
	my $leader = $cluster->wait_for_leader;
	my ($asks, $restarts) = ($cluster->followers)[ $round ? (1, 0) : (0, 1) ];
	my $session = WaitingSession->new($asks);
	$session->run('BEGIN; UPDATE small SET v = -1 WHERE id = 7');
	$asks->without_apply(sub {
		$leader->sql('UPDATE small SET v = 0 WHERE id = 7');
		my $winner = $leader->sql('SELECT chosen_index FROM quorum.status');
		fill(45, on => $leader);
		QuorumCluster::wait_until('a log state', sub { stat_of($restarts, 'log_state_index') > $winner }, 60);
		$restarts->kill9(all => 1);
		$restarts->start;
		QuorumCluster::wait_until($restarts->name . ' to be back', sub { ($restarts->status('has_quorum') // '') eq 't' }, 60);
		$cluster->write_until_ok('UPDATE small SET v = 5 WHERE id = 5');
		$session->send('COMMIT');
		QuorumCluster::wait_until('the verdict', sub { $session->is_done }, 60);
	});
	like($session->error, qr/40001/, 'the transaction that saw an older row is rejected');
	$session->finish;
	$cluster->assert_same_digest('small', 'on all nodes');
	my $rejected = $asks->sql(q{SELECT max(log_index) FROM quorum.log WHERE verdict = 'rejected'});
	foreach my $node ($cluster->nodes)
	{
		is($node->sql("SELECT verdict || ' ' || origin_node FROM quorum.log_entries($rejected, $rejected)"), 'rejected ' . $asks->name,
			$node->name . ' says so' . ($node == $restarts ? ', which began at the log state' : ''));
	}
}
{
	my $leader = $cluster->wait_for_leader;
	$leader->kill9(all => 1);
	$leader->start;
	$cluster->write_until_ok('UPDATE small SET v = 1 WHERE id = 7');
	assert_same_verdicts('all verdicts are the same on all nodes');
	$cluster->assert_same_digest('big', 'and so are the rows');
}

# ---- a_short_outage_is_repaired_by_the_log
{
	my ($away) = $cluster->followers;
	$away->kill9(all => 1);
	fill(8);
	$away->start;
	$cluster->assert_same_digest('big', 'a node that was away for a short time has caught up');
	is($away->status('coalesce(last_error, $$none$$)'), 'none', 'without a word');
}

# ---- a_state_of_another_node_is_taken_over iff the tables are exactly where it ends: they were copied together with it
foreach my $behind (1, 0)
{
	my ($node) = $cluster->followers;
	my $leader = $cluster->wait_for_leader;
	$cluster->write_until_ok('UPDATE small SET v = v + 1 WHERE id = 10') foreach 0 .. $behind;
	my $index = $cluster->wait_applied;
	$node->stop('fast');
	my $path = journal_directory($node) . '/log_state.incoming';
	my $of = $index - $behind;
	my $state = pack('H*', $leader->sql("SELECT encode(quorum.log_state($of), 'hex')"));
	open(my $handle, '>:raw', $path) or die "$path: $!";
	print $handle $state;
	close($handle);
	chmod 0600, $path;
	$node->start;
	$cluster->write_until_ok('UPDATE small SET v = v + 1 WHERE id = 11');
	$cluster->assert_same_digest('small', 'with a state of ' . ($behind ? 'an entry before' : 'exactly') . ' where the tables are, the node follows');
	ok(!-e $path, 'the file has been settled');
	my $held = stat_of($node, 'first_held_index');
	cmp_ok($held, $behind ? '<=' : '==', $behind ? $index : $index + 1, $behind ? 'as a remnant: the log is held from ' . $held : 'the log before it is not held');
	next if $behind;
	is(stat_of($node, 'log_state_index'), $index, 'it is the log state from now on');
	$node->kill9(all => 1);
	$node->start;
	$cluster->assert_same_digest('small', 'and after a crash');
	is(stat_of($node, 'first_held_index'), $index + 1, 'where the log begins is still known');
}

# ---- crash_while_trimming: what a crash between two steps leaves is put together from copies made before and after; the node starts each time

# Sets how much of the log is kept in any case; the longest is as much.
sub keep
{
	my ($node, $megabytes) = @_;
	my $retention = $megabytes > 64 ? $megabytes : 64;
	$node->append_conf('postgresql.conf', "quorum.log_keep_size = '${megabytes}MB'\nquorum.log_retention_size = '${retention}MB'\n");
	$node->reload if $node->is_running;
	return;
}

# What is in the copies and no longer in the directory.
sub dropped
{
	my ($node, $copies, $prefix) = @_;
	return grep { !-e journal_directory($node) . '/' . ($_ =~ m{([^/]+)\z})[0] } sort glob("$copies/$prefix*");
}

foreach my $step ('a log state half written', 'the last segment', 'segments, and files of the chosen log')
{
	my ($node) = $cluster->followers;
	my $copies = "$PostgreSQL::Test::Utils::tmp_check/before_trimming";
	my $prefix = $step =~ /files/ ? 'chosen_index' : 'segment_';
	keep($node, 256);
	fill_with_small_ones(17_000) if $step =~ /files/;
	my $index = $cluster->wait_applied;
	fill(50);
	QuorumCluster::wait_until('a log state', sub { stat_of($node, 'log_state_index') > $index }, 60);
	$node->stop('fast');
	copy_files($copies, grep { -f } glob(journal_directory($node) . '/*'));
	keep($node, 16);
	$node->start;
	QuorumCluster::wait_until('the log to be trimmed', sub { scalar(dropped($node, $copies, $prefix)) }, 60);
	$node->kill9(all => 1);
	$node->wait_for_remains;
	my @segments = dropped($node, $copies, 'segment_');
	my @chosen = dropped($node, $copies, 'chosen_index');
	ok(scalar(@segments), 'segments were dropped');
	ok(scalar(@chosen), 'files of the chosen log were dropped') if $step =~ /files/;
	place($node, $segments[-1]) if $step eq 'the last segment';
	place($node, @segments, @chosen) if $step =~ /files/;
	if ($step =~ /half/)
	{
		my $state = PostgreSQL::Test::Utils::slurp_file(journal_directory($node) . '/log_state');
		open(my $handle, '>:raw', journal_directory($node) . '/log_state.tmp') or die $!;
		print $handle substr($state, 0, length($state) / 2);
		close($handle);
	}
	$node->start;
	$cluster->wait_for_leader;
	$cluster->write_until_ok('UPDATE small SET v = v + 1 WHERE id = 8');
	$cluster->assert_same_digest('small', "a crash that left: $step");
	my %gone = map { $_ => 1 } dropped($node, $copies, '');
	is_deeply([ grep { !$gone{$_} } @segments, @chosen ], [], 'what was to go is gone');
	assert_same_verdicts('and the verdicts are the same');
}

# ---- a_lost_log_state_is_noticed: with a trimmed journal the node takes no part, says why, and goes on when it is there again
foreach my $loss ('missing', 'damaged', 'an older one')
{
	my ($node) = $cluster->followers;
	my $path = journal_directory($node) . '/log_state';
	my $copies = "$PostgreSQL::Test::Utils::tmp_check/kept_log_state";
	my $older = "$PostgreSQL::Test::Utils::tmp_check/older_log_state";
	if ($loss eq 'an older one')
	{
		copy_files($older, $path);
		my $index = stat_of($node, 'log_state_index');
		foreach my $attempt (1 .. 20)
		{
			last if stat_of($node, 'first_held_index') > $index + 1;
			fill(20);
		}
	}
	$cluster->wait_applied;
	$node->stop('fast');
	copy_files($copies, $path);
	unlink($path);
	place($node, "$older/log_state") if $loss eq 'an older one';
	if ($loss eq 'damaged')
	{
		my $state = PostgreSQL::Test::Utils::slurp_file("$copies/log_state");
		substr($state, length($state) / 2, 1) ^= "\x10";
		open(my $handle, '>:raw', $path) or die $!;
		print $handle $state;
		close($handle);
		chmod 0600, $path;
	}
	$node->start;
	assert_takes_no_part($node, qr/log/, "log state $loss");
	$node->stop('fast');
	place($node, "$copies/log_state");
	$node->start;
	assert_takes_part_again($node, 'with the state put back it follows again');
}

# ---- a_member_that_is_away_does_not_hold_the_disk_hostage
{
	my ($away, $stays) = $cluster->followers;
	my $leader = $cluster->wait_for_leader;
	$away->kill9(all => 1);
	my $longest = 0;
	foreach my $round (1 .. 6)
	{
		fill(25);
		foreach my $node ($leader, $stays)
		{
			my $bytes = bytes_of_files(files($node, 'segment_'));
			$longest = $bytes if $bytes > $longest;
		}
	}
	cmp_ok($longest, '<=', 128 * $MB, 'of 150 MB that a member lacks, the journal keeps what retention allows');
	note('at most ' . $longest / $MB . ' MB');

	# what is left of it is too old from now on
	$leader->append_conf('postgresql.conf', "quorum.log_retention_age = '1s'\n");
	$leader->reload;
	my $shorter = eval { QuorumCluster::wait_until('the log to be trimmed', sub { stat_of($leader, 'journal_bytes') <= 48 * $MB }, 60) };
	ok($shorter, 'what is older than retention allows is dropped, too') or diag($@);
	my $index = stat_of($leader, 'first_held_index') - 1;
	is($leader->query("SELECT * FROM quorum.log_entries($index, $index)")->{rows}, '', 'and no longer shown');
}

# Wherever the WAL happened to end when a log state was made, at the very end of a page too.
unlike(slurp_file($_->logfile), qr/xlog flush request/, $_->name . ': the WAL was flushed up to what there is of it') foreach $cluster->nodes;

done_testing();
