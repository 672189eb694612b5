-- The SQLSTATE of each refusal: what programs rely on.
BEGIN;
SELECT plan(25);

CREATE FUNCTION pg_temp.own_conninfo() RETURNS text LANGUAGE sql AS 'SELECT conninfo FROM quorum.nodes';
CREATE TABLE pg_temp.has_key (id int PRIMARY KEY);

-- ---- names and conninfos
SELECT throws_ok($$SELECT quorum.create_cluster('No Such Name!', 'host=x')$$, '42602', NULL, 'an invalid name');
SELECT throws_ok($$SELECT quorum.create_cluster('n9', 'no conninfo')$$, '22023', NULL, 'a conninfo that libpq does not understand');
SELECT throws_ok($$SELECT quorum.create_cluster('n9', 'host=x password=secret')$$, '22023', NULL, 'a conninfo with a password');
SELECT throws_ok($$SELECT quorum.create_cluster('n9', 'dbname=x')$$, '22023', NULL, 'a conninfo without a host');

-- ---- a node that is a member already
SELECT throws_ok($$SELECT quorum.create_cluster('n9', pg_temp.own_conninfo())$$, '55000',
	'this node is already a member of a cluster', 'create_cluster() twice');
SELECT throws_ok($$SELECT quorum.join_cluster('n9', pg_temp.own_conninfo(), pg_temp.own_conninfo())$$, '55000',
	'this node is already a member of a cluster', 'joining after that');

-- ---- what no rollback undoes
SELECT throws_ok('SELECT quorum.force_new_cluster(true)', '25001', NULL, 'forcing a new cluster within a transaction');

-- ---- requests to the leader
SELECT throws_ok($$SELECT * FROM quorum.request_membership('n1', 'host=127.0.0.1 port=1', 'x')$$, '42710',
	'the cluster already has a node named "n1"', 'a name that is taken');
SELECT throws_ok($$SELECT * FROM quorum.request_membership('n9', 'host=127.0.0.1 port=1', 'x')$$, '08001', NULL,
	'a conninfo that answers nothing');
SELECT throws_ok($$SELECT * FROM quorum.request_membership('n9', replace(pg_temp.own_conninfo(), 'dbname=postgres', 'dbname=template1'), 'x')$$,
	'42704', NULL, 'a database without the extension');
SELECT throws_ok($$SELECT * FROM quorum.request_membership('n9', pg_temp.own_conninfo() || ' connect_timeout=9', 'x')$$, '22023',
	'the conninfo leads to another server', 'a conninfo that leads elsewhere');
SELECT is((SELECT count(*) FROM quorum.nodes), 1::bigint, 'none of them was taken in');

-- ---- members and the leadership
SELECT throws_ok($$SELECT quorum.remove_node('n1')$$, '55000', 'node "n1" is the last voter of the cluster', 'removing the last voter');
SELECT throws_ok($$SELECT quorum.transfer_leadership('n9')$$, '42704', 'the cluster has no node named "n9"', 'handing over to nobody');
SELECT throws_ok($$SELECT quorum.transfer_leadership()$$, '55000', NULL, 'handing over with nobody else there');
SELECT throws_ok($$SELECT quorum.leave_cluster()$$, '25001', NULL, 'leaving in a transaction block');

-- ---- tables
CREATE TABLE no_key (id int);
CREATE VIEW some_view AS SELECT 1 AS id;
SELECT throws_ok($$SELECT quorum.replicate('nowhere')$$, '42P01', NULL, 'a table that does not exist');
SELECT throws_ok($$SELECT quorum.replicate('some_view')$$, '42809', NULL, 'a view');
SELECT throws_ok($$SELECT quorum.replicate('pg_class')$$, '42809', NULL, 'a system table');
SELECT throws_ok($$SELECT quorum.replicate('quorum.position')$$, '42809', NULL, 'a table of an extension');
SELECT throws_ok($$SELECT quorum.replicate('has_key')$$, '0A000', NULL, 'a temporary table');
SELECT throws_ok($$SELECT quorum.replicate('no_key')$$, '55000', NULL, 'a table of the same transaction');
SELECT throws_ok($$SELECT quorum.unreplicate('no_key')$$, '55000', NULL, 'unreplicating what is not replicated');
SELECT ok(quorum.replicate(NULL) IS NULL, 'NULL is not a table');
SELECT is((SELECT count(*) FROM quorum.tables), 0::bigint, 'no table was replicated');

SELECT * FROM finish();
ROLLBACK;
