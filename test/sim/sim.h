/*
 * sim.h
 *	  A deterministic discrete-event simulation of a whole cluster around the real consensus core.
 *
 * One process, one thread.  Everything that can happen is an entry of one queue ordered by virtual time, every choice is
 * drawn from one generator that the seed fills, so the same seed gives the same run, down to the hash of its trace.
 *
 *	run.c			one run: what the seed draws, the event queue's loop, the phases
 *	random.c		the generator and the event queue
 *	network.c		encoded frames that are lost, delayed, doubled, reordered, garbled, and links that are cut
 *	journal.c		a node's disk: what was appended, what is durable, what a crash leaves
 *	snapshot.c		logs that begin late: trimmed journals, snapshots from a donor
 *	node.c			the host of one core: its loop, its effects, crash and restart
 *	clients.c		proposals, reads, configuration changes
 *	faults.c		what goes wrong, and when
 *	values.c		every value that a client ever proposed
 *	observer.c		knows everything, and checks the protocol's invariants at each record, frame and delivery
 *	wire.c			what a message says, for the observer and the trace
 *	liveness.c		after healing: does the cluster come back, and stay calm
 *	main.c			arguments, many runs, several processes
 *
 * Invariants, by the names under which a failing run reports them, stand at the head of observer.c and liveness.c.
 *
 * It never reads a clock or anything else of the machine that it runs on.
 */
#ifndef SIM_H
#define SIM_H

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "consensus/core/base.h"
#include "consensus/core/paxos.h"

#define SIM_MAX_NODES 9			/* node ids are 1 to 9 */
#define SIM_MILLION 1000000u
#define SIM_FOREVER UINT64_MAX

typedef uint64_t SimTime;		/* virtual microseconds */

#define SIM_MS(n) ((SimTime) (n) * 1000)

typedef struct SimRandom
{
	uint64_t	state[4];
} SimRandom;

/* What the seed draws for a run.  Chances are in parts per million. */
typedef struct SimPlan
{
	uint32_t	founder_count;	/* voters of the first configuration */
	bool		membership;		/* configurations change while it runs */
	bool		reckless;		/* voters are made of nodes that have not caught up, one change right after the other */
	uint32_t	membership_share;	/* of the clients' requests, then */
	bool		has_goals;		/* it grows and shrinks by turns; otherwise changes are drawn one by one */
	uint32_t	transfer_share; /* of the clients' requests */
	uint32_t	trim_share;		/* of the clients' requests: some node trims its journal */
	uint32_t	old_share;		/* of the starts of nodes: that build speaks an older version only */
	uint32_t	probe_share;	/* of the read probes that arrive: answered beside the node's loop */
	SimTime		fault_phase;	/* how long things go wrong */
	uint64_t	max_steps;		/* and at most this many events of it */

	uint32_t	heartbeat_interval_ms;
	uint32_t	election_timeout_ms;
	uint32_t	window_slots;
	uint64_t	window_bytes;
	uint32_t	max_outstanding;
	uint32_t	resend_interval_ms;
	uint32_t	inputs_per_loop;
	SimTime		loop_latency;

	bool		in_order;		/* links keep the order of frames, as TCP does */
	bool		link_hints;
	uint32_t	loss_chance;
	uint32_t	starve_chance;	/* of losing a frame that teaches chosen values, so that some stay far behind */
	uint32_t	double_chance;
	uint32_t	straggler_chance;	/* a frame that arrives seconds later */
	uint32_t	garble_chance;
	SimTime		delay_min;
	SimTime		delay_spread;

	SimTime		disk_delay_min;
	SimTime		disk_delay_spread;
	uint32_t	disk_stall_chance;

	uint32_t	crash_at_sync_chance;	/* durable, and dead before anything was sent */
	uint32_t	crash_at_send_chance;	/* some of the frames of a step are out, the others never will be */

	SimTime		fault_interval;
	uint32_t	fault_weight[24];	/* by SimFaultKind */

	SimTime		client_interval;
	uint32_t	burst_max;
	uint32_t	payload_max;
	uint32_t	read_share;		/* of the clients' requests */
	uint32_t	leader_share;	/* of the clients' requests that go where a leader is thought to be */
} SimPlan;

typedef enum SimEventKind
{
	SIM_FRAME,					/* a frame arrives */
	SIM_WAKE,					/* a node's loop runs */
	SIM_SYNC,					/* a node's disk has finished a sync */
	SIM_RESTART,
	SIM_FAULT,					/* the next fault is drawn */
	SIM_CLIENT,					/* the next request is drawn */
	SIM_ACTION					/* a step of a fault that has several */
} SimEventKind;

typedef enum SimActionKind
{
	SIM_DO_CRASH,
	SIM_DO_ISOLATE,
	SIM_DO_DEAFEN,
	SIM_DO_PROPOSE,
	SIM_DO_READ,
	SIM_DO_CONFIGURE,
	SIM_DO_HINT_UP,
	SIM_DO_HINT_DOWN,
	SIM_DO_JOIN,
	SIM_DO_TRANSFER,
	SIM_DO_SNAPSHOT,
	SIM_DO_INSTALL
} SimActionKind;

typedef struct SimFrame
{
	uint32_t	references;
	uint32_t	from;
	uint32_t	to;
	bool		garbled;
	SimTime		sent_at;
	size_t		length;
	uint8_t		bytes[];
} SimFrame;

typedef struct SimEvent
{
	SimTime		at;
	uint64_t	order;			/* ties are broken by the order of scheduling */
	SimEventKind kind;
	uint32_t	node;
	uint32_t	life;			/* of the node, where the event dies with it */
	SimActionKind action;
	uint64_t	argument;
	SimFrame   *frame;
} SimEvent;

/* A value that some client proposed; its number is its index.  Number 0 is the no-op. */
typedef struct SimValue
{
	PaxosValueKind kind;
	PaxosProposalId id;
	uint32_t	length;
	uint8_t    *bytes;
	bool		acknowledged;
	PaxosSlot	effective_slot; /* where it took effect; 0: not yet */
} SimValue;

#define SIM_RECORD_HOLE ((PaxosRecordType) 0)	/* was trimmed */

typedef struct SimRecord
{
	PaxosRecordType type;
	PaxosSlot	slot;
	PaxosBallot ballot;
	uint32_t	value;			/* number; of ACCEPTED and CONFIG */
} SimRecord;

typedef struct SimJournal
{
	SimRecord  *records;
	size_t		count;
	size_t		capacity;
	size_t		durable;		/* records before this index survive a crash */
	size_t		syncing;		/* a sync up to this index is under way; 0: none */
	size_t		recovered;		/* records that the last recovery found: the core's record n stands at recovered + n - 1 */
	uint64_t	persisted;		/* last number that the core was told */
	size_t	   *last_record;	/* by slot: index + 1 of its last ACCEPTED record */
	size_t		slot_capacity;
} SimJournal;

/* What follows from the log up to a slot. */
typedef struct SimBase
{
	PaxosSlot	slot;
	PaxosConfig config;
	PaxosOrigins origins;
} SimBase;

typedef enum SimInputKind
{
	SIM_INPUT_FRAME,
	SIM_INPUT_PROPOSAL,
	SIM_INPUT_READ,
	SIM_INPUT_PERSISTED,
	SIM_INPUT_LINK,
	SIM_INPUT_TRANSFER
} SimInputKind;

typedef struct SimInput
{
	SimInputKind kind;
	SimFrame   *frame;
	PaxosValueKind value_kind;	/* PROPOSAL; its bytes are from malloc and the inbox owns them */
	uint32_t	length;
	uint8_t    *bytes;
	uint64_t	number;			/* READ: id; LINK: peer; TRANSFER: target */
	bool		link_up;
} SimInput;

typedef struct SimRead
{
	uint64_t	id;
	PaxosSlot	floor;			/* what it must see */
	PaxosSlot	read_index;		/* 0: not answered yet */
} SimRead;

#define SIM_MAX_READS 64
#define SIM_MAX_INPUTS 4096

typedef struct SimNode
{
	uint32_t	id;
	bool		exists;			/* has a journal */
	bool		alive;
	uint32_t	life;			/* counts starts and crashes */
	uint64_t	incarnation;
	PaxosCore  *core;
	uint64_t	clock_offset_ms;
	SimTime		wake_at;		/* 0: none scheduled */
	SimTime		deadline;
	SimTime		paused_until;
	SimTime		slow_disk_until;
	SimTime		banned_until;	/* it may not lead */
	bool		may_lead;		/* as the core was told */

	uint32_t	frame_version;	/* the newest that this start understands */
	PaxosReadState read_state;	/* as published: what answers read probes, also while the node is paused */

	SimJournal	journal;
	SimBase    *base;			/* its log begins behind it; NULL: at 1 */
	SimBase    *incoming;		/* a snapshot that is being copied; NULL: none */
	bool		snapshot_under_way; /* one will be */
	SimInput   *inputs;			/* ring of SIM_MAX_INPUTS */
	uint32_t	input_head;
	uint32_t	input_count;

	uint64_t	next_sequence;
	uint64_t	next_read_id;
	SimRead		reads[SIM_MAX_READS];
	uint32_t	read_count;
	PaxosSlot	delivered;
	uint64_t	acknowledged;	/* of this incarnation */

	/* the observer's */
	PaxosSlot	durable_chosen; /* a durable record says that everything up to here is chosen */
	PaxosBallot durable_promise;
	PaxosBallot appended_promise;	/* in the journal, durable or not */
} SimNode;

/* What was accepted in one ballot at one slot. */
typedef struct SimVote
{
	PaxosBallot ballot;
	uint32_t	value;
	uint32_t	accepted_by;	/* bit per node id: durable there, at some time */
} SimVote;

typedef struct SimSlot
{
	SimVote    *votes;
	uint32_t	vote_count;
	uint32_t	vote_capacity;
	bool		chosen;
	bool		duplicate;
	uint32_t	chosen_value;
	PaxosBallot chosen_ballot;
} SimSlot;

/* Which start of a node used a ballot. */
typedef struct SimBallotUse
{
	PaxosBallot ballot;
	uint64_t	incarnation;
} SimBallotUse;

typedef struct Sim
{
	uint64_t	seed;
	SimPlan		plan;
	SimRandom	random;
	SimTime		now;
	uint64_t	steps;
	bool		trace;
	bool		faulty;			/* the fault phase; false: healed */
	uint64_t	hash;

	SimEvent   *events;			/* binary heap */
	size_t		event_count;
	size_t		event_capacity;
	uint64_t	event_order;

	SimNode		nodes[SIM_MAX_NODES + 1];	/* by id; 0 is unused */
	SimTime		cut_until[SIM_MAX_NODES + 1][SIM_MAX_NODES + 1];	/* from, to */
	SimTime		lossy_until[SIM_MAX_NODES + 1][SIM_MAX_NODES + 1];
	SimTime		slow_link_until[SIM_MAX_NODES + 1][SIM_MAX_NODES + 1];
	SimTime		slow_until;		/* the whole network */
	SimTime		forget_before;	/* frames that were sent earlier no longer arrive */
	SimTime		last_arrival[SIM_MAX_NODES + 1][SIM_MAX_NODES + 1];	/* for links that keep the order */

	SimValue   *values;
	uint32_t	value_count;
	uint32_t	value_capacity;
	uint32_t   *value_table;	/* open addressing, by id */
	uint32_t	value_table_size;

	SimSlot    *slots;			/* by slot; 0 is unused */
	PaxosSlot	slot_capacity;
	PaxosSlot	chosen_prefix;	/* every slot up to here is chosen, as the observer knows */
	PaxosConfig config;			/* in force behind the prefix */
	uint32_t	founders;		/* value number of the first configuration */
	uint64_t	newest_incarnation[SIM_MAX_NODES + 1];	/* in the chosen prefix, by origin */
	PaxosSlot	read_floor;		/* the highest slot whose effect someone has seen */
	SimBallotUse *ballot_uses;
	uint32_t	ballot_use_count;
	uint32_t	ballot_use_capacity;

	PaxosAllocator allocator;
	int64_t		allocations;
	int64_t		allocated_bytes;

	uint64_t	acknowledged;
	uint64_t	reads_answered;
	uint64_t	crashes;
	uint64_t	configs_chosen;
	uint64_t	probes_answered;	/* beside the loop */
	uint64_t	transfers;		/* that leaders took */
	uint64_t	bases;			/* journals trimmed, snapshots included */
	uint64_t	snapshots;
	uint32_t	goal;			/* voters that the clients work towards */
	bool		stuck;			/* ended without a leader, as a reckless run may */

	jmp_buf		failed;
	const char *invariant;
	char		detail[512];
} Sim;

/* run.c */
extern bool sim_run(Sim *sim, uint64_t seed, uint64_t max_steps, bool trace);
extern void sim_advance(Sim *sim, SimTime until);
extern void sim_fail(Sim *sim, const char *invariant, const char *format, ...)
			__attribute__((format(printf, 3, 4), noreturn));
extern void sim_check(Sim *sim, bool holds, const char *invariant, const char *text, uint64_t a, uint64_t b);
extern void sim_trace(Sim *sim, const char *what, uint32_t node, uint64_t a, uint64_t b, uint64_t c);

/* random.c */
extern void sim_random_seed(SimRandom *random, uint64_t seed);
extern uint64_t sim_random(Sim *sim);
extern uint64_t sim_below(Sim *sim, uint64_t limit);	/* 0 <= result < limit */
extern bool sim_chance(Sim *sim, uint32_t parts_per_million);
extern uint64_t sim_mix(uint64_t hash, uint64_t number);
extern void sim_schedule(Sim *sim, SimEvent event);
extern bool sim_next_event(Sim *sim, SimTime until, SimEvent *event);

/* network.c */
extern void sim_network_send(Sim *sim, uint32_t from, uint32_t to, const uint8_t *bytes, size_t length, bool teaches);
extern void sim_frame_release(SimFrame *frame);
extern void sim_cut(Sim *sim, uint32_t from, uint32_t to, SimTime duration);
extern void sim_cut_both(Sim *sim, uint32_t a, uint32_t b, SimTime duration);
extern void sim_isolate(Sim *sim, uint32_t node, SimTime duration);
extern void sim_deafen(Sim *sim, uint32_t node, SimTime duration);
extern void sim_mute(Sim *sim, uint32_t node, SimTime duration);
extern void sim_network_heal(Sim *sim);

/* journal.c */
extern void sim_journal_found(Sim *sim, SimNode *node, PaxosSlot slot, uint32_t value);
extern void sim_journal_append(Sim *sim, SimNode *node, const PaxosRecord *record);
extern void sim_journal_start_sync(Sim *sim, SimNode *node);
extern void sim_journal_sync_done(Sim *sim, SimNode *node, size_t up_to);
extern void sim_journal_crash(Sim *sim, SimNode *node);
extern void sim_journal_trim(Sim *sim, SimNode *node, PaxosSlot slot);
extern void sim_journal_recover(Sim *sim, SimNode *node);
extern const SimRecord *sim_journal_last(const SimNode *node, PaxosSlot slot);
extern bool sim_journal_holds(const SimNode *node, PaxosSlot slot, uint32_t value);

/* snapshot.c */
extern void sim_base_free(SimBase *base);
extern PaxosSlot sim_base_slot(const SimNode *node);
extern void sim_trim(Sim *sim, SimNode *node);
extern void sim_restore_base(Sim *sim, SimNode *node);
extern void sim_snapshot_needed(Sim *sim, SimNode *node, PaxosSlot first_held, uint32_t from);
extern void sim_snapshot_capture(Sim *sim, SimNode *node, uint32_t from);
extern void sim_snapshot_install(Sim *sim, SimNode *node);

/* node.c */
extern void sim_node_set_version(Sim *sim, SimNode *node, uint32_t frame_version);
extern void sim_node_create(Sim *sim, uint32_t id, PaxosSlot config_slot, uint32_t config_value);
extern void sim_node_start(Sim *sim, SimNode *node);
extern void sim_node_crash(Sim *sim, SimNode *node, SimTime down_for);
extern void sim_node_wake(Sim *sim, SimNode *node);
extern void sim_node_wake_at(Sim *sim, SimNode *node, SimTime at);
extern bool sim_node_answers(Sim *sim, SimNode *node, const SimFrame *frame);
extern bool sim_node_input(Sim *sim, SimNode *node, SimInput input);
extern void sim_node_pause(Sim *sim, SimNode *node, SimTime duration);
extern uint64_t sim_node_clock(const Sim *sim, const SimNode *node);
extern void sim_node_status(const Sim *sim, const SimNode *node, PaxosStatus *status);
extern bool sim_node_is_member(const Sim *sim, uint32_t id);

/* clients.c */
extern void sim_client_next(Sim *sim);
extern bool sim_propose(Sim *sim, SimNode *node);
extern bool sim_voters_are_aware(const Sim *sim);
extern void sim_propose_config(Sim *sim);
extern bool sim_read(Sim *sim, SimNode *node);
extern bool sim_transfer(Sim *sim, SimNode *node, uint32_t target);
extern bool sim_propose_members(Sim *sim, SimNode *node, const PaxosConfig *config);
extern void sim_read_answered(Sim *sim, SimNode *node, const PaxosReadResult *result);
extern void sim_reads_advance(Sim *sim, SimNode *node);
extern uint32_t sim_guess_leader(Sim *sim);
extern uint32_t sim_pick_node(Sim *sim);

/* faults.c */
extern void sim_fault_plan(Sim *sim);
extern void sim_fault_next(Sim *sim);
extern void sim_link_up(Sim *sim, SimNode *node, uint32_t peer);
extern void sim_fault_action(Sim *sim, const SimEvent *event);

/* values.c */
extern void sim_values_init(Sim *sim);
extern void sim_values_free(Sim *sim);
extern uint32_t sim_value_add(Sim *sim, PaxosValueKind kind, PaxosProposalId id, const uint8_t *bytes, uint32_t length);
extern void sim_value_forget_last(Sim *sim);
extern uint32_t sim_value_find(Sim *sim, PaxosValueKind kind, PaxosProposalId id, const uint8_t *bytes, uint32_t length);
extern uint32_t sim_value_number(Sim *sim, const PaxosValue *value);
extern PaxosValue *sim_value_make(Sim *sim, uint32_t number);

/* observer.c */
extern void sim_observe_appended(Sim *sim, SimNode *node, const SimRecord *record);
extern void sim_observe_durable(Sim *sim, SimNode *node, const SimRecord *record);
extern void sim_observe_recovered(Sim *sim, SimNode *node);
extern void sim_observe_delivered(Sim *sim, SimNode *node, const PaxosChosen *chosen);
extern void sim_observe_status(Sim *sim, SimNode *node);
extern void sim_observe_prepare(Sim *sim, SimNode *from, PaxosBallot ballot);
extern void sim_observe_leading(Sim *sim, SimNode *from, PaxosBallot ballot);
extern void sim_observe_promise(Sim *sim, SimNode *from, PaxosBallot ballot);
extern void sim_observe_told(Sim *sim, SimNode *from, PaxosSlot slot, PaxosBallot ballot, uint32_t value);
extern void sim_observe_not_told(Sim *sim, SimNode *from, PaxosSlot first_slot, PaxosSlot last_slot);
extern void sim_observe_proposed(Sim *sim, SimNode *from, PaxosSlot slot, PaxosBallot ballot, uint32_t value);
extern void sim_observe_accepted(Sim *sim, SimNode *from, PaxosSlot slot, PaxosBallot ballot);
extern void sim_observe_taught(Sim *sim, SimNode *from, PaxosSlot slot, uint32_t value);
extern void sim_observe_chosen_hint(Sim *sim, SimNode *from, PaxosSlot slot);
extern SimSlot *sim_slot(Sim *sim, PaxosSlot slot);

/* wire.c */
extern bool sim_message_teaches(const PaxosMessage *message);
extern void sim_observe_message(Sim *sim, SimNode *from, const PaxosOutMessage *out);

/* liveness.c */
extern void sim_heal(Sim *sim);
extern void sim_check_liveness(Sim *sim);
extern void sim_check_calm(Sim *sim);

#endif							/* SIM_H */
