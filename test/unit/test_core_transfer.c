/*
 * test_core_transfer.c
 *	  Leaders that go because they were asked to, or because they are no voters any more: without an election timeout, and without loss.
 *
 * A frame takes a millisecond; the election timeout is 100 to 200.
 */
#include "core_cluster.h"

#define SOON_MS 20				/* far less than an election timeout */

static uint32_t
other_node(uint32_t first, uint32_t nth)
{
	return (first - 1 + nth) % 3 + 1;
}

static void
run_until_led_by(uint32_t id, int limit_ms)
{
	for (int i = 0; i < limit_ms && leader() != id; i++)
		run(1);
}

static void
leader_hands_over(bool named)
{
	uint32_t	first;
	uint32_t	target;
	uint64_t	before_ms;

	start_cluster(3, 64);
	first = run_until_leader();
	target = other_node(first, 2);
	run(100);
	if (!named)
		isolate(other_node(first, 1), true);
	run(20);
	for (int i = 0; i < 20; i++)
	{
		propose(first, "in flight");
		propose(target, "forwarded");
	}
	run(1);
	before_ms = cluster.now_ms;
	transfer(first, named ? target : 0);
	ok(!cluster.nodes[first].transfer_refused && status_of(first).transfer_to == target, named ? "a leader takes the order" :
	   "without a target it chooses one that is reachable");
	for (int i = 0; i < 20; i++)
		propose(first, "queued");
	ok(!cluster.nodes[first].refused, "what is proposed meanwhile is kept");
	run_until_led_by(target, 1000);
	ok(leader() == target && cluster.now_ms - before_ms < SOON_MS, "the target leads long before an election timeout");
	ok(status_of(first).transfer_to == 0, "the transfer is over");
	ok(cluster.nodes[target].sent[PAXOS_MESSAGE_PRE_VOTE] == 0 || named == false, "nobody was asked for a pre-vote");
	run(100);
	ok(times_effective(target, "in flight") == 20 && times_effective(target, "queued") == 20 && times_effective(target, "forwarded") == 20 &&
	   same_log(first, target), "nothing was lost, nothing took effect twice");
	stop_cluster();
}

static void
orders_that_cannot_be_carried_out(void)
{
	PaxosConfig with_learner = make_config(3, 1);
	PaxosConfig same = make_config(3, 1);
	uint32_t	first;

	start_cluster(3, 64);
	first = run_until_leader();
	run(50);
	transfer(other_node(first, 1), first);
	ok(cluster.nodes[other_node(first, 1)].transfer_refused, "only a leader hands over");
	transfer(first, 5);
	ok(cluster.nodes[first].transfer_refused, "a stranger is no target");
	transfer(first, first);
	ok(cluster.nodes[first].transfer_refused, "nor is the leader itself");
	propose_config(first, &with_learner);
	run(50);
	bootstrap_node(4, &with_learner);
	run(200);
	ok(status_of(4).delivered_slot == status_of(first).delivered_slot, "a learner has all");
	transfer(first, 4);
	ok(cluster.nodes[first].transfer_refused, "and is no target, being no voter");
	paxos_set_peer_version(cluster.nodes[first].core, other_node(first, 1), 2);
	transfer(first, other_node(first, 1));
	ok(cluster.nodes[first].transfer_refused, "nor is a voter that does not understand it");
	propose_config(first, &same);
	ok(!cluster.nodes[first].refused, "a configuration is under way");
	transfer(first, other_node(first, 2));
	ok(cluster.nodes[first].transfer_refused, "so nothing is handed over");
	run(100);
	isolate(other_node(first, 2), true);
	run(200);
	transfer(first, other_node(first, 2));
	ok(cluster.nodes[first].transfer_refused, "a voter that does not answer is no target");
	transfer(first, 0);
	ok(cluster.nodes[first].transfer_refused, "and if none is left, nobody is");
	stop_cluster();
}

static void
leader_goes_on_if_nothing_happens(void)
{
	PaxosConfig next = make_config(3, 1);
	uint32_t	first;
	uint32_t	target;

	start_cluster(3, 64);
	first = run_until_leader();
	target = other_node(first, 1);
	run(50);
	paxos_set_may_lead(cluster.nodes[target].core, false);
	transfer(first, target);
	propose(first, "waits");
	propose(target, "waits there");
	propose_config(first, &next);
	ok(cluster.nodes[first].refused, "a configuration is refused during a transfer");
	run(50);
	ok(times_effective(first, "waits") == 0 && leader() == first, "nothing new is placed during a transfer");
	run(100);
	ok(leader() == first && status_of(first).transfer_to == 0, "a leader whose target does not campaign goes on after an election timeout");
	ok(times_effective(first, "waits") == 1 && times_effective(first, "waits there") == 1, "with what waited");
	transfer(first, 0);
	ok(!cluster.nodes[first].transfer_refused, "and takes another order");
	stop_cluster();
}

/* Its disk is slow: as a leader it would be refused by those who have delivered more. */
static void
lagging_target_is_waited_for(void)
{
	uint32_t	first;
	uint32_t	target;

	start_cluster(3, 64);
	first = run_until_leader();
	target = other_node(first, 1);
	run(50);
	cluster.nodes[target].disk_is_held = true;
	for (int i = 0; i < 5; i++)
		propose(first, "not yet there");
	transfer(first, target);
	run(50);
	ok(times_effective(first, "not yet there") == 5 && cluster.nodes[first].sent[PAXOS_MESSAGE_HAND_OVER] == 0,
	   "nothing is handed over before the target has accepted everything");
	cluster.nodes[target].disk_is_held = false;
	run(SOON_MS);
	ok(leader() == target && same_log(first, target), "then it is");
	stop_cluster();
}

static void
target_that_becomes_an_old_build(void)
{
	uint32_t	first;
	uint32_t	target;

	start_cluster(3, 64);
	first = run_until_leader();
	target = other_node(first, 1);
	run(50);
	cluster.nodes[target].disk_is_held = true;
	propose(first, "before");
	transfer(first, target);
	run(5);
	paxos_set_peer_version(cluster.nodes[first].core, target, 2);
	cluster.nodes[target].disk_is_held = false;
	propose(first, "after");
	run(50);
	ok(leader() == first && status_of(first).transfer_to == 0 && times_effective(first, "after") == 1,
	   "a target that is started with an older build meanwhile is let go");
	stop_cluster();
}

/* It has accepted more in that ballot than the message knows of: the leader went on long ago. */
static void
late_hand_over_is_ignored(void)
{
	PaxosMessage hand_over = {.type = PAXOS_MESSAGE_HAND_OVER, .version = 3};
	uint32_t	first;
	uint32_t	target;

	start_cluster(3, 64);
	first = run_until_leader();
	target = other_node(first, 1);
	propose(first, "one");
	run(100);
	hand_over.ballot = status_of(first).ballot;
	hand_over.chosen_slot = status_of(first).chosen_slot;
	propose(first, "two");
	run(2);
	ok(status_of(target).delivered_slot == hand_over.chosen_slot && status_of(target).accepted_slot > hand_over.chosen_slot,
	   "the target has accepted more than it knows as chosen");
	inject(first, target, &hand_over);
	run(100);
	ok(leader() == first, "a hand-over that was overtaken starts no election");
	inject(first, target, &hand_over);
	run(100);
	ok(leader() == first, "nor does one that is older than what is chosen");
	hand_over.chosen_slot = status_of(first).chosen_slot;
	inject(other_node(first, 2), target, &hand_over);
	run(100);
	ok(leader() == first, "nor one of somebody else");
	hand_over.ballot.round++;
	inject(first, target, &hand_over);
	run(100);
	ok(leader() == first, "nor one of another ballot");
	stop_cluster();
}

/* A promise that is not durable is told to nobody, in a hurry either. */
static void
target_syncs_its_promise_first(void)
{
	uint32_t	first;
	uint32_t	target;

	start_cluster(3, 64);
	first = run_until_leader();
	target = other_node(first, 1);
	run(50);
	cluster.nodes[target].disk_is_held = true;
	transfer(first, target);
	run(10);
	ok(status_of(target).role == PAXOS_CANDIDATE && cluster.nodes[target].sent[PAXOS_MESSAGE_PREPARE] == 0,
	   "a target whose disk stands still campaigns for itself only");
	stop_node(target);
	start_node(target);
	ok(status_of(target).ballot.round == status_of(first).ballot.round || status_of(target).ballot.round == 0, "and may forget it");
	cluster.nodes[target].disk_is_held = false;
	run(300);
	propose(first, "after");
	run(300);
	ok(leader() != 0 && times_effective(leader(), "after") == 1, "one of them leads");
	stop_cluster();
}

static void
removed_leader_hands_over(bool demoted)
{
	PaxosConfig rest = make_config(3, 0);
	uint32_t	first;
	uint32_t	next = 0;
	uint64_t	before_ms;

	start_cluster(3, 64);
	first = run_until_leader();
	if (demoted)
		rest.members[first - 1].is_voter = false;
	else
	{
		rest.members[first - 1] = rest.members[2];
		rest.member_count = 2;
	}
	run(50);
	before_ms = cluster.now_ms;
	propose_config(first, &rest);
	for (int i = 0; i < 10; i++)
		propose(first, "queued");
	while (cluster.now_ms - before_ms < 1000 && (leader() == 0 || leader() == first))
		run(1);
	next = leader();
	ok(next != 0 && next != first && cluster.now_ms - before_ms < SOON_MS, demoted ? "a leader that becomes a learner hands over" :
	   "a leader that is removed hands over");
	ok(status_of(first).role == PAXOS_LEARNER && status_of(first).config.member_count == (demoted ? 3 : 2), "and knows what it is");
	ok(status_of(next).voter_count == 2 && status_of(next).quorum_size == 2, "two voters are left, and needed");
	run(100);
	if (demoted)
		ok(times_effective(next, "queued") == 10 && same_log(first, next), "what was queued goes to the next leader");
	propose(next, "without it");
	run(500);
	ok(times_effective(next, "without it") == 1 && leader() == next, "the others go on undisturbed");
	stop_cluster();
}

/* Two voters, one of them removed: the one that is left is told before the leader goes, or it would need the other's vote. */
static void
leader_of_two_leaves(void)
{
	PaxosConfig rest = make_config(2, 0);
	uint32_t	first;

	start_cluster(2, 64);
	first = run_until_leader();
	rest.members[0].node_id = 3 - first;
	rest.member_count = 1;
	run(50);
	cluster.cut[3 - first][first] = true;	/* what the other says is lost for a moment */
	propose_config(first, &rest);
	run(30);
	cluster.cut[3 - first][first] = false;
	run(200);
	ok(leader() == 3 - first && status_of(first).role == PAXOS_LEARNER, "of two voters one can leave, the leader too");
	stop_node(first);
	propose(3 - first, "alone");
	run(20);
	ok(times_effective(3 - first, "alone") == 1, "and the other goes on alone");
	stop_cluster();
}

/* It was away when it was removed: it campaigns in the old configuration, is refused, and learns why. */
static void
removed_voter_disturbs_nobody(void)
{
	PaxosConfig rest = make_config(3, 0);
	PaxosBallot ballot;
	uint32_t	first;
	uint32_t	gone;

	start_cluster(3, 64);
	first = run_until_leader();
	gone = other_node(first, 1);
	rest.members[gone - 1] = rest.members[2];
	rest.member_count = 2;
	run(50);
	isolate(gone, true);
	propose_config(first, &rest);
	run(100);
	propose(first, "without it");
	run(1000);
	ballot = status_of(first).ballot;
	ok(leader() == first && status_of(gone).role == PAXOS_CANDIDATE, "a voter that was removed while it was away wants to lead");
	isolate(gone, false);
	run(1000);
	ok(leader() == first && paxos_ballot_compare(status_of(first).ballot, ballot) == 0, "nobody grants it anything");
	ok(status_of(gone).role == PAXOS_LEARNER && status_of(gone).config.member_count == 2, "it learns that it was removed");
	stop_cluster();
}

int
main(void)
{
	leader_hands_over(true);
	leader_hands_over(false);
	orders_that_cannot_be_carried_out();
	leader_goes_on_if_nothing_happens();
	lagging_target_is_waited_for();
	target_that_becomes_an_old_build();
	late_hand_over_is_ignored();
	target_syncs_its_promise_first();
	removed_leader_hands_over(false);
	removed_leader_hands_over(true);
	leader_of_two_leaves();
	removed_voter_disturbs_nobody();
	return tap_done();
}
