/*
 * commit_token.h
 *	  Tokens: names of transactions by which quorum.outcome() finds out what became of them.
 *
 * A transaction whose client set quorum.token has that token; any other one has node.incarnation.sequence of its proposal and a random number, which
 * only an error 08007 tells: nobody else can have it fenced.  A log index that it can only come after is told with it, so that one need not look
 * before that, and knows when the log no longer tells.  Certification knows tokens by 64-bit hashes.
 */
#ifndef QUORUM_COMMIT_TOKEN_H
#define QUORUM_COMMIT_TOKEN_H

#include "postgres.h"

#define COMMIT_TOKEN_MAX_LENGTH 128

typedef struct ProposalToken
{
	uint32		origin;
	uint64		incarnation;
	uint64		sequence;
	uint64		nonce;
	uint64		after_index;	/* its entry stands behind this one, if it is in the log; 0: not known */
} ProposalToken;

/* Is it the token of a proposal?  Then no client may choose it. */
extern bool commit_token_parse(const char *text, ProposalToken *token);

/* Palloc'd. */
extern char *commit_token_text(const ProposalToken *token);

/* As certification knows it; never 0. */
extern uint64 commit_token_hash(const char *text);

#endif							/* QUORUM_COMMIT_TOKEN_H */
