/*
 * main.c
 *	  Runs many seeds, in one process or several.
 *
 *	./sim [--runs n] [--seed s] [--steps n] [--jobs n] [--trace] [--hash] [--seconds n]
 *	SEED=s ./sim		replays one run with its trace
 *
 * Runs have the seeds s, s + 1, … .  The first run that breaks an invariant ends its process with exit code 1 and one line that
 * names the seed and the invariant.  --hash prints one number that stands for all traces: it is equal when all runs are.
 * --seconds ends the search early, with exit code 0.  Only here the machine's clock is read, to say how long it took.
 */
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "sim.h"

typedef struct Options
{
	uint64_t	runs;
	uint64_t	seed;
	uint64_t	max_steps;
	uint64_t	jobs;
	uint64_t	seconds;
	bool		trace;
	bool		hash;
} Options;

static double
wall_clock(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double) now.tv_sec + (double) now.tv_nsec / 1e9;
}

static int
usage(void)
{
	fprintf(stderr, "usage: sim [--runs n] [--seed s] [--steps n] [--jobs n] [--seconds n] [--trace] [--hash]\n");
	return 2;
}

static bool
parse_number(const char *text, uint64_t *number)
{
	char	   *end;

	if (text == NULL || *text < '0' || *text > '9')
		return false;
	*number = strtoull(text, &end, 10);
	return *end == '\0';
}

static bool
parse(int argc, char **argv, Options *options)
{
	for (int i = 1; i < argc; i++)
	{
		uint64_t   *number = NULL;

		if (strcmp(argv[i], "--trace") == 0)
			options->trace = true;
		else if (strcmp(argv[i], "--hash") == 0)
			options->hash = true;
		else if (strcmp(argv[i], "--runs") == 0)
			number = &options->runs;
		else if (strcmp(argv[i], "--seed") == 0)
			number = &options->seed;
		else if (strcmp(argv[i], "--steps") == 0)
			number = &options->max_steps;
		else if (strcmp(argv[i], "--jobs") == 0)
			number = &options->jobs;
		else if (strcmp(argv[i], "--seconds") == 0)
			number = &options->seconds;
		else
			return false;
		if (number != NULL && !parse_number(argv[++i], number))
			return false;
	}
	return options->jobs > 0;
}

/* Runs every jobs-th seed from the given one on; 0 if none failed. */
static int
run_share(const Options *options, uint64_t first)
{
	double		begin = wall_clock();
	uint64_t	hash = 0;
	uint64_t	steps = 0;
	uint64_t	acknowledged = 0;
	uint64_t	reads = 0;
	uint64_t	probes = 0;
	uint64_t	crashes = 0;
	uint64_t	configs = 0;
	uint64_t	transfers = 0;
	uint64_t	bases = 0;
	uint64_t	snapshots = 0;
	uint64_t	stuck = 0;
	uint64_t	done = 0;

	for (uint64_t i = first; i < options->runs; i += options->jobs)
	{
		static Sim	sim;

		if (options->seconds > 0 && wall_clock() - begin >= (double) options->seconds)
			break;
		if (!sim_run(&sim, options->seed + i, options->max_steps, options->trace))
		{
			printf("FAILED after %llu schedules: SEED=%llu invariant %s: %s (at %.3f ms, step %llu)\n",
				   (unsigned long long) done + 1, (unsigned long long) sim.seed, sim.invariant, sim.detail,
				   (double) sim.now / 1000, (unsigned long long) sim.steps);
			return 1;
		}
		done++;
		hash = sim_mix(hash, sim.hash);
		steps += sim.steps;
		acknowledged += sim.acknowledged;
		reads += sim.reads_answered;
		probes += sim.probes_answered;
		crashes += sim.crashes;
		configs += sim.configs_chosen;
		transfers += sim.transfers;
		bases += sim.bases;
		snapshots += sim.snapshots;
		stuck += sim.stuck;
	}
	if (options->hash)
		printf("%016llx\n", (unsigned long long) hash);
	else
		printf("passed: %llu schedules from seed %llu in %.1f s; %llu events, %llu proposals acknowledged, %llu reads, %llu probes, "
			   "%llu crashes, %llu configurations, %llu transfers, %llu bases, %llu snapshots, %llu stuck by recklessness\n", (unsigned long long) done,
			   (unsigned long long) (options->seed + first), wall_clock() - begin, (unsigned long long) steps,
			   (unsigned long long) acknowledged, (unsigned long long) reads, (unsigned long long) probes, (unsigned long long) crashes,
			   (unsigned long long) configs, (unsigned long long) transfers, (unsigned long long) bases, (unsigned long long) snapshots,
			   (unsigned long long) stuck);
	return 0;
}

static int
run_jobs(const Options *options)
{
	int			failed = 0;
	int			status;

	for (uint64_t job = 0; job < options->jobs; job++)
	{
		pid_t		pid = fork();

		if (pid < 0)
		{
			perror("fork");
			return 2;
		}
		if (pid == 0)
			exit(run_share(options, job));
	}
	while (wait(&status) > 0)
		if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
			failed = 1;
	return failed;
}

int
main(int argc, char **argv)
{
	Options		options = {.runs = 1000, .seed = 1, .max_steps = SIM_FOREVER, .jobs = 1};
	const char *replay = getenv("SEED");

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (replay != NULL && *replay != '\0')
	{
		if (!parse_number(replay, &options.seed))
			return usage();
		options.runs = 1;
		options.trace = true;
	}
	if (!parse(argc, argv, &options))
		return usage();
	return options.jobs == 1 ? run_share(&options, 0) : run_jobs(&options);
}
