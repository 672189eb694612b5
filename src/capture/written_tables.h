/*
 * written_tables.h
 *	  Which tables the current transaction has written, by the server's own counts.  Process: client backend.
 */
#ifndef QUORUM_WRITTEN_TABLES_H
#define QUORUM_WRITTEN_TABLES_H

#include "postgres.h"

typedef struct RowCounts
{
	int64		inserted;
	int64		updated;
	int64		deleted;
} RowCounts;

extern RowCounts row_counts_minus(RowCounts left, RowCounts right);
extern int64 row_counts_total(RowCounts counts);

/* Rows of active replicated tables that the transaction has changed so far, rolled-back savepoints not counted. */
extern RowCounts written_row_counts(void);

/*
 * Raises 55000 if the transaction has changed a table that is being copied, or, if it has no write set, an active replicated table.
 */
extern void check_no_uncaptured_writes(bool has_write_set);

/* Is this session connected to quorum.database? */
extern bool in_quorum_database(void);

#endif							/* QUORUM_WRITTEN_TABLES_H */
