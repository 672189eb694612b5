/*
 * stream_handshake.h
 *	  What a node says when it opens a link, and whether it is let in.  Process: stream backend.
 */
#ifndef QUORUM_STREAM_HANDSHAKE_H
#define QUORUM_STREAM_HANDSHAKE_H

#include "postgres.h"

#include "fmgr.h"

#include "shared/acceptor_mark.h"
#include "shared/generation.h"

typedef struct StreamHandshake
{
	int			protocol_version;
	uint64		cluster_id;
	uint32		from_node_id;
	char		from_node_name[NAMEDATALEN];
	uint32		to_node_id;
	uint64		incarnation;
	AcceptorClaim claim;		/* from TRANSPORT_CLAIM_VERSION on */
	ClusterGeneration cluster_generation;
} StreamHandshake;

/* The arguments of quorum.peer_stream(); ERROR if they are not what they should be. */
extern void handshake_read(FunctionCallInfo fcinfo, StreamHandshake *said);

/* Role, version, identities, generation, memory, in this order; ERROR with the SQLSTATE that docs/transport.md lists. */
extern void handshake_check(const StreamHandshake *said);

/* Once more, of the worker that has taken the stream up. */
extern void handshake_check_identities(const StreamHandshake *said);

#endif							/* QUORUM_STREAM_HANDSHAKE_H */
