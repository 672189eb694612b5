/*
 * certifier.h
 *	  Certification: the verdict over an entry of the log, from the log alone, the same on every node.
 *
 * Pure: no shared memory, no tables, no allocation.  Each entry lists keys: what its transaction wrote, locked or, if it is
 * serializable, read; each with a mode and a *base*, an index up to which its node had applied the log when it got the key (for a lock: or
 * later, while it was held).  An entry at index i is rejected iff for one of its keys an entry in (base, i) took effect that has the same key in a
 * mode that conflicts.  So of two transactions that did not see each other the first in the log wins, whatever nodes they ran on.
 *
 * The modes of rows are PostgreSQL's four row locks, with its conflict table (documentation, "Row-Level Locks"); those of tables
 * are what its table locks come to when only replicated writes matter.  What is only read conflicts with later writers in no way, since an
 * entry's place in the order is its index (backward validation: Härder, "Observations on optimistic concurrency control schemes", 1984).
 *
 * Memory is bounded: the certifier remembers the newest `key_capacity` pairs of key and mode.  The *floor* is the index of the last one
 * that it forgot; an entry with an older base cannot be certified and is rejected.  Memory and floor are functions of the log alone, so the
 * capacity is part of the protocol: it must be the same on all nodes.  Tokens are remembered likewise; once fences are forgotten, an entry with a
 * base below theirs is rejected: it might be what they fenced, or an attempt of which another one with the same token took effect (token_memory.h).
 */
#ifndef QUORUM_CERTIFIER_H
#define QUORUM_CERTIFIER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef CERTIFIER_KEY_CAPACITY
#define CERTIFIER_KEY_CAPACITY (1u << 20)	/* the cluster's; tests use less */
#endif
#ifndef CERTIFIER_TOKEN_CAPACITY
#define CERTIFIER_TOKEN_CAPACITY (1u << 18)	/* tokens that clients chose, and fences */
#endif
#define CERTIFIER_KEY_BYTES 13		/* big endian: u64 hash, u8 mode, u32 by how much its base is above the entry's */

typedef enum CertifierMode
{
	CERTIFIER_KEY_SHARE = 0,
	CERTIFIER_SHARE,
	CERTIFIER_NO_KEY_UPDATE,
	CERTIFIER_UPDATE,
	CERTIFIER_TABLE_ROW_SHARE,	/* any lock of the table that only ACCESS EXCLUSIVE and its like conflict with */
	CERTIFIER_TABLE_ROW_EXCLUSIVE,	/* it writes rows */
	CERTIFIER_TABLE_SHARE,
	CERTIFIER_TABLE_EXCLUSIVE,	/* TRUNCATE, LOCK TABLE from SHARE ROW EXCLUSIVE on, DDL, more rows than can be listed */
	CERTIFIER_READ,				/* from here on: checked, but in nobody's way */
	CERTIFIER_TABLE_READ,
	CERTIFIER_MODE_COUNT
} CertifierMode;

/* The newest `capacity` pairs of key and index, in the order in which they were put in. */
typedef struct RecentIndexes
{
	uint32_t	capacity;		/* a power of two */
	uint64_t	put_count;
	struct RecentIndex *ring;	/* [capacity] */
	struct RecentIndex *map;	/* [2 * capacity], open addressing; index 0: free */
} RecentIndexes;

typedef struct Certifier
{
	RecentIndexes keys;
	RecentIndexes tokens;
	uint64_t	floor;			/* keys of entries up to here may be forgotten */
	uint64_t	token_floor;	/* tokens and fences of entries up to here may be forgotten */
	bool		has_fences;
} Certifier;

typedef enum CertifierReason
{
	CERTIFIER_APPLY = 0,
	CERTIFIER_CONFLICT,			/* key_number lost against conflict_index */
	CERTIFIER_TOO_OLD,			/* its base is below the floor, which is conflict_index */
	CERTIFIER_TOKEN_COMMITTED,	/* the transaction with its token took effect at conflict_index */
	CERTIFIER_FENCED,			/* its token was fenced at conflict_index */
	CERTIFIER_MALFORMED
} CertifierReason;

typedef struct CertifierEntry
{
	uint64_t	index;
	uint64_t	proposal;		/* random, names it if its client chose no token; 0: none */
	uint64_t	base;			/* the lowest of its keys' */
	uint64_t	token;			/* hash of the client's token, or of what is to be fenced; 0: none */
	bool		is_fence;		/* it only makes sure that whatever has that token never takes effect */
	uint32_t	key_count;
	const uint8_t *keys;		/* key_count times CERTIFIER_KEY_BYTES */
} CertifierEntry;

typedef struct CertifierVerdict
{
	CertifierReason reason;
	uint64_t	conflict_index;
	uint32_t	key_number;		/* from 0, in the entry's order */
} CertifierVerdict;

/* `memory` holds certifier_memory_size() zeroed bytes, aligned for uint64_t; capacities are powers of two. */
extern size_t certifier_memory_size(uint32_t key_capacity, uint32_t token_capacity);
extern void certifier_init(Certifier *certifier, void *memory, uint32_t key_capacity, uint32_t token_capacity);

/* Entries come in log order.  With CERTIFIER_APPLY the certifier has taken note of the entry. */
extern void certify(Certifier *certifier, const CertifierEntry *entry, CertifierVerdict *verdict);

/* The newest entry that took effect with that key in that mode; 0: none is remembered. */
extern uint64_t certifier_last_index(const Certifier *certifier, uint64_t hash, CertifierMode mode);

/*
 * What is remembered, as pairs in the order in which they were put in: a certifier that is filled with them and has the floors, has_fences and
 * put_counts of another gives the same verdicts as that from there on.
 */
extern uint32_t certifier_recent_count(const RecentIndexes *recent);
extern void certifier_recent_get(const RecentIndexes *recent, uint32_t number, uint64_t *key, uint64_t *index);	/* 0: the oldest */

/* Into an empty one: first begin with the other's put_count, then each pair.  False: no certifier holds such a pair there. */
extern bool certifier_refill_begin(RecentIndexes *recent, uint64_t put_count, uint32_t pair_count);
extern bool certifier_refill_put(RecentIndexes *recent, uint64_t key, uint64_t index);

/* For writers of entries. */
extern void certifier_put_key(uint8_t *bytes, uint64_t hash, CertifierMode mode, uint32_t base_offset);

#endif							/* QUORUM_CERTIFIER_H */
