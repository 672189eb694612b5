/*
 * recovery.c
 *	  The start of the consensus worker: log state, journal, and whether they belong together.  Process: consensus worker.
 *
 * Must never start with a log that has a gap, nor as an acceptor that has forgotten something (P8): then it raises an error, and the worker is
 * started again and again, saying the same, until this is put right.
 *
 * Up to the log state's index everything is chosen and has its effects: those slots are not delivered again.  The journal is read whole all the
 * same, since promises count from everywhere in it.
 *
 * Invariants
 *	 1. Slots from journal_first_slot() on are in the journal, so the state must reach up to the one before.
 *	 2. A state that this node made itself was made from what is in its journal; an acceptance of its index, or of a later slot, is never trimmed.
 *		So a journal without one has lost its end.
 *	 3. A state that was copied from another node is known by that node's number.  The log before its end is not here, and the journal is told so before
 *		anything else can happen.
 *
 * Locks: QuorumShmem->log_state_lock, for a rename.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "utils/memutils.h"

#include "consensus/log_state_store.h"
#include "consensus/worker_internal.h"
#include "shared/acceptor_mark.h"
#include "shared/chosen_log.h"
#include "shared/proposal_queue.h"
#include "shared/rows_to_keep.h"
#include "shared/token_memory.h"

/* An acceptance is never so far ahead of what is delivered. */
#define MAX_SLOTS_AHEAD (64 * WINDOW_SLOTS)

typedef struct Base
{
	uint64		index;			/* 0: there is no log state */
	bool		is_foreign;		/* another node made it */
} Base;

static Base base;

/* ---- the log state ---- */

/* The tables are exactly where the incoming state ends: they were copied together with it.  Else it is a remnant of an attempt to do so. */
static bool
fits_tables(const IdentityFile *identity)
{
	LogState	state;
	LogStateHead head;
	const char *why = NULL;
	bool		fits;

	log_state_begin(&state, CurrentMemoryContext);
	fits = log_state_load(&state, LOG_STATE_INCOMING_PATH, identity->cluster_id, &head, &why) == LOG_STATE_LOADED &&
		head.node_id != identity->node_id && head.index == turn_applied_index();
	log_state_free(&state);
	if (!fits)
		ereport(LOG,
				(errmsg("log state of another node is not taken over: the tables are at log index %llu",
						(unsigned long long) turn_applied_index()),
				 errdetail("%s", why != NULL ? why : "It is of another index.")));
	return fits;
}

static void
settle_incoming(const IdentityFile *identity)
{
	if (!log_state_incoming_exists())
		return;
	members_publish_identity(identity);
	shmem_wake_apply();
	while (!turn_is_initialised())
		worker_wait_a_moment();

	/*
	 * Whoever copies tables holds this lock from before it writes the file until the tables are committed.  And the compactor puts none of its own
	 * in the place of this one: its index is published under the same lock.
	 */
	LWLockAcquire(QuorumShmem->log_state_lock, LW_EXCLUSIVE);
	if (!fits_tables(identity))
	{
		log_state_remove_incoming();
		LWLockRelease(QuorumShmem->log_state_lock);
		return;
	}
	(void) durable_rename(LOG_STATE_INCOMING_PATH, LOG_STATE_PATH, FATAL);
	pg_atomic_write_u64(&QuorumShmem->log_state_index, turn_applied_index());
	LWLockRelease(QuorumShmem->log_state_lock);
	ereport(LOG,
			(errmsg("log state of index %llu taken over from another node", (unsigned long long) turn_applied_index())));
}

static void
report_no_base(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("this node cannot start with what is left of its log"),
			 errdetail("%s", detail),
			 errhint("Let it join as a new node: quorum.remove_node() for it on a member, and here quorum.leave_cluster(force => true) and "
					 "quorum.join_cluster(..., keep_rows => true).")));
}

/* Certification's memory goes over to the delivery. */
static void
begin_with(LogState *state, const LogStateHead *head, const IdentityFile *identity)
{
	Size		length;
	uint8	   *bytes = log_state_make_base(state, &length);
	uint64		tables_index;

	if (!paxos_restore_base(worker.core, state->index, bytes, length))
		report_no_base(psprintf("File \"%s\": its core part is malformed.", LOG_STATE_PATH));
	pfree(bytes);
	base.index = state->index;
	base.is_foreign = head->node_id != identity->node_id;
	members_take_config(state->config_slot, (char *) state->config_bytes, state->config_length);
	pg_atomic_write_u64(&QuorumShmem->log_state_last_applied, state->last_applied);
	pg_write_barrier();
	pg_atomic_write_u64(&QuorumShmem->log_state_index, state->index);

	/* If the apply worker was first, it has not seen that. */
	tables_index = turn_is_initialised() ? turn_applied_index() : 0;
	if (tables_index > 0 && turn_index_of_position(tables_index) > tables_index)
		turn_set_applied(turn_index_of_position(tables_index));
	delivery_begin_after(state->index, &state->certifier);
	state->certifier_memory = NULL;
}

static void
restore_base(const IdentityFile *identity)
{
	LogState	state;
	LogStateHead head;
	const char *why = "it does not exist";
	LogStateFound found;

	settle_incoming(identity);
	log_state_begin(&state, CurrentMemoryContext);
	found = log_state_load(&state, LOG_STATE_PATH, identity->cluster_id, &head, &why);
	if (found == LOG_STATE_LOADED)
		begin_with(&state, &head, identity);
	log_state_free(&state);
	if (found == LOG_STATE_LOADED)
		return;
	if (journal_lowest_segment(QUORUM_DIRECTORY) > 1)
		report_no_base(psprintf("The journal was trimmed, and file \"%s\" cannot be used: %s.", LOG_STATE_PATH, why));
	if (found == LOG_STATE_DAMAGED)
		ereport(LOG,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("file \"%s\" cannot be used: %s", LOG_STATE_PATH, why),
				 errdetail("The journal is there from its beginning, so it is not needed.")));
	pg_atomic_write_u64(&QuorumShmem->log_state_index, 0);
}

/* ---- the journal ---- */

static void
on_restored_record(void *context, const PaxosRecord *record, JournalPlace place)
{
	PaxosEffects effects;

	trimming_note_record(record, place);
	if (record->type == PAXOS_RECORD_ACCEPTED)
	{
		if (record->slot > Max(delivery_last(), base.index) + MAX_SLOTS_AHEAD)
			report_no_base(psprintf("The journal holds log index %llu, but what is known of the log ends at %llu.",
									(unsigned long long) record->slot, (unsigned long long) delivery_last()));
		delivery_note_place(record->slot, place);
	}
	if (record->type == PAXOS_RECORD_CONFIG)
		members_take_config(record->slot, (const char *) record->value->bytes, record->value->length);
	paxos_restore(worker.core, record, &effects);
	if (effects.chosen_count > 0)
		delivery_chosen(effects.chosen, effects.chosen_count);
}

void
worker_restore_record(const PaxosRecord *record, JournalPlace place)
{
	on_restored_record(NULL, record, place);
}

/* The first start: what create_cluster or join_cluster said goes into the journal before anything else. */
static void
bootstrap(const IdentityFile *identity)
{
	PaxosProposalId no_id = {0, 0, 0};
	PaxosRecord record = {.type = PAXOS_RECORD_CONFIG, .slot = identity->config_slot};
	JournalPlace nowhere = {0, 0, 0};

	record.value = paxos_value_make(&worker.allocator, PAXOS_VALUE_CONFIG, no_id,
									(uint8_t *) identity->config_bytes, identity->config_length);
	(void) journal_append(worker.journal, &record);
	journal_write(worker.journal);
	journal_sync(worker.journal);
	on_restored_record(NULL, &record, nowhere);
	paxos_value_release(&worker.allocator, record.value);
}

/* Invariants 1 to 3; and what a crash kept from being removed goes. */
static void
fit_together(void)
{
	if (base.is_foreign)
		journal_recycle_before(worker.journal, journal_first_segment(worker.journal), base.index + 1);
	else if (base.index > 0 && trimming_highest_accepted() < base.index)
		report_no_base(psprintf("The journal has forgotten entries that its log state covers: the state is of index %llu, the journal ends with %llu.",
								(unsigned long long) base.index, (unsigned long long) trimming_highest_accepted()));
	if (journal_first_slot(worker.journal) > base.index + 1)
		report_no_base(psprintf("The journal begins at log index %llu, the log state ends at %llu.",
								(unsigned long long) journal_first_slot(worker.journal), (unsigned long long) base.index));
	trimming_set_first_held(journal_first_slot(worker.journal));
	chosen_log_remove_before(journal_first_slot(worker.journal));
}

void
recovery_run(const IdentityFile *identity)
{
	JournalIdentity expected = {.cluster_id = identity->cluster_id, .node_id = identity->node_id};

	if (!journal_exists(QUORUM_DIRECTORY))
	{
		if (!pg_strong_random(&expected.journal_incarnation, sizeof(uint64)))
			ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate a random number")));
		journal_create(QUORUM_DIRECTORY, &expected);
	}
	chosen_log_open_for_write(QUORUM_DIRECTORY);
	worker.restoring = true;
	worker.journal_identity = expected; /* asked for while records are restored */
	token_memory_begin(identity->cluster_id, identity->node_id);
	restore_base(identity);
	worker.journal = journal_open(QUORUM_DIRECTORY, &worker.allocator, on_restored_record, NULL,
								  &worker.journal_identity, &worker.incarnation);
	if (worker.journal_identity.cluster_id != identity->cluster_id || worker.journal_identity.node_id != identity->node_id)
		ereport(FATAL,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("journal belongs to another cluster or node than the identity file"),
				 errhint("Restore neither of them from elsewhere; let the node join as a new one.")));
	fit_together();
	if (worker.config.member_count == 0)
		bootstrap(identity);
	delivery_restored();
	memory_restore();
	generation_carry_out_request();
	worker.restoring = false;
}

/*
 * A new node with rows that are to be kept takes part only when its tables are where the log can lead on from: what is before is never performed here, as
 * to the log these tables are in the way.  The apply worker copies; then this worker starts anew from there.
 */
void
recovery_await_kept_rows(void)
{
	PaxosStatus status;

	if (!rows_to_keep_pending())
		return;
	acceptor_marks_set_known(false);	/* whoever links is told to come again */
	paxos_status(worker.core, worker_now_ms(), &status);
	status.voters_reachable = 0;	/* there are no links, of which the core has not been told */
	members_publish_status(&status);	/* among the members is the donor */
	shmem_wake_apply();
	while (rows_to_keep_pending())
		worker_wait_a_moment();
	proc_exit(1);				/* the postmaster starts it again */
}
