/*
 * internal_query.h
 *	  Queries of the cluster functions on the own catalogs and tables.
 *
 * They run as the bootstrap superuser with a search path of pg_catalog alone, so that neither the caller's missing privileges nor
 * objects that the caller made change what they do.  Process: client backends, inside a transaction.
 */
#ifndef QUORUM_INTERNAL_QUERY_H
#define QUORUM_INTERNAL_QUERY_H

#include "postgres.h"

#include "shared/internal_identity.h"

/*
 * The first column of the first row as a text in the caller's memory context; NULL if there is no row or it is NULL.
 * Up to four parameters.
 */
extern char *internal_query_value(const char *sql, int parameter_count, const Oid *types, const Datum *values);

/* Runs a script of statements for its effects. */
extern void internal_query_run(const char *sql);

#endif							/* QUORUM_INTERNAL_QUERY_H */
