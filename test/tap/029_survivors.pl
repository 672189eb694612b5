# After quorum.force_new_cluster(): what was acknowledged with the survivor's vote is kept; a node that was left behind hears of it from members that it does
# not know; and two survivors that were both forced stay two clusters.
use strict;
use warnings;
use FindBin;
use IPC::Run;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use Test::More;

sub force_on
{
	my ($node) = @_;
	QuorumCluster::wait_until($node->name . ' to be alone',
		sub { my ($role, $quorum) = $node->status('role', 'has_quorum'); return defined $role && $role ne 'stopped' && $quorum eq 'f'; });
	return $node->query('SELECT quorum.force_new_cluster(accept_data_loss => true)', timeout => 60);
}

my $cluster = QuorumCluster->new(nodes => 3);
my $leader = $cluster->wait_for_leader;
my ($survivor, $bystander) = $cluster->followers;
$leader->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); SELECT quorum.replicate('t')});
$cluster->wait_applied;

# ---- acknowledged_with_its_vote_is_kept
# With one node down each write needs the survivor's vote; the leader dies as soon as the last one is acknowledged, most likely before the survivor hears
# that it is chosen.
$bystander->stop('immediate');
$cluster->write_until_ok(q{INSERT INTO t VALUES (0, 'kept') ON CONFLICT (id) DO NOTHING});
$leader->sql(join(';', map { "INSERT INTO t VALUES ($_, 'kept')" } 1 .. 50));
$leader->kill9(all => 1);
# ---- a_crash_between_request_and_deed
# The worker that is to carry it out stands still, so the request is on disk and nothing else has happened when all processes are killed.
QuorumCluster::wait_until('the survivor to be alone', sub { my ($role, $quorum) = $survivor->status('role', 'has_quorum');
		return defined $role && $role ne 'stopped' && $quorum eq 'f'; });
my $request = $survivor->data_dir . '/pg_quorum/pgsql_tmp_journal/force_new_cluster';
kill('STOP', $survivor->worker_pid('consensus'));
my ($output, $errors) = ('', '');
my $call = IPC::Run::start([ 'psql', '-XAtq', '-d', $survivor->connstr('postgres'), '-c', 'SELECT quorum.force_new_cluster(accept_data_loss => true)' ],
	'<', '/dev/null', '>', \$output, '2>', \$errors);
QuorumCluster::wait_until('the request', sub { -e $request }, 30);
my $kept_request = slurp_file($request);
$survivor->kill9(all => 1);
$call->finish;
ok(-e $request, 'the request was not carried out yet');
$survivor->start;
$cluster->write_until_ok(q{INSERT INTO t VALUES (0, 'kept') ON CONFLICT (id) DO NOTHING});
ok(!-e $request, 'it is carried out at the next start');
is(join(':', $survivor->status('role', 'voters')), 'leader:1', 'the survivor is continued from');

# ---- a_request_is_carried_out_once
# As if the crash had come just before the request was removed.
$survivor->stop;
append_to_file($request, $kept_request);
$survivor->start;
$cluster->write_until_ok(q{INSERT INTO t VALUES (0, 'kept') ON CONFLICT (id) DO NOTHING});
is($survivor->sql(q{SELECT count(*) FROM quorum.log WHERE kind = 'new cluster'}), '1', 'the same request again changes nothing');

is($survivor->sql(q{SELECT count(*) FROM t WHERE v = 'kept'}), '51', 'every acknowledged row is there');

# ---- members_that_it_does_not_know_tell_it
my $newcomer = $cluster->add_instance('n4');
# A join that was interrupted after the leader had taken it in: what is asked for again has the cluster's generation, too.
$survivor->sql(sprintf(q{SELECT quorum.request_membership('n4', '%s', '%s')}, $newcomer->peer_conninfo, $newcomer->sql('SELECT quorum.instance_id()')),
	timeout => 60);
$cluster->join_node($newcomer, $survivor);
is($survivor->sql(q{SELECT string_agg(node_id::text, ',' ORDER BY node_id) FROM quorum.node_members() WHERE node_name = 'n4'}), '4',
	'node ids are not given out again');
$survivor->stop;
$bystander->start;
QuorumCluster::wait_until('the node that was left behind to hear of it', sub { ($bystander->status('role') // '') eq 'removed' });
my $name = $survivor->name;
like($bystander->sql('SELECT last_error FROM quorum.status'), qr/force_new_cluster\(\) on node "$name"/,
	'it was told by a node that it had never heard of');
$_->stop foreach $newcomer, $bystander;

# ---- two_survivors_stay_apart
# The old leader comes back while none of the new cluster's nodes runs, and is forced as well.
$leader->start;
my $forced = force_on($leader);
ok($forced->{ok}, 'another survivor can be continued from too') or BAIL_OUT($forced->{stderr});
my $logged_before = -s $leader->logfile;
$_->start foreach $survivor, $newcomer;
QuorumCluster::wait_until('the two to find each other',
	sub { slurp_file($leader->logfile, $logged_before) =~ /different continuations of the cluster/ });
foreach my $node ($leader, $survivor)
{
	QuorumCluster::wait_until($node->name . "'s cluster to have a leader", sub { ($node->status('has_quorum') // '') eq 't' });
	my $id = $node == $leader ? 100 : 101;
	QuorumCluster::wait_until('a write on ' . $node->name,
		sub { $node->query("INSERT INTO t VALUES ($id, 'apart') ON CONFLICT (id) DO NOTHING", timeout => 10)->{ok} });
}
is($leader->sql(q{SELECT string_agg(id::text, ',') FROM t WHERE v = 'apart'}), '100', 'what one cluster writes is not in the other');
is($newcomer->sql(q{SELECT string_agg(id::text, ',') FROM t WHERE v = 'apart'}), '101', 'and the other way round');
is(join(':', $leader->status('voters', 'role')), '1:leader', 'the one has one member');
is($survivor->status('voters'), '2', 'the other two');

# ---- a_backup_of_another_history_is_refused
# As a backup of a node that was left behind: its tables and their position, but neither identity nor journal.
PostgreSQL::Test::Utils::system_or_bail('rm', '-rf', $bystander->data_dir . '/pg_quorum/pgsql_tmp_journal');
$bystander->start;
my $refusal = $bystander->query("SELECT quorum.join_cluster('n5', '" . $bystander->peer_conninfo . "', via => '"
	  . $survivor->peer_conninfo(user => 'quorum_operator') . "')", timeout => 60);
is($refusal->{sqlstate}, '55000', 'tables that may hold what the log does not are not taken in');
like($refusal->{stderr}, qr/continued by quorum\.force_new_cluster\(\) takes in no node that was made from a backup/, 'and the refusal says why');
QuorumCluster::wait_until('the membership to be given back',
	sub { $survivor->query(q{SELECT string_agg(node_name, ',' ORDER BY node_name) FROM quorum.nodes})->{rows} eq join(',', sort $survivor->name, 'n4') });
pass('and it is no member');

done_testing();
