/*
 * rows_to_keep.c
 *	  The file that says that a new node's tables hold rows which are to be kept (rows_to_keep.h).
 *
 * Bytes, big endian: u32 magic, u8 version, u64 cluster id, u32 node id, u64 log index, u32 number of tables, u64 id of each, u32 CRC32C of all before it.  It counts only for that
 * cluster and node: what an interrupted join has left is of no use to another one.  After a copy it is of no effect, whether it could be
 * removed or not.
 *
 * Process: see rows_to_keep.h.  Locks: none; the caller of rows_to_keep_write() keeps others of its kind apart.
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "storage/fd.h"

#include "libpq/pqformat.h"
#include "shared/file_bytes.h"
#include "shared/proposal_queue.h"
#include "shared/rows_to_keep.h"

#define ROWS_TO_KEEP_PATH QUORUM_DIRECTORY "/rows_to_keep"
#define ROWS_TO_KEEP_TEMPORARY_PATH QUORUM_DIRECTORY "/rows_to_keep.tmp"
#define ROWS_TO_KEEP_MAGIC 0x51524B50	/* QRKP */
#define ROWS_TO_KEEP_VERSION 1
#define HEAD_BYTES 29
#define CRC_BYTES 4
#define MOST_TABLES 1000000

static void
remove_file(void)
{
	if (access(ROWS_TO_KEEP_PATH, F_OK) == 0)
		(void) durable_unlink(ROWS_TO_KEEP_PATH, LOG);
}

void
rows_to_keep_write(const IdentityFile *identity, const RowsToKeep *rows)
{
	StringInfoData bytes;

	if (rows->table_count == 0)
	{
		remove_file();
		return;
	}
	identity_make_directory();
	initStringInfo(&bytes);
	pq_sendint32(&bytes, ROWS_TO_KEEP_MAGIC);
	pq_sendint8(&bytes, ROWS_TO_KEEP_VERSION);
	pq_sendint64(&bytes, identity->cluster_id);
	pq_sendint32(&bytes, identity->node_id);
	pq_sendint64(&bytes, rows->index);
	pq_sendint32(&bytes, rows->table_count);
	for (uint32 i = 0; i < rows->table_count; i++)
		pq_sendint64(&bytes, rows->table_ids[i]);
	pq_sendint32(&bytes, crc_of(bytes.data, bytes.len));
	file_replace(ROWS_TO_KEEP_PATH, ROWS_TO_KEEP_TEMPORARY_PATH, &bytes);
	pfree(bytes.data);
}

static size_t
file_bytes(uint32 table_count)
{
	return HEAD_BYTES + (size_t) table_count * sizeof(uint64) + CRC_BYTES;
}

static bool
is_whole(const StringInfoData *bytes)
{
	const uint8 *data = (const uint8 *) bytes->data;

	return bytes->len >= file_bytes(0) && get_uint32(data) == ROWS_TO_KEEP_MAGIC && data[4] == ROWS_TO_KEEP_VERSION &&
		get_uint32(data + HEAD_BYTES - 4) <= MOST_TABLES && bytes->len == file_bytes(get_uint32(data + HEAD_BYTES - 4)) &&
		get_uint32(data + bytes->len - CRC_BYTES) == crc_of(data, bytes->len - CRC_BYTES);
}

/* False: there is none.  A longer file than there can be is read up to there, and then found to be damaged. */
static bool
read_file(StringInfo bytes)
{
	int			fd = OpenTransientFile(ROWS_TO_KEEP_PATH, O_RDONLY | PG_BINARY);
	ssize_t		length;

	if (fd < 0 && errno == ENOENT)
		return false;
	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", ROWS_TO_KEEP_PATH)));
	initStringInfo(bytes);
	do
	{
		enlargeStringInfo(bytes, BLCKSZ);
		length = read(fd, bytes->data + bytes->len, BLCKSZ);
		if (length < 0)
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not read file \"%s\": %m", ROWS_TO_KEEP_PATH)));
		bytes->len += length;
	} while (length > 0 && bytes->len <= file_bytes(MOST_TABLES));
	CloseTransientFile(fd);
	if (!is_whole(bytes))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("file \"%s\" cannot be read", ROWS_TO_KEEP_PATH),
				 errdetail("It is damaged, or of a version that this build does not know."),
				 errhint("Call quorum.remove_node() for this node on a member and quorum.leave_cluster(force => true) here, and let it join again.")));
	return true;
}

void
rows_to_keep_publish(const IdentityFile *identity)
{
	StringInfoData bytes;
	const uint8 *data;

	rows_to_keep_forget();
	if (!read_file(&bytes))
		return;
	data = (const uint8 *) bytes.data;
	if (get_uint64(data + 5) == identity->cluster_id && get_uint32(data + 13) == identity->node_id)
		pg_atomic_write_u64(&QuorumShmem->rows_to_keep_index, get_uint64(data + 17));
	pfree(bytes.data);
}

bool
rows_to_keep_has(uint64 table_id)
{
	StringInfoData bytes;
	const uint8 *data;
	bool		found = false;

	if (!rows_to_keep_pending() || !read_file(&bytes))
		return false;
	data = (const uint8 *) bytes.data;
	for (uint32 i = 0; i < get_uint32(data + HEAD_BYTES - 4) && !found; i++)
		found = get_uint64(data + HEAD_BYTES + i * sizeof(uint64)) == table_id;
	pfree(bytes.data);
	return found;
}

void
rows_to_keep_forget(void)
{
	pg_atomic_write_u64(&QuorumShmem->rows_to_keep_index, 0);
}

bool
rows_to_keep_pending(void)
{
	uint64		index = rows_to_keep_index();

	return index != 0 && turn_applied_index() < index;
}

uint64
rows_to_keep_index(void)
{
	return pg_atomic_read_u64(&QuorumShmem->rows_to_keep_index);
}

void
rows_to_keep_done(void)
{
	if (rows_to_keep_index() == 0)
		return;
	rows_to_keep_forget();
	remove_file();
}
