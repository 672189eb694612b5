/*
 * proposal_queue.c
 *	  Proposals on their way from client backends to the log: slots, queue, verdicts.
 *
 * Runs in client backends, the consensus worker, the apply worker and the lock watcher.  See proposal_queue.h for the states and the
 * invariants.  Everything is under one spinlock: sections are a scan over a small dense array at most; no latch is set, nothing
 * allocated and no error raised inside.  Payloads lie in a DSA area of bounded size.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

#include "config.h"
#include "shared/proposal_queue_internal.h"
#include "shared/shmem.h"

#define PAYLOAD_AREA_BYTES ((Size) 4 * 1024 * 1024) /* in main shared memory; grows by DSM segments … */
#define PAYLOAD_AREA_LIMIT_BYTES ((Size) 512 * 1024 * 1024)	/* … up to this */
#define WAIT_FOR_SIGNAL_MS 10
#define CAUGHT_AFTER_US 1000000	/* no abort takes as long */
#define LONGEST_WAIT_FOR_SIGNAL_MS 1000

ProposalQueue *proposal_queue = NULL;
uint64	   *waiting_index = NULL;
DoomedTransaction *doomed_transactions = NULL;
static void *payload_area_place = NULL;
static dsa_area *payload_area = NULL;

static Size
queue_size(void)
{
	return MAXALIGN(add_size(offsetof(ProposalQueue, slots), mul_size(quorum_queue_slots, sizeof(ProposalSlot))));
}

/* Backend ids start at 1. */
static Size
doomed_size(void)
{
	return MAXALIGN(mul_size(MaxBackends + 1, sizeof(DoomedTransaction)));
}

Size
proposal_queue_shmem_size(void)
{
	Size		size = queue_size();

	size = add_size(size, MAXALIGN(mul_size(quorum_queue_slots, sizeof(uint64))));
	size = add_size(size, doomed_size());
	return add_size(size, PAYLOAD_AREA_BYTES);
}

static void
initialise_slots(void)
{
	for (int i = 0; i < proposal_queue->slot_count; i++)
	{
		proposal_queue->slots[i].state = PROPOSAL_FREE;
		proposal_queue->slots[i].next = (i + 1 < proposal_queue->slot_count) ? i + 1 : NO_SLOT;
		waiting_index[i] = 0;
	}
	proposal_queue->free_head = 0;
	proposal_queue->queue_head = proposal_queue->queue_tail = NO_SLOT;
}

static void
create_payload_area(void)
{
	dsa_area   *area;

	area = dsa_create_in_place(payload_area_place, PAYLOAD_AREA_BYTES, QuorumShmem->lock->tranche, NULL);
	dsa_pin(area);
	dsa_set_size_limit(area, PAYLOAD_AREA_LIMIT_BYTES);
	dsa_detach(area);
}

void
proposal_queue_shmem_startup(void)
{
	bool		found;
	char	   *place = ShmemInitStruct("pg_quorum proposals", proposal_queue_shmem_size(), &found);

	proposal_queue = (ProposalQueue *) place;
	waiting_index = (uint64 *) (place + queue_size());
	doomed_transactions = (DoomedTransaction *) (place + queue_size() + MAXALIGN(quorum_queue_slots * sizeof(uint64)));
	payload_area_place = (char *) doomed_transactions + doomed_size();
	if (found)
		return;
	memset(place, 0, proposal_queue_shmem_size());
	SpinLockInit(&proposal_queue->mutex);
	proposal_queue->slot_count = quorum_queue_slots;
	proposal_queue->next_sequence = 1;
	initialise_slots();
	create_payload_area();
}

static void
attach_payload_area(void)
{
	MemoryContext old_context;

	if (payload_area != NULL)
		return;
	old_context = MemoryContextSwitchTo(TopMemoryContext);
	payload_area = dsa_attach_in_place(payload_area_place, NULL);
	dsa_pin_mapping(payload_area);
	MemoryContextSwitchTo(old_context);
}

/* ---- lists; the caller holds the mutex ---- */

static void
list_append_queued(int slot, bool as_oldest)
{
	ProposalSlot *item = &proposal_queue->slots[slot];

	proposal_queue->queued_count++;
	item->previous = as_oldest ? NO_SLOT : proposal_queue->queue_tail;
	item->next = as_oldest ? proposal_queue->queue_head : NO_SLOT;
	if (item->previous != NO_SLOT)
		proposal_queue->slots[item->previous].next = slot;
	else
		proposal_queue->queue_head = slot;
	if (item->next != NO_SLOT)
		proposal_queue->slots[item->next].previous = slot;
	else
		proposal_queue->queue_tail = slot;
}

static void
list_remove_queued(int slot)
{
	ProposalSlot *item = &proposal_queue->slots[slot];

	proposal_queue->queued_count--;
	if (item->previous != NO_SLOT)
		proposal_queue->slots[item->previous].next = item->next;
	else
		proposal_queue->queue_head = item->next;
	if (item->next != NO_SLOT)
		proposal_queue->slots[item->next].previous = item->previous;
	else
		proposal_queue->queue_tail = item->previous;
}

dsa_pointer
proposal_free_slot(int slot)
{
	ProposalSlot *item = &proposal_queue->slots[slot];
	dsa_pointer payload = item->payload;

	if (item->state == PROPOSAL_CHOSEN && item->kind != PROPOSAL_WRITE_SET)
		proposal_queue->detached_waiting--;
	memset(item, 0, sizeof(ProposalSlot));
	waiting_index[slot] = 0;
	item->next = proposal_queue->free_head;
	proposal_queue->free_head = slot;
	return payload;
}

static void
free_payload(dsa_pointer payload)
{
	if (DsaPointerIsValid(payload))
	{
		attach_payload_area();
		dsa_free(payload_area, payload);
	}
}

/* ---- client backends ---- */

static dsa_pointer
copy_payload(const char *payload, Size length)
{
	dsa_pointer pointer;

	attach_payload_area();
	pointer = dsa_allocate_extended(payload_area, Max(length, 1), DSA_ALLOC_HUGE | DSA_ALLOC_NO_OOM);
	if (!DsaPointerIsValid(pointer))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too much data waits for the quorum"),
				 errdetail("The write sets that wait on this node may take %zu MB in all.",
						   PAYLOAD_AREA_LIMIT_BYTES / (1024 * 1024)),
				 errhint("Retry with backoff, or make transactions smaller.")));
	memcpy(dsa_get_address(payload_area, pointer), payload, length);
	return pointer;
}

/*
 * The watcher has doomed the transaction and is about to signal it.  If that came while the transaction is being aborted, or after it, the
 * server would end the session, or cancel its next statement.
 */
static void
wait_for_signal_of_watcher(void)
{
	for (int waited_ms = 0; waited_ms < LONGEST_WAIT_FOR_SIGNAL_MS; waited_ms += WAIT_FOR_SIGNAL_MS)
	{
		CHECK_FOR_INTERRUPTS();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, WAIT_FOR_SIGNAL_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
	CHECK_FOR_INTERRUPTS();
}

static void
report_not_submitted(bool doomed, bool awaits_signal)
{
	if (doomed)
	{
		if (awaits_signal)
			wait_for_signal_of_watcher();
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not commit: the transaction stood in the way of one that a quorum agreed on"),
				 errdetail("It held a lock that log index %llu, of node \"%s\", needs.",
						   (unsigned long long) doomed_transactions[MyBackendId].log_index,
						   doomed_transactions[MyBackendId].node_name),
				 errhint("Retry the transaction.")));
	}
	ereport(ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("too many transactions wait for the quorum"),
			 errdetail("quorum.max_pending_transactions is %d.", proposal_queue->slot_count),
			 errhint("Retry with backoff.")));
}

int
proposal_submit(ProposalKind kind, const char *payload, Size length, uint64 *sequence)
{
	dsa_pointer copy = copy_payload(payload, length);
	TimestampTz now = GetCurrentTimestamp();
	DoomedTransaction *own = &doomed_transactions[MyBackendId];
	bool		doomed;
	bool		awaits_signal;
	int			slot;

	SpinLockAcquire(&proposal_queue->mutex);
	slot = proposal_queue->free_head;
	doomed = own->transaction == MyProc->lxid;
	awaits_signal = own->is_told;
	if (doomed && kind == PROPOSAL_WRITE_SET)
		own->is_told = true;	/* it ends now */
	if (slot != NO_SLOT && !doomed)
	{
		ProposalSlot *item = &proposal_queue->slots[slot];

		proposal_queue->free_head = item->next;
		item->state = PROPOSAL_QUEUED;
		item->kind = kind;
		item->sequence = *sequence = proposal_queue->next_sequence++;
		item->payload = copy;
		item->length = length;
		item->pid = MyProcPid;
		item->transaction = MyProc->lxid;
		item->latch = MyLatch;
		item->queued_at = now;
		list_append_queued(slot, false);
	}
	SpinLockRelease(&proposal_queue->mutex);

	if (slot == NO_SLOT || doomed)
	{
		free_payload(copy);
		report_not_submitted(doomed, awaits_signal);
	}
	pg_atomic_fetch_add_u64(&QuorumShmem->counters.payload_bytes_proposed, length);
	pg_memory_barrier();		/* queued before the flag is read; the worker sets it before it looks into the queue */
	if (pg_atomic_read_u32(&QuorumShmem->wants_proposals) != 0 || proposal_queued_count() >= PROPOSAL_BATCH)
		shmem_wake_consensus();
	return slot;
}

void
proposal_poll(int slot, ProposalOutcome *outcome)
{
	ProposalSlot *item = &proposal_queue->slots[slot];

	SpinLockAcquire(&proposal_queue->mutex);
	outcome->state = item->state;
	outcome->log_index = item->log_index;
	outcome->verdict = item->verdict;
	outcome->incarnation = item->incarnation;
	outcome->lost = item->lost;
	outcome->must_yield = item->must_yield;
	outcome->my_turn = item->state == PROPOSAL_CHOSEN && waiting_index[slot] != 0 &&
		waiting_index[slot] == proposal_queue->applied_index + 1;
	SpinLockRelease(&proposal_queue->mutex);
}

bool
proposal_take_turn(int slot)
{
	ProposalSlot *item = &proposal_queue->slots[slot];
	bool		taken = false;

	SpinLockAcquire(&proposal_queue->mutex);
	if (item->state == PROPOSAL_CHOSEN && waiting_index[slot] == proposal_queue->applied_index + 1 &&
		!proposal_queue->turn_suspended)
	{
		item->state = PROPOSAL_GRANTED;
		taken = true;
	}
	SpinLockRelease(&proposal_queue->mutex);
	return taken;
}

bool
proposal_withdraw(int slot)
{
	dsa_pointer payload = InvalidDsaPointer;
	bool		withdrawn = false;

	SpinLockAcquire(&proposal_queue->mutex);
	if (proposal_queue->slots[slot].state == PROPOSAL_QUEUED)
	{
		list_remove_queued(slot);
		payload = proposal_free_slot(slot);
		withdrawn = true;
	}
	SpinLockRelease(&proposal_queue->mutex);
	free_payload(payload);
	return withdrawn;
}

/* The worker may be reading the payload of a proposal that it has just taken: then it is the one to free the slot. */
void
proposal_abandon(int slot)
{
	ProposalSlot *item = &proposal_queue->slots[slot];
	dsa_pointer payload = InvalidDsaPointer;
	bool		wake_apply;

	SpinLockAcquire(&proposal_queue->mutex);
	wake_apply = waiting_index[slot] != 0;
	if (item->state == PROPOSAL_PROPOSED && DsaPointerIsValid(item->payload))
	{
		item->state = PROPOSAL_ABANDONED;
		item->pid = 0;
		item->latch = NULL;
	}
	else
		payload = proposal_free_slot(slot);
	SpinLockRelease(&proposal_queue->mutex);
	free_payload(payload);
	if (wake_apply)
		shmem_wake_apply();
}

/*
 * One whose write set is rejected is about to abort and to give its locks back: from here on the watcher leaves it alone, as it did while it
 * had its slot.
 */
void
proposal_release(int slot)
{
	ProposalSlot *item = &proposal_queue->slots[slot];
	dsa_pointer payload;

	SpinLockAcquire(&proposal_queue->mutex);
	if (item->kind == PROPOSAL_WRITE_SET && MyProc != NULL)
	{
		doomed_transactions[MyBackendId].transaction = MyProc->lxid;
		doomed_transactions[MyBackendId].is_told = true;
	}
	payload = proposal_free_slot(slot);
	SpinLockRelease(&proposal_queue->mutex);
	free_payload(payload);
}

/* ---- consensus worker ---- */

/* A hint: read without the mutex. */
int
proposal_queued_count(void)
{
	return *(volatile int *) &proposal_queue->queued_count;
}

/*
 * CHOSEN and GRANTED ones have their index and need the worker no more; QUEUED ones are taken by the new worker.  A PROPOSED one belongs to
 * an incarnation that is over: its entry may still be chosen, but this worker would not recognise it.
 */
void
proposal_queue_reset_owner(void)
{
	SpinLockAcquire(&proposal_queue->mutex);
	for (int i = 0; i < proposal_queue->slot_count; i++)
	{
		ProposalSlot *item = &proposal_queue->slots[i];

		if (item->state == PROPOSAL_PROPOSED)
			item->lost = true;
	}
	SpinLockRelease(&proposal_queue->mutex);

	for (int i = 0; i < proposal_queue->slot_count; i++)
	{
		Latch	   *latch = proposal_queue->slots[i].latch;

		if (proposal_queue->slots[i].lost && latch != NULL)
			SetLatch(latch);
	}
}

uint64
proposal_next_sequence(void)
{
	uint64		sequence;

	SpinLockAcquire(&proposal_queue->mutex);
	sequence = proposal_queue->next_sequence++;
	SpinLockRelease(&proposal_queue->mutex);
	return sequence;
}

bool
proposal_take_queued(QueuedProposal *proposal)
{
	ProposalSlot *item;
	dsa_pointer payload;

	SpinLockAcquire(&proposal_queue->mutex);
	if (proposal_queue->queue_head == NO_SLOT || proposal_queue->turn_suspended)
	{
		SpinLockRelease(&proposal_queue->mutex);
		return false;
	}
	proposal->slot = proposal_queue->queue_head;
	item = &proposal_queue->slots[proposal->slot];
	list_remove_queued(proposal->slot);
	item->state = PROPOSAL_PROPOSED;
	item->incarnation = QuorumShmem->identity.incarnation;	/* only this process writes that */
	proposal->kind = item->kind;
	proposal->sequence = item->sequence;
	proposal->length = item->length;
	payload = item->payload;
	SpinLockRelease(&proposal_queue->mutex);

	attach_payload_area();
	proposal->payload = dsa_get_address(payload_area, payload);
	return true;
}

void
proposal_payload_done(int slot)
{
	ProposalSlot *item = &proposal_queue->slots[slot];
	dsa_pointer payload;

	SpinLockAcquire(&proposal_queue->mutex);
	if (item->state == PROPOSAL_ABANDONED)
		payload = proposal_free_slot(slot);
	else
	{
		payload = item->payload;
		item->payload = InvalidDsaPointer;
	}
	SpinLockRelease(&proposal_queue->mutex);
	free_payload(payload);
}

void
proposal_put_back(int slot)
{
	ProposalSlot *item = &proposal_queue->slots[slot];
	dsa_pointer payload = InvalidDsaPointer;

	SpinLockAcquire(&proposal_queue->mutex);
	if (item->state == PROPOSAL_PROPOSED)
	{
		item->state = PROPOSAL_QUEUED;
		item->incarnation = 0;
		list_append_queued(slot, true);
	}
	else						/* abandoned meanwhile, and never proposed */
		payload = proposal_free_slot(slot);
	SpinLockRelease(&proposal_queue->mutex);
	free_payload(payload);
}

/* Instead of proposal_payload_done: nothing of it was proposed.  Only for entries that are not write sets. */
void
proposal_refuse_taken(int slot)
{
	ProposalSlot *item = &proposal_queue->slots[slot];
	dsa_pointer payload = InvalidDsaPointer;
	Latch	   *latch = NULL;

	Assert(item->kind != PROPOSAL_WRITE_SET);
	SpinLockAcquire(&proposal_queue->mutex);
	if (item->state == PROPOSAL_PROPOSED)
	{
		item->state = PROPOSAL_REFUSED;
		latch = item->latch;
	}
	else
		payload = proposal_free_slot(slot);	/* abandoned meanwhile */
	SpinLockRelease(&proposal_queue->mutex);
	free_payload(payload);
	if (latch != NULL)
		SetLatch(latch);
}

/* Refuses the oldest queued one if it waits for longer; returns the latch to set. */
static bool
refuse_oldest(TimestampTz now, int older_than_ms, Latch **latch)
{
	int			slot;
	bool		refused = false;

	SpinLockAcquire(&proposal_queue->mutex);
	slot = proposal_queue->queue_head;
	if (slot != NO_SLOT && now - proposal_queue->slots[slot].queued_at >= (int64) older_than_ms * 1000)
	{
		list_remove_queued(slot);
		proposal_queue->slots[slot].state = PROPOSAL_REFUSED;
		*latch = proposal_queue->slots[slot].latch;
		refused = true;
	}
	SpinLockRelease(&proposal_queue->mutex);
	return refused;
}

void
proposal_refuse_queued(int older_than_ms)
{
	TimestampTz now = GetCurrentTimestamp();
	Latch	   *latch;

	while (refuse_oldest(now, older_than_ms, &latch))
		SetLatch(latch);
}

static int
slot_of_sequence(uint64 sequence)
{
	for (int i = 0; i < proposal_queue->slot_count; i++)
	{
		ProposalSlot *item = &proposal_queue->slots[i];

		if (item->sequence == sequence && item->state == PROPOSAL_PROPOSED && !item->lost)
			return i;
	}
	return NO_SLOT;
}

/* The caller holds the mutex. */
static void
tell_backend(int slot, uint64 index, bool apply, const CertifierVerdict *verdict)
{
	ProposalSlot *item = &proposal_queue->slots[slot];

	item->log_index = index;
	item->verdict = *verdict;
	item->state = apply ? PROPOSAL_CHOSEN : PROPOSAL_REJECTED;
	if (apply && item->kind == PROPOSAL_WRITE_SET)
		waiting_index[slot] = index;
	else if (apply)
		proposal_queue->detached_waiting++;
}

/*
 * The backend is woken though its turn may not have come yet: on a busy machine those of one batch then stand in the run queue in the order of
 * the log, instead of each being put at its end by its predecessor.
 */
void
proposal_learned(uint64 sequence, uint64 index, bool apply, const CertifierVerdict *verdict)
{
	Latch	   *latch = NULL;
	int			slot;

	SpinLockAcquire(&proposal_queue->mutex);
	slot = slot_of_sequence(sequence);
	if (slot != NO_SLOT)
	{
		tell_backend(slot, index, apply, verdict);
		latch = proposal_queue->slots[slot].latch;
	}
	SpinLockRelease(&proposal_queue->mutex);
	if (latch != NULL)
		SetLatch(latch);
}

void
proposal_lose(uint64 sequence)
{
	Latch	   *latch = NULL;
	int			slot;

	SpinLockAcquire(&proposal_queue->mutex);
	slot = slot_of_sequence(sequence);
	if (slot != NO_SLOT)
	{
		proposal_queue->slots[slot].lost = true;
		latch = proposal_queue->slots[slot].latch;
	}
	SpinLockRelease(&proposal_queue->mutex);
	if (latch != NULL)
		SetLatch(latch);
}

/* ---- lock watcher ---- */

/* The slot that a backend waits for, or NO_SLOT.  The caller holds the mutex. */
static int
slot_of_backend(int pid)
{
	for (int i = 0; i < proposal_queue->slot_count; i++)
		if (proposal_queue->slots[i].state != PROPOSAL_FREE && proposal_queue->slots[i].pid == pid)
			return i;
	return NO_SLOT;
}

/* The caller holds the mutex. */
static bool
is_to_be_signalled(const DoomedTransaction *known, const DoomedTransaction *doomed)
{
	if (known->transaction != doomed->transaction)
		return true;
	return !known->is_told && doomed->doomed_at - known->doomed_at >= CAUGHT_AFTER_US;
}

bool
proposal_doom(int pid, BackendId backend_id, const DoomedTransaction *doomed)
{
	Latch	   *latch = NULL;
	bool		must_cancel = false;
	int			slot;

	SpinLockAcquire(&proposal_queue->mutex);
	slot = slot_of_backend(pid);
	if (slot == NO_SLOT)
	{
		must_cancel = is_to_be_signalled(&doomed_transactions[backend_id], doomed);
		if (must_cancel)
		{
			doomed_transactions[backend_id] = *doomed;
			doomed_transactions[backend_id].is_told = true;
		}
	}
	else if (proposal_queue->slots[slot].transaction != doomed->transaction)
		;						/* that one is over, and the backend's next one stands in nobody's way */
	else if (proposal_queue->slots[slot].state == PROPOSAL_QUEUED)
	{
		list_remove_queued(slot);
		proposal_queue->slots[slot].state = PROPOSAL_REJECTED;
		doomed_transactions[backend_id] = *doomed;	/* what it is told */
		latch = proposal_queue->slots[slot].latch;
	}
	else if (proposal_queue->slots[slot].state == PROPOSAL_CHOSEN)
	{
		proposal_queue->slots[slot].must_yield = true;
		latch = proposal_queue->slots[slot].latch;
	}
	SpinLockRelease(&proposal_queue->mutex);
	if (latch != NULL)
		SetLatch(latch);
	return must_cancel;
}

const DoomedTransaction *
proposal_own_doom(void)
{
	if (MyProc == NULL || MyBackendId == InvalidBackendId || !LocalTransactionIdIsValid(MyProc->lxid) ||
		doomed_transactions[MyBackendId].transaction != MyProc->lxid)
		return NULL;
	return &doomed_transactions[MyBackendId];
}

bool
proposal_forget_own_doom(void)
{
	bool		was_doomed;

	if (MyBackendId == InvalidBackendId || !LocalTransactionIdIsValid(doomed_transactions[MyBackendId].transaction))
		return false;
	SpinLockAcquire(&proposal_queue->mutex);
	was_doomed = LocalTransactionIdIsValid(doomed_transactions[MyBackendId].transaction);
	doomed_transactions[MyBackendId].transaction = InvalidLocalTransactionId;
	SpinLockRelease(&proposal_queue->mutex);
	return was_doomed;
}
