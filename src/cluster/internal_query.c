/*
 * internal_query.c
 *	  Queries of the cluster functions on the own catalogs and tables.
 *
 * Runs in client backends, inside a transaction.  Must never run a text that came from the caller, with one exception: the definition
 * of a table that quorum.check_replicate() tries out, which only quorum_peer may ask for.
 *
 * Takes what locks the queries take.
 */
#include "postgres.h"

#include "executor/spi.h"
#include "utils/memutils.h"

#include "cluster/internal_query.h"

char *
internal_query_value(const char *sql, int parameter_count, const Oid *types, const Datum *values)
{
	MemoryContext caller_context = CurrentMemoryContext;
	InternalIdentity saved;
	char	   *answer = NULL;
	int			code;

	internal_identity_assume(&saved);
	SPI_connect();
	code = SPI_execute_with_args(sql, parameter_count, (Oid *) types, (Datum *) values, NULL, false, 1);
	if (code < 0)
		elog(ERROR, "internal query failed: %s", SPI_result_code_string(code));
	if (SPI_processed > 0)
	{
		char	   *value = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);

		if (value != NULL)
			answer = MemoryContextStrdup(caller_context, value);
	}
	SPI_finish();
	internal_identity_restore(&saved);
	return answer;
}

void
internal_query_run(const char *sql)
{
	InternalIdentity saved;
	int			code;

	internal_identity_assume(&saved);
	SPI_connect();
	code = SPI_execute(sql, false, 0);
	if (code < 0)
		elog(ERROR, "internal query failed: %s", SPI_result_code_string(code));
	SPI_finish();
	internal_identity_restore(&saved);
}
