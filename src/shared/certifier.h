/*
 * certifier.h
 *	  Certification: the verdict over an entry, from the log alone, the same on every node.
 *
 * Pure: no shared memory, no tables.  In this version the granularity is a node: an entry is rejected iff an entry of another
 * (origin, incarnation) was chosen with verdict APPLY in (base, its own index), where base is the applied index of its origin when the
 * transaction took its first lock on a replicated row.  Transactions of one origin hold Postgres' own locks against each other,
 * so they need no certification among themselves (an abandoned one: see orphan_epoch in proposal_queue.h).
 */
#ifndef QUORUM_CERTIFIER_H
#define QUORUM_CERTIFIER_H

#include <stdbool.h>
#include <stdint.h>

typedef struct Certifier
{
	uint32_t	last_origin;	/* of the last applied entry */
	uint64_t	last_incarnation;
	uint64_t	last_index;		/* of that origin and incarnation's last applied entry */
	uint64_t	last_other_index;	/* of the last applied entry of anybody else */
} Certifier;

/* The index of the entry that makes this one fail, or 0: it is to be applied, and the certifier has taken note of it. */
extern uint64_t certify(Certifier *certifier, uint64_t index, uint32_t origin, uint64_t incarnation, uint64_t base);

#endif							/* QUORUM_CERTIFIER_H */
