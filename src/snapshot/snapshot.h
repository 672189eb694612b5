/*
 * snapshot.h
 *	  Copying the replicated tables from another node, when the log that would lead there is no longer held.
 *
 * The apply worker does it, in between of applying: whoever moves the applied index is one process, and meanwhile no local transaction may
 * (turn_suspend).  All of it is one local transaction, so nothing of it is ever seen half done.
 */
#ifndef QUORUM_SNAPSHOT_H
#define QUORUM_SNAPSHOT_H

#include "postgres.h"

/* Is what this node needs next no longer held by the others, and all that it has applied?  Cheap. */
extern bool snapshot_is_due(void);

/*
 * One attempt.  Outside a transaction.  True: the tables are where the donor's were, and the consensus worker starts anew from there.  Errors are
 * raised with ERROR: after the caller has aborted it calls snapshot_after_error(), and the next attempt tries another donor.
 * False: it can't begin just now, and is to be tried again in a moment.
 */
extern bool snapshot_copy(void);
extern void snapshot_after_error(int sqlerrcode);

/* At the start of the apply worker: its predecessor may have ended in the middle of a copy. */
extern void snapshot_reset(void);

#endif							/* QUORUM_SNAPSHOT_H */
