/*
 * base.c
 *	  A core that starts behind slots that it never sees: from a trimmed journal, or from a snapshot.
 *
 * Process: consensus worker, whatever compacts the log, tests.  Must never touch promised_ballot: a promise is this node's own word, and
 * follows from no log.
 *
 * Why slots up to the base may be forgotten: they are chosen, and this node has their effects.  As an acceptor it answers for none of them: a
 * PREPARE that covers one is refused as that of a proposer that is behind (acceptor_on_prepare), and an ACCEPT for one is answered
 * by delivered_slot, which acceptor.c, invariant 3, allows to whoever knows the chosen value - by whatever way it came to know it, for the
 * argument rests on the promises alone, and they are kept.  As a proposer it never proposes below delivered_slot + 1.
 * ("Paxos Made Live", Chandra et al. 2007, section 5.5; Ongaro 2014, section 5.1: the state machine's snapshot takes the place of the
 * prefix, with the configuration in force and what deduplicates clients' commands in it.)
 */
#include "base.h"

#include <string.h>

#include "crc32c.h"
#include "paxos_internal.h"

#define BASE_VERSION 1
#define HEADER_BYTES 17
#define CRC_BYTES 4
#define MAX_CONFIG_BYTES (1 + PAXOS_MAX_MEMBERS * 5)

static void
put(uint8_t *at, uint64_t number, unsigned size)
{
	for (unsigned i = 0; i < size; i++)
		at[i] = (uint8_t) (number >> (8 * (size - 1 - i)));
}

static uint64_t
get(const uint8_t *at, unsigned size)
{
	uint64_t	number = 0;

	for (unsigned i = 0; i < size; i++)
		number = number << 8 | at[i];
	return number;
}

size_t
paxos_base_size(const PaxosConfig *config, const PaxosOrigins *origins)
{
	uint8_t		scratch[MAX_CONFIG_BYTES];

	return HEADER_BYTES + paxos_config_encode(config, scratch, sizeof(scratch)) + paxos_origins_size(origins) + CRC_BYTES;
}

size_t
paxos_base_encode(PaxosSlot base_slot, const PaxosConfig *config, const PaxosOrigins *origins, uint8_t *buffer, size_t capacity)
{
	size_t		size = paxos_base_size(config, origins);
	size_t		used = HEADER_BYTES;

	PAXOS_ASSERT(config->slot <= base_slot && base_slot < PAXOS_MAX_NUMBER);
	if (size > capacity)
		return 0;
	put(buffer, BASE_VERSION, 1);
	put(buffer + 1, base_slot, 8);
	put(buffer + 9, config->slot, 8);
	used += paxos_config_encode(config, buffer + used, size - used);
	used += paxos_origins_encode(origins, buffer + used, size - used);
	PAXOS_ASSERT(used + CRC_BYTES == size);
	put(buffer + used, crc32c_compute(buffer, used), CRC_BYTES);
	return size;
}

bool
paxos_base_decode(PaxosSlot *base_slot, PaxosConfig *config, PaxosOrigins *origins, const uint8_t *bytes, size_t length)
{
	PaxosConfig decoded;
	PaxosSlot	slot;
	PaxosSlot	config_slot;
	size_t		end = length - CRC_BYTES;
	size_t		used;

	if (length < HEADER_BYTES + CRC_BYTES || bytes[0] != BASE_VERSION || get(bytes + end, CRC_BYTES) != crc32c_compute(bytes, end))
		return false;
	slot = get(bytes + 1, 8);
	config_slot = get(bytes + 9, 8);
	used = paxos_config_decode(&decoded, bytes + HEADER_BYTES, end - HEADER_BYTES);
	if (used == 0 || slot >= PAXOS_MAX_NUMBER || config_slot > slot ||
		!paxos_origins_decode(origins, bytes + HEADER_BYTES + used, end - HEADER_BYTES - used))
		return false;
	*config = decoded;
	config->slot = config_slot;
	*base_slot = slot;
	return true;
}

/*
 * Nothing else may have been restored: the window is empty.  Records of slots up to the base that come after this are history: learner.c and
 * config.c pass over them as over any that was delivered, but the ballots in them still count (paxos_restore).
 */
bool
paxos_restore_base(PaxosCore *core, PaxosSlot base_slot, const uint8_t *bytes, size_t length)
{
	PaxosConfig config;
	PaxosSlot	slot_within;
	PaxosOrigins origins;

	PAXOS_ASSERT(!core->started && core->delivered_slot == 0 && core->window.max_accepted_slot == 0);
	paxos_origins_init(&origins, &core->allocator);
	if (!paxos_base_decode(&slot_within, &config, &origins, bytes, length) || slot_within != base_slot)
	{
		paxos_origins_free(&origins);
		return false;
	}
	paxos_origins_free(&core->origins);
	core->origins = origins;
	window_set_base(core, base_slot);
	core->chosen_slot = core->delivered_slot = core->hinted_slot = base_slot;
	config_install_members(core, &config);
	return true;
}
