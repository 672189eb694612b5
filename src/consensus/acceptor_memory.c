/*
 * acceptor_memory.c
 *	  Does this node's journal hold all that it ever promised?  Its peers tell, before its first vote.  Process: consensus worker.
 *
 * The other half is shared/acceptor_mark.h: what this node remembers of its peers' journals, told by their messages and kept in its own journal.
 *
 * A voter is silent before as many other voters have let it in as it needs for a quorum: each compares what this node's recovery found with the
 * mark that it keeps.  It could not do anything without them anyhow, so that costs nothing but the handshakes.  A silent node votes for nothing, but it
 * learns what is chosen: of the voters that it knows most may have been replaced while it was away, and only the log tells it by whom.  Whenever any
 * member refuses it, then or later, it steps aside for good: its worker closes its links and does nothing any more.
 *
 * What this cannot notice: a loss that only nodes which are down know of.  Marks are passed on with each heartbeat, so that is what was made durable
 * within a heartbeat interval before the leader went down, too.
 *
 * Must never: let the core say anything that counts before that, or let it go on after a refusal.  Locks: QuorumShmem->lock inside the functions it calls.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"

#include "consensus/published_state.h"
#include "consensus/transport/transport.h"
#include "consensus/worker_internal.h"
#include "shared/acceptor_mark.h"
#include "shared/proposal_queue.h"
#include "shared/read_round.h"

#define NOTE_INTERVAL_MS 1000	/* the marks in the journal are at most this much older than those in memory */
#define SILENT_WAIT_MS 1000		/* only a longer wait for the peers is worth a word in the status */

/* Those that let this start in, and whether the link to them is still up. */
typedef struct Confirmation
{
	uint32		node_id;
	bool		link_up;
} Confirmation;

static Confirmation confirmations[QUORUM_MAX_MEMBERS];
static int	confirmation_count = 0;
static char *refusal = NULL;

static AcceptorMark noted[QUORUM_MAX_MEMBERS];	/* of status->peers[i], as last given to acceptor_mark_note */
static uint64 written_generation = 0;
static uint64 note_written_ms = 0;

void
memory_restore(void)
{
	uint32_t	length;
	const uint8 *note = journal_note(worker.journal, &length);

	if (note != NULL && !acceptor_marks_decode(note, length))
		ereport(FATAL,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("the journal's note about the other members is malformed"),
				 errhint("Let this node join as a new one.")));
	written_generation = acceptor_marks_generation();
	acceptor_marks_set_known(true);
}

/* ---- of the peers ---- */

void
memory_note_peers(const PaxosStatus *status)
{
	for (uint32 p = 0; p < status->peer_count; p++)
	{
		const PaxosPeerStatus *peer = &status->peers[p];

		if (noted[p].node_id == peer->node_id && noted[p].start_count == peer->durable_incarnation &&
			noted[p].durable_position == peer->durable_position)
			continue;
		noted[p].node_id = peer->node_id;
		noted[p].start_count = peer->durable_incarnation;
		noted[p].durable_position = peer->durable_position;
		acceptor_mark_note(peer->node_id, peer->durable_incarnation, peer->durable_position);
	}
}

/* With the next sync, once in a while: a promise that a peer made long ago is then known here after any crash. */
void
memory_write_note(void)
{
	uint64		now_ms = worker_now_ms();
	uint64		generation;
	StringInfoData bytes;

	if (now_ms < note_written_ms + NOTE_INTERVAL_MS)
		return;
	generation = acceptor_marks_generation();
	if (generation == written_generation)
		return;
	initStringInfo(&bytes);
	acceptor_marks_encode(&bytes);
	journal_append_note(worker.journal, (const uint8_t *) bytes.data, (uint32_t) bytes.len);
	pfree(bytes.data);
	worker.must_sync = true;
	written_generation = generation;
	note_written_ms = now_ms;
}

/* ---- of this node ---- */

/* The statements, for who is to write them: this node's name in them. */
static char *
how_to_rejoin(void)
{
	NodeIdentity identity;

	shmem_get_identity(&identity);
	return psprintf("SELECT quorum.remove_node('%s') on a member; then here SELECT quorum.leave_cluster(force => true) "
					"and SELECT quorum.join_cluster('%s', ..., keep_rows => true), which keeps the rows that still match",
					identity.node_name, identity.node_name);
}

/*
 * Whatever is in the tables was durable in the journal first.  If the tables are ahead of it, the journal has forgotten what this node
 * had promised, and a vote could contradict it (P8): the node takes no part.  So the position row has to be known before the first vote.
 */
void
memory_check_tables(const IdentityFile *identity)
{
	PaxosStatus status;
	uint64		applied_index;

	while (!turn_is_initialised())
		worker_wait_a_moment();
	paxos_status(worker.core, worker_now_ms(), &status);
	applied_index = turn_applied_index();
	if (applied_index <= status.accepted_slot)
		return;

	/* An instance made from another node's backup joined with tables of before it was a member; it has promised nothing then. */
	if (applied_index <= identity->config_slot)
		return;
	shmem_set_last_error(psprintf("the journal has forgotten entries that are in the tables: this node takes no part in the consensus. "
								  "To rejoin: %s.", how_to_rejoin()));
	ereport(LOG,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("the journal has forgotten entries that are in the tables: this node takes no part in the consensus"),
			 errdetail("The tables are at log index %llu, the journal ends with %llu.",
					   (unsigned long long) applied_index, (unsigned long long) status.accepted_slot),
			 errhint("Its disk lost what it had confirmed, or the journal is an old copy. Let it join as a new node: %s.", how_to_rejoin())));
	for (;;)
		worker_wait_a_moment();
}

static Confirmation *
confirmation_of(uint32 node_id)
{
	for (int i = 0; i < confirmation_count; i++)
		if (confirmations[i].node_id == node_id)
			return &confirmations[i];
	return NULL;
}

/* A link that is up says that this node was let in at its other end. */
void
memory_note_link(uint32 node_id, bool up)
{
	Confirmation *confirmation = confirmation_of(node_id);

	if (confirmation == NULL && up && confirmation_count < QUORUM_MAX_MEMBERS)
	{
		confirmation = &confirmations[confirmation_count++];
		confirmation->node_id = node_id;
	}
	if (confirmation != NULL)
		confirmation->link_up = up;
}

bool
memory_link_is_up(uint32 node_id)
{
	const Confirmation *confirmation = confirmation_of(node_id);

	return confirmation != NULL && confirmation->link_up;
}

/* Called back from within the transport, so it only takes note. */
void
memory_refused(uint32 node_id, const char *why)
{
	char		node_name[NAMEDATALEN];

	if (refusal != NULL)
		return;
	shmem_member_name(node_id, node_name, NAMEDATALEN);
	refusal = MemoryContextStrdup(TopMemoryContext,
								  psprintf("this node has forgotten what it had promised or accepted, says node \"%s\": %s", node_name, why));
}

static int
missing_confirmations(void)
{
	int			voters = 0;
	int			confirmed = 0;
	bool		is_voter = false;

	for (int i = 0; i < worker.config.member_count; i++)
	{
		const MemberConfigItem *member = &worker.config.members[i];

		if (!member->is_voter)
			continue;
		voters++;
		is_voter |= member->node_id == worker.journal_identity.node_id;
		confirmed += confirmation_of(member->node_id) != NULL ? 1 : 0;
	}
	return is_voter ? Max(voters / 2 - confirmed, 0) : 0;
}

/* It does not vote, lead or serve; local reads go on.  Only a new identity ends this: the postmaster's restart of the worker looks for one. */
static void
step_aside(void)
{
	/* The loop's own handler leaves the end to the loop, which is over. */
	pqsignal(SIGTERM, die);
	if (ShutdownRequestPending)
		proc_exit(0);
	published_state_withdraw();
	transport_shutdown();
	pg_atomic_write_u32(&QuorumShmem->may_write, 0);
	read_round_note_quorum(false);
	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
	QuorumShmem->status.role = NODE_STOPPED;
	QuorumShmem->status.has_quorum = false;
	QuorumShmem->status.leader_id = 0;
	LWLockRelease(QuorumShmem->lock);
	shmem_set_last_error(psprintf("%s To rejoin: %s.", refusal, how_to_rejoin()));
	ereport(LOG,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("%s", refusal),
			 errdetail("This node takes no part in the consensus any more; its vote could contradict its own promises."),
			 errhint("Its disk lost what it had confirmed, it was restored from a backup, or a copy of it runs elsewhere. "
					 "Let it join as a new node: %s.", how_to_rejoin())));
	for (;;)
		worker_wait_a_moment();
}

void
memory_check(void)
{
	if (refusal != NULL)
		step_aside();
}

static char *
waiting_text(int missing)
{
	return psprintf("waits until %d more of the other voters can be asked whether this node's journal is complete", missing);
}

/*
 * Once in each turn.  Also of a node that was removed: those who have not heard of it may still need its acceptor, and it must not have
 * forgotten anything either.  The configuration may change meanwhile: the log says so to a silent node, too.
 */
void
memory_look_for_confirmation(void)
{
	static char *told = NULL;
	static uint64 begun_ms = 0;
	int			missing;

	if (!paxos_is_silent(worker.core))
		return;
	missing = missing_confirmations();
	if (missing == 0)
	{
		paxos_set_silent(worker.core, false);
		if (told != NULL && strcmp(told, shmem_last_error()) == 0)
			shmem_set_last_error(NULL);
		return;
	}
	if (begun_ms == 0)
		begun_ms = worker_now_ms();
	if (told == NULL && pg_atomic_read_u32(&QuorumShmem->removed) == 0 && worker_now_ms() >= begun_ms + SILENT_WAIT_MS)
	{
		told = MemoryContextStrdup(TopMemoryContext, waiting_text(missing));
		shmem_set_last_error(told);
	}
}
