/*
 * member_change.h
 *	  What a backend asks of the consensus worker of the leader: a change of one member.  The payload of a PROPOSAL_MEMBER_CHANGE, which never
 *	  leaves this instance: the worker makes the configuration entry from it and from the configuration that is in force then.
 */
#ifndef QUORUM_MEMBER_CHANGE_H
#define QUORUM_MEMBER_CHANGE_H

#include "postgres.h"

#include "shared/shmem.h"

typedef enum MemberChangeKind
{
	MEMBER_ADD,					/* node_name, conninfo, as_voter; its number is drawn when it is proposed */
	MEMBER_REMOVE				/* node_id */
} MemberChangeKind;

typedef struct MemberChange
{
	MemberChangeKind kind;
	uint32		node_id;
	bool		as_voter;
	char		node_name[NAMEDATALEN];
	char		conninfo[QUORUM_MAX_CONNINFO];
} MemberChange;

#endif							/* QUORUM_MEMBER_CHANGE_H */
