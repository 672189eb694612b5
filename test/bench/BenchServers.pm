=head1 NAME

BenchServers - the servers that the benches measure: one plain instance, one with synchronous standbys, three with pg_quorum

=head1 SYNOPSIS

  use BenchServers;

  use_folder($path);                    # on a disk, not on a tmpfs
  make_system($_) foreach qw(plain sync quorum);
  sql($head{quorum}, 'SELECT ...');     # dies on an error
  wait_caught_up('quorum');             # until every node has in its tables what the head has

=head1 DESCRIPTION

C<%instances> are all servers by name, C<%members> the names of a system's, C<%head> where the clients of a system go:
C<find_leader> keeps that of pg_quorum. All settings are PostgreSQL's defaults and the same for all. Servers that still run when the
program ends are stopped at once.

=cut

package BenchServers;

use strict;
use warnings;

use Exporter 'import';
use FindBin;
use POSIX qw(sysconf _SC_CLK_TCK);
use Time::HiRes qw(time usleep);

our @EXPORT = qw($folder %instances %members %head use_folder make_system start sql sql_or_undef run_or_die find_leader wait_caught_up
  wait_until children_of parse_pgbench measure_cpu median ratio);

our $folder;
our %instances;       # name => { name, port, data, log, pid }
our %members = (plain => ['plain'], sync => [qw(sync1 sync2 sync3)], quorum => [qw(n1 n2 n3)]);
our %head = (plain => 'plain', sync => 'sync1', quorum => 'n1');

my $ticks = sysconf(_SC_CLK_TCK);

sub use_folder
{
	($folder) = @_;
	$| = 1;
	$SIG{INT} = $SIG{TERM} = sub { exit 1 };
	$ENV{PGOPTIONS} = "-c client_min_messages=warning";
	adopt_orphans();
	return;
}

# ---- instances ------------------------------------------------------------------------------------------------------

# A killed postmaster must be reaped before its successor can start; in a container nobody else may do it.
sub adopt_orphans
{
	my %prctl_number = (x86_64 => 157, aarch64 => 167);
	my $number = $prctl_number{ (POSIX::uname())[4] };
	syscall($number, 36, 1, 0, 0, 0) if $number;
	return;
}

sub run_or_die
{
	my ($command) = @_;
	my $output = `($command) 2>&1 </dev/null`;
	die "bench: failed: $command\n$output" if $?;
	return $output;
}

sub new_instance
{
	my ($name) = @_;
	my ($port) = `$FindBin::Bin/../../tools/free-port` =~ /(\d+)/;
	$instances{$name} = { name => $name, port => $port, data => "$folder/$name", log => "$folder/$name.log" };
	return $instances{$name};
}

sub configure
{
	my ($instance, $lines) = @_;
	open(my $file, '>>', "$instance->{data}/postgresql.conf") or die "postgresql.conf: $!";
	print $file "port = $instance->{port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '$folder'\n",
	  "cluster_name = '$instance->{name}'\n$lines";
	close($file);
	return;
}

sub start
{
	my ($instance) = @_;
	my $output = `pg_ctl -s -w -t 60 -D $instance->{data} -l $instance->{log} start 2>&1 </dev/null`;
	die "bench: could not start $instance->{name}: $output" . `tail -n 20 $instance->{log}` if $?;
	($instance->{pid}) = slurp("$instance->{data}/postmaster.pid") =~ /^(\d+)/;
	return;
}

sub make_instance
{
	my ($name, $lines) = @_;
	my $instance = new_instance($name);
	run_or_die("initdb --auth=trust --username=postgres --encoding=UTF8 --locale=C -D $instance->{data}");
	configure($instance, $lines);
	start($instance);
	return $instance;
}

sub make_system
{
	my ($system) = @_;
	if ($system eq 'plain')
	{
		make_instance('plain', '');
	}
	elsif ($system eq 'sync')
	{
		my $primary = make_instance('sync1', "synchronous_standby_names = 'ANY 1 (sync2, sync3)'\n");
		foreach my $name (qw(sync2 sync3))
		{
			my $standby = new_instance($name);
			run_or_die("pg_basebackup -c fast -h 127.0.0.1 -p $primary->{port} -U postgres -R -D $standby->{data}");
			configure($standby, "primary_conninfo = 'host=127.0.0.1 port=$primary->{port} user=postgres application_name=$name'\n");
			start($standby);
		}
		wait_until('the standbys', sub { sql('sync1', 'SELECT count(*) FROM pg_stat_replication WHERE state = $$streaming$$') == 2 });
	}
	else
	{
		foreach my $name (@{ $members{quorum} })
		{
			make_instance($name, "shared_preload_libraries = 'pg_quorum'\n");
			sql($name, 'CREATE EXTENSION pg_quorum');
			sql($name, 'CREATE ROLE quorum_link LOGIN IN ROLE quorum_peer');
		}
		sql('n1', "SELECT quorum.create_cluster('n1', '" . peer_conninfo('n1', 'quorum_link') . "')");
		wait_until('a leader', sub { find_leader() });
		sql($_, "SELECT quorum.join_cluster('$_', '" . peer_conninfo($_, 'quorum_link') . "', '" . peer_conninfo('n1', 'postgres') . "')")
		  foreach qw(n2 n3);
		wait_until('a leader', sub { find_leader() });
	}
	return;
}

sub peer_conninfo
{
	my ($name, $user) = @_;
	return "host=127.0.0.1 port=$instances{$name}{port} dbname=postgres user=$user";
}

sub sql_or_undef
{
	my ($name, $statement) = @_;
	my $instance = $instances{$name};
	open(my $psql, '-|', qw(psql -XqAt -v ON_ERROR_STOP=1 -h), $folder, '-p', $instance->{port}, qw(-U postgres -d postgres -c), $statement)
	  or die "psql: $!";
	my $output = join('', <$psql>);
	close($psql) or return;
	chomp($output);
	return $output;
}

sub sql
{
	my ($name, $statement) = @_;
	my $output = sql_or_undef($name, $statement);
	die "bench: $name: failed: $statement\n" unless defined $output;
	return $output;
}

# Sets where the clients of pg_quorum go.
sub find_leader
{
	foreach my $name (@_ ? @_ : @{ $members{quorum} })
	{
		my $answer = sql_or_undef($name, q{SELECT role = 'leader' AND has_quorum FROM quorum.status});
		return $head{quorum} = $name if defined $answer && $answer eq 't';
	}
	return;
}

sub wait_until
{
	my ($what, $condition, $timeout_seconds) = @_;
	my $deadline = time() + ($timeout_seconds || 120);
	until ($condition->())
	{
		die "bench: timed out waiting for $what\n" if time() > $deadline;
		usleep(50_000);
	}
	return;
}

sub slurp
{
	my ($path) = @_;
	open(my $file, '<', $path) or return '';
	local $/;
	return <$file> // '';
}

# Until every standby or follower has in its tables what the head has.
sub wait_caught_up
{
	my ($system) = @_;
	if ($system eq 'sync')
	{
		wait_until('the standbys to replay',
			sub { sql('sync1', 'SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= pg_current_wal_flush_lsn()') == 2 });
	}
	elsif ($system eq 'quorum')
	{
		wait_until('a leader', sub { find_leader() });
		my $chosen = sql($head{quorum}, 'SELECT chosen_index FROM quorum.status');
		foreach my $name (@{ $members{quorum} })
		{
			wait_until("$name to apply", sub { (sql_or_undef($name, 'SELECT applied_index FROM quorum.status') || 0) >= $chosen });
		}
	}
	return;
}

# ---- CPU ------------------------------------------------------------------------------------------------------------

sub children_of
{
	my ($parent) = @_;
	my @children;
	foreach my $path (glob('/proc/[0-9]*/stat'))
	{
		my ($pid, $its_parent) = slurp($path) =~ /^(\d+) \(.*\) \S (\d+)/s or next;
		push @children, $pid if $its_parent == $parent;
	}
	return @children;
}

sub kind_of
{
	my ($title) = @_;
	my ($what) = $title =~ /^postgres: \w+: (.*)/s or return 'postmaster';
	return 'stream backends' if $what =~ /^quorum_link /;
	foreach my $kind ('quorum consensus', 'quorum apply', 'quorum lock watcher', 'walsender', 'walreceiver', 'startup', 'walwriter',
		'checkpointer', 'background writer', 'autovacuum')
	{
		return $kind if index($what, $kind) == 0;
	}
	return $what =~ /^\S+ \S+ (?:\[local\]|\d)/ ? 'client backends' : 'other';
}

# How many there are: what they used is in their postmaster's account only when they have ended.
sub client_backends
{
	my ($system) = @_;
	my @children = map { children_of($instances{$_}{pid}) } @{ $members{$system} };
	return scalar(grep { kind_of(title($_)) eq 'client backends' } @children);
}

sub title
{
	my ($pid) = @_;
	my $title = slurp("/proc/$pid/cmdline");
	$title =~ s/\0.*//s;
	return $title;
}

# CPU seconds so far of each kind of process, over all instances of a system.
sub cpu_by_kind
{
	my ($system) = @_;
	my %postmasters = map { $instances{$_}{pid} => 1 } @{ $members{$system} };
	my %sum;
	foreach my $path (glob('/proc/[0-9]*/stat'))
	{
		my ($pid, $rest) = slurp($path) =~ /^(\d+) \(.*\) (.*)/s or next;
		my @fields = split ' ', $rest;
		my ($parent, $user, $kernel, $children_user, $children_kernel) = @fields[ 1, 11, 12, 13, 14 ];
		if ($postmasters{$pid})
		{
			$sum{postmaster} += ($user + $kernel) / $ticks;
			$sum{'client backends'} += ($children_user + $children_kernel) / $ticks;
		}
		elsif ($postmasters{$parent})
		{
			$sum{ kind_of(title($pid)) } += ($user + $kernel) / $ticks;
		}
	}
	return \%sum;
}

# ---- pgbench --------------------------------------------------------------------------------------------------------

# What it says at its end.
sub parse_pgbench
{
	my ($output) = @_;
	my %result = (failed => 0, retries => 0, output => $output);
	($result{tps}) = $output =~ /^tps = ([\d.]+)/m or die "bench: pgbench said: $output";
	($result{transactions}) = $output =~ /transactions actually processed: (\d+)/;
	($result{latency_ms}) = $output =~ /latency average = ([\d.]+)/;
	$result{failed} = $1 if $output =~ /failed transactions: (\d+)/;
	$result{retries} = $1 if $output =~ /total number of retries: (\d+)/;
	return \%result;
}

# Runs something that returns such a result, and adds what all processes of the system used until its nodes had caught up.
sub measure_cpu
{
	my ($system, $run) = @_;
	my $before = cpu_by_kind($system);
	my $result = $run->();
	my $ended = time();
	wait_caught_up($system);
	$result->{lag} = time() - $ended;
	wait_until('the client backends to end', sub { !client_backends($system) });
	my $after = cpu_by_kind($system);
	$result->{cpu} = { map { $_ => $after->{$_} - ($before->{$_} || 0) } keys %$after };
	return $result;
}

# ---- numbers --------------------------------------------------------------------------------------------------------

sub median
{
	my @sorted = sort { $a <=> $b } @_;
	return @sorted % 2 ? $sorted[ $#sorted / 2 ] : ($sorted[ @sorted / 2 - 1 ] + $sorted[ @sorted / 2 ]) / 2;
}

sub ratio
{
	my ($one, $other) = @_;
	return '-' unless defined $one && $other;
	return sprintf '%.2f', $one / $other;
}

END
{
	my $status = $?;
	foreach my $instance (values %instances)
	{
		next unless -f "$instance->{data}/postmaster.pid";
		system("pg_ctl -s -m immediate -D $instance->{data} stop >/dev/null 2>&1");
	}
	$? = $status;
}

1;
