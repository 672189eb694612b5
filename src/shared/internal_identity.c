/*
 * internal_identity.c
 *	  Becomes the bootstrap superuser, and goes back.  See the header.  Locks: none.
 */
#include "postgres.h"

#include "catalog/pg_authid.h"
#include "miscadmin.h"
#include "utils/guc.h"

#include "shared/internal_identity.h"

void
internal_identity_assume(InternalIdentity *saved)
{
	GetUserIdAndSecContext(&saved->user_id, &saved->security_context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, saved->security_context | SECURITY_LOCAL_USERID_CHANGE);
	saved->guc_nest_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

void
internal_identity_restore(const InternalIdentity *saved)
{
	AtEOXact_GUC(true, saved->guc_nest_level);
	SetUserIdAndSecContext(saved->user_id, saved->security_context);
}
