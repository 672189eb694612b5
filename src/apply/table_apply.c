/*
 * table_apply.c
 *	  Control operations of the log: a table begins to be copied, its rows, it becomes replicated, it is truncated, it is no longer replicated.
 *
 * Process: apply worker, inside its transaction; each control operation has a local transaction of its own.
 *
 * On the node that calls replicate() the table exists with its rows, and that session makes the triggers itself when it commits; the apply
 * worker only notes that a copy is under way, and must need no lock on the table, which the session holds.  If the session dies after
 * proposing the activation, it is carried out here as on any node.
 *
 * Must never drop a table that this module did not make: one left by an interrupted attempt is known by its state "copying"
 * and by an origin that is another node.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "catalog/heap.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "commands/tablecmds.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"

#include "apply/apply_internal.h"
#include "shared/defined_table.h"
#include "shared/replicated_tables.h"
#include "shared/shmem.h"
#include "shared/table_health.h"

typedef struct NewTable
{
	uint64		table_id;
	char	   *schema_name;
	char	   *table_name;
	char	   *definition;
} NewTable;

static Oid
find_table(const NewTable *new_table)
{
	Oid			schema = get_namespace_oid(new_table->schema_name, true);

	return OidIsValid(schema) ? get_relname_relid(new_table->table_name, schema) : InvalidOid;
}

static void
run(const char *sql)
{
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute(sql, false, 0) < 0)
		elog(ERROR, "SPI_execute failed: %s", sql);
	SPI_finish();
	CommandCounterIncrement();
}

static int64
count_rows(Relation relation)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TableScanDesc scan = table_beginscan(relation, snapshot, 0, NULL);
	TupleTableSlot *slot = table_slot_create(relation, NULL);
	int64		count = 0;

	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		CHECK_FOR_INTERRUPTS();
		count++;
	}
	ExecDropSingleTupleTableSlot(slot);
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	return count;
}

/* ---- TABLE_CREATE ---- */

/* A table of that name that is not of this module: only an empty one that is as its definition would make it is taken. */
static void
adopt_existing_table(Oid relid, const NewTable *new_table)
{
	Relation	relation = table_open(relid, AccessExclusiveLock);
	bool		is_ordinary = relation->rd_rel->relkind == RELKIND_RELATION &&
		relation->rd_rel->relpersistence == RELPERSISTENCE_PERMANENT;
	bool		is_empty = is_ordinary && count_rows(relation) == 0;
	char	   *difference;

	table_close(relation, NoLock);
	if (!is_empty)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_TABLE),
				 errmsg("table \"%s.%s\" is replicated by another node but exists on this one with other contents",
						new_table->schema_name, new_table->table_name),
				 errhint("Rename or drop it here, then reload the configuration to make this node go on.")));
	difference = defined_table_difference(relid, new_table->definition);
	if (difference != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_TABLE),
				 errmsg("table \"%s.%s\" is replicated by another node but exists on this one with another shape",
						new_table->schema_name, new_table->table_name),
				 errdetail_internal("%s", difference),
				 errhint("Rename or drop it here, then reload the configuration to make this node go on.")));
}

/* Did another node begin to copy this table to here?  Then it is of this module's making, and holds nothing that is not there. */
static bool
is_unfinished_copy(const ReplicatedTable *table)
{
	NodeIdentity identity;

	shmem_get_identity(&identity);
	return table->state == REPLICATED_TABLE_COPYING && table->origin_node != identity.node_id;
}

/* Forgets it, and drops it if it is the unfinished copy of another node's table. */
static void
forget_table(const ReplicatedTable *table)
{
	Oid			relid = table->relid;
	bool		is_copy = is_unfinished_copy(table);

	replicated_table_forget_locally(table->table_id);
	if (is_copy && get_rel_name(relid) != NULL)
		run(psprintf("DROP TABLE %s", quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
																  get_rel_name(relid))));
}

/* What an attempt left that did not come to its end. */
static void
clear_earlier_attempt(Oid relid, const NewTable *new_table)
{
	const ReplicatedTable *table = replicated_table_by_relid(relid);

	if (table == NULL)
		return;
	if (table->state == REPLICATED_TABLE_ACTIVE)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_TABLE),
				 errmsg("table \"%s.%s\" is replicated already, under the number %llu",
						new_table->schema_name, new_table->table_name, (unsigned long long) table->table_id)));
	forget_table(table);
}

static void
create_table(const NewTable *new_table, bool is_origin, uint32 origin_node)
{
	Oid			relid = find_table(new_table);

	if (OidIsValid(relid))
		clear_earlier_attempt(relid, new_table);
	relid = find_table(new_table);
	if (is_origin)
	{
		if (OidIsValid(relid))	/* else it was dropped after a session began to replicate it and died */
			replicated_table_note_copying(relid, new_table->table_id, origin_node);
		return;
	}
	if (OidIsValid(relid))
		adopt_existing_table(relid, new_table);
	else
		run(new_table->definition);
	relid = find_table(new_table);
	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the definition of table \"%s.%s\" in the log does not create it",
						new_table->schema_name, new_table->table_name)));
	replicated_table_note_copying(relid, new_table->table_id, origin_node);
}

Oid
table_apply_create(uint64 table_id, char *schema_name, char *table_name, char *definition, uint32 origin_node)
{
	NewTable	new_table = {table_id, schema_name, table_name, definition};

	apply_note_table(schema_name, table_name);
	create_table(&new_table, false, origin_node);
	return find_table(&new_table);
}

static void
read_and_create_table(WriteSetReader *reader, uint64 table_id, bool is_origin, uint32 origin_node)
{
	NewTable	new_table;

	new_table.table_id = table_id;
	new_table.schema_name = writeset_read_text(reader);
	new_table.table_name = writeset_read_text(reader);
	new_table.definition = writeset_read_text(reader);
	if (strlen(new_table.schema_name) >= NAMEDATALEN || strlen(new_table.table_name) >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("malformed write set: too long a name")));
	apply_note_table(new_table.schema_name, new_table.table_name);
	create_table(&new_table, is_origin, origin_node);
}

/* ---- TABLE_ROWS, TABLE_ACTIVATE, TABLE_FORGET ---- */

/*
 * The origin has them.  And a copy may have been forgotten before its last rows came, if its session was cancelled while they were under
 * way and the leader changed: all nodes find that at the same place in the log.
 */
static void
skip_copied_rows(WriteSetReader *reader)
{
	reader->data.cursor = reader->data.len; /* the only change of its entry */
	reader->changes_read = reader->header.change_count;
}

static void
activate_table(uint64 table_id, int64 row_count, uint64 log_index)
{
	const ReplicatedTable *table = replicated_table_by_id(table_id);
	Relation	relation;
	int64		found_rows;
	Oid			relid;

	if (table == NULL || table->state != REPLICATED_TABLE_COPYING)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the log completes the copy of table number %llu, which was not begun here",
						(unsigned long long) table_id)));
	relid = table->relid;
	relation = try_table_open(relid, ShareRowExclusiveLock);
	if (relation == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table with OID %u was dropped on this node while it was being replicated", relid)));
	apply_note_table(get_namespace_name(RelationGetNamespace(relation)), RelationGetRelationName(relation));
	found_rows = count_rows(relation);
	if (found_rows != row_count)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("the copy of table \"%s\" has %lld rows instead of %lld",
						RelationGetRelationName(relation), (long long) found_rows, (long long) row_count)));
	table_close(relation, NoLock);
	replicated_table_activate_locally(relid, table_id, row_count);
	replicated_table_set_activated_index(table_id, log_index);
}

/* ---- TRUNCATE ---- */

/* Tables of a foreign key are truncated by one statement, so what stands together in the log is done together. */
static List *
read_truncated_tables(WriteSetReader *reader, uint64 first_table_id, bool *restarts_identity)
{
	List	   *relids = NIL;
	uint64		table_id = first_table_id;
	WriteSetOperation operation;

	for (;;)
	{
		const ReplicatedTable *table = replicated_table_by_id(table_id);

		*restarts_identity = writeset_read_u8(reader) != 0;
		if (table == NULL || table->state != REPLICATED_TABLE_ACTIVE)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_TABLE),
					 errmsg("the log truncates table number %llu, which is not known here", (unsigned long long) table_id)));
		relids = list_append_unique_oid(relids, table->relid);
		if (!writeset_next_is(reader, WRITESET_TRUNCATE))
			return relids;
		(void) writeset_read_operation(reader, &operation, &table_id);
	}
}

/* A table of this node alone may refer to them: it is left as it is, as by DELETE, and the rows go one by one. */
static void
delete_all_rows(Relation relation)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TableScanDesc scan = table_beginscan(relation, snapshot, 0, NULL);
	TupleTableSlot *slot = table_slot_create(relation, NULL);

	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		CHECK_FOR_INTERRUPTS();
		simple_table_tuple_delete(relation, &slot->tts_tid, snapshot);
	}
	ExecDropSingleTupleTableSlot(slot);
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
}

static void
empty_tables(List *relids, bool restarts_identity)
{
	List	   *relations = NIL;
	ListCell   *cell;

	foreach(cell, relids)
	{
		Relation	relation = try_table_open(lfirst_oid(cell), AccessExclusiveLock);

		if (relation == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_TABLE),
					 errmsg("replicated table with OID %u was dropped on this node", lfirst_oid(cell))));
		apply_note_table(get_namespace_name(RelationGetNamespace(relation)), RelationGetRelationName(relation));
		relations = lappend(relations, relation);
	}
	if (list_difference_oid(heap_truncate_find_FKs(relids), relids) == NIL)
		ExecuteTruncateGuts(relations, relids, NIL, DROP_RESTRICT, restarts_identity);
	else
		foreach(cell, relations)
			delete_all_rows(lfirst(cell));
	foreach(cell, relations)
		table_close(lfirst(cell), NoLock);
}

static void
truncate_tables(WriteSetReader *reader, uint64 first_table_id)
{
	bool		restarts_identity;
	List	   *relids = read_truncated_tables(reader, first_table_id, &restarts_identity);

	empty_tables(relids, restarts_identity);
}

void
table_apply_renew(Oid relid)
{
	Relation	relation = table_open(relid, AccessExclusiveLock);
	Oid			toast_relid = relation->rd_rel->reltoastrelid;
	ReindexParams parameters = {0};

	RelationSetNewRelfilenode(relation, relation->rd_rel->relpersistence);
	if (OidIsValid(toast_relid))
	{
		Relation	toast = table_open(toast_relid, AccessExclusiveLock);

		RelationSetNewRelfilenode(toast, toast->rd_rel->relpersistence);
		table_close(toast, NoLock);
	}
	(void) reindex_relation(relid, REINDEX_REL_PROCESS_TOAST, &parameters);
	pgstat_count_truncate(relation);
	table_close(relation, NoLock);
	CommandCounterIncrement();
}

void
table_apply_forget(uint64 table_id)
{
	if (replicated_table_by_id(table_id) != NULL)
		forget_table(replicated_table_by_id(table_id));
}

void
table_apply_operation(WriteSetReader *reader, WriteSetOperation operation, uint64 table_id, uint64 log_index,
					  bool is_origin, uint32 origin_node)
{
	/* Rows that a power cut takes come back from the journal unnoticed; a table that is not there for a while would be noticed. */
	if (operation != WRITESET_TABLE_ROWS)
		ForceSyncCommit();
	switch (operation)
	{
		case WRITESET_TABLE_CREATE:
			read_and_create_table(reader, table_id, is_origin, origin_node);
			break;
		case WRITESET_TABLE_ROWS:
			if (is_origin || replicated_table_by_id(table_id) == NULL)
				skip_copied_rows(reader);
			else
				row_apply_copied_rows(reader, table_id);
			break;
		case WRITESET_TABLE_ACTIVATE:
			activate_table(table_id, (int64) writeset_read_u64(reader), log_index);
			break;
		case WRITESET_TABLE_FORGET:
			table_apply_forget(table_id);
			table_health_publish();
			break;
		case WRITESET_TRUNCATE:
			truncate_tables(reader, table_id);
			break;
		default:
			elog(ERROR, "operation %d is none of a table", (int) operation);
	}
}
