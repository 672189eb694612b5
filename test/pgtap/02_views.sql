-- The columns of the views, with their types and order: what scripts of users rely on.
BEGIN;
SELECT plan(27);

CREATE FUNCTION pg_temp.shape_of(view regclass) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum)
	FROM pg_attribute WHERE attrelid = view AND attnum > 0 AND NOT attisdropped
$$;

SELECT is(pg_temp.shape_of('quorum.status'),
	'node_name text, role text, leader_name text, ballot text, has_quorum boolean, voters integer, voters_reachable integer, '
	'quorum_size integer, chosen_index bigint, applied_index bigint, last_error text', 'quorum.status');
SELECT is(pg_temp.shape_of('quorum.nodes'),
	'node_name text, conninfo text, is_voter boolean, as_voter boolean, is_leader boolean, reachable boolean, accepted_index bigint, '
	'applied_index bigint, lag_entries bigint, last_contact timestamp with time zone, round_trip interval', 'quorum.nodes');
SELECT is(pg_temp.shape_of('quorum.tables'),
	'schema_name name, table_name name, state text, row_count bigint, estimated_rows bigint, origin_node text, '
	'activated_index bigint, table_id bigint', 'quorum.tables');
SELECT is(pg_temp.shape_of('quorum.stats'),
	'transactions_committed bigint, transactions_rejected bigint, transactions_refused bigint, transactions_abandoned bigint, '
	'average_commit_wait interval, bytes_proposed bigint, entries_applied bigint, rows_applied bigint, apply_transactions bigint, '
	'blockers_aborted bigint, linearizable_reads bigint, read_rounds bigint, elections_started bigint, ballots_won bigint, journal_bytes bigint, journal_syncs bigint, '
	'frames_sent bigint, frames_received bigint, first_held_index bigint, log_state_index bigint', 'quorum.stats');
SELECT is(pg_temp.shape_of('quorum.token_memory'),
	'capacity bigint, remembered bigint, forgotten_up_to_index bigint, oldest_age interval, has_room boolean, forgotten_early bigint', 'quorum.token_memory');
SELECT is(pg_temp.shape_of('quorum.log'),
	'log_index bigint, origin_node text, incarnation bigint, sequence bigint, kind text, verdict text, bytes bigint, '
	'conflict_index bigint', 'quorum.log');
SELECT is(pg_temp.shape_of('quorum.snapshot_progress'),
	'phase text, donor_name text, snapshot_index bigint, schema_name text, table_name text, tables_done integer, tables_total integer, '
	'rows_copied bigint, rows_kept bigint, rows_deleted bigint, bytes_received bigint, bytes_estimated bigint, failed_attempts integer, started_at timestamp with time zone, '
	'phase_since timestamp with time zone', 'quorum.snapshot_progress');
SELECT is(pg_temp.shape_of('quorum.position'), 'one boolean, applied_index bigint', 'quorum.position');
SELECT is(pg_temp.shape_of('quorum.replicated_table'),
	'table_id bigint, relation regclass, schema_name name, table_name name, state "char", origin_node integer, '
	'activated_index bigint, row_count bigint', 'quorum.replicated_table');
SELECT is(pg_temp.shape_of('quorum.checks'),
	'check_index bigint, schema_name name, table_name name, started_at timestamp with time zone, node_name text, outcome text, '
	'row_count bigint, checksum text', 'quorum.checks');
SELECT is(pg_temp.shape_of('quorum.table_check'),
	'check_index bigint, table_id bigint, node_id integer, started_at timestamp with time zone', 'quorum.table_check');
SELECT is(pg_temp.shape_of('quorum.check_result'),
	'check_index bigint, node_id integer, outcome "char", row_count bigint, checksum text', 'quorum.check_result');
SELECT is(pg_temp.shape_of('quorum.table_health'),
	'table_id bigint, verified_index bigint, reason text, quarantined_index bigint, quarantined_at timestamp with time zone', 'quorum.table_health');
-- as shared/replicated_tables.c reads it
SELECT is((SELECT attnum FROM pg_attribute WHERE attrelid = 'quorum.table_health'::regclass AND attname = 'quarantined_index'), 4::smallint,
	'the cache of replicated tables finds the quarantine in its place');

-- ---- what they show of a cluster of one node
SELECT results_eq(
	'SELECT node_name, role, leader_name, has_quorum, voters, voters_reachable, quorum_size, last_error FROM quorum.status',
	$$VALUES ('n1', 'leader', 'n1', true, 1, 1, 1, NULL)$$, 'the only node leads');
SELECT is((SELECT count(*) FROM quorum.status), 1::bigint, 'quorum.status has one row');
SELECT is((SELECT count(*) FROM quorum.stats), 1::bigint, 'quorum.stats has one row');
SELECT results_eq('SELECT capacity, forgotten_up_to_index, has_room, forgotten_early FROM quorum.token_memory',
	'VALUES (262144::bigint, NULL::bigint, true, 0::bigint)', 'quorum.token_memory has one row, and at first all is remembered');
SELECT is((SELECT outcome FROM quorum.outcome('a token that nobody used', 0)), 'rejected', 'then a token that is not known has not been used');
SELECT is_empty('SELECT * FROM quorum.snapshot_progress', 'quorum.snapshot_progress has no row where nothing was copied');
SELECT is((SELECT count(*) FROM quorum.position), 1::bigint, 'quorum.position has one row');
SELECT throws_ok('INSERT INTO quorum.position VALUES (false, 1)', '23514', NULL, 'and can have no other kind of row');
SELECT results_eq('SELECT node_name, is_voter, is_leader, reachable, lag_entries FROM quorum.nodes',
	$$VALUES ('n1', true, true, true, 0::bigint)$$, 'quorum.nodes knows the node');
SELECT ok((SELECT conninfo LIKE '%user=quorum_link%' FROM quorum.nodes), 'and shows its conninfo');
SELECT cmp_ok((SELECT chosen_index FROM quorum.status), '>=', (SELECT applied_index FROM quorum.status), 'nothing is applied before it is chosen');
SELECT results_eq('SELECT log_index FROM quorum.log_entries(1, 1)', $$SELECT 1::bigint FROM quorum.status WHERE chosen_index >= 1$$,
	'log_entries() gives the part that it is asked for');
SELECT is_empty('SELECT * FROM quorum.log_entries(5, 4)', 'and nothing if there is none');

SELECT * FROM finish();
ROLLBACK;
