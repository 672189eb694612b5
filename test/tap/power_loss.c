/*
 * power_loss.c
 *	  What a power cut does to the files of an instance that ran under power_loss_shim.so: changes that no fsync made durable are gone.
 *
 *	 power_loss make LOG RING_MEGABYTES			a new log, before the instance is first started
 *	 power_loss cut LOG DATA none				all changes that are not durable are taken back
 *	 power_loss cut LOG DATA random SEED		some of them survive: see below
 *	 power_loss lie LOG TEXT					from now on an fsync of a file with TEXT in its path does nothing; '' ends that
 *	 power_loss slow LOG MICROSECONDS			each fsync of a file that was changed takes that much longer
 *	 power_loss show LOG						counters, and how many changes are not durable
 *
 * `cut` wants all processes of the instance dead.  It finds the files by walking DATA, so renames are of no interest, and what is not
 * there any more needs nothing.
 *
 * random: a disk writes in any order, and in whole sectors or pages.  A third of the files lose everything that is not durable, a sixth
 * nothing; for the others each unit of 4096 or 512 bytes, and the size, goes back to a version that it once had, independent of the others.
 * So later changes may survive earlier ones, and long ones are torn.  The same seed and the same log give the same result.
 *
 * power_loss.h has the format and its invariants.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "power_loss.h"

#define KEEP_CHANCE_LOTS 1000

typedef struct VictimFile
{
	char	   *path;			/* NULL: not there any more */
	int			fd;				/* -1: not opened */
	bool		has_lots;		/* the four below are drawn */
	bool		keeps_all;
	unsigned	keep_chance;	/* of KEEP_CHANCE_LOTS, for each change of each unit, from the newest on */
	uint64_t	unit_bytes;
	bool		size_is_settled;
	uint64_t	size;			/* that it is given at the end: bytes behind it are not lost before they are known not to be needed */
	unsigned char *settled;		/* a bit per unit: it stays as it is */
	uint64_t	settled_bytes;
} VictimFile;

static PowerLossLog *power_log;
static VictimFile victims[POWER_LOSS_FILES];
static uint64_t random_state;
static bool keep_some = false;
static uint64_t changes_undone = 0;
static uint64_t units_kept = 0;
static int	files_changed = 0;

static void
fail(const char *format,...)
{
	va_list		arguments;

	va_start(arguments, format);
	fprintf(stderr, "power_loss: ");
	vfprintf(stderr, format, arguments);
	fprintf(stderr, "\n");
	va_end(arguments);
	exit(1);
}

/* ---- the log ---- */

static void
make_mutex(pthread_mutex_t *mutex)
{
	pthread_mutexattr_t attributes;

	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(mutex, &attributes);
}

static void
map_log(const char *path)
{
	struct stat status;
	int			fd = open(path, O_RDWR);

	if (fd < 0 || fstat(fd, &status) != 0)
		fail("%s: %s", path, strerror(errno));
	power_log = mmap(NULL, (size_t) status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (power_log == MAP_FAILED)
		fail("%s: %s", path, strerror(errno));
	close(fd);
}

static void
make_log(const char *path, uint64_t ring_bytes)
{
	int			fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);

	if (fd < 0 || ftruncate(fd, (off_t) (sizeof(PowerLossLog) + ring_bytes)) != 0)
		fail("%s: %s", path, strerror(errno));
	close(fd);
	map_log(path);
	power_log->ring_bytes = ring_bytes;
	make_mutex(&power_log->ring_mutex);
	for (int i = 0; i < POWER_LOSS_FILE_MUTEXES; i++)
		make_mutex(&power_log->file_mutex[i]);
	power_log->magic = POWER_LOSS_MAGIC;
}

/* Positions of the records of changes that are not durable, oldest first. */
static uint64_t *
undurable_records(size_t *count)
{
	size_t		capacity = 1024;
	uint64_t   *positions = malloc(capacity * sizeof(uint64_t));
	uint64_t	end = power_log->end;

	*count = 0;
	for (uint64_t position = power_log->start; position < end;)
	{
		const PowerLossRecord *record = power_loss_record_at(power_log, position);

		if (record->record_bytes == 0 || record->record_bytes > end - position)
			fail("the undo log is broken at %llu", (unsigned long long) position);
		if (record->type != POWER_LOSS_PAD && power_log->files[record->file].durable <= position)
		{
			if (*count == capacity)
			{
				capacity *= 2;
				positions = realloc(positions, capacity * sizeof(uint64_t));
			}
			if (positions == NULL)
				fail("out of memory");
			positions[(*count)++] = position;
		}
		position += record->record_bytes;
	}
	return positions;
}

/* ---- the files ---- */

static int
note_path(const char *path, const struct stat *status, int type, struct FTW *walk)
{
	(void) walk;
	if (type != FTW_F)
		return 0;
	for (int tried = 0; tried < POWER_LOSS_FILES; tried++)
	{
		uint32_t	place = (power_loss_place(status->st_dev, status->st_ino) + (uint32_t) tried) % POWER_LOSS_FILES;
		PowerLossFile *file = &power_log->files[place];

		if (file->inode == 0)
			return 0;			/* nobody wrote to it */
		if (file->inode == status->st_ino && file->device == status->st_dev)
		{
			free(victims[place].path);
			victims[place].path = strdup(path);
			victims[place].fd = -1;
			return 0;
		}
	}
	return 0;
}

/* splitmix64 */
static uint64_t
next_random(void)
{
	uint64_t	z = (random_state += 0x9e3779b97f4a7c15ULL);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

static void
draw_lots(VictimFile *victim)
{
	static const unsigned chances[] = {100, 500, 900};
	uint64_t	lot = next_random() % 6;

	victim->has_lots = true;
	victim->unit_bytes = next_random() % 4 == 0 ? 512 : POWER_LOSS_PAGE_BYTES;
	victim->keeps_all = keep_some && lot == 0;
	victim->keep_chance = keep_some && lot >= 3 ? chances[next_random() % 3] : 0;
}

static void
open_victim(VictimFile *victim)
{
	struct stat status;

	victim->fd = open(victim->path, O_RDWR);
	if (victim->fd < 0 || fstat(victim->fd, &status) != 0)
		fail("%s: %s", victim->path, strerror(errno));
	victim->size = (uint64_t) status.st_size;
	files_changed++;
	if (!victim->has_lots)
		draw_lots(victim);
}

static void
close_victims(void)
{
	for (int i = 0; i < POWER_LOSS_FILES; i++)
	{
		VictimFile *victim = &victims[i];

		if (victim->path == NULL || victim->fd < 0)
			continue;
		if (!victim->keeps_all && ftruncate(victim->fd, (off_t) victim->size) != 0)
			fail("%s: %s", victim->path, strerror(errno));
		close(victim->fd);
	}
}

/* ---- taking back ---- */

/* A unit that is settled keeps what it has, whatever older records say. */
static bool
unit_stays(VictimFile *victim, uint64_t unit)
{
	if (victim->keep_chance == 0)
		return false;
	if (unit / 8 >= victim->settled_bytes)
	{
		uint64_t	bytes = unit / 8 + 1024;

		victim->settled = realloc(victim->settled, bytes);
		if (victim->settled == NULL)
			fail("out of memory");
		memset(victim->settled + victim->settled_bytes, 0, bytes - victim->settled_bytes);
		victim->settled_bytes = bytes;
	}
	if ((victim->settled[unit / 8] & 1 << unit % 8) == 0)
	{
		if (next_random() % KEEP_CHANCE_LOTS >= victim->keep_chance)
			return false;
		victim->settled[unit / 8] |= (unsigned char) (1 << unit % 8);
		units_kept++;
	}
	return true;
}

static void
write_back(const VictimFile *victim, const unsigned char *bytes, uint64_t length, uint64_t offset)
{
	while (length > 0)
	{
		ssize_t		written = pwrite(victim->fd, bytes, length, (off_t) offset);

		if (written <= 0)
			fail("%s: %s", victim->path, strerror(errno));
		bytes += written;
		length -= (uint64_t) written;
		offset += (uint64_t) written;
	}
}

static void
undo_bytes(VictimFile *victim, const PowerLossRecord *record, const unsigned char *bytes)
{
	uint64_t	end = record->offset + record->length;

	if (victim->keep_chance == 0)
	{
		write_back(victim, bytes, record->length, record->offset);
		return;
	}
	for (uint64_t from = record->offset; from < end;)
	{
		uint64_t	unit = from / victim->unit_bytes;
		uint64_t	unit_end = (unit + 1) * victim->unit_bytes;
		uint64_t	to = unit_end < end ? unit_end : end;

		if (!unit_stays(victim, unit))
			write_back(victim, bytes + (from - record->offset), to - from, from);
		from = to;
	}
}

static void
undo_size(VictimFile *victim, uint64_t size)
{
	if (!victim->size_is_settled && victim->keep_chance > 0)
		victim->size_is_settled = next_random() % KEEP_CHANCE_LOTS < victim->keep_chance;
	if (!victim->size_is_settled)
		victim->size = size;
}

static void
undo(const PowerLossRecord *record)
{
	static const unsigned char zeros[POWER_LOSS_CHUNK_BYTES];
	VictimFile *victim = &victims[record->file];

	if (victim->path == NULL)
		return;
	if (victim->fd < 0)
		open_victim(victim);
	if (victim->keeps_all)
		return;
	changes_undone++;
	if (record->type == POWER_LOSS_SIZE)
		undo_size(victim, record->offset);
	else
		undo_bytes(victim, record, record->type == POWER_LOSS_ZEROS ? zeros : (const unsigned char *) (record + 1));
}

static void
cut(const char *data_directory)
{
	size_t		count;
	uint64_t   *positions = undurable_records(&count);
	struct rlimit limit;

	/* All files are open at once. */
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
	{
		limit.rlim_cur = limit.rlim_max;
		(void) setrlimit(RLIMIT_NOFILE, &limit);
	}
	if (nftw(data_directory, note_path, 64, FTW_PHYS) != 0)
		fail("%s: %s", data_directory, strerror(errno));
	for (size_t i = count; i > 0; i--)
		undo(power_loss_record_at(power_log, positions[i - 1]));
	close_victims();
	free(positions);

	/* What is there now is what the disk has. */
	for (int i = 0; i < POWER_LOSS_FILES; i++)
		power_log->files[i].durable = power_log->end;
	power_log->start = power_log->end;
	printf("%llu changes in %d files undone, %llu units kept\n",
		   (unsigned long long) changes_undone, files_changed, (unsigned long long) units_kept);
}

static void
show(void)
{
	size_t		count;

	free(undurable_records(&count));
	printf("changes %llu syncs %llu ignored %llu written_back %llu not_durable %zu ring_used %llu\n",
		   (unsigned long long) power_log->changes_recorded, (unsigned long long) power_log->syncs_believed,
		   (unsigned long long) power_log->syncs_ignored, (unsigned long long) power_log->written_back, count,
		   (unsigned long long) (power_log->end - power_log->start));
}

int
main(int count, char **arguments)
{
	const char *command = count > 2 ? arguments[1] : "";

	if (strcmp(command, "make") == 0 && count == 4)
	{
		make_log(arguments[2], strtoull(arguments[3], NULL, 10) * 1024 * 1024);
		return 0;
	}
	if (count > 2)
		map_log(arguments[2]);
	if (strcmp(command, "cut") == 0 && (count == 5 || count == 6))
	{
		keep_some = strcmp(arguments[4], "random") == 0;
		if (!keep_some && strcmp(arguments[4], "none") != 0)
			fail("keep: none or random, not \"%s\"", arguments[4]);
		random_state = count == 6 ? strtoull(arguments[5], NULL, 10) : 0;
		cut(arguments[3]);
	}
	else if (strcmp(command, "lie") == 0 && count == 4)
		snprintf(power_log->lie_about, sizeof(power_log->lie_about), "%s", arguments[3]);
	else if (strcmp(command, "slow") == 0 && count == 4)
		power_log->sync_delay_us = strtoull(arguments[3], NULL, 10);
	else if (strcmp(command, "show") == 0 && count == 3)
		show();
	else
		fail("make LOG RING_MEGABYTES, cut LOG DATA none|random [SEED], lie LOG TEXT, slow LOG MICROSECONDS, or show LOG");
	return 0;
}
