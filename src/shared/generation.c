/*
 * generation.c
 *	  Comparing, encoding and filing the generations of a cluster; see generation.h.
 *
 * Process: client backends, stream backends, the consensus worker.  Bytes may come from a peer or from disk: decoding checks each length, and
 * never raises an error.
 *
 * Files: one line "pg_quorum generation 1", one line of hexadecimal digits, one line with the CRC32C of what is before it.  Written to a temporary
 * name of the process, fsynced and renamed, so that it is never seen half written, whoever else writes the same.
 *
 * Invariants of a decoded generation
 *	 1. Min(number, GENERATION_KEPT) entries, none with branch 0; node names are not empty and printable ASCII.
 *
 * Locks: none.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "storage/fd.h"

#include "shared/file_bytes.h"
#include "shared/generation.h"
#include "shared/shmem.h"

#define FILE_FIRST_LINE "pg_quorum generation 1\n"
#define FILE_MAX_BYTES (GENERATION_TEXT_BYTES + 64)

static int
kept_entries(const ClusterGeneration *generation)
{
	return (int) Min(generation->number, GENERATION_KEPT);
}

const GenerationEntry *
generation_entry(const ClusterGeneration *generation, uint32 number)
{
	if (number == 0 || number > generation->number || generation->number - number >= GENERATION_KEPT)
		return NULL;
	return &generation->entries[kept_entries(generation) - 1 - (generation->number - number)];
}

/* Is `older` where `newer` once was? */
static bool
has_passed(const ClusterGeneration *newer, const ClusterGeneration *older)
{
	const GenerationEntry *last = generation_entry(older, older->number);
	const GenerationEntry *then = generation_entry(newer, older->number);

	return older->number == 0 || (then != NULL && last != NULL && then->branch == last->branch);
}

GenerationRelation
generation_compare(const ClusterGeneration *first, const ClusterGeneration *second)
{
	if (first->number == second->number)
		return has_passed(first, second) ? GENERATION_SAME : GENERATION_APART;
	if (first->number < second->number)
		return has_passed(second, first) ? GENERATION_OLDER : GENERATION_APART;
	return has_passed(first, second) ? GENERATION_NEWER : GENERATION_APART;
}

void
generation_add(ClusterGeneration *generation, const char *node_name)
{
	GenerationEntry *entry;

	if (generation->number >= GENERATION_KEPT)
		memmove(&generation->entries[0], &generation->entries[1], (GENERATION_KEPT - 1) * sizeof(GenerationEntry));
	generation->number++;
	entry = &generation->entries[kept_entries(generation) - 1];
	memset(entry, 0, sizeof(*entry));
	while (entry->branch == 0)
		if (!pg_strong_random(&entry->branch, sizeof(entry->branch)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not draw a random number for the new generation of the cluster")));
	entry->forced_at = GetCurrentTimestamp();
	strlcpy(entry->node_name, node_name, NAMEDATALEN);
}

char *
generation_explain(const ClusterGeneration *own, const ClusterGeneration *successor)
{
	const GenerationEntry *step = generation_entry(successor, own->number + 1);

	if (step == NULL)
		return pstrdup("the cluster was continued without this node by quorum.force_new_cluster(); rejoin as new");
	return psprintf("the cluster was continued without this node by quorum.force_new_cluster() on node \"%s\" at %s; rejoin as new",
					step->node_name, timestamptz_to_str(step->forced_at));
}

/* ---- bytes ---- */

void
generation_encode(const ClusterGeneration *generation, StringInfo buffer)
{
	pq_sendint32(buffer, generation->number);
	for (int i = 0; i < kept_entries(generation); i++)
	{
		const GenerationEntry *entry = &generation->entries[i];
		Size		length = strlen(entry->node_name);

		pq_sendint64(buffer, entry->branch);
		pq_sendint64(buffer, entry->slot);
		pq_sendint64(buffer, (uint64) entry->forced_at);
		pq_sendint8(buffer, (uint8) length);
		appendBinaryStringInfo(buffer, entry->node_name, (int) length);
	}
}

/* Takes `width` bytes off the front; false: there are not so many. */
static bool
take_number(const char **bytes, Size *length, int width, uint64 *number)
{
	if (*length < (Size) width)
		return false;
	*number = 0;
	for (int i = 0; i < width; i++)
		*number = (*number << 8) | (uint8) (*bytes)[i];
	*bytes += width;
	*length -= (Size) width;
	return true;
}

static bool
take_entry(const char **bytes, Size *length, GenerationEntry *entry)
{
	uint64		forced_at;
	uint64		name_length;

	if (!take_number(bytes, length, 8, &entry->branch) || !take_number(bytes, length, 8, &entry->slot) ||
		!take_number(bytes, length, 8, &forced_at) || !take_number(bytes, length, 1, &name_length) ||
		entry->branch == 0 || name_length == 0 || name_length >= NAMEDATALEN || name_length > *length)
		return false;
	entry->forced_at = (TimestampTz) forced_at;
	for (uint64 i = 0; i < name_length; i++)
	{
		char		c = (*bytes)[i];

		if (c <= 0x20 || c >= 0x7F)
			return false;
		entry->node_name[i] = c;
	}
	*bytes += name_length;
	*length -= (Size) name_length;
	return IS_VALID_TIMESTAMP(entry->forced_at);
}

Size
generation_decode(ClusterGeneration *generation, const char *bytes, Size length)
{
	Size		left = length;
	uint64		number;

	memset(generation, 0, sizeof(*generation));
	if (!take_number(&bytes, &left, 4, &number))
		return 0;
	generation->number = (uint32) number;
	for (int i = 0; i < kept_entries(generation); i++)
		if (!take_entry(&bytes, &left, &generation->entries[i]))
			return 0;
	return length - left;
}

/* ---- text ---- */

void
generation_to_text(const ClusterGeneration *generation, char *text)
{
	StringInfoData bytes;

	text[0] = '\0';
	if (generation->number == 0)
		return;
	initStringInfo(&bytes);
	generation_encode(generation, &bytes);
	Assert(2 * bytes.len < GENERATION_TEXT_BYTES);
	for (int i = 0; i < bytes.len; i++)
		snprintf(text + 2 * i, 3, "%02X", (uint8) bytes.data[i]);
	pfree(bytes.data);
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

bool
generation_from_text(ClusterGeneration *generation, const char *text)
{
	char		bytes[GENERATION_TEXT_BYTES / 2];
	Size		digits = strlen(text);

	memset(generation, 0, sizeof(*generation));
	if (digits == 0)
		return true;
	if (digits % 2 != 0 || digits / 2 > sizeof(bytes))
		return false;
	for (Size i = 0; i < digits / 2; i++)
	{
		int			high = hex_digit(text[2 * i]);
		int			low = hex_digit(text[2 * i + 1]);

		if (high < 0 || low < 0)
			return false;
		bytes[i] = (char) (high * 16 + low);
	}
	return generation_decode(generation, bytes, digits / 2) == digits / 2;
}

/* ---- files ---- */

static void
path_of(const char *name, char *path)
{
	snprintf(path, MAXPGPATH, "%s/%s", QUORUM_DIRECTORY, name);
}

void
generation_file_write(const char *name, const ClusterGeneration *generation)
{
	StringInfoData content;
	char		text[GENERATION_TEXT_BYTES];
	char		path[MAXPGPATH];
	char		temporary_path[MAXPGPATH + 16];

	path_of(name, path);
	snprintf(temporary_path, sizeof(temporary_path), "%s.%d", path, MyProcPid);
	generation_to_text(generation, text);
	initStringInfo(&content);
	appendStringInfo(&content, "%s%s\n", FILE_FIRST_LINE, text);
	appendStringInfo(&content, "%08X\n", crc_of(content.data, content.len));
	file_replace(path, temporary_path, &content);
	pfree(content.data);
}

void
generation_file_remove(const char *name)
{
	char		path[MAXPGPATH];

	path_of(name, path);
	durable_unlink(path, LOG);
}

static bool
parse_file(ClusterGeneration *generation, char *content, Size length)
{
	Size		first_length = strlen(FILE_FIRST_LINE);
	char	   *text = content + first_length;
	char	   *text_end;
	char		crc[16];

	if (length < first_length || memcmp(content, FILE_FIRST_LINE, first_length) != 0)
		return false;
	text_end = strchr(text, '\n');
	if (text_end == NULL)
		return false;
	snprintf(crc, sizeof(crc), "%08X\n", crc_of(content, text_end + 1 - content));
	if (strcmp(text_end + 1, crc) != 0)
		return false;
	*text_end = '\0';
	return generation_from_text(generation, text) && generation->number > 0;
}

GenerationFileState
generation_file_read(const char *name, ClusterGeneration *generation)
{
	char		content[FILE_MAX_BYTES];
	char		path[MAXPGPATH];
	ssize_t		length;
	int			fd;

	memset(generation, 0, sizeof(*generation));
	path_of(name, path);
	fd = OpenTransientFile(path, O_RDONLY | PG_BINARY);
	if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
		return GENERATION_FILE_ABSENT;
	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", path)));
	length = read(fd, content, sizeof(content) - 1);
	if (length < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not read file \"%s\": %m", path)));
	CloseTransientFile(fd);
	content[length] = '\0';
	return parse_file(generation, content, (Size) length) ? GENERATION_FILE_VALID : GENERATION_FILE_MALFORMED;
}
