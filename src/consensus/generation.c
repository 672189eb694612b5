/*
 * generation.c
 *	  The consensus worker's part of quorum.force_new_cluster(): the survivor makes itself the only voter, and a node that the cluster has left
 *	  behind takes part in nothing more.
 *
 * Process: consensus worker.  Must never change a configuration that is not this node's own, nor believe that the cluster went on elsewhere unless the
 * generation which says so follows on the own one.
 *
 * Forcing, when a request lies in the folder (GENERATION_REQUEST_FILE), after the journal was read and before anything is sent
 *	 1. Every value that this node has accepted, without a gap, counts as chosen from now on.  An entry that the lost majority acknowledged has been
 *		accepted by a majority, and if this node was one of it, it is among them: to drop one could lose a COMMIT that this node still has.  The
 *		price is said to the operator: where the others chose something else in such a slot later, the two histories differ.
 *	 2. What it has accepted behind a gap is replaced by no-ops.  Such an entry may rest on the one that is missing.
 *	 3. In the slot after all that the new configuration is written as accepted, in a ballot above all that was promised, and everything up to it as
 *		chosen: this node alone, the generation, and who was left behind.  It is an entry like every other: quorum.log shows it, new nodes learn it.
 *	 4. All of this is one sync.  Then the request is removed and the worker starts again, with a journal in which nothing is unusual.
 *	 Killed in between, it begins again.  If the configuration was durable and known as chosen, only the request is left to be removed; if
 *	 not, it is written again, perhaps behind the first one and with the same effect.  The entry's id is of this incarnation, which proposes nothing else.
 *
 * Fencing.  The generation is part of the handshake (peer_stream.c, peer.c).  A node that hears of one that follows on its own writes it into
 * GENERATION_SUCCESSOR_FILE and starts again; while that file lies there it neither votes nor leads nor serves.  Members of the new generation
 * also open links to those that were left behind, only to tell them, since these may know none of them.
 *
 * Locks: QuorumShmem->lock, shortly.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/latch.h"

#include "consensus/transport/transport.h"
#include "consensus/worker_internal.h"

/* ---- forcing ---- */

static void
add_left_behind(MemberConfig *config, const MemberConfigItem *item)
{
	if (config->left_behind_count < lengthof(config->left_behind))
		config->left_behind[config->left_behind_count++] = *item;
}

/* Those who are members now come first: if there are too many, the oldest are not told. */
static void
make_forced_config(MemberConfig *config, const MemberConfigItem *self, const ClusterGeneration *generation, uint64 slot)
{
	const MemberConfig *old = &worker.config;

	memset(config, 0, sizeof(*config));
	config->next_node_id = old->next_node_id;
	config->member_count = 1;
	config->members[0] = *self;
	config->members[0].is_voter = config->members[0].as_voter = true;
	config->generation = *generation;
	config->generation.entries[Min(generation->number, GENERATION_KEPT) - 1].slot = slot;
	for (int i = 0; i < old->member_count; i++)
		if (old->members[i].node_id != self->node_id)
			add_left_behind(config, &old->members[i]);
	for (int i = 0; i < old->left_behind_count; i++)
		add_left_behind(config, &old->left_behind[i]);
}

static void
append_accepted(uint64 slot, PaxosBallot ballot, PaxosValueKind kind, PaxosProposalId id, const char *bytes, uint32 length)
{
	PaxosRecord record = {.type = PAXOS_RECORD_ACCEPTED, .slot = slot, .ballot = ballot};

	record.value = paxos_value_make(&worker.allocator, kind, id, (const uint8_t *) bytes, length);
	(void) journal_append(worker.journal, &record);
	paxos_value_release(&worker.allocator, record.value);
}

static void
append_chosen(uint64 slot)
{
	PaxosRecord record = {.type = PAXOS_RECORD_CHOSEN, .slot = slot};

	(void) journal_append(worker.journal, &record);
}

/* Rule 1: delivers all that is accepted up to the first gap. */
static void
adopt_accepted(PaxosStatus *status)
{
	PaxosRecord record = {.type = PAXOS_RECORD_CHOSEN};
	JournalPlace nowhere = {0, 0, 0};

	paxos_status(worker.core, worker_now_ms(), status);
	record.slot = status->accepted_slot;
	worker_restore_record(&record, nowhere);
	paxos_status(worker.core, worker_now_ms(), status);
}

/* Rules 2 and 3. */
static void
write_new_generation(const PaxosStatus *status, const MemberConfigItem *self, const ClusterGeneration *generation)
{
	static const PaxosProposalId nobody = {0, 0, 0};
	PaxosBallot ballot = {status->ballot.round + 1, worker.journal_identity.node_id};
	PaxosProposalId id = {worker.journal_identity.node_id, worker.incarnation, 1};
	uint64		config_slot = Max(status->delivered_slot, status->accepted_slot) + 1;
	MemberConfig *config = palloc(sizeof(MemberConfig));
	StringInfoData bytes;

	make_forced_config(config, self, generation, config_slot);
	initStringInfo(&bytes);
	member_config_encode(config, &bytes);
	append_chosen(status->delivered_slot);
	/* Backwards, so that the gap is filled last: were only a part of this durable, what is behind it would not become a part of the log. */
	for (uint64 slot = config_slot - 1; slot > status->delivered_slot; slot--)
		append_accepted(slot, ballot, PAXOS_VALUE_NOOP, nobody, NULL, 0);
	append_accepted(config_slot, ballot, PAXOS_VALUE_CONFIG, id, bytes.data, bytes.len);
	append_chosen(config_slot);
	journal_write(worker.journal);
	journal_sync(worker.journal);
	ereport(LOG,
			(errmsg("quorum.force_new_cluster(): this node, \"%s\", is the only voter of generation %u of the cluster",
					config->members[0].node_name, generation->number),
			 errdetail("Log entries up to index %llu are kept, %llu behind a gap are dropped; the configuration is at index %llu. "
					   "%d nodes are left behind.",
					   (unsigned long long) status->delivered_slot,
					   (unsigned long long) (config_slot - 1 - status->delivered_slot),
					   (unsigned long long) config_slot, config->left_behind_count)));
	pfree(bytes.data);
	pfree(config);
}

/* Asked before anything is adopted: a request that is refused has changed nothing. */
static const char *
why_not_forced(const ClusterGeneration *generation)
{
	ClusterGeneration successor;
	PaxosStatus status;

	paxos_status(worker.core, worker_now_ms(), &status);
	if (generation_file_read(GENERATION_SUCCESSOR_FILE, &successor) != GENERATION_FILE_ABSENT)
		return "this node was left behind by the cluster meanwhile";
	if (generation_compare(&worker.config.generation, generation) != GENERATION_OLDER ||
		generation->number != worker.config.generation.number + 1)
		return "the request does not follow on the generation of this node";
	if (member_config_find(&worker.config, worker.journal_identity.node_id) == NULL)
		return "this node is no member any more";
	if (status.delivered_slot < worker.config_slot)
		return "this node joined, and has not been taught all of the log up to then";
	return NULL;
}

static void
carry_out_request(const ClusterGeneration *generation)
{
	/* As it is now: what is adopted may hold a configuration without this node. */
	MemberConfigItem self = *member_config_find(&worker.config, worker.journal_identity.node_id);
	PaxosStatus status;

	adopt_accepted(&status);
	write_new_generation(&status, &self, generation);
}

void
generation_carry_out_request(void)
{
	ClusterGeneration generation;
	GenerationFileState state = generation_file_read(GENERATION_REQUEST_FILE, &generation);
	const char *why_not;

	if (state == GENERATION_FILE_ABSENT)
		return;
	why_not = state == GENERATION_FILE_VALID ? why_not_forced(&generation) : "the request cannot be read";
	if (why_not == NULL)
		carry_out_request(&generation);
	else if (generation_compare(&worker.config.generation, &generation) != GENERATION_SAME)
		ereport(LOG,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("quorum.force_new_cluster() was not carried out: %s", why_not)));
	generation_file_remove(GENERATION_REQUEST_FILE);
	proc_exit(1);
}

/* ---- fencing ---- */

/* A member refuses the link, and says why by naming its generation. */
void
generation_hear_successor(const char *text)
{
	ClusterGeneration successor;

	if (!generation_from_text(&successor, text) ||
		generation_compare(&worker.config.generation, &successor) != GENERATION_OLDER)
		return;
	generation_file_write(GENERATION_SUCCESSOR_FILE, &successor);
	ereport(LOG, (errmsg("%s", generation_explain(&worker.config.generation, &successor))));
	proc_exit(1);
}

static void
publish_left_behind(const char *why)
{
	shmem_set_last_error(why);
	pg_atomic_write_u32(&QuorumShmem->removed, REMOVED_LEFT_BEHIND);
	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
	QuorumShmem->status.role = NODE_REMOVED;
	QuorumShmem->status.has_quorum = false;
	QuorumShmem->status.leader_id = 0;
	LWLockRelease(QuorumShmem->lock);
}

/* Does not return for a node that was left behind, until the worker is ended (quorum.leave_cluster). */
void
generation_stand_aside(void)
{
	ClusterGeneration successor;
	char	   *why;

	if (generation_file_read(GENERATION_SUCCESSOR_FILE, &successor) == GENERATION_FILE_ABSENT)
		return;
	why = generation_explain(&worker.config.generation, &successor);
	publish_left_behind(why);
	ereport(LOG,
			(errmsg("%s", why),
			 errhint("SELECT quorum.leave_cluster(force => true) makes it an ordinary instance, which keeps its rows. "
					 "Compare them with the cluster's before they are given up: what only this side acknowledged is nowhere else.")));
	for (;;)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH, -1, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* ---- telling ---- */

/* Its instance, or one of its name, has come back as a new node. */
static bool
is_member_again(const MemberConfigItem *item)
{
	for (int i = 0; i < worker.config.member_count; i++)
		if (strcmp(worker.config.members[i].node_name, item->node_name) == 0 ||
			strcmp(worker.config.members[i].conninfo, item->conninfo) == 0)
			return true;
	return false;
}

const MemberConfigItem *
generation_next_to_tell(int *place)
{
	while (*place < worker.config.left_behind_count)
	{
		const MemberConfigItem *item = &worker.config.left_behind[(*place)++];

		if (!is_member_again(item))
			return item;
	}
	return NULL;
}
