/*
 * test_message.c
 *	  The codec: each message comes back as it was; whatever is not exactly a frame is refused.
 */
#include <stdlib.h>
#include <string.h>

#include "consensus/core/crc32c.h"
#include "consensus/core/message.h"
#include "tap.h"

static PaxosMessageEntry decoded_entries[PAXOS_MAX_ENTRIES_PER_MESSAGE];
static PaxosMessage decoded;

void
paxos_assertion_failed(const char *condition, const char *file, int line)
{
	fprintf(stderr, "assertion failed: %s at %s:%d\n", condition, file, line);
	abort();
}

static const uint8_t config_bytes[] = {2, 0, 0, 0, 1, 1, 0, 0, 0, 2, 0, 'h', 'o', 's', 't'};

static const PaxosMessageEntry data_entries[] = {
	{.slot = 7, .ballot = {3, 2}, .kind = PAXOS_VALUE_DATA, .id = {2, 11, 5}, .bytes = (const uint8_t *) "hello", .length = 5},
	{.slot = 8, .ballot = {4, 1}, .kind = PAXOS_VALUE_DATA, .id = {3, 12, 6}, .bytes = (const uint8_t *) "", .length = 0}
};

static const PaxosMessageEntry mixed_entries[] = {
	{.slot = 7, .ballot = {3, 2}, .kind = PAXOS_VALUE_DATA, .id = {2, 11, 5}, .bytes = (const uint8_t *) "hello", .length = 5},
	{.slot = 8, .ballot = {4, 1}, .kind = PAXOS_VALUE_NOOP},
	{.slot = 9, .ballot = {4, 1}, .kind = PAXOS_VALUE_CONFIG, .id = {1, 1, 9}, .bytes = config_bytes, .length = sizeof(config_bytes)}
};

static const char *const type_names[PAXOS_MESSAGE_TYPE_END] = {
	[PAXOS_MESSAGE_PRE_VOTE] = "PRE_VOTE", [PAXOS_MESSAGE_PRE_VOTE_ANSWER] = "PRE_VOTE_ANSWER",
	[PAXOS_MESSAGE_PREPARE] = "PREPARE", [PAXOS_MESSAGE_PROMISE] = "PROMISE", [PAXOS_MESSAGE_REFUSAL] = "REFUSAL",
	[PAXOS_MESSAGE_ACCEPT] = "ACCEPT", [PAXOS_MESSAGE_REPORT] = "REPORT", [PAXOS_MESSAGE_HEARTBEAT] = "HEARTBEAT",
	[PAXOS_MESSAGE_LEARN] = "LEARN", [PAXOS_MESSAGE_FORWARD] = "FORWARD", [PAXOS_MESSAGE_READ_REQUEST] = "READ_REQUEST",
	[PAXOS_MESSAGE_READ_ANSWER] = "READ_ANSWER", [PAXOS_MESSAGE_FORWARD_AGAIN] = "FORWARD_AGAIN",
	[PAXOS_MESSAGE_TRIMMED] = "TRIMMED", [PAXOS_MESSAGE_HAND_OVER] = "HAND_OVER"
};

/* A message of each type with every field that the type has. */
static PaxosMessage
example_fields(PaxosMessageType type)
{
	const PaxosBallot ballot = {5, 3};
	const PaxosBallot promised = {6, 2};
	PaxosMessage message = {.type = type};

	switch (type)
	{
		case PAXOS_MESSAGE_PRE_VOTE:
			return (PaxosMessage) {.type = type, .ballot = ballot, .first_slot = 7};
		case PAXOS_MESSAGE_PRE_VOTE_ANSWER:
		case PAXOS_MESSAGE_REFUSAL:
			return (PaxosMessage) {.type = type, .ballot = ballot, .promised = promised, .delivered_slot = 6, .flag = true};
		case PAXOS_MESSAGE_PREPARE:
			return (PaxosMessage) {.type = type, .ballot = ballot, .first_slot = 7, .resume_slot = 9};
		case PAXOS_MESSAGE_PROMISE:
			return (PaxosMessage) {.type = type, .ballot = ballot, .first_slot = 7, .resume_slot = 10, .delivered_slot = 6,
				.incarnation = UINT64_MAX, .flag = true, .entry_count = 3, .entries = mixed_entries};
		case PAXOS_MESSAGE_ACCEPT:
			return (PaxosMessage) {.type = type, .ballot = ballot, .first_slot = 7, .chosen_slot = 6, .entry_count = 3,
				.entries = mixed_entries};
		case PAXOS_MESSAGE_REPORT:
			message = (PaxosMessage) {.type = type, .ballot = ballot, .accepted_slot = 8, .delivered_slot = 6, .incarnation = 4,
				.round = 77, .sent_ms = UINT64_MAX, .range_count = 2};
			message.ranges[0] = (PaxosSlotRange) {10, 10};
			message.ranges[1] = (PaxosSlotRange) {12, 20};
			return message;
		case PAXOS_MESSAGE_HEARTBEAT:
			return (PaxosMessage) {.type = type, .ballot = ballot, .chosen_slot = 6, .round = 3, .sent_ms = 12345, .flag = true,
				.serves = true};
		case PAXOS_MESSAGE_LEARN:
			return (PaxosMessage) {.type = type, .ballot = ballot, .first_slot = 7, .entry_count = 3, .entries = mixed_entries};
		case PAXOS_MESSAGE_FORWARD:
			return (PaxosMessage) {.type = type, .entry_count = 2, .entries = data_entries};
		case PAXOS_MESSAGE_FORWARD_AGAIN:
			return (PaxosMessage) {.type = type, .ballot = ballot};
		case PAXOS_MESSAGE_READ_REQUEST:
			return (PaxosMessage) {.type = type, .number = UINT64_MAX};
		case PAXOS_MESSAGE_READ_ANSWER:
			return (PaxosMessage) {.type = type, .ballot = ballot, .number = 5, .flag = true, .read_index = 8};
		case PAXOS_MESSAGE_TRIMMED:
			return (PaxosMessage) {.type = type, .first_slot = 7};
		case PAXOS_MESSAGE_HAND_OVER:
			return (PaxosMessage) {.type = type, .ballot = ballot, .chosen_slot = 6};
		case PAXOS_MESSAGE_READ_PROBE:
			return (PaxosMessage) {.type = type, .ballot = ballot, .number = UINT64_MAX};
		default:
			abort();
	}
}

/* In the oldest version that has its type. */
static PaxosMessage
example(PaxosMessageType type)
{
	PaxosMessage message = example_fields(type);

	message.version = message_first_version(type);
	return message;
}

static bool
same_entries(const PaxosMessage *a, const PaxosMessage *b)
{
	if (a->entry_count != b->entry_count)
		return false;
	for (uint32_t i = 0; i < a->entry_count; i++)
	{
		const PaxosMessageEntry *x = &a->entries[i];
		const PaxosMessageEntry *y = &b->entries[i];

		if (x->kind != y->kind || x->length != y->length || x->id.origin != y->id.origin ||
			x->id.incarnation != y->id.incarnation || x->id.sequence != y->id.sequence ||
			(x->length > 0 && memcmp(x->bytes, y->bytes, x->length) != 0))
			return false;
		if (a->type != PAXOS_MESSAGE_FORWARD && x->slot != y->slot)
			return false;
		if (a->type == PAXOS_MESSAGE_PROMISE && paxos_ballot_compare(x->ballot, y->ballot) != 0)
			return false;
	}
	return true;
}

static bool
same_message(const PaxosMessage *a, const PaxosMessage *b)
{
	return a->type == b->type && paxos_ballot_compare(a->ballot, b->ballot) == 0 &&
		paxos_ballot_compare(a->promised, b->promised) == 0 && a->first_slot == b->first_slot &&
		a->resume_slot == b->resume_slot && a->chosen_slot == b->chosen_slot && a->accepted_slot == b->accepted_slot &&
		a->delivered_slot == b->delivered_slot && a->incarnation == b->incarnation && a->round == b->round &&
		a->sent_ms == b->sent_ms && a->number == b->number && a->read_index == b->read_index && a->flag == b->flag &&
		a->serves == b->serves &&
		a->range_count == b->range_count && memcmp(a->ranges, b->ranges, a->range_count * sizeof(PaxosSlotRange)) == 0 &&
		same_entries(a, b);
}

/* Decodes from memory of exactly that size, so that a sanitizer sees a read past its end. */
static bool
decodes(const uint8_t *frame, size_t length)
{
	uint8_t    *copy = malloc(length > 0 ? length : 1);
	const char *why = NULL;
	bool		good;

	memcpy(copy, frame, length);
	good = message_decode(&decoded, decoded_entries, copy, length, &why);
	ok_quietly(good == (why == NULL), "a refusal says why");
	free(copy);
	return good;
}

static void
seal(uint8_t *frame, size_t length)
{
	uint32_t	crc = crc32c_compute(frame, length - 4);

	for (int i = 0; i < 4; i++)
		frame[length - 4 + i] = (uint8_t) (crc >> (24 - 8 * i));
}

static void
each_message_comes_back(PaxosMessageType type)
{
	PaxosMessage message = example(type);
	size_t		length = paxos_message_size(&message);
	uint8_t    *frame = malloc(length + 1);
	const char *why;
	char		name[100];
	bool		all_refused = true;

	snprintf(name, sizeof(name), "%s comes back as it was", type_names[type]);
	ok(paxos_message_encode(&message, frame, length - 1) == 0 && paxos_message_encode(&message, frame, length) == length &&
	   message_decode(&decoded, decoded_entries, frame, length, &why) && same_message(&message, &decoded), name);

	for (size_t cut = 0; cut < length; cut++)
		all_refused &= !decodes(frame, cut);
	frame[length] = 0;
	all_refused &= !decodes(frame, length + 1);
	snprintf(name, sizeof(name), "%s that is cut or too long is refused", type_names[type]);
	ok(all_refused, name);

	all_refused = true;
	for (size_t bit = 0; bit < 8 * length; bit++)
	{
		frame[bit / 8] ^= (uint8_t) (1 << bit % 8);
		all_refused &= !decodes(frame, length);
		frame[bit / 8] ^= (uint8_t) (1 << bit % 8);
	}
	snprintf(name, sizeof(name), "%s with a flipped bit is refused", type_names[type]);
	ok(all_refused && decodes(frame, length), name);
	free(frame);
}

/* With a right checksum the fields themselves must stand the test: no crash, and nothing insane comes through. */
static void
forged_frames_do_no_harm(PaxosMessageType type)
{
	PaxosMessage message = example(type);
	size_t		length = paxos_message_size(&message);
	uint8_t    *frame = malloc(length);
	uint64_t	random = 4711 + type;
	char		name[100];
	bool		sane = true;

	for (int round = 0; round < 20000; round++)
	{
		paxos_message_encode(&message, frame, length);
		for (int change = round % 3; change >= 0; change--)
		{
			random = random * UINT64_C(6364136223846793005) + 1;
			frame[8 + (random >> 33) % (length - 8)] = (uint8_t) (random >> 20);
		}
		seal(frame, length);
		if (!decodes(frame, length))
			continue;
		sane &= decoded.first_slot < PAXOS_MAX_NUMBER && decoded.accepted_slot < PAXOS_MAX_NUMBER &&
			decoded.entry_count <= PAXOS_MAX_ENTRIES_PER_MESSAGE && decoded.range_count <= PAXOS_MAX_RANGES;
		for (uint32_t i = 0; i < decoded.entry_count; i++)
			sane &= decoded.entries[i].length < length && decoded.entries[i].slot < PAXOS_MAX_NUMBER;
	}
	snprintf(name, sizeof(name), "forged %s does no harm", type_names[type]);
	ok(sane, name);
	free(frame);
}

static void
insane_fields_are_refused(void)
{
	uint8_t		frame[512];
	PaxosMessage message = example(PAXOS_MESSAGE_PREPARE);
	size_t		length;

	message.first_slot = 0;
	length = paxos_message_encode(&message, frame, sizeof(frame));
	ok(!decodes(frame, length), "a prepare without a slot is refused");
	message = example(PAXOS_MESSAGE_PREPARE);
	message.ballot.round = 0;
	length = paxos_message_encode(&message, frame, sizeof(frame));
	ok(!decodes(frame, length), "a prepare without a ballot is refused");
	message = example(PAXOS_MESSAGE_ACCEPT);
	message.first_slot = PAXOS_MAX_NUMBER - 1;
	length = paxos_message_encode(&message, frame, sizeof(frame));
	ok(!decodes(frame, length), "slots that run out of range are refused");
	message = example(PAXOS_MESSAGE_REPORT);
	message.ranges[0] = (PaxosSlotRange) {5, 4};
	length = paxos_message_encode(&message, frame, sizeof(frame));
	ok(!decodes(frame, length), "a range that ends before it begins is refused");
	message = example(PAXOS_MESSAGE_FORWARD);
	message.entries = mixed_entries;
	length = paxos_message_encode(&message, frame, sizeof(frame));
	ok(!decodes(frame, length), "a no-op is not forwarded");
	message = example(PAXOS_MESSAGE_HEARTBEAT);
	length = paxos_message_encode(&message, frame, sizeof(frame));
	frame[2] = PAXOS_NEWEST_FRAME_VERSION + 1;
	seal(frame, length);
	ok(!decodes(frame, length), "a newer version is refused");
	frame[2] = PAXOS_OLDEST_FRAME_VERSION - 1;
	seal(frame, length);
	ok(!decodes(frame, length), "an older version is refused");
	frame[2] = PAXOS_OLDEST_FRAME_VERSION;
	frame[3] = PAXOS_MESSAGE_TYPE_END;
	seal(frame, length);
	ok(!decodes(frame, length), "an unknown type is refused");
}

/* Their checksums were made by the build before version 3: a cluster whose nodes are upgraded one by one depends on them. */
static void
version_2_is_as_it_was(void)
{
	static const uint32_t crc_of[PAXOS_MESSAGE_TRIMMED] = {
		[PAXOS_MESSAGE_PRE_VOTE] = 0x91D7B8CC,
		[PAXOS_MESSAGE_PRE_VOTE_ANSWER] = 0x7A0B426D,
		[PAXOS_MESSAGE_PREPARE] = 0x3D0F8C37,
		[PAXOS_MESSAGE_PROMISE] = 0xFA9AD8B6,
		[PAXOS_MESSAGE_REFUSAL] = 0xB549547C,
		[PAXOS_MESSAGE_ACCEPT] = 0xFF375E90,
		[PAXOS_MESSAGE_REPORT] = 0xABBD7392,
		[PAXOS_MESSAGE_HEARTBEAT] = 0xCD2906A9,
		[PAXOS_MESSAGE_LEARN] = 0xBEAFC409,
		[PAXOS_MESSAGE_FORWARD] = 0x1E95D2CF,
		[PAXOS_MESSAGE_READ_REQUEST] = 0x183DEA13,
		[PAXOS_MESSAGE_READ_ANSWER] = 0x55E8AA1C,
		[PAXOS_MESSAGE_FORWARD_AGAIN] = 0xEA236AF4
	};
	uint8_t		frame[512];
	bool		same = true;
	bool		differs_in_the_version = true;

	for (int type = 1; type < PAXOS_MESSAGE_TRIMMED; type++)
	{
		PaxosMessage message = example((PaxosMessageType) type);
		size_t		length = paxos_message_encode(&message, frame, sizeof(frame));
		uint32_t	crc = (uint32_t) frame[length - 4] << 24 | (uint32_t) frame[length - 3] << 16 | (uint32_t) frame[length - 2] << 8 |
			frame[length - 1];
		uint8_t		newer[512];

		if (crc != crc_of[type])
		{
			printf("# %s has checksum 0x%08X\n", type_names[type], crc);
			same = false;
		}
		if (type == PAXOS_MESSAGE_PROMISE || type == PAXOS_MESSAGE_REPORT || type == PAXOS_MESSAGE_HEARTBEAT)
			continue;
		message.version = 3;
		differs_in_the_version &= paxos_message_encode(&message, newer, sizeof(newer)) == length && newer[2] == 3 &&
			decodes(newer, length) && decoded.version == 3 && memcmp(frame + 3, newer + 3, length - 7) == 0;
	}
	ok(same, "frames of version 2 are byte for byte what they were");
	ok(differs_in_the_version, "what version 2 has is the same in version 3, but for the version and the positions of journals");
}

/* What a journal holds durably goes with promises, reports and heartbeats of version 3. */
static void
positions_travel_in_version_3(PaxosMessageType type)
{
	uint8_t		frame[512];
	PaxosMessage message = example(type);
	size_t		length;
	char		name[100];
	bool		is_heartbeat = type == PAXOS_MESSAGE_HEARTBEAT;

	message.version = 3;
	message.durable_position = is_heartbeat ? 0 : UINT64_MAX - 1;
	message.mark_count = is_heartbeat ? 2 : 0;
	message.marks[0] = (PaxosDurableMark) {7, 3, UINT64_MAX};
	message.marks[1] = (PaxosDurableMark) {8, UINT64_MAX, 1};
	length = paxos_message_encode(&message, frame, sizeof(frame));
	snprintf(name, sizeof(name), "%s of version 3 tells how far journals are durable", type_names[type]);
	ok(decodes(frame, length) && decoded.durable_position == message.durable_position && decoded.mark_count == message.mark_count &&
	   (!is_heartbeat || (decoded.marks[0].node_id == 7 && decoded.marks[0].incarnation == 3 && decoded.marks[0].position == UINT64_MAX && decoded.marks[1].position == 1)), name);
	if (is_heartbeat)
	{
		message.mark_count = PAXOS_MAX_MEMBERS;
		length = paxos_message_encode(&message, frame, sizeof(frame));
		frame[length - 4 - PAXOS_MAX_MEMBERS * 20 - 1] = PAXOS_MAX_MEMBERS + 1;
		seal(frame, length);
		ok(!decodes(frame, length), "more marks than there can be members are refused");
	}
}

static void
delivered_by_all_travels_in_version_5(void)
{
	uint8_t		frame[512];
	PaxosMessage message = example(PAXOS_MESSAGE_HEARTBEAT);
	size_t		shorter;
	size_t		length;

	message.delivered_slot = 5;
	message.version = 4;
	shorter = paxos_message_encode(&message, frame, sizeof(frame));
	ok(decodes(frame, shorter) && decoded.delivered_slot == 0 && !message_tells_delivered(&decoded), "a heartbeat of version 4 does not tell what all have delivered");
	message.version = 5;
	length = paxos_message_encode(&message, frame, sizeof(frame));
	ok(length == shorter + 8 && decodes(frame, length) && decoded.delivered_slot == 5 && message_tells_delivered(&decoded), "one of version 5 does");
	frame[2] = 4;
	seal(frame, length);
	ok(!decodes(frame, length), "its bytes are none of version 4");
	message.version = 5;
	message.delivered_slot = PAXOS_MAX_NUMBER;
	length = paxos_message_encode(&message, frame, sizeof(frame));
	ok(!decodes(frame, length), "a slot that cannot be is refused");
}

static void
new_types_need_version_3(PaxosMessageType type)
{
	uint8_t		frame[512];
	PaxosMessage message = example(type);
	size_t		length = paxos_message_encode(&message, frame, sizeof(frame));
	char		name[100];

	frame[2] = 2;
	seal(frame, length);
	snprintf(name, sizeof(name), "%s in a frame of version 2 is refused", type_names[type]);
	ok(message.version == 3 && !decodes(frame, length), name);
}

static void
large_frames(void)
{
	size_t		capacity = PAXOS_MAX_FRAME_BYTES + 1;
	uint8_t    *bytes = calloc(1, PAXOS_MAX_VALUE_BYTES);
	uint8_t    *frame = malloc(capacity);
	PaxosMessageEntry entry = {.slot = 1, .kind = PAXOS_VALUE_DATA, .id = {1, 1, 1}, .bytes = bytes, .length = PAXOS_MAX_VALUE_BYTES};
	PaxosMessage message = {.type = PAXOS_MESSAGE_ACCEPT, .ballot = {1, 1}, .first_slot = 1, .entry_count = 1, .entries = &entry};
	const char *why;
	size_t		length = paxos_message_encode(&message, frame, capacity);

	ok(length > 0 && length <= PAXOS_MAX_FRAME_BYTES && message_decode(&decoded, decoded_entries, frame, length, &why),
	   "the longest value fits a frame");
	ok(!message_decode(&decoded, decoded_entries, frame, capacity, &why) && why != NULL, "a longer frame is refused");
	free(bytes);
	free(frame);
}

static void
configurations(void)
{
	PaxosConfig config = {.member_count = 2, .members = {{1, true}, {70000, false}}};
	PaxosConfig back;
	uint8_t		buffer[100] = {0};

	ok(paxos_config_encode(&config, buffer, 10) == 0, "a configuration that does not fit is not written");
	ok(paxos_config_encode(&config, buffer, sizeof(buffer)) == 11, "a configuration takes one byte, and five per member");
	ok(paxos_config_decode(&back, buffer, sizeof(buffer)) == 11 && back.member_count == 2 && back.members[1].node_id == 70000 &&
	   back.members[0].is_voter && !back.members[1].is_voter, "a configuration comes back as it was");
	ok(paxos_config_decode(&back, buffer, 10) == 0, "a cut configuration is refused");
	buffer[9] = 1, buffer[6] = buffer[7] = buffer[8] = 0;
	ok(paxos_config_decode(&back, buffer, 11) == 0, "a member that stands there twice is refused");
	buffer[9] = 2, buffer[5] = 0;
	ok(paxos_config_decode(&back, buffer, 11) == 0, "a configuration without a voter is refused");
	buffer[0] = PAXOS_MAX_MEMBERS + 1;
	ok(paxos_config_decode(&back, buffer, sizeof(buffer)) == 0, "too many members are refused");
}

int
main(void)
{
	ok(crc32c_compute((const uint8_t *) "123456789", 9) == 0xE3069283u && crc32c_compute(NULL, 0) == 0,
	   "the checksum is CRC-32C");
	for (int type = 1; type < PAXOS_MESSAGE_TYPE_END; type++)
	{
		each_message_comes_back((PaxosMessageType) type);
		forged_frames_do_no_harm((PaxosMessageType) type);
	}
	insane_fields_are_refused();
	version_2_is_as_it_was();
	positions_travel_in_version_3(PAXOS_MESSAGE_PROMISE);
	positions_travel_in_version_3(PAXOS_MESSAGE_REPORT);
	positions_travel_in_version_3(PAXOS_MESSAGE_HEARTBEAT);
	delivered_by_all_travels_in_version_5();
	new_types_need_version_3(PAXOS_MESSAGE_TRIMMED);
	new_types_need_version_3(PAXOS_MESSAGE_HAND_OVER);
	large_frames();
	configurations();
	return tap_done();
}
