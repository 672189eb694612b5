/*
 * turn.c
 *	  The order of commits: whose turn it is, the applied index, the place of the position row.
 *
 * Runs in client backends, the consensus worker and the apply worker.  See proposal_queue.h for the invariants.  Everything is under
 * the proposal queue's spinlock; latches are set after it is released.
 */
#include "postgres.h"

#include "access/transam.h"

#include "shared/proposal_queue_internal.h"
#include "shared/read_round.h"
#include "shared/shmem.h"

/* The latch of the backend that owns an index, or NULL.  The caller holds the mutex. */
static Latch *
owner_of(uint64 index)
{
	for (int i = 0; i < proposal_queue->slot_count; i++)
		if (waiting_index[i] == index)
			return proposal_queue->slots[i].latch;
	return NULL;
}

/* The latch of a backend that waits for a detached entry to be applied, or NULL.  The caller holds the mutex. */
static Latch *
detached_waiter_of(uint64 index)
{
	for (int i = 0; proposal_queue->detached_waiting > 0 && i < proposal_queue->slot_count; i++)
		if (proposal_queue->slots[i].log_index == index && proposal_queue->slots[i].kind != PROPOSAL_WRITE_SET)
			return proposal_queue->slots[i].latch;
	return NULL;
}

/* Whom a passed turn wakes. */
typedef struct TurnWakeup
{
	Latch	   *owner;			/* of the next index */
	Latch	   *detached;		/* waits for this index to be applied */
} TurnWakeup;

/* The caller holds the mutex; false: it is not this index's turn. */
static bool
advance(uint64 index, TurnWakeup *wakeup)
{
	if (index != proposal_queue->applied_index + 1)
		return false;
	proposal_queue->applied_index = index;
	wakeup->owner = owner_of(index + 1);
	wakeup->detached = detached_waiter_of(index);
	return true;
}

/* After the mutex is released. */
static void
wake_up(uint64 index, bool advanced, const TurnWakeup *wakeup)
{
	if (!advanced)
		elog(PANIC, "turn of log index %llu passed while %llu is applied",
			 (unsigned long long) index, (unsigned long long) turn_applied_index());
	if (wakeup->detached != NULL)
		SetLatch(wakeup->detached);
	if (wakeup->owner != NULL)
		SetLatch(wakeup->owner);
	else if (pg_atomic_read_u64(&QuorumShmem->chosen_index) > index)
		shmem_wake_apply();
	pg_memory_barrier();		/* applied_index is published before it is looked whether somebody waits for it */
	read_round_applied(index);
}

void
turn_pass(uint64 index)
{
	TurnWakeup	wakeup;
	bool		advanced;

	SpinLockAcquire(&proposal_queue->mutex);
	advanced = advance(index, &wakeup);
	SpinLockRelease(&proposal_queue->mutex);
	wake_up(index, advanced, &wakeup);
}

/* In one step, so that nobody ever finds the index without an owner and not applied. */
void
proposal_finish(int slot)
{
	TurnWakeup	wakeup;
	uint64		index;
	bool		advanced;

	SpinLockAcquire(&proposal_queue->mutex);
	index = waiting_index[slot];
	advanced = advance(index, &wakeup);
	(void) proposal_free_slot(slot);	/* the payload was freed when it was proposed */
	SpinLockRelease(&proposal_queue->mutex);
	wake_up(index, advanced, &wakeup);
}

/*
 * Asked for each row that is captured or locked.  What is read without the mutex may be a little old, which is safe for a base; never too old
 * for somebody who got a lock from the transaction that moved it: taking and giving locks are barriers.
 */
uint64
turn_applied_index(void)
{
	uint64		index;

#ifdef PG_HAVE_8BYTE_SINGLE_COPY_ATOMICITY
	index = *(volatile uint64 *) &proposal_queue->applied_index;
	pg_read_barrier();
#else
	SpinLockAcquire(&proposal_queue->mutex);
	index = proposal_queue->applied_index;
	SpinLockRelease(&proposal_queue->mutex);
#endif
	return index;
}

void
turn_announce(uint64 index, TransactionId transaction)
{
	SpinLockAcquire(&proposal_queue->mutex);
	proposal_queue->announced_index = index;
	proposal_queue->announced_transaction = transaction;
	SpinLockRelease(&proposal_queue->mutex);
}

/*
 * Somebody else may be about to commit the index by now.  The index stays: else who looks at it without the mutex, and has an old applied_index, could
 * miss a commit that has passed its turn on in the meantime.
 */
void
turn_withdraw(TransactionId transaction)
{
	SpinLockAcquire(&proposal_queue->mutex);
	if (proposal_queue->announced_transaction == transaction)
		proposal_queue->announced_transaction = InvalidTransactionId;
	SpinLockRelease(&proposal_queue->mutex);
}

/* A hint without the mutex; somebody who got a lock from the transaction that was announced finds it, for the same reason as above. */
static bool
may_be_committing(uint64 applied_index)
{
#ifdef PG_HAVE_8BYTE_SINGLE_COPY_ATOMICITY
	return *(volatile uint64 *) &proposal_queue->announced_index > applied_index;
#else
	return true;
#endif
}

/*
 * Asked for each row that is captured or locked, too.  The commit log is asked, not the array of processes, in which the transaction may stand for
 * a moment longer: as long as it does, nobody gets a lock that it holds.  One that failed after it was announced is not committed there.
 */
uint64
turn_committed_index(void)
{
	uint64		applied_index = turn_applied_index();
	uint64		announced_index;
	TransactionId transaction;

	if (!may_be_committing(applied_index))
		return applied_index;
	SpinLockAcquire(&proposal_queue->mutex);
	applied_index = proposal_queue->applied_index;
	announced_index = proposal_queue->announced_index;
	transaction = proposal_queue->announced_transaction;
	SpinLockRelease(&proposal_queue->mutex);
	return announced_index > applied_index && TransactionIdDidCommit(transaction) ? announced_index : applied_index;
}

uint64
turn_chosen_index(void)
{
	uint64		applied_index = turn_applied_index();
	uint64		chosen_index = pg_atomic_read_u64(&QuorumShmem->chosen_index);

	pg_read_barrier();			/* items were written before their index became known in either way */
	return Max(chosen_index, applied_index);
}

bool
turn_is_owned(uint64 index)
{
	bool		owned;

	SpinLockAcquire(&proposal_queue->mutex);
	owned = owner_of(index) != NULL;
	SpinLockRelease(&proposal_queue->mutex);
	return owned;
}

void
turn_set_applied(uint64 applied_index)
{
	SpinLockAcquire(&proposal_queue->mutex);
	proposal_queue->applied_index = applied_index;
	proposal_queue->turn_initialised = true;
	SpinLockRelease(&proposal_queue->mutex);
	pg_memory_barrier();
	read_round_applied(applied_index);
	shmem_wake_consensus();
}

void
turn_forget(void)
{
	SpinLockAcquire(&proposal_queue->mutex);
	proposal_queue->turn_initialised = false;
	proposal_queue->applied_index = 0;
	proposal_queue->announced_index = 0;
	proposal_queue->position_valid = false;
	SpinLockRelease(&proposal_queue->mutex);
}

/* An entry that takes no effect does not move the position row, and the log that tells so may be trimmed: the log state knows. */
uint64
turn_index_of_position(uint64 position_index)
{
	uint64		state_index = pg_atomic_read_u64(&QuorumShmem->log_state_index);
	uint64		last_applied;

	pg_read_barrier();
	last_applied = pg_atomic_read_u64(&QuorumShmem->log_state_last_applied);
	return position_index >= last_applied && position_index < state_index ? state_index : position_index;
}

bool
turn_is_initialised(void)
{
	bool		initialised;

	SpinLockAcquire(&proposal_queue->mutex);
	initialised = proposal_queue->turn_initialised;
	SpinLockRelease(&proposal_queue->mutex);
	return initialised;
}

/* The caller holds the mutex. */
static bool
is_granted_to_anyone(void)
{
	for (int i = 0; i < proposal_queue->slot_count; i++)
		if (proposal_queue->slots[i].state == PROPOSAL_GRANTED)
			return true;
	return false;
}

bool
turn_suspend(void)
{
	bool		suspended;

	SpinLockAcquire(&proposal_queue->mutex);
	suspended = !is_granted_to_anyone();
	proposal_queue->turn_suspended = suspended;
	for (int i = 0; suspended && i < proposal_queue->slot_count; i++)
	{
		ProposalSlot *item = &proposal_queue->slots[i];

		if (item->state == PROPOSAL_PROPOSED)
			item->lost = true;
		else if (item->state == PROPOSAL_CHOSEN)
			item->must_yield = true;
	}
	SpinLockRelease(&proposal_queue->mutex);

	for (int i = 0; suspended && i < proposal_queue->slot_count; i++)
	{
		Latch	   *latch = proposal_queue->slots[i].latch;

		if (latch != NULL)
			SetLatch(latch);
	}
	return suspended;
}

void
turn_resume(void)
{
	SpinLockAcquire(&proposal_queue->mutex);
	proposal_queue->turn_suspended = false;
	SpinLockRelease(&proposal_queue->mutex);
}

bool
turn_is_suspended(void)
{
	bool		suspended;

	SpinLockAcquire(&proposal_queue->mutex);
	suspended = proposal_queue->turn_suspended;
	SpinLockRelease(&proposal_queue->mutex);
	return suspended;
}

bool
position_get_tid(ItemPointer tid)
{
	bool		valid;

	SpinLockAcquire(&proposal_queue->mutex);
	valid = proposal_queue->position_valid;
	*tid = proposal_queue->position_tid;
	SpinLockRelease(&proposal_queue->mutex);
	return valid;
}

void
position_set_tid(const ItemPointerData *tid)
{
	SpinLockAcquire(&proposal_queue->mutex);
	proposal_queue->position_tid = *tid;
	proposal_queue->position_valid = true;
	SpinLockRelease(&proposal_queue->mutex);
}

bool
publish_chosen_index(uint64 index)
{
	uint64		applied_index;

	if (index <= pg_atomic_read_u64(&QuorumShmem->chosen_index))
		return false;
	pg_atomic_write_u64(&QuorumShmem->chosen_index, index);
	pg_memory_barrier();
	applied_index = turn_applied_index();
	return applied_index < index && !turn_is_owned(applied_index + 1);
}
