/*
 * worker_internal.h
 *	  What the files of the consensus worker share: consensus_worker.c (life and loop), recovery.c (its start), delivery.c (chosen entries), trimming.c (how
 *	  much of the log is kept), members.c (configuration, status).  Nobody else includes it.
 */
#ifndef QUORUM_WORKER_INTERNAL_H
#define QUORUM_WORKER_INTERNAL_H

#include "postgres.h"

#include "consensus/core/paxos.h"
#include "consensus/journal/journal.h"
#include "shared/certifier.h"
#include "shared/identity.h"
#include "shared/member_config.h"
#include "shared/shmem.h"

#define WINDOW_SLOTS 4096			/* a power of two */
#define WINDOW_BYTES (96 * 1024 * 1024)
#define QUEUED_PATIENCE_MS 1000		/* a node without a fresh quorum holds queued transactions this long, then refuses them */

typedef struct ConsensusWorker
{
	PaxosCore  *core;
	PaxosAllocator allocator;
	Journal    *journal;
	JournalIdentity journal_identity;
	uint64		incarnation;
	bool		restoring;		/* recovery: effects only deliver */

	uint64		next_deadline_ms;
	uint64		last_record;	/* number of the last record appended */
	bool		must_sync;		/* a record other than a CHOSEN hint was appended since the last sync */
	uint64		journal_syncs;

	bool		leads;
	uint64		accepted_proposals_ms;	/* when proposals were last accepted; 0: never */
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

/* Waits until the latch is set, or for a while. */
extern void worker_wait_a_moment(void);

extern void worker_publish_identity(const IdentityFile *identity);

/* ---- recovery.c ---- */
extern void recovery_run(const IdentityFile *identity);

/* ---- delivery.c ---- */
extern void delivery_begin_after(PaxosSlot slot, const Certifier *restored);
extern PaxosSlot delivery_last(void);
extern void delivery_note_place(PaxosSlot slot, JournalPlace place);
extern void delivery_chosen(const PaxosChosen *chosen, size_t count);
extern void delivery_serve_catch_up(const PaxosCatchUp *request);

/* ---- trimming.c ---- */
extern void trimming_note_record(const PaxosRecord *record, JournalPlace place);
extern PaxosSlot trimming_highest_accepted(void);	/* in the journal since this process began to read it; 0: none */
extern void trimming_set_first_held(PaxosSlot first_slot);
extern void trimming_run(const PaxosStatus *status);

/* ---- members.c ---- */
extern void members_take_config(uint64 slot, const char *bytes, Size length);
extern void members_connect_peers(void);
extern bool members_propose_new(const char *payload, Size length, uint64 sequence, bool *taken);
extern void members_promote_learners(const PaxosStatus *status);
extern void members_publish_status(const PaxosStatus *status);
extern bool members_accept_proposals(const PaxosStatus *status);
extern bool members_may_write(const PaxosStatus *status);

#endif							/* QUORUM_WORKER_INTERNAL_H */
