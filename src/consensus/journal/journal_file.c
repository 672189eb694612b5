/*
 * journal_file.c
 *	  The journal on disk: appending to its segment files, making it durable, giving segments up.  journal_recovery.c opens it.
 *
 * Process: the consensus worker alone, one Journal at a time.  It must never report something as durable before fdatasync said so, and
 * never lose a buffered record to an error.
 *
 * The life of a record: journal_append encodes it into the buffer and fixes its place; journal_write puts the buffer into
 * the files, one pwrite per segment concerned; journal_sync makes it durable with one fdatasync.  Segments are
 * preallocated and zeroed (journal_segment.c), so that neither call changes a file's length: fdatasync has nothing to write but the data.
 *
 * Invariants
 *	 1. durable <= written <= append, and the buffer holds exactly [written, append).
 *	 2. Only the segment that `fd` is open on may hold writes that were not synced: it is synced before another one is opened.
 *	 3. The records in the buffer carry the `durable` of the time when they were appended (journal.c, invariant 1).
 *	 4. last_segment exists durably; a segment is written to only when it is at or below it (journal.c, invariant 4).
 *
 * Locks: none.
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "storage/fd.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

#include "consensus/journal/journal_state.h"

#define BUFFER_INITIAL_BYTES (256 * 1024)
#define BUFFER_KEPT_BYTES (8 * 1024 * 1024) /* a longer buffer is given back once it is written */

/*
 * The next segment is made while this one fills: PREPARE_RATIO bytes for each byte that was written, in pieces of PREPARE_STEP_BYTES.
 */
#define PREPARE_RATIO 4
#define PREPARE_STEP_BYTES (256 * 1024)

/* ---- creation ---- */

bool
journal_exists(const char *directory)
{
	int			count;
	uint64	   *numbers = segment_list(directory, &count);

	pfree(numbers);
	return count > 0;
}

void
journal_create(const char *directory, const JournalIdentity *identity)
{
	JournalFormat format = {*identity, segment_crc32c};
	SegmentPreparation preparation = {.fd = -1};

	if (journal_exists(directory))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_FILE),
				 errmsg("directory \"%s\" holds a journal already", directory)));
	/* An acceptor that lost its journal does not know what it promised; it must not begin again under the same name. */
	if (journal_was_there(directory))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("the journal of this node is missing"),
				 errdetail("Directory \"%s\" holds a chosen log or a log state, but no segment of the journal that it was made from.", directory),
				 errhint("Rejoin this node as a new one.")));
	if (!segment_prepare(&preparation, directory, &format, 1, JOURNAL_SEGMENT_BYTES, ERROR))
		elog(ERROR, "the first segment of the journal was not made");
}

/* ---- files ---- */

int
journal_open_segment(const Journal *journal, uint64 segment_number, char *path)
{
	int			fd;

	journal_segment_path(journal->directory, segment_number, path, MAXPGPATH);
	fd = segment_open_file(path, O_RDWR);
	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", path)));
	return fd;
}

void
journal_write_bytes(int fd, const char *path, const uint8 *bytes, size_t length, uint64 offset)
{
	while (length > 0)
	{
		ssize_t		written;

		errno = 0;
		pgstat_report_wait_start(PG_WAIT_EXTENSION);
		written = pg_pwrite(fd, bytes, length, (off_t) offset);
		pgstat_report_wait_end();
		if (written < 0 && errno == EINTR)
			continue;
		if (written <= 0)
		{
			if (errno == 0)
				errno = ENOSPC;
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not write file \"%s\": %m", path)));
		}
		bytes += written;
		length -= (size_t) written;
		offset += (uint64) written;
	}
}

/* What is about to go counts no longer. */
void
journal_forget_bytes_before(Journal *journal, uint64 first_segment)
{
	for (uint64 number = journal->first_segment; number < first_segment; number++)
	{
		char		path[MAXPGPATH];
		int			fd = journal_open_segment(journal, number, path);

		journal->total_bytes -= segment_file_bytes(fd, path);
		segment_close_file(fd);
	}
}

/* ---- appending ---- */

static void append_entry(Journal *journal, JournalEntry *entry);

void
journal_append_start(Journal *journal)
{
	JournalEntry entry = {.type = JOURNAL_RECORD_START, .slot = journal->start_count};

	append_entry(journal, &entry);
}

void
journal_keep_note(Journal *journal, const uint8 *bytes, uint32 length)
{
	if (length > journal->note_capacity)
	{
		if (journal->note != NULL)
			pfree(journal->note);
		journal->note = MemoryContextAlloc(TopMemoryContext, length);
		journal->note_capacity = length;
	}
	memcpy(journal->note, bytes, length);
	journal->note_length = length;
}

static void
append_note(Journal *journal)
{
	JournalEntry entry = {.type = JOURNAL_RECORD_NOTE, .bytes = journal->note, .length = journal->note_length};

	if (journal->note != NULL)
		append_entry(journal, &entry);
}

void
journal_append_note(Journal *journal, const uint8_t *bytes, uint32_t length)
{
	journal_keep_note(journal, bytes, length);
	append_note(journal);
}

const uint8_t *
journal_note(const Journal *journal, uint32_t *length)
{
	*length = journal->note_length;
	return journal->note;
}

/* Room for that many bytes more, and for two spans more; may raise, and nothing has changed then. */
static void
reserve(Journal *journal, size_t bytes)
{
	if (journal->buffer_used + bytes > journal->buffer_size)
	{
		size_t		wanted = Max(Max(journal->buffer_size * 2, BUFFER_INITIAL_BYTES), journal->buffer_used + bytes);

		if (journal->buffer == NULL)
			journal->buffer = MemoryContextAllocHuge(TopMemoryContext, wanted);
		else
			journal->buffer = repalloc_huge(journal->buffer, wanted);
		journal->buffer_size = wanted;
	}
	if (journal->span_count + 2 > journal->span_capacity)
	{
		int			wanted = journal->span_capacity + 16;

		if (journal->spans == NULL)
			journal->spans = MemoryContextAlloc(TopMemoryContext, wanted * sizeof(PendingSpan));
		else
			journal->spans = repalloc(journal->spans, wanted * sizeof(PendingSpan));
		journal->span_capacity = wanted;
	}
}

/* Encodes at the append position, where there is room for it. */
static void
put_entry(Journal *journal, JournalEntry *entry)
{
	PendingSpan *span = journal->span_count > 0 ? &journal->spans[journal->span_count - 1] : NULL;
	size_t		record_bytes;

	if (span == NULL || span->segment_number != journal->append.segment_number)
	{
		span = &journal->spans[journal->span_count++];
		span->segment_number = journal->append.segment_number;
		span->offset = journal->append.offset;
		span->buffer_offset = journal->buffer_used;
		span->length = 0;
	}
	entry->durable = journal->durable;
	record_bytes = journal_encode_entry(&journal->format, journal->append, entry, journal->buffer + journal->buffer_used);
	journal->buffer_used += record_bytes;
	journal->append.offset += (uint32) record_bytes;
	span->length += record_bytes;
	span->segment_bytes = journal->append_segment_bytes;
}

/* Appends at the place where the record fits, ending the segment if that is not this one; entry->bytes will stand before `append`. */
static void
append_entry(Journal *journal, JournalEntry *entry)
{
	size_t		record_bytes = journal_record_bytes(entry->length);

	reserve(journal, record_bytes + journal_record_bytes(0));
	if (!journal_record_fits(journal->append.offset, record_bytes, journal->append_segment_bytes))
	{
		/* A segment that has no record yet is rather made longer than left empty. */
		if (journal->append.offset != JOURNAL_HEADER_BYTES)
		{
			JournalEntry end = {.type = JOURNAL_RECORD_SEGMENT_END};

			put_entry(journal, &end);
			journal->append.segment_number++;
			journal->append.offset = JOURNAL_HEADER_BYTES;
		}
		journal->append_segment_bytes = journal_segment_bytes_for(record_bytes);
	}
	put_entry(journal, entry);
}

JournalPlace
journal_append(Journal *journal, const PaxosRecord *record)
{
	JournalEntry entry = {
		.type = record->type,
		.slot = record->slot,
		.ballot = record->ballot
	};
	JournalPlace place;

	if (record->value != NULL)
	{
		entry.value_kind = record->value->kind;
		entry.id = record->value->id;
		entry.bytes = record->value->bytes;
		entry.length = record->value->length;
	}
	if (entry.length > JOURNAL_MAX_VALUE_BYTES)
		elog(ERROR, "a value of %u bytes is too long for the journal", entry.length);

	append_entry(journal, &entry);
	place.segment_number = journal->append.segment_number;
	place.offset = journal->append.offset - (uint32) journal_record_bytes(entry.length) + JOURNAL_RECORD_HEADER_BYTES;
	place.length = entry.length;
	place.crc = entry.crc;
	return place;
}

/* ---- writing ---- */

static void
sync_open_segment(Journal *journal)
{
	int			result;
	char		path[MAXPGPATH];

	if (!journal->fd_is_dirty)
		return;
	pgstat_report_wait_start(PG_WAIT_EXTENSION);
	result = pg_fdatasync(journal->fd);
	pgstat_report_wait_end();
	if (result != 0)
	{
		journal_segment_path(journal->directory, journal->fd_segment, path, sizeof(path));
		ereport(data_sync_elevel(ERROR),
				(errcode_for_file_access(),
				 errmsg("could not fdatasync file \"%s\": %m", path)));
	}
	journal->fd_is_dirty = false;
}

/* Invariant 2. */
static void
switch_to_segment(Journal *journal, uint64 segment_number)
{
	char		path[MAXPGPATH];

	if (journal->fd >= 0 && journal->fd_segment == segment_number)
		return;
	if (journal->fd >= 0)
	{
		sync_open_segment(journal);
		segment_close_file(journal->fd);
		journal->fd = -1;
	}
	journal->fd = journal_open_segment(journal, segment_number, path);
	journal->fd_segment = segment_number;
	journal->fd_bytes = segment_file_bytes(journal->fd, path);
}

/* For a record that is longer than a segment. */
static void
lengthen_open_segment(Journal *journal, uint32 segment_bytes)
{
	char		path[MAXPGPATH];

	if (journal->fd_bytes >= segment_bytes)
		return;
	journal_segment_path(journal->directory, journal->fd_segment, path, sizeof(path));
	segment_zero(journal->fd, path, journal->fd_bytes, segment_bytes, ERROR);
	segment_fsync(journal->fd, path);
	journal->total_bytes += segment_bytes - journal->fd_bytes;
	journal->fd_bytes = segment_bytes;
}

/* Invariant 4: called before the SEGMENT_END that points to it is written. */
static void
make_segments_up_to(Journal *journal, uint64 segment_number)
{
	while (journal->last_segment < segment_number)
	{
		segment_prepare(&journal->preparation, journal->directory, &journal->format, journal->last_segment + 1,
						JOURNAL_SEGMENT_BYTES, ERROR);
		journal->last_segment++;
		journal->total_bytes += JOURNAL_SEGMENT_BYTES;
		journal->prepare_credit_bytes = 0;
	}
}

void
journal_write(Journal *journal)
{
	if (journal->span_count == 0)
		return;

	make_segments_up_to(journal, journal->append.segment_number);
	for (int i = 0; i < journal->span_count; i++)
	{
		const PendingSpan *span = &journal->spans[i];
		char		path[MAXPGPATH];

		switch_to_segment(journal, span->segment_number);
		lengthen_open_segment(journal, span->segment_bytes);
		journal_segment_path(journal->directory, span->segment_number, path, sizeof(path));
		journal->fd_is_dirty = true;
		journal_write_bytes(journal->fd, path, journal->buffer + span->buffer_offset, span->length, span->offset);
	}

	/* Only now: after an error the same bytes are written to the same places again. */
	journal->prepare_credit_bytes += (uint64) journal->buffer_used * PREPARE_RATIO;
	journal->written = journal->append;
	journal->span_count = 0;
	journal->buffer_used = 0;
	if (journal->buffer_size > BUFFER_KEPT_BYTES)
	{
		pfree(journal->buffer);
		journal->buffer = NULL;
		journal->buffer_size = 0;
	}
}

/* A piece of the next segment, now that nobody waits.  A disk that is full becomes an error only when the segment is needed. */
static void
prepare_next_segment(Journal *journal)
{
	uint32		budget_bytes;

	if (journal->last_segment > journal->append.segment_number)
		journal->prepare_credit_bytes = 0;
	if (journal->prepare_credit_bytes < PREPARE_STEP_BYTES)
		return;
	budget_bytes = (uint32) Min(journal->prepare_credit_bytes, JOURNAL_SEGMENT_BYTES);
	journal->prepare_credit_bytes = 0;
	if (segment_prepare(&journal->preparation, journal->directory, &journal->format, journal->last_segment + 1,
						budget_bytes, LOG))
	{
		journal->last_segment++;
		journal->total_bytes += JOURNAL_SEGMENT_BYTES;
	}
}

void
journal_sync(Journal *journal)
{
	if (journal_position_compare(journal->durable, journal->written) == 0)
		return;
	sync_open_segment(journal);
	journal->durable = journal->written;
	prepare_next_segment(journal);
}

void
journal_recycle_before(Journal *journal, uint64_t first_segment, PaxosSlot first_slot)
{
	JournalEntry entry = {.type = JOURNAL_RECORD_FIRST_SEGMENT};

	if (first_segment <= journal->first_segment && first_slot <= journal->first_slot)
		return;
	if (first_segment > journal->durable.segment_number)
		elog(ERROR, "segment " UINT64_FORMAT " of the journal is in use", first_segment);
	entry.slot = Max(first_segment, journal->first_segment);
	entry.ballot.round = Max(first_slot, journal->first_slot);

	/* The count of starts and the note may stand in what goes away. */
	journal_append_start(journal);
	append_note(journal);
	append_entry(journal, &entry);
	journal_write(journal);
	journal_sync(journal);
	journal->first_slot = entry.ballot.round;
	if (first_segment <= journal->first_segment)
		return;

	journal_forget_bytes_before(journal, first_segment);
	segment_recycle(&journal->preparation, journal->directory, journal->first_segment, first_segment);
	journal->first_segment = first_segment;
}

static uint64
position_number(JournalPosition position)
{
	return position.segment_number << 32 | position.offset;
}

uint64_t
journal_recovered_position(const Journal *journal)
{
	return position_number(journal->recovered);
}

uint64_t
journal_durable_position(const Journal *journal)
{
	return position_number(journal->durable);
}

PaxosSlot
journal_first_slot(const Journal *journal)
{
	return journal->first_slot;
}

uint64_t
journal_first_segment(const Journal *journal)
{
	return journal->first_segment;
}

uint64_t
journal_append_segment(const Journal *journal)
{
	return journal->append.segment_number;
}

uint64_t
journal_lowest_segment(const char *directory)
{
	int			count;
	uint64	   *numbers = segment_list(directory, &count);
	uint64		lowest = count > 0 ? numbers[0] : 0;

	pfree(numbers);
	return lowest;
}

uint64_t
journal_size_bytes(const Journal *journal)
{
	return journal->total_bytes;
}

void
journal_close(Journal *journal)
{
	if (journal->fd >= 0)
		segment_close_file(journal->fd);
	if (journal->preparation.fd >= 0)
		segment_close_file(journal->preparation.fd);
	if (journal->buffer != NULL)
		pfree(journal->buffer);
	if (journal->spans != NULL)
		pfree(journal->spans);
	if (journal->note != NULL)
		pfree(journal->note);
	pfree(journal);
}
