/*
 * list_append.h
 *	  The checker of list-append histories.
 */
#ifndef TEST_CONSISTENCY_LIST_APPEND_H
#define TEST_CONSISTENCY_LIST_APPEND_H

#include "history.h"

/* real_time: linearizable reads were promised; without it only their mutual consistency is checked. */
extern void check_lists(const History *history, bool real_time, Report *report);

#endif							/* TEST_CONSISTENCY_LIST_APPEND_H */
