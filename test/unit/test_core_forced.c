/*
 * test_core_forced.c
 *	  quorum.force_new_cluster() as the core sees it: records that the host wrote into the journal of a survivor (consensus/generation.c), which make
 *	  all that it had accepted chosen, drop what is behind a gap, and leave it as the only voter.
 */
#include "core_cluster.h"

static PaxosValue *
data_value(const char *text, uint64_t sequence)
{
	PaxosProposalId id = {1, 1, sequence};

	return paxos_value_make(&allocator, PAXOS_VALUE_DATA, id, (const uint8_t *) text, (uint32_t) strlen(text));
}

/* As if the node had written it before it stopped.  Takes the value. */
static void
write_record(uint32_t id, PaxosRecordType type, PaxosSlot slot, PaxosBallot ballot, PaxosValue *value)
{
	PaxosRecord record = {.type = type, .slot = slot, .ballot = ballot, .value = value};

	keep_record(&cluster.nodes[id], &record);
	cluster.nodes[id].durable_count = cluster.nodes[id].record_count;
	if (value != NULL)
		paxos_value_release(&allocator, value);
}

static PaxosConfig
alone(uint32_t id)
{
	PaxosConfig config;

	memset(&config, 0, sizeof(config));
	config.members[config.member_count++] = (PaxosMember) {id, true};
	return config;
}

/* What generation.c writes for a survivor whose last slot without a gap is `kept`, and whose last accepted one is `last`. */
static void
force(uint32_t id, PaxosSlot kept, PaxosSlot last, uint64_t round)
{
	static const PaxosProposalId nobody = {0, 0, 0};
	PaxosBallot ballot = {round, id};
	PaxosConfig config = alone(id);
	PaxosProposalId config_id = {id, cluster.nodes[id].incarnation + 1, 1};
	uint8_t		bytes[128];
	size_t		length = paxos_config_encode(&config, bytes, sizeof(bytes));

	write_record(id, PAXOS_RECORD_CHOSEN, kept, (PaxosBallot) {0, 0}, NULL);
	for (PaxosSlot slot = last; slot > kept; slot--)
		write_record(id, PAXOS_RECORD_ACCEPTED, slot, ballot, paxos_value_make(&allocator, PAXOS_VALUE_NOOP, nobody, NULL, 0));
	write_record(id, PAXOS_RECORD_ACCEPTED, last + 1, ballot,
				 paxos_value_make(&allocator, PAXOS_VALUE_CONFIG, config_id, bytes, (uint32_t) length));
	write_record(id, PAXOS_RECORD_CHOSEN, last + 1, (PaxosBallot) {0, 0}, NULL);
	cluster.nodes[id].incarnation++;	/* the life that wrote it proposed nothing else */
}

static void
survivor_goes_on_alone(void)
{
	PaxosSlot	kept;
	PaxosBallot ballot;
	PaxosConfig config;

	start_cluster(3, 16);
	run_until_leader();
	for (int i = 0; i < 30; i++)
	{
		propose(leader(), "old");
		run(5);
	}
	run(200);
	kept = status_of(3).accepted_slot + 2;
	ballot = status_of(3).ballot;
	for (uint32_t id = 1; id <= 3; id++)
		stop_node(id);

	/* Accepted, and not known as chosen: two in a row, then one behind a gap. */
	write_record(3, PAXOS_RECORD_ACCEPTED, kept - 1, ballot, data_value("tail 1", 901));
	write_record(3, PAXOS_RECORD_ACCEPTED, kept, ballot, data_value("tail 2", 902));
	write_record(3, PAXOS_RECORD_ACCEPTED, kept + 2, ballot, data_value("behind a gap", 904));
	force(3, kept, kept + 2, ballot.round + 1);
	start_node(3);
	run(50);
	ok(leader() == 3 && status_of(3).voter_count == 1 && status_of(3).config.slot == kept + 3, "the survivor leads at once, the only voter");
	ok(times_effective(3, "tail 1") == 1 && times_effective(3, "tail 2") == 1, "what it had accepted is chosen");
	ok(delivered_text(3, kept - 1, "tail 1") && delivered_text(3, kept, "tail 2"), "in its slots");
	ok(times_effective(3, "behind a gap") == 0, "what was behind a gap is not");
	ok(status_of(3).ballot.round > ballot.round, "its ballot is above all that it had promised");
	propose(3, "new");
	run(20);
	ok(times_effective(3, "new") == 1, "it takes proposals");

	stop_node(3);
	start_node(3);
	run(50);
	ok(times_effective(3, "tail 2") == 1 && times_effective(3, "behind a gap") == 0 && times_effective(3, "new") == 1,
	   "after a restart all of that is still so");

	config = status_of(3).config;
	config.members[config.member_count++] = (PaxosMember) {4, false};
	propose_config(3, &config);
	run(50);
	config = status_of(3).config;
	bootstrap_node(4, &config);
	run(500);
	ok(same_log(3, 4), "a new node learns the same log");
	stop_cluster();
}

int
main(void)
{
	survivor_goes_on_alone();
	return tap_done();
}
