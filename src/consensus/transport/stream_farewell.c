/*
 * stream_farewell.c
 *	  How a peer stream takes part in the shutdown of its server: it is the ear of a leader that hands over.
 *
 * Runs in the stream backend.  Must never keep the server from stopping for longer than LINGER_MS.
 *
 * Fast shutdown: the postmaster ends everybody at the same moment; the stream stays until the consensus worker is gone.  Smart shutdown: it sends no
 * signal, and waits for all sessions; the streams see that they are the only ones left, have the leader hand over, and go.
 *
 * Locks: QuorumShmem->lock, shortly.
 */
#include "postgres.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include "miscadmin.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/backend_status.h"
#include "utils/pidfile.h"
#include "utils/timeout.h"

#include "consensus/transport/stream_farewell.h"
#include "shared/shmem.h"

/* The postmaster's lock file, as miscinit.c names it. */
#define POSTMASTER_LOCK_FILE "postmaster.pid"

#define LINGER_MS 10000

static volatile sig_atomic_t lingering_is_over = false;

/* The postmaster writes its state into its lock file, and tells it nowhere else. */
static bool
server_is_stopping(void)
{
	char		content[2048];
	char	   *line = content;
	ssize_t		length;
	int			fd = OpenTransientFile(POSTMASTER_LOCK_FILE, O_RDONLY | PG_BINARY);

	if (fd < 0)
		return false;
	length = read(fd, content, sizeof(content) - 1);
	CloseTransientFile(fd);
	content[Max(length, 0)] = '\0';
	for (int i = 1; i < LOCK_FILE_LINE_PM_STATUS; i++)
	{
		line = strchr(line, '\n');
		if (line == NULL)
			return false;
		line++;
	}
	return strncmp(line, PM_STATUS_STOPPING, strlen(PM_STATUS_STOPPING)) == 0;
}

static bool
is_stream_backend(const StreamSlot *streams, int pid)
{
	for (int i = 0; i < QUORUM_MAX_MEMBERS; i++)
	{
		if (streams[i].backend_pid == pid)
			return true;
	}
	return pid == MyProcPid;
}

/* A smart shutdown lets sessions finish their work, and that work may need the quorum: the streams are the last to leave. */
static bool
only_streams_remain(void)
{
	StreamSlot	streams[QUORUM_MAX_MEMBERS];
	bool		found_other = false;
	int			count;

	LWLockAcquire(QuorumShmem->lock, LW_SHARED);
	memcpy(streams, QuorumShmem->streams, sizeof(streams));
	LWLockRelease(QuorumShmem->lock);

	pgstat_clear_backend_activity_snapshot();
	count = pgstat_fetch_stat_numbackends();
	for (int i = 1; i <= count && !found_other; i++)
	{
		LocalPgBackendStatus *entry = pgstat_fetch_stat_local_beentry(i);

		found_other = entry != NULL && entry->backendStatus.st_backendType == B_BACKEND &&
			!is_stream_backend(streams, entry->backendStatus.st_procpid);
	}
	pgstat_clear_backend_activity_snapshot();
	return !found_other;
}

static void
end_lingering(void)
{
	lingering_is_over = true;
	InterruptPending = true;
	ProcDiePending = true;
	SetLatch(MyLatch);
}

/*
 * A fast shutdown ends everybody at the same moment.  The consensus worker has still to hear the answers to what it hands over: it ends this stream
 * by its own end.  The timeout ends it too when it waits in the middle of a frame.  (The postmaster sends each signal twice, to the process and to
 * its group.)
 */
void
farewell_linger(StreamFarewell *farewell)
{
	static TimeoutId linger_timeout = MAX_TIMEOUTS;

	if (!ProcDiePending || lingering_is_over || (!farewell->lingers && !server_is_stopping()))
		return;
	ProcDiePending = false;
	if (farewell->lingers)
		return;
	if (linger_timeout == MAX_TIMEOUTS)
		linger_timeout = RegisterTimeout(USER_TIMEOUT, end_lingering);
	farewell->lingers = true;
	enable_timeout_after(linger_timeout, LINGER_MS);
}

/* A leader hands over before it loses its streams.  True: it has, or there was no time left. */
static bool
has_handed_over(StreamFarewell *farewell, TimestampTz now)
{
	NodeStatus	status;

	shmem_get_status(&status);
	if (status.role != NODE_LEADER || status.voter_count < 2 || !status.has_quorum)
		return true;
	if (farewell->hand_over_until == 0)
		farewell->hand_over_until = TimestampTzPlusMilliseconds(now, LINGER_MS);
	if (now >= farewell->hand_over_until)
		return true;
	pg_atomic_write_u64(&QuorumShmem->transfer_request, TRANSFER_TO_ANY);
	shmem_wake_consensus();
	return false;
}

bool
farewell_is_due(StreamFarewell *farewell)
{
	TimestampTz now = GetCurrentTimestamp();

	if (now < farewell->next_check)
		return false;
	farewell->next_check = TimestampTzPlusMilliseconds(now, FAREWELL_CHECK_INTERVAL_MS);
	return server_is_stopping() && only_streams_remain() && has_handed_over(farewell, now);
}
