/*
 * test_bank.c
 *	  The bank checker finds each anomaly in a planted history, and passes what a bank in memory does.
 */
#include <stdlib.h>
#include <string.h>

#include "bank.h"
#include "tap.h"

#define NONE ANOMALY_COUNT
#define ACCOUNTS 3
#define INITIAL 100

static const struct
{
	const char *name;
	Anomaly		expected;
	const char *history;
}			planted[] =
{
	{
		"transfers, one of each outcome", NONE,
		"t 1 1 rc ok - 10 19 ; x 0 0 11 18 1 30 7\n"
		"t 1 1 rr failed 40001 20 29 ; x 0 0 21 28 1 30 8\n"
		"t 1 1 ser unknown 08007 30 39 ; x 0 1 31 38 2 5 9\n"
		"t 2 2 rc ok - 40 49 ; b 0 0 41 48 70,130,100\n"
		"t 9 1 final ok - 90 99 ; b 0 0 90 99 70,125,105 ; l 0 0 90 99 7,9\n"
		"t 9 2 final ok - 90 99 ; b 0 0 90 99 70,125,105 ; l 0 0 90 99 9,7\n"
	},
	{
		"a snapshot between the halves of a transfer", ANOMALY_WRONG_TOTAL,
		"t 1 1 rc ok - 10 19 ; x 0 0 11 18 1 30 7\n"
		"t 2 2 rc ok - 10 19 ; b 0 0 11 18 70,100,100\n"
	},
	{
		"an account that is missing", ANOMALY_WRONG_TOTAL,
		"t 2 2 rc ok - 10 19 ; b 0 0 11 18 200,100\n"
	},
	{
		"an overdrawn account", ANOMALY_NEGATIVE_BALANCE,
		"t 1 1 rc ok - 10 19 ; x 0 0 11 18 1 130 7\n"
		"t 2 2 rc ok - 20 29 ; b 0 0 21 28 -30,230,100\n"
	},
	{
		"an acknowledged transfer that is lost", ANOMALY_LOST_TRANSFER,
		"t 1 1 rc ok - 10 19 ; x 0 0 11 18 1 30 7\n"
		"t 9 1 final ok - 90 99 ; b 0 0 90 99 100,100,100 ; l 0 0 90 99 -\n"
	},
	{
		"one that an earlier read does not show", ANOMALY_STALE_READ,
		"t 1 1 rc ok - 10 19 ; x 0 0 11 18 1 30 7\n"
		"t 2 2 rr ok - 20 29 ; b 0 0 21 28 100,100,100 ; l 0 0 21 28 -\n"
	},
	{
		"but one may miss what is acknowledged while it runs, or if it is a local one", NONE,
		"t 1 1 rc ok - 10 25 ; x 0 0 11 18 1 30 7\n"
		"t 2 2 rr ok - 20 29 ; b 0 0 21 28 100,100,100 ; l 0 0 21 28 -\n"
		"t 2 2 rr+local ok - 40 49 ; b 0 0 41 48 100,100,100 ; l 0 0 41 48 -\n"
	},
	{
		"a failed one that stayed", ANOMALY_FAILED_TRANSFER_STAYED,
		"t 1 1 rc failed 25006 10 19 ; x 0 0 11 18 1 30 7\n"
		"t 9 1 final ok - 90 99 ; b 0 0 90 99 70,130,100 ; l 0 0 90 99 7\n"
	},
	{
		"one that nobody made", ANOMALY_UNKNOWN_TRANSFER,
		"t 9 1 final ok - 90 99 ; b 0 0 90 99 100,100,100 ; l 0 0 90 99 7\n"
	},
	{
		"a lost update that leaves the total as it is", ANOMALY_WRONG_BALANCE,
		"t 1 1 rr ok - 10 19 ; x 0 0 11 18 1 30 7\n"
		"t 2 2 rr ok - 10 19 ; x 0 0 11 18 1 30 8\n"
		"t 9 1 final ok - 90 99 ; b 0 0 90 99 70,130,100 ; l 0 0 90 99 7,8\n"
	},
	{
		"final states that differ", ANOMALY_NODES_DIFFER,
		"t 1 1 rc unknown 08007 10 19 ; x 0 0 11 18 1 30 7\n"
		"t 9 1 final ok - 90 99 ; b 0 0 90 99 70,130,100 ; l 0 0 90 99 7\n"
		"t 9 2 final ok - 90 99 ; b 0 0 90 99 100,100,100 ; l 0 0 90 99 -\n"
	},
	{
		"two transfers of one number", ANOMALY_BAD_HISTORY,
		"t 1 1 rc failed - 10 19 ; x 0 0 11 18 1 30 7\n"
		"t 1 1 rc failed - 20 29 ; x 0 0 21 28 1 30 7\n"
	},
};

static Report
check_text(const char *text)
{
	Report		report = {.out = getenv("SHOW") != NULL ? stderr : NULL, .details_per_anomaly = 3};
	History		history = {0};
	FILE	   *file = fmemopen((void *) text, strlen(text), "r");

	history_read(&history, file, &report);
	fclose(file);
	check_bank(&history, ACCOUNTS, INITIAL, &report);
	return report;
}

static void
planted_histories(void)
{
	for (size_t i = 0; i < sizeof(planted) / sizeof(planted[0]); i++)
	{
		Report		report = check_text(planted[i].history);
		char		name[200];

		snprintf(name, sizeof(name), "%s: %s", planted[i].expected == NONE ? "passes" : anomaly_name(planted[i].expected), planted[i].name);
		ok(planted[i].expected == NONE ? report_total(&report) == 0 :
		   report.counts[planted[i].expected] > 0 && report_total(&report) == report.counts[planted[i].expected], name);
		for (int anomaly = 0; anomaly < ANOMALY_COUNT; anomaly++)
			if (report.counts[anomaly] > 0 && anomaly != (int) planted[i].expected)
				printf("# found %s\n", anomaly_name(anomaly));
	}
}

/* ---- a bank in memory ---- */

typedef enum BankFault
{
	BANK_RIGHT,
	BANK_LOSES_UPDATES,			/* now and then a transfer starts from balances that are one transfer old */
	BANK_LOSES_TRANSFERS,
	BANK_KEEPS_FAILED,
	BANK_SHOWS_HALVES,
	BANK_FAULTS
} BankFault;

typedef struct Bank
{
	int64_t		balances[ACCOUNTS];
	int64_t		previous[ACCOUNTS];
	char		ledger[100000];
} Bank;

static void
write_balances(FILE *out, const int64_t *balances, int64_t now_us)
{
	fprintf(out, " ; b 0 0 %lld %lld %lld,%lld,%lld", (long long) now_us, (long long) now_us + 5, (long long) balances[0],
			(long long) balances[1], (long long) balances[2]);
}

static void
write_transfer(FILE *out, Bank *bank, BankFault fault, int number, int64_t now_us)
{
	int			from = rand() % ACCOUNTS;
	int			to = (from + 1 + rand() % 2) % ACCOUNTS;
	int			amount = 1 + rand() % 40;
	int			lot = rand() % 20;
	bool		does_happen = lot > 2;
	const char *outcome = lot < 2 ? "failed" : lot < 5 ? "unknown" : "ok";
	int64_t		halfway[ACCOUNTS];

	if (bank->balances[from] < amount)
		return;
	if (fault == BANK_LOSES_TRANSFERS && rand() % 20 == 0)
		does_happen = false;
	if (fault == BANK_KEEPS_FAILED && lot == 0)
		does_happen = true;
	memcpy(halfway, bank->balances, sizeof(halfway));
	halfway[from] -= amount;
	if (fault == BANK_SHOWS_HALVES && rand() % 20 == 0)
	{
		fprintf(out, "t 2 2 rr ok - %lld %lld", (long long) now_us, (long long) now_us + 5);
		write_balances(out, halfway, now_us);
		fputc('\n', out);
	}
	fprintf(out, "t 1 1 rc %s - %lld %lld ; x 0 %d %lld %lld %d %d %d\n", outcome, (long long) now_us, (long long) now_us + 8, from,
			(long long) now_us, (long long) now_us + 5, to, amount, number);
	if (!does_happen)
		return;
	if (fault == BANK_LOSES_UPDATES && rand() % 10 == 0)
		memcpy(bank->balances, bank->previous, sizeof(bank->balances));
	memcpy(bank->previous, bank->balances, sizeof(bank->previous));
	bank->balances[from] -= amount;
	bank->balances[to] += amount;
	snprintf(bank->ledger + strlen(bank->ledger), 16, "%s%d", bank->ledger[0] != '\0' ? "," : "", number);
}

static bool
random_bank_is_caught(BankFault fault)
{
	Bank	   *bank = allocate(sizeof(Bank));
	char	   *text = NULL;
	size_t		length = 0;
	FILE	   *out = open_memstream(&text, &length);
	Report		report;

	for (int account = 0; account < ACCOUNTS; account++)
		bank->balances[account] = bank->previous[account] = INITIAL;
	for (int i = 1; i <= 500; i++)
	{
		write_transfer(out, bank, fault, i, i * 10);
		if (rand() % 4 != 0)
			continue;
		fprintf(out, "t 3 3 ser ok - %d %d", i * 10, i * 10 + 9);
		write_balances(out, bank->balances, i * 10);
		fputc('\n', out);
	}
	fprintf(out, "t 9 1 final ok - 10000 10009");
	write_balances(out, bank->balances, 10000);
	fprintf(out, " ; l 0 0 10000 10005 %s\n", bank->ledger);
	fclose(out);
	report = check_text(text);
	free(text);
	free(bank);
	return report_total(&report) > 0;
}

int
main(void)
{
	static const char *const names[BANK_FAULTS] = {"right", "loses updates", "loses transfers", "keeps failed ones", "shows halves"};

	srand(20240301);
	planted_histories();
	for (BankFault fault = BANK_RIGHT; fault < BANK_FAULTS; fault++)
	{
		int			caught = 0;
		char		name[100];

		for (int run = 0; run < 100; run++)
			caught += random_bank_is_caught(fault);
		snprintf(name, sizeof(name), fault == BANK_RIGHT ? "100 histories of a bank that is %s pass" : "a bank that %s is caught nearly always",
				 names[fault]);
		ok(fault == BANK_RIGHT ? caught == 0 : caught >= 95, name);
		printf("# caught in %d of 100 histories\n", caught);
	}
	return tap_done();
}
