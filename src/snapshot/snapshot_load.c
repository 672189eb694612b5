/*
 * snapshot_load.c
 *	  Rows of one table, frame by frame, into the table here.
 *
 * Process: apply worker, within the one transaction of the copy.  Must never run code of users with other rights than those of the owner of the
 * table: that of types, here; that of index expressions when the indexes are built.
 *
 * What the rows say is stored as it is, as row_apply.c does: no triggers, constraints or defaults, generated columns as values.  No index is
 * maintained: the caller has them built when all rows are there, which is faster, and finds a violation of uniqueness.
 *
 * Locks: the caller's ACCESS EXCLUSIVE on the table.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "snapshot/snapshot_internal.h"

#define MOST_ROWS_PER_FRAME 10000

void
snapshot_load_begin(RowLoader *loader, Relation relation, int options)
{
	memset(loader, 0, sizeof(RowLoader));
	loader->relation = relation;
	loader->bulk = GetBulkInsertState();
	loader->options = options;
	loader->slots = palloc(sizeof(TupleTableSlot *) * MOST_ROWS_PER_FRAME);
	loader->rows_context = AllocSetContextCreate(CurrentMemoryContext, "quorum snapshot rows", ALLOCSET_DEFAULT_SIZES);
}

/* Is the next row of the frame here already?  If not, it is still the next one. */
static bool
skip_if_here(RowLoader *loader, WriteSetReader *reader)
{
	int			start = reader->data.cursor;

	if (loader->is_here == NULL)
		return false;
	writeset_skip_row(reader);
	if (loader->is_here(loader->context, reader->data.data + start, (uint32) (reader->data.cursor - start)))
		return true;
	reader->data.cursor = start;
	return false;
}

static void
store_rows(RowLoader *loader, WriteSetReader *reader)
{
	uint32		count = writeset_read_u32(reader);
	uint32		missing = 0;

	if (count == 0 || count > MOST_ROWS_PER_FRAME)
		snapshot_malformed("A frame has an impossible number of rows.");
	for (; loader->slot_count < count; loader->slot_count++)
		loader->slots[loader->slot_count] = MakeSingleTupleTableSlot(RelationGetDescr(loader->relation), &TTSOpsVirtual);
	MemoryContextSwitchTo(loader->rows_context);
	for (uint32 i = 0; i < count; i++)
		if (!skip_if_here(loader, reader))
			writeset_read_row(reader, loader->relation, loader->slots[missing++]);
	if (missing > 0)
		table_multi_insert(loader->relation, loader->slots, (int) missing, GetCurrentCommandId(true), loader->options, loader->bulk);
	for (uint32 i = 0; i < missing; i++)
		ExecClearTuple(loader->slots[i]);
	loader->received_rows += count;
	loader->stored_rows += missing;
}

void
snapshot_load_frame(RowLoader *loader, WriteSetReader *reader)
{
	MemoryContext old_context = CurrentMemoryContext;
	Oid			owner = loader->relation->rd_rel->relowner;
	int			guc_level = NewGUCNestLevel();
	Oid			saved_user;
	int			saved_security_context;

	GetUserIdAndSecContext(&saved_user, &saved_security_context);
	SetUserIdAndSecContext(owner, superuser_arg(owner) ? saved_security_context :
						   saved_security_context | SECURITY_RESTRICTED_OPERATION);
	store_rows(loader, reader);
	AtEOXact_GUC(false, guc_level);
	SetUserIdAndSecContext(saved_user, saved_security_context);
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(loader->rows_context);
}

void
snapshot_load_end(RowLoader *loader)
{
	FreeBulkInsertState(loader->bulk);
	table_finish_bulk_insert(loader->relation, loader->options);
	for (uint32 i = 0; i < loader->slot_count; i++)
		ExecDropSingleTupleTableSlot(loader->slots[i]);
	pfree(loader->slots);
	MemoryContextDelete(loader->rows_context);
}
