/*
 * capture.h
 *	  The write set of the current transaction.  Process: client backend.
 */
#ifndef QUORUM_CAPTURE_H
#define QUORUM_CAPTURE_H

#include "postgres.h"

#include "lib/stringinfo.h"

#include "shared/certifier.h"
#include "shared/member_change.h"

/* Registers the subtransaction callback; call in _PG_init. */
extern void capture_init(void);

extern bool capture_is_empty(void);

/* Adds a control operation of a table (already encoded: operation byte and body) at the end; the caller holds a strong lock of the table. */
extern void capture_add_control(const char *bytes, Size length, uint64 table_id, Oid relid);

/* Sorts by command, encodes; the buffer lives in the current memory context. */
extern void capture_encode(StringInfo payload);

/* Did this transaction write a permanent relation that is not replicated (catalogs included)? */
extern bool capture_wrote_local_tables(void);

extern void capture_reset(void);	/* end of transaction */

/* capture/may_write.c: raises 25006, which says why, unless this node may take writes now. */
extern void gate_check_may_write(void);

/* That error, for what has been refused. */
extern void gate_report_no_writes(void) pg_attribute_noreturn();

/* capture/row_locks.c: locked rows, and what serializable transactions read; call in _PG_init. */
extern void row_locks_init(void);

/* capture/doom_message.c: what a session is told that stood in the way; call in _PG_init. */
extern void doom_message_init(void);
extern void doom_forget(void);	/* at the end of each transaction, once it is over for the others */

/* capture/drawn_numbers.c: a duplicate of a number from a sequence is a conflict, 40001; call in _PG_init. */
extern void drawn_numbers_init(void);

/* capture/guard.c: refuses DDL on replicated tables; call in _PG_init. */
extern void guard_init(void);

/* capture/maintenance_scope.c: CREATE INDEX and its like are not aborted but waited for; call in _PG_init. */
extern void maintenance_scope_init(void);

/* capture/quarantine.c: refuses to read tables that are known to differ; call in _PG_init, after the read barrier. */
extern void quarantine_init(void);

/* capture/read_barrier.c: linearizable reads; call in _PG_init. */
extern void read_barrier_init(void);

/* capture/commit_gate.c: registers the transaction callback; call in _PG_init, so that it runs last of all PRE_COMMIT callbacks. */
extern void commit_gate_init(void);

/* Proposes a payload that every apply worker performs, and waits until this node has applied it; returns its index.  Interruptible. */
extern uint64 gate_propose_detached(char *payload, Size length);

/*
 * The same, but returns as soon as the entry is chosen and its index known: for entries of checks, during which the apply worker
 * waits for its caller.  A node whose copy of a table is quarantined may propose them.
 */
extern uint64 gate_propose_check(char *payload, Size length);

/*
 * Proposes that whatever has the token (commit_token.h) is to take no effect.  The verdict says whether that came in time: CERTIFIER_APPLY, or
 * CERTIFIER_FENCED if it had been said before; CERTIFIER_TOKEN_COMMITTED if not.  Returns the index.
 */
extern uint64 gate_propose_fence(uint64 token, CertifierVerdict *verdict);

/* A fence of nothing; returns once it is chosen. */
extern void gate_put_fence_of_nothing(void);

/* capture/token_promise.c: raises unless it may be promised that the transaction's quorum.token, if it has one, takes effect only once. */
extern void token_promise_check(void);

/* For an entry of its own, before a fence is put: keys that mark the epochs of tokens that are not; returns how many. */
extern uint32 token_promise_put_marks(StringInfo payload);

/*
 * After token_promise_check: the highest base that keeps the promise; the index behind which attempts with the token stand (PG_UINT64_MAX: nothing is said
 * of that).
 */
extern uint64 token_promise_highest_base(void);
extern uint64 token_promise_after_index(void);

/* It was rejected, so that its client will try again: raises if the next attempt could not tell whether there was an earlier one. */
extern void token_promise_check_rejected(void);

/* At the end of the transaction. */
extern void token_promise_forget(void);

/*
 * On the leader: proposes a change of the members, and waits until its configuration entry is chosen and passed here; returns its index.  0: another
 * change came first, after which this one is impossible (name in use, too many members, gone already, the last voter); the status tells.
 */
extern uint64 gate_propose_member_change(const MemberChange *change);

#endif							/* QUORUM_CAPTURE_H */
