-- Every object of the schema quorum exists, belongs to the extension, and says what it is.
BEGIN;
SELECT plan(20);

SELECT has_extension('pg_quorum');
SELECT has_schema('quorum');
SELECT has_role('quorum_admin');
SELECT has_role('quorum_peer');

SELECT tables_are('quorum', ARRAY['position', 'replicated_table', 'table_check', 'check_result', 'table_health']);
SELECT views_are('quorum', ARRAY['status', 'nodes', 'tables', 'stats', 'conflicts', 'log', 'checks', 'snapshot_progress', 'token_memory']);
SELECT functions_are('quorum', ARRAY['capture', 'capture_truncate', 'peer_stream', 'log_state', 'send_tables', 'send_sums', 'send_rows', 'node_snapshot', 'node_token_memory', 'token_samples', 'instance_id', 'table_shape', 'table_definition',
	'check_replicate', 'create_cluster', 'join_cluster', 'remove_node', 'leave_cluster', 'force_new_cluster', 'transfer_leadership',
	'request_membership', 'request_removal', 'request_transfer', 'replicate', 'unreplicate',
	'wait_for', 'last_commit_index', 'outcome',
	'verify', 'diverging_keys', 'repair', 'compare_begin', 'compare_taken', 'bucket_sums', 'bucket_rows',
	'node_status', 'node_members', 'node_counters', 'last_conflicts', 'log_entries']);

SELECT function_returns('quorum', 'create_cluster', ARRAY['text', 'text'], 'void');
SELECT function_returns('quorum', 'join_cluster', ARRAY['text', 'text', 'text', 'boolean', 'boolean'], 'void');
SELECT function_returns('quorum', 'remove_node', ARRAY['text'], 'void');
SELECT function_returns('quorum', 'leave_cluster', ARRAY['boolean'], 'void');
SELECT function_returns('quorum', 'transfer_leadership', ARRAY['text'], 'void');
SELECT function_returns('quorum', 'replicate', ARRAY['regclass'], 'void');
SELECT function_returns('quorum', 'unreplicate', ARRAY['regclass'], 'void');
SELECT is_procedure('quorum', 'peer_stream', ARRAY['integer', 'text', 'integer', 'text', 'integer', 'text', 'text', 'text'],
	'peer_stream() is a procedure, so that its CALL can leave the transaction');

-- ---- comments
SELECT is_empty(
	$$SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = 'quorum'::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL$$,
	'every function has a comment');
SELECT is_empty(
	$$SELECT c.oid::regclass FROM pg_class c
	  WHERE c.relnamespace = 'quorum'::regnamespace AND c.relkind IN ('r', 'v') AND obj_description(c.oid, 'pg_class') IS NULL$$,
	'every table and view has a comment');
SELECT is_empty(
	$$SELECT c.oid::regclass, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
	  WHERE c.relnamespace = 'quorum'::regnamespace AND c.relkind IN ('r', 'v') AND a.attnum > 0 AND NOT a.attisdropped
		AND col_description(c.oid, a.attnum) IS NULL$$,
	'every column has a comment');
SELECT is_empty(
	$$SELECT name FROM pg_settings WHERE name LIKE 'quorum.%' AND coalesce(short_desc, '') = ''$$,
	'every setting has a description');

-- ---- nothing is left behind by DROP EXTENSION but the roles
SELECT is_empty(
	$$SELECT 'pg_class'::regclass, c.oid FROM pg_class c WHERE c.relnamespace = 'quorum'::regnamespace AND c.relkind IN ('r', 'v')
		AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
	  UNION ALL
	  SELECT 'pg_proc'::regclass, p.oid FROM pg_proc p WHERE p.pronamespace = 'quorum'::regnamespace
		AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
	  UNION ALL
	  SELECT 'pg_namespace'::regclass, n.oid FROM pg_namespace n WHERE n.nspname = 'quorum'
		AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_namespace'::regclass AND d.objid = n.oid AND d.deptype = 'e')$$,
	'everything belongs to the extension, the schema too');

SELECT * FROM finish();
ROLLBACK;
