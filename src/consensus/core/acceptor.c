/*
 * acceptor.c
 *	  The acceptor of "Paxos Made Simple", section 2.2: what it promises, what it accepts, and when it may say so.
 *
 * Process: consensus worker, tests.  Must never tell anyone a promise or an acceptance that is not durable.
 *
 * Invariants
 *	 1. P1a: a ballot is accepted only if no higher one is promised.  promised_ballot never falls, and recovery finds at least what was
 *		told: the maximum of the PROMISE and ACCEPTED records.
 *	 2. PROMISE and REPORT are made only from what stands in records up to persisted_record.  A volatile rise of promised_ballot (a
 *		leader's higher ballot was heard) is told to nobody as a promise.
 *	 3. An acceptor that knows the value chosen in a slot may answer an ACCEPT of a ballot b >= promised_ballot with "accepted"
 *		without looking at the value.  Why that is safe: say the value v was chosen in ballot c, and b carries w != v.  Then
 *		b < c, for ballots above c carry v.  Assume that a majority Q seems to have accepted (b, w), some of it without
 *		looking.  The majority P that made phase 1 of c shares a node Y with Q.  If Y did not look, it knew v as chosen, which
 *		was after phase 1 of c, so it had promised c > b and would have refused b.  So Y really accepted (b, w) before
 *		it promised c, and c took the value of the highest ballot k, b <= k < c, that its majority reported.  That value is v, not w,
 *		so k > b; and phase 1 of k was before v was chosen too, so the same holds of k in place of c, and again, without
 *		end.  But ballots are finite: so Q is no majority.
 *	 4. report_slot counts from delivered_slot upwards what is accepted in leader_ballot, or known as chosen, and durable.
 */
#include "paxos_internal.h"

#include <string.h>

bool
acceptor_is_durable(const PaxosCore *core, const Slot *entry)
{
	return entry->value != NULL && entry->record_number <= core->persisted_record;
}

/* flag: the proposer is behind; otherwise `promised` tells it what stands in its way. */
void
acceptor_refuse(PaxosCore *core, uint32_t to, PaxosBallot ballot, bool is_behind)
{
	PaxosMessage *refusal = core_new_message(core, PAXOS_MESSAGE_REFUSAL);

	refusal->ballot = ballot;
	refusal->promised = core->promised_ballot;
	refusal->delivered_slot = core->delivered_slot;
	refusal->flag = is_behind;
	core_send(core, to, refusal);
}

/* ---- phase 1 ---- */

void
acceptor_promise(PaxosCore *core, PaxosBallot ballot)
{
	PAXOS_ASSERT(paxos_ballot_compare(ballot, core->promised_ballot) >= 0);
	core->promised_ballot = ballot;
	memset(&core->promise, 0, sizeof(core->promise));
	core->promise.ballot = ballot;
	core->promise.record_number = core_emit_record(core, PAXOS_RECORD_PROMISE, 0, ballot, NULL);
}

/*
 * Phase 1b: the promise, with the accepted values from the asked slot on, as many as fit a frame.  Values that are not yet
 * durable are among them: they were accepted before the promise, and their records stand before its record.
 */
static void
send_promise(PaxosCore *core)
{
	PendingPromise *pending = &core->promise;
	PaxosSlot	slot = max_u64(pending->first_slot, pending->resume_slot);
	PaxosMessage *promise;
	PaxosMessageEntry *entries;
	size_t		bytes = PAXOS_FRAME_OVERHEAD_BYTES;

	if (slot < core->window.base_slot)
	{
		/* Delivered and dropped since it asked: it must learn them first. */
		acceptor_refuse(core, pending->to, pending->ballot, true);
		pending->to = 0;
		return;
	}
	promise = core_new_message(core, PAXOS_MESSAGE_PROMISE);
	entries = arena_allocate(core, PAXOS_MAX_ENTRIES_PER_MESSAGE * sizeof(PaxosMessageEntry));
	promise->ballot = pending->ballot;
	promise->first_slot = slot;
	promise->delivered_slot = core->delivered_slot;
	promise->incarnation = core->settings.incarnation;
	promise->durable_position = core->durable_position;
	promise->entries = entries;
	for (; slot <= core->window.max_accepted_slot; slot++)
	{
		Slot	   *entry = window_get(core, slot);
		size_t		entry_bytes;

		if (entry == NULL || entry->value == NULL)
			continue;
		entry_bytes = message_entry_size(PAXOS_MESSAGE_PROMISE, entry->value->length);
		if (promise->entry_count > 0 && (bytes + entry_bytes > PAXOS_FRAME_TARGET_BYTES ||
										 promise->entry_count == PAXOS_MAX_ENTRIES_PER_MESSAGE))
			break;
		core_fill_entry(&entries[promise->entry_count++], slot, entry->accepted_ballot, entry->value);
		bytes += entry_bytes;
	}
	promise->flag = slot > core->window.max_accepted_slot;
	promise->resume_slot = slot;
	core_send(core, pending->to, promise);
	pending->to = 0;
}

/*
 * A proposer that has delivered less than this node is refused and taught: it would propose in slots whose values may already
 * have left the window here, and could not be told of them.
 */
void
acceptor_on_prepare(PaxosCore *core, uint32_t from, const PaxosMessage *message)
{
	int			order = paxos_ballot_compare(message->ballot, core->promised_ballot);
	Peer	   *peer = config_peer(core, from);

	if (message->ballot.node_id != from)
		return;
	election_saw_round(core, message->ballot);
	if (order < 0)
	{
		acceptor_refuse(core, from, message->ballot, false);
		return;
	}
	if (message->first_slot <= core->delivered_slot)
	{
		acceptor_refuse(core, from, message->ballot, true);
		if (peer != NULL && !is_leader(core))
		{
			peer->delivered_slot = message->first_slot - 1;
			peer->teach_wanted = true;
			learner_teach_if_wanted(core, peer);
		}
		return;
	}
	if (order > 0)
		election_step_down(core);
	if (!ballot_equal(core->promise.ballot, message->ballot))
		acceptor_promise(core, message->ballot);
	core->promise.to = from;
	core->promise.first_slot = message->first_slot;
	core->promise.resume_slot = message->resume_slot;
	if (core->promise.record_number <= core->persisted_record)
		send_promise(core);
}

/* ---- phase 2 ---- */

/* Writes the acceptance down.  The leader's own acceptances and learned values come here as well. */
void
acceptor_accept(PaxosCore *core, Slot *entry, PaxosBallot ballot, PaxosValue *value)
{
	PendingAcceptance *pending;

	window_set_accepted(core, entry, ballot, value);
	entry->record_number = core_emit_record(core, PAXOS_RECORD_ACCEPTED, entry->slot, ballot, value);
	pending = vector_add(core, &core->pending_acceptances, sizeof(PendingAcceptance));
	pending->record_number = entry->record_number;
	pending->slot = entry->slot;
	pending->ballot = ballot;
}

/* An acceptance beyond report_slot that the leader should hear of. */
static void
report_range(PaxosCore *core, PaxosSlot slot)
{
	PaxosSlotRange *range;

	core->report_due = true;
	if (slot <= core->report_slot)
		return;
	if (core->report_range_count > 0)
	{
		range = &core->report_ranges[core->report_range_count - 1];
		if (slot >= range->first && slot <= range->last)
			return;
		if (slot == range->last + 1)
		{
			range->last = slot;
			return;
		}
	}
	if (core->report_range_count == PAXOS_MAX_RANGES)
		return;					/* the leader sends it again, and is then told */
	range = &core->report_ranges[core->report_range_count++];
	range->first = range->last = slot;
}

static void
accept_entry(PaxosCore *core, PaxosBallot ballot, const PaxosMessageEntry *proposed)
{
	PaxosSlot	slot = proposed->slot;
	Slot	   *entry;
	PaxosValue *value;

	if (slot <= core->delivered_slot)
		return;					/* the report's delivered_slot is the answer: invariant 3 */
	if (slot > window_last_slot(core))
		return;					/* no room before older slots are delivered; it comes again */
	entry = window_open(core, slot);
	if (entry->value != NULL && (entry->chosen || ballot_equal(entry->accepted_ballot, ballot)))
	{
		/* A repetition, or invariant 3. */
		if (acceptor_is_durable(core, entry))
			report_range(core, slot);
		return;
	}
	if (entry->value != NULL && value_equals_entry(entry->value, proposed))
		value = paxos_value_retain(entry->value);
	else if (window_make_room(core, slot, proposed->length))
		value = core_value_from_entry(core, proposed);
	else
		return;
	acceptor_accept(core, entry, ballot, value);
}

/* May this message of a leader be followed?  Refuses it if not. */
static bool
follow(PaxosCore *core, uint32_t from, PaxosBallot ballot)
{
	if (ballot.node_id != from)
		return false;
	if (paxos_ballot_compare(ballot, core->promised_ballot) < 0)
	{
		acceptor_refuse(core, from, ballot, false);
		return false;
	}
	election_heard_leader(core, from, ballot);
	return true;
}

/* Phase 2b, its first half: the answer is made when the records are durable. */
void
acceptor_on_accept(PaxosCore *core, uint32_t from, const PaxosMessage *message)
{
	if (!follow(core, from, message->ballot))
		return;
	for (uint32_t i = 0; i < message->entry_count; i++)
		accept_entry(core, message->ballot, &message->entries[i]);
	core->leader_chosen_slot = max_u64(core->leader_chosen_slot, message->chosen_slot);
	learner_advance(core);
	if (core->pending_head == core->pending_acceptances.count)
		core->report_due = true;	/* nothing to wait for */
	core->send_due |= core->report_due;
}

void
acceptor_on_heartbeat(PaxosCore *core, uint32_t from, const PaxosMessage *message)
{
	if (!follow(core, from, message->ballot))
		return;
	core->leader_chosen_slot = max_u64(core->leader_chosen_slot, message->chosen_slot);
	core->leader_served_ms = message->serves ? core->now_ms : 0;
	core->leader_tells_delivered = message_tells_delivered(message);
	core->leader_delivered_by_all = message->delivered_slot;
	learner_advance(core);
	if (message->flag)
	{
		core->report_round = max_u64(core->report_round, message->round);
		core->report_sent_ms = message->sent_ms;
		core->report_due = true;
		core->send_due = true;
	}
}

/* ---- what is durable, and its report ---- */

/* Another ballot leads: what was accepted in the old one says nothing in the new one. */
void
acceptor_reset_report(PaxosCore *core)
{
	core->report_slot = core->delivered_slot;
	core->report_range_count = 0;
	core->report_round = 0;
	core->report_sent_ms = 0;
	core->report_due = false;
}

static void
advance_report_slot(PaxosCore *core)
{
	core->report_slot = max_u64(core->report_slot, core->delivered_slot);
	for (;;)
	{
		Slot	   *entry = window_get(core, core->report_slot + 1);

		if (entry == NULL || !acceptor_is_durable(core, entry) ||
			(!entry->chosen && !ballot_equal(entry->accepted_ballot, core->leader_ballot)))
			break;
		core->report_slot++;
	}
}

/* Phase 2b, its second half. */
void
acceptor_send_report(PaxosCore *core)
{
	PaxosMessage *report;

	core->report_due = false;
	if (core->leader_id == 0 || core->leader_id == core->settings.node_id)
		return;
	PAXOS_ASSERT(ballot_equal(core->leader_ballot, core->promised_ballot));
	advance_report_slot(core);
	report = core_new_message(core, PAXOS_MESSAGE_REPORT);
	report->ballot = core->leader_ballot;
	report->accepted_slot = core->report_slot;
	report->delivered_slot = core->delivered_slot;
	report->incarnation = core->settings.incarnation;
	report->durable_position = core->durable_position;
	report->round = core->report_round;
	report->sent_ms = core->report_sent_ms;
	for (uint32_t i = 0; i < core->report_range_count; i++)
		if (core->report_ranges[i].last > core->report_slot)
			report->ranges[report->range_count++] = core->report_ranges[i];
	core->report_range_count = 0;
	core->report_sent_ms = 0;
	core_send(core, core->leader_id, report);
}

static void
acceptance_is_durable(PaxosCore *core, const PendingAcceptance *pending)
{
	Slot	   *entry = window_get(core, pending->slot);

	if (entry == NULL || entry->record_number != pending->record_number)
		return;					/* another ballot was accepted meanwhile; its own record counts */
	if (is_leader(core))
	{
		if (ballot_equal(pending->ballot, core->ballot) && core->self_index >= 0)
			proposer_vote(core, entry, core->self_index);
	}
	else if (ballot_equal(pending->ballot, core->leader_ballot) || entry->chosen)
		report_range(core, pending->slot);
}

/* Works off the acceptances that became durable; what is done is cut off once it is most of the queue. */
static void
settle_acceptances(PaxosCore *core)
{
	Vector	   *queue = &core->pending_acceptances;
	PendingAcceptance *pending = queue->items;

	while (core->pending_head < queue->count && pending[core->pending_head].record_number <= core->persisted_record)
		acceptance_is_durable(core, &pending[core->pending_head++]);
	if (core->pending_head > queue->count / 2)
	{
		queue->count -= core->pending_head;
		memmove(pending, pending + core->pending_head, queue->count * sizeof(PendingAcceptance));
		core->pending_head = 0;
	}
}

void
acceptor_persisted(PaxosCore *core, uint64_t record_number)
{
	PendingPromise *promise = &core->promise;

	PAXOS_ASSERT(record_number <= core->last_record);
	if (record_number <= core->persisted_record)
		return;
	core->persisted_record = record_number;
	if (promise->record_number != 0 && promise->record_number <= record_number &&
		ballot_equal(promise->ballot, core->promised_ballot))
	{
		if (promise->to != 0)
			send_promise(core);
		if (promise->ballot.node_id == core->settings.node_id)
			election_own_promise_durable(core);
	}
	advance_report_slot(core);
	settle_acceptances(core);
	learner_advance(core);
	if (core->report_due)
		acceptor_send_report(core);
	learner_report_to_teacher(core);
}
