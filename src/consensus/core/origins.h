/*
 * origins.h
 *	  Which proposals of which origin took effect: a function of the log alone, kept without a core.
 *
 * An origin sends a proposal again to each new leader until it learns it, so the log may hold an id in two slots; it takes effect in the
 * first.  Whoever reads the log in order and notes each id here finds the same as every node's core.
 *
 * Only C standard headers; memory comes from the allocator given.
 */
#ifndef PAXOS_ORIGINS_H
#define PAXOS_ORIGINS_H

#include "paxos.h"

#define PAXOS_DEDUP_WINDOW 4096 /* sequences per origin that may be outstanding at once; a power of two */

typedef struct PaxosOrigin
{
	uint32_t	node_id;
	uint64_t	incarnation;	/* the newest delivered */
	uint64_t	highest_sequence;	/* delivered, of that incarnation */
	uint64_t	delivered_bits[PAXOS_DEDUP_WINDOW / 64];	/* of (highest_sequence - PAXOS_DEDUP_WINDOW, highest_sequence] */
} PaxosOrigin;

/* In the order of their first entry in the log.  Origins are never let go: an id of a node that is long gone may still be on its way. */
typedef struct PaxosOrigins
{
	PaxosAllocator allocator;
	PaxosOrigin *items;
	size_t		count;
	size_t		capacity;
} PaxosOrigins;

extern void paxos_origins_init(PaxosOrigins *origins, const PaxosAllocator *allocator);	/* empty: nothing is noted */
extern void paxos_origins_free(PaxosOrigins *origins);	/* and empty again */

/* Would it take no effect if it came now? */
extern bool paxos_origins_is_duplicate(const PaxosOrigins *origins, PaxosProposalId id);

/* The next entry of the log with a proposer (no-ops have none).  Returns true if it is a duplicate, which changes nothing. */
extern bool paxos_origins_note(PaxosOrigins *origins, PaxosProposalId id);

/*
 * The same origins give the same bytes.  Decoding validates, and replaces what is there; false: malformed or of an unknown version,
 * nothing changed.
 */
extern size_t paxos_origins_size(const PaxosOrigins *origins);
extern size_t paxos_origins_encode(const PaxosOrigins *origins, uint8_t *buffer, size_t capacity);	/* 0: does not fit */
extern bool paxos_origins_decode(PaxosOrigins *origins, const uint8_t *bytes, size_t length);

#endif							/* PAXOS_ORIGINS_H */
