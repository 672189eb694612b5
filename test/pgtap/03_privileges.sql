-- PUBLIC may read the status views and nothing else; quorum_admin changes the cluster; quorum_peer only connects nodes.
BEGIN;
SELECT plan(12);

CREATE FUNCTION pg_temp.executable_by(role name) RETURNS SETOF text LANGUAGE sql AS $$
	SELECT proname::text FROM pg_proc
	WHERE pronamespace = 'quorum'::regnamespace AND has_function_privilege(role, oid, 'EXECUTE')
$$;
CREATE FUNCTION pg_temp.readable_by(role name) RETURNS SETOF text LANGUAGE sql AS $$
	SELECT relname::text FROM pg_class
	WHERE relnamespace = 'quorum'::regnamespace AND relkind IN ('r', 'v') AND has_table_privilege(role, oid, 'SELECT')
$$;
CREATE ROLE tap_nobody;

SELECT set_eq($$SELECT pg_temp.executable_by('tap_nobody')$$, ARRAY['node_status', 'node_members', 'node_counters', 'node_snapshot', 'node_token_memory', 'wait_for', 'last_commit_index', 'outcome'],
	'PUBLIC executes what lies beneath the status views, waits, and asks for outcomes');
SELECT set_eq($$SELECT pg_temp.readable_by('tap_nobody')$$, ARRAY['status', 'nodes', 'tables', 'stats', 'snapshot_progress', 'token_memory'],
	'PUBLIC reads the status views');
SELECT is_empty(
	$$SELECT c.relname, p.privilege FROM pg_class c, unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS p(privilege),
		unnest(ARRAY['tap_nobody', 'quorum_admin', 'quorum_peer']) AS r(role)
	  WHERE c.relnamespace = 'quorum'::regnamespace AND c.relkind IN ('r', 'v') AND has_table_privilege(r.role, c.oid, p.privilege)$$,
	'nobody writes to the tables');
SELECT schema_privs_are('quorum', 'tap_nobody', ARRAY['USAGE'], 'PUBLIC may not create anything in the schema');
SELECT set_eq($$SELECT pg_temp.executable_by('quorum_peer')$$,
	ARRAY['node_status', 'node_members', 'node_counters', 'node_snapshot', 'node_token_memory', 'wait_for', 'last_commit_index', 'outcome', 'peer_stream', 'check_replicate', 'table_shape', 'instance_id',
		  'request_removal', 'request_transfer', 'log_state', 'token_samples', 'send_tables', 'send_sums', 'send_rows', 'compare_begin', 'compare_taken', 'bucket_sums', 'bucket_rows'],
	'quorum_peer streams and checks, and passes on to the leader what an admin asked another node for');
SELECT set_eq($$SELECT pg_temp.readable_by('quorum_peer')$$, ARRAY['status', 'nodes', 'tables', 'stats', 'snapshot_progress', 'token_memory'],
	'quorum_peer reads what PUBLIC reads');
SELECT set_eq($$SELECT pg_temp.executable_by('quorum_admin')$$,
	ARRAY['node_status', 'node_members', 'node_counters', 'node_snapshot', 'node_token_memory', 'wait_for', 'last_commit_index', 'outcome', 'create_cluster', 'join_cluster', 'request_membership', 'replicate', 'unreplicate',
		  'remove_node', 'leave_cluster', 'force_new_cluster', 'transfer_leadership', 'request_removal', 'request_transfer',
		  'last_conflicts', 'log_entries', 'verify', 'diverging_keys', 'repair', 'table_shape', 'table_definition', 'instance_id'], 'quorum_admin changes the cluster');
SELECT set_eq($$SELECT pg_temp.readable_by('quorum_admin')$$,
	ARRAY['status', 'nodes', 'tables', 'stats', 'snapshot_progress', 'token_memory', 'log', 'conflicts', 'checks', 'position', 'replicated_table', 'table_check', 'check_result', 'table_health'],
	'quorum_admin reads the log');
SELECT results_eq($$SELECT proname FROM pg_proc WHERE pronamespace = 'quorum'::regnamespace AND prosecdef$$,
	ARRAY['check_replicate'::name], 'one function runs as its owner');
SELECT is_empty($$SELECT rolname FROM pg_roles WHERE rolname IN ('quorum_admin', 'quorum_peer')
	AND (rolcanlogin OR rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)$$, 'the roles have no other powers');

SET LOCAL ROLE tap_nobody;
SELECT throws_ok($$SELECT quorum.create_cluster('x', 'host=x')$$, '42501', NULL, 'create_cluster() is not for PUBLIC');
SELECT lives_ok('SELECT * FROM quorum.status, quorum.nodes, quorum.stats', 'the status views are');
RESET ROLE;

SELECT * FROM finish();
ROLLBACK;
