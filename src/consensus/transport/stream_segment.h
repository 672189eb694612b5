/*
 * stream_segment.h
 *	  What the DSM segment of an inbound stream holds: the ring, and a count that tells the worker when to look at it.
 *	  Between the stream backend (writer, peer_stream.c) and the consensus worker (reader, inbound.c).
 *
 * A reader that finds a shm_mq empty gives the room of what it had read back to the writer, and wakes it to say so: with
 * one frame at a time, a wakeup of the stream backend for nothing and a system call of the worker with each frame.  So the
 * worker asks the queue only for frames that are announced here.  The room is then given back a quarter of the ring at a time, or when
 * the worker finds a frame announced that is not there yet, which is always so when the writer waits for room.
 */
#ifndef QUORUM_STREAM_SEGMENT_H
#define QUORUM_STREAM_SEGMENT_H

#include "postgres.h"

#include "port/atomics.h"

#define STREAM_RING_BYTES (1024 * 1024)

typedef struct StreamSegment
{
	pg_atomic_uint64 frames_announced;	/* grows before the frame is put into the queue, whose latch call comes after that */
	pg_atomic_uint32 closed;	/* 1: the writer is about to detach; what is in the queue may still be read */
} StreamSegment;

#define STREAM_RING_OFFSET MAXALIGN(sizeof(StreamSegment))
#define STREAM_SEGMENT_BYTES (STREAM_RING_OFFSET + STREAM_RING_BYTES)

#define stream_segment_ring(segment) ((shm_mq *) ((char *) (segment) + STREAM_RING_OFFSET))

#endif							/* QUORUM_STREAM_SEGMENT_H */
