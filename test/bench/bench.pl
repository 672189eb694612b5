# Plain PostgreSQL, synchronous streaming replication and pg_quorum side by side, in one run.
#
#	bench.pl <folder for data>
#
# Systems: (a) one plain instance; (b) three with synchronous_standby_names = 'ANY 1 (...)'; (c) three with pg_quorum.  All settings are
# PostgreSQL's defaults and the same for all.  Clients come through a Unix socket, to the primary or leader.
#
# The systems take turns within each repetition, so that a machine that is slow for a while is so for all three; the table
# shows medians.  All seven instances stay up during the whole run, the idle ones idle.
#
# CPU is what all processes of a system used from the start of a run until its standbys have caught up, by kind.  Processes that
# ended meanwhile are told by their postmaster's account of children: they are client backends (and a few autovacuum workers).
#
# Environment: BENCH_SECONDS (6) per run, BENCH_REPEAT (3), BENCH_CLIENTS ("1 4 16 32"), BENCH_WORKLOADS ("update insert tpcb"),
# BENCH_SYSTEMS ("plain sync quorum"), BENCH_FAILOVERS (10), BENCH_DIRECTORY (/var/tmp), BENCH_PROTOCOL (simple).
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use BenchServers;
use IPC::Open2;
use IO::Select;
use POSIX qw(:sys_wait_h);
use Time::HiRes qw(time usleep);

use_folder(shift or die "usage: bench.pl <folder for data>\n");
my $seconds = $ENV{BENCH_SECONDS} || 6;
my $repeat = $ENV{BENCH_REPEAT} || 3;
my @clients = split ' ', $ENV{BENCH_CLIENTS} || '1 4 16 32';
my @workloads = split ' ', $ENV{BENCH_WORKLOADS} || 'update insert tpcb';
my @systems = split ' ', $ENV{BENCH_SYSTEMS} || 'plain sync quorum';
my $failovers = $ENV{BENCH_FAILOVERS} // 10;
my $protocol = $ENV{BENCH_PROTOCOL} || 'simple';
my $branches = 32;    # as many as clients, so that TPC-B does not measure the lock on one branch
my $accounts_per_branch = 10_000;

print "bench: $seconds s a run, median of $repeat; clients @clients; protocol $protocol; ", `nproc` =~ /(\d+)/, " cores; ",
  'data on ', (`stat -f -c %T $folder` =~ /(\S+)/), "\n\n";
make_system($_) foreach @systems;
load_tables($_) foreach @systems;
my $results = run_all();
print_throughput($results);
print_cpu($results);
measure_failover() if $failovers && grep { $_ eq 'quorum' } @systems;
exit 0;

# ---- workloads ------------------------------------------------------------------------------------------------------

my (%script, @tables);

BEGIN
{
	@tables = qw(bench_row bench_insert bench_branch bench_teller bench_account bench_history bench_failover);
	%script = (
		update => q{
\set id random(1, 10000)
UPDATE bench_row SET value = value + 1 WHERE id = :id;
},
		insert => q{
\set value random(1, 1000000)
INSERT INTO bench_insert (value, filler) VALUES (:value, 'eighty bytes of filler that stand for the rest of what such a row would have');
},
		# pgbench's own, with the sizes of load_tables
		tpcb => q{
\set aid random(1, :accounts)
\set bid random(1, :branches)
\set tid random(1, 10 * :branches)
\set delta random(-5000, 5000)
BEGIN;
UPDATE bench_account SET abalance = abalance + :delta WHERE aid = :aid;
SELECT abalance FROM bench_account WHERE aid = :aid;
UPDATE bench_teller SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE bench_branch SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO bench_history (tid, bid, aid, delta, mtime) VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
END;
});
}

sub load_tables
{
	my ($system) = @_;
	my $accounts = $branches * $accounts_per_branch;
	my $target = $head{$system};
	sql($target, $_) foreach (
		'CREATE TABLE bench_row (id int PRIMARY KEY, value int NOT NULL, filler text) WITH (fillfactor = 90)',
		"INSERT INTO bench_row SELECT i, 0, repeat('x', 80) FROM generate_series(1, 10000) AS i",
		'CREATE TABLE bench_insert (id bigserial PRIMARY KEY, value int NOT NULL, filler text)',
		'CREATE TABLE bench_branch (bid int PRIMARY KEY, bbalance int NOT NULL, filler char(88)) WITH (fillfactor = 90)',
		"INSERT INTO bench_branch SELECT i, 0, '' FROM generate_series(1, $branches) AS i",
		'CREATE TABLE bench_teller (tid int PRIMARY KEY, bid int NOT NULL, tbalance int NOT NULL, filler char(84)) WITH (fillfactor = 90)',
		"INSERT INTO bench_teller SELECT i, (i - 1) / 10 + 1, 0, '' FROM generate_series(1, 10 * $branches) AS i",
		'CREATE TABLE bench_account (aid int PRIMARY KEY, bid int NOT NULL, abalance int NOT NULL, filler char(84)) WITH (fillfactor = 90)',
		"INSERT INTO bench_account SELECT i, (i - 1) / $accounts_per_branch + 1, 0, '' FROM generate_series(1, $accounts) AS i",
		'CREATE TABLE bench_history (hid bigserial PRIMARY KEY, tid int, bid int, aid int, delta int, mtime timestamp, filler char(22))',
		'CREATE TABLE bench_failover (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), value int)');
	if ($system eq 'quorum')
	{
		sql($target, "SELECT quorum.replicate('$_')") foreach @tables;
	}
	wait_caught_up($system);
	sql($target, 'VACUUM ANALYZE');
	sql($_, 'CHECKPOINT') foreach @{ $members{$system} };
	foreach my $workload (keys %script)
	{
		open(my $file, '>', "$folder/$workload.sql") or die "$workload.sql: $!";
		print $file $script{$workload};
		close($file);
	}
	return;
}

# ---- runs -----------------------------------------------------------------------------------------------------------

sub run_all
{
	my %results;
	foreach my $workload (@workloads)
	{
		foreach my $count (@clients)
		{
			foreach my $round (1 .. $repeat)
			{
				foreach my $system (@systems)
				{
					my $result = run_once($system, $workload, $count);
					push @{ $results{$workload}{$count}{$system}{tps} }, $result->{tps};
					$results{$workload}{$count}{$system}{failed} += $result->{failed};
					my $sum = $results{$workload}{$count}{$system}{cpu} ||= { transactions => 0, kinds => {}, lag => 0 };
					$sum->{transactions} += $result->{transactions};
					$sum->{lag} = $result->{lag} if $result->{lag} > $sum->{lag};
					$sum->{kinds}{$_} += $result->{cpu}{$_} foreach keys %{ $result->{cpu} };
				}
			}
			printf "%-7s %2d clients:%s\n", $workload, $count,
			  join('', map { sprintf '  %s %s', $_, join('/', map { int } @{ $results{$workload}{$count}{$_}{tps} }) } @systems);
		}
	}
	print "\n";
	return \%results;
}

sub run_once
{
	my ($system, $workload, $count) = @_;
	my $instance = $instances{ $head{$system} };
	my $threads = $count < 2 ? 1 : 2;
	return measure_cpu($system,
		sub {
			parse_pgbench(run_or_die("pgbench -n -M $protocol -c $count -j $threads -T $seconds -D branches=$branches "
				  . '-D accounts=' . $branches * $accounts_per_branch
				  . " -f $folder/$workload.sql -h $folder -p $instance->{port} -U postgres postgres"));
		});
}

# ---- what came out --------------------------------------------------------------------------------------------------

sub print_throughput
{
	my ($results) = @_;
	print "Transactions per second (median of $repeat), and their ratios\n";
	print "(a) plain  (b) synchronous standbys, ANY 1 of 2  (c) pg_quorum, three nodes\n\n";
	printf "%-9s %7s %9s %9s %9s %7s %7s %7s %8s\n", qw(workload clients a b c b/a c/a c/b failed);
	foreach my $workload (@workloads)
	{
		foreach my $count (@clients)
		{
			my %tps = map { $_ => median(@{ $results->{$workload}{$count}{$_}{tps} }) } @systems;
			my $failed = 0;
			$failed += $results->{$workload}{$count}{$_}{failed} foreach @systems;
			printf "%-9s %7d %9s %9s %9s %7s %7s %7s %8d\n", $workload, $count,
			  (map { defined $tps{$_} ? sprintf('%.0f', $tps{$_}) : '-' } qw(plain sync quorum)),
			  ratio($tps{sync}, $tps{plain}), ratio($tps{quorum}, $tps{plain}), ratio($tps{quorum}, $tps{sync}), $failed;
		}
	}
	print "\n";
	return;
}

# One line per workload, number of clients and system: what a transaction cost in all processes together, and the kinds that
# had a part in it, the greatest first.
sub print_cpu
{
	my ($results) = @_;
	print "CPU microseconds per transaction, all instances of a system together, by kind of process;\n",
	  "catch-up: the longest that followers needed after the end of a run\n\n";
	foreach my $workload (@workloads)
	{
		foreach my $count (@clients)
		{
			foreach my $system (@systems)
			{
				my $cpu = $results->{$workload}{$count}{$system}{cpu};
				my $kinds = $cpu->{kinds};
				my $scale = 1e6 / ($cpu->{transactions} || 1);
				my $total = 0;
				$total += $_ foreach values %$kinds;
				my @parts = map { sprintf '%s %.0f', $_, $kinds->{$_} * $scale }
				  grep { $kinds->{$_} >= 0.01 * $total } sort { $kinds->{$b} <=> $kinds->{$a} } keys %$kinds;
				printf "%-7s %2d %-6s %5.0f us, catch-up %.2f s: %s\n", $workload, $count, $system, $total * $scale, $cpu->{lag},
				  join(', ', @parts);
			}
		}
		print "\n";
	}
	return;
}

# ---- failover -------------------------------------------------------------------------------------------------------

# kill -9 of all processes of the leader, until a client that keeps trying on the others has its INSERT acknowledged.  The client has a
# connection to each of them and tries every 5 ms.
sub measure_failover
{
	my @times;
	foreach my $round (1 .. $failovers)
	{
		wait_until('a leader', sub { find_leader() });
		wait_caught_up('quorum');
		wait_until('all three to be reachable', sub { sql($head{quorum}, 'SELECT voters_reachable FROM quorum.status') == 3 });
		my $old = $instances{ $head{quorum} };
		my @others = grep { $_ ne $old->{name} } @{ $members{quorum} };
		my %client = map { $_ => open_client($_) } @others;
		my @processes = ($old->{pid}, children_of($old->{pid}));
		my $killed = time();
		kill('KILL', @processes);
		push @times, first_success(\%client, $killed);
		printf "failover %2d: %s killed, next acknowledged write after %.3f s\n", $round, $old->{name}, $times[-1];
		close_client($_) foreach values %client;
		wait_until('the killed processes to end', sub { waitpid($_, WNOHANG) foreach @processes; !grep { -d "/proc/$_" } @processes });
		start($old);
	}
	my @sorted = sort { $a <=> $b } @times;
	printf "\nkill -9 of the leader to the next acknowledged write, %d times: min %.3f s, median %.3f s, max %.3f s\n",
	  scalar(@sorted), $sorted[0], median(@sorted), $sorted[-1];
	return;
}

sub open_client
{
	my ($name) = @_;
	my $pid = open2(my $from, my $to,
		"exec psql -XqAt -h $folder -p $instances{$name}{port} -U postgres -d postgres 2>/dev/null");
	$to->autoflush(1);
	my $client = { name => $name, pid => $pid, from => $from, to => $to, buffer => '' };
	ask($client, "SELECT 'connected';");
	wait_until("a connection to $name", sub { defined answer($client, 0.05) });
	return $client;
}

# One statement; its rows, then a line "done".
sub ask
{
	my ($client, $statement) = @_;
	$client->{buffer} = '';
	print { $client->{to} } "$statement\n\\echo done\n";
	$client->{waiting} = 1;
	return;
}

# What came before "done", or undef if it is not there within the time.
sub answer
{
	my ($client, $timeout_seconds) = @_;
	if (IO::Select->new($client->{from})->can_read($timeout_seconds))
	{
		sysread($client->{from}, $client->{buffer}, 65536, length($client->{buffer}));
	}
	return unless $client->{buffer} =~ /^(.*?)done\n/s;
	$client->{waiting} = 0;
	return $1;
}

sub first_success
{
	my ($clients, $killed) = @_;
	while (time() < $killed + 60)
	{
		foreach my $client (values %$clients)
		{
			if (!$client->{waiting})
			{
				ask($client, "INSERT INTO bench_failover (value) VALUES (1) RETURNING 'acknowledged';");
			}
			my $rows = answer($client, 0.0025);
			return time() - $killed if defined $rows && $rows =~ /acknowledged/;
		}
		usleep(2_500);
	}
	die "bench: no write was acknowledged within 60 s of the kill\n";
}

sub close_client
{
	my ($client) = @_;
	close($client->{to});
	kill('TERM', $client->{pid});
	waitpid($client->{pid}, 0);
	return;
}
