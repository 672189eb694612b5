/*
 * members.c
 *	  The configuration as the host sees it (names, conninfo), its changes, the promotion of learners, and what others read of
 *	  this node and its members.
 *	  Process: consensus worker.
 *
 * Must never decide about quorums: that is the core's.  Locks: QuorumShmem->lock, shortly.
 *
 * Why a configuration always follows from the one before it in the log, whoever asked for it and whatever leader is deposed meanwhile
 *	 1. A backend hands over a change, not a configuration.  The configuration is made here, when it is given to the core, from worker.config,
 *		which is that of the delivered prefix (propose_config compares its slot with the core's).
 *	 2. The core takes one at a time, and only as a leader that has delivered everything it adopted; it proposes it in the slot right after its
 *		delivered prefix, and nothing after it.  So no other configuration comes between it and the one that it was made from.
 *	 3. It is never proposed in another slot: a leader that is deposed before it is chosen drops it, and a later one either adopts it in
 *		its slot or fills that slot with something else.
 *	 Whoever asked for it and is not told the outcome (proposal_lose) looks whether the change is in force, and asks again if not.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "config.h"
#include "consensus/transport/transport.h"
#include "consensus/worker_internal.h"
#include "shared/member_change.h"
#include "shared/proposal_queue.h"
#include "shared/read_round.h"
#include "shared/rows_to_keep.h"

#define LAST_RESORT_ELECTIONS 20	/* in so many election timeouts another node would have come forward */
#define PATIENCE_ELECTIONS 4		/* long enough for a new leader to be elected */
#define STANDSTILL_MS 200			/* a loop that is not held up by anything comes round sooner */
#define PROMOTION_LAG_ENTRIES 64	/* a learner that is closer than this to the end of the log becomes a voter */

/*
 * Who is no member any more is told so on the link that there is, before it is closed; and a leader that was removed has still to hand over.
 */
static void
note_departures(const MemberConfig *config)
{
	for (int i = 0; i < worker.config.member_count; i++)
	{
		const MemberConfigItem *member = &worker.config.members[i];

		if (member_config_find(config, member->node_id) != NULL || member->node_id == worker.journal_identity.node_id)
			continue;
		for (int place = 0; place < QUORUM_MAX_MEMBERS; place++)
			if (worker.departing_until_ms[place] == 0)
			{
				worker.departing[place] = *member;
				worker.departing_until_ms[place] = worker_now_ms() + 2 * (uint64) quorum_election_timeout_ms;
				break;
			}
	}
}

/* At once: whoever asked for the change goes on from what the status says of it. */
static void
publish_config(void)
{
	PaxosStatus status;

	paxos_status(worker.core, worker_now_ms(), &status);
	members_publish_status(&status);
}

/* The members of a CONFIG value are in force; links and status follow. */
void
members_take_config(uint64 slot, const char *bytes, Size length)
{
	MemberConfig config;

	if (slot < worker.config_slot)
		return;					/* a joiner is taught entries that are older than what it was told */
	if (!member_config_decode(&config, bytes, length))
		ereport(FATAL,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("configuration entry at log index %llu is malformed", (unsigned long long) slot)));
	if (!worker.restoring)
		note_departures(&config);
	worker.config = config;
	worker.config_slot = slot;
	worker.peers_changed = true;
	if (member_config_find(&config, worker.journal_identity.node_id) == NULL &&
		worker.journal_identity.node_id < config.next_node_id)
		members_note_removed();
	if (worker.started)
		publish_config();
}

/*
 * By the own log, or by the word of a member, who knows it from the log.  Not kept on disk: after a restart a member says it again.  The core goes on:
 * its acceptor may be needed by those who have not heard of the removal, and those who have will not talk to it.
 */
void
members_note_removed(void)
{
	if (pg_atomic_exchange_u32(&QuorumShmem->removed, 1) != 0)
		return;
	shmem_set_last_error(REMOVED_ERROR);
	ereport(LOG,
			(errmsg("this node was removed from the cluster"),
			 errhint("SELECT quorum.leave_cluster() makes it an ordinary instance, which keeps its rows and can join again, with keep_rows => true.")));
}

static void
forget_departed(void)
{
	uint64		now_ms = worker_now_ms();

	for (int i = 0; i < QUORUM_MAX_MEMBERS; i++)
		if (worker.departing_until_ms[i] != 0 && now_ms >= worker.departing_until_ms[i])
		{
			worker.departing_until_ms[i] = 0;
			worker.peers_changed = true;
		}
}

static void
add_peer(TransportPeer *peers, int *peer_count, const MemberConfigItem *member)
{
	TransportPeer *peer = &peers[*peer_count];

	if (member->node_id == worker.journal_identity.node_id || *peer_count == QUORUM_MAX_MEMBERS)
		return;
	peer->node_id = member->node_id;
	strlcpy(peer->node_name, member->node_name, NAMEDATALEN);
	strlcpy(peer->conninfo, member->conninfo, sizeof(peer->conninfo));
	(*peer_count)++;
}

/* Links follow the configuration at the end of the loop, since it may have changed within a callback of the transport. */
void
members_connect_peers(void)
{
	TransportPeer peers[QUORUM_MAX_MEMBERS];
	int			peer_count = 0;
	const MemberConfigItem *left_behind;
	int			place = 0;

	forget_departed();
	if (!worker.peers_changed)
		return;
	worker.peers_changed = false;
	for (int i = 0; i < worker.config.member_count; i++)
		add_peer(peers, &peer_count, &worker.config.members[i]);
	for (int i = 0; i < QUORUM_MAX_MEMBERS; i++)
		if (worker.departing_until_ms[i] != 0)
			add_peer(peers, &peer_count, &worker.departing[i]);
	while ((left_behind = generation_next_to_tell(&place)) != NULL)
		add_peer(peers, &peer_count, left_behind);
	transport_set_peers(peers, peer_count);
}

static bool
propose_config(const MemberConfig *config, uint64 sequence)
{
	StringInfoData bytes;
	PaxosStatus status;
	bool		proposed;

	paxos_status(worker.core, worker_now_ms(), &status);
	if (status.config.slot != worker.config_slot)
		return false;
	initStringInfo(&bytes);
	member_config_encode(config, &bytes);
	proposed = worker_propose(PAXOS_VALUE_CONFIG, sequence, bytes.data, bytes.len);
	pfree(bytes.data);
	return proposed;
}

static bool
add_member(MemberConfig *config, const MemberChange *change)
{
	MemberConfigItem *item;

	if (config->member_count >= QUORUM_MAX_MEMBERS)
		return false;
	for (int i = 0; i < config->member_count; i++)
		if (strcmp(config->members[i].node_name, change->node_name) == 0)
			return false;
	item = &config->members[config->member_count++];
	item->node_id = config->next_node_id++;
	item->is_voter = false;
	item->as_voter = change->as_voter;
	strlcpy(item->node_name, change->node_name, NAMEDATALEN);
	strlcpy(item->conninfo, change->conninfo, QUORUM_MAX_CONNINFO);
	return true;
}

/* The last voter stays. */
static bool
remove_member(MemberConfig *config, uint32 node_id)
{
	int			kept = 0;
	int			voters = 0;

	for (int i = 0; i < config->member_count; i++)
	{
		if (config->members[i].node_id == node_id)
			continue;
		voters += config->members[i].is_voter ? 1 : 0;
		if (kept != i)
			config->members[kept] = config->members[i];
		kept++;
	}
	if (kept == config->member_count || voters == 0)
		return false;
	config->member_count = kept;
	return true;
}

/*
 * A backend's PROPOSAL_MEMBER_CHANGE.  False: it can never succeed (name in use, too many members, gone already).  *taken: the core has
 * it; if not, it is to be offered again.
 */
bool
members_propose_change(const MemberChange *change, uint64 sequence, bool *taken)
{
	MemberConfig config = worker.config;

	*taken = false;
	if (change->kind == MEMBER_ADD ? !add_member(&config, change) : !remove_member(&config, change->node_id))
		return false;
	*taken = propose_config(&config, sequence);
	if (*taken)
		worker.change_sequence = sequence;
	return true;
}

/* A deposed leader drops the change that it had not got chosen. */
void
members_note_role(PaxosRole role)
{
	if (role == PAXOS_LEADER || worker.change_sequence == 0)
		return;
	proposal_lose(worker.change_sequence);	/* unless it was told */
	worker.change_sequence = 0;
}

/* On the leader: a learner that is to vote and has caught up becomes a voter, one at a time. */
void
members_promote_learners(const PaxosStatus *status)
{
	if (status->role != PAXOS_LEADER || !status->leader_is_ready || status->config_is_pending)
		return;
	for (uint32 p = 0; p < status->peer_count; p++)
	{
		const PaxosPeerStatus *peer = &status->peers[p];
		MemberConfig config = worker.config;

		if (peer->is_voter || !peer->link_up || peer->delivered_slot == 0 ||
			peer->delivered_slot + PROMOTION_LAG_ENTRIES < status->chosen_slot)
			continue;
		for (int i = 0; i < config.member_count; i++)
			if (config.members[i].node_id == peer->node_id && config.members[i].as_voter)
			{
				config.members[i].is_voter = true;
				(void) propose_config(&config, proposal_next_sequence());
				return;
			}
	}
}

/* A transaction that is proposed now is likely to end well, on whichever node. */
bool
members_accept_proposals(const PaxosStatus *status)
{
	if (!status->quorum_is_fresh || !turn_is_initialised() || turn_is_suspended() ||
		pg_atomic_read_u64(&QuorumShmem->snapshot_needed) != 0 || pg_atomic_read_u32(&QuorumShmem->apply_failed) != 0 ||
		pg_atomic_read_u32(&QuorumShmem->removed) != 0)
		return false;
	return status->role != PAXOS_LEADER || (status->leader_is_ready && turn_applied_index() >= status->adopted_slot);
}

/* Links break when a process ends; where they are only silent it is found out by elections. */
static bool
majority_is_linked(const PaxosStatus *status)
{
	uint32		linked = status->voter_count;

	for (uint32 p = 0; p < status->peer_count; p++)
		linked -= status->peers[p].is_voter && !status->peers[p].link_up ? 1 : 0;
	return linked >= status->quorum_size;
}

/*
 * How long the end of an election is waited for: as by readers (read_wait.c).  Where a majority is not even linked there is none to wait for, and
 * a node in a minority is to say so fast.
 */
static uint64
patience_ms(const PaxosStatus *status)
{
	if (!majority_is_linked(status))
		return QUEUED_PATIENCE_MS;
	return Max(QUEUED_PATIENCE_MS, PATIENCE_ELECTIONS * (uint64) quorum_election_timeout_ms);
}

/*
 * Once in each turn of the loop.  A time in which this process stood still (a disk that was slow to sync, a machine that was busy) says nothing
 * about the others, who may be about to be heard: it does not count.
 */
void
members_note_acceptance(const PaxosStatus *status)
{
	uint64		now_ms = worker_now_ms();
	uint64		standstill_ms = 0;

	if (worker.looked_for_quorum_ms != 0 && now_ms > worker.looked_for_quorum_ms + STANDSTILL_MS)
		standstill_ms = now_ms - worker.looked_for_quorum_ms - STANDSTILL_MS;
	worker.looked_for_quorum_ms = now_ms;
	worker.accepted_proposals_ms = worker.accepted_proposals_ms == 0 ? now_ms : worker.accepted_proposals_ms + standstill_ms;
	if (worker.heard_quorum_ms != 0)
		worker.heard_quorum_ms += standstill_ms;
	if (members_accept_proposals(status))
		worker.accepted_proposals_ms = worker.heard_quorum_ms = now_ms;
	else if (status->has_quorum && majority_is_linked(status) && pg_atomic_read_u64(&QuorumShmem->snapshot_needed) == 0)
		worker.heard_quorum_ms = now_ms;
}

/* Of the queued ones those are refused that have waited for so long; 0: none, it is not long enough that none was taken. */
int
members_refuse_after_ms(const PaxosStatus *status)
{
	uint64		longest_ms = patience_ms(status);

	return worker_now_ms() - worker.accepted_proposals_ms >= longest_ms ? (int) longest_ms : 0;
}

/*
 * Backends may queue: proposals are accepted, or a leader is heard which is about to accept them, or that was so a moment ago.  An election takes
 * less than that moment, so failover refuses few; a node in a minority refuses at once when it has passed.
 */
bool
members_may_write(const PaxosStatus *status)
{
	return worker.heard_quorum_ms != 0 && worker_now_ms() - worker.heard_quorum_ms < patience_ms(status) &&
		turn_is_initialised() && pg_atomic_read_u32(&QuorumShmem->apply_failed) == 0 &&
		pg_atomic_read_u32(&QuorumShmem->removed) == 0;
}

/*
 * A node that has stopped applying does not lead.  Nor does one whose copy of a table is known to differ, as long as there is
 * another: its log is as good as any, but clients look for the leader.  When nobody else comes forward for long it leads all the
 * same, since without a leader nothing could ever be repaired.
 */
bool
members_may_lead(const PaxosStatus *status)
{
	static uint64 leaderless_since_ms = 0;
	static bool is_last_resort = false;
	uint64		now_ms = worker_now_ms();

	if (status->has_quorum)
		leaderless_since_ms = 0;
	else if (leaderless_since_ms == 0)
		leaderless_since_ms = now_ms;
	if (pg_atomic_read_u32(&QuorumShmem->quarantined_tables) == 0 ||
		(status->has_quorum && status->leader_id != worker.journal_identity.node_id))
		is_last_resort = false;
	else if (leaderless_since_ms != 0)
		is_last_resort |= now_ms - leaderless_since_ms >= LAST_RESORT_ELECTIONS * (uint64) quorum_election_timeout_ms;
	return pg_atomic_read_u32(&QuorumShmem->apply_failed) == 0 &&
		(is_last_resort || pg_atomic_read_u32(&QuorumShmem->quarantined_tables) == 0);
}

static NodeRole
role_of(PaxosRole role)
{
	switch (role)
	{
		case PAXOS_LEARNER:
			return NODE_LEARNER;
		case PAXOS_FOLLOWER:
			return NODE_FOLLOWER;
		case PAXOS_CANDIDATE:
			return NODE_CANDIDATE;
		case PAXOS_LEADER:
			return NODE_LEADER;
	}
	return NODE_STOPPED;
}

static void
publish_member(MemberState *member, const MemberConfigItem *item, const PaxosStatus *status, uint64 now_ms,
			   TimestampTz now)
{
	memset(member, 0, sizeof(MemberState));
	member->node_id = item->node_id;
	member->is_voter = item->is_voter;
	member->as_voter = item->as_voter;
	member->round_trip_ms = -1;
	strlcpy(member->node_name, item->node_name, NAMEDATALEN);
	strlcpy(member->conninfo, item->conninfo, QUORUM_MAX_CONNINFO);
	if (item->node_id == worker.journal_identity.node_id)
	{
		member->reachable = true;
		member->accepted_index = status->accepted_slot;
		member->delivered_index = status->delivered_slot;
		member->last_contact = now;
		member->round_trip_ms = 0;
		return;
	}
	for (uint32 p = 0; p < status->peer_count; p++)
	{
		const PaxosPeerStatus *peer = &status->peers[p];

		if (peer->node_id != item->node_id)
			continue;
		member->reachable = peer->last_contact_ms != 0 && now_ms - peer->last_contact_ms <= (uint64) quorum_election_timeout_ms;
		member->accepted_index = peer->accepted_slot;
		member->delivered_index = peer->delivered_slot;
		member->is_older_build = transport_peer_version(peer->node_id) < Min(TRANSPORT_CLAIM_VERSION, TRANSPORT_NEWEST_VERSION);
		member->round_trip_ms = peer->last_contact_ms != 0 ? (int) peer->round_trip_ms : -1;
		if (peer->last_contact_ms != 0)
			member->last_contact = now - (TimestampTz) (now_ms - peer->last_contact_ms) * 1000;
	}
}

void
members_publish_status(const PaxosStatus *status)
{
	NodeStatus *shared = &QuorumShmem->status;
	uint64		now_ms = worker_now_ms();
	TimestampTz now = GetCurrentTimestamp();
	TransportCounters counters;
	bool		is_removed = pg_atomic_read_u32(&QuorumShmem->removed) != 0;

	transport_get_counters(&counters);
	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
	shared->role = is_removed ? NODE_REMOVED : role_of(status->role);
	shared->leader_id = is_removed ? 0 : status->leader_id;
	shared->ballot_round = status->ballot.round;
	shared->ballot_node_id = status->ballot.node_id;
	shared->has_quorum = status->has_quorum && !is_removed;
	shared->voter_count = status->voter_count;
	shared->voters_reachable = status->voters_reachable;
	shared->quorum_size = status->quorum_size;
	shared->elections_started = status->elections_started;
	shared->ballots_won = status->ballots_won;
	shared->journal_bytes = journal_size_bytes(worker.journal);
	shared->journal_syncs = worker.journal_syncs;
	shared->frames_sent = counters.frames_sent;
	shared->frames_received = counters.frames_received;
	shared->config_index = worker.config_slot;
	shared->next_node_id = worker.config.next_node_id;
	shared->member_count = worker.config.member_count;
	for (int i = 0; i < worker.config.member_count; i++)
		publish_member(&shared->members[i], &worker.config.members[i], status, now_ms, now);
	LWLockRelease(QuorumShmem->lock);
}

/* ---- who this node is ---- */

void
members_publish_identity(const IdentityFile *identity)
{
	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
	QuorumShmem->identity.cluster_id = identity->cluster_id;
	QuorumShmem->identity.node_id = identity->node_id;
	QuorumShmem->identity.incarnation = worker.incarnation;
	strlcpy(QuorumShmem->identity.node_name, identity->node_name, NAMEDATALEN);
	strlcpy(QuorumShmem->identity.conninfo, identity->conninfo, QUORUM_MAX_CONNINFO);
	QuorumShmem->identity.generation = worker.config.generation;
	LWLockRelease(QuorumShmem->lock);
}

/* This instance belongs to no cluster, perhaps not any more: nothing of an earlier membership is to be seen. */
void
members_forget_node(void)
{
	proposal_queue_reset_owner();
	read_round_reset();
	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
	memset(&QuorumShmem->identity, 0, sizeof(QuorumShmem->identity));
	memset(&QuorumShmem->status, 0, sizeof(QuorumShmem->status));
	LWLockRelease(QuorumShmem->lock);
	pg_atomic_write_u64(&QuorumShmem->chosen_index, 0);
	pg_atomic_write_u64(&QuorumShmem->accepted_index, 0);
	pg_atomic_write_u32(&QuorumShmem->removed, 0);
	rows_to_keep_forget();
	shmem_set_last_error(NULL);
}
