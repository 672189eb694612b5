/*
 * point_write.c
 *	  UPDATE and DELETE of one row by its primary key, which need no read barrier as long as they find the row.  Process: client backend.
 *
 * Such a statement reads nothing but the row that it writes.  If it finds it, the row is among the transaction's keys: should another node have changed
 * it before, certification rejects the transaction, so whatever this one saw of it was current when it committed.  If it finds none (no such row, or the
 * rest of its condition is false), nothing would be certified: then the barrier comes after the statement, and the row is looked for
 * once more.  Still none: so it was when the barrier was passed, which is after the statement began.  One: 40001.
 *
 * This halves what a write by key costs: one round to the quorum instead of two.  A node that knows of entries which it has not applied yet waits
 * as for other statements, so that few transactions are rejected for what they could have seen (read_barrier.c).
 *
 * Must never take a statement for such a one that reads anything else, in a subquery, trigger or function.  Nor one within a savepoint: that
 * may be rolled back, and what certifies the row with it, though the client has seen that there was one (read_barrier.c sees to it).
 *
 * Locks: relies on those that the statement holds.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relscan.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "executor/executor.h"
#include "nodes/execnodes.h"
#include "nodes/plannodes.h"
#include "parser/parsetree.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "capture/read_barrier.h"

/* ---- the shape of the plan ---- */

static bool
is_equality_of_index(const Expr *qual, Relation index, Bitmapset **columns)
{
	const OpExpr *operation = (const OpExpr *) qual;
	const Var  *column;
	int			number;

	if (!IsA(qual, OpExpr) || list_length(operation->args) != 2 || !IsA(linitial(operation->args), Var))
		return false;
	column = linitial_node(Var, operation->args);
	number = column->varattno;
	if (column->varno != INDEX_VAR || number < 1 || number > IndexRelationGetNumberOfKeyAttributes(index) ||
		get_op_opfamily_strategy(operation->opno, index->rd_opfamily[number - 1]) != BTEqualStrategyNumber)
		return false;
	*columns = bms_add_member(*columns, number);
	return true;
}

/* Does the scan fix each column of the index? */
static bool
finds_one_row(const IndexScan *scan)
{
	Relation	index = index_open(scan->indexid, NoLock);
	int			column_count = IndexRelationGetNumberOfKeyAttributes(index);
	Bitmapset  *columns = NULL;
	bool		finds = index->rd_index->indisprimary && list_length(scan->indexqual) == column_count;
	ListCell   *cell;

	foreach(cell, scan->indexqual)
		finds = finds && is_equality_of_index(lfirst(cell), index, &columns);
	finds = finds && bms_num_members(columns) == column_count;
	index_close(index, NoLock);
	return finds;
}

bool
point_write_has_shape(const PlannedStmt *plan)
{
	const ModifyTable *modify = (const ModifyTable *) plan->planTree;
	const IndexScan *scan;

	if ((plan->commandType != CMD_UPDATE && plan->commandType != CMD_DELETE) || !IsA(plan->planTree, ModifyTable) ||
		plan->hasReturning || plan->hasModifyingCTE || plan->subplans != NIL || list_length(plan->relationOids) != 1 ||
		list_length(plan->resultRelations) != 1 || !IsA(modify->plan.lefttree, IndexScan))
		return false;
	scan = (const IndexScan *) modify->plan.lefttree;
	return scan->scan.scanrelid == (Index) linitial_int(plan->resultRelations) && finds_one_row(scan);
}

/* ---- the statement that found none ---- */

/* With the values that the statement looked for, under a snapshot that is taken now. */
static bool
would_find_row(IndexScanState *scan)
{
	Relation	relation = scan->ss.ss_currentRelation;
	ExprContext *context = scan->ss.ps.ps_ExprContext;
	TupleTableSlot *row = table_slot_create(relation, NULL);
	TupleTableSlot *saved_row = context->ecxt_scantuple;
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	IndexScanDesc descriptor = index_beginscan(relation, scan->iss_RelationDesc, snapshot, scan->iss_NumScanKeys, 0);
	bool		found;

	PushActiveSnapshot(snapshot);
	index_rescan(descriptor, scan->iss_ScanKeys, scan->iss_NumScanKeys, NULL, 0);
	found = index_getnext_slot(descriptor, ForwardScanDirection, row);
	context->ecxt_scantuple = row;
	found = found && ExecQual(scan->ss.ps.qual, context);
	context->ecxt_scantuple = saved_row;
	PopActiveSnapshot();
	index_endscan(descriptor);
	UnregisterSnapshot(snapshot);
	ExecDropSingleTupleTableSlot(row);
	return found;
}

void
point_write_check(QueryDesc *query)
{
	IndexScanState *scan;
	uint64		read_index;

	if (query->estate->es_processed != 0)
		return;
	if (!read_wait_for_quorum(&read_index))
		report_no_linearizable_read();
	scan = castNode(IndexScanState, outerPlanState(query->planstate));
	if (would_find_row(scan))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not find the row to change: another transaction has changed it meanwhile"),
				 errdetail("The statement found no row of table \"%s\"; now there is one.",
						   RelationGetRelationName(scan->ss.ss_currentRelation)),
				 errhint("Retry the transaction.")));
}
