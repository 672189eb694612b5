/*
 * table_incoming.c
 *	  Can this node take a table that another node replicates?
 *
 * Runs in client backends: of a joining node, and of any member that quorum.replicate() asks through quorum.check_replicate().  Must never
 * change anything for good: the definition that is tried out is rolled back.
 *
 * What is found here keeps a node from standing still later, when the same comes to it by the log.  It is no promise: somebody may
 * create a table in between.
 *
 * Locks: ACCESS SHARE on a table of that name; ACCESS EXCLUSIVE while it is compared with the definition, for which it does not wait long; what the definition
 * takes, until it is rolled back.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/relation.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "cluster/internal_query.h"
#include "cluster/node_check.h"
#include "cluster/table_check.h"
#include "shared/defined_table.h"
#include "shared/internal_identity.h"
#include "shared/replicated_tables.h"
#include "shared/shmem.h"

#define LOCK_PATIENCE "2s"		/* for a table that somebody uses, less than the node that asks waits for the answer */

PG_FUNCTION_INFO_V1(quorum_check_replicate);

/* Straight from the heap: row-level security and missing privileges must not make it look empty. */
static bool
holds_rows(Relation relation)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TableScanDesc scan = table_beginscan(relation, snapshot, 0, NULL);
	TupleTableSlot *slot = table_slot_create(relation, NULL);
	bool		found = table_scan_getnextslot(scan, ForwardScanDirection, slot);

	ExecDropSingleTupleTableSlot(slot);
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	return found;
}

/* A copy that was begun and not finished is replaced when it begins again; not so on the node that it was made from. */
static bool
is_unfinished_copy(const ReplicatedTable *table)
{
	NodeIdentity identity;

	shmem_get_identity(&identity);
	return table->state == REPLICATED_TABLE_COPYING && table->origin_node != identity.node_id;
}

/* The same for a table that is there already. */
static char *
existing_unfit_reason(Relation relation, const char *shape, bool *has_rows)
{
	const ReplicatedTable *table = replicated_table_by_relid(RelationGetRelid(relation));
	char	   *found;

	if (relation->rd_rel->relkind != RELKIND_RELATION || relation->rd_rel->relpersistence != RELPERSISTENCE_PERMANENT)
		return pstrdup("Something of that name exists there and is not an ordinary table.");
	if (table != NULL && table->state == REPLICATED_TABLE_ACTIVE)
		return pstrdup("A table of that name is replicated there already.");
	if (table != NULL && is_unfinished_copy(table))
		return NULL;
	found = table_shape(RelationGetRelid(relation));
	if (found == NULL || !same_shape(shape, found))
		return psprintf("It exists there with another shape. %s", first_difference(shape, found ? found : ""));
	if (table == NULL && table_unshared_property(relation) != NULL)
		return pstrdup(table_unshared_property(relation));
	if (!holds_rows(relation))
		return NULL;
	if (has_rows == NULL)
		return pstrdup("It exists there with rows.");
	*has_rows = true;
	return NULL;
}

static Oid
find_table(const char *schema_name, const char *table_name)
{
	Oid			schema_id = get_namespace_oid(schema_name, true);

	return OidIsValid(schema_id) ? get_relname_relid(table_name, schema_id) : InvalidOid;
}

char *
table_unfit_reason(const char *schema_name, const char *table_name, const char *shape, bool *has_rows)
{
	Oid			relation_id = find_table(schema_name, table_name);
	Relation	relation = OidIsValid(relation_id) ? try_relation_open(relation_id, AccessShareLock) : NULL;
	char	   *reason;

	if (relation == NULL)
		return NULL;
	reason = existing_unfit_reason(relation, shape, has_rows);
	relation_close(relation, AccessShareLock);
	return reason;
}

bool
table_exists(const char *schema_name, const char *table_name)
{
	return OidIsValid(find_table(schema_name, table_name));
}

/* A copy that was begun, and is to be made anew, is of that definition. */
static char *
difference_as_superuser(Oid relation_id, const char *definition)
{
	InternalIdentity saved;
	char	   *difference;

	if (replicated_table_by_relid(relation_id) != NULL)
		return NULL;
	internal_query_run("SET LOCAL lock_timeout = '" LOCK_PATIENCE "'");
	internal_identity_assume(&saved);
	difference = defined_table_difference(relation_id, definition);
	internal_identity_restore(&saved);
	return difference;
}

char *
table_differs_reason(const char *schema_name, const char *table_name, const char *definition)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	char	   *volatile reason = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		char	   *difference = difference_as_superuser(find_table(schema_name, table_name), definition);

		if (difference != NULL)
			reason = psprintf("It exists there with other constraints. %s", difference);
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		reason = error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ?
			pstrdup("It exists there with another definition, and is in use, so that the two cannot be compared.") :
			psprintf("It exists there, and cannot be compared with its definition: %s.", error->message);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return reason;
}

/* Makes the table and rolls it back; returns why it could not be made, or is not what it should be. */
static char *
try_definition(const char *schema_name, const char *table_name, const char *shape, const char *definition)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	char	   *volatile reason = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		InternalIdentity saved;
		char	   *made;

		internal_identity_assume(&saved);
		defined_table_make_watched(definition);
		internal_identity_restore(&saved);
		made = table_shape(get_relname_relid(table_name, get_namespace_oid(schema_name, false)));
		if (made == NULL || !same_shape(shape, made))
			reason = psprintf("Its definition gives another shape there. %s", first_difference(shape, made ? made : ""));
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		reason = psprintf("It cannot be created there: %s.", error->message);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return reason;
}

Datum
quorum_check_replicate(PG_FUNCTION_ARGS)
{
	char	   *schema_name;
	char	   *table_name;
	char	   *shape;
	char	   *definition;
	char	   *reason;

	require_shared_state();
	for (int i = 0; i < 4; i++)
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("arguments of quorum.check_replicate() must not be null")));
	schema_name = NameStr(*PG_GETARG_NAME(0));
	table_name = NameStr(*PG_GETARG_NAME(1));
	shape = text_to_cstring(PG_GETARG_TEXT_PP(2));

	definition = text_to_cstring(PG_GETARG_TEXT_PP(3));

	reason = table_unfit_reason(schema_name, table_name, shape, NULL);
	if (reason == NULL)
		reason = table_exists(schema_name, table_name) ? table_differs_reason(schema_name, table_name, definition)
			: try_definition(schema_name, table_name, shape, definition);
	if (reason == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(reason));
}
