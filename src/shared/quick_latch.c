/*
 * quick_latch.c
 *	  To wait for the own latch, and to set another process' latch, with one system call each where the kernel has futexes.
 *
 * SetLatch() wakes another process by a signal, which that process then reads from a descriptor: four system calls, two of them costly, for what
 * one pair of futex calls does.  Linearizable reads do this for each statement.
 *
 * The word that is waited for is the latch's own is_set.  So nothing is missed that happens between the caller's last look and the wait: a
 * signal handler sets the latch (they all do), and the kernel then finds the word changed and does not wait; later the signal interrupts.
 *
 * Must never be used where another process wakes this one with SetLatch() and haste.  Must never leave is_set behind in a process that sleeps in an ordinary wait:
 * the next SetLatch() would believe that it is awake.  Such a process has said that it may be sleeping before it looked at is_set, and here is_set is
 * written before that is looked at; so either it sees the one, or this end the other.
 */
#include "postgres.h"

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#endif

#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/pmsignal.h"
#include "utils/wait_event.h"

#include "shared/quick_latch.h"

#ifdef __linux__

static void
call_futex(Latch *latch, int operation, uint32 value, const struct timespec *timeout)
{
	StaticAssertStmt(sizeof(latch->is_set) == sizeof(uint32), "a futex has 32 bits");
	(void) syscall(SYS_futex, &latch->is_set, operation, value, timeout, NULL, 0);
}

void
quick_latch_wait(long timeout_ms, uint32 wait_event)
{
	struct timespec timeout = {.tv_sec = timeout_ms / 1000, .tv_nsec = timeout_ms % 1000 * 1000000};

	pgstat_report_wait_start(wait_event);
	if (!MyLatch->is_set)
		call_futex(MyLatch, FUTEX_WAIT, 0, &timeout);
	pgstat_report_wait_end();
	if (!MyLatch->is_set && !PostmasterIsAlive())
		proc_exit(1);
}

void
quick_latch_set(Latch *latch)
{
	pg_memory_barrier();
	latch->is_set = true;
	pg_memory_barrier();
	if (latch->maybe_sleeping)
	{
		latch->is_set = false;	/* or the next line would do nothing */
		SetLatch(latch);
	}
	/* Always: meanwhile it may have come to wait here, between the two lines above. */
	call_futex(latch, FUTEX_WAKE, 1, NULL);
}

#else

void
quick_latch_wait(long timeout_ms, uint32 wait_event)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, timeout_ms, wait_event);
}

void
quick_latch_set(Latch *latch)
{
	SetLatch(latch);
}

#endif
