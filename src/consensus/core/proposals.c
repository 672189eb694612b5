/*
 * proposals.c
 *	  What this node proposed and has not yet learned, and its way to the leader.
 *
 * Process: consensus worker, tests.  Must never let go of a proposal before it is delivered here.
 *
 * The origin of a value keeps it and sends it again, to whoever leads, until it learns it; so a value may be proposed in two slots, and
 * takes effect in the first (learner.c).  A leader does not place an id that it knows as delivered or open, which keeps the log short but is no
 * promise.
 *
 * Invariants
 *	 1. The sequences outstanding at one time span less than PAXOS_DEDUP_WINDOW, so none is ever taken for too old.
 *	 2. outstanding_next is the first that was not yet placed or forwarded since the leader changed or the last repetition.
 *	 3. forward_deadline_ms is that of the oldest one under way: what is proposed later does not put it off, its delivery does.
 *	 4. A configuration is taken by a ready leader alone, and not sent again: if its leader is deposed before it is chosen it
 *		may be lost, and whoever asked for it sees another configuration, or none, in force.
 */
#include "paxos_internal.h"

#define ORIGIN_SHARE 4			/* a node has at most such a part of the window's bytes outstanding: the leader's own would leave the others no room */

static PaxosValue **
outstanding_place(PaxosCore *core, uint64_t sequence)
{
	return &core->outstanding[sequence & (PAXOS_DEDUP_WINDOW - 1)];
}

static PaxosProposalId
own_id(const PaxosCore *core, uint64_t sequence)
{
	PaxosProposalId id = {core->settings.node_id, core->settings.incarnation, sequence};

	return id;
}

void
proposals_create(PaxosCore *core)
{
	core->outstanding = core_allocate(core, PAXOS_DEDUP_WINDOW * sizeof(PaxosValue *));
}

void
proposals_free(PaxosCore *core)
{
	OpenSlots  *open_slots = core->open_slots.items;

	for (int i = 0; core->outstanding != NULL && i < PAXOS_DEDUP_WINDOW; i++)
		core_drop_value(core, core->outstanding[i]);
	core_release(core, core->outstanding);
	core->outstanding = NULL;
	for (size_t i = 0; i < core->open_slots.count; i++)
		core_release(core, open_slots[i].slots);
	vector_free(core, &core->open_slots);
}

/* ---- what a leader knows of an id ---- */

static PaxosSlot *
open_slots_of(const PaxosCore *core, uint32_t node_id)
{
	const OpenSlots *items = core->open_slots.items;

	for (size_t i = 0; i < core->open_slots.count; i++)
		if (items[i].node_id == node_id)
			return items[i].slots;
	return NULL;
}

static bool
is_open_or_delivered(const PaxosCore *core, PaxosProposalId id)
{
	const PaxosSlot *open_slots = open_slots_of(core, id.origin);
	const Slot *entry;

	if (paxos_origins_is_duplicate(&core->origins, id))
		return true;
	if (open_slots == NULL)
		return false;
	entry = window_get(core, open_slots[id.sequence & (PAXOS_DEDUP_WINDOW - 1)]);
	return entry != NULL && entry->value != NULL && ballot_equal(entry->proposed_ballot, core->ballot) &&
		proposal_id_equal(entry->value->id, id);
}

void
proposals_placed(PaxosCore *core, PaxosSlot slot, PaxosProposalId id)
{
	PaxosSlot  *open_slots = open_slots_of(core, id.origin);

	if (open_slots == NULL)
	{
		OpenSlots  *added = vector_add(core, &core->open_slots, sizeof(OpenSlots));

		added->node_id = id.origin;
		added->slots = open_slots = core_allocate(core, PAXOS_DEDUP_WINDOW * sizeof(PaxosSlot));
	}
	open_slots[id.sequence & (PAXOS_DEDUP_WINDOW - 1)] = slot;
}

/* ---- new ones of this node ---- */

/* Members stand in front of the host's own bytes.  One change at a time; it is placed when every slot before it is delivered. */
static bool
propose_config(PaxosCore *core, const PaxosEvent *event)
{
	PaxosConfig config;
	PaxosProposalId id = own_id(core, event->sequence);

	if (!core->is_ready || core->transfer_to != 0 || core->barrier_slot != 0 || core->waiting_config != NULL || is_open_or_delivered(core, id) ||
		paxos_config_decode(&config, event->bytes, event->length) == 0 ||
		!config_change_is_allowed(&core->config, &config))
		return false;
	core->waiting_config = paxos_value_make(&core->allocator, PAXOS_VALUE_CONFIG, id, event->bytes, event->length);
	proposer_place(core);
	core->send_due = true;
	return true;
}

static bool
may_keep(PaxosCore *core, const PaxosEvent *event)
{
	uint64_t	low = event->sequence;
	uint64_t	high = event->sequence;

	if (paxos_origins_is_duplicate(&core->origins, own_id(core, event->sequence)))
		return false;
	if (core->outstanding_count == 0)
		return true;
	if (core->outstanding_count >= core->settings.max_outstanding_proposals ||
		core->outstanding_bytes + event->length > core->settings.window_bytes / ORIGIN_SHARE)
		return false;
	low = min_u64(low, core->outstanding_low);
	high = max_u64(high, core->outstanding_high);
	return high - low < PAXOS_DEDUP_WINDOW && *outstanding_place(core, event->sequence) == NULL;
}

static void
keep(PaxosCore *core, const PaxosEvent *event)
{
	bool		is_first = core->outstanding_count == 0;

	*outstanding_place(core, event->sequence) =
		paxos_value_make(&core->allocator, PAXOS_VALUE_DATA, own_id(core, event->sequence), event->bytes, event->length);
	core->outstanding_low = is_first ? event->sequence : min_u64(core->outstanding_low, event->sequence);
	core->outstanding_high = is_first ? event->sequence : max_u64(core->outstanding_high, event->sequence);
	core->outstanding_next = is_first ? event->sequence : min_u64(core->outstanding_next, event->sequence);
	core->outstanding_count++;
	core->outstanding_bytes += event->length;
}

void
proposals_on_event(PaxosCore *core, const PaxosEvent *event)
{
	PAXOS_ASSERT(event->sequence > 0 && event->sequence < PAXOS_MAX_NUMBER);
	PAXOS_ASSERT(event->kind == PAXOS_VALUE_DATA || event->kind == PAXOS_VALUE_CONFIG);
	if (event->length > PAXOS_MAX_VALUE_BYTES)
		core->proposal_refused = true;
	else if (event->kind == PAXOS_VALUE_CONFIG)
		core->proposal_refused = !propose_config(core, event);
	else if (!may_keep(core, event))
		core->proposal_refused = true;
	else
	{
		keep(core, event);
		if (is_leader(core))
			proposer_place(core);	/* its record joins the host's next sync */
		core->send_due = true;
	}
}

/* The one at outstanding_next or the first after it; NULL: no more. */
static PaxosValue *
skip_to_next(PaxosCore *core)
{
	if (core->outstanding_count == 0)
		return NULL;
	for (; core->outstanding_next <= core->outstanding_high; core->outstanding_next++)
	{
		PaxosValue *value = *outstanding_place(core, core->outstanding_next);

		if (value != NULL)
			return value;
	}
	return NULL;
}

PaxosValue *
proposals_next(PaxosCore *core)
{
	PaxosValue *value;

	while ((value = skip_to_next(core)) != NULL && is_open_or_delivered(core, value->id))
		core->outstanding_next++;
	return value;
}

void
proposals_delivered(PaxosCore *core, PaxosProposalId id)
{
	PaxosValue **place = outstanding_place(core, id.sequence);
	PaxosValue *value = *place;

	if (id.origin != core->settings.node_id || id.incarnation != core->settings.incarnation ||
		value == NULL || value->id.sequence != id.sequence)
		return;
	core->outstanding_count--;
	core->outstanding_bytes -= value->length;
	if (id.sequence == core->outstanding_low)
		core->forward_deadline_ms = core->now_ms + core->settings.resend_interval_ms;
	if (id.sequence < core->outstanding_next)
		core->forwarded_bytes -= min_u64(core->forwarded_bytes, message_entry_size(PAXOS_MESSAGE_FORWARD, value->length));
	*place = NULL;
	core_drop_value(core, value);
	while (core->outstanding_count > 0 && *outstanding_place(core, core->outstanding_low) == NULL)
		core->outstanding_low++;
	core->outstanding_next = max_u64(core->outstanding_next, core->outstanding_low);
}

/* ---- to the leader ---- */

void
proposals_leader_changed(PaxosCore *core)
{
	core->outstanding_next = core->outstanding_low;
	core->forwarded_bytes = 0;
	core->send_due |= core->outstanding_count > 0;
}

static bool
has_foreign_leader(const PaxosCore *core)
{
	return core->leader_id != 0 && core->leader_id != core->settings.node_id;
}

/* One frame; returns its bytes, 0 if there is nothing to send. */
static size_t
forward_frame(PaxosCore *core)
{
	PaxosMessage *forward;
	PaxosMessageEntry *entries;
	PaxosValue *value = skip_to_next(core);
	size_t		bytes = 0;

	if (value == NULL)
		return 0;
	forward = core_new_message(core, PAXOS_MESSAGE_FORWARD);
	entries = arena_allocate(core, PAXOS_MAX_ENTRIES_PER_MESSAGE * sizeof(PaxosMessageEntry));
	forward->entries = entries;
	while (value != NULL && forward->entry_count < PAXOS_MAX_ENTRIES_PER_MESSAGE)
	{
		size_t		entry_bytes = message_entry_size(PAXOS_MESSAGE_FORWARD, value->length);

		if (forward->entry_count > 0 && bytes + entry_bytes > PAXOS_FRAME_TARGET_BYTES)
			break;
		core_fill_entry(&entries[forward->entry_count++], 0, (PaxosBallot) {0, 0}, value);
		bytes += entry_bytes;
		core->outstanding_next++;
		value = skip_to_next(core);
	}
	core_send(core, core->leader_id, forward);
	return bytes;
}

void
proposals_flush(PaxosCore *core)
{
	if (core->outstanding_count == 0 || !has_foreign_leader(core))
		return;
	if (core->now_ms >= core->forward_deadline_ms && core->outstanding_next > core->outstanding_low)
	{
		/* Lost on its way. */
		core->outstanding_next = core->outstanding_low;
		core->forwarded_bytes = 0;
	}
	while (core->forwarded_bytes < MAX_FORWARDED_BYTES)
	{
		bool		none_under_way = core->outstanding_next <= core->outstanding_low;
		size_t		bytes = forward_frame(core);

		if (bytes == 0)
			break;
		core->forwarded_bytes += bytes;
		if (none_under_way)
			core->forward_deadline_ms = core->now_ms + core->settings.resend_interval_ms;
	}
}

uint64_t
proposals_deadline(const PaxosCore *core)
{
	return core->outstanding_count > 0 && has_foreign_leader(core) ? core->forward_deadline_ms : UINT64_MAX;
}

/* At the leader: what finds no room is dropped, and asked for when there is room again. */
void
proposals_on_forward(PaxosCore *core, uint32_t from, const PaxosMessage *message)
{
	Peer	   *peer = config_peer(core, from);

	if (!is_leader(core) || peer == NULL)
		return;
	for (uint32_t i = 0; i < message->entry_count; i++)
	{
		const PaxosMessageEntry *entry = &message->entries[i];

		if (!proposer_may_propose(core) || !window_make_room(core, core->next_slot, entry->length))
		{
			peer->forwards_dropped = true;
			peer->dropped_length = entry->length;
			break;
		}
		if (entry->id.origin == from && !is_open_or_delivered(core, entry->id))
			proposer_propose(core, core_value_from_entry(core, entry));
	}
}

/* For a fair part of the window, so that it is not asked again for each slot. */
void
proposals_ask_again(PaxosCore *core, Peer *peer)
{
	PaxosMessage *again;

	if (!peer->forwards_dropped || !proposer_may_propose(core) ||
		core->next_slot + core->window.capacity / 4 > window_last_slot(core) ||
		!window_make_room(core, core->next_slot, peer->dropped_length))
		return;
	peer->forwards_dropped = false;
	again = core_new_message(core, PAXOS_MESSAGE_FORWARD_AGAIN);
	again->ballot = core->ballot;
	core_send(core, peer->node_id, again);
}

void
proposals_on_forward_again(PaxosCore *core, uint32_t from, const PaxosMessage *message)
{
	if (from == core->leader_id && ballot_equal(message->ballot, core->leader_ballot))
		proposals_leader_changed(core);
}
