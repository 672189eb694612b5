# Statements within statements: what triggers and functions change while an outer statement runs is captured before what is left of the outer
# one, whichever came first.  Applied in that order, rows would be missing or doubled on the other nodes, and those would stop.
# And sequences: a new leader goes on where the old one was.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use Test::More;

my $cluster = QuorumCluster->new(nodes => 3, conf => 'deadlock_timeout = 20ms');
my $leader = $cluster->wait_for_leader;

sub on_all_nodes
{
	my ($sql) = @_;
	$_->sql($sql) foreach $cluster->nodes;
	return;
}

sub none_has_stopped
{
	my ($name) = @_;
	my @errors = map { $_->sql("SELECT coalesce(last_error, '') FROM quorum.status") } $cluster->nodes;
	is(join(',', @errors), ',,', $name);
	return;
}

# ---- inner_statements_of_before_and_after_triggers_keep_their_place -----------------------------------------------

# A period closes its predecessor: the inner update must precede the outer insertion, which a unique index enforces, and each later one follows it.
on_all_nodes(q{
	CREATE FUNCTION close_predecessor() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		UPDATE period SET is_current = false WHERE item = new.item AND is_current;
		RETURN new;
	END $$;
	CREATE FUNCTION replace_row() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		DELETE FROM latest WHERE id = new.id;
		RETURN new;
	END $$;
	CREATE FUNCTION touch_next() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		IF pg_trigger_depth() < 4 THEN
			UPDATE ring SET n = (n * 2 + 1) % 100003 WHERE id IN (new.id, new.id % 5 + 1);
		END IF;
		RETURN NULL;
	END $$});
$leader->sql(q{
	CREATE TABLE period (item int, version int, is_current bool, PRIMARY KEY (item, version));
	CREATE UNIQUE INDEX ON period (item) WHERE is_current;
	CREATE TRIGGER close_predecessor BEFORE INSERT ON period FOR EACH ROW EXECUTE FUNCTION close_predecessor();
	CREATE TABLE latest (id int PRIMARY KEY, v int);
	CREATE TRIGGER replace_row BEFORE INSERT ON latest FOR EACH ROW EXECUTE FUNCTION replace_row();
	CREATE TABLE ring (id int PRIMARY KEY, n int);
	INSERT INTO ring SELECT i, i FROM generate_series(1, 5) AS i;
	CREATE TRIGGER touch_next AFTER UPDATE ON ring FOR EACH ROW EXECUTE FUNCTION touch_next();
	SELECT quorum.replicate('period'); SELECT quorum.replicate('latest'); SELECT quorum.replicate('ring')});
$leader->sql(q{
	INSERT INTO period SELECT i % 3, i, true FROM generate_series(1, 20) AS i;
	INSERT INTO latest VALUES (1, 1), (2, 2), (1, 3), (1, 4);
	INSERT INTO latest VALUES (2, 5), (1, 6), (2, 7);
	COPY latest FROM PROGRAM 'printf "1\\\t8\\\n3\\\t9\\\n1\\\t10\\\n"';
	UPDATE ring SET n = n + 1;
	UPDATE ring SET n = n + 1 WHERE id IN (2, 4)});
is($leader->sql('SELECT count(*) FROM period WHERE is_current'), '3', 'one period of each item is current');
is($leader->sql('SELECT string_agg(v::text, $$,$$ ORDER BY id) FROM latest'), '10,7,9', 'the last row of each key is there');
none_has_stopped('no node missed a row');
$cluster->assert_same_digest($_) foreach qw(period latest ring);

# ---- so_do_those_of_random_nesting_with_savepoints ----------------------------------------------------------------
on_all_nodes(q{
	CREATE FUNCTION anything() RETURNS trigger LANGUAGE plpgsql AS $$
	DECLARE
		k int := (random() * 30)::int;
		u2 int := (random() * 30)::int;
	BEGIN
		IF pg_trigger_depth() < 4 AND random() < 0.6 THEN
		BEGIN
			CASE (random() * 5)::int
				WHEN 0 THEN DELETE FROM nested WHERE id = k;
				WHEN 1 THEN UPDATE nested SET v = v + 1, u = u2 WHERE id = k;
				WHEN 2 THEN INSERT INTO nested VALUES (k, u2, 0);
				WHEN 3 THEN DELETE FROM nested WHERE u = new.u;
				WHEN 4 THEN UPDATE nested SET id = u2 WHERE id = k;
				ELSE INSERT INTO nested VALUES (k, u2, 1), (k + 1, u2 + 1, 1) ON CONFLICT (id) DO UPDATE SET v = nested.v + 10;
			END CASE;
			IF random() < 0.1 THEN RAISE EXCEPTION 'taken back'; END IF;
		EXCEPTION WHEN OTHERS THEN NULL;
		END;
		END IF;
		RETURN CASE WHEN tg_when = 'BEFORE' THEN new END;
	END $$;
	CREATE FUNCTION one_round() RETURNS int LANGUAGE plpgsql AS $$
	DECLARE
		done int := 0;
	BEGIN
		FOR i IN 1 .. 4 LOOP
		BEGIN
			CASE (random() * 5)::int
				WHEN 0 THEN INSERT INTO nested SELECT (random() * 30)::int, (random() * 30)::int, 5 FROM generate_series(1, 4) ON CONFLICT DO NOTHING;
				WHEN 1 THEN UPDATE nested SET v = v + 1 WHERE id % 3 = (random() * 2)::int;
				WHEN 2 THEN UPDATE nested SET u = (u + 7) % 37 WHERE id < 10;
				WHEN 3 THEN INSERT INTO nested VALUES ((random() * 30)::int, (random() * 30)::int, 0);
				WHEN 4 THEN DELETE FROM nested WHERE id > 20;
				ELSE WITH d AS (DELETE FROM nested WHERE id < 5 RETURNING *),
						i AS (INSERT INTO nested VALUES (50 + (random() * 5)::int, 60, 0) ON CONFLICT DO NOTHING)
					INSERT INTO nested SELECT id + 40, u + 40, v FROM d ON CONFLICT (id) DO UPDATE SET v = excluded.v;
			END CASE;
			done := done + 1;
		EXCEPTION WHEN OTHERS THEN NULL;
		END;
		END LOOP;
		RETURN done;
	END $$});
$leader->sql(q{
	CREATE TABLE nested (id int PRIMARY KEY, u int UNIQUE, v int);
	CREATE TRIGGER before_it BEFORE INSERT OR UPDATE ON nested FOR EACH ROW EXECUTE FUNCTION anything();
	CREATE TRIGGER after_it AFTER INSERT OR UPDATE ON nested FOR EACH ROW EXECUTE FUNCTION anything();
	SELECT quorum.replicate('nested')});
my $done = 0;
foreach my $seed (1 .. 8)
{
	my $rows = $leader->sql("SELECT setseed(0.0$seed);" . ('SELECT one_round();' x 50));
	$done += $_ foreach $rows =~ /(\d+)/g;
}
cmp_ok($done, '>', 400, "enough of 1600 statements came through: $done");
none_has_stopped('no node missed a row, or met one that should not be there yet');
$cluster->assert_same_digest('nested', 'statements within statements, 400 transactions');

# ---- an_uncaptured_change_is_not_committed ------------------------------------------------------------------------
$leader->sql(q{UPDATE pg_trigger SET tgenabled = 'D' WHERE tgname = '!quorum_capture' AND tgrelid = 'ring'::regclass});
is($leader->query('UPDATE ring SET n = 0')->{sqlstate}, '55000', 'with the trigger disabled behind our back');
is($leader->query('BEGIN; DELETE FROM latest WHERE id = 3; UPDATE ring SET n = 0; COMMIT')->{sqlstate}, '55000',
	'and beside a change that is captured');
$leader->sql(q{UPDATE pg_trigger SET tgenabled = 'A' WHERE tgname = '!quorum_capture' AND tgrelid = 'ring'::regclass});
is($leader->query('BEGIN; UPDATE ring SET n = 1; SET LOCAL track_counts = off; UPDATE ring SET n = 2; COMMIT')->{sqlstate}, '55000',
	'and while the server does not count');
$cluster->assert_same_digest($_) foreach qw(latest ring);

# ---- a_new_leader_does_not_hand_out_numbers_again -----------------------------------------------------------------
$leader->sql(q{
	CREATE TABLE numbered (id bigserial PRIMARY KEY, other int GENERATED ALWAYS AS IDENTITY (START WITH -5 INCREMENT BY -2), v int);
	INSERT INTO numbered (v) SELECT i FROM generate_series(1, 100) AS i;
	SELECT quorum.replicate('numbered');
	INSERT INTO numbered (v) VALUES (101), (102)});
$cluster->wait_applied;
$leader->kill9;
my $next = $cluster->wait_for_leader(not => $leader);
my $number = $next->query('INSERT INTO numbered (v) VALUES (103) RETURNING id > 102 AND other < -207');
is($number->{rows}, 't', 'neither serial nor identity columns begin again') or diag($number->{stderr});
$leader->start;
$cluster->assert_same_digest('numbered');

done_testing();
