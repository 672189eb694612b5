/*
 * transport.h
 *	  Frames between consensus workers over plain libpq connections to the peers' normal port.
 *
 * Each worker opens one connection to every other member and sends on it; it receives on the connections that the peers
 * opened to it.  At the receiving end an ordinary backend serves `CALL quorum.peer_stream(…)`: it goes into COPY BOTH, and passes each
 * CopyData message (one frame) on to its consensus worker through a shm_mq in a DSM segment.  Process: consensus worker, except
 * peer_stream.c, which runs in the stream backend.
 *
 * This folder knows nothing of Paxos: a frame is bytes from a node id.  A frame that the worker finds malformed makes it call
 * transport_reject(), which closes that link with a log line and hurts nothing else.
 */
#ifndef QUORUM_TRANSPORT_H
#define QUORUM_TRANSPORT_H

#include "postgres.h"
#include "storage/latch.h"

#define TRANSPORT_PROTOCOL_VERSION 1

typedef struct TransportPeer
{
	uint32		node_id;
	char		node_name[NAMEDATALEN];
	char		conninfo[1024];
} TransportPeer;

typedef struct TransportCallbacks
{
	/* A whole frame came from a member; `frame` is valid during the call. */
	void		(*frame) (void *context, uint32 node_id, const uint8 *frame, size_t length);
	/* The outgoing link to a member is now usable, or no longer. */
	void		(*link) (void *context, uint32 node_id, bool up);
	void	   *context;
} TransportCallbacks;

/* After the worker knows who it is.  Call once. */
extern void transport_init(uint64 cluster_id, uint32 own_node_id, const char *own_node_name, uint64 incarnation,
						   const TransportCallbacks *callbacks);

/* The members other than this node; links to nodes that left are closed, new ones opened, changed conninfo reconnected. */
extern void transport_set_peers(const TransportPeer *peers, int count);

/*
 * Queues a frame (copied) for a peer; false and dropped if the link is down or its queue is full: the protocol copes with loss.
 * Nothing is written to a socket before transport_flush(), once per loop.
 */
extern bool transport_send(uint32 node_id, const uint8 *frame, size_t length);
extern void transport_flush(void);

/*
 * Waits until a socket or the worker's latch is ready or the timeout passes (0: only looks), moves connections on, and
 * calls back for every frame that has arrived.  Returns true if the latch was set (and resets it).
 */
extern bool transport_wait(long timeout_ms);

/* Closes both directions of the link with that node; it reconnects with backoff.  `why` goes to the server log. */
extern void transport_reject(uint32 node_id, const char *why);

extern void transport_shutdown(void);

#endif							/* QUORUM_TRANSPORT_H */
