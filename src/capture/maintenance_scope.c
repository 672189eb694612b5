/*
 * maintenance_scope.c
 *	  Marks a backend while it is at VACUUM FULL, CLUSTER, REINDEX or CREATE INDEX.  Process: client backend.
 *
 * These hold strong locks for long, and would have to begin anew if the apply worker had them aborted; so they delay this node, visibly, and no other.
 *
 * Invariants
 *	 1. The mark is set before the statement takes its first lock, and stays until its last is gone: that is after the statement, at the end of its
 *		transaction.
 *	 2. In a transaction block, a function or a list of statements it ends with the statement: what follows could take as long as it likes.
 *	 3. VACUUM FULL, and what is done CONCURRENTLY, commit within the statement and stay marked.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/defrem.h"
#include "nodes/parsenodes.h"
#include "tcop/utility.h"

#include "capture/capture.h"
#include "shared/maintenance.h"

static ProcessUtility_hook_type previous_utility_hook = NULL;
static int	statement_depth = 0;
static bool is_marked = false;

static bool
is_vacuum_full(const VacuumStmt *statement)
{
	ListCell   *cell;

	if (!statement->is_vacuumcmd)
		return false;
	foreach(cell, statement->options)
	{
		DefElem    *option = lfirst_node(DefElem, cell);

		if (strcmp(option->defname, "full") == 0)
			return defGetBoolean(option);
	}
	return false;
}

static bool
is_maintenance(Node *statement)
{
	switch (nodeTag(statement))
	{
		case T_IndexStmt:
		case T_ReindexStmt:
		case T_ClusterStmt:
			return true;
		case T_VacuumStmt:
			return is_vacuum_full((VacuumStmt *) statement);
		default:
			return false;
	}
}

static void
mark(bool on)
{
	if (is_marked == on)
		return;
	is_marked = on;
	maintenance_set(on);
}

static void
run_next(PlannedStmt *statement, const char *query, bool read_only_tree, ProcessUtilityContext context,
		 ParamListInfo parameters, QueryEnvironment *environment, DestReceiver *destination, QueryCompletion *completion)
{
	if (previous_utility_hook)
		previous_utility_hook(statement, query, read_only_tree, context, parameters, environment, destination, completion);
	else
		standard_ProcessUtility(statement, query, read_only_tree, context, parameters, environment, destination, completion);
}

static void
maintenance_utility(PlannedStmt *statement, const char *query, bool read_only_tree, ProcessUtilityContext context,
					ParamListInfo parameters, QueryEnvironment *environment, DestReceiver *destination,
					QueryCompletion *completion)
{
	if (!is_maintenance(statement->utilityStmt))
	{
		run_next(statement, query, read_only_tree, context, parameters, environment, destination, completion);
		return;
	}
	mark(true);
	statement_depth++;
	PG_TRY();
	{
		run_next(statement, query, read_only_tree, context, parameters, environment, destination, completion);
	}
	PG_FINALLY();
	{
		statement_depth--;
	}
	PG_END_TRY();
	if (statement_depth == 0 && (context != PROCESS_UTILITY_TOPLEVEL || IsTransactionBlock()))
		mark(false);
}

/* After the locks' release would be better still, but no callback is: whoever waits for them is about to get them. */
static void
at_transaction_end(XactEvent event, void *argument)
{
	if (event == XACT_EVENT_ABORT || (event == XACT_EVENT_COMMIT && statement_depth == 0))
		mark(false);
}

void
maintenance_scope_init(void)
{
	previous_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = maintenance_utility;
	RegisterXactCallback(at_transaction_end, NULL);
}
