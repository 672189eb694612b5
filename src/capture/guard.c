/*
 * guard.c
 *	  Refuses DDL that would let a replicated table differ between the nodes.  Process: client backend.
 *
 * A replicated table's definition is the same on all nodes because only the log may change it.  So whatever changes its columns, constraints,
 * unique indexes, name, or our triggers is refused with 0A000 while the table is replicated; what is a node's own affair (plain
 * indexes, statistics, storage, owner, privileges, VACUUM FULL, REINDEX) goes through.
 *
 * Must never stand in the way of the apply worker.  Locks: none of its own; looks tables up without locking them, the statement
 * itself takes the lock right afterwards.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "tcop/utility.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "apply/apply.h"
#include "capture/capture.h"
#include "shared/replicated_tables.h"

static ProcessUtility_hook_type previous_utility_hook = NULL;
static object_access_hook_type previous_access_hook = NULL;

static bool
is_active(Oid relid)
{
	const ReplicatedTable *table;

	if (!OidIsValid(relid))
		return false;
	table = replicated_table_by_relid(relid);
	return table != NULL && table->state == REPLICATED_TABLE_ACTIVE;
}

static void
refuse(Oid relid, const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("cannot %s replicated table \"%s\"", what, get_rel_name(relid)),
			 errdetail("Its definition has to be the same on all nodes."),
			 errhint("Call quorum.unreplicate first, change the table, drop it on the other nodes, and call quorum.replicate again.")));
}

/* Subcommands that leave rows, columns, constraints and our triggers as they are. */
static bool
is_harmless(AlterTableType subtype)
{
	switch (subtype)
	{
		case AT_SetStatistics:
		case AT_SetOptions:
		case AT_ResetOptions:
		case AT_SetStorage:
		case AT_SetCompression:
		case AT_ChangeOwner:
		case AT_ClusterOn:
		case AT_DropCluster:
		case AT_SetTableSpace:
		case AT_SetRelOptions:
		case AT_ResetRelOptions:
		case AT_ReplicaIdentity:
		case AT_EnableRowSecurity:
		case AT_DisableRowSecurity:
		case AT_ForceRowSecurity:
		case AT_NoForceRowSecurity:
			return true;
		default:
			return false;
	}
}

static Oid
relation_of(const RangeVar *relation)
{
	return relation == NULL ? InvalidOid : RangeVarGetRelid(relation, NoLock, true);
}

/* A child of a replicated table would hold rows that a scan of it returns, but that are not replicated. */
static void
check_parent(Oid relid)
{
	if (is_active(relid))
		refuse(relid, "inherit from");
}

static void
check_alter_table(const AlterTableStmt *statement)
{
	Oid			relid = relation_of(statement->relation);
	ListCell   *cell;

	foreach(cell, statement->cmds)
	{
		AlterTableCmd *command = lfirst_node(AlterTableCmd, cell);

		if (command->subtype == AT_AddInherit)
			check_parent(relation_of((RangeVar *) command->def));
		if (!is_harmless(command->subtype) && is_active(relid))
			refuse(relid, "alter");
	}
}

static void
check_create_table(const CreateStmt *statement)
{
	ListCell   *cell;

	foreach(cell, statement->inhRelations)
		check_parent(relation_of(lfirst_node(RangeVar, cell)));
}

static void
check_rename(const RenameStmt *statement)
{
	Oid			relid = relation_of(statement->relation);

	if (is_active(relid) &&
		(statement->renameType == OBJECT_TABLE || statement->renameType == OBJECT_COLUMN ||
		 statement->renameType == OBJECT_TABCONSTRAINT || statement->renameType == OBJECT_TRIGGER))
		refuse(relid, "rename or rename parts of");
}

static void
check_statement(Node *statement)
{
	Oid			relid = InvalidOid;

	switch (nodeTag(statement))
	{
		case T_AlterTableStmt:
			check_alter_table((AlterTableStmt *) statement);
			break;
		case T_CreateStmt:
			check_create_table((CreateStmt *) statement);
			break;
		case T_RenameStmt:
			check_rename((RenameStmt *) statement);
			break;
		case T_AlterObjectSchemaStmt:
			relid = relation_of(((AlterObjectSchemaStmt *) statement)->relation);
			if (is_active(relid))
				refuse(relid, "move to another schema");
			break;
		case T_IndexStmt:
			relid = relation_of(((IndexStmt *) statement)->relation);
			if ((((IndexStmt *) statement)->unique || ((IndexStmt *) statement)->excludeOpNames != NIL) && is_active(relid))
				refuse(relid, "create a unique index on");
			break;
		case T_RuleStmt:
			relid = relation_of(((RuleStmt *) statement)->relation);
			if (is_active(relid))
				refuse(relid, "create a rule on");
			break;
		default:
			break;
	}
}

static void
guard_utility(PlannedStmt *statement, const char *query, bool read_only_tree, ProcessUtilityContext context,
			  ParamListInfo parameters, QueryEnvironment *environment, DestReceiver *destination,
			  QueryCompletion *completion)
{
	if (!am_apply_worker && IsTransactionState())
		check_statement(statement->utilityStmt);
	if (previous_utility_hook)
		previous_utility_hook(statement, query, read_only_tree, context, parameters, environment, destination, completion);
	else
		standard_ProcessUtility(statement, query, read_only_tree, context, parameters, environment, destination, completion);
}

/* The table whose capture or TRUNCATE trigger this is; InvalidOid if it is another trigger. */
static Oid
table_of_our_trigger(Oid trigger_oid)
{
	Relation	triggers = table_open(TriggerRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			relid = InvalidOid;

	ScanKeyInit(&key, Anum_pg_trigger_oid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(trigger_oid));
	scan = systable_beginscan(triggers, TriggerOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_trigger form = (Form_pg_trigger) GETSTRUCT(tuple);

		if (strcmp(NameStr(form->tgname), CAPTURE_TRIGGER_NAME) == 0 ||
			strcmp(NameStr(form->tgname), TRUNCATE_TRIGGER_NAME) == 0)
			relid = form->tgrelid;
	}
	systable_endscan(scan);
	table_close(triggers, AccessShareLock);
	return relid;
}

/*
 * The table whose unique index this is; InvalidOid if it is something else, or the remains of a concurrent rebuild.  Without it
 * this node would propose rows that the others cannot take.
 */
static Oid
table_of_unique_index(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(relid));
	Form_pg_index index;
	Oid			table = InvalidOid;

	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	index = (Form_pg_index) GETSTRUCT(tuple);
	if (index->indisunique && index->indisvalid && index->indislive)
		table = index->indrelid;
	ReleaseSysCache(tuple);
	return table;
}

/* Whatever drops it: DROP TABLE, DROP SCHEMA … CASCADE, DROP OWNED; or one of our triggers. */
static void
guard_access(ObjectAccessType access, Oid class_id, Oid object_id, int sub_id, void *argument)
{
	if (previous_access_hook)
		previous_access_hook(access, class_id, object_id, sub_id, argument);
	if (access != OAT_DROP || am_apply_worker)
		return;
	if (class_id == RelationRelationId && is_active(object_id))
		refuse(object_id, "drop");
	if (class_id == RelationRelationId && is_active(table_of_unique_index(object_id)))
		refuse(table_of_unique_index(object_id), "drop a unique index of");
	if (class_id == TriggerRelationId)
	{
		Oid			relid = table_of_our_trigger(object_id);

		if (is_active(relid))
			refuse(relid, "drop a trigger of");
	}
}

void
guard_init(void)
{
	previous_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = guard_utility;
	previous_access_hook = object_access_hook;
	object_access_hook = guard_access;
}
