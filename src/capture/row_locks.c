/*
 * row_locks.c
 *	  What a transaction locks without writing it, and what a serializable one reads: rows, and the tables of its statements.
 *
 * Process: client backend.  Must never look at a row before the server has locked it.
 *
 * Row locks (SELECT … FOR UPDATE and its like, and the keys that foreign key checks lock through the same plan node) are taken by LockRows; its
 * ExecProcNode is wrapped, and each row that it returns is noted with its lock.  Rows that are locked and then not written,
 * or not returned, are seen in unwritten_rows.c.
 *
 * Reads of serializable transactions: index scans that fix all columns of the primary key are noted by key, whether there is such a row or not.
 * Whatever else scans a replicated table reads all of it.
 *
 * Locks: none.
 */
#include "postgres.h"

#include "access/relscan.h"
#include "access/skey.h"
#include "access/stratnum.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/execnodes.h"
#include "nodes/nodeFuncs.h"
#include "nodes/plannodes.h"
#include "parser/analyze.h"
#include "tcop/utility.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "apply/apply.h"
#include "capture/capture.h"
#include "capture/certified_keys.h"
#include "capture/row_keys.h"
#include "capture/unwritten_rows.h"
#include "capture/written_tables.h"
#include "shared/replicated_tables.h"

static ExecutorStart_hook_type previous_executor_start = NULL;
static ProcessUtility_hook_type previous_process_utility = NULL;
static post_parse_analyze_hook_type previous_post_parse_analyze = NULL;

/* The functions of the node types that are wrapped here; the same for all nodes of a type. */
static ExecProcNodeMtd exec_lock_rows = NULL;
static ExecProcNodeMtd exec_index_scan = NULL;
static ExecProcNodeMtd exec_index_only_scan = NULL;

static const ReplicatedTable *
active_table(Oid relid)
{
	const ReplicatedTable *table = replicated_table_by_relid(relid);

	return table != NULL && table->state == REPLICATED_TABLE_ACTIVE ? table : NULL;
}

/* ---- row locks ---- */

static CertifierMode
mode_of_mark(RowMarkType mark)
{
	switch (mark)
	{
		case ROW_MARK_EXCLUSIVE:
			return CERTIFIER_UPDATE;
		case ROW_MARK_NOKEYEXCLUSIVE:
			return CERTIFIER_NO_KEY_UPDATE;
		case ROW_MARK_SHARE:
			return CERTIFIER_SHARE;
		default:
			return CERTIFIER_KEY_SHARE;
	}
}

static void
note_locked_row(const ExecRowMark *mark)
{
	const ReplicatedTable *table = active_table(mark->relid);
	ItemPointerData row = mark->curCtid;

	if (table != NULL && mark->ermActive && ItemPointerIsValid(&row))
		row_keys_add_row_lock(mark->relation, table->table_id, &row, mode_of_mark(mark->markType));
}

static void
note_locked_rows(LockRowsState *node)
{
	ListCell   *cell;

	foreach(cell, node->lr_arowMarks)
		note_locked_row(((ExecAuxRowMark *) lfirst(cell))->rowmark);
}

static TupleTableSlot *
lock_rows(PlanState *node)
{
	TupleTableSlot *slot = exec_lock_rows(node);

	if (!TupIsNull(slot))
		note_locked_rows((LockRowsState *) node);
	unwritten_rows_are_noted((LockRowsState *) node);
	return slot;
}

static void
wrap(PlanState *node, ExecProcNodeMtd *original, ExecProcNodeMtd wrapper)
{
	if (node->ExecProcNodeReal == wrapper)
		return;
	*original = node->ExecProcNodeReal;
	ExecSetExecProcNode(node, wrapper);
}

/* ---- reads of serializable transactions ---- */

/* Do the keys of the scan say "equal" for each column of the index, once, and nothing else? */
static bool
is_point(const ScanKeyData *keys, int key_count, int column_count, Datum *values)
{
	if (key_count != column_count)
		return false;
	for (int i = 0; i < key_count; i++)
	{
		if (keys[i].sk_flags != 0 || keys[i].sk_attno != i + 1 || keys[i].sk_strategy != BTEqualStrategyNumber)
			return false;
		values[i] = keys[i].sk_argument;
	}
	return true;
}

/* An operator between different types, or another collation, is not what the hash of the index knows. */
static bool
compares_as_index(const ScanKeyData *keys, int key_count, Relation index)
{
	for (int i = 0; i < key_count; i++)
		if ((OidIsValid(keys[i].sk_subtype) && keys[i].sk_subtype != index->rd_opcintype[i]) ||
			keys[i].sk_collation != index->rd_indcollation[i])
			return false;
	return true;
}

/* With the keys of the scan as they are now: a nested loop changes them each time. */
static void
note_index_read(Relation relation, Relation index, const ScanKeyData *keys, int key_count)
{
	const ReplicatedTable *table = active_table(RelationGetRelid(relation));
	Datum		values[INDEX_MAX_KEYS];
	uint64		hash;

	if (table == NULL)
		return;
	if (is_point(keys, key_count, IndexRelationGetNumberOfKeyAttributes(index), values) &&
		compares_as_index(keys, key_count, index) &&
		row_keys_primary_hash(relation, table->table_id, RelationGetRelid(index), values, &hash))
		certified_keys_add_read(hash, table->table_id, RelationGetRelid(relation), RelationGetRelid(index));
	else
		certified_keys_add_table_read(table->table_id, RelationGetRelid(relation));
}

static TupleTableSlot *
index_scan(PlanState *node)
{
	IndexScanState *scan = (IndexScanState *) node;
	TupleTableSlot *slot = exec_index_scan(node);

	note_index_read(scan->ss.ss_currentRelation, scan->iss_RelationDesc, scan->iss_ScanKeys, scan->iss_NumScanKeys);
	return slot;
}

static TupleTableSlot *
index_only_scan(PlanState *node)
{
	IndexOnlyScanState *scan = (IndexOnlyScanState *) node;
	TupleTableSlot *slot = exec_index_only_scan(node);

	note_index_read(scan->ss.ss_currentRelation, scan->ioss_RelationDesc, scan->ioss_ScanKeys, scan->ioss_NumScanKeys);
	return slot;
}

static void
note_table_read(Relation relation)
{
	const ReplicatedTable *table = relation != NULL ? active_table(RelationGetRelid(relation)) : NULL;

	if (table != NULL)
		certified_keys_add_table_read(table->table_id, RelationGetRelid(relation));
}

/* What ON CONFLICT and MERGE find decides what they do. */
static void
note_modify_table(ModifyTableState *node)
{
	ModifyTable *plan = (ModifyTable *) node->ps.plan;

	for (int i = 0; i < node->mt_nrels; i++)
		if (plan->onConflictAction != ONCONFLICT_NONE || plan->operation == CMD_MERGE)
			note_table_read(node->resultRelInfo[i].ri_RelationDesc);
}

/* A row that is read by its place was found by another way first, but not necessarily in this transaction. */
static void
note_scan(PlanState *node)
{
	switch (nodeTag(node))
	{
		case T_IndexScanState:
			wrap(node, &exec_index_scan, index_scan);
			break;
		case T_IndexOnlyScanState:
			wrap(node, &exec_index_only_scan, index_only_scan);
			break;
		case T_SeqScanState:
		case T_SampleScanState:
		case T_BitmapHeapScanState:
		case T_TidScanState:
		case T_TidRangeScanState:
		case T_CustomScanState:
			note_table_read(((ScanState *) node)->ss_currentRelation);
			break;
		case T_ModifyTableState:
			note_modify_table((ModifyTableState *) node);
			break;
		default:
			break;
	}
}

/* ---- plans ---- */

typedef struct PlanWalk
{
	bool		locks_rows;
	bool		writes_rows;
	bool		is_serializable;
} PlanWalk;

static bool
walk(PlanState *node, void *context)
{
	PlanWalk   *plan_walk = context;

	if (node == NULL)
		return false;
	if (plan_walk->locks_rows && IsA(node, LockRowsState))
		wrap(node, &exec_lock_rows, lock_rows);
	if (plan_walk->is_serializable)
		note_scan(node);
	(void) planstate_tree_walker(node, walk, context);
	if (plan_walk->locks_rows && IsA(node, LockRowsState))
		unwritten_rows_watch_locker((LockRowsState *) node, note_locked_rows);
	if (plan_walk->writes_rows && IsA(node, ModifyTableState))
		unwritten_rows_watch_writer((ModifyTableState *) node);
	return false;
}

/* Where parallel workers may read for the leader, they do so unseen. */
static void
note_all_as_read(const PlannedStmt *plan)
{
	ListCell   *cell;

	foreach(cell, plan->relationOids)
	{
		const ReplicatedTable *table = active_table(lfirst_oid(cell));

		if (table != NULL)
			certified_keys_add_table_read(table->table_id, lfirst_oid(cell));
	}
}

static bool
note_tables(const PlannedStmt *plan)
{
	bool		has_replicated = false;
	ListCell   *cell;

	foreach(cell, plan->relationOids)
		if (active_table(lfirst_oid(cell)) != NULL)
		{
			certified_keys_note_table(lfirst_oid(cell));
			has_replicated = true;
		}
	return has_replicated;
}

static void
note_query(QueryDesc *query)
{
	PlannedStmt *plan = query->plannedstmt;
	PlanWalk	plan_walk = {
		.locks_rows = plan->rowMarks != NIL,
		.writes_rows = plan->resultRelations != NIL,
		.is_serializable = IsolationIsSerializable()
	};

	if (!note_tables(plan))
		return;
	if (plan_walk.is_serializable && plan->parallelModeNeeded)
		note_all_as_read(plan);
	if (plan_walk.locks_rows || plan_walk.writes_rows || plan_walk.is_serializable)
		(void) walk(query->planstate, &plan_walk);
}

static void
executor_start(QueryDesc *query, int flags)
{
	if (previous_executor_start)
		previous_executor_start(query, flags);
	else
		standard_ExecutorStart(query, flags);
	if (!am_apply_worker && (flags & EXEC_FLAG_EXPLAIN_ONLY) == 0 && in_quorum_database())
		note_query(query);
}

/* ---- statements that are only parsed ---- */

static bool
note_parsed_tables(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, RangeTblEntry))
	{
		RangeTblEntry *entry = (RangeTblEntry *) node;

		if (entry->rtekind == RTE_RELATION && active_table(entry->relid) != NULL)
			certified_keys_note_table(entry->relid);
		return false;
	}
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, note_parsed_tables, context, QTW_EXAMINE_RTES_BEFORE);
	return expression_tree_walker(node, note_parsed_tables, context);
}

/* It may never be run, but its tables stay locked until the end of the transaction. */
static void
post_parse_analyze(ParseState *state, Query *query, JumbleState *jumble)
{
	if (previous_post_parse_analyze)
		previous_post_parse_analyze(state, query, jumble);
	if (!am_apply_worker && IsTransactionBlock() && in_quorum_database())
		(void) note_parsed_tables((Node *) query, NULL);
}

/* ---- other statements ---- */

/* COPY of a table reads it without a plan. */
static void
note_copied_table(const CopyStmt *copy)
{
	Oid			relid = copy->relation != NULL && !copy->is_from ? RangeVarGetRelid(copy->relation, NoLock, true) : InvalidOid;
	const ReplicatedTable *table = OidIsValid(relid) && IsolationIsSerializable() ? active_table(relid) : NULL;

	if (table != NULL)
		certified_keys_add_table_read(table->table_id, relid);
}

/* The frequent ones that take no lock of a table but through a plan. */
static bool
may_lock_tables(Node *statement)
{
	switch (nodeTag(statement))
	{
		case T_TransactionStmt:
		case T_VariableSetStmt:
		case T_VariableShowStmt:
		case T_FetchStmt:
		case T_ClosePortalStmt:
		case T_DeallocateStmt:
		case T_NotifyStmt:
			return false;
		default:
			return true;
	}
}

static void
process_utility(PlannedStmt *statement, const char *query, bool read_only_tree, ProcessUtilityContext context,
				ParamListInfo parameters, QueryEnvironment *environment, DestReceiver *destination,
				QueryCompletion *completion)
{
	if (!am_apply_worker && IsTransactionState() && may_lock_tables(statement->utilityStmt) && in_quorum_database())
	{
		certified_keys_note_all_tables();
		if (IsA(statement->utilityStmt, CopyStmt))
			note_copied_table((CopyStmt *) statement->utilityStmt);
	}
	if (previous_process_utility)
		previous_process_utility(statement, query, read_only_tree, context, parameters, environment, destination, completion);
	else
		standard_ProcessUtility(statement, query, read_only_tree, context, parameters, environment, destination, completion);
}

void
row_locks_init(void)
{
	previous_executor_start = ExecutorStart_hook;
	ExecutorStart_hook = executor_start;
	previous_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
	previous_post_parse_analyze = post_parse_analyze_hook;
	post_parse_analyze_hook = post_parse_analyze;
}
