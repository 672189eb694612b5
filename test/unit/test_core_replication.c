/*
 * test_core_replication.c
 *	  Proposals on their way to being chosen and delivered, without faults of nodes: one voter, three, any origin, durability.
 */
#include "core_cluster.h"

static void
single_voter_commits(void)
{
	start_cluster(1, 64);
	run(5);
	ok(status_of(1).role == PAXOS_LEADER && status_of(1).leader_is_ready, "a lone voter leads at once");
	cluster.nodes[1].disk_is_held = true;
	propose(1, "a");
	propose(1, "b");
	run(50);
	ok(cluster.nodes[1].delivered_count == 0, "a lone voter delivers nothing that is not durable");
	cluster.nodes[1].disk_is_held = false;
	run(2);
	ok(delivered_text(1, 1, "a") && delivered_text(1, 2, "b"), "a lone voter delivers what is durable, in order");
	step(1, (PaxosEvent) {.type = PAXOS_EVENT_READ, .read_id = 7});
	ok(cluster.nodes[1].read_count == 1 && cluster.nodes[1].reads[0].ok && cluster.nodes[1].reads[0].read_index == 2,
	   "a lone voter answers a read at once");
	stop_cluster();
}

static void
three_nodes_agree(void)
{
	uint32_t	first;
	unsigned	accepts;

	start_cluster(3, 64);
	first = run_until_leader();
	ok(first != 0, "three nodes elect a leader");
	accepts = cluster.nodes[first].sent[PAXOS_MESSAGE_ACCEPT];
	for (int i = 0; i < 20; i++)
		propose(first, "value");
	run(10);
	ok(cluster.nodes[first].delivered_count == 20, "proposals of the leader are delivered");
	ok(cluster.nodes[first].sent[PAXOS_MESSAGE_ACCEPT] - accepts == 2, "proposals of one loop go out in one frame per peer");
	run(10);
	ok(same_log(1, 2) && same_log(2, 3), "followers deliver the same");
	for (uint32_t id = 1; id <= 3; id++)
		propose(id, "from anywhere");
	run(50);
	ok(cluster.nodes[first].delivered_count == 23 && same_log(1, 2) && same_log(2, 3), "proposals of followers get into the log too");
	ok(status_of(1).outstanding_proposals == 0 && status_of(2).outstanding_proposals == 0, "what is learned is no longer outstanding");
	stop_cluster();
}

/* Far more than the window, with values that fill it by bytes as well. */
static void
load_is_bounded_and_gets_through(void)
{
	static char text[200 * 1024];
	uint32_t	first;
	int			refused = 0;

	memset(text, 'x', sizeof(text) - 1);
	start_cluster(3, 16);
	first = run_until_leader();
	for (int i = 0; i < 3000; i++)
	{
		propose(first, i % 10 == 0 ? text : "small");
		refused += cluster.nodes[first].refused;
		if (i % 50 == 0)
			run(1);
	}
	run(2000);
	ok(refused > 0, "more than the bound of outstanding proposals is refused");
	ok(cluster.nodes[first].delivered_count == (size_t) (3000 - refused), "what was not refused is delivered");
	run(100);
	ok(same_log(1, 2) && same_log(2, 3), "all nodes deliver the same under load");
	stop_cluster();
}

static void
promise_only_after_persisted(void)
{
	PaxosMessage prepare = {.type = PAXOS_MESSAGE_PREPARE, .ballot = {90, 1}, .first_slot = 1, .resume_slot = 1};

	start_cluster(3, 64);
	cluster.nodes[2].disk_is_held = true;
	inject(1, 2, &prepare);
	step(2, (PaxosEvent) {.type = PAXOS_EVENT_FLUSH});
	inject(1, 2, &prepare);
	ok(cluster.nodes[2].sent[PAXOS_MESSAGE_PROMISE] == 0, "no promise is sent before its record is durable");
	cluster.nodes[2].disk_is_held = false;
	sync_node(2);
	ok(cluster.nodes[2].sent[PAXOS_MESSAGE_PROMISE] == 1, "the promise is sent when its record is durable");
	inject(1, 2, &prepare);
	ok(cluster.nodes[2].sent[PAXOS_MESSAGE_PROMISE] == 2, "a repeated prepare is answered at once");
	prepare.ballot.round = 89;
	inject(1, 2, &prepare);
	ok(cluster.nodes[2].sent[PAXOS_MESSAGE_PROMISE] == 2 && cluster.nodes[2].sent[PAXOS_MESSAGE_REFUSAL] == 1,
	   "a lower ballot is refused");
	stop_node(2);
	start_node(2);
	inject(1, 2, &prepare);
	ok(cluster.nodes[2].sent[PAXOS_MESSAGE_REFUSAL] == 2, "a promise is kept over a restart");
	stop_cluster();
}

static void
accepted_only_after_persisted(void)
{
	PaxosMessageEntry entry = {.slot = 1, .kind = PAXOS_VALUE_DATA, .id = {1, 1, 1}, .bytes = (const uint8_t *) "x", .length = 1};
	PaxosMessage accept = {.type = PAXOS_MESSAGE_ACCEPT, .ballot = {90, 1}, .first_slot = 1, .entry_count = 1, .entries = &entry};

	start_cluster(3, 64);
	cluster.nodes[2].disk_is_held = true;
	inject(1, 2, &accept);
	for (size_t i = 0; i < cluster.frame_count; i++)
		free(cluster.frames[i].bytes);
	cluster.frame_count = 0;
	inject(1, 2, &accept);
	step(2, (PaxosEvent) {.type = PAXOS_EVENT_FLUSH});
	for (size_t i = 0; i < cluster.frame_count; i++)
	{
		const char *why;
		const PaxosMessage *report = paxos_message_decode(cluster.nodes[2].core, cluster.frames[i].bytes, cluster.frames[i].length, &why);

		ok_quietly(report->type != PAXOS_MESSAGE_REPORT || (report->accepted_slot == 0 && report->range_count == 0),
				   "nothing is reported as accepted before it is durable");
	}
	ok(status_of(2).accepted_slot == 1, "an acceptor accepts a ballot above its promise");
	accept.ballot.round = 80;
	inject(1, 2, &accept);
	ok(cluster.nodes[2].sent[PAXOS_MESSAGE_REFUSAL] == 1, "accepting a ballot is a promise to refuse lower ones");
	stop_node(2);
	ok(cluster.nodes[2].record_count == 1, "the acceptance was not durable");
	start_node(2);
	ok(status_of(2).accepted_slot == 0, "and is gone after a crash, unreported");
	stop_cluster();
}

static void
duplicates_take_effect_once(void)
{
	PaxosMessageEntry entries[6] = {
		{.kind = PAXOS_VALUE_DATA, .id = {9, 1, 5}, .bytes = (const uint8_t *) "five", .length = 4},
		{.kind = PAXOS_VALUE_DATA, .id = {9, 1, 3}, .bytes = (const uint8_t *) "three", .length = 5},
		{.kind = PAXOS_VALUE_DATA, .id = {9, 1, 5}, .bytes = (const uint8_t *) "five", .length = 4},
		{.kind = PAXOS_VALUE_DATA, .id = {9, 2, 1}, .bytes = (const uint8_t *) "new", .length = 3},
		{.kind = PAXOS_VALUE_DATA, .id = {9, 1, 6}, .bytes = (const uint8_t *) "old", .length = 3},
		{.kind = PAXOS_VALUE_NOOP}
	};
	PaxosMessage learn = {.type = PAXOS_MESSAGE_LEARN, .ballot = {9, 1}, .first_slot = 1, .entry_count = 6, .entries = entries};
	const Delivered *delivered;

	start_cluster(3, 64);
	inject(1, 2, &learn);
	sync_node(2);
	delivered = cluster.nodes[2].delivered;
	ok(cluster.nodes[2].delivered_count == 6, "learned values are delivered");
	ok(!delivered[0].duplicate && !delivered[1].duplicate, "a lower sequence after a higher one is no duplicate");
	ok(delivered[2].duplicate, "the second occurrence of an id is a duplicate");
	ok(!delivered[3].duplicate && delivered[4].duplicate, "an older incarnation after a newer one is a duplicate");
	step(2, (PaxosEvent) {.type = PAXOS_EVENT_FLUSH});
	sync_node(2);
	stop_node(2);
	start_node(2);
	delivered = cluster.nodes[2].delivered;
	ok(cluster.nodes[2].delivered_count == 6 && !delivered[1].duplicate && delivered[2].duplicate && delivered[4].duplicate,
	   "recovery finds the same duplicates");
	stop_cluster();
}

/* A follower that was away for longer than the window gets the rest from the leader's journal. */
static void
follower_catches_up_from_the_journal(void)
{
	uint32_t	first;
	uint32_t	away;

	start_cluster(3, 16);
	first = run_until_leader();
	away = first % 3 + 1;
	isolate(away, true);
	for (int i = 0; i < 400; i++)
	{
		propose(first, "value");
		run(1);
	}
	run(20);
	ok(cluster.nodes[first].delivered_count == 400, "two of three go on");
	isolate(away, false);
	run(1000);
	ok(cluster.nodes[first].catch_ups > 0, "slots that left the window are asked of the host");
	ok(same_log(1, 2) && same_log(2, 3), "the node that was away has everything");
	stop_cluster();
}

int
main(void)
{
	single_voter_commits();
	three_nodes_agree();
	load_is_bounded_and_gets_through();
	promise_only_after_persisted();
	accepted_only_after_persisted();
	duplicates_take_effect_once();
	follower_catches_up_from_the_journal();
	return tap_done();
}
