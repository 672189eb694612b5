/*
 * check_apply.c
 *	  Entries of the log that check tables: each node sums a table's rows up as they are at that index, tells its sum, and a copy
 *	  that differs is compared and repaired.
 *
 * Process: apply worker, inside its transaction; each of these entries has a local transaction of its own, whose turn it is.  So
 * nothing of the log after it is in the tables, and all that is before: whoever takes a snapshot during the entry has exactly the
 * log's prefix.
 *
 * Must never hold up the log for a check: what cannot be had at once is skipped, and the others are told.  Nor raise an error for
 * what a check meets: all of it is about this node alone.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "apply/apply_internal.h"
#include "shared/check_job.h"
#include "shared/repair_file.h"
#include "shared/replicated_tables.h"
#include "shared/shmem.h"
#include "shared/table_health.h"

static uint32
own_node_id(void)
{
	return QuorumShmem->identity.node_id;
}

/* NULL: it was unreplicated before this entry, on all nodes alike. */
static const ReplicatedTable *
active_table(uint64 table_id)
{
	const ReplicatedTable *table = replicated_table_by_id(table_id);

	return table != NULL && table->state == REPLICATED_TABLE_ACTIVE ? table : NULL;
}

static void
begin_check(WriteSetReader *reader, uint64 table_id, uint64 log_index, uint32 origin_node)
{
	bool		gently = writeset_read_u8(reader) != 0;
	const ReplicatedTable *table = active_table(table_id);

	if (table == NULL)
		return;
	if (!check_job_hand_over(CHECK_JOB_SUM, log_index, table_id, table->relid, gently))
		check_job_note_skipped(log_index, table_id);
	table_check_note(log_index, table_id, origin_node);
}

static CheckOutcome
read_outcome(WriteSetReader *reader)
{
	uint8		byte = writeset_read_u8(reader);

	if (byte != CHECK_DONE && byte != CHECK_SKIPPED && byte != CHECK_FAILED)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("malformed write set: unknown outcome of a check")));
	return (CheckOutcome) byte;
}

static void
note_result(WriteSetReader *reader, uint64 table_id, uint32 origin_node)
{
	uint64		check_index = writeset_read_u64(reader);
	CheckOutcome outcome = read_outcome(reader);
	TableSum	sum;

	sum.row_count = writeset_read_u64(reader);
	sum.hash.high = writeset_read_u64(reader);
	sum.hash.low = writeset_read_u64(reader);
	if (active_table(table_id) == NULL || !table_check_note_result(check_index, table_id, origin_node, outcome, &sum))
		return;
	ForceSyncCommit();			/* whoever learns of it from here may act on it: a quarantine is not to be forgotten */
	table_health_judge(check_index, table_id, own_node_id());
}

/* ---- repair ---- */

static void
perform_correction(uint64 table_id, RepairRecord *record)
{
	switch (record->type)
	{
		case REPAIR_EMPTY:
			table_apply_renew(replicated_table_by_id(table_id)->relid);
			break;
		case REPAIR_DELETE:
			row_apply_delete_at(table_id, &record->tid);
			break;
		case REPAIR_INSERT:
			row_apply_put_row(table_id, record->row, record->length);
			break;
		case REPAIR_END:
			break;
	}
}

/* Insertions in a second turn: what is put in may have a unique key that a row has which is to go. */
static void
perform_corrections(RepairReader *corrections, uint64 table_id, bool insertions)
{
	RepairRecord record;

	repair_file_rewind(corrections);
	while (repair_file_next(corrections, &record))
	{
		CHECK_FOR_INTERRUPTS();
		if ((record.type == REPAIR_INSERT) == insertions)
			perform_correction(table_id, &record);
		if (record.row != NULL)
			pfree(record.row);
	}
}

static void
perform_repair(uint64 table_id, uint64 nonce)
{
	RepairReader *corrections = repair_file_open(table_id, nonce);

	perform_corrections(corrections, table_id, false);
	perform_corrections(corrections, table_id, true);
	row_apply_close_tables();
	repair_file_close(corrections);
}

/* In a subtransaction: if it fails, the session is told, and the log goes on with the copy as it was. */
static void
try_repair(uint64 table_id, uint64 nonce, uint64 log_index)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	row_apply_close_tables();
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		perform_repair(table_id, nonce);
		table_health_note_repaired(log_index, table_id);
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		ForceSyncCommit();
		compare_session_finish(NULL);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		row_apply_forget_tables();
		compare_session_finish(error->message);
		FreeErrorData(error);
	}
	PG_END_TRY();
}

/*
 * On the donor the snapshot is held for the other node; there the log stands still while the session compares, if the rows are to
 * be repaired: what it finds is to be put right before anything else changes them.
 */
static void
compare_tables(WriteSetReader *reader, uint64 table_id, uint64 log_index)
{
	uint32		node_id = writeset_read_u32(reader);
	uint32		donor_id = writeset_read_u32(reader);
	uint64		nonce = writeset_read_u64(reader);
	const ReplicatedTable *table = active_table(table_id);

	if (table == NULL)
		return;
	if (donor_id == own_node_id() && table->quarantined_index == 0)
		(void) check_job_hand_over(CHECK_JOB_HOLD, log_index, table_id, table->relid, false);
	if (node_id != own_node_id())
		return;
	row_apply_open_table(table_id);	/* no VACUUM FULL moves rows from here on */
	if (compare_session_hand_over(nonce) == COMPARE_REPAIR)
		try_repair(table_id, nonce, log_index);
}

void
check_apply_operation(WriteSetReader *reader, WriteSetOperation operation, uint64 table_id, uint64 log_index, uint32 origin_node)
{
	switch (operation)
	{
		case WRITESET_TABLE_CHECK:
			begin_check(reader, table_id, log_index, origin_node);
			break;
		case WRITESET_CHECK_RESULT:
			note_result(reader, table_id, origin_node);
			break;
		case WRITESET_TABLE_COMPARE:
			compare_tables(reader, table_id, log_index);
			break;
		default:
			elog(ERROR, "operation %d is none of a check", (int) operation);
	}
}
