/*
 * leaving.c
 *	  quorum.leave_cluster(): a node becomes an ordinary instance again.
 *
 * Runs in a client backend of that node.  Must never take away a journal that the others may still need, nor leave tables that look replicated and
 * are not.
 *
 * What it does, in order, and what an interruption leaves
 *	 1. removes this node by the log, unless that was done: a removed node, or a member; call it again
 *	 2. renames the folder with identity and journal: a node without an identity whose tables are still marked.  They cannot be written to; call it
 *		again, and it goes on with 3
 *	 3. restarts the workers, which find no identity and wait for one
 *	 4. drops the triggers, empties quorum.replicated_table, sets the position back, in the caller's transaction: all or nothing
 *
 * Locks: see membership.c; ACCESS EXCLUSIVE on each table that was replicated.
 */
#include "postgres.h"

#include <signal.h>
#include <unistd.h>

#include "access/xact.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/lmgr.h"
#include "utils/timestamp.h"

#include "capture/capture.h"
#include "cluster/internal_query.h"
#include "cluster/membership.h"
#include "cluster/node_check.h"
#include "cluster/removal.h"
#include "shared/proposal_queue.h"
#include "shared/replicated_tables.h"
#include "shared/shmem.h"

#define WORKER_TIMEOUT_MS 30000
#define STATUS_INTERVAL_MS 50
#define CALL_AGAIN "the node has left the cluster, but its tables are not ordinary yet; call quorum.leave_cluster() again"

PG_FUNCTION_INFO_V1(quorum_leave_cluster);

/* Step 2 is not undone by a rollback, so what is decided by the end of the transaction must not have to wait for the user. */
static void
refuse_transaction_block(void)
{
	if (IsTransactionBlock() || IsSubTransaction())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("quorum.leave_cluster() cannot run inside a transaction block")));
}

/* ---- out of the log ---- */

static bool
is_only_member(const NodeIdentity *identity)
{
	NodeStatus	status;

	shmem_get_status(&status);
	return status.member_count == 1 && status.members[0].node_id == identity->node_id;
}

static void
leave_log(const NodeIdentity *identity)
{
	if (is_only_member(identity))
		return;
	if (pg_atomic_read_u32(&QuorumShmem->removed) == 0)
	{
		gate_check_may_write();
		removal_carry_out(identity->node_id);
	}
	else if (!removal_wait_until_known(identity->node_id))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this node was removed, but it cannot be found out whether a majority of the others knows"),
				 errdetail("Until they do, they may need the journal of this node."),
				 errhint("Retry when they can be reached; if they are gone, use quorum.leave_cluster(force => true).")));
}

/* ---- files and workers ---- */

static void
set_journal_aside(const NodeIdentity *identity)
{
	char		aside[MAXPGPATH];
	char		parent[MAXPGPATH];

	strlcpy(parent, QUORUM_DIRECTORY, sizeof(parent));
	get_parent_directory(parent);
	snprintf(aside, sizeof(aside), "%s/pgsql_tmp_left_%016llX_%u", parent, (unsigned long long) identity->cluster_id, identity->node_id);
	if (rename(QUORUM_DIRECTORY, aside) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not rename file \"%s\" to \"%s\": %m", QUORUM_DIRECTORY, aside)));
	fsync_fname(parent, true);
	pg_atomic_fetch_add_u64(&QuorumShmem->identity_generation, 1);
	ereport(NOTICE,
			(errmsg("identity and journal of the node are set aside in \"%s\"", aside),
			 errhint("Nothing needs them any more; the folder may be deleted.")));
}

static int
worker_pid(const int *pid)
{
	int			value;

	LWLockAcquire(QuorumShmem->lock, LW_SHARED);
	value = *pid;
	LWLockRelease(QuorumShmem->lock);
	return value;
}

/* Ends a worker; the postmaster starts it again. */
static void
restart_worker(const int *pid)
{
	TimestampTz start = GetCurrentTimestamp();
	int			old_pid = worker_pid(pid);

	if (old_pid != 0)
		(void) kill(old_pid, SIGTERM);
	while (worker_pid(pid) == old_pid || worker_pid(pid) == 0)
	{
		if (TimestampDifferenceExceeds(start, GetCurrentTimestamp(), WORKER_TIMEOUT_MS))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("a worker of pg_quorum was not started again within %d seconds", WORKER_TIMEOUT_MS / 1000),
					 errhint("See the server log, and call quorum.leave_cluster() again.")));
		wait_for_change(STATUS_INTERVAL_MS, CALL_AGAIN);
	}
}

/* The consensus worker first: it forgets who this node is, and the apply worker then waits until there is somebody again. */
static void
restart_workers(void)
{
	restart_worker(&QuorumShmem->consensus_pid);
	restart_worker(&QuorumShmem->apply_pid);
	turn_forget();
}

/* ---- tables ---- */

static void
forget_table(Oid relid)
{
	const ReplicatedTable *table;

	LockRelationOid(relid, AccessExclusiveLock);
	table = replicated_table_by_relid(relid);
	if (table != NULL)
		replicated_table_forget_locally(table->table_id);
}

static void
forget_tables(void)
{
	replicated_tables_visit(forget_table);
	internal_query_run("UPDATE quorum.position SET applied_index = 0 WHERE applied_index <> 0");
}

Datum
quorum_leave_cluster(PG_FUNCTION_ARGS)
{
	bool		force = PG_GETARG_BOOL(0);
	NodeIdentity identity;

	require_shared_state();
	refuse_transaction_block();
	shmem_get_identity(&identity);
	if (identity.node_id == 0 && !database_has_remains())
		require_membership(&identity);
	lock_membership();
	if (has_identity_file())
	{
		require_membership(&identity);
		if (!force)
			leave_log(&identity);
		set_journal_aside(&identity);
	}
	if (identity.node_id != 0)
		restart_workers();
	forget_tables();
	ereport(NOTICE,
			(errmsg("this instance belongs to no cluster any more"),
			 errdetail("Its tables keep their rows and are ordinary tables.")));
	PG_RETURN_VOID();
}
