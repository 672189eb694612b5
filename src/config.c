/*
 * config.c
 *	  Every setting of pg_quorum.  Runs in the postmaster from _PG_init; the values are read everywhere.
 *
 * All of them are local to the node: none has to be equal on the members.
 */
#include "postgres.h"

#include <errno.h>
#include <limits.h>

#include "utils/guc.h"

#include "config.h"
#include "shared/commit_token.h"

char	   *quorum_database = NULL;
int			quorum_heartbeat_interval_ms = 50;
int			quorum_election_timeout_ms = 400;
int			quorum_commit_timeout_ms = 10000;
int			quorum_lock_grace_period_ms = 2000;
int			quorum_copy_lock_timeout_ms = 60 * 1000;
int			quorum_check_interval_s = 24 * 60 * 60;
int			quorum_max_transaction_kb = 16 * 1024;
int			quorum_queue_slots = 256;
int			quorum_read_consistency = READ_LINEARIZABLE;
int			quorum_log_keep_size_mb = 64;
int			quorum_log_retention_size_mb = 1024;
int			quorum_log_retention_age_s = 24 * 60 * 60;
int			quorum_log_level = DEBUG1;
char	   *quorum_token = NULL;
char	   *quorum_token_after_index = NULL;
int			quorum_token_retention_age_s = 60;

static const struct config_enum_entry log_level_options[] = {
	{"debug2", DEBUG2, false},
	{"debug1", DEBUG1, false},
	{"log", LOG, false},
	{NULL, 0, false}
};

static const struct config_enum_entry read_consistency_options[] = {
	{"linearizable", READ_LINEARIZABLE, false},
	{"local", READ_LOCAL, false},
	{NULL, 0, false}
};

static void
define_timings(void)
{
	DefineCustomIntVariable("quorum.heartbeat_interval",
							"Time between two signs of life of a leader.",
							"Should be a small fraction of quorum.election_timeout.",
							&quorum_heartbeat_interval_ms, 50, 5, 10000,
							PGC_POSTMASTER, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("quorum.election_timeout",
							"A node that hears no leader for one to two times this long asks for an election.",
							"A leader that hears no majority for this long stops calling itself leader.",
							&quorum_election_timeout_ms, 400, 20, 60000,
							PGC_POSTMASTER, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("quorum.commit_timeout",
							"A COMMIT that has proposed and learns no outcome for this long ends with SQLSTATE 08007.",
							"The transaction may still be committed by the quorum. 0 waits without end.",
							&quorum_commit_timeout_ms, 10000, 0, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("quorum.lock_grace_period",
							"A session whose lock of a table keeps an agreed entry from being applied here is aborted after this time.",
							"Whoever holds a row is aborted at once; VACUUM FULL, CLUSTER, REINDEX and CREATE INDEX are waited for.",
							&quorum_lock_grace_period_ms, 2000, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("quorum.copy_lock_timeout",
							"A copy of the tables that can't lock one of them here for this long lets its donor go and begins again.",
							"Meanwhile the donor keeps dead rows. Longer than quorum.lock_grace_period, or sessions that could be aborted are not.",
							&quorum_copy_lock_timeout_ms, 60 * 1000, 1000, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
}

static void
define_checks(void)
{
	DefineCustomIntVariable("quorum.check_interval",
							"The leader has each replicated table compared between all nodes when its last check is this long ago.",
							"A node whose copy differs from that of a majority is quarantined. 0: only quorum.verify() compares.",
							&quorum_check_interval_s, 24 * 60 * 60, 0, INT_MAX / 1000,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
}

static void
define_limits(void)
{
	DefineCustomIntVariable("quorum.max_transaction_size",
							"Largest write set that one transaction may propose.",
							NULL,
							&quorum_max_transaction_kb, 16 * 1024, 64, 64 * 1024,
							PGC_SUSET, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("quorum.max_pending_transactions",
							"Transactions of this node that may wait for the quorum at the same time.",
							"More get SQLSTATE 53400.",
							&quorum_queue_slots, 256, 16, 2048,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
}

static void
define_log_retention(void)
{
	DefineCustomIntVariable("quorum.log_keep_size",
							"So much of the journal is kept even if all members have applied what is in it.",
							"Members that were away for a short time are brought up to date from it. It is at most quorum.log_retention_size.",
							&quorum_log_keep_size_mb, 64, 16, 1024 * 1024,
							PGC_SIGHUP, GUC_UNIT_MB, NULL, NULL, NULL);
	DefineCustomIntVariable("quorum.log_retention_size",
							"A journal that is longer than this is trimmed though a member may lack what is in it.",
							"A member that was away for longer copies the tables from another one.",
							&quorum_log_retention_size_mb, 1024, 32, 1024 * 1024,
							PGC_SIGHUP, GUC_UNIT_MB, NULL, NULL, NULL);
	DefineCustomIntVariable("quorum.log_retention_age",
							"What has stood in the journal for longer than this is dropped though a member may lack it.",
							"quorum.log_keep_size is kept in any case. 0 keeps it whatever its age.",
							&quorum_log_retention_age_s, 24 * 60 * 60, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
}

static bool
check_token(char **value, void **extra, GucSource source)
{
	ProposalToken token;

	if (strlen(*value) > COMMIT_TOKEN_MAX_LENGTH)
	{
		GUC_check_errdetail("A token has at most %d bytes.", COMMIT_TOKEN_MAX_LENGTH);
		return false;
	}
	if (commit_token_parse(*value, &token))
	{
		GUC_check_errdetail("Tokens of the form number.number.number.hexadecimal are pg_quorum's own.");
		return false;
	}
	return true;
}

/* 0: it is no log index. */
static uint64
parse_index(const char *text)
{
	char	   *end;
	uint64		index;

	if (text[0] < '1' || text[0] > '9')
		return 0;
	errno = 0;
	index = strtou64(text, &end, 10);
	return errno == 0 && *end == '\0' && index <= PG_INT64_MAX ? index : 0;
}

static bool
check_after_index(char **value, void **extra, GucSource source)
{
	if ((*value)[0] == '\0' || parse_index(*value) != 0)
		return true;
	GUC_check_errdetail("It is a log index, as quorum.status or an error with SQLSTATE 08007 tells it.");
	return false;
}

uint64
config_token_after_index(void)
{
	return parse_index(quorum_token_after_index);
}

static void
define_tokens(void)
{
	DefineCustomStringVariable("quorum.token",
							   "Token of the current transaction, by which quorum.outcome() finds it; to be set with SET LOCAL.",
							   "Of all transactions with the same token at most one takes effect.",
							   &quorum_token, "",
							   PGC_USERSET, 0, check_token, NULL, NULL);
	DefineCustomStringVariable("quorum.token_after_index",
							   "Log index that was chosen before the first attempt with quorum.token began; to be set with SET LOCAL.",
							   "A retry is refused if that attempt may have been forgotten. Empty: it is at most quorum.token_retention_age old.",
							   &quorum_token_after_index, "",
							   PGC_USERSET, 0, check_after_index, NULL, NULL);
	DefineCustomIntVariable("quorum.token_retention_age",
							"Tokens of transactions are remembered for at least this long.",
							"If the memory is full of younger ones, transactions with a token get SQLSTATE 53400. "
							"To be the same on all members: the lowest counts. 0: the newest ones are remembered, whatever their age.",
							&quorum_token_retention_age_s, 60, 0, INT_MAX / 1000,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
}

void
config_define_settings(void)
{
	DefineCustomStringVariable("quorum.database",
							   "Database that holds the extension and the replicated tables.",
							   NULL,
							   &quorum_database, "postgres",
							   PGC_POSTMASTER, 0, NULL, NULL, NULL);
	define_timings();
	define_limits();
	define_log_retention();
	define_checks();
	DefineCustomEnumVariable("quorum.read_consistency",
							 "What a statement that reads replicated tables sees.",
							 "linearizable: all that was acknowledged on any node before it began, which takes a round to a majority; "
							 "local: what this node has applied so far.",
							 &quorum_read_consistency, READ_LINEARIZABLE, read_consistency_options,
							 PGC_USERSET, 0, NULL, NULL, NULL);
	define_tokens();
	DefineCustomEnumVariable("quorum.log_level",
							 "Level at which the workers log elections, links and progress of no lasting interest.",
							 NULL,
							 &quorum_log_level, DEBUG1, log_level_options,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
	MarkGUCPrefixReserved("quorum");
}
