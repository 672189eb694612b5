/*
 * test_lists.c
 *	  The list-append checker finds each anomaly in a planted history, lets clean ones pass, and does both on histories of a store in
 *	  memory, which is right, or broken in one way.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "list_append.h"
#include "random_lists.h"
#include "tap.h"

#define NONE ANOMALY_COUNT

typedef struct Planted
{
	const char *name;
	Anomaly		expected;		/* NONE: passes */
	const char *history;
} Planted;

static const Planted planted[] =
{
	{
		"an empty history", NONE, ""
	},
	{
		"appends and reads one after the other", NONE,
		"t 1 1 rc ok - 10 19 ; a 0 1 11 18 5\n"
		"t 2 2 rr ok - 20 29 ; r 0 1 21 22 5 ; a 1 1 23 24 6 ; r 2 1 25 26 5,6\n"
		"t 3 3 ser ok - 30 39 ; r 0 1 31 32 5,6 ; r 0 2 31 32 -\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5,6 ; r 0 2 90 99 -\n"
	},
	{
		"a transaction that failed may have read its own appends", NONE,
		"t 1 1 rc failed 40001 10 19 ; a 0 1 11 12 5 ; r 1 1 13 14 5\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 -\n"
	},
	{
		"one of unknown outcome may have committed, long after the client had gone", NONE,
		"t 1 1 rc unknown 08007 10 19 ; a 0 1 11 12 5\n"
		"t 2 1 rc ok - 20 29 ; r 0 1 21 22 -\n"
		"t 3 1 rc ok - 30 39 ; r 0 1 31 32 5\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5\n"
	},
	{
		"or not", NONE,
		"t 1 1 rc unknown 08007 10 19 ; a 0 1 11 12 5 ; r 1 2 13 14 ?\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 -\n"
	},
	{
		"READ COMMITTED reads twice and sees another's commit in between", NONE,
		"t 1 1 rc ok - 10 60 ; r 0 1 11 12 - ; r 1 1 50 51 5\n"
		"t 2 2 rc ok - 20 30 ; a 0 1 21 22 5\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5\n"
	},
	{
		"write skew is allowed under REPEATABLE READ", NONE,
		"t 1 1 rr ok - 10 30 ; r 0 1 11 12 - ; a 1 2 13 14 6\n"
		"t 2 2 rr ok - 10 30 ; r 0 2 11 12 - ; a 1 1 13 14 5\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5 ; r 0 2 90 99 6\n"
	},
	{
		"and between a serializable transaction and another", NONE,
		"t 1 1 ser ok - 10 30 ; r 0 1 11 12 - ; a 1 2 13 14 6\n"
		"t 2 2 rr ok - 10 30 ; r 0 2 11 12 - ; a 1 1 13 14 5\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5 ; r 0 2 90 99 6\n"
	},
	{
		"a local read may be old", NONE,
		"t 1 1 rc ok - 10 19 ; a 0 1 11 18 5\n"
		"t 2 2 rc+local ok - 20 29 ; r 0 1 21 22 -\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5\n"
	},
	{
		"an element that nobody appended", ANOMALY_NEVER_WRITTEN,
		"t 1 1 rc ok - 10 19 ; r 0 1 11 18 5\n"
	},
	{
		"an element of another list", ANOMALY_NEVER_WRITTEN,
		"t 1 1 rc ok - 10 19 ; a 0 1 11 18 5\n"
		"t 1 1 rc ok - 20 29 ; r 0 2 21 28 5\n"
	},
	{
		"a read of what failed", ANOMALY_ABORTED_READ,
		"t 1 1 rc failed 40001 10 40 ; a 0 1 11 18 5\n"
		"t 2 1 rc ok - 20 29 ; r 0 1 21 28 5\n"
	},
	{
		"a failed append in the final state", ANOMALY_FAILED_WRITE_STAYED,
		"t 1 1 rc failed 25006 10 19 ; a 0 1 11 18 5\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5\n"
	},
	{
		"a read in the middle of a transaction", ANOMALY_INTERMEDIATE_READ,
		"t 1 1 rc ok - 10 19 ; a 0 1 11 12 5 ; a 1 1 13 14 6\n"
		"t 2 2 rc ok - 10 19 ; r 0 1 11 12 5\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5,6\n"
	},
	{
		"a transaction that does not see its own append", ANOMALY_INTERNAL,
		"t 1 1 rr ok - 10 19 ; a 0 1 11 12 5 ; r 1 1 13 14 -\n"
	},
	{
		"one that sees it before it was made", ANOMALY_INTERNAL,
		"t 1 1 rr ok - 10 19 ; r 0 1 11 12 5 ; a 1 1 13 14 5\n"
	},
	{
		"an element twice in a list", ANOMALY_DUPLICATE,
		"t 1 1 rc ok - 10 19 ; a 0 1 11 12 5\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5,5\n"
	},
	{
		"two orders of one list", ANOMALY_INCOMPATIBLE_ORDER,
		"t 1 1 rc ok - 10 19 ; a 0 1 11 12 5\n"
		"t 2 2 rc ok - 10 19 ; a 0 1 11 12 6\n"
		"t 3 1 rc ok - 20 29 ; r 0 1 21 22 5,6\n"
		"t 3 2 rc ok - 20 29 ; r 0 1 21 22 6,5\n"
	},
	{
		"something that was read and has vanished", ANOMALY_INCOMPATIBLE_ORDER,
		"t 1 1 rc unknown 08007 10 19 ; a 0 1 11 12 5\n"
		"t 2 2 rc ok - 30 39 ; a 0 1 31 32 6\n"
		"t 3 1 rc ok - 20 29 ; r 0 1 21 22 5\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 6\n"
	},
	{
		"an acknowledged append that is lost", ANOMALY_LOST_WRITE,
		"t 1 1 rc ok - 10 19 ; a 0 1 11 12 5\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 -\n"
	},
	{
		"half of a transaction of unknown outcome", ANOMALY_HALF_TRANSACTION,
		"t 1 1 rc unknown 08007 10 19 ; a 0 1 11 12 5 ; a 1 2 13 14 6\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5 ; r 0 2 90 99 -\n"
	},
	{
		"two transactions that overwrite each other", ANOMALY_G0,
		"t 1 1 rc ok - 10 19 ; a 0 1 11 12 5 ; a 1 2 13 14 6\n"
		"t 2 2 rc ok - 10 19 ; a 0 1 11 12 7 ; a 1 2 13 14 8\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5,7 ; r 0 2 90 99 8,6\n"
	},
	{
		"two transactions that read from each other", ANOMALY_G1C,
		"t 1 1 rc ok - 10 19 ; a 0 1 11 12 5 ; r 1 2 13 14 6\n"
		"t 2 2 rc ok - 10 19 ; a 0 2 11 12 6 ; r 1 1 13 14 5\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5 ; r 0 2 90 99 6\n"
	},
	{
		"a lost update", ANOMALY_LOST_UPDATE,
		"t 1 1 rr ok - 10 30 ; r 0 1 11 12 - ; a 1 1 13 14 5\n"
		"t 2 2 rr ok - 10 30 ; r 0 1 11 12 - ; a 1 1 13 14 6\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5,6\n"
	},
	{
		"read skew", ANOMALY_G_SINGLE,
		"t 1 1 rc ok - 10 40 ; a 0 1 11 12 5 ; a 1 2 13 14 6\n"
		"t 2 2 rr ok - 10 40 ; r 0 1 11 12 - ; r 1 2 30 31 6\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5 ; r 0 2 90 99 6\n"
	},
	{
		"half of a transaction seen by one READ COMMITTED statement", ANOMALY_G_SINGLE,
		"t 1 1 rc ok - 10 40 ; a 0 1 11 12 5 ; a 1 2 13 14 6\n"
		"t 2 2 rc ok - 10 40 ; r 0 1 11 12 - ; r 0 2 11 12 6\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5 ; r 0 2 90 99 6\n"
	},
	{
		"the same by two statements is allowed", NONE,
		"t 1 1 rc ok - 10 40 ; a 0 1 11 12 5 ; a 1 2 13 14 6\n"
		"t 2 2 rc ok - 10 40 ; r 0 1 11 12 - ; r 1 2 30 31 6\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5 ; r 0 2 90 99 6\n"
	},
	{
		"a long fork between two snapshots", ANOMALY_LONG_FORK,
		"t 1 1 rc ok - 10 40 ; a 0 1 11 12 5\n"
		"t 2 2 rc ok - 10 40 ; a 0 2 11 12 6\n"
		"t 3 1 rr ok - 10 40 ; r 0 1 11 12 5 ; r 1 2 13 14 -\n"
		"t 4 2 rr ok - 10 40 ; r 0 2 11 12 6 ; r 1 1 13 14 -\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5 ; r 0 2 90 99 6\n"
	},
	{
		"a long fork between two READ COMMITTED statements, local ones too", ANOMALY_LONG_FORK,
		"t 1 1 rc ok - 10 40 ; a 0 1 11 12 5\n"
		"t 2 2 rc ok - 10 40 ; a 0 2 11 12 6\n"
		"t 3 1 rc+local ok - 10 40 ; r 0 1 11 12 5 ; r 0 2 11 12 -\n"
		"t 4 2 rc+local ok - 10 40 ; r 0 2 11 12 6 ; r 0 1 11 12 -\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5 ; r 0 2 90 99 6\n"
	},
	{
		"write skew under SERIALIZABLE", ANOMALY_G2_ITEM,
		"t 1 1 ser ok - 10 30 ; r 0 1 11 12 - ; a 1 2 13 14 6\n"
		"t 2 2 ser ok - 10 30 ; r 0 2 11 12 - ; a 1 1 13 14 5\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5 ; r 0 2 90 99 6\n"
	},
	{
		"the anomaly of a serializable transaction that only reads", ANOMALY_G2_ITEM,
		"t 1 1 ser ok - 10 60 ; r 0 1 11 12 - ; r 0 2 11 12 - ; a 1 1 50 51 5\n"
		"t 2 2 ser ok - 20 30 ; a 0 2 21 22 6\n"
		"t 3 3 ser ok - 35 40 ; r 0 2 36 37 6 ; r 0 1 36 37 -\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5 ; r 0 2 90 99 6\n"
	},
	{
		"a commit before one that was acknowledged earlier", ANOMALY_REAL_TIME_ORDER,
		"t 1 1 rc ok - 10 19 ; a 0 1 11 12 5\n"
		"t 2 2 rc ok - 20 29 ; a 0 1 21 22 6\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 6,5\n"
	},
	{
		"a read that misses what was acknowledged before", ANOMALY_STALE_READ,
		"t 1 1 rc ok - 10 19 ; a 0 1 11 12 5\n"
		"t 2 2 rc ok - 20 29 ; r 0 1 21 22 -\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5\n"
	},
	{
		"a read that misses what another read showed before", ANOMALY_STALE_READ,
		"t 1 1 rc unknown 08007 10 19 ; a 0 1 11 12 5\n"
		"t 2 2 rc ok - 20 29 ; r 0 1 21 22 5\n"
		"t 3 3 rc ok - 30 39 ; r 0 1 31 32 -\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5\n"
	},
	{
		"the second statement of a READ COMMITTED transaction is stale", ANOMALY_STALE_READ,
		"t 1 1 rc ok - 10 19 ; a 0 1 11 12 5\n"
		"t 2 2 rc ok - 5 29 ; r 0 1 6 7 - ; r 1 1 21 22 -\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5\n"
	},
	{
		"a stale snapshot of a transaction that failed later", ANOMALY_STALE_READ,
		"t 1 1 rc ok - 10 19 ; a 0 1 11 12 5\n"
		"t 2 2 rr failed 40001 20 29 ; r 0 1 21 22 - ; a 1 1 23 24 6\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5\n"
	},
	{
		"a REPEATABLE READ snapshot is that of its begin", NONE,
		"t 1 1 rc ok - 20 25 ; a 0 1 21 22 5\n"
		"t 2 2 rr ok - 10 40 ; r 0 2 11 12 - ; r 1 1 31 32 -\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5 ; r 0 2 90 99 -\n"
	},
	{
		"serializable transactions in no order that respects real time", ANOMALY_NOT_STRICT_SERIALIZABLE,
		"t 1 1 ser ok - 10 60 ; r 0 1 11 12 - ; a 1 2 13 14 6\n"
		"t 2 2 ser ok - 20 30 ; a 0 1 21 22 5\n"
		"t 3 3 ser ok - 40 70 ; r 0 2 41 42 - ; a 1 3 43 44 7\n"
		"t 9 1 final ok - 90 99 ; r 0 1 90 99 5 ; r 0 2 90 99 6 ; r 0 3 90 99 7\n"
	},
	{
		"a history with an element that is appended twice", ANOMALY_BAD_HISTORY,
		"t 1 1 rc ok - 10 19 ; a 0 1 11 12 5 ; a 1 2 11 12 5\n"
	},
	{
		"a line that is none", ANOMALY_BAD_HISTORY, "t 1 1 rc okay - 10 19 ; a 0 1 11 12 5\n"
	},
};

static Report
check_text(const char *text, size_t length, bool real_time)
{
	Report		report = {.out = getenv("SHOW") != NULL ? stderr : NULL, .details_per_anomaly = 3};
	History		history = {0};
	FILE	   *file = fmemopen((void *) text, length > 0 ? length : 1, "r");

	if (length > 0)
		history_read(&history, file, &report);
	fclose(file);
	check_lists(&history, real_time, &report);
	return report;
}

static void
planted_histories(void)
{
	for (size_t i = 0; i < sizeof(planted) / sizeof(planted[0]); i++)
	{
		const Planted *history = &planted[i];
		Report		report = check_text(history->history, strlen(history->history), true);
		char		name[200];

		if (history->expected == NONE)
			snprintf(name, sizeof(name), "passes: %s", history->name);
		else
			snprintf(name, sizeof(name), "%s: %s", anomaly_name(history->expected), history->name);
		ok(history->expected == NONE ? report_total(&report) == 0 : report.counts[history->expected] > 0 && report_total(&report) == 1, name);
		for (int anomaly = 0; anomaly < ANOMALY_COUNT; anomaly++)
			if (report.counts[anomaly] > 0 && anomaly != (int) history->expected)
				printf("# found %s\n", anomaly_name(anomaly));
	}
}

/* In how many of so many histories something is found. */
static int
count_caught(Fault fault, int runs, int transactions)
{
	int			caught = 0;

	for (int run = 0; run < runs; run++)
	{
		char	   *text = NULL;
		size_t		length = 0;
		FILE	   *out = open_memstream(&text, &length);
		Report		report;

		write_random_lists(out, fault, (uint64_t) run + 1, transactions);
		fclose(out);
		report = check_text(text, length, true);
		caught += report_total(&report) > 0;
		if (fault == FAULT_NONE && report_total(&report) > 0)
			printf("# seed %d\n", run + 1);
		free(text);
	}
	return caught;
}

static void
random_histories(void)
{
	ok(count_caught(FAULT_NONE, 400, 300) == 0, "400 histories of a right store pass");
	for (Fault fault = FAULT_NONE + 1; fault < FAULT_COUNT; fault++)
	{
		int			caught = count_caught(fault, 60, 600);
		char		name[200];

		snprintf(name, sizeof(name), "a store with the fault \"%s\" is caught nearly always", fault_name(fault));
		ok(caught >= 57, name);
		printf("# caught in %d of 60 histories\n", caught);
	}
}

static void
a_long_history(void)
{
	char	   *text = NULL;
	size_t		length = 0;
	FILE	   *out = open_memstream(&text, &length);
	clock_t		started;
	Report		report;

	write_random_lists(out, FAULT_NONE, 7, 50000);
	fclose(out);
	started = clock();
	report = check_text(text, length, true);
	ok(report_total(&report) == 0, "a history of 50,000 transactions passes");
	printf("# %zu kB in %.2f s\n", length / 1024, (double) (clock() - started) / CLOCKS_PER_SEC);
	free(text);
}

int
main(void)
{
	planted_histories();
	random_histories();
	a_long_history();
	return tap_done();
}
