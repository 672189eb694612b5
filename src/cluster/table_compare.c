/*
 * table_compare.c
 *	  Row by row, how this node's copy of a table differs from another node's, at one log index.
 *
 * Runs in a client backend of the node whose copy is quarantined.  Both copies are summed up in buckets by primary key first, so
 * that only rows of the buckets that differ have to be sent.  There a row is known by the hash of all its bytes: keys and indexes
 * may be damaged as well as anything else.
 *
 * Must never hold more of a table in memory than PASS_ROWS rows' hashes: buckets are compared in passes.
 *
 * Invariants
 *	 1. Both snapshots are the log's prefix before the same index: here because the apply worker stands in that entry while it is
 *		taken, there as the check worker holds it (check_job.h).
 *	 2. What the other node sends is checked before it is used.
 *
 * Locks: ACCESS SHARE on the table.
 */
#include "postgres.h"

#include "access/relation.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "capture/capture.h"
#include "cluster/peer_query.h"
#include "cluster/table_compare.h"
#include "cluster/verify.h"
#include "shared/check_job.h"
#include "shared/proposal_queue.h"
#include "shared/table_health.h"
#include "shared/table_rows.h"
#include "shared/writeset.h"

#define BUCKETS 4096
#define SUM_BYTES 24
#define PASS_ROWS 500000
#define ROWS_PER_FETCH "200"
#define REACH_PATIENCE_MS 30000
#define SCAN_TIMEOUT_MS (60 * 60 * 1000)
#define LOOK_INTERVAL_MS 100

/* ---- beginning ---- */

static PeerConnection *
try_to_connect(const MemberState *member)
{
	char	   *why_not;

	return peer_connect(member->conninfo, NULL, psprintf("node \"%s\"", member->node_name), &why_not);
}

/*
 * A node that had the majority's sum in the last check that had one, and that can be connected to; an error if there is none.  A
 * follower does not hear of others than the leader, so what quorum.nodes says here is not asked.
 */
static uint32
connect_to_donor(Comparison *comparison)
{
	NodeCheck	checks[QUORUM_MAX_MEMBERS];
	NodeStatus *status = palloc(sizeof(NodeStatus));
	TableSum	agreed;
	int			count = 0;
	bool		exists = table_check_last_agreed(comparison->table.table_id, checks, QUORUM_MAX_MEMBERS, &count, &agreed) != 0;

	shmem_get_status(status);
	for (int i = 0; exists && i < count; i++)
	{
		const MemberState *member = verify_member(status, checks[i].node_id);

		if (member == NULL || member->node_id == QuorumShmem->identity.node_id ||
			checks[i].outcome != CHECK_DONE || !table_sum_equal(&checks[i].sum, &agreed))
			continue;
		comparison->donor = try_to_connect(member);
		comparison->donor_name = pstrdup(member->node_name);
		if (comparison->donor != NULL)
			return member->node_id;
	}
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("no node with a copy that is known to be right can be reached"),
			 errhint("See quorum.nodes and quorum.checks; quorum.verify() may find one.")));
}

static uint64
propose_comparison(uint64 table_id, uint32 donor_id, uint64 nonce)
{
	StringInfoData payload;

	verify_refuse_older_builds();
	initStringInfo(&payload);
	writeset_begin(&payload);
	writeset_put_table_compare(&payload, table_id, QuorumShmem->identity.node_id, donor_id, nonce);
	writeset_finish(&payload, turn_applied_index(), 0, 0, 0, 1);
	return gate_propose_check(payload.data, payload.len);
}

/* Until the apply worker stands at the entry, which it does only for a session that waits. */
static void
await_turn(uint64 index)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), REACH_PATIENCE_MS);

	while (compare_session_state() == COMPARE_WAITING)
	{
		bool		has_passed = turn_applied_index() >= index;

		if ((has_passed && compare_session_state() == COMPARE_WAITING) || GetCurrentTimestamp() >= deadline ||
			pg_atomic_read_u32(&QuorumShmem->apply_failed) != 0)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("this node did not come to log index %llu in time to compare the table there", (unsigned long long) index),
					 errhint("See applied_index and last_error in quorum.status, and try again.")));
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, LOOK_INTERVAL_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

static void
report_odd_answer(const char *donor_name)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("node \"%s\" sent something else than the rows that it was asked for", donor_name)));
}

static char *
ask_donor(Comparison *comparison, const char *sql, int parameter_count, const char *const *parameters)
{
	PeerResult *answer = peer_query(comparison->donor, sql, parameter_count, parameters);

	if (answer->row_count != 1 || answer->column_count != 1 || answer->rows[0][0] == NULL)
		report_odd_answer(comparison->donor_name);
	return answer->rows[0][0];
}

static void
import_donor_snapshot(Comparison *comparison)
{
	const char *parameters[2];
	char	   *snapshot_name;

	parameters[0] = psprintf("%lld", (long long) comparison->table.table_id);
	parameters[1] = psprintf("%lld", (long long) comparison->index);
	snapshot_name = ask_donor(comparison, "SELECT quorum.compare_begin($1, $2)", 2, parameters);
	(void) peer_query(comparison->donor, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY", 0, NULL);
	(void) peer_query(comparison->donor, psprintf("SET TRANSACTION SNAPSHOT %s", quote_literal_cstr(snapshot_name)), 0, NULL);
	parameters[1] = "1";
	(void) ask_donor(comparison, "SELECT quorum.bucket_rows($1, $2, '{}') UNION ALL SELECT ''::bytea", 2, parameters);	/* takes the table's lock */
	parameters[1] = psprintf("%lld", (long long) comparison->index);
	(void) peer_query(comparison->donor, "SELECT quorum.compare_taken($1, $2)", 2, parameters);
}

void
comparison_begin(Comparison *comparison, const ReplicatedTable *table, uint64 nonce)
{
	uint32		donor_id;

	memset(comparison, 0, sizeof(Comparison));
	comparison->table = *table;
	comparison->nonce = nonce;
	donor_id = connect_to_donor(comparison);
	peer_set_query_timeout(comparison->donor, SCAN_TIMEOUT_MS);
	(void) peer_query(comparison->donor, "SET quorum.read_consistency = 'local'", 0, NULL);
	comparison->index = propose_comparison(table->table_id, donor_id, nonce);
	await_turn(comparison->index);
	comparison->relation = relation_open(table->relid, AccessShareLock);
	comparison->snapshot = RegisterSnapshot(GetLatestSnapshot());
	import_donor_snapshot(comparison);
}

void
comparison_end(Comparison *comparison)
{
	peer_close(comparison->donor);
	UnregisterSnapshot(comparison->snapshot);
	relation_close(comparison->relation, AccessShareLock);	/* the apply worker may need a stronger one, and holds its own */
}

/* ---- one pass: the rows of some buckets ---- */

typedef struct OwnRow
{
	struct OwnRow *next;
	ItemPointerData tid;
} OwnRow;

typedef struct OwnRows
{
	RowHash		hash;			/* hash key */
	OwnRow	   *rows;			/* all with that hash: more than one if a damaged copy has a row twice */
} OwnRows;

typedef struct Pass
{
	MemoryContext context;
	bool	   *is_wanted;		/* by bucket */
	HTAB	   *own;			/* OwnRows that the donor has not shown so far */
} Pass;

static bool
note_own_row(void *context, const TableRow *row)
{
	Pass	   *pass = context;
	OwnRows    *same;
	OwnRow	   *own;
	bool		found;

	if (!pass->is_wanted[row->bucket])
		return true;
	same = hash_search(pass->own, &row->hash, HASH_ENTER, &found);
	if (!found)
		same->rows = NULL;
	own = MemoryContextAlloc(pass->context, sizeof(OwnRow));
	own->tid = row->slot->tts_tid;
	own->next = same->rows;
	same->rows = own;
	return true;
}

/* A row of the donor: this node has it, or it is missing. */
static void
match_donor_row(Pass *pass, const DifferenceSink *sink, const char *row, uint32 length)
{
	RowHash		hash = row_hash(row, length);
	OwnRows    *same = hash_search(pass->own, &hash, HASH_FIND, NULL);

	if (same == NULL || same->rows == NULL)
		sink->missing(sink->context, row, length);
	else
		same->rows = same->rows->next;
}

static char *
array_of_wanted(const bool *is_wanted)
{
	StringInfoData text;

	initStringInfo(&text);
	for (int i = 0; i < BUCKETS; i++)
		if (is_wanted[i])
			appendStringInfo(&text, "%s%d", text.len == 0 ? "{" : ",", i);
	appendStringInfoChar(&text, '}');
	return text.data;
}

static int
fetch_donor_rows(Comparison *comparison, Pass *pass, const DifferenceSink *sink)
{
	PeerResult *answer = peer_query(comparison->donor, "FETCH " ROWS_PER_FETCH " FROM quorum_rows", 0, NULL);

	for (int i = 0; i < answer->row_count; i++)
	{
		bytea	   *row;

		if (answer->column_count != 1 || answer->rows[i][0] == NULL)
			report_odd_answer(comparison->donor_name);
		row = DatumGetByteaPP(DirectFunctionCall1(byteain, CStringGetDatum(answer->rows[i][0])));
		match_donor_row(pass, sink, VARDATA_ANY(row), VARSIZE_ANY_EXHDR(row));
	}
	return answer->row_count;
}

static void
match_donor_rows(Comparison *comparison, Pass *pass, const DifferenceSink *sink)
{
	MemoryContext batch_context = AllocSetContextCreate(CurrentMemoryContext, "quorum rows of the donor", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context;
	bool		goes_on = true;
	char	   *cursor = psprintf("DECLARE quorum_rows NO SCROLL CURSOR FOR SELECT r FROM quorum.bucket_rows(%lld, %d, '%s') AS r",
								  (long long) comparison->table.table_id, BUCKETS, array_of_wanted(pass->is_wanted));

	(void) peer_query(comparison->donor, cursor, 0, NULL);
	while (goes_on)
	{
		old_context = MemoryContextSwitchTo(batch_context);
		CHECK_FOR_INTERRUPTS();
		goes_on = fetch_donor_rows(comparison, pass, sink) > 0;
		MemoryContextSwitchTo(old_context);
		MemoryContextReset(batch_context);
	}
	(void) peer_query(comparison->donor, "CLOSE quorum_rows", 0, NULL);
	MemoryContextDelete(batch_context);
}

static void
tell_extra_rows(Pass *pass, const DifferenceSink *sink)
{
	HASH_SEQ_STATUS scan;
	OwnRows    *same;

	hash_seq_init(&scan, pass->own);
	while ((same = hash_seq_search(&scan)) != NULL)
		for (OwnRow *row = same->rows; row != NULL; row = row->next)
			sink->extra(sink->context, &row->tid);
}

static void
run_pass(Comparison *comparison, bool *is_wanted, bool is_readable, const DifferenceSink *sink)
{
	Pass		pass = {.is_wanted = is_wanted};
	HASHCTL		control;

	pass.context = AllocSetContextCreate(CurrentMemoryContext, "quorum comparison", ALLOCSET_DEFAULT_SIZES);
	control.keysize = sizeof(RowHash);
	control.entrysize = sizeof(OwnRows);
	control.hcxt = pass.context;
	pass.own = hash_create("pg_quorum rows", 1024, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	if (is_readable)
		(void) table_rows_visit(comparison->relation, comparison->snapshot, BUCKETS, note_own_row, &pass);
	match_donor_rows(comparison, &pass, sink);
	tell_extra_rows(&pass, sink);
	MemoryContextDelete(pass.context);
}

/* ---- which buckets ---- */

static uint64
take_u64(const char **at)
{
	uint64		value;

	memcpy(&value, *at, sizeof(value));
	*at += sizeof(value);
	return pg_ntoh64(value);
}

static TableSum *
donor_sums(Comparison *comparison)
{
	TableSum   *sums = palloc(BUCKETS * sizeof(TableSum));
	char	   *sql = psprintf("SELECT quorum.bucket_sums(%lld, %d)", (long long) comparison->table.table_id, BUCKETS);
	bytea	   *bytes = DatumGetByteaPP(DirectFunctionCall1(byteain, CStringGetDatum(ask_donor(comparison, sql, 0, NULL))));
	const char *at = VARDATA_ANY(bytes);

	if (VARSIZE_ANY_EXHDR(bytes) != BUCKETS * SUM_BYTES)
		report_odd_answer(comparison->donor_name);
	for (int i = 0; i < BUCKETS; i++)
	{
		sums[i].row_count = take_u64(&at);
		sums[i].hash.high = take_u64(&at);
		sums[i].hash.low = take_u64(&at);
	}
	return sums;
}

/* NULL: the copy is damaged so much that it cannot be read. */
static TableSum *
try_own_sums(Comparison *comparison)
{
	char	   *damage = NULL;
	TableSum   *sums = try_bucket_sums(comparison->relation, comparison->snapshot, BUCKETS, &damage);

	if (sums == NULL)
		ereport(NOTICE,
				(errmsg("table \"%s\" cannot be read on this node", RelationGetRelationName(comparison->relation)),
				 errdetail_internal("%s", damage)));
	return sums;
}

static void
run_passes(Comparison *comparison, const TableSum *own, const TableSum *donor, const DifferenceSink *sink)
{
	bool		is_wanted[BUCKETS] = {false};
	uint64		rows = 0;
	bool		any = false;

	for (int i = 0; i < BUCKETS; i++)
	{
		is_wanted[i] = own == NULL || !table_sum_equal(&own[i], &donor[i]);
		any |= is_wanted[i];
		rows += is_wanted[i] ? (own == NULL ? 0 : own[i].row_count) + donor[i].row_count : 0;
		if (!any || (rows < PASS_ROWS && i < BUCKETS - 1))
			continue;
		run_pass(comparison, is_wanted, own != NULL, sink);
		memset(is_wanted, 0, sizeof(is_wanted));
		rows = 0;
		any = false;
	}
}

void
comparison_run(Comparison *comparison, const DifferenceSink *sink)
{
	TableSum   *own;

	if (sink->unreadable == NULL)
		own = bucket_sums(comparison->relation, comparison->snapshot, BUCKETS);
	else
		own = try_own_sums(comparison);
	if (own == NULL)
		sink->unreadable(sink->context);
	run_passes(comparison, own, donor_sums(comparison), sink);
}
