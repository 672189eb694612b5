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
 * Invariants
 *	 1. Reads stand in the order in which they were asked; so do their deadlines, and their rounds: those without a round are last.
 *	 2. A round confirms only reads that were asked before its heartbeats were made.
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

static void
answer(PaxosCore *core, const PendingRead *read, bool ok)
{
	PaxosMessage *message;

	if (read->from == 0)
	{
		give_result(core, read->read_id, ok, ok ? read->read_index : 0);
		return;
	}
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

static bool
is_quorum_with(const PaxosCore *core, const Peer *peer)
{
	uint32_t	voters = peer->is_voter ? 2 : 1;	/* with this node, which leads */

	return core->is_ready && voters >= config_quorum_size(core);
}

void
reads_on_request(PaxosCore *core, uint32_t from, const PaxosMessage *message)
{
	Peer	   *peer = config_peer(core, from);

	if (!is_leader(core) || peer == NULL || core->reads.count >= MAX_PENDING_READS)
		return;					/* it asks again, or somebody else */
	if (is_quorum_with(core, peer))
	{
		PendingRead read = {.read_id = message->number, .from = from, .read_index = core->chosen_slot};

		proposer_tell_chosen(core, peer);
		answer(core, &read, true);
		return;
	}
	for (size_t i = 0; i < core->reads.count; i++)
		if (pending(core)[i].from == from && pending(core)[i].read_id == message->number)
			return;
	add_read(core, message->number, from);
}

void
reads_on_answer(PaxosCore *core, uint32_t from, const PaxosMessage *message)
{
	size_t		kept = 0;

	if (message->ballot.node_id != from || !ballot_equal(message->ballot, core->promised_ballot))
		return;					/* invariant 3; the next leader is asked */
	for (size_t i = 0; i < core->reads.count; i++)
	{
		PendingRead *read = &pending(core)[i];

		if (read->from == 0 && read->number != 0 && read->number == message->number)
			give_result(core, read->read_id, message->flag, message->flag ? message->read_index : 0);
		else
			pending(core)[kept++] = *read;
	}
	core->reads.count = kept;
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

static void
send_request(PaxosCore *core, uint64_t number)
{
	PaxosMessage *request = core_new_message(core, PAXOS_MESSAGE_READ_REQUEST);

	request->number = number;
	core_send(core, core->leader_id, request);
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
	send_request(core, core->read_number);
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
