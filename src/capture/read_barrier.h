/*
 * read_barrier.h
 *	  Linearizable reads: which statements need one (read_scope.c), how one waits (read_wait.c), where that is done (read_barrier.c).
 *	  Process: client backend.
 */
#ifndef QUORUM_READ_BARRIER_H
#define QUORUM_READ_BARRIER_H

#include "postgres.h"

#include "executor/execdesc.h"
#include "nodes/parsenodes.h"

/* ---- read_scope.c ---- */

/*
 * The one place that decides whether a query that is about to start must see all that was acknowledged before.  True if it reads a replicated
 * table, itself or, as far as can be known, in a function or trigger.
 */
extern bool query_needs_read_barrier(const QueryDesc *query);

/* The same for a utility statement; what it runs through the executor is looked at there. */
extern bool utility_needs_read_barrier(Node *statement);

/* ---- read_wait.c ---- */

/*
 * Waits until this node has applied all that was acknowledged anywhere before the call, and returns true.  False: no quorum confirms that.
 * Interruptible: holds no lock but those of the transaction, and has interrupts enabled.
 */
extern bool read_wait_for_quorum(uint64 *read_index);

/* Raises 25006 for the above. */
extern void report_no_linearizable_read(void) pg_attribute_noreturn();

#endif							/* QUORUM_READ_BARRIER_H */
