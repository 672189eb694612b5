/*
 * test_core_election.c
 *	  Leaders come and go: what they adopt, who may become one, when one stops, and what reads may be told.
 */
#include "core_cluster.h"

static uint32_t
other_than(uint32_t a, uint32_t b)
{
	for (uint32_t id = 1; id <= 3; id++)
		if (id != a && id != b)
			return id;
	abort();
}

static void
new_leader_adopts_accepted_values(void)
{
	uint32_t	old;
	uint32_t	holder;
	uint32_t	third;
	size_t		before;

	start_cluster(3, 64);
	old = run_until_leader();
	holder = old % 3 + 1;
	third = other_than(old, holder);
	propose(old, "first");
	run(20);
	before = cluster.nodes[old].delivered_count;
	cluster.cut[old][third] = cluster.cut[holder][old] = true;
	cluster.nodes[old].disk_is_held = true;
	propose(old, "accepted by one");
	run(5);
	ok(cluster.nodes[old].delivered_count == before, "one acceptor of three is no majority");
	isolate(old, true);
	run(1000);
	ok(times_effective(holder, "accepted by one") == 1 && times_effective(third, "accepted by one") == 1,
	   "a new leader adopts a value that one of its majority has accepted");
	isolate(old, false);
	cluster.nodes[old].disk_is_held = false;
	run(500);
	ok(same_log(1, 2) && same_log(2, 3), "the old leader follows");
	stop_cluster();
}

static void
gap_is_filled_by_a_noop(void)
{
	PaxosMessageEntry entry = {.kind = PAXOS_VALUE_DATA, .id = {9, 1, 1}, .bytes = (const uint8_t *) "after", .length = 5};
	PaxosMessage accept = {.type = PAXOS_MESSAGE_ACCEPT, .first_slot = 2, .entry_count = 1, .entries = &entry};
	uint32_t	old;
	uint32_t	holder;

	start_cluster(3, 64);
	old = run_until_leader();
	holder = old % 3 + 1;
	/* the frame with slot 1 was lost */
	accept.ballot = status_of(old).ballot;
	isolate(old, true);
	cluster.cut[old][holder] = false;
	inject(old, holder, &accept);
	isolate(old, true);
	run(1000);
	ok(cluster.nodes[holder].delivered_count == 2 && cluster.nodes[holder].delivered[0].value->kind == PAXOS_VALUE_NOOP,
	   "a gap below an accepted value becomes a no-op");
	ok(delivered_text(holder, 2, "after"), "and the value after it is kept");
	stop_cluster();
}

static void
pre_vote_protects_a_living_leader(void)
{
	PaxosMessage question = {.type = PAXOS_MESSAGE_PRE_VOTE, .first_slot = 1};
	PaxosBallot ballot;
	uint32_t	first;
	uint32_t	away;
	uint32_t	third;
	unsigned	promises;

	start_cluster(3, 64);
	first = run_until_leader();
	away = first % 3 + 1;
	third = other_than(first, away);
	run(50);
	ballot = status_of(first).ballot;
	question.ballot = (PaxosBallot) {50, away};
	promises = cluster.nodes[third].sent[PAXOS_MESSAGE_PROMISE];
	inject(away, third, &question);
	ok(paxos_ballot_compare(status_of(third).ballot, ballot) == 0 && cluster.nodes[third].sent[PAXOS_MESSAGE_PROMISE] == promises,
	   "a question does not raise the promised ballot");
	isolate(away, true);
	run(2000);
	ok(status_of(away).role == PAXOS_CANDIDATE && status_of(away).elections_started == 0,
	   "a node that is cut off asks, and starts no election");
	isolate(away, false);
	run(500);
	ok(leader() == first && paxos_ballot_compare(status_of(first).ballot, ballot) == 0,
	   "its return does not depose the leader");
	ok(status_of(away).role == PAXOS_FOLLOWER && status_of(away).leader_id == first, "it follows again");
	cluster.cut[first][away] = true;
	run(2000);
	ok(leader() == first && paxos_ballot_compare(status_of(first).ballot, ballot) == 0,
	   "nor does a node that can send but not hear the leader");
	stop_cluster();
}

static void
minority_stops(void)
{
	uint32_t	old;
	uint32_t	next;

	start_cluster(3, 64);
	old = run_until_leader();
	isolate(old, true);
	propose(old, "never agreed yet");
	run(300);
	ok(status_of(old).role != PAXOS_LEADER && !status_of(old).has_quorum, "a leader without a quorum steps down");
	ok(cluster.nodes[old].delivered_count == 0, "and delivers nothing");
	next = run_until_leader();
	ok(next != 0 && next != old, "the majority has a new leader");
	propose(next, "agreed");
	run(50);
	ok(times_effective(next, "agreed") == 1, "which works");
	isolate(old, false);
	run(500);
	ok(times_effective(next, "never agreed yet") == 1, "the old leader sends its proposal to the new one");
	ok(same_log(1, 2) && same_log(2, 3), "all agree in the end");
	stop_cluster();
}

static void
proposal_that_was_adopted_and_sent_again_counts_once(void)
{
	uint32_t	old;
	uint32_t	holder;

	start_cluster(3, 64);
	old = run_until_leader();
	holder = old % 3 + 1;
	cluster.cut[holder][old] = cluster.cut[other_than(old, holder)][old] = true;
	propose(old, "once");
	run(600);
	isolate(old, false);
	run(500);
	for (uint32_t id = 1; id <= 3; id++)
		ok_quietly(times_effective(id, "once") == 1, "adopted and sent again: once");
	ok(same_log(1, 2) && same_log(2, 3), "a proposal that was adopted and sent again takes effect once");
	stop_cluster();
}

static void
leader_that_may_not_lead(void)
{
	uint32_t	old;
	uint32_t	next;

	start_cluster(3, 64);
	old = run_until_leader();
	paxos_set_may_lead(cluster.nodes[old].core, false);
	run(1000);
	next = leader();
	ok(next != 0 && next != old, "a node that may not lead hands over");
	propose(next, "x");
	run(50);
	ok(times_effective(old, "x") == 1, "but goes on as acceptor and learner");
	stop_node(next);
	run(2000);
	ok(leader() != 0 && leader() != old, "and gives its promise to others");
	stop_cluster();
}

static void
reads_are_confirmed(void)
{
	uint32_t	first;
	uint32_t	follower;
	Node	   *node;

	start_cluster(3, 64);
	first = run_until_leader();
	follower = first % 3 + 1;
	propose(first, "x");
	run(20);
	step(first, (PaxosEvent) {.type = PAXOS_EVENT_READ, .read_id = 1});
	step(first, (PaxosEvent) {.type = PAXOS_EVENT_READ, .read_id = 2});
	ok(cluster.nodes[first].read_count == 0, "a leader of three answers no read by itself");
	run(4);
	node = &cluster.nodes[first];
	ok(node->read_count == 2 && node->reads[0].ok && node->reads[1].ok && node->reads[0].read_index == 1,
	   "one round confirms the reads that wait");
	step(follower, (PaxosEvent) {.type = PAXOS_EVENT_READ, .read_id = 3});
	run(6);
	node = &cluster.nodes[follower];
	ok(node->read_count == 1 && node->reads[0].ok && node->reads[0].read_id == 3 && node->reads[0].read_index == 1,
	   "a follower's read goes by way of the leader");
	isolate(first, true);
	step(first, (PaxosEvent) {.type = PAXOS_EVENT_READ, .read_id = 4});
	run(1000);
	node = &cluster.nodes[first];
	ok(node->read_count == 3 && node->reads[2].read_id == 4 && !node->reads[2].ok, "without a quorum a read fails");
	stop_cluster();
}

/* Its process was stopped; the others went on. */
static void
stopped_leader_notices(void)
{
	uint32_t	old;
	PaxosCore  *stopped;
	size_t		reads;

	start_cluster(3, 64);
	old = run_until_leader();
	run(50);
	stopped = cluster.nodes[old].core;
	cluster.nodes[old].core = NULL;
	run(1500);
	ok(leader() != 0, "the others elect a leader while the old one is stopped");
	propose(leader(), "meanwhile");
	run(50);
	cluster.nodes[old].core = stopped;
	reads = cluster.nodes[old].read_count;
	step(old, (PaxosEvent) {.type = PAXOS_EVENT_READ, .read_id = 9});
	ok(status_of(old).role == PAXOS_FOLLOWER, "a leader that was stopped knows at its first event that it may be deposed");
	ok(cluster.nodes[old].read_count == reads, "and answers no read from its own knowledge");
	run(300);
	ok(cluster.nodes[old].read_count == reads + 1 && cluster.nodes[old].reads[reads].ok &&
	   cluster.nodes[old].reads[reads].read_index >= 1, "the read is told by the new leader");
	ok(times_effective(old, "meanwhile") == 1, "it catches up");
	stop_cluster();
}

static void
whole_cluster_restarts(void)
{
	uint32_t	first;

	start_cluster(3, 16);
	first = run_until_leader();
	for (int i = 0; i < 100; i++)
	{
		propose(first, "kept");
		run(1);
	}
	run(30);
	for (uint32_t id = 1; id <= 3; id++)
		stop_node(id);
	for (uint32_t id = 1; id <= 3; id++)
		start_node(id);
	ok(run_until_leader() != 0, "after all nodes were stopped there is a leader again");
	run(500);
	ok(times_effective(1, "kept") == 100 && same_log(1, 2) && same_log(2, 3), "and nothing is lost or doubled");
	stop_cluster();
}

int
main(void)
{
	new_leader_adopts_accepted_values();
	gap_is_filled_by_a_noop();
	pre_vote_protects_a_living_leader();
	minority_stops();
	proposal_that_was_adopted_and_sent_again_counts_once();
	leader_that_may_not_lead();
	reads_are_confirmed();
	stopped_leader_notices();
	whole_cluster_restarts();
	return tap_done();
}
