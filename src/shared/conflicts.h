/*
 * conflicts.h
 *	  The last transactions of this node that lost against others, for quorum.conflicts.  In shared memory, gone with a restart.
 */
#ifndef QUORUM_CONFLICTS_H
#define QUORUM_CONFLICTS_H

#include "postgres.h"

#include "utils/timestamp.h"

#define CONFLICTS_KEPT 64
#define CONFLICT_KEY_LENGTH 256

typedef struct Conflict
{
	TimestampTz occurred_at;
	uint64		log_index;		/* of the entry that was rejected */
	char		schema_name[NAMEDATALEN];
	char		table_name[NAMEDATALEN];
	char		key[CONFLICT_KEY_LENGTH];	/* "(id)=(7)"; empty: the table, or not for the user's eyes */
	uint32		winner_node_id;
	char		winner_node[NAMEDATALEN];
	uint64		winner_index;
} Conflict;

typedef struct ConflictRing
{
	uint64		count;			/* ever put in */
	Conflict	conflicts[CONFLICTS_KEPT];
} ConflictRing;

extern void conflicts_add(const Conflict *conflict);

/* Copies the ones that are kept, oldest first, to an array of CONFLICTS_KEPT; returns how many. */
extern int	conflicts_get(Conflict *conflicts);

#endif							/* QUORUM_CONFLICTS_H */
