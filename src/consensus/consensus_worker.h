/*
 * consensus_worker.h
 *	  Entry points of the consensus worker and of the compactor: one per instance, no database connection.
 */
#ifndef QUORUM_CONSENSUS_WORKER_H
#define QUORUM_CONSENSUS_WORKER_H

#include "postgres.h"

extern PGDLLEXPORT void quorum_consensus_worker_main(Datum argument);
extern PGDLLEXPORT void quorum_compactor_main(Datum argument);

#endif							/* QUORUM_CONSENSUS_WORKER_H */
