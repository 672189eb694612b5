/*
 * snapshot_view.c
 *	  The function beneath quorum.snapshot_progress, and the words that it and join_cluster() have for it.
 *
 * Runs in client backends.  Must never wait.  Locks: QuorumShmem->lock, shared, for a copy.
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "cluster/node_check.h"
#include "cluster/snapshot_view.h"
#include "shared/shmem.h"

PG_FUNCTION_INFO_V1(quorum_node_snapshot);

#define COLUMN_COUNT 15
#define ROWS_KEPT_COLUMN 8		/* it and the next one are not in catalogs of an older build */
#define NEWER_COLUMNS 2

const char *
snapshot_phase_name(SnapshotPhase phase)
{
	switch (phase)
	{
		case SNAPSHOT_NONE:
			return "none";
		case SNAPSHOT_CONNECTING:
			return "connecting";
		case SNAPSHOT_LOG_STATE:
			return "receiving log state";
		case SNAPSHOT_TABLES:
			return "preparing tables";
		case SNAPSHOT_COMPARING:
			return "comparing rows";
		case SNAPSHOT_ROWS:
			return "copying rows";
		case SNAPSHOT_INDEXES:
			return "building indexes";
		case SNAPSHOT_COMMITTING:
			return "committing";
		case SNAPSHOT_WAITING:
			return "waiting to retry";
		case SNAPSHOT_DONE:
			return "done";
	}
	return "unknown";
}

static void
put_text_or_null(Datum *value, bool *is_null, const char *text)
{
	*is_null = text[0] == '\0';
	*value = *is_null ? (Datum) 0 : CStringGetTextDatum(text);
}

Datum
quorum_node_snapshot(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	SnapshotProgress progress;
	Datum		values[COLUMN_COUNT] = {0};
	bool		nulls[COLUMN_COUNT] = {false};

	require_shared_state();
	InitMaterializedSRF(fcinfo, 0);
	shmem_get_snapshot_progress(&progress);
	if (progress.phase == SNAPSHOT_NONE)
		return (Datum) 0;
	values[0] = CStringGetTextDatum(snapshot_phase_name(progress.phase));
	put_text_or_null(&values[1], &nulls[1], progress.donor);
	values[2] = Int64GetDatum((int64) progress.index);
	nulls[2] = progress.index == 0;
	put_text_or_null(&values[3], &nulls[3], progress.schema_name);
	put_text_or_null(&values[4], &nulls[4], progress.table_name);
	values[5] = Int32GetDatum((int32) progress.tables_done);
	values[6] = Int32GetDatum((int32) progress.tables_total);
	values[7] = Int64GetDatum((int64) progress.rows_copied);
	values[8] = Int64GetDatum((int64) progress.rows_kept);
	values[9] = Int64GetDatum((int64) progress.rows_deleted);
	values[10] = Int64GetDatum((int64) progress.bytes_received);
	values[11] = Int64GetDatum((int64) progress.bytes_estimated);
	values[12] = Int32GetDatum((int32) progress.attempts);
	values[13] = TimestampTzGetDatum(progress.started_at);
	values[14] = TimestampTzGetDatum(progress.changed_at);
	if (result->setDesc->natts == COLUMN_COUNT - NEWER_COLUMNS) /* no NULL is among those that move */
		memmove(&values[ROWS_KEPT_COLUMN], &values[ROWS_KEPT_COLUMN + NEWER_COLUMNS],
				(COLUMN_COUNT - NEWER_COLUMNS - ROWS_KEPT_COLUMN) * sizeof(Datum));
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	return (Datum) 0;
}
