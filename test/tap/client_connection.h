/*
 * client_connection.h
 *	  A libpq connection whose every wait has a time limit, for the clients of the consistency tests.
 */
#ifndef TEST_TAP_CLIENT_CONNECTION_H
#define TEST_TAP_CLIENT_CONNECTION_H

#include <stdbool.h>
#include <stdint.h>

#include <libpq-fe.h>

typedef enum AnswerKind
{
	ANSWER_OK,
	ANSWER_ERROR,				/* of the server, with a SQLSTATE */
	ANSWER_LOST					/* the connection broke, or no answer came in time */
} AnswerKind;

typedef struct Answer
{
	AnswerKind	kind;
	char		sqlstate[6];	/* 00000; "lost" for ANSWER_LOST */
	char		message[200];	/* the first line of an error's text */
	char		tag[32];
	PGresult   *rows;			/* of a query that succeeded, else NULL; free_answer clears it */
} Answer;

/* Microseconds of the machine's monotonic clock, the same for all processes. */
extern int64_t now_us(void);
extern void pause_us(int64_t duration_us);

/* NULL if no connection comes about in time. */
extern PGconn *connect_in_time(const char *conninfo, int timeout_ms);

/* One statement; extended: by the extended query protocol. */
extern Answer ask(PGconn *connection, const char *sql, bool extended, int timeout_ms);
extern void free_answer(Answer *answer);

#endif							/* TEST_TAP_CLIENT_CONNECTION_H */
