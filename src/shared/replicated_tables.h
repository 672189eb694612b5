/*
 * replicated_tables.h
 *	  Which tables are replicated: a cache of quorum.replicated_table in each process, and the changes of that table.
 *
 * Process: any with a database connection, inside a transaction.
 */
#ifndef QUORUM_REPLICATED_TABLES_H
#define QUORUM_REPLICATED_TABLES_H

#include "postgres.h"

/* Exclamation marks, so that they fire before the user's own triggers. */
#define CAPTURE_TRIGGER_NAME "!quorum_capture"
#define TRUNCATE_TRIGGER_NAME "!quorum_truncate"

#define REPLICATED_TABLE_COPYING 'c'
#define REPLICATED_TABLE_ACTIVE 'a'

typedef struct ReplicatedTable
{
	uint64		table_id;
	Oid			relid;
	char		state;
	uint32		origin_node;
	uint64		quarantined_index;	/* of the check that found it to differ on this node; 0: it is fine (table_health.h) */
} ReplicatedTable;

/*
 * NULL if there is none.  The result is valid until the next call into this file or the next point where invalidations are
 * taken: copy what is to be kept.
 */
extern const ReplicatedTable *replicated_table_by_relid(Oid relid);
extern const ReplicatedTable *replicated_table_by_id(uint64 table_id);

/* Each of them, those that are being copied too. */
extern void replicated_tables_visit(void (*visitor) (Oid relid));

/* Is there any?  Sets no transaction snapshot, if there is none yet. */
extern bool replicated_tables_exist(void);

/* Is any of them quarantined on this node? */
extern bool replicated_tables_quarantined(void);

/* Does this transaction hold a lock of any mode on a replicated table, or on one that is being copied? */
extern bool replicated_table_is_locked_here(void);

/*
 * The changes, as the bootstrap superuser, within the caller's transaction; every process notices at its commit.
 * note_copying: the table exists here and its rows are being copied.
 * activate_locally: both triggers, state active.
 * set_activated_index: where the activation stands in the log, if that is known.
 * forget_locally: drops the triggers, the row and what was noted of checks; the table stays.  The caller holds a lock on the table but must not have it open.
 */
extern void replicated_table_note_copying(Oid relid, uint64 table_id, uint32 origin_node);
extern void replicated_table_activate_locally(Oid relid, uint64 table_id, int64 row_count);
extern void replicated_table_set_activated_index(uint64 table_id, uint64 log_index);
extern void replicated_table_forget_locally(uint64 table_id);

/* After changing quorum.replicated_table or quorum.table_health by other means. */
extern void replicated_tables_invalidate(void);

#endif							/* QUORUM_REPLICATED_TABLES_H */
