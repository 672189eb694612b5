/*
 * consistency_attempt.c
 *	  Attempts: what is sent, what the answer means, and the line in the history.  consistency_client.c says what an outcome is.
 */
#include <stdlib.h>
#include <string.h>

#include "consistency_attempt.h"

#define NUMBERS_PER_CLIENT 10000000LL

int
lot(Client *client, int limit)
{
	client->random_state ^= client->random_state << 13;
	client->random_state ^= client->random_state >> 7;
	client->random_state ^= client->random_state << 17;
	return (int) ((client->random_state >> 33) % (uint64_t) limit);
}

int64_t
new_number(Client *client)
{
	return client->number * NUMBERS_PER_CLIENT + client->next_number++;
}

int64_t
rotations(const Client *client)
{
	return (now_us() - client->zero_us) / client->rotation_us;
}

/* ---- attempts ---- */

const char *
draw_level(Client *client)
{
	static const char *const levels[] = {"rc", "rr", "ser"};

	for (;;)
	{
		const char *level = levels[lot(client, 3)];

		if (strstr(client->levels, level) != NULL)
			return level;
	}
}

static const char *
outcome_of_error(const Answer *answer)
{
	static const char *const refusals[] = {"25006", "53400", "55P03", "57014"};

	if (answer->kind == ANSWER_LOST)
		return "unknown";
	if (strncmp(answer->sqlstate, "40", 2) == 0)
		return "failed";
	for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++)
		if (strcmp(answer->sqlstate, refusals[i]) == 0)
			return "failed";
	return "unknown";
}

void
open_attempt(Attempt *attempt, Client *client, const char *level)
{
	memset(attempt, 0, sizeof(*attempt));
	attempt->client = client;
	attempt->level = level;
	attempt->operations = open_memstream(&attempt->text, &attempt->text_length);
	strcpy(attempt->sqlstate, "00000");
	attempt->start_us = now_us();
}

/* Writes the line, and leaves the connection ready for the next attempt, or gone. */
void
close_attempt(Attempt *attempt)
{
	Client	   *client = attempt->client;
	const char *suffix = strcmp(client->reads, "linearizable") == 0 || strcmp(attempt->level, "final") == 0 ? "" : "+local";

	fclose(attempt->operations);
	if (attempt->outcome == NULL)
		attempt->outcome = "ok";
	if (attempt->text_length > 0)
		fprintf(client->history, "t %d %d %s%s %s %s %lld %lld%s\n", client->number, client->node, attempt->level, suffix, attempt->outcome,
				attempt->sqlstate, (long long) attempt->start_us, (long long) now_us(), attempt->text);
	if (attempt->message[0] != '\0')
		fprintf(client->history, "# client %d, %s: %s\n", client->number, attempt->sqlstate, attempt->message);
	fflush(client->history);
	free(attempt->text);

	if (client->connection != NULL && PQstatus(client->connection) == CONNECTION_OK &&
		PQtransactionStatus(client->connection) == PQTRANS_IDLE)
		return;
	if (client->connection != NULL && PQstatus(client->connection) == CONNECTION_OK &&
		PQtransactionStatus(client->connection) != PQTRANS_ACTIVE)
	{
		Answer		answer = ask(client->connection, "ROLLBACK", false, ANSWER_TIMEOUT_MS);

		free_answer(&answer);
		if (answer.kind == ANSWER_OK)
			return;
	}
	PQfinish(client->connection);
	client->connection = NULL;
}

/* Notes an error in the attempt.  commits: the statement would have committed the transaction. */
bool
note_answer(Attempt *attempt, const Answer *answer, bool commits)
{
	if (answer->kind == ANSWER_OK)
		return true;
	strcpy(attempt->sqlstate, answer->sqlstate);
	attempt->outcome = commits ? outcome_of_error(answer) : "failed";
	snprintf(attempt->message, sizeof(attempt->message), "%s", answer->message);
	return false;
}

/* One statement of the attempt.  The answer is the caller's to free. */
bool
run(Attempt *attempt, const char *sql, bool commits, Answer *answer)
{
	Client	   *client = attempt->client;

	*answer = ask(client->connection, sql, client->number % 2 == 1, ANSWER_TIMEOUT_MS);
	return note_answer(attempt, answer, commits);
}

/* The same for one whose rows nobody wants. */
bool
run_only(Attempt *attempt, const char *sql, bool commits)
{
	Answer		answer;
	bool		succeeded = run(attempt, sql, commits, &answer);

	free_answer(&answer);
	return succeeded;
}

bool
begin(Attempt *attempt)
{
	static const char *const names[] = {"READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"};
	char		sql[100];

	snprintf(sql, sizeof(sql), "BEGIN ISOLATION LEVEL %s",
			 names[strcmp(attempt->level, "rc") == 0 ? 0 : strcmp(attempt->level, "rr") == 0 ? 1 : 2]);
	return run_only(attempt, sql, false);
}

/* A COMMIT that is answered by "ROLLBACK" says so honestly: failed. */
void
commit(Attempt *attempt)
{
	Answer		answer;

	if (run(attempt, "COMMIT", true, &answer) && strcmp(answer.tag, "ROLLBACK") == 0)
		attempt->outcome = "failed";
	free_answer(&answer);
}

void
note_operation(Attempt *attempt, char kind, int64_t key, int64_t start_us)
{
	fprintf(attempt->operations, " ; %c %d %lld %lld %lld ", kind, attempt->statement, (long long) key, (long long) start_us,
			(long long) now_us());
}

/* An array as the server writes it, "{1,2}", or NULL: as the history has it. */
void
note_array(Attempt *attempt, const char *array)
{
	size_t		length = array != NULL ? strlen(array) : 0;

	if (length <= 2)
		fputc('-', attempt->operations);
	else
		fwrite(array + 1, 1, length - 2, attempt->operations);
}

/* The second column of the row whose first one is the key; NULL if there is none. */
const char *
find_row(const PGresult *rows, int64_t key)
{
	for (int row = 0; row < PQntuples(rows); row++)
		if (atoll(PQgetvalue(rows, row, 0)) == key)
			return PQgetvalue(rows, row, 1);
	return NULL;
}
