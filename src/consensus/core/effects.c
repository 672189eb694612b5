/*
 * effects.c
 *	  Memory of the core, and the lists that a step hands to its host.
 *
 * Process: consensus worker, tests.  Must never decide anything of the protocol.
 *
 * Invariants
 *	 1. Whatever an effect points to lives until the next step: values that a step lets go are released by the next one, and
 *		messages stand in an arena that the next one empties.
 *	 2. Record numbers are 1, 2, 3, … without gaps.
 */
#include "paxos_internal.h"

#include <string.h>

#define ARENA_BLOCK_BYTES (64u * 1024)

/* ---- memory ---- */

void *
core_allocate(PaxosCore *core, size_t size)
{
	void	   *pointer = core->allocator.allocate(core->allocator.context, size);

	PAXOS_ASSERT(pointer != NULL);
	memset(pointer, 0, size);
	return pointer;
}

void
core_release(PaxosCore *core, void *pointer)
{
	if (pointer != NULL)
		core->allocator.release(core->allocator.context, pointer);
}

void *
vector_add(PaxosCore *core, Vector *vector, size_t item_size)
{
	void	   *item;

	if (vector->count == vector->capacity)
	{
		size_t		capacity = vector->capacity == 0 ? 16 : vector->capacity * 2;
		void	   *items = core_allocate(core, capacity * item_size);

		if (vector->count > 0)
			memcpy(items, vector->items, vector->count * item_size);
		core_release(core, vector->items);
		vector->items = items;
		vector->capacity = capacity;
	}
	item = (char *) vector->items + vector->count * item_size;
	memset(item, 0, item_size);
	vector->count++;
	return item;
}

void
vector_free(PaxosCore *core, Vector *vector)
{
	core_release(core, vector->items);
	memset(vector, 0, sizeof(*vector));
}

void *
arena_allocate(PaxosCore *core, size_t size)
{
	const size_t header = (sizeof(ArenaBlock) + 15) & ~(size_t) 15;
	ArenaBlock *block = core->arena;
	void	   *pointer;

	size = (size + 15) & ~(size_t) 15;
	if (block == NULL || block->capacity - block->used < size)
	{
		size_t		capacity = size > ARENA_BLOCK_BYTES ? size : ARENA_BLOCK_BYTES;

		block = core->allocator.allocate(core->allocator.context, header + capacity);
		PAXOS_ASSERT(block != NULL);
		block->next = core->arena;
		block->capacity = capacity;
		block->used = 0;
		core->arena = block;
	}
	pointer = (char *) block + header + block->used;
	block->used += size;
	memset(pointer, 0, size);
	return pointer;
}

/* Keeps one block of the usual size, so that a quiet node holds little. */
static void
arena_reset(PaxosCore *core)
{
	ArenaBlock *kept = NULL;

	while (core->arena != NULL)
	{
		ArenaBlock *block = core->arena;

		core->arena = block->next;
		if (kept == NULL && block->capacity == ARENA_BLOCK_BYTES)
			kept = block;
		else
			core_release(core, block);
	}
	if (kept != NULL)
	{
		kept->next = NULL;
		kept->used = 0;
	}
	core->arena = kept;
}

void
arena_free(PaxosCore *core)
{
	while (core->arena != NULL)
	{
		ArenaBlock *block = core->arena;

		core->arena = block->next;
		core_release(core, block);
	}
}

/* splitmix64 over what the host gave with each event. */
uint64_t
core_random_below(PaxosCore *core, uint64_t bound)
{
	uint64_t	mixed;

	core->random_state += UINT64_C(0x9E3779B97F4A7C15);
	mixed = core->random_state;
	mixed = (mixed ^ (mixed >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
	mixed = (mixed ^ (mixed >> 27)) * UINT64_C(0x94D049BB133111EB);
	mixed ^= mixed >> 31;
	return bound == 0 ? 0 : mixed % bound;
}

/* ---- a step's lists ---- */

void
effects_begin(PaxosCore *core)
{
	PaxosValue **dead = core->graveyard.items;

	for (size_t i = 0; i < core->graveyard.count; i++)
		paxos_value_release(&core->allocator, dead[i]);
	core->graveyard.count = 0;
	core->out_records.count = 0;
	core->out_messages.count = 0;
	core->out_catch_ups.count = 0;
	core->out_chosen.count = 0;
	core->out_reads.count = 0;
	core->proposal_refused = false;
	core->transfer_refused = false;
	core->snapshot_is_news = false;
	arena_reset(core);
}

void
effects_fill(PaxosCore *core, PaxosEffects *effects)
{
	memset(effects, 0, sizeof(*effects));
	effects->records = core->out_records.items;
	effects->record_count = core->out_records.count;
	effects->messages = core->out_messages.items;
	effects->message_count = core->out_messages.count;
	effects->catch_ups = core->out_catch_ups.items;
	effects->catch_up_count = core->out_catch_ups.count;
	effects->chosen = core->out_chosen.items;
	effects->chosen_count = core->out_chosen.count;
	effects->reads = core->out_reads.items;
	effects->read_count = core->out_reads.count;
	effects->proposal_refused = core->proposal_refused;
	effects->transfer_refused = core->transfer_refused;
	if (core->snapshot_is_news)
	{
		effects->snapshot_needed = core->snapshot_needed;
		effects->snapshot_from = core->snapshot_from;
	}
}

void
core_drop_value(PaxosCore *core, PaxosValue *value)
{
	if (value != NULL)
		*(PaxosValue **) vector_add(core, &core->graveyard, sizeof(value)) = value;
}

uint64_t
core_emit_record(PaxosCore *core, PaxosRecordType type, PaxosSlot slot, PaxosBallot ballot, PaxosValue *value)
{
	PaxosRecord *record = vector_add(core, &core->out_records, sizeof(PaxosRecord));

	PAXOS_ASSERT(core->started);
	record->number = ++core->last_record;
	record->type = type;
	record->slot = slot;
	record->ballot = ballot;
	record->value = value;
	return record->number;
}

PaxosMessage *
core_new_message(PaxosCore *core, PaxosMessageType type)
{
	PaxosMessage *message = arena_allocate(core, sizeof(PaxosMessage));

	message->type = type;
	return message;
}

static PeerVersion *
find_peer_version(const PaxosCore *core, uint32_t node_id)
{
	PeerVersion *versions = core->peer_versions.items;

	for (size_t i = 0; i < core->peer_versions.count; i++)
		if (versions[i].node_id == node_id)
			return &versions[i];
	return NULL;
}

uint8_t
core_peer_version(const PaxosCore *core, uint32_t node_id)
{
	const PeerVersion *version = find_peer_version(core, node_id);

	return version == NULL ? PAXOS_OLDEST_FRAME_VERSION : version->frame_version;
}

void
paxos_set_peer_version(PaxosCore *core, uint32_t node_id, uint32_t frame_version)
{
	PeerVersion *version = find_peer_version(core, node_id);

	PAXOS_ASSERT(node_id != 0 && frame_version >= PAXOS_OLDEST_FRAME_VERSION);
	if (version == NULL)
		version = vector_add(core, &core->peer_versions, sizeof(PeerVersion));
	version->node_id = node_id;
	version->frame_version = (uint8_t) min_u64(frame_version, PAXOS_NEWEST_FRAME_VERSION);
}

/* A question that binds nobody, and how far this node is, which counts for no ballot. */
static bool
silent_may_send(const PaxosMessage *message)
{
	return message->type == PAXOS_MESSAGE_PRE_VOTE || (message->type == PAXOS_MESSAGE_REPORT && message->ballot.round == 0);
}

/* One message may go to many: those that understand another version than the first get a copy. */
void
core_send(PaxosCore *core, uint32_t to, PaxosMessage *message)
{
	PaxosOutMessage *out;
	uint8_t		version = core_peer_version(core, to);

	PAXOS_ASSERT(to != 0 && to != core->settings.node_id);
	PAXOS_ASSERT(version >= message_first_version(message->type));
	if (core->is_silent && !silent_may_send(message))
		return;
	if (message->version == 0)
		message->version = version;
	else if (message->version != version)
	{
		PaxosMessage *copy = arena_allocate(core, sizeof(PaxosMessage));

		*copy = *message;
		copy->version = version;
		message = copy;
	}
	out = vector_add(core, &core->out_messages, sizeof(PaxosOutMessage));
	out->to = to;
	out->message = message;
}

/* ---- values ---- */

bool
proposal_id_equal(PaxosProposalId a, PaxosProposalId b)
{
	return a.origin == b.origin && a.incarnation == b.incarnation && a.sequence == b.sequence;
}

PaxosValue *
paxos_value_make(const PaxosAllocator *allocator, PaxosValueKind kind, PaxosProposalId id,
				 const uint8_t *bytes, uint32_t length)
{
	PaxosValue *value = allocator->allocate(allocator->context, offsetof(PaxosValue, bytes) + (size_t) length);

	PAXOS_ASSERT(value != NULL);
	value->refcount = 1;
	value->kind = kind;
	value->id = id;
	value->length = length;
	if (length > 0)
		memcpy(value->bytes, bytes, length);
	return value;
}

PaxosValue *
paxos_value_retain(PaxosValue *value)
{
	PAXOS_ASSERT(value->refcount > 0);
	value->refcount++;
	return value;
}

void
paxos_value_release(const PaxosAllocator *allocator, PaxosValue *value)
{
	PAXOS_ASSERT(value->refcount > 0);
	if (--value->refcount == 0)
		allocator->release(allocator->context, value);
}

PaxosValue *
core_value_from_entry(PaxosCore *core, const PaxosMessageEntry *entry)
{
	return paxos_value_make(&core->allocator, entry->kind, entry->id, entry->bytes, entry->length);
}

void
core_fill_entry(PaxosMessageEntry *entry, PaxosSlot slot, PaxosBallot ballot, const PaxosValue *value)
{
	entry->slot = slot;
	entry->ballot = ballot;
	entry->kind = value->kind;
	entry->id = value->id;
	entry->bytes = value->bytes;
	entry->length = value->length;
}

/* The bytes are compared too: two values of one id would be a fault of their origin, and must not pass as one. */
bool
value_equals_entry(const PaxosValue *value, const PaxosMessageEntry *entry)
{
	return value->kind == entry->kind && proposal_id_equal(value->id, entry->id) && value->length == entry->length &&
		(entry->length == 0 || memcmp(value->bytes, entry->bytes, entry->length) == 0);
}
