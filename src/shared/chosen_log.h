/*
 * chosen_log.h
 *	  The chosen log as every process of the instance reads it: entry by index, with its verdict.
 *
 * The consensus worker writes, for each delivered slot, one fixed-size item to files `chosen_index_*` beside the journal: where the
 * value stands in the journal, who proposed it, what the verdict is.  Items above the log state's index are rebuilt at each start of the worker
 * from the journal (the same bytes in the same places, so readers are never disturbed); those up to it were fsynced before the state was.
 * Readers (apply worker, SQL functions) may read every index from shmem's first_held_index up to its chosen_index.  The log index of an entry
 * is its Paxos slot.
 */
#ifndef QUORUM_CHOSEN_LOG_H
#define QUORUM_CHOSEN_LOG_H

#include "postgres.h"

/*
 * Name of a journal segment within its directory.  It stands here, because both the journal (consensus) and the readers of
 * values (shared) need it, and neither folder knows the other.
 */
#define JOURNAL_SEGMENT_NAME_FORMAT "segment_%016llX"
#define CHOSEN_LOG_FILE_NAME_FORMAT "chosen_index_%016llX"	/* of the first index in it */
#define CHOSEN_LOG_FILE_PREFIX "chosen_index"
#define CHOSEN_LOG_FILE_ITEMS 16384	/* 1 MB */

typedef enum LogVerdict
{
	LOG_VERDICT_NONE = 0,		/* never in a written item */
	LOG_VERDICT_NOOP,			/* no-op of a leader change */
	LOG_VERDICT_APPLY,			/* takes effect on every node */
	LOG_VERDICT_REJECTED,		/* certification failed: takes effect nowhere */
	LOG_VERDICT_DUPLICATE,		/* took effect, or not, under another index */
	LOG_VERDICT_CONFIG			/* membership; nothing to apply to tables */
} LogVerdict;

typedef struct LogItem
{
	uint64		index;			/* reading fills it in */
	LogVerdict	verdict;
	uint8		value_kind;		/* PaxosValueKind: what was chosen, whatever the verdict (a duplicate keeps its kind) */
	uint32		origin;
	uint64		incarnation;
	uint64		sequence;
	uint8		reason;			/* CertifierReason: why it was REJECTED */
	uint64		conflict_index; /* REJECTED: the entry that won */
	uint64		segment_number;
	uint32		offset;
	uint32		length;			/* of the payload */
	uint32		payload_crc;	/* CRC32C */
} LogItem;

/* Writer: the consensus worker alone. */
extern void chosen_log_open_for_write(const char *directory);
extern void chosen_log_write(uint64 first_index, const LogItem *items, int count);	/* consecutive indexes */

/* Removes the files all of whose items are below the index, durably but for the last of them; first_held_index says so already. */
extern void chosen_log_remove_before(uint64 first_held_index);

/* Makes the items of [first_index, last_index] durable, the names of their files included.  Any process. */
extern void chosen_log_sync(uint64 first_index, uint64 last_index);

/* Does the directory hold a file of the chosen log?  Then there was a journal. */
extern bool chosen_log_was_there(const char *directory);

/*
 * Readers.  Files are opened when first needed and kept open by the process.  What is below first_held_index gives an error with
 * ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, or false from the function that tries; trimming may come between two calls.  What can't be read
 * whole gives ERRCODE_DATA_CORRUPTED.
 */
extern uint64 chosen_log_first_held(void);	/* at least 1 */
extern void chosen_log_read_item(uint64 index, LogItem *item);
extern bool chosen_log_try_read_item(uint64 index, LogItem *item);
extern char *chosen_log_read_payload(const LogItem *item);	/* palloc'd, item->length bytes, checked by CRC */

#endif							/* QUORUM_CHOSEN_LOG_H */
