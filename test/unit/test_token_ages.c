/*
 * test_token_ages.c
 *	  What a node knows of the ages of tokens (src/shared/token_ages.c), and what follows from it: none is forgotten before its time by nodes that ask for
 *	  room first, and a retry within that time never takes effect twice, whatever others do and however long it is under way.
 */
#include <stdlib.h>
#include <string.h>

#include "shared/certifier.h"
#include "shared/token_ages.h"
#include "random.h"
#include "tap.h"

#define CAPACITY 1024
#define SPARE 256
#define AGE_MS 60000

static TokenAges ages;

static void
note(uint64_t put_count, uint64_t clock_ms)
{
	TokenSample now = {.put_count = put_count, .index = 10 * put_count, .clock_ms = clock_ms};

	token_ages_note(&ages, CAPACITY, &now);
}

static bool
have_room(uint64_t put_count, uint64_t clock_ms)
{
	return token_ages_have_room(&ages, CAPACITY, put_count, SPARE, clock_ms, AGE_MS);
}

/* ---- single cases ---- */

static void
test_room(void)
{
	memset(&ages, 0, sizeof(ages));
	ok(have_room(0, 0) && have_room(CAPACITY - SPARE - 1, 0), "while nothing can be forgotten there is room, whatever is known");
	ok(!have_room(CAPACITY - SPARE, 1000 * AGE_MS), "a token whose age is not known keeps its place");
	note(100, 5000);
	ok(!have_room(CAPACITY - SPARE, 5000 + AGE_MS - 1), "and one that is a moment too young");
	ok(have_room(CAPACITY - SPARE, 5000 + AGE_MS), "once it is old enough there is room");
	ok(have_room(CAPACITY - SPARE + 99, 5000 + AGE_MS), "for as many as are known to be");
	ok(!have_room(CAPACITY - SPARE + 100, 5000 + AGE_MS), "and not for one more");
	ok(!have_room(CAPACITY - SPARE, 4000), "a clock that is behind a sample makes nothing old");
}

static void
test_what_the_view_shows(void)
{
	uint64_t	age_ms;

	memset(&ages, 0, sizeof(ages));
	ok(!token_ages_oldest(&ages, CAPACITY, 50, 9000, &age_ms), "of ages nothing is known at first");
	note(1, 1000);
	note(CAPACITY, 2000);
	ok(token_ages_oldest(&ages, CAPACITY, CAPACITY, 9000, &age_ms) && age_ms == 8000, "the oldest token is as old as the first sample");
	ok(token_ages_oldest(&ages, CAPACITY, CAPACITY + 1, 9000, &age_ms) && age_ms == 7000, "when it is forgotten, as old as the next");
	ok(token_ages_forgotten_early(&ages, CAPACITY, CAPACITY, CAPACITY + 10, 1000 + AGE_MS, AGE_MS) == 9,
	   "nine of ten were forgotten too early: the first was old enough");
	ok(token_ages_forgotten_early(&ages, CAPACITY, CAPACITY, CAPACITY + 10, 2000 + AGE_MS, AGE_MS) == 0, "later none is");
	ok(token_ages_forgotten_early(&ages, CAPACITY, 10, CAPACITY, 2000, AGE_MS) == 0, "nor while all are remembered");
}

static void
test_what_is_gone_is_dropped(void)
{
	memset(&ages, 0, sizeof(ages));
	note(10, 1000);
	note(20, 2000);
	note(30, 3000);
	token_ages_drop_behind(&ages, 29, 1000);
	ok(ages.count == 2, "a sample of tokens that the log does not have is dropped");
	token_ages_drop_behind(&ages, 29, 199);
	ok(ages.count == 1, "one of an index that it does not have, too");
}

static void
test_lies_are_refused(void)
{
	memset(&ages, 0, sizeof(ages));
	note(10, 1000);
	note(20, 2000);
	ok(token_ages_are_valid(&ages, 2000), "what was noted is valid");
	ok(!token_ages_are_valid(&ages, 1999), "a sample of later than now is not");
	ages.samples[1].put_count = 10;
	ok(!token_ages_are_valid(&ages, 2000), "nor one that counts no more than the one before");
	ages.samples[1].put_count = 20;
	ages.samples[1].index = 99;
	ok(!token_ages_are_valid(&ages, 2000), "nor one of an older index");
	ages.samples[1].index = 200;
	ages.samples[1].clock_ms = 999;
	ok(!token_ages_are_valid(&ages, 2000), "nor one that was taken before the one before");
	ages.count = TOKEN_AGES_SAMPLES + 1;
	ok(!token_ages_are_valid(&ages, 2000), "nor more than there is room for");
}

/* ---- by lot: what is said to be old is old ---- */

/*
 * A node that sees tokens in batches and is restarted now and then: its clock then begins where it was saved, so it falls behind the time more and more.
 * put_at[n]: the time at which token n was put.
 */
#define PUTS 40000

static uint64_t put_at[PUTS + 1];

typedef struct Run
{
	uint64_t	now_ms;
	uint64_t	lost_ms;		/* by so much its clock is behind */
	uint64_t	put_count;
	bool		is_honest;		/* no token was taken for older than it is */
	uint64_t	refusals;
	uint64_t	forgotten_early;	/* in truth */
	uint64_t	told_early;		/* as the node counts them */
} Run;

static uint64_t
clock_of(const Run *run)
{
	return run->now_ms - run->lost_ms;
}

static void
restart(Run *run, uint64_t saved_clock_ms)
{
	run->now_ms += random_below(20000);
	run->lost_ms = run->now_ms - saved_clock_ms;
	while (ages.count > 0 && ages.samples[ages.count - 1].clock_ms > saved_clock_ms)
		ages.count--;
}

static void
check_honesty(Run *run)
{
	uint64_t	age_ms = random_below(2 * AGE_MS);
	const TokenSample *sample = token_ages_newest_of_age(&ages, clock_of(run), age_ms);

	if (sample != NULL)
		run->is_honest = run->is_honest && sample->put_count <= run->put_count && run->now_ms - put_at[sample->put_count] >= age_ms;
}

/* `asks`: as a node does that keeps to the age; with room for itself alone, so that each place is used. */
static void
put(Run *run, bool asks)
{
	uint64_t	old_count = run->put_count;

	if (asks && !token_ages_have_room(&ages, CAPACITY, run->put_count, 0, clock_of(run), AGE_MS))
	{
		run->refusals++;
		return;
	}
	put_at[++run->put_count] = run->now_ms;
	run->told_early += token_ages_forgotten_early(&ages, CAPACITY, old_count, run->put_count, clock_of(run), AGE_MS);
	if (run->put_count > CAPACITY && run->now_ms - put_at[run->put_count - CAPACITY] < AGE_MS)
		run->forgotten_early++;
}

static Run
run_by_lot(uint64_t seed, uint32_t pause_ms, bool asks, bool restarts)
{
	Run			run = {.now_ms = 1, .is_honest = true};
	uint64_t	saved_clock_ms = 0;

	random_seed(seed);
	memset(&ages, 0, sizeof(ages));
	for (int round = 0; round < 4000 && run.put_count < PUTS - 20; round++)
	{
		run.now_ms += random_below(2 * pause_ms);
		for (uint32_t i = random_below(10); i > 0; i--)
			put(&run, asks);
		note(run.put_count, clock_of(&run));
		check_honesty(&run);
		if (random_chance(5))
			saved_clock_ms = clock_of(&run);
		if (restarts && random_chance(1))
			restart(&run, saved_clock_ms);
	}
	return run;
}

static void
test_runs_by_lot(void)
{
	bool		is_honest = true;
	uint64_t	early_with_asking = 0;
	uint64_t	early_without = 0;
	uint64_t	refusals_when_busy = 0;
	uint64_t	refusals_when_quiet = 0;
	bool		all_told = true;

	for (uint64_t seed = 1; seed <= 30; seed++)
	{
		Run			busy = run_by_lot(seed, 100, true, true);
		Run			quiet = run_by_lot(seed, 600, true, false);	/* 450 tokens within the age */
		Run			careless = run_by_lot(seed, 100, false, true);

		is_honest = is_honest && busy.is_honest && quiet.is_honest && careless.is_honest;
		early_with_asking += busy.forgotten_early + quiet.forgotten_early;
		early_without += careless.forgotten_early;
		refusals_when_busy += busy.refusals;
		refusals_when_quiet += quiet.refusals;
		all_told = all_told && careless.told_early >= careless.forgotten_early;
	}
	ok(is_honest, "no token is ever taken for older than it is, over restarts too");
	ok(early_with_asking == 0, "who asks for room forgets none before its time");
	ok(refusals_when_busy > 0, "at the price that some are refused");
	ok(refusals_when_quiet == 0, "but none while fewer come than there is room for in that time");
	ok(early_without > 0 && all_told, "who does not ask forgets some, and is told of each");
}

static void
test_samples_are_bounded(void)
{
	uint64_t	put_count = 0;

	memset(&ages, 0, sizeof(ages));
	for (int i = 0; i < 100000; i++)
	{
		note(++put_count, (uint64_t) i * 100);
		if (!ok_quietly(ages.count <= TOKEN_AGES_SAMPLES && token_ages_are_valid(&ages, (uint64_t) i * 100), "samples are bounded and in order"))
			return;
	}
	ok(have_room(put_count, 100000 * 100), "however many tokens come, as many samples are kept as it takes");
	ok(token_ages_newest_of_age(&ages, 100000 * 100, AGE_MS)->put_count > put_count - AGE_MS / 100 - 2 * CAPACITY / TOKEN_AGES_STEPS,
	   "and they are no further apart than they should be");
}

/* ---- retries ---- */

/*
 * Clients that retry with the same token within the age, from a node that knows the ages, while others fill the memory without asking anybody.  A
 * retry is proposed with a base that is not above the index of that age, and comes into the log whenever it likes.  Small, so that memory is overrun
 * all the time.
 */
#define SMALL 64
#define CLIENTS 12
#define NO_ATTEMPT UINT64_MAX

typedef struct Client
{
	uint64_t	token;
	uint64_t	first_ms;		/* when it first tried */
	uint64_t	base;			/* of the attempt that is under way */
	uint64_t	arrives_ms;		/* NO_ATTEMPT: none is under way */
	int			effects;
} Client;

typedef struct Retries
{
	Certifier	certifier;
	uint64_t	index;
	uint64_t	now_ms;
	uint64_t	next_token;
	bool		applied_twice;
	uint64_t	applied;
	uint64_t	found;			/* by their token */
	uint64_t	too_old;
} Retries;

static CertifierReason
certify_entry(Retries *retries, uint64_t token, uint64_t base, bool is_fence)
{
	CertifierEntry entry = {.index = ++retries->index, .base = base, .token = token, .is_fence = is_fence};
	CertifierVerdict verdict;
	TokenSample now = {.index = retries->index, .clock_ms = retries->now_ms};

	certify(&retries->certifier, &entry, &verdict);
	now.put_count = retries->certifier.tokens.put_count;
	token_ages_note(&ages, SMALL, &now);
	return verdict.reason;
}

static void
arrive(Retries *retries, Client *client)
{
	CertifierReason reason = certify_entry(retries, client->token, client->base, false);

	client->arrives_ms = NO_ATTEMPT;
	client->effects += reason == CERTIFIER_APPLY;
	retries->applied += reason == CERTIFIER_APPLY;
	retries->found += reason == CERTIFIER_TOKEN_COMMITTED;
	retries->too_old += reason == CERTIFIER_TOO_OLD;
	retries->applied_twice = retries->applied_twice || client->effects > 1;
}

static void
attempt(Retries *retries, Client *client, uint64_t age_ms)
{
	const TokenSample *sample = token_ages_newest_of_age(&ages, retries->now_ms, age_ms);

	if (retries->now_ms - client->first_ms > age_ms)	/* its time is over: other work */
		*client = (Client) {.token = retries->next_token++, .first_ms = retries->now_ms};
	client->base = sample != NULL ? sample->index : 0;
	client->arrives_ms = retries->now_ms + (random_chance(70) ? random_below(50) : random_below(4000));
}

static Retries
run_retries(uint64_t seed)
{
	Retries		retries = {.next_token = 1000};
	Client		clients[CLIENTS];
	uint64_t	age_ms = 1000;

	random_seed(seed);
	memset(&ages, 0, sizeof(ages));
	certifier_init(&retries.certifier, calloc(1, certifier_memory_size(SMALL, SMALL)), SMALL, SMALL);
	(void) certify_entry(&retries, 1, 0, true);
	for (int i = 0; i < CLIENTS; i++)
		clients[i] = (Client) {.token = retries.next_token++, .arrives_ms = NO_ATTEMPT};
	while (retries.index < 20000)
	{
		Client	   *client = &clients[random_below(CLIENTS)];

		retries.now_ms += random_below(20);
		if (client->arrives_ms == NO_ATTEMPT)
			attempt(&retries, client, age_ms);
		for (int i = 0; i < CLIENTS; i++)
			if (clients[i].arrives_ms <= retries.now_ms)
				arrive(&retries, &clients[i]);
		if (random_chance(60))
			(void) certify_entry(&retries, UINT64_MAX - retries.index, retries.index, false);
	}
	free(retries.certifier.keys.ring);
	return retries;
}

static void
test_retries(void)
{
	bool		applied_twice = false;
	uint64_t	applied = 0;
	uint64_t	found = 0;
	uint64_t	too_old = 0;

	for (uint64_t seed = 1; seed <= 20; seed++)
	{
		Retries		retries = run_retries(seed);

		applied_twice = applied_twice || retries.applied_twice;
		applied += retries.applied;
		found += retries.found;
		too_old += retries.too_old;
	}
	ok(!applied_twice, "a retry within the age never takes effect twice, however long it is under way and whatever is forgotten meanwhile");
	ok(applied > 1000 && found > 1000 && too_old > 100, "though they take effect, are found by their token, and may have been forgotten");
}

int
main(void)
{
	test_room();
	test_what_the_view_shows();
	test_what_is_gone_is_dropped();
	test_lies_are_refused();
	test_runs_by_lot();
	test_samples_are_bounded();
	test_retries();
	return tap_done();
}
