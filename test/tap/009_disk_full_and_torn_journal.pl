# One node's journal has no more room, or is damaged: the others go on, the node says why it does not, and comes back by itself once the
# cause is gone.  What a crash can leave at a journal's end is cut, anything else is refused.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use Test::More;
use Time::HiRes qw(time);

# A file system of its own for the journal of each node, in a mount namespace of this test, so that nothing is left of it; room for all that
# this test writes.
my $own_mounts = ($ENV{QUORUM_NAMESPACES} || '') eq 'yes';
my $journal_megabytes = 250;

sub system_call
{
	my ($what, @arguments) = @_;
	my $result = syscall($arguments[0], @arguments[ 1 .. $#arguments ]);
	die "$what failed: $!\n" if $result < 0;
	return;
}

my %number_of = (POSIX::uname())[4] eq 'aarch64' ? (unshare => 97, mount => 40) : (unshare => 272, mount => 165);

sub leave_mount_namespace
{
	my ($new_namespace, $recursive, $private) = (0x20000, 0x4000, 0x40000);
	my ($none, $root) = ('none', '/');
	system_call('unshare', $number_of{unshare}, $new_namespace);
	system_call('making mounts private', $number_of{mount}, $none, $root, $none, $recursive | $private, 0);
	return;
}

sub mount_memory
{
	my ($directory, $megabytes) = @_;
	my ($type, $options) = ('tmpfs', "size=${megabytes}m,mode=0700");
	mkdir($directory, 0700) or die "$directory: $!\n";
	system_call("mounting $directory", $number_of{mount}, $type, $directory, $type, 0, $options);
	return;
}

# ---- the journal as it lies on disk; docs/journal-format.md --------------------------------------------------------

sub journal_directory { my ($node) = @_; return $node->data_dir . '/pg_quorum/pgsql_tmp_journal'; }

sub segments { my ($node) = @_; return sort glob(journal_directory($node) . '/segment_*'); }

# Offset and length of each record of a segment, in order.
sub records
{
	my ($path) = @_;
	my $bytes = PostgreSQL::Test::Utils::slurp_file($path);
	my ($offset, @found) = (4096);
	while ($offset + 72 <= length($bytes) && substr($bytes, $offset, 4) eq 'QREC')
	{
		my $length = 72 + unpack('N', substr($bytes, $offset + 8, 4));
		push @found, { offset => $offset, length => $length };
		$offset += int(($length + 7) / 8) * 8;
	}
	return @found;
}

# The last segment that has records, and these.
sub last_records
{
	my ($node) = @_;
	foreach my $path (reverse segments($node))
	{
		my @records = records($path);
		return ($path, @records) if @records;
	}
	die $node->name . ' has no journal';
}

sub overwrite
{
	my ($path, $offset, $bytes) = @_;
	open(my $file, '+<:raw', $path) or die "$path: $!\n";
	seek($file, $offset, 0);
	read($file, my $old, length($bytes));
	seek($file, $offset, 0);
	print $file $bytes;
	close($file);
	return $old;
}

# ---- a cluster with small disks ------------------------------------------------------------------------------------

my $cluster = QuorumCluster->new(nodes => 3, form => 0);
if ($own_mounts)
{
	leave_mount_namespace();
	foreach my $node ($cluster->nodes)
	{
		$node->stop;
		mount_memory($node->data_dir . '/pg_quorum', $journal_megabytes);
		$node->start;
	}
}
$cluster->form;
$cluster->wait_for_leader->sql(q{
	CREATE TABLE t (id int PRIMARY KEY, v text);
	SELECT quorum.replicate('t');
	INSERT INTO t SELECT i, 'first' FROM generate_series(1, 50) AS i});
$cluster->wait_applied;
my $next_id = 1000;

# About a megabyte that does not get smaller.
sub write_megabyte
{
	my ($id) = (++$next_id);
	return $cluster->write_until_ok(
		"INSERT INTO t SELECT $id, string_agg(md5(i::text || $id), '') FROM generate_series(1, 32768) AS i ON CONFLICT DO NOTHING");
}

# ---- a_full_disk_stops_one_node_only, and it recovers when there is room again
foreach my $role ('follower', 'leader')
{
	SKIP:
	{
		skip('a full disk needs mounts, and these root or sudo', 1) unless $own_mounts;
		my $leader = $cluster->wait_for_leader;
		my ($victim) = $role eq 'leader' ? $leader : grep { $_ != $leader } $cluster->nodes;
		my @others = grep { $_ != $victim } $cluster->nodes;
		my $log_start = -s $victim->logfile;
		my $ballast = $victim->data_dir . '/pg_quorum/ballast';
		open(my $file, '>', $ballast) or die "$ballast: $!\n";
		{
			no warnings 'closed';
			1 while syswrite($file, 'x' x 65536);
		}
		like("$!", qr/No space left/, "$role: the disk with its journal is full");
		close($file);

		# More than what is preallocated.
		my $longest = 0;
		foreach (1 .. 60)
		{
			my $seconds = write_megabyte();
			$longest = $seconds if $seconds > $longest;
			last if PostgreSQL::Test::Utils::slurp_file($victim->logfile, $log_start) =~ /ERROR:.*No space left on device/;
		}
		pass(sprintf('%s: the others take writes all the time, the slowest took %.2f s', $role, $longest));
		like(PostgreSQL::Test::Utils::slurp_file($victim->logfile, $log_start), qr/ERROR:.*No space left on device/, "$role: the log names the cause");
		my $now = $cluster->wait_for_leader(agreed_by => \@others);
		my $count = $now->sql('SELECT count(*) FROM t');
		is($_->query('SELECT 1')->{rows}, '1', $_->name . ' answers') foreach $cluster->nodes;
		my $says_why = eval {
			QuorumCluster::wait_until('status to say why', sub { ($victim->status('last_error') // '') =~ /No space left/ }, 10);
		};
		ok($says_why, "$role: quorum.status says why");

		unlink($ballast);
		my $since = time();
		$cluster->assert_same_digest('t', "$role: with room again the node catches up by itself");
		note(sprintf('after %.1f s', time() - $since));
		is($victim->sql('SELECT count(*) FROM t'), $count, "$role: and has all that was written meanwhile");
		QuorumCluster::wait_until('the error to be gone', sub { ($victim->status('last_error IS NULL') // '') eq 't' });
		$cluster->write_until_ok('DELETE FROM t WHERE id > 1000');
		$cluster->wait_applied;
	}
}

# ---- a_torn_tail_is_cut: a record was being written when the node died, so nobody was told that it is durable

# What stands behind the last whole record then.
sub random_bytes { my ($count) = @_; return join('', map { chr(int(rand(256))) } 1 .. $count); }

sub after { my ($record) = @_; return $record->{offset} + int(($record->{length} + 7) / 8) * 8; }

sub bytes_of
{
	my ($path, $record) = @_;
	return substr(PostgreSQL::Test::Utils::slurp_file($path), $record->{offset}, $record->{length});
}

sub log_lines_about_journal
{
	my ($node, $log_start) = @_;
	return join("\n", grep { /journal|DETAIL/ } split(/\n/, PostgreSQL::Test::Utils::slurp_file($node->logfile, $log_start)));
}

foreach my $tear (
	[ 'garbage', sub { my ($path, $last) = @_; overwrite($path, after($last), random_bytes(700)); } ],
	[ 'a part of a record', sub { my ($path, $last) = @_; overwrite($path, after($last), substr(bytes_of($path, $last), 0, 40)); } ],
	[ 'a record from elsewhere', sub { my ($path, $last) = @_; overwrite($path, after($last), bytes_of($path, $last)); } ])
{
	my ($what, $damage) = @$tear;
	my ($victim) = $cluster->followers;
	$cluster->write_until_ok('INSERT INTO t VALUES (' . ++$next_id . ", 'last') ON CONFLICT DO NOTHING");
	$cluster->wait_applied;
	$victim->kill9(all => 1);
	$victim->wait_for_remains;
	my ($path, @records) = last_records($victim);
	$damage->($path, $records[-1]);
	my $log_start = -s $victim->logfile;
	$victim->start;
	$cluster->wait_for_leader;
	my $log = log_lines_about_journal($victim, $log_start);
	like($log, qr/cutting a torn tail/, "$what behind the last record: the log says that it is cut");
	like($log, qr/\b@{[ after($records[-1]) ]}\b/, "$what behind the last record: and where");
	$cluster->write_until_ok('INSERT INTO t VALUES (' . ++$next_id . ", 'next') ON CONFLICT DO NOTHING");
	$cluster->assert_same_digest('t', "$what behind the last record: the node takes part as before");
}

# A record that was whole and durable once is never torn by a crash: 030_a_node_that_forgot.pl and the end of this file tell what becomes of that.

# ---- a_damaged_journal_is_refused: a byte that was durable is another one; the others go on, and nothing is changed
{
	my ($victim) = $cluster->followers;
	my @others = grep { $_ != $victim } $cluster->nodes;
	$victim->kill9(all => 1);
	$victim->wait_for_remains;
	my ($path, @records) = last_records($victim);
	my $middle = $records[ @records / 2 ];
	my $offset = $middle->{offset} + ($middle->{length} > 80 ? 76 : 20);
	my $old = overwrite($path, $offset, "\0");
	overwrite($path, $offset, chr(ord($old) ^ 4));
	my @before = map { -s $_ } segments($victim);
	my $log_start = -s $victim->logfile;
	$victim->start;
	QuorumCluster::wait_until('the node to say what is wrong', sub { ($victim->status(q{coalesce(last_error, '')}) // '') ne '' }, 20);
	my ($role, $error) = split(/\|/, $victim->sql('SELECT role, last_error FROM quorum.status'), 2);
	is($role, 'stopped', 'a node with a damaged journal takes no part');
	like($error, qr/journal|segment/, "quorum.status says why: $error");
	my ($segment) = $path =~ m{(segment_\w+)$};
	my $log = PostgreSQL::Test::Utils::slurp_file($victim->logfile, $log_start);
	like($log, qr/\b$segment\b/, 'the log names the file');
	like($log, qr/\b$middle->{offset}\b/, 'and the place in it');
	is($victim->query(q{SET quorum.read_consistency = 'local'; SELECT count(*) FROM t})->{sqlstate}, '', 'the instance itself runs');
	isnt($victim->query('INSERT INTO t VALUES (999999)')->{sqlstate}, '', 'and takes no write to a replicated table');

	my $seconds = $cluster->write_until_ok('INSERT INTO t VALUES (' . ++$next_id . ", 'without it') ON CONFLICT DO NOTHING");
	cmp_ok($seconds, '<', 20, sprintf('the others go on: a write after %.2f s', $seconds));
	is($cluster->wait_for_leader(agreed_by => \@others)->sql('SELECT has_quorum FROM quorum.status'), 't', 'they have a quorum');
	is_deeply([ map { -s $_ } segments($victim) ], \@before, 'nothing was cut');

	# Right again, it goes on by itself: the worker is started again and again.
	overwrite($path, $offset, $old);
	my $recovered = eval { QuorumCluster::wait_until('the node to follow', sub { ($victim->status('role') // '') eq 'follower' }, 60) };
	ok($recovered, 'with the byte put right the node follows again, without a hand') or diag($@);
	$cluster->assert_same_digest('t', 'and is the same as the others');
}

# ---- forgetting_is_noticed: the end of the journal is gone though others were told that it is durable.  A voter that forgot could agree to
# ---- the contrary of what it agreed to, so it must step aside and say so; that is better than to stand still without a word.
{
	my ($victim) = $cluster->followers;
	$cluster->write_until_ok('INSERT INTO t VALUES (' . ++$next_id . ", 'forgotten') ON CONFLICT DO NOTHING");
	$cluster->wait_applied;
	$victim->stop('fast');
	my ($path, @records) = last_records($victim);
	my $from = $records[-2]{offset};
	overwrite($path, $from, "\0" x (after($records[-1]) - $from));
	$victim->start;
	my $noticed = eval {
		QuorumCluster::wait_until('the node to notice', sub { ($victim->status(q{last_error IS NOT NULL}) // '') eq 't' }, 20);
	};
	ok($noticed, 'a node whose journal is behind its tables says so') or diag($@);
	note($victim->sql('SELECT role, last_error FROM quorum.status'));
	unlike($victim->sql('SELECT role FROM quorum.status'), qr/^(?:leader|candidate|follower)$/, 'and does not vote');
	my $seconds = $cluster->write_until_ok('INSERT INTO t VALUES (' . ++$next_id . ", 'without it') ON CONFLICT DO NOTHING");
	cmp_ok($seconds, '<', 20, sprintf('the others go on: a write after %.2f s', $seconds));
}

done_testing();
