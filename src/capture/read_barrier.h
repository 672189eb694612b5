/*
 * read_barrier.h
 *	  Linearizable reads: which statements need one (read_scope.c), how one waits (read_wait.c), where that is done (read_barrier.c), and
 *	  which can do without (point_write.c).
 *	  Process: client backend.
 */
#ifndef QUORUM_READ_BARRIER_H
#define QUORUM_READ_BARRIER_H

#include "postgres.h"

#include "executor/execdesc.h"
#include "nodes/parsenodes.h"

/* ---- read_scope.c ---- */

typedef enum ReadScope
{
	READS_NOTHING,				/* that is replicated */
	READS_WRITTEN_ROW,			/* see point_write.c */
	READS_TABLES				/* itself or, as far as can be known, in a function or trigger */
} ReadScope;

/* The one place that decides what a query that is about to start has to see. */
extern ReadScope query_read_scope(const QueryDesc *query);

/* The same for a utility statement; what it runs through the executor is looked at there. */
extern bool utility_needs_read_barrier(Node *statement);

/* ---- point_write.c ---- */

/* Is it an UPDATE or DELETE of one row by its primary key, that reads nothing else? */
extern bool point_write_has_shape(const PlannedStmt *plan);

/* After such a query has run without a barrier: if it found no row, it runs again behind one.  Not among the client's statements. */
extern void point_write_repeat(QueryDesc *query);

/* ---- read_wait.c ---- */

/*
 * Waits until this node has applied all that was acknowledged anywhere before the call, and returns true.  False: no quorum confirms that.
 * Interruptible: holds no lock but those of the transaction, and has interrupts enabled.
 */
extern bool read_wait_for_quorum(uint64 *read_index);

/* Raises 25006 for the above. */
extern void report_no_linearizable_read(void) pg_attribute_noreturn();

#endif							/* QUORUM_READ_BARRIER_H */
