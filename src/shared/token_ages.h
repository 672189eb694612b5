/*
 * token_ages.h
 *	  How long this node has known the tokens that certification remembers: so that none is forgotten before its time.
 *
 * Pure: no shared memory, no clock, no allocation.  Certification keeps tokens by count alone (certifier.h): a verdict must be the same on every node and
 * at each replay, and nodes share no clock.  Their ages are each node's own knowledge, and decide only what it proposes.  A token has the number of its put
 * (RecentIndexes.put_count just after it), which is the same on all nodes.
 *
 * A sample is a fact: when the node's clock showed that, it had delivered the log up to that index, and so many tokens had been put.  So each of
 * them is at least as old as the sample.  A sample that is missing makes tokens look younger than they are, never older.  The clock is one that
 * only this node reads, that never goes back and never runs faster than time does (token_memory.h).
 */
#ifndef QUORUM_TOKEN_AGES_H
#define QUORUM_TOKEN_AGES_H

#include <stdbool.h>
#include <stdint.h>

#define TOKEN_AGES_SAMPLES 512		/* even */
#define TOKEN_AGES_STEPS 256		/* into so many the memory of tokens is divided, a sample each */

typedef struct TokenSample
{
	uint64_t	put_count;
	uint64_t	index;
	uint64_t	clock_ms;
} TokenSample;

typedef struct TokenAges
{
	uint32_t	count;
	TokenSample samples[TOKEN_AGES_SAMPLES];	/* the oldest first; put_count grows, the others do not fall */
} TokenAges;

/* Call in log order, with the certifier's capacity for tokens; most calls change nothing. */
extern void token_ages_note(TokenAges *ages, uint32_t capacity, const TokenSample *now);

/* The log as it is now tells of nothing behind this: samples of what is not there are dropped. */
extern void token_ages_drop_behind(TokenAges *ages, uint64_t put_count, uint64_t index);

/* The newest sample of at least that age; NULL: there is none.  All tokens that it counts are at least as old. */
extern const TokenSample *token_ages_newest_of_age(const TokenAges *ages, uint64_t clock_ms, uint64_t age_ms);

/*
 * The epoch that guards an attempt which must find all tokens that are not older than that (token_epochs.h); 0: it is too late for one, since so many
 * tokens have been put meanwhile.
 */
extern uint64_t token_ages_guard(const TokenAges *ages, uint32_t capacity, uint64_t put_count, uint32_t spare, uint64_t clock_ms,
								 uint64_t age_ms);

/*
 * May one more token be put, while `spare` others may be on their way, without one being forgotten that is younger than that age, or that may be?  Of
 * the room that is left a part of an epoch (token_epochs.h) is not used.
 */
extern bool token_ages_have_room(const TokenAges *ages, uint32_t capacity, uint64_t put_count, uint32_t spare, uint64_t clock_ms,
								 uint64_t age_ms);

/* Of the tokens that were forgotten while put_count grew from one number to another: how many may have been younger than that age. */
extern uint64_t token_ages_forgotten_early(const TokenAges *ages, uint32_t capacity, uint64_t old_put_count, uint64_t put_count,
										   uint64_t clock_ms, uint64_t age_ms);

/* How old the oldest remembered token is, at least; false: there is none, or nothing is known of it. */
extern bool token_ages_oldest(const TokenAges *ages, uint32_t capacity, uint64_t put_count, uint64_t clock_ms, uint64_t *age_ms);

/* Are these samples what token_ages_note makes, and none of them of later than that?  For those that come from a file. */
extern bool token_ages_are_valid(const TokenAges *ages, uint64_t clock_ms);

#endif							/* QUORUM_TOKEN_AGES_H */
