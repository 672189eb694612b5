/*
 * origins.c
 *	  Deduplication of proposals, and its bytes.
 *
 * Process: consensus worker, whatever compacts the log, tests.  Must never depend on anything but the ids that were noted and their order.
 *
 * Bytes, all numbers big endian:
 *
 *	 u8 version (1), u32 count, then per origin: u32 node_id, u64 incarnation, u64 highest_sequence, and PAXOS_DEDUP_WINDOW bits, one for
 *	 each of (highest_sequence - PAXOS_DEDUP_WINDOW, highest_sequence], as u64 words: bit sequence % 64 of word sequence / 64 % words.
 *
 * Invariants
 *	 1. highest_sequence is at least 1, and its bit is set; the bits of sequences below 1 are not.
 *	 2. No node stands there twice.
 */
#include "origins.h"

#include <string.h>

#define ORIGINS_VERSION 1
#define HEADER_BYTES 5
#define BITS_WORDS (PAXOS_DEDUP_WINDOW / 64)
#define ORIGIN_BYTES (4 + 8 + 8 + BITS_WORDS * 8)
#define MAX_SEQUENCE (UINT64_C(1) << 62)	/* as on the wire */

void
paxos_origins_init(PaxosOrigins *origins, const PaxosAllocator *allocator)
{
	memset(origins, 0, sizeof(*origins));
	origins->allocator = *allocator;
}

void
paxos_origins_free(PaxosOrigins *origins)
{
	if (origins->items != NULL)
		origins->allocator.release(origins->allocator.context, origins->items);
	origins->items = NULL;
	origins->count = origins->capacity = 0;
}

static PaxosOrigin *
find(const PaxosOrigins *origins, uint32_t node_id)
{
	for (size_t i = 0; i < origins->count; i++)
		if (origins->items[i].node_id == node_id)
			return &origins->items[i];
	return NULL;
}

static void
reserve(PaxosOrigins *origins, size_t capacity)
{
	PaxosOrigin *items;

	if (capacity <= origins->capacity)
		return;
	items = origins->allocator.allocate(origins->allocator.context, capacity * sizeof(PaxosOrigin));
	PAXOS_ASSERT(items != NULL);
	if (origins->count > 0)
		memcpy(items, origins->items, origins->count * sizeof(PaxosOrigin));
	if (origins->items != NULL)
		origins->allocator.release(origins->allocator.context, origins->items);
	origins->items = items;
	origins->capacity = capacity;
}

static PaxosOrigin *
add(PaxosOrigins *origins, uint32_t node_id)
{
	PaxosOrigin *origin;

	if (origins->count == origins->capacity)
		reserve(origins, origins->capacity == 0 ? 8 : origins->capacity * 2);
	origin = &origins->items[origins->count++];
	memset(origin, 0, sizeof(*origin));
	origin->node_id = node_id;
	return origin;
}

/* ---- noting ---- */

static bool
has_bit(const PaxosOrigin *origin, uint64_t sequence)
{
	uint64_t	bit = sequence & (PAXOS_DEDUP_WINDOW - 1);

	return (origin->delivered_bits[bit / 64] >> (bit % 64) & 1) != 0;
}

/* An older start of the origin, delivered before, or so old that it can't be told: an origin never has so many outstanding. */
static bool
is_duplicate_of(const PaxosOrigin *origin, PaxosProposalId id)
{
	if (id.incarnation != origin->incarnation)
		return id.incarnation < origin->incarnation;
	if (id.sequence > origin->highest_sequence)
		return false;
	if (origin->highest_sequence - id.sequence >= PAXOS_DEDUP_WINDOW)
		return true;
	return has_bit(origin, id.sequence);
}

static void
note_delivered(PaxosOrigin *origin, PaxosProposalId id)
{
	uint64_t	bit = id.sequence & (PAXOS_DEDUP_WINDOW - 1);

	if (id.incarnation > origin->incarnation ||
		(id.sequence > origin->highest_sequence && id.sequence - origin->highest_sequence >= PAXOS_DEDUP_WINDOW))
	{
		memset(origin->delivered_bits, 0, sizeof(origin->delivered_bits));
		origin->incarnation = id.incarnation;
		origin->highest_sequence = id.sequence;
	}
	while (origin->highest_sequence < id.sequence)
	{
		uint64_t	gone = ++origin->highest_sequence & (PAXOS_DEDUP_WINDOW - 1);

		origin->delivered_bits[gone / 64] &= ~(UINT64_C(1) << (gone % 64));
	}
	origin->delivered_bits[bit / 64] |= UINT64_C(1) << (bit % 64);
}

bool
paxos_origins_is_duplicate(const PaxosOrigins *origins, PaxosProposalId id)
{
	const PaxosOrigin *origin = find(origins, id.origin);

	return origin != NULL && is_duplicate_of(origin, id);
}

bool
paxos_origins_note(PaxosOrigins *origins, PaxosProposalId id)
{
	PaxosOrigin *origin = find(origins, id.origin);

	PAXOS_ASSERT(id.origin != 0 && id.sequence > 0 && id.sequence < MAX_SEQUENCE);
	if (origin == NULL)
		origin = add(origins, id.origin);
	else if (is_duplicate_of(origin, id))
		return true;
	note_delivered(origin, id);
	return false;
}

/* ---- bytes ---- */

static uint8_t *
put(uint8_t *at, uint64_t number, unsigned size)
{
	for (unsigned i = 0; i < size; i++)
		at[i] = (uint8_t) (number >> (8 * (size - 1 - i)));
	return at + size;
}

static uint64_t
get(const uint8_t **at, unsigned size)
{
	uint64_t	number = 0;

	for (unsigned i = 0; i < size; i++)
		number = number << 8 | *(*at)++;
	return number;
}

size_t
paxos_origins_size(const PaxosOrigins *origins)
{
	return HEADER_BYTES + origins->count * ORIGIN_BYTES;
}

size_t
paxos_origins_encode(const PaxosOrigins *origins, uint8_t *buffer, size_t capacity)
{
	size_t		size = paxos_origins_size(origins);
	uint8_t    *at = buffer;

	PAXOS_ASSERT(origins->count <= UINT32_MAX);
	if (size > capacity)
		return 0;
	at = put(at, ORIGINS_VERSION, 1);
	at = put(at, origins->count, 4);
	for (size_t i = 0; i < origins->count; i++)
	{
		const PaxosOrigin *origin = &origins->items[i];

		at = put(at, origin->node_id, 4);
		at = put(at, origin->incarnation, 8);
		at = put(at, origin->highest_sequence, 8);
		for (int word = 0; word < BITS_WORDS; word++)
			at = put(at, origin->delivered_bits[word], 8);
	}
	PAXOS_ASSERT(at == buffer + size);
	return size;
}

static bool
is_sane(const PaxosOrigins *before, const PaxosOrigin *origin)
{
	if (origin->node_id == 0 || find(before, origin->node_id) != NULL ||
		origin->highest_sequence == 0 || origin->highest_sequence >= MAX_SEQUENCE || !has_bit(origin, origin->highest_sequence))
		return false;
	/* Sequence 0 and what would be below it have the places from highest_sequence + 1 to PAXOS_DEDUP_WINDOW. */
	for (uint64_t place = origin->highest_sequence + 1; place <= PAXOS_DEDUP_WINDOW; place++)
		if (has_bit(origin, place))
			return false;
	return true;
}

bool
paxos_origins_decode(PaxosOrigins *origins, const uint8_t *bytes, size_t length)
{
	const uint8_t *at = bytes + 1;
	PaxosOrigins decoded;
	uint64_t	count;
	bool		sane = true;

	if (length < HEADER_BYTES || bytes[0] != ORIGINS_VERSION)
		return false;
	count = get(&at, 4);
	if (count > (length - HEADER_BYTES) / ORIGIN_BYTES || length != HEADER_BYTES + count * ORIGIN_BYTES)
		return false;
	paxos_origins_init(&decoded, &origins->allocator);
	reserve(&decoded, count);
	for (uint64_t i = 0; i < count && sane; i++)
	{
		PaxosOrigin origin;

		origin.node_id = (uint32_t) get(&at, 4);
		origin.incarnation = get(&at, 8);
		origin.highest_sequence = get(&at, 8);
		for (int word = 0; word < BITS_WORDS; word++)
			origin.delivered_bits[word] = get(&at, 8);
		sane = is_sane(&decoded, &origin);
		if (sane)
			decoded.items[decoded.count++] = origin;
	}
	if (sane)
	{
		paxos_origins_free(origins);
		*origins = decoded;
	}
	else
		paxos_origins_free(&decoded);
	return sane;
}
