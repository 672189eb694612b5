/*
 * peer_stream.c
 *	  The receiving end of a link: CALL quorum.peer_stream(…), whose connection becomes a one-way stream of frames.
 *
 * Runs in the stream backend: an ordinary backend, whose client is the consensus worker of another member.  It passes frames on and must
 * never look into one, hold a snapshot or a lock while it waits, or keep the server from stopping.
 *
 * States in the order in which they occur, with what leaves each:
 *
 *	 CHECKING		(stream_handshake.c) arguments, role, versions and identities are right -> PUBLISHED; not -> ERROR to the client
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
 *	 4. What is answered here follows from the state of the worker that took the stream up, or of none.
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
#include "utils/backend_status.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/ps_status.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "consensus/transport/stream_farewell.h"
#include "consensus/transport/stream_handshake.h"
#include "consensus/transport/stream_segment.h"
#include "consensus/transport/transport.h"
#include "shared/shmem.h"

/* A buffer that grew beyond this for one huge frame is given back. */
#define BUFFER_KEPT_BYTES (1024 * 1024)

#define ATTACH_TIMEOUT_MS 2000

#define WORKER_LET_GO "the consensus worker of this node let go of the peer stream"

typedef struct PeerStream
{
	StreamHandshake said;

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
	snprintf(activity, sizeof(activity), "peer stream from %s", stream->said.from_node_name);
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
	stream->slot = worker_runs ? choose_slot(stream->said.from_node_id) : -1;
	if (stream->slot >= 0)
	{
		StreamSlot *slot = &QuorumShmem->streams[stream->slot];

		older_pid = slot->backend_pid;
		slot->node_id = stream->said.from_node_id;
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

/* Read without the lock: who changes it sets our latch afterwards. */
static bool
is_current(const PeerStream *stream)
{
	return ((volatile StreamSlot *) &QuorumShmem->streams[stream->slot])->generation == stream->generation;
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

	if (!is_current(stream))
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

TransportAnswerHook transport_answer_hook = NULL;

/*
 * False: it is for the worker.  An answer that the socket does not take now waits for the next one; as long as one waits, no more are given, and the sender asks
 * again.
 *
 * The rest of a frame may come long after its beginning, and nothing wakes this backend in between.  The worker may have been ended by then and another one begun,
 * of another node even, if this instance has left the cluster and joins again: what that one has promised says nothing about the node that the sender asks.
 */
static bool
answer_frame(PeerStream *stream)
{
	uint8		answer[TRANSPORT_ANSWER_BYTES];
	size_t		length = 0;

	if (stream->said.protocol_version >= TRANSPORT_ANSWER_VERSION && transport_answer_hook != NULL)
		length = transport_answer_hook(stream->said.from_node_id, (const uint8 *) stream->frame.data, stream->frame.len, answer, sizeof(answer));
	/* Looked at after the state that was answered from: a worker makes the streams of all before it old ones, and then publishes its own. */
	pg_read_barrier();
	if (length == 0 || !is_current(stream))
		return false;
	if (!pq_is_send_pending())
		pq_putmessage_noblock('d', (const char *) answer, length);
	if (pq_flush_if_writable() != 0)
		proc_exit(0);
	return true;
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
			if (!answer_frame(stream))
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

static void
run_stream(PeerStream *stream)
{
	publish_stream(stream);
	await_worker(stream);
	handshake_check_identities(&stream->said);
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

	handshake_read(fcinfo, &stream.said);
	handshake_check(&stream.said);
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
