/*
 * test_clock_steps.c
 *	  How long something has been under way is not underestimated, though the wall clock by which it began is set back (src/shared/clock_steps.c).
 */
#include <string.h>

#include "shared/clock_steps.h"
#include "random.h"
#include "tap.h"

#define BEGUN 32				/* that are under way at a time */

static ClockSteps steps;

/* A wall clock that shows `ahead_ms` more than the monotonic one. */
static int64_t
under_way(int64_t now_ms, int64_t ahead_ms, int64_t began_wall_ms)
{
	clock_steps_note(&steps, now_ms, now_ms + ahead_ms);
	return clock_steps_under_way_ms(&steps, now_ms, now_ms + ahead_ms, began_wall_ms);
}

static void
test_cases(void)
{
	memset(&steps, 0, sizeof(steps));
	ok(under_way(1000, 5000, 5900) == 100 + CLOCK_STEP_LEAST_MS, "as long as the wall clock says, while it goes on evenly");
	ok(under_way(2000, 4995, 5900) == 1095 + CLOCK_STEP_LEAST_MS, "what may be the time between two readings is no step");
	ok(under_way(3000, 3995, 5900) == 2100 + CLOCK_STEP_LEAST_MS, "by how much it was set back is added to what began before");
	ok(under_way(60000, 3995, 63895) == 100 + CLOCK_STEP_LEAST_MS, "but not to what began long after that");
	ok(under_way(60100, 3995, 100000) == 0, "what begins in the future has not begun");
}

typedef struct Begun
{
	int64_t		at_ms;
	int64_t		wall_ms;
} Begun;

typedef struct Run
{
	int			too_short;		/* in so many cases */
	int			too_long;		/* though no step was made */
	int			lost;			/* what the wall clock alone would have taken for too short */
} Run;

/* A step forward is noted before the next one back; one back is noted within 50 ms. */
static void
run_by_lot(uint64_t seed, bool has_steps, Run *run)
{
	Begun		begun[BEGUN];
	int64_t		ahead_ms = 1000000;

	random_seed(seed);
	memset(&steps, 0, sizeof(steps));
	clock_steps_note(&steps, 0, ahead_ms);
	for (int i = 0; i < BEGUN; i++)
		begun[i] = (Begun) {.at_ms = 0, .wall_ms = ahead_ms};
	for (int64_t now_ms = 0; now_ms < 300000; now_ms += random_below(50))
	{
		Begun	   *one = &begun[random_below(BEGUN)];
		int64_t		long_ms = now_ms - one->at_ms;
		int64_t		told_ms = under_way(now_ms, ahead_ms, one->wall_ms);

		run->too_short += told_ms < long_ms;
		run->too_long += !has_steps && told_ms > long_ms + CLOCK_STEP_LEAST_MS;
		run->lost += now_ms + ahead_ms - one->wall_ms < long_ms;
		if (random_chance(30))
			*one = (Begun) {.at_ms = now_ms, .wall_ms = now_ms + ahead_ms};
		if (has_steps && random_chance(1))
			ahead_ms += (int64_t) random_below(4000) - 2000;
	}
}

static void
test_by_lot(void)
{
	Run			with_steps = {0};
	Run			without = {0};

	for (uint64_t seed = 1; seed <= 50; seed++)
	{
		run_by_lot(seed, true, &with_steps);
		run_by_lot(seed, false, &without);
	}
	ok(with_steps.too_short == 0 && without.too_short == 0, "nothing is taken for younger than it is");
	ok(with_steps.lost > 100, "though by the wall clock it would be");
	ok(without.too_long == 0, "nor for older while the clock goes on evenly");
}

int
main(void)
{
	test_cases();
	test_by_lot();
	return tap_done();
}
