/*
 * writeset.c
 *	  The payload of a DATA entry: header and operations.  Rows are in writeset_row.c, the bytes are described in writeset.h.
 *
 * Process: client backends write, the apply worker reads, the consensus worker peeks at the header.  Must never trust the
 * bytes: each length is checked against what is left, and a payload that does not end where its changes end is refused.
 *
 * Invariants
 *	 1. The reader never looks outside its own copy of the payload.
 *	 2. A payload is read to its last byte or raises ERRCODE_DATA_CORRUPTED.
 */
#include "postgres.h"

#include "libpq/pqformat.h"
#include "mb/pg_wchar.h"
#include "port/pg_bswap.h"
#include "utils/memutils.h"

#include "shared/writeset_internal.h"

#define HEADER_LENGTH 26		/* u8 version, u64 base, u8 flags, u64 token, u32 change count, u32 key count */

/* ---- header ---- */

static uint64
get_u64(const char *bytes)
{
	uint64		value;

	memcpy(&value, bytes, sizeof(value));
	return pg_ntoh64(value);
}

static uint32
get_u32(const char *bytes)
{
	uint32		value;

	memcpy(&value, bytes, sizeof(value));
	return pg_ntoh32(value);
}

bool
writeset_peek_header(const char *payload, Size length, WriteSetHeader *header)
{
	if (length < HEADER_LENGTH || (uint8) payload[0] != WRITESET_VERSION)
		return false;
	header->base = get_u64(payload + 1);
	header->flags = (uint8) payload[9];
	header->token = get_u64(payload + 10);
	header->change_count = get_u32(payload + 18);
	header->key_count = get_u32(payload + 22);
	header->keys = payload + HEADER_LENGTH;
	return (header->flags & ~(WRITESET_FENCE | WRITESET_NONCE)) == 0 && header->key_count <= (length - HEADER_LENGTH) / CERTIFIER_KEY_BYTES;
}

void
writeset_begin(StringInfo buffer)
{
	appendStringInfoSpaces(buffer, HEADER_LENGTH);
}

/* An offset that does not fit counts as a lower base, which is safe. */
void
writeset_put_certified_key(StringInfo buffer, uint64 hash, CertifierMode mode, uint64 base_offset)
{
	enlargeStringInfo(buffer, CERTIFIER_KEY_BYTES);
	certifier_put_key((uint8 *) buffer->data + buffer->len, hash, mode, (uint32) Min(base_offset, PG_UINT32_MAX));
	buffer->len += CERTIFIER_KEY_BYTES;
	buffer->data[buffer->len] = '\0';
}

static void
put_u64_at(StringInfo buffer, int offset, uint64 value)
{
	value = pg_hton64(value);
	memcpy(buffer->data + offset, &value, sizeof(value));
}

static void
put_u32_at(StringInfo buffer, int offset, uint32 value)
{
	value = pg_hton32(value);
	memcpy(buffer->data + offset, &value, sizeof(value));
}

void
writeset_finish(StringInfo buffer, uint64 base, uint8 flags, uint64 token, uint32 key_count, uint32 change_count)
{
	buffer->data[0] = WRITESET_VERSION;
	put_u64_at(buffer, 1, base);
	buffer->data[9] = flags;
	put_u64_at(buffer, 10, token);
	put_u32_at(buffer, 18, change_count);
	put_u32_at(buffer, 22, key_count);
}

void
writeset_set_nonce(char *payload, uint64 nonce)
{
	payload[9] |= WRITESET_NONCE;
	nonce = pg_hton64(nonce);
	memcpy(payload + 10, &nonce, sizeof(nonce));
}

/* ---- writers of control operations ---- */

static void
put_text(StringInfo buffer, const char *text)
{
	pq_sendint32(buffer, strlen(text));
	appendBinaryStringInfo(buffer, text, strlen(text));
}

static void
put_operation(StringInfo buffer, WriteSetOperation operation, uint64 table_id)
{
	pq_sendbyte(buffer, (uint8) operation);
	pq_sendint64(buffer, table_id);
}

void
writeset_put_table_create(StringInfo buffer, uint64 table_id, const char *schema_name, const char *table_name,
						  const char *ddl)
{
	put_operation(buffer, WRITESET_TABLE_CREATE, table_id);
	put_text(buffer, schema_name);
	put_text(buffer, table_name);
	put_text(buffer, ddl);
}

void
writeset_put_table_rows(StringInfo buffer, uint64 table_id, uint32 count)
{
	put_operation(buffer, WRITESET_TABLE_ROWS, table_id);
	pq_sendint32(buffer, count);
}

void
writeset_put_table_activate(StringInfo buffer, uint64 table_id, uint64 row_count)
{
	put_operation(buffer, WRITESET_TABLE_ACTIVATE, table_id);
	pq_sendint64(buffer, row_count);
}

void
writeset_put_table_forget(StringInfo buffer, uint64 table_id)
{
	put_operation(buffer, WRITESET_TABLE_FORGET, table_id);
}

void
writeset_put_truncate(StringInfo buffer, uint64 table_id, bool restarts_identity)
{
	put_operation(buffer, WRITESET_TRUNCATE, table_id);
	pq_sendbyte(buffer, restarts_identity ? 1 : 0);
}

void
writeset_put_table_check(StringInfo buffer, uint64 table_id, bool gently)
{
	put_operation(buffer, WRITESET_TABLE_CHECK, table_id);
	pq_sendbyte(buffer, gently ? 1 : 0);
}

void
writeset_put_check_result(StringInfo buffer, uint64 table_id, uint64 check_index, CheckOutcome outcome, const TableSum *sum)
{
	put_operation(buffer, WRITESET_CHECK_RESULT, table_id);
	pq_sendint64(buffer, check_index);
	pq_sendbyte(buffer, (uint8) outcome);
	pq_sendint64(buffer, sum->row_count);
	pq_sendint64(buffer, sum->hash.high);
	pq_sendint64(buffer, sum->hash.low);
}

void
writeset_put_table_compare(StringInfo buffer, uint64 table_id, uint32 node_id, uint32 donor_id, uint64 nonce)
{
	put_operation(buffer, WRITESET_TABLE_COMPARE, table_id);
	pq_sendint32(buffer, node_id);
	pq_sendint32(buffer, donor_id);
	pq_sendint64(buffer, nonce);
}

/* ---- reader ---- */

void
writeset_malformed(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("malformed write set: %s", what)));
}

char *
writeset_take(WriteSetReader *reader, Size length)
{
	char	   *start = reader->data.data + reader->data.cursor;

	if (length > (Size) (reader->data.len - reader->data.cursor))
		writeset_malformed("it ends within a change");
	reader->data.cursor += length;
	return start;
}

uint8
writeset_read_u8(WriteSetReader *reader)
{
	return (uint8) *writeset_take(reader, 1);
}

uint16
writeset_read_u16(WriteSetReader *reader)
{
	uint16		value;

	memcpy(&value, writeset_take(reader, sizeof(value)), sizeof(value));
	return pg_ntoh16(value);
}

uint32
writeset_read_u32(WriteSetReader *reader)
{
	return get_u32(writeset_take(reader, sizeof(uint32)));
}

uint64
writeset_read_u64(WriteSetReader *reader)
{
	return get_u64(writeset_take(reader, sizeof(uint64)));
}

char *
writeset_read_text(WriteSetReader *reader)
{
	uint32		length = writeset_read_u32(reader);
	char	   *text = pnstrdup(writeset_take(reader, length), length);

	if (strlen(text) != length)
		writeset_malformed("a text contains a zero byte");
	(void) pg_verifymbstr(text, length, false);
	return text;
}

/* The copy has a byte to spare, so that each value can be terminated in place while its input function reads it. */
static void
copy_bytes(WriteSetReader *reader, const char *bytes, Size length)
{
	reader->data.data = palloc(length + 1);
	memcpy(reader->data.data, bytes, length);
	reader->data.data[length] = '\0';
	reader->data.len = length;
	reader->data.maxlen = length + 1;
}

void
writeset_read_rows_begin(WriteSetReader *reader, const char *bytes, Size length)
{
	if (length > MaxAllocSize - 1)
		writeset_malformed("a row is too long");
	memset(reader, 0, sizeof(WriteSetReader));
	copy_bytes(reader, bytes, length);
}

void
writeset_read_begin(WriteSetReader *reader, const char *payload, Size length)
{
	if (length > MaxAllocSize - 1 || !writeset_peek_header(payload, length, &reader->header))
		writeset_malformed("its header has a wrong length, version or flags");
	copy_bytes(reader, payload, length);
	reader->data.cursor = HEADER_LENGTH + reader->header.key_count * CERTIFIER_KEY_BYTES;
	reader->header.keys = NULL;
	reader->changes_read = 0;
}

bool
writeset_read_operation(WriteSetReader *reader, WriteSetOperation *operation, uint64 *table_id)
{
	uint8		byte;

	if (reader->changes_read == reader->header.change_count)
	{
		if (reader->data.cursor != reader->data.len)
			writeset_malformed("bytes follow its last change");
		return false;
	}
	byte = writeset_read_u8(reader);
	switch ((WriteSetOperation) byte)
	{
		case WRITESET_INSERT:
		case WRITESET_UPDATE:
		case WRITESET_DELETE:
		case WRITESET_TABLE_CREATE:
		case WRITESET_TABLE_ROWS:
		case WRITESET_TABLE_ACTIVATE:
		case WRITESET_TABLE_FORGET:
		case WRITESET_TRUNCATE:
		case WRITESET_SEQUENCE:
		case WRITESET_TABLE_CHECK:
		case WRITESET_CHECK_RESULT:
		case WRITESET_TABLE_COMPARE:
			break;
		default:
			writeset_malformed("unknown operation");
	}
	*operation = (WriteSetOperation) byte;
	*table_id = writeset_read_u64(reader);
	reader->changes_read++;
	return true;
}

bool
writeset_next_is(const WriteSetReader *reader, WriteSetOperation operation)
{
	return reader->changes_read < reader->header.change_count && reader->data.cursor < reader->data.len &&
		(uint8) reader->data.data[reader->data.cursor] == (uint8) operation;
}
