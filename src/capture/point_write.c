/*
 * point_write.c
 *	  UPDATE and DELETE of one row by its primary key, which need no read barrier as long as they find the row.  Process: client backend.
 *
 * Such a statement reads nothing but the row that it writes.  If it finds it, the row is among the transaction's keys: should another node have changed
 * it before, certification rejects the transaction, so whatever this one saw of it was current when it committed.  If it finds none (no such row, or the
 * rest of its condition is false), nothing would be certified: then the barrier comes after the statement, and the statement runs once more,
 * with a snapshot that is taken then.  It has changed nothing, and there are neither triggers nor volatile functions that might have been called, so
 * nobody can tell that it ran twice.  (One that its client wants to know the run time of passes the barrier first: it would be told that of half of it.)
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
#include "access/stratnum.h"
#include "executor/execdesc.h"
#include "executor/executor.h"
#include "nodes/plannodes.h"
#include "optimizer/optimizer.h"
#include "parser/parsetree.h"
#include "tcop/dest.h"
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
		!plan->canSetTag || plan->hasReturning || plan->hasModifyingCTE || plan->subplans != NIL || list_length(plan->relationOids) != 1 ||
		list_length(plan->resultRelations) != 1 || !IsA(modify->plan.lefttree, IndexScan))
		return false;
	scan = (const IndexScan *) modify->plan.lefttree;
	return scan->scan.scanrelid == (Index) linitial_int(plan->resultRelations) && finds_one_row(scan) &&
		!contain_volatile_functions((Node *) scan->scan.plan.qual);
}

/* ---- the statement that found none ---- */

/* Returns how many rows it has changed.  What its plan computes once more is its condition. */
static uint64
run_once_more(QueryDesc *first)
{
	QueryDesc  *second;
	uint64		processed;

	PushActiveSnapshot(GetTransactionSnapshot());
	second = CreateQueryDesc(first->plannedstmt, first->sourceText, GetActiveSnapshot(), InvalidSnapshot, None_Receiver,
							 first->params, first->queryEnv, 0);
	ExecutorStart(second, 0);
	ExecutorRun(second, ForwardScanDirection, 0, true);
	ExecutorFinish(second);
	processed = second->estate->es_processed;
	ExecutorEnd(second);
	FreeQueryDesc(second);
	PopActiveSnapshot();
	return processed;
}

void
point_write_repeat(QueryDesc *query)
{
	uint64		read_index;

	if (query->estate->es_processed != 0)
		return;
	if (!read_wait_for_quorum(&read_index))
		report_no_linearizable_read();
	query->estate->es_processed = run_once_more(query);
}
