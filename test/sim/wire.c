/*
 * wire.c
 *	  What a message says: hands each claim of a message that goes on the wire to the observer, and names it in the trace.
 *
 * The only file that looks into the core's messages.
 *
 * Invariants
 *	1. Every type is known here; a new one must say what it claims.
 */
#include "sim.h"

#include "consensus/core/message.h"

static const char *const type_names[PAXOS_MESSAGE_TYPE_END] = {
	[PAXOS_MESSAGE_PRE_VOTE] = "PRE_VOTE",
	[PAXOS_MESSAGE_PRE_VOTE_ANSWER] = "PRE_VOTE_ANSWER",
	[PAXOS_MESSAGE_PREPARE] = "PREPARE",
	[PAXOS_MESSAGE_PROMISE] = "PROMISE",
	[PAXOS_MESSAGE_REFUSAL] = "REFUSAL",
	[PAXOS_MESSAGE_ACCEPT] = "ACCEPT",
	[PAXOS_MESSAGE_REPORT] = "REPORT",
	[PAXOS_MESSAGE_HEARTBEAT] = "HEARTBEAT",
	[PAXOS_MESSAGE_LEARN] = "LEARN",
	[PAXOS_MESSAGE_FORWARD] = "FORWARD",
	[PAXOS_MESSAGE_READ_REQUEST] = "READ_REQUEST",
	[PAXOS_MESSAGE_READ_ANSWER] = "READ_ANSWER",
	[PAXOS_MESSAGE_FORWARD_AGAIN] = "FORWARD_AGAIN",
	[PAXOS_MESSAGE_TRIMMED] = "TRIMMED",
	[PAXOS_MESSAGE_HAND_OVER] = "HAND_OVER",
	[PAXOS_MESSAGE_READ_PROBE] = "READ_PROBE"
};

static uint32_t
entry_value(Sim *sim, const PaxosMessageEntry *entry)
{
	return sim_value_find(sim, entry->kind, entry->id, entry->bytes, entry->length);
}

/* A PROMISE covers the slots from first_slot up to the one where it goes on, or all of them. */
static void
observe_promise(Sim *sim, SimNode *from, const PaxosMessage *message)
{
	PaxosSlot	next = message->first_slot;
	PaxosSlot	last = message->flag ? SIM_MILLION : message->resume_slot - 1;

	sim_observe_promise(sim, from, message->ballot);
	for (uint32_t i = 0; i < message->entry_count; i++)
	{
		const PaxosMessageEntry *entry = &message->entries[i];

		sim_observe_told(sim, from, entry->slot, entry->ballot, entry_value(sim, entry));
		if (entry->slot > next)
			sim_observe_not_told(sim, from, next, entry->slot - 1);
		next = entry->slot + 1;
	}
	sim_observe_not_told(sim, from, next, last);
}

/* What is delivered here was checked when it was; so only the rest is looked up. */
static void
observe_report(Sim *sim, SimNode *from, const PaxosMessage *message)
{
	sim_observe_chosen_hint(sim, from, message->delivered_slot);
	if (message->ballot.round == 0)
		return;
	for (PaxosSlot slot = from->delivered + 1; slot <= message->accepted_slot; slot++)
		sim_observe_accepted(sim, from, slot, message->ballot);
	for (uint32_t i = 0; i < message->range_count; i++)
		for (PaxosSlot slot = message->ranges[i].first; slot <= message->ranges[i].last; slot++)
			if (slot > from->delivered)
				sim_observe_accepted(sim, from, slot, message->ballot);
}

static void
observe_claims(Sim *sim, SimNode *from, const PaxosMessage *message)
{
	switch (message->type)
	{
		case PAXOS_MESSAGE_PREPARE:
			sim_observe_prepare(sim, from, message->ballot);
			break;
		case PAXOS_MESSAGE_PROMISE:
			observe_promise(sim, from, message);
			break;
		case PAXOS_MESSAGE_ACCEPT:
			for (uint32_t i = 0; i < message->entry_count; i++)
				sim_observe_proposed(sim, from, message->first_slot + i, message->ballot,
									 entry_value(sim, &message->entries[i]));
			sim_observe_chosen_hint(sim, from, message->chosen_slot);
			break;
		case PAXOS_MESSAGE_REPORT:
			observe_report(sim, from, message);
			break;
		case PAXOS_MESSAGE_HEARTBEAT:
			sim_observe_leading(sim, from, message->ballot);
			sim_observe_chosen_hint(sim, from, message->chosen_slot);
			break;
		case PAXOS_MESSAGE_HAND_OVER:
			sim_observe_leading(sim, from, message->ballot);
			sim_observe_chosen_hint(sim, from, message->chosen_slot);
			break;
		case PAXOS_MESSAGE_FORWARD_AGAIN:
			sim_observe_leading(sim, from, message->ballot);
			break;
		case PAXOS_MESSAGE_LEARN:
			for (uint32_t i = 0; i < message->entry_count; i++)
				sim_observe_taught(sim, from, message->first_slot + i, entry_value(sim, &message->entries[i]));
			break;
		case PAXOS_MESSAGE_FORWARD:
			for (uint32_t i = 0; i < message->entry_count; i++)
				entry_value(sim, &message->entries[i]);
			break;
		case PAXOS_MESSAGE_PRE_VOTE_ANSWER:
		case PAXOS_MESSAGE_REFUSAL:
			sim_observe_chosen_hint(sim, from, message->delivered_slot);
			break;
		case PAXOS_MESSAGE_PRE_VOTE:
		case PAXOS_MESSAGE_READ_REQUEST:
		case PAXOS_MESSAGE_READ_ANSWER:
		case PAXOS_MESSAGE_READ_PROBE:
		case PAXOS_MESSAGE_TRIMMED:
			break;
		default:
			sim_fail(sim, "message_is_known", "type %d", (int) message->type);
	}
}

bool
sim_message_teaches(const PaxosMessage *message)
{
	return message->type == PAXOS_MESSAGE_LEARN;
}

void
sim_observe_message(Sim *sim, SimNode *from, const PaxosOutMessage *out)
{
	const PaxosMessage *message = out->message;
	PaxosSlot	slot = message->first_slot != 0 ? message->first_slot : message->accepted_slot;
	const char *name = message->type > 0 && message->type < PAXOS_MESSAGE_TYPE_END ? type_names[message->type] : NULL;

	sim_trace(sim, name == NULL ? "?" : name, from->id, out->to, message->ballot.round << 8 | message->ballot.node_id,
			  slot << 16 | message->entry_count << 1 | message->flag);
	observe_claims(sim, from, message);
}
