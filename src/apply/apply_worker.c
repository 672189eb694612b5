/*
 * apply_worker.c
 *	  Performs the log's entries that no local backend commits: those of other nodes, and orphans of this one.
 *
 * Process: one background worker per instance, connected to quorum.database.  Must never skip an entry, nor commit one that
 * a local backend owns.
 *
 * Each local transaction performs one entry or, when the worker is behind, several; the position row moves with them.  The order of commits is
 * kept by taking turns: the worker performs index applied + 1 and those that follow as long as no local backend owns them.
 *
 * Invariants
 *	 1. An index <= chosen_index that is found without an owner stays without one: proposal_learned() made its owner known before the
 *		index was published, and an owner can only be lost.  That applied_index is still below it is looked at after that.
 *	 2. The turn is passed on at XACT_EVENT_COMMIT, when the changes are visible and interrupts are held: never without a commit, never
 *		twice.
 *	 3. An entry that cannot be performed stops the worker (apply_failed, last_error) until a restart or a reload of the
 *		configuration; what passes by itself (deadlock, disk full, out of memory, …) is tried again, ever more slowly.
 *
 * Locks: none between transactions.
 */
#include "postgres.h"

#include "access/xact.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "apply/apply.h"
#include "apply/apply_internal.h"
#include "config.h"
#include "shared/check_job.h"
#include "shared/chosen_log.h"
#include "shared/position.h"
#include "shared/proposal_queue.h"
#include "shared/shmem.h"
#include "shared/table_health.h"
#include "snapshot/snapshot.h"

#define BATCH_MAX_ENTRIES 256
#define BATCH_MAX_BYTES (4 * 1024 * 1024)
#define READY_POLL_MS 1000
#define RETRY_FIRST_MS 10
#define RETRY_LONGEST_MS 5000
#define LOCK_CHECK_INTERVAL_MS 5

bool		am_apply_worker = false;

/* What the current local transaction performs: entries first_index to last_index. */
typedef struct Batch
{
	uint64		first_index;
	uint64		last_index;
	Size		bytes;
	uint64		applied_entries;
} Batch;

/* Names for messages. */
typedef struct CurrentEntry
{
	uint64		index;			/* 0: none */
	uint32		origin;
	char		schema_name[NAMEDATALEN];	/* empty: no table */
	char		table_name[NAMEDATALEN];
} CurrentEntry;

typedef struct WorkerState
{
	uint32		node_id;
	MemoryContext loop_context; /* reset with each turn of the loop */
	MemoryContext entry_context;	/* reset after each entry */
	TimeoutId	lock_check;
	bool		lock_check_runs;
	uint64		one_by_one_until;	/* a batch failed: entries up to here are performed singly, to find out which */
	int			retry_delay_ms; /* 0: the last attempt succeeded */
	TimestampTz retry_at;
	bool		error_shown;	/* last_error is ours */
	bool		failed;			/* invariant 3 */
	bool		copies;			/* it copies all tables from another node, rather than to apply the log */
} WorkerState;

static WorkerState state;
static Batch batch;
static CurrentEntry current;

/* ---- presence in shared memory ---- */

static void
publish_worker(Latch *latch, int pid)
{
	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
	QuorumShmem->apply_latch = latch;
	QuorumShmem->apply_pid = pid;
	LWLockRelease(QuorumShmem->lock);
}

static void
show_error(const char *message)
{
	shmem_set_last_error(message);
	state.error_shown = message != NULL;
}

static void
set_failed(bool failed)
{
	state.failed = failed;
	pg_atomic_write_u32(&QuorumShmem->apply_failed, failed ? 1 : 0);
	shmem_wake_consensus();		/* it must not lead, nor stay out, for longer than needed */
}

/* ---- who is in the way ---- */

/*
 * Runs in the signal handler of a timer, every few milliseconds while entries are performed.  MyProc->waitLock may go at any time, but what it
 * points to stays in the lock table's memory: at worst a check comes too early.
 */
static void
check_for_blocked_wait(void)
{
	static LOCK *last_lock = NULL;
	static int	checks = 0;
	LOCK	   *lock = MyProc != NULL ? *(LOCK *volatile *) &MyProc->waitLock : NULL;	/* NULL: about to exit */

	checks = (lock != NULL && lock == last_lock) ? checks + 1 : 0;
	last_lock = lock;
	if (lock == NULL)
		return;
	if (lock->tag.locktag_type == LOCKTAG_RELATION && checks < quorum_lock_grace_period_ms / LOCK_CHECK_INTERVAL_MS)
		return;
	shmem_wake_watcher();
}

static void
start_lock_checks(void)
{
	if (state.lock_check_runs)
		return;
	enable_timeout_every(state.lock_check,
						 TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOCK_CHECK_INTERVAL_MS),
						 LOCK_CHECK_INTERVAL_MS);
	state.lock_check_runs = true;
}

static void
stop_lock_checks(void)
{
	if (state.lock_check_runs)
		disable_timeout(state.lock_check, false);
	state.lock_check_runs = false;
}

/* No timer may find a process that is half gone: an exit takes its time. */
static void
withdraw_worker(int code, Datum argument)
{
	stop_lock_checks();
	publish_worker(NULL, 0);
}

/* ---- messages ---- */

void
apply_note_table(const char *schema_name, const char *table_name)
{
	strlcpy(current.schema_name, schema_name ? schema_name : "", NAMEDATALEN);
	strlcpy(current.table_name, table_name ? table_name : "", NAMEDATALEN);
}

static void
note_entry(uint64 index, uint32 origin)
{
	current.index = index;
	current.origin = origin;
	current.schema_name[0] = '\0';
	current.table_name[0] = '\0';
}

static void
error_context(void *argument)
{
	if (current.index == 0)
		return;
	if (current.schema_name[0] != '\0')
		errcontext("applying log index %llu of node %u, table %s.%s", (unsigned long long) current.index, current.origin,
				   current.schema_name, current.table_name);
	else
		errcontext("applying log index %llu of node %u", (unsigned long long) current.index, current.origin);
}

static char *
describe_error(const ErrorData *error)
{
	char	   *where;

	if (current.index == 0)
		return psprintf("apply: %s", error->message);
	where = current.schema_name[0] != '\0' ?
		psprintf(", table %s.%s", current.schema_name, current.table_name) : "";
	return psprintf("entry %llu of node %u%s: %s%s%s", (unsigned long long) current.index, current.origin, where,
					error->message, error->detail ? " " : "", error->detail ? error->detail : "");
}

/* ---- one local transaction ---- */

/* At the commit of the worker's transactions: invariant 2. */
static void
transaction_callback(XactEvent event, void *argument)
{
	if (event == XACT_EVENT_ABORT)
		position_at_abort();
	if (event != XACT_EVENT_COMMIT || batch.first_index == 0)
		return;
	position_at_commit();
	for (uint64 index = batch.first_index; index <= batch.last_index; index++)
		turn_pass(index);
	batch.first_index = 0;
}

static bool
is_row_operation(WriteSetOperation operation)
{
	return operation == WRITESET_INSERT || operation == WRITESET_UPDATE || operation == WRITESET_DELETE ||
		operation == WRITESET_SEQUENCE;
}

static bool
is_check_operation(WriteSetOperation operation)
{
	return operation == WRITESET_TABLE_CHECK || operation == WRITESET_CHECK_RESULT || operation == WRITESET_TABLE_COMPARE;
}

static void
perform(WriteSetReader *reader, WriteSetOperation operation, uint64 table_id, uint64 index, const LogItem *item)
{
	if (operation == WRITESET_SEQUENCE)
	{
		row_apply_sequence(reader, table_id);
		return;
	}
	if (is_row_operation(operation))
	{
		row_apply_change(reader, operation, table_id);
		return;
	}
	row_apply_close_tables();	/* what follows may need stronger locks than an open table allows */
	if (is_check_operation(operation))
		check_apply_operation(reader, operation, table_id, index, item->origin);
	else
		table_apply_operation(reader, operation, table_id, index, item->origin == state.node_id, item->origin);
}

/*
 * Performs one entry with verdict APPLY.  False: it begins with a control operation and is to have a transaction of its own, because
 * this one has performed others already.
 */
static bool
perform_entry(uint64 index, const LogItem *item, bool *is_control)
{
	MemoryContext old_context = MemoryContextSwitchTo(state.entry_context);
	WriteSetReader reader;
	WriteSetOperation operation;
	uint64		table_id;
	bool		performed = true;

	note_entry(index, item->origin);
	*is_control = false;
	writeset_read_begin(&reader, chosen_log_read_payload(item), item->length);
	while (writeset_read_operation(&reader, &operation, &table_id))
	{
		CHECK_FOR_INTERRUPTS();
		if (!is_row_operation(operation) && !*is_control)
		{
			*is_control = true;
			if (reader.changes_read == 1 && batch.applied_entries > 0)
			{
				performed = false;
				break;
			}
		}
		perform(&reader, operation, table_id, index, item);
	}
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(state.entry_context);
	return performed;
}

static bool
batch_has_room(uint64 index)
{
	if (batch.applied_entries == 0)
		return true;
	return index > state.one_by_one_until && batch.first_index > state.one_by_one_until &&
		index - batch.first_index < BATCH_MAX_ENTRIES && batch.bytes < BATCH_MAX_BYTES && !turn_is_owned(index);
}

/* The first entry has verdict APPLY and no owner; others follow it as long as there is room. */
static void
fill_batch(uint64 first_index, uint64 chosen_index)
{
	memset(&batch, 0, sizeof(batch));
	for (uint64 index = first_index; index <= chosen_index && batch_has_room(index); index++)
	{
		LogItem		item;
		bool		is_control = false;

		chosen_log_read_item(index, &item);
		if (item.verdict == LOG_VERDICT_APPLY)
		{
			if (!perform_entry(index, &item, &is_control))
				break;
			batch.applied_entries++;
			batch.bytes += item.length;
		}
		batch.first_index = first_index;
		batch.last_index = index;
		if (is_control)
			break;
	}
}

static void
report_activity(uint64 index)
{
	char		text[64];

	snprintf(text, sizeof(text), "applying the log from index %llu on", (unsigned long long) index);
	pgstat_report_activity(STATE_RUNNING, text);
}

static void
count_batch(void)
{
	pg_atomic_fetch_add_u64(&QuorumShmem->counters.entries_applied, batch.applied_entries);
	pg_atomic_fetch_add_u64(&QuorumShmem->counters.rows_applied, row_apply_take_count());
	pg_atomic_fetch_add_u64(&QuorumShmem->counters.apply_transactions, 1);
}

static void
perform_batch(uint64 first_index, uint64 chosen_index)
{
	report_activity(first_index);
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	fill_batch(first_index, chosen_index);
	note_entry(batch.last_index, 0);
	position_update(batch.last_index);
	row_apply_close_tables();
	PopActiveSnapshot();
	CommitTransactionCommand();
	QuorumShmem->apply_waits_for_pid = 0;
	count_batch();
	memset(&batch, 0, sizeof(batch));
	note_entry(0, 0);
	(void) pgstat_report_stat(false);
}

/* ---- progress and trouble ---- */

/* Does the next thing there is to do; false: nothing, or it is a local backend's turn. */
static bool
apply_next(void)
{
	uint64		applied_index = turn_applied_index();
	uint64		chosen_index = pg_atomic_read_u64(&QuorumShmem->chosen_index);
	uint64		index = applied_index + 1;
	LogItem		item;

	if (applied_index >= chosen_index || turn_is_owned(index))
		return false;
	if (turn_applied_index() != applied_index)
		return true;			/* its owner has committed it between the two looks */
	pg_read_barrier();			/* the item was written before chosen_index */
	chosen_log_read_item(index, &item);
	if (item.verdict != LOG_VERDICT_APPLY)
	{
		turn_pass(index);
		return true;
	}
	start_lock_checks();
	perform_batch(index, chosen_index);
	return true;
}

/* Conditions that pass by themselves, or when somebody makes room; never the entry's own fault. */
static bool
is_retryable(int sqlerrcode)
{
	switch (ERRCODE_TO_CATEGORY(sqlerrcode))
	{
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_OPERATOR_INTERVENTION:
		case ERRCODE_SYSTEM_ERROR:
			return true;
	}
	return sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE || sqlerrcode == ERRCODE_OBJECT_IN_USE;
}

static void
schedule_retry(void)
{
	state.retry_delay_ms = state.retry_delay_ms == 0 ? RETRY_FIRST_MS : Min(state.retry_delay_ms * 2, RETRY_LONGEST_MS);
	state.retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), state.retry_delay_ms);
}

static void
handle_error(const ErrorData *error, uint64 first_index)
{
	bool		is_single = batch.applied_entries == 0 || first_index <= state.one_by_one_until;

	if (is_retryable(error->sqlerrcode))
	{
		show_error(describe_error(error));
		schedule_retry();
	}
	else if (!is_single)
		state.one_by_one_until = first_index + BATCH_MAX_ENTRIES;
	else
	{
		show_error(describe_error(error));
		set_failed(true);
		ereport(LOG,
				(errmsg("this node has stopped applying the log"),
				 errdetail_internal("%s", describe_error(error)),
				 errhint("Put the cause right, then reload the configuration (pg_reload_conf()) or restart the server.")));
	}
}

/* What the log no longer leads to; false: it can't begin just now. */
static bool
copy_tables(void)
{
	bool		copied;

	state.copies = true;
	start_lock_checks();
	copied = snapshot_copy();
	state.copies = false;
	if (!copied)
		schedule_retry();
	return copied;
}

/* The log, entry by entry; what it lacks is copied. */
static bool
go_on(void)
{
	bool		had_trouble = state.retry_delay_ms > 0;
	bool		progressed;

	if (snapshot_is_due())
		return copy_tables();
	progressed = apply_next();
	state.retry_delay_ms = 0;
	if ((progressed || had_trouble) && state.error_shown)
		show_error(NULL);
	return progressed;
}

static void
handle_failed_copy(const ErrorData *error)
{
	char	   *where = current.schema_name[0] != '\0' ? psprintf("table %s.%s: ", current.schema_name, current.table_name) : "";

	snapshot_after_error(error->sqlerrcode);
	state.copies = false;
	show_error(psprintf("copying the tables from another node: %s%s%s%s", where, error->message, error->detail ? " " : "",
						error->detail ? error->detail : ""));
	schedule_retry();
}

/* As go_on(), but survives errors. */
static bool
try_to_go_on(void)
{
	ErrorContextCallback callback = {.previous = error_context_stack, .callback = error_context};
	volatile bool progressed = false;

	error_context_stack = &callback;
	PG_TRY();
	{
		progressed = go_on();
	}
	PG_CATCH();
	{
		ErrorData  *error;
		uint64		first_index = turn_applied_index() + 1;

		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(state.loop_context);
		error = CopyErrorData();
		EmitErrorReport();
		AbortOutOfAnyTransaction();
		FlushErrorState();
		row_apply_forget_tables();
		(void) row_apply_take_count();
		MemoryContextSwitchTo(state.loop_context);
		MemoryContextReset(state.entry_context);
		if (state.copies)
			handle_failed_copy(error);
		else
			handle_error(error, first_index);
		memset(&batch, 0, sizeof(batch));
		note_entry(0, 0);
		QueryCancelPending = false;
		RESUME_INTERRUPTS();
		progressed = !state.failed && state.retry_delay_ms == 0;	/* a batch is taken apart at once */
	}
	PG_END_TRY();
	error_context_stack = callback.previous;
	return progressed;
}

/* ---- start ---- */

static void
fix_setting(const char *name, const char *value)
{
	SetConfigOption(name, value, PGC_SUSET, PGC_S_OVERRIDE);
}

/* What the log says must have the same effect whatever postgresql.conf, the database or the role say. */
static void
fix_settings(void)
{
	fix_setting("session_replication_role", "replica");
	fix_setting("synchronous_commit", "off");
	fix_setting("search_path", "pg_catalog");
	fix_setting("client_encoding", GetDatabaseEncodingName());
	fix_setting("datestyle", "ISO, YMD");
	fix_setting("intervalstyle", "postgres");
	fix_setting("extra_float_digits", "3");
	fix_setting("lc_monetary", "C");
	fix_setting("array_nulls", "on");
	fix_setting("xmloption", "content");
	fix_setting("row_security", "off");
	fix_setting("check_function_bodies", "off");
	fix_setting("default_transaction_isolation", "read committed");
	fix_setting("default_transaction_read_only", "off");
	fix_setting("default_transaction_deferrable", "off");
	fix_setting("default_tablespace", "");
	fix_setting("default_table_access_method", "heap");
	fix_setting("statement_timeout", "0");
	fix_setting("lock_timeout", "0");
	fix_setting("idle_in_transaction_session_timeout", "0");
}

static void
handle_signals(void)
{
	CHECK_FOR_INTERRUPTS();
	if (!ConfigReloadPending)
		return;
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
	if (state.failed)
	{
		ereport(LOG, (errmsg("trying again to apply the log")));
		set_failed(false);
	}
}

static bool
extension_exists(void)
{
	bool		exists;

	StartTransactionCommand();
	exists = OidIsValid(position_relid());
	CommitTransactionCommand();
	return exists;
}

/* Until this instance is a member of a cluster and the extension is there. */
static void
wait_until_ready(void)
{
	for (;;)
	{
		NodeIdentity identity;

		ResetLatch(MyLatch);
		handle_signals();
		shmem_get_identity(&identity);
		state.node_id = identity.node_id;
		if (identity.node_id != 0 && extension_exists())
			return;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, READY_POLL_MS, PG_WAIT_EXTENSION);
	}
}

/* If only this worker was restarted, the turn and the place of the row are in shared memory, and backends may be about to move them. */
static void
find_position(void)
{
	uint64		index;

	if (turn_is_initialised())
		return;
	StartTransactionCommand();
	index = turn_index_of_position(position_find());
	PushActiveSnapshot(GetTransactionSnapshot());
	table_health_publish();		/* before anybody can be told by this node to lead */
	PopActiveSnapshot();
	CommitTransactionCommand();
	turn_set_applied(index);
	ereport(LOG, (errmsg("applying the log after index %llu", (unsigned long long) index)));
}

/* ---- loop ---- */

static bool
is_time_to_apply(void)
{
	return !state.failed && (state.retry_delay_ms == 0 || GetCurrentTimestamp() >= state.retry_at);
}

/* -1: until the latch is set. */
static long
wait_timeout_ms(long statistics_ms)
{
	long		timeout_ms = statistics_ms > 0 ? statistics_ms : -1;

	if (!state.failed && state.retry_delay_ms > 0)
	{
		long		retry_ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), state.retry_at) + 1;

		timeout_ms = timeout_ms < 0 ? retry_ms : Min(timeout_ms, retry_ms);
	}
	return timeout_ms;
}

static void
apply_loop(void)
{
	for (;;)
	{
		long		timeout_ms;

		MemoryContextSwitchTo(state.loop_context);
		MemoryContextReset(state.loop_context);
		ResetLatch(MyLatch);
		handle_signals();
		if (is_time_to_apply() && try_to_go_on())
		{
			SetLatch(MyLatch);
			continue;
		}
		stop_lock_checks();
		timeout_ms = wait_timeout_ms(pgstat_report_stat(false));
		pgstat_report_activity(STATE_IDLE, NULL);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (timeout_ms >= 0 ? WL_TIMEOUT : 0),
						 timeout_ms, PG_WAIT_EXTENSION);
	}
}

void
quorum_apply_worker_main(Datum argument)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	am_apply_worker = true;
	memset(&state, 0, sizeof(state));
	state.lock_check = RegisterTimeout(USER_TIMEOUT, check_for_blocked_wait);

	BackgroundWorkerInitializeConnection(quorum_database, NULL, 0);
	fix_settings();
	RegisterXactCallback(transaction_callback, NULL);
	before_shmem_exit(withdraw_worker, (Datum) 0);
	publish_worker(MyLatch, MyProcPid);
	state.entry_context = AllocSetContextCreate(TopMemoryContext, "quorum apply entry", ALLOCSET_DEFAULT_SIZES);
	state.loop_context = AllocSetContextCreate(TopMemoryContext, "quorum apply loop", ALLOCSET_DEFAULT_SIZES);
	set_failed(false);
	check_job_reset();
	snapshot_reset();

	wait_until_ready();
	find_position();
	apply_loop();
}
