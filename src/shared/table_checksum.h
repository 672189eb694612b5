/*
 * table_checksum.h
 *	  Checksums of a table's rows, and what follows from those of all nodes.  Pure: no PostgreSQL header, no allocation.
 *
 * A row's hash is SipHash-2-4 with 128 bits and a fixed key over the bytes in which it travels (writeset.h), so neither
 * compression, TOAST, dropped columns nor the place in the file matter.  A table's sum adds the hashes up, each half modulo 2^64:
 * the order of the rows does not matter, and, other than with XOR, two rows that are equal do not cancel out.
 */
#ifndef QUORUM_TABLE_CHECKSUM_H
#define QUORUM_TABLE_CHECKSUM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct RowHash
{
	uint64_t	high;
	uint64_t	low;
} RowHash;

typedef struct TableSum
{
	uint64_t	row_count;
	RowHash		hash;
} TableSum;

extern RowHash row_hash(const void *bytes, size_t length);

/* Which of that many buckets the row with this key belongs to. */
extern uint32_t row_bucket(const void *key_bytes, size_t length, uint32_t bucket_count);

extern void table_sum_add(TableSum *sum, RowHash hash);
extern void table_sum_add_sum(TableSum *sum, const TableSum *other);
extern bool table_sum_equal(const TableSum *one, const TableSum *other);

/* ---- what follows from the sums of all nodes ---- */

typedef enum CheckOutcome
{
	CHECK_DONE = 'd',			/* it has a sum */
	CHECK_SKIPPED = 's',		/* something that passes stood in the way: it says nothing about the table */
	CHECK_FAILED = 'f'			/* the rows could not be read: the table is damaged */
} CheckOutcome;

typedef struct NodeCheck
{
	uint32_t	node_id;
	bool		is_voter;
	CheckOutcome outcome;
	TableSum	sum;			/* CHECK_DONE */
} NodeCheck;

typedef enum CheckVerdict
{
	CHECK_UNDECIDED,			/* no majority of the voters agrees, or the node has said nothing */
	CHECK_MATCHES,
	CHECK_DIFFERS
} CheckVerdict;

/* Do at least quorum_size voters have the same sum?  Then *agreed is it. */
extern bool check_majority(const NodeCheck *checks, int count, int quorum_size, TableSum *agreed);

/* What that says about one node, voter or not. */
extern CheckVerdict check_verdict(const NodeCheck *checks, int count, int quorum_size, uint32_t node_id);

#endif							/* QUORUM_TABLE_CHECKSUM_H */
