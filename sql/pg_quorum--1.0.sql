/*
 * pg_quorum--1.0.sql
 *	  Everything that users see in SQL: roles, the schema quorum, its tables, views and functions.
 *
 * The schema and all that is in it belong to the extension.  PUBLIC may look into the schema and read the status views, and nothing
 * else; as Postgres checks a function's EXECUTE privilege against the reader of a view, the functions right beneath those views
 * are open to PUBLIC too, and show the same.
 */
\echo Use "CREATE EXTENSION pg_quorum" to load this file. \quit

CREATE SCHEMA quorum;
COMMENT ON SCHEMA quorum IS 'pg_quorum: functions and views of a cluster whose tables commit after a quorum agreed';

/* Refuses, with a hint, a server that has not preloaded the library, and a database in which no worker would look. */
CREATE FUNCTION quorum.check_installation() RETURNS void
	AS 'MODULE_PATHNAME', 'quorum_check_installation' LANGUAGE C VOLATILE;
SELECT quorum.check_installation();
DROP FUNCTION quorum.check_installation();

/*
 * Roles are global to the server and outlive the extension, so they may be there already.
 */
DO $$
BEGIN
	IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'quorum_admin') THEN
		CREATE ROLE quorum_admin NOLOGIN;
		COMMENT ON ROLE quorum_admin IS 'pg_quorum: may change the cluster and read its log';
	END IF;
	IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'quorum_peer') THEN
		CREATE ROLE quorum_peer NOLOGIN;
		COMMENT ON ROLE quorum_peer IS 'pg_quorum: the other nodes of the cluster connect as a member of this role';
	END IF;
END
$$;

/* ----------------------------------------------------------------------------------------------------------------
 * Tables, for the extension alone
 * ---------------------------------------------------------------------------------------------------------------- */

/*
 * Exactly one row, found by its place: no index, so that each update can stay on the page (HOT), and a page that is mostly free.
 */
CREATE TABLE quorum.position
(
	one			 bool NOT NULL DEFAULT true CHECK (one),
	applied_index bigint NOT NULL
)
WITH (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
INSERT INTO quorum.position (applied_index) VALUES (0);

COMMENT ON TABLE quorum.position IS 'internal: how far the log is in the tables, exact under every snapshot; never write to it';
COMMENT ON COLUMN quorum.position.one IS 'true: there is one row';
COMMENT ON COLUMN quorum.position.applied_index IS 'log index of the last entry whose effect is in the tables';

CREATE TABLE quorum.replicated_table
(
	table_id	 bigint PRIMARY KEY,
	relation	 regclass NOT NULL,
	schema_name	 name NOT NULL,
	table_name	 name NOT NULL,
	state		 "char" NOT NULL CHECK (state IN ('c', 'a')),
	origin_node	 int,
	activated_index bigint,
	row_count	 bigint
);

COMMENT ON TABLE quorum.replicated_table IS 'internal: the replicated tables, as the log made them; never write to it';
COMMENT ON COLUMN quorum.replicated_table.table_id IS 'the table''s number in the log, the same on all nodes';
COMMENT ON COLUMN quorum.replicated_table.relation IS 'the table on this node';
COMMENT ON COLUMN quorum.replicated_table.schema_name IS 'its schema when it was replicated';
COMMENT ON COLUMN quorum.replicated_table.table_name IS 'its name when it was replicated';
COMMENT ON COLUMN quorum.replicated_table.state IS 'c: its rows are being copied; a: active';
COMMENT ON COLUMN quorum.replicated_table.origin_node IS 'number of the node on which quorum.replicate() was called';
COMMENT ON COLUMN quorum.replicated_table.activated_index IS 'log index from which on it is replicated; NULL on the node that it was copied from';
COMMENT ON COLUMN quorum.replicated_table.row_count IS 'rows that were copied then';

/*
 * Checks and their results follow from the log, so they are the same on all nodes that were there.
 */
CREATE TABLE quorum.table_check
(
	check_index	 bigint PRIMARY KEY,
	table_id	 bigint NOT NULL,
	node_id		 int NOT NULL,
	started_at	 timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE quorum.table_check IS 'internal: the last checks of each replicated table; never write to it';
COMMENT ON COLUMN quorum.table_check.check_index IS 'log index at which the copies are compared';
COMMENT ON COLUMN quorum.table_check.table_id IS 'number of the table';
COMMENT ON COLUMN quorum.table_check.node_id IS 'number of the node that asked for it';
COMMENT ON COLUMN quorum.table_check.started_at IS 'when this node applied it';

CREATE TABLE quorum.check_result
(
	check_index	 bigint,
	node_id		 int,
	outcome		 "char" NOT NULL CHECK (outcome IN ('d', 's', 'f')),
	row_count	 bigint NOT NULL,
	checksum	 text NOT NULL,
	PRIMARY KEY (check_index, node_id)
);
COMMENT ON TABLE quorum.check_result IS 'internal: what the nodes told of their copies; never write to it';
COMMENT ON COLUMN quorum.check_result.check_index IS 'the check';
COMMENT ON COLUMN quorum.check_result.node_id IS 'number of the node';
COMMENT ON COLUMN quorum.check_result.outcome IS 'd: done; s: skipped; f: the rows could not be read';
COMMENT ON COLUMN quorum.check_result.row_count IS 'rows that it has';
COMMENT ON COLUMN quorum.check_result.checksum IS 'sum of their hashes';

CREATE TABLE quorum.table_health
(
	table_id	 bigint PRIMARY KEY,
	verified_index bigint,
	reason		 text,
	quarantined_index bigint,
	quarantined_at timestamptz
);
COMMENT ON TABLE quorum.table_health IS 'internal: what this node knows about its own copies; never write to it';
COMMENT ON COLUMN quorum.table_health.table_id IS 'number of the table';
COMMENT ON COLUMN quorum.table_health.verified_index IS 'the last check that found it equal to a majority''s, or the last repair';
COMMENT ON COLUMN quorum.table_health.reason IS 'why it is quarantined';
COMMENT ON COLUMN quorum.table_health.quarantined_index IS 'the check that found it to differ; NULL: it is not quarantined';
COMMENT ON COLUMN quorum.table_health.quarantined_at IS 'when that was';

/* ----------------------------------------------------------------------------------------------------------------
 * Called by triggers and by other nodes
 * ---------------------------------------------------------------------------------------------------------------- */

CREATE FUNCTION quorum.capture() RETURNS trigger
	AS 'MODULE_PATHNAME', 'quorum_capture_trigger' LANGUAGE C;
COMMENT ON FUNCTION quorum.capture() IS 'internal: row trigger of replicated tables, puts each change into the transaction''s write set';

CREATE FUNCTION quorum.capture_truncate() RETURNS trigger
	AS 'MODULE_PATHNAME', 'quorum_capture_truncate' LANGUAGE C;
COMMENT ON FUNCTION quorum.capture_truncate() IS 'internal: statement trigger of replicated tables, puts TRUNCATE into the transaction''s write set';

CREATE PROCEDURE quorum.peer_stream(protocol_version int, cluster_id text, from_node_id int, from_node_name text,
									to_node_id int, incarnation text, journal text DEFAULT NULL, generation text DEFAULT '')
	AS 'MODULE_PATHNAME', 'quorum_peer_stream' LANGUAGE C;
COMMENT ON PROCEDURE quorum.peer_stream(int, text, int, text, int, text, text, text)
	IS 'internal: another node calls it and keeps the connection as a stream of consensus messages';

CREATE FUNCTION quorum.log_state(at_index bigint) RETURNS bytea
	AS 'MODULE_PATHNAME', 'quorum_log_state' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION quorum.log_state(bigint)
	IS 'internal: all that follows from the log up to an index, for a node that copies the tables as they were there';

CREATE PROCEDURE quorum.send_tables(protocol_version int, cluster_id text)
	AS 'MODULE_PATHNAME', 'quorum_send_tables' LANGUAGE C;
COMMENT ON PROCEDURE quorum.send_tables(int, text)
	IS 'internal: another node calls it to copy all replicated tables as they are under one snapshot: version 1 with their rows, version 2 without';

CREATE PROCEDURE quorum.send_sums(table_id bigint, bucket_count int)
	AS 'MODULE_PATHNAME', 'quorum_send_sums' LANGUAGE C;
COMMENT ON PROCEDURE quorum.send_sums(bigint, int)
	IS 'internal: after send_tables(2, ...) in the same transaction: rows and sums of hashes of each bucket of a table';

CREATE PROCEDURE quorum.send_rows(table_id bigint, bucket_count int, buckets bytea)
	AS 'MODULE_PATHNAME', 'quorum_send_rows' LANGUAGE C;
COMMENT ON PROCEDURE quorum.send_rows(bigint, int, bytea)
	IS 'internal: after send_tables(2, ...) in the same transaction: the rows of some buckets of a table, of all if there are 0 buckets, and its sequences';

CREATE FUNCTION quorum.instance_id() RETURNS text
	AS 'MODULE_PATHNAME', 'quorum_instance_id' LANGUAGE C STABLE;
COMMENT ON FUNCTION quorum.instance_id()
	IS 'internal: tells one running instance from every other, clones included; shows whether a conninfo leads where it should';

/*
 * What two tables must have in common so that rows can go from one to the other: columns in their order, keys.  The search path is fixed,
 * so that the text is the same on all nodes.
 */
CREATE FUNCTION quorum.table_shape(relation regclass) RETURNS text
	LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp
	AS $$
	SELECT string_agg(line, E'\n' ORDER BY part, place, line COLLATE "C")
	FROM (SELECT 1 AS part, a.attnum AS place,
				 format('column %I %s', a.attname, format_type(a.atttypid, a.atttypmod))
				 || CASE WHEN a.attcollation <> 0 AND a.attcollation <> t.typcollation
						 THEN (SELECT format(' collate %I.%I', n.nspname, c.collname)
							   FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace
							   WHERE c.oid = a.attcollation)
						 ELSE '' END
				 || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END
				 || CASE WHEN a.attgenerated <> '' THEN ' generated' ELSE '' END AS line
		  FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
		  WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
		  UNION ALL
		  SELECT 2, 0, pg_get_constraintdef(oid)
		  FROM pg_constraint
		  WHERE conrelid = relation AND contype IN ('p', 'u')
		  UNION ALL
		  SELECT 3, 0, 'UNIQUE INDEX ' || regexp_replace(pg_get_indexdef(i.indexrelid), '^.*? USING ', 'USING ')
		  FROM pg_index i
		  WHERE i.indrelid = relation AND i.indisunique
			AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid AND c.contype IN ('p', 'u'))
		 ) AS lines
	$$;
COMMENT ON FUNCTION quorum.table_shape(regclass) IS 'columns and keys of a table as a text that is equal on nodes where they are equal';

/*
 * The statements that make the table on another node: columns, keys, constraints, indexes, owned sequences, triggers, policies, comments;
 * owner and privileges as far as the roles exist there.  All names are qualified, because only pg_catalog is searched.
 * A superuser runs them, and must run no function of the table's owner: those that an index calls are run as the table's owner, who is set
 * before; CHECK constraints are written where none is evaluated, with the columns.
 * Physical matters (tablespace, storage, statistics targets) are left to each node.  Not pg_dump: that would need a role which
 * can read the table, and would not see what the current transaction has done.
 */
CREATE FUNCTION quorum.table_definition(relation regclass) RETURNS text
	LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp
	AS $$
	WITH this AS (
		SELECT c.oid, n.nspname, format('%I.%I', n.nspname, c.relname) AS name, c.relowner, c.relacl,
			   c.relrowsecurity, c.relforcerowsecurity, am.amname,
			   coalesce(' WITH (' || array_to_string(c.reloptions, ', ') || ')', '') AS options
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_am am ON am.oid = c.relam
		WHERE c.oid = relation
	), owned_sequence AS (
		SELECT format('%I.%I', n.nspname, c.relname) AS name, c.relacl, s.seqtypid, a.attname, a.attnum, a.attidentity,
			   format('START WITH %s INCREMENT BY %s MINVALUE %s MAXVALUE %s CACHE %s %s', s.seqstart, s.seqincrement,
					  s.seqmin, s.seqmax, s.seqcache, CASE WHEN s.seqcycle THEN 'CYCLE' ELSE 'NO CYCLE' END) AS options
		FROM pg_depend d
			 JOIN pg_sequence s ON s.seqrelid = d.objid
			 JOIN pg_class c ON c.oid = d.objid
			 JOIN pg_namespace n ON n.oid = c.relnamespace
			 JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
		WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
		  AND d.refobjid = relation AND d.deptype IN ('a', 'i')
	), column_line AS (
		SELECT a.attnum,
			   format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod))
			   || CASE WHEN a.attcollation <> 0 AND a.attcollation <> t.typcollation
					   THEN (SELECT format(' COLLATE %I.%I', n.nspname, c.collname)
							 FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace
							 WHERE c.oid = a.attcollation)
					   ELSE '' END
			   || CASE WHEN a.attgenerated = 's' THEN format(' GENERATED ALWAYS AS (%s) STORED', pg_get_expr(d.adbin, d.adrelid))
					   WHEN d.adbin IS NOT NULL THEN ' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid)
					   WHEN a.attidentity <> ''
					   THEN format(' GENERATED %s AS IDENTITY (SEQUENCE NAME %s %s)',
								   CASE a.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END, s.name, s.options)
					   ELSE '' END
			   || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END AS line
		FROM pg_attribute a
			 JOIN pg_type t ON t.oid = a.atttypid
			 LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
			 LEFT JOIN owned_sequence s ON s.attnum = a.attnum AND a.attidentity <> ''
		WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
	), policy AS (
		SELECT p.*, (SELECT string_agg(CASE WHEN r.oid = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r.oid)) END, ', ')
					 FROM unnest(p.polroles) AS r(oid)) AS roles
		FROM pg_policy p
		WHERE p.polrelid = relation
	), given AS (
		SELECT 'TABLE ' || name AS object, '' AS columns, x.*
		FROM this, aclexplode(relacl) AS x
		UNION ALL
		SELECT 'SEQUENCE ' || name, '', x.*
		FROM owned_sequence, aclexplode(relacl) AS x
		UNION ALL
		SELECT 'TABLE ' || this.name, format(' (%I)', a.attname), x.*
		FROM this, pg_attribute a, aclexplode(a.attacl) AS x
		WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
	), check_line AS (
		SELECT conname, format('CONSTRAINT %I %s', conname, pg_get_constraintdef(oid)) AS line
		FROM pg_constraint
		WHERE conrelid = relation AND contype = 'c'
	), grant_line AS (
		SELECT CASE WHEN g.grantee <> 0 THEN pg_get_userbyid(g.grantee) END AS role,
			   format('GRANT %s%s ON %s TO %s%s', g.privilege_type, g.columns, g.object,
					  CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END,
					  CASE WHEN g.is_grantable AND g.grantee <> 0 THEN ' WITH GRANT OPTION' ELSE '' END) AS line
		FROM given g, this
		WHERE g.grantee <> this.relowner
	), statement(part, place, line) AS (
		SELECT 0, 0, 'SET LOCAL search_path = pg_catalog, pg_temp'
		UNION ALL
		SELECT 1, 0, format('CREATE SCHEMA IF NOT EXISTS %I', nspname) FROM this WHERE nspname <> 'public'
		UNION ALL
		SELECT 2, attnum, format('CREATE SEQUENCE %s AS %s %s', name, format_type(seqtypid, NULL), options)
		FROM owned_sequence
		WHERE attidentity = ''
		UNION ALL
		SELECT 3, 0, format(E'CREATE TABLE %s (\n\t%s\n) USING %I%s', this.name,
							(SELECT string_agg(line, E',\n\t' ORDER BY place, attnum, conname COLLATE "C")
							 FROM (SELECT 1 AS place, attnum, NULL::name AS conname, line FROM column_line
								   UNION ALL
								   SELECT 2, 0, conname, line FROM check_line) AS lines), this.amname, this.options)
		FROM this
		UNION ALL
		SELECT 4, attnum, format('ALTER SEQUENCE %s OWNED BY %s.%I', owned_sequence.name, this.name, attname)
		FROM owned_sequence, this
		WHERE attidentity = ''
		UNION ALL
		SELECT 5, 0, format('DO %L', format(E'BEGIN\nIF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = %L) THEN ALTER TABLE %s OWNER TO %I; END IF;\nEND',
											pg_get_userbyid(relowner), name, pg_get_userbyid(relowner)))
		FROM this
		UNION ALL
		SELECT CASE contype WHEN 'p' THEN 6 WHEN 'u' THEN 7 ELSE 9 END, 0,
			   format('ALTER TABLE ONLY %s ADD CONSTRAINT %I %s', this.name, conname, pg_get_constraintdef(c.oid))
		FROM pg_constraint c, this
		WHERE c.conrelid = relation AND c.contype IN ('p', 'u', 'f')
		UNION ALL
		SELECT 8, 0, pg_get_indexdef(i.indexrelid)
		FROM pg_index i
		WHERE i.indrelid = relation
		  AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid AND c.contype IN ('p', 'u'))
		UNION ALL
		SELECT 10, 0, pg_get_triggerdef(t.oid)
			   || CASE WHEN t.tgenabled = 'D' THEN format(E';\nALTER TABLE %s DISABLE TRIGGER %I', this.name, t.tgname) ELSE '' END
		FROM pg_trigger t, this
		WHERE t.tgrelid = relation AND NOT t.tgisinternal AND t.tgname NOT IN ('!quorum_capture', '!quorum_truncate')
		UNION ALL
		SELECT 11, 0, format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', name) FROM this WHERE relrowsecurity
		UNION ALL
		SELECT 11, 0, format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', name) FROM this WHERE relforcerowsecurity
		UNION ALL
		SELECT 12, 0, format('CREATE POLICY %I ON %s AS %s FOR %s TO %s%s%s', p.polname, this.name,
							 CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
							 CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
							 p.roles,
							 coalesce(' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')', ''),
							 coalesce(' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')', ''))
		FROM policy p, this
		UNION ALL
		SELECT 13, 0, format('COMMENT ON TABLE %s IS %L', name, obj_description(relation, 'pg_class'))
		FROM this
		WHERE obj_description(relation, 'pg_class') IS NOT NULL
		UNION ALL
		SELECT 13, a.attnum, format('COMMENT ON COLUMN %s.%I IS %L', this.name, a.attname, col_description(relation, a.attnum))
		FROM pg_attribute a, this
		WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped AND col_description(relation, a.attnum) IS NOT NULL
		UNION ALL
		SELECT 14, 0, format('DO %L', E'BEGIN\n' || string_agg(
						CASE WHEN role IS NULL THEN line
							 ELSE format('IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = %L) THEN %s; END IF', role, line) END
						|| E';\n', '' ORDER BY line COLLATE "C") || 'END')
		FROM grant_line
		HAVING count(*) > 0
	)
	SELECT string_agg(line || ';', E'\n' ORDER BY part, place, line COLLATE "C") FROM statement
	$$;
COMMENT ON FUNCTION quorum.table_definition(regclass) IS 'the statements that make a table of the same definition on another node';

CREATE FUNCTION quorum.compare_begin(table_id bigint, at_index bigint) RETURNS text
	AS 'MODULE_PATHNAME', 'quorum_compare_begin' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION quorum.compare_begin(bigint, bigint)
	IS 'internal: a node whose copy of a table differs asks for the snapshot that is held for it at that log index';

CREATE FUNCTION quorum.compare_taken(table_id bigint, at_index bigint) RETURNS void
	AS 'MODULE_PATHNAME', 'quorum_compare_taken' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION quorum.compare_taken(bigint, bigint)
	IS 'internal: the other node has imported it; from now on its own transaction holds snapshot and table';

CREATE FUNCTION quorum.bucket_sums(table_id bigint, bucket_count int) RETURNS bytea
	AS 'MODULE_PATHNAME', 'quorum_bucket_sums' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION quorum.bucket_sums(bigint, int)
	IS 'internal: rows and sums of hashes of each bucket of a table, under the transaction''s snapshot';

CREATE FUNCTION quorum.bucket_rows(table_id bigint, bucket_count int, buckets int[]) RETURNS SETOF bytea
	AS 'MODULE_PATHNAME', 'quorum_bucket_rows' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION quorum.bucket_rows(bigint, int, int[])
	IS 'internal: the rows of some buckets of a table as they travel, under the transaction''s snapshot';

/*
 * Security definer: it tries the definition out and rolls it back, as the apply worker, a superuser, would run it.  Whoever
 * is trusted to send consensus messages may have any definition run, so this gives quorum_peer nothing that it did not have.
 */
CREATE FUNCTION quorum.check_replicate(schema_name name, table_name name, shape text, definition text) RETURNS text
	AS 'MODULE_PATHNAME', 'quorum_check_replicate' LANGUAGE C VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION quorum.check_replicate(name, name, text, text)
	IS 'internal: why this node could not take a table of that name, shape and definition; NULL if it can';

/* ----------------------------------------------------------------------------------------------------------------
 * Changing the cluster
 * ---------------------------------------------------------------------------------------------------------------- */

CREATE FUNCTION quorum.create_cluster(node_name text, conninfo text) RETURNS void
	AS 'MODULE_PATHNAME', 'quorum_create_cluster' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION quorum.create_cluster(text, text)
	IS 'makes this instance the first node of a new cluster; conninfo is how the other nodes will reach it';

CREATE FUNCTION quorum.join_cluster(node_name text, conninfo text, via text, as_voter bool DEFAULT true, keep_rows bool DEFAULT false) RETURNS void
	AS 'MODULE_PATHNAME', 'quorum_join_cluster' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION quorum.join_cluster(text, text, text, bool, bool)
	IS 'makes this instance a node of the cluster that via leads to, and returns once it has caught up and votes, or, if it is not to, follows as a learner; keep_rows takes tables here that hold rows: those that the cluster has are kept, all others are deleted';

CREATE FUNCTION quorum.remove_node(node_name text) RETURNS void
	AS 'MODULE_PATHNAME', 'quorum_remove_node' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION quorum.remove_node(text)
	IS 'removes a member of the cluster, whether it runs or not, as long as the others are a quorum; returns when it is done';

CREATE FUNCTION quorum.leave_cluster(force bool DEFAULT false) RETURNS void
	AS 'MODULE_PATHNAME', 'quorum_leave_cluster' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION quorum.leave_cluster(bool)
	IS 'makes this node an ordinary instance: removed from the cluster, its tables with their rows ordinary ones; force asks no other node';

CREATE FUNCTION quorum.force_new_cluster(accept_data_loss bool DEFAULT false) RETURNS void
	AS 'MODULE_PATHNAME', 'quorum_force_new_cluster' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION quorum.force_new_cluster(bool)
	IS 'after the loss of a majority, on a survivor: makes it the only voter of a new generation of the cluster; what it never received is lost';

CREATE FUNCTION quorum.transfer_leadership(node_name text DEFAULT NULL) RETURNS void
	AS 'MODULE_PATHNAME', 'quorum_transfer_leadership' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION quorum.transfer_leadership(text)
	IS 'lets the leader hand over to that voter, or to the one that is most advanced; returns when that leads';

CREATE FUNCTION quorum.request_removal(node_id int) RETURNS void
	AS 'MODULE_PATHNAME', 'quorum_request_removal' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION quorum.request_removal(int)
	IS 'internal: another node calls it on the leader, which removes that member from the cluster';

CREATE FUNCTION quorum.request_transfer(node_id int) RETURNS void
	AS 'MODULE_PATHNAME', 'quorum_request_transfer' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION quorum.request_transfer(int)
	IS 'internal: another node calls it on the leader, which then hands over to that member, or to any for 0';

CREATE FUNCTION quorum.request_membership(node_name text, conninfo text, instance_id text, as_voter bool DEFAULT true,
										  OUT cluster_id text, OUT node_id int, OUT config_slot bigint, OUT config bytea)
	AS 'MODULE_PATHNAME', 'quorum_request_membership' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION quorum.request_membership(text, text, text, bool)
	IS 'internal: a joining instance calls it on the leader, which adds it to the cluster';

CREATE FUNCTION quorum.replicate(relation regclass) RETURNS void
	AS 'MODULE_PATHNAME', 'quorum_replicate' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION quorum.replicate(regclass)
	IS 'replicates a table: copies its definition and rows to all nodes; from then on each write to it needs a quorum';

CREATE FUNCTION quorum.unreplicate(relation regclass) RETURNS void
	AS 'MODULE_PATHNAME', 'quorum_unreplicate' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION quorum.unreplicate(regclass)
	IS 'ends the replication of a table; it stays on each node as an ordinary table with the rows that it has';

CREATE FUNCTION quorum.verify(relation regclass, patience interval DEFAULT '1 hour', OUT node_name text, OUT checked_index bigint,
							  OUT outcome text, OUT row_count bigint, OUT checksum text, OUT matches bool)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'quorum_verify' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION quorum.verify(regclass, interval)
	IS 'compares the copies of a replicated table on all nodes, as they are at one index of the log; a node that differs from a majority quarantines its copy';

CREATE FUNCTION quorum.diverging_keys(relation regclass, OUT key text, OUT kind text)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'quorum_diverging_keys' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION quorum.diverging_keys(regclass)
	IS 'the rows in which this node''s quarantined copy of a table differs from the majority''s: differs, missing here or extra here';

CREATE FUNCTION quorum.repair(relation regclass, OUT removed_rows bigint, OUT copied_rows bigint, OUT checked_index bigint)
	AS 'MODULE_PATHNAME', 'quorum_repair' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION quorum.repair(regclass)
	IS 'copies the rows anew in which this node''s quarantined copy of a table differs from the majority''s, and has it checked again';

CREATE FUNCTION quorum.outcome(token text, after_index bigint DEFAULT NULL, OUT outcome text, OUT log_index bigint)
	AS 'MODULE_PATHNAME', 'quorum_outcome' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION quorum.outcome(text, bigint)
	IS 'what became of the transaction with this token: committed, and where in the log, or rejected; if that is open yet, it is rejected from now on; unknown: it may have been committed and forgotten, unless its first attempt came after a later log index';

/* ----------------------------------------------------------------------------------------------------------------
 * Reading what another session has written
 * ---------------------------------------------------------------------------------------------------------------- */

CREATE FUNCTION quorum.wait_for(log_index bigint) RETURNS void
	AS 'MODULE_PATHNAME', 'quorum_wait_for' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION quorum.wait_for(bigint)
	IS 'returns once this node has applied the log up to that index; later statements see it, even with local reads';

CREATE FUNCTION quorum.last_commit_index() RETURNS bigint
	AS 'MODULE_PATHNAME', 'quorum_last_commit_index' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION quorum.last_commit_index()
	IS 'log index of the last replicated transaction that this session has committed; NULL if there is none';

/* ----------------------------------------------------------------------------------------------------------------
 * Views
 * ---------------------------------------------------------------------------------------------------------------- */

CREATE FUNCTION quorum.node_status(OUT node_name text, OUT role text, OUT leader_name text, OUT ballot text, OUT has_quorum bool,
								   OUT voters int, OUT voters_reachable int, OUT quorum_size int,
								   OUT chosen_index bigint, OUT applied_index bigint, OUT last_error text)
	AS 'MODULE_PATHNAME', 'quorum_node_status' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION quorum.node_status() IS 'internal: beneath the view quorum.status';

CREATE FUNCTION quorum.node_members(OUT node_id int, OUT node_name text, OUT conninfo text, OUT is_voter bool, OUT is_leader bool,
									OUT reachable bool, OUT accepted_index bigint, OUT applied_index bigint,
									OUT lag_entries bigint, OUT last_contact timestamptz, OUT round_trip interval, OUT as_voter bool)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'quorum_node_members' LANGUAGE C VOLATILE ROWS 5;
COMMENT ON FUNCTION quorum.node_members() IS 'internal: beneath the views quorum.nodes and quorum.tables';

CREATE FUNCTION quorum.node_counters(OUT transactions_committed bigint, OUT transactions_rejected bigint,
									 OUT transactions_refused bigint, OUT transactions_abandoned bigint,
									 OUT average_commit_wait interval, OUT bytes_proposed bigint,
									 OUT entries_applied bigint, OUT rows_applied bigint, OUT apply_transactions bigint,
									 OUT blockers_aborted bigint, OUT linearizable_reads bigint, OUT read_rounds bigint,
									 OUT elections_started bigint, OUT ballots_won bigint,
									 OUT journal_bytes bigint, OUT journal_syncs bigint,
									 OUT frames_sent bigint, OUT frames_received bigint,
									 OUT first_held_index bigint, OUT log_state_index bigint)
	AS 'MODULE_PATHNAME', 'quorum_node_counters' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION quorum.node_counters() IS 'internal: beneath the view quorum.stats';

CREATE FUNCTION quorum.node_token_memory(OUT capacity bigint, OUT remembered bigint, OUT forgotten_up_to_index bigint,
										 OUT oldest_age interval, OUT has_room bool, OUT forgotten_early bigint)
	AS 'MODULE_PATHNAME', 'quorum_node_token_memory' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION quorum.node_token_memory() IS 'internal: beneath the view quorum.token_memory';

CREATE FUNCTION quorum.token_samples(OUT put_count bigint, OUT log_index bigint, OUT age_ms bigint)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'quorum_token_samples' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION quorum.token_samples() IS 'internal: a node that copies the tables asks how long the tokens have been known here';

CREATE FUNCTION quorum.log_entries(from_index bigint DEFAULT 1, to_index bigint DEFAULT NULL,
								   OUT log_index bigint, OUT origin_node text, OUT incarnation bigint, OUT sequence bigint,
								   OUT kind text, OUT verdict text, OUT bytes bigint, OUT conflict_index bigint)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'quorum_log_entries' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION quorum.log_entries(bigint, bigint)
	IS 'the entries of the log from one index to another, both included, as far as they are held; without an end, up to the last chosen one';

CREATE FUNCTION quorum.last_conflicts(OUT occurred_at timestamptz, OUT schema_name text, OUT table_name text, OUT key text,
									  OUT log_index bigint, OUT winner_node text, OUT winner_index bigint)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'quorum_last_conflicts' LANGUAGE C VOLATILE ROWS 64;
COMMENT ON FUNCTION quorum.last_conflicts() IS 'internal: beneath the view quorum.conflicts';

CREATE FUNCTION quorum.node_snapshot(OUT phase text, OUT donor_name text, OUT snapshot_index bigint,
									 OUT schema_name text, OUT table_name text, OUT tables_done int, OUT tables_total int,
									 OUT rows_copied bigint, OUT rows_kept bigint, OUT rows_deleted bigint,
									 OUT bytes_received bigint, OUT bytes_estimated bigint, OUT failed_attempts int, OUT started_at timestamptz, OUT phase_since timestamptz)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'quorum_node_snapshot' LANGUAGE C VOLATILE ROWS 1;
COMMENT ON FUNCTION quorum.node_snapshot() IS 'internal: beneath the view quorum.snapshot_progress';

CREATE VIEW quorum.status AS
	SELECT node_name, role, leader_name, ballot, has_quorum, voters, voters_reachable, quorum_size,
		   chosen_index, applied_index, last_error
	FROM quorum.node_status();
COMMENT ON VIEW quorum.status IS 'this node, one row; reading it never waits, whatever the cluster does';
COMMENT ON COLUMN quorum.status.node_name IS 'name of this node; NULL as long as it is in no cluster';
COMMENT ON COLUMN quorum.status.role IS 'leader, follower, candidate, learner, stopped, or removed (no member of the cluster any more)';
COMMENT ON COLUMN quorum.status.leader_name IS 'the leader as far as this node knows';
COMMENT ON COLUMN quorum.status.ballot IS 'highest ballot that this node has promised: round and number of the node that made it';
COMMENT ON COLUMN quorum.status.has_quorum IS 'leader: a majority answers; other nodes: they hear a leader whose majority answers';
COMMENT ON COLUMN quorum.status.voters IS 'number of voting members';
COMMENT ON COLUMN quorum.status.voters_reachable IS 'how many of them this node reaches, itself included';
COMMENT ON COLUMN quorum.status.quorum_size IS 'how many of them must agree';
COMMENT ON COLUMN quorum.status.chosen_index IS 'last log index that this node knows to be chosen';
COMMENT ON COLUMN quorum.status.applied_index IS 'last log index whose effect is in the tables of this node';
COMMENT ON COLUMN quorum.status.last_error IS 'why this node stands still; NULL if it does not';

CREATE VIEW quorum.nodes AS
	SELECT node_name, conninfo, is_voter, as_voter, is_leader, reachable, accepted_index, applied_index, lag_entries, last_contact, round_trip
	FROM quorum.node_members();
COMMENT ON VIEW quorum.nodes IS 'the members of the cluster as this node sees them; complete on the leader';
COMMENT ON COLUMN quorum.nodes.node_name IS 'name of the member';
COMMENT ON COLUMN quorum.nodes.conninfo IS 'how the other nodes reach it; passwords are left out';
COMMENT ON COLUMN quorum.nodes.is_voter IS 'it votes; false: it is still catching up, or a learner';
COMMENT ON COLUMN quorum.nodes.as_voter IS 'it is to vote once it has caught up; false: it was made a learner by join_cluster()';
COMMENT ON COLUMN quorum.nodes.is_leader IS 'it leads, as far as this node knows';
COMMENT ON COLUMN quorum.nodes.reachable IS 'this node can send to it now';
COMMENT ON COLUMN quorum.nodes.accepted_index IS 'everything up to this log index is on its disk, as far as reported';
COMMENT ON COLUMN quorum.nodes.applied_index IS 'it knows everything up to this log index to be chosen (this node itself: has it in its tables), as far as reported';
COMMENT ON COLUMN quorum.nodes.lag_entries IS 'entries by which it is behind what this node knows to be chosen';
COMMENT ON COLUMN quorum.nodes.last_contact IS 'when this node last heard from it';
COMMENT ON COLUMN quorum.nodes.round_trip IS 'last measured time from a message to its answer';

CREATE VIEW quorum.tables AS
	SELECT r.schema_name, r.table_name,
		   CASE WHEN h.quarantined_index IS NOT NULL THEN 'quarantined' WHEN r.state = 'a' THEN 'active' ELSE 'copying' END AS state,
		   r.row_count,
		   CASE WHEN c.reltuples >= 0 THEN c.reltuples::bigint END AS estimated_rows,
		   m.node_name AS origin_node,
		   r.activated_index, r.table_id
	FROM quorum.replicated_table r
		 LEFT JOIN pg_catalog.pg_class c ON c.oid = r.relation
		 LEFT JOIN quorum.table_health h ON h.table_id = r.table_id
		 LEFT JOIN quorum.node_members() m ON m.node_id = r.origin_node;
COMMENT ON VIEW quorum.tables IS 'the replicated tables';
COMMENT ON COLUMN quorum.tables.schema_name IS 'schema of the table when it was replicated';
COMMENT ON COLUMN quorum.tables.table_name IS 'name of the table when it was replicated';
COMMENT ON COLUMN quorum.tables.state IS 'copying: quorum.replicate() is sending its rows, or was interrupted; active: each write needs a quorum; quarantined: active, but this node''s rows differ from a majority''s';
COMMENT ON COLUMN quorum.tables.row_count IS 'rows that it had when it became active';
COMMENT ON COLUMN quorum.tables.estimated_rows IS 'the planner''s estimate of the rows that it has now; NULL before the first ANALYZE';
COMMENT ON COLUMN quorum.tables.origin_node IS 'node on which quorum.replicate() was called';
COMMENT ON COLUMN quorum.tables.activated_index IS 'log index from which on it is replicated; NULL on the node that it was copied from';
COMMENT ON COLUMN quorum.tables.table_id IS 'its number in the log, the same on all nodes';

CREATE VIEW quorum.checks AS
	SELECT c.check_index, t.schema_name, t.table_name, c.started_at, m.node_name,
		   CASE WHEN r.outcome = 'd' THEN 'checked' WHEN r.outcome = 's' THEN 'skipped' WHEN r.outcome = 'f' THEN 'unreadable' ELSE 'missing' END AS outcome,
		   CASE WHEN r.outcome = 'd' THEN r.row_count END AS row_count,
		   CASE WHEN r.outcome = 'd' THEN r.checksum END AS checksum
	FROM quorum.table_check c
		 JOIN quorum.replicated_table t ON t.table_id = c.table_id
		 CROSS JOIN quorum.node_members() m
		 LEFT JOIN quorum.check_result r ON r.check_index = c.check_index AND r.node_id = m.node_id;
COMMENT ON VIEW quorum.checks IS 'the last checks of the replicated tables, and what each member told of its copy';
COMMENT ON COLUMN quorum.checks.check_index IS 'log index at which the copies were compared';
COMMENT ON COLUMN quorum.checks.schema_name IS 'schema of the table when it was replicated';
COMMENT ON COLUMN quorum.checks.table_name IS 'name of the table when it was replicated';
COMMENT ON COLUMN quorum.checks.started_at IS 'when this node applied the check';
COMMENT ON COLUMN quorum.checks.node_name IS 'the member';
COMMENT ON COLUMN quorum.checks.outcome IS 'checked, skipped (something stood in the way), unreadable (the copy is damaged) or missing (it has told nothing, so far)';
COMMENT ON COLUMN quorum.checks.row_count IS 'rows of its copy; NULL unless it was checked';
COMMENT ON COLUMN quorum.checks.checksum IS 'sum of the hashes of its rows, equal where the rows are; NULL unless it was checked';

CREATE VIEW quorum.stats AS
	SELECT transactions_committed, transactions_rejected, transactions_refused, transactions_abandoned, average_commit_wait,
		   bytes_proposed, entries_applied, rows_applied, apply_transactions, blockers_aborted,
		   linearizable_reads, read_rounds, elections_started, ballots_won, journal_bytes, journal_syncs, frames_sent, frames_received,
		   first_held_index, log_state_index
	FROM quorum.node_counters();
COMMENT ON VIEW quorum.stats IS 'counters of this node since the server was started, one row';
COMMENT ON COLUMN quorum.stats.transactions_committed IS 'transactions of this node that the quorum agreed on and that committed here';
COMMENT ON COLUMN quorum.stats.transactions_rejected IS 'those that lost against another one (SQLSTATE 40001)';
COMMENT ON COLUMN quorum.stats.transactions_refused IS 'those that were turned away, surely not committed (SQLSTATE 25006)';
COMMENT ON COLUMN quorum.stats.transactions_abandoned IS 'those whose client was not told the outcome (SQLSTATE 08007)';
COMMENT ON COLUMN quorum.stats.average_commit_wait IS 'time from the start of COMMIT to the quorum''s agreement, mean over the committed ones; NULL if there are none';
COMMENT ON COLUMN quorum.stats.bytes_proposed IS 'size of all that this node proposed';
COMMENT ON COLUMN quorum.stats.entries_applied IS 'log entries that the apply worker performed: those of other nodes, and abandoned ones';
COMMENT ON COLUMN quorum.stats.rows_applied IS 'rows that the apply worker changed';
COMMENT ON COLUMN quorum.stats.apply_transactions IS 'local transactions of the apply worker';
COMMENT ON COLUMN quorum.stats.blockers_aborted IS 'local transactions that were aborted because an agreed entry needed their locks';
COMMENT ON COLUMN quorum.stats.linearizable_reads IS 'statements, or transactions with one snapshot, that waited until they could not be stale';
COMMENT ON COLUMN quorum.stats.read_rounds IS 'rounds to a majority that were made for them; all that wait at the same time share one';
COMMENT ON COLUMN quorum.stats.elections_started IS 'elections that this node asked for';
COMMENT ON COLUMN quorum.stats.ballots_won IS 'how often it became leader';
COMMENT ON COLUMN quorum.stats.journal_bytes IS 'size of its journal';
COMMENT ON COLUMN quorum.stats.journal_syncs IS 'how often the journal was made durable';
COMMENT ON COLUMN quorum.stats.frames_sent IS 'consensus messages sent';
COMMENT ON COLUMN quorum.stats.frames_received IS 'consensus messages received';
COMMENT ON COLUMN quorum.stats.first_held_index IS 'the log is held from this index on; what is before has been trimmed; 0: not known yet';
COMMENT ON COLUMN quorum.stats.log_state_index IS 'a restart of the server needs the log after this index only; 0: all of it';

CREATE VIEW quorum.token_memory AS
	SELECT capacity, remembered, forgotten_up_to_index, oldest_age, has_room, forgotten_early
	FROM quorum.node_token_memory();
COMMENT ON VIEW quorum.token_memory IS 'what the cluster remembers of transaction tokens (quorum.token), and for how long this node has, one row';
COMMENT ON COLUMN quorum.token_memory.capacity IS 'so many tokens, and fences of quorum.outcome(), are remembered: the newest';
COMMENT ON COLUMN quorum.token_memory.remembered IS 'how many there are';
COMMENT ON COLUMN quorum.token_memory.forgotten_up_to_index IS 'tokens of transactions up to this log index may be forgotten; NULL: none is';
COMMENT ON COLUMN quorum.token_memory.oldest_age IS 'how old the oldest one is, at least: time for which this node was down or away does not count; NULL: nothing is known of that';
COMMENT ON COLUMN quorum.token_memory.has_room IS 'whether another one can be proposed here without forgetting one that is younger than quorum.token_retention_age';
COMMENT ON COLUMN quorum.token_memory.forgotten_early IS 'how many were forgotten, since the server was started, that may have been younger than that';

CREATE VIEW quorum.snapshot_progress AS
	SELECT phase, donor_name, snapshot_index, schema_name, table_name, tables_done, tables_total,
		   rows_copied, rows_kept, rows_deleted, bytes_received, bytes_estimated, failed_attempts, started_at, phase_since
	FROM quorum.node_snapshot();
COMMENT ON VIEW quorum.snapshot_progress
	IS 'how far this node has come in copying the replicated tables from another one; no row if it has not had to since the server was started';
COMMENT ON COLUMN quorum.snapshot_progress.phase
	IS 'connecting, receiving log state, preparing tables, comparing rows, copying rows, building indexes, committing, waiting to retry, or done';
COMMENT ON COLUMN quorum.snapshot_progress.donor_name IS 'node whose tables are copied';
COMMENT ON COLUMN quorum.snapshot_progress.snapshot_index IS 'they are copied as they were at this log index; NULL: not known yet';
COMMENT ON COLUMN quorum.snapshot_progress.schema_name IS 'schema of the table that it is at; NULL between tables';
COMMENT ON COLUMN quorum.snapshot_progress.table_name IS 'table that it is at; NULL between tables';
COMMENT ON COLUMN quorum.snapshot_progress.tables_done IS 'tables that are copied';
COMMENT ON COLUMN quorum.snapshot_progress.tables_total IS 'tables that there are';
COMMENT ON COLUMN quorum.snapshot_progress.rows_copied IS 'rows that are copied';
COMMENT ON COLUMN quorum.snapshot_progress.rows_kept IS 'rows of this node that were found to be the same as the donor''s, and stay';
COMMENT ON COLUMN quorum.snapshot_progress.rows_deleted IS 'rows of this node that the donor has not, or not so; those of tables that are emptied first are not counted';
COMMENT ON COLUMN quorum.snapshot_progress.bytes_received IS 'bytes that came from the donor';
COMMENT ON COLUMN quorum.snapshot_progress.bytes_estimated IS 'size of the tables on the donor, which is of the same order as the bytes that will come';
COMMENT ON COLUMN quorum.snapshot_progress.failed_attempts IS 'attempts that failed before this one; see last_error in quorum.status';
COMMENT ON COLUMN quorum.snapshot_progress.started_at IS 'when this attempt began';
COMMENT ON COLUMN quorum.snapshot_progress.phase_since IS 'when the phase was entered';

CREATE VIEW quorum.conflicts AS
	SELECT occurred_at, schema_name, table_name, key, log_index, winner_node, winner_index
	FROM quorum.last_conflicts();
COMMENT ON VIEW quorum.conflicts IS 'the last 64 transactions of this node that lost against others (SQLSTATE 40001), oldest first';
COMMENT ON COLUMN quorum.conflicts.occurred_at IS 'when that was';
COMMENT ON COLUMN quorum.conflicts.schema_name IS 'schema of the table';
COMMENT ON COLUMN quorum.conflicts.table_name IS 'table that both of them used';
COMMENT ON COLUMN quorum.conflicts.key IS 'key that both of them used; NULL: the table as a whole, or its user may not read it';
COMMENT ON COLUMN quorum.conflicts.log_index IS 'log index of the one that lost';
COMMENT ON COLUMN quorum.conflicts.winner_node IS 'node of the one that came first';
COMMENT ON COLUMN quorum.conflicts.winner_index IS 'log index of the one that came first';

CREATE VIEW quorum.log AS
	SELECT log_index, origin_node, incarnation, sequence, kind, verdict, bytes, conflict_index
	FROM quorum.log_entries();
COMMENT ON VIEW quorum.log IS 'the log as far as this node holds it, entry by entry; quorum.log_entries(from, to) gives a part of it faster';
COMMENT ON COLUMN quorum.log.log_index IS 'place in the log, the same on all nodes';
COMMENT ON COLUMN quorum.log.origin_node IS 'node that proposed it; NULL for a no-op';
COMMENT ON COLUMN quorum.log.incarnation IS 'which start of that node''s consensus worker';
COMMENT ON COLUMN quorum.log.sequence IS 'number of the proposal within it';
COMMENT ON COLUMN quorum.log.kind IS 'transaction, configuration (a change of members), new cluster (the one that quorum.force_new_cluster() wrote) or no-op (left by a change of leader)';
COMMENT ON COLUMN quorum.log.verdict IS 'applied, rejected (another transaction came first), duplicate (it stands in the log twice, and counts once) or none';
COMMENT ON COLUMN quorum.log.bytes IS 'size of its content';
COMMENT ON COLUMN quorum.log.conflict_index IS 'rejected: index of the entry that came first';

/* ----------------------------------------------------------------------------------------------------------------
 * Who may do what
 * ---------------------------------------------------------------------------------------------------------------- */

REVOKE ALL ON ALL TABLES IN SCHEMA quorum FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA quorum FROM PUBLIC;
REVOKE ALL ON SCHEMA quorum FROM PUBLIC;

GRANT USAGE ON SCHEMA quorum TO PUBLIC;
GRANT SELECT ON quorum.status, quorum.nodes, quorum.tables, quorum.stats, quorum.snapshot_progress, quorum.token_memory TO PUBLIC;
GRANT EXECUTE ON FUNCTION quorum.node_status(), quorum.node_members(), quorum.node_counters(), quorum.node_snapshot(), quorum.node_token_memory(), quorum.outcome(text, bigint),
	quorum.wait_for(bigint), quorum.last_commit_index() TO PUBLIC;

GRANT SELECT ON quorum.log, quorum.conflicts, quorum.checks, quorum.position, quorum.replicated_table, quorum.table_check, quorum.check_result,
	quorum.table_health TO quorum_admin;
GRANT EXECUTE ON FUNCTION quorum.verify(regclass, interval), quorum.diverging_keys(regclass), quorum.repair(regclass) TO quorum_admin;
GRANT EXECUTE ON FUNCTION quorum.create_cluster(text, text), quorum.join_cluster(text, text, text, bool, bool),
	quorum.remove_node(text), quorum.leave_cluster(bool), quorum.force_new_cluster(bool), quorum.transfer_leadership(text),
	quorum.request_membership(text, text, text, bool), quorum.request_removal(int), quorum.request_transfer(int), quorum.replicate(regclass), quorum.unreplicate(regclass),
	quorum.log_entries(bigint, bigint), quorum.last_conflicts(), quorum.table_shape(regclass), quorum.table_definition(regclass), quorum.instance_id()
	TO quorum_admin;

/*
 * What an admin asked another node for comes over the connection strings of the members.  It gives quorum_peer nothing that it did not have: whoever
 * may send consensus messages is trusted with the members, and with who leads.
 */
GRANT EXECUTE ON PROCEDURE quorum.peer_stream(int, text, int, text, int, text, text, text), quorum.send_tables(int, text),
	quorum.send_sums(bigint, int), quorum.send_rows(bigint, int, bytea) TO quorum_peer;
GRANT EXECUTE ON FUNCTION quorum.compare_begin(bigint, bigint), quorum.compare_taken(bigint, bigint), quorum.bucket_sums(bigint, int),
	quorum.bucket_rows(bigint, int, int[]) TO quorum_peer;
GRANT EXECUTE ON FUNCTION quorum.check_replicate(name, name, text, text), quorum.table_shape(regclass), quorum.instance_id(),
	quorum.request_removal(int), quorum.request_transfer(int), quorum.log_state(bigint), quorum.token_samples()
	TO quorum_peer;
