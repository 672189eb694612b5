/*
 * token_promise.c
 *	  Before a transaction with a token of its client's is proposed: may one promise that the token takes effect only once?  Process: client backend.
 *
 * The log keeps the promise (shared/certifier.h, shared/token_memory.h) for as long as it remembers.  Must never let a transaction be proposed that may be a
 * retry of one that is forgotten, as far as its client says when the first attempt was, or that would make the log forget others too early.  Nor invite
 * its client to try once more with a token of which the next attempt would know less than this one.  Nor may a token or a fence be put without a mark of the
 * epochs of tokens (shared/token_epochs.h) that have begun: others' guards rely on it.
 *
 * Locks: none but those of the transaction.
 */
#include "postgres.h"

#include "access/xact.h"

#include "capture/capture.h"
#include "capture/certified_keys.h"
#include "config.h"
#include "shared/proposal_queue.h"
#include "shared/token_epochs.h"
#include "shared/token_memory.h"
#include "shared/writeset.h"

/* Of the transaction that is being committed; else as below. */
static bool is_stated = false;	/* by its client, behind which index the first attempt stands */
static uint64 first_after_index = PG_UINT64_MAX;	/* that, or what follows from quorum.token_retention_age; PG_UINT64_MAX: nothing is promised */

/* The epoch that the transaction must not outlive, and an index at which it had not begun. */
typedef struct Guard
{
	bool		is_needed;		/* its base may be lifted: see token_promise_highest_base */
	uint64		epoch;			/* 0: it is too late for one */
	uint64		base;
	uint64		under_way_ms;
} Guard;

static Guard guard = {0};

/* The attempt counts as made when its transaction began.  The index is read first: what is applied had been delivered, and its tokens counted. */
static uint64
retained_from(void)
{
	guard.is_needed = true;
	guard.base = turn_applied_index();
	guard.under_way_ms = token_memory_under_way_ms(GetCurrentTransactionStartTimestamp());
	return token_memory_retained_from(guard.under_way_ms, &guard.epoch);
}

/*
 * An index that is not chosen here yet need not be wrong, if another node told it.  But nothing follows from it: what this node has applied, and so the
 * transaction's base, is below it anyway.
 */
static void
find_first_attempt(void)
{
	uint64		stated = config_token_after_index();

	guard.is_needed = false;
	is_stated = stated != 0 && stated <= turn_chosen_index();
	if (is_stated)
		first_after_index = stated;
	else
		first_after_index = quorum_token_retention_age_s != 0 ? retained_from() : PG_UINT64_MAX;
}

static void pg_attribute_noreturn()
report_forgotten(uint64 remembered_after)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("whether a transaction with the token \"%s\" has been committed is no longer known", quorum_token),
			 errdetail("Tokens are remembered from log index " UINT64_FORMAT " on; the first attempt may stand before that, behind index " UINT64_FORMAT
					   ". This one was not committed.", remembered_after + 1, first_after_index),
			 errhint("Look into the tables for what the transaction was to change. If it has to be done, use another token.")));
}

/*
 * A base that is low enough for the token must not be too low for the keys.  If the client says how low, it is told; else the base is lifted, and the
 * transaction guarded: see token_promise_highest_base.
 */
static void
check_first_attempt(void)
{
	uint64		remembered_after = token_memory_floor();

	if (is_stated)
		remembered_after = Max(remembered_after, token_memory_key_quarter());
	if (first_after_index < remembered_after)
		report_forgotten(remembered_after);
	if (guard.is_needed && guard.epoch == 0)
		token_memory_report_no_guard(guard.under_way_ms);
}

static void
add_epochs(void)
{
	uint64		first,
				last;

	if (token_memory_unmarked(&first, &last))
		for (uint64 epoch = first; epoch <= last; epoch++)
			certified_keys_add_epoch(token_epoch_key(epoch), CERTIFIER_TABLE_ROW_EXCLUSIVE, turn_applied_index());
	if (guard.is_needed)
		certified_keys_add_epoch(token_epoch_key(guard.epoch), CERTIFIER_TABLE_READ, guard.base);
}

/*
 * From the first fence on the log rejects what may be an attempt that was overtaken by another one with its token, and comes when that is forgotten.  It
 * fences nothing, and is put once in the life of a cluster, before the first token can be forgotten.
 */
void
token_promise_check(void)
{
	if (quorum_token[0] == '\0')
		return;
	token_memory_check_room(false);
	find_first_attempt();
	check_first_attempt();
	if (token_memory_needs_fence())
		gate_put_fence_of_nothing();
	add_epochs();
}

uint32
token_promise_put_marks(StringInfo payload)
{
	uint64		first,
				last;

	if (!token_memory_unmarked(&first, &last))
		return 0;
	for (uint64 epoch = first; epoch <= last; epoch++)
		writeset_put_certified_key(payload, token_epoch_key(epoch), CERTIFIER_TABLE_ROW_EXCLUSIVE, 0);
	return (uint32) (last - first + 1);
}

/* Much that is written within quorum.token_retention_age must not keep all transactions with a token from being committed: those have a guard. */
uint64
token_promise_highest_base(void)
{
	if (quorum_token[0] == '\0')
		return PG_UINT64_MAX;
	return is_stated ? first_after_index : Max(first_after_index, token_memory_key_middle());
}

uint64
token_promise_after_index(void)
{
	return first_after_index;
}

void
token_promise_check_rejected(void)
{
	if (quorum_token[0] != '\0' && first_after_index < token_memory_floor())
		report_forgotten(token_memory_floor());
}

void
token_promise_forget(void)
{
	is_stated = false;
	first_after_index = PG_UINT64_MAX;
	guard.is_needed = false;
}
