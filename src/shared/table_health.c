/*
 * table_health.c
 *	  Checks of replicated tables and what they say about this node's copies.
 *
 * Process: the apply worker writes, client backends and the check worker read.
 *
 * A node whose copy differs from that of a majority of the voters says so and steps aside, for that is what it can know by itself:
 * nobody else has to be trusted or reached.  It serves no rows of the table, takes no writes and does not lead.  It goes on
 * applying the log, so that only what differs has to be repaired; and its acceptor goes on voting: what it votes on are entries of
 * the log, which its journal holds whole, not rows.
 *
 * Invariants
 *	 1. A check says something about this copy only if it is newer than the last one that found it equal, and than the last repair.
 *	 2. Only a check ends a quarantine.
 *	 3. The state is written in the transaction of the log entry that it follows from: after a crash it follows from it again.
 *
 * Locks: those of the statements.
 */
#include "postgres.h"

#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "shared/internal_identity.h"
#include "shared/replicated_tables.h"
#include "shared/shmem.h"
#include "shared/table_health.h"

#define CHECKS_KEPT 8			/* per table */

/* ---- statements, as the bootstrap superuser ---- */

static void
begin_sql(InternalIdentity *saved)
{
	internal_identity_assume(saved);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

static void
end_sql(const InternalIdentity *saved)
{
	SPI_finish();
	internal_identity_restore(saved);
}

static void
execute(const char *sql)
{
	if (SPI_execute(sql, false, 0) < 0)
		elog(ERROR, "SPI_execute failed: %s", sql);
}

/* Returns the number of rows that it touched. */
static uint64
run(const char *sql)
{
	InternalIdentity saved;
	uint64		row_count;

	begin_sql(&saved);
	execute(sql);
	row_count = SPI_processed;
	end_sql(&saved);
	return row_count;
}

static char *
field(uint64 row, int column)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);
}

static uint64
number(uint64 row, int column)
{
	char	   *text = field(row, column);

	return text != NULL ? strtou64(text, NULL, 10) : 0;
}

/* ---- checks and their results ---- */

void
table_check_note(uint64 index, uint64 table_id, uint32 node_id)
{
	long long	table = (long long) table_id;

	run(psprintf("INSERT INTO quorum.table_check (check_index, table_id, node_id) VALUES (%lld, %lld, %u)",
				 (long long) index, table, node_id));
	run(psprintf("WITH old AS (DELETE FROM quorum.table_check WHERE table_id = %lld AND check_index NOT IN"
				 " (SELECT check_index FROM quorum.table_check WHERE table_id = %lld ORDER BY check_index DESC LIMIT %d)"
				 " RETURNING check_index) DELETE FROM quorum.check_result r USING old WHERE r.check_index = old.check_index",
				 table, table, CHECKS_KEPT));
}

bool
table_check_note_result(uint64 index, uint64 table_id, uint32 node_id, CheckOutcome outcome, const TableSum *sum)
{
	return run(psprintf("INSERT INTO quorum.check_result (check_index, node_id, outcome, row_count, checksum)"
						" SELECT check_index, %u, '%c', %lld, '%016llx%016llx' FROM quorum.table_check"
						" WHERE check_index = %lld AND table_id = %lld ON CONFLICT DO NOTHING",
						node_id, (char) outcome, (long long) sum->row_count, (unsigned long long) sum->hash.high,
						(unsigned long long) sum->hash.low, (long long) index, (long long) table_id)) == 1;
}

/* From the hexadecimal form. */
static void
parse_checksum(const char *text, RowHash *hash)
{
	char		half[17];

	strlcpy(half, text, sizeof(half));
	hash->high = strtou64(half, NULL, 16);
	hash->low = strlen(text) > 16 ? strtou64(text + 16, NULL, 16) : 0;
}

static bool
is_voter(const NodeStatus *status, uint32 node_id)
{
	for (int i = 0; i < status->member_count; i++)
		if (status->members[i].node_id == node_id)
			return status->members[i].is_voter;
	return false;
}

static int
read_results(uint64 index, NodeCheck *checks, int capacity)
{
	NodeStatus *status = palloc(sizeof(NodeStatus));
	int			count = 0;

	shmem_get_status(status);
	execute(psprintf("SELECT node_id, outcome, row_count, checksum FROM quorum.check_result WHERE check_index = %lld", (long long) index));
	for (uint64 i = 0; i < SPI_processed && count < capacity; i++)
	{
		NodeCheck  *check = &checks[count++];

		check->node_id = (uint32) number(i, 1);
		check->is_voter = is_voter(status, check->node_id);
		check->outcome = (CheckOutcome) field(i, 2)[0];
		check->sum.row_count = number(i, 3);
		parse_checksum(field(i, 4), &check->sum.hash);
	}
	pfree(status);
	return count;
}

int
table_check_results(uint64 index, NodeCheck *checks, int capacity)
{
	InternalIdentity saved;
	int			count;

	begin_sql(&saved);
	count = read_results(index, checks, capacity);
	end_sql(&saved);
	return count;
}

static int
quorum_size_now(void)
{
	int			quorum_size;

	LWLockAcquire(QuorumShmem->lock, LW_SHARED);
	quorum_size = QuorumShmem->status.quorum_size;
	LWLockRelease(QuorumShmem->lock);
	return quorum_size;
}

uint64
table_check_last_agreed(uint64 table_id, NodeCheck *checks, int capacity, int *count, TableSum *agreed)
{
	uint64		indexes[CHECKS_KEPT];
	uint64		found = 0;
	int			index_count = 0;
	InternalIdentity saved;

	begin_sql(&saved);
	execute(psprintf("SELECT check_index FROM quorum.table_check WHERE table_id = %lld ORDER BY check_index DESC", (long long) table_id));
	for (uint64 i = 0; i < SPI_processed && index_count < CHECKS_KEPT; i++)
		indexes[index_count++] = number(i, 1);
	for (int i = 0; i < index_count && found == 0; i++)
	{
		*count = read_results(indexes[i], checks, capacity);
		if (check_majority(checks, *count, quorum_size_now(), agreed))
			found = indexes[i];
	}
	end_sql(&saved);
	return found;
}

/* ---- this node's copies ---- */

static void
quarantine(uint64 index, uint64 table_id)
{
	const char *reason = "its rows differ from those of a majority of the nodes";

	if (run(psprintf("INSERT INTO quorum.table_health AS h (table_id, quarantined_index, quarantined_at, reason) VALUES (%lld, %lld, now(), %s)"
					 " ON CONFLICT (table_id) DO UPDATE SET quarantined_index = excluded.quarantined_index,"
					 " quarantined_at = coalesce(h.quarantined_at, now()), reason = excluded.reason"
					 " WHERE coalesce(h.verified_index, 0) < excluded.quarantined_index"
					 " AND coalesce(h.quarantined_index, 0) < excluded.quarantined_index",
					 (long long) table_id, (long long) index, quote_literal_cstr(reason))) == 0)
		return;
	replicated_tables_invalidate();
	table_health_publish();
	ereport(LOG,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("a replicated table is quarantined on this node: its rows differ from those of a majority of the nodes"),
			 errdetail("Table number %llu, found by the check at log index %llu.", (unsigned long long) table_id, (unsigned long long) index),
			 errhint("See quorum.tables and quorum.diverging_keys(), and call quorum.repair() on this node.")));
}

static void
acquit(uint64 index, uint64 table_id)
{
	bool		was_quarantined = replicated_table_by_id(table_id)->quarantined_index != 0;

	if (run(psprintf("INSERT INTO quorum.table_health AS h (table_id, verified_index) VALUES (%lld, %lld)"
					 " ON CONFLICT (table_id) DO UPDATE SET verified_index = excluded.verified_index, quarantined_index = NULL,"
					 " quarantined_at = NULL, reason = NULL"
					 " WHERE coalesce(h.verified_index, 0) < excluded.verified_index"
					 " AND coalesce(h.quarantined_index, 0) < excluded.verified_index",
					 (long long) table_id, (long long) index)) == 0 || !was_quarantined)
		return;
	replicated_tables_invalidate();
	table_health_publish();
	ereport(LOG,
			(errmsg("a replicated table is not quarantined any more: the check at log index %llu found its rows equal",
					(unsigned long long) index)));
}

void
table_health_judge(uint64 index, uint64 table_id, uint32 own_node_id)
{
	NodeCheck	checks[QUORUM_MAX_MEMBERS];
	int			count = table_check_results(index, checks, QUORUM_MAX_MEMBERS);

	if (replicated_table_by_id(table_id) == NULL)
		return;					/* unreplicated meanwhile */
	switch (check_verdict(checks, count, quorum_size_now(), own_node_id))
	{
		case CHECK_DIFFERS:
			quarantine(index, table_id);
			break;
		case CHECK_MATCHES:
			acquit(index, table_id);
			break;
		case CHECK_UNDECIDED:
			break;
	}
}

void
table_health_note_repaired(uint64 index, uint64 table_id)
{
	run(psprintf("INSERT INTO quorum.table_health AS h (table_id, verified_index) VALUES (%lld, %lld)"
				 " ON CONFLICT (table_id) DO UPDATE SET verified_index = greatest(h.verified_index, excluded.verified_index)",
				 (long long) table_id, (long long) index));
}

void
table_health_publish(void)
{
	InternalIdentity saved;
	uint64		count;
	char	   *text = NULL;

	begin_sql(&saved);
	execute("SELECT count(*), string_agg(format('table %I.%I: %s (check at log index %s)', schema_name, table_name, reason, quarantined_index), '; '"
			" ORDER BY quarantined_index) FROM quorum.table_health JOIN quorum.replicated_table USING (table_id) WHERE quarantined_index IS NOT NULL");
	count = number(0, 1);
	text = field(0, 2);
	LWLockAcquire(QuorumShmem->lock, LW_EXCLUSIVE);
	QuorumShmem->quarantine[0] = '\0';
	if (text != NULL)
		snprintf(QuorumShmem->quarantine, sizeof(QuorumShmem->quarantine), "quarantined %s", text);
	LWLockRelease(QuorumShmem->lock);
	pg_atomic_write_u32(&QuorumShmem->quarantined_tables, (uint32) count);
	end_sql(&saved);
	shmem_wake_consensus();		/* it must not lead, nor stay out, for longer than needed */
}
