/*
 * sequences.h
 *	  Sequences that feed columns of replicated tables: carried along, so that another node's nextval() starts after them.
 *
 * Process: client backend (writer), apply worker (reader), inside a transaction.
 */
#ifndef QUORUM_SEQUENCES_H
#define QUORUM_SEQUENCES_H

#include "postgres.h"

#include "lib/stringinfo.h"

/* Appends an operation WRITESET_SEQUENCE for each sequence of the table that has been used; returns how many. */
extern uint32 sequences_put(StringInfo buffer, uint64 table_id, Oid relid);

/* Appends u16 column and u64 value for each sequence of the table that has been used; returns how many. */
extern uint32 sequences_put_values(StringInfo buffer, Oid relid);

/* Moves the sequence of that column (live columns in order, from 0) past the value, if there is one and it is not there yet. */
extern void sequence_advance(Oid relid, uint16 column, int64 value);

#endif							/* QUORUM_SEQUENCES_H */
