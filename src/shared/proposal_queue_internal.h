/*
 * proposal_queue_internal.h
 *	  The shared memory behind proposal_queue.h, for proposal_queue.c (slots, queue, verdicts) and turn.c (order of commits).
 */
#ifndef QUORUM_PROPOSAL_QUEUE_INTERNAL_H
#define QUORUM_PROPOSAL_QUEUE_INTERNAL_H

#include "postgres.h"

#include "storage/spin.h"
#include "utils/dsa.h"
#include "utils/timestamp.h"

#include "shared/proposal_queue.h"

#define NO_SLOT (-1)
typedef struct ProposalSlot
{
	ProposalState state;
	ProposalKind kind;
	uint64		incarnation;	/* of the worker that has proposed it; 0: not proposed */
	uint64		sequence;
	uint64		log_index;
	CertifierVerdict verdict;
	dsa_pointer payload;
	uint32		length;
	int			pid;			/* of the backend that waits; 0: none */
	LocalTransactionId transaction; /* its, of which this is */
	Latch	   *latch;
	TimestampTz queued_at;
	bool		lost;
	bool		must_yield;
	int			next;			/* in the list of queued ones (oldest first) or of free ones */
	int			previous;
} ProposalSlot;

typedef struct ProposalQueue
{
	slock_t		mutex;
	int			slot_count;
	int			free_head;
	int			queue_head;
	int			queue_tail;
	int			queued_count;
	uint64		next_sequence;

	/* order of commits */
	bool		turn_initialised;
	bool		turn_suspended;
	uint64		applied_index;
	uint64		announced_index;	/* the last that somebody was about to commit, … */
	TransactionId announced_transaction;	/* … and as which transaction */
	int			detached_waiting;	/* CHOSEN ones that are no write set: their backend waits for applied_index */
	bool		position_valid;
	ItemPointerData position_tid;

	ProposalSlot slots[FLEXIBLE_ARRAY_MEMBER];
} ProposalQueue;

extern ProposalQueue *proposal_queue;

/* By backend id: the local transaction that may not submit any more, and what it stands in the way of.  Under the mutex. */
extern DoomedTransaction *doomed_transactions;

/* Dense, so that the owner of the next turn is found within a few cache lines. */
extern uint64 *waiting_index;

/* Under the mutex: returns the payload that the caller is to free once the mutex is released. */
extern dsa_pointer proposal_free_slot(int slot);

#endif							/* QUORUM_PROPOSAL_QUEUE_INTERNAL_H */
