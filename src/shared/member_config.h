/*
 * member_config.h
 *	  The bytes of a CONFIG value: the members as the core reads them (paxos_config_encode), then what the host adds:
 *	  u32 next_node_id, and per member in the same order u16 length + node name, u16 length + conninfo.  Numbers big endian.
 *	  Where a member is not to vote, u8 version 1 and per member a u8 of flags follow; builds before that know no such members, and find
 *	  the bytes malformed, so none is added while one of them is linked.  After quorum.force_new_cluster() it is version 2: the flags, the
 *	  generation (generation.h), and u8 count of the nodes that were left behind, with u32 node id, node name and conninfo each.
 */
#ifndef QUORUM_MEMBER_CONFIG_H
#define QUORUM_MEMBER_CONFIG_H

#include "postgres.h"

#include "lib/stringinfo.h"
#include "shared/generation.h"
#include "shared/shmem.h"

typedef struct MemberConfigItem
{
	uint32		node_id;
	bool		is_voter;
	bool		as_voter;		/* wants to be one: becomes it when it has caught up */
	char		node_name[NAMEDATALEN];
	char		conninfo[QUORUM_MAX_CONNINFO];
} MemberConfigItem;

typedef struct MemberConfig
{
	uint32		next_node_id;
	int			member_count;
	MemberConfigItem members[QUORUM_MAX_MEMBERS];
	ClusterGeneration generation;
	int			left_behind_count;
	MemberConfigItem left_behind[QUORUM_MAX_MEMBERS - 1];	/* were members when a generation was forced; is_voter and as_voter do not count */
} MemberConfig;

extern void member_config_encode(const MemberConfig *config, StringInfo buffer);
extern bool member_config_decode(MemberConfig *config, const char *bytes, Size length);	/* false: malformed */

/* NULL: not a member. */
extern const MemberConfigItem *member_config_find(const MemberConfig *config, uint32 node_id);

#endif							/* QUORUM_MEMBER_CONFIG_H */
