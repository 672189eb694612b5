# Many sessions increment one row.  On one node Postgres' row lock makes them wait for each other, and certification must find nothing to reject; on
# all nodes the losers get 40001, keep their sessions, and come through when they try again.  In the end the row has what was acknowledged.
#
# Only who is idle in a transaction loses the session (012_local_locks.pl), so where all nodes write, a transaction is sent at once.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use IPC::Run;
use QuorumCluster;
use Test::More;

my $cluster = QuorumCluster->new(nodes => 3);
my $leader = $cluster->wait_for_leader;
my ($follower, $other) = $cluster->followers;

$leader->sql(q{
	CREATE TABLE hot (id int PRIMARY KEY, v int NOT NULL, u int UNIQUE);
	INSERT INTO hot VALUES (1, 0, 1);
	CREATE TABLE spread (node text, id int, v int NOT NULL, PRIMARY KEY (node, id));
	INSERT INTO spread SELECT node, id, 0 FROM unnest(ARRAY['n1', 'n2', 'n3']) AS node, generate_series(1, 50) AS id;
	CREATE TABLE notes (id bigserial PRIMARY KEY, node text);
	SELECT quorum.replicate('hot');
	SELECT quorum.replicate('spread');
	SELECT quorum.replicate('notes')});
$cluster->wait_applied;

my %script = (
	hot => 'UPDATE hot SET v = v + 1 WHERE id = 1;',
	locked => "BEGIN;\nSELECT v FROM hot WHERE id = 1 FOR UPDATE;\nUPDATE hot SET v = v + 1 WHERE id = 1;\nEND;",
	mixed => "BEGIN;\nINSERT INTO notes (node) VALUES (:node);\nUPDATE hot SET v = v + 1 WHERE id = 1;\nEND;",
	spread => "\\set id random(1, 50)\nUPDATE spread SET v = v + 1 WHERE node = :node AND id = :id;");
($script{"${_}_at_once"} = $script{$_}) =~ s/;\n/\\;\n/g foreach qw(locked mixed);
foreach my $name (keys %script)
{
	PostgreSQL::Test::Utils::append_to_file("$PostgreSQL::Test::Utils::tmp_check/$name.sql", $script{$name} . "\n");
}

# Starts pgbench: load($node, scripts, clients, transactions of each, tries of each).
sub load
{
	my ($node, $scripts, $clients, $transactions, $tries) = @_;
	my $load = { node => $node, output => '', wanted => $clients * $transactions };
	$load->{run} = IPC::Run::start(
		[
			'pgbench', '-n', '-c', $clients, '-j', 2, '-t', $transactions, "--max-tries=$tries", '--failures-detailed', '--verbose-errors', '-D',
			"node='" . $node->name . "'", (map { ('-f', "$PostgreSQL::Test::Utils::tmp_check/$_.sql") } @$scripts), $node->connstr('postgres')
		],
		'<', '/dev/null', '>&', \$load->{output}, IPC::Run::timeout(180));
	return $load;
}

# Waits for it.  pgbench ends with an error if a session is lost, or gets another error than 40001 or a deadlock.
sub finish
{
	my ($load, $name) = @_;
	$load->{run}->finish;
	my $status = $load->{run}->full_result(0);
	my ($count) = $load->{output} =~ /transactions actually processed: (\d+)/;
	my ($conflicts) = $load->{output} =~ /serialization failures: (\d+)/;
	my ($deadlocks) = $load->{output} =~ /deadlock failures: (\d+)/;
	is($status, 0, "$name: the sessions on " . $load->{node}->name . ' live on, whatever they are told has the code 40001') or diag($load->{output});
	is($deadlocks, 0, "$name: no deadlock on " . $load->{node}->name);
	return { count => $count, conflicts => $conflicts };
}

sub assert_value
{
	my ($expected, $name) = @_;
	$cluster->wait_applied;
	is($_->sql('SELECT v FROM hot WHERE id = 1'), $expected, "$name: the row has what was acknowledged, on " . $_->name) foreach $cluster->nodes;
	$cluster->assert_same_digest($_) foreach qw(hot spread notes);
	return;
}

my $value = 0;

# ---- hot_row_written_from_one_node_never_aborts ----------------------------------------------------------------------

foreach my $node ($follower, $leader)
{
	my $name = 'a hot row of ' . ($node == $leader ? 'the leader' : 'a follower') . ', others write other rows';
	my @loads = map { load($_, ['spread'], 2, 100, 1) } grep { $_ != $node } $cluster->nodes;
	my $hot = finish(load($node, [qw(hot locked mixed)], 8, 40, 1), $name);
	is($hot->{conflicts}, 0, "$name: none of its writers is aborted");
	is($hot->{count}, 320, "$name: all are acknowledged");
	is(finish($_, $name)->{conflicts}, 0, "$name: nor is a writer of rows of its own on " . $_->{node}->name) foreach @loads;
	assert_value($value += $hot->{count}, $name);
}

# ---- hot_row_written_from_all_nodes_has_what_was_acknowledged --------------------------------------------------------

foreach my $tries (1, 10_000)
{
	my $name = $tries == 1 ? 'a hot row of all nodes, once' : 'a hot row of all nodes, until it succeeds';
	my @loads = map { load($_, [qw(hot locked_at_once mixed_at_once)], 3, $tries == 1 ? 60 : 15, $tries) } $cluster->nodes;
	my ($acknowledged, $wanted, $conflicts) = (0, 0, 0);
	foreach my $load (@loads)
	{
		my $result = finish($load, $name);
		$acknowledged += $result->{count};
		$conflicts += $result->{conflicts};
		$wanted += $load->{wanted};
	}
	is($acknowledged + $conflicts, $wanted, "$name: each is acknowledged or has failed with 40001");
	is($conflicts, 0, "$name: each comes through in the end") if $tries > 1;
	note("$acknowledged acknowledged, $conflicts failed");
	assert_value($value += $acknowledged, $name);
}

done_testing();
