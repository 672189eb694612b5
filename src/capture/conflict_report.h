/*
 * conflict_report.h
 *	  What a transaction is told that lost.  Process: client backend, before the transaction's abort.
 */
#ifndef QUORUM_CONFLICT_REPORT_H
#define QUORUM_CONFLICT_REPORT_H

#include "postgres.h"

#include "shared/certifier.h"

/* Raises the error that the verdict over this transaction's entry calls for, and keeps a conflict for quorum.conflicts. */
extern void conflict_report(uint64 log_index, const CertifierVerdict *verdict) pg_attribute_noreturn();

#endif							/* QUORUM_CONFLICT_REPORT_H */
