
=head1 NAME

Consistency - clients on every node that keep a history, and the checkers that judge it

=head1 SYNOPSIS

  my $consistency = Consistency->new($cluster);
  $consistency->start;                               # new tables, and clients of all three workloads on all nodes
  my $rounds = FaultRounds->new($cluster, $consistency, kinds => [...]);
  $rounds->run(10);
  $consistency->stop;
  $consistency->check;                               # tests: no anomaly, no surprising error, all nodes alike

=head1 DESCRIPTION

The workloads are lists (transactions of appends and reads at all isolation levels), bank (transfers between few accounts) and registers
(reads, writes, compare-and-set).  Clients are processes of consistency_client.c, which says what an outcome means; the checkers are
test/consistency.  Both are compiled here, once per test file.

Histories are kept with the logs (history_*), which tools/check-tap copies to results/tap when a test fails; a checker's report goes to
the test's output, and names the files.  The same check again:

  make -C test/consistency program && build/consistency/check_history lists results/tap/history_lists_*

=cut

package Consistency;

use strict;
use warnings;

use File::Basename qw(dirname);
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep clock_gettime CLOCK_MONOTONIC);

my $accounts = 10;
my $initial_balance = 100;
my %programs;
my @running;
my @objects;
my $segments = 0;

# ---- programs -------------------------------------------------------------------------------------------------------

sub _compile
{
	my ($name, $sources, @libraries) = @_;
	return $programs{$name} if $programs{$name};
	my %config;
	foreach my $directory ('includedir', 'libdir')
	{
		chomp($config{$directory} = `pg_config --$directory`);
	}
	my $program = "$PostgreSQL::Test::Utils::tmp_check/$name.$$";
	my $output = '';
	IPC::Run::run(
		[
			$ENV{CC} || 'cc', '-std=gnu11', '-O2', '-Wall', '-Wextra', '-Wno-unused-parameter', "-I$config{includedir}",
			@$sources, '-o', $program, "-L$config{libdir}", @libraries
		],
		'>&', \$output) or die "could not compile $name: $output\n";
	return $programs{$name} = $program;
}

sub _directory { return dirname(__FILE__); }

sub client_program
{
	my @sources = ('consistency_client.c', 'consistency_attempt.c', 'consistency_workloads.c', 'client_connection.c');
	return _compile('consistency_client', [ map { _directory() . "/$_" } @sources ], '-lpq');
}

sub checker_program
{
	my @sources = grep { !m{/(?:test_|random_)} } glob(_directory() . '/../consistency/*.c');
	return _compile('check_history', \@sources);
}

# ---- the workloads --------------------------------------------------------------------------------------------------

# Consistency->new($cluster, %options)
#  clients => { lists => 2, bank => 1, registers => 1 }	how many clients of each workload on each node
#  nodes => [...]			names of the nodes that have clients; default all
#  local_reads => 1			on each node, so many of the clients of lists read with quorum.read_consistency = local
#  reads => 'linearizable'	'unpromised': the histories are judged as if all reads were local ones
#  levels => 'rc,rr,ser'
#  pause_us => 10000		about so long between two transactions of a client
#  rotation_ms => 2000		how long lists and registers stay in use, about
#  allow_sqlstates => []	errors that are no surprise here
sub new
{
	my ($class, $cluster, %options) = @_;
	my $self = bless {
		cluster => $cluster,
		clients => { lists => 2, bank => 1, registers => 1 },
		nodes => [ map { $_->name } $cluster->nodes ],
		local_reads => 1,
		reads => 'linearizable',
		levels => 'rc,rr,ser',
		pause_us => 10_000,
		rotation_ms => 2000,
		allow_sqlstates => [],
		%options }, $class;
	push @objects, $self;
	return $self;
}

sub _monotonic_us { return int(clock_gettime(CLOCK_MONOTONIC) * 1e6); }

sub _workloads { my ($self) = @_; return grep { $self->{clients}{$_} } ('lists', 'bank', 'registers'); }

sub _tables
{
	my ($self) = @_;
	return map { $_ . $self->{suffix} } ('lists', 'account', 'transfer', 'register');
}

sub _create_tables
{
	my ($self) = @_;
	my $suffix = $self->{suffix};
	my $leader = $self->{cluster}->wait_for_leader;
	$leader->sql(qq{
		CREATE TABLE lists$suffix (id int PRIMARY KEY, elements int[] NOT NULL);
		CREATE TABLE account$suffix (id int PRIMARY KEY, balance bigint NOT NULL CHECK (balance >= 0));
		CREATE TABLE transfer$suffix (number bigint PRIMARY KEY, source int NOT NULL, target int NOT NULL, amount bigint NOT NULL);
		CREATE TABLE register$suffix (id int PRIMARY KEY, value bigint NOT NULL);
		INSERT INTO account$suffix SELECT i, $initial_balance FROM generate_series(0, $accounts - 1) AS i});
	$leader->sql("SELECT quorum.replicate('$_')") foreach $self->_tables;
	$self->{cluster}->wait_applied;
	return;
}

sub _conninfo
{
	my ($node) = @_;
	return 'host=' . $node->host . ' port=' . $node->port . ' dbname=postgres application_name=load'
	  . " options='-c quorum.commit_timeout=1s -c lock_timeout=1s -c client_connection_check_interval=500ms'";
}

# New tables, new histories.  May be called again after check.
sub start
{
	my ($self) = @_;
	$self->{suffix} = '_' . ++$segments;
	$self->{histories} = {};
	$self->{acknowledged_writes} = [];
	$self->{sqlstates} = {};
	$self->{outcomes} = {};
	$self->{last_client} = 0;
	$self->_create_tables;
	$self->{zero_us} = _monotonic_us();
	foreach my $workload ($self->_workloads)
	{
		foreach my $name (@{ $self->{nodes} })
		{
			foreach my $number (1 .. $self->{clients}{$workload})
			{
				my $is_local = $workload eq 'lists' && $number <= $self->{local_reads};
				my $run = $self->_launch($workload, $workload, $self->{cluster}->node($name), $is_local ? 'local' : $self->{reads});
				push @running, $run;
				push @{ $self->{running} }, $run;
			}
		}
	}
	return;
}

# A client of consistency_client.c; mode is the workload, or final-<workload>.
sub _launch
{
	my ($self, $workload, $mode, $node, $reads) = @_;
	my ($number) = $node->name =~ /(\d+)$/;
	my $client = ++$self->{last_client};
	my $file = "$PostgreSQL::Test::Utils::log_path/history_$workload$self->{suffix}.$$.$client";
	my $output = '';
	push @{ $self->{histories}{$workload} }, { file => $file, read => 0 };
	return IPC::Run::start(
		[
			client_program(), $mode, $file, $client, $number, $self->{suffix}, $self->{zero_us}, $self->{rotation_ms},
			$self->{pause_us}, $workload eq 'registers' ? 'rc' : $self->{levels}, $reads, _conninfo($node)
		],
		'<', '/dev/null', '>&', \$output);
}

# Lets each client end its transaction.
sub stop
{
	my ($self) = @_;
	my @mine = @{ delete $self->{running} || [] };
	$_->signal('TERM') foreach @mine;
	foreach my $run (@mine)
	{
		$run->finish;
		@running = grep { $_ != $run } @running;
	}
	return;
}

# A test that died before its check says what the histories show by then: that may be the cause.
END
{
	my $exit_code = $?;
	eval { $_->kill_kill } foreach @running;
	foreach my $self (grep { $_->{histories} && $exit_code != 0 } @objects)
	{
		eval { $self->_judge($_) } foreach $self->_workloads;
		diag($@) if $@;
	}
	$? = $exit_code;
}

# ---- what FaultRounds asks for --------------------------------------------------------------------------------------

# Reads what the clients have written since the last call.
sub _read_histories
{
	my ($self) = @_;
	foreach my $history (map { @$_ } values %{ $self->{histories} })
	{
		open(my $file, '<', $history->{file}) or next;
		seek($file, $history->{read}, 0);
		while (defined(my $line = <$file>))
		{
			last unless $line =~ /\n\z/;
			$history->{read} = tell($file);
			next unless $line =~ /^t \d+ (\d+) \S+ (\w+) (\S+) (\d+) (\d+)/;
			my ($node, $outcome, $sqlstate, $started, $ended) = ($1, $2, $3, $4, $5);
			$self->{outcomes}{$outcome}++;
			$self->{sqlstates}{$sqlstate}++ if $sqlstate ne '00000';
			next unless $outcome eq 'ok';
			$self->{acknowledged_on}{$node}++;
			push @{ $self->{acknowledged_writes} }, [ $started, $ended ] if $line =~ / ; [awx] | ; c [^;]* 1\b/;
		}
	}
	return;
}

sub wait_for_write
{
	my ($self, $since, $timeout_seconds) = @_;
	my $since_us = _monotonic_us() - (time() - $since) * 1e6;
	my $found;
	QuorumCluster::wait_until(
		'an acknowledged write',
		sub {
			$self->_read_histories;
			$self->{acknowledged_writes} = [ grep { $_->[0] > $since_us } @{ $self->{acknowledged_writes} } ];
			($found) = sort { $a <=> $b } map { $_->[1] } @{ $self->{acknowledged_writes} };
			return defined $found;
		},
		$timeout_seconds || 60,
		sub { 'errors so far: ' . $self->_numbers('sqlstates') });
	return ($found - $since_us) / 1e6;
}

# Nothing is promised here about a node that stands still: its clients leave it.
sub note_asleep { return; }

sub _numbers
{
	my ($self, $what) = @_;
	my $numbers = $self->{$what} || {};
	return join(', ', map { "$_: $numbers->{$_}" } sort keys %$numbers) || 'none';
}

# ---- the verdict ----------------------------------------------------------------------------------------------------

# All the tests; call it after stop, with every node up and no link cut.  least_acknowledged => 100: on each node with clients.
sub check
{
	my ($self, %params) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$self->{cluster}->wait_applied;
	$self->_read_histories;
	note('transactions: ' . $self->_numbers('outcomes') . '; errors: ' . $self->_numbers('sqlstates'));
	my $least = $params{least_acknowledged} || 100;
	foreach my $name (@{ $self->{nodes} })
	{
		my ($number) = $name =~ /(\d+)$/;
		cmp_ok($self->{acknowledged_on}{$number} || 0, '>=', $least, "$name: clients got transactions acknowledged");
	}
	$self->{acknowledged_on} = {};
	is($self->_unexpected_sqlstates, '', 'the clients saw no error but those that a quorum gives');
	foreach my $workload ($self->_workloads)
	{
		$self->_read_final_state($workload, $_) foreach $self->{cluster}->nodes;
		$self->_judge($workload);
	}
	$self->{cluster}->assert_same_digest($_, "$_ is the same on all nodes") foreach $self->_tables;
	delete $self->{histories};
	return;
}

# What a cluster with faults may answer, and what an instance that goes down may: anything else is a bug.
sub _unexpected_sqlstates
{
	my ($self) = @_;
	my %allowed = map { $_ => 1 }
	  ('lost', '08007', '25006', '40001', '40P01', '53400', '55P03', '57014', '57P01', '57P02', '57P03', @{ $self->{allow_sqlstates} });
	return join(', ', grep { !$allowed{$_} } sort keys %{ $self->{sqlstates} });
}

sub _read_final_state
{
	my ($self, $workload, $node) = @_;
	my $run = $self->_launch($workload, "final-$workload", $node, $self->{reads});
	ok($run->finish, $node->name . ": the final state of $workload was read");
	return;
}

sub _judge
{
	my ($self, $workload) = @_;
	my @files = map { $_->{file} } @{ $self->{histories}{$workload} };
	my @options = $workload eq 'bank' ? ('--accounts', $accounts, '--initial', $initial_balance) : ();
	my $report = '';
	my $clean = IPC::Run::run([ checker_program(), $workload, @options, @files ], '<', '/dev/null', '>&', \$report);
	my ($numbers) = $report =~ /^(transactions: .*)$/m;
	note("$workload: $numbers") if defined $numbers;
	ok($clean, "the history of $workload shows no anomaly")
	  or diag($report, "histories: $PostgreSQL::Test::Utils::log_path/history_$workload$self->{suffix}.$$.*");
	return $clean;
}

1;
