/*
 * list_cycles.c
 *	  Dependencies of list-append transactions, and the cycles that their isolation levels forbid.
 *
 * Nodes of the graph
 *	 - A transaction.  Under REPEATABLE READ and SERIALIZABLE its reads and writes are one node, since it has one snapshot.
 *	 - A reading statement of a READ COMMITTED transaction: it has a snapshot of its own, which must be a prefix of the one order too.
 *	 - Moments, for real time: each acknowledgement leads to the moment after it, each moment to the next one, and the last moment
 *	   before its start to everything that begins later.  That says "acknowledged before it began" with few edges.
 *
 * What each level forbids
 *	 - every transaction: G0, G1c.
 *	 - every snapshot, a statement's or a transaction's: cycles in which no two anti-dependencies are neighbours, and with the edges of
 *	   real time the same: a stale read.
 *	 - among serializable transactions: any cycle whose anti-dependencies have serializable transactions at both ends.  Those of
 *	   other levels may lie in between, on edges that commit order explains; PostgreSQL aborts these too (the transaction
 *	   that commits first in such a cycle is the third of a dangerous structure), real time included.
 */
#include <stdlib.h>
#include <string.h>

#include "dependency_graph.h"
#include "list_internal.h"

#define NO_NODE (-1)

typedef struct Node
{
	int			transaction;	/* index in the history; NO_NODE: a moment */
	int			statement;		/* of a READ COMMITTED read; -1: the transaction */
} Node;

typedef struct Cycles
{
	Lists	   *lists;
	Graph		graph;
	Node	   *nodes;
	int			nodes_allocated;
	int		   *node_of_transaction;
	int		   *node_of_read;
	int			stage;			/* index in stages */
	bool	   *is_reported;	/* for each node: it is in a reported cycle */
	int			reported_cycles;
} Cycles;

static const Transaction *
transaction_of(const Cycles *cycles, int node)
{
	return &cycles->lists->history->transactions[cycles->nodes[node].transaction];
}

static int
add_node(Cycles *cycles, int transaction, int statement)
{
	cycles->nodes = grow(cycles->nodes, cycles->graph.node_count + 1, &cycles->nodes_allocated, sizeof(Node));
	cycles->nodes[cycles->graph.node_count] = (Node) {.transaction = transaction, .statement = statement};
	return cycles->graph.node_count++;
}

static void
add_edge(Cycles *cycles, int from, int to, EdgeKind kind, int64_t key, int64_t element)
{
	if (from != to)
		graph_add_edge(&cycles->graph, (Edge) {.from = from, .to = to, .kind = kind, .key = key, .element = element});
}

static bool
is_committed(const Lists *lists, int transaction)
{
	return lists->history->transactions[transaction].outcome == OUTCOME_OK ||
		(lists->history->transactions[transaction].outcome == OUTCOME_UNKNOWN && lists->has_taken_effect[transaction]);
}

/* ---- nodes ---- */

static void
add_nodes(Cycles *cycles)
{
	Lists	   *lists = cycles->lists;

	for (int i = 0; i < lists->history->count; i++)
		cycles->node_of_transaction[i] = add_node(cycles, i, -1);
	for (int i = 0; i < lists->read_count; i++)
	{
		const Read *read = &lists->reads[i];
		const Read *previous = i > 0 ? &lists->reads[i - 1] : NULL;
		int			node = cycles->node_of_transaction[read->transaction];

		if (lists->history->transactions[read->transaction].level == LEVEL_READ_COMMITTED)
		{
			if (previous != NULL && previous->transaction == read->transaction &&
				previous->operation->statement == read->operation->statement)
				node = cycles->node_of_read[i - 1];
			else
			{
				int			transaction_node = node;

				node = add_node(cycles, read->transaction, read->operation->statement);
				if (is_committed(lists, read->transaction))
					add_edge(cycles, node, transaction_node, EDGE_SESSION, 0, 0);
			}
		}
		cycles->node_of_read[i] = node;
	}
}

/* ---- dependencies by what was written and read ---- */

/* The node that wrote what is at that place of a list, or NO_NODE: never written, or reported already as not committed. */
static int
writer_at(const Cycles *cycles, int list, int place)
{
	const Lists *lists = cycles->lists;
	int			found = map_get(&lists->append_of_element, lists->lists[list].elements[place]);

	if (found < 0 || lists->appends[found].position != place || lists->appends[found].list != list ||
		!is_committed(lists, lists->appends[found].transaction))
		return NO_NODE;
	return cycles->node_of_transaction[lists->appends[found].transaction];
}

static void
add_write_dependencies(Cycles *cycles)
{
	for (int i = 0; i < cycles->lists->list_count; i++)
	{
		const List *list = &cycles->lists->lists[i];

		for (int place = 1; place < list->length; place++)
		{
			int			earlier = writer_at(cycles, i, place - 1);
			int			later = writer_at(cycles, i, place);

			if (earlier != NO_NODE && later != NO_NODE)
				add_edge(cycles, earlier, later, EDGE_WW, list->key, list->elements[place]);
		}
	}
}

static EdgeKind
kind_of_anti_dependency(const Cycles *cycles, int reader, int writer)
{
	Level		levels[2] = {transaction_of(cycles, reader)->level, transaction_of(cycles, writer)->level};

	/* A transaction that has not committed takes no part in what serializable ones see of each other. */
	if (!is_committed(cycles->lists, cycles->nodes[reader].transaction))
		return EDGE_RW;
	if (levels[0] == LEVEL_SERIALIZABLE && levels[1] == LEVEL_SERIALIZABLE)
		return EDGE_RW_SERIALIZABLE;
	if (levels[0] != LEVEL_READ_COMMITTED && levels[1] != LEVEL_READ_COMMITTED)
		return EDGE_RW_SNAPSHOT;
	return EDGE_RW;
}

static void
add_read_dependencies(Cycles *cycles)
{
	for (int i = 0; i < cycles->lists->read_count; i++)
	{
		const Read *read = &cycles->lists->reads[i];
		const List *list = &cycles->lists->lists[read->list];
		int			reader = cycles->node_of_read[i];
		int			seen = read->external_count;
		int			last_writer = NO_NODE;
		int			next_writer = NO_NODE;

		if (read->is_broken || seen > list->length || (seen > 0 && read->operation->values[seen - 1] != list->elements[seen - 1]))
			continue;			/* reported already */
		if (seen > 0)
			last_writer = writer_at(cycles, read->list, seen - 1);
		if (seen < list->length)
			next_writer = writer_at(cycles, read->list, seen);
		if (last_writer != NO_NODE)
			add_edge(cycles, last_writer, reader, EDGE_WR, list->key, list->elements[seen - 1]);
		if (next_writer == NO_NODE || cycles->nodes[next_writer].transaction == read->transaction ||
			next_writer == last_writer)
			continue;			/* the last of these is an intermediate read, reported already */
		add_edge(cycles, reader, next_writer, kind_of_anti_dependency(cycles, reader, next_writer), list->key, list->elements[seen]);
	}
}

/* ---- real time ---- */

typedef struct Span
{
	int			node;
	int64_t		start_us;
	int64_t		end_us;			/* INT64_MAX: never acknowledged */
} Span;

static int
compare_ends(const void *left, const void *right)
{
	int64_t		ends[2] = {((const Span *) left)->end_us, ((const Span *) right)->end_us};

	return ends[0] < ends[1] ? -1 : ends[0] > ends[1];
}

static Span *
collect_spans(const Cycles *cycles, int *count)
{
	const Lists *lists = cycles->lists;
	Span	   *spans = allocate((size_t) cycles->graph.node_count * sizeof(Span));

	*count = 0;
	for (int i = 0; i < lists->history->count; i++)
	{
		const Transaction *transaction = &lists->history->transactions[i];
		bool		is_known = transaction->outcome == OUTCOME_OK || !is_committed(lists, i);

		spans[(*count)++] = (Span) {.node = cycles->node_of_transaction[i], .start_us = transaction->start_us,
		.end_us = is_known ? transaction->end_us : INT64_MAX};
	}
	for (int i = 0; i < lists->read_count; i++)
	{
		int			node = cycles->node_of_read[i];

		if (cycles->nodes[node].statement >= 0 && spans[*count - 1].node != node)
			spans[(*count)++] = (Span) {.node = node, .start_us = lists->reads[i].operation->start_us,
			.end_us = lists->reads[i].operation->end_us};
	}
	return spans;
}

/*
 * May "acknowledged before it began" lead to this node?  Not if its snapshot may be old.  For a READ COMMITTED transaction the node
 * stands for its commit only, so it may.
 */
static bool
sees_what_was_acknowledged(const Cycles *cycles, int node)
{
	const Transaction *transaction = transaction_of(cycles, node);

	return !transaction->is_local || (transaction->level == LEVEL_READ_COMMITTED && cycles->nodes[node].statement < 0);
}

static void
add_real_time(Cycles *cycles)
{
	int			count;
	Span	   *spans = collect_spans(cycles, &count);
	int			first_moment = cycles->graph.node_count;

	qsort(spans, (size_t) count, sizeof(Span), compare_ends);
	for (int i = 0; i < count && spans[i].end_us != INT64_MAX; i++)
	{
		int			moment = add_node(cycles, NO_NODE, -1);

		add_edge(cycles, spans[i].node, moment, EDGE_REAL_TIME, 0, 0);
		if (moment > first_moment)
			add_edge(cycles, moment - 1, moment, EDGE_REAL_TIME, 0, 0);
	}
	for (int i = 0; i < count; i++)
	{
		int			low = 0;
		int			high = count;

		if (!sees_what_was_acknowledged(cycles, spans[i].node))
			continue;
		while (low < high)		/* how many have ended before it began */
		{
			int			middle = (low + high) / 2;

			if (spans[middle].end_us < spans[i].start_us)
				low = middle + 1;
			else
				high = middle;
		}
		if (low > 0)
			add_edge(cycles, first_moment + low - 1, spans[i].node, EDGE_REAL_TIME, 0, 0);
	}
	free(spans);
}

/* ---- cycles ---- */

#define COMMIT_ORDER (EDGE_WW | EDGE_WR | EDGE_SESSION)

/* From the narrowest class to the widest; a cycle is reported in the first that has it. */
static const struct
{
	int			kinds;
	bool		neighbours_allowed;
}			stages[] =
{
	{EDGE_WW, false},
	{COMMIT_ORDER, false},
	{COMMIT_ORDER | EDGES_RW, false},
	{COMMIT_ORDER | EDGE_REAL_TIME, false},
	{COMMIT_ORDER | EDGES_RW | EDGE_REAL_TIME, false},
	{COMMIT_ORDER | EDGE_RW_SERIALIZABLE, true},
	{COMMIT_ORDER | EDGE_RW_SERIALIZABLE | EDGE_REAL_TIME, true},
};

#define STAGE_COUNT ((int) (sizeof(stages) / sizeof(stages[0])))

static Anomaly
classify(const Cycles *cycles, const Edge **cycle, int length)
{
	int			anti = 0;
	const Edge *read = NULL;

	for (int i = 0; i < length; i++)
		if (cycle[i]->kind & EDGES_RW)
		{
			anti++;
			read = cycle[i];
		}
	switch (cycles->stage)
	{
		case 0:
			return ANOMALY_G0;
		case 1:
			return ANOMALY_G1C;
		case 2:
			if (anti > 1)
				return ANOMALY_LONG_FORK;
			for (int i = 0; i < length; i++)
				if (cycle[i]->kind == EDGE_WW && cycle[i]->key == read->key && cycle[i]->to == read->from)
					return ANOMALY_LOST_UPDATE;
			return ANOMALY_G_SINGLE;
		case 3:
			return ANOMALY_REAL_TIME_ORDER;
		case 4:
			return ANOMALY_STALE_READ;
		case 5:
			return ANOMALY_G2_ITEM;
		default:
			return ANOMALY_NOT_STRICT_SERIALIZABLE;
	}
}

static const char *
text_of_kind(EdgeKind kind)
{
	switch (kind)
	{
		case EDGE_WW:
			return "was overwritten by";
		case EDGE_WR:
			return "was read by";
		case EDGE_SESSION:
			return "is a statement of";
		case EDGE_REAL_TIME:
			return "had ended before the start of";
		default:
			return "read the version before that of";
	}
}

/* The transactions of a cycle, and between them why the next one comes after it. */
static void
print_cycle(const Cycles *cycles, const Edge **cycle, int length)
{
	Report	   *report = cycles->lists->report;

	for (int i = 0; i < length; i++)
	{
		const Edge *edge = cycle[i];
		const Node *from = &cycles->nodes[edge->from];
		char		label[64];

		if (from->transaction != NO_NODE)
		{
			snprintf(label, sizeof(label), from->statement < 0 ? "T%d: " : "T%d, statement %d: ", edge->from, from->statement);
			report_transaction(report, label, transaction_of(cycles, edge->from));
		}
		if (edge->kind == EDGE_REAL_TIME && cycles->nodes[edge->to].transaction == NO_NODE)
			continue;
		if (edge->kind == EDGE_REAL_TIME || edge->kind == EDGE_SESSION)
			report_detail(report, "  %s T%d", text_of_kind(edge->kind), edge->to);
		else
			report_detail(report, "  %s T%d: list %lld, element %lld", text_of_kind(edge->kind), edge->to, (long long) edge->key,
						  (long long) edge->element);
	}
}

/* A cycle through transactions that were reported already is most likely the same trouble, in a wider class. */
static bool
touches_reported_cycle(const Cycles *cycles, const Edge **cycle, int length)
{
	for (int i = 0; i < length; i++)
		if (cycles->is_reported[cycle[i]->from])
			return true;
	return false;
}

static void
cycle_found(void *context, const Edge **cycle, int length)
{
	Cycles	   *cycles = context;
	Anomaly		anomaly;

	if (touches_reported_cycle(cycles, cycle, length))
		return;
	anomaly = classify(cycles, cycle, length);
	cycles->reported_cycles++;
	for (int i = 0; i < length; i++)
		if (cycles->nodes[cycle[i]->from].transaction != NO_NODE)
			cycles->is_reported[cycle[i]->from] = true;
	if (report_anomaly(cycles->lists->report, anomaly, "cycle of %d steps", length))
		print_cycle(cycles, cycle, length);
}

static void
count_allowed(void *context, const Edge **cycle, int length)
{
	((Cycles *) context)->lists->report->allowed_write_skews++;
}

void
check_list_cycles(Lists *lists)
{
	Cycles		cycles = {.lists = lists};

	cycles.node_of_transaction = allocate((size_t) lists->history->count * sizeof(int));
	cycles.node_of_read = allocate((size_t) lists->read_count * sizeof(int));
	add_nodes(&cycles);
	add_write_dependencies(&cycles);
	add_read_dependencies(&cycles);
	if (lists->real_time)
		add_real_time(&cycles);
	cycles.graph.weightless = allocate((size_t) cycles.graph.node_count * sizeof(bool));
	for (int node = 0; node < cycles.graph.node_count; node++)
		cycles.graph.weightless[node] = cycles.nodes[node].transaction == NO_NODE;
	cycles.is_reported = allocate((size_t) cycles.graph.node_count * sizeof(bool));
	graph_sort(&cycles.graph);
	for (cycles.stage = 0; cycles.stage < STAGE_COUNT; cycles.stage++)
		graph_find_cycles(&cycles.graph, stages[cycles.stage].kinds, stages[cycles.stage].neighbours_allowed, cycle_found, &cycles);
	if (cycles.reported_cycles == 0)
		graph_find_cycles(&cycles.graph, COMMIT_ORDER | EDGE_RW_SNAPSHOT | EDGE_RW_SERIALIZABLE, true, count_allowed, &cycles);
}
