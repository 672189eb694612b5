/*
 * paxos.c
 *	  Life of a core, the step, and its status.  Start reading here: paxos_step is the map of the folder.
 *
 * Process: consensus worker, tests.  Must never decide anything of the protocol; the parts do.
 *
 * Invariants
 *	 1. A step is: may this node still lead?  the event; if the event is FLUSH or TICK, sending what was gathered.
 *	 2. Before paxos_start nothing is emitted but deliveries.
 *	 3. Recovery finds promised_ballot at least as high as anything that was told to anyone: the maximum over all records.
 */
#include "paxos_internal.h"

#include <string.h>

#define MAX_IDLE_MS 10000		/* a host need not handle "never" */

/* ---- life ---- */

static void
check_settings(const PaxosSettings *settings)
{
	PAXOS_ASSERT(settings->node_id != 0);
	PAXOS_ASSERT(settings->window_slots >= 16 && (settings->window_slots & (settings->window_slots - 1)) == 0);
	PAXOS_ASSERT(settings->window_bytes > 0);
	PAXOS_ASSERT(settings->max_outstanding_proposals > 0 && settings->max_outstanding_proposals <= PAXOS_DEDUP_WINDOW);
	PAXOS_ASSERT(settings->heartbeat_interval_ms > 0 && settings->resend_interval_ms > 0);
	PAXOS_ASSERT(settings->election_timeout_ms > settings->heartbeat_interval_ms);
}

PaxosCore *
paxos_create(const PaxosSettings *settings, const PaxosAllocator *allocator)
{
	PaxosCore  *core;

	check_settings(settings);
	core = allocator->allocate(allocator->context, sizeof(PaxosCore));
	PAXOS_ASSERT(core != NULL);
	memset(core, 0, sizeof(*core));
	core->settings = *settings;
	core->allocator = *allocator;
	core->may_lead = true;
	core->role = PAXOS_LEARNER;
	core->self_index = -1;
	paxos_origins_init(&core->origins, allocator);
	window_create(core);
	proposals_create(core);
	return core;
}

void
paxos_destroy(PaxosCore *core)
{
	core_drop_value(core, core->waiting_config);
	window_free(core);
	proposals_free(core);
	effects_begin(core);		/* releases what the last step and these let go */
	paxos_origins_free(&core->origins);
	vector_free(core, &core->peer_versions);
	vector_free(core, &core->pending_acceptances);
	vector_free(core, &core->reads);
	vector_free(core, &core->graveyard);
	vector_free(core, &core->out_records);
	vector_free(core, &core->out_messages);
	vector_free(core, &core->out_catch_ups);
	vector_free(core, &core->out_chosen);
	vector_free(core, &core->out_reads);
	arena_free(core);
	core_release(core, core);
}

static void
restore_accepted(PaxosCore *core, const PaxosRecord *record)
{
	Slot	   *entry;

	if (record->slot <= core->delivered_slot)
		return;
	window_grow(core, record->slot);
	(void) window_make_room(core, record->slot, record->value->length);
	entry = window_open(core, record->slot);
	window_set_accepted(core, entry, record->ballot, paxos_value_retain(record->value));
}

void
paxos_restore(PaxosCore *core, const PaxosRecord *record, PaxosEffects *effects)
{
	PAXOS_ASSERT(!core->started);
	effects_begin(core);
	if (paxos_ballot_compare(record->ballot, core->promised_ballot) > 0)
		core->promised_ballot = record->ballot;
	switch (record->type)
	{
		case PAXOS_RECORD_PROMISE:
			break;
		case PAXOS_RECORD_ACCEPTED:
			restore_accepted(core, record);
			break;
		case PAXOS_RECORD_CHOSEN:
			learner_restore_chosen(core, record->slot);
			break;
		case PAXOS_RECORD_CONFIG:
			/* What is delivered, or stands in a base, has settled the configurations up to there. */
			if (core->config.member_count == 0 || record->slot > core->delivered_slot)
				config_install(core, record->slot, record->value);
			break;
	}
	effects_fill(core, effects);
}

void
paxos_set_incarnation(PaxosCore *core, uint64_t incarnation)
{
	PAXOS_ASSERT(!core->started);
	core->settings.incarnation = incarnation;
}

/* ---- the step ---- */

static uint64_t
next_deadline_ms(const PaxosCore *core)
{
	uint64_t	deadline_ms = election_deadline(core);

	if (core->send_due)
		return core->now_ms;
	if (is_leader(core))
		deadline_ms = min_u64(deadline_ms, min_u64(proposer_deadline(core), transfer_deadline(core)));
	deadline_ms = min_u64(deadline_ms, proposals_deadline(core));
	deadline_ms = min_u64(deadline_ms, reads_deadline(core));
	deadline_ms = min_u64(deadline_ms, core->now_ms + MAX_IDLE_MS);
	return max_u64(deadline_ms, core->now_ms);
}

static void
begin_step(PaxosCore *core, uint64_t now_ms, uint64_t random)
{
	effects_begin(core);
	core->now_ms = max_u64(core->now_ms, now_ms);
	core->random_state ^= random;
}

static void
end_step(PaxosCore *core, PaxosEffects *effects)
{
	effects_fill(core, effects);
	effects->next_deadline_ms = next_deadline_ms(core);
}

/* What was gathered since the last FLUSH or TICK. */
static void
flush(PaxosCore *core)
{
	core->send_due = false;
	if (is_leader(core))
	{
		proposer_flush(core);
		transfer_flush(core);
	}
	proposals_flush(core);
	reads_flush(core);
	if (core->report_due)
		acceptor_send_report(core);
	learner_hint(core);
}

static void
note_durable(PaxosCore *core, uint32_t node_id, uint64_t incarnation, uint64_t position)
{
	Peer	   *peer = config_peer(core, node_id);

	if (peer == NULL || position == 0 || incarnation < peer->durable_incarnation)
		return;
	peer->durable_incarnation = incarnation;
	peer->durable_position = max_u64(peer->durable_position, position);
}

/* What is chosen is so whoever hears it; all else asks for something that a silent node does not give. */
static bool
is_for_silent(const PaxosMessage *message)
{
	return message->type == PAXOS_MESSAGE_LEARN || message->type == PAXOS_MESSAGE_TRIMMED;
}

static void
on_message(PaxosCore *core, uint32_t from, const PaxosMessage *message)
{
	Peer	   *peer = config_peer(core, from);

	PAXOS_ASSERT(from != 0 && message != NULL);
	if (from == core->settings.node_id || (core->is_silent && !is_for_silent(message)))
		return;
	if (peer != NULL && message->type != PAXOS_MESSAGE_READ_ANSWER)	/* which its core may know nothing of */
		peer->last_contact_ms = core->now_ms;
	note_durable(core, from, message->incarnation, message->durable_position);
	for (uint32_t i = 0; i < message->mark_count; i++)
		note_durable(core, message->marks[i].node_id, message->marks[i].incarnation, message->marks[i].position);
	switch (message->type)
	{
		case PAXOS_MESSAGE_PRE_VOTE:
			election_on_pre_vote(core, from, message);
			break;
		case PAXOS_MESSAGE_PRE_VOTE_ANSWER:
			election_on_pre_vote_answer(core, from, message);
			break;
		case PAXOS_MESSAGE_PREPARE:
			acceptor_on_prepare(core, from, message);
			break;
		case PAXOS_MESSAGE_PROMISE:
			election_on_promise(core, from, message);
			break;
		case PAXOS_MESSAGE_REFUSAL:
			election_on_refusal(core, from, message);
			break;
		case PAXOS_MESSAGE_ACCEPT:
			acceptor_on_accept(core, from, message);
			break;
		case PAXOS_MESSAGE_REPORT:
			proposer_on_report(core, from, message);
			break;
		case PAXOS_MESSAGE_HEARTBEAT:
			acceptor_on_heartbeat(core, from, message);
			break;
		case PAXOS_MESSAGE_LEARN:
			learner_on_learn(core, from, message);
			break;
		case PAXOS_MESSAGE_FORWARD:
			proposals_on_forward(core, from, message);
			break;
		case PAXOS_MESSAGE_FORWARD_AGAIN:
			proposals_on_forward_again(core, from, message);
			break;
		case PAXOS_MESSAGE_READ_REQUEST:
			reads_on_request(core, from, message);
			break;
		case PAXOS_MESSAGE_READ_ANSWER:
			reads_on_answer(core, from, message);
			break;
		case PAXOS_MESSAGE_READ_PROBE:
			reads_on_probe(core, from, message);
			break;
		case PAXOS_MESSAGE_TRIMMED:
			learner_on_trimmed(core, from, message);
			break;
		case PAXOS_MESSAGE_HAND_OVER:
			election_on_hand_over(core, from, message);
			break;
		case PAXOS_MESSAGE_TYPE_END:
			PAXOS_ASSERT(false);
			break;
	}
}

static void
on_link(PaxosCore *core, uint32_t peer_id, bool link_up)
{
	Peer	   *peer = config_peer(core, peer_id);

	if (peer == NULL)
		return;
	peer->link_up = link_up;
	if (link_up)
	{
		proposer_link_up(core, peer);
		if (peer_id == core->leader_id)
		{
			/* Whatever was sent on the old link may be lost. */
			proposals_leader_changed(core);
			reads_leader_changed(core);
		}
		return;
	}
	peer->link_down_ms = core->now_ms;
	election_link_down(core, peer_id);
}

void
paxos_start(PaxosCore *core, uint64_t now_ms, uint64_t random, PaxosEffects *effects)
{
	PAXOS_ASSERT(!core->started);
	begin_step(core, now_ms, random);
	core->started = true;
	core->highest_round = core->promised_ballot.round;
	core->read_number = core->settings.incarnation << 32;
	acceptor_reset_report(core);
	election_start(core);
	end_step(core, effects);
}

void
paxos_step(PaxosCore *core, const PaxosEvent *event, PaxosEffects *effects)
{
	PAXOS_ASSERT(core->started);
	begin_step(core, event->now_ms, event->random);
	election_check(core);
	switch (event->type)
	{
		case PAXOS_EVENT_TICK:
			election_tick(core);
			flush(core);
			break;
		case PAXOS_EVENT_FLUSH:
			flush(core);
			break;
		case PAXOS_EVENT_MESSAGE:
			on_message(core, event->peer_id, event->message);
			break;
		case PAXOS_EVENT_PROPOSAL:
			proposals_on_event(core, event);
			break;
		case PAXOS_EVENT_PERSISTED:
			core->durable_position = max_u64(core->durable_position, event->durable_position);
			acceptor_persisted(core, event->persisted_record);
			break;
		case PAXOS_EVENT_READ:
			reads_on_event(core, event->read_id);
			break;
		case PAXOS_EVENT_TRANSFER:
			transfer_on_event(core, event->peer_id);
			break;
		case PAXOS_EVENT_LINK:
			on_link(core, event->peer_id, event->link_up);
			break;
	}
	end_step(core, effects);
}

void
paxos_set_silent(PaxosCore *core, bool is_silent)
{
	if (core->is_silent && !is_silent)
	{
		core->lost_elections = 0;	/* nobody was to answer */
		election_reset_timer(core);
		core->send_due = true;
	}
	core->is_silent = is_silent;
}

bool
paxos_is_silent(const PaxosCore *core)
{
	return core->is_silent;
}

void
paxos_set_may_lead(PaxosCore *core, bool may_lead)
{
	if (may_lead && !core->may_lead)
		election_reset_timer(core);
	core->may_lead = may_lead;
	core->send_due = true;		/* the next step looks at it; let it come now */
}

const PaxosMessage *
paxos_message_decode(PaxosCore *core, const uint8_t *frame, size_t length, const char **why)
{
	return message_decode(&core->decoded, core->decoded_entries, frame, length, why) ? &core->decoded : NULL;
}

/* ---- status ---- */

static uint32_t
count_linked(const PaxosCore *core)
{
	uint32_t	count = 0;

	for (uint32_t i = 0; i < core->config.member_count; i++)
		if (core->peers[i].is_voter && ((int) i == core->self_index || core->peers[i].link_up))
			count++;
	return count;
}

/* The leader's word is as fresh as its own quorum was; one heartbeat more, for the way here. */
static bool
leader_serves(const PaxosCore *core, uint64_t now_ms)
{
	int			index = core->leader_id == 0 ? -1 : config_find(&core->config, core->leader_id);

	return index >= 0 && index != core->self_index && core->self_index >= 0 && core->peers[index].link_up &&
		is_within(core->leader_served_ms, now_ms, 3 * (uint64_t) core->settings.heartbeat_interval_ms);
}

static void
fill_quorum_status(const PaxosCore *core, uint64_t now_ms, PaxosStatus *status)
{
	uint64_t	timeout_ms = core->settings.election_timeout_ms;

	status->voter_count = config_voter_count(core);
	status->quorum_size = config_quorum_size(core);
	if (is_leader(core))
	{
		status->voters_reachable = proposer_count_answering(core, now_ms, timeout_ms, false);
		status->has_quorum = status->voters_reachable >= status->quorum_size;
		status->quorum_is_fresh = proposer_quorum_is_fresh(core, now_ms);
		return;
	}
	status->voters_reachable = count_linked(core);
	status->has_quorum = core->leader_id != 0 && is_within(core->leader_contact_ms, now_ms, timeout_ms);
	status->quorum_is_fresh = leader_serves(core, now_ms);
}

void
paxos_status(const PaxosCore *core, uint64_t now_ms, PaxosStatus *status)
{
	memset(status, 0, sizeof(*status));
	status->role = core->role;
	status->ballot = core->promised_ballot;
	status->leader_id = core->leader_id;
	fill_quorum_status(core, now_ms, status);
	status->leader_is_ready = is_leader(core) && core->is_ready;
	if (is_leader(core))
		status->adopted_slot = core->is_ready ? core->ready_slot : core->adopted_slot;
	status->chosen_slot = core->chosen_slot;
	status->delivered_slot = core->delivered_slot;
	status->accepted_slot = core->window.max_accepted_slot;
	status->knows_delivered_by_all = is_leader(core) || core->leader_tells_delivered;
	if (status->knows_delivered_by_all)
		status->delivered_by_all = is_leader(core) ? proposer_delivered_by_all(core) : core->leader_delivered_by_all;
	status->config = core->config;
	status->config_is_pending = is_leader(core) && (core->barrier_slot != 0 || core->waiting_config != NULL);
	status->transfer_to = core->transfer_to;
	if (core->snapshot_needed > core->delivered_slot + 1)
	{
		status->snapshot_needed = core->snapshot_needed;
		status->snapshot_from = core->snapshot_from;
	}
	status->outstanding_proposals = core->outstanding_count;
	status->elections_started = core->elections_started;
	status->ballots_won = core->ballots_won;
	for (uint32_t i = 0; i < core->config.member_count; i++)
	{
		const Peer *peer = &core->peers[i];
		PaxosPeerStatus *out = &status->peers[status->peer_count];

		if ((int) i == core->self_index)
			continue;
		out->node_id = peer->node_id;
		out->is_voter = peer->is_voter;
		out->link_up = peer->link_up;
		out->last_contact_ms = peer->last_contact_ms;
		out->round_trip_ms = peer->round_trip_ms;
		out->accepted_slot = peer->accepted_slot;
		out->delivered_slot = peer->delivered_slot;
		out->durable_position = peer->durable_position;
		out->durable_incarnation = peer->durable_incarnation;
		status->peer_count++;
	}
}
