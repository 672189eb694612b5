/*
 * learner.c
 *	  The learner of "Paxos Made Simple", section 2.3: what is chosen, its delivery in order, and the teaching of nodes that missed it.
 *
 * Process: consensus worker, tests.  Must never deliver a value that is not known as chosen and durable here.
 *
 * How a node comes to know that a slot is chosen:
 *	 - the leader has counted a majority of votes (proposer_vote), and everything before is chosen;
 *	 - a follower is told by the leader of ballot b that everything up to a slot is chosen, and holds a value that it accepted in b
 *	   itself: a ballot has one value per slot, and the leader of b proposed, with that value, each slot that it does not
 *	   know as chosen with another record;
 *	 - LEARN carries the value.
 *
 * Invariants
 *	 1. Slots are delivered once, in order, without gaps; delivered_slot <= chosen_slot.
 *	 2. What is delivered is a function of the log alone, the `duplicate` flags included: they follow from the delivered ids.
 *	 3. A learned value overwrites an accepted one with a ballot at least as high as any in which it may have been chosen
 *		(learned_ballot), so phase 1 finds it, and no two values are ever recorded for one slot and ballot.
 *	 4. The last ACCEPTED record of a slot up to hinted_slot holds the chosen value: a slot known as chosen is not written again.
 */
#include "paxos_internal.h"

#include <string.h>

/* ---- choosing and delivering ---- */

static void
deliver(PaxosCore *core, Slot *entry)
{
	PaxosValue *value = entry->value;
	PaxosChosen *chosen = vector_add(core, &core->out_chosen, sizeof(PaxosChosen));
	bool		duplicate = false;

	if (value->kind != PAXOS_VALUE_NOOP)
		duplicate = paxos_origins_note(&core->origins, value->id);
	chosen->slot = entry->slot;
	chosen->value = value;
	chosen->duplicate = duplicate;
	core->delivered_slot = entry->slot;
	if (!core->started)
		core->hinted_slot = entry->slot;
	if (value->kind == PAXOS_VALUE_CONFIG && !duplicate)
		config_install(core, entry->slot, value);
	if (core->started && value->kind != PAXOS_VALUE_NOOP)
		proposals_delivered(core, value->id);
}

/* Asked of the slot after chosen_slot, so the configuration that its votes are counted in is settled. */
static bool
is_chosen(PaxosCore *core, Slot *entry)
{
	if (entry->chosen)
		return true;
	if (is_leader(core))
		entry->chosen = ballot_equal(entry->proposed_ballot, core->ballot) && config_is_quorum(core, entry->votes);
	else
		entry->chosen = entry->slot <= core->leader_chosen_slot && ballot_equal(entry->accepted_ballot, core->leader_ballot);
	if (entry->chosen && paxos_ballot_compare(core->learned_ballot, core->leader_ballot) < 0)
		core->learned_ballot = core->leader_ballot;
	return entry->chosen;
}

/* Cheap when there is no news: looks at one slot. */
void
learner_advance(PaxosCore *core)
{
	PaxosSlot	chosen_before = core->chosen_slot;
	PaxosSlot	delivered_before = core->delivered_slot;
	Slot	   *entry;

	for (;;)
	{
		entry = window_get(core, core->chosen_slot + 1);
		if (entry == NULL || entry->value == NULL || !is_chosen(core, entry))
			break;
		core->chosen_slot++;
		if (is_leader(core))
			proposer_chosen(core, entry);
	}
	while (core->delivered_slot < core->chosen_slot)
	{
		entry = window_get(core, core->delivered_slot + 1);
		PAXOS_ASSERT(entry != NULL && entry->chosen);
		if (!acceptor_is_durable(core, entry))
			break;
		deliver(core, entry);
	}
	if (core->chosen_slot != chosen_before || core->delivered_slot != delivered_before)
		core->send_due = true;
	if (core->delivered_slot != delivered_before && is_leader(core))
		proposer_delivered(core);
}

/* Recovery.  A slot without a record would be a fault of the journal; knowing less is safe, and peers teach it. */
void
learner_restore_chosen(PaxosCore *core, PaxosSlot slot)
{
	while (core->chosen_slot < slot)
	{
		Slot	   *entry = window_get(core, core->chosen_slot + 1);

		if (entry == NULL || entry->value == NULL)
			return;
		entry->chosen = true;
		core->chosen_slot++;
		deliver(core, entry);
	}
}

void
learner_hint(PaxosCore *core)
{
	if (core->hinted_slot == core->delivered_slot)
		return;
	core->hinted_slot = core->delivered_slot;
	core_emit_record(core, PAXOS_RECORD_CHOSEN, core->delivered_slot, (PaxosBallot) {0, 0}, NULL);
}

/* ---- being taught ---- */

/*
 * At least as high as every ballot in which something that this node knows as chosen was chosen.  Values above that ballot are the
 * same (P2), so tagging a chosen value with it is true in the sense of P2c.
 */
PaxosBallot
learner_tag_ballot(const PaxosCore *core)
{
	return paxos_ballot_compare(core->learned_ballot, core->promised_ballot) > 0 ? core->learned_ballot : core->promised_ballot;
}

/* false: no room for it yet, nor for what follows. */
static bool
learn_entry(PaxosCore *core, PaxosBallot ballot, const PaxosMessageEntry *learned)
{
	PaxosSlot	slot = learned->slot;
	Slot	   *entry;
	bool		is_same;

	if (slot <= core->chosen_slot)
		return true;
	if (slot > window_last_slot(core))
		return false;
	entry = window_open(core, slot);
	if (entry->chosen)
		return true;
	is_same = entry->value != NULL && value_equals_entry(entry->value, learned);
	/* A leader whose proposal there was another one is deposed; one that has yet to propose there is behind, and no good leader. */
	if (is_leader(core) && (slot >= core->next_slot || !is_same))
		election_step_down(core);
	if (is_same)
	{
		entry->chosen = true;
		return true;
	}
	if (!window_make_room(core, slot, learned->length))
		return false;
	if (entry->value != NULL && paxos_ballot_compare(entry->accepted_ballot, ballot) > 0)
		ballot = entry->accepted_ballot;
	acceptor_accept(core, entry, ballot, core_value_from_entry(core, learned));
	entry->chosen = true;
	return true;
}

void
learner_on_learn(PaxosCore *core, uint32_t from, const PaxosMessage *message)
{
	if (paxos_ballot_compare(core->learned_ballot, message->ballot) < 0)
		core->learned_ballot = message->ballot;
	election_saw_round(core, message->ballot);
	core->teacher_id = from;
	core->taught_slot = message->first_slot;
	for (uint32_t i = 0; i < message->entry_count; i++)
	{
		if (!learn_entry(core, message->ballot, &message->entries[i]))
			break;
		core->taught_slot = message->entries[i].slot;
	}
	learner_advance(core);
	learner_report_to_teacher(core);
}

/* Tells whoever sent the last LEARN how far this node is, once all of it is delivered. */
void
learner_report_to_teacher(PaxosCore *core)
{
	PaxosMessage *report;

	if (core->teacher_id == 0)
		return;
	if (core->delivered_slot < core->taught_slot && window_get(core, core->delivered_slot + 1) != NULL &&
		window_get(core, core->delivered_slot + 1)->chosen)
		return;					/* waits for the journal */
	if (core->teacher_id == core->leader_id)
		acceptor_send_report(core);
	else
	{
		report = core_new_message(core, PAXOS_MESSAGE_REPORT);
		report->accepted_slot = core->delivered_slot;
		report->delivered_slot = core->delivered_slot;
		report->incarnation = core->settings.incarnation;
		core_send(core, core->teacher_id, report);
	}
	core->teacher_id = 0;
}

/*
 * The slots after delivered_slot are gone where they were looked for.  Nothing changes here: the peer is asked, or asks, as before, and perhaps
 * another one has them; the host decides whether it gets a snapshot.  Meanwhile this node is behind, and nobody who is not grants it a
 * pre-vote or a promise.  A stranger's word counts too: of the members that this node knows all may be gone.
 */
void
learner_on_trimmed(PaxosCore *core, uint32_t from, const PaxosMessage *message)
{
	if (message->first_slot <= core->delivered_slot + 1)
		return;
	core->snapshot_needed = message->first_slot;
	core->snapshot_from = from;
	core->snapshot_is_news = true;
}

/* ---- teaching ---- */

static void
send_learn(PaxosCore *core, uint32_t to, PaxosSlot first_slot, PaxosSlot last_slot)
{
	PaxosMessage *learn = core_new_message(core, PAXOS_MESSAGE_LEARN);
	PaxosMessageEntry *entries = arena_allocate(core, PAXOS_MAX_ENTRIES_PER_MESSAGE * sizeof(PaxosMessageEntry));
	size_t		bytes = PAXOS_FRAME_OVERHEAD_BYTES;

	learn->ballot = learner_tag_ballot(core);
	learn->first_slot = first_slot;
	learn->entries = entries;
	for (PaxosSlot slot = first_slot; slot <= last_slot && learn->entry_count < PAXOS_MAX_ENTRIES_PER_MESSAGE; slot++)
	{
		Slot	   *entry = window_get(core, slot);
		size_t		entry_bytes;

		PAXOS_ASSERT(entry != NULL && entry->chosen);
		entry_bytes = message_entry_size(PAXOS_MESSAGE_LEARN, entry->value->length);
		if (learn->entry_count > 0 && bytes + entry_bytes > PAXOS_FRAME_TARGET_BYTES)
			break;
		core_fill_entry(&entries[learn->entry_count++], slot, learn->ballot, entry->value);
		bytes += entry_bytes;
	}
	core_send(core, to, learn);
}

/*
 * Sends one chunk of chosen slots from first_slot on, from memory or, by way of the host, from the journal.  One chunk is under
 * way at a time: the next follows the peer's progress, or the deadline.
 */
void
learner_teach(PaxosCore *core, Peer *peer, PaxosSlot first_slot, PaxosSlot last_slot)
{
	PAXOS_ASSERT(first_slot >= 1 && last_slot <= core->delivered_slot);
	if (first_slot > last_slot)
		return;
	if (first_slot > peer->teach_slot)
		peer->teach_repeats = 0;
	else if (core->now_ms < peer->teach_deadline_ms)
		return;
	else if (peer->teach_repeats < MAX_DOUBLINGS)
		peer->teach_repeats++;
	peer->teach_slot = first_slot;
	peer->teach_deadline_ms = core->now_ms + (2 * (uint64_t) core->settings.resend_interval_ms << peer->teach_repeats);
	if (first_slot >= core->window.base_slot)
		send_learn(core, peer->node_id, first_slot, last_slot);
	else
	{
		PaxosCatchUp *catch_up = vector_add(core, &core->out_catch_ups, sizeof(PaxosCatchUp));

		catch_up->to = peer->node_id;
		catch_up->first_slot = first_slot;
		catch_up->last_slot = last_slot;
	}
}

/*
 * Of those that are no members, one at a time: a node that was removed while it was away learns so from the log.  It reports to nobody who would
 * listen; its next question makes this go on.
 */
void
learner_teach_stranger(PaxosCore *core, uint32_t node_id, PaxosSlot first_slot)
{
	if (core->stranger.node_id != node_id)
	{
		memset(&core->stranger, 0, sizeof(core->stranger));
		core->stranger.node_id = node_id;
	}
	learner_teach(core, &core->stranger, first_slot, core->delivered_slot);
}

/* A node that does not lead teaches who asked for its promise too early, as long as that one reports progress. */
void
learner_teach_if_wanted(PaxosCore *core, Peer *peer)
{
	if (!peer->teach_wanted)
		return;
	if (peer->delivered_slot >= core->delivered_slot)
		peer->teach_wanted = false;
	else
		learner_teach(core, peer, peer->delivered_slot + 1, core->delivered_slot);
}

size_t
paxos_encode_trimmed(PaxosCore *core, uint32_t to, PaxosSlot first_held_slot, uint8_t *buffer, size_t capacity)
{
	PaxosMessage *trimmed = core_new_message(core, PAXOS_MESSAGE_TRIMMED);

	PAXOS_ASSERT(first_held_slot > 1);
	trimmed->version = core_peer_version(core, to);
	trimmed->first_slot = first_held_slot;
	if (trimmed->version < message_first_version(PAXOS_MESSAGE_TRIMMED))
		return 0;
	return paxos_message_encode(trimmed, buffer, capacity);
}

/* Encoded in the oldest version, which everyone understands. */
size_t
paxos_encode_learn(PaxosCore *core, PaxosSlot first_slot, PaxosValue *const *values, size_t count,
				   uint8_t *buffer, size_t capacity, size_t *frame_length)
{
	PaxosMessage *learn = core_new_message(core, PAXOS_MESSAGE_LEARN);
	PaxosMessageEntry *entries = arena_allocate(core, PAXOS_MAX_ENTRIES_PER_MESSAGE * sizeof(PaxosMessageEntry));
	size_t		bytes = PAXOS_FRAME_OVERHEAD_BYTES;

	PAXOS_ASSERT(count > 0 && first_slot > 0);
	learn->ballot = learner_tag_ballot(core);
	learn->first_slot = first_slot;
	learn->entries = entries;
	while (learn->entry_count < count && learn->entry_count < PAXOS_MAX_ENTRIES_PER_MESSAGE)
	{
		const PaxosValue *value = values[learn->entry_count];
		size_t		entry_bytes = message_entry_size(PAXOS_MESSAGE_LEARN, value->length);

		if (learn->entry_count > 0 && bytes + entry_bytes > min_u64(PAXOS_FRAME_TARGET_BYTES, capacity))
			break;
		core_fill_entry(&entries[learn->entry_count], first_slot + learn->entry_count, learn->ballot, value);
		learn->entry_count++;
		bytes += entry_bytes;
	}
	*frame_length = paxos_message_encode(learn, buffer, capacity);
	PAXOS_ASSERT(*frame_length > 0);	/* the host's buffer must hold one value's frame */
	return learn->entry_count;
}
