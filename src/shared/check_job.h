/*
 * check_job.h
 *	  How the apply worker hands a table over at an exact log index: to the check worker, which sums its rows up or holds them for
 *	  another node, and to a session that compares them with another node's.
 *
 * At the entry of a check the apply worker has the turn, and no transaction that changes replicated tables can commit.  Whoever
 * takes a snapshot then has exactly the log's prefix before that entry.  So the apply worker offers the job and waits until it is
 * taken, that is, until the other process has its lock and its snapshot; then the log goes on, whatever that process does with it,
 * and for how long.
 *
 * States of a job, in the order in which they occur:
 *	 FREE		the apply worker offers a job -> OFFERED
 *	 OFFERED	the check worker has lock and snapshot -> TAKEN; it cannot get them -> REFUSED; the apply worker's patience is over -> FREE
 *	 TAKEN		the check worker is done with the table -> FREE
 *	 REFUSED	the apply worker has seen it -> FREE
 *
 * All of it is under QuorumShmem->lock.
 */
#ifndef QUORUM_CHECK_JOB_H
#define QUORUM_CHECK_JOB_H

#include "postgres.h"

#include "storage/latch.h"

#define CHECK_SNAPSHOT_NAME_LENGTH 64

typedef enum CheckJobState
{
	CHECK_JOB_FREE = 0,
	CHECK_JOB_OFFERED,
	CHECK_JOB_TAKEN,
	CHECK_JOB_REFUSED
} CheckJobState;

typedef enum CheckJobKind
{
	CHECK_JOB_SUM,				/* the rows are to be summed up, and the sum to be proposed */
	CHECK_JOB_HOLD				/* the snapshot is to be held for a node that compares its rows with these */
} CheckJobKind;

typedef struct CheckJob
{
	CheckJobState state;
	CheckJobKind kind;
	uint64		index;			/* of the entry */
	uint64		table_id;
	Oid			relid;
	bool		gently;
	bool		released;		/* HOLD: who wanted the snapshot has it */
	char		snapshot_name[CHECK_SNAPSHOT_NAME_LENGTH];	/* HOLD, once TAKEN: exported */
} CheckJob;

/* Checks that this node could not take part in, and has to say so. */
#define SKIPPED_CHECKS_KEPT 16

typedef struct SkippedCheck
{
	uint64		index;
	uint64		table_id;
} SkippedCheck;

typedef struct SkippedChecks
{
	int			count;
	SkippedCheck items[SKIPPED_CHECKS_KEPT];
} SkippedChecks;

/*
 * A session on the node that differs.  States: WAITING for the entry -> AT_INDEX: it has been reached, the log stands still on this
 * node -> GO_ON, the session needs nothing more of it, or REPAIR, the corrections (repair_file.h) are to be performed -> DONE or
 * FAILED.
 */
typedef enum CompareState
{
	COMPARE_WAITING,
	COMPARE_AT_INDEX,
	COMPARE_GO_ON,
	COMPARE_REPAIR,
	COMPARE_DONE,
	COMPARE_FAILED
} CompareState;

typedef struct CompareSession
{
	int			pid;			/* 0: none */
	Latch	   *latch;
	uint64		nonce;			/* of the entry that it has proposed */
	CompareState state;
	char		message[256];	/* FAILED: why */
} CompareSession;

/* ---- apply worker ---- */

/* Its start: what an earlier one had offered is gone. */
extern void check_job_reset(void);

/* Waits, for a moment, until the check worker has taken it.  False: it has not; then the log goes on without. */
extern bool check_job_hand_over(CheckJobKind kind, uint64 index, uint64 table_id, Oid relid, bool gently);

/* This node has no sum for that check; the check worker is to tell the others. */
extern void check_job_note_skipped(uint64 index, uint64 table_id);

/*
 * Is there a session that waits for the entry with that nonce?  Then it goes on, and this waits until it is done with the table.
 * Interruptible.
 */
extern CompareState compare_session_hand_over(uint64 nonce);
extern void compare_session_finish(const char *error_message);	/* NULL: DONE */

/* ---- check worker ---- */

extern void check_worker_publish(Latch *latch);	/* NULL: it goes */
extern bool check_job_get(CheckJob *job);		/* is one OFFERED? */
extern bool check_job_take(const char *snapshot_name);	/* false: too late, it was withdrawn */
extern void check_job_refuse(void);
extern void check_job_done(void);
extern bool check_job_is_released(void);
extern bool check_job_next_skipped(SkippedCheck *skipped);	/* takes it out */

/* ---- client backends ---- */

/* A HOLD job at that index: its snapshot, palloc'd, or NULL; and then that it is not needed any more. */
extern char *check_job_held_snapshot(uint64 index);
extern void check_job_release(uint64 index);

/* 55006 if there is a session already. */
extern void compare_session_begin(uint64 nonce);
extern CompareState compare_session_state(void);
extern char *compare_session_message(void);	/* palloc'd */
extern void compare_session_set(CompareState state);
extern void compare_session_end(void);

#endif							/* QUORUM_CHECK_JOB_H */
