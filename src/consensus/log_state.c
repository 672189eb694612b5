/*
 * log_state.c
 *	  The state of the log at an index as a structure and as bytes.
 *
 * Pure C: no Postgres, no files.  Process: consensus worker, compactor, backends in quorum.log_state(); tests.  Must never trust the bytes
 * that it decodes: they come from disk or from another node.
 *
 * The body, numbers big endian; index and last_applied stand in the head (shared/log_state_file.h):
 *
 *	 u64 slot of the configuration, u32 length, its CONFIG value
 *	 u32 length, the origins (core/origins.h)
 *	 u32 capacity for keys, u32 capacity for tokens, u64 floor, u64 floor of the tokens, u8 has fences (0 or 1)
 *	 twice, for keys and for tokens: u64 how many were ever put in, u32 count, and per pair u64 key, u64 index, the oldest first
 *
 * Invariants of a decoded state
 *	 1. Each index that it holds is at most the state's own.
 *	 2. What is remembered is in log order, none twice; a floor is not 0 only if something was forgotten, and nothing older is remembered.
 *	 3. Memory is bounded by the capacities and by LOG_STATE_MAX_*; bytes are encoded and decoded in pieces of a fixed size.
 */
#include "consensus/log_state.h"

#include <stdlib.h>
#include <string.h>

#define PAIR_BYTES 16
#define PIECE_PAIRS 1024
#define FIXED_BYTES (8 + 4 + 4 + 4 + 4 + 8 + 8 + 1)
#define FIXED_BYTES_OF_RECENT (8 + 4)

static void
put_number(uint8_t *bytes, int width, uint64_t number)
{
	for (int i = 0; i < width; i++)
		bytes[i] = (uint8_t) (number >> (8 * (width - 1 - i)));
}

static uint64_t
get_number(const uint8_t *bytes, int width)
{
	uint64_t	number = 0;

	for (int i = 0; i < width; i++)
		number = number << 8 | bytes[i];
	return number;
}

/* ---- life ---- */

bool
log_state_init(LogState *state, const PaxosAllocator *allocator, uint32_t key_capacity, uint32_t token_capacity)
{
	memset(state, 0, sizeof(*state));
	state->allocator = *allocator;
	paxos_origins_init(&state->origins, allocator);
	/* Fresh memory of the system's, which it gives page by page as it is used. */
	state->certifier_memory = calloc(1, certifier_memory_size(key_capacity, token_capacity));
	if (state->certifier_memory == NULL)
		return false;
	certifier_init(&state->certifier, state->certifier_memory, key_capacity, token_capacity);
	return true;
}

void
log_state_free(LogState *state)
{
	if (state->config_bytes != NULL)
		state->allocator.release(state->allocator.context, state->config_bytes);
	paxos_origins_free(&state->origins);
	free(state->certifier_memory);
	memset(state, 0, sizeof(*state));
}

void
log_state_set_config(LogState *state, uint64_t slot, const uint8_t *bytes, uint32_t length)
{
	uint8_t    *copy = state->allocator.allocate(state->allocator.context, length > 0 ? length : 1);

	memcpy(copy, bytes, length);
	if (state->config_bytes != NULL)
		state->allocator.release(state->allocator.context, state->config_bytes);
	state->config_slot = slot;
	state->config_bytes = copy;
	state->config_length = length;
}

/* ---- encoding ---- */

typedef struct Writer
{
	LogStateWrite write;
	void	   *context;
	bool		ok;
} Writer;

static void
write_bytes(Writer *writer, const void *bytes, size_t length)
{
	writer->ok = writer->ok && writer->write(writer->context, bytes, length);
}

static void
write_number(Writer *writer, int width, uint64_t number)
{
	uint8_t		bytes[8];

	put_number(bytes, width, number);
	write_bytes(writer, bytes, (size_t) width);
}

static void
write_recent(Writer *writer, const RecentIndexes *recent)
{
	uint8_t		piece[PIECE_PAIRS * PAIR_BYTES];
	uint32_t	count = certifier_recent_count(recent);
	size_t		used = 0;

	write_number(writer, 8, recent->put_count);
	write_number(writer, 4, count);
	for (uint32_t i = 0; i < count; i++)
	{
		uint64_t	key;
		uint64_t	index;

		certifier_recent_get(recent, i, &key, &index);
		put_number(piece + used, 8, key);
		put_number(piece + used + 8, 8, index);
		used += PAIR_BYTES;
		if (used == sizeof(piece) || i == count - 1)
		{
			write_bytes(writer, piece, used);
			used = 0;
		}
	}
}

static void
write_origins(Writer *writer, const LogState *state)
{
	size_t		length = paxos_origins_size(&state->origins);
	uint8_t    *bytes = state->allocator.allocate(state->allocator.context, length);

	writer->ok = writer->ok && paxos_origins_encode(&state->origins, bytes, length) == length;
	write_number(writer, 4, length);
	write_bytes(writer, bytes, length);
	state->allocator.release(state->allocator.context, bytes);
}

uint64_t
log_state_body_bytes(const LogState *state)
{
	return FIXED_BYTES + (uint64_t) state->config_length + paxos_origins_size(&state->origins) + 2 * FIXED_BYTES_OF_RECENT +
		PAIR_BYTES * ((uint64_t) certifier_recent_count(&state->certifier.keys) + certifier_recent_count(&state->certifier.tokens));
}

bool
log_state_encode(const LogState *state, LogStateWrite write, void *context)
{
	Writer		writer = {write, context, true};
	const Certifier *certifier = &state->certifier;

	write_number(&writer, 8, state->config_slot);
	write_number(&writer, 4, state->config_length);
	write_bytes(&writer, state->config_bytes, state->config_length);
	write_origins(&writer, state);
	write_number(&writer, 4, certifier->keys.capacity);
	write_number(&writer, 4, certifier->tokens.capacity);
	write_number(&writer, 8, certifier->floor);
	write_number(&writer, 8, certifier->token_floor);
	write_number(&writer, 1, certifier->has_fences ? 1 : 0);
	write_recent(&writer, &certifier->keys);
	write_recent(&writer, &certifier->tokens);
	return writer.ok;
}

/* ---- decoding ---- */

typedef struct Reader
{
	LogStateRead read;
	void	   *context;
	const char *why;			/* NULL while all is well */
} Reader;

static bool
read_bytes(Reader *reader, void *bytes, size_t length)
{
	if (reader->why == NULL && length > 0 && !reader->read(reader->context, bytes, length))
		reader->why = "it ends too early";
	return reader->why == NULL;
}

static uint64_t
read_number(Reader *reader, int width)
{
	uint8_t		bytes[8] = {0};

	return read_bytes(reader, bytes, (size_t) width) ? get_number(bytes, width) : 0;
}

static bool
check(Reader *reader, bool holds, const char *why)
{
	if (reader->why == NULL && !holds)
		reader->why = why;
	return reader->why == NULL;
}

/* Memory from the state's allocator; NULL if there is nothing, or if something is wrong. */
static uint8_t *
read_block(Reader *reader, const LogState *state, uint32_t maximum, const char *why, uint32_t *length)
{
	uint8_t    *bytes;

	*length = (uint32_t) read_number(reader, 4);
	if (!check(reader, *length <= maximum, why) || *length == 0)
		return NULL;
	bytes = state->allocator.allocate(state->allocator.context, *length);
	if (read_bytes(reader, bytes, *length))
		return bytes;
	state->allocator.release(state->allocator.context, bytes);
	return NULL;
}

static void
read_config(Reader *reader, LogState *state)
{
	uint64_t	slot = read_number(reader, 8);
	uint32_t	length;
	uint8_t    *bytes = read_block(reader, state, LOG_STATE_MAX_CONFIG_BYTES, "its configuration is too long", &length);

	(void) check(reader, length > 0, "it has no configuration");
	(void) check(reader, slot <= state->index, "its configuration is behind its end");
	if (bytes == NULL)
		return;
	log_state_set_config(state, slot, bytes, length);
	state->allocator.release(state->allocator.context, bytes);
}

static void
read_origins(Reader *reader, LogState *state)
{
	uint32_t	length;
	uint8_t    *bytes = read_block(reader, state, LOG_STATE_MAX_ORIGINS_BYTES, "its list of origins is too long", &length);

	if (bytes == NULL)
	{
		(void) check(reader, false, "it has no list of origins");
		return;
	}
	(void) check(reader, paxos_origins_decode(&state->origins, bytes, length), "its list of origins is malformed");
	state->allocator.release(state->allocator.context, bytes);
}

/* Invariant 2 of one kind. */
static void
read_recent(Reader *reader, RecentIndexes *recent, uint64_t floor, uint64_t last_index)
{
	uint8_t		piece[PIECE_PAIRS * PAIR_BYTES];
	uint64_t	put_count = read_number(reader, 8);
	uint32_t	count = (uint32_t) read_number(reader, 4);
	uint64_t	index = 0;

	if (reader->why != NULL ||
		!check(reader, certifier_refill_begin(recent, put_count, count), "a count of what certification remembers is impossible"))
		return;
	(void) check(reader, (floor != 0) == (put_count > count), "a floor of certification is impossible");
	for (uint32_t i = 0; i < count && reader->why == NULL; i++)
	{
		uint8_t    *pair = piece + (i % PIECE_PAIRS) * PAIR_BYTES;

		if (i % PIECE_PAIRS == 0)
		{
			uint32_t	left = count - i;

			if (!read_bytes(reader, piece, (left < PIECE_PAIRS ? left : PIECE_PAIRS) * PAIR_BYTES))
				return;
		}
		index = get_number(pair + 8, 8);
		(void) check(reader, index >= floor && index <= last_index && certifier_refill_put(recent, get_number(pair, 8), index),
					 "what certification remembers is not in log order");
	}
}

static void
read_certifier(Reader *reader, LogState *state)
{
	Certifier  *certifier = &state->certifier;
	uint64_t	has_fences;

	(void) check(reader, read_number(reader, 4) == certifier->keys.capacity && read_number(reader, 4) == certifier->tokens.capacity,
				 "certification has other capacities there");
	certifier->floor = read_number(reader, 8);
	certifier->token_floor = read_number(reader, 8);
	has_fences = read_number(reader, 1);
	(void) check(reader, has_fences <= 1, "a flag is neither 0 nor 1");
	certifier->has_fences = has_fences == 1;
	read_recent(reader, &certifier->keys, certifier->floor, state->index);
	read_recent(reader, &certifier->tokens, certifier->token_floor, state->index);
}

bool
log_state_decode(LogState *state, LogStateRead read, void *context, const char **why)
{
	Reader		reader = {read, context, NULL};

	(void) check(&reader, state->last_applied <= state->index, "the last entry that it applied is behind its end");
	read_config(&reader, state);
	read_origins(&reader, state);
	read_certifier(&reader, state);
	*why = reader.why;
	return reader.why == NULL;
}
