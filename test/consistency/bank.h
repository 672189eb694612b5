/*
 * bank.h
 *	  The checker of bank histories.
 */
#ifndef TEST_CONSISTENCY_BANK_H
#define TEST_CONSISTENCY_BANK_H

#include "history.h"

extern void check_bank(const History *history, int account_count, int64_t initial_balance, Report *report);

#endif							/* TEST_CONSISTENCY_BANK_H */
