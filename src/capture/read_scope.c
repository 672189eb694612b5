/*
 * read_scope.c
 *	  Which statements read replicated tables, and so need a read barrier.  Process: client backend, inside a transaction.
 *
 * Must err on the side of the barrier: one too many costs a round, one too few is a stale read.  Not for the functions of this extension and
 * of the server itself, which read no replicated table: quorum.status has to answer when nothing else does, and the stream between the
 * nodes, a CALL, must not wait for the quorum that it makes.
 *
 * What is looked at are plans: views, inlined functions and policies are expanded there, and functions that are called stand in their
 * list of dependencies.
 *
 * Locks: relies on those that the statement holds on its tables.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_trigger.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "nodes/plannodes.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/reltrigger.h"
#include "utils/syscache.h"

#include "capture/read_barrier.h"
#include "shared/replicated_tables.h"

static bool
is_replicated(Oid relid)
{
	return replicated_table_by_relid(relid) != NULL;
}

/* ---- functions ---- */

/* Plans know the functions that they call by the hash value in the system cache alone. */
typedef struct TrustedFunctions
{
	bool		is_valid;
	int			count;
	int			capacity;
	uint32	   *hashes;
} TrustedFunctions;

static TrustedFunctions trusted;

static void
note_function_change(Datum argument, int cache_id, uint32 hash)
{
	trusted.is_valid = false;
}

static void
trust(Oid function)
{
	if (trusted.count == trusted.capacity)
	{
		int			capacity = Max(64, trusted.capacity * 2);

		if (trusted.hashes == NULL)
			trusted.hashes = MemoryContextAlloc(CacheMemoryContext, capacity * sizeof(uint32));
		else
			trusted.hashes = repalloc(trusted.hashes, capacity * sizeof(uint32));
		trusted.capacity = capacity;
	}
	trusted.hashes[trusted.count++] = GetSysCacheHashValue1(PROCOID, ObjectIdGetDatum(function));
}

static void
trust_functions_of_extension(Oid extension)
{
	Relation	catalog = table_open(DependRelationId, AccessShareLock);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&keys[0], Anum_pg_depend_refclassid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(ExtensionRelationId));
	ScanKeyInit(&keys[1], Anum_pg_depend_refobjid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(extension));
	scan = systable_beginscan(catalog, DependReferenceIndexId, true, NULL, 2, keys);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_depend form = (Form_pg_depend) GETSTRUCT(tuple);

		if (form->classid == ProcedureRelationId && form->deptype == DEPENDENCY_EXTENSION)
			trust(form->objid);
	}
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
}

/* Those of the information schema: initdb makes them, but they are not pinned as the others of the server are. */
static void
trust_functions_of_server(void)
{
	Relation	catalog = table_open(ProcedureRelationId, AccessShareLock);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&keys[0], Anum_pg_proc_oid, BTGreaterEqualStrategyNumber, F_OIDGE, ObjectIdGetDatum(FirstUnpinnedObjectId));
	ScanKeyInit(&keys[1], Anum_pg_proc_oid, BTLessStrategyNumber, F_OIDLT, ObjectIdGetDatum(FirstNormalObjectId));
	scan = systable_beginscan(catalog, ProcedureOidIndexId, true, NULL, 2, keys);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		trust(((Form_pg_proc) GETSTRUCT(tuple))->oid);
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
}

static void
load_trusted_functions(void)
{
	static bool registered = false;
	Oid			extension;

	if (!registered)
		CacheRegisterSyscacheCallback(PROCOID, note_function_change, (Datum) 0);
	registered = true;
	trusted.count = 0;
	trusted.is_valid = true;	/* a change meanwhile makes it invalid again */
	extension = get_extension_oid("pg_quorum", true);
	if (OidIsValid(extension))
		trust_functions_of_extension(extension);
	trust_functions_of_server();
}

static bool
is_trusted(uint32 hash)
{
	if (!trusted.is_valid)
		load_trusted_functions();
	for (int i = 0; i < trusted.count; i++)
		if (trusted.hashes[i] == hash)
			return true;
	return false;
}

static bool
calls_user_function(const PlannedStmt *plan)
{
	ListCell   *cell;

	foreach(cell, plan->invalItems)
	{
		PlanInvalItem *item = lfirst_node(PlanInvalItem, cell);

		if (item->cacheId == PROCOID && !is_trusted(item->hashValue))
			return true;
	}
	return false;
}

/* ---- tables ---- */

/* INSERT … VALUES or SELECT, without ON CONFLICT: its target is written and not read. */
static bool
is_plain_insert(const PlannedStmt *plan)
{
	return plan->commandType == CMD_INSERT && !plan->hasModifyingCTE && IsA(plan->planTree, ModifyTable) &&
		((ModifyTable *) plan->planTree)->onConflictAction == ONCONFLICT_NONE;
}

static bool
insert_reads_replicated_table(const PlannedStmt *plan)
{
	ListCell   *cell;
	int			index = 0;

	foreach(cell, plan->rtable)
	{
		RangeTblEntry *entry = lfirst_node(RangeTblEntry, cell);

		index++;
		if (entry->rtekind == RTE_RELATION && !list_member_int(plan->resultRelations, index) && is_replicated(entry->relid))
			return true;
	}
	return false;
}

static bool
reads_replicated_table(const PlannedStmt *plan)
{
	ListCell   *cell;

	if (is_plain_insert(plan))
		return insert_reads_replicated_table(plan);
	foreach(cell, plan->relationOids)
		if (is_replicated(lfirst_oid(cell)))
			return true;
	return false;
}

/* ---- triggers ---- */

/* A foreign key's trigger reads the other table; a user's may read any. */
static bool
trigger_may_read(const Trigger *trigger)
{
	if (trigger->tgenabled == TRIGGER_DISABLED ||
		strcmp(trigger->tgname, CAPTURE_TRIGGER_NAME) == 0 || strcmp(trigger->tgname, TRUNCATE_TRIGGER_NAME) == 0)
		return false;
	if (RI_FKey_trigger_type(trigger->tgfoid) != RI_TRIGGER_NONE)
		return OidIsValid(trigger->tgconstrrelid) && is_replicated(trigger->tgconstrrelid);
	return true;
}

static bool
fires_reading_trigger(Oid relid, CmdType command)
{
	Relation	relation = table_open(relid, NoLock);
	TriggerDesc *triggers = relation->trigdesc;
	bool		found = false;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers && !found; i++)
		found = (command != CMD_INSERT || TRIGGER_FOR_INSERT(triggers->triggers[i].tgtype)) &&
			trigger_may_read(&triggers->triggers[i]);
	table_close(relation, NoLock);
	return found;
}

static bool
plan_fires_reading_trigger(const PlannedStmt *plan)
{
	CmdType		command = is_plain_insert(plan) ? CMD_INSERT : CMD_UNKNOWN;
	ListCell   *cell;

	foreach(cell, plan->resultRelations)
	{
		RangeTblEntry *entry = list_nth_node(RangeTblEntry, plan->rtable, lfirst_int(cell) - 1);

		if (fires_reading_trigger(entry->relid, command))
			return true;
	}
	return false;
}

/* ---- statements ---- */

ReadScope
query_read_scope(const QueryDesc *query)
{
	const PlannedStmt *plan = query->plannedstmt;

	if ((plan->relationOids == NIL && plan->invalItems == NIL) || !replicated_tables_exist())
		return READS_NOTHING;
	if (calls_user_function(plan) || plan_fires_reading_trigger(plan))
		return READS_TABLES;
	if (!reads_replicated_table(plan))
		return READS_NOTHING;
	return point_write_has_shape(plan) ? READS_WRITTEN_ROW : READS_TABLES;
}

static bool
copy_needs_read_barrier(const CopyStmt *statement)
{
	Oid			relid;

	if (statement->relation == NULL)
		return false;			/* a query: seen when the executor starts it */
	relid = RangeVarGetRelid(statement->relation, statement->is_from ? RowExclusiveLock : AccessShareLock, true);
	if (!OidIsValid(relid))
		return false;
	return statement->is_from ? fires_reading_trigger(relid, CMD_INSERT) : is_replicated(relid);
}

static bool
call_needs_read_barrier(const CallStmt *statement)
{
	Oid			schema = get_namespace_oid("quorum", true);

	return !OidIsValid(schema) || statement->funcexpr == NULL || get_func_namespace(statement->funcexpr->funcid) != schema;
}

bool
utility_needs_read_barrier(Node *statement)
{
	switch (nodeTag(statement))
	{
		case T_CopyStmt:
			return replicated_tables_exist() && copy_needs_read_barrier((CopyStmt *) statement);
		case T_CallStmt:
			return replicated_tables_exist() && call_needs_read_barrier((CallStmt *) statement);
		case T_DoStmt:
			return replicated_tables_exist();
		default:
			return false;
	}
}
