# Read probes are answered beside the consensus worker, from what it has published: that it has promised nothing but a ballot, and, of its leader, how far the log
# is chosen. A node that takes no part any more, or not as the one that was asked, must not answer: who counted it for a majority could tell a reader that nothing
# newer was acknowledged.
#
# The worst moment is tried: the backend of a link has received half of a probe when the node steps aside, and gets the other half afterwards. Nothing wakes it
# in between.
#
# CASES=regex: if it does not match its name, the last case is left out, which takes the longest.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PeerLink;
use QuorumCluster;
use Test::More;

use constant { STRANGER => 9, HALF => 20 };

my $cluster = QuorumCluster->new(nodes => 1, form => 0);
my ($node) = $cluster->nodes;

sub probe
{
	my ($ballot) = @_;
	return PeerLink::message('d', PeerLink::frame(PeerLink::READ_PROBE, pack('Q>NQ>', split(/\./, $ballot), 7), 4));
}

sub half_a_probe
{
	my ($ballot) = @_;
	my $link = PeerLink->open($node, from => STRANGER);
	$link->write(substr(probe($ballot), 0, HALF));
	return $link;
}

sub leading_ballot { $cluster->wait_for_leader(agreed_by => [$node]); return $node->status('ballot'); }

# What comes before the link ends.
sub answers_to_the_rest
{
	my ($link, $ballot) = @_;
	my $answers = 0;
	$link->write(substr(probe($ballot), HALF));
	while (my ($type) = $link->read_message)
	{
		$answers++ if $type eq 'd';
		last if $type eq 'd';
	}
	return $answers;
}

sub found_cluster { $node->sql("SELECT quorum.create_cluster('n1', '" . $node->peer_conninfo . "')"); return leading_ballot(); }

# ---- who leads answers ----

my $ballot = found_cluster();
my $link = half_a_probe($ballot);
$link->write(substr(probe($ballot), HALF));
my ($type, $body) = $link->read_message;
is($type, 'd', 'a leader answers a probe of its ballot');
is_deeply([ unpack('x3Cx4Q>NQ>Q>C', $body) ], [ PeerLink::READ_ANSWER, split(/\./, $ballot), 7, $node->status('chosen_index'), 1 ],
	'and says how far the log is chosen');

# ---- another cluster, another node: the same ballot means something else ----

my $before_leaving = half_a_probe($ballot);
my $before_return = half_a_probe($ballot);
$node->sql('SELECT quorum.leave_cluster(force => true)');
is(answers_to_the_rest($before_leaving, $ballot), 0, 'a node that has left its cluster answers nothing');
is(found_cluster(), $ballot, 'the same instance leads another cluster, in the same ballot');
is(answers_to_the_rest($before_return, $ballot), 0, 'on a link of the earlier cluster it answers nothing');

# ---- the worker ends ----

# The postmaster stands still, so that no other worker begins.
$link = half_a_probe($ballot);
my $worker = $node->worker_pid('consensus');
kill 'STOP', $node->{_pid};
kill 'TERM', $worker;
QuorumCluster::wait_until('the worker to end', sub { (QuorumNode::process_state($worker) || 'Z') eq 'Z' }, 30);
my $answers = eval { answers_to_the_rest($link, $ballot) };
kill 'CONT', $node->{_pid};
is($answers, 0, 'a node whose consensus worker has ended answers nothing');

QuorumCluster::wait_until('another worker', sub { ($node->worker_pid('consensus') || $worker) != $worker }, 30);
$ballot = leading_ballot();
$link = half_a_probe($ballot);
kill 'KILL', $node->worker_pid('consensus');
is(answers_to_the_rest($link, leading_ballot()), 0, 'a crash of the consensus worker ends all links before it begins anew');

# ---- refused as having forgotten ----

sub refused_node_answers_nothing
{
	my $name = 'a node that was refused as having forgotten its promises answers nothing';
	return if defined $ENV{CASES} && $name !~ /$ENV{CASES}/;
	my $learner = $cluster->add_instance('n2');
	$learner->sql("SELECT quorum.join_cluster('n2', '" . $learner->peer_conninfo . "', via => '" . $node->peer_conninfo(user => 'quorum_operator')
		. "', as_voter => false)", timeout => 120);
	$learner->stop;
	$ballot = leading_ballot();
	my $link = half_a_probe($ballot);
	my $impostor = PeerLink::listen_at($learner->port, PeerLink::refused('QU004', 'you have forgotten what you promised'));
	QuorumCluster::wait_until('the node to step aside', sub { $node->status('role') eq 'stopped' }, 30);
	is(answers_to_the_rest($link, $ballot), 0, $name);
	like($node->status('last_error'), qr/forgotten/, 'and says why');
	PeerLink::stop_listening($impostor);
	return;
}

refused_node_answers_nothing();
$cluster->cleanup;
done_testing();
