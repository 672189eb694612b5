/*
 * test_certifier.c
 *	  The verdict over entries equals its definition, on random logs; each of the certifier's four numbers is needed for that.
 */
#include <stdlib.h>

#include "shared/certifier.h"
#include "tap.h"

#define LOG_LENGTH 60
#define LOGS 20000

typedef struct Entry
{
	uint32_t	origin;
	uint64_t	incarnation;
	uint64_t	base;
	uint64_t	conflict_index;
} Entry;

static bool
same_author(const Entry *left, const Entry *right)
{
	return left->origin == right->origin && left->incarnation == right->incarnation;
}

/* By the book: is there an entry of another author that takes effect in (base, index)?  The newest one is told. */
static uint64_t
conflict_by_definition(const Entry *log, uint64_t index)
{
	for (uint64_t other = index - 1; other > log[index].base; other--)
		if (log[other].conflict_index == 0 && !same_author(&log[other], &log[index]))
			return other;
	return 0;
}

static void
make_entry(Entry *entry, uint64_t index)
{
	entry->origin = 1 + (uint32_t) (rand() % 3);
	entry->incarnation = 1 + (uint64_t) (rand() % 2);
	entry->base = rand() % 3 == 0 ? index - 1 : (uint64_t) rand() % index;
}

static void
verdicts_equal_their_definition(void)
{
	bool		equal = true;
	int			rejected = 0;
	int			applied = 0;

	for (int run = 0; run < LOGS; run++)
	{
		Certifier	certifier = {0};
		Entry		log[LOG_LENGTH + 1] = {{0}};

		for (uint64_t index = 1; index <= LOG_LENGTH; index++)
		{
			make_entry(&log[index], index);
			log[index].conflict_index = conflict_by_definition(log, index);
			equal = equal && certify(&certifier, index, log[index].origin, log[index].incarnation,
									 log[index].base) == log[index].conflict_index;
			*(log[index].conflict_index ? &rejected : &applied) += 1;
		}
	}
	ok(equal, "verdicts over random logs equal their definition");
	ok(rejected > LOGS && applied > LOGS, "and there were enough of both kinds");
}

static void
an_author_is_never_in_its_own_way(void)
{
	Certifier	certifier = {0};
	bool		applied = true;

	for (uint64_t index = 1; index <= 100; index++)
		applied = applied && certify(&certifier, index, 1, 7, 0) == 0;
	ok(applied, "entries of one author do not reject each other, however old their base");
	ok(certify(&certifier, 101, 1, 8, 99) == 100, "a restarted author is another one: it may not have seen all of it");
	ok(certify(&certifier, 102, 1, 8, 100) == 0, "with a newer base it goes through");
	ok(certify(&certifier, 103, 1, 7, 101) == 102, "then the earlier one is late");
}

static void
a_made_up_base_is_rejected(void)
{
	Certifier	certifier = {0};

	ok(certify(&certifier, 1, 1, 1, 1) == 1, "nobody has seen its own entry");
	ok(certify(&certifier, 2, 1, 1, UINT64_MAX) == 2, "nor the end of all logs");
	ok(certify(&certifier, 3, 2, 1, 0) == 0, "and what was rejected is in nobody's way");
}

int
main(void)
{
	srand(20240229);
	verdicts_equal_their_definition();
	an_author_is_never_in_its_own_way();
	a_made_up_base_is_rejected();
	return tap_done();
}
