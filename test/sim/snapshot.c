/*
 * snapshot.c
 *	  Logs that begin late: what a host finds when it compacts its journal, and what it gets from a donor when the slots it lacks are gone.
 *
 * A base is what follows from the log up to a slot (the core's base.h).  A node that trims moves its own base on, reading its journal as a
 * compaction process does, without the core, and drops a head of the journal; the journal keeps a promise as high as any ballot in what was
 * dropped.  A snapshot is the base of a donor at some slot, captured at one moment and installed at a later one: the node is killed, and starts
 * behind that slot with the journal that it had.
 *
 * Invariants
 *	1. base_follows_from_log: a base at a slot is the one that follows from the chosen values, byte for byte, whoever made it.
 *	2. base_is_restored: the core takes a base that was made for that slot.
 */
#include "sim.h"

#define BASE_BYTES_MAX (32 * 1024)

static void *
allocate_plain(void *context, size_t size)
{
	(void) context;
	return malloc(size);
}

static void
release_plain(void *context, void *pointer)
{
	(void) context;
	free(pointer);
}

static const PaxosAllocator plain = {allocate_plain, release_plain, NULL};

static SimBase *
base_make(Sim *sim)
{
	SimBase    *base = calloc(1, sizeof(SimBase));
	const SimValue *founders = &sim->values[sim->founders];

	paxos_origins_init(&base->origins, &plain);
	paxos_config_decode(&base->config, founders->bytes, founders->length);
	return base;
}

void
sim_base_free(SimBase *base)
{
	if (base == NULL)
		return;
	paxos_origins_free(&base->origins);
	free(base);
}

static size_t
base_encode(const SimBase *base, uint8_t *bytes)
{
	return paxos_base_encode(base->slot, &base->config, &base->origins, bytes, BASE_BYTES_MAX);
}

static SimBase *
base_copy(Sim *sim, const SimBase *from)
{
	uint8_t		bytes[BASE_BYTES_MAX];
	SimBase    *base = base_make(sim);

	if (from == NULL)
		return base;
	sim_check(sim, paxos_base_decode(&base->slot, &base->config, &base->origins, bytes, base_encode(from, bytes)), "base_is_restored",
			  "a base does not come back from its bytes; slot", from->slot, 0);
	return base;
}

/* The next entry of the log. */
static void
base_take(Sim *sim, SimBase *base, PaxosSlot slot, uint32_t number)
{
	const SimValue *value = &sim->values[number];

	base->slot = slot;
	if (number == 0 || paxos_origins_note(&base->origins, value->id) || value->kind != PAXOS_VALUE_CONFIG)
		return;
	paxos_config_decode(&base->config, value->bytes, value->length);
	base->config.slot = slot;
}

static void
check_base(Sim *sim, const SimBase *base)
{
	SimBase    *expected = base_make(sim);
	uint8_t		bytes[BASE_BYTES_MAX];
	uint8_t		expected_bytes[BASE_BYTES_MAX];
	size_t		length = base_encode(base, bytes);

	sim_check(sim, base->slot <= sim->chosen_prefix, "base_follows_from_log", "a base covers slots that are not chosen", base->slot,
			  sim->chosen_prefix);
	for (PaxosSlot slot = 1; slot <= base->slot; slot++)
		base_take(sim, expected, slot, sim_slot(sim, slot)->chosen_value);
	sim_check(sim, length > 0 && base_encode(expected, expected_bytes) == length && memcmp(bytes, expected_bytes, length) == 0,
			  "base_follows_from_log", "bytes differ at slot", base->slot, length);
	sim_base_free(expected);
}

/* The node's base, moved on to a slot that it has delivered, from its own journal. */
static SimBase *
base_at(Sim *sim, SimNode *node, PaxosSlot slot)
{
	SimBase    *base = base_copy(sim, node->base);

	for (PaxosSlot s = base->slot + 1; s <= slot; s++)
	{
		const SimRecord *record = sim_journal_last(node, s);

		sim_check(sim, record != NULL, "delivered_is_durable", "no record of a delivered slot", s, node->id);
		base_take(sim, base, s, record->value);
	}
	check_base(sim, base);
	return base;
}

static void
adopt_base(Sim *sim, SimNode *node, SimBase *base)
{
	sim_base_free(node->base);
	node->base = base;
	sim->bases++;
	sim_trace(sim, "base", node->id, base->slot, base->config.slot, base->origins.count);
	if (!sim_chance(sim, SIM_MILLION / 4))
		sim_journal_trim(sim, node, base->slot);	/* or there was nothing yet that a whole segment could be dropped for */
}

/* Up to some slot that is delivered, mostly the last one. */
void
sim_trim(Sim *sim, SimNode *node)
{
	PaxosSlot	from = sim_base_slot(node);
	PaxosSlot	slot = node->delivered;

	if (!node->alive || slot <= from)
		return;
	if (sim_chance(sim, SIM_MILLION / 2))
		slot = from + 1 + sim_below(sim, slot - from);
	adopt_base(sim, node, base_at(sim, node, slot));
}

PaxosSlot
sim_base_slot(const SimNode *node)
{
	return node->base == NULL ? 0 : node->base->slot;
}

void
sim_restore_base(Sim *sim, SimNode *node)
{
	uint8_t		bytes[BASE_BYTES_MAX];
	size_t		length;

	if (node->base == NULL)
		return;
	length = base_encode(node->base, bytes);
	sim_check(sim, length > 0 && paxos_restore_base(node->core, node->base->slot, bytes, length), "base_is_restored", "slot, node",
			  node->base->slot, node->id);
	node->delivered = node->base->slot;
}

/* ---- snapshots ---- */

static void
act(Sim *sim, SimActionKind action, uint32_t node, uint64_t argument)
{
	sim_schedule(sim, (SimEvent) {
		.at = sim->now + sim_below(sim, SIM_MS(2 * sim->plan.election_timeout_ms)), .kind = SIM_ACTION, .action = action,
		.node = node, .argument = argument
	});
}

/* The core was told that slots are gone.  A host looks for a donor in its own time, one at a time. */
void
sim_snapshot_needed(Sim *sim, SimNode *node, PaxosSlot first_held, uint32_t from)
{
	sim_trace(sim, "needs", node->id, first_held, from, 0);
	sim_check(sim, first_held > node->delivered + 1 && first_held <= sim->chosen_prefix + 1, "snapshot_is_needed",
			  "first held slot and what is delivered", first_held, node->delivered);
	if (node->snapshot_under_way || node->incoming != NULL)
		return;
	node->snapshot_under_way = true;
	act(sim, SIM_DO_SNAPSHOT, node->id, from);
}

/* A donor that is further; mostly the one that had said that slots are gone. */
void
sim_snapshot_capture(Sim *sim, SimNode *node, uint32_t from)
{
	SimNode    *donor = &sim->nodes[from];
	PaxosSlot	slot;

	node->snapshot_under_way = false;
	if (!donor->alive || donor->delivered <= node->delivered || sim_chance(sim, SIM_MILLION / 4))
		donor = &sim->nodes[1 + sim_below(sim, SIM_MAX_NODES)];
	if (!node->alive || !donor->alive || donor == node || donor->delivered <= node->delivered || node->incoming != NULL)
		return;					/* it is told again */
	slot = node->delivered + 1 + sim_below(sim, donor->delivered - node->delivered);
	if (slot < sim_base_slot(donor) || sim_chance(sim, SIM_MILLION / 2))
		slot = donor->delivered;
	node->incoming = base_at(sim, donor, slot);
	act(sim, SIM_DO_INSTALL, node->id, 0);
}

/* The tables are there.  If the log has brought more meanwhile they are of no use. */
void
sim_snapshot_install(Sim *sim, SimNode *node)
{
	SimBase    *incoming = node->incoming;

	node->incoming = NULL;
	if (incoming == NULL)
		return;
	if (!node->alive || incoming->slot <= node->delivered)
	{
		sim_base_free(incoming);
		return;
	}
	sim->snapshots++;
	sim_trace(sim, "install", node->id, incoming->slot, node->delivered, 0);
	sim_node_crash(sim, node, sim_below(sim, SIM_MS(sim->plan.election_timeout_ms)));
	adopt_base(sim, node, incoming);
}
