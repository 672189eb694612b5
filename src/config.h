/*
 * config.h
 *	  Every setting of pg_quorum (defined in config.c, described in docs/OPERATIONS.md).
 */
#ifndef QUORUM_CONFIG_H
#define QUORUM_CONFIG_H

#include "postgres.h"

typedef enum ReadConsistency
{
	READ_LINEARIZABLE,
	READ_LOCAL
} ReadConsistency;

extern char *quorum_database;				/* quorum.database, postmaster */
extern int	quorum_heartbeat_interval_ms;	/* quorum.heartbeat_interval, postmaster */
extern int	quorum_election_timeout_ms;		/* quorum.election_timeout, postmaster */
extern int	quorum_commit_timeout_ms;		/* quorum.commit_timeout, user; 0 waits without end */
extern int	quorum_lock_grace_period_ms;	/* quorum.lock_grace_period, sighup */
extern int	quorum_copy_lock_timeout_ms;	/* quorum.copy_lock_timeout, sighup */
extern int	quorum_check_interval_s;		/* quorum.check_interval, sighup; 0: no checks in the background */
extern int	quorum_max_transaction_kb;		/* quorum.max_transaction_size, superuser */
extern int	quorum_queue_slots;				/* quorum.max_pending_transactions, postmaster */
extern int	quorum_read_consistency;		/* quorum.read_consistency: ReadConsistency, user */
extern int	quorum_log_keep_size_mb;		/* quorum.log_keep_size, sighup */
extern int	quorum_log_retention_size_mb;	/* quorum.log_retention_size, sighup */
extern int	quorum_log_retention_age_s;		/* quorum.log_retention_age, sighup; 0: whatever its age */
extern int	quorum_log_level;				/* quorum.log_level: elevel of the workers' own progress messages */

extern char *quorum_token;					/* quorum.token, user; empty: none */
extern char *quorum_token_after_index;		/* quorum.token_after_index, user; a number, or empty */
extern int	quorum_token_retention_age_s;	/* quorum.token_retention_age, sighup; 0: by count alone */

extern uint64 config_token_after_index(void);	/* quorum.token_after_index; 0: not stated */

extern void config_define_settings(void);

#endif							/* QUORUM_CONFIG_H */
