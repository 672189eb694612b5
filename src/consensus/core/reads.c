/*
 * reads.c
 *	  Read indexes (Ongaro 2014, section 6.4): a position in the log that a linearizable read must wait for.
 *
 * Process: consensus worker, tests.  Must never use a clock to decide that this node still leads.
 *
 * Why an index is right: the leader takes it once all that it adopted is delivered, so whatever was acknowledged in earlier ballots is below it,
 * and then has a heartbeat answered by a majority.  Each of them said, after the read was asked, that it had promised nothing
 * higher.  A later leader that had anything acknowledged before the read was asked would have had a promise of one of them.
 *
 * A voter that asks is one of the majority itself: that it has promised nothing above the leader's ballot when the answer arrives, and the
 * leader nothing when it made it, both after the read was asked, is as good as an answer to a heartbeat.  If the two are a majority, as of two
 * or three voters, the leader answers without a round.
 *
 * Peers of version 4 are asked by probes, which their hosts may answer without a step (read_probe.c): the leader probes as few of them as complete a
 * quorum, instead of a heartbeat to all, and a voter that is a quorum together with the leader probes it.  What is not answered so is
 * confirmed by the next heartbeat, or asked once more by a READ_REQUEST.
 *
 * Invariants
 *	 1. Reads stand in the order in which they were asked; so do their deadlines, and their rounds: those without a round are last.
 *	 2. A round confirms only reads that were asked before its heartbeats or probes were made.
 *	 3. An answer counts only while nothing above its ballot is promised here.
 *	 4. read_number never repeats in the life of a node: the incarnation is part of it, so an answer to an earlier start finds no read.
 */
#include "paxos_internal.h"

#include <string.h>

#define TIMEOUT_ELECTIONS 4		/* a read waits so many election timeouts: long enough for a new leader */
#define MAX_REQUESTS_REPEATED 16

static PendingRead *
pending(const PaxosCore *core)
{
	return core->reads.items;
}

static PendingRead *
add_read(PaxosCore *core, uint64_t read_id, uint32_t from)
{
	PendingRead *read = vector_add(core, &core->reads, sizeof(PendingRead));

	read->read_id = read_id;
	read->from = from;
	read->deadline_ms = core->now_ms + TIMEOUT_ELECTIONS * (uint64_t) core->settings.election_timeout_ms;
	core->send_due = true;
	return read;
}

static void
give_result(PaxosCore *core, uint64_t read_id, bool ok, PaxosSlot read_index)
{
	PaxosReadResult *result = vector_add(core, &core->out_reads, sizeof(PaxosReadResult));

	result->read_id = read_id;
	result->ok = ok;
	result->read_index = read_index;
}

/* Who asked is told first what is chosen: else it would have an index, and wait for that news. */
static void
answer(PaxosCore *core, const PendingRead *read, bool ok)
{
	PaxosMessage *message;
	Peer	   *peer;

	if (read->from == 0)
	{
		give_result(core, read->read_id, ok, ok ? read->read_index : 0);
		return;
	}
	peer = config_peer(core, read->from);
	if (ok && peer != NULL)
		proposer_tell_chosen(core, peer);
	message = core_new_message(core, PAXOS_MESSAGE_READ_ANSWER);
	message->ballot = core->ballot;
	message->number = read->read_id;
	message->flag = ok;
	message->read_index = ok ? read->read_index : 0;
	core_send(core, read->from, message);
}

static void
remove_first(PaxosCore *core, size_t count)
{
	core->reads.count -= count;
	memmove(pending(core), pending(core) + count, core->reads.count * sizeof(PendingRead));
}

/* ---- asking ---- */

void
reads_on_event(PaxosCore *core, uint64_t read_id)
{
	if (core->reads.count >= MAX_PENDING_READS)
	{
		give_result(core, read_id, false, 0);
		return;
	}
	add_read(core, read_id, 0);
	if (is_leader(core) && core->is_ready && config_quorum_size(core) == 1)
	{
		core->heartbeat_round++;
		reads_begin_round(core);
		reads_confirm(core);
	}
}

void
reads_on_request(PaxosCore *core, uint32_t from, const PaxosMessage *message)
{
	Peer	   *peer = config_peer(core, from);
	PaxosReadState state;

	if (!is_leader(core) || peer == NULL || core->reads.count >= MAX_PENDING_READS)
		return;					/* it asks again, or somebody else */
	paxos_read_state(core, &state);
	if (read_state_is_quorum_with(&state, from))
	{
		PendingRead read = {.read_id = message->number, .from = from, .read_index = state.chosen_slot};

		answer(core, &read, true);
		return;
	}
	for (size_t i = 0; i < core->reads.count; i++)
		if (pending(core)[i].from == from && pending(core)[i].read_id == message->number)
			return;
	add_read(core, message->number, from);
}

void
reads_on_probe(PaxosCore *core, uint32_t from, const PaxosMessage *message)
{
	PaxosMessage *answer = core_new_message(core, PAXOS_MESSAGE_READ_ANSWER);
	PaxosReadState state;

	paxos_read_state(core, &state);
	if (read_probe_answer(&state, from, message, answer))
		core_send(core, from, answer);
}

static void
send_request(PaxosCore *core, uint64_t number)
{
	PaxosMessage *request = core_new_message(core, PAXOS_MESSAGE_READ_REQUEST);

	request->number = number;
	core_send(core, core->leader_id, request);
}

static void
on_answer_of_leader(PaxosCore *core, const PaxosMessage *message)
{
	size_t		kept = 0;

	for (size_t i = 0; i < core->reads.count; i++)
	{
		PendingRead *read = &pending(core)[i];

		if (read->from == 0 && read->number != 0 && read->number == message->number)
			give_result(core, read->read_id, message->flag, message->flag ? message->read_index : 0);
		else
			pending(core)[kept++] = *read;
	}
	if (kept == core->reads.count)
		return;
	core->reads.count = kept;
	core->reads_lag = message->read_index > core->read_asked_slot;
	if (message->read_index > core->chosen_slot && core->leader_id == message->ballot.node_id)
		send_request(core, message->number);	/* for what goes before the answer: the news that it is chosen */
}

static void
on_answer_to_leader(PaxosCore *core, uint32_t from, const PaxosMessage *message)
{
	Peer	   *peer = config_peer(core, from);

	if (peer == NULL || !message->flag || message->number <= peer->round_answered)
		return;
	peer->round_answered = min_u64(message->number, core->heartbeat_round);
	reads_confirm(core);
}

void
reads_on_answer(PaxosCore *core, uint32_t from, const PaxosMessage *message)
{
	if (!ballot_equal(message->ballot, core->promised_ballot))
		return;					/* invariant 3; the next leader is asked */
	if (message->ballot.node_id == from)
		on_answer_of_leader(core, message);
	else if (is_leader(core) && ballot_equal(message->ballot, core->ballot))
		on_answer_to_leader(core, from, message);
}

static void
send_probe(PaxosCore *core, uint32_t to, uint64_t number)
{
	PaxosMessage *probe = core_new_message(core, PAXOS_MESSAGE_READ_PROBE);

	probe->ballot = core->promised_ballot;
	probe->number = number;
	core_send(core, to, probe);
}

/* ---- the leader's rounds ---- */

bool
reads_want_round(const PaxosCore *core)
{
	return core->reads.count > 0 && pending(core)[core->reads.count - 1].round == 0;
}

void
reads_begin_round(PaxosCore *core)
{
	for (size_t i = core->reads.count; i > 0 && pending(core)[i - 1].round == 0; i--)
	{
		pending(core)[i - 1].round = core->heartbeat_round;
		pending(core)[i - 1].read_index = core->chosen_slot;	/* what was adopted is delivered, so below it */
	}
}

static bool
can_probe(const PaxosCore *core, const Peer *peer)
{
	return peer->link_up && core_peer_version(core, peer->node_id) >= message_first_version(PAXOS_MESSAGE_READ_PROBE);
}

/* The one that answered last, of the voters that `asked` does not have; NULL: none. */
static Peer *
next_to_probe(PaxosCore *core, uint32_t asked)
{
	Peer	   *best = NULL;

	for (uint32_t i = 0; i < core->config.member_count; i++)
	{
		Peer	   *peer = &core->peers[i];

		if ((asked & 1u << i) == 0 && peer->is_voter && can_probe(core, peer) && (best == NULL || peer->round_answered > best->round_answered))
			best = peer;
	}
	return best;
}

/*
 * Begins a round with probes to as few voters as complete a quorum; false: there are not enough.  One that is silent is found by the next heartbeat, which
 * another answers and is probed from then on.
 */
bool
reads_probe(PaxosCore *core)
{
	Peer	   *chosen[PAXOS_MAX_MEMBERS];
	uint32_t	chosen_count = 0;
	uint32_t	asked = core->self_index >= 0 ? 1u << core->self_index : 0;

	while (!config_is_quorum(core, asked))
	{
		Peer	   *peer = next_to_probe(core, asked);

		if (peer == NULL)
			return false;
		asked |= 1u << (peer - core->peers);
		chosen[chosen_count++] = peer;
	}
	core->heartbeat_round++;
	reads_begin_round(core);
	for (uint32_t i = 0; i < chosen_count; i++)
		send_probe(core, chosen[i]->node_id, core->heartbeat_round);
	return true;
}

/* The highest round that a majority, this node included, has answered. */
static uint64_t
quorum_round(const PaxosCore *core)
{
	uint64_t	highest = 0;

	for (uint32_t i = 0; i < core->config.member_count; i++)
	{
		uint64_t	round = (int) i == core->self_index ? core->heartbeat_round : core->peers[i].round_answered;
		uint32_t	answered = 0;

		for (uint32_t j = 0; j < core->config.member_count; j++)
			if ((int) j == core->self_index || core->peers[j].round_answered >= round)
				answered |= 1u << j;
		if (config_is_quorum(core, answered))
			highest = max_u64(highest, round);
	}
	return highest;
}

void
reads_confirm(PaxosCore *core)
{
	uint64_t	confirmed;
	size_t		done = 0;

	if (core->reads.count == 0 || !is_leader(core) || !core->is_ready)
		return;
	confirmed = quorum_round(core);
	while (done < core->reads.count && pending(core)[done].round != 0 && pending(core)[done].round <= confirmed)
		answer(core, &pending(core)[done++], true);
	if (done > 0)
		remove_first(core, done);
}

/* ---- leaders come and go ---- */

/* Peers ask the next leader themselves; own reads are asked of it. */
void
reads_step_down(PaxosCore *core)
{
	size_t		kept = 0;

	for (size_t i = 0; i < core->reads.count; i++)
	{
		PendingRead *read = &pending(core)[i];

		if (read->from != 0)
			continue;
		read->round = 0;
		read->number = 0;
		pending(core)[kept++] = *read;
	}
	core->reads.count = kept;
}

void
reads_leader_changed(PaxosCore *core)
{
	core->read_resend_ms = core->now_ms;
	core->send_due |= core->reads.count > 0;
}

/*
 * By a probe, if the leader and this node are a quorum.  Its answer brings no news of what is chosen, so where reads are found to lag behind, the leader is
 * asked with a step.
 */
static void
ask_for_first_time(PaxosCore *core, uint64_t number)
{
	const Peer *leader = config_peer(core, core->leader_id);
	uint32_t	voters = config_self_is_voter(core) ? 2 : 1;

	core->read_asked_slot = core->chosen_slot;
	if (!core->reads_lag && leader != NULL && can_probe(core, leader) && voters >= config_quorum_size(core) &&
		ballot_equal(core->leader_ballot, core->promised_ballot))
		send_probe(core, core->leader_id, number);
	else
		send_request(core, number);
}

/* One request for all new reads; those that wait for an answer are repeated now and then. */
static void
ask_leader(PaxosCore *core)
{
	uint64_t	last_number = 0;
	int			repeated = 0;

	if (core->now_ms >= core->read_resend_ms)
	{
		for (size_t i = 0; i < core->reads.count && repeated < MAX_REQUESTS_REPEATED; i++)
		{
			uint64_t	number = pending(core)[i].number;

			if (number == 0 || number == last_number)
				continue;
			send_request(core, number);
			last_number = number;
			repeated++;
		}
		core->read_resend_ms = core->now_ms + core->settings.resend_interval_ms;
	}
	if (pending(core)[core->reads.count - 1].number != 0)
		return;
	core->read_number++;
	for (size_t i = core->reads.count; i > 0 && pending(core)[i - 1].number == 0; i--)
		pending(core)[i - 1].number = core->read_number;
	ask_for_first_time(core, core->read_number);
}

void
reads_flush(PaxosCore *core)
{
	size_t		expired = 0;

	while (expired < core->reads.count && pending(core)[expired].deadline_ms <= core->now_ms)
		answer(core, &pending(core)[expired++], false);
	if (expired > 0)
		remove_first(core, expired);
	if (core->reads.count > 0 && core->leader_id != 0 && !is_leader(core))
		ask_leader(core);
}

uint64_t
reads_deadline(const PaxosCore *core)
{
	if (core->reads.count == 0)
		return UINT64_MAX;
	if (core->leader_id != 0 && !is_leader(core))
		return min_u64(pending(core)[0].deadline_ms, core->read_resend_ms);
	return pending(core)[0].deadline_ms;
}
