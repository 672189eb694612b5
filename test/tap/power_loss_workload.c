/*
 * power_loss_workload.c
 *	  Writes files as it is told, under power_loss_shim.so, and gets killed: what 017_what_a_power_cut_loses.pl tests the shim with.
 *
 *	 power_loss_workload script
 *		Reads commands from stdin, one a line, and answers each with "ok" or an error once it is done; `file` is relative to the
 *		working directory.  Each command opens the file and closes it again, but for `hold`.
 *			write FILE OFFSET LENGTH CHARACTER		pwrite
 *			writev FILE OFFSET LENGTH CHARACTER		pwritev, in two parts
 *			append FILE LENGTH CHARACTER			lseek and write
 *			wronly FILE OFFSET LENGTH CHARACTER		pwrite through a descriptor that can't read
 *			dsync FILE OFFSET LENGTH CHARACTER		pwrite with O_DSYNC
 *			resize FILE SIZE | truncate FILE SIZE	ftruncate, truncate
 *			reserve FILE SIZE						posix_fallocate
 *			empty FILE								open with O_TRUNC
 *			fsync FILE | fdatasync FILE
 *			rename FILE FILE | unlink FILE
 *			hold FILE								keeps it open until the end
 *
 *	 power_loss_workload race STATE FILES
 *		A process per file f0, f1, ... writes numbers 1, 2, ... to it, each to all of its PLACES; one more syncs all files again and again.
 *		STATE is a file of pairs (last number begun, last number that an fsync covered), kept up to date.  Runs until it is killed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <unistd.h>

#define PLACES 16
#define PLACE_BYTES 4096

typedef struct RaceState
{
	_Atomic uint64_t begun;
	_Atomic uint64_t complete;
	_Atomic uint64_t synced;
	uint64_t	unused;
} RaceState;

static int
write_by(const char *command, int fd, const char *bytes, size_t length, off_t offset)
{
	ssize_t		written;

	if (strcmp(command, "writev") == 0)
	{
		struct iovec parts[2] = {{(void *) bytes, length / 3}, {(void *) (bytes + length / 3), length - length / 3}};

		written = pwritev(fd, parts, 2, offset);
	}
	else if (strcmp(command, "append") == 0)
	{
		lseek(fd, 0, SEEK_END);
		written = write(fd, bytes, length);
	}
	else
		written = pwrite(fd, bytes, length, offset);
	return written == (ssize_t) length ? 0 : -1;
}

static int
flags_of(const char *command)
{
	if (strcmp(command, "wronly") == 0)
		return O_WRONLY | O_CREAT;
	if (strcmp(command, "dsync") == 0)
		return O_RDWR | O_CREAT | O_DSYNC;
	if (strcmp(command, "empty") == 0)
		return O_WRONLY | O_CREAT | O_TRUNC;
	return O_RDWR | O_CREAT;
}

static int
do_with_file(const char *command, const char *file, long a, long b, const char *character)
{
	int			fd = open(file, flags_of(command), 0600);
	int			result = fd < 0 ? -1 : 0;

	if (fd < 0)
		return -1;
	if (strcmp(command, "fsync") == 0)
		result = fsync(fd);
	else if (strcmp(command, "fdatasync") == 0)
		result = fdatasync(fd);
	else if (strcmp(command, "resize") == 0)
		result = ftruncate(fd, a);
	else if (strcmp(command, "reserve") == 0)
		result = posix_fallocate(fd, 0, a);
	else if (strcmp(command, "hold") == 0)
		return 0;
	else if (strcmp(command, "empty") != 0)
	{
		char	   *bytes = malloc((size_t) b + 1);

		memset(bytes, character[0], (size_t) b);
		result = write_by(command, fd, bytes, (size_t) b, a);
		free(bytes);
	}
	close(fd);
	return result;
}

static int
do_command(char *line)
{
	char		command[32] = "";
	char		file[256] = "";
	char		rest[256] = "";
	char		character[32] = "";
	long		a = 0;
	long		b = 0;

	sscanf(line, "%31s %255s %255s", command, file, rest);
	if (strcmp(command, "rename") == 0)
		return rename(file, rest);
	if (strcmp(command, "unlink") == 0)
		return unlink(file);
	a = atol(rest);
	if (strcmp(command, "truncate") == 0)
		return truncate(file, a);
	if (strcmp(command, "append") == 0)
	{
		sscanf(line, "%*s %*s %ld %31s", &b, character);
		a = 0;
	}
	else
		sscanf(line, "%*s %*s %*s %ld %31s", &b, character);
	return do_with_file(command, file, a, b, character);
}

static int
run_script(void)
{
	char		line[1024];

	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(line, sizeof(line), stdin) != NULL)
	{
		if (do_command(line) == 0)
			printf("ok\n");
		else
			printf("%s: %s\n", strtok(line, "\n"), strerror(errno));
	}
	return 0;
}

/* ---- race ---- */

static int
open_numbered(int number)
{
	char		name[32];

	snprintf(name, sizeof(name), "f%d", number);
	return open(name, O_RDWR | O_CREAT, 0600);
}

static void
write_numbers(RaceState *state, int number)
{
	int			fd = open_numbered(number);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (uint64_t value = 1;; value++)
	{
		atomic_store(&state->begun, value);
		for (int place = 0; place < PLACES; place++)
		{
			if (pwrite(fd, &value, sizeof(value), (off_t) place * PLACE_BYTES) != sizeof(value))
				_exit(1);
		}
		atomic_store(&state->complete, value);
	}
}

static void
sync_numbers(RaceState *states, int count)
{
	for (int turn = 0;; turn = (turn + 1) % count)
	{
		uint64_t	complete = atomic_load(&states[turn].complete);
		int			fd = open_numbered(turn);

		if (fdatasync(fd) != 0)
			_exit(1);
		atomic_store(&states[turn].synced, complete);
		close(fd);
	}
}

static int
run_race(const char *state_path, int count)
{
	int			fd = open(state_path, O_RDWR | O_CREAT, 0600);
	RaceState  *states;

	if (fd < 0 || ftruncate(fd, (off_t) (sizeof(RaceState) * (size_t) count)) != 0)
		return 1;
	states = mmap(NULL, sizeof(RaceState) * (size_t) count, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	for (int i = 0; i < count; i++)
	{
		if (fork() == 0)
			write_numbers(&states[i], i);
	}
	sync_numbers(states, count);
	return 0;
}

int
main(int count, char **arguments)
{
	if (count == 2 && strcmp(arguments[1], "script") == 0)
		return run_script();
	if (count == 4 && strcmp(arguments[1], "race") == 0)
		return run_race(arguments[2], atoi(arguments[3]));
	fprintf(stderr, "power_loss_workload: script, or race STATE FILES\n");
	return 2;
}
