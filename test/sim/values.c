/*
 * values.c
 *	  Every value that a client ever proposed, numbered.
 *
 * The observer compares values by number.  A value that turns up in a record, a frame or a delivery is looked up by its
 * id and compared byte by byte, so that a value which nobody proposed, or which was altered on its way, is noticed.
 *
 * Invariants
 *	1. value_from_nowhere: a value that is not a no-op was proposed by a client, with this kind and these bytes.
 */
#include "sim.h"

static uint64_t
id_hash(PaxosProposalId id)
{
	return sim_mix(sim_mix(sim_mix(17, id.origin), id.incarnation), id.sequence);
}

static bool
same_id(PaxosProposalId a, PaxosProposalId b)
{
	return a.origin == b.origin && a.incarnation == b.incarnation && a.sequence == b.sequence;
}

void
sim_values_init(Sim *sim)
{
	sim->value_capacity = 256;
	sim->values = calloc(sim->value_capacity, sizeof(SimValue));
	sim->value_table_size = 1024;
	sim->value_table = calloc(sim->value_table_size, sizeof(uint32_t));
	sim->value_count = 1;		/* the no-op */
}

void
sim_values_free(Sim *sim)
{
	for (uint32_t i = 1; i < sim->value_count; i++)
		free(sim->values[i].bytes);
	free(sim->values);
	free(sim->value_table);
}

/* The place of an id in the table: its own, or the free one where it belongs. */
static uint32_t *
find_place(Sim *sim, PaxosProposalId id)
{
	uint32_t	i = (uint32_t) (id_hash(id) & (sim->value_table_size - 1));

	while (sim->value_table[i] != 0 && !same_id(sim->values[sim->value_table[i]].id, id))
		i = (i + 1) & (sim->value_table_size - 1);
	return &sim->value_table[i];
}

static void
grow(Sim *sim)
{
	if (sim->value_count == sim->value_capacity)
	{
		sim->value_capacity *= 2;
		sim->values = realloc(sim->values, sim->value_capacity * sizeof(SimValue));
	}
	if (sim->value_count * 2 > sim->value_table_size)
	{
		free(sim->value_table);
		sim->value_table_size *= 2;
		sim->value_table = calloc(sim->value_table_size, sizeof(uint32_t));
		for (uint32_t i = 1; i < sim->value_count; i++)
			*find_place(sim, sim->values[i].id) = i;
	}
}

uint32_t
sim_value_add(Sim *sim, PaxosValueKind kind, PaxosProposalId id, const uint8_t *bytes, uint32_t length)
{
	SimValue   *value;

	grow(sim);
	value = &sim->values[sim->value_count];
	memset(value, 0, sizeof(*value));
	value->kind = kind;
	value->id = id;
	value->length = length;
	value->bytes = malloc(length + 1);
	memcpy(value->bytes, bytes, length);
	*find_place(sim, id) = sim->value_count;
	return sim->value_count++;
}

/* A proposal was refused: nothing was kept, so the value must not turn up. */
void
sim_value_forget_last(Sim *sim)
{
	uint32_t	last = sim->value_count - 1;

	*find_place(sim, sim->values[last].id) = 0; /* nothing was added behind it, so no chain is broken */
	free(sim->values[last].bytes);
	sim->value_count--;
}

uint32_t
sim_value_find(Sim *sim, PaxosValueKind kind, PaxosProposalId id, const uint8_t *bytes, uint32_t length)
{
	uint32_t	number;
	const SimValue *known;

	if (kind == PAXOS_VALUE_NOOP)
	{
		if (id.origin != 0 || length != 0)
			sim_fail(sim, "value_from_nowhere", "a no-op has an id or bytes");
		return 0;
	}
	number = *find_place(sim, id);
	if (number == 0)
		sim_fail(sim, "value_from_nowhere", "nobody proposed (%u, %llu, %llu)", id.origin,
				 (unsigned long long) id.incarnation, (unsigned long long) id.sequence);
	known = &sim->values[number];
	if (known->kind != kind || known->length != length || memcmp(known->bytes, bytes, length) != 0)
		sim_fail(sim, "value_from_nowhere", "value %u was altered", number);
	return number;
}

uint32_t
sim_value_number(Sim *sim, const PaxosValue *value)
{
	return sim_value_find(sim, value->kind, value->id, value->bytes, value->length);
}

PaxosValue *
sim_value_make(Sim *sim, uint32_t number)
{
	const SimValue *value = &sim->values[number];

	return paxos_value_make(&sim->allocator, value->kind, value->id, value->bytes, value->length);
}
