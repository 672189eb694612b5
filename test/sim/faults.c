/*
 * faults.c
 *	  What goes wrong, and when.
 *
 * Each run draws which kinds of fault it has and how often each comes, so that runs differ in character (swarm testing:
 * Groce and others, 2012): some only crash, some only partition, some do everything at once.  Besides single faults
 * there are plots of several steps that aim where protocols of this family are weak: a leader that is cut off with
 * half-accepted slots, a leader that wakes up after it was deposed, a node that restarts again and again.
 *
 * Invariants
 *	1. Every fault ends by itself; the network's state is a set of times until which something is broken.
 */
#include "sim.h"

typedef enum SimFaultKind
{
	FAULT_CRASH,
	FAULT_CRASH_MANY,
	FAULT_PAUSE,
	FAULT_ISOLATE,
	FAULT_DEAF,
	FAULT_MUTE,
	FAULT_CUT_PAIR,
	FAULT_CUT_ONE_WAY,
	FAULT_SPLIT,
	FAULT_LOSSY,
	FAULT_SLOW_NETWORK,
	FAULT_SLOW_DISK,
	FAULT_STALE_LEADER,
	FAULT_PARTIAL_ACCEPT,
	FAULT_FALSE_HINTS,
	FAULT_RESTARTS,
	FAULT_TAKEOVER,
	FAULT_BAN,
	FAULT_RUSH,
	FAULT_HAND_OVER,
	FAULT_KINDS
} SimFaultKind;

static uint32_t
pick_weight(Sim *sim)
{
	return sim_chance(sim, SIM_MILLION / 2) ? 0 : 1 + (uint32_t) sim_below(sim, 10);
}

void
sim_fault_plan(Sim *sim)
{
	for (int kind = 0; kind < FAULT_KINDS; kind++)
		sim->plan.fault_weight[kind] = pick_weight(sim);
	sim->plan.fault_weight[FAULT_CRASH] += 1;	/* so that the sum is never 0 */
}

/* Between a fifth and six election timeouts. */
static SimTime
draw_duration(Sim *sim)
{
	SimTime		timeout = SIM_MS(sim->plan.election_timeout_ms);

	return timeout / 5 + sim_below(sim, sim_chance(sim, SIM_MILLION / 2) ? 2 * timeout : 6 * timeout);
}

/* A leader in many cases: that is where it hurts. */
static SimNode *
draw_victim(Sim *sim)
{
	uint32_t	id = sim_chance(sim, SIM_MILLION * 2 / 5) ? sim_guess_leader(sim) : 0;

	if (id == 0)
		id = sim_pick_node(sim);
	return id == 0 ? NULL : &sim->nodes[id];
}

static void
act(Sim *sim, SimTime delay, SimActionKind action, uint32_t node, uint64_t argument)
{
	sim_schedule(sim, (SimEvent) {
		.at = sim->now + delay, .kind = SIM_ACTION, .action = action, .node = node, .argument = argument
	});
}

static void
crash_many(Sim *sim)
{
	bool		all = sim_chance(sim, SIM_MILLION / 3);

	for (uint32_t id = 1; id <= SIM_MAX_NODES; id++)
		if (all || sim_chance(sim, SIM_MILLION / 2))
			sim_node_crash(sim, &sim->nodes[id], draw_duration(sim) / 2);
}

static void
split(Sim *sim)
{
	uint64_t	side = sim_random(sim);
	bool		one_way = sim_chance(sim, SIM_MILLION / 4);
	SimTime		duration = draw_duration(sim);

	for (uint32_t a = 1; a <= SIM_MAX_NODES; a++)
		for (uint32_t b = 1; b <= SIM_MAX_NODES; b++)
			if ((side >> a & 1) == 1 && (side >> b & 1) == 0)
			{
				sim_cut(sim, a, b, duration);
				if (!one_way)
					sim_cut(sim, b, a, duration);
			}
}

static void
lossy_links(Sim *sim)
{
	SimTime		until = sim->now + draw_duration(sim);

	for (uint32_t a = 1; a <= SIM_MAX_NODES; a++)
		for (uint32_t b = 1; b <= SIM_MAX_NODES; b++)
			if (sim_chance(sim, SIM_MILLION / 2))
				sim->lossy_until[a][b] = until;
}

/* Clients go on elsewhere, and someone asks the victim what it knows. */
static void
requests_around(Sim *sim, uint32_t victim, SimTime from, SimTime to)
{
	for (int i = 0; i < 6; i++)
	{
		SimTime		when = from + sim_below(sim, to - from + 1);
		uint32_t	other = sim_pick_node(sim);

		act(sim, when, SIM_DO_READ, victim, 1);
		if (other != victim && other != 0)
			act(sim, from + sim_below(sim, to - from + 1), SIM_DO_PROPOSE, other, 1 + sim_below(sim, 3));
	}
}

/*
 * A leader sleeps, or is cut off, while the others elect another one and go on; then it wakes up and is asked before it
 * has heard of that.
 */
static void
stale_leader(Sim *sim)
{
	uint32_t	leader = sim_guess_leader(sim);
	SimTime		timeout = SIM_MS(sim->plan.election_timeout_ms);
	SimTime		away = 2 * timeout + sim_below(sim, 3 * timeout);

	if (leader == 0)
		return;
	switch (sim_below(sim, 3))
	{
		case 0:
			sim_node_pause(sim, &sim->nodes[leader], away);
			sim_deafen(sim, leader, away + timeout);
			break;
		case 1:
			sim_node_pause(sim, &sim->nodes[leader], away);
			break;
		default:
			sim_isolate(sim, leader, away);
			break;
	}
	requests_around(sim, leader, timeout, away + timeout / 2);
}

/*
 * A leader reaches only some, or is not heard back, with a full pipeline; then it falls.  What it left behind is accepted
 * here and there, perhaps by a majority that nobody knows of.
 */
static void
partial_accept(Sim *sim)
{
	uint32_t	leader = sim_guess_leader(sim);
	SimTime		timeout = SIM_MS(sim->plan.election_timeout_ms);
	SimTime		duration = timeout + sim_below(sim, 2 * timeout);
	SimTime		fall = 1 + sim_below(sim, timeout / 2);

	if (leader == 0)
		return;
	for (uint32_t id = 1; id <= SIM_MAX_NODES; id++)
	{
		uint64_t	how = sim_below(sim, 4);

		if (how == 0)
			sim_cut(sim, leader, id, duration);
		else if (how == 1)
			sim_cut(sim, id, leader, duration);
		else if (how == 2)
			sim->lossy_until[leader][id] = sim->now + duration;
		if (id != leader && sim_chance(sim, SIM_MILLION / 5))
			act(sim, fall + sim_below(sim, timeout), SIM_DO_CRASH, id, sim_below(sim, 3 * timeout));
	}
	act(sim, 0, SIM_DO_PROPOSE, leader, 1 + sim_below(sim, sim->plan.burst_max));
	act(sim, fall / 2, SIM_DO_PROPOSE, leader, 1 + sim_below(sim, sim->plan.burst_max));
	if (sim_chance(sim, SIM_MILLION / 2))
		act(sim, fall, SIM_DO_CRASH, leader, sim_below(sim, 4 * timeout));
	else
		act(sim, fall, SIM_DO_ISOLATE, leader, duration + timeout);
}

static void
false_hints(Sim *sim)
{
	for (int i = 0; i < 6; i++)
		act(sim, sim_below(sim, SIM_MS(sim->plan.election_timeout_ms)),
			sim_chance(sim, SIM_MILLION / 2) ? SIM_DO_HINT_UP : SIM_DO_HINT_DOWN,
			1 + (uint32_t) sim_below(sim, SIM_MAX_NODES), 1 + sim_below(sim, SIM_MAX_NODES));
}

static void
restarts(Sim *sim, uint32_t victim)
{
	SimTime		when = 0;

	for (int i = 0; i < 4; i++)
	{
		act(sim, when, SIM_DO_CRASH, victim, sim_below(sim, SIM_MS(10)));
		when += SIM_MS(11) + sim_below(sim, SIM_MS(sim->plan.election_timeout_ms));
	}
}

/*
 * The links of the others tell them that the leader is gone; they elect another one before the old one has any reason to doubt
 * itself.  It is cut off, or what the others send trickles in late, answers to its earlier heartbeats among it, or it sleeps just short
 * of an election timeout and finds its clients' reads when it wakes up.
 */
static void
takeover(Sim *sim)
{
	uint32_t	leader = sim_guess_leader(sim);
	SimTime		timeout = SIM_MS(sim->plan.election_timeout_ms);
	uint64_t	how = sim_below(sim, 3);

	if (leader == 0)
		return;
	sim_mute(sim, leader, 3 * timeout);
	if (how == 0)
		sim_deafen(sim, leader, 3 * timeout);
	if (how == 1)
	{
		sim_node_pause(sim, &sim->nodes[leader], timeout * 9 / 10);
		act(sim, timeout / 20, SIM_DO_DEAFEN, leader, timeout);
		act(sim, timeout * 8 / 10, SIM_DO_READ, leader, 0);
		act(sim, timeout * 9 / 10 - 1, SIM_DO_READ, leader, 0);
	}
	for (uint32_t id = 1; id <= SIM_MAX_NODES; id++)
	{
		if (id == leader)
			continue;
		if (how == 2)
			sim->slow_link_until[id][leader] = sim->now + timeout;
		act(sim, sim_below(sim, timeout / 20), SIM_DO_HINT_DOWN, id, leader);
	}
	requests_around(sim, leader, timeout / 4, timeout + timeout / 4);
	requests_around(sim, leader, timeout / 2, timeout);
}

/*
 * Several configurations in quick succession with a few values between them; then about half of the nodes crash, so that what they
 * knew as chosen is mere acceptance again, and someone is cut off.
 */
static void
rush(Sim *sim, uint32_t victim)
{
	SimTime		timeout = SIM_MS(sim->plan.election_timeout_ms);
	SimTime		fall = timeout / 4 + sim_below(sim, timeout);

	for (SimTime i = 0; i < 8; i++)
	{
		act(sim, i * fall / 8, SIM_DO_CONFIGURE, victim, 0);
		act(sim, i * fall / 8 + sim_below(sim, fall / 8), SIM_DO_PROPOSE, sim_pick_node(sim), 1 + sim_below(sim, 2));
	}
	for (uint32_t id = 1; id <= SIM_MAX_NODES; id++)
		if (sim_chance(sim, SIM_MILLION / 2))
			act(sim, fall + sim_below(sim, timeout / 8), SIM_DO_CRASH, id, sim_below(sim, timeout));
	act(sim, fall, SIM_DO_ISOLATE, victim, 2 * timeout);
}

/*
 * A leader hands over while things go wrong around it: the target was away and is behind, or it or the leader falls at one of the steps, or they
 * lose sight of each other or of the rest; clients go on, and read at both.
 */
static void
hand_over(Sim *sim)
{
	uint32_t	leader = sim_guess_leader(sim);
	uint32_t	target = sim_pick_node(sim);
	SimTime		timeout = SIM_MS(sim->plan.election_timeout_ms);
	SimTime		away = sim_chance(sim, SIM_MILLION / 2) ? sim_below(sim, timeout) : 0;

	if (leader == 0 || target == 0 || target == leader)
		return;
	if (away > 0)
		sim_cut(sim, leader, target, away);
	act(sim, 0, SIM_DO_PROPOSE, leader, 1 + sim_below(sim, sim->plan.burst_max));
	act(sim, away + sim_below(sim, timeout / 8), SIM_DO_TRANSFER, leader, target);
	act(sim, away + sim_below(sim, timeout / 2), SIM_DO_PROPOSE, leader, 1 + sim_below(sim, 3));
	switch (sim_below(sim, 6))
	{
		case 0:
			act(sim, away + sim_below(sim, timeout / 4), SIM_DO_CRASH, leader, sim_below(sim, timeout));
			break;
		case 1:
			act(sim, away + sim_below(sim, timeout / 4), SIM_DO_CRASH, target, sim_below(sim, timeout));
			break;
		case 2:
			act(sim, away + sim_below(sim, timeout / 4), SIM_DO_ISOLATE, leader, timeout);
			break;
		case 3:
			act(sim, away + sim_below(sim, timeout / 4), SIM_DO_ISOLATE, target, timeout);
			break;
		case 4:
			act(sim, away + sim_below(sim, timeout / 4), SIM_DO_CONFIGURE, leader, 0);
			break;
		default:
			break;
	}
	requests_around(sim, leader, away, away + timeout);
}

static SimFaultKind
draw_kind(Sim *sim)
{
	uint64_t	sum = 0;
	uint64_t	drawn;
	int			kind;

	for (kind = 0; kind < FAULT_KINDS; kind++)
		sum += sim->plan.fault_weight[kind];
	drawn = sim_below(sim, sum);
	for (kind = 0; drawn >= sim->plan.fault_weight[kind]; kind++)
		drawn -= sim->plan.fault_weight[kind];
	return (SimFaultKind) kind;
}

static void
strike_node(Sim *sim, SimFaultKind kind, SimNode *victim)
{
	SimTime		duration = draw_duration(sim);
	uint32_t	other = sim_pick_node(sim);

	switch (kind)
	{
		case FAULT_CRASH:
			sim_node_crash(sim, victim, sim_chance(sim, SIM_MILLION / 2) ? duration / 20 : duration);
			break;
		case FAULT_PAUSE:
			sim_node_pause(sim, victim, duration);
			break;
		case FAULT_ISOLATE:
			sim_isolate(sim, victim->id, duration);
			break;
		case FAULT_DEAF:
			sim_deafen(sim, victim->id, duration);
			break;
		case FAULT_MUTE:
			sim_mute(sim, victim->id, duration);
			break;
		case FAULT_CUT_PAIR:
			sim_cut_both(sim, victim->id, other, duration);
			break;
		case FAULT_CUT_ONE_WAY:
			sim_cut(sim, victim->id, other, duration);
			break;
		case FAULT_SLOW_DISK:
			victim->slow_disk_until = sim->now + duration;
			break;
		case FAULT_BAN:
			victim->banned_until = sim->now + duration;
			sim_node_wake_at(sim, victim, sim->now);
			sim_node_wake_at(sim, victim, sim->now + duration);
			break;
		case FAULT_RUSH:
			if (sim->plan.membership)
				rush(sim, victim->id);
			break;
		case FAULT_RESTARTS:
			restarts(sim, victim->id);
			break;
		default:
			break;
	}
}

void
sim_fault_next(Sim *sim)
{
	SimFaultKind kind = draw_kind(sim);
	SimNode    *victim = draw_victim(sim);

	sim_schedule(sim, (SimEvent) {
		.at = sim->now + 1 + sim_below(sim, 2 * sim->plan.fault_interval), .kind = SIM_FAULT
	});
	if (victim == NULL)
		return;
	sim_trace(sim, "fault", victim->id, kind, 0, 0);
	switch (kind)
	{
		case FAULT_CRASH_MANY:
			crash_many(sim);
			break;
		case FAULT_SPLIT:
			split(sim);
			break;
		case FAULT_LOSSY:
			lossy_links(sim);
			break;
		case FAULT_SLOW_NETWORK:
			sim->slow_until = sim->now + draw_duration(sim);
			break;
		case FAULT_STALE_LEADER:
			stale_leader(sim);
			break;
		case FAULT_PARTIAL_ACCEPT:
			partial_accept(sim);
			break;
		case FAULT_TAKEOVER:
			takeover(sim);
			break;
		case FAULT_FALSE_HINTS:
			false_hints(sim);
			break;
		case FAULT_HAND_OVER:
			hand_over(sim);
			break;
		default:
			strike_node(sim, kind, victim);
			break;
	}
}

/* A joiner is told the configuration that first named it, or the one in force by now, in which it may be a voter already. */
static void
join(Sim *sim, uint32_t id, PaxosSlot slot)
{
	if (sim_node_is_member(sim, id) && sim_chance(sim, SIM_MILLION / 2))
		slot = sim->config.slot;
	sim_node_create(sim, id, slot, sim_slot(sim, slot)->chosen_value);
}

/* A later step of a plot; what harms is left out once the network is healed. */
/* A host forgets to tell nobody of a link that is there: it tells later if the inbox is full. */
void
sim_link_up(Sim *sim, SimNode *node, uint32_t peer)
{
	if (peer == node->id || !node->alive ||
		sim_node_input(sim, node, (SimInput) {.kind = SIM_INPUT_LINK, .number = peer, .link_up = true}))
		return;
	act(sim, SIM_MS(sim->plan.election_timeout_ms), SIM_DO_HINT_UP, node->id, peer);
}

void
sim_fault_action(Sim *sim, const SimEvent *event)
{
	SimNode    *node = &sim->nodes[event->node];

	if (event->action == SIM_DO_JOIN)
		join(sim, node->id, event->argument);
	else if (event->action == SIM_DO_SNAPSHOT)
		sim_snapshot_capture(sim, node, (uint32_t) event->argument);
	else if (event->action == SIM_DO_INSTALL)
		sim_snapshot_install(sim, node);
	if (!node->alive || (!sim->faulty && event->action != SIM_DO_HINT_UP))
		return;
	sim_trace(sim, "action", node->id, event->action, event->argument, 0);
	switch (event->action)
	{
		case SIM_DO_CRASH:
			sim_node_crash(sim, node, event->argument);
			break;
		case SIM_DO_ISOLATE:
			sim_isolate(sim, node->id, event->argument);
			break;
		case SIM_DO_DEAFEN:
			sim_deafen(sim, node->id, event->argument);
			break;
		case SIM_DO_PROPOSE:
			for (uint64_t i = 0; i < event->argument && sim_propose(sim, node); i++)
				;
			break;
		case SIM_DO_READ:
			sim_read(sim, node);
			break;
		case SIM_DO_CONFIGURE:
			sim_propose_config(sim);
			break;
		case SIM_DO_HINT_UP:
			sim_link_up(sim, node, (uint32_t) event->argument);
			break;
		case SIM_DO_HINT_DOWN:
			if (event->argument != node->id)
				sim_node_input(sim, node, (SimInput) {.kind = SIM_INPUT_LINK, .number = event->argument});
			break;
		case SIM_DO_TRANSFER:
			sim_transfer(sim, node, (uint32_t) event->argument);
			break;
		case SIM_DO_JOIN:
		case SIM_DO_SNAPSHOT:
		case SIM_DO_INSTALL:
			break;
	}
}
