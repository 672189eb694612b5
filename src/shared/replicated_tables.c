/*
 * replicated_tables.c
 *	  Which tables are replicated: a cache of quorum.replicated_table in each process, and the changes of that table.
 *
 * Process: client backends, the apply worker.  Must never be called outside a transaction.
 *
 * Invariants
 *	 1. Each change of quorum.replicated_table sends a relcache invalidation for it, so that a process which has locked a table since
 *		then knows whether it is replicated.
 *	 2. The cache is thrown away as a whole: it is small, and changes are rare.
 *
 * Locks: AccessShareLock on quorum.replicated_table while loading.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "shared/internal_identity.h"
#include "shared/replicated_tables.h"

#define TABLE_ID_ATTRIBUTE 1
#define RELATION_ATTRIBUTE 2
#define STATE_ATTRIBUTE 5
#define ORIGIN_NODE_ATTRIBUTE 6
#define HEALTH_TABLE_ID_ATTRIBUTE 1
#define HEALTH_QUARANTINED_INDEX_ATTRIBUTE 4

/* One entry per replicated table; two ways to find it. */
typedef struct TableOfRelation
{
	Oid			relid;			/* hash key */
	ReplicatedTable *table;
} TableOfRelation;

static HTAB *tables_by_id = NULL;
static HTAB *tables_by_relid = NULL;
static MemoryContext cache_context = NULL;
static bool cache_is_valid = false;
static bool any_is_quarantined = false;
static Oid	catalog_relid = InvalidOid; /* InvalidOid: not known, so every invalidation may be of it */

/* ---- cache ---- */

static Oid
find_table_of_ours(const char *name)
{
	Oid			schema = get_namespace_oid("quorum", true);

	return OidIsValid(schema) ? get_relname_relid(name, schema) : InvalidOid;
}

static Oid
find_catalog(void)
{
	return find_table_of_ours("replicated_table");
}

static void
note_invalidation(Datum argument, Oid relid)
{
	if (relid == InvalidOid || catalog_relid == InvalidOid || relid == catalog_relid)
		cache_is_valid = false;
}

static void
create_cache(void)
{
	static bool registered = false;
	HASHCTL		control;

	if (!registered)
	{
		CacheRegisterRelcacheCallback(note_invalidation, (Datum) 0);
		registered = true;
	}
	if (cache_context == NULL)
		cache_context = AllocSetContextCreate(CacheMemoryContext, "pg_quorum replicated tables", ALLOCSET_SMALL_SIZES);
	else
		MemoryContextReset(cache_context);

	control.hcxt = cache_context;
	control.keysize = sizeof(uint64);
	control.entrysize = sizeof(ReplicatedTable);
	tables_by_id = hash_create("pg_quorum tables by number", 32, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	control.keysize = sizeof(Oid);
	control.entrysize = sizeof(TableOfRelation);
	tables_by_relid = hash_create("pg_quorum tables by oid", 32, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

static void
add_to_cache(Relation catalog, HeapTuple tuple)
{
	TupleDesc	descriptor = RelationGetDescr(catalog);
	bool		is_null;
	uint64		table_id = (uint64) DatumGetInt64(heap_getattr(tuple, TABLE_ID_ATTRIBUTE, descriptor, &is_null));
	ReplicatedTable *table = hash_search(tables_by_id, &table_id, HASH_ENTER, NULL);
	TableOfRelation *entry;
	Datum		origin_node;

	table->relid = DatumGetObjectId(heap_getattr(tuple, RELATION_ATTRIBUTE, descriptor, &is_null));
	table->state = DatumGetChar(heap_getattr(tuple, STATE_ATTRIBUTE, descriptor, &is_null));
	origin_node = heap_getattr(tuple, ORIGIN_NODE_ATTRIBUTE, descriptor, &is_null);
	table->origin_node = is_null ? 0 : (uint32) DatumGetInt32(origin_node);
	table->quarantined_index = 0;
	entry = hash_search(tables_by_relid, &table->relid, HASH_ENTER, NULL);
	entry->table = table;
}

/* What this node knows of its own copy. */
static void
add_health(Relation health, HeapTuple tuple)
{
	TupleDesc	descriptor = RelationGetDescr(health);
	bool		is_null;
	uint64		table_id = (uint64) DatumGetInt64(heap_getattr(tuple, HEALTH_TABLE_ID_ATTRIBUTE, descriptor, &is_null));
	Datum		quarantined_index = heap_getattr(tuple, HEALTH_QUARANTINED_INDEX_ATTRIBUTE, descriptor, &is_null);
	ReplicatedTable *table = hash_search(tables_by_id, &table_id, HASH_FIND, NULL);

	if (table == NULL || is_null)
		return;
	table->quarantined_index = (uint64) DatumGetInt64(quarantined_index);
	any_is_quarantined = true;
}

static void
load_rows(Oid relid, void (*add) (Relation relation, HeapTuple tuple))
{
	Relation	relation = table_open(relid, AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetCatalogSnapshot(relid));	/* fresh, and not the transaction's own */
	TableScanDesc scan = table_beginscan(relation, snapshot, 0, NULL);
	HeapTuple	tuple;

	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
		add(relation, tuple);
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(relation, AccessShareLock);
}

static void
load_cache(void)
{
	Oid			health_relid;

	create_cache();
	any_is_quarantined = false;
	cache_is_valid = true;		/* an invalidation while loading makes it invalid again */
	catalog_relid = find_catalog();
	if (!OidIsValid(catalog_relid))
		return;
	load_rows(catalog_relid, add_to_cache);
	health_relid = find_table_of_ours("table_health");
	if (OidIsValid(health_relid))
		load_rows(health_relid, add_health);
}

static void
ensure_loaded(void)
{
	if (cache_is_valid)
		return;
	PG_TRY();
	{
		load_cache();
	}
	PG_CATCH();
	{
		cache_is_valid = false;
		PG_RE_THROW();
	}
	PG_END_TRY();
}

const ReplicatedTable *
replicated_table_by_relid(Oid relid)
{
	TableOfRelation *entry;

	ensure_loaded();
	entry = hash_search(tables_by_relid, &relid, HASH_FIND, NULL);
	return entry != NULL ? entry->table : NULL;
}

const ReplicatedTable *
replicated_table_by_id(uint64 table_id)
{
	ensure_loaded();
	return hash_search(tables_by_id, &table_id, HASH_FIND, NULL);
}

/* The visitor may look tables up: what is visited are those of now. */
void
replicated_tables_visit(void (*visitor) (Oid relid))
{
	HASH_SEQ_STATUS scan;
	TableOfRelation *entry;
	List	   *relids = NIL;
	ListCell   *cell;

	ensure_loaded();
	hash_seq_init(&scan, tables_by_relid);
	while ((entry = hash_seq_search(&scan)) != NULL)
		relids = lappend_oid(relids, entry->relid);
	foreach(cell, relids)
		visitor(lfirst_oid(cell));
	list_free(relids);
}

bool
replicated_tables_exist(void)
{
	ensure_loaded();
	return hash_get_num_entries(tables_by_relid) > 0;
}

bool
replicated_tables_quarantined(void)
{
	ensure_loaded();
	return any_is_quarantined;
}

static bool
is_locked_here(Oid relid)
{
	LOCKTAG		tag;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, relid);
	for (LOCKMODE mode = AccessShareLock; mode <= AccessExclusiveLock; mode++)
		if (LockHeldByMe(&tag, mode))
			return true;
	return false;
}

bool
replicated_table_is_locked_here(void)
{
	HASH_SEQ_STATUS scan;
	TableOfRelation *entry;

	ensure_loaded();
	hash_seq_init(&scan, tables_by_relid);
	while ((entry = hash_seq_search(&scan)) != NULL)
		if (is_locked_here(entry->relid))
		{
			hash_seq_term(&scan);
			return true;
		}
	return false;
}

/* ---- changes ---- */

/* Whoever is allowed to call quorum.replicate() need not own the table or the catalog.  Returns the number of rows that the last statement touched. */
static uint64
run_as_superuser(const char *sql)
{
	InternalIdentity saved;
	uint64		row_count;

	internal_identity_assume(&saved);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute(sql, false, 0) < 0)
		elog(ERROR, "SPI_execute failed: %s", sql);
	row_count = SPI_processed;
	SPI_finish();
	internal_identity_restore(&saved);
	return row_count;
}

static char *
qualified_name(Oid relid)
{
	char	   *name = get_rel_name(relid);

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("replicated table with OID %u does not exist", relid)));
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)), name);
}

void
replicated_tables_invalidate(void)
{
	Oid			relid = find_catalog();

	if (OidIsValid(relid))
		CacheInvalidateRelcacheByRelid(relid);
	CommandCounterIncrement();
	cache_is_valid = false;
}

void
replicated_table_note_copying(Oid relid, uint64 table_id, uint32 origin_node)
{
	char	   *schema_name = quote_literal_cstr(get_namespace_name(get_rel_namespace(relid)));
	char	   *table_name = quote_literal_cstr(get_rel_name(relid));

	run_as_superuser(psprintf("INSERT INTO quorum.replicated_table (table_id, relation, schema_name, table_name, state, origin_node)"
							  " VALUES (%lld, %u::oid::regclass, %s, %s, 'c', %u)",
							  (long long) table_id, relid, schema_name, table_name, origin_node));
	replicated_tables_invalidate();
}

static void
drop_trigger(Oid relid, const char *trigger_name)
{
	if (OidIsValid(get_trigger_oid(relid, trigger_name, true)))
		run_as_superuser(psprintf("DROP TRIGGER %s ON %s", quote_identifier(trigger_name), qualified_name(relid)));
}

/* Not by ALTER TABLE, which refuses a table that its caller has open. */
static void
enable_always(Oid relid, const char *trigger_name)
{
	Relation	relation = table_open(relid, ShareRowExclusiveLock);

	EnableDisableTrigger(relation, trigger_name, TRIGGER_FIRES_ALWAYS, false, ShareRowExclusiveLock);
	table_close(relation, NoLock);
	CommandCounterIncrement();
}

static void
create_triggers(Oid relid)
{
	char	   *table = qualified_name(relid);

	drop_trigger(relid, CAPTURE_TRIGGER_NAME);
	drop_trigger(relid, TRUNCATE_TRIGGER_NAME);
	run_as_superuser(psprintf("CREATE TRIGGER \"" CAPTURE_TRIGGER_NAME "\" AFTER INSERT OR UPDATE OR DELETE ON %s"
							  " FOR EACH ROW EXECUTE FUNCTION quorum.capture()", table));
	run_as_superuser(psprintf("CREATE TRIGGER \"" TRUNCATE_TRIGGER_NAME "\" BEFORE TRUNCATE ON %s"
							  " FOR EACH STATEMENT EXECUTE FUNCTION quorum.capture_truncate()", table));
	CommandCounterIncrement();
	enable_always(relid, CAPTURE_TRIGGER_NAME);
	enable_always(relid, TRUNCATE_TRIGGER_NAME);
}

void
replicated_table_activate_locally(Oid relid, uint64 table_id, int64 row_count)
{
	create_triggers(relid);
	if (run_as_superuser(psprintf("UPDATE quorum.replicated_table SET state = 'a', row_count = %lld WHERE table_id = %lld",
								  (long long) row_count, (long long) table_id)) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table %s is not being replicated under the number %llu",
						qualified_name(relid), (unsigned long long) table_id),
				 errhint("Use the isolation level READ COMMITTED, and let no other session replicate the same table.")));
	replicated_tables_invalidate();
}

void
replicated_table_set_activated_index(uint64 table_id, uint64 log_index)
{
	run_as_superuser(psprintf("UPDATE quorum.replicated_table SET activated_index = %lld WHERE table_id = %lld",
							  (long long) log_index, (long long) table_id));
}

void
replicated_table_forget_locally(uint64 table_id)
{
	const ReplicatedTable *table = replicated_table_by_id(table_id);
	Oid			relid;

	if (table == NULL)
		return;
	relid = table->relid;
	/* The row first: the guard lets our triggers be dropped only from a table that is not replicated any more. */
	run_as_superuser(psprintf("DELETE FROM quorum.replicated_table WHERE table_id = %lld", (long long) table_id));
	run_as_superuser(psprintf("DELETE FROM quorum.table_health WHERE table_id = %lld", (long long) table_id));
	run_as_superuser(psprintf("WITH gone AS (DELETE FROM quorum.table_check WHERE table_id = %lld RETURNING check_index)"
							  " DELETE FROM quorum.check_result r USING gone WHERE r.check_index = gone.check_index", (long long) table_id));
	replicated_tables_invalidate();
	if (get_rel_name(relid) != NULL)	/* else it was dropped without being asked */
	{
		drop_trigger(relid, CAPTURE_TRIGGER_NAME);
		drop_trigger(relid, TRUNCATE_TRIGGER_NAME);
	}
}
