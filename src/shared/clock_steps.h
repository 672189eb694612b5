/*
 * clock_steps.h
 *	  For how long something has been under way that began by a wall clock, though that may have been set back since.
 *
 * Pure: no shared memory, reads no clock, no allocation.  PostgreSQL tells a transaction's begin by the wall clock alone.  A clock that is set forward makes it
 * look older than it is, which does no harm to those who ask here; one that is set back makes it look younger.  So steps back are noted, as they show
 * beside the monotonic clock, and counted where they may have been made since the begin.
 *
 * A step that is noted late is taken for one of that later time.  One that makes up for a step forward of which nothing was noted in between does not show.
 */
#ifndef QUORUM_CLOCK_STEPS_H
#define QUORUM_CLOCK_STEPS_H

#include <stdbool.h>
#include <stdint.h>

#define CLOCK_STEPS 8			/* older ones are taken together */
#define CLOCK_STEP_LEAST_MS 10	/* what is less may be the time between two readings */

typedef struct ClockStep
{
	int64_t		noted_ms;		/* by the monotonic clock */
	int64_t		back_ms;
} ClockStep;

typedef struct ClockSteps
{
	bool		is_begun;
	int64_t		ahead_ms;		/* by so much the wall clock was ahead of the monotonic one, at most, since the newest step */
	uint32_t	count;
	ClockStep	steps[CLOCK_STEPS]; /* the oldest first */
} ClockSteps;

/* The more often the better. */
extern void clock_steps_note(ClockSteps *steps, int64_t monotonic_ms, int64_t wall_ms);

/* At least, if all steps are noted, up to now; 0 if it began in the future. */
extern int64_t clock_steps_under_way_ms(const ClockSteps *steps, int64_t monotonic_ms, int64_t wall_ms, int64_t began_wall_ms);

#endif							/* QUORUM_CLOCK_STEPS_H */
