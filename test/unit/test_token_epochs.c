/*
 * test_token_epochs.c
 *	  Marks and guards of epochs (src/shared/token_epochs.c): a retry does not take effect beside its first attempt, however long it is under way, though its
 *	  base tells nothing of that; and it is rejected for that only if very many tokens came meanwhile.
 */
#include <stdlib.h>
#include <string.h>

#include "shared/certifier.h"
#include "shared/token_epochs.h"
#include "random.h"
#include "tap.h"

#define CAPACITY 512			/* two puts are an epoch */
#define KEYS 2048
#define NODES 3
#define PENDING 16				/* proposals that a node may have on their way */
#define SPARE (NODES * PENDING)
#define CLIENTS 8
#define ENTRIES 30000

/* ---- single cases ---- */

static void
test_numbers(void)
{
	ok(token_epoch_of(CAPACITY, 0) == 0 && token_epoch_of(CAPACITY, 1) == 0 && token_epoch_of(CAPACITY, 2) == 1, "the memory of tokens is divided into epochs");
	ok(token_epoch_of(8, 5) == 5, "of one put at least");
	ok(token_epoch_last(CAPACITY, 0, 0) == 256 && token_epoch_last(CAPACITY, 48, 0) == 232, "room is left for what comes between the begin of an epoch and its mark");
	ok(token_epoch_last(CAPACITY, 48, 9) == 236, "what may be forgotten makes room for more, by whole epochs");
	ok(token_epoch_first_to_mark(7, 0) == 1 && token_epoch_first_to_mark(7, 4) == 5 && token_epoch_first_to_mark(7, 7) == 8, "what is not marked yet is to be");
	ok(token_epoch_first_to_mark(1000, 3) == 745, "but no more than may be somebody's guard");
	ok(token_epoch_key(1) != token_epoch_key(2), "each has its key");
}

/* ---- by lot ---- */

/*
 * Nodes know the log up to where they have been told of it, which may be far behind.  Clients retry with one token, others fill the memory.  Each proposal
 * comes into the log whenever it likes, and holds a place among those of its node until the node has heard of it.
 */
typedef struct Node
{
	uint64_t	delivered;		/* index */
	uint64_t	deaf_until;		/* hears of nothing before the log is that long */
	int			pending;
} Node;

typedef struct Proposal
{
	bool		is_used;
	int			node;
	uint64_t	token;
	uint64_t	base;
	uint64_t	guarded_after;	/* with so many puts its epoch begins; 0: it has none */
	uint64_t	arrives;		/* when the log is that long */
	uint64_t	index;			/* it stands there; 0: not yet */
	uint32_t	key_count;
	uint8_t		keys[(TOKEN_EPOCHS + 2) * CERTIFIER_KEY_BYTES];
} Proposal;

typedef struct Client
{
	uint64_t	token;
	uint64_t	forgettable[NODES]; /* so many puts each node knew of when it first tried */
} Client;

typedef struct Run
{
	Certifier	certifier;
	uint64_t	index;
	uint64_t	put_count[ENTRIES + 1];
	uint64_t	marked[ENTRIES + 1];
	Node		nodes[NODES];
	Proposal	proposals[SPARE];
	Client		clients[CLIENTS];
	uint64_t	next_token;
	uint8_t		effects[3 * ENTRIES];	/* of each token: there is one for each entry, and one for each round in which a client begins other work */
	bool		has_guards;
	bool		has_marks;
	uint64_t	found;
	uint64_t	rejected;		/* by their guard */
	uint64_t	twice;
	bool		too_soon;		/* one was rejected before its epoch had begun */
} Run;

static void
add_key(Proposal *proposal, uint64_t hash, CertifierMode mode, uint64_t base)
{
	certifier_put_key(proposal->keys + proposal->key_count++ * CERTIFIER_KEY_BYTES, hash, mode, (uint32_t) (base - proposal->base));
}

/* NULL: the node has its hands full. */
static Proposal *
new_proposal(Run *run, int node, uint64_t token)
{
	uint32_t	number = 0;
	Proposal   *proposal;

	if (run->nodes[node].pending == PENDING)
		return NULL;
	while (run->proposals[number].is_used)
		number++;
	proposal = &run->proposals[number];
	memset(proposal, 0, sizeof(Proposal));
	proposal->is_used = true;
	proposal->node = node;
	proposal->token = token;
	proposal->base = run->nodes[node].delivered;
	proposal->arrives = run->index + (random_chance(90) ? random_below(20) : random_below(1500));
	run->nodes[node].pending++;
	add_key(proposal, random_below(1000000), CERTIFIER_UPDATE, proposal->base);
	return proposal;
}

static void
add_marks(Run *run, Proposal *proposal)
{
	uint64_t	delivered = run->nodes[proposal->node].delivered;
	uint64_t	last = token_epoch_of(CAPACITY, run->put_count[delivered]);

	for (uint64_t epoch = token_epoch_first_to_mark(last, run->marked[delivered]); run->has_marks && epoch <= last; epoch++)
		add_key(proposal, token_epoch_key(epoch), CERTIFIER_TABLE_ROW_EXCLUSIVE, proposal->base);
}

static void
fill(Run *run)
{
	Proposal   *proposal = new_proposal(run, (int) random_below(NODES), run->next_token);

	if (proposal == NULL)
		return;
	run->next_token++;
	add_marks(run, proposal);
}

static void
begin_other_work(Run *run, Client *client)
{
	memset(client, 0, sizeof(Client));
	client->token = run->next_token++;
	for (int i = 0; i < NODES; i++)
		client->forgettable[i] = run->put_count[run->nodes[i].delivered];
}

/* Who is refused does other work from then on; attempts that it has made may still come. */
static void
attempt(Run *run, Client *client)
{
	int			node = (int) random_below(NODES);
	uint64_t	known_puts = run->put_count[run->nodes[node].delivered];
	uint64_t	guard = token_epoch_last(CAPACITY, SPARE, client->forgettable[node]);
	Proposal   *proposal;

	if (guard <= token_epoch_of(CAPACITY, known_puts))
		begin_other_work(run, client);
	else if ((proposal = new_proposal(run, node, client->token)) != NULL)
	{
		add_marks(run, proposal);
		if (!run->has_guards)
			return;
		proposal->guarded_after = guard * (CAPACITY / TOKEN_EPOCHS);
		add_key(proposal, token_epoch_key(guard), CERTIFIER_TABLE_READ, proposal->base);
	}
}

/* As token_memory.c does. */
static uint64_t
last_marked(const Run *run)
{
	uint64_t	marked = run->marked[run->index - 1];
	uint64_t	last = token_epoch_of(CAPACITY, run->certifier.tokens.put_count);

	for (uint64_t epoch = last; epoch > marked && last - epoch < TOKEN_EPOCHS; epoch--)
		if (certifier_last_index(&run->certifier, token_epoch_key(epoch), CERTIFIER_TABLE_ROW_EXCLUSIVE) != 0)
			return epoch;
	return marked;
}

static void
arrive(Run *run, Proposal *proposal)
{
	CertifierEntry entry = {.index = ++run->index, .base = proposal->base, .token = proposal->token, .key_count = proposal->key_count,
		.keys = proposal->keys};
	CertifierVerdict verdict;

	certify(&run->certifier, &entry, &verdict);
	proposal->index = run->index;
	run->put_count[run->index] = run->certifier.tokens.put_count;
	run->marked[run->index] = last_marked(run);
	run->found += verdict.reason == CERTIFIER_TOKEN_COMMITTED;
	if (verdict.reason == CERTIFIER_APPLY && ++run->effects[proposal->token] > 1)
		run->twice++;
	if (verdict.reason == CERTIFIER_CONFLICT && verdict.key_number == proposal->key_count - 1 && proposal->guarded_after > 0)
	{
		run->rejected++;
		run->too_soon = run->too_soon || run->put_count[run->index] < proposal->guarded_after;
	}
}

/* A node that is not deaf hears of some of what it does not know. */
static void
hear(Run *run, int number)
{
	Node	   *node = &run->nodes[number];

	if (random_chance(1))
		node->deaf_until = run->index + random_below(800);
	if (node->deaf_until > run->index)
		return;
	node->delivered += random_below((uint32_t) (run->index - node->delivered) + 1);
	for (int i = 0; i < SPARE; i++)
		if (run->proposals[i].is_used && run->proposals[i].node == number && run->proposals[i].index != 0 &&
			run->proposals[i].index <= node->delivered)
		{
			run->proposals[i].is_used = false;
			node->pending--;
		}
}

/* In a place that does not matter something of no consequence comes, so that the log goes on. */
static void
go_on(Run *run)
{
	run->index++;
	run->put_count[run->index] = run->put_count[run->index - 1];
	run->marked[run->index] = run->marked[run->index - 1];
	for (uint32_t i = 0, first = random_below(SPARE); i < SPARE && run->index < ENTRIES; i++)
	{
		Proposal   *proposal = &run->proposals[(first + i) % SPARE];

		if (proposal->is_used && proposal->index == 0 && proposal->arrives <= run->index)
			arrive(run, proposal);
	}
}

/* Adds up to *sum. */
static void
run_by_lot(uint64_t seed, bool has_guards, bool has_marks, Run *sum)
{
	Run		   *run = calloc(1, sizeof(Run));

	random_seed(seed);
	run->has_guards = has_guards;
	run->has_marks = has_marks;
	run->next_token = 1;
	certifier_init(&run->certifier, calloc(1, certifier_memory_size(KEYS, CAPACITY)), KEYS, CAPACITY);
	for (int i = 0; i < CLIENTS; i++)
		begin_other_work(run, &run->clients[i]);
	while (run->index < ENTRIES)
	{
		for (int i = 0; i < NODES; i++)
			hear(run, i);
		for (int i = 0; i < 3; i++)
			fill(run);
		if (random_chance(20))
			attempt(run, &run->clients[random_below(CLIENTS)]);
		go_on(run);
	}
	sum->found += run->found;
	sum->rejected += run->rejected;
	sum->twice += run->twice;
	sum->too_soon = sum->too_soon || run->too_soon;
	free(run->certifier.keys.ring);
	free(run);
}

static void
test_by_lot(void)
{
	static Run	guarded;
	static Run	unguarded;
	static Run	unmarked;

	for (uint64_t seed = 1; seed <= 20; seed++)
	{
		run_by_lot(seed, true, true, &guarded);
		run_by_lot(seed, false, true, &unguarded);
		run_by_lot(seed, true, false, &unmarked);
	}
	ok(guarded.twice == 0, "no token takes effect twice, however long an attempt is under way, and though its base does not tell since when others were");
	ok(guarded.found > 100 && guarded.rejected > 20, "attempts find that they are retries, or are rejected by their guard");
	ok(!guarded.too_soon, "but by that only if so many tokens have come");
	ok(unguarded.twice > 0 && unmarked.twice > 0, "without guards, or without marks, some do");
}

int
main(void)
{
	test_numbers();
	test_by_lot();
	return tap_done();
}
