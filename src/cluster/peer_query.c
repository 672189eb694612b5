/*
 * peer_query.c
 *	  One query on another server, asked by a client backend over libpq.
 *
 * Runs in client backends, for the cluster functions.  Must never block in libpq: a peer that does not answer is the very thing that
 * these functions are asked to find out, and their caller must be able to cancel them.
 *
 * Invariants
 *	 1. Each wait is on the socket, the latch, the postmaster's death and a deadline.
 *	 2. A PGconn is freed with the memory context that it was made in, and its file descriptor is accounted for until then.
 *
 * Takes no locks.
 */
#include "postgres.h"

#include "libpq-fe.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "cluster/peer_query.h"
#include "shared/shmem.h"

struct PeerConnection
{
	PGconn	   *conn;			/* NULL once closed */
	char	   *target;
	int			query_timeout_ms;
	char	   *copied;			/* libpq's buffer with the message that was returned last, or NULL */
	MemoryContextCallback on_reset;
};

/* The other server's notices are about itself; they would only confuse here. */
static void
ignore_notice(void *argument, const char *message)
{
}

void
peer_close(PeerConnection *peer)
{
	if (peer->conn == NULL)
		return;
	PQfreemem(peer->copied);
	peer->copied = NULL;
	PQfinish(peer->conn);
	peer->conn = NULL;
	ReleaseExternalFD();
}

const char *
peer_user(PeerConnection *peer)
{
	return PQuser(peer->conn);
}

static void
close_at_reset(void *argument)
{
	peer_close((PeerConnection *) argument);
}

/*
 * Waits for one of the socket events, at most until the deadline.  False: the deadline has passed.
 */
static bool
wait_for_socket(PeerConnection *peer, int socket_events, TimestampTz deadline)
{
	for (;;)
	{
		long		left_ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
		int			events;

		if (left_ms <= 0)
			return false;
		events = WaitLatchOrSocket(MyLatch, socket_events | WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
								   PQsocket(peer->conn), left_ms, PG_WAIT_EXTENSION);
		if (events & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
		}
		if (events & socket_events)
			return true;
	}
}

void
peer_set_query_timeout(PeerConnection *peer, int timeout_ms)
{
	peer->query_timeout_ms = timeout_ms;
}

/* Drives the connection attempt to its end; NULL if it is established, else why it is not. */
static char *
finish_connecting(PeerConnection *peer)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), PEER_CONNECT_TIMEOUT_MS);
	PostgresPollingStatusType status = PGRES_POLLING_WRITING;	/* libpq: as if PQconnectPoll had said so */

	if (PQstatus(peer->conn) == CONNECTION_BAD)
		return pchomp(PQerrorMessage(peer->conn));
	while (status != PGRES_POLLING_OK)
	{
		int			wanted = (status == PGRES_POLLING_READING) ? WL_SOCKET_READABLE : WL_SOCKET_WRITEABLE;

		if (!wait_for_socket(peer, wanted, deadline))
			return psprintf("No answer within %d seconds.", PEER_CONNECT_TIMEOUT_MS / 1000);
		status = PQconnectPoll(peer->conn);
		if (status == PGRES_POLLING_FAILED)
			return pchomp(PQerrorMessage(peer->conn));
	}
	return NULL;
}

/* Begins the attempt; whoever looks at the other server's pg_stat_activity shall see who we are. */
static PGconn *
start_connecting(const char *conninfo, const char *user)
{
	NodeIdentity identity;
	const char *keywords[5] = {"dbname", "application_name", "client_encoding", user ? "user" : NULL, NULL};
	const char *values[5] = {conninfo, NULL, GetDatabaseEncodingName(), user, NULL};

	shmem_get_identity(&identity);
	values[1] = psprintf("pg_quorum %s admin", identity.node_id != 0 ? identity.node_name : "-");
	return PQconnectStartParams(keywords, values, true);
}

PeerConnection *
peer_connect(const char *conninfo, const char *user, const char *target, char **why_not)
{
	PeerConnection *peer = palloc0(sizeof(PeerConnection));
	char	   *reason;

	peer->target = pstrdup(target);
	peer->query_timeout_ms = PEER_QUERY_TIMEOUT_MS;
	peer->on_reset.func = close_at_reset;
	peer->on_reset.arg = peer;
	if (!AcquireExternalFD())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not connect to %s", target),
				 errdetail("There are too many open files on the local server."),
				 errhint("Raise the server's max_files_per_process and the operating system's limit.")));
	peer->conn = start_connecting(conninfo, user);
	if (peer->conn == NULL)
	{
		ReleaseExternalFD();
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	}
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &peer->on_reset);
	PQsetNoticeProcessor(peer->conn, ignore_notice, NULL);

	reason = finish_connecting(peer);
	if (reason == NULL)
		return peer;
	peer_close(peer);
	if (why_not == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
				 errmsg("could not connect to %s", target),
				 errdetail_internal("%s", reason),
				 errhint("Check the conninfo, that the server there is running, and its pg_hba.conf.")));
	*why_not = reason;
	return NULL;
}

static void pg_attribute_noreturn()
raise_lost_connection(PeerConnection *peer)
{
	char	   *reason = pchomp(PQerrorMessage(peer->conn));

	ereport(ERROR,
			(errcode(ERRCODE_CONNECTION_FAILURE),
			 errmsg("lost the connection to %s", peer->target),
			 reason[0] != '\0' ? errdetail_internal("%s", reason) : 0));
}

/* The other server's error, as if it had happened here. */
static void pg_attribute_noreturn()
raise_remote_error(PeerConnection *peer, PGresult *result)
{
	const char *field = PQresultErrorField(result, PG_DIAG_SQLSTATE);
	const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
	const char *detail = PQresultErrorField(result, PG_DIAG_MESSAGE_DETAIL);
	const char *hint = PQresultErrorField(result, PG_DIAG_MESSAGE_HINT);
	int			sqlstate = ERRCODE_CONNECTION_FAILURE;

	if (field != NULL && strlen(field) == 5)
		sqlstate = MAKE_SQLSTATE(field[0], field[1], field[2], field[3], field[4]);
	if (message == NULL)
		raise_lost_connection(peer);
	message = pstrdup(message);
	detail = detail ? pstrdup(detail) : NULL;
	hint = hint ? pstrdup(hint) : NULL;
	PQclear(result);
	ereport(ERROR,
			(errcode(sqlstate),
			 errmsg_internal("%s", message),
			 detail ? errdetail_internal("%s", detail) : 0,
			 hint ? errhint("%s", hint) : 0,
			 errcontext("query on %s", peer->target)));
}

static PeerResult *
copy_result(const PGresult *result)
{
	PeerResult *copy = palloc0(sizeof(PeerResult));

	copy->row_count = PQntuples(result);
	copy->column_count = PQnfields(result);
	copy->rows = palloc0(sizeof(char **) * Max(copy->row_count, 1));
	for (int row = 0; row < copy->row_count; row++)
	{
		copy->rows[row] = palloc0(sizeof(char *) * Max(copy->column_count, 1));
		for (int column = 0; column < copy->column_count; column++)
			if (!PQgetisnull(result, row, column))
				copy->rows[row][column] = pstrdup(PQgetvalue(result, row, column));
	}
	return copy;
}

/* The next result without blocking; NULL when the query is over. */
static PGresult *
next_result(PeerConnection *peer, TimestampTz deadline)
{
	while (PQisBusy(peer->conn))
	{
		if (!wait_for_socket(peer, WL_SOCKET_READABLE, deadline))
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("%s did not answer within %d seconds", peer->target, peer->query_timeout_ms / 1000)));
		if (!PQconsumeInput(peer->conn))
			raise_lost_connection(peer);
	}
	return PQgetResult(peer->conn);
}

PeerResult *
peer_query(PeerConnection *peer, const char *sql, int parameter_count, const char *const *parameters)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), peer->query_timeout_ms);
	PeerResult *answer = NULL;
	PGresult   *result;

	if (!PQsendQueryParams(peer->conn, sql, parameter_count, NULL, parameters, NULL, NULL, 0))
		raise_lost_connection(peer);
	while ((result = next_result(peer, deadline)) != NULL)
	{
		ExecStatusType status = PQresultStatus(result);

		if (status != PGRES_TUPLES_OK && status != PGRES_COMMAND_OK)
			raise_remote_error(peer, result);
		if (answer == NULL)
			answer = copy_result(result);
		PQclear(result);
	}
	if (answer == NULL)
		raise_lost_connection(peer);
	return answer;
}

void
peer_copy_begin(PeerConnection *peer, const char *sql)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), PEER_QUERY_TIMEOUT_MS);
	PGresult   *result;
	ExecStatusType status;

	if (!PQsendQuery(peer->conn, sql))
		raise_lost_connection(peer);
	result = next_result(peer, deadline);
	if (result == NULL)
		raise_lost_connection(peer);
	status = PQresultStatus(result);
	if (status == PGRES_COPY_OUT)
	{
		PQclear(result);
		return;
	}
	if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK)
		raise_remote_error(peer, result);
	PQclear(result);
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("%s did not begin to copy", peer->target)));
}

/* What follows the last message: the statement's own end, or its error. */
static void
finish_copy(PeerConnection *peer, TimestampTz deadline)
{
	PGresult   *result;

	while ((result = next_result(peer, deadline)) != NULL)
	{
		ExecStatusType status = PQresultStatus(result);

		if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK)
			raise_remote_error(peer, result);
		PQclear(result);
	}
}

char *
peer_copy_next(PeerConnection *peer, int *length)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), PEER_QUERY_TIMEOUT_MS);

	PQfreemem(peer->copied);
	peer->copied = NULL;
	while ((*length = PQgetCopyData(peer->conn, &peer->copied, true)) == 0)
	{
		if (!wait_for_socket(peer, WL_SOCKET_READABLE, deadline))
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("%s has sent nothing for %d seconds", peer->target, PEER_QUERY_TIMEOUT_MS / 1000)));
		if (!PQconsumeInput(peer->conn))
			raise_lost_connection(peer);
	}
	if (*length > 0)
		return peer->copied;
	if (*length != -1)
		raise_lost_connection(peer);
	finish_copy(peer, deadline);
	return NULL;
}
