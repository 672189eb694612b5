
=head1 NAME

FaultLoad - clients that write while a test breaks things, and the comparison of what they were told with what is there

=head1 SYNOPSIS

  my $load = FaultLoad->new($cluster, clients => 4);   # makes and replicates the tables, starts nothing yet
  $load->start;
  my $fault_at = time();
  $leader->kill9;
  my $seconds = $load->wait_for_write($fault_at);      # until one was acknowledged that was begun after that
  $leader->start;
  $load->stop;
  $load->check;                                        # tests: nothing lost, nothing twice, nothing refused, all nodes alike

=head1 DESCRIPTION

Clients and watchers are processes of load_client.c, which says what they do and what an outcome means.  They reach the nodes
through Unix sockets, which a cut link does not touch.

Each transaction of a client inserts a row and counts it in a counter whose new value it keeps in the row.  So it can be seen
afterwards whether a transaction was lost (its row is missing), took effect twice (the counter is ahead of the rows), in part (they
differ), or on top of something that it did not see (two rows with the same value of one counter).

=cut

package FaultLoad;

use strict;
use warnings;

use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $client_program;
my @running;
my $launched = 0;

# The client program, compiled once per test file; the machine has a compiler, or there would be no extension.
sub client_program
{
	return $client_program if $client_program;
	my ($source) = grep { -f } map { "$_/load_client.c" } @INC;
	die 'load_client.c is not beside FaultLoad.pm' unless $source;
	my %config;
	foreach my $name ('includedir', 'libdir')
	{
		chomp($config{$name} = `pg_config --$name`);
	}
	my $program = "$PostgreSQL::Test::Utils::tmp_check/load_client.$$";
	my $output = '';
	IPC::Run::run(
		[
			$ENV{CC} || 'cc', '-O2', '-Wall', '-Wextra', "-I$config{includedir}",
			$source, '-o', $program, "-L$config{libdir}", '-lpq'
		],
		'>&', \$output) or die "could not compile $source: $output\n";
	return $client_program = $program;
}

# FaultLoad->new($cluster, %options)
#  clients => 4				how many write
#  watch => 1				watch each node's status and snapshots
#  pause_us => 3000			between two transactions of a client
#  answer_timeout_ms => 1500	after which a client leaves a node that does not answer
#  commit_timeout => '1s'	quorum.commit_timeout of the clients
#  allow_sqlstates => []	errors that are no surprise here, beside those that a quorum gives
sub new
{
	my ($class, $cluster, %options) = @_;
	my $self = bless {
		cluster => $cluster,
		clients => 4,
		watch => 1,
		pause_us => 3000,
		answer_timeout_ms => 1500,
		commit_timeout => '1s',
		allow_sqlstates => [],
		%options,
		logs => {},
		asleep => {} }, $class;
	$self->_create_tables;
	return $self;
}

sub tables { return ('load_row', 'load_counter', 'load_churn'); }

sub _create_tables
{
	my ($self) = @_;
	my $leader = $self->{cluster}->wait_for_leader;
	$leader->sql(qq{
		CREATE TABLE load_counter (id int PRIMARY KEY, value bigint NOT NULL);
		CREATE TABLE load_row (client int, n bigint, counter int NOT NULL, value bigint NOT NULL, filler text, PRIMARY KEY (client, n));
		CREATE TABLE load_churn (id int PRIMARY KEY, changes int NOT NULL, note text);
		INSERT INTO load_counter SELECT i, 0 FROM generate_series(0, $self->{clients}) AS i});
	$leader->sql("SELECT quorum.replicate('$_')") foreach $self->tables;
	$self->{cluster}->wait_applied;
	return;
}

sub _conninfo
{
	my ($self, $node) = @_;
	return 'host=' . $node->host . ' port=' . $node->port . ' dbname=postgres application_name=load'
	  . " options='-c quorum.commit_timeout=$self->{commit_timeout}'";
}

# ---- running --------------------------------------------------------------------------------------------------------

# May be called again after stop: each attempt keeps a number of its own.
sub start
{
	my ($self) = @_;
	my @nodes = $self->{cluster}->nodes;
	my @conninfos = map { $self->_conninfo($_) } @nodes;
	my $first_attempt = 1 + 10_000_000 * ($self->{starts}++ || 0);
	foreach my $client (1 .. $self->{clients})
	{
		$self->_launch("client $client", 'write', $client, $first_attempt, $self->{pause_us}, $self->{answer_timeout_ms}, @conninfos);
	}
	return unless $self->{watch};
	$self->_launch('watch ' . $_->name, 'watch', 50, $self->_conninfo($_)) foreach @nodes;
	return;
}

sub _launch
{
	my ($self, $name, $mode, @arguments) = @_;
	(my $file = $name) =~ tr/ /_/;
	my $log = "$PostgreSQL::Test::Utils::log_path/load_$file.$$." . ++$launched;
	my ($output, $input) = ('', '');
	my $run = IPC::Run::start([ client_program(), $mode, $log, @arguments ], '<', '/dev/null', '>&', \$output);
	push @running, $run;
	push @{ $self->{running} }, $run;
	$self->{logs}{$name} = { file => $log, read => 0, kind => $mode };
	return;
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
	$self->_read_logs;    # the next start has new ones
	return;
}

END
{
	my $exit_code = $?;
	eval { $_->kill_kill } foreach @running;
	$? = $exit_code;
}

# Reads what the clients have written since the last call.
sub _read_logs
{
	my ($self) = @_;
	foreach my $name (keys %{ $self->{logs} })
	{
		my $log = $self->{logs}{$name};
		open(my $file, '<', $log->{file}) or next;
		seek($file, $log->{read}, 0);
		while (defined(my $line = <$file>))
		{
			last unless $line =~ s/\n\z//;
			$log->{read} = tell($file);
			$log->{kind} eq 'write' ? $self->_note_attempt($name, $line) : $self->_note_watch($name, $line);
		}
	}
	return;
}

sub _note_attempt
{
	my ($self, $name, $line) = @_;
	my ($started, $ended, $n, $outcome, $sqlstate, $node, $text) = split(/ /, $line, 7);
	my ($client) = $name =~ /(\d+)/;
	$self->{attempts}{"$client/$n"} = $outcome;
	$self->{outcomes}{$outcome}++;
	if ($sqlstate ne '00000')
	{
		$self->{sqlstates}{$sqlstate}++;
		$self->{texts}{$sqlstate} = $text;
	}
	push @{ $self->{acknowledged_times} }, [ $started / 1e6, $ended / 1e6 ] if $outcome eq 'acknowledged';
	return;
}

sub _note_watch
{
	my ($self, $name, $line) = @_;
	if ($line =~ /^status (\d+) ([\d.]+) (\w+)/)
	{
		push @{ $self->{status}{$name} }, [ $1 / 1e6, $2 ];
	}
	elsif ($line =~ /^prefix (-?\d+)/)
	{
		$self->{snapshots}++;
		$self->{broken_snapshots}{$name}++ if $1 != 0;
	}
	return;
}

sub acknowledged { my ($self) = @_; $self->_read_logs; return $self->{outcomes}{acknowledged} || 0; }

# Waits until that many more writes are acknowledged.
sub wait_for_writes
{
	my ($self, $count, $timeout_seconds) = @_;
	my $wanted = $self->acknowledged + $count;
	QuorumCluster::wait_until(
		"$count acknowledged writes",
		sub { $self->acknowledged >= $wanted },
		$timeout_seconds || 60,
		sub { 'errors so far: ' . $self->sqlstates });
	return;
}

# Waits for the end of the first acknowledged write that was begun after `since`, which is not before that of an earlier call;
# returns the seconds from then to its end.
sub wait_for_write
{
	my ($self, $since, $timeout_seconds) = @_;
	my $found;
	QuorumCluster::wait_until(
		'an acknowledged write',
		sub {
			$self->_read_logs;
			$self->{acknowledged_times} = [ grep { $_->[0] > $since } @{ $self->{acknowledged_times} || [] } ];
			($found) = sort { $a <=> $b } map { $_->[1] } @{ $self->{acknowledged_times} };
			return defined $found;
		},
		$timeout_seconds || 60,
		sub { 'errors so far: ' . $self->sqlstates });
	return $found - $since;
}

# Status need not answer in time between these two moments: the test had stopped that node.
sub note_asleep
{
	my ($self, $node, $from, $to) = @_;
	push @{ $self->{asleep}{ 'watch ' . $node->name } }, [ $from, $to ];
	return;
}

sub sqlstates
{
	my ($self) = @_;
	my $seen = $self->{sqlstates} || {};
	return join(', ', map { "$_: $seen->{$_}" } sort keys %$seen) || 'none';
}

# What the last error of each SQLSTATE said.
sub texts
{
	my ($self) = @_;
	my $texts = $self->{texts} || {};
	return join("\n", map { "$_: $texts->{$_}" } sort keys %$texts);
}

# ---- the comparison -------------------------------------------------------------------------------------------------

# All the tests; call it after stop, with every node up and no link cut.
sub check
{
	my ($self, %params) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $least = $params{least_acknowledged} || 100;
	$self->_read_logs;
	$self->{cluster}->wait_applied;
	my %outcomes = (acknowledged => 0, refused => 0, unknown => 0, unexpected => 0, %{ $self->{outcomes} || {} });
	note('attempts: ' . join(', ', map { "$_ $outcomes{$_}" } sort keys %outcomes) . '; errors: ' . $self->sqlstates);
	cmp_ok($outcomes{acknowledged}, '>=', $least, 'the clients got writes acknowledged');
	is($self->_unexpected_sqlstates, '', 'the clients saw no error but those that a quorum gives');

	my $rows = $self->_read_rows(($self->{cluster}->nodes)[0]);
	$self->_check_attempts($rows);
	$self->_check_counters($rows, $_) foreach $self->{cluster}->nodes;
	$self->{cluster}->assert_same_digest($_, "$_ is the same on all nodes") foreach $self->tables;
	$self->_check_watch if $self->{watch};
	return;
}

# What a cluster with faults may answer, and what an instance that goes down may: anything else is a bug.
sub _unexpected_sqlstates
{
	my ($self) = @_;
	my %allowed = map { $_ => 1 }
	  ('lost', '08007', '25006', '40001', '40P01', '53400', '57014', '57P01', '57P02', '57P03', @{ $self->{allow_sqlstates} });
	return join(', ', grep { !$allowed{$_} } sort keys %{ $self->{sqlstates} || {} });
}

sub _read_rows
{
	my ($self, $node) = @_;
	my @rows;
	foreach my $line (split(/\n/, $node->sql('COPY (SELECT client, n, counter, value FROM load_row) TO STDOUT', timeout => 120)))
	{
		my ($client, $n, $counter, $value) = split(/\t/, $line);
		push @rows, { id => "$client/$n", counter => $counter, value => $value };
	}
	return \@rows;
}

sub _list
{
	my @ids = sort @_;
	return join(' ', @ids[ 0 .. ($#ids < 9 ? $#ids : 9) ]) . ($#ids > 9 ? ' ...' : '');
}

sub _check_attempts
{
	my ($self, $rows) = @_;
	my %times;
	$times{ $_->{id} }++ foreach @$rows;
	my $attempts = $self->{attempts} || {};

	my @lost = grep { $attempts->{$_} eq 'acknowledged' && !$times{$_} } keys %$attempts;
	is(scalar(@lost), 0, 'every acknowledged insert is there') or diag('missing client/n: ' . _list(@lost));
	my @twice = grep { $times{$_} > 1 } keys %times;
	is(scalar(@twice), 0, 'none is there twice') or diag('twice: ' . _list(@twice));
	my @risen = grep { $attempts->{$_} eq 'refused' && $times{$_} } keys %$attempts;
	is(scalar(@risen), 0, 'no refused one is there') or diag('refused and there: ' . _list(@risen));
	my @unheard = grep { !$attempts->{$_} } keys %times;
	is(scalar(@unheard), 0, 'nothing is there that nobody wrote') or diag('not attempted: ' . _list(@unheard));
	note(sprintf('%d of those with unknown outcome are there', scalar(grep { $attempts->{$_} eq 'unknown' && $times{$_} } keys %$attempts)));
	return;
}

# Each counter's value is the number of its rows, and these hold each value once: no increment lost, doubled or half.
sub _check_counters
{
	my ($self, $rows, $node) = @_;
	my (%rows_of, @gaps);
	push @{ $rows_of{ $_->{counter} } }, $_->{value} foreach @$rows;
	my %value_of = map { split(/\|/, $_) } split(/\n/, $node->sql('SELECT id, value FROM load_counter'));
	foreach my $counter (sort keys %value_of)
	{
		my @values = sort { $a <=> $b } @{ $rows_of{$counter} || [] };
		push @gaps, "counter $counter is $value_of{$counter} and has " . @values . ' rows' if $value_of{$counter} != @values;
		my ($wrong) = grep { $values[$_] != $_ + 1 } 0 .. $#values;
		push @gaps, "counter $counter: value $values[$wrong] in place " . ($wrong + 1) if defined $wrong;
	}
	is(join('; ', @gaps), '', $node->name . ': no increment was lost, doubled or half');
	return;
}

sub _check_watch
{
	my ($self) = @_;
	my @answers;
	foreach my $name (keys %{ $self->{status} || {} })
	{
		my @asleep = @{ $self->{asleep}{$name} || [] };
		foreach my $answer (@{ $self->{status}{$name} })
		{
			my ($asked, $milliseconds) = @$answer;
			next if grep { $asked < $_->[1] && $asked + $milliseconds / 1000 > $_->[0] } @asleep;
			push @answers, $milliseconds;
		}
	}
	@answers = sort { $a <=> $b } @answers;
	cmp_ok(scalar(@answers), '>', 0, 'quorum.status was asked for all the time') or return;
	my %at = map { $_ => $answers[ int($_ / 100 * $#answers) ] } (50, 99, 99.9);
	my $slow = grep { $_ > 100 } @answers;
	diag(sprintf('quorum.status: %d answers, ms at 50 %%: %.1f, 99 %%: %.1f, 99.9 %%: %.1f, longest: %.1f; %d took over 100 ms',
		scalar(@answers), @at{ 50, 99, 99.9 }, $answers[-1], $slow));
	cmp_ok($answers[-1], '<', 5000, 'quorum.status never waited for anything');
	is_deeply($self->{broken_snapshots} || {}, {}, 'each of ' . ($self->{snapshots} || 0) . ' snapshots held whole transactions only');
	return;
}

1;
