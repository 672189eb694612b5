/*
 * apply_internal.h
 *	  Between the files of the apply worker.
 */
#ifndef QUORUM_APPLY_INTERNAL_H
#define QUORUM_APPLY_INTERNAL_H

#include "postgres.h"

#include "nodes/pg_list.h"
#include "storage/itemptr.h"

#include "shared/writeset.h"

/* ---- row_apply.c: inside the worker's transaction, with an active snapshot ---- */

/* INSERT, UPDATE or DELETE, whose body is read from the reader. */
extern void row_apply_change(WriteSetReader *reader, WriteSetOperation operation, uint64 table_id);

/* How far a sequence of the table is elsewhere. */
extern void row_apply_sequence(WriteSetReader *reader, uint64 table_id);

/* The rows of TABLE_ROWS. */
extern void row_apply_copied_rows(WriteSetReader *reader, uint64 table_id);

/* Locks it and keeps it open. */
extern void row_apply_open_table(uint64 table_id);

/* Repair: the row at that place goes, whatever it is; a row comes in, as writeset_put_row() made it. */
extern void row_apply_delete_at(uint64 table_id, ItemPointer tid);
extern void row_apply_put_row(uint64 table_id, const char *bytes, uint32 length);

/* Closes the tables that this transaction has open: before its commit, and before DDL. */
extern void row_apply_close_tables(void);

/* After an abort, which has closed them. */
extern void row_apply_forget_tables(void);

/* Rows changed since the last call. */
extern uint64 row_apply_take_count(void);

/* ---- table_apply.c ---- */

/* A control operation; is_origin: this node proposed the entry. */
extern void table_apply_operation(WriteSetReader *reader, WriteSetOperation operation, uint64 table_id, uint64 log_index,
								  bool is_origin, uint32 origin_node);

/* For a copy of all tables (snapshot/): begins as if the log did, with a relation of that name, whose Oid is returned. */
extern Oid	table_apply_create(uint64 table_id, char *schema_name, char *table_name, char *definition, uint32 origin_node);
extern void table_apply_forget(uint64 table_id);	/* nothing happens if it is not known */

/* Empties the table as TRUNCATE does, but on this node alone, whatever refers to the table, and without reading it.  Locks it ACCESS EXCLUSIVE. */
extern void table_apply_renew(Oid relid);

/* ---- check_apply.c ---- */

/* TABLE_CHECK, CHECK_RESULT, TABLE_COMPARE. */
extern void check_apply_operation(WriteSetReader *reader, WriteSetOperation operation, uint64 table_id, uint64 log_index,
								  uint32 origin_node);

/* ---- apply_worker.c ---- */

/* Names what the worker is at, for messages; NULL: no table.  Kept by value. */
extern void apply_note_table(const char *schema_name, const char *table_name);

#endif							/* QUORUM_APPLY_INTERNAL_H */
