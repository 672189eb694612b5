# A node whose rows differ from those of a majority finds out, says so, steps aside, and is repaired: P9, "A broken node says so and steps aside".
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use WaitingSession;
use Test::More;

# No checks but those that are asked for, and no VACUUM: whether a page says that everybody sees its rows decides what becomes of a damaged one.
my $cluster = QuorumCluster->new(nodes => 3, conf => "quorum.check_interval = 0\nautovacuum = off\n");
my $leader = $cluster->wait_for_leader;
$leader->sql(<<'SQL');
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE account (id int PRIMARY KEY, gone text, owner text NOT NULL, balance numeric, opened timestamptz, moods mood[],
	doubled numeric GENERATED ALWAYS AS (balance * 2) STORED, long_text text);
ALTER TABLE account DROP COLUMN gone;
INSERT INTO account (id, owner, balance, opened, long_text)
	SELECT i, 'owner number ' || i, i, '2024-01-01', repeat('long ' || i, 1000) FROM generate_series(1, 500) AS i;
CREATE TABLE other (id int PRIMARY KEY, v text);
INSERT INTO other SELECT i, 'other ' || i FROM generate_series(1, 100) AS i;
SQL
$_->sql(q{CREATE TYPE mood AS ENUM ('sad', 'ok')}) foreach grep { $_ != $leader } $cluster->nodes;
$leader->sql(q{SELECT quorum.replicate('account')});
$leader->sql(q{SELECT quorum.replicate('other')});
$leader->sql(q{UPDATE account SET moods = '{sad,ok}' WHERE id % 7 = 0});
$cluster->wait_applied;

sub verify
{
	my ($node, $table, $patience) = @_;
	return $node->sql("SELECT node_name, outcome, row_count, matches FROM quorum.verify('$table', '" . ($patience || '60s') . "') ORDER BY node_name",
		timeout => 120);
}

sub state_on { my ($node, $table) = @_; return $node->sql("SELECT state FROM quorum.tables WHERE table_name = '$table'"); }

sub quarantined
{
	my ($node, $table) = @_;
	return QuorumCluster::wait_until("quarantine of $table on " . $node->name, sub { state_on($node, $table) eq 'quarantined' }, 30);
}

# Waits until the leader reaches all that run: a node that cannot be reached just now would be missing in a check.
sub all_reachable
{
	QuorumCluster::wait_until('the leader to reach the others',
		sub { ($cluster->wait_for_leader->status('voters_reachable') // '') eq scalar($cluster->awake_nodes) }, 30);
	return;
}

# Changes bytes in the table's file, behind the back of the server, which is stopped meanwhile.
sub damage
{
	my ($node, $table, %changes) = @_;
	$node->sql('CHECKPOINT');
	my $path = $node->data_dir . '/' . $node->sql("SELECT pg_relation_filepath('$table')");
	$node->stop('fast');
	open(my $file, '+<:raw', $path) or die "$path: $!";
	my $bytes = do { local $/; <$file> };
	foreach my $from (keys %changes)
	{
		my $count = 0;
		die 'not of the same length' unless length($from) == length($changes{$from});
		while ($bytes =~ /\Q$from\E/g)
		{
			$count++;
			seek($file, $-[0], 0);
			print $file $changes{$from};
		}
		die unpack('H*', $from) . " is not in $path" unless $count;
	}
	close($file) or die "$path: $!";
	$node->start;
	$cluster->wait_for_leader;
	all_reachable();
	return;
}

# The header of a page becomes one that no page can have.
sub damage_page
{
	my ($node, $table, $number) = @_;
	$node->sql('CHECKPOINT');
	my $path = $node->data_dir . '/' . $node->sql("SELECT pg_relation_filepath('$table')");
	$node->stop('fast');
	die "$path is too short" unless -s $path > 8192 * $number;
	open(my $file, '+<:raw', $path) or die "$path: $!";
	seek($file, 8192 * $number + 12, 0);
	print $file pack('v v v', 8000, 24, 8192);    # pd_lower, pd_upper, pd_special
	close($file) or die "$path: $!";
	$node->start;
	$cluster->wait_for_leader;
	all_reachable();
	return;
}

# A row (id int, v text) of less than 127 bytes, from its infomask on: 'n' values, header of 24 bytes, then the values.
sub stored
{
	my ($infomask, $id, $text) = @_;
	return pack('v C C V C a*', $infomask, 24, 0, $id, (length($text) + 1) << 1 | 1, $text);
}

# ---- equal_copies_match: whatever their physical form and the settings of their servers
my ($n1, $n2, $n3) = map { $cluster->node($_) } 'n1', 'n2', 'n3';
$n2->sql(q{ALTER SYSTEM SET timezone = 'Asia/Tokyo'; ALTER SYSTEM SET datestyle = 'German'; SELECT pg_reload_conf()});
$n3->sql(q{ALTER TABLE account ALTER long_text SET STORAGE external});
$n3->sql('VACUUM FULL account');
is(verify($n1, 'account'), "n1|checked|500|t\nn2|checked|500|t\nn3|checked|500|t", 'equal copies match');
is($n2->sql(q{SELECT count(DISTINCT checksum), count(*) FROM quorum.checks WHERE table_name = 'account'}), '1|3', 'the results are in the log of each node');
is(verify($n2, 'other'), "n1|checked|100|t\nn2|checked|100|t\nn3|checked|100|t", 'any node can ask');

$n2->sql(q{ALTER SYSTEM RESET ALL; ALTER SYSTEM SET quorum.check_interval = 0; SELECT pg_reload_conf()});

# ---- under_write_load_they_match_at_the_same_index
{
	my $writer = $leader->session;
	$writer->query_until(qr/started/, "\\echo started\nDO \$\$ BEGIN FOR i IN 1..400 LOOP UPDATE account SET balance = balance + 1 WHERE id = 1 + i % 50; "
		  . "INSERT INTO other VALUES (1000 + i, 'new'); IF i % 5 = 0 THEN DELETE FROM other WHERE id = 1000 + i; END IF; COMMIT; END LOOP; END \$\$;\n\\echo finished\n");
	my $all_match = 1;
	foreach my $round (1 .. 5)
	{
		foreach my $table ('account', 'other')
		{
			my $result = verify($round % 2 ? $n2 : $n3, $table);
			$all_match = 0, diag($result) if $result =~ /\|f$/m || $result !~ /\|t$/m;
		}
	}
	ok($all_match, 'under write load they match');
	$writer->quit;
}
ok(state_on($_, 'account') eq 'active' && state_on($_, 'other') eq 'active', 'nothing is quarantined on ' . $_->name) foreach $cluster->nodes;

# ---- a_node_that_is_down_is_missing
$cluster->wait_applied;
my ($down) = grep { $_ != $cluster->wait_for_leader } $cluster->nodes;
$down->stop('fast');
$leader = $cluster->wait_for_leader;
QuorumCluster::wait_until('the leader to notice', sub { $leader->status('voters_reachable') eq '2' }, 30);
my $partial = verify($leader, 'other');
like($partial, qr/^\Q${\$down->name}\E\|missing\|\|$/m, 'a node that is down is missing, and not said to match');
is(scalar(() = $partial =~ /\|checked\|\d+\|t$/mg), 2, 'the others match');
$down->start;
all_reachable();
$cluster->wait_applied;

# ---- a_flipped_byte_is_found: in the leader, so that it has to step down
$leader = $cluster->wait_for_leader;
damage($leader, 'account', 'owner number 321' => 'owner numbes 321');
my $broken = $leader;
$cluster->wait_for_leader;
my ($healthy) = grep { $_ != $broken } $cluster->nodes;
$cluster->wait_applied;
is($broken->sql('SELECT owner FROM account WHERE id = 321'), 'owner numbes 321', 'a damaged row is served, as long as nobody knows');
like(verify($healthy, 'account'), qr/^\Q${\$broken->name}\E\|checked\|500\|f$/m, 'the check finds the node that differs');
quarantined($broken, 'account');
ok(1, 'it quarantines its copy');
is(state_on($healthy, 'account'), 'active', 'and nobody else does');

# ---- it_steps_aside
foreach my $statement ('SELECT * FROM account', q{SET quorum.read_consistency = 'local'; SELECT count(*) FROM account}, 'COPY account TO STDOUT',
	'SELECT (SELECT max(id) FROM account)', q{CREATE FUNCTION pg_temp.f() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM account); END'; SELECT pg_temp.f()})
{
	my $result = $broken->query($statement);
	is($result->{sqlstate}, '25006', "quarantined: refuses $statement") or diag($result->{stderr});
	like($result->{stderr}, qr/HINT:.*quorum\.repair\('public\.account'\)/, 'and says what to do');
}
is($broken->query(q{INSERT INTO other VALUES (5000, 'x')})->{sqlstate}, '25006', 'quarantined: takes no writes of other tables either');
like($broken->sql('SELECT last_error FROM quorum.status'), qr/quarantined table public\.account: its rows differ.*check at log index \d+/, 'quarantined: quorum.status says why');
is($broken->sql('SELECT count(*) > 0 FROM other'), 't', 'quarantined: other tables are read');
QuorumCluster::wait_until('another leader', sub { ($broken->status('role') // '') ne 'leader' }, 30);
$cluster->wait_for_leader(not => $broken);
ok(1, 'quarantined: does not lead');
$healthy->sql(q{UPDATE account SET balance = -5 WHERE id = 7; DELETE FROM account WHERE id = 8; INSERT INTO account (id, owner) VALUES (2000, 'new')});
$cluster->wait_applied;
ok(1, 'quarantined: goes on applying the log');

# ---- a_quarantine_outlives_a_restart, and the node that is broken never comes to lead
$broken->restart;
$cluster->wait_for_leader(not => $broken);
is(state_on($broken, 'account'), 'quarantined', 'after a restart it is quarantined still');
is($broken->query('SELECT * FROM account')->{sqlstate}, '25006', 'and refuses');
$broken->kill9;
$broken->start;
QuorumCluster::wait_until('the crashed node to say why', sub { ($broken->status('last_error') // '') =~ /quarantined table public\.account/ }, 30);
is($broken->query('SELECT * FROM account')->{sqlstate}, '25006', 'after a crash too');

# ---- the_differing_keys_are_listed
$cluster->wait_applied;
is($broken->sql(q{SELECT key, kind FROM quorum.diverging_keys('account')}), 'id=321|differs', 'the key of the damaged row is listed');
is($healthy->query(q{SELECT * FROM quorum.diverging_keys('account')})->{sqlstate}, '55000', 'on a healthy node there are none');
is($healthy->query(q{SELECT quorum.repair('account')})->{sqlstate}, '55000', 'and nothing to repair');

# ---- a_repair_that_is_cancelled_lets_the_log_go_on: the log stands still on this node only as long as somebody compares
{
	my @others = grep { $_ != $broken } $cluster->nodes;
	my @apply = map { $_->worker_pid('apply') } @others;
	my $session = WaitingSession->new($broken);
	kill('STOP', @apply);    # so neither comes to the index at which the rows are to be compared
	$session->send(q{SELECT quorum.repair('account')});
	QuorumCluster::wait_until('the session to ask another node for its rows',
		sub { grep { $_->sql(q{SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%compare_begin%' AND pid <> pg_backend_pid()}) } @others }, 30);
	is($broken->sql('SELECT applied_index < chosen_index FROM quorum.status'), 't', 'the log stands still on the node that compares');
	$broken->sql('SELECT pg_cancel_backend(' . $session->backend_pid . ')');
	is($session->outcome, '57014', 'the repair is cancelled') or diag($session->error);
	QuorumCluster::wait_until('the log to go on', sub { $broken->sql('SELECT applied_index = chosen_index FROM quorum.status') eq 't' }, 30);
	ok(1, 'and the log goes on');
	kill('CONT', @apply);
	$session->finish;
	$cluster->wait_applied;
	is(state_on($broken, 'account'), 'quarantined', 'the quarantine stays');
}

# ---- repaired_it_rejoins
like($broken->sql(q{SELECT removed_rows, copied_rows FROM quorum.repair('account')}, timeout => 120), qr/^1\|1$/, 'repair copies the one row that differs');
is(state_on($broken, 'account'), 'active', 'the check after it ends the quarantine');
is($broken->sql('SELECT last_error IS NULL FROM quorum.status'), 't', 'quorum.status shows no error any more');
is($broken->sql('SELECT owner FROM account WHERE id = 321'), 'owner number 321', 'the row is right, by its key too');
$broken->sql(q{INSERT INTO account (id, owner) VALUES (2001, 'written on the repaired node')});
$cluster->assert_same_digest('account', 'repaired: all copies are the same');
is(scalar(() = verify($broken, 'account') =~ /\|checked\|\d+\|t$/mg), 3, 'repaired: they match');

# ---- damaged_keys_and_missing_rows_are_repaired: no index leads to them
my ($second) = grep { $_ != $cluster->wait_for_leader } $cluster->nodes;
my $committed = 0x0902;    # HEAP_HASVARWIDTH, HEAP_XMIN_COMMITTED, HEAP_XMAX_INVALID
my $aborted = 0x0a02;      # HEAP_XMIN_INVALID instead: nobody sees the row any more
damage($second, 'other',
	stored($committed, 10, 'other 10') => stored($aborted, 10, 'other 10'),
	stored($committed, 11, 'other 11') => stored($aborted, 11, 'other 11'),
	stored($committed, 12, 'other 12') => stored($aborted, 12, 'other 12'),
	stored($committed, 20, 'other 20') => stored($committed, 77777, 'other 20'),
	stored($committed, 30, 'other 30') => stored($committed, 30, 'other 3x'),
	stored($committed, 40, 'other 40') => stored($committed, 41, 'other 40'));
$cluster->wait_applied;
$healthy = $cluster->wait_for_leader(not => $second);
like(verify($healthy, 'other'), qr/^\Q${\$second->name}\E\|checked\|\d+\|f$/m, 'rows that were lost or changed their key are found');
quarantined($second, 'other');
$healthy->sql(q{UPDATE other SET v = 'changed' WHERE id = 10; DELETE FROM other WHERE id = 11});
$cluster->wait_applied;
ok(1, 'entries that change rows which are missing do not stop a node that is quarantined');
is($second->sql(q{SELECT string_agg(key || ' ' || kind, ', ' ORDER BY key) FROM quorum.diverging_keys('other')}),
	'id=10 missing here, id=12 missing here, id=20 missing here, id=30 differs, id=40 missing here, id=41 extra here, id=77777 extra here',
	'all that differs is listed');
is($second->sql(q{SELECT removed_rows, copied_rows FROM quorum.repair('other')}, timeout => 120), '3|5', 'and repaired');
is(state_on($second, 'other'), 'active', 'the quarantine is over');
$cluster->assert_same_digest('other', 'all copies are the same again');
is($second->sql(q{SET enable_seqscan = off; SELECT string_agg(v, ' ' ORDER BY id) FROM other WHERE id IN (10, 11, 12, 20, 30, 40, 41)}),
	'changed other 12 other 20 other 30 other 40 other 41', 'by the index too');

# ---- a_row_that_only_a_scan_sees_is_found: its page says that everybody sees all its rows, and an index leads to none
{
	$second->sql('VACUUM other');
	damage($second, 'other', stored($committed, 13, 'other 13') => stored($aborted, 13, 'other 13'));
	$cluster->wait_applied;
	my $look = q{SET enable_seqscan = %s; SET enable_indexscan = off; SET enable_indexonlyscan = off; SELECT count(*) FROM other WHERE id = 13};
	is($second->sql(sprintf($look, 'on') =~ s/id = 13/id + 0 = 13/r), '1', 'a scan sees the row');
	is($second->sql(sprintf($look, 'off')), '0', 'and who comes by the index does not');
	$healthy = $cluster->wait_for_leader(not => $second);
	like(verify($healthy, 'other'), qr/^\Q${\$second->name}\E\|unreadable\|\|f$/m, 'a copy that contradicts itself is taken for one that cannot be read');
	quarantined($second, 'other');
	my $rows = $healthy->sql('SELECT count(*) FROM other');
	is($second->sql(q{SELECT removed_rows, copied_rows FROM quorum.repair('other')}, timeout => 120), "0|$rows", 'and copied anew');
	is(state_on($second, 'other'), 'active', 'the quarantine is over');
	is($second->sql(sprintf($look, 'off')), '1', 'the row is there for all');
	$cluster->assert_same_digest('other', 'and all copies are the same');
}

# ---- a_node_whose_check_died_says_so: nobody waits for it for ever
{
	my $from = $cluster->wait_for_leader;
	my ($victim) = grep { $_ != $from } $cluster->nodes;
	my $checker = $victim->worker_pid('check');
	my $session = WaitingSession->new($from);
	kill('STOP', $checker);
	$session->send(q{SELECT max(checked_index) FROM quorum.verify('other')});
	my $told = q{SELECT count(*) FROM quorum.checks WHERE outcome = 'checked' AND check_index = (SELECT max(check_index) FROM quorum.checks)};
	QuorumCluster::wait_until('the check to be applied by the victim, and done by the others',
		sub { $from->sql($told) eq '2' && $victim->sql($told) eq '2' }, 30);
	kill('KILL', $checker);
	my $index = $from->sql('SELECT max(check_index) FROM quorum.checks');
	QuorumCluster::wait_until('the victim to say that it has no result',
		sub { $from->sql("SELECT outcome FROM quorum.checks WHERE check_index = $index AND node_name = '" . $victim->name . "'") eq 'skipped' }, 60);
	is($session->outcome, '00000', 'a check that died with its node is not waited for') or diag($session->error);
	$session->finish;
	all_reachable();
	$cluster->wait_applied;
}

# ---- a_copy_that_cannot_be_read_is_replaced
$second->sql('SELECT count(*) FROM other');
damage_page($second, 'account', 3);
$healthy = $cluster->wait_for_leader;
$cluster->wait_applied;
my ($undamaged) = grep { $_ != $second } $cluster->nodes;
like(verify($undamaged, 'account'), qr/^\Q${\$second->name}\E\|unreadable\|\|f$/m, 'a page that cannot be read is found');
quarantined($second, 'account');
is($second->query(q{SELECT * FROM quorum.diverging_keys('account')})->{sqlstate}, 'XX001', 'its rows cannot be listed');
is($second->sql(q{SELECT removed_rows, copied_rows FROM quorum.repair('account')}, timeout => 120), '0|501', 'but all are copied anew');
is(state_on($second, 'account'), 'active', 'the quarantine is over');
$cluster->assert_same_digest('account', 'and all copies are the same');
is($second->sql(q{SET enable_seqscan = off; SELECT owner FROM account WHERE id = 321}), 'owner number 321', 'the indexes were made anew too');
$second->sql(q{UPDATE account SET balance = 3 WHERE id = 321});

# ---- no_false_alarm: while tables come, go and are truncated
{
	my @sessions = map { $_->session } $n1, $n2;
	$leader = $cluster->wait_for_leader;
	$leader->sql(q{CREATE TABLE fleeting (id int PRIMARY KEY, v text)});
	my %states;
	foreach my $round (1 .. 6)
	{
		$leader->sql(q{INSERT INTO fleeting SELECT i, 'round' FROM generate_series(1, 300) AS i});
		$leader->sql(q{SELECT quorum.replicate('fleeting')});
		$sessions[$_]->query_until(qr/asked/, "\\echo asked\nSELECT count(*) FROM quorum.verify('fleeting', '5s');\n") foreach 0, 1;
		$leader->query('TRUNCATE fleeting') if $round % 2;
		$leader->query(q{INSERT INTO fleeting VALUES (1000, 'after')});
		$leader->query('VACUUM FULL fleeting') if $round % 3 == 0;
		$sessions[$_ % 2]->query('SELECT 1') foreach 0, 1;
		$states{$_}++ foreach map { state_on($_, 'fleeting') } $cluster->nodes;
		foreach my $attempt (1 .. 50)
		{
			last if $leader->query(q{SELECT quorum.unreplicate('fleeting')})->{ok};
		}
		$cluster->wait_applied;
		$_->sql('DROP TABLE fleeting') foreach grep { $_ != $leader } $cluster->nodes;
		$leader->sql('TRUNCATE fleeting');
	}
	ok(!$states{quarantined}, 'no false alarm while tables come, go and are truncated') or diag(explain(\%states));
	$_->quit foreach @sessions;
	is($_->sql('SELECT last_error IS NULL FROM quorum.status'), 't', 'nor an error on ' . $_->name) foreach $cluster->nodes;
	is($n1->sql(q{SELECT count(*) FROM quorum.table_check c WHERE NOT EXISTS (SELECT FROM quorum.replicated_table t WHERE t.table_id = c.table_id)}), '0',
		'nothing is left of the checks of tables that are gone');
}

# ---- without_a_majority_nobody_is_quarantined
{
	my ($one) = grep { $_ != $cluster->wait_for_leader } $cluster->nodes;
	damage($one, 'other', 'other 99' => 'other 9x');
	$leader = $cluster->wait_for_leader;
	$cluster->wait_applied;
	my ($third) = grep { $_ != $one && $_ != $leader } $cluster->nodes;
	$third->stop('fast');
	QuorumCluster::wait_until('the leader to notice', sub { $leader->status('voters_reachable') eq '2' }, 30);
	my $result = $leader->query(q{SELECT node_name, outcome, matches FROM quorum.verify('other') ORDER BY 1});
	like($result->{stderr}, qr/WARNING:.*no majority of the voters has the same/, 'one against one: a warning');
	is(scalar(() = $result->{rows} =~ /\|checked\|$/mg), 2, 'and nobody is said to be right or wrong') or diag($result->{rows});
	is(state_on($_, 'other'), 'active', 'nor quarantined: ' . $_->name) foreach $one, $leader;
	$third->start;
	all_reachable();
	$cluster->wait_applied;

	# ---- the_check_in_the_background_finds_it
	$_->sql(q{ALTER SYSTEM SET quorum.check_interval = '1s'; SELECT pg_reload_conf()}) foreach $cluster->nodes;
	quarantined($one, 'other');
	ok(1, 'the next check in the background finds it');
	$_->sql(q{ALTER SYSTEM SET quorum.check_interval = 0; SELECT pg_reload_conf()}) foreach $cluster->nodes;
	is($one->sql(q{SELECT key, kind FROM quorum.diverging_keys('other')}), 'id=99|differs', 'it lists the key');
	# ---- under_write_load_only_what_differs_is_copied: both copies are those of one index
	my $writer = $leader->session;
	$writer->query_until(qr/started/, "\\echo started\nDO \$\$ BEGIN FOR i IN 1..2000 LOOP UPDATE other SET v = 'load ' || i WHERE id = 60 + i % 20; "
		  . "INSERT INTO other VALUES (20000 + i, 'new'); COMMIT; END LOOP; END \$\$;\n");
	like($one->sql(q{SELECT quorum.repair('other')}, timeout => 120), qr/^\(1,1,\d+\)$/, 'and is repaired, under write load exactly that row');
	$writer->query('SELECT 1');
	$writer->quit;
	$cluster->assert_same_digest('other', 'all copies are the same at the end');
}

# ---- if_all_that_are_left_are_quarantined_one_leads_all_the_same: or nothing could ever be repaired
{
	damage($n1, 'account', 'owner number 123' => 'owner numbes 123');
	damage($n2, 'other', 'other 98' => 'other 9x');
	$cluster->wait_applied;
	verify($n3, $_) foreach 'account', 'other';
	quarantined($n1, 'account');
	quarantined($n2, 'other');
	is($cluster->wait_for_leader->name, 'n3', 'the only one that is not quarantined leads');
	$n3->stop('fast');
	my $last_resort = $cluster->wait_for_leader;
	ok(1, 'without it another one does: ' . $last_resort->name);
	is($n1->query(q{UPDATE other SET v = 'x' WHERE id = 1})->{sqlstate}, '25006', 'but takes no writes');
	like($n1->sql(q{SELECT quorum.repair('account')}, timeout => 120), qr/^\(1,1,\d+\)$/, 'and they repair each other');
	like($n2->sql(q{SELECT quorum.repair('other')}, timeout => 120), qr/^\(1,1,\d+\)$/, 'both of them');
	$n1->sql(q{UPDATE other SET v = 'y' WHERE id = 1});
	$n3->start;
	all_reachable();
	$cluster->assert_same_digest($_) foreach 'account', 'other';
}

done_testing();
