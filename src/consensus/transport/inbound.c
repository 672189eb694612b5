/*
 * inbound.c
 *	  The worker's end of the streams that come in: one shm_mq per peer, filled by that peer's stream backend (peer_stream.c).
 *
 * Runs in the consensus worker.  It must never wait for a stream backend: every receive is with nowait.
 *
 * A stream is published in QuorumShmem->streams by its backend, which also counts the slot's generation up.  Whoever holds an older
 * generation of that slot knows from it that the stream is over.  The generation is the only thing that is read without
 * the lock, as a hint that there is something to look at; the latch that the writer sets afterwards makes sure of another look.
 *
 * Invariants
 *	 1. streams[i] here is attached (segment != NULL) only to the generation that it has noted.
 *	 2. Only this process counts as receiver of a queue, and only once per queue: a queue that an earlier worker had begun to read is
 *		never attached to, since a part of a message may be gone; inbound_init sends its backend away.
 *	 3. A frame is delivered under the node id of its stream's handshake.
 *
 * Locks: QuorumShmem->lock, shortly.
 */
#include "postgres.h"

#include "storage/dsm.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/shm_mq.h"
#include "utils/memutils.h"

#include "consensus/transport/inbound.h"
#include "consensus/transport/stream_segment.h"
#include "consensus/transport/transport.h"
#include "shared/shmem.h"

/* Of one stream in one call, so that a stream which never ends does not starve the others, the clock or the journal. */
#define DRAIN_FRAMES 256
#define DRAIN_BYTES (4 * 1024 * 1024)

typedef struct InboundStream
{
	uint64		generation;		/* last one that was looked at */
	uint32		node_id;
	dsm_segment *segment;		/* NULL: no stream */
	StreamSegment *shared;		/* its address */
	shm_mq_handle *queue;
	uint64		frames_received;	/* of shared->frames_announced */
	bool		rejected;		/* by the callback that is reading it now */
} InboundStream;

static InboundStream streams[QUORUM_MAX_MEMBERS];

/* Ours, so that what shm_mq allocates for a long message outlives the caller's context. */
static MemoryContext inbound_context = NULL;

/* The stream whose frame is being delivered: its queue must stay until the callback is back. */
static InboundStream *delivering = NULL;

static void
wake_backend(int pid)
{
	PGPROC	   *proc = pid != 0 ? BackendPidGetProc(pid) : NULL;

	if (proc != NULL)
		SetLatch(&proc->procLatch);
}

/* Makes the slot's stream an old one; its backend leaves when it sees that. */
static void
retire_slot(int slot)
{
	StreamSlot *published = &QuorumShmem->streams[slot];
	int			pid;

	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
	pid = published->backend_pid;
	published->generation++;
	published->node_id = 0;
	published->dsm_handle = DSM_HANDLE_INVALID;
	published->backend_pid = 0;
	streams[slot].generation = published->generation;
	LWLockRelease(QuorumShmem->lock);
	wake_backend(pid);
}

static void
detach_stream(InboundStream *stream)
{
	/* The handle is only memory; what ends the stream for its backend is the detaching from the segment. */
	if (stream->segment != NULL)
	{
		dsm_detach(stream->segment);
		pfree(stream->queue);
	}
	stream->segment = NULL;
	stream->shared = NULL;
	stream->queue = NULL;
	stream->rejected = false;
}

void
inbound_init(void)
{
	inbound_context = AllocSetContextCreate(TopMemoryContext, "pg_quorum inbound streams", ALLOCSET_DEFAULT_SIZES);
	memset(streams, 0, sizeof(streams));
	delivering = NULL;
	for (int slot = 0; slot < QUORUM_MAX_MEMBERS; slot++)
		retire_slot(slot);
}

/* False: the backend has gone already. */
static bool
attach_stream(InboundStream *stream, uint32 node_id, dsm_handle handle)
{
	MemoryContext old_context;
	dsm_segment *segment = dsm_attach(handle);
	shm_mq	   *ring;

	if (segment == NULL)
		return false;
	dsm_pin_mapping(segment);
	stream->segment = segment;
	stream->shared = dsm_segment_address(segment);
	stream->frames_received = 0;
	ring = stream_segment_ring(stream->shared);
	shm_mq_set_receiver(ring, MyProc);

	old_context = MemoryContextSwitchTo(inbound_context);
	stream->queue = shm_mq_attach(ring, segment, NULL);
	MemoryContextSwitchTo(old_context);
	stream->node_id = node_id;
	return true;
}

void
inbound_adopt(void (*arrived) (uint32 node_id))
{
	for (int slot = 0; slot < QUORUM_MAX_MEMBERS; slot++)
	{
		InboundStream *stream = &streams[slot];
		StreamSlot	published;

		if (((volatile StreamSlot *) &QuorumShmem->streams[slot])->generation == stream->generation)
			continue;
		LWLockAcquire(QuorumShmem->lock, LW_SHARED);
		published = QuorumShmem->streams[slot];
		LWLockRelease(QuorumShmem->lock);

		detach_stream(stream);
		stream->generation = published.generation;
		if (published.node_id != 0 && published.dsm_handle != DSM_HANDLE_INVALID &&
			attach_stream(stream, published.node_id, published.dsm_handle))
			arrived(published.node_id);
	}
}

/* Is it worth asking the queue?  See stream_segment.h for why that is not free. */
static bool
has_news(const InboundStream *stream)
{
	return pg_atomic_read_u64(&stream->shared->frames_announced) != stream->frames_received ||
		pg_atomic_read_u32(&stream->shared->closed) != 0;
}

/* True if it stopped at the bound. */
static bool
drain_stream(InboundStream *stream, void (*frame) (uint32 node_id, const uint8 *bytes, size_t length))
{
	Size		drained_bytes = 0;

	for (int frames = 0; frames < DRAIN_FRAMES && drained_bytes < DRAIN_BYTES; frames++)
	{
		Size		length;
		void	   *bytes;
		shm_mq_result result;

		if (!has_news(stream))
			return false;
		result = shm_mq_receive(stream->queue, &length, &bytes, true);
		if (result == SHM_MQ_WOULD_BLOCK)
			return false;
		if (result == SHM_MQ_DETACHED)
		{
			detach_stream(stream);
			return false;
		}
		stream->frames_received++;
		delivering = stream;
		frame(stream->node_id, bytes, length);
		delivering = NULL;
		if (stream->rejected)
		{
			detach_stream(stream);
			return false;
		}
		drained_bytes += length;
	}
	return true;
}

bool
inbound_drain(void (*frame) (uint32 node_id, const uint8 *bytes, size_t length))
{
	bool		more = false;

	for (int slot = 0; slot < QUORUM_MAX_MEMBERS; slot++)
	{
		if (streams[slot].segment != NULL)
			more |= drain_stream(&streams[slot], frame);
	}
	return more;
}

void
inbound_reject(uint32 node_id)
{
	for (int slot = 0; slot < QUORUM_MAX_MEMBERS; slot++)
	{
		InboundStream *stream = &streams[slot];

		if (stream->segment == NULL || stream->node_id != node_id)
			continue;
		/* A slot that shows another generation by now belongs to a newer stream, which the next inbound_adopt looks at. */
		if (((volatile StreamSlot *) &QuorumShmem->streams[slot])->generation == stream->generation)
			retire_slot(slot);
		if (stream == delivering)
			stream->rejected = true;
		else
			detach_stream(stream);
	}
}

void
inbound_shutdown(void)
{
	for (int slot = 0; slot < QUORUM_MAX_MEMBERS; slot++)
	{
		if (streams[slot].segment != NULL)
		{
			retire_slot(slot);
			detach_stream(&streams[slot]);
		}
	}
}
