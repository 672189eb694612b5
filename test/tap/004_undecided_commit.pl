# A COMMIT waits for a quorum that does not answer, and something happens to it: nothing that the quorum did not agree on is ever
# seen, the client is told the truth, and all nodes hold the same afterwards.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use WaitingSession;
use Test::More;

# Links are cut where the test may do that; processes are stopped everywhere.
my $namespaces = ($ENV{QUORUM_NAMESPACES} || '') eq 'yes';

# An election timeout that leaves time to send a COMMIT before the leader notices that it is alone.
my $cluster = QuorumCluster->new(nodes => 3, namespaces => $namespaces, conf => "quorum.election_timeout = '1s'");
$cluster->wait_for_leader->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); SELECT quorum.replicate('t')});
$cluster->wait_applied;

# What is known of each row, for the last look at the end.
my (%sqlstate_of, %rows_of);
my $next_id = 1;

# The leader loses the others, each in its way.
my %part = (
	'others stopped' => sub { my ($leader, @others) = @_; $_->sigstop foreach @others; },
	'links cut' => sub { my ($leader) = @_; $cluster->isolate($leader); });

sub put_together
{
	$cluster->heal if $namespaces;
	foreach my $node ($cluster->nodes)
	{
		$node->sigcont if $node->{stopped_by_signal};
		$node->start unless $node->is_running;
	}
	return;
}

sub rows_with
{
	my ($node, $id) = @_;
	return $node->sql("SELECT count(*) FROM t WHERE id = $id");
}

# Each: what the waiting session sets first, what happens to it, and the SQLSTATEs that it may get ('' when it gets none).
# 57014 and 57P01 are plain cancel and terminate: nothing has left the instance, so they must be as true as 40001.
my @events = (
	{
		name => 'pg_cancel_backend',
		set => "SET quorum.commit_timeout = 0",
		happens => sub { my ($leader, $session) = @_; $leader->sql('SELECT pg_cancel_backend(' . $session->backend_pid . ')'); },
		answers => qr/^(?:08007|57014)$/
	},
	{
		name => 'pg_terminate_backend',
		set => "SET quorum.commit_timeout = 0",
		happens => sub { my ($leader, $session) = @_; $leader->sql('SELECT pg_terminate_backend(' . $session->backend_pid . ')'); },
		answers => qr/^(?:08007|57P01)$/
	},
	{
		name => 'commit_timeout',
		set => "SET quorum.commit_timeout = '1500ms'",
		happens => sub { },
		answers => qr/^(?:08007|25006)$/
	},
	{
		# Without commit_timeout: it is the backend that notices.
		name => 'a client that disappears',
		set => "SET quorum.commit_timeout = 0",
		happens => sub {
			my ($leader, $session) = @_;
			$session->kill;
			QuorumCluster::wait_until('the backend without a client to leave',
				sub { !QuorumNode::process_state($session->backend_pid) }, 15);
		}
	},
	{
		# The instance restarts itself.
		name => 'kill -9 of the backend',
		set => "SET quorum.commit_timeout = 0",
		happens => sub { my ($leader, $session) = @_; kill('KILL', $session->backend_pid); },
		answers => qr/^(?:lost|08007|57P0\d)$/,
		restarts => 1
	},
	{
		name => 'fast stop',
		set => "SET quorum.commit_timeout = 0",
		happens => sub { my ($leader) = @_; $leader->stop('fast'); },
		answers => qr/^(?:lost|08007|57P0\d)$/
	},
	{
		name => 'immediate stop',
		set => "SET quorum.commit_timeout = 0",
		happens => sub { my ($leader) = @_; $leader->stop('immediate'); },
		answers => qr/^(?:lost|08007|57P0\d)$/
	},
	{
		# Nothing happens but that the others come back: success, or one of the honest errors.
		name => 'the others return',
		set => "SET quorum.commit_timeout = '30s'",
		happens => sub { },
		return_first => 1,
		answers => qr/^(?:00000|40001|25006|08007)$/
	});

# 08007 and a lost connection say that the outcome is not known; success that it is there; the rest that it is not, now or later.
sub assert_honest
{
	my ($id, $sqlstate, $name) = @_;
	my %rows = map { $_->name => rows_with($_, $id) } $cluster->nodes;
	my ($one) = values %rows;
	is(scalar(grep { $_ eq $one } values %rows), 3, "$name: all nodes agree on the row") or diag(explain(\%rows));
	if ($sqlstate eq '00000')
	{
		is($one, '1', "$name: acknowledged, and there");
	}
	elsif ($sqlstate !~ /^(?:lost|08007|57P0[23])$/)
	{
		is($one, '0', "$name: refused with $sqlstate, and not there");
	}
	$sqlstate_of{$id} = $sqlstate;
	$rows_of{$id} = $one;
	return;
}

sub undecided_commit_is_never_seen
{
	my ($parting, $event) = @_;
	my $name = "$parting, $event->{name}";
	my $id = $next_id++;
	my $leader = $cluster->wait_for_leader;
	my @others = grep { $_ != $leader } $cluster->nodes;
	my $session = WaitingSession->new($leader);
	$session->run("$event->{set}; BEGIN; INSERT INTO t VALUES ($id, '$event->{name}')");
	$part{$parting}->($leader, @others);
	$session->send('COMMIT');
	$session->wait_until_waiting;
	is(rows_with($leader, $id), '0', "$name: not seen on the leader while it waits");

	my $sqlstate = 'lost';
	if (!$event->{return_first})
	{
		$event->{happens}->($leader, $session);
		$sqlstate = $session->outcome if $event->{answers};
		like($sqlstate, $event->{answers}, "$name: the client is told the truth ($sqlstate)") if $event->{answers};
		QuorumCluster::wait_until($leader->name . ' to restart', sub { defined $leader->status('role') }) if $event->{restarts};
		foreach my $node (grep { $_->is_awake } $cluster->nodes)
		{
			is(rows_with($node, $id), '0', "$name: not seen on " . $node->name . ' while no quorum has agreed');
		}
	}
	put_together();
	if ($event->{return_first})
	{
		$sqlstate = $session->outcome;
		like($sqlstate, $event->{answers}, "$name: the client is told the truth ($sqlstate)");
	}
	$session->finish;

	# ---- writes_work_again_by_themselves
	$cluster->write_until_ok("INSERT INTO t VALUES (100000 + $id, 'again') ON CONFLICT DO NOTHING");
	$cluster->wait_applied;
	assert_honest($id, $sqlstate, $name);
	return;
}

foreach my $parting (sort keys %part)
{
	SKIP:
	{
		skip('links can be cut by those only who may make network namespaces', 1) if $parting eq 'links cut' && !$namespaces;
		undecided_commit_is_never_seen($parting, $_) foreach @events;
	}
}

# ---- what_was_refused_stays_so: nothing of it came back with a later leader or restart
$cluster->wait_applied;
foreach my $id (sort { $a <=> $b } keys %sqlstate_of)
{
	next if $sqlstate_of{$id} =~ /^(?:lost|08007|57P0[23])$/;
	is(rows_with($cluster->wait_for_leader, $id), $rows_of{$id}, "row $id ($sqlstate_of{$id}) is still as the client was told");
}
$cluster->assert_same_digest('t', 'all nodes hold the same in the end');

done_testing();
