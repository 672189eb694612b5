/*
 * truncated_tables.c
 *	  Replicated tables that a TRUNCATE is about to empty.  Process: client backend.
 *
 * TRUNCATE is captured before the table's own BEFORE TRUNCATE triggers run.  What these put into a table that is about to be truncated would be
 * gone here, and there on the other nodes.
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/rel.h"

#include "capture/truncated_tables.h"

typedef struct TruncatedTable
{
	Oid			relid;
	Oid			file_number;	/* before the truncation, which gives it a new one */
} TruncatedTable;

static List *truncated_tables = NIL;	/* in TopTransactionContext */

void
truncated_tables_note(Relation relation)
{
	MemoryContext old_context = MemoryContextSwitchTo(TopTransactionContext);
	TruncatedTable *table = palloc(sizeof(TruncatedTable));

	table->relid = RelationGetRelid(relation);
	table->file_number = relation->rd_rel->relfilenode;
	truncated_tables = lappend(truncated_tables, table);
	MemoryContextSwitchTo(old_context);
}

void
truncated_tables_check(Relation relation)
{
	ListCell   *cell;

	foreach(cell, truncated_tables)
	{
		const TruncatedTable *table = lfirst(cell);

		if (table->relid == RelationGetRelid(relation) && table->file_number == relation->rd_rel->relfilenode)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("replicated table \"%s\" cannot be changed while it is being truncated", RelationGetRelationName(relation)),
					 errhint("Let an AFTER TRUNCATE trigger do that.")));
	}
}

List *
truncated_tables_get(void)
{
	return truncated_tables;
}

void
truncated_tables_set(List *tables)
{
	truncated_tables = tables;
}
