/*
 * transport.c
 *	  The consensus worker's one place to wait, and the front of the transport: its peers (peer.c) and the streams from them
 *	  (inbound.c).
 *
 * Runs in the consensus worker.  It must never sleep while a frame, a loss or a new stream is waiting to be told, and it must never
 * look into a frame.
 *
 * Invariants
 *	 1. Callbacks are made from transport_wait() only, when no list of events is being walked: they may change the peers.
 *	 2. wait_set holds the latch, the death of the postmaster and the socket of every peer that has one.  A set of Postgres 15 cannot
 *		forget a socket, so it is built anew before the next wait whenever a socket came or went (wait_set_is_stale).
 *	 3. The latch is reset before the inbound queues are read, so what arrives after the reading sets it again.
 *	 4. A peer's loss is told (link callback, up = false) before anything of a later connection to it; and that a link is up, with its version, before
 *		any frame is delivered, which might be answered on it.
 *
 * Locks: none of its own; inbound.c takes QuorumShmem->lock shortly.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

#include "consensus/transport/inbound.h"
#include "consensus/transport/peer.h"
#include "consensus/transport/transport.h"
#include "shared/shmem.h"

#define WAIT_SET_EVENTS (QUORUM_MAX_MEMBERS + 2)

static TransportIdentity self;
static TransportCallbacks callbacks;
static MemoryContext transport_context = NULL;
static Peer *peers[QUORUM_MAX_MEMBERS];
static int	peer_count = 0;
static TransportCounters departed_counters;	/* of peers that are no members any more */
static WaitEventSet *wait_set = NULL;
static bool wait_set_is_stale = true;

/* The last drain stopped at its bound. */
static bool inbound_is_pending = false;

static Peer *
find_peer(uint32 node_id)
{
	for (int i = 0; i < peer_count; i++)
	{
		if (peers[i]->member.node_id == node_id)
			return peers[i];
	}
	return NULL;
}

void
transport_init(const TransportIdentity *identity, const TransportCallbacks *given_callbacks)
{
	Assert(transport_context == NULL);
	transport_context = AllocSetContextCreate(TopMemoryContext, "pg_quorum transport", ALLOCSET_DEFAULT_SIZES);
	self = *identity;
	callbacks = *given_callbacks;
	inbound_init();
}

/* ---- peers ---- */

static bool
is_listed(uint32 node_id, const TransportPeer *members, int count)
{
	for (int i = 0; i < count; i++)
	{
		if (members[i].node_id == node_id)
			return true;
	}
	return false;
}

static void
add_peer(const TransportPeer *member)
{
	MemoryContext old_context;

	if (peer_count >= QUORUM_MAX_MEMBERS)
		elog(ERROR, "more than %d peers", QUORUM_MAX_MEMBERS);
	old_context = MemoryContextSwitchTo(transport_context);
	peers[peer_count++] = peer_create(member);
	MemoryContextSwitchTo(old_context);
}

static void
add_counters(TransportCounters *sum, const TransportCounters *counters)
{
	sum->frames_sent += counters->frames_sent;
	sum->bytes_sent += counters->bytes_sent;
	sum->frames_received += counters->frames_received;
	sum->bytes_received += counters->bytes_received;
	sum->frames_dropped += counters->frames_dropped;
	sum->links_established += counters->links_established;
}

void
transport_set_peers(const TransportPeer *members, int count)
{
	int			kept = 0;

	for (int i = 0; i < peer_count; i++)
	{
		if (is_listed(peers[i]->member.node_id, members, count))
			peers[kept++] = peers[i];
		else
		{
			peer_flush(peers[i], transport_now_us());	/* its last words, as far as the socket takes them */
			inbound_reject(peers[i]->member.node_id);
			add_counters(&departed_counters, &peers[i]->counters);
			peer_destroy(peers[i]);
			wait_set_is_stale = true;
		}
	}
	peer_count = kept;

	for (int i = 0; i < count; i++)
	{
		Peer	   *known = find_peer(members[i].node_id);

		if (members[i].node_id == self.node_id)
			continue;
		if (known != NULL)
			peer_update_member(known, &members[i], transport_now_us());
		else
			add_peer(&members[i]);
	}
}

bool
transport_send(uint32 node_id, const uint8 *frame, size_t length)
{
	Peer	   *peer = find_peer(node_id);

	return peer != NULL && peer_enqueue(peer, frame, length);
}

void
transport_flush(void)
{
	int64		now_us = transport_now_us();

	for (int i = 0; i < peer_count; i++)
		peer_flush(peers[i], now_us);
}

void
transport_get_counters(TransportCounters *counters)
{
	*counters = departed_counters;
	for (int i = 0; i < peer_count; i++)
		add_counters(counters, &peers[i]->counters);
}

bool
transport_get_peer_counters(uint32 node_id, TransportCounters *counters)
{
	Peer	   *peer = find_peer(node_id);

	if (peer == NULL)
		return false;
	*counters = peer->counters;
	return true;
}

int
transport_peer_version(uint32 node_id)
{
	Peer	   *peer = find_peer(node_id);

	return peer != NULL ? peer->last_version : TRANSPORT_NEWEST_VERSION;
}

void
transport_reject(uint32 node_id, const char *why)
{
	Peer	   *peer = find_peer(node_id);

	if (peer != NULL)
		ereport(LOG,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("closing the link with node \"%s\" because of an invalid frame", peer->member.node_name),
				 errdetail("%s.", why)));
	else
		ereport(LOG,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("closing the link with node %u because of an invalid frame", node_id),
				 errdetail("%s.", why)));
	inbound_reject(node_id);
	if (peer != NULL)
		peer_lose(peer, NULL, transport_now_us());
}

/* ---- the wait ---- */

static void
build_wait_set(void)
{
	if (wait_set != NULL)
		FreeWaitEventSet(wait_set);
	wait_set = CreateWaitEventSet(transport_context, WAIT_SET_EVENTS);
	AddWaitEventToSet(wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	for (int i = 0; i < peer_count; i++)
	{
		Peer	   *peer = peers[i];

		peer->socket_changed = false;
		peer->event_position = -1;
		if (peer->wanted_events != 0)
			peer->event_position = AddWaitEventToSet(wait_set, peer->wanted_events, PQsocket(peer->connection), NULL, peer);
	}
	wait_set_is_stale = false;
}

static void
prepare_wait_set(void)
{
	for (int i = 0; i < peer_count; i++)
		wait_set_is_stale |= peers[i]->socket_changed;
	if (wait_set_is_stale)
		build_wait_set();
	else
	{
		/* Costs nothing for those whose wish is the same. */
		for (int i = 0; i < peer_count; i++)
		{
			if (peers[i]->event_position >= 0)
				ModifyWaitEvent(wait_set, peers[i]->event_position, peers[i]->wanted_events, NULL);
		}
	}
}

static void
run_due_timers(int64 now_us)
{
	for (int i = 0; i < peer_count; i++)
	{
		if (peer_timer_is_due(peers[i], now_us))
			peer_advance(peers[i], &self, 0, now_us);
	}
}

/* The caller's timeout, or less if a peer's timer is due before. */
static long
shorten_timeout(long timeout_ms, int64 now_us)
{
	for (int i = 0; i < peer_count; i++)
	{
		int64		peer_ms;

		if (peers[i]->state == PEER_STREAMING)
			continue;
		peer_ms = Max(0, (peers[i]->timer_us - now_us + 999) / 1000);
		if (timeout_ms < 0 || peer_ms < timeout_ms)
			timeout_ms = (long) peer_ms;
	}
	return timeout_ms;
}

/* True if a callback was made. */
static bool
tell_links(void)
{
	bool		told = false;

	for (int i = 0; i < peer_count; i++)
	{
		Peer	   *peer = peers[i];
		bool		up = peer->state == PEER_STREAMING;

		if (peer->says_removed && !peer->reported_removed)
		{
			peer->reported_removed = told = true;
			callbacks.removed(callbacks.context, peer->member.node_id);
		}
		if (peer->successor[0] != '\0')
		{
			char		generation[GENERATION_TEXT_BYTES];

			strlcpy(generation, peer->successor, sizeof(generation));
			peer->successor[0] = '\0';
			told = true;
			callbacks.left_behind(callbacks.context, peer->member.node_id, generation);
		}
		if (peer->reported_up != up)
		{
			peer->reported_up = up;
			told = true;
			/* Not to be touched afterwards: the callback may have removed it. */
			callbacks.link(callbacks.context, peer->member.node_id, up, peer->version);
		}
	}
	return told;
}

static void
tell_refusals(void)
{
	for (int i = 0; i < peer_count; i++)
		if (peers[i]->refusal != NULL)
		{
			callbacks.refused(callbacks.context, peers[i]->member.node_id, peers[i]->refusal);
			pfree(peers[i]->refusal);
			peers[i]->refusal = NULL;
		}
}

static void
stream_arrived(uint32 node_id)
{
	Peer	   *peer = find_peer(node_id);

	if (peer != NULL)
		peer_hurry(peer, transport_now_us());
}

static void
count_received(Peer *peer, size_t length)
{
	if (peer == NULL)
		return;
	peer->counters.frames_received++;
	peer->counters.bytes_received += length;
}

static void
deliver_frame(uint32 node_id, const uint8 *bytes, size_t length)
{
	count_received(find_peer(node_id), length);
	callbacks.frame(callbacks.context, node_id, bytes, length);
}

static void
deliver_answer(Peer *peer, const uint8 *bytes, size_t length)
{
	count_received(peer, length);
	if (peer->version < TRANSPORT_ANSWER_VERSION || length > TRANSPORT_ANSWER_BYTES)
		transport_reject(peer->member.node_id, "it is no answer");
	else
		callbacks.answer(callbacks.context, peer->member.node_id, bytes, length);
}

/* A callback may remove the peer, or lose its link: it is looked for anew each time. */
static void
drain_answers(int64 now_us)
{
	uint32		node_ids[QUORUM_MAX_MEMBERS];
	int			count = peer_count;
	Peer	   *peer;
	char	   *answer;
	int			length;

	for (int i = 0; i < count; i++)
		node_ids[i] = peers[i]->member.node_id;
	for (int i = 0; i < count; i++)
		while ((peer = find_peer(node_ids[i])) != NULL && (answer = peer_next_answer(peer, &length, now_us)) != NULL)
		{
			deliver_answer(peer, (const uint8 *) answer, length);
			PQfreemem(answer);
		}
}

bool
transport_wait(long timeout_ms)
{
	WaitEvent	events[WAIT_SET_EVENTS];
	int64		now_us = transport_now_us();
	bool		latch_was_set = false;
	int			event_count;

	run_due_timers(now_us);
	if (tell_links() || inbound_is_pending)
		timeout_ms = 0;
	prepare_wait_set();
	event_count = WaitEventSetWait(wait_set, shorten_timeout(timeout_ms, now_us), events, lengthof(events), PG_WAIT_EXTENSION);

	now_us = transport_now_us();
	for (int i = 0; i < event_count; i++)
	{
		if (events[i].events & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			latch_was_set = true;
		}
		else if (events[i].user_data != NULL)
			peer_advance(events[i].user_data, &self, events[i].events, now_us);
	}
	run_due_timers(now_us);

	inbound_adopt(stream_arrived);
	tell_refusals();
	tell_links();
	drain_answers(now_us);
	tell_links();				/* those that were lost in it */
	inbound_is_pending = inbound_drain(deliver_frame);
	return latch_was_set;
}

void
transport_shutdown(void)
{
	if (transport_context == NULL)
		return;
	inbound_shutdown();
	for (int i = 0; i < peer_count; i++)
		peer_destroy(peers[i]);
	peer_count = 0;
	if (wait_set != NULL)
		FreeWaitEventSet(wait_set);
	wait_set = NULL;
	wait_set_is_stale = true;
}
