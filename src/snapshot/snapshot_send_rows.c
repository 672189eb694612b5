/*
 * snapshot_send_rows.c
 *	  The donor's answers about one table, after it has sent the list of all (snapshot_send.c): sums of its rows by buckets, and the rows of
 *	  some buckets.
 *
 * Runs in the same backend and the same transaction, for a client that has rows of that table already and wants only what differs.  Must never
 * answer about a table that quorum.send_tables() has not locked and found to be what the snapshot sees.
 *
 * Bucket, hash and bytes of a row are those of table_rows.h: two rows are the same if and only if they travel in the same bytes.
 *
 * Locks: ACCESS SHARE, which the transaction holds already.
 */
#include "postgres.h"

#include "access/table.h"
#include "fmgr.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "storage/lock.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "shared/replicated_tables.h"
#include "shared/table_rows.h"
#include "snapshot/snapshot_send_internal.h"

#define PROGRESS_INTERVAL_MS 5000	/* far less than what the client waits for a message */
#define PROGRESS_LOOK_ROWS 16		/* a row may be large */

PG_FUNCTION_INFO_V1(quorum_send_sums);
PG_FUNCTION_INFO_V1(quorum_send_rows);

typedef struct RowSearch
{
	FrameStream stream;
	Relation	relation;
	uint32		bucket_count;
	TimestampTz last_sent;
	uint64		rows_seen;
	TableSum   *sums;			/* send_sums */
	const uint8 *wanted;		/* send_rows: bit i % 8 of byte i / 8 is bucket i */
	StringInfoData frame;		/* that is being filled; data is NULL between two */
	uint32		frame_rows;
	uint64		rows_sent;
} RowSearch;

static Relation
open_sent_table(int64 table_id)
{
	const ReplicatedTable *table = replicated_table_by_id((uint64) table_id);
	LOCKTAG		tag;

	if (table != NULL)
		SET_LOCKTAG_RELATION(tag, MyDatabaseId, table->relid);
	if (table == NULL || !LockHeldByMe(&tag, AccessShareLock))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table number %lld was not sent in this transaction", (long long) table_id),
				 errhint("Call quorum.send_tables() first.")));
	return table_open(table->relid, AccessShareLock);
}

static void
begin_search(RowSearch *search, FunctionCallInfo fcinfo, const char *procedure, int least_buckets)
{
	NodeIdentity identity;
	int32		bucket_count;

	for (int i = 0; i < PG_NARGS(); i++)
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("arguments of %s must not be null", procedure)));
	send_check_request(&identity, procedure);
	bucket_count = PG_GETARG_INT32(1);
	if (bucket_count < least_buckets || bucket_count > TABLE_ROWS_MAX_BUCKETS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("number of buckets must be between %d and %d", least_buckets, TABLE_ROWS_MAX_BUCKETS)));
	memset(search, 0, sizeof(RowSearch));
	search->bucket_count = (uint32) bucket_count;
	search->relation = open_sent_table(PG_GETARG_INT64(0));
	search->last_sent = GetCurrentTimestamp();
}

/* So that the client does not take us for dead while there is nothing to send. */
static void
note_row(RowSearch *search)
{
	MemoryContext old_context;
	StringInfoData frame;

	if (++search->rows_seen % PROGRESS_LOOK_ROWS != 0 ||
		!TimestampDifferenceExceeds(search->last_sent, GetCurrentTimestamp(), PROGRESS_INTERVAL_MS))
		return;
	old_context = MemoryContextSwitchTo(search->stream.frame_context);
	send_frame_begin(&frame, SNAPSHOT_FRAME_PROGRESS);
	pq_sendint64(&frame, search->rows_seen);
	send_frame(&search->stream, &frame);
	search->last_sent = GetCurrentTimestamp();
	MemoryContextSwitchTo(old_context);
}

/* ---- sums ---- */

static bool
add_row(void *context, const TableRow *row)
{
	RowSearch  *search = context;

	table_sum_add(&search->sums[row->bucket], row->hash);
	note_row(search);
	return true;
}

Datum
quorum_send_sums(PG_FUNCTION_ARGS)
{
	RowSearch	search;
	StringInfoData frame;

	begin_search(&search, fcinfo, "quorum.send_sums()", 1);
	search.sums = palloc0(search.bucket_count * sizeof(TableSum));
	send_stream_begin(&search.stream);
	(void) table_rows_visit(search.relation, GetActiveSnapshot(), search.bucket_count, add_row, &search);
	send_frame_begin(&frame, SNAPSHOT_FRAME_SUMS);
	pq_sendint32(&frame, search.bucket_count);
	for (uint32 i = 0; i < search.bucket_count; i++)
	{
		pq_sendint64(&frame, search.sums[i].row_count);
		pq_sendint64(&frame, search.sums[i].hash.high);
		pq_sendint64(&frame, search.sums[i].hash.low);
	}
	send_frame(&search.stream, &frame);
	send_stream_end();
	table_close(search.relation, NoLock);
	PG_RETURN_VOID();
}

/* ---- rows ---- */

static void
send_gathered_rows(RowSearch *search)
{
	uint32		count_in_order = pg_hton32(search->frame_rows);

	if (search->frame_rows == 0)
		return;
	memcpy(search->frame.data + 1, &count_in_order, sizeof(count_in_order));
	send_frame(&search->stream, &search->frame);
	search->last_sent = GetCurrentTimestamp();
	search->rows_sent += search->frame_rows;
	search->frame_rows = 0;
	search->frame.data = NULL;
}

static bool
gather_row(void *context, const TableRow *row)
{
	RowSearch  *search = context;
	MemoryContext old_context;

	if ((search->wanted[row->bucket / 8] & (1 << row->bucket % 8)) == 0)
	{
		note_row(search);
		return true;
	}
	old_context = MemoryContextSwitchTo(search->stream.frame_context);
	if (search->frame.data == NULL)
	{
		send_frame_begin(&search->frame, SNAPSHOT_FRAME_ROWS);
		pq_sendint32(&search->frame, 0);
	}
	appendBinaryStringInfo(&search->frame, row->bytes, row->length);
	if (++search->frame_rows >= ROWS_PER_FRAME || search->frame.len >= BYTES_PER_FRAME)
		send_gathered_rows(search);
	MemoryContextSwitchTo(old_context);
	return true;
}

static bool
any_is_wanted(const RowSearch *search)
{
	for (uint32 i = 0; i < search->bucket_count; i++)
		if (search->wanted[i / 8] & (1 << i % 8))
			return true;
	return false;
}

static void
send_rows_of_buckets(RowSearch *search, bytea *buckets)
{
	search->wanted = (uint8 *) VARDATA_ANY(buckets);
	if (VARSIZE_ANY_EXHDR(buckets) != (search->bucket_count + 7) / 8)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the list of buckets has another length than their number says")));
	send_stream_begin(&search->stream);
	if (any_is_wanted(search))
		(void) table_rows_visit(search->relation, GetActiveSnapshot(), search->bucket_count, gather_row, search);
	send_gathered_rows(search);
}

Datum
quorum_send_rows(PG_FUNCTION_ARGS)
{
	RowSearch	search;

	begin_search(&search, fcinfo, "quorum.send_rows()", 0);
	if (search.bucket_count > 0)
		send_rows_of_buckets(&search, PG_GETARG_BYTEA_PP(2));
	else
	{
		send_stream_begin(&search.stream);
		search.rows_sent = send_all_rows(&search.stream, search.relation, GetActiveSnapshot());
	}
	send_table_end(&search.stream, RelationGetRelid(search.relation), search.rows_sent);
	send_stream_end();
	table_close(search.relation, NoLock);
	PG_RETURN_VOID();
}
