/*
 * chosen_log.c
 *	  The file `chosen_index`: one fixed-size item per log index, written by the consensus worker, read by everybody.
 *
 * Process: the consensus worker writes; the apply worker, backends (SQL functions) and the consensus worker itself
 * (catching up a peer) read.  This file must never truncate or shorten anything: readers may be in the middle of it.
 *
 * Item i stands at offset (i - 1) * 64, numbers big endian:
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
 *	    a reader already has stays valid, because the journal is only appended to.
 *
 * Locks: none.
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "port/atomics.h"
#include "port/pg_bswap.h"
#include "port/pg_crc32c.h"
#include "storage/fd.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

#include "shared/chosen_log.h"
#include "shared/shmem.h"

#define CHOSEN_LOG_VERSION 2
#define CHOSEN_LOG_ITEM_BYTES 64
#define CHOSEN_LOG_ITEM_CRC_OFFSET 60
#define CHOSEN_LOG_READ_AHEAD_ITEMS 64

/* Writer. */
static File index_file_for_write = -1;
static char index_path_for_write[MAXPGPATH];

/* Reader: the last block of items that was read, and the last segment that a value was read from. */
static File index_file = -1;
static uint64 cached_first_index = 0;
static int	cached_count = 0;
static uint8 cached_items[CHOSEN_LOG_READ_AHEAD_ITEMS * CHOSEN_LOG_ITEM_BYTES];
static File segment_file = -1;
static uint64 segment_file_number = 0;

static void
put_uint32(uint8 *bytes, uint32 number)
{
	number = pg_hton32(number);
	memcpy(bytes, &number, sizeof(number));
}

static void
put_uint64(uint8 *bytes, uint64 number)
{
	number = pg_hton64(number);
	memcpy(bytes, &number, sizeof(number));
}

static uint32
get_uint32(const uint8 *bytes)
{
	uint32		number;

	memcpy(&number, bytes, sizeof(number));
	return pg_ntoh32(number);
}

static uint64
get_uint64(const uint8 *bytes)
{
	uint64		number;

	memcpy(&number, bytes, sizeof(number));
	return pg_ntoh64(number);
}

static uint32
crc_of(const void *bytes, size_t length)
{
	pg_crc32c	crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, bytes, length);
	FIN_CRC32C(crc);
	return crc;
}

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

/* ---- writer ---- */

void
chosen_log_open_for_write(const char *directory)
{
	if (index_file_for_write >= 0)
	{
		FileClose(index_file_for_write);
		index_file_for_write = -1;
	}

	snprintf(index_path_for_write, sizeof(index_path_for_write), "%s/%s", directory, CHOSEN_LOG_FILE_NAME);
	index_file_for_write = PathNameOpenFile(index_path_for_write, O_RDWR | O_CREAT | PG_BINARY);
	if (index_file_for_write < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", index_path_for_write)));
}

void
chosen_log_write(uint64 first_index, const LogItem *items, int count)
{
	uint8		on_stack[CHOSEN_LOG_READ_AHEAD_ITEMS * CHOSEN_LOG_ITEM_BYTES];
	uint8	   *bytes = on_stack;
	int			length = count * CHOSEN_LOG_ITEM_BYTES;
	int			written;

	if (count <= 0)
		return;
	if (index_file_for_write < 0)
		elog(ERROR, "chosen log is not open for writing");

	if (length > (int) sizeof(on_stack))
		bytes = palloc(length);
	for (int i = 0; i < count; i++)
		encode_item(bytes + i * CHOSEN_LOG_ITEM_BYTES, first_index + i, &items[i]);

	written = FileWrite(index_file_for_write, (char *) bytes, length,
						(off_t) (first_index - 1) * CHOSEN_LOG_ITEM_BYTES, PG_WAIT_EXTENSION);
	if (written != length)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", index_path_for_write)));
	if (bytes != on_stack)
		pfree(bytes);
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

static void
open_index_for_read(void)
{
	if (index_file >= 0)
		return;
	index_file = PathNameOpenFile(QUORUM_DIRECTORY "/" CHOSEN_LOG_FILE_NAME, O_RDONLY | PG_BINARY);
	if (index_file < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", QUORUM_DIRECTORY "/" CHOSEN_LOG_FILE_NAME)));
}

/*
 * Reads the items from `index` on into the cache: as many as are published, the one at `index` in any case (the caller
 * knows that it is).  The barrier keeps the read of the file after the read of the published index.
 */
static void
fill_cache(uint64 index)
{
	uint64		published = pg_atomic_read_u64(&QuorumShmem->chosen_index);
	int			wanted = 1;
	int			length;

	pg_read_barrier();
	if (published > index)
		wanted = (int) Min(published - index + 1, CHOSEN_LOG_READ_AHEAD_ITEMS);

	cached_count = 0;
	open_index_for_read();
	length = FileRead(index_file, (char *) cached_items, wanted * CHOSEN_LOG_ITEM_BYTES,
					  (off_t) (index - 1) * CHOSEN_LOG_ITEM_BYTES, PG_WAIT_EXTENSION);
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

void
chosen_log_read_item(uint64 index, LogItem *item)
{
	const char *why;

	if (index == 0)
		elog(ERROR, "log index 0 does not exist");
	forget_earlier_log();

	if (!is_cached(index))
		fill_cache(index);
	if (is_cached(index))
		why = decode_item(cached_items + (index - cached_first_index) * CHOSEN_LOG_ITEM_BYTES, index, item);
	else
		why = "the file ends before it";

	if (why != NULL)
	{
		cached_count = 0;		/* the next attempt looks at the file again */
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("entry " UINT64_FORMAT " of the chosen log cannot be read", index),
				 errdetail("File \"%s\", offset " UINT64_FORMAT ": %s.", FilePathName(index_file),
						   (index - 1) * CHOSEN_LOG_ITEM_BYTES, why),
				 errhint("The file is rebuilt from the journal when the server starts.")));
	}
}

/* Opens the segment that a value stands in, unless it is the one that is open. */
static void
open_segment_for_read(uint64 segment_number)
{
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
	if (segment_file < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", path)));
	segment_file_number = segment_number;
}

static void
report_corrupted_payload(const LogItem *item, const char *why)
{
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
	open_segment_for_read(item->segment_number);
	while (done < item->length)
	{
		int			part = FileRead(segment_file, payload + done, (int) (item->length - done),
									(off_t) item->offset + done, PG_WAIT_EXTENSION);

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
