/*
 * test_core_base.c
 *	  A core that starts behind slots that are gone: its promises hold, nothing takes effect twice, and who needs those slots is told.
 */
#include "core_cluster.h"

static void
propose_many(uint32_t id, int count)
{
	for (int i = 0; i < count; i++)
	{
		propose(id, "filling");
		run(1);
	}
	run(50);
}

static void
trimmed_cluster_goes_on(void)
{
	PaxosConfig next = make_config(3, 1);
	uint32_t	first;

	start_cluster(3, 16);
	first = run_until_leader();
	propose_many(first, 30);
	propose_config(first, &next);
	propose_many(first, 30);
	propose(first, "last of the old");
	run(50);
	for (uint32_t id = 1; id <= 3; id++)
	{
		stop_node(id);
		make_base(id, 40 + id, id);
		trim_journal(id);
	}
	for (uint32_t id = 1; id <= 3; id++)
		start_node(id);
	ok(status_of(1).delivered_slot >= 41 && status_of(3).delivered_slot >= 43, "a node starts at its base");
	ok(status_of(1).config.member_count == 4 && status_of(1).config.slot == 31, "with the configuration that its slots had brought");
	ok(run_until_leader() != 0, "nodes that start from a base elect a leader");
	run(200);
	ok(times_effective(1, "last of the old") == 1 && same_log(1, 2) && same_log(2, 3), "what stood behind the base is delivered");
	propose(leader(), "new");
	run(100);
	ok(times_effective(1, "new") == 1 && times_effective(2, "new") == 1 && times_effective(3, "new") == 1, "and the log goes on");
	stop_cluster();
}

/* What was promised is in no log, and no log may take it back. */
static void
promise_is_kept(void)
{
	const PaxosBallot high = {77, 2};
	PaxosRecord promise = {.type = PAXOS_RECORD_PROMISE, .ballot = high};
	PaxosMessage prepare = {.type = PAXOS_MESSAGE_PREPARE, .ballot = {70, 3}};
	unsigned	refusals;
	unsigned	promises;

	start_cluster(3, 16);
	run_until_leader();
	propose_many(leader(), 20);
	stop_node(1);
	make_base(1, 10, 1);
	keep_record(&cluster.nodes[1], &promise);
	cluster.nodes[1].durable_count = cluster.nodes[1].record_count;
	trim_journal(1);
	start_node(1);
	ok(status_of(1).ballot.round == 77, "a base leaves the promise as it is");
	prepare.first_slot = prepare.resume_slot = status_of(1).delivered_slot + 1;
	refusals = cluster.nodes[1].sent[PAXOS_MESSAGE_REFUSAL];
	promises = cluster.nodes[1].sent[PAXOS_MESSAGE_PROMISE];
	inject(3, 1, &prepare);
	ok(cluster.nodes[1].sent[PAXOS_MESSAGE_REFUSAL] == refusals + 1 && cluster.nodes[1].sent[PAXOS_MESSAGE_PROMISE] == promises,
	   "a lower ballot is refused");
	stop_cluster();
}

static void
records_below_the_base_are_history(void)
{
	const PaxosProposalId id = {2, 1, 900};
	PaxosRecord old = {.type = PAXOS_RECORD_ACCEPTED, .slot = 3, .ballot = {50, 2}};
	PaxosRecord old_config = {.type = PAXOS_RECORD_CONFIG, .slot = 2};
	PaxosRecord old_hint = {.type = PAXOS_RECORD_CHOSEN, .slot = 9};
	PaxosConfig other = make_config(5, 0);

	start_cluster(3, 16);
	run_until_leader();
	propose_many(leader(), 20);
	stop_node(1);
	make_base(1, 10, 1);
	old.value = paxos_value_make(&allocator, PAXOS_VALUE_DATA, id, (const uint8_t *) "old", 3);
	old_config.value = config_value(&other, 5);
	keep_record(&cluster.nodes[1], &old);
	keep_record(&cluster.nodes[1], &old_config);
	keep_record(&cluster.nodes[1], &old_hint);
	cluster.nodes[1].durable_count = cluster.nodes[1].record_count;
	start_node(1);
	ok(status_of(1).delivered_slot == cluster.nodes[1].delivered_count && !delivered_text(1, 3, "old") &&
	   status_of(1).config.member_count == 3, "a record of a slot below the base says nothing");
	ok(status_of(1).ballot.round == 50, "but its ballot counts as promised");
	paxos_value_release(&allocator, old.value);
	paxos_value_release(&allocator, old_config.value);
	stop_cluster();
}

/* The origin sends again what it does not know as chosen; the first time stands below the base. */
static void
nothing_takes_effect_twice(void)
{
	const PaxosProposalId id = {2, 1, 1};
	PaxosMessageEntry entry = {.kind = PAXOS_VALUE_DATA, .id = id, .bytes = (const uint8_t *) "once", .length = 4};
	PaxosMessage forward = {.type = PAXOS_MESSAGE_FORWARD, .entry_count = 1, .entries = &entry};
	PaxosMessage learn = {.type = PAXOS_MESSAGE_LEARN, .ballot = {1, 1}, .entry_count = 1, .entries = &entry};
	PaxosSlot	slot;

	start_cluster(3, 16);
	run_until_leader();
	propose(2, "once");
	run(100);
	propose_many(leader(), 20);
	for (uint32_t node = 1; node <= 3; node++)
	{
		stop_node(node);
		make_base(node, 20, node);
		trim_journal(node);
	}
	for (uint32_t node = 1; node <= 3; node++)
		start_node(node);
	run_until_leader();
	run(200);
	slot = status_of(leader()).delivered_slot;
	inject(2, leader(), &forward);
	run(50);
	ok(status_of(leader()).delivered_slot == slot, "a leader does not place what took effect below the base");
	learn.first_slot = entry.slot = slot + 1;
	inject(2, 1, &learn);
	run(10);
	ok(cluster.nodes[1].delivered_count == slot + 1 && cluster.nodes[1].delivered[slot].duplicate, "if it is in the log again it has no effect");
	stop_cluster();
}

/* Nodes 1 and 2 trimmed what node 3 missed; whoever leads. */
static void
who_is_too_far_behind_is_told(uint32_t version)
{
	uint32_t	donor;
	unsigned	catch_ups;

	start_cluster(3, 16);
	cluster.nodes[3].frame_version = version;
	run_until_leader();
	isolate(3, true);
	run(1000);
	donor = leader();
	tell_versions(1);
	tell_versions(2);
	propose_many(donor, 60);
	for (uint32_t id = 1; id <= 2; id++)
		make_base(id, 40, id);
	isolate(3, false);
	run(1000);
	donor = leader();
	if (version == 2)
	{
		ok(cluster.nodes[3].snapshot_needed == 0 && cluster.nodes[donor].catch_ups > 0, "a node of version 2 is not told, for it would not understand");
		stop_cluster();
		return;
	}
	ok(cluster.nodes[3].snapshot_needed == 41 && cluster.nodes[3].snapshot_from == donor, "a node that is too far behind is told so, and by whom");
	ok(status_of(3).snapshot_needed == 41 && donor != 3 && status_of(3).delivered_slot < 40, "its status says so as long as it is so");
	catch_ups = cluster.nodes[donor].catch_ups;
	run(3000);
	ok(cluster.nodes[donor].catch_ups - catch_ups <= 15 && leader() == donor, "it disturbs nobody, and is told again now and then");
	propose(donor, "meanwhile");
	run(100);
	ok(times_effective(donor, "meanwhile") == 1, "the others go on");
	stop_node(3);
	install_snapshot(donor, 3);
	start_node(3);
	run(300);
	propose(leader(), "afterwards");
	run(300);
	ok(times_effective(3, "afterwards") == 1 && same_log(donor, 3) && status_of(3).snapshot_needed == 0, "with a snapshot it follows the log again");
	stop_node(donor == 1 ? 2 : 1);
	propose(leader() == 0 ? run_until_leader() : leader(), "its vote counts");
	run(500);
	ok(times_effective(3, "its vote counts") == 1, "and it is as good a voter as any");
	stop_cluster();
}

/* It cannot lead the one who knows more, but helps to elect it; what comes next it can accept only when it has what comes before. */
static void
node_that_lacks_slots_is_not_elected(void)
{
	uint32_t	left;

	start_cluster(3, 16);
	run_until_leader();
	isolate(3, true);
	run(500);
	propose_many(leader(), 60);
	make_base(1, 40, 1);
	make_base(2, 40, 2);
	left = 3 - leader();
	stop_node(leader());
	isolate(3, false);
	run(3000);
	ok(leader() == left, "a node that lacks what the others trimmed is not elected, but helps to elect");
	propose(left, "with its vote");
	run(500);
	ok(times_effective(left, "with its vote") == 0 && cluster.nodes[3].snapshot_needed == 41, "it cannot accept what is beyond its window");
	stop_node(3);
	install_snapshot(left, 3);
	start_node(3);
	run(1000);
	ok(leader() == left && times_effective(left, "with its vote") == 1 && times_effective(3, "with its vote") == 1,
	   "but with a snapshot it can");
	stop_cluster();
}

static void
malformed_bases_are_refused(void)
{
	PaxosSettings settings;
	PaxosCore  *core;
	Node	   *node;
	uint8_t    *copy;
	bool		all_refused = true;

	start_cluster(3, 16);
	run_until_leader();
	propose_many(1, 20);
	make_base(1, 10, 1);
	node = &cluster.nodes[1];
	settings = node_settings(1);
	core = paxos_create(&settings, &allocator);
	for (size_t length = 0; length < node->base_length; length++)
	{
		copy = malloc(length > 0 ? length : 1);
		memcpy(copy, node->base, length);
		all_refused &= !paxos_restore_base(core, 10, copy, length);
		free(copy);
	}
	ok(all_refused, "a base that is cut is refused");
	for (size_t bit = 0; bit < 8 * node->base_length; bit++)
	{
		node->base[bit / 8] ^= (uint8_t) (1 << bit % 8);
		all_refused &= !paxos_restore_base(core, 10, node->base, node->base_length);
		node->base[bit / 8] ^= (uint8_t) (1 << bit % 8);
	}
	ok(all_refused, "a base with a flipped bit is refused");
	ok(!paxos_restore_base(core, 11, node->base, node->base_length), "a base of another slot is refused");
	ok(paxos_restore_base(core, 10, node->base, node->base_length), "after that the right one is taken");
	paxos_destroy(core);
	stop_cluster();
}

int
main(void)
{
	trimmed_cluster_goes_on();
	promise_is_kept();
	records_below_the_base_are_history();
	nothing_takes_effect_twice();
	who_is_too_far_behind_is_told(0);
	who_is_too_far_behind_is_told(2);
	node_that_lacks_slots_is_not_elected();
	malformed_bases_are_refused();
	return tap_done();
}
