/*
 * slot_window.c
 *	  The slots that are held in memory: those still open, and as many delivered ones before them as there is room for.
 *
 * Process: consensus worker, tests.  Must never drop a slot that is not delivered.
 *
 * Invariants
 *	 1. Slot s stands at s & (capacity - 1); at most one slot stands there, told by Slot.slot.
 *	 2. Only slots up to delivered_slot + capacity are opened, so an older slot in the same place is delivered.
 *	 3. The value of each slot in [base_slot, delivered_slot] is held; of slots below base_slot none is.
 *	 4. A slot that leaves the ring is covered by a CHOSEN record before (learner_hint), so that recovery, which reads the records
 *		in order, never needs more slots at once than there were here.
 *	 5. `bytes` is the sum over all accepted values held.  Values only reported in phase 1 are not counted: there are no more
 *		of them than the acceptors had room for.
 */
#include "paxos_internal.h"

#include <string.h>

static uint64_t
value_bytes(const PaxosValue *value)
{
	return VALUE_OVERHEAD_BYTES + (uint64_t) value->length;
}

void
window_create(PaxosCore *core)
{
	SlotWindow *window = &core->window;

	window->capacity = core->settings.window_slots;
	window->slots = core_allocate(core, window->capacity * sizeof(Slot));
	window->base_slot = 1;
}

void
window_set_base(PaxosCore *core, PaxosSlot delivered_slot)
{
	core->window.base_slot = delivered_slot + 1;
	core->window.max_accepted_slot = delivered_slot;
}

static void
clear_slot(PaxosCore *core, Slot *entry)
{
	if (entry->value != NULL)
		core->window.bytes -= value_bytes(entry->value);
	core_drop_value(core, entry->value);
	core_drop_value(core, entry->reported_value);
	memset(entry, 0, sizeof(*entry));
}

void
window_free(PaxosCore *core)
{
	SlotWindow *window = &core->window;

	if (window->slots == NULL)
		return;
	for (uint64_t i = 0; i < window->capacity; i++)
		clear_slot(core, &window->slots[i]);
	core_release(core, window->slots);
	window->slots = NULL;
}

Slot *
window_get(const PaxosCore *core, PaxosSlot slot)
{
	Slot	   *entry = &core->window.slots[slot & (core->window.capacity - 1)];

	return slot != 0 && entry->slot == slot ? entry : NULL;
}

PaxosSlot
window_last_slot(const PaxosCore *core)
{
	return core->delivered_slot + core->window.capacity;
}

/* Lets the oldest delivered slots go, up to and including `slot`. */
static void
evict_up_to(PaxosCore *core, PaxosSlot slot)
{
	SlotWindow *window = &core->window;

	PAXOS_ASSERT(slot <= core->delivered_slot);
	if (slot > core->hinted_slot && core->started)
		learner_hint(core);
	while (window->base_slot <= slot)
	{
		Slot	   *entry = window_get(core, window->base_slot);

		if (entry != NULL)
			clear_slot(core, entry);
		window->base_slot++;
	}
}

Slot *
window_open(PaxosCore *core, PaxosSlot slot)
{
	Slot	   *entry = &core->window.slots[slot & (core->window.capacity - 1)];

	PAXOS_ASSERT(slot > core->delivered_slot && slot <= window_last_slot(core));
	if (entry->slot == slot)
		return entry;
	if (entry->slot != 0)
	{
		PAXOS_ASSERT(entry->slot < slot);
		evict_up_to(core, entry->slot);
	}
	entry->slot = slot;
	return entry;
}

void
window_grow(PaxosCore *core, PaxosSlot slot)
{
	SlotWindow *window = &core->window;
	Slot	   *old_slots = window->slots;
	uint64_t	old_capacity = window->capacity;

	PAXOS_ASSERT(!core->started);
	while (slot - core->delivered_slot > window->capacity)
		window->capacity *= 2;
	if (window->capacity == old_capacity)
		return;
	window->slots = core_allocate(core, window->capacity * sizeof(Slot));
	for (uint64_t i = 0; i < old_capacity; i++)
		if (old_slots[i].slot != 0)
			window->slots[old_slots[i].slot & (window->capacity - 1)] = old_slots[i];
	core_release(core, old_slots);
}

/*
 * The lowest undelivered slot is always let in: without it nothing else here can move.
 */
bool
window_make_room(PaxosCore *core, PaxosSlot slot, uint32_t length)
{
	SlotWindow *window = &core->window;
	uint64_t	needed = VALUE_OVERHEAD_BYTES + (uint64_t) length;

	while (window->bytes + needed > core->settings.window_bytes && window->base_slot <= core->delivered_slot)
		evict_up_to(core, window->base_slot);
	return window->bytes + needed <= core->settings.window_bytes || slot == core->delivered_slot + 1;
}

void
window_set_accepted(PaxosCore *core, Slot *entry, PaxosBallot ballot, PaxosValue *value)
{
	if (entry->value != NULL)
		core->window.bytes -= value_bytes(entry->value);
	core_drop_value(core, entry->value);
	entry->value = value;
	entry->accepted_ballot = ballot;
	core->window.bytes += value_bytes(value);
	core->window.max_accepted_slot = max_u64(core->window.max_accepted_slot, entry->slot);
}

void
window_set_reported(PaxosCore *core, Slot *entry, PaxosBallot ballot, PaxosValue *value)
{
	core_drop_value(core, entry->reported_value);
	entry->reported_value = value;
	entry->reported_ballot = ballot;
	core->window.max_reported_slot = max_u64(core->window.max_reported_slot, entry->slot);
}

void
window_clear_reports(PaxosCore *core)
{
	SlotWindow *window = &core->window;

	for (PaxosSlot slot = core->delivered_slot + 1; slot <= window->max_reported_slot; slot++)
	{
		Slot	   *entry = window_get(core, slot);

		if (entry == NULL)
			continue;
		core_drop_value(core, entry->reported_value);
		entry->reported_value = NULL;
		entry->reported_ballot = (PaxosBallot) {0, 0};
	}
	window->max_reported_slot = 0;
}

void
window_forget_votes(PaxosCore *core)
{
	for (uint64_t i = 0; i < core->window.capacity; i++)
		core->window.slots[i].votes = 0;
}

/* What it has accepted in this ballot is durable there, and reported once more. */
void
window_forget_votes_of(PaxosCore *core, uint32_t member_index, PaxosSlot first_slot)
{
	for (PaxosSlot slot = max_u64(first_slot, core->window.base_slot); slot <= window_last_slot(core); slot++)
	{
		Slot	   *entry = window_get(core, slot);

		if (entry != NULL)
			entry->votes &= ~(UINT32_C(1) << member_index);
	}
}
