/*
 * snapshot_internal.h
 *	  Between the files that copy tables: snapshot.c (one attempt from begin to end), snapshot_receive.c (frames from the donor),
 *	  snapshot_install.c (tables, rows and sequences here).  Process: apply worker.
 */
#ifndef QUORUM_SNAPSHOT_INTERNAL_H
#define QUORUM_SNAPSHOT_INTERNAL_H

#include "postgres.h"

#include "lib/stringinfo.h"
#include "nodes/pg_list.h"

#include "cluster/peer_query.h"
#include "shared/snapshot_progress.h"
#include "shared/writeset.h"
#include "snapshot/snapshot_format.h"

/* ---- snapshot.c: what quorum.snapshot_progress shows ---- */
extern void snapshot_enter_phase(SnapshotPhase phase);
extern void snapshot_note_table(const char *schema_name, const char *table_name);
extern void snapshot_note_rows(uint64 rows, uint64 tables_done);

/* ---- snapshot_tokens.c: a connection on which no copy has begun ---- */
extern void snapshot_learn_token_ages(PeerConnection *peer);

/* ---- snapshot_receive.c ---- */

typedef struct IncomingSnapshot
{
	uint32		donor_id;
	uint64		index;
	uint32		table_count;
	uint64		bytes_estimated;
} IncomingSnapshot;

typedef struct IncomingTable
{
	uint64		table_id;
	char	   *schema_name;
	char	   *table_name;
	char		state;			/* REPLICATED_TABLE_COPYING or REPLICATED_TABLE_ACTIVE */
	uint32		origin_node;
	uint64		activated_index;	/* 0: not known */
	uint64		row_count;		/* PG_UINT64_MAX: not known */
	char	   *shape;
	char	   *definition;
	Oid			relid;			/* once it is there; snapshot_install.c */
	bool		keeps_rows;		/* this node is where the rows come from */
} IncomingTable;

typedef struct SnapshotReceiver
{
	PeerConnection *peer;
	WriteSetReader reader;		/* over the frame that was read last; valid until the next is read */
	uint64		frames;
	uint64		bytes;
} SnapshotReceiver;

/* Reads the next frame and checks it; ERRCODE_PROTOCOL_VIOLATION if there is none. */
extern SnapshotFrameKind snapshot_read_frame(SnapshotReceiver *receiver);

/* Reads one that must be of that kind. */
extern void snapshot_expect_frame(SnapshotReceiver *receiver, SnapshotFrameKind kind);

extern void snapshot_receive_begin(SnapshotReceiver *receiver, IncomingSnapshot *incoming);

/* Leaves the first table's frame, or that of the end if there is no table, as the one that was read last. */
extern void snapshot_receive_log_state(SnapshotReceiver *receiver, StringInfo bytes, SnapshotFrameKind *next);
extern List *snapshot_receive_tables(SnapshotReceiver *receiver, const IncomingSnapshot *incoming, SnapshotFrameKind next);
extern void snapshot_check_frame_end(const SnapshotReceiver *receiver);
extern void snapshot_malformed(const char *what) pg_attribute_noreturn();

/* ---- snapshot_install.c ---- */

/* Makes what is not there, empties what is, forgets what is no longer replicated. */
extern void snapshot_prepare_tables(List *tables, uint32 own_node_id);

/* Receives and stores the rows of each. */
extern void snapshot_install_rows(SnapshotReceiver *receiver, List *tables, uint64 index);

#endif							/* QUORUM_SNAPSHOT_INTERNAL_H */
