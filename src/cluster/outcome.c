/*
 * outcome.c
 *	  quorum.outcome(): what became of a transaction, by its token.
 *
 * Runs in a client backend of any node.  Must never call a transaction rejected that could still be committed: if the log does not tell yet, an entry
 * that fences the token makes sure that it tells from then on.  Nor one that may have been committed before what is remembered of tokens: of a token that
 * a client chose that is only known if nothing is forgotten, or if the caller says behind which index of the log its first attempt can stand.
 *
 * Locks: none.
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "capture/capture.h"
#include "cluster/node_check.h"
#include "shared/chosen_log.h"
#include "shared/commit_token.h"
#include "shared/proposal_queue.h"
#include "shared/shmem.h"
#include "shared/token_memory.h"
#include "shared/writeset.h"

PG_FUNCTION_INFO_V1(quorum_outcome);

#define BLOCK_ENTRIES 64		/* read forwards, as the chosen log is read ahead; the blocks backwards */

typedef struct Outcome
{
	bool		is_known;
	bool		is_committed;
	bool		is_forgotten;	/* it may have stood in what this node no longer holds, or what certification no longer remembers */
	uint64		log_index;		/* 0: none */
} Outcome;

static void
report_no_token(const char *token)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("\"%s\" is no token of a transaction", token),
			 errdetail("A token has 1 to %d bytes.", COMMIT_TOKEN_MAX_LENGTH),
			 errhint("Errors with SQLSTATE 08007 tell it; clients choose their own with SET LOCAL quorum.token.")));
}

/*
 * An older start of the origin: the token's one begins later in the log.  Proposals of an older start that come after those of a newer one, because
 * they were under way for long, are duplicates to the core: they say nothing.
 */
static bool
is_older(const LogItem *item, const ProposalToken *token)
{
	return item->origin == token->origin && item->incarnation < token->incarnation && item->verdict != LOG_VERDICT_DUPLICATE;
}

/* One whose verdict is "duplicate" has its fate under another index. */
static bool
is_fate(const LogItem *item, const ProposalToken *token)
{
	return item->origin == token->origin && item->incarnation == token->incarnation && item->sequence == token->sequence &&
		(item->verdict == LOG_VERDICT_APPLY || item->verdict == LOG_VERDICT_REJECTED);
}

/* Its random part is in the entry: whoever does not know that knows no token. */
static void
check_nonce(const LogItem *item, const ProposalToken *token)
{
	char	   *payload = chosen_log_read_payload(item);
	WriteSetHeader header;

	if (!writeset_peek_header(payload, item->length, &header) || (header.flags & WRITESET_NONCE) == 0 ||
		header.token != token->nonce)
		report_no_token(commit_token_text(token));
	pfree(payload);
}

/* One block, forwards.  False: nothing before it needs to be looked at. */
static bool
look_into_block(const ProposalToken *token, uint64 first, uint64 end, Outcome *outcome)
{
	bool		go_on = true;

	for (uint64 index = first; index < end; index++)
	{
		LogItem		item;

		if (!chosen_log_try_read_item(index, &item))
		{
			outcome->is_forgotten = true;
			continue;
		}
		if (is_older(&item, token))
		{
			go_on = false;
			outcome->is_forgotten = false;
		}
		if (!is_fate(&item, token))
			continue;
		check_nonce(&item, token);
		outcome->is_known = true;
		outcome->is_committed = item.verdict == LOG_VERDICT_APPLY;
		outcome->log_index = index;
	}
	return go_on && !outcome->is_known && !outcome->is_forgotten;
}

/* In what this node knows to be chosen, backwards to where the token's transaction can stand. */
static Outcome
look_into_log(const ProposalToken *token)
{
	uint64		begin = token->after_index + 1;
	uint64		end = turn_chosen_index() + 1;
	Outcome		outcome = {0};
	bool		go_on = true;

	while (end > begin && go_on)
	{
		uint64		first = end - begin > BLOCK_ENTRIES ? end - BLOCK_ENTRIES : begin;

		CHECK_FOR_INTERRUPTS();
		go_on = look_into_block(token, first, end, &outcome);
		end = first;
	}
	if (!outcome.is_known && outcome.is_forgotten)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the outcome of that transaction is no longer known to this node"),
				 errdetail("Its log begins at index " UINT64_FORMAT ", the transaction may have stood before it.", chosen_log_first_held()),
				 errhint("Ask a node that holds more of the log, or look into the tables for what the transaction was to change.")));
	outcome.is_forgotten = false;
	return outcome;
}

/* Everything before the fence is known here once it is. */
static Outcome
fence_proposal(const ProposalToken *token, uint64 hash)
{
	CertifierVerdict verdict;
	Outcome		outcome;

	(void) gate_propose_fence(hash, &verdict);
	outcome = look_into_log(token);
	outcome.is_known = true;
	return outcome;
}

/*
 * Certification remembers what a client's token was committed with; a transaction that was rejected leaves no trace of it.  That the token was fenced before
 * does not tell more: it may have been committed and forgotten before that.  The floor is at least what it was at the fence's verdict.
 */
static Outcome
fence_client_token(uint64 hash, uint64 after_index)
{
	CertifierVerdict verdict;
	Outcome		outcome = {.is_known = true};

	(void) gate_propose_fence(hash, &verdict);
	outcome.is_committed = verdict.reason == CERTIFIER_TOKEN_COMMITTED;
	if (outcome.is_committed)
		outcome.log_index = verdict.conflict_index;
	else
		outcome.is_forgotten = after_index < token_memory_floor();
	return outcome;
}

static void
check_token(const char *token)
{
	if (token[0] == '\0' || strlen(token) > COMMIT_TOKEN_MAX_LENGTH)
		report_no_token(token);
}

static const char *
outcome_name(const Outcome *outcome)
{
	if (outcome->is_committed)
		return "committed";
	return outcome->is_forgotten ? "unknown" : "rejected";
}

/* Of a client's own token the caller may say behind which index its first attempt can stand; NULL: nothing is said. */
static uint64
get_after_index(FunctionCallInfo fcinfo)
{
	if (PG_NARGS() < 2 || PG_ARGISNULL(1))
		return 0;
	if (PG_GETARG_INT64(1) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a log index is not negative")));
	return (uint64) PG_GETARG_INT64(1);
}

Datum
quorum_outcome(PG_FUNCTION_ARGS)
{
	char	   *token_text;
	NodeIdentity identity;
	ProposalToken token;
	Outcome		outcome;
	TupleDesc	row_type;
	Datum		values[2];
	bool		nulls[2] = {false, false};

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	token_text = text_to_cstring(PG_GETARG_TEXT_PP(0));
	check_token(token_text);
	require_membership(&identity);
	if (!commit_token_parse(token_text, &token))
		outcome = fence_client_token(commit_token_hash(token_text), get_after_index(fcinfo));
	else
	{
		outcome = look_into_log(&token);
		if (!outcome.is_known)
			outcome = fence_proposal(&token, commit_token_hash(token_text));
	}
	if (get_call_result_type(fcinfo, NULL, &row_type) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = CStringGetTextDatum(outcome_name(&outcome));
	values[1] = Int64GetDatum((int64) outcome.log_index);
	nulls[1] = outcome.log_index == 0;
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(row_type), values, nulls)));
}
