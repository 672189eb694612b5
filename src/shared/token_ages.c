/*
 * token_ages.c
 *	  How long this node has known the tokens that certification remembers.  Process: consensus worker, client backends (any program: this file is pure C).
 *
 * Must never take a token for older than it is.
 *
 * Invariants
 *	 1. put_count grows from sample to sample; index and clock_ms never fall.
 *	 2. Whatever samples are dropped, what the others say stays true.
 */
#include "shared/token_ages.h"
#include "shared/token_epochs.h"

#include <string.h>

static uint64_t
step_of(uint32_t capacity)
{
	return capacity > TOKEN_AGES_STEPS ? capacity / TOKEN_AGES_STEPS : 1;
}

/* How many tokens are forgotten once so many have been put: those with the lowest numbers. */
static uint64_t
forgotten_of(uint32_t capacity, uint64_t put_count)
{
	return put_count > capacity ? put_count - capacity : 0;
}

static uint64_t
old_until(const TokenAges *ages, uint64_t clock_ms, uint64_t age_ms)
{
	const TokenSample *sample = token_ages_newest_of_age(ages, clock_ms, age_ms);

	return sample != NULL ? sample->put_count : 0;
}

/* First those that count only what is forgotten; if that is not enough, each second one. */
static void
make_room(TokenAges *ages, uint32_t capacity, uint64_t put_count)
{
	uint64_t	forgotten = forgotten_of(capacity, put_count);
	uint32_t	kept = 0;

	for (uint32_t i = 0; i < ages->count; i++)
		if (ages->samples[i].put_count > forgotten)
			ages->samples[kept++] = ages->samples[i];
	ages->count = kept;
	if (kept < TOKEN_AGES_SAMPLES)
		return;
	for (uint32_t i = 0; i < TOKEN_AGES_SAMPLES / 2; i++)
		ages->samples[i] = ages->samples[2 * i + 1];
	ages->count = TOKEN_AGES_SAMPLES / 2;
}

void
token_ages_note(TokenAges *ages, uint32_t capacity, const TokenSample *now)
{
	const TokenSample *last = ages->count > 0 ? &ages->samples[ages->count - 1] : NULL;

	if (now->put_count == 0)
		return;
	if (last != NULL && (now->put_count < last->put_count + step_of(capacity) || now->index < last->index || now->clock_ms < last->clock_ms))
		return;
	if (ages->count == TOKEN_AGES_SAMPLES)
		make_room(ages, capacity, now->put_count);
	ages->samples[ages->count++] = *now;
}

void
token_ages_drop_behind(TokenAges *ages, uint64_t put_count, uint64_t index)
{
	while (ages->count > 0 && (ages->samples[ages->count - 1].put_count > put_count || ages->samples[ages->count - 1].index > index))
		ages->count--;
}

const TokenSample *
token_ages_newest_of_age(const TokenAges *ages, uint64_t clock_ms, uint64_t age_ms)
{
	for (uint32_t i = ages->count; i > 0; i--)
	{
		const TokenSample *sample = &ages->samples[i - 1];

		if (sample->clock_ms <= clock_ms && clock_ms - sample->clock_ms >= age_ms)
			return sample;
	}
	return NULL;
}

uint64_t
token_ages_guard(const TokenAges *ages, uint32_t capacity, uint64_t put_count, uint32_t spare, uint64_t clock_ms, uint64_t age_ms)
{
	uint64_t	guard = token_epoch_last(capacity, spare, old_until(ages, clock_ms, age_ms));

	return guard > token_epoch_of(capacity, put_count) ? guard : 0;
}

/* There is if the token could be that of an attempt with a guard. */
bool
token_ages_have_room(const TokenAges *ages, uint32_t capacity, uint64_t put_count, uint32_t spare, uint64_t clock_ms, uint64_t age_ms)
{
	return token_ages_guard(ages, capacity, put_count, spare, clock_ms, age_ms) != 0;
}

uint64_t
token_ages_forgotten_early(const TokenAges *ages, uint32_t capacity, uint64_t old_put_count, uint64_t put_count, uint64_t clock_ms,
						   uint64_t age_ms)
{
	uint64_t	before = forgotten_of(capacity, old_put_count);
	uint64_t	after = forgotten_of(capacity, put_count);
	uint64_t	old_enough = old_until(ages, clock_ms, age_ms);

	if (old_enough > before)
		before = old_enough;
	return after > before ? after - before : 0;
}

bool
token_ages_oldest(const TokenAges *ages, uint32_t capacity, uint64_t put_count, uint64_t clock_ms, uint64_t *age_ms)
{
	uint64_t	forgotten = forgotten_of(capacity, put_count);

	for (uint32_t i = 0; i < ages->count; i++)
	{
		const TokenSample *sample = &ages->samples[i];

		if (sample->put_count <= forgotten)
			continue;
		*age_ms = clock_ms > sample->clock_ms ? clock_ms - sample->clock_ms : 0;
		return true;
	}
	return false;
}

bool
token_ages_are_valid(const TokenAges *ages, uint64_t clock_ms)
{
	if (ages->count > TOKEN_AGES_SAMPLES)
		return false;
	for (uint32_t i = 0; i < ages->count; i++)
	{
		const TokenSample *sample = &ages->samples[i];

		if (sample->put_count == 0 || sample->clock_ms > clock_ms)
			return false;
		if (i > 0 && (sample->put_count <= sample[-1].put_count || sample->index < sample[-1].index || sample->clock_ms < sample[-1].clock_ms))
			return false;
	}
	return true;
}
