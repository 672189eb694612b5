/*
 * unwritten_rows.c
 *	  Rows that a statement has locked in order to write them, and then did not: they are certified as locked.  Process: client backend.
 *
 * ON CONFLICT DO UPDATE … WHERE, when the condition is false, and a BEFORE ROW trigger that returns NULL leave the row locked until the end of the
 * transaction, and nothing captured.  Both are seen where they happen: the condition, and the triggers of the tables that the statement writes,
 * are replaced in the executor's state by ones that call the original and look at what comes out.
 *
 * Must never change what the statement does.  Not seen: a row whose newest version, that was waited for, no longer qualifies; see must_yield in
 * proposal_queue.h.
 *
 * Locks: none of its own; the tables are open.
 */
#include "postgres.h"

#include "access/relation.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "nodes/execnodes.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"

#include "capture/row_keys.h"
#include "capture/unwritten_rows.h"
#include "shared/replicated_tables.h"

static void
note_unwritten(Relation relation, ItemPointer row, CertifierMode mode)
{
	const ReplicatedTable *table = replicated_table_by_relid(RelationGetRelid(relation));

	if (table != NULL && table->state == REPLICATED_TABLE_ACTIVE && ItemPointerIsValid(row))
		row_keys_add_row_lock(relation, table->table_id, row, mode);
}

/* ---- ON CONFLICT DO UPDATE … WHERE ---- */

typedef struct WatchedCondition
{
	ExprState	state;			/* stands in for the original */
	ExprState  *original;
	CertifierMode mode;
} WatchedCondition;

static Datum
evaluate_condition(ExprState *state, ExprContext *context, bool *is_null)
{
	WatchedCondition *condition = (WatchedCondition *) state;
	Datum		result = condition->original->evalfunc(condition->original, context, is_null);
	TupleTableSlot *existing = context->ecxt_scantuple;

	if (!DatumGetBool(result) && existing != NULL && OidIsValid(existing->tts_tableOid))
	{
		Relation	relation = relation_open(existing->tts_tableOid, NoLock);
		MemoryContext old_context = MemoryContextSwitchTo(context->ecxt_per_query_memory);

		note_unwritten(relation, &existing->tts_tid, condition->mode);
		MemoryContextSwitchTo(old_context);
		relation_close(relation, NoLock);
	}
	return result;
}

static void
watch_condition(ModifyTableState *node, ResultRelInfo *target)
{
	OnConflictSetState *conflict = target->ri_onConflict;
	WatchedCondition *condition;

	if (((ModifyTable *) node->ps.plan)->onConflictAction != ONCONFLICT_UPDATE || conflict == NULL ||
		conflict->oc_WhereClause == NULL)
		return;
	condition = MemoryContextAllocZero(node->ps.state->es_query_cxt, sizeof(WatchedCondition));
	condition->state.type = T_ExprState;
	condition->state.flags = EEO_FLAG_IS_QUAL;
	condition->state.evalfunc = evaluate_condition;
	condition->original = conflict->oc_WhereClause;
	condition->mode = ExecUpdateLockMode(node->ps.state, target) == LockTupleExclusive ?
		CERTIFIER_UPDATE : CERTIFIER_NO_KEY_UPDATE;
	conflict->oc_WhereClause = &condition->state;
}

/* ---- BEFORE ROW triggers ---- */

typedef struct WatchedFunction
{
	Oid			function;		/* hash key */
	PGFunction	original;
} WatchedFunction;

static HTAB *watched_functions = NULL;

static CertifierMode
mode_of_write(const TriggerData *trigger)
{
	Bitmapset  *key_columns;

	if (TRIGGER_FIRED_BY_DELETE(trigger->tg_event))
		return CERTIFIER_UPDATE;
	key_columns = RelationGetIndexAttrBitmap(trigger->tg_relation, INDEX_ATTR_BITMAP_KEY);
	return bms_overlap(key_columns, trigger->tg_updatedcols) ? CERTIFIER_UPDATE : CERTIFIER_NO_KEY_UPDATE;
}

/* The function may be dropped, and its number used anew, but not while it is in a statement's state. */
static Datum
call_trigger(PG_FUNCTION_ARGS)
{
	WatchedFunction *watched = hash_search(watched_functions, &fcinfo->flinfo->fn_oid, HASH_FIND, NULL);
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	Datum		result = watched->original(fcinfo);

	if (DatumGetPointer(result) == NULL && !TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		note_unwritten(trigger->tg_relation, &trigger->tg_trigslot->tts_tid, mode_of_write(trigger));
	return result;
}

static void
watch_function(Oid function_id, FmgrInfo *function, MemoryContext context)
{
	WatchedFunction *watched;
	bool		found;

	if (watched_functions == NULL)
	{
		HASHCTL		control = {.keysize = sizeof(Oid), .entrysize = sizeof(WatchedFunction), .hcxt = TopMemoryContext};

		watched_functions = hash_create("pg_quorum triggers", 16, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	fmgr_info_cxt(function_id, function, context);
	watched = hash_search(watched_functions, &function_id, HASH_ENTER, &found);
	watched->original = function->fn_addr;
	function->fn_addr = call_trigger;
}

static bool
may_veto_write(const Trigger *trigger)
{
	return TRIGGER_FOR_ROW(trigger->tgtype) && TRIGGER_FOR_BEFORE(trigger->tgtype) &&
		(TRIGGER_FOR_UPDATE(trigger->tgtype) || TRIGGER_FOR_DELETE(trigger->tgtype));
}

static void
watch_triggers(ModifyTableState *node, ResultRelInfo *target)
{
	TriggerDesc *triggers = target->ri_TrigDesc;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
		if (may_veto_write(&triggers->triggers[i]) && target->ri_TrigFunctions[i].fn_oid == InvalidOid)
			watch_function(triggers->triggers[i].tgfoid, &target->ri_TrigFunctions[i], node->ps.state->es_query_cxt);
}

void
unwritten_rows_watch(ModifyTableState *node)
{
	for (int i = 0; i < node->mt_nrels; i++)
	{
		watch_condition(node, &node->resultRelInfo[i]);
		watch_triggers(node, &node->resultRelInfo[i]);
	}
}
