/*
 * core_cluster.h
 *	  An in-memory host for up to CLUSTER_NODES cores: a perfect network with cuts, journals in arrays, a clock that the test turns.
 *
 * Each node's loop is that of the real host: messages, FLUSH, sync, PERSISTED; read probes are answered beside it.  Frames go through the codec.  Include it
 * in one C file per program.
 */
#ifndef TEST_UNIT_CORE_CLUSTER_H
#define TEST_UNIT_CORE_CLUSTER_H

#include <stdlib.h>
#include <string.h>

#include "consensus/core/base.h"
#include "consensus/core/message.h"
#include "consensus/core/paxos.h"
#include "tap.h"

#define CLUSTER_NODES 5
#define CLUSTER_ITEMS 20000

typedef struct Frame
{
	uint32_t	from;
	uint32_t	to;
	size_t		length;
	uint8_t    *bytes;
} Frame;

typedef struct Delivered
{
	PaxosSlot	slot;
	PaxosValue *value;
	bool		duplicate;
} Delivered;

typedef struct Node
{
	PaxosCore  *core;			/* NULL: down */
	uint64_t	incarnation;
	PaxosRecord *records;		/* the journal, over all lives */
	size_t		record_count;
	size_t		durable_count;
	size_t		life_start;		/* records before this life */
	bool		disk_is_held;	/* syncs do not end */
	Delivered  *delivered;
	size_t		delivered_count;
	PaxosReadResult reads[64];
	size_t		read_count;
	uint64_t	deadline_ms;
	uint64_t	next_sequence;
	unsigned	sent[PAXOS_MESSAGE_TYPE_END];	/* frames by type, also those that were cut */
	unsigned	catch_ups;
	bool		refused;		/* the last proposal */
	bool		transfer_refused;	/* the last transfer */
	PaxosSlot	base_slot;		/* its log begins behind this one at its next start, and it teaches none up to it */
	uint8_t    *base;			/* bytes of that base; NULL: none */
	size_t		base_length;
	PaxosSlot	snapshot_needed;	/* as last told */
	uint32_t	snapshot_from;
	uint32_t	frame_version;	/* that others think it understands; 0: the newest */
	PaxosReadState read_state;	/* as published: what probes are answered from */
	bool		loop_is_held;	/* nothing but probes is answered, and frames wait */
	unsigned	probes_answered;	/* from what is published */
} Node;

typedef struct Cluster
{
	uint64_t	now_ms;
	uint64_t	random;
	uint32_t	window_slots;
	Node		nodes[CLUSTER_NODES + 1];	/* by node id */
	bool		cut[CLUSTER_NODES + 1][CLUSTER_NODES + 1];	/* from, to */
	Frame	   *frames;
	size_t		frame_count;
	size_t		allocated;
} Cluster;

static Cluster cluster;

void
paxos_assertion_failed(const char *condition, const char *file, int line)
{
	fprintf(stderr, "assertion failed: %s at %s:%d\n", condition, file, line);
	abort();
}

static inline void *
cluster_allocate(void *context, size_t size)
{
	((Cluster *) context)->allocated++;
	return malloc(size);
}

static inline void
cluster_release(void *context, void *pointer)
{
	((Cluster *) context)->allocated--;
	free(pointer);
}

static const PaxosAllocator allocator = {cluster_allocate, cluster_release, &cluster};

static inline uint64_t
cluster_random(void)
{
	cluster.random = cluster.random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return cluster.random ^ cluster.random >> 29;
}

static inline PaxosValue *
config_value(const PaxosConfig *config, uint64_t sequence)
{
	uint8_t		bytes[128];
	size_t		length = paxos_config_encode(config, bytes, sizeof(bytes));
	PaxosProposalId id = {1, 1, sequence};

	return paxos_value_make(&allocator, PAXOS_VALUE_CONFIG, id, bytes, (uint32_t) length);
}

/* Members 1 … voters are voters, the next `learners` are learners. */
static inline PaxosConfig
make_config(uint32_t voters, uint32_t learners)
{
	PaxosConfig config;

	memset(&config, 0, sizeof(config));
	for (uint32_t id = 1; id <= voters + learners; id++)
		config.members[config.member_count++] = (PaxosMember) {id, id <= voters};
	return config;
}

/* ---- effects ---- */

static inline void
keep_record(Node *node, const PaxosRecord *record)
{
	PaxosRecord *kept = &node->records[node->record_count++];

	if (node->record_count > CLUSTER_ITEMS)
		abort();
	*kept = *record;
	if (kept->value != NULL)
		paxos_value_retain(kept->value);
}

static inline void
queue_frame(uint32_t from, uint32_t to, const uint8_t *bytes, size_t length)
{
	Frame	   *frame;

	if (to > CLUSTER_NODES || cluster.cut[from][to])
		return;
	if (cluster.frame_count == CLUSTER_ITEMS)
		abort();
	frame = &cluster.frames[cluster.frame_count++];
	*frame = (Frame) {from, to, length, malloc(length)};
	memcpy(frame->bytes, bytes, length);
}

static inline void
send_message(uint32_t from, uint32_t to, const PaxosMessage *message)
{
	size_t		length = paxos_message_size(message);
	uint8_t    *bytes = malloc(length);

	if (paxos_message_encode(message, bytes, length) != length)
		abort();
	cluster.nodes[from].sent[message->type]++;
	queue_frame(from, to, bytes, length);
	free(bytes);
}

static inline void
answer_catch_up(uint32_t id, const PaxosCatchUp *wanted)
{
	static uint8_t frame[2 * PAXOS_FRAME_TARGET_BYTES];
	PaxosValue *values[PAXOS_MAX_ENTRIES_PER_MESSAGE];
	Node	   *node = &cluster.nodes[id];
	size_t		count = 0;
	size_t		length;

	node->catch_ups++;
	if (wanted->first_slot <= node->base_slot)
	{
		length = paxos_encode_trimmed(node->core, wanted->to, node->base_slot + 1, frame, sizeof(frame));
		if (length > 0)
			queue_frame(id, wanted->to, frame, length);
		return;
	}
	for (PaxosSlot slot = wanted->first_slot; slot <= wanted->last_slot && count < PAXOS_MAX_ENTRIES_PER_MESSAGE; slot++)
		values[count++] = node->delivered[slot - 1].value;
	paxos_encode_learn(node->core, wanted->first_slot, values, count, frame, sizeof(frame), &length);
	queue_frame(id, wanted->to, frame, length);
}

static inline void
do_effects(uint32_t id, const PaxosEffects *effects)
{
	Node	   *node = &cluster.nodes[id];

	paxos_read_state(node->core, &node->read_state);
	for (size_t i = 0; i < effects->record_count; i++)
	{
		ok_quietly(effects->records[i].number == node->record_count - node->life_start + 1, "records are numbered without gaps");
		keep_record(node, &effects->records[i]);
	}
	for (size_t i = 0; i < effects->message_count; i++)
		send_message(id, effects->messages[i].to, effects->messages[i].message);
	for (size_t i = 0; i < effects->chosen_count; i++)
	{
		const PaxosChosen *chosen = &effects->chosen[i];

		ok_quietly(chosen->slot == node->delivered_count + 1, "slots are delivered in order");
		node->delivered[node->delivered_count++] =
			(Delivered) {chosen->slot, paxos_value_retain(chosen->value), chosen->duplicate};
	}
	for (size_t i = 0; i < effects->catch_up_count; i++)
		answer_catch_up(id, &effects->catch_ups[i]);
	for (size_t i = 0; i < effects->read_count && node->read_count < 64; i++)
		node->reads[node->read_count++] = effects->reads[i];
	node->refused = effects->proposal_refused;
	node->transfer_refused = effects->transfer_refused;
	if (effects->snapshot_needed != 0)
	{
		node->snapshot_needed = effects->snapshot_needed;
		node->snapshot_from = effects->snapshot_from;
	}
	node->deadline_ms = effects->next_deadline_ms;
}

static inline void
step(uint32_t id, PaxosEvent event)
{
	PaxosEffects effects;

	event.now_ms = cluster.now_ms;
	event.random = cluster_random();
	paxos_step(cluster.nodes[id].core, &event, &effects);
	do_effects(id, &effects);
}

/* ---- life ---- */

static inline PaxosSettings
node_settings(uint32_t id)
{
	PaxosSettings settings = {
		.node_id = id, .incarnation = cluster.nodes[id].incarnation, .heartbeat_interval_ms = 20,
		.election_timeout_ms = 100, .window_slots = cluster.window_slots, .window_bytes = 8 * 1024 * 1024,
		.max_outstanding_proposals = 1024, .resend_interval_ms = 30
	};

	return settings;
}

/* All but what stands below the base: that is what its tables hold. */
static inline void
forget_delivered(Node *node, PaxosSlot base_slot)
{
	while (node->delivered_count > base_slot)
		paxos_value_release(&allocator, node->delivered[--node->delivered_count].value);
}

static inline void
tell_versions(uint32_t id)
{
	for (uint32_t peer = 1; peer <= CLUSTER_NODES; peer++)
	{
		uint32_t	version = cluster.nodes[peer].frame_version;

		if (peer != id)
			paxos_set_peer_version(cluster.nodes[id].core, peer, version == 0 ? PAXOS_NEWEST_FRAME_VERSION : version);
	}
}

static inline void
start_node(uint32_t id)
{
	Node	   *node = &cluster.nodes[id];
	PaxosSettings settings;
	PaxosEffects effects;

	node->incarnation++;
	node->next_sequence = 1;
	settings = node_settings(id);
	forget_delivered(node, node->base_slot);
	node->core = paxos_create(&settings, &allocator);
	if (node->base != NULL)
		ok_quietly(paxos_restore_base(node->core, node->base_slot, node->base, node->base_length), "a base is restored");
	node->life_start = node->record_count;
	for (size_t i = 0; i < node->record_count; i++)
	{
		size_t		count_before = node->record_count;

		paxos_restore(node->core, &node->records[i], &effects);
		ok_quietly(effects.record_count == 0 && effects.message_count == 0, "recovery emits deliveries only");
		do_effects(id, &effects);
		if (node->record_count != count_before)
			abort();
	}
	tell_versions(id);
	paxos_start(node->core, cluster.now_ms, cluster_random(), &effects);
	do_effects(id, &effects);
}

/* What was not durable is lost. */
static inline void
stop_node(uint32_t id)
{
	Node	   *node = &cluster.nodes[id];

	paxos_destroy(node->core);
	node->core = NULL;
	memset(&node->read_state, 0, sizeof(node->read_state));
	while (node->record_count > node->durable_count)
	{
		PaxosRecord *record = &node->records[--node->record_count];

		if (record->value != NULL)
			paxos_value_release(&allocator, record->value);
	}
}

/* What a compaction finds in the log of a node up to a slot, as its base; the node is down, or goes on with what it holds. */
static inline void
make_base(uint32_t log_id, PaxosSlot slot, uint32_t id)
{
	const Node *log = &cluster.nodes[log_id];
	Node	   *node = &cluster.nodes[id];
	PaxosOrigins origins;
	PaxosConfig config;

	if (slot > log->delivered_count || log->records[0].type != PAXOS_RECORD_CONFIG)
		abort();
	paxos_origins_init(&origins, &allocator);
	paxos_config_decode(&config, log->records[0].value->bytes, log->records[0].value->length);
	for (PaxosSlot s = 1; s <= slot; s++)
	{
		const PaxosValue *value = log->delivered[s - 1].value;

		if (value->kind != PAXOS_VALUE_NOOP && !paxos_origins_note(&origins, value->id) && value->kind == PAXOS_VALUE_CONFIG)
		{
			paxos_config_decode(&config, value->bytes, value->length);
			config.slot = s;
		}
	}
	free(node->base);
	node->base_slot = slot;
	node->base_length = paxos_base_size(&config, &origins);
	node->base = malloc(node->base_length);
	ok_quietly(paxos_base_encode(slot, &config, &origins, node->base, node->base_length - 1) == 0 &&
			   paxos_base_encode(slot, &config, &origins, node->base, node->base_length) == node->base_length, "a base is encoded");
	paxos_origins_free(&origins);
}

/* Drops the records up to the base, but for the first (its founding) and the highest ballot. */
static inline void
trim_journal(uint32_t id)
{
	Node	   *node = &cluster.nodes[id];
	PaxosRecord promise = {.type = PAXOS_RECORD_PROMISE};
	size_t		kept = 1;

	if (node->core != NULL || node->base == NULL)
		abort();
	for (size_t i = 1; i < node->record_count; i++)
	{
		PaxosRecord *record = &node->records[i];

		if (paxos_ballot_compare(record->ballot, promise.ballot) > 0)
			promise.ballot = record->ballot;
		if (record->slot > node->base_slot)
			node->records[kept++] = *record;
		else if (record->value != NULL)
			paxos_value_release(&allocator, record->value);
	}
	node->records[kept++] = promise;
	node->record_count = node->durable_count = kept;
}

/* The tables of `from`, as of all that it has delivered, with the base that belongs to them; the node is down. */
static inline void
install_snapshot(uint32_t from, uint32_t id)
{
	Node	   *node = &cluster.nodes[id];

	make_base(from, cluster.nodes[from].delivered_count, id);
	forget_delivered(node, 0);
	for (PaxosSlot slot = 1; slot <= node->base_slot; slot++)
	{
		node->delivered[slot - 1] = cluster.nodes[from].delivered[slot - 1];
		paxos_value_retain(node->delivered[slot - 1].value);
	}
	node->delivered_count = node->base_slot;
	trim_journal(id);
}

/* Gives the node its bootstrap configuration, and starts it. */
static inline void
bootstrap_node(uint32_t id, const PaxosConfig *config)
{
	Node	   *node = &cluster.nodes[id];
	PaxosRecord record = {.type = PAXOS_RECORD_CONFIG, .slot = config->slot, .value = config_value(config, 1)};

	node->records = calloc(CLUSTER_ITEMS, sizeof(PaxosRecord));
	node->delivered = calloc(CLUSTER_ITEMS, sizeof(Delivered));
	keep_record(node, &record);
	paxos_value_release(&allocator, record.value);
	node->durable_count = 1;
	start_node(id);
}

static inline void
start_cluster(uint32_t voters, uint32_t window_slots)
{
	PaxosConfig config = make_config(voters, 0);

	memset(&cluster, 0, sizeof(cluster));
	cluster.now_ms = 1000;
	cluster.random = 42;
	cluster.window_slots = window_slots;
	cluster.frames = calloc(CLUSTER_ITEMS, sizeof(Frame));
	for (uint32_t id = 1; id <= voters; id++)
		bootstrap_node(id, &config);
}

/* Says whether everything was given back. */
static inline void
stop_cluster(void)
{
	for (uint32_t id = 1; id <= CLUSTER_NODES; id++)
	{
		Node	   *node = &cluster.nodes[id];

		if (node->core != NULL)
			stop_node(id);
		forget_delivered(node, 0);
		free(node->base);
		for (size_t i = 0; i < node->record_count; i++)
			if (node->records[i].value != NULL)
				paxos_value_release(&allocator, node->records[i].value);
		free(node->records);
		free(node->delivered);
	}
	for (size_t i = 0; i < cluster.frame_count; i++)
		free(cluster.frames[i].bytes);
	free(cluster.frames);
	ok_quietly(cluster.allocated == 0, "all memory is given back");
}

/* ---- time ---- */

static inline bool
answer_probe(const Frame *frame)
{
	Node	   *node = &cluster.nodes[frame->to];
	uint8_t		bytes[64];
	size_t		length = paxos_answer_probe(&node->read_state, frame->from, frame->bytes, frame->length, bytes, sizeof(bytes));

	if (length == 0)
		return false;
	node->probes_answered++;
	queue_frame(frame->to, frame->from, bytes, length);
	return true;
}

static inline void
receive(const Frame *frame)
{
	Node	   *node = &cluster.nodes[frame->to];
	const char *why;
	const PaxosMessage *message;

	if (node->core == NULL || cluster.cut[frame->from][frame->to] || answer_probe(frame))
		return;
	if (node->loop_is_held)
	{
		queue_frame(frame->from, frame->to, frame->bytes, frame->length);
		return;
	}
	message = paxos_message_decode(node->core, frame->bytes, frame->length, &why);
	ok_quietly(message != NULL, "frames that cores make can be decoded");
	step(frame->to, (PaxosEvent) {.type = PAXOS_EVENT_MESSAGE, .peer_id = frame->from, .message = message});
}

static inline void
sync_node(uint32_t id)
{
	Node	   *node = &cluster.nodes[id];

	if (node->disk_is_held || node->durable_count == node->record_count)
		return;
	node->durable_count = node->record_count;
	step(id, (PaxosEvent) {.type = PAXOS_EVENT_PERSISTED, .persisted_record = node->durable_count - node->life_start});
}

/* One loop of each node. */
static inline void
run_loop(void)
{
	Frame	   *frames = cluster.frames;
	size_t		count = cluster.frame_count;

	cluster.frames = calloc(CLUSTER_ITEMS, sizeof(Frame));
	cluster.frame_count = 0;
	for (size_t i = 0; i < count; i++)
	{
		receive(&frames[i]);
		free(frames[i].bytes);
	}
	free(frames);
	for (uint32_t id = 1; id <= CLUSTER_NODES; id++)
	{
		if (cluster.nodes[id].core == NULL || cluster.nodes[id].loop_is_held)
			continue;
		if (cluster.now_ms >= cluster.nodes[id].deadline_ms)
			step(id, (PaxosEvent) {.type = PAXOS_EVENT_TICK});
		step(id, (PaxosEvent) {.type = PAXOS_EVENT_FLUSH});
		sync_node(id);
	}
}

/* A frame takes one millisecond. */
static inline void
run(uint64_t ms)
{
	for (uint64_t i = 0; i < ms; i++)
	{
		run_loop();
		cluster.now_ms++;
	}
}

/* ---- questions and acts ---- */

static inline PaxosStatus
status_of(uint32_t id)
{
	PaxosStatus status;

	paxos_status(cluster.nodes[id].core, cluster.now_ms, &status);
	return status;
}

/* The ready leader of the highest ballot; 0: none. */
static inline uint32_t
leader(void)
{
	uint32_t	found = 0;
	PaxosBallot best = {0, 0};

	for (uint32_t id = 1; id <= CLUSTER_NODES; id++)
	{
		PaxosStatus status;

		if (cluster.nodes[id].core == NULL)
			continue;
		status = status_of(id);
		if (status.role == PAXOS_LEADER && status.leader_is_ready && paxos_ballot_compare(status.ballot, best) > 0)
		{
			found = id;
			best = status.ballot;
		}
	}
	return found;
}

static inline uint32_t
run_until_leader(void)
{
	for (int i = 0; i < 5000 && leader() == 0; i++)
		run(1);
	return leader();
}

/* A heartbeat carries what is chosen, too: begin right after one and its answers, so that none disturbs. */
static inline void
run_past_a_heartbeat(uint32_t first)
{
	unsigned	before = cluster.nodes[first].sent[PAXOS_MESSAGE_HEARTBEAT];

	while (cluster.nodes[first].sent[PAXOS_MESSAGE_HEARTBEAT] == before)
		run(1);
	run(4);
}

static inline void
propose(uint32_t id, const char *text)
{
	step(id, (PaxosEvent) {.type = PAXOS_EVENT_PROPOSAL, .kind = PAXOS_VALUE_DATA,
		.sequence = cluster.nodes[id].next_sequence++, .bytes = (const uint8_t *) text, .length = (uint32_t) strlen(text)});
}

static inline void
propose_config(uint32_t id, const PaxosConfig *config)
{
	uint8_t		bytes[128];
	size_t		length = paxos_config_encode(config, bytes, sizeof(bytes));

	step(id, (PaxosEvent) {.type = PAXOS_EVENT_PROPOSAL, .kind = PAXOS_VALUE_CONFIG,
		.sequence = cluster.nodes[id].next_sequence++, .bytes = bytes, .length = (uint32_t) length});
}

static inline void
transfer(uint32_t id, uint32_t target)
{
	step(id, (PaxosEvent) {.type = PAXOS_EVENT_TRANSFER, .peer_id = target});
}

static inline void
isolate(uint32_t id, bool cut)
{
	for (uint32_t peer = 1; peer <= CLUSTER_NODES; peer++)
		cluster.cut[id][peer] = cluster.cut[peer][id] = cut;
}

static inline bool
delivered_text(uint32_t id, PaxosSlot slot, const char *text)
{
	const Node *node = &cluster.nodes[id];
	const PaxosValue *value;

	if (slot == 0 || slot > node->delivered_count)
		return false;
	value = node->delivered[slot - 1].value;
	return value->kind == PAXOS_VALUE_DATA && value->length == strlen(text) && memcmp(value->bytes, text, value->length) == 0;
}

/* How often a value took effect there. */
static inline int
times_effective(uint32_t id, const char *text)
{
	int			times = 0;

	for (size_t slot = 1; slot <= cluster.nodes[id].delivered_count; slot++)
		if (delivered_text(id, slot, text) && !cluster.nodes[id].delivered[slot - 1].duplicate)
			times++;
	return times;
}

static inline bool
same_log(uint32_t a, uint32_t b)
{
	const Node *x = &cluster.nodes[a];
	const Node *y = &cluster.nodes[b];

	if (x->delivered_count != y->delivered_count)
		return false;
	for (size_t i = 0; i < x->delivered_count; i++)
	{
		const PaxosValue *v = x->delivered[i].value;
		const PaxosValue *w = y->delivered[i].value;

		if (v->kind != w->kind || v->length != w->length || x->delivered[i].duplicate != y->delivered[i].duplicate ||
			memcmp(v->bytes, w->bytes, v->length) != 0)
			return false;
	}
	return true;
}

/* A message that the test makes up, as if `from` had sent it; handled at once. */
static inline void
inject(uint32_t from, uint32_t to, const PaxosMessage *message)
{
	size_t		length = paxos_message_size(message);
	Frame		frame = {from, to, length, malloc(length)};

	paxos_message_encode(message, frame.bytes, length);
	receive(&frame);
	free(frame.bytes);
}

#endif							/* TEST_UNIT_CORE_CLUSTER_H */
