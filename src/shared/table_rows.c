/*
 * table_rows.c
 *	  All rows of a table under a snapshot, each with the bytes in which it travels and their hash.
 *
 * Process: check worker, client backends.  Must never use an index: what an index does not lead to is what is looked for.
 *
 * Locks: the caller's on the table.
 */
#include "postgres.h"

#include "access/tableam.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/rel.h"

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
