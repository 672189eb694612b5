/*
 * client_connection.c
 *	  libpq with time limits.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "client_connection.h"

int64_t
now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t) now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

void
pause_us(int64_t duration_us)
{
	struct timespec duration = {.tv_sec = duration_us / 1000000, .tv_nsec = duration_us % 1000000 * 1000};

	if (duration_us > 0)
		nanosleep(&duration, NULL);
}

/* False once the deadline has passed. */
static bool
wait_for_socket(PGconn *connection, short events, int64_t deadline_us)
{
	struct pollfd waited = {.fd = PQsocket(connection), .events = events};

	for (;;)
	{
		int64_t		left_ms = (deadline_us - now_us()) / 1000;
		int			ready;

		if (left_ms <= 0)
			return false;
		ready = poll(&waited, 1, (int) left_ms);
		if (ready > 0)
			return true;
		if (ready < 0 && errno != EINTR)
			return false;
	}
}

PGconn *
connect_in_time(const char *conninfo, int timeout_ms)
{
	PGconn	   *connection = PQconnectStart(conninfo);
	int64_t		deadline_us = now_us() + (int64_t) timeout_ms * 1000;
	PostgresPollingStatusType state = PGRES_POLLING_WRITING;

	if (connection == NULL)
		return NULL;
	while (PQstatus(connection) != CONNECTION_BAD && state != PGRES_POLLING_OK && state != PGRES_POLLING_FAILED)
	{
		if (!wait_for_socket(connection, state == PGRES_POLLING_READING ? POLLIN : POLLOUT, deadline_us))
			break;
		state = PQconnectPoll(connection);
	}
	if (state == PGRES_POLLING_OK && PQstatus(connection) == CONNECTION_OK)
		return connection;
	PQfinish(connection);
	return NULL;
}

/* Takes the result over.  The first error counts: what follows a FATAL is only that the connection is gone. */
static void
note_result(PGresult *result, Answer *answer)
{
	const char *sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);
	const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
	ExecStatusType status = PQresultStatus(result);

	if (status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK)
	{
		snprintf(answer->tag, sizeof(answer->tag), "%s", PQcmdStatus(result));
		PQclear(answer->rows);
		answer->rows = result;
		return;
	}
	if (answer->kind == ANSWER_OK)
	{
		answer->kind = sqlstate != NULL ? ANSWER_ERROR : ANSWER_LOST;
		snprintf(answer->sqlstate, sizeof(answer->sqlstate), "%s", sqlstate != NULL ? sqlstate : "lost");
		snprintf(answer->message, sizeof(answer->message), "%s", message != NULL ? message : "");
	}
	PQclear(result);
}

static Answer
lost(Answer *so_far)
{
	Answer		answer = {.kind = ANSWER_LOST, .sqlstate = "lost"};

	/* An error that had arrived before the connection broke is the better answer. */
	if (so_far->kind == ANSWER_ERROR)
		return *so_far;
	free_answer(so_far);
	return answer;
}

Answer
ask(PGconn *connection, const char *sql, bool extended, int timeout_ms)
{
	Answer		answer = {.kind = ANSWER_OK, .sqlstate = "00000"};
	int64_t		deadline_us = now_us() + (int64_t) timeout_ms * 1000;
	PGresult   *result;
	bool		sent = extended ? PQsendQueryParams(connection, sql, 0, NULL, NULL, NULL, NULL, 0) : PQsendQuery(connection, sql);

	if (!sent)
		return lost(&answer);
	for (;;)
	{
		while (PQisBusy(connection))
		{
			if (!wait_for_socket(connection, POLLIN, deadline_us))
				return lost(&answer);
			if (!PQconsumeInput(connection) && PQisBusy(connection))
				return lost(&answer);
		}
		result = PQgetResult(connection);
		if (result == NULL)
			return answer;
		note_result(result, &answer);
	}
}

void
free_answer(Answer *answer)
{
	PQclear(answer->rows);
	answer->rows = NULL;
}
