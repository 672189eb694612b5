/*
 * written_tables.c
 *	  Which tables the current transaction has written, by the counts that the server keeps for its statistics.
 *
 * Process: client backend.  Must never be relied on while track_counts is off: capture.c refuses to begin then.
 *
 * The counts are exact within a transaction: they are kept per subtransaction level, and the levels of rolled-back savepoints are gone.
 *
 * Locks: none.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_namespace.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "utils/pgstat_internal.h"
#include "utils/syscache.h"

#include "capture/capture.h"
#include "capture/written_tables.h"
#include "config.h"
#include "shared/position.h"
#include "shared/replicated_tables.h"

RowCounts
row_counts_minus(RowCounts left, RowCounts right)
{
	RowCounts	result;

	result.inserted = left.inserted - right.inserted;
	result.updated = left.updated - right.updated;
	result.deleted = left.deleted - right.deleted;
	return result;
}

int64
row_counts_total(RowCounts counts)
{
	return counts.inserted + counts.updated + counts.deleted;
}

bool
in_quorum_database(void)
{
	static Oid	known_database = InvalidOid;
	static bool is_it = false;

	if (known_database != MyDatabaseId)
	{
		char	   *name = get_database_name(MyDatabaseId);

		is_it = name != NULL && strcmp(name, quorum_database) == 0;
		known_database = MyDatabaseId;
	}
	return is_it;
}

static bool
has_written(const PgStat_TableXactStatus *table)
{
	return table->tuples_inserted > 0 || table->tuples_updated > 0 || table->tuples_deleted > 0 || table->truncdropped;
}

static PgStat_SubXactStatus *
innermost_level(void)
{
	return pgstat_get_xact_stack_level(GetCurrentTransactionNestLevel());
}

RowCounts
written_row_counts(void)
{
	RowCounts	counts = {0, 0, 0};

	for (PgStat_SubXactStatus *level = innermost_level(); level != NULL; level = level->prev)
		for (PgStat_TableXactStatus *written = level->first; written != NULL; written = written->next)
		{
			const ReplicatedTable *table = replicated_table_by_relid(written->parent->t_id);

			if (table == NULL || table->state != REPLICATED_TABLE_ACTIVE)
				continue;
			counts.inserted += written->tuples_inserted;
			counts.updated += written->tuples_updated;
			counts.deleted += written->tuples_deleted;
		}
	return counts;
}

/*
 * On the node where the rows come from, too: its session may have died after proposing the end of the copy, which is then carried out by the
 * apply worker at any moment.
 */
static void
report_copying(Oid relid)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table with OID %u cannot be changed while it is being replicated", relid),
			 errhint("If quorum.replicate() was interrupted, call it again, or call quorum.unreplicate() for the table.")));
}

/* Insertions that ON CONFLICT made and took back, because a concurrent one came first, stay counted as inserted and deleted. */
static bool
is_taken_back(const PgStat_TableXactStatus *written)
{
	return written->tuples_inserted == written->tuples_deleted && written->tuples_updated == 0 && !written->truncdropped;
}

static void
check_written(const PgStat_TableXactStatus *written, bool has_write_set)
{
	Oid			relid = written->parent->t_id;
	const ReplicatedTable *table = replicated_table_by_relid(relid);

	if (table == NULL)
		return;
	if (table->state != REPLICATED_TABLE_ACTIVE)
		report_copying(relid);
	if (!has_write_set && !is_taken_back(written))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("a replicated table was changed without being captured"),
				 errdetail("Its OID is %u. A change that the quorum did not agree on would make the nodes differ.", relid),
				 errhint("Its trigger \"" CAPTURE_TRIGGER_NAME "\" is disabled or missing.")));
}

void
check_no_uncaptured_writes(bool has_write_set)
{
	for (PgStat_SubXactStatus *level = innermost_level(); level != NULL; level = level->prev)
		for (PgStat_TableXactStatus *written = level->first; written != NULL; written = written->next)
			if (has_written(written))
				check_written(written, has_write_set);
}

/* ---- does the local commit have to be flushed? ---- */

/* A TOAST table's name holds the OID of the table that it belongs to. */
static Oid
owner_of_toast_table(Form_pg_class toast)
{
	Oid			owner;
	HeapTuple	tuple;
	bool		is_owner;

	if (toast->relkind != RELKIND_TOASTVALUE || sscanf(NameStr(toast->relname), "pg_toast_%u", &owner) != 1)
		return InvalidOid;
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(owner));
	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	is_owner = ((Form_pg_class) GETSTRUCT(tuple))->reltoastrelid == toast->oid;
	ReleaseSysCache(tuple);
	return is_owner ? owner : InvalidOid;
}

static bool
is_replicated(Oid relid)
{
	const ReplicatedTable *table = replicated_table_by_relid(relid);

	return table != NULL && table->state == REPLICATED_TABLE_ACTIVE;
}

static bool
is_local_table(Oid relid)
{
	HeapTuple	tuple;
	Form_pg_class form;
	bool		is_local;

	if (relid == position_relid() || is_replicated(relid))
		return false;
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	if (!HeapTupleIsValid(tuple))
		return true;			/* dropped by this transaction */
	form = (Form_pg_class) GETSTRUCT(tuple);
	is_local = form->relpersistence == RELPERSISTENCE_PERMANENT && !is_replicated(owner_of_toast_table(form));
	ReleaseSysCache(tuple);
	return is_local;
}

bool
capture_wrote_local_tables(void)
{
	if (!pgstat_track_counts)
		return true;
	for (PgStat_SubXactStatus *level = innermost_level(); level != NULL; level = level->prev)
		for (PgStat_TableXactStatus *written = level->first; written != NULL; written = written->next)
			if (has_written(written) && is_local_table(written->parent->t_id))
				return true;
	return false;
}
