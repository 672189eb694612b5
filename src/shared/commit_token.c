/*
 * commit_token.c
 *	  Tokens: their text, and the hashes by which certification knows them.  Process: client backends.
 */
#include "postgres.h"

#include <ctype.h>
#include <errno.h>

#include "common/hashfn.h"

#include "shared/certifier.h"
#include "shared/commit_token.h"

#define TOKEN_SEED UINT64CONST(0x70CE70CE00000005)

/* Digits without a sign, a leading zero or blanks, so that a number has one text. */
static bool
parse_number(const char **text, char end, uint64 *number)
{
	char	   *rest;

	if (!isdigit((unsigned char) **text) || **text == '0')
		return false;
	errno = 0;
	*number = strtou64(*text, &rest, 10);
	if (errno != 0 || *rest != end)
		return false;
	*text = rest + (end != '\0');
	return true;
}

bool
commit_token_parse(const char *text, ProposalToken *token)
{
	uint64		origin;

	if (!parse_number(&text, '.', &origin) || origin > PG_UINT32_MAX ||
		!parse_number(&text, '.', &token->incarnation) || !parse_number(&text, '\0', &token->sequence))
		return false;
	token->origin = (uint32) origin;
	return true;
}

char *
commit_token_text(const ProposalToken *token)
{
	return psprintf("%u." UINT64_FORMAT "." UINT64_FORMAT, token->origin, token->incarnation, token->sequence);
}

uint64
commit_token_hash(const char *text)
{
	ProposalToken token;
	uint64		hash;

	if (commit_token_parse(text, &token))
		return certifier_proposal_token(token.origin, token.incarnation, token.sequence);
	hash = hash_bytes_extended((const unsigned char *) text, strlen(text), TOKEN_SEED);
	return hash != 0 ? hash : 1;
}
