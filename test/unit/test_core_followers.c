/*
 * test_core_followers.c
 *	  What followers are for besides voting: proposals and reads of their own clients, and the word whether those are likely to end well.
 *
 * A frame takes a millisecond, heartbeats come every 20, a lost proposal is repeated after 30, a follower that nobody waits at is told 5 ms later.
 */
#include "core_cluster.h"

#define ROUND_TRIPS_MS 6		/* to the leader and back, and the leader's own to its acceptors; loops included */

static uint32_t
follower_of(uint32_t first)
{
	return first % 3 + 1;
}

static uint32_t
third_node(uint32_t first)
{
	return 6 - first - follower_of(first);
}

static void
origin_is_told_at_once(void)
{
	uint32_t	first;
	uint32_t	origin;

	start_cluster(3, 64);
	first = run_until_leader();
	origin = follower_of(first);
	run_past_a_heartbeat(first);
	propose(origin, "mine");
	run(ROUND_TRIPS_MS);
	ok(times_effective(origin, "mine") == 1, "a follower learns the fate of its own proposal after two round trips");
	ok(times_effective(third_node(first), "mine") == 0, "a node that nobody waits at is told with what comes next");
	run(10);
	ok(times_effective(third_node(first), "mine") == 1, "or a moment later");
	stop_cluster();
}

static void
reader_knows_what_is_chosen(void)
{
	uint32_t	first;
	uint32_t	reader;
	uint64_t	asked_ms;

	start_cluster(3, 64);
	first = run_until_leader();
	reader = follower_of(first);
	run_past_a_heartbeat(first);
	propose(first, "just acknowledged");
	while (cluster.nodes[first].delivered_count == 0)
		run(1);
	ok(cluster.nodes[reader].delivered_count == 0, "the leader has acknowledged what the follower does not know as chosen");
	asked_ms = cluster.now_ms;
	step(reader, (PaxosEvent) {.type = PAXOS_EVENT_READ, .read_id = 1});
	while (cluster.nodes[reader].read_count == 0)
		run(1);
	ok(cluster.nodes[reader].reads[0].ok && cluster.nodes[reader].reads[0].read_index == 1, "a read there gets an index that covers it");
	ok(cluster.now_ms - asked_ms <= 3, "one of three voters needs no more than the leader's answer");
	run(3);
	ok(cluster.nodes[reader].delivered_count == 1, "it asks for the news that this is chosen");
	propose(first, "one more");
	while (cluster.nodes[first].delivered_count == 1)
		run(1);
	step(reader, (PaxosEvent) {.type = PAXOS_EVENT_READ, .read_id = 2});
	while (cluster.nodes[reader].read_count == 1)
		run(1);
	ok(cluster.nodes[reader].reads[1].read_index == 2 && cluster.nodes[reader].delivered_count == 2,
	   "where others write, the news comes before the answer");
	stop_cluster();
}

/* The leader answers, and before the answer arrives the asker promises to another: that one may have had something acknowledged since. */
static void
answer_of_a_deposed_leader_is_ignored(void)
{
	PaxosMessage prepare = {.type = PAXOS_MESSAGE_PREPARE, .first_slot = 1, .resume_slot = 1};
	uint32_t	first;
	uint32_t	reader;

	start_cluster(3, 64);
	first = run_until_leader();
	reader = follower_of(first);
	run_past_a_heartbeat(first);
	step(reader, (PaxosEvent) {.type = PAXOS_EVENT_READ, .read_id = 1});
	run(1);
	prepare.ballot = (PaxosBallot) {status_of(first).ballot.round + 1, third_node(first)};
	inject(third_node(first), reader, &prepare);
	run(2);
	ok(cluster.nodes[first].probes_answered == 1 && cluster.nodes[reader].read_count == 0,
	   "an answer does not count for a reader that has promised a higher ballot");
	run(1000);
	ok(cluster.nodes[reader].read_count == 1, "the read is asked again");
	stop_cluster();
}

static void
lost_forward_is_repeated_under_load(void)
{
	uint32_t	first;
	uint32_t	origin;

	start_cluster(3, 1024);
	first = run_until_leader();
	origin = follower_of(first);
	cluster.cut[origin][first] = true;
	propose(origin, "lost");
	run(2);
	cluster.cut[origin][first] = false;
	for (int i = 0; i < 50; i++)
	{
		propose(origin, "more");
		run(1);
	}
	ok(times_effective(origin, "more") > 10, "what is proposed later gets through meanwhile");
	ok(times_effective(origin, "lost") == 1, "and does not put off the repetition of what was lost");
	run(50);
	ok(status_of(origin).outstanding_proposals == 0 && times_effective(origin, "more") == 50, "all of it takes effect, once");
	stop_cluster();
}

/* A window of 16 slots for 200 proposals: a leader that is full drops what is forwarded, and asks for it as soon as it has room. */
static void
busy_followers_share_a_small_window(void)
{
	uint32_t	first;

	start_cluster(3, 16);
	first = run_until_leader();
	for (int i = 0; i < 100; i++)
	{
		propose(follower_of(first), "one");
		propose(third_node(first), "two");
	}
	run(300);
	ok(times_effective(first, "one") == 100 && times_effective(first, "two") == 100,
	   "what two followers forward takes effect once, and a full window does not hold it up for longer than it is full");
	ok(cluster.nodes[first].sent[PAXOS_MESSAGE_FORWARD_AGAIN] > 0, "what was dropped is asked for");
	stop_cluster();
}

static void
new_link_repeats_at_once(void)
{
	uint32_t	first;
	uint32_t	origin;

	start_cluster(3, 64);
	first = run_until_leader();
	origin = follower_of(first);
	run_past_a_heartbeat(first);
	cluster.cut[origin][first] = true;
	propose(origin, "on the old link");
	step(origin, (PaxosEvent) {.type = PAXOS_EVENT_READ, .read_id = 1});
	run(2);
	step(origin, (PaxosEvent) {.type = PAXOS_EVENT_LINK, .peer_id = first, .link_up = false});
	ok(!status_of(origin).quorum_is_fresh, "a node without a link to the leader holds its clients' proposals");
	cluster.cut[origin][first] = false;
	step(origin, (PaxosEvent) {.type = PAXOS_EVENT_LINK, .peer_id = first, .link_up = true});
	run(ROUND_TRIPS_MS);
	ok(times_effective(origin, "on the old link") == 1, "proposals that were sent on a broken link are sent again on the new one");
	ok(cluster.nodes[origin].read_count == 1 && cluster.nodes[origin].reads[0].ok, "and so are reads");
	stop_cluster();
}

static void
new_leader_gets_it_at_once(void)
{
	uint32_t	old;
	uint32_t	origin;
	uint32_t	next;

	start_cluster(3, 64);
	old = run_until_leader();
	origin = follower_of(old);
	isolate(old, true);
	propose(origin, "into the void");
	propose(third_node(old), "so is this");
	for (next = old; next == old || next == 0; next = leader())
		run(1);
	run(ROUND_TRIPS_MS + 2);
	ok(times_effective(origin, "into the void") == 1, "a new leader is sent what the old one did not get");
	ok(times_effective(third_node(old), "so is this") == 1, "by every node");
	stop_cluster();
}

/* It has something to adopt, so it is not ready when it sends its first heartbeat. */
static void
ready_leader_says_so_at_once(void)
{
	uint32_t	old;
	uint32_t	next;

	start_cluster(3, 64);
	old = run_until_leader();
	cluster.cut[follower_of(old)][old] = cluster.cut[third_node(old)][old] = true;
	propose(old, "accepted by all");
	run(3);
	isolate(old, true);
	for (next = old; next == old || next == 0; next = leader())
		run(1);
	ok(times_effective(next, "accepted by all") == 1, "a leader that is ready has delivered what it adopted");
	run(3);
	ok(status_of(6 - old - next).quorum_is_fresh, "and its followers need not wait for its next heartbeat to hear that it serves");
	stop_cluster();
}

static void
minority_admits_it(void)
{
	uint32_t	first;
	uint32_t	second;

	start_cluster(5, 64);
	first = run_until_leader();
	second = first % 5 + 1;
	run(30);
	for (uint32_t id = 1; id <= 5; id++)
		ok_quietly(status_of(id).quorum_is_fresh, "every node serves when nothing is wrong");
	for (uint32_t id = 1; id <= 5; id++)
	{
		if (id == first || id == second)
			continue;
		for (uint32_t other = first;; other = second)
		{
			cluster.cut[id][other] = cluster.cut[other][id] = true;
			if (other == second)
				break;
		}
	}
	run(90);
	ok(status_of(first).role == PAXOS_LEADER && status_of(second).leader_id == first && status_of(second).has_quorum,
	   "a minority with its leader does not know yet that it is one");
	ok(!status_of(first).quorum_is_fresh, "but its leader takes no proposal for promising");
	run(5);
	ok(!status_of(second).quorum_is_fresh, "nor does its follower");
	stop_cluster();
}

static void
set_link(uint32_t id, uint32_t peer, bool up)
{
	cluster.cut[id][peer] = !up;
	step(id, (PaxosEvent) {.type = PAXOS_EVENT_LINK, .peer_id = peer, .link_up = up});
}

/* Only who leads is told by each how far it is. */
static void
followers_hear_what_all_have_delivered(void)
{
	uint32_t	first;
	uint32_t	one;
	uint32_t	other;
	PaxosStatus status;

	start_cluster(3, 16);
	first = run_until_leader();
	one = follower_of(first);
	other = third_node(first);
	set_link(one, other, false);
	set_link(other, one, false);
	for (int i = 0; i < 50; i++)
	{
		propose(first, "x");
		run(10);
	}
	run(100);
	status = status_of(one);
	ok(status.knows_delivered_by_all && status.delivered_by_all == 50 && status_of(first).delivered_by_all == 50,
	   "a follower knows that all have delivered everything, with no link to one of them");

	cluster.cut[first][other] = cluster.cut[other][first] = true;
	propose(first, "not everywhere");
	run(100);
	ok(status_of(one).delivered_slot == 51 && status_of(one).delivered_by_all == 50, "and how far one is behind that hears nothing");
	set_link(first, other, false);
	run(100);
	ok(status_of(first).delivered_by_all == 50 - 2 * 16 && status_of(one).delivered_by_all == 50 - 2 * 16,
	   "one whose link is down may have forgotten the end of what it reported");
	stop_cluster();
}

static void
who_is_not_told_does_not_know(void)
{
	uint32_t	first;
	uint32_t	old;
	uint32_t	next;

	start_cluster(3, 64);
	first = run_until_leader();
	old = follower_of(first);
	cluster.nodes[old].frame_version = 4;
	tell_versions(first);
	propose(first, "x");
	run(100);
	ok(!status_of(old).knows_delivered_by_all, "an older build is not told what all have delivered");
	ok(status_of(third_node(first)).delivered_by_all == 1, "the newer ones are");
	cluster.nodes[old].frame_version = 5;
	tell_versions(first);
	run(100);
	ok(status_of(old).delivered_by_all == 1, "it is when it is upgraded");

	isolate(first, true);
	next = old;
	while (status_of(next).leader_id == first)
		run(1);
	ok(!status_of(next).knows_delivered_by_all || status_of(next).role == PAXOS_LEADER, "nobody knows by the word of a leader who is gone");
	stop_cluster();
}

/*
 * A leader whose disk is slow knows alone that a slot is chosen, is cut off, and hears of the next leader, which has had the slot accepted once more: it reports
 * that it has it, and crashes before that is on its disk.
 */
static void
who_forgot_what_is_chosen_is_sent_it_again(void)
{
	uint32_t	old;
	uint32_t	next;

	start_cluster(3, 64);
	old = run_until_leader();
	run_past_a_heartbeat(old);
	propose(old, "x");
	run(1);
	cluster.nodes[old].disk_is_held = true;
	for (int i = 0; i < 20 && cluster.nodes[old].delivered_count == 0; i++)
		run(1);
	isolate(old, true);
	run(1000);
	next = leader();
	ok(times_effective(next, "x") == 1, "the next leader has it chosen, too");
	isolate(old, false);
	run(100);
	ok(status_of(old).leader_id == next && status_of(next).delivered_by_all == 1, "the old one has told the next that it has it");
	stop_node(old);
	cluster.nodes[old].disk_is_held = false;
	start_node(old);
	ok(status_of(old).delivered_slot == 0, "what was not on its disk is gone");
	run(500);
	ok(times_effective(old, "x") == 1, "and it gets it once more");
	stop_cluster();
}

int
main(void)
{
	origin_is_told_at_once();
	reader_knows_what_is_chosen();
	answer_of_a_deposed_leader_is_ignored();
	lost_forward_is_repeated_under_load();
	busy_followers_share_a_small_window();
	new_link_repeats_at_once();
	new_leader_gets_it_at_once();
	ready_leader_says_so_at_once();
	minority_admits_it();
	followers_hear_what_all_have_delivered();
	who_is_not_told_does_not_know();
	who_forgot_what_is_chosen_is_sent_it_again();
	return tap_done();
}
