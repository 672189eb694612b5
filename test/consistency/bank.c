/*
 * bank.c
 *	  The checker of bank histories: money moves between accounts 0 .. n-1, each transfer is entered in a ledger by the same
 *	  transaction, and none may overdraw an account.
 *
 * Each read of all balances in one snapshot has the right total and no negative balance.  Where a snapshot holds the ledger too, the
 * balances are what its transfers make them.  The final ledger has every acknowledged transfer and no failed one.
 */
#include <stdlib.h>
#include <string.h>

#include "bank.h"

typedef struct Transfer
{
	const Operation *operation;
	const Transaction *transaction;
	bool		is_in_ledger;	/* of the final state that is looked at */
} Transfer;

typedef struct Bank
{
	const History *history;
	Report	   *report;
	int			account_count;
	int64_t		initial_balance;
	Transfer   *transfers;
	int			transfer_count;
	int			transfers_allocated;
	Map			transfer_of_number;
} Bank;

static void
collect(Bank *bank)
{
	for (int i = 0; i < bank->history->count; i++)
	{
		const Transaction *transaction = &bank->history->transactions[i];

		for (int j = 0; j < transaction->operation_count; j++)
		{
			const Operation *operation = &transaction->operations[j];

			if (operation->kind != 'x')
				continue;
			if (map_get(&bank->transfer_of_number, operation->arguments[2]) >= 0)
				report_anomaly(bank->report, ANOMALY_BAD_HISTORY, "two transfers %lld", (long long) operation->arguments[2]);
			bank->transfers = grow(bank->transfers, bank->transfer_count + 1, &bank->transfers_allocated, sizeof(Transfer));
			bank->transfers[bank->transfer_count] = (Transfer) {.operation = operation, .transaction = transaction};
			map_put(&bank->transfer_of_number, operation->arguments[2], bank->transfer_count++);
		}
	}
}

static void
check_balances(Bank *bank, const Transaction *transaction, const Operation *balances)
{
	int64_t		total = 0;

	for (int account = 0; account < balances->value_count; account++)
	{
		total += balances->values[account];
		if (balances->values[account] < 0 &&
			report_anomaly(bank->report, ANOMALY_NEGATIVE_BALANCE, "account %d has %lld", account, (long long) balances->values[account]))
			report_transaction(bank->report, "", transaction);
	}
	if ((balances->value_count != bank->account_count || total != bank->account_count * bank->initial_balance) &&
		report_anomaly(bank->report, ANOMALY_WRONG_TOTAL, "%lld in %d accounts, not %lld in %d", (long long) total, balances->value_count,
					   (long long) (bank->account_count * bank->initial_balance), bank->account_count))
		report_transaction(bank->report, "", transaction);
}

static bool
is_account(const Bank *bank, int64_t account)
{
	return account >= 0 && account < bank->account_count;
}

/* One transfer of a ledger; its effect on the balances. */
static void
post(Bank *bank, const Transaction *transaction, int64_t number, int64_t *balances)
{
	int			found = map_get(&bank->transfer_of_number, number);
	Transfer   *transfer = found < 0 ? NULL : &bank->transfers[found];

	if (transfer == NULL || !is_account(bank, transfer->operation->key) || !is_account(bank, transfer->operation->arguments[0]))
	{
		if (report_anomaly(bank->report, ANOMALY_UNKNOWN_TRANSFER, "number %lld", (long long) number))
			report_transaction(bank->report, "", transaction);
		return;
	}
	if (transfer->is_in_ledger)
		report_anomaly(bank->report, ANOMALY_UNKNOWN_TRANSFER, "number %lld is in the ledger twice", (long long) number);
	transfer->is_in_ledger = true;
	balances[transfer->operation->key] -= transfer->operation->arguments[1];
	balances[transfer->operation->arguments[0]] += transfer->operation->arguments[1];
	if (transfer->transaction->outcome == OUTCOME_FAILED &&
		report_anomaly(bank->report, ANOMALY_FAILED_TRANSFER_STAYED, "number %lld", (long long) number))
	{
		report_transaction(bank->report, "failed  ", transfer->transaction);
		report_transaction(bank->report, "read by ", transaction);
	}
}

static void
check_ledger(Bank *bank, const Transaction *transaction, const Operation *balances, const Operation *ledger)
{
	int64_t    *expected = allocate((size_t) bank->account_count * sizeof(int64_t));

	for (int account = 0; account < bank->account_count; account++)
		expected[account] = bank->initial_balance;
	for (int i = 0; i < bank->transfer_count; i++)
		bank->transfers[i].is_in_ledger = false;
	for (int i = 0; i < ledger->value_count; i++)
		post(bank, transaction, ledger->values[i], expected);
	for (int account = 0; account < bank->account_count && account < balances->value_count; account++)
		if (balances->values[account] != expected[account] &&
			report_anomaly(bank->report, ANOMALY_WRONG_BALANCE, "account %d has %lld, its transfers make it %lld", account,
						   (long long) balances->values[account], (long long) expected[account]))
			report_transaction(bank->report, "", transaction);

	/* Everything that was acknowledged before this read began must be there. */
	for (int i = 0; i < bank->transfer_count; i++)
	{
		const Transfer *transfer = &bank->transfers[i];

		if (transfer->is_in_ledger || transfer->transaction->outcome != OUTCOME_OK || transaction->is_local ||
			transfer->transaction->end_us >= transaction->start_us)
			continue;
		if (report_anomaly(bank->report, transaction->is_final ? ANOMALY_LOST_TRANSFER : ANOMALY_STALE_READ, "transfer number %lld",
						   (long long) transfer->operation->arguments[2]))
		{
			report_transaction(bank->report, "acknowledged ", transfer->transaction);
			report_transaction(bank->report, "not seen by  ", transaction);
		}
	}
	free(expected);
}

static bool
same_values(const Operation *left, const Operation *right)
{
	if (left->value_count != right->value_count)
		return false;
	return left->value_count <= 0 || memcmp(left->values, right->values, (size_t) left->value_count * sizeof(int64_t)) == 0;
}

void
check_bank(const History *history, int account_count, int64_t initial_balance, Report *report)
{
	Bank		bank = {.history = history, .report = report, .account_count = account_count, .initial_balance = initial_balance};
	const Operation *final = NULL;

	collect(&bank);
	for (int i = 0; i < history->count; i++)
	{
		const Transaction *transaction = &history->transactions[i];

		for (int j = 0; j < transaction->operation_count; j++)
		{
			const Operation *operation = &transaction->operations[j];
			const Operation *next = j + 1 < transaction->operation_count ? operation + 1 : NULL;

			if (operation->kind != 'b' || operation->value_count == NO_ANSWER)
				continue;
			check_balances(&bank, transaction, operation);
			if (next != NULL && next->kind == 'l' && next->statement == operation->statement && next->value_count != NO_ANSWER)
				check_ledger(&bank, transaction, operation, next);
			if (!transaction->is_final)
				continue;
			if (final != NULL && !same_values(final, operation) &&
				report_anomaly(report, ANOMALY_NODES_DIFFER, "final balances"))
				report_transaction(report, "", transaction);
			final = operation;
		}
	}
}
