/*
 * clock_steps.c
 *	  Steps back of the wall clock.  Process: consensus worker, client backends (any program: this file is pure C).
 *
 * Must never take what began by the wall clock for younger than it is.
 */
#include "shared/clock_steps.h"

#include <string.h>

/* A later time and a sum make no transaction look younger. */
static void
make_room(ClockSteps *steps)
{
	if (steps->count < CLOCK_STEPS)
		return;
	steps->steps[1].back_ms += steps->steps[0].back_ms;
	steps->count--;
	memmove(steps->steps, steps->steps + 1, steps->count * sizeof(ClockStep));
}

void
clock_steps_note(ClockSteps *steps, int64_t monotonic_ms, int64_t wall_ms)
{
	int64_t		ahead_ms = wall_ms - monotonic_ms;
	int64_t		back_ms = steps->ahead_ms - ahead_ms;

	if (!steps->is_begun || back_ms <= 0)
	{
		steps->is_begun = true;
		steps->ahead_ms = ahead_ms;
		return;
	}
	if (back_ms < CLOCK_STEP_LEAST_MS)
		return;
	make_room(steps);
	steps->steps[steps->count++] = (ClockStep) {.noted_ms = monotonic_ms, .back_ms = back_ms};
	steps->ahead_ms = ahead_ms;
}

/* If just the newest few steps came since the begin, it was so long ago; that can be if the first of them was not before it.  The longest counts. */
int64_t
clock_steps_under_way_ms(const ClockSteps *steps, int64_t monotonic_ms, int64_t wall_ms, int64_t began_wall_ms)
{
	int64_t		so_long_ms = wall_ms - began_wall_ms + CLOCK_STEP_LEAST_MS;
	int64_t		longest_ms = so_long_ms;

	for (uint32_t i = steps->count; i > 0; i--)
	{
		so_long_ms += steps->steps[i - 1].back_ms;
		if (monotonic_ms - steps->steps[i - 1].noted_ms <= so_long_ms)
			longest_ms = so_long_ms;
	}
	return longest_ms > 0 ? longest_ms : 0;
}
