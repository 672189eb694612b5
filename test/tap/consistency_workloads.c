/*
 * consistency_workloads.c
 *	  The three workloads of the consistency tests: lists, bank and registers.
 *
 * Lists are appended to by the server (UPDATE, INSERT ... ON CONFLICT) and by the client, which writes back what it has read and one more:
 * that loses an update wherever isolation lets it.  Transfers are computed by the client for the same reason.
 */
#include <stdlib.h>
#include <string.h>

#include "consistency_attempt.h"

#define LISTS_IN_USE 6
#define LISTS_PER_ROTATION 3
#define ACCOUNTS 10
#define LEDGER_READ_ONE_IN 30

/* ---- lists ---- */

static int64_t
draw_list(Client *client)
{
	return rotations(client) * LISTS_PER_ROTATION + lot(client, LISTS_IN_USE);
}

/* A condition for so many lists from the first one on: by their numbers, or as a range; a single one is a point read. */
static void
write_condition(Client *client, char *text, size_t size, int64_t first, int count)
{
	if (count == 1)
		snprintf(text, size, "id = %lld", (long long) first);
	else if (count == 2 && lot(client, 2) == 0)
		snprintf(text, size, "id IN (%lld, %lld)", (long long) first, (long long) first + 1);
	else
		snprintf(text, size, "id BETWEEN %lld AND %lld", (long long) first, (long long) first + count - 1);
}

/* Reads one to three lists with one statement. */
static bool
read_lists(Attempt *attempt, bool commits)
{
	int64_t		first = draw_list(attempt->client);
	int			count = 1 + lot(attempt->client, 3);
	int64_t		start_us;
	char		condition[100];
	char		sql[200];
	Answer		answer;

	write_condition(attempt->client, condition, sizeof(condition), first, count);
	snprintf(sql, sizeof(sql), "SELECT id, elements FROM lists%s WHERE %s", attempt->client->suffix, condition);
	start_us = now_us();
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

/* An append that is taken back, and stands in no history: nobody may ever see it. */
static bool
append_and_roll_back(Attempt *attempt)
{
	Client	   *client = attempt->client;
	char		sql[200];

	snprintf(sql, sizeof(sql), "UPDATE lists%s SET elements = elements || %lld WHERE id = %lld", client->suffix,
			 (long long) new_number(client), (long long) draw_list(client));
	return run_only(attempt, "SAVEPOINT s", false) && run_only(attempt, sql, false) && run_only(attempt, "ROLLBACK TO s", false);
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

void
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

		if (kind == 0 && !at_once)
			succeeded = append_and_roll_back(&attempt);
		else if (kind < 9)
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

void
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

void
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

void
read_final_bank(Attempt *attempt)
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

void
read_final_lists(Attempt *attempt)
{
	final_rows(attempt, "t.elements", "lists", rotations(attempt->client) * LISTS_PER_ROTATION + LISTS_IN_USE);
}

void
read_final_registers(Attempt *attempt)
{
	final_rows(attempt, "CASE WHEN t.id IS NOT NULL THEN ARRAY[t.value] END", "register", rotations(attempt->client) + REGISTERS_IN_USE);
}
