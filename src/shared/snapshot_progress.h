/*
 * snapshot_progress.h
 *	  How far a copy of the tables from another node has come: written by the apply worker, read by views and by join_cluster().
 *
 * It lives in QuorumShared, under QuorumShared->lock; the last copy stays visible until the next or until the server ends.
 */
#ifndef QUORUM_SNAPSHOT_PROGRESS_H
#define QUORUM_SNAPSHOT_PROGRESS_H

#include "postgres.h"

#include "utils/timestamp.h"

/* In the order in which they occur; an attempt that fails goes to WAITING, and from there begins again. */
typedef enum SnapshotPhase
{
	SNAPSHOT_NONE = 0,			/* none since the server was started */
	SNAPSHOT_CONNECTING,		/* to a donor */
	SNAPSHOT_LOG_STATE,			/* receiving what follows from the log up to the snapshot */
	SNAPSHOT_TABLES,			/* making and emptying tables */
	SNAPSHOT_COMPARING,			/* sums of rows here with those of the donor */
	SNAPSHOT_ROWS,				/* receiving rows */
	SNAPSHOT_INDEXES,			/* building the indexes of a table */
	SNAPSHOT_COMMITTING,
	SNAPSHOT_WAITING,			/* the last attempt failed; another one follows by itself */
	SNAPSHOT_DONE
} SnapshotPhase;

typedef struct SnapshotProgress
{
	SnapshotPhase phase;
	char		donor[NAMEDATALEN]; /* empty: not chosen yet */
	uint64		index;			/* the tables are copied as they were there; 0: not known yet */
	char		schema_name[NAMEDATALEN];	/* the table that is being copied; empty: none */
	char		table_name[NAMEDATALEN];
	uint32		tables_total;
	uint32		tables_done;
	uint64		rows_copied;	/* of all tables, in this attempt */
	uint64		rows_kept;		/* in tables that were compared */
	uint64		rows_deleted;	/* the same */
	uint64		bytes_received;
	uint64		bytes_estimated;	/* size of the tables on the donor; what is received is of another size, but of the same order */
	uint32		attempts;
	TimestampTz started_at;		/* of this attempt */
	TimestampTz changed_at;		/* when the phase was entered */
} SnapshotProgress;

#endif							/* QUORUM_SNAPSHOT_PROGRESS_H */
