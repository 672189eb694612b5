/*
 * test_registers.c
 *	  The register checker tells linearizable histories from others: planted ones, and random ones of a register in memory.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "registers.h"
#include "tap.h"

static const struct
{
	const char *name;
	bool		is_linearizable;
	const char *history;
}			planted[] =
{
	{
		"reads and writes one after the other", true,
		"t 1 1 rc ok - 10 19 ; r 0 1 11 18 -\n"
		"t 1 1 rc ok - 20 29 ; w 0 1 21 28 5\n"
		"t 2 2 rc ok - 30 39 ; c 0 1 31 38 5 6 1\n"
		"t 2 2 rc ok - 40 49 ; c 0 1 41 48 5 7 0\n"
		"t 1 1 rc ok - 50 59 ; r 0 1 51 58 6\n"
	},
	{
		"a stale read", false,
		"t 1 1 rc ok - 20 29 ; w 0 1 21 28 5\n"
		"t 2 2 rc ok - 30 39 ; r 0 1 31 38 -\n"
	},
	{
		"a local read may be stale", true,
		"t 1 1 rc ok - 20 29 ; w 0 1 21 28 5\n"
		"t 2 2 rc+local ok - 30 39 ; r 0 1 31 38 -\n"
	},
	{
		"and so may a local compare and set that does nothing", true,
		"t 1 1 rc ok - 20 29 ; w 0 1 21 28 5\n"
		"t 2 2 rc+local ok - 30 39 ; c 0 1 31 38 5 6 0\n"
	},
	{
		"a read at the same time as a write shows either", true,
		"t 1 1 rc ok - 20 39 ; w 0 1 20 39 5\n"
		"t 2 2 rc ok - 20 29 ; r 0 1 21 23 -\n"
		"t 2 2 rc ok - 20 29 ; r 0 1 24 28 5\n"
	},
	{
		"but not first the new and then the old value", false,
		"t 1 1 rc ok - 20 39 ; w 0 1 20 39 5\n"
		"t 2 2 rc ok - 20 29 ; r 0 1 21 23 5\n"
		"t 3 3 rc ok - 20 29 ; r 0 1 24 28 -\n"
	},
	{
		"a lost write", false,
		"t 1 1 rc ok - 10 19 ; w 0 1 11 18 5\n"
		"t 2 2 rc ok - 20 29 ; w 0 1 21 28 6\n"
		"t 2 2 rc ok - 30 39 ; r 0 1 31 38 5\n"
	},
	{
		"two that win the same compare and set", false,
		"t 1 1 rc ok - 10 19 ; w 0 1 11 18 5\n"
		"t 2 2 rc ok - 20 29 ; c 0 1 21 28 5 6 1\n"
		"t 3 3 rc ok - 20 29 ; c 0 1 21 28 5 7 1\n"
	},
	{
		"one that loses for no reason", false,
		"t 1 1 rc ok - 10 19 ; w 0 1 11 18 5\n"
		"t 2 2 rc ok - 20 29 ; c 0 1 21 28 5 6 0\n"
	},
	{
		"a write of unknown outcome that took effect late", true,
		"t 1 1 rc unknown 08007 10 19 ; w 0 1 11 18 5\n"
		"t 2 2 rc ok - 20 29 ; r 0 1 21 28 -\n"
		"t 2 2 rc ok - 30 39 ; w 0 1 31 38 6\n"
		"t 2 2 rc ok - 40 49 ; r 0 1 41 48 5\n"
	},
	{
		"or never", true,
		"t 1 1 rc unknown 08007 10 19 ; c 0 1 11 18 4 5 2\n"
		"t 2 2 rc ok - 20 29 ; r 0 1 21 28 -\n"
	},
	{
		"but not twice", false,
		"t 1 1 rc unknown 08007 10 19 ; w 0 1 11 18 5\n"
		"t 2 2 rc ok - 20 29 ; r 0 1 21 28 5\n"
		"t 2 2 rc ok - 30 39 ; w 0 1 31 38 6\n"
		"t 2 2 rc ok - 40 49 ; r 0 1 41 48 6\n"
		"t 2 2 rc ok - 50 59 ; r 0 1 51 58 5\n"
	},
	{
		"nor before it was begun", false,
		"t 2 2 rc ok - 5 9 ; r 0 1 6 7 5\n"
		"t 1 1 rc unknown 08007 10 19 ; w 0 1 11 18 5\n"
	},
	{
		"a write that failed and is read", false,
		"t 1 1 rc failed 40001 10 19 ; w 0 1 11 18 5\n"
		"t 2 2 rc ok - 20 29 ; r 0 1 21 28 5\n"
	},
	{
		"registers are independent", true,
		"t 1 1 rc ok - 10 19 ; w 0 1 11 18 5\n"
		"t 2 2 rc ok - 20 29 ; r 0 2 21 28 -\n"
	},
};

static Report
check_text(const char *text, size_t length)
{
	Report		report = {.out = getenv("SHOW") != NULL ? stderr : NULL, .details_per_anomaly = 3};
	History		history = {0};
	FILE	   *file = fmemopen((void *) text, length, "r");

	history_read(&history, file, &report);
	fclose(file);
	check_registers(&history, &report);
	return report;
}

/* ---- a register in memory, with operations that take effect somewhere between their start and their end ---- */

typedef enum RegisterFault
{
	REGISTER_RIGHT,
	REGISTER_STALE,				/* now and then a read shows the value before */
	REGISTER_LOSES_WRITES,
	REGISTER_KEEPS_FAILED,
	REGISTER_BLIND_CAS,			/* now and then compare and set does not compare */
	REGISTER_FAULTS
} RegisterFault;

#define CLIENTS 8

typedef struct Client
{
	bool		is_busy;
	bool		is_done;		/* it has taken effect */
	char		kind;
	int64_t		start_us;
	int64_t		expected;
	int64_t		written;
	int64_t		result;
	bool		will_be_unknown;
	bool		will_fail;
} Client;

typedef struct World
{
	FILE	   *out;
	RegisterFault fault;
	int64_t		now_us;
	int64_t		value;			/* 0: no row */
	int64_t		previous;
	int64_t		next_value;
	Client		clients[CLIENTS];
	Client		late[64];		/* operations whose client was told "unknown", and that may still take effect */
	int			late_count;
} World;

static void
set_value(World *world, int64_t value)
{
	world->previous = world->value;
	world->value = value;
}

static void
take_effect(World *world, Client *client)
{
	client->is_done = true;
	if (client->kind == 'r')
		client->result = world->fault == REGISTER_STALE && rand() % 10 == 0 ? world->previous : world->value;
	else if (client->will_fail && !(world->fault == REGISTER_KEEPS_FAILED && rand() % 2 == 0))
		return;
	else if (client->kind == 'w')
	{
		if (world->fault != REGISTER_LOSES_WRITES || rand() % 10 != 0)
			set_value(world, client->written);
	}
	else
	{
		client->result = world->value == client->expected || (world->fault == REGISTER_BLIND_CAS && rand() % 5 == 0);
		if (client->result)
			set_value(world, client->written);
	}
}

static void
start(World *world, Client *client)
{
	memset(client, 0, sizeof(*client));
	client->is_busy = true;
	client->kind = "rrwc"[rand() % 4];
	client->start_us = world->now_us;
	client->expected = rand() % 4 == 0 ? world->previous : world->value;
	if (client->expected == 0)
		client->expected = -1;	/* no row: nothing that could be compared */
	client->written = ++world->next_value;
	client->will_be_unknown = rand() % 60 == 0;
	client->will_fail = !client->will_be_unknown && rand() % 12 == 0;
}

static void
finish(World *world, Client *client)
{
	const char *outcome = client->will_be_unknown ? "unknown" : client->will_fail ? "failed" : "ok";

	fprintf(world->out, "t %d 1 rc %s - %lld %lld ; %c 0 1 %lld %lld ", (int) (client - world->clients), outcome,
			(long long) client->start_us, (long long) world->now_us, client->kind, (long long) client->start_us, (long long) world->now_us);
	if (client->kind == 'r' && client->result == 0)
		fprintf(world->out, client->will_be_unknown || client->will_fail ? "?\n" : "-\n");
	else if (client->kind == 'r')
		fprintf(world->out, "%lld\n", (long long) client->result);
	else if (client->kind == 'w')
		fprintf(world->out, "%lld\n", (long long) client->written);
	else
		fprintf(world->out, "%lld %lld %lld\n", (long long) client->expected, (long long) client->written,
				client->will_be_unknown ? 2LL : (long long) client->result);
	client->is_busy = false;
	if (client->will_be_unknown && !client->is_done && world->late_count < 64)
		world->late[world->late_count++] = *client;
}

static void
write_register_history(FILE *out, RegisterFault fault, int steps)
{
	World		world = {.out = out, .fault = fault};

	for (int i = 0; i < steps; i++)
	{
		Client	   *client = &world.clients[rand() % CLIENTS];

		world.now_us++;
		if (!client->is_busy)
			start(&world, client);
		else if (!client->is_done && !(client->will_be_unknown && rand() % 2 == 0))
			take_effect(&world, client);
		else
			finish(&world, client);
		if (world.late_count > 0 && rand() % 50 == 0)
			take_effect(&world, &world.late[--world.late_count]);
	}
	for (int i = 0; i < CLIENTS; i++)
	{
		/* What is under way may have been seen. */
		world.clients[i].will_be_unknown = true;
		if (world.clients[i].is_busy && world.clients[i].kind != 'r')
			finish(&world, &world.clients[i]);
	}
}

static int
count_caught(RegisterFault fault, int runs, int steps)
{
	int			caught = 0;

	for (int run = 0; run < runs; run++)
	{
		char	   *text = NULL;
		size_t		length = 0;
		FILE	   *out = open_memstream(&text, &length);
		Report		report;

		write_register_history(out, fault, steps);
		fclose(out);
		report = check_text(text, length);
		caught += report.counts[ANOMALY_NOT_LINEARIZABLE] > 0;
		ok_quietly(report.counts[ANOMALY_UNDECIDED] == 0, "the search comes to an end");
		ok_quietly(report.counts[ANOMALY_BAD_HISTORY] == 0, "the history is well formed");
		free(text);
	}
	return caught;
}

int
main(void)
{
	static const char *const names[REGISTER_FAULTS] = {"right", "stale", "losing writes", "keeping failed writes", "not comparing"};

	srand(20240302);
	for (size_t i = 0; i < sizeof(planted) / sizeof(planted[0]); i++)
	{
		Report		report = check_text(planted[i].history, strlen(planted[i].history));
		char		name[200];

		snprintf(name, sizeof(name), "%s: %s", planted[i].is_linearizable ? "passes" : "not linearizable", planted[i].name);
		ok(planted[i].is_linearizable ? report_total(&report) == 0 :
		   report.counts[ANOMALY_NOT_LINEARIZABLE] == 1 && report_total(&report) == 1, name);
	}
	ok(count_caught(REGISTER_RIGHT, 300, 1500) == 0, "300 histories of a right register pass");
	for (RegisterFault fault = REGISTER_RIGHT + 1; fault < REGISTER_FAULTS; fault++)
	{
		int			caught = count_caught(fault, 50, 1500);
		char		name[100];

		snprintf(name, sizeof(name), "a register that is %s is caught in nine of ten histories", names[fault]);
		ok(caught >= 45, name);
		printf("# caught in %d of 50 histories\n", caught);
	}
	return tap_done();
}
