# An attempt that is under way for so long that its token has been forgotten meanwhile takes no effect: neither the first one, overtaken by a retry, nor a
# retry whose first attempt was committed.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use TokenLoad;
use WaitingSession;
use Test::More;

QuorumCluster->skip_all_without_namespaces;

# Long intervals: a node whose messages are lost must believe for a while that all is well.
my $cluster = TokenLoad::cluster(
	nodes => 3,
	namespaces => 1,
	conf => "quorum.heartbeat_interval = '400ms'\nquorum.election_timeout = '1500ms'\nquorum.commit_timeout = 0\n"
	  . "quorum.token_retention_age = '1h'");
my $leader = $cluster->wait_for_leader;
my ($follower, $other) = $cluster->followers;
TokenLoad::set($leader, 'quorum.token_retention_age', '0');

# What is committed first, with ids that tell the attempts apart.
sub commit { my ($node, @what) = @_; $node->sql(TokenLoad::transaction(@what)); return; }

# An attempt on the follower that does not leave it; its client is told that nobody knows.
sub attempt
{
	my ($name, $token, $id, @more) = @_;
	my $session = WaitingSession->new($follower);
	$session->run(join('; ', 'BEGIN', @more, "SET LOCAL quorum.token = '$token'", "INSERT INTO t VALUES ($id, 'late')"));
	$session->send('COMMIT');
	$session->wait_until_waiting;
	$follower->sql('SELECT pg_cancel_backend(' . $session->backend_pid . ')');
	is($session->outcome, '08007', "$name: nobody knows") or diag($session->error);
	return $session;
}

sub cut { $cluster->cut_one_way($follower, [ $leader, $other ]); return; }

sub verdicts { return $leader->sql(q{SELECT string_agg(verdict, ',' ORDER BY log_index) FROM quorum.log WHERE origin_node = '} . $follower->name
	. q{' AND kind = 'transaction' AND verdict <> 'duplicate'}); }

# The links are back; the verdicts over all that has come from the follower are these, once there are as many.
sub heal
{
	my ($expected, $name) = @_;
	my $verdicts;
	$cluster->heal;
	$cluster->wait_for_leader;
	QuorumCluster::wait_until('the late attempts to come', sub { $verdicts = verdicts(); return ($verdicts =~ tr/,//) >= ($expected =~ tr/,//) && $verdicts ne ''; });
	is($verdicts, $expected, $name);
	$cluster->wait_applied;
	return;
}

sub rows { return map { $_->sql('SELECT string_agg(id::text, $$,$$ ORDER BY id) FROM t WHERE id < 10') } $cluster->nodes; }

# ---- a_retry_whose_first_attempt_is_forgotten_meanwhile: so many come between that its locks alone would be taken for young enough
{
	commit($leader, 'stated', 1, 'first');
	my $stated_after = $leader->sql(q{SELECT log_index - 1 FROM quorum.outcome('stated')});
	commit($leader, 'of this hour', 2, 'first');
	ok(TokenLoad::put($leader, 1, 50)->{ok}, 'retries: others come meanwhile');
	my $seen = $cluster->wait_applied;
	cut();
	attempt('stated', 'stated', 3, "SET LOCAL quorum.token_after_index = '$stated_after'");
	attempt('of this hour', 'of this hour', 4);
	ok(TokenLoad::put($leader, 51, 1040)->{ok}, 'retries: and go on until the first attempts are forgotten');
	cmp_ok(TokenLoad::memory($leader, 'forgotten_up_to_index'), '<', $seen, 'retries: but not what came before the retries');
	heal('rejected,rejected', 'retries: when they come they are rejected');
	is_deeply([ rows() ], [ ('1,2') x 3 ], 'retries: they take no effect on any node');
}

# ---- nodes that promise an age notice that another one does not keep it
foreach my $node ($follower, $other)
{
	cmp_ok(TokenLoad::memory($node, 'forgotten_early'), '>', 0, $node->name . ' counts what was forgotten too early');
	like(PostgreSQL::Test::Utils::slurp_file($node->logfile), qr/WARNING:.*tokens are forgotten that may be younger/, 'and warns of it');
	is($node->query(TokenLoad::transaction('one more', 9, 'x'))->{sqlstate}, '53400', 'and promises nothing more for now');
}

# ---- an_attempt_that_was_overtaken_by_a_retry: whatever is promised
{
	TokenLoad::set($_, 'quorum.token_retention_age', '0') foreach $follower, $other;
	cut();
	my $session = attempt('overtaken', 'overtaken', 5);
	my ($hint) = $session->error =~ /(quorum\.outcome\('overtaken', \d+\))/;
	ok($hint, 'overtaken: the hint says behind which index it is to be looked for');
	commit($other, 'overtaken', 6, 'second');
	is($other->sql("SELECT outcome FROM $hint"), 'committed', 'overtaken: a second attempt came first');
	ok(TokenLoad::put($leader, 1041, 2080)->{ok}, 'overtaken: others come until that is forgotten');
	heal('rejected,rejected,rejected', 'overtaken: when it comes it is rejected');
	is_deeply([ rows() ], [ ('1,2,6') x 3 ], 'overtaken: it takes no effect on any node');
	is($leader->sql("SELECT outcome FROM $hint"), 'unknown', 'overtaken: but is not called rejected');
}
$cluster->assert_same_digest('t');

# ---- every node goes on from the same state: tokens, floor, and that there was a fence
foreach my $node ($cluster->nodes)
{
	$node->restart;
	$cluster->wait_for_leader;
}
my %memory = map { TokenLoad::memory($_, 'remembered || $$ $$ || forgotten_up_to_index') => 1 } $cluster->nodes;
is(scalar(keys %memory), 1, 'all nodes remember the same after a restart') or diag(join(', ', keys %memory));

done_testing();
