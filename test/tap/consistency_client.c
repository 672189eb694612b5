/*
 * consistency_client.c
 *	  The client of the consistency tests: one connection to one node, which runs transactions and writes a history of what it asked and
 *	  what it was told.  test/consistency/history.h has the format of its lines.
 *
 *	 consistency_client WORKLOAD HISTORY CLIENT NODE SUFFIX ZERO_US ROTATION_MS PAUSE_US LEVELS READS CONNINFO
 *
 *		WORKLOAD	lists, bank, registers: until SIGTERM.
 *					final-lists, final-bank, final-registers: one read of everything in one snapshot; exit status 1 if it fails.
 *		CLIENT, NODE	numbers for the history; CLIENT makes the elements, values and transfers unique
 *		SUFFIX		of the names of the tables
 *		ZERO_US, ROTATION_MS	lists and registers are numbered by time since then: a few are in use at any time, and each only for a few
 *					rotations, so that no list and no search for an order becomes long
 *		LEVELS		rc, rr, ser, joined by commas: which isolation levels it draws from
 *		READS		linearizable: the server's default.  local: SET quorum.read_consistency = local.  unpromised: nothing is set, and
 *					the history says that its reads are local ones.
 *
 * Outcomes
 *	 - What was answered before COMMIT was sent, or instead of sending it, leaves no doubt: failed.
 *	 - An error of class 40, 25006, 53400, 55P03 or 57014 in answer to what commits: failed.
 *	 - Class 08, 57P.., a connection that broke or did not answer in time: unknown.  Any other error too; it stands in the history.
 *
 * Invariants
 *	 1. Nothing waits without end: connecting and each answer have a time limit, so a node that stands still is left.
 *	 2. A transaction's line is written before the next one starts.  An append whose statement was sent is in it, whatever came back.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include "client_connection.h"

#define ANSWER_TIMEOUT_MS 1500
#define FINAL_TIMEOUT_MS 60000
#define RETRY_PAUSE_US 50000
#define LISTS_IN_USE 6
#define LISTS_PER_ROTATION 3
#define REGISTERS_IN_USE 3
#define ACCOUNTS 10
#define NUMBERS_PER_CLIENT 10000000LL
#define LEDGER_READ_ONE_IN 30

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

static volatile sig_atomic_t stop_requested = 0;

static void
request_stop(int signal_number)
{
	(void) signal_number;
	stop_requested = 1;
}

static int
lot(Client *client, int limit)
{
	client->random_state ^= client->random_state << 13;
	client->random_state ^= client->random_state >> 7;
	client->random_state ^= client->random_state << 17;
	return (int) ((client->random_state >> 33) % (uint64_t) limit);
}

static int64_t
new_number(Client *client)
{
	return client->number * NUMBERS_PER_CLIENT + client->next_number++;
}

static int64_t
rotations(const Client *client)
{
	return (now_us() - client->zero_us) / client->rotation_us;
}

/* ---- attempts ---- */

static const char *
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

static void
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
static void
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
static bool
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
static bool
run(Attempt *attempt, const char *sql, bool commits, Answer *answer)
{
	Client	   *client = attempt->client;

	*answer = ask(client->connection, sql, client->number % 2 == 1, ANSWER_TIMEOUT_MS);
	return note_answer(attempt, answer, commits);
}

/* The same for one whose rows nobody wants. */
static bool
run_only(Attempt *attempt, const char *sql, bool commits)
{
	Answer		answer;
	bool		succeeded = run(attempt, sql, commits, &answer);

	free_answer(&answer);
	return succeeded;
}

static bool
begin(Attempt *attempt)
{
	static const char *const names[] = {"READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"};
	char		sql[100];

	snprintf(sql, sizeof(sql), "BEGIN ISOLATION LEVEL %s",
			 names[strcmp(attempt->level, "rc") == 0 ? 0 : strcmp(attempt->level, "rr") == 0 ? 1 : 2]);
	return run_only(attempt, sql, false);
}

/* A COMMIT that is answered by "ROLLBACK" says so honestly: failed. */
static void
commit(Attempt *attempt)
{
	Answer		answer;

	if (run(attempt, "COMMIT", true, &answer) && strcmp(answer.tag, "ROLLBACK") == 0)
		attempt->outcome = "failed";
	free_answer(&answer);
}

static void
note_operation(Attempt *attempt, char kind, int64_t key, int64_t start_us)
{
	fprintf(attempt->operations, " ; %c %d %lld %lld %lld ", kind, attempt->statement, (long long) key, (long long) start_us,
			(long long) now_us());
}

/* An array as the server writes it, "{1,2}", or NULL: as the history has it. */
static void
note_array(Attempt *attempt, const char *array)
{
	size_t		length = array != NULL ? strlen(array) : 0;

	if (length <= 2)
		fputc('-', attempt->operations);
	else
		fwrite(array + 1, 1, length - 2, attempt->operations);
}

/* ---- lists ---- */

static int64_t
draw_list(Client *client)
{
	return rotations(client) * LISTS_PER_ROTATION + lot(client, LISTS_IN_USE);
}

/* The array of a list among the rows (id, elements); NULL if it has no row. */
static const char *
find_row(const PGresult *rows, int64_t key)
{
	for (int row = 0; row < PQntuples(rows); row++)
		if (atoll(PQgetvalue(rows, row, 0)) == key)
			return PQgetvalue(rows, row, 1);
	return NULL;
}

/* Reads one to three lists with one statement. */
static bool
read_lists(Attempt *attempt, bool commits)
{
	int64_t		first = draw_list(attempt->client);
	int			count = 1 + lot(attempt->client, 3);
	int64_t		start_us = now_us();
	char		sql[200];
	Answer		answer;

	snprintf(sql, sizeof(sql), "SELECT id, elements FROM lists%s WHERE id BETWEEN %lld AND %lld", attempt->client->suffix,
			 (long long) first, (long long) first + count - 1);
	if (!run(attempt, sql, commits, &answer))
		return false;
	for (int64_t key = first; key < first + count; key++)
	{
		note_operation(attempt, 'r', key, start_us);
		note_array(attempt, find_row(answer.rows, key));
	}
	free_answer(&answer);
	return true;
}

static void
note_append(Attempt *attempt, int64_t key, int64_t start_us, int64_t element)
{
	note_operation(attempt, 'a', key, start_us);
	fprintf(attempt->operations, "%lld", (long long) element);
}

/* The server appends.  An UPDATE that finds no row has read that there is none. */
static bool
append_there(Attempt *attempt, bool commits)
{
	Client	   *client = attempt->client;
	int64_t		key = draw_list(client);
	int64_t		element = new_number(client);
	bool		is_update = lot(client, 2) == 0;
	int64_t		start_us = now_us();
	char		sql[300];
	Answer		answer;
	bool		succeeded;

	if (is_update)
		snprintf(sql, sizeof(sql), "UPDATE lists%s SET elements = elements || %lld WHERE id = %lld", client->suffix,
				 (long long) element, (long long) key);
	else
		snprintf(sql, sizeof(sql), "INSERT INTO lists%s AS l VALUES (%lld, ARRAY[%lld]::int[]) "
				 "ON CONFLICT (id) DO UPDATE SET elements = l.elements || excluded.elements", client->suffix,
				 (long long) key, (long long) element);
	succeeded = run(attempt, sql, commits, &answer);
	if (succeeded && strcmp(answer.tag, "UPDATE 0") == 0)
	{
		note_operation(attempt, 'r', key, start_us);
		fputc('-', attempt->operations);
	}
	else
		note_append(attempt, key, start_us, element);
	free_answer(&answer);
	return succeeded;
}

/* The client reads (and locks, if the level does not protect it), and writes back what it has read and one more. */
static bool
append_here(Attempt *attempt)
{
	Client	   *client = attempt->client;
	int64_t		key = draw_list(client);
	int64_t		element = new_number(client);
	int64_t		start_us = now_us();
	char		select[200];
	char	   *update;
	size_t		size;
	const char *array;
	Answer		answer;
	bool		succeeded;

	snprintf(select, sizeof(select), "SELECT id, elements FROM lists%s WHERE id = %lld%s", client->suffix, (long long) key,
			 strcmp(attempt->level, "rc") == 0 ? " FOR UPDATE" : "");
	if (!run(attempt, select, false, &answer))
		return false;
	array = find_row(answer.rows, key);
	note_operation(attempt, 'r', key, start_us);
	note_array(attempt, array);
	if (array == NULL)
	{
		free_answer(&answer);
		return true;
	}
	size = strlen(array) + 200;
	update = malloc(size);
	snprintf(update, size, "UPDATE lists%s SET elements = '%.*s,%lld}' WHERE id = %lld", client->suffix, (int) strlen(array) - 1, array,
			 (long long) element, (long long) key);
	free_answer(&answer);
	attempt->statement++;
	start_us = now_us();
	succeeded = run_only(attempt, update, false);
	note_append(attempt, key, start_us, element);
	free(update);
	return succeeded;
}

static void
attempt_lists(Client *client)
{
	const char *level = draw_level(client);
	int			count = 1 + lot(client, 4);
	bool		at_once = count == 1 && strcmp(level, "rc") == 0;
	bool		succeeded = true;
	Attempt		attempt;

	open_attempt(&attempt, client, level);
	if (!at_once)
		succeeded = begin(&attempt);
	for (int i = 0; i < count && succeeded; i++, attempt.statement++)
	{
		int			kind = lot(client, 20);

		if (kind < 9)
			succeeded = read_lists(&attempt, at_once);
		else if (kind < 15 || at_once)
			succeeded = append_there(&attempt, at_once);
		else
			succeeded = append_here(&attempt);
	}
	if (succeeded && !at_once)
		commit(&attempt);
	close_attempt(&attempt);
}

/* ---- bank ---- */

static void
read_bank(Client *client)
{
	bool		with_ledger = lot(client, LEDGER_READ_ONE_IN) == 0;
	const char *level = draw_level(client);
	bool		at_once = strcmp(level, "rc") == 0;
	Attempt		attempt;
	Answer		answer;
	int64_t		start_us;
	char		sql[300];

	open_attempt(&attempt, client, level);
	snprintf(sql, sizeof(sql), "SELECT array_agg(balance ORDER BY id)%s%s%s FROM account%s",
			 with_ledger ? ", (SELECT array_agg(number) FROM transfer" : "", with_ledger ? client->suffix : "", with_ledger ? ")" : "",
			 client->suffix);
	if (!at_once && !begin(&attempt))
	{
		close_attempt(&attempt);
		return;
	}
	start_us = now_us();
	if (run(&attempt, sql, at_once, &answer))
	{
		note_operation(&attempt, 'b', 0, start_us);
		note_array(&attempt, PQgetvalue(answer.rows, 0, 0));
		if (with_ledger)
		{
			note_operation(&attempt, 'l', 0, start_us);
			note_array(&attempt, PQgetvalue(answer.rows, 0, 1));
		}
		if (!at_once)
			commit(&attempt);
	}
	free_answer(&answer);
	close_attempt(&attempt);
}

/* Reads both balances, locks them under READ COMMITTED, and writes what it has computed.  False: no money, or an error. */
static bool
move_money(Attempt *attempt, int from, int to, int amount, int64_t number)
{
	Client	   *client = attempt->client;
	int64_t		start_us = now_us();
	const char *balances[2];
	int64_t		left;
	int64_t		right;
	char		sql[400];
	Answer		answer;
	bool		succeeded;

	snprintf(sql, sizeof(sql), "SELECT id, balance FROM account%s WHERE id IN (%d, %d) ORDER BY id %s%s", client->suffix, from, to,
			 lot(client, 8) == 0 ? "DESC" : "ASC", strcmp(attempt->level, "rc") == 0 ? " FOR UPDATE" : "");
	if (!run(attempt, sql, false, &answer))
		return false;
	balances[0] = find_row(answer.rows, from);
	balances[1] = find_row(answer.rows, to);
	left = balances[0] != NULL ? atoll(balances[0]) - amount : -1;
	right = balances[1] != NULL ? atoll(balances[1]) + amount : -1;
	free_answer(&answer);
	if (left < 0 || right < 0)
		return false;
	snprintf(sql, sizeof(sql), "UPDATE account%s SET balance = CASE id WHEN %d THEN %lld ELSE %lld END WHERE id IN (%d, %d)",
			 client->suffix, from, (long long) left, (long long) right, from, to);
	succeeded = run_only(attempt, sql, false);
	if (succeeded)
	{
		snprintf(sql, sizeof(sql), "INSERT INTO transfer%s VALUES (%lld, %d, %d, %d)", client->suffix, (long long) number, from, to, amount);
		succeeded = run_only(attempt, sql, false);
	}
	note_operation(attempt, 'x', from, start_us);
	fprintf(attempt->operations, "%d %d %lld", to, amount, (long long) number);
	return succeeded;
}

static void
attempt_bank(Client *client)
{
	int			from = lot(client, ACCOUNTS);
	int			to = (from + 1 + lot(client, ACCOUNTS - 1)) % ACCOUNTS;
	Attempt		attempt;

	if (lot(client, 3) == 0)
	{
		read_bank(client);
		return;
	}
	open_attempt(&attempt, client, draw_level(client));
	if (begin(&attempt) && move_money(&attempt, from, to, 1 + lot(client, 30), new_number(client)))
		commit(&attempt);
	close_attempt(&attempt);
}

/* ---- registers ---- */

/* The value that this client knows of the register; -1: none. */
static int64_t *
seen_value(Client *client, int64_t key)
{
	int			slot = (int) (key % REGISTERS_IN_USE);

	if (client->seen_key[slot] != key)
		client->seen_value[slot] = -1;
	client->seen_key[slot] = key;
	return &client->seen_value[slot];
}

static void
read_register(Attempt *attempt, int64_t key)
{
	int64_t		start_us = now_us();
	char		sql[200];
	Answer		answer;

	snprintf(sql, sizeof(sql), "SELECT value FROM register%s WHERE id = %lld", attempt->client->suffix, (long long) key);
	if (run(attempt, sql, true, &answer))
	{
		const char *value = PQntuples(answer.rows) > 0 ? PQgetvalue(answer.rows, 0, 0) : NULL;

		note_operation(attempt, 'r', key, start_us);
		fputs(value != NULL ? value : "-", attempt->operations);
		*seen_value(attempt->client, key) = value != NULL ? atoll(value) : -1;
	}
	free_answer(&answer);
}

static void
write_register(Attempt *attempt, int64_t key)
{
	int64_t		value = new_number(attempt->client);
	int64_t		start_us = now_us();
	char		sql[300];

	snprintf(sql, sizeof(sql), "INSERT INTO register%s VALUES (%lld, %lld) ON CONFLICT (id) DO UPDATE SET value = excluded.value",
			 attempt->client->suffix, (long long) key, (long long) value);
	if (run_only(attempt, sql, true))
		*seen_value(attempt->client, key) = value;
	note_operation(attempt, 'w', key, start_us);
	fprintf(attempt->operations, "%lld", (long long) value);
}

static void
compare_and_set(Attempt *attempt, int64_t key)
{
	int64_t		expected = *seen_value(attempt->client, key);
	int64_t		value = new_number(attempt->client);
	int64_t		start_us = now_us();
	int			result = 2;
	char		sql[300];
	Answer		answer;

	snprintf(sql, sizeof(sql), "UPDATE register%s SET value = %lld WHERE id = %lld AND value = %lld", attempt->client->suffix,
			 (long long) value, (long long) key, (long long) expected);
	if (run(attempt, sql, true, &answer))
		result = strcmp(answer.tag, "UPDATE 1") == 0;
	if (result == 1)
		*seen_value(attempt->client, key) = value;
	free_answer(&answer);
	note_operation(attempt, 'c', key, start_us);
	fprintf(attempt->operations, "%lld %lld %d", (long long) expected, (long long) value, result);
}

static void
attempt_registers(Client *client)
{
	int64_t		key = rotations(client) + lot(client, REGISTERS_IN_USE);
	int			kind = lot(client, 10);
	Attempt		attempt;

	open_attempt(&attempt, client, "rc");
	if (kind < 5)
		read_register(&attempt, key);
	else if (kind < 7 || *seen_value(client, key) < 0)
		write_register(&attempt, key);
	else
		compare_and_set(&attempt, key);
	close_attempt(&attempt);
}

/* ---- the final state ---- */

/* Every number that was in use, with a row or without one. */
static void
final_rows(Attempt *attempt, const char *columns, const char *table, int64_t last_key)
{
	char		sql[300];
	int64_t		start_us = now_us();
	Answer		answer;

	snprintf(sql, sizeof(sql), "SELECT k, %s FROM generate_series(0, %lld) AS k LEFT JOIN %s%s AS t ON t.id = k ORDER BY k", columns,
			 (long long) last_key, table, attempt->client->suffix);
	answer = ask(attempt->client->connection, sql, false, FINAL_TIMEOUT_MS);
	if (note_answer(attempt, &answer, true))
		for (int row = 0; row < PQntuples(answer.rows); row++)
		{
			note_operation(attempt, 'r', atoll(PQgetvalue(answer.rows, row, 0)), start_us);
			note_array(attempt, PQgetvalue(answer.rows, row, 1));
		}
	free_answer(&answer);
}

static void
final_bank(Attempt *attempt)
{
	char		sql[300];
	int64_t		start_us = now_us();
	Answer		answer;

	snprintf(sql, sizeof(sql), "SELECT array_agg(balance ORDER BY id), (SELECT array_agg(number ORDER BY number) FROM transfer%s) "
			 "FROM account%s", attempt->client->suffix, attempt->client->suffix);
	answer = ask(attempt->client->connection, sql, false, FINAL_TIMEOUT_MS);
	if (note_answer(attempt, &answer, true))
	{
		note_operation(attempt, 'b', 0, start_us);
		note_array(attempt, PQgetvalue(answer.rows, 0, 0));
		note_operation(attempt, 'l', 0, start_us);
		note_array(attempt, PQgetvalue(answer.rows, 0, 1));
	}
	free_answer(&answer);
}

static int
read_final_state(Client *client, const char *workload)
{
	Attempt		attempt;
	bool		failed;

	client->connection = connect_in_time(client->conninfo, FINAL_TIMEOUT_MS);
	if (client->connection == NULL)
		return 1;
	open_attempt(&attempt, client, "final");
	if (strcmp(workload, "lists") == 0)
		final_rows(&attempt, "t.elements", "lists", rotations(client) * LISTS_PER_ROTATION + LISTS_IN_USE);
	else if (strcmp(workload, "registers") == 0)
		final_rows(&attempt, "CASE WHEN t.id IS NOT NULL THEN ARRAY[t.value] END", "register", rotations(client) + REGISTERS_IN_USE);
	else
		final_bank(&attempt);
	failed = attempt.outcome != NULL;
	close_attempt(&attempt);
	PQfinish(client->connection);
	return failed ? 1 : 0;
}

/* ---- */

static void
connect_client(Client *client)
{
	client->connection = connect_in_time(client->conninfo, ANSWER_TIMEOUT_MS);
	if (client->connection != NULL && strcmp(client->reads, "local") == 0)
	{
		Answer		answer = ask(client->connection, "SET quorum.read_consistency = 'local'", false, ANSWER_TIMEOUT_MS);

		free_answer(&answer);
		if (answer.kind != ANSWER_OK)
		{
			PQfinish(client->connection);
			client->connection = NULL;
		}
	}
}

static void
work_until_stopped(Client *client, void (*attempt_one) (Client *))
{
	while (!stop_requested)
	{
		if (client->connection == NULL)
			connect_client(client);
		if (client->connection == NULL)
		{
			pause_us(RETRY_PAUSE_US);
			continue;
		}
		attempt_one(client);
		pause_us(client->pause_us / 2 + lot(client, (int) client->pause_us + 1));
	}
	PQfinish(client->connection);
}

int
main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = request_stop};
	Client		client = {0};
	const char *workload = argc > 1 ? argv[1] : "";
	int			status = 0;

	if (argc != 12 || (client.history = fopen(argv[2], "a")) == NULL)
	{
		fprintf(stderr, "usage: consistency_client WORKLOAD HISTORY CLIENT NODE SUFFIX ZERO_US ROTATION_MS PAUSE_US LEVELS READS CONNINFO\n");
		return 2;
	}
	client.number = atoi(argv[3]);
	client.node = atoi(argv[4]);
	client.suffix = argv[5];
	client.zero_us = atoll(argv[6]);
	client.rotation_us = atoll(argv[7]) * 1000;
	client.pause_us = atoll(argv[8]);
	client.levels = argv[9];
	client.reads = argv[10];
	client.conninfo = argv[11];
	client.random_state = 88172645463325252ULL + (uint64_t) client.number * 7919 + (uint64_t) client.zero_us;
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	signal(SIGPIPE, SIG_IGN);
	prctl(PR_SET_PDEATHSIG, SIGTERM);

	if (strncmp(workload, "final-", 6) == 0)
		status = read_final_state(&client, workload + 6);
	else if (strcmp(workload, "lists") == 0)
		work_until_stopped(&client, attempt_lists);
	else if (strcmp(workload, "bank") == 0)
		work_until_stopped(&client, attempt_bank);
	else if (strcmp(workload, "registers") == 0)
		work_until_stopped(&client, attempt_registers);
	else
		status = 2;
	fclose(client.history);
	return status;
}
