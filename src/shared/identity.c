/*
 * identity.c
 *	  The identity file: who this node is, for the consensus worker that makes the journal from it.
 *
 * Process: the backend that runs create_cluster or join_cluster writes it, the consensus worker reads it.  It must never be seen
 * half written: it is written to a temporary name, fsynced, and renamed.  The file may hold a conninfo with a password, so it has the mode
 * of every file in the data directory, and no error shows its content.
 *
 * Lines, in this order, each ended by a line feed:
 *
 *	 pg_quorum identity 1
 *	 cluster_id = 16 hexadecimal digits
 *	 node_id = decimal
 *	 node_name = text
 *	 conninfo = text
 *	 config_slot = decimal
 *	 config = hexadecimal digits, two per byte
 *	 crc32c = 8 hexadecimal digits, of every byte before this line
 *
 * In a text the bytes 0x01 to 0x1F, 0x7F and the backslash are written as \xHH; all others stand for themselves.
 *
 * Locks: none.  Two backends that write at the same time are kept apart by their caller.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file_perm.h"
#include "lib/stringinfo.h"
#include "storage/fd.h"
#include "utils/wait_event.h"

#include "shared/file_bytes.h"
#include "shared/identity.h"

#define IDENTITY_PATH QUORUM_DIRECTORY "/identity"
#define IDENTITY_TEMPORARY_PATH QUORUM_DIRECTORY "/identity.tmp"
#define IDENTITY_FIRST_LINE "pg_quorum identity 1"
#define IDENTITY_MAX_BYTES (1024 * 1024)

/* A cursor over the file's lines. */
typedef struct IdentityReader
{
	const char *position;
	const char *end;
	int			line_number;	/* of the line last read */
} IdentityReader;

bool
identity_exists(void)
{
	struct stat status;

	if (stat(IDENTITY_PATH, &status) == 0)
		return true;
	if (errno != ENOENT && errno != ENOTDIR)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not stat file \"%s\": %m", IDENTITY_PATH)));
	return false;
}

/* ---- writing ---- */

static void
append_text(StringInfo buffer, const char *text)
{
	for (const char *c = text; *c != '\0'; c++)
	{
		unsigned char byte = (unsigned char) *c;

		if (byte < 0x20 || byte == 0x7F || byte == '\\')
			appendStringInfo(buffer, "\\x%02X", byte);
		else
			appendStringInfoChar(buffer, *c);
	}
}

static void
append_identity(StringInfo buffer, const IdentityFile *identity)
{
	appendStringInfo(buffer, "%s\n", IDENTITY_FIRST_LINE);
	appendStringInfo(buffer, "cluster_id = %016llX\n", (unsigned long long) identity->cluster_id);
	appendStringInfo(buffer, "node_id = %u\n", identity->node_id);
	appendStringInfoString(buffer, "node_name = ");
	append_text(buffer, identity->node_name);
	appendStringInfoString(buffer, "\nconninfo = ");
	append_text(buffer, identity->conninfo);
	appendStringInfo(buffer, "\nconfig_slot = " UINT64_FORMAT "\n", identity->config_slot);
	appendStringInfoString(buffer, "config = ");
	for (uint32 i = 0; i < identity->config_length; i++)
		appendStringInfo(buffer, "%02X", (unsigned char) identity->config_bytes[i]);
	appendStringInfoChar(buffer, '\n');
	appendStringInfo(buffer, "crc32c = %08X\n", crc_of(buffer->data, buffer->len));
}

/* The folder and the one above it, durable before anything is put into them. */
void
identity_make_directory(void)
{
	char		parent[MAXPGPATH];

	strlcpy(parent, QUORUM_DIRECTORY, sizeof(parent));
	get_parent_directory(parent);

	if (MakePGDirectory(parent) < 0 && errno != EEXIST)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create directory \"%s\": %m", parent)));
	if (MakePGDirectory(QUORUM_DIRECTORY) < 0 && errno != EEXIST)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create directory \"%s\": %m", QUORUM_DIRECTORY)));
	fsync_fname(QUORUM_DIRECTORY, true);
	fsync_fname(parent, true);
	fsync_fname(".", true);
}

void
identity_write(const IdentityFile *identity)
{
	StringInfoData buffer;

	initStringInfo(&buffer);
	append_identity(&buffer, identity);
	identity_make_directory();
	file_replace(IDENTITY_PATH, IDENTITY_TEMPORARY_PATH, &buffer);
	pfree(buffer.data);
}

/* ---- reading ---- */

static void
report_malformed(int line_number, const char *why)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("the identity file of this node cannot be read"),
			 errdetail("File \"%s\", line %d: %s.", IDENTITY_PATH, line_number, why),
			 errhint("Rejoin this node as a new one.")));
}

/* The next line must be "name = value"; copies the value. */
static char *
read_value(IdentityReader *reader, const char *name)
{
	const char *line = reader->position;
	const char *line_end = memchr(line, '\n', reader->end - line);
	size_t		name_length = strlen(name);

	reader->line_number++;
	if (line_end == NULL)
		report_malformed(reader->line_number, "the file ends too early");
	if ((size_t) (line_end - line) < name_length + 3 ||
		memcmp(line, name, name_length) != 0 || memcmp(line + name_length, " = ", 3) != 0)
		report_malformed(reader->line_number, psprintf("\"%s\" is expected here", name));
	line += name_length + 3;
	reader->position = line_end + 1;
	return pnstrdup(line, line_end - line);
}

static uint64
read_number(IdentityReader *reader, const char *name, int base, uint64 maximum)
{
	char	   *value = read_value(reader, name);
	char	   *value_end;
	uint64		number;

	errno = 0;
	number = strtoull(value, &value_end, base);
	if (errno != 0 || value_end == value || *value_end != '\0' || !isxdigit((unsigned char) value[0]) || number > maximum)
		report_malformed(reader->line_number, psprintf("\"%s\" is not a valid number", name));
	pfree(value);
	return number;
}

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* The byte that two hexadecimal digits stand for, or -1; reads no further than the first that is none. */
static int
hex_byte(const char *digits)
{
	int			high = hex_digit(digits[0]);
	int			low = high < 0 ? -1 : hex_digit(digits[1]);

	return low < 0 ? -1 : high * 16 + low;
}

static void
read_text(IdentityReader *reader, const char *name, char *text, size_t capacity)
{
	char	   *value = read_value(reader, name);
	size_t		length = 0;

	for (const char *c = value; *c != '\0'; c++)
	{
		int			byte = (unsigned char) *c;

		if (*c == '\\')
		{
			byte = c[1] == 'x' ? hex_byte(c + 2) : -1;
			if (byte <= 0)
				report_malformed(reader->line_number, psprintf("\"%s\" has an invalid escape", name));
			c += 3;
		}
		if (length + 1 >= capacity)
			report_malformed(reader->line_number, psprintf("\"%s\" is too long", name));
		text[length++] = (char) byte;
	}
	text[length] = '\0';
	pfree(value);
}

static void
read_config(IdentityReader *reader, IdentityFile *identity)
{
	char	   *value = read_value(reader, "config");
	size_t		digits = strlen(value);

	if (digits == 0 || digits % 2 != 0)
		report_malformed(reader->line_number, "\"config\" has an invalid length");
	identity->config_length = (uint32) (digits / 2);
	identity->config_bytes = palloc(digits / 2);
	for (size_t i = 0; i < digits / 2; i++)
	{
		int			byte = hex_byte(value + 2 * i);

		if (byte < 0)
			report_malformed(reader->line_number, "\"config\" is not hexadecimal");
		identity->config_bytes[i] = (char) byte;
	}
	pfree(value);
}

static void
read_whole_file(StringInfo buffer)
{
	int			fd = OpenTransientFile(IDENTITY_PATH, O_RDONLY | PG_BINARY);
	ssize_t		length;

	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", IDENTITY_PATH)));
	do
	{
		if (buffer->len > IDENTITY_MAX_BYTES)
			report_malformed(1, "the file is too long");
		enlargeStringInfo(buffer, 8192);
		length = read(fd, buffer->data + buffer->len, 8192);
		if (length < 0)
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not read file \"%s\": %m", IDENTITY_PATH)));
		buffer->len += (int) length;
	} while (length > 0);
	buffer->data[buffer->len] = '\0';
	CloseTransientFile(fd);
}

void
identity_read(IdentityFile *identity)
{
	StringInfoData buffer;
	IdentityReader reader;
	size_t		first_line_length = strlen(IDENTITY_FIRST_LINE);
	uint32		crc;

	initStringInfo(&buffer);
	read_whole_file(&buffer);
	memset(identity, 0, sizeof(*identity));
	if (memchr(buffer.data, '\0', buffer.len) != NULL)
		report_malformed(1, "the file holds a zero byte");
	if ((size_t) buffer.len <= first_line_length ||
		memcmp(buffer.data, IDENTITY_FIRST_LINE "\n", first_line_length + 1) != 0)
		report_malformed(1, "\"" IDENTITY_FIRST_LINE "\" is expected here");

	reader.position = buffer.data + first_line_length + 1;
	reader.end = buffer.data + buffer.len;
	reader.line_number = 1;
	identity->cluster_id = read_number(&reader, "cluster_id", 16, PG_UINT64_MAX);
	identity->node_id = (uint32) read_number(&reader, "node_id", 10, PG_UINT32_MAX);
	read_text(&reader, "node_name", identity->node_name, sizeof(identity->node_name));
	read_text(&reader, "conninfo", identity->conninfo, sizeof(identity->conninfo));
	identity->config_slot = read_number(&reader, "config_slot", 10, PG_UINT64_MAX);
	read_config(&reader, identity);
	crc = crc_of(buffer.data, reader.position - buffer.data);
	if (read_number(&reader, "crc32c", 16, PG_UINT32_MAX) != crc)
		report_malformed(reader.line_number, "the checksum is wrong");
	if (reader.position != reader.end)
		report_malformed(reader.line_number + 1, "the file goes on after its end");
	if (identity->node_id == 0 || identity->node_name[0] == '\0')
		report_malformed(3, "the node has no number or no name");
	pfree(buffer.data);
}
