/*
 * snapshot_receive.c
 *	  What the donor sends, frame by frame, checked.
 *
 * Process: apply worker.  Must never believe a length, a number or a name that came over the connection: everything is read within its
 * frame, whose checksum was right, and what is out of order ends the attempt.
 *
 * Takes no locks.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "port/pg_crc32c.h"

#include "shared/log_state_file.h"
#include "shared/replicated_tables.h"
#include "shared/shmem.h"
#include "snapshot/snapshot_internal.h"

#define MOST_TABLES 1000000
#define MOST_LOG_STATE_BYTES ((Size) 512 * 1024 * 1024)

void
snapshot_malformed(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("malformed copy of the tables from another node"),
			 errdetail_internal("%s", what)));
}

SnapshotFrameKind
snapshot_read_frame(SnapshotReceiver *receiver)
{
	int			length;
	char	   *frame = peer_copy_next(receiver->peer, &length);
	pg_crc32c	crc;
	uint32		sent_crc;

	if (frame == NULL)
		snapshot_malformed("It ends before its last frame.");
	if (length < 1 + SNAPSHOT_CRC_BYTES)
		snapshot_malformed("A frame is too short.");
	INIT_CRC32C(crc);
	COMP_CRC32C(crc, frame, length - SNAPSHOT_CRC_BYTES);
	FIN_CRC32C(crc);
	memcpy(&sent_crc, frame + length - SNAPSHOT_CRC_BYTES, sizeof(sent_crc));
	if (pg_ntoh32(sent_crc) != crc)
		snapshot_malformed("The checksum of a frame is wrong.");

	/* The reader sees the body alone; its texts may be ended for a moment, which the checksum after them makes room for. */
	memset(&receiver->reader, 0, sizeof(receiver->reader));
	receiver->reader.data.data = frame;
	receiver->reader.data.len = length - SNAPSHOT_CRC_BYTES;
	receiver->reader.data.maxlen = length;
	receiver->reader.data.cursor = 1;
	receiver->frames++;
	receiver->bytes += (uint64) length;
	return (SnapshotFrameKind) frame[0];
}

void
snapshot_expect_frame(SnapshotReceiver *receiver, SnapshotFrameKind kind)
{
	SnapshotFrameKind found = snapshot_read_frame(receiver);

	if (found != kind)
		snapshot_malformed(psprintf("A frame of kind %d came where %d was due.", (int) found, (int) kind));
}

void
snapshot_check_frame_end(const SnapshotReceiver *receiver)
{
	if (receiver->reader.data.cursor != receiver->reader.data.len)
		snapshot_malformed("Bytes follow the end of a frame's content.");
}

/* ---- one table's ---- */

void
snapshot_ask(SnapshotReceiver *receiver, const char *call)
{
	peer_copy_begin(receiver->peer, call);
}

SnapshotFrameKind
snapshot_read_answer(SnapshotReceiver *receiver)
{
	SnapshotFrameKind kind;

	do
	{
		CHECK_FOR_INTERRUPTS();
		kind = snapshot_read_frame(receiver);
	} while (kind == SNAPSHOT_FRAME_PROGRESS);
	return kind;
}

void
snapshot_check_answer_end(SnapshotReceiver *receiver)
{
	int			length;

	if (peer_copy_next(receiver->peer, &length) != NULL)
		snapshot_malformed("Frames follow the last one.");
}

/* ---- all tables' ---- */

void
snapshot_receive_begin(SnapshotReceiver *receiver, IncomingSnapshot *incoming)
{
	WriteSetReader *reader = &receiver->reader;
	NodeIdentity identity;
	char	   *encoding;

	shmem_get_identity(&identity);
	snapshot_expect_frame(receiver, SNAPSHOT_FRAME_BEGIN);
	if (writeset_read_u32(reader) != (receiver->in_parts ? SNAPSHOT_VERSION_PARTS : SNAPSHOT_VERSION_WHOLE))
		snapshot_malformed("It has another version than was asked for.");
	if (writeset_read_u64(reader) != identity.cluster_id)
		snapshot_malformed("It is of another cluster.");
	incoming->donor_id = writeset_read_u32(reader);
	incoming->index = writeset_read_u64(reader);
	encoding = writeset_read_text(reader);
	incoming->table_count = writeset_read_u32(reader);
	incoming->bytes_estimated = writeset_read_u64(reader);
	snapshot_check_frame_end(receiver);
	if (incoming->donor_id == identity.node_id)
		snapshot_malformed("It comes from this node itself.");
	if (incoming->index == 0 || incoming->index > PG_INT64_MAX || incoming->table_count > MOST_TABLES)
		snapshot_malformed("A number at its beginning is impossible.");
	if (strcmp(encoding, GetDatabaseEncodingName()) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the database of the donor has the encoding \"%s\", this one \"%s\"", encoding, GetDatabaseEncodingName()),
				 errhint("All nodes of a cluster need the same encoding.")));
}

void
snapshot_receive_log_state(SnapshotReceiver *receiver, StringInfo bytes, SnapshotFrameKind *next)
{
	snapshot_expect_frame(receiver, SNAPSHOT_FRAME_LOG_STATE);
	do
	{
		WriteSetReader *reader = &receiver->reader;

		if ((Size) bytes->len + reader->data.len > MOST_LOG_STATE_BYTES)
			snapshot_malformed("Its log state is too large.");
		appendBinaryStringInfo(bytes, reader->data.data + reader->data.cursor, reader->data.len - reader->data.cursor);
		*next = snapshot_read_frame(receiver);
	} while (*next == SNAPSHOT_FRAME_LOG_STATE);
}

static IncomingTable *
receive_table(SnapshotReceiver *receiver)
{
	WriteSetReader *reader = &receiver->reader;
	IncomingTable *table = palloc0(sizeof(IncomingTable));

	table->table_id = writeset_read_u64(reader);
	table->schema_name = writeset_read_text(reader);
	table->table_name = writeset_read_text(reader);
	table->state = (char) writeset_read_u8(reader);
	table->origin_node = writeset_read_u32(reader);
	table->activated_index = writeset_read_u64(reader);
	table->row_count = writeset_read_u64(reader);
	table->shape = writeset_read_text(reader);
	table->definition = writeset_read_text(reader);
	snapshot_check_frame_end(receiver);
	if (strlen(table->schema_name) >= NAMEDATALEN || strlen(table->table_name) >= NAMEDATALEN ||
		table->table_name[0] == '\0' || table->table_id == 0)
		snapshot_malformed("A table has an impossible number or name.");
	if (table->state != REPLICATED_TABLE_ACTIVE && table->state != REPLICATED_TABLE_COPYING)
		snapshot_malformed("A table is in an unknown state.");
	return table;
}

List *
snapshot_receive_tables(SnapshotReceiver *receiver, const IncomingSnapshot *incoming, SnapshotFrameKind next)
{
	List	   *tables = NIL;

	for (uint32 i = 0; i < incoming->table_count; i++)
	{
		if (i > 0)
			next = snapshot_read_frame(receiver);
		if (next != SNAPSHOT_FRAME_TABLE)
			snapshot_malformed("It has fewer tables than it says.");
		tables = lappend(tables, receive_table(receiver));
	}
	if (incoming->table_count == 0 && next != SNAPSHOT_FRAME_END)
		snapshot_malformed("It has tables, and says that it has none.");
	return tables;
}
