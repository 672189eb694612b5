/*
 * config.c
 *	  Ballots' order, members, quorums, and the members' bytes at the head of a CONFIG value.
 *
 * Process: consensus worker, tests.  Must never count a learner for a quorum.
 *
 * Invariants
 *	 1. peers[i] stands for config.members[i].
 *	 2. The configuration in force for every slot that this node may propose in now is `config`: it is the one of the delivered
 *		prefix, and while a newer one is proposed the proposer proposes nothing after it (proposer.c has the argument).
 *	 3. Votes are bits of member indexes.  Those are renumbered only by a new configuration, when no slot that this
 *		node proposed is open; the votes of the slots before are then forgotten.
 */
#include "paxos_internal.h"

#include <string.h>

#define ENCODED_MEMBER_BYTES 5

int
paxos_ballot_compare(PaxosBallot a, PaxosBallot b)
{
	if (a.round != b.round)
		return a.round < b.round ? -1 : 1;
	if (a.node_id != b.node_id)
		return a.node_id < b.node_id ? -1 : 1;
	return 0;
}

/* ---- bytes ---- */

size_t
paxos_config_encode(const PaxosConfig *config, uint8_t *buffer, size_t capacity)
{
	size_t		length = 1 + (size_t) config->member_count * ENCODED_MEMBER_BYTES;

	PAXOS_ASSERT(config->member_count <= PAXOS_MAX_MEMBERS);
	if (length > capacity)
		return 0;
	*buffer++ = (uint8_t) config->member_count;
	for (uint32_t i = 0; i < config->member_count; i++)
	{
		uint32_t	node_id = config->members[i].node_id;

		*buffer++ = (uint8_t) (node_id >> 24);
		*buffer++ = (uint8_t) (node_id >> 16);
		*buffer++ = (uint8_t) (node_id >> 8);
		*buffer++ = (uint8_t) node_id;
		*buffer++ = config->members[i].is_voter ? 1 : 0;
	}
	return length;
}

/* A configuration has one to PAXOS_MAX_MEMBERS members, none twice, and at least one voter. */
size_t
paxos_config_decode(PaxosConfig *config, const uint8_t *buffer, size_t length)
{
	bool		has_voter = false;
	size_t		used;

	memset(config, 0, sizeof(*config));
	if (length < 1 || buffer[0] == 0 || buffer[0] > PAXOS_MAX_MEMBERS)
		return 0;
	used = 1 + (size_t) buffer[0] * ENCODED_MEMBER_BYTES;
	if (length < used)
		return 0;
	for (uint32_t i = 0; i < buffer[0]; i++)
	{
		const uint8_t *bytes = buffer + 1 + (size_t) i * ENCODED_MEMBER_BYTES;
		uint32_t	node_id = (uint32_t) bytes[0] << 24 | (uint32_t) bytes[1] << 16 | (uint32_t) bytes[2] << 8 | bytes[3];

		if (node_id == 0 || bytes[4] > 1 || config_find(config, node_id) >= 0)
			return 0;
		config->members[i].node_id = node_id;
		config->members[i].is_voter = bytes[4] == 1;
		config->member_count = i + 1;
		has_voter |= config->members[i].is_voter;
	}
	return has_voter ? used : 0;
}

/* ---- members and quorums ---- */

int
config_find(const PaxosConfig *config, uint32_t node_id)
{
	for (uint32_t i = 0; i < config->member_count; i++)
		if (config->members[i].node_id == node_id)
			return (int) i;
	return -1;
}

Peer *
config_peer(PaxosCore *core, uint32_t node_id)
{
	int			index = config_find(&core->config, node_id);

	return index < 0 || index == core->self_index ? NULL : &core->peers[index];
}

bool
config_self_is_voter(const PaxosCore *core)
{
	return core->self_index >= 0 && core->config.members[core->self_index].is_voter;
}

uint32_t
config_voter_count(const PaxosCore *core)
{
	uint32_t	count = 0;

	for (uint32_t i = 0; i < core->config.member_count; i++)
		count += core->config.members[i].is_voter ? 1 : 0;
	return count;
}

uint32_t
config_quorum_size(const PaxosCore *core)
{
	return config_voter_count(core) / 2 + 1;
}

bool
config_is_quorum(const PaxosCore *core, uint32_t member_bits)
{
	uint32_t	count = 0;

	for (uint32_t i = 0; i < core->config.member_count; i++)
		if (core->config.members[i].is_voter && (member_bits >> i & 1) != 0)
			count++;
	return count >= config_quorum_size(core);
}

static bool
is_voter_of(const PaxosConfig *config, uint32_t node_id)
{
	int			index = config_find(config, node_id);

	return index >= 0 && config->members[index].is_voter;
}

/* At most one voter differs, so a majority of one configuration intersects each majority of the other. */
bool
config_change_is_allowed(const PaxosConfig *from, const PaxosConfig *to)
{
	int			differences = 0;

	for (uint32_t i = 0; i < to->member_count; i++)
		if (to->members[i].is_voter && !is_voter_of(from, to->members[i].node_id))
			differences++;
	for (uint32_t i = 0; i < from->member_count; i++)
		if (from->members[i].is_voter && !is_voter_of(to, from->members[i].node_id))
			differences++;
	return differences <= 1;
}

/* ---- a configuration takes effect ---- */

/* Those of a delivered configuration, or of a base. */
void
config_install_members(PaxosCore *core, const PaxosConfig *config)
{
	Peer		old_peers[PAXOS_MAX_MEMBERS];
	PaxosConfig old_config = core->config;

	memcpy(old_peers, core->peers, sizeof(old_peers));
	memset(core->peers, 0, sizeof(core->peers));
	core->config = *config;
	core->self_index = config_find(config, core->settings.node_id);
	for (uint32_t i = 0; i < old_config.member_count; i++)
		if (config_find(config, old_config.members[i].node_id) < 0 && old_config.members[i].node_id != core->settings.node_id)
			proposer_drop_peer(core, &old_peers[i]);
	for (uint32_t i = 0; i < config->member_count; i++)
	{
		Peer	   *peer = &core->peers[i];
		int			old_index = config_find(&old_config, config->members[i].node_id);

		if (old_index >= 0)
			*peer = old_peers[old_index];
		else
		{
			peer->node_id = config->members[i].node_id;
			peer->link_up = true;
			proposer_add_peer(core, peer);
		}
		peer->is_voter = config->members[i].is_voter;
	}
}

/*
 * Called for a CONFIG value that was delivered in `slot`, and for the bootstrap record.  A joiner got the configuration of a
 * later slot at its bootstrap: the older ones that it learns on its way there are history.
 */
void
config_install(PaxosCore *core, PaxosSlot slot, const PaxosValue *value)
{
	PaxosConfig config;

	if (core->config.member_count > 0 && slot <= core->config.slot)
		return;
	if (paxos_config_decode(&config, value->bytes, value->length) == 0)
		return;					/* refused by the codec on every node, so not in a log; the same everywhere anyway */
	config.slot = slot;
	config_install_members(core, &config);
	window_forget_votes(core);
	if (core->started)
		election_config_changed(core);
}
