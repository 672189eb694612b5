/*
 * snapshot_send_internal.h
 *	  Between the files of a donor: snapshot_send.c (all tables under one snapshot), snapshot_send_rows.c (what is asked for of one of them).
 *	  Process: the backend of a peer.
 */
#ifndef QUORUM_SNAPSHOT_SEND_INTERNAL_H
#define QUORUM_SNAPSHOT_SEND_INTERNAL_H

#include "postgres.h"

#include "lib/stringinfo.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"

#include "shared/shmem.h"
#include "snapshot/snapshot_format.h"

#define ROWS_PER_FRAME 1000
#define BYTES_PER_FRAME (256 * 1024)

/* Where frames go, and how many have gone. */
typedef struct FrameStream
{
	uint64		frames;
	MemoryContext frame_context;	/* reset with each frame of rows */
} FrameStream;

/* Errors unless this node may give its tables away, and the transaction has one snapshot and writes nothing.  Fills in *identity. */
extern void send_check_request(NodeIdentity *identity, const char *procedure);

/* COPY OUT begins, and ends. */
extern void send_stream_begin(FrameStream *stream);
extern void send_stream_end(void);

/* A frame in the current memory context; it is gone once it was sent. */
extern void send_frame_begin(StringInfo frame, SnapshotFrameKind kind);
extern void send_frame(FrameStream *stream, StringInfo frame);

/* The frames R of all rows of a table; returns their number. */
extern uint64 send_all_rows(FrameStream *stream, Relation relation, Snapshot snapshot);

/* The frame E. */
extern void send_table_end(FrameStream *stream, Oid relid, uint64 row_count);

#endif							/* QUORUM_SNAPSHOT_SEND_INTERNAL_H */
