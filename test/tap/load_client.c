/*
 * load_client.c
 *	  The clients of the fault tests: one that writes and keeps a record of what it was told, one that watches a node.
 *
 *	 load_client write LOG CLIENT FIRST_ATTEMPT PAUSE_US ANSWER_TIMEOUT_MS CONNINFO [CONNINFO ...]
 *		Tries each node until one takes its writes.  Each attempt is a transaction of its own, number n, that inserts the row
 *		(CLIENT, n) into load_row and adds one to a counter whose new value it keeps in that row; it is never repeated.  A line per
 *		attempt goes to LOG when its outcome is known:
 *			started_us ended_us n outcome sqlstate node text
 *		outcome: acknowledged; refused (an error that says that it was not committed, or a connection lost before COMMIT was
 *		sent); unknown (08007, a session that was ended, a connection lost, no answer in time); unexpected (any other SQLSTATE).
 *		text: message and DETAIL of the error.
 *
 *	 load_client watch LOG INTERVAL_MS CONNINFO
 *		Asks one node for quorum.status, and now and then whether its snapshot is a whole prefix of the log: the sum of the counters
 *		is the number of rows.  Lines: "status asked_us milliseconds role", "prefix difference".
 *
 * Both end at SIGTERM, after what is under way, and with the process that started them.  FaultLoad.pm compiles, runs and reads it.
 *
 * Invariants
 *	 1. Nothing waits without end: connecting and each answer have a time limit, so a node that stands still is left.
 *	 2. An outcome is written down before the next attempt starts.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#include <libpq-fe.h>

#define CONNECT_TIMEOUT_MS 2000
#define RETRY_PAUSE_US 20000
#define WATCH_TIMEOUT_MS 60000
#define PREFIX_CHECK_EVERY 10

typedef enum AnswerKind
{
	ANSWER_OK,
	ANSWER_ERROR,				/* of the server, with a SQLSTATE */
	ANSWER_LOST					/* the connection broke, or no answer came in time */
} AnswerKind;

typedef struct Answer
{
	AnswerKind	kind;
	char		sqlstate[6];
	char		value[64];		/* first column of the first row */
	char		tag[32];		/* command tag */
	char		text[512];		/* message and DETAIL of an error, in one line */
} Answer;

static volatile sig_atomic_t stop_requested = 0;

static void
request_stop(int signal_number)
{
	(void) signal_number;
	stop_requested = 1;
}

static int64_t
now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (int64_t) now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void
pause_us(int64_t duration_us)
{
	struct timespec duration = {.tv_sec = duration_us / 1000000, .tv_nsec = duration_us % 1000000 * 1000};

	if (duration_us > 0)
		nanosleep(&duration, NULL);
}

/* ---- libpq with time limits ---- */

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

/* NULL if no connection comes about in time. */
static PGconn *
connect_to(const char *conninfo)
{
	PGconn	   *connection = PQconnectStart(conninfo);
	int64_t		deadline_us = now_us() + CONNECT_TIMEOUT_MS * 1000;
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

static const char *
field(const PGresult *result, int code)
{
	const char *value = PQresultErrorField(result, code);

	return value != NULL ? value : "";
}

static void
note_text(const PGresult *result, Answer *answer)
{
	snprintf(answer->text, sizeof(answer->text), "%s DETAIL: %s", field(result, PG_DIAG_MESSAGE_PRIMARY),
			 field(result, PG_DIAG_MESSAGE_DETAIL));
	for (char *c = answer->text; *c != '\0'; c++)
		if (*c == '\n')
			*c = ' ';
}

static void
note_result(const PGresult *result, Answer *answer)
{
	const char *sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);
	ExecStatusType status = PQresultStatus(result);

	if (status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK)
	{
		snprintf(answer->tag, sizeof(answer->tag), "%s", PQcmdStatus((PGresult *) result));
		if (PQntuples(result) > 0 && PQnfields(result) > 0)
			snprintf(answer->value, sizeof(answer->value), "%s", PQgetvalue(result, 0, 0));
		return;
	}
	if (answer->kind != ANSWER_OK)
		return;					/* the first error counts: what follows a FATAL is that the connection is gone */
	answer->kind = sqlstate != NULL ? ANSWER_ERROR : ANSWER_LOST;
	snprintf(answer->sqlstate, sizeof(answer->sqlstate), "%s", sqlstate != NULL ? sqlstate : "lost");
	note_text(result, answer);
}

static Answer
lost(void)
{
	Answer		answer = {.kind = ANSWER_LOST, .sqlstate = "lost"};

	return answer;
}

static Answer
ask(PGconn *connection, const char *sql, int timeout_ms)
{
	Answer		answer = {.kind = ANSWER_OK, .sqlstate = "00000"};
	int64_t		deadline_us = now_us() + (int64_t) timeout_ms * 1000;
	PGresult   *result;

	if (!PQsendQuery(connection, sql))
		return lost();
	for (;;)
	{
		while (PQisBusy(connection))
		{
			if (!wait_for_socket(connection, POLLIN, deadline_us))
				return lost();
			if (!PQconsumeInput(connection) && PQisBusy(connection))
				return lost();
		}
		result = PQgetResult(connection);
		if (result == NULL)
			return answer;
		note_result(result, &answer);
		PQclear(result);
	}
}

/* ---- write ---- */

typedef struct Writer
{
	FILE	   *log;
	int			client;
	int			answer_timeout_ms;
	int			node_count;
	char	  **conninfos;
	int			node;			/* the one that is tried now */
	PGconn	   *connection;		/* NULL: none */
	uint64_t	random_state;
} Writer;

static uint32_t
random_below(Writer *writer, uint32_t limit)
{
	writer->random_state ^= writer->random_state << 13;
	writer->random_state ^= writer->random_state >> 7;
	writer->random_state ^= writer->random_state << 17;
	return (uint32_t) (writer->random_state >> 32) % limit;
}

static void
disconnect(Writer *writer)
{
	if (writer->connection != NULL)
		PQfinish(writer->connection);
	writer->connection = NULL;
}

static void
try_next_node(Writer *writer)
{
	disconnect(writer);
	writer->node = (writer->node + 1) % writer->node_count;
	pause_us(RETRY_PAUSE_US);
}

/* What an answer to the statement that commits says about the transaction. */
static const char *
outcome_of_commit(const Answer *answer)
{
	const char *sqlstate = answer->sqlstate;

	if (answer->kind == ANSWER_OK)
		return strcmp(answer->tag, "ROLLBACK") == 0 ? "unexpected" : "acknowledged";
	if (answer->kind == ANSWER_LOST || strncmp(sqlstate, "08", 2) == 0 || strncmp(sqlstate, "57P", 3) == 0)
		return "unknown";
	if (strcmp(sqlstate, "40003") == 0)
		return "unexpected";	/* class 40 must mean: not committed */
	if (strncmp(sqlstate, "40", 2) == 0 || strcmp(sqlstate, "25006") == 0 || strcmp(sqlstate, "53400") == 0 ||
		strcmp(sqlstate, "57014") == 0)
		return "refused";		/* 57014: cancelled before it was proposed; afterwards it would be 08007 */
	return "unexpected";
}

/* The same for a statement before it: whatever happened, nothing was committed. */
static const char *
outcome_before_commit(const Answer *answer)
{
	if (answer->kind == ANSWER_LOST || strncmp(answer->sqlstate, "57P", 3) == 0)
		return "refused";
	return strcmp(outcome_of_commit(answer), "unexpected") == 0 ? "unexpected" : "refused";
}

/* One statement that commits by itself. */
static const char *
attempt_at_once(Writer *writer, int64_t n, int counter, Answer *answer)
{
	char		sql[1024];

	snprintf(sql, sizeof(sql),
			 "WITH counted AS (UPDATE load_counter SET value = value + 1 WHERE id = %d RETURNING value) "
			 "INSERT INTO load_row (client, n, counter, value, filler) "
			 "SELECT %d, %lld, %d, value, repeat('x', %u) FROM counted",
			 counter, writer->client, (long long) n, counter, random_below(writer, 200));
	*answer = ask(writer->connection, sql, writer->answer_timeout_ms);
	return outcome_of_commit(answer);
}

/* Changes beside the counter and the row: upserts and deletions of few rows that all clients share, and a part rolled back. */
static bool
churn(Writer *writer, Answer *answer)
{
	char		sql[1024];
	unsigned	key = random_below(writer, 40);

	if (random_below(writer, 3) == 0)
		snprintf(sql, sizeof(sql), "DELETE FROM load_churn WHERE id = %u", key);
	else
		snprintf(sql, sizeof(sql),
				 "SAVEPOINT s; UPDATE load_churn SET note = 'never' WHERE id = %u; ROLLBACK TO s; "
				 "INSERT INTO load_churn VALUES (%u, %d, repeat(md5(random()::text), %u)) "
				 "ON CONFLICT (id) DO UPDATE SET changes = load_churn.changes + 1, note = excluded.note",
				 key, key, writer->client, random_below(writer, 20) == 0 ? 500 : 3);
	*answer = ask(writer->connection, sql, writer->answer_timeout_ms);
	return answer->kind == ANSWER_OK;
}

/* A transaction of several statements. */
static const char *
attempt_in_steps(Writer *writer, int64_t n, int counter, bool with_churn, Answer *answer)
{
	char		sql[1024];

	snprintf(sql, sizeof(sql), "BEGIN; UPDATE load_counter SET value = value + 1 WHERE id = %d RETURNING value", counter);
	*answer = ask(writer->connection, sql, writer->answer_timeout_ms);
	if (answer->kind != ANSWER_OK)
		return outcome_before_commit(answer);
	snprintf(sql, sizeof(sql),
			 "INSERT INTO load_row (client, n, counter, value, filler) VALUES (%d, %lld, %d, %s, repeat('y', %u))",
			 writer->client, (long long) n, counter, answer->value, random_below(writer, 200));
	*answer = ask(writer->connection, sql, writer->answer_timeout_ms);
	if (answer->kind != ANSWER_OK)
		return outcome_before_commit(answer);
	if (with_churn && !churn(writer, answer))
		return outcome_before_commit(answer);
	*answer = ask(writer->connection, "COMMIT", writer->answer_timeout_ms);
	return outcome_of_commit(answer);
}

static void
attempt(Writer *writer, int64_t n)
{
	int64_t		started_us = now_us();
	int			counter = n % 2 == 0 ? 0 : writer->client;	/* 0 is shared by all clients */
	const char *outcome;
	Answer		answer;

	if (n % 4 < 2)
		outcome = attempt_at_once(writer, n, counter, &answer);
	else
		outcome = attempt_in_steps(writer, n, counter, n % 8 < 4, &answer);
	fprintf(writer->log, "%lld %lld %lld %s %s %d %s\n", (long long) started_us, (long long) now_us(), (long long) n, outcome,
			answer.sqlstate, writer->node, answer.text);
	fflush(writer->log);

	if (answer.kind == ANSWER_LOST || PQstatus(writer->connection) != CONNECTION_OK)
		try_next_node(writer);
	else if (answer.kind == ANSWER_ERROR)
	{
		/* The latter: an instance that is no member now, and has no such tables. */
		if (strcmp(answer.sqlstate, "25006") == 0 || strcmp(answer.sqlstate, "42P01") == 0)
			try_next_node(writer);
		else if (ask(writer->connection, "ROLLBACK", writer->answer_timeout_ms).kind == ANSWER_LOST)
			disconnect(writer);
	}
}

static int
write_until_stopped(FILE *log, int argument_count, char **arguments)
{
	Writer		writer = {.log = log};
	int64_t		n;
	int64_t		between_us;

	if (argument_count < 5)
		return 2;
	writer.client = atoi(arguments[0]);
	n = atoll(arguments[1]);
	between_us = atoll(arguments[2]);
	writer.answer_timeout_ms = atoi(arguments[3]);
	writer.conninfos = arguments + 4;
	writer.node_count = argument_count - 4;
	writer.random_state = 88172645463325252ULL + (uint64_t) writer.client * 7919;

	while (!stop_requested)
	{
		if (writer.connection == NULL)
			writer.connection = connect_to(writer.conninfos[writer.node]);
		if (writer.connection == NULL)
		{
			try_next_node(&writer);
			continue;
		}
		attempt(&writer, n++);
		pause_us(between_us);
	}
	disconnect(&writer);
	return 0;
}

/* ---- watch ---- */

static bool
watch_once(PGconn *connection, FILE *log, int64_t number)
{
	int64_t		asked_us = now_us();
	Answer		answer = ask(connection, "SELECT role, s.* FROM quorum.status AS s", WATCH_TIMEOUT_MS);

	if (answer.kind != ANSWER_OK)
		return false;
	fprintf(log, "status %lld %.1f %s\n", (long long) asked_us, (now_us() - asked_us) / 1000.0, answer.value);
	if (number % PREFIX_CHECK_EVERY == 0)
	{
		answer = ask(connection,
					 "SELECT (SELECT coalesce(sum(value), 0) FROM load_counter) - (SELECT count(*) FROM load_row)",
					 WATCH_TIMEOUT_MS);
		if (answer.kind != ANSWER_OK)
			return false;
		fprintf(log, "prefix %s\n", answer.value);
	}
	fflush(log);
	return true;
}

static int
watch_until_stopped(FILE *log, int argument_count, char **arguments)
{
	PGconn	   *connection = NULL;
	int64_t		interval_us;

	if (argument_count != 2)
		return 2;
	interval_us = atoll(arguments[0]) * 1000;
	for (int64_t number = 0; !stop_requested; number++)
	{
		if (connection == NULL)
			connection = connect_to(arguments[1]);
		if (connection != NULL && !watch_once(connection, log, number))
		{
			PQfinish(connection);
			connection = NULL;
		}
		pause_us(interval_us);
	}
	if (connection != NULL)
		PQfinish(connection);
	return 0;
}

int
main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = request_stop};
	int			status = 2;
	FILE	   *log;

	if (argc < 4 || (log = fopen(argv[2], "a")) == NULL)
	{
		fprintf(stderr, "usage: load_client write|watch LOG ...\n");
		return 2;
	}
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	signal(SIGPIPE, SIG_IGN);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (strcmp(argv[1], "write") == 0)
		status = write_until_stopped(log, argc - 3, argv + 3);
	else if (strcmp(argv[1], "watch") == 0)
		status = watch_until_stopped(log, argc - 3, argv + 3);
	fclose(log);
	return status;
}
