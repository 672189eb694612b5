/*
 * consistency_attempt.h
 *	  A transaction of a client of the consistency tests, from its begin to its line in the history.
 */
#ifndef TEST_TAP_CONSISTENCY_ATTEMPT_H
#define TEST_TAP_CONSISTENCY_ATTEMPT_H

#include <stdio.h>

#include "client_connection.h"

#define ANSWER_TIMEOUT_MS 1500
#define FINAL_TIMEOUT_MS 60000
#define REGISTERS_IN_USE 3

typedef struct Client
{
	FILE	   *history;
	int			number;
	int			node;
	const char *suffix;
	int64_t		zero_us;
	int64_t		rotation_us;
	int64_t		pause_us;
	const char *levels;
	const char *reads;
	const char *conninfo;
	PGconn	   *connection;		/* NULL: none */
	uint64_t	random_state;
	int64_t		next_number;
	int64_t		seen_key[REGISTERS_IN_USE]; /* what it saw last in the registers */
	int64_t		seen_value[REGISTERS_IN_USE];
} Client;

/* The transaction under way. */
typedef struct Attempt
{
	Client	   *client;
	const char *level;
	int64_t		start_us;
	int			statement;
	FILE	   *operations;		/* their text; in memory */
	char	   *text;
	size_t		text_length;
	char		sqlstate[6];
	const char *outcome;		/* NULL: not known yet */
	char		message[200];
} Attempt;

/* A number below the limit, and one that no other operation of any client has. */
extern int	lot(Client *client, int limit);
extern int64_t new_number(Client *client);

/* How many rotations of lists and registers there have been. */
extern int64_t rotations(const Client *client);

/* One of the client's isolation levels. */
extern const char *draw_level(Client *client);

extern void open_attempt(Attempt *attempt, Client *client, const char *level);

/* Writes the line, and leaves the connection ready for the next attempt, or gone. */
extern void close_attempt(Attempt *attempt);

/*
 * One statement.  commits: it would have committed the transaction, so that an error may leave its outcome open.  False after an error,
 * which the attempt has noted.  The answer is the caller's to free; run_only wants no rows.
 */
extern bool run(Attempt *attempt, const char *sql, bool commits, Answer *answer);
extern bool run_only(Attempt *attempt, const char *sql, bool commits);
extern bool note_answer(Attempt *attempt, const Answer *answer, bool commits);
extern bool begin(Attempt *attempt);
extern void commit(Attempt *attempt);

/* The beginning of an operation in the history, up to its arguments, and an array as an argument. */
extern void note_operation(Attempt *attempt, char kind, int64_t key, int64_t start_us);
extern void note_array(Attempt *attempt, const char *array);

/* The second column of the row whose first one is the key; NULL if there is none. */
extern const char *find_row(const PGresult *rows, int64_t key);

/* consistency_workloads.c: one attempt of each workload, and the read of everything at the end. */
extern void attempt_lists(Client *client);
extern void attempt_bank(Client *client);
extern void attempt_registers(Client *client);
extern void read_final_lists(Attempt *attempt);
extern void read_final_bank(Attempt *attempt);
extern void read_final_registers(Attempt *attempt);

#endif							/* TEST_TAP_CONSISTENCY_ATTEMPT_H */
