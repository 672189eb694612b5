/*
 * verdict.c
 *	  The verdict over an entry of the log.  Process: consensus worker, compactor, backends in quorum.log_state().
 *
 * Must never look at anything but the entry and what came before it in the log: every node, every restart and every log state has to
 * come to the same.  It stands here alone, so that there is nothing to keep equal.
 */
#include "postgres.h"

#include "consensus/verdict.h"
#include "shared/writeset.h"

/* A write set that cannot be read is the same on every node, so rejecting it is a verdict like any other. */
static LogVerdict
data_verdict(Certifier *certifier, uint64 index, const uint8 *bytes, uint32 length, CertifierVerdict *verdict)
{
	WriteSetHeader header;
	CertifierEntry entry = {.index = index};

	verdict->reason = CERTIFIER_MALFORMED;
	verdict->conflict_index = index;
	if (!writeset_peek_header((const char *) bytes, length, &header))
		return LOG_VERDICT_REJECTED;
	entry.base = header.base;
	if ((header.flags & WRITESET_NONCE) != 0)
		entry.proposal = header.token;
	else
		entry.token = header.token;
	entry.is_fence = (header.flags & WRITESET_FENCE) != 0;
	entry.key_count = header.key_count;
	entry.keys = (const uint8 *) header.keys;
	certify(certifier, &entry, verdict);
	return verdict->reason == CERTIFIER_APPLY ? LOG_VERDICT_APPLY : LOG_VERDICT_REJECTED;
}

LogVerdict
entry_verdict(Certifier *certifier, uint64 index, PaxosValueKind kind, bool duplicate, const uint8 *bytes, uint32 length,
			  CertifierVerdict *verdict)
{
	memset(verdict, 0, sizeof(CertifierVerdict));
	if (duplicate)
		return LOG_VERDICT_DUPLICATE;
	switch (kind)
	{
		case PAXOS_VALUE_NOOP:
			return LOG_VERDICT_NOOP;
		case PAXOS_VALUE_CONFIG:
			return LOG_VERDICT_CONFIG;
		case PAXOS_VALUE_DATA:
			return data_verdict(certifier, index, bytes, length, verdict);
	}
	elog(FATAL, "chosen value of unknown kind %d at log index %llu", (int) kind, (unsigned long long) index);
}
