/*
 * transport.h
 *	  Frames between consensus workers over plain libpq connections to the peers' normal port.
 *
 * Each worker opens one connection to every other member and sends on it; it receives on the connections that the peers
 * opened to it, and on its own the answers that a stream backend gives without its worker (transport_answer_hook).  At the receiving end an ordinary backend serves `CALL quorum.peer_stream(…)`: it goes into COPY BOTH, and passes each
 * CopyData message (one frame) on to its consensus worker through a shm_mq in a DSM segment.  Process: consensus worker, except
 * peer_stream.c, which runs in the stream backend.
 *
 * This folder knows nothing of Paxos: a frame is bytes from a node id.  A frame that the worker finds malformed makes it call
 * transport_reject(), which closes that link with a log line and hurts nothing else.
 *
 * docs/transport.md describes handshake, frames, states and error cases.
 */
#ifndef QUORUM_TRANSPORT_H
#define QUORUM_TRANSPORT_H

#include "postgres.h"
#include "shared/generation.h"
#include "storage/latch.h"

/*
 * Versions of the handshake, which say what the frames after it may be: 1 stands for frames of version 2, 2 for frames up to version 3, 3 for those up to 4
 * (consensus_worker.c checks that) and for answers on the link itself, 4 for those up to 5.  Whoever connects offers the newest that it knows, and the next older one if that is refused with
 * 08P01, as builds of version 1 do; whoever is connected to takes each version that it knows.  So members of neighbouring versions
 * understand each other in both directions.  -D gives a build that knows less, for the test of upgrades.
 */
#define TRANSPORT_OLDEST_VERSION 1
#ifndef TRANSPORT_NEWEST_VERSION
#define TRANSPORT_NEWEST_VERSION 4
#endif

/*
 * A member refuses the link of a node that was removed with this SQLSTATE, and nothing else has it.  The members are the log's and node ids are
 * never given out again, so it is true for ever, whoever says it.
 */
#define TRANSPORT_SQLSTATE_REMOVED MAKE_SQLSTATE('Q', 'U', '0', '0', '1')

/*
 * A member refuses the link of a node that quorum.force_new_cluster() has left behind with this one; the field for a constraint's name, which
 * nobody else uses here, holds the member's generation as text.  The other end believes it if that follows on its own.
 */
#define TRANSPORT_SQLSTATE_LEFT_BEHIND MAKE_SQLSTATE('Q', 'U', '0', '0', '2')

/* This node was left behind itself, or both were continued apart: there is no use in asking again soon. */
#define TRANSPORT_SQLSTATE_OTHER_GENERATION MAKE_SQLSTATE('Q', 'U', '0', '0', '3')

/* Of the link of a node whose journal holds less than that member knows it had held (shared/acceptor_mark.h). */
#define TRANSPORT_SQLSTATE_FORGOTTEN MAKE_SQLSTATE('Q', 'U', '0', '0', '4')

#define TRANSPORT_CLAIM_VERSION 2	/* from this version of the handshake on a node says what its journal holds */
#define TRANSPORT_ANSWER_VERSION 3	/* and from this one the end that receives may answer a frame by one of its own */

/* A longer frame, or an empty one, is a protocol violation.  Not less than the PAXOS_MAX_FRAME_BYTES of the core. */
#define TRANSPORT_MAX_FRAME_BYTES (80 * 1024 * 1024)

/* A peer's queue takes one more frame as long as it holds less than this, so it is bounded by this plus one frame. */
#define TRANSPORT_QUEUE_LIMIT_BYTES (8 * 1024 * 1024)

/* What a node says of itself in each handshake.  The three before the last are what its peers' marks are compared with (shared/acceptor_mark.h). */
typedef struct TransportIdentity
{
	uint64		cluster_id;
	uint32		node_id;
	char		node_name[NAMEDATALEN];
	uint64		incarnation;	/* number of this start */
	uint64		start_nonce;
	uint64		journal_incarnation;
	uint64		recovered_position;
	char		generation[GENERATION_TEXT_BYTES];	/* empty: of a cluster that was never forced */
} TransportIdentity;

typedef struct TransportPeer
{
	uint32		node_id;
	char		node_name[NAMEDATALEN];
	char		conninfo[1024];
} TransportPeer;

/* Called from within transport_wait() only.  A callback may call every function of this header but transport_wait and transport_init. */
typedef struct TransportCallbacks
{
	/* A whole frame came from a member; `frame` is valid during the call. */
	void		(*frame) (void *context, uint32 node_id, const uint8 *frame, size_t length);
	/*
	 * A whole frame came from a member's stream backend, on the link that this node opened to it.  Whoever listens there has proven less than who comes in:
	 * nothing but answers may be taken from it.
	 */
	void		(*answer) (void *context, uint32 node_id, const uint8 *frame, size_t length);
	/*
	 * The outgoing link to a member is now usable (the worker at its other end has taken it up), or no longer.  version: of the handshake, if
	 * it is up.
	 */
	void		(*link) (void *context, uint32 node_id, bool up, int version);
	/* A member says that this node was removed from the cluster. */
	void		(*removed) (void *context, uint32 node_id);
	/* A member refuses this node for good, as having forgotten what it promised; `why` is a sentence.  It may set nothing but variables. */
	void		(*refused) (void *context, uint32 node_id, const char *why);
	/* A member says that the cluster went on without this node, as that generation (not checked: it is a peer's text). */
	void		(*left_behind) (void *context, uint32 node_id, const char *generation);
	void	   *context;
} TransportCallbacks;

typedef struct TransportCounters
{
	uint64		frames_sent;	/* handed over to libpq */
	uint64		bytes_sent;
	uint64		frames_received;
	uint64		bytes_received;
	uint64		frames_dropped; /* link down or queue full, and what a lost link had queued */
	uint64		links_established;
} TransportCounters;

/* After the worker knows who it is, in a process with access to shared memory.  Call once. */
extern void transport_init(const TransportIdentity *identity, const TransportCallbacks *callbacks);

/*
 * The members other than this node; links to nodes that left are closed (without a link callback), new ones opened, changed conninfo
 * reconnected.  An entry for this node itself is skipped.
 */
extern void transport_set_peers(const TransportPeer *peers, int count);

/*
 * Queues a frame (copied) for a peer; false and dropped if the link is down or its queue is full: the protocol copes with loss.
 * Nothing is written to a socket before transport_flush(), once per loop.
 */
extern bool transport_send(uint32 node_id, const uint8 *frame, size_t length);
extern void transport_flush(void);

/*
 * Waits until a socket or the worker's latch is ready or the timeout passes (0: only looks; negative: no end), moves connections
 * on, and calls back for every frame that has arrived, up to a bound per call.  Does not sleep if something is left to do.
 * Returns true if the latch was set (and resets it).
 */
extern bool transport_wait(long timeout_ms);

/* Closes both directions of the link with that node; it reconnects with backoff.  `why` goes to the server log. */
extern void transport_reject(uint32 node_id, const char *why);

/* Of all links since transport_init, those to nodes that have left included. */
extern void transport_get_counters(TransportCounters *counters);

/* Of one link since the peer was added.  False: no such peer. */
extern bool transport_get_peer_counters(uint32 node_id, TransportCounters *counters);

/* What the link with that node speaks, or spoke when it was up last; the newest if it never was. */
extern int	transport_peer_version(uint32 node_id);

extern void transport_shutdown(void);

/*
 * Answers a frame at once, in the stream backend: writes at most `capacity` bytes and returns their number, or 0: the frame is for the worker.  The answer reaches
 * the sender's worker as a frame from this node, or is lost.  Set in the postmaster; may not raise an error or wait.
 */
typedef size_t (*TransportAnswerHook) (uint32 from, const uint8 *frame, size_t length, uint8 *buffer, size_t capacity);
extern TransportAnswerHook transport_answer_hook;

#define TRANSPORT_ANSWER_BYTES 64

#endif							/* QUORUM_TRANSPORT_H */
