/*
 * leadership.c
 *	  quorum.transfer_leadership(), and how a backend of any node asks the leader for what only that may do.
 *
 * Runs in client backends.  Must never take the leader's word for a result: whoever asked looks at what this node hears of the log and of its
 * leader, so it does not matter whom an answer was lost to.
 *
 * Locks: QuorumShmem->lock shortly.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "capture/capture.h"
#include "cluster/leadership.h"
#include "cluster/membership.h"
#include "cluster/node_check.h"
#include "config.h"
#include "shared/shmem.h"

#define TRANSFER_TIMEOUT_MS 20000
#define TRANSFER_GOES_ON "the leader was asked to hand over, and may still do so"
#define REACHABILITY_PATIENCE_MS 5000	/* less than other nodes wait for the leader's answer */
#define STATUS_INTERVAL_MS 20

PG_FUNCTION_INFO_V1(quorum_transfer_leadership);
PG_FUNCTION_INFO_V1(quorum_request_transfer);

/* ---- members ---- */

const MemberState *
status_member(const NodeStatus *status, uint32 node_id)
{
	for (int i = 0; i < status->member_count; i++)
		if (node_id != 0 && status->members[i].node_id == node_id)
			return &status->members[i];
	return NULL;
}

const MemberState *
status_member_by_name(const NodeStatus *status, const char *node_name)
{
	for (int i = 0; i < status->member_count; i++)
		if (strcmp(status->members[i].node_name, node_name) == 0)
			return &status->members[i];
	return NULL;
}

/* ---- asking the leader ---- */

void
require_leadership(void)
{
	NodeStatus	status;

	shmem_get_status(&status);
	if (status.role != NODE_LEADER)
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("only the leader changes the cluster, and this node does not lead"),
				 errhint("Retry: the functions for users find the leader by themselves.")));
}

void
wait_while_unreached(bool (*lacks) (uint32 node_id), uint32 node_id, const char *background)
{
	TimestampTz start = GetCurrentTimestamp();

	while (lacks(node_id) && !TimestampDifferenceExceeds(start, GetCurrentTimestamp(), REACHABILITY_PATIENCE_MS))
	{
		wait_for_change(STATUS_INTERVAL_MS, background);
		require_leadership();	/* others know nothing of it */
	}
}

/* A rejection (40001) comes from two changes at the same time. */
bool
is_passing_error(int sqlstate)
{
	int			category = ERRCODE_TO_CATEGORY(sqlstate);

	return category == MAKE_SQLSTATE('0', '8', '0', '0', '0') || sqlstate == ERRCODE_READ_ONLY_SQL_TRANSACTION ||
		sqlstate == ERRCODE_T_R_SERIALIZATION_FAILURE || sqlstate == ERRCODE_CONFIGURATION_LIMIT_EXCEEDED ||
		sqlstate == ERRCODE_ADMIN_SHUTDOWN || sqlstate == ERRCODE_CRASH_SHUTDOWN || sqlstate == ERRCODE_CANNOT_CONNECT_NOW;
}

static void
ask_remote_leader(const MemberState *leader, const char *sql, uint32 node_id)
{
	char	   *target = psprintf("the leader, node \"%s\"", leader->node_name);
	PeerConnection *peer = peer_connect(leader->conninfo, NULL, target, NULL);
	const char *parameters[1] = {psprintf("%u", node_id)};

	(void) peer_query(peer, sql, 1, parameters);
	peer_close(peer);
}

static void
ask_leader(void (*here) (uint32 node_id), const char *sql, uint32 node_id)
{
	NodeStatus *status = palloc(sizeof(NodeStatus));
	const MemberState *leader;

	shmem_get_status(status);
	leader = status_member(status, status->leader_id);
	if (status->role == NODE_LEADER)
		here(node_id);
	else if (leader != NULL)
		ask_remote_leader(leader, sql, node_id);
	else
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("the cluster has no leader at the moment"),
				 errhint("Retry when a majority of its nodes is running.")));
}

bool
leader_try(void (*here) (uint32 node_id), const char *sql, uint32 node_id, ErrorData **why_not)
{
	MemoryContext caller_context = CurrentMemoryContext;
	MemoryContext call_context = AllocSetContextCreate(caller_context, "question to the leader", ALLOCSET_SMALL_SIZES);
	volatile bool done = false;

	MemoryContextSwitchTo(call_context);
	PG_TRY();
	{
		ask_leader(here, sql, node_id);
		done = true;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller_context);
		*why_not = CopyErrorData();
		if (!is_passing_error((*why_not)->sqlerrcode))
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller_context);
	MemoryContextDelete(call_context);	/* closes the connection, however it ended */
	return done;
}

/* ---- transfer ---- */

static void
check_target(const NodeStatus *status, const char *node_name)
{
	const MemberState *target = status_member_by_name(status, node_name);

	if (target == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the cluster has no node named \"%s\"", node_name),
				 errhint("quorum.nodes lists its members.")));
	if (!target->is_voter)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("node \"%s\" does not vote, so it cannot lead", node_name),
				 errhint("Choose a node that is_voter in quorum.nodes.")));
}

/* Does the leader reach the target; or anybody who could take over, if there is none? */
static bool
reaches_target(const NodeStatus *status, uint32 node_id)
{
	const MemberState *target = status_member(status, node_id);

	if (target != NULL)
		return target->reachable;
	for (int i = 0; i < status->member_count; i++)
		if (status->members[i].is_voter && status->members[i].reachable && !status->members[i].is_older_build &&
			status->members[i].node_id != status->leader_id)
			return true;
	return false;
}

static bool
lacks_target(uint32 node_id)
{
	NodeStatus *status = palloc(sizeof(NodeStatus));
	bool		lacks;

	shmem_get_status(status);
	lacks = !reaches_target(status, node_id);
	pfree(status);
	return lacks;
}

static void
check_target_can_lead(const NodeStatus *status, uint32 node_id)
{
	const MemberState *target = status_member(status, node_id);

	if (target != NULL && target->is_older_build)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("node \"%s\" runs an older build, which cannot take the leadership over", target->node_name),
				 errhint("Upgrade it first, or choose another node.")));
	if (!reaches_target(status, node_id))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 target != NULL ? errmsg("the leader does not reach node \"%s\"", target->node_name)
				 : errmsg("the leader reaches no other voter that could take over"),
				 errhint("See quorum.nodes.")));
}

/* On the leader. */
static void
request_transfer_here(uint32 node_id)
{
	NodeStatus *status = palloc(sizeof(NodeStatus));

	require_leadership();
	wait_while_unreached(lacks_target, node_id, TRANSFER_GOES_ON);
	shmem_get_status(status);
	check_target_can_lead(status, node_id);
	pg_atomic_write_u64(&QuorumShmem->transfer_request, TRANSFER_TO(node_id));
	shmem_wake_consensus();
	pfree(status);
}

Datum
quorum_request_transfer(PG_FUNCTION_ARGS)
{
	NodeIdentity identity;

	require_membership(&identity);
	request_transfer_here((uint32) PG_GETARG_INT32(0));
	PG_RETURN_VOID();
}

/* Who leads now if that is as it was asked; 0: not yet. */
static uint32
new_leader(const NodeStatus *status, uint32 old_leader_id, uint32 target_id)
{
	uint32		leader_id = status->has_quorum ? status->leader_id : 0;

	if (target_id != 0)
		return leader_id == target_id ? leader_id : 0;
	return leader_id != old_leader_id ? leader_id : 0;
}

/* A leader may be deposed before it has handed over, and a target may fail to get elected: so it is asked again. */
static uint32
transfer_and_wait(uint32 old_leader_id, uint32 target_id)
{
	TimestampTz start = GetCurrentTimestamp();
	TimestampTz asked_at = 0;
	ErrorData  *why_not = NULL;

	for (;;)
	{
		NodeStatus	status;
		TimestampTz now = GetCurrentTimestamp();
		uint32		leader_id;

		shmem_get_status(&status);
		leader_id = new_leader(&status, old_leader_id, target_id);
		if (leader_id != 0)
			return leader_id;
		if (TimestampDifferenceExceeds(start, now, TRANSFER_TIMEOUT_MS))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the leader has not handed over within %d seconds", TRANSFER_TIMEOUT_MS / 1000),
					 why_not != NULL ? errdetail_internal("%s", why_not->message) : 0,
					 errhint("See quorum.status and quorum.nodes.")));
		if (TimestampDifferenceExceeds(asked_at, now, 2 * quorum_election_timeout_ms))
		{
			(void) leader_try(request_transfer_here, "SELECT quorum.request_transfer($1)", target_id, &why_not);
			asked_at = now;
		}
		wait_for_change(STATUS_INTERVAL_MS, TRANSFER_GOES_ON);
	}
}

Datum
quorum_transfer_leadership(PG_FUNCTION_ARGS)
{
	char	   *node_name = PG_ARGISNULL(0) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(0));
	NodeIdentity identity;
	NodeStatus	status;
	uint32		target_id = 0;
	uint32		leader_id;

	require_membership(&identity);
	gate_check_may_write();
	shmem_get_status(&status);
	if (node_name != NULL)
	{
		check_target(&status, node_name);
		target_id = status_member_by_name(&status, node_name)->node_id;
	}
	if (target_id != 0 && status.leader_id == target_id && status.has_quorum)
	{
		ereport(NOTICE, (errmsg("node \"%s\" leads already", node_name)));
		PG_RETURN_VOID();
	}
	leader_id = transfer_and_wait(status.leader_id, target_id);
	shmem_get_status(&status);
	ereport(NOTICE, (errmsg("node \"%s\" leads now", status_member(&status, leader_id) ? status_member(&status, leader_id)->node_name : "?")));
	PG_RETURN_VOID();
}
