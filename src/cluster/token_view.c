/*
 * token_view.c
 *	  The function beneath quorum.token_memory, and what another node asks of the tokens' ages.
 *
 * Runs in client backends.  Must never wait.  Locks: those of token_memory.c, for a moment.
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "cluster/node_check.h"
#include "shared/token_memory.h"

PG_FUNCTION_INFO_V1(quorum_node_token_memory);
PG_FUNCTION_INFO_V1(quorum_token_samples);

#define COLUMN_COUNT 6
#define SAMPLE_COLUMN_COUNT 3

static Datum
interval_of_ms(uint64 milliseconds)
{
	Interval   *interval = palloc0(sizeof(Interval));

	interval->time = (TimeOffset) milliseconds * 1000;
	return IntervalPGetDatum(interval);
}

Datum
quorum_node_token_memory(PG_FUNCTION_ARGS)
{
	TokenMemoryStatus status;
	TupleDesc	row_type;
	Datum		values[COLUMN_COUNT];
	bool		nulls[COLUMN_COUNT] = {false};

	require_shared_state();
	if (get_call_result_type(fcinfo, NULL, &row_type) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	token_memory_get(&status);
	values[0] = Int64GetDatum(CERTIFIER_TOKEN_CAPACITY);
	values[1] = Int64GetDatum((int64) status.remembered);
	values[2] = Int64GetDatum((int64) status.floor);
	nulls[2] = status.floor == 0;
	values[3] = status.has_oldest ? interval_of_ms(status.oldest_age_ms) : (Datum) 0;
	nulls[3] = !status.has_oldest;
	values[4] = BoolGetDatum(status.has_room);
	values[5] = Int64GetDatum((int64) status.forgotten_early);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(row_type), values, nulls)));
}

Datum
quorum_token_samples(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	TokenSample *samples = palloc(TOKEN_AGES_SAMPLES * sizeof(TokenSample));
	int			count;

	require_shared_state();
	InitMaterializedSRF(fcinfo, 0);
	count = token_memory_get_samples(samples);
	for (int i = 0; i < count; i++)
	{
		Datum		values[SAMPLE_COLUMN_COUNT];
		bool		nulls[SAMPLE_COLUMN_COUNT] = {false};

		values[0] = Int64GetDatum((int64) samples[i].put_count);
		values[1] = Int64GetDatum((int64) samples[i].index);
		values[2] = Int64GetDatum((int64) samples[i].clock_ms);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}
