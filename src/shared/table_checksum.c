/*
 * table_checksum.c
 *	  Checksums of a table's rows, and what follows from those of all nodes.
 *
 * Pure; used by the check worker, client backends, the apply worker and the unit tests.  Must never depend on the machine: the sums
 * of all nodes are compared.
 *
 * Invariants
 *	 1. The same bytes give the same hash on each machine, whatever its byte order.
 *	 2. A node is said to differ only if as many other voters agree with each other as are needed for a quorum: they are the majority that a
 *		committed transaction rests on, and two such majorities cannot exist.
 */
#include "shared/table_checksum.h"

#include <string.h>

/* Arbitrary, and for ever: nodes of different builds compare their sums. */
#define KEY_LOW UINT64_C(0x5121f0c4a7e3d986)
#define KEY_HIGH UINT64_C(0x90ce3b5f172d8a64)

/* ---- SipHash-2-4, 128 bits (Aumasson and Bernstein 2012) ---- */

typedef struct SipState
{
	uint64_t	v0;
	uint64_t	v1;
	uint64_t	v2;
	uint64_t	v3;
} SipState;

static inline uint64_t
rotate_left(uint64_t value, int bits)
{
	return (value << bits) | (value >> (64 - bits));
}

static inline void
sip_rounds(SipState *s, int count)
{
	for (int i = 0; i < count; i++)
	{
		s->v0 += s->v1;
		s->v1 = rotate_left(s->v1, 13) ^ s->v0;
		s->v0 = rotate_left(s->v0, 32);
		s->v2 += s->v3;
		s->v3 = rotate_left(s->v3, 16) ^ s->v2;
		s->v0 += s->v3;
		s->v3 = rotate_left(s->v3, 21) ^ s->v0;
		s->v2 += s->v1;
		s->v1 = rotate_left(s->v1, 17) ^ s->v2;
		s->v2 = rotate_left(s->v2, 32);
	}
}

static inline void
sip_take(SipState *s, uint64_t word)
{
	s->v3 ^= word;
	sip_rounds(s, 2);
	s->v0 ^= word;
}

/* Little endian, as the algorithm has it. */
static inline uint64_t
read_word(const uint8_t *bytes, size_t length)
{
	uint64_t	word = 0;

	for (size_t i = 0; i < length; i++)
		word |= (uint64_t) bytes[i] << (8 * i);
	return word;
}

RowHash
row_hash(const void *bytes, size_t length)
{
	const uint8_t *at = bytes;
	const uint8_t *last = at + (length & ~(size_t) 7);
	SipState	s;
	RowHash		hash;

	s.v0 = KEY_LOW ^ UINT64_C(0x736f6d6570736575);
	s.v1 = KEY_HIGH ^ UINT64_C(0x646f72616e646f6d) ^ 0xee;
	s.v2 = KEY_LOW ^ UINT64_C(0x6c7967656e657261);
	s.v3 = KEY_HIGH ^ UINT64_C(0x7465646279746573);
	for (; at < last; at += 8)
		sip_take(&s, read_word(at, 8));
	sip_take(&s, ((uint64_t) length << 56) | read_word(last, length & 7));
	s.v2 ^= 0xee;
	sip_rounds(&s, 4);
	hash.low = s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
	s.v1 ^= 0xdd;
	sip_rounds(&s, 4);
	hash.high = s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
	return hash;
}

uint32_t
row_bucket(const void *key_bytes, size_t length, uint32_t bucket_count)
{
	return (uint32_t) (row_hash(key_bytes, length).low % bucket_count);
}

/* ---- sums ---- */

void
table_sum_add(TableSum *sum, RowHash hash)
{
	sum->row_count++;
	sum->hash.high += hash.high;
	sum->hash.low += hash.low;
}

void
table_sum_add_sum(TableSum *sum, const TableSum *other)
{
	sum->row_count += other->row_count;
	sum->hash.high += other->hash.high;
	sum->hash.low += other->hash.low;
}

bool
table_sum_equal(const TableSum *one, const TableSum *other)
{
	return one->row_count == other->row_count && one->hash.high == other->hash.high && one->hash.low == other->hash.low;
}

/* ---- what follows from those of all nodes ---- */

static int
voters_with_sum(const NodeCheck *checks, int count, const TableSum *sum)
{
	int			voters = 0;

	for (int i = 0; i < count; i++)
		if (checks[i].is_voter && checks[i].outcome == CHECK_DONE && table_sum_equal(&checks[i].sum, sum))
			voters++;
	return voters;
}

bool
check_majority(const NodeCheck *checks, int count, int quorum_size, TableSum *agreed)
{
	for (int i = 0; i < count; i++)
		if (checks[i].outcome == CHECK_DONE && quorum_size > 0 && voters_with_sum(checks, count, &checks[i].sum) >= quorum_size)
		{
			*agreed = checks[i].sum;
			return true;
		}
	return false;
}

CheckVerdict
check_verdict(const NodeCheck *checks, int count, int quorum_size, uint32_t node_id)
{
	TableSum	agreed;

	if (!check_majority(checks, count, quorum_size, &agreed))
		return CHECK_UNDECIDED;
	for (int i = 0; i < count; i++)
	{
		if (checks[i].node_id != node_id || checks[i].outcome == CHECK_SKIPPED)
			continue;
		return checks[i].outcome == CHECK_DONE && table_sum_equal(&checks[i].sum, &agreed) ? CHECK_MATCHES : CHECK_DIFFERS;
	}
	return CHECK_UNDECIDED;
}
