# A node that joins with rows and can't get on with its copy takes nobody hostage: not the cluster, not its donor's dead rows, not its own operator.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use IPC::Run;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use Test::More;

my $cluster = QuorumCluster->new(nodes => 3, conf => "max_prepared_transactions = 5\nquorum.copy_lock_timeout = '20s'\n");
$cluster->wait_for_leader->sql('CREATE TABLE main (id int PRIMARY KEY, v text)');
$cluster->wait_for_leader->sql(q{SELECT quorum.replicate('main')}, timeout => 60);
$cluster->wait_for_leader->sql(q{INSERT INTO main SELECT i, 'v' || i FROM generate_series(1, 2000) AS i}, timeout => 60);
$cluster->wait_applied;
my ($victim) = $cluster->followers;
my $name = $victim->name;
my @others = grep { $_ != $victim } $cluster->nodes;

sub leave
{
	$others[0]->sql("SELECT quorum.remove_node('$name')", timeout => 90);
	$victim->{outside} = 1;
	QuorumCluster::wait_until('the node to be removed', sub { ($victim->status('role') // '') eq 'removed' }, 60);
	$victim->sql('SELECT quorum.leave_cluster()', timeout => 60);
	return;
}

my ($output, $errors);
sub start_join
{
	return IPC::Run::start([ 'psql', '-XAtq', '-d', $victim->connstr('postgres'), '-c', sprintf(
		q{SELECT quorum.join_cluster('%s', '%s', via => '%s', keep_rows => true)}, $name, $victim->peer_conninfo,
		$others[0]->peer_conninfo(user => 'quorum_operator')) ], '<', '/dev/null', '>', \$output, '2>', \$errors);
}

sub held_snapshots
{
	return join(',', map { $_->sql(q{SELECT coalesce(string_agg(pid::text, ' '), '-') FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' AND query LIKE 'sending the replicated tables%'}) } @others);
}

# ---- what holds a lock here that nobody takes away
leave();
$victim->sql(q{BEGIN; UPDATE main SET v = 'prepared' WHERE id = 1; PREPARE TRANSACTION 'p'});
my $join = start_join();
QuorumCluster::wait_until('the copy to wait for the lock', sub { $victim->query(
	q{SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'})->{rows} eq '1' }, 60);
note('waits, with status ' . ($victim->query('SELECT role, coalesce(last_error, $$-$$), (SELECT phase FROM quorum.snapshot_progress) FROM quorum.status')->{rows}));
my $held = held_snapshots();
like($held, qr/^(?:\d+,-|-,\d+)$/, 'with a donor that waits for it');
ok($others[0]->query(q{INSERT INTO main VALUES (5000, 'meanwhile')}, timeout => 20)->{ok}, 'the cluster goes on');
is($others[0]->sql("SELECT voters FROM quorum.status"), '2', 'with the voters that it had');
my ($held_by) = $held =~ /(\d+)/;
QuorumCluster::wait_until('the donor to be let go', sub { held_snapshots() !~ /\b$held_by\b/ }, 50);    # 20 s, as the setting says, and not 60
QuorumCluster::wait_until('the node to say why', sub { ($victim->status(q{coalesce(last_error, '')}) // '') =~ /table public\.main: .*lock timeout/ }, 60);
pass('the donor does not keep its snapshot for as long as the lock is held');

# ---- it stops, starts, and leaves
$victim->stop('fast');
$join->finish;
$victim->start;
QuorumCluster::wait_until('the copy to wait again', sub { $victim->query(
	q{SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'})->{rows} eq '1' }, 60);
my $left = $victim->query('SELECT quorum.leave_cluster(force => true)', timeout => 60);
ok($left->{ok}, 'it leaves in the middle') or diag($left->{stderr});
is($victim->sql('SELECT count(*) FROM main'), '2000', 'with all its rows');
$others[0]->sql("SELECT quorum.remove_node('$name')", timeout => 90);
$victim->sql(q{ROLLBACK PREPARED 'p'});
usleep_a_moment();
is($victim->sql('SELECT count(*) FROM main'), '2000', 'and keeps them');
is($victim->sql('SELECT count(*) FROM quorum.replicated_table'), '0', 'as ordinary ones');
sub usleep_a_moment { select(undef, undef, undef, 2); return; }

# ---- donors that are all gone
$join = start_join();
QuorumCluster::wait_until('the node to be a member', sub { -e $victim->data_dir . '/pg_quorum/pgsql_tmp_journal/identity' }, 60);
$_->kill9(all => 1) foreach @others;
$victim->kill9(all => 1);
$join->finish;
$victim->start;
QuorumCluster::wait_until('the node to say so', sub { ($victim->status('role') // '') ne '' }, 60);
note('without donors: ' . ($victim->query('SELECT role, coalesce(last_error, $$-$$), voters, voters_reachable, applied_index FROM quorum.status')->{rows}));
my $force = $victim->query('SELECT quorum.force_new_cluster(accept_data_loss => true)', timeout => 90);
is($force->{sqlstate}, '55000', 'no cluster is continued from a node that has not got its tables');
like($force->{stderr}, qr/has not got the cluster's tables yet/, 'with the reason');
is($victim->status('voters_reachable'), '0', 'nor does it claim to reach anybody');
note('after force: ' . ($victim->query('SELECT role, coalesce(last_error, $$-$$), voters, applied_index FROM quorum.status')->{rows}));
note('rows: ' . $victim->query(q{SET quorum.read_consistency = 'local'; SELECT count(*) FROM main})->{rows});
$_->start foreach @others;
QuorumCluster::wait_until('the node to be a voter', sub {
	$cluster->wait_for_leader->query("SELECT is_voter FROM quorum.nodes WHERE node_name = '$name'")->{rows} eq 't' }, 90);
delete $victim->{outside};
$cluster->assert_same_digest('main', 'when the others are back it comes to its end');

# ---- what is more than its columns and keys say is not taken
leave();
my $call = sprintf(q{SELECT quorum.join_cluster('%s', '%s', via => '%s', keep_rows => true)}, $name, $victim->peer_conninfo,
	$others[0]->peer_conninfo(user => 'quorum_operator'));
$victim->sql(q{CREATE TABLE more () INHERITS (main); INSERT INTO more VALUES (-1, 'of this node alone')});
my $inherits = $victim->query($call, timeout => 90);
is($inherits->{sqlstate}, '55000', 'a table whose rows are in others, too, is refused');
like($inherits->{stderr}, qr/inheritance tree/, 'with the reason');
$victim->sql(q{DROP TABLE more; CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN new.v := 'changed'; RETURN new; END$$;
	CREATE TRIGGER t BEFORE INSERT ON main FOR EACH ROW EXECUTE FUNCTION f(); ALTER TABLE main ENABLE ALWAYS TRIGGER t});
is($victim->query($call, timeout => 90)->{sqlstate}, '55000', 'so is one with a trigger that would change what comes by the log');
$victim->sql('DROP TRIGGER t ON main');
my $joined = $victim->query($call, timeout => 90);
ok($joined->{ok}, 'without them it is taken') or diag($joined->{stderr});
delete $victim->{outside};
$cluster->assert_same_digest('main', 'and has the rows of the others');

# ---- catalogs_of_an_older_build_are_served
$victim->sql(q{CREATE FUNCTION public.as_it_was(OUT phase text, OUT donor_name text, OUT snapshot_index bigint, OUT schema_name text, OUT table_name text,
	OUT tables_done int, OUT tables_total int, OUT rows_copied bigint, OUT bytes_received bigint, OUT bytes_estimated bigint,
	OUT failed_attempts int, OUT started_at timestamptz, OUT phase_since timestamptz) RETURNS SETOF record AS '$libdir/pg_quorum', 'quorum_node_snapshot' LANGUAGE C});
my $columns = 'phase, rows_copied, bytes_received, bytes_estimated, failed_attempts, started_at, phase_since';
is($victim->sql("SELECT $columns FROM public.as_it_was()"), $victim->sql("SELECT $columns FROM quorum.node_snapshot()"),
	'what an older catalog asks for is what it gets');

done_testing();
