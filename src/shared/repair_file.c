/*
 * repair_file.c
 *	  Corrections of a table, in a file beside the journal; the bytes are described in repair_file.h.
 *
 * Process: a client backend writes, the apply worker reads, one after the other.  Must never give a record out of a file that was
 * not checked to its last byte.
 *
 * Takes no locks: there is one session at a time (check_job.h), and the apply worker reads while that waits.
 */
#include "postgres.h"

#include <unistd.h>

#include "port/pg_bswap.h"
#include "port/pg_crc32c.h"
#include "storage/fd.h"
#include "utils/memutils.h"

#include "shared/repair_file.h"
#include "shared/shmem.h"

#define REPAIR_PATH QUORUM_DIRECTORY "/repair"
#define REPAIR_MAGIC 0x51525046 /* "QRPF" */
#define REPAIR_VERSION 1
#define HEADER_LENGTH 21
#define RECORD_EMPTY 'T'
#define RECORD_DELETE 'D'
#define RECORD_INSERT 'I'
#define RECORD_END 'E'

struct RepairWriter
{
	FILE	   *file;
	pg_crc32c	crc;
};

struct RepairReader
{
	FILE	   *file;
	pg_crc32c	crc;
};

static void pg_attribute_noreturn()
report_io(const char *what)
{
	ereport(ERROR,
			(errcode_for_file_access(),
			 errmsg("could not %s file \"%s\": %m", what, REPAIR_PATH)));
}

static void pg_attribute_noreturn()
report_malformed(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("file \"%s\" does not hold the corrections that it should", REPAIR_PATH)));
}

/* ---- writer ---- */

static void
put(RepairWriter *writer, const void *bytes, size_t length)
{
	COMP_CRC32C(writer->crc, bytes, length);
	if (fwrite(bytes, 1, length, writer->file) != length)
		report_io("write to");
}

static void
put_u8(RepairWriter *writer, uint8 value)
{
	put(writer, &value, sizeof(value));
}

static void
put_u16(RepairWriter *writer, uint16 value)
{
	value = pg_hton16(value);
	put(writer, &value, sizeof(value));
}

static void
put_u32(RepairWriter *writer, uint32 value)
{
	value = pg_hton32(value);
	put(writer, &value, sizeof(value));
}

static void
put_u64(RepairWriter *writer, uint64 value)
{
	value = pg_hton64(value);
	put(writer, &value, sizeof(value));
}

RepairWriter *
repair_file_create(uint64 table_id, uint64 nonce)
{
	RepairWriter *writer = palloc0(sizeof(RepairWriter));

	writer->file = AllocateFile(REPAIR_PATH, PG_BINARY_W);
	if (writer->file == NULL)
		report_io("create");
	INIT_CRC32C(writer->crc);
	put_u32(writer, REPAIR_MAGIC);
	put_u8(writer, REPAIR_VERSION);
	put_u64(writer, table_id);
	put_u64(writer, nonce);
	return writer;
}

void
repair_file_put_empty(RepairWriter *writer)
{
	put_u8(writer, RECORD_EMPTY);
}

void
repair_file_put_delete(RepairWriter *writer, ItemPointer tid)
{
	put_u8(writer, RECORD_DELETE);
	put_u32(writer, ItemPointerGetBlockNumber(tid));
	put_u16(writer, ItemPointerGetOffsetNumber(tid));
}

void
repair_file_put_insert(RepairWriter *writer, const char *row, uint32 length)
{
	put_u8(writer, RECORD_INSERT);
	put_u32(writer, length);
	put(writer, row, length);
}

void
repair_file_finish(RepairWriter *writer)
{
	pg_crc32c	crc;

	put_u8(writer, RECORD_END);
	crc = writer->crc;
	FIN_CRC32C(crc);
	put_u32(writer, (uint32) crc);
	if (FreeFile(writer->file) != 0)
		report_io("close");
	pfree(writer);
}

/* ---- reader ---- */

static void
take(RepairReader *reader, void *bytes, size_t length)
{
	if (fread(bytes, 1, length, reader->file) != length)
	{
		if (ferror(reader->file))
			report_io("read");
		report_malformed();
	}
	COMP_CRC32C(reader->crc, bytes, length);
}

static uint8
take_u8(RepairReader *reader)
{
	uint8		value;

	take(reader, &value, sizeof(value));
	return value;
}

static uint16
take_u16(RepairReader *reader)
{
	uint16		value;

	take(reader, &value, sizeof(value));
	return pg_ntoh16(value);
}

static uint32
take_u32(RepairReader *reader)
{
	uint32		value;

	take(reader, &value, sizeof(value));
	return pg_ntoh32(value);
}

static uint64
take_u64(RepairReader *reader)
{
	uint64		value;

	take(reader, &value, sizeof(value));
	return pg_ntoh64(value);
}

void
repair_file_rewind(RepairReader *reader)
{
	if (fseek(reader->file, HEADER_LENGTH, SEEK_SET) != 0)
		report_io("seek in");
}

static void
take_row(RepairReader *reader, RepairRecord *record)
{
	record->length = take_u32(reader);
	if (record->length > MaxAllocSize / 2)
		report_malformed();
	record->row = palloc(record->length + 1);
	take(reader, record->row, record->length);
}

bool
repair_file_next(RepairReader *reader, RepairRecord *record)
{
	BlockNumber block;

	memset(record, 0, sizeof(RepairRecord));
	switch (take_u8(reader))
	{
		case RECORD_EMPTY:
			record->type = REPAIR_EMPTY;
			break;
		case RECORD_DELETE:
			record->type = REPAIR_DELETE;
			block = take_u32(reader);
			ItemPointerSet(&record->tid, block, take_u16(reader));
			break;
		case RECORD_INSERT:
			record->type = REPAIR_INSERT;
			take_row(reader, record);
			break;
		case RECORD_END:
			record->type = REPAIR_END;
			break;
		default:
			report_malformed();
	}
	return record->type != REPAIR_END;
}

static void
check_to_the_end(RepairReader *reader)
{
	RepairRecord record;
	pg_crc32c	crc;

	while (repair_file_next(reader, &record))
		if (record.row != NULL)
			pfree(record.row);
	crc = reader->crc;
	FIN_CRC32C(crc);
	if (take_u32(reader) != (uint32) crc)
		report_malformed();
}

RepairReader *
repair_file_open(uint64 table_id, uint64 nonce)
{
	RepairReader *reader = palloc0(sizeof(RepairReader));

	reader->file = AllocateFile(REPAIR_PATH, PG_BINARY_R);
	if (reader->file == NULL)
		report_io("open");
	INIT_CRC32C(reader->crc);
	if (take_u32(reader) != REPAIR_MAGIC || take_u8(reader) != REPAIR_VERSION || take_u64(reader) != table_id ||
		take_u64(reader) != nonce)
		report_malformed();
	check_to_the_end(reader);
	repair_file_rewind(reader);
	return reader;
}

void
repair_file_close(RepairReader *reader)
{
	(void) FreeFile(reader->file);
	(void) unlink(REPAIR_PATH);
	pfree(reader);
}
