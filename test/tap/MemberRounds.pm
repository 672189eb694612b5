
=head1 NAME

MemberRounds - round after round of a change of members that is drawn by lot, with a fault in the middle of it, under load

=head1 SYNOPSIS

  my $rounds = MemberRounds->new($cluster, $load, first_members => 3);
  $rounds->run(30);
  $rounds->report;

=head1 DESCRIPTION

Each round asks some node for a change (a node joins as a voter or as a learner, one is removed or leaves, a dead one is replaced, the leadership
is handed over) and meanwhile, perhaps, kills a node, stops it for a while or cuts it off.  Whatever became of the change, the round then puts
everything right that only a hand can put right, and ends when each instance is either a whole member or none at all.

An instance that leaves drops its tables in the same transaction, so that no client can take them for the cluster's.

=cut

package MemberRounds;

use strict;
use warnings;

use FaultRounds;
use IPC::Run;
use Test::More;
use Time::HiRes qw(time usleep);

our @ISA = ('FaultRounds');

my $drop_tables = 'DROP TABLE IF EXISTS load_row, load_counter, load_churn';

sub new
{
	my ($class, $cluster, $load, %options) = @_;
	my $self = FaultRounds::new($class, $cluster, $load, kinds => [], %options);
	$self->{namespaces} = $options{namespaces};
	return $self;
}

# ---- who is who -----------------------------------------------------------------------------------------------------

sub members { my ($self) = @_; return grep { !$_->{outside} } $self->{cluster}->nodes; }
sub outsiders { my ($self) = @_; return grep { $_->{outside} } $self->{cluster}->nodes; }
sub voters { my ($self) = @_; return grep { !$_->{learner} } $self->members; }

sub pick { my ($self, @from) = @_; return @from ? $from[ $self->lot(scalar @from) ] : undef; }

# What the leader's configuration says: name => is_voter.
sub configuration
{
	my ($self) = @_;
	my $leader = $self->{cluster}->wait_for_leader;
	my $result = $leader->query('SELECT node_name, as_voter FROM quorum.nodes', timeout => 10);
	return unless $result->{ok} && $result->{rows} ne '';
	return { map { split(/\|/, $_) } split(/\n/, $result->{rows}) };
}

# ---- changes: what is asked of which node; undef: not possible now ---------------------------------------------------

sub _join
{
	my ($self, $node, $as_voter) = @_;
	my $via = $self->pick(grep { $_->is_awake } $self->members);
	return [ "join of " . $node->name . ($as_voter ? '' : ' as a learner'), $node,
		"SELECT quorum.join_cluster('" . $node->name . "', '" . $node->peer_conninfo . "', via => '"
		  . $via->peer_conninfo(user => 'quorum_operator') . "', as_voter => " . ($as_voter ? 'true' : 'false') . ')' ];
}

my %change = (
	'join' => sub {
		my ($self) = @_;
		my $node = $self->pick($self->outsiders);
		return $node && $self->voters < 5 ? $self->_join($node, 1) : undef;
	},
	'learner' => sub {
		my ($self) = @_;
		my $node = $self->pick($self->outsiders);
		return $node && !grep({ $_->{learner} } $self->members) ? $self->_join($node, 0) : undef;
	},
	'remove' => sub {
		my ($self) = @_;
		my $victim = $self->pick($self->members);
		my $caller = $self->pick($self->members);
		return if $self->voters <= 3 && !$victim->{learner};
		return [ 'removal of ' . $victim->name . ' by ' . $caller->name, $caller, "SELECT quorum.remove_node('" . $victim->name . "')" ];
	},
	'leave' => sub {
		my ($self) = @_;
		my $victim = $self->pick($self->members);
		return if $self->voters <= 3 && !$victim->{learner};
		return [ 'leaving of ' . $victim->name, $victim, leave_sql() ];
	},
	'replace' => sub {
		my ($self) = @_;
		my ($victim, $caller) = ($self->pick($self->voters), $self->pick($self->voters));
		return if $victim == $caller || $self->voters < 3;
		$victim->kill9(all => 1);
		return [ 'removal of ' . $victim->name . ', which is dead, by ' . $caller->name, $caller,
			"SELECT quorum.remove_node('" . $victim->name . "')" ];
	},
	'transfer' => sub {
		my ($self) = @_;
		my ($target, $caller) = ($self->pick($self->voters), $self->pick($self->members));
		return [ 'transfer to ' . $target->name . ' by ' . $caller->name, $caller, "SELECT quorum.transfer_leadership('" . $target->name . "')" ];
	});

# In one transaction, so that no client ever writes into what was replicated a moment ago.
sub leave_sql
{
	return "SET quorum.read_consistency = 'local'; DO \$\$ BEGIN PERFORM quorum.leave_cluster(); $drop_tables; END \$\$";
}

# ---- faults ---------------------------------------------------------------------------------------------------------

my %fault = (
	'kill -9' => sub { my ($self, $node) = @_; $node->kill9(all => 1); },
	'kill -9 of the consensus worker' => sub { my ($self, $node) = @_; my $pid = $node->worker_pid('consensus'); kill('KILL', $pid) if $pid; },
	'fast restart' => sub { my ($self, $node) = @_; $node->restart; },
	'standstill' => sub { my ($self, $node) = @_; $node->sigstop; usleep(1000 * (200 + $self->lot(1500))); $node->sigcont; },
	'cut' => sub { my ($self, $node) = @_; $self->{cluster}->isolate($node); usleep(1000 * (200 + $self->lot(2000))); $self->{cluster}->heal; });

sub _strike
{
	my ($self) = @_;
	my @kinds = ('none', 'kill -9', 'kill -9', 'kill -9 of the consensus worker', 'fast restart', 'standstill', $self->{namespaces} ? ('cut', 'cut') : ());
	my $kind = $self->pick(@kinds);
	return '' if $kind eq 'none';
	my $leader = $self->{cluster}->leader;
	my @others = $self->lot(4) ? $self->members : $self->{cluster}->nodes;
	my $node = $self->lot(3) == 0 && $leader ? $leader : $self->pick(grep { $_->is_awake } @others);
	return '' unless $node && $node->is_awake;
	$fault{$kind}->($self, $node);
	return "$kind of " . $node->name;
}

# ---- a round --------------------------------------------------------------------------------------------------------

# Runs while faults strike; a server that dies ends it.
sub begin_call
{
	my ($node, $sql) = @_;
	my %call = (stdout => '', stderr => '', started => time());
	my $script = "SET statement_timeout = '40s'; $sql";
	$call{run} = IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-v', 'VERBOSITY=verbose', '-d', $node->connstr('postgres'), map { ('-c', $_) } split_script($script) ],
		'<', '/dev/null', '>', \$call{stdout}, '2>', \$call{stderr});
	return \%call;
}

# psql runs each -c as a transaction of its own, which leave_cluster() needs.
sub split_script
{
	my ($script) = @_;
	my ($before, $do) = $script =~ /^(.*?)(DO \$\$.*)$/s;
	return ((grep { /\S/ } split(/;\s*/, $before // $script)), defined $do ? $do : ());
}

sub end_call
{
	my ($call) = @_;
	eval { $call->{run}->finish; };
	my ($sqlstate) = $call->{stderr} =~ /(?:ERROR|FATAL|PANIC):\s+([0-9A-Z]{5}):/;
	return sprintf('%s after %.1f s', $call->{run}->result ? ($sqlstate || 'connection lost') : 'done', time() - $call->{started});
}

sub _one_round
{
	my ($self, $number) = @_;
	my ($kind, $what);
	do
	{
		$kind = $self->pick(sort keys %change);
		$what = $change{$kind}->($self);
	} until $what;
	my ($text, $node, $sql) = @$what;
	my $call = begin_call($node, $sql);
	usleep(1000 * $self->lot(600));
	my $fault = $self->_strike;
	usleep(1000 * $self->lot(300));
	$_->start foreach grep { !$_->is_running && ($kind ne 'replace' || $self->lot(2)) } $self->{cluster}->nodes;
	my $outcome = end_call($call);
	$self->{outcomes}{$kind}{ $outcome =~ /^done/ ? 'done' : 'failed' }++;
	note("round $number: $text: $outcome" . ($fault ? "; $fault" : ''));
	$self->_put_right;
	$self->{load}->wait_for_write(time(), 120);
	note('members: ' . join(' ', map { $_->name . ($_->{learner} ? ' (learner)' : '') } $self->members));
	return;
}

# Until each instance is a member, and knows it, or none at all.
sub _put_right
{
	my ($self) = @_;
	my $cluster = $self->{cluster};
	my $last = 'nothing';
	$cluster->heal if $self->{namespaces};
	$_->start foreach grep { !$_->is_running } $cluster->nodes;
	QuorumCluster::wait_until(
		'all to be members or none',
		sub {
			$last = $self->_put_one_right;
			return $last eq '';
		},
		180,
		sub { "last was: $last" });
	$cluster->wait_for_leader(timeout => 120);
	return;
}

# Who leads, whoever this test takes for a member.
sub _find_configuration
{
	my ($self) = @_;
	foreach my $node ($self->{cluster}->nodes)
	{
		my $result = $node->query(q{SELECT role, has_quorum, (SELECT string_agg(node_name || ' ' || as_voter, ',') FROM quorum.nodes) FROM quorum.status},
			timeout => 10);
		my ($role, $has_quorum, $members) = split(/\|/, $result->{rows} // '', -1);
		next unless $result->{ok} && $role eq 'leader' && $has_quorum eq 't';
		return { map { my ($name, $as_voter) = split(/ /, $_); ($name => $as_voter eq 'true') } split(/,/, $members) };
	}
	return;
}

# One step; says what is not right yet, '' if all is.
sub _put_one_right
{
	my ($self) = @_;
	my $members = $self->_find_configuration or return 'no leader';
	foreach my $node ($self->{cluster}->nodes)
	{
		my $name = $node->name;
		my $result = $node->query('SELECT role, node_name, (SELECT count(*) FROM quorum.replicated_table) FROM quorum.status', timeout => 10);
		return "$name does not answer: $result->{stderr}" unless $result->{ok};
		my ($role, $own_name, $tables) = split(/\|/, $result->{rows}, -1);
		if (exists $members->{$name})
		{
			$node->{learner} = !$members->{$name};
			delete $node->{outside};
			# Its join was interrupted before it had an identity.
			return $self->_remove_by_any($name) if $own_name eq '' && $tables == 0;
			return "$name is $role and listed" if $role eq 'removed' || $role eq 'stopped' || $own_name eq '';
			next;
		}
		$node->{outside} = 1;
		delete $node->{learner};
		next if $own_name eq '' && $tables == 0;
		return "$name is $role, and not listed" unless $role eq 'removed' || $own_name eq '';
		my $left = $self->_run($node, leave_sql());
		return "$name left: $left";
	}
	return '';
}

sub _run
{
	my ($self, $node, $sql) = @_;
	my $call = begin_call($node, $sql);
	my $outcome = end_call($call);
	return "$outcome $call->{stderr}";
}

sub _remove_by_any
{
	my ($self, $name) = @_;
	my $caller = $self->pick(grep { $_->name ne $name } $self->members);
	return "removal of $name: " . $self->_run($caller, "SELECT quorum.remove_node('$name')");
}

# ---- judgement ------------------------------------------------------------------------------------------------------

# A ballot belongs to one node, and to one life of it.
sub check_ballots
{
	my ($self) = @_;
	my %leader_of;
	foreach my $node ($self->{cluster}->nodes)
	{
		my $log = PostgreSQL::Test::Utils::slurp_file($node->logfile);
		$leader_of{$2}{ $node->name . ' ' . $1 } = 1 while $log =~ /\[(\d+)\] LOG:  node "[^"]*" is now leader in ballot (\d+\.\d+)/g;
	}
	my @shared = grep { keys %{ $leader_of{$_} } > 1 } sort keys %leader_of;
	is(join(', ', @shared), '', 'no ballot had two leaders, of ' . keys(%leader_of) . ' ballots');
	return;
}

# FaultLoad's comparison, on the members.
sub check_load
{
	my ($self, %params) = @_;
	my $cluster = $self->{cluster};
	my @all = $cluster->nodes;
	local $cluster->{nodes} = [ $self->members ];
	$self->{load}->check(%params);
	return;
}

sub report
{
	my ($self) = @_;
	foreach my $kind (sort keys %{ $self->{outcomes} })
	{
		my $seen = $self->{outcomes}{$kind};
		diag(sprintf('%s: %d done, %d ended otherwise', $kind, $seen->{done} || 0, $seen->{failed} || 0));
	}
	return;
}

1;
