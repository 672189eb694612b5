/*
 * test_certifier.c
 *	  The verdict over entries equals its definition, which is written here once more: a search through the whole log, and the tables of which
 *	  lock conflicts with which as PostgreSQL's documentation prints them.
 *
 * Capacities are tiny, so that the floor moves all the time and each map is full of runs that wrap around and are deleted from.
 */
#include <stdlib.h>
#include <string.h>

#include "random.h"
#include "shared/certifier.h"
#include "tap.h"

#define LOG_LENGTH 120
#define LOGS 4000
#define MAX_KEYS 5
#define CANARY 0xA5
#define CANARY_BYTES 64

typedef struct TestKey
{
	uint64_t	hash;
	uint32_t	mode;
	uint32_t	base_offset;
} TestKey;

typedef struct TestEntry
{
	CertifierEntry entry;		/* its keys point to bytes */
	TestKey		keys[MAX_KEYS];
	uint8_t		bytes[MAX_KEYS * CERTIFIER_KEY_BYTES];
	CertifierVerdict verdict;	/* by definition */
} TestEntry;

typedef struct TestLog
{
	uint32_t	key_capacity;
	uint32_t	token_capacity;
	TestEntry	entries[LOG_LENGTH + 1];	/* from 1 on */
} TestLog;

static TestLog test_log;

/* ---- a certifier with its memory ---- */

typedef struct Memory
{
	Certifier	certifier;
	size_t		size;
	uint8_t    *bytes;
} Memory;

static void
memory_begin(Memory *memory, uint32_t key_capacity, uint32_t token_capacity)
{
	memory->size = certifier_memory_size(key_capacity, token_capacity);
	memory->bytes = calloc(1, memory->size + CANARY_BYTES);
	memset(memory->bytes + memory->size, CANARY, CANARY_BYTES);
	certifier_init(&memory->certifier, memory->bytes, key_capacity, token_capacity);
}

static bool
memory_is_whole(const Memory *memory)
{
	for (int i = 0; i < CANARY_BYTES; i++)
		if (memory->bytes[memory->size + i] != CANARY)
			return false;
	return true;
}

static bool
memory_equal(const Memory *left, const Memory *right)
{
	return left->size == right->size && memcmp(left->bytes, right->bytes, left->size) == 0 &&
		left->certifier.floor == right->certifier.floor && left->certifier.token_floor == right->certifier.token_floor &&
		left->certifier.has_fences == right->certifier.has_fences &&
		left->certifier.keys.put_count == right->certifier.keys.put_count &&
		left->certifier.tokens.put_count == right->certifier.tokens.put_count;
}

static void
memory_end(Memory *memory)
{
	free(memory->bytes);
}

/* ---- the definition ---- */

/* Rows: what is requested; columns: what an earlier entry holds.  The first four are table 13.3 of the documentation. */
static const char *const conflicts[CERTIFIER_MODE_COUNT] = {
	/*						 KS S NU U  RS RX S X  R TR */
	[CERTIFIER_KEY_SHARE] = "...#" "...." "..",
	[CERTIFIER_SHARE] = "..##" "...." "..",
	[CERTIFIER_NO_KEY_UPDATE] = ".###" "...." "..",
	[CERTIFIER_UPDATE] = "####" "...." "..",
	[CERTIFIER_TABLE_ROW_SHARE] = "...." "...#" "..",
	[CERTIFIER_TABLE_ROW_EXCLUSIVE] = "...." "..##" "..",
	[CERTIFIER_TABLE_SHARE] = "...." ".#.#" "..",
	[CERTIFIER_TABLE_EXCLUSIVE] = "...." "####" "..",
	[CERTIFIER_READ] = "..##" "...." "..",
	[CERTIFIER_TABLE_READ] = "...." ".#.#" "..",
};

typedef struct Put
{
	uint64_t	hash;
	uint32_t	mode;
	uint64_t	index;
} Put;

static bool
is_in_effect(const TestEntry *entry)
{
	return entry->verdict.reason == CERTIFIER_APPLY;
}

/* All pairs of key and mode that entries before `index` left, in their order; not again what the same entry left and is remembered. */
static uint32_t
puts_before(const TestLog *log, uint64_t index, Put *puts)
{
	uint32_t	count = 0;

	for (uint64_t other = 1; other < index; other++)
	{
		const TestEntry *entry = &log->entries[other];
		uint32_t	first = count;

		for (uint32_t i = 0; is_in_effect(entry) && i < entry->entry.key_count; i++)
		{
			const TestKey *key = &entry->keys[i];
			bool		is_new = key->mode != CERTIFIER_READ && key->mode != CERTIFIER_TABLE_READ;

			for (uint32_t put = first; put < count; put++)
				if (put + log->key_capacity >= count && puts[put].hash == key->hash && puts[put].mode == key->mode)
					is_new = false;
			if (is_new)
				puts[count++] = (Put){key->hash, key->mode, other};
		}
	}
	return count;
}

/* The newest of the puts from `first` on that the key comes too late for; 0: none. */
static uint64_t
conflict_by_definition(const Put *puts, uint32_t first, uint32_t count, const TestKey *key, uint64_t base)
{
	for (uint32_t put = count; put > first; put--)
		if (puts[put - 1].hash == key->hash && puts[put - 1].index > base + key->base_offset &&
			conflicts[key->mode][puts[put - 1].mode] == '#')
			return puts[put - 1].index;
	return 0;
}

static bool
is_malformed_by_definition(const TestEntry *entry)
{
	if (entry->entry.base >= entry->entry.index || (entry->entry.is_fence && entry->entry.token == 0))
		return true;
	for (uint32_t i = 0; i < entry->entry.key_count; i++)
		if (entry->keys[i].mode >= CERTIFIER_MODE_COUNT || entry->entry.base + entry->keys[i].base_offset >= entry->entry.index)
			return true;
	return false;
}

/* The newest entry in effect that committed or fenced the token, if it is among the newest that are remembered; 0: none. */
static uint64_t
token_by_definition(const TestLog *log, uint64_t index, uint64_t token, bool is_fence)
{
	uint32_t	seen = 0;

	for (uint64_t other = index - 1; token != 0 && other > 0 && seen < log->token_capacity; other--)
	{
		const TestEntry *entry = &log->entries[other];

		if (!is_in_effect(entry) || entry->entry.token == 0)
			continue;
		if (entry->entry.token == token && entry->entry.is_fence == is_fence)
			return other;
		seen++;
	}
	return 0;
}

static CertifierVerdict
token_verdict_by_definition(const TestLog *log, const CertifierEntry *entry)
{
	uint64_t	fenced_at = entry->is_fence ? 0 : token_by_definition(log, entry->index, entry->proposal, true);
	uint64_t	committed_at = token_by_definition(log, entry->index, entry->token, false);

	if (fenced_at == 0)
		fenced_at = token_by_definition(log, entry->index, entry->token, true);
	if (fenced_at != 0)
		return (CertifierVerdict){CERTIFIER_FENCED, fenced_at, 0};
	if (committed_at != 0)
		return (CertifierVerdict){CERTIFIER_TOKEN_COMMITTED, committed_at, 0};
	return (CertifierVerdict){CERTIFIER_APPLY, 0, 0};
}

/* The newest entry in effect whose token or fence is not remembered any more, if there was a fence at all; 0: none. */
static uint64_t
token_floor_by_definition(const TestLog *log, uint64_t index)
{
	uint64_t	floor = 0;
	uint32_t	seen = 0;
	bool		has_fences = false;

	for (uint64_t other = index - 1; other > 0; other--)
	{
		const TestEntry *entry = &log->entries[other];

		if (!is_in_effect(entry) || entry->entry.token == 0)
			continue;
		has_fences |= entry->entry.is_fence;
		if (seen++ == log->token_capacity)
			floor = other;
	}
	return has_fences ? floor : 0;
}

/* `conflicts_at_all` is told whether any key comes too late for an entry, be it remembered or not. */
static CertifierVerdict
verdict_by_definition(const TestLog *log, const TestEntry *entry, bool *conflicts_at_all)
{
	static Put	puts[LOG_LENGTH * MAX_KEYS];
	const CertifierEntry *header = &entry->entry;
	uint32_t	count = puts_before(log, header->index, puts);
	uint32_t	first = count > log->key_capacity ? count - log->key_capacity : 0;
	uint64_t	floor = first > 0 ? puts[first - 1].index : 0;
	CertifierVerdict verdict;

	*conflicts_at_all = false;
	if (is_malformed_by_definition(entry))
		return (CertifierVerdict){CERTIFIER_MALFORMED, header->index, 0};
	verdict = token_verdict_by_definition(log, header);
	for (uint32_t i = 0; i < header->key_count; i++)
	{
		uint64_t	conflict = conflict_by_definition(puts, first, count, &entry->keys[i], header->base);

		if (conflict != 0 && verdict.reason == CERTIFIER_APPLY)
			verdict = (CertifierVerdict){CERTIFIER_CONFLICT, conflict, i};
		if (conflict_by_definition(puts, 0, count, &entry->keys[i], header->base) != 0)
			*conflicts_at_all = true;
	}
	if (verdict.reason == CERTIFIER_APPLY && header->key_count > 0 && header->base < floor)
		verdict = (CertifierVerdict){CERTIFIER_TOO_OLD, floor, 0};
	if (verdict.reason == CERTIFIER_APPLY && !header->is_fence && header->base < token_floor_by_definition(log, header->index))
		verdict = (CertifierVerdict){CERTIFIER_TOO_OLD, token_floor_by_definition(log, header->index), 0};
	return verdict;
}

/* ---- random logs ---- */

static void
make_key(TestEntry *entry, uint32_t number)
{
	TestKey    *key = &entry->keys[number];
	uint64_t	seen_at_most = entry->entry.index - 1 - entry->entry.base;

	if (number > 0 && random_chance(15))
		*key = entry->keys[random_below(number)];	/* listed twice */
	else
		*key = (TestKey){1 + random_below(random_chance(70) ? 3 : 30), random_below(CERTIFIER_MODE_COUNT), 0};
	if (entry->entry.base < entry->entry.index && random_chance(60))
		key->base_offset = random_below((uint32_t) seen_at_most + 1);
	if (random_chance(1))
		key->mode = random_chance(50) ? CERTIFIER_MODE_COUNT : CERTIFIER_MODE_COUNT + random_below(256 - CERTIFIER_MODE_COUNT);
	if (random_chance(1))
		key->base_offset = random_chance(50) ? (uint32_t) seen_at_most + 1 : UINT32_MAX;
	certifier_put_key(entry->bytes + number * CERTIFIER_KEY_BYTES, key->hash, (CertifierMode) key->mode, key->base_offset);
}

static void
make_entry(TestEntry *entry, uint64_t index)
{
	CertifierEntry *header = &entry->entry;
	uint32_t	lag = random_below(random_chance(70) ? 4 : 20);

	memset(entry, 0, sizeof(*entry));
	header->index = index;
	header->base = index - 1 > lag ? index - 1 - lag : 0;
	if (random_chance(1))
		header->base = random_chance(50) ? index : UINT64_MAX - random_below(3);
	header->proposal = 100 + random_below(90);
	header->is_fence = random_chance(5);
	if (header->is_fence || random_chance(20))
		header->token = random_below(8);
	if (header->is_fence && random_chance(50))
		header->token = 100 + random_below(90);
	header->key_count = header->is_fence ? 0 : random_below(MAX_KEYS + 1);
	for (uint32_t i = 0; i < header->key_count; i++)
		make_key(entry, i);
	header->keys = entry->bytes;
}

static bool
verdicts_equal(const CertifierVerdict *left, const CertifierVerdict *right)
{
	return left->reason == right->reason && left->conflict_index == right->conflict_index && left->key_number == right->key_number;
}

/* ---- what holds ---- */

typedef struct Findings
{
	bool		equal_to_definition;
	bool		conflict_let_through;
	bool		deterministic;
	bool		rejected_left_traces;
	bool		bounded;
	uint64_t	reasons[CERTIFIER_MALFORMED + 1];
} Findings;

static void
look_at_log(TestLog *log, Findings *findings)
{
	Memory		first,
				second,
				accepted_only;
	bool		conflicts_at_all;

	memory_begin(&first, log->key_capacity, log->token_capacity);
	memory_begin(&second, log->key_capacity, log->token_capacity);
	memory_begin(&accepted_only, log->key_capacity, log->token_capacity);
	for (uint64_t index = 1; index <= LOG_LENGTH; index++)
	{
		TestEntry  *entry = &log->entries[index];
		CertifierVerdict verdict;

		make_entry(entry, index);
		entry->verdict = verdict_by_definition(log, entry, &conflicts_at_all);
		certify(&first.certifier, &entry->entry, &verdict);
		findings->equal_to_definition &= verdicts_equal(&verdict, &entry->verdict);
		findings->conflict_let_through |= verdict.reason == CERTIFIER_APPLY && conflicts_at_all;
		findings->reasons[entry->verdict.reason]++;
	}
	for (uint64_t index = 1; index <= LOG_LENGTH; index++)	/* again from scratch, as on another node or after a restart */
	{
		const TestEntry *entry = &log->entries[index];
		CertifierVerdict verdict;

		certify(&second.certifier, &entry->entry, &verdict);
		findings->deterministic &= verdicts_equal(&verdict, &entry->verdict);
		if (is_in_effect(entry))
			certify(&accepted_only.certifier, &entry->entry, &verdict);
	}
	findings->deterministic &= memory_equal(&first, &second);
	findings->rejected_left_traces |= !memory_equal(&first, &accepted_only);
	findings->bounded &= memory_is_whole(&first);
	memory_end(&first);
	memory_end(&second);
	memory_end(&accepted_only);
}

static void
verdicts_over_random_logs(void)
{
	Findings	findings = {.equal_to_definition = true, .deterministic = true, .bounded = true};
	bool		enough = true;

	for (int run = 0; run < LOGS; run++)
	{
		test_log.key_capacity = 2u << random_below(6);
		test_log.token_capacity = 2u << random_below(4);
		look_at_log(&test_log, &findings);
	}
	for (int reason = CERTIFIER_APPLY; reason <= CERTIFIER_MALFORMED; reason++)
		enough = enough && findings.reasons[reason] > LOGS;
	ok(findings.equal_to_definition, "verdicts over random logs equal their definition");
	ok(!findings.conflict_let_through, "nothing takes effect that conflicts with what it did not see, be that forgotten or not");
	ok(findings.deterministic, "a certifier that is given the log again, from scratch, comes to the same verdicts and the same memory");
	ok(!findings.rejected_left_traces, "a rejected entry leaves no trace: without it the memory is the same, byte for byte");
	ok(findings.bounded, "the memory that was given is enough, however long the log is");
	ok(enough, "and there was enough of each verdict");
	printf("# applied %lu, conflict %lu, too old %lu, token committed %lu, fenced %lu, malformed %lu\n",
		   (unsigned long) findings.reasons[CERTIFIER_APPLY], (unsigned long) findings.reasons[CERTIFIER_CONFLICT],
		   (unsigned long) findings.reasons[CERTIFIER_TOO_OLD], (unsigned long) findings.reasons[CERTIFIER_TOKEN_COMMITTED],
		   (unsigned long) findings.reasons[CERTIFIER_FENCED], (unsigned long) findings.reasons[CERTIFIER_MALFORMED]);
}

/* ---- one thing at a time ---- */

static Memory directed;

static void
start_anew(uint32_t key_capacity, uint32_t token_capacity)
{
	memory_end(&directed);
	memory_begin(&directed, key_capacity, token_capacity);
}

/* An entry with one key. */
static CertifierVerdict
certify_key(uint64_t index, uint64_t base, uint64_t hash, CertifierMode mode)
{
	uint8_t		bytes[CERTIFIER_KEY_BYTES];
	CertifierEntry entry = {.index = index, .proposal = 1000 + index, .base = base, .key_count = 1, .keys = bytes};
	CertifierVerdict verdict;

	certifier_put_key(bytes, hash, mode, 0);
	certify(&directed.certifier, &entry, &verdict);
	return verdict;
}

static CertifierVerdict
certify_token_with_base(uint64_t index, uint64_t token, bool is_fence, uint64_t proposal, uint64_t base)
{
	CertifierEntry entry = {.index = index, .proposal = proposal, .base = base, .token = token, .is_fence = is_fence};
	CertifierVerdict verdict;

	certify(&directed.certifier, &entry, &verdict);
	return verdict;
}

static CertifierVerdict
certify_token(uint64_t index, uint64_t token, bool is_fence, uint64_t proposal)
{
	return certify_token_with_base(index, token, is_fence, proposal, 0);
}

static void
of_each_two_modes_the_right_ones_conflict(void)
{
	char		name[200];

	for (uint32_t held = 0; held < CERTIFIER_MODE_COUNT; held++)
	{
		bool		right = true;

		for (uint32_t requested = 0; requested < CERTIFIER_MODE_COUNT; requested++)
		{
			CertifierVerdict unseen;
			CertifierVerdict seen;

			start_anew(8, 8);
			(void) certify_key(1, 0, 42, (CertifierMode) held);
			unseen = certify_key(2, 0, 42, (CertifierMode) requested);
			right = right && unseen.reason == (conflicts[requested][held] == '#' ? CERTIFIER_CONFLICT : CERTIFIER_APPLY);
			start_anew(8, 8);
			(void) certify_key(1, 0, 42, (CertifierMode) held);
			seen = certify_key(2, 1, 42, (CertifierMode) requested);
			right = right && seen.reason == CERTIFIER_APPLY && certify_key(3, 0, 43, (CertifierMode) requested).reason == CERTIFIER_APPLY;
		}
		snprintf(name, sizeof(name), "what mode %u is in the way of, unseen; seen, or with another key, of nothing", held);
		ok(right, name);
	}
}

static void
keys_are_bytes(void)
{
	const uint8_t expected[CERTIFIER_KEY_BYTES] = {1, 2, 3, 4, 5, 6, 7, 8, 3, 9, 10, 11, 12};
	uint8_t		bytes[CERTIFIER_KEY_BYTES];

	certifier_put_key(bytes, UINT64_C(0x0102030405060708), CERTIFIER_UPDATE, 0x090A0B0C);
	ok(memcmp(bytes, expected, sizeof(bytes)) == 0, "a key is 13 bytes, big endian");
}

static void
the_floor_is_the_last_entry_that_was_forgotten(void)
{
	start_anew(4, 2);
	for (uint64_t index = 1; index <= 4; index++)
		(void) certify_key(index, index - 1, index, CERTIFIER_UPDATE);
	ok(directed.certifier.floor == 0, "as long as all is remembered there is no floor");
	(void) certify_key(5, 4, 5, CERTIFIER_UPDATE);
	ok(directed.certifier.floor == 1, "what is forgotten first raises it");
	ok(certify_key(6, 0, 99, CERTIFIER_KEY_SHARE).reason == CERTIFIER_TOO_OLD, "a base below it cannot be certified");
	ok(directed.certifier.floor == 1, "and does not move it");
	ok(certify_key(7, 1, 99, CERTIFIER_KEY_SHARE).reason == CERTIFIER_APPLY, "one at the floor can");
	ok(certify_token(8, 0, false, 1).reason == CERTIFIER_APPLY, "an entry without keys has no base that could be too old");
	ok(certify_key(9, 8, 98, CERTIFIER_READ).reason == CERTIFIER_APPLY && directed.certifier.floor == 2,
	   "what was only read is not remembered, and so moves no floor");
}

static void
a_key_that_is_written_again_and_again_needs_one_place(void)
{
	bool		applied = true;

	start_anew(4, 2);
	for (uint64_t index = 1; index <= 1000; index++)
		applied = applied && certify_key(index, index - 1, 7, CERTIFIER_NO_KEY_UPDATE).reason == CERTIFIER_APPLY;
	ok(applied, "a row that is written from one node only is never in its own way");
	ok(certify_key(1001, 999, 7, CERTIFIER_NO_KEY_UPDATE).conflict_index == 1000, "another node's, that missed the last one, is late");
}

static void
a_key_that_is_listed_twice_counts_once(void)
{
	uint8_t		bytes[6 * CERTIFIER_KEY_BYTES];
	CertifierEntry entry = {.index = 1, .proposal = 1, .key_count = 6, .keys = bytes};
	CertifierVerdict verdict;

	start_anew(4, 2);
	for (int i = 0; i < 6; i++)
		certifier_put_key(bytes + i * CERTIFIER_KEY_BYTES, 7, CERTIFIER_UPDATE, 0);
	certify(&directed.certifier, &entry, &verdict);
	ok(verdict.reason == CERTIFIER_APPLY && directed.certifier.floor == 0, "an entry that lists a key twice makes room for it once");
	ok(certify_key(2, 0, 7, CERTIFIER_SHARE).conflict_index == 1, "and is found");
}

static void
tokens_take_effect_once(void)
{
	start_anew(4, 2);
	ok(certify_token(1, 5, false, 100).reason == CERTIFIER_APPLY, "the first with a token takes effect");
	ok(certify_token(2, 5, false, 101).reason == CERTIFIER_TOKEN_COMMITTED && certify_token(3, 5, false, 102).conflict_index == 1,
	   "the second is told where the first did");
	ok(certify_token(4, 5, true, 103).reason == CERTIFIER_TOKEN_COMMITTED, "it is too late for a fence");
	ok(certify_token(5, 6, true, 104).reason == CERTIFIER_APPLY, "what is not there yet can be fenced");
	ok(certify_token(6, 6, false, 105).reason == CERTIFIER_FENCED, "and never takes effect then");
	ok(certify_token(7, 6, true, 106).conflict_index == 5, "a second fence is told where the first is");
	ok(certify_token(8, 105, true, 107).reason == CERTIFIER_APPLY && certify_token(9, 0, false, 105).reason == CERTIFIER_FENCED,
	   "a transaction without a token is fenced by its proposal's");
	ok(certify_token(10, 105, true, 105).conflict_index == 8, "a fence is not held up by a fence of its own proposal, but by its like");
	ok(certify_token(11, 5, false, 108).reason == CERTIFIER_TOO_OLD, "what is older than forgotten fences might be what they fenced");
	ok(certify_token_with_base(12, 5, false, 108, 10).reason == CERTIFIER_APPLY, "the oldest tokens are forgotten");
	ok(certify_token(13, 0, true, 109).reason == CERTIFIER_MALFORMED, "a fence of nothing is malformed");
}

int
main(void)
{
	random_seed(20240229);
	verdicts_over_random_logs();
	of_each_two_modes_the_right_ones_conflict();
	keys_are_bytes();
	the_floor_is_the_last_entry_that_was_forgotten();
	a_key_that_is_written_again_and_again_needs_one_place();
	a_key_that_is_listed_twice_counts_once();
	tokens_take_effect_once();
	memory_end(&directed);
	return tap_done();
}
