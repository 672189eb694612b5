/*
 * table_compare.h
 *	  Row by row, how this node's copy of a table differs from another node's, at one log index.  Process: client backend.
 */
#ifndef QUORUM_TABLE_COMPARE_H
#define QUORUM_TABLE_COMPARE_H

#include "postgres.h"

#include "storage/itemptr.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"

#include "shared/replicated_tables.h"
#include "shared/table_checksum.h"

/* What is called for each difference; the row that is to be here is as writeset_put_row() makes it. */
typedef struct DifferenceSink
{
	void		(*extra) (void *context, ItemPointer tid);	/* a row of this node that the other has not, or not so */
	void		(*missing) (void *context, const char *row, uint32 length); /* and the other way round */
	void		(*unreadable) (void *context);	/* this node's copy cannot be read: all rows that follow are missing.  NULL: that is an error */
	void	   *context;
} DifferenceSink;

typedef struct Comparison
{
	ReplicatedTable table;
	uint64		nonce;
	uint64		index;			/* of the log */
	Relation	relation;		/* open and locked */
	Snapshot	snapshot;		/* registered */
	struct PeerConnection *donor;	/* in a transaction with the snapshot of that index */
	char	   *donor_name;
} Comparison;

/*
 * Begins to compare the quarantined copy of the table with that of a node of the majority.  When it returns the log stands still on
 * this node, until compare_session_set() or compare_session_end() (check_job.h).  The caller has a session (compare_session_begin)
 * with that nonce, and ends it whatever happens.
 */
extern void comparison_begin(Comparison *comparison, const ReplicatedTable *table, uint64 nonce);
extern void comparison_run(Comparison *comparison, const DifferenceSink *sink);
extern void comparison_end(Comparison *comparison);

#endif							/* QUORUM_TABLE_COMPARE_H */
