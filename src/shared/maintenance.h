/*
 * maintenance.h
 *	  Which backends are at VACUUM FULL, CLUSTER, REINDEX or CREATE INDEX: the apply worker waits for them instead of aborting them.
 */
#ifndef QUORUM_MAINTENANCE_H
#define QUORUM_MAINTENANCE_H

#include "postgres.h"

#include "storage/backendid.h"

extern Size maintenance_shmem_size(void);
extern void maintenance_shmem_startup(void);

/* Of this backend; takes no lock.  What it is set before is seen by whoever finds a lock that was taken after it. */
extern void maintenance_set(bool is_maintenance);

extern bool maintenance_is_under_way(BackendId backend_id);

#endif							/* QUORUM_MAINTENANCE_H */
