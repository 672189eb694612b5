/*
 * paxos_internal.h
 *	  State of the consensus core, and what its files call of each other.
 *
 * Who changes what:
 *	 paxos.c		life, the step, effects; nothing of the protocol
 *	 slot_window.c	the ring of slots and its bounds
 *	 acceptor.c		promised_ballot, accepted values, what may be reported of them and when
 *	 learner.c		chosen_slot, delivered_slot, teaching of peers that are behind
 *	 origins.c		deduplication
 *	 base.c			a start behind slots that are gone
 *	 election.c		role, leader_id, ballot; phase 1
 *	 proposer.c		phase 2 of the leader
 *	 transfer.c		the end of a term that is meant: hand-over, and a leader that is no voter any more
 *	 proposals.c	what this node proposed and has not yet learned
 *	 reads.c		read indexes
 *	 config.c		members and quorums
 *
 * Order of slots that always holds:  hinted_slot <= delivered_slot <= chosen_slot,  window.base_slot <= delivered_slot + 1.
 */
#ifndef PAXOS_INTERNAL_H
#define PAXOS_INTERNAL_H

#include "message.h"
#include "origins.h"
#include "paxos.h"

#define MAX_PENDING_READS 4096
#define MAX_BYTES_IN_FLIGHT (4u * 1024 * 1024)	/* of unanswered ACCEPTs per peer, exceeded by at most one frame */
#define MAX_FORWARDED_BYTES (1u * 1024 * 1024)	/* of proposals under way to the leader, exceeded by at most one frame */
#define VALUE_OVERHEAD_BYTES 64 /* what a value counts beside its bytes against window_bytes */
#define ANNOUNCE_DELAY_MS 5		/* that slots are chosen waits this long for an ACCEPT to carry it, if nobody waits for it */
#define MAX_DOUBLINGS 3			/* of timeouts that repeat */

/* ---- small parts ---- */

/* Memory that lives until the next step. */
typedef struct ArenaBlock
{
	struct ArenaBlock *next;
	size_t		capacity;
	size_t		used;
} ArenaBlock;

/* A growing array; `items` is reallocated through the core's allocator. */
typedef struct Vector
{
	void	   *items;
	size_t		count;
	size_t		capacity;
} Vector;

typedef struct Slot
{
	PaxosSlot	slot;			/* 0: entry of the ring is unused */
	PaxosValue *value;			/* accepted here, the last one; NULL: none */
	PaxosBallot accepted_ballot;
	uint64_t	record_number;	/* that holds it; 0: restored, so durable */
	PaxosValue *reported_value; /* phase 1: the one of the highest ballot in the promises */
	PaxosBallot reported_ballot;
	PaxosBallot proposed_ballot;	/* the own ballot in which this node proposed here; the votes are for it */
	uint32_t	votes;			/* bit i: members[i] accepted in proposed_ballot */
	bool		chosen;			/* `value` is the chosen one */
} Slot;

typedef struct SlotWindow
{
	Slot	   *slots;			/* ring, slot s at s & (capacity - 1) */
	uint64_t	capacity;
	uint64_t	bytes;			/* of values accepted, overhead included */
	PaxosSlot	base_slot;		/* the values of [base_slot, delivered_slot] are all held */
	PaxosSlot	max_accepted_slot;
	PaxosSlot	max_reported_slot;	/* of this campaign */
} SlotWindow;

/* An accepted value whose record is not yet known as durable. */
typedef struct PendingAcceptance
{
	uint64_t	record_number;
	PaxosSlot	slot;
	PaxosBallot ballot;
} PendingAcceptance;

/* A promise whose record is not yet known as durable, or the one that was answered last. */
typedef struct PendingPromise
{
	PaxosBallot ballot;
	uint64_t	record_number;
	uint32_t	to;				/* 0: nobody waits */
	PaxosSlot	first_slot;
	PaxosSlot	resume_slot;
} PendingPromise;

/* Leader: where a sequence of an origin was proposed last, at sequence & (PAXOS_DEDUP_WINDOW - 1).  A hint: verified. */
typedef struct OpenSlots
{
	uint32_t	node_id;
	PaxosSlot  *slots;
} OpenSlots;

/* What a host said of a node, member or not. */
typedef struct PeerVersion
{
	uint32_t	node_id;
	uint8_t		frame_version;
} PeerVersion;

typedef enum CandidatePhase
{
	PHASE_NONE = 0,
	PHASE_PRE_VOTE,
	PHASE_PREPARE
} CandidatePhase;

/* peers[i] is config.members[i]; the own entry is there as well, and unused but for its flags. */
typedef struct Peer
{
	uint32_t	node_id;
	bool		is_voter;
	bool		link_up;		/* or not known to be down */
	uint64_t	link_down_ms;	/* when the host said so */

	/* as reported, whoever leads */
	uint64_t	last_contact_ms;
	uint32_t	round_trip_ms;
	uint64_t	durable_position;	/* the highest that it, or the leader, told … */
	uint64_t	durable_incarnation;	/* … of its newest start that said so */
	uint64_t	incarnation;	/* of the start that the next three are from */
	PaxosSlot	accepted_slot;
	PaxosSlot	delivered_slot;

	/* candidate and leader: phase 1 of core->ballot */
	bool		pre_vote_granted;
	bool		promised;		/* and all that it had accepted is merged */
	PaxosSlot	resume_slot;	/* where its promise goes on */

	/* leader: phase 2 of core->ballot */
	bool		is_known;		/* its progress was heard since the election */
	PaxosSlot	next_send_slot;
	PaxosSlot	voted_slot;		/* its vote is counted in every slot up to here */
	uint64_t	bytes_in_flight;
	uint64_t	progress_ms;	/* when it last voted, or the flow began */
	uint32_t	resends;		/* in a row without progress */
	PaxosSlot	announced_slot; /* chosen_slot as last sent to it */
	uint64_t	announce_deadline_ms;	/* there is news for it since; 0: none */
	uint64_t	round_answered; /* of heartbeats, and of probes between them */
	uint64_t	answered_ms;	/* last message in this ballot */
	bool		forwards_dropped;	/* there was no room for something that it forwarded … */
	uint32_t	dropped_length; /* … the first of them as long as this */

	/* teaching what is chosen */
	bool		teach_wanted;	/* by a node that does not lead: it asked to lead but is behind */
	PaxosSlot	teach_slot;		/* sent from here on */
	uint64_t	teach_deadline_ms;
	uint32_t	teach_repeats;
} Peer;

/* A read that waits for its index. */
typedef struct PendingRead
{
	uint64_t	read_id;
	uint32_t	from;			/* 0: this node asked; read_id is then the host's, else the peer's number */
	uint64_t	number;			/* own read sent to the leader: the request's number; 0: not sent */
	uint64_t	round;			/* leader: the heartbeat round that confirms it; 0: none yet */
	PaxosSlot	read_index;
	uint64_t	deadline_ms;
} PendingRead;

struct PaxosCore
{
	PaxosSettings settings;
	PaxosAllocator allocator;
	bool		started;
	bool		may_lead;
	bool		is_silent;
	uint64_t	now_ms;
	uint64_t	random_state;
	bool		send_due;		/* something is gathered for the next FLUSH or TICK */

	/* members in force after delivered_slot */
	PaxosConfig config;
	Peer		peers[PAXOS_MAX_MEMBERS];
	int			self_index;		/* -1: not a member */
	Vector		peer_versions;	/* PeerVersion */
	Peer		stranger;		/* the one that is being taught, of those that are no members; only `teaching` of it is used */

	SlotWindow	window;

	/* acceptor */
	PaxosBallot promised_ballot;
	PendingPromise promise;
	Vector		pending_acceptances;	/* PendingAcceptance, by record number */
	size_t		pending_head;	/* those before are done */
	uint64_t	last_record;	/* number emitted */
	uint64_t	persisted_record;
	uint64_t	durable_position;	/* of the host's journal, as it counts; passed on */
	PaxosBallot learned_ballot; /* at least as high as any in which something known as chosen was chosen */

	/* learner */
	PaxosSlot	chosen_slot;
	PaxosSlot	delivered_slot;
	PaxosSlot	hinted_slot;	/* of the last CHOSEN record */
	PaxosSlot	leader_chosen_slot; /* as told in leader_ballot */
	PaxosOrigins origins;		/* which proposals took effect; a function of the delivered prefix alone */
	PaxosSlot	snapshot_needed;	/* the first slot that a peer still holds, of those behind delivered_slot + 1; 0: none lacks */
	uint32_t	snapshot_from;
	bool		snapshot_is_news;	/* told in this step */
	uint32_t	teacher_id;		/* who sent the last LEARN and waits for progress; 0: nobody */
	PaxosSlot	taught_slot;	/* its last slot */

	/* whom this node follows; itself when it leads */
	uint32_t	leader_id;
	PaxosBallot leader_ballot;
	uint64_t	leader_contact_ms;	/* 0: never, or its link went down */
	uint64_t	leader_served_ms;	/* when it last said that proposals are likely to end well; 0: it did not, or took it back */
	bool		leader_tells_delivered;	/* what all have delivered: its newest heartbeat was of a version that says so */
	PaxosSlot	leader_delivered_by_all;
	PaxosSlot	report_slot;	/* everything up to here is accepted in leader_ballot, or known as chosen, and durable */
	bool		report_due;
	uint64_t	report_round;
	uint64_t	report_sent_ms;
	uint32_t	report_range_count;
	PaxosSlotRange report_ranges[PAXOS_MAX_RANGES];

	/* elections */
	PaxosRole	role;
	CandidatePhase phase;
	PaxosBallot ballot;			/* candidate: asked for; leader: its own */
	uint64_t	highest_round;	/* heard of anywhere */
	uint64_t	election_deadline_ms;
	uint64_t	ask_deadline_ms;	/* pre-votes or prepares are sent again */
	uint32_t	lost_elections; /* in a row */
	bool		own_promise_durable;
	uint64_t	elections_started;
	uint64_t	ballots_won;

	/* leader */
	bool		is_ready;
	PaxosSlot	term_first_slot;	/* the first slot of this ballot's phase 2 */
	PaxosSlot	next_slot;		/* to propose in */
	PaxosSlot	adopted_slot;	/* values up to here come from the promises */
	PaxosSlot	ready_slot;		/* adopted_slot when the term became ready */
	PaxosSlot	barrier_slot;	/* a configuration is proposed there; nothing after it before it is delivered */
	PaxosValue *waiting_config; /* to be proposed alone: waits until every slot before it is delivered; NULL: none */
	uint64_t	heartbeat_round;
	uint64_t	heartbeat_deadline_ms;
	uint32_t	transfer_to;	/* hands over to that voter, and places nothing new meanwhile; 0: no */
	uint64_t	transfer_deadline_ms;
	uint64_t	hand_over_ms;	/* when HAND_OVER may be sent (again) */
	bool		transfer_refused;
	uint64_t	retire_deadline_ms; /* of a leader that is no voter any more */

	/* own proposals that are not yet learned, by sequence & (PAXOS_DEDUP_WINDOW - 1) */
	PaxosValue **outstanding;
	uint32_t	outstanding_count;
	uint64_t	outstanding_bytes;
	uint64_t	outstanding_low;	/* sequences; meaningful while count > 0 */
	uint64_t	outstanding_high;
	uint64_t	outstanding_next;	/* to place or to forward */
	uint64_t	forwarded_bytes;
	uint64_t	forward_deadline_ms;
	bool		proposal_refused;
	Vector		open_slots;		/* OpenSlots */

	/* reads */
	Vector		reads;			/* PendingRead, in the order in which they were asked */
	uint64_t	read_number;	/* last used */
	uint64_t	read_resend_ms;
	PaxosSlot	read_asked_slot;	/* chosen_slot when the leader was asked last */
	bool		reads_lag;		/* the last answer was above that: this node is behind, as when others write */

	/* what the next return hands out */
	ArenaBlock *arena;
	Vector		graveyard;		/* PaxosValue *, released by the next step */
	Vector		out_records;
	Vector		out_messages;
	Vector		out_catch_ups;
	Vector		out_chosen;
	Vector		out_reads;

	PaxosMessage decoded;
	PaxosMessageEntry decoded_entries[PAXOS_MAX_ENTRIES_PER_MESSAGE];
};

/* ---- effects.c: memory, records, messages ---- */
extern void *core_allocate(PaxosCore *core, size_t size);	/* zeroed */
extern void core_release(PaxosCore *core, void *pointer);
extern void *vector_add(PaxosCore *core, Vector *vector, size_t item_size); /* returns the new item, zeroed */
extern void vector_free(PaxosCore *core, Vector *vector);
extern void *arena_allocate(PaxosCore *core, size_t size);	/* zeroed; until the next step */
extern void arena_free(PaxosCore *core);
extern void effects_begin(PaxosCore *core);
extern void effects_fill(PaxosCore *core, PaxosEffects *effects);

extern uint64_t core_random_below(PaxosCore *core, uint64_t bound);
extern void core_drop_value(PaxosCore *core, PaxosValue *value);	/* released by the next step; NULL is allowed */
extern uint64_t core_emit_record(PaxosCore *core, PaxosRecordType type, PaxosSlot slot, PaxosBallot ballot, PaxosValue *value);
extern PaxosMessage *core_new_message(PaxosCore *core, PaxosMessageType type);
extern void core_send(PaxosCore *core, uint32_t to, PaxosMessage *message);	/* of a type that the receiver understands */
extern uint8_t core_peer_version(const PaxosCore *core, uint32_t node_id);
extern PaxosValue *core_value_from_entry(PaxosCore *core, const PaxosMessageEntry *entry);
extern void core_fill_entry(PaxosMessageEntry *entry, PaxosSlot slot, PaxosBallot ballot, const PaxosValue *value);
extern bool value_equals_entry(const PaxosValue *value, const PaxosMessageEntry *entry);
extern bool proposal_id_equal(PaxosProposalId a, PaxosProposalId b);

/* ---- slot_window.c ---- */
extern void window_create(PaxosCore *core);
extern void window_free(PaxosCore *core);
extern void window_set_base(PaxosCore *core, PaxosSlot delivered_slot);	/* recovery only, before anything is opened */
extern Slot *window_get(const PaxosCore *core, PaxosSlot slot); /* NULL: not held */
extern PaxosSlot window_last_slot(const PaxosCore *core);	/* the highest that may be opened now */
extern Slot *window_open(PaxosCore *core, PaxosSlot slot);	/* delivered_slot < slot <= window_last_slot */
extern void window_grow(PaxosCore *core, PaxosSlot slot);	/* recovery only: until `slot` may be opened */
extern bool window_make_room(PaxosCore *core, PaxosSlot slot, uint32_t length);	/* false: its value must not be taken now */
extern void window_set_accepted(PaxosCore *core, Slot *entry, PaxosBallot ballot, PaxosValue *value);	/* takes the reference */
extern void window_set_reported(PaxosCore *core, Slot *entry, PaxosBallot ballot, PaxosValue *value);	/* takes the reference */
extern void window_clear_reports(PaxosCore *core);
extern void window_forget_votes(PaxosCore *core);
extern void window_forget_votes_of(PaxosCore *core, uint32_t member_index, PaxosSlot first_slot);

/* ---- config.c ---- */
extern int	config_find(const PaxosConfig *config, uint32_t node_id);	/* -1: not a member */
extern Peer *config_peer(PaxosCore *core, uint32_t node_id);	/* NULL: not a member, or this node */
extern bool config_self_is_voter(const PaxosCore *core);
extern uint32_t config_voter_count(const PaxosCore *core);
extern uint32_t config_quorum_size(const PaxosCore *core);
extern bool config_is_quorum(const PaxosCore *core, uint32_t member_bits);
extern bool config_change_is_allowed(const PaxosConfig *from, const PaxosConfig *to);
extern void config_install(PaxosCore *core, PaxosSlot slot, const PaxosValue *value);
extern void config_install_members(PaxosCore *core, const PaxosConfig *config);

/* ---- acceptor.c ---- */
extern void acceptor_on_prepare(PaxosCore *core, uint32_t from, const PaxosMessage *message);
extern void acceptor_on_accept(PaxosCore *core, uint32_t from, const PaxosMessage *message);
extern void acceptor_on_heartbeat(PaxosCore *core, uint32_t from, const PaxosMessage *message);
extern void acceptor_promise(PaxosCore *core, PaxosBallot ballot);	/* raises promised_ballot, emits the record */
extern void acceptor_accept(PaxosCore *core, Slot *entry, PaxosBallot ballot, PaxosValue *value);	/* takes the reference */
extern void acceptor_persisted(PaxosCore *core, uint64_t record_number);
extern bool acceptor_is_durable(const PaxosCore *core, const Slot *entry);
extern void acceptor_reset_report(PaxosCore *core);
extern void acceptor_send_report(PaxosCore *core);
extern void acceptor_refuse(PaxosCore *core, uint32_t to, PaxosBallot ballot, bool is_behind);

/* ---- learner.c ---- */
extern void learner_advance(PaxosCore *core);	/* chosen_slot and delivered_slot, as far as known */
extern void learner_on_learn(PaxosCore *core, uint32_t from, const PaxosMessage *message);
extern void learner_on_trimmed(PaxosCore *core, uint32_t from, const PaxosMessage *message);
extern void learner_restore_chosen(PaxosCore *core, PaxosSlot slot);
extern void learner_hint(PaxosCore *core);	/* CHOSEN record, if there is news */
extern void learner_report_to_teacher(PaxosCore *core);
extern void learner_teach(PaxosCore *core, Peer *peer, PaxosSlot first_slot, PaxosSlot last_slot);
extern void learner_teach_stranger(PaxosCore *core, uint32_t node_id, PaxosSlot first_slot);
extern void learner_teach_if_wanted(PaxosCore *core, Peer *peer);
extern PaxosBallot learner_tag_ballot(const PaxosCore *core);

/* ---- election.c ---- */
extern void election_reset_timer(PaxosCore *core);
extern void election_start(PaxosCore *core);	/* the first step of a node's life */
extern void election_check(PaxosCore *core);	/* at the head of each step: may this node still call itself leader? */
extern void election_tick(PaxosCore *core);
extern void election_step_down(PaxosCore *core);
extern void election_heard_leader(PaxosCore *core, uint32_t leader_id, PaxosBallot ballot);
extern void election_saw_round(PaxosCore *core, PaxosBallot ballot);
extern void election_on_pre_vote(PaxosCore *core, uint32_t from, const PaxosMessage *message);
extern void election_on_pre_vote_answer(PaxosCore *core, uint32_t from, const PaxosMessage *message);
extern void election_on_promise(PaxosCore *core, uint32_t from, const PaxosMessage *message);
extern void election_on_refusal(PaxosCore *core, uint32_t from, const PaxosMessage *message);
extern void election_on_hand_over(PaxosCore *core, uint32_t from, const PaxosMessage *message);
extern void election_own_promise_durable(PaxosCore *core);
extern bool election_has_promises(const PaxosCore *core);	/* complete, of a majority of the configuration in force */
extern void election_config_changed(PaxosCore *core);
extern void election_link_down(PaxosCore *core, uint32_t node_id);
extern uint64_t election_deadline(const PaxosCore *core);

/* ---- proposer.c ---- */
extern void proposer_begin_term(PaxosCore *core);
extern bool proposer_may_propose(const PaxosCore *core);	/* a new value, now */
extern void proposer_propose(PaxosCore *core, PaxosValue *value);	/* in next_slot; takes the reference */
extern void proposer_place(PaxosCore *core);	/* adopts, then places what this node has outstanding */
extern void proposer_delivered(PaxosCore *core);	/* delivered_slot moved */
extern PaxosSlot proposer_delivered_by_all(const PaxosCore *core);	/* of a leader: PaxosStatus.delivered_by_all */
extern void proposer_vote(PaxosCore *core, Slot *entry, int member_index);
extern void proposer_chosen(PaxosCore *core, const Slot *entry);
extern void proposer_tell_chosen(PaxosCore *core, Peer *peer);	/* now, if it was not told all */
extern void proposer_on_report(PaxosCore *core, uint32_t from, const PaxosMessage *message);
extern void proposer_flush(PaxosCore *core);
extern void proposer_add_peer(PaxosCore *core, Peer *peer);
extern void proposer_drop_peer(PaxosCore *core, Peer *peer);	/* it is no member any more */
extern void proposer_link_up(PaxosCore *core, Peer *peer);
extern uint64_t proposer_quorum_contact_ms(const PaxosCore *core);
extern uint32_t proposer_count_answering(const PaxosCore *core, uint64_t now_ms, uint64_t within_ms, bool link_up);
extern bool proposer_quorum_is_fresh(const PaxosCore *core, uint64_t now_ms);
extern uint64_t proposer_deadline(const PaxosCore *core);

/* ---- transfer.c ---- */
extern void transfer_on_event(PaxosCore *core, uint32_t target_id);
extern void transfer_flush(PaxosCore *core);
extern uint64_t transfer_deadline(const PaxosCore *core);
extern bool transfer_is_retiring(const PaxosCore *core);	/* leads, but is no voter any more: proposes nothing */
extern void transfer_begin_retirement(PaxosCore *core);

/* ---- proposals.c ---- */
extern void proposals_create(PaxosCore *core);
extern void proposals_free(PaxosCore *core);
extern void proposals_on_event(PaxosCore *core, const PaxosEvent *event);
extern void proposals_on_forward(PaxosCore *core, uint32_t from, const PaxosMessage *message);
extern void proposals_on_forward_again(PaxosCore *core, uint32_t from, const PaxosMessage *message);
extern void proposals_ask_again(PaxosCore *core, Peer *peer);	/* leader: for what was dropped, if there is room */
extern PaxosValue *proposals_next(PaxosCore *core); /* leader: the next to place, not yet open or delivered; not retained, NULL: none */
extern void proposals_placed(PaxosCore *core, PaxosSlot slot, PaxosProposalId id);
extern void proposals_delivered(PaxosCore *core, PaxosProposalId id);
extern void proposals_leader_changed(PaxosCore *core);	/* or the link to it is a new one, or it dropped some */
extern void proposals_flush(PaxosCore *core);
extern uint64_t proposals_deadline(const PaxosCore *core);

/* ---- reads.c ---- */
extern void reads_on_event(PaxosCore *core, uint64_t read_id);
extern void reads_on_request(PaxosCore *core, uint32_t from, const PaxosMessage *message);
extern void reads_on_answer(PaxosCore *core, uint32_t from, const PaxosMessage *message);
extern void reads_on_probe(PaxosCore *core, uint32_t from, const PaxosMessage *message);
extern void reads_leader_changed(PaxosCore *core);	/* or the link to it is a new one */
extern void reads_step_down(PaxosCore *core);
extern void reads_confirm(PaxosCore *core); /* a heartbeat was answered */
extern bool reads_want_round(const PaxosCore *core);
extern void reads_begin_round(PaxosCore *core); /* heartbeat_round is the new one */
extern bool reads_probe(PaxosCore *core);	/* begins a round without heartbeats; false: can't */
extern void reads_flush(PaxosCore *core);
extern uint64_t reads_deadline(const PaxosCore *core);

/* ---- read_probe.c ---- */
extern bool read_state_is_quorum_with(const PaxosReadState *state, uint32_t node_id);	/* it leads, and the two are a majority, or the leader alone */
extern bool read_probe_answer(const PaxosReadState *state, uint32_t from, const PaxosMessage *probe, PaxosMessage *answer);	/* false: none */

static inline uint64_t
min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t
max_u64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* A time that is 0 never was. */
static inline bool
is_within(uint64_t time_ms, uint64_t now_ms, uint64_t within_ms)
{
	return time_ms != 0 && (now_ms <= time_ms || now_ms - time_ms <= within_ms);
}

static inline bool
ballot_equal(PaxosBallot a, PaxosBallot b)
{
	return a.round == b.round && a.node_id == b.node_id;
}

static inline bool
is_leader(const PaxosCore *core)
{
	return core->role == PAXOS_LEADER;
}

#endif							/* PAXOS_INTERNAL_H */
