/*
 * random.c
 *	  The simulator's only source of chance, and its queue of things to come.
 *
 * The generator is xoshiro256** (Blackman and Vigna), filled by splitmix64 from the seed.
 *
 * Invariants
 *	1. Nothing else in the simulator is random: the same seed gives the same run.
 *	2. Events with equal times come out in the order in which they were scheduled.
 */
#include "sim.h"

static uint64_t
splitmix(uint64_t *state)
{
	uint64_t	z = (*state += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static uint64_t
rotate_left(uint64_t x, int bits)
{
	return (x << bits) | (x >> (64 - bits));
}

void
sim_random_seed(SimRandom *random, uint64_t seed)
{
	uint64_t	state = seed;

	for (int i = 0; i < 4; i++)
		random->state[i] = splitmix(&state);
}

uint64_t
sim_random(Sim *sim)
{
	uint64_t   *s = sim->random.state;
	uint64_t	result = rotate_left(s[1] * 5, 7) * 9;
	uint64_t	t = s[1] << 17;

	s[2] ^= s[0];
	s[3] ^= s[1];
	s[1] ^= s[2];
	s[0] ^= s[3];
	s[2] ^= t;
	s[3] = rotate_left(s[3], 45);
	return result;
}

uint64_t
sim_below(Sim *sim, uint64_t limit)
{
	return limit < 2 ? 0 : sim_random(sim) % limit;
}

bool
sim_chance(Sim *sim, uint32_t parts_per_million)
{
	return parts_per_million > 0 && sim_below(sim, SIM_MILLION) < parts_per_million;
}

uint64_t
sim_mix(uint64_t hash, uint64_t number)
{
	hash = (hash ^ number) * UINT64_C(0x9fb21c651e98df25);
	return hash ^ (hash >> 29);
}

static bool
event_before(const SimEvent *a, const SimEvent *b)
{
	return a->at != b->at ? a->at < b->at : a->order < b->order;
}

void
sim_schedule(Sim *sim, SimEvent event)
{
	size_t		i;

	if (sim->event_count == sim->event_capacity)
	{
		sim->event_capacity = sim->event_capacity == 0 ? 256 : sim->event_capacity * 2;
		sim->events = realloc(sim->events, sim->event_capacity * sizeof(SimEvent));
		if (sim->events == NULL)
			abort();
	}
	event.order = ++sim->event_order;
	for (i = sim->event_count++; i > 0 && event_before(&event, &sim->events[(i - 1) / 2]); i = (i - 1) / 2)
		sim->events[i] = sim->events[(i - 1) / 2];
	sim->events[i] = event;
}

/* Takes the next event that is due at `until` or before. */
bool
sim_next_event(Sim *sim, SimTime until, SimEvent *event)
{
	SimEvent	last;
	size_t		i = 0;
	size_t		child;

	if (sim->event_count == 0 || sim->events[0].at > until)
		return false;
	*event = sim->events[0];
	last = sim->events[--sim->event_count];
	while ((child = 2 * i + 1) < sim->event_count)
	{
		if (child + 1 < sim->event_count && event_before(&sim->events[child + 1], &sim->events[child]))
			child++;
		if (!event_before(&sim->events[child], &last))
			break;
		sim->events[i] = sim->events[child];
		i = child;
	}
	if (sim->event_count > 0)
		sim->events[i] = last;
	return true;
}
