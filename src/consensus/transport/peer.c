/*
 * peer.c
 *	  One outgoing link: the libpq connection on which this worker sends to one other member.
 *
 * Runs in the consensus worker.  It must never wait: every libpq call is the non-blocking one, so that a black-holed
 * address costs nobody else anything.  (Exception, libpq's own: a host *name* is resolved synchronously; addresses are better.)  It must
 * never log a conninfo: there may be a password in it; libpq's messages about a well-formed one hold none.
 *
 * Invariants
 *	 1. connection == NULL, wanted_events == 0 and the queue is empty iff state is PEER_BACKOFF.  Only STREAMING takes frames.
 *	 2. A frame goes to libpq whole and in order, only in peer_flush().  libpq holds at most HANDOVER_BYTES and one frame at a time.
 *	 3. Each attempt has a deadline of its own, so a peer that accepts and then is silent is given up like one that never answers.
 *	 4. Whatever fails ends in peer_lose(), the only way back to PEER_BACKOFF.
 *
 * Locks: none.
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "portability/instr_time.h"
#include "storage/fd.h"
#include "utils/memutils.h"

#include "consensus/transport/peer.h"
#include "shared/conninfo.h"

#define ATTEMPT_TIMEOUT_US (2 * INT64CONST(1000000))
#define BACKOFF_FIRST_US (20 * INT64CONST(1000))
#define BACKOFF_LONGEST_US (1 * INT64CONST(1000000))

/* A link that lived this long was a good one: its loss starts the backoff from the beginning. */
#define STABLE_AFTER_US (1 * INT64CONST(1000000))

/* The same failure over and over is logged once per this time. */
#define FAILURE_LOG_INTERVAL_US (60 * INT64CONST(1000000))

/* A member that says this node was removed will say so for ever; asked again now and then, in case its disk was replaced. */
#define REMOVED_RETRY_US (600 * INT64CONST(1000000))

#define HANDOVER_BYTES (256 * 1024)
#define QUEUE_FIRST_CAPACITY (64 * 1024)

/* A queue that grew beyond this for one huge frame gives its memory back once it is empty. */
#define QUEUE_KEPT_CAPACITY (2 * TRANSPORT_QUEUE_LIMIT_BYTES)

int64
transport_now_us(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return INSTR_TIME_GET_MICROSEC(now);
}

/* ---- the queue ---- */

static size_t
queue_used(const FrameQueue *queue)
{
	return queue->tail - queue->head;
}

static void
queue_make_room(FrameQueue *queue, size_t needed)
{
	size_t		used = queue_used(queue);

	if (queue->tail + needed <= queue->capacity)
		return;
	if (queue->head > 0)
	{
		memmove(queue->bytes, queue->bytes + queue->head, used);
		queue->head = 0;
		queue->tail = used;
	}
	if (used + needed > queue->capacity)
	{
		while (queue->capacity < used + needed)
			queue->capacity *= 2;
		queue->bytes = repalloc(queue->bytes, queue->capacity);
	}
}

static void
queue_clear(FrameQueue *queue)
{
	queue->head = queue->tail = 0;
	if (queue->capacity > QUEUE_KEPT_CAPACITY)
	{
		queue->capacity = QUEUE_FIRST_CAPACITY;
		queue->bytes = repalloc(queue->bytes, queue->capacity);
	}
}

bool
peer_enqueue(Peer *peer, const uint8 *frame, size_t length)
{
	FrameQueue *queue = &peer->queue;
	uint32		length_word = (uint32) length;

	if (length == 0 || length > TRANSPORT_MAX_FRAME_BYTES)
		elog(ERROR, "frame of %zu bytes cannot be sent", length);

	if (peer->state != PEER_STREAMING || queue_used(queue) >= TRANSPORT_QUEUE_LIMIT_BYTES)
	{
		peer->counters.frames_dropped++;
		return false;
	}
	queue_make_room(queue, sizeof(length_word) + length);
	memcpy(queue->bytes + queue->tail, &length_word, sizeof(length_word));
	memcpy(queue->bytes + queue->tail + sizeof(length_word), frame, length);
	queue->tail += sizeof(length_word) + length;
	return true;
}

/* ---- loss and backoff ---- */

static void
log_failure(Peer *peer, const char *why, int64 now_us)
{
	bool		repeated;
	char		text[PEER_FAILURE_TEXT_BYTES];
	size_t		length;

	strlcpy(text, why, sizeof(text));
	for (length = strlen(text); length > 0 && text[length - 1] == '\n'; length--)
		text[length - 1] = '\0';

	if (peer->state == PEER_STREAMING)
	{
		peer->logged_failure[0] = '\0';
		ereport(LOG,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("lost the link to node \"%s\": %s", peer->member.node_name, text)));
		return;
	}

	repeated = strcmp(text, peer->logged_failure) == 0 && now_us < peer->logged_failure_us + FAILURE_LOG_INTERVAL_US;
	ereport(repeated ? DEBUG1 : LOG,
			(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
			 errmsg("could not establish the link to node \"%s\": %s", peer->member.node_name, text)));
	if (!repeated)
	{
		strlcpy(peer->logged_failure, text, sizeof(peer->logged_failure));
		peer->logged_failure_us = now_us;
	}
}

/* Doubles with each failure; drawn from the upper half, so that nodes which lost each other together do not stay in step. */
static int64
backoff_us(int failures)
{
	int64		longest = BACKOFF_FIRST_US << Min(failures, 10);

	longest = Min(longest, BACKOFF_LONGEST_US);
	return longest / 2 + (int64) (pg_prng_double(&pg_global_prng_state) * (longest / 2));
}

/* Counts what is dropped with the link, for the statistics. */
static void
drop_queued_frames(Peer *peer)
{
	FrameQueue *queue = &peer->queue;

	while (queue->head < queue->tail)
	{
		uint32		length;

		memcpy(&length, queue->bytes + queue->head, sizeof(length));
		queue->head += sizeof(length) + length;
		peer->counters.frames_dropped++;
	}
	queue_clear(queue);
}

static void
close_connection(Peer *peer)
{
	if (peer->connection != NULL)
	{
		PQfinish(peer->connection);
		ReleaseExternalFD();
	}
	peer->connection = NULL;
	peer->wanted_events = 0;
	peer->socket_changed = true;
	peer->flush_pending = false;
	peer->has_input = false;
	drop_queued_frames(peer);
}

void
peer_lose(Peer *peer, const char *why, int64 now_us)
{
	if (peer->state == PEER_BACKOFF)
		return;
	/* Log first: `why` may be libpq's and go away with the connection. */
	if (why != NULL)
		log_failure(peer, why, now_us);
	if (peer->state == PEER_STREAMING && now_us - peer->streaming_since_us >= STABLE_AFTER_US)
		peer->failures = 0;
	close_connection(peer);
	/* Whoever comes back may be another build. */
	if (peer->state == PEER_STREAMING)
		peer->version = TRANSPORT_NEWEST_VERSION;
	peer->state = PEER_BACKOFF;
	peer->timer_us = now_us + backoff_us(peer->failures);
	peer->failures++;
}

void
peer_hurry(Peer *peer, int64 now_us)
{
	if (peer->state == PEER_BACKOFF)
		peer->timer_us = now_us;
}

bool
peer_timer_is_due(const Peer *peer, int64 now_us)
{
	return peer->state != PEER_STREAMING && now_us >= peer->timer_us;
}

/* ---- connecting ---- */

static void
log_notice(void *argument, const char *message)
{
	Peer	   *peer = argument;

	ereport(DEBUG1,
			(errmsg_internal("node \"%s\" says: %s", peer->member.node_name, message)));
}

/*
 * The order matters to libpq: what the conninfo says overrides what stands before it, and is overridden by what follows.
 * TCP's own detection of a dead peer is set to a few seconds, so that the socket of a host which vanished does not linger.
 */
static PGconn *
start_connection(const Peer *peer, const TransportIdentity *self)
{
	char		application_name[NAMEDATALEN * 2 + 32];
	const char *keywords[] = {
		"keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout",
		"connect_timeout", "gssencmode", "dbname", "application_name", NULL
	};
	const char *values[] = {
		"1", "3", "1", "3", "3000",
		"2", "disable", peer->member.conninfo, application_name, NULL
	};

	snprintf(application_name, sizeof(application_name), "pg_quorum %s -> %s", self->node_name, peer->member.node_name);
	return PQconnectStartParams(keywords, values, true);
}

static void
begin_attempt(Peer *peer, const TransportIdentity *self, int64 now_us)
{
	peer->state = PEER_CONNECTING;
	peer->timer_us = now_us + ATTEMPT_TIMEOUT_US;
	/* libpq's own complaint would quote a part of the text, which may be the password. */
	if (!conninfo_is_valid(peer->member.conninfo))
	{
		peer_lose(peer, "its connection string is malformed", now_us);
		return;
	}
	ReserveExternalFD();
	peer->connection = start_connection(peer, self);
	if (peer->connection == NULL)
	{
		ReleaseExternalFD();
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("libpq could not make a connection object.")));
	}
	peer->socket_changed = true;
	if (PQstatus(peer->connection) == CONNECTION_BAD)
	{
		peer_lose(peer, PQerrorMessage(peer->connection), now_us);
		return;
	}
	PQsetNoticeProcessor(peer->connection, log_notice, peer);
	peer->wanted_events = WL_SOCKET_WRITEABLE;
}

static void
send_handshake(Peer *peer, const TransportIdentity *self, int64 now_us)
{
	char		version[16];
	char		cluster_id[24];
	char		from_node_id[16];
	char		to_node_id[16];
	char		incarnation[24];
	char		journal[64];
	const char *values[] = {version, cluster_id, from_node_id, self->node_name, to_node_id, incarnation, journal, self->generation};
	/* Builds of version 1 have no further arguments; one that was left behind is not to take what it cannot understand. */
	bool		is_new = peer->version >= TRANSPORT_CLAIM_VERSION || self->generation[0] != '\0';
	int			flushed;

	snprintf(version, sizeof(version), "%d", peer->version);
	snprintf(cluster_id, sizeof(cluster_id), "%016llx", (unsigned long long) self->cluster_id);
	snprintf(from_node_id, sizeof(from_node_id), "%u", self->node_id);
	snprintf(to_node_id, sizeof(to_node_id), "%u", peer->member.node_id);
	snprintf(incarnation, sizeof(incarnation), "%llu", (unsigned long long) self->incarnation);
	snprintf(journal, sizeof(journal), "%016llx:%016llx:%llu", (unsigned long long) self->journal_incarnation,
			 (unsigned long long) self->start_nonce, (unsigned long long) self->recovered_position);

	if (PQsetnonblocking(peer->connection, 1) != 0 ||
		!PQsendQueryParams(peer->connection, is_new ? "CALL quorum.peer_stream($1, $2, $3, $4, $5, $6, $7, $8)" :
						   "CALL quorum.peer_stream($1, $2, $3, $4, $5, $6)",
						   is_new ? lengthof(values) : lengthof(values) - 2, NULL, values, NULL, NULL, 0) ||
		(flushed = PQflush(peer->connection)) < 0)
	{
		peer_lose(peer, PQerrorMessage(peer->connection), now_us);
		return;
	}
	peer->state = PEER_HANDSHAKE;
	peer->flush_pending = flushed > 0;
	peer->wanted_events = WL_SOCKET_READABLE | (peer->flush_pending ? WL_SOCKET_WRITEABLE : 0);
}

static void
advance_connecting(Peer *peer, const TransportIdentity *self, int64 now_us)
{
	PostgresPollingStatusType status = PQconnectPoll(peer->connection);

	/* libpq may have gone on to another address, perhaps with a socket of the same number: only a new set is surely right. */
	peer->socket_changed = true;
	switch (status)
	{
		case PGRES_POLLING_READING:
			peer->wanted_events = WL_SOCKET_READABLE;
			break;
		case PGRES_POLLING_WRITING:
			peer->wanted_events = WL_SOCKET_WRITEABLE;
			break;
		case PGRES_POLLING_OK:
			send_handshake(peer, self, now_us);
			break;
		default:
			peer_lose(peer, PQerrorMessage(peer->connection), now_us);
			break;
	}
}

/* ---- handshake and streaming ---- */

/* The other end says goodbye; its last words go to the log. */
static void
lose_to_result(Peer *peer, int64 now_us)
{
	PGresult   *result = PQisBusy(peer->connection) ? NULL : PQgetResult(peer->connection);
	const char *message = result != NULL ? PQresultErrorMessage(result) : "";

	if (message[0] == '\0')
		message = PQerrorMessage(peer->connection);
	if (message[0] == '\0')
		message = "the other node ended the stream";
	peer_lose(peer, message, now_us);
	PQclear(result);
}

/* Also notices that the other end has left. */
char *
peer_next_answer(Peer *peer, int *length, int64 now_us)
{
	char	   *data = NULL;

	if (!peer->has_input)
		return NULL;
	*length = PQgetCopyData(peer->connection, &data, true);
	if (*length > 0)
		return data;
	peer->has_input = false;
	if (*length < 0)
		lose_to_result(peer, now_us);
	return NULL;
}

static bool
has_sqlstate(const PGresult *result, int sqlstate)
{
	const char *field = result != NULL ? PQresultErrorField(result, PG_DIAG_SQLSTATE) : NULL;

	return field != NULL && strcmp(field, unpack_sql_state(sqlstate)) == 0;
}

/* The worker hears of it: it is not a failure that passes. */
static void
note_refusal(Peer *peer, const PGresult *result)
{
	const char *detail = PQresultErrorField(result, PG_DIAG_MESSAGE_DETAIL);

	if (peer->refusal != NULL)
		pfree(peer->refusal);
	peer->refusal = MemoryContextStrdup(GetMemoryChunkContext(peer), detail != NULL ? detail : "It gave no detail.");
}

/*
 * What other builds refuse for its version, or for its arguments, is offered again in an older one, at once.  (A few other refusals have that SQLSTATE too; they come again
 * for the older version, and the round begins anew with the newest.)
 */
static void
refused_handshake(Peer *peer, const PGresult *result, int64 now_us)
{
	const char *message = result != NULL ? PQresultErrorMessage(result) : "";

	if ((has_sqlstate(result, ERRCODE_PROTOCOL_VIOLATION) || has_sqlstate(result, ERRCODE_UNDEFINED_FUNCTION)) && peer->version > TRANSPORT_OLDEST_VERSION)
	{
		ereport(DEBUG1, (errmsg_internal("node \"%s\" refuses version %d: %s", peer->member.node_name, peer->version, message)));
		peer->version--;
		peer_lose(peer, NULL, now_us);
		peer->failures--;
		peer->timer_us = now_us;
		return;
	}
	peer->version = TRANSPORT_NEWEST_VERSION;
	if (has_sqlstate(result, TRANSPORT_SQLSTATE_FORGOTTEN))
		note_refusal(peer, result);
	peer->says_removed = has_sqlstate(result, TRANSPORT_SQLSTATE_REMOVED);
	if (has_sqlstate(result, TRANSPORT_SQLSTATE_LEFT_BEHIND) && PQresultErrorField(result, PG_DIAG_CONSTRAINT_NAME) != NULL)
		strlcpy(peer->successor, PQresultErrorField(result, PG_DIAG_CONSTRAINT_NAME), sizeof(peer->successor));
	peer_lose(peer, message[0] != '\0' ? message : "the other node did not open the stream", now_us);
	if (peer->says_removed || has_sqlstate(result, TRANSPORT_SQLSTATE_OTHER_GENERATION))
		peer->timer_us = now_us + REMOVED_RETRY_US;
}

static void
read_handshake(Peer *peer, int64 now_us)
{
	PGresult   *result;

	if (PQisBusy(peer->connection))
		return;
	result = PQgetResult(peer->connection);
	if (result == NULL || PQresultStatus(result) != PGRES_COPY_BOTH)
	{
		refused_handshake(peer, result, now_us);
		PQclear(result);
		return;
	}
	PQclear(result);

	peer->state = PEER_STREAMING;
	peer->last_version = peer->version;
	peer->says_removed = peer->reported_removed = false;
	peer->streaming_since_us = now_us;
	peer->logged_failure[0] = '\0';
	peer->counters.links_established++;
	ereport(LOG,
			(errmsg("link to node \"%s\" is up", peer->member.node_name),
			 peer->version < TRANSPORT_NEWEST_VERSION ?
			 errdetail("It speaks the older version %d of the peer protocol.", peer->version) : 0));
	peer->has_input = true;
}

/* Also for HANDSHAKE, where the queue is empty and it only pushes the CALL out. */
void
peer_flush(Peer *peer, int64 now_us)
{
	FrameQueue *queue = &peer->queue;
	int			flushed;

	if (peer->state != PEER_STREAMING && peer->state != PEER_HANDSHAKE)
		return;
	if (queue_used(queue) == 0 && !peer->flush_pending)
		return;

	flushed = peer->flush_pending ? PQflush(peer->connection) : 0;
	while (flushed == 0 && queue_used(queue) > 0)
	{
		size_t		handed_over = 0;

		while (handed_over < HANDOVER_BYTES && queue_used(queue) > 0)
		{
			uint32		length;

			memcpy(&length, queue->bytes + queue->head, sizeof(length));
			/* 0 would mean that libpq got no memory for its buffer: it is the end of the link like any error. */
			if (PQputCopyData(peer->connection, queue->bytes + queue->head + sizeof(length), (int) length) <= 0)
			{
				peer_lose(peer, PQerrorMessage(peer->connection), now_us);
				return;
			}
			queue->head += sizeof(length) + length;
			handed_over += length;
			peer->counters.frames_sent++;
			peer->counters.bytes_sent += length;
		}
		flushed = PQflush(peer->connection);
	}
	if (flushed < 0)
	{
		peer_lose(peer, PQerrorMessage(peer->connection), now_us);
		return;
	}
	if (queue_used(queue) == 0)
		queue_clear(queue);
	peer->flush_pending = flushed > 0;
	peer->wanted_events = WL_SOCKET_READABLE | (peer->flush_pending ? WL_SOCKET_WRITEABLE : 0);
}

static void
advance_established(Peer *peer, uint32 ready_events, int64 now_us)
{
	if (ready_events & WL_SOCKET_READABLE)
	{
		if (!PQconsumeInput(peer->connection))
		{
			peer_lose(peer, PQerrorMessage(peer->connection), now_us);
			return;
		}
		if (peer->state == PEER_HANDSHAKE)
			read_handshake(peer, now_us);
		else
			peer->has_input = true;
	}
	if (ready_events & WL_SOCKET_WRITEABLE)
		peer_flush(peer, now_us);
}

void
peer_advance(Peer *peer, const TransportIdentity *self, uint32 ready_events, int64 now_us)
{
	bool		timer_is_due = peer_timer_is_due(peer, now_us);

	switch (peer->state)
	{
		case PEER_BACKOFF:
			if (timer_is_due)
				begin_attempt(peer, self, now_us);
			break;
		case PEER_CONNECTING:
			if (ready_events != 0)
				advance_connecting(peer, self, now_us);
			else if (timer_is_due)
				peer_lose(peer, "no connection within 2 seconds", now_us);
			break;
		case PEER_HANDSHAKE:
			if (ready_events != 0)
				advance_established(peer, ready_events, now_us);
			else if (timer_is_due)
				peer_lose(peer, "connected, but no answer to the handshake within 2 seconds", now_us);
			break;
		case PEER_STREAMING:
			if (ready_events != 0)
				advance_established(peer, ready_events, now_us);
			break;
	}
}

/* ---- life ---- */

Peer *
peer_create(const TransportPeer *member)
{
	Peer	   *peer = palloc0(sizeof(Peer));

	peer->member = *member;
	peer->state = PEER_BACKOFF;
	peer->timer_us = 0;			/* at once */
	peer->event_position = -1;
	peer->reported_up = true;	/* what the core takes for granted of a new member: it is to be told that it is not so yet */
	peer->version = peer->last_version = TRANSPORT_NEWEST_VERSION;
	peer->queue.capacity = QUEUE_FIRST_CAPACITY;
	peer->queue.bytes = palloc(peer->queue.capacity);
	return peer;
}

void
peer_destroy(Peer *peer)
{
	close_connection(peer);
	if (peer->refusal != NULL)
		pfree(peer->refusal);
	pfree(peer->queue.bytes);
	pfree(peer);
}

void
peer_update_member(Peer *peer, const TransportPeer *member, int64 now_us)
{
	bool		reconnect = strcmp(peer->member.conninfo, member->conninfo) != 0;

	peer->member = *member;
	if (reconnect)
	{
		peer_lose(peer, "its connection string has changed", now_us);
		peer->failures = 0;
		peer->timer_us = now_us;
	}
}
