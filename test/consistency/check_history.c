/*
 * check_history.c
 *	  The program that checks a history:
 *
 *	 check_history lists|bank|registers [--no-real-time] [--accounts N] [--initial N] FILE [FILE ...]
 *
 * All files together are one history.  Prints what it finds, each anomaly with the transactions that show it, and a line of numbers at the
 * end.  Exit status: 0 if there is no anomaly, 1 if there is one, 2 for wrong use or files that can't be read.
 */
#include <stdlib.h>
#include <string.h>

#include "bank.h"
#include "list_append.h"
#include "registers.h"

typedef struct Options
{
	const char *workload;
	bool		real_time;
	int			account_count;
	int64_t		initial_balance;
} Options;

static void
print_numbers(const History *history, const Report *report)
{
	int			outcomes[3] = {0};

	for (int i = 0; i < history->count; i++)
		outcomes[history->transactions[i].outcome]++;
	printf("transactions: %d ok, %d failed, %d unknown; anomalies: %d; write skews under REPEATABLE READ (allowed): %d\n",
		   outcomes[OUTCOME_OK], outcomes[OUTCOME_FAILED], outcomes[OUTCOME_UNKNOWN], report_total(report), report->allowed_write_skews);
	for (int anomaly = 0; anomaly < ANOMALY_COUNT; anomaly++)
		if (report->counts[anomaly] > 0)
			printf("%s: %d\n", anomaly_name(anomaly), report->counts[anomaly]);
}

/* The number of arguments used, or -1. */
static int
parse_options(int argc, char **argv, Options *options)
{
	int			used = 2;

	if (argc < 3)
		return -1;
	options->workload = argv[1];
	for (; used < argc && strncmp(argv[used], "--", 2) == 0; used++)
	{
		if (strcmp(argv[used], "--no-real-time") == 0)
			options->real_time = false;
		else if (strcmp(argv[used], "--accounts") == 0 && used + 1 < argc)
			options->account_count = atoi(argv[++used]);
		else if (strcmp(argv[used], "--initial") == 0 && used + 1 < argc)
			options->initial_balance = atoll(argv[++used]);
		else
			return -1;
	}
	return used < argc ? used : -1;
}

int
main(int argc, char **argv)
{
	Options		options = {.real_time = true, .account_count = 8, .initial_balance = 100};
	Report		report = {.out = stdout, .details_per_anomaly = 4};
	History		history = {0};
	int			first_file = parse_options(argc, argv, &options);

	if (first_file < 0)
	{
		fprintf(stderr, "usage: check_history lists|bank|registers [--no-real-time] [--accounts N] [--initial N] FILE ...\n");
		return 2;
	}
	for (int i = first_file; i < argc; i++)
	{
		FILE	   *file = fopen(argv[i], "r");

		if (file == NULL)
		{
			perror(argv[i]);
			return 2;
		}
		history_read(&history, file, &report);
		fclose(file);
	}
	if (strcmp(options.workload, "lists") == 0)
		check_lists(&history, options.real_time, &report);
	else if (strcmp(options.workload, "bank") == 0)
		check_bank(&history, options.account_count, options.initial_balance, &report);
	else if (strcmp(options.workload, "registers") == 0)
		check_registers(&history, &report);
	else
		return 2;
	print_numbers(&history, &report);
	return report_total(&report) == 0 ? 0 : 1;
}
