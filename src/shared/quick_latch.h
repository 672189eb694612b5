/*
 * quick_latch.h
 *	  To wait for the own latch, and to set another process' latch, with one system call each where the kernel has futexes.
 *	  Processes: client backends, the consensus worker.
 */
#ifndef QUORUM_QUICK_LATCH_H
#define QUORUM_QUICK_LATCH_H

#include "postgres.h"

#include "storage/latch.h"

/*
 * Returns when MyLatch is set, or after timeout_ms; may return for nothing.  Exits if the postmaster has died, which it notices after timeout_ms.  Noticed at once
 * is who sets it by quick_latch_set(), and whatever a signal handler of this process does; a plain SetLatch() of another process is noticed only
 * after timeout_ms.
 */
extern void quick_latch_wait(long timeout_ms, uint32 wait_event);

/* In place of SetLatch(), for a process that is most likely in quick_latch_wait(); right for any. */
extern void quick_latch_set(Latch *latch);

#endif							/* QUORUM_QUICK_LATCH_H */
