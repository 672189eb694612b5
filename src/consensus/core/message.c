/*
 * message.c
 *	  Encoding and decoding of the core's messages.  The bytes are described in message.h.
 *
 * Process: consensus worker, tests.  Must never trust a byte of a frame, and never change the core's state.
 *
 * Invariants
 *	 1. decode(encode(m)) = m for every message that the core makes, and encode writes exactly paxos_message_size(m) bytes.
 *	 2. A frame is used in full or refused; one that is shorter, longer or altered is refused.
 *	 3. What is decoded is sane: slots, rounds and sequences below PAXOS_MAX_NUMBER, kinds known, a configuration well formed, so that
 *		the rest of the core may calculate with them without care.
 */
#include "message.h"

#include <string.h>

#include "crc32c.h"

#define HEADER_BYTES 8
#define CRC_BYTES 4
#define RANGE_BYTES 16
#define BALLOT_BYTES 12
#define PLAIN_ENTRY_BYTES 25
#define MARK_BYTES 20

/* The fields in the order in which they stand in a frame. */
enum
{
	FIELD_BALLOT = 1 << 0,
	FIELD_PROMISED = 1 << 1,
	FIELD_FIRST_SLOT = 1 << 2,
	FIELD_RESUME_SLOT = 1 << 3,
	FIELD_CHOSEN_SLOT = 1 << 4,
	FIELD_ACCEPTED_SLOT = 1 << 5,
	FIELD_DELIVERED_SLOT = 1 << 6,
	FIELD_INCARNATION = 1 << 7,
	FIELD_ROUND = 1 << 8,
	FIELD_SENT_MS = 1 << 9,
	FIELD_NUMBER = 1 << 10,
	FIELD_READ_INDEX = 1 << 11,
	FIELD_DURABLE = 1 << 12,
	FIELD_FLAG = 1 << 13,
	FIELD_SERVES = 1 << 14,
	FIELD_RANGES = 1 << 15,
	FIELD_MARKS = 1 << 16,
	FIELD_ENTRIES = 1 << 17
};

static const uint32_t message_fields[PAXOS_MESSAGE_TYPE_END] = {
	[PAXOS_MESSAGE_PRE_VOTE] = FIELD_BALLOT | FIELD_FIRST_SLOT,
	[PAXOS_MESSAGE_PRE_VOTE_ANSWER] = FIELD_BALLOT | FIELD_PROMISED | FIELD_DELIVERED_SLOT | FIELD_FLAG,
	[PAXOS_MESSAGE_PREPARE] = FIELD_BALLOT | FIELD_FIRST_SLOT | FIELD_RESUME_SLOT,
	[PAXOS_MESSAGE_PROMISE] = FIELD_BALLOT | FIELD_FIRST_SLOT | FIELD_RESUME_SLOT | FIELD_DELIVERED_SLOT |
		FIELD_INCARNATION | FIELD_FLAG | FIELD_ENTRIES,
	[PAXOS_MESSAGE_REFUSAL] = FIELD_BALLOT | FIELD_PROMISED | FIELD_DELIVERED_SLOT | FIELD_FLAG,
	[PAXOS_MESSAGE_ACCEPT] = FIELD_BALLOT | FIELD_FIRST_SLOT | FIELD_CHOSEN_SLOT | FIELD_ENTRIES,
	[PAXOS_MESSAGE_REPORT] = FIELD_BALLOT | FIELD_ACCEPTED_SLOT | FIELD_DELIVERED_SLOT | FIELD_INCARNATION |
		FIELD_ROUND | FIELD_SENT_MS | FIELD_RANGES,
	[PAXOS_MESSAGE_HEARTBEAT] = FIELD_BALLOT | FIELD_CHOSEN_SLOT | FIELD_ROUND | FIELD_SENT_MS | FIELD_FLAG |
		FIELD_SERVES,
	[PAXOS_MESSAGE_LEARN] = FIELD_BALLOT | FIELD_FIRST_SLOT | FIELD_ENTRIES,
	[PAXOS_MESSAGE_FORWARD] = FIELD_ENTRIES,
	[PAXOS_MESSAGE_READ_REQUEST] = FIELD_NUMBER,
	[PAXOS_MESSAGE_READ_ANSWER] = FIELD_BALLOT | FIELD_NUMBER | FIELD_READ_INDEX | FIELD_FLAG,
	[PAXOS_MESSAGE_FORWARD_AGAIN] = FIELD_BALLOT,
	[PAXOS_MESSAGE_TRIMMED] = FIELD_FIRST_SLOT,
	[PAXOS_MESSAGE_HAND_OVER] = FIELD_BALLOT | FIELD_CHOSEN_SLOT,
	[PAXOS_MESSAGE_READ_PROBE] = FIELD_BALLOT | FIELD_NUMBER
};

/* What version 3 adds to the types that version 2 has. */
static const uint32_t message_fields_since_3[PAXOS_MESSAGE_TYPE_END] = {
	[PAXOS_MESSAGE_PROMISE] = FIELD_DURABLE,
	[PAXOS_MESSAGE_REPORT] = FIELD_DURABLE,
	[PAXOS_MESSAGE_HEARTBEAT] = FIELD_MARKS
};

static uint32_t
fields_of(const PaxosMessage *message)
{
	return message_fields[message->type] | (message->version >= 3 ? message_fields_since_3[message->type] : 0) |
		(message->version >= 5 && message->type == PAXOS_MESSAGE_HEARTBEAT ? FIELD_DELIVERED_SLOT : 0);
}

bool
message_tells_delivered(const PaxosMessage *message)
{
	return (fields_of(message) & FIELD_DELIVERED_SLOT) != 0;
}

uint8_t
message_first_version(PaxosMessageType type)
{
	if (type == PAXOS_MESSAGE_READ_PROBE)
		return 4;
	return type == PAXOS_MESSAGE_TRIMMED || type == PAXOS_MESSAGE_HAND_OVER ? 3 : PAXOS_OLDEST_FRAME_VERSION;
}

bool
message_is_read_probe(const uint8_t *frame, size_t length)
{
	return length == HEADER_BYTES + BALLOT_BYTES + 8 + CRC_BYTES && frame[3] == PAXOS_MESSAGE_READ_PROBE;
}

bool
paxos_is_answer(const uint8_t *frame, size_t length)
{
	return length > HEADER_BYTES && frame[3] == PAXOS_MESSAGE_READ_ANSWER;
}

/* The plain u64 fields, so that size, encode and decode need no line for each. */
typedef struct NumberField
{
	uint32_t	field;
	size_t		offset;
} NumberField;

static const NumberField number_fields[] = {
	{FIELD_FIRST_SLOT, offsetof(PaxosMessage, first_slot)},
	{FIELD_RESUME_SLOT, offsetof(PaxosMessage, resume_slot)},
	{FIELD_CHOSEN_SLOT, offsetof(PaxosMessage, chosen_slot)},
	{FIELD_ACCEPTED_SLOT, offsetof(PaxosMessage, accepted_slot)},
	{FIELD_DELIVERED_SLOT, offsetof(PaxosMessage, delivered_slot)},
	{FIELD_INCARNATION, offsetof(PaxosMessage, incarnation)},
	{FIELD_ROUND, offsetof(PaxosMessage, round)},
	{FIELD_SENT_MS, offsetof(PaxosMessage, sent_ms)},
	{FIELD_NUMBER, offsetof(PaxosMessage, number)},
	{FIELD_READ_INDEX, offsetof(PaxosMessage, read_index)},
	{FIELD_DURABLE, offsetof(PaxosMessage, durable_position)}
};

#define NUMBER_FIELD_COUNT (sizeof(number_fields) / sizeof(number_fields[0]))

/* Fields that may hold any 64-bit number: they are only echoed or compared. */
#define FREE_FIELDS (FIELD_INCARNATION | FIELD_SENT_MS | FIELD_NUMBER | FIELD_DURABLE)

/* ---- writing ---- */

typedef struct Writer
{
	uint8_t    *at;
	uint8_t    *end;
} Writer;

static void
put(Writer *writer, uint64_t number, unsigned size)
{
	PAXOS_ASSERT((size_t) (writer->end - writer->at) >= size);
	for (unsigned i = 0; i < size; i++)
		writer->at[i] = (uint8_t) (number >> (8 * (size - 1 - i)));
	writer->at += size;
}

static void
put_ballot(Writer *writer, PaxosBallot ballot)
{
	put(writer, ballot.round, 8);
	put(writer, ballot.node_id, 4);
}

static void
put_entry(Writer *writer, PaxosMessageType type, const PaxosMessageEntry *entry)
{
	if (type == PAXOS_MESSAGE_PROMISE)
	{
		put(writer, entry->slot, 8);
		put_ballot(writer, entry->ballot);
	}
	put(writer, (uint64_t) entry->kind, 1);
	put(writer, entry->id.origin, 4);
	put(writer, entry->id.incarnation, 8);
	put(writer, entry->id.sequence, 8);
	put(writer, entry->length, 4);
	PAXOS_ASSERT((size_t) (writer->end - writer->at) >= entry->length);
	if (entry->length > 0)
		memcpy(writer->at, entry->bytes, entry->length);
	writer->at += entry->length;
}

size_t
message_entry_size(PaxosMessageType type, uint32_t length)
{
	return PLAIN_ENTRY_BYTES + (type == PAXOS_MESSAGE_PROMISE ? 8 + BALLOT_BYTES : 0) + (size_t) length;
}

size_t
paxos_message_size(const PaxosMessage *message)
{
	uint32_t	fields = fields_of(message);
	size_t		size = HEADER_BYTES + CRC_BYTES;

	if (fields & FIELD_BALLOT)
		size += BALLOT_BYTES;
	if (fields & FIELD_PROMISED)
		size += BALLOT_BYTES;
	for (size_t i = 0; i < NUMBER_FIELD_COUNT; i++)
		if (fields & number_fields[i].field)
			size += 8;
	if (fields & FIELD_FLAG)
		size += 1;
	if (fields & FIELD_SERVES)
		size += 1;
	if (fields & FIELD_RANGES)
		size += 1 + (size_t) message->range_count * RANGE_BYTES;
	if (fields & FIELD_MARKS)
		size += 1 + (size_t) message->mark_count * MARK_BYTES;
	if (fields & FIELD_ENTRIES)
	{
		size += 4;
		for (uint32_t i = 0; i < message->entry_count; i++)
			size += message_entry_size(message->type, message->entries[i].length);
	}
	return size;
}

/* Returns the bytes written; 0 if they do not fit. */
size_t
paxos_message_encode(const PaxosMessage *message, uint8_t *buffer, size_t capacity)
{
	uint32_t	fields = fields_of(message);
	size_t		size = paxos_message_size(message);
	Writer		writer = {buffer, buffer + size};
	uint8_t		version = message->version == 0 ? PAXOS_OLDEST_FRAME_VERSION : message->version;

	PAXOS_ASSERT(version >= message_first_version(message->type) && version <= PAXOS_NEWEST_FRAME_VERSION);
	PAXOS_ASSERT(size <= PAXOS_MAX_FRAME_BYTES);
	if (size > capacity)
		return 0;
	put(&writer, PAXOS_WIRE_MAGIC, 2);
	put(&writer, version, 1);
	put(&writer, (uint64_t) message->type, 1);
	put(&writer, size, 4);
	if (fields & FIELD_BALLOT)
		put_ballot(&writer, message->ballot);
	if (fields & FIELD_PROMISED)
		put_ballot(&writer, message->promised);
	for (size_t i = 0; i < NUMBER_FIELD_COUNT; i++)
		if (fields & number_fields[i].field)
			put(&writer, *(const uint64_t *) ((const char *) message + number_fields[i].offset), 8);
	if (fields & FIELD_FLAG)
		put(&writer, message->flag ? 1 : 0, 1);
	if (fields & FIELD_SERVES)
		put(&writer, message->serves ? 1 : 0, 1);
	if (fields & FIELD_RANGES)
	{
		put(&writer, message->range_count, 1);
		for (uint32_t i = 0; i < message->range_count; i++)
		{
			put(&writer, message->ranges[i].first, 8);
			put(&writer, message->ranges[i].last, 8);
		}
	}
	if (fields & FIELD_MARKS)
	{
		put(&writer, message->mark_count, 1);
		for (uint32_t i = 0; i < message->mark_count; i++)
		{
			put(&writer, message->marks[i].node_id, 4);
			put(&writer, message->marks[i].incarnation, 8);
			put(&writer, message->marks[i].position, 8);
		}
	}
	if (fields & FIELD_ENTRIES)
	{
		put(&writer, message->entry_count, 4);
		for (uint32_t i = 0; i < message->entry_count; i++)
			put_entry(&writer, message->type, &message->entries[i]);
	}
	put(&writer, crc32c_compute(buffer, size - CRC_BYTES), 4);
	PAXOS_ASSERT(writer.at == writer.end);
	return size;
}

/* ---- reading ---- */

/* Once `failed` is set every get returns 0, so that the caller may look at it at the end of a group. */
typedef struct Reader
{
	const uint8_t *at;
	const uint8_t *end;
	bool		failed;
} Reader;

static uint64_t
get(Reader *reader, unsigned size)
{
	uint64_t	number = 0;

	if (reader->failed || (size_t) (reader->end - reader->at) < size)
	{
		reader->failed = true;
		return 0;
	}
	for (unsigned i = 0; i < size; i++)
		number = number << 8 | *reader->at++;
	return number;
}

static PaxosBallot
get_ballot(Reader *reader)
{
	PaxosBallot ballot;

	ballot.round = get(reader, 8);
	ballot.node_id = (uint32_t) get(reader, 4);
	return ballot;
}

static bool
get_flag(Reader *reader, bool *flag)
{
	uint64_t	number = get(reader, 1);

	*flag = number == 1;
	return number <= 1;
}

/* Either no ballot at all, or a round of someone. */
static bool
ballot_is_sane(PaxosBallot ballot)
{
	if (ballot.round == 0)
		return ballot.node_id == 0;
	return ballot.round < PAXOS_MAX_NUMBER && ballot.node_id != 0;
}

static const char *
check_entry(PaxosMessageType type, const PaxosMessageEntry *entry)
{
	PaxosConfig config;

	if (entry->slot >= PAXOS_MAX_NUMBER || (entry->slot == 0 && type != PAXOS_MESSAGE_FORWARD))
		return "slot out of range";
	if (type == PAXOS_MESSAGE_PROMISE && (!ballot_is_sane(entry->ballot) || entry->ballot.round == 0))
		return "accepted ballot out of range";
	switch (entry->kind)
	{
		case PAXOS_VALUE_NOOP:
			if (type == PAXOS_MESSAGE_FORWARD || entry->id.origin != 0 || entry->id.incarnation != 0 ||
				entry->id.sequence != 0 || entry->length != 0)
				return "no-op with a proposer or bytes";
			return NULL;
		case PAXOS_VALUE_CONFIG:
			if (type == PAXOS_MESSAGE_FORWARD || paxos_config_decode(&config, entry->bytes, entry->length) == 0)
				return "malformed configuration";
			break;
		case PAXOS_VALUE_DATA:
			break;
		default:
			return "unknown kind of value";
	}
	if (entry->id.origin == 0 || entry->id.sequence == 0 || entry->id.sequence >= PAXOS_MAX_NUMBER)
		return "value without a proposer";
	return NULL;
}

static const char *
get_entries(Reader *reader, PaxosMessage *message, PaxosMessageEntry *entries)
{
	uint32_t	count = (uint32_t) get(reader, 4);
	PaxosSlot	previous_slot = 0;

	if (reader->failed || count > PAXOS_MAX_ENTRIES_PER_MESSAGE)
		return "too many entries";
	if (count == 0 && message->type != PAXOS_MESSAGE_PROMISE)
		return "no entries";
	for (uint32_t i = 0; i < count; i++)
	{
		PaxosMessageEntry *entry = &entries[i];
		const char *why;

		memset(entry, 0, sizeof(*entry));
		if (message->type == PAXOS_MESSAGE_PROMISE)
		{
			entry->slot = get(reader, 8);
			entry->ballot = get_ballot(reader);
		}
		else if (message->type != PAXOS_MESSAGE_FORWARD)
			entry->slot = message->first_slot + i;
		entry->kind = (PaxosValueKind) get(reader, 1);
		entry->id.origin = (uint32_t) get(reader, 4);
		entry->id.incarnation = get(reader, 8);
		entry->id.sequence = get(reader, 8);
		entry->length = (uint32_t) get(reader, 4);
		if (reader->failed || (size_t) (reader->end - reader->at) < entry->length)
			return "truncated entry";
		entry->bytes = reader->at;
		reader->at += entry->length;
		why = check_entry(message->type, entry);
		if (why != NULL)
			return why;
		if (message->type == PAXOS_MESSAGE_PROMISE &&
			(entry->slot <= previous_slot || entry->slot < message->first_slot))
			return "entries out of order";
		previous_slot = entry->slot;
	}
	message->entry_count = count;
	message->entries = entries;
	return NULL;
}

static const char *
get_ranges(Reader *reader, PaxosMessage *message)
{
	uint32_t	count = (uint32_t) get(reader, 1);

	if (reader->failed || count > PAXOS_MAX_RANGES)
		return "too many ranges";
	for (uint32_t i = 0; i < count; i++)
	{
		PaxosSlotRange *range = &message->ranges[i];

		range->first = get(reader, 8);
		range->last = get(reader, 8);
		if (reader->failed || range->first == 0 || range->last < range->first || range->last >= PAXOS_MAX_NUMBER)
			return "malformed range";
	}
	message->range_count = count;
	return NULL;
}

static const char *
get_marks(Reader *reader, PaxosMessage *message)
{
	uint64_t	count = get(reader, 1);

	if (reader->failed || count > PAXOS_MAX_MEMBERS)
		return "malformed count of marks";
	for (uint32_t i = 0; i < count; i++)
	{
		message->marks[i].node_id = (uint32_t) get(reader, 4);
		message->marks[i].incarnation = get(reader, 8);
		message->marks[i].position = get(reader, 8);
	}
	message->mark_count = (uint32_t) count;
	return reader->failed ? "truncated" : NULL;
}

static const char *
get_fields(Reader *reader, PaxosMessage *message, PaxosMessageEntry *entries)
{
	uint32_t	fields = fields_of(message);
	const char *why = NULL;

	if (fields & FIELD_BALLOT)
		message->ballot = get_ballot(reader);
	if (fields & FIELD_PROMISED)
		message->promised = get_ballot(reader);
	for (size_t i = 0; i < NUMBER_FIELD_COUNT; i++)
	{
		uint64_t	number;

		if (!(fields & number_fields[i].field))
			continue;
		number = get(reader, 8);
		if (number >= PAXOS_MAX_NUMBER && !(number_fields[i].field & FREE_FIELDS))
			return "number out of range";
		*(uint64_t *) ((char *) message + number_fields[i].offset) = number;
	}
	if ((fields & FIELD_FLAG) && !get_flag(reader, &message->flag))
		return "malformed flag";
	if ((fields & FIELD_SERVES) && !get_flag(reader, &message->serves))
		return "malformed flag";
	if (reader->failed)
		return "truncated";
	if (!ballot_is_sane(message->ballot) || !ballot_is_sane(message->promised))
		return "ballot out of range";
	if ((fields & FIELD_BALLOT) && message->ballot.round == 0 && message->type != PAXOS_MESSAGE_REPORT)
		return "no ballot";
	if ((fields & FIELD_FIRST_SLOT) && message->first_slot == 0)
		return "no slot";
	if (fields & FIELD_RANGES)
		why = get_ranges(reader, message);
	if (why == NULL && (fields & FIELD_MARKS))
		why = get_marks(reader, message);
	if (why == NULL && (fields & FIELD_ENTRIES))
		why = get_entries(reader, message, entries);
	return why;
}

bool
message_decode(PaxosMessage *message, PaxosMessageEntry *entries, const uint8_t *frame, size_t length, const char **why)
{
	Reader		reader = {frame, frame + length, false};
	Reader		trailer;
	uint64_t	version = 0;
	uint64_t	type;

	memset(message, 0, sizeof(*message));
	*why = NULL;
	if (length < HEADER_BYTES + CRC_BYTES || length > PAXOS_MAX_FRAME_BYTES)
		*why = "length out of range";
	else if (get(&reader, 2) != PAXOS_WIRE_MAGIC)
		*why = "not a frame of this protocol";
	else if ((version = get(&reader, 1)) < PAXOS_OLDEST_FRAME_VERSION || version > PAXOS_NEWEST_FRAME_VERSION)
		*why = "unknown protocol version";
	if (*why != NULL)
		return false;

	type = get(&reader, 1);
	reader.end -= CRC_BYTES;
	trailer = (Reader) {reader.end, reader.end + CRC_BYTES, false};
	if (get(&reader, 4) != length)
		*why = "wrong length";
	else if (get(&trailer, 4) != crc32c_compute(frame, length - CRC_BYTES))
		*why = "wrong checksum";
	else if (type == 0 || type >= PAXOS_MESSAGE_TYPE_END || version < message_first_version((PaxosMessageType) type))
		*why = "unknown type of message";
	if (*why != NULL)
		return false;

	message->type = (PaxosMessageType) type;
	message->version = (uint8_t) version;
	*why = get_fields(&reader, message, entries);
	if (*why == NULL && (reader.failed || reader.at != reader.end))
		*why = "wrong length of fields";
	return *why == NULL;
}
