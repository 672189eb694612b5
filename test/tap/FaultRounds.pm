
=head1 NAME

FaultRounds - round after round of a fault that is drawn by lot, under load

=head1 SYNOPSIS

  my $rounds = FaultRounds->new($cluster, $load, kinds => [ FaultRounds::kills() ], seed => 42);
  $rounds->run(12);
  $rounds->report;

=head1 DESCRIPTION

Each round breaks one node, the leader every other time or so, waits until a write that was begun afterwards is acknowledged, and
puts right what only a hand can put right: a killed server is started, a link healed, a stopped process continued.  The next round
begins after a pause drawn by lot, in half of the cases without waiting until the broken node has caught up.

The seed of the lots is printed; SEED=n gives the same faults again, though not the same timing.

=cut

package FaultRounds;

use strict;
use warnings;

use FaultLoad;
use Test::More;
use Time::HiRes qw(time usleep);

my %break = (
	'kill -9 of all processes' => sub { my ($self, $node) = @_; $node->kill9(all => 1); },
	'kill -9 of the postmaster' => sub { my ($self, $node) = @_; $node->kill9; },
	'kill -9 of one process' => sub {
		my ($self, $node) = @_;
		my ($postmaster, @children) = $node->processes;
		my $pid = $children[ $self->lot(scalar @children) ];
		$self->{detail} = QuorumNode::process_title($pid);
		kill('KILL', $pid);
	},
	'immediate stop' => sub { my ($self, $node) = @_; $node->stop('immediate'); },
	'kill -9 of every node' => sub {
		my ($self) = @_;
		$_->kill9(all => 1) foreach $self->{cluster}->nodes;
		$_->start foreach $self->{cluster}->nodes;
	},
	'kill -9 of this and another one' => sub {
		my ($self, $node) = @_;
		my @others = grep { $_ != $node } $self->{cluster}->nodes;
		my @victims = ($node, $others[ $self->lot(scalar @others) ]);
		$_->kill9(all => 1) foreach @victims;
		$_->start foreach @victims;
	},
	'power cut' => sub { my ($self, $node) = @_; $self->_power_cut($node); },
	'power cut of every node' => sub {
		my ($self) = @_;
		my @nodes = $self->{cluster}->nodes;
		$self->_power_cut(@nodes);
		$_->start foreach @nodes;
	},
	'power cut of this and another one' => sub {
		my ($self, $node) = @_;
		my @others = grep { $_ != $node } $self->{cluster}->nodes;
		my @victims = ($node, $others[ $self->lot(scalar @others) ]);
		$self->_power_cut(@victims);
		$_->start foreach @victims;
	},
	'a storm of cancels' => sub { my ($self, $node) = @_; storm($node, 'pg_cancel_backend'); },
	'a storm of terminates' => sub { my ($self, $node) = @_; storm($node, 'pg_terminate_backend'); },
	'standstill' => sub { my ($self, $node) = @_; $self->{asleep_since} = time(); $node->sigstop; },
	'cut both ways' => sub { my ($self, $node) = @_; $self->{cluster}->isolate($node); },
	'cut: sends, does not hear' => sub {
		my ($self, $node) = @_;
		$self->{cluster}->cut_one_way([ grep { $_ != $node } $self->{cluster}->nodes ], $node);
	},
	'cut: hears, does not send' => sub {
		my ($self, $node) = @_;
		$self->{cluster}->cut_one_way($node, [ grep { $_ != $node } $self->{cluster}->nodes ]);
	},
	'cut from one other' => sub {
		my ($self, $node) = @_;
		my @others = grep { $_ != $node } $self->{cluster}->nodes;
		$self->{cluster}->cut($node, $others[ $self->lot(scalar @others) ]);
	},);

sub kills { return ('kill -9 of all processes', 'kill -9 of the postmaster', 'kill -9 of one process'); }
sub disasters { return ('kill -9 of every node', 'kill -9 of this and another one'); }
sub storms { return ('a storm of cancels', 'a storm of terminates'); }
# For a cluster with power_loss.
sub power_cuts { return ('power cut', 'power cut of every node', 'power cut of this and another one'); }
sub standstills { return ('standstill', 'immediate stop'); }

sub cuts
{
	return ('cut both ways', 'cut: sends, does not hear', 'cut: hears, does not send', 'cut from one other');
}

# In one half of the cases all that was not synced is lost, in the other a part of it.
sub _power_cut
{
	my ($self, @nodes) = @_;
	my $keep = $self->lot(2) ? 'random' : 'none';
	my @done = $self->{cluster}->power_cut(\@nodes, keep => $keep, seed => $self->lot(2**31));
	$self->{detail} = "survivors: $keep; " . join('; ', @done);
	return;
}

# Every session of the clients, again and again, in whatever state it is just then.
sub storm
{
	my ($node, $function) = @_;
	$node->query(qq{
		DO \$\$
		BEGIN
			FOR i IN 1 .. 100 LOOP
				PERFORM $function(pid) FROM pg_stat_activity WHERE application_name = 'load' AND query NOT LIKE '%quorum.status%';
				PERFORM pg_stat_clear_snapshot();
				PERFORM pg_sleep(0.001 * (i % 7));
			END LOOP;
		END \$\$}, timeout => 60);
	return;
}

# FaultRounds->new($cluster, $load, kinds => [...], seed => n)
sub new
{
	my ($class, $cluster, $load, %options) = @_;
	my $seed = $ENV{SEED} || $options{seed} || int(rand(2**31));
	diag("seed of the faults: $seed");
	my $random_state = $seed % 2147483647 || 1;
	return bless { cluster => $cluster, load => $load, kinds => $options{kinds}, random_state => $random_state, seconds => {} }, $class;
}

# A number below `limit`; of this object's own generator, as other modules use Perl's.
sub lot
{
	my ($self, $limit) = @_;
	$self->{random_state} = $self->{random_state} * 48271 % 2147483647;
	return int($self->{random_state} / 2147483647 * $limit);
}

sub run
{
	my ($self, $count) = @_;
	foreach my $number (1 .. $count)
	{
		$self->_one_round($number);
		$self->{done}++;
	}
	return;
}

sub _one_round
{
	my ($self, $number) = @_;
	my $cluster = $self->{cluster};
	my $leader = $cluster->wait_for_leader;
	my @others = grep { $_ != $leader } $cluster->nodes;
	my $victim = $self->lot(2) ? $leader : $others[ $self->lot(scalar @others) ];
	my $kind = $self->{kinds}[ $self->lot(scalar @{ $self->{kinds} }) ];
	$victim = $leader if $kind =~ /storm/;    # the clients are there
	my $role = $victim == $leader ? 'leader' : 'follower';

	$self->{detail} = '';
	$break{$kind}->($self, $victim);
	my $seconds = $self->{load}->wait_for_write(time());
	push @{ $self->{seconds}{$role}{$kind} }, $seconds;
	note(sprintf('round %d: %s, %s %s%s: a write after %.2f s',
		$number, $victim->name, $role, $kind, $self->{detail} ? " ($self->{detail})" : '', $seconds));

	usleep(1000 * $self->lot(400));
	$self->_repair($victim);
	usleep(1000 * $self->lot(300));
	$cluster->wait_applied if $self->lot(2);
	return;
}

sub _repair
{
	my ($self, $node) = @_;
	$self->{cluster}->heal if $self->{cluster}->has_cuts;
	if ($node->{stopped_by_signal})
	{
		$node->sigcont;
		$self->{load}->note_asleep($node, $self->{asleep_since}, time() + 0.5);
	}
	$node->start unless $node->is_running;
	QuorumCluster::wait_until($node->name . ' to answer again', sub { defined $node->status('role') });
	return;
}

# A whole soak test: ROUNDS (200) rounds with a cluster and clients of their own, everything compared after each 50 of them, so that
# what went wrong is found near to its cause.
sub soak
{
	my ($cluster, @kinds) = @_;
	my $count = $ENV{ROUNDS} || 200;
	my $load = FaultLoad->new($cluster, clients => 4, pause_us => 10_000);
	my $self = FaultRounds->new($cluster, $load, kinds => \@kinds);
	$load->start;
	$load->wait_for_writes(50);
	for (my $left = $count; $left > 0; $left -= 50)
	{
		$self->run($left < 50 ? $left : 50);
		$load->stop;
		$load->check(least_acknowledged => 20 * $self->{done});
		$load->start if $left > 50;
	}
	$self->report;
	return;
}

# The time from each kind of fault to the next acknowledged write.
sub report
{
	my ($self) = @_;
	foreach my $role (sort keys %{ $self->{seconds} })
	{
		foreach my $kind (sort keys %{ $self->{seconds}{$role} })
		{
			my @seconds = sort { $a <=> $b } @{ $self->{seconds}{$role}{$kind} };
			diag(sprintf('%s of the %s, %d times: next write after %.2f s (median), %.2f s (longest)',
				$kind, $role, scalar(@seconds), $seconds[ $#seconds / 2 ], $seconds[-1]));
		}
	}
	return;
}

1;
