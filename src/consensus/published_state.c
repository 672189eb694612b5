/*
 * published_state.c
 *	  What read probes are answered from, in shared memory.
 *
 * A linearizable read costs a question to another node and its answer.  The stream backend that receives the question answers it, from what the
 * consensus worker has published here: so neither worker nor stream back is woken at the node that is asked.
 *
 * Runs in the consensus worker (update, withdraw) and in stream backends (answer).  Must never be older than an effect of the core that somebody
 * has seen (paxos.h, PaxosReadState): the worker updates it before it carries out effects, and a backend reads it after it has received the probe.
 *
 * A worker that ceases, and what its stream backends may still say
 *	It exits (SIGTERM, an error, an assertion, a restart to look at what was put in place for it, as leave_cluster does): withdrawn in its at_exit().
 *	It stays without taking part (refused as having forgotten, left behind, no identity): withdrawn before, and nothing is published again.
 *	It is killed: the state stays until the postmaster has ended all backends and made shared memory anew.  It is true meanwhile: only that worker could
 *	promise anything, and what it had promised is published before anybody hears of it.
 *	A removed node's worker goes on, and so does its state: its promises count for those who have not heard of the removal (members.c).
 *	Another worker begins, perhaps of another node: streams of earlier ones are not answered from its state (peer_stream.c, invariant 4).
 *
 * Locks: the spinlock here, for copies of a few dozen bytes.
 */
#include "postgres.h"

#include "storage/shmem.h"
#include "storage/spin.h"

#include "consensus/published_state.h"
#include "consensus/transport/transport.h"

typedef struct PublishedState
{
	slock_t		mutex;
	PaxosReadState state;
} PublishedState;

static PublishedState *published = NULL;

Size
published_state_shmem_size(void)
{
	return MAXALIGN(sizeof(PublishedState));
}

void
published_state_shmem_startup(void)
{
	bool		found;

	published = ShmemInitStruct("pg_quorum published state", sizeof(PublishedState), &found);
	if (found)
		return;
	memset(published, 0, sizeof(PublishedState));
	SpinLockInit(&published->mutex);
}

static void
publish(const PaxosReadState *state)
{
	SpinLockAcquire(&published->mutex);
	published->state = *state;
	SpinLockRelease(&published->mutex);
}

/* Only the worker writes, so it may compare without the lock. */
void
published_state_update(const PaxosCore *core)
{
	PaxosReadState state;

	paxos_read_state(core, &state);
	if (memcmp(&state, &published->state, sizeof(state)) != 0)
		publish(&state);
}

void
published_state_withdraw(void)
{
	static const PaxosReadState nothing = {0};

	publish(&nothing);
}

static size_t
answer(uint32 from, const uint8 *frame, size_t length, uint8 *buffer, size_t capacity)
{
	PaxosReadState state;

	SpinLockAcquire(&published->mutex);
	state = published->state;
	SpinLockRelease(&published->mutex);
	return paxos_answer_probe(&state, from, frame, length, buffer, capacity);
}

void
published_state_init(void)
{
	transport_answer_hook = answer;
}
