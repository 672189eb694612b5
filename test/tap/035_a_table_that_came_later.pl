# Who lets a node join with its rows has said that those of the cluster's tables may go; not those of a table that the cluster got afterwards.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use IPC::Run;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use Test::More;

my $cluster = QuorumCluster->new(nodes => 3, conf => "max_prepared_transactions = 5\n");
$cluster->wait_for_leader->sql('CREATE TABLE main (id int PRIMARY KEY)');
$cluster->wait_for_leader->sql(q{SELECT quorum.replicate('main')}, timeout => 60);
$cluster->wait_for_leader->sql(q{INSERT INTO main VALUES (1)}, timeout => 60);
$cluster->wait_applied;
my ($victim) = $cluster->followers;
my $name = $victim->name;
my @others = grep { $_ != $victim } $cluster->nodes;
$others[0]->sql("SELECT quorum.remove_node('$name')", timeout => 90);
$victim->{outside} = 1;
QuorumCluster::wait_until('the node to be removed', sub { ($victim->status('role') // '') eq 'removed' }, 60);
$victim->sql('SELECT quorum.leave_cluster()', timeout => 60);
$victim->sql('CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late VALUES (42)');
$victim->sql(q{BEGIN; INSERT INTO main VALUES (2); PREPARE TRANSACTION 'p'});
my ($output, $errors);
my $join = IPC::Run::start([ 'psql', '-XAtq', '-d', $victim->connstr('postgres'), '-c', sprintf(
	q{SELECT quorum.join_cluster('%s', '%s', via => '%s', keep_rows => true)}, $name, $victim->peer_conninfo,
	$others[0]->peer_conninfo(user => 'quorum_operator')) ], '<', '/dev/null', '>', \$output, '2>', \$errors);
QuorumCluster::wait_until('the node to be a member', sub { -e $victim->data_dir . '/pg_quorum/pgsql_tmp_journal/identity' }, 60);
$victim->stop('fast');
$join->finish;
my $leader = $cluster->wait_for_leader;
$leader->sql('CREATE TABLE late (id int PRIMARY KEY)');
my $replicated = $leader->query(q{SELECT quorum.replicate('late')}, timeout => 60);
ok($replicated->{ok}, 'a table is replicated while the node is down') or BAIL_OUT($replicated->{stderr});
$leader->sql('INSERT INTO late VALUES (1)');
$victim->start;
$victim->sql(q{COMMIT PREPARED 'p'});
QuorumCluster::wait_until('the node to say what is in the way, or to be in', sub { my $error = $victim->status(q{coalesce(last_error, '')}) // '';
	return $error =~ /public\.late/ || ($victim->status('applied_index') // 0) > 0 }, 60);
like($victim->status(q{coalesce(last_error, '')}), qr/table "public\.late" .* with other contents/, 'it says what is in the way');
is($victim->query(q{SET quorum.read_consistency = 'local'; SELECT id FROM late})->{rows}, '42', 'and the rows are where they were');
$victim->sql('ALTER TABLE late RENAME CONSTRAINT late_pkey TO of_this_node_pkey; ALTER TABLE late RENAME TO of_this_node');
QuorumCluster::wait_until('the node to be a voter', sub {
	$cluster->wait_for_leader->query("SELECT is_voter FROM quorum.nodes WHERE node_name = '$name'")->{rows} eq 't' }, 90);
delete $victim->{outside};
$cluster->assert_same_digest($_, "then it has the cluster's: $_") foreach qw(main late);
is($victim->sql('SELECT id FROM of_this_node'), '42', 'and still its own');
done_testing();
