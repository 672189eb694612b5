/*
 * registers.c
 *	  Linearizability of registers with read, write and compare-and-set, one register at a time: the search of Wing and Gong, "Testing
 *	  and Verifying Concurrent Objects" (1993), with the memory of Lowe, "Testing for Linearizability" (2017).
 *
 * The search takes operations out of the list of invocations and answers in an order that explains all answers; where it can't go on it
 * takes the last one back.  A set of operations with the value that they left is never tried twice.  (The set is remembered by a 128-bit sum
 * of random numbers, one per operation.)
 *
 * An operation of unknown outcome is answered at the end of time: it may take effect at any moment after its start, or never, so nothing
 * needs explaining once all that is left are such.  One that failed never took effect and is left out.
 */
#include <stdlib.h>
#include <string.h>

#include "registers.h"

#define NO_ROW INT64_MIN
#define REMEMBERED_LIMIT 3000000
#define SHOWN_BEFORE 8

typedef struct Event Event;

struct Event
{
	Event	   *previous;
	Event	   *next;
	Event	   *answer;			/* of an invocation; NULL: this is an answer */
	const Operation *operation;
	const Transaction *transaction;
	int64_t		at_us;			/* INT64_MAX: never */
	uint64_t	mark[2];		/* of an invocation: its part in the sum that stands for a set */
};

typedef struct Remembered
{
	uint64_t	set[2];
	int64_t		value;
	bool		is_used;
} Remembered;

typedef struct Search
{
	Event	   *events;			/* answers and invocations by time, the first one is the list's head */
	int			event_count;
	Event	  **taken;			/* invocations, in the order of taking them */
	int64_t    *value_before;	/* each of them */
	int			taken_count;
	uint64_t	set[2];
	int64_t		value;
	Remembered *remembered;
	int			remembered_count;
	int			remembered_size;	/* a power of two */
	Event	  **deepest;		/* the longest order that was found, for the report */
	int			deepest_count;
	Event	   *stuck_at;		/* the answer that it could not explain */
} Search;

static uint64_t
next_random(uint64_t *state)
{
	uint64_t	mixed = (*state += UINT64_C(0x9E3779B97F4A7C15));

	mixed = (mixed ^ (mixed >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
	mixed = (mixed ^ (mixed >> 27)) * UINT64_C(0x94D049BB133111EB);
	return mixed ^ (mixed >> 31);
}

/* ---- the memory ---- */

static Remembered *
find_remembered(const Remembered *table, int size, const uint64_t set[2], int64_t value)
{
	uint64_t	slot = (set[0] ^ ((uint64_t) value * UINT64_C(0x9E3779B97F4A7C15))) & (uint64_t) (size - 1);

	while (table[slot].is_used &&
		   (table[slot].set[0] != set[0] || table[slot].set[1] != set[1] || table[slot].value != value))
		slot = (slot + 1) & (uint64_t) (size - 1);
	return (Remembered *) &table[slot];
}

/* False if it was there already. */
static bool
remember(Search *search, const uint64_t set[2], int64_t value)
{
	Remembered *place;

	if (2 * (search->remembered_count + 1) > search->remembered_size)
	{
		int			size = search->remembered_size == 0 ? 1024 : 2 * search->remembered_size;
		Remembered *larger = allocate((size_t) size * sizeof(Remembered));

		for (int i = 0; i < search->remembered_size; i++)
			if (search->remembered[i].is_used)
				*find_remembered(larger, size, search->remembered[i].set, search->remembered[i].value) = search->remembered[i];
		free(search->remembered);
		search->remembered = larger;
		search->remembered_size = size;
	}
	place = find_remembered(search->remembered, search->remembered_size, set, value);
	if (place->is_used)
		return false;
	*place = (Remembered) {.set = {set[0], set[1]}, .value = value, .is_used = true};
	search->remembered_count++;
	return true;
}

/* ---- what operations do ---- */

static int64_t
value_read(const Operation *operation)
{
	return operation->value_count == 0 ? NO_ROW : operation->values[0];
}

/* Could the operation have been answered as it was, with this value before it?  Then also the value after it. */
static bool
perform(const Operation *operation, int64_t before, int64_t *after)
{
	*after = before;
	switch (operation->kind)
	{
		case 'r':
			return value_read(operation) == before;
		case 'w':
			*after = operation->arguments[0];
			return true;
		default:
			if (operation->arguments[0] == before && operation->arguments[2] != 0)
				*after = operation->arguments[1];
			return operation->arguments[2] == 2 || (operation->arguments[2] == 1) == (operation->arguments[0] == before);
	}
}

/* ---- the search ---- */

static void
take(Search *search, Event *invocation, int64_t after)
{
	invocation->previous->next = invocation->next;
	if (invocation->next != NULL)
		invocation->next->previous = invocation->previous;
	invocation->answer->previous->next = invocation->answer->next;
	if (invocation->answer->next != NULL)
		invocation->answer->next->previous = invocation->answer->previous;
	search->taken[search->taken_count] = invocation;
	search->value_before[search->taken_count++] = search->value;
	search->set[0] ^= invocation->mark[0];
	search->set[1] ^= invocation->mark[1];
	search->value = after;
}

static Event *
take_back(Search *search)
{
	Event	   *invocation = search->taken[--search->taken_count];

	search->value = search->value_before[search->taken_count];
	search->set[0] ^= invocation->mark[0];
	search->set[1] ^= invocation->mark[1];
	invocation->answer->previous->next = invocation->answer;
	if (invocation->answer->next != NULL)
		invocation->answer->next->previous = invocation->answer;
	invocation->previous->next = invocation;
	if (invocation->next != NULL)
		invocation->next->previous = invocation;
	return invocation;
}

static void
note_depth(Search *search, Event *answer)
{
	if (search->taken_count < search->deepest_count && search->stuck_at != NULL)
		return;
	memcpy(search->deepest, search->taken, (size_t) search->taken_count * sizeof(Event *));
	search->deepest_count = search->taken_count;
	search->stuck_at = answer;
}

typedef enum Verdict
{
	VERDICT_LINEARIZABLE,
	VERDICT_NOT_LINEARIZABLE,
	VERDICT_UNDECIDED
} Verdict;

static Verdict
search_order(Search *search)
{
	Event	   *event = search->events[0].next;

	while (event != NULL && event->at_us != INT64_MAX)
	{
		int64_t		after;

		if (event->answer != NULL && perform(event->operation, search->value, &after))
		{
			uint64_t	set[2] = {search->set[0] ^ event->mark[0], search->set[1] ^ event->mark[1]};

			if (search->remembered_count >= REMEMBERED_LIMIT)
				return VERDICT_UNDECIDED;
			if (remember(search, set, after))
			{
				take(search, event, after);
				event = search->events[0].next;
				continue;
			}
		}
		if (event->answer != NULL)
		{
			event = event->next;
			continue;
		}
		note_depth(search, event);
		if (search->taken_count == 0)
			return VERDICT_NOT_LINEARIZABLE;
		event = take_back(search)->next;
	}
	return VERDICT_LINEARIZABLE;
}

/* ---- a register's events ---- */

typedef struct Register
{
	int64_t		key;
	Event	   *events;			/* pairs: invocation, answer */
	int			count;
	int			allocated;
} Register;

static int
compare_times(const void *left, const void *right)
{
	const Event *events[2] = {*(const Event *const *) left, *(const Event *const *) right};

	if (events[0]->at_us != events[1]->at_us)
		return events[0]->at_us < events[1]->at_us ? -1 : 1;
	/* At the same moment: invocations first, since nobody knows the order. */
	return (events[0]->answer == NULL) - (events[1]->answer == NULL);
}

/* Puts the events into one list by time, behind a head. */
static Search
make_search(Register *reg)
{
	Search		search = {.event_count = reg->count, .value = NO_ROW};
	Event	  **sorted = allocate((size_t) reg->count * sizeof(Event *));
	Event	   *head = allocate(sizeof(Event));
	Event	   *last = head;
	uint64_t	random_state = (uint64_t) reg->key;

	for (int i = 0; i < reg->count; i += 2)
	{
		reg->events[i].answer = &reg->events[i + 1];
		reg->events[i].mark[0] = next_random(&random_state);
		reg->events[i].mark[1] = next_random(&random_state);
	}
	for (int i = 0; i < reg->count; i++)
		sorted[i] = &reg->events[i];
	qsort(sorted, (size_t) reg->count, sizeof(Event *), compare_times);
	for (int i = 0; i < reg->count; i++)
	{
		last->next = sorted[i];
		sorted[i]->previous = last;
		last = sorted[i];
	}
	free(sorted);
	search.events = head;
	search.taken = allocate((size_t) reg->count * sizeof(Event *));
	search.deepest = allocate((size_t) reg->count * sizeof(Event *));
	search.value_before = allocate((size_t) reg->count * sizeof(int64_t));
	return search;
}

static void
free_search(Search *search)
{
	free(search->events);
	free(search->taken);
	free(search->deepest);
	free(search->value_before);
	free(search->remembered);
}

static void
print_search(const Search *search, const Register *reg, Report *report)
{
	int			first = search->deepest_count > SHOWN_BEFORE ? search->deepest_count - SHOWN_BEFORE : 0;
	const Event *stuck = search->stuck_at;

	report_detail(report, "%d operations in order, the last ones of them:", search->deepest_count);
	for (int i = first; i < search->deepest_count; i++)
		report_transaction(report, "  ", search->deepest[i]->transaction);
	report_transaction(report, "can't be placed: ", stuck->transaction);
	for (int i = 0; i < reg->count; i += 2)
	{
		const Event *other = &reg->events[i];

		if (other->transaction != stuck->transaction && other->at_us < stuck->at_us &&
			other[1].at_us > stuck->operation->start_us && other[1].at_us != INT64_MAX)
			report_transaction(report, "at the same time: ", other->transaction);
		else if (other->transaction != stuck->transaction && other->at_us < stuck->at_us && other[1].at_us == INT64_MAX)
			report_transaction(report, "unknown by then: ", other->transaction);
	}
}

static void
check_register(Register *reg, Report *report)
{
	Search		search = make_search(reg);
	Verdict		verdict = search_order(&search);

	if (verdict == VERDICT_UNDECIDED)
		report_anomaly(report, ANOMALY_UNDECIDED, "register %lld: given up after %d states of %d operations", (long long) reg->key,
					   search.remembered_count, reg->count / 2);
	else if (verdict == VERDICT_NOT_LINEARIZABLE &&
			 report_anomaly(report, ANOMALY_NOT_LINEARIZABLE, "register %lld, %d operations", (long long) reg->key, reg->count / 2))
		print_search(&search, reg, report);
	free_search(&search);
}

/* Is there anything to explain about this operation, or anything that it may have done? */
static bool
counts(const Transaction *transaction, const Operation *operation)
{
	if (operation->kind == 'r')
		return operation->value_count != NO_ANSWER && !transaction->is_local;
	/* A compare and set that found another value has only read. */
	if (operation->kind == 'c' && operation->arguments[2] == 0 && transaction->is_local)
		return false;
	return transaction->outcome != OUTCOME_FAILED;
}

void
check_registers(const History *history, Report *report)
{
	Map			register_of_key = {0};
	Register   *registers = NULL;
	int			register_count = 0;
	int			allocated = 0;

	for (int i = 0; i < history->count; i++)
	{
		const Transaction *transaction = &history->transactions[i];

		for (int j = 0; j < transaction->operation_count; j++)
		{
			const Operation *operation = &transaction->operations[j];
			int			index = map_get(&register_of_key, operation->key);
			Register   *reg;
			bool		is_answered = operation->kind == 'r' || transaction->outcome == OUTCOME_OK;

			if (!counts(transaction, operation))
				continue;
			if (index < 0)
			{
				index = register_count++;
				registers = grow(registers, register_count, &allocated, sizeof(Register));
				registers[index] = (Register) {.key = operation->key};
				map_put(&register_of_key, operation->key, index);
			}
			reg = &registers[index];
			reg->events = grow(reg->events, reg->count + 2, &reg->allocated, sizeof(Event));
			reg->events[reg->count++] = (Event) {.operation = operation, .transaction = transaction, .at_us = operation->start_us};
			reg->events[reg->count++] = (Event) {.operation = operation, .transaction = transaction,
			.at_us = is_answered ? operation->end_us : INT64_MAX};
		}
	}
	for (int i = 0; i < register_count; i++)
		check_register(&registers[i], report);
	free(registers);
}
