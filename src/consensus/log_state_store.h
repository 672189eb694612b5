/*
 * log_state_store.h
 *	  Log states in files, and how one advances along the chosen log.
 */
#ifndef QUORUM_LOG_STATE_STORE_H
#define QUORUM_LOG_STATE_STORE_H

#include "postgres.h"

#include "consensus/log_state.h"
#include "shared/log_state_file.h"

typedef enum LogStateFound
{
	LOG_STATE_NONE,				/* no file */
	LOG_STATE_DAMAGED,			/* *why says in which way */
	LOG_STATE_LOADED
} LogStateFound;

/* Empty, for the capacities that the cluster has; memory beside certification's from `context`.  To be freed with log_state_free. */
extern void log_state_begin(LogState *state, MemoryContext context);

/* Before the first slot, as far as the identity file tells. */
extern void log_state_set_bootstrap(LogState *state);

/* Into a state that was begun.  If it is damaged, the state is to be freed. */
extern LogStateFound log_state_load(LogState *state, const char *path, uint64 cluster_id, LogStateHead *head, const char **why);

/* To a file that is durable, under a name that nobody reads; the caller renames it. */
extern void log_state_store(const LogState *state, const NodeIdentity *identity, const char *path);

/*
 * Notes the entries up to to_index, which is in the chosen log.  What it finds must be what the consensus worker found: ERRCODE_DATA_CORRUPTED
 * if not.
 */
extern void log_state_advance(LogState *state, uint64 to_index);

/* For paxos_restore_base; palloc'd. */
extern uint8 *log_state_make_base(const LogState *state, Size *length);

#endif							/* QUORUM_LOG_STATE_STORE_H */
