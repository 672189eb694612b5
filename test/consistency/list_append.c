/*
 * list_append.c
 *	  The checker of list-append histories, after Kingsbury and Alvaro, "Elle: Inferring Isolation Anomalies from Experimental
 *	  Observations" (VLDB 2020).
 *
 * Each element is appended once, so a list that was read tells which transactions wrote it, and in which order: the longest list of
 * a key is its version order, of which every other read must be a prefix.  This file recovers the orders, finds what can be
 * seen without a graph, and hands the rest to list_cycles.c.
 *
 * What a transaction has appended itself before a read stands at the end of the list that it reads; the part before that is the
 * version that it saw of others (external_count).
 *
 * Reads count whatever became of their transaction: what was shown was shown.  Appends of a transaction of unknown outcome count as
 * committed if one of them is in a version order.
 */
#include <stdlib.h>
#include <string.h>

#include "list_append.h"
#include "list_internal.h"

/* ---- whose elements and which lists there are ---- */

static int
list_of_key(Lists *lists, int64_t key)
{
	int			index = map_get(&lists->list_of_key, key);
	List	   *list;

	if (index >= 0)
		return index;
	lists->lists = grow(lists->lists, lists->list_count + 1, &lists->lists_allocated, sizeof(List));
	list = &lists->lists[lists->list_count];
	memset(list, 0, sizeof(List));
	list->key = key;
	map_put(&lists->list_of_key, key, lists->list_count);
	return lists->list_count++;
}

static void
note_append(Lists *lists, int transaction, const Operation *operation, int list)
{
	int64_t		element = operation->arguments[0];
	Append	   *append;

	if (map_get(&lists->append_of_element, element) >= 0)
	{
		report_anomaly(lists->report, ANOMALY_BAD_HISTORY, "element %lld is appended twice", (long long) element);
		return;
	}
	lists->appends = grow(lists->appends, lists->append_count + 1, &lists->appends_allocated, sizeof(Append));
	append = &lists->appends[lists->append_count];
	*append = (Append) {.element = element, .transaction = transaction, .list = list, .position = -1};
	for (int i = lists->append_count - 1; i >= 0 && lists->appends[i].transaction == transaction; i--)
		if (lists->appends[i].list == list)
			lists->appends[i].is_followed = true;
	map_put(&lists->append_of_element, element, lists->append_count++);
}

static void
note_read(Lists *lists, int transaction, const Operation *operation, int list)
{
	if (operation->value_count == NO_ANSWER)
		return;
	lists->reads = grow(lists->reads, lists->read_count + 1, &lists->reads_allocated, sizeof(Read));
	lists->reads[lists->read_count++] = (Read) {.operation = operation, .transaction = transaction, .list = list};
	if (lists->history->transactions[transaction].is_final)
		lists->lists[list].has_final_read = true;
}

static void
collect(Lists *lists)
{
	for (int i = 0; i < lists->history->count; i++)
	{
		const Transaction *transaction = &lists->history->transactions[i];

		for (int j = 0; j < transaction->operation_count; j++)
		{
			const Operation *operation = &transaction->operations[j];
			int			list = list_of_key(lists, operation->key);

			if (operation->kind == 'a')
				note_append(lists, i, operation, list);
			else if (operation->kind == 'r')
				note_read(lists, i, operation, list);
			else
				report_anomaly(lists->report, ANOMALY_BAD_HISTORY, "operation %c in a history of lists", operation->kind);
		}
	}
}

/* ---- what a read says by itself ---- */

static const Append *
find_append(const Lists *lists, int64_t element)
{
	int			index = map_get(&lists->append_of_element, element);

	return index < 0 ? NULL : &lists->appends[index];
}

static void
show_read(const Lists *lists, const Read *read)
{
	report_transaction(lists->report, "read by   ", &lists->history->transactions[read->transaction]);
}

/* The reader's own appends before the read are the list's last elements, and no other of its own are in it. */
static void
strip_own_appends(Lists *lists, Read *read)
{
	const Transaction *transaction = &lists->history->transactions[read->transaction];
	const Operation *operation = read->operation;
	bool		consistent = true;
	int			own = 0;

	for (const Operation *earlier = transaction->operations; earlier < operation; earlier++)
		if (earlier->kind == 'a' && earlier->key == operation->key)
			own++;
	read->external_count = operation->value_count - own;
	if (read->external_count < 0)
		consistent = false;
	for (const Operation *earlier = operation - 1; consistent && earlier >= transaction->operations; earlier--)
		if (earlier->kind == 'a' && earlier->key == operation->key)
			consistent = earlier->arguments[0] == operation->values[read->external_count + --own];
	for (int i = 0; consistent && i < read->external_count; i++)
	{
		const Append *append = find_append(lists, operation->values[i]);

		consistent = append == NULL || append->transaction != read->transaction;
	}
	if (consistent)
		return;
	read->is_broken = true;
	if (report_anomaly(lists->report, ANOMALY_INTERNAL, "a transaction's own appends to list %lld are not where they should be",
					   (long long) operation->key))
		show_read(lists, read);
}

static void
check_element(Lists *lists, const Read *read, int64_t element)
{
	const Append *append = find_append(lists, element);
	const Transaction *reader = &lists->history->transactions[read->transaction];

	if (append == NULL || append->list != read->list)
	{
		if (report_anomaly(lists->report, ANOMALY_NEVER_WRITTEN, "element %lld of list %lld", (long long) element,
						   (long long) read->operation->key))
			show_read(lists, read);
	}
	else if (lists->history->transactions[append->transaction].outcome == OUTCOME_FAILED)
	{
		if (report_anomaly(lists->report, reader->is_final ? ANOMALY_FAILED_WRITE_STAYED : ANOMALY_ABORTED_READ,
						   "element %lld of list %lld", (long long) element, (long long) read->operation->key))
		{
			report_transaction(lists->report, "failed    ", &lists->history->transactions[append->transaction]);
			show_read(lists, read);
		}
	}
}

static void
check_last_element(Lists *lists, const Read *read)
{
	const Append *append;

	if (read->external_count == 0)
		return;
	append = find_append(lists, read->operation->values[read->external_count - 1]);
	if (append == NULL || append->list != read->list || !append->is_followed)
		return;
	if (report_anomaly(lists->report, ANOMALY_INTERMEDIATE_READ, "element %lld of list %lld is not its transaction's last",
					   (long long) append->element, (long long) read->operation->key))
	{
		report_transaction(lists->report, "written by ", &lists->history->transactions[append->transaction]);
		show_read(lists, read);
	}
}

/* ---- version orders ---- */

/* How much of a read belongs to the version order: its own appends only if it has committed. */
static int
lasting_count(const Lists *lists, const Read *read)
{
	if (lists->history->transactions[read->transaction].outcome == OUTCOME_OK)
		return read->operation->value_count;
	return read->external_count;
}

static void
find_orders(Lists *lists)
{
	for (int i = 0; i < lists->read_count; i++)
	{
		Read	   *read = &lists->reads[i];
		List	   *list = &lists->lists[read->list];
		bool		is_final = lists->history->transactions[read->transaction].is_final;

		strip_own_appends(lists, read);
		if (!read->is_broken && lasting_count(lists, read) >= list->length + (is_final ? 0 : 1))
		{
			list->elements = read->operation->values;
			list->length = lasting_count(lists, read);
			list->longest_read = i;
		}
	}
}

static void
check_prefix(Lists *lists, const Read *read)
{
	const List *list = &lists->lists[read->list];
	int			count = lasting_count(lists, read);
	int			same = 0;

	while (same < count && read->operation->values[same] == list->elements[same])
		same++;
	if (same == count)
		return;
	if (report_anomaly(lists->report, ANOMALY_INCOMPATIBLE_ORDER, "list %lld: place %d holds %lld in one read and %lld in another",
					   (long long) list->key, same, (long long) read->operation->values[same], (long long) list->elements[same]))
	{
		show_read(lists, read);
		show_read(lists, &lists->reads[list->longest_read]);
	}
}

/* Notes the places of the elements, and in whose order they stand. */
static void
settle_order(Lists *lists, int index)
{
	List	   *list = &lists->lists[index];

	for (int place = 0; place < list->length; place++)
	{
		int			found = map_get(&lists->append_of_element, list->elements[place]);
		Append	   *append = found < 0 ? NULL : &lists->appends[found];

		if (append == NULL || append->list != index)
			continue;
		if (append->position >= 0)
		{
			if (report_anomaly(lists->report, ANOMALY_DUPLICATE, "element %lld is in list %lld twice", (long long) append->element,
							   (long long) list->key))
				show_read(lists, &lists->reads[list->longest_read]);
			continue;
		}
		append->position = place;
		lists->has_taken_effect[append->transaction] = true;
	}
}

static void
check_reads(Lists *lists)
{
	/* Each element of the longest read, and of those that are no prefix of it; the others hold nothing else. */
	for (int i = 0; i < lists->read_count; i++)
	{
		const Read *read = &lists->reads[i];
		const List *list = &lists->lists[read->list];
		bool		is_final = lists->history->transactions[read->transaction].is_final;

		if (read->is_broken)
			continue;
		check_prefix(lists, read);
		check_last_element(lists, read);
		for (int place = 0; place < read->external_count; place++)
			if (is_final || i == list->longest_read || read->operation->values[place] != list->elements[place] ||
				place == read->external_count - 1)
				check_element(lists, read, read->operation->values[place]);
	}
}

/* ---- the final state against what the clients were told ---- */

static void
check_final_state(Lists *lists)
{
	for (int i = 0; i < lists->append_count; i++)
	{
		const Append *append = &lists->appends[i];
		const Transaction *transaction = &lists->history->transactions[append->transaction];
		Anomaly		anomaly = ANOMALY_LOST_WRITE;

		if (append->position >= 0 || !lists->lists[append->list].has_final_read)
			continue;
		if (transaction->outcome == OUTCOME_UNKNOWN && lists->has_taken_effect[append->transaction])
			anomaly = ANOMALY_HALF_TRANSACTION;
		else if (transaction->outcome != OUTCOME_OK)
			continue;
		if (report_anomaly(lists->report, anomaly, "element %lld of list %lld", (long long) append->element,
						   (long long) lists->lists[append->list].key))
		{
			const List *list = &lists->lists[append->list];

			report_transaction(lists->report, "appended by ", transaction);
			if (list->length > 0)
				show_read(lists, &lists->reads[list->longest_read]);
		}
	}
}

void
check_lists(const History *history, bool real_time, Report *report)
{
	Lists		lists = {.history = history, .report = report, .real_time = real_time};

	lists.has_taken_effect = allocate((size_t) history->count * sizeof(bool));
	collect(&lists);
	find_orders(&lists);
	for (int i = 0; i < lists.list_count; i++)
		settle_order(&lists, i);
	check_reads(&lists);
	check_final_state(&lists);
	check_list_cycles(&lists);
}
