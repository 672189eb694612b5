/*
 * log_state.h
 *	  Everything that follows from the log up to an index: what a node must know to go on from there without what is before.
 *
 * It is the same on every node that is at the index, byte for byte but for the head (who computed it).  log_state.c is the structure and its
 * bytes, without Postgres; log_state_store.c is the file, how a state advances along the chosen log, and quorum.log_state().
 */
#ifndef QUORUM_LOG_STATE_H
#define QUORUM_LOG_STATE_H

#include "consensus/core/origins.h"
#include "shared/certifier.h"

#define LOG_STATE_MAX_CONFIG_BYTES (64 * 1024)
#define LOG_STATE_MAX_ORIGINS_BYTES (64 * 1024 * 1024)

typedef struct LogState
{
	uint64_t	index;
	uint64_t	last_applied;	/* the last entry up to index with verdict APPLY; 0: none */
	uint64_t	config_slot;	/* of the configuration in force for index + 1; 0: the one that the cluster was created with */
	uint32_t	config_length;
	uint8_t    *config_bytes;	/* a CONFIG value, see member_config.h; NULL: not known, on a node that joined with a later one */
	PaxosOrigins origins;
	Certifier	certifier;
	void	   *certifier_memory;
	PaxosAllocator allocator;
} LogState;

/* Both return false if they can't go on: then so does encoding or decoding. */
typedef bool (*LogStateWrite) (void *context, const void *bytes, size_t length);
typedef bool (*LogStateRead) (void *context, void *bytes, size_t length);

/* Empty: before the first slot.  Certification's memory (60 MB when full) comes from calloc.  False: out of memory. */
extern bool log_state_init(LogState *state, const PaxosAllocator *allocator, uint32_t key_capacity, uint32_t token_capacity);
extern void log_state_free(LogState *state);
extern void log_state_set_config(LogState *state, uint64_t slot, const uint8_t *bytes, uint32_t length);

/* The body; index and last_applied stand in the head, so the caller has put them into the state before it decodes. */
extern uint64_t log_state_body_bytes(const LogState *state);
extern bool log_state_encode(const LogState *state, LogStateWrite write, void *context);

/* Into an initialised state with the same capacities.  False: *why says what is wrong, and the state is good for nothing but log_state_free. */
extern bool log_state_decode(LogState *state, LogStateRead read, void *context, const char **why);

#endif							/* QUORUM_LOG_STATE_H */
