# Changes of the members that meet: what the one is told that comes second, and that nobody is refused for what passes by itself.
#
# The heartbeats are so far apart that a leader whose followers stand still goes on for a while as if they answered.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use WaitingSession;
use Test::More;

my $cluster = QuorumCluster->new(nodes => [ 'n1', 'n2', 'n3', 'n4', 'n5' ], form => 0,
	conf => "quorum.heartbeat_interval = '10s'\nquorum.election_timeout = '30s'\n");
my ($n1, $n2, $n3, $n4, $n5) = $cluster->nodes;
$_->{outside} = 1 foreach $n1, $n2, $n3, $n4, $n5;
$n1->sql("SELECT quorum.create_cluster('n1', '" . $n1->peer_conninfo . "')");
delete $n1->{outside};
$cluster->join_node($_, $n1) foreach $n2, $n3;
my $leader = $cluster->wait_for_leader;
my @followers = $cluster->followers;

sub join_sql
{
	my ($node, $name) = @_;
	return "SELECT quorum.join_cluster('$name', '" . $node->peer_conninfo . "', via => '" . $leader->peer_conninfo(user => 'quorum_operator') . "')";
}

sub members { return $leader->sql('SELECT string_agg(node_name, $$ $$ ORDER BY node_name) FROM quorum.nodes'); }

# Backends of the leader that serve a request for membership, and wait so.
sub requests
{
	my ($wait_event_type) = @_;
	return split(/\n/, $leader->sql("SELECT pid FROM pg_stat_activity WHERE coalesce(wait_event_type, '') LIKE '$wait_event_type' AND query ~ '^SELECT cluster_id.*request_membership'"));
}

# ---- two_joins_of_one_name -----------------------------------------------------------------------------------------
# The second asks while the first one's entry is proposed and not chosen.  Without the first one's lock, as it has been cancelled, and its backend on the
# leader has noticed.
{
	my ($first, $second) = map { WaitingSession->new($_) } $n4, $n5;
	kill('STOP', $_->worker_pid('consensus')) foreach @followers;
	$first->send(join_sql($n4, 'same'));
	QuorumCluster::wait_until('the first one to be proposed', sub { return scalar(requests('Extension')); });
	$n4->sql('SELECT pg_cancel_backend(' . $first->backend_pid . ')');
	is($first->outcome, '57014', 'the first one does not know whether it is a member') or diag($first->error);
	QuorumCluster::wait_until('the first one to be gone', sub { return !requests('%'); });
	$second->send(join_sql($n5, 'same'));
	QuorumCluster::wait_until('the second one to be proposed', sub { return scalar(requests('Extension')); });
	kill('CONT', $_->worker_pid('consensus')) foreach @followers;
	is($second->outcome, '42710', 'the second one of the same name is told so') or diag($second->error);
	like($second->error, qr/already has a node named "same".*DETAIL:.*conninfo.*HINT:.*another name/s, 'with what to do');
	$_->finish foreach $first, $second;
	is(members(), 'n1 n2 n3 same', 'the first one is a member');
	ok($n4->query(join_sql($n4, 'same'), timeout => 120)->{ok}, 'and takes its membership up when it asks again');
	delete $n4->{outside};
}
$cluster->cleanup;

# ---- the_leader_waits_a_moment_for_who_is_about_to_be_reached ------------------------------------------------------
# One of three stands still.  It cannot take the leadership over, and without another one there would be no quorum, until it goes on.
{
	my $usual = QuorumCluster->new(nodes => [ 'm1', 'm2', 'm3' ]);

	# The outcome of a statement on the leader that cannot be carried out while `late` stands still, which goes on only when the statement waits.
	my $asked_while_still = sub {
		my ($late, $sql) = @_;
		my $chief = $usual->wait_for_leader;
		$late->sigstop;
		QuorumCluster::wait_until('the leader to notice', sub { $usual->wait_for_leader->status('voters_reachable') eq '2' });
		my $session = WaitingSession->new($chief);
		$session->send($sql);
		QuorumCluster::wait_until('the statement to wait', sub {
			return $session->is_done || $chief->sql('SELECT wait_event_type FROM pg_stat_activity WHERE pid = ' . $session->backend_pid) eq 'Extension';
		});
		$late->sigcont;
		my $outcome = $session->outcome;
		diag($session->error) if $outcome ne '00000';
		$session->finish;
		return $outcome;
	};

	my ($late) = $usual->followers;
	is($asked_while_still->($late, "SELECT quorum.transfer_leadership('" . $late->name . "')"), '00000',
		'the leadership can be given to a node that comes back in time');
	is($usual->wait_for_leader->name, $late->name, 'and it leads');

	my $removed;
	($late, $removed) = $usual->followers;
	is($asked_while_still->($late, "SELECT quorum.remove_node('" . $removed->name . "')"), '00000', 'a voter can go when the other one is back in time');
	$removed->{outside} = 1;
	is($usual->wait_for_leader->sql('SELECT count(*) FROM quorum.nodes'), '2', 'and has gone');
}
done_testing();
