/*
 * snapshot_view.h
 *	  Words for how far a copy of the tables has come.  Process: client backends.
 */
#ifndef QUORUM_SNAPSHOT_VIEW_H
#define QUORUM_SNAPSHOT_VIEW_H

#include "postgres.h"

#include "shared/snapshot_progress.h"

extern const char *snapshot_phase_name(SnapshotPhase phase);

#endif							/* QUORUM_SNAPSHOT_VIEW_H */
