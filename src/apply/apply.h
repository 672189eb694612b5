/*
 * apply.h
 *	  The apply worker and what it shares with the commit gate.
 */
#ifndef QUORUM_APPLY_H
#define QUORUM_APPLY_H

#include "postgres.h"

#include "storage/itemptr.h"

#include "shared/writeset.h"

/* Entry point of the background worker (one per instance, connected to quorum.database). */
extern PGDLLEXPORT void quorum_apply_worker_main(Datum argument);

/* Entry point of the watcher that frees the apply worker's way (lock_watcher.c); needs no database. */
extern PGDLLEXPORT void quorum_lock_watcher_main(Datum argument);

/* True in the apply worker: capture and guards leave it alone. */
extern bool am_apply_worker;

#endif							/* QUORUM_APPLY_H */
