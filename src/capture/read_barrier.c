/*
 * read_barrier.c
 *	  Where statements wait so that their reads are linearizable: hooks at the start of queries and of utility statements.
 *
 * Process: client backend.  A statement that reads replicated tables waits, before it begins, until this node has applied all that was
 * acknowledged before, and takes its snapshot afterwards.  What runs inside of a statement (functions, triggers) has waited with it.
 *
 * A transaction with one snapshot (REPEATABLE READ, SERIALIZABLE) waits when it begins, before it has one.  If its snapshot came first all the
 * same (the isolation level is the default of the session and there is no BEGIN; an imported snapshot), the first statement that reads waits, and fails with
 * 40001 if the snapshot turns out to be too old.
 *
 * Must never run in the apply worker, in parallel workers, or for statements below the client's own.
 *
 * Invariants
 *	 1. nesting_level is 0 iff no query, and no utility statement but those that merely start a query, runs in this backend.
 *	 2. The stack of active snapshots is as high after the barrier as before, and its levels are the same.
 *
 * Locks: see read_wait.c.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "tcop/pquery.h"
#include "tcop/utility.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"

#include "apply/apply.h"
#include "capture/capture.h"
#include "capture/read_barrier.h"
#include "capture/written_tables.h"
#include "config.h"
#include "shared/position.h"
#include "shared/proposal_queue.h"
#include "shared/replicated_tables.h"
#include "shared/shmem.h"

static ExecutorStart_hook_type previous_start_hook = NULL;
static ExecutorRun_hook_type previous_run_hook = NULL;
static ExecutorFinish_hook_type previous_finish_hook = NULL;
static ProcessUtility_hook_type previous_utility_hook = NULL;

static int	nesting_level = 0;
static QueryDesc *unchecked_query = NULL;	/* began without a barrier (point_write.c), and may have to run again behind one */
static LocalTransactionId covered_transaction = InvalidLocalTransactionId;	/* whose one snapshot is known to be recent enough */

/*
 * Without a portal there is no statement of the client: deferred triggers at the end of a transaction without COMMIT.  A background
 * worker has none for any of its statements.
 */
static bool
may_need_barrier(void)
{
	return nesting_level == 0 && quorum_read_consistency == READ_LINEARIZABLE && !am_apply_worker && !IsParallelWorker() &&
		(ActivePortal != NULL || MyBackendType == B_BG_WORKER) && IsTransactionState() && in_quorum_database();
}

/* ---- the wait ---- */

/* For a transaction that keeps the snapshot that it has. */
static void
check_snapshot(Snapshot snapshot)
{
	uint64		read_index;
	uint64		position;

	if (covered_transaction == MyProc->lxid)
		return;
	if (!read_wait_for_quorum(&read_index))
		report_no_linearizable_read();
	position = position_under_snapshot(snapshot);
	if (position < read_index)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not read: the snapshot of the transaction is too old for a linearizable read"),
				 errdetail("It is at log index %llu; what was acknowledged before the statement goes up to %llu.",
						   (unsigned long long) position, (unsigned long long) read_index),
				 errhint("Retry, in a transaction begun with BEGIN or START TRANSACTION, whose snapshot is taken after the wait.")));
	covered_transaction = MyProc->lxid;
}

static void
wait_before_snapshot(void)
{
	uint64		read_index;

	if (!read_wait_for_quorum(&read_index))
		report_no_linearizable_read();
}

/* The snapshot that PortalRunUtility took. */
static void
renew_portal_snapshot(void)
{
	PopActiveSnapshot();
	PushActiveSnapshotWithLevel(GetTransactionSnapshot(), ActivePortal->createLevel);
	ActivePortal->portalSnapshot = GetActiveSnapshot();
}

static bool
portal_snapshot_is_active(void)
{
	return ActivePortal != NULL && ActivePortal->portalSnapshot != NULL && ActiveSnapshotSet() &&
		ActivePortal->portalSnapshot == GetActiveSnapshot();
}

static void
renew_query_snapshot(QueryDesc *query)
{
	bool		is_active = ActiveSnapshotSet() && query->snapshot == GetActiveSnapshot();

	UnregisterSnapshot(query->snapshot);
	if (portal_snapshot_is_active())
		renew_portal_snapshot();
	else if (is_active)
	{
		PopActiveSnapshot();
		PushCopiedSnapshot(GetTransactionSnapshot());
	}
	query->snapshot = RegisterSnapshot(ActiveSnapshotSet() ? GetActiveSnapshot() : GetTransactionSnapshot());
}

static void
query_barrier(QueryDesc *query)
{
	if (IsolationUsesXactSnapshot())
	{
		check_snapshot(query->snapshot);
		return;
	}
	wait_before_snapshot();
	renew_query_snapshot(query);
}

static void
utility_barrier(void)
{
	if (IsolationUsesXactSnapshot())
	{
		check_snapshot(GetTransactionSnapshot());
		return;
	}
	wait_before_snapshot();
	if (portal_snapshot_is_active())
		renew_portal_snapshot();
}

/* ---- the beginning of a transaction with one snapshot ---- */

/* SET TRANSACTION SNAPSHOT: whatever was waited for before, the snapshot may be older. */
static bool
imports_snapshot(Node *statement)
{
	return IsA(statement, VariableSetStmt) && ((VariableSetStmt *) statement)->name != NULL &&
		strcmp(((VariableSetStmt *) statement)->name, "TRANSACTION SNAPSHOT") == 0;
}

static bool
may_set_isolation(Node *statement)
{
	if (IsA(statement, TransactionStmt))
	{
		TransactionStmtKind kind = ((TransactionStmt *) statement)->kind;

		return kind == TRANS_STMT_BEGIN || kind == TRANS_STMT_START;
	}
	if (IsA(statement, VariableSetStmt))
	{
		const char *name = ((VariableSetStmt *) statement)->name;

		return name != NULL && (strcmp(name, "TRANSACTION") == 0 || strcmp(name, "transaction_isolation") == 0);
	}
	return false;
}

/* A failure is not reported here: the transaction may be about to read nothing that is replicated.  If it does, it tries again. */
static void
transaction_barrier(void)
{
	uint64		read_index;

	if (!IsolationUsesXactSnapshot() || FirstSnapshotSet || covered_transaction == MyProc->lxid || !replicated_tables_exist())
		return;
	if (read_wait_for_quorum(&read_index))
		covered_transaction = MyProc->lxid;
}

/*
 * A node that lags visibly waits all the same: else a client that changes on it what another has just changed elsewhere, one after the
 * other, would get a needless 40001.
 */
static bool
may_write_unchecked(const QueryDesc *query)
{
	return !IsolationUsesXactSnapshot() && !IsSubTransaction() && query->instrument_options == 0 &&
		!shmem_lags_visibly(turn_applied_index());
}

/* ---- hooks ---- */

static void
barrier_start(QueryDesc *query, int flags)
{
	ReadScope	scope = READS_NOTHING;

	if ((flags & EXEC_FLAG_EXPLAIN_ONLY) == 0 && may_need_barrier())
		scope = query_read_scope(query);
	if (nesting_level == 0)
		unchecked_query = scope == READS_WRITTEN_ROW && may_write_unchecked(query) ? query : NULL;
	if (scope != READS_NOTHING && unchecked_query != query)
		query_barrier(query);
	if (previous_start_hook)
		previous_start_hook(query, flags);
	else
		standard_ExecutorStart(query, flags);
}

static void
barrier_run(QueryDesc *query, ScanDirection direction, uint64 count, bool execute_once)
{
	bool		is_unchecked = nesting_level == 0 && unchecked_query == query;

	if (nesting_level == 0)
		unchecked_query = NULL; /* another query may come to be where this one was */
	nesting_level++;
	PG_TRY();
	{
		if (previous_run_hook)
			previous_run_hook(query, direction, count, execute_once);
		else
			standard_ExecutorRun(query, direction, count, execute_once);
		if (is_unchecked)
			point_write_repeat(query);
	}
	PG_FINALLY();
	{
		nesting_level--;
	}
	PG_END_TRY();
}

static void
barrier_finish(QueryDesc *query)
{
	nesting_level++;
	PG_TRY();
	{
		if (previous_finish_hook)
			previous_finish_hook(query);
		else
			standard_ExecutorFinish(query);
	}
	PG_FINALLY();
	{
		nesting_level--;
	}
	PG_END_TRY();
}

/* Those that only start a query: the barrier is at its start. */
static bool
merely_starts_a_query(Node *statement)
{
	switch (nodeTag(statement))
	{
		case T_ExplainStmt:
		case T_CreateTableAsStmt:
		case T_RefreshMatViewStmt:
		case T_ExecuteStmt:
		case T_DeclareCursorStmt:
			return true;
		case T_CopyStmt:
			return !((CopyStmt *) statement)->is_from;
		default:
			return false;
	}
}

static void
run_utility(PlannedStmt *statement, const char *query, bool read_only_tree, ProcessUtilityContext context,
			ParamListInfo parameters, QueryEnvironment *environment, DestReceiver *destination,
			QueryCompletion *completion)
{
	if (previous_utility_hook)
		previous_utility_hook(statement, query, read_only_tree, context, parameters, environment, destination, completion);
	else
		standard_ProcessUtility(statement, query, read_only_tree, context, parameters, environment, destination, completion);
}

static void
run_nested_utility(PlannedStmt *statement, const char *query, bool read_only_tree, ProcessUtilityContext context,
				   ParamListInfo parameters, QueryEnvironment *environment, DestReceiver *destination,
				   QueryCompletion *completion)
{
	nesting_level++;
	PG_TRY();
	{
		run_utility(statement, query, read_only_tree, context, parameters, environment, destination, completion);
	}
	PG_FINALLY();
	{
		nesting_level--;
	}
	PG_END_TRY();
}

static void
barrier_utility(PlannedStmt *statement, const char *query, bool read_only_tree, ProcessUtilityContext context,
				ParamListInfo parameters, QueryEnvironment *environment, DestReceiver *destination,
				QueryCompletion *completion)
{
	bool		sets_isolation = may_set_isolation(statement->utilityStmt);
	bool		is_import = imports_snapshot(statement->utilityStmt);

	if (may_need_barrier() && utility_needs_read_barrier(statement->utilityStmt))
		utility_barrier();
	if (merely_starts_a_query(statement->utilityStmt))
		run_utility(statement, query, read_only_tree, context, parameters, environment, destination, completion);
	else
		run_nested_utility(statement, query, read_only_tree, context, parameters, environment, destination, completion);
	if (is_import)
		covered_transaction = InvalidLocalTransactionId;
	if (sets_isolation && may_need_barrier())
		transaction_barrier();
}

void
read_barrier_init(void)
{
	previous_start_hook = ExecutorStart_hook;
	ExecutorStart_hook = barrier_start;
	previous_run_hook = ExecutorRun_hook;
	ExecutorRun_hook = barrier_run;
	previous_finish_hook = ExecutorFinish_hook;
	ExecutorFinish_hook = barrier_finish;
	previous_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = barrier_utility;
}
