/*
 * journal.h
 *	  The acceptor's stable storage: an append-only journal of PaxosRecords in preallocated segment files.
 *
 * journal.c is the format and the recovery logic: pure, it works on buffers.  journal_file.c is the files, on Postgres'
 * fd.c.  Process: the consensus worker alone writes.  Any process may read values through shared/chosen_log.h, which
 * is given each value's place in the files.
 *
 * Numbers on disk are big endian, each record carries a CRC32C that is seeded by the journal's incarnation and its
 * position, so that what a recycled segment held before is never taken for a record.
 */
#ifndef QUORUM_JOURNAL_H
#define QUORUM_JOURNAL_H

#include "consensus/core/paxos.h"

#define JOURNAL_FORMAT_VERSION 1
#define JOURNAL_SEGMENT_BYTES (16u * 1024 * 1024)	/* a record may be longer than a segment: such a segment is made longer */

/* Where a value's bytes stand. */
typedef struct JournalPlace
{
	uint64_t	segment_number; /* 1-based */
	uint32_t	offset;			/* of the value's bytes */
	uint32_t	length;
	uint32_t	crc;			/* CRC32C of the value's bytes: what LogItem.payload_crc wants */
} JournalPlace;

/* Who the journal belongs to; written to every segment's header. */
typedef struct JournalIdentity
{
	uint64_t	cluster_id;
	uint32_t	node_id;
	uint64_t	journal_incarnation;	/* random, new with each journal that is created */
} JournalIdentity;

typedef struct Journal Journal;

/* Called for each record of a recovery in order; `record->value` is the callee's to retain. */
typedef void (*JournalRecordCallback) (void *context, const PaxosRecord *record, JournalPlace place);

/*
 * journal_create: makes an empty journal in `directory` (which must exist and hold none), durably.  ERRCODE_DATA_CORRUPTED if a chosen
 * log is there: then there was a journal, and what this node promised is forgotten.
 * journal_open: recovers.  A torn tail is cut (LOG); anything else wrong raises ERRCODE_DATA_CORRUPTED with file and offset in
 * DETAIL, and nothing is changed.  *start_count is the number of journal_open calls in this journal's life, this one included,
 * made durable before return: the worker's incarnation.
 */
extern void journal_create(const char *directory, const JournalIdentity *identity);
extern bool journal_exists(const char *directory);
extern Journal *journal_open(const char *directory, const PaxosAllocator *allocator, JournalRecordCallback callback,
							 void *context, JournalIdentity *identity, uint64_t *start_count);

/* Buffers the record; returns the place that its value will have.  Nothing is written before journal_write. */
extern JournalPlace journal_append(Journal *journal, const PaxosRecord *record);

/*
 * Writes what is buffered to the file (readers in other processes see it from here on), and makes it durable.  When
 * journal_write raises an error (ERRCODE_DISK_FULL, say), all that was buffered still is, and it may be called again.  A failing sync is
 * a PANIC, unless data_sync_retry is on.
 */
extern void journal_write(Journal *journal);
extern void journal_sync(Journal *journal);

/*
 * Gives up the segments below first_segment: one becomes the next segment, the others are removed.  The caller has made sure
 * that nothing in them is needed: no acceptance of a slot from first_slot on is there, and promise and configuration have been appended
 * again.  Durable on return; that the log is held from first_slot on only is durable before anything is gone, and may be said alone, with a
 * first_segment that changes nothing.
 */
extern void journal_recycle_before(Journal *journal, uint64_t first_segment, PaxosSlot first_slot);

/* The slot that was last said there; 1 if none was. */
extern PaxosSlot journal_first_slot(const Journal *journal);

/* The lowest segment there is, and the one that the next record goes to; the directory's lowest before it is opened, 0 if there is none. */
extern uint64_t journal_first_segment(const Journal *journal);
extern uint64_t journal_append_segment(const Journal *journal);
extern uint64_t journal_lowest_segment(const char *directory);

/*
 * A note of the host's, at most JOURNAL_MAX_NOTE_BYTES: buffered like a record; of several the last counts, and it is kept when segments are given up.
 * journal_note: the last one, found by recovery or appended since; NULL: none.
 */
#define JOURNAL_MAX_NOTE_BYTES 4096u
extern void journal_append_note(Journal *journal, const uint8_t *bytes, uint32_t length);
extern const uint8_t *journal_note(const Journal *journal, uint32_t *length);

/* Segment number << 32 | offset; never goes back in the life of a journal.  Where it ended when it was opened; up to where it is durable. */
extern uint64_t journal_recovered_position(const Journal *journal);
extern uint64_t journal_durable_position(const Journal *journal);

/* Bytes and files for status. */
extern uint64_t journal_size_bytes(const Journal *journal);
extern void journal_close(Journal *journal);

/* The path of a segment, for readers. */
extern void journal_segment_path(const char *directory, uint64_t segment_number, char *path, size_t capacity);

#endif							/* QUORUM_JOURNAL_H */
