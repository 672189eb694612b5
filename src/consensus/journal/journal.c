/*
 * journal.c
 *	  Format of the journal's segments and records, and recovery from them.
 *
 * Pure: no Postgres, no I/O, no allocation, no globals.  Process: whoever calls it; in the server the consensus worker alone.
 *
 * A segment is a header page and records behind each other, each at a multiple of 8 bytes; zeros follow the last.  Numbers
 * are big endian.
 *
 *	 segment header (4096 bytes)			record (72 bytes, the value, zeros up to a multiple of 8)
 *	   0  "pgquorum"						  0  "QREC"
 *	   8  u32 format version				  4  u8  type
 *	  12  u32 node id						  5  u8  kind of value
 *	  16  u64 cluster id					  6  u16 zero
 *	  24  u64 journal incarnation			  8  u32 length of the value
 *	  32  u64 segment number				 12  u32 CRC32C of the value
 *	  40  u64 zero (room for the device)	 16  u64 slot
 *	  48  u64 zero (room for the inode)		 24  u64 ballot round
 *	  56  u32 zero							 32  u32 ballot node id
 *	  60  u32 CRC32C of the page, with		 36  u32 origin
 *			  zero for this field			 40  u64 incarnation
 *	  64  zeros								 48  u64 sequence
 *											 56  u64 durable position: segment number
 *											 64  u32 durable position: offset
 *											 68  u32 CRC32C of journal incarnation, segment number, offset of
 *													 the record, and the 68 bytes before
 *
 * The header's checksum binds a record to its place, so what a recycled segment held before, or a copy of a record inside
 * a value, is never taken for a record; and through the value's checksum it binds the value too.
 *
 * What a crash can do: of the sectors that were written after the last completed sync, any subset is lost.  So:
 *
 * Invariants
 *	 1. A record's durable position is at or before the record itself, and was synced before the record was made.
 *	 2. Let X be the first position where no valid record stands.  If any valid record header behind X, in this or a later segment,
 *		has a durable position beyond X, then what stood at X had been synced: the journal is corrupt and is refused.  Otherwise nothing
 *		behind X was ever known to be durable, thus never promised to anybody: a torn tail, which the host cuts.
 *	 3. The tail is cut durably before anything is appended, so bytes behind X that were torn once never come back.
 *	 4. A segment that another follows ends with a SEGMENT_END record, written after the other one is durable; so a missing segment is noticed.
 *	 5. A damaged record of the last batch before the end looks like a torn tail.  Each start seals what is there with a START
 *		record, and each batch the ones before it.
 */
#include <string.h>

#include "consensus/journal/journal_format.h"

#define SEGMENT_MAGIC "pgquorum"
#define SEGMENT_MAGIC_BYTES 8
#define SEGMENT_CRC_OFFSET 60
#define SEGMENT_CHECKED_BYTES 64
#define RECORD_MAGIC "QREC"
#define RECORD_MAGIC_BYTES 4
#define RECORD_CRC_OFFSET 68
#define CRC_SEED_BYTES 20

static void
put_uint32(uint8_t *bytes, uint32_t number)
{
	for (int i = 0; i < 4; i++)
		bytes[i] = (uint8_t) (number >> (24 - 8 * i));
}

static void
put_uint64(uint8_t *bytes, uint64_t number)
{
	for (int i = 0; i < 8; i++)
		bytes[i] = (uint8_t) (number >> (56 - 8 * i));
}

static uint32_t
get_uint32(const uint8_t *bytes)
{
	return ((uint32_t) bytes[0] << 24) | ((uint32_t) bytes[1] << 16) | ((uint32_t) bytes[2] << 8) | bytes[3];
}

static uint64_t
get_uint64(const uint8_t *bytes)
{
	return ((uint64_t) get_uint32(bytes) << 32) | get_uint32(bytes + 4);
}

static bool
is_zero(const uint8_t *bytes, size_t length)
{
	for (size_t i = 0; i < length; i++)
	{
		if (bytes[i] != 0)
			return false;
	}
	return true;
}

int
journal_position_compare(JournalPosition a, JournalPosition b)
{
	if (a.segment_number != b.segment_number)
		return a.segment_number < b.segment_number ? -1 : 1;
	if (a.offset != b.offset)
		return a.offset < b.offset ? -1 : 1;
	return 0;
}

/* ---- segment header ---- */

static uint32_t
segment_header_crc(JournalCrcFunction crc, const uint8_t *block)
{
	uint8_t		checked[SEGMENT_CHECKED_BYTES];

	/* the rest of the page is zero, and is compared with that */
	memcpy(checked, block, sizeof(checked));
	memset(checked + SEGMENT_CRC_OFFSET, 0, 4);
	return crc(checked, sizeof(checked));
}

void
journal_encode_segment_header(const JournalFormat *format, uint64_t segment_number, uint8_t block[JOURNAL_HEADER_BYTES])
{
	memset(block, 0, JOURNAL_HEADER_BYTES);
	memcpy(block, SEGMENT_MAGIC, SEGMENT_MAGIC_BYTES);
	put_uint32(block + 8, JOURNAL_FORMAT_VERSION);
	put_uint32(block + 12, format->identity.node_id);
	put_uint64(block + 16, format->identity.cluster_id);
	put_uint64(block + 24, format->identity.journal_incarnation);
	put_uint64(block + 32, segment_number);
	put_uint32(block + SEGMENT_CRC_OFFSET, segment_header_crc(format->crc, block));
}

const char *
journal_decode_segment_header(JournalCrcFunction crc, const uint8_t block[JOURNAL_HEADER_BYTES], uint64_t segment_number,
							  JournalIdentity *identity)
{
	if (memcmp(block, SEGMENT_MAGIC, SEGMENT_MAGIC_BYTES) != 0)
		return "the file does not begin like a journal segment";
	/* before the checksum, because another version may have it elsewhere */
	if (get_uint32(block + 8) != JOURNAL_FORMAT_VERSION)
		return "the segment has a format version that this build does not know";
	if (get_uint32(block + SEGMENT_CRC_OFFSET) != segment_header_crc(crc, block))
		return "the checksum of the segment's header is wrong";
	if (!is_zero(block + 40, SEGMENT_CRC_OFFSET - 40) ||
		!is_zero(block + SEGMENT_CHECKED_BYTES, JOURNAL_HEADER_BYTES - SEGMENT_CHECKED_BYTES))
		return "the segment's header has bytes that should be zero";
	if (get_uint64(block + 32) != segment_number)
		return "the segment's header has another segment number than the file's name";

	identity->node_id = get_uint32(block + 12);
	identity->cluster_id = get_uint64(block + 16);
	identity->journal_incarnation = get_uint64(block + 24);
	return NULL;
}

/* ---- records ---- */

size_t
journal_record_bytes(uint32_t value_length)
{
	size_t		length = (size_t) JOURNAL_RECORD_HEADER_BYTES + value_length;

	return (length + JOURNAL_RECORD_ALIGNMENT - 1) / JOURNAL_RECORD_ALIGNMENT * JOURNAL_RECORD_ALIGNMENT;
}

bool
journal_record_fits(uint32_t offset, size_t record_bytes, uint32_t segment_bytes)
{
	return (uint64_t) offset + record_bytes + journal_record_bytes(0) <= segment_bytes;
}

uint32_t
journal_segment_bytes_for(size_t record_bytes)
{
	size_t		needed = JOURNAL_HEADER_BYTES + record_bytes + journal_record_bytes(0);

	if (needed <= JOURNAL_SEGMENT_BYTES)
		return JOURNAL_SEGMENT_BYTES;
	return (uint32_t) ((needed + JOURNAL_SEGMENT_ROUNDING - 1) / JOURNAL_SEGMENT_ROUNDING * JOURNAL_SEGMENT_ROUNDING);
}

static uint32_t
record_header_crc(const JournalFormat *format, JournalPosition position, const uint8_t *header)
{
	uint8_t		checked[CRC_SEED_BYTES + RECORD_CRC_OFFSET];

	put_uint64(checked, format->identity.journal_incarnation);
	put_uint64(checked + 8, position.segment_number);
	put_uint32(checked + 16, position.offset);
	memcpy(checked + CRC_SEED_BYTES, header, RECORD_CRC_OFFSET);
	return format->crc(checked, sizeof(checked));
}

size_t
journal_encode_entry(const JournalFormat *format, JournalPosition position, JournalEntry *entry, uint8_t *buffer)
{
	size_t		record_bytes = journal_record_bytes(entry->length);

	memset(buffer, 0, JOURNAL_RECORD_HEADER_BYTES);
	if (entry->length > 0)
		memcpy(buffer + JOURNAL_RECORD_HEADER_BYTES, entry->bytes, entry->length);
	memset(buffer + JOURNAL_RECORD_HEADER_BYTES + entry->length, 0,
		   record_bytes - JOURNAL_RECORD_HEADER_BYTES - entry->length);
	entry->crc = format->crc(buffer + JOURNAL_RECORD_HEADER_BYTES, entry->length);

	memcpy(buffer, RECORD_MAGIC, RECORD_MAGIC_BYTES);
	buffer[4] = (uint8_t) entry->type;
	buffer[5] = (uint8_t) entry->value_kind;
	put_uint32(buffer + 8, entry->length);
	put_uint32(buffer + 12, entry->crc);
	put_uint64(buffer + 16, entry->slot);
	put_uint64(buffer + 24, entry->ballot.round);
	put_uint32(buffer + 32, entry->ballot.node_id);
	put_uint32(buffer + 36, entry->id.origin);
	put_uint64(buffer + 40, entry->id.incarnation);
	put_uint64(buffer + 48, entry->id.sequence);
	put_uint64(buffer + 56, entry->durable.segment_number);
	put_uint32(buffer + 64, entry->durable.offset);
	put_uint32(buffer + RECORD_CRC_OFFSET, record_header_crc(format, position, buffer));
	return record_bytes;
}

/* Is this the header of a record at this place?  `header` has at least JOURNAL_RECORD_HEADER_BYTES. */
static bool
record_header_is_valid(const JournalFormat *format, JournalPosition position, const uint8_t *header)
{
	return memcmp(header, RECORD_MAGIC, RECORD_MAGIC_BYTES) == 0 &&
		get_uint32(header + RECORD_CRC_OFFSET) == record_header_crc(format, position, header);
}

static void
decode_record_header(const uint8_t *header, JournalEntry *entry)
{
	entry->type = header[4];
	entry->value_kind = (PaxosValueKind) header[5];
	entry->length = get_uint32(header + 8);
	entry->crc = get_uint32(header + 12);
	entry->slot = get_uint64(header + 16);
	entry->ballot.round = get_uint64(header + 24);
	entry->ballot.node_id = get_uint32(header + 32);
	entry->id.origin = get_uint32(header + 36);
	entry->id.incarnation = get_uint64(header + 40);
	entry->id.sequence = get_uint64(header + 48);
	entry->durable.segment_number = get_uint64(header + 56);
	entry->durable.offset = get_uint32(header + 64);
	entry->bytes = header + JOURNAL_RECORD_HEADER_BYTES;
}

/* What an intact header may still say that nobody wrote; NULL if it is fine. */
static const char *
check_record_header(const uint8_t *header, const JournalEntry *entry, JournalPosition position)
{
	bool		has_value = entry->type == PAXOS_RECORD_ACCEPTED || entry->type == PAXOS_RECORD_CONFIG ||
		entry->type == JOURNAL_RECORD_NOTE;

	if (!(entry->type >= PAXOS_RECORD_PROMISE && entry->type <= PAXOS_RECORD_CONFIG) &&
		!(entry->type >= JOURNAL_RECORD_START && entry->type <= JOURNAL_RECORD_NOTE))
		return "the record has a type that this build does not know";
	if (header[5] > PAXOS_VALUE_CONFIG)
		return "the record has a kind of value that this build does not know";
	if (header[6] != 0 || header[7] != 0)
		return "the record has flags that this build does not know";
	if (entry->length > JOURNAL_MAX_VALUE_BYTES || (entry->length > 0 && !has_value))
		return "the record has an impossible length";
	if (entry->type == JOURNAL_RECORD_NOTE && entry->length > JOURNAL_MAX_NOTE_BYTES)
		return "the note is too long";
	if (entry->type == PAXOS_RECORD_CONFIG && header[5] != PAXOS_VALUE_CONFIG)
		return "a configuration record has another kind of value";
	if (journal_position_compare(entry->durable, position) > 0)
		return "the record says that it was durable before it was written";
	return NULL;
}

JournalReadResult
journal_read_entry(const JournalFormat *format, uint64_t segment_number, const uint8_t *segment, size_t segment_bytes,
				   uint32_t offset, JournalEntry *entry, const char **why)
{
	const uint8_t *header = segment + offset;
	JournalPosition position = {segment_number, offset};
	size_t		record_bytes;

	*why = "the checksum of the record's header is wrong";
	if (segment_bytes < offset || segment_bytes - offset < JOURNAL_RECORD_HEADER_BYTES ||
		!record_header_is_valid(format, position, header))
		return JOURNAL_READ_INVALID;

	decode_record_header(header, entry);
	*why = check_record_header(header, entry, position);
	if (*why != NULL)
		return JOURNAL_READ_REFUSED;

	/* A segment has its length durably before a record is written that needs it. */
	record_bytes = journal_record_bytes(entry->length);
	*why = "the file ends within the record";
	if (record_bytes > segment_bytes - offset)
		return JOURNAL_READ_REFUSED;

	*why = "the checksum of the record's value is wrong";
	if (format->crc(entry->bytes, entry->length) != entry->crc ||
		!is_zero(entry->bytes + entry->length, record_bytes - JOURNAL_RECORD_HEADER_BYTES - entry->length))
		return JOURNAL_READ_INVALID;
	*why = NULL;
	return JOURNAL_READ_ENTRY;
}

/* ---- recovery ---- */

void
journal_recovery_begin(JournalRecovery *recovery, JournalCrcFunction crc, JournalEntryCallback callback, void *context)
{
	memset(recovery, 0, sizeof(*recovery));
	recovery->crc = crc;
	recovery->callback = callback;
	recovery->context = context;
	recovery->least_segment_bytes = JOURNAL_SEGMENT_BYTES;
	recovery->format.crc = crc;
	recovery->first_needed_segment = 1;
	recovery->first_slot = 1;
}

static bool
refuse(JournalRecovery *recovery, uint64_t segment_number, uint32_t offset, const char *why)
{
	recovery->failed_at.segment_number = segment_number;
	recovery->failed_at.offset = offset;
	recovery->failed_why = why;
	return false;
}

static bool
check_segment_header(JournalRecovery *recovery, uint64_t segment_number, const uint8_t *segment, size_t segment_bytes)
{
	JournalIdentity identity;
	const JournalIdentity *expected = &recovery->format.identity;
	const char *why;

	if (recovery->last_segment != 0 && segment_number != recovery->last_segment + 1)
		return refuse(recovery, recovery->last_segment + 1, 0, "the segment is missing, but a later one is there");
	if (segment_bytes < recovery->least_segment_bytes || segment_bytes % JOURNAL_HEADER_BYTES != 0 || segment_bytes > UINT32_MAX)
		return refuse(recovery, segment_number, 0, "the file has a length that no segment has");

	why = journal_decode_segment_header(recovery->crc, segment, segment_number, &identity);
	if (why != NULL)
		return refuse(recovery, segment_number, 0, why);
	if (recovery->last_segment == 0)
	{
		recovery->format.identity = identity;
		recovery->first_segment = segment_number;
	}
	else if (identity.cluster_id != expected->cluster_id)
		return refuse(recovery, segment_number, 0, "the segment belongs to another cluster than those before it");
	else if (identity.node_id != expected->node_id)
		return refuse(recovery, segment_number, 0, "the segment belongs to another node than those before it");
	else if (identity.journal_incarnation != expected->journal_incarnation)
		return refuse(recovery, segment_number, 0, "the segment belongs to another journal than those before it");
	return true;
}

static void
note_durable(JournalRecovery *recovery, JournalPosition durable)
{
	if (journal_position_compare(durable, recovery->durable) > 0)
		recovery->durable = durable;
}

/* Takes valid records from the start of the segment to its end, or to the tail. */
static bool
read_records(JournalRecovery *recovery, uint64_t segment_number, const uint8_t *segment, size_t segment_bytes)
{
	uint32_t	offset = JOURNAL_HEADER_BYTES;

	for (;;)
	{
		JournalEntry entry;
		JournalPlace place;
		const char *why;
		JournalReadResult result = journal_read_entry(&recovery->format, segment_number, segment, segment_bytes, offset,
													  &entry, &why);

		if (result == JOURNAL_READ_REFUSED)
			return refuse(recovery, segment_number, offset, why);
		if (result == JOURNAL_READ_INVALID)
		{
			recovery->tail_found = true;
			recovery->tail.segment_number = segment_number;
			recovery->tail.offset = offset;
			recovery->tail_why = why;
			return true;
		}

		note_durable(recovery, entry.durable);
		if (entry.type == JOURNAL_RECORD_SEGMENT_END)
			return true;
		else if (entry.type == JOURNAL_RECORD_START)
			recovery->start_count = entry.slot;
		else if (entry.type == JOURNAL_RECORD_FIRST_SEGMENT)
		{
			recovery->first_needed_segment = entry.slot;
			recovery->first_slot = entry.ballot.round > 0 ? entry.ballot.round : 1;
		}
		else
		{
			place.segment_number = segment_number;
			place.offset = offset + JOURNAL_RECORD_HEADER_BYTES;
			place.length = entry.length;
			place.crc = entry.crc;
			recovery->callback(recovery->context, &entry, place);
		}
		offset += (uint32_t) journal_record_bytes(entry.length);
	}
}

/*
 * Looks for a record header at every place behind the tail where one can stand: does any say that more was durable than
 * is left (invariant 2)?  The header alone is enough, whatever became of its value.
 */
static bool
scan_behind_tail(JournalRecovery *recovery, uint64_t segment_number, const uint8_t *segment, size_t segment_bytes)
{
	uint32_t	offset = JOURNAL_HEADER_BYTES;

	recovery->garbage = false;
	if (recovery->tail.segment_number == segment_number)
		offset = recovery->tail.offset;

	for (; offset < segment_bytes; offset += JOURNAL_RECORD_ALIGNMENT)
	{
		JournalPosition position = {segment_number, offset};
		JournalEntry entry;
		uint64_t	word;

		memcpy(&word, segment + offset, sizeof(word));
		if (word == 0)
			continue;
		recovery->garbage = true;
		if (segment_bytes - offset < JOURNAL_RECORD_HEADER_BYTES ||
			!record_header_is_valid(&recovery->format, position, segment + offset))
			continue;
		decode_record_header(segment + offset, &entry);
		if (journal_position_compare(entry.durable, recovery->tail) > 0)
			return refuse(recovery, recovery->tail.segment_number, recovery->tail.offset, recovery->tail_why);
		note_durable(recovery, entry.durable);
	}
	return true;
}

bool
journal_recovery_segment(JournalRecovery *recovery, uint64_t segment_number, const uint8_t *segment, size_t segment_bytes)
{
	if (!check_segment_header(recovery, segment_number, segment, segment_bytes))
		return false;
	recovery->last_segment = segment_number;

	if (!recovery->tail_found && !read_records(recovery, segment_number, segment, segment_bytes))
		return false;
	if (recovery->tail_found)
		return scan_behind_tail(recovery, segment_number, segment, segment_bytes);
	recovery->garbage = false;
	return true;
}

bool
journal_recovery_end(JournalRecovery *recovery)
{
	if (recovery->last_segment == 0)
		return refuse(recovery, 1, 0, "the segment is missing");
	if (recovery->first_segment > recovery->first_needed_segment)
		return refuse(recovery, recovery->first_segment - 1, 0, "the segment is missing, but a later one is there");
	if (!recovery->tail_found)
		return refuse(recovery, recovery->last_segment + 1, 0, "the segment is missing, but the one before it says that it exists");
	return true;
}
