/*
 * run.c
 *	  One run: what the seed draws, the loop over the queue of events, the phases, the end.
 *
 * Phases: the founders start; for a while clients ask and faults strike; everything is healed and the cluster must come
 * back (liveness.c); then some runs look at how calm it stays.
 *
 * Invariants
 *	1. A broken invariant leaves by longjmp from wherever it was found; nothing of the run is used afterwards but its report.
 *	2. core_assertion: the core never meets its own assertions.
 *	3. memory_returned: after the last core is destroyed nothing is allocated.
 */
#include <stdarg.h>

#include "sim.h"

/* For paxos_assertion_failed alone, which is given no context. */
static Sim *current;

void
sim_fail(Sim *sim, const char *invariant, const char *format, ...)
{
	va_list		arguments;

	sim->invariant = invariant;
	va_start(arguments, format);
	vsnprintf(sim->detail, sizeof(sim->detail), format, arguments);
	va_end(arguments);
	longjmp(sim->failed, 1);
}

void
sim_check(Sim *sim, bool holds, const char *invariant, const char *text, uint64_t a, uint64_t b)
{
	if (!holds)
		sim_fail(sim, invariant, "%s: %llu, %llu", text, (unsigned long long) a, (unsigned long long) b);
}

void
paxos_assertion_failed(const char *condition, const char *file, int line)
{
	const char *base = strrchr(file, '/');

	sim_fail(current, "core_assertion", "%s at %s:%d", condition, base == NULL ? file : base + 1, line);
}

void
sim_trace(Sim *sim, const char *what, uint32_t node, uint64_t a, uint64_t b, uint64_t c)
{
	sim->hash = sim_mix(sim_mix(sim->hash, sim->now), (uint64_t) (uint8_t) what[0] << 40 | (uint64_t) (uint8_t) what[1] << 32 | node);
	sim->hash = sim_mix(sim_mix(sim_mix(sim->hash, a), b), c);
	if (sim->trace)
		printf("%10.3f n%u %-12s %llu %llu %llu\n", (double) sim->now / 1000, node, what,
			   (unsigned long long) a, (unsigned long long) b, (unsigned long long) c);
}

/* ---- memory that the cores are given; each block knows its size ---- */

typedef union Block
{
	size_t		size;
	max_align_t align;
} Block;

static void *
allocate(void *context, size_t size)
{
	Sim		   *sim = context;
	Block	   *block = malloc(sizeof(Block) + size);

	if (block == NULL)
		abort();
	block->size = size;
	sim->allocations++;
	sim->allocated_bytes += (int64_t) size;
	return block + 1;
}

static void
release(void *context, void *pointer)
{
	Sim		   *sim = context;
	Block	   *block;

	if (pointer == NULL)
		return;
	block = (Block *) pointer - 1;
	sim->allocations--;
	sim->allocated_bytes -= (int64_t) block->size;
	free(block);
}

/* ---- the plan ---- */

static uint32_t
draw_of(Sim *sim, const uint32_t *choices, size_t count)
{
	return choices[sim_below(sim, count)];
}

#define DRAW(...) draw_of(sim, (const uint32_t[]) {__VA_ARGS__}, sizeof((const uint32_t[]) {__VA_ARGS__}) / sizeof(uint32_t))

static void
draw_network(Sim *sim)
{
	SimPlan    *plan = &sim->plan;

	plan->in_order = sim_chance(sim, SIM_MILLION / 3);
	plan->link_hints = sim_chance(sim, SIM_MILLION / 2);
	plan->loss_chance = DRAW(0, 0, 2000, 20000, 100000, 200000);
	plan->starve_chance = DRAW(0, 0, 0, SIM_MILLION / 2, SIM_MILLION * 9 / 10);
	plan->double_chance = DRAW(0, 0, 5000, 100000);
	plan->straggler_chance = DRAW(0, 0, 1000, 20000);
	plan->garble_chance = DRAW(0, 0, 0, 5000);
	plan->delay_min = DRAW(50, 200, 1000);
	plan->delay_spread = DRAW(100, 2000, 10000, 30000);
}

static void
draw_host(Sim *sim)
{
	SimPlan    *plan = &sim->plan;

	plan->heartbeat_interval_ms = DRAW(20, 30, 50);
	plan->election_timeout_ms = plan->heartbeat_interval_ms * DRAW(4, 5, 8);
	plan->window_slots = DRAW(16, 16, 32, 64, 256);
	plan->window_bytes = DRAW(2000, 20000, 1000000);
	plan->max_outstanding = DRAW(1, 8, 8, 64, 300);
	plan->resend_interval_ms = plan->heartbeat_interval_ms * DRAW(1, 2, 4);
	plan->inputs_per_loop = DRAW(1, 4, 64);
	plan->loop_latency = DRAW(0, 20, 500);
	plan->disk_delay_min = DRAW(20, 100, 1000);
	plan->disk_delay_spread = DRAW(100, 1000, 10000);
	plan->disk_stall_chance = DRAW(0, 0, 3000, 30000);
	plan->crash_at_sync_chance = DRAW(0, 0, 1000, 10000);
	plan->crash_at_send_chance = DRAW(0, 0, 500, 3000);
}

static void
draw_plan(Sim *sim, uint64_t max_steps)
{
	SimPlan    *plan = &sim->plan;

	draw_host(sim);
	draw_network(sim);
	plan->membership = sim_chance(sim, SIM_MILLION / 3);
	plan->reckless = plan->membership && sim_chance(sim, SIM_MILLION / 2);
	plan->membership_share = DRAW(SIM_MILLION / 12, SIM_MILLION / 3);
	plan->has_goals = sim_chance(sim, SIM_MILLION / 2);
	plan->transfer_share = DRAW(0, 0, SIM_MILLION / 40, SIM_MILLION / 8);
	plan->trim_share = DRAW(0, 0, SIM_MILLION / 40, SIM_MILLION / 8);
	plan->old_share = DRAW(0, 0, 0, SIM_MILLION / 5, SIM_MILLION / 2);
	plan->probe_share = DRAW(0, SIM_MILLION / 2, SIM_MILLION, SIM_MILLION);
	plan->founder_count = plan->membership ? DRAW(1, 2, 3, 4) : DRAW(3, 3, 5);
	plan->fault_phase = SIM_MS(plan->election_timeout_ms) * DRAW(8, 12, 20);
	plan->max_steps = max_steps;
	plan->fault_interval = SIM_MS(plan->election_timeout_ms) * DRAW(2, 4, 8) / 4;
	plan->client_interval = SIM_MS(plan->election_timeout_ms) / DRAW(2, 8, 20);
	plan->burst_max = DRAW(1, 8, 8, 40);
	if (plan->window_slots == 256 && sim_chance(sim, SIM_MILLION / 5))
		plan->burst_max = 400;
	plan->payload_max = DRAW(16, 300, 300, 3000, 3000, 40000);
	plan->read_share = DRAW(0, SIM_MILLION / 4, SIM_MILLION / 2);
	plan->leader_share = DRAW(0, SIM_MILLION / 2, SIM_MILLION * 9 / 10);
	sim_fault_plan(sim);
}

/* ---- the loop ---- */

static void
frame_arrives(Sim *sim, SimFrame *frame)
{
	SimNode    *node = &sim->nodes[frame->to];

	if (frame->sent_at < sim->forget_before || sim_node_answers(sim, node, frame) ||
		!sim_node_input(sim, node, (SimInput) {.kind = SIM_INPUT_FRAME, .frame = frame}))
		sim_frame_release(frame);
}

static void
happens(Sim *sim, const SimEvent *event)
{
	SimNode    *node = &sim->nodes[event->node];

	switch (event->kind)
	{
		case SIM_FRAME:
			frame_arrives(sim, event->frame);
			break;
		case SIM_WAKE:
			if (node->life == event->life && node->wake_at == event->at)
				sim_node_wake(sim, node);
			break;
		case SIM_SYNC:
			if (node->life == event->life)
				sim_journal_sync_done(sim, node, event->argument);
			break;
		case SIM_RESTART:
			if (node->life == event->life)
				sim_node_start(sim, node);
			break;
		case SIM_FAULT:
			if (sim->faulty)
				sim_fault_next(sim);
			break;
		case SIM_CLIENT:
			if (sim->faulty)
				sim_client_next(sim);
			break;
		case SIM_ACTION:
			sim_fault_action(sim, event);
			break;
	}
}

/* Lets everything happen that is due until then. */
void
sim_advance(Sim *sim, SimTime until)
{
	SimEvent	event;

	while (!(sim->faulty && sim->steps >= sim->plan.max_steps) && sim_next_event(sim, until, &event))
	{
		sim->now = event.at;
		sim->steps++;
		happens(sim, &event);
	}
	if (sim->now < until)
		sim->now = until;
}

/* ---- begin and end ---- */

static void
found_cluster(Sim *sim)
{
	uint8_t		buffer[1 + PAXOS_MAX_MEMBERS * 5];
	size_t		length;

	for (uint32_t id = 1; id <= sim->plan.founder_count; id++)
	{
		sim->nodes[id].id = id;
		sim->config.members[sim->config.member_count++] = (PaxosMember) {.node_id = id, .is_voter = true};
	}
	for (uint32_t id = 1; id <= SIM_MAX_NODES; id++)
		sim->nodes[id].id = id;
	sim->goal = 3;
	length = paxos_config_encode(&sim->config, buffer, sizeof(buffer));
	sim_check(sim, length > 0, "configuration_encodes", "founders", sim->plan.founder_count, length);
	sim->founders = sim_value_add(sim, PAXOS_VALUE_CONFIG, (PaxosProposalId) {0, 0, 0}, buffer, (uint32_t) length);
	for (uint32_t id = 1; id <= sim->plan.founder_count; id++)
		sim_node_create(sim, id, 0, sim->founders);
}

static void
close_run(Sim *sim)
{
	SimEvent	event;

	for (uint32_t id = 1; id <= SIM_MAX_NODES; id++)
		sim_node_crash(sim, &sim->nodes[id], SIM_FOREVER);
	sim_check(sim, sim->allocations == 0, "memory_returned", "blocks and bytes are left", (uint64_t) sim->allocations,
			  (uint64_t) sim->allocated_bytes);
	while (sim_next_event(sim, SIM_FOREVER, &event))
		if (event.kind == SIM_FRAME)
			sim_frame_release(event.frame);
	for (uint32_t id = 1; id <= SIM_MAX_NODES; id++)
	{
		sim_base_free(sim->nodes[id].base);
		sim_base_free(sim->nodes[id].incoming);
		free(sim->nodes[id].journal.records);
		free(sim->nodes[id].journal.last_record);
		free(sim->nodes[id].inputs);
	}
	for (PaxosSlot slot = 1; slot < sim->slot_capacity; slot++)
		free(sim->slots[slot].votes);
	free(sim->slots);
	free(sim->ballot_uses);
	free(sim->events);
	sim_values_free(sim);
}

/* False if an invariant was broken; the memory of such a run is not returned. */
bool
sim_run(Sim *sim, uint64_t seed, uint64_t max_steps, bool trace)
{
	memset(sim, 0, sizeof(*sim));
	current = sim;
	sim->seed = seed;
	sim->trace = trace;
	sim->allocator = (PaxosAllocator) {.allocate = allocate, .release = release, .context = sim};
	sim_random_seed(&sim->random, seed);
	sim_values_init(sim);
	if (setjmp(sim->failed) != 0)
		return false;
	draw_plan(sim, max_steps);
	sim->faulty = true;
	found_cluster(sim);
	sim_schedule(sim, (SimEvent) {.at = sim_below(sim, SIM_MS(sim->plan.election_timeout_ms)), .kind = SIM_CLIENT});
	sim_schedule(sim, (SimEvent) {.at = sim_below(sim, SIM_MS(3 * sim->plan.election_timeout_ms)), .kind = SIM_FAULT});
	sim_advance(sim, sim->plan.fault_phase);
	sim_heal(sim);
	sim_check_liveness(sim);
	if (!sim->stuck && sim_chance(sim, SIM_MILLION / 3))
		sim_check_calm(sim);
	close_run(sim);
	return true;
}
