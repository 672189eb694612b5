/*
 * observer.c
 *	  Knows what is durable where, and checks the protocol at each record, frame and delivery.
 *
 * A slot is *chosen* when a majority of the configuration in force there has durably accepted one value in one ballot.  Which
 * configuration is in force follows from the chosen slots below, so the observer settles slots in order and judges what came
 * earlier when it gets there; nothing is forgotten, so this only delays a finding.
 *
 * Invariants, by the names that a failing run prints
 *	1. one_value_per_ballot: at one slot no two values are proposed or accepted in one ballot.
 *	2. chosen_stays_chosen: once a value is chosen, no higher ballot proposes or accepts another one there, and nobody
 *	   delivers or teaches another one.
 *	3. persisted_before_promised: a PROMISE or ACCEPTED on the wire is backed by a durable record of its sender.
 *	4. promise_kept: a node accepts nothing below a ballot that it promised, and never promises a lower one.
 *	   promise_tells_all: a PROMISE tells of everything that its sender has accepted in the slots that it covers.
 *	5. one_leader_per_ballot: only the node that is named in a ballot uses it, and it leads in it only in one of its lives.
 *	6. delivered_is_chosen, delivered_is_durable, delivered_without_gaps: what a node delivers is chosen, in its own durable
 *	   journal, and next in order; so all nodes deliver prefixes of one sequence.
 *	7. effective_once: an id takes effect in one slot at most, and all nodes agree on which occurrences are duplicates.
 *	8. chosen_claim_is_true: a status, a CHOSEN record or a frame that calls slots chosen is right.
 *	9. ready_leader_knows_all: a leader that is ready has delivered everything that was chosen in lower ballots.
 *	10. configuration_steps: neighbouring configurations differ by at most one voter.
 *	11. banned_node_does_not_lead: a node that was told not to lead neither leads nor asks for it.
 *	12. status_is_true: the status names what was delivered; only a leader that is a voter has a transfer under way.
 *
 * Files values.c, journal.c, node.c, clients.c and liveness.c check and name others.
 */
#include "sim.h"

SimSlot *
sim_slot(Sim *sim, PaxosSlot slot)
{
	if (slot == 0 || slot >= SIM_MILLION)
		sim_fail(sim, "slots_are_sane", "slot %llu", (unsigned long long) slot);
	if (slot >= sim->slot_capacity)
	{
		PaxosSlot	capacity = sim->slot_capacity == 0 ? 256 : sim->slot_capacity;

		while (capacity <= slot)
			capacity *= 2;
		sim->slots = realloc(sim->slots, capacity * sizeof(SimSlot));
		memset(sim->slots + sim->slot_capacity, 0, (capacity - sim->slot_capacity) * sizeof(SimSlot));
		sim->slot_capacity = capacity;
	}
	return &sim->slots[slot];
}

static bool
is_chosen_value(Sim *sim, PaxosSlot slot, uint32_t value)
{
	SimSlot    *state = sim_slot(sim, slot);

	return state->chosen && state->chosen_value == value;
}

/* The vote of a ballot at a slot, made if there is none; the values must agree. */
static SimVote *
find_vote(Sim *sim, PaxosSlot slot, PaxosBallot ballot, uint32_t value)
{
	SimSlot    *state = sim_slot(sim, slot);
	SimVote    *vote = NULL;

	for (uint32_t i = 0; i < state->vote_count && vote == NULL; i++)
		if (paxos_ballot_compare(state->votes[i].ballot, ballot) == 0)
			vote = &state->votes[i];
	if (vote == NULL)
	{
		if (state->vote_count == state->vote_capacity)
		{
			state->vote_capacity = state->vote_capacity == 0 ? 2 : state->vote_capacity * 2;
			state->votes = realloc(state->votes, state->vote_capacity * sizeof(SimVote));
		}
		vote = &state->votes[state->vote_count++];
		*vote = (SimVote) {.ballot = ballot, .value = value};
	}
	if (vote->value != value)
		sim_fail(sim, "one_value_per_ballot", "slot %llu, ballot %llu.%u: values %u and %u",
				 (unsigned long long) slot, (unsigned long long) ballot.round, ballot.node_id, vote->value, value);
	if (state->chosen && value != state->chosen_value && paxos_ballot_compare(ballot, state->chosen_ballot) > 0)
		sim_fail(sim, "chosen_stays_chosen", "slot %llu: value %u was chosen in ballot %llu.%u, now ballot %llu.%u has %u",
				 (unsigned long long) slot, state->chosen_value, (unsigned long long) state->chosen_ballot.round,
				 state->chosen_ballot.node_id, (unsigned long long) ballot.round, ballot.node_id, value);
	return vote;
}

/* ---- what is chosen ---- */

static bool
is_majority(const PaxosConfig *config, uint32_t nodes)
{
	uint32_t	voters = 0;
	uint32_t	votes = 0;

	for (uint32_t i = 0; i < config->member_count; i++)
	{
		voters += config->members[i].is_voter;
		votes += config->members[i].is_voter && (nodes & (1u << config->members[i].node_id)) != 0;
	}
	return votes > voters / 2;
}

static bool
is_voter(const PaxosConfig *config, uint32_t id)
{
	for (uint32_t i = 0; i < config->member_count; i++)
		if (config->members[i].node_id == id)
			return config->members[i].is_voter;
	return false;
}

static void
start_joiners(Sim *sim, PaxosSlot slot)
{
	for (uint32_t i = 0; i < sim->config.member_count; i++)
	{
		uint32_t	id = sim->config.members[i].node_id;

		if (!sim->faulty && sim->nodes[id].exists && !sim->nodes[id].alive)	/* it had been removed, and was left down */
			sim_schedule(sim, (SimEvent) {.at = sim->now, .kind = SIM_RESTART, .node = id, .life = sim->nodes[id].life});
		if (!sim->nodes[id].exists)
			sim_schedule(sim, (SimEvent) {
				.at = sim->now + sim_below(sim, SIM_MS(2 * sim->plan.election_timeout_ms)),
				.kind = SIM_ACTION, .action = SIM_DO_JOIN, .node = id, .argument = slot
			});
	}
}

static void
configuration_chosen(Sim *sim, PaxosSlot slot, uint32_t value)
{
	PaxosConfig next;
	uint32_t	changed = 0;

	memset(&next, 0, sizeof(next));
	sim_check(sim, paxos_config_decode(&next, sim->values[value].bytes, sim->values[value].length) > 0,
			  "configuration_steps", "a chosen configuration does not decode", slot, value);
	for (uint32_t id = 1; id <= SIM_MAX_NODES; id++)
		changed += is_voter(&sim->config, id) != is_voter(&next, id);
	sim_check(sim, changed <= 1, "configuration_steps", "voters changed at slot", changed, slot);
	next.slot = slot;
	sim->config = next;
	sim->configs_chosen++;
	sim_trace(sim, "configuration", 0, slot, value, next.member_count);
	start_joiners(sim, slot);
}

/* The same rule by which every node must tell duplicates. */
static bool
is_duplicate(Sim *sim, uint32_t value)
{
	PaxosProposalId id = sim->values[value].id;

	return sim->values[value].effective_slot != 0 || id.incarnation < sim->newest_incarnation[id.origin];
}

static void
slot_chosen(Sim *sim, PaxosSlot slot, const SimVote *vote)
{
	SimSlot    *state = sim_slot(sim, slot);
	uint32_t	value = vote->value;

	state->chosen = true;
	state->chosen_value = value;
	state->chosen_ballot = vote->ballot;
	sim->chosen_prefix = slot;
	sim_trace(sim, "chosen", 0, slot, value, vote->ballot.round);
	for (uint32_t i = 0; i < state->vote_count; i++)
		find_vote(sim, slot, state->votes[i].ballot, state->votes[i].value);
	if (value == 0)
		return;
	state->duplicate = is_duplicate(sim, value);
	if (state->duplicate)
		return;
	sim->values[value].effective_slot = slot;
	sim->newest_incarnation[sim->values[value].id.origin] = sim->values[value].id.incarnation;
	if (sim->values[value].kind == PAXOS_VALUE_CONFIG)
		configuration_chosen(sim, slot, value);
}

static void
settle(Sim *sim)
{
	for (;;)
	{
		PaxosSlot	slot = sim->chosen_prefix + 1;
		SimSlot    *state = sim_slot(sim, slot);
		SimVote		found = {.accepted_by = 0};

		/* the lowest ballot with a majority: all higher ones are then held against it */
		for (uint32_t i = 0; i < state->vote_count; i++)
			if (is_majority(&sim->config, state->votes[i].accepted_by) &&
				(found.accepted_by == 0 || paxos_ballot_compare(state->votes[i].ballot, found.ballot) < 0))
				found = state->votes[i];
		if (found.accepted_by == 0)
			return;
		slot_chosen(sim, slot, &found);
	}
}

/* ---- records ---- */

static void
raise_promise(PaxosBallot *promise, PaxosBallot ballot)
{
	if (paxos_ballot_compare(ballot, *promise) > 0)
		*promise = ballot;
}

static void
chosen_record(Sim *sim, SimNode *node, PaxosSlot slot)
{
	sim_check(sim, slot <= sim->chosen_prefix, "chosen_claim_is_true", "a record calls slots chosen that are not", slot,
			  sim->chosen_prefix);
	for (PaxosSlot s = slot; s > sim_base_slot(node) && s + 8 > slot; s--)
	{
		const SimRecord *last = sim_journal_last(node, s);

		sim_check(sim, last != NULL && is_chosen_value(sim, s, last->value), "chosen_claim_is_true",
				  "the last record of a slot that a CHOSEN record covers holds another value", s, node->id);
	}
}

void
sim_observe_appended(Sim *sim, SimNode *node, const SimRecord *record)
{
	switch (record->type)
	{
		case PAXOS_RECORD_PROMISE:
			sim_check(sim, paxos_ballot_compare(record->ballot, node->appended_promise) >= 0, "promise_kept",
					  "a promise went back; rounds", record->ballot.round, node->appended_promise.round);
			raise_promise(&node->appended_promise, record->ballot);
			break;
		case PAXOS_RECORD_ACCEPTED:

			/*
			 * A node that learns a chosen value from another one writes the same kind of record, with whatever ballot it
			 * was taught.  That is no vote, and no promise binds it; nor could a vote for a chosen value do harm.
			 */
			if (is_chosen_value(sim, record->slot, record->value))
				break;
			sim_check(sim, paxos_ballot_compare(record->ballot, node->appended_promise) >= 0, "promise_kept",
					  "accepted below a promise; slot and round promised", record->slot, node->appended_promise.round);
			find_vote(sim, record->slot, record->ballot, record->value);
			raise_promise(&node->appended_promise, record->ballot);
			break;
		case PAXOS_RECORD_CHOSEN:
			chosen_record(sim, node, record->slot);
			break;
		case PAXOS_RECORD_CONFIG:
			break;
	}
}

void
sim_observe_durable(Sim *sim, SimNode *node, const SimRecord *record)
{
	if (record->type == PAXOS_RECORD_PROMISE)
		raise_promise(&node->durable_promise, record->ballot);
	if (record->type == PAXOS_RECORD_CHOSEN)
		node->durable_chosen = record->slot;
	if (record->type != PAXOS_RECORD_ACCEPTED)
		return;
	if (is_chosen_value(sim, record->slot, record->value))
		return;					/* one vote more or less changes nothing; it may be a learned one */
	find_vote(sim, record->slot, record->ballot, record->value)->accepted_by |= 1u << node->id;
	raise_promise(&node->durable_promise, record->ballot);
	settle(sim);
}

/* After a crash only what is durable binds. */
void
sim_observe_recovered(Sim *sim, SimNode *node)
{
	(void) sim;
	node->appended_promise = node->durable_promise;
}

/* ---- frames ---- */

/* A ballot belongs to one node and one of its lives: a second life that led in it again might propose other values. */
static void
use_ballot(Sim *sim, SimNode *from, PaxosBallot ballot)
{
	SimBallotUse *use;

	sim_check(sim, ballot.node_id == from->id && ballot.round > 0, "one_leader_per_ballot",
			  "a ballot is used by a node that it does not name", ballot.node_id, from->id);
	for (uint32_t i = sim->ballot_use_count; i > 0; i--)
	{
		use = &sim->ballot_uses[i - 1];
		if (paxos_ballot_compare(use->ballot, ballot) != 0)
			continue;
		sim_check(sim, use->incarnation == from->incarnation, "one_leader_per_ballot", "a later life uses a ballot again",
				  ballot.round, from->id);
		return;
	}
	if (sim->ballot_use_count == sim->ballot_use_capacity)
	{
		sim->ballot_use_capacity = sim->ballot_use_capacity == 0 ? 64 : sim->ballot_use_capacity * 2;
		sim->ballot_uses = realloc(sim->ballot_uses, sim->ballot_use_capacity * sizeof(SimBallotUse));
	}
	sim->ballot_uses[sim->ballot_use_count++] = (SimBallotUse) {.ballot = ballot, .incarnation = from->incarnation};
}

/* Two lives may ask for promises of one ballot: nothing was proposed in it, so the answers to both say the same. */
void
sim_observe_prepare(Sim *sim, SimNode *from, PaxosBallot ballot)
{
	sim_check(sim, ballot.node_id == from->id, "one_leader_per_ballot", "a ballot is asked for by a node that it does not name",
			  ballot.node_id, from->id);
}

void
sim_observe_leading(Sim *sim, SimNode *from, PaxosBallot ballot)
{
	use_ballot(sim, from, ballot);
}

void
sim_observe_promise(Sim *sim, SimNode *from, PaxosBallot ballot)
{
	sim_check(sim, paxos_ballot_compare(ballot, from->durable_promise) <= 0, "persisted_before_promised",
			  "a promise is on the wire that is not durable; rounds", ballot.round, from->durable_promise.round);
}

/* An ACCEPT: the proposer of a ballot wants this value at this slot. */
void
sim_observe_proposed(Sim *sim, SimNode *from, PaxosSlot slot, PaxosBallot ballot, uint32_t value)
{
	use_ballot(sim, from, ballot);
	find_vote(sim, slot, ballot, value);
}

/*
 * A PROMISE tells that this was accepted.  It need not be durable, for the proposer of that ballot did propose it; but
 * it must be what that ballot proposed, or chosen.
 */
void
sim_observe_told(Sim *sim, SimNode *from, PaxosSlot slot, PaxosBallot ballot, uint32_t value)
{
	(void) from;
	if (!is_chosen_value(sim, slot, value))
		find_vote(sim, slot, ballot, value);
}

/* A PROMISE that covers these slots tells nothing of them, so nothing may be accepted there. */
void
sim_observe_not_told(Sim *sim, SimNode *from, PaxosSlot first_slot, PaxosSlot last_slot)
{
	const SimJournal *journal = &from->journal;

	for (PaxosSlot slot = first_slot; slot <= last_slot && slot < journal->slot_capacity; slot++)
	{
		size_t		last = journal->last_record[slot];

		sim_check(sim, last == 0 || last > journal->durable, "promise_tells_all",
				  "a promise does not tell what was accepted; slot, node", slot, from->id);
	}
}

/* An ACCEPTED: the sender says that it has accepted this slot in this ballot, or knows its chosen value, durably. */
void
sim_observe_accepted(Sim *sim, SimNode *from, PaxosSlot slot, PaxosBallot ballot)
{
	SimSlot    *state = sim_slot(sim, slot);

	for (uint32_t i = 0; i < state->vote_count; i++)
		if (paxos_ballot_compare(state->votes[i].ballot, ballot) == 0 &&
			(state->votes[i].accepted_by & (1u << from->id)) != 0)
			return;
	if (state->chosen && sim_journal_holds(from, slot, state->chosen_value))
		return;
	sim_fail(sim, "persisted_before_promised", "node %u says accepted for slot %llu in ballot %llu.%u, its journal does not",
			 from->id, (unsigned long long) slot, (unsigned long long) ballot.round, ballot.node_id);
}

void
sim_observe_taught(Sim *sim, SimNode *from, PaxosSlot slot, uint32_t value)
{
	sim_check(sim, slot <= sim->chosen_prefix, "chosen_claim_is_true", "a frame teaches a slot that is not chosen", slot, from->id);
	sim_check(sim, is_chosen_value(sim, slot, value), "chosen_stays_chosen", "a frame teaches another value; slot", slot, value);
}

void
sim_observe_chosen_hint(Sim *sim, SimNode *from, PaxosSlot slot)
{
	sim_check(sim, slot <= sim->chosen_prefix, "chosen_claim_is_true", "a frame calls slots chosen that are not", slot, from->id);
}

/* ---- deliveries ---- */

static void
acknowledge(Sim *sim, SimNode *node, PaxosSlot slot, uint32_t number)
{
	SimValue   *value = &sim->values[number];

	if (value->id.origin != node->id || value->id.incarnation != node->incarnation)
		return;
	value->acknowledged = true;
	sim->acknowledged++;
	node->acknowledged++;
	if (sim->read_floor < slot)
		sim->read_floor = slot;
}

void
sim_observe_delivered(Sim *sim, SimNode *node, const PaxosChosen *chosen)
{
	uint32_t	value = sim_value_number(sim, chosen->value);
	SimSlot    *state = sim_slot(sim, chosen->slot);

	sim_trace(sim, "deliver", node->id, chosen->slot, value, chosen->duplicate);
	sim_check(sim, chosen->slot == node->delivered + 1, "delivered_without_gaps", "slot and expected slot", chosen->slot,
			  node->delivered + 1);
	sim_check(sim, state->chosen, "delivered_is_chosen", "slot and node", chosen->slot, node->id);
	sim_check(sim, state->chosen_value == value, "chosen_stays_chosen", "another value is delivered; slot", chosen->slot, value);
	sim_check(sim, sim_journal_holds(node, chosen->slot, value), "delivered_is_durable", "slot and node", chosen->slot, node->id);
	node->delivered = chosen->slot;
	if (value == 0)
		return;
	sim_check(sim, chosen->duplicate == state->duplicate, "effective_once", "duplicate or not, slot", chosen->duplicate,
			  chosen->slot);
	if (!chosen->duplicate)
		acknowledge(sim, node, chosen->slot, value);
}

/* What the core says of itself at the end of its host's loop. */
void
sim_observe_status(Sim *sim, SimNode *node)
{
	PaxosStatus status;

	sim_node_status(sim, node, &status);
	sim_check(sim, status.delivered_slot == node->delivered, "status_is_true", "delivered slot and what was delivered",
			  status.delivered_slot, node->delivered);
	sim_check(sim, status.transfer_to == 0 || status.role == PAXOS_LEADER, "status_is_true", "a transfer without a leader; role, target",
			  status.role, status.transfer_to);
	sim_check(sim, status.chosen_slot <= sim->chosen_prefix, "chosen_claim_is_true", "a status calls slots chosen that are not",
			  status.chosen_slot, sim->chosen_prefix);
	sim_check(sim, node->may_lead || (status.role != PAXOS_LEADER && status.role != PAXOS_CANDIDATE), "banned_node_does_not_lead",
			  "node and role", node->id, status.role);
	if (status.role == PAXOS_LEADER && status.leader_is_ready)
		for (PaxosSlot slot = status.delivered_slot + 1; slot <= sim->chosen_prefix; slot++)
			sim_check(sim, paxos_ballot_compare(sim_slot(sim, slot)->chosen_ballot, status.ballot) >= 0, "ready_leader_knows_all",
					  "a leader is ready, and lacks a slot that was chosen before its ballot; slot, node", slot, node->id);
	sim_check(sim, paxos_ballot_compare(status.ballot, node->durable_promise) >= 0, "promise_kept",
			  "a node forgot a durable promise; rounds", status.ballot.round, node->durable_promise.round);
}
