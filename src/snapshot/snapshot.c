/*
 * snapshot.c
 *	  One attempt to copy the replicated tables from another node: when it is due, from whom, and how it ends.
 *
 * Process: apply worker.  The others do not hold the log that this node needs next; it has applied all that it has.  Then a donor's tables, as they
 * were at one log index, take the place of this node's, with the log state of that index: certification, configuration, what is known of the
 * origins.  From there the log leads on.
 *
 * States in the order in which they occur, with what leaves each: SnapshotPhase in shared/snapshot_progress.h.
 *
 * Invariants
 *	 1. Tables, their list and the position row change in one local transaction, whose commit is flushed.  Killed at any moment, this node is where it
 *		was, or at the snapshot's index.
 *	 2. The log state is durable before that commit, and the consensus worker does not look at it in between (log_state_lock).  It takes it iff the
 *		position row has its index, so one without the other never counts.
 *	 3. Meanwhile no local transaction has its turn: applied_index moves by this commit alone.
 *	 4. What is copied leads to where the log is held: its index is at least the one before snapshot_needed, and the one that rows_to_keep.h says.
 *
 * Locks: those of snapshot_install.c; QuorumShmem->log_state_lock over the commit.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/lwlock.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "config.h"
#include "shared/chosen_log.h"
#include "shared/log_state_file.h"
#include "shared/position.h"
#include "shared/proposal_queue.h"
#include "shared/rows_to_keep.h"
#include "shared/shmem.h"
#include "shared/table_rows.h"
#include "snapshot/snapshot.h"
#include "snapshot/snapshot_internal.h"

#define PROGRESS_INTERVAL_MS 100

typedef struct Donor
{
	uint32		node_id;
	char		node_name[NAMEDATALEN];
	char		conninfo[QUORUM_MAX_CONNINFO];
} Donor;

static uint64 committing_index = 0; /* the transaction that is under way ends at this index; 0: it is none of ours */
static uint32 attempts = 0;
static bool asked_in_parts = false; /* in the attempt that is under way */
static bool asks_whole = false; /* the last attempt has shown that tables cannot be compared */

/* ---- progress ---- */

void
snapshot_enter_phase(SnapshotPhase phase)
{
	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
	QuorumShmem->snapshot.phase = phase;
	QuorumShmem->snapshot.changed_at = GetCurrentTimestamp();
	LWLockRelease(QuorumShmem->lock);
}

void
snapshot_note_table(const char *schema_name, const char *table_name)
{
	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
	strlcpy(QuorumShmem->snapshot.schema_name, schema_name, NAMEDATALEN);
	strlcpy(QuorumShmem->snapshot.table_name, table_name, NAMEDATALEN);
	LWLockRelease(QuorumShmem->lock);
}

/* The caller holds the lock. */
static void
show_rows(const SnapshotReceiver *receiver, uint64 rows_of_table)
{
	QuorumShmem->snapshot.rows_copied = receiver->rows_copied + rows_of_table;
	QuorumShmem->snapshot.tables_done = receiver->tables_done;
	QuorumShmem->snapshot.bytes_received = receiver->bytes;
}

void
snapshot_note_rows(const SnapshotReceiver *receiver, uint64 rows_of_table)
{
	static TimestampTz last_note = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (!TimestampDifferenceExceeds(last_note, now, PROGRESS_INTERVAL_MS))
		return;
	last_note = now;
	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
	show_rows(receiver, rows_of_table);
	LWLockRelease(QuorumShmem->lock);
}

void
snapshot_note_table_done(const SnapshotReceiver *receiver, uint64 kept_rows, uint64 deleted_rows)
{
	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
	show_rows(receiver, 0);
	QuorumShmem->snapshot.rows_kept += kept_rows;
	QuorumShmem->snapshot.rows_deleted += deleted_rows;
	LWLockRelease(QuorumShmem->lock);
}

static void
begin_progress(const Donor *donor)
{
	SnapshotProgress *progress = &QuorumShmem->snapshot;

	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
	memset(progress, 0, sizeof(SnapshotProgress));
	progress->phase = SNAPSHOT_CONNECTING;
	strlcpy(progress->donor, donor->node_name, NAMEDATALEN);
	progress->attempts = attempts;
	progress->started_at = progress->changed_at = GetCurrentTimestamp();
	LWLockRelease(QuorumShmem->lock);
}

static void
note_incoming(const IncomingSnapshot *incoming)
{
	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
	QuorumShmem->snapshot.index = incoming->index;
	QuorumShmem->snapshot.tables_total = incoming->table_count;
	QuorumShmem->snapshot.bytes_estimated = incoming->bytes_estimated;
	LWLockRelease(QuorumShmem->lock);
}

/* ---- when ---- */

/*
 * A consensus worker that starts anew finds out once more what it lacks.  Tables from a backup may be further than the log that is here: that it leads
 * on from there is of no use, since certification needs what is before.
 */
bool
snapshot_is_due(void)
{
	uint64		needed = pg_atomic_read_u64(&QuorumShmem->snapshot_needed);
	uint64		applied_index;
	uint64		chosen_index;

	if (pg_atomic_read_u32(&QuorumShmem->consensus_restart_wanted) != 0)
		return false;
	if (rows_to_keep_pending())
		return true;			/* whatever the log holds: to it, tables with rows are in the way */
	if (needed == 0)
		return false;
	applied_index = turn_applied_index();
	chosen_index = pg_atomic_read_u64(&QuorumShmem->chosen_index);
	if (needed > applied_index + 1 && applied_index + 1 < chosen_log_first_held())
		return true;
	return needed > chosen_index + 1 && applied_index >= chosen_index;
}

/* ---- from whom ---- */

/* Who does not lead hears little of the others, so that one is not in contact counts least: it may be there all the same. */
static int
rank_of_donor(const MemberState *member, const NodeStatus *status)
{
	int			rank = 0;

	if (!member->is_voter)
		rank += 4;				/* it may be new itself */
	if (member->node_id == status->leader_id)
		rank += 2;				/* it has enough to do */
	if (!member->reachable)
		rank += 1;
	return rank;
}

/* The best one; with each failed attempt the next.  False: there is no other member. */
static bool
choose_donor(Donor *donor)
{
	NodeStatus *status = palloc(sizeof(NodeStatus));
	NodeIdentity identity;
	int			candidates[QUORUM_MAX_MEMBERS];
	int			count = 0;
	const MemberState *chosen;

	shmem_get_status(status);
	shmem_get_identity(&identity);
	for (int rank = 0; rank < 8; rank++)
		for (int i = 0; i < status->member_count; i++)
			if (status->members[i].node_id != identity.node_id && rank_of_donor(&status->members[i], status) == rank)
				candidates[count++] = i;
	if (count == 0)
		return false;
	chosen = &status->members[candidates[attempts % count]];
	donor->node_id = chosen->node_id;
	strlcpy(donor->node_name, chosen->node_name, NAMEDATALEN);
	strlcpy(donor->conninfo, chosen->conninfo, QUORUM_MAX_CONNINFO);
	pfree(status);
	return true;
}

/* An older build answers only with all rows of all tables. */
static bool
gives_parts(PeerConnection *peer)
{
	PeerResult *answer = peer_query(peer, "SELECT pg_catalog.to_regprocedure('quorum.send_rows(bigint, integer, bytea)') IS NOT NULL", 0, NULL);

	return answer->row_count == 1 && answer->rows[0][0] != NULL && strcmp(answer->rows[0][0], "t") == 0;
}

/*
 * In parts the donor waits for us between two statements, while rows are compared and indexes built here: that must not end its transaction.
 * But it is to notice soon when we are gone, and some day when we are there and do nothing, since its snapshot keeps dead rows there.
 */
static const char *const donor_settings[] = {
	"SET quorum.read_consistency = 'local'",
	"SET idle_in_transaction_session_timeout = '24h'",
	"SET tcp_keepalives_idle = 30",
	"SET tcp_keepalives_interval = 10",
	"SET tcp_keepalives_count = 3"
};

static void
connect_to_donor(SnapshotReceiver *receiver, const Donor *donor)
{
	NodeIdentity identity;
	char	   *call;

	shmem_get_identity(&identity);
	receiver->peer = peer_connect(donor->conninfo, NULL, psprintf("node \"%s\", which is to give its tables", donor->node_name), NULL);
	for (int i = 0; i < lengthof(donor_settings); i++)
		(void) peer_query(receiver->peer, donor_settings[i], 0, NULL);
	receiver->in_parts = SNAPSHOT_NEWEST_VERSION >= SNAPSHOT_VERSION_PARTS && !asks_whole && gives_parts(receiver->peer);
	asked_in_parts = receiver->in_parts;
	snapshot_learn_token_ages(receiver->peer);
	(void) peer_query(receiver->peer, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", 0, NULL);
	call = psprintf("CALL quorum.send_tables(%d, '" UINT64_FORMAT "')",
					receiver->in_parts ? SNAPSHOT_VERSION_PARTS : SNAPSHOT_VERSION_WHOLE, identity.cluster_id);
	peer_copy_begin(receiver->peer, call);
}

/* ---- one attempt ---- */

/* Invariant 4. */
static void
check_index(const IncomingSnapshot *incoming)
{
	uint64		needed = Max(pg_atomic_read_u64(&QuorumShmem->snapshot_needed), rows_to_keep_pending() ? rows_to_keep_index() + 1 : 0);
	uint64		applied_index = turn_applied_index();

	if (incoming->index < applied_index || incoming->index + 1 < needed)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the tables of that node are too old to be copied"),
				 errdetail("They are at log index " UINT64_FORMAT "; this node is at " UINT64_FORMAT ", and needs them as of " UINT64_FORMAT " at least.",
						   incoming->index, applied_index, Max(needed, 1) - 1)));
}

/* If there are no tables, it has been read already. */
static void
receive_end(SnapshotReceiver *receiver, List *tables)
{
	if (tables != NIL)
		snapshot_expect_frame(receiver, SNAPSHOT_FRAME_END);
	if (writeset_read_u64(&receiver->reader) != receiver->frames - 1)
		snapshot_malformed("Frames are missing.");
	snapshot_check_frame_end(receiver);
	snapshot_check_answer_end(receiver);
}

/* In the transaction: what the tables are to be. */
static void
receive_everything(SnapshotReceiver *receiver, IncomingSnapshot *incoming, StringInfo log_state)
{
	NodeIdentity identity;
	SnapshotFrameKind next;
	List	   *tables;

	shmem_get_identity(&identity);
	snapshot_receive_begin(receiver, incoming);
	check_index(incoming);
	note_incoming(incoming);
	snapshot_enter_phase(SNAPSHOT_LOG_STATE);
	snapshot_receive_log_state(receiver, log_state, &next);
	snapshot_enter_phase(SNAPSHOT_TABLES);
	tables = snapshot_receive_tables(receiver, incoming, next);
	if (receiver->in_parts)
		receive_end(receiver, tables);
	snapshot_prepare_tables(receiver, tables, identity.node_id);
	snapshot_enter_phase(SNAPSHOT_ROWS);
	snapshot_install_rows(receiver, tables, incoming->index);
	if (!receiver->in_parts)
		receive_end(receiver, tables);
	if (incoming->index > turn_applied_index()) /* else the tables came from a backup that is as new */
		position_update(incoming->index);
}

/* At the commit: whoever reads from now on sees the snapshot's index. */
static void
at_transaction_end(XactEvent event, void *argument)
{
	if (committing_index == 0)
		return;
	if (event == XACT_EVENT_COMMIT)
	{
		position_at_commit();
		turn_set_applied(committing_index);
		committing_index = 0;
	}
	else if (event == XACT_EVENT_ABORT)
		committing_index = 0;
}

/* Invariants 1 and 2. */
static void
commit(const IncomingSnapshot *incoming, StringInfo log_state)
{
	snapshot_enter_phase(SNAPSHOT_COMMITTING);
	LWLockAcquire(QuorumShmem->log_state_lock, LW_EXCLUSIVE);
	log_state_write_incoming(log_state->data, log_state->len);
	committing_index = incoming->index;
	ForceSyncCommit();
	PopActiveSnapshot();
	CommitTransactionCommand();
	LWLockRelease(QuorumShmem->log_state_lock);
	rows_to_keep_done();
	shmem_restart_consensus();
}

static void
check_log_state(const IncomingSnapshot *incoming, StringInfo log_state)
{
	NodeIdentity identity;
	LogStateHead head;

	shmem_get_identity(&identity);
	log_state_check_bytes(log_state->data, log_state->len, identity.cluster_id, &head);
	if (head.index != incoming->index)
		snapshot_malformed("Its log state is of another index.");
}

/* While a copy waits for a lock its donor waits too, whose snapshot keeps dead rows there: then rather begin anew. */
static void
bound_lock_waits(bool are_bounded)
{
	char		milliseconds[12];

	snprintf(milliseconds, sizeof(milliseconds), "%d", are_bounded ? quorum_copy_lock_timeout_ms : 0);
	SetConfigOption("lock_timeout", milliseconds, PGC_SUSET, PGC_S_OVERRIDE);
}

static void
copy_from(const Donor *donor)
{
	IncomingSnapshot incoming;
	SnapshotReceiver receiver = {0};
	StringInfoData log_state;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(TopTransactionContext);
	initStringInfo(&log_state);
	connect_to_donor(&receiver, donor);
	receive_everything(&receiver, &incoming, &log_state);
	check_log_state(&incoming, &log_state);
	peer_close(receiver.peer);
	commit(&incoming, &log_state);
	ereport(LOG,
			(errmsg("copied %u replicated tables from node \"%s\" as of log index " UINT64_FORMAT, incoming.table_count, donor->node_name,
					incoming.index)));
}

bool
snapshot_copy(void)
{
	static bool is_registered = false;
	Donor	   *donor;
	char		activity[NAMEDATALEN + 64];

	if (!is_registered)
		RegisterXactCallback(at_transaction_end, NULL);
	is_registered = true;
	donor = palloc(sizeof(Donor));
	if (!choose_donor(donor) || !turn_suspend())
		return false;
	begin_progress(donor);
	snprintf(activity, sizeof(activity), "copying the replicated tables from node %s", donor->node_name);
	pgstat_report_activity(STATE_RUNNING, activity);
	ereport(LOG,
			(errmsg("copying the replicated tables from node \"%s\"", donor->node_name),
			 rows_to_keep_pending() ? errdetail("This node is new, and the rows that its tables have are kept where they are the same.")
			 : errdetail("The log is held from index " UINT64_FORMAT " on, the tables here are at " UINT64_FORMAT ".",
						 pg_atomic_read_u64(&QuorumShmem->snapshot_needed), turn_applied_index())));
	bound_lock_waits(true);
	copy_from(donor);
	bound_lock_waits(false);
	attempts = 0;
	asks_whole = false;
	turn_resume();
	snapshot_enter_phase(SNAPSHOT_DONE);
	return true;
}

/*
 * The donor does not know what it was asked for, as its library is older than its catalogs; or what is stored here is damaged: an index that is
 * built of it, that of a TOAST table too, may find the same twice.
 */
static bool
says_not_to_compare(int sqlerrcode)
{
	return sqlerrcode == ERRCODE_FEATURE_NOT_SUPPORTED || sqlerrcode == ERRCODE_UNDEFINED_FUNCTION ||
		sqlerrcode == ERRCODE_UNIQUE_VIOLATION || check_says_damaged(sqlerrcode);
}

void
snapshot_after_error(int sqlerrcode)
{
	bound_lock_waits(false);
	attempts++;
	asks_whole = asked_in_parts && says_not_to_compare(sqlerrcode);
	committing_index = 0;
	turn_resume();
	snapshot_note_table("", "");
	snapshot_enter_phase(SNAPSHOT_WAITING);
}

void
snapshot_reset(void)
{
	turn_resume();
	if (QuorumShmem->snapshot.phase != SNAPSHOT_NONE && QuorumShmem->snapshot.phase != SNAPSHOT_DONE)
		snapshot_enter_phase(SNAPSHOT_WAITING);
}
