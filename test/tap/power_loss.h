/*
 * power_loss.h
 *	  What the library that watches an instance's writes (power_loss_shim.c) and the program that takes the unsynced ones back
 *	  (power_loss.c) share: one file, mapped by all processes.
 *
 * The file holds a table of files (by device and inode), and a ring of records, oldest first.  A record says how something was before a
 * change: the old bytes of a range, or the old size.  A position in the ring is counted from the ring's beginning of time; a file's
 * `durable` is a position too: what was recorded before it can't be lost any more.
 *
 * Invariants
 *	 1. A record is whole before `end` passes it, and it stands there before the change that it belongs to is made.
 *	 2. `durable` of a file is raised to E by an fsync only if `end` was E before that fsync began: a change that was complete before has
 *		its records below E; one that races with the fsync may or may not be lost, as on a disk.
 *	 3. When the ring is full, the oldest record goes; was it not durable, its file counts as durable up to now: the kernel has
 *		written it by itself.  So what is left of a file's records always leads back to a state that the file once had.
 *	 4. A process may die at any instruction (kill -9): the mutexes are robust, and what they protect is changed by single stores.
 *
 * Locks: one of file_mutex (by inode) around a change and its records; then ring_mutex around the append.
 */
#ifndef POWER_LOSS_H
#define POWER_LOSS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#define POWER_LOSS_MAGIC 0x504c4f5353303031ULL
#define POWER_LOSS_FILES 65536
#define POWER_LOSS_FILE_MUTEXES 256
#define POWER_LOSS_CHUNK_BYTES (256 * 1024)		/* longer changes have several records */
#define POWER_LOSS_PAGE_BYTES 4096

/* The environment of the watched processes. */
#define POWER_LOSS_LOG_VARIABLE "POWER_LOSS_LOG"		/* path of the log file */
#define POWER_LOSS_DATA_VARIABLE "POWER_LOSS_DATA"		/* the directory whose files are watched: absolute, without symbolic links */

typedef enum PowerLossType
{
	POWER_LOSS_PAD,				/* up to the end of the ring */
	POWER_LOSS_BYTES,			/* old bytes of [offset, offset + length) follow */
	POWER_LOSS_ZEROS,			/* the same, but they were all zero, and don't follow */
	POWER_LOSS_SIZE				/* the old size is `offset` */
} PowerLossType;

typedef struct PowerLossRecord
{
	uint32_t	type;
	uint32_t	file;			/* in the table */
	uint64_t	record_bytes;	/* with this head, a multiple of 8 */
	uint64_t	offset;
	uint64_t	length;
} PowerLossRecord;

typedef struct PowerLossFile
{
	uint64_t	device;
	_Atomic uint64_t inode;		/* 0: unused; set last */
	_Atomic uint64_t durable;
	_Atomic uint64_t truncated_size;	/* the largest that it was before a truncation; records may tell of bytes up to there */
} PowerLossFile;

typedef struct PowerLossLog
{
	uint64_t	magic;
	uint64_t	ring_bytes;
	pthread_mutex_t ring_mutex;
	pthread_mutex_t file_mutex[POWER_LOSS_FILE_MUTEXES];
	_Atomic uint64_t start;
	_Atomic uint64_t end;
	_Atomic uint64_t changes_recorded;
	_Atomic uint64_t syncs_believed;
	_Atomic uint64_t syncs_ignored;
	_Atomic uint64_t written_back;	/* see invariant 3 */
	_Atomic uint64_t sync_delay_us; /* each fsync of a file that was changed takes that much longer */
	char		lie_about[256]; /* an fsync of a file with this in its path does nothing, and says that all is well; empty: none */
	PowerLossFile files[POWER_LOSS_FILES];
	_Alignas(4096) unsigned char ring[];
} PowerLossLog;

static inline PowerLossRecord *
power_loss_record_at(PowerLossLog *log, uint64_t position)
{
	return (PowerLossRecord *) (log->ring + position % log->ring_bytes);
}

/* Where in the table the search for a file begins. */
static inline uint32_t
power_loss_place(uint64_t device, uint64_t inode)
{
	return (uint32_t) ((inode * 0x9e3779b97f4a7c15ULL + device) >> 40) % POWER_LOSS_FILES;
}

static inline void
power_loss_raise(_Atomic uint64_t *durable, uint64_t position)
{
	uint64_t	now = atomic_load(durable);

	while (now < position && !atomic_compare_exchange_weak(durable, &now, position))
		;
}

#endif							/* POWER_LOSS_H */
