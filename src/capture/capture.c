/*
 * capture.c
 *	  The write set of the current transaction: row triggers put changes in, savepoints take them out, the gate encodes it.
 *
 * Process: client backend.  Must never lose a change: what the server counts as written to a replicated table and what was
 * captured are compared before a commit.
 *
 * Order: see change_order.h.
 *
 * Insertions that the server takes back (ON CONFLICT that met a concurrent insertion) stay counted, as inserted and deleted.  They are found when
 * a statement ends that no other changing statement surrounds, because nothing can be uncaptured then.  Only if such a statement contained inner
 * ones as well, the order is lost, and the transaction has to be tried again.
 *
 * Invariants
 *	 1. `data` is the changes in the order of capture, without gaps; marks[] say how long it was when a savepoint's changes began.
 *	 2. counted rows - skew - captured rows = rows changed and not captured yet; zero while no changing statement runs.
 *	 3. TRUNCATE makes the server's counts of the table's earlier changes disappear, of those outside of its savepoint when that is released: from then
 *		on the counts prove nothing (counts_are_known).
 *
 * Locks: none.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "libpq/pqformat.h"
#include "pgstat.h"
#include "tcop/utility.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "apply/apply.h"
#include "capture/capture.h"
#include "capture/certified_keys.h"
#include "capture/change_order.h"
#include "capture/row_keys.h"
#include "capture/truncated_tables.h"
#include "capture/written_tables.h"
#include "config.h"
#include "shared/commit_token.h"
#include "shared/replicated_tables.h"
#include "shared/sequences.h"
#include "shared/writeset.h"

PG_FUNCTION_INFO_V1(quorum_capture_trigger);
PG_FUNCTION_INFO_V1(quorum_capture_truncate);

#define INITIAL_CHANGES 64
#define INITIAL_MARKS 8
#define INITIAL_TABLES 8
#define STATEMENT_OPEN PG_UINT32_MAX	/* places_before of a change whose statement has not ended */

typedef struct CapturedChange
{
	uint32		offset;			/* in data */
	uint32		length;
	uint32		places_before;	/* free places to leave before it, or STATEMENT_OPEN */
} CapturedChange;

/* State at the first change within a subtransaction. */
typedef struct SavepointMark
{
	int			nest_level;
	uint32		change_count;
	int			data_length;
	RowCounts	captured;
	RowCounts	skew;
} SavepointMark;

typedef struct WriteSet
{
	bool		begun;			/* all below is valid, and lives in TopTransactionContext */
	StringInfoData data;
	CapturedChange *changes;
	uint32		change_count;
	uint32		change_capacity;
	SavepointMark *marks;
	int			mark_count;
	int			mark_capacity;
	RowCounts	captured;
	RowCounts	skew;			/* counted, and not to be captured: taken back; before replicate() or after unreplicate() */
	bool		order_is_lost;
	bool		counts_are_known;
	bool		restarts_identity;	/* a TRUNCATE did, though it may have been rolled back */
	uint64	   *inserted_tables;	/* whose sequences may have moved; their insertions may have been rolled back */
	int			inserted_table_count;
	int			inserted_table_capacity;
} WriteSet;

static WriteSet write_set;

/* Changing statements (not plain SELECT) that are being executed right now, one within the other. */
static int	changing_statements = 0;

/* Of the TRUNCATE that is being executed. */
static bool truncate_restarts_identity = false;

static ExecutorRun_hook_type previous_executor_run = NULL;
static ExecutorFinish_hook_type previous_executor_finish = NULL;
static ProcessUtility_hook_type previous_process_utility = NULL;

/* ---- beginning and end ---- */

static void
begin_write_set(void)
{
	MemoryContext old_context;

	if (write_set.begun)
		return;
	gate_check_may_write();
	if (!pgstat_track_counts)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("replicated tables cannot be written while track_counts is off"),
				 errhint("Set track_counts to on.")));
	old_context = MemoryContextSwitchTo(TopTransactionContext);
	memset(&write_set, 0, sizeof(write_set));
	initStringInfo(&write_set.data);
	write_set.change_capacity = INITIAL_CHANGES;
	write_set.changes = palloc(INITIAL_CHANGES * sizeof(CapturedChange));
	write_set.mark_capacity = INITIAL_MARKS;
	write_set.marks = palloc(INITIAL_MARKS * sizeof(SavepointMark));
	write_set.inserted_table_capacity = INITIAL_TABLES;
	write_set.inserted_tables = palloc(INITIAL_TABLES * sizeof(uint64));
	MemoryContextSwitchTo(old_context);
	write_set.counts_are_known = true;
	write_set.begun = true;
}

void
capture_reset(void)
{
	memset(&write_set, 0, sizeof(write_set));	/* its memory goes with the transaction */
	truncated_tables_set(NIL);
	certified_keys_reset();
}

bool
capture_is_empty(void)
{
	return write_set.change_count == 0;
}

/* ---- savepoints ---- */

/* Before the first change within a subtransaction: what to go back to. */
static void
mark_savepoint(void)
{
	int			nest_level = GetCurrentTransactionNestLevel();
	SavepointMark *mark;

	if (nest_level <= 1 ||
		(write_set.mark_count > 0 && write_set.marks[write_set.mark_count - 1].nest_level >= nest_level))
		return;
	if (write_set.mark_count == write_set.mark_capacity)
	{
		write_set.mark_capacity *= 2;
		write_set.marks = repalloc(write_set.marks, write_set.mark_capacity * sizeof(SavepointMark));
	}
	mark = &write_set.marks[write_set.mark_count++];
	mark->nest_level = nest_level;
	mark->change_count = write_set.change_count;
	mark->data_length = write_set.data.len;
	mark->captured = write_set.captured;
	mark->skew = write_set.skew;
}

static void
roll_back_to(const SavepointMark *mark)
{
	write_set.change_count = mark->change_count;
	write_set.data.len = mark->data_length;
	write_set.captured = mark->captured;
	write_set.skew = mark->skew;
}

/* The changes of a released savepoint belong to the level above, which keeps its own mark if it has one. */
static void
release_savepoint(int nest_level)
{
	SavepointMark *top = &write_set.marks[write_set.mark_count - 1];
	int			level_below = write_set.mark_count > 1 ? top[-1].nest_level : 1;

	if (top->nest_level != nest_level)
		return;
	if (level_below == nest_level - 1)
		write_set.mark_count--;
	else
		top->nest_level = nest_level - 1;
}

static void
subtransaction_callback(SubXactEvent event, SubTransactionId id, SubTransactionId parent_id, void *argument)
{
	int			nest_level = GetCurrentTransactionNestLevel();

	if (!write_set.begun || write_set.mark_count == 0)
		return;
	if (event == SUBXACT_EVENT_COMMIT_SUB)
		release_savepoint(nest_level);
	else if (event == SUBXACT_EVENT_ABORT_SUB)
		while (write_set.mark_count > 0 && write_set.marks[write_set.mark_count - 1].nest_level >= nest_level)
			roll_back_to(&write_set.marks[--write_set.mark_count]);
}

/* ---- putting changes in ---- */

static void
check_size(void)
{
	if ((Size) write_set.data.len > (Size) quorum_max_transaction_kb * 1024)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("transaction is too large to be replicated"),
				 errdetail("Its write set has more than %d kB; quorum.max_transaction_size is %d kB.",
						   write_set.data.len / 1024, quorum_max_transaction_kb),
				 errhint("Split it into smaller transactions, or raise the limit.")));
}

/* The bytes from `offset` on are a whole change. */
static void
add_change(uint32 offset, uint32 places_before)
{
	CapturedChange *change;

	check_size();
	if (write_set.change_count == write_set.change_capacity)
	{
		write_set.change_capacity *= 2;
		write_set.changes = repalloc_huge(write_set.changes,
										  (Size) write_set.change_capacity * sizeof(CapturedChange));
	}
	change = &write_set.changes[write_set.change_count++];
	change->offset = offset;
	change->length = write_set.data.len - offset;
	change->places_before = places_before;
}

static void
note_inserted_table(uint64 table_id)
{
	for (int i = write_set.inserted_table_count - 1; i >= 0; i--)
		if (write_set.inserted_tables[i] == table_id)
			return;
	if (write_set.inserted_table_count == write_set.inserted_table_capacity)
	{
		write_set.inserted_table_capacity *= 2;
		write_set.inserted_tables = repalloc(write_set.inserted_tables,
											 write_set.inserted_table_capacity * sizeof(uint64));
	}
	write_set.inserted_tables[write_set.inserted_table_count++] = table_id;
}

void
capture_add_control(const char *bytes, Size length, uint64 table_id, Oid relid)
{
	uint32		offset;

	begin_write_set();
	mark_savepoint();
	offset = write_set.data.len;
	appendBinaryStringInfo(&write_set.data, bytes, length);
	add_change(offset, 0);
	certified_keys_add_lock(row_keys_table_hash(table_id), CERTIFIER_TABLE_EXCLUSIVE, table_id, relid, InvalidOid, NULL);
	if (bytes[0] == WRITESET_TABLE_ACTIVATE)	/* it brings its rows, hence the state of its sequences */
		note_inserted_table(table_id);
	write_set.skew = row_counts_minus(written_row_counts(), write_set.captured);
}

static uint64
id_of_table(Relation relation)
{
	const ReplicatedTable *table = replicated_table_by_relid(RelationGetRelid(relation));

	if (table == NULL)
	{
		replicated_tables_invalidate();
		table = replicated_table_by_relid(RelationGetRelid(relation));
	}
	if (table == NULL || table->state != REPLICATED_TABLE_ACTIVE)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" is not replicated, but has the trigger of a replicated table",
						RelationGetRelationName(relation)),
				 errhint("Drop that trigger, and call quorum.replicate() if the table is to be replicated.")));
	return table->table_id;
}

static void
capture_row(const TriggerData *trigger)
{
	Relation	relation = trigger->tg_relation;
	StringInfo	data = &write_set.data;
	uint64		table_id = id_of_table(relation);
	uint32		offset;

	begin_write_set();
	mark_savepoint();
	truncated_tables_check(relation);
	certified_keys_note_table(RelationGetRelid(relation));	/* who writes without a plan, as logical replication does */
	offset = data->len;
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
	{
		pq_sendbyte(data, WRITESET_INSERT);
		pq_sendint64(data, table_id);
		writeset_put_row(data, relation, trigger->tg_trigslot);
		row_keys_add_insert(relation, table_id, trigger->tg_trigslot);
		write_set.captured.inserted++;
		note_inserted_table(table_id);
	}
	else if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
	{
		pq_sendbyte(data, WRITESET_UPDATE);
		pq_sendint64(data, table_id);
		writeset_put_key(data, relation, trigger->tg_trigslot);
		writeset_put_row(data, relation, trigger->tg_newslot);
		row_keys_add_update(relation, table_id, trigger->tg_trigslot, trigger->tg_newslot);
		write_set.captured.updated++;
	}
	else
	{
		pq_sendbyte(data, WRITESET_DELETE);
		pq_sendint64(data, table_id);
		writeset_put_key(data, relation, trigger->tg_trigslot);
		row_keys_add_delete(relation, table_id, trigger->tg_trigslot);
		write_set.captured.deleted++;
	}
	add_change(offset, STATEMENT_OPEN);
}

Datum
quorum_capture_trigger(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_AFTER(trigger->tg_event) || !TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("quorum.capture() must be called as an AFTER ROW trigger"),
				 errhint("quorum.replicate() makes that trigger.")));
	if (!am_apply_worker)
		capture_row(trigger);
	return PointerGetDatum(NULL);
}

/* The lock of the table that TRUNCATE has is found when the keys are encoded. */
static void
capture_truncate(Relation relation)
{
	uint64		table_id = id_of_table(relation);
	uint32		offset;

	begin_write_set();
	mark_savepoint();
	offset = write_set.data.len;
	writeset_put_truncate(&write_set.data, table_id, truncate_restarts_identity);
	write_set.restarts_identity |= truncate_restarts_identity;
	add_change(offset, 0);
	truncated_tables_note(relation);
	if (GetCurrentTransactionNestLevel() > 1)
		write_set.counts_are_known = false;
}

Datum
quorum_capture_truncate(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("quorum.capture_truncate() must be called as a TRUNCATE trigger")));
	if (!am_apply_worker)
		capture_truncate(trigger->tg_relation);
	return PointerGetDatum(NULL);
}

/* ---- the end of a statement ---- */

static bool
is_out_of_order(uint32 first_change)
{
	for (uint32 i = first_change; i < write_set.change_count; i++)
		if (write_set.changes[i].places_before != 0 && write_set.changes[i].places_before != STATEMENT_OPEN)
			return true;
	return false;
}

/* Counted, and neither captured nor known to be no change. */
static RowCounts
uncaptured_rows(void)
{
	return row_counts_minus(row_counts_minus(written_row_counts(), write_set.skew), write_set.captured);
}

static bool
are_taken_back(RowCounts counts)
{
	return counts.updated == 0 && counts.inserted > 0 && counts.inserted == counts.deleted;
}

/* Nothing should be uncaptured now.  What else than taken-back insertions is, makes the commit fail. */
static void
end_outermost_statement(uint32 first_change)
{
	RowCounts	uncaptured = uncaptured_rows();

	if (!are_taken_back(uncaptured))
		return;
	mark_savepoint();
	write_set.skew.inserted += uncaptured.inserted;
	write_set.skew.deleted += uncaptured.deleted;
	if (is_out_of_order(first_change))
		write_set.order_is_lost = true;
}

/* Everything that the statement changed is captured; what is changed and not captured belongs to statements around it. */
static void
end_statement(uint32 first_change)
{
	uint32		places_before = 0;

	if (!write_set.begun)
		return;
	if (changing_statements == 0)
		end_outermost_statement(first_change);
	else if (write_set.change_count > first_change)
	{
		places_before = (uint32) Max(row_counts_total(uncaptured_rows()), 0);
		write_set.order_is_lost |= !write_set.counts_are_known;
	}
	for (uint32 i = first_change; i < write_set.change_count; i++)
		if (write_set.changes[i].places_before == STATEMENT_OPEN)
			write_set.changes[i].places_before = places_before;
}

static bool
is_changing(const QueryDesc *query)
{
	return query->operation != CMD_SELECT || query->plannedstmt->hasModifyingCTE;
}

static void
run_query(QueryDesc *query, ScanDirection direction, uint64 count, bool execute_once)
{
	if (previous_executor_run)
		previous_executor_run(query, direction, count, execute_once);
	else
		standard_ExecutorRun(query, direction, count, execute_once);
}

static void
executor_run(QueryDesc *query, ScanDirection direction, uint64 count, bool execute_once)
{
	if (!is_changing(query))
	{
		run_query(query, direction, count, execute_once);
		return;
	}
	changing_statements++;
	PG_TRY();
	{
		run_query(query, direction, count, execute_once);
	}
	PG_FINALLY();
	{
		changing_statements--;
	}
	PG_END_TRY();
}

static void
finish_query(QueryDesc *query)
{
	if (previous_executor_finish)
		previous_executor_finish(query);
	else
		standard_ExecutorFinish(query);
}

static void
executor_finish(QueryDesc *query)
{
	uint32		first_change = write_set.change_count;

	if (!is_changing(query))
	{
		finish_query(query);
		return;
	}
	changing_statements++;
	PG_TRY();
	{
		finish_query(query);
	}
	PG_FINALLY();
	{
		changing_statements--;
	}
	PG_END_TRY();
	end_statement(first_change);
}

static void
run_utility(PlannedStmt *statement, const char *query_string, bool read_only_tree, ProcessUtilityContext context,
			ParamListInfo parameters, QueryEnvironment *environment, DestReceiver *destination,
			QueryCompletion *completion)
{
	if (previous_process_utility)
		previous_process_utility(statement, query_string, read_only_tree, context, parameters, environment,
								 destination, completion);
	else
		standard_ProcessUtility(statement, query_string, read_only_tree, context, parameters, environment,
								destination, completion);
}

/* COPY is the only other statement that fires row triggers at its end. */
static void
run_copy(PlannedStmt *statement, const char *query_string, bool read_only_tree, ProcessUtilityContext context,
		 ParamListInfo parameters, QueryEnvironment *environment, DestReceiver *destination, QueryCompletion *completion)
{
	uint32		first_change = write_set.change_count;

	changing_statements++;
	PG_TRY();
	{
		run_utility(statement, query_string, read_only_tree, context, parameters, environment, destination, completion);
	}
	PG_FINALLY();
	{
		changing_statements--;
	}
	PG_END_TRY();
	end_statement(first_change);
}

/* The rows that it does away with are counted no more.  One of its triggers may run another TRUNCATE. */
static void
run_truncate(PlannedStmt *statement, const char *query_string, bool read_only_tree, ProcessUtilityContext context,
			 ParamListInfo parameters, QueryEnvironment *environment, DestReceiver *destination, QueryCompletion *completion)
{
	RowCounts	counted = write_set.begun ? written_row_counts() : (RowCounts) {0, 0, 0};
	bool		outer_restarts_identity = truncate_restarts_identity;
	List	   *outer_tables = truncated_tables_get();

	truncate_restarts_identity = castNode(TruncateStmt, statement->utilityStmt)->restart_seqs;
	PG_TRY();
	{
		run_utility(statement, query_string, read_only_tree, context, parameters, environment, destination, completion);
	}
	PG_FINALLY();
	{
		truncate_restarts_identity = outer_restarts_identity;
		truncated_tables_set(outer_tables);
	}
	PG_END_TRY();
	if (write_set.begun)
		write_set.skew = row_counts_minus(write_set.skew, row_counts_minus(counted, written_row_counts()));
}

static void
process_utility(PlannedStmt *statement, const char *query_string, bool read_only_tree, ProcessUtilityContext context,
				ParamListInfo parameters, QueryEnvironment *environment, DestReceiver *destination,
				QueryCompletion *completion)
{
	if (IsA(statement->utilityStmt, CopyStmt))
		run_copy(statement, query_string, read_only_tree, context, parameters, environment, destination, completion);
	else if (IsA(statement->utilityStmt, TruncateStmt))
		run_truncate(statement, query_string, read_only_tree, context, parameters, environment, destination, completion);
	else
		run_utility(statement, query_string, read_only_tree, context, parameters, environment, destination, completion);
}

/* ---- taking it out ---- */

static void
report_uncaptured(RowCounts missing)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("replicated tables were changed without being captured"),
			 errdetail("Rows inserted, updated and deleted that are missing from the write set: %lld, %lld and %lld.",
					   (long long) missing.inserted, (long long) missing.updated, (long long) missing.deleted),
			 errhint("A trigger \"" CAPTURE_TRIGGER_NAME "\" is disabled or missing, or track_counts was changed within the transaction.")));
}

/* A disabled trigger must not let nodes diverge, nor an unknown order. */
static void
check_completeness(void)
{
	RowCounts	missing = uncaptured_rows();

	check_no_uncaptured_writes(true);
	if (write_set.counts_are_known && (missing.inserted != 0 || missing.updated != 0 || missing.deleted != 0))
		report_uncaptured(missing);
	if (write_set.order_is_lost)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not commit: the order of this transaction's changes is not known"),
				 errdetail("A concurrent insertion, or TRUNCATE after a savepoint, disturbed it within a statement that makes others change rows."),
				 errhint("Retry the transaction; use TRUNCATE outside of savepoints.")));
}

static uint32
places_before_change(uint32 number)
{
	uint32		places = write_set.changes[number].places_before;

	return places == STATEMENT_OPEN ? 0 : places;
}

/*
 * Before the rows: where these are applied nextval() is past them by then.  But behind a TRUNCATE that starts the sequences again, which would do so
 * with what was said before it.
 */
static uint32
put_sequences(StringInfo payload)
{
	uint32		count = 0;

	for (int i = 0; i < write_set.inserted_table_count; i++)
	{
		uint64		table_id = write_set.inserted_tables[i];
		const ReplicatedTable *table = replicated_table_by_id(table_id);

		if (table != NULL)
			count += sequences_put(payload, table_id, table->relid);
	}
	return count;
}

void
capture_encode(StringInfo payload)
{
	uint32		sequence_count = 0;
	uint32		key_count;
	uint64		base;

	check_completeness();
	writeset_begin(payload);
	key_count = certified_keys_encode(payload, token_promise_highest_base(), &base);
	if (!write_set.restarts_identity)
		sequence_count = put_sequences(payload);
	if (is_out_of_order(0))
	{
		uint32	   *order = order_by_places(write_set.change_count, places_before_change);

		for (uint32 i = 0; i < write_set.change_count; i++)
		{
			CapturedChange *change = &write_set.changes[order[i]];

			appendBinaryStringInfo(payload, write_set.data.data + change->offset, change->length);
		}
		pfree(order);
	}
	else
		appendBinaryStringInfo(payload, write_set.data.data, write_set.data.len);
	if (write_set.restarts_identity)
		sequence_count = put_sequences(payload);
	writeset_finish(payload, base, 0, quorum_token[0] != '\0' ? commit_token_hash(quorum_token) : 0, key_count,
					write_set.change_count + sequence_count);
}

/* ---- set-up ---- */

/* A transaction without a write set must not have changed replicated tables either. */
static void
transaction_callback(XactEvent event, void *argument)
{
	if ((event != XACT_EVENT_PRE_COMMIT && event != XACT_EVENT_PRE_PREPARE) || am_apply_worker ||
		write_set.change_count > 0 || !TransactionIdIsValid(GetTopTransactionIdIfAny()) || !in_quorum_database())
		return;
	check_no_uncaptured_writes(false);
}

void
capture_init(void)
{
	RegisterXactCallback(transaction_callback, NULL);
	RegisterSubXactCallback(subtransaction_callback, NULL);
	previous_executor_run = ExecutorRun_hook;
	ExecutorRun_hook = executor_run;
	previous_executor_finish = ExecutorFinish_hook;
	ExecutorFinish_hook = executor_finish;
	previous_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}
