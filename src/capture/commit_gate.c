/*
 * commit_gate.c
 *	  The gate before COMMIT: queues the write set, waits for the quorum's verdict and for its turn.  Process: client backend.
 *
 * Runs as the last PRE_COMMIT callback, so that deferred triggers are done.  Never commits anything that the quorum did not
 * choose, and never reports "not committed" (class 40, 25006) for something that may have left this instance.
 *
 * Invariants
 *	 1. Whatever can still fail is checked before proposing: the serializable check here, NOTIFY's queue space.
 *	 2. Interrupts are held from queueing to the end of the commit; cancel and terminate are polled for while waiting.
 *	 3. Once PROPOSED the only ways out are the grant, a rejection from the log, and giving up with 08007.
 *	 4. An error while the slot is held, whoever raises it, gives it up: the apply worker performs the entry.  Such an error says
 *		08007, never what class it had: the client must not take it for "not committed".
 *
 * Locks: none held while waiting but those of the transaction.
 */
#include "postgres.h"

#include <sched.h>

#include "access/xact.h"
#include "commands/async.h"
#include "libpq/pqcomm.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/predicate.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "apply/apply.h"
#include "capture/capture.h"
#include "capture/conflict_report.h"
#include "config.h"
#include "shared/commit_token.h"
#include "shared/position.h"
#include "shared/proposal_queue.h"
#include "shared/replicated_tables.h"
#include "shared/shmem.h"
#include "shared/token_memory.h"
#include "shared/writeset.h"

extern bool pq_check_connection(void);	/* libpq/libpq.h needs GSSAPI headers that the server package does not bring */

#define CLIENT_CHECK_INTERVAL_MS 1000
#define NOTIFY_QUEUE_LIMIT 0.95
#define NOTIFY_CHECK_INTERVAL_MS 1000
#define MAX_YIELDS 20

#define NO_SLOT (-1)

typedef struct GateState
{
	int			slot;			/* NO_SLOT outside the gate */
	uint64		sequence;
	uint64		after_index;	/* chosen before it was queued, so not its own */
	uint64		nonce;			/* of a write set without a token */
	bool		granted;
	bool		interrupts_held;
	bool		override_sync;
	int			saved_synchronous_commit;
	TimestampTz queued_at;
	ErrorContextCallback error_context;	/* on the stack while the slot is held */
} GateState;

static GateState gate = {.slot = NO_SLOT};

/* ---- outcomes ---- */

/*
 * The incarnation is the one that proposed it, whatever the worker's is by now.  The node's number never changes.
 */
static const char *
token_text(void)
{
	ProposalOutcome outcome;
	ProposalToken token;

	if (quorum_token[0] != '\0')
		return pstrdup(quorum_token);
	proposal_poll(gate.slot, &outcome);
	token.origin = QuorumShmem->identity.node_id;
	token.incarnation = outcome.incarnation;
	token.sequence = gate.sequence;
	token.nonce = gate.nonce;
	token.after_index = gate.after_index;
	return commit_token_text(&token);
}

/* A token of our own tells itself behind which index its entry is to be looked for.  Of a client's this attempt may be a retry. */
static uint64
token_after_index(void)
{
	return quorum_token[0] == '\0' ? 0 : Min(token_promise_after_index(), gate.after_index);
}

static void
put_unknown_outcome(const char *token, uint64 after_index)
{
	char	   *behind = after_index != 0 ? psprintf(", " UINT64_FORMAT, after_index) : "";

	errcode(ERRCODE_TRANSACTION_RESOLUTION_UNKNOWN);
	errdetail("It was proposed to the quorum and may still be committed. Transaction token: %s.", token);
	errhint("SELECT * FROM quorum.outcome(%s%s) on any node tells, and makes it final.", quote_literal_cstr(token), behind);
}

/*
 * Called for each message that is made while the slot is held.  Its level cannot be asked for; a log message with the code of an error is
 * taken for one, which does no harm.
 */
static void
error_context(void *argument)
{
	int			category = ERRCODE_TO_CATEGORY(geterrcode());

	if (gate.slot == NO_SLOT || category == ERRCODE_SUCCESSFUL_COMPLETION || category == ERRCODE_WARNING)
		return;
	put_unknown_outcome(token_text(), token_after_index());
}

/* Before an error: it resets the count of held interrupts, and whoever catches it the stack of error contexts. */
static void
forget_slot(void)
{
	gate.slot = NO_SLOT;
	gate.granted = false;
	gate.interrupts_held = false;
}

/* Gives the slot up.  Afterwards the outcome is the log's alone. */
static void
abandon(void)
{
	proposal_abandon(gate.slot);
	forget_slot();
	pg_atomic_fetch_add_u64(&QuorumShmem->counters.transactions_abandoned, 1);
}

static void
report_unknown_outcome(int level, const char *why)
{
	const char *token = token_text();
	uint64		after_index = token_after_index();

	abandon();
	ereport(level,
			(errmsg("the outcome of the transaction is not known: %s", why), put_unknown_outcome(token, after_index)));
}

static void
report_rejected(const ProposalOutcome *outcome)
{
	if (outcome->log_index != 0 && outcome->verdict.reason == CERTIFIER_APPLY)
		report_unknown_outcome(ERROR, "the log has it by another index");
	proposal_release(gate.slot);
	forget_slot();
	pg_atomic_fetch_add_u64(&QuorumShmem->counters.transactions_rejected, 1);
	conflict_report(outcome->log_index, &outcome->verdict);
}

/* The regular way out. */
static void
leave(void)
{
	bool		held = gate.interrupts_held;

	forget_slot();
	error_context_stack = gate.error_context.previous;
	if (held)
		RESUME_INTERRUPTS();
}

/* Cancel and terminate while nothing has left this instance are plain ones: the caller's CHECK_FOR_INTERRUPTS raises them. */
static void
check_interrupts(void)
{
	if (!ProcDiePending && !QueryCancelPending)
		return;
	if (proposal_withdraw(gate.slot))
	{
		leave();
		CHECK_FOR_INTERRUPTS();
		ereport(ERROR, (errcode(ERRCODE_QUERY_CANCELED), errmsg("canceling statement due to user request")));
	}
	if (ProcDiePending)
		report_unknown_outcome(FATAL, "the session was terminated while it waited for the quorum");
	report_unknown_outcome(ERROR, "the statement was cancelled while it waited for the quorum");
}

static void
check_client(TimestampTz *last_check)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		connected;

	if (!TimestampDifferenceExceeds(*last_check, now, CLIENT_CHECK_INTERVAL_MS))
		return;
	*last_check = now;
	if (MyProcPort == NULL)
		return;
	connected = pq_check_connection();
	SetLatch(MyLatch);			/* that may have swallowed a wakeup */
	if (connected)
		return;
	if (proposal_withdraw(gate.slot))
	{
		forget_slot();
		ereport(FATAL,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("client disconnected before its transaction was proposed")));
	}
	report_unknown_outcome(FATAL, "the client disconnected while its transaction waited for the quorum");
}

static void
check_timeout(void)
{
	if (quorum_commit_timeout_ms == 0 ||
		!TimestampDifferenceExceeds(gate.queued_at, GetCurrentTimestamp(), quorum_commit_timeout_ms))
		return;
	if (proposal_withdraw(gate.slot))
	{
		forget_slot();
		gate_report_no_writes();
	}
	report_unknown_outcome(ERROR, "quorum.commit_timeout has passed");
}

/* ---- waiting ---- */

static long
wait_timeout_ms(void)
{
	long		left_ms;

	if (quorum_commit_timeout_ms == 0)
		return CLIENT_CHECK_INTERVAL_MS;
	left_ms = quorum_commit_timeout_ms - TimestampDifferenceMilliseconds(gate.queued_at, GetCurrentTimestamp());
	return Max(1, Min(left_ms + 1, CLIENT_CHECK_INTERVAL_MS));
}

/*
 * The predecessor in the log was woken just before, so it often runs right now, or is next on this CPU: letting it go first is cheaper than
 * to sleep and be woken again.
 */
static bool
write_set_is_settled(void)
{
	ProposalOutcome outcome;

	for (int yields = 0; !proposal_take_turn(gate.slot); yields++)
	{
		proposal_poll(gate.slot, &outcome);
		if (outcome.state != PROPOSAL_CHOSEN || yields == MAX_YIELDS)
			return false;
		sched_yield();
	}
	return true;
}

/* A detached proposal is settled once this node has applied it; a configuration once it is chosen. */
static bool
detached_is_settled(void)
{
	ProposalOutcome outcome;

	proposal_poll(gate.slot, &outcome);
	return outcome.state == PROPOSAL_CHOSEN && turn_applied_index() >= outcome.log_index;
}

/* Returns once `is_settled`; raises every other end. */
static void
wait_for_verdict(bool (*is_settled) (void), long longest_wait_ms)
{
	TimestampTz last_client_check = gate.queued_at;

	for (;;)
	{
		ProposalOutcome outcome;
		long		timeout_ms = Min(wait_timeout_ms(), longest_wait_ms);

		ResetLatch(MyLatch);
		if (is_settled())
			return;
		proposal_poll(gate.slot, &outcome);
		if (outcome.state == PROPOSAL_REJECTED)
			report_rejected(&outcome);
		if (outcome.state == PROPOSAL_REFUSED)
		{
			proposal_release(gate.slot);
			forget_slot();
			pg_atomic_fetch_add_u64(&QuorumShmem->counters.transactions_refused, 1);
			gate_report_no_writes();
		}
		if (outcome.lost)
			report_unknown_outcome(ERROR, "the consensus worker was restarted, or leads no more");
		if (outcome.must_yield)
			report_unknown_outcome(ERROR, "it held a lock that an earlier entry of the log needs");
		check_interrupts();
		check_client(&last_client_check);
		check_timeout();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, timeout_ms, PG_WAIT_EXTENSION);
	}
}

/* A write set whose client chose no token gets a random one. */
static void
put_nonce(ProposalKind kind, char *payload, Size length)
{
	WriteSetHeader header;

	gate.nonce = 0;
	if (kind == PROPOSAL_MEMBER_CHANGE || !writeset_peek_header(payload, length, &header) || header.token != 0)
		return;
	while (gate.nonce == 0)
		if (!pg_strong_random(&gate.nonce, sizeof(gate.nonce)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not draw a random number for the transaction")));
	writeset_set_nonce(payload, gate.nonce);
}

static void
enter(ProposalKind kind, char *payload, Size length)
{
	if (length > (Size) quorum_max_transaction_kb * 1024)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("transaction is too large to be replicated"),
				 errdetail("Its write set has %zu kB; quorum.max_transaction_size is %d kB.",
						   length / 1024, quorum_max_transaction_kb),
				 errhint("Split it into smaller transactions, or raise the limit.")));
	put_nonce(kind, payload, length);
	gate.after_index = turn_chosen_index();
	gate.slot = proposal_submit(kind, payload, length, &gate.sequence);
	gate.queued_at = GetCurrentTimestamp();
	gate.granted = false;
	gate.interrupts_held = true;
	HOLD_INTERRUPTS();
	gate.error_context.callback = error_context;
	gate.error_context.previous = error_context_stack;
	error_context_stack = &gate.error_context;
}

/* ---- the transaction's own gate ---- */

/*
 * Whether this transaction notifies cannot be asked for, and looking at the queue takes an exclusive lock, so it is looked at once in a second.
 * The queue does not fill up in that time; if it did, the error after the grant would be an honest 08007.
 */
static void
check_notify_queue(void)
{
	static TimestampTz last_check = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (!TimestampDifferenceExceeds(last_check, now, NOTIFY_CHECK_INTERVAL_MS))
		return;
	if (DatumGetFloat8(DirectFunctionCall1(pg_notification_queue_usage, (Datum) 0)) > NOTIFY_QUEUE_LIMIT)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("too many notifications in the NOTIFY queue to commit a replicated transaction safely"),
				 errhint("See pg_notification_queue_usage().")));
	last_check = now;
}

/* All that may fail later in CommitTransaction and can be tried now. */
static void
check_before_proposing(void)
{
	PreCommit_CheckForSerializationFailure();
	check_notify_queue();
	gate_check_may_write();
	token_promise_check();
}

/* Durability is the quorum's journal: the local WAL need not be flushed, unless local tables depend on it. */
static void
relax_local_commit(void)
{
	if (synchronous_commit == SYNCHRONOUS_COMMIT_OFF || capture_wrote_local_tables())
		return;
	gate.saved_synchronous_commit = synchronous_commit;
	gate.override_sync = true;
	synchronous_commit = SYNCHRONOUS_COMMIT_OFF;
}

static void
pre_commit(void)
{
	StringInfoData payload;
	ProposalOutcome outcome;

	if (am_apply_worker || capture_is_empty())
		return;
	check_before_proposing();
	initStringInfo(&payload);
	capture_encode(&payload);
	enter(PROPOSAL_WRITE_SET, payload.data, payload.len);
	pfree(payload.data);
	wait_for_verdict(write_set_is_settled, CLIENT_CHECK_INTERVAL_MS);
	gate.granted = true;
	proposal_poll(gate.slot, &outcome);
	pg_atomic_fetch_add_u64(&QuorumShmem->counters.commit_wait_us, GetCurrentTimestamp() - gate.queued_at);
	position_update(outcome.log_index);
	relax_local_commit();
}

static void
restore_synchronous_commit(void)
{
	if (gate.override_sync)
		synchronous_commit = gate.saved_synchronous_commit;
	gate.override_sync = false;
}

static void
at_commit(void)
{
	restore_synchronous_commit();
	if (gate.granted)
	{
		position_at_commit();
		proposal_finish(gate.slot);
		pg_atomic_fetch_add_u64(&QuorumShmem->counters.transactions_committed, 1);
		leave();
	}
	capture_reset();
	token_promise_forget();
	doom_forget();
}

/* The error has reset the count of held interrupts already, so none is resumed here. */
static void
at_abort(void)
{
	restore_synchronous_commit();
	if (gate.slot != NO_SLOT && !proposal_withdraw(gate.slot))
		abandon();
	forget_slot();
	position_at_abort();
	capture_reset();
	token_promise_forget();
	doom_forget();
}

/* A prepared transaction cannot be aborted, so none may hold what the apply worker could have to wait for: locks of rows, or of tables. */
static void
pre_prepare(void)
{
	if (!capture_is_empty())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot PREPARE a transaction that has written replicated tables"),
				 errhint("Use COMMIT: it already is agreed on by a quorum.")));
	if (!am_apply_worker && replicated_table_is_locked_here())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot PREPARE a transaction that has used replicated tables"),
				 errdetail("Its locks would stand in the way of what a quorum agrees on."),
				 errhint("Use COMMIT, or read replicated tables in a transaction of their own.")));
}

static void
transaction_callback(XactEvent event, void *argument)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			pre_commit();
			break;
		case XACT_EVENT_PRE_PREPARE:
			pre_prepare();
			break;
		case XACT_EVENT_COMMIT:
			if (!am_apply_worker)
				at_commit();
			break;
		case XACT_EVENT_PREPARE:
			if (!am_apply_worker)
				capture_reset();	/* savepoints that were rolled back may have left something */
			break;
		case XACT_EVENT_ABORT:
			if (!am_apply_worker)
				at_abort();
			break;
		default:
			break;
	}
}

void
commit_gate_init(void)
{
	RegisterXactCallback(transaction_callback, NULL);
}

/* ---- entries that do not ride on the local transaction ---- */

static ProposalOutcome
submit_and_wait(ProposalKind kind, char *payload, Size length, bool (*is_settled) (void))
{
	ProposalOutcome outcome;

	if (pg_atomic_read_u32(&QuorumShmem->may_write) == 0)
		gate_report_no_writes();
	enter(kind, payload, length);
	wait_for_verdict(is_settled, CLIENT_CHECK_INTERVAL_MS);
	proposal_poll(gate.slot, &outcome);
	proposal_release(gate.slot);
	leave();
	return outcome;
}

static ProposalOutcome
propose_and_wait(ProposalKind kind, char *payload, Size length, bool (*is_settled) (void))
{
	gate_check_may_write();
	return submit_and_wait(kind, payload, length, is_settled);
}

uint64
gate_propose_detached(char *payload, Size length)
{
	return propose_and_wait(PROPOSAL_DETACHED, payload, length, detached_is_settled).log_index;
}

static bool
check_is_settled(void)
{
	ProposalOutcome outcome;

	proposal_poll(gate.slot, &outcome);
	return outcome.state == PROPOSAL_CHOSEN;
}

uint64
gate_propose_check(char *payload, Size length)
{
	return submit_and_wait(PROPOSAL_DETACHED, payload, length, check_is_settled).log_index;
}

/*
 * A rejection by the log is an answer too.  But not that this transaction stands in the way, for then the fence was never proposed; nor that the log has the
 * fence by another index, for what was found there is not known here.
 */
static bool
fence_is_settled(void)
{
	ProposalOutcome outcome;

	proposal_poll(gate.slot, &outcome);
	return (outcome.state == PROPOSAL_REJECTED && outcome.verdict.reason != CERTIFIER_APPLY) || detached_is_settled();
}

static void
encode_fence(StringInfo payload, uint64 token)
{
	initStringInfo(payload);
	writeset_begin(payload);
	writeset_finish(payload, 0, WRITESET_FENCE, token, 0, 0);
}

/* In an entry of its own: a fence with keys might be rejected by them, and answer nothing.  They depend on nothing that is applied here. */
static void
put_marks(void)
{
	StringInfoData payload;
	uint32		count;

	initStringInfo(&payload);
	writeset_begin(&payload);
	count = token_promise_put_marks(&payload);
	writeset_finish(&payload, turn_chosen_index(), 0, 0, count, 0);
	if (count > 0)
		(void) propose_and_wait(PROPOSAL_DETACHED, payload.data, payload.len, check_is_settled);
	pfree(payload.data);
}

uint64
gate_propose_fence(uint64 token, CertifierVerdict *verdict)
{
	StringInfoData payload;
	ProposalOutcome outcome;

	token_memory_check_room(true);
	put_marks();
	token_memory_take_fence();
	encode_fence(&payload, token);
	outcome = propose_and_wait(PROPOSAL_DETACHED, payload.data, payload.len, fence_is_settled);
	if (outcome.state == PROPOSAL_REJECTED)
		token_memory_give_back_fence();
	*verdict = outcome.verdict;
	return outcome.log_index;
}

/* Not waited for until it is applied: the caller's transaction may stand in the way of that. */
void
gate_put_fence_of_nothing(void)
{
	StringInfoData payload;
	uint64		token;

	if (!pg_strong_random(&token, sizeof(token)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not draw a random number for the transaction")));
	encode_fence(&payload, Max(token, 1));
	(void) submit_and_wait(PROPOSAL_DETACHED, payload.data, payload.len, check_is_settled);
	pfree(payload.data);
}

/* That the worker finds it impossible is an answer too. */
static bool
change_is_settled(void)
{
	ProposalOutcome outcome;

	proposal_poll(gate.slot, &outcome);
	return (outcome.state == PROPOSAL_REJECTED && proposal_own_doom() == NULL) || detached_is_settled();
}

uint64
gate_propose_member_change(const MemberChange *change)
{
	MemberChange payload = *change;
	ProposalOutcome outcome = propose_and_wait(PROPOSAL_MEMBER_CHANGE, (char *) &payload, sizeof(payload), change_is_settled);

	return outcome.state == PROPOSAL_REJECTED ? 0 : outcome.log_index;
}
