# What is written on the leader is the same on all nodes: every built-in type, large values, and every way in which a transaction can
# change rows: savepoints, triggers, conflicts, changed keys, deferred constraints, COPY, local tables beside replicated ones.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use QuorumCluster;
use Test::More;

my $cluster = QuorumCluster->new(nodes => 3, conf => 'max_prepared_transactions = 2');
my $leader = $cluster->wait_for_leader;
my @followers = $cluster->followers;

sub on_all_nodes
{
	my ($sql) = @_;
	$_->sql($sql) foreach $cluster->nodes;
	return;
}

# ---- every_built_in_type_arrives_as_it_was ------------------------------------------------------------------------

# Values of each type that a column can have; the test fails for a type that is not here.
my %values_of = (
	'"char"' => [ 'a', '\377', '' ],
	aclitem => [ 'pg_monitor=r/pg_monitor', '=r*/pg_monitor' ],
	bit => [ '1', '0' ],
	bool => [ 't', 'f' ],
	box => [ '(1,1),(0,-0.5)', '(Infinity,1),(0,0)' ],
	bpchar => [ 'padded  ', '', 'é' ],
	bytea => [ '\x00ff5c27', '', '\x00' ],
	cid => [ '7', '4294967295' ],
	cidr => [ '10.0.0.0/8', '2001:db8::/32' ],
	circle => [ '<(0,0),1.5>', '<(1e300,-1),0>' ],
	date => [ '2024-02-29', 'infinity', '-infinity', '0044-03-15 BC' ],
	datemultirange => [ '{[2024-01-01,2024-02-01),[2024-03-01,)}', '{}' ],
	daterange => [ '[2024-01-01,2024-02-01)', 'empty', '(,)' ],
	float4 => [ '1.1', 'NaN', '-0', 'Infinity', '1e-45' ],
	float8 => [ '0.1', 'NaN', '-0', '-Infinity', '1.7976931348623157e308', '5e-324', '0.30000000000000004' ],
	inet => [ '192.168.0.1/24', '::1' ],
	int2 => [ '-32768', '32767' ],
	int2vector => [ '1 2 3', '' ],
	int4 => [ '-2147483648', '2147483647' ],
	int4multirange => [ '{[1,5),[7,9)}', '{}' ],
	int4range => [ '[1,5)', 'empty', '(,)' ],
	int8 => [ '-9223372036854775808', '9223372036854775807' ],
	int8multirange => [ '{[1,5)}', '{(,)}' ],
	int8range => [ '[1,9223372036854775807)', 'empty' ],
	interval => [ '1 mon -3 days 04:05:06.000007', '-178000000 years', '00:00:00' ],
	json => [ '{"b": 1,   "a": [1,2], "b": 2}', 'null' ],
	jsonb => [ '{"b": 1e500, "a": ["\u00e9", null]}', 'null', '[]' ],
	jsonpath => [ '$.a[*] ? (@ > 1)', 'lax $' ],
	line => [ '{1,-1,0}', '{0.1,1,1e10}' ],
	lseg => [ '[(0,0),(1,1)]', '[(-0,1e-300),(1,NaN)]' ],
	macaddr => [ '08:00:2b:01:02:03', 'ff:ff:ff:ff:ff:ff' ],
	macaddr8 => [ '08:00:2b:01:02:03:04:05', '00:00:00:00:00:00:00:00' ],
	money => [ '12.34', '-0.01' ],
	name => [ 'a name', '' ],
	numeric => [ '1.00', '1.0', 'NaN', 'Infinity', '-0.000000000000000000001', '1e1000', '123456789012345678901234567890.5' ],
	nummultirange => [ '{[1.0,1.10)}', '{}' ],
	numrange => [ '(1.00,2]', 'empty' ],
	oid => [ '0', '4294967295' ],
	oidvector => [ '1 4294967295', '' ],
	path => [ '((0,0),(1,1))', '[(0,0),(1,1),(2,0)]' ],
	pg_lsn => [ '0/0', 'FFFFFFFF/FFFFFFFF' ],
	pg_snapshot => [ '10:20:10,14,15', '1:1:' ],
	point => [ '(1.5,-0)', '(NaN,Infinity)' ],
	polygon => [ '((0,0),(1,0),(1,1))', '((0.1,0.2))' ],
	refcursor => [ 'a cursor', '' ],
	regclass => [ 'pg_class', '-' ],
	regcollation => [ '"C"', '-' ],
	regconfig => [ 'english', 'simple' ],
	regdictionary => [ 'english_stem', 'simple' ],
	regnamespace => [ 'pg_catalog', '-' ],
	regoper => [ '0', '^@' ],
	regoperator => [ '+(integer,integer)', '0' ],
	regproc => [ 'now', '-' ],
	regprocedure => [ 'sum(integer)', '-' ],
	regrole => [ 'pg_monitor', '-' ],
	regtype => [ 'integer', 'text[]' ],
	text => [ q{quote ' backslash \\ tab	newline
é 漢字 emoji 😀}, '', 'NULL', '\N' ],
	tid => [ '(0,1)', '(4294967295,65535)' ],
	time => [ '23:59:59.999999', '24:00:00', '00:00:00' ],
	timestamp => [ '2024-02-29 12:00:00.000001', 'infinity', '-infinity', '4713-01-01 00:00:00 BC' ],
	timestamptz => [ '2024-03-31 02:30:00+01', 'infinity', '-infinity', '294276-12-31 23:59:59.999999+00' ],
	timetz => [ '12:00:00+05:45', '23:59:59.999999-15:59' ],
	tsmultirange => [ '{[2024-01-01 00:00,2024-01-02 00:00)}', '{}' ],
	tsquery => [ q{'fat' & ( 'rat' | 'cat':A )}, '' ],
	tsrange => [ '[2024-01-01 00:00,infinity)', 'empty' ],
	tstzmultirange => [ '{[2024-01-01 00:00+00,2024-01-02 00:00+00)}', '{}' ],
	tstzrange => [ '[2024-01-01 00:00+05:45,)', 'empty' ],
	tsvector => [ q{'a':1A,2B 'fat':3 'it''s'}, '' ],
	txid_snapshot => [ '10:20:10,14,15', '1:1:' ],
	uuid => [ 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '00000000-0000-0000-0000-000000000000' ],
	varbit => [ '10110', '' ],
	varchar => [ 'varying  ', '' ],
	xid => [ '3', '4294967295' ],
	xid8 => [ '3', '18446744073709551615' ],
	xml => [ '<a b="c">é</a>', 'text' ]);

# Types of which nobody can write a value.
my %no_value = map { $_ => 1 }
  qw(pg_node_tree pg_ndistinct pg_dependencies pg_mcv_list pg_brin_bloom_summary pg_brin_minmax_multi_summary gtsvector);

my @types = grep { !$no_value{$_} } split(
	/\n/,
	$leader->sql(q{
		SELECT CASE typname WHEN 'char' THEN '"char"' ELSE typname END FROM pg_type
		WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype IN ('b', 'r', 'm') AND typcategory <> 'A' AND oid < 12000
			OR typname IN ('int2vector', 'oidvector') AND typnamespace = 'pg_catalog'::regnamespace
		ORDER BY typname}));
my @unknown = grep { !$values_of{$_} } @types;
is("@unknown", '', 'this test has values for each built-in type of this server');
@types = grep { $values_of{$_} } @types;

# Types of the user's own whose OIDs differ from node to node.
my $number = 0;
foreach my $node ($cluster->nodes)
{
	$node->sql('CREATE TABLE "filler ' . $_ . '" (a int); DROP TABLE "filler ' . $_ . '"') foreach 1 .. $number++;
	$node->sql(q{
		CREATE TYPE mood AS ENUM ('sad', 'ok', 'hap''py');
		CREATE TYPE pair AS (a int, b text, m mood);
		CREATE DOMAIN positive AS numeric(8,2) CHECK (value > 0);
		CREATE DOMAIN moods AS mood[];
		CREATE TYPE floatrange AS RANGE (subtype = float8);
		CREATE TYPE moodrange AS RANGE (subtype = mood)});
}
my %own_values_of = (
	mood => [ 'sad', q{hap''py} ],
	pair => [ '(1,"a, ""b"" (c)",ok)', '(,,)' ],
	positive => [ '1.10', '999999.99' ],
	moods => [ '{sad,NULL,ok}', '{}' ],
	floatrange => [ '[0.1,0.30000000000000004)', 'empty' ],
	moodrange => [ '[sad,ok]', '(,)' ],
	'pair[]' => [ '{"(1,x,sad)",NULL}', '{}' ],
	'varchar(5)' => [ 'five5', '' ],
	'char(5)' => [ 'ab', '' ],
	'bit(5)' => [ '10101', '00000' ],
	'numeric(10,3)' => [ '1.0005', '-0.0004' ],
	'timestamptz(2)' => [ '2024-01-01 00:00:00.126+00', 'infinity' ],
	'int[]' => [ '[2:3][-1:0]={{1,2},{3,NULL}}', '{}' ]);

my (@columns, @column_values);
foreach my $type (@types, sort keys %own_values_of)
{
	my @literals = map { (my $text = $_) =~ s/'/''/g unless $own_values_of{$type}; $own_values_of{$type} ? $_ : $text }
	  @{ $own_values_of{$type} || $values_of{$type} };
	my $column = 'c' . @columns;
	push @columns, "$column $type";
	push @column_values, [ map { "'$_'::$type" } @literals ];
	next if $own_values_of{$type};
	push @columns, "${column}_array $type\[]";
	push @column_values, [ 'ARRAY[' . join(', ', map { "'$_'::$type" } @literals) . ", NULL]::$type\[]", "'{}'::$type\[]" ];
}
my $most = (sort { $b <=> $a } map { scalar(@$_) } @column_values)[0];

# Row k has the k-th value of each column; from the last on they begin again.
sub row_of_values
{
	my ($k) = @_;
	return join(', ', map { $_->[ $k % @$_ ] } @column_values);
}

# Settings that change how values look, and that must not matter.
my $odd_settings = q{
	SET DateStyle = 'German'; SET IntervalStyle = 'sql_standard'; SET TimeZone = 'Asia/Kathmandu'; SET extra_float_digits = -5;
	SET bytea_output = 'escape'; SET xmloption = 'content'; SET lc_monetary = 'C'; SET search_path = pg_temp, public;};
my $plain_settings = q{SET standard_conforming_strings = on; SET xmloption = 'content';};

$leader->sql('CREATE TABLE every_type (id int PRIMARY KEY, ' . join(', ', @columns) . ')');
$leader->sql("$plain_settings INSERT INTO every_type VALUES (-1, " . row_of_values(0) . ')');
$leader->sql("$odd_settings SELECT quorum.replicate('every_type')");
foreach my $k (0 .. $most - 1)
{
	# The literals are read under plain settings into a local table, so that the odd ones act on the way to the others alone.
	$leader->sql("$plain_settings CREATE TABLE staging AS SELECT * FROM every_type WHERE false;"
		. "INSERT INTO staging VALUES ($k, " . row_of_values($k) . ');');
	$leader->sql("$odd_settings INSERT INTO every_type SELECT * FROM public.staging; DROP TABLE public.staging");
}
$leader->sql('INSERT INTO every_type (id) VALUES (1000)');
$cluster->assert_same_digest('every_type', 'values of ' . @types . ' built-in types, arrays of them and own types are the same as text');

# The text may hide something (a session's rounding, say): the bytes of the binary form too, where a type has one.
sub binary_digest
{
	my ($node) = @_;
	my $sends = $node->sql(q{
		SELECT string_agg(format('coalesce(encode(array_send(%s), ''hex''), ''null'')',
				CASE WHEN t.typcategory = 'A' AND t.typname NOT LIKE '%vector' THEN a.attname ELSE 'ARRAY[' || a.attname || ']' END),
			' || $$,$$ || ' ORDER BY a.attnum)
		FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
			LEFT JOIN pg_type e ON e.oid = t.typelem
		WHERE a.attrelid = 'every_type'::regclass AND a.attnum > 0 AND t.typsend <> 0
			AND t.oid < 12000 AND (e.oid IS NULL OR e.typsend <> 0)});
	return $node->sql("SELECT md5(string_agg($sends, ';' ORDER BY id)) FROM every_type");
}
my %binary = map { binary_digest($_) => 1 } $cluster->nodes;
is(scalar(keys %binary), 1, 'and so are the bytes of their binary form');
is($followers[0]->sql('SELECT (SELECT r::text FROM every_type r WHERE id = -1) = (SELECT $$(-1$$ || substr(r::text, 3) FROM every_type r WHERE id = 0)'),
	't', 'a row that was there before looks like one that came later');
is($followers[0]->sql("SELECT count(*) FROM every_type WHERE c" . (grep { $columns[$_] =~ / float8$/ } 0 .. $#columns)[0]
		. " = '0.30000000000000004'::float8"), '1', 'a float has all its digits');

# ---- updates_of_every_type: each row gets the next value, by its key
foreach my $k (0 .. $most - 1)
{
	my @names = map { /^(\w+)/ } @columns;
	$leader->sql("$plain_settings UPDATE every_type SET (" . join(', ', @names) . ') = (' . row_of_values($k + 1) . ") WHERE id = $k");
}
$leader->sql('DELETE FROM every_type WHERE id = 1');
$cluster->assert_same_digest('every_type', 'after updates and a deletion too');

# ---- large_values_arrive_whole_and_stay_when_other_columns_change -------------------------------------------------
$leader->sql(q{
	CREATE TABLE large (id int PRIMARY KEY, gone int, n int, squeezed text, apart text, raw bytea, twice int GENERATED ALWAYS AS (n * 2) STORED);
	ALTER TABLE large ALTER apart SET STORAGE EXTERNAL;
	ALTER TABLE large DROP gone;
	INSERT INTO large VALUES (1, 1, repeat('a', 1000000));
	ALTER TABLE large ADD later text DEFAULT 'later';
	SELECT quorum.replicate('large');
	INSERT INTO large (id, n, squeezed, apart, raw)
		SELECT 2, 2, repeat('squeezed ', 120000), string_agg(md5(i::text), ''), decode(string_agg(md5((-i)::text), ''), 'hex')
		FROM generate_series(1, 32768) AS i;
	UPDATE large SET n = n + 1;
	UPDATE large SET later = NULL, id = id + 10;
	UPDATE large SET squeezed = squeezed || 'x' WHERE id = 12});
$cluster->assert_same_digest('large', 'values of 1 MB, in line, compressed and out of line');
is($followers[0]->sql('SELECT n, twice, length(squeezed), length(apart), length(raw) FROM large WHERE id = 12'), '3|6|1080001|1048576|524288',
	'they are whole, and stayed when other columns changed');

# ---- transactions -------------------------------------------------------------------------------------------------

# Triggers that fire before and after the extension's own in the order of their names; they exist on all nodes, as they would have to.
on_all_nodes(q{
	CREATE TABLE basket (id int PRIMARY KEY, total int NOT NULL DEFAULT 0, changes int NOT NULL DEFAULT 0);
	CREATE TABLE item (id int PRIMARY KEY, basket int NOT NULL REFERENCES basket ON UPDATE CASCADE ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
		amount int NOT NULL, place int, note text, UNIQUE (place) DEFERRABLE INITIALLY DEFERRED);
	CREATE TABLE tag (id int PRIMARY KEY, item int REFERENCES item ON DELETE SET NULL);
	CREATE FUNCTION add_up() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		UPDATE basket SET total = total - OLD.amount, changes = changes + 1 WHERE id = OLD.basket AND TG_OP <> 'INSERT';
		UPDATE basket SET total = total + NEW.amount, changes = changes + 1 WHERE id = NEW.basket AND TG_OP <> 'DELETE';
		RETURN NULL;
	END $$;
	CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		UPDATE item SET note = coalesce(note, '') || TG_NAME WHERE id = NEW.id;
		RETURN NULL;
	END $$;
	CREATE FUNCTION mend() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		IF NEW.amount = 1313 THEN
			RETURN NULL;
		END IF;
		NEW.amount = abs(NEW.amount);
		RETURN NEW;
	END $$;
	CREATE TRIGGER "AAA first" AFTER INSERT ON item FOR EACH ROW EXECUTE FUNCTION touch();
	CREATE TRIGGER "AAA sum" AFTER INSERT OR UPDATE OF amount OR DELETE ON item FOR EACH ROW EXECUTE FUNCTION add_up();
	CREATE TRIGGER "zzz last" AFTER INSERT ON item FOR EACH ROW EXECUTE FUNCTION touch();
	CREATE TRIGGER mend BEFORE INSERT OR UPDATE ON item FOR EACH ROW EXECUTE FUNCTION mend();
});
$leader->sql(qq{SELECT quorum.replicate('$_')}) foreach 'basket', 'item', 'tag';
my @tables = ('basket', 'item', 'tag');

# Runs a script on the leader, in one session, and compares all tables.
sub same_after
{
	my ($name, $script) = @_;
	$leader->sql($script);
	my $digest = $leader->digest('item') . $leader->digest('basket') . $leader->digest('tag');
	$cluster->wait_applied;
	my %digests = map { $_->name => $_->digest('item') . $_->digest('basket') . $_->digest('tag') } $cluster->nodes;
	is(scalar(grep { $_ eq $digest } values %digests), 3, "$name: the same on all nodes") or diag(explain(\%digests));
	return;
}

same_after('triggers that change the same row and others', q{
	INSERT INTO basket (id) SELECT generate_series(1, 5);
	INSERT INTO item SELECT i, 1 + i % 5, CASE WHEN i = 7 THEN 1313 ELSE -i END, i FROM generate_series(1, 30) AS i;
	UPDATE item SET amount = amount * 2 WHERE basket = 2;
	DELETE FROM item WHERE id % 6 = 0});
is($followers[1]->sql('SELECT count(*), count(*) FILTER (WHERE note = $$AAA firstzzz last$$), sum(amount) FROM item'), '24|24|'
	. $leader->sql('SELECT sum(total) FROM basket'), 'what triggers did is there once, and the sums are right');

same_after('savepoints and rollbacks to them', q{
	BEGIN;
	INSERT INTO item VALUES (101, 1, 1, 101);
	SAVEPOINT a;
	UPDATE item SET amount = 2 WHERE id = 101;
	SAVEPOINT b;
	DELETE FROM item WHERE id = 101;
	INSERT INTO item VALUES (102, 1, 5, 102);
	ROLLBACK TO b;
	RELEASE a;
	SAVEPOINT c;
	INSERT INTO item VALUES (103, 1, 1, 103);
	ROLLBACK TO c;
	INSERT INTO item VALUES (103, 2, 7, 104);
	COMMIT});
is($followers[1]->sql('SELECT string_agg(id || $$:$$ || amount, $$ $$ ORDER BY id) FROM item WHERE id > 100'), '101:2 103:7', 'with what was kept');

same_after('exception blocks in plpgsql', q{
	DO $$
	BEGIN
		FOR i IN 200 .. 230 LOOP
			BEGIN
				INSERT INTO item VALUES (i / 2 * 2, 3, i, i);
				IF i % 10 = 0 THEN
					RAISE EXCEPTION 'no';
				END IF;
			EXCEPTION WHEN unique_violation OR raise_exception THEN
				UPDATE basket SET changes = changes + 100 WHERE id = 3;
			END;
		END LOOP;
	END $$});

same_after('ON CONFLICT', q{
	INSERT INTO item VALUES (1, 4, 50, 1001) ON CONFLICT (id) DO UPDATE SET amount = excluded.amount, place = excluded.place;
	INSERT INTO item VALUES (2, 4, 50, 1002) ON CONFLICT DO NOTHING;
	INSERT INTO item SELECT i, 5, 9, 2000 + i FROM generate_series(25, 35) AS i
		ON CONFLICT (id) DO UPDATE SET amount = item.amount + 1 WHERE item.id % 2 = 0});

same_after('MERGE, UPDATE FROM, DELETE USING, changes in WITH', q{
	MERGE INTO item USING (SELECT i FROM generate_series(31, 45) AS i) AS s ON item.id = s.i
		WHEN MATCHED AND s.i % 2 = 0 THEN DELETE
		WHEN MATCHED THEN UPDATE SET amount = 1
		WHEN NOT MATCHED THEN INSERT VALUES (s.i, 1, s.i, 3000 + s.i);
	UPDATE item SET amount = item.amount + basket.id FROM basket WHERE basket.id = item.basket AND item.id < 20;
	DELETE FROM item USING basket WHERE basket.id = item.basket AND basket.id = 4;
	WITH moved AS (DELETE FROM item WHERE id IN (40, 41, 42) RETURNING *)
		INSERT INTO item SELECT id + 1000, basket, amount, place + 1000 FROM moved});

same_after('changed primary keys, in the order of the changes', q{
	INSERT INTO item SELECT i, 1, 1, NULL FROM generate_series(510, 501, -1) AS i;
	UPDATE item SET id = id + 1 WHERE id BETWEEN 501 AND 510;
	UPDATE item SET id = -id WHERE id BETWEEN 502 AND 511;
	BEGIN;
	UPDATE item SET id = 9999 WHERE id = -502;
	UPDATE item SET id = -502 WHERE id = -503;
	UPDATE item SET id = -503 WHERE id = 9999;
	COMMIT});

same_after('deferred constraints: swapped unique values, children before parents', q{
	UPDATE item SET place = CASE id WHEN 101 THEN 104 ELSE 101 END WHERE id IN (101, 103);
	BEGIN;
	INSERT INTO item VALUES (601, 60, 1, 601);
	INSERT INTO basket (id) VALUES (60);
	COMMIT});
is($leader->query('INSERT INTO item VALUES (602, 61, 1, 602)')->{sqlstate}, '23503', 'a deferred check that fails at COMMIT is the client\'s error');
is($leader->query(q{BEGIN; UPDATE item SET place = 101 WHERE id = 601; COMMIT})->{sqlstate}, '23505', 'and so is a deferred unique one');
same_after('what failed at COMMIT', 'SELECT 1');

same_after('cascades', q{
	INSERT INTO tag SELECT id, id FROM item WHERE id BETWEEN 1 AND 60;
	UPDATE basket SET id = 70 WHERE id = 60;
	DELETE FROM basket WHERE id = 2;
	DELETE FROM item WHERE id IN (11, 13)});

same_after('a cursor, row locks, isolation levels, NOTIFY and temporary tables', q{
	BEGIN;
	DECLARE c CURSOR FOR SELECT * FROM item WHERE basket = 1 FOR UPDATE;
	FETCH 2 FROM c;
	UPDATE item SET amount = 77 WHERE CURRENT OF c;
	COMMIT;
	BEGIN ISOLATION LEVEL SERIALIZABLE;
	INSERT INTO item SELECT 700, 1, count(*), 700 FROM item;
	COMMIT;
	BEGIN ISOLATION LEVEL REPEATABLE READ;
	CREATE TEMPORARY TABLE scratch ON COMMIT DROP AS SELECT 701 AS id;
	INSERT INTO item SELECT id, 1, 1, id FROM scratch;
	NOTIFY done;
	COMMIT});

same_after('a procedure that commits in between', q{
	CREATE PROCEDURE in_steps() LANGUAGE plpgsql AS $$
	BEGIN
		FOR i IN 801 .. 805 LOOP
			INSERT INTO item VALUES (i, 5, 1, i);
			IF i % 2 = 0 THEN
				ROLLBACK;
			ELSE
				COMMIT;
			END IF;
		END LOOP;
	END $$;
	CALL in_steps()});
is($followers[0]->sql('SELECT string_agg(id::text, $$ $$ ORDER BY id) FROM item WHERE id BETWEEN 801 AND 805'), '801 803 805', 'each of its transactions is one');

# ---- copy_from_is_replicated
my $lines = join('', map { "$_\t5\t1\t" . ($_ % 2 ? '\\N' : $_) . "\tcopied\n" } 10001 .. 15000);
same_after('COPY FROM', "COPY item FROM STDIN;\n$lines\\.\n");
is($followers[0]->sql(q{SELECT count(*) FROM item WHERE note LIKE 'copied%'}), '5000', 'with all its rows');

# ---- truncate_never_parts_the_nodes: it may be refused, or take place on all of them
my $truncated = $leader->query('TRUNCATE tag');
note('TRUNCATE: ' . ($truncated->{ok} ? 'done' : $truncated->{stderr}));
same_after('TRUNCATE (' . ($truncated->{sqlstate} || 'done') . ')', 'SELECT 1');

# ---- replicated_and_local_tables_commit_together -------------------------------------------------------------------
$leader->sql('CREATE TABLE local (id int PRIMARY KEY)');
$leader->sql(q{
	BEGIN; INSERT INTO local VALUES (1); INSERT INTO item VALUES (901, 5, 1, 901); COMMIT;
	BEGIN; INSERT INTO item VALUES (902, 5, 1, 902); INSERT INTO local VALUES (2); ROLLBACK;
	BEGIN; INSERT INTO item VALUES (903, 5, 1, 903); SAVEPOINT s; INSERT INTO local VALUES (3); ROLLBACK TO s; COMMIT});
same_after('a transaction over local tables too', 'SELECT 1');
my $both = q{SELECT (SELECT string_agg(id::text, ',' ORDER BY id) FROM local), (SELECT string_agg(id::text, ',' ORDER BY id) FROM item WHERE id BETWEEN 901 AND 909)};
is($leader->sql($both), '1|901,903', 'its parts stay together');

is($leader->query(q{BEGIN; INSERT INTO local VALUES (4); INSERT INTO item VALUES (904, 5, 1, 904); PREPARE TRANSACTION 'p'})->{sqlstate}, '0A000',
	'PREPARE TRANSACTION is refused');
my $too_large = $leader->query(q{
	SET quorum.max_transaction_size = '64kB'; BEGIN; INSERT INTO local VALUES (5); INSERT INTO item VALUES (905, 5, 1, 905, repeat('x', 100000)); COMMIT});
is($too_large->{sqlstate}, '54000', 'a transaction over quorum.max_transaction_size is refused') or diag($too_large->{stderr});
$_->sql('CREATE TABLE local (id int PRIMARY KEY)') foreach @followers;
$cluster->wait_applied;
$followers[0]->sql(q{BEGIN; INSERT INTO local VALUES (6); INSERT INTO item VALUES (906, 5, 1, 906); COMMIT});
is($followers[0]->sql('SELECT count(*) FROM local'), '1', 'a follower commits its local part');
$cluster->wait_applied;
same_after('and the replicated one', 'DELETE FROM item WHERE id = 906');

$_->sigstop foreach @followers;
my $alone = $leader->query(q{SET quorum.commit_timeout = '1s'; BEGIN; INSERT INTO local VALUES (7); INSERT INTO item VALUES (907, 5, 1, 907); COMMIT});
like($alone->{sqlstate}, qr/^(?:25006|08007)$/, "without a quorum COMMIT fails ($alone->{sqlstate})");
is($leader->sql("SET quorum.read_consistency = 'local'; $both"), '1|901,903', 'with the local part too');
$_->sigcont foreach @followers;

# ---- local_rows_beside_replicated_ones_survive_a_crash: COMMIT waits for the local WAL when it has to
$leader = $cluster->wait_for_leader;
$cluster->write_until_ok('INSERT INTO basket (id) VALUES (90) ON CONFLICT DO NOTHING');
$leader = $cluster->wait_for_leader;
$leader->sql(q{BEGIN; INSERT INTO local VALUES (8); INSERT INTO item VALUES (908, 5, 1, 908); COMMIT});
$leader->kill9(all => 1);
$leader->start;
is($leader->sql('SELECT count(*) FROM local WHERE id = 8'), '1', 'the local row is there after kill -9 right after COMMIT');
$cluster->wait_applied;
is($_->sql('SELECT count(*) FROM item WHERE id = 908'), '1', 'the replicated one is on ' . $_->name) foreach $cluster->nodes;
$cluster->assert_same_digest($_) foreach @tables, 'every_type', 'large';

done_testing();
