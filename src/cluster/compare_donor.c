/*
 * compare_donor.c
 *	  What a node whose copy of a table is right offers one whose copy differs: sums of buckets and rows, at an exact log index.
 *
 * Runs in backends that another node connects to, as a member of quorum_peer, which may see the whole log anyway.  The other node
 * begins a transaction, imports the snapshot that the check worker holds for it, takes the table's lock with the first of these
 * functions, and then tells the check worker that it need not hold it any more.
 *
 * Must never serve rows of a copy that is quarantined here.
 *
 * Locks: ACCESS SHARE on the table.  Who stands in the apply worker's way with it is aborted; then the other node has to begin again.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

#include "cluster/node_check.h"
#include "cluster/table_compare.h"
#include "cluster/verify.h"
#include "shared/check_job.h"
#include "shared/table_rows.h"

PG_FUNCTION_INFO_V1(quorum_compare_begin);
PG_FUNCTION_INFO_V1(quorum_compare_taken);
PG_FUNCTION_INFO_V1(quorum_bucket_sums);
PG_FUNCTION_INFO_V1(quorum_bucket_rows);

#define REACH_PATIENCE_MS 30000

static ReplicatedTable
donated_table(int64 table_id)
{
	const ReplicatedTable *table = replicated_table_by_id((uint64) table_id);

	if (table == NULL || table->state != REPLICATED_TABLE_ACTIVE)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table number %lld is not replicated here", (long long) table_id)));
	if (table->quarantined_index != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table number %lld is quarantined on this node too", (long long) table_id),
				 errhint("Take another node.")));
	return *table;
}

static Relation
open_donated(int64 table_id)
{
	Relation	relation = try_relation_open(donated_table(table_id).relid, AccessShareLock);

	if (relation == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table number %lld is not replicated here", (long long) table_id)));
	return relation;
}

static uint32
checked_bucket_count(int32 bucket_count)
{
	if (bucket_count < 1 || bucket_count > TABLE_ROWS_MAX_BUCKETS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("number of buckets must be between 1 and %d", TABLE_ROWS_MAX_BUCKETS)));
	return (uint32) bucket_count;
}

/* The check worker has taken the snapshot before the apply worker went on, so once the index is applied it is there, or never will be. */
Datum
quorum_compare_begin(PG_FUNCTION_ARGS)
{
	uint64		index = (uint64) PG_GETARG_INT64(1);
	char	   *name;

	require_shared_state();
	(void) donated_table(PG_GETARG_INT64(0));
	verify_await_index(index, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), REACH_PATIENCE_MS));
	name = check_job_held_snapshot(index);
	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("this node holds no snapshot of log index %llu", (unsigned long long) index),
				 errdetail("It was checking another table just then, or somebody needed the table's lock, or it was held for too long."),
				 errhint("Try again.")));
	PG_RETURN_TEXT_P(cstring_to_text(name));
}

Datum
quorum_compare_taken(PG_FUNCTION_ARGS)
{
	require_shared_state();
	check_job_release((uint64) PG_GETARG_INT64(1));
	PG_RETURN_VOID();
}

/* ---- sums ---- */

Datum
quorum_bucket_sums(PG_FUNCTION_ARGS)
{
	uint32		bucket_count = checked_bucket_count(PG_GETARG_INT32(1));
	Relation	relation;
	TableSum   *sums;
	StringInfoData bytes;

	require_shared_state();
	relation = open_donated(PG_GETARG_INT64(0));
	sums = bucket_sums(relation, GetActiveSnapshot(), bucket_count);
	pq_begintypsend(&bytes);
	for (uint32 i = 0; i < bucket_count; i++)
	{
		pq_sendint64(&bytes, sums[i].row_count);
		pq_sendint64(&bytes, sums[i].hash.high);
		pq_sendint64(&bytes, sums[i].hash.low);
	}
	relation_close(relation, NoLock);
	PG_RETURN_BYTEA_P(pq_endtypsend(&bytes));
}

/* ---- rows ---- */

typedef struct RowCollector
{
	ReturnSetInfo *result;
	bool	   *is_wanted;		/* by bucket */
	bool		any_is_wanted;
} RowCollector;

static bool
collect_row(void *context, const TableRow *row)
{
	RowCollector *collector = context;
	bytea	   *bytes;
	Datum		value;
	bool		is_null = false;

	if (!collector->is_wanted[row->bucket])
		return true;
	bytes = palloc(VARHDRSZ + row->length);
	SET_VARSIZE(bytes, VARHDRSZ + row->length);
	memcpy(VARDATA(bytes), row->bytes, row->length);
	value = PointerGetDatum(bytes);
	tuplestore_putvalues(collector->result->setResult, collector->result->setDesc, &value, &is_null);
	return true;
}

static void
note_wanted_buckets(RowCollector *collector, ArrayType *array, uint32 bucket_count)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	collector->is_wanted = palloc0(bucket_count * sizeof(bool));
	deconstruct_array(array, INT4OID, sizeof(int32), true, TYPALIGN_INT, &elements, &nulls, &count);
	for (int i = 0; i < count; i++)
	{
		int32		bucket = DatumGetInt32(elements[i]);

		if (nulls[i] || bucket < 0 || (uint32) bucket >= bucket_count)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("there is no such bucket")));
		collector->is_wanted[bucket] = true;
	}
	collector->any_is_wanted = count > 0;
}

Datum
quorum_bucket_rows(PG_FUNCTION_ARGS)
{
	uint32		bucket_count = checked_bucket_count(PG_GETARG_INT32(1));
	RowCollector collector = {.result = (ReturnSetInfo *) fcinfo->resultinfo};
	Relation	relation;

	require_shared_state();
	relation = open_donated(PG_GETARG_INT64(0));
	note_wanted_buckets(&collector, PG_GETARG_ARRAYTYPE_P(2), bucket_count);
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	if (collector.any_is_wanted)	/* asked for none: merely for the lock */
		(void) table_rows_visit(relation, GetActiveSnapshot(), bucket_count, collect_row, &collector);
	relation_close(relation, NoLock);
	return (Datum) 0;
}
