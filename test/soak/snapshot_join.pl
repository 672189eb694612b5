# A node joins a cluster of three that holds many rows and is written to, and is killed at random moments meanwhile: it ends whole.  Reports rows/s of
# the copy and what the load had before, meanwhile and afterwards.
#
#	MEGABYTES=2000 KILLS=10 SEED=n PG_CONFIG=... tools/check-tap test/soak/snapshot_join.pl
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/../tap";
use IPC::Run;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use Test::More;
use Time::HiRes qw(time usleep);

my $megabytes = $ENV{MEGABYTES} || 200;
my $kills = $ENV{KILLS} // 10;
my $seed = $ENV{SEED} || time;
srand($seed);
note("MEGABYTES=$megabytes KILLS=$kills SEED=$seed");

# The log that is written during a copy has to be kept: the retention is as large as the tables.
my $conf = "quorum.log_keep_size = '32MB'\nquorum.log_retention_size = '" . ($megabytes + 512) . "MB'\nshared_buffers = 128MB\nmax_wal_size = '8GB'\n"
  . "checkpoint_timeout = '30min'\nmaintenance_work_mem = '256MB'\n";
my $cluster = QuorumCluster->new(nodes => 3, conf => $conf);
my $leader = $cluster->wait_for_leader;

# About 280 bytes of a row, its index included, in the heap; a quarter of them in each table.
my $rows = int($megabytes * 1024 * 1024 / 280 / 4);
foreach my $t (1 .. 4)
{
	$leader->sql("CREATE TABLE t$t (id int PRIMARY KEY, k int NOT NULL, v text NOT NULL); CREATE INDEX ON t$t (k);"
		. "INSERT INTO t$t SELECT i, i * 7 % 100003, repeat(md5(i::text), 6) FROM generate_series(1, $rows) AS i", timeout => 1200);
	$leader->sql("SELECT quorum.replicate('t$t')", timeout => 3600);
}
my $size = $leader->sql(q{SELECT sum(pg_total_relation_size(relation)) / 1048576 FROM quorum.replicated_table});
note(sprintf('%d rows in 4 tables, %d MB with their indexes', 4 * $rows, $size));

# ---- load

my $file = "$PostgreSQL::Test::Utils::tmp_check/load.sql";
PostgreSQL::Test::Utils::append_to_file($file, "\\set id random(1, $rows)\nUPDATE t1 SET k = k + 1 WHERE id = :id;\nUPDATE t2 SET k = k + 1 WHERE id = :id;\n");
my ($output, $errors) = ('', '');
my $load = IPC::Run::start([ 'pgbench', '-n', '-c', 4, '-j', 1, '-T', 3600, '--max-tries=100', '-f', $file, $leader->connstr('postgres') ],
	'<', '/dev/null', '>', \$output, '2>', \$errors);

sub committed { return $leader->sql('SELECT transactions_committed FROM quorum.stats'); }

sub throughput_during
{
	my ($code) = @_;
	my ($before, $started) = (committed(), time());
	$code->();
	return (committed() - $before) / (time() - $started);
}

my $tps_before = throughput_during(sub { sleep(10); });
note(sprintf('load before: %.0f transactions/s', $tps_before));

# So that the log from before is gone, and no leader has it in memory.
QuorumCluster::wait_until('the log to be trimmed', sub { usleep(500_000); return $leader->sql('SELECT first_held_index FROM quorum.stats') > 4000; }, 1200);

# ---- the join

my $joiner = $cluster->add_instance('n4', conf => $conf);
$joiner->{outside} = 1;
my $made_whole = 0;

sub progress
{
	my $result = $joiner->query(q{SELECT phase, rows_copied, bytes_received, extract(epoch FROM phase_since - started_at) FROM quorum.snapshot_progress}, timeout => 10);
	return $result->{ok} ? split(/\|/, $result->{rows}) : ();
}

sub is_whole
{
	my $is_voter = $leader->query(q{SELECT is_voter FROM quorum.nodes WHERE node_name = 'n4'})->{rows};
	return $is_voter eq 't' && ($joiner->status('applied_index') // 0) > $leader->status('chosen_index') - 1000;
}

$joiner->query("SET statement_timeout = '1s'; SELECT quorum.join_cluster('n4', '" . $joiner->peer_conninfo . "', via => '"
	  . $leader->peer_conninfo(user => 'quorum_operator') . "')");
my (%seen, @done);
my $killed = 0;
while ($killed < $kills)
{
	usleep(rand(1e6 * (0.5 + $megabytes / 100)));
	my @now = progress();
	@done = @now if @now && $now[0] eq 'done';
	last if @done;
	$seen{ $now[0] // 'before' }++;
	if (++$killed % 2)
	{
		$joiner->kill9(all => 1);
		$joiner->start;
	}
	else
	{
		my $worker = $joiner->worker_pid(rand() < 0.5 ? 'apply' : 'consensus');
		kill('KILL', $worker) if $worker;
	}
	QuorumCluster::wait_until('the joining node to answer', sub { $joiner->query('SELECT 1', timeout => 5)->{ok} }, 60);
}
note("$killed kills, in the phases: " . join(', ', map { "$_ ($seen{$_})" } sort keys %seen));

my $tps_during = throughput_during(sub {
	QuorumCluster::wait_until('the join to end', sub {
		my @now = progress();
		@done = @now if @now && $now[0] eq 'done';
		return is_whole();
	}, 3600);
});
note('donor: ' . ($joiner->query('SELECT donor_name FROM quorum.snapshot_progress')->{rows} // '') . ', leader: ' . $leader->name);
ok(is_whole(), 'the node has joined, is whole and votes');
note(@done && $done[3] > 0
	? sprintf('%d rows (%.0f MB) copied in %.1f s: %.0f rows/s, %.1f MB/s, indexes included', $done[1], $done[2] / 1048576, $done[3], $done[1] / $done[3],
		$done[2] / 1048576 / $done[3])
	: 'the copy had ended before the last kill');
note(sprintf('load while it went on: %.0f transactions/s', $tps_during));
note(sprintf('load afterwards: %.0f transactions/s', throughput_during(sub { sleep(5); })));
$load->kill_kill(grace => 1);
$cluster->wait_applied($cluster->nodes);
delete $joiner->{outside};
foreach my $t (1 .. 4)
{
	my %sums = map { $_->name => $_->sql("SET quorum.read_consistency = 'local'; SELECT count(*), sum(hashtextextended(t::text, 0)) FROM t$t AS t", timeout => 1200) }
	  $cluster->nodes;
	my %different = map { $_ => 1 } values %sums;
	is(scalar(keys %different), 1, "t$t is the same on all nodes") or diag(explain(\%sums));
}
done_testing();
