# Builds with neighbouring versions of the protocol form one cluster: each node in turn is upgraded, and downgraded again, and the others go on
# writing.  What only the newer version knows is used when both ends know it, and refused until then.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use FaultLoad;
use OlderBuild;
use Test::More;

my $older = OlderBuild->new;
my $cluster = QuorumCluster->new(nodes => 3, form => 0);
foreach my $node ($cluster->nodes)
{
	$older->prepare($node);
	$older->install($node);
}
$cluster->form;
my $load = FaultLoad->new($cluster, clients => 3, watch => 0, pause_us => 10_000);

# Restarts the node by `move`, and returns how many links it has opened then, once there are two, and how many of them are in an older version.
sub links_after
{
	my ($node, $move) = @_;
	my $position = -s $node->logfile;
	my ($all, $old) = (0, 0);
	$move->($node);
	QuorumCluster::wait_until(
		'the links of ' . $node->name,
		sub {
			my $log = substr(PostgreSQL::Test::Utils::slurp_file($node->logfile), $position);
			my %linked = map { $_ => 1 } $log =~ /link to node "(n\d)" is up/g;
			$all = () = $log =~ /link to node "n\d" is up/g;
			$old = () = $log =~ /speaks the older version/g;
			return keys %linked == 2;
		});
	return ($all, $old);
}

sub move_all
{
	my ($what, $move) = @_;
	foreach my $node ($cluster->nodes)
	{
		my $name = $node->name;
		$move->($node);
		my $seconds = $load->wait_for_write(time());
		$cluster->wait_for_leader;
		QuorumCluster::wait_until("$name to catch up", sub { ($node->status('has_quorum') // '') eq 't' });
		$cluster->wait_applied;
		$load->wait_for_writes(50);
		pass("$name is $what, and the cluster writes");
	}
	return;
}

$load->start;
$load->wait_for_writes(50);

# ---- one_node_at_a_time_is_upgraded --------------------------------------------------------------------------------
my ($first) = $cluster->nodes;
my ($all, $old) = links_after($first, sub { $older->remove($first) });
$cluster->wait_for_leader;
is($old, $all, 'an upgraded node speaks the older version with those that know no other');
$load->wait_for_writes(50);
move_all('upgraded', sub { my ($node) = @_; $older->remove($node); });

# ---- once_both_ends_know_the_newer_version_it_is_used
foreach my $node ($cluster->nodes)
{
	($all, $old) = links_after($node, sub { $node->restart });
	$cluster->wait_for_leader;
	is($old, 0, $node->name . ' speaks the newer version with the others');
}
my ($target) = $cluster->followers;
$cluster->wait_applied;
my $transfer = $target->query('SELECT quorum.transfer_leadership($$' . $target->name . '$$)');
ok($transfer->{ok}, 'and hand over, what the older build does not know') or diag($transfer->{stderr});
$load->wait_for_writes(50);

# ---- one_node_at_a_time_is_downgraded ------------------------------------------------------------------------------
my $leader = $cluster->wait_for_leader;
my ($downgraded) = $cluster->followers;
$older->install($downgraded);
QuorumCluster::wait_until('the leader to speak with it', sub { $cluster->wait_for_leader->sql('SELECT count(*) FROM quorum.nodes WHERE reachable') eq '3' });
$cluster->wait_for_leader;
$load->wait_for_writes(50);

# A member that is not to vote cannot be written so that the older build reads it.
if ($cluster->wait_for_leader == $leader)
{
	my $learner = $cluster->add_instance('n4');
	$learner->{outside} = 1;
	my $refused = $learner->query("SELECT quorum.join_cluster('n4', '" . $learner->peer_conninfo . "', via => '"
		. $leader->peer_conninfo(user => 'quorum_operator') . "', as_voter => false)", timeout => 60);
	is($refused->{sqlstate}, '0A000', 'a learner is refused as long as one member runs the older build') or diag($refused->{stderr});
	$learner->stop('immediate');
	@{ $cluster->{nodes} } = grep { $_ != $learner } $cluster->nodes;
}
move_all('downgraded', sub { my ($node) = @_; $older->install($node); });

# ---- a_node_with_rows_joins_by_an_older_build: which knows only to copy all of them
my $returning = ($cluster->followers)[0];
my $member = (grep { $_ != $returning } $cluster->nodes)[0];
my $of_returning = $returning->name;
$load->stop;    # no client is to take tables for the cluster's that are ordinary now
$member->sql("SELECT quorum.remove_node('$of_returning')", timeout => 90);
$returning->{outside} = 1;
QuorumCluster::wait_until('the node to be removed', sub { ($returning->status('role') // '') eq 'removed' }, 60);
$returning->sql('SELECT quorum.leave_cluster()', timeout => 60);
$older->remove($returning);
my $join = $returning->query("SELECT quorum.join_cluster('$of_returning', '" . $returning->peer_conninfo . "', via => '"
	. $member->peer_conninfo(user => 'quorum_operator') . "', keep_rows => true)", timeout => 120);
ok($join->{ok}, 'a node with rows joins a cluster of older builds') or diag($join->{stderr});
delete $returning->{outside};
like(PostgreSQL::Test::Utils::slurp_file($returning->logfile), qr/version 2 of the copying of tables is not known here.*copied \d+ replicated tables from node/s,
	'by a copy of all rows, since no donor knows how to compare them');
$cluster->wait_for_leader;
$load->start;
$load->wait_for_writes(50);

# ---- nothing_was_lost
$load->stop;
$load->check(least_acknowledged => 300);
done_testing();
