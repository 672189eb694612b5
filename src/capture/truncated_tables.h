/*
 * truncated_tables.h
 *	  Replicated tables that a TRUNCATE is about to empty.  Process: client backend.
 */
#ifndef QUORUM_TRUNCATED_TABLES_H
#define QUORUM_TRUNCATED_TABLES_H

#include "postgres.h"

#include "nodes/pg_list.h"
#include "utils/relcache.h"

extern void truncated_tables_note(Relation relation);	/* captured, and not yet empty */

/* Raises 0A000 if rows of the table change between the two. */
extern void truncated_tables_check(Relation relation);

/* One TRUNCATE within another: the outer one's tables come back.  NIL at the end of the transaction. */
extern List *truncated_tables_get(void);
extern void truncated_tables_set(List *tables);

#endif							/* QUORUM_TRUNCATED_TABLES_H */
