/*
 * random_lists.c
 *	  A store of lists in memory with clients whose steps are interleaved by lot.
 *
 * The store is one log: commit number i appends some elements.  A snapshot is a number; it shows the elements of commits up to it.  A
 * statement takes effect somewhere between its start and its end.  A transaction of REPEATABLE READ or SERIALIZABLE is aborted if a list
 * that it appends to was changed after its snapshot; a READ COMMITTED one if a list was changed after its first append to it (as two nodes
 * without common row locks have to do it); a SERIALIZABLE one that writes, also if a list was changed that it has read.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "history.h"
#include "random_lists.h"

#define CLIENTS 6
#define LISTS 5					/* in use at a time */
#define TRANSACTIONS_PER_LISTS 1000	/* then others are used */
#define MAX_OPERATIONS 5

typedef struct Element
{
	int64_t		value;
	int			commit;			/* which commit appended it; 0: not visible, a dirty one */
} Element;

typedef struct StoredList
{
	Element    *elements;
	int			count;
	int			allocated;
} StoredList;

typedef enum Phase
{
	PHASE_IDLE,
	PHASE_STATEMENT_STARTED,
	PHASE_STATEMENT_DONE,
	PHASE_BETWEEN,
	PHASE_COMMITTING,
	PHASE_ANSWERED
} Phase;

typedef struct Client
{
	Phase		phase;
	const char *level;
	int			node;
	int64_t		start_us;
	int64_t		statement_start_us;
	int			snapshot;
	int			planned;		/* statements */
	int			statement;
	int			list;			/* of the statement; a reading one reads the next list too */
	bool		is_read;
	int			appended_to[MAX_OPERATIONS];
	int64_t		appended[MAX_OPERATIONS];
	int			base[MAX_OPERATIONS];
	int			appends;
	int			has_read[2 * MAX_OPERATIONS];
	int			reads;
	const char *outcome;
	int			applied;		/* how many of its appends are in the store */
	char		text[65536];	/* the operations so far */
	char		pending[65536]; /* those of the statement under way, without their end */
} Client;

typedef struct Store
{
	FILE	   *out;
	Fault		fault;
	uint64_t	random_state;
	int64_t		now_us;
	StoredList *lists;
	int			list_count;
	int			commits;
	int64_t		next_value;
	Client		clients[CLIENTS];
	int			started;
} Store;

const char *
fault_name(Fault fault)
{
	static const char *const names[FAULT_COUNT] = {"none", "no first committer", "old snapshot", "lost commit", "failed commits",
		"torn commit", "long fork", "no read validation", "a snapshot per list", "applied twice", "own appends missing", "dirty read"};

	return names[fault];
}

static int
lot(Store *store, int limit)
{
	store->random_state ^= store->random_state << 13;
	store->random_state ^= store->random_state >> 7;
	store->random_state ^= store->random_state << 17;
	return (int) ((store->random_state >> 33) % (uint64_t) limit);
}

static bool
strikes(Store *store, Fault fault, int one_in)
{
	return store->fault == fault && lot(store, one_in) == 0;
}

static bool
is_snapshot_level(const Client *client)
{
	return strcmp(client->level, "rc") != 0;
}

static bool
changed_since(const Store *store, int list, int snapshot)
{
	const StoredList *stored = &store->lists[list];

	return stored->count > 0 && stored->elements[stored->count - 1].commit > snapshot;
}

static int
take_snapshot(Store *store)
{
	if (strikes(store, FAULT_OLD_SNAPSHOT, 8) && store->commits > 4)
		return store->commits - 1 - lot(store, 4);
	return store->commits;
}

static void
write_list(Store *store, Client *client, FILE *text, int list, int snapshot)
{
	const char *comma = "";
	int			hidden = 0;
	bool		empty = true;

	if (client->node == 2 && strikes(store, FAULT_LONG_FORK, 3))
		hidden = snapshot - 1;
	for (int i = 0; i < store->lists[list].count; i++)
	{
		const Element *element = &store->lists[list].elements[i];

		if (element->commit > snapshot || (hidden > 0 && element->commit == hidden))
			continue;
		fprintf(text, "%s%lld", comma, (long long) element->value);
		comma = ",";
		empty = false;
	}
	for (int i = 0; i < client->appends && !strikes(store, FAULT_OWN_APPENDS_MISSING, 4); i++)
		if (client->appended_to[i] == list)
		{
			fprintf(text, "%s%lld", comma, (long long) client->appended[i]);
			comma = ",";
			empty = false;
		}
	for (int other = 0; other < CLIENTS; other++)
	{
		Client	   *writer = &store->clients[other];

		if (writer != client && writer->phase != PHASE_IDLE && writer->phase != PHASE_ANSWERED && writer->appends > 0 &&
			writer->appended_to[0] == list && strikes(store, FAULT_DIRTY_READ, 10))
		{
			fprintf(text, "%s%lld", comma, (long long) writer->appended[0]);
			empty = false;
			break;
		}
	}
	if (empty)
		fputc('-', text);
}

/* The statement takes effect.  False: it fails. */
static bool
perform(Store *store, Client *client)
{
	FILE	   *text = fmemopen(client->pending, sizeof(client->pending), "w");
	int			snapshot;

	if (client->statement == 0 || !is_snapshot_level(client))
		client->snapshot = take_snapshot(store);
	snapshot = client->snapshot;
	if (client->is_read)
	{
		for (int list = client->list; list <= client->list + 1 && list < store->list_count; list++)
		{
			if (list > client->list && store->fault == FAULT_SNAPSHOT_PER_LIST && !is_snapshot_level(client) && snapshot > 2)
				snapshot -= lot(store, 3);
			client->has_read[client->reads++] = list;
			fprintf(text, " ; r %d %d %lld E ", client->statement, list, (long long) client->statement_start_us);
			write_list(store, client, text, list, snapshot);
		}
	}
	else
	{
		client->appended_to[client->appends] = client->list;
		client->appended[client->appends] = ++store->next_value;
		client->base[client->appends++] = is_snapshot_level(client) ? client->snapshot : store->commits;
		fprintf(text, " ; a %d %d %lld E %lld", client->statement, client->list, (long long) client->statement_start_us,
				(long long) store->next_value);
	}
	fclose(text);
	for (int i = 0; i < client->appends; i++)
		if (!is_snapshot_level(client) && changed_since(store, client->appended_to[i], client->base[i]))
			return false;
	return true;
}

/* The operations with their end put in. */
static void
finish_statement(Store *store, Client *client)
{
	FILE	   *text = fmemopen(client->text, sizeof(client->text), "a");

	for (const char *c = client->pending; *c != '\0'; c++)
		if (*c == 'E')
			fprintf(text, "%lld", (long long) store->now_us);
		else
			fputc(*c, text);
	fclose(text);
	client->statement++;
}

static bool
may_commit(Store *store, const Client *client)
{
	for (int i = 0; i < client->appends; i++)
		if (changed_since(store, client->appended_to[i], client->base[i]) && store->fault != FAULT_NO_FIRST_COMMITTER)
			return false;
	for (int i = 0; i < client->reads && client->appends > 0 && strcmp(client->level, "ser") == 0; i++)
		if (changed_since(store, client->has_read[i], client->snapshot) && store->fault != FAULT_NO_READ_VALIDATION)
			return false;
	return true;
}

/* The appends from the first one that is not in the store up to `end` become visible. */
static void
take_effect(Store *store, Client *client, int end)
{
	int			times = strikes(store, FAULT_APPLIED_TWICE, 20) ? 2 : 1;
	int			first = client->applied;

	store->commits++;
	for (int time = 0; time < times; time++)
		for (int i = first; i < end; i++)
		{
			StoredList *list = &store->lists[client->appended_to[i]];

			list->elements = grow(list->elements, list->count + 1, &list->allocated, sizeof(Element));
			list->elements[list->count++] = (Element) {.value = client->appended[i], .commit = store->commits};
		}
	client->applied = end;
}

/* True when it is over. */
static bool
commit(Store *store, Client *client)
{
	bool		is_unknown = lot(store, 25) == 0;

	if (client->applied > 0)
	{
		take_effect(store, client, client->appends);	/* the other half */
		return true;
	}
	if (!may_commit(store, client) || lot(store, 30) == 0)
	{
		client->outcome = "failed";
		if (strikes(store, FAULT_FAILED_COMMITS, 4))
			take_effect(store, client, client->appends);
		return true;
	}
	client->outcome = is_unknown ? "unknown" : "ok";
	if (client->appends == 0 || (is_unknown && lot(store, 2) == 0) || strikes(store, FAULT_LOST_COMMIT, 20))
		return true;
	if (client->appends > 1 && strikes(store, FAULT_TORN_COMMIT, 2))
	{
		take_effect(store, client, 1);
		return false;
	}
	take_effect(store, client, client->appends);
	return true;
}

static void
begin(Store *store, Client *client)
{
	static const char *const levels[] = {"rc", "rr", "ser"};

	memset(client, 0, offsetof(Client, text));
	client->text[0] = '\0';
	client->level = levels[lot(store, 3)];
	client->node = 1 + lot(store, 3);
	client->start_us = store->now_us;
	client->planned = 1 + lot(store, 4);
	client->phase = PHASE_BETWEEN;
	store->started++;
}

static void
end(Store *store, Client *client)
{
	fprintf(store->out, "t %d %d %s %s - %lld %lld%s\n", (int) (client - store->clients), client->node, client->level, client->outcome,
			(long long) client->start_us, (long long) store->now_us, client->text);
	client->phase = PHASE_IDLE;
}

static void
step(Store *store, Client *client, int transaction_count)
{
	store->now_us++;
	switch (client->phase)
	{
		case PHASE_IDLE:
			if (store->started < transaction_count)
				begin(store, client);
			return;
		case PHASE_BETWEEN:
			client->phase = client->statement < client->planned ? PHASE_STATEMENT_STARTED : PHASE_COMMITTING;
			client->statement_start_us = store->now_us;
			client->is_read = lot(store, 2) == 0;
			client->list = store->started / TRANSACTIONS_PER_LISTS * LISTS + lot(store, LISTS);
			return;
		case PHASE_STATEMENT_STARTED:
			client->phase = PHASE_STATEMENT_DONE;
			if (!perform(store, client))
			{
				client->outcome = "failed";
				client->phase = PHASE_ANSWERED;
				finish_statement(store, client);
			}
			return;
		case PHASE_STATEMENT_DONE:
			finish_statement(store, client);
			client->phase = PHASE_BETWEEN;
			return;
		case PHASE_COMMITTING:
			if (commit(store, client))
				client->phase = PHASE_ANSWERED;
			return;
		case PHASE_ANSWERED:
			end(store, client);
			return;
	}
}

static bool
all_idle(const Store *store)
{
	for (int i = 0; i < CLIENTS; i++)
		if (store->clients[i].phase != PHASE_IDLE)
			return false;
	return true;
}

void
write_random_lists(FILE *out, Fault fault, uint64_t seed, int transaction_count)
{
	Store	   *store = allocate(sizeof(Store));

	store->out = out;
	store->fault = fault;
	store->list_count = (transaction_count / TRANSACTIONS_PER_LISTS + 1) * LISTS;
	store->lists = allocate((size_t) store->list_count * sizeof(StoredList));
	store->random_state = seed * UINT64_C(0x9E3779B97F4A7C15) + 1;
	while (store->started < transaction_count || !all_idle(store))
		step(store, &store->clients[lot(store, CLIENTS)], transaction_count);
	store->fault = FAULT_NONE;
	for (int node = 1; node <= 3; node++)
	{
		Client		reader = {.node = node};

		store->now_us++;
		fprintf(out, "t %d %d final ok - %lld %lld", CLIENTS, node, (long long) store->now_us, (long long) store->now_us + 1);
		for (int list = 0; list < store->list_count; list++)
		{
			fprintf(out, " ; r 0 %d %lld %lld ", list, (long long) store->now_us, (long long) store->now_us + 1);
			write_list(store, &reader, out, list, store->commits);
		}
		fputc('\n', out);
		store->now_us++;
	}
	for (int list = 0; list < store->list_count; list++)
		free(store->lists[list].elements);
	free(store->lists);
	free(store);
}
