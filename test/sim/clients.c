/*
 * clients.c
 *	  What clients ask for: proposals with unique payloads, reads, and changes of the configuration.
 *
 * A proposal is acknowledged when its origin delivers it as effective (observer.c).  A read must see what anyone has seen
 * before it began: its floor is the highest slot that was acknowledged, or seen by a read that had ended, at that moment.
 * A read ends when its node has delivered up to its read index; it has then seen all that its node has delivered.
 *
 * Invariants
 *	1. stale_read: a read index is never below the floor of its read.
 *	2. read_answered_once: a read is answered at most once, and only if it was asked.
 */
#include "sim.h"

/* Some node that is up and a member; 0 if there is none. */
uint32_t
sim_pick_node(Sim *sim)
{
	uint32_t	start = (uint32_t) sim_below(sim, SIM_MAX_NODES);

	for (uint32_t i = 0; i < SIM_MAX_NODES; i++)
	{
		uint32_t	id = 1 + (start + i) % SIM_MAX_NODES;

		if (sim->nodes[id].alive && sim_node_is_member(sim, id))
			return id;
	}
	return 0;
}

/* A node that believes to lead, be it right or not; with several of them any. */
uint32_t
sim_guess_leader(Sim *sim)
{
	uint32_t	start = (uint32_t) sim_below(sim, SIM_MAX_NODES);

	for (uint32_t i = 0; i < SIM_MAX_NODES; i++)
	{
		uint32_t	id = 1 + (start + i) % SIM_MAX_NODES;
		PaxosStatus status;

		if (!sim->nodes[id].alive)
			continue;
		sim_node_status(sim, &sim->nodes[id], &status);
		if (status.role == PAXOS_LEADER)
			return id;
	}
	return 0;
}

bool
sim_propose(Sim *sim, SimNode *node)
{
	uint32_t	length = 8 + (uint32_t) sim_below(sim, 24);
	SimInput	input = {.kind = SIM_INPUT_PROPOSAL, .value_kind = PAXOS_VALUE_DATA};
	uint64_t	stamp = sim_random(sim);

	if (sim_chance(sim, SIM_MILLION / 20))
		length = 8 + (uint32_t) sim_below(sim, sim->plan.payload_max);
	input.length = length;
	input.bytes = malloc(length);
	memset(input.bytes, (int) (stamp & 0xff), length);
	memcpy(input.bytes, &stamp, sizeof(stamp));
	if (sim_node_input(sim, node, input))
		return true;
	free(input.bytes);
	return false;
}

bool
sim_read(Sim *sim, SimNode *node)
{
	SimRead    *read = &node->reads[node->read_count];

	if (!node->alive || node->read_count == SIM_MAX_READS)
		return false;
	*read = (SimRead) {.id = ++node->next_read_id, .floor = sim->read_floor};
	if (!sim_node_input(sim, node, (SimInput) {.kind = SIM_INPUT_READ, .number = read->id}))
		return false;
	node->read_count++;
	sim_trace(sim, "read", node->id, read->id, read->floor, 0);
	return true;
}

static void
forget_read(SimNode *node, uint32_t index)
{
	node->reads[index] = node->reads[--node->read_count];
}

void
sim_read_answered(Sim *sim, SimNode *node, const PaxosReadResult *result)
{
	uint32_t	i;

	sim_trace(sim, "read_answer", node->id, result->read_id, result->ok, result->read_index);
	for (i = 0; i < node->read_count && node->reads[i].id != result->read_id; i++)
		;
	sim_check(sim, i < node->read_count && node->reads[i].read_index == 0, "read_answered_once", "read and node",
			  result->read_id, node->id);
	if (!result->ok)
	{
		forget_read(node, i);
		return;
	}
	sim->reads_answered++;
	sim_check(sim, result->read_index >= node->reads[i].floor, "stale_read", "read index is below what was seen before",
			  result->read_index, node->reads[i].floor);
	node->reads[i].read_index = result->read_index > 0 ? result->read_index : 1;
	if (result->read_index == 0)
		forget_read(node, i);
	else
		sim_reads_advance(sim, node);
}

/* Reads that have waited long enough end, and what they saw may not be unseen by later ones. */
void
sim_reads_advance(Sim *sim, SimNode *node)
{
	for (uint32_t i = node->read_count; i > 0; i--)
	{
		SimRead    *read = &node->reads[i - 1];

		if (read->read_index == 0 || read->read_index > node->delivered)
			continue;
		if (sim->read_floor < node->delivered)
			sim->read_floor = node->delivered;
		forget_read(node, i - 1);
	}
}

/* ---- configurations ---- */

static uint32_t
count_voters(const PaxosConfig *config)
{
	uint32_t	voters = 0;

	for (uint32_t i = 0; i < config->member_count; i++)
		voters += config->members[i].is_voter;
	return voters;
}

/* A random learner's index; the count of members if there is none. */
static uint32_t
draw_learner(Sim *sim, const PaxosConfig *config)
{
	uint32_t	start = (uint32_t) sim_below(sim, config->member_count);

	for (uint32_t i = 0; i < config->member_count; i++)
		if (!config->members[(start + i) % config->member_count].is_voter)
			return (start + i) % config->member_count;
	return config->member_count;
}

/*
 * A host makes a voter only of a learner that has caught up, and asks for the next change when most voters have written down
 * that the last one is chosen; a reckless one does not look.
 */
bool
sim_voters_are_aware(const Sim *sim)
{
	uint32_t	aware = 0;

	for (uint32_t i = 0; i < sim->config.member_count; i++)
	{
		const SimNode *node = &sim->nodes[sim->config.members[i].node_id];

		aware += sim->config.members[i].is_voter &&
			(node->durable_chosen >= sim->config.slot || sim_base_slot(node) >= sim->config.slot);
	}
	return aware > count_voters(&sim->config) / 2;
}

static bool
change_is_due(Sim *sim)
{
	return sim->plan.reckless || sim_voters_are_aware(sim);
}

static bool
may_promote(Sim *sim, uint32_t id)
{
	return sim->plan.reckless || sim->nodes[id].durable_chosen >= sim->config.slot || sim_base_slot(&sim->nodes[id]) >= sim->config.slot;
}

/* A node that never was; it starts when a configuration that names it is chosen.  0: there are no more. */
static uint32_t
draw_newcomer(const Sim *sim, const PaxosConfig *config)
{
	for (uint32_t id = 1; id <= SIM_MAX_NODES; id++)
	{
		bool		is_named = sim->nodes[id].exists;

		for (uint32_t i = 0; i < config->member_count; i++)
			is_named |= config->members[i].node_id == id;
		if (!is_named)
			return id;
	}
	return 0;
}

static bool
add_learner(Sim *sim, PaxosConfig *config)
{
	uint32_t	id = draw_newcomer(sim, config);

	if (id == 0)
		return false;
	config->members[config->member_count++] = (PaxosMember) {.node_id = id, .is_voter = false};
	return true;
}

/* Who asks for it (the leader, mostly), one that is down, or anyone. */
static uint32_t
draw_leaver(Sim *sim, const PaxosConfig *config, uint32_t asker)
{
	uint64_t	whom = sim_below(sim, 4);

	for (uint32_t i = 0; i < config->member_count; i++)
		if ((whom == 0 && config->members[i].node_id == asker) || (whom == 1 && !sim->nodes[config->members[i].node_id].alive))
			return i;
	return (uint32_t) sim_below(sim, config->member_count);
}

static bool
take_one_out(Sim *sim, PaxosConfig *config, uint32_t asker)
{
	uint32_t	index = draw_leaver(sim, config, asker);

	if (config->members[index].is_voter && count_voters(config) < (sim->plan.has_goals ? 2 : 3))
		return false;
	if (config->members[index].is_voter && sim_chance(sim, SIM_MILLION / 3))
		config->members[index].is_voter = false;
	else
		config->members[index] = config->members[--config->member_count];
	return true;
}

/* Adds a learner, promotes one, or lets a member go or become a learner. */
static bool
draw_change(Sim *sim, PaxosConfig *config, uint32_t asker)
{
	uint64_t	kind = sim_below(sim, 4);
	uint32_t	index;

	if (config->member_count == 0)
		return false;
	index = draw_learner(sim, config);
	if (kind <= 1 && index < config->member_count && may_promote(sim, config->members[index].node_id))
	{
		config->members[index].is_voter = true;
		return true;
	}
	return (kind <= 2 && add_learner(sim, config)) || take_one_out(sim, config, asker);
}

/* From one voter to three, to five, to three again, and so on, a step of two at a time; at the turn an end as small as one. */
static bool
step_to_goal(Sim *sim, PaxosConfig *config, uint32_t asker)
{
	uint32_t	voters = count_voters(config);
	uint32_t	index;

	if (config->member_count == 0)
		return false;
	if (voters == sim->goal)
		sim->goal = sim->goal == 3 ? (sim_chance(sim, SIM_MILLION / 2) ? 5 : 1) : 3;
	if (voters > sim->goal)
		return take_one_out(sim, config, asker);
	index = draw_learner(sim, config);
	if (index < config->member_count)
	{
		config->members[index].is_voter = may_promote(sim, config->members[index].node_id);
		return config->members[index].is_voter;
	}
	if (add_learner(sim, config))
		return true;
	sim->goal = 1;				/* nobody is left who could come */
	return false;
}

bool
sim_propose_members(Sim *sim, SimNode *node, const PaxosConfig *config)
{
	uint8_t		buffer[1 + PAXOS_MAX_MEMBERS * 5];
	SimInput	input = {.kind = SIM_INPUT_PROPOSAL, .value_kind = PAXOS_VALUE_CONFIG};

	input.length = (uint32_t) paxos_config_encode(config, buffer, sizeof(buffer));
	sim_check(sim, input.length > 0, "configuration_encodes", "members", config->member_count, 0);
	input.bytes = malloc(input.length + 8);
	memcpy(input.bytes, buffer, input.length);
	memset(input.bytes + input.length, 7, 8);	/* the host's own part */
	input.length += 8;
	if (sim_node_input(sim, node, input))
		return true;
	free(input.bytes);
	return false;
}

/* Proposes a neighbour of the configuration that some node, mostly a leader, knows; it may be an old one. */
void
sim_propose_config(Sim *sim)
{
	uint32_t	id = sim_chance(sim, SIM_MILLION * 9 / 10) ? sim_guess_leader(sim) : sim_pick_node(sim);
	PaxosStatus status;

	if (id == 0 || !change_is_due(sim))
		return;
	sim_node_status(sim, &sim->nodes[id], &status);
	if (!(sim->plan.has_goals ? step_to_goal(sim, &status.config, id) : draw_change(sim, &status.config, id)))
		return;
	/* Now and then a second voter is to come or go at once, which a core must refuse. */
	if (!sim_chance(sim, SIM_MILLION / 16) || draw_change(sim, &status.config, id))
		sim_propose_members(sim, &sim->nodes[id], &status.config);
}

/* ---- orders to a leader and to hosts ---- */

bool
sim_transfer(Sim *sim, SimNode *node, uint32_t target)
{
	return sim_node_input(sim, node, (SimInput) {.kind = SIM_INPUT_TRANSFER, .number = target});
}

static void
order_transfer(Sim *sim)
{
	uint32_t	id = sim_chance(sim, SIM_MILLION * 9 / 10) ? sim_guess_leader(sim) : sim_pick_node(sim);

	if (id != 0)
		sim_transfer(sim, &sim->nodes[id], sim_chance(sim, SIM_MILLION / 3) ? 0 : 1 + (uint32_t) sim_below(sim, SIM_MAX_NODES));
}

/* One request of a client, or a burst of proposals that fills the pipeline. */
void
sim_client_next(Sim *sim)
{
	uint32_t	id = 0;
	SimNode    *node;

	sim_schedule(sim, (SimEvent) {
		.at = sim->now + 1 + sim_below(sim, 2 * sim->plan.client_interval), .kind = SIM_CLIENT
	});
	if (sim->plan.membership && sim_chance(sim, sim->plan.membership_share))
	{
		sim_propose_config(sim);
		return;
	}
	if (sim_chance(sim, sim->plan.transfer_share))
	{
		order_transfer(sim);
		return;
	}
	if (sim_chance(sim, sim->plan.trim_share))
	{
		sim_trim(sim, &sim->nodes[1 + sim_below(sim, SIM_MAX_NODES)]);
		return;
	}
	if (sim_chance(sim, sim->plan.leader_share))
		id = sim_guess_leader(sim);
	if (id == 0)
		id = sim_pick_node(sim);
	if (id == 0)
		return;
	node = &sim->nodes[id];
	if (sim_chance(sim, sim->plan.read_share))
		sim_read(sim, node);
	else
	{
		uint64_t	count = sim_chance(sim, SIM_MILLION / 2) ? 1 : 1 + sim_below(sim, sim->plan.burst_max);

		while (count-- > 0 && sim_propose(sim, node))
			;
	}
}
