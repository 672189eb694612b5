/*
 * journal_state.h
 *	  The open journal, and what journal_file.c (writing) and journal_recovery.c (opening) call of each other.  Private to this folder.
 */
#ifndef QUORUM_JOURNAL_STATE_H
#define QUORUM_JOURNAL_STATE_H

#include "postgres.h"

#include "consensus/journal/journal_segment.h"

/* A part of the buffer that goes to one segment. */
typedef struct PendingSpan
{
	uint64		segment_number;
	uint32		segment_bytes;	/* the file must have this length first */
	uint32		offset;			/* in the file */
	size_t		buffer_offset;
	size_t		length;
} PendingSpan;

struct Journal
{
	char		directory[MAXPGPATH];
	JournalFormat format;
	uint64		start_count;
	uint64		first_segment;
	uint64		last_segment;
	PaxosSlot	first_slot;

	JournalPosition append;
	JournalPosition written;
	JournalPosition durable;
	uint32		append_segment_bytes;	/* the length that the segment at `append` has, or will be given */

	uint8	   *buffer;
	size_t		buffer_used;
	size_t		buffer_size;
	PendingSpan *spans;
	int			span_count;
	int			span_capacity;

	int			fd;				/* -1: none */
	uint64		fd_segment;
	uint64		fd_bytes;		/* length of the file */
	bool		fd_is_dirty;

	SegmentPreparation preparation;
	uint64		prepare_credit_bytes;
	uint64		total_bytes;	/* of all segment files */

	JournalPosition recovered;	/* where it ended when it was opened */
	uint8	   *note;			/* the last NOTE, appended again when its segment may go; NULL: none */
	uint32		note_length;
	uint32		note_capacity;
};

/* ERROR if it cannot be opened; its path goes to path[MAXPGPATH], for messages. */
extern int	journal_open_segment(const Journal *journal, uint64 segment_number, char *path);

/* All of them, or ERROR. */
extern void journal_write_bytes(int fd, const char *path, const uint8 *bytes, size_t length, uint64 offset);

/* Segments below that one count no more for journal_size_bytes. */
extern void journal_forget_bytes_before(Journal *journal, uint64 first_segment);

/* Buffers a START record; see journal_open. */
extern void journal_append_start(Journal *journal);

/* The last NOTE is this one. */
extern void journal_keep_note(Journal *journal, const uint8 *bytes, uint32 length);

#endif							/* QUORUM_JOURNAL_STATE_H */
