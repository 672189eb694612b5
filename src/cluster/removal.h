/*
 * removal.h
 *	  A member is removed by the log.  Process: client backends.
 */
#ifndef QUORUM_REMOVAL_H
#define QUORUM_REMOVAL_H

#include "postgres.h"

/*
 * Asks the leader until the removal is in force here (for this node itself: until it has heard of it), then waits until so many members know of it
 * that the removed one's disk is needed by nobody.  Interruptible; may be called again.
 */
extern void removal_carry_out(uint32 node_id);

/* The second half of it.  False: not within the time that it takes. */
extern bool removal_wait_until_known(uint32 node_id);

#endif							/* QUORUM_REMOVAL_H */
