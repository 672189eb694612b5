
=head1 NAME

PowerLoss - a directory whose unsynced writes a test can lose, as a power cut does

=head1 SYNOPSIS

  my $power = PowerLoss->new(log_dir => $directory, data_dir => $node->data_dir);
  system($power->environment, 'pg_ctl', ...);        # all processes below it are watched
  ...                                                # kill -9 for all of them
  $power->cut(keep => 'none');                       # or 'random', seed => n
  $power->lie_about('pgsql_tmp_journal');            # from now on an fsync of these files does nothing; '' ends it

=head1 DESCRIPTION

power_loss_shim.c says what is watched and what counts as durable at once, power_loss.c what `random` keeps.  QuorumNode's power_cut is
what tests of clusters use.  The record of what is not durable outlives a crash of the instance, as the kernel's cache does; a file that
the test itself changes while the instance is down must not have unsynced changes.

=cut

package PowerLoss;

use strict;
use warnings;

use Cwd qw(realpath);
use IPC::Run;
use PostgreSQL::Test::Utils;

my %built;

# A source file beside this one, compiled once per test file.
sub build
{
	my ($name, @options) = @_;
	return $built{$name} if $built{$name};
	my ($source) = grep { -f } map { "$_/$name.c" } @INC;
	die "$name.c is not beside PowerLoss.pm" unless $source;
	my $target = "$PostgreSQL::Test::Utils::tmp_check/$name.$$";
	my $output = '';
	IPC::Run::run([ $ENV{CC} || 'cc', '-O2', '-Wall', '-Wextra', '-o', $target, $source, @options ], '>&', \$output)
	  or die "could not compile $source: $output\n";
	return $built{$name} = $target;
}

# PowerLoss->new(data_dir => the directory, which is there; log_dir => where its record goes, outside of it; megabytes => 128)
sub new
{
	my ($class, %options) = @_;
	my $self = bless { megabytes => 128, %options }, $class;
	$self->{data_dir} = realpath($self->{data_dir});
	$self->{log} = realpath($self->{log_dir}) . '/undo_log';
	build('power_loss_shim', '-shared', '-fPIC');
	$self->_run('make', $self->{log}, $self->{megabytes});
	return $self;
}

sub _run
{
	my ($self, @arguments) = @_;
	my $output = '';
	IPC::Run::run([ build('power_loss'), @arguments ], '<', '/dev/null', '>&', \$output)
	  or die "power_loss @arguments: $output\n";
	chomp($output);
	return $output;
}

# What to put before a command that is to be watched.
sub environment
{
	my ($self) = @_;
	my $library = realpath(build('power_loss_shim'));
	return ('env', "LD_PRELOAD=$library", "POWER_LOSS_LOG=$self->{log}", "POWER_LOSS_DATA=$self->{data_dir}");
}

# No process of the instance may be left.  Returns a line that says what was done.
sub cut
{
	my ($self, %params) = @_;
	return $self->_run('cut', $self->{log}, $self->{data_dir}, $params{keep} || 'none', $params{seed} || 0);
}

sub lie_about { my ($self, $text) = @_; return $self->_run('lie', $self->{log}, $text); }

# From now on each fsync of a changed file takes that much longer, so that a cut falls into one; 0: no more.
sub slow_syncs { my ($self, $microseconds) = @_; return $self->_run('slow', $self->{log}, $microseconds); }

# Counters: changes, syncs, ignored, written_back, not_durable, ring_used.
sub counters { my ($self) = @_; return split(/ /, $self->_run('show', $self->{log})); }

1;
