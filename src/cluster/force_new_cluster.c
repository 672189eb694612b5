/*
 * force_new_cluster.c
 *	  quorum.force_new_cluster(): the operator of a survivor continues a cluster whose majority is lost.
 *
 * Runs in a client backend of the survivor.  Must never act while a majority can be reached from here, nor without being told in so many words
 * that data may be lost; it decides nothing about the log: it leaves a request for the consensus worker (consensus/generation.c) and waits.
 *
 * What it cannot know: whether the others run where this node does not hear them.  Then two clusters take writes until one hears of the other;
 * that one stops for good, and what it acknowledged meanwhile is in its tables only.
 *
 * Locks: see membership.c.
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/timestamp.h"

#include "cluster/membership.h"
#include "cluster/node_check.h"
#include "config.h"
#include "shared/generation.h"
#include "shared/proposal_queue.h"
#include "shared/rows_to_keep.h"
#include "shared/shmem.h"

#define LEADERSHIP_TIMEOUT_MS 30000
#define STATUS_INTERVAL_MS 50
#define QUIET_ELECTIONS 3			/* no majority may be heard for that many election timeouts */

PG_FUNCTION_INFO_V1(quorum_force_new_cluster);

/* ---- refusals ---- */

/* What is done is not undone by a rollback. */
static void
refuse_transaction_block(void)
{
	if (IsTransactionBlock() || IsSubTransaction())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("quorum.force_new_cluster() cannot run inside a transaction block")));
}

/* The extension's privileges say the same; this holds if somebody granted EXECUTE too widely. */
static void
check_role(void)
{
	Oid			role = get_role_oid("quorum_admin", true);

	if (!superuser() && (!OidIsValid(role) || !is_member_of_role(GetUserId(), role)))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to force a new cluster"),
				 errdetail("Role \"%s\" is not a member of role \"quorum_admin\".", GetUserNameFromId(GetUserId(), false))));
}

static void
refuse_unfit(const NodeStatus *status)
{
	if (pg_atomic_read_u32(&QuorumShmem->removed) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this node is no member of the cluster any more"),
				 errdetail_internal("%s", shmem_last_error()),
				 errhint("Only a member can be continued from.")));
	if (rows_to_keep_pending())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this node has not got the cluster's tables yet"),
				 errdetail("Its rows are those with which it joined."),
				 errhint("Continue from another node. SELECT quorum.leave_cluster(force => true) makes this an ordinary instance with its rows.")));
	if (status->role == NODE_STOPPED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this node takes no part in the consensus"),
				 errhint("See last_error in quorum.status. Only a node that runs can be continued from.")));
	if (pg_atomic_read_u32(&QuorumShmem->apply_failed) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this node has stopped applying the log, so it could not lead a new cluster"),
				 errhint("See last_error in quorum.status.")));
}

static void
refuse_majority(const NodeStatus *status)
{
	if (!status->has_quorum && status->voters_reachable < status->quorum_size)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("a majority of the voters can be reached: the cluster is not lost"),
			 errdetail("%d of %d voters can be reached from this node; %d are needed.",
					   status->voters_reachable, status->voter_count, status->quorum_size),
			 errhint("Use quorum.remove_node() for members that are gone for good.")));
}

/* The highest index that this node has accepted. */
static uint64
accepted_index_of(const NodeStatus *status, uint32 node_id)
{
	uint64		index = Max(pg_atomic_read_u64(&QuorumShmem->accepted_index), turn_chosen_index());

	for (int i = 0; i < status->member_count; i++)
		if (status->members[i].node_id == node_id)
			index = Max(index, status->members[i].accepted_index);
	return index;
}

static void
demand_confirmation(const NodeStatus *status, uint32 node_id, bool is_confirmed)
{
	uint64		chosen_index = turn_chosen_index();
	uint64		accepted_index = accepted_index_of(status, node_id);

	if (is_confirmed)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("quorum.force_new_cluster() may lose transactions that were committed, and was not confirmed"),
			 errdetail("What the other voters acknowledged and this node never received, that is everything behind log index " UINT64_FORMAT
					   ", is lost for good. "
					   "The " UINT64_FORMAT " entries behind index " UINT64_FORMAT " that this node has accepted become final, even where the others "
					   "have decided otherwise and told clients so. "
					   "If a majority of the others runs where this node does not reach it, both go on taking writes until that majority hears "
					   "of the new cluster; what it acknowledged meanwhile is then in no cluster.",
					   accepted_index, accepted_index - chosen_index, chosen_index),
			 errhint("If a majority of the %d voters can be started again, do that instead. Otherwise see to it that none of the others runs, choose the "
					 "survivor with the highest accepted_index in quorum.nodes, and call there "
					 "quorum.force_new_cluster(accept_data_loss => true).", status->voter_count)));
}

/* Between two leaders there is a moment without a quorum: that is not it. */
static void
watch_for_majority(void)
{
	TimestampTz start = GetCurrentTimestamp();

	while (!TimestampDifferenceExceeds(start, GetCurrentTimestamp(), QUIET_ELECTIONS * quorum_election_timeout_ms))
	{
		NodeStatus	status;

		shmem_get_status(&status);
		refuse_majority(&status);
		wait_for_change(STATUS_INTERVAL_MS, "nothing was changed");
	}
}

/* ---- the request ---- */

static void
leave_request(const NodeIdentity *identity, const NodeStatus *status)
{
	ClusterGeneration generation = identity->generation;

	generation_add(&generation, identity->node_name);
	ereport(LOG,
			(errmsg("quorum.force_new_cluster() was called by role \"%s\" on node \"%s\": generation %u of the cluster begins with this node alone",
					GetUserNameFromId(GetUserId(), false), identity->node_name, generation.number),
			 errdetail("The session's user is \"%s\". Chosen up to log index " UINT64_FORMAT ", accepted up to " UINT64_FORMAT ".",
					   GetUserNameFromId(GetSessionUserId(), false), turn_chosen_index(),
					   accepted_index_of(status, identity->node_id))));
	generation_file_write(GENERATION_REQUEST_FILE, &generation);
	shmem_restart_consensus();
}

static bool
leads_new_generation(uint32 number)
{
	NodeStatus	status;
	NodeIdentity identity;

	shmem_get_status(&status);
	shmem_get_identity(&identity);
	return identity.generation.number == number && status.role == NODE_LEADER && status.has_quorum &&
		pg_atomic_read_u32(&QuorumShmem->may_write) != 0;
}

static void
wait_until_leader(uint32 number)
{
	TimestampTz start = GetCurrentTimestamp();

	while (!leads_new_generation(number))
	{
		if (TimestampDifferenceExceeds(start, GetCurrentTimestamp(), LEADERSHIP_TIMEOUT_MS))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the new cluster was asked for, but this node does not lead it within %d seconds",
							LEADERSHIP_TIMEOUT_MS / 1000),
					 errhint("See last_error in quorum.status and the server log.")));
		wait_for_change(STATUS_INTERVAL_MS, "the new cluster was asked for, and begins in the background");
	}
}

Datum
quorum_force_new_cluster(PG_FUNCTION_ARGS)
{
	bool		is_confirmed = !PG_ARGISNULL(0) && PG_GETARG_BOOL(0);
	NodeIdentity identity;
	NodeStatus	status;

	check_role();
	require_membership(&identity);
	refuse_transaction_block();
	lock_membership();
	shmem_get_status(&status);
	refuse_unfit(&status);
	refuse_majority(&status);
	demand_confirmation(&status, identity.node_id, is_confirmed);
	watch_for_majority();

	leave_request(&identity, &status);
	wait_until_leader(identity.generation.number + 1);
	ereport(WARNING,
			(errmsg("node \"%s\" is the only voter of generation %u of the cluster", identity.node_name, identity.generation.number + 1),
			 errdetail("There is one copy of the data until other nodes have joined. The nodes that were left behind stop when they hear of it."),
			 errhint("Let new nodes join with quorum.join_cluster(). A node that was left behind first calls quorum.leave_cluster(force => true).")));
	PG_RETURN_VOID();
}
