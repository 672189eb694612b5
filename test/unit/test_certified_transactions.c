/*
 * test_certified_transactions.c
 *	  A model of a cluster: transactions run on three nodes that are each behind the log by some entries, lock rows as PostgreSQL does, list keys as
 *	  the capture code does, and take effect if the certifier says so.  What must hold after each entry does; and with a fault planted into
 *	  the model it does not, so that the model would have found it.
 *
 * A node applies the log in order.  If an entry needs a lock that a local transaction holds, that one is aborted if it has not proposed; if it
 * has, its entry must be rejected later, or on a real node the two would wait for each other for ever.
 */
#include <stdlib.h>
#include <string.h>

#include "random.h"
#include "shared/certifier.h"
#include "tap.h"

#define NODES 3
#define SESSIONS 4				/* per node */
#define ROWS 4
#define LOG_CAPACITY 400
#define MAX_LOCKS 16
#define MAX_CHANGES ROWS
#define MAX_SEEN ROWS
#define KEY_CAPACITY 32
#define TOKEN_CAPACITY 4
#define STEPS 2500
#define SCHEDULES 2000

typedef enum Fault
{
	NO_FAULT = 0,
	UNIQUE_KEY_FORGOTTEN,
	ROW_FORGOTTEN,
	BASE_ONE_TOO_HIGH,
	BASE_OF_THE_COMMIT,			/* for what was read, as if it had been read then */
	FLOOR_DIFFERS,
	ROW_LOCK_NOT_CERTIFIED,
	PARENT_LOCK_NOT_CERTIFIED,
	DELETION_AS_UPDATE,			/* in the mode of an update that changes no key */
	READS_NOT_CERTIFIED,
	TABLE_OF_READ_ROW_NOT_CERTIFIED,
	TABLE_LOCK_NOT_CERTIFIED
} Fault;

/* What can break. */
typedef enum Violation
{
	NONE = 0,
	LOST_UPDATE,
	DOUBLE_KEY,
	ORPHAN,
	WRITE_SKEW,
	SEEN_ROW_CHANGED,
	NODES_DISAGREE,
	APPLY_BLOCKED_FOR_EVER
} Violation;

static const char *const violation_names[] = {"none", "lost update", "unique key twice", "child without parent", "write skew",
	"a row that was locked or read changed", "nodes disagree", "apply waits for a transaction that waits for it"};

typedef enum Table
{
	COUNTERS,					/* value */
	ITEMS,						/* other: a unique key, 0 if null */
	PARENTS,					/* value */
	CHILDREN,					/* other: the parent, + 1 */
	ACCOUNTS,					/* two at a time must not sum up to less than 0 */
	TABLES
} Table;

typedef struct Row
{
	bool		exists;
	int			value;
	int			other;
	uint64_t	version;		/* index of the entry that changed it last */
} Row;

typedef struct Database
{
	Row			rows[TABLES][ROWS];
} Database;

typedef struct Lock
{
	uint64_t	hash;
	CertifierMode mode;
	uint64_t	base;
	bool		is_certified;	/* listed among the keys */
	bool		is_held;		/* false: only a key */
} Lock;

typedef struct Change
{
	Table		table;
	int			row;
	Row			old;
	Row			new;
} Change;

/* A row as it was when it was locked or read. */
typedef struct Seen
{
	Table		table;
	int			row;
	Row			image;
	bool		is_snapshot;	/* read, not locked */
} Seen;

typedef enum Phase
{
	IDLE = 0,
	RUNNING,
	PROPOSED,					/* on its way to the log */
	LOGGED						/* in it */
} Phase;

typedef struct Transaction
{
	Phase		phase;
	int			node;
	bool		must_be_rejected;	/* an entry that has been applied took locks that it holds */
	uint64_t	snapshot_base;
	Database	snapshot;
	int			lock_count;
	int			change_count;
	int			seen_count;
	Lock		locks[MAX_LOCKS];
	Change		changes[MAX_CHANGES];
	Seen		seen[MAX_SEEN];
} Transaction;

typedef struct LogEntry
{
	Transaction transaction;	/* as it was proposed */
	int			session;
	bool		is_judged;
	bool		is_in_effect;	/* by the first node that judged it */
} LogEntry;

typedef struct Node
{
	uint64_t	applied;
	Database	database;
	Certifier	certifier;
	uint64_t   *memory;
	Transaction sessions[SESSIONS];
} Node;

static struct
{
	Fault		fault;
	bool		hot_row_of_one_node;
	uint32_t	key_capacity;
	Violation	violation;
	uint64_t	log_length;
	LogEntry	log[LOG_CAPACITY + 1];
	Node		nodes[NODES];
	uint32_t	apply_percent[NODES];
	uint32_t	verdicts[CERTIFIER_MALFORMED + 1];
} model;

static void
violated(Violation violation)
{
	if (model.violation == NONE)
		model.violation = violation;
}

/* ---- locks ---- */

static uint64_t
row_hash(Table table, int row)
{
	return 1000 + (uint64_t) table * 100 + (uint64_t) row;
}

static uint64_t
unique_hash(int value)
{
	return 5000 + (uint64_t) value;
}

static uint64_t
table_hash(Table table)
{
	return 9000 + (uint64_t) table;
}

/* PostgreSQL's: the same both ways. */
static bool
locks_conflict(CertifierMode left, CertifierMode right)
{
	CertifierMode lower = left < right ? left : right;
	CertifierMode higher = left < right ? right : left;

	if (higher <= CERTIFIER_UPDATE)
		return higher == CERTIFIER_UPDATE || (higher == CERTIFIER_NO_KEY_UPDATE && lower != CERTIFIER_KEY_SHARE);
	return higher == CERTIFIER_TABLE_EXCLUSIVE || (higher == CERTIFIER_TABLE_SHARE && lower == CERTIFIER_TABLE_ROW_EXCLUSIVE);
}

static bool
holds_conflicting_lock(const Transaction *holder, uint64_t hash, CertifierMode mode)
{
	for (int i = 0; i < holder->lock_count; i++)
		if (holder->locks[i].is_held && holder->locks[i].hash == hash && locks_conflict(holder->locks[i].mode, mode))
			return true;
	return false;
}

static void
end_transaction(Transaction *transaction)
{
	transaction->phase = IDLE;
	transaction->lock_count = 0;
}

static void
add_lock(Transaction *transaction, uint64_t hash, CertifierMode mode, uint64_t base, bool is_certified, bool is_held)
{
	Lock	   *lock = &transaction->locks[transaction->lock_count++];

	*lock = (Lock){hash, mode, base, is_certified, is_held};
	if (model.fault == BASE_ONE_TOO_HIGH)
		lock->base++;
}

/* Takes the lock, if no other local transaction is in the way; else the transaction is over (it would wait, or be a victim of a deadlock). */
static bool
lock(Transaction *transaction, uint64_t hash, CertifierMode mode, bool is_certified)
{
	Node	   *node = &model.nodes[transaction->node];

	if (transaction->phase != RUNNING)
		return false;
	for (int i = 0; i < SESSIONS; i++)
		if (&node->sessions[i] != transaction && holds_conflicting_lock(&node->sessions[i], hash, mode))
		{
			end_transaction(transaction);
			return false;
		}
	add_lock(transaction, hash, mode, node->applied, is_certified, true);
	return true;
}

static bool
lock_table(Transaction *transaction, Table table, CertifierMode mode)
{
	return lock(transaction, table_hash(table), mode, mode < CERTIFIER_TABLE_SHARE || model.fault != TABLE_LOCK_NOT_CERTIFIED);
}

/* ---- what transactions do ---- */

static Row *
current(Transaction *transaction, Table table, int row)
{
	return &model.nodes[transaction->node].database.rows[table][row];
}

static void
change(Transaction *transaction, Table table, int row, Row new)
{
	transaction->changes[transaction->change_count++] = (Change){table, row, *current(transaction, table, row), new};
}

static void
see(Transaction *transaction, Table table, int row, bool is_snapshot)
{
	Row			image = is_snapshot ? transaction->snapshot.rows[table][row] : *current(transaction, table, row);

	transaction->seen[transaction->seen_count++] = (Seen){table, row, image, is_snapshot};
}

/* UPDATE counters SET value = value + 1 */
static void
increment(Transaction *transaction, Table table, int row)
{
	Row			new;

	if (!lock_table(transaction, table, CERTIFIER_TABLE_ROW_EXCLUSIVE) ||
		!lock(transaction, row_hash(table, row), CERTIFIER_NO_KEY_UPDATE, model.fault != ROW_FORGOTTEN))
		return;
	new = *current(transaction, table, row);
	new.value++;
	if (new.exists)
		change(transaction, table, row, new);
}

static bool
unique_is_free(Transaction *transaction, int value)
{
	for (int row = 0; row < ROWS; row++)
		if (current(transaction, ITEMS, row)->exists && current(transaction, ITEMS, row)->other == value)
			return false;
	return true;
}

/* A row with a unique key is inserted, deleted, or gets another one. */
static void
change_item(Transaction *transaction, int row)
{
	Row			old = *current(transaction, ITEMS, row);
	Row			new = old;
	bool		is_update = old.exists && random_chance(50);

	new.exists = !old.exists || is_update;
	new.other = 1 + (int) random_below(5);
	if (!lock_table(transaction, ITEMS, CERTIFIER_TABLE_ROW_EXCLUSIVE) ||
		!lock(transaction, row_hash(ITEMS, row), CERTIFIER_UPDATE, model.fault != ROW_FORGOTTEN))
		return;
	if (old.exists && !lock(transaction, unique_hash(old.other), CERTIFIER_UPDATE, model.fault != UNIQUE_KEY_FORGOTTEN))
		return;
	if (new.exists && (old.other != new.other || !old.exists) &&
		!lock(transaction, unique_hash(new.other), CERTIFIER_UPDATE, model.fault != UNIQUE_KEY_FORGOTTEN))
		return;
	if (new.exists && !(old.exists && old.other == new.other) && !unique_is_free(transaction, new.other))
		end_transaction(transaction);	/* 23505 */
	else
		change(transaction, ITEMS, row, new);
}

/* INSERT or DELETE of a child; the first locks its parent, as the foreign key's check does. */
static void
change_child(Transaction *transaction, int row)
{
	Row			new = *current(transaction, CHILDREN, row);
	int			parent = (int) random_below(ROWS);

	if (!lock_table(transaction, CHILDREN, CERTIFIER_TABLE_ROW_EXCLUSIVE) ||
		!lock(transaction, row_hash(CHILDREN, row), CERTIFIER_UPDATE, model.fault != ROW_FORGOTTEN))
		return;
	new.exists = !new.exists;
	new.other = new.exists ? parent + 1 : new.other;
	if (new.exists &&
		(!lock_table(transaction, PARENTS, CERTIFIER_TABLE_ROW_SHARE) ||
		 !lock(transaction, row_hash(PARENTS, parent), CERTIFIER_KEY_SHARE, model.fault != PARENT_LOCK_NOT_CERTIFIED)))
		return;
	if (new.exists && !current(transaction, PARENTS, parent)->exists)
		end_transaction(transaction);	/* 23503 */
	else
		change(transaction, CHILDREN, row, new);
}

/* INSERT or DELETE of a parent; the latter looks for children. */
static void
change_parent(Transaction *transaction, int row)
{
	Row			new = *current(transaction, PARENTS, row);
	CertifierMode mode = new.exists && model.fault == DELETION_AS_UPDATE ? CERTIFIER_NO_KEY_UPDATE : CERTIFIER_UPDATE;
	int			last;

	if (!lock_table(transaction, PARENTS, CERTIFIER_TABLE_ROW_EXCLUSIVE) ||
		!lock(transaction, row_hash(PARENTS, row), CERTIFIER_UPDATE, mode == CERTIFIER_UPDATE))
		return;
	last = transaction->lock_count;
	if (mode != CERTIFIER_UPDATE)
		add_lock(transaction, row_hash(PARENTS, row), mode, transaction->locks[last - 1].base, true, false);
	for (int child = 0; child < ROWS; child++)
		if (new.exists && current(transaction, CHILDREN, child)->exists && current(transaction, CHILDREN, child)->other == row + 1)
		{
			end_transaction(transaction);	/* 23503 */
			return;
		}
	new.exists = !new.exists;
	change(transaction, PARENTS, row, new);
}

/* SELECT … FOR SHARE or FOR UPDATE of one counter, then another one is changed because of it. */
static void
lock_and_change(Transaction *transaction, int row)
{
	if (!lock_table(transaction, COUNTERS, CERTIFIER_TABLE_ROW_SHARE) ||
		!lock(transaction, row_hash(COUNTERS, row), random_chance(50) ? CERTIFIER_SHARE : CERTIFIER_UPDATE,
			  model.fault != ROW_LOCK_NOT_CERTIFIED))
		return;
	see(transaction, COUNTERS, row, false);
	increment(transaction, COUNTERS, (row + 1) % ROWS);
}

/* LOCK TABLE counters IN SHARE MODE, then what stands there decides about something else. */
static void
lock_table_and_change(Transaction *transaction)
{
	if (!lock_table(transaction, COUNTERS, CERTIFIER_TABLE_SHARE))
		return;
	for (int row = 0; row < ROWS - 1; row++)
		see(transaction, COUNTERS, row, false);
	increment(transaction, PARENTS, 0);
}

static void
read_row(Transaction *transaction, Table table, int row)
{
	uint64_t	base = transaction->snapshot_base;

	if (model.fault == BASE_OF_THE_COMMIT)
		base = model.nodes[transaction->node].applied;
	see(transaction, table, row, true);
	add_lock(transaction, row_hash(table, row), CERTIFIER_READ, base, model.fault != READS_NOT_CERTIFIED, false);
	add_lock(transaction, table_hash(table), CERTIFIER_TABLE_ROW_SHARE, base,
			 model.fault != READS_NOT_CERTIFIED && model.fault != TABLE_OF_READ_ROW_NOT_CERTIFIED, false);
}

static void
read_table(Transaction *transaction, Table table)
{
	for (int row = 0; row < ROWS; row++)
		see(transaction, table, row, true);
	add_lock(transaction, table_hash(table), CERTIFIER_TABLE_READ,
			 model.fault == BASE_OF_THE_COMMIT ? model.nodes[transaction->node].applied : transaction->snapshot_base,
			 model.fault != READS_NOT_CERTIFIED, false);
}

/* SERIALIZABLE: takes from one of two accounts as much as both have. */
static void
withdraw(Transaction *transaction, int row)
{
	int			other = row ^ 1;
	Row			new;

	if (!lock_table(transaction, ACCOUNTS, CERTIFIER_TABLE_ROW_EXCLUSIVE))
		return;
	if (random_chance(70))
	{
		read_row(transaction, ACCOUNTS, row);
		read_row(transaction, ACCOUNTS, other);
	}
	else
		read_table(transaction, ACCOUNTS);
	if (!lock(transaction, row_hash(ACCOUNTS, row), CERTIFIER_NO_KEY_UPDATE, true))
		return;
	new = *current(transaction, ACCOUNTS, row);
	if (new.version > transaction->snapshot_base)
	{
		end_transaction(transaction);	/* it was updated meanwhile: 40001 */
		return;
	}
	new.value -= new.value + transaction->snapshot.rows[ACCOUNTS][other].value;
	change(transaction, ACCOUNTS, row, new);
}

static void
deposit(Transaction *transaction, int row)
{
	Row			new;

	if (!lock_table(transaction, ACCOUNTS, CERTIFIER_TABLE_ROW_EXCLUSIVE) ||
		!lock(transaction, row_hash(ACCOUNTS, row), CERTIFIER_NO_KEY_UPDATE, true))
		return;
	new = *current(transaction, ACCOUNTS, row);
	new.value += 10;
	change(transaction, ACCOUNTS, row, new);
}

/* More rows than can be listed: the key is the table as a whole, though only rows are locked. */
static void
change_many(Transaction *transaction, Table table)
{
	int			left_out = (int) random_below(ROWS);

	if (!lock_table(transaction, table, CERTIFIER_TABLE_ROW_EXCLUSIVE))
		return;
	for (int row = 0; row < ROWS; row++)
	{
		Row			new;

		if (row == left_out)
			continue;
		if (!lock(transaction, row_hash(table, row), CERTIFIER_NO_KEY_UPDATE, false))
			return;
		add_lock(transaction, table_hash(table), CERTIFIER_TABLE_EXCLUSIVE, model.nodes[transaction->node].applied,
				 model.fault != TABLE_LOCK_NOT_CERTIFIED, false);
		new = *current(transaction, table, row);
		new.value++;
		change(transaction, table, row, new);
	}
}

static void
run_statement(Transaction *transaction)
{
	int			row = (int) random_below(ROWS);

	if (model.hot_row_of_one_node)
	{
		increment(transaction, COUNTERS, 0);
		return;
	}
	switch (random_below(10))
	{
		case 0:
			increment(transaction, COUNTERS, row);
			break;
		case 1:
			change_item(transaction, row);
			break;
		case 2:
			change_child(transaction, row);
			break;
		case 3:
			change_parent(transaction, row);
			break;
		case 4:
			increment(transaction, PARENTS, row);
			break;
		case 5:
			lock_and_change(transaction, row);
			break;
		case 6:
			lock_table_and_change(transaction);
			break;
		case 7:
			withdraw(transaction, row);
			break;
		case 8:
			deposit(transaction, row);
			break;
		default:
			change_many(transaction, random_chance(50) ? ACCOUNTS : COUNTERS);
			break;
	}
}

/* ---- proposals ---- */

static void
begin(Transaction *transaction, int node)
{
	memset(transaction, 0, sizeof(*transaction));
	transaction->phase = RUNNING;
	transaction->node = node;
	transaction->snapshot_base = model.nodes[node].applied;
	transaction->snapshot = model.nodes[node].database;
}

/* The locks of tables are looked at now; they are held, so that nothing was missed since they were taken. */
static void
propose(Transaction *transaction)
{
	uint64_t	applied = model.nodes[transaction->node].applied + (model.fault == BASE_ONE_TOO_HIGH);

	for (int i = 0; i < transaction->lock_count; i++)
		if (transaction->locks[i].is_held && transaction->locks[i].mode >= CERTIFIER_TABLE_ROW_SHARE)
			transaction->locks[i].base = applied;
	transaction->phase = PROPOSED;
}

static void
append_to_log(Transaction *transaction, int session)
{
	if (model.log_length == LOG_CAPACITY)
		return;
	transaction->phase = LOGGED;
	model.log[++model.log_length] = (LogEntry){.transaction = *transaction, .session = session};
}

/* ---- the log takes effect ---- */

static CertifierReason
judge(Node *node, uint64_t index, const Transaction *transaction)
{
	uint8_t		keys[MAX_LOCKS * CERTIFIER_KEY_BYTES];
	CertifierEntry entry = {.index = index, .proposal = index, .base = UINT64_MAX, .keys = keys};
	CertifierVerdict verdict;

	for (int i = 0; i < transaction->lock_count; i++)
		if (transaction->locks[i].is_certified && transaction->locks[i].base < entry.base)
			entry.base = transaction->locks[i].base;
	if (entry.base == UINT64_MAX)
		entry.base = index - 1;
	for (int i = 0; i < transaction->lock_count; i++)
		if (transaction->locks[i].is_certified)
			certifier_put_key(keys + CERTIFIER_KEY_BYTES * entry.key_count++, transaction->locks[i].hash, transaction->locks[i].mode,
							  (uint32_t) (transaction->locks[i].base - entry.base));
	certify(&node->certifier, &entry, &verdict);
	return verdict.reason;
}

/* The apply worker needs the locks of what it changes; what was only locked or read it does not touch. */
static void
get_out_of_the_way(Node *node, const Transaction *applied)
{
	for (int i = 0; i < applied->lock_count; i++)
	{
		const Lock *needed = &applied->locks[i];
		bool		is_taken = needed->is_held && needed->mode != CERTIFIER_KEY_SHARE && needed->mode != CERTIFIER_SHARE &&
			needed->mode != CERTIFIER_TABLE_ROW_SHARE && needed->mode != CERTIFIER_TABLE_SHARE;

		for (int session = 0; is_taken && session < SESSIONS; session++)
		{
			Transaction *holder = &node->sessions[session];

			if (!holds_conflicting_lock(holder, needed->hash, needed->mode))
				continue;
			if (holder->phase == RUNNING)
				end_transaction(holder);
			else
				holder->must_be_rejected = true;
		}
	}
}

static bool
rows_equal(const Row *left, const Row *right)
{
	return left->exists == right->exists && left->value == right->value && left->other == right->other &&
		left->version == right->version;
}

static void
apply_changes(Database *database, uint64_t index, const Transaction *transaction)
{
	for (int i = 0; i < transaction->seen_count; i++)
	{
		const Seen *seen = &transaction->seen[i];

		if (!rows_equal(&database->rows[seen->table][seen->row], &seen->image))
			violated(SEEN_ROW_CHANGED);
	}
	for (int i = 0; i < transaction->change_count; i++)
	{
		const Change *change = &transaction->changes[i];
		Row		   *row = &database->rows[change->table][change->row];

		if (!rows_equal(row, &change->old))
			violated(LOST_UPDATE);
		*row = change->new;
		row->version = index;
	}
}

static void
look_at_database(const Database *database)
{
	const Row  *items = database->rows[ITEMS];
	const Row  *accounts = database->rows[ACCOUNTS];

	for (int row = 0; row < ROWS; row++)
	{
		const Row  *child = &database->rows[CHILDREN][row];

		for (int other = 0; other < row; other++)
			if (items[row].exists && items[other].exists && items[row].other == items[other].other)
				violated(DOUBLE_KEY);
		if (child->exists && !database->rows[PARENTS][child->other - 1].exists)
			violated(ORPHAN);
		if (accounts[row].value + accounts[row ^ 1].value < 0)
			violated(WRITE_SKEW);
	}
}

static void
apply_next(int number)
{
	Node	   *node = &model.nodes[number];
	uint64_t	index = node->applied + 1;
	LogEntry   *entry = &model.log[index];
	Transaction *own = entry->transaction.node == number ? &node->sessions[entry->session] : NULL;
	CertifierReason reason;

	if (index > model.log_length)
		return;
	reason = judge(node, index, &entry->transaction);
	if (entry->is_judged && entry->is_in_effect != (reason == CERTIFIER_APPLY))
		violated(NODES_DISAGREE);
	if (!entry->is_judged)
		model.verdicts[reason]++;
	entry->is_judged = true;
	entry->is_in_effect = reason == CERTIFIER_APPLY;
	if (own != NULL && entry->is_in_effect && own->must_be_rejected)
		violated(APPLY_BLOCKED_FOR_EVER);
	if (entry->is_in_effect)
	{
		if (own == NULL)
			get_out_of_the_way(node, &entry->transaction);
		apply_changes(&node->database, index, &entry->transaction);
		look_at_database(&node->database);
	}
	node->applied = index;
	if (own != NULL)
		end_transaction(own);
}

/* ---- schedules ---- */

static void
start_model(uint64_t seed)
{
	random_seed(seed);
	model.violation = NONE;
	model.log_length = 0;
	for (int number = 0; number < NODES; number++)
	{
		Node	   *node = &model.nodes[number];
		uint32_t	capacity = model.fault == FLOOR_DIFFERS && number == 2 ? model.key_capacity / 2 : model.key_capacity;

		free(node->memory);
		memset(node, 0, sizeof(*node));
		node->memory = calloc(1, certifier_memory_size(capacity, TOKEN_CAPACITY));
		certifier_init(&node->certifier, node->memory, capacity, TOKEN_CAPACITY);
		for (int row = 0; row < ROWS; row++)
			node->database.rows[COUNTERS][row].exists = node->database.rows[ACCOUNTS][row].exists = true;
		model.apply_percent[number] = 10 + random_below(80);
	}
}

static void
step_session(int number)
{
	int			session = (int) random_below(SESSIONS);
	Transaction *transaction = &model.nodes[number].sessions[session];

	switch (transaction->phase)
	{
		case IDLE:
			begin(transaction, number);
			break;
		case RUNNING:
			if (transaction->change_count > 0)
				propose(transaction);
			else
				run_statement(transaction);
			if (transaction->phase == RUNNING && transaction->change_count == 0)
				end_transaction(transaction);	/* there was nothing to change */
			break;
		case PROPOSED:
			append_to_log(transaction, session);
			break;
		default:
			break;
	}
}

static Violation
run_schedule(uint64_t seed)
{
	start_model(seed);
	for (int step = 0; step < STEPS && model.violation == NONE; step++)
	{
		int			number = (int) random_below(NODES);

		if (random_chance(model.apply_percent[number]))
			apply_next(number);
		else if (number == 0 || !model.hot_row_of_one_node)
			step_session(number);
	}
	for (int number = 0; number < NODES && model.violation == NONE; number++)
		while (model.nodes[number].applied < model.log_length)
			apply_next(number);
	for (int number = 1; number < NODES && model.violation == NONE; number++)
		if (memcmp(&model.nodes[number].database, &model.nodes[0].database, sizeof(Database)) != 0)
			violated(NODES_DISAGREE);
	return model.violation;
}

/* The violation that is found first, in at most SCHEDULES. */
static Violation
look_for_violation(Fault fault, uint64_t *seed)
{
	Violation	violation = NONE;

	model.fault = fault;
	for (*seed = 1; *seed <= SCHEDULES && violation == NONE; ++*seed)
		violation = run_schedule(*seed);
	return violation;
}

static void
nothing_breaks(void)
{
	uint64_t	seed;
	Violation	violation = look_for_violation(NO_FAULT, &seed);
	const uint32_t *verdicts = model.verdicts;

	if (!ok(violation == NONE, "no update is lost, keys stay unique, children have parents, what was locked or read stays, all nodes agree"))
		printf("# seed %lu: %s\n", (unsigned long) seed - 1, violation_names[violation]);
	printf("# applied %u, conflict %u, too old %u\n", verdicts[CERTIFIER_APPLY], verdicts[CERTIFIER_CONFLICT], verdicts[CERTIFIER_TOO_OLD]);
	ok(verdicts[CERTIFIER_APPLY] > 10 * SCHEDULES && verdicts[CERTIFIER_CONFLICT] > 10 * SCHEDULES && verdicts[CERTIFIER_TOO_OLD] > SCHEDULES,
	   "and that was put to the test: many entries took effect, many came too late");
	ok(verdicts[CERTIFIER_MALFORMED] == 0, "none was malformed");
}

static void
a_hot_row_of_one_node_is_never_rejected(void)
{
	bool		holds = true;

	memset(model.verdicts, 0, sizeof(model.verdicts));
	model.hot_row_of_one_node = true;
	for (uint64_t seed = 1; seed <= SCHEDULES; seed++)
		holds = holds && run_schedule(seed) == NONE;
	model.hot_row_of_one_node = false;
	ok(holds && model.verdicts[CERTIFIER_APPLY] > SCHEDULES, "a row that only one node writes counts all its updates");
	ok(model.verdicts[CERTIFIER_CONFLICT] == 0 && model.verdicts[CERTIFIER_TOO_OLD] == 0, "and none of them is rejected");
}

static void
a_fault_is_found(Fault fault, const char *name)
{
	uint64_t	seed;
	Violation	violation = look_for_violation(fault, &seed);

	ok(violation != NONE, name);
	if (violation != NONE)
		printf("# seed %lu: %s\n", (unsigned long) seed - 1, violation_names[violation]);
}

int
main(void)
{
	model.key_capacity = KEY_CAPACITY;
	nothing_breaks();
	a_hot_row_of_one_node_is_never_rejected();
	a_fault_is_found(UNIQUE_KEY_FORGOTTEN, "found: a unique key that is forgotten");
	a_fault_is_found(ROW_FORGOTTEN, "found: a row that is forgotten");
	a_fault_is_found(BASE_ONE_TOO_HIGH, "found: a base that is one too high");
	a_fault_is_found(BASE_OF_THE_COMMIT, "found: what was read, with a base later than the snapshot's");
	a_fault_is_found(FLOOR_DIFFERS, "found: a floor that differs between nodes");
	a_fault_is_found(ROW_LOCK_NOT_CERTIFIED, "found: a row lock that is not certified");
	a_fault_is_found(PARENT_LOCK_NOT_CERTIFIED, "found: the lock of a parent by a foreign key that is not certified");
	a_fault_is_found(DELETION_AS_UPDATE, "found: a deletion that is certified as if foreign keys could still refer to the row");
	a_fault_is_found(READS_NOT_CERTIFIED, "found: a serializable transaction whose reads are not certified");
	a_fault_is_found(TABLE_OF_READ_ROW_NOT_CERTIFIED, "found: the read of a row that does not say of which table");
	a_fault_is_found(TABLE_LOCK_NOT_CERTIFIED, "found: a lock of a table that is not certified");
	for (int number = 0; number < NODES; number++)
		free(model.nodes[number].memory);
	return tap_done();
}
