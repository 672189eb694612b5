/*
 * sequences.c
 *	  Sequences that feed columns of replicated tables: identity columns and defaults with nextval().
 *
 * Sequences are not transactional, and each node has its own.  A write set that inserts into a table says how far the sequences of its
 * columns are on the node that proposes it; who applies it moves its own ones as far at least.  So a new leader hands out
 * values that are not in the tables yet, and so does a node whose crash lost the last steps of a sequence.
 *
 * Process: client backend (writer), apply worker (reader).  Must never move a sequence back, nor fail over one that is missing or smaller
 * here: a sequence is no part of what the nodes agree on.
 *
 * Locks: ROW EXCLUSIVE on the sequence, as nextval() takes.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/pg_attrdef.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_sequence.h"
#include "common/int.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "shared/sequences.h"
#include "shared/writeset.h"

#define MAX_SEQUENCES_PER_TABLE 16
#define STEPS_AHEAD 32			/* one change of a sequence here for so many of its steps elsewhere */

typedef struct TableSequence
{
	uint16		column;			/* live columns in order, from 0 */
	Oid			sequence;
	bool		is_known;
	int64		known_value;	/* the sequence here is there or further */
} TableSequence;

typedef struct SequencesOfTable
{
	Oid			relid;			/* hash key */
	bool		valid;
	int			count;
	TableSequence sequences[MAX_SEQUENCES_PER_TABLE];
} SequencesOfTable;

static HTAB *tables = NULL;

/* ---- which sequences ---- */

/* The sequence that the default expression of a column refers to, or InvalidOid. */
static Oid
sequence_of_default(Oid relid, AttrNumber attribute)
{
	Relation	depend = table_open(DependRelationId, AccessShareLock);
	Oid			sequence = InvalidOid;
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&keys[0], Anum_pg_depend_classid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(AttrDefaultRelationId));
	ScanKeyInit(&keys[1], Anum_pg_depend_objid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(GetAttrDefaultOid(relid, attribute)));
	scan = systable_beginscan(depend, DependDependerIndexId, true, NULL, 2, keys);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_depend form = (Form_pg_depend) GETSTRUCT(tuple);

		if (form->refclassid == RelationRelationId && get_rel_relkind(form->refobjid) == RELKIND_SEQUENCE)
			sequence = form->refobjid;
	}
	systable_endscan(scan);
	table_close(depend, AccessShareLock);
	return sequence;
}

static Oid
sequence_of_column(Oid relid, Form_pg_attribute attribute)
{
	if (attribute->attidentity != '\0')
		return getIdentitySequence(relid, attribute->attnum, true);
	if (attribute->atthasdef && attribute->attgenerated == '\0')
		return sequence_of_default(relid, attribute->attnum);
	return InvalidOid;
}

static void
find_sequences(SequencesOfTable *table)
{
	Relation	relation = relation_open(table->relid, AccessShareLock);
	TupleDesc	descriptor = RelationGetDescr(relation);
	uint16		column = 0;

	table->count = 0;
	for (int i = 0; i < descriptor->natts && table->count < MAX_SEQUENCES_PER_TABLE; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(descriptor, i);
		Oid			sequence;

		if (attribute->attisdropped)
			continue;
		sequence = sequence_of_column(table->relid, attribute);
		if (OidIsValid(sequence))
		{
			TableSequence *entry = &table->sequences[table->count++];

			memset(entry, 0, sizeof(TableSequence));
			entry->column = column;
			entry->sequence = sequence;
		}
		column++;
	}
	relation_close(relation, NoLock);
}

static void
invalidate_tables(Datum argument, Oid relid)
{
	HASH_SEQ_STATUS scan;
	SequencesOfTable *table;

	hash_seq_init(&scan, tables);
	while ((table = hash_seq_search(&scan)) != NULL)
		if (relid == InvalidOid || table->relid == relid)
			table->valid = false;
}

static void
create_cache(void)
{
	HASHCTL		control;

	control.keysize = sizeof(Oid);
	control.entrysize = sizeof(SequencesOfTable);
	control.hcxt = CacheMemoryContext;
	tables = hash_create("pg_quorum sequences of tables", 32, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterRelcacheCallback(invalidate_tables, (Datum) 0);
}

static SequencesOfTable *
sequences_of(Oid relid)
{
	SequencesOfTable *table;
	bool		found;

	if (tables == NULL)
		create_cache();
	table = hash_search(tables, &relid, HASH_ENTER, &found);
	if (!found)
		table->valid = false;
	if (!table->valid)
	{
		find_sequences(table);
		table->valid = true;
	}
	return table;
}

/* ---- their values ---- */

/* False, and the value as it was: never used, or gone.  An identity column's user needs no privilege for its sequence, so this asks as the superuser. */
static bool
read_sequence(Oid sequence, int64 *value)
{
	LOCAL_FCINFO(call, 1);
	Oid			saved_user;
	int			saved_security_context;
	Datum		result;

	if (!SearchSysCacheExists1(SEQRELID, ObjectIdGetDatum(sequence)))
		return false;
	GetUserIdAndSecContext(&saved_user, &saved_security_context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, saved_security_context | SECURITY_LOCAL_USERID_CHANGE);
	InitFunctionCallInfoData(*call, NULL, 1, InvalidOid, NULL, NULL);
	call->args[0].value = ObjectIdGetDatum(sequence);
	call->args[0].isnull = false;
	result = pg_sequence_last_value(call);
	SetUserIdAndSecContext(saved_user, saved_security_context);
	if (!call->isnull)
		*value = DatumGetInt64(result);
	return !call->isnull;
}

uint32
sequences_put(StringInfo buffer, uint64 table_id, Oid relid)
{
	SequencesOfTable *table = sequences_of(relid);
	uint32		count = 0;

	for (int i = 0; i < table->count; i++)
	{
		int64		value;

		if (!read_sequence(table->sequences[i].sequence, &value))
			continue;
		pq_sendbyte(buffer, WRITESET_SEQUENCE);
		pq_sendint64(buffer, table_id);
		pq_sendint16(buffer, table->sequences[i].column);
		pq_sendint64(buffer, value);
		count++;
	}
	return count;
}

uint32
sequences_put_values(StringInfo buffer, Oid relid)
{
	SequencesOfTable *table = sequences_of(relid);
	uint32		count = 0;

	for (int i = 0; i < table->count; i++)
	{
		int64		value;

		if (!read_sequence(table->sequences[i].sequence, &value))
			continue;
		pq_sendint16(buffer, table->sequences[i].column);
		pq_sendint64(buffer, value);
		count++;
	}
	return count;
}

static bool
is_at_or_past(int64 value, int64 goal, int64 increment)
{
	return increment > 0 ? value >= goal : value <= goal;
}

/* Some steps further than asked for, within the sequence's bounds. */
static int64
goal_ahead(int64 value, Form_pg_sequence form)
{
	int64		ahead;

	if (form->seqcycle || pg_mul_s64_overflow(form->seqincrement, STEPS_AHEAD, &ahead) ||
		pg_add_s64_overflow(value, ahead, &ahead) || ahead < form->seqmin || ahead > form->seqmax)
		return value;
	return ahead;
}

/*
 * The first value at the goal or past it that is whole steps away from where the sequence is: nodes whose sequences start differently and have one
 * increment never draw the same number.  The goal itself if there is none within the bounds.
 */
static int64
own_step_at(int64 goal, int64 from, Form_pg_sequence form)
{
	int64		distance;
	int64		beyond;
	int64		step;

	if (form->seqincrement == 1 || form->seqincrement == -1 || pg_sub_s64_overflow(goal, from, &distance))
		return goal;			/* the remainder of the least number by -1 is more than the processor can do */
	beyond = distance % form->seqincrement;
	if (beyond == 0)
		return goal;
	if (pg_add_s64_overflow(goal - beyond, form->seqincrement, &step) || step < form->seqmin || step > form->seqmax)
		return goal;
	return step;
}

/*
 * One that was never used starts at its first value, which may be past what is asked for.  As long as it stays so it is not known to be there: it has not
 * handed that value out.
 */
static void
advance(TableSequence *entry, int64 value, Form_pg_sequence form)
{
	int64		current = form->seqstart;
	bool		is_used;

	if (value < form->seqmin || value > form->seqmax)
		return;
	is_used = read_sequence(entry->sequence, &current);
	if (!is_at_or_past(current, value, form->seqincrement) || (!is_used && current == value))
	{
		current = own_step_at(goal_ahead(value, form), current, form);
		(void) DirectFunctionCall2(setval_oid, ObjectIdGetDatum(entry->sequence), Int64GetDatum(current));
		is_used = true;
	}
	entry->known_value = current;
	entry->is_known = is_used;
}

void
sequence_advance(Oid relid, uint16 column, int64 value)
{
	SequencesOfTable *table = sequences_of(relid);

	for (int i = 0; i < table->count; i++)
	{
		TableSequence *entry = &table->sequences[i];
		HeapTuple	tuple;

		if (entry->column != column)
			continue;
		tuple = SearchSysCache1(SEQRELID, ObjectIdGetDatum(entry->sequence));
		if (!HeapTupleIsValid(tuple))
			continue;
		if (!entry->is_known || !is_at_or_past(entry->known_value, value, ((Form_pg_sequence) GETSTRUCT(tuple))->seqincrement))
			advance(entry, value, (Form_pg_sequence) GETSTRUCT(tuple));
		ReleaseSysCache(tuple);
	}
}
