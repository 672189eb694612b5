/*
 * anomalies.c
 *	  Counting and printing of what the checkers find.
 */
#include <stdarg.h>

#include "anomalies.h"

static const char *const anomaly_names[ANOMALY_COUNT] = {
	[ANOMALY_NEVER_WRITTEN] = "element never written",
	[ANOMALY_ABORTED_READ] = "aborted read (G1a)",
	[ANOMALY_FAILED_WRITE_STAYED] = "failed write stayed",
	[ANOMALY_INTERMEDIATE_READ] = "intermediate read (G1b)",
	[ANOMALY_INTERNAL] = "internal inconsistency",
	[ANOMALY_DUPLICATE] = "duplicate element",
	[ANOMALY_INCOMPATIBLE_ORDER] = "incompatible orders",
	[ANOMALY_LOST_WRITE] = "lost write",
	[ANOMALY_HALF_TRANSACTION] = "half a transaction",
	[ANOMALY_G0] = "write cycle (G0)",
	[ANOMALY_G1C] = "circular information flow (G1c)",
	[ANOMALY_LOST_UPDATE] = "lost update",
	[ANOMALY_G_SINGLE] = "read skew (G-single)",
	[ANOMALY_LONG_FORK] = "long fork",
	[ANOMALY_G2_ITEM] = "write skew (G2-item)",
	[ANOMALY_REAL_TIME_ORDER] = "order against real time",
	[ANOMALY_STALE_READ] = "stale read",
	[ANOMALY_NOT_STRICT_SERIALIZABLE] = "not strictly serializable",
	[ANOMALY_WRONG_TOTAL] = "wrong total",
	[ANOMALY_NEGATIVE_BALANCE] = "negative balance",
	[ANOMALY_LOST_TRANSFER] = "lost transfer",
	[ANOMALY_FAILED_TRANSFER_STAYED] = "failed transfer stayed",
	[ANOMALY_UNKNOWN_TRANSFER] = "transfer never made",
	[ANOMALY_WRONG_BALANCE] = "wrong balance",
	[ANOMALY_NODES_DIFFER] = "nodes differ",
	[ANOMALY_NOT_LINEARIZABLE] = "not linearizable",
	[ANOMALY_UNDECIDED] = "undecided",
	[ANOMALY_BAD_HISTORY] = "bad history",
};

const char *
anomaly_name(Anomaly anomaly)
{
	return anomaly_names[anomaly];
}

bool
report_anomaly(Report *report, Anomaly anomaly, const char *format,...)
{
	va_list		arguments;

	if (++report->counts[anomaly] > report->details_per_anomaly || report->out == NULL)
		return false;
	fprintf(report->out, "ANOMALY %s: ", anomaly_names[anomaly]);
	va_start(arguments, format);
	vfprintf(report->out, format, arguments);
	va_end(arguments);
	fputc('\n', report->out);
	return true;
}

void
report_detail(Report *report, const char *format,...)
{
	va_list		arguments;

	if (report->out == NULL)
		return;
	fputs("    ", report->out);
	va_start(arguments, format);
	vfprintf(report->out, format, arguments);
	va_end(arguments);
	fputc('\n', report->out);
}

int
report_total(const Report *report)
{
	int			total = 0;

	for (int anomaly = 0; anomaly < ANOMALY_COUNT; anomaly++)
		total += report->counts[anomaly];
	return total;
}
