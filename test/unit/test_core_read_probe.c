/*
 * test_core_read_probe.c
 *	  Read probes: whom they are sent to, what is answered to them beside the core's loop, and what is not.
 *
 * A frame takes a millisecond, heartbeats come every 20.
 */
#include "core_cluster.h"

static void
read_at(uint32_t id, uint64_t read_id)
{
	step(id, (PaxosEvent) {.type = PAXOS_EVENT_READ, .read_id = read_id});
}

static unsigned
probes_answered(void)
{
	unsigned	sum = 0;

	for (uint32_t id = 1; id <= CLUSTER_NODES; id++)
		sum += cluster.nodes[id].probes_answered;
	return sum;
}

static void
hold_all_but(uint32_t id)
{
	for (uint32_t other = 1; other <= CLUSTER_NODES; other++)
		cluster.nodes[other].loop_is_held = other != id;
}

static void
leader_asks_fewest_voters(uint32_t voters, unsigned expected)
{
	uint32_t	first;
	unsigned	heartbeats;

	start_cluster(voters, 64);
	first = run_until_leader();
	propose(first, "x");
	run_past_a_heartbeat(first);
	heartbeats = cluster.nodes[first].sent[PAXOS_MESSAGE_HEARTBEAT];
	hold_all_but(first);
	read_at(first, 1);
	run(3);
	ok(cluster.nodes[first].read_count == 1 && cluster.nodes[first].reads[0].ok && cluster.nodes[first].reads[0].read_index == 1,
	   "a leader's read needs no step of another node");
	ok(probes_answered() == expected && cluster.nodes[first].sent[PAXOS_MESSAGE_READ_PROBE] == expected &&
	   cluster.nodes[first].sent[PAXOS_MESSAGE_HEARTBEAT] == heartbeats, "and asks as few as complete a majority");
	stop_cluster();
}

static void
follower_asks_the_leader_alone(void)
{
	uint32_t	first;
	uint32_t	reader;

	start_cluster(3, 64);
	first = run_until_leader();
	reader = first % 3 + 1;
	propose(first, "x");
	run_past_a_heartbeat(first);
	hold_all_but(reader);
	read_at(reader, 1);
	run(3);
	ok(cluster.nodes[reader].read_count == 1 && cluster.nodes[reader].reads[0].ok && cluster.nodes[reader].reads[0].read_index == 1,
	   "a follower's read, of three voters, needs no step of the leader");
	ok(probes_answered() == 1 && cluster.nodes[first].probes_answered == 1, "and asks nobody else");
	stop_cluster();

	start_cluster(5, 64);
	first = run_until_leader();
	reader = first % 5 + 1;
	run_past_a_heartbeat(first);
	hold_all_but(reader);
	read_at(reader, 1);
	run(10);
	ok(cluster.nodes[reader].read_count == 0 && cluster.nodes[reader].sent[PAXOS_MESSAGE_READ_PROBE] == 0,
	   "of five voters, leader and follower are not enough");
	stop_cluster();
}

/* The one that is probed has promised to another, who may have had something acknowledged since. */
static void
promise_to_another_is_no_answer(void)
{
	PaxosMessage prepare = {.type = PAXOS_MESSAGE_PREPARE, .first_slot = 1, .resume_slot = 1};
	uint32_t	first;

	start_cluster(3, 64);
	first = run_until_leader();
	run_past_a_heartbeat(first);
	prepare.ballot = (PaxosBallot) {status_of(first).ballot.round + 1, first % 3 + 1};
	for (uint32_t other = 1; other <= 3; other++)
		if (other != first)
		{
			cluster.nodes[other].disk_is_held = true;	/* the promise is not durable, and not sent */
			if (other != prepare.ballot.node_id)
				inject(prepare.ballot.node_id, other, &prepare);
		}
	cluster.cut[first][prepare.ballot.node_id] = true;
	run(1);
	read_at(first, 1);
	run(10);
	ok(cluster.nodes[first].read_count == 0 && probes_answered() == 0,
	   "who has promised a higher ballot does not confirm a read, before anybody hears of that promise");
	stop_cluster();
}

static void
silent_one_is_replaced(void)
{
	uint32_t	first;
	uint32_t	asked = 0;

	start_cluster(3, 64);
	first = run_until_leader();
	run_past_a_heartbeat(first);
	read_at(first, 1);
	run(3);
	for (uint32_t id = 1; id <= 3; id++)
		if (cluster.nodes[id].probes_answered == 1)
			asked = id;
	ok(asked != 0 && cluster.nodes[first].read_count == 1, "one voter is asked");
	isolate(asked, true);
	read_at(first, 2);
	run(5);
	ok(cluster.nodes[first].read_count == 1, "it is gone, and the next read waits");
	run(20);
	ok(cluster.nodes[first].read_count == 2 && cluster.nodes[first].reads[1].ok, "until the next heartbeat");
	read_at(first, 3);
	run(3);
	ok(cluster.nodes[first].read_count == 3 && cluster.nodes[6 - first - asked].probes_answered == 1, "and then another is asked");
	stop_cluster();
}

static void
late_answer_confirms_nothing_newer(void)
{
	PaxosMessage late = {.type = PAXOS_MESSAGE_READ_ANSWER, .flag = true};
	uint32_t	first;

	start_cluster(3, 64);
	first = run_until_leader();
	run_past_a_heartbeat(first);
	late.ballot = status_of(first).ballot;
	isolate(first, true);
	read_at(first, 1);
	run(1);
	isolate(first, false);
	late.number = 1;
	inject(first % 3 + 1, first, &late);
	run(2);
	ok(cluster.nodes[first].read_count == 0, "the answer to an earlier probe does not confirm a read that was asked since");
	late.number = UINT64_MAX;
	late.ballot.round++;
	inject(first % 3 + 1, first, &late);
	run(2);
	ok(cluster.nodes[first].read_count == 0, "nor does one of another ballot");
	stop_cluster();
}

static void
old_builds_are_asked_as_ever(void)
{
	uint32_t	first;
	uint32_t	reader;

	start_cluster(3, 64);
	first = run_until_leader();
	reader = first % 3 + 1;
	for (uint32_t id = 1; id <= 3; id++)
		cluster.nodes[id].frame_version = 3;
	for (uint32_t id = 1; id <= 3; id++)
		tell_versions(id);
	run_past_a_heartbeat(first);
	read_at(first, 1);
	read_at(reader, 1);
	run(5);
	ok(cluster.nodes[first].read_count == 1 && cluster.nodes[reader].read_count == 1, "reads work beside builds that know no probes");
	ok(cluster.nodes[first].sent[PAXOS_MESSAGE_READ_PROBE] + cluster.nodes[reader].sent[PAXOS_MESSAGE_READ_PROBE] == 0, "and send none");
	stop_cluster();
}

/* It has accepted the value, and is told that it is chosen only a moment later, or when it asks. */
static void
asker_is_told_what_it_is_to_see(void)
{
	uint32_t	first;
	uint32_t	reader;
	unsigned	requests;

	start_cluster(5, 64);
	first = run_until_leader();
	reader = first % 5 + 1;
	run_past_a_heartbeat(first);
	requests = cluster.nodes[reader].sent[PAXOS_MESSAGE_READ_REQUEST];
	propose(first, "x");
	run(2);
	read_at(reader, 1);
	run(5);
	ok(cluster.nodes[reader].read_count == 1 && cluster.nodes[reader].reads[0].ok && cluster.nodes[reader].reads[0].read_index == 1 &&
	   status_of(reader).delivered_slot == 1, "whom a round of probes gives an index is told before that all up to there is chosen");
	ok(cluster.nodes[reader].sent[PAXOS_MESSAGE_READ_REQUEST] == requests + 1, "and need not ask again");
	stop_cluster();
}

/* ---- what a state says ---- */

static size_t
answer_to(const PaxosReadState *state, uint32_t from, PaxosBallot ballot, PaxosMessage *answer)
{
	PaxosMessage probe = {.type = PAXOS_MESSAGE_READ_PROBE, .version = PAXOS_NEWEST_FRAME_VERSION, .ballot = ballot, .number = 7};
	static PaxosMessageEntry entries[PAXOS_MAX_ENTRIES_PER_MESSAGE];
	uint8_t		frame[64];
	static uint8_t bytes[64];
	const char *why;
	size_t		frame_length = paxos_message_encode(&probe, frame, sizeof(frame));
	size_t		length = paxos_answer_probe(state, from, frame, frame_length, bytes, sizeof(bytes));

	if (length > 0)
		ok_quietly(message_decode(answer, entries, bytes, length, &why), "an answer can be decoded");
	return length;
}

static void
state_says_what_it_may(void)
{
	PaxosReadState state = {.node_id = 1, .answers = true, .leads = true, .promised = {5, 1}, .chosen_slot = 9, .quorum_size = 2,
		.voter_count = 3, .voters = {1, 2, 3}};
	PaxosReadState none;
	PaxosMessage answer;

	memset(&none, 0, sizeof(none));
	ok(answer_to(&state, 2, (PaxosBallot) {5, 1}, &answer) > 0 && answer.flag && answer.read_index == 9 && answer.number == 7 &&
	   answer.ballot.round == 5 && answer.ballot.node_id == 1, "a leader tells a voter how far the log is chosen");
	ok(answer_to(&state, 4, (PaxosBallot) {5, 1}, &answer) == 0, "but no learner: the two are no majority");
	ok(answer_to(&state, 2, (PaxosBallot) {4, 1}, &answer) == 0, "it answers for no earlier ballot");
	ok(answer_to(&none, 2, (PaxosBallot) {5, 1}, &answer) == 0, "nothing published, nothing answered");
	state.leads = false;
	ok(answer_to(&state, 2, (PaxosBallot) {5, 1}, &answer) == 0, "who does not lead any more, or is not ready, has no index to tell");
	state.promised = (PaxosBallot) {6, 3};
	ok(answer_to(&state, 3, (PaxosBallot) {6, 3}, &answer) > 0 && answer.flag && answer.read_index == 0, "it tells the one it promised to that this is so");
	state.answers = false;
	ok(answer_to(&state, 3, (PaxosBallot) {6, 3}, &answer) == 0, "unless it is silent");
}

/* Its promise stands as before, so this alone tells. */
static void
who_steps_down_answers_as_leader_no_more(void)
{
	PaxosMessage answer;
	PaxosBallot ballot;
	uint32_t	first;
	uint32_t	reader;

	start_cluster(3, 64);
	first = run_until_leader();
	reader = first % 3 + 1;
	run_past_a_heartbeat(first);
	ballot = status_of(first).ballot;
	ok(answer_to(&cluster.nodes[first].read_state, reader, ballot, &answer) > 0, "a leader answers a follower's probe");
	isolate(first, true);
	run(2000);
	ok(status_of(first).role != PAXOS_LEADER && answer_to(&cluster.nodes[first].read_state, reader, ballot, &answer) == 0,
	   "one that heard no majority for an election timeout does not");
	stop_cluster();

	start_cluster(3, 64);
	first = run_until_leader();
	reader = first % 3 + 1;
	run_past_a_heartbeat(first);
	ballot = status_of(first).ballot;
	transfer(first, reader);
	run(200);
	ok(status_of(first).role != PAXOS_LEADER && answer_to(&cluster.nodes[first].read_state, reader, ballot, &answer) == 0,
	   "nor does one that has handed over");
	stop_cluster();
}

/* It has removed itself, and hands over: with one of three voters it is no majority. */
static void
leader_that_is_no_voter_counts_for_nothing(void)
{
	PaxosReadState state = {.node_id = 1, .answers = true, .leads = true, .promised = {5, 1}, .chosen_slot = 9, .quorum_size = 2,
		.voter_count = 3, .voters = {2, 3, 4}};
	PaxosMessage answer;

	ok(answer_to(&state, 2, (PaxosBallot) {5, 1}, &answer) == 0, "a leader that is no voter any more counts for nothing in a read's majority");
	state.quorum_size = state.voter_count = 1;
	ok(answer_to(&state, 2, (PaxosBallot) {5, 1}, &answer) > 0, "a voter that is alone is a majority");
}

int
main(void)
{
	leader_asks_fewest_voters(3, 1);
	leader_asks_fewest_voters(5, 2);
	follower_asks_the_leader_alone();
	promise_to_another_is_no_answer();
	silent_one_is_replaced();
	late_answer_confirms_nothing_newer();
	old_builds_are_asked_as_ever();
	asker_is_told_what_it_is_to_see();
	state_says_what_it_may();
	who_steps_down_answers_as_leader_no_more();
	leader_that_is_no_voter_counts_for_nothing();
	return tap_done();
}
