/*
 * views.c
 *	  The functions beneath quorum.status, quorum.nodes, quorum.stats, quorum.conflicts and quorum.log.
 *
 * Runs in client backends.  Must never wait for anything that the state of the cluster could delay: these views are what one looks at
 * when nothing works.  So they read shared memory, and the log's files, and nothing else.
 *
 * Invariant: what is shown of one node in one row was true at one moment, as far as it stands in NodeStatus (copied whole).
 *
 * Locks: QuorumShmem->lock, shared, for a copy.
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "cluster/node_check.h"
#include "shared/chosen_log.h"
#include "shared/member_config.h"
#include "shared/conflicts.h"
#include "shared/conninfo.h"
#include "shared/proposal_queue.h"
#include "shared/shmem.h"

PG_FUNCTION_INFO_V1(quorum_node_status);
PG_FUNCTION_INFO_V1(quorum_node_members);
PG_FUNCTION_INFO_V1(quorum_node_counters);
PG_FUNCTION_INFO_V1(quorum_log_entries);
PG_FUNCTION_INFO_V1(quorum_last_conflicts);

#define MAX_COLUMNS 32

/* A row under construction: columns are added from left to right. */
typedef struct RowBuilder
{
	int			count;
	Datum		values[MAX_COLUMNS];
	bool		nulls[MAX_COLUMNS];
} RowBuilder;

static void
put(RowBuilder *row, Datum value)
{
	Assert(row->count < MAX_COLUMNS);
	row->nulls[row->count] = false;
	row->values[row->count++] = value;
}

static void
put_null(RowBuilder *row)
{
	Assert(row->count < MAX_COLUMNS);
	row->nulls[row->count] = true;
	row->values[row->count++] = (Datum) 0;
}

static void
put_text(RowBuilder *row, const char *text)
{
	if (text == NULL || text[0] == '\0')
		put_null(row);
	else
		put(row, CStringGetTextDatum(text));
}

static void
put_uint64(RowBuilder *row, uint64 number)
{
	put(row, Int64GetDatum((int64) number));
}

static void
put_counter(RowBuilder *row, pg_atomic_uint64 *counter)
{
	put_uint64(row, pg_atomic_read_u64(counter));
}

static Datum
interval_datum(int64 microseconds)
{
	Interval   *interval = palloc0(sizeof(Interval));

	interval->time = microseconds;
	return IntervalPGetDatum(interval);
}

static Datum
row_datum(FunctionCallInfo fcinfo, RowBuilder *row)
{
	TupleDesc	row_type;

	if (get_call_result_type(fcinfo, NULL, &row_type) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	Assert(row_type->natts == row->count);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(row_type), row->values, row->nulls));
}

static const MemberState *
find_member(const NodeStatus *status, uint32 node_id)
{
	for (int i = 0; i < status->member_count; i++)
		if (node_id != 0 && status->members[i].node_id == node_id)
			return &status->members[i];
	return NULL;
}

/* ---- quorum.status ---- */

static const char *
role_name(NodeRole role)
{
	switch (role)
	{
		case NODE_STOPPED:
			return "stopped";
		case NODE_LEARNER:
			return "learner";
		case NODE_FOLLOWER:
			return "follower";
		case NODE_CANDIDATE:
			return "candidate";
		case NODE_LEADER:
			return "leader";
		case NODE_REMOVED:
			return "removed";
	}
	return "stopped";
}

static void
put_member_status(RowBuilder *row, const NodeIdentity *identity, const NodeStatus *status)
{
	const MemberState *leader = find_member(status, status->leader_id);

	put_text(row, identity->node_name);
	put_text(row, role_name(status->role));
	put_text(row, leader ? leader->node_name : NULL);
	put_text(row, status->ballot_round == 0 ? NULL
			 : psprintf(UINT64_FORMAT ".%u", status->ballot_round, status->ballot_node_id));
	put(row, BoolGetDatum(status->has_quorum));
	put(row, Int32GetDatum(status->voter_count));
	put(row, Int32GetDatum(status->voters_reachable));
	put(row, Int32GetDatum(status->quorum_size));
	put_uint64(row, turn_chosen_index());
	if (turn_is_initialised())
		put_uint64(row, turn_applied_index());
	else
		put_null(row);
}

Datum
quorum_node_status(PG_FUNCTION_ARGS)
{
	RowBuilder	row = {0};
	NodeIdentity identity;
	NodeStatus *status = palloc(sizeof(NodeStatus));
	char		last_error[sizeof(QuorumShmem->last_error)];
	char		quarantine[sizeof(QuorumShmem->quarantine)];

	require_shared_state();
	LWLockAcquire(QuorumShmem->lock, LW_SHARED);
	identity = QuorumShmem->identity;
	*status = QuorumShmem->status;
	strlcpy(last_error, QuorumShmem->last_error, sizeof(last_error));
	strlcpy(quarantine, QuorumShmem->quarantine, sizeof(quarantine));
	LWLockRelease(QuorumShmem->lock);
	if (last_error[0] == '\0' && QuorumShmem->apply_waits_for_pid != 0)
		snprintf(last_error, sizeof(last_error), "applying the log waits for a lock that process %d holds, which rebuilds a table or an index",
				 QuorumShmem->apply_waits_for_pid);

	if (last_error[0] == '\0')
		strlcpy(last_error, quarantine, sizeof(last_error));

	if (identity.node_id != 0)
		put_member_status(&row, &identity, status);
	else
	{
		put_null(&row);
		put_text(&row, role_name(NODE_STOPPED));
		put_null(&row);
		put_null(&row);
		put(&row, BoolGetDatum(false));
		while (row.count < 10)
			put_null(&row);
	}
	put_text(&row, last_error);
	return row_datum(fcinfo, &row);
}

/* ---- quorum.nodes ---- */

static void
put_member(RowBuilder *row, const MemberState *member, const NodeStatus *status, uint32 own_node_id)
{
	uint64		chosen_index = turn_chosen_index();
	uint64		applied_index = member->delivered_index;

	if (member->node_id == own_node_id && turn_is_initialised())
		applied_index = turn_applied_index();
	put(row, Int32GetDatum((int32) member->node_id));
	put_text(row, member->node_name);
	put_text(row, conninfo_for_display(member->conninfo));
	put(row, BoolGetDatum(member->is_voter));
	put(row, BoolGetDatum(member->node_id == status->leader_id));
	put(row, BoolGetDatum(member->reachable));
	put_uint64(row, member->accepted_index);
	put_uint64(row, applied_index);
	put_uint64(row, chosen_index > applied_index ? chosen_index - applied_index : 0);
	if (member->last_contact != 0)
		put(row, TimestampTzGetDatum(member->last_contact));
	else
		put_null(row);
	if (member->round_trip_ms >= 0)
		put(row, interval_datum((int64) member->round_trip_ms * 1000));
	else
		put_null(row);
	put(row, BoolGetDatum(member->as_voter));
}

Datum
quorum_node_members(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	NodeIdentity identity;
	NodeStatus *status = palloc(sizeof(NodeStatus));

	require_shared_state();
	InitMaterializedSRF(fcinfo, 0);
	shmem_get_identity(&identity);
	shmem_get_status(status);
	for (int i = 0; i < status->member_count; i++)
	{
		RowBuilder	row = {0};

		put_member(&row, &status->members[i], status, identity.node_id);
		tuplestore_putvalues(result->setResult, result->setDesc, row.values, row.nulls);
	}
	return (Datum) 0;
}

/* ---- quorum.stats ---- */

Datum
quorum_node_counters(PG_FUNCTION_ARGS)
{
	RowBuilder	row = {0};
	NodeStatus *status = palloc(sizeof(NodeStatus));
	QuorumCounters *counters;
	uint64		committed;

	require_shared_state();
	counters = &QuorumShmem->counters;
	shmem_get_status(status);
	committed = pg_atomic_read_u64(&counters->transactions_committed);

	put_uint64(&row, committed);
	put_counter(&row, &counters->transactions_rejected);
	put_counter(&row, &counters->transactions_refused);
	put_counter(&row, &counters->transactions_abandoned);
	if (committed > 0)
		put(&row, interval_datum(pg_atomic_read_u64(&counters->commit_wait_us) / committed));
	else
		put_null(&row);
	put_counter(&row, &counters->payload_bytes_proposed);
	put_counter(&row, &counters->entries_applied);
	put_counter(&row, &counters->rows_applied);
	put_counter(&row, &counters->apply_transactions);
	put_counter(&row, &counters->blockers_aborted);
	put_counter(&row, &counters->linearizable_reads);
	put_counter(&row, &counters->read_rounds);
	put_uint64(&row, status->elections_started);
	put_uint64(&row, status->ballots_won);
	put_uint64(&row, status->journal_bytes);
	put_uint64(&row, status->journal_syncs);
	put_uint64(&row, status->frames_sent);
	put_uint64(&row, status->frames_received);
	put_uint64(&row, pg_atomic_read_u64(&QuorumShmem->first_held_index));
	put_uint64(&row, pg_atomic_read_u64(&QuorumShmem->log_state_index));
	return row_datum(fcinfo, &row);
}

/* ---- quorum.conflicts ---- */

Datum
quorum_last_conflicts(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Conflict   *conflicts = palloc(CONFLICTS_KEPT * sizeof(Conflict));
	int			count;

	require_shared_state();
	InitMaterializedSRF(fcinfo, 0);
	count = conflicts_get(conflicts);
	for (int i = 0; i < count; i++)
	{
		RowBuilder	row = {0};

		put(&row, TimestampTzGetDatum(conflicts[i].occurred_at));
		put_text(&row, conflicts[i].schema_name);
		put_text(&row, conflicts[i].table_name);
		put_text(&row, conflicts[i].key);
		put_uint64(&row, conflicts[i].log_index);
		put_text(&row, conflicts[i].winner_node);
		put_uint64(&row, conflicts[i].winner_index);
		tuplestore_putvalues(result->setResult, result->setDesc, row.values, row.nulls);
	}
	return (Datum) 0;
}

/* ---- quorum.log ---- */

static const char *
verdict_name(LogVerdict verdict)
{
	switch (verdict)
	{
		case LOG_VERDICT_APPLY:
			return "applied";
		case LOG_VERDICT_REJECTED:
			return "rejected";
		case LOG_VERDICT_DUPLICATE:
			return "duplicate";
		case LOG_VERDICT_NONE:
		case LOG_VERDICT_NOOP:
		case LOG_VERDICT_CONFIG:
			break;
	}
	return "none";
}

/* Is it the configuration with which quorum.force_new_cluster() began a generation? */
static bool
begins_generation(uint64 index, const LogItem *item)
{
	char	   *bytes = chosen_log_read_payload(item);
	MemberConfig *config = palloc(sizeof(MemberConfig));
	const GenerationEntry *entry = NULL;
	bool		begins;

	if (member_config_decode(config, bytes, item->length))
		entry = generation_entry(&config->generation, config->generation.number);
	begins = entry != NULL && entry->slot == index;
	pfree(config);
	pfree(bytes);
	return begins;
}

/* The numbers are those of PaxosValueKind; a layer that knows the core wrote them. */
static const char *
kind_name(uint64 index, const LogItem *item)
{
	static const char *const names[] = {"no-op", "transaction", "configuration"};

	if (item->verdict == LOG_VERDICT_CONFIG && begins_generation(index, item))
		return "new cluster";
	return item->value_kind < lengthof(names) ? names[item->value_kind] : "unknown";
}

static void
put_log_item(RowBuilder *row, uint64 index, const LogItem *item, const NodeStatus *status)
{
	const MemberState *origin = find_member(status, item->origin);

	put_uint64(row, index);
	/* A member that has left has no name here any more, but still its number. */
	put_text(row, item->origin == 0 ? NULL : origin ? origin->node_name : psprintf("node %u", item->origin));
	put_uint64(row, item->incarnation);
	put_uint64(row, item->sequence);
	put_text(row, kind_name(index, item));
	put_text(row, verdict_name(item->verdict));
	put_uint64(row, item->length);
	if (item->verdict == LOG_VERDICT_REJECTED)
		put_uint64(row, item->conflict_index);
	else
		put_null(row);
}

Datum
quorum_log_entries(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	NodeStatus *status = palloc(sizeof(NodeStatus));
	int64		first_index = PG_ARGISNULL(0) ? 1 : PG_GETARG_INT64(0);
	int64		last_index = PG_ARGISNULL(1) ? PG_INT64_MAX : PG_GETARG_INT64(1);

	require_shared_state();
	InitMaterializedSRF(fcinfo, 0);
	shmem_get_status(status);
	first_index = Max(first_index, (int64) chosen_log_first_held());
	last_index = Min(last_index, (int64) turn_chosen_index());
	for (int64 index = first_index; index <= last_index; index++)
	{
		RowBuilder	row = {0};
		LogItem		item;

		CHECK_FOR_INTERRUPTS();
		if (!chosen_log_try_read_item((uint64) index, &item))
			continue;			/* trimmed since */
		put_log_item(&row, (uint64) index, &item, status);
		tuplestore_putvalues(result->setResult, result->setDesc, row.values, row.nulls);
		for (int column = 0; column < row.count; column++)
			if (!row.nulls[column] && !TupleDescAttr(result->setDesc, column)->attbyval)
				pfree(DatumGetPointer(row.values[column]));
	}
	return (Datum) 0;
}
