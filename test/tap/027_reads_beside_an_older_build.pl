# Reads are linearizable, and go on, where some nodes know read probes and others do not: frames of version 4 beside those of version 3.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use OlderBuild;
use Test::More;

my $older = OlderBuild->new(frame_version => 3);
my $cluster = QuorumCluster->new(nodes => 3);
my $value = 0;
$older->prepare($_) foreach $cluster->nodes;
$cluster->wait_for_leader->sql("CREATE TABLE register (id int PRIMARY KEY, value int); SELECT quorum.replicate('register'); INSERT INTO register VALUES (1, 0)");
$cluster->wait_applied;

# Each node writes in turn, and the others read at once what it has written.
sub reads_are_linearizable
{
	my ($what) = @_;
	my %session = map { ($_->name => $_->session) } $cluster->nodes;
	my $stale = 0;
	foreach my $round (1 .. 60)
	{
		my $writer = ($cluster->nodes)[ $round % 3 ];
		$value++;
		$session{ $writer->name }->query_safe("UPDATE register SET value = $value WHERE id = 1");
		foreach my $node ($cluster->nodes)
		{
			$stale++ if $session{ $node->name }->query_safe('SELECT value FROM register') != $value;
		}
	}
	$_->quit foreach values %session;
	is($stale, 0, "$what: each read sees what was written before it");
	return;
}

sub lead
{
	my ($target) = @_;
	my $leader = $cluster->wait_for_leader;
	$leader->sql('SELECT quorum.transfer_leadership($$' . $target->name . '$$)') unless $leader == $target;
	QuorumCluster::wait_until($target->name . ' to lead', sub { ($target->status('role') // '') eq 'leader' });
	$cluster->wait_for_leader;
	return;
}

# Only a leader hears of all the others.
sub all_linked
{
	QuorumCluster::wait_until('all links', sub { $cluster->wait_for_leader->sql('SELECT count(*) FROM quorum.nodes WHERE reachable') eq '3' });
	return;
}

my ($one, $two, $three) = $cluster->nodes;
lead($one);
reads_are_linearizable('all of the newer build');

$older->install($two);
lead($one);
all_linked();
reads_are_linearizable('a follower of the older build');
like(PostgreSQL::Test::Utils::slurp_file($one->logfile), qr/speaks the older version/, 'the link with it says so');

lead($two);
all_linked();
reads_are_linearizable('a leader of the older build');

$older->remove($two);
lead($three);
all_linked();
reads_are_linearizable('all of the newer build again');
foreach my $node ($cluster->nodes)
{
	unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile), qr/because of an invalid frame/, $node->name . ' was sent nothing that it does not understand');
}
done_testing();
