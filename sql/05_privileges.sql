-- Who may do what.

CREATE ROLE regress_nobody;
CREATE ROLE regress_operator IN ROLE quorum_admin;
CREATE ROLE regress_link IN ROLE quorum_peer;
CREATE TABLE owned (id int PRIMARY KEY);
ALTER TABLE owned OWNER TO regress_nobody;

-- public_reads_the_status_views_and_nothing_else
SET ROLE regress_nobody;
SELECT node_name, role FROM quorum.status;
SELECT node_name FROM quorum.nodes;
SELECT count(*) > 0 AS some FROM quorum.tables;
SELECT count(*) FROM quorum.stats;
SELECT count(*) FROM quorum.log;
SELECT count(*) FROM quorum.log_entries(1, 2);
SELECT count(*) FROM quorum.position;
UPDATE quorum.position SET applied_index = 0;
DELETE FROM quorum.replicated_table;
SELECT quorum.create_cluster('n1', 'host=x');
SELECT quorum.join_cluster('n1', 'host=x', 'host=x');
SELECT * FROM quorum.request_membership('n1', 'host=x', 'x');
SELECT quorum.replicate('owned');
SELECT quorum.unreplicate('owned');
SELECT quorum.check_replicate('public', 'x', 'x', 'CREATE ROLE x SUPERUSER');
SELECT quorum.table_definition('account');
SELECT quorum.instance_id();
CALL quorum.peer_stream(1, '1', 1, 'n1', 1, '1');
CREATE TRIGGER mine AFTER INSERT ON owned FOR EACH ROW EXECUTE FUNCTION quorum.capture();
RESET ROLE;

-- a_peer_streams_and_checks_and_changes_nothing
SET ROLE regress_link;
SELECT quorum.check_replicate('public', 'x', 'x', 'CREATE TABLE public.x ()');
SELECT quorum.replicate('owned');
SELECT count(*) FROM quorum.log;
RESET ROLE;

-- an_admin_changes_the_cluster_but_writes_no_internals
SET ROLE regress_operator;
SELECT count(*) > 0 AS some FROM quorum.log;
UPDATE quorum.position SET applied_index = 0;
SELECT quorum.check_replicate('public', 'x', 'x', 'CREATE ROLE x SUPERUSER');
SELECT quorum.replicate('owned');
SELECT table_name, state FROM quorum.tables WHERE table_name = 'owned';
SELECT quorum.unreplicate('owned');
RESET ROLE;

-- an_owner_who_was_granted_the_function_replicates_only_what_is_his
GRANT EXECUTE ON FUNCTION quorum.replicate(regclass) TO regress_nobody;
SET ROLE regress_nobody;
SELECT quorum.replicate('account');
SELECT quorum.replicate('ordinary');
SELECT quorum.replicate('owned');
INSERT INTO owned VALUES (1);
RESET ROLE;
SELECT quorum.unreplicate('owned');

-- the_owner's_search_path_and_operators_are_not_used
CREATE SCHEMA hostile AUTHORIZATION regress_nobody;
SET ROLE regress_nobody;
CREATE FUNCTION hostile.claim(regclass, regclass) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'run as %', current_user; END $$;
CREATE OPERATOR hostile.= (LEFTARG = regclass, RIGHTARG = regclass, FUNCTION = hostile.claim);
SET search_path = hostile, pg_catalog, public;
SELECT quorum.replicate('owned');
RESET search_path;
RESET ROLE;
SELECT quorum.unreplicate('owned');
DROP SCHEMA hostile CASCADE;

-- the_functions_that_an_owner's_table_calls_are_not_run_as_a_superuser
SET client_min_messages = warning;
CREATE SCHEMA hostile AUTHORIZATION regress_nobody;
SET ROLE regress_nobody;
CREATE FUNCTION hostile.one(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
	IF current_user <> 'regress_nobody' THEN RAISE EXCEPTION 'run as %', current_user; END IF;
	RETURN 1;
END $$;
CREATE TABLE hostile.called (
	id int PRIMARY KEY DEFAULT hostile.one(1),
	made int GENERATED ALWAYS AS (hostile.one(id)) STORED,
	CHECK (hostile.one(1) = 1),
	CHECK (id > hostile.one(1)) NOT VALID);
CREATE UNIQUE INDEX ON hostile.called (id) WHERE hostile.one(1) = 1;
CREATE INDEX ON hostile.called ((id + hostile.one(1)));
RESET ROLE;
SELECT quorum.table_shape('hostile.called') AS shape, replace(quorum.table_definition('hostile.called'), 'called_check', 'named_otherwise') AS definition \gset
SELECT quorum.check_replicate('hostile', 'called', :'shape', :'definition') IS NULL AS it_can_be_compared;
SELECT quorum.check_replicate('hostile', 'called', :'shape', replace(:'definition', 'CHECK ((hostile.one(1) = 1))', 'CHECK ((id > 0))'));
DROP TABLE hostile.called;
SELECT quorum.check_replicate('hostile', 'called', :'shape', :'definition') IS NULL AS it_can_be_made;
SET ROLE regress_nobody;
CREATE TABLE hostile.folded (id int PRIMARY KEY, made int GENERATED ALWAYS AS (hostile.one(1)) STORED);
RESET ROLE;
SELECT quorum.table_shape('hostile.folded') AS shape, replace(quorum.table_definition('hostile.folded'), 'hostile.one(1)', '1') AS definition \gset
SELECT quorum.check_replicate('hostile', 'folded', :'shape', :'definition');
SELECT quorum.table_definition('hostile.folded') AS definition \gset
DROP TABLE hostile.folded;
SELECT quorum.check_replicate('hostile', 'folded', :'shape', :'definition');
DROP SCHEMA hostile CASCADE;
RESET client_min_messages;

REVOKE EXECUTE ON FUNCTION quorum.replicate(regclass) FROM regress_nobody;
DROP TABLE owned;
DROP ROLE regress_nobody, regress_operator, regress_link;
