/*
 * chosen_log.c
 *	  The files `chosen_index_*`: one fixed-size item per log index, written by the consensus worker, read by everybody.
 *
 * Process: the consensus worker writes and removes; the apply worker, the compactor, backends (SQL functions) and the consensus worker itself
 * (catching up a peer) read.  A file must never be truncated or shortened: readers may be in the middle of it.  It goes as a whole.
 *
 * A file holds CHOSEN_LOG_FILE_ITEMS items and is named by the first index in it.  Item i stands in its file at offset (i - 1) mod
 * CHOSEN_LOG_FILE_ITEMS, times 64; numbers big endian:
 *
 *	   0  u64  index, i itself
 *	   8  u8   format version, 2
 *	   9  u8   verdict
 *	  10  u8   kind of the value (PaxosValueKind)
 *	  11  u8   why it was rejected (CertifierReason)
 *	  12  u32  origin
 *	  16  u64  incarnation
 *	  24  u64  sequence
 *	  32  u64  conflict index
 *	  40  u64  segment number of the value
 *	  48  u32  offset of the value's bytes in that segment
 *	  52  u32  length of the value
 *	  56  u32  CRC32C of the value
 *	  60  u32  CRC32C of the 60 bytes before
 *
 * Invariants
 *	 1. Items up to shared memory's chosen_index are whole: the writer publishes the index after its pwrite.
 *	 2. A reader keeps no item that was not published when it read it, so it never holds half of one, nor one that an
 *	    earlier life of the file left behind.
 *	 3. A restarted worker writes items with the same verdict and value.  The place may be another copy of the same value; what
 *	    a reader already has stays valid, because the journal is only appended to, until the index is trimmed.
 *	 4. first_held_index is raised before anything below it is removed or overwritten.  So whoever fails to read an item or a value, and finds
 *	    its index still held, has found damage.
 *
 * Locks: none.
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "port/atomics.h"
#include "storage/fd.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

#include "shared/chosen_log.h"
#include "shared/file_bytes.h"
#include "shared/shmem.h"

#define CHOSEN_LOG_VERSION 2
#define CHOSEN_LOG_ITEM_BYTES 64
#define CHOSEN_LOG_ITEM_CRC_OFFSET 60
#define CHOSEN_LOG_READ_AHEAD_ITEMS 64

/* Writer: the file that was written last. */
static char directory_for_write[MAXPGPATH];
static File index_file_for_write = -1;
static uint64 index_file_for_write_first = 0;

/* Reader: the last block of items that was read, the file that it is from, and the last segment that a value was read from. */
static File index_file = -1;
static uint64 index_file_first = 0;
static uint64 cached_first_index = 0;
static int	cached_count = 0;
static uint8 cached_items[CHOSEN_LOG_READ_AHEAD_ITEMS * CHOSEN_LOG_ITEM_BYTES];
static File segment_file = -1;
static uint64 segment_file_number = 0;

static void
encode_item(uint8 *bytes, uint64 index, const LogItem *item)
{
	memset(bytes, 0, CHOSEN_LOG_ITEM_BYTES);
	put_uint64(bytes, index);
	bytes[8] = CHOSEN_LOG_VERSION;
	bytes[9] = (uint8) item->verdict;
	bytes[10] = item->value_kind;
	bytes[11] = item->reason;
	put_uint32(bytes + 12, item->origin);
	put_uint64(bytes + 16, item->incarnation);
	put_uint64(bytes + 24, item->sequence);
	put_uint64(bytes + 32, item->conflict_index);
	put_uint64(bytes + 40, item->segment_number);
	put_uint32(bytes + 48, item->offset);
	put_uint32(bytes + 52, item->length);
	put_uint32(bytes + 56, item->payload_crc);
	put_uint32(bytes + CHOSEN_LOG_ITEM_CRC_OFFSET, crc_of(bytes, CHOSEN_LOG_ITEM_CRC_OFFSET));
}

/* Returns why the item cannot be taken, or NULL. */
static const char *
decode_item(const uint8 *bytes, uint64 index, LogItem *item)
{
	if (get_uint32(bytes + CHOSEN_LOG_ITEM_CRC_OFFSET) != crc_of(bytes, CHOSEN_LOG_ITEM_CRC_OFFSET))
		return "its checksum is wrong";
	if (bytes[8] != CHOSEN_LOG_VERSION)
		return "its format version is unknown";
	if (get_uint64(bytes) != index)
		return "it belongs to another index";
	if (bytes[9] <= LOG_VERDICT_NONE || bytes[9] > LOG_VERDICT_CONFIG)
		return "its verdict is unknown";

	item->index = index;
	item->verdict = (LogVerdict) bytes[9];
	item->value_kind = bytes[10];
	item->reason = bytes[11];
	item->origin = get_uint32(bytes + 12);
	item->incarnation = get_uint64(bytes + 16);
	item->sequence = get_uint64(bytes + 24);
	item->conflict_index = get_uint64(bytes + 32);
	item->segment_number = get_uint64(bytes + 40);
	item->offset = get_uint32(bytes + 48);
	item->length = get_uint32(bytes + 52);
	item->payload_crc = get_uint32(bytes + 56);
	return NULL;
}

/* ---- files ---- */

/* The first index of the file that holds an index. */
static uint64
file_of(uint64 index)
{
	return (index - 1) / CHOSEN_LOG_FILE_ITEMS * CHOSEN_LOG_FILE_ITEMS + 1;
}

static off_t
offset_of(uint64 index)
{
	return (off_t) ((index - 1) % CHOSEN_LOG_FILE_ITEMS) * CHOSEN_LOG_ITEM_BYTES;
}

static void
make_path(const char *directory, uint64 first_index, char *path)
{
	snprintf(path, MAXPGPATH, "%s/" CHOSEN_LOG_FILE_NAME_FORMAT, directory, (unsigned long long) first_index);
}

bool
chosen_log_was_there(const char *directory)
{
	DIR		   *dir = AllocateDir(directory);
	struct dirent *entry;
	bool		found = false;

	if (dir == NULL && errno == ENOENT)
		return false;
	while (!found && (entry = ReadDir(dir, directory)) != NULL)
		found = strncmp(entry->d_name, CHOSEN_LOG_FILE_PREFIX, strlen(CHOSEN_LOG_FILE_PREFIX)) == 0;
	FreeDir(dir);
	return found;
}

/* ---- writer ---- */

static void
close_for_write(void)
{
	if (index_file_for_write >= 0)
		FileClose(index_file_for_write);
	index_file_for_write = -1;
}

void
chosen_log_open_for_write(const char *directory)
{
	char		path[MAXPGPATH];

	close_for_write();
	strlcpy(directory_for_write, directory, sizeof(directory_for_write));
	/* An earlier build kept all items in one file. */
	snprintf(path, sizeof(path), "%s/%s", directory, CHOSEN_LOG_FILE_PREFIX);
	(void) unlink(path);
}

static void
open_for_write(uint64 first_index)
{
	char		path[MAXPGPATH];

	if (index_file_for_write >= 0 && index_file_for_write_first == first_index)
		return;
	close_for_write();
	if (directory_for_write[0] == '\0')
		elog(ERROR, "chosen log is not open for writing");
	make_path(directory_for_write, first_index, path);
	index_file_for_write = PathNameOpenFile(path, O_RDWR | O_CREAT | PG_BINARY);
	if (index_file_for_write < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", path)));
	index_file_for_write_first = first_index;
}

/* Items of one file. */
static void
write_items(uint64 first_index, const LogItem *items, int count)
{
	uint8		on_stack[CHOSEN_LOG_READ_AHEAD_ITEMS * CHOSEN_LOG_ITEM_BYTES];
	uint8	   *bytes = on_stack;
	int			length = count * CHOSEN_LOG_ITEM_BYTES;

	open_for_write(file_of(first_index));
	if (length > (int) sizeof(on_stack))
		bytes = palloc(length);
	for (int i = 0; i < count; i++)
		encode_item(bytes + i * CHOSEN_LOG_ITEM_BYTES, first_index + i, &items[i]);
	if (FileWrite(index_file_for_write, (char *) bytes, length, offset_of(first_index), PG_WAIT_EXTENSION) != length)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", FilePathName(index_file_for_write))));
	if (bytes != on_stack)
		pfree(bytes);
}

void
chosen_log_write(uint64 first_index, const LogItem *items, int count)
{
	while (count > 0)
	{
		int			part = (int) Min((uint64) count, file_of(first_index) + CHOSEN_LOG_FILE_ITEMS - first_index);

		write_items(first_index, items, part);
		first_index += part;
		items += part;
		count -= part;
	}
}

void
chosen_log_remove_before(uint64 first_held_index)
{
	DIR		   *dir = AllocateDir(directory_for_write);
	struct dirent *entry;

	while ((entry = ReadDir(dir, directory_for_write)) != NULL)
	{
		unsigned long long first_index;
		char		path[MAXPGPATH];

		if (sscanf(entry->d_name, CHOSEN_LOG_FILE_NAME_FORMAT, &first_index) != 1 ||
			first_index + CHOSEN_LOG_FILE_ITEMS > first_held_index)
			continue;
		make_path(directory_for_write, first_index, path);
		/* Should its name come back after a power cut, the next trimming finds it. */
		if (unlink(path) != 0 && errno != ENOENT)
			ereport(LOG,
					(errcode_for_file_access(),
					 errmsg("could not remove file \"%s\": %m", path)));
	}
	FreeDir(dir);
}

void
chosen_log_sync(uint64 first_index, uint64 last_index)
{
	for (uint64 first = file_of(first_index); first <= last_index; first += CHOSEN_LOG_FILE_ITEMS)
	{
		char		path[MAXPGPATH];

		make_path(QUORUM_DIRECTORY, first, path);
		fsync_fname(path, false);
	}
	fsync_fname(QUORUM_DIRECTORY, true);
}

/* ---- readers ---- */

/* What was opened or read before this instance left a cluster, or joined one, is of another log. */
static void
forget_earlier_log(void)
{
	static uint64 generation = 0;
	uint64		current = pg_atomic_read_u64(&QuorumShmem->identity_generation);

	if (generation == current)
		return;
	generation = current;
	cached_count = 0;
	if (index_file >= 0)
		FileClose(index_file);
	if (segment_file >= 0)
		FileClose(segment_file);
	index_file = segment_file = -1;
}

uint64
chosen_log_first_held(void)
{
	return Max(pg_atomic_read_u64(&QuorumShmem->first_held_index), 1);
}

/* Read after the failure of whatever is to be explained by it. */
static bool
is_trimmed(uint64 index)
{
	pg_memory_barrier();
	return index < chosen_log_first_held();
}

static void
report_trimmed(uint64 index)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("log index " UINT64_FORMAT " is no longer held by this node", index),
			 errdetail("Its log begins at index " UINT64_FORMAT ".", chosen_log_first_held()),
			 errhint("How much of the log is kept depends on quorum.log_keep_size, quorum.log_retention_size and quorum.log_retention_age.")));
}

/* False: there is no such file. */
static bool
open_index_for_read(uint64 first_index)
{
	char		path[MAXPGPATH];

	if (index_file >= 0 && index_file_first == first_index)
		return true;
	if (index_file >= 0)
		FileClose(index_file);
	make_path(QUORUM_DIRECTORY, first_index, path);
	index_file = PathNameOpenFile(path, O_RDONLY | PG_BINARY);
	if (index_file < 0 && errno == ENOENT)
		return false;
	if (index_file < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", path)));
	index_file_first = first_index;
	return true;
}

/*
 * Reads the items from `index` on into the cache: as many of its file as are published, the one at `index` in any case (the caller
 * knows that it is).  The barrier keeps the read of the file after the read of the published index.
 */
static void
fill_cache(uint64 index)
{
	uint64		published = pg_atomic_read_u64(&QuorumShmem->chosen_index);
	uint64		left_in_file = file_of(index) + CHOSEN_LOG_FILE_ITEMS - index;
	int			wanted = 1;
	int			length;

	pg_read_barrier();
	if (published > index)
		wanted = (int) Min(Min(published - index + 1, left_in_file), CHOSEN_LOG_READ_AHEAD_ITEMS);

	cached_count = 0;
	if (!open_index_for_read(file_of(index)))
		return;
	length = FileRead(index_file, (char *) cached_items, wanted * CHOSEN_LOG_ITEM_BYTES, offset_of(index), PG_WAIT_EXTENSION);
	if (length < 0 && errno == ENOENT && is_trimmed(index))
		return;					/* fd.c had closed it meanwhile */
	if (length < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not read file \"%s\": %m", FilePathName(index_file))));
	cached_first_index = index;
	cached_count = length / CHOSEN_LOG_ITEM_BYTES;
}

static bool
is_cached(uint64 index)
{
	return index >= cached_first_index && index - cached_first_index < (uint64) cached_count;
}

static const char *
read_item(uint64 index, LogItem *item)
{
	if (!is_cached(index))
		fill_cache(index);
	if (!is_cached(index))
		return index_file < 0 ? "the file does not exist" : "the file ends before it";
	return decode_item(cached_items + (index - cached_first_index) * CHOSEN_LOG_ITEM_BYTES, index, item);
}

bool
chosen_log_try_read_item(uint64 index, LogItem *item)
{
	const char *why;
	char		path[MAXPGPATH];

	if (index == 0)
		elog(ERROR, "log index 0 does not exist");
	forget_earlier_log();
	if (is_trimmed(index))
		return false;
	why = read_item(index, item);
	if (why == NULL)
		return true;

	cached_count = 0;			/* the next attempt looks at the file again */
	if (is_trimmed(index))
		return false;
	make_path(QUORUM_DIRECTORY, file_of(index), path);
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("entry " UINT64_FORMAT " of the chosen log cannot be read", index),
			 errdetail("File \"%s\", offset " UINT64_FORMAT ": %s.", path, (uint64) offset_of(index), why),
			 errhint("What is behind the index of the file log_state is rebuilt from the journal when the server starts.")));
}

void
chosen_log_read_item(uint64 index, LogItem *item)
{
	if (!chosen_log_try_read_item(index, item))
		report_trimmed(index);
}

/* Opens the segment that a value stands in, unless it is the one that is open. */
static void
open_segment_for_read(const LogItem *item)
{
	uint64		segment_number = item->segment_number;
	char		path[MAXPGPATH];

	if (segment_file >= 0 && segment_file_number == segment_number)
		return;
	if (segment_file >= 0)
	{
		FileClose(segment_file);
		segment_file = -1;
	}
	snprintf(path, sizeof(path), QUORUM_DIRECTORY "/" JOURNAL_SEGMENT_NAME_FORMAT, (unsigned long long) segment_number);
	segment_file = PathNameOpenFile(path, O_RDONLY | PG_BINARY);
	if (segment_file < 0 && errno == ENOENT && is_trimmed(item->index))
		report_trimmed(item->index);
	if (segment_file < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", path)));
	segment_file_number = segment_number;
}

static void
report_corrupted_payload(const LogItem *item, const char *why)
{
	if (is_trimmed(item->index))
		report_trimmed(item->index);	/* the segment became another one while it was read */
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("a value in the journal cannot be read"),
			 errdetail("File \"%s\", offset %u, length %u: %s.", FilePathName(segment_file),
					   item->offset, item->length, why),
			 errhint("Rejoin this node as a new one.")));
}

char *
chosen_log_read_payload(const LogItem *item)
{
	char	   *payload;
	uint32		done = 0;

	if (item->length >= MaxAllocSize)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("a value in the chosen log has the impossible length %u", item->length)));

	payload = palloc((Size) item->length + 1);
	payload[item->length] = '\0';	/* for the eye of a debugger; not part of the value */

	/* A value without bytes has no place either. */
	if (item->length == 0)
		return payload;

	forget_earlier_log();
	open_segment_for_read(item);
	while (done < item->length)
	{
		int			part = FileRead(segment_file, payload + done, (int) (item->length - done),
									(off_t) item->offset + done, PG_WAIT_EXTENSION);

		if (part < 0 && errno == ENOENT && is_trimmed(item->index))
			report_trimmed(item->index);
		if (part < 0)
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not read file \"%s\": %m", FilePathName(segment_file))));
		if (part == 0)
			report_corrupted_payload(item, "the file ends before it");
		done += (uint32) part;
	}
	if (crc_of(payload, item->length) != item->payload_crc)
		report_corrupted_payload(item, "its checksum is wrong");
	return payload;
}
