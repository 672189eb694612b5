/*
 * handover.c
 *	  A leader that gives its office away: because somebody asked, or because this process is to end.
 *
 * Process: consensus worker.  Must never decide who leads, nor when that is safe: the core does (transfer.c).
 *
 * A planned end of the server.  In a fast shutdown the postmaster sends SIGTERM to all backends and to this worker at the same moment, lets
 * nobody in, and waits until all are gone.  Client sessions end at once, so nothing new is proposed; what was proposed is chosen as ever.  The backends
 * of the streams from the other nodes stay until this worker has gone, for a bounded time (peer_stream.c), so that answers come in; and
 * it goes when another leader is heard.  In a smart shutdown the streams are the last to leave, and ask for the hand-over before they do.
 *
 * Locks: none.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"

#include "config.h"
#include "consensus/worker_internal.h"

#define LONGEST_FAREWELL_MS 8000	/* less than the streams stay, peer_stream.c */

static uint64 farewell_deadline_ms = 0; /* 0: this process is not to end */

/* A request is for this moment: if the core refuses it, whoever asked looks at the leader, and asks again. */
void
handover_on_request(const PaxosStatus *status)
{
	uint64		request;

	if (pg_atomic_read_u64(&QuorumShmem->transfer_request) == 0)
		return;
	request = pg_atomic_exchange_u64(&QuorumShmem->transfer_request, 0);
	if (request == 0 || status->role != PAXOS_LEADER)
		return;
	if (!worker_transfer((uint32) request))
		ereport(DEBUG1, (errmsg_internal("the leader cannot hand over now")));
}

static bool
has_successor(const PaxosStatus *status)
{
	return status->role != PAXOS_LEADER && status->leader_id != 0;
}

/* Somebody could take over, and somebody has to. */
static bool
must_hand_over(const PaxosStatus *status)
{
	return status->role == PAXOS_LEADER && status->voter_count > 1 && status->has_quorum;
}

static void
leave(const char *how)
{
	ereport(LOG, (errmsg("consensus worker ends%s", how)));
	ereport(FATAL,
			(errcode(ERRCODE_ADMIN_SHUTDOWN),
			 errmsg("terminating background worker \"%s\" due to administrator command", MyBgworkerEntry->bgw_type)));
}

/* Once in each turn after SIGTERM; does not return when it is time to go. */
void
handover_before_exit(const PaxosStatus *status)
{
	uint64		now_ms = worker_now_ms();

	if (farewell_deadline_ms == 0 && !must_hand_over(status))
		leave("");
	if (farewell_deadline_ms == 0)
		farewell_deadline_ms = now_ms + Min(2 * (uint64) quorum_election_timeout_ms, LONGEST_FAREWELL_MS);
	if (has_successor(status))
		leave(" after handing the leadership over");
	if (now_ms >= farewell_deadline_ms)
		leave(", and the leadership could not be handed over in time");
	if (status->role == PAXOS_LEADER && status->transfer_to == 0)
		(void) worker_transfer(0);
}
