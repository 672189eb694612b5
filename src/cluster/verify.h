/*
 * verify.h
 *	  What quorum.verify(), quorum.repair() and quorum.diverging_keys() have in common.  Process: client backends.
 */
#ifndef QUORUM_VERIFY_H
#define QUORUM_VERIFY_H

#include "postgres.h"

#include "shared/replicated_tables.h"
#include "shared/shmem.h"
#include "shared/table_checksum.h"

/* 55000 unless it is a replicated table whose copy is complete; 25001 in a transaction that cannot see what others commit meanwhile. */
extern ReplicatedTable verify_table(Oid relid);

/*
 * Has it checked on all nodes, and waits until all that can be reached have told their sums, or until the deadline.  Returns the
 * index and the results.
 */
extern uint64 verify_run(uint64 table_id, TimestampTz deadline, NodeCheck *checks, int *count);

/* ERROR 0A000 if a member is known to run a build that would stop at an entry of a check. */
extern void verify_refuse_older_builds(void);

/* Waits until this node has applied the log up to that index; 57014-like errors as usual, 55000 if it has stopped. */
extern void verify_await_index(uint64 index, TimestampTz deadline);

extern const MemberState *verify_member(const NodeStatus *status, uint32 node_id);

#endif							/* QUORUM_VERIFY_H */
