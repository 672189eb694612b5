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

# Intervals that leave time to propose before the leader notices that it is alone.
my $cluster = QuorumCluster->new(
	nodes => 3,
	namespaces => $namespaces,
	conf => "quorum.heartbeat_interval = '400ms'\nquorum.election_timeout = '1500ms'");
$cluster->wait_for_leader->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); SELECT quorum.replicate('t')});
$cluster->wait_applied;

# What is known of each row, for the last look at the end.
my (%sqlstate_of, %rows_of);
my $next_id = 1;

# The leader loses the others, each in its way.  Where it still can send to them, they may agree without it: then the row may be seen
# on them, though not on it.
my %part = (
	'others stopped' => sub { my ($leader, @others) = @_; $_->sigstop foreach @others; },
	'links cut' => sub { my ($leader) = @_; $cluster->isolate($leader); },
	'answers cut' => sub { my ($leader, @others) = @_; $cluster->cut_one_way(\@others, $leader); });

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
	return $node->sql("SET quorum.read_consistency = 'local'; SELECT count(*) FROM t WHERE id = $id");
}

# It is in the leader's own journal, and nobody knows of a majority: what a crash or a new leader may find.
sub wait_until_proposed
{
	my ($leader, $name) = @_;
	my $proposed = eval {
		QuorumCluster::wait_until(
			'the proposal to be in the journal',
			sub {
				return $leader->sql(q{
					SELECT n.accepted_index > s.chosen_index FROM quorum.nodes AS n JOIN quorum.status AS s USING (node_name)}) eq 't';
			},
			5);
	};
	ok($proposed, "$name: COMMIT has proposed") or diag($@);
	return;
}

# Each: what the waiting session sets first, what happens to it, and the SQLSTATEs that it may get, if it gets one.
my @events = (
	{
		name => 'pg_cancel_backend',
		one_way_too => 1,
		set => "SET quorum.commit_timeout = 0",
		happens => sub { my ($leader, $session) = @_; $leader->sql('SELECT pg_cancel_backend(' . $session->backend_pid . ')'); },
		answers => qr/^08007$/
	},
	{
		name => 'pg_terminate_backend',
		set => "SET quorum.commit_timeout = 0",
		happens => sub { my ($leader, $session) = @_; $leader->sql('SELECT pg_terminate_backend(' . $session->backend_pid . ')'); },
		answers => qr/^08007$/
	},
	{
		name => 'commit_timeout',
		set => "SET quorum.commit_timeout = '1500ms'",
		happens => sub { },
		answers => qr/^08007$/
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
		one_way_too => 1,
		set => "SET quorum.commit_timeout = 0",
		happens => sub { my ($leader, $session) = @_; kill('KILL', $session->backend_pid); },
		answers => qr/^lost$/,
		restarts => 1
	},
	{
		name => 'fast stop',
		set => "SET quorum.commit_timeout = 0",
		happens => sub { my ($leader) = @_; $leader->stop('fast'); },
		answers => qr/^(?:lost|08007)$/
	},
	{
		name => 'immediate stop',
		one_way_too => 1,
		set => "SET quorum.commit_timeout = 0",
		happens => sub { my ($leader) = @_; $leader->stop('immediate'); },
		answers => qr/^(?:lost|08007|57P02)$/
	},
	{
		# Nothing happens but that the others come back: success, or one of the honest errors.
		name => 'the others return',
		one_way_too => 1,
		set => "SET quorum.commit_timeout = '30s'",
		happens => sub { },
		return_first => 1,
		answers => qr/^(?:00000|40001|08007)$/
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
	wait_until_proposed($leader, $name);
	is(rows_with($leader, $id), '0', "$name: not seen on the leader while it waits");

	my $sqlstate = 'lost';
	if (!$event->{return_first})
	{
		$event->{happens}->($leader, $session);
		$sqlstate = $session->outcome if $event->{answers};
		like($sqlstate, $event->{answers}, "$name: the client is told the truth ($sqlstate)") if $event->{answers};
		QuorumCluster::wait_until($leader->name . ' to restart', sub { defined $leader->status('role') }) if $event->{restarts};
		foreach my $node (grep { $_->is_awake && ($_ == $leader || $parting ne 'answers cut') } $cluster->nodes)
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
		skip('links can be cut by those only who may make network namespaces', 1) if $parting =~ /cut/ && !$namespaces;
		undecided_commit_is_never_seen($parting, $_) foreach grep { $parting ne 'answers cut' || $_->{one_way_too} } @events;
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
