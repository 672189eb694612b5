/*
 * token_memory.c
 *	  What is shared about the tokens that certification remembers, and the file that keeps their ages over a restart.
 *
 * Process: consensus worker (notes), client backends (ask), apply worker (learns from another node), compactor (saves).  Must never have a say in a verdict.
 *
 * Invariants
 *	 1. The clock never goes back while the shared memory lives, and after a restart does not begin behind where it was.
 *	 2. floor, has_fences, put_count and marked_epoch are published before anybody hears of the entry that changed them, and never fall.
 *	 3. What is saved was true: samples, and a clock that is not ahead of them.
 *
 * Locks: TokenMemory->lock.
 */
#include "postgres.h"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/fd.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "config.h"
#include "shared/clock_steps.h"
#include "shared/file_bytes.h"
#include "shared/identity.h"
#include "shared/shmem.h"
#include "shared/token_memory.h"

#define AGES_PATH QUORUM_DIRECTORY "/token_ages"
#define AGES_TEMPORARY_PATH AGES_PATH ".tmp"
#define AGES_MAGIC 0x51544F4B	/* "QTOK" */
#define AGES_VERSION 1
#define AGES_HEAD_BYTES 32
#define AGES_SAMPLE_BYTES 24
#define AGES_MAX_BYTES (AGES_HEAD_BYTES + TOKEN_AGES_SAMPLES * AGES_SAMPLE_BYTES + 4)
#define WARNING_INTERVAL_MS 60000
#define READING_MS 5			/* two clocks are read at the same moment, or there is another reading */
#define FENCE_ROLES 256			/* by what is left when a role's OID is divided by it */

typedef struct TokenMemory
{
	LWLock	   *lock;
	uint64		cluster_id;		/* under lock, as all up to the atomics; 0: nothing was begun */
	uint32		node_id;
	int64		clock_offset_ms;	/* the node's clock is the monotonic one and this */
	uint64		generation;		/* grows with each change of the samples */
	uint64		saved_generation;
	uint64		saved_clock_ms;
	TokenAges	ages;
	ClockSteps	clock_steps;
	int64		fences_until_us[FENCE_ROLES];	/* when all fences that a role put from here will have counted long enough, by monotonic_ms */

	/* the consensus worker writes them */
	pg_atomic_uint64 put_count;
	pg_atomic_uint64 floor;
	pg_atomic_uint64 key_middle;	/* half of certification's memory for keys is newer than this index; 0: that much was never put */
	pg_atomic_uint64 key_quarter;	/* three quarters of it are */
	pg_atomic_uint64 forgotten_early;
	pg_atomic_uint64 marked_epoch;	/* the last one of which a mark is known; all before it are marked too */
	pg_atomic_uint32 has_fences;
} TokenMemory;

static TokenMemory *memory = NULL;

Size
token_memory_shmem_size(void)
{
	return MAXALIGN(sizeof(TokenMemory));
}

void
token_memory_shmem_startup(void)
{
	bool		found;

	memory = ShmemInitStruct("pg_quorum tokens", token_memory_shmem_size(), &found);
	if (found)
		return;
	memset(memory, 0, sizeof(TokenMemory));
	memory->lock = &(GetNamedLWLockTranche("pg_quorum"))[2].lock;
	pg_atomic_init_u64(&memory->put_count, 0);
	pg_atomic_init_u64(&memory->floor, 0);
	pg_atomic_init_u64(&memory->key_middle, 0);
	pg_atomic_init_u64(&memory->key_quarter, 0);
	pg_atomic_init_u64(&memory->forgotten_early, 0);
	pg_atomic_init_u64(&memory->marked_epoch, 0);
	pg_atomic_init_u32(&memory->has_fences, 0);
}

/* ---- the clock ---- */

static int64
monotonic_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Under the lock. */
static uint64
clock_ms(void)
{
	return (uint64) (monotonic_ms() + memory->clock_offset_ms);
}

/* Under the lock; the wall clock is compared whenever tokens come or are asked for. */
static void
note_clocks(void)
{
	int64		before_ms = monotonic_ms();
	int64		wall_ms = GetCurrentTimestamp() / 1000;

	if (monotonic_ms() - before_ms <= READING_MS)
		clock_steps_note(&memory->clock_steps, before_ms, wall_ms);
}

static uint64
retention_age_ms(void)
{
	return (uint64) quorum_token_retention_age_s * 1000;
}

/* ---- client backends ---- */

static bool
have_room(uint32 spare)
{
	uint64		put_count = pg_atomic_read_u64(&memory->put_count);
	bool		has_room;

	if (quorum_token_retention_age_s == 0 || put_count + spare < CERTIFIER_TOKEN_CAPACITY)
		return true;
	LWLockAcquire(memory->lock, LW_SHARED);
	has_room = token_ages_have_room(&memory->ages, CERTIFIER_TOKEN_CAPACITY, put_count, spare, clock_ms(), retention_age_ms());
	LWLockRelease(memory->lock);
	return has_room;
}

void
token_memory_check_room(bool for_fence)
{
	if (have_room(for_fence ? TOKEN_MEMORY_RESERVE / 2 : TOKEN_MEMORY_RESERVE))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("too many transaction tokens for quorum.token_retention_age"),
			 errdetail("Of the %u tokens and fences that are remembered another one would displace one that this node has known for less than %d s, or does not know the age of.",
					   CERTIFIER_TOKEN_CAPACITY, quorum_token_retention_age_s),
			 errhint("Nothing was proposed. Retry later, use tokens for those transactions only that need one, or lower quorum.token_retention_age. "
					 "See quorum.token_memory.")));
}

void
token_memory_report_no_guard(uint64 under_way_ms)
{
	ereport(ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("too many transaction tokens for quorum.token_retention_age"),
			 errdetail("An earlier attempt with the token, up to %d s before this transaction began, might be forgotten before this one is committed; it began "
					   UINT64_FORMAT " ms ago.", quorum_token_retention_age_s, under_way_ms),
			 errhint("Nothing was proposed. Retry later, keep transactions with tokens short, use tokens for those only that need one, or lower "
					 "quorum.token_retention_age. See quorum.token_memory.")));
}

/* Each fence counts for its share of the time. */
static int64
fence_share_us(void)
{
	return (int64) quorum_token_retention_age_s * USECS_PER_SEC / TOKEN_MEMORY_FENCES;
}

void
token_memory_take_fence(void)
{
	int64	   *until_us = &memory->fences_until_us[GetSessionUserId() % FENCE_ROLES];
	int64		now_us = monotonic_ms() * 1000;
	bool		is_taken;

	if (quorum_token_retention_age_s == 0)
		return;
	LWLockAcquire(memory->lock, LW_EXCLUSIVE);
	*until_us = Max(*until_us, now_us);
	is_taken = *until_us + fence_share_us() <= now_us + quorum_token_retention_age_s * USECS_PER_SEC;
	if (is_taken)
		*until_us += fence_share_us();
	LWLockRelease(memory->lock);
	if (is_taken)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("too many outcomes of transactions were asked for"),
			 errdetail("To give up one that is not known takes the room of a token. For one user this node does so at most %u times within %d s.",
					   TOKEN_MEMORY_FENCES, quorum_token_retention_age_s),
			 errhint("Nothing was proposed. Retry later, or ask another node.")));
}

void
token_memory_give_back_fence(void)
{
	LWLockAcquire(memory->lock, LW_EXCLUSIVE);
	memory->fences_until_us[GetSessionUserId() % FENCE_ROLES] -= fence_share_us();
	LWLockRelease(memory->lock);
}

uint64
token_memory_floor(void)
{
	return pg_atomic_read_u64(&memory->floor);
}

bool
token_memory_needs_fence(void)
{
	return pg_atomic_read_u32(&memory->has_fences) == 0 && pg_atomic_read_u64(&memory->put_count) >= CERTIFIER_TOKEN_CAPACITY / 2;
}

uint64
token_memory_under_way_ms(TimestampTz began_at)
{
	int64		under_way_ms;

	LWLockAcquire(memory->lock, LW_EXCLUSIVE);
	note_clocks();
	under_way_ms = clock_steps_under_way_ms(&memory->clock_steps, monotonic_ms(), GetCurrentTimestamp() / 1000, began_at / 1000);
	LWLockRelease(memory->lock);
	return (uint64) under_way_ms;
}

/* Of one moment: that the guard is found with the sample that tells the index. */
uint64
token_memory_retained_from(uint64 more_ms, uint64 *guard)
{
	const TokenSample *sample;
	uint64		age_ms = retention_age_ms() + more_ms;
	uint64		put_count = pg_atomic_read_u64(&memory->put_count);
	uint64		now_ms;
	uint64		index;

	LWLockAcquire(memory->lock, LW_SHARED);
	now_ms = clock_ms();
	sample = token_ages_newest_of_age(&memory->ages, now_ms, age_ms);
	index = sample != NULL ? sample->index : 0;
	*guard = token_ages_guard(&memory->ages, CERTIFIER_TOKEN_CAPACITY, put_count, TOKEN_MEMORY_RESERVE, now_ms, age_ms);
	LWLockRelease(memory->lock);
	return index;
}

bool
token_memory_unmarked(uint64 *first, uint64 *last)
{
	*last = token_epoch_of(CERTIFIER_TOKEN_CAPACITY, pg_atomic_read_u64(&memory->put_count));
	*first = token_epoch_first_to_mark(*last, pg_atomic_read_u64(&memory->marked_epoch));
	return *first <= *last;
}

uint64
token_memory_key_middle(void)
{
	return pg_atomic_read_u64(&memory->key_middle);
}

uint64
token_memory_key_quarter(void)
{
	return pg_atomic_read_u64(&memory->key_quarter);
}

void
token_memory_get(TokenMemoryStatus *status)
{
	uint64		put_count = pg_atomic_read_u64(&memory->put_count);

	status->remembered = Min(put_count, CERTIFIER_TOKEN_CAPACITY);
	status->floor = token_memory_floor();
	status->forgotten_early = pg_atomic_read_u64(&memory->forgotten_early);
	status->has_room = have_room(TOKEN_MEMORY_RESERVE);
	LWLockAcquire(memory->lock, LW_SHARED);
	status->has_oldest = token_ages_oldest(&memory->ages, CERTIFIER_TOKEN_CAPACITY, put_count, clock_ms(), &status->oldest_age_ms);
	LWLockRelease(memory->lock);
}

/* ---- consensus worker ---- */

static void
note_sample(uint64 put_count, uint64 index)
{
	TokenSample now = {.put_count = put_count, .index = index};
	uint32		count;

	LWLockAcquire(memory->lock, LW_EXCLUSIVE);
	note_clocks();
	now.clock_ms = clock_ms();
	count = memory->ages.count;
	token_ages_note(&memory->ages, CERTIFIER_TOKEN_CAPACITY, &now);
	if (memory->ages.count != count)
		memory->generation++;
	LWLockRelease(memory->lock);
}

/* Another node of the cluster has another setting, or an older build; or this one does not know the ages. */
static void
count_forgotten_early(uint64 old_put_count, uint64 put_count)
{
	static int64 last_warning_ms = 0;
	uint64		forgotten;

	if (quorum_token_retention_age_s == 0 || put_count <= CERTIFIER_TOKEN_CAPACITY)
		return;
	LWLockAcquire(memory->lock, LW_SHARED);
	forgotten = token_ages_forgotten_early(&memory->ages, CERTIFIER_TOKEN_CAPACITY, old_put_count, put_count, clock_ms(), retention_age_ms());
	LWLockRelease(memory->lock);
	if (forgotten == 0)
		return;
	pg_atomic_fetch_add_u64(&memory->forgotten_early, forgotten);
	if (last_warning_ms != 0 && monotonic_ms() - last_warning_ms < WARNING_INTERVAL_MS)
		return;
	last_warning_ms = monotonic_ms();
	ereport(WARNING,
			(errmsg("transaction tokens are forgotten that may be younger than quorum.token_retention_age"),
			 errdetail("More than %u tokens and fences came within %d s.", CERTIFIER_TOKEN_CAPACITY, quorum_token_retention_age_s),
			 errhint("Do all members run this version, with the same quorum.token_retention_age? See quorum.token_memory.")));
}

/* The index of which so many keys are as new, or newer. */
static uint64
index_of_newest_keys(const Certifier *certifier, uint32 newest)
{
	uint32		count = certifier_recent_count(&certifier->keys);
	uint64		key,
				index;

	if (count < newest)
		return 0;
	certifier_recent_get(&certifier->keys, count - newest, &key, &index);
	return index;
}

static void
publish_keys(const Certifier *certifier)
{
	uint32		quarter = certifier->keys.capacity / 4;

	pg_atomic_write_u64(&memory->key_middle, index_of_newest_keys(certifier, 2 * quarter));
	pg_atomic_write_u64(&memory->key_quarter, index_of_newest_keys(certifier, 3 * quarter));
}

/* Usually it is the one that has begun last, and known already.  Marks that certification has forgotten are put once more. */
static void
publish_marks(const Certifier *certifier)
{
	uint64		marked = pg_atomic_read_u64(&memory->marked_epoch);
	uint64		last = token_epoch_of(CERTIFIER_TOKEN_CAPACITY, certifier->tokens.put_count);

	for (uint64 epoch = last; epoch > marked && last - epoch < TOKEN_EPOCHS; epoch--)
		if (certifier_last_index(certifier, token_epoch_key(epoch), CERTIFIER_TABLE_ROW_EXCLUSIVE) != 0)
		{
			pg_atomic_write_u64(&memory->marked_epoch, epoch);
			return;
		}
}

/*
 * What never falls: somebody may hold a verdict, or have applied an entry, that is newer than the log as a worker that was started anew knows it at
 * first.
 */
static void
publish(const Certifier *certifier, uint64 index)
{
	pg_atomic_write_u64(&memory->floor, Max(token_memory_floor(), certifier->token_floor));
	if (certifier->has_fences)
		pg_atomic_write_u32(&memory->has_fences, 1);
	note_sample(certifier->tokens.put_count, index);
	pg_atomic_write_u64(&memory->put_count, Max(pg_atomic_read_u64(&memory->put_count), certifier->tokens.put_count));
}

void
token_memory_note(const Certifier *certifier, uint64 index)
{
	uint64		old_put_count = pg_atomic_read_u64(&memory->put_count);

	publish_keys(certifier);
	publish_marks(certifier);
	if (certifier->tokens.put_count <= old_put_count)
		return;
	count_forgotten_early(old_put_count, certifier->tokens.put_count);
	publish(certifier, index);
}

void
token_memory_restored(const Certifier *certifier, uint64 index)
{
	LWLockAcquire(memory->lock, LW_EXCLUSIVE);
	token_ages_drop_behind(&memory->ages, certifier->tokens.put_count, index);
	LWLockRelease(memory->lock);
	publish_keys(certifier);
	publish_marks(certifier);
	publish(certifier, index);
}

/* ---- from node to node ---- */

int
token_memory_get_samples(TokenSample *samples)
{
	int			count;
	uint64		now_ms;

	LWLockAcquire(memory->lock, LW_SHARED);
	now_ms = clock_ms();
	count = (int) memory->ages.count;
	for (int i = 0; i < count; i++)
	{
		samples[i] = memory->ages.samples[i];
		samples[i].clock_ms = now_ms - samples[i].clock_ms;
	}
	LWLockRelease(memory->lock);
	return count;
}

/* The clock is put forward if the other node's samples are older than it; its own, which that would make older, go. */
bool
token_memory_learn(const TokenSample *samples, int count)
{
	TokenAges  *ages = palloc0(sizeof(TokenAges));
	uint64		now_ms;
	uint64		oldest_ms = count > 0 ? samples[0].clock_ms : 0;
	bool		is_valid = count > 0 && count <= TOKEN_AGES_SAMPLES && oldest_ms <= PG_INT64_MAX / 4;

	LWLockAcquire(memory->lock, LW_EXCLUSIVE);
	now_ms = Max(clock_ms(), oldest_ms);
	if (is_valid)
	{
		ages->count = (uint32) count;
		memcpy(ages->samples, samples, count * sizeof(TokenSample));
		for (int i = 0; i < count; i++)
			ages->samples[i].clock_ms = samples[i].clock_ms <= now_ms ? now_ms - samples[i].clock_ms : PG_UINT64_MAX;
		is_valid = token_ages_are_valid(ages, now_ms);
	}
	if (is_valid)
	{
		memory->clock_offset_ms += (int64) (now_ms - clock_ms());
		memory->ages = *ages;
		memory->generation++;
	}
	LWLockRelease(memory->lock);
	pfree(ages);
	return is_valid;
}

/* ---- the file ---- */

static void
put_u32(StringInfo content, uint32 number)
{
	uint8		bytes[4];

	put_uint32(bytes, number);
	appendBinaryStringInfo(content, (char *) bytes, sizeof(bytes));
}

static void
put_u64(StringInfo content, uint64 number)
{
	uint8		bytes[8];

	put_uint64(bytes, number);
	appendBinaryStringInfo(content, (char *) bytes, sizeof(bytes));
}

/* Under the lock; the buffer has room for all. */
static void
encode(StringInfo content, uint64 clock)
{
	put_u32(content, AGES_MAGIC);
	put_u32(content, AGES_VERSION);
	put_u64(content, memory->cluster_id);
	put_u32(content, memory->node_id);
	put_u64(content, clock);
	put_u32(content, memory->ages.count);
	for (uint32 i = 0; i < memory->ages.count; i++)
	{
		put_u64(content, memory->ages.samples[i].put_count);
		put_u64(content, memory->ages.samples[i].index);
		put_u64(content, memory->ages.samples[i].clock_ms);
	}
	put_u32(content, crc_of(content->data, content->len));
}

/* What the file says, if it is of this cluster and node; false: it is of no use. */
static bool
decode(const uint8 *bytes, Size length, uint64 cluster_id, uint32 node_id, uint64 *clock, TokenAges *ages)
{
	const uint8 *sample = bytes + AGES_HEAD_BYTES;

	if (length < AGES_HEAD_BYTES + 4 || get_uint32(bytes) != AGES_MAGIC || get_uint32(bytes + 4) != AGES_VERSION ||
		get_uint64(bytes + 8) != cluster_id || get_uint32(bytes + 16) != node_id)
		return false;
	*clock = get_uint64(bytes + 20);
	ages->count = get_uint32(bytes + 28);
	if (*clock > PG_INT64_MAX / 2 || ages->count > TOKEN_AGES_SAMPLES || length != AGES_HEAD_BYTES + ages->count * AGES_SAMPLE_BYTES + 4 ||
		crc_of(bytes, length - 4) != get_uint32(bytes + length - 4))
		return false;
	for (uint32 i = 0; i < ages->count; i++, sample += AGES_SAMPLE_BYTES)
	{
		ages->samples[i].put_count = get_uint64(sample);
		ages->samples[i].index = get_uint64(sample + 8);
		ages->samples[i].clock_ms = get_uint64(sample + 16);
	}
	return token_ages_are_valid(ages, *clock);
}

static bool
load(uint64 cluster_id, uint32 node_id, uint64 *clock, TokenAges *ages)
{
	uint8		bytes[AGES_MAX_BYTES + 1];
	int			fd = OpenTransientFile(AGES_PATH, O_RDONLY | PG_BINARY);
	ssize_t		length;

	if (fd < 0)
		return false;
	length = read(fd, bytes, sizeof(bytes));
	CloseTransientFile(fd);
	return length > 0 && decode(bytes, (Size) length, cluster_id, node_id, clock, ages);
}

void
token_memory_begin(uint64 cluster_id, uint32 node_id)
{
	TokenAges  *ages = palloc0(sizeof(TokenAges));
	uint64		clock = 0;
	bool		is_known;

	LWLockAcquire(memory->lock, LW_SHARED);
	is_known = memory->cluster_id == cluster_id && memory->node_id == node_id;
	LWLockRelease(memory->lock);
	if (!is_known)
	{
		if (!load(cluster_id, node_id, &clock, ages))
			clock = ages->count = 0;
		LWLockAcquire(memory->lock, LW_EXCLUSIVE);
		memory->cluster_id = cluster_id;
		memory->node_id = node_id;
		memory->clock_offset_ms = (int64) clock - monotonic_ms();
		memory->ages = *ages;
		memory->saved_generation = ++memory->generation;
		memory->saved_clock_ms = clock;
		LWLockRelease(memory->lock);
		pg_atomic_write_u64(&memory->floor, 0);
		pg_atomic_write_u64(&memory->put_count, 0);
		pg_atomic_write_u64(&memory->marked_epoch, 0);
		pg_atomic_write_u32(&memory->has_fences, 0);
	}
	pfree(ages);
}

/* Time that has passed is worth saving until the newest sample is old enough to count. */
static bool
is_worth_saving(uint64 clock)
{
	const TokenAges *ages = &memory->ages;

	if (ages->count == 0)
		return false;
	return memory->generation != memory->saved_generation ||
		memory->saved_clock_ms < ages->samples[ages->count - 1].clock_ms + retention_age_ms();
}

void
token_memory_save(void)
{
	StringInfoData content;
	NodeIdentity identity;
	uint64		generation;
	uint64		clock;

	shmem_get_identity(&identity);
	if (identity.node_id == 0 || !identity_exists())
		return;
	initStringInfo(&content);
	enlargeStringInfo(&content, AGES_MAX_BYTES);
	LWLockAcquire(memory->lock, LW_SHARED);
	clock = clock_ms();
	generation = memory->generation;
	if (memory->cluster_id == identity.cluster_id && memory->node_id == identity.node_id && is_worth_saving(clock))
		encode(&content, clock);
	LWLockRelease(memory->lock);
	if (content.len > 0)
	{
		file_replace(AGES_PATH, AGES_TEMPORARY_PATH, &content);
		LWLockAcquire(memory->lock, LW_EXCLUSIVE);
		memory->saved_generation = generation;
		memory->saved_clock_ms = clock;
		LWLockRelease(memory->lock);
	}
	pfree(content.data);
}
