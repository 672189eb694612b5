/*
 * writeset_row.c
 *	  Rows and keys of a write set: a table's columns to bytes and back.  The bytes are described in writeset.h.
 *
 * Process: client backends write, the apply worker reads.  Must never put into the bytes what means something on this node only: OIDs of
 * user objects, the session's DateStyle or client encoding.
 *
 * Invariants
 *	 1. Reader and writer look at a column in the same way, because its way follows from its type alone.
 *	 2. What is stored by the reader equals what the writer saw: type modifiers and domain constraints held there and are not
 *		applied once more, since that could round or refuse what the log has decided.
 *	 3. A codec is not freed while a call uses it, though an invalidation may come in the middle of that call.
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "libpq/pqformat.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "shared/writeset_internal.h"

#define NO_GUC_LEVEL 0

typedef struct ColumnCodec
{
	AttrNumber	attribute;
	Oid			type;			/* below any domains */
	bool		as_text;
	bool		needs_settings; /* its text depends on settings of the session */
	FmgrInfo	write;			/* send, or output function */
	FmgrInfo	read;			/* receive, or input function */
	Oid			read_parameter;
} ColumnCodec;

typedef struct RelationCodec
{
	Oid			relid;			/* hash key */
	bool		valid;
	int			users;			/* calls that use it right now */
	MemoryContext context;		/* of all that follows */
	int			column_count;
	ColumnCodec *columns;		/* live columns in order of attribute number */
	int			key_count;
	ColumnCodec **key_columns;	/* into columns, in index order */
} RelationCodec;

static HTAB *codecs = NULL;

/* ---- how a type travels ---- */

static bool
is_object_identifier_type(Oid type)
{
	switch (type)
	{
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGCLASSOID:
		case REGCOLLATIONOID:
		case REGTYPEOID:
		case REGROLEOID:
		case REGNAMESPACEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
			return true;
		default:
			return false;
	}
}

static bool
has_binary_form(Oid type)
{
	HeapTuple	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(type));
	Form_pg_type form;
	bool		result;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for type %u", type);
	form = (Form_pg_type) GETSTRUCT(tuple);
	result = OidIsValid(form->typsend) && OidIsValid(form->typreceive);
	ReleaseSysCache(tuple);
	return result;
}

/*
 * An array's binary form names its element type by OID, which is the same everywhere only if it was assigned by hand.  The receive
 * functions of int2vector and oidvector refuse what their send functions make of an empty one.
 */
bool
writeset_type_travels_as_text(Oid type)
{
	Oid			element_type;

	type = getBaseType(type);
	if (is_object_identifier_type(type) || type == XMLOID || type == INT2VECTOROID || type == OIDVECTOROID ||
		!has_binary_form(type))
		return true;
	element_type = get_element_type(type);
	if (OidIsValid(element_type))
		return element_type >= FirstGenbkiObjectId || writeset_type_travels_as_text(element_type);
	switch (get_typtype(type))
	{
		case TYPTYPE_BASE:
			return false;
		case TYPTYPE_RANGE:
			return writeset_type_travels_as_text(get_range_subtype(type));
		case TYPTYPE_MULTIRANGE:
			return writeset_type_travels_as_text(get_range_subtype(get_multirange_range(type)));
		default:
			return true;
	}
}

/* ---- cache of codecs ---- */

static void
build_column(ColumnCodec *column, Form_pg_attribute attribute, MemoryContext context)
{
	Oid			write_function;
	Oid			read_function;
	bool		is_varlena;

	column->attribute = attribute->attnum;
	column->type = getBaseType(attribute->atttypid);
	column->as_text = writeset_type_travels_as_text(column->type);
	column->needs_settings = column->as_text && get_typtype(column->type) != TYPTYPE_ENUM;
	if (column->as_text)
	{
		getTypeOutputInfo(column->type, &write_function, &is_varlena);
		getTypeInputInfo(column->type, &read_function, &column->read_parameter);
	}
	else
	{
		getTypeBinaryOutputInfo(column->type, &write_function, &is_varlena);
		getTypeBinaryInputInfo(column->type, &read_function, &column->read_parameter);
	}
	fmgr_info_cxt(write_function, &column->write, context);
	fmgr_info_cxt(read_function, &column->read, context);
}

static ColumnCodec *
find_column(RelationCodec *codec, AttrNumber attribute)
{
	for (int i = 0; i < codec->column_count; i++)
		if (codec->columns[i].attribute == attribute)
			return &codec->columns[i];
	elog(ERROR, "primary key has no column %d in its table", attribute);
}

static void
build_key(RelationCodec *codec, Relation relation)
{
	Oid			index_oid = RelationGetPrimaryKeyIndex(relation);
	Relation	index;

	if (!OidIsValid(index_oid))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("replicated table \"%s\" has no primary key", RelationGetRelationName(relation)),
				 errhint("Add a primary key that is not deferrable.")));
	index = RelationIdGetRelation(index_oid);
	if (!RelationIsValid(index))
		elog(ERROR, "could not open primary key %u", index_oid);
	codec->key_count = IndexRelationGetNumberOfKeyAttributes(index);
	codec->key_columns = MemoryContextAlloc(codec->context, codec->key_count * sizeof(ColumnCodec *));
	for (int i = 0; i < codec->key_count; i++)
		codec->key_columns[i] = find_column(codec, index->rd_index->indkey.values[i]);
	RelationClose(index);
}

static void
build_codec(RelationCodec *codec, Relation relation)
{
	TupleDesc	descriptor = RelationGetDescr(relation);

	codec->context = AllocSetContextCreate(CacheMemoryContext, "pg_quorum row codec", ALLOCSET_SMALL_SIZES);
	codec->column_count = 0;
	codec->columns = MemoryContextAllocZero(codec->context, Max(descriptor->natts, 1) * sizeof(ColumnCodec));
	for (int i = 0; i < descriptor->natts; i++)
		if (!TupleDescAttr(descriptor, i)->attisdropped)
			build_column(&codec->columns[codec->column_count++], TupleDescAttr(descriptor, i), codec->context);
	build_key(codec, relation);
}

static void
invalidate_codecs(Datum argument, Oid relid)
{
	HASH_SEQ_STATUS scan;
	RelationCodec *codec;

	hash_seq_init(&scan, codecs);
	while ((codec = hash_seq_search(&scan)) != NULL)
		if (relid == InvalidOid || codec->relid == relid)
			codec->valid = false;
}

static void
create_codecs(void)
{
	HASHCTL		control;

	control.keysize = sizeof(Oid);
	control.entrysize = sizeof(RelationCodec);
	control.hcxt = CacheMemoryContext;
	codecs = hash_create("pg_quorum row codecs", 32, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterRelcacheCallback(invalidate_codecs, (Datum) 0);
}

/*
 * The codec of a relation that the caller has open and locked; put_codec() gives it back.  A replaced one that is in use (or whose user
 * raised an error) is left to leak: that takes an invalidation in the middle of a type's own function.
 */
static RelationCodec *
get_codec(Relation relation)
{
	Oid			relid = RelationGetRelid(relation);
	RelationCodec *codec;
	bool		found;

	if (codecs == NULL)
		create_codecs();
	codec = hash_search(codecs, &relid, HASH_ENTER, &found);
	if (!found)
	{
		codec->valid = false;
		codec->users = 0;
		codec->context = NULL;
	}
	if (!codec->valid)
	{
		if (codec->context != NULL && codec->users == 0)
			MemoryContextDelete(codec->context);
		codec->context = NULL;
		codec->users = 0;
		codec->valid = true;	/* an invalidation while it is built makes it invalid again */
		PG_TRY();
		{
			build_codec(codec, relation);
		}
		PG_CATCH();
		{
			codec->valid = false;
			PG_RE_THROW();
		}
		PG_END_TRY();
	}
	codec->users++;
	return codec;
}

static void
put_codec(RelationCodec *codec)
{
	if (codec->users > 0)
		codec->users--;
}

/* ---- settings ---- */

static void
set_for_now(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
}

/* Returns what restore_settings() wants.  An error in between is undone by the end of the (sub)transaction. */
static int
fix_settings(bool needs_text_settings)
{
	bool		wrong_encoding = pg_get_client_encoding() != GetDatabaseEncoding();
	int			level;

	if (!needs_text_settings && !wrong_encoding)
		return NO_GUC_LEVEL;
	level = NewGUCNestLevel();
	if (wrong_encoding)			/* send functions convert text to the client's encoding */
		set_for_now("client_encoding", GetDatabaseEncodingName());
	if (needs_text_settings)
	{
		set_for_now("datestyle", "ISO, YMD");
		set_for_now("intervalstyle", "postgres");
		set_for_now("extra_float_digits", "3");
		set_for_now("lc_monetary", "C");
		set_for_now("search_path", "pg_catalog");
		/* Any would be read right; but a row must give the same bytes on all nodes, or its checksums would differ. */
		set_for_now("timezone", "UTC");
		set_for_now("bytea_output", "hex");
		set_for_now("quote_all_identifiers", "off");
	}
	return level;
}

static void
restore_settings(int level)
{
	if (level != NO_GUC_LEVEL)
		AtEOXact_GUC(true, level);
}

/* ---- writer ---- */

static void
put_bytes(StringInfo buffer, const char *bytes, Size length)
{
	pq_sendint32(buffer, (uint32) length);
	appendBinaryStringInfo(buffer, bytes, (int) length);
}

/* The most frequent types without their send functions; the bytes are the same. */
static bool
put_common_type(StringInfo buffer, Oid type, Datum value)
{
	switch (type)
	{
		case INT4OID:
			pq_sendint32(buffer, sizeof(int32));
			pq_sendint32(buffer, DatumGetInt32(value));
			return true;
		case INT8OID:
			pq_sendint32(buffer, sizeof(int64));
			pq_sendint64(buffer, DatumGetInt64(value));
			return true;
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case BYTEAOID:
			{
				struct varlena *plain = PG_DETOAST_DATUM_PACKED(value);

				put_bytes(buffer, VARDATA_ANY(plain), VARSIZE_ANY_EXHDR(plain));
				return true;
			}
		default:
			return false;
	}
}

static void
put_column(StringInfo buffer, ColumnCodec *column, TupleTableSlot *slot)
{
	int			i = column->attribute - 1;

	if (slot->tts_isnull[i])
	{
		pq_sendbyte(buffer, WRITESET_COLUMN_NULL);
		return;
	}
	pq_sendbyte(buffer, column->as_text ? WRITESET_COLUMN_TEXT : WRITESET_COLUMN_BINARY);
	if (column->as_text)
	{
		char	   *text = OutputFunctionCall(&column->write, slot->tts_values[i]);

		put_bytes(buffer, text, strlen(text));
	}
	else if (!put_common_type(buffer, column->type, slot->tts_values[i]))
	{
		bytea	   *bytes = SendFunctionCall(&column->write, slot->tts_values[i]);

		put_bytes(buffer, VARDATA(bytes), VARSIZE(bytes) - VARHDRSZ);
	}
}

void
writeset_put_row(StringInfo buffer, Relation relation, TupleTableSlot *slot)
{
	RelationCodec *codec = get_codec(relation);
	bool		needs_settings = false;
	int			level;

	slot_getallattrs(slot);
	for (int i = 0; i < codec->column_count; i++)
		needs_settings |= codec->columns[i].needs_settings;
	level = fix_settings(needs_settings);
	pq_sendint16(buffer, codec->column_count);
	for (int i = 0; i < codec->column_count; i++)
		put_column(buffer, &codec->columns[i], slot);
	restore_settings(level);
	put_codec(codec);
}

void
writeset_put_key(StringInfo buffer, Relation relation, TupleTableSlot *slot)
{
	RelationCodec *codec = get_codec(relation);
	bool		needs_settings = false;
	int			level;

	slot_getallattrs(slot);
	for (int i = 0; i < codec->key_count; i++)
		needs_settings |= codec->key_columns[i]->needs_settings;
	level = fix_settings(needs_settings);
	pq_sendint16(buffer, codec->key_count);
	for (int i = 0; i < codec->key_count; i++)
		put_column(buffer, codec->key_columns[i], slot);
	restore_settings(level);
	put_codec(codec);
}

/* ---- reader ---- */

static void
report_mismatch(Relation relation, AttrNumber attribute, const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATATYPE_MISMATCH),
			 errmsg("column \"%s\" of table \"%s\" differs from the log's",
					NameStr(TupleDescAttr(RelationGetDescr(relation), attribute - 1)->attname),
					RelationGetRelationName(relation)),
			 errdetail_internal("%s", what)));
}

/* `bytes` has one byte to spare; receive functions of containers rely on a zero there, as text input does. */
static Datum
read_value(Relation relation, ColumnCodec *column, char *bytes, uint32 length)
{
	char		saved = bytes[length];
	Datum		value;

	bytes[length] = '\0';
	if (column->as_text)
	{
		(void) pg_verifymbstr(bytes, length, false);
		value = InputFunctionCall(&column->read, bytes, column->read_parameter, -1);
	}
	else
	{
		StringInfoData source;

		source.data = bytes;
		source.len = length;
		source.maxlen = length + 1;
		source.cursor = 0;
		value = ReceiveFunctionCall(&column->read, &source, column->read_parameter, -1);
		if (source.cursor != source.len)
			report_mismatch(relation, column->attribute, "Bytes are left after reading the value in its binary form.");
	}
	bytes[length] = saved;
	return value;
}

static void
read_column(WriteSetReader *reader, Relation relation, ColumnCodec *column, TupleTableSlot *slot)
{
	int			i = column->attribute - 1;
	uint8		format = writeset_read_u8(reader);
	uint32		length;

	if (format == WRITESET_COLUMN_NULL)
		return;
	if (format != WRITESET_COLUMN_BINARY && format != WRITESET_COLUMN_TEXT)
		writeset_malformed("unknown format of a column");
	if ((format == WRITESET_COLUMN_TEXT) != column->as_text)
		report_mismatch(relation, column->attribute, "Its type travels in another form here.");
	length = writeset_read_u32(reader);
	slot->tts_values[i] = read_value(relation, column, writeset_take(reader, length), length);
	slot->tts_isnull[i] = false;
}

static void
check_column_count(WriteSetReader *reader, Relation relation, int expected, const char *what)
{
	uint16		count = writeset_read_u16(reader);

	if (count != expected)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("table \"%s\" differs from the log's", RelationGetRelationName(relation)),
				 errdetail("Its %s has %d columns here and %d in the log.", what, expected, count)));
}

static void
clear_slot(TupleTableSlot *slot)
{
	ExecClearTuple(slot);
	memset(slot->tts_values, 0, slot->tts_tupleDescriptor->natts * sizeof(Datum));
	memset(slot->tts_isnull, true, slot->tts_tupleDescriptor->natts * sizeof(bool));
}

void
writeset_read_row(WriteSetReader *reader, Relation relation, TupleTableSlot *slot)
{
	RelationCodec *codec = get_codec(relation);

	clear_slot(slot);
	check_column_count(reader, relation, codec->column_count, "row");
	for (int i = 0; i < codec->column_count; i++)
		read_column(reader, relation, &codec->columns[i], slot);
	ExecStoreVirtualTuple(slot);
	put_codec(codec);
}

void
writeset_skip_row(WriteSetReader *reader)
{
	uint16		count = writeset_read_u16(reader);

	for (int i = 0; i < count; i++)
		if (writeset_read_u8(reader) != WRITESET_COLUMN_NULL)
			(void) writeset_take(reader, writeset_read_u32(reader));
}

void
writeset_read_key(WriteSetReader *reader, Relation relation, TupleTableSlot *slot)
{
	RelationCodec *codec = get_codec(relation);

	clear_slot(slot);
	check_column_count(reader, relation, codec->key_count, "primary key");
	for (int i = 0; i < codec->key_count; i++)
		read_column(reader, relation, codec->key_columns[i], slot);
	ExecStoreVirtualTuple(slot);
	put_codec(codec);
}
