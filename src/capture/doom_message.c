/*
 * doom_message.c
 *	  What a session is told that stood in the way of an agreed entry.  Process: client backend, while it reports an error.
 *
 * The lock watcher aborts it by the means that a standby has for its queries (lock_watcher.c), so the server's own text speaks of recovery.  The code, 40001, is
 * right; the text is replaced here.  That is possible only for errors that are logged, which is so unless log_min_messages is above ERROR.
 *
 * Must not wait, allocate elsewhere than in the error's own context, or raise anything.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/elog.h"
#include "utils/memutils.h"

#include "capture/capture.h"
#include "shared/proposal_queue.h"

static emit_log_hook_type previous_emit_log_hook = NULL;

static void
replace_text(ErrorData *error, const DoomedTransaction *doomed)
{
	char		detail[256];

	snprintf(detail, sizeof(detail), "The transaction held a lock that log index %llu, of node \"%s\", needs. It was not committed.",
			 (unsigned long long) doomed->log_index, doomed->node_name);
	error->message = MemoryContextStrdup(error->assoc_context, error->elevel >= FATAL ?
										 "terminating connection: its transaction stood in the way of one that a quorum agreed on" :
										 "canceling statement: its transaction stood in the way of one that a quorum agreed on");
	error->detail = MemoryContextStrdup(error->assoc_context, detail);
	error->hint = MemoryContextStrdup(error->assoc_context, "Retry the transaction.");
}

static void
emit_log(ErrorData *error)
{
	const DoomedTransaction *doomed;

	if (error->sqlerrcode == ERRCODE_T_R_SERIALIZATION_FAILURE && error->message_id != NULL &&
		strstr(error->message_id, "conflict with recovery") != NULL && (doomed = proposal_own_doom()) != NULL)
		replace_text(error, doomed);
	if (previous_emit_log_hook)
		previous_emit_log_hook(error);
}

/* ---- a signal that came too late ---- */

/* What else is pending would end the session, which is not to happen here. */
static bool
may_process_interrupts(void)
{
	return !ProcDiePending && !ClientConnectionLost && !IdleInTransactionSessionTimeoutPending && !IdleSessionTimeoutPending &&
		!proc_exit_inprogress;
}

/* Makes the server raise what it has noted, and forgets it. */
static void
swallow_cancel(void)
{
	MemoryContext context = CurrentMemoryContext;
	uint32		interrupt_holdoff_count = InterruptHoldoffCount;
	uint32		cancel_holdoff_count = QueryCancelHoldoffCount;

	PG_TRY();
	{
		InterruptHoldoffCount = QueryCancelHoldoffCount = 0;
		QueryCancelPending = true;
		ProcessInterrupts();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
	}
	PG_END_TRY();
	QueryCancelPending = false;
	InterruptHoldoffCount = interrupt_holdoff_count;
	QueryCancelHoldoffCount = cancel_holdoff_count;
}

/*
 * The lock watcher may have signalled this backend when its transaction was ending anyhow, with another error or without one.  The server
 * remembers such a conflict beyond the transaction, in a variable of its own, and would terminate the session for it as soon as it is idle.  No signal for
 * this transaction can come any more: it has left the array of processes.  Three times, as two timeouts that are noted as well are raised first.
 */
void
doom_forget(void)
{
	if (!proposal_forget_own_doom())
		return;
	for (int i = 0; i < 3 && may_process_interrupts(); i++)
		swallow_cancel();
}

void
doom_message_init(void)
{
	previous_emit_log_hook = emit_log_hook;
	emit_log_hook = emit_log;
}
