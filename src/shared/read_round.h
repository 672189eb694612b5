/*
 * read_round.h
 *	  Linearizable reads between client backends and the consensus worker: rounds that confirm a read index, and who waits for which index.
 *
 * A reader is one slot of a fixed array, found by its backend id.  States in the order in which they occur, with what leaves each:
 *
 *	 IDLE		read_round_ask -> ASKED; read_round_await_index -> APPLYING, or DONE
 *	 ASKED		the consensus worker's round confirms an index -> APPLYING, or DONE if that is applied; it fails -> FAILED
 *	 APPLYING	the index is applied -> DONE
 *	 DONE, FAILED	the backend's next question
 *
 * All that ask while a round is in flight share the next one.
 *
 * Invariants
 *	 1. A round answers only those who had asked before the worker began it.
 *	 2. lowest_awaited is not above the index of any reader that is APPLYING.
 *	 3. A backend that leaves in the middle (an error, a cancel) leaves its slot linked: it costs a spurious wakeup, and the next owner of the
 *		slot begins by unlinking it.
 *
 * Locks: ReadRounds->mutex, a spinlock; latches are set after it is released.  Never taken together with another.
 */
#ifndef QUORUM_READ_ROUND_H
#define QUORUM_READ_ROUND_H

#include "postgres.h"

typedef enum ReaderState
{
	READER_IDLE = 0,
	READER_ASKED,
	READER_APPLYING,
	READER_DONE,
	READER_FAILED
} ReaderState;

extern Size read_round_shmem_size(void);
extern void read_round_shmem_startup(void);

/* ---- client backends; each has one question at a time ---- */

/* Asks for a read index, and to be woken (MyLatch) once that is applied. */
extern void read_round_ask(void);

/* As if a round had given this index. */
extern void read_round_await_index(uint64 index);

/* *index: of a reader that is APPLYING or DONE. */
extern ReaderState read_round_poll(uint64 *index);

/* Since when this node has had no quorum, in ms; 0 if it has one. */
extern uint64 read_round_ms_without_quorum(void);

/* ---- consensus worker ---- */

/* Worker started: whoever asked an earlier one is told that it failed. */
extern void read_round_reset(void);

/* A hint: is there somebody whom no round has been begun for? */
extern bool read_round_is_wanted(void);

/* One round at a time: begins one if somebody wants it; the number is the id of the core's read. */
extern bool read_round_begin(uint64 *number);
extern void read_round_finish(uint64 number, bool ok, uint64 read_index);

extern void read_round_note_quorum(bool has_quorum);

/* ---- whoever passes the turn, and the consensus worker ---- */

/* Does anybody wait for an index to be applied? */
extern bool read_round_awaits_apply(void);

/* Everything up to `index` is applied: wakes those who waited for that.  Costs one comparison if there are none. */
extern void read_round_applied(uint64 index);

#endif							/* QUORUM_READ_ROUND_H */
