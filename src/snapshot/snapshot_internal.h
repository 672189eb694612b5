/*
 * snapshot_internal.h
 *	  Between the files that copy tables: snapshot.c (one attempt from begin to end), snapshot_receive.c (frames from the donor),
 *	  snapshot_install.c (which tables are made, emptied or kept here), snapshot_load.c (rows into a table), snapshot_correct.c (only what differs of
 *	  a table that has rows), snapshot_files.c (what such a table's files say beyond its rows).  Process: apply worker.
 */
#ifndef QUORUM_SNAPSHOT_INTERNAL_H
#define QUORUM_SNAPSHOT_INTERNAL_H

#include "postgres.h"

#include "lib/stringinfo.h"
#include "executor/tuptable.h"
#include "nodes/pg_list.h"
#include "utils/relcache.h"

#include "cluster/peer_query.h"
#include "shared/snapshot_progress.h"
#include "shared/table_checksum.h"
#include "shared/writeset.h"
#include "snapshot/snapshot_format.h"

/* ---- snapshot.c: what quorum.snapshot_progress shows ---- */
extern void snapshot_enter_phase(SnapshotPhase phase);
extern void snapshot_note_table(const char *schema_name, const char *table_name);
struct SnapshotReceiver;
extern void snapshot_note_rows(const struct SnapshotReceiver *receiver, uint64 rows_of_table);	/* now and then, while those of a table come */
extern void snapshot_note_table_done(const struct SnapshotReceiver *receiver, uint64 kept_rows, uint64 deleted_rows);

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

	bool		is_emptied;		/* it is here, and its rows go before the donor's come */

	/* snapshot_correct.c */
	bool		is_compared;	/* it has rows here: only the buckets that differ are asked for */
	bool		is_adopted;		/* an ordinary table until now, of whose files nothing is known */
	uint32		bucket_count;
	uint8	   *differing;		/* bit i % 8 of byte i / 8: bucket i differs */
	uint64		rows_here;
	uint64		differing_rows_here;
	uint64		differing_rows_there;
	TableSum	sum_there;		/* of all rows */
} IncomingTable;

typedef struct SnapshotReceiver
{
	PeerConnection *peer;
	bool		in_parts;		/* SNAPSHOT_VERSION_PARTS: the rows of each table are asked for */
	WriteSetReader reader;		/* over the frame that was read last; valid until the next is read */
	uint64		frames;
	uint64		bytes;
	uint64		rows_copied;	/* into tables that are done */
	uint32		tables_done;
} SnapshotReceiver;

/* Reads the next frame and checks it; ERRCODE_PROTOCOL_VIOLATION if there is none. */
extern SnapshotFrameKind snapshot_read_frame(SnapshotReceiver *receiver);

/* Reads one that must be of that kind. */
extern void snapshot_expect_frame(SnapshotReceiver *receiver, SnapshotFrameKind kind);

/* In parts: a statement that answers with frames, the next of them (progress is passed over), and that none follows. */
extern void snapshot_ask(SnapshotReceiver *receiver, const char *call);
extern SnapshotFrameKind snapshot_read_answer(SnapshotReceiver *receiver);
extern void snapshot_check_answer_end(SnapshotReceiver *receiver);

extern void snapshot_receive_begin(SnapshotReceiver *receiver, IncomingSnapshot *incoming);

/* Leaves the first table's frame, or that of the end if there is no table, as the one that was read last. */
extern void snapshot_receive_log_state(SnapshotReceiver *receiver, StringInfo bytes, SnapshotFrameKind *next);
extern List *snapshot_receive_tables(SnapshotReceiver *receiver, const IncomingSnapshot *incoming, SnapshotFrameKind next);
extern void snapshot_check_frame_end(const SnapshotReceiver *receiver);
extern void snapshot_malformed(const char *what) pg_attribute_noreturn();

/* ---- snapshot_install.c ---- */

/* Makes what is not there, compares or empties what is, forgets what is no longer replicated. */
extern void snapshot_prepare_tables(SnapshotReceiver *receiver, List *tables, uint32 own_node_id);

/* Receives and stores the rows of each. */
extern void snapshot_install_rows(SnapshotReceiver *receiver, List *tables, uint64 index);

/* Reads how far the table's sequences are there, the rest of the frame E, and moves them here. */
extern void snapshot_advance_sequences(SnapshotReceiver *receiver, const IncomingTable *table);

/* ---- snapshot_load.c ---- */

typedef struct RowLoader
{
	Relation	relation;		/* the caller's */
	struct BulkInsertStateData *bulk;
	int			options;		/* of table_multi_insert() */
	TupleTableSlot **slots;		/* as many as a frame had at most so far */
	uint32		slot_count;
	MemoryContext rows_context; /* reset with each frame */
	uint64		received_rows;
	uint64		stored_rows;

	/* NULL, or: is this row, in the bytes in which it travels, here already?  Then it is passed over.  To be set after the begin. */
	bool		(*is_here) (void *context, const char *row, uint32 length);
	void	   *context;
} RowLoader;

extern void snapshot_load_begin(RowLoader *loader, Relation relation, int options);

/* The body of a frame R, from its beginning on. */
extern void snapshot_load_frame(RowLoader *loader, WriteSetReader *reader);
extern void snapshot_load_end(RowLoader *loader);

/* ---- snapshot_correct.c ---- */

/* Which buckets of the table differ?  False: it is to be emptied and copied whole, because it has no rows, is damaged, or too much differs. */
extern bool snapshot_compare(SnapshotReceiver *receiver, IncomingTable *table);

typedef struct CorrectedRows
{
	uint64		kept;
	uint64		copied;
	uint64		deleted;
} CorrectedRows;

/*
 * Afterwards the table has the donor's rows, and no index of it is right any more: they are to be built anew.  False: it has not, as a last
 * look at all rows says; then it is to be emptied and copied whole.
 */
extern bool snapshot_correct(SnapshotReceiver *receiver, const IncomingTable *table, CorrectedRows *corrected);

/* ---- snapshot_files.c: of a table that is adopted with its rows, and its TOAST table ---- */

/* False: some of what is there is later, or earlier, than all that this server knows of; the table is to be copied whole. */
extern bool snapshot_files_are_of_this_server(Relation relation);

/* Empties the visibility map. */
extern void snapshot_files_forget_visibility(Relation relation);

#endif							/* QUORUM_SNAPSHOT_INTERNAL_H */
