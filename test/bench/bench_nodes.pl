# What it costs to write and read on any node of three: a follower beside the leader, linearizable reads beside local ones, and all three
# nodes writing at once, to spread rows and to one hot row.
#
#	bench_nodes.pl <folder for data>
#
# Within each repetition the things that are compared take turns, so that a machine that is slow for a while is so for all of them.  The table
# shows medians, and medians of the ratios that the repetitions had.
#
# It also checks what does not depend on speed: a hot row that is written on one node only never makes a transaction fail, and its value is the
# number of increments that were acknowledged.  The program says FAILED and ends with 1 if not.
#
# Environment: BENCH_SECONDS (6) per run, BENCH_REPEAT (3), BENCH_CLIENTS ("1 4 16") of one node, BENCH_READERS (16), BENCH_CLIENTS_PER_NODE (4)
# when all nodes write, BENCH_SECTIONS ("writes reads together").
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use BenchServers;

use_folder(shift or die "usage: bench_nodes.pl <folder for data>\n");
my $seconds = $ENV{BENCH_SECONDS} || 6;
my $repeat = $ENV{BENCH_REPEAT} || 3;
my @clients = split ' ', $ENV{BENCH_CLIENTS} || '1 4 16';
my $readers = $ENV{BENCH_READERS} || 16;
my $clients_per_node = $ENV{BENCH_CLIENTS_PER_NODE} || 4;
my %section = map { $_ => 1 } split ' ', $ENV{BENCH_SECTIONS} || 'writes reads together';
my $rows = 10_000;
my $failures = 0;

my %script = (
	spread => "\\set id random(2, $rows)\nUPDATE bench_row SET value = value + 1 WHERE id = :id;\n",
	hot => "UPDATE bench_row SET value = value + 1 WHERE id = 1;\n",
	read => "\\set id random(2, $rows)\nSELECT value FROM bench_row WHERE id = :id;\n");

print "bench_nodes: $seconds s a run, median of $repeat; ", `nproc` =~ /(\d+)/, " cores; load of the machine before it: ", load(), "\n\n";
make_system('quorum');
load_table();
measure_writes() if $section{writes};
measure_reads() if $section{reads};
measure_together() if $section{together};
print 'load of the machine at the end: ', load(), "\n";
exit($failures ? 1 : 0);

sub load
{
	open(my $file, '<', '/proc/loadavg') or return '?';
	return join(' ', (split ' ', <$file>)[ 0 .. 2 ]);
}

sub load_table
{
	sql($head{quorum}, $_) foreach (
		'CREATE TABLE bench_row (id int PRIMARY KEY, value int NOT NULL, filler text) WITH (fillfactor = 50)',
		"INSERT INTO bench_row SELECT i, 0, repeat('x', 80) FROM generate_series(1, $rows) AS i",
		"SELECT quorum.replicate('bench_row')");
	wait_caught_up('quorum');
	foreach my $name (@{ $members{quorum} })
	{
		sql($name, 'VACUUM ANALYZE');
		sql($name, 'CHECKPOINT');
	}
	foreach my $name (keys %script)
	{
		open(my $file, '>', "$folder/$name.sql") or die "$name.sql: $!";
		print $file $script{$name};
		close($file);
	}
	return;
}

sub node_of
{
	my ($place) = @_;
	my $leader = find_leader() or die "bench: there is no leader\n";
	return $leader if $place eq 'leader';
	return (grep { $_ ne $leader } @{ $members{quorum} })[0];
}

sub pgbench_command
{
	my ($name, $script, $count, %options) = @_;
	my $threads = $count < 2 ? 1 : 2;
	my $consistency = $options{consistency} || 'linearizable';
	return "PGOPTIONS='-c client_min_messages=warning -c quorum.read_consistency=$consistency' pgbench -n -M "
	  . ($options{protocol} || 'simple')
	  . " -c $count -j $threads -T $seconds " . ($options{more} || '')
	  . " -f $folder/$script.sql -h $folder -p $instances{$name}{port} -U postgres postgres";
}

# ---- one node -------------------------------------------------------------------------------------------------------

# One run for each of the variants, in turns; returns { variant => { tps => [...], us => [...], failed => n } }.  A variant is a
# name and arguments of pgbench_command, the first of them "leader" or "follower".
sub take_turns
{
	my (@variants) = @_;
	my %results;
	foreach my $round (1 .. $repeat)
	{
		foreach my $variant ($round % 2 ? @variants : reverse @variants)
		{
			my ($name, $place, @arguments) = @$variant;
			my $node = node_of($place);
			my $result = measure_cpu('quorum', sub { parse_pgbench(run_or_die(pgbench_command($node, @arguments))) });
			my $cpu_seconds = 0;
			$cpu_seconds += $_ foreach values %{ $result->{cpu} };
			push @{ $results{$name}{tps} }, $result->{tps};
			push @{ $results{$name}{us} }, 1e6 * $cpu_seconds / ($result->{transactions} || 1);
			$results{$name}{failed} += $result->{failed};
		}
	}
	return \%results;
}

# The median of the ratios within the repetitions.
sub paired_ratio
{
	my ($results, $one, $other) = @_;
	my @ratios = map { $results->{$one}{tps}[$_] / $results->{$other}{tps}[$_] } 0 .. $repeat - 1;
	return sprintf '%.2f', median(@ratios);
}

sub print_variants
{
	my ($title, $results, @names) = @_;
	foreach my $name (@names)
	{
		my $one = $results->{$name};
		printf "%-12s %-22s %8.0f tps (%s), CPU of all nodes %5.0f us each, %d failed\n", $title, $name, median(@{ $one->{tps} }),
		  join(' ', map { int } @{ $one->{tps} }), median(@{ $one->{us} }), $one->{failed};
	}
	return;
}

sub measure_writes
{
	print "Updates of one random row on one node; \"local\": with quorum.read_consistency = local, so the statement does not wait for a read index\n\n";
	foreach my $count (@clients)
	{
		my $results = take_turns(
			[ 'leader', 'leader', 'spread', $count ],
			[ 'follower', 'follower', 'spread', $count ],
			[ 'leader, local', 'leader', 'spread', $count, consistency => 'local' ],
			[ 'follower, local', 'follower', 'spread', $count, consistency => 'local' ]);
		print_variants("$count clients", $results, 'leader', 'follower', 'leader, local', 'follower, local');
		printf "%-12s follower/leader %s; local: follower/leader %s; linearizable/local: leader %s, follower %s\n\n", '',
		  paired_ratio($results, 'follower', 'leader'), paired_ratio($results, 'follower, local', 'leader, local'),
		  paired_ratio($results, 'leader', 'leader, local'), paired_ratio($results, 'follower', 'follower, local');
	}
	return;
}

sub measure_reads
{
	print "Point reads by primary key on one node, in the simple and the extended protocol, which plan each anew, and with prepared statements\n\n";
	foreach my $protocol ('simple', 'extended', 'prepared')
	{
		my $results = take_turns(
			map {
				my $place = $_;
				map { [ "$place, $_", $place, 'read', $readers, consistency => $_, protocol => $protocol ] } 'linearizable', 'local'
			} 'leader', 'follower');
		print_variants("$readers, $protocol", $results, map { ("$_, linearizable", "$_, local") } 'leader', 'follower');
		printf "%-12s linearizable/local: leader %s, follower %s\n\n", '',
		  paired_ratio($results, 'leader, linearizable', 'leader, local'), paired_ratio($results, 'follower, linearizable', 'follower, local');
	}
	return;
}

# ---- all nodes ------------------------------------------------------------------------------------------------------

# pgbench on several nodes at once; the result is that of all together, with the latencies (in us) of the transactions that came through, tries
# that failed included.
sub run_on_nodes
{
	my ($script, $count, $more, @names) = @_;
	my (%pipe, @latencies);
	my %sum = (tps => 0, transactions => 0, failed => 0, retries => 0);
	unlink(glob("$folder/latency.*"));
	foreach my $name (@names)
	{
		my $command = pgbench_command($name, $script, $count, more => "$more -l --log-prefix=$folder/latency.$name");
		open($pipe{$name}, '-|', "$command 2>&1 </dev/null") or die "pgbench: $!";
	}
	foreach my $name (@names)
	{
		my $output = do { local $/; readline($pipe{$name}) };
		close($pipe{$name}) or die "bench: pgbench on $name failed:\n$output";
		my $result = parse_pgbench($output);
		$sum{$_} += $result->{$_} foreach keys %sum;
	}
	foreach my $path (glob("$folder/latency.*"))
	{
		open(my $file, '<', $path) or die "$path: $!";
		while (<$file>)
		{
			my $latency_us = (split ' ')[2];
			push @latencies, $latency_us if $latency_us =~ /^\d+$/;    # those that failed have a word there
		}
	}
	$sum{latencies} = [ sort { $a <=> $b } @latencies ];
	return \%sum;
}

sub print_together
{
	my ($title, $results) = @_;
	my @latencies = sort { $a <=> $b } map { @{ $_->{latencies} } } @$results;
	my ($tried, $aborted, $sum) = (0, 0, 0);
	foreach my $result (@$results)
	{
		$tried += $result->{transactions} + $result->{retries} + $result->{failed};
		$aborted += $result->{retries} + $result->{failed};
	}
	$sum += $_ foreach @latencies;
	my $count = scalar(@latencies) || 1;
	printf "%-38s %7.0f tps (%s), aborted %d of %d tries (%.2f %%), latency %.1f ms on average, 95 %% below %.1f ms\n", $title,
	  median(map { $_->{tps} } @$results), join(' ', map { int($_->{tps}) } @$results), $aborted, $tried, 100 * $aborted / ($tried || 1),
	  $sum / $count / 1000, ($latencies[ int(0.95 * $count) ] || 0) / 1000;
	return;
}

sub check
{
	my ($what, $ok, $detail) = @_;
	return if $ok;
	print "FAILED: $what: $detail\n";
	$failures++;
	return;
}

# The hot row, from where it was to the increments that were acknowledged; the same on all nodes.
sub run_hot
{
	my ($what, $count, $more, @names) = @_;
	my $before = sql($names[0], 'SELECT value FROM bench_row WHERE id = 1');
	my $result = run_on_nodes('hot', $count, $more, @names);
	my @after = map { sql($_, 'SELECT value FROM bench_row WHERE id = 1') } @{ $members{quorum} };
	check("$what: the row's value is the number of increments", !grep({ $_ - $before != $result->{transactions} } @after),
		"it was $before, $result->{transactions} increments were acknowledged, and it is @after");
	return $result;
}

sub measure_together
{
	my @all = @{ $members{quorum} };
	my $retry = '--max-tries=0';
	my $sum = @all * $clients_per_node;
	my %results;
	print "One-row updates with $clients_per_node clients on each of three nodes at once (or $sum on one), tried again after 40001\n\n";
	foreach my $round (1 .. $repeat)
	{
		push @{ $results{spread} }, run_on_nodes('spread', $clients_per_node, $retry, @all);
		push @{ $results{hot} }, run_hot('hot row on all nodes', $clients_per_node, $retry, @all);
		foreach my $place ('leader', 'follower')
		{
			my $result = run_hot("hot row on the $place alone", $sum, '', node_of($place));
			check("a hot row that is written on one node only ($place) never aborts", $result->{failed} == 0, "$result->{failed} failed");
			push @{ $results{$place} }, $result;
		}
	}
	print_together("spread rows, all nodes", $results{spread});
	print_together("hot row, all nodes", $results{hot});
	print_together("hot row, $sum clients on the leader", $results{leader});
	print_together("hot row, $sum clients on a follower", $results{follower});
	print "\n";
	return;
}
