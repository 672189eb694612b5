/*
 * read_probe.c
 *	  Answers to read probes that need no step of the core: they follow from what it has promised and, if it leads, from how far the log is chosen.
 *
 * Process: consensus worker, stream backends (paxos_answer_probe), tests.  Must never change a core, nor answer what its state does not say.
 *
 * Why an answer from a published state is as good as one from a step (Ongaro 2014, section 6.4, and reads.c): it claims that this node had
 * promised nothing but `ballot` when the probe was here.  The state is published before the PROMISE of a higher ballot is sent, so if a higher
 * ballot had got anything acknowledged before the probe was sent, with a promise of this node, the state says so.  In the same way
 * a leader's chosen_slot is published before anybody hears of what it covers.
 */
#include "paxos_internal.h"

#include <string.h>

void
paxos_read_state(const PaxosCore *core, PaxosReadState *state)
{
	memset(state, 0, sizeof(*state));
	state->node_id = core->settings.node_id;
	state->answers = core->started && !core->is_silent;
	state->promised = core->promised_ballot;
	state->leads = is_leader(core) && core->is_ready && ballot_equal(core->ballot, core->promised_ballot);
	if (!state->leads)
		return;
	state->chosen_slot = core->chosen_slot;
	state->quorum_size = config_quorum_size(core);
	for (uint32_t i = 0; i < core->config.member_count; i++)
		if (core->config.members[i].is_voter)
			state->voters[state->voter_count++] = core->config.members[i].node_id;
}

static bool
is_voter_of(const PaxosReadState *state, uint32_t node_id)
{
	for (uint32_t i = 0; i < state->voter_count; i++)
		if (state->voters[i] == node_id)
			return true;
	return false;
}

/* A leader may be no voter any more: then it counts for nothing. */
bool
read_state_is_quorum_with(const PaxosReadState *state, uint32_t node_id)
{
	uint32_t	voters = is_voter_of(state, state->node_id) + (node_id != state->node_id && is_voter_of(state, node_id));

	return state->leads && voters >= state->quorum_size;
}

bool
read_probe_answer(const PaxosReadState *state, uint32_t from, const PaxosMessage *probe, PaxosMessage *answer)
{
	bool		asks_leader = probe->ballot.node_id == state->node_id;

	if (!state->answers || !ballot_equal(probe->ballot, state->promised))
		return false;
	if (asks_leader && !read_state_is_quorum_with(state, from))
		return false;
	answer->ballot = probe->ballot;
	answer->number = probe->number;
	answer->flag = true;
	answer->read_index = asks_leader ? state->chosen_slot : 0;
	return true;
}

size_t
paxos_answer_probe(const PaxosReadState *state, uint32_t from, const uint8_t *frame, size_t length, uint8_t *buffer, size_t capacity)
{
	PaxosMessage probe;
	PaxosMessage answer;
	const char *why;

	if (!message_is_read_probe(frame, length) || !message_decode(&probe, NULL, frame, length, &why))
		return 0;
	memset(&answer, 0, sizeof(answer));
	answer.type = PAXOS_MESSAGE_READ_ANSWER;
	answer.version = probe.version;
	if (!read_probe_answer(state, from, &probe, &answer))
		return 0;
	return paxos_message_encode(&answer, buffer, capacity);
}
