/*
 * shmem.h
 *	  The state that the processes of one instance share.  Everything here lives in main shared memory and is made anew
 *	  after a crash of any process (the postmaster restarts them all); what must survive is in the journal and in tables.
 *
 * Locks, in the order in which they may be taken (never two spinlocks at once):
 *	 1. QuorumShared->lock (LWLock): identity, members, texts.  Short; never held while waiting.
 *	 2. TurnState->mutex (spinlock): order of commits and the proposals' states (proposal_queue.h).
 *	 3. ReadRounds->mutex (spinlock): who waits for a read index (read_round.h).
 * TokenMemory->lock (LWLock, token_memory.h) is never taken together with another.
 * Single 64-bit numbers that many read are atomics; each says who writes it.
 */
#ifndef QUORUM_SHMEM_H
#define QUORUM_SHMEM_H

#include "postgres.h"

#include "port/atomics.h"
#include "storage/itemptr.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/spin.h"
#include "utils/timestamp.h"

#include "shared/acceptor_mark.h"
#include "shared/check_job.h"
#include "shared/conflicts.h"
#include "shared/generation.h"
#include "shared/snapshot_progress.h"

#define QUORUM_MAX_MEMBERS 16		/* equals PAXOS_MAX_MEMBERS */
#define QUORUM_MAX_CONNINFO 1024
#define QUORUM_DIRECTORY "pg_quorum/pgsql_tmp_journal"	/* relative to the data directory; basebackup skips such a name */

typedef enum NodeRole
{
	NODE_STOPPED = 0,			/* no worker, no cluster, or apply failed */
	NODE_LEARNER,
	NODE_FOLLOWER,
	NODE_CANDIDATE,
	NODE_LEADER,
	NODE_REMOVED				/* no member any more */
} NodeRole;

typedef struct MemberState
{
	uint32		node_id;		/* 0: free */
	char		node_name[NAMEDATALEN];
	char		conninfo[QUORUM_MAX_CONNINFO];
	bool		is_voter;
	bool		as_voter;		/* it is to be a voter, once it has caught up */
	bool		reachable;
	bool		is_older_build;	/* its link speaks version 1: it knows none of what came with version 2; leader and others alike */
	uint64		accepted_index;
	uint64		delivered_index;
	TimestampTz last_contact;	/* 0: never */
	int			round_trip_ms;	/* -1: not known */
} MemberState;

/* Published by the consensus worker after each loop in which something changed; read under QuorumShared->lock. */
typedef struct NodeStatus
{
	NodeRole	role;
	uint32		leader_id;
	uint64		ballot_round;
	uint32		ballot_node_id;
	bool		has_quorum;
	int			voter_count;
	int			voters_reachable;
	int			quorum_size;
	uint64		elections_started;
	uint64		ballots_won;
	uint64		journal_bytes;
	uint64		journal_syncs;
	uint64		frames_sent;
	uint64		frames_received;
	uint64		config_index;	/* where the configuration in force was chosen; 0: at bootstrap */
	uint32		next_node_id;	/* of that configuration: lower ids that are no member's were removed */
	int			member_count;
	MemberState members[QUORUM_MAX_MEMBERS];	/* this node included, as long as it is a member */
} NodeStatus;

/* Who this node is.  Set once by the consensus worker when it finds its journal; node_id 0 until then. */
typedef struct NodeIdentity
{
	uint64		cluster_id;
	uint32		node_id;
	uint64		incarnation;	/* of this start of the worker */
	char		node_name[NAMEDATALEN];
	char		conninfo[QUORUM_MAX_CONNINFO];
	ClusterGeneration generation;	/* constant too: whoever is to change it restarts the worker */
} NodeIdentity;

/* Inbound stream of one peer: the stream backend publishes a DSM segment with a shm_mq, the worker attaches.  See transport.h. */
typedef struct StreamSlot
{
	uint32		node_id;		/* of the sender; 0: free */
	uint32		dsm_handle;		/* 0: none */
	uint64		generation;		/* grows with each new stream; an older backend leaves when it sees that */
	int			backend_pid;
} StreamSlot;

/* Counters for quorum.stats; each is added to with pg_atomic_fetch_add_u64 by whoever it concerns. */
typedef struct QuorumCounters
{
	pg_atomic_uint64 transactions_committed;	/* own, granted and committed by their backend */
	pg_atomic_uint64 transactions_rejected;		/* 40001 */
	pg_atomic_uint64 transactions_refused;		/* 25006 at the gate */
	pg_atomic_uint64 transactions_abandoned;	/* 08007 */
	pg_atomic_uint64 commit_wait_us;			/* sum over committed ones, from queueing to the grant */
	pg_atomic_uint64 entries_applied;			/* by the apply worker */
	pg_atomic_uint64 rows_applied;
	pg_atomic_uint64 apply_transactions;
	pg_atomic_uint64 blockers_aborted;			/* local transactions aborted because they stood in the apply worker's way */
	pg_atomic_uint64 payload_bytes_proposed;
	pg_atomic_uint64 linearizable_reads;		/* statements that waited for a read index, and got it */
	pg_atomic_uint64 read_rounds;				/* that the consensus worker began for them */
} QuorumCounters;

typedef enum LogStateWanted
{
	LOG_STATE_NOT_WANTED = 0,
	LOG_STATE_WANTED,			/* the consensus worker found that the journal has grown enough since the last */
	LOG_STATE_IN_THE_MAKING		/* the compactor is at it */
} LogStateWanted;

typedef struct QuorumShared
{
	LWLock	   *lock;
	NodeIdentity identity;		/* under lock */
	NodeStatus	status;			/* under lock */
	char		last_error[1024];	/* under lock; empty if none.  Survives until the cause is gone */
	StreamSlot	streams[QUORUM_MAX_MEMBERS];	/* under lock */
	ConflictRing conflicts;		/* under lock */
	AcceptorMark acceptor_marks[QUORUM_MAX_MEMBERS];	/* under lock; what the peers' journals are known to hold */
	uint64		acceptor_marks_generation;	/* under lock; grows with each change of them */
	bool		acceptor_marks_known;	/* under lock; those of the journal are among them; nobody is let in before */
	char		quarantine[512];	/* under lock; which tables are quarantined, and why; empty if none */
	CheckJob	check_job;		/* under lock */
	SkippedChecks skipped_checks;	/* under lock */
	CompareSession compare_session;	/* under lock */
	SnapshotProgress snapshot;	/* under lock; apply worker writes */

	Latch	   *consensus_latch;	/* NULL while that worker is down; under lock, or read unlocked for SetLatch via shmem_wake_* */
	Latch	   *apply_latch;
	Latch	   *watcher_latch;
	int			consensus_pid;
	Latch	   *compactor_latch;
	LWLock	   *log_state_lock;	/* held while the file log_state is replaced and its index published */
	Latch	   *checker_latch;
	int			apply_pid;
	int			apply_waits_for_pid;	/* maintenance that keeps an entry from being applied; 0: none.  Lock watcher writes, apply worker clears */

	pg_atomic_uint64 chosen_index;	/* readable in the chosen log up to here; consensus worker writes */
	pg_atomic_uint64 first_held_index;	/* entries below it have been dropped from the log; 0: not known yet.  Consensus worker writes */
	pg_atomic_uint64 log_state_index;	/* of the file log_state; 0: none.  Compactor writes, and the consensus worker at its start */
	pg_atomic_uint64 log_state_last_applied;	/* the last entry up to there that takes effect: tables that have it lack nothing of the state */
	pg_atomic_uint32 log_state_wanted;	/* LogStateWanted */
	pg_atomic_uint64 snapshot_needed;	/* 0, or the first index that others still have, while this node lacks what is before it.  Consensus worker writes */
	pg_atomic_uint64 rows_to_keep_index;	/* rows_to_keep.h; 0: none.  Consensus worker writes, apply worker clears */
	pg_atomic_uint32 consensus_restart_wanted;	/* 1: the consensus worker is to end and start anew; it clears it */
	pg_atomic_uint64 accepted_index;	/* highest that this node has accepted; a hint.  Consensus worker writes */
	pg_atomic_uint32 may_write;		/* 1: this node hears a quorum, or did a moment ago: backends may queue; consensus worker writes */
	pg_atomic_uint32 wants_proposals;	/* 0: a batch is in flight, so the consensus worker need not be woken for a few more; it writes */
	pg_atomic_uint32 apply_failed;	/* 1: the apply worker stopped at an entry (P9); apply worker writes */
	pg_atomic_uint64 identity_generation;	/* grows when create_cluster/join_cluster wrote an identity file, and leave_cluster took it away */
	pg_atomic_uint32 removed;	/* 1: this node was removed from the cluster, 2: left behind by force_new_cluster(); consensus worker writes */
	pg_atomic_uint64 transfer_request;	/* a backend of the leader wants it to hand over: see TRANSFER_* ; 0: nobody.  Consensus worker takes it */
	pg_atomic_uint32 quarantined_tables;	/* how many of this node's replicated tables are known to differ; apply worker writes */

	QuorumCounters counters;
} QuorumShared;

#define REMOVED_LEFT_BEHIND 2		/* in removed; last_error then says by whom */

/* In transfer_request: the voter that is to lead, or any. */
#define TRANSFER_TO(node_id) (UINT64CONST(1) << 32 | (node_id))
#define TRANSFER_TO_ANY TRANSFER_TO(0)

extern QuorumShared *QuorumShmem;

/* Hooks for _PG_init: size request and creation. */
extern void shmem_request(void);
extern void shmem_startup(void);

/* Sets the latch of a worker if it runs. */
extern void shmem_wake_consensus(void);
extern void shmem_wake_apply(void);
extern void shmem_wake_watcher(void);
extern void shmem_wake_checker(void);
extern void shmem_wake_compactor(void);

/*
 * Has the consensus worker end and start anew from what is on disk, as it does after a crash of its own; it comes back within two seconds.  What
 * its backends have proposed stays in the queue.
 */
extern void shmem_restart_consensus(void);

/* The one place where a worker's trouble becomes visible in quorum.status.  NULL clears it. */
extern void shmem_set_last_error(const char *message);
extern char *shmem_last_error(void);	/* palloc'd copy */

/* A hint, without a lock: does this node know of an entry that it has not applied, and that may have been acknowledged elsewhere? */
extern bool shmem_lags_visibly(uint64 applied_index);

/* Copies for readers; they take the lock shortly. */
extern void shmem_get_status(NodeStatus *status);
extern void shmem_get_identity(NodeIdentity *identity);
extern void shmem_get_snapshot_progress(SnapshotProgress *progress);

/* The name of a member whose build does not know all that this one does; NULL: there is none among those that have been heard of. */
extern const char *shmem_older_build(const NodeStatus *status);

/* "node 7" for one that is no member any more. */
extern void shmem_member_name(uint32 node_id, char *name, Size size);

#endif							/* QUORUM_SHMEM_H */
