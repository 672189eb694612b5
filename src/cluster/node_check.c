/*
 * node_check.c
 *	  What the cluster functions check of a node before they believe it: its name, its conninfo, and where that leads.
 *
 * Runs in client backends.  Must never write anything, and never put a conninfo into a message: its owner may have left a password
 * in it.
 *
 * Takes no locks but QuorumShmem->lock, shortly.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "commands/dbcommands.h"
#include "fmgr.h"
#include "libpq-fe.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "cluster/node_check.h"
#include "config.h"
#include "shared/identity.h"

PG_FUNCTION_INFO_V1(quorum_check_installation);
PG_FUNCTION_INFO_V1(quorum_instance_id);

void
require_shared_state(void)
{
	if (QuorumShmem == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pg_quorum is not loaded by the server"),
				 errhint("Add pg_quorum to shared_preload_libraries and restart the server.")));
}

void
require_membership(NodeIdentity *identity)
{
	require_shared_state();
	shmem_get_identity(identity);
	if (identity->node_id != 0)
		return;
	if (identity_exists())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this node has not started its part in the cluster yet"),
				 errhint("Try again in a moment; if it persists, see last_error in quorum.status and the server log.")));
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("this node is not a member of a cluster"),
			 errhint("Call quorum.create_cluster() or quorum.join_cluster() first.")));
}

bool
has_identity_file(void)
{
	return identity_exists();
}

void
refuse_if_member(void)
{
	NodeIdentity identity;

	shmem_get_identity(&identity);
	if (identity.node_id == 0 && !identity_exists())
		return;
	if (pg_atomic_read_u32(&QuorumShmem->removed) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this node was removed from its cluster, and has not left it yet"),
				 errhint("SELECT quorum.leave_cluster() makes it an ordinary instance. Then it can join as a new node, and keep its rows with keep_rows => true.")));
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("this node is already a member of a cluster"),
			 identity.node_id != 0 ? errdetail("Its name there is \"%s\".", identity.node_name) : 0,
			 errhint("An instance belongs to one cluster; see quorum.status and quorum.nodes.")));
}

void
check_node_name(const char *node_name)
{
	size_t		length = strlen(node_name);

	if (length >= 1 && length < NAMEDATALEN &&
		strspn(node_name, "abcdefghijklmnopqrstuvwxyz0123456789_-") == length &&
		node_name[0] != '_' && node_name[0] != '-')
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_NAME),
			 errmsg("invalid node name \"%s\"", node_name),
			 errhint("A node name has 1 to %d lower-case letters, digits, underscores and hyphens, and starts with a letter or digit.",
					 NAMEDATALEN - 1)));
}

/* The statement is kept out of the server log: the conninfo stands in it, and a password perhaps. */
static void
refuse_conninfo(const char *parameter, const char *detail, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for parameter \"%s\"", parameter),
			 errdetail_internal("%s", detail),
			 hint ? errhint("%s", hint) : 0,
			 errhidestmt(true)));
}

void
check_conninfo(const char *conninfo, const char *parameter)
{
	char	   *libpq_error = NULL;
	PQconninfoOption *options = PQconninfoParse(conninfo, &libpq_error);
	bool		has_host = false;
	bool		has_password = false;

	/* libpq quotes parts of the string in its message, so that is left out: it could be the password. */
	if (options == NULL)
	{
		PQfreemem(libpq_error);
		refuse_conninfo(parameter, "It is not a connection string that libpq understands.",
						"Write it like 'host=10.0.0.1 port=5432 dbname=app', or as a postgresql:// URI.");
	}
	for (PQconninfoOption *option = options; option->keyword != NULL; option++)
	{
		if (option->val == NULL || option->val[0] == '\0')
			continue;
		if (strcmp(option->keyword, "host") == 0 || strcmp(option->keyword, "hostaddr") == 0 ||
			strcmp(option->keyword, "service") == 0)
			has_host = true;
		if (strcmp(option->keyword, "password") == 0 || strcmp(option->keyword, "sslpassword") == 0)
			has_password = true;
	}
	PQconninfoFree(options);

	if (has_password)
		refuse_conninfo(parameter, "It contains a password.",
						"Use a password file (passfile) or a client certificate: a conninfo is stored in the log of the cluster.");
	if (!has_host)
		refuse_conninfo(parameter, "It does not say a host.",
						"Add host=... as the other nodes reach this server.");
	if (strlen(conninfo) >= QUORUM_MAX_CONNINFO)
		refuse_conninfo(parameter, psprintf("It is longer than %d bytes.", QUORUM_MAX_CONNINFO - 1), NULL);
}

/* A clone has the same system identifier, but was not started in the same microsecond. */
char *
own_instance_id(void)
{
	return psprintf(UINT64_FORMAT "-" INT64_FORMAT, GetSystemIdentifier(), PgStartTime);
}

void
check_is_quorum_node(PeerConnection *peer, const char *target, const char *role)
{
	PeerResult *result;

	/* Only catalogs, so that it can be asked of any server; CASE, as pg_has_role() fails for a role that does not exist. */
	result = peer_query(peer,
						"SELECT pg_catalog.current_database(), pg_catalog.pg_is_in_recovery(), "
						"(SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'pg_quorum'), "
						"current_user, "
						"CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1::text) "
						"THEN pg_catalog.pg_has_role(current_user, $1::name, 'USAGE') ELSE false END",
						1, &role);
	if (strcmp(result->rows[0][1], "t") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s is a standby server", target),
				 errhint("Each node of a cluster is a primary server; promote it first.")));
	if (result->rows[0][2] == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("database \"%s\" of %s does not have the extension pg_quorum", result->rows[0][0], target),
				 errhint("Run CREATE EXTENSION pg_quorum there, in the database that its setting quorum.database names, "
						 "and let the conninfo lead to that database.")));
	if (strcmp(result->rows[0][4], "t") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" on %s is not a member of %s", result->rows[0][3], target, role),
				 errhint("Run GRANT %s TO %s there, or let the conninfo name another user.",
						 role, quote_identifier(result->rows[0][3]))));
}

void
check_leads_to_instance(const char *conninfo, const char *target, const char *instance_id)
{
	PeerConnection *peer = peer_connect(conninfo, NULL, target, NULL);
	PeerResult *result;

	check_is_quorum_node(peer, target, "quorum_peer");
	result = peer_query(peer, "SELECT quorum.instance_id()", 0, NULL);
	peer_close(peer);
	if (strcmp(result->rows[0][0], instance_id) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the conninfo leads to another server"),
				 errdetail("It was tried, and an instance answered that is not %s.", target),
				 errhint("Give the host and port at which the other nodes, and the node itself, reach it.")));
}

Datum
quorum_instance_id(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(own_instance_id()));
}

/* Called while the extension is created. */
Datum
quorum_check_installation(PG_FUNCTION_ARGS)
{
	const char *database = get_database_name(MyDatabaseId);

	require_shared_state();
	if (database == NULL || strcmp(database, quorum_database) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pg_quorum can be created only in the database that quorum.database names"),
				 errdetail("This is database \"%s\", and quorum.database is \"%s\".", database ? database : "", quorum_database),
				 errhint("Connect to that database, or change quorum.database and restart the server.")));
	PG_RETURN_VOID();
}
