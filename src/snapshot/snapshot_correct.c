/*
 * snapshot_correct.c
 *	  A table that has rows already gets those of the donor's snapshot: what is the same stays, what differs goes or comes.
 *
 * Process: apply worker, within the one transaction of the copy.  Must never take two rows for the same unless all their bytes are, as they
 * travel: not merely equal by their types' operators.
 *
 *	 1. Both sides add the hashes of their rows up, in buckets by primary key (table_rows.h).  Where count and sum of a bucket are the same,
 *		its rows are.
 *	 2. Of the buckets that differ the donor sends all rows.  One that is here is passed over, others are put in, and rows here that did not
 *		come go.
 *	 3. If anything was changed, all rows here are added up once more: the sum must be the donor's.
 *	 4. The indexes are built anew by the caller, whatever was changed: nothing was put into them, and on a node that forgot something they may
 *		be as old as anything else.  So the order of putting in and deleting does not matter.
 *
 * Memory: sums of one table, and in step 2 hashes and places of the rows here in buckets that differ.  These are taken in passes, each as
 * large as maintenance_work_mem allows; a table that would need too many is copied whole, as is one that has no rows or cannot be read.
 *
 * Locks: the caller's ACCESS EXCLUSIVE on the table: nobody else has changed it since the snapshot that is taken here.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "shared/table_rows.h"
#include "snapshot/snapshot_internal.h"

#define LEAST_BUCKETS 256
#define BYTES_PER_BUCKET 128	/* a few rows in each, up to the largest number of buckets */
#define MOST_PASSES 4			/* each reads the whole table, on both sides */

/* ---- which buckets differ ---- */

static uint32
choose_bucket_count(Relation relation)
{
	uint64		bytes = (uint64) RelationGetNumberOfBlocks(relation) * BLCKSZ;
	uint32		count = LEAST_BUCKETS;

	while (count < TABLE_ROWS_MAX_BUCKETS && (uint64) count * BYTES_PER_BUCKET < bytes)
		count *= 2;
	return count;
}

static TableSum *
sums_here(IncomingTable *table)
{
	Relation	relation = table_open(table->relid, AccessExclusiveLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	char	   *damage = NULL;
	TableSum   *sums;

	table->bucket_count = choose_bucket_count(relation);
	sums = try_bucket_sums(relation, snapshot, table->bucket_count, &damage);
	UnregisterSnapshot(snapshot);
	table_close(relation, NoLock);
	if (sums == NULL)
		ereport(LOG,
				(errmsg("table \"%s.%s\" cannot be read on this node: it is copied whole", table->schema_name, table->table_name),
				 errdetail_internal("%s", damage)));
	return sums;
}

static TableSum *
sums_there(SnapshotReceiver *receiver, const IncomingTable *table)
{
	WriteSetReader *reader = &receiver->reader;
	TableSum   *sums = palloc(table->bucket_count * sizeof(TableSum));

	snapshot_ask(receiver, psprintf("CALL quorum.send_sums(%lld, %u)", (long long) table->table_id, table->bucket_count));
	if (snapshot_read_answer(receiver) != SNAPSHOT_FRAME_SUMS || writeset_read_u32(reader) != table->bucket_count)
		snapshot_malformed("The sums of a table are not those that were asked for.");
	for (uint32 i = 0; i < table->bucket_count; i++)
	{
		sums[i].row_count = writeset_read_u64(reader);
		sums[i].hash.high = writeset_read_u64(reader);
		sums[i].hash.low = writeset_read_u64(reader);
	}
	snapshot_check_frame_end(receiver);
	snapshot_check_answer_end(receiver);
	return sums;
}

static void
note_differences(IncomingTable *table, const TableSum *here, const TableSum *there)
{
	table->differing = palloc0((table->bucket_count + 7) / 8);
	table->differing_rows_here = table->differing_rows_there = 0;
	memset(&table->sum_there, 0, sizeof(TableSum));
	for (uint32 i = 0; i < table->bucket_count; i++)
	{
		table_sum_add_sum(&table->sum_there, &there[i]);
		if (table_sum_equal(&here[i], &there[i]))
			continue;
		table->differing[i / 8] |= 1 << i % 8;
		table->differing_rows_here += here[i].row_count;
		table->differing_rows_there += there[i].row_count;
	}
}

static bool
is_differing(const IncomingTable *table, uint32 bucket)
{
	return (table->differing[bucket / 8] & (1 << bucket % 8)) != 0;
}

/* Of the rows here that are in buckets which differ. */
typedef struct RowHere
{
	RowHash		hash;
	ItemPointerData tid;
	bool		is_there;
} RowHere;

static uint64
passes_needed(const IncomingTable *table)
{
	uint64		rows_per_pass = Max((uint64) maintenance_work_mem * 1024 / sizeof(RowHere), 1);

	return table->differing_rows_here / rows_per_pass + 1;
}

/* What is to stay is not only to be right now. */
static bool
takes_files(const IncomingTable *table)
{
	Relation	relation;
	bool		are_fit;

	if (!table->is_adopted)
		return true;
	relation = table_open(table->relid, AccessExclusiveLock);
	are_fit = snapshot_files_are_of_this_server(relation);
	if (are_fit)
		snapshot_files_forget_visibility(relation);
	else
		ereport(LOG,
				(errmsg("table \"%s.%s\" has parts that are of another time than this server: it is copied whole", table->schema_name,
						table->table_name),
				 errdetail("A disk that lost some writes and kept others, or files from a backup, leave such a state.")));
	table_close(relation, NoLock);
	return are_fit;
}

bool
snapshot_compare(SnapshotReceiver *receiver, IncomingTable *table)
{
	TableSum   *here = sums_here(table);
	TableSum   *there;

	if (here == NULL || !takes_files(table))
		return false;
	table->rows_here = 0;
	for (uint32 i = 0; i < table->bucket_count; i++)
		table->rows_here += here[i].row_count;
	if (table->rows_here > 0)
	{
		there = sums_there(receiver, table);
		note_differences(table, here, there);
		pfree(there);
	}
	pfree(here);
	return table->rows_here > 0 && passes_needed(table) <= MOST_PASSES;
}

/* ---- one pass: the buckets of which the number has the same remainder ---- */

typedef struct Pass
{
	const IncomingTable *table;
	Relation	relation;
	Snapshot	snapshot;		/* of before anything was changed */
	uint32		number;
	uint32		count;			/* of passes */
	RowHere    *rows;
	uint64		row_count;
	uint64		capacity;
	MemoryContext context;		/* of rows */
} Pass;

static bool
is_of_pass(const Pass *pass, uint32 bucket)
{
	return bucket % pass->count == pass->number && is_differing(pass->table, bucket);
}

static bool
note_row_here(void *context, const TableRow *row)
{
	Pass	   *pass = context;
	RowHere    *noted;

	if (!is_of_pass(pass, row->bucket))
		return true;
	if (pass->row_count == pass->capacity)
	{
		pass->capacity *= 2;
		pass->rows = repalloc_huge(pass->rows, pass->capacity * sizeof(RowHere));
	}
	noted = &pass->rows[pass->row_count++];
	noted->hash = row->hash;
	noted->tid = row->slot->tts_tid;
	noted->is_there = false;
	return true;
}

static int
compare_hashes(const RowHash *one, const RowHash *other)
{
	if (one->high != other->high)
		return one->high < other->high ? -1 : 1;
	if (one->low != other->low)
		return one->low < other->low ? -1 : 1;
	return 0;
}

static int
by_hash(const void *one, const void *other)
{
	return compare_hashes(&((const RowHere *) one)->hash, &((const RowHere *) other)->hash);
}

static int
by_place(const void *one, const void *other)
{
	return ItemPointerCompare(unconstify(ItemPointerData *, &((const RowHere *) one)->tid),
							  unconstify(ItemPointerData *, &((const RowHere *) other)->tid));
}

static void
note_rows_here(Pass *pass)
{
	pass->capacity = 1024;
	pass->rows = MemoryContextAllocHuge(pass->context, pass->capacity * sizeof(RowHere));
	if (pass->table->differing_rows_here > 0)
		(void) table_rows_visit(pass->relation, pass->snapshot, pass->table->bucket_count, note_row_here, pass);
	qsort(pass->rows, pass->row_count, sizeof(RowHere), by_hash);
}

/* A damaged table may have a row twice: each of them stands for one of the donor's. */
static bool
match_row(void *context, const char *row, uint32 length)
{
	Pass	   *pass = context;
	RowHash		hash = row_hash(row, length);
	uint64		low = 0;
	uint64		high = pass->row_count;

	while (low < high)
	{
		uint64		middle = low + (high - low) / 2;

		if (compare_hashes(&pass->rows[middle].hash, &hash) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	for (; low < pass->row_count && compare_hashes(&pass->rows[low].hash, &hash) == 0; low++)
		if (!pass->rows[low].is_there)
		{
			pass->rows[low].is_there = true;
			return true;
		}
	return false;
}

static char *
call_for_rows(const Pass *pass)
{
	StringInfoData call;

	initStringInfo(&call);
	appendStringInfo(&call, "CALL quorum.send_rows(%lld, %u, pg_catalog.decode('", (long long) pass->table->table_id, pass->table->bucket_count);
	for (uint32 first = 0; first < pass->table->bucket_count; first += 8)
	{
		uint8		bits = 0;

		for (uint32 i = 0; i < 8 && first + i < pass->table->bucket_count; i++)
			bits |= is_of_pass(pass, first + i) ? 1 << i : 0;
		appendStringInfo(&call, "%02x", bits);
	}
	appendStringInfoString(&call, "', 'hex'))");
	return call.data;
}

/* Returns how many rows were put in. */
static uint64
take_rows(SnapshotReceiver *receiver, Pass *pass, uint64 *received_rows)
{
	SnapshotFrameKind kind;
	RowLoader	loader;

	snapshot_ask(receiver, call_for_rows(pass));
	snapshot_load_begin(&loader, pass->relation, 0);
	loader.is_here = match_row;
	loader.context = pass;
	while ((kind = snapshot_read_answer(receiver)) == SNAPSHOT_FRAME_ROWS)
	{
		snapshot_load_frame(&loader, &receiver->reader);
		snapshot_check_frame_end(receiver);
		snapshot_note_rows(receiver, loader.stored_rows);
	}
	snapshot_load_end(&loader);
	if (kind != SNAPSHOT_FRAME_TABLE_END || writeset_read_u64(&receiver->reader) != loader.received_rows)
		snapshot_malformed("The rows of a table do not end as they should.");
	snapshot_advance_sequences(receiver, pass->table);
	snapshot_check_answer_end(receiver);
	*received_rows += loader.received_rows;
	return loader.stored_rows;
}

static uint64
delete_what_did_not_come(Pass *pass)
{
	uint64		extra = 0;

	for (uint64 i = 0; i < pass->row_count; i++)
		if (!pass->rows[i].is_there)
			pass->rows[extra++] = pass->rows[i];
	qsort(pass->rows, extra, sizeof(RowHere), by_place);
	for (uint64 i = 0; i < extra; i++)
	{
		CHECK_FOR_INTERRUPTS();
		simple_table_tuple_delete(pass->relation, &pass->rows[i].tid, pass->snapshot);
	}
	return extra;
}

static bool
add_row(void *context, const TableRow *row)
{
	table_sum_add(context, row->hash);
	return true;
}

/* Whatever has gone wrong, a table that is not the donor's does not stay. */
static bool
has_rows_of_donor(Relation relation, const IncomingTable *table)
{
	TableSum	sum = {0};
	Snapshot	snapshot;

	CommandCounterIncrement();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	(void) table_rows_visit(relation, snapshot, 0, add_row, &sum);
	UnregisterSnapshot(snapshot);
	return table_sum_equal(&sum, &table->sum_there);
}

bool
snapshot_correct(SnapshotReceiver *receiver, const IncomingTable *table, CorrectedRows *corrected)
{
	Pass		pass = {.table = table, .count = (uint32) passes_needed(table), .context = CurrentMemoryContext};
	uint64		received_rows = 0;
	bool		is_right;

	memset(corrected, 0, sizeof(CorrectedRows));
	pass.relation = table_open(table->relid, AccessExclusiveLock);
	pass.snapshot = RegisterSnapshot(GetLatestSnapshot());
	for (; pass.number < pass.count; pass.number++)
	{
		pass.row_count = 0;
		note_rows_here(&pass);
		corrected->copied += take_rows(receiver, &pass, &received_rows);
		corrected->deleted += delete_what_did_not_come(&pass);
		pfree(pass.rows);
	}
	UnregisterSnapshot(pass.snapshot);
	is_right = corrected->copied + corrected->deleted == 0 || has_rows_of_donor(pass.relation, table);
	table_close(pass.relation, NoLock);
	if (received_rows != table->differing_rows_there)
		snapshot_malformed(psprintf("Of table %s came " UINT64_FORMAT " rows where sums were of " UINT64_FORMAT ".",
									quote_qualified_identifier(table->schema_name, table->table_name), received_rows,
									table->differing_rows_there));
	corrected->kept = table->rows_here - corrected->deleted;
	return is_right;
}
