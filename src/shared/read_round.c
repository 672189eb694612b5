/*
 * read_round.c
 *	  Linearizable reads between client backends and the consensus worker.  See read_round.h for the states and the invariants.
 *
 * Runs in client backends, in the consensus worker, and in whoever passes the turn.  Must never allocate, wait or raise an error under the
 * spinlock, whose sections touch a reader, or move those of one list.
 *
 * Whoever passes the turn looks at lowest_awaited without the spinlock.  That is safe because both sides write before they read, with a barrier
 * between: it publishes the applied index and then reads lowest_awaited; a reader's index is published in lowest_awaited, and then the applied
 * index is looked at once more.
 */
#include "postgres.h"

#include <time.h>

#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/latch.h"
#include "storage/shmem.h"
#include "storage/spin.h"

#include "shared/proposal_queue.h"
#include "shared/quick_latch.h"
#include "shared/read_round.h"
#include "shared/shmem.h"

#define NOBODY 0				/* backend ids start at 1 */
#define WAKEUPS_AT_ONCE 32

typedef struct Reader
{
	ReaderState state;
	uint64		round;			/* ASKED: number of the round that is to answer */
	uint64		index;			/* APPLYING, DONE */
	Latch	   *latch;
	int			next;			/* in the list of its state: ASKED or APPLYING */
	int			previous;
} Reader;

typedef struct ReaderList
{
	int			head;
	int			tail;
} ReaderList;

typedef struct ReadRounds
{
	slock_t		mutex;
	uint64		next_round;		/* whoever asks now is answered by it */
	bool		in_flight;		/* round next_round - 1 */
	ReaderList	asked;			/* in the order of their rounds */
	ReaderList	applying;
	pg_atomic_uint64 lowest_awaited;	/* UINT64_MAX: nobody waits */
	pg_atomic_uint64 no_quorum_since_ms;	/* 0: there is one */
	Reader		readers[FLEXIBLE_ARRAY_MEMBER];
} ReadRounds;

static ReadRounds *rounds = NULL;

/* Latches to set once the spinlock is released. */
typedef struct Wakeups
{
	int			count;
	Latch	   *latches[WAKEUPS_AT_ONCE];
} Wakeups;

Size
read_round_shmem_size(void)
{
	return MAXALIGN(add_size(offsetof(ReadRounds, readers), mul_size(MaxBackends + 1, sizeof(Reader))));
}

static uint64
monotonic_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void
read_round_shmem_startup(void)
{
	bool		found;

	rounds = ShmemInitStruct("pg_quorum reads", read_round_shmem_size(), &found);
	if (found)
		return;
	memset(rounds, 0, read_round_shmem_size());
	SpinLockInit(&rounds->mutex);
	rounds->next_round = 1;
	pg_atomic_init_u64(&rounds->lowest_awaited, PG_UINT64_MAX);
	pg_atomic_init_u64(&rounds->no_quorum_since_ms, monotonic_ms());
}

static void
wake(const Wakeups *wakeups)
{
	for (int i = 0; i < wakeups->count; i++)
		quick_latch_set(wakeups->latches[i]);
}

/* ---- lists; the caller holds the mutex ---- */

static ReaderList *
list_of(const Reader *reader)
{
	return reader->state == READER_ASKED ? &rounds->asked : &rounds->applying;
}

static void
append(int id, ReaderState state)
{
	Reader	   *reader = &rounds->readers[id];
	ReaderList *list;

	reader->state = state;
	list = list_of(reader);
	reader->next = NOBODY;
	reader->previous = list->tail;
	if (list->tail != NOBODY)
		rounds->readers[list->tail].next = id;
	else
		list->head = id;
	list->tail = id;
}

/* Takes a reader out of the list in which it waits, if it does. */
static void
unlink_reader(int id)
{
	Reader	   *reader = &rounds->readers[id];
	ReaderList *list = list_of(reader);

	if (reader->state != READER_ASKED && reader->state != READER_APPLYING)
		return;
	if (reader->previous != NOBODY)
		rounds->readers[reader->previous].next = reader->next;
	else
		list->head = reader->next;
	if (reader->next != NOBODY)
		rounds->readers[reader->next].previous = reader->previous;
	else
		list->tail = reader->previous;
	reader->state = READER_IDLE;
}

/* The reader is told; false: no room to remember its latch, nothing was changed. */
static bool
tell(int id, ReaderState state, Wakeups *wakeups)
{
	Reader	   *reader = &rounds->readers[id];

	if (wakeups->count == WAKEUPS_AT_ONCE)
		return false;
	unlink_reader(id);
	reader->state = state;
	wakeups->latches[wakeups->count++] = reader->latch;
	return true;
}

static void
await(int id, uint64 index)
{
	rounds->readers[id].index = index;
	append(id, READER_APPLYING);
	if (index < pg_atomic_read_u64(&rounds->lowest_awaited))
		pg_atomic_write_u64(&rounds->lowest_awaited, index);
}

static void
find_lowest_awaited(void)
{
	uint64		lowest = PG_UINT64_MAX;

	for (int id = rounds->applying.head; id != NOBODY; id = rounds->readers[id].next)
		lowest = Min(lowest, rounds->readers[id].index);
	pg_atomic_write_u64(&rounds->lowest_awaited, lowest);
}

/* ---- client backends ---- */

void
read_round_ask(void)
{
	Reader	   *reader = &rounds->readers[MyBackendId];
	bool		must_wake;

	SpinLockAcquire(&rounds->mutex);
	unlink_reader(MyBackendId);
	must_wake = rounds->asked.head == NOBODY && !rounds->in_flight; /* else the worker knows that there is more to do */
	reader->latch = MyLatch;
	reader->round = rounds->next_round;
	reader->index = 0;
	append(MyBackendId, READER_ASKED);
	SpinLockRelease(&rounds->mutex);
	if (must_wake)
		shmem_wake_consensus();
}

void
read_round_await_index(uint64 index)
{
	SpinLockAcquire(&rounds->mutex);
	unlink_reader(MyBackendId);
	rounds->readers[MyBackendId].latch = MyLatch;
	await(MyBackendId, index);
	SpinLockRelease(&rounds->mutex);
	pg_memory_barrier();
	read_round_applied(turn_applied_index());
}

ReaderState
read_round_poll(uint64 *index)
{
	ReaderState state;

	SpinLockAcquire(&rounds->mutex);
	state = rounds->readers[MyBackendId].state;
	*index = rounds->readers[MyBackendId].index;
	SpinLockRelease(&rounds->mutex);
	return state;
}

uint64
read_round_ms_without_quorum(void)
{
	uint64		since_ms = pg_atomic_read_u64(&rounds->no_quorum_since_ms);
	uint64		now_ms = monotonic_ms();

	return since_ms == 0 || now_ms < since_ms ? 0 : Max(now_ms - since_ms, 1);
}

/* ---- consensus worker ---- */

bool
read_round_is_wanted(void)
{
	return *(volatile int *) &rounds->asked.head != NOBODY && !*(volatile bool *) &rounds->in_flight;
}

bool
read_round_begin(uint64 *number)
{
	bool		begun = false;

	if (!read_round_is_wanted())
		return false;
	SpinLockAcquire(&rounds->mutex);
	if (rounds->asked.head != NOBODY && !rounds->in_flight)
	{
		*number = rounds->next_round++;
		rounds->in_flight = begun = true;
	}
	SpinLockRelease(&rounds->mutex);
	if (begun)
		pg_atomic_fetch_add_u64(&QuorumShmem->counters.read_rounds, 1);
	return begun;
}

/* Tells up to WAKEUPS_AT_ONCE readers of rounds up to `number`; false: there are more. */
static bool
answer_some(uint64 number, bool ok, uint64 read_index, bool is_applied)
{
	Wakeups		wakeups = {0};
	bool		all = true;

	SpinLockAcquire(&rounds->mutex);
	for (int id = rounds->asked.head; id != NOBODY && rounds->readers[id].round <= number && all; id = rounds->asked.head)
	{
		rounds->readers[id].index = read_index;
		if (!ok || is_applied)
			all = tell(id, ok ? READER_DONE : READER_FAILED, &wakeups);
		else
		{
			unlink_reader(id);
			await(id, read_index);
		}
	}
	SpinLockRelease(&rounds->mutex);
	wake(&wakeups);
	return all;
}

static void
answer(uint64 number, bool ok, uint64 read_index)
{
	bool		is_applied = ok && turn_applied_index() >= read_index;

	while (!answer_some(number, ok, read_index, is_applied))
		;
	if (ok && !is_applied)
	{
		pg_memory_barrier();
		read_round_applied(turn_applied_index());
	}
}

void
read_round_finish(uint64 number, bool ok, uint64 read_index)
{
	answer(number, ok, read_index);
	SpinLockAcquire(&rounds->mutex);
	if (number + 1 == rounds->next_round)
		rounds->in_flight = false;
	SpinLockRelease(&rounds->mutex);
}

void
read_round_reset(void)
{
	SpinLockAcquire(&rounds->mutex);
	rounds->in_flight = false;
	rounds->next_round++;
	SpinLockRelease(&rounds->mutex);
	answer(rounds->next_round - 1, false, 0);	/* only this process moves next_round */
}

void
read_round_note_quorum(bool has_quorum)
{
	bool		had_quorum = pg_atomic_read_u64(&rounds->no_quorum_since_ms) == 0;

	if (has_quorum != had_quorum)
		pg_atomic_write_u64(&rounds->no_quorum_since_ms, has_quorum ? 0 : monotonic_ms());
}

/* ---- whoever passes the turn ---- */

bool
read_round_awaits_apply(void)
{
	return pg_atomic_read_u64(&rounds->lowest_awaited) != PG_UINT64_MAX;
}

/* False: there are more. */
static bool
wake_some(uint64 index)
{
	Wakeups		wakeups = {0};
	bool		all = true;
	int			next;

	SpinLockAcquire(&rounds->mutex);
	for (int id = rounds->applying.head; id != NOBODY && all; id = next)
	{
		next = rounds->readers[id].next;
		if (rounds->readers[id].index <= index)
			all = tell(id, READER_DONE, &wakeups);
	}
	find_lowest_awaited();
	SpinLockRelease(&rounds->mutex);
	wake(&wakeups);
	return all;
}

void
read_round_applied(uint64 index)
{
	if (index < pg_atomic_read_u64(&rounds->lowest_awaited))
		return;
	while (!wake_some(index))
		;
}
