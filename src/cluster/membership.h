/*
 * membership.h
 *	  What create_cluster, join_cluster and request_membership have in common.  Process: client backends.
 */
#ifndef QUORUM_MEMBERSHIP_H
#define QUORUM_MEMBERSHIP_H

#include "postgres.h"

#include "shared/identity.h"

/* Keeps changes of membership that start on this node apart, until the end of the transaction. */
extern void lock_membership(void);

/* Before the end of the transaction, where another node's doing is to be waited for. */
extern void unlock_membership(void);

/* Was this database part of a cluster before, and has it not been made ordinary since? */
extern bool database_has_remains(void);

/* 55000 if so: what its tables hold would not fit a log that begins elsewhere. */
extern void refuse_remains(void);

/* Writes the identity file and makes the consensus worker look at it. */
extern void adopt_identity(const IdentityFile *identity);

/* Waits until the latch is set or that many milliseconds have passed; a cancel is noted in the client's messages with `background`. */
extern void wait_for_change(long timeout_ms, const char *background);

#endif							/* QUORUM_MEMBERSHIP_H */
