/*
 * commit_token.c
 *	  Tokens: their text, and the hashes by which certification knows them.  Process: client backends.
 */
#include "postgres.h"

#include <ctype.h>
#include <errno.h>

#include "common/hashfn.h"

#include "shared/commit_token.h"

#define NONCE_DIGITS 16
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

static bool
parse_nonce(const char **text, uint64 *nonce)
{
	char		digits[NONCE_DIGITS + 1];

	if (strspn(*text, "0123456789abcdef") != NONCE_DIGITS)
		return false;
	strlcpy(digits, *text, sizeof(digits));
	*nonce = strtou64(digits, NULL, 16);
	*text += NONCE_DIGITS;
	return true;
}

/* Where it may stand in the log; a token may come without. */
static bool
parse_after_index(const char *text, uint64 *after_index)
{
	*after_index = 0;
	if (*text == '\0')
		return true;
	return *text++ == '.' && parse_number(&text, '\0', after_index);
}

bool
commit_token_parse(const char *text, ProposalToken *token)
{
	uint64		origin;

	if (!parse_number(&text, '.', &origin) || origin > PG_UINT32_MAX ||
		!parse_number(&text, '.', &token->incarnation) || !parse_number(&text, '.', &token->sequence) ||
		!parse_nonce(&text, &token->nonce) || !parse_after_index(text, &token->after_index))
		return false;
	token->origin = (uint32) origin;
	return true;
}

char *
commit_token_text(const ProposalToken *token)
{
	char	   *text = psprintf("%u." UINT64_FORMAT "." UINT64_FORMAT ".%016" INT64_MODIFIER "x", token->origin, token->incarnation,
								token->sequence, token->nonce);

	return token->after_index == 0 ? text : psprintf("%s." UINT64_FORMAT, text, token->after_index);
}

uint64
commit_token_hash(const char *text)
{
	ProposalToken token;
	uint64		hash;

	if (commit_token_parse(text, &token))
		return token.nonce;
	hash = hash_bytes_extended((const unsigned char *) text, strlen(text), TOKEN_SEED);
	return hash != 0 ? hash : 1;
}
