/*
 * tap.h
 *	  The little of TAP that the unit tests need: ok lines with a name, and a plan at the end.
 */
#ifndef TEST_UNIT_TAP_H
#define TEST_UNIT_TAP_H

#include <stdbool.h>
#include <stdio.h>

static int	tap_count;
static int	tap_failures;

/* The name says which behaviour holds. */
static inline bool
tap_ok(bool holds, const char *name, const char *file, int line)
{
	printf("%sok %d - %s\n", holds ? "" : "not ", ++tap_count, name);
	if (!holds)
	{
		tap_failures++;
		printf("# failed at %s line %d\n", file, line);
	}
	fflush(stdout);
	return holds;
}

#define ok(holds, name) tap_ok((holds), (name), __FILE__, __LINE__)

/* For conditions in loops: says nothing while all is well, so that the plan does not depend on how often it is asked. */
#define ok_quietly(holds, name) ((holds) ? true : tap_ok(false, (name), __FILE__, __LINE__))

/* The program's exit status. */
static inline int
tap_done(void)
{
	printf("1..%d\n", tap_count);
	return tap_failures == 0 ? 0 : 1;
}

#endif							/* TEST_UNIT_TAP_H */
