/*
 * peer_stream.c
 *	  The receiving end of a link: CALL quorum.peer_stream(…), whose connection becomes a one-way stream of frames.
 *
 * Runs in the stream backend: an ordinary backend, whose client is the consensus worker of another member.  It passes frames on and must
 * never look into one, hold a snapshot or a lock while it waits, or keep the server from stopping.
 *
 * States in the order in which they occur, with what leaves each:
 *
 *	 CHECKING		arguments, role, versions and identities are right -> PUBLISHED; not -> ERROR to the client
 *	 PUBLISHED		the consensus worker has attached to the queue -> STREAMING; not in time, or no worker -> ERROR
 *	 STREAMING		client: EOF or Terminate -> exit; CopyDone -> the CALL ends normally; anything else -> FATAL.
 *					this side: worker gone, stream replaced or rejected, server stopping, terminated -> FATAL
 *
 * In a shutdown the stream stays for as long as stream_farewell.c says.
 *
 * The client learns that its link is up from the CopyBothResponse, which is sent at the entry to STREAMING: from then on a frame that it
 * sends reaches a worker, or the connection breaks.
 *
 * Invariants
 *	 1. QuorumShmem->streams[slot] belongs to this backend exactly while its generation is ours; only then does it clean it up.
 *	 2. A frame goes into the queue whole, or the stream ends.
 *	 3. The queue being full, nothing is read from the socket: TCP makes the sender wait, whose own queue is bounded.
 *
 * Locks: QuorumShmem->lock, shortly.
 */
#include "postgres.h"

/* libpq.h would ask for gssapi.h, which the server's headers do not bring along.  No field of Port is touched here. */
#undef ENABLE_GSS

#include "executor/spi.h"
#include "fmgr.h"
#include "libpq/libpq.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/dsm.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/shm_mq.h"
#include "storage/sinval.h"
#include "utils/acl.h"
#include "utils/backend_status.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/ps_status.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "consensus/transport/stream_farewell.h"
#include "consensus/transport/stream_segment.h"
#include "consensus/transport/transport.h"
#include "shared/acceptor_mark.h"
#include "shared/shmem.h"

/* A buffer that grew beyond this for one huge frame is given back. */
#define BUFFER_KEPT_BYTES (1024 * 1024)

#define ATTACH_TIMEOUT_MS 2000

#define WORKER_LET_GO "the consensus worker of this node let go of the peer stream"

typedef struct PeerStream
{
	/* what the sender said */
	int			protocol_version;
	uint64		cluster_id;
	uint32		from_node_id;
	char		from_node_name[NAMEDATALEN];
	uint32		to_node_id;
	uint64		incarnation;
	AcceptorClaim claim;
	ClusterGeneration cluster_generation;

	int			slot;			/* in QuorumShmem->streams; -1 until published */
	uint64		generation;
	dsm_segment *segment;
	StreamSegment *shared;		/* its address */
	shm_mq	   *ring;
	shm_mq_handle *queue;
	StringInfoData frame;
	bool		is_encrypted;
	StreamFarewell farewell;
} PeerStream;

PG_FUNCTION_INFO_V1(quorum_peer_stream);

/* ---- CHECKING ---- */

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
read_claim(FunctionCallInfo fcinfo, PeerStream *stream)
{
	if (PG_NARGS() < 7 || PG_ARGISNULL(6))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument journal of quorum.peer_stream must not be null")));
	parse_claim(text_to_cstring(PG_GETARG_TEXT_PP(6)), &stream->claim);
	stream->claim.node_id = stream->from_node_id;
	stream->claim.start_count = stream->incarnation;
}

static void
read_arguments(FunctionCallInfo fcinfo, PeerStream *stream)
{
	for (int i = 0; i < 6; i++)
	{
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("arguments of quorum.peer_stream must not be null")));
	}
	stream->protocol_version = PG_GETARG_INT32(0);
	stream->cluster_id = parse_uint64(text_to_cstring(PG_GETARG_TEXT_PP(1)), 16, "cluster_id");
	stream->from_node_id = (uint32) PG_GETARG_INT32(2);
	strlcpy(stream->from_node_name, text_to_cstring(PG_GETARG_TEXT_PP(3)), NAMEDATALEN);
	stream->to_node_id = (uint32) PG_GETARG_INT32(4);
	stream->incarnation = parse_uint64(text_to_cstring(PG_GETARG_TEXT_PP(5)), 10, "incarnation");
	if (stream->protocol_version >= TRANSPORT_CLAIM_VERSION)
		read_claim(fcinfo, stream);
	/* An older installation script has no eighth argument; an older node gives none. */
	if (!generation_from_text(&stream->cluster_generation,
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
note_left_behind(const PeerStream *stream)
{
	ClusterGeneration known;

	if (generation_file_read(GENERATION_SUCCESSOR_FILE, &known) != GENERATION_FILE_ABSENT)
		return;
	generation_file_write(GENERATION_SUCCESSOR_FILE, &stream->cluster_generation);
	shmem_restart_consensus();
}

/* Before anything is concluded from node ids: they mean nothing beyond a border of generations. */
static void
check_generation(const PeerStream *stream, const NodeIdentity *identity)
{
	char		text[GENERATION_TEXT_BYTES];

	switch (generation_compare(&stream->cluster_generation, &identity->generation))
	{
		case GENERATION_SAME:
			return;
		case GENERATION_OLDER:
			generation_to_text(&identity->generation, text);
			ereport(ERROR,
					(errcode(TRANSPORT_SQLSTATE_LEFT_BEHIND),
					 errmsg_internal("%s", generation_explain(&stream->cluster_generation, &identity->generation)),
					 err_generic_string(PG_DIAG_CONSTRAINT_NAME, text)));
			break;
		case GENERATION_NEWER:
			note_left_behind(stream);
			ereport(ERROR,
					(errcode(TRANSPORT_SQLSTATE_OTHER_GENERATION),
					 errmsg("node \"%s\" was left behind, and knows it now", identity->node_name),
					 errdetail_internal("%s", generation_explain(&identity->generation, &stream->cluster_generation))));
			break;
		case GENERATION_APART:
			ereport(ERROR,
					(errcode(TRANSPORT_SQLSTATE_OTHER_GENERATION),
					 errmsg("nodes \"%s\" and \"%s\" belong to different continuations of the cluster", stream->from_node_name, identity->node_name),
					 errdetail("quorum.force_new_cluster() was called on one node of each, which makes two clusters."),
					 errhint("Decide which of them is to live; remove the nodes of the other with quorum.leave_cluster(force => true).")));
			break;
	}
}

static void
check_identities(const PeerStream *stream)
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
	if (stream->cluster_id != identity->cluster_id)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("peer stream for another cluster"),
				 errdetail("Node \"%s\" belongs to cluster %016llx, this node (\"%s\") to cluster %016llx.",
						   stream->from_node_name, (unsigned long long) stream->cluster_id,
						   identity->node_name, (unsigned long long) identity->cluster_id),
				 errhint("Check the connection strings of the members.")));
	if (stream->to_node_id != identity->node_id || stream->from_node_id == identity->node_id)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("peer stream from node %u to node %u has reached node %u",
						stream->from_node_id, stream->to_node_id, identity->node_id),
				 errhint("Check the connection strings of the members.")));
	if (stream->from_node_id == 0)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("peer stream of a node without a number")));
	check_generation(stream, identity);
	if (was_removed(status, stream->from_node_id))
		ereport(ERROR,
				(errcode(TRANSPORT_SQLSTATE_REMOVED),
				 errmsg("node \"%s\" with id %u was removed from the cluster", stream->from_node_name, stream->from_node_id),
				 errhint("A node that was removed has to join again as a new one.")));
	pfree(status);
	pfree(identity);
}

/* Whoever has forgotten what it promised must not vote; its consensus worker stops when it reads this. */
static void
check_memory(const PeerStream *stream)
{
	AcceptorMark mark;
	AcceptorVerdict verdict;

	if (stream->protocol_version < TRANSPORT_CLAIM_VERSION)
		return;
	verdict = acceptor_mark_admit(&stream->claim, &mark);
	if (verdict == ACCEPTOR_NOT_YET_KNOWN)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the consensus worker of this node is starting")));
	if (verdict != ACCEPTOR_REMEMBERS)
		ereport(ERROR,
				(errcode(TRANSPORT_SQLSTATE_FORGOTTEN),
				 errmsg("node \"%s\" has forgotten what it had promised or accepted, and is refused as a member", stream->from_node_name),
				 errdetail_internal("%s", acceptor_verdict_detail(verdict, &mark, &stream->claim)),
				 errhint("Let it leave the cluster and join as a new node.")));
}

static void
check_handshake(const PeerStream *stream)
{
	check_role();
	if (QuorumShmem == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pg_quorum is not loaded"),
				 errhint("Add pg_quorum to shared_preload_libraries and restart the server.")));
	if (stream->protocol_version < TRANSPORT_OLDEST_VERSION || stream->protocol_version > TRANSPORT_NEWEST_VERSION)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("node \"%s\" offers version %d of the peer protocol, this node speaks versions %d to %d",
						stream->from_node_name, stream->protocol_version, TRANSPORT_OLDEST_VERSION, TRANSPORT_NEWEST_VERSION),
				 errhint("A newer build offers an older version next. Otherwise upgrade this node.")));
	check_identities(stream);
	check_memory(stream);
}

/*
 * The CALL's snapshot would hold back vacuum for as long as the stream lives.  A commit drops it, with all locks; that is only
 * possible for a CALL outside of a transaction block.
 */
static void
leave_transaction(FunctionCallInfo fcinfo)
{
	if (fcinfo->context == NULL || !IsA(fcinfo->context, CallContext) || castNode(CallContext, fcinfo->context)->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("quorum.peer_stream can only be called outside of a transaction block")));
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	SPI_commit();
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "could not finish SPI");
}

/*
 * A stream lives for months and may be silent: no timeout of ordinary statements applies.  A host that vanished must not keep this
 * backend, unless the administrator set his own TCP limits.
 */
static void
set_session_limits(const PeerStream *stream)
{
	char		activity[NAMEDATALEN + 64];

	disable_timeout(STATEMENT_TIMEOUT, false);
	if (pq_getkeepalivesidle(MyProcPort) > 60)
	{
		SetConfigOption("tcp_keepalives_idle", "5", PGC_USERSET, PGC_S_SESSION);
		SetConfigOption("tcp_keepalives_interval", "2", PGC_USERSET, PGC_S_SESSION);
		SetConfigOption("tcp_keepalives_count", "5", PGC_USERSET, PGC_S_SESSION);
	}
	snprintf(activity, sizeof(activity), "peer stream from %s", stream->from_node_name);
	pgstat_report_activity(STATE_RUNNING, activity);
	set_ps_display(activity);
}

/* ---- PUBLISHED ---- */

static void
wake_older_backend(int pid)
{
	PGPROC	   *proc = pid != 0 ? BackendPidGetProc(pid) : NULL;

	if (proc != NULL)
		SetLatch(&proc->procLatch);
}

/* The slot that this sender has already (its older stream is replaced), else a free one; -1 if there is none.  Under the lock. */
static int
choose_slot(uint32 node_id)
{
	int			slot = -1;

	for (int i = 0; i < QUORUM_MAX_MEMBERS; i++)
	{
		if (QuorumShmem->streams[i].node_id == node_id)
			return i;
		if (slot < 0 && QuorumShmem->streams[i].node_id == 0)
			slot = i;
	}
	return slot;
}

static void
publish_stream(PeerStream *stream)
{
	int			older_pid = 0;
	bool		worker_runs;

	stream->segment = dsm_create(STREAM_SEGMENT_BYTES, 0);
	dsm_pin_mapping(stream->segment);
	stream->shared = dsm_segment_address(stream->segment);
	pg_atomic_init_u64(&stream->shared->frames_announced, 0);
	pg_atomic_init_u32(&stream->shared->closed, 0);
	stream->ring = shm_mq_create(stream_segment_ring(stream->shared), STREAM_RING_BYTES);
	shm_mq_set_sender(stream->ring, MyProc);
	stream->queue = shm_mq_attach(stream->ring, stream->segment, NULL);

	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
	worker_runs = QuorumShmem->consensus_latch != NULL;
	stream->slot = worker_runs ? choose_slot(stream->from_node_id) : -1;
	if (stream->slot >= 0)
	{
		StreamSlot *slot = &QuorumShmem->streams[stream->slot];

		older_pid = slot->backend_pid;
		slot->node_id = stream->from_node_id;
		slot->dsm_handle = dsm_segment_handle(stream->segment);
		slot->backend_pid = MyProcPid;
		stream->generation = ++slot->generation;
	}
	LWLockRelease(QuorumShmem->lock);

	if (!worker_runs)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the consensus worker of this node is not running")));
	if (stream->slot < 0)
		ereport(ERROR,
				(errcode(ERRCODE_TOO_MANY_CONNECTIONS),
				 errmsg("too many peer streams"),
				 errdetail("There are %d already, one for each possible member.", QUORUM_MAX_MEMBERS)));
	wake_older_backend(older_pid);
	shmem_wake_consensus();
}

/* At the end of the stream, whatever ends it. */
static void
retract_stream(int code, Datum argument)
{
	PeerStream *stream = (PeerStream *) DatumGetPointer(argument);

	if (stream->slot >= 0)
	{
		StreamSlot *slot = &QuorumShmem->streams[stream->slot];

		LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
		if (slot->generation == stream->generation)
		{
			slot->node_id = 0;
			slot->dsm_handle = DSM_HANDLE_INVALID;
			slot->backend_pid = 0;
		}
		LWLockRelease(QuorumShmem->lock);
		stream->slot = -1;
	}
	if (stream->segment != NULL)
	{
		/* Before the detaching, which sets the worker's latch. */
		pg_atomic_write_u32(&stream->shared->closed, 1);
		dsm_detach(stream->segment);
	}
	stream->segment = NULL;
}

/* ---- leaving ---- */

static void
leave_with(int sqlstate, const char *message)
{
	/* FATAL, as the connection is of no use any more; the message is the last thing that the sender reads. */
	ereport(FATAL, (errcode(sqlstate), errmsg_internal("%s", message)));
}

/* Returns if the stream is to go on. */
static void
check_still_wanted(PeerStream *stream)
{
	farewell_linger(&stream->farewell);
	CHECK_FOR_INTERRUPTS();
	/* This backend never gets idle, where others do this. */
	if (catchupInterruptPending)
		ProcessCatchupInterrupt();

	/* Read without the lock: who changes it sets our latch afterwards. */
	if (((volatile StreamSlot *) &QuorumShmem->streams[stream->slot])->generation != stream->generation)
		leave_with(ERRCODE_ADMIN_SHUTDOWN,
				   "this peer stream was replaced by a newer one, or ended by the consensus worker");

	if (farewell_is_due(&stream->farewell))
		leave_with(ERRCODE_ADMIN_SHUTDOWN, "ending the peer stream because the server is shutting down");
}

/* An idle stream has to notice the end of its worker too: the detaching has set our latch.  Does not wait, as the worker had attached. */
static void
check_worker_is_attached(PeerStream *stream)
{
	if (shm_mq_wait_for_attach(stream->queue) == SHM_MQ_DETACHED)
		leave_with(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, WORKER_LET_GO);
}

/* Waits for the latch and the socket, not for longer than until the next check for a shutdown.  Returns true if it is the socket. */
static bool
wait_for_work(PeerStream *stream)
{
	WaitEvent	event;
	bool		is_readable = false;

	ModifyWaitEvent(FeBeWaitSet, FeBeWaitSetSocketPos, WL_SOCKET_READABLE, NULL);
	if (WaitEventSetWait(FeBeWaitSet, FAREWELL_CHECK_INTERVAL_MS, &event, 1, PG_WAIT_EXTENSION) == 1)
	{
		if (event.events & WL_POSTMASTER_DEATH)
			proc_exit(1);
		if (event.events & WL_LATCH_SET)
			ResetLatch(MyLatch);
		is_readable = (event.events & WL_SOCKET_READABLE) != 0;
	}
	check_still_wanted(stream);
	check_worker_is_attached(stream);
	return is_readable;
}

static void
wait_for_latch(PeerStream *stream, long timeout_ms)
{
	if (WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, timeout_ms, PG_WAIT_EXTENSION) & WL_LATCH_SET)
		ResetLatch(MyLatch);
	check_still_wanted(stream);
}

static void
await_worker(PeerStream *stream)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ATTACH_TIMEOUT_MS);

	while (shm_mq_get_receiver(stream->ring) == NULL)
	{
		long		timeout_ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);

		if (timeout_ms <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the consensus worker of this node did not take up the stream within %d ms", ATTACH_TIMEOUT_MS)));
		wait_for_latch(stream, timeout_ms);
	}
}

/* ---- STREAMING ---- */

static void
send_copy_both_response(void)
{
	StringInfoData message;

	pq_beginmessage(&message, 'W');
	pq_sendbyte(&message, 0);	/* overall format: text; no columns */
	pq_sendint16(&message, 0);
	pq_endmessage(&message);
	pq_flush();
}

/* With the queue full it waits here, and the socket is not read. */
static void
forward_frame(PeerStream *stream)
{
	shm_mq_result result;

	if (stream->frame.len == 0)
		leave_with(ERRCODE_PROTOCOL_VIOLATION, "a frame of a peer stream must not be empty");
	pg_atomic_fetch_add_u64(&stream->shared->frames_announced, 1);
	for (;;)
	{
		/* Forced out, or the worker would hear of it only when a quarter of the ring is full. */
		result = shm_mq_send(stream->queue, stream->frame.len, stream->frame.data, true, true);
		if (result != SHM_MQ_WOULD_BLOCK)
			break;
		wait_for_latch(stream, FAREWELL_CHECK_INTERVAL_MS);
	}
	if (result == SHM_MQ_DETACHED)
		leave_with(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, WORKER_LET_GO);

	if (stream->frame.maxlen > BUFFER_KEPT_BYTES)
	{
		pfree(stream->frame.data);
		initStringInfo(&stream->frame);
	}
}

/*
 * Reads the rest of a message, whose type is known.  Returns false on CopyDone.  EOF within it ends the backend as everywhere in
 * Postgres: pq_getmessage has said why in the server log (also if it is longer than a frame may be).
 */
static bool
take_message(PeerStream *stream, unsigned char type)
{
	if (type != 'd' && type != 'c' && type != 'f' && type != 'H' && type != 'S' && type != 'X')
		ereport(FATAL,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("unexpected message type 0x%02X in a peer stream", type)));
	if (pq_getmessage(&stream->frame, (type == 'd' ? TRANSPORT_MAX_FRAME_BYTES : PQ_SMALL_MESSAGE_LIMIT) + 4) == EOF)
		proc_exit(0);

	switch (type)
	{
		case 'd':
			forward_frame(stream);
			break;
		case 'c':
			return false;
		case 'f':
			ereport(ERROR,
					(errcode(ERRCODE_QUERY_CANCELED),
					 errmsg("the sender gave up the peer stream: %s", pq_getmsgstring(&stream->frame))));
			break;
		case 'X':
			proc_exit(0);
			break;
		default:
			/* Flush and Sync: libpq sends a Sync after the CALL in the extended protocol. */
			break;
	}
	return true;
}

/* Under TLS a part of what was received may be inside the TLS library, where no wait sees it: only "nothing left" is sure. */
static bool
take_encrypted_messages(PeerStream *stream)
{
	for (;;)
	{
		unsigned char type;
		int			got;

		pq_startmsgread();
		got = pq_getbyte_if_available(&type);
		if (got == EOF)
			proc_exit(0);
		if (got == 0)
		{
			pq_endmsgread();
			return true;
		}
		if (!take_message(stream, type))
			return false;
		/* A sender that never pauses must not keep us from what the latch would tell. */
		check_still_wanted(stream);
	}
}

/* The socket is readable: one system call gets all of a burst of small frames, and two less are needed than above. */
static bool
take_plain_messages(PeerStream *stream)
{
	do
	{
		int			type;

		pq_startmsgread();
		type = pq_getbyte();
		if (type == EOF)
			proc_exit(0);
		if (!take_message(stream, (unsigned char) type))
			return false;
		check_still_wanted(stream);
	} while (pq_buffer_has_data());
	return true;
}

/* Returns at CopyDone. */
static void
forward_frames(PeerStream *stream)
{
	bool		goes_on = true;

	/* What came together with the CALL is in a buffer already, and no wait would see it. */
	if (stream->is_encrypted)
		goes_on = take_encrypted_messages(stream);
	else if (pq_buffer_has_data())
		goes_on = take_plain_messages(stream);
	while (goes_on)
	{
		bool		is_readable = wait_for_work(stream);

		if (is_readable)
			goes_on = stream->is_encrypted ? take_encrypted_messages(stream) : take_plain_messages(stream);
	}
}

/*
 * The worker that has attached may be another one than that whose identity was checked: started anew, and then of a new generation.  It
 * publishes who it is before it attaches, and the sender sends nothing before the CopyBothResponse.
 */
static void
check_generation_again(const PeerStream *stream)
{
	NodeIdentity identity;

	shmem_get_identity(&identity);
	check_generation(stream, &identity);
}

static void
run_stream(PeerStream *stream)
{
	publish_stream(stream);
	await_worker(stream);
	check_generation_again(stream);
	send_copy_both_response();
	forward_frames(stream);
	pq_putemptymessage('c');
}

Datum
quorum_peer_stream(PG_FUNCTION_ARGS)
{
	PeerStream	stream = {.slot = -1};
	MemoryContext old_context;
	MemoryContext stream_context;

	read_arguments(fcinfo, &stream);
	check_handshake(&stream);
	leave_transaction(fcinfo);
	set_session_limits(&stream);

	stream.is_encrypted = MyBEEntry->st_ssl || MyBEEntry->st_gss;
	/* Lives as long as the CALL, whatever ends that; the transaction's contexts have just gone. */
	stream_context = AllocSetContextCreate(PortalContext, "peer stream", ALLOCSET_DEFAULT_SIZES);
	old_context = MemoryContextSwitchTo(stream_context);
	initStringInfo(&stream.frame);

	PG_ENSURE_ERROR_CLEANUP(retract_stream, PointerGetDatum(&stream));
	{
		run_stream(&stream);
	}
	PG_END_ENSURE_ERROR_CLEANUP(retract_stream, PointerGetDatum(&stream));

	retract_stream(0, PointerGetDatum(&stream));
	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(stream_context);
	PG_RETURN_VOID();
}
