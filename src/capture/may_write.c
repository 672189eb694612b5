/*
 * may_write.c
 *	  Does this node take writes now, and what is said if not: 25006, not committed.  Process: client backend.
 *
 * The consensus worker decides it (members.c), and publishes it.  Must never be asked about a transaction that may have left this instance.
 *
 * Locks: QuorumShmem->lock, shortly.
 */
#include "postgres.h"

#include "capture/capture.h"
#include "shared/shmem.h"

void
gate_report_no_writes(void)
{
	NodeStatus	status;
	NodeIdentity identity;

	shmem_get_status(&status);
	shmem_get_identity(&identity);
	if (identity.node_id == 0)
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("this node is not a running member of a cluster"),
				 errhint("See quorum.status; call quorum.create_cluster or quorum.join_cluster first. "
						 "If it has left a cluster, quorum.leave_cluster() makes the table an ordinary one.")));
	if (pg_atomic_read_u32(&QuorumShmem->removed) == REMOVED_LEFT_BEHIND)
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("this node was left behind by the cluster: the transaction was not committed"),
				 errdetail_internal("%s", shmem_last_error()),
				 errhint("Connect to a member. SELECT quorum.leave_cluster(force => true) makes this an ordinary instance, which keeps its rows and can join again, with keep_rows => true.")));
	if (pg_atomic_read_u32(&QuorumShmem->removed) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("this node was removed from the cluster: the transaction was not committed"),
				 errhint("Connect to a member. SELECT quorum.leave_cluster() makes this an ordinary instance, which keeps its rows and can join again, with keep_rows => true.")));
	if (pg_atomic_read_u32(&QuorumShmem->apply_failed) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("this node has stopped applying the log and takes no writes"),
				 errhint("See last_error in quorum.status.")));
	if (!status.has_quorum && status.voters_reachable < status.quorum_size)
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("no quorum: the transaction was not committed"),
				 errdetail("%d of %d voters can be reached from node \"%s\"; %d are needed.",
						   status.voters_reachable, status.voter_count, identity.node_name, status.quorum_size),
				 errhint("Connect to a node in the majority, or retry when more nodes are back.")));
	if (!status.has_quorum)
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("no quorum: the transaction was not committed"),
				 errdetail("Node \"%s\" has links with %d of %d voters, but no leader that a majority answers was heard in time.",
						   identity.node_name, status.voters_reachable, status.voter_count),
				 errhint("Retry, or connect to another node.")));
	ereport(ERROR,
			(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
			 errmsg("this node is not ready to take writes: the transaction was not committed"),
			 errdetail("An election is under way, or node \"%s\" has not applied all of the log yet.", identity.node_name),
			 errhint("Retry.")));
}

static void
report_quarantine(void)
{
	char		quarantine[sizeof(QuorumShmem->quarantine)];

	LWLockAcquire(QuorumShmem->lock, LW_SHARED);
	strlcpy(quarantine, QuorumShmem->quarantine, sizeof(quarantine));
	LWLockRelease(QuorumShmem->lock);
	ereport(ERROR,
			(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
			 errmsg("this node takes no writes: its copy of a replicated table differs from that of a majority of the nodes"),
			 quarantine[0] != '\0' ? errdetail_internal("%s", quarantine) : 0,
			 errhint("Connect to another node; an administrator calls quorum.repair() for the table on this one.")));
}

void
gate_check_may_write(void)
{
	if (pg_atomic_read_u32(&QuorumShmem->may_write) == 0)
		gate_report_no_writes();
	if (pg_atomic_read_u32(&QuorumShmem->quarantined_tables) != 0)
		report_quarantine();
}
