/*
 * table_rows.h
 *	  All rows of a table under a snapshot, each with the bytes in which it travels and their hash.  Process: any with a database
 *	  connection.
 */
#ifndef QUORUM_TABLE_ROWS_H
#define QUORUM_TABLE_ROWS_H

#include "postgres.h"

#include "executor/tuptable.h"
#include "lib/stringinfo.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"

#include "shared/table_checksum.h"

typedef struct TableRow
{
	TupleTableSlot *slot;
	const char *bytes;			/* as writeset_put_row() makes them; valid during the call */
	int			length;
	RowHash		hash;
	const char *key;			/* as writeset_put_key() does; NULL if no buckets were asked for */
	int			key_length;
	uint32		bucket;
} TableRow;

#define TABLE_ROWS_MAX_BUCKETS 65536

/* False: enough.  Called in a memory context that is reset after each row. */
typedef bool (*TableRowVisitor) (void *context, const TableRow *row);

/*
 * The caller has the relation open and locked; bucket_count 0: none are wanted.  Straight from the heap: whoever calls it may see
 * all rows.  Returns false if the visitor did. Interruptible.
 */
extern bool table_rows_visit(Relation relation, Snapshot snapshot, uint32 bucket_count, TableRowVisitor visitor, void *context);

/* Rows and sum of each bucket; palloc'd. */
extern TableSum *bucket_sums(Relation relation, Snapshot snapshot, uint32 bucket_count);

/* The same; but NULL with a reason if the table is damaged so much that it cannot be read.  Any other error is raised. */
extern TableSum *try_bucket_sums(Relation relation, Snapshot snapshot, uint32 bucket_count, char **damage);

/* Does an error that reading a table raised say that what is stored is damaged?  All others pass, and say nothing about the table. */
extern bool check_says_damaged(int sqlerrcode);

#endif							/* QUORUM_TABLE_ROWS_H */
