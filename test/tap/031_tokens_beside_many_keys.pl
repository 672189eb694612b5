# A token keeps what is promised where much is written: the memory for keys is passed through sooner than that for tokens, so the log finds an attempt young
# enough by its keys of which an earlier one is forgotten.  Nor is a client invited to try again what may have been done.
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

# 1024 tokens; 2048 pairs of key and mode, two for each row that is inserted, and one for each fourth token, which marks their epochs.  A node whose messages are lost must believe for a while that all is well.
my $cluster = TokenLoad::cluster(
	nodes => 3,
	namespaces => 1,
	key_capacity => 2048,
	conf => "quorum.heartbeat_interval = '400ms'\nquorum.election_timeout = '1500ms'\nquorum.commit_timeout = 0\n"
	  . "quorum.token_retention_age = 0");
my $leader = $cluster->wait_for_leader;
my ($follower, $other) = $cluster->followers;

sub first { my ($token, $id) = @_; $leader->sql(TokenLoad::transaction($token, $id, 'first')); return $leader->sql("SELECT log_index - 1 FROM quorum.outcome('$token')"); }

sub begin { my ($token, $after_index) = @_; return "BEGIN; SET LOCAL quorum.token_after_index = '$after_index'; SET LOCAL quorum.token = '$token'"; }

sub rows { return map { $_->sql('SELECT string_agg(id::text, $$,$$ ORDER BY id) FROM t WHERE id < 13') } $cluster->nodes; }

# ---- the_hint_of_a_retry_is_not_that_of_a_first_attempt: behind the index that it names the token's first attempt can stand
{
	TokenLoad::set($follower, 'quorum.token_retention_age', '1h');
	my $after_index = first('hint', 18);
	$cluster->wait_applied;
	my $session = WaitingSession->new($follower);
	$session->run(q{BEGIN; SET LOCAL quorum.token = 'hint'; INSERT INTO t VALUES (19)});
	$cluster->cut_one_way($follower, [ $leader, $other ]);
	$session->send('COMMIT');
	$session->wait_until_waiting;
	$follower->sql('SELECT pg_cancel_backend(' . $session->backend_pid . ')');
	is($session->outcome, '08007', 'nobody knows') or diag($session->error);
	my ($hinted) = $session->error =~ /quorum\.outcome\('hint'(?:, (\d+))?\)/;
	cmp_ok($hinted // 0, '<=', $after_index, 'the hint is true of the first attempt');
	$cluster->heal;
	$leader = $cluster->wait_for_leader;
	($follower, $other) = $cluster->followers;
	TokenLoad::set($_, 'quorum.token_retention_age', '0') foreach $cluster->nodes;
	$cluster->wait_applied;
}

# ---- a_retry_is_not_believed_younger_because_much_was_written: the first attempt is forgotten between the retry and its verdict, whether it says since when or not
{
	TokenLoad::set($follower, 'quorum.token_retention_age', '1h');
	my $after_index = first('stated', 1);
	first('within the age', 11);
	ok(TokenLoad::put($leader, 1, 620)->{ok}, 'others write so much that half of the memory for keys is younger');
	$cluster->wait_applied;
	my $stated = WaitingSession->new($follower);
	$stated->run(begin('stated', $after_index) . "; INSERT INTO t VALUES (2, 'late')");
	my $within = WaitingSession->new($follower);
	$within->run("BEGIN; SET LOCAL quorum.token = 'within the age'; INSERT INTO t VALUES (12, 'late')");
	$cluster->cut_one_way($follower, [ $leader, $other ]);
	foreach my $session ($stated, $within)
	{
		$session->send('COMMIT');
		$session->wait_until_waiting;
	}
	ok(TokenLoad::put($leader, 621, 1040)->{ok}, 'and go on until the first attempts are forgotten');
	cmp_ok(TokenLoad::memory($leader, 'forgotten_up_to_index'), '>', $after_index + 1, 'they are');
	$cluster->heal;
	is($stated->outcome, '55000', 'the retry takes no effect, nor is its client invited to retry') or diag($stated->error);
	like($stated->error, qr/is no longer known.*This one was not committed/s, 'and is told why');
	is($within->outcome, '55000', 'nor does one that is within the age that is promised') or diag($within->error);
	$cluster->wait_for_leader;
	$cluster->wait_applied;
	is_deeply([ rows() ], [ ('1,11') x 3 ], 'each token has taken effect once');
	TokenLoad::set($follower, 'quorum.token_retention_age', '0');
}

# ---- a_retry_that_says_since_when_is_refused_if_the_keys_do_not_reach_back: while the token itself is remembered
{
	$leader = $cluster->wait_for_leader;
	my $after_index = first('reach', 3);
	ok(TokenLoad::put($leader, 2001, 2800)->{ok}, 'others write much');
	is($leader->sql("SELECT outcome FROM quorum.outcome('reach')"), 'committed', 'the first attempt is remembered');
	is($leader->query(begin('reach', $after_index) . q{; INSERT INTO t VALUES (4); COMMIT})->{sqlstate}, '55000', 'a retry is refused all the same');
	is($leader->query(TokenLoad::transaction('reach', 4, 'x'))->{sqlstate}, '23505', 'one that does not say since when finds it');
}

# ---- an_attempt_that_is_under_way_for_long_is_to_be_made_again: before a token is forgotten that it has to find, and though others only ask for outcomes
{
	($follower, $other) = $cluster->followers;
	TokenLoad::set($follower, 'quorum.token_retention_age', '1s');
	QuorumCluster::wait_until('tokens to be older than it must remember', sub { $follower->sql('SELECT min(age_ms) > 1000 FROM quorum.token_samples()') eq 't' });
	my $session = WaitingSession->new($follower);
	$session->run(q{BEGIN; SET LOCAL quorum.token = 'slow'; INSERT INTO t VALUES (8, 'late')});
	$cluster->cut_one_way($follower, [ $leader, $other ]);
	$session->send('COMMIT');
	$session->wait_until_waiting;
	ok($leader->query(join("\n", map { "SELECT FROM quorum.outcome('not used $_');" } 1 .. 800), timeout => 120)->{ok}, 'many tokens are asked for that are not used');
	$cluster->heal;
	is($session->outcome, '40001', 'the attempt takes no effect') or diag($session->error);
	like($session->error, qr/an earlier attempt with the token "slow" might soon be forgotten/, 'and its client is told why');
	$leader = $cluster->wait_for_leader;
	ok($leader->query(TokenLoad::transaction('slow', 9, 'again'))->{ok}, 'the next one takes effect');
	$cluster->wait_applied;
	TokenLoad::set($follower, 'quorum.token_retention_age', '0');
}

# ---- an_index_that_is_not_chosen_yet_means_nothing
{
	is($leader->query(q{SELECT * FROM quorum.outcome('stated', 9000000000000000000)})->{sqlstate}, '22023', 'outcome() refuses it');
	is($leader->sql(q{SELECT outcome FROM quorum.outcome('stated')}), 'unknown', 'what may have been committed is not called rejected');
	TokenLoad::set($leader, 'quorum.token_retention_age', '1h');
	is($leader->query(begin('stated', '9000000000000000000') . q{; INSERT INTO t VALUES (5); COMMIT})->{sqlstate}, '53400', 'a transaction is taken for one that says nothing');
	TokenLoad::set($leader, 'quorum.token_retention_age', '0');
}

# ---- a_transaction_counts_from_its_begin: it began within the age that is promised, and comes to its COMMIT later
{
	TokenLoad::set($leader, 'quorum.token_retention_age', '2s');
	QuorumCluster::wait_until('room for tokens', sub { TokenLoad::memory($leader, 'has_room') eq 't' });
	my $session = WaitingSession->new($leader);
	$session->run(q{BEGIN; SET LOCAL quorum.token = 'from its begin'});
	my $after_index = first('from its begin', 6);
	ok(TokenLoad::put($other, 3001, 4040)->{ok}, 'another node has the first attempt forgotten');
	$cluster->wait_applied;
	cmp_ok(TokenLoad::memory($leader, 'forgotten_up_to_index'), '>', $after_index, 'it is');
	QuorumCluster::wait_until('room for tokens', sub { TokenLoad::memory($leader, 'has_room') eq 't' });
	$session->run(q{INSERT INTO t VALUES (7, 'late')});
	$session->send('COMMIT');
	is($session->outcome, '55000', 'the attempt is refused') or diag($session->error);
	is($leader->sql('SELECT count(*) FROM t WHERE id IN (6, 7)'), '1', 'and takes no effect');
}

# ---- outcomes_are_told_by_a_node_that_applies_late: by more than the memory for keys; of so many fences some mark an epoch of tokens
{
	$cluster->wait_applied;
	($follower) = $cluster->followers;
	$leader = $cluster->wait_for_leader;
	TokenLoad::set($_, 'quorum.token_retention_age', '0') foreach $cluster->nodes;
	my @sessions = map { WaitingSession->new($follower) } 1 .. 6;
	$follower->without_apply(sub {
		ok(TokenLoad::put($leader, 5001, 6100)->{ok}, 'others write on');
		foreach my $session (@sessions)
		{
			$session->send("SELECT FROM quorum.outcome('asked late " . $session->backend_pid . "')");
			QuorumCluster::wait_until('the question to be put', sub {
				return $session->is_done || $follower->query('SELECT wait_event_type FROM pg_stat_activity WHERE pid = ' . $session->backend_pid)->{rows} eq 'Extension';
			});
		}
	});
	is($_->outcome, '00000', 'who asks a node that applies late is told') or diag($_->error) foreach @sessions;
	$_->finish foreach @sessions;
	$cluster->wait_applied;
	$cluster->assert_same_digest('t');
}

done_testing();
