/*
 * slow_commit.c
 *	  A module that makes a session stand still at a certain moment of its COMMIT, for as long as a file exists: when the transaction is visible to
 *	  others, and its row locks are gone, but nobody else has been told.
 *
 * LOAD it into a session, SET slow_commit.file, then make the file.  It was loaded after pg_quorum, so its callback is the first to be called.
 */
#include "postgres.h"

#include <unistd.h>

#include "access/xact.h"
#include "fmgr.h"
#include "utils/guc.h"

PG_MODULE_MAGIC;

void		_PG_init(void);

static char *file = NULL;

static void
stand_still(XactEvent event, void *argument)
{
	(void) argument;
	while (event == XACT_EVENT_COMMIT && file != NULL && file[0] != '\0' && access(file, F_OK) == 0)
		pg_usleep(1000);
}

void
_PG_init(void)
{
	DefineCustomStringVariable("slow_commit.file", "As long as it exists, transactions do not come to their end.", NULL, &file, "", PGC_USERSET, 0,
							   NULL, NULL, NULL);
	RegisterXactCallback(stand_still, NULL);
}
