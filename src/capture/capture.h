/*
 * capture.h
 *	  The write set of the current transaction.  Process: client backend.
 */
#ifndef QUORUM_CAPTURE_H
#define QUORUM_CAPTURE_H

#include "postgres.h"

#include "lib/stringinfo.h"

/* Registers the subtransaction callback; call in _PG_init. */
extern void capture_init(void);

extern bool capture_is_empty(void);

/* Adds a control operation (already encoded: operation byte and body) at the end; notes base and orphan epoch like a row. */
extern void capture_add_control(const char *bytes, Size length);

/* Sorts by command, encodes; the buffer lives in the current memory context. */
extern void capture_encode(StringInfo payload);
extern uint64 capture_base(void);
extern uint64 capture_orphan_epoch(void);

/* Did this transaction write a permanent relation that is not replicated (catalogs included)? */
extern bool capture_wrote_local_tables(void);

extern void capture_reset(void);	/* end of transaction */

/* Raises 25006 (name and conninfo of the leader in the HINT) unless this node may take writes now. */
extern void gate_check_may_write(void);

/* capture/guard.c: refuses DDL on replicated tables; call in _PG_init. */
extern void guard_init(void);

/* capture/read_barrier.c: linearizable reads; call in _PG_init. */
extern void read_barrier_init(void);

/* capture/commit_gate.c: registers the transaction callback; call in _PG_init, so that it runs last of all PRE_COMMIT callbacks. */
extern void commit_gate_init(void);

/* Proposes a payload that every apply worker performs, and waits until this node has applied it; returns its index.  Interruptible. */
extern uint64 gate_propose_detached(const char *payload, Size length);

/* Proposes a new member and waits for its configuration entry to be chosen. */
extern uint64 gate_propose_member(const char *node_name, const char *conninfo);

#endif							/* QUORUM_CAPTURE_H */
