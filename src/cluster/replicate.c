/*
 * replicate.c
 *	  quorum.replicate() and quorum.unreplicate().
 *
 * Runs in a client backend of the node that takes writes.  Must never let a change of the table slip between its copy and the moment from
 * which on it is captured: the table is locked against changes from before the copy to the end of the transaction.
 *
 * What replicate() does, in order, and what an interruption leaves
 *	 1. checks here and on every member that can be reached; nothing
 *	 2. TABLE_CREATE, TABLE_ROWS as entries of their own; an error takes them back by one more entry; if that cannot be,
 *		the table stays in state copying on all nodes, until the next replicate() replaces the copies or unreplicate() drops them
 *	 3. triggers here, and ACTIVATE in the write set of the caller's transaction; both take effect with its commit, or the state
 *		is that of 2
 *
 * Locks: SHARE ROW EXCLUSIVE on the table (ACCESS EXCLUSIVE when it is taken out).
 */
#include "postgres.h"

#include "access/relation.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "capture/capture.h"
#include "cluster/internal_query.h"
#include "cluster/node_check.h"
#include "cluster/table_check.h"
#include "cluster/table_copy.h"
#include "shared/proposal_queue.h"
#include "shared/replicated_tables.h"
#include "shared/shmem.h"
#include "shared/writeset.h"

PG_FUNCTION_INFO_V1(quorum_replicate);
PG_FUNCTION_INFO_V1(quorum_unreplicate);

/* ---- checks ---- */

/* Before the lock is asked for, so that nobody who may not replicate a table can hold up its writers. */
static void
check_caller_may_replicate(Oid relation_id)
{
	Oid			admin = get_role_oid("quorum_admin", true);

	if (get_rel_name(relation_id) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relation_id)));
	if (pg_class_ownercheck(relation_id, GetUserId()) ||
		(OidIsValid(admin) && has_privs_of_role(GetUserId(), admin)))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("must be owner of table \"%s\" or a member of quorum_admin", get_rel_name(relation_id))));
}

/* The lock may have been waited for, and the table dropped meanwhile. */
static Relation
open_table(Oid relation_id, LOCKMODE lock_mode)
{
	Relation	relation = try_relation_open(relation_id, lock_mode);

	if (relation == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the table was dropped meanwhile")));
	return relation;
}

/*
 * What a replicate() that did not come to its end left is replaced on all nodes when it begins anew; but only here, where the rows are,
 * and not where there is a copy, perhaps half of one.
 */
static void
check_not_replicated(Relation relation, uint32 own_node_id)
{
	const ReplicatedTable *table = replicated_table_by_relid(RelationGetRelid(relation));

	if (table == NULL)
		return;
	if (table->state == REPLICATED_TABLE_ACTIVE)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" is already replicated", RelationGetRelationName(relation)),
				 errhint("See quorum.tables.")));
	if (table->origin_node != own_node_id)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" is an unfinished copy from another node", RelationGetRelationName(relation)),
				 errhint("Call quorum.replicate() on the node that has all of its rows, or quorum.unreplicate() to drop the copies.")));
}

/*
 * Asks one member, once it has what this node has: say, a table that was replicated a moment ago and that this one refers to.  An unreachable
 * one will find out when the entry comes to it.
 */
static void
check_member(const MemberState *member, Relation relation, const char *shape, const char *definition)
{
	char	   *target = psprintf("node \"%s\"", member->node_name);
	char	   *why_not = NULL;
	PeerConnection *peer = peer_connect(member->conninfo, NULL, target, &why_not);
	const char *parameters[4];
	PeerResult *answer;

	if (peer == NULL)
	{
		ereport(NOTICE,
				(errmsg("node \"%s\" cannot be reached and takes the table when it is back", member->node_name),
				 errdetail_internal("%s", why_not)));
		return;
	}
	parameters[0] = psprintf(UINT64_FORMAT, turn_applied_index());
	(void) peer_query(peer, "SELECT quorum.wait_for($1)", 1, parameters);
	parameters[0] = get_namespace_name(RelationGetNamespace(relation));
	parameters[1] = RelationGetRelationName(relation);
	parameters[2] = shape;
	parameters[3] = definition;
	answer = peer_query(peer, "SELECT quorum.check_replicate($1, $2, $3, $4)", 4, parameters);
	peer_close(peer);
	if (answer->row_count > 0 && answer->rows[0][0] != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("node \"%s\" cannot take table \"%s\"", member->node_name, RelationGetRelationName(relation)),
				 errdetail_internal("%s", answer->rows[0][0]),
				 errhint("Put that right on that node; a table that is in the way can be dropped or renamed there.")));
}

static void
check_members(Relation relation, uint32 own_node_id, const char *shape, const char *definition)
{
	NodeStatus *status = palloc(sizeof(NodeStatus));

	shmem_get_status(status);
	for (int i = 0; i < status->member_count; i++)
		if (status->members[i].node_id != own_node_id)
			check_member(&status->members[i], relation, shape, definition);
	pfree(status);
}

/* ---- replicate ---- */

/* Unique without asking anybody: this node's number and 31 random bits, tried again if this node has used them. */
static uint64
draw_table_id(uint32 own_node_id)
{
	uint32		random_bits;
	uint64		table_id;

	do
	{
		if (!pg_strong_random(&random_bits, sizeof(random_bits)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not draw a random number for the table")));
		table_id = ((uint64) (own_node_id & PG_INT32_MAX) << 32) | (random_bits & PG_INT32_MAX);
	} while (replicated_table_by_id(table_id) != NULL);
	return table_id;
}

static char *
table_definition(Oid relation_id)
{
	Oid			types[1] = {OIDOID};
	Datum		values[1] = {ObjectIdGetDatum(relation_id)};
	char	   *definition = internal_query_value("SELECT quorum.table_definition($1::regclass)", 1, types, values);

	if (definition == NULL)
		elog(ERROR, "table %u has no definition", relation_id);
	return definition;
}

/* From the commit of the caller's transaction on, here and, by its write set, on every other node. */
static void
activate(Oid relation_id, uint64 table_id, uint64 row_count)
{
	StringInfoData control;

	replicated_table_activate_locally(relation_id, table_id, row_count);
	initStringInfo(&control);
	writeset_put_table_activate(&control, table_id, row_count);
	capture_add_control(control.data, control.len, table_id, relation_id);
	pfree(control.data);
}

/* After an error in the middle of the copy.  False: the user has to do it. */
static bool
take_copy_back(Oid relation_id, uint64 table_id)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool taken_back = false;

	PG_TRY();
	{
		table_copy_send_forget(table_id);
		taken_back = true;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
		ereport(WARNING,
				(errmsg("the copy of table \"%s\" could not be taken back", get_rel_name(relation_id)),
				 errdetail("It stays in state copying, and cannot be written to."),
				 errhint("Call quorum.replicate() again, or quorum.unreplicate().")));
	}
	PG_END_TRY();
	return taken_back;
}

/*
 * A cancel that met the wait for an entry was told as an unknown outcome.  Once the copy is taken back the outcome is known; and
 * the cancel, which is still pending, must not hit that too.
 */
static void
report_failed_copy(Relation relation, uint64 table_id, ErrorData *error)
{
	bool		cancelled = QueryCancelPending;

	QueryCancelPending = false;
	if (take_copy_back(RelationGetRelid(relation), table_id) && cancelled)
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("canceling statement due to user request or timeout"),
				 errdetail("Table \"%s\" is not replicated, and what was copied of it is taken back.",
						   RelationGetRelationName(relation))));
	ReThrowError(error);
}

static uint64
copy_table(Relation relation, uint64 table_id, const char *definition, uint64 base)
{
	MemoryContext context = CurrentMemoryContext;
	uint64		row_count = 0;

	PG_TRY();
	{
		table_copy_send_definition(relation, table_id, definition, base);
		row_count = table_copy_send_rows(relation, table_id);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		report_failed_copy(relation, table_id, error);
	}
	PG_END_TRY();
	return row_count;
}

Datum
quorum_replicate(PG_FUNCTION_ARGS)
{
	Oid			relation_id = PG_GETARG_OID(0);
	NodeIdentity identity;
	Relation	relation;
	char	   *definition;
	uint64		table_id;
	uint64		row_count;
	uint64		base;

	require_membership(&identity);
	gate_check_may_write();
	check_caller_may_replicate(relation_id);
	relation = open_table(relation_id, ShareRowExclusiveLock);
	base = turn_applied_index();	/* before it is looked whether the name is free */
	check_not_replicated(relation, identity.node_id);
	check_table_is_replicable(relation);
	definition = table_definition(relation_id);
	check_members(relation, identity.node_id, table_shape(relation_id), definition);

	table_id = draw_table_id(identity.node_id);
	row_count = copy_table(relation, table_id, definition, base);
	relation_close(relation, NoLock);	/* locked, but not open: or else it could get no triggers */
	activate(relation_id, table_id, row_count);
	ereport(NOTICE,
			(errmsg("table \"%s\" is replicated from the commit of this transaction on", get_rel_name(relation_id)),
			 errdetail_plural("%llu row was copied.", "%llu rows were copied.", (unsigned long) row_count,
							  (unsigned long long) row_count)));
	PG_RETURN_VOID();
}

/* ---- unreplicate ---- */

/* A replicated table that references this one could no longer be checked. */
static void
check_no_replicated_dependents(Relation relation)
{
	Oid			types[1] = {OIDOID};
	Datum		values[1] = {ObjectIdGetDatum(RelationGetRelid(relation))};
	char	   *dependents;

	dependents = internal_query_value("SELECT string_agg(DISTINCT conrelid::regclass::text, ', ') FROM pg_constraint "
									  "WHERE confrelid = $1 AND contype = 'f' AND conrelid <> $1 AND EXISTS "
									  "(SELECT FROM quorum.replicated_table WHERE relation = conrelid)", 1, types, values);
	if (dependents != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("table \"%s\" is referenced by tables that are replicated", RelationGetRelationName(relation)),
				 errdetail("They are: %s.", dependents),
				 errhint("Call quorum.unreplicate() for them first.")));
}

Datum
quorum_unreplicate(PG_FUNCTION_ARGS)
{
	Oid			relation_id = PG_GETARG_OID(0);
	NodeIdentity identity;
	Relation	relation;
	const ReplicatedTable *entry;
	ReplicatedTable table;
	StringInfoData control;

	require_membership(&identity);
	gate_check_may_write();
	check_caller_may_replicate(relation_id);
	relation = open_table(relation_id, AccessExclusiveLock);
	entry = replicated_table_by_relid(relation_id);
	if (entry == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" is not replicated", RelationGetRelationName(relation)),
				 errhint("See quorum.tables.")));
	table = *entry;
	check_no_replicated_dependents(relation);

	if (table.state == REPLICATED_TABLE_COPYING)
	{
		/* An entry of its own, as it was begun by one.  The apply worker, which performs it, may need the lock. */
		relation_close(relation, AccessExclusiveLock);
		table_copy_send_forget(table.table_id);
		PG_RETURN_VOID();
	}
	initStringInfo(&control);
	writeset_put_table_forget(&control, table.table_id);
	relation_close(relation, NoLock);	/* locked, but not open: or else its triggers could not be dropped */
	replicated_table_forget_locally(table.table_id);
	capture_add_control(control.data, control.len, table.table_id, relation_id);
	PG_RETURN_VOID();
}
