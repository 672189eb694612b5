/*
 * check_worker.c
 *	  Sums the rows of a table up when a check of the log asks for it, and tells the others; on the leader it proposes such checks
 *	  now and then.
 *
 * Process: one background worker per instance, connected to quorum.database.  Must never stand in anybody's way: as soon as
 * somebody waits for the table's lock it lets go of it, and the check is skipped on this node.
 *
 * Invariants
 *	 1. Lock and snapshot are taken while the apply worker waits in the entry of the check (check_job.h): the snapshot is the log's prefix.
 *	 2. The lock is held for as long as the snapshot is read: TRUNCATE is not MVCC-safe.
 *	 3. What this worker has to tell is told once, or again after an error whose outcome is not known: a second result of a node is ignored.
 *
 * Locks: ACCESS SHARE on the table, asked for without waiting.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/xact.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "capture/capture.h"
#include "cluster/check_worker.h"
#include "cluster/verify.h"
#include "config.h"
#include "shared/check_job.h"
#include "shared/proposal_queue.h"
#include "shared/shmem.h"
#include "shared/table_health.h"
#include "shared/table_rows.h"
#include "shared/writeset.h"

#define HOLD_PATIENCE_MS 30000	/* for the other node to come and take the snapshot, unless another job comes first */
#define HOLD_LOOK_MS 200
#define ROWS_PER_LOOK 200
#define GENTLE_WORK_MS 20		/* then it sleeps as long: half of a core and of a disk at most */
#define RETRY_MS 1000
#define SCHEDULE_LONGEST_MS 10000
#define RESULTS_KEPT 32
#define BACKGROUND_PATIENCE_MS (30 * 60 * 1000)

typedef struct PendingResult
{
	uint64		index;
	uint64		table_id;
	CheckOutcome outcome;
	TableSum	sum;
} PendingResult;

/* The check in the background that is under way; on the leader. */
typedef struct BackgroundCheck
{
	uint64		index;			/* 0: none */
	TimestampTz deadline;		/* then it is waited for no more */
} BackgroundCheck;

static PendingResult pending[RESULTS_KEPT];
static int	pending_count = 0;
static BackgroundCheck background;
static TimestampTz started_at;

static void
handle_signals(void)
{
	CHECK_FOR_INTERRUPTS();
	if (!ConfigReloadPending)
		return;
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
}

static void
wait_for_latch(long timeout_ms)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, timeout_ms, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	handle_signals();
}

static void
add_result(uint64 index, uint64 table_id, CheckOutcome outcome, const TableSum *sum)
{
	PendingResult *result;

	if (pending_count == RESULTS_KEPT)	/* no quorum for long; the oldest interests nobody any more */
		memmove(&pending[0], &pending[1], --pending_count * sizeof(PendingResult));
	result = &pending[pending_count++];
	memset(result, 0, sizeof(PendingResult));
	result->index = index;
	result->table_id = table_id;
	result->outcome = outcome;
	if (outcome == CHECK_DONE)
		result->sum = *sum;
}

/*
 * Does somebody wait for a lock of the table?  LockHasWaitersRelation() cannot be asked: it knows nothing of locks that were taken
 * by the fast path.  A lock that is held by that path moves to the shared table when somebody wants a strong one, so that there are
 * two requests then: only then is it worth to look at all locks.
 */
static bool
somebody_waits_for(Relation relation)
{
	LOCKTAG		tag;
	LockData   *locks;
	bool		found = false;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, RelationGetRelid(relation));
	if (LockWaiterCount(&tag) < 2)
		return false;
	locks = GetLockStatusData();
	for (int i = 0; i < locks->nelements && !found; i++)
		found = memcmp(&locks->locks[i].locktag, &tag, sizeof(tag)) == 0 && locks->locks[i].waitLockMode != NoLock;
	pfree(locks->locks);
	pfree(locks);
	return found;
}

/* ---- summing up ---- */

typedef struct Summing
{
	Relation	relation;
	bool		gently;
	uint64		rows;
	TimestampTz began_at;		/* this spell of work */
	TableSum	sum;
} Summing;

static void
rest(Summing *summing)
{
	if (!summing->gently || !TimestampDifferenceExceeds(summing->began_at, GetCurrentTimestamp(), GENTLE_WORK_MS))
		return;
	(void) WaitLatch(MyLatch, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, GENTLE_WORK_MS, PG_WAIT_EXTENSION);
	summing->began_at = GetCurrentTimestamp();
}

static bool
sum_row(void *context, const TableRow *row)
{
	Summing    *summing = context;

	table_sum_add(&summing->sum, row->hash);
	if (++summing->rows % ROWS_PER_LOOK != 0)
		return true;
	rest(summing);
	return !somebody_waits_for(summing->relation);
}

static void
sum_up(const CheckJob *job, Relation relation)
{
	Summing		summing = {.relation = relation, .gently = job->gently, .began_at = GetCurrentTimestamp()};
	bool		complete;

	if (!check_job_take(""))
		return;					/* too late; the apply worker has noted it as skipped */
	complete = table_rows_visit(relation, GetActiveSnapshot(), 0, sum_row, &summing);
	add_result(job->index, job->table_id, complete ? CHECK_DONE : CHECK_SKIPPED, &summing.sum);
}

/* For a node that compares: until it has imported the snapshot, and has a lock of its own. */
static void
hold_snapshot(Relation relation)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), HOLD_PATIENCE_MS);

	if (!check_job_take(ExportSnapshot(GetActiveSnapshot())))
		return;
	while (!check_job_is_released() && GetCurrentTimestamp() < deadline && !somebody_waits_for(relation))
		wait_for_latch(HOLD_LOOK_MS);
}

/* ---- jobs ---- */

static Relation
open_without_waiting(Oid relid)
{
	Relation	relation;

	if (!ConditionalLockRelationOid(relid, AccessShareLock))
		return NULL;
	relation = try_relation_open(relid, NoLock);
	if (relation == NULL)
		UnlockRelationOid(relid, AccessShareLock);
	return relation;
}

static void
do_job(const CheckJob *job)
{
	Relation	relation;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	pgstat_report_activity(STATE_RUNNING, "checking a replicated table");
	relation = open_without_waiting(job->relid);
	if (relation == NULL)
		check_job_refuse();
	else
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		if (job->kind == CHECK_JOB_SUM)
			sum_up(job, relation);
		else
			hold_snapshot(relation);
		PopActiveSnapshot();
		relation_close(relation, NoLock);
	}
	CommitTransactionCommand();
	check_job_done();
}

static void
recover_from_error(MemoryContext context, ErrorData **error)
{
	HOLD_INTERRUPTS();
	MemoryContextSwitchTo(context);
	*error = CopyErrorData();
	EmitErrorReport();
	AbortOutOfAnyTransaction();
	FlushErrorState();
	MemoryContextSwitchTo(context);
	QueryCancelPending = false;
	RESUME_INTERRUPTS();
}

static void
try_job(const CheckJob *job)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		do_job(job);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		recover_from_error(context, &error);
		check_job_refuse();
		check_job_done();
		if (job->kind == CHECK_JOB_SUM)
			add_result(job->index, job->table_id, check_says_damaged(error->sqlerrcode) ? CHECK_FAILED : CHECK_SKIPPED, NULL);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}

/* ---- proposals ---- */

static void
send_result(const PendingResult *result)
{
	StringInfoData payload;

	initStringInfo(&payload);
	writeset_begin(&payload);
	writeset_put_check_result(&payload, result->table_id, result->index, result->outcome, &result->sum);
	writeset_finish(&payload, turn_applied_index(), 0, 0, 0, 1);
	(void) gate_propose_check(payload.data, payload.len);
}

static uint64
send_check(uint64 table_id)
{
	StringInfoData payload;

	initStringInfo(&payload);
	writeset_begin(&payload);
	writeset_put_table_check(&payload, table_id, true);
	writeset_finish(&payload, turn_applied_index(), 0, 0, 0, 1);
	return gate_propose_check(payload.data, payload.len);
}

static void
collect_skipped(void)
{
	SkippedCheck skipped;

	while (check_job_next_skipped(&skipped))
		add_result(skipped.index, skipped.table_id, CHECK_SKIPPED, NULL);
}

static void
send_results(void)
{
	collect_skipped();
	while (pending_count > 0)
	{
		StartTransactionCommand();
		send_result(&pending[0]);
		CommitTransactionCommand();
		memmove(&pending[0], &pending[1], --pending_count * sizeof(PendingResult));
	}
}

/*
 * At the start of the worker: checks that this node has applied and told nothing of, because an earlier worker or the whole instance died in
 * between.  Whoever waits for them is to wait no longer.
 */
static void
note_lost_checks(void)
{
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute(psprintf("SELECT check_index, table_id FROM quorum.table_check c WHERE NOT EXISTS (SELECT FROM quorum.check_result r"
							 " WHERE r.check_index = c.check_index AND r.node_id = %u) ORDER BY check_index DESC",
							 QuorumShmem->identity.node_id), true, RESULTS_KEPT / 2) < 0)
		elog(ERROR, "SPI_execute failed");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];

		add_result(strtou64(SPI_getvalue(tuple, SPI_tuptable->tupdesc, 1), NULL, 10),
				   strtou64(SPI_getvalue(tuple, SPI_tuptable->tupdesc, 2), NULL, 10), CHECK_SKIPPED, NULL);
	}
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/* ---- checks in the background ---- */

static bool
leads(void)
{
	NodeRole	role;

	LWLockAcquire(QuorumShmem->lock, LW_SHARED);
	role = QuorumShmem->status.role;
	LWLockRelease(QuorumShmem->lock);
	return role == NODE_LEADER;
}

static int
reachable_members(void)
{
	int			count = 0;

	LWLockAcquire(QuorumShmem->lock, LW_SHARED);
	for (int i = 0; i < QuorumShmem->status.member_count; i++)
		if (QuorumShmem->status.members[i].reachable)
			count++;
	LWLockRelease(QuorumShmem->lock);
	return count;
}

/* All that can be reached have told their sums, or it takes too long. */
static bool
background_check_is_over(void)
{
	NodeCheck	checks[QUORUM_MAX_MEMBERS];

	return background.index == 0 || GetCurrentTimestamp() >= background.deadline ||
		table_check_results(background.index, checks, QUORUM_MAX_MEMBERS) >= reachable_members();
}

/*
 * The table whose last check is the longest ago, if that is long enough; one that was never checked counts from the start of this
 * worker.  0: none.
 */
static uint64
next_due_table(void)
{
	uint64		table_id = 0;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute(psprintf("SELECT r.table_id FROM quorum.replicated_table r LEFT JOIN quorum.table_check c ON c.table_id = r.table_id"
							 " WHERE r.state = 'a' GROUP BY r.table_id"
							 " HAVING coalesce(max(c.started_at), '%s'::timestamptz) <= now() - %d * interval '1 second'"
							 " ORDER BY max(c.started_at) NULLS FIRST, r.table_id LIMIT 1",
							 timestamptz_to_str(started_at), quorum_check_interval_s), true, 1) < 0)
		elog(ERROR, "SPI_execute failed");
	if (SPI_processed == 1)
		table_id = strtou64(SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1), NULL, 10);
	SPI_finish();
	return table_id;
}

/* An older build stops at an entry that it does not know. */
static bool
some_are_older(void)
{
	NodeStatus *status = palloc(sizeof(NodeStatus));
	bool		found;

	shmem_get_status(status);
	found = shmem_older_build(status) != NULL;
	pfree(status);
	return found;
}

static void
schedule_check(void)
{
	uint64		table_id = 0;

	if (quorum_check_interval_s == 0 || !leads() || some_are_older())
	{
		background.index = 0;
		return;
	}
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (background_check_is_over())
	{
		background.index = 0;
		table_id = next_due_table();
	}
	PopActiveSnapshot();
	if (table_id != 0)
	{
		background.index = send_check(table_id);
		background.deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), BACKGROUND_PATIENCE_MS);
	}
	CommitTransactionCommand();
}

/* ---- life ---- */

/* False: something failed, and is to be tried again later. */
static bool
try_to(void (*action) (void))
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool succeeded = false;

	PG_TRY();
	{
		action();
		succeeded = true;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		recover_from_error(context, &error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return succeeded;
}

static void
fix_settings(void)
{
	SetConfigOption("default_transaction_isolation", "repeatable read", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_read_only", "off", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("search_path", "pg_catalog", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("client_encoding", GetDatabaseEncodingName(), PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("statement_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("lock_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("row_security", "off", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("quorum.read_consistency", "local", PGC_USERSET, PGC_S_OVERRIDE);
	SetConfigOption("idle_in_transaction_session_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
}

static void
at_exit(int code, Datum argument)
{
	check_worker_publish(NULL);
}

/* -1: nothing is to be done before the latch is set. */
static long
time_to_next_ms(bool all_sent)
{
	if (!all_sent || background.index != 0)
		return RETRY_MS;
	if (quorum_check_interval_s == 0)
		return SCHEDULE_LONGEST_MS;
	return Min(quorum_check_interval_s * 1000L, SCHEDULE_LONGEST_MS);
}

/* This is a node of a cluster, the extension is there, and proposals have a chance. */
static bool
may_propose(void)
{
	return turn_is_initialised() && pg_atomic_read_u32(&QuorumShmem->may_write) != 0;
}

static void
check_loop(MemoryContext loop_context)
{
	bool		lost_are_noted = false;

	for (;;)
	{
		bool		all_sent = true;
		CheckJob	job;

		MemoryContextSwitchTo(loop_context);
		MemoryContextReset(loop_context);
		if (check_job_get(&job))
			try_job(&job);
		if (may_propose())
		{
			lost_are_noted = lost_are_noted || try_to(note_lost_checks);
			all_sent = lost_are_noted && try_to(send_results) && try_to(schedule_check);
		}
		pgstat_report_activity(STATE_IDLE, NULL);
		if (!check_job_get(&job))
			wait_for_latch(time_to_next_ms(all_sent));
	}
}

void
quorum_check_worker_main(Datum argument)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(quorum_database, NULL, 0);
	fix_settings();
	started_at = GetCurrentTimestamp();
	before_shmem_exit(at_exit, (Datum) 0);
	check_worker_publish(MyLatch);
	check_loop(AllocSetContextCreate(TopMemoryContext, "quorum check", ALLOCSET_DEFAULT_SIZES));
}
