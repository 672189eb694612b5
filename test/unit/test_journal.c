/*
 * test_journal.c
 *	  The journal's format and recovery (src/consensus/journal/journal.c), on segments in memory.
 *
 * Prints TAP.  Each test writes a small journal as journal_file.c would, damages it in one way, and looks at what recovery makes of it.
 * What must hold: records that were known to be durable are delivered or the journal is refused; what is delivered is a prefix of what
 * was written, byte for byte; a torn tail is never refused.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "consensus/journal/journal_format.h"

#define SEGMENT_BYTES 16384u		/* enough for these tests; JournalRecovery.least_segment_bytes allows it */
#define MAX_SEGMENTS 4
#define MAX_RECORDS 64

/* ---- TAP ---- */

static int	test_count = 0;
static int	failure_count = 0;

static void
ok(bool passed, const char *format,...)
{
	va_list		arguments;

	printf("%sok %d - ", passed ? "" : "not ", ++test_count);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\n");
	failure_count += passed ? 0 : 1;
}

/* The core is linked beside; nothing here calls it. */
void
paxos_assertion_failed(const char *condition, const char *file, int line)
{
	printf("Bail out! %s:%d: %s\n", file, line, condition);
	exit(1);
}

/* ---- CRC32C, one bit at a time into a table ---- */

static uint32_t
test_crc32c(const void *bytes, size_t length)
{
	static uint32_t table[256];
	const uint8_t *byte = bytes;
	uint32_t	crc = 0xFFFFFFFF;

	if (table[1] == 0)
	{
		for (uint32_t i = 0; i < 256; i++)
		{
			table[i] = i;
			for (int bit = 0; bit < 8; bit++)
				table[i] = (table[i] >> 1) ^ ((table[i] & 1) ? 0x82F63B78 : 0);
		}
	}
	for (size_t i = 0; i < length; i++)
		crc = (crc >> 8) ^ table[(crc ^ byte[i]) & 0xFF];
	return crc ^ 0xFFFFFFFF;
}

static uint64_t random_state = 20240229;

static uint64_t
next_random(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

/* ---- a journal in memory, and its writer ---- */

typedef struct WrittenRecord
{
	JournalEntry entry;			/* bytes point to `values` */
	JournalPosition position;
	JournalPosition end;
} WrittenRecord;

typedef struct TestJournal
{
	JournalFormat format;
	uint8_t    *segments[MAX_SEGMENTS + 1]; /* by number; 0 is not used */
	int			segment_count;
	JournalPosition append;
	JournalPosition durable;
	WrittenRecord records[MAX_RECORDS];	/* without the journal's own */
	int			record_count;
} TestJournal;

static const JournalIdentity test_identity = {0x1122334455667788, 3, 0x99AABBCCDDEEFF00};
static uint8_t values[65536];

static void
add_segment(TestJournal *journal)
{
	journal->segments[++journal->segment_count] = calloc(1, SEGMENT_BYTES);
	journal_encode_segment_header(&journal->format, journal->segment_count, journal->segments[journal->segment_count]);
}

static void
begin_journal(TestJournal *journal)
{
	memset(journal, 0, sizeof(*journal));
	journal->format.identity = test_identity;
	journal->format.crc = test_crc32c;
	journal->append.segment_number = 1;
	journal->append.offset = JOURNAL_HEADER_BYTES;
	journal->durable = journal->append;
	add_segment(journal);
}

static void
free_journal(TestJournal *journal)
{
	for (int i = 1; i <= journal->segment_count; i++)
		free(journal->segments[i]);
}

static void
put(TestJournal *journal, JournalEntry *entry)
{
	journal->append.offset += (uint32_t) journal_encode_entry(&journal->format, journal->append, entry,
															  journal->segments[journal->append.segment_number] +
															  journal->append.offset);
}

static void
append(TestJournal *journal, JournalEntry entry)
{
	WrittenRecord *written = &journal->records[journal->record_count];

	entry.durable = journal->durable;
	if (!journal_record_fits(journal->append.offset, journal_record_bytes(entry.length), SEGMENT_BYTES))
	{
		JournalEntry end = {.type = JOURNAL_RECORD_SEGMENT_END, .durable = journal->durable};

		put(journal, &end);
		add_segment(journal);
		journal->append.segment_number++;
		journal->append.offset = JOURNAL_HEADER_BYTES;
	}
	written->position = journal->append;
	put(journal, &entry);
	written->end = journal->append;
	written->entry = entry;
	if (entry.type < JOURNAL_RECORD_START)
		journal->record_count++;
}

static void
append_accepted(TestJournal *journal, uint64_t slot, uint32_t length)
{
	JournalEntry entry = {
		.type = PAXOS_RECORD_ACCEPTED,
		.slot = slot,
		.ballot = {0x0102030405060708 + slot, 7},
		.value_kind = PAXOS_VALUE_DATA,
		.id = {2, 0xA1A2A3A4A5A6A7A8, slot * 3},
		.bytes = values + slot,
		.length = length
	};

	append(journal, entry);
}

static void
append_plain(TestJournal *journal, uint32_t type, uint64_t slot)
{
	JournalEntry entry = {.type = type, .slot = slot, .ballot = {slot + 1, 3}};

	append(journal, entry);
}

static void
sync_journal(TestJournal *journal)
{
	journal->durable = journal->append;
}

/* ---- recovery and what to expect of it ---- */

typedef struct Delivered
{
	const TestJournal *journal;
	int			count;
	bool		equal;			/* to what was written, so far */
} Delivered;

static bool
entries_are_equal(const JournalEntry *a, const JournalEntry *b)
{
	return a->type == b->type && a->slot == b->slot && a->ballot.round == b->ballot.round &&
		a->ballot.node_id == b->ballot.node_id && a->value_kind == b->value_kind && a->id.origin == b->id.origin &&
		a->id.incarnation == b->id.incarnation && a->id.sequence == b->id.sequence && a->length == b->length &&
		(a->length == 0 || memcmp(a->bytes, b->bytes, a->length) == 0) &&
		journal_position_compare(a->durable, b->durable) == 0;
}

static void
compare_delivered(void *context, const JournalEntry *entry, JournalPlace place)
{
	Delivered  *delivered = context;
	const WrittenRecord *written = &delivered->journal->records[delivered->count];

	if (delivered->count >= delivered->journal->record_count || !entries_are_equal(entry, &written->entry) ||
		place.segment_number != written->position.segment_number ||
		place.offset != written->position.offset + JOURNAL_RECORD_HEADER_BYTES || place.length != entry->length ||
		place.crc != test_crc32c(written->entry.bytes, written->entry.length) ||
		(place.length > 0 &&
		 memcmp(delivered->journal->segments[place.segment_number] + place.offset, entry->bytes, place.length) != 0))
		delivered->equal = false;
	delivered->count++;
}

/* True: recovered.  *delivered says how many records came, and whether they were a prefix of what was written. */
static bool
recover_journal(const TestJournal *journal, JournalRecovery *recovery, Delivered *delivered)
{
	delivered->journal = journal;
	delivered->count = 0;
	delivered->equal = true;
	journal_recovery_begin(recovery, test_crc32c, compare_delivered, delivered);
	recovery->least_segment_bytes = SEGMENT_BYTES;
	for (int i = 1; i <= journal->segment_count; i++)
	{
		if (journal->segments[i] != NULL &&
			!journal_recovery_segment(recovery, i, journal->segments[i], SEGMENT_BYTES))
			return false;
	}
	return journal_recovery_end(recovery);
}

/* How many records end at or before the position. */
static int
records_before(const TestJournal *journal, JournalPosition position)
{
	int			count = 0;

	while (count < journal->record_count && journal_position_compare(journal->records[count].end, position) <= 0)
		count++;
	return count;
}

static bool
refused_at(const JournalRecovery *recovery, uint64_t segment_number, uint32_t offset)
{
	return recovery->failed_why != NULL && recovery->failed_at.segment_number == segment_number &&
		recovery->failed_at.offset == offset;
}

/* ---- tests ---- */

static void
crc_is_castagnoli(void)
{
	ok(test_crc32c("123456789", 9) == 0xE3069283, "the test's checksum is CRC32C");
}

static void
records_come_back_as_written(void)
{
	TestJournal journal;
	JournalRecovery recovery;
	Delivered	delivered;
	const uint32_t lengths[] = {0, 1, 7, 8, 9, 300, 4096, 9000, 5000, 12000};
	JournalEntry config = {
		.type = PAXOS_RECORD_CONFIG,.slot = 0,.value_kind = PAXOS_VALUE_CONFIG,.bytes = values,.length = 30
	};
	JournalEntry noop = {.type = PAXOS_RECORD_ACCEPTED,.slot = 99,.ballot = {5, 1}};
	bool		recovered;

	begin_journal(&journal);
	append(&journal, config);
	append_plain(&journal, PAXOS_RECORD_PROMISE, 0);
	append_plain(&journal, JOURNAL_RECORD_START, 41);
	for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++)
	{
		append_accepted(&journal, i + 1, lengths[i]);
		sync_journal(&journal);
	}
	append(&journal, noop);
	append_plain(&journal, PAXOS_RECORD_CHOSEN, 10);

	recovered = recover_journal(&journal, &recovery, &delivered);
	ok(recovered && delivered.equal && delivered.count == journal.record_count,
	   "%d records over %d segments come back as written, with their places", journal.record_count, journal.segment_count);
	ok(recovery.start_count == 41 && recovery.format.identity.node_id == test_identity.node_id &&
	   recovery.format.identity.cluster_id == test_identity.cluster_id, "identity and count of starts come back");
	ok(journal_position_compare(recovery.tail, journal.append) == 0 && !recovery.garbage, "the journal goes on where it ended");
	ok(journal_position_compare(recovery.durable, journal.durable) == 0, "what was proved to be durable is known");
	ok(journal.segment_count >= 3, "segments followed each other");
	free_journal(&journal);
}

static void
an_empty_journal_is_sound(void)
{
	TestJournal journal;
	JournalRecovery recovery;
	Delivered	delivered;

	begin_journal(&journal);
	ok(recover_journal(&journal, &recovery, &delivered) && delivered.count == 0 && !recovery.garbage &&
	   recovery.tail.offset == JOURNAL_HEADER_BYTES && recovery.start_count == 0, "an empty journal is sound");
	free_journal(&journal);
}

static void
a_large_value_lengthens_its_segment(void)
{
	const uint32_t length = 20 * 1024 * 1024;
	uint32_t	segment_bytes = journal_segment_bytes_for(journal_record_bytes(length));
	uint8_t    *segment = calloc(1, segment_bytes);
	uint8_t    *value = malloc(length);
	JournalFormat format = {test_identity, test_crc32c};
	JournalPosition position = {1, JOURNAL_HEADER_BYTES};
	JournalEntry entry = {
		.type = PAXOS_RECORD_ACCEPTED,.slot = 1,.value_kind = PAXOS_VALUE_DATA,.bytes = value,.length = length
	};
	JournalEntry read;
	const char *why;

	for (uint32_t i = 0; i < length; i++)
		value[i] = (uint8_t) (i * 31 + (i >> 9));
	journal_encode_entry(&format, position, &entry, segment + position.offset);
	ok(segment_bytes % JOURNAL_HEADER_BYTES == 0 &&
	   journal_record_fits(position.offset, journal_record_bytes(length), segment_bytes), "a value of 20 MB has a segment that holds it");
	ok(journal_read_entry(&format, 1, segment, segment_bytes, position.offset, &read, &why) == JOURNAL_READ_ENTRY &&
	   read.length == length && memcmp(read.bytes, value, length) == 0, "a value of 20 MB comes back");
	ok(journal_read_entry(&format, 1, segment, JOURNAL_SEGMENT_BYTES, position.offset, &read, &why) == JOURNAL_READ_REFUSED,
	   "a file that ends within a record whose header is intact is refused");
	ok(journal_segment_bytes_for(journal_record_bytes(JOURNAL_MAX_VALUE_BYTES)) > JOURNAL_MAX_VALUE_BYTES,
	   "the longest value has a segment");
	free(segment);
	free(value);
}

/* A journal whose last batch, of 5 records, was not synced; returns the position up to which it was. */
static JournalPosition
write_two_batches(TestJournal *journal)
{
	begin_journal(journal);
	append_plain(journal, PAXOS_RECORD_PROMISE, 0);
	append_accepted(journal, 1, 200);
	sync_journal(journal);
	append_accepted(journal, 2, 100);
	append_plain(journal, PAXOS_RECORD_CHOSEN, 1);
	sync_journal(journal);
	append_accepted(journal, 3, 333);
	append_accepted(journal, 4, 0);
	append_accepted(journal, 5, 900);
	append_plain(journal, PAXOS_RECORD_CHOSEN, 2);
	append_accepted(journal, 6, 64);
	return journal->durable;
}

/* Recovery after damage behind `durable` only: never refused, everything durable is there, nothing false. */
static bool
tail_is_handled(const TestJournal *journal, JournalPosition durable, int *delivered_count)
{
	JournalRecovery recovery;
	Delivered	delivered;
	bool		recovered = recover_journal(journal, &recovery, &delivered);

	*delivered_count = delivered.count;
	return recovered && delivered.equal && delivered.count >= records_before(journal, durable) &&
		delivered.count == records_before(journal, recovery.tail);
}

static void
a_tail_is_cut_at_every_byte(void)
{
	TestJournal journal;
	JournalPosition durable = write_two_batches(&journal);
	uint8_t    *segment = journal.segments[1];
	uint8_t    *whole = malloc(SEGMENT_BYTES);
	bool		zeros_pass = true;
	bool		garbage_passes = true;
	bool		hole_passes = true;
	uint32_t	end = journal.append.offset;

	memcpy(whole, segment, SEGMENT_BYTES);
	for (uint32_t from = durable.offset; from <= end; from++)
	{
		int			count;
		JournalPosition damaged = {1, from};

		memset(segment + from, 0, SEGMENT_BYTES - from);
		zeros_pass &= tail_is_handled(&journal, durable, &count) && count >= records_before(&journal, damaged);

		for (uint32_t i = from; i < end; i++)
			segment[i] = (uint8_t) next_random();
		garbage_passes &= tail_is_handled(&journal, durable, &count) && count >= records_before(&journal, damaged);

		/* what comes behind reached the disk, and the part from here on for a sector's length did not */
		memcpy(segment, whole, SEGMENT_BYTES);
		memset(segment + from, 0, end - from < 512 ? end - from : 512);
		hole_passes &= tail_is_handled(&journal, durable, &count) && count >= records_before(&journal, damaged);
		memcpy(segment, whole, SEGMENT_BYTES);
	}
	ok(zeros_pass, "a tail that is missing from any byte on is cut");
	ok(garbage_passes, "a tail that is garbage from any byte on is cut");
	ok(hole_passes, "a tail with a hole of a sector anywhere is cut, what follows the hole included");
	free(whole);
	free_journal(&journal);
}

/* All subsets of the sectors of the last batch, which spans two segments. */
static void
any_subset_of_unsynced_sectors_may_be_lost(void)
{
	TestJournal journal;
	uint8_t    *whole[3];
	uint32_t	sectors[16];		/* segment number in the highest bit */
	int			sector_count = 0;
	JournalPosition durable;
	bool		passed = true;

	begin_journal(&journal);
	append_accepted(&journal, 1, 9800);
	sync_journal(&journal);
	durable = journal.durable;
	append_accepted(&journal, 2, 700);
	append_accepted(&journal, 3, 900);
	append_accepted(&journal, 4, 1500);
	append_accepted(&journal, 5, 40);

	for (int number = 1; number <= 2; number++)
	{
		uint32_t	from = number == 1 ? durable.offset : JOURNAL_HEADER_BYTES;

		whole[number] = malloc(SEGMENT_BYTES);
		memcpy(whole[number], journal.segments[number], SEGMENT_BYTES);
		for (uint32_t sector = from / 512; sector < SEGMENT_BYTES / 512; sector++)
		{
			static const uint8_t zeros[512];

			if (memcmp(whole[number] + sector * 512, zeros, 512) != 0)
				sectors[sector_count++] = sector | (number == 2 ? 0x80000000 : 0);
		}
	}
	for (uint32_t lost = 0; lost < (1u << sector_count); lost++)
	{
		int			count;

		for (int number = 1; number <= 2; number++)
			memcpy(journal.segments[number], whole[number], SEGMENT_BYTES);
		for (int i = 0; i < sector_count; i++)
		{
			uint32_t	offset = (sectors[i] & 0x7FFFFFFF) * 512;
			uint8_t    *segment = journal.segments[(sectors[i] & 0x80000000) ? 2 : 1];
			uint32_t	skip = 0;

			/* the first sector had been synced up to `durable` */
			if (!(sectors[i] & 0x80000000) && offset < durable.offset)
				skip = durable.offset - offset;
			if (lost & (1u << i))
				memset(segment + offset + skip, 0, 512 - skip);
		}
		passed &= tail_is_handled(&journal, durable, &count);
		passed &= (lost == 0) == (count == journal.record_count);
	}
	ok(passed && sector_count >= 8 && journal.segment_count == 2,
	   "any subset of the last batch's %d sectors, in two segments, may be lost", sector_count);
	for (int number = 1; number <= 2; number++)
		free(whole[number]);
	free_journal(&journal);
}

static void
a_flipped_bit_in_the_middle_is_refused(void)
{
	TestJournal journal;
	uint32_t	end_of_proven;
	bool		all_refused = true;
	bool		all_located = true;
	bool		tail_passes = true;
	JournalPosition durable = write_two_batches(&journal);

	/* the last batch's records say that everything before them is durable */
	end_of_proven = durable.offset;
	for (uint32_t offset = JOURNAL_HEADER_BYTES; offset < journal.append.offset; offset++)
	{
		for (int bit = 0; bit < 8; bit++)
		{
			JournalRecovery recovery;
			Delivered	delivered;
			JournalPosition position = {1, offset};
			bool		recovered;
			int			intact = records_before(&journal, position);

			journal.segments[1][offset] ^= (uint8_t) (1 << bit);
			recovered = recover_journal(&journal, &recovery, &delivered);
			journal.segments[1][offset] ^= (uint8_t) (1 << bit);

			if (offset < end_of_proven)
			{
				all_refused &= !recovered;
				all_located &= refused_at(&recovery, 1, journal.records[intact].position.offset);
				all_located &= delivered.equal && delivered.count == intact;
			}
			else
				tail_passes &= recovered && delivered.equal && delivered.count == intact && recovery.garbage;
		}
	}
	ok(all_refused, "any flipped bit before what is known to be durable is refused");
	ok(all_located, "the refusal names the damaged record, and nothing behind it was delivered");
	ok(tail_passes, "a flipped bit in the last batch never delivers a damaged record");
	free_journal(&journal);
}

static void
a_later_segment_proves_what_was_durable(void)
{
	TestJournal journal;
	JournalRecovery recovery;
	Delivered	delivered;
	uint32_t	victim;

	begin_journal(&journal);
	append_accepted(&journal, 1, 5000);
	append_accepted(&journal, 2, 5000);
	victim = journal.records[1].position.offset;
	sync_journal(&journal);
	append_accepted(&journal, 3, 5000);
	journal.segments[1][victim + 1000] ^= 0x10;
	ok(!recover_journal(&journal, &recovery, &delivered) && refused_at(&recovery, 1, victim) && delivered.count == 1,
	   "damage in one segment is refused for what a record in the next one says");

	/* even if of that record only the header is left */
	memset(journal.segments[2] + JOURNAL_HEADER_BYTES + JOURNAL_RECORD_HEADER_BYTES, 0, 5000);
	ok(!recover_journal(&journal, &recovery, &delivered) && refused_at(&recovery, 1, victim),
	   "a record's header is enough for that");

	/* the same when the damaged record became zeros, as if never written */
	memset(journal.segments[1] + victim, 0, SEGMENT_BYTES - victim);
	ok(!recover_journal(&journal, &recovery, &delivered) && refused_at(&recovery, 1, victim),
	   "durable records that became zeros are refused");
	free_journal(&journal);
}

static void
what_a_recycled_segment_held_is_not_taken(void)
{
	TestJournal old;
	TestJournal journal;
	JournalRecovery recovery;
	Delivered	delivered;
	bool		recovered;
	const uint32_t body = SEGMENT_BYTES - JOURNAL_HEADER_BYTES;

	/* an earlier journal's segment, its header overwritten and nothing else */
	begin_journal(&old);
	old.format.identity.journal_incarnation++;
	append_accepted(&old, 1, 100);
	sync_journal(&old);
	append_accepted(&old, 2, 100);
	begin_journal(&journal);
	memcpy(journal.segments[1] + JOURNAL_HEADER_BYTES, old.segments[1] + JOURNAL_HEADER_BYTES, body);
	recovered = recover_journal(&journal, &recovery, &delivered);
	ok(recovered && delivered.count == 0 && recovery.garbage && recovery.tail.offset == JOURNAL_HEADER_BYTES,
	   "records of another incarnation of the journal are not taken");
	free_journal(&old);
	free_journal(&journal);

	/* the same journal's segment 1 as segment 2 */
	begin_journal(&journal);
	append_accepted(&journal, 1, 6000);
	sync_journal(&journal);
	append_accepted(&journal, 2, 4000);
	append_accepted(&journal, 3, 6000);
	journal.record_count = 2;
	memcpy(journal.segments[2] + JOURNAL_HEADER_BYTES, journal.segments[1] + JOURNAL_HEADER_BYTES, body);
	recovered = recover_journal(&journal, &recovery, &delivered);
	ok(recovered && delivered.equal && delivered.count == 2 && recovery.garbage && recovery.tail.segment_number == 2,
	   "records of another segment are not taken");
	free_journal(&journal);

	/* a record copied to another place of its own segment, behind the end */
	begin_journal(&journal);
	append_accepted(&journal, 1, 100);
	sync_journal(&journal);
	append_accepted(&journal, 2, 100);
	memcpy(journal.segments[1] + journal.append.offset, journal.segments[1] + JOURNAL_HEADER_BYTES,
		   journal.append.offset - JOURNAL_HEADER_BYTES);
	recovered = recover_journal(&journal, &recovery, &delivered);
	ok(recovered && delivered.equal && delivered.count == 2 && recovery.garbage,
	   "a record at another offset is not taken, nor what it says about durability");
	free_journal(&journal);
}

/* A value may hold anything, a record of this very journal too. */
static void
a_record_inside_a_value_is_not_taken(void)
{
	TestJournal journal;
	TestJournal other;
	JournalRecovery recovery;
	Delivered	delivered;
	uint8_t		value[4000];
	JournalEntry entry = {
		.type = PAXOS_RECORD_ACCEPTED,.slot = 2,.value_kind = PAXOS_VALUE_DATA,.bytes = value,.length = sizeof(value)
	};

	begin_journal(&other);
	append_accepted(&other, 1, 300);
	append_accepted(&other, 2, 300);
	sync_journal(&other);
	append_accepted(&other, 3, 300);
	append_accepted(&other, 4, 300);

	begin_journal(&journal);
	append_accepted(&journal, 1, 300);
	sync_journal(&journal);
	memset(value, 0, sizeof(value));
	memcpy(value, other.segments[1] + JOURNAL_HEADER_BYTES, other.append.offset - JOURNAL_HEADER_BYTES);
	append(&journal, entry);
	journal.segments[1][journal.records[1].position.offset] ^= 1;	/* the record around them is torn */
	ok(recover_journal(&journal, &recovery, &delivered) && delivered.equal && delivered.count == 1,
	   "records inside a torn record's value are not taken for records");
	free_journal(&other);
	free_journal(&journal);
}

/* ---- segment headers and the row of segments ---- */

static void
write_three_segments(TestJournal *journal)
{
	begin_journal(journal);
	for (uint64_t slot = 1; slot <= 3; slot++)
	{
		append_accepted(journal, slot, 10000);
		sync_journal(journal);
	}
}

static void
put_header_of(TestJournal *journal, int number, JournalIdentity identity, uint64_t segment_number)
{
	JournalFormat format = {identity, test_crc32c};

	journal_encode_segment_header(&format, segment_number, journal->segments[number]);
}

static void
check_header_refusal(const char *name, JournalIdentity identity, uint64_t segment_number)
{
	TestJournal journal;
	JournalRecovery recovery;
	Delivered	delivered;
	bool		recovered;

	write_three_segments(&journal);
	put_header_of(&journal, 2, identity, segment_number);
	recovered = recover_journal(&journal, &recovery, &delivered);
	ok(!recovered && refused_at(&recovery, 2, 0) && delivered.count == 1, "a segment of %s is refused (%s)", name, recovery.failed_why);
	free_journal(&journal);
}

static void
foreign_segments_are_refused(void)
{
	JournalIdentity identity = test_identity;

	identity.cluster_id++;
	check_header_refusal("another cluster", identity, 2);
	identity = test_identity;
	identity.node_id++;
	check_header_refusal("another node", identity, 2);
	identity = test_identity;
	identity.journal_incarnation ^= 1;
	check_header_refusal("another journal", identity, 2);
	check_header_refusal("another number", test_identity, 3);
}

static void
damaged_headers_are_refused(void)
{
	TestJournal journal;
	JournalRecovery recovery;
	Delivered	delivered;
	bool		all_refused = true;
	uint8_t		header[JOURNAL_HEADER_BYTES];
	uint8_t		checked[64];
	uint32_t	crc;

	write_three_segments(&journal);
	for (int number = 1; number <= 3; number++)
	{
		/* every bit of what is used, some of the zeros behind */
		for (uint32_t bit = 0; bit < JOURNAL_HEADER_BYTES * 8; bit += bit < 64 * 8 ? 1 : 37)
		{
			journal.segments[number][bit / 8] ^= (uint8_t) (1 << bit % 8);
			all_refused &= !recover_journal(&journal, &recovery, &delivered) && refused_at(&recovery, number, 0);
			journal.segments[number][bit / 8] ^= (uint8_t) (1 << bit % 8);
		}
	}
	ok(all_refused, "any flipped bit in a segment's header is refused");

	memset(journal.segments[3], 0, JOURNAL_HEADER_BYTES);
	ok(!recover_journal(&journal, &recovery, &delivered) && refused_at(&recovery, 3, 0), "a header of zeros is refused, in the last segment too");

	/* a version of the future, with a checksum that is right */
	memcpy(header, journal.segments[1], sizeof(header));
	header[11] = JOURNAL_FORMAT_VERSION + 1;
	memcpy(checked, header, sizeof(checked));
	memset(checked + 60, 0, 4);
	crc = test_crc32c(checked, sizeof(checked));
	for (int i = 0; i < 4; i++)
		header[60 + i] = (uint8_t) (crc >> (24 - 8 * i));
	memcpy(journal.segments[1], header, sizeof(header));
	all_refused = !recover_journal(&journal, &recovery, &delivered);
	ok(all_refused && refused_at(&recovery, 1, 0) && strstr(recovery.failed_why, "version") != NULL, "an unknown format version is refused (%s)", recovery.failed_why);
	free_journal(&journal);
}

static void
missing_segments_are_refused(void)
{
	for (int missing = 1; missing <= 3; missing++)
	{
		TestJournal journal;
		JournalRecovery recovery;
		Delivered	delivered;
		bool		recovered;

		write_three_segments(&journal);
		free(journal.segments[missing]);
		journal.segments[missing] = NULL;
		recovered = recover_journal(&journal, &recovery, &delivered);
		ok(!recovered && refused_at(&recovery, missing, 0), "segment %d of 3 is missed (%s)", missing, recovery.failed_why);
		free_journal(&journal);
	}
}

static void
append_first_segment(TestJournal *journal, uint64_t first_segment, PaxosSlot first_slot)
{
	JournalEntry entry = {.type = JOURNAL_RECORD_FIRST_SEGMENT, .slot = first_segment};

	entry.ballot.round = first_slot;
	put(journal, &entry);
}

static void
segments_that_were_given_up_may_be_missing(void)
{
	TestJournal journal;
	JournalRecovery recovery;
	Delivered	delivered;
	int			count = 0;

	write_three_segments(&journal);
	append_plain(&journal, JOURNAL_RECORD_START, 8);
	append_first_segment(&journal, 3, 0);
	ok(recover_journal(&journal, &recovery, &delivered) && recovery.first_needed_segment == 3 && recovery.first_segment == 1,
	   "segments that are no longer needed are known, if they are still there");
	ok(recovery.first_slot == 1, "the log is held from its first slot on, if nothing else was said");
	append_first_segment(&journal, 3, 77);
	ok(recover_journal(&journal, &recovery, &delivered) && recovery.first_needed_segment == 3 && recovery.first_slot == 77,
	   "from which slot on it is held is known, and the last word counts");

	free(journal.segments[1]);
	free(journal.segments[2]);
	journal.segments[1] = journal.segments[2] = NULL;
	delivered.journal = &journal;
	delivered.count = 2;		/* the third record is the first to come */
	delivered.equal = true;
	journal_recovery_begin(&recovery, test_crc32c, compare_delivered, &delivered);
	recovery.least_segment_bytes = SEGMENT_BYTES;
	count += journal_recovery_segment(&recovery, 3, journal.segments[3], SEGMENT_BYTES);
	count += journal_recovery_end(&recovery);
	ok(count == 2 && delivered.equal && delivered.count == 3 && recovery.start_count == 8, "segments that were given up may be missing");
	free_journal(&journal);
}

static void
a_next_segment_may_stand_ready(void)
{
	TestJournal journal;
	JournalRecovery recovery;
	Delivered	delivered;

	begin_journal(&journal);
	append_accepted(&journal, 1, 100);
	add_segment(&journal);
	ok(recover_journal(&journal, &recovery, &delivered) && delivered.count == 1 && recovery.last_segment == 2 &&
	   recovery.tail.segment_number == 1 && !recovery.garbage, "a next segment may stand ready");
	free_journal(&journal);
}

static void
wrong_file_lengths_are_refused(void)
{
	TestJournal journal;
	JournalRecovery recovery;
	Delivered	delivered = {&journal, 0, true};
	const size_t lengths[] = {0, 1, JOURNAL_HEADER_BYTES, SEGMENT_BYTES - JOURNAL_HEADER_BYTES, SEGMENT_BYTES - 1};

	begin_journal(&journal);
	append_accepted(&journal, 1, 100);
	for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++)
	{
		uint8_t    *copy = malloc(lengths[i] + 1);	/* so that a sanitizer sees a byte too far */

		memcpy(copy, journal.segments[1], lengths[i]);
		journal_recovery_begin(&recovery, test_crc32c, compare_delivered, &delivered);
		recovery.least_segment_bytes = SEGMENT_BYTES;
		ok(!journal_recovery_segment(&recovery, 1, copy, lengths[i]) && refused_at(&recovery, 1, 0) && delivered.count == 0,
		   "a segment file of %zu bytes is refused", lengths[i]);
		free(copy);
	}
	journal_recovery_begin(&recovery, test_crc32c, compare_delivered, &delivered);
	ok(!journal_recovery_segment(&recovery, 1, journal.segments[1], SEGMENT_BYTES) && delivered.count == 0,
	   "a segment file shorter than JOURNAL_SEGMENT_BYTES is refused");
	journal_recovery_begin(&recovery, test_crc32c, compare_delivered, &delivered);
	ok(!journal_recovery_end(&recovery), "a journal without segments is refused");
	free_journal(&journal);
}

/* ---- intact records that say what nobody writes ---- */

static void
check_entry_refusal(const char *name, JournalEntry entry)
{
	TestJournal journal;
	JournalRecovery recovery;
	Delivered	delivered;
	uint32_t	offset;
	bool		recovered;

	begin_journal(&journal);
	append_accepted(&journal, 1, 8);
	offset = journal.append.offset;
	put(&journal, &entry);
	recovered = recover_journal(&journal, &recovery, &delivered);
	ok(!recovered && refused_at(&recovery, 1, offset) && delivered.count == 1, "%s is refused (%s)", name, recovery.failed_why);
	free_journal(&journal);
}

static void
nonsense_with_a_right_checksum_is_refused(void)
{
	JournalEntry unknown_type = {.type = 67};
	JournalEntry type_zero = {.type = 0};
	JournalEntry unknown_kind = {.type = PAXOS_RECORD_ACCEPTED,.value_kind = (PaxosValueKind) 3};
	JournalEntry promise_with_value = {.type = PAXOS_RECORD_PROMISE,.bytes = values,.length = 8};
	JournalEntry config_of_data = {.type = PAXOS_RECORD_CONFIG,.value_kind = PAXOS_VALUE_DATA};
	JournalEntry durable_ahead = {.type = PAXOS_RECORD_CHOSEN,.durable = {1, SEGMENT_BYTES}};

	check_entry_refusal("an unknown record type", unknown_type);
	check_entry_refusal("record type 0", type_zero);
	check_entry_refusal("an unknown kind of value", unknown_kind);
	check_entry_refusal("a promise with a value", promise_with_value);
	check_entry_refusal("a configuration of another kind", config_of_data);
	check_entry_refusal("a record that claims to be durable before it was written", durable_ahead);
}

/* Random headers under a right checksum, and random bytes: whatever comes out, no byte outside is touched (run with sanitizers). */
static void
random_bytes_do_no_harm(void)
{
	JournalFormat format = {test_identity, test_crc32c};
	int			refused = 0;
	int			invalid = 0;

	for (int round = 0; round < 20000; round++)
	{
		JournalPosition position = {1, (uint32_t) (next_random() % 60) * 8};
		uint8_t    *segment = malloc(512);
		JournalEntry entry = {
			.type = (uint32_t) next_random() % 70,
			.value_kind = (PaxosValueKind) (next_random() % 4)
		};
		JournalEntry read;
		const char *why;
		uint32_t	length = (uint32_t) (next_random() % 4 == 0 ? next_random() : next_random() % 600);
		uint8_t		header[20 + 72];

		for (int i = 0; i < 512; i++)
			segment[i] = (uint8_t) next_random();
		if (position.offset + 72 <= 512)
		{
			uint32_t	crc;

			journal_encode_entry(&format, position, &entry, header + 20);
			for (int i = 0; i < 4; i++)
				header[20 + 8 + i] = (uint8_t) (length >> (24 - 8 * i));
			for (int i = 0; i < 8; i++)
			{
				header[i] = (uint8_t) (test_identity.journal_incarnation >> (56 - 8 * i));
				header[8 + i] = (uint8_t) (position.segment_number >> (56 - 8 * i));
			}
			for (int i = 0; i < 4; i++)
				header[16 + i] = (uint8_t) (position.offset >> (24 - 8 * i));
			crc = test_crc32c(header, 20 + 68);
			for (int i = 0; i < 4; i++)
				header[20 + 68 + i] = (uint8_t) (crc >> (24 - 8 * i));
			memcpy(segment + position.offset, header + 20, 72);
		}
		switch (journal_read_entry(&format, 1, segment, 512, position.offset, &read, &why))
		{
			case JOURNAL_READ_REFUSED:
				refused++;
				break;
			case JOURNAL_READ_INVALID:
				invalid++;
				break;
			case JOURNAL_READ_ENTRY:
				break;
		}
		free(segment);
	}
	ok(refused > 1000 && invalid > 1000, "random lengths and bytes do no harm (%d refused, %d invalid of 20000)", refused, invalid);
}

static void
every_segment_has_room_for_its_end(void)
{
	bool		passed = true;
	const uint32_t record_header = JOURNAL_RECORD_HEADER_BYTES;

	for (uint32_t length = 0; length < 64; length++)
	{
		size_t		record_bytes = journal_record_bytes(length);

		passed &= record_bytes % 8 == 0 && record_bytes >= record_header + length && record_bytes < record_header + length + 8;
		passed &= journal_record_fits(SEGMENT_BYTES - (uint32_t) record_bytes - record_header, record_bytes, SEGMENT_BYTES);
		passed &= !journal_record_fits(SEGMENT_BYTES - (uint32_t) record_bytes - record_header + 8, record_bytes, SEGMENT_BYTES);
	}
	ok(passed, "a record fits only if the segment's end still does");
}

int
main(void)
{
	for (size_t i = 0; i < sizeof(values); i++)
		values[i] = (uint8_t) (i * 7 + (i >> 8) * 13 + 1);

	crc_is_castagnoli();
	records_come_back_as_written();
	an_empty_journal_is_sound();
	a_large_value_lengthens_its_segment();
	a_tail_is_cut_at_every_byte();
	any_subset_of_unsynced_sectors_may_be_lost();
	a_flipped_bit_in_the_middle_is_refused();
	a_later_segment_proves_what_was_durable();
	what_a_recycled_segment_held_is_not_taken();
	a_record_inside_a_value_is_not_taken();
	foreign_segments_are_refused();
	damaged_headers_are_refused();
	missing_segments_are_refused();
	segments_that_were_given_up_may_be_missing();
	a_next_segment_may_stand_ready();
	wrong_file_lengths_are_refused();
	nonsense_with_a_right_checksum_is_refused();
	random_bytes_do_no_harm();
	every_segment_has_room_for_its_end();
	printf("1..%d\n", test_count);
	return failure_count == 0 ? 0 : 1;
}
