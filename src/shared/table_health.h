/*
 * table_health.h
 *	  Checks of replicated tables and what they say about this node's copies: tables quorum.table_check, quorum.check_result and
 *	  quorum.table_health.
 *
 * The first two follow from the log and are the same on all nodes that were there; the third is this node's own.  Process: the
 * apply worker writes all of them, in the transaction of the entry that they follow from; the others read.
 */
#ifndef QUORUM_TABLE_HEALTH_H
#define QUORUM_TABLE_HEALTH_H

#include "postgres.h"

#include "shared/table_checksum.h"

/* ---- apply worker, inside its transaction ---- */

extern void table_check_note(uint64 index, uint64 table_id, uint32 node_id);

/* One for a check that is not known here (any more), or the second of the same node, is ignored: false. */
extern bool table_check_note_result(uint64 index, uint64 table_id, uint32 node_id, CheckOutcome outcome, const TableSum *sum);

/* What the results so far say about this node's copy: it is quarantined, or is not any more. */
extern void table_health_judge(uint64 index, uint64 table_id, uint32 own_node_id);

/*
 * The rows were copied anew at that index: what checks before it say does not count any more.  It stays quarantined until a check
 * says otherwise.
 */
extern void table_health_note_repaired(uint64 index, uint64 table_id);

/* Shared memory says what quorum.table_health does: at the start of the worker, and after a change. */
extern void table_health_publish(void);

/* ---- any process with a database connection ---- */

/* The results of a check that this node has applied; their number. */
extern int	table_check_results(uint64 index, NodeCheck *checks, int capacity);

/* The newest check of a table that a majority of the voters had the same sum in; 0: none. */
extern uint64 table_check_last_agreed(uint64 table_id, NodeCheck *checks, int capacity, int *count, TableSum *agreed);

#endif							/* QUORUM_TABLE_HEALTH_H */
