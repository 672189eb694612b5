/*
 * token_epochs.c
 *	  Epochs of tokens: which one, which to guard an attempt with, which to mark.  Process: consensus worker, client backends (any program: this file is pure C).
 *
 * Must never name an epoch as a guard whose mark may come too late.
 */
#include "shared/token_epochs.h"

#define KEY_OF_EPOCHS UINT64_C(0x70CE0E9070CE0E90)	/* no table's: see row_keys_table_hash; the certifier mixes it */

static uint64_t
puts_per_epoch(uint32_t capacity)
{
	return capacity > TOKEN_EPOCHS ? capacity / TOKEN_EPOCHS : 1;
}

uint64_t
token_epoch_of(uint32_t capacity, uint64_t put_count)
{
	return put_count / puts_per_epoch(capacity);
}

/* Put number n is forgotten with number n + capacity. */
uint64_t
token_epoch_last(uint32_t capacity, uint32_t spare, uint64_t forgettable)
{
	return (forgettable + capacity - spare) / puts_per_epoch(capacity);
}

uint64_t
token_epoch_first_to_mark(uint64_t epoch, uint64_t marked)
{
	uint64_t	first = epoch >= TOKEN_EPOCHS ? epoch - TOKEN_EPOCHS + 1 : 1;

	return marked >= first ? marked + 1 : first;
}

uint64_t
token_epoch_key(uint64_t epoch)
{
	return KEY_OF_EPOCHS ^ epoch;
}
