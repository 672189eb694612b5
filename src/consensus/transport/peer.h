/*
 * peer.h
 *	  One outgoing link: the libpq connection on which this worker sends to one other member.  Process: consensus worker.
 *
 * States in the order in which they occur, with what leaves each:
 *
 *	 PEER_BACKOFF		retry time reached, or the peer has just connected to us -> PEER_CONNECTING
 *	 PEER_CONNECTING	libpq says connected, CALL queued -> PEER_HANDSHAKE; failure or deadline -> PEER_BACKOFF
 *	 PEER_HANDSHAKE		COPY BOTH begins -> PEER_STREAMING; an error, EOF or deadline -> PEER_BACKOFF
 *	 PEER_STREAMING		EOF, error, anything said by the other end but answers, transport_reject -> PEER_BACKOFF
 *
 * No function here waits, and none calls back: transport.c looks at the state afterwards.
 */
#ifndef QUORUM_PEER_H
#define QUORUM_PEER_H

#include "postgres.h"

#include "libpq-fe.h"

#include "consensus/transport/transport.h"

typedef enum PeerState
{
	PEER_BACKOFF = 0,
	PEER_CONNECTING,
	PEER_HANDSHAKE,
	PEER_STREAMING
} PeerState;

/* Frames that wait for libpq: each a uint32 length in host order and its bytes, between head and tail. */
typedef struct FrameQueue
{
	char	   *bytes;
	size_t		capacity;
	size_t		head;
	size_t		tail;
} FrameQueue;

#define PEER_FAILURE_TEXT_BYTES 512

typedef struct Peer
{
	TransportPeer member;
	PeerState	state;
	PGconn	   *connection;		/* NULL in PEER_BACKOFF */
	int64		timer_us;		/* BACKOFF: time of the next attempt; CONNECTING, HANDSHAKE: when to give it up; else none */
	int			failures;		/* in a row; the exponent of the backoff */
	int64		streaming_since_us;

	uint32		wanted_events;	/* WL_SOCKET_*; 0 without a socket */
	bool		socket_changed; /* the wait set must be built anew */
	int			event_position; /* in the wait set; -1: not in it */
	bool		flush_pending;	/* libpq holds bytes that the socket did not take */
	bool		has_input;		/* STREAMING: libpq may hold something that was not looked at */

	int			version;		/* of the handshake: what is offered, and once STREAMING what is spoken */
	int			last_version;	/* of the last stream; the newest if there was none */
	bool		says_removed;	/* it refused the last handshake because this node was removed */

	char		successor[GENERATION_TEXT_BYTES];	/* it refused because the cluster went on as that generation; empty, or told */

	bool		reported_up;	/* what the worker was last told by the link callback */
	char	   *refusal;		/* the peer refuses this node for good, and the worker was not told yet; palloc'd.  NULL: no */
	bool		reported_removed;	/* and by the removed callback */
	FrameQueue	queue;
	TransportCounters counters;

	char		logged_failure[PEER_FAILURE_TEXT_BYTES];	/* repeated failures are logged once in a while */
	int64		logged_failure_us;
} Peer;

/* Monotonic clock of the transport. */
extern int64 transport_now_us(void);

/* Memory is taken from the current context and given back by peer_destroy. */
extern Peer *peer_create(const TransportPeer *member);
extern void peer_destroy(Peer *peer);

/* A name that changed needs nothing; a conninfo that changed makes it reconnect. */
extern void peer_update_member(Peer *peer, const TransportPeer *member, int64 now_us);

/* Moves the link on: when its timer is due (ready_events 0) or its socket is ready. */
extern void peer_advance(Peer *peer, const TransportIdentity *self, uint32 ready_events, int64 now_us);
extern bool peer_timer_is_due(const Peer *peer, int64 now_us);

/* The peer is known to be alive: do not wait for the end of the backoff. */
extern void peer_hurry(Peer *peer, int64 now_us);

extern bool peer_enqueue(Peer *peer, const uint8 *frame, size_t length);
extern void peer_flush(Peer *peer, int64 now_us);

/* The next frame that the other end answered with, to be freed by PQfreemem; NULL: none.  The link may be lost then. */
extern char *peer_next_answer(Peer *peer, int *length, int64 now_us);

/* Closes the connection and starts the backoff; logs why, unless NULL. */
extern void peer_lose(Peer *peer, const char *why, int64 now_us);

#endif							/* QUORUM_PEER_H */
