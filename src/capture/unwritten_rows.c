/*
 * unwritten_rows.c
 *	  Rows that a statement has locked in order to write them, and then did not: they are certified as locked.  Process: client backend.
 *
 * A row stays locked until the end of the transaction, and nothing is captured, if the condition of ON CONFLICT DO UPDATE … WHERE is false, if a
 * BEFORE ROW trigger returns NULL, if the newest version of the row, that was waited for, no longer qualifies, or if another row of a join could
 * not be locked.  The first is seen where it happens: the condition is replaced in the executor's state by one that calls the original.
 * The others are seen when the node that locks asks for its next row, and has not written, or not returned, the last one.
 *
 * Must never change what the statement does.
 *
 * Locks: none of its own; the tables are open.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/multixact.h"
#include "access/relation.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "executor/executor.h"
#include "lib/ilist.h"
#include "nodes/execnodes.h"
#include "storage/bufmgr.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "capture/row_keys.h"
#include "capture/unwritten_rows.h"
#include "shared/replicated_tables.h"

static const ReplicatedTable *
active_table(Relation relation)
{
	const ReplicatedTable *table = replicated_table_by_relid(RelationGetRelid(relation));

	return table != NULL && table->state == REPLICATED_TABLE_ACTIVE ? table : NULL;
}

/* ---- which version is locked ---- */

static bool
is_own_multixact(MultiXactId multixact, bool locks_only)
{
	MultiXactMember *members;
	int			count = GetMultiXactIdMembers(multixact, &members, false, locks_only);
	bool		is_own = false;

	for (int i = 0; i < count; i++)
		is_own = is_own || TransactionIdIsCurrentTransactionId(members[i].xid);
	if (count > 0)
		pfree(members);
	return is_own;
}

static bool
is_locked_by_me(const HeapTupleHeaderData *header)
{
	if ((header->t_infomask & HEAP_XMAX_INVALID) != 0)
		return false;
	if ((header->t_infomask & HEAP_XMAX_IS_MULTI) != 0)
		return is_own_multixact(HeapTupleHeaderGetRawXmax(header), HEAP_XMAX_IS_LOCKED_ONLY(header->t_infomask));
	return TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetRawXmax(header));
}

/* The header of a version, if it is what `creator` made (or, for the first one, whoever). */
static bool
read_header(Relation relation, ItemPointer row, TransactionId creator, HeapTupleHeaderData *header)
{
	HeapTupleData tuple = {.t_self = *row};
	Buffer		buffer;

	if (!heap_fetch(relation, SnapshotAny, &tuple, &buffer, false))
		return false;
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	memcpy(header, tuple.t_data, SizeofHeapTupleHeader);
	LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
	ReleaseBuffer(buffer);
	return !TransactionIdIsValid(creator) || TransactionIdEquals(HeapTupleHeaderGetXmin(header), creator);
}

/*
 * The version that this transaction has locked: that of the row, or a newer one, maybe with another key, that its writer was waited for.  False:
 * none, since the row is gone.  To certify that would reject whoever waited for a deletion if somebody inserts the key anew.
 */
static bool
find_locked_version(Relation relation, ItemPointer row)
{
	TransactionId creator = InvalidTransactionId;
	HeapTupleHeaderData header;

	if (relation->rd_tableam != GetHeapamTableAmRoutine())
		return true;			/* it can't be told: one key too many is safe */
	while (read_header(relation, row, creator, &header))
	{
		if (is_locked_by_me(&header))
			return true;
		if ((header.t_infomask & HEAP_XMAX_INVALID) != 0 || HEAP_XMAX_IS_LOCKED_ONLY(header.t_infomask) ||
			ItemPointerEquals(&header.t_ctid, row) || HeapTupleHeaderIndicatesMovedPartitions(&header))
			return false;
		creator = HeapTupleHeaderGetUpdateXid(&header);
		*row = header.t_ctid;
	}
	return false;
}

/* ---- ON CONFLICT DO UPDATE … WHERE ---- */

typedef struct WatchedCondition
{
	ExprState	state;			/* stands in for the original */
	ExprState  *original;
	CertifierMode mode;
} WatchedCondition;

static Datum
evaluate_condition(ExprState *state, ExprContext *context, bool *is_null)
{
	WatchedCondition *condition = (WatchedCondition *) state;
	Datum		result = condition->original->evalfunc(condition->original, context, is_null);
	TupleTableSlot *existing = context->ecxt_scantuple;

	if (!DatumGetBool(result) && existing != NULL && OidIsValid(existing->tts_tableOid))
	{
		Relation	relation = relation_open(existing->tts_tableOid, NoLock);
		const ReplicatedTable *table = active_table(relation);
		MemoryContext old_context = MemoryContextSwitchTo(context->ecxt_per_query_memory);

		if (table != NULL && ItemPointerIsValid(&existing->tts_tid))
			row_keys_add_row_lock(relation, table->table_id, &existing->tts_tid, condition->mode);
		MemoryContextSwitchTo(old_context);
		relation_close(relation, NoLock);
	}
	return result;
}

static void
watch_condition(ModifyTableState *node, ResultRelInfo *target)
{
	OnConflictSetState *conflict = target->ri_onConflict;
	WatchedCondition *condition;

	if (((ModifyTable *) node->ps.plan)->onConflictAction != ONCONFLICT_UPDATE || conflict == NULL ||
		conflict->oc_WhereClause == NULL)
		return;
	condition = MemoryContextAllocZero(node->ps.state->es_query_cxt, sizeof(WatchedCondition));
	condition->state.type = T_ExprState;
	condition->state.flags = EEO_FLAG_IS_QUAL;
	condition->state.evalfunc = evaluate_condition;
	condition->original = conflict->oc_WhereClause;
	condition->mode = ExecUpdateLockMode(node->ps.state, target) == LockTupleExclusive ?
		CERTIFIER_UPDATE : CERTIFIER_NO_KEY_UPDATE;
	conflict->oc_WhereClause = &condition->state;
}

/* ---- what nodes that lock rows are fed with ---- */

/* Beneath each LockRows, and each ModifyTable that updates or deletes; found by the node that feeds it. */
typedef struct Feed
{
	dlist_node	link;
	PlanState  *source;
	ExecProcNodeMtd original;
	ModifyTableState *writer;	/* or NULL, and … */
	LockRowsState *locker;
	NoteLockedRows note_locked_rows;
	bool		is_noted;		/* locker: what it was fed with last, or nothing */
	bool		has_candidate;	/* writer: the row that it was fed with last */
	ItemPointerData candidate;
	uint64		processed;		/* rows written before that */
	MemoryContextCallback forget;
} Feed;

static dlist_head feeds = DLIST_STATIC_INIT(feeds);

static Feed *
feed_of(const PlanState *source)
{
	dlist_iter	iterator;

	dlist_foreach(iterator, &feeds)
	{
		Feed	   *feed = dlist_container(Feed, link, iterator.cur);

		if (feed->source == source)
			return feed;
	}
	return NULL;
}

static CertifierMode
mode_of_writer(ModifyTableState *writer)
{
	if (writer->operation != CMD_UPDATE ||
		ExecUpdateLockMode(writer->ps.state, writer->resultRelInfo) == LockTupleExclusive)
		return CERTIFIER_UPDATE;
	return CERTIFIER_NO_KEY_UPDATE;
}

/* One whose writes are not counted may have written it: noted twice does no harm. */
static void
note_last_candidate(Feed *feed)
{
	ModifyTableState *writer = feed->writer;
	Relation	relation = writer->resultRelInfo->ri_RelationDesc;
	bool		may_be_unwritten = !writer->canSetTag || writer->ps.state->es_processed == feed->processed;
	const ReplicatedTable *table = feed->has_candidate && may_be_unwritten ? active_table(relation) : NULL;

	if (table != NULL && find_locked_version(relation, &feed->candidate))
		row_keys_add_row_lock(relation, table->table_id, &feed->candidate, mode_of_writer(writer));
	feed->has_candidate = false;
}

static void
take_candidate(Feed *feed, TupleTableSlot *slot)
{
	Datum		place;
	bool		is_null;

	if (TupIsNull(slot))
		return;
	place = ExecGetJunkAttribute(slot, feed->writer->resultRelInfo->ri_RowIdAttNo, &is_null);
	if (is_null)
		return;					/* MERGE, and there is none */
	feed->candidate = *(ItemPointer) DatumGetPointer(place);
	feed->processed = feed->writer->ps.state->es_processed;
	feed->has_candidate = true;
}

/* It is asked for the next row, so what was to be done with the last one is done. */
static TupleTableSlot *
feed_next(PlanState *source)
{
	Feed	   *feed = feed_of(source);
	TupleTableSlot *slot;

	if (feed->writer != NULL)
		note_last_candidate(feed);
	else if (!feed->is_noted)
		feed->note_locked_rows(feed->locker);
	feed->is_noted = false;
	slot = feed->original(source);
	if (feed->writer != NULL)
		take_candidate(feed, slot);
	return slot;
}

static void
forget_feed(void *argument)
{
	dlist_delete(&((Feed *) argument)->link);
}

static Feed *
watch_feed(PlanState *source)
{
	MemoryContext context = source->state->es_query_cxt;
	Feed	   *feed = MemoryContextAllocZero(context, sizeof(Feed));

	feed->source = source;
	feed->original = source->ExecProcNodeReal;
	feed->is_noted = true;
	feed->forget.func = forget_feed;
	feed->forget.arg = feed;
	dlist_push_head(&feeds, &feed->link);
	MemoryContextRegisterResetCallback(context, &feed->forget);
	ExecSetExecProcNode(source, feed_next);
	return feed;
}

void
unwritten_rows_watch_writer(ModifyTableState *node)
{
	bool		may_fail = node->operation == CMD_UPDATE || node->operation == CMD_DELETE || node->operation == CMD_MERGE;

	for (int i = 0; i < node->mt_nrels; i++)
		watch_condition(node, &node->resultRelInfo[i]);
	if (may_fail && node->mt_nrels == 1 && AttributeNumberIsValid(node->resultRelInfo->ri_RowIdAttNo))
		watch_feed(outerPlanState(node))->writer = node;
}

void
unwritten_rows_watch_locker(LockRowsState *node, NoteLockedRows note_locked_rows)
{
	Feed	   *feed = watch_feed(outerPlanState(node));

	feed->locker = node;
	feed->note_locked_rows = note_locked_rows;
}

void
unwritten_rows_are_noted(LockRowsState *node)
{
	feed_of(outerPlanState(node))->is_noted = true;
}
