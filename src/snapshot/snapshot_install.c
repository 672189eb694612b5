/*
 * snapshot_install.c
 *	  The tables of another node's snapshot, made and filled here.
 *
 * Process: apply worker, within the one transaction of the copy.  Must never leave a replicated table of before as it was: afterwards each is
 * at the snapshot's index, or not replicated any more, as on the donor.
 *
 * A table that is here and has rows is compared with the donor's, if that one can be asked, and only what differs is copied
 * (snapshot_correct.c); all others are emptied and filled (snapshot_load.c).
 *
 * Invariants
 *	 1. A table is kept if it has the number and the shape that it has there; else it is dropped, if it was a replicated one, and made anew.
 *	 2. An ordinary table of that name is taken only if it is of the same shape, and empty, as by the log, or whoever had the node join said that
 *		such tables may be taken with their rows (rows_to_keep.h).
 *	 3. A copy that is known to differ is not compared: what is wrong with it may be more than what rows tell.
 *
 * Locks: ACCESS EXCLUSIVE on each table, to the end of the transaction.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "apply/apply_internal.h"
#include "cluster/internal_query.h"
#include "shared/defined_table.h"
#include "shared/replicated_tables.h"
#include "shared/rows_to_keep.h"
#include "shared/sequences.h"
#include "shared/table_health.h"
#include "snapshot/snapshot_internal.h"

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

	return found != NULL && same_shape(shape, found);
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

/* Those that were replicated before: kept, or not. */
static void
sort_out_tables(const SnapshotReceiver *receiver, List *tables, uint32 own_node_id)
{
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
		there->is_emptied = !there->keeps_rows;
		there->is_compared = receiver->in_parts && there->is_emptied && here.state == REPLICATED_TABLE_ACTIVE &&
			there->state == REPLICATED_TABLE_ACTIVE && here.quarantined_index == 0;
	}
	list_free(relids_here);
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

static bool
is_plain_table(Oid relid)
{
	Relation	relation = relation_open(relid, NoLock);
	bool		is_plain = relation->rd_rel->relkind == RELKIND_RELATION &&
		relation->rd_rel->relpersistence == RELPERSISTENCE_PERMANENT && replicated_table_by_relid(relid) == NULL &&
		!relation->rd_rel->relispartition;

	relation_close(relation, NoLock);
	return is_plain;
}

/* Invariant 2: an ordinary table whose rows the caller of join_cluster() has given up.  What can't be taken is left to table_apply_create(), which says why. */
static void
adopt_with_rows(const SnapshotReceiver *receiver, IncomingTable *table)
{
	Oid			schema = get_namespace_oid(table->schema_name, true);
	Oid			relid = OidIsValid(schema) ? get_relname_relid(table->table_name, schema) : InvalidOid;

	if (!OidIsValid(relid) || table->state != REPLICATED_TABLE_ACTIVE || !rows_to_keep_has(table->table_id))
		return;
	apply_note_table(table->schema_name, table->table_name);	/* if the lock is not to be had */
	LockRelationOid(relid, AccessExclusiveLock);
	if (get_relname_relid(table->table_name, schema) != relid || !is_plain_table(relid) || !has_shape(relid, table->shape) ||
		defined_table_difference(relid, table->definition) != NULL)
		return;
	replicated_table_note_copying(relid, table->table_id, table->origin_node);
	table->relid = relid;
	table->is_emptied = table->is_adopted = true;
	table->is_compared = receiver->in_parts;
}

static void
compare_tables(SnapshotReceiver *receiver, List *tables)
{
	ListCell   *cell;

	snapshot_enter_phase(SNAPSHOT_COMPARING);
	foreach(cell, tables)
	{
		IncomingTable *table = lfirst(cell);

		if (!table->is_compared)
			continue;
		snapshot_note_table(table->schema_name, table->table_name);
		apply_note_table(table->schema_name, table->table_name);
		table->is_compared = snapshot_compare(receiver, table);
		table->is_emptied = !table->is_compared;
	}
	apply_note_table(NULL, NULL);
	snapshot_note_table("", "");
	snapshot_enter_phase(SNAPSHOT_TABLES);
}

void
snapshot_prepare_tables(SnapshotReceiver *receiver, List *tables, uint32 own_node_id)
{
	ListCell   *cell;

	sort_out_tables(receiver, tables, own_node_id);
	CommandCounterIncrement();
	if (rows_to_keep_pending())
		foreach(cell, tables)
			if (!OidIsValid(((IncomingTable *) lfirst(cell))->relid))
				adopt_with_rows(receiver, lfirst(cell));
	compare_tables(receiver, tables);
	foreach(cell, tables)
	{
		IncomingTable *table = lfirst(cell);

		if (table->is_emptied)
			table_apply_renew(table->relid);
		if (OidIsValid(table->relid) || adopt_original(table, own_node_id))
			continue;
		snapshot_note_table(table->schema_name, table->table_name);
		table->relid = table_apply_create(table->table_id, table->schema_name, table->table_name, table->definition, table->origin_node);
		CommandCounterIncrement();
	}
	snapshot_note_table("", "");
}

/* ---- rows ---- */

static void
build_indexes(const IncomingTable *table)
{
	ReindexParams parameters = {0};

	snapshot_enter_phase(SNAPSHOT_INDEXES);
	(void) reindex_relation(table->relid, table->is_compared ? REINDEX_REL_PROCESS_TOAST : 0, &parameters);
	CommandCounterIncrement();
	snapshot_enter_phase(SNAPSHOT_ROWS);
}

void
snapshot_advance_sequences(SnapshotReceiver *receiver, const IncomingTable *table)
{
	WriteSetReader *reader = &receiver->reader;
	uint32		count = writeset_read_u32(reader);

	for (uint32 i = 0; i < count; i++)
	{
		uint16		column = writeset_read_u16(reader);
		int64		value = (int64) writeset_read_u64(reader);

		sequence_advance(table->relid, column, value);
	}
	snapshot_check_frame_end(receiver);
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
static void
skip_rows(SnapshotReceiver *receiver)
{
	if (receiver->in_parts)
		return;					/* nobody asked for them */
	while (snapshot_read_frame(receiver) == SNAPSHOT_FRAME_ROWS)
		;
}

/* All rows, into a table that is empty; returns their number. */
static uint64
receive_rows(SnapshotReceiver *receiver, const IncomingTable *table)
{
	Relation	relation = table_open(table->relid, AccessExclusiveLock);
	SnapshotFrameKind kind;
	RowLoader	loader;
	uint64		sent_rows;

	if (receiver->in_parts)
		snapshot_ask(receiver, psprintf("CALL quorum.send_rows(%lld, 0, '')", (long long) table->table_id));
	snapshot_load_begin(&loader, relation, TABLE_INSERT_SKIP_FSM);
	while ((kind = snapshot_read_answer(receiver)) == SNAPSHOT_FRAME_ROWS)
	{
		snapshot_load_frame(&loader, &receiver->reader);
		snapshot_check_frame_end(receiver);
		snapshot_note_rows(receiver, loader.stored_rows);
	}
	snapshot_load_end(&loader);
	table_close(relation, NoLock);
	if (kind != SNAPSHOT_FRAME_TABLE_END)
		snapshot_malformed("A table does not end.");
	sent_rows = writeset_read_u64(&receiver->reader);
	if (loader.stored_rows != sent_rows)
		snapshot_malformed(psprintf("Of table %s came " UINT64_FORMAT " rows instead of " UINT64_FORMAT ".", qualified_name_of(table->relid),
									loader.stored_rows, sent_rows));
	snapshot_advance_sequences(receiver, table);
	if (receiver->in_parts)
		snapshot_check_answer_end(receiver);
	return sent_rows;
}

/* Only what differs, into a table that has rows; if that does not make it the donor's, all of them. */
static void
correct_rows(SnapshotReceiver *receiver, IncomingTable *table, CorrectedRows *rows)
{
	if (snapshot_correct(receiver, table, rows))
		return;
	ereport(LOG,
			(errmsg("table %s is still not the donor's after what differed was copied: it is copied whole", qualified_name_of(table->relid))));
	table->is_compared = false;
	memset(rows, 0, sizeof(CorrectedRows));
	table_apply_renew(table->relid);
	rows->copied = receive_rows(receiver, table);
}

static void
install_table(SnapshotReceiver *receiver, IncomingTable *table)
{
	CorrectedRows rows = {0};

	if (table->keeps_rows)
	{
		skip_rows(receiver);
		receiver->tables_done++;
		return;
	}
	if (table->is_compared)
		correct_rows(receiver, table, &rows);
	else
		rows.copied = receive_rows(receiver, table);
	receiver->rows_copied += rows.copied;
	CommandCounterIncrement();
	if (rows.copied > 0 || table->is_compared)
		build_indexes(table);
	activate(table);
	if (table->is_compared)
		ereport(LOG,
				(errmsg("table %s: " UINT64_FORMAT " rows kept, " UINT64_FORMAT " copied, " UINT64_FORMAT " deleted",
						qualified_name_of(table->relid), rows.kept, rows.copied, rows.deleted)));
	receiver->tables_done++;
	snapshot_note_table_done(receiver, rows.kept, rows.deleted);
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
	ListCell   *cell;

	foreach(cell, tables)
	{
		IncomingTable *table = lfirst(cell);

		snapshot_note_table(table->schema_name, table->table_name);
		apply_note_table(table->schema_name, table->table_name);
		install_table(receiver, table);
		note_copied(index, table);
	}
	snapshot_note_table("", "");
	apply_note_table(NULL, NULL);
}
