/*
 * table_copy.h
 *	  Sends what quorum.replicate() sends before the table becomes active: its definition and its rows.  Process: client backend.
 */
#ifndef QUORUM_TABLE_COPY_H
#define QUORUM_TABLE_COPY_H

#include "postgres.h"

#include "utils/relcache.h"

/*
 * Each of them proposes entries of their own and waits until this node has applied them; interruptible, and an error leaves what was
 * sent so far in the log: the table then stays in state copying until it is replicated again or unreplicated.
 */
extern void table_copy_send_definition(Relation relation, uint64 table_id, const char *definition, uint64 base);

/* The rows that a snapshot taken now sees, in chunks; returns their number.  Tells its progress. */
extern uint64 table_copy_send_rows(Relation relation, uint64 table_id);

/* Undoes what an interrupted replicate() left. */
extern void table_copy_send_forget(uint64 table_id);

#endif							/* QUORUM_TABLE_COPY_H */
