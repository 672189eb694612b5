/*
 * node.c
 *	  The host of one core, as the consensus worker is: a loop that feeds events and carries out effects in their order.
 *
 * The loop takes what has arrived (up to a bound), a tick if the deadline has passed, and ends with a flush; then a sync of
 * the journal is started unless one is under way.  A crash takes the core, the inbox and what the journal had not made
 * durable; frames that were sent stay under way.
 *
 * Invariants
 *	1. An event that was scheduled for one life of a node never reaches the next one.
 *	2. restore_only_delivers: paxos_restore emits nothing but deliveries.
 *	3. garbled_frame_refused: the codec takes every frame that was sent, and no garbled one.
 *	4. frame_is_understood: a frame has a version that its receiver understands.
 *	5. memory_returned: a core that is destroyed has returned all that it allocated.
 *	6. The state that answers read probes is published before any effect of the step that changed it; it may answer until the next start.
 */
#include "sim.h"

#define FAR_SEQUENCE 4070		/* soon wraps round in tables of 4096, as if this start had proposed for a while */

uint64_t
sim_node_clock(const Sim *sim, const SimNode *node)
{
	return node->clock_offset_ms + sim->now / 1000;
}

void
sim_node_status(const Sim *sim, const SimNode *node, PaxosStatus *status)
{
	paxos_status(node->core, sim_node_clock(sim, node), status);
}

bool
sim_node_is_member(const Sim *sim, uint32_t id)
{
	for (uint32_t i = 0; i < sim->config.member_count; i++)
		if (sim->config.members[i].node_id == id)
			return true;
	return false;
}

void
sim_node_wake_at(Sim *sim, SimNode *node, SimTime at)
{
	if (at < sim->now)
		at = sim->now;
	if (at < node->paused_until)
		at = node->paused_until;
	if (node->wake_at != 0 && node->wake_at <= at)
		return;
	node->wake_at = at;
	sim_schedule(sim, (SimEvent) {.at = at, .kind = SIM_WAKE, .node = node->id, .life = node->life});
}

/*
 * A worker that was killed withdraws nothing, and its stream backends live on for as long as the postmaster needs: no other worker begins before they are
 * gone.  Every other crash is of that kind; a frozen machine's backends say nothing.
 */
static bool
is_dead_worker(const Sim *sim, const SimNode *node)
{
	return node->exists && !node->alive && (sim_mix(sim->seed, node->life) & 1) != 0;
}

/* Beside the loop, as the real host's stream backends do; false: the frame is for the core. */
bool
sim_node_answers(Sim *sim, SimNode *node, const SimFrame *frame)
{
	uint8_t		answer[64];
	size_t		length = 0;

	if ((node->alive || is_dead_worker(sim, node)) && node->frame_version >= 4 && sim_chance(sim, sim->plan.probe_share))
		length = paxos_answer_probe(&node->read_state, frame->from, frame->bytes, frame->length, answer, sizeof(answer));
	if (length == 0)
		return false;
	sim_check(sim, !frame->garbled, "garbled_frame_refused", "a garbled probe is answered, of and by", frame->from, node->id);
	sim->probes_answered++;
	sim_trace(sim, "probed", node->id, frame->from, node->read_state.promised.round, node->read_state.chosen_slot);
	sim_network_send(sim, node->id, frame->from, answer, length, false);
	return true;
}

/* Puts something into the inbox; false if the node is down or the inbox is full, and then the caller keeps the frame. */
bool
sim_node_input(Sim *sim, SimNode *node, SimInput input)
{
	if (!node->alive || node->input_count == SIM_MAX_INPUTS)
		return false;
	if (node->inputs == NULL)
		node->inputs = malloc(SIM_MAX_INPUTS * sizeof(SimInput));
	node->inputs[(node->input_head + node->input_count++) % SIM_MAX_INPUTS] = input;
	sim_node_wake_at(sim, node, sim->now + sim_below(sim, sim->plan.loop_latency + 1));
	return true;
}

void
sim_node_pause(Sim *sim, SimNode *node, SimTime duration)
{
	if (node->paused_until < sim->now + duration)
		node->paused_until = sim->now + duration;
}

/* ---- effects ---- */

static void
send_message(Sim *sim, SimNode *node, const PaxosOutMessage *out)
{
	size_t		size = paxos_message_size(out->message);
	uint8_t    *frame = malloc(size);
	size_t		written = paxos_message_encode(out->message, frame, size);

	sim_check(sim, written == size && size <= PAXOS_MAX_FRAME_BYTES, "encoded_size_is_true",
			  "size and bytes written", size, written);
	sim_check(sim, !sim->nodes[out->to].exists || frame[2] <= sim->nodes[out->to].frame_version, "frame_is_understood",
			  "version and what the receiver understands", frame[2], sim->nodes[out->to].frame_version);
	sim_network_send(sim, node->id, out->to, frame, written, sim_message_teaches(out->message));
	free(frame);
}

/* The slots are gone; a peer that does not understand this is left without an answer. */
static void
answer_trimmed(Sim *sim, SimNode *node, const PaxosCatchUp *wanted)
{
	uint8_t		frame[64];
	size_t		length = paxos_encode_trimmed(node->core, wanted->to, sim_base_slot(node) + 1, frame, sizeof(frame));

	sim_trace(sim, "trimmed", node->id, wanted->to, wanted->first_slot, length);
	sim_check(sim, (length > 0) == (node->frame_version >= 3 && sim->nodes[wanted->to].frame_version >= 3), "frame_is_understood",
			  "answered or not, node", length, wanted->to);
	if (length > 0)
		sim_network_send(sim, node->id, wanted->to, frame, length, true);
}

/* Answers from the journal, as far as one frame goes. */
static void
catch_up(Sim *sim, SimNode *node, const PaxosCatchUp *wanted)
{
	static uint8_t frame[2 * PAXOS_FRAME_TARGET_BYTES];
	PaxosValue *values[PAXOS_MAX_ENTRIES_PER_MESSAGE];
	size_t		count = 0;
	size_t		taken;
	size_t		length = 0;

	sim_check(sim, wanted->first_slot >= 1 && wanted->first_slot <= wanted->last_slot &&
			  wanted->last_slot <= node->delivered, "catch_up_is_delivered", "asks for slots that are not delivered here",
			  wanted->last_slot, node->delivered);
	if (wanted->first_slot <= sim_base_slot(node))
	{
		answer_trimmed(sim, node, wanted);
		return;
	}
	for (PaxosSlot slot = wanted->first_slot; slot <= wanted->last_slot && count < PAXOS_MAX_ENTRIES_PER_MESSAGE; slot++)
	{
		const SimRecord *record = sim_journal_last(node, slot);

		sim_check(sim, record != NULL, "delivered_is_durable", "no record of a delivered slot", slot, node->id);
		values[count++] = sim_value_make(sim, record->value);
	}
	taken = paxos_encode_learn(node->core, wanted->first_slot, values, count, frame, sizeof(frame), &length);
	sim_check(sim, taken >= 1 && taken <= count, "catch_up_is_delivered", "entries taken of entries given", taken, count);
	for (size_t i = 0; i < taken; i++)
		sim_observe_taught(sim, node, wanted->first_slot + i, sim_value_number(sim, values[i]));
	for (size_t i = 0; i < count; i++)
		paxos_value_release(&sim->allocator, values[i]);
	sim_trace(sim, "catch_up", node->id, wanted->to, wanted->first_slot, taken);
	sim_network_send(sim, node->id, wanted->to, frame, length, true);
}

static void
deliver(Sim *sim, SimNode *node, const PaxosEffects *effects)
{
	for (size_t i = 0; i < effects->chosen_count; i++)
		sim_observe_delivered(sim, node, &effects->chosen[i]);
	if (effects->chosen_count > 0)
		sim_reads_advance(sim, node);
}

/* Returns false if the node died over it. */
static bool
carry_out(Sim *sim, SimNode *node, const PaxosEffects *effects)
{
	paxos_read_state(node->core, &node->read_state);
	for (size_t i = 0; i < effects->record_count; i++)
		sim_journal_append(sim, node, &effects->records[i]);
	for (size_t i = 0; i < effects->message_count; i++)
	{
		if (sim->faulty && sim_chance(sim, sim->plan.crash_at_send_chance))
		{
			sim_node_crash(sim, node, sim_below(sim, SIM_MS(4 * sim->plan.election_timeout_ms)));
			return false;
		}
		sim_observe_message(sim, node, &effects->messages[i]);
		send_message(sim, node, &effects->messages[i]);
	}
	for (size_t i = 0; i < effects->catch_up_count; i++)
		catch_up(sim, node, &effects->catch_ups[i]);
	deliver(sim, node, effects);
	if (effects->snapshot_needed != 0)
		sim_snapshot_needed(sim, node, effects->snapshot_needed, effects->snapshot_from);
	for (size_t i = 0; i < effects->read_count; i++)
		sim_read_answered(sim, node, &effects->reads[i]);
	if (effects->next_deadline_ms >= SIM_FOREVER / 1000)
		node->deadline = SIM_FOREVER;
	else if (effects->next_deadline_ms <= sim_node_clock(sim, node))
		node->deadline = sim->now;
	else
		node->deadline = (effects->next_deadline_ms - node->clock_offset_ms) * 1000;
	return true;
}

static bool
step(Sim *sim, SimNode *node, PaxosEvent *event, bool *refused)
{
	PaxosEffects effects;

	memset(&effects, 0, sizeof(effects));
	event->now_ms = sim_node_clock(sim, node);
	event->random = sim_random(sim);
	paxos_step(node->core, event, &effects);
	if (refused != NULL)
		*refused = effects.proposal_refused;
	return carry_out(sim, node, &effects);
}

/* ---- events ---- */

static bool
take_frame(Sim *sim, SimNode *node, SimFrame *frame)
{
	const char *why = NULL;
	const PaxosMessage *message = paxos_message_decode(node->core, frame->bytes, frame->length, &why);
	PaxosEvent	event = {.type = PAXOS_EVENT_MESSAGE, .peer_id = frame->from, .message = message};
	bool		alive = true;

	if (!frame->garbled && frame->bytes[2] > node->frame_version)
	{
		sim_frame_release(frame);	/* sent before it was started with an older build: no such link outlives that */
		return true;
	}
	sim_trace(sim, frame->garbled ? "garbled" : "receive", node->id, frame->from, frame->length, 0);
	if (frame->garbled)
		sim_check(sim, message == NULL && why != NULL, "garbled_frame_refused", "length and sender", frame->length, frame->from);
	else if (message == NULL)
		sim_fail(sim, "garbled_frame_refused", "a good frame was refused: %s", why == NULL ? "?" : why);
	if (message != NULL)
		alive = step(sim, node, &event, NULL);
	sim_frame_release(frame);
	return alive;
}

/* The sequence is given when the core takes the proposal; one that it refuses leaves no gap. */
static bool
take_proposal(Sim *sim, SimNode *node, const SimInput *input)
{
	PaxosProposalId id = {node->id, node->incarnation, node->next_sequence};
	PaxosEvent	event = {
		.type = PAXOS_EVENT_PROPOSAL, .kind = input->value_kind, .sequence = id.sequence,
		.bytes = input->bytes, .length = input->length
	};
	bool		refused = false;
	bool		alive;

	sim_trace(sim, "propose", node->id, id.sequence, input->length, input->value_kind);
	sim_value_add(sim, input->value_kind, id, input->bytes, input->length);
	node->next_sequence++;
	alive = step(sim, node, &event, &refused);
	if (refused)
	{
		sim_trace(sim, "refused", node->id, id.sequence, 0, 0);
		sim_value_forget_last(sim);
		node->next_sequence--;
	}
	free(input->bytes);
	return alive;
}

static bool
take_transfer(Sim *sim, SimNode *node, uint32_t target)
{
	PaxosEvent	event = {.type = PAXOS_EVENT_TRANSFER, .peer_id = target};
	PaxosStatus status;
	bool		alive = step(sim, node, &event, NULL);

	if (!alive)
		return false;
	sim_node_status(sim, node, &status);
	sim->transfers += status.transfer_to != 0;
	sim_trace(sim, "transfer", node->id, target, status.transfer_to, 0);
	return true;
}

static bool
take_input(Sim *sim, SimNode *node, SimInput input)
{
	PaxosEvent	event = {.type = PAXOS_EVENT_TICK};

	switch (input.kind)
	{
		case SIM_INPUT_FRAME:
			return take_frame(sim, node, input.frame);
		case SIM_INPUT_PROPOSAL:
			return take_proposal(sim, node, &input);
		case SIM_INPUT_TRANSFER:
			return take_transfer(sim, node, (uint32_t) input.number);
		case SIM_INPUT_READ:
			event = (PaxosEvent) {.type = PAXOS_EVENT_READ, .read_id = input.number};
			break;
		case SIM_INPUT_PERSISTED:
			event = (PaxosEvent) {
				.type = PAXOS_EVENT_PERSISTED,
				.persisted_record = node->journal.durable - node->journal.recovered
			};
			if (event.persisted_record == node->journal.persisted)
				return true;
			node->journal.persisted = event.persisted_record;
			break;
		case SIM_INPUT_LINK:
			event = (PaxosEvent) {
				.type = PAXOS_EVENT_LINK, .peer_id = (uint32_t) input.number, .link_up = input.link_up
			};
			break;
	}
	return step(sim, node, &event, NULL);
}

/* A node that can't apply must not lead (P9); its host says so between two steps. */
static void
tell_may_lead(Sim *sim, SimNode *node)
{
	bool		may_lead = !sim->faulty || sim->now >= node->banned_until;

	if (may_lead == node->may_lead)
		return;
	node->may_lead = may_lead;
	sim_trace(sim, "may_lead", node->id, may_lead, 0, 0);
	paxos_set_may_lead(node->core, may_lead);
}

void
sim_node_wake(Sim *sim, SimNode *node)
{
	PaxosEvent	tick = {.type = PAXOS_EVENT_TICK};
	PaxosEvent	flush = {.type = PAXOS_EVENT_FLUSH};
	uint32_t	taken;

	node->wake_at = 0;
	if (sim->now < node->paused_until)
	{
		sim_node_wake_at(sim, node, node->paused_until);
		return;
	}
	tell_may_lead(sim, node);
	for (taken = 0; taken < sim->plan.inputs_per_loop && node->input_count > 0; taken++)
	{
		SimInput	input = node->inputs[node->input_head];

		node->input_head = (node->input_head + 1) % SIM_MAX_INPUTS;
		node->input_count--;
		if (!take_input(sim, node, input))
			return;
	}
	if (node->deadline <= sim->now && !step(sim, node, &tick, NULL))
		return;
	if (!step(sim, node, &flush, NULL))
		return;
	sim_journal_start_sync(sim, node);
	sim_observe_status(sim, node);
	if (node->input_count > 0)
		sim_node_wake_at(sim, node, sim->now + 1 + sim->plan.loop_latency);
	if (node->deadline != SIM_FOREVER)
		sim_node_wake_at(sim, node, node->deadline > sim->now ? node->deadline : sim->now + 1000);
}

/* ---- life ---- */

/* Gives a node its journal, with the configuration that it is founded on, and starts it. */
void
sim_node_create(Sim *sim, uint32_t id, PaxosSlot config_slot, uint32_t config_value)
{
	SimNode    *node = &sim->nodes[id];

	if (node->exists)
		return;
	node->exists = true;
	sim_journal_found(sim, node, config_slot, config_value);
	sim_node_start(sim, node);
}

static void
restore(Sim *sim, SimNode *node)
{
	sim_restore_base(sim, node);
	for (size_t i = 0; i < node->journal.count; i++)
	{
		SimRecord	kept = node->journal.records[i];
		PaxosRecord record = {.number = i + 1, .type = kept.type, .slot = kept.slot, .ballot = kept.ballot};
		PaxosEffects effects;

		memset(&effects, 0, sizeof(effects));
		if (kept.type == SIM_RECORD_HOLE)
			continue;
		if (kept.type == PAXOS_RECORD_ACCEPTED || kept.type == PAXOS_RECORD_CONFIG)
			record.value = sim_value_make(sim, kept.value);
		paxos_restore(node->core, &record, &effects);
		sim_check(sim, effects.record_count + effects.message_count + effects.catch_up_count + effects.read_count == 0,
				  "restore_only_delivers", "records and messages", effects.record_count, effects.message_count);
		deliver(sim, node, &effects);
		if (record.value != NULL)
			paxos_value_release(&sim->allocator, record.value);
	}
}

/* Each host tells its core what the others understand, as it learns from their links. */
void
sim_node_set_version(Sim *sim, SimNode *node, uint32_t frame_version)
{
	node->frame_version = frame_version;
	sim_trace(sim, "version", node->id, frame_version, 0, 0);
	for (uint32_t id = 1; id <= SIM_MAX_NODES; id++)
	{
		SimNode    *peer = &sim->nodes[id];
		uint32_t	common = peer->frame_version < frame_version ? peer->frame_version : frame_version;

		if (peer == node || !peer->exists)
			continue;
		if (node->core != NULL)
			paxos_set_peer_version(node->core, id, common);
		if (peer->core != NULL)
			paxos_set_peer_version(peer->core, node->id, common);
	}
}

void
sim_node_start(Sim *sim, SimNode *node)
{
	PaxosSettings settings = {
		.node_id = node->id, .incarnation = ++node->incarnation % 2 == 0 ? 0 : node->incarnation,
		.heartbeat_interval_ms = sim->plan.heartbeat_interval_ms,
		.election_timeout_ms = sim->plan.election_timeout_ms,
		.window_slots = sim->plan.window_slots, .window_bytes = sim->plan.window_bytes,
		.max_outstanding_proposals = sim->plan.max_outstanding,
		.resend_interval_ms = sim->plan.resend_interval_ms
	};
	PaxosEffects effects;

	node->alive = true;
	node->life++;
	memset(&node->read_state, 0, sizeof(node->read_state));
	node->clock_offset_ms = 1 + sim_below(sim, 1000000);
	node->may_lead = true;
	node->next_sequence = sim_chance(sim, SIM_MILLION / 4) ? FAR_SEQUENCE : 1;
	node->read_count = 0;
	node->delivered = 0;
	node->paused_until = 0;
	node->wake_at = 0;
	node->deadline = sim->now;
	node->acknowledged = 0;
	sim_trace(sim, "start", node->id, node->incarnation, node->journal.count, 0);
	sim_observe_recovered(sim, node);
	sim_journal_recover(sim, node);
	node->core = paxos_create(&settings, &sim->allocator);
	restore(sim, node);
	if (settings.incarnation == 0)
		paxos_set_incarnation(node->core, node->incarnation);	/* every other start tells it late */
	sim_node_set_version(sim, node, sim->faulty && sim_chance(sim, sim->plan.old_share) ?
						 PAXOS_OLDEST_FRAME_VERSION + (uint32_t) sim_below(sim, PAXOS_NEWEST_FRAME_VERSION - PAXOS_OLDEST_FRAME_VERSION) :
						 PAXOS_NEWEST_FRAME_VERSION);
	memset(&effects, 0, sizeof(effects));
	paxos_start(node->core, sim_node_clock(sim, node), sim_random(sim), &effects);
	if (!carry_out(sim, node, &effects))
		return;
	sim_journal_start_sync(sim, node);
	sim_node_wake_at(sim, node, node->deadline == SIM_FOREVER ? sim->now + 1000 : node->deadline);
}

/* Takes the node down, for good if down_for is SIM_FOREVER. */
void
sim_node_crash(Sim *sim, SimNode *node, SimTime down_for)
{
	if (!node->alive)
		return;
	sim_trace(sim, "crash", node->id, node->journal.durable, node->journal.count, 0);
	sim->crashes++;
	node->alive = false;
	node->life++;
	paxos_destroy(node->core);
	node->core = NULL;
	while (node->input_count > 0)
	{
		SimInput	input = node->inputs[node->input_head];

		if (input.kind == SIM_INPUT_FRAME)
			sim_frame_release(input.frame);
		else if (input.kind == SIM_INPUT_PROPOSAL)
			free(input.bytes);
		node->input_head = (node->input_head + 1) % SIM_MAX_INPUTS;
		node->input_count--;
	}
	sim_journal_crash(sim, node);
	if (down_for != SIM_FOREVER)
		sim_schedule(sim, (SimEvent) {
			.at = sim->now + down_for, .kind = SIM_RESTART, .node = node->id, .life = node->life
		});
}
