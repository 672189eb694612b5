/*
 * token_epochs.h
 *	  Keys of no table, by which the log rejects an attempt that was under way while too many tokens were put.
 *
 * Pure: no shared memory, no clock, no allocation.  Certification keeps tokens by count (certifier.h).  An attempt with a token is proposed because an
 * earlier one, if there was any, is remembered; if that is forgotten by the time that the attempt is certified, it would take effect a second time.  Its
 * base does not tell how far back an earlier attempt may stand: keys are forgotten much sooner than tokens where much is written, so a base as low as
 * that would be below the certifier's floor.  Keys can tell it, and then the ordinary rule of certification does what is needed: so nodes whose build
 * knows nothing of this come to the same verdicts.
 *
 * The puts of tokens and fences have numbers (RecentIndexes.put_count), the same on all nodes; TOKEN_EPOCHS epochs are as many puts as are remembered.
 *
 *	 Mark	Who puts a token or a fence, and knows that an epoch has begun but of no mark of it, marks it: an entry that lists the epoch's key as
 *			CERTIFIER_TABLE_ROW_EXCLUSIVE, and those of the epochs before it that are not known to be marked.  Marks are in nobody's way but a guard's.
 *	 Guard	The attempt lists the key of a later epoch as CERTIFIER_TABLE_READ, with a base at which that had not begun.  So it is rejected if it comes
 *			after the mark.  The epoch is the last one whose mark stands for certain before what the attempt must not outlive.
 *
 * Between the begin of an epoch and its mark stand only puts of those who did not know of that begin: what all nodes may have on their way at a time.
 * A mark that certification has forgotten does its work all the same: then the floor is above it, and the guard's base below.
 *
 * How long an epoch is, and its key, are a part of the protocol: the same on all nodes.
 */
#ifndef QUORUM_TOKEN_EPOCHS_H
#define QUORUM_TOKEN_EPOCHS_H

#include <stdint.h>

#define TOKEN_EPOCHS 256			/* within the memory of tokens, if that is not smaller */

/* The one in which the next put is, if so many were made; 0 needs no mark. */
extern uint64_t token_epoch_of(uint32_t capacity, uint64_t put_count);

/*
 * The last one whose mark stands before any token is forgotten but the first `forgettable` ones, if at most `spare` are put between its begin and that.
 * An attempt may have it for its guard if it has not begun.
 */
extern uint64_t token_epoch_last(uint32_t capacity, uint32_t spare, uint64_t forgettable);

/* The first one to be marked if all up to `marked` are, and `epoch` has begun: no guard asks for more than what is remembered. */
extern uint64_t token_epoch_first_to_mark(uint64_t epoch, uint64_t marked);

/* As certification knows it: the hash of its key. */
extern uint64_t token_epoch_key(uint64_t epoch);

#endif							/* QUORUM_TOKEN_EPOCHS_H */
