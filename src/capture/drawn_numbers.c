/*
 * drawn_numbers.c
 *	  A duplicate of a number that nextval() has drawn is no fault of who drew it: 23505 becomes 40001.  Process: client backend.
 *
 * Each node has its own sequences; what is inserted on another carries them along (sequences.c).  Until that has been applied here nextval() may draw a
 * number that a row of another node has.  Mostly the two meet in certification, or the apply worker finds the row in its way: 40001.  But if the row
 * comes between nextval() and the look into the unique index, Postgres finds a duplicate.  It is the same conflict, and is told with the same code,
 * so that what retries on 40001 comes through: the next number is another one.
 *
 * The code is changed in a callback for the error's context, that is before anybody sees it, an EXCEPTION clause of PL/pgSQL included.  The plan tells which
 * columns are drawn: those whose expression there calls nextval().  A value that the statement was given is a duplicate as ever; and so is one of a column
 * that the statement changes in rows that are there already, too, since the error does not tell which of the two it is.
 *
 * Must never change the code of an error about a key that has no such column, or about another table (one that a trigger writes has a statement of its
 * own).  A deferred constraint is looked at when its statement is over, and keeps 23505.
 *
 * Locks: relies on those that the statement holds.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_index.h"
#include "executor/executor.h"
#include "nodes/nodeFuncs.h"
#include "nodes/plannodes.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteHandler.h"
#include "tcop/utility.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "capture/capture.h"
#include "shared/replicated_tables.h"

/* What runs: a plan, or COPY. */
typedef struct Insertion
{
	const PlannedStmt *plan;
	const CopyStmt *copy;
} Insertion;

static ExecutorRun_hook_type previous_executor_run = NULL;
static ProcessUtility_hook_type previous_process_utility = NULL;

/* ---- which columns are drawn ---- */

static bool
draws_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, NextValueExpr) || (IsA(node, FuncExpr) && ((FuncExpr *) node)->funcid == F_NEXTVAL))
		return true;
	return expression_tree_walker(node, draws_walker, context);
}

static bool
draws_number(const List *target_list, AttrNumber number)
{
	ListCell   *cell;

	foreach(cell, target_list)
	{
		const TargetEntry *entry = lfirst_node(TargetEntry, cell);

		if (entry->resno == number)
			return draws_walker((Node *) entry->expr, NULL);
	}
	return false;
}

/* By ON CONFLICT DO UPDATE, or by MERGE. */
static bool
is_updated_by_node(const ModifyTable *modify, AttrNumber number)
{
	ListCell   *cell;

	if (list_member_int(modify->onConflictCols, number))
		return true;
	if (modify->operation == CMD_MERGE)
		foreach(cell, linitial_node(List, modify->mergeActionLists))
		{
			const MergeAction *action = lfirst_node(MergeAction, cell);

			if (action->commandType == CMD_UPDATE && list_member_int(action->updateColnos, number))
				return true;
		}
	return false;
}

/* The plan below an INSERT has a column for each of the table; so has what MERGE inserts. */
static bool
is_drawn_by_node(const PlannedStmt *plan, const ModifyTable *modify, Oid relid, const char *column)
{
	AttrNumber	number = get_attnum(relid, column);
	ListCell   *cell;

	if (rt_fetch(linitial_int(modify->resultRelations), plan->rtable)->relid != relid || is_updated_by_node(modify, number))
		return false;
	if (modify->operation == CMD_INSERT)
		return draws_number(modify->plan.lefttree->targetlist, number);
	if (modify->operation == CMD_MERGE)
		foreach(cell, linitial_node(List, modify->mergeActionLists))
		{
			const MergeAction *action = lfirst_node(MergeAction, cell);

			if (action->commandType == CMD_INSERT && draws_number(action->targetList, number))
				return true;
		}
	return false;
}

/* What inserts is on top of the plan, or within WITH. */
static bool
is_drawn_by_plan(const PlannedStmt *plan, Oid relid, const char *column)
{
	List	   *trees = lcons(plan->planTree, list_copy(plan->subplans));
	ListCell   *cell;

	foreach(cell, trees)
	{
		const Plan *tree = lfirst(cell);

		if (tree != NULL && IsA(tree, ModifyTable) && is_drawn_by_node(plan, (const ModifyTable *) tree, relid, column))
			return true;
	}
	return false;
}

/* COPY takes the default of a column that it does not name. */
static bool
is_drawn_by_copy(const CopyStmt *copy, Oid relid, const char *column)
{
	Relation	relation;
	ListCell   *cell;
	bool		is_drawn;

	if (copy->attlist == NIL || RangeVarGetRelid(copy->relation, NoLock, true) != relid)
		return false;
	foreach(cell, copy->attlist)
		if (strcmp(strVal(lfirst(cell)), column) == 0)
			return false;
	relation = RelationIdGetRelation(relid);
	is_drawn = draws_walker(build_column_default(relation, get_attnum(relid, column)), NULL);
	RelationClose(relation);
	return is_drawn;
}

static bool
has_drawn_column(const Insertion *insertion, Oid relid, Form_pg_index index)
{
	for (int i = 0; i < index->indnkeyatts; i++)
	{
		char	   *column = index->indkey.values[i] > 0 ? get_attname(relid, index->indkey.values[i], true) : NULL;

		if (column != NULL && (insertion->plan != NULL ? is_drawn_by_plan(insertion->plan, relid, column) :
							   is_drawn_by_copy(insertion->copy, relid, column)))
			return true;
	}
	return false;
}

/* ---- the error ---- */

/* Of the unique index that the error names. */
static bool
is_of_drawn_number(const Insertion *insertion, const ErrorData *error)
{
	Oid			namespace = error->schema_name != NULL ? get_namespace_oid(error->schema_name, true) : InvalidOid;
	Oid			relid = error->table_name != NULL ? get_relname_relid(error->table_name, namespace) : InvalidOid;
	Oid			index = error->constraint_name != NULL ? get_relname_relid(error->constraint_name, namespace) : InvalidOid;
	HeapTuple	tuple;
	bool		is_drawn;

	if (!OidIsValid(relid) || !OidIsValid(index) || replicated_table_by_relid(relid) == NULL)
		return false;
	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
	if (!HeapTupleIsValid(tuple))
		return false;
	is_drawn = ((Form_pg_index) GETSTRUCT(tuple))->indrelid == relid &&
		has_drawn_column(insertion, relid, (Form_pg_index) GETSTRUCT(tuple));
	ReleaseSysCache(tuple);
	return is_drawn;
}

/* The index has been let go and the transaction is as healthy as it was: the catalogs may be read. */
static void
look_at_error(void *argument)
{
	MemoryContext context;
	MemoryContext own;
	bool		is_drawn;

	if (geterrcode() != ERRCODE_UNIQUE_VIOLATION)
		return;
	own = AllocSetContextCreate(TopTransactionContext, "pg_quorum drawn numbers", ALLOCSET_SMALL_SIZES);
	context = MemoryContextSwitchTo(own);
	is_drawn = is_of_drawn_number(argument, CopyErrorData());
	MemoryContextSwitchTo(context);
	MemoryContextDelete(own);
	if (is_drawn)
	{
		errcode(ERRCODE_T_R_SERIALIZATION_FAILURE);
		errhint("The key comes from a sequence, of which each node has its own; another row was given it. Retry the transaction: it draws another.");
	}
}

/* ---- hooks ---- */

static void
run_query(QueryDesc *query, ScanDirection direction, uint64 count, bool execute_once)
{
	if (previous_executor_run)
		previous_executor_run(query, direction, count, execute_once);
	else
		standard_ExecutorRun(query, direction, count, execute_once);
}

/* An error resets the stack of callbacks to what it was where it is caught. */
static void
executor_run(QueryDesc *query, ScanDirection direction, uint64 count, bool execute_once)
{
	Insertion	insertion = {.plan = query->plannedstmt};
	ErrorContextCallback callback = {.previous = error_context_stack, .callback = look_at_error, .arg = &insertion};

	if (query->operation != CMD_INSERT && query->operation != CMD_MERGE && !query->plannedstmt->hasModifyingCTE)
	{
		run_query(query, direction, count, execute_once);
		return;
	}
	error_context_stack = &callback;
	run_query(query, direction, count, execute_once);
	error_context_stack = callback.previous;
}

static void
process_utility(PlannedStmt *statement, const char *query, bool read_only_tree, ProcessUtilityContext context,
				ParamListInfo parameters, QueryEnvironment *environment, DestReceiver *destination, QueryCompletion *completion)
{
	Insertion	insertion = {.copy = (const CopyStmt *) statement->utilityStmt};
	ErrorContextCallback callback = {.previous = error_context_stack, .callback = look_at_error, .arg = &insertion};
	bool		inserts = IsA(statement->utilityStmt, CopyStmt) && insertion.copy->is_from && insertion.copy->relation != NULL;

	if (inserts)
		error_context_stack = &callback;
	if (previous_process_utility)
		previous_process_utility(statement, query, read_only_tree, context, parameters, environment, destination, completion);
	else
		standard_ProcessUtility(statement, query, read_only_tree, context, parameters, environment, destination, completion);
	if (inserts)
		error_context_stack = callback.previous;
}

void
drawn_numbers_init(void)
{
	previous_executor_run = ExecutorRun_hook;
	ExecutorRun_hook = executor_run;
	previous_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}
