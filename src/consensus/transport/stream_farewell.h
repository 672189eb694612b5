/*
 * stream_farewell.h
 *	  How a peer stream takes part in the shutdown of its server.  Process: stream backend.
 */
#ifndef QUORUM_STREAM_FAREWELL_H
#define QUORUM_STREAM_FAREWELL_H

#include "postgres.h"

#include "utils/timestamp.h"

/* How often a stream looks whether the server is in a smart shutdown, which sends no signal; it has to wake up for that. */
#define FAREWELL_CHECK_INTERVAL_MS 1000

typedef struct StreamFarewell
{
	bool		lingers;		/* it was told to end, and stays for a while */
	TimestampTz next_check;
	TimestampTz hand_over_until;	/* smart shutdown: the leader was asked to hand over; 0: not */
} StreamFarewell;

/* Before CHECK_FOR_INTERRUPTS: puts a termination off that comes from a shutdown of the server. */
extern void farewell_linger(StreamFarewell *farewell);

/* Smart shutdown: it is time to go. */
extern bool farewell_is_due(StreamFarewell *farewell);

#endif							/* QUORUM_STREAM_FAREWELL_H */
