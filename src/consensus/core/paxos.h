/*
 * paxos.h
 *	  Public interface of the consensus core: Multi-Paxos as a pure state machine.
 *
 * Event in, effects out: the host calls paxos_step() with one event and carries out the effects that it
 * returns, in the order in which they stand in PaxosEffects.  The core has no I/O, no clock, no globals,
 * and allocates only through the PaxosAllocator that the host gives it.  The same events give the same
 * effects.
 *
 * Terms are those of Lamport, "Paxos Made Simple" (2001): proposer, acceptor, learner, ballot, promise,
 * accept, accepted, chosen.  A *slot* is one instance of the protocol, and is at the same time the log
 * index that users see: one slot holds one entry (one transaction, one configuration, or a no-op).
 * Batching is done by the frame (one ACCEPT message carries many slots) and by the fsync.
 *
 * What the host owes the core
 *  1. Effects are carried out in order.  Records are appended to the journal in the given order.
 *  2. After the journal is durable up to record number n, PAXOS_EVENT_PERSISTED(n) is given.  The core
 *	   emits a PROMISE or an ACCEPTED only in response to that event; so all messages among the effects
 *	   may be sent at once, without waiting for the records beside them.
 *  3. Messages may be lost, delayed, doubled and reordered; they are never altered, and `from` is who
 *	   really sent them.
 *  4. now_ms never goes back.  `random` is a fresh 64-bit random number for each event.
 *
 * Batching.  ACCEPT, commit notices, forwarded proposals and answers to heartbeats are gathered, and emitted in the
 * next step whose event is FLUSH or TICK, many per frame.  A host that works off many events in one loop gives FLUSH at the
 * end of the loop, before it syncs the journal.  While something is gathered, next_deadline_ms is now, so a host that never
 * gives FLUSH is served by TICK.  Records are emitted at once, promises and ACCEPTED in the step of their PERSISTED.
 *
 * Pointers inside effects are valid until the next call with the same core.
 *
 * Only C standard headers may be included here and in every file of this folder.
 */
#ifndef PAXOS_H
#define PAXOS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAXOS_MAX_MEMBERS 16
#define PAXOS_MAX_FRAME_BYTES (80u * 1024 * 1024)	/* no frame is longer; the codec refuses longer ones */
#define PAXOS_MAX_ENTRIES_PER_MESSAGE 256
#define PAXOS_FRAME_TARGET_BYTES (256u * 1024)	/* a frame is closed once it has this much, at least one entry */

/*
 * Versions of frames that this build understands, and writes to those who do (paxos_set_peer_version).  A build that defines the newest as
 * 2 to 4 is one of before the version after that.
 */
#define PAXOS_OLDEST_FRAME_VERSION 2
#ifndef PAXOS_NEWEST_FRAME_VERSION
#define PAXOS_NEWEST_FRAME_VERSION 5
#endif

typedef uint64_t PaxosSlot;		/* 1-based; 0 means none */

typedef struct PaxosBallot
{
	uint64_t	round;			/* 0 means no ballot */
	uint32_t	node_id;
} PaxosBallot;

/* Negative, 0 or positive, like memcmp. */
extern int	paxos_ballot_compare(PaxosBallot a, PaxosBallot b);

typedef enum PaxosValueKind
{
	PAXOS_VALUE_NOOP = 0,		/* fills a gap; no id, no bytes */
	PAXOS_VALUE_DATA = 1,		/* bytes are the host's, opaque here */
	PAXOS_VALUE_CONFIG = 2		/* bytes start with the encoded PaxosConfig members, then the host's own */
} PaxosValueKind;

/*
 * Who proposed a value, so that a value which is chosen in two slots (its origin re-sent it to a new leader)
 * takes effect once.  `incarnation` grows with every start of the origin's worker; `sequence` starts at 1.
 */
typedef struct PaxosProposalId
{
	uint32_t	origin;			/* node id; 0 for a no-op */
	uint64_t	incarnation;
	uint64_t	sequence;
} PaxosProposalId;

/* Immutable once made; counted references, owned through paxos_value_retain/release. */
typedef struct PaxosValue
{
	uint32_t	refcount;
	PaxosValueKind kind;
	PaxosProposalId id;
	uint32_t	length;
	uint8_t		bytes[];
} PaxosValue;

/* `allocate` never returns NULL (a host that is out of memory stops its worker). */
typedef struct PaxosAllocator
{
	void	   *(*allocate) (void *context, size_t size);
	void		(*release) (void *context, void *pointer);
	void	   *context;
} PaxosAllocator;

typedef struct PaxosMember
{
	uint32_t	node_id;		/* never 0, never reused in the life of a cluster */
	bool		is_voter;
} PaxosMember;

/*
 * The members in force from slot + 1 on.  A configuration that is proposed in slot s is alone: its proposer proposes
 * nothing after s until every slot up to s is chosen, so the quorum of a slot follows from the chosen prefix
 * below it; at most one voter differs between neighbours, so their majorities intersect.
 */
typedef struct PaxosConfig
{
	PaxosSlot	slot;			/* where it was chosen; 0 for the one given at bootstrap */
	uint32_t	member_count;
	PaxosMember members[PAXOS_MAX_MEMBERS];
} PaxosConfig;

/* Encoded form of the members at the head of a CONFIG value: u8 count, then per member u32 node_id (big endian), u8 is_voter. */
extern size_t paxos_config_encode(const PaxosConfig *config, uint8_t *buffer, size_t capacity);	/* 0: does not fit */
extern size_t paxos_config_decode(PaxosConfig *config, const uint8_t *buffer, size_t length); /* bytes used; 0: malformed */

typedef struct PaxosSettings
{
	uint32_t	node_id;
	uint64_t	incarnation;	/* of this start; 0 if not known yet: see paxos_set_incarnation */
	uint32_t	heartbeat_interval_ms;
	uint32_t	election_timeout_ms;	/* each wait is drawn from [1, 2) times this */
	uint32_t	window_slots;	/* open or cached slots held in memory, a power of two, at least 16; the same on every node */
	uint64_t	window_bytes;	/* values held in memory; exceeded by at most one value */
	uint32_t	max_outstanding_proposals;	/* of this origin, at most the dedup window (4096); a fair share of window_slots */
	uint32_t	resend_interval_ms; /* of forwarded proposals, unanswered prepares and accepts */
} PaxosSettings;

typedef struct PaxosCore PaxosCore;

/* Bytes on the wire: see message.h.  Handed over encoded, so that a host needs to know no message. */
typedef struct PaxosMessage PaxosMessage;

/* ---- what comes in ---- */
typedef enum PaxosEventType
{
	PAXOS_EVENT_TICK,			/* next_deadline_ms was reached, or just time passed */
	PAXOS_EVENT_MESSAGE,		/* a frame from a member */
	PAXOS_EVENT_PROPOSAL,		/* a value of this node; see paxos_can_propose */
	PAXOS_EVENT_PERSISTED,		/* the journal is durable up to record persisted_record */
	PAXOS_EVENT_READ,			/* asks for a read index (Ongaro 2014, section 6.4; any node may ask) */
	PAXOS_EVENT_LINK,			/* a hint: the link to a peer came up or went down */
	PAXOS_EVENT_TRANSFER,		/* leader: hand over to voter peer_id, or (0) to the most advanced that is reachable */
	PAXOS_EVENT_FLUSH			/* end of the host's loop: send what was gathered.  See the rule on batching above */
} PaxosEventType;

typedef struct PaxosEvent
{
	PaxosEventType type;
	uint64_t	now_ms;
	uint64_t	random;
	/* MESSAGE, LINK and TRANSFER */
	uint32_t	peer_id;
	bool		link_up;
	const PaxosMessage *message;
	/* PROPOSAL: kind, sequence, bytes (copied by the core) */
	PaxosValueKind kind;
	uint64_t	sequence;
	const uint8_t *bytes;
	uint32_t	length;
	/* PERSISTED; durable_position: see PaxosPeerStatus, 0 if the host does not count */
	uint64_t	persisted_record;
	uint64_t	durable_position;
	/* READ */
	uint64_t	read_id;
} PaxosEvent;

/* ---- what comes out ---- */
typedef enum PaxosRecordType
{
	PAXOS_RECORD_PROMISE = 1,	/* ballot */
	PAXOS_RECORD_ACCEPTED = 2,	/* slot, ballot, value.  For a value that was learned, not accepted here: the ballot it was learned with */
	PAXOS_RECORD_CHOSEN = 3,	/* every slot up to `slot` is chosen, and the last ACCEPTED record of each holds the chosen value.
								 * A hint that shortens recovery: it need not be durable when anything is sent */
	PAXOS_RECORD_CONFIG = 4		/* bootstrap configuration (value of kind CONFIG); slot is the slot that it was chosen in, or 0 */
} PaxosRecordType;

typedef struct PaxosRecord
{
	uint64_t	number;			/* 1, 2, 3, … in the order of emission since paxos_create, records restored not counted */
	PaxosRecordType type;
	PaxosSlot	slot;
	PaxosBallot ballot;
	PaxosValue *value;			/* NULL for PROMISE and CHOSEN */
} PaxosRecord;

typedef struct PaxosOutMessage
{
	uint32_t	to;
	const PaxosMessage *message;
} PaxosOutMessage;

/*
 * Delivered once per slot, in slot order, without gaps, after the slot is chosen and its value is durable in the own
 * journal.  A duplicate, a no-op and a value from a forgotten incarnation must not take effect; every node finds the same.
 */
typedef struct PaxosChosen
{
	PaxosSlot	slot;
	PaxosValue *value;
	bool		duplicate;		/* the same id took effect in an earlier slot, or its origin has a newer incarnation in the log */
} PaxosChosen;

/*
 * A peer needs slots that left the window.  The host reads the chosen values from its journal and sends them with
 * paxos_encode_learn(), as much as it likes up to last_slot (say, one frame).  The peer's next report makes the core ask for more.
 * If the host does not hold first_slot any more, it answers with paxos_encode_trimmed().  Either way the core asks again after a while.
 */
typedef struct PaxosCatchUp
{
	uint32_t	to;
	PaxosSlot	first_slot;
	PaxosSlot	last_slot;
} PaxosCatchUp;

typedef struct PaxosReadResult
{
	uint64_t	read_id;
	bool		ok;				/* false: no quorum confirmed it (leader changed, timed out); ask again or give up */
	PaxosSlot	read_index;		/* a reader that waits until this is applied sees all that was acknowledged before it asked */
} PaxosReadResult;

typedef struct PaxosEffects
{
	const PaxosRecord *records;
	size_t		record_count;
	const PaxosOutMessage *messages;
	size_t		message_count;
	const PaxosCatchUp *catch_ups;
	size_t		catch_up_count;
	const PaxosChosen *chosen;
	size_t		chosen_count;
	const PaxosReadResult *reads;
	size_t		read_count;
	bool		proposal_refused;	/* answer to a PROPOSAL: the bound of outstanding ones is reached, nothing was kept */
	bool		transfer_refused;	/* answer to a TRANSFER: this node does not lead, is not ready, a configuration or another transfer is under
									 * way, or there is no such voter that is reachable and understands it */
	PaxosSlot	snapshot_needed;	/* a peer said that it no longer holds the slots that this node lacks: its first one; 0: no such news */
	uint32_t	snapshot_from;	/* that peer */
	uint64_t	next_deadline_ms;	/* give a TICK then at the latest */
} PaxosEffects;

typedef enum PaxosRole
{
	PAXOS_LEARNER,				/* not a voter */
	PAXOS_FOLLOWER,
	PAXOS_CANDIDATE,			/* pre-vote or phase 1 */
	PAXOS_LEADER				/* phase 1 complete for every slot from first_unchosen on */
} PaxosRole;

/* What the core knows of a peer; of interest to the leader mostly. */
typedef struct PaxosPeerStatus
{
	uint32_t	node_id;
	bool		is_voter;
	bool		link_up;
	uint64_t	last_contact_ms;	/* 0: never */
	uint32_t	round_trip_ms;
	PaxosSlot	accepted_slot;	/* everything up to here is accepted and durable there, as far as reported */
	PaxosSlot	delivered_slot;

	/*
	 * Its journal was durable up to here when it said so last, to this node or to the leader, and in which of its starts that was; 0: not known.  A number that
	 * its host gives with PERSISTED and that never goes back, of no meaning to the core: a host that finds a peer with less knows that it has forgotten
	 * something.
	 */
	uint64_t	durable_position;
	uint64_t	durable_incarnation;
} PaxosPeerStatus;

typedef struct PaxosStatus
{
	PaxosRole	role;
	PaxosBallot ballot;			/* promised */
	uint32_t	leader_id;		/* 0: not known */
	bool		has_quorum;		/* leader: heard a majority within an election timeout; follower: heard such a leader */
	bool		quorum_is_fresh;	/* a proposal of this node is likely to end well.  Leader: a majority answered within two heartbeat intervals
									 * and its links are up; others: such a leader, ready too, said so within three, and the link to it is up */
	bool		leader_is_ready;	/* leader, and all that it adopted at its election is delivered */
	PaxosSlot	adopted_slot;	/* leader: what it adopted ends here; it may serve once this is applied */
	uint32_t	voter_count;
	uint32_t	voters_reachable;	/* itself included */
	uint32_t	quorum_size;
	PaxosSlot	chosen_slot;	/* known to be chosen, contiguous */
	PaxosSlot	delivered_slot;
	PaxosSlot	accepted_slot;	/* highest slot with an accepted value */

	/*
	 * Every member has what was chosen up to here, as far as the leader knows, or has it from somebody else; for whoever wants to drop it.  One whose link is down
	 * may have crashed, and not know any more that the last of what it reported is chosen: two windows less are taken for delivered there.  Not
	 * known where there is no leader, or one of an older build.
	 */
	bool		knows_delivered_by_all;
	PaxosSlot	delivered_by_all;
	PaxosConfig config;
	bool		config_is_pending;	/* leader: a configuration is under way */
	uint32_t	transfer_to;	/* leader: a transfer to this node is under way; 0: none */
	PaxosSlot	snapshot_needed;	/* as last told, until what was lacking is delivered; 0: the log will do, as far as is known */
	uint32_t	snapshot_from;
	uint32_t	outstanding_proposals;
	uint64_t	elections_started;
	uint64_t	ballots_won;
	uint32_t	peer_count;		/* every member but this node */
	PaxosPeerStatus peers[PAXOS_MAX_MEMBERS];
} PaxosStatus;

/*
 * Life: paxos_create; paxos_restore_base if the journal was trimmed or a snapshot was installed; paxos_restore for each record that recovery found, in journal order; paxos_start; then
 * paxos_step.  During paxos_restore chosen slots are delivered through `effects` as in normal running (nothing else
 * is emitted), so the host rebuilds what it derives from the log.  `bootstrap` is the configuration that is in
 * force for the first slot that has none: for a new cluster its single voter; for a joiner what it was told.
 */
extern PaxosCore *paxos_create(const PaxosSettings *settings, const PaxosAllocator *allocator);

/*
 * Everything up to base_slot is chosen, and this node has its effects; nothing of it is delivered or held.  `bytes` are those of
 * paxos_base_encode (base.h) for that slot.  Records of slots up to it that are restored afterwards say nothing any more, but their ballots
 * count: whoever trims a journal keeps a PROMISE record of the highest ballot in what it drops.  The promises must be this node's own: a
 * node that installs a snapshot keeps its journal.  false: malformed, or of another slot; nothing changed.
 */
extern bool paxos_restore_base(PaxosCore *core, PaxosSlot base_slot, const uint8_t *bytes, size_t length);
extern void paxos_restore(PaxosCore *core, const PaxosRecord *record, PaxosEffects *effects);
extern void paxos_set_incarnation(PaxosCore *core, uint64_t incarnation);	/* before paxos_start, by a host that learns it from its journal */
extern void paxos_start(PaxosCore *core, uint64_t now_ms, uint64_t random, PaxosEffects *effects);
extern void paxos_step(PaxosCore *core, const PaxosEvent *event, PaxosEffects *effects);
extern void paxos_destroy(PaxosCore *core);

extern void paxos_status(const PaxosCore *core, uint64_t now_ms, PaxosStatus *status);

/* Takes part in elections and stays leader only while allowed; a node that cannot apply (P9) must not lead. Default true. */
extern void paxos_set_may_lead(PaxosCore *core, bool may_lead);

/*
 * A silent node says nothing that counts for anybody: it promises, accepts and campaigns for nothing, whatever it is asked.  It tells how far it is, and
 * learns what is chosen.  For a host that is not sure yet whether the journal holds all that this node ever promised; before paxos_start, and lifted when it is.
 */
extern void paxos_set_silent(PaxosCore *core, bool is_silent);
extern bool paxos_is_silent(const PaxosCore *core);

extern PaxosValue *paxos_value_make(const PaxosAllocator *allocator, PaxosValueKind kind, PaxosProposalId id,
									const uint8_t *bytes, uint32_t length);
extern PaxosValue *paxos_value_retain(PaxosValue *value);
extern void paxos_value_release(const PaxosAllocator *allocator, PaxosValue *value);

/*
 * The version of frames that this peer understands, as the host learned from its link; the oldest until told.  Versions above the newest
 * of this build count as that.  Kept for nodes that are no members too, until told otherwise.
 */
extern void paxos_set_peer_version(PaxosCore *core, uint32_t node_id, uint32_t frame_version);

/* ---- wire ---- */

/* Bytes that paxos_message_encode will write. */
extern size_t paxos_message_size(const PaxosMessage *message);
extern size_t paxos_message_encode(const PaxosMessage *message, uint8_t *buffer, size_t capacity);

/*
 * Validates a frame and points into it; *message stays valid as long as the frame and until the next decode with the
 * same core.  NULL: malformed, of another version, CRC wrong; *why then says so in a constant string.
 */
extern const PaxosMessage *paxos_message_decode(PaxosCore *core, const uint8_t *frame, size_t length, const char **why);

/*
 * A frame that teaches chosen values: the answer to PaxosCatchUp.  Appends entries in slot order until the target
 * size is reached; returns how many of `count` went in (at least one), and the frame's length.
 */
extern size_t paxos_encode_learn(PaxosCore *core, PaxosSlot first_slot, PaxosValue *const *values, size_t count,
								 uint8_t *buffer, size_t capacity, size_t *frame_length);

/*
 * A frame for a peer that was to be taught slots which this node does not hold any more; first_held_slot is above the delivered one if it
 * holds none.  Returns its length, 0 if it does not fit (64 bytes do) or the peer's version has no such frame: then it is not answered.
 */
extern size_t paxos_encode_trimmed(PaxosCore *core, uint32_t to, PaxosSlot first_held_slot, uint8_t *buffer, size_t capacity);

/* ---- read probes: questions of readers that need no step ---- */

/*
 * All that an answer to a read probe follows from.  A host may publish it to threads or processes of its own, which then answer probes with
 * paxos_answer_probe() instead of giving them to the core.  What it owes for that:
 *	1. After each step, and whatever else changes it, it publishes the new state before it carries out any effect of that step.
 *	2. Who answers reads the published state after the probe has arrived.
 *	3. Nothing is published before paxos_start() of this start of the node.
 */
typedef struct PaxosReadState
{
	uint32_t	node_id;
	bool		answers;		/* false: silent, or nothing is published */
	bool		leads;			/* in the promised ballot, and is ready */
	PaxosBallot promised;
	PaxosSlot	chosen_slot;	/* of a leader, else 0 */
	uint32_t	quorum_size;	/* and the voters, of a leader's configuration in force; else none */
	uint32_t	voter_count;
	uint32_t	voters[PAXOS_MAX_MEMBERS];
} PaxosReadState;

/* States that are equal have equal bytes. */
extern void paxos_read_state(const PaxosCore *core, PaxosReadState *state);

/*
 * Length of the answer to `frame`, which came from node `from`; 0: not a probe, malformed, or not to be answered by this state: the core is to have it.
 * 64 bytes are room enough.
 */
extern size_t paxos_answer_probe(const PaxosReadState *state, uint32_t from, const uint8_t *frame, size_t length,
								 uint8_t *buffer, size_t capacity);

/* May it be such an answer?  If it can be decoded, it is a READ_ANSWER. */
extern bool paxos_is_answer(const uint8_t *frame, size_t length);

/*
 * Programmers' errors stop the worker, in production too.  The host defines this; it must not return.
 */
extern void paxos_assertion_failed(const char *condition, const char *file, int line);

#define PAXOS_ASSERT(condition) \
	((condition) ? (void) 0 : paxos_assertion_failed(#condition, __FILE__, __LINE__))

#endif							/* PAXOS_H */
