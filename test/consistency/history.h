/*
 * history.h
 *	  A history: what clients asked and what they were told, as test/tap/consistency_client.c writes it down.
 *
 * One line is one transaction, or one statement that commits by itself:
 *
 *	t CLIENT NODE LEVEL OUTCOME SQLSTATE START END ; OPERATION ; OPERATION ...
 *
 *	LEVEL	rc, rr, ser: the isolation level; final: a snapshot that was read when all clients had ended.  With "+local" the reads
 *			were not linearizable (quorum.read_consistency = local).
 *	OUTCOME	ok; failed: surely not committed, says the answer; unknown: nobody said.
 *	START, END	microseconds of the machine's monotonic clock, when it was begun and when its outcome was known
 *
 * An operation is KIND STATEMENT KEY START END ARGUMENTS; operations of one SQL statement have the same STATEMENT:
 *
 *	a 0 7 START END 1001		append 1001 to list 7
 *	r 1 7 START END 5,9,1001	read of list 7, or of register 7; "-": empty, or no such row; "?": no answer
 *	w 0 7 START END 33			write register 7
 *	c 0 7 START END 33 34 1		compare and set: expected, new, whether it was done (2: not known)
 *	x 0 1 START END 2 50 77		transfer number 77 of 50 from account 1 to account 2
 *	b 0 0 START END 100,90,110	the balances of all accounts
 *	l 1 0 START END 77,78		the numbers of all transfers in the ledger
 *
 * Lines that begin with '#' are comments.  Everything is allocated for the life of the process.
 */
#ifndef TEST_CONSISTENCY_HISTORY_H
#define TEST_CONSISTENCY_HISTORY_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "anomalies.h"

typedef enum Level
{
	LEVEL_READ_COMMITTED,
	LEVEL_REPEATABLE_READ,
	LEVEL_SERIALIZABLE
} Level;

typedef enum Outcome
{
	OUTCOME_OK,
	OUTCOME_FAILED,
	OUTCOME_UNKNOWN
} Outcome;

#define MAX_ARGUMENTS 3
#define NO_ANSWER (-1)

typedef struct Operation
{
	char		kind;
	int			statement;
	int64_t		key;
	int64_t		start_us;
	int64_t		end_us;
	int64_t		arguments[MAX_ARGUMENTS];
	int64_t    *values;			/* of a read */
	int			value_count;	/* or NO_ANSWER */
} Operation;

typedef struct Transaction
{
	const char *line;			/* as it was read */
	int			client;
	int			node;
	Level		level;
	bool		is_local;		/* its reads need not be linearizable */
	bool		is_final;
	Outcome		outcome;
	int64_t		start_us;
	int64_t		end_us;
	Operation  *operations;
	int			operation_count;
} Transaction;

typedef struct History
{
	Transaction *transactions;
	int			count;
	int			allocated;
} History;

/* Adds the lines of a file.  What can't be understood is reported as ANOMALY_BAD_HISTORY. */
extern void history_read(History *history, FILE *file, Report *report);

/* Prints the transaction's line as a detail, of long lists only the last elements. */
extern void report_transaction(Report *report, const char *label, const Transaction *transaction);

/* malloc and realloc that end the program if there is no memory; the second makes room for `count` and some more. */
extern void *allocate(size_t size);
extern void *grow(void *array, int count, int *allocated, size_t element_size);

/* A map from 64-bit keys to ints. */
typedef struct Map
{
	int64_t    *keys;
	int		   *values;			/* -1: free */
	int			count;
	int			size;			/* a power of two */
} Map;

extern int	map_get(const Map *map, int64_t key);	/* -1 if there is none */
extern void map_put(Map *map, int64_t key, int value);

#endif							/* TEST_CONSISTENCY_HISTORY_H */
