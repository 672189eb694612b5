/*
 * table_check.h
 *	  Can this table be replicated, and can this node take it?  Process: client backends.
 */
#ifndef QUORUM_TABLE_CHECK_H
#define QUORUM_TABLE_CHECK_H

#include "postgres.h"

#include "utils/relcache.h"

/*
 * On the node where quorum.replicate() runs, with the table locked: raises a clear error (0A000, 42809 or 55000) if the table is of a
 * kind that the log cannot carry.  Whether it is replicated already is not asked here.
 */
extern void check_table_is_replicable(Relation relation);

/* Columns and keys as a text that is the same on all nodes: quorum.table_shape().  palloc'd. */
extern char *table_shape(Oid relation_id);

/*
 * On a node that is to get the table: why a table of that name and shape could not be taken, as a sentence for DETAIL; NULL if it can,
 * because there is none, or an empty one of the same shape.  That it has rows is no reason if has_rows is not NULL: it is told there.
 */
extern char *table_unfit_reason(const char *schema_name, const char *table_name, const char *shape, bool *has_rows);

extern bool table_exists(const char *schema_name, const char *table_name);

/* Of one that exists and is not unfit: what is other in it than in what `definition` would make here, constraints included, as a sentence; NULL if nothing is. */
extern char *table_differs_reason(const char *schema_name, const char *table_name, const char *definition);

/*
 * Of a table that is there already, with the right columns and keys: what makes its contents or its changes others than those of the log, as no
 * table with that could be replicated; NULL if there is nothing.
 */
extern char *table_unshared_property(Relation relation);

#endif							/* QUORUM_TABLE_CHECK_H */
