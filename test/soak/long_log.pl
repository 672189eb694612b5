# Millions of small transactions: the journal stays within its retention and the memory of each worker is flat.  Prints, while it runs, what each node
# has on disk and each worker in memory.  TRANSACTIONS=n (10,000,000), REPORTS=n (20) lines.  Run by `make soak`, or by itself with
# make check-tap PROVE_TESTS=test/soak/long_log.pl PROVE_FLAGS=-v.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/../tap";
use IPC::Run;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use Test::More;
use Time::HiRes qw(time);

my $transactions = $ENV{TRANSACTIONS} || 10_000_000;
my $reports = $ENV{REPORTS} || 20;
my $clients = 16;
my @workers = ('consensus', 'compactor', 'apply', 'lock watcher');
my $MB = 1024 * 1024;

my $cluster = QuorumCluster->new(nodes => 3, conf => <<'CONF');
shared_buffers = 128MB
max_wal_size = 512MB
CONF
my $leader = $cluster->wait_for_leader;
$leader->sql(q{CREATE TABLE small (id int PRIMARY KEY, v bigint) WITH (fillfactor = 50); SELECT quorum.replicate('small');
	INSERT INTO small SELECT i, 0 FROM generate_series(1, 20000) AS i});

sub pgbench
{
	my ($sql, $count) = @_;
	my $script = "$PostgreSQL::Test::Utils::tmp_check/script.$$.sql";
	open(my $handle, '>', $script) or die "$script: $!";
	print $handle $sql;
	close($handle);
	my ($output, $errors) = ('', '');
	my $ok = IPC::Run::run(
		[ 'pgbench', '-n', '-c', $clients, '-j', 2, '-t', int($count / $clients) + 1, '--max-tries=100', '-f', $script, $leader->connstr('postgres') ],
		'>', \$output, '2>', \$errors);
	BAIL_OUT("pgbench: $errors") unless $ok;
	return;
}

sub own_memory_kb
{
	my ($node, $worker) = @_;
	my ($kb) = PostgreSQL::Test::Utils::slurp_file('/proc/' . $node->worker_pid($worker) . '/status') =~ /^RssAnon:\s+(\d+)/m;
	return $kb;
}

sub bytes_on_disk
{
	my ($node, $prefix) = @_;
	my $sum = 0;
	$sum += -s $_ // 0 foreach glob($node->data_dir . "/pg_quorum/pgsql_tmp_journal/$prefix*");
	return $sum;
}

sub report
{
	my ($done, $seconds) = @_;
	my %of;
	foreach my $node ($cluster->nodes)
	{
		my %numbers = (
			journal => bytes_on_disk($node, 'segment_'),
			chosen => bytes_on_disk($node, 'chosen_index'),
			state => bytes_on_disk($node, 'log_state'),
			map { ($_ => own_memory_kb($node, $_)) } @workers);
		note(sprintf('%d transactions, %.0f s, %s: journal %.0f MB, chosen log %.1f MB, log state %.1f MB; kB of memory: %s; log held from %s',
			$done, $seconds, $node->name, $numbers{journal} / $MB, $numbers{chosen} / $MB, $numbers{state} / $MB,
			join(', ', map { "$_ $numbers{$_}" } @workers), $node->sql('SELECT first_held_index FROM quorum.stats')));
		$of{ $node->name } = \%numbers;
	}
	return \%of;
}

# Certification remembers a million keys, and takes that much memory: it is filled first, with transactions of fifty rows.
pgbench("\\set part random(0, 399)\nUPDATE small SET v = v + 1 WHERE id % 400 = :part;\n", 24_000);

my $started = time();
my @reports = (report(0, 0));
foreach my $part (1 .. $reports)
{
	pgbench("\\set id random(1, 20000)\nUPDATE small SET v = v + 1 WHERE id = :id;\n", $transactions / $reports);
	push @reports, report($part * int($transactions / $reports), time() - $started);
}
foreach my $node ($cluster->nodes)
{
	my $name = $node->name;
	my ($most) = sort { $b <=> $a } map { $_->{$name}{journal} } @reports;
	cmp_ok($most, '<=', 10 * 16 * $MB, "$name: the journal never had more than ten segments, as all nodes were there");
	foreach my $worker (@workers)
	{
		my $growth = $reports[-1]{$name}{$worker} - $reports[1]{$name}{$worker};
		cmp_ok($growth, '<', 4 * 1024, "$name: since certification's memory was full $worker has not grown");
	}
}
$cluster->assert_same_digest('small', 'all nodes are the same');

done_testing();
