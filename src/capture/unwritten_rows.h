/*
 * unwritten_rows.h
 *	  Rows that a statement has locked in order to write them, and then did not.
 */
#ifndef QUORUM_UNWRITTEN_ROWS_H
#define QUORUM_UNWRITTEN_ROWS_H

#include "nodes/execnodes.h"

/* After the plan was initialised, before it runs: once for each node that writes replicated tables. */
extern void unwritten_rows_watch(ModifyTableState *node);

#endif							/* QUORUM_UNWRITTEN_ROWS_H */
