/*
 * table_copy.c
 *	  Sends what quorum.replicate() sends before the table becomes active: its definition and its rows.
 *
 * Runs in the client backend that executes quorum.replicate(), with the table locked against changes.  Must never build more than a chunk in
 * memory: the table may be of any size.
 *
 * Invariants
 *	 1. An entry holds at most CHUNK_ROWS rows, and is closed once it has CHUNK_BYTES: so it exceeds that by one row at most.
 *	 2. One entry is under way at a time: this sender is slower than the log on purpose, so that others find room between.
 *
 * Locks: the caller's SHARE ROW EXCLUSIVE on the table.  The apply worker on this node must need nothing of it meanwhile.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/tableam.h"
#include "common/hashfn.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "capture/capture.h"
#include "cluster/table_copy.h"
#include "shared/proposal_queue.h"
#include "shared/writeset.h"

#define CHUNK_ROWS 10000
#define CHUNK_BYTES (1024 * 1024)
#define PROGRESS_INTERVAL_MS 1000

typedef struct RowSender
{
	Relation	relation;
	uint64		table_id;
	uint64		sent_rows;
	uint32		chunk_rows;
	StringInfoData rows;		/* of the chunk that is being filled */
	TimestampTz last_report;
} RowSender;

/* Most of these entries depend on nothing that others could change: the table is not replicated yet. */
static void
propose_one(StringInfo payload, uint64 base, uint32 key_count)
{
	writeset_finish(payload, base, 0, 0, key_count, 1);
	(void) gate_propose_detached(payload->data, payload->len);
	pfree(payload->data);
}

/* Two nodes that replicate tables of one name at the same time: the second in the log is rejected. */
static uint64
certified_name_hash(Relation relation)
{
	char	   *name = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(relation)),
												  RelationGetRelationName(relation));

	return hash_bytes_extended((unsigned char *) name, strlen(name), 0);
}

void
table_copy_send_definition(Relation relation, uint64 table_id, const char *definition, uint64 base)
{
	StringInfoData payload;

	initStringInfo(&payload);
	writeset_begin(&payload);
	writeset_put_certified_key(&payload, certified_name_hash(relation), CERTIFIER_TABLE_EXCLUSIVE, 0);
	writeset_put_table_create(&payload, table_id, get_namespace_name(RelationGetNamespace(relation)),
							  RelationGetRelationName(relation), definition);
	propose_one(&payload, base, 1);
}

void
table_copy_send_forget(uint64 table_id)
{
	StringInfoData payload;

	initStringInfo(&payload);
	writeset_begin(&payload);
	writeset_put_table_forget(&payload, table_id);
	propose_one(&payload, turn_applied_index(), 0);
}

static void
send_chunk(RowSender *sender)
{
	StringInfoData payload;

	if (sender->chunk_rows == 0)
		return;
	initStringInfo(&payload);
	writeset_begin(&payload);
	writeset_put_table_rows(&payload, sender->table_id, sender->chunk_rows);
	appendBinaryStringInfo(&payload, sender->rows.data, sender->rows.len);
	propose_one(&payload, turn_applied_index(), 0);
	sender->sent_rows += sender->chunk_rows;
	sender->chunk_rows = 0;
	resetStringInfo(&sender->rows);
}

static void
report_progress(RowSender *sender)
{
	TimestampTz now = GetCurrentTimestamp();
	double		estimate = sender->relation->rd_rel->reltuples;

	if (!TimestampDifferenceExceeds(sender->last_report, now, PROGRESS_INTERVAL_MS))
		return;
	sender->last_report = now;
	if (estimate >= sender->sent_rows)
		ereport(NOTICE,
				(errmsg("copied " UINT64_FORMAT " of about %.0f rows of table \"%s\"",
						sender->sent_rows, estimate, RelationGetRelationName(sender->relation))));
	else
		ereport(NOTICE,
				(errmsg("copied " UINT64_FORMAT " rows of table \"%s\"",
						sender->sent_rows, RelationGetRelationName(sender->relation))));
}

static void
add_row(RowSender *sender, TupleTableSlot *slot)
{
	slot_getallattrs(slot);
	writeset_put_row(&sender->rows, sender->relation, slot);
	sender->chunk_rows++;
	if (sender->chunk_rows < CHUNK_ROWS && sender->rows.len < CHUNK_BYTES)
		return;
	send_chunk(sender);
	report_progress(sender);
}

uint64
table_copy_send_rows(Relation relation, uint64 table_id)
{
	/* Newer than the lock whatever the isolation level: rows committed before we got the lock must be among them. */
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TableScanDesc scan = table_beginscan(relation, snapshot, 0, NULL);
	TupleTableSlot *slot = table_slot_create(relation, NULL);
	MemoryContext row_context = AllocSetContextCreate(CurrentMemoryContext, "quorum row copy", ALLOCSET_DEFAULT_SIZES);
	RowSender	sender = {.relation = relation, .table_id = table_id, .last_report = GetCurrentTimestamp()};

	initStringInfo(&sender.rows);
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		MemoryContext old_context = MemoryContextSwitchTo(row_context);

		CHECK_FOR_INTERRUPTS();
		add_row(&sender, slot);
		MemoryContextSwitchTo(old_context);
		MemoryContextReset(row_context);
	}
	send_chunk(&sender);
	pfree(sender.rows.data);
	MemoryContextDelete(row_context);
	ExecDropSingleTupleTableSlot(slot);
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	return sender.sent_rows;
}
