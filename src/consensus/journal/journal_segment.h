/*
 * journal_segment.h
 *	  Segment files: their names, and how the next one comes to be.  Private to this folder.
 */
#ifndef QUORUM_JOURNAL_SEGMENT_H
#define QUORUM_JOURNAL_SEGMENT_H

#include "postgres.h"

#include "consensus/journal/journal_format.h"

/* The next segment while it is made, a piece at a time. */
typedef struct SegmentPreparation
{
	int			fd;				/* of the spare file; -1: not begun */
	uint32		zeroed_bytes;	/* so much of it is zero */
	bool		failure_logged; /* the disk is full, and the log says so */
} SegmentPreparation;

/* CRC32C as the server computes it, for JournalFormat. */
extern uint32_t segment_crc32c(const void *bytes, size_t length);

/* Raw descriptors, accounted for with fd.c; -1 and errno if it cannot be opened. */
extern int	segment_open_file(const char *path, int flags);
extern void segment_close_file(int fd);

/* Numbers of the segments in the directory, ascending; palloc'd.  None, if there is no directory. */
extern uint64 *segment_list(const char *directory, int *count);

/* A chosen log or a log state stands there: they are written only beside a journal. */
extern bool journal_was_there(const char *directory);

/* Zeros [from, to), not synced.  False, with errno, only if elevel is below ERROR. */
extern bool segment_zero(int fd, const char *path, uint64 from, uint64 to, int elevel);
extern void segment_fsync(int fd, const char *path);
extern uint64 segment_file_bytes(int fd, const char *path);

/*
 * Goes on making segment `segment_number` by at most that many bytes.  True: it is there, durably, with header and zeros.  False: not yet, or
 * elevel is below ERROR and something failed (it will be tried again).
 */
extern bool segment_prepare(SegmentPreparation *preparation, const char *directory, const JournalFormat *format,
							uint64 segment_number, uint32 budget_bytes, int elevel);

/* Segments [first, end) go away, the first of them to become the next segment if no preparation is under way. */
extern void segment_recycle(SegmentPreparation *preparation, const char *directory, uint64 first, uint64 end);

#endif							/* QUORUM_JOURNAL_SEGMENT_H */
