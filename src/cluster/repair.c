/*
 * repair.c
 *	  quorum.repair() and quorum.diverging_keys(): what to do about a copy that differs.
 *
 * Runs in a client backend of the node whose copy is quarantined.  The session finds the differences while the log stands still on
 * this node, and writes them to a file; the apply worker, which is the one that writes rows without triggers, performs them in the
 * entry of the log at which they were found.
 *
 * Must never end a quarantine: only a check does, which is asked for at the end.
 *
 * Locks: ACCESS SHARE on the table; the apply worker's own.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relation.h"
#include "access/tableam.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
#include "utils/wait_event.h"

#include "cluster/node_check.h"
#include "cluster/table_compare.h"
#include "cluster/verify.h"
#include "shared/check_job.h"
#include "shared/repair_file.h"
#include "shared/writeset.h"

PG_FUNCTION_INFO_V1(quorum_repair);
PG_FUNCTION_INFO_V1(quorum_diverging_keys);

#define LOOK_INTERVAL_MS 100
#define CHECK_PATIENCE_MS (60 * 60 * 1000)
#define KEYS_SHOWN 10000

static ReplicatedTable
quarantined_table(Oid relid)
{
	ReplicatedTable table = verify_table(relid);

	if (table.quarantined_index == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" is not quarantined on this node", get_rel_name(relid)),
				 errhint("quorum.verify() finds out whether its rows differ, and on which node.")));
	return table;
}

static uint64
begin_session(void)
{
	uint64		nonce;

	if (!pg_strong_random(&nonce, sizeof(nonce)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not draw a random number for the comparison")));
	compare_session_begin(nonce);
	return nonce;
}

static void
end_session(int code, Datum argument)
{
	compare_session_end();
}

/* ---- quorum.repair() ---- */

typedef struct Corrections
{
	RepairWriter *writer;
	int64		removed_rows;
	int64		copied_rows;
} Corrections;

/* Then all rows are copied. */
static void
empty_first(void *context)
{
	repair_file_put_empty(((Corrections *) context)->writer);
}

static void
remove_row(void *context, ItemPointer tid)
{
	Corrections *corrections = context;

	repair_file_put_delete(corrections->writer, tid);
	corrections->removed_rows++;
}

static void
copy_row(void *context, const char *row, uint32 length)
{
	Corrections *corrections = context;

	repair_file_put_insert(corrections->writer, row, length);
	corrections->copied_rows++;
}

static void
find_corrections(const ReplicatedTable *table, uint64 nonce, Corrections *corrections, uint64 *index)
{
	DifferenceSink sink = {.extra = remove_row, .missing = copy_row, .unreadable = empty_first, .context = corrections};
	Comparison	comparison;

	comparison_begin(&comparison, table, nonce);
	corrections->writer = repair_file_create(table->table_id, nonce);
	comparison_run(&comparison, &sink);
	repair_file_finish(corrections->writer);
	*index = comparison.index;
	comparison_end(&comparison);
}

/* The apply worker performs what is in the file. */
static void
await_repair(const char *table_name)
{
	CompareState state;

	compare_session_set(COMPARE_REPAIR);
	while ((state = compare_session_state()) == COMPARE_REPAIR)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, LOOK_INTERVAL_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	if (state == COMPARE_FAILED)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("table \"%s\" could not be repaired", table_name),
				 errdetail_internal("%s", compare_session_message()),
				 errhint("If it is about an index, REINDEX TABLE on this node and try again; else remove this node and let it join as a new one.")));
}

static void
warn_if_still_different(const NodeCheck *checks, int count, const char *table_name)
{
	NodeStatus *status = palloc(sizeof(NodeStatus));

	shmem_get_status(status);
	if (check_verdict(checks, count, status->quorum_size, QuorumShmem->identity.node_id) != CHECK_MATCHES)
		ereport(WARNING,
				(errmsg("table \"%s\" stays quarantined on this node", table_name),
				 errdetail("The check after the repair did not find it equal to the copies of a majority."),
				 errhint("See quorum.checks; quorum.verify() checks again.")));
}

Datum
quorum_repair(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	Corrections corrections = {0};
	NodeIdentity identity;
	ReplicatedTable table;
	NodeCheck	checks[QUORUM_MAX_MEMBERS];
	TupleDesc	row_type;
	Datum		values[3];
	bool		nulls[3] = {false};
	TimestampTz deadline;
	uint64		index = 0;
	int			count;

	require_membership(&identity);
	table = quarantined_table(relid);
	if (get_call_result_type(fcinfo, NULL, &row_type) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	PG_ENSURE_ERROR_CLEANUP(end_session, (Datum) 0);
	{
		find_corrections(&table, begin_session(), &corrections, &index);
		await_repair(get_rel_name(relid));
	}
	PG_END_ENSURE_ERROR_CLEANUP(end_session, (Datum) 0);
	compare_session_end();
	deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), CHECK_PATIENCE_MS);
	verify_await_index(index, deadline);
	values[2] = Int64GetDatum((int64) verify_run(table.table_id, deadline, checks, &count));
	warn_if_still_different(checks, count, get_rel_name(relid));
	values[0] = Int64GetDatum(corrections.removed_rows);
	values[1] = Int64GetDatum(corrections.copied_rows);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(row_type), values, nulls)));
}

/* ---- quorum.diverging_keys() ---- */

typedef struct DivergingKey
{
	RowHash		key;			/* hash key: of its bytes */
	char	   *text;
	bool		is_here;
	bool		is_there;
} DivergingKey;

typedef struct KeyList
{
	Comparison *comparison;
	MemoryContext context;
	HTAB	   *keys;
	TupleTableSlot *own_slot;
	TupleTableSlot *donor_slot;
} KeyList;

/* "id=1, part=2" */
static char *
key_text(Relation relation, TupleTableSlot *slot)
{
	Relation	index = index_open(RelationGetPrimaryKeyIndex(relation), AccessShareLock);
	StringInfoData text;

	initStringInfo(&text);
	for (int i = 0; i < IndexRelationGetNumberOfKeyAttributes(index); i++)
	{
		AttrNumber	number = index->rd_index->indkey.values[i];
		Form_pg_attribute attribute = TupleDescAttr(RelationGetDescr(relation), number - 1);
		bool		is_null;
		Datum		value = slot_getattr(slot, number, &is_null);
		Oid			output;
		bool		is_varlena;

		getTypeOutputInfo(attribute->atttypid, &output, &is_varlena);
		appendStringInfo(&text, "%s%s=%s", i > 0 ? ", " : "", NameStr(attribute->attname),
						 is_null ? "NULL" : OidOutputFunctionCall(output, value));
	}
	index_close(index, AccessShareLock);
	return text.data;
}

static DivergingKey *
note_key(KeyList *list, TupleTableSlot *slot)
{
	MemoryContext old_context;
	StringInfoData bytes;
	RowHash		hash;
	DivergingKey *key;
	bool		found;

	if (hash_get_num_entries(list->keys) >= KEYS_SHOWN)
		return NULL;
	initStringInfo(&bytes);
	writeset_put_key(&bytes, list->comparison->relation, slot);
	hash = row_hash(bytes.data, bytes.len);
	key = hash_search(list->keys, &hash, HASH_ENTER, &found);
	if (found)
		return key;
	old_context = MemoryContextSwitchTo(list->context);
	key->text = key_text(list->comparison->relation, slot);
	key->is_here = key->is_there = false;
	MemoryContextSwitchTo(old_context);
	return key;
}

static void
note_own(void *context, ItemPointer tid)
{
	KeyList    *list = context;
	DivergingKey *key;

	if (!table_tuple_fetch_row_version(list->comparison->relation, tid, list->comparison->snapshot, list->own_slot))
		return;
	key = note_key(list, list->own_slot);
	if (key != NULL)
		key->is_here = true;
	ExecClearTuple(list->own_slot);
}

static void
note_donors(void *context, const char *row, uint32 length)
{
	KeyList    *list = context;
	WriteSetReader reader;
	DivergingKey *key;

	writeset_read_rows_begin(&reader, row, length);
	writeset_read_row(&reader, list->comparison->relation, list->donor_slot);
	key = note_key(list, list->donor_slot);
	if (key != NULL)
		key->is_there = true;
	ExecClearTuple(list->donor_slot);
}

static void
put_keys(KeyList *list, ReturnSetInfo *result)
{
	HASH_SEQ_STATUS scan;
	DivergingKey *key;

	if (hash_get_num_entries(list->keys) >= KEYS_SHOWN)
		ereport(NOTICE, (errmsg("only the first %d keys are shown", KEYS_SHOWN)));
	hash_seq_init(&scan, list->keys);
	while ((key = hash_seq_search(&scan)) != NULL)
	{
		Datum		values[2];
		bool		nulls[2] = {false};

		values[0] = CStringGetTextDatum(key->text);
		values[1] = CStringGetTextDatum(key->is_here && key->is_there ? "differs" : key->is_here ? "extra here" : "missing here");
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
}

static void
list_keys(Comparison *comparison, ReturnSetInfo *result)
{
	KeyList		list = {.comparison = comparison, .context = CurrentMemoryContext};
	DifferenceSink sink = {.extra = note_own, .missing = note_donors, .context = &list};
	HASHCTL		control;

	control.keysize = sizeof(RowHash);
	control.entrysize = sizeof(DivergingKey);
	control.hcxt = CurrentMemoryContext;
	list.keys = hash_create("pg_quorum diverging keys", 256, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	list.own_slot = table_slot_create(comparison->relation, NULL);
	list.donor_slot = MakeSingleTupleTableSlot(RelationGetDescr(comparison->relation), &TTSOpsVirtual);
	comparison_run(comparison, &sink);
	ExecDropSingleTupleTableSlot(list.own_slot);
	ExecDropSingleTupleTableSlot(list.donor_slot);
	put_keys(&list, result);
}

Datum
quorum_diverging_keys(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	NodeIdentity identity;
	ReplicatedTable table;
	Comparison	comparison;

	require_membership(&identity);
	table = quarantined_table(PG_GETARG_OID(0));
	InitMaterializedSRF(fcinfo, 0);
	PG_ENSURE_ERROR_CLEANUP(end_session, (Datum) 0);
	{
		comparison_begin(&comparison, &table, begin_session());
		compare_session_set(COMPARE_GO_ON); /* snapshots and locks are enough; the log need not wait */
		list_keys(&comparison, result);
		comparison_end(&comparison);
	}
	PG_END_ENSURE_ERROR_CLEANUP(end_session, (Datum) 0);
	compare_session_end();
	return (Datum) 0;
}
