/*
 * acceptor_mark.h
 *	  What this node remembers of the other acceptors' journals, so that it notices when one comes back with less (P8).
 *
 * An acceptor that lost what it had promised or accepted may break a promise by its next vote (Lamport, "Paxos Made Simple", section 3: an
 * acceptor must remember across restarts).  A disk that lied, a backup or a volume's snapshot that was restored, and a copy that runs beside its original all
 * look like a sound journal to the node itself.  So its peers keep a *mark* for it: which journal it has, its last start, and up to which place that
 * journal was durable when it last said so.  At the handshake of a link it *claims* what its recovery has found, and is refused if that is less.
 *
 * A place in a journal (segment number, offset) never goes back in the journal's life, and a start has a number that is durable before anything else
 * is done, so both can be compared.
 */
#ifndef QUORUM_ACCEPTOR_MARK_H
#define QUORUM_ACCEPTOR_MARK_H

#include "postgres.h"

#include "lib/stringinfo.h"

typedef struct AcceptorMark
{
	uint32		node_id;		/* 0: free */
	uint64		journal_incarnation;	/* 0: not known yet */
	uint64		start_count;	/* the highest that was let in, or heard of */
	uint64		start_nonce;	/* random, of that start; 0: not known yet */
	uint64		durable_position;	/* segment number << 32 | offset, in that start or before; 0: none was heard */
} AcceptorMark;

typedef struct AcceptorClaim
{
	uint32		node_id;
	uint64		journal_incarnation;
	uint64		start_count;
	uint64		start_nonce;
	uint64		recovered_position; /* where the journal ended when this start found it */
} AcceptorClaim;

typedef enum AcceptorVerdict
{
	ACCEPTOR_REMEMBERS = 0,
	ACCEPTOR_OTHER_JOURNAL,		/* its journal was made anew */
	ACCEPTOR_OLDER_START,		/* a later start was let in: an old copy, or the original of a copy that runs */
	ACCEPTOR_OTHER_OF_SAME_START,	/* two instances made the same start: one is a copy */
	ACCEPTOR_FORGOT,			/* its journal ends before what it said was durable */
	ACCEPTOR_NOT_YET_KNOWN		/* this node has not read its own journal yet: it cannot tell */
} AcceptorVerdict;

/* Pure.  mark->node_id is claim's, or 0 if nothing is known. */
extern AcceptorVerdict acceptor_mark_check(const AcceptorMark *mark, const AcceptorClaim *claim);

/* What to tell the node, a whole sentence; NULL for ACCEPTOR_REMEMBERS.  palloc'd. */
extern char *acceptor_verdict_detail(AcceptorVerdict verdict, const AcceptorMark *mark, const AcceptorClaim *claim);

/*
 * The marks in shared memory; all take QuorumShmem->lock.
 * acceptor_mark_admit: checks the claim, and takes note of it if it is sound; *mark is what was known before.
 * acceptor_mark_note: in that start a peer's journal is durable up to there, as it says, or as the leader says of it.
 */
extern AcceptorVerdict acceptor_mark_admit(const AcceptorClaim *claim, AcceptorMark *mark);
extern void acceptor_mark_note(uint32 node_id, uint64 start_count, uint64 durable_position);

/* Not from the start of the consensus worker until the journal's marks are restored. */
extern void acceptor_marks_set_known(bool known);

/* For the journal: bytes of all marks, of a version; grows when there is news.  Decoding adds to what is known; false: malformed. */
extern uint64 acceptor_marks_generation(void);
extern void acceptor_marks_encode(StringInfo bytes);
extern bool acceptor_marks_decode(const uint8 *bytes, Size length);

#endif							/* QUORUM_ACCEPTOR_MARK_H */
