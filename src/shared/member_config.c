/*
 * member_config.c
 *	  The bytes of a CONFIG value, as member_config.h describes them.
 *
 * Process: the backend that runs create_cluster or join_cluster, and the consensus worker.  The bytes may come from a peer or
 * from disk: decoding checks each length, and that the members make sense, and never raises an error.
 *
 *	 u8 member count; per member: u32 node id, u8 is_voter (0 or 1); u32 next node id; per member: u16 length and node name,
 *	 u16 length and conninfo.  Only if there is a member that is not to vote, or a generation was forced: u8 version (1); per member: u8 flags, of
 *	 which bit 0 says that it is to vote and the others are 0.  In version 2, which stands for a forced generation, follow the generation (generation.h),
 *	 u8 count of nodes that were left behind; per such node: u32 node id, u16 length and node name, u16 length and conninfo.
 *
 * The head of it, up to and without the next node id, is what the consensus core reads (paxos_config_decode).
 *
 * Invariants of a decoded configuration
 *	 1. 1 to QUORUM_MAX_MEMBERS members; node ids are not 0, differ, and are below next_node_id.
 *	 2. Node names are not empty and differ.  No text holds a NUL, each fits its array.
 *	 3. A voter is to be one.
 */
#include "postgres.h"

#include "libpq/pqformat.h"

#include "shared/member_config.h"

#define EXTENSION_VERSION 1			/* who is to vote */
#define EXTENSION_VERSION_FORCED 2	/* and the generation, with those that it left behind */
#define FLAG_AS_VOTER 0x01

/* What is left to read of a value. */
typedef struct ConfigReader
{
	const uint8 *bytes;
	Size		length;
} ConfigReader;

static void
send_text(StringInfo buffer, const char *text)
{
	Size		length = strlen(text);

	pq_sendint16(buffer, (uint16) length);
	appendBinaryStringInfo(buffer, text, (int) length);
}

/* What older builds do not know stands at the end, and only where it says something. */
static void
send_wishes(const MemberConfig *config, StringInfo buffer)
{
	bool		all_vote = true;

	for (int i = 0; i < config->member_count; i++)
		all_vote &= config->members[i].as_voter;
	if (all_vote && config->generation.number == 0)
		return;
	pq_sendint8(buffer, config->generation.number == 0 ? EXTENSION_VERSION : EXTENSION_VERSION_FORCED);
	for (int i = 0; i < config->member_count; i++)
		pq_sendint8(buffer, config->members[i].as_voter ? FLAG_AS_VOTER : 0);
	if (config->generation.number == 0)
		return;
	generation_encode(&config->generation, buffer);
	pq_sendint8(buffer, (uint8) config->left_behind_count);
	for (int i = 0; i < config->left_behind_count; i++)
	{
		pq_sendint32(buffer, config->left_behind[i].node_id);
		send_text(buffer, config->left_behind[i].node_name);
		send_text(buffer, config->left_behind[i].conninfo);
	}
}

void
member_config_encode(const MemberConfig *config, StringInfo buffer)
{
	if (config->member_count < 1 || config->member_count > QUORUM_MAX_MEMBERS)
		elog(ERROR, "a configuration of %d members cannot be encoded", config->member_count);

	pq_sendint8(buffer, (uint8) config->member_count);
	for (int i = 0; i < config->member_count; i++)
	{
		pq_sendint32(buffer, config->members[i].node_id);
		pq_sendint8(buffer, config->members[i].is_voter ? 1 : 0);
	}
	pq_sendint32(buffer, config->next_node_id);
	for (int i = 0; i < config->member_count; i++)
	{
		send_text(buffer, config->members[i].node_name);
		send_text(buffer, config->members[i].conninfo);
	}
	send_wishes(config, buffer);
}

static bool
read_number(ConfigReader *reader, int width, uint32 *number)
{
	if (reader->length < (Size) width)
		return false;
	*number = 0;
	for (int i = 0; i < width; i++)
		*number = (*number << 8) | reader->bytes[i];
	reader->bytes += width;
	reader->length -= (Size) width;
	return true;
}

static bool
read_text(ConfigReader *reader, char *text, Size capacity)
{
	uint32		length;

	if (!read_number(reader, 2, &length))
		return false;
	if (length > reader->length || length >= capacity)
		return false;
	if (memchr(reader->bytes, '\0', length) != NULL)
		return false;
	memcpy(text, reader->bytes, length);
	text[length] = '\0';
	reader->bytes += length;
	reader->length -= length;
	return true;
}

static bool
read_generation(ConfigReader *reader, MemberConfig *config)
{
	Size		used = generation_decode(&config->generation, (const char *) reader->bytes, reader->length);
	uint32		number;

	if (used == 0 || config->generation.number == 0)
		return false;
	reader->bytes += used;
	reader->length -= used;
	if (!read_number(reader, 1, &number) || number > lengthof(config->left_behind))
		return false;
	config->left_behind_count = (int) number;
	for (int i = 0; i < config->left_behind_count; i++)
	{
		MemberConfigItem *item = &config->left_behind[i];

		if (!read_number(reader, 4, &item->node_id) || !read_text(reader, item->node_name, sizeof(item->node_name)) ||
			!read_text(reader, item->conninfo, sizeof(item->conninfo)))
			return false;
	}
	return true;
}

static bool
read_wishes(ConfigReader *reader, MemberConfig *config)
{
	uint32		version;
	uint32		number;

	for (int i = 0; i < config->member_count; i++)
		config->members[i].as_voter = true;
	if (reader->length == 0)
		return true;
	if (!read_number(reader, 1, &version) || (version != EXTENSION_VERSION && version != EXTENSION_VERSION_FORCED))
		return false;
	for (int i = 0; i < config->member_count; i++)
	{
		if (!read_number(reader, 1, &number) || (number & ~(uint32) FLAG_AS_VOTER) != 0)
			return false;
		config->members[i].as_voter = (number & FLAG_AS_VOTER) != 0;
	}
	if (version == EXTENSION_VERSION_FORCED && !read_generation(reader, config))
		return false;
	return reader->length == 0;
}

/* All invariants, except what the reading has checked. */
static bool
config_makes_sense(const MemberConfig *config)
{
	for (int i = 0; i < config->member_count; i++)
	{
		const MemberConfigItem *member = &config->members[i];

		if (member->node_id == 0 || member->node_id >= config->next_node_id || member->node_name[0] == '\0' ||
			(member->is_voter && !member->as_voter))
			return false;
		for (int j = 0; j < i; j++)
		{
			if (config->members[j].node_id == member->node_id ||
				strcmp(config->members[j].node_name, member->node_name) == 0)
				return false;
		}
	}
	return true;
}

bool
member_config_decode(MemberConfig *config, const char *bytes, Size length)
{
	ConfigReader reader = {(const uint8 *) bytes, length};
	uint32		number;

	memset(config, 0, sizeof(*config));
	if (!read_number(&reader, 1, &number) || number < 1 || number > QUORUM_MAX_MEMBERS)
		return false;
	config->member_count = (int) number;
	for (int i = 0; i < config->member_count; i++)
	{
		if (!read_number(&reader, 4, &config->members[i].node_id) || !read_number(&reader, 1, &number) || number > 1)
			return false;
		config->members[i].is_voter = (number == 1);
	}
	if (!read_number(&reader, 4, &config->next_node_id))
		return false;
	for (int i = 0; i < config->member_count; i++)
	{
		if (!read_text(&reader, config->members[i].node_name, sizeof(config->members[i].node_name)) ||
			!read_text(&reader, config->members[i].conninfo, sizeof(config->members[i].conninfo)))
			return false;
	}
	return read_wishes(&reader, config) && config_makes_sense(config);
}

const MemberConfigItem *
member_config_find(const MemberConfig *config, uint32 node_id)
{
	for (int i = 0; i < config->member_count; i++)
		if (config->members[i].node_id == node_id)
			return &config->members[i];
	return NULL;
}
