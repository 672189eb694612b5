/*
 * log_state_file.c
 *	  Head, checksums and files of the log state.  What the body says is consensus/log_state.c's.
 *
 * Process: compactor, consensus worker, backends (quorum.log_state(), copying of tables).  A file must never be seen half written under its
 * name: it is written under another, fsynced, and renamed durably.
 *
 *	 head (56 bytes, big endian)
 *	   0  "pgqstate"
 *	   8  u32 format version, 1
 *	  12  u32 node id of who computed it
 *	  16  u64 cluster id
 *	  24  u64 index
 *	  32  u64 last entry up to there that takes effect
 *	  40  u64 length of the body
 *	  48  u32 zero
 *	  52  u32 CRC32C of the 52 bytes before
 *	 the body
 *	 u32 CRC32C of head and body
 *
 * Locks: none.  Who replaces a file is kept apart from others by QuorumShmem->log_state_lock.
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "storage/fd.h"
#include "utils/wait_event.h"

#include "shared/file_bytes.h"
#include "shared/log_state_file.h"

#define LOG_STATE_MAGIC "pgqstate"
#define LOG_STATE_MAGIC_BYTES 8
#define HEAD_CRC_OFFSET 52
#define INCOMING_TEMPORARY_PATH LOG_STATE_INCOMING_PATH ".tmp"

/* ---- head ---- */

void
log_state_encode_head(const LogStateHead *head, uint8 bytes[LOG_STATE_HEAD_BYTES])
{
	memset(bytes, 0, LOG_STATE_HEAD_BYTES);
	memcpy(bytes, LOG_STATE_MAGIC, LOG_STATE_MAGIC_BYTES);
	put_uint32(bytes + 8, LOG_STATE_VERSION);
	put_uint32(bytes + 12, head->node_id);
	put_uint64(bytes + 16, head->cluster_id);
	put_uint64(bytes + 24, head->index);
	put_uint64(bytes + 32, head->last_applied);
	put_uint64(bytes + 40, head->body_bytes);
	put_uint32(bytes + HEAD_CRC_OFFSET, crc_of(bytes, HEAD_CRC_OFFSET));
}

const char *
log_state_decode_head(const uint8 bytes[LOG_STATE_HEAD_BYTES], LogStateHead *head)
{
	if (memcmp(bytes, LOG_STATE_MAGIC, LOG_STATE_MAGIC_BYTES) != 0)
		return "it does not begin like a log state";
	/* before the checksum, because another version may have it elsewhere */
	if (get_uint32(bytes + 8) != LOG_STATE_VERSION)
		return "it has a format version that this build does not know";
	if (get_uint32(bytes + HEAD_CRC_OFFSET) != crc_of(bytes, HEAD_CRC_OFFSET) || get_uint32(bytes + 48) != 0)
		return "the checksum of its head is wrong";
	head->node_id = get_uint32(bytes + 12);
	head->cluster_id = get_uint64(bytes + 16);
	head->index = get_uint64(bytes + 24);
	head->last_applied = get_uint64(bytes + 32);
	head->body_bytes = get_uint64(bytes + 40);
	if (head->node_id == 0 || head->index == 0 || head->last_applied > head->index || head->body_bytes > PG_INT64_MAX)
		return "a number in its head is impossible";
	return NULL;
}

void
log_state_put_checksum(char *bytes, Size length)
{
	put_uint32((uint8 *) bytes + length - LOG_STATE_TAIL_BYTES, crc_of(bytes, length - LOG_STATE_TAIL_BYTES));
}

/* ---- writing ---- */

void
log_state_file_create(LogStateFile *file, const char *path)
{
	file->path = path;
	INIT_CRC32C(file->crc);
	file->fd = OpenTransientFile(path, O_WRONLY | O_CREAT | O_TRUNC | PG_BINARY);
	if (file->fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create file \"%s\": %m", path)));
}

static void
write_all(LogStateFile *file, const char *bytes, Size length)
{
	while (length > 0)
	{
		ssize_t		written;

		errno = 0;
		pgstat_report_wait_start(PG_WAIT_EXTENSION);
		written = write(file->fd, bytes, length);
		pgstat_report_wait_end();
		if (written < 0 && errno == EINTR)
			continue;
		if (written <= 0)
		{
			/* a write that does nothing and gives no reason means that the disk is full */
			int			write_errno = errno != 0 ? errno : ENOSPC;

			log_state_file_close(file);
			(void) unlink(file->path);
			errno = write_errno;
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not write file \"%s\": %m", file->path)));
		}
		bytes += written;
		length -= (Size) written;
	}
}

void
log_state_file_append(LogStateFile *file, const void *bytes, Size length)
{
	COMP_CRC32C(file->crc, bytes, length);
	write_all(file, bytes, length);
}

void
log_state_file_finish(LogStateFile *file)
{
	uint8		tail[LOG_STATE_TAIL_BYTES];
	pg_crc32c	crc = file->crc;

	FIN_CRC32C(crc);
	put_uint32(tail, crc);
	write_all(file, (char *) tail, sizeof(tail));
	pgstat_report_wait_start(PG_WAIT_EXTENSION);
	if (pg_fsync(file->fd) != 0)
		ereport(data_sync_elevel(ERROR),
				(errcode_for_file_access(),
				 errmsg("could not fsync file \"%s\": %m", file->path)));
	pgstat_report_wait_end();
	log_state_file_close(file);
}

/* ---- reading ---- */

bool
log_state_file_open(LogStateFile *file, const char *path)
{
	file->path = path;
	INIT_CRC32C(file->crc);
	file->fd = OpenTransientFile(path, O_RDONLY | PG_BINARY);
	if (file->fd < 0 && errno == ENOENT)
		return false;
	if (file->fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", path)));
	return true;
}

static Size
read_up_to(LogStateFile *file, char *bytes, Size length)
{
	Size		done = 0;

	while (done < length)
	{
		ssize_t		part;

		pgstat_report_wait_start(PG_WAIT_EXTENSION);
		part = read(file->fd, bytes + done, length - done);
		pgstat_report_wait_end();
		if (part < 0 && errno == EINTR)
			continue;
		if (part < 0)
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not read file \"%s\": %m", file->path)));
		if (part == 0)
			break;
		done += (Size) part;
	}
	return done;
}

bool
log_state_file_read(LogStateFile *file, void *bytes, Size length)
{
	if (read_up_to(file, bytes, length) != length)
		return false;
	COMP_CRC32C(file->crc, bytes, length);
	return true;
}

bool
log_state_file_ends_here(LogStateFile *file)
{
	char		tail[LOG_STATE_TAIL_BYTES + 1];
	pg_crc32c	crc = file->crc;

	FIN_CRC32C(crc);
	return read_up_to(file, tail, sizeof(tail)) == LOG_STATE_TAIL_BYTES && get_uint32((uint8 *) tail) == crc;
}

void
log_state_file_close(LogStateFile *file)
{
	if (file->fd >= 0)
		CloseTransientFile(file->fd);
	file->fd = -1;
}

/* ---- what comes from another node ---- */

void
log_state_check_bytes(const char *bytes, Size length, uint64 cluster_id, LogStateHead *head)
{
	const char *why;

	if (length < LOG_STATE_HEAD_BYTES + LOG_STATE_TAIL_BYTES)
		why = "it is too short";
	else
		why = log_state_decode_head((const uint8 *) bytes, head);
	if (why == NULL && head->body_bytes != length - LOG_STATE_HEAD_BYTES - LOG_STATE_TAIL_BYTES)
		why = "it has another length than its head says";
	if (why == NULL && get_uint32((const uint8 *) bytes + length - LOG_STATE_TAIL_BYTES) != crc_of(bytes, length - LOG_STATE_TAIL_BYTES))
		why = "its checksum is wrong";
	if (why == NULL && cluster_id != 0 && head->cluster_id != cluster_id)
		why = "it belongs to another cluster";
	if (why != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("the log state of another node cannot be taken"),
				 errdetail("Of its %zu bytes: %s.", length, why)));
}

void
log_state_write_incoming(const char *bytes, Size length)
{
	NodeIdentity identity;
	LogStateHead head;
	LogStateFile file;

	shmem_get_identity(&identity);
	log_state_check_bytes(bytes, length, identity.cluster_id, &head);
	if (head.node_id == identity.node_id)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("the log state of another node cannot be taken"),
				 errdetail("It is this node's own.")));
	log_state_file_create(&file, INCOMING_TEMPORARY_PATH);
	/* the checksum at the end of the bytes is the one that is written */
	log_state_file_append(&file, bytes, length - LOG_STATE_TAIL_BYTES);
	log_state_file_finish(&file);
	(void) durable_rename(INCOMING_TEMPORARY_PATH, LOG_STATE_INCOMING_PATH, ERROR);
}

bool
log_state_incoming_exists(void)
{
	return access(LOG_STATE_INCOMING_PATH, F_OK) == 0;
}

void
log_state_remove_incoming(void)
{
	if (log_state_incoming_exists())
		(void) durable_unlink(LOG_STATE_INCOMING_PATH, ERROR);
}
