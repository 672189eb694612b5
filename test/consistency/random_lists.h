/*
 * random_lists.h
 *	  Histories of a store in memory that is right, or broken in one chosen way.
 */
#ifndef TEST_CONSISTENCY_RANDOM_LISTS_H
#define TEST_CONSISTENCY_RANDOM_LISTS_H

#include <stdint.h>
#include <stdio.h>

typedef enum Fault
{
	FAULT_NONE,
	FAULT_NO_FIRST_COMMITTER,	/* a concurrent append does not abort a snapshot transaction */
	FAULT_OLD_SNAPSHOT,			/* now and then a snapshot is older than what was acknowledged */
	FAULT_LOST_COMMIT,			/* now and then a commit is acknowledged and does not happen */
	FAULT_FAILED_COMMITS,		/* now and then a commit is refused and happens */
	FAULT_TORN_COMMIT,			/* now and then a transaction becomes visible in two steps */
	FAULT_LONG_FORK,			/* node 2 shows now and then the last commit without the one before it */
	FAULT_NO_READ_VALIDATION,	/* SERIALIZABLE is snapshot isolation */
	FAULT_SNAPSHOT_PER_LIST,	/* a statement that reads two lists takes two snapshots */
	FAULT_APPLIED_TWICE,		/* now and then a transaction is applied twice */
	FAULT_OWN_APPENDS_MISSING,	/* now and then a transaction does not see its own appends */
	FAULT_DIRTY_READ,			/* now and then a read shows what has not committed */
	FAULT_COUNT
} Fault;

extern const char *fault_name(Fault fault);

/* Writes a history of so many transactions, with final reads on three nodes. */
extern void write_random_lists(FILE *out, Fault fault, uint64_t seed, int transaction_count);

#endif							/* TEST_CONSISTENCY_RANDOM_LISTS_H */
