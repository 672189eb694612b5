/*
 * election.c
 *	  Who leads: timeouts, pre-vote, and phase 1 of "Paxos Made Simple" (sections 2.2 and 2.4) for all open slots at once.
 *
 * Process: consensus worker, tests.  Must never make a node leader before its own promise is durable.
 *
 * Roles in the order in which they occur, with what leaves each:
 *
 *	 LEARNER	 a configuration makes this node a voter -> FOLLOWER
 *	 FOLLOWER	 no leader heard for a random [1, 2) election timeouts -> CANDIDATE, pre-vote
 *	 CANDIDATE	 pre-vote: a majority would promise -> phase 1; a leader is heard -> FOLLOWER; time is up -> asks anew
 *				 phase 1: a majority promised, in full -> LEADER; a higher ballot or time is up -> FOLLOWER or pre-vote again, later
 *	 LEADER		 no majority answered for an election timeout, a higher ballot, may_lead gone -> FOLLOWER
 *				 no voter any more, and a majority of those who are was told (or time is up) -> LEARNER
 *
 * Pre-vote (Ongaro 2014, section 9.6): a node asks whether others would promise, without raising any ballot, and is told no by
 * whoever hears a leader, or has delivered more.  So a node that was cut off deposes nobody when it returns, and one that can
 * send but not hear never gets to phase 1.
 *
 * Invariants
 *	 1. A ballot (round, own node id) is told to others only after the own PROMISE record of it is durable; a restarted node
 *		finds that record, and picks a higher round.  So no ballot is used by two lives of a node.
 *	 2. A leader has complete promises of a majority of the configuration in force for each slot in which it proposes.
 *	 3. A node that may not lead, is no voter, or has not delivered up to its configuration, neither asks for pre-votes nor prepares.  Its acceptor goes on.
 */
#include "paxos_internal.h"

#include <string.h>

/*
 * [1, 2) election timeouts; after elections that were lost to another candidate the random part doubles, so that duellists
 * part.  A candidate that hears nobody does not back off: it costs nothing, and it is to be quick when the others return.
 */
void
election_reset_timer(PaxosCore *core)
{
	uint64_t	timeout_ms = core->settings.election_timeout_ms;
	uint32_t	doublings = core->lost_elections < MAX_DOUBLINGS ? core->lost_elections : MAX_DOUBLINGS;

	core->election_deadline_ms = core->now_ms + timeout_ms + core_random_below(core, timeout_ms << doublings);
}

/*
 * A joiner may have been told a configuration that is in force for later slots than it has to begin with.  Its majority says nothing of
 * the slots before, whose configurations were others; so a node campaigns only from behind its configuration on.
 */
static bool
may_campaign(const PaxosCore *core)
{
	return core->may_lead && config_self_is_voter(core) && core->delivered_slot >= core->config.slot;
}

void
election_saw_round(PaxosCore *core, PaxosBallot ballot)
{
	core->highest_round = max_u64(core->highest_round, ballot.round);
}

static PaxosBallot
next_ballot(const PaxosCore *core)
{
	PaxosBallot ballot = {max_u64(core->highest_round, core->promised_ballot.round) + 1, core->settings.node_id};

	return ballot;
}

/* ---- following ---- */

static void
follow_nobody(PaxosCore *core)
{
	core->leader_id = 0;
	core->leader_ballot = (PaxosBallot) {0, 0};
	core->leader_contact_ms = 0;
	core->leader_served_ms = 0;
	core->leader_chosen_slot = 0;
	core->leader_tells_delivered = false;
	acceptor_reset_report(core);
}

void
election_step_down(PaxosCore *core)
{
	bool		was_leader = is_leader(core);

	core->role = config_self_is_voter(core) ? PAXOS_FOLLOWER : PAXOS_LEARNER;
	core->phase = PHASE_NONE;
	core->is_ready = false;
	core->barrier_slot = 0;
	core_drop_value(core, core->waiting_config);
	core->waiting_config = NULL;
	core->transfer_to = 0;
	follow_nobody(core);
	election_reset_timer(core);
	if (was_leader)
		reads_step_down(core);
	proposals_leader_changed(core);
}

/* A message of phase 2 of a ballot that is not below the promised one: its proposer leads. */
void
election_heard_leader(PaxosCore *core, uint32_t leader_id, PaxosBallot ballot)
{
	if (core->role == PAXOS_LEADER || core->role == PAXOS_CANDIDATE)
		election_step_down(core);
	if (!ballot_equal(core->leader_ballot, ballot))
	{
		follow_nobody(core);
		core->promised_ballot = ballot;
		core->leader_ballot = ballot;
		core->leader_id = leader_id;
		election_saw_round(core, ballot);
		proposals_leader_changed(core);
		reads_leader_changed(core);
	}
	core->leader_contact_ms = core->now_ms;
	core->lost_elections = 0;
	election_reset_timer(core);
}

static bool
leader_lives(const PaxosCore *core)
{
	if (is_leader(core))
		return true;
	return core->leader_id != 0 && core->leader_contact_ms != 0 &&
		core->now_ms - core->leader_contact_ms < core->settings.election_timeout_ms;
}

/*
 * The own link to the leader broke: perhaps its process is gone.  Unless it is heard again soon, do not wait for all of
 * the timeout.  A majority has to think so, or the pre-vote fails.
 */
void
election_link_down(PaxosCore *core, uint32_t node_id)
{
	uint64_t	soon_ms = core->now_ms + core->settings.heartbeat_interval_ms +
		core_random_below(core, core->settings.election_timeout_ms / 2 + 1);

	if (core->role != PAXOS_FOLLOWER || node_id != core->leader_id)
		return;
	core->leader_contact_ms = 0;
	core->election_deadline_ms = min_u64(core->election_deadline_ms, soon_ms);
}

/* ---- pre-vote ---- */

static void start_phase_1(PaxosCore *core);

static void
send_pre_votes(PaxosCore *core)
{
	PaxosMessage *question = core_new_message(core, PAXOS_MESSAGE_PRE_VOTE);

	question->ballot = core->ballot;
	question->first_slot = core->delivered_slot + 1;
	for (uint32_t i = 0; i < core->config.member_count; i++)
		if (core->peers[i].is_voter && (int) i != core->self_index && !core->peers[i].pre_vote_granted)
			core_send(core, core->peers[i].node_id, question);
	core->ask_deadline_ms = core->now_ms + core->settings.resend_interval_ms;
}

static void
check_pre_votes(PaxosCore *core)
{
	uint32_t	granted = 1u << core->self_index;

	for (uint32_t i = 0; i < core->config.member_count; i++)
		if (core->peers[i].pre_vote_granted)
			granted |= 1u << i;
	if (config_is_quorum(core, granted))
		start_phase_1(core);
}

static void
start_pre_vote(PaxosCore *core)
{
	election_step_down(core);
	core->role = PAXOS_CANDIDATE;
	core->phase = PHASE_PRE_VOTE;
	core->ballot = next_ballot(core);
	for (uint32_t i = 0; i < core->config.member_count; i++)
		core->peers[i].pre_vote_granted = false;
	send_pre_votes(core);
	check_pre_votes(core);
}

/*
 * Answered from what is so now; nothing changes here, but that a node which is behind is taught if there is no leader to do it, or if it does not
 * answer the leader: it is silent (paxos_set_silent), or does not hear it.  A
 * member that was removed without hearing of it campaigns in its old configuration: it has not delivered the one without it, so it is
 * behind everyone who has, and is refused; and learns why.
 */
void
election_on_pre_vote(PaxosCore *core, uint32_t from, const PaxosMessage *message)
{
	PaxosMessage *answer;
	Peer	   *peer = config_peer(core, from);
	bool		is_behind = message->first_slot <= core->delivered_slot;
	bool		teaches = is_behind && (is_leader(core) || !leader_lives(core));

	if (message->ballot.node_id != from)
		return;
	answer = core_new_message(core, PAXOS_MESSAGE_PRE_VOTE_ANSWER);
	answer->ballot = message->ballot;
	answer->promised = core->promised_ballot;
	answer->delivered_slot = core->delivered_slot;
	answer->flag = !is_behind && !leader_lives(core);
	core_send(core, from, answer);
	if (teaches && peer == NULL)
		learner_teach_stranger(core, from, message->first_slot);
	else if (teaches && (!is_leader(core) || !is_within(peer->answered_ms, core->now_ms, core->settings.election_timeout_ms)))
	{
		peer->delivered_slot = message->first_slot - 1;
		peer->teach_wanted = true;
		learner_teach_if_wanted(core, peer);
	}
}

void
election_on_pre_vote_answer(PaxosCore *core, uint32_t from, const PaxosMessage *message)
{
	Peer	   *peer = config_peer(core, from);

	election_saw_round(core, message->promised);
	if (peer == NULL || core->phase != PHASE_PRE_VOTE || !ballot_equal(message->ballot, core->ballot))
		return;
	peer->pre_vote_granted = message->flag;
	check_pre_votes(core);
}

/* ---- phase 1 ---- */

/* Phase 1a.  Also a leader's, to members of a new configuration: then for the slots after it, in the same ballot. */
static void
send_prepares(PaxosCore *core)
{
	for (uint32_t i = 0; i < core->config.member_count; i++)
	{
		Peer	   *peer = &core->peers[i];
		PaxosMessage *prepare;

		if (!peer->is_voter || (int) i == core->self_index || peer->promised)
			continue;
		peer->resume_slot = max_u64(peer->resume_slot, core->delivered_slot + 1);
		prepare = core_new_message(core, PAXOS_MESSAGE_PREPARE);
		prepare->ballot = core->ballot;
		prepare->first_slot = core->delivered_slot + 1;
		prepare->resume_slot = peer->resume_slot;
		core_send(core, peer->node_id, prepare);
	}
	core->ask_deadline_ms = core->now_ms + core->settings.resend_interval_ms;
}

static void
start_phase_1(PaxosCore *core)
{
	election_step_down(core);
	core->role = PAXOS_CANDIDATE;
	core->phase = PHASE_PREPARE;
	core->ballot = next_ballot(core);
	core->own_promise_durable = false;
	core->elections_started++;
	for (uint32_t i = 0; i < core->config.member_count; i++)
	{
		core->peers[i].promised = false;
		core->peers[i].resume_slot = 0;
	}
	window_clear_reports(core);
	core->ask_deadline_ms = core->election_deadline_ms;
	acceptor_promise(core, core->ballot);	/* the prepares follow when its record is durable */
}

bool
election_has_promises(const PaxosCore *core)
{
	uint32_t	promised = 0;

	if (core->self_index < 0 || !core->own_promise_durable)
		return false;
	promised = 1u << core->self_index;
	for (uint32_t i = 0; i < core->config.member_count; i++)
		if (core->peers[i].promised)
			promised |= 1u << i;
	return config_is_quorum(core, promised);
}

static void
check_promises(PaxosCore *core)
{
	if (core->phase == PHASE_PREPARE && election_has_promises(core))
	{
		core->role = PAXOS_LEADER;
		core->phase = PHASE_NONE;
		core->leader_id = core->settings.node_id;
		core->leader_ballot = core->ballot;
		core->lost_elections = 0;
		core->ballots_won++;
		proposer_begin_term(core);
		proposals_leader_changed(core);
		reads_leader_changed(core);
	}
	if (is_leader(core))
		proposer_place(core);
}

void
election_own_promise_durable(PaxosCore *core)
{
	if (ballot_equal(core->promise.ballot, core->ballot) && core->phase == PHASE_PREPARE && !core->own_promise_durable)
	{
		core->own_promise_durable = true;
		send_prepares(core);
		check_promises(core);
	}
}

/*
 * P2c: of the values that a majority reports for a slot, the one of the highest ballot counts.  Slots in which this leader has
 * proposed are past that.  false: a slot is out of the window, so the promise can't be used.
 */
static bool
merge_promise(PaxosCore *core, const PaxosMessage *message)
{
	for (uint32_t i = 0; i < message->entry_count; i++)
		if (message->entries[i].slot > window_last_slot(core))
			return false;
	for (uint32_t i = 0; i < message->entry_count; i++)
	{
		const PaxosMessageEntry *reported = &message->entries[i];
		Slot	   *entry;
		PaxosValue *value;

		if (reported->slot <= core->delivered_slot || (is_leader(core) && reported->slot < core->next_slot))
			continue;
		entry = window_open(core, reported->slot);
		if (entry->reported_value != NULL && paxos_ballot_compare(reported->ballot, entry->reported_ballot) <= 0)
			continue;
		if (entry->value != NULL && value_equals_entry(entry->value, reported))
			value = paxos_value_retain(entry->value);
		else
			value = core_value_from_entry(core, reported);
		window_set_reported(core, entry, reported->ballot, value);
		if (is_leader(core))
			core->adopted_slot = max_u64(core->adopted_slot, reported->slot);
	}
	return true;
}

void
election_on_promise(PaxosCore *core, uint32_t from, const PaxosMessage *message)
{
	Peer	   *peer = config_peer(core, from);

	if (peer == NULL || !ballot_equal(message->ballot, core->ballot) ||
		(core->phase != PHASE_PREPARE && !is_leader(core)))
		return;
	peer->answered_ms = core->now_ms;
	if (peer->promised || message->first_slot > peer->resume_slot)
		return;					/* told already, or what stands before it was lost */
	if (message->incarnation != peer->incarnation && peer->resume_slot > core->delivered_slot + 1)
	{
		/* It was started anew between two parts of its promise; all of it is as durable as before, but begin again. */
		peer->incarnation = message->incarnation;
		peer->resume_slot = 0;
		send_prepares(core);
		return;
	}
	if (!merge_promise(core, message))
		return;
	if (!is_leader(core))
	{
		peer->incarnation = message->incarnation;
		peer->delivered_slot = message->delivered_slot;
		peer->accepted_slot = message->delivered_slot;
	}
	peer->resume_slot = max_u64(peer->resume_slot, message->resume_slot);
	peer->promised = message->flag;
	if (peer->promised)
		check_promises(core);
	else
		send_prepares(core);
}

/*
 * A leader asked for a promise under a new configuration, and a voter has delivered slots that this leader has yet to propose in.  It
 * may not even be a member any more, so nobody would teach it; and as long as it leads, those who know more follow it and wait.
 */
static bool
is_overtaken(const PaxosCore *core, const PaxosMessage *refusal)
{
	return is_leader(core) && refusal->flag && refusal->delivered_slot >= core->next_slot;
}

/*
 * A higher promise, of a learner too: it was a voter once, and would follow this leader never again.  The next ballot is above it.
 */
void
election_on_refusal(PaxosCore *core, uint32_t from, const PaxosMessage *message)
{
	Peer	   *peer = config_peer(core, from);

	election_saw_round(core, message->promised);
	if (peer == NULL || !ballot_equal(message->ballot, core->ballot) ||
		(paxos_ballot_compare(message->promised, core->ballot) <= 0 && !is_overtaken(core, message)))
		return;
	if (core->phase == PHASE_PREPARE)
	{
		core->lost_elections++;
		election_step_down(core);
	}
	else if (is_leader(core))
		election_step_down(core);
}

/* ---- hand-over ---- */

/* The whole of transfer.c, step 3. */
void
election_on_hand_over(PaxosCore *core, uint32_t from, const PaxosMessage *message)
{
	const Slot *next;

	if (core->role != PAXOS_FOLLOWER || core->leader_id != from || !ballot_equal(message->ballot, core->leader_ballot))
		return;
	core->leader_chosen_slot = max_u64(core->leader_chosen_slot, message->chosen_slot);
	learner_advance(core);
	next = window_get(core, message->chosen_slot + 1);
	if (core->delivered_slot != message->chosen_slot ||
		(next != NULL && next->value != NULL && ballot_equal(next->accepted_ballot, message->ballot)))
		return;					/* not all of it is here, or the leader has gone on meanwhile */
	if (may_campaign(core))
		start_phase_1(core);
}

/* ---- time and configuration ---- */

void
election_start(PaxosCore *core)
{
	core->role = config_self_is_voter(core) ? PAXOS_FOLLOWER : PAXOS_LEARNER;
	election_reset_timer(core);
	if (may_campaign(core) && config_voter_count(core) == 1)
		start_pre_vote(core);
}

/*
 * A process that was stopped finds that its clock has jumped; before it answers a read or proposes anything it has to find out
 * that it was away.  So this comes before the event.
 */
void
election_check(PaxosCore *core)
{
	bool		is_retiring = transfer_is_retiring(core) && core->may_lead && core->now_ms < core->retire_deadline_ms;

	if ((core->role == PAXOS_LEADER || core->role == PAXOS_CANDIDATE) && !may_campaign(core) && !is_retiring)
		election_step_down(core);
	if (is_leader(core) &&
		core->now_ms - proposer_quorum_contact_ms(core) > core->settings.election_timeout_ms)
		election_step_down(core);
}

void
election_tick(PaxosCore *core)
{
	if (core->role == PAXOS_LEADER)
	{
		if (!transfer_is_retiring(core) && !election_has_promises(core) && core->now_ms >= core->ask_deadline_ms)
			send_prepares(core);
		return;
	}
	if (!may_campaign(core))
		return;
	if (core->now_ms >= core->election_deadline_ms)
	{
		if (core->phase == PHASE_PREPARE)
			core->lost_elections++;
		start_pre_vote(core);
	}
	else if (core->role == PAXOS_CANDIDATE && core->now_ms >= core->ask_deadline_ms)
	{
		if (core->phase == PHASE_PRE_VOTE)
			send_pre_votes(core);
		else if (core->own_promise_durable)
			send_prepares(core);
	}
}

/* A configuration was delivered.  The quorums of the slots after it are its own. */
void
election_config_changed(PaxosCore *core)
{
	if (core->role == PAXOS_LEADER || core->role == PAXOS_CANDIDATE)
	{
		if (transfer_is_retiring(core))
			transfer_begin_retirement(core);
		else if (!config_self_is_voter(core))
			election_step_down(core);
		else if ((core->phase == PHASE_PREPARE && core->own_promise_durable) ||
				 (is_leader(core) && !election_has_promises(core)))
			send_prepares(core);
		if (is_leader(core))
			core->heartbeat_deadline_ms = core->now_ms; /* new members are to hear of their leader at once */
		core->send_due = true;
		return;
	}
	if (core->role == PAXOS_LEARNER && config_self_is_voter(core))
		election_reset_timer(core);
	core->role = config_self_is_voter(core) ? PAXOS_FOLLOWER : PAXOS_LEARNER;
}

uint64_t
election_deadline(const PaxosCore *core)
{
	uint64_t	deadline_ms;

	if (is_leader(core))
	{
		deadline_ms = UINT64_MAX;
		if (config_quorum_size(core) > 1)
			deadline_ms = proposer_quorum_contact_ms(core) + core->settings.election_timeout_ms + 1;
		return transfer_is_retiring(core) || election_has_promises(core) ? deadline_ms : min_u64(deadline_ms, core->ask_deadline_ms);
	}
	if (!may_campaign(core))
		return UINT64_MAX;
	if (core->role == PAXOS_CANDIDATE)
		return min_u64(core->election_deadline_ms, core->ask_deadline_ms);
	return core->election_deadline_ms;
}
