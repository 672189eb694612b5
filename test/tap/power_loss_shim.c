/*
 * power_loss_shim.c
 *	  A library for LD_PRELOAD: keeps a record of how files were before each change that no fsync has made durable yet, so that
 *	  power_loss.c can take these changes back, as a power cut does.
 *
 * Process: every process of an instance of the tests.  It watches files below POWER_LOSS_DATA that are opened for writing with open(),
 * and must never let a change through before its record is whole, nor call something durable that no fsync has promised.
 *
 * What is watched: write, writev, pwrite, pwritev, ftruncate, truncate, posix_fallocate, O_TRUNC; fsync and fdatasync, through whichever
 * descriptor of whichever process; O_SYNC and O_DSYNC make each write its own fsync.  syncfs is refused.
 * What counts as durable at once: names, that is creation, rename and unlink of files, and directories; files written through stdio, which
 * calls none of the above (of Postgres': postmaster.opts, statistics, relcache init files - all of them thrown away by crash
 * recovery); files made by other programs, as initdb.  sync_file_range makes nothing durable.
 *
 * power_loss.h has the invariants and the locks.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "power_loss.h"

#define MAX_DESCRIPTORS 65536
#define EXPORT __attribute__((visibility("default")))

/* The file that a descriptor was opened on; a descriptor that was closed and used again otherwise is found out by comparing. */
typedef struct Descriptor
{
	uint64_t	device;
	uint64_t	inode;			/* 0: not watched */
	bool		syncs_itself;	/* O_SYNC, O_DSYNC */
} Descriptor;

static PowerLossLog *power_log = NULL;	/* NULL: nothing is watched */
static char data_directory[PATH_MAX];
static size_t data_directory_length;
static Descriptor descriptors[MAX_DESCRIPTORS];
static bool inside = false;		/* a signal handler that writes, in the middle of us */

static int	(*real_open) (const char *, int,...);
static int	(*real_openat) (int, const char *, int,...);
static ssize_t (*real_write) (int, const void *, size_t);
static ssize_t (*real_writev) (int, const struct iovec *, int);
static ssize_t (*real_pwrite) (int, const void *, size_t, off_t);
static ssize_t (*real_pwritev) (int, const struct iovec *, int, off_t);
static int	(*real_ftruncate) (int, off_t);
static int	(*real_truncate) (const char *, off_t);
static int	(*real_posix_fallocate) (int, off_t, off_t);
static int	(*real_fsync) (int);
static int	(*real_fdatasync) (int);
static int	(*real_rename) (const char *, const char *);
static int	(*real_unlink) (const char *);

static void
give_up(const char *why)
{
	static const char prefix[] = "power_loss_shim: ";

	(void) !real_write(2, prefix, sizeof(prefix) - 1);
	(void) !real_write(2, why, strlen(why));
	(void) !real_write(2, "\n", 1);
	abort();
}

static void
map_log(const char *path)
{
	struct stat status;
	int			fd = real_open(path, O_RDWR | O_CLOEXEC);

	if (fd < 0 || fstat(fd, &status) != 0)
		give_up("the undo log can't be opened");
	power_log = mmap(NULL, (size_t) status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (power_log == MAP_FAILED || power_log->magic != POWER_LOSS_MAGIC)
		give_up("the undo log can't be mapped, or is none");
	close(fd);
}

/* Other libraries may open files before the constructor of this one has run. */
__attribute__((constructor)) static void
begin(void)
{
	const char *log_path;
	const char *data_path;

	if (real_unlink != NULL)
		return;
	log_path = getenv(POWER_LOSS_LOG_VARIABLE);
	data_path = getenv(POWER_LOSS_DATA_VARIABLE);
	*(void **) &real_open = dlsym(RTLD_NEXT, "open");
	*(void **) &real_openat = dlsym(RTLD_NEXT, "openat");
	*(void **) &real_write = dlsym(RTLD_NEXT, "write");
	*(void **) &real_writev = dlsym(RTLD_NEXT, "writev");
	*(void **) &real_pwrite = dlsym(RTLD_NEXT, "pwrite");
	*(void **) &real_pwritev = dlsym(RTLD_NEXT, "pwritev");
	*(void **) &real_ftruncate = dlsym(RTLD_NEXT, "ftruncate");
	*(void **) &real_truncate = dlsym(RTLD_NEXT, "truncate");
	*(void **) &real_posix_fallocate = dlsym(RTLD_NEXT, "posix_fallocate");
	*(void **) &real_fsync = dlsym(RTLD_NEXT, "fsync");
	*(void **) &real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
	*(void **) &real_rename = dlsym(RTLD_NEXT, "rename");
	*(void **) &real_unlink = dlsym(RTLD_NEXT, "unlink");
	if (log_path == NULL || data_path == NULL)
		return;
	data_directory_length = (size_t) snprintf(data_directory, sizeof(data_directory), "%s/", data_path);
	map_log(log_path);
}

/* ---- locks ---- */

static void
lock(pthread_mutex_t *mutex)
{
	int			result = pthread_mutex_lock(mutex);

	if (result == EOWNERDEAD)
		result = pthread_mutex_consistent(mutex);	/* power_loss.h, invariant 4 */
	if (result != 0)
		give_up("a mutex of the undo log can't be locked");
}

static void
unlock(pthread_mutex_t *mutex)
{
	pthread_mutex_unlock(mutex);
}

static pthread_mutex_t *
mutex_of(uint64_t inode)
{
	return &power_log->file_mutex[inode % POWER_LOSS_FILE_MUTEXES];
}

/* ---- the table of files ---- */

/* NULL: not there, and `make` is false. */
static PowerLossFile *
find_file(uint64_t device, uint64_t inode, bool make)
{
	uint32_t	place = power_loss_place(device, inode);

	for (int tried = 0; tried < POWER_LOSS_FILES; tried++)
	{
		PowerLossFile *file = &power_log->files[(place + (uint32_t) tried) % POWER_LOSS_FILES];
		uint64_t	there = atomic_load(&file->inode);

		if (there == inode && file->device == device)
			return file;
		if (there != 0)
			continue;
		if (!make)
			return NULL;
		lock(&power_log->ring_mutex);
		if (atomic_load(&file->inode) == 0)
		{
			file->device = device;
			atomic_store(&file->durable, 0);
			atomic_store(&file->truncated_size, 0);
			atomic_store(&file->inode, inode);
		}
		unlock(&power_log->ring_mutex);
		if (atomic_load(&file->inode) == inode && file->device == device)
			return file;
	}
	give_up("too many files");
	return NULL;
}

/* ---- records ---- */

static void
make_room(uint64_t bytes)
{
	while (atomic_load(&power_log->end) + bytes - atomic_load(&power_log->start) > power_log->ring_bytes)
	{
		uint64_t	position = atomic_load(&power_log->start);
		PowerLossRecord *record = power_loss_record_at(power_log, position);

		if (record->type != POWER_LOSS_PAD && atomic_load(&power_log->files[record->file].durable) <= position)
		{
			power_loss_raise(&power_log->files[record->file].durable, atomic_load(&power_log->end));
			atomic_fetch_add(&power_log->written_back, 1);
		}
		atomic_store(&power_log->start, position + record->record_bytes);
	}
}

static void
append(PowerLossFile *file, PowerLossType type, uint64_t offset, uint64_t length, const unsigned char *bytes)
{
	uint64_t	bytes_length = type == POWER_LOSS_BYTES ? length : 0;
	uint64_t	record_bytes = (sizeof(PowerLossRecord) + bytes_length + 7) / 8 * 8;
	uint64_t	left;
	PowerLossRecord *record;

	lock(&power_log->ring_mutex);
	left = power_log->ring_bytes - atomic_load(&power_log->end) % power_log->ring_bytes;

	/* Room for one more head is always kept, so that a pad fits. */
	if (left < record_bytes + sizeof(PowerLossRecord))
	{
		make_room(left);
		record = power_loss_record_at(power_log, atomic_load(&power_log->end));
		record->type = POWER_LOSS_PAD;
		record->record_bytes = left;
		atomic_fetch_add(&power_log->end, left);
	}
	make_room(record_bytes);
	record = power_loss_record_at(power_log, atomic_load(&power_log->end));
	record->type = type;
	record->file = (uint32_t) (file - power_log->files);
	record->record_bytes = record_bytes;
	record->offset = offset;
	record->length = length;
	if (bytes_length > 0)
		memcpy(record + 1, bytes, bytes_length);
	atomic_fetch_add(&power_log->end, record_bytes);
	unlock(&power_log->ring_mutex);
}

static bool
all_zero(const unsigned char *bytes, size_t length)
{
	return length == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0);
}

/* How [offset, end) is now, behind the end of the file as zeros.  No unit of the disk is in two records of one change. */
static void
record_bytes_of(PowerLossFile *file, int fd, uint64_t offset, uint64_t end)
{
	static unsigned char chunk[POWER_LOSS_CHUNK_BYTES];

	while (offset < end)
	{
		size_t		room = sizeof(chunk) - offset % sizeof(chunk);
		size_t		wanted = end - offset < room ? end - offset : room;
		size_t		done = 0;
		ssize_t		length;

		while (done < wanted && (length = pread(fd, chunk + done, wanted - done, (off_t) (offset + done))) != 0)
		{
			if (length < 0 && errno != EINTR)
				give_up("the old bytes can't be read");
			done += length > 0 ? (size_t) length : 0;
		}
		memset(chunk + done, 0, wanted - done);
		append(file, all_zero(chunk, wanted) ? POWER_LOSS_ZEROS : POWER_LOSS_BYTES, offset, wanted, chunk);
		offset += wanted;
	}
}

/* ---- one change ---- */

typedef struct Change
{
	PowerLossFile *file;		/* NULL: not watched */
	pthread_mutex_t *mutex;
	bool		syncs_itself;
	bool		too_long;		/* for the ring: counts as durable */
	uint64_t	size;			/* of the file before */
} Change;

static bool
is_watched(int fd)
{
	return power_log != NULL && !inside && fd >= 0 && fd < MAX_DESCRIPTORS && descriptors[fd].inode != 0;
}

/* False: not a file of ours, or one that nobody can find any more. */
static bool
begin_change(Change *change, int fd)
{
	struct stat status;

	memset(change, 0, sizeof(*change));
	if (!is_watched(fd))
		return false;
	inside = true;
	change->mutex = mutex_of(descriptors[fd].inode);
	lock(change->mutex);
	if (fstat(fd, &status) != 0 || status.st_ino != descriptors[fd].inode || status.st_dev != descriptors[fd].device ||
		status.st_nlink == 0)
	{
		unlock(change->mutex);
		inside = false;
		return false;
	}
	change->syncs_itself = descriptors[fd].syncs_itself;
	change->size = (uint64_t) status.st_size;
	change->file = find_file(status.st_dev, status.st_ino, true);
	atomic_fetch_add(&power_log->changes_recorded, 1);
	return true;
}

/* Call with errno as the change has left it. */
static void
end_change(Change *change)
{
	int			saved_errno = errno;

	if (change->file == NULL)
		return;
	if (change->syncs_itself || change->too_long)
		power_loss_raise(&change->file->durable, atomic_load(&power_log->end));
	unlock(change->mutex);
	inside = false;
	errno = saved_errno;
}

/*
 * Up to the end of the page that the file ends in: what is written behind the end there goes to the disk with what is before it.  Or that it ended in before it
 * was truncated: an older record may tell of bytes there, which must not come to stand beside new ones in one unit.
 */
static void
record_range(Change *change, int fd, uint64_t offset, uint64_t end)
{
	uint64_t	truncated_size = atomic_load(&change->file->truncated_size);
	uint64_t	known_size = change->size > truncated_size ? change->size : truncated_size;
	uint64_t	last_page_end = (known_size + POWER_LOSS_PAGE_BYTES - 1) / POWER_LOSS_PAGE_BYTES * POWER_LOSS_PAGE_BYTES;

	if (end > last_page_end)
		end = last_page_end;
	if (offset >= end)
		return;
	if (end - offset > power_log->ring_bytes / 4)
	{
		change->too_long = true;
		power_loss_raise(&change->file->durable, atomic_load(&power_log->end));
	}
	else
		record_bytes_of(change->file, fd, offset, end);
}

static void
record_write(Change *change, int fd, uint64_t offset, uint64_t length)
{
	record_range(change, fd, offset, offset + length);
	if (offset + length > change->size && length > 0 && !change->too_long)
		append(change->file, POWER_LOSS_SIZE, change->size, 0, NULL);
}

static void
record_truncation(Change *change, int fd, uint64_t size)
{
	record_range(change, fd, size, change->size);
	power_loss_raise(&change->file->truncated_size, change->size);
	if (size != change->size && !change->too_long)
		append(change->file, POWER_LOSS_SIZE, change->size, 0, NULL);
}

/* Where write() will write. */
static uint64_t
current_offset(const Change *change, int fd)
{
	if ((fcntl(fd, F_GETFL) & O_APPEND) != 0)
		return change->size;
	return (uint64_t) lseek(fd, 0, SEEK_CUR);
}

static uint64_t
total_length(const struct iovec *parts, int count)
{
	uint64_t	length = 0;

	for (int i = 0; i < count; i++)
		length += parts[i].iov_len;
	return length;
}

/* ---- writing ---- */

EXPORT ssize_t
write(int fd, const void *bytes, size_t length)
{
	Change		change;
	ssize_t		result;

	begin();
	if (begin_change(&change, fd))
		record_write(&change, fd, current_offset(&change, fd), length);
	result = real_write(fd, bytes, length);
	end_change(&change);
	return result;
}

EXPORT ssize_t
writev(int fd, const struct iovec *parts, int count)
{
	Change		change;
	ssize_t		result;

	begin();
	if (begin_change(&change, fd))
		record_write(&change, fd, current_offset(&change, fd), total_length(parts, count));
	result = real_writev(fd, parts, count);
	end_change(&change);
	return result;
}

EXPORT ssize_t
pwrite(int fd, const void *bytes, size_t length, off_t offset)
{
	Change		change;
	ssize_t		result;

	begin();
	if (begin_change(&change, fd))
		record_write(&change, fd, (uint64_t) offset, length);
	result = real_pwrite(fd, bytes, length, offset);
	end_change(&change);
	return result;
}

EXPORT ssize_t
pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
	Change		change;
	ssize_t		result;

	begin();
	if (begin_change(&change, fd))
		record_write(&change, fd, (uint64_t) offset, total_length(parts, count));
	result = real_pwritev(fd, parts, count, offset);
	end_change(&change);
	return result;
}

EXPORT int
ftruncate(int fd, off_t size)
{
	Change		change;
	int			result;

	begin();
	if (begin_change(&change, fd))
		record_truncation(&change, fd, (uint64_t) size);
	result = real_ftruncate(fd, size);
	end_change(&change);
	return result;
}

EXPORT int
posix_fallocate(int fd, off_t offset, off_t length)
{
	Change		change;
	int			result;

	begin();
	if (begin_change(&change, fd) && (uint64_t) (offset + length) > change.size)
		append(change.file, POWER_LOSS_SIZE, change.size, 0, NULL);
	result = real_posix_fallocate(fd, offset, length);
	end_change(&change);
	return result;
}

EXPORT int
truncate(const char *path, off_t size)
{
	int			fd;
	int			result;
	int			saved_errno;

	begin();
	if (power_log == NULL)
		return real_truncate(path, size);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return -1;
	result = ftruncate(fd, size);
	saved_errno = errno;
	close(fd);
	errno = saved_errno;
	return result;
}

/* ---- opening ---- */

static bool
is_below_data_directory(int fd)
{
	char		link_path[64];
	char		path[PATH_MAX];
	ssize_t		length;

	snprintf(link_path, sizeof(link_path), "/proc/self/fd/%d", fd);
	length = readlink(link_path, path, sizeof(path) - 1);
	return length > (ssize_t) data_directory_length && memcmp(path, data_directory, data_directory_length) == 0;
}

static void
note_descriptor(int fd, int flags)
{
	struct stat status;

	if (fd >= MAX_DESCRIPTORS)
		give_up("a descriptor's number is too great");
	descriptors[fd].inode = 0;
	if ((flags & O_ACCMODE) == O_RDONLY || !is_below_data_directory(fd) || fstat(fd, &status) != 0 || !S_ISREG(status.st_mode))
		return;
	descriptors[fd].device = status.st_dev;
	descriptors[fd].inode = status.st_ino;
	descriptors[fd].syncs_itself = (flags & O_DSYNC) != 0;
}

/*
 * O_WRONLY becomes O_RDWR, because the old bytes are to be read; O_DIRECT goes, because the place they are read to is not aligned for it; and
 * O_TRUNC is done afterwards, as a change like others.
 */
static int
open_watched(int directory, const char *path, int flags, mode_t mode)
{
	bool		writes = (flags & O_ACCMODE) != O_RDONLY && (flags & O_PATH) == 0 && (flags & O_TMPFILE) != O_TMPFILE;
	int			passed = flags;
	int			fd;
	struct stat status;

	if (power_log == NULL || !writes)
		fd = real_openat(directory, path, flags, mode);
	else
	{
		passed = (flags & ~(O_ACCMODE | O_DIRECT | O_TRUNC)) | O_RDWR;
		fd = real_openat(directory, path, passed, mode);
		if (fd < 0)
			fd = real_openat(directory, path, flags, mode);
	}
	if (power_log == NULL || fd < 0)
		return fd;
	note_descriptor(fd, passed);
	if (writes && (flags & O_TRUNC) != 0 && fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_size > 0 &&
		ftruncate(fd, 0) != 0)
	{
		int			saved_errno = errno;

		close(fd);
		errno = saved_errno;
		return -1;
	}
	return fd;
}

static mode_t
mode_argument(int flags, va_list arguments)
{
	return (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(arguments, mode_t) : 0;
}

EXPORT int
open(const char *path, int flags,...)
{
	va_list		arguments;
	mode_t		mode;

	begin();
	va_start(arguments, flags);
	mode = mode_argument(flags, arguments);
	va_end(arguments);
	return open_watched(AT_FDCWD, path, flags, mode);
}

EXPORT int
openat(int directory, const char *path, int flags,...)
{
	va_list		arguments;
	mode_t		mode;

	begin();
	va_start(arguments, flags);
	mode = mode_argument(flags, arguments);
	va_end(arguments);
	return open_watched(directory, path, flags, mode);
}

EXPORT int
creat(const char *path, mode_t mode)
{
	begin();
	return open_watched(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

/* ---- making durable ---- */

/* Does the disk lie about this file? */
static bool
is_lied_about(int fd)
{
	char		link_path[64];
	char		path[PATH_MAX];
	ssize_t		length;

	if (power_log->lie_about[0] == '\0')
		return false;
	snprintf(link_path, sizeof(link_path), "/proc/self/fd/%d", fd);
	length = readlink(link_path, path, sizeof(path) - 1);
	if (length < 0)
		return false;
	path[length] = '\0';
	return strstr(path, power_log->lie_about) != NULL;
}

/* A slow disk, so that a power cut falls into a sync rather than between two. */
static void
wait_as_disk(void)
{
	uint64_t	left_us = atomic_load(&power_log->sync_delay_us);
	struct timespec left = {.tv_sec = (time_t) (left_us / 1000000), .tv_nsec = (long) (left_us % 1000000 * 1000)};

	while (left_us > 0 && nanosleep(&left, &left) != 0 && errno == EINTR)
		;
}

static int
sync_file(int fd, int (*real_sync) (int))
{
	struct stat status;
	PowerLossFile *file = NULL;
	uint64_t	end = 0;
	int			result;

	if (power_log != NULL && fstat(fd, &status) == 0 && S_ISREG(status.st_mode))
	{
		file = find_file(status.st_dev, status.st_ino, false);
		end = atomic_load(&power_log->end);
		if (file != NULL && is_lied_about(fd))
		{
			atomic_fetch_add(&power_log->syncs_ignored, 1);
			return 0;
		}
		if (file != NULL)
			wait_as_disk();
	}
	result = real_sync(fd);
	if (result == 0 && file != NULL)
	{
		power_loss_raise(&file->durable, end);
		atomic_fetch_add(&power_log->syncs_believed, 1);
	}
	return result;
}

EXPORT int
fsync(int fd)
{
	begin();
	return sync_file(fd, real_fsync);
}

EXPORT int
fdatasync(int fd)
{
	begin();
	return sync_file(fd, real_fdatasync);
}

EXPORT int
syncfs(int fd)
{
	(void) fd;
	errno = ENOSYS;				/* would have to find all files of the file system */
	return -1;
}

/* ---- names ---- */

/* Before `path` is taken away; NULL if that is not the file's last name. */
static PowerLossFile *
begin_removal(const char *path, pthread_mutex_t **mutex)
{
	struct stat status;

	if (power_log == NULL || inside || lstat(path, &status) != 0 || !S_ISREG(status.st_mode))
		return NULL;
	inside = true;
	*mutex = mutex_of(status.st_ino);
	lock(*mutex);
	if (status.st_nlink == 1)
	{
		PowerLossFile *file = find_file(status.st_dev, status.st_ino, false);

		if (file != NULL)
			return file;
	}
	unlock(*mutex);
	inside = false;
	return NULL;
}

/* The inode may come back as another file: what was recorded of this one must not be played into that one. */
static void
end_removal(PowerLossFile *file, pthread_mutex_t *mutex, bool removed)
{
	int			saved_errno = errno;

	if (file == NULL)
		return;
	if (removed)
		power_loss_raise(&file->durable, atomic_load(&power_log->end));
	unlock(mutex);
	inside = false;
	errno = saved_errno;
}

EXPORT int
unlink(const char *path)
{
	pthread_mutex_t *mutex = NULL;
	PowerLossFile *file;
	int			result;

	begin();
	file = begin_removal(path, &mutex);
	result = real_unlink(path);
	end_removal(file, mutex, result == 0);
	return result;
}

EXPORT int
rename(const char *from, const char *to)
{
	pthread_mutex_t *mutex = NULL;
	struct stat source;
	struct stat target;
	bool		same = lstat(from, &source) == 0 && lstat(to, &target) == 0 && source.st_ino == target.st_ino;
	PowerLossFile *file;
	int			result;

	begin();
	file = same ? NULL : begin_removal(to, &mutex);
	result = real_rename(from, to);
	end_removal(file, mutex, result == 0);
	return result;
}

/* The same under the names for large files. */
EXPORT int	open64(const char *path, int flags,...) __attribute__((alias("open")));
EXPORT int	openat64(int directory, const char *path, int flags,...) __attribute__((alias("openat")));
EXPORT int	creat64(const char *path, mode_t mode) __attribute__((alias("creat")));
EXPORT ssize_t pwrite64(int fd, const void *bytes, size_t length, off_t offset) __attribute__((alias("pwrite")));
EXPORT ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t offset) __attribute__((alias("pwritev")));
EXPORT int	ftruncate64(int fd, off_t size) __attribute__((alias("ftruncate")));
EXPORT int	truncate64(const char *path, off_t size) __attribute__((alias("truncate")));
EXPORT int	posix_fallocate64(int fd, off_t offset, off_t length) __attribute__((alias("posix_fallocate")));
