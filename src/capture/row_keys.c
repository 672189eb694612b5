/*
 * row_keys.c
 *	  Hashes of the primary and unique keys of rows of replicated tables.
 *
 * Process: client backend, inside a transaction.  Must never make two values differ that a unique index takes for equal, on whatever
 * nodes they are: then two nodes could each insert one of them.  The other way round costs a needless 40001.
 *
 * How a column is hashed follows from the operator that its index means by "equal": with the extended hash function that belongs to it.  Enums
 * hash their OIDs, which differ between nodes: here their labels are hashed.  Where there is no such function, or its result could depend on
 * OIDs (object identifier types, containers of types that travel as text), all values of the key have one hash.
 *
 * Invariants
 *	 1. A key with a null is no key, unless the index says NULLS NOT DISTINCT; a row outside of a partial index has no key there.
 *	 2. The seeds of two indexes are equal only if they have the same columns, expressions not told apart: then a conflict may be
 *		needless, but none is missed.
 *
 * Locks: none of its own; the relation is open.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/nbtree.h"
#include "access/tableam.h"
#include "catalog/index.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/datum.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/typcache.h"

#include "capture/certified_keys.h"
#include "capture/row_keys.h"
#include "shared/writeset.h"

#define TABLE_SEED UINT64CONST(0x7AB1E5EED0000001)
#define PRIMARY_SEED UINT64CONST(0x9B1ACEED00000002)
#define UNIQUE_SEED UINT64CONST(0x04100E5EED000003)
#define NULL_HASH UINT64CONST(0x0FF0F00D00000004)

typedef struct KeyColumn
{
	AttrNumber	attribute;		/* 0: an expression */
	Oid			collation;
	bool		is_enum;
	FmgrInfo	function;		/* extended hash function, or the enum's output function */
} KeyColumn;

typedef struct UniqueKey
{
	Oid			index;
	bool		is_primary;
	bool		is_plain;		/* neither expressions nor a predicate: foreign keys may refer to it */
	bool		can_be_hashed;
	bool		nulls_not_distinct;
	uint64		seed;
	int			column_count;
	KeyColumn  *columns;
	IndexInfo  *info;
} UniqueKey;

typedef struct TableKeys
{
	Oid			relid;			/* hash key */
	bool		valid;
	MemoryContext context;		/* of what follows */
	int			count;			/* the primary key is the first */
	UniqueKey  *keys;
} TableKeys;

static HTAB *cache = NULL;

uint64
row_keys_table_hash(uint64 table_id)
{
	return hash_combine64(TABLE_SEED, table_id);
}

/* ---- what the unique indexes are ---- */

static uint64
hash_of_number(uint64 number)
{
	return hash_bytes_extended((unsigned char *) &number, sizeof(number), 0);
}

/* False: no function, or one whose result need not be the same on all nodes. */
static bool
find_hash_function(KeyColumn *column, Oid column_type, Oid family, Oid operator_type, MemoryContext context)
{
	Oid			base_type = getBaseType(column_type);
	Oid			type = IsPolymorphicType(operator_type) ? base_type : operator_type;
	Oid			equality = get_opfamily_member(family, operator_type, operator_type, BTEqualStrategyNumber);
	TypeCacheEntry *entry;
	Oid			output_function;
	bool		is_varlena;

	column->is_enum = get_typtype(base_type) == TYPTYPE_ENUM;
	if (column->is_enum)
	{
		getTypeOutputInfo(base_type, &output_function, &is_varlena);
		fmgr_info_cxt(output_function, &column->function, context);
		return true;
	}
	if (writeset_type_travels_as_text(base_type))
		return false;
	entry = lookup_type_cache(type, TYPECACHE_EQ_OPR | TYPECACHE_HASH_EXTENDED_PROC);
	if (!OidIsValid(entry->hash_extended_proc) || entry->eq_opr != equality)
		return false;
	fmgr_info_cxt(entry->hash_extended_proc, &column->function, context);
	return true;
}

/* Attribute numbers may differ between nodes where columns were dropped; what is the same is the order of the live ones. */
static uint64
place_of_column(Relation relation, AttrNumber attribute)
{
	uint64		place = 0;

	for (int i = 0; i < attribute; i++)
		if (!TupleDescAttr(RelationGetDescr(relation), i)->attisdropped)
			place++;
	return place;
}

static void
build_key(UniqueKey *key, Relation relation, Relation index, MemoryContext context)
{
	Form_pg_index form = index->rd_index;

	key->index = RelationGetRelid(index);
	key->is_primary = form->indisprimary;
	key->nulls_not_distinct = form->indnullsnotdistinct;
	key->info = BuildIndexInfo(index);
	key->is_plain = key->info->ii_Expressions == NIL && key->info->ii_Predicate == NIL;
	key->can_be_hashed = true;
	key->seed = key->is_primary ? PRIMARY_SEED : UNIQUE_SEED;
	key->column_count = IndexRelationGetNumberOfKeyAttributes(index);
	key->columns = MemoryContextAllocZero(context, key->column_count * sizeof(KeyColumn));
	for (int i = 0; i < key->column_count; i++)
	{
		KeyColumn  *column = &key->columns[i];
		Oid			type;			/* of the column: an index may store it as another one */

		column->attribute = form->indkey.values[i];
		column->collation = index->rd_indcollation[i];
		key->seed = hash_combine64(key->seed, place_of_column(relation, column->attribute));
		type = TupleDescAttr(column->attribute != 0 ? RelationGetDescr(relation) : RelationGetDescr(index),
							 column->attribute != 0 ? column->attribute - 1 : i)->atttypid;
		if (!find_hash_function(column, type, index->rd_opfamily[i], index->rd_opcintype[i], context))
			key->can_be_hashed = false;
	}
}

static void
build_keys(TableKeys *table, Relation relation)
{
	List	   *indexes = RelationGetIndexList(relation);
	Oid			primary = RelationGetPrimaryKeyIndex(relation);
	MemoryContext old_context;
	ListCell   *cell;

	table->context = AllocSetContextCreate(CacheMemoryContext, "pg_quorum row keys", ALLOCSET_SMALL_SIZES);
	old_context = MemoryContextSwitchTo(table->context);
	table->count = 0;
	table->keys = palloc0((list_length(indexes) + 1) * sizeof(UniqueKey));
	if (!OidIsValid(primary))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("replicated table \"%s\" has no primary key", RelationGetRelationName(relation))));
	indexes = lcons_oid(primary, list_delete_oid(indexes, primary));
	foreach(cell, indexes)
	{
		Relation	index = index_open(lfirst_oid(cell), AccessShareLock);

		if (index->rd_index->indisunique && index->rd_index->indisvalid)
			build_key(&table->keys[table->count++], relation, index, table->context);
		index_close(index, NoLock);
	}
	MemoryContextSwitchTo(old_context);
}

static void
invalidate(Datum argument, Oid relid)
{
	HASH_SEQ_STATUS scan;
	TableKeys  *table;

	hash_seq_init(&scan, cache);
	while ((table = hash_seq_search(&scan)) != NULL)
		if (relid == InvalidOid || table->relid == relid)
			table->valid = false;
}

static void
create_cache(void)
{
	HASHCTL		control;

	control.keysize = sizeof(Oid);
	control.entrysize = sizeof(TableKeys);
	control.hcxt = CacheMemoryContext;
	cache = hash_create("pg_quorum row keys", 32, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterRelcacheCallback(invalidate, (Datum) 0);
}

/*
 * The caller has the relation locked, so what its keys are does not change; but an invalidation that comes while they are used may make an inner
 * call build them anew, in other memory.
 */
static TableKeys *
keys_of(Relation relation)
{
	Oid			relid = RelationGetRelid(relation);
	TableKeys  *table;
	TableKeys	built;
	bool		found;

	if (cache == NULL)
		create_cache();
	table = hash_search(cache, &relid, HASH_ENTER, &found);
	if (!found)
		table->context = NULL;
	if (found && table->valid)
		return table;
	table->valid = true;		/* an invalidation while it is built makes it invalid again */
	PG_TRY();
	{
		build_keys(&built, relation);
	}
	PG_CATCH();
	{
		table->valid = false;
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (table->context != NULL)
		MemoryContextSetParent(table->context, TopTransactionContext);	/* a caller further up may be using it */
	table->context = built.context;
	table->count = built.count;
	table->keys = built.keys;
	return table;
}

/* ---- hashes ---- */

static uint64
hash_of_value(KeyColumn *column, Datum value)
{
	char	   *label;
	uint64		hash;

	if (!column->is_enum)
		return DatumGetUInt64(FunctionCall2Coll(&column->function, column->collation, value, Int64GetDatum(0)));
	label = OutputFunctionCall(&column->function, value);
	hash = hash_bytes_extended((unsigned char *) label, strlen(label), 0);
	pfree(label);
	return hash;
}

/* False: no key, because of a null. */
static bool
hash_of_values(const UniqueKey *key, uint64 table_id, const Datum *values, const bool *nulls, uint64 *hash)
{
	*hash = hash_combine64(key->seed, hash_of_number(table_id));
	for (int i = 0; i < key->column_count; i++)
	{
		if (nulls[i] && !key->nulls_not_distinct)
			return false;
		if (key->can_be_hashed)
			*hash = hash_combine64(*hash, nulls[i] ? NULL_HASH : hash_of_value(&key->columns[i], values[i]));
	}
	return true;
}

/* Expressions and predicates are evaluated as the insertion into the index did. */
static bool
hash_of_computed_key(const UniqueKey *key, uint64 table_id, TupleTableSlot *row, uint64 *hash)
{
	EState	   *estate = CreateExecutorState();
	IndexInfo  *info = key->info;
	Datum		values[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS];
	bool		has_key = true;

	GetPerTupleExprContext(estate)->ecxt_scantuple = row;
	if (info->ii_Predicate != NIL)
		has_key = ExecQual(ExecPrepareQual(info->ii_Predicate, estate), GetPerTupleExprContext(estate));
	if (has_key)
	{
		info->ii_ExpressionsState = NIL;
		FormIndexDatum(info, row, estate, values, nulls);
		info->ii_ExpressionsState = NIL;	/* it went with the executor's state */
		has_key = hash_of_values(key, table_id, values, nulls, hash);
	}
	FreeExecutorState(estate);
	return has_key;
}

static bool
hash_of_key(const UniqueKey *key, uint64 table_id, TupleTableSlot *row, uint64 *hash)
{
	Datum		values[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS];

	if (!key->is_plain)
		return hash_of_computed_key(key, table_id, row, hash);
	for (int i = 0; i < key->column_count; i++)
		values[i] = slot_getattr(row, key->columns[i].attribute, &nulls[i]);
	return hash_of_values(key, table_id, values, nulls, hash);
}

static void
add_key(const UniqueKey *key, Relation relation, uint64 table_id, TupleTableSlot *row, CertifierMode mode)
{
	uint64		hash;

	if (hash_of_key(key, table_id, row, &hash))
		certified_keys_add_lock(hash, mode, table_id, RelationGetRelid(relation), key->index, &row->tts_tid);
}

static void
add_all_keys(Relation relation, uint64 table_id, TupleTableSlot *row)
{
	TableKeys  *table = keys_of(relation);

	for (int i = 0; i < table->count; i++)
		add_key(&table->keys[i], relation, table_id, row, CERTIFIER_UPDATE);
}

void
row_keys_add_insert(Relation relation, uint64 table_id, TupleTableSlot *new_row)
{
	add_all_keys(relation, table_id, new_row);
}

void
row_keys_add_delete(Relation relation, uint64 table_id, TupleTableSlot *old_row)
{
	add_all_keys(relation, table_id, old_row);
}

/*
 * Are the key's columns what they were, byte for byte?  The server asks the same before it decides which lock an update takes of the row, so
 * 1.0 that becomes 1.00 takes the stronger one; and values that have no hash cannot be told apart otherwise.  Keys with an expression or a
 * predicate are taken for changed.
 */
static bool
is_same_image(const UniqueKey *key, Relation relation, TupleTableSlot *old_row, TupleTableSlot *new_row)
{
	for (int i = 0; i < key->column_count && key->is_plain; i++)
	{
		AttrNumber	attribute = key->columns[i].attribute;
		Form_pg_attribute column = TupleDescAttr(RelationGetDescr(relation), attribute - 1);
		bool		was_null;
		bool		is_null;
		Datum		old_value;
		Datum		new_value;

		old_value = slot_getattr(old_row, attribute, &was_null);
		new_value = slot_getattr(new_row, attribute, &is_null);
		if (was_null != is_null ||
			(!is_null && !datum_image_eq(old_value, new_value, column->attbyval, column->attlen)))
			return false;
	}
	return key->is_plain;
}

/*
 * A key that stays the same needs no certification of its own: whoever inserts it elsewhere depends on the deletion of this row.  If one that
 * foreign keys may refer to changes, the row lock was FOR UPDATE, else FOR NO KEY UPDATE.
 */
void
row_keys_add_update(Relation relation, uint64 table_id, TupleTableSlot *old_row, TupleTableSlot *new_row)
{
	TableKeys  *table = keys_of(relation);
	CertifierMode mode = CERTIFIER_NO_KEY_UPDATE;

	for (int i = table->count - 1; i >= 0; i--)
	{
		const UniqueKey *key = &table->keys[i];
		uint64		old_hash = 0;
		uint64		new_hash = 0;
		bool		had_key = hash_of_key(key, table_id, old_row, &old_hash);
		bool		has_key = hash_of_key(key, table_id, new_row, &new_hash);
		bool		is_same = is_same_image(key, relation, old_row, new_row);
		bool		is_changed = had_key != has_key || (had_key && (old_hash != new_hash || (!key->can_be_hashed && !is_same)));

		if (!is_same && key->is_plain)
			mode = CERTIFIER_UPDATE;
		if (is_changed && has_key)
			certified_keys_add_lock(new_hash, CERTIFIER_UPDATE, table_id, RelationGetRelid(relation), key->index, &new_row->tts_tid);
		if (had_key && (is_changed || i == 0))	/* the primary key is the last: by then the mode is known */
			certified_keys_add_lock(old_hash, i == 0 ? mode : CERTIFIER_UPDATE, table_id, RelationGetRelid(relation), key->index,
									&old_row->tts_tid);
	}
}

void
row_keys_add_row_lock(Relation relation, uint64 table_id, ItemPointer row, CertifierMode mode)
{
	TupleTableSlot *slot = table_slot_create(relation, NULL);

	if (table_tuple_fetch_row_version(relation, row, SnapshotAny, slot))
		add_key(&keys_of(relation)->keys[0], relation, table_id, slot, mode);
	ExecDropSingleTupleTableSlot(slot);
}

bool
row_keys_primary_hash(Relation relation, uint64 table_id, Oid index, const Datum *values, uint64 *hash)
{
	UniqueKey  *key = &keys_of(relation)->keys[0];
	bool		nulls[INDEX_MAX_KEYS] = {false};

	return key->index == index && key->can_be_hashed && hash_of_values(key, table_id, values, nulls, hash);
}
