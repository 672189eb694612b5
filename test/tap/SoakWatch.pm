
=head1 NAME

SoakWatch - what must not creep in over a long time

=head1 SYNOPSIS

  my $watch = SoakWatch->new($cluster);
  ... load and faults, over and over:
  $watch->look;      # between two of them, while nothing is broken: some tests
  $watch->report;

=head1 DESCRIPTION

Memory: the private memory of each of pg_quorum's workers, from the first look at that process on, grows by no more than what certification may fill
(C<CERTIFIER_KEY_CAPACITY>) and a little.  Sessions: none of the clients' is still at something that it began before the load was stopped.  Server logs: no
assertion, no crash by a signal that no test sends, no error of a worker that no fault explains.

=cut

package SoakWatch;

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;

use constant ALLOWED_GROWTH_KB => 100 * 1024;
use constant STUCK_AFTER_SECONDS => 20;

my $never = qr/assertion "|PANIC:|terminated by signal (?:4|6|7|8|11)\b|is not a member any more|out of memory|has stopped applying the log|differs from the log/;

sub new
{
	my ($class, $cluster) = @_;
	return bless { cluster => $cluster, first_kb => {}, most_kb => {}, growth_kb => {}, log_position => {} }, $class;
}

# Memory that is the process' own: not shared, not of files.
sub private_kb
{
	my ($pid) = @_;
	open(my $file, '<', "/proc/$pid/status") or return;
	my ($kb) = map { /^RssAnon:\s+(\d+) kB/ ? $1 : () } <$file>;
	return $kb;
}

sub _look_at_memory
{
	my ($self, $node) = @_;
	my @grown;
	foreach my $worker ('consensus', 'apply', 'lock watcher')
	{
		my $pid = $node->worker_pid($worker) or next;
		my $kb = private_kb($pid) or next;
		my $name = $node->name . " $worker";
		my $growth = $kb - ($self->{first_kb}{"$name $pid"} //= $kb);
		$self->{most_kb}{$worker} = $kb if $kb > ($self->{most_kb}{$worker} // 0);
		$self->{growth_kb}{$worker} = $growth if $growth > ($self->{growth_kb}{$worker} // 0);
		push @grown, "$name: $growth kB" if $growth > ALLOWED_GROWTH_KB;
	}
	is(join(', ', @grown), '', $node->name . ': the memory of the workers is flat');
	return;
}

sub _look_at_sessions
{
	my ($self, $node) = @_;
	is($node->sql(q{SELECT string_agg(format('%s: %s %s', pid, state, query), ', ') FROM pg_stat_activity
		WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND query !~ '^(CALL quorum.peer_stream|peer stream from)'
		  AND state <> 'idle' AND xact_start < now() - interval '} . STUCK_AFTER_SECONDS . q{ s'}),
		'', $node->name . ': no session is stuck');
	return;
}

# What was logged since the last look.
sub _look_at_log
{
	my ($self, $node) = @_;
	my $position = $self->{log_position}{ $node->name } // 0;
	open(my $file, '<', $node->logfile) or die $node->logfile . ": $!";
	seek($file, $position, 0);
	my @bad = grep { /$never/ } <$file>;
	$self->{log_position}{ $node->name } = tell($file);
	is(join('', @bad[ 0 .. ($#bad < 4 ? $#bad : 4) ]), '', $node->name . ': nothing is in its log that should never be there');
	return;
}

sub look
{
	my ($self) = @_;
	foreach my $node ($self->{cluster}->nodes)
	{
		$self->_look_at_memory($node);
		$self->_look_at_sessions($node);
		$self->_look_at_log($node);
	}
	return;
}

sub report
{
	my ($self) = @_;
	diag(sprintf('%s: at most %d kB private memory, grown by %d kB at most since its start', $_, $self->{most_kb}{$_}, $self->{growth_kb}{$_} // 0))
	  foreach sort keys %{ $self->{most_kb} };
	return;
}

1;
