/*
 * unwritten_rows.h
 *	  Rows that a statement has locked in order to write them, and then did not.
 */
#ifndef QUORUM_UNWRITTEN_ROWS_H
#define QUORUM_UNWRITTEN_ROWS_H

#include "nodes/execnodes.h"

/* Notes the rows that a LockRows has locked last. */
typedef void (*NoteLockedRows) (LockRowsState *node);

/* After the plan was initialised, before it runs, and after whatever else wraps the node below: once for each node that … */
extern void unwritten_rows_watch_writer(ModifyTableState *node);	/* … writes replicated tables */
extern void unwritten_rows_watch_locker(LockRowsState *node, NoteLockedRows note_locked_rows);	/* … locks rows of them */

/* The rows of the last call of that node are noted. */
extern void unwritten_rows_are_noted(LockRowsState *node);

#endif							/* QUORUM_UNWRITTEN_ROWS_H */
