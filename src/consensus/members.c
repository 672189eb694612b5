/*
 * members.c
 *	  The configuration as the host sees it (names, conninfo), the promotion of learners, and the status that others read.
 *	  Process: consensus worker.
 *
 * Must never decide about quorums: that is the core's.  Locks: QuorumShmem->lock, shortly.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "config.h"
#include "consensus/transport/transport.h"
#include "consensus/worker_internal.h"
#include "shared/proposal_queue.h"

#define PROMOTION_LAG_ENTRIES 64	/* a learner that is closer than this to the end of the log becomes a voter */

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
	worker.config = config;
	worker.config_slot = slot;
	worker.peers_changed = true;
}

/* Links follow the configuration at the end of the loop, since it may have changed within a callback of the transport. */
void
members_connect_peers(void)
{
	TransportPeer peers[QUORUM_MAX_MEMBERS];
	int			peer_count = 0;

	if (!worker.peers_changed)
		return;
	worker.peers_changed = false;
	for (int i = 0; i < worker.config.member_count; i++)
	{
		MemberConfigItem *member = &worker.config.members[i];

		if (member->node_id == worker.journal_identity.node_id)
			continue;
		peers[peer_count].node_id = member->node_id;
		strlcpy(peers[peer_count].node_name, member->node_name, NAMEDATALEN);
		strlcpy(peers[peer_count].conninfo, member->conninfo, sizeof(peers[peer_count].conninfo));
		peer_count++;
	}
	transport_set_peers(peers, peer_count);
}

static bool
propose_config(const MemberConfig *config, uint64 sequence)
{
	StringInfoData bytes;
	bool		proposed;

	initStringInfo(&bytes);
	member_config_encode(config, &bytes);
	proposed = worker_propose(PAXOS_VALUE_CONFIG, sequence, bytes.data, bytes.len);
	pfree(bytes.data);
	return proposed;
}

/*
 * A backend's PROPOSAL_ADD_MEMBER.  False: it can never succeed (name in use, too many members).  *taken: the core has it; if not, it
 * is to be offered again.
 */
bool
members_propose_new(const char *payload, Size length, uint64 sequence, bool *taken)
{
	const char *name = payload;
	const char *conninfo = payload + strlen(payload) + 1;
	MemberConfig config = worker.config;
	MemberConfigItem *item;

	*taken = false;
	if (config.member_count >= QUORUM_MAX_MEMBERS)
		return false;
	for (int i = 0; i < config.member_count; i++)
		if (strcmp(config.members[i].node_name, name) == 0)
			return false;
	item = &config.members[config.member_count++];
	item->node_id = config.next_node_id++;
	item->is_voter = false;
	strlcpy(item->node_name, name, NAMEDATALEN);
	strlcpy(item->conninfo, conninfo, QUORUM_MAX_CONNINFO);
	*taken = propose_config(&config, sequence);
	return true;
}

/* On the leader: a learner that has caught up becomes a voter, one at a time. */
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
			if (config.members[i].node_id == peer->node_id)
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
		pg_atomic_read_u64(&QuorumShmem->snapshot_needed) != 0 || pg_atomic_read_u32(&QuorumShmem->apply_failed) != 0)
		return false;
	return status->role != PAXOS_LEADER || (status->leader_is_ready && turn_applied_index() >= status->adopted_slot);
}

/*
 * Backends may queue: proposals are accepted, or were a moment ago.  An election takes less than that moment, so failover refuses few; a node
 * in a minority refuses at once when it has passed.
 */
bool
members_may_write(const PaxosStatus *status)
{
	uint64		now_ms = worker_now_ms();

	if (members_accept_proposals(status))
		worker.accepted_proposals_ms = now_ms;
	return worker.accepted_proposals_ms != 0 && now_ms - worker.accepted_proposals_ms < QUEUED_PATIENCE_MS &&
		turn_is_initialised() && pg_atomic_read_u32(&QuorumShmem->apply_failed) == 0;
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

	transport_get_counters(&counters);
	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
	shared->role = role_of(status->role);
	shared->leader_id = status->leader_id;
	shared->ballot_round = status->ballot.round;
	shared->ballot_node_id = status->ballot.node_id;
	shared->has_quorum = status->has_quorum;
	shared->voter_count = status->voter_count;
	shared->voters_reachable = status->voters_reachable;
	shared->quorum_size = status->quorum_size;
	shared->elections_started = status->elections_started;
	shared->ballots_won = status->ballots_won;
	shared->journal_bytes = journal_size_bytes(worker.journal);
	shared->journal_syncs = worker.journal_syncs;
	shared->frames_sent = counters.frames_sent;
	shared->frames_received = counters.frames_received;
	shared->config_slot = worker.config_slot;
	shared->next_node_id = worker.config.next_node_id;
	shared->member_count = worker.config.member_count;
	for (int i = 0; i < worker.config.member_count; i++)
		publish_member(&shared->members[i], &worker.config.members[i], status, now_ms, now);
	LWLockRelease(QuorumShmem->lock);
}
