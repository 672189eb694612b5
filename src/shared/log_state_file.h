/*
 * log_state_file.h
 *	  The file log_state as bytes: head, checksums, durable replacement; and the incoming one of another node.
 *
 * What the body says is consensus/log_state.h's.  The whole has a head of LOG_STATE_HEAD_BYTES, the body, and u32 CRC32C of all before; see
 * docs/journal-format.md.  Bytes come from disk or from a peer: each function that reads checks them.
 */
#ifndef QUORUM_LOG_STATE_FILE_H
#define QUORUM_LOG_STATE_FILE_H

#include "postgres.h"

#include "shared/shmem.h"

#define LOG_STATE_FILE_NAME "log_state"
#define LOG_STATE_PATH QUORUM_DIRECTORY "/" LOG_STATE_FILE_NAME
#define LOG_STATE_INCOMING_PATH QUORUM_DIRECTORY "/log_state.incoming"
#define LOG_STATE_VERSION 1
#define LOG_STATE_HEAD_BYTES 56
#define LOG_STATE_TAIL_BYTES 4

typedef struct LogStateHead
{
	uint32		node_id;		/* that computed it */
	uint64		cluster_id;
	uint64		index;			/* the state follows from the log up to here */
	uint64		last_applied;	/* the last entry up to there that takes effect; 0: none */
	uint64		body_bytes;
} LogStateHead;

extern void log_state_encode_head(const LogStateHead *head, uint8 bytes[LOG_STATE_HEAD_BYTES]);
extern const char *log_state_decode_head(const uint8 bytes[LOG_STATE_HEAD_BYTES], LogStateHead *head);	/* what is wrong; NULL: nothing */

extern void log_state_put_checksum(char *bytes, Size length);	/* at the end of a whole state */

/*
 * A file in the making, and one that is read: in pieces, with the checksum of all so far.  The descriptor is the process's until it is closed,
 * by the transaction's end or an error's in a backend.
 */
typedef struct LogStateFile
{
	int			fd;				/* -1: closed */
	const char *path;
	uint32		crc;			/* not finished */
} LogStateFile;

extern void log_state_file_create(LogStateFile *file, const char *path);
extern void log_state_file_append(LogStateFile *file, const void *bytes, Size length);
extern void log_state_file_finish(LogStateFile *file);	/* checksum, fsync, close; the caller renames */

extern bool log_state_file_open(LogStateFile *file, const char *path);	/* false: there is none */
extern bool log_state_file_read(LogStateFile *file, void *bytes, Size length);	/* false: it ends before */
extern bool log_state_file_ends_here(LogStateFile *file);	/* the checksum of all that was read follows, and nothing after it */
extern void log_state_file_close(LogStateFile *file);

/*
 * The bytes of a whole state as quorum.log_state() returns them.  Checks version, lengths and checksums, and that it belongs to cluster_id (0:
 * whichever); ERRCODE_DATA_CORRUPTED with DETAIL if not.
 */
extern void log_state_check_bytes(const char *bytes, Size length, uint64 cluster_id, LogStateHead *head);

/*
 * For a node that copies tables: checks the bytes against this node's cluster and writes LOG_STATE_INCOMING_PATH durably.  When the consensus worker
 * starts it takes that file for its log state iff the position row's index is exactly the state's, else it removes it.  So: this first, then the
 * tables with their position row in one local transaction that is flushed, then turn_set_applied(), then shmem_restart_consensus().
 */
extern void log_state_write_incoming(const char *bytes, Size length);
extern bool log_state_incoming_exists(void);
extern void log_state_remove_incoming(void);	/* durably; nothing happens if there is none */

#endif							/* QUORUM_LOG_STATE_FILE_H */
