/*
 * certifier.c
 *	  The verdict over an entry, from the log alone.  Process: consensus worker (any program: this file is pure C).
 *
 * Must never look at anything but its arguments: every node has to come to the same verdict, at each replay.
 *
 * Invariants
 *	 1. map holds, for each key that is in ring, the highest index that it was put in with; for others nothing.
 *	 2. Each pair of key and mode that an entry above the floor took effect with is in the ring.
 *	 3. A verdict does not change anything unless it is CERTIFIER_APPLY.
 */
#include "shared/certifier.h"

#include <string.h>

typedef struct RecentIndex
{
	uint64_t	key;
	uint64_t	index;
} RecentIndex;

#define BIT(mode) (1u << (mode))

/* Modes of an earlier entry that a mode cannot follow unseen. */
static const uint32_t conflicting_modes[CERTIFIER_MODE_COUNT] = {
	[CERTIFIER_KEY_SHARE] = BIT(CERTIFIER_UPDATE),
	[CERTIFIER_SHARE] = BIT(CERTIFIER_NO_KEY_UPDATE) | BIT(CERTIFIER_UPDATE),
	[CERTIFIER_NO_KEY_UPDATE] = BIT(CERTIFIER_SHARE) | BIT(CERTIFIER_NO_KEY_UPDATE) | BIT(CERTIFIER_UPDATE),
	[CERTIFIER_UPDATE] = BIT(CERTIFIER_KEY_SHARE) | BIT(CERTIFIER_SHARE) | BIT(CERTIFIER_NO_KEY_UPDATE) | BIT(CERTIFIER_UPDATE),
	[CERTIFIER_TABLE_ROW_SHARE] = BIT(CERTIFIER_TABLE_EXCLUSIVE),
	[CERTIFIER_TABLE_ROW_EXCLUSIVE] = BIT(CERTIFIER_TABLE_SHARE) | BIT(CERTIFIER_TABLE_EXCLUSIVE),
	[CERTIFIER_TABLE_SHARE] = BIT(CERTIFIER_TABLE_ROW_EXCLUSIVE) | BIT(CERTIFIER_TABLE_EXCLUSIVE),
	[CERTIFIER_TABLE_EXCLUSIVE] = BIT(CERTIFIER_TABLE_ROW_SHARE) | BIT(CERTIFIER_TABLE_ROW_EXCLUSIVE) |
	BIT(CERTIFIER_TABLE_SHARE) | BIT(CERTIFIER_TABLE_EXCLUSIVE),
	[CERTIFIER_READ] = BIT(CERTIFIER_NO_KEY_UPDATE) | BIT(CERTIFIER_UPDATE),
	[CERTIFIER_TABLE_READ] = BIT(CERTIFIER_TABLE_ROW_EXCLUSIVE) | BIT(CERTIFIER_TABLE_EXCLUSIVE),
};

static bool
is_recorded(CertifierMode mode)
{
	return mode < CERTIFIER_READ;
}

/* The finalizer of MurmurHash3. */
static uint64_t
mix(uint64_t number)
{
	number ^= number >> 33;
	number *= UINT64_C(0xFF51AFD7ED558CCD);
	number ^= number >> 33;
	number *= UINT64_C(0xC4CEB9FE1A85EC53);
	return number ^ (number >> 33);
}

static uint64_t
key_of_mode(uint64_t hash, CertifierMode mode)
{
	return mix(hash + (mode + 1) * UINT64_C(0x9E3779B97F4A7C15));
}

/* Committed tokens and fenced ones are kept apart by their keys. */
static uint64_t
key_of_fence(uint64_t token)
{
	return mix(token ^ UINT64_C(0xFE4CEDFE4CEDFE4C));
}

/* ---- recent indexes ---- */

static size_t
recent_size(uint32_t capacity)
{
	return 3 * (size_t) capacity * sizeof(RecentIndex);
}

static void
recent_init(RecentIndexes *recent, void *memory, uint32_t capacity)
{
	recent->capacity = capacity;
	recent->put_count = 0;
	recent->ring = memory;
	recent->map = recent->ring + capacity;
}

static uint32_t
map_mask(const RecentIndexes *recent)
{
	return 2 * recent->capacity - 1;
}

/* Where the key is, or would be. */
static uint32_t
map_place(const RecentIndexes *recent, uint64_t key)
{
	uint32_t	place = (uint32_t) key & map_mask(recent);

	while (recent->map[place].index != 0 && recent->map[place].key != key)
		place = (place + 1) & map_mask(recent);
	return place;
}

static uint64_t
recent_get(const RecentIndexes *recent, uint64_t key)
{
	return recent->map[map_place(recent, key)].index;
}

/* Deletion without marks: what follows in the run moves up if its own place is not after the gap (Knuth 6.4, algorithm R). */
static void
map_delete(RecentIndexes *recent, uint32_t gap)
{
	uint32_t	mask = map_mask(recent);
	uint32_t	place = gap;

	for (;;)
	{
		place = (place + 1) & mask;
		if (recent->map[place].index == 0)
			break;
		if (((place - (uint32_t) recent->map[place].key) & mask) >= ((place - gap) & mask))
		{
			recent->map[gap] = recent->map[place];
			gap = place;
		}
	}
	recent->map[gap].index = 0;
}

/* Returns the index of the pair that was forgotten for it, 0 if there was room. */
static uint64_t
recent_put(RecentIndexes *recent, uint64_t key, uint64_t index)
{
	RecentIndex *oldest = &recent->ring[recent->put_count & (recent->capacity - 1)];
	uint64_t	forgotten = 0;
	uint32_t	place;

	if (recent_get(recent, key) == index)
		return 0;				/* the entry lists it twice */
	if (recent->put_count >= recent->capacity)
	{
		forgotten = oldest->index;
		place = map_place(recent, oldest->key);
		if (recent->map[place].index == oldest->index)
			map_delete(recent, place);
	}
	recent->put_count++;
	oldest->key = key;
	oldest->index = index;
	place = map_place(recent, key);
	recent->map[place].key = key;
	recent->map[place].index = index;
	return forgotten;
}

/* ---- what is remembered, for those who ask, or keep it elsewhere ---- */

uint64_t
certifier_last_index(const Certifier *certifier, uint64_t hash, CertifierMode mode)
{
	return recent_get(&certifier->keys, key_of_mode(hash, mode));
}

uint32_t
certifier_recent_count(const RecentIndexes *recent)
{
	return recent->put_count < recent->capacity ? (uint32_t) recent->put_count : recent->capacity;
}

void
certifier_recent_get(const RecentIndexes *recent, uint32_t number, uint64_t *key, uint64_t *index)
{
	uint64_t	first = recent->put_count - certifier_recent_count(recent);
	const RecentIndex *pair = &recent->ring[(first + number) & (recent->capacity - 1)];

	*key = pair->key;
	*index = pair->index;
}

/* The pairs' places in the ring are those of the original, so what is forgotten next is the same. */
bool
certifier_refill_begin(RecentIndexes *recent, uint64_t put_count, uint32_t pair_count)
{
	if (pair_count != (put_count < recent->capacity ? put_count : recent->capacity))
		return false;
	recent->put_count = put_count - pair_count;
	return true;
}

/* In log order, none twice: that is what recent_put leaves, and what the map relies on. */
bool
certifier_refill_put(RecentIndexes *recent, uint64_t key, uint64_t index)
{
	uint64_t	previous = recent->ring[(recent->put_count - 1) & (recent->capacity - 1)].index;
	RecentIndex *pair = &recent->ring[recent->put_count & (recent->capacity - 1)];
	uint32_t	place;

	if (index == 0 || index < previous || pair->index != 0 || recent_get(recent, key) == index)
		return false;
	recent->put_count++;
	pair->key = key;
	pair->index = index;
	place = map_place(recent, key);
	recent->map[place].key = key;
	recent->map[place].index = index;
	return true;
}

size_t
certifier_memory_size(uint32_t key_capacity, uint32_t token_capacity)
{
	return recent_size(key_capacity) + recent_size(token_capacity);
}

void
certifier_init(Certifier *certifier, void *memory, uint32_t key_capacity, uint32_t token_capacity)
{
	memset(certifier, 0, sizeof(*certifier));
	recent_init(&certifier->keys, memory, key_capacity);
	recent_init(&certifier->tokens, (char *) memory + recent_size(key_capacity), token_capacity);
}

/* ---- keys as bytes ---- */

typedef struct Key
{
	uint64_t	hash;
	uint8_t		mode;
	uint64_t	base;
} Key;

void
certifier_put_key(uint8_t *bytes, uint64_t hash, CertifierMode mode, uint32_t base_offset)
{
	for (int i = 0; i < 8; i++)
		bytes[i] = (uint8_t) (hash >> (56 - 8 * i));
	bytes[8] = (uint8_t) mode;
	for (int i = 0; i < 4; i++)
		bytes[9 + i] = (uint8_t) (base_offset >> (24 - 8 * i));
}

static Key
read_key(const CertifierEntry *entry, uint32_t number)
{
	const uint8_t *bytes = entry->keys + (size_t) number * CERTIFIER_KEY_BYTES;
	uint32_t	base_offset = 0;
	Key			key = {0, bytes[8], 0};

	for (int i = 0; i < 8; i++)
		key.hash = key.hash << 8 | bytes[i];
	for (int i = 0; i < 4; i++)
		base_offset = base_offset << 8 | bytes[9 + i];
	key.base = entry->base + base_offset;
	return key;
}

/* ---- the verdict ---- */

/* Nobody has seen its own entry or a later one: such a base is made up, and would hide conflicts. */
static bool
is_malformed(const CertifierEntry *entry)
{
	if (entry->base >= entry->index || (entry->is_fence && entry->token == 0))
		return true;
	for (uint32_t i = 0; i < entry->key_count; i++)
	{
		Key			key = read_key(entry, i);

		if (key.mode >= CERTIFIER_MODE_COUNT || key.base >= entry->index)
			return true;
	}
	return false;
}

/* The newest entry that the key lost against, or 0. */
static uint64_t
conflict_of(const Certifier *certifier, const Key *key)
{
	uint64_t	conflict_index = 0;

	for (int mode = 0; mode < CERTIFIER_READ; mode++)
		if (conflicting_modes[key->mode] & BIT(mode))
		{
			uint64_t	index = recent_get(&certifier->keys, key_of_mode(key->hash, (CertifierMode) mode));

			if (index > key->base && index > conflict_index)
				conflict_index = index;
		}
	return conflict_index;
}

static bool
check_token(const Certifier *certifier, const CertifierEntry *entry, CertifierVerdict *verdict)
{
	uint64_t	index;

	verdict->reason = CERTIFIER_FENCED;
	if (certifier->has_fences && !entry->is_fence &&
		(index = recent_get(&certifier->tokens, key_of_fence(entry->proposal))) != 0)
	{
		verdict->conflict_index = index;
		return false;
	}
	if (entry->token == 0)
		return true;
	if (certifier->has_fences && (index = recent_get(&certifier->tokens, key_of_fence(entry->token))) != 0)
	{
		verdict->conflict_index = index;
		return false;
	}
	verdict->reason = CERTIFIER_TOKEN_COMMITTED;
	verdict->conflict_index = recent_get(&certifier->tokens, mix(entry->token));
	return verdict->conflict_index == 0;
}

static bool
check_keys(const Certifier *certifier, const CertifierEntry *entry, CertifierVerdict *verdict)
{
	for (uint32_t i = 0; i < entry->key_count; i++)
	{
		Key			key = read_key(entry, i);

		verdict->conflict_index = conflict_of(certifier, &key);
		verdict->reason = CERTIFIER_CONFLICT;
		verdict->key_number = i;
		if (verdict->conflict_index != 0)
			return false;
	}
	verdict->reason = CERTIFIER_TOO_OLD;
	verdict->key_number = 0;
	verdict->conflict_index = certifier->floor;
	return entry->key_count == 0 || entry->base >= certifier->floor;
}

/* What was proposed before a fence that is forgotten might be what it fenced: its base is older, since it was proposed before anybody asked for it. */
static bool
check_fences(const Certifier *certifier, const CertifierEntry *entry, CertifierVerdict *verdict)
{
	verdict->reason = CERTIFIER_TOO_OLD;
	verdict->conflict_index = certifier->token_floor;
	return !certifier->has_fences || entry->is_fence || entry->base >= certifier->token_floor;
}

static void
take_note(Certifier *certifier, const CertifierEntry *entry)
{
	for (uint32_t i = 0; i < entry->key_count; i++)
	{
		Key			key = read_key(entry, i);
		uint64_t	forgotten = 0;

		if (is_recorded((CertifierMode) key.mode))
			forgotten = recent_put(&certifier->keys, key_of_mode(key.hash, (CertifierMode) key.mode), entry->index);
		if (forgotten > certifier->floor)
			certifier->floor = forgotten;
	}
	if (entry->token != 0)
	{
		uint64_t	forgotten = recent_put(&certifier->tokens, entry->is_fence ? key_of_fence(entry->token) : mix(entry->token),
										   entry->index);

		if (forgotten > certifier->token_floor)
			certifier->token_floor = forgotten;
	}
	certifier->has_fences |= entry->is_fence;
}

void
certify(Certifier *certifier, const CertifierEntry *entry, CertifierVerdict *verdict)
{
	memset(verdict, 0, sizeof(*verdict));
	if (is_malformed(entry))
	{
		verdict->reason = CERTIFIER_MALFORMED;
		verdict->conflict_index = entry->index;
		return;
	}
	if (!check_token(certifier, entry, verdict) || !check_keys(certifier, entry, verdict) ||
		!check_fences(certifier, entry, verdict))
		return;
	memset(verdict, 0, sizeof(*verdict));
	take_note(certifier, entry);
}
