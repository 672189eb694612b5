/*
 * snapshot_format.h
 *	  What CALL quorum.send_tables(), send_sums() and send_rows() send: frames, one in each message of a COPY OUT.
 *
 * A frame is u8 kind, its body, and u32 CRC32C of kind and body; numbers are big endian, a text is u32 length and its bytes.  In this order:
 *
 *	 B	begin: u32 version, u64 cluster id, u32 node id of the donor, u64 log index of the snapshot, text encoding of its database,
 *		u32 number of tables, u64 size of the tables in bytes (an estimate)
 *	 L	a piece of the log state at that index (docs/journal-format.md), to its end; at least one
 *	 T	a table, as many as said: u64 table id, text schema, text name, u8 state, u32 origin node, u64 activated index (0: not known),
 *		u64 row count when it became active (PG_UINT64_MAX: not known), text shape, text definition.  One comes after those it refers to.
 *	 Then, in version 1 only, for each of them, in the same order:
 *	 R	rows: u32 count, and the rows as in a write set (writeset.h); none for an empty table
 *	 E	end of the table: u64 number of its rows, u32 number of sequences, for each u16 live column and u64 value
 *	 Z	the end: u64 number of frames before it
 *
 * In version 2 the client then asks for what it wants of each table, in the same transaction, table by table:
 *
 *	 send_sums	S: u32 number of buckets, for each u64 number of rows, u64 high and u64 low half of the sum of their hashes (table_checksum.h)
 *	 send_rows	R as above, for the rows of the buckets that were asked for, in any order, and E with their number
 *
 * Before any of these frames may come
 *
 *	 P	progress: u64 number of rows that were looked at; says only that the donor is at work
 *
 * The reader trusts none of it: see snapshot_receive.c.
 */
#ifndef QUORUM_SNAPSHOT_FORMAT_H
#define QUORUM_SNAPSHOT_FORMAT_H

#define SNAPSHOT_VERSION_WHOLE 1	/* all rows of all tables in one go */
#define SNAPSHOT_VERSION_PARTS 2
#ifndef SNAPSHOT_NEWEST_VERSION	/* tests build an older one */
#define SNAPSHOT_NEWEST_VERSION SNAPSHOT_VERSION_PARTS
#endif
#define SNAPSHOT_CRC_BYTES 4
#define SNAPSHOT_MAX_FRAME_BYTES ((Size) 1023 * 1024 * 1024)	/* one row may be so large */

typedef enum SnapshotFrameKind
{
	SNAPSHOT_FRAME_BEGIN = 'B',
	SNAPSHOT_FRAME_LOG_STATE = 'L',
	SNAPSHOT_FRAME_TABLE = 'T',
	SNAPSHOT_FRAME_ROWS = 'R',
	SNAPSHOT_FRAME_TABLE_END = 'E',
	SNAPSHOT_FRAME_SUMS = 'S',
	SNAPSHOT_FRAME_PROGRESS = 'P',
	SNAPSHOT_FRAME_END = 'Z'
} SnapshotFrameKind;

#endif							/* QUORUM_SNAPSHOT_FORMAT_H */
