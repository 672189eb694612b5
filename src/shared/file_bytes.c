/*
 * file_bytes.c
 *	  A small file is replaced as a whole: never seen half written, and durable on return.  Any process that may write them.  Locks: none.
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "storage/fd.h"

#include "shared/file_bytes.h"

static void
write_and_sync(const char *path, const StringInfoData *content)
{
	int			fd = OpenTransientFile(path, O_WRONLY | O_CREAT | O_TRUNC | PG_BINARY);

	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create file \"%s\": %m", path)));
	errno = 0;
	if (write(fd, content->data, content->len) != content->len)
	{
		/* a short write without a reason means that the disk is full */
		if (errno == 0)
			errno = ENOSPC;
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", path)));
	}
	if (pg_fsync(fd) != 0)
		ereport(data_sync_elevel(ERROR),
				(errcode_for_file_access(),
				 errmsg("could not fsync file \"%s\": %m", path)));
	if (CloseTransientFile(fd) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not close file \"%s\": %m", path)));
}

void
file_replace(const char *path, const char *temporary_path, const StringInfoData *content)
{
	write_and_sync(temporary_path, content);
	(void) durable_rename(temporary_path, path, ERROR);
}
