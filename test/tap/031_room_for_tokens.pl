# Tokens are remembered for as long as is promised: there is room for so many, and then a transaction with a token is refused rather than that a young one
# is forgotten.  What may be forgotten is not called rejected.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use TokenLoad;
use Test::More;
use Time::HiRes qw(time);

my $cluster = TokenLoad::cluster(nodes => 1, conf => "quorum.token_retention_age = '1h'");
my ($node) = $cluster->nodes;
my $ages_file = $node->data_dir . '/pg_quorum/pgsql_tmp_journal/token_ages';

sub outcome { my ($token, @after) = @_; return $node->sql("SELECT outcome FROM quorum.outcome('$token'" . join('', map { ", $_" } @after) . ')'); }

# ---- young_tokens_are_not_displaced: a quarter of 1024 is kept free; when half of it is used a fence is put
ok(TokenLoad::put($node, 1, 767)->{ok}, 'there is room for so many tokens');
is(TokenLoad::memory($node, 'capacity || $$ $$ || remembered || $$ $$ || has_room || $$ $$ || forgotten_early'), '1024 768 false 0', 'they are remembered, and a fence');
my $refused = TokenLoad::put($node, 768, 768);
is($refused->{sqlstate}, '53400', 'one more is refused');
like($refused->{stderr}, qr/known for less than 3600 s/, 'and says why');
ok($node->query('INSERT INTO t VALUES (1)')->{ok}, 'a transaction without a token is not');
is($node->sql('SELECT count(*) FROM t WHERE v = $$filler$$'), '767', 'what was refused did not take effect');

# ---- outcomes_are_told_all_the_same
is(outcome('filler 1'), 'committed', 'what became of a token is told while there is no room for more');
my $first_index = $node->sql("SELECT log_index FROM quorum.outcome('filler 1')");
is(outcome('never used'), 'rejected', 'of one that was not used too');
my $asked = $node->query(join("\n", map { "SELECT outcome FROM quorum.outcome('never $_');" } 1 .. 500));
is($asked->{sqlstate}, '53400', 'but fences do not displace tokens either');
is(scalar(split(/\n/, $asked->{rows})), 127, 'after so many of them');
is(TokenLoad::memory($node, 'remembered || $$ $$ || coalesce(forgotten_up_to_index, 0)'), '896 0', 'nothing was forgotten');

# ---- a_token_that_is_old_enough_makes_room
TokenLoad::set($node, 'quorum.token_retention_age', '1s');
QuorumCluster::wait_until('tokens to be old enough', sub { TokenLoad::memory($node, 'has_room') eq 't' });
ok(TokenLoad::put($node, 768, 768)->{ok}, 'once they are older than is promised there is room again');
TokenLoad::set($node, 'quorum.token_retention_age', '1h');
is(TokenLoad::put($node, 769, 769)->{sqlstate}, '53400', 'and with a longer promise there is none');

# ---- their_age_survives_a_restart: it is saved every ten seconds, and does not count from the start of the server
QuorumCluster::wait_until('the ages to be saved', sub { -e $ages_file });
my $inode = (stat($ages_file))[1];
QuorumCluster::wait_until('the ages to be saved once more', sub { my $now = (stat($ages_file))[1]; defined $now && $now != $inode });
$node->restart;
$cluster->wait_for_leader;
is(TokenLoad::memory($node, 'oldest_age >= $$9 s$$'), 't', 'after a restart it is known how old they are');
is(TokenLoad::memory($node, 'remembered'), '897', 'and how many there are');

# ---- a_file_that_is_damaged_makes_none_of_them_older
$node->stop('fast');
my $content = PostgreSQL::Test::Utils::slurp_file($ages_file);
substr($content, 40, 1) = chr(ord(substr($content, 40, 1)) ^ 1);
open(my $file, '>', $ages_file) or die "$ages_file: $!";
binmode($file);
print $file $content;
close($file);
my $before = time();
$node->start;
$cluster->wait_for_leader;
my $oldest_age = TokenLoad::memory($node, 'extract(epoch FROM oldest_age)');
cmp_ok($oldest_age, '<=', time() - $before, 'with a damaged file they are known since the start only');
ok(TokenLoad::put($node, 769, 769)->{sqlstate} eq '53400' && $node->query('INSERT INTO t VALUES (2)')->{ok}, 'which keeps them the longer');

# ---- what_may_be_forgotten_is_not_called_rejected
TokenLoad::set($node, 'quorum.token_retention_age', '0');
ok(TokenLoad::put($node, 769, 1900)->{ok}, 'if no age is promised the newest are remembered');
is(TokenLoad::memory($node, 'remembered || $$ $$ || forgotten_early'), '1024 0', 'and none of them too few');
my $floor = TokenLoad::memory($node, 'forgotten_up_to_index');
is(outcome('filler 1900'), 'committed', 'a young one is known');
is(outcome('filler 1'), 'unknown', 'one that was committed and is forgotten is not called rejected');
is(outcome('filler 1'), 'unknown', 'nor is it when it was asked for before');
is(outcome('filler 1', $first_index - 1), 'unknown', 'nor if it is known behind which index it was first tried, if that is too long ago');
is(outcome('not used', $node->sql('SELECT chosen_index FROM quorum.status')), 'rejected', 'if it is not, one that is not known is rejected');
is($node->query(q{SELECT * FROM quorum.outcome('x', -1)})->{sqlstate}, '22023', 'an index that is none is refused');

# ---- a_retry_that_says_since_when_it_is_tried
my $late = $node->query("BEGIN; SET LOCAL quorum.token_after_index = '" . ($first_index - 1) . q{'; SET LOCAL quorum.token = 'filler 2';}
	. q{INSERT INTO t VALUES (3); COMMIT});
is($late->{sqlstate}, '55000', 'is refused if its first attempt may be forgotten');
like($late->{stderr}, qr/remembered from log index \d+ on/, 'and told how far that goes back');
is($node->query(q{BEGIN; SET LOCAL quorum.token_after_index = '} . TokenLoad::memory($node, 'forgotten_up_to_index') . q{'; SET LOCAL quorum.token = 'filler 1900';}
	. q{INSERT INTO t VALUES (3); COMMIT})->{sqlstate}, '23505', 'and finds it if not');
ok($node->query(q{BEGIN; SET LOCAL quorum.token_after_index = '} . TokenLoad::memory($node, 'forgotten_up_to_index') . q{'; SET LOCAL quorum.token = 'new';}
	. q{INSERT INTO t VALUES (4); COMMIT})->{ok}, 'or takes effect if there was none');
is($node->query(q{SET quorum.token_after_index = '12 monkeys'})->{sqlstate}, '22023', 'an index is a number');
is($node->sql('SELECT count(*) FROM t WHERE id IN (3, 4)'), '1', 'and nothing else took effect');
cmp_ok(TokenLoad::memory($node, 'forgotten_up_to_index'), '>', $floor, 'tokens go on displacing older ones');

done_testing();
