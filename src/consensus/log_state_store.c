/*
 * log_state_store.c
 *	  Log states in files and for SQL, and how one advances along the chosen log.
 *
 * Process: compactor, consensus worker (at its start), backends in quorum.log_state().  Must never take an entry for anything else than the
 * consensus worker did: the verdict is computed once more, by the same code from the same log, and compared.
 *
 * Memory: certification's, 60 MB when full, one value of the log, and pieces of fixed size.
 *
 * Locks: none; see log_state_file.h for who replaces files.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "consensus/core/base.h"
#include "consensus/log_state_store.h"
#include "consensus/verdict.h"
#include "shared/identity.h"
#include "shared/member_config.h"
#include "shared/proposal_queue.h"

PG_FUNCTION_INFO_V1(quorum_log_state);

static void *
allocate(void *context, size_t size)
{
	return MemoryContextAllocHuge((MemoryContext) context, size);
}

static void
release(void *context, void *pointer)
{
	pfree(pointer);
}

void
log_state_begin(LogState *state, MemoryContext context)
{
	PaxosAllocator allocator = {allocate, release, context};

	if (!log_state_init(state, &allocator, CERTIFIER_KEY_CAPACITY, CERTIFIER_TOKEN_CAPACITY))
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
}

/* A node that joined was told a configuration of later; the one in force at its index it finds in the log. */
void
log_state_set_bootstrap(LogState *state)
{
	IdentityFile identity;

	identity_read(&identity);
	if (identity.config_slot == 0)
		log_state_set_config(state, 0, (uint8 *) identity.config_bytes, identity.config_length);
	pfree(identity.config_bytes);
}

/* ---- files ---- */

static bool
read_from_file(void *context, void *bytes, size_t length)
{
	return log_state_file_read(context, bytes, length);
}

/* What only this side of the codec can tell. */
static const char *
check_config(const LogState *state)
{
	MemberConfig *config = palloc(sizeof(MemberConfig));
	bool		is_valid = member_config_decode(config, (char *) state->config_bytes, state->config_length);

	pfree(config);
	return is_valid ? NULL : "its configuration is malformed";
}

static const char *
decode_file(LogState *state, LogStateFile *file, uint64 cluster_id, LogStateHead *head)
{
	uint8		bytes[LOG_STATE_HEAD_BYTES];
	const char *why;

	if (!log_state_file_read(file, bytes, sizeof(bytes)))
		return "it is too short";
	why = log_state_decode_head(bytes, head);
	if (why != NULL)
		return why;
	if (head->cluster_id != cluster_id)
		return "it belongs to another cluster";
	state->index = head->index;
	state->last_applied = head->last_applied;
	if (!log_state_decode(state, read_from_file, file, &why))
		return why;
	if (!log_state_file_ends_here(file))
		return "its checksum is wrong";
	return check_config(state);
}

LogStateFound
log_state_load(LogState *state, const char *path, uint64 cluster_id, LogStateHead *head, const char **why)
{
	LogStateFile file;

	if (!log_state_file_open(&file, path))
		return LOG_STATE_NONE;
	*why = decode_file(state, &file, cluster_id, head);
	log_state_file_close(&file);
	return *why == NULL ? LOG_STATE_LOADED : LOG_STATE_DAMAGED;
}

static LogStateHead
make_head(const LogState *state, const NodeIdentity *identity)
{
	LogStateHead head = {
		.node_id = identity->node_id,
		.cluster_id = identity->cluster_id,
		.index = state->index,
		.last_applied = state->last_applied,
		.body_bytes = log_state_body_bytes(state)
	};

	return head;
}

static bool
write_to_file(void *context, const void *bytes, size_t length)
{
	CHECK_FOR_INTERRUPTS();
	log_state_file_append(context, bytes, length);
	return true;
}

void
log_state_store(const LogState *state, const NodeIdentity *identity, const char *path)
{
	LogStateHead head = make_head(state, identity);
	LogStateFile file;
	uint8		bytes[LOG_STATE_HEAD_BYTES];

	log_state_encode_head(&head, bytes);
	log_state_file_create(&file, path);
	log_state_file_append(&file, bytes, sizeof(bytes));
	if (!log_state_encode(state, write_to_file, &file))
		elog(ERROR, "the log state of index %llu was not encoded", (unsigned long long) state->index);
	log_state_file_finish(&file);
}

/* ---- advancing ---- */

static void
report_other_verdict(const LogItem *item, LogVerdict verdict, const CertifierVerdict *certifier_verdict)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("the verdict over log index " UINT64_FORMAT " is not what it was when the entry was delivered", item->index),
			 errdetail("It was %d, reason %d, against index " UINT64_FORMAT "; now it is %d, reason %d, against index " UINT64_FORMAT ".",
					   (int) item->verdict, (int) item->reason, item->conflict_index, (int) verdict, (int) certifier_verdict->reason,
					   certifier_verdict->conflict_index),
			 errhint("The log of this node is not trimmed any more. Replace the node by a new one, and please report this.")));
}

static void
note_entry(LogState *state, const LogItem *item)
{
	PaxosProposalId id = {item->origin, item->incarnation, item->sequence};
	bool		duplicate = item->value_kind != PAXOS_VALUE_NOOP && paxos_origins_note(&state->origins, id);
	char	   *payload = item->value_kind != PAXOS_VALUE_NOOP && !duplicate ? chosen_log_read_payload(item) : NULL;
	CertifierVerdict certifier_verdict;
	LogVerdict	verdict = entry_verdict(&state->certifier, item->index, (PaxosValueKind) item->value_kind, duplicate,
										(uint8 *) payload, payload != NULL ? item->length : 0, &certifier_verdict);

	if (verdict != item->verdict || certifier_verdict.reason != item->reason || certifier_verdict.conflict_index != item->conflict_index)
		report_other_verdict(item, verdict, &certifier_verdict);
	if (verdict == LOG_VERDICT_CONFIG)
		log_state_set_config(state, item->index, (uint8 *) payload, item->length);
	if (verdict == LOG_VERDICT_APPLY)
		state->last_applied = item->index;
	state->index = item->index;
	if (payload != NULL)
		pfree(payload);
}

void
log_state_advance(LogState *state, uint64 to_index)
{
	while (state->index < to_index)
	{
		LogItem		item;

		CHECK_FOR_INTERRUPTS();
		chosen_log_read_item(state->index + 1, &item);
		note_entry(state, &item);
	}
}

uint8 *
log_state_make_base(const LogState *state, Size *length)
{
	PaxosConfig config;
	uint8	   *bytes;

	if (paxos_config_decode(&config, state->config_bytes, state->config_length) == 0)
		elog(ERROR, "the configuration at log index %llu is malformed", (unsigned long long) state->config_slot);
	config.slot = state->config_slot;
	*length = paxos_base_size(&config, &state->origins);
	bytes = palloc_extended(*length, MCXT_ALLOC_HUGE);
	(void) paxos_base_encode(state->index, &config, &state->origins, bytes, *length);
	return bytes;
}

/* ---- SQL ---- */

/* What a node that copies tables as of an index needs beside their rows. */
static void
load_for_index(LogState *state, const NodeIdentity *identity, uint64 at_index)
{
	LogStateHead head;
	const char *why = NULL;
	LogStateFound found = log_state_load(state, LOG_STATE_PATH, identity->cluster_id, &head, &why);

	if (found == LOG_STATE_DAMAGED)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("file \"%s\" cannot be read", LOG_STATE_PATH),
				 errdetail("Of that log state: %s.", why)));
	if (found == LOG_STATE_NONE)
		log_state_set_bootstrap(state);
	if (state->index > at_index)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the state of the log at index " UINT64_FORMAT " is no longer known", at_index),
				 errdetail("Its log state has moved on to index " UINT64_FORMAT ".", state->index),
				 errhint("Ask again for the index of a newer snapshot.")));
}

static bool
write_to_buffer(void *context, const void *bytes, size_t length)
{
	char	  **end = context;

	memcpy(*end, bytes, length);
	*end += length;
	return true;
}

static bytea *
make_bytes(const LogState *state, const NodeIdentity *identity)
{
	LogStateHead head = make_head(state, identity);
	Size		length = LOG_STATE_HEAD_BYTES + head.body_bytes + LOG_STATE_TAIL_BYTES;
	bytea	   *result = palloc(VARHDRSZ + length);
	char	   *end = VARDATA(result) + LOG_STATE_HEAD_BYTES;

	SET_VARSIZE(result, VARHDRSZ + length);
	log_state_encode_head(&head, (uint8 *) VARDATA(result));
	(void) log_state_encode(state, write_to_buffer, &end);
	log_state_put_checksum(VARDATA(result), length);
	return result;
}

Datum
quorum_log_state(PG_FUNCTION_ARGS)
{
	int64		at_index = PG_GETARG_INT64(0);
	NodeIdentity identity;
	LogState	state;
	bytea	   *volatile result = NULL;

	shmem_get_identity(&identity);
	if (identity.node_id == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this instance is not a member of a cluster")));
	if (at_index < 1 || (uint64) at_index > turn_chosen_index())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("log index %lld is not in the log of this node", (long long) at_index)));
	log_state_begin(&state, CurrentMemoryContext);
	PG_TRY();
	{
		load_for_index(&state, &identity, (uint64) at_index);
		log_state_advance(&state, (uint64) at_index);
		if (state.config_bytes == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the configuration at log index %lld is not known to this node", (long long) at_index),
					 errdetail("It joined later; ask an older member.")));
		result = make_bytes(&state, &identity);
	}
	PG_FINALLY();
	{
		log_state_free(&state);
	}
	PG_END_TRY();
	PG_RETURN_BYTEA_P(result);
}
