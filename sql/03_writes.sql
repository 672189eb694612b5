-- Transactions over replicated tables, as one node sees them.

SELECT chosen_index AS before FROM quorum.status \gset

-- each_statement_is_an_entry
INSERT INTO account (id, owner, balance) VALUES (100001, 'Ada', 100);
UPDATE account SET balance = balance + 1 WHERE id = 100001;
DELETE FROM account WHERE id = 100001;
SELECT kind, verdict, origin_node, bytes > 0 AS has_bytes FROM quorum.log_entries(:before + 1) WHERE kind = 'transaction';
SELECT applied_index = chosen_index AS all_applied FROM quorum.status;

-- a_transaction_is_one_entry
SELECT chosen_index AS before FROM quorum.status \gset
BEGIN;
INSERT INTO account (id, owner) VALUES (100002, 'Grace'), (100003, 'Edsger');
UPDATE account SET owner = 'Grace H.' WHERE id = 100002;
UPDATE account SET id = 100004 WHERE id = 100003;
COMMIT;
SELECT count(*) FROM quorum.log_entries(:before + 1) WHERE kind = 'transaction';
SELECT * FROM account WHERE id > 100000 ORDER BY id;

-- a_rolled_back_one_is_none
SELECT chosen_index AS before FROM quorum.status \gset
BEGIN;
DELETE FROM account WHERE id > 100000;
ROLLBACK;
SELECT count(*) FROM quorum.log_entries(:before + 1) WHERE kind = 'transaction';
SELECT count(*) FROM account WHERE id > 100000;

-- savepoints_take_their_part_back
BEGIN;
INSERT INTO account (id, owner) VALUES (100005, 'kept');
SAVEPOINT a;
INSERT INTO account (id, owner) VALUES (100006, 'not kept');
SAVEPOINT b;
INSERT INTO account (id, owner) VALUES (100007, 'not kept either');
RELEASE b;
ROLLBACK TO a;
INSERT INTO account (id, owner) VALUES (100008, 'kept');
COMMIT;
DO $$
BEGIN
	BEGIN
		INSERT INTO account (id, owner) VALUES (100009, 'not kept');
		INSERT INTO account (id, owner) VALUES (100005, 'duplicate');
	EXCEPTION WHEN unique_violation THEN
		INSERT INTO account (id, owner) VALUES (100010, 'kept');
	END;
END $$;
SELECT id, owner FROM account WHERE id > 100004 ORDER BY id;

-- a_transaction_that_takes_everything_back_needs_no_quorum
SELECT chosen_index AS before FROM quorum.status \gset
BEGIN;
SAVEPOINT a;
DELETE FROM account WHERE id > 100000;
ROLLBACK TO a;
COMMIT;
SELECT count(*) FROM quorum.log_entries(:before + 1) WHERE kind = 'transaction';

-- replicated_and_local_tables_in_one_transaction
CREATE TABLE journal_of_mine (note text);
BEGIN;
INSERT INTO account (id, owner) VALUES (100011, 'with a note');
INSERT INTO journal_of_mine VALUES ('a note');
COMMIT;
BEGIN;
INSERT INTO journal_of_mine VALUES ('no note');
INSERT INTO account (id, owner) VALUES (100012, 'without');
ROLLBACK;
SELECT note, owner FROM journal_of_mine, account WHERE id > 100010;

-- constraints_hold_before_anything_is_proposed
SELECT chosen_index AS before FROM quorum.status \gset
INSERT INTO account (id, owner) VALUES (1, 'twice');
INSERT INTO account (id, owner) VALUES (200000, NULL);
UPDATE account SET balance = -1 WHERE id = 1;
DELETE FROM city;
SELECT count(*) FROM quorum.log_entries(:before + 1) WHERE kind = 'transaction';

-- cascades_are_captured
CREATE TABLE owner_of (id int PRIMARY KEY);
CREATE TABLE pet (id int PRIMARY KEY, owner_id int REFERENCES owner_of ON DELETE CASCADE);
SELECT quorum.replicate('owner_of');
SELECT quorum.replicate('pet');
INSERT INTO owner_of VALUES (1), (2);
INSERT INTO pet VALUES (1, 1), (2, 2);
DELETE FROM owner_of WHERE id = 1;
SELECT * FROM pet;

-- copy_and_upsert_and_merge
COPY owner_of FROM stdin;
10
11
\.
INSERT INTO owner_of VALUES (10), (12) ON CONFLICT DO NOTHING;
INSERT INTO account (id, owner) VALUES (100002, 'upserted') ON CONFLICT (id) DO UPDATE SET owner = excluded.owner;
MERGE INTO owner_of AS o USING (VALUES (12), (13)) AS v(id) ON o.id = v.id
	WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (v.id);
SELECT * FROM owner_of ORDER BY id;
SELECT owner FROM account WHERE id = 100002;

-- truncate_is_a_part_of_its_transaction
CREATE TABLE note (id int PRIMARY KEY);
SELECT quorum.replicate('note');
BEGIN;
INSERT INTO note VALUES (100);
TRUNCATE note;
INSERT INTO note VALUES (101);
SAVEPOINT s;
INSERT INTO note VALUES (102);
TRUNCATE note;
ROLLBACK TO s;
INSERT INTO note VALUES (103);
COMMIT;
SELECT * FROM note ORDER BY id;
BEGIN;
INSERT INTO note VALUES (104);
SAVEPOINT s;
TRUNCATE note;
INSERT INTO note VALUES (105);
RELEASE s;
INSERT INTO note VALUES (106);
COMMIT;
SELECT * FROM note ORDER BY id;
BEGIN;
TRUNCATE city, street;
ROLLBACK;
TRUNCATE city;

-- what_became_of_a_transaction
BEGIN;
SET LOCAL quorum.token = 'order 17';
INSERT INTO note VALUES (17);
COMMIT;
SELECT outcome, log_index = quorum.last_commit_index() AS at_its_index FROM quorum.outcome('order 17');
BEGIN;
SET LOCAL quorum.token = 'order 17';
INSERT INTO note VALUES (18);
\set VERBOSITY terse
COMMIT;
\set VERBOSITY default
SELECT * FROM note WHERE id IN (17, 18);
SELECT * FROM quorum.outcome('order 18');
BEGIN;
SET LOCAL quorum.token = 'order 18';
INSERT INTO note VALUES (18);
\set VERBOSITY terse
COMMIT;
\set VERBOSITY default
SELECT * FROM note WHERE id = 18;
SELECT * FROM quorum.outcome('1.1.4000000000.0123456789abcdef');
SELECT * FROM quorum.outcome('');
SET quorum.token = '1.2.3.0123456789abcdef';
SELECT set_config('quorum.token', repeat('x', 129), false);

-- refused_with_a_hint
BEGIN;
DELETE FROM account WHERE id = 100002;
PREPARE TRANSACTION 'never';
ROLLBACK PREPARED 'never';
SELECT count(*) FROM account WHERE id = 100002;
SET quorum.max_transaction_size = '64kB';
INSERT INTO account (id, owner) VALUES (100020, repeat('much ', 20000));
RESET quorum.max_transaction_size;
SELECT count(*) FROM account WHERE id = 100020;

-- every_kind_of_value
CREATE TYPE mood AS ENUM ('low', 'high');
CREATE DOMAIN small AS int CHECK (VALUE < 10);
CREATE TYPE pair AS (a int, b text);
CREATE TABLE value (id int PRIMARY KEY, b bool, i2 int2, i8 int8, f4 float4, f8 float8, n numeric, t text, v varchar(5), c char(3), bin bytea,
	d date, tm time, tmz timetz, ts timestamp, tsz timestamptz, iv interval, u uuid, j json, jb jsonb, x xml, ip inet, net cidr, mac macaddr,
	bits bit(3), vb varbit, pt point, bx box, r int4range, mr int4multirange, tsv tsvector, tsq tsquery, ar int[], tar text[][], m mood, marr mood[], s small, p pair,
	rc regclass, o oid, g int GENERATED ALWAYS AS (id * 2) STORED);
SELECT quorum.replicate('value');
INSERT INTO value (id) VALUES (1);
INSERT INTO value VALUES (2, true, -2, 9223372036854775807, 'NaN', '-Infinity', 'NaN', E'back\\slash\n''quote''', 'v', 'c', '\x00ff',
	'infinity', '24:00', '12:00+02', '-infinity', '2024-02-29 12:00+00', '1 year -2 days', '00000000-0000-0000-0000-000000000001', '{"a": 1}', '{"b": [null]}',
	'<a/>', '::1/64', '10.0.0.0/8', '08:00:2b:01:02:03', '101', '1', '(1,2)', '((0,0),(1,1))', '[1,5)', '{[1,2),[3,4)}', 'a b:1', 'a & b', '{1,NULL,3}', '{{a,b},{c,NULL}}',
	'high', '{low,NULL}', 9, '(1,x)', 'account', 42);
UPDATE value SET t = repeat('long', 5000), jb = NULL WHERE id = 2;
SELECT id, length(t), jb, m, p, rc, g FROM value ORDER BY id;
SELECT applied_index = chosen_index AS all_applied, last_error FROM quorum.status;
SELECT transactions_committed > 0 AS committed, transactions_rejected, transactions_abandoned, average_commit_wait > '0' AS waited FROM quorum.stats;
