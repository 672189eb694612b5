/*
 * admission.c
 *	  quorum.request_membership(): the leader's half of a join.
 *
 * Runs in a backend of the leader that the joining instance has connected to.  Must never add a member that the leader cannot reach, or that
 * is not the instance which asks: a member that nobody reaches would be missing at each vote.
 *
 * Invariants
 *	 1. Checks and proposal are under lock_membership(), so two joins do not take the same name.  (The consensus worker checks once more.)
 *	 2. A member that was added and has never been in contact may be handed out again to the same name and conninfo: its instance
 *	    was interrupted before it wrote its identity.
 *
 * Locks: see membership.c.
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "capture/capture.h"
#include "cluster/leadership.h"
#include "cluster/membership.h"
#include "cluster/node_check.h"
#include "shared/chosen_log.h"
#include "shared/conninfo.h"
#include "shared/member_config.h"
#include "shared/shmem.h"

PG_FUNCTION_INFO_V1(quorum_request_membership);

/* Is there a member already that the instance may take up again?  Names and addresses that are somebody else's are refused. */
static bool
was_interrupted(const NodeStatus *status, const char *node_name, const char *conninfo, bool as_voter)
{
	for (int i = 0; i < status->member_count; i++)
	{
		const MemberState *member = &status->members[i];
		bool		same_name = strcmp(member->node_name, node_name) == 0;
		bool		same_conninfo = strcmp(member->conninfo, conninfo) == 0;

		if (same_name && same_conninfo && !member->is_voter && member->as_voter == as_voter && member->last_contact == 0)
			return true;
		if (same_name)
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_OBJECT),
					 errmsg("the cluster already has a node named \"%s\"", node_name),
					 errdetail("It is the one with the conninfo \"%s\".", conninfo_for_display(member->conninfo)),
					 errhint("Choose another name; quorum.nodes lists those in use.")));
		if (same_conninfo)
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_OBJECT),
					 errmsg("the conninfo is already that of node \"%s\"", member->node_name),
					 errhint("Give the host and port at which the joining node itself is reached.")));
	}
	if (status->member_count >= QUORUM_MAX_MEMBERS)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("the cluster is full"),
				 errdetail("It has %d members, the most that there can be.", status->member_count)));
	return false;
}

/* Tried from here, the leader: does the conninfo lead to the instance that asks, and may we talk to it as a peer? */
static void
check_joiner(const char *node_name, const char *conninfo, const char *instance_id)
{
	char	   *target = psprintf("the joining node \"%s\"", node_name);
	PeerConnection *peer;
	PeerResult *status;

	check_leads_to_instance(conninfo, target, instance_id);
	peer = peer_connect(conninfo, NULL, target, NULL);
	status = peer_query(peer, "SELECT node_name FROM quorum.status", 0, NULL);
	peer_close(peer);
	if (status->row_count != 1 || status->rows[0][0] != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s is already a member of a cluster", target)));
}

/*
 * The configuration in force holds the member: it was added by the last change of members, or by one not long before.  It may be no longer in the
 * log, but the status has all of it.
 */
static uint64
config_in_force(const NodeStatus *status, const NodeIdentity *identity, const char *node_name, uint32 *node_id, bytea **config_bytes)
{
	MemberConfig *config = palloc0(sizeof(MemberConfig));
	StringInfoData bytes;

	/* Without it the node would be one of generation 0, which every other member takes for left behind, for good. */
	config->generation = identity->generation;
	config->next_node_id = status->next_node_id;
	config->member_count = status->member_count;
	for (int i = 0; i < status->member_count; i++)
	{
		config->members[i].node_id = status->members[i].node_id;
		config->members[i].is_voter = status->members[i].is_voter;
		config->members[i].as_voter = status->members[i].as_voter;
		strlcpy(config->members[i].node_name, status->members[i].node_name, NAMEDATALEN);
		strlcpy(config->members[i].conninfo, status->members[i].conninfo, QUORUM_MAX_CONNINFO);
		if (strcmp(config->members[i].node_name, node_name) == 0)
			*node_id = config->members[i].node_id;
	}
	initStringInfo(&bytes);
	member_config_encode(config, &bytes);
	*config_bytes = (bytea *) palloc(VARHDRSZ + bytes.len);
	SET_VARSIZE(*config_bytes, VARHDRSZ + bytes.len);
	memcpy(VARDATA(*config_bytes), bytes.data, bytes.len);
	return status->config_index;
}

/* Reads the configuration at that index, which was just chosen, and finds the member in it. */
static uint32
read_config(uint64 index, const char *node_name, bytea **config_bytes)
{
	MemberConfig *config = palloc(sizeof(MemberConfig));
	LogItem		item;
	char	   *payload;

	chosen_log_read_item(index, &item);
	payload = chosen_log_read_payload(&item);
	if (item.verdict != LOG_VERDICT_CONFIG || !member_config_decode(config, payload, item.length))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("log index " UINT64_FORMAT " does not hold a configuration", index)));
	*config_bytes = (bytea *) palloc(VARHDRSZ + item.length);
	SET_VARSIZE(*config_bytes, VARHDRSZ + item.length);
	memcpy(VARDATA(*config_bytes), payload, item.length);
	for (int i = 0; i < config->member_count; i++)
		if (strcmp(config->members[i].node_name, node_name) == 0)
			return config->members[i].node_id;
	ereport(ERROR,
			(errcode(ERRCODE_INTERNAL_ERROR),
			 errmsg("node \"%s\" is not among the members at log index " UINT64_FORMAT, node_name, index)));
}

static Datum
make_answer(FunctionCallInfo fcinfo, uint64 cluster_id, uint32 node_id, uint64 config_slot, bytea *config)
{
	TupleDesc	row_type;
	Datum		values[4];
	bool		nulls[4] = {false, false, false, false};

	if (get_call_result_type(fcinfo, NULL, &row_type) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = CStringGetTextDatum(psprintf(UINT64_FORMAT, cluster_id));
	values[1] = Int32GetDatum((int32) node_id);
	values[2] = Int64GetDatum((int64) config_slot);
	values[3] = PointerGetDatum(config);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(row_type), values, nulls));
}

/* Builds before the newest take a configuration with a member that is not to vote for a malformed one, and stop. */
static void
check_all_know_learners(const NodeStatus *status)
{
	const char *older = shmem_older_build(status);

	if (older != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("node \"%s\" runs an older build, which does not know members that are not to vote", older),
				 errhint("Upgrade it first.")));
}

static void pg_attribute_noreturn()
report_another_came_first(const char *node_name, const char *conninfo, bool as_voter)
{
	NodeStatus	status;

	shmem_get_status(&status);
	(void) was_interrupted(&status, node_name, conninfo, as_voter);
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not take in node \"%s\": another change of the members came first", node_name),
			 errdetail("It is the configuration of log index " UINT64_FORMAT ".", status.config_index),
			 errhint("Retry.")));
}

static uint64
propose_joiner(const char *node_name, const char *conninfo, bool as_voter)
{
	uint64		config_slot;
	MemberChange change = {.kind = MEMBER_ADD, .as_voter = as_voter};

	strlcpy(change.node_name, node_name, sizeof(change.node_name));
	strlcpy(change.conninfo, conninfo, sizeof(change.conninfo));
	config_slot = gate_propose_member_change(&change);
	if (config_slot == 0)
		report_another_came_first(node_name, conninfo, as_voter);
	return config_slot;
}

Datum
quorum_request_membership(PG_FUNCTION_ARGS)
{
	char	   *node_name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *conninfo = text_to_cstring(PG_GETARG_TEXT_PP(1));
	char	   *instance_id = text_to_cstring(PG_GETARG_TEXT_PP(2));
	bool		as_voter = PG_NARGS() < 4 || PG_GETARG_BOOL(3);
	NodeIdentity identity;
	NodeStatus	status;
	bool		interrupted;
	uint64		config_slot;
	uint32		node_id = 0;
	bytea	   *config;

	require_membership(&identity);
	gate_check_may_write();
	require_leadership();
	check_node_name(node_name);
	check_conninfo(conninfo, "conninfo");
	lock_membership();

	shmem_get_status(&status);
	interrupted = was_interrupted(&status, node_name, conninfo, as_voter);
	if (!as_voter)
		check_all_know_learners(&status);
	check_joiner(node_name, conninfo, instance_id);
	if (interrupted)
		config_slot = config_in_force(&status, &identity, node_name, &node_id, &config);
	else
	{
		config_slot = propose_joiner(node_name, conninfo, as_voter);
		node_id = read_config(config_slot, node_name, &config);
	}
	PG_RETURN_DATUM(make_answer(fcinfo, identity.cluster_id, node_id, config_slot, config));
}
