/*
 * position.c
 *	  The position row: the log index of the last entry whose effect is in the tables.
 *
 * Process: client backends in the gate, after the grant, and the apply worker.  Must never raise a serialization failure there, nor wait.
 *
 * Invariants
 *	 1. Whoever updates the row has the turn, so the newest version is committed or its own: nobody contends for it.
 *	 2. The row's index only grows.
 *	 3. The TID in shared memory is that of a version that was committed and the newest when it was published.  VACUUM FULL may have
 *		moved it since: what is found there is verified, and searched for if it is not the row.
 *	 4. It is scanned with SnapshotSelf and SnapshotAny only, which are no MVCC snapshots.  Such reads take no predicate locks, so an update
 *		finds nobody to conflict with.
 *
 * Locks: RowExclusiveLock on quorum.position to the end of the transaction.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "storage/bufmgr.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "shared/position.h"
#include "shared/proposal_queue.h"

#define APPLIED_INDEX_ATTRIBUTE 2
#define ATTRIBUTE_COUNT 2
#define UPDATES_PER_PRUNE 32	/* an update by TID does not prune, as a scan would */

static ItemPointerData new_tid;
static uint64 new_index = 0;
static TransactionId new_transaction = InvalidTransactionId;
static bool has_new_tid = false;
static uint64 last_committed_index = 0;

Oid
position_relid(void)
{
	Oid			schema = get_namespace_oid("quorum", true);

	return OidIsValid(schema) ? get_relname_relid("position", schema) : InvalidOid;
}

static Relation
open_position(LOCKMODE lock_mode)
{
	Oid			relid = position_relid();

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table quorum.position does not exist"),
				 errhint("The extension pg_quorum has been dropped from this database; create it and join the cluster as a new node.")));
	return table_open(relid, lock_mode);
}

/* By its published place; the buffer is pinned on success. */
static bool
fetch_by_tid(Relation relation, HeapTuple tuple, Buffer *buffer)
{
	return position_get_tid(&tuple->t_self) &&
		ItemPointerGetBlockNumber(&tuple->t_self) < RelationGetNumberOfBlocks(relation) &&
		heap_fetch(relation, SnapshotSelf, tuple, buffer, false);
}

static bool
fetch_by_scan(Relation relation, HeapTuple tuple, Buffer *buffer)
{
	TableScanDesc scan = table_beginscan(relation, SnapshotSelf, 0, NULL);
	HeapTuple	found;
	ItemPointerData tid;
	int			count = 0;

	while ((found = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		tid = found->t_self;
		count++;
	}
	table_endscan(scan);
	if (count != 1)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("table quorum.position has %d rows instead of one", count),
				 errhint("It must not be written to. Remove this node from the cluster and let it join as a new one.")));
	tuple->t_self = tid;
	return heap_fetch(relation, SnapshotSelf, tuple, buffer, false);
}

static void
fetch_row(Relation relation, HeapTuple tuple, Buffer *buffer)
{
	if (!fetch_by_tid(relation, tuple, buffer) && !fetch_by_scan(relation, tuple, buffer))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("the row of quorum.position cannot be read")));
}

static uint64
index_of(Relation relation, HeapTuple tuple)
{
	bool		is_null;
	Datum		value = heap_getattr(tuple, APPLIED_INDEX_ATTRIBUTE, RelationGetDescr(relation), &is_null);

	return is_null ? 0 : (uint64) DatumGetInt64(value);
}

uint64
position_find(void)
{
	Relation	relation = open_position(AccessShareLock);
	HeapTupleData tuple;
	Buffer		buffer;
	uint64		index;

	if (!fetch_by_scan(relation, &tuple, &buffer))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("the row of quorum.position cannot be read")));
	index = index_of(relation, &tuple);
	ReleaseBuffer(buffer);
	position_set_tid(&tuple.t_self);
	table_close(relation, AccessShareLock);
	return index;
}

static HeapTuple
make_successor(Relation relation, HeapTuple tuple, uint64 index)
{
	Datum		values[ATTRIBUTE_COUNT] = {0};
	bool		nulls[ATTRIBUTE_COUNT] = {false};
	bool		replaces[ATTRIBUTE_COUNT] = {false};

	if (RelationGetDescr(relation)->natts != ATTRIBUTE_COUNT)
		elog(ERROR, "table quorum.position has %d columns", RelationGetDescr(relation)->natts);
	values[APPLIED_INDEX_ATTRIBUTE - 1] = Int64GetDatum((int64) index);
	replaces[APPLIED_INDEX_ATTRIBUTE - 1] = true;
	return heap_modify_tuple(tuple, RelationGetDescr(relation), values, nulls, replaces);
}

void
position_update(uint64 index)
{
	Relation	relation = open_position(RowExclusiveLock);
	HeapTupleData tuple;
	HeapTuple	successor;
	Buffer		buffer;
	uint64		previous;

	fetch_row(relation, &tuple, &buffer);
	if (index % UPDATES_PER_PRUNE == 0)
		heap_page_prune_opt(relation, buffer);
	previous = index_of(relation, &tuple);
	if (previous >= index)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("log index %llu cannot be applied: the tables are at %llu already",
						(unsigned long long) index, (unsigned long long) previous)));
	successor = make_successor(relation, &tuple, index);
	ReleaseBuffer(buffer);
	simple_heap_update(relation, &tuple.t_self, successor);
	new_tid = successor->t_self;
	new_index = index;
	has_new_tid = true;
	heap_freetuple(successor);
	table_close(relation, NoLock);
	new_transaction = GetTopTransactionId();
	turn_announce(index, new_transaction);
}

void
position_at_commit(void)
{
	if (has_new_tid)
	{
		position_set_tid(&new_tid);
		last_committed_index = new_index;
	}
	has_new_tid = false;
}

void
position_at_abort(void)
{
	if (has_new_tid)
		turn_withdraw(new_transaction);
	has_new_tid = false;
}

uint64
position_last_committed(void)
{
	return last_committed_index;
}

/* ---- under a snapshot ---- */

static bool
is_visible(HeapTuple tuple, Snapshot snapshot, Buffer buffer)
{
	bool		visible;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	visible = HeapTupleSatisfiesVisibility(tuple, snapshot, buffer);
	LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
	return visible;
}

/* The newest committed version, whose place is known: what a snapshot that was just taken nearly always sees. */
static bool
newest_is_visible(Relation relation, Snapshot snapshot, uint64 *index)
{
	HeapTupleData tuple;
	Buffer		buffer;
	bool		visible;

	if (!position_get_tid(&tuple.t_self) ||
		ItemPointerGetBlockNumber(&tuple.t_self) >= RelationGetNumberOfBlocks(relation) ||
		!heap_fetch(relation, SnapshotAny, &tuple, &buffer, false))
		return false;
	visible = is_visible(&tuple, snapshot, buffer);
	if (visible)
		*index = index_of(relation, &tuple);
	ReleaseBuffer(buffer);
	return visible;
}

/* What the snapshot sees can't be pruned while it is registered or active. */
static bool
any_is_visible(Relation relation, Snapshot snapshot, uint64 *index)
{
	TableScanDesc scan = table_beginscan(relation, SnapshotAny, 0, NULL);
	HeapTuple	tuple;
	bool		visible = false;

	while (!visible && (tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		visible = is_visible(tuple, snapshot, ((HeapScanDesc) scan)->rs_cbuf);
		if (visible)
			*index = index_of(relation, tuple);
	}
	table_endscan(scan);
	return visible;
}

uint64
position_under_snapshot(Snapshot snapshot)
{
	Relation	relation = open_position(AccessShareLock);
	uint64		index = 0;

	if (!newest_is_visible(relation, snapshot, &index) && !any_is_visible(relation, snapshot, &index))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("no row of quorum.position is visible under a snapshot"),
				 errhint("It must not be written to. Remove this node from the cluster and let it join as a new one.")));
	table_close(relation, AccessShareLock);
	return index;
}
