/*
 * join.c
 *	  quorum.join_cluster(): an instance asks the leader of a cluster to take it in, and waits until it votes.
 *
 * Runs in a client backend of the joining instance.  Must never guess anything about the cluster: number, configuration and cluster id
 * come from the leader's answer, and everything after that from the log.
 *
 * Invariants
 *	 1. What could make the join fail later is checked before the leader is asked: afterwards the cluster has a member more.
 *	 2. Asking again after an interruption gives the same membership (request_membership sees to that).  So what passes by itself, an election, is
 *		waited for, also one in which the leader lost sight of what it had proposed.
 *	 3. Once the identity file is written the join goes on in the background, whether somebody waits or not.  That rows are to be kept is durable before.
 *	 4. Rows of a table are given up only if the caller says so (keep_rows), and only for those of the cluster: by the copy, in one transaction.
 *
 * Locks: see membership.c.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "cluster/internal_query.h"
#include "cluster/leadership.h"
#include "cluster/membership.h"
#include "cluster/node_check.h"
#include "cluster/snapshot_view.h"
#include "cluster/table_check.h"
#include "shared/member_config.h"
#include "shared/proposal_queue.h"
#include "shared/rows_to_keep.h"
#include "shared/shmem.h"

#define STATUS_INTERVAL_MS 50
#define PROGRESS_INTERVAL_MS 1000
#define TAKE_IN_PATIENCE_MS 10000	/* for an election, or another change of the members, to pass */
#define RETRY_MS 200

#define JOIN_GOES_ON "the node goes on joining in the background; see quorum.status"

PG_FUNCTION_INFO_V1(quorum_join_cluster);

/* ---- asking ---- */

/*
 * A connection to the leader: the one that `via` gives, or on from there, as the same role.
 */
static PeerConnection *
connect_to_leader(const char *via)
{
	PeerConnection *peer = peer_connect(via, NULL, "the node that via leads to", NULL);
	PeerConnection *leader;
	PeerResult *status;
	char	   *target;

	check_is_quorum_node(peer, "the node that via leads to", "quorum_admin");
	status = peer_query(peer,
						"SELECT s.node_name, s.role, n.node_name, n.conninfo "
						"FROM quorum.status AS s LEFT JOIN quorum.nodes AS n ON n.is_leader", 0, NULL);
	if (status->rows[0][0] == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the node that via leads to is not a member of a cluster"),
				 errhint("Let via lead to a member of the cluster; the first one is made with quorum.create_cluster().")));
	if (strcmp(status->rows[0][1], "leader") == 0)
		return peer;
	if (status->rows[0][3] == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("the cluster has no leader at the moment"),
				 errdetail("Node \"%s\" was asked.", status->rows[0][0]),
				 errhint("Retry when a majority of its nodes is running.")));

	target = psprintf("the leader, node \"%s\"", status->rows[0][2]);
	leader = peer_connect(status->rows[0][3], peer_user(peer), target, NULL);
	peer_close(peer);
	check_is_quorum_node(leader, target, "quorum_admin");
	return leader;
}

/* The number of a table is drawn at random when it is replicated, so whoever knows the same number has the same table. */
static bool
is_known_here(const char *table_id)
{
	Oid			type = TEXTOID;
	Datum		value = CStringGetTextDatum(table_id);

	return internal_query_value("SELECT 1 FROM quorum.replicated_table WHERE table_id = $1::pg_catalog.int8", 1, &type, &value) != NULL;
}

/* An instance that was made from a backup of a node of this cluster is welcome (but see refuse_other_history): its tables are brought to where they should be. */
static void
check_remains(PeerConnection *leader)
{
	PeerResult *tables;

	if (!database_has_remains())
		return;
	tables = peer_query(leader, "SELECT table_id FROM quorum.replicated_table", 0, NULL);
	for (int i = 0; i < tables->row_count; i++)
		if (is_known_here(tables->rows[i][0]))
		{
			ereport(NOTICE,
					(errmsg("this database is from a backup of a node of the cluster; its replicated tables are brought up to date")));
			return;
		}
	refuse_remains();
}

static void
refuse_table(const char *schema_name, const char *table_name, const char *reason)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table \"%s.%s\" of this database is in the way of a replicated one", schema_name, table_name),
			 errdetail_internal("%s", reason),
			 errhint("Drop, rename or empty it here; the cluster's rows come by the log.")));
}

/* Its rows are the cluster's from now on, which only the caller can allow. */
static void
check_table_with_rows(const char *schema_name, const char *table_name, bool is_active, bool keep_rows)
{
	if (!keep_rows)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s.%s\" of this database is in the way of a replicated one", schema_name, table_name),
				 errdetail("It has rows."),
				 errhint("quorum.join_cluster(..., keep_rows => true) keeps those rows that are the same in the cluster, and DELETES all others. "
						 "Or drop, rename or empty the table here.")));
	if (!is_active)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s.%s\" of this database is in the way of one that is being replicated just now", schema_name, table_name),
				 errdetail("It has rows."),
				 errhint("Retry when quorum.replicate() has ended in the cluster, or drop, rename or empty the table here.")));
}

/* Of a table that is here. */
static char *
differs_reason(PeerConnection *leader, char *const *row)
{
	const char *parameters[1] = {row[3]};
	PeerResult *answer;

	if (!table_exists(row[0], row[1]))
		return NULL;
	answer = peer_query(leader, "SELECT quorum.table_definition(relation) FROM quorum.replicated_table WHERE table_id = $1", 1, parameters);
	if (answer->row_count != 1 || answer->rows[0][0] == NULL)
		return NULL;			/* it is gone there by now */
	return table_differs_reason(row[0], row[1], answer->rows[0][0]);
}

/*
 * A table here that is in the way of a replicated one would stop this node in the middle of the log.  Notes those that have rows which are to be kept, and the
 * log index that the leader's tables are at.
 */
static void
check_tables_of_cluster(PeerConnection *leader, bool keep_rows, RowsToKeep *rows)
{
	PeerResult *tables = peer_query(leader,
									"SELECT r.schema_name, r.table_name, quorum.table_shape(r.relation), r.table_id, r.state = 'a', p.applied_index "
									"FROM quorum.replicated_table AS r, quorum.position AS p",
									0, NULL);

	rows->table_count = 0;
	rows->table_ids = palloc(Max(tables->row_count, 1) * sizeof(uint64));
	for (int i = 0; i < tables->row_count; i++)
	{
		const char *schema_name = tables->rows[i][0];
		const char *table_name = tables->rows[i][1];
		bool		is_fit = tables->rows[i][2] == NULL || is_known_here(tables->rows[i][3]);
		bool		has_rows = false;
		const char *reason = is_fit ? NULL : table_unfit_reason(schema_name, table_name, tables->rows[i][2], &has_rows);

		if (reason == NULL && !is_fit)
			reason = differs_reason(leader, tables->rows[i]);
		if (reason != NULL)
			refuse_table(schema_name, table_name, reason);
		if (!has_rows)
			continue;
		check_table_with_rows(schema_name, table_name, tables->rows[i][4][0] == 't', keep_rows);
		rows->index = strtou64(tables->rows[i][5], NULL, 10);
		rows->table_ids[rows->table_count++] = (uint64) strtoi64(tables->rows[i][3], NULL, 10);
	}
}

/*
 * A backup from before quorum.force_new_cluster(), or of a node that was left behind, may hold what the log of this cluster does not, and its
 * position cannot tell.  That the cluster was forced is known only now; the membership is given back.
 */
static void
refuse_other_history(PeerConnection *leader, uint32 node_id)
{
	const char *parameters[1] = {psprintf("%u", node_id)};

	(void) peer_query(leader, "SELECT quorum.request_removal($1)", 1, parameters);
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("a cluster that was continued by quorum.force_new_cluster() takes in no node that was made from a backup"),
			 errdetail("The backup may hold transactions of those that were left behind, which the log of the cluster knows nothing of."),
			 errhint("SELECT quorum.leave_cluster() makes its tables ordinary ones. Then quorum.join_cluster(..., keep_rows => true) keeps those rows "
					 "that are the same in the cluster, and DELETES all others.")));
}

static void
ask_for_membership(PeerConnection *leader, IdentityFile *identity, bool as_voter)
{
	const char *parameters[3] = {identity->node_name, identity->conninfo, own_instance_id()};
	PeerResult *answer = peer_query(leader,
									psprintf("SELECT cluster_id, node_id, config_slot, pg_catalog.encode(config, 'hex') "
											 "FROM quorum.request_membership($1, $2, $3%s)", as_voter ? "" : ", false"),
									3, parameters);
	MemberConfig *config = palloc(sizeof(MemberConfig));
	const char *hex;

	if (answer->row_count != 1 || answer->rows[0][3] == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the leader gave no usable answer to the request for membership")));
	hex = answer->rows[0][3];
	identity->cluster_id = strtou64(answer->rows[0][0], NULL, 10);
	identity->node_id = strtoul(answer->rows[0][1], NULL, 10);
	identity->config_slot = strtou64(answer->rows[0][2], NULL, 10);
	identity->config_length = strlen(hex) / 2;
	identity->config_bytes = palloc(identity->config_length + 1);
	(void) hex_decode(hex, strlen(hex), identity->config_bytes);
	if (identity->cluster_id == 0 || identity->node_id == 0 ||
		!member_config_decode(config, identity->config_bytes, identity->config_length))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the leader gave no usable answer to the request for membership"),
				 errhint("Check that all nodes run the same version of pg_quorum.")));
	if (config->generation.number > 0 && database_has_remains())
		refuse_other_history(leader, identity->node_id);
	pfree(config);
}

static void
ask_to_be_taken_in(const char *via, bool as_voter, bool keep_rows, IdentityFile *identity, RowsToKeep *rows)
{
	PeerConnection *leader = connect_to_leader(via);

	check_remains(leader);
	check_tables_of_cluster(leader, keep_rows, rows);
	ask_for_membership(leader, identity, as_voter);
	peer_close(leader);
}

/* Not an address at which nobody answers: it may well be a wrong one. */
static bool
is_worth_another_try(int sqlstate)
{
	return is_passing_error(sqlstate) && sqlstate != ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION;
}

/*
 * False: not now, for a reason that passes, in *why_not.  What the request leaves in the child context is referred to by its results, so that is
 * deleted with the caller's.
 */
static bool
was_taken_in(const char *via, bool as_voter, bool keep_rows, IdentityFile *identity, RowsToKeep *rows, ErrorData **why_not)
{
	MemoryContext caller_context = CurrentMemoryContext;
	MemoryContext call_context = AllocSetContextCreate(caller_context, "request for membership", ALLOCSET_DEFAULT_SIZES);
	volatile bool taken_in = false;

	MemoryContextSwitchTo(call_context);
	PG_TRY();
	{
		ask_to_be_taken_in(via, as_voter, keep_rows, identity, rows);
		taken_in = true;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller_context);
		*why_not = CopyErrorData();
		if (!is_worth_another_try((*why_not)->sqlerrcode))
			PG_RE_THROW();
		FlushErrorState();
		MemoryContextDelete(call_context);	/* closes the connection */
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller_context);
	return taken_in;
}

/* Whoever adds nodes one after the other, on a machine that is busy with it, is not to be told of each election. */
static void
be_taken_in(const char *via, bool as_voter, bool keep_rows, IdentityFile *identity, RowsToKeep *rows)
{
	TimestampTz start = GetCurrentTimestamp();
	ErrorData  *why_not = NULL;

	while (!was_taken_in(via, as_voter, keep_rows, identity, rows, &why_not))
	{
		if (TimestampDifferenceExceeds(start, GetCurrentTimestamp(), TAKE_IN_PATIENCE_MS))
			ReThrowError(why_not);
		wait_for_change(RETRY_MS, "whether the cluster has taken the node in is not known; call the function again");
	}
}

/* ---- waiting ---- */

/* It votes, if it is to; a learner follows a leader. */
static bool
has_its_role(const NodeStatus *status, uint32 node_id, bool as_voter)
{
	for (int i = 0; i < status->member_count; i++)
		if (status->members[i].node_id == node_id)
			return as_voter ? status->members[i].is_voter : status->has_quorum;
	return false;
}

static void
refuse_failed_apply(void)
{
	char		last_error[sizeof(QuorumShmem->last_error)];

	if (pg_atomic_read_u32(&QuorumShmem->apply_failed) == 0)
		return;
	LWLockAcquire(QuorumShmem->lock, LW_SHARED);
	strlcpy(last_error, QuorumShmem->last_error, sizeof(last_error));
	LWLockRelease(QuorumShmem->lock);
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("this node has joined the cluster, but cannot apply its log"),
			 errdetail_internal("%s", last_error),
			 errhint("Remove the cause; the node goes on by itself.")));
}

/* False: the tables come by the log. */
static bool
report_copy(void)
{
	SnapshotProgress progress;

	shmem_get_snapshot_progress(&progress);
	if (progress.phase == SNAPSHOT_NONE || progress.phase == SNAPSHOT_DONE)
		return false;
	if (progress.phase == SNAPSHOT_WAITING)
		ereport(NOTICE,
				(errmsg("an attempt to copy the tables failed; the next one follows by itself"),
				 errdetail_internal("%s", shmem_last_error())));
	else
		ereport(NOTICE,
				(errmsg("copying tables from node \"%s\", %s: %u of %u tables, " UINT64_FORMAT " rows, " UINT64_FORMAT " of about " UINT64_FORMAT " MB",
					progress.donor, snapshot_phase_name(progress.phase), progress.tables_done, progress.tables_total, progress.rows_copied,
					progress.bytes_received / (1024 * 1024), progress.bytes_estimated / (1024 * 1024))));
	return true;
}

static void
report_progress(uint64 target_index, TimestampTz *last_report)
{
	TimestampTz now = GetCurrentTimestamp();
	uint64		chosen_index = pg_atomic_read_u64(&QuorumShmem->chosen_index);

	if (!TimestampDifferenceExceeds(*last_report, now, PROGRESS_INTERVAL_MS))
		return;
	*last_report = now;
	if (report_copy())
		return;
	ereport(NOTICE,
			(errmsg("received " UINT64_FORMAT " of " UINT64_FORMAT " entries, applied " UINT64_FORMAT,
					chosen_index, Max(target_index, chosen_index), turn_applied_index())));
}

/* It has its role, and in its tables what the log held when it was taken in. */
static void
wait_until_in(uint32 node_id, uint64 target_index, bool as_voter)
{
	TimestampTz last_report = GetCurrentTimestamp();

	for (;;)
	{
		NodeStatus	status;

		shmem_get_status(&status);
		if (has_its_role(&status, node_id, as_voter) && turn_applied_index() >= target_index)
			return;
		refuse_failed_apply();
		report_progress(target_index, &last_report);
		wait_for_change(STATUS_INTERVAL_MS, JOIN_GOES_ON);
	}
}

static void
report_kept_rows(void)
{
	SnapshotProgress progress;

	shmem_get_snapshot_progress(&progress);
	ereport(NOTICE,
			(errmsg("the tables of node \"%s\" were taken over: " UINT64_FORMAT " rows kept, " UINT64_FORMAT " copied, " UINT64_FORMAT " deleted",
					progress.donor, progress.rows_kept, progress.rows_copied, progress.rows_deleted),
			 errdetail("The server log says so of each table.")));
}

Datum
quorum_join_cluster(PG_FUNCTION_ARGS)
{
	char	   *node_name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *conninfo = text_to_cstring(PG_GETARG_TEXT_PP(1));
	char	   *via = text_to_cstring(PG_GETARG_TEXT_PP(2));
	bool		as_voter = PG_NARGS() < 4 || PG_GETARG_BOOL(3);
	bool		keep_rows = PG_NARGS() >= 5 && PG_GETARG_BOOL(4);
	IdentityFile identity;
	RowsToKeep	rows = {0};

	require_shared_state();
	check_node_name(node_name);
	check_conninfo(conninfo, "conninfo");
	check_conninfo(via, "via");
	lock_membership();
	refuse_if_member();
	check_leads_to_instance(conninfo, "this node", own_instance_id());

	memset(&identity, 0, sizeof(identity));
	strlcpy(identity.node_name, node_name, sizeof(identity.node_name));
	strlcpy(identity.conninfo, conninfo, sizeof(identity.conninfo));
	be_taken_in(via, as_voter, keep_rows, &identity, &rows);
	rows_to_keep_write(&identity, &rows);
	adopt_identity(&identity);
	ereport(NOTICE,
			(errmsg("node \"%s\" is a member now, and receives the log up to index " UINT64_FORMAT,
					node_name, identity.config_slot)));

	wait_until_in(identity.node_id, identity.config_slot, as_voter);
	if (rows.table_count > 0)
		report_kept_rows();
	ereport(NOTICE,
			(as_voter ? errmsg("node \"%s\" has caught up and votes", node_name)
			 : errmsg("node \"%s\" has caught up, and is a learner that never votes", node_name)));
	PG_RETURN_VOID();
}
