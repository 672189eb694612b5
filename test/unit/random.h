/*
 * random.h
 *	  Random numbers for the unit tests: the same from each seed, on every machine.
 */
#ifndef TEST_UNIT_RANDOM_H
#define TEST_UNIT_RANDOM_H

#include <stdbool.h>
#include <stdint.h>

static uint64_t random_state;

static inline void
random_seed(uint64_t seed)
{
	random_state = seed * UINT64_C(0x9E3779B97F4A7C15) + 1;
}

/* splitmix64 */
static inline uint64_t
random_bits(void)
{
	uint64_t	number = random_state += UINT64_C(0x9E3779B97F4A7C15);

	number = (number ^ number >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
	number = (number ^ number >> 27) * UINT64_C(0x94D049BB133111EB);
	return number ^ number >> 31;
}

/* From 0 to one less than `limit`. */
static inline uint32_t
random_below(uint32_t limit)
{
	return (uint32_t) (random_bits() % limit);
}

static inline bool
random_chance(uint32_t percent)
{
	return random_below(100) < percent;
}

#endif							/* TEST_UNIT_RANDOM_H */
