/*
 * journal.c
 *	  A node's disk: records are appended at once and durable when a sync that was started later has finished.
 *
 * A crash loses the records behind the last finished sync, but not all: a random prefix of them may have reached the
 * disk (a torn tail), or all of them, as when only the process dies.
 *
 * Invariants
 *	1. record_numbers: the core numbers its records 1, 2, 3, … from its start.
 *	2. Records become durable in the order in which they were appended.
 */
#include "sim.h"

static SimRecord *
add_record(SimJournal *journal)
{
	if (journal->count == journal->capacity)
	{
		journal->capacity = journal->capacity == 0 ? 128 : journal->capacity * 2;
		journal->records = realloc(journal->records, journal->capacity * sizeof(SimRecord));
		if (journal->records == NULL)
			abort();
	}
	return &journal->records[journal->count++];
}

static void
index_record(SimJournal *journal, size_t index)
{
	PaxosSlot	slot = journal->records[index].slot;

	if (journal->records[index].type != PAXOS_RECORD_ACCEPTED)
		return;
	if (slot >= journal->slot_capacity)
	{
		size_t		capacity = journal->slot_capacity == 0 ? 256 : journal->slot_capacity;

		while (capacity <= slot)
			capacity *= 2;
		journal->last_record = realloc(journal->last_record, capacity * sizeof(size_t));
		memset(journal->last_record + journal->slot_capacity, 0, (capacity - journal->slot_capacity) * sizeof(size_t));
		journal->slot_capacity = capacity;
	}
	journal->last_record[slot] = index + 1;
}

/* The first record of a node's life: the configuration that it was founded with. */
void
sim_journal_found(Sim *sim, SimNode *node, PaxosSlot slot, uint32_t value)
{
	SimJournal *journal = &node->journal;

	(void) sim;
	*add_record(journal) = (SimRecord) {.type = PAXOS_RECORD_CONFIG, .slot = slot, .value = value};
	journal->durable = journal->count;
}

void
sim_journal_append(Sim *sim, SimNode *node, const PaxosRecord *record)
{
	SimJournal *journal = &node->journal;
	SimRecord  *added;

	sim_check(sim, record->number == journal->count - journal->recovered + 1, "record_numbers",
			  "record number and expected number differ", record->number, journal->count - journal->recovered + 1);
	sim_check(sim, record->slot < SIM_MILLION, "record_numbers", "absurd slot", record->slot, 0);
	added = add_record(journal);
	*added = (SimRecord) {.type = record->type, .slot = record->slot, .ballot = record->ballot};
	if (record->value != NULL)
		added->value = sim_value_number(sim, record->value);
	index_record(journal, journal->count - 1);
	sim_trace(sim, "append", node->id, (uint64_t) record->type << 32 | record->ballot.node_id, record->ballot.round,
			  record->slot << 20 | added->value);
	sim_observe_appended(sim, node, added);
}

void
sim_journal_start_sync(Sim *sim, SimNode *node)
{
	SimJournal *journal = &node->journal;
	SimTime		delay;

	if (journal->syncing != 0 || journal->durable == journal->count)
		return;
	delay = sim->plan.disk_delay_min + sim_below(sim, sim->plan.disk_delay_spread + 1);
	if (sim->faulty && sim->now < node->slow_disk_until)
		delay += sim_below(sim, SIM_MS(sim->plan.election_timeout_ms));
	if (sim->faulty && sim_chance(sim, sim->plan.disk_stall_chance))
		delay += sim_below(sim, SIM_MS(4 * sim->plan.election_timeout_ms));
	journal->syncing = journal->count;
	sim_schedule(sim, (SimEvent) {
		.at = sim->now + delay, .kind = SIM_SYNC, .node = node->id, .life = node->life, .argument = journal->count
	});
}

static void
make_durable(Sim *sim, SimNode *node, size_t up_to)
{
	SimJournal *journal = &node->journal;

	while (journal->durable < up_to)
	{
		SimRecord	record = journal->records[journal->durable++];

		sim_observe_durable(sim, node, &record);
	}
}

void
sim_journal_sync_done(Sim *sim, SimNode *node, size_t up_to)
{
	SimJournal *journal = &node->journal;

	journal->syncing = 0;
	make_durable(sim, node, up_to);
	if (sim->faulty && sim_chance(sim, sim->plan.crash_at_sync_chance))
	{
		sim_node_crash(sim, node, sim_below(sim, SIM_MS(4 * sim->plan.election_timeout_ms)));
		return;
	}
	sim_node_input(sim, node, (SimInput) {.kind = SIM_INPUT_PERSISTED});
	sim_journal_start_sync(sim, node);
}

/* Cuts the journal to what reached the disk.  The survivors of the torn tail count as durable: recovery syncs what it keeps. */
void
sim_journal_crash(Sim *sim, SimNode *node)
{
	SimJournal *journal = &node->journal;
	size_t		unsynced = journal->count - journal->durable;
	size_t		kept = 0;

	if (unsynced > 0 && !sim_chance(sim, SIM_MILLION / 3))
		kept = sim_chance(sim, SIM_MILLION / 3) ? unsynced : sim_below(sim, unsynced + 1);
	make_durable(sim, node, journal->durable + kept);
	journal->count = journal->durable;
	journal->syncing = 0;
	if (journal->slot_capacity > 0)
		memset(journal->last_record, 0, journal->slot_capacity * sizeof(size_t));
	for (size_t i = 0; i < journal->count; i++)
		index_record(journal, i);
}

/*
 * Drops as much of the head as holds nothing above `slot` and is durable, as whole segments are; a promise of the highest ballot in it takes its
 * place.  What is dropped becomes a hole, so that numbers stay.
 */
void
sim_journal_trim(Sim *sim, SimNode *node, PaxosSlot slot)
{
	SimJournal *journal = &node->journal;
	PaxosBallot promise = {0, 0};
	size_t		end = 0;

	while (end < journal->durable && journal->records[end].slot <= slot)
		end++;
	end = sim_chance(sim, SIM_MILLION / 2) ? end : sim_below(sim, end + 1);
	for (size_t i = 0; i < end; i++)
	{
		SimRecord  *record = &journal->records[i];

		if (paxos_ballot_compare(record->ballot, promise) > 0)
			promise = record->ballot;
		if (record->type == PAXOS_RECORD_ACCEPTED && journal->last_record[record->slot] == i + 1)
			journal->last_record[record->slot] = 0;
		*record = (SimRecord) {.type = SIM_RECORD_HOLE};
	}
	if (end > 0)
		journal->records[0] = (SimRecord) {.type = PAXOS_RECORD_PROMISE, .ballot = promise};
	sim_trace(sim, "trim", node->id, slot, end, promise.round);
}

void
sim_journal_recover(Sim *sim, SimNode *node)
{
	(void) sim;
	node->journal.recovered = node->journal.count;
	node->journal.persisted = 0;
}

/* The last ACCEPTED record of a slot, durable or not; NULL if there is none. */
const SimRecord *
sim_journal_last(const SimNode *node, PaxosSlot slot)
{
	const SimJournal *journal = &node->journal;

	if (slot >= journal->slot_capacity || journal->last_record[slot] == 0)
		return NULL;
	return &journal->records[journal->last_record[slot] - 1];
}

/* Does the last durable record of the slot hold this value? */
bool
sim_journal_holds(const SimNode *node, PaxosSlot slot, uint32_t value)
{
	const SimJournal *journal = &node->journal;
	const SimRecord *last = sim_journal_last(node, slot);

	if (last == NULL)
		return false;
	if ((size_t) (last - journal->records) < journal->durable)
		return last->value == value;
	for (size_t i = journal->durable; i > 0; i--)
	{
		const SimRecord *record = &journal->records[i - 1];

		if (record->type == PAXOS_RECORD_ACCEPTED && record->slot == slot)
			return record->value == value;
	}
	return false;
}
