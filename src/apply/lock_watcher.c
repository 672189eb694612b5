/*
 * lock_watcher.c
 *	  Frees the apply worker's way: aborts local transactions that hold a lock which an agreed entry needs.
 *
 * A background worker without a database connection.  The apply worker cannot do this itself while it sleeps in the lock manager; its timer
 * (armed for each entry) sets this process's latch.  Whoever is found in the way gets SQLSTATE 40001, which is true: what blocks the
 * apply worker was based on a state older than the entry that it applies, so it could not commit.
 *
 * Must never signal a backend that has proposed: its verdict comes from the log (proposal_doom sees to that).  Locks: the lock
 * manager's partition locks inside pg_blocking_pids, the proposal queue's spinlock.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/procsignal.h"
#include "tcop/tcopprot.h"
#include "utils/array.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "apply/apply.h"
#include "config.h"
#include "shared/chosen_log.h"
#include "shared/maintenance.h"
#include "shared/proposal_queue.h"
#include "shared/shmem.h"

/* For the message; the entry is the one that is being applied, or one of those after it that are applied together with it. */
static void
describe_doom(DoomedTransaction *doomed, LocalTransactionId transaction)
{
	LogItem		item;

	memset(doomed, 0, sizeof(DoomedTransaction));
	doomed->transaction = transaction;
	doomed->doomed_at = GetCurrentTimestamp();
	doomed->log_index = turn_applied_index() + 1;
	if (doomed->log_index > turn_chosen_index())
		return;					/* it has just been applied */
	if (chosen_log_try_read_item(doomed->log_index, &item))
		shmem_member_name(item.origin, doomed->node_name, NAMEDATALEN);
}

typedef struct Blocker
{
	int			pid;
	VirtualTransactionId vxid;	/* invalid: none */
} Blocker;

/* A prepared transaction has no process: pid 0, no one to signal. */
static VirtualTransactionId
transaction_of(int pid)
{
	PGPROC	   *proc = pid != 0 ? BackendPidGetProc(pid) : NULL;
	VirtualTransactionId vxid = {InvalidBackendId, InvalidLocalTransactionId};

	if (proc != NULL)
		GET_VXID_FROM_PGPROC(vxid, *proc);
	return vxid;
}

static void
abort_blocker(int pid, VirtualTransactionId vxid)
{
	DoomedTransaction doomed;

	if (maintenance_is_under_way(vxid.backendId))
	{
		QuorumShmem->apply_waits_for_pid = pid;
		return;
	}
	describe_doom(&doomed, vxid.localTransactionId);
	if (!proposal_doom(pid, vxid.backendId, &doomed))
		return;
	if (CancelVirtualTransaction(vxid, PROCSIG_RECOVERY_CONFLICT_LOCK) != 0)
	{
		pg_atomic_fetch_add_u64(&QuorumShmem->counters.blockers_aborted, 1);
		ereport(quorum_log_level,
				(errmsg("aborting the transaction of process %d, which blocks an entry that a quorum agreed on", pid)));
	}
}

static Blocker *
find_blockers(int apply_pid, int *count)
{
	ArrayType  *pids = DatumGetArrayTypeP(DirectFunctionCall1(pg_blocking_pids, Int32GetDatum(apply_pid)));
	Datum	   *elements;
	Blocker    *blockers;

	deconstruct_array(pids, INT4OID, sizeof(int32), true, TYPALIGN_INT, &elements, NULL, count);
	blockers = palloc_array(Blocker, *count);
	for (int i = 0; i < *count; i++)
	{
		blockers[i].pid = DatumGetInt32(elements[i]);
		blockers[i].vxid = transaction_of(blockers[i].pid);
	}
	return blockers;
}

/*
 * A backend that was in the way may have ended its transaction, and begun another, before it is asked which it is in.  So two looks are taken: one that
 * stands in the way in both, in the same transaction, did so in that one.
 */
static void
abort_blockers_of(int apply_pid)
{
	int			before_count;
	int			count;
	Blocker    *before = find_blockers(apply_pid, &before_count);
	Blocker    *blockers = before_count > 0 ? find_blockers(apply_pid, &count) : NULL;

	for (int i = 0; blockers != NULL && i < count; i++)
		for (int j = 0; j < before_count; j++)
			if (before[j].pid == blockers[i].pid && VirtualTransactionIdIsValid(blockers[i].vxid) &&
				VirtualTransactionIdEquals(before[j].vxid, blockers[i].vxid))
			{
				abort_blocker(blockers[i].pid, blockers[i].vxid);
				break;
			}
}

static void
forget_latch(int code, Datum argument)
{
	QuorumShmem->watcher_latch = NULL;
}

void
quorum_lock_watcher_main(Datum argument)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "quorum lock watcher", ALLOCSET_DEFAULT_SIZES);

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	before_shmem_exit(forget_latch, (Datum) 0);
	QuorumShmem->watcher_latch = MyLatch;
	MemoryContextSwitchTo(context);

	for (;;)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH, -1, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		if (QuorumShmem->apply_pid != 0)
			abort_blockers_of(QuorumShmem->apply_pid);
		MemoryContextReset(context);
	}
}
