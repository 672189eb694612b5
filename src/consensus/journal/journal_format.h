/*
 * journal_format.h
 *	  The bytes of a journal segment, and recovery from them.  Private to this folder (and to its unit test).
 *
 * Pure like journal.c: works on buffers that the caller owns, allocates nothing, and gets CRC32C as a function, so that the host's
 * fast one can be used.  docs/journal-format.md has the same bytes as a table, and the states of recovery as a picture.
 */
#ifndef QUORUM_JOURNAL_FORMAT_H
#define QUORUM_JOURNAL_FORMAT_H

#include "consensus/journal/journal.h"

#define JOURNAL_HEADER_BYTES 4096u	/* of a segment; a page of its own, so that appending never rewrites it */
#define JOURNAL_RECORD_HEADER_BYTES 72u
#define JOURNAL_RECORD_ALIGNMENT 8u
#define JOURNAL_MAX_VALUE_BYTES PAXOS_MAX_FRAME_BYTES
#define JOURNAL_SEGMENT_ROUNDING 8192u	/* a segment that was made longer is a multiple of this */

/* Record types of the journal's own, beside those of PaxosRecordType. */
#define JOURNAL_RECORD_START 64 /* slot: how often the journal was opened, this time included */
#define JOURNAL_RECORD_SEGMENT_END 65	/* the journal goes on in the next segment */
#define JOURNAL_RECORD_FIRST_SEGMENT 66 /* slot: segments below this one are no longer needed; ballot round: slots below this one are not held */
#define JOURNAL_RECORD_NOTE 67	/* bytes of the host's; the last one counts */

/* CRC32C (Castagnoli) of the bytes, initial value and final inversion included. */
typedef uint32_t (*JournalCrcFunction) (const void *bytes, size_t length);

/* The end of a record, or the start of the next: they are the same. */
typedef struct JournalPosition
{
	uint64_t	segment_number; /* 0: before everything */
	uint32_t	offset;
} JournalPosition;

/* One record in memory.  `bytes` is borrowed. */
typedef struct JournalEntry
{
	uint32_t	type;			/* PaxosRecordType or JOURNAL_RECORD_* */
	PaxosSlot	slot;
	PaxosBallot ballot;
	PaxosValueKind value_kind;
	PaxosProposalId id;
	const uint8_t *bytes;		/* of the value */
	uint32_t	length;
	uint32_t	crc;			/* of the value's bytes; encoding fills it in */
	JournalPosition durable;	/* everything before this was durable when the record was made */
} JournalEntry;

/* What seeds the checksums. */
typedef struct JournalFormat
{
	JournalIdentity identity;
	JournalCrcFunction crc;
} JournalFormat;

/* Negative, 0 or positive. */
extern int	journal_position_compare(JournalPosition a, JournalPosition b);

/* ---- segment header ---- */

extern void journal_encode_segment_header(const JournalFormat *format, uint64_t segment_number,
										  uint8_t block[JOURNAL_HEADER_BYTES]);

/* Returns why the header is not one of segment `segment_number`, or NULL and *identity. */
extern const char *journal_decode_segment_header(JournalCrcFunction crc, const uint8_t block[JOURNAL_HEADER_BYTES],
												 uint64_t segment_number, JournalIdentity *identity);

/* ---- records ---- */

/* Bytes that a record with such a value takes, padding included. */
extern size_t journal_record_bytes(uint32_t value_length);

/* Do that many bytes at `offset` leave room for a SEGMENT_END in a segment of that size?  What is appended always does. */
extern bool journal_record_fits(uint32_t offset, size_t record_bytes, uint32_t segment_bytes);

/* The size of a segment whose first record takes that many bytes. */
extern uint32_t journal_segment_bytes_for(size_t record_bytes);

/* Writes journal_record_bytes(entry->length) bytes for a record that will stand at `position`, and sets entry->crc. */
extern size_t journal_encode_entry(const JournalFormat *format, JournalPosition position, JournalEntry *entry,
								   uint8_t *buffer);

typedef enum JournalReadResult
{
	JOURNAL_READ_ENTRY,
	JOURNAL_READ_INVALID,		/* no record, or not a whole one: torn or corrupt, what follows tells */
	JOURNAL_READ_REFUSED		/* intact, and yet not to be understood: never torn */
} JournalReadResult;

/* Reads the record at `offset`; entry->bytes points into the segment.  *why says what is wrong with it. */
extern JournalReadResult journal_read_entry(const JournalFormat *format, uint64_t segment_number, const uint8_t *segment,
											size_t segment_bytes, uint32_t offset, JournalEntry *entry, const char **why);

/* ---- recovery ---- */

/* Called for each record that is not the journal's own; a NOTE is among them. */
typedef void (*JournalEntryCallback) (void *context, const JournalEntry *entry, JournalPlace place);

typedef struct JournalRecovery
{
	/* set by journal_recovery_begin */
	JournalCrcFunction crc;
	JournalEntryCallback callback;
	void	   *context;
	size_t		least_segment_bytes;	/* JOURNAL_SEGMENT_BYTES; a test makes do with less */

	/* found so far */
	JournalFormat format;		/* identity of the first segment; all others must have the same */
	uint64_t	first_segment;	/* the lowest there is; 0 before the first */
	uint64_t	first_needed_segment;
	PaxosSlot	first_slot;		/* slots below are not held, as the newest FIRST_SEGMENT record says; 1 without one */
	uint64_t	last_segment;	/* the last that was given */
	uint64_t	start_count;
	bool		tail_found;		/* `tail` is where valid records end */
	JournalPosition tail;
	const char *tail_why;		/* what is wrong with what stands at the tail */
	bool		garbage;		/* of the segment last given: something other than zeros stands at or behind the tail */
	JournalPosition durable;	/* the highest claim of any record: all before it had been synced */

	/* set when recovery refuses */
	JournalPosition failed_at;
	const char *failed_why;
} JournalRecovery;

extern void journal_recovery_begin(JournalRecovery *recovery, JournalCrcFunction crc, JournalEntryCallback callback,
								   void *context);

/*
 * Takes the whole of one segment; segments are given in ascending order of their numbers, all that exist.  False: refused, see
 * failed_at and failed_why.
 */
extern bool journal_recovery_segment(JournalRecovery *recovery, uint64_t segment_number, const uint8_t *segment,
									 size_t segment_bytes);

/* After the last segment.  True: the journal ends at recovery->tail. */
extern bool journal_recovery_end(JournalRecovery *recovery);

#endif							/* QUORUM_JOURNAL_FORMAT_H */
