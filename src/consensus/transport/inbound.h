/*
 * inbound.h
 *	  The worker's end of the streams that come in: one shm_mq per peer, filled by that peer's stream backend (peer_stream.c).
 *	  Process: consensus worker.
 */
#ifndef QUORUM_INBOUND_H
#define QUORUM_INBOUND_H

#include "postgres.h"

/* Sends away every stream backend that served an earlier worker of this instance: its half-read queue cannot be taken over. */
extern void inbound_init(void);

/* Takes up streams that were published since the last call, lets go of those that were replaced; tells the sender of each new one. */
extern void inbound_adopt(void (*arrived) (uint32 node_id));

/*
 * Hands over what has arrived, a bounded amount per stream and call.  Returns true if more may be waiting, so that the caller
 * must not sleep.  `frame` may call inbound_reject.
 */
extern bool inbound_drain(void (*frame) (uint32 node_id, const uint8 *bytes, size_t length));

/* Ends the stream from that node; its backend closes the connection.  Nothing of it is delivered any more. */
extern void inbound_reject(uint32 node_id);

extern void inbound_shutdown(void);

#endif							/* QUORUM_INBOUND_H */
