/*
 * proposal_queue.h
 *	  Proposals on their way from client backends to the log, and the order of commits.
 *
 * A proposal lives in a slot of a fixed array.  States in the order in which they occur, with what leaves each:
 *
 *	 FREE		acquire -> QUEUED
 *	 QUEUED		consensus worker takes it -> PROPOSED; worker sees no quorum for a while -> REFUSED (25006);
 *				backend cancels -> FREE (nothing left this instance: plain cancel)
 *	 PROPOSED	learned, verdict apply -> CHOSEN; verdict reject, or a duplicate that took no effect -> REJECTED (40001);
 *				backend gives up (cancel, terminate, commit_timeout, error) -> FREE or ABANDONED (08007)
 *	 CHOSEN		its turn has come and the backend takes it -> GRANTED; backend gives up -> FREE (08007)
 *	 GRANTED	commit -> FREE, the turn passes on; error -> FREE (08007)
 *	 REFUSED, REJECTED	backend -> FREE
 *	 ABANDONED	no backend owns it any more, but the consensus worker still reads the payload; it frees the slot
 *
 * Who owns an index stands in the log item (origin, incarnation, sequence) alone: a slot is found by its sequence.  An entry whose backend has
 * given up is the apply worker's.
 *
 * Invariants
 *	 1. applied_index grows by whoever finished index applied_index + 1, and only after its local commit is visible.
 *	 2. A backend is GRANTED only while applied_index + 1 is its own index.
 *	 3. waiting_index[s] != 0 iff slot s is CHOSEN or GRANTED with that index, and not detached.
 *
 * All of it under TurnState->mutex; SetLatch is called after it is released.
 */
#ifndef QUORUM_PROPOSAL_QUEUE_H
#define QUORUM_PROPOSAL_QUEUE_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "storage/backendid.h"
#include "storage/itemptr.h"
#include "storage/latch.h"

#include "shared/certifier.h"

typedef enum ProposalState
{
	PROPOSAL_FREE = 0,
	PROPOSAL_QUEUED,
	PROPOSAL_PROPOSED,
	PROPOSAL_CHOSEN,
	PROPOSAL_GRANTED,
	PROPOSAL_REJECTED,
	PROPOSAL_REFUSED,
	PROPOSAL_ABANDONED
} ProposalState;

typedef enum ProposalKind
{
	PROPOSAL_WRITE_SET,			/* payload is an encoded write set; the backend commits it in its turn */
	PROPOSAL_DETACHED,			/* payload is an encoded write set that apply workers perform, here too; the backend only waits */
	PROPOSAL_MEMBER_CHANGE		/* payload is a MemberChange; the consensus worker makes the configuration entry */
} ProposalKind;

typedef struct ProposalOutcome
{
	ProposalState state;		/* CHOSEN, REJECTED or REFUSED; QUEUED or PROPOSED while still open */
	uint64		log_index;
	CertifierVerdict verdict;	/* REJECTED; reason CERTIFIER_APPLY: it stood in the way, or (with an index) the log has it by another one */
	uint64		incarnation;	/* of this node when it was proposed; 0: it was not */
	bool		my_turn;		/* CHOSEN and applied_index + 1 == log_index */
	bool		lost;			/* the consensus worker that had proposed it is gone, or (a configuration) leads no more: the outcome will not be told */
	bool		must_yield;		/* CHOSEN: it holds what an earlier entry needs, so it can never have its turn */
} ProposalOutcome;

/* A local transaction that stands in the way of an agreed entry. */
typedef struct DoomedTransaction
{
	LocalTransactionId transaction;
	uint64		log_index;		/* of the entry that is being applied */
	char		node_name[NAMEDATALEN]; /* of its node */
	TimestampTz doomed_at;
	bool		is_told;		/* by a signal, or it ends by itself; else by an error only, which a block may have caught */
} DoomedTransaction;

extern Size proposal_queue_shmem_size(void);
extern void proposal_queue_shmem_startup(void);

/* ---- client backends ---- */

/*
 * Queues a payload (copied to shared memory) and returns the slot number.  Errors: 53400 no free slot or no memory;
 * 40001 if the transaction was doomed.
 * *sequence, with the incarnation in which it was proposed (proposal_poll), is the token of the proposal.
 */
extern int	proposal_submit(ProposalKind kind, const char *payload, Size length, uint64 *sequence);

extern void proposal_poll(int slot, ProposalOutcome *outcome);
extern bool proposal_take_turn(int slot);		/* CHOSEN and its turn -> GRANTED */
extern bool proposal_withdraw(int slot);		/* QUEUED -> FREE; false: it has left already */
extern void proposal_abandon(int slot);			/* PROPOSED, CHOSEN or GRANTED: the log decides without its backend */
extern void proposal_release(int slot);			/* REJECTED or REFUSED, or detached and CHOSEN -> FREE */
extern void proposal_finish(int slot);			/* GRANTED, at XACT_EVENT_COMMIT: FREE, and turn_pass */

/* Is this backend's current transaction doomed by the lock watcher?  Then what it stood in the way of; takes no lock. */
extern const DoomedTransaction *proposal_own_doom(void);

/* At the end of a transaction; true: it was doomed. */
extern bool proposal_forget_own_doom(void);

/* ---- order of commits ---- */

/* `index` is committed and visible here (or had nothing to do): wakes whoever owns the next one. */
extern void turn_pass(uint64 index);
extern uint64 turn_applied_index(void);

/*
 * Who has the turn of `index` is about to commit it as `transaction`.  A commit becomes visible, and gives up row locks, a moment before it passes the
 * turn on; whoever takes one of these locks within that moment has seen the entry, and turn_committed_index() tells: it is applied_index, or that of
 * the commit which has not passed its turn on yet.
 */
extern void turn_announce(uint64 index, TransactionId transaction);
extern void turn_withdraw(TransactionId transaction);	/* it was announced, and aborts */
extern uint64 turn_committed_index(void);

/* The log is readable up to here: chosen_index, which may be published a moment after a backend has committed its entry. */
extern uint64 turn_chosen_index(void);

/* Does a local backend own `index` (it is CHOSEN or GRANTED)?  Then the apply worker leaves it alone. */
extern bool turn_is_owned(uint64 index);

/* Position row: its TID, valid once the apply worker has found it at start. */
extern bool position_get_tid(ItemPointer tid);
extern void position_set_tid(const ItemPointerData *tid);

/* Start of the apply worker: what the position row says. */
extern void turn_set_applied(uint64 applied_index);
extern uint64 turn_index_of_position(uint64 position_index);	/* how far the tables are, by the row's index: further, if nothing took effect since */

/* The node has left its cluster: as after the start of the server.  No worker may be at work. */
extern void turn_forget(void);
extern bool turn_is_initialised(void);

/*
 * The tables are about to be replaced by those of another node: until turn_resume() no local transaction is granted its turn, and none is
 * proposed.  Those that have proposed can never have their turn any more, and are told to give up (08007).  False: one is committing just now.
 * Only the apply worker calls these two.
 */
extern bool turn_suspend(void);
extern void turn_resume(void);
extern bool turn_is_suspended(void);

/* ---- consensus worker ---- */
typedef struct QueuedProposal
{
	int			slot;
	ProposalKind kind;
	uint64		sequence;
	const char *payload;		/* in shared memory; valid until proposal_payload_done */
	Size		length;
} QueuedProposal;

#define PROPOSAL_BATCH 64			/* so many queued ones wake the consensus worker whatever is in flight */

extern int	proposal_queued_count(void);
extern void proposal_queue_reset_owner(void);	/* worker started: what an earlier worker had PROPOSED is marked lost */
extern bool proposal_take_queued(QueuedProposal *proposal);	/* oldest QUEUED one -> PROPOSED; its payload stays until … */
extern void proposal_payload_done(int slot);	/* … here: the core has its copy */
extern void proposal_put_back(int slot);		/* the core had no room: QUEUED again, as the oldest */
extern void proposal_refuse_taken(int slot);	/* it cannot be proposed by this node: REFUSED */
extern uint64 proposal_next_sequence(void);		/* for the worker's own configuration entries */
extern void proposal_lose(uint64 sequence);		/* PROPOSED, a configuration whose leader was deposed: lost */
extern void proposal_refuse_queued(int older_than_ms);	/* all QUEUED ones that wait for longer */

/*
 * Entry `index` with that sequence of this node and incarnation was delivered; `apply`: it takes effect, else the verdict says why not.  Call in
 * log order, before chosen_index is published with publish_chosen_index.
 */
extern void proposal_learned(uint64 sequence, uint64 index, bool apply, const CertifierVerdict *verdict);

/* Returns true if entries wait for the apply worker; the caller is to wake it, at once or with more of them together. */
extern bool publish_chosen_index(uint64 index);

/* ---- lock watcher ---- */

/*
 * A backend's current local transaction stands in the way of an agreed entry.  Unless it has proposed, it may not any more: its proposal_submit
 * raises 40001, and one that is QUEUED is rejected at once.  Returns true if the caller is to cancel it; false if nothing is to be
 * done: one that has proposed is never signalled, its verdict comes from the log; nor is one twice, or one that knows already that it is
 * rejected: a signal that comes while it is being aborted would end its session.  (One that had asked something else of the log, and is in the way all the same
 * a second later, has caught the error, and is signalled then.)  If that is there and says "apply" all the same, the transaction
 * holds a lock that is not among its keys, and has to give way (must_yield).
 */
extern bool proposal_doom(int pid, BackendId backend_id, const DoomedTransaction *doomed);

#endif							/* QUORUM_PROPOSAL_QUEUE_H */
