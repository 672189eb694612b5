/*
 * table_check.c
 *	  Can this table be replicated?
 *
 * Runs in the client backend that executes quorum.replicate(), with the table locked.  Must never accept a table of which some change
 * would not reach the log, or would not have the same effect on every node.
 *
 * Takes no locks beyond the caller's on the table, but ACCESS SHARE on catalogs.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/syscache.h"

#include "cluster/internal_query.h"
#include "cluster/table_check.h"

static void
refuse(int sqlstate, Relation relation, const char *detail, const char *hint)
{
	ereport(ERROR,
			(errcode(sqlstate),
			 errmsg("table \"%s\" cannot be replicated", RelationGetRelationName(relation)),
			 errdetail_internal("%s", detail),
			 hint ? errhint("%s", hint) : 0));
}

static void
check_kind(Relation relation)
{
	char		kind = relation->rd_rel->relkind;

	if (kind == RELKIND_PARTITIONED_TABLE)
		refuse(ERRCODE_FEATURE_NOT_SUPPORTED, relation, "It is partitioned.", "Use an ordinary table.");
	if (kind != RELKIND_RELATION)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table", RelationGetRelationName(relation)),
				 errdetail_relkind_not_supported(kind),
				 errhint("Only ordinary tables can be replicated.")));
	if (relation->rd_rel->relispartition)
		refuse(ERRCODE_FEATURE_NOT_SUPPORTED, relation, "It is a partition.", "Detach it, or use an ordinary table.");
	if (relation->rd_rel->relpersistence == RELPERSISTENCE_TEMP)
		refuse(ERRCODE_FEATURE_NOT_SUPPORTED, relation, "It is temporary.", "Use a permanent table.");
	if (relation->rd_rel->relpersistence == RELPERSISTENCE_UNLOGGED)
		refuse(ERRCODE_FEATURE_NOT_SUPPORTED, relation, "It is unlogged, so a crash would empty it on one node alone.",
			   "Run ALTER TABLE ... SET LOGGED first.");
	if (OidIsValid(relation->rd_rel->reloftype))
		refuse(ERRCODE_FEATURE_NOT_SUPPORTED, relation, "It is a typed table (CREATE TABLE ... OF).",
			   "Run ALTER TABLE ... NOT OF first.");
	if (has_superclass(RelationGetRelid(relation)) || has_subclass(RelationGetRelid(relation)))
		refuse(ERRCODE_FEATURE_NOT_SUPPORTED, relation, "It is part of an inheritance tree.", "Use an ordinary table.");
}

/* The apply worker of this node looks the table up by its name, and sees what is committed. */
static void
check_visible_to_others(Relation relation)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(RelationGetRelid(relation)));
	bool		is_mine;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", RelationGetRelid(relation));
	is_mine = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data));
	ReleaseSysCache(tuple);
	if (is_mine)
		refuse(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, relation, "It was created or changed in this transaction.",
			   "Commit first, then call quorum.replicate().");
}

static void
check_ownership_by_system(Relation relation)
{
	Oid			extension = getExtensionOfObject(RelationRelationId, RelationGetRelid(relation));

	if (IsCatalogRelation(relation) || IsCatalogNamespace(RelationGetNamespace(relation)) ||
		RelationGetNamespace(relation) == get_namespace_oid("information_schema", true))
		refuse(ERRCODE_WRONG_OBJECT_TYPE, relation, "It is a system table.", NULL);
	if (OidIsValid(extension))
		refuse(ERRCODE_WRONG_OBJECT_TYPE, relation, "It belongs to an extension.", NULL);
}

static bool
has_exclusion(Relation relation)
{
	List	   *indexes = RelationGetIndexList(relation);
	ListCell   *cell;
	bool		found = false;

	foreach(cell, indexes)
	{
		HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(lfirst_oid(cell)));

		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "cache lookup failed for index %u", lfirst_oid(cell));
		found |= ((Form_pg_index) GETSTRUCT(tuple))->indisexclusion;
		ReleaseSysCache(tuple);
	}
	list_free(indexes);
	return found;
}

static bool
fires_on_replica(const TriggerDesc *triggers)
{
	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
		if (!triggers->triggers[i].tgisinternal && (triggers->triggers[i].tgenabled == TRIGGER_FIRES_ALWAYS ||
													triggers->triggers[i].tgenabled == TRIGGER_FIRES_ON_REPLICA))
			return true;
	return false;
}

char *
table_unshared_property(Relation relation)
{
	if (relation->rd_rel->relispartition)
		return "It is a partition there.";
	if (has_superclass(RelationGetRelid(relation)) || find_inheritance_children(RelationGetRelid(relation), NoLock) != NIL)
		return "It is part of an inheritance tree there.";
	if (relation->rd_rules != NULL)
		return "It has rules there.";
	if (has_exclusion(relation))
		return "It has an exclusion constraint there.";
	return fires_on_replica(relation->trigdesc) ? "It has a trigger there that fires in replica role." : NULL;
}

/* A valid primary key that is checked at once; no exclusion constraint: other nodes could not check it in log order. */
static void
check_indexes(Relation relation)
{
	List	   *indexes = RelationGetIndexList(relation);
	ListCell   *cell;
	bool		has_primary_key = false;

	foreach(cell, indexes)
	{
		HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(lfirst_oid(cell)));
		FormData_pg_index index;

		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "cache lookup failed for index %u", lfirst_oid(cell));
		index = *(Form_pg_index) GETSTRUCT(tuple);
		ReleaseSysCache(tuple);
		if (index.indisexclusion)
			refuse(ERRCODE_FEATURE_NOT_SUPPORTED, relation, "It has an exclusion constraint.", "Drop that constraint first.");
		if (index.indisprimary && !index.indimmediate)
			refuse(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, relation, "Its primary key is deferrable.",
				   "Make the primary key NOT DEFERRABLE.");
		if (index.indisprimary && index.indisvalid)
			has_primary_key = true;
	}
	list_free(indexes);
	if (!has_primary_key)
		refuse(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, relation, "It has no primary key.",
			   "Run ALTER TABLE ... ADD PRIMARY KEY first.");
}

/* Rewritten statements, and triggers that fire on the applying side too, do there what the log has done already. */
static void
check_rules_and_triggers(Relation relation)
{
	TriggerDesc *triggers = relation->trigdesc;

	if (relation->rd_rules != NULL)
		refuse(ERRCODE_FEATURE_NOT_SUPPORTED, relation, "It has rules.", "Use triggers instead of rules.");
	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		Trigger    *trigger = &triggers->triggers[i];

		if (!trigger->tgisinternal &&
			(trigger->tgenabled == TRIGGER_FIRES_ALWAYS || trigger->tgenabled == TRIGGER_FIRES_ON_REPLICA))
			refuse(ERRCODE_FEATURE_NOT_SUPPORTED, relation,
				   psprintf("Its trigger \"%s\" fires in replica role, so it would run once more on each node.", trigger->tgname),
				   "Run ALTER TABLE ... ENABLE TRIGGER, without ALWAYS or REPLICA, for it.");
	}
}

/* A referenced table must be the same on all nodes, or the key could be checked on one only. */
static void
check_foreign_keys(Relation relation)
{
	List	   *foreign_keys = RelationGetFKeyList(relation);
	ListCell   *cell;
	Oid			types[1] = {OIDOID};
	Datum		values[1];
	char	   *dependents;

	foreach(cell, foreign_keys)
	{
		ForeignKeyCacheInfo *foreign_key = lfirst_node(ForeignKeyCacheInfo, cell);

		values[0] = ObjectIdGetDatum(foreign_key->confrelid);
		if (foreign_key->confrelid == RelationGetRelid(relation) ||
			internal_query_value("SELECT 1 FROM quorum.replicated_table WHERE relation = $1::regclass AND state = 'a'",
								 1, types, values) != NULL)
			continue;
		refuse(ERRCODE_FEATURE_NOT_SUPPORTED, relation,
			   psprintf("It references table \"%s\", which is not replicated.", get_rel_name(foreign_key->confrelid)),
			   "Replicate that table first, or drop the foreign key.");
	}

	values[0] = ObjectIdGetDatum(RelationGetRelid(relation));
	dependents = internal_query_value("SELECT string_agg(DISTINCT conrelid::regclass::text, ', ') FROM pg_constraint "
									  "WHERE confrelid = $1 AND contype = 'f' AND conrelid <> $1 AND NOT EXISTS "
									  "(SELECT FROM quorum.replicated_table WHERE relation = conrelid)", 1, types, values);
	if (dependents != NULL)
		ereport(WARNING,
				(errmsg("table \"%s\" is referenced by tables that are not replicated", RelationGetRelationName(relation)),
				 errdetail("They are: %s.", dependents),
				 errhint("Replicate them too: their foreign keys are not checked against changes that come from other nodes.")));
}

void
check_table_is_replicable(Relation relation)
{
	check_kind(relation);
	check_ownership_by_system(relation);
	check_visible_to_others(relation);
	check_indexes(relation);
	check_rules_and_triggers(relation);
	check_foreign_keys(relation);
}

char *
table_shape(Oid relation_id)
{
	Oid			types[1] = {OIDOID};
	Datum		values[1] = {ObjectIdGetDatum(relation_id)};

	return internal_query_value("SELECT quorum.table_shape($1::regclass)", 1, types, values);
}
