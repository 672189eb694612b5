/*
 * trimming.c
 *	  How much of the log is kept, and its trimming.  Process: consensus worker.
 *
 * Must never drop what the log state does not cover, nor a segment that an open slot, a promise or the configuration still needs.
 *
 * A segment of the journal goes, the oldest first, if each slot that has an acceptance in it is below the log state's index, and
 *	 - every member has delivered those slots, and quorum.log_keep_size is left without it; or
 *	 - the journal is longer than quorum.log_retention_size, or the segment older than quorum.log_retention_age and quorum.log_keep_size is left:
 *	   a member that is away for longer will have to copy the tables.
 * Who leads knows what each member has delivered, and tells the others.  Where no leader says so (there is none, or it is of an older build), a member
 * whose link is up is taken for one that a leader looks after.
 *
 * Invariants
 *	 1. The order is: first_held_index is raised, promise and configuration are appended again, the journal says durably from which slot on it is
 *		held, segments go, files of the chosen log go.  A crash between two of these leaves more than is needed, never less.
 *	 2. The segment with an acceptance of the log state's own index, or of a later slot, stays: without it, a journal that lost its end would look like
 *		one that was trimmed (P8).
 *
 * Locks: none.
 */
#include "postgres.h"

#include <sys/stat.h>
#include <time.h>

#include "utils/memutils.h"

#include "config.h"
#include "consensus/worker_internal.h"
#include "shared/chosen_log.h"
#include "shared/proposal_queue.h"

#define LOOK_INTERVAL_MS 250
#define SEGMENTS_AT_ONCE 4		/* each costs this worker a rename or removal that is waited for */
#define MOST_SEGMENTS_BETWEEN_STATES 2
#define BYTES_PER_MB (1024 * 1024)

/* The highest slot that has an acceptance in a segment; segments without one are not listed.  Ascending. */
typedef struct SegmentSlots
{
	uint64		segment_number;
	PaxosSlot	highest_slot;
} SegmentSlots;

static SegmentSlots *segments = NULL;
static int	segment_count = 0;
static int	segment_capacity = 0;
static PaxosSlot highest_accepted = 0;
static PaxosBallot highest_ballot = {0, 0};	/* of all records that ever were in the journal, as far as this process has seen it */

static void
forget_segments(int count)
{
	segment_count -= count;
	memmove(segments, segments + count, segment_count * sizeof(SegmentSlots));
}

static void
note_acceptance(PaxosSlot slot, uint64 segment_number)
{
	highest_accepted = Max(highest_accepted, slot);
	if (segment_count > 0 && segments[segment_count - 1].segment_number == segment_number)
	{
		segments[segment_count - 1].highest_slot = Max(segments[segment_count - 1].highest_slot, slot);
		return;
	}
	if (segment_count == segment_capacity)
	{
		segment_capacity = Max(64, 2 * segment_capacity);
		segments = segments == NULL ? MemoryContextAlloc(TopMemoryContext, segment_capacity * sizeof(SegmentSlots))
			: repalloc_huge(segments, segment_capacity * sizeof(SegmentSlots));
	}
	segments[segment_count].segment_number = segment_number;
	segments[segment_count++].highest_slot = slot;
}

void
trimming_note_record(const PaxosRecord *record, JournalPlace place)
{
	if (paxos_ballot_compare(record->ballot, highest_ballot) > 0)
		highest_ballot = record->ballot;
	if (record->type == PAXOS_RECORD_ACCEPTED)
		note_acceptance(record->slot, place.segment_number);
}

PaxosSlot
trimming_highest_accepted(void)
{
	return highest_accepted;
}

/* ---- the log state ---- */

/* So much of the journal may follow the state before a new one is made: a restart reads it, and it is kept in any case. */
static int
segments_between_states(void)
{
	int			half_of_kept = quorum_log_keep_size_mb / 2 / (int) (JOURNAL_SEGMENT_BYTES / BYTES_PER_MB);

	return Max(1, Min(half_of_kept, MOST_SEGMENTS_BETWEEN_STATES));
}

static void
want_log_state(uint64 state_index)
{
	int			behind = 0;
	uint32		nothing = LOG_STATE_NOT_WANTED;

	for (int i = segment_count - 1; i >= 0 && segments[i].highest_slot > state_index; i--)
		behind++;
	if (behind > segments_between_states() &&
		pg_atomic_compare_exchange_u32(&QuorumShmem->log_state_wanted, &nothing, LOG_STATE_WANTED))
		shmem_wake_compactor();
}

/* ---- what may go ---- */

/* Every member has the entries up to here, or has them from somebody else. */
static PaxosSlot
slot_of_all(const PaxosStatus *status)
{
	if (status->knows_delivered_by_all)
		return Min(status->delivered_slot, status->delivered_by_all);
	for (uint32 p = 0; p < status->peer_count; p++)
		if (!status->peers[p].link_up)
			return 0;
	return status->delivered_slot;
}

typedef struct SegmentFile
{
	uint64		bytes;
	int64		age_s;			/* since it was last written to */
} SegmentFile;

static SegmentFile
look_at_segment(uint64 segment_number)
{
	char		path[MAXPGPATH];
	struct stat status;
	SegmentFile file;

	journal_segment_path(QUORUM_DIRECTORY, segment_number, path, sizeof(path));
	if (stat(path, &status) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not stat file \"%s\": %m", path)));
	file.bytes = (uint64) status.st_size;
	file.age_s = (int64) time(NULL) - (int64) status.st_mtime;
	return file;
}

static bool
may_go(uint64 segment_number, PaxosSlot highest_slot, PaxosSlot of_all, uint64 *journal_bytes)
{
	uint64		retention_bytes = (uint64) quorum_log_retention_size_mb * BYTES_PER_MB;
	uint64		kept_bytes = Min((uint64) quorum_log_keep_size_mb * BYTES_PER_MB, retention_bytes);
	SegmentFile file = look_at_segment(segment_number);
	bool		is_spare = *journal_bytes >= kept_bytes + file.bytes;
	bool		is_old = quorum_log_retention_age_s > 0 && file.age_s > quorum_log_retention_age_s;

	if (*journal_bytes <= retention_bytes && !(is_spare && (highest_slot <= of_all || is_old)))
		return false;
	*journal_bytes -= Min(file.bytes, *journal_bytes);
	return true;
}

/* Recovery has seen them, and then they were removed, as it had been said before a crash that they may go. */
static void
forget_removed_segments(uint64 first_segment)
{
	int			count = 0;

	while (count < segment_count && segments[count].segment_number < first_segment)
		count++;
	forget_segments(count);
}

/* Segments below what is returned may go; *first_slot: the log is held from there on without them.  *listed: how many entries of `segments` they are. */
static uint64
find_first_segment(const PaxosStatus *status, uint64 state_index, PaxosSlot *first_slot, int *listed)
{
	uint64		segment_number = journal_first_segment(worker.journal);
	uint64		end = Min(journal_append_segment(worker.journal), segment_number + SEGMENTS_AT_ONCE);
	uint64		journal_bytes = journal_size_bytes(worker.journal);
	PaxosSlot	of_all = slot_of_all(status);

	forget_removed_segments(segment_number);
	*listed = 0;
	*first_slot = journal_first_slot(worker.journal);
	for (; segment_number < end; segment_number++)
	{
		bool		is_listed = *listed < segment_count && segments[*listed].segment_number == segment_number;
		PaxosSlot	highest_slot = is_listed ? segments[*listed].highest_slot : 0;

		if (highest_slot >= state_index || !may_go(segment_number, highest_slot, of_all, &journal_bytes))
			break;
		*first_slot = Max(*first_slot, highest_slot + 1);
		*listed += is_listed ? 1 : 0;
	}
	return segment_number;
}

/* ---- trimming ---- */

/* They may stand in what goes away.  A restart takes the highest ballot of all records for promised, so it is to find the same. */
static void
append_promise_and_config(void)
{
	PaxosRecord promise = {.type = PAXOS_RECORD_PROMISE, .ballot = highest_ballot};
	PaxosRecord config = {.type = PAXOS_RECORD_CONFIG, .slot = worker.config_slot};
	PaxosProposalId no_id = {0, 0, 0};
	StringInfoData bytes;

	if (highest_ballot.round != 0)
		(void) journal_append(worker.journal, &promise);
	initStringInfo(&bytes);
	member_config_encode(&worker.config, &bytes);
	config.value = paxos_value_make(&worker.allocator, PAXOS_VALUE_CONFIG, no_id, (uint8 *) bytes.data, bytes.len);
	(void) journal_append(worker.journal, &config);
	paxos_value_release(&worker.allocator, config.value);
	pfree(bytes.data);
}

static void
trim(uint64 first_segment, PaxosSlot first_slot, int listed)
{
	trimming_set_first_held(first_slot);
	append_promise_and_config();
	journal_recycle_before(worker.journal, first_segment, first_slot);
	forget_segments(listed);
	chosen_log_remove_before(first_slot);
	ereport(quorum_log_level,
			(errmsg("log trimmed: it begins at index %llu, in segment %llu of the journal", (unsigned long long) first_slot,
					(unsigned long long) first_segment)));
}

/* Readers look at it after a failure, so it is there before what makes them fail. */
void
trimming_set_first_held(PaxosSlot first_slot)
{
	pg_atomic_write_u64(&QuorumShmem->first_held_index, first_slot);
	pg_memory_barrier();
}

/* After the journal was synced: what was appended is in the files, and nobody waits for this turn of the loop. */
void
trimming_run(const PaxosStatus *status)
{
	static uint64 last_look_ms = 0;
	uint64		now_ms = worker_now_ms();
	uint64		state_index = pg_atomic_read_u64(&QuorumShmem->log_state_index);
	uint64		first_segment;
	PaxosSlot	first_slot;
	int			listed;

	if (now_ms < last_look_ms + LOOK_INTERVAL_MS)
		return;
	last_look_ms = now_ms;
	want_log_state(state_index);
	first_segment = find_first_segment(status, state_index, &first_slot, &listed);
	if (first_segment > journal_first_segment(worker.journal))
		trim(first_segment, first_slot, listed);
}

/* ---- what was trimmed elsewhere ---- */

/*
 * One peer has trimmed what this node lacks; another may hold it and be teaching it.  Only when nothing has come for two election timeouts are the tables
 * worth a copy.
 */
static bool
nobody_teaches(const PaxosStatus *status)
{
	static uint64 since_ms = 0;
	static uint64 delivered_slot = 0;
	uint64		now_ms = worker_now_ms();

	if (status->snapshot_needed == 0 || since_ms == 0 || status->delivered_slot != delivered_slot)
		since_ms = now_ms;
	delivered_slot = status->delivered_slot;
	return now_ms - since_ms >= 2 * (uint64) quorum_election_timeout_ms;
}

/* Others no longer have what this node's log lacks, or this node no longer has what its tables lack (they are an older copy). */
void
trimming_publish_lack(const PaxosStatus *status)
{
	uint64		needed = nobody_teaches(status) ? status->snapshot_needed : 0;

	if (needed == 0 && turn_is_initialised() && turn_applied_index() + 1 < chosen_log_first_held())
		needed = chosen_log_first_held();
	if (needed == pg_atomic_read_u64(&QuorumShmem->snapshot_needed))
		return;
	pg_atomic_write_u64(&QuorumShmem->snapshot_needed, needed);
	shmem_wake_apply();			/* it is to copy the tables, or need not any more */
}
