/*
 * membership.c
 *	  quorum.create_cluster(), and what it shares with join_cluster: how an instance that belongs to nobody becomes a node.
 *
 * Runs in client backends.  Must never touch the journal or the members in shared memory: it leaves an identity file for the consensus
 * worker and waits for what that publishes.
 *
 * Invariants
 *	 1. The identity file is the last thing that is written: every check has passed by then.
 *	 2. It is written at most once in the life of an instance, under lock_membership().
 *
 * Locks: an object lock on the schema quorum (to keep two callers apart), QuorumShmem->lock shortly.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_namespace.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "cluster/internal_query.h"
#include "cluster/membership.h"
#include "cluster/node_check.h"
#include "shared/member_config.h"
#include "shared/shmem.h"

#define LEADERSHIP_TIMEOUT_MS 10000
#define STATUS_INTERVAL_MS 20	/* how often what the worker published is looked at; it does not signal backends */

PG_FUNCTION_INFO_V1(quorum_create_cluster);

void
lock_membership(void)
{
	LockDatabaseObject(NamespaceRelationId, get_namespace_oid("quorum", false), 0, ShareUpdateExclusiveLock);
}

void
unlock_membership(void)
{
	UnlockDatabaseObject(NamespaceRelationId, get_namespace_oid("quorum", false), 0, ShareUpdateExclusiveLock);
}

bool
database_has_remains(void)
{
	return internal_query_value("SELECT 1 FROM quorum.position WHERE applied_index > 0 "
								"UNION ALL SELECT 1 FROM quorum.replicated_table LIMIT 1", 0, NULL, NULL) != NULL;
}

void
refuse_remains(void)
{
	if (database_has_remains())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this database has been part of a cluster before"),
				 errdetail("Its tables hold the effects of a log that this node no longer has."),
				 errhint("SELECT quorum.leave_cluster() makes its tables ordinary ones. Then drop, rename or empty those that the cluster replicates, "
						 "or let quorum.join_cluster(..., keep_rows => true) keep the rows that are the same there.")));
}

void
adopt_identity(const IdentityFile *identity)
{
	identity_write(identity);
	pg_atomic_fetch_add_u64(&QuorumShmem->identity_generation, 1);
	shmem_wake_consensus();
}

void
wait_for_change(long timeout_ms, const char *background)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, timeout_ms, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	if (QueryCancelPending && !ProcDiePending)
		ereport(NOTICE, (errmsg("%s", background)));
	CHECK_FOR_INTERRUPTS();
}

/* 63 random bits, so that it is positive as a bigint; 0 means none. */
static uint64
draw_cluster_id(void)
{
	uint64		cluster_id;

	do
	{
		if (!pg_strong_random(&cluster_id, sizeof(cluster_id)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not draw a random number for the cluster")));
		cluster_id &= PG_INT64_MAX;
	} while (cluster_id == 0);
	return cluster_id;
}

/* The configuration of a new cluster: this node is its only member and voter. */
static void
encode_first_config(const char *node_name, const char *conninfo, StringInfo bytes)
{
	MemberConfig *config = palloc0(sizeof(MemberConfig));

	config->next_node_id = 2;
	config->member_count = 1;
	config->members[0].node_id = 1;
	config->members[0].is_voter = true;
	config->members[0].as_voter = true;
	strlcpy(config->members[0].node_name, node_name, NAMEDATALEN);
	strlcpy(config->members[0].conninfo, conninfo, QUORUM_MAX_CONNINFO);
	initStringInfo(bytes);
	member_config_encode(config, bytes);
	pfree(config);
}

/* Leads, and has found its position row: the next write will be taken. */
static bool
leads_and_may_write(void)
{
	NodeStatus	status;

	shmem_get_status(&status);
	return status.role == NODE_LEADER && pg_atomic_read_u32(&QuorumShmem->may_write) != 0;
}

static void
wait_until_leader(void)
{
	TimestampTz start = GetCurrentTimestamp();

	while (!leads_and_may_write())
	{
		if (TimestampDifferenceExceeds(start, GetCurrentTimestamp(), LEADERSHIP_TIMEOUT_MS))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the cluster was created, but its node does not lead within %d seconds",
							LEADERSHIP_TIMEOUT_MS / 1000),
					 errhint("See last_error in quorum.status and the server log; do not create the cluster again.")));
		wait_for_change(STATUS_INTERVAL_MS, "the cluster is created; only the wait for it to start ends here");
	}
}

Datum
quorum_create_cluster(PG_FUNCTION_ARGS)
{
	char	   *node_name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *conninfo = text_to_cstring(PG_GETARG_TEXT_PP(1));
	IdentityFile identity;
	StringInfoData config;

	require_shared_state();
	check_node_name(node_name);
	check_conninfo(conninfo, "conninfo");
	lock_membership();
	refuse_if_member();
	refuse_remains();
	check_leads_to_instance(conninfo, "this node", own_instance_id());

	memset(&identity, 0, sizeof(identity));
	identity.cluster_id = draw_cluster_id();
	identity.node_id = 1;
	strlcpy(identity.node_name, node_name, sizeof(identity.node_name));
	strlcpy(identity.conninfo, conninfo, sizeof(identity.conninfo));
	encode_first_config(node_name, conninfo, &config);
	identity.config_bytes = config.data;
	identity.config_length = config.len;
	adopt_identity(&identity);

	wait_until_leader();
	ereport(NOTICE, (errmsg("node \"%s\" is the first of a new cluster and leads it", node_name)));
	PG_RETURN_VOID();
}
