/*
 * stream_handshake.c
 *	  Is the node that opens a link let in?  Process: stream backend.
 *
 * Nothing that the other end says is trusted before it is checked here: it is a connection like any other.  What is refused for good has an SQLSTATE of its own
 * (transport.h), so that the other end knows what it means.
 *
 * Must never let a node in that has forgotten what it promised, nor conclude anything from node ids of another generation of the cluster.
 *
 * Locks: QuorumShmem->lock, shortly.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"

#include "consensus/transport/stream_handshake.h"
#include "consensus/transport/transport.h"
#include "shared/shmem.h"

static uint64
parse_uint64(const char *text, int base, const char *argument_name)
{
	char	   *end;
	uint64		value;

	errno = 0;
	value = strtou64(text, &end, base);
	if (errno != 0 || end == text || *end != '\0' || text[0] == '-')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument %s of quorum.peer_stream: \"%s\"", argument_name, text)));
	return value;
}

/* Journal incarnation and nonce of the start in hexadecimal, position that the journal was recovered up to. */
static void
parse_claim(const char *text, AcceptorClaim *claim)
{
	unsigned long long journal_incarnation;
	unsigned long long start_nonce;
	unsigned long long recovered_position;
	int			length = 0;

	if (sscanf(text, "%16llx:%16llx:%20llu%n", &journal_incarnation, &start_nonce, &recovered_position, &length) != 3 ||
		text[length] != '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument %s of quorum.peer_stream: \"%s\"", "journal", text)));
	claim->journal_incarnation = journal_incarnation;
	claim->start_nonce = start_nonce;
	claim->recovered_position = recovered_position;
}

static void
read_claim(FunctionCallInfo fcinfo, StreamHandshake *said)
{
	if (PG_NARGS() < 7 || PG_ARGISNULL(6))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument journal of quorum.peer_stream must not be null")));
	parse_claim(text_to_cstring(PG_GETARG_TEXT_PP(6)), &said->claim);
	said->claim.node_id = said->from_node_id;
	said->claim.start_count = said->incarnation;
}

void
handshake_read(FunctionCallInfo fcinfo, StreamHandshake *said)
{
	for (int i = 0; i < 6; i++)
	{
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("arguments of quorum.peer_stream must not be null")));
	}
	said->protocol_version = PG_GETARG_INT32(0);
	said->cluster_id = parse_uint64(text_to_cstring(PG_GETARG_TEXT_PP(1)), 16, "cluster_id");
	said->from_node_id = (uint32) PG_GETARG_INT32(2);
	strlcpy(said->from_node_name, text_to_cstring(PG_GETARG_TEXT_PP(3)), NAMEDATALEN);
	said->to_node_id = (uint32) PG_GETARG_INT32(4);
	said->incarnation = parse_uint64(text_to_cstring(PG_GETARG_TEXT_PP(5)), 10, "incarnation");
	if (said->protocol_version >= TRANSPORT_CLAIM_VERSION)
		read_claim(fcinfo, said);
	/* An older installation script has no eighth argument; an older node gives none. */
	if (!generation_from_text(&said->cluster_generation,
							  PG_NARGS() > 7 && !PG_ARGISNULL(7) ? text_to_cstring(PG_GETARG_TEXT_PP(7)) : ""))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument %s of quorum.peer_stream", "generation")));
}

/* The extension's privileges say the same; this holds if somebody granted EXECUTE too widely. */
static void
check_role(void)
{
	Oid			role = get_role_oid("quorum_peer", true);

	if (!superuser() && (!OidIsValid(role) || !is_member_of_role(GetUserId(), role)))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to open a peer stream"),
				 errdetail("Role \"%s\" is not a member of role \"quorum_peer\".", GetUserNameFromId(GetUserId(), false)),
				 errhint("Use GRANT quorum_peer TO the role that the members' connection strings name.")));
}

/*
 * May a node with that id be the sender?  A member, surely.  A node that is not known here may have joined in a configuration
 * which has not reached this node yet (it is joining, or was down), and may be the very leader that is to teach it: it must be
 * let in.  Node ids are given out in rising order and never again, so such a node has an id that is not given out yet in the configuration
 * here; a lower id that is no member's belongs to a node that was removed.  What a stranger may say is the protocol's business.
 */
static bool
was_removed(const NodeStatus *status, uint32 node_id)
{
	for (int i = 0; i < status->member_count; i++)
	{
		if (status->members[i].node_id == node_id)
			return false;
	}
	return node_id < status->next_node_id;
}

/* This node was left behind: it knows that for good before it says so. */
static void
note_left_behind(const StreamHandshake *said)
{
	ClusterGeneration known;

	if (generation_file_read(GENERATION_SUCCESSOR_FILE, &known) != GENERATION_FILE_ABSENT)
		return;
	generation_file_write(GENERATION_SUCCESSOR_FILE, &said->cluster_generation);
	shmem_restart_consensus();
}

/* Before anything is concluded from node ids: they mean nothing beyond a border of generations. */
static void
check_generation(const StreamHandshake *said, const NodeIdentity *identity)
{
	char		text[GENERATION_TEXT_BYTES];

	switch (generation_compare(&said->cluster_generation, &identity->generation))
	{
		case GENERATION_SAME:
			return;
		case GENERATION_OLDER:
			generation_to_text(&identity->generation, text);
			ereport(ERROR,
					(errcode(TRANSPORT_SQLSTATE_LEFT_BEHIND),
					 errmsg_internal("%s", generation_explain(&said->cluster_generation, &identity->generation)),
					 err_generic_string(PG_DIAG_CONSTRAINT_NAME, text)));
			break;
		case GENERATION_NEWER:
			note_left_behind(said);
			ereport(ERROR,
					(errcode(TRANSPORT_SQLSTATE_OTHER_GENERATION),
					 errmsg("node \"%s\" was left behind, and knows it now", identity->node_name),
					 errdetail_internal("%s", generation_explain(&identity->generation, &said->cluster_generation))));
			break;
		case GENERATION_APART:
			ereport(ERROR,
					(errcode(TRANSPORT_SQLSTATE_OTHER_GENERATION),
					 errmsg("nodes \"%s\" and \"%s\" belong to different continuations of the cluster", said->from_node_name, identity->node_name),
					 errdetail("quorum.force_new_cluster() was called on one node of each, which makes two clusters."),
					 errhint("Decide which of them is to live; remove the nodes of the other with quorum.leave_cluster(force => true).")));
			break;
	}
}

/*
 * Asked once more when a worker has taken the stream up, which may be another one than that whose identity was checked before: started anew, and then of
 * a new generation, or of another node, if this instance has left and joined again.  A worker publishes who it is before it attaches, and the sender sends
 * nothing before the CopyBothResponse.
 */
void
handshake_check_identities(const StreamHandshake *said)
{
	NodeStatus *status = palloc(sizeof(NodeStatus));
	NodeIdentity *identity = palloc(sizeof(NodeIdentity));

	shmem_get_status(status);
	shmem_get_identity(identity);

	/* A worker that has not read its journal yet has published who it is, for the apply worker, but knows no generation (recovery.c). */
	if (identity->node_id == 0 || identity->incarnation == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this instance is not a member of a cluster, or its consensus worker is starting")));
	if (said->cluster_id != identity->cluster_id)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("peer stream for another cluster"),
				 errdetail("Node \"%s\" belongs to cluster %016llx, this node (\"%s\") to cluster %016llx.",
						   said->from_node_name, (unsigned long long) said->cluster_id,
						   identity->node_name, (unsigned long long) identity->cluster_id),
				 errhint("Check the connection strings of the members.")));
	if (said->to_node_id != identity->node_id || said->from_node_id == identity->node_id)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("peer stream from node %u to node %u has reached node %u",
						said->from_node_id, said->to_node_id, identity->node_id),
				 errhint("Check the connection strings of the members.")));
	if (said->from_node_id == 0)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("peer stream of a node without a number")));
	check_generation(said, identity);
	if (was_removed(status, said->from_node_id))
		ereport(ERROR,
				(errcode(TRANSPORT_SQLSTATE_REMOVED),
				 errmsg("node \"%s\" with id %u was removed from the cluster", said->from_node_name, said->from_node_id),
				 errhint("A node that was removed has to join again as a new one.")));
	pfree(status);
	pfree(identity);
}

/* Whoever has forgotten what it promised must not vote; its consensus worker stops when it reads this. */
static void
check_memory(const StreamHandshake *said)
{
	AcceptorMark mark;
	AcceptorVerdict verdict;

	if (said->protocol_version < TRANSPORT_CLAIM_VERSION)
		return;
	verdict = acceptor_mark_admit(&said->claim, &mark);
	if (verdict == ACCEPTOR_NOT_YET_KNOWN)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the consensus worker of this node is starting")));
	if (verdict != ACCEPTOR_REMEMBERS)
		ereport(ERROR,
				(errcode(TRANSPORT_SQLSTATE_FORGOTTEN),
				 errmsg("node \"%s\" has forgotten what it had promised or accepted, and is refused as a member", said->from_node_name),
				 errdetail_internal("%s", acceptor_verdict_detail(verdict, &mark, &said->claim)),
				 errhint("Let it leave the cluster and join as a new node.")));
}

void
handshake_check(const StreamHandshake *said)
{
	check_role();
	if (QuorumShmem == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pg_quorum is not loaded"),
				 errhint("Add pg_quorum to shared_preload_libraries and restart the server.")));
	if (said->protocol_version < TRANSPORT_OLDEST_VERSION || said->protocol_version > TRANSPORT_NEWEST_VERSION)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("node \"%s\" offers version %d of the peer protocol, this node speaks versions %d to %d",
						said->from_node_name, said->protocol_version, TRANSPORT_OLDEST_VERSION, TRANSPORT_NEWEST_VERSION),
				 errhint("A newer build offers an older version next. Otherwise upgrade this node.")));
	handshake_check_identities(said);
	check_memory(said);
}
