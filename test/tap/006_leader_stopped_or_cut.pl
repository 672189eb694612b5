# The leader stands still, or is cut off in one direction or both, under load: the others elect and take writes, the old leader comes
# back as a follower and catches up, and no two leaders acknowledge what excludes each other.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use FaultLoad;
use WaitingSession;
use Test::More;
use Time::HiRes qw(time usleep);

my $namespaces = ($ENV{QUORUM_NAMESPACES} || '') eq 'yes';
my $cluster = QuorumCluster->new(nodes => 3, namespaces => $namespaces);
my $load = FaultLoad->new($cluster, clients => 3, pause_us => 8000);
$cluster->wait_for_leader->sql(q{
	CREATE TABLE contested (id int PRIMARY KEY, takers text NOT NULL);
	SELECT quorum.replicate('contested');
	INSERT INTO contested SELECT i, '' FROM generate_series(1, 20) AS i});
$cluster->wait_applied;

my $asleep_since;
my @faults = (
	{
		name => 'standstill',
		break => sub { my ($leader) = @_; $asleep_since = time(); $leader->sigstop; },
		repair => sub {
			my ($leader) = @_;
			$leader->sigcont;
			$load->note_asleep($leader, $asleep_since, time() + 0.5);
		}
	},
	{
		name => 'cut both ways',
		break => sub { my ($leader) = @_; $cluster->isolate($leader); },
		needs_links => 1
	},
	{
		name => 'leader sends and does not hear',
		break => sub {
			my ($leader) = @_;
			$cluster->cut_one_way([ grep { $_ != $leader } $cluster->nodes ], $leader);
		},
		needs_links => 1
	},
	{
		name => 'leader hears and does not send',
		break => sub {
			my ($leader) = @_;
			$cluster->cut_one_way($leader, [ grep { $_ != $leader } $cluster->nodes ]);
		},
		needs_links => 1
	});

# Takes a row of which both sides think that nobody has it yet.
sub take
{
	my ($id, $who) = @_;
	return "UPDATE contested SET takers = takers || '$who' WHERE id = $id";
}

my $id = 0;
$load->start;
$load->wait_for_writes(20);
foreach my $fault (@faults)
{
	SKIP:
	{
		skip("$fault->{name}: links can be cut by those only who may make network namespaces", 1)
		  if $fault->{needs_links} && !$namespaces;
		my $old = $cluster->wait_for_leader;
		my ($contested, $queued) = ($id + 1, $id + 2);
		$id += 2;

		# One that proposes when the leader is cut off already, one that does so when it is back.
		my $during = WaitingSession->new($old);
		my $afterwards = WaitingSession->new($old);
		$during->run("SET quorum.commit_timeout = '20s'; BEGIN; " . take($contested, 'o'));
		$afterwards->run('BEGIN; ' . take($queued, 'o'));
		$fault->{break}->($old);
		my $broken_at = time();
		$during->send('COMMIT');

		# ---- others_elect_and_take_writes
		my $seconds = $load->wait_for_write($broken_at);
		my $new = $cluster->wait_for_leader(not => $old, agreed_by => [ grep { $_ != $old } $cluster->nodes ]);
		pass(sprintf('%s: a write was acknowledged after %.2f s', $fault->{name}, $seconds));
		$new->sql(take($contested, 'n'));
		$new->sql(take($queued, 'n'));

		# ---- old_leader_returns_as_a_follower_and_catches_up
		$fault->{repair} ? $fault->{repair}->($old) : $cluster->heal;
		$afterwards->send('COMMIT');
		my %sqlstate = (during => $during->outcome, afterwards => $afterwards->outcome);
		QuorumCluster::wait_until($old->name . ' to follow', sub { ($old->status('role') // '') eq 'follower' });
		$cluster->wait_applied;
		is($old->status('role'), 'follower', "$fault->{name}: the old leader follows");

		# ---- two_ballots_never_acknowledge_both
		foreach my $session ([ $contested, 'during' ], [ $queued, 'afterwards' ])
		{
			my ($row, $when) = @$session;
			my $name = "$fault->{name}, COMMIT on the old leader $when ($sqlstate{$when})";
			like($sqlstate{$when}, qr/^(?:00000|40001|25006|08007)$/, "$name: an honest outcome");
			my %takers = map { $_->sql("SELECT takers FROM contested WHERE id = $row") => 1 } $cluster->nodes;
			my ($takers) = keys %takers;
			is(scalar(keys %takers), 1, "$name: all nodes agree");
			like($takers, qr/n/, "$name: what the new leader acknowledged is there ($takers)");
			like($takers, $sqlstate{$when} eq '00000' ? qr/^[on]{2}$/ : $sqlstate{$when} eq '08007' ? qr/^[on]{1,2}$/ : qr/^n$/,
				"$name: what the old one said is true");
		}
		$_->finish foreach $during, $afterwards;
		$cluster->assert_same_digest('contested', "$fault->{name}: all nodes hold the same");
	}
}

# ---- one_missing_link_stops_nobody: the leader and one follower do not hear each other, but both hear the third
SKIP:
{
	skip('links can be cut by those only who may make network namespaces', 1) unless $namespaces;
	my $leader = $cluster->wait_for_leader;
	my ($follower) = grep { $_ != $leader } $cluster->nodes;
	$cluster->cut($leader, $follower);
	foreach my $try (1 .. 5)
	{
		my $seconds = $load->wait_for_write(time());
		pass(sprintf('a link is missing, try %d: a write was acknowledged after %.2f s', $try, $seconds));
		usleep(300_000);
	}
	$cluster->heal;
}

$load->wait_for_writes(20);
$load->stop;
$load->check;

done_testing();
