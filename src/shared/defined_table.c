/*
 * defined_table.c
 *	  Is a table what a definition from another node would make?  See the header.
 *
 * Process: client backends (join_cluster, check_replicate), apply worker.  Must never change anything for good.
 *
 * Constraints do not fire where an entry is applied, and generated columns are stored as they come.  So a table with other constraints holds the same rows, but
 * accepts other writes where its clients are, and a row that one node has refused comes from another.  Nobody who replicates a table expects that.
 *
 * Two texts of one constraint may differ though they mean the same: Postgres writes `v IN ('a', 'b')` of a varchar column in another way once it has read
 * what it wrote.  That is how a table from a dump differs from the one that was dumped.  So the existing table is not compared itself, but what its own definition
 * makes: both have been written and read once then, by this server.  Nothing of it is sent to another node or comes from one but the definition, which every build
 * sends, so builds do not have to agree on what is compared.
 *
 * Names of constraints do not count, nor whether older rows were checked (NOT VALID).
 *
 * Whoever may create a table here has not asked for any of this, and must not gain by it.  To make a table as a superuser is to run functions: where all that
 * one is given is constant Postgres runs it as soon as it sees the expression of a generated column.  So the definition of the existing table is made only as far as
 * that runs no function of somebody who is not a superuser; those of its indexes are run as its owner.
 *
 * Locks: see the header.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/syscache.h"

#include "shared/defined_table.h"

#define ASIDE_SCHEMA "quorum_shape_of_existing_table"	/* exists only within a subtransaction that is rolled back */

static const char form_query[] =
	"SELECT quorum.table_shape($1::pg_catalog.regclass) || coalesce((SELECT pg_catalog.string_agg(line, '' ORDER BY line COLLATE \"C\") FROM ("
	"SELECT E'\\n' || pg_catalog.regexp_replace(pg_catalog.pg_get_constraintdef(oid), ' NOT VALID$', '') AS line "
	"FROM pg_catalog.pg_constraint WHERE conrelid = $1 AND contype IN ('c', 'f') "
	"UNION "
	"SELECT pg_catalog.format(E'\\ncolumn %I generated as (%s)', a.attname, pg_catalog.pg_get_expr(d.adbin, d.adrelid)) "
	"FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum "
	"WHERE a.attrelid = $1 AND a.attgenerated <> '') AS lines), '')";

static const char definition_query[] = "SELECT quorum.table_definition($1::pg_catalog.regclass)";

#define UNIQUE_INDEX "UNIQUE INDEX "
#define PREDICATE " WHERE "

/* Up to its end, or to a predicate. */
static size_t
length_of_key(const char *line)
{
	size_t		length = strcspn(line, "\n");
	const char *predicate = strncmp(line, UNIQUE_INDEX, strlen(UNIQUE_INDEX)) == 0 ? strstr(line, PREDICATE) : NULL;

	return predicate != NULL && predicate < line + length ? (size_t) (predicate - line) + strlen(PREDICATE) : length;
}

static const char *
next_line(const char *line)
{
	line += strcspn(line, "\n");
	return *line == '\n' ? line + 1 : line;
}

bool
same_shape(const char *expected, const char *found)
{
	for (; *expected != '\0' && *found != '\0'; expected = next_line(expected), found = next_line(found))
	{
		size_t		length = length_of_key(expected);

		if (length_of_key(found) != length || memcmp(expected, found, length) != 0)
			return false;
	}
	return *expected == *found;
}

static bool
has_line(const char *text, const char *line, size_t length)
{
	for (; *text != '\0'; text = next_line(text))
		if (strcspn(text, "\n") == length && memcmp(text, line, length) == 0)
			return true;
	return false;
}

/* Its first line that the other text has not, or "nothing". */
static char *
first_line_without(const char *text, const char *other)
{
	for (; *text != '\0'; text = next_line(text))
		if (!has_line(other, text, strcspn(text, "\n")))
			return pnstrdup(text, strcspn(text, "\n"));
	return pstrdup("nothing");
}

char *
first_difference(const char *expected, const char *found)
{
	const char *missing = first_line_without(expected, found);
	const char *strange = first_line_without(found, expected);

	if (strcmp(missing, "nothing") == 0 && strcmp(strange, "nothing") == 0)
		return pstrdup("The same columns and keys are in another order.");
	return psprintf("It has \"%s\" where \"%s\" is expected.", strange, missing);
}

/* Of a table; palloc'd in the caller's context. */
static char *
query_text(const char *sql, Oid relid)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			type = OIDOID;
	Datum		value = ObjectIdGetDatum(relid);
	char	   *text = NULL;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute_with_args(sql, 1, &type, &value, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "SPI_execute_with_args failed");
	if (SPI_processed == 1)
		text = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	if (text != NULL)
		text = MemoryContextStrdup(context, text);
	SPI_finish();
	if (text == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the definition does not create the table")));
	return text;
}

static void
run(const char *sql)
{
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute(sql, false, 0) < 0)
		elog(ERROR, "SPI_execute failed: %s", sql);
	SPI_finish();
	CommandCounterIncrement();
}

static object_access_hook_type previous_object_access = NULL;

static Oid
owner_of_function(Oid function_id)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function_id));
	Oid			owner = BOOTSTRAP_SUPERUSERID;

	if (HeapTupleIsValid(tuple))
	{
		owner = ((Form_pg_proc) GETSTRUCT(tuple))->proowner;
		ReleaseSysCache(tuple);
	}
	return owner;
}

/* Before a function is run. */
static void
refuse_functions_of_others(ObjectAccessType access, Oid class_id, Oid object_id, int sub_id, void *argument)
{
	if (access == OAT_FUNCTION_EXECUTE && object_id >= FirstNormalObjectId && superuser() && !superuser_arg(owner_of_function(object_id)))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("function \"%s\" of role \"%s\" would be run as a superuser", get_func_name(object_id),
						GetUserNameFromId(owner_of_function(object_id), true))));
	if (previous_object_access)
		previous_object_access(access, class_id, object_id, sub_id, argument);
}

void
defined_table_make_watched(const char *definition)
{
	previous_object_access = object_access_hook;
	PG_TRY();
	{
		object_access_hook = refuse_functions_of_others;
		run(definition);
	}
	PG_FINALLY();
	{
		object_access_hook = previous_object_access;
	}
	PG_END_TRY();
}

/* Moves the existing table aside and makes the other one. */
static char *
make_in_its_place(Oid relid, const char *definition, bool is_of_existing_table)
{
	char	   *schema_name = get_namespace_name(get_rel_namespace(relid));
	char	   *table_name = get_rel_name(relid);

	run("CREATE SCHEMA " ASIDE_SCHEMA);
	run(psprintf("ALTER TABLE %s SET SCHEMA " ASIDE_SCHEMA, quote_qualified_identifier(schema_name, table_name)));
	if (is_of_existing_table)
		defined_table_make_watched(definition);
	else
		run(definition);
	return query_text(form_query, get_relname_relid(table_name, get_namespace_oid(schema_name, false)));
}

static char *
form_by_definition(Oid relid, const char *definition, bool is_of_existing_table)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;
	char	   *volatile form = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		form = make_in_its_place(relid, definition, is_of_existing_table);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (error != NULL)
		ReThrowError(error);
	return form;
}

char *
defined_table_difference(Oid relid, const char *definition)
{
	char	   *own_definition = query_text(definition_query, relid);
	char	   *expected;
	char	   *found;

	if (strcmp(own_definition, definition) == 0)
		return NULL;
	expected = form_by_definition(relid, definition, false);
	found = form_by_definition(relid, own_definition, true);
	return strcmp(expected, found) == 0 ? NULL : first_difference(expected, found);
}
