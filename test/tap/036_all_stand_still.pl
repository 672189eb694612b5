# Every node's consensus worker stands still for longer than an election is waited for, as where a disk that they share is slow to sync: nobody was in a
# minority meanwhile, so what was queued is not refused for it, but committed when they go on and have elected a leader.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use WaitingSession;
use Test::More;
use Time::HiRes qw(usleep);

# Four of these are waited for.
my $cluster = QuorumCluster->new(nodes => 2, conf => "quorum.heartbeat_interval = '100ms'\nquorum.election_timeout = '1s'\n");
my $leader = $cluster->wait_for_leader;
my ($follower) = $cluster->followers;
$leader->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); SELECT quorum.replicate('t')});
$cluster->wait_applied;

my @sessions = map { WaitingSession->new($_) } $leader, $follower;
$sessions[$_]->run("BEGIN; INSERT INTO t VALUES ($_, 'queued')") foreach 0, 1;
my @workers = map { $_->worker_pid('consensus') } $cluster->nodes;
kill('STOP', @workers);
$_->send('COMMIT') foreach @sessions;
$_->wait_until_waiting foreach @sessions;
usleep(4_500_000);
is(scalar(grep { $_->is_done } @sessions), 0, 'both wait');
kill('CONT', @workers);
is($sessions[0]->outcome, '00000', 'what was queued on the leader is committed') or diag($sessions[0]->error);
is($sessions[1]->outcome, '00000', 'what was queued on the follower, too') or diag($sessions[1]->error);
$_->finish foreach @sessions;
$cluster->assert_same_digest('t', 'on both nodes');
is($leader->sql('SELECT count(*) FROM t'), '2', 'all of it');

done_testing();
