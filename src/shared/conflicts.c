/*
 * conflicts.c
 *	  The last transactions of this node that lost against others.  Process: client backends.
 *
 * Locks: QuorumShmem->lock, shortly.
 */
#include "postgres.h"

#include "shared/conflicts.h"
#include "shared/shmem.h"

void
conflicts_add(const Conflict *conflict)
{
	ConflictRing *ring = &QuorumShmem->conflicts;

	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
	ring->conflicts[ring->count++ % CONFLICTS_KEPT] = *conflict;
	LWLockRelease(QuorumShmem->lock);
}

int
conflicts_get(Conflict *conflicts)
{
	ConflictRing *ring = &QuorumShmem->conflicts;
	uint64		first;
	uint64		count;

	LWLockAcquire(QuorumShmem->lock, LW_SHARED);
	count = Min(ring->count, CONFLICTS_KEPT);
	first = ring->count - count;
	for (uint64 i = 0; i < count; i++)
		conflicts[i] = ring->conflicts[(first + i) % CONFLICTS_KEPT];
	LWLockRelease(QuorumShmem->lock);
	return (int) count;
}
