/*
 * consensus_worker.c
 *	  The consensus worker: hosts the Paxos core between shared memory, journal and transport.
 *
 * One per instance, without a database connection.  It is the only reader of clock and random numbers for the core, the only writer of
 * the journal, and must never touch tables.
 *
 * Invariants
 *	 1. Effects are carried out in order: records to the journal, messages, chosen entries; what probes are answered from is published before.
 *	 2. PERSISTED is given only after fdatasync returned for every record up to that number.
 *	 3. One loop, one fdatasync at most per turn of the loop; what arrives meanwhile is the next batch.
 *
 * Locks: QuorumShmem->lock for identity and status, the proposal queue's spinlock inside its functions.
 */
#include "postgres.h"

#include <time.h>

#include "common/pg_prng.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "config.h"
#include "consensus/consensus_worker.h"
#include "consensus/published_state.h"
#include "consensus/transport/transport.h"
#include "consensus/worker_internal.h"
#include "shared/acceptor_mark.h"
#include "shared/identity.h"
#include "shared/proposal_queue.h"
#include "shared/read_round.h"
#include "shared/rows_to_keep.h"

#define STATUS_INTERVAL_MS 50		/* status in shared memory is at most this old */
#define APPLY_DELAY_MS 5			/* entries that nobody here waits for are gathered this long, or this many, for one local transaction */
#define APPLY_BATCH_ENTRIES 64
#define PROPOSALS_PER_LOOP 512
#define GATHER_US 1000				/* while a batch is in flight, the next one is gathered at most this long */
#define MOMENT_MS 10000			/* what is waited for sets the latch; this is for lost wakeups only */

ConsensusWorker worker;

uint64
worker_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void
paxos_assertion_failed(const char *condition, const char *file, int line)
{
	ereport(FATAL,
			(errcode(ERRCODE_INTERNAL_ERROR),
			 errmsg("consensus core: assertion \"%s\" failed at %s:%d", condition, file, line),
			 errhint("The worker stops before it does harm, and starts again from its journal. Please report this.")));
	pg_unreachable();
}

static void *
allocate(void *context, size_t size)
{
	return MemoryContextAllocHuge((MemoryContext) context, size);
}

static void
release(void *context, void *pointer)
{
	pfree(pointer);
}

uint8 *
worker_frame_buffer(size_t size)
{
	if (size > worker.frame_capacity)
	{
		if (worker.frame != NULL)
			pfree(worker.frame);
		worker.frame_capacity = Max(size, (size_t) 1024 * 1024);
		worker.frame = MemoryContextAllocHuge(TopMemoryContext, worker.frame_capacity);
	}
	return worker.frame;
}

/* ---- effects ---- */

static void
send_message(const PaxosOutMessage *out)
{
	size_t		size = paxos_message_size(out->message);
	uint8	   *frame = worker_frame_buffer(size);

	size = paxos_message_encode(out->message, frame, worker.frame_capacity);
	(void) transport_send(out->to, frame, size);
}

static void
append_record(const PaxosRecord *record)
{
	JournalPlace place = journal_append(worker.journal, record);

	trimming_note_record(record, place);
	worker.last_record = record->number;
	if (record->type == PAXOS_RECORD_ACCEPTED)
	{
		delivery_note_place(record->slot, place);
		pg_atomic_write_u64(&QuorumShmem->accepted_index, Max(pg_atomic_read_u64(&QuorumShmem->accepted_index), record->slot));
	}
	if (record->type != PAXOS_RECORD_CHOSEN)
		worker.must_sync = true;
}

static void
carry_out(const PaxosEffects *effects)
{
	published_state_update(worker.core);
	for (size_t i = 0; i < effects->record_count; i++)
		append_record(&effects->records[i]);
	for (size_t i = 0; i < effects->message_count; i++)
		send_message(&effects->messages[i]);
	for (size_t i = 0; i < effects->catch_up_count && worker.catch_up_count < PAXOS_MAX_MEMBERS; i++)
		worker.catch_ups[worker.catch_up_count++] = effects->catch_ups[i];
	if (effects->chosen_count > 0)
		delivery_chosen(effects->chosen, effects->chosen_count);
	for (size_t i = 0; i < effects->read_count; i++)
		read_round_finish(effects->reads[i].read_id, effects->reads[i].ok, effects->reads[i].read_index);
	worker.next_deadline_ms = effects->next_deadline_ms;
}

static PaxosEvent
make_event(PaxosEventType type)
{
	PaxosEvent	event = {.type = type};

	event.now_ms = worker_now_ms();
	event.random = pg_prng_uint64(&pg_global_prng_state);
	return event;
}

static void
step(const PaxosEvent *event)
{
	PaxosEffects effects;

	paxos_step(worker.core, event, &effects);
	carry_out(&effects);
}

bool
worker_propose(PaxosValueKind kind, uint64 sequence, const char *bytes, uint32 length)
{
	PaxosEvent	event = make_event(PAXOS_EVENT_PROPOSAL);
	PaxosEffects effects;
	bool		refused;

	event.kind = kind;
	event.sequence = sequence;
	event.bytes = (const uint8_t *) bytes;
	event.length = length;
	paxos_step(worker.core, &event, &effects);
	refused = effects.proposal_refused;
	carry_out(&effects);
	return !refused;
}

bool
worker_transfer(uint32 node_id)
{
	PaxosEvent	event = make_event(PAXOS_EVENT_TRANSFER);
	PaxosEffects effects;
	bool		refused;

	event.peer_id = node_id;
	paxos_step(worker.core, &event, &effects);
	refused = effects.transfer_refused;
	carry_out(&effects);
	return !refused;
}

/* ---- what the transport brings ---- */

static void
on_frame(void *context, uint32 node_id, const uint8 *frame, size_t length)
{
	PaxosEvent	event;
	const char *why = NULL;
	const PaxosMessage *message;

	if (!worker.started)
		return;
	message = paxos_message_decode(worker.core, frame, length, &why);
	if (message == NULL)
	{
		transport_reject(node_id, why);
		return;
	}
	event = make_event(PAXOS_EVENT_MESSAGE);
	event.peer_id = node_id;
	event.message = message;
	step(&event);
}

/* Not by whoever has shown no password. */
static void
on_answer(void *context, uint32 node_id, const uint8 *frame, size_t length)
{
	if (paxos_is_answer(frame, length))
		on_frame(context, node_id, frame, length);
	else
		transport_reject(node_id, "it is no answer");
}

static void
on_removed(void *context, uint32 node_id)
{
	members_note_removed();
}

static void
on_left_behind(void *context, uint32 node_id, const char *generation)
{
	generation_hear_successor(generation);
}

static void
tell_link(uint32 node_id, bool up)
{
	PaxosEvent	event = make_event(PAXOS_EVENT_LINK);

	event.peer_id = node_id;
	event.link_up = up;
	step(&event);
}

static void
on_link(void *context, uint32 node_id, bool up, int version)
{
	/* Version 1 of the handshake goes with frames of version 2, and so on. */
	StaticAssertStmt(TRANSPORT_NEWEST_VERSION + 1 == PAXOS_NEWEST_FRAME_VERSION, "versions of handshake and frames");
	StaticAssertStmt(TRANSPORT_OLDEST_VERSION + 1 == PAXOS_OLDEST_FRAME_VERSION, "versions of handshake and frames");
	memory_note_link(node_id, up);
	if (up)
		paxos_set_peer_version(worker.core, node_id, (uint32) version + 1);
	if (worker.started)
		tell_link(node_id, up);
}

/* The core takes a link for up until it is told otherwise. */
static void
tell_links_that_are_down(void)
{
	for (int i = 0; i < worker.config.member_count; i++)
	{
		uint32		node_id = worker.config.members[i].node_id;

		if (node_id != worker.journal_identity.node_id && !memory_link_is_up(node_id))
			tell_link(node_id, false);
	}
}

static void
on_refused(void *context, uint32 node_id, const char *why)
{
	memory_refused(node_id, why);
}

/* ---- what the backends queue ---- */

/* False: the core has no room now. */
static bool
offer(const QueuedProposal *proposal)
{
	static const CertifierVerdict impossible = {0};
	bool		taken;

	if (proposal->kind == PROPOSAL_MEMBER_CHANGE)
	{
		if (!worker.leads)
		{
			proposal_refuse_taken(proposal->slot);
			return true;
		}
		if (!members_propose_change((const MemberChange *) proposal->payload, proposal->sequence, &taken))
		{
			proposal_payload_done(proposal->slot);
			proposal_learned(proposal->sequence, 0, false, &impossible);
			return true;
		}
	}
	else
		taken = worker_propose(PAXOS_VALUE_DATA, proposal->sequence, proposal->payload, proposal->length);
	if (taken)
		proposal_payload_done(proposal->slot);
	else
		proposal_put_back(proposal->slot);
	return taken;
}

static int64
now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64) now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/*
 * What a batch costs in frames, syncs and wakeups hardly depends on its size, so while one is in flight the next is gathered, and nobody wakes
 * this worker for each transaction.  Not for long: where a round takes longer than that, batches overlap.
 */
static bool
must_gather(const PaxosStatus *status)
{
	worker.gathers = status->outstanding_proposals > 0 && now_us() - worker.batch_taken_us < GATHER_US &&
		proposal_queued_count() < PROPOSAL_BATCH;
	pg_atomic_write_u32(&QuorumShmem->wants_proposals, worker.gathers ? 0 : 1);
	pg_memory_barrier();
	return worker.gathers;
}

/*
 * A transaction is proposed only while that is likely to end well, since from then on its outcome may be unknown; until then it can be refused
 * with certainty.
 */
static void
take_proposals(const PaxosStatus *status, bool may_write)
{
	QueuedProposal proposal;
	bool		accepts = members_accept_proposals(status);

	worker.gathers = false;
	worker.delivered_own = false;
	if (!may_write || !accepts)
		pg_atomic_write_u32(&QuorumShmem->wants_proposals, 1);
	if (!may_write)
	{
		proposal_refuse_queued(0);
		return;
	}
	if (!accepts)
	{
		int			patience_ms = members_refuse_after_ms(status);

		if (patience_ms > 0)
			proposal_refuse_queued(patience_ms);
		return;
	}
	if (must_gather(status))
		return;
	for (int i = 0; i < PROPOSALS_PER_LOOP && proposal_take_queued(&proposal); i++)
		if (!offer(&proposal))
			break;
	worker.batch_taken_us = now_us();
}

/* While a round is in flight the readers of the next one gather. */
static void
begin_read_round(void)
{
	uint64		number;
	PaxosEvent	event;

	if (!read_round_begin(&number))
		return;
	event = make_event(PAXOS_EVENT_READ);
	event.read_id = number;
	step(&event);
}

/* ---- the loop ---- */

static void
sync_journal(void)
{
	PaxosEvent	event;

	if (!worker.must_sync)
		return;
	worker.must_sync = false;
	journal_write(worker.journal);
	journal_sync(worker.journal);
	worker.journal_syncs++;
	event = make_event(PAXOS_EVENT_PERSISTED);
	event.persisted_record = worker.last_record;
	event.durable_position = journal_durable_position(worker.journal);
	step(&event);
}

static void
flush(void)
{
	PaxosEvent	event = make_event(PAXOS_EVENT_FLUSH);

	step(&event);
	for (int i = 0; i < worker.catch_up_count; i++)
		delivery_serve_catch_up(&worker.catch_ups[i]);
	worker.catch_up_count = 0;
	members_connect_peers();
	transport_flush();
}

static void
publish(const PaxosStatus *status)
{
	static uint64 last_published_ms = 0;
	static PaxosRole last_role = PAXOS_LEARNER;
	static uint32 last_leader_id = 0;
	static bool last_has_quorum = false;
	uint64		now_ms = worker_now_ms();

	if (now_ms < last_published_ms + STATUS_INTERVAL_MS && status->role == last_role &&
		status->leader_id == last_leader_id && status->has_quorum == last_has_quorum)
		return;
	if (status->role != last_role)
		ereport(quorum_log_level == LOG || status->role == PAXOS_LEADER || last_role == PAXOS_LEADER ? LOG : quorum_log_level,
				(errmsg("node \"%s\" is now %s in ballot %llu.%u", QuorumShmem->identity.node_name,
						status->role == PAXOS_LEADER ? "leader" : status->role == PAXOS_CANDIDATE ? "candidate" :
						status->role == PAXOS_FOLLOWER ? "follower" : "learner",
						(unsigned long long) status->ballot.round, status->ballot.node_id)));
	last_published_ms = now_ms;
	last_role = status->role;
	last_leader_id = status->leader_id;
	last_has_quorum = status->has_quorum;
	paxos_set_may_lead(worker.core, members_may_lead(status));
	members_promote_learners(status);
	members_publish_status(status);
	trimming_publish_lack(status);
}

/*
 * Backends of this node wait for whatever is before them in the log, and readers for what they are to see.  What nobody waits for is gathered: a local
 * transaction for several entries costs little more than one for a single entry.
 */
static void
wake_apply_worker(void)
{
	uint64		now_ms;
	bool		is_urgent = worker.apply_is_urgent || read_round_awaits_apply();

	worker.apply_is_urgent = false;
	if (worker.entries_to_apply == 0)
		return;
	now_ms = worker_now_ms();
	if (worker.apply_deadline_ms == 0)
		worker.apply_deadline_ms = now_ms + APPLY_DELAY_MS;
	if (!is_urgent && worker.entries_to_apply < APPLY_BATCH_ENTRIES && now_ms < worker.apply_deadline_ms)
		return;
	worker.entries_to_apply = 0;
	worker.apply_deadline_ms = 0;
	shmem_wake_apply();
}

static long
time_to_deadline_ms(void)
{
	uint64		now_ms = worker_now_ms();
	uint64		deadline_ms = Min(worker.next_deadline_ms, now_ms + STATUS_INTERVAL_MS);

	if (worker.apply_deadline_ms != 0)
		deadline_ms = Min(deadline_ms, worker.apply_deadline_ms);
	if (worker.must_sync || deadline_ms <= now_ms || read_round_is_wanted())
		return 0;
	if (worker.gathers)
		return worker.delivered_own ? 0 : 1;	/* what was in flight has landed: the next batch goes */
	return (long) (deadline_ms - now_ms);
}

/* Somebody has put something in place that is to be begun with: a log state, or the word that the cluster goes on elsewhere or with this node alone. */
void
worker_restart_if_wanted(void)
{
	if (pg_atomic_read_u32(&QuorumShmem->consensus_restart_wanted) == 0)
		return;
	ereport(LOG, (errmsg("consensus worker starts anew, to look at what was put in place for it")));
	proc_exit(1);				/* the postmaster starts it again */
}

static void
one_turn(void)
{
	PaxosStatus status;
	bool		may_write;

	(void) transport_wait(time_to_deadline_ms());
	CHECK_FOR_INTERRUPTS();
	memory_check();
	memory_look_for_confirmation();
	worker_restart_if_wanted();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
	if (worker_now_ms() >= worker.next_deadline_ms)
	{
		PaxosEvent	tick = make_event(PAXOS_EVENT_TICK);

		step(&tick);
	}
	paxos_status(worker.core, worker_now_ms(), &status);
	worker.leads = status.role == PAXOS_LEADER;
	members_note_role(status.role);
	handover_on_request(&status);
	if (ShutdownRequestPending)
		handover_before_exit(&status);
	worker.apply_is_urgent |= status.outstanding_proposals > 0;
	members_note_acceptance(&status);
	may_write = members_may_write(&status);
	pg_atomic_write_u32(&QuorumShmem->may_write, may_write ? 1 : 0);
	read_round_note_quorum(status.has_quorum && pg_atomic_read_u32(&QuorumShmem->removed) == 0);
	take_proposals(&status, may_write);
	begin_read_round();
	memory_note_peers(&status);
	memory_write_note();
	flush();
	sync_journal();
	flush();
	wake_apply_worker();
	publish(&status);
	trimming_run(&status);
}

/* ---- life ---- */

static void
at_exit(int code, Datum argument)
{
	published_state_withdraw();
	pg_atomic_write_u32(&QuorumShmem->may_write, 0);
	pg_atomic_write_u32(&QuorumShmem->wants_proposals, 1);
	pg_atomic_write_u64(&QuorumShmem->snapshot_needed, 0);
	read_round_note_quorum(false);
	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
	QuorumShmem->consensus_latch = NULL;
	QuorumShmem->consensus_pid = 0;
	QuorumShmem->status.role = NODE_STOPPED;
	QuorumShmem->status.has_quorum = false;
	QuorumShmem->status.leader_id = 0;
	LWLockRelease(QuorumShmem->lock);
}

static void
create_core(const IdentityFile *identity)
{
	PaxosSettings settings = {0};

	worker.allocator.allocate = allocate;
	worker.allocator.release = release;
	worker.allocator.context = AllocSetContextCreate(TopMemoryContext, "paxos core", ALLOCSET_DEFAULT_SIZES);
	settings.node_id = identity->node_id;
	settings.heartbeat_interval_ms = quorum_heartbeat_interval_ms;
	settings.election_timeout_ms = quorum_election_timeout_ms;
	settings.window_slots = WINDOW_SLOTS;
	settings.window_bytes = WINDOW_BYTES;
	settings.max_outstanding_proposals = WINDOW_SLOTS / 4;	/* the leader's own leave room for what is forwarded */
	settings.resend_interval_ms = quorum_election_timeout_ms / 2;
	worker.core = paxos_create(&settings, &worker.allocator);
}

void
worker_wait_a_moment(void)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, MOMENT_MS, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	worker_restart_if_wanted();
}

static void
open_transport(const IdentityFile *identity, const TransportCallbacks *callbacks)
{
	TransportIdentity self = {
		.cluster_id = identity->cluster_id,
		.node_id = identity->node_id,
		.incarnation = worker.incarnation,
		.journal_incarnation = worker.journal_identity.journal_incarnation,
		.recovered_position = journal_recovered_position(worker.journal)
	};

	strlcpy(self.node_name, identity->node_name, NAMEDATALEN);
	generation_to_text(&worker.config.generation, self.generation);
	if (!pg_strong_random(&self.start_nonce, sizeof(self.start_nonce)))
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate a random number")));
	transport_init(&self, callbacks);
	members_connect_peers();
}

static void
start(void)
{
	static const TransportCallbacks callbacks = {
		.frame = on_frame, .answer = on_answer, .link = on_link, .refused = on_refused, .removed = on_removed, .left_behind = on_left_behind
	};
	IdentityFile identity;
	PaxosEffects effects;

	identity_read(&identity);
	rows_to_keep_publish(&identity);	/* before the apply worker hears that there is a log to be applied */
	pg_atomic_write_u32(&QuorumShmem->removed, 0);	/* found out anew */
	create_core(&identity);
	recovery_run(&identity);
	proposal_queue_reset_owner();
	read_round_reset();
	members_publish_identity(&identity);
	shmem_wake_apply();
	generation_stand_aside();
	memory_check_tables(&identity);
	recovery_await_kept_rows();
	open_transport(&identity, &callbacks);
	paxos_set_silent(worker.core, true);

	worker.started = true;
	paxos_set_incarnation(worker.core, worker.incarnation);
	paxos_start(worker.core, worker_now_ms(), pg_prng_uint64(&pg_global_prng_state), &effects);
	carry_out(&effects);
	tell_links_that_are_down();
	if (pg_atomic_read_u32(&QuorumShmem->removed) != 0)
		shmem_set_last_error(REMOVED_ERROR);
	else if (pg_atomic_read_u32(&QuorumShmem->apply_failed) == 0)
		shmem_set_last_error(NULL);
	ereport(LOG,
			(errmsg("consensus worker of node \"%s\" started with log index %llu chosen", identity.node_name,
					(unsigned long long) pg_atomic_read_u64(&QuorumShmem->chosen_index))));
}

/* Whatever stops the worker is shown in quorum.status before the postmaster starts it again. */
static void
run(void)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext turn_context = AllocSetContextCreate(TopMemoryContext, "quorum consensus loop", ALLOCSET_DEFAULT_SIZES);

	PG_TRY();
	{
		start();
		pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
		MemoryContextSwitchTo(turn_context);
		for (;;)
		{
			one_turn();
			MemoryContextReset(turn_context);
		}
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		shmem_set_last_error(psprintf("consensus worker: %s%s%s", error->message, error->detail ? ": " : "",
									  error->detail ? error->detail : ""));
		PG_RE_THROW();
	}
	PG_END_TRY();
}

void
quorum_consensus_worker_main(Datum argument)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();

	before_shmem_exit(at_exit, (Datum) 0);
	published_state_withdraw();
	acceptor_marks_set_known(false);
	pg_atomic_write_u32(&QuorumShmem->consensus_restart_wanted, 0);
	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
	QuorumShmem->consensus_latch = MyLatch;
	LWLockRelease(QuorumShmem->lock);

	if (!identity_exists())
		members_forget_node();
	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
	QuorumShmem->consensus_pid = MyProcPid;
	LWLockRelease(QuorumShmem->lock);
	while (!identity_exists())
		worker_wait_a_moment();
	run();
}
