/*
 * leadership.h
 *	  What only the leader may do, asked of it from any node; and the change of the leader.  Process: client backends.
 */
#ifndef QUORUM_LEADERSHIP_H
#define QUORUM_LEADERSHIP_H

#include "postgres.h"

#include "shared/shmem.h"

/* 25006 unless this node leads: its caller asks again, whoever leads then. */
extern void require_leadership(void);

/*
 * Lets the leader do something about a node: here(node_id) if this node leads, else `sql` with that number as $1, on the leader, as the role that its
 * connection string names (a member of quorum_peer, as for the links).  True: done.  False: not now, for a reason that passes (no leader, it changed, its
 * connection broke, no quorum), in *why_not; the outcome may be unknown, so look before asking again.  Other errors are raised.
 */
extern bool leader_try(void (*here) (uint32 node_id), const char *sql, uint32 node_id, ErrorData **why_not);

/*
 * On the leader, before it refuses what it is asked for because somebody is not reached: waits, for a few seconds at most, while lacks(node_id) says so.  One that has
 * just joined, or come back, is reached a moment before the leader's worker says so.  `background`: see wait_for_change.  25006 if it leads no more.
 */
extern void wait_while_unreached(bool (*lacks) (uint32 node_id), uint32 node_id, const char *background);

/* Is that the error of somebody who may not be asked just now? */
extern bool is_passing_error(int sqlstate);

/* NULL: not a member, as far as this node knows. */
extern const MemberState *status_member(const NodeStatus *status, uint32 node_id);
extern const MemberState *status_member_by_name(const NodeStatus *status, const char *node_name);

#endif							/* QUORUM_LEADERSHIP_H */
