/*
 * transfer.c
 *	  A leader gives its office away: because it was asked to, or because a configuration made it no voter.
 *
 * Process: consensus worker, tests.  Must never decide who leads: the target campaigns as any candidate does, only sooner.
 *
 * The extension is that of Ongaro 2014, section 3.10, in the terms of Paxos:
 *	 1. The leader places no new value.  What is proposed here or forwarded stays with its origin, which sends it to the next leader.
 *	 2. When all that it placed is chosen, and the target has accepted all of it durably, it sends HAND_OVER with its chosen_slot.
 *	 3. The target, which follows this very ballot, learns by that all up to there, and starts phase 1 without asking for pre-votes.  A
 *		pre-vote would fail, for the others hear a leader; a PREPARE is answered by the rules of the acceptor alone, which knows no loyalty.
 *	 4. The old leader is deposed by the PREPARE.  If nothing comes within an election timeout, it goes on as if nothing had been.
 *
 * Why it is safe: the target's phase 1 is the ordinary one.  Its ballot is told after its own promise is durable, it proposes only after a
 * majority promised, and adopts what they report.  Steps 1 and 2 serve speed only: the target is refused by nobody as one that is behind,
 * and finds nothing to adopt.  A HAND_OVER that is late or doubled can cost an election, nothing else; and the target ignores one that it
 * can tell is old: there it has accepted more in that ballot since.
 *
 * A leader that is no voter any more (Ongaro 2014, section 4.2.2) stays leader for a while, but proposes nothing: its configuration is the
 * last thing that it placed (the barrier, proposer.c), and the slots after it belong to a majority that it is no part of.  It tells the
 * others that the configuration is chosen, hands over to the one that is most advanced once a majority of the new voters knows, and steps
 * down.  Without that the last voters of a pair could wait for each other: who does not know that the other is gone needs its vote.
 *
 * Invariants
 *	 1. transfer_to is 0 unless this node leads and is a voter.
 *	 2. Only voters that understand HAND_OVER are targets; a learner never campaigns (may_campaign).
 */
#include "paxos_internal.h"

static bool
understands(const PaxosCore *core, const Peer *peer)
{
	return core_peer_version(core, peer->node_id) >= message_first_version(PAXOS_MESSAGE_HAND_OVER);
}

static bool
may_take_over(const PaxosCore *core, const Peer *peer)
{
	return peer->is_voter && peer->is_known && peer->link_up &&
		is_within(peer->answered_ms, core->now_ms, core->settings.election_timeout_ms) && understands(core, peer);
}

/* The voter that has accepted most; of those, the one that has delivered most, then the nearest. */
static bool
is_better(const Peer *peer, const Peer *than)
{
	if (than == NULL || peer->accepted_slot != than->accepted_slot)
		return than == NULL || peer->accepted_slot > than->accepted_slot;
	if (peer->delivered_slot != than->delivered_slot)
		return peer->delivered_slot > than->delivered_slot;
	return peer->round_trip_ms < than->round_trip_ms;
}

static Peer *
best_target(PaxosCore *core)
{
	Peer	   *best = NULL;

	for (uint32_t i = 0; i < core->config.member_count; i++)
	{
		Peer	   *peer = &core->peers[i];

		if ((int) i != core->self_index && may_take_over(core, peer) && is_better(peer, best))
			best = peer;
	}
	return best;
}

static void
send_hand_over(PaxosCore *core, const Peer *target)
{
	PaxosMessage *hand_over = core_new_message(core, PAXOS_MESSAGE_HAND_OVER);

	hand_over->ballot = core->ballot;
	hand_over->chosen_slot = core->chosen_slot;
	core_send(core, target->node_id, hand_over);
	core->hand_over_ms = core->now_ms + core->settings.resend_interval_ms;
}

/* ---- asked for ---- */

void
transfer_on_event(PaxosCore *core, uint32_t target_id)
{
	Peer	   *target = target_id == 0 ? best_target(core) : config_peer(core, target_id);

	if (is_leader(core) && core->transfer_to != 0 && (target_id == 0 || target_id == core->transfer_to))
		return;					/* it is under way */
	if (!is_leader(core) || !core->is_ready || core->transfer_to != 0 || core->barrier_slot != 0 || core->waiting_config != NULL ||
		target == NULL || !may_take_over(core, target))
	{
		core->transfer_refused = true;
		return;
	}
	core->transfer_to = target->node_id;
	core->transfer_deadline_ms = core->now_ms + core->settings.election_timeout_ms;
	core->hand_over_ms = core->now_ms;
	core->send_due = true;
}

/* Step 2: everything that was placed is chosen, and the target has it. */
static bool
may_hand_over(const PaxosCore *core, const Peer *target)
{
	return core->adopted_slot < core->next_slot && core->chosen_slot + 1 == core->next_slot &&
		target->is_known && target->accepted_slot >= core->chosen_slot;
}

/* NULL: it cannot be one any more, as when it was started anew with an older build. */
static const Peer *
target_of(const PaxosCore *core)
{
	int			index = config_find(&core->config, core->transfer_to);
	const Peer *target = index < 0 ? NULL : &core->peers[index];

	return target != NULL && target->is_voter && understands(core, target) ? target : NULL;
}

static void
give_up(PaxosCore *core)
{
	core->transfer_to = 0;
	core->send_due = true;
	proposer_place(core);		/* what waited */
}

/* ---- no voter any more ---- */

bool
transfer_is_retiring(const PaxosCore *core)
{
	return is_leader(core) && !config_self_is_voter(core);
}

void
transfer_begin_retirement(PaxosCore *core)
{
	core->transfer_to = 0;
	core->is_ready = false;		/* reads are the next leader's, and nobody should propose here */
	core->retire_deadline_ms = core->now_ms + core->settings.election_timeout_ms;
	core->heartbeat_deadline_ms = core->now_ms;
	core->send_due = true;
}

static void
retire(PaxosCore *core)
{
	const Peer *successor = NULL;
	uint32_t	told = 0;

	for (uint32_t i = 0; i < core->config.member_count; i++)
	{
		const Peer *peer = &core->peers[i];

		if ((int) i == core->self_index || !peer->is_known || peer->delivered_slot < core->config.slot)
			continue;
		told |= 1u << i;
		if (may_take_over(core, peer) && is_better(peer, successor))
			successor = peer;
	}
	if (!config_is_quorum(core, told))
		return;
	if (successor != NULL)
		send_hand_over(core, successor);
	election_step_down(core);
}

/* ---- time ---- */

void
transfer_flush(PaxosCore *core)
{
	const Peer *target;

	if (transfer_is_retiring(core))
	{
		retire(core);
		return;
	}
	if (core->transfer_to == 0)
		return;
	target = target_of(core);
	if (target == NULL || core->now_ms >= core->transfer_deadline_ms)
		give_up(core);
	else if (may_hand_over(core, target) && core->now_ms >= core->hand_over_ms)
		send_hand_over(core, target);
}

uint64_t
transfer_deadline(const PaxosCore *core)
{
	const Peer *target;

	if (transfer_is_retiring(core))
		return core->retire_deadline_ms;
	if (core->transfer_to == 0)
		return UINT64_MAX;
	target = target_of(core);
	if (target != NULL && may_hand_over(core, target))
		return min_u64(core->hand_over_ms, core->transfer_deadline_ms);
	return core->transfer_deadline_ms;
}
