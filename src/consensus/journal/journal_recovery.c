/*
 * journal_recovery.c
 *	  Opens the journal: finds out from its segment files what it holds, makes that durable, and cuts a torn tail.
 *
 * Process: the consensus worker alone, at its start.  It must never change a file before recovery has found the whole journal sound.  What is read is
 * judged in journal.c, which is pure; the states are a picture in docs/journal-format.md.
 *
 * Locks: none.
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "nodes/pg_list.h"
#include "storage/fd.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

#include "consensus/journal/journal_state.h"

#define SEGMENT_MAX_BYTES (JOURNAL_MAX_VALUE_BYTES + JOURNAL_SEGMENT_BYTES)
#define REWRITE_BLOCK_BYTES (1024 * 1024)

typedef struct RecoveryContext
{
	Journal    *journal;
	const PaxosAllocator *allocator;
	JournalRecordCallback callback;
	void	   *context;
} RecoveryContext;

/* From the bytes in a segment to what the core takes. */
static void
deliver_entry(void *context, const JournalEntry *entry, JournalPlace place)
{
	RecoveryContext *recovery_context = context;
	bool		has_value = entry->type == PAXOS_RECORD_ACCEPTED || entry->type == PAXOS_RECORD_CONFIG;
	PaxosRecord record = {
		.type = (PaxosRecordType) entry->type,
		.slot = entry->slot,
		.ballot = entry->ballot
	};

	if (entry->type == JOURNAL_RECORD_NOTE)
	{
		journal_keep_note(recovery_context->journal, entry->bytes, entry->length);
		return;
	}
	if (has_value)
		record.value = paxos_value_make(recovery_context->allocator, entry->value_kind, entry->id, entry->bytes,
										entry->length);
	recovery_context->callback(recovery_context->context, &record, place);
	if (has_value)
		paxos_value_release(recovery_context->allocator, record.value);
}

static void
report_corruption(const char *directory, const JournalRecovery *recovery)
{
	char		path[MAXPGPATH];

	journal_segment_path(directory, recovery->failed_at.segment_number, path, sizeof(path));
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("the journal of this node is corrupted"),
			 errdetail("File \"%s\", offset %u: %s.", path, recovery->failed_at.offset, recovery->failed_why),
			 errhint("Rejoin this node as a new one. Its journal is not changed.")));
}

/* Reads a segment file whole into *buffer, which grows as needed. */
static size_t
read_segment(const char *directory, uint64 segment_number, uint8 **buffer, size_t *buffer_size)
{
	char		path[MAXPGPATH];
	int			fd;
	uint64		file_bytes;
	uint64		done = 0;

	journal_segment_path(directory, segment_number, path, sizeof(path));
	fd = OpenTransientFile(path, O_RDONLY | PG_BINARY);
	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", path)));

	file_bytes = segment_file_bytes(fd, path);
	if (file_bytes > SEGMENT_MAX_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("the journal of this node is corrupted"),
				 errdetail("File \"%s\" has " UINT64_FORMAT " bytes, which no segment has.", path, file_bytes),
				 errhint("Rejoin this node as a new one. Its journal is not changed.")));
	if (file_bytes > *buffer_size)
	{
		pfree(*buffer);
		*buffer = palloc_extended(file_bytes, MCXT_ALLOC_HUGE);
		*buffer_size = file_bytes;
	}
	while (done < file_bytes)
	{
		ssize_t		part = pg_pread(fd, *buffer + done, file_bytes - done, (off_t) done);

		if (part < 0 && errno == EINTR)
			continue;
		if (part <= 0)
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not read file \"%s\" at offset " UINT64_FORMAT ": %m", path, done)));
		done += (uint64) part;
	}
	CloseTransientFile(fd);
	return (size_t) file_bytes;
}

/* Recovery proper: changes nothing.  *garbage_segments lists those that hold more than zeros behind the tail. */
static void
recover(Journal *journal, RecoveryContext *context, JournalRecovery *recovery, List **garbage_segments)
{
	int			count;
	uint64	   *numbers = segment_list(journal->directory, &count);
	size_t		buffer_size = JOURNAL_SEGMENT_BYTES;
	uint8	   *buffer = palloc_extended(buffer_size, MCXT_ALLOC_HUGE);

	*garbage_segments = NIL;
	journal_recovery_begin(recovery, segment_crc32c, deliver_entry, context);
	for (int i = 0; i < count; i++)
	{
		size_t		segment_bytes = read_segment(journal->directory, numbers[i], &buffer, &buffer_size);

		if (!journal_recovery_segment(recovery, numbers[i], buffer, segment_bytes))
			report_corruption(journal->directory, recovery);
		if (recovery->garbage)
			*garbage_segments = lappend(*garbage_segments, &numbers[i]);
		journal->total_bytes += segment_bytes;
	}
	if (!journal_recovery_end(recovery))
		report_corruption(journal->directory, recovery);
	pfree(buffer);
}

/*
 * Writes the same bytes again.  What an earlier worker wrote and did not live to sync stands in the kernel's cache; if a sync of it
 * failed, the kernel may hold it as clean though it never reached the disk, and another fsync would do nothing.
 */
static void
rewrite_range(int fd, const char *path, uint64 from, uint64 to)
{
	uint8	   *block = palloc(REWRITE_BLOCK_BYTES);

	while (from < to)
	{
		ssize_t		length = pg_pread(fd, block, Min(to - from, REWRITE_BLOCK_BYTES), (off_t) from);

		if (length < 0 && errno == EINTR)
			continue;
		if (length <= 0)
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not read file \"%s\" at offset " UINT64_FORMAT ": %m", path, from)));
		journal_write_bytes(fd, path, block, (size_t) length, from);
		from += (uint64) length;
	}
	pfree(block);
}

/* Everything before the tail that no record proves to have been synced becomes durable. */
static void
settle_unproven(const Journal *journal, const JournalRecovery *recovery)
{
	JournalPosition from = recovery->durable;

	if (from.segment_number < recovery->first_segment)
	{
		from.segment_number = recovery->first_segment;
		from.offset = JOURNAL_HEADER_BYTES;
	}
	for (uint64 number = from.segment_number; number <= recovery->tail.segment_number; number++)
	{
		char		path[MAXPGPATH];
		int			fd = journal_open_segment(journal, number, path);
		uint64		end = segment_file_bytes(fd, path);

		if (number == recovery->tail.segment_number)
			end = recovery->tail.offset;
		rewrite_range(fd, path, number == from.segment_number ? from.offset : JOURNAL_HEADER_BYTES, end);
		segment_fsync(fd, path);
		segment_close_file(fd);
	}
}

/* Zeros what stands behind the tail, durably: an earlier attempt to write that was never answered for. */
static void
cut_tail(const Journal *journal, const JournalRecovery *recovery, const List *garbage_segments)
{
	const ListCell *cell;

	foreach(cell, garbage_segments)
	{
		uint64		number = *(uint64 *) lfirst(cell);
		uint32		from = number == recovery->tail.segment_number ? recovery->tail.offset : JOURNAL_HEADER_BYTES;
		char		path[MAXPGPATH];
		int			fd = journal_open_segment(journal, number, path);

		ereport(LOG,
				(errmsg("cutting a torn tail off the journal"),
				 errdetail("File \"%s\", offset %u: %s. Nothing from there on had been confirmed to anybody.", path, from,
						   recovery->tail_why)));
		segment_zero(fd, path, from, segment_file_bytes(fd, path), ERROR);
		segment_fsync(fd, path);
		segment_close_file(fd);
	}
}

/* The journal goes on at the tail; segments that are no longer needed and outlived a crash go away. */
static void
go_on_at_tail(Journal *journal, const JournalRecovery *recovery)
{
	char		path[MAXPGPATH];

	journal->format = recovery->format;
	journal->start_count = recovery->start_count + 1;
	journal->first_segment = recovery->first_segment;
	journal->last_segment = recovery->last_segment;
	journal->first_slot = recovery->first_slot;
	journal->append = journal->written = journal->durable = journal->recovered = recovery->tail;

	journal->fd_segment = recovery->tail.segment_number;
	journal->fd = journal_open_segment(journal, journal->fd_segment, path);
	journal->fd_bytes = segment_file_bytes(journal->fd, path);
	journal->append_segment_bytes = (uint32) journal->fd_bytes;

	journal_forget_bytes_before(journal, recovery->first_needed_segment);
	if (recovery->first_segment < recovery->first_needed_segment)
		segment_recycle(&journal->preparation, journal->directory, recovery->first_segment,
						recovery->first_needed_segment);
	journal->first_segment = Max(recovery->first_segment, recovery->first_needed_segment);
}

Journal *
journal_open(const char *directory, const PaxosAllocator *allocator, JournalRecordCallback callback, void *context,
			 JournalIdentity *identity, uint64_t *start_count)
{
	Journal    *journal = MemoryContextAllocZero(TopMemoryContext, sizeof(Journal));
	RecoveryContext recovery_context = {journal, allocator, callback, context};
	JournalRecovery recovery;
	List	   *garbage_segments;

	strlcpy(journal->directory, directory, sizeof(journal->directory));
	journal->fd = -1;
	journal->preparation.fd = -1;

	recover(journal, &recovery_context, &recovery, &garbage_segments);
	settle_unproven(journal, &recovery);
	cut_tail(journal, &recovery, garbage_segments);
	go_on_at_tail(journal, &recovery);

	journal_append_start(journal);
	journal_write(journal);
	journal_sync(journal);

	*identity = journal->format.identity;
	*start_count = journal->start_count;
	return journal;
}
