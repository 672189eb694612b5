/*
 * anomalies.h
 *	  What the checkers can find in a history, and where they report it.
 *
 * The names of cycles are those of Adya's "Weak Consistency" (1999) and of Kingsbury and Alvaro's "Elle" (VLDB 2020).
 */
#ifndef TEST_CONSISTENCY_ANOMALIES_H
#define TEST_CONSISTENCY_ANOMALIES_H

#include <stdbool.h>
#include <stdio.h>

typedef enum Anomaly
{
	/* lists, without a graph */
	ANOMALY_NEVER_WRITTEN,		/* a read shows an element that nobody appended to that list */
	ANOMALY_ABORTED_READ,		/* G1a: a read shows an append that was reported as failed */
	ANOMALY_FAILED_WRITE_STAYED,	/* the final state holds one */
	ANOMALY_INTERMEDIATE_READ,	/* G1b: a read ends in the middle of another transaction's appends to a list */
	ANOMALY_INTERNAL,			/* a transaction does not see its own appends, or sees them before they were made */
	ANOMALY_DUPLICATE,			/* an element twice in a list */
	ANOMALY_INCOMPATIBLE_ORDER, /* two reads of a list, none of which is a prefix of the other */
	ANOMALY_LOST_WRITE,			/* an acknowledged append is not in the final state */
	ANOMALY_HALF_TRANSACTION,	/* the final state holds a part of a transaction of unknown outcome */
	/* cycles of dependencies */
	ANOMALY_G0,					/* of writes only */
	ANOMALY_G1C,				/* of writes and reads from them */
	ANOMALY_LOST_UPDATE,		/* read, overwritten by another, written */
	ANOMALY_G_SINGLE,			/* read skew: one anti-dependency */
	ANOMALY_LONG_FORK,			/* several anti-dependencies, none next to another: snapshots that are no prefixes of one order */
	ANOMALY_G2_ITEM,			/* write skew, under SERIALIZABLE */
	ANOMALY_REAL_TIME_ORDER,	/* commits in an order against that of acknowledgement and start */
	ANOMALY_STALE_READ,			/* a snapshot older than something that was acknowledged or seen before it began */
	ANOMALY_NOT_STRICT_SERIALIZABLE,	/* serializable transactions that fit in no order that respects real time */
	/* bank */
	ANOMALY_WRONG_TOTAL,
	ANOMALY_NEGATIVE_BALANCE,
	ANOMALY_LOST_TRANSFER,
	ANOMALY_FAILED_TRANSFER_STAYED,
	ANOMALY_UNKNOWN_TRANSFER,	/* in the ledger, and nobody made it, or made it so */
	ANOMALY_WRONG_BALANCE,		/* a balance is not what the ledger's transfers make it */
	ANOMALY_NODES_DIFFER,		/* two final states */
	/* registers */
	ANOMALY_NOT_LINEARIZABLE,
	ANOMALY_UNDECIDED,			/* the search was given up */
	/* all */
	ANOMALY_BAD_HISTORY,		/* the history itself can't be right: the client's fault */
	ANOMALY_COUNT
} Anomaly;

typedef struct Report
{
	FILE	   *out;			/* NULL: count only */
	int			details_per_anomaly;	/* how many of a kind are printed */
	int			counts[ANOMALY_COUNT];
	int			allowed_write_skews;	/* under REPEATABLE READ: no anomaly, but a sign that the workload has teeth */
} Report;

extern const char *anomaly_name(Anomaly anomaly);

/* Counts it, and prints its head line.  True if the caller should print the evidence with report_detail. */
extern bool report_anomaly(Report *report, Anomaly anomaly, const char *format,...) __attribute__((format(printf, 3, 4)));
extern void report_detail(Report *report, const char *format,...) __attribute__((format(printf, 2, 3)));
extern int	report_total(const Report *report);

#endif							/* TEST_CONSISTENCY_ANOMALIES_H */
