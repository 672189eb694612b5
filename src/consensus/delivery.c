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
#include "consensus/verdict.h"
#include "consensus/worker_internal.h"
#include "shared/chosen_log.h"
#include "shared/proposal_queue.h"
#include "shared/token_memory.h"

#define ITEMS_PER_WRITE 256
#define CATCH_UP_ENTRIES PAXOS_MAX_ENTRIES_PER_MESSAGE
#define TRIMMED_FRAME_BYTES 1024

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
static Certifier *
get_certifier(void)
{
	void	   *memory;

	if (certifier.keys.capacity != 0)
		return &certifier;
	memory = calloc(1, certifier_memory_size(CERTIFIER_KEY_CAPACITY, CERTIFIER_TOKEN_CAPACITY));
	if (memory == NULL)
		ereport(FATAL, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	certifier_init(&certifier, memory, CERTIFIER_KEY_CAPACITY, CERTIFIER_TOKEN_CAPACITY);
	return &certifier;
}

/* The memory is ours from here on. */
void
delivery_begin_after(PaxosSlot slot, const Certifier *restored)
{
	certifier = *restored;
	last_delivered = slot;
	(void) publish_chosen_index(slot);
}

void
delivery_restored(void)
{
	token_memory_restored(get_certifier(), last_delivered);
}

PaxosSlot
delivery_last(void)
{
	return last_delivered;
}

static LogVerdict
verdict_of(const PaxosChosen *chosen, CertifierVerdict *verdict)
{
	PaxosValue *value = chosen->value;
	LogVerdict	log_verdict = entry_verdict(get_certifier(), chosen->slot, value->kind, chosen->duplicate, value->bytes, value->length,
											verdict);

	if (log_verdict == LOG_VERDICT_CONFIG)
		members_take_config(chosen->slot, (const char *) value->bytes, value->length);
	return log_verdict;
}

static void
make_item(const PaxosChosen *chosen, LogItem *item, CertifierVerdict *verdict)
{
	PaxosValue *value = chosen->value;
	PlaceOfSlot *place = place_of(chosen->slot);

	if (place->slot != chosen->slot || place->place.length != value->length)
		elog(FATAL, "log index %llu was delivered without being in the journal", (unsigned long long) chosen->slot);

	memset(item, 0, sizeof(LogItem));
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
		{
			token_memory_note(get_certifier(), last_delivered);
			tell_backends(chosen[done].slot, items, verdicts, batch);
		}
		if (publish_chosen_index(chosen[done + batch - 1].slot))
			worker.entries_to_apply += batch;
		done += batch;
	}
}

/* The peer needs what this node does not hold either: it has to copy the tables. */
static void
answer_trimmed(uint32 to)
{
	uint8	   *frame = worker_frame_buffer(TRIMMED_FRAME_BYTES);
	size_t		length = paxos_encode_trimmed(worker.core, to, chosen_log_first_held(), frame, worker.frame_capacity);

	if (length > 0)
		(void) transport_send(to, frame, length);
}

/*
 * A peer asked for slots that have left the core's window: one frame of them from the chosen log.  The peer's next report makes the core ask
 * for more.  Only this process trims, so what is held now is held to the end of this function.
 */
void
delivery_serve_catch_up(const PaxosCatchUp *request)
{
	PaxosValue *values[CATCH_UP_ENTRIES];
	size_t		count = 0;
	size_t		bytes = 0;
	size_t		frame_length = 0;
	uint8	   *frame;

	if (request->first_slot < chosen_log_first_held())
	{
		answer_trimmed(request->to);
		return;
	}
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
