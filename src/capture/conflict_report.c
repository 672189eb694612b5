/*
 * conflict_report.c
 *	  What a transaction is told that lost: table, key, winner.  Process: client backend, before the transaction's abort.
 *
 * The rows that the transaction wrote or locked are still there, so a key's values are read from the row that has it; as in messages of unique
 * violations they are shown only to those who may read the columns.
 *
 * Must never say of a transaction that may have been committed that it was not: whoever calls this knows the verdict of the log.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/index.h"
#include "executor/executor.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "capture/certified_keys.h"
#include "capture/capture.h"
#include "capture/conflict_report.h"
#include "config.h"
#include "shared/chosen_log.h"
#include "shared/conflicts.h"
#include "shared/proposal_queue.h"
#include "shared/shmem.h"

/* "(id)=(7)"; NULL if the user may not see it. */
static char *
describe_row_key(Relation relation, const CertifiedKey *key, TupleTableSlot *row)
{
	Relation	index = try_index_open(key->index, AccessShareLock);
	EState	   *estate = CreateExecutorState();
	Datum		values[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS];
	char	   *text;

	if (index == NULL)
		return NULL;
	GetPerTupleExprContext(estate)->ecxt_scantuple = row;
	FormIndexDatum(BuildIndexInfo(index), row, estate, values, nulls);
	text = BuildIndexValueDescription(index, values, nulls);
	index_close(index, AccessShareLock);
	return text;
}

static char *
describe_key(const CertifiedKey *key)
{
	Relation	relation;
	TupleTableSlot *row;
	ItemPointerData tid = key->tid;
	char	   *text = NULL;

	if (!OidIsValid(key->index) || !ItemPointerIsValid(&tid))
		return NULL;
	relation = try_table_open(key->relid, AccessShareLock);
	if (relation == NULL)
		return NULL;
	PushActiveSnapshot(GetTransactionSnapshot());
	row = table_slot_create(relation, NULL);
	if (table_tuple_fetch_row_version(relation, &tid, SnapshotAny, row))
		text = describe_row_key(relation, key, row);
	ExecDropSingleTupleTableSlot(row);
	PopActiveSnapshot();
	table_close(relation, NoLock);
	return text;
}

static const char *
what_changed(CertifierMode mode)
{
	switch (mode)
	{
		case CERTIFIER_KEY_SHARE:
		case CERTIFIER_SHARE:
		case CERTIFIER_NO_KEY_UPDATE:
		case CERTIFIER_UPDATE:
			return "was changed or locked";
		case CERTIFIER_READ:
		case CERTIFIER_TABLE_READ:
			return "was changed after it was read";
		default:
			return "was changed or locked as a whole";
	}
}

static void
fill_conflict(Conflict *conflict, uint64 log_index, const CertifierVerdict *verdict)
{
	const CertifiedKey *key = certified_keys_get(verdict->key_number);
	char	   *key_text = key != NULL ? describe_key(key) : NULL;
	char	   *table_name = key != NULL ? get_rel_name(key->relid) : NULL;
	LogItem		winner;

	memset(conflict, 0, sizeof(Conflict));
	conflict->occurred_at = GetCurrentTimestamp();
	conflict->log_index = log_index;
	conflict->winner_index = verdict->conflict_index;
	if (table_name != NULL)
	{
		strlcpy(conflict->schema_name, get_namespace_name(get_rel_namespace(key->relid)), NAMEDATALEN);
		strlcpy(conflict->table_name, table_name, NAMEDATALEN);
	}
	if (key_text != NULL)
		strlcpy(conflict->key, key_text, pg_mbcliplen(key_text, strlen(key_text), CONFLICT_KEY_LENGTH - 1) + 1);
	if (chosen_log_try_read_item(verdict->conflict_index, &winner))
	{
		conflict->winner_node_id = winner.origin;
		shmem_member_name(winner.origin, conflict->winner_node, NAMEDATALEN);
	}
	else
		strlcpy(conflict->winner_node, "unknown", NAMEDATALEN);	/* the entry is no longer held */
}

/* Nobody is in its way but the number of tokens (shared/token_epochs.h).  That an attempt with its own came first would have been found. */
static void pg_attribute_noreturn()
report_guard(uint64 mark_index)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not commit: the transaction took too long"),
			 errdetail("By log index " UINT64_FORMAT " so many others with tokens had come that an earlier attempt with the token \"%s\" might soon be forgotten.",
					   mark_index, quorum_token),
			 errhint("Retry the transaction, and keep it short.")));
}

static void
report_conflict(uint64 log_index, const CertifierVerdict *verdict)
{
	const CertifiedKey *key = certified_keys_get(verdict->key_number);
	Conflict	conflict;

	if (key != NULL && !OidIsValid(key->relid))
		report_guard(verdict->conflict_index);
	fill_conflict(&conflict, log_index, verdict);
	conflicts_add(&conflict);
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not commit: another transaction came first"),
			 errdetail("%s %s by node \"%s\" at log index %llu.",
					   conflict.key[0] != '\0' ?
					   psprintf("Key %s of table \"%s\"", conflict.key, conflict.table_name) :
					   psprintf("%s \"%s\"", key != NULL && OidIsValid(key->index) ? "A row of table" : "Table", conflict.table_name),
					   what_changed(key != NULL ? key->mode : CERTIFIER_UPDATE), conflict.winner_node,
					   (unsigned long long) conflict.winner_index),
			 errhint("Retry the transaction.")));
}

/* It was queued, and the lock watcher took it out of the queue. */
static void pg_attribute_noreturn()
report_in_the_way(void)
{
	const DoomedTransaction *doomed = proposal_own_doom();

	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not commit: the transaction stood in the way of one that a quorum agreed on"),
			 doomed != NULL && doomed->log_index != 0 ?
			 errdetail("It held a lock that log index %llu, of node \"%s\", needs.",
					   (unsigned long long) doomed->log_index, doomed->node_name) : 0,
			 errhint("Retry the transaction.")));
}

void
conflict_report(uint64 log_index, const CertifierVerdict *verdict)
{
	unsigned long long index = verdict->conflict_index;

	if (verdict->reason == CERTIFIER_CONFLICT || verdict->reason == CERTIFIER_TOO_OLD || verdict->reason == CERTIFIER_APPLY)
		token_promise_check_rejected();
	switch (verdict->reason)
	{
		case CERTIFIER_CONFLICT:
			report_conflict(log_index, verdict);
			break;
		case CERTIFIER_TOO_OLD:
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("could not commit: the transaction took too long"),
					 errdetail("Its locks are older than log index %llu, before which changes are not remembered one by one.", index),
					 errhint("Retry the transaction, and keep it short.")));
			break;
		case CERTIFIER_TOKEN_COMMITTED:
			ereport(ERROR,
					(errcode(ERRCODE_UNIQUE_VIOLATION),
					 errmsg("a transaction with the token \"%s\" has been committed already", quorum_token),
					 errdetail("It stands at log index %llu; this one takes no effect.", index),
					 errhint("If this is a retry, its work is done. Use another token for other work.")));
			break;
		case CERTIFIER_FENCED:
			ereport(ERROR,
					(errcode(ERRCODE_TRANSACTION_ROLLBACK),
					 errmsg("the transaction was given up by quorum.outcome()"),
					 errdetail("Since log index %llu no transaction with its token takes effect.", index),
					 errhint("Retry it with another token, or with none.")));
			break;
		case CERTIFIER_MALFORMED:
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("the transaction's write set is malformed: it takes no effect")));
			break;
		case CERTIFIER_APPLY:
			break;
	}
	report_in_the_way();
}
