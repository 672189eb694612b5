/*
 * check_job.c
 *	  How the apply worker hands a table over at an exact log index; see check_job.h for the states.
 *
 * Process: apply worker, check worker, client backends.  Must never hold up the log for longer than the other process needs to take
 * a snapshot, unless a session repairs this node's copy, and lives.
 *
 * Locks: QuorumShmem->lock, shortly; never while waiting.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "shared/check_job.h"
#include "shared/shmem.h"

#define TAKE_PATIENCE_MS 1000	/* taking a snapshot takes far less; a check worker that is busy with its last report, a little longer */
#define LOOK_INTERVAL_MS 100

#define job (&QuorumShmem->check_job)
#define session (&QuorumShmem->compare_session)

static void
enter(void)
{
	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
}

static void
leave(void)
{
	LWLockRelease(QuorumShmem->lock);
}

static void
wait_a_moment(void)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, LOOK_INTERVAL_MS, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/* ---- apply worker: jobs ---- */

void
check_job_reset(void)
{
	enter();
	if (job->state == CHECK_JOB_OFFERED || job->state == CHECK_JOB_REFUSED)
		job->state = CHECK_JOB_FREE;
	leave();
}

static bool
offer(CheckJobKind kind, uint64 index, uint64 table_id, Oid relid, bool gently)
{
	bool		offered;

	enter();
	offered = job->state == CHECK_JOB_FREE && QuorumShmem->checker_latch != NULL;
	if (offered)
	{
		job->state = CHECK_JOB_OFFERED;
		job->kind = kind;
		job->index = index;
		job->table_id = table_id;
		job->relid = relid;
		job->gently = gently;
		job->released = false;
		job->snapshot_name[0] = '\0';
	}
	leave();
	if (offered)
		shmem_wake_checker();
	return offered;
}

/* What has become of the offer; at the end of the patience it is withdrawn. */
static CheckJobState
look_at_offer(bool patience_is_over)
{
	CheckJobState state;

	enter();
	state = job->state;
	if (state == CHECK_JOB_OFFERED && patience_is_over)
		state = CHECK_JOB_REFUSED;
	if (state == CHECK_JOB_REFUSED)
		job->state = CHECK_JOB_FREE;
	leave();
	return state;
}

/*
 * The check worker is not free.  If it holds a snapshot, it has to make room after a while: whoever that is for comes at once, or
 * not at all.  False: it is of no use to wait.
 */
static bool
wait_for_holder(TimestampTz deadline)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		may_be_free;

	enter();
	may_be_free = QuorumShmem->checker_latch != NULL &&
		(job->state == CHECK_JOB_FREE || (job->kind == CHECK_JOB_HOLD && job->state == CHECK_JOB_TAKEN));
	if (may_be_free && now >= TimestampTzPlusMilliseconds(deadline, -TAKE_PATIENCE_MS / 2))
		job->released = true;
	leave();
	if (!may_be_free || now >= deadline)
		return false;
	shmem_wake_checker();
	wait_a_moment();
	return true;
}

bool
check_job_hand_over(CheckJobKind kind, uint64 index, uint64 table_id, Oid relid, bool gently)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), TAKE_PATIENCE_MS);
	volatile bool taken = false;

	while (!offer(kind, index, table_id, relid, gently))
		if (!wait_for_holder(deadline))
			return false;
	deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), TAKE_PATIENCE_MS);
	PG_TRY();
	{
		CheckJobState state;

		while ((state = look_at_offer(GetCurrentTimestamp() >= deadline)) == CHECK_JOB_OFFERED)
			wait_a_moment();
		taken = state != CHECK_JOB_REFUSED; /* FREE: the check worker is done with it already */
	}
	PG_CATCH();
	{
		check_job_reset();
		PG_RE_THROW();
	}
	PG_END_TRY();
	return taken;
}

/* More than are kept are not told; whoever waits for them finds this node missing. */
void
check_job_note_skipped(uint64 index, uint64 table_id)
{
	SkippedChecks *skipped = &QuorumShmem->skipped_checks;

	enter();
	if (skipped->count < SKIPPED_CHECKS_KEPT)
	{
		skipped->items[skipped->count].index = index;
		skipped->items[skipped->count++].table_id = table_id;
	}
	leave();
	shmem_wake_checker();
}

/* ---- check worker ---- */

/* One that starts or leaves has nothing in hand. */
void
check_worker_publish(Latch *latch)
{
	enter();
	QuorumShmem->checker_latch = latch;
	if (job->state == CHECK_JOB_TAKEN)
		job->state = CHECK_JOB_FREE;
	if (job->state == CHECK_JOB_OFFERED)
		job->state = CHECK_JOB_REFUSED;
	leave();
	shmem_wake_apply();
}

bool
check_job_get(CheckJob *copy)
{
	enter();
	*copy = *job;
	leave();
	return copy->state == CHECK_JOB_OFFERED;
}

static bool
answer_offer(CheckJobState state, const char *snapshot_name)
{
	bool		in_time;

	enter();
	in_time = job->state == CHECK_JOB_OFFERED;
	if (in_time)
	{
		job->state = state;
		strlcpy(job->snapshot_name, snapshot_name, CHECK_SNAPSHOT_NAME_LENGTH);
	}
	leave();
	shmem_wake_apply();
	return in_time;
}

/* If it is still offered, the apply worker still had the turn when the snapshot was taken. */
bool
check_job_take(const char *snapshot_name)
{
	return answer_offer(CHECK_JOB_TAKEN, snapshot_name);
}

void
check_job_refuse(void)
{
	(void) answer_offer(CHECK_JOB_REFUSED, "");
}

void
check_job_done(void)
{
	enter();
	if (job->state == CHECK_JOB_TAKEN)
		job->state = CHECK_JOB_FREE;
	leave();
}

bool
check_job_is_released(void)
{
	bool		released;

	enter();
	released = job->released;
	leave();
	return released;
}

bool
check_job_next_skipped(SkippedCheck *next)
{
	SkippedChecks *skipped = &QuorumShmem->skipped_checks;
	bool		found;

	enter();
	found = skipped->count > 0;
	if (found)
	{
		*next = skipped->items[0];
		memmove(&skipped->items[0], &skipped->items[1], --skipped->count * sizeof(SkippedCheck));
	}
	leave();
	return found;
}

/* ---- client backends: a snapshot that is held for another node ---- */

char *
check_job_held_snapshot(uint64 index)
{
	char		name[CHECK_SNAPSHOT_NAME_LENGTH] = "";

	enter();
	if (job->kind == CHECK_JOB_HOLD && job->state == CHECK_JOB_TAKEN && job->index == index && !job->released)
		strlcpy(name, job->snapshot_name, sizeof(name));
	leave();
	return name[0] != '\0' ? pstrdup(name) : NULL;
}

void
check_job_release(uint64 index)
{
	enter();
	if (job->kind == CHECK_JOB_HOLD && job->index == index)
		job->released = true;
	leave();
	shmem_wake_checker();
}

/* ---- the session that compares ---- */

void
compare_session_begin(uint64 nonce)
{
	int			other_pid;

	enter();
	other_pid = session->pid;
	if (other_pid == 0)
	{
		session->pid = MyProcPid;
		session->latch = MyLatch;
		session->nonce = nonce;
		session->state = COMPARE_WAITING;
		session->message[0] = '\0';
	}
	leave();
	if (other_pid != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("process %d compares or repairs a table already", other_pid),
				 errhint("Wait until it is done.")));
}

void
compare_session_end(void)
{
	enter();
	if (session->pid == MyProcPid)
		session->pid = 0;
	leave();
	shmem_wake_apply();
}

CompareState
compare_session_state(void)
{
	CompareState state;

	enter();
	state = session->state;
	leave();
	return state;
}

char *
compare_session_message(void)
{
	char		message[sizeof(session->message)];

	enter();
	strlcpy(message, session->message, sizeof(message));
	leave();
	return pstrdup(message);
}

void
compare_session_set(CompareState state)
{
	enter();
	session->state = state;
	leave();
	shmem_wake_apply();
}

/* ---- apply worker: the session ---- */

static void
wake_session(void)
{
	Latch	   *latch = session->latch;

	if (latch != NULL)
		SetLatch(latch);		/* of a PGPROC: at worst a spurious wakeup */
}

static bool
reach_index(uint64 nonce)
{
	bool		awaited;

	enter();
	awaited = session->pid != 0 && session->nonce == nonce && session->state == COMPARE_WAITING;
	if (awaited)
		session->state = COMPARE_AT_INDEX;
	leave();
	if (awaited)
		wake_session();
	return awaited;
}

/* A session that is gone needs nothing any more. */
static CompareState
look_at_session(uint64 nonce)
{
	CompareState state = COMPARE_GO_ON;

	enter();
	if (session->pid != 0 && session->nonce == nonce)
		state = session->state;
	leave();
	return state;
}

CompareState
compare_session_hand_over(uint64 nonce)
{
	CompareState state;

	if (!reach_index(nonce))
		return COMPARE_GO_ON;
	while ((state = look_at_session(nonce)) == COMPARE_AT_INDEX)
		wait_a_moment();
	return state;
}

void
compare_session_finish(const char *error_message)
{
	enter();
	if (session->state == COMPARE_REPAIR)
		session->state = error_message == NULL ? COMPARE_DONE : COMPARE_FAILED;
	strlcpy(session->message, error_message ? error_message : "", sizeof(session->message));
	leave();
	wake_session();
}
