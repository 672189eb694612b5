/*
 * worker_internal.h
 *	  What the files of the consensus worker share: consensus_worker.c (life and loop), recovery.c (its start), acceptor_memory.c (does the journal hold all
 *	  that was promised), delivery.c (chosen entries), trimming.c (how much of the log is kept), members.c (configuration, status), handover.c, generation.c (force_new_cluster).  Nobody else
 *	  includes it.
 */
#ifndef QUORUM_WORKER_INTERNAL_H
#define QUORUM_WORKER_INTERNAL_H

#include "postgres.h"

#include "consensus/core/paxos.h"
#include "consensus/journal/journal.h"
#include "shared/certifier.h"
#include "shared/identity.h"
#include "shared/member_change.h"
#include "shared/member_config.h"
#include "shared/shmem.h"

#define WINDOW_SLOTS 4096			/* a power of two */
#define WINDOW_BYTES (96 * 1024 * 1024)
#define REMOVED_ERROR "this node was removed from the cluster"
#define QUEUED_PATIENCE_MS 1000		/* a node without a fresh quorum holds queued transactions at least this long, then refuses them */

typedef struct ConsensusWorker
{
	PaxosCore  *core;
	PaxosAllocator allocator;
	Journal    *journal;
	JournalIdentity journal_identity;
	uint64		incarnation;
	bool		restoring;		/* recovery: effects only deliver */
	bool		started;		/* the core takes part */

	uint64		next_deadline_ms;
	uint64		last_record;	/* number of the last record appended */
	bool		must_sync;		/* a record other than a CHOSEN hint was appended since the last sync */
	uint64		journal_syncs;

	bool		leads;
	uint64		change_sequence;	/* of the change of members that a backend of this node, the leader, waits for; 0: none, or told */
	uint64		accepted_proposals_ms;	/* when proposals were last accepted, or this process began; these two leave standstills out */
	uint64		heard_quorum_ms;	/* when that was so, or a leader was heard; 0: never */
	uint64		looked_for_quorum_ms;	/* when members_note_acceptance was last called */
	bool		gathers;		/* a batch is in flight and the next is gathered */
	int64		batch_taken_us;	/* when the last batch of proposals was taken */
	bool		delivered_own;	/* since the proposals were last looked at */
	uint64		entries_to_apply;	/* delivered since the apply worker was last woken */
	uint64		apply_deadline_ms;	/* when it is to be woken; 0: not */
	bool		apply_is_urgent;	/* somebody here waits for what was delivered: it is to be woken at the end of this turn */

	/* configuration in force, as the host sees it */
	uint64		config_slot;
	MemberConfig config;
	bool		peers_changed;	/* links are to follow the configuration */
	MemberConfigItem departing[QUORUM_MAX_MEMBERS];	/* were members; linked for a moment longer, to be told */
	uint64		departing_until_ms[QUORUM_MAX_MEMBERS]; /* 0: free */

	PaxosCatchUp catch_ups[PAXOS_MAX_MEMBERS];	/* gathered from effects, served at the end of the loop */
	int			catch_up_count;

	uint8	   *frame;			/* buffer for encoding */
	size_t		frame_capacity;
} ConsensusWorker;

extern ConsensusWorker worker;

extern uint64 worker_now_ms(void);
extern uint8 *worker_frame_buffer(size_t size);

/* Gives the core a proposal of this node; false if it has no room for it now. */
extern bool worker_propose(PaxosValueKind kind, uint64 sequence, const char *bytes, uint32 length);

/* Wakes with the latch, or now and then, until there is something new to look at. */
extern void worker_wait_a_moment(void);
extern void worker_restart_if_wanted(void);	/* see shmem_restart_consensus; does not return then */
/* Lets the leader hand over to that voter, or (0) to any; false: not now. */
extern bool worker_transfer(uint32 node_id);

/* ---- handover.c ---- */
extern void handover_on_request(const PaxosStatus *status);
extern void handover_before_exit(const PaxosStatus *status);

/* ---- recovery.c ---- */
extern void recovery_run(const IdentityFile *identity);
extern void recovery_await_kept_rows(void);	/* does not return if there are some */

/* ---- delivery.c ---- */
extern void delivery_begin_after(PaxosSlot slot, const Certifier *restored);
extern void delivery_restored(void);	/* at the end of recovery */
extern PaxosSlot delivery_last(void);
extern void delivery_note_place(PaxosSlot slot, JournalPlace place);
extern void delivery_chosen(const PaxosChosen *chosen, size_t count);
extern void delivery_serve_catch_up(const PaxosCatchUp *request);

/* ---- trimming.c ---- */
extern void trimming_note_record(const PaxosRecord *record, JournalPlace place);
extern PaxosSlot trimming_highest_accepted(void);	/* in the journal since this process began to read it; 0: none */
extern void trimming_set_first_held(PaxosSlot first_slot);
extern void trimming_run(const PaxosStatus *status);
extern void trimming_publish_lack(const PaxosStatus *status);	/* snapshot_needed in shared memory */

/* recovery.c: one more record, beyond those that recovery found; only while restoring. */
extern void worker_restore_record(const PaxosRecord *record, JournalPlace place);

/* ---- generation.c ---- */
extern void generation_carry_out_request(void);	/* does not return if there was one */
extern void generation_hear_successor(const char *text);
extern void generation_stand_aside(void);
extern const MemberConfigItem *generation_next_to_tell(int *place);

/* ---- members.c ---- */
extern void members_take_config(uint64 slot, const char *bytes, Size length);
extern void members_connect_peers(void);
extern void members_note_removed(void);
extern void members_publish_identity(const IdentityFile *identity);
extern void members_forget_node(void);
extern bool members_propose_change(const MemberChange *change, uint64 sequence, bool *taken);
extern void members_note_role(PaxosRole role);
extern void members_promote_learners(const PaxosStatus *status);
extern void members_publish_status(const PaxosStatus *status);
extern bool members_accept_proposals(const PaxosStatus *status);
extern bool members_may_lead(const PaxosStatus *status);
extern void members_note_acceptance(const PaxosStatus *status);
extern int members_refuse_after_ms(const PaxosStatus *status);
extern bool members_may_write(const PaxosStatus *status);

/* ---- acceptor_memory.c ---- */
extern void memory_restore(void);	/* once the journal is open, before anybody is let in */
extern void memory_check_tables(const IdentityFile *identity);	/* does not return if they are ahead of the journal */
extern void memory_note_peers(const PaxosStatus *status);
extern void memory_write_note(void);
extern void memory_note_link(uint32 node_id, bool up);
extern bool memory_link_is_up(uint32 node_id);
extern void memory_refused(uint32 node_id, const char *why);
extern void memory_check(void);	/* does not return if this node was refused */
extern void memory_look_for_confirmation(void);

#endif							/* QUORUM_WORKER_INTERNAL_H */
