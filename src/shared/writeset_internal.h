/*
 * writeset_internal.h
 *	  What writeset.c (operations) and writeset_row.c (rows) share: the checked steps of the reader.
 */
#ifndef QUORUM_WRITESET_INTERNAL_H
#define QUORUM_WRITESET_INTERNAL_H

#include "shared/writeset.h"

/* The next `length` bytes, inside the reader's own copy; one more byte after them may be written to for a moment. */
extern char *writeset_take(WriteSetReader *reader, Size length);

extern void writeset_malformed(const char *what) pg_attribute_noreturn();

#endif							/* QUORUM_WRITESET_INTERNAL_H */
