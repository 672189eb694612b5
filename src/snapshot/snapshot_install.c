/*
 * snapshot_install.c
 *	  The tables of another node's snapshot, made and filled here.
 *
 * Process: apply worker, within the one transaction of the copy.  Must never leave a replicated table of before as it was: afterwards each is
 * at the snapshot's index, or not replicated any more, as on the donor.
 *
 * What the rows say is stored as it is, as row_apply.c does: no triggers, constraints or defaults, generated columns as values.  Indexes are built
 * when all rows of a table are there, which is faster, and finds a violation of uniqueness.
 *
 * Invariants
 *	 1. A table is kept if it has the number and the shape that it has there; else it is dropped, if it was a replicated one, and made anew.
 *	 2. An ordinary table of that name is taken only if it is empty and of the same shape, as by the log.
 *	 3. Code of users, in types and index expressions, runs as the owner of the table.
 *
 * Locks: ACCESS EXCLUSIVE on each table, to the end of the transaction.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "apply/apply_internal.h"
#include "cluster/internal_query.h"
#include "shared/replicated_tables.h"
#include "shared/sequences.h"
#include "shared/table_health.h"
#include "snapshot/snapshot_internal.h"

#define MOST_ROWS_PER_FRAME 10000

/* ---- which tables ---- */

static IncomingTable *
incoming_by_id(List *tables, uint64 table_id)
{
	ListCell   *cell;

	foreach(cell, tables)
	{
		IncomingTable *table = lfirst(cell);

		if (table->table_id == table_id)
			return table;
	}
	return NULL;
}

static bool
is_name_wanted(List *tables, Oid relid)
{
	ListCell   *cell;

	foreach(cell, tables)
	{
		IncomingTable *table = lfirst(cell);
		Oid			schema = get_namespace_oid(table->schema_name, true);

		if (OidIsValid(schema) && get_relname_relid(table->table_name, schema) == relid)
			return true;
	}
	return false;
}

static char *
qualified_name_of(Oid relid)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)), get_rel_name(relid));
}

static bool
has_shape(Oid relid, const char *shape)
{
	Oid			type = OIDOID;
	Datum		value = ObjectIdGetDatum(relid);
	char	   *found = internal_query_value("SELECT quorum.table_shape($1::pg_catalog.regclass)", 1, &type, &value);

	return found != NULL && strcmp(found, shape) == 0;
}

/* Invariant 1. */
static bool
can_be_kept(const ReplicatedTable *here, const IncomingTable *there)
{
	char	   *name = get_rel_name(here->relid);

	return there != NULL && name != NULL && strcmp(name, there->table_name) == 0 &&
		strcmp(get_namespace_name(get_rel_namespace(here->relid)), there->schema_name) == 0 &&
		!(here->state == REPLICATED_TABLE_ACTIVE && there->state == REPLICATED_TABLE_COPYING) &&
		has_shape(here->relid, there->shape);
}

/* It was unreplicated meanwhile and stays as an ordinary table, unless another one is to have its name: then it was dropped elsewhere too. */
static void
let_table_go(List *tables, const ReplicatedTable *here)
{
	bool		exists = get_rel_name(here->relid) != NULL;
	char	   *name = exists ? qualified_name_of(here->relid) : NULL;
	bool		must_go = exists && is_name_wanted(tables, here->relid);

	table_apply_forget(here->table_id);
	if (must_go && get_rel_name(here->relid) != NULL)
		internal_query_run(psprintf("DROP TABLE %s", name));
	if (exists)
		ereport(LOG,
				(errmsg("table %s is not replicated any more under the number " UINT64_FORMAT, name, here->table_id),
				 must_go ? errdetail("Another one takes its place.") : errdetail("It was unreplicated while this node was away.")));
}

static List *relids_here;

static void
list_relid(Oid relid)
{
	relids_here = lappend_oid(relids_here, relid);
}

/* Those that were replicated before: kept, or not.  Returns the relations to be emptied. */
static List *
sort_out_tables(List *tables, uint32 own_node_id)
{
	List	   *to_empty = NIL;
	ListCell   *cell;

	relids_here = NIL;
	replicated_tables_visit(list_relid);
	foreach(cell, relids_here)
	{
		Oid			relid = lfirst_oid(cell);
		const ReplicatedTable *found;
		ReplicatedTable here;
		IncomingTable *there;

		if (get_rel_name(relid) != NULL)
			LockRelationOid(relid, AccessExclusiveLock);
		found = replicated_table_by_relid(relid);
		if (found == NULL)
			continue;
		here = *found;
		there = incoming_by_id(tables, here.table_id);
		if (!can_be_kept(&here, there))
		{
			let_table_go(tables, &here);
			continue;
		}
		there->relid = relid;
		there->keeps_rows = there->state == REPLICATED_TABLE_COPYING && there->origin_node == own_node_id;
		if (!there->keeps_rows)
			to_empty = lappend_oid(to_empty, relid);
	}
	list_free(relids_here);
	return to_empty;
}

/*
 * quorum.replicate() was called here and has not come to its end: the rows are ours.  Without the table there is nothing to be done, now or when the
 * log goes on.
 */
static bool
adopt_original(IncomingTable *table, uint32 own_node_id)
{
	Oid			schema = get_namespace_oid(table->schema_name, true);

	if (table->state != REPLICATED_TABLE_COPYING || table->origin_node != own_node_id)
		return false;
	table->keeps_rows = true;
	table->relid = OidIsValid(schema) ? get_relname_relid(table->table_name, schema) : InvalidOid;
	if (OidIsValid(table->relid))
		replicated_table_note_copying(table->relid, table->table_id, own_node_id);
	return true;
}

void
snapshot_prepare_tables(List *tables, uint32 own_node_id)
{
	List	   *to_empty = sort_out_tables(tables, own_node_id);
	ListCell   *cell;

	CommandCounterIncrement();
	if (to_empty != NIL)
		table_apply_empty(to_empty, false);
	foreach(cell, tables)
	{
		IncomingTable *table = lfirst(cell);

		if (OidIsValid(table->relid) || adopt_original(table, own_node_id))
			continue;
		snapshot_note_table(table->schema_name, table->table_name);
		table->relid = table_apply_create(table->table_id, table->schema_name, table->table_name, table->definition, table->origin_node);
		CommandCounterIncrement();
	}
	snapshot_note_table("", "");
}

/* ---- rows ---- */

/* The table whose rows come in. */
typedef struct Loader
{
	Relation	relation;
	BulkInsertState bulk;
	int			options;
	TupleTableSlot **slots;		/* as many as a frame had at most so far */
	uint32		slot_count;
	MemoryContext rows_context; /* reset with each frame */
	uint64		row_count;
} Loader;

static void
begin_loading(Loader *loader, const IncomingTable *table)
{
	memset(loader, 0, sizeof(Loader));
	loader->relation = table_open(table->relid, AccessExclusiveLock);
	loader->bulk = GetBulkInsertState();
	loader->options = TABLE_INSERT_SKIP_FSM;
	loader->slots = palloc(sizeof(TupleTableSlot *) * MOST_ROWS_PER_FRAME);
	loader->rows_context = AllocSetContextCreate(CurrentMemoryContext, "quorum snapshot rows", ALLOCSET_DEFAULT_SIZES);
}

static void
store_rows(Loader *loader, WriteSetReader *reader)
{
	uint32		count = writeset_read_u32(reader);

	if (count == 0 || count > MOST_ROWS_PER_FRAME)
		snapshot_malformed("A frame has an impossible number of rows.");
	for (; loader->slot_count < count; loader->slot_count++)
		loader->slots[loader->slot_count] = MakeSingleTupleTableSlot(RelationGetDescr(loader->relation), &TTSOpsVirtual);
	MemoryContextSwitchTo(loader->rows_context);
	for (uint32 i = 0; i < count; i++)
		writeset_read_row(reader, loader->relation, loader->slots[i]);
	table_multi_insert(loader->relation, loader->slots, (int) count, GetCurrentCommandId(true), loader->options, loader->bulk);
	for (uint32 i = 0; i < count; i++)
		ExecClearTuple(loader->slots[i]);
	loader->row_count += count;
}

/* Invariant 3. */
static void
store_rows_as_owner(Loader *loader, WriteSetReader *reader)
{
	MemoryContext old_context = CurrentMemoryContext;
	Oid			owner = loader->relation->rd_rel->relowner;
	int			guc_level = NewGUCNestLevel();
	Oid			saved_user;
	int			saved_security_context;

	GetUserIdAndSecContext(&saved_user, &saved_security_context);
	SetUserIdAndSecContext(owner, superuser_arg(owner) ? saved_security_context :
						   saved_security_context | SECURITY_RESTRICTED_OPERATION);
	store_rows(loader, reader);
	AtEOXact_GUC(false, guc_level);
	SetUserIdAndSecContext(saved_user, saved_security_context);
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(loader->rows_context);
}

static void
end_loading(Loader *loader, uint64 sent_rows)
{
	Oid			relid = RelationGetRelid(loader->relation);

	FreeBulkInsertState(loader->bulk);
	table_finish_bulk_insert(loader->relation, loader->options);
	for (uint32 i = 0; i < loader->slot_count; i++)
		ExecDropSingleTupleTableSlot(loader->slots[i]);
	pfree(loader->slots);
	MemoryContextDelete(loader->rows_context);
	table_close(loader->relation, NoLock);
	if (loader->row_count != sent_rows)
		snapshot_malformed(psprintf("Of table %s came " UINT64_FORMAT " rows instead of " UINT64_FORMAT ".", qualified_name_of(relid),
									loader->row_count, sent_rows));
	CommandCounterIncrement();
}

static void
build_indexes(const IncomingTable *table)
{
	ReindexParams parameters = {0};

	snapshot_enter_phase(SNAPSHOT_INDEXES);
	(void) reindex_relation(table->relid, 0, &parameters);
	CommandCounterIncrement();
	snapshot_enter_phase(SNAPSHOT_ROWS);
}

static void
advance_sequences(const IncomingTable *table, WriteSetReader *reader)
{
	uint32		count = writeset_read_u32(reader);

	for (uint32 i = 0; i < count; i++)
	{
		uint16		column = writeset_read_u16(reader);
		int64		value = (int64) writeset_read_u64(reader);

		sequence_advance(table->relid, column, value);
	}
}

static void
activate(const IncomingTable *table)
{
	const ReplicatedTable *here = replicated_table_by_id(table->table_id);

	if (here == NULL)
		elog(ERROR, "table number " UINT64_FORMAT " has gone while it was copied", table->table_id);
	if (table->state != REPLICATED_TABLE_ACTIVE || here->state == REPLICATED_TABLE_ACTIVE)
		return;
	replicated_table_activate_locally(table->relid, table->table_id, table->row_count == PG_UINT64_MAX ? 0 : (int64) table->row_count);
	if (table->activated_index != 0)
		replicated_table_set_activated_index(table->table_id, table->activated_index);
}

/* On the node that quorum.replicate() was called on they are the original; what comes is what of them is in the log. */
static uint64
skip_rows(SnapshotReceiver *receiver)
{
	while (snapshot_read_frame(receiver) == SNAPSHOT_FRAME_ROWS)
		;
	return writeset_read_u64(&receiver->reader);
}

static void
install_table(SnapshotReceiver *receiver, const IncomingTable *table, uint64 *rows_copied, uint64 tables_done)
{
	SnapshotFrameKind kind;
	Loader		loader;
	uint64		sent_rows;

	if (table->keeps_rows)
	{
		(void) skip_rows(receiver);
		return;
	}
	begin_loading(&loader, table);
	while ((kind = snapshot_read_frame(receiver)) == SNAPSHOT_FRAME_ROWS)
	{
		store_rows_as_owner(&loader, &receiver->reader);
		snapshot_check_frame_end(receiver);
		snapshot_note_rows(*rows_copied + loader.row_count, tables_done);
	}
	if (kind != SNAPSHOT_FRAME_TABLE_END)
		snapshot_malformed("A table does not end.");
	sent_rows = writeset_read_u64(&receiver->reader);
	end_loading(&loader, sent_rows);
	*rows_copied += sent_rows;
	advance_sequences(table, &receiver->reader);
	snapshot_check_frame_end(receiver);
	if (sent_rows > 0)
		build_indexes(table);
	activate(table);
}

/* What was found of the rows before says nothing of these; the next check does. */
static void
note_copied(uint64 index, const IncomingTable *table)
{
	if (!table->keeps_rows)
		table_health_note_repaired(index, table->table_id);
}

void
snapshot_install_rows(SnapshotReceiver *receiver, List *tables, uint64 index)
{
	uint64		rows_copied = 0;
	uint64		tables_done = 0;
	ListCell   *cell;

	foreach(cell, tables)
	{
		const IncomingTable *table = lfirst(cell);

		snapshot_note_table(table->schema_name, table->table_name);
		apply_note_table(table->schema_name, table->table_name);
		install_table(receiver, table, &rows_copied, tables_done);
		note_copied(index, table);
		snapshot_note_rows(rows_copied, ++tables_done);
	}
	snapshot_note_table("", "");
	apply_note_table(NULL, NULL);
}
