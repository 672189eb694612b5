/*
 * delivery.c
 *	  Chosen entries, in log order: verdict, item in the chosen log, news for the backend that waits.  Process: consensus worker.
 *
 * Must never look at tables: the verdict follows from the log alone, so every node and every restart finds the same.
 *
 * Invariants
 *	 1. The item of an index is in the chosen log before its backend or the apply worker hears of it.
 *	 2. proposal_learned is called in log order, and before chosen_index is published.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "consensus/transport/transport.h"
#include "consensus/worker_internal.h"
#include "shared/chosen_log.h"
#include "shared/proposal_queue.h"
#include "shared/writeset.h"

#define ITEMS_PER_WRITE 256
#define CATCH_UP_ENTRIES PAXOS_MAX_ENTRIES_PER_MESSAGE

/* Where the last ACCEPTED record of each recent slot stands in the journal. */
typedef struct PlaceOfSlot
{
	PaxosSlot	slot;
	JournalPlace place;
} PlaceOfSlot;

static PlaceOfSlot *places = NULL;	/* ring, slot s at s & (place_capacity - 1) */
static uint64 place_capacity = 0;
static PaxosSlot last_delivered = 0;
static Certifier certifier;

static PlaceOfSlot *
place_of(PaxosSlot slot)
{
	return &places[slot & (place_capacity - 1)];
}

static void
grow_places(void)
{
	PlaceOfSlot *old_places = places;
	uint64		old_capacity = place_capacity;

	place_capacity = Max(old_capacity * 2, WINDOW_SLOTS);
	places = MemoryContextAllocExtended(TopMemoryContext, place_capacity * sizeof(PlaceOfSlot), MCXT_ALLOC_ZERO | MCXT_ALLOC_HUGE);
	for (uint64 i = 0; i < old_capacity; i++)
		if (old_places[i].slot > last_delivered)
			*place_of(old_places[i].slot) = old_places[i];
	if (old_places != NULL)
		pfree(old_places);
}

/*
 * The ring grows in recovery: in the journal the hint that a slot is chosen may stand after acceptances of slots that the delivery of that
 * slot had made room for, a window or more further on.
 */
void
delivery_note_place(PaxosSlot slot, JournalPlace place)
{
	PlaceOfSlot *entry;

	if (slot <= last_delivered)
		return;					/* accepted once more: delivered long ago */
	while (place_capacity == 0 || (place_of(slot)->slot > last_delivered && place_of(slot)->slot != slot))
		grow_places();
	entry = place_of(slot);
	entry->slot = slot;
	entry->place = place;
}

/* Fresh memory of the system's, which it gives page by page as it is used. */
static void
create_certifier(void)
{
	void	   *memory = calloc(1, certifier_memory_size(CERTIFIER_KEY_CAPACITY, CERTIFIER_TOKEN_CAPACITY));

	if (memory == NULL)
		ereport(FATAL, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	certifier_init(&certifier, memory, CERTIFIER_KEY_CAPACITY, CERTIFIER_TOKEN_CAPACITY);
}

/* A write set that cannot be read is the same on every node, so rejecting it is a verdict like any other. */
static LogVerdict
data_verdict(const PaxosChosen *chosen, CertifierVerdict *verdict)
{
	PaxosValue *value = chosen->value;
	WriteSetHeader header;
	CertifierEntry entry = {.index = chosen->slot};

	verdict->reason = CERTIFIER_MALFORMED;
	verdict->conflict_index = chosen->slot;
	if (!writeset_peek_header((const char *) value->bytes, value->length, &header))
		return LOG_VERDICT_REJECTED;
	entry.base = header.base;
	if ((header.flags & WRITESET_NONCE) != 0)
		entry.proposal = header.token;
	else
		entry.token = header.token;
	entry.is_fence = (header.flags & WRITESET_FENCE) != 0;
	entry.key_count = header.key_count;
	entry.keys = (const uint8 *) header.keys;
	if (certifier.keys.capacity == 0)
		create_certifier();
	certify(&certifier, &entry, verdict);
	return verdict->reason == CERTIFIER_APPLY ? LOG_VERDICT_APPLY : LOG_VERDICT_REJECTED;
}

static LogVerdict
verdict_of(const PaxosChosen *chosen, CertifierVerdict *verdict)
{
	if (chosen->duplicate)
		return LOG_VERDICT_DUPLICATE;
	switch (chosen->value->kind)
	{
		case PAXOS_VALUE_NOOP:
			return LOG_VERDICT_NOOP;
		case PAXOS_VALUE_CONFIG:
			members_take_config(chosen->slot, (const char *) chosen->value->bytes, chosen->value->length);
			return LOG_VERDICT_CONFIG;
		case PAXOS_VALUE_DATA:
			return data_verdict(chosen, verdict);
	}
	elog(FATAL, "chosen value of unknown kind %d at log index %llu", (int) chosen->value->kind,
		 (unsigned long long) chosen->slot);
}

static void
make_item(const PaxosChosen *chosen, LogItem *item, CertifierVerdict *verdict)
{
	PaxosValue *value = chosen->value;
	PlaceOfSlot *place = place_of(chosen->slot);

	if (place->slot != chosen->slot || place->place.length != value->length)
		elog(FATAL, "log index %llu was delivered without being in the journal", (unsigned long long) chosen->slot);

	memset(item, 0, sizeof(LogItem));
	memset(verdict, 0, sizeof(CertifierVerdict));
	item->verdict = verdict_of(chosen, verdict);
	item->reason = (uint8) verdict->reason;
	item->conflict_index = verdict->conflict_index;
	item->value_kind = (uint8) value->kind;
	item->origin = value->id.origin;
	item->incarnation = value->id.incarnation;
	item->sequence = value->id.sequence;
	item->segment_number = place->place.segment_number;
	item->offset = place->place.offset;
	item->length = value->length;
	item->payload_crc = place->place.crc;
}

static void
tell_backends(uint64 first_index, const LogItem *items, const CertifierVerdict *verdicts, int count)
{
	for (int i = 0; i < count; i++)
	{
		const LogItem *item = &items[i];

		if (item->origin != worker.journal_identity.node_id || item->incarnation != worker.incarnation)
			continue;
		worker.delivered_own = worker.apply_is_urgent = true;
		/* a duplicate whose first occurrence told finds nobody; one that is too old to be known took no effect */
		proposal_learned(item->sequence, first_index + i,
						 item->verdict == LOG_VERDICT_APPLY || item->verdict == LOG_VERDICT_CONFIG, &verdicts[i]);
	}
}

void
delivery_chosen(const PaxosChosen *chosen, size_t count)
{
	LogItem		items[ITEMS_PER_WRITE];
	CertifierVerdict verdicts[ITEMS_PER_WRITE];

	for (size_t done = 0; done < count;)
	{
		int			batch = Min(count - done, ITEMS_PER_WRITE);

		for (int i = 0; i < batch; i++)
			make_item(&chosen[done + i], &items[i], &verdicts[i]);
		last_delivered = chosen[done + batch - 1].slot;
		chosen_log_write(chosen[done].slot, items, batch);
		if (!worker.restoring)
			tell_backends(chosen[done].slot, items, verdicts, batch);
		if (publish_chosen_index(chosen[done + batch - 1].slot))
			worker.entries_to_apply += batch;
		done += batch;
	}
}

/*
 * A peer asked for slots that have left the core's window: one frame of them from the chosen log.  The peer's next report makes the core ask
 * for more.
 */
void
delivery_serve_catch_up(const PaxosCatchUp *request)
{
	PaxosValue *values[CATCH_UP_ENTRIES];
	size_t		count = 0;
	size_t		bytes = 0;
	size_t		frame_length = 0;
	uint8	   *frame;

	for (PaxosSlot slot = request->first_slot;
		 slot <= request->last_slot && count < CATCH_UP_ENTRIES && (count == 0 || bytes < PAXOS_FRAME_TARGET_BYTES);
		 slot++)
	{
		LogItem		item;
		char	   *payload;
		PaxosProposalId id;

		chosen_log_read_item(slot, &item);
		payload = chosen_log_read_payload(&item);
		id.origin = item.origin;
		id.incarnation = item.incarnation;
		id.sequence = item.sequence;
		values[count++] = paxos_value_make(&worker.allocator, (PaxosValueKind) item.value_kind, id,
										   (uint8_t *) payload, item.length);
		bytes += item.length;
		pfree(payload);
	}
	frame = worker_frame_buffer(bytes + 4096 + count * 128);
	(void) paxos_encode_learn(worker.core, request->first_slot, values, count, frame, worker.frame_capacity,
							  &frame_length);
	(void) transport_send(request->to, frame, frame_length);
	for (size_t i = 0; i < count; i++)
		paxos_value_release(&worker.allocator, values[i]);
}
