/*
 * test_log_state.c
 *	  The state of the log as bytes (src/consensus/log_state.c): whoever goes on from a decoded one decides as whoever saw the whole log, and no
 *	  bytes, however wrong, do harm.
 *
 * Capacities are tiny, so that the floors move all the time.
 */
#include <stdlib.h>
#include <string.h>

#include "consensus/log_state.h"
#include "random.h"
#include "tap.h"

#define KEYS 16
#define TOKENS 4
#define LOG_LENGTH 400
#define LOGS 300
#define MAX_BYTES 65536

void
paxos_assertion_failed(const char *condition, const char *file, int line)
{
	printf("Bail out! %s:%d: %s\n", file, line, condition);
	exit(1);
}

static void *
allocate(void *context, size_t size)
{
	return malloc(size);
}

static void
release(void *context, void *pointer)
{
	free(pointer);
}

static const PaxosAllocator allocator = {allocate, release, NULL};

/* ---- bytes in memory ---- */

typedef struct Bytes
{
	uint8_t		bytes[MAX_BYTES];
	size_t		length;
	size_t		read;
} Bytes;

static bool
write_bytes(void *context, const void *from, size_t length)
{
	Bytes	   *bytes = context;

	if (bytes->length + length > MAX_BYTES)
		return false;
	memcpy(bytes->bytes + bytes->length, from, length);
	bytes->length += length;
	return true;
}

static bool
read_bytes(void *context, void *to, size_t length)
{
	Bytes	   *bytes = context;

	if (bytes->length - bytes->read < length)
		return false;
	memcpy(to, bytes->bytes + bytes->read, length);
	bytes->read += length;
	return true;
}

static bool
decode(LogState *state, Bytes *bytes, const LogState *original)
{
	const char *why = NULL;
	bool		is_valid;

	bytes->read = 0;
	if (!log_state_init(state, &allocator, KEYS, TOKENS))
		exit(1);
	state->index = original->index;
	state->last_applied = original->last_applied;
	is_valid = log_state_decode(state, read_bytes, bytes, &why);
	ok_quietly(is_valid == (why == NULL), "decoding says why it does not");
	return is_valid;
}

static bool
equal_bytes(const LogState *left, const LogState *right)
{
	static Bytes a,
				b;

	a.length = b.length = 0;
	return log_state_encode(left, write_bytes, &a) && log_state_encode(right, write_bytes, &b) && a.length == b.length &&
		memcmp(a.bytes, b.bytes, a.length) == 0;
}

/* ---- a log by lot ---- */

typedef struct TestEntry
{
	CertifierEntry entry;
	uint8_t		keys[3 * CERTIFIER_KEY_BYTES];
	PaxosProposalId id;
} TestEntry;

static void
make_entry(uint64_t index, TestEntry *made)
{
	memset(made, 0, sizeof(*made));
	made->entry.index = index;
	made->entry.base = index - 1 - random_below(index < 20 ? (uint32_t) index : 20);
	made->entry.key_count = random_below(4);
	made->entry.keys = made->keys;
	for (uint32_t i = 0; i < made->entry.key_count; i++)
		certifier_put_key(made->keys + i * CERTIFIER_KEY_BYTES, random_below(12), (CertifierMode) random_below(CERTIFIER_MODE_COUNT),
						  0);
	if (random_below(3) == 0)
		made->entry.token = 1 + random_below(10);
	else
		made->entry.proposal = 1 + random_below(10);
	made->entry.is_fence = made->entry.token != 0 && random_below(4) == 0;
	made->id.origin = 1 + random_below(3);
	made->id.incarnation = 1 + index / 150;
	made->id.sequence = 1 + index / 2 + random_below(8);
}

/* What became of it: what must be the same for both. */
static uint64_t
note(LogState *state, const TestEntry *made)
{
	bool		duplicate = paxos_origins_note(&state->origins, made->id);
	CertifierVerdict verdict = {0};

	state->index = made->entry.index;
	if (duplicate)
		return 1;
	certify(&state->certifier, &made->entry, &verdict);
	if (verdict.reason == CERTIFIER_APPLY)
		state->last_applied = state->index;
	return 2 + ((uint64_t) verdict.reason << 56 | (uint64_t) verdict.key_number << 48 | verdict.conflict_index);
}

static void
test_decoded_states_go_on_as_the_original(void)
{
	static Bytes bytes;
	uint32_t	reasons = 0;
	bool		same_verdicts = true;
	bool		same_bytes = true;

	for (uint64_t seed = 1; seed <= LOGS; seed++)
	{
		LogState	original;
		LogState	restored;
		uint64_t	cut;

		random_seed(seed);
		cut = random_below(LOG_LENGTH);
		(void) log_state_init(&original, &allocator, KEYS, TOKENS);
		log_state_set_config(&original, 0, (const uint8_t *) "config", 6);
		for (uint64_t index = 1; index <= LOG_LENGTH; index++)
		{
			TestEntry	made;
			uint64_t	became;

			if (index == cut + 1)
			{
				bytes.length = 0;
				ok_quietly(log_state_encode(&original, write_bytes, &bytes) && bytes.length == log_state_body_bytes(&original),
						   "a state has as many bytes as it says");
				ok_quietly(decode(&restored, &bytes, &original) && bytes.read == bytes.length, "what was encoded is decoded");
			}
			make_entry(index, &made);
			became = note(&original, &made);
			if (became >= 2)
				reasons |= 1u << ((became - 2) >> 56);
			if (index > cut)
				same_verdicts = ok_quietly(became == note(&restored, &made), "the verdict is the same") && same_verdicts;
		}
		same_bytes = ok_quietly(equal_bytes(&original, &restored) && original.last_applied == restored.last_applied,
								"both states end the same") && same_bytes;
		log_state_free(&original);
		log_state_free(&restored);
	}
	ok(same_verdicts, "who begins with a decoded state decides as who saw the whole log");
	ok(same_bytes, "and both end in the same state, byte for byte");
	ok(reasons == (1u << CERTIFIER_MALFORMED) - 1 || reasons == (1u << (CERTIFIER_MALFORMED + 1)) - 1,
	   "each reason for a verdict has occurred, bases below the floor and fenced tokens among them");
}

static void
make_full_state(LogState *state, Bytes *bytes)
{
	random_seed(42);
	(void) log_state_init(state, &allocator, KEYS, TOKENS);
	log_state_set_config(state, 0, (const uint8_t *) "config", 6);
	for (uint64_t index = 1; index <= LOG_LENGTH; index++)
	{
		TestEntry	made;

		make_entry(index, &made);
		(void) note(state, &made);
	}
	bytes->length = 0;
	(void) log_state_encode(state, write_bytes, bytes);
}

static void
test_short_bytes_are_refused(void)
{
	static Bytes bytes;
	LogState	original;
	LogState	decoded;
	size_t		whole;
	bool		refused = true;

	make_full_state(&original, &bytes);
	whole = bytes.length;
	for (bytes.length = 0; bytes.length < whole; bytes.length += bytes.length < 64 || bytes.length + 64 > whole ? 1 : 37)
	{
		refused = !decode(&decoded, &bytes, &original) && refused;
		log_state_free(&decoded);
	}
	ok(refused, "a state that ends too early is refused, wherever it ends");
	log_state_free(&original);
}

/* Behind the checksum, which these would have to pass first.  Whatever is accepted must be usable. */
static void
test_wrong_bytes_do_no_harm(void)
{
	static Bytes bytes;
	static Bytes original_bytes;
	LogState	original;
	int			refused = 0;

	make_full_state(&original, &original_bytes);
	random_seed(7);
	for (int attempt = 0; attempt < 20000; attempt++)
	{
		LogState	decoded;

		bytes = original_bytes;
		for (uint32_t i = random_below(3) + 1; i > 0; i--)
			bytes.bytes[random_below((uint32_t) bytes.length)] = (uint8_t) random_below(256);
		if (!decode(&decoded, &bytes, &original))
			refused++;
		else
			for (uint64_t index = LOG_LENGTH + 1; index < LOG_LENGTH + 40; index++)
			{
				TestEntry	made;

				make_entry(index, &made);
				(void) note(&decoded, &made);
			}
		log_state_free(&decoded);
	}
	ok(refused > 1000, "bytes that are wrong are refused where that can be told, and do no harm elsewhere");
	log_state_free(&original);
}

/* ---- single lies ---- */

static void
put(Bytes *bytes, size_t offset, int width, uint64_t number)
{
	for (int i = 0; i < width; i++)
		bytes->bytes[offset + i] = (uint8_t) (number >> (8 * (width - 1 - i)));
}

static bool
is_refused_with(size_t offset, int width, uint64_t number)
{
	static Bytes bytes;
	LogState	original;
	LogState	decoded;
	bool		refused;

	make_full_state(&original, &bytes);
	put(&bytes, offset, width, number);
	refused = !decode(&decoded, &bytes, &original);
	log_state_free(&decoded);
	log_state_free(&original);
	return refused;
}

static void
test_lies_are_refused(void)
{
	static Bytes bytes;
	LogState	original;
	size_t		origins_at = 8 + 4 + 6;
	size_t		certifier_at;
	size_t		pairs_at;

	make_full_state(&original, &bytes);
	certifier_at = origins_at + 4 + paxos_origins_size(&original.origins);
	pairs_at = certifier_at + 25 + 12;
	ok(!is_refused_with(certifier_at, 4, KEYS), "what is true is accepted");
	ok(is_refused_with(0, 8, LOG_LENGTH + 1), "a configuration behind the end is refused");
	ok(is_refused_with(8, 4, UINT32_MAX), "a configuration of an impossible length is refused before there is memory for it");
	ok(is_refused_with(8, 4, 0), "a state without a configuration is refused");
	ok(is_refused_with(origins_at, 4, UINT32_MAX), "a list of origins of an impossible length is refused");
	ok(is_refused_with(certifier_at, 4, 2 * KEYS), "another capacity is refused: verdicts would differ");
	ok(is_refused_with(certifier_at + 4, 4, 2 * TOKENS), "another capacity for tokens is refused");
	ok(is_refused_with(certifier_at + 8, 8, 0), "a floor that is missing though something was forgotten is refused");
	ok(is_refused_with(certifier_at + 24, 1, 2), "a flag that is neither yes nor no is refused");
	ok(is_refused_with(certifier_at + 25 + 8, 4, KEYS + 1), "more pairs than there is room for are refused");
	ok(is_refused_with(certifier_at + 25, 8, 3), "a count of pairs that does not go with what was put in is refused");
	ok(is_refused_with(pairs_at + 8, 8, LOG_LENGTH + 1), "a pair from behind the end is refused");
	ok(is_refused_with(pairs_at + 8, 8, 0), "a pair of no index is refused");
	log_state_free(&original);
}

int
main(void)
{
	test_decoded_states_go_on_as_the_original();
	test_short_bytes_are_refused();
	test_wrong_bytes_do_no_harm();
	test_lies_are_refused();
	return tap_done();
}
