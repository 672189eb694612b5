/*
 * check_worker.h
 *	  The background worker that sums tables up, and proposes checks on the leader.
 */
#ifndef QUORUM_CHECK_WORKER_H
#define QUORUM_CHECK_WORKER_H

#include "postgres.h"

extern PGDLLEXPORT void quorum_check_worker_main(Datum argument);

#endif							/* QUORUM_CHECK_WORKER_H */
