/*
 * row_apply.c
 *	  Changes rows of replicated tables as the log says.  Process: apply worker, inside its transaction.
 *
 * What the log says was decided and checked where the statement ran.  Here it is stored as it is: no triggers fire (their effects are in the
 * log as rows of their own, so firing them once more would make the nodes differ), no constraints are evaluated, defaults and
 * generated columns come as values.  Unique indexes are maintained, and so a violation shows that the nodes differ already.
 *
 * Must never skip a change: a row that is not there, or is there already, is an error that stops this node; but in a table that is
 * quarantined on this node, which nobody reads and which is known to differ, a row that is missing is left to the repair.
 *
 * Invariants
 *	 1. Tables stay open and locked (ROW EXCLUSIVE) to the end of the local transaction, so their shape does not change within it.
 *	 2. Code of users, in index expressions and types, runs as the owner of the table, never as the superuser that this process is.
 *
 * Locks: ROW EXCLUSIVE on each table; row locks.  Waiting for any of them wakes the lock watcher.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "apply/apply_internal.h"
#include "shared/replicated_tables.h"
#include "shared/sequences.h"

/* A table that the current local transaction writes. */
typedef struct OpenTable
{
	struct OpenTable *next;
	uint64		table_id;
	Relation	relation;
	Oid			primary_key;
	Oid			owner;
	bool		owner_is_superuser;
	bool		is_quarantined; /* it differs from the other nodes' */
	EState	   *estate;
	ResultRelInfo *result;
	TupleTableSlot *key_slot;	/* from the log: only the primary key's columns */
	TupleTableSlot *found_slot; /* the row with that key */
	TupleTableSlot *new_slot;	/* from the log */
} OpenTable;

static OpenTable *open_tables = NULL;	/* in TopTransactionContext */
static OpenTable *noted_table = NULL;	/* the last one that was told to apply_note_table */
static uint64 changed_rows = 0;

/* ---- tables ---- */

static Relation
open_relation(uint64 table_id, char expected_state)
{
	const ReplicatedTable *table = replicated_table_by_id(table_id);
	Relation	relation;
	Oid			relid;

	if (table == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the log changes table number %llu, which is not known here", (unsigned long long) table_id)));
	relid = table->relid;
	if (table->state != expected_state)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the log changes table number %llu (OID %u), which is in state \"%c\" here instead of \"%c\"",
						(unsigned long long) table_id, relid, table->state, expected_state)));
	relation = try_table_open(relid, RowExclusiveLock);
	if (relation == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("replicated table with OID %u was dropped on this node", relid)));
	if (relation->rd_rel->relkind != RELKIND_RELATION)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not an ordinary table", RelationGetRelationName(relation))));
	return relation;
}

static void
make_executor_state(OpenTable *table)
{
	RangeTblEntry *entry = makeNode(RangeTblEntry);
	TupleDesc	descriptor = RelationGetDescr(table->relation);

	table->estate = CreateExecutorState();
	entry->rtekind = RTE_RELATION;
	entry->relid = RelationGetRelid(table->relation);
	entry->relkind = table->relation->rd_rel->relkind;
	entry->rellockmode = RowExclusiveLock;
	ExecInitRangeTable(table->estate, list_make1(entry));
	table->result = makeNode(ResultRelInfo);
	InitResultRelInfo(table->result, table->relation, 1, NULL, 0);
	ExecOpenIndices(table->result, false);
	table->key_slot = ExecInitExtraTupleSlot(table->estate, descriptor, &TTSOpsVirtual);
	table->new_slot = ExecInitExtraTupleSlot(table->estate, descriptor, &TTSOpsVirtual);
	table->found_slot = table_slot_create(table->relation, &table->estate->es_tupleTable);
}

static OpenTable *
open_table(uint64 table_id, char expected_state)
{
	OpenTable  *table;
	MemoryContext old_context;

	for (table = open_tables; table != NULL; table = table->next)
		if (table->table_id == table_id)
			return table;

	old_context = MemoryContextSwitchTo(TopTransactionContext);
	table = palloc0(sizeof(OpenTable));
	table->table_id = table_id;
	table->relation = open_relation(table_id, expected_state);
	table->primary_key = RelationGetPrimaryKeyIndex(table->relation);
	if (!OidIsValid(table->primary_key))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("replicated table \"%s\" has no primary key", RelationGetRelationName(table->relation))));
	table->is_quarantined = replicated_table_by_id(table_id)->quarantined_index != 0;
	table->owner = table->relation->rd_rel->relowner;
	table->owner_is_superuser = superuser_arg(table->owner);
	make_executor_state(table);
	table->next = open_tables;
	open_tables = table;
	MemoryContextSwitchTo(old_context);
	return table;
}

void
row_apply_close_tables(void)
{
	noted_table = NULL;
	while (open_tables != NULL)
	{
		OpenTable  *table = open_tables;

		open_tables = table->next;
		ExecCloseIndices(table->result);
		ExecResetTupleTable(table->estate->es_tupleTable, false);
		FreeExecutorState(table->estate);
		table_close(table->relation, NoLock);
		pfree(table);
	}
}

void
row_apply_forget_tables(void)
{
	noted_table = NULL;
	open_tables = NULL;
}

uint64
row_apply_take_count(void)
{
	uint64		count = changed_rows;

	changed_rows = 0;
	return count;
}

/* ---- rows ---- */

static void
insert_row(OpenTable *table, WriteSetReader *reader)
{
	writeset_read_row(reader, table->relation, table->new_slot);
	simple_table_tuple_insert(table->relation, table->new_slot);
	if (table->result->ri_NumIndices > 0)
		list_free(ExecInsertIndexTuples(table->result, table->new_slot, table->estate, false, false, NULL, NIL));
}

static void
report_missing_row(OpenTable *table)
{
	Relation	index = index_open(table->primary_key, AccessShareLock);
	Datum		values[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS];
	char	   *key;

	FormIndexDatum(BuildIndexInfo(index), table->key_slot, table->estate, values, nulls);
	key = BuildIndexValueDescription(index, values, nulls);
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("a row that the log changes is missing from table \"%s\"", RelationGetRelationName(table->relation)),
			 key ? errdetail("Key %s.", key) : 0,
			 errhint("The table differs from the other nodes'.")));
}

/*
 * Waits for local transactions that hold the row.  An update that changes the key takes the stronger lock itself.  False: it is
 * missing from a table of which that can be expected.
 */
static bool
find_row(OpenTable *table, WriteSetReader *reader)
{
	writeset_read_key(reader, table->relation, table->key_slot);
	if (!RelationFindReplTupleByIndex(table->relation, table->primary_key, LockTupleNoKeyExclusive,
									  table->key_slot, table->found_slot))
	{
		if (table->is_quarantined)
			return false;
		report_missing_row(table);
	}
	return true;
}

static void
update_row(OpenTable *table, WriteSetReader *reader)
{
	bool		update_indexes;

	if (!find_row(table, reader))
	{
		writeset_read_row(reader, table->relation, table->new_slot);
		return;
	}
	writeset_read_row(reader, table->relation, table->new_slot);
	simple_table_tuple_update(table->relation, &table->found_slot->tts_tid, table->new_slot,
							  table->estate->es_snapshot, &update_indexes);
	if (table->result->ri_NumIndices > 0 && update_indexes)
		list_free(ExecInsertIndexTuples(table->result, table->new_slot, table->estate, true, false, NULL, NIL));
	ExecClearTuple(table->found_slot);
}

static void
delete_row(OpenTable *table, WriteSetReader *reader)
{
	if (!find_row(table, reader))
		return;
	simple_table_tuple_delete(table->relation, &table->found_slot->tts_tid, table->estate->es_snapshot);
	ExecClearTuple(table->found_slot);
}

/* A row of a repair is gone or put in as it is found: by its place, since no key leads to a damaged one for sure. */
static void
delete_at(OpenTable *table, ItemPointer tid)
{
	simple_table_tuple_delete(table->relation, tid, table->estate->es_snapshot);
}

/* One change, as the table's owner; what it allocates is gone afterwards.  With a tid: the row there is deleted. */
static void
change_row(OpenTable *table, WriteSetReader *reader, WriteSetOperation operation, ItemPointer tid)
{
	MemoryContext old_context = MemoryContextSwitchTo(GetPerTupleMemoryContext(table->estate));
	Oid			saved_user;
	int			saved_security_context;
	int			guc_level = NewGUCNestLevel();

	GetUserIdAndSecContext(&saved_user, &saved_security_context);
	SetUserIdAndSecContext(table->owner, table->owner_is_superuser ? saved_security_context :
						   saved_security_context | SECURITY_RESTRICTED_OPERATION);
	if (tid != NULL)
		delete_at(table, tid);
	else if (operation == WRITESET_UPDATE)
		update_row(table, reader);
	else if (operation == WRITESET_DELETE)
		delete_row(table, reader);
	else
		insert_row(table, reader);
	AtEOXact_GUC(false, guc_level);
	SetUserIdAndSecContext(saved_user, saved_security_context);
	CommandCounterIncrement();
	changed_rows++;
	ExecClearTuple(table->new_slot);
	ExecClearTuple(table->key_slot);
	MemoryContextSwitchTo(old_context);
	ResetPerTupleExprContext(table->estate);
}

static void
note_table(OpenTable *table)
{
	if (table == noted_table)
		return;
	noted_table = table;
	apply_note_table(get_namespace_name(RelationGetNamespace(table->relation)), RelationGetRelationName(table->relation));
}

void
row_apply_change(WriteSetReader *reader, WriteSetOperation operation, uint64 table_id)
{
	OpenTable  *table = open_table(table_id, REPLICATED_TABLE_ACTIVE);

	note_table(table);
	change_row(table, reader, operation, NULL);
}

void
row_apply_sequence(WriteSetReader *reader, uint64 table_id)
{
	const ReplicatedTable *table = replicated_table_by_id(table_id);
	uint16		column = writeset_read_u16(reader);
	int64		value = (int64) writeset_read_u64(reader);

	if (table != NULL)
		sequence_advance(table->relid, column, value);
}

void
row_apply_copied_rows(WriteSetReader *reader, uint64 table_id)
{
	OpenTable  *table = open_table(table_id, REPLICATED_TABLE_COPYING);
	uint32		count = writeset_read_u32(reader);

	note_table(table);
	for (uint32 i = 0; i < count; i++)
	{
		CHECK_FOR_INTERRUPTS();
		change_row(table, reader, WRITESET_INSERT, NULL);
	}
}

void
row_apply_open_table(uint64 table_id)
{
	note_table(open_table(table_id, REPLICATED_TABLE_ACTIVE));
}

void
row_apply_delete_at(uint64 table_id, ItemPointer tid)
{
	change_row(open_table(table_id, REPLICATED_TABLE_ACTIVE), NULL, WRITESET_DELETE, tid);
}

void
row_apply_put_row(uint64 table_id, const char *bytes, uint32 length)
{
	WriteSetReader reader;

	writeset_read_rows_begin(&reader, bytes, length);
	change_row(open_table(table_id, REPLICATED_TABLE_ACTIVE), &reader, WRITESET_INSERT, NULL);
	pfree(reader.data.data);
}
