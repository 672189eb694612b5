/*
 * test_origins.c
 *	  Deduplication without a core: what takes effect, against a model that remembers everything; and its bytes.
 */
#include <stdlib.h>
#include <string.h>

#include "consensus/core/origins.h"
#include "tap.h"

#define MODEL_IDS 40000

void
paxos_assertion_failed(const char *condition, const char *file, int line)
{
	fprintf(stderr, "assertion failed: %s at %s:%d\n", condition, file, line);
	abort();
}

static size_t allocated;

static void *
allocate(void *context, size_t size)
{
	(void) context;
	allocated++;
	return malloc(size);
}

static void
release(void *context, void *pointer)
{
	(void) context;
	allocated--;
	free(pointer);
}

static const PaxosAllocator allocator = {allocate, release, NULL};

static bool
same_bytes(const PaxosOrigins *a, const PaxosOrigins *b)
{
	size_t		length = paxos_origins_size(a);
	uint8_t    *x = malloc(length);
	uint8_t    *y = malloc(length);
	bool		same = paxos_origins_size(b) == length && paxos_origins_encode(a, x, length) == length &&
		paxos_origins_encode(b, y, length) == length && memcmp(x, y, length) == 0;

	free(x);
	free(y);
	return same;
}

/* Through bytes, of memory of exactly that size. */
static bool
copy_by_bytes(const PaxosOrigins *origins, PaxosOrigins *copy)
{
	size_t		length = paxos_origins_size(origins);
	uint8_t    *bytes = malloc(length);
	bool		good = paxos_origins_encode(origins, bytes, length - 1) == 0 &&
		paxos_origins_encode(origins, bytes, length) == length && paxos_origins_decode(copy, bytes, length);

	free(bytes);
	return good;
}

/* Three origins that restart now and then, and repeat what is still outstanding. */
static void
each_id_takes_effect_once(void)
{
	static bool seen[4][8][MODEL_IDS];
	uint64_t	incarnation[4] = {0, 1, 1, 1};
	uint64_t	newest[4] = {0, 0, 0, 0};
	uint64_t	next[4] = {1, 1, 1, 1};
	PaxosOrigins origins;
	PaxosOrigins copy;
	uint64_t	random = 7;
	bool		right = true;
	bool		copies = true;

	paxos_origins_init(&origins, &allocator);
	paxos_origins_init(&copy, &allocator);
	for (int round = 0; round < 60000; round++)
	{
		PaxosProposalId id = {1 + (uint32_t) (random >> 40) % 3, 0, 0};
		bool		expected;

		random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		if ((random >> 33) % 8000 == 0 && incarnation[id.origin] < 7)
		{
			incarnation[id.origin]++;
			next[id.origin] = 1 + (random >> 20) % 5000;
		}
		id.incarnation = incarnation[id.origin] - ((random >> 50) % 50 == 0 && incarnation[id.origin] > 1 ? 1 : 0);
		id.sequence = next[id.origin];
		if ((random >> 45) % 3 == 0)
			id.sequence = id.sequence > (random >> 30) % 4000 + 1 ? id.sequence - (random >> 30) % 4000 - 1 : 1;
		else
			next[id.origin] += 1 + (random >> 52) % 3;
		expected = id.incarnation < newest[id.origin] || seen[id.origin][id.incarnation][id.sequence];
		right &= paxos_origins_is_duplicate(&origins, id) == expected && paxos_origins_note(&origins, id) == expected &&
			paxos_origins_is_duplicate(&origins, id);
		seen[id.origin][id.incarnation][id.sequence] = true;
		if (id.incarnation > newest[id.origin])
			newest[id.origin] = id.incarnation;
		if (round % 500 == 0)
		{
			copies &= copy_by_bytes(&origins, &copy) && same_bytes(&origins, &copy);
			paxos_origins_free(&origins);
			origins = copy;
			paxos_origins_init(&copy, &allocator);
		}
	}
	ok(right, "an id takes effect once, and one of an earlier start never after one of a later");
	ok(copies, "its bytes carry all of it");
	paxos_origins_free(&origins);
}

static void
too_old_to_be_told_counts_as_duplicate(void)
{
	PaxosOrigins origins;

	paxos_origins_init(&origins, &allocator);
	ok(!paxos_origins_note(&origins, (PaxosProposalId) {1, 5, PAXOS_DEDUP_WINDOW + 10}), "a high sequence may come first");
	ok(paxos_origins_is_duplicate(&origins, (PaxosProposalId) {1, 5, 10}), "what is a window older is taken for a duplicate");
	ok(!paxos_origins_is_duplicate(&origins, (PaxosProposalId) {1, 5, 11}), "what is younger than that is not");
	paxos_origins_free(&origins);
}

static bool
decodes(const uint8_t *bytes, size_t length)
{
	PaxosOrigins origins;
	uint8_t    *copy = malloc(length > 0 ? length : 1);
	bool		good;

	memcpy(copy, bytes, length);
	paxos_origins_init(&origins, &allocator);
	good = paxos_origins_decode(&origins, copy, length);
	paxos_origins_free(&origins);
	free(copy);
	return good;
}

static void
malformed_bytes_are_refused(void)
{
	uint8_t		bytes[4096];
	PaxosOrigins origins;
	size_t		length;
	size_t		of_one;
	bool		all_refused = true;

	paxos_origins_init(&origins, &allocator);
	ok(paxos_origins_encode(&origins, bytes, sizeof(bytes)) == 5 && decodes(bytes, 5), "no origin at all is fine");
	paxos_origins_note(&origins, (PaxosProposalId) {3, 1, 9});
	of_one = paxos_origins_size(&origins) - 5;
	paxos_origins_note(&origins, (PaxosProposalId) {4, 1, 100000});
	length = paxos_origins_encode(&origins, bytes, sizeof(bytes));
	for (size_t cut = 0; cut < length; cut++)
		all_refused &= !decodes(bytes, cut);
	ok(all_refused && decodes(bytes, length) && !decodes(bytes, length + 1), "bytes that are cut or too long are refused");
	bytes[0] = 2;
	ok(!decodes(bytes, length), "another version is refused");
	bytes[0] = 1;
	bytes[1] = 0xFF;
	ok(!decodes(bytes, length), "an absurd count is refused");
	bytes[1] = 0;
	bytes[5 + of_one + 3] = 3;
	ok(!decodes(bytes, length), "a node that stands there twice is refused");
	bytes[5 + of_one + 3] = 0;
	ok(!decodes(bytes, length), "a node without an id is refused");
	bytes[5 + of_one + 3] = 4;
	bytes[5 + 20 + 6] ^= 4;		/* word 0, bit 10: sequence 10 of an origin whose highest is 9 */
	ok(!decodes(bytes, length), "a mark of a sequence that was not yet is refused");
	bytes[5 + 20 + 6] ^= 4;
	bytes[5 + 20 + 6] ^= 2;		/* bit 9 */
	ok(!decodes(bytes, length), "a highest sequence without its mark is refused");
	bytes[5 + 20 + 6] ^= 2;
	ok(decodes(bytes, length), "without all that they are taken");
	paxos_origins_free(&origins);
}

int
main(void)
{
	each_id_takes_effect_once();
	too_old_to_be_told_counts_as_duplicate();
	malformed_bytes_are_refused();
	ok(allocated == 0, "all memory is given back");
	return tap_done();
}
