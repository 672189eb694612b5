/*
 * token_memory.h
 *	  What this instance's processes share about the tokens that certification remembers: how many, how old, and what may be promised about them.
 *
 * Certification is deterministic and keeps the newest CERTIFIER_TOKEN_CAPACITY tokens and fences.  What is decided here is decided before anything
 * is proposed, so it need not be the same on all nodes, and a wrong clock or a setting that differs cannot make them differ:
 *
 *	 Retention	A node proposes no token, and no fence, that might make certification forget one that this node has known for less than
 *				quorum.token_retention_age.  Part of the memory is kept free for what others have on their way.
 *	 Reach		A transaction with a token is proposed with a base that is not above the log index before which its first attempt cannot have come, so that
 *				the log rejects it if that attempt may have been forgotten by the time that it is certified: see certifier.h, token_floor.
 *	 Fence		The log does so only behind a fence; so there is one before the first token can be forgotten.
 *	 Guard		Where much is written such a base is too low for the keys.  Unless its client states an index the transaction then has a higher one, and a
 *				guard (token_epochs.h), by which the log rejects it before a token is forgotten that it would have to find.  Whoever puts a token or a fence
 *				marks the epochs for that, whatever its own setting says.
 *
 * The clock is the time for which this instance was seen running: the monotonic clock, continued at a restart where it was last saved.  Time that
 * passed in between is not counted.  A node that copies its tables from another one, and so is told of tokens that it never saw, is told their ages too.  So nobody's setting of a clock makes a token look older than it is.
 * A transaction's begin is known by the wall clock only; that it was set back since is noted (clock_steps.h).
 *
 * The file (QUORUM_DIRECTORY/token_ages, big endian): u32 magic, u32 version 1, u64 cluster id, u32 node id, u64 clock in ms, u32 count, per sample u64
 * put count, u64 log index, u64 clock; CRC32C of all before.  One that is missing or damaged is as if nothing were known of the tokens' ages.
 *
 * Locks: an LWLock of its own, never held together with another nor while waiting, for the samples and the clocks; the numbers are atomics.
 */
#ifndef QUORUM_TOKEN_MEMORY_H
#define QUORUM_TOKEN_MEMORY_H

#include "postgres.h"

#include "datatype/timestamp.h"

#include "shared/certifier.h"
#include "shared/token_ages.h"
#include "shared/token_epochs.h"

#define TOKEN_MEMORY_RESERVE (CERTIFIER_TOKEN_CAPACITY / 4)	/* for what all nodes may have on their way: 16 times a full queue and a quarter of a window */
#define TOKEN_MEMORY_FENCES (CERTIFIER_TOKEN_CAPACITY / 32)	/* so many may a role put from one node within quorum.token_retention_age: anybody may ask */
#define TOKEN_MEMORY_SAVE_INTERVAL_MS 10000

extern Size token_memory_shmem_size(void);
extern void token_memory_shmem_startup(void);

/* ---- client backends ---- */

/* 53400 if a token, or a fence, cannot be proposed now.  Fences may use half of what is kept free: they tell what became of others. */
extern void token_memory_check_room(bool for_fence);

/*
 * 53400 if the session's user had too many fences put from here lately: else who may only ask could take the room of those who write, or of others who
 * ask.  Some users share what one may have.
 */
extern void token_memory_take_fence(void);
extern void token_memory_give_back_fence(void);	/* it was not put */

/* Tokens of entries up to here may be forgotten; 0: none is.  Read after the verdict on a fence it is at least what it was at that. */
extern uint64 token_memory_floor(void);

/* Must a fence be put before the next token? */
extern bool token_memory_needs_fence(void);

/*
 * The lowest base with which certification will still find a transaction young enough for its memory of keys, unless much is written meanwhile: half of
 * the memory is left, or a quarter.
 */
extern uint64 token_memory_key_middle(void);
extern uint64 token_memory_key_quarter(void);

/* For how long a transaction is under way that began then, at least: though the wall clock was set back since (clock_steps.h). */
extern uint64 token_memory_under_way_ms(TimestampTz began_at);

/*
 * The log index before which nothing stands that is at most so much older than quorum.token_retention_age; 0: none is known.  *guard: the epoch to guard
 * an attempt with that must find all that stands behind it; it has not begun at an index that was applied here before the call.  0: it is too late for that.
 */
extern uint64 token_memory_retained_from(uint64 more_ms, uint64 *guard);

/* 53400: it is too late for an attempt that is under way for so long. */
extern void token_memory_report_no_guard(uint64 under_way_ms) pg_attribute_noreturn();

/* The epochs, from *first to *last, that have begun, and are not known to be marked; false: there is none. */
extern bool token_memory_unmarked(uint64 *first, uint64 *last);

typedef struct TokenMemoryStatus
{
	uint64		remembered;
	uint64		floor;
	bool		has_oldest;		/* something is remembered, and something known of its age */
	uint64		oldest_age_ms;	/* of the oldest that is remembered, at least */
	bool		has_room;		/* a transaction with a token can be proposed */
	uint64		forgotten_early;	/* since the server was started: they were, or may have been, younger than quorum.token_retention_age */
} TokenMemoryStatus;

extern void token_memory_get(TokenMemoryStatus *status);

/* ---- consensus worker ---- */

/* At its start, before anything is restored: what this instance knew of that cluster's tokens. */
extern void token_memory_begin(uint64 cluster_id, uint32 node_id);

/* What was restored at the start is delivered, up to `index`. */
extern void token_memory_restored(const Certifier *certifier, uint64 index);

/* From then on, before anybody hears of the entries up to `index`. */
extern void token_memory_note(const Certifier *certifier, uint64 index);

/* ---- from node to node: a put's number is the same on all, so what one knows of it is true for another ---- */

/* Room for TOKEN_AGES_SAMPLES; returns how many.  In clock_ms stands the sample's age. */
extern int	token_memory_get_samples(TokenSample *samples);

/* In place of this node's own, which knows less.  False: they cannot be true. */
extern bool token_memory_learn(const TokenSample *samples, int count);

/* ---- compactor ---- */

/* Writes the file if there is anything new to say. */
extern void token_memory_save(void);

#endif							/* QUORUM_TOKEN_MEMORY_H */
