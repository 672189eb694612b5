/*
 * read_wait.c
 *	  How a reader waits: for a read index that a quorum confirms, and for a log index that the user names.  Process: client backend.
 *
 * Must never hold interrupts off: a reader may hold row or table locks that an agreed entry needs, and is aborted then.  Whoever is aborted
 * in here leaves its slot as it is (read_round.h, invariant 3).
 *
 * Locks: none of its own while waiting.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/latch.h"
#include "utils/wait_event.h"

#include "capture/read_barrier.h"
#include "config.h"
#include "shared/identity.h"
#include "shared/position.h"
#include "shared/proposal_queue.h"
#include "shared/quick_latch.h"
#include "shared/read_round.h"
#include "shared/shmem.h"

PG_FUNCTION_INFO_V1(quorum_wait_for);
PG_FUNCTION_INFO_V1(quorum_last_commit_index);

#define PATIENCE_ELECTIONS 4		/* as the core: long enough for a new leader to be elected */
#define ANSWER_PATIENCES 5			/* with a quorum, but without an answer */
#define CHECK_INTERVAL_MS 100

static bool
apply_has_failed(void)
{
	return pg_atomic_read_u32(&QuorumShmem->apply_failed) != 0;
}

static uint64
elapsed_ms(instr_time started)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, started);
	return (uint64) INSTR_TIME_GET_MILLISEC(now);
}

/*
 * An election is waited for.  A node that has had no quorum for longer fails at once; where that is noticed during the wait, what was waited before
 * counts too.  One that has an index, and the entries up to it, needs no quorum any more.
 */
static bool
is_hopeless(ReaderState state, uint64 index, uint64 waited_ms)
{
	uint64		patience_ms = PATIENCE_ELECTIONS * (uint64) quorum_election_timeout_ms;
	uint64		without_quorum_ms = read_round_ms_without_quorum();

	if (apply_has_failed() || pg_atomic_read_u32(&QuorumShmem->removed) != 0)
		return true;
	if (state == READER_APPLYING && pg_atomic_read_u64(&QuorumShmem->chosen_index) >= index)
		return false;
	if (without_quorum_ms > 0)
		return without_quorum_ms >= patience_ms || (waited_ms >= patience_ms && without_quorum_ms >= patience_ms / 2);
	return state != READER_APPLYING && waited_ms >= ANSWER_PATIENCES * patience_ms;
}

static void
wait_a_moment(void)
{
	quick_latch_wait(CHECK_INTERVAL_MS, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

bool
read_wait_for_quorum(uint64 *read_index)
{
	instr_time	started;
	ReaderState state;

	INSTR_TIME_SET_CURRENT(started);
	if (is_hopeless(READER_IDLE, 0, 0))
		return false;
	read_round_ask();
	while ((state = read_round_poll(read_index)) != READER_DONE)
	{
		if (is_hopeless(state, *read_index, elapsed_ms(started)))
			return false;
		if (state == READER_FAILED)
			read_round_ask();
		wait_a_moment();
	}
	pg_atomic_fetch_add_u64(&QuorumShmem->counters.linearizable_reads, 1);
	return true;
}

/* ---- what is said otherwise ---- */

#define HINT_LOCAL "SET quorum.read_consistency = 'local' reads what this node has."

void
report_no_linearizable_read(void)
{
	NodeStatus	status;
	NodeIdentity identity;

	shmem_get_status(&status);
	shmem_get_identity(&identity);
	if (apply_has_failed())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("this node has stopped applying the log: it cannot serve a linearizable read"),
				 errhint("See last_error in quorum.status, and connect to another node. " HINT_LOCAL)));
	if (pg_atomic_read_u32(&QuorumShmem->removed) == REMOVED_LEFT_BEHIND)
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("this node was left behind by the cluster: it cannot serve a linearizable read"),
				 errdetail_internal("%s", shmem_last_error()),
				 errhint("Connect to a member. SELECT quorum.leave_cluster(force => true) makes this an ordinary instance, which keeps its rows. " HINT_LOCAL)));
	if (pg_atomic_read_u32(&QuorumShmem->removed) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("this node was removed from the cluster: it cannot serve a linearizable read"),
				 errhint("Connect to a member. SELECT quorum.leave_cluster() makes this an ordinary instance, which keeps its rows. " HINT_LOCAL)));
	if (identity.node_id == 0 || status.voter_count == 0)
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("this node is not a running member of a cluster: it cannot serve a linearizable read"),
				 errhint("See quorum.status. " HINT_LOCAL)));
	if (!status.has_quorum && status.voters_reachable < status.quorum_size)
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("no quorum: a linearizable read is not possible"),
				 errdetail("%d of %d voters can be reached from node \"%s\"; %d are needed.",
						   status.voters_reachable, status.voter_count, identity.node_name, status.quorum_size),
				 errhint("Connect to a node in the majority, or retry when more nodes are back. " HINT_LOCAL)));
	ereport(ERROR,
			(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
			 errmsg(status.has_quorum ? "a linearizable read is not possible now" : "no quorum: a linearizable read is not possible"),
			 errdetail("No quorum has confirmed to node \"%s\" in time what it must have applied; it reaches %d of %d voters.",
					   identity.node_name, status.voters_reachable, status.voter_count),
			 errhint("Retry, or connect to another node. " HINT_LOCAL)));
}

/* ---- causal reads ---- */

static void
check_can_apply(void)
{
	if (apply_has_failed())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this node has stopped applying the log"),
				 errhint("See last_error in quorum.status.")));
	if (QuorumShmem->identity.node_id == 0 && !identity_exists())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this node is not a member of a cluster"),
				 errhint("Call quorum.create_cluster or quorum.join_cluster first.")));
}

/* Without a quorum it goes on waiting: that is what statement_timeout is for. */
Datum
quorum_wait_for(PG_FUNCTION_ARGS)
{
	int64		log_index = PG_GETARG_INT64(0);
	uint64		index;

	if (log_index < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a log index cannot be negative")));
	if (turn_applied_index() < (uint64) log_index)
	{
		read_round_await_index((uint64) log_index);
		while (read_round_poll(&index) != READER_DONE)
		{
			check_can_apply();
			wait_a_moment();
		}
	}
	PG_RETURN_VOID();
}

Datum
quorum_last_commit_index(PG_FUNCTION_ARGS)
{
	if (position_last_committed() == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT64((int64) position_last_committed());
}
