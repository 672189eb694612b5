/*
 * file_bytes.h
 *	  Numbers and checksums in this folder's files: big endian, CRC32C; and a small file that is replaced as a whole, durably.
 */
#ifndef QUORUM_FILE_BYTES_H
#define QUORUM_FILE_BYTES_H

#include "postgres.h"

#include "lib/stringinfo.h"
#include "port/pg_bswap.h"
#include "port/pg_crc32c.h"

static inline void
put_uint32(uint8 *bytes, uint32 number)
{
	number = pg_hton32(number);
	memcpy(bytes, &number, sizeof(number));
}

static inline void
put_uint64(uint8 *bytes, uint64 number)
{
	number = pg_hton64(number);
	memcpy(bytes, &number, sizeof(number));
}

static inline uint32
get_uint32(const uint8 *bytes)
{
	uint32		number;

	memcpy(&number, bytes, sizeof(number));
	return pg_ntoh32(number);
}

static inline uint64
get_uint64(const uint8 *bytes)
{
	uint64		number;

	memcpy(&number, bytes, sizeof(number));
	return pg_ntoh64(number);
}

static inline uint32
crc_of(const void *bytes, Size length)
{
	pg_crc32c	crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, bytes, length);
	FIN_CRC32C(crc);
	return crc;
}

/*
 * The file has that content, durably, or it is as it was and an ERROR says why.  Written to temporary_path first, which two writers at the same
 * time must not share.
 */
extern void file_replace(const char *path, const char *temporary_path, const StringInfoData *content);

#endif							/* QUORUM_FILE_BYTES_H */
