/*
 * maintenance.c
 *	  A flag per backend: it is at maintenance that would have to be begun anew if it were aborted.
 *
 * Each backend writes its own flag, the lock watcher reads them.  Must never wait.  Locks: none; a flag is one byte.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/shmem.h"

#include "shared/maintenance.h"

static volatile bool *flags = NULL;	/* [MaxBackends + 1]: backend ids start at 1 */

Size
maintenance_shmem_size(void)
{
	return MAXALIGN(mul_size(MaxBackends + 1, sizeof(bool)));
}

void
maintenance_shmem_startup(void)
{
	bool		found;
	char	   *place = ShmemInitStruct("pg_quorum maintenance", maintenance_shmem_size(), &found);

	flags = (volatile bool *) place;
	if (!found)
		memset(place, 0, maintenance_shmem_size());
}

void
maintenance_set(bool is_maintenance)
{
	if (MyBackendId == InvalidBackendId)
		return;
	flags[MyBackendId] = is_maintenance;
	pg_memory_barrier();
}

bool
maintenance_is_under_way(BackendId backend_id)
{
	return backend_id > 0 && backend_id <= MaxBackends && flags[backend_id];
}
