/*
 * certified_keys.c
 *	  The keys that the current transaction will be certified by: rows and unique keys that it wrote, rows that it locked, tables that it
 *	  holds locks of, and, if it is serializable, what it read; if it has a token, epochs of tokens.
 *
 * Process: client backend.  Must never leave out a lock that could block the apply worker: whoever waits for its turn with such a lock must
 * be rejected by the log if an entry before it needs that lock, or both would wait for each other.  (What is left out all the same
 * is found by the lock watcher, and ends with 08007: see must_yield in proposal_queue.h.)
 *
 * Invariants
 *	 1. The base of a lock is an index that was read while the lock was held, and up to which all is committed here.  No entry that needs the
 *		lock has been applied between the moment it was taken and that one, so none is missed; and what was committed before was seen.
 *	 2. The base of what a serializable transaction read is the exact log index of its snapshot.
 *	 3. locks[] is in the order in which they were taken, so what a savepoint took stands at its end.  What was read stays read.
 *
 * Locks: none.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "capture/certified_keys.h"
#include "capture/row_keys.h"
#include "shared/position.h"
#include "shared/proposal_queue.h"
#include "shared/replicated_tables.h"
#include "shared/writeset.h"

#define INITIAL_KEYS 32
#define MAX_LISTED_KEYS 32768	/* more: the tables as a whole */
#define MAX_KEPT_LOCKS (2 * MAX_LISTED_KEYS)	/* more: that is done at once, so that memory does not grow with each locked row */

typedef struct KeyList
{
	CertifiedKey *keys;			/* in TopTransactionContext; NULL: none yet */
	uint32		count;
	uint32		capacity;
} KeyList;

static KeyList locks;
static KeyList reads;
static KeyList epochs;
static KeyList encoded;
static uint32 merge_at_count = MAX_KEPT_LOCKS;	/* grows if there are so many savepoints that merging leaves much */
static Oid *noted_tables = NULL;	/* in TopTransactionContext */
static int	noted_count = 0;
static int	noted_capacity = 0;
static bool all_noted = false;

static CertifiedKey *
append_key(KeyList *list)
{
	if (list->keys == NULL)
	{
		list->capacity = INITIAL_KEYS;
		list->keys = MemoryContextAlloc(TopTransactionContext, INITIAL_KEYS * sizeof(CertifiedKey));
	}
	else if (list->count == list->capacity)
	{
		list->capacity *= 2;
		list->keys = repalloc_huge(list->keys, (Size) list->capacity * sizeof(CertifiedKey));
	}
	return memset(&list->keys[list->count++], 0, sizeof(CertifiedKey));
}

/* ---- putting in ---- */

static CertifiedKey *
add_key(KeyList *list, uint64 hash, CertifierMode mode, uint64 table_id, Oid relid, Oid index)
{
	CertifiedKey *key = append_key(list);

	key->hash = hash;
	key->mode = mode;
	key->base = turn_committed_index();
	key->nest_level = GetCurrentTransactionNestLevel();
	key->table_id = table_id;
	key->relid = relid;
	key->index = index;
	ItemPointerSetInvalid(&key->tid);
	return key;
}

static void
make_table_key(CertifiedKey *key)
{
	key->hash = row_keys_table_hash(key->table_id);
	key->mode = CERTIFIER_TABLE_EXCLUSIVE;
	key->index = InvalidOid;
}

static bool
merge_into_kept(uint32 kept, const CertifiedKey *key)
{
	for (uint32 i = kept; i > 0 && locks.keys[i - 1].nest_level == key->nest_level; i--)
	{
		CertifiedKey *other = &locks.keys[i - 1];

		if (other->hash != key->hash || other->mode != key->mode)
			continue;
		other->base = Min(other->base, key->base);
		return true;
	}
	return false;
}

/* Each table's rows become the table, apart for each savepoint (invariant 3). */
static void
merge_locks_of_tables(void)
{
	uint32		kept = 0;

	for (uint32 i = 0; i < locks.count; i++)
	{
		CertifiedKey key = locks.keys[i];

		if (OidIsValid(key.index))
			make_table_key(&key);
		if (!merge_into_kept(kept, &key))
			locks.keys[kept++] = key;
	}
	locks.count = kept;
	merge_at_count = Max(MAX_KEPT_LOCKS, 2 * kept);
}

void
certified_keys_add_lock(uint64 hash, CertifierMode mode, uint64 table_id, Oid relid, Oid index, ItemPointer row)
{
	CertifiedKey *key;

	if (locks.count >= merge_at_count)
		merge_locks_of_tables();
	key = add_key(&locks, hash, mode, table_id, relid, index);
	if (row != NULL)
		key->tid = *row;
}

/* A table that was read as a whole needs no rows. */
static bool
is_table_read(uint64 table_id)
{
	for (uint32 i = 0; i < reads.count; i++)
		if (reads.keys[i].mode == CERTIFIER_TABLE_READ && reads.keys[i].table_id == table_id)
			return true;
	return false;
}

void
certified_keys_add_read(uint64 hash, uint64 table_id, Oid relid, Oid index)
{
	if (reads.count > 0 && reads.keys[reads.count - 1].hash == hash)
		return;
	if (reads.count >= MAX_LISTED_KEYS)
		certified_keys_add_table_read(table_id, relid);
	else
		(void) add_key(&reads, hash, CERTIFIER_READ, table_id, relid, index);
}

void
certified_keys_add_table_read(uint64 table_id, Oid relid)
{
	if (!is_table_read(table_id))
		(void) add_key(&reads, row_keys_table_hash(table_id), CERTIFIER_TABLE_READ, table_id, relid, InvalidOid);
}

void
certified_keys_add_epoch(uint64 hash, CertifierMode mode, uint64 base)
{
	add_key(&epochs, hash, mode, 0, InvalidOid, InvalidOid)->base = base;
}

void
certified_keys_note_table(Oid relid)
{
	for (int i = 0; i < noted_count; i++)
		if (noted_tables[i] == relid)
			return;
	if (noted_tables == NULL)
	{
		noted_capacity = INITIAL_KEYS;
		noted_tables = MemoryContextAlloc(TopTransactionContext, INITIAL_KEYS * sizeof(Oid));
	}
	else if (noted_count == noted_capacity)
	{
		noted_capacity *= 2;
		noted_tables = repalloc(noted_tables, noted_capacity * sizeof(Oid));
	}
	noted_tables[noted_count++] = relid;
}

void
certified_keys_note_all_tables(void)
{
	all_noted = true;
}

/* ---- savepoints ---- */

static void
subtransaction_callback(SubXactEvent event, SubTransactionId id, SubTransactionId parent_id, void *argument)
{
	int			nest_level = GetCurrentTransactionNestLevel();

	if (event == SUBXACT_EVENT_ABORT_SUB)
		while (locks.count > 0 && locks.keys[locks.count - 1].nest_level >= nest_level)
			locks.count--;
	if (event == SUBXACT_EVENT_COMMIT_SUB)
		for (uint32 i = locks.count; i > 0 && locks.keys[i - 1].nest_level >= nest_level; i--)
			locks.keys[i - 1].nest_level = nest_level - 1;
}

void
certified_keys_init(void)
{
	RegisterSubXactCallback(subtransaction_callback, NULL);
}

void
certified_keys_reset(void)
{
	memset(&locks, 0, sizeof(locks));
	merge_at_count = MAX_KEPT_LOCKS;
	memset(&reads, 0, sizeof(reads));
	memset(&epochs, 0, sizeof(epochs));
	memset(&encoded, 0, sizeof(encoded));
	noted_tables = NULL;
	noted_count = 0;
	all_noted = false;
}

/* ---- tables ---- */

/* The strongest lock of the table that this transaction holds, as certification sees it; false: none. */
static bool
table_lock_mode(Oid relid, CertifierMode *mode)
{
	LOCKTAG		tag;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, relid);
	for (LOCKMODE lock_mode = AccessExclusiveLock; lock_mode >= AccessShareLock; lock_mode--)
	{
		if (!LockHeldByMe(&tag, lock_mode))
			continue;
		if (lock_mode >= ShareRowExclusiveLock)
			*mode = CERTIFIER_TABLE_EXCLUSIVE;
		else if (lock_mode == ShareLock)
			*mode = CERTIFIER_TABLE_SHARE;
		else if (lock_mode == RowExclusiveLock)
			*mode = CERTIFIER_TABLE_ROW_EXCLUSIVE;
		else if (lock_mode == ShareUpdateExclusiveLock && LockHeldByMe(&tag, RowExclusiveLock))
			*mode = CERTIFIER_TABLE_ROW_EXCLUSIVE;	/* the one mode that is above it and does not include it */
		else
			*mode = CERTIFIER_TABLE_ROW_SHARE;
		return true;
	}
	return false;
}

/*
 * SHARE is weaker than SHARE ROW EXCLUSIVE, but one who holds SHARE and ROW EXCLUSIVE (LOCK TABLE … IN SHARE MODE, then UPDATE) excludes
 * other writers and writes itself: both are listed.
 */
static void
add_table_key(Oid relid)
{
	const ReplicatedTable *table = replicated_table_by_relid(relid);
	LOCKTAG		tag;
	CertifierMode mode;

	if (table == NULL || table->state != REPLICATED_TABLE_ACTIVE || !table_lock_mode(relid, &mode))
		return;
	certified_keys_add_lock(row_keys_table_hash(table->table_id), mode, table->table_id, relid, InvalidOid, NULL);
	SET_LOCKTAG_RELATION(tag, MyDatabaseId, relid);
	if (mode == CERTIFIER_TABLE_SHARE && LockHeldByMe(&tag, RowExclusiveLock))
		certified_keys_add_lock(row_keys_table_hash(table->table_id), CERTIFIER_TABLE_ROW_EXCLUSIVE, table->table_id, relid,
								InvalidOid, NULL);
}

static void
add_table_keys(void)
{
	if (all_noted)
		replicated_tables_visit(add_table_key);
	else
		for (int i = 0; i < noted_count; i++)
			add_table_key(noted_tables[i]);
}

/* ---- taking out ---- */

static int
compare_keys(const void *left_pointer, const void *right_pointer)
{
	const CertifiedKey *left = left_pointer;
	const CertifiedKey *right = right_pointer;

	if (left->hash != right->hash)
		return left->hash < right->hash ? -1 : 1;
	if (left->mode != right->mode)
		return left->mode < right->mode ? -1 : 1;
	return left->base < right->base ? -1 : left->base > right->base;
}

static int
compare_places(const void *left, const void *right)
{
	uint32		left_place = ((const CertifiedKey *) left)->place;
	uint32		right_place = ((const CertifiedKey *) right)->place;

	return left_place < right_place ? -1 : left_place > right_place;
}

/* Rows that are too many to be listed become their tables. */
static void
gather_locks(void)
{
	bool		by_table = locks.count > MAX_LISTED_KEYS;

	for (uint32 i = 0; i < locks.count; i++)
	{
		CertifiedKey *key = append_key(&encoded);

		*key = locks.keys[i];
		if (by_table && OidIsValid(key->index))
			make_table_key(key);
	}
}

/* Of a row that was read: whoever changed too many rows to list them has only the table as a whole among its keys. */
static void
add_table_of_read_row(const CertifiedKey *read, uint64 base)
{
	CertifiedKey *key = append_key(&encoded);

	*key = *read;
	key->hash = row_keys_table_hash(read->table_id);
	key->mode = CERTIFIER_TABLE_ROW_SHARE;
	key->base = base;
	key->index = InvalidOid;
}

static void
gather_reads(void)
{
	uint64		base;

	if (reads.count == 0)
		return;
	base = position_under_snapshot(GetTransactionSnapshot());
	for (uint32 i = 0; i < reads.count; i++)
	{
		CertifiedKey *key = append_key(&encoded);

		*key = reads.keys[i];
		key->base = base;
		if (reads.keys[i].mode == CERTIFIER_READ && (i == 0 || reads.keys[i - 1].table_id != reads.keys[i].table_id))
			add_table_of_read_row(&reads.keys[i], base);
	}
}

/* The last, so that a conflict of rows is told first. */
static void
gather_epochs(void)
{
	for (uint32 i = 0; i < epochs.count; i++)
		*append_key(&encoded) = epochs.keys[i];
}

/* Of the same key in the same mode the one with the oldest base is kept.  The order is that in which a conflict is looked for, and told. */
static void
drop_duplicates(void)
{
	uint32		kept = 0;

	for (uint32 i = 0; i < encoded.count; i++)
		encoded.keys[i].place = i;
	qsort(encoded.keys, encoded.count, sizeof(CertifiedKey), compare_keys);
	for (uint32 i = 0; i < encoded.count; i++)
		if (kept == 0 || encoded.keys[kept - 1].hash != encoded.keys[i].hash ||
			encoded.keys[kept - 1].mode != encoded.keys[i].mode)
			encoded.keys[kept++] = encoded.keys[i];
	encoded.count = kept;
	qsort(encoded.keys, encoded.count, sizeof(CertifiedKey), compare_places);
}

uint32
certified_keys_encode(StringInfo payload, uint64 highest_base, uint64 *base)
{
	encoded.count = 0;
	add_table_keys();
	gather_locks();
	gather_reads();
	gather_epochs();
	if (encoded.count > 0)
		drop_duplicates();
	*base = Min(turn_applied_index(), highest_base);
	for (uint32 i = 0; i < encoded.count; i++)
		*base = Min(*base, encoded.keys[i].base);
	for (uint32 i = 0; i < encoded.count; i++)
		writeset_put_certified_key(payload, encoded.keys[i].hash, encoded.keys[i].mode, encoded.keys[i].base - *base);
	return encoded.count;
}

const CertifiedKey *
certified_keys_get(uint32 number)
{
	return number < encoded.count ? &encoded.keys[number] : NULL;
}
