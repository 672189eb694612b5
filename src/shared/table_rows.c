/*
 * table_rows.c
 *	  All rows of a table under a snapshot, each with the bytes in which it travels and their hash.
 *
 * Process: check worker, client backends, apply worker.  Must never use an index: what an index does not lead to is what is looked for.
 *
 * Locks: the caller's on the table.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"

#include "shared/table_rows.h"
#include "shared/writeset.h"

typedef struct RowBuffers
{
	StringInfoData row;
	StringInfoData key;
} RowBuffers;

static void
describe_row(TableRow *row, Relation relation, TupleTableSlot *slot, uint32 bucket_count, RowBuffers *buffers)
{
	memset(row, 0, sizeof(TableRow));
	row->slot = slot;
	resetStringInfo(&buffers->row);
	writeset_put_row(&buffers->row, relation, slot);
	row->bytes = buffers->row.data;
	row->length = buffers->row.len;
	row->hash = row_hash(row->bytes, row->length);
	if (bucket_count == 0)
		return;
	resetStringInfo(&buffers->key);
	writeset_put_key(&buffers->key, relation, slot);
	row->key = buffers->key.data;
	row->key_length = buffers->key.len;
	row->bucket = row_bucket(row->key, row->key_length, bucket_count);
}

/*
 * A scan believes the page that says that everybody sees all its rows; whoever comes by an index looks at the row itself.  Where these differ the copy is
 * damaged: the sum of what a scan shows would hide rows that are lost for others, and what does not exist could not be deleted.
 */
static void
check_visibility(Relation relation, TupleTableSlot *slot, Snapshot snapshot)
{
	BufferHeapTupleTableSlot *stored = (BufferHeapTupleTableSlot *) slot;
	bool		visible;

	if (!TTS_IS_BUFFERTUPLE(slot) || !PageIsAllVisible(BufferGetPage(stored->buffer)))
		return;
	LockBuffer(stored->buffer, BUFFER_LOCK_SHARE);
	visible = HeapTupleSatisfiesVisibility(stored->base.tuple, snapshot, stored->buffer);
	LockBuffer(stored->buffer, BUFFER_LOCK_UNLOCK);
	if (!visible)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("table \"%s\" has a row that is not there, on a page that says that all see it", RelationGetRelationName(relation)),
				 errdetail("It is row (%u,%u).", ItemPointerGetBlockNumber(&slot->tts_tid), ItemPointerGetOffsetNumber(&slot->tts_tid))));
}

bool
table_rows_visit(Relation relation, Snapshot snapshot, uint32 bucket_count, TableRowVisitor visitor, void *context)
{
	TupleTableSlot *slot = table_slot_create(relation, NULL);
	TableScanDesc scan = table_beginscan(relation, snapshot, 0, NULL);
	MemoryContext row_context = AllocSetContextCreate(CurrentMemoryContext, "quorum table rows", ALLOCSET_DEFAULT_SIZES);
	RowBuffers	buffers;
	bool		goes_on = true;

	initStringInfo(&buffers.row);
	initStringInfo(&buffers.key);
	while (goes_on && table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		MemoryContext old_context = MemoryContextSwitchTo(row_context);
		TableRow	row;

		CHECK_FOR_INTERRUPTS();
		check_visibility(relation, slot, snapshot);
		describe_row(&row, relation, slot, bucket_count, &buffers);
		goes_on = visitor(context, &row);
		MemoryContextSwitchTo(old_context);
		MemoryContextReset(row_context);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	MemoryContextDelete(row_context);
	pfree(buffers.row.data);
	pfree(buffers.key.data);
	return goes_on;
}

static bool
add_to_bucket(void *context, const TableRow *row)
{
	table_sum_add(&((TableSum *) context)[row->bucket], row->hash);
	return true;
}

TableSum *
bucket_sums(Relation relation, Snapshot snapshot, uint32 bucket_count)
{
	TableSum   *sums = palloc0(bucket_count * sizeof(TableSum));

	(void) table_rows_visit(relation, snapshot, bucket_count, add_to_bucket, sums);
	return sums;
}

bool
check_says_damaged(int sqlerrcode)
{
	return ERRCODE_TO_CATEGORY(sqlerrcode) == ERRCODE_INTERNAL_ERROR || ERRCODE_TO_CATEGORY(sqlerrcode) == ERRCODE_DATA_EXCEPTION;
}

TableSum *
try_bucket_sums(Relation relation, Snapshot snapshot, uint32 bucket_count, char **damage)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	TableSum   *volatile sums = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		sums = bucket_sums(relation, snapshot, bucket_count);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (!check_says_damaged(error->sqlerrcode))
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		*damage = error->message;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return sums;
}
