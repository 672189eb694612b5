/*
 * verify.c
 *	  quorum.verify(): compares the copies of a table on all nodes, as they are at one index of the log.
 *
 * Runs in client backends of any node.  It proposes a check and waits for what the nodes tell; what follows for a node that differs
 * is decided by that node itself, when it applies the results (shared/table_health.c).
 *
 * Must never wait for a node that cannot be reached, nor take its silence for agreement: it is shown as missing.
 *
 * Locks: none while waiting.
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
#include "utils/wait_event.h"

#include "capture/capture.h"
#include "cluster/node_check.h"
#include "cluster/peer_query.h"
#include "cluster/verify.h"
#include "shared/proposal_queue.h"
#include "shared/table_health.h"
#include "shared/writeset.h"

PG_FUNCTION_INFO_V1(quorum_verify);

#define LOOK_INTERVAL_MS 20
#define ASK_INTERVAL_MS 2000
#define RESULT_COLUMNS 6

/* ---- in common ---- */

ReplicatedTable
verify_table(Oid relid)
{
	const ReplicatedTable *table = replicated_table_by_relid(relid);

	if (get_rel_name(relid) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));
	if (table == NULL || table->state != REPLICATED_TABLE_ACTIVE)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" is not replicated, or not completely yet", get_rel_name(relid)),
				 errhint("See quorum.tables.")));
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("tables cannot be compared in a transaction of isolation level REPEATABLE READ or SERIALIZABLE"),
				 errdetail("It would not see what the nodes tell meanwhile."),
				 errhint("Use READ COMMITTED.")));
	return *table;
}

static void
wait_a_moment(void)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, LOOK_INTERVAL_MS, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

void
verify_await_index(uint64 index, TimestampTz deadline)
{
	while (turn_applied_index() < index)
	{
		if (pg_atomic_read_u32(&QuorumShmem->apply_failed) != 0)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("this node has stopped applying the log"),
					 errhint("See last_error in quorum.status.")));
		if (GetCurrentTimestamp() >= deadline)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("this node has not applied log index %llu in time", (unsigned long long) index),
					 errdetail("It is at log index %llu.", (unsigned long long) turn_applied_index())));
		wait_a_moment();
	}
}

const MemberState *
verify_member(const NodeStatus *status, uint32 node_id)
{
	for (int i = 0; i < status->member_count; i++)
		if (status->members[i].node_id == node_id)
			return &status->members[i];
	return NULL;
}

static bool
has_result(const NodeCheck *checks, int count, uint32 node_id)
{
	for (int i = 0; i < count; i++)
		if (checks[i].node_id == node_id)
			return true;
	return false;
}

/* ---- whom there is to wait for ---- */

/*
 * Only a leader hears of all members.  Another node asks it, again and again, since one may go down meanwhile; if it gets no
 * answer, its own view has to do.
 */
typedef struct Reach
{
	PeerConnection *leader;		/* NULL: not asked */
	TimestampTz asked_at;		/* 0: never */
	int			count;
	uint32		node_ids[QUORUM_MAX_MEMBERS];	/* that can be reached */
} Reach;

static void
add_reachable(Reach *reach, uint32 node_id)
{
	if (reach->count < QUORUM_MAX_MEMBERS)
		reach->node_ids[reach->count++] = node_id;
}

static void
take_own_view(Reach *reach, const NodeStatus *status)
{
	reach->count = 0;
	for (int i = 0; i < status->member_count; i++)
		if (status->members[i].reachable)
			add_reachable(reach, status->members[i].node_id);
}

static void
connect_to_leader(Reach *reach, const NodeStatus *status)
{
	const MemberState *leader = verify_member(status, status->leader_id);
	char	   *why_not;

	if (reach->leader == NULL && leader != NULL)
		reach->leader = peer_connect(leader->conninfo, NULL, psprintf("node \"%s\"", leader->node_name), &why_not);
}

/* False: it did not answer. */
static bool
ask_leader(Reach *reach)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool answered = false;

	PG_TRY();
	{
		PeerResult *answer = peer_query(reach->leader, "SELECT node_id FROM quorum.node_members() WHERE reachable", 0, NULL);

		reach->count = 0;
		for (int i = 0; i < answer->row_count; i++)
			if (answer->rows[i][0] != NULL)
				add_reachable(reach, (uint32) strtoul(answer->rows[i][0], NULL, 10));
		answered = true;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		if (geterrcode() != ERRCODE_CONNECTION_FAILURE)
			PG_RE_THROW();
		FlushErrorState();
		peer_close(reach->leader);
		reach->leader = NULL;
	}
	PG_END_TRY();
	return answered;
}

static void
look_who_is_reachable(Reach *reach)
{
	NodeStatus *status;

	if (reach->asked_at != 0 && !TimestampDifferenceExceeds(reach->asked_at, GetCurrentTimestamp(), ASK_INTERVAL_MS))
		return;
	status = palloc(sizeof(NodeStatus));
	shmem_get_status(status);
	if (status->leader_id != QuorumShmem->identity.node_id)
		connect_to_leader(reach, status);
	if (reach->leader == NULL || !ask_leader(reach))
		take_own_view(reach, status);
	reach->asked_at = GetCurrentTimestamp();
	pfree(status);
}

static bool
all_reachable_have_told(const Reach *reach, const NodeCheck *checks, int count)
{
	for (int i = 0; i < reach->count; i++)
		if (!has_result(checks, count, reach->node_ids[i]))
			return false;
	return true;
}

/* An older build stops at an entry that it does not know. */
void
verify_refuse_older_builds(void)
{
	NodeStatus *status = palloc(sizeof(NodeStatus));
	const char *older;

	shmem_get_status(status);
	older = shmem_older_build(status);
	if (older != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("node \"%s\" runs an older build, which does not know checks of tables", older),
				 errhint("Upgrade it first.")));
	pfree(status);
}

static uint64
propose_check(uint64 table_id)
{
	StringInfoData payload;

	verify_refuse_older_builds();
	initStringInfo(&payload);
	writeset_begin(&payload);
	writeset_put_table_check(&payload, table_id, false);
	writeset_finish(&payload, turn_applied_index(), 0, 0, 0, 1);
	return gate_propose_check(payload.data, payload.len);
}

uint64
verify_run(uint64 table_id, TimestampTz deadline, NodeCheck *checks, int *count)
{
	Reach		reach = {0};
	uint64		index = propose_check(table_id);

	verify_await_index(index, deadline);
	for (;;)
	{
		look_who_is_reachable(&reach);
		*count = table_check_results(index, checks, QUORUM_MAX_MEMBERS);
		if (all_reachable_have_told(&reach, checks, *count) || GetCurrentTimestamp() >= deadline)
		{
			if (reach.leader != NULL)
				peer_close(reach.leader);
			return index;
		}
		if (replicated_table_by_id(table_id) == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the table was unreplicated before all nodes had told what they have")));
		wait_a_moment();
	}
}

/* ---- quorum.verify() ---- */

static const char *
outcome_name(const NodeCheck *check)
{
	if (check == NULL)
		return "missing";
	switch (check->outcome)
	{
		case CHECK_DONE:
			return "checked";
		case CHECK_SKIPPED:
			return "skipped";
		case CHECK_FAILED:
			return "unreadable";
	}
	return "missing";
}

static void
put_row(ReturnSetInfo *result, const MemberState *member, uint64 index, const NodeCheck *check, CheckVerdict verdict)
{
	Datum		values[RESULT_COLUMNS];
	bool		nulls[RESULT_COLUMNS] = {false};
	bool		has_sum = check != NULL && check->outcome == CHECK_DONE;

	values[0] = CStringGetTextDatum(member->node_name);
	values[1] = Int64GetDatum((int64) index);
	values[2] = CStringGetTextDatum(outcome_name(check));
	values[3] = Int64GetDatum(has_sum ? (int64) check->sum.row_count : 0);
	values[4] = CStringGetTextDatum(has_sum ? psprintf("%016llx%016llx", (unsigned long long) check->sum.hash.high,
													   (unsigned long long) check->sum.hash.low) : "");
	values[5] = BoolGetDatum(verdict == CHECK_MATCHES);
	nulls[3] = nulls[4] = !has_sum;
	nulls[5] = verdict == CHECK_UNDECIDED;
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

static bool
sums_differ(const NodeCheck *checks, int count)
{
	for (int i = 1; i < count; i++)
		if (checks[i].outcome != CHECK_SKIPPED && (checks[i].outcome != checks[0].outcome || !table_sum_equal(&checks[i].sum, &checks[0].sum)))
			return true;
	return false;
}

/* Nobody is quarantined then, so somebody has to be told. */
static void
warn_without_majority(const NodeCheck *checks, int count, int quorum_size)
{
	TableSum	agreed;

	if (!check_majority(checks, count, quorum_size, &agreed) && sums_differ(checks, count))
		ereport(WARNING,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("copies of the table differ, and no majority of the voters has the same"),
				 errdetail("No node is quarantined, because nothing says which of them are right."),
				 errhint("Check again when more nodes can be reached.")));
}

static const NodeCheck *
check_of(const NodeCheck *checks, int count, uint32 node_id)
{
	for (int i = 0; i < count; i++)
		if (checks[i].node_id == node_id)
			return &checks[i];
	return NULL;
}

Datum
quorum_verify(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	NodeIdentity identity;
	NodeStatus *status = palloc(sizeof(NodeStatus));
	NodeCheck	checks[QUORUM_MAX_MEMBERS];
	TimestampTz deadline;
	ReplicatedTable table;
	uint64		index;
	int			count;

	require_membership(&identity);
	table = verify_table(PG_GETARG_OID(0));
	InitMaterializedSRF(fcinfo, 0);
	deadline = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval, TimestampTzGetDatum(GetCurrentTimestamp()), PG_GETARG_DATUM(1)));
	index = verify_run(table.table_id, deadline, checks, &count);
	shmem_get_status(status);
	for (int i = 0; i < status->member_count; i++)
	{
		uint32		node_id = status->members[i].node_id;

		put_row(result, &status->members[i], index, check_of(checks, count, node_id),
				check_verdict(checks, count, status->quorum_size, node_id));
	}
	warn_without_majority(checks, count, status->quorum_size);
	return (Datum) 0;
}
