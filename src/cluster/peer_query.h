/*
 * peer_query.h
 *	  One query on another server, asked by a client backend over libpq.
 *
 * Everything that a call returns is palloc'd in the caller's memory context.  A connection belongs to the memory context that was
 * current in peer_connect(): it is closed by peer_close(), or when that context is reset, so an error leaks none.
 */
#ifndef QUORUM_PEER_QUERY_H
#define QUORUM_PEER_QUERY_H

#include "postgres.h"

#define PEER_CONNECT_TIMEOUT_MS 10000
#define PEER_QUERY_TIMEOUT_MS 60000

typedef struct PeerConnection PeerConnection;

typedef struct PeerResult
{
	int			row_count;
	int			column_count;
	char	 ***rows;			/* [row][column], text form; NULL for an SQL NULL */
} PeerResult;

/*
 * `user` takes the place of the one in the conninfo, unless it is NULL.  `target` says in messages whom we talk to ("node \"n2\"").  If no connection comes
 * about: ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION (08001), or, when why_not is given, NULL with the reason in *why_not.
 * Interruptible.
 */
extern PeerConnection *peer_connect(const char *conninfo, const char *user, const char *target, char **why_not);

/*
 * Parameters are texts, NULL for an SQL NULL.  An error of the other server is raised here with its SQLSTATE, message, detail and hint;
 * a lost connection with 08006, no answer in time with 08006 too.  Interruptible.
 */
extern PeerResult *peer_query(PeerConnection *peer, const char *sql, int parameter_count, const char *const *parameters);

/* For a query that may take long: how long an answer is waited for from now on, instead of PEER_QUERY_TIMEOUT_MS. */
extern void peer_set_query_timeout(PeerConnection *peer, int timeout_ms);

/*
 * A statement without parameters that answers with a COPY OUT; errors as above.  Then its messages one by one: valid until the next call, NULL
 * once the statement has ended well.  PEER_QUERY_TIMEOUT_MS is the time that one of them may take.
 */
extern void peer_copy_begin(PeerConnection *peer, const char *sql);
extern char *peer_copy_next(PeerConnection *peer, int *length);

/* The role that the connection was made as. */
extern const char *peer_user(PeerConnection *peer);

extern void peer_close(PeerConnection *peer);

#endif							/* QUORUM_PEER_QUERY_H */
