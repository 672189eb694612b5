/*
 * network.c
 *	  The network between the nodes: it carries encoded frames, and carries them badly.
 *
 * A frame is lost, doubled, delayed, overtaken, held back for seconds, or garbled, with the chances of the run's plan.  A
 * link is one direction between two nodes and can be cut by itself, so cuts are full, one-way or partial.  A cut takes
 * what is sent while it lasts; what was under way arrives.  A garbled frame must be refused by the codec.
 *
 * Invariants
 *	1. A frame that arrives ungarbled has the bytes and the sender that it was sent with.
 */
#include "sim.h"

void
sim_frame_release(SimFrame *frame)
{
	if (--frame->references == 0)
		free(frame);
}

static SimTime
draw_delay(Sim *sim, uint32_t from, uint32_t to)
{
	SimTime		delay = sim->plan.delay_min + sim_below(sim, sim->plan.delay_spread + 1);

	if (sim->faulty && (sim->now < sim->slow_until || sim->now < sim->slow_link_until[from][to]))
		delay += sim_below(sim, SIM_MS(sim->plan.election_timeout_ms));
	if (sim->faulty && sim_chance(sim, sim->plan.straggler_chance))
		delay += sim_below(sim, SIM_MS(10 * sim->plan.election_timeout_ms));
	return delay;
}

static void
send_copy(Sim *sim, SimFrame *frame)
{
	SimTime		at = sim->now + draw_delay(sim, frame->from, frame->to);
	SimTime    *last = &sim->last_arrival[frame->from][frame->to];

	if (sim->plan.in_order)
	{
		if (at <= *last)
			at = *last + 1;
		*last = at;
	}
	frame->references++;
	sim_schedule(sim, (SimEvent) {
		.at = at, .kind = SIM_FRAME, .node = frame->to, .frame = frame
	});
}

static bool
is_lost(Sim *sim, uint32_t from, uint32_t to)
{
	if (sim->now < sim->cut_until[from][to])
		return true;
	if (!sim->faulty)
		return false;
	return sim_chance(sim, sim->plan.loss_chance) ||
		(sim->now < sim->lossy_until[from][to] && sim_chance(sim, SIM_MILLION / 2));
}

void
sim_network_send(Sim *sim, uint32_t from, uint32_t to, const uint8_t *bytes, size_t length, bool teaches)
{
	SimFrame   *frame;

	if (to == 0 || to > SIM_MAX_NODES || to == from)
		sim_fail(sim, "frame_has_an_address", "node %u sends to %u", from, to);
	if (is_lost(sim, from, to) || (teaches && sim->faulty && sim_chance(sim, sim->plan.starve_chance)))
		return;
	frame = malloc(sizeof(SimFrame) + length);
	*frame = (SimFrame) {.references = 1, .from = from, .to = to, .sent_at = sim->now, .length = length};
	memcpy(frame->bytes, bytes, length);
	if (sim->faulty && sim_chance(sim, sim->plan.garble_chance))
	{
		frame->bytes[sim_below(sim, length)] ^= (uint8_t) (1u << sim_below(sim, 8));
		if (sim_chance(sim, SIM_MILLION / 4))
			frame->length = sim_below(sim, length);
		frame->garbled = true;
	}
	send_copy(sim, frame);
	if (sim->faulty && sim_chance(sim, sim->plan.double_chance))
		send_copy(sim, frame);
	sim_frame_release(frame);
}

static void
hint(Sim *sim, uint32_t node, uint32_t peer, SimTime at, bool up)
{
	sim_schedule(sim, (SimEvent) {
		.at = at + sim_below(sim, SIM_MS(20)), .kind = SIM_ACTION, .node = node,
		.action = up ? SIM_DO_HINT_UP : SIM_DO_HINT_DOWN, .argument = peer
	});
}

/* Cuts one direction.  With hints, the sender's host notices sooner or later, as a broken connection is noticed. */
void
sim_cut(Sim *sim, uint32_t from, uint32_t to, SimTime duration)
{
	if (from == to)
		return;
	if (sim->cut_until[from][to] < sim->now + duration)
		sim->cut_until[from][to] = sim->now + duration;
	if (sim->plan.link_hints && sim_chance(sim, SIM_MILLION / 2))
	{
		hint(sim, from, to, sim->now, false);
		hint(sim, from, to, sim->now + duration, true);
	}
}

void
sim_cut_both(Sim *sim, uint32_t a, uint32_t b, SimTime duration)
{
	sim_cut(sim, a, b, duration);
	sim_cut(sim, b, a, duration);
}

void
sim_mute(Sim *sim, uint32_t node, SimTime duration)
{
	for (uint32_t peer = 1; peer <= SIM_MAX_NODES; peer++)
		sim_cut(sim, node, peer, duration);
}

/* Hears nothing, but can send. */
void
sim_deafen(Sim *sim, uint32_t node, SimTime duration)
{
	for (uint32_t peer = 1; peer <= SIM_MAX_NODES; peer++)
		sim_cut(sim, peer, node, duration);
}

void
sim_isolate(Sim *sim, uint32_t node, SimTime duration)
{
	sim_mute(sim, node, duration);
	sim_deafen(sim, node, duration);
}

void
sim_network_heal(Sim *sim)
{
	memset(sim->cut_until, 0, sizeof(sim->cut_until));
	memset(sim->lossy_until, 0, sizeof(sim->lossy_until));
	memset(sim->slow_link_until, 0, sizeof(sim->slow_link_until));
	sim->slow_until = 0;
}
