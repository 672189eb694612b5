/*
 * message.h
 *	  The messages of the core and their bytes on the wire.
 *
 * A message in memory is one struct for all types; which fields count is told by its type (message.c has the table).
 * Values are pointed to, not owned: by an outgoing message into PaxosValues of the core, by a decoded one into the frame.
 *
 * Frame, all numbers big endian:
 *
 *	 offset	 size
 *	 0		 2	   magic 0x5150 ("QP")
 *	 2		 1	   version, PAXOS_OLDEST_FRAME_VERSION to PAXOS_NEWEST_FRAME_VERSION
 *	 3		 1	   type, PaxosMessageType
 *	 4		 4	   length of the frame, all of it
 *	 8		 …	   the type's fields in the order of the enum in message.c
 *	 end-4	 4	   CRC32C of everything before
 *
 * A ballot is u64 round, u32 node_id.  A range is u64 first, u64 last, and ranges are preceded by a u8 count.  Entries are
 * preceded by a u32 count; an entry is u8 kind, u32 origin, u64 incarnation, u64 sequence, u32 length, bytes, in a PROMISE preceded by
 * u64 slot and a ballot.  In ACCEPT and LEARN entry i is of slot first_slot + i.
 *
 * Version 3 has all of version 2 and two types more (TRIMMED, HAND_OVER); PROMISE and REPORT end with durable_position before ranges and entries,
 * HEARTBEAT ends with marks, preceded by a u8 count, each u32 node id, u64 incarnation, u64 position.  Version 4 has one type more (READ_PROBE).
 * In version 5 HEARTBEAT has delivered_slot, behind chosen_slot.  A frame says the version that its receiver was said to
 * understand (paxos_set_peer_version); a type that is new in it is never sent to others, so a cluster of both builds works as one
 * of the older, less what needs the new types.
 */
#ifndef PAXOS_MESSAGE_H
#define PAXOS_MESSAGE_H

#include "paxos.h"

#define PAXOS_WIRE_MAGIC 0x5150
#define PAXOS_MAX_RANGES 64
#define PAXOS_MAX_NUMBER (UINT64_C(1) << 62)	/* no slot, round or sequence is as large; sums of two never overflow */

/* The bytes of an entry beside its value's, at most; and of a frame beside its entries. */
#define PAXOS_ENTRY_OVERHEAD_BYTES 45
#define PAXOS_FRAME_OVERHEAD_BYTES 128

/* The longest value: it must fit a frame alone. */
#define PAXOS_MAX_VALUE_BYTES (PAXOS_MAX_FRAME_BYTES - PAXOS_ENTRY_OVERHEAD_BYTES - PAXOS_FRAME_OVERHEAD_BYTES)

typedef enum PaxosMessageType
{
	/*
	 * Would you promise me `ballot`?  first_slot: my first undelivered slot.  Changes nothing at the receiver (Ongaro 2014, section
	 * 9.6).
	 */
	PAXOS_MESSAGE_PRE_VOTE = 1,
	/* ballot: of the question; flag: granted; promised, delivered_slot: mine */
	PAXOS_MESSAGE_PRE_VOTE_ANSWER,
	/* Phase 1a for every slot from first_slot on; the answer may start at resume_slot */
	PAXOS_MESSAGE_PREPARE,
	/* Phase 1b.  entries: what is accepted here from first_slot on; flag: complete; else go on at resume_slot */
	PAXOS_MESSAGE_PROMISE,
	/* ballot is refused: promised is higher, or (flag) its proposer is behind delivered_slot */
	PAXOS_MESSAGE_REFUSAL,
	/* Phase 2a.  entries from first_slot on; every slot up to chosen_slot is chosen */
	PAXOS_MESSAGE_ACCEPT,
	/*
	 * Phase 2b, and the answer to HEARTBEAT: in this ballot everything up to accepted_slot, and in `ranges`, is accepted (or known as
	 * chosen) and durable here.  round, sent_ms: of the last heartbeat.  Without a ballot: to a teacher, only the progress counts.
	 */
	PAXOS_MESSAGE_REPORT,
	/*
	 * ballot's leader lives; every slot up to chosen_slot is chosen; flag: answer with REPORT; serves: a proposal is likely to end well.  Version 5:
	 * delivered_slot: what every member has delivered, as far as the leader knows (PaxosStatus.delivered_by_all)
	 */
	PAXOS_MESSAGE_HEARTBEAT,
	/* entries from first_slot on are chosen; ballot: at least as high as any in which they were */
	PAXOS_MESSAGE_LEARN,
	/* proposals of the sender, for the leader */
	PAXOS_MESSAGE_FORWARD,
	/* number: asks the leader for a read index */
	PAXOS_MESSAGE_READ_REQUEST,
	/*
	 * number; flag: ok; read_index.  Of ballot's leader: good for a receiver that has promised nothing above ballot, as it may be the one that was missing
	 * for a quorum.  Of others, to ballot's leader: this node had promised nothing above ballot when the READ_PROBE of that number was here
	 */
	PAXOS_MESSAGE_READ_ANSWER,
	/* ballot's leader had no room for what the receiver forwarded, and has now: forward it again */
	PAXOS_MESSAGE_FORWARD_AGAIN,
	/* Version 3.  The slots that the receiver lacks are gone here: the first that is still held is first_slot */
	PAXOS_MESSAGE_TRIMMED,
	/*
	 * Version 3.  ballot's leader proposed nothing after chosen_slot, and all up to there is chosen: the receiver is to campaign now, without
	 * pre-vote (Ongaro 2014, section 3.10)
	 */
	PAXOS_MESSAGE_HAND_OVER,
	/*
	 * Version 4.  number: have you promised anything but ballot?  READ_ANSWER says no, else there is no answer.  To ballot's leader it is a READ_REQUEST that it
	 * answers only if the asker and it are a quorum.  Needs no step of the receiver (paxos_answer_probe)
	 */
	PAXOS_MESSAGE_READ_PROBE,
	PAXOS_MESSAGE_TYPE_END
} PaxosMessageType;

typedef struct PaxosMessageEntry
{
	PaxosSlot	slot;
	PaxosBallot ballot;			/* PROMISE only */
	PaxosValueKind kind;
	PaxosProposalId id;
	const uint8_t *bytes;
	uint32_t	length;
} PaxosMessageEntry;

typedef struct PaxosSlotRange
{
	PaxosSlot	first;
	PaxosSlot	last;
} PaxosSlotRange;

/* Up to where a node's journal is durable, as far as the sender knows, in the start that it said so. */
typedef struct PaxosDurableMark
{
	uint32_t	node_id;
	uint64_t	incarnation;
	uint64_t	position;
} PaxosDurableMark;

struct PaxosMessage
{
	PaxosMessageType type;
	uint8_t		version;		/* of its frame; 0 in one that is not yet sent: the oldest */
	PaxosBallot ballot;
	PaxosBallot promised;
	PaxosSlot	first_slot;
	PaxosSlot	resume_slot;
	PaxosSlot	chosen_slot;
	PaxosSlot	accepted_slot;
	PaxosSlot	delivered_slot;
	uint64_t	incarnation;
	uint64_t	round;
	uint64_t	sent_ms;
	uint64_t	number;
	PaxosSlot	read_index;
	uint64_t	durable_position;	/* version 3: of the sender's journal, as its host counts */
	bool		flag;
	bool		serves;
	uint32_t	range_count;
	PaxosSlotRange ranges[PAXOS_MAX_RANGES];
	uint32_t	mark_count;		/* version 3 */
	PaxosDurableMark marks[PAXOS_MAX_MEMBERS];
	uint32_t	entry_count;
	const PaxosMessageEntry *entries;
};

/* Decodes into *message and entries[PAXOS_MAX_ENTRIES_PER_MESSAGE]; false: *why says what is wrong. */
extern bool message_decode(PaxosMessage *message, PaxosMessageEntry *entries, const uint8_t *frame, size_t length,
						   const char **why);

/* The oldest version that has this type. */
extern uint8_t message_first_version(PaxosMessageType type);

/* Of a heartbeat: is delivered_slot one of its fields? */
extern bool message_tells_delivered(const PaxosMessage *message);

/* Of every READ_PROBE, and no other type: what can be told without decoding. */
extern bool message_is_read_probe(const uint8_t *frame, size_t length);

/* What an entry adds to a frame. */
extern size_t message_entry_size(PaxosMessageType type, uint32_t length);

#endif							/* PAXOS_MESSAGE_H */
