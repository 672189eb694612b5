/*
 * test_certifier_tokens.c
 *	  Fences keep their word, also when they are forgotten; and so do the tokens of clients, behind a fence.
 */
#include <stdlib.h>
#include <string.h>

#include "shared/certifier.h"
#include "tap.h"

#define CAPACITY 8

static Certifier certifier;
static uint64_t last_index;

static void
begin(void)
{
	certifier_init(&certifier, calloc(1, certifier_memory_size(CAPACITY, CAPACITY)), CAPACITY, CAPACITY);
	last_index = 0;
}

static void
end(void)
{
	free(certifier.keys.ring);
}

static CertifierReason
verdict_on(uint64_t proposal, uint64_t base, uint64_t token, bool is_fence)
{
	CertifierEntry entry = {.index = ++last_index, .proposal = proposal, .base = base, .token = token, .is_fence = is_fence};
	CertifierVerdict verdict;

	certify(&certifier, &entry, &verdict);
	return verdict.reason;
}

static void
a_fenced_proposal_takes_no_effect(void)
{
	begin();
	verdict_on(1, 0, 77, true);
	ok(verdict_on(77, 0, 0, false) == CERTIFIER_FENCED, "a fenced proposal takes no effect");
	ok(verdict_on(78, 0, 0, false) == CERTIFIER_APPLY, "another one of the same age does");
	end();
}

static void
nor_when_the_fence_is_forgotten(void)
{
	begin();
	verdict_on(1, 0, 77, true);
	for (uint64_t token = 1; token <= CAPACITY; token++)
		verdict_on(1000 + token, last_index, 5000 + token, false);
	ok(verdict_on(77, 0, 0, false) == CERTIFIER_TOO_OLD, "nor when the fence is forgotten: what is older than it is rejected");
	ok(verdict_on(78, last_index - 1, 0, false) == CERTIFIER_APPLY, "what is newer takes effect");
	ok(verdict_on(2, 0, 78, true) == CERTIFIER_APPLY, "and so do fences");
	end();
}

static void
fill(void)
{
	for (uint64_t token = 1; token <= CAPACITY; token++)
		verdict_on(0, last_index, 5000 + token, false);
}

static void
an_overtaken_attempt_takes_no_effect(void)
{
	uint64_t	base_of_first;

	begin();
	verdict_on(0, 0, 1, true);
	base_of_first = last_index;
	ok(verdict_on(0, last_index, 42, false) == CERTIFIER_APPLY, "the second attempt comes first, and takes effect");
	ok(verdict_on(0, base_of_first, 42, false) == CERTIFIER_TOKEN_COMMITTED, "the first one, overtaken, does not");
	fill();
	ok(verdict_on(0, base_of_first, 42, false) == CERTIFIER_TOO_OLD, "nor when the token is forgotten");
	end();
}

/* The base says how far back the first attempt may stand (shared/token_memory.h). */
static void
a_retry_is_rejected_if_its_first_attempt_may_be_forgotten(void)
{
	uint64_t	committed;

	begin();
	verdict_on(0, 0, 1, true);
	verdict_on(0, last_index, 42, false);
	committed = last_index;
	fill();
	ok(verdict_on(0, committed - 1, 42, false) == CERTIFIER_TOO_OLD, "a retry that says how far back it goes is rejected once that is forgotten");
	ok(verdict_on(0, certifier.token_floor, 43, false) == CERTIFIER_APPLY, "and takes effect if it goes back no further than tokens are remembered");
	end();
}

int
main(void)
{
	a_fenced_proposal_takes_no_effect();
	nor_when_the_fence_is_forgotten();
	an_overtaken_attempt_takes_no_effect();
	a_retry_is_rejected_if_its_first_attempt_may_be_forgotten();
	return tap_done();
}
