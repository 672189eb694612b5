/*
 * history.c
 *	  Reading a history.
 */
#include <stdlib.h>
#include <string.h>

#include "history.h"

void *
allocate(size_t size)
{
	void	   *memory = calloc(1, size > 0 ? size : 1);

	if (memory == NULL)
	{
		fprintf(stderr, "out of memory\n");
		exit(2);
	}
	return memory;
}

void *
grow(void *array, int count, int *allocated, size_t element_size)
{
	if (count <= *allocated)
		return array;
	*allocated = count * 2 < 16 ? 16 : count * 2;
	array = realloc(array, (size_t) *allocated * element_size);
	if (array == NULL)
	{
		fprintf(stderr, "out of memory\n");
		exit(2);
	}
	return array;
}

static int
map_slot(const Map *map, int64_t key)
{
	uint64_t	hash = (uint64_t) key * UINT64_C(0x9E3779B97F4A7C15);
	int			slot = (int) (hash >> 32) & (map->size - 1);

	while (map->values[slot] >= 0 && map->keys[slot] != key)
		slot = (slot + 1) & (map->size - 1);
	return slot;
}

int
map_get(const Map *map, int64_t key)
{
	return map->size == 0 ? -1 : map->values[map_slot(map, key)];
}

static void
map_resize(Map *map, int size)
{
	Map			larger = {.size = size};

	larger.keys = allocate((size_t) size * sizeof(int64_t));
	larger.values = allocate((size_t) size * sizeof(int));
	for (int i = 0; i < size; i++)
		larger.values[i] = -1;
	for (int i = 0; i < map->size; i++)
		if (map->values[i] >= 0)
			map_put(&larger, map->keys[i], map->values[i]);
	free(map->keys);
	free(map->values);
	*map = larger;
}

void
map_put(Map *map, int64_t key, int value)
{
	int			slot;

	if (2 * (map->count + 1) > map->size)
		map_resize(map, map->size == 0 ? 64 : map->size * 2);
	slot = map_slot(map, key);
	if (map->values[slot] < 0)
		map->count++;
	map->keys[slot] = key;
	map->values[slot] = value;
}

/* ---- the parser: each function moves the cursor behind what it took, and says whether it was there ---- */

static const char *
next_word(char **cursor)
{
	char	   *word = *cursor;
	char	   *end;

	while (*word == ' ')
		word++;
	if (*word == '\0')
		return NULL;
	end = word + strcspn(word, " ");
	*cursor = *end != '\0' ? end + 1 : end;
	*end = '\0';
	return word;
}

static bool
next_number(char **cursor, int64_t *number)
{
	const char *word = next_word(cursor);
	char	   *end;

	if (word == NULL)
		return false;
	*number = strtoll(word, &end, 10);
	return end != word && *end == '\0';
}

static bool
next_int(char **cursor, int *number)
{
	int64_t		wide;

	if (!next_number(cursor, &wide))
		return false;
	*number = (int) wide;
	return true;
}

static bool
next_list(char **cursor, Operation *operation)
{
	const char *word = next_word(cursor);
	int			allocated = 0;

	if (word == NULL)
		return false;
	if (strcmp(word, "-") == 0)
		return true;
	if (strcmp(word, "?") == 0)
	{
		operation->value_count = NO_ANSWER;
		return true;
	}
	for (;;)
	{
		char	   *end;
		int64_t		value = strtoll(word, &end, 10);

		if (end == word)
			return false;
		operation->values = grow(operation->values, operation->value_count + 1, &allocated, sizeof(int64_t));
		operation->values[operation->value_count++] = value;
		if (*end == '\0')
			return true;
		if (*end != ',')
			return false;
		word = end + 1;
	}
}

static bool
parse_operation(char **cursor, Operation *operation)
{
	const char *kind = next_word(cursor);
	int			argument_count;

	if (kind == NULL || kind[1] != '\0')
		return false;
	operation->kind = kind[0];
	if (!next_int(cursor, &operation->statement) || !next_number(cursor, &operation->key) ||
		!next_number(cursor, &operation->start_us) || !next_number(cursor, &operation->end_us))
		return false;
	if (strchr("rbl", operation->kind) != NULL)
		return next_list(cursor, operation);
	if (strchr("awcx", operation->kind) == NULL)
		return false;
	argument_count = strchr("cx", operation->kind) != NULL ? 3 : 1;
	for (int i = 0; i < argument_count; i++)
		if (!next_number(cursor, &operation->arguments[i]))
			return false;
	return true;
}

static bool
parse_level(const char *word, Transaction *transaction)
{
	size_t		length = word != NULL ? strcspn(word, "+") : 0;

	if (word == NULL)
		return false;
	transaction->is_local = strcmp(word + length, "+local") == 0;
	if (!transaction->is_local && word[length] != '\0')
		return false;
	if (length == 2 && strncmp(word, "rc", 2) == 0)
		transaction->level = LEVEL_READ_COMMITTED;
	else if (length == 2 && strncmp(word, "rr", 2) == 0)
		transaction->level = LEVEL_REPEATABLE_READ;
	else if (length == 3 && strncmp(word, "ser", 3) == 0)
		transaction->level = LEVEL_SERIALIZABLE;
	else if (length == 5 && strncmp(word, "final", 5) == 0)
	{
		transaction->level = LEVEL_REPEATABLE_READ;
		transaction->is_final = true;
	}
	else
		return false;
	return true;
}

static bool
parse_outcome(const char *word, Outcome *outcome)
{
	if (word == NULL)
		return false;
	if (strcmp(word, "ok") == 0)
		*outcome = OUTCOME_OK;
	else if (strcmp(word, "failed") == 0)
		*outcome = OUTCOME_FAILED;
	else if (strcmp(word, "unknown") == 0)
		*outcome = OUTCOME_UNKNOWN;
	else
		return false;
	return true;
}

static bool
parse_transaction(char *text, Transaction *transaction)
{
	char	   *cursor = text;
	const char *word = next_word(&cursor);
	int			allocated = 0;

	if (word == NULL || strcmp(word, "t") != 0 ||
		!next_int(&cursor, &transaction->client) || !next_int(&cursor, &transaction->node) ||
		!parse_level(next_word(&cursor), transaction) || !parse_outcome(next_word(&cursor), &transaction->outcome) ||
		next_word(&cursor) == NULL ||
		!next_number(&cursor, &transaction->start_us) || !next_number(&cursor, &transaction->end_us))
		return false;
	while ((word = next_word(&cursor)) != NULL)
	{
		Operation	operation = {0};

		if (strcmp(word, ";") != 0 || !parse_operation(&cursor, &operation))
			return false;
		transaction->operations = grow(transaction->operations, transaction->operation_count + 1, &allocated, sizeof(Operation));
		transaction->operations[transaction->operation_count++] = operation;
	}
	return true;
}

void
history_read(History *history, FILE *file, Report *report)
{
	char	   *line = NULL;
	size_t		size = 0;
	ssize_t		length;

	while ((length = getline(&line, &size, file)) > 0)
	{
		Transaction transaction = {0};
		char	   *copy;

		if (line[length - 1] == '\n')
			line[--length] = '\0';
		if (length == 0 || line[0] == '#')
			continue;
		copy = allocate((size_t) length + 1);
		memcpy(copy, line, (size_t) length);
		transaction.line = copy;
		if (!parse_transaction(line, &transaction))
		{
			report_anomaly(report, ANOMALY_BAD_HISTORY, "line not understood: %s", copy);
			continue;
		}
		history->transactions = grow(history->transactions, history->count + 1, &history->allocated, sizeof(Transaction));
		history->transactions[history->count++] = transaction;
	}
	free(line);
}

#define SHOWN_ELEMENTS 6

/* Where the last few elements of a list begin; the list itself if it is not much longer. */
static const char *
last_elements(const char *list, size_t length)
{
	int			commas = 0;

	for (const char *c = list + length; c > list; c--)
		if (c[-1] == ',' && ++commas == SHOWN_ELEMENTS)
			return memchr(list, ',', (size_t) (c - 1 - list)) != NULL ? c : list;
	return list;
}

void
report_transaction(Report *report, const char *label, const Transaction *transaction)
{
	char	   *text = allocate(strlen(transaction->line) + 1);
	size_t		used = 0;

	/* Word by word, as the line was read with one blank between two. */
	for (const char *word = transaction->line; *word != '\0';)
	{
		size_t		length = strcspn(word, " ");
		const char *shown = last_elements(word, length);
		size_t		shown_length = length - (size_t) (shown - word);

		if (shown != word)
		{
			memcpy(text + used, "..,", 3);
			used += 3;
		}
		memcpy(text + used, shown, shown_length);
		used += shown_length;
		word += length;
		if (*word == ' ')
			text[used++] = *word++;
	}
	report_detail(report, "%s%s", label, text);
	free(text);
}
