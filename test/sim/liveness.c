/*
 * liveness.c
 *	  After healing: the cluster must come back by itself, and stay calm when one node has trouble.
 *
 * Invariants, by the names that a failing run prints
 *	1. leader_appears: within a bounded time some member leads and is ready.  (Not asked if the run's host was reckless with
 *	   configurations and no voter knows any more that it is one.)
 *	2. proposals_get_through: a new proposal of each live member is acknowledged, and none of the old ones hangs.
 *	3. members_agree: all members have delivered everything that is chosen; so nothing acknowledged is missing anywhere.
 *	4. reads_get_through: each member gets a read index.
 *	5. leader_stays: one follower that hears nothing, is not heard, sleeps, or comes back from a partition neither
 *	   deposes the leader nor makes its ballot rise; nor does anything when nothing is wrong.
 *	6. leader_is_replaced: a leader that hears nothing or is not heard is replaced, stops calling itself leader, and the
 *	   new one stays.
 *	7. minority_admits_it: soon after a minority was cut off, none of its members says that a proposal is likely to end well.
 *	8. members_serve: without trouble each member says so.
 *	9. transfer_arrives: without trouble a leader that is asked to hand over does so, to whom it was asked, within a few election
 *	   timeouts at the most, and neither deposes the other again; nothing is refused or lost by it.
 *	10. leader_leaves: a leader that a configuration makes no voter any more knows it, and another one follows as soon.
 */
#include "sim.h"

#define PATIENCE_TIMEOUTS 60	/* in election timeouts */

static SimTime
timeouts(const Sim *sim, uint32_t count)
{
	return SIM_MS(sim->plan.election_timeout_ms) * count;
}

static SimTime
at_most(SimTime duration, SimTime limit)
{
	return duration < limit ? duration : limit;
}

/* Nobody may need a node that was removed, once most voters have written down that it was. */
static bool
may_stay_down(Sim *sim, uint32_t id)
{
	return !sim_node_is_member(sim, id) && sim_voters_are_aware(sim) && sim_chance(sim, SIM_MILLION / 2);
}

/* Ends all faults: what is down starts, what sleeps wakes, the network is as a LAN is. */
void
sim_heal(Sim *sim)
{
	SimTime		calm = timeouts(sim, 1) / 10;

	sim_trace(sim, "heal", 0, sim->chosen_prefix, sim->acknowledged, 0);
	sim->faulty = false;
	sim_network_heal(sim);
	sim->plan.delay_min = at_most(sim->plan.delay_min, calm);
	sim->plan.delay_spread = at_most(sim->plan.delay_spread, calm);
	sim->plan.disk_delay_min = at_most(sim->plan.disk_delay_min, calm);
	sim->plan.disk_delay_spread = at_most(sim->plan.disk_delay_spread, calm);
	for (uint32_t id = 1; id <= SIM_MAX_NODES; id++)
	{
		SimNode    *node = &sim->nodes[id];

		if (node->exists && !node->alive && !may_stay_down(sim, id))
			sim_node_start(sim, node);
		if (node->exists)
			sim_node_set_version(sim, node, PAXOS_NEWEST_FRAME_VERSION);
		if (sim->plan.trim_share > 0 && sim_chance(sim, SIM_MILLION / 2))
			sim_trim(sim, node);
		node->paused_until = 0;
		node->slow_disk_until = 0;
		if (!node->alive)
			continue;
		sim_node_wake_at(sim, node, sim->now);
		for (uint32_t peer = 1; peer <= SIM_MAX_NODES; peer++)
			if (peer != id && sim->nodes[peer].exists)
				sim_link_up(sim, node, peer);
	}
}

/* The member that leads and is ready in the highest ballot; 0 if there is none. */
static uint32_t
ready_leader(Sim *sim, PaxosStatus *leader_status)
{
	uint32_t	leader = 0;

	for (uint32_t id = 1; id <= SIM_MAX_NODES; id++)
	{
		PaxosStatus status;

		if (!sim->nodes[id].alive || !sim_node_is_member(sim, id) || sim->now < sim->nodes[id].paused_until)
			continue;
		sim_node_status(sim, &sim->nodes[id], &status);
		if (status.role != PAXOS_LEADER || !status.leader_is_ready)
			continue;
		if (leader == 0 || paxos_ballot_compare(status.ballot, leader_status->ballot) > 0)
		{
			*leader_status = status;
			leader = id;
		}
	}
	return leader;
}

static uint32_t
await_leader(Sim *sim, uint32_t other_than, uint32_t patience)
{
	SimTime		limit = sim->now + timeouts(sim, patience);
	PaxosStatus status;

	while (sim->now < limit)
	{
		uint32_t	leader = ready_leader(sim, &status);

		if (leader != 0 && leader != other_than)
			return leader;
		sim_advance(sim, sim->now + timeouts(sim, 1) / 8);
	}
	sim_fail(sim, other_than == 0 ? "leader_appears" : "leader_is_replaced", "no ready leader within %u election timeouts",
			 patience);
}

/* Has this member nothing left to do? */
static bool
is_settled(Sim *sim, SimNode *node)
{
	PaxosStatus status;

	if (!node->alive)
		return false;
	sim_node_status(sim, node, &status);
	return status.outstanding_proposals == 0 && node->delivered == sim->chosen_prefix;
}

static bool
members_settled(Sim *sim, uint32_t except)
{
	for (uint32_t id = 1; id <= SIM_MAX_NODES; id++)
		if (id != except && sim_node_is_member(sim, id) && !is_settled(sim, &sim->nodes[id]))
			return false;
	return true;
}

/* Counts deliveries, so that a node with a tiny window and a long way to go is not called stuck while it moves. */
static uint64_t
progress(const Sim *sim)
{
	uint64_t	sum = 0;

	for (uint32_t id = 1; id <= SIM_MAX_NODES; id++)
		sum += sim->nodes[id].delivered;
	return sum;
}

static void
fail_unsettled(Sim *sim, uint32_t except)
{
	for (uint32_t id = 1; id <= SIM_MAX_NODES; id++)
	{
		PaxosStatus status = {0};

		if (id == except || !sim_node_is_member(sim, id) || is_settled(sim, &sim->nodes[id]))
			continue;
		if (sim->nodes[id].alive)
			sim_node_status(sim, &sim->nodes[id], &status);
		sim_fail(sim, "members_agree", "node %u: up %d, delivered %llu of %llu, %u proposals hang", id, sim->nodes[id].alive,
				 (unsigned long long) sim->nodes[id].delivered, (unsigned long long) sim->chosen_prefix,
				 status.outstanding_proposals);
	}
}

static void
await_settled(Sim *sim, uint32_t except)
{
	SimTime		limit = sim->now + timeouts(sim, PATIENCE_TIMEOUTS);
	uint64_t	before = progress(sim);

	while (!members_settled(sim, except))
	{
		if (progress(sim) != before)
		{
			before = progress(sim);
			limit = sim->now + timeouts(sim, PATIENCE_TIMEOUTS);
		}
		if (sim->now >= limit)
			fail_unsettled(sim, except);
		sim_advance(sim, sim->now + timeouts(sim, 1) / 8);
	}
}

/* One proposal of each member in turn must be acknowledged; a node that is started anew meanwhile, behind a snapshot, has lost its client. */
static void
propose_everywhere(Sim *sim, uint32_t except)
{
	for (uint32_t id = 1; id <= SIM_MAX_NODES; id++)
	{
		SimNode    *node = &sim->nodes[id];
		uint64_t	before = node->acknowledged;
		uint32_t	life = node->life;
		SimTime		limit = sim->now + timeouts(sim, PATIENCE_TIMEOUTS);

		if (id == except || !sim_node_is_member(sim, id) || !node->alive)
			continue;
		sim_propose(sim, node);
		while (node->acknowledged == before)
		{
			if (node->alive && node->life != life)
			{
				life = node->life;
				before = node->acknowledged;
				sim_propose(sim, node);
			}
			sim_check(sim, sim->now < limit, "proposals_get_through", "node, proposals acknowledged", id, before);
			sim_advance(sim, sim->now + timeouts(sim, 1) / 8);
			if (!sim_node_is_member(sim, id))
				break;			/* a configuration that was under way removed it */
		}
	}
}

/* Each member gets a read index; a refusal may be asked again. */
static void
read_everywhere(Sim *sim, uint32_t except)
{
	for (uint32_t id = 1; id <= SIM_MAX_NODES; id++)
	{
		SimNode    *node = &sim->nodes[id];
		uint64_t	before = sim->reads_answered;
		SimTime		limit = sim->now + timeouts(sim, PATIENCE_TIMEOUTS);

		if (id == except || !sim_node_is_member(sim, id) || !node->alive)
			continue;
		while (sim->reads_answered == before && sim_node_is_member(sim, id))
		{
			sim_check(sim, sim->now < limit, "reads_get_through", "node, reads under way", id, node->read_count);
			if (node->read_count == 0)
				sim_read(sim, node);
			sim_advance(sim, sim->now + timeouts(sim, 1) / 8);
		}
	}
}

/*
 * Voters that know that they are: a node that was made a voter before it had caught up, or that lost the hint in a crash, takes itself
 * for a learner until someone teaches it; if that is all that is left, nobody campaigns.
 */
static bool
some_voter_knows(Sim *sim)
{
	for (uint32_t i = 0; i < sim->config.member_count; i++)
	{
		PaxosStatus status;
		const SimNode *node = &sim->nodes[sim->config.members[i].node_id];

		if (!sim->config.members[i].is_voter || !node->alive)
			continue;
		sim_node_status(sim, node, &status);
		if (status.role != PAXOS_LEARNER && status.delivered_slot >= status.config.slot)
			return true;
	}
	return false;
}

void
sim_check_liveness(Sim *sim)
{
	if (sim->plan.reckless)
	{
		sim_advance(sim, sim->now + timeouts(sim, 10));
		sim->stuck = !some_voter_knows(sim);
		if (sim->stuck)
			return;
	}
	await_leader(sim, 0, PATIENCE_TIMEOUTS);
	await_settled(sim, 0);
	propose_everywhere(sim, 0);
	await_settled(sim, 0);
	read_everywhere(sim, 0);
}

/* ---- staying calm ---- */

typedef enum Trouble
{
	TROUBLE_NONE,
	TROUBLE_DEAF,
	TROUBLE_MUTE,
	TROUBLE_ISOLATED,
	TROUBLE_ASLEEP,
	TROUBLE_CUT_FROM_LEADER,
	TROUBLE_CUT_FROM_FOLLOWER,
	TROUBLE_KINDS
} Trouble;

static uint32_t
count_voters(const Sim *sim)
{
	uint32_t	voters = 0;

	for (uint32_t i = 0; i < sim->config.member_count; i++)
		voters += sim->config.members[i].is_voter;
	return voters;
}

static uint32_t
draw_follower(Sim *sim, uint32_t leader)
{
	uint32_t	id;

	do
		id = sim->config.members[sim_below(sim, sim->config.member_count)].node_id;
	while (id == leader);
	return id;
}

static void
make_trouble(Sim *sim, Trouble trouble, uint32_t victim, uint32_t leader, SimTime duration)
{
	sim_trace(sim, "trouble", victim, trouble, leader, 0);
	switch (trouble)
	{
		case TROUBLE_DEAF:
			sim_deafen(sim, victim, duration);
			break;
		case TROUBLE_MUTE:
			sim_mute(sim, victim, duration);
			break;
		case TROUBLE_ISOLATED:
			sim_isolate(sim, victim, duration);
			break;
		case TROUBLE_ASLEEP:
			sim_node_pause(sim, &sim->nodes[victim], duration);
			break;
		case TROUBLE_CUT_FROM_LEADER:
			sim_cut_both(sim, victim, leader, duration);
			break;
		case TROUBLE_CUT_FROM_FOLLOWER:
			sim_cut_both(sim, victim, draw_follower(sim, leader), duration);
			break;
		default:
			break;
	}
}

static void
leader_must_stay(Sim *sim, uint32_t leader, PaxosBallot ballot, const char *when, Trouble trouble)
{
	PaxosStatus status;

	sim_node_status(sim, &sim->nodes[leader], &status);
	if (status.role != PAXOS_LEADER || paxos_ballot_compare(status.ballot, ballot) != 0)
		sim_fail(sim, "leader_stays", "%s trouble %d the leader %u of ballot %llu is in role %d with ballot %llu", when, trouble,
				 leader, (unsigned long long) ballot.round, status.role, (unsigned long long) status.ballot.round);
}

/* A follower has trouble: nobody else may notice, neither while it lasts nor when it ends. */
static void
follower_in_trouble(Sim *sim, Trouble trouble)
{
	PaxosStatus status;
	uint32_t	leader = ready_leader(sim, &status);
	uint32_t	victim = trouble == TROUBLE_NONE ? 0 : draw_follower(sim, leader);
	bool		cut = trouble != TROUBLE_NONE && trouble != TROUBLE_CUT_FROM_FOLLOWER;

	make_trouble(sim, trouble, victim, leader, timeouts(sim, 12));
	if (cut)
		sim_propose(sim, &sim->nodes[victim]);	/* what it forwards is lost, and it may not hear of any change; it settles afterwards */
	for (int i = 0; i < 4; i++)
	{
		sim_advance(sim, sim->now + timeouts(sim, 2));
		leader_must_stay(sim, leader, status.ballot, "during", trouble);
		propose_everywhere(sim, cut ? victim : 0);
	}
	sim_network_heal(sim);
	sim_advance(sim, sim->now + timeouts(sim, 8));
	leader_must_stay(sim, leader, status.ballot, "after", trouble);
}

/* The leader has trouble: another one must take over, and stay, also when the old one comes back. */
static void
leader_in_trouble(Sim *sim, Trouble trouble)
{
	PaxosStatus status;
	PaxosStatus old_status;
	uint32_t	old_leader = ready_leader(sim, &status);
	uint32_t	leader;

	make_trouble(sim, trouble, old_leader, old_leader, timeouts(sim, 40));
	sim_advance(sim, sim->now + timeouts(sim, 1));
	leader = await_leader(sim, old_leader, 20);
	sim_advance(sim, sim->now + timeouts(sim, 3));
	leader = await_leader(sim, old_leader, 10);
	ready_leader(sim, &status);
	propose_everywhere(sim, old_leader);
	if (trouble != TROUBLE_ASLEEP)
	{
		sim_node_status(sim, &sim->nodes[old_leader], &old_status);
		sim_check(sim, old_status.role != PAXOS_LEADER, "leader_is_replaced", "the old leader still calls itself leader; node, trouble",
				  old_leader, trouble);
	}
	sim_advance(sim, sim->now + timeouts(sim, 4));
	leader_must_stay(sim, leader, status.ballot, "after another leader's", trouble);
	sim_network_heal(sim);
	sim->nodes[old_leader].paused_until = sim->now;
	sim_node_wake_at(sim, &sim->nodes[old_leader], sim->now);
	sim_advance(sim, sim->now + timeouts(sim, 8));
	leader_must_stay(sim, leader, status.ballot, "after the end of another leader's", trouble);
}

/* ---- a minority ---- */

/* Bits of the members that are cut off: as many voters as may be without a majority, and some of the learners. */
static uint32_t
draw_minority(Sim *sim)
{
	uint32_t	start = (uint32_t) sim_below(sim, sim->config.member_count);
	uint32_t	voters_left = (count_voters(sim) - 1) / 2;
	uint32_t	minority = 0;

	for (uint32_t i = 0; i < sim->config.member_count; i++)
	{
		const PaxosMember *member = &sim->config.members[(start + i) % sim->config.member_count];

		if (member->is_voter ? voters_left > 0 : sim_chance(sim, SIM_MILLION / 2))
			minority |= 1u << member->node_id;
		voters_left -= member->is_voter && voters_left > 0;
	}
	return minority;
}

static void
cut_off(Sim *sim, uint32_t minority, SimTime duration)
{
	sim_trace(sim, "minority", 0, minority, duration, 0);
	for (uint32_t a = 1; a <= SIM_MAX_NODES; a++)
		for (uint32_t b = 1; b <= SIM_MAX_NODES; b++)
			if ((minority >> a & 1) != (minority >> b & 1))
				sim_cut(sim, a, b, duration);
}

static bool
member_serves(Sim *sim, uint32_t id)
{
	PaxosStatus status;

	if (!sim->nodes[id].alive)
		return false;
	sim_node_status(sim, &sim->nodes[id], &status);
	return status.quorum_is_fresh;
}

/* The majority's hosts notice that the leader is gone, and their clients write; those of the minority read.  What they may not see is checked. */
static void
ask_both_sides(Sim *sim, uint32_t minority, SimTime duration)
{
	PaxosStatus status;
	uint32_t	leader = ready_leader(sim, &status);

	for (int i = 0; i < 16; i++)
	{
		for (uint32_t id = 1; id <= SIM_MAX_NODES; id++)
		{
			SimNode    *node = &sim->nodes[id];

			if (!node->alive || !sim_node_is_member(sim, id))
				continue;
			if ((minority >> id & 1) != 0)
				sim_read(sim, node);
			else if (i == 0 && (minority >> leader & 1) != 0)
				sim_node_input(sim, node, (SimInput) {.kind = SIM_INPUT_LINK, .number = leader});
			else
				sim_propose(sim, node);
		}
		sim_advance(sim, sim->now + duration / 16);
	}
	for (uint32_t id = 1; id <= SIM_MAX_NODES && leader != 0; id++)
		sim_link_up(sim, &sim->nodes[id], leader);
}

/* The last answers are two heartbeats old before the leader says so, its last word before that three; one more till the next; and the ways. */
static void
minority_in_trouble(Sim *sim)
{
	const SimPlan *plan = &sim->plan;
	SimTime		way = plan->delay_min + plan->delay_spread + plan->disk_delay_min + plan->disk_delay_spread + 2 * plan->loop_latency + 2000;
	uint32_t	minority = draw_minority(sim);

	cut_off(sim, minority, timeouts(sim, 20));
	ask_both_sides(sim, minority, SIM_MS(6 * plan->heartbeat_interval_ms) + 3 * way);
	for (uint32_t id = 1; id <= SIM_MAX_NODES; id++)
		if ((minority >> id & 1) != 0)
			sim_check(sim, !member_serves(sim, id), "minority_admits_it", "node and minority", id, minority);
	sim_network_heal(sim);
}

static void
await_service(Sim *sim)
{
	SimTime		limit = sim->now + timeouts(sim, PATIENCE_TIMEOUTS);

	for (uint32_t id = 1; id <= SIM_MAX_NODES; id++)
		while (sim_node_is_member(sim, id) && !member_serves(sim, id))
		{
			sim_check(sim, sim->now < limit, "members_serve", "node", id, 0);
			sim_advance(sim, sim->now + timeouts(sim, 1) / 8);
		}
}

/* ---- leaders that go ---- */

static uint32_t
draw_voter(Sim *sim, uint32_t except)
{
	uint32_t	start = (uint32_t) sim_below(sim, sim->config.member_count);

	for (uint32_t i = 0; i < sim->config.member_count; i++)
	{
		const PaxosMember *member = &sim->config.members[(start + i) % sim->config.member_count];

		if (member->is_voter && member->node_id != except)
			return member->node_id;
	}
	return 0;
}

/* Repeats the order until it is taken: a leader refuses it while it is not sure of the target. */
static void
hand_over(Sim *sim)
{
	PaxosStatus status;
	uint32_t	old_leader = ready_leader(sim, &status);
	uint32_t	target = draw_voter(sim, old_leader);
	uint32_t	asked_for = sim_chance(sim, SIM_MILLION / 4) ? 0 : target;
	uint64_t	taken = sim->transfers;
	SimTime		limit = sim->now + timeouts(sim, PATIENCE_TIMEOUTS);

	if (old_leader == 0 || target == 0)
		return;
	while (sim->transfers == taken)
	{
		sim_check(sim, sim->now < limit, "transfer_arrives", "the order is refused; leader, target", old_leader, asked_for);
		sim_transfer(sim, &sim->nodes[old_leader], asked_for);
		sim_propose(sim, &sim->nodes[old_leader]);
		sim_propose(sim, &sim->nodes[target]);
		sim_advance(sim, sim->now + timeouts(sim, 1) / 8);
	}
	await_leader(sim, old_leader, 4);
	sim_advance(sim, sim->now + timeouts(sim, 3));
	sim_check(sim, ready_leader(sim, &status) == target || (asked_for == 0 && ready_leader(sim, &status) != old_leader), "transfer_arrives",
			  "leader and target", ready_leader(sim, &status), target);
	propose_everywhere(sim, 0);
	leader_must_stay(sim, ready_leader(sim, &status), status.ballot, "after a transfer", TROUBLE_NONE);
}

static void
leader_leaves(Sim *sim)
{
	PaxosStatus status;
	uint32_t	old_leader = ready_leader(sim, &status);
	PaxosConfig next = sim->config;
	SimTime		limit = sim->now + timeouts(sim, PATIENCE_TIMEOUTS);
	bool		as_learner = sim_chance(sim, SIM_MILLION / 3);

	if (old_leader == 0 || count_voters(sim) < 2)
		return;
	for (uint32_t i = 0; i < next.member_count; i++)
	{
		if (next.members[i].node_id != old_leader)
			continue;
		if (as_learner)
			next.members[i].is_voter = false;
		else
			next.members[i] = next.members[--next.member_count];
		break;
	}
	sim_propose_members(sim, &sim->nodes[old_leader], &next);
	while (await_leader(sim, 0, PATIENCE_TIMEOUTS) == old_leader)
	{
		sim_check(sim, sim->now < limit, "leader_leaves", "it stays; leader, voters", old_leader, count_voters(sim));
		sim_advance(sim, sim->now + timeouts(sim, 1) / 8);
		if (sim->config.slot == next.slot && ready_leader(sim, &status) == old_leader && !status.config_is_pending)
			sim_propose_members(sim, &sim->nodes[old_leader], &next);	/* something was under way */
	}
	await_leader(sim, old_leader, 4);
	sim_node_status(sim, &sim->nodes[old_leader], &status);
	sim_check(sim, status.role == PAXOS_LEARNER && status.config.slot == sim->config.slot, "leader_leaves", "its role, and the slot that it knows",
			  status.role, status.config.slot);
}

void
sim_check_calm(Sim *sim)
{
	Trouble		trouble = (Trouble) sim_below(sim, TROUBLE_KINDS);

	sim->forget_before = sim->now;	/* what was sent in the time of faults may not disturb the calm */
	if (count_voters(sim) < 3)
		trouble = TROUBLE_NONE;
	if (trouble >= TROUBLE_DEAF && trouble <= TROUBLE_ASLEEP && sim_chance(sim, SIM_MILLION / 3))
		leader_in_trouble(sim, trouble);
	else
		follower_in_trouble(sim, trouble);
	if (count_voters(sim) >= 3 && sim_chance(sim, SIM_MILLION / 2))
		minority_in_trouble(sim);
	await_leader(sim, 0, PATIENCE_TIMEOUTS);
	await_service(sim);
	propose_everywhere(sim, 0);
	await_settled(sim, 0);
	if (sim_chance(sim, SIM_MILLION / 2))
		hand_over(sim);
	if (sim_chance(sim, SIM_MILLION / 3))
		leader_leaves(sim);
	await_settled(sim, 0);
	read_everywhere(sim, 0);
}
