/*
 * defined_table.h
 *	  Is a table what a definition from another node would make?  Process: client backends, apply worker.
 */
#ifndef QUORUM_DEFINED_TABLE_H
#define QUORUM_DEFINED_TABLE_H

#include "postgres.h"

/*
 * Of two texts that quorum.table_shape() gave, here and on another node: the same columns and keys?  Predicates of unique indexes are left out: their text may change
 * when Postgres reads what it wrote, as it does on each node that gets the table.
 */
extern bool same_shape(const char *expected, const char *found);

/* Of two different texts: the first line that only one of them has, of each, as a sentence. */
extern char *first_difference(const char *expected, const char *found);

/*
 * Compares columns and keys (quorum.table_shape), CHECK constraints, foreign keys and the expressions of generated columns of table `relid` with those of the table
 * that `definition` would make in its place.  NULL: no difference; else the first one, as a sentence, palloc'd.  ERROR if the table cannot be made here.
 *
 * Inside a transaction, as a superuser who searches pg_catalog only (internal_identity.h, or the apply worker).  Unless its own definition is the same
 * text, makes that table and takes it back, with all locks for it: ACCESS EXCLUSIVE on the existing one, SHARE ROW EXCLUSIVE on those that a foreign key refers
 * to.  An ERROR leaves no subtransaction behind.
 */
extern char *defined_table_difference(Oid relid, const char *definition);

/* Runs the definition; ERROR before a function is run, as a superuser, that belongs to somebody who is not.  As above, within a subtransaction that is rolled back. */
extern void defined_table_make_watched(const char *definition);

#endif							/* QUORUM_DEFINED_TABLE_H */
