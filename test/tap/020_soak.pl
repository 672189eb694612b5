# kill -9 of random nodes, the leader included, under load from several clients.  Every acknowledged row is there once on every node, no
# refused one is, and status answers throughout.  QUORUM_SOAK_ROUNDS sets the number of kills (make soak: 200).
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use Test::More;
use Time::HiRes qw(time usleep);

my $rounds = $ENV{QUORUM_SOAK_ROUNDS} || 5;
my $client_count = 4;
my $seed = $ENV{QUORUM_SOAK_SEED} || int(rand(1_000_000));
srand($seed);
note("QUORUM_SOAK_SEED=$seed");

my $cluster = QuorumCluster->new(nodes => 3);
my $leader = $cluster->wait_for_leader;
# The key is not what the clients choose, so that a row that was applied twice does not collide with itself.
$leader->sql(q{
	CREATE TABLE soak (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), client int NOT NULL, sequence int NOT NULL);
	SELECT quorum.replicate('soak')});
$cluster->wait_applied;

my $folder = PostgreSQL::Test::Utils::tempdir();
my $stop_file = "$folder/stop";
my @clients;
foreach my $number (1 .. $client_count)
{
	my $run = IPC::Run::start(
		[ $^X, "$FindBin::Bin/insert_client.pl", $number, "$folder/notes.$number", $stop_file, map { $_->connstr('postgres') } $cluster->nodes ]);
	push @clients, $run;
}

sub acknowledged_count
{
	my $count = 0;
	foreach my $number (1 .. $client_count)
	{
		my $notes = -e "$folder/notes.$number" ? PostgreSQL::Test::Utils::slurp_file("$folder/notes.$number") : '';
		$count += () = $notes =~ /^A /mg;
	}
	return $count;
}

# The server's own time for it: what psql and its start need is not the question.
my @status_seconds;
sub look_at_status
{
	foreach my $node ($cluster->awake_nodes)
	{
		my $result = $node->query('SELECT extract(epoch FROM clock_timestamp() - statement_timestamp()) FROM quorum.status', timeout => 10);
		push @status_seconds, $result->{rows} if $result->{ok};
	}
	return;
}

my %killed;
foreach my $round (1 .. $rounds)
{
	my $before = acknowledged_count();
	QuorumCluster::wait_until("acknowledged rows before kill $round",
		sub { look_at_status(); acknowledged_count() > $before + 20 }, 60);
	my @nodes = $cluster->nodes;
	my $victim = $nodes[ int(rand(@nodes)) ];
	$victim = $cluster->leader || $victim if $round % 3 == 0;
	$killed{ $victim->name }++;
	$victim->kill9(all => rand() < 0.5);
	my $at_kill = acknowledged_count();
	QuorumCluster::wait_until("acknowledged rows after kill $round",
		sub { look_at_status(); acknowledged_count() > $at_kill + 5 }, 60);
	$victim->start;
}
note('killed: ' . join(', ', map { "$_ $killed{$_} times" } sort keys %killed));

$cluster->wait_for_leader;
append_to_file($stop_file, '');
$_->finish foreach @clients;
$cluster->wait_applied;

# ---- the_clients_books_and_the_tables_agree
my %fates = (A => 0, R => 0, U => 0);
my $books = '';
foreach my $number (1 .. $client_count)
{
	foreach my $line (split /\n/, PostgreSQL::Test::Utils::slurp_file("$folder/notes.$number"))
	{
		my ($fate, $sequence) = split / /, $line;
		$fates{$fate}++;
		$books .= "$number\t$sequence\t$fate\n";
	}
}
diag("$rounds kills; $fates{A} rows acknowledged, $fates{R} refused, $fates{U} unknown");
cmp_ok($fates{A}, '>', 20 * $rounds, 'rows were acknowledged');

foreach my $node ($cluster->nodes)
{
	$node->sql("CREATE TABLE book (client int, sequence int, fate text); COPY book FROM STDIN;\n$books\\.\n", timeout => 120);
	my $counts = $node->sql(q{
		SELECT count(*) FILTER (WHERE fate = 'A' AND rows = 0),
			   count(*) FILTER (WHERE rows > 1),
			   count(*) FILTER (WHERE fate = 'R' AND rows > 0)
		FROM (SELECT b.client, b.sequence, b.fate, count(s.id) AS rows
			  FROM book b LEFT JOIN soak s USING (client, sequence) GROUP BY 1, 2, 3) AS compared}, timeout => 120);
	is($counts, '0|0|0', $node->name . ': no acknowledged row is missing, none is there twice, no refused one is there');
	is($node->sql('SELECT count(*) FROM soak LEFT JOIN book USING (client, sequence) WHERE fate IS NULL'), '0',
		$node->name . ' has no row that nobody sent');
}
$cluster->assert_same_digest('soak', 'every row is the same on all nodes');

# ---- status_answers_within_100_ms_throughout
my ($slowest) = sort { $b <=> $a } @status_seconds;
cmp_ok($slowest, '<', 0.1, sprintf('quorum.status answered %d times within 100 ms; the slowest took %.1f ms', scalar(@status_seconds), 1000 * $slowest));

done_testing();
