/*
 * position.h
 *	  The position row (table quorum.position, exactly one row): the log index of the last entry whose effect is in the tables.
 *
 * It is updated inside every replicated transaction once it has its turn, so under any snapshot it is that snapshot's exact
 * log index, after a crash too.  Process: client backends in the gate, and the apply worker.
 */
#ifndef QUORUM_POSITION_H
#define QUORUM_POSITION_H

#include "postgres.h"

#include "utils/snapshot.h"

/* Oid of quorum.position, or InvalidOid while the extension is not there. */
extern Oid	position_relid(void);

/*
 * Call with the turn for `index`, inside the transaction.  Updates by TID, prunes now and then.  The new TID is published by
 * position_at_commit() (XACT_EVENT_COMMIT) and forgotten by position_at_abort().
 */
extern void position_update(uint64 index);
extern void position_at_commit(void);
extern void position_at_abort(void);

/* Finds the row with a scan, publishes its TID and returns its index; the apply worker's start. */
extern uint64 position_find(void);

/*
 * The exact log index of an MVCC snapshot that is registered or active.  Takes no predicate lock, so it is no read in the eyes of SERIALIZABLE.
 */
extern uint64 position_under_snapshot(Snapshot snapshot);

/* Index of the last replicated transaction that this session has committed; 0: none yet. */
extern uint64 position_last_committed(void);

#endif							/* QUORUM_POSITION_H */
