# Power cuts while the log is trimmed all the time: the log state, the tables, the chosen log and the journal fit together after each of them, whatever
# part of what was not synced is lost.  What was acknowledged is there, and all nodes are the same.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use IPC::Run;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use FaultLoad;
use FaultRounds;
use Test::More;

my $cluster = QuorumCluster->new(nodes => 3, power_loss => 1, conf => <<'CONF');
quorum.log_keep_size = '16MB'
quorum.log_retention_size = '64MB'
quorum.log_level = log
CONF

$cluster->wait_for_leader->sql(<<'SQL');
CREATE TABLE big (id int PRIMARY KEY, v text);
ALTER TABLE big ALTER v SET STORAGE EXTERNAL;
SELECT quorum.replicate('big');
INSERT INTO big SELECT i, '' FROM generate_series(1, 50) AS i;
SQL

my $script = "$PostgreSQL::Test::Utils::tmp_check/big.$$.sql";
open(my $handle, '>', $script) or die "$script: $!";
print $handle "\\set id random(1, 50)\nUPDATE big SET v = repeat(md5(random()::text), 2500) WHERE id = :id;\n";
close($handle);

# Clients whose node may die under them: what they are told is not looked at, other clients count what was acknowledged.
my ($big_output, $big_writes) = ('');

sub start_big_writes
{
	my ($node) = @_;
	$big_output = '';
	$big_writes = IPC::Run::start([ 'pgbench', '-n', '-c', 3, '-j', 1, '-T', 60, '--max-tries=100', '-f', $script, $node->connstr('postgres') ],
		'<', '/dev/null', '>&', \$big_output);
	return;
}

sub stop_big_writes
{
	$big_writes->signal('INT');
	eval { $big_writes->finish; };
	return;
}

sub trimmings { my ($node) = @_; return scalar(() = PostgreSQL::Test::Utils::slurp_file($node->logfile) =~ /log trimmed/g); }

my $load = FaultLoad->new($cluster, clients => 3);
my $rounds = FaultRounds->new($cluster, $load, kinds => [ FaultRounds::power_cuts() ]);
$load->start;
$load->wait_for_writes(20);
foreach my $round (0 .. ($ENV{ROUNDS} || 6) - 1)
{
	my $leader = $cluster->wait_for_leader;
	my ($follower) = $cluster->followers;
	my @victims = ([$leader], [$follower], [ $cluster->nodes ])[ $round % 3 ]->@*;
	my $keep = $round % 2 ? 'random' : 'none';
	my $trimmings = trimmings($victims[0]);
	# Nobody but the compactor flushes the WAL, so the tables lose all that it does not make durable.
	kill('STOP', map { $_->process_pid(qr/walwriter/) } @victims);
	start_big_writes($leader);
	QuorumCluster::wait_until('the log to be trimmed', sub { trimmings($victims[0]) > $trimmings + 2 }, 120);
	my @done = $cluster->power_cut(\@victims, keep => $keep, seed => $rounds->lot(2**31));
	note("power cut of " . join(', ', map { $_->name } @victims) . ", survivors: $keep; " . join('; ', @done));
	stop_big_writes();
	$_->start foreach @victims;
	$load->wait_for_writes(20);
	foreach my $node ($cluster->nodes)
	{
		QuorumCluster::wait_until($node->name . ' to take part', sub { ($node->status('has_quorum') // '') eq 't' }, 60);
		is($node->status(q{coalesce(last_error, 'none')}), 'none', $node->name . ' has nothing to complain of');
	}
}
$load->wait_for_writes(50);
$load->stop;
$load->check(least_acknowledged => 100);
$cluster->assert_same_digest('big', 'the large rows are the same on all nodes');
foreach my $node ($cluster->nodes)
{
	cmp_ok($node->sql('SELECT first_held_index FROM quorum.stats'), '>', 1, $node->name . ' has trimmed its log');
	my ($first, $last) = split(/\|/, $node->sql('SELECT s.first_held_index, t.applied_index FROM quorum.stats AS s, quorum.status AS t'));
	is($node->sql("SELECT count(*) FROM quorum.log_entries($first, $last)"), $last - $first + 1, 'each entry that it holds can be read');
}

done_testing();
