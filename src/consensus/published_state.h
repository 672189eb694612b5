/*
 * published_state.h
 *	  What read probes are answered from: the core's PaxosReadState in shared memory, written by the consensus worker, read by stream backends.
 */
#ifndef QUORUM_PUBLISHED_STATE_H
#define QUORUM_PUBLISHED_STATE_H

#include "postgres.h"

#include "consensus/core/paxos.h"

/* ---- postmaster ---- */
extern void published_state_init(void);	/* stream backends answer probes from now on */
extern Size published_state_shmem_size(void);
extern void published_state_shmem_startup(void);

/* ---- consensus worker ---- */

/* Before any effect of the step that has just been done is carried out.  Costs a comparison if nothing changed. */
extern void published_state_update(const PaxosCore *core);

/* Nothing is answered until the next update: the worker begins, or ends. */
extern void published_state_withdraw(void);

#endif							/* QUORUM_PUBLISHED_STATE_H */
