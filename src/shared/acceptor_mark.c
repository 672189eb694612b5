/*
 * acceptor_mark.c
 *	  The marks of the other acceptors: checking a claim, keeping them in shared memory, their bytes for the journal.
 *
 * Runs in stream backends (a handshake), the consensus worker (positions, the journal).  Must never forget a member's mark while it is a member.
 *
 * Invariants
 *	 1. A mark only rises: start count, and position within a journal.
 *	 2. Check and note of a claim are one step under the lock, so two instances of one node are never both let in with the same start.
 *
 * Locks: QuorumShmem->lock, shortly.
 */
#include "postgres.h"

#include "libpq/pqformat.h"

#include "shared/acceptor_mark.h"
#include "shared/shmem.h"

#define MARKS_VERSION 1
#define MARK_BYTES (4 + 4 * 8)

AcceptorVerdict
acceptor_mark_check(const AcceptorMark *mark, const AcceptorClaim *claim)
{
	if (mark->node_id == 0)
		return ACCEPTOR_REMEMBERS;
	if (mark->journal_incarnation != 0 && claim->journal_incarnation != mark->journal_incarnation)
		return ACCEPTOR_OTHER_JOURNAL;
	if (claim->start_count < mark->start_count)
		return ACCEPTOR_OLDER_START;
	if (claim->start_count == mark->start_count)
		return mark->start_nonce == 0 || claim->start_nonce == mark->start_nonce ? ACCEPTOR_REMEMBERS : ACCEPTOR_OTHER_OF_SAME_START;
	/* A later start than any that is known: its journal was whole if it begins no earlier than the last one was seen to end. */
	return claim->recovered_position < mark->durable_position ? ACCEPTOR_FORGOT : ACCEPTOR_REMEMBERS;
}

static char *
position_text(uint64 position)
{
	return psprintf("%u/%u", (uint32) (position >> 32), (uint32) position);
}

char *
acceptor_verdict_detail(AcceptorVerdict verdict, const AcceptorMark *mark, const AcceptorClaim *claim)
{
	switch (verdict)
	{
		case ACCEPTOR_REMEMBERS:
		case ACCEPTOR_NOT_YET_KNOWN:
			return NULL;
		case ACCEPTOR_OTHER_JOURNAL:
			return pstrdup("Its journal was made anew; what it had promised with the old one is forgotten.");
		case ACCEPTOR_OLDER_START:
			return psprintf("It is its start number " UINT64_FORMAT ", but start number " UINT64_FORMAT
							" was seen already: this is an old copy of the node, or a copy of it runs elsewhere.",
							claim->start_count, mark->start_count);
		case ACCEPTOR_OTHER_OF_SAME_START:
			return psprintf("Start number " UINT64_FORMAT " was seen already, of another instance: one is a copy of the other, or of an older state.",
							claim->start_count);
		case ACCEPTOR_FORGOT:
			return psprintf("Its journal ended at %s when it started, but had been durable up to %s.",
							position_text(claim->recovered_position), position_text(mark->durable_position));
	}
	return NULL;
}

/* ---- shared memory; under the lock ---- */

static bool
is_member(uint32 node_id)
{
	for (int i = 0; i < QuorumShmem->status.member_count; i++)
		if (QuorumShmem->status.members[i].node_id == node_id)
			return true;
	return false;
}

static AcceptorMark *
find_mark(uint32 node_id)
{
	for (int i = 0; i < QUORUM_MAX_MEMBERS; i++)
		if (QuorumShmem->acceptor_marks[i].node_id == node_id)
			return &QuorumShmem->acceptor_marks[i];
	return NULL;
}

/* Node ids are never used again, so the mark of one that is no member any more may go.  NULL: there are as many members as marks. */
static AcceptorMark *
find_place(void)
{
	AcceptorMark *place = find_mark(0);

	for (int i = 0; place == NULL && QuorumShmem->status.member_count > 0 && i < QUORUM_MAX_MEMBERS; i++)
		if (!is_member(QuorumShmem->acceptor_marks[i].node_id))
			place = &QuorumShmem->acceptor_marks[i];
	return place;
}

static AcceptorMark *
find_or_add_mark(uint32 node_id)
{
	AcceptorMark *mark = find_mark(node_id);

	if (mark != NULL || (mark = find_place()) == NULL)
		return mark;
	memset(mark, 0, sizeof(AcceptorMark));
	mark->node_id = node_id;
	return mark;
}

AcceptorVerdict
acceptor_mark_admit(const AcceptorClaim *claim, AcceptorMark *known)
{
	AcceptorMark *mark;
	AcceptorVerdict verdict;

	memset(known, 0, sizeof(AcceptorMark));
	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
	if (!QuorumShmem->acceptor_marks_known)
	{
		LWLockRelease(QuorumShmem->lock);
		return ACCEPTOR_NOT_YET_KNOWN;
	}
	mark = find_or_add_mark(claim->node_id);
	if (mark != NULL)
		*known = *mark;
	verdict = acceptor_mark_check(known, claim);
	if (verdict == ACCEPTOR_REMEMBERS && mark != NULL && mark->start_nonce != claim->start_nonce)
	{
		mark->journal_incarnation = claim->journal_incarnation;
		mark->start_count = claim->start_count;
		mark->start_nonce = claim->start_nonce;
		mark->durable_position = Max(mark->durable_position, claim->recovered_position);
		QuorumShmem->acceptor_marks_generation++;
	}
	LWLockRelease(QuorumShmem->lock);
	return verdict;
}

/* Under the lock.  A position of an older start than is known says nothing new. */
static bool
raise_mark(AcceptorMark *mark, uint64 start_count, uint64 start_nonce, uint64 durable_position)
{
	if (start_count < mark->start_count || (start_count == mark->start_count && durable_position <= mark->durable_position))
		return false;
	if (start_count > mark->start_count)
		mark->start_nonce = start_nonce;
	mark->start_count = start_count;
	mark->durable_position = Max(mark->durable_position, durable_position);
	return true;
}

void
acceptor_mark_note(uint32 node_id, uint64 start_count, uint64 durable_position)
{
	AcceptorMark *mark;

	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
	mark = find_or_add_mark(node_id);
	if (mark != NULL && raise_mark(mark, start_count, 0, durable_position))
		QuorumShmem->acceptor_marks_generation++;
	LWLockRelease(QuorumShmem->lock);
}

void
acceptor_marks_set_known(bool known)
{
	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
	QuorumShmem->acceptor_marks_known = known;
	LWLockRelease(QuorumShmem->lock);
}

uint64
acceptor_marks_generation(void)
{
	uint64		generation;

	LWLockAcquire(QuorumShmem->lock, LW_SHARED);
	generation = QuorumShmem->acceptor_marks_generation;
	LWLockRelease(QuorumShmem->lock);
	return generation;
}

/* ---- bytes: u8 version, then per mark u32 node id, u64 journal incarnation, start count, start nonce, position ---- */

void
acceptor_marks_encode(StringInfo bytes)
{
	AcceptorMark marks[QUORUM_MAX_MEMBERS];

	LWLockAcquire(QuorumShmem->lock, LW_SHARED);
	memcpy(marks, QuorumShmem->acceptor_marks, sizeof(marks));
	LWLockRelease(QuorumShmem->lock);
	pq_sendint8(bytes, MARKS_VERSION);
	for (int i = 0; i < QUORUM_MAX_MEMBERS; i++)
	{
		if (marks[i].node_id == 0)
			continue;
		pq_sendint32(bytes, marks[i].node_id);
		pq_sendint64(bytes, marks[i].journal_incarnation);
		pq_sendint64(bytes, marks[i].start_count);
		pq_sendint64(bytes, marks[i].start_nonce);
		pq_sendint64(bytes, marks[i].durable_position);
	}
}

/* A stream may have come in with news before the journal was read. */
static void
add_mark(const AcceptorMark *restored)
{
	AcceptorMark *mark = find_or_add_mark(restored->node_id);

	if (mark == NULL)
		return;
	if (mark->journal_incarnation == 0)
		mark->journal_incarnation = restored->journal_incarnation;
	(void) raise_mark(mark, restored->start_count, restored->start_nonce, restored->durable_position);
}

bool
acceptor_marks_decode(const uint8 *bytes, Size length)
{
	StringInfoData input = {.data = (char *) bytes, .len = (int) length};

	if (length < 1 || (length - 1) % MARK_BYTES != 0 || (length - 1) / MARK_BYTES > QUORUM_MAX_MEMBERS ||
		pq_getmsgbyte(&input) != MARKS_VERSION)
		return false;
	while (input.cursor < input.len)
	{
		AcceptorMark mark;

		mark.node_id = pq_getmsgint(&input, 4);
		mark.journal_incarnation = (uint64) pq_getmsgint64(&input);
		mark.start_count = (uint64) pq_getmsgint64(&input);
		mark.start_nonce = (uint64) pq_getmsgint64(&input);
		mark.durable_position = (uint64) pq_getmsgint64(&input);
		if (mark.node_id == 0)
			return false;
		LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
		add_mark(&mark);
		LWLockRelease(QuorumShmem->lock);
	}
	return true;
}
