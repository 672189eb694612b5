/*
 * snapshot_tokens.c
 *	  How old the tokens are that come with the donor's log state: see shared/token_memory.h.
 *
 * Process: apply worker, before a copy of the tables begins.  Must never keep that from beginning: a node that does not know the ages keeps the tokens
 * for longer, that is all.  So a donor of an older build is asked nothing, and an answer that makes no sense is left aside.
 */
#include "postgres.h"

#include "shared/token_memory.h"
#include "snapshot/snapshot_internal.h"

static bool
knows_ages(PeerConnection *peer)
{
	PeerResult *answer = peer_query(peer, "SELECT 1 WHERE pg_catalog.to_regprocedure('quorum.token_samples()') IS NOT NULL", 0, NULL);

	return answer->row_count == 1;
}

void
snapshot_learn_token_ages(PeerConnection *peer)
{
	TokenSample *samples = palloc0(TOKEN_AGES_SAMPLES * sizeof(TokenSample));
	PeerResult *answer;

	if (!knows_ages(peer))
		return;
	answer = peer_query(peer, "SELECT put_count, log_index, age_ms FROM quorum.token_samples() ORDER BY put_count", 0, NULL);
	if (answer->column_count != 3 || answer->row_count > TOKEN_AGES_SAMPLES)
		return;
	for (int i = 0; i < answer->row_count; i++)
	{
		if (answer->rows[i][0] == NULL || answer->rows[i][1] == NULL || answer->rows[i][2] == NULL)
			return;
		samples[i].put_count = strtou64(answer->rows[i][0], NULL, 10);
		samples[i].index = strtou64(answer->rows[i][1], NULL, 10);
		samples[i].clock_ms = strtou64(answer->rows[i][2], NULL, 10);
	}
	(void) token_memory_learn(samples, answer->row_count);
}
