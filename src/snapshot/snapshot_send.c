/*
 * snapshot_send.c
 *	  The donor's half of a copy: CALL quorum.send_tables(…) sends all replicated tables as its snapshot sees them, with their rows, or without: then
 *	  the client asks for these by quorum.send_rows() (snapshot_send_rows.c).
 *
 * Runs in an ordinary backend, whose client is the apply worker of another member, with the rights of quorum_peer: tables are read beneath
 * privileges and row-level security, because a copy that leaves rows out would be none.  Must never write, and never keep this node's apply worker
 * waiting: whatever is in its way is a lock that the lock watcher takes from us, and our client begins again.
 *
 * Invariants
 *	 1. Everything is read under the snapshot of one REPEATABLE READ transaction, and its index is that snapshot's (position.h).
 *	 2. A snapshot does not protect from what is not under MVCC: TRUNCATE and a new definition.  So all tables are locked before the first is read,
 *		and each must then be the same file, of the same number, that the snapshot sees.
 *	 3. A client that takes nothing for STALL_TIMEOUT_MS loses its connection: its snapshot would keep dead rows here for ever.
 *
 * Locks: ACCESS SHARE on each replicated table, to the end of the transaction.
 */
#include "postgres.h"

/* libpq.h would ask for gssapi.h, which the server's headers do not bring along.  No field of Port is touched here. */
#undef ENABLE_GSS

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "libpq/libpq.h"
#include "libpq/pqformat.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/pg_bswap.h"
#include "port/pg_crc32c.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "cluster/internal_query.h"
#include "shared/position.h"
#include "shared/proposal_queue.h"
#include "shared/replicated_tables.h"
#include "shared/sequences.h"
#include "shared/shmem.h"
#include "shared/writeset.h"
#include "snapshot/snapshot_send_internal.h"

#define STALL_TIMEOUT_MS 60000

PG_FUNCTION_INFO_V1(quorum_send_tables);

typedef struct SentTable
{
	uint64		table_id;
	Oid			relid;
	Oid			file_number;	/* that the snapshot sees */
	char		state;
	uint32		origin_node;
	uint64		activated_index;
	uint64		row_count;
	Relation	relation;
	bool		is_listed;		/* in the order in which they are sent */
} SentTable;

typedef struct Sender
{
	int			version;
	uint64		cluster_id;
	uint32		own_node_id;
	uint64		index;
	Snapshot	snapshot;
	SentTable  *tables;
	int			table_count;
	SentTable **order;
	FrameStream stream;
} Sender;

/* ---- the connection ---- */

void
send_stream_begin(FrameStream *stream)
{
	StringInfoData message;

	stream->frames = 0;
	stream->frame_context = AllocSetContextCreate(CurrentMemoryContext, "quorum snapshot frame", ALLOCSET_DEFAULT_SIZES);
	pq_beginmessage(&message, 'H');
	pq_sendbyte(&message, 1);	/* binary */
	pq_sendint16(&message, 0);	/* frames have no columns */
	pq_endmessage(&message);
}

static void
wait_until_sent(void)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), STALL_TIMEOUT_MS);

	for (;;)
	{
		WaitEvent	event;

		if (pq_flush_if_writable() != 0)
			ereport(FATAL,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("lost the connection to the node that copies the tables")));
		if (!pq_is_send_pending())
			return;
		if (GetCurrentTimestamp() > deadline)
			ereport(FATAL,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("the node that copies the tables has taken nothing for %d seconds", STALL_TIMEOUT_MS / 1000)));
		ModifyWaitEvent(FeBeWaitSet, FeBeWaitSetSocketPos, WL_SOCKET_WRITEABLE, NULL);
		if (WaitEventSetWait(FeBeWaitSet, 1000, &event, 1, PG_WAIT_EXTENSION) == 1 && (event.events & WL_POSTMASTER_DEATH))
			proc_exit(1);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

void
send_stream_end(void)
{
	pq_putemptymessage('c');
}

void
send_frame_begin(StringInfo frame, SnapshotFrameKind kind)
{
	initStringInfo(frame);
	pq_sendbyte(frame, kind);
}

static void
put_text(StringInfo frame, const char *text)
{
	pq_sendint32(frame, (uint32) strlen(text));
	appendBinaryStringInfo(frame, text, (int) strlen(text));
}

void
send_frame(FrameStream *stream, StringInfo frame)
{
	pg_crc32c	crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, frame->data, frame->len);
	FIN_CRC32C(crc);
	pq_sendint32(frame, crc);
	pq_putmessage_noblock('d', frame->data, frame->len);
	pfree(frame->data);
	stream->frames++;
	wait_until_sent();
	CHECK_FOR_INTERRUPTS();
}

/* ---- what is sent ---- */

static void pg_attribute_noreturn()
report_changed(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("the replicated tables have changed since the snapshot was taken"),
			 errdetail_internal("%s", detail),
			 errhint("Begin again with a new snapshot.")));
}

static uint64
number_or(HeapTuple tuple, TupleDesc descriptor, int column, uint64 if_null)
{
	bool		is_null;
	Datum		value = SPI_getbinval(tuple, descriptor, column, &is_null);

	return is_null ? if_null : (uint64) DatumGetInt64(value);
}

static void
read_table_row(SentTable *table, HeapTuple tuple, TupleDesc descriptor)
{
	bool		is_null;

	memset(table, 0, sizeof(SentTable));
	table->table_id = number_or(tuple, descriptor, 1, 0);
	table->relid = DatumGetObjectId(SPI_getbinval(tuple, descriptor, 2, &is_null));
	table->state = DatumGetChar(SPI_getbinval(tuple, descriptor, 3, &is_null));
	table->origin_node = (uint32) number_or(tuple, descriptor, 4, 0);
	table->activated_index = number_or(tuple, descriptor, 5, 0);
	table->row_count = number_or(tuple, descriptor, 6, PG_UINT64_MAX);
	table->file_number = (Oid) number_or(tuple, descriptor, 7, InvalidOid);
}

/* What the snapshot says of the tables. */
static void
list_tables(Sender *sender)
{
	MemoryContext context = CurrentMemoryContext;
	InternalIdentity saved;

	internal_identity_assume(&saved);
	SPI_connect();
	if (SPI_execute("SELECT r.table_id, r.relation::oid, r.state, r.origin_node::bigint, r.activated_index, r.row_count, c.relfilenode::bigint "
					"FROM quorum.replicated_table AS r LEFT JOIN pg_catalog.pg_class AS c ON c.oid = r.relation ORDER BY r.table_id",
					true, 0) != SPI_OK_SELECT)
		elog(ERROR, "the list of replicated tables could not be read");
	sender->table_count = (int) SPI_processed;
	sender->tables = MemoryContextAllocZero(context, sizeof(SentTable) * Max(sender->table_count, 1));
	for (int i = 0; i < sender->table_count; i++)
		read_table_row(&sender->tables[i], SPI_tuptable->vals[i], SPI_tuptable->tupdesc);
	SPI_finish();
	internal_identity_restore(&saved);
}

/* Invariant 2. */
static void
lock_table(const Sender *sender, SentTable *table)
{
	const ReplicatedTable *now;

	table->relation = try_table_open(table->relid, AccessShareLock);
	now = replicated_table_by_id(table->table_id);
	if (table->relation == NULL || now == NULL || now->relid != table->relid)
		report_changed(psprintf("Table number " UINT64_FORMAT " is no longer replicated.", table->table_id));
	if (table->relation->rd_rel->relfilenode != table->file_number)
		report_changed(psprintf("Table \"%s\" was truncated or rewritten.", RelationGetRelationName(table->relation)));
	if (now->quarantined_index != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this node's copy of table \"%s\" is known to differ from that of a majority", RelationGetRelationName(table->relation)),
				 errhint("Ask another node, or call quorum.repair() here.")));
	if (table->state == REPLICATED_TABLE_COPYING && table->origin_node == sender->own_node_id)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" is being replicated from this node just now", RelationGetRelationName(table->relation)),
				 errdetail("What of its rows is in the log at that index is not known here."),
				 errhint("Retry when quorum.replicate() has ended. If it was interrupted, call it again, or quorum.unreplicate().")));
}

static SentTable *
find_table(const Sender *sender, Oid relid)
{
	for (int i = 0; i < sender->table_count; i++)
		if (sender->tables[i].relid == relid)
			return &sender->tables[i];
	return NULL;
}

static bool
refers_to_later_one(const Sender *sender, const SentTable *table)
{
	ListCell   *cell;

	foreach(cell, RelationGetFKeyList(table->relation))
	{
		ForeignKeyCacheInfo *key = lfirst(cell);
		SentTable  *referenced = find_table(sender, key->confrelid);

		if (referenced != NULL && referenced != table && !referenced->is_listed)
			return true;
	}
	return false;
}

/* A table comes after those it refers to.  What refers in a circle is sent as it comes, and the client says what is wrong with it. */
static void
order_tables(Sender *sender)
{
	int			listed = 0;

	sender->order = palloc(sizeof(SentTable *) * Max(sender->table_count, 1));
	while (listed < sender->table_count)
	{
		int			before = listed;

		for (int pass = 0; pass < 2 && listed == before; pass++)
			for (int i = 0; i < sender->table_count; i++)
			{
				SentTable  *table = &sender->tables[i];

				if (table->is_listed || (pass == 0 && refers_to_later_one(sender, table)))
					continue;
				table->is_listed = true;
				sender->order[listed++] = table;
				if (pass == 1)
					break;
			}
	}
}

static uint64
bytes_of_tables(const Sender *sender)
{
	uint64		bytes = 0;

	for (int i = 0; i < sender->table_count; i++)
		bytes += (uint64) DatumGetInt64(DirectFunctionCall1(pg_table_size, ObjectIdGetDatum(sender->tables[i].relid)));
	return bytes;
}

/* ---- the frames ---- */

static void
send_begin(Sender *sender)
{
	StringInfoData frame;

	send_frame_begin(&frame, SNAPSHOT_FRAME_BEGIN);
	pq_sendint32(&frame, (uint32) sender->version);
	pq_sendint64(&frame, sender->cluster_id);
	pq_sendint32(&frame, sender->own_node_id);
	pq_sendint64(&frame, sender->index);
	put_text(&frame, GetDatabaseEncodingName());
	pq_sendint32(&frame, (uint32) sender->table_count);
	pq_sendint64(&frame, bytes_of_tables(sender));
	send_frame(&sender->stream, &frame);
}

static bytea *
read_log_state(const Sender *sender)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			type = INT8OID;
	Datum		value = Int64GetDatum((int64) sender->index);
	InternalIdentity saved;
	bytea	   *state;
	bool		is_null;

	internal_identity_assume(&saved);
	SPI_connect();
	if (SPI_execute_with_args("SELECT quorum.log_state($1)", 1, &type, &value, NULL, true, 1) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "the log state could not be read");
	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &is_null);
	state = (bytea *) MemoryContextAllocHuge(context, VARSIZE_ANY(DatumGetPointer(value)));
	memcpy(state, DatumGetPointer(value), VARSIZE_ANY(DatumGetPointer(value)));
	SPI_finish();
	internal_identity_restore(&saved);
	return state;
}

static void
send_log_state(Sender *sender)
{
	bytea	   *state = read_log_state(sender);
	Size		length = VARSIZE_ANY_EXHDR(state);

	for (Size sent = 0; sent < length;)
	{
		Size		part = Min(length - sent, (Size) BYTES_PER_FRAME);
		StringInfoData frame;

		send_frame_begin(&frame, SNAPSHOT_FRAME_LOG_STATE);
		appendBinaryStringInfo(&frame, VARDATA_ANY(state) + sent, (int) part);
		send_frame(&sender->stream, &frame);
		sent += part;
	}
	pfree(state);
}

/* Of the catalogs as they are now: what the definition says can't change while the table is replicated. */
static char *
describe_table(const char *function, Oid relid)
{
	Oid			type = OIDOID;
	Datum		value = ObjectIdGetDatum(relid);
	char	   *text = internal_query_value(psprintf("SELECT quorum.%s($1::pg_catalog.regclass)", function), 1, &type, &value);

	if (text == NULL)
		report_changed(psprintf("The table with OID %u has no definition.", relid));
	return text;
}

static void
send_table(Sender *sender, const SentTable *table)
{
	StringInfoData frame;

	send_frame_begin(&frame, SNAPSHOT_FRAME_TABLE);
	pq_sendint64(&frame, table->table_id);
	put_text(&frame, get_namespace_name(RelationGetNamespace(table->relation)));
	put_text(&frame, RelationGetRelationName(table->relation));
	pq_sendbyte(&frame, table->state);
	pq_sendint32(&frame, table->origin_node);
	pq_sendint64(&frame, table->activated_index);
	pq_sendint64(&frame, table->row_count);
	put_text(&frame, describe_table("table_shape", table->relid));
	put_text(&frame, describe_table("table_definition", table->relid));
	send_frame(&sender->stream, &frame);
}

/* The next rows of the scan as one frame; returns their number.  A scan that has ended would begin again: it is not to be asked once more. */
static uint32
send_some_rows(FrameStream *stream, Relation relation, TableScanDesc scan, TupleTableSlot *slot, bool *at_end)
{
	MemoryContext old_context = MemoryContextSwitchTo(stream->frame_context);
	StringInfoData frame;
	uint32		count = 0;
	uint32		count_in_order;

	send_frame_begin(&frame, SNAPSHOT_FRAME_ROWS);
	pq_sendint32(&frame, 0);
	while (count < ROWS_PER_FRAME && frame.len < BYTES_PER_FRAME)
	{
		*at_end = !table_scan_getnextslot(scan, ForwardScanDirection, slot);
		if (*at_end)
			break;
		slot_getallattrs(slot);
		writeset_put_row(&frame, relation, slot);
		count++;
	}
	count_in_order = pg_hton32(count);
	memcpy(frame.data + 1, &count_in_order, sizeof(count_in_order));
	if (count > 0)
		send_frame(stream, &frame);
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(stream->frame_context);
	return count;
}

/* Sequences are not under the snapshot: what they say now is at least as far. */
void
send_table_end(FrameStream *stream, Oid relid, uint64 row_count)
{
	StringInfoData frame;
	uint32		count;
	uint32		count_in_order;
	int			place;

	send_frame_begin(&frame, SNAPSHOT_FRAME_TABLE_END);
	pq_sendint64(&frame, row_count);
	place = frame.len;
	pq_sendint32(&frame, 0);
	count = sequences_put_values(&frame, relid);
	count_in_order = pg_hton32(count);
	memcpy(frame.data + place, &count_in_order, sizeof(count_in_order));
	send_frame(stream, &frame);
}

uint64
send_all_rows(FrameStream *stream, Relation relation, Snapshot snapshot)
{
	TableScanDesc scan = table_beginscan(relation, snapshot, 0, NULL);
	TupleTableSlot *slot = table_slot_create(relation, NULL);
	uint64		row_count = 0;
	bool		at_end = false;

	while (!at_end)
		row_count += send_some_rows(stream, relation, scan, slot, &at_end);
	ExecDropSingleTupleTableSlot(slot);
	table_endscan(scan);
	return row_count;
}

/* Version 1: the rows in the same go. */
static void
send_tables_whole(Sender *sender)
{
	for (int i = 0; i < sender->table_count; i++)
	{
		SentTable  *table = sender->order[i];

		send_table_end(&sender->stream, table->relid, send_all_rows(&sender->stream, table->relation, sender->snapshot));
	}
}

static void
send_everything(Sender *sender)
{
	StringInfoData frame;

	list_tables(sender);
	for (int i = 0; i < sender->table_count; i++)
		lock_table(sender, &sender->tables[i]);
	order_tables(sender);
	send_stream_begin(&sender->stream);
	send_begin(sender);
	send_log_state(sender);
	for (int i = 0; i < sender->table_count; i++)
		send_table(sender, sender->order[i]);
	if (sender->version == SNAPSHOT_VERSION_WHOLE)
		send_tables_whole(sender);
	send_frame_begin(&frame, SNAPSHOT_FRAME_END);
	pq_sendint64(&frame, sender->stream.frames);
	send_frame(&sender->stream, &frame);
	send_stream_end();
	for (int i = 0; i < sender->table_count; i++)
		table_close(sender->tables[i].relation, NoLock);
}

/* ---- SQL ---- */

void
send_check_request(NodeIdentity *identity, const char *procedure)
{
	shmem_get_identity(identity);
	if (identity->node_id == 0 || pg_atomic_read_u32(&QuorumShmem->apply_failed) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this node is not fit to give its tables to others"),
				 errdetail("It is no member of a cluster, or stands still.")));
	if (!IsolationUsesXactSnapshot() || !XactReadOnly)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("%s must be called in a transaction with REPEATABLE READ, READ ONLY", procedure)));
	disable_timeout(STATEMENT_TIMEOUT, false);
	pgstat_report_activity(STATE_RUNNING, "sending the replicated tables to another node");
}

static void
check_versions(int32 version, const char *cluster_id, const NodeIdentity *identity)
{
	if (version < SNAPSHOT_VERSION_WHOLE || version > SNAPSHOT_NEWEST_VERSION)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("version %d of the copying of tables is not known here", version),
				 errdetail("This node knows the versions %d to %d.", SNAPSHOT_VERSION_WHOLE, SNAPSHOT_NEWEST_VERSION)));
	if (strcmp(cluster_id, psprintf(UINT64_FORMAT, identity->cluster_id)) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this node is a member of another cluster")));
}

Datum
quorum_send_tables(PG_FUNCTION_ARGS)
{
	NodeIdentity identity;
	Sender		sender = {0};

	for (int i = 0; i < 2; i++)
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("arguments of quorum.send_tables() must not be null")));
	sender.version = PG_GETARG_INT32(0);
	shmem_get_identity(&identity);
	check_versions(sender.version, text_to_cstring(PG_GETARG_TEXT_PP(1)), &identity);
	send_check_request(&identity, "quorum.send_tables()");
	sender.cluster_id = identity.cluster_id;
	sender.own_node_id = identity.node_id;
	sender.snapshot = GetActiveSnapshot();
	sender.index = turn_index_of_position(position_under_snapshot(sender.snapshot));
	send_everything(&sender);
	PG_RETURN_VOID();
}
