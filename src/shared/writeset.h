/*
 * writeset.h
 *	  The payload of a DATA entry: what one transaction changed in replicated tables, in the order of the changes.
 *
 * Bytes (network order, written with pqformat; see docs/PROTOCOL.md):
 *	 u8 version, u64 base, u8 flags, u64 token, u32 change count, u32 key count, the keys (certifier.h), then the changes: u8 operation and its
 *	 body.  A payload comes from a peer or from disk: the reader checks every length and raises ERRCODE_DATA_CORRUPTED.
 *
 * A row is: u16 column count (the table's live columns in attnum order), then per column u8 format and, unless NULL, u32 length and bytes.
 * Built-in types travel in their binary send/receive form; types whose binary form holds OIDs of user objects (enums, composites, arrays of them,
 * reg* types) and types without send/receive travel as text under fixed DateStyle, IntervalStyle, extra_float_digits and search_path.
 * A key is a row with only the primary key's columns, in index order.
 */
#ifndef QUORUM_WRITESET_H
#define QUORUM_WRITESET_H

#include "postgres.h"

#include "access/htup.h"
#include "executor/tuptable.h"
#include "lib/stringinfo.h"
#include "utils/relcache.h"

#include "shared/certifier.h"
#include "shared/table_checksum.h"

#define WRITESET_VERSION 2
#define WRITESET_FENCE 1			/* flag: nothing is changed; whatever has the token is to take no effect */
#define WRITESET_NONCE 2			/* flag: its client chose no token, this one is random */

typedef enum WriteSetOperation
{
	WRITESET_INSERT = 'I',		/* u64 table_id, row */
	WRITESET_UPDATE = 'U',		/* u64 table_id, old key, new row */
	WRITESET_DELETE = 'D',		/* u64 table_id, old key */
	WRITESET_TABLE_CREATE = 'C',	/* u64 table_id, text schema, text name, text ddl: replicate() begins.  On the origin it only notes the table */
	WRITESET_TABLE_ROWS = 'R',	/* u64 table_id, u32 count, rows: copy of existing rows; the origin has them */
	WRITESET_TABLE_ACTIVATE = 'A',	/* u64 table_id, u64 row count: from here on it is replicated */
	WRITESET_TABLE_FORGET = 'F',	/* u64 table_id: unreplicate(); the table stays as an ordinary one */
	WRITESET_TRUNCATE = 't',	/* u64 table_id, u8 1 if its sequences start again */
	WRITESET_SEQUENCE = 'S',	/* u64 table_id, u16 live column from 0, u64 value: how far the sequence of that column is */
	WRITESET_TABLE_CHECK = 'V', /* u64 table_id, u8 1 if at a gentle pace: each node sums the table's rows up as they are at this index */
	WRITESET_CHECK_RESULT = 'W',	/* u64 table_id, u64 index of the check, u8 CheckOutcome, u64 row count, u64 high, u64 low: its origin's sum */
	WRITESET_TABLE_COMPARE = 'X'	/* u64 table_id, u32 node that differs, u32 donor, u64 nonce: their rows at this index are compared */
} WriteSetOperation;

typedef enum WriteSetColumnFormat
{
	WRITESET_COLUMN_NULL = 'n',
	WRITESET_COLUMN_BINARY = 'b',
	WRITESET_COLUMN_TEXT = 't'
} WriteSetColumnFormat;

typedef struct WriteSetHeader
{
	uint64		base;			/* the lowest of its keys' */
	uint8		flags;
	uint64		token;			/* hash of the token that the client chose, or of the one to fence; 0: none */
	uint32		change_count;
	uint32		key_count;
	const char *keys;			/* in the payload */
} WriteSetHeader;

/* Only the header; used by the consensus worker for certification.  False: malformed. */
extern bool writeset_peek_header(const char *payload, Size length, WriteSetHeader *header);

/*
 * Writer.  The caller keeps the StringInfo.  begin reserves the header; then come the keys, each with a base that is not below the one given to
 * finish, then the changes; finish fills the header in.
 */
extern void writeset_begin(StringInfo buffer);
extern void writeset_put_certified_key(StringInfo buffer, uint64 hash, CertifierMode mode, uint64 base_offset);
extern void writeset_finish(StringInfo buffer, uint64 base, uint8 flags, uint64 token, uint32 key_count, uint32 change_count);
extern void writeset_put_row(StringInfo buffer, Relation relation, TupleTableSlot *slot);
extern void writeset_put_key(StringInfo buffer, Relation relation, TupleTableSlot *slot);

/* Does the type's binary form mean something on this node only? */
extern bool writeset_type_travels_as_text(Oid type);

/* Control operations, each with its operation byte.  A text is u32 length and its bytes in the database's encoding. */
extern void writeset_put_table_create(StringInfo buffer, uint64 table_id, const char *schema_name, const char *table_name,
									  const char *ddl);
extern void writeset_put_table_rows(StringInfo buffer, uint64 table_id, uint32 count);	/* then count times writeset_put_row */
extern void writeset_put_table_activate(StringInfo buffer, uint64 table_id, uint64 row_count);
extern void writeset_put_table_forget(StringInfo buffer, uint64 table_id);
extern void writeset_put_truncate(StringInfo buffer, uint64 table_id, bool restarts_identity);

extern void writeset_put_table_check(StringInfo buffer, uint64 table_id, bool gently);
extern void writeset_put_check_result(StringInfo buffer, uint64 table_id, uint64 check_index, CheckOutcome outcome, const TableSum *sum);
extern void writeset_put_table_compare(StringInfo buffer, uint64 table_id, uint32 node_id, uint32 donor_id, uint64 nonce);

/* For a finished one without a token: a random one.  Who does not know it cannot have it fenced. */
extern void writeset_set_nonce(char *payload, uint64 nonce);

/* Reader. */
typedef struct WriteSetReader
{
	StringInfoData data;
	WriteSetHeader header;		/* but its keys, which are skipped */
	uint32		changes_read;
} WriteSetReader;

extern void writeset_read_begin(WriteSetReader *reader, const char *payload, Size length);	/* copies the payload */
/* For rows or keys that stand alone, without a header. */
extern void writeset_read_rows_begin(WriteSetReader *reader, const char *bytes, Size length);
/* False at the end (then all bytes were used, else it raises). */
extern bool writeset_read_operation(WriteSetReader *reader, WriteSetOperation *operation, uint64 *table_id);
/* Into a virtual slot of the relation's row type: raises ERRCODE_DATATYPE_MISMATCH if the shape differs. */
extern void writeset_read_row(WriteSetReader *reader, Relation relation, TupleTableSlot *slot);
extern void writeset_read_key(WriteSetReader *reader, Relation relation, TupleTableSlot *slot);
extern void writeset_skip_row(WriteSetReader *reader);	/* its bytes are those between the cursor before and after */

/* Is the next operation such a one?  Not read by that. */
extern bool writeset_next_is(const WriteSetReader *reader, WriteSetOperation operation);

/* Fields of control operations; the text is palloc'd. */
extern uint8 writeset_read_u8(WriteSetReader *reader);
extern uint16 writeset_read_u16(WriteSetReader *reader);
extern uint32 writeset_read_u32(WriteSetReader *reader);
extern uint64 writeset_read_u64(WriteSetReader *reader);
extern char *writeset_read_text(WriteSetReader *reader);

#endif							/* QUORUM_WRITESET_H */
