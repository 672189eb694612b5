/*
 * shmem.c
 *	  Creation of the shared state and the small accessors that every process uses.
 *
 * Runs in the postmaster (creation) and in every process (accessors).  Must never wait for anything but the LWLock.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"

#include "config.h"
#include "shared/maintenance.h"
#include "shared/proposal_queue.h"
#include "shared/read_round.h"
#include "shared/shmem.h"
#include "shared/token_memory.h"

QuorumShared *QuorumShmem = NULL;

void
shmem_request(void)
{
	RequestAddinShmemSpace(MAXALIGN(sizeof(QuorumShared)));
	RequestAddinShmemSpace(proposal_queue_shmem_size());
	RequestAddinShmemSpace(read_round_shmem_size());
	RequestAddinShmemSpace(maintenance_shmem_size());
	RequestAddinShmemSpace(token_memory_shmem_size());
	RequestNamedLWLockTranche("pg_quorum", 3);
}

static void
initialise_counters(QuorumCounters *counters)
{
	pg_atomic_uint64 *counter = (pg_atomic_uint64 *) counters;

	for (size_t i = 0; i < sizeof(QuorumCounters) / sizeof(pg_atomic_uint64); i++)
		pg_atomic_init_u64(&counter[i], 0);
}

void
shmem_startup(void)
{
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	QuorumShmem = ShmemInitStruct("pg_quorum", sizeof(QuorumShared), &found);
	if (!found)
	{
		memset(QuorumShmem, 0, sizeof(QuorumShared));
		QuorumShmem->lock = &(GetNamedLWLockTranche("pg_quorum"))[0].lock;
		QuorumShmem->log_state_lock = &(GetNamedLWLockTranche("pg_quorum"))[1].lock;
		pg_atomic_init_u64(&QuorumShmem->chosen_index, 0);
		pg_atomic_init_u64(&QuorumShmem->first_held_index, 0);
		pg_atomic_init_u64(&QuorumShmem->log_state_index, 0);
		pg_atomic_init_u64(&QuorumShmem->log_state_last_applied, 0);
		pg_atomic_init_u32(&QuorumShmem->log_state_wanted, LOG_STATE_NOT_WANTED);
		pg_atomic_init_u64(&QuorumShmem->snapshot_needed, 0);
		pg_atomic_init_u64(&QuorumShmem->rows_to_keep_index, 0);
		pg_atomic_init_u32(&QuorumShmem->consensus_restart_wanted, 0);
		pg_atomic_init_u64(&QuorumShmem->accepted_index, 0);
		pg_atomic_init_u32(&QuorumShmem->may_write, 0);
		pg_atomic_init_u32(&QuorumShmem->wants_proposals, 1);
		pg_atomic_init_u32(&QuorumShmem->apply_failed, 0);
		pg_atomic_init_u32(&QuorumShmem->quarantined_tables, 0);
		pg_atomic_init_u64(&QuorumShmem->identity_generation, 0);
		pg_atomic_init_u32(&QuorumShmem->removed, 0);
		pg_atomic_init_u64(&QuorumShmem->transfer_request, 0);
		initialise_counters(&QuorumShmem->counters);
	}
	proposal_queue_shmem_startup();
	read_round_shmem_startup();
	maintenance_shmem_startup();
	token_memory_shmem_startup();
	LWLockRelease(AddinShmemInitLock);
}

/* A latch in a PGPROC stays a valid latch after its process is gone, so a stale one costs a spurious wakeup at most. */
static void
wake(Latch *volatile *latch)
{
	Latch	   *target = *latch;

	if (target != NULL)
		SetLatch(target);
}

void
shmem_wake_consensus(void)
{
	wake(&QuorumShmem->consensus_latch);
}

void
shmem_wake_apply(void)
{
	wake(&QuorumShmem->apply_latch);
}

void
shmem_wake_watcher(void)
{
	wake(&QuorumShmem->watcher_latch);
}

void
shmem_wake_compactor(void)
{
	wake(&QuorumShmem->compactor_latch);
}

void
shmem_restart_consensus(void)
{
	pg_atomic_write_u32(&QuorumShmem->consensus_restart_wanted, 1);
	shmem_wake_consensus();
}

void
shmem_wake_checker(void)
{
	wake(&QuorumShmem->checker_latch);
}

void
shmem_set_last_error(const char *message)
{
	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
	strlcpy(QuorumShmem->last_error, message ? message : "", sizeof(QuorumShmem->last_error));
	LWLockRelease(QuorumShmem->lock);
}

char *
shmem_last_error(void)
{
	char	   *message = palloc(sizeof(QuorumShmem->last_error));

	LWLockAcquire(QuorumShmem->lock, LW_SHARED);
	strlcpy(message, QuorumShmem->last_error, sizeof(QuorumShmem->last_error));
	LWLockRelease(QuorumShmem->lock);
	return message;
}

/* What is acknowledged is chosen; a leader knows that first, the others have accepted it, most of the time. */
bool
shmem_lags_visibly(uint64 applied_index)
{
	bool		leads = *(volatile NodeRole *) &QuorumShmem->status.role == NODE_LEADER;

	return applied_index < pg_atomic_read_u64(leads ? &QuorumShmem->chosen_index : &QuorumShmem->accepted_index);
}

void
shmem_get_status(NodeStatus *status)
{
	LWLockAcquire(QuorumShmem->lock, LW_SHARED);
	*status = QuorumShmem->status;
	LWLockRelease(QuorumShmem->lock);
}

void
shmem_get_identity(NodeIdentity *identity)
{
	LWLockAcquire(QuorumShmem->lock, LW_SHARED);
	*identity = QuorumShmem->identity;
	LWLockRelease(QuorumShmem->lock);
}

const char *
shmem_older_build(const NodeStatus *status)
{
	for (int i = 0; i < status->member_count; i++)
		if (status->members[i].is_older_build)
			return status->members[i].node_name;
	return NULL;
}

void
shmem_get_snapshot_progress(SnapshotProgress *progress)
{
	LWLockAcquire(QuorumShmem->lock, LW_SHARED);
	*progress = QuorumShmem->snapshot;
	LWLockRelease(QuorumShmem->lock);
}

void
shmem_member_name(uint32 node_id, char *name, Size size)
{
	snprintf(name, size, "node %u", node_id);
	LWLockAcquire(QuorumShmem->lock, LW_SHARED);
	for (int i = 0; i < QuorumShmem->status.member_count; i++)
		if (QuorumShmem->status.members[i].node_id == node_id)
			strlcpy(name, QuorumShmem->status.members[i].node_name, size);
	LWLockRelease(QuorumShmem->lock);
}
