/*
 * row_keys.h
 *	  Hashes of the keys of rows of replicated tables.  Process: client backend, inside a transaction.
 *
 * A hash is equal on all nodes and for all values that the key's index takes for equal (1.0 and 1.00; texts that a nondeterministic collation
 * takes for equal).  Its seed is the table's number and which columns the index has, so it does not depend on OIDs or names.
 */
#ifndef QUORUM_ROW_KEYS_H
#define QUORUM_ROW_KEYS_H

#include "postgres.h"

#include "executor/tuptable.h"
#include "utils/relcache.h"

#include "shared/certifier.h"

extern uint64 row_keys_table_hash(uint64 table_id);

/* Add what a change of a row depends on to the transaction's certified keys.  The relation is open, slots are of its row type. */
extern void row_keys_add_insert(Relation relation, uint64 table_id, TupleTableSlot *new_row);
extern void row_keys_add_update(Relation relation, uint64 table_id, TupleTableSlot *old_row, TupleTableSlot *new_row);
extern void row_keys_add_delete(Relation relation, uint64 table_id, TupleTableSlot *old_row);

/* The row was locked in that mode. */
extern void row_keys_add_row_lock(Relation relation, uint64 table_id, ItemPointer row, CertifierMode mode);

/*
 * The hash of a primary key by its values, in the order of the index's columns, none of them null, as the index compares them; false: the key cannot be hashed,
 * or `index` is not the primary key.
 */
extern bool row_keys_primary_hash(Relation relation, uint64 table_id, Oid index, const Datum *values, uint64 *hash);

#endif							/* QUORUM_ROW_KEYS_H */
