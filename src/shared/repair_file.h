/*
 * repair_file.h
 *	  Corrections of a table, from the session that found them to the apply worker that performs them: a file beside the journal.
 *
 * Bytes (network order): u32 magic, u8 version, u64 table_id, u64 nonce; then records: u8 'D', u32 block, u16 offset: the row at
 * that place is to go; or u8 'I', u32 length, a row (writeset.h): it is to be put in; or, as the first, u8 'T': the whole table is
 * to be emptied, since it cannot be read; then u8 'E' and u32 CRC32C of all before it.  It is of use only as long as both processes
 * live, so it is not made durable.
 */
#ifndef QUORUM_REPAIR_FILE_H
#define QUORUM_REPAIR_FILE_H

#include "postgres.h"

#include "storage/itemptr.h"

/* ---- the session ---- */
typedef struct RepairWriter RepairWriter;

extern RepairWriter *repair_file_create(uint64 table_id, uint64 nonce);
extern void repair_file_put_empty(RepairWriter *writer);
extern void repair_file_put_delete(RepairWriter *writer, ItemPointer tid);
extern void repair_file_put_insert(RepairWriter *writer, const char *row, uint32 length);
extern void repair_file_finish(RepairWriter *writer);

/* ---- the apply worker ---- */
typedef struct RepairReader RepairReader;

/* Checks the whole file first: ERRCODE_DATA_CORRUPTED if it is not what was written for that table and session. */
extern RepairReader *repair_file_open(uint64 table_id, uint64 nonce);
extern void repair_file_rewind(RepairReader *reader);

typedef enum RepairRecordType
{
	REPAIR_END,
	REPAIR_EMPTY,
	REPAIR_DELETE,
	REPAIR_INSERT
} RepairRecordType;

typedef struct RepairRecord
{
	RepairRecordType type;
	ItemPointerData tid;		/* DELETE */
	char	   *row;			/* INSERT: palloc'd; else NULL */
	uint32		length;
} RepairRecord;

/* False at the end. */
extern bool repair_file_next(RepairReader *reader, RepairRecord *record);
extern void repair_file_close(RepairReader *reader);

#endif							/* QUORUM_REPAIR_FILE_H */
