# A node that comes with rows may come from a disk that has kept some of its writes and lost others.  Rows that are the same as the cluster's are kept
# all the same; what of the files says more than the rows do is not believed: which pages need no look at their rows, and transactions that this
# server has not begun yet.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use File::Copy qw(copy);
use PostgreSQL::Test::Utils;
use QuorumCluster;
use Test::More;

my $cluster = QuorumCluster->new(nodes => 3, conf => "autovacuum = off\n");
$cluster->wait_for_leader->sql('CREATE TABLE main (id int PRIMARY KEY, v text)');
my $leader = $cluster->wait_for_leader;
$leader->sql(q{SELECT quorum.replicate('main')}, timeout => 60);
$leader->sql(q{INSERT INTO main SELECT i, 'v' || i FROM generate_series(1, 2000) AS i}, timeout => 60);
$cluster->wait_applied;
my ($victim) = $cluster->followers;
my $name = $victim->name;

sub join_with_rows
{
	my ($timeout) = @_;
	my $via = (grep { $_ != $victim } $cluster->awake_nodes)[0];
	my $result = $victim->query(sprintf(q{SELECT quorum.join_cluster('%s', '%s', via => '%s', keep_rows => true)}, $name, $victim->peer_conninfo,
		$via->peer_conninfo(user => 'quorum_operator')), timeout => $timeout // 90);
	delete $victim->{outside} if $result->{ok};
	return $result;
}

sub leave
{
	(grep { $_ != $victim } $cluster->awake_nodes)[0]->sql("SELECT quorum.remove_node('$name')", timeout => 90);
	$victim->{outside} = 1;
	QuorumCluster::wait_until('the node to be removed', sub { ($victim->status('role') // '') eq 'removed' }, 60);
	$victim->sql('SELECT quorum.leave_cluster()', timeout => 60);
	return;
}

sub file_of { my ($more) = @_; return $victim->data_dir . '/' . $victim->sql(q{SELECT pg_relation_filepath('main')}) . $more; }

sub by_index_only
{
	my ($node, $where) = @_;
	return $node->sql("SET enable_seqscan = off; SET enable_indexscan = off; SET enable_bitmapscan = off; SELECT count(*) FROM main WHERE $where");
}

sub by_heap
{
	my ($node, $where) = @_;
	return $node->sql("SET enable_indexonlyscan = off; SET enable_indexscan = off; SET enable_bitmapscan = off; SELECT count(*) FROM main WHERE $where");
}

# ---- a_stale_visibility_map_is_not_believed
leave();
$victim->sql('VACUUM (FREEZE) main; CHECKPOINT');
my $map = file_of('_vm');
$victim->stop('fast');
copy($map, "$map.old") or die "$map: $!";
$victim->start;
$victim->sql(q{UPDATE main SET v = v WHERE id % 100 = 0; CHECKPOINT});
$victim->stop('fast');
copy("$map.old", $map) or die "$map: $!";
$victim->start;
my $join = join_with_rows();
ok($join->{ok}, 'a node joins whose visibility map is older than its rows') or BAIL_OUT($join->{stderr});
$cluster->wait_for_leader->sql('DELETE FROM main WHERE id % 10 = 0');
$cluster->wait_applied;
is(by_heap($victim, 'id > 0'), '1800', 'rows are deleted there');
is(by_index_only($victim, 'id > 0'), '1800', 'and are not seen by what looks at the index alone');

# ---- what_is_of_transactions_to_come_is_not_kept
leave();
$victim->sql('CHECKPOINT');
$victim->stop('fast');
my $data = $victim->data_dir;
system_or_bail('cp', '-a', $data, "$data.old");
$victim->start;
$victim->sql(join('', map { "INSERT INTO main VALUES (-$_, 'to come'); " } 1 .. 20) . q{DELETE FROM main WHERE id BETWEEN 1 AND 49;});
$victim->sql('SELECT count(*) FROM main; CHECKPOINT');
my $file = file_of('');
$victim->stop('fast');
copy($file, "$data.old/" . substr($file, length($data) + 1)) or die "$file: $!";
system_or_bail('rm', '-rf', $data);
system_or_bail('mv', "$data.old", $data);
system_or_bail('chown', '-R', 'postgres', $data) if $> == 0;
$victim->start;
$join = join_with_rows(60);
ok($join->{ok}, 'it joins all the same') or diag($join->{stderr});
like(PostgreSQL::Test::Utils::slurp_file($victim->logfile), qr/LOG:.*table "public\.main" has parts that are of another time than this server: it is copied whole/,
	'a node joins whose table is from later than the rest of it, and gets that one anew');
$victim->sql('CREATE TABLE of_this_node (n int)');
$victim->sql("INSERT INTO of_this_node VALUES ($_)") foreach 1 .. 60;
$victim->sql('CHECKPOINT');
is(by_heap($victim, 'true'), '1800', 'no row comes or goes later, when its transaction has come');
$cluster->assert_same_digest('main', 'it has the rows of the others');

done_testing();
