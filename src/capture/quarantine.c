/*
 * quarantine.c
 *	  Refuses statements that use a table whose copy on this node is known to differ from that of a majority (shared/table_health.h).
 *
 * Process: client backend, parallel workers, any other that runs queries; not the apply worker.  Whatever the read consistency:
 * local reads promise a prefix of the log, and rows that differ are none.  Maintenance goes through (VACUUM, REINDEX), and so do
 * the functions of this extension, which read the heap without a query.
 *
 * Must never let a query through that returns such rows: those of views, functions, triggers and foreign keys are looked at like
 * the client's own.
 *
 * Locks: relies on those that the statement holds on its tables.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "executor/executor.h"
#include "nodes/parsenodes.h"
#include "nodes/plannodes.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "apply/apply.h"
#include "capture/capture.h"
#include "capture/written_tables.h"
#include "shared/replicated_tables.h"
#include "shared/shmem.h"

static ExecutorStart_hook_type previous_start_hook = NULL;
static ProcessUtility_hook_type previous_utility_hook = NULL;

/* Cheap where all is well, which is nearly always; but after a start it is the table that tells, until the apply worker has read it. */
static bool
may_be_quarantined(void)
{
	return !am_apply_worker && IsTransactionState() && in_quorum_database() && replicated_tables_quarantined();
}

static void
refuse_if_quarantined(Oid relid)
{
	const ReplicatedTable *table = OidIsValid(relid) ? replicated_table_by_relid(relid) : NULL;
	char	   *name;

	if (table == NULL || table->quarantined_index == 0)
		return;
	name = quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)), get_rel_name(relid));
	ereport(ERROR,
			(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
			 errmsg("table %s is quarantined on this node: its rows differ from those of a majority of the nodes", name),
			 errdetail("The check at log index %llu found that.", (unsigned long long) table->quarantined_index),
			 errhint("Connect to another node; an administrator calls quorum.repair('%s') on this one.", name)));
}

/*
 * Those of views and inlined functions stand there too.  Not the plan's relationOids, where a regclass constant counts:
 * quorum.repair('t') must go through.
 */
static void
check_tables(List *range_table)
{
	ListCell   *cell;

	foreach(cell, range_table)
	{
		RangeTblEntry *entry = lfirst_node(RangeTblEntry, cell);

		if (entry->rtekind == RTE_RELATION)
			refuse_if_quarantined(entry->relid);
	}
}

static void
quarantine_start(QueryDesc *query, int flags)
{
	if ((flags & EXEC_FLAG_EXPLAIN_ONLY) == 0 && query->plannedstmt->rtable != NIL && may_be_quarantined())
		check_tables(query->plannedstmt->rtable);
	if (previous_start_hook)
		previous_start_hook(query, flags);
	else
		standard_ExecutorStart(query, flags);
}

static void
quarantine_utility(PlannedStmt *statement, const char *query, bool read_only_tree, ProcessUtilityContext context,
				   ParamListInfo parameters, QueryEnvironment *environment, DestReceiver *destination,
				   QueryCompletion *completion)
{
	if (IsA(statement->utilityStmt, CopyStmt) && ((CopyStmt *) statement->utilityStmt)->relation != NULL && may_be_quarantined())
		refuse_if_quarantined(RangeVarGetRelid(((CopyStmt *) statement->utilityStmt)->relation, AccessShareLock, true));
	if (previous_utility_hook)
		previous_utility_hook(statement, query, read_only_tree, context, parameters, environment, destination, completion);
	else
		standard_ProcessUtility(statement, query, read_only_tree, context, parameters, environment, destination, completion);
}

void
quarantine_init(void)
{
	previous_start_hook = ExecutorStart_hook;
	ExecutorStart_hook = quarantine_start;
	previous_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = quarantine_utility;
}
