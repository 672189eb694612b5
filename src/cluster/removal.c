/*
 * removal.c
 *	  quorum.remove_node(): a configuration without that member, proposed by the leader, whichever node is asked.
 *
 * Runs in client backends.  Must never remove a voter that the others cannot do without, nor say that a removal is done while the disk of the
 * removed node may still be needed.
 *
 * Invariants
 *	 1. A node is removed by its number, which is looked up once: a new node of the same name is another one.
 *	 2. Asking again is harmless: the leader does nothing if the member is gone.
 *	 3. The removal is done when a majority of the remaining voters has it in force.  Before that they might have to find out with the acceptors
 *		of the old configuration whether the entry is chosen, and of four voters three: without the removed one, two of the other three
 *		would not be enough.
 *
 * Locks: see membership.c; the lock is given back before anything is waited for that another node does.
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
#include "cluster/removal.h"
#include "shared/shmem.h"

#define REMOVAL_TIMEOUT_MS 60000
#define ASK_AGAIN_MS 5000			/* the leader did it, but this node has not heard of it */
#define RETRY_MS 200
#define STATUS_INTERVAL_MS 20
#define KNOWN_TIMEOUT_MS 30000
#define KNOWN_INTERVAL_MS 100
#define REMOVAL_GOES_ON "the removal may still take place; see quorum.nodes"

PG_FUNCTION_INFO_V1(quorum_remove_node);
PG_FUNCTION_INFO_V1(quorum_request_removal);

/* ---- the leader's half ---- */

typedef struct Remainder
{
	int			voters;
	int			reachable;
} Remainder;

static Remainder
voters_besides(const NodeStatus *status, const MemberState *member)
{
	Remainder	remainder = {0, 0};

	for (int i = 0; i < status->member_count; i++)
	{
		if (&status->members[i] == member || !status->members[i].is_voter)
			continue;
		remainder.voters++;
		remainder.reachable += status->members[i].reachable ? 1 : 0;
	}
	return remainder;
}

static bool
is_quorum(Remainder remainder)
{
	return remainder.reachable >= remainder.voters / 2 + 1;
}

/* The voters that remain must be able to go on without it: else the cluster stops, and nothing could be put right by the log. */
static void
check_others_can_do_without(const NodeStatus *status, const MemberState *member)
{
	Remainder	remainder = voters_besides(status, member);

	if (remainder.voters == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("node \"%s\" is the last voter of the cluster", member->node_name),
				 errhint("Let another node join as a voter first. The last node of all leaves with quorum.leave_cluster().")));
	if (!is_quorum(remainder))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("without node \"%s\" the cluster would have no quorum", member->node_name),
				 errdetail("%d of the %d voters that would remain can be reached; %d are needed.",
						   remainder.reachable, remainder.voters, remainder.voters / 2 + 1),
				 errhint("Remove those first that cannot be reached, or wait until they are back.")));
}

/* Would the check refuse it because some can't be reached, which may change by itself? */
static bool
lacks_reachable_voters(uint32 node_id)
{
	NodeStatus *status = palloc(sizeof(NodeStatus));
	const MemberState *member;
	bool		lacks;

	shmem_get_status(status);
	member = status_member(status, node_id);
	lacks = member != NULL && member->is_voter && voters_besides(status, member).voters > 0 &&
		!is_quorum(voters_besides(status, member));
	pfree(status);
	return lacks;
}

/* Unless that removed the node, too. */
static void
report_another_came_first(uint32 node_id)
{
	NodeStatus *status = palloc(sizeof(NodeStatus));
	const MemberState *member;

	shmem_get_status(status);
	member = status_member(status, node_id);
	if (member == NULL)
		return;
	check_others_can_do_without(status, member);
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not remove node \"%s\": another change of the members came first", member->node_name),
			 errdetail("It is the configuration of log index " UINT64_FORMAT ".", status->config_index),
			 errhint("Retry.")));
}

static void
propose_removal(uint32 node_id)
{
	NodeStatus *status = palloc(sizeof(NodeStatus));
	MemberChange change = {.kind = MEMBER_REMOVE, .node_id = node_id};
	const MemberState *member;

	shmem_get_status(status);
	member = status_member(status, node_id);
	if (member == NULL)
		return;
	if (member->is_voter)
		check_others_can_do_without(status, member);
	if (gate_propose_member_change(&change) == 0)
		report_another_came_first(node_id);
	pfree(status);
}

static void
request_removal_here(uint32 node_id)
{
	require_leadership();
	gate_check_may_write();
	wait_while_unreached(lacks_reachable_voters, node_id, REMOVAL_GOES_ON);
	lock_membership();
	PG_TRY();
	{
		propose_removal(node_id);
	}
	PG_FINALLY();
	{
		unlock_membership();
	}
	PG_END_TRY();
}

Datum
quorum_request_removal(PG_FUNCTION_ARGS)
{
	NodeIdentity identity;

	require_membership(&identity);
	request_removal_here((uint32) PG_GETARG_INT32(0));
	PG_RETURN_VOID();
}

/* ---- waiting ---- */

static bool
is_removed_here(uint32 node_id)
{
	NodeIdentity identity;
	NodeStatus	status;

	shmem_get_identity(&identity);
	if (identity.node_id == node_id)
		return pg_atomic_read_u32(&QuorumShmem->removed) != 0;
	shmem_get_status(&status);
	return status.member_count > 0 && status_member(&status, node_id) == NULL;
}

static void
ask_until_removed(uint32 node_id)
{
	TimestampTz start = GetCurrentTimestamp();
	TimestampTz next_question = start;
	ErrorData  *why_not = NULL;

	while (!is_removed_here(node_id))
	{
		TimestampTz now = GetCurrentTimestamp();

		if (TimestampDifferenceExceeds(start, now, REMOVAL_TIMEOUT_MS))
		{
			if (why_not != NULL)
				ReThrowError(why_not);
			ereport(ERROR,
					(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
					 errmsg("the removal is not in force on this node within %d seconds", REMOVAL_TIMEOUT_MS / 1000),
					 errhint("It may still come. See quorum.nodes, and call the function again.")));
		}
		if (now >= next_question)
		{
			bool		asked = leader_try(request_removal_here, "SELECT quorum.request_removal($1)", node_id, &why_not);

			next_question = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), asked ? ASK_AGAIN_MS : RETRY_MS);
			continue;
		}
		wait_for_change(STATUS_INTERVAL_MS, REMOVAL_GOES_ON);
	}
}

/* False also if it cannot be asked. */
static bool
member_knows(const MemberState *member, uint32 node_id)
{
	MemoryContext caller_context = CurrentMemoryContext;
	MemoryContext call_context = AllocSetContextCreate(caller_context, "question to a member", ALLOCSET_SMALL_SIZES);
	volatile bool knows = false;

	MemoryContextSwitchTo(call_context);
	PG_TRY();
	{
		PeerConnection *peer = peer_connect(member->conninfo, NULL, psprintf("node \"%s\"", member->node_name), NULL);
		const char *parameters[1] = {psprintf("%u", node_id)};
		PeerResult *answer = peer_query(peer, "SELECT pg_catalog.count(*) > 0 AND pg_catalog.bool_and(node_id <> $1) FROM quorum.node_members()",
										1, parameters);

		knows = answer->row_count == 1 && answer->rows[0][0] != NULL && strcmp(answer->rows[0][0], "t") == 0;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(caller_context);
		error = CopyErrorData();
		if (!is_passing_error(error->sqlerrcode))
			PG_RE_THROW();
		FlushErrorState();
		FreeErrorData(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller_context);
	MemoryContextDelete(call_context);
	return knows;
}

/* Those that can be reached come first, since asking one that cannot may take its time. */
static bool
majority_knows(const NodeStatus *status, uint32 own_node_id, uint32 node_id)
{
	int			voters = 0;
	int			know = 0;

	for (int i = 0; i < status->member_count; i++)
		voters += status->members[i].is_voter && status->members[i].node_id != node_id ? 1 : 0;
	for (int reachable = 1; reachable >= 0; reachable--)
		for (int i = 0; i < status->member_count; i++)
		{
			const MemberState *member = &status->members[i];

			if (!member->is_voter || member->node_id == node_id || member->reachable != (reachable == 1))
				continue;
			if (member->node_id == own_node_id ? is_removed_here(node_id) : member_knows(member, node_id))
				know++;
			if (know >= voters / 2 + 1)
				return true;
		}
	return false;
}

bool
removal_wait_until_known(uint32 node_id)
{
	TimestampTz start = GetCurrentTimestamp();
	NodeStatus *status = palloc(sizeof(NodeStatus));
	NodeIdentity identity;
	bool		known;

	shmem_get_identity(&identity);
	for (;;)
	{
		shmem_get_status(status);
		known = majority_knows(status, identity.node_id, node_id);
		if (known || TimestampDifferenceExceeds(start, GetCurrentTimestamp(), KNOWN_TIMEOUT_MS))
			break;
		wait_for_change(KNOWN_INTERVAL_MS, "the node is removed; only the wait until all know of it ends here");
	}
	pfree(status);
	return known;
}

void
removal_carry_out(uint32 node_id)
{
	ask_until_removed(node_id);
	if (!removal_wait_until_known(node_id))
		ereport(WARNING,
				(errmsg("the node is removed, but less than a majority of the others has heard of it yet"),
				 errhint("Leave its data directory as it is until quorum.nodes does not list it on a majority of them.")));
}

Datum
quorum_remove_node(PG_FUNCTION_ARGS)
{
	char	   *node_name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	NodeIdentity identity;
	NodeStatus	status;
	const MemberState *member;
	uint32		node_id;

	require_membership(&identity);
	gate_check_may_write();
	shmem_get_status(&status);
	member = status_member_by_name(&status, node_name);
	if (member == NULL)
	{
		ereport(NOTICE,
				(errmsg("the cluster has no node named \"%s\", skipping", node_name),
				 errhint("quorum.nodes lists its members.")));
		PG_RETURN_VOID();
	}
	node_id = member->node_id;
	removal_carry_out(node_id);
	ereport(NOTICE,
			(errmsg("node \"%s\" is removed from the cluster", node_name),
			 errhint("On that node quorum.leave_cluster() makes its tables ordinary ones.")));
	PG_RETURN_VOID();
}
