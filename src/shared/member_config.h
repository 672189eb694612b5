/*
 * member_config.h
 *	  The bytes of a CONFIG value: the members as the core reads them (paxos_config_encode), then what the host adds:
 *	  u32 next_node_id, and per member in the same order u16 length + node name, u16 length + conninfo.  Numbers big endian.
 */
#ifndef QUORUM_MEMBER_CONFIG_H
#define QUORUM_MEMBER_CONFIG_H

#include "postgres.h"

#include "lib/stringinfo.h"
#include "shared/shmem.h"

typedef struct MemberConfigItem
{
	uint32		node_id;
	bool		is_voter;
	char		node_name[NAMEDATALEN];
	char		conninfo[QUORUM_MAX_CONNINFO];
} MemberConfigItem;

typedef struct MemberConfig
{
	uint32		next_node_id;
	int			member_count;
	MemberConfigItem members[QUORUM_MAX_MEMBERS];
} MemberConfig;

extern void member_config_encode(const MemberConfig *config, StringInfo buffer);
extern bool member_config_decode(MemberConfig *config, const char *bytes, Size length);	/* false: malformed */

#endif							/* QUORUM_MEMBER_CONFIG_H */
