# Followers drop the part of the log that every member has, by the leader's word: a link that is down between two of them does not make them keep the log up to
# the retention limit, and what a member lacks that only the leader knows of is kept by all.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use Test::More;

my $MB = 1024 * 1024;

QuorumCluster->skip_all_without_namespaces;
my $cluster = QuorumCluster->new(nodes => 3, namespaces => 1, conf => <<'CONF');
quorum.log_keep_size = '16MB'
quorum.log_retention_size = '1GB'
CONF
my $leader = $cluster->wait_for_leader;
my ($one, $other) = $cluster->followers;

# 40 kB by a transaction.
sub fill
{
	my ($megabytes) = @_;
	$leader->sql("DO \$\$ BEGIN FOR i IN 1 .. $megabytes * 25 LOOP UPDATE big SET v = repeat(md5(i::text), 1250) WHERE id = i % 100 + 1; COMMIT; END LOOP; END \$\$",
		timeout => 180);
	return;
}

sub has_lost_its_link_to
{
	my ($node, $peer) = @_;
	return PostgreSQL::Test::Utils::slurp_file($node->logfile) =~ /lost the link to node "${\$peer->name}"/;
}

$leader->sql(<<'SQL');
CREATE TABLE big (id int PRIMARY KEY, v text);
ALTER TABLE big ALTER v SET STORAGE EXTERNAL;
SELECT quorum.replicate('big');
INSERT INTO big SELECT i, '' FROM generate_series(1, 100) AS i;
SQL
$cluster->wait_applied;

# ---- a_link_that_is_down_holds_no_log
$cluster->cut($one, $other);
QuorumCluster::wait_until('the followers to lose each other', sub { has_lost_its_link_to($one, $other) && has_lost_its_link_to($other, $one) }, 60);
fill(64);
foreach my $node ($leader, $one, $other)
{
	my $is_short = eval { QuorumCluster::wait_until('the log to be trimmed', sub { $node->sql('SELECT journal_bytes FROM quorum.stats') <= 48 * $MB }, 30) };
	ok($is_short, $node->name . ' has dropped what all members have') or diag($@);
}

# ---- what_one_lacks_is_kept
$cluster->isolate($other);
$cluster->write_until_ok('UPDATE big SET v = $$$$ WHERE id = 1');
fill(64);
my $has = $other->status('chosen_index');
my $held_from = $one->sql('SELECT first_held_index FROM quorum.stats');
cmp_ok($held_from, '<=', $has + 1, 'a follower keeps what another one lacks, by the word of the leader');
$cluster->heal;
$cluster->assert_same_digest('big');
$cluster->cleanup;
done_testing();
