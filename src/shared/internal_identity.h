/*
 * internal_identity.h
 *	  Who the extension's own statements run as.  Any process with a database connection, inside a transaction.
 *
 * The bootstrap superuser with a search path of pg_catalog alone (and pg_temp last, or it would come first), so that neither the caller's missing
 * privileges nor objects that the caller made change what they do.  An error in between is undone by the abort of the transaction.
 */
#ifndef QUORUM_INTERNAL_IDENTITY_H
#define QUORUM_INTERNAL_IDENTITY_H

#include "postgres.h"

typedef struct InternalIdentity
{
	Oid			user_id;
	int			security_context;
	int			guc_nest_level;
} InternalIdentity;

extern void internal_identity_assume(InternalIdentity *saved);
extern void internal_identity_restore(const InternalIdentity *saved);

#endif							/* QUORUM_INTERNAL_IDENTITY_H */
