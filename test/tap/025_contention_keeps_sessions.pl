# Many clients on all nodes fight for a few rows, nothing is broken: they get 40001 and retry, and nothing else happens to them.  A session that stood in the way
# just when its transaction ended anyhow must not be terminated for it.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use Test::More;

my $cluster = QuorumCluster->new(nodes => 3);
my @nodes = $cluster->nodes;
$nodes[0]->sql(q{CREATE TABLE t (id int PRIMARY KEY, v int); SELECT quorum.replicate('t')});
$nodes[0]->sql('INSERT INTO t SELECT i, 0 FROM generate_series(1, 6) AS i');
$cluster->wait_applied;

my $dir = $PostgreSQL::Test::Utils::tmp_check;
open(my $script, '>', "$dir/contention.sql") or die $!;
print $script "\\set id random(1, 6)\nUPDATE t SET v = v + 1 WHERE id = :id;\n";
close($script);

my @running = map {
	my $pid = fork();
	die 'fork failed' unless defined $pid;
	exec('sh', '-c', "exec pgbench -n -f $dir/contention.sql -c 4 -T 8 --max-tries=10000 -h " . $_->host . ' -p ' . $_->port . " postgres > $dir/" . $_->name . '.out 2>&1')
	  if $pid == 0;
	$pid;
} @nodes;

my $done = 0;
foreach my $i (0 .. $#nodes)
{
	waitpid($running[$i], 0);
	my $exit_code = $?;
	my $output = slurp_file("$dir/" . $nodes[$i]->name . '.out');
	is($exit_code, 0, $nodes[$i]->name . ': no client loses its session') or diag($output);
	$done += $1 if $output =~ /transactions actually processed: (\d+)/;
	like($output, qr/number of transactions retried: [1-9]/, $nodes[$i]->name . ': some had to retry');
	is($nodes[$i]->sql('SELECT transactions_abandoned FROM quorum.stats'), '0', $nodes[$i]->name . ': each was told the outcome');
}
is($nodes[0]->sql('SELECT sum(v) FROM t'), $done, 'each transaction that succeeded has taken effect once, and no other');
$cluster->assert_same_digest('t', 'the nodes agree');

done_testing();
