-- Which tables can be replicated, and what replicate() does with one that can.

-- refused_by_their_kind
CREATE TABLE no_key (id int);
SELECT quorum.replicate('no_key');
CREATE TABLE late_key (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED);
SELECT quorum.replicate('late_key');
CREATE TABLE excluding (id int PRIMARY KEY, during int4range, EXCLUDE USING gist (during WITH &&));
SELECT quorum.replicate('excluding');
CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100);
SELECT quorum.replicate('parted');
SELECT quorum.replicate('parted_1');
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
SELECT quorum.replicate('parent');
SELECT quorum.replicate('child');
CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
SELECT quorum.replicate('unlogged');
CREATE TEMP TABLE temporary (id int PRIMARY KEY);
SELECT quorum.replicate('temporary');
CREATE VIEW some_view AS SELECT 1 AS id;
SELECT quorum.replicate('some_view');
CREATE MATERIALIZED VIEW some_matview AS SELECT 1 AS id;
SELECT quorum.replicate('some_matview');
CREATE SEQUENCE some_sequence;
SELECT quorum.replicate('some_sequence');
SELECT quorum.replicate('parent_pkey');
SELECT quorum.replicate('pg_class');
SELECT quorum.replicate('quorum.position');
CREATE TABLE ruled (id int PRIMARY KEY);
CREATE RULE nothing AS ON DELETE TO ruled DO INSTEAD NOTHING;
SELECT quorum.replicate('ruled');
CREATE FUNCTION do_nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TABLE always_triggered (id int PRIMARY KEY);
CREATE TRIGGER always BEFORE INSERT ON always_triggered FOR EACH ROW EXECUTE FUNCTION do_nothing();
ALTER TABLE always_triggered ENABLE ALWAYS TRIGGER always;
SELECT quorum.replicate('always_triggered');
SELECT quorum.replicate('nowhere');
SELECT quorum.replicate(1);
SELECT count(*) FROM quorum.tables;
DROP TABLE no_key, late_key, excluding, parted, parent, child, unlogged, temporary, ruled, always_triggered;
DROP VIEW some_view;
DROP MATERIALIZED VIEW some_matview;
DROP SEQUENCE some_sequence;

-- a_table_with_rows_is_replicated_with_them
CREATE TABLE account (id int PRIMARY KEY, owner text NOT NULL, balance numeric DEFAULT 0 CHECK (balance >= 0));
INSERT INTO account SELECT i, 'owner ' || i, i FROM generate_series(1, 25000) AS i;
ANALYZE account;
SELECT quorum.replicate('account');
SELECT schema_name, table_name, state, row_count, estimated_rows, origin_node, table_id >> 32 AS node_part FROM quorum.tables;
SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = 'account'::regclass AND NOT tgisinternal ORDER BY tgname;
SELECT quorum.replicate('account');

-- an_empty_table_too
CREATE SCHEMA "Odd Schema";
CREATE TABLE "Odd Schema"."Odd ""Table""" (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, label text UNIQUE);
SELECT quorum.replicate('"Odd Schema"."Odd ""Table"""');
INSERT INTO "Odd Schema"."Odd ""Table""" (label) VALUES ('one'), ('two');
SELECT schema_name, table_name, state, row_count FROM quorum.tables ORDER BY table_name COLLATE "C";

-- foreign_keys_need_their_table_replicated
CREATE TABLE city (id int PRIMARY KEY);
CREATE TABLE street (id int PRIMARY KEY, city int REFERENCES city, part_of int REFERENCES street);
SELECT quorum.replicate('street');
SELECT quorum.replicate('city');
SELECT quorum.replicate('street');
INSERT INTO city VALUES (1);
INSERT INTO street VALUES (1, 1, NULL), (2, 1, 1);
INSERT INTO street VALUES (3, 2, NULL);
SELECT quorum.unreplicate('city');
SELECT * FROM street ORDER BY id;

-- rolled_back_it_is_no_more_than_begun_and_can_be_replicated_again
CREATE TABLE twice (id int PRIMARY KEY);
INSERT INTO twice VALUES (1);
BEGIN;
SELECT quorum.replicate('twice');
ROLLBACK;
SELECT table_name, state FROM quorum.tables WHERE table_name = 'twice';
\set VERBOSITY sqlstate
\set SHOW_CONTEXT never
INSERT INTO twice VALUES (2) RETURNING 'refused, as the copy may still be completed' AS result;
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY default
SELECT quorum.replicate('twice');
SELECT table_name, state, row_count FROM quorum.tables WHERE table_name = 'twice';

-- a_table_made_in_the_same_transaction_is_refused
BEGIN;
CREATE TABLE fresh (id int PRIMARY KEY);
SELECT quorum.replicate('fresh');
ROLLBACK;

-- rows_of_the_same_transaction_go_along
CREATE TABLE fresh (id int PRIMARY KEY);
BEGIN;
INSERT INTO fresh VALUES (1);
SELECT quorum.replicate('fresh');
INSERT INTO fresh VALUES (2);
COMMIT;
SELECT table_name, state, row_count FROM quorum.tables WHERE table_name = 'fresh';
SELECT * FROM fresh ORDER BY id;

-- what_another_node_would_be_asked
CREATE TABLE incoming (id int PRIMARY KEY, label text);
SELECT quorum.table_shape('incoming') AS shape, quorum.table_definition('incoming') AS definition \gset
\echo :shape
\echo :definition
SELECT quorum.check_replicate('public', 'incoming', :'shape', :'definition') IS NULL AS an_empty_one_of_that_shape_is_taken;
INSERT INTO incoming VALUES (1);
SELECT quorum.check_replicate('public', 'incoming', :'shape', :'definition');
ALTER TABLE incoming ALTER label TYPE varchar(10);
SELECT quorum.check_replicate('public', 'incoming', :'shape', :'definition');
ALTER TABLE incoming DROP label;
SELECT quorum.check_replicate('public', 'incoming', :'shape', :'definition');
DROP TABLE incoming;
SELECT quorum.check_replicate('public', 'incoming', :'shape', :'definition') IS NULL AS none_is_taken;
SELECT quorum.check_replicate('public', 'incoming', :'shape', replace(:'definition', 'label text', 'label no_such_type'));
SELECT quorum.check_replicate('public', 'incoming', :'shape', replace(:'definition', 'label text', 'label int'));
SELECT quorum.check_replicate('public', 'account', quorum.table_shape('account'), '');
SELECT quorum.check_replicate('public', 'incoming', NULL, '');
SELECT to_regclass('incoming') IS NULL AS nothing_was_left;

-- a_table_that_would_accept_other_writes_is_not_taken
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE strict (
	id int PRIMARY KEY,
	kind varchar(10) CHECK (kind IN ('a', 'b')),
	parent_id int REFERENCES parent ON DELETE CASCADE,
	strict_id int REFERENCES strict,
	doubled int GENERATED ALWAYS AS (id * 2) STORED);
SELECT quorum.table_shape('strict') AS shape, quorum.table_definition('strict') AS definition \gset
CREATE FUNCTION pg_temp.refusal(shape text, definition text) RETURNS text LANGUAGE sql AS $$ SELECT quorum.check_replicate('public', 'strict', shape, definition) $$;
SELECT pg_temp.refusal(:'shape', :'definition') IS NULL AS the_same_is_taken;
ALTER TABLE strict RENAME CONSTRAINT strict_kind_check TO named_otherwise;
ALTER TABLE strict DROP CONSTRAINT strict_parent_id_fkey, ADD FOREIGN KEY (parent_id) REFERENCES parent ON DELETE CASCADE NOT VALID;
SELECT pg_temp.refusal(:'shape', :'definition') IS NULL AS names_and_older_rows_do_not_count;
ALTER TABLE strict DROP CONSTRAINT named_otherwise;
SELECT pg_temp.refusal(:'shape', :'definition');
ALTER TABLE strict ADD CHECK (kind IN ('a', 'b', 'c'));
SELECT pg_temp.refusal(:'shape', :'definition');
ALTER TABLE strict DROP CONSTRAINT strict_kind_check, ADD CHECK (kind::text = ANY (ARRAY['a'::varchar::text, 'b'::varchar::text]));
SELECT pg_temp.refusal(:'shape', :'definition') IS NULL AS as_a_dump_writes_it_is_taken;
ALTER TABLE strict DROP CONSTRAINT strict_parent_id_fkey, ADD FOREIGN KEY (parent_id) REFERENCES parent;
SELECT pg_temp.refusal(:'shape', :'definition');
ALTER TABLE strict DROP CONSTRAINT strict_parent_id_fkey;
SELECT pg_temp.refusal(:'shape', :'definition');
ALTER TABLE strict ADD FOREIGN KEY (parent_id) REFERENCES parent ON DELETE CASCADE;
ALTER TABLE strict DROP doubled, ADD doubled int GENERATED ALWAYS AS (id * 3) STORED;
SELECT pg_temp.refusal(:'shape', :'definition');
ALTER TABLE strict DROP doubled, ADD doubled int GENERATED ALWAYS AS (id * 2) STORED;
SELECT pg_temp.refusal(:'shape', :'definition') IS NULL AS the_same_again_is_taken;
SELECT pg_temp.refusal(:'shape', replace(:'definition', 'REFERENCES public.parent', 'REFERENCES public.nothing'));
SELECT to_regclass('quorum_shape_of_existing_table.strict') IS NULL AND to_regclass('public.strict') IS NOT NULL AS nothing_was_moved;
DROP TABLE strict, parent;

-- a_unique_index_whose_predicate_postgres_writes_in_two_ways
CREATE TABLE strict (id int PRIMARY KEY, kind varchar(10));
CREATE UNIQUE INDEX ON strict (kind) WHERE kind IN ('a', 'b');
SELECT quorum.table_shape('strict') AS shape, quorum.table_definition('strict') AS definition \gset
SELECT pg_temp.refusal(:'shape', :'definition') IS NULL AS the_same_is_taken;
DROP TABLE strict;
SELECT pg_temp.refusal(:'shape', :'definition') IS NULL AS it_can_be_made;
CREATE TABLE strict (id int PRIMARY KEY, kind varchar(10));
CREATE UNIQUE INDEX ON strict (kind) WHERE kind::text = ANY (ARRAY['a'::varchar::text, 'b'::varchar::text]);
SELECT pg_temp.refusal(:'shape', :'definition') IS NULL AS as_a_dump_writes_it_is_taken;
DROP INDEX strict_kind_idx;
SELECT pg_temp.refusal(:'shape', :'definition');
CREATE UNIQUE INDEX ON strict (kind);
SELECT pg_temp.refusal(:'shape', :'definition');
DROP INDEX strict_kind_idx;
CREATE UNIQUE INDEX ON strict (kind) WHERE kind IN ('a', 'c');
SELECT pg_temp.refusal(:'shape', :'definition');
DROP TABLE strict;
