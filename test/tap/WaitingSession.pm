
=head1 NAME

WaitingSession - a psql whose COMMIT may wait while the test goes on

=head1 SYNOPSIS

  my $session = WaitingSession->new($leader);
  $session->run('BEGIN; INSERT INTO t VALUES (1)');    # dies on an error
  $session->send('COMMIT');                            # returns at once
  $session->wait_until_waiting($leader);               # until its backend waits, as pg_stat_activity shows it
  my $sqlstate = $session->outcome;                    # '00000', that of the error, or 'lost'
  $session->kill;                                      # kill -9 of psql: a client that disappears
  $session->finish;

=cut

package WaitingSession;

use strict;
use warnings;

use IPC::Run;
use Time::HiRes qw(time usleep);

my @open;

sub new
{
	my ($class, $node, %options) = @_;
	my $self = bless { node => $node, input => '', output => '', error => '', timer => IPC::Run::timeout(60) }, $class;
	$self->{run} = IPC::Run::start(
		[
			'psql', '-X', '-q', '-A', '-t', '-v', 'VERBOSITY=verbose', '-d', $node->connstr($options{dbname} || 'postgres')
		],
		'<', \$self->{input}, '>', \$self->{output}, '2>', \$self->{error}, $self->{timer});
	push @open, $self;
	$self->{backend_pid} = $self->run('SELECT pg_backend_pid()');
	return $self;
}

sub backend_pid { my ($self) = @_; return $self->{backend_pid}; }

# Sends statements without waiting for their end; `outcome` is that of the last.
sub send
{
	my ($self, $sql) = @_;
	$self->{output} = $self->{error} = '';
	$self->{input} .= "$sql;\n\\echo outcome :SQLSTATE\n";
	$self->{run}->pump_nb;
	return;
}

# Sends statements and waits; returns the output, dies on an error.
sub run
{
	my ($self, $sql) = @_;
	$self->send($sql);
	my $sqlstate = $self->outcome;
	die $self->{node}->name . ": $sql\nfailed: $self->{error}\n" unless $sqlstate eq '00000';
	(my $output = $self->{output}) =~ s/^outcome .*\n//m;
	chomp($output);
	return $output;
}

sub is_done { my ($self) = @_; $self->{run}->pump_nb; return $self->{output} =~ /^outcome /m ? 1 : 0; }

# Waits for the end of what was sent.  A session that a FATAL error ended has the SQLSTATE of that.
sub outcome
{
	my ($self, $timeout_seconds) = @_;
	$self->{timer}->start($timeout_seconds || 60);
	eval {
		$self->{run}->pump until $self->{output} =~ /^outcome (\w+)\n/m || !$self->{run}->pumpable;
		1;
	} or die $self->{node}->name . ": no answer: $@";
	$self->{timer}->reset;
	return $1 if $self->{output} =~ /^outcome (\w+)\n/m && $1 ne '57P02' && !$self->_is_lost;
	return $1 if $self->{error} =~ /FATAL:\s+([0-9A-Z]{5}):/;
	return 'lost';
}

sub _is_lost { my ($self) = @_; return $self->{error} =~ /connection to server was lost|closed the connection unexpectedly/; }

sub error { my ($self) = @_; return $self->{error}; }

# What the statements showed.
sub output { my ($self) = @_; return $self->{output}; }

# Until the backend waits inside pg_quorum; dies if it ends instead.
sub wait_until_waiting
{
	my ($self) = @_;
	QuorumCluster::wait_until(
		'COMMIT to wait',
		sub {
			die $self->{node}->name . ': COMMIT did not wait: ' . $self->{output} . $self->{error} . "\n" if $self->is_done;
			my $event = $self->{node}->query(
				"SELECT wait_event_type FROM pg_stat_activity WHERE pid = $self->{backend_pid} AND query LIKE 'COMMIT%'");
			return $event->{rows} eq 'Extension';
		},
		10);
	return;
}

# The client is gone, without a word.
sub kill
{
	my ($self) = @_;
	my ($psql) = map { $_->{PID} } @{ $self->{run}{KIDS} };
	CORE::kill('KILL', $psql);
	eval { $self->{run}->finish };
	@open = grep { $_ != $self } @open;
	return;
}

sub finish
{
	my ($self) = @_;
	$self->{timer}->reset;
	eval { $self->{run}->kill_kill(grace => 1) };
	@open = grep { $_ != $self } @open;
	return;
}

END
{
	my $exit_code = $?;
	$_->finish foreach my @left = @open;
	$? = $exit_code;
}

1;
