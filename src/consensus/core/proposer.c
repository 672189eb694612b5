/*
 * proposer.c
 *	  The leader's phase 2: what it proposes in which slot, who has it, and what is chosen by that.
 *
 * Process: consensus worker, tests.  Must never propose in a slot for which it lacks a majority's promises.
 *
 * Invariants ("Paxos Made Simple", section 2.2; a slot is an instance)
 *	 1. P2c: in a slot up to adopted_slot the value of the highest ballot among the promises of a majority is proposed, a no-op if there
 *		is none.  New values go to slots after adopted_slot only: there no majority reported anything.
 *	 2. A slot is proposed in once per ballot, in the order of slots.
 *	 3. A value is chosen when a majority of the voters in force for its slot has accepted it in this ballot, durably.  The leader's
 *		own acceptance counts as any other: when its record is durable.
 *	 4. The leader holds every slot that it proposed in and that is not delivered, so it can send each again.
 *
 * Why configurations can be entries of the log without two quorums that miss each other:
 *	 The quorum of slot n is a majority of the configuration in the last CONFIG slot below n.  That is known, and the same for
 *	 everyone, once every slot below n is chosen.  A leader that proposes a configuration in slot s proposes nothing after s until it
 *	 has delivered s (barrier_slot); so when anything is proposed in slot n, each open slot between the proposer's delivered
 *	 prefix and n holds no configuration of this ballot, and the prefix's configuration is what it counts with.  An older ballot may
 *	 have proposed a configuration in such an open slot: if it can have been chosen, phase 1 reports it, and it is adopted, in
 *	 order, with the same barrier; if not, the slot gets another value and the configuration never existed.  So a slot's votes
 *	 and promises are always counted in the configuration that the chosen log assigns to it, and in every slot there is one configuration
 *	 for all ballots: the plain argument of P2c holds for each slot.  For the same reason votes make a slot chosen only after every
 *	 slot before it: with an open slot below, it is not yet settled whose votes count.  In particular there is no "latest configuration in the
 *	 log, chosen or not", which made single-server changes of Raft unsafe before a leader had committed an entry of its term.
 *	 After a configuration is delivered the leader lacks, perhaps, promises of a majority of it; it then sends PREPARE in the same
 *	 ballot for the slots after it, and waits, before it goes on (election_has_promises is asked before each proposal).
 *	 A configuration is proposed only in the slot after the delivered prefix, so neighbours in the log differ by at most one voter,
 *	 whoever adopts it later.  The argument above does not need that; it keeps a change from demanding several new
 *	 nodes at once, and since majorities of neighbours intersect, a deposed leader hears of it.
 */
#include "paxos_internal.h"

/* ---- term ---- */

/* All that a peer has in the new ballot is not known yet; those who promised told what they have delivered. */
static void
begin_peer(PaxosCore *core, Peer *peer)
{
	peer->is_known = peer->promised;
	peer->next_send_slot = core->term_first_slot;
	peer->voted_slot = core->term_first_slot - 1;
	peer->bytes_in_flight = 0;
	peer->progress_ms = core->now_ms;
	peer->resends = 0;
	peer->announced_slot = 0;
	peer->announce_deadline_ms = 0;
	peer->forwards_dropped = false;
	peer->round_answered = 0;
	if (!peer->promised)
	{
		/* What it accepted was accepted in other ballots: none of it may count for this one. */
		peer->answered_ms = 0;
		peer->accepted_slot = 0;
		peer->delivered_slot = 0;
	}
	peer->teach_wanted = false;
	peer->teach_slot = 0;
	peer->teach_repeats = 0;
}

void
proposer_begin_term(PaxosCore *core)
{
	SlotWindow *window = &core->window;

	core->is_ready = false;
	core->barrier_slot = 0;
	core->term_first_slot = core->delivered_slot + 1;
	core->next_slot = core->term_first_slot;
	core->adopted_slot = max_u64(core->delivered_slot, max_u64(window->max_accepted_slot, window->max_reported_slot));
	core->heartbeat_deadline_ms = core->now_ms;
	for (uint32_t i = 0; i < core->config.member_count; i++)
		begin_peer(core, &core->peers[i]);
	core->send_due = true;
}

/* A member that the new configuration brought. */
void
proposer_add_peer(PaxosCore *core, Peer *peer)
{
	if (is_leader(core))
		begin_peer(core, peer);
}

static uint32_t
peer_index(const PaxosCore *core, const Peer *peer)
{
	return (uint32_t) (peer - core->peers);
}

/* When a majority, itself included, had last answered this ballot. */
uint64_t
proposer_quorum_contact_ms(const PaxosCore *core)
{
	uint64_t	contacts[PAXOS_MAX_MEMBERS];
	uint32_t	count = 0;

	for (uint32_t i = 0; i < core->config.member_count; i++)
	{
		uint64_t	contact_ms = (int) i == core->self_index ? core->now_ms : core->peers[i].answered_ms;
		uint32_t	at = count;

		if (!core->peers[i].is_voter)
			continue;
		for (; at > 0 && contacts[at - 1] < contact_ms; at--)
			contacts[at] = contacts[at - 1];
		contacts[at] = contact_ms;
		count++;
	}
	PAXOS_ASSERT(count > 0);
	return contacts[count / 2];
}

/* Voters that answered this ballot within a time and, if asked for, have their link up; the leader itself included. */
uint32_t
proposer_count_answering(const PaxosCore *core, uint64_t now_ms, uint64_t within_ms, bool link_up)
{
	uint32_t	count = 0;

	for (uint32_t i = 0; i < core->config.member_count; i++)
	{
		const Peer *peer = &core->peers[i];

		if (peer->is_voter && ((int) i == core->self_index ||
							   (is_within(peer->answered_ms, now_ms, within_ms) && (!link_up || peer->link_up))))
			count++;
	}
	return count;
}

bool
proposer_quorum_is_fresh(const PaxosCore *core, uint64_t now_ms)
{
	uint64_t	within_ms = 2 * (uint64_t) core->settings.heartbeat_interval_ms;

	return proposer_count_answering(core, now_ms, within_ms, true) >= config_quorum_size(core);
}

/* ---- proposing ---- */

static bool
may_fill_next_slot(const PaxosCore *core)
{
	return is_leader(core) && !transfer_is_retiring(core) && core->barrier_slot == 0 && core->next_slot <= window_last_slot(core) &&
		election_has_promises(core);
}

/* A new value; behind a configuration that waits for the open slots, or a transfer, everything else waits too. */
bool
proposer_may_propose(const PaxosCore *core)
{
	return may_fill_next_slot(core) && core->next_slot > core->adopted_slot &&
		core->waiting_config == NULL && core->transfer_to == 0;
}

/*
 * A configuration is proposed right after the delivered prefix: so it is a neighbour of the very configuration that the log has before
 * it, whoever adopts it later.
 */
static void
place_config(PaxosCore *core)
{
	PaxosValue *value = core->waiting_config;
	PaxosConfig config;

	if (value == NULL || !may_fill_next_slot(core) || core->next_slot <= core->adopted_slot ||
		core->next_slot != core->delivered_slot + 1)
		return;
	core->waiting_config = NULL;
	if (paxos_config_decode(&config, value->bytes, value->length) > 0 && config_change_is_allowed(&core->config, &config))
		proposer_propose(core, value);
	else
		core_drop_value(core, value);	/* what was adopted brought another configuration meanwhile */
}

void
proposer_propose(PaxosCore *core, PaxosValue *value)
{
	PaxosSlot	slot = core->next_slot;
	Slot	   *entry = window_open(core, slot);

	PAXOS_ASSERT(!ballot_equal(entry->proposed_ballot, core->ballot));
	core_drop_value(core, entry->reported_value);
	entry->reported_value = NULL;
	entry->proposed_ballot = core->ballot;
	entry->votes = 0;
	if (value->kind == PAXOS_VALUE_CONFIG)
		core->barrier_slot = slot;
	if (value->kind != PAXOS_VALUE_NOOP)
		proposals_placed(core, slot, value->id);
	if (entry->chosen)
		core_drop_value(core, value);	/* it is the value there; proposed for those who do not know */
	else
		acceptor_accept(core, entry, core->ballot, value);
	core->next_slot++;
	core->send_due = true;
}

/* P2c for one slot. */
static PaxosValue *
value_to_adopt(PaxosCore *core, const Slot *entry)
{
	static const PaxosProposalId nobody = {0, 0, 0};

	if (entry->chosen)
		return paxos_value_retain(entry->value);
	if (entry->reported_value != NULL &&
		(entry->value == NULL || paxos_ballot_compare(entry->reported_ballot, entry->accepted_ballot) > 0))
		return paxos_value_retain(entry->reported_value);
	if (entry->value != NULL)
		return paxos_value_retain(entry->value);
	return paxos_value_make(&core->allocator, PAXOS_VALUE_NOOP, nobody, NULL, 0);
}

/*
 * Once in a term: a promise that comes later, of a member that was not needed or is new, may bring more to adopt, but nothing that
 * anyone was told of.
 */
static void
check_ready(PaxosCore *core)
{
	if (core->is_ready || transfer_is_retiring(core) || core->delivered_slot < core->adopted_slot || !election_has_promises(core))
		return;
	core->is_ready = true;
	core->ready_slot = core->adopted_slot;
	core->heartbeat_deadline_ms = core->now_ms; /* followers hold their clients' proposals until they are told */
	core->send_due = true;
}

void
proposer_place(PaxosCore *core)
{
	while (may_fill_next_slot(core) && core->next_slot <= core->adopted_slot)
		proposer_propose(core, value_to_adopt(core, window_open(core, core->next_slot)));
	place_config(core);
	while (proposer_may_propose(core))
	{
		PaxosValue *value = proposals_next(core);

		if (value == NULL || !window_make_room(core, core->next_slot, value->length))
			break;
		proposer_propose(core, paxos_value_retain(value));
	}
	check_ready(core);
}

void
proposer_delivered(PaxosCore *core)
{
	if (core->barrier_slot != 0 && core->delivered_slot >= core->barrier_slot)
		core->barrier_slot = 0;
	if (core->delivered_slot >= core->next_slot)
	{
		/* It had learned slots behind a gap before it was elected, and has closed the gap: they need no phase 2, but teaching. */
		core->term_first_slot = core->next_slot = core->delivered_slot + 1;
		core->adopted_slot = max_u64(core->adopted_slot, core->delivered_slot);
	}
	proposer_place(core);
}

/* ---- votes ---- */

/* Only counted here.  What follows from it is concluded in the order of slots, in learner_advance. */
void
proposer_vote(PaxosCore *core, Slot *entry, int member_index)
{
	if (!ballot_equal(entry->proposed_ballot, core->ballot))
		return;
	entry->votes |= 1u << member_index;
}

static void
vote_range(PaxosCore *core, uint32_t index, PaxosSlot first, PaxosSlot last)
{
	first = max_u64(first, max_u64(core->term_first_slot, core->window.base_slot));
	last = min_u64(last, core->next_slot - 1);
	for (PaxosSlot slot = first; slot <= last; slot++)
	{
		Slot	   *entry = window_get(core, slot);

		if (entry != NULL)
			proposer_vote(core, entry, (int) index);
	}
}

/* What was on its way and is now answered no longer counts as in flight. */
static void
settle_bytes_in_flight(PaxosCore *core, Peer *peer, PaxosSlot before)
{
	if (peer->accepted_slot + 1 >= peer->next_send_slot)
	{
		peer->bytes_in_flight = 0;
		return;
	}
	for (PaxosSlot slot = before + 1; slot <= peer->accepted_slot; slot++)
	{
		const Slot *entry = window_get(core, slot);
		uint64_t	bytes = message_entry_size(PAXOS_MESSAGE_ACCEPT, entry == NULL || entry->value == NULL ? 0 : entry->value->length);

		peer->bytes_in_flight -= min_u64(peer->bytes_in_flight, bytes);
	}
}

/* false: of an earlier start of the peer than was heard of. */
static bool
note_progress(PaxosCore *core, Peer *peer, const PaxosMessage *message)
{
	PaxosSlot	before = peer->accepted_slot;

	if (message->incarnation < peer->incarnation)
		return false;
	if (message->incarnation > peer->incarnation)
	{
		/* It may know less as chosen than it told before: the hints in its journal lag. */
		peer->incarnation = message->incarnation;
		before = peer->accepted_slot = message->accepted_slot;
		peer->delivered_slot = message->delivered_slot;
		peer->next_send_slot = min_u64(peer->next_send_slot, message->accepted_slot + 1);
		peer->bytes_in_flight = 0;
		peer->teach_slot = 0;
		/* Some of what it told it may have delivered without accepting it in this ballot: who is taken to have it would not be sent it. */
		peer->voted_slot = min_u64(peer->voted_slot, message->accepted_slot);
		if (is_leader(core))
			window_forget_votes_of(core, peer_index(core, peer), message->accepted_slot + 1);
	}
	peer->accepted_slot = max_u64(peer->accepted_slot, message->accepted_slot);
	peer->delivered_slot = max_u64(peer->delivered_slot, message->delivered_slot);
	if (peer->accepted_slot > before || message->range_count > 0)
	{
		peer->progress_ms = core->now_ms;
		peer->resends = 0;
	}
	if (is_leader(core) && peer->accepted_slot > before)
	{
		/* Slots from before the term were never in flight: do not walk over them. */
		before = max_u64(before, core->window.base_slot - 1);
		settle_bytes_in_flight(core, peer, before);
	}
	return true;
}

/* Hints about links may come late or not at all; an answer to a heartbeat is proof of both directions. */
static void
note_round_trip(PaxosCore *core, Peer *peer, uint64_t sent_ms)
{
	if (sent_ms == 0 || sent_ms > core->now_ms)
		return;
	peer->round_trip_ms = (uint32_t) min_u64(core->now_ms - sent_ms, UINT32_MAX);
	if (!peer->link_up && sent_ms > peer->link_down_ms)
	{
		peer->link_up = true;
		proposer_link_up(core, peer);
	}
}

/* Phase 2b arrives; or the progress of a node that this one teaches. */
void
proposer_on_report(PaxosCore *core, uint32_t from, const PaxosMessage *message)
{
	Peer	   *peer = config_peer(core, from);
	bool		is_answer = is_leader(core) && ballot_equal(message->ballot, core->ballot);

	if (peer == NULL || (message->ballot.round != 0 && !is_answer) || !note_progress(core, peer, message))
		return;
	if (!is_answer)
	{
		learner_teach_if_wanted(core, peer);
		return;
	}
	peer->is_known = true;
	peer->answered_ms = core->now_ms;
	note_round_trip(core, peer, message->sent_ms);
	vote_range(core, peer_index(core, peer), peer->voted_slot + 1, peer->accepted_slot);
	peer->voted_slot = max_u64(peer->voted_slot, peer->accepted_slot);
	for (uint32_t i = 0; i < message->range_count; i++)
		vote_range(core, peer_index(core, peer), message->ranges[i].first, message->ranges[i].last);
	learner_advance(core);
	if (message->round > peer->round_answered)
	{
		peer->round_answered = min_u64(message->round, core->heartbeat_round);
		reads_confirm(core);
	}
	core->send_due = true;
}

/* ---- sending ---- */

/* The ACCEPT that was built last in this flush: peers that are equally far get the same one. */
typedef struct BuiltAccept
{
	PaxosMessage *message;
	PaxosSlot	first_slot;
	PaxosSlot	last_slot;
	uint64_t	bytes;
} BuiltAccept;

/* The run of slots from `first` on that fits one frame, and that the peer has not voted for. */
static void
measure_accept(PaxosCore *core, uint32_t index, PaxosSlot first, PaxosSlot limit, BuiltAccept *run)
{
	size_t		bytes = 0;
	PaxosSlot	slot;

	for (slot = first; slot <= limit && slot - first < PAXOS_MAX_ENTRIES_PER_MESSAGE; slot++)
	{
		const Slot *entry = window_get(core, slot);
		size_t		entry_bytes;

		PAXOS_ASSERT(entry != NULL && entry->value != NULL && ballot_equal(entry->proposed_ballot, core->ballot));
		entry_bytes = message_entry_size(PAXOS_MESSAGE_ACCEPT, entry->value->length);
		if (slot > first && ((entry->votes >> index & 1) != 0 || bytes + entry_bytes > PAXOS_FRAME_TARGET_BYTES))
			break;
		bytes += entry_bytes;
	}
	run->message = NULL;
	run->first_slot = first;
	run->last_slot = slot - 1;
	run->bytes = bytes;
}

static PaxosMessage *
build_accept(PaxosCore *core, const BuiltAccept *run)
{
	PaxosMessage *accept = core_new_message(core, PAXOS_MESSAGE_ACCEPT);
	PaxosMessageEntry *entries;

	accept->ballot = core->ballot;
	accept->first_slot = run->first_slot;
	accept->chosen_slot = core->chosen_slot;
	accept->entry_count = (uint32_t) (run->last_slot - run->first_slot + 1);
	entries = arena_allocate(core, accept->entry_count * sizeof(PaxosMessageEntry));
	for (uint32_t i = 0; i < accept->entry_count; i++)
		core_fill_entry(&entries[i], run->first_slot + i, core->ballot, window_get(core, run->first_slot + i)->value);
	accept->entries = entries;
	return accept;
}

/* Slots from here on are sent with ACCEPT; those before are chosen, and taught. */
static PaxosSlot
first_held_slot(const PaxosCore *core)
{
	return max_u64(core->term_first_slot, core->window.base_slot);
}

static bool
is_waiting_for(const PaxosCore *core, const Peer *peer)
{
	return peer->is_known && peer->next_send_slot > max_u64(peer->accepted_slot + 1, first_held_slot(core));
}

static void
note_announced(const PaxosCore *core, Peer *peer)
{
	peer->announced_slot = core->chosen_slot;
	peer->announce_deadline_ms = 0;
}

/* Phase 2a to one peer, as far as its window and the bytes in flight allow. */
static void
send_accepts(PaxosCore *core, Peer *peer, BuiltAccept *last)
{
	uint32_t	index = peer_index(core, peer);
	bool		was_waiting = is_waiting_for(core, peer);
	PaxosSlot	limit = min_u64(core->next_slot - 1, peer->delivered_slot + core->window.capacity);

	peer->next_send_slot = max_u64(peer->next_send_slot, first_held_slot(core));
	while (peer->next_send_slot <= limit && peer->bytes_in_flight < MAX_BYTES_IN_FLIGHT)
	{
		const Slot *entry = window_get(core, peer->next_send_slot);
		BuiltAccept run;

		PAXOS_ASSERT(entry != NULL);
		if (ballot_equal(entry->proposed_ballot, core->ballot) && (entry->votes >> index & 1) != 0)
		{
			peer->next_send_slot++;
			continue;
		}
		measure_accept(core, index, peer->next_send_slot, limit, &run);
		if (last->message != NULL && last->first_slot == run.first_slot && last->last_slot == run.last_slot)
			run.message = last->message;
		else
			run.message = build_accept(core, &run);
		*last = run;
		core_send(core, peer->node_id, run.message);
		if (!was_waiting)
			peer->progress_ms = core->now_ms;
		peer->bytes_in_flight += run.bytes;
		peer->next_send_slot = run.last_slot + 1;
		note_announced(core, peer);
	}
}

static void
add_mark(PaxosMessage *heartbeat, uint32_t node_id, uint64_t incarnation, uint64_t position)
{
	PaxosDurableMark *mark = &heartbeat->marks[heartbeat->mark_count];

	if (position == 0)
		return;
	mark->node_id = node_id;
	mark->incarnation = incarnation;
	mark->position = position;
	heartbeat->mark_count++;
}

/* So that what an acceptor had made durable is known to others than to the leader that it told. */
static void
add_marks(const PaxosCore *core, PaxosMessage *heartbeat)
{
	for (uint32_t i = 0; i < core->config.member_count; i++)
		if ((int) i == core->self_index)
			add_mark(heartbeat, core->settings.node_id, core->settings.incarnation, core->durable_position);
		else
			add_mark(heartbeat, core->peers[i].node_id, core->peers[i].durable_incarnation, core->peers[i].durable_position);
}

PaxosSlot
proposer_delivered_by_all(const PaxosCore *core)
{
	PaxosSlot	slot = core->delivered_slot;
	PaxosSlot	forgettable = 2 * (PaxosSlot) core->window.capacity;

	for (uint32_t i = 0; i < core->config.member_count; i++)
	{
		const Peer *peer = &core->peers[i];

		if ((int) i == core->self_index)
			continue;
		slot = min_u64(slot, peer->link_up ? peer->delivered_slot : max_u64(peer->delivered_slot, forgettable) - forgettable);
	}
	return slot;
}

static void
send_heartbeat(PaxosCore *core, Peer *peer, bool wants_answer)
{
	PaxosMessage *heartbeat = core_new_message(core, PAXOS_MESSAGE_HEARTBEAT);

	heartbeat->ballot = core->ballot;
	heartbeat->chosen_slot = core->chosen_slot;
	heartbeat->round = core->heartbeat_round;
	heartbeat->sent_ms = core->now_ms;
	heartbeat->flag = wants_answer;
	heartbeat->serves = core->is_ready && proposer_quorum_is_fresh(core, core->now_ms);
	heartbeat->delivered_slot = proposer_delivered_by_all(core);
	add_marks(core, heartbeat);
	core_send(core, peer->node_id, heartbeat);
	note_announced(core, peer);
}

/*
 * It is told at once that the configuration without it is chosen, as others are with the next heartbeat; if that is lost, its pre-vote is
 * answered by teaching (election_on_pre_vote).
 */
void
proposer_drop_peer(PaxosCore *core, Peer *peer)
{
	if (is_leader(core))
		send_heartbeat(core, peer, false);
}

void
proposer_tell_chosen(PaxosCore *core, Peer *peer)
{
	if (peer->announced_slot < core->chosen_slot)
		send_heartbeat(core, peer, false);
}

/* A client of the value's origin waits for the news: the next flush tells it, by a message of its own if need be. */
void
proposer_chosen(PaxosCore *core, const Slot *entry)
{
	Peer	   *origin = entry->value->kind == PAXOS_VALUE_NOOP ? NULL : config_peer(core, entry->value->id.origin);

	if (origin != NULL)
		origin->announce_deadline_ms = core->now_ms;
}

/*
 * That slots are chosen rides on the next ACCEPT; only if none comes for a moment it is worth a message of its own.  Nobody waits for it but
 * the tables of the followers, and the origins of the values (proposer_chosen).  A node that is given a read index is told just before that everything up to
 * there is chosen (proposer_tell_chosen).
 */
static void
announce_chosen(PaxosCore *core, Peer *peer)
{
	if (peer->announced_slot >= core->chosen_slot)
		return;
	if (peer->announce_deadline_ms == 0)
		peer->announce_deadline_ms = core->now_ms + ANNOUNCE_DELAY_MS;
	else if (core->now_ms >= peer->announce_deadline_ms)
		send_heartbeat(core, peer, false);
}

/* A peer that did not answer in time gets everything again from where it stands; the time doubles while it stays silent. */
static uint64_t
resend_deadline_ms(const PaxosCore *core, const Peer *peer)
{
	uint64_t	interval_ms = max_u64(core->settings.resend_interval_ms, 2 * (uint64_t) peer->round_trip_ms);

	return peer->progress_ms + (interval_ms << peer->resends);
}

static void
resend_if_late(PaxosCore *core, Peer *peer)
{
	if (!is_waiting_for(core, peer) || core->now_ms < resend_deadline_ms(core, peer))
		return;
	peer->next_send_slot = peer->accepted_slot + 1;
	peer->bytes_in_flight = 0;
	peer->progress_ms = core->now_ms;
	if (peer->resends < MAX_DOUBLINGS)
		peer->resends++;
}

static bool
needs_teaching(const PaxosCore *core, const Peer *peer)
{
	return peer->is_known && peer->link_up &&
		peer->accepted_slot + 1 < first_held_slot(core);
}

static void
flush_peer(PaxosCore *core, Peer *peer, bool heartbeat_is_due, BuiltAccept *last)
{
	if (heartbeat_is_due)
		send_heartbeat(core, peer, true);
	proposals_ask_again(core, peer);
	if (!peer->is_known || !peer->link_up)
		return;
	resend_if_late(core, peer);
	send_accepts(core, peer, last);
	if (needs_teaching(core, peer))
		learner_teach(core, peer, peer->accepted_slot + 1, first_held_slot(core) - 1);
	announce_chosen(core, peer);
}

void
proposer_flush(PaxosCore *core)
{
	BuiltAccept last = {NULL, 0, 0, 0};
	bool		heartbeat_is_due;

	proposer_place(core);
	heartbeat_is_due = core->now_ms >= core->heartbeat_deadline_ms || (core->is_ready && reads_want_round(core) && !reads_probe(core));
	if (heartbeat_is_due)
	{
		core->heartbeat_round++;
		core->heartbeat_deadline_ms = core->now_ms + core->settings.heartbeat_interval_ms;
		if (core->is_ready)
			reads_begin_round(core);
	}
	for (uint32_t i = 0; i < core->config.member_count; i++)
		if ((int) i != core->self_index)
			flush_peer(core, &core->peers[i], heartbeat_is_due, &last);
	reads_confirm(core);
}

/* Whatever was sent on the old link may be lost. */
void
proposer_link_up(PaxosCore *core, Peer *peer)
{
	if (!is_leader(core))
		return;
	peer->next_send_slot = min_u64(peer->next_send_slot, peer->accepted_slot + 1);
	peer->bytes_in_flight = 0;
	peer->resends = 0;
	peer->teach_slot = 0;
	core->heartbeat_deadline_ms = core->now_ms;
	core->send_due = true;
}

uint64_t
proposer_deadline(const PaxosCore *core)
{
	uint64_t	deadline_ms = core->heartbeat_deadline_ms;

	if (core->config.member_count == 1 && core->self_index == 0)
		return UINT64_MAX;
	for (uint32_t i = 0; i < core->config.member_count; i++)
	{
		const Peer *peer = &core->peers[i];

		if ((int) i == core->self_index)
			continue;
		if (peer->link_up && peer->announce_deadline_ms != 0)
			deadline_ms = min_u64(deadline_ms, peer->announce_deadline_ms);
		if (peer->link_up && is_waiting_for(core, peer))
			deadline_ms = min_u64(deadline_ms, resend_deadline_ms(core, peer));
		if (needs_teaching(core, peer))
			deadline_ms = min_u64(deadline_ms, peer->teach_deadline_ms);
	}
	return deadline_ms;
}
