/*
 * verdict.h
 *	  The verdict over an entry of the log, from the log alone: computed at delivery, and once more by whoever makes a log state.
 */
#ifndef QUORUM_VERDICT_H
#define QUORUM_VERDICT_H

#include "postgres.h"

#include "consensus/core/paxos.h"
#include "shared/certifier.h"
#include "shared/chosen_log.h"

/*
 * Entries come in log order.  `duplicate`: the same id took effect before (core/origins.h).  *verdict says why an entry is rejected, and is zero
 * for all that certification has not looked at.
 */
extern LogVerdict entry_verdict(Certifier *certifier, uint64 index, PaxosValueKind kind, bool duplicate, const uint8 *bytes,
								uint32 length, CertifierVerdict *verdict);

#endif							/* QUORUM_VERDICT_H */
