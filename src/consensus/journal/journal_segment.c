/*
 * journal_segment.c
 *	  Segment files on Postgres' fd.c: their names, and how the next one comes to be.
 *
 * Process: the consensus worker.  Nothing here knows a record.
 *
 * The next segment is made under the name `spare`, a piece at a time, so that no single batch has to wait for 16 MB of
 * zeros: zeros over the whole file, then the header, fsync, and a durable rename to the segment's name.  If `spare` is there already, as a
 * recycled segment or because a crash interrupted its making, what it holds is overwritten.
 *
 * Invariants
 *	 1. A file with a segment's name has its header, and at least JOURNAL_SEGMENT_BYTES, durably.
 *	 2. Segments come to be in ascending order and go away in ascending order, each durably before the next, so there is never a gap.
 *
 * Locks: none.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "port/pg_crc32c.h"
#include "storage/fd.h"
#include "utils/wait_event.h"

#include "consensus/journal/journal_segment.h"
#include "shared/chosen_log.h"
#include "shared/log_state_file.h"

#define SPARE_FILE_NAME "spare"
#define ZERO_BLOCK_BYTES (128 * 1024)

static const char zero_block[ZERO_BLOCK_BYTES];

uint32_t
segment_crc32c(const void *bytes, size_t length)
{
	pg_crc32c	crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, bytes, length);
	FIN_CRC32C(crc);
	return crc;
}

int
segment_open_file(const char *path, int flags)
{
	int			fd;

	ReserveExternalFD();
	fd = BasicOpenFile(path, flags | PG_BINARY);
	if (fd < 0)
	{
		int			open_errno = errno;

		ReleaseExternalFD();
		errno = open_errno;
	}
	return fd;
}

void
segment_close_file(int fd)
{
	close(fd);
	ReleaseExternalFD();
}

void
journal_segment_path(const char *directory, uint64_t segment_number, char *path, size_t capacity)
{
	snprintf(path, capacity, "%s/" JOURNAL_SEGMENT_NAME_FORMAT, directory, (unsigned long long) segment_number);
}

static int
compare_numbers(const void *a, const void *b)
{
	uint64		number_a = *(const uint64 *) a;
	uint64		number_b = *(const uint64 *) b;

	return number_a < number_b ? -1 : (number_a > number_b ? 1 : 0);
}

uint64 *
segment_list(const char *directory, int *count)
{
	int			capacity = 64;
	uint64	   *numbers = palloc(capacity * sizeof(uint64));
	DIR		   *dir = AllocateDir(directory);
	struct dirent *entry;

	*count = 0;
	if (dir == NULL && errno == ENOENT)
		return numbers;
	while ((entry = ReadDir(dir, directory)) != NULL)
	{
		unsigned long long number;
		char		name[64];

		if (sscanf(entry->d_name, JOURNAL_SEGMENT_NAME_FORMAT, &number) != 1)
			continue;
		/* scanning is lenient; only the name that we would give is ours */
		snprintf(name, sizeof(name), JOURNAL_SEGMENT_NAME_FORMAT, number);
		if (strcmp(name, entry->d_name) != 0)
			continue;
		if (*count == capacity)
		{
			capacity *= 2;
			numbers = repalloc(numbers, capacity * sizeof(uint64));
		}
		numbers[(*count)++] = number;
	}
	FreeDir(dir);
	qsort(numbers, *count, sizeof(uint64), compare_numbers);
	return numbers;
}

bool
journal_was_there(const char *directory)
{
	char		path[MAXPGPATH];

	snprintf(path, sizeof(path), "%s/%s", directory, LOG_STATE_FILE_NAME);
	return access(path, F_OK) == 0 || chosen_log_was_there(directory);
}

bool
segment_zero(int fd, const char *path, uint64 from, uint64 to, int elevel)
{
	while (from < to)
	{
		size_t		part = Min(to - from, ZERO_BLOCK_BYTES);
		ssize_t		written;

		errno = 0;
		pgstat_report_wait_start(PG_WAIT_EXTENSION);
		written = pg_pwrite(fd, zero_block, part, (off_t) from);
		pgstat_report_wait_end();
		if (written <= 0)
		{
			/* a write that does nothing and gives no reason means that the disk is full */
			if (errno == 0)
				errno = ENOSPC;
			if (errno == EINTR)
				continue;
			ereport(elevel,
					(errcode_for_file_access(),
					 errmsg("could not write file \"%s\": %m", path)));
			return false;
		}
		from += (uint64) written;
	}
	return true;
}

void
segment_fsync(int fd, const char *path)
{
	int			result;

	pgstat_report_wait_start(PG_WAIT_EXTENSION);
	result = pg_fsync(fd);
	pgstat_report_wait_end();
	if (result != 0)
		ereport(data_sync_elevel(ERROR),
				(errcode_for_file_access(),
				 errmsg("could not fsync file \"%s\": %m", path)));
}

uint64
segment_file_bytes(int fd, const char *path)
{
	struct stat status;

	if (fstat(fd, &status) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not stat file \"%s\": %m", path)));
	return (uint64) status.st_size;
}

/* ---- the next segment ---- */

/* What `spare` holds already is of no interest, but it may be longer than an ordinary segment. */
static bool
begin_preparation(SegmentPreparation *preparation, const char *path, int elevel)
{
	int			fd = segment_open_file(path, O_RDWR | O_CREAT);

	if (fd < 0)
	{
		ereport(elevel,
				(errcode_for_file_access(),
				 errmsg("could not create file \"%s\": %m", path)));
		return false;
	}
	if (segment_file_bytes(fd, path) > JOURNAL_SEGMENT_BYTES && ftruncate(fd, JOURNAL_SEGMENT_BYTES) != 0)
	{
		int			truncate_errno = errno;

		segment_close_file(fd);
		errno = truncate_errno;
		ereport(elevel,
				(errcode_for_file_access(),
				 errmsg("could not truncate file \"%s\": %m", path)));
		return false;
	}
	preparation->fd = fd;
	preparation->zeroed_bytes = 0;
	return true;
}

static bool
finish_preparation(SegmentPreparation *preparation, const char *directory, const char *spare_path,
				   const JournalFormat *format, uint64 segment_number, int elevel)
{
	char		path[MAXPGPATH];
	uint8_t		header[JOURNAL_HEADER_BYTES];
	ssize_t		written;

	journal_encode_segment_header(format, segment_number, header);
	errno = 0;
	written = pg_pwrite(preparation->fd, header, sizeof(header), 0);
	if (written != (ssize_t) sizeof(header))
	{
		if (errno == 0)
			errno = ENOSPC;
		ereport(elevel,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", spare_path)));
		return false;
	}
	segment_fsync(preparation->fd, spare_path);

	journal_segment_path(directory, segment_number, path, sizeof(path));
	if (durable_rename(spare_path, path, elevel) != 0)
		return false;
	segment_close_file(preparation->fd);
	preparation->fd = -1;
	return true;
}

bool
segment_prepare(SegmentPreparation *preparation, const char *directory, const JournalFormat *format,
				uint64 segment_number, uint32 budget_bytes, int elevel)
{
	char		spare_path[MAXPGPATH];
	uint32		end;

	/* While the disk is full this is tried again and again; one line in the log is enough. */
	if (elevel < ERROR && preparation->failure_logged)
		elevel = DEBUG1;

	snprintf(spare_path, sizeof(spare_path), "%s/%s", directory, SPARE_FILE_NAME);
	if (preparation->fd < 0 && !begin_preparation(preparation, spare_path, elevel))
		goto failed;

	end = Min(JOURNAL_SEGMENT_BYTES - preparation->zeroed_bytes, budget_bytes) + preparation->zeroed_bytes;
	if (!segment_zero(preparation->fd, spare_path, preparation->zeroed_bytes, end, elevel))
		goto failed;
	/* Start the disk on it now, so that the fsync at the end finds little left to do. */
	pg_flush_data(preparation->fd, preparation->zeroed_bytes, end - preparation->zeroed_bytes);
	preparation->zeroed_bytes = end;
	if (end < JOURNAL_SEGMENT_BYTES)
		return false;

	if (!finish_preparation(preparation, directory, spare_path, format, segment_number, elevel))
		goto failed;
	preparation->failure_logged = false;
	return true;

failed:
	preparation->failure_logged = true;
	return false;
}

void
segment_recycle(SegmentPreparation *preparation, const char *directory, uint64 first, uint64 end)
{
	for (uint64 segment_number = first; segment_number < end; segment_number++)
	{
		char		path[MAXPGPATH];
		char		spare_path[MAXPGPATH];

		journal_segment_path(directory, segment_number, path, sizeof(path));
		snprintf(spare_path, sizeof(spare_path), "%s/%s", directory, SPARE_FILE_NAME);
		if (segment_number == first && preparation->fd < 0)
			durable_rename(path, spare_path, ERROR);
		else
			durable_unlink(path, ERROR);
	}
}
