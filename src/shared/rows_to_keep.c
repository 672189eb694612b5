/*
 * rows_to_keep.c
 *	  The file that says that a new node's tables hold rows which are to be kept (rows_to_keep.h).
 *
 * Bytes, big endian: u32 magic, u8 version, u64 cluster id, u32 node id, u64 log index, u32 CRC32C of all before it.  It counts only for that
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
#define ROWS_TO_KEEP_BYTES 29
#define CRC_OFFSET 25

static void
remove_file(void)
{
	if (access(ROWS_TO_KEEP_PATH, F_OK) == 0)
		(void) durable_unlink(ROWS_TO_KEEP_PATH, LOG);
}

void
rows_to_keep_write(const IdentityFile *identity, uint64 index)
{
	StringInfoData bytes;

	if (index == 0)
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
	pq_sendint64(&bytes, index);
	pq_sendint32(&bytes, crc_of(bytes.data, bytes.len));
	file_replace(ROWS_TO_KEEP_PATH, ROWS_TO_KEEP_TEMPORARY_PATH, &bytes);
	pfree(bytes.data);
}

/* One byte more than there should be, so that a longer file is noticed; -1: there is none. */
static ssize_t
read_file(uint8 *bytes)
{
	int			fd = OpenTransientFile(ROWS_TO_KEEP_PATH, O_RDONLY | PG_BINARY);
	ssize_t		length;

	if (fd < 0 && errno == ENOENT)
		return -1;
	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", ROWS_TO_KEEP_PATH)));
	length = read(fd, bytes, ROWS_TO_KEEP_BYTES + 1);
	if (length < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not read file \"%s\": %m", ROWS_TO_KEEP_PATH)));
	CloseTransientFile(fd);
	return length;
}

void
rows_to_keep_publish(const IdentityFile *identity)
{
	uint8		bytes[ROWS_TO_KEEP_BYTES + 1];
	ssize_t		length = read_file(bytes);
	bool		is_whole = length == ROWS_TO_KEEP_BYTES && get_uint32(bytes) == ROWS_TO_KEEP_MAGIC &&
		get_uint32(bytes + CRC_OFFSET) == crc_of(bytes, CRC_OFFSET);

	if (length >= 0 && (!is_whole || bytes[4] != ROWS_TO_KEEP_VERSION))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("file \"%s\" cannot be read", ROWS_TO_KEEP_PATH),
				 errdetail("It is damaged, or of a version that this build does not know."),
				 errhint("Call quorum.remove_node() for this node on a member and quorum.leave_cluster(force => true) here, and let it join again.")));
	if (length < 0 || get_uint64(bytes + 5) != identity->cluster_id || get_uint32(bytes + 13) != identity->node_id)
		rows_to_keep_forget();
	else
		pg_atomic_write_u64(&QuorumShmem->rows_to_keep_index, get_uint64(bytes + 17));
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
