/*
 * compactor.c
 *	  The worker "quorum compactor": makes the log state, so that the log before it can go.
 *
 * One per instance, without a database connection.  It sleeps until the consensus worker finds that the journal has grown enough since the last
 * state, but for a moment now and then, when it saves the ages of tokens (token_memory.h).  Must never hold up the consensus worker, nor let a state
 * become durable that is ahead of the tables after a crash.
 *
 * Invariants
 *	 1. The state's index was applied here, and the local commits up to it were durable, before the state was: commits are asynchronous, and after a crash the
 *		tables need the log again from the last one that was flushed.
 *	 2. The chosen log's items up to the index were durable too: a restart rebuilds those after it only.
 *	 3. The file log_state is replaced under log_state_lock, by one of a higher index than was published.
 *	 4. Memory is that of one state.
 *
 * Locks: QuorumShmem->log_state_lock, for a rename.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "config.h"
#include "consensus/consensus_worker.h"
#include "consensus/log_state_store.h"
#include "shared/chosen_log.h"
#include "shared/proposal_queue.h"
#include "shared/shmem.h"
#include "shared/token_memory.h"

#define TEMPORARY_PATH LOG_STATE_PATH ".tmp"
#define AFTER_ERROR_MS 10000

/* The state as it is in the file, or ahead of that if it could not be written. */
static LogState state;
static bool has_state = false;
static MemoryContext state_context = NULL;

static uint64
published_index(void)
{
	return pg_atomic_read_u64(&QuorumShmem->log_state_index);
}

static void
drop_state(void)
{
	if (has_state)
		log_state_free(&state);
	has_state = false;
	MemoryContextReset(state_context);
}

/* From the file; while nothing was trimmed yet, from the first slot on. */
static void
load_state(const NodeIdentity *identity)
{
	LogStateHead head;
	LogStateFound found;
	const char *why = "there is none";

	drop_state();
	log_state_begin(&state, state_context);
	has_state = true;
	found = log_state_load(&state, LOG_STATE_PATH, identity->cluster_id, &head, &why);
	if (found == LOG_STATE_LOADED)
		return;
	if (chosen_log_first_held() > 1)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("file \"%s\" cannot be read", LOG_STATE_PATH),
				 errdetail("Of that log state: %s.", why)));
	drop_state();
	log_state_begin(&state, state_context);
	has_state = true;
	log_state_set_bootstrap(&state);
}

/* False: the consensus worker has taken another state meanwhile. */
static bool
publish_state(void)
{
	bool		is_newer;

	LWLockAcquire(QuorumShmem->log_state_lock, LW_EXCLUSIVE);
	is_newer = state.index > published_index();
	if (is_newer)
	{
		(void) durable_rename(TEMPORARY_PATH, LOG_STATE_PATH, ERROR);
		pg_atomic_write_u64(&QuorumShmem->log_state_last_applied, state.last_applied);
		pg_write_barrier();
		pg_atomic_write_u64(&QuorumShmem->log_state_index, state.index);
	}
	LWLockRelease(QuorumShmem->log_state_lock);
	return is_newer;
}

/*
 * Where the WAL that was inserted so far ends.  When the last record ends with its page, the server's position is behind the header of the next page, of
 * which nothing exists yet, and to flush up to there is an error.
 */
static XLogRecPtr
end_of_wal(void)
{
	XLogRecPtr	position = GetXLogInsertRecPtr();

	if (XLogSegmentOffset(position, wal_segment_size) == SizeOfXLogLongPHD)
		return position - SizeOfXLogLongPHD;
	if (position % XLOG_BLCKSZ == SizeOfXLogShortPHD)
		return position - SizeOfXLogShortPHD;
	return position;
}

static void
compact(void)
{
	uint64		applied_index = turn_applied_index();
	NodeIdentity identity;

	/* What is applied was inserted into the WAL before it was counted as applied. */
	pg_memory_barrier();
	XLogFlush(end_of_wal());

	shmem_get_identity(&identity);
	if (!has_state || state.index < published_index())
		load_state(&identity);
	if (state.index >= applied_index)
		return;
	log_state_advance(&state, applied_index);
	if (state.config_bytes == NULL)
		return;					/* this node has not come to its first configuration entry yet */
	chosen_log_sync(Max(published_index() + 1, chosen_log_first_held()), applied_index);
	log_state_store(&state, &identity, TEMPORARY_PATH);
	if (!publish_state())
		drop_state();
	else
		ereport(quorum_log_level,
				(errmsg("log state of index %llu written", (unsigned long long) applied_index)));
}

static void
wait_for_latch(long timeout_ms)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (timeout_ms >= 0 ? WL_TIMEOUT : 0), timeout_ms, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

/*
 * The log is not trimmed until this is put right.  Another verdict than at delivery, or a file that can't be read, is a matter for the operator; a
 * full disk may pass.
 */
static void
handle_error(void)
{
	ErrorData  *error;

	MemoryContextSwitchTo(TopMemoryContext);
	error = CopyErrorData();
	EmitErrorReport();
	FlushErrorState();
	LWLockReleaseAll();
	if (error->sqlerrcode == ERRCODE_DATA_CORRUPTED)
	{
		shmem_set_last_error(psprintf("compactor: %s%s%s", error->message, error->detail ? ": " : "", error->detail ? error->detail : ""));
		for (;;)
			wait_for_latch(-1);
	}
	wait_for_latch(AFTER_ERROR_MS);
	proc_exit(1);
}

/* The consensus worker asks for one only after it has found where the log begins. */
static bool
is_wanted(void)
{
	return turn_is_initialised() && pg_atomic_read_u32(&QuorumShmem->log_state_wanted) == LOG_STATE_WANTED;
}

static void
compact_once(void)
{
	pg_atomic_write_u32(&QuorumShmem->log_state_wanted, LOG_STATE_IN_THE_MAKING);
	PG_TRY();
	{
		compact();
	}
	PG_CATCH();
	{
		handle_error();
	}
	PG_END_TRY();
	pg_atomic_write_u32(&QuorumShmem->log_state_wanted, LOG_STATE_NOT_WANTED);
}

/* Now and then: it says how long the tokens have been known here, after a restart too. */
static void
save_token_ages(void)
{
	PG_TRY();
	{
		token_memory_save();
	}
	PG_CATCH();
	{
		handle_error();
	}
	PG_END_TRY();
}

static void
forget_latch(int code, Datum argument)
{
	QuorumShmem->compactor_latch = NULL;
}

void
quorum_compactor_main(Datum argument)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "quorum compactor", ALLOCSET_DEFAULT_SIZES);

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	before_shmem_exit(forget_latch, (Datum) 0);
	QuorumShmem->compactor_latch = MyLatch;
	pg_atomic_write_u32(&QuorumShmem->log_state_wanted, LOG_STATE_NOT_WANTED);	/* an earlier life of this process may have left it */
	state_context = AllocSetContextCreate(TopMemoryContext, "quorum log state", ALLOCSET_DEFAULT_SIZES);

	for (;;)
	{
		MemoryContextSwitchTo(context);
		if (is_wanted())
			compact_once();
		save_token_ages();
		MemoryContextReset(context);
		wait_for_latch(TOKEN_MEMORY_SAVE_INTERVAL_MS);
	}
}
