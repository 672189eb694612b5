/*
 * token_promise.c
 *	  Before a transaction with a token of its client's is proposed: may one promise that the token takes effect only once?  Process: client backend.
 *
 * The log keeps the promise (shared/certifier.h, shared/token_memory.h) for as long as it remembers.  Must never let a transaction be proposed that may be a
 * retry of one that is forgotten, as far as its client says when the first attempt was, or that would make the log forget others too early.
 *
 * Locks: none but those of the transaction.
 */
#include "postgres.h"

#include "capture/capture.h"
#include "config.h"
#include "shared/token_memory.h"

static void
check_first_attempt(void)
{
	uint64		after_index = config_token_after_index();
	uint64		floor = token_memory_floor();

	if (after_index == 0 || after_index >= floor)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("whether a transaction with the token \"%s\" has been committed is no longer known", quorum_token),
			 errdetail("Tokens are remembered from log index " UINT64_FORMAT " on; the first attempt may stand before that, behind index " UINT64_FORMAT
					   ". This one was not committed.", floor + 1, after_index),
			 errhint("Look into the tables for what the transaction was to change. If it has to be done, use another token.")));
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
	check_first_attempt();
	token_memory_check_room(false);
	if (token_memory_needs_fence())
		gate_put_fence_of_nothing();
}
