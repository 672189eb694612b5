/*
 * rows_to_keep.h
 *	  A node that joins with tables that hold rows already, which are to be kept where they match: until its first copy of the tables.
 *
 * The file "rows_to_keep" in QUORUM_DIRECTORY says so from before the identity file is there: node, which tables have rows here, and a log index that was in the
 * tables of the cluster when they were looked at.  A table that the cluster gets afterwards is none of them: nobody has allowed that its rows here go.  It is in force as long as the tables of this node are not at that index.  Meanwhile the node takes no
 * part in the consensus and applies nothing, since to the log these tables are in the way.  QuorumShared->rows_to_keep_index says the same to
 * all processes.
 */
#ifndef QUORUM_ROWS_TO_KEEP_H
#define QUORUM_ROWS_TO_KEEP_H

#include "postgres.h"

#include "shared/identity.h"

typedef struct RowsToKeep
{
	uint64		index;			/* of the log */
	uint32		table_count;	/* 0: there are none */
	uint64	   *table_ids;		/* the cluster's numbers of those that have rows here */
} RowsToKeep;

/* The backend that joins, before it writes that identity; without tables: what an attempt before may have left goes. */
extern void rows_to_keep_write(const IdentityFile *identity, const RowsToKeep *rows);

/* The consensus worker, before it makes the identity known.  ERRCODE_DATA_CORRUPTED if the file is damaged. */
extern void rows_to_keep_publish(const IdentityFile *identity);

/* The node is in no cluster (any more). */
extern void rows_to_keep_forget(void);

/* Is the first copy still to come?  Cheap. */
extern bool rows_to_keep_pending(void);

/* While it is: has this table of the cluster rows here that are to be kept?  The apply worker; reads the file. */
extern bool rows_to_keep_has(uint64 table_id);

/* What that copy has to reach at least; 0: there was nothing to be kept. */
extern uint64 rows_to_keep_index(void);

/* The apply worker, when the copy is durable. */
extern void rows_to_keep_done(void);

#endif							/* QUORUM_ROWS_TO_KEEP_H */
