/*
 * dependency_graph.c
 *	  Strongly connected parts (Tarjan 1972) of the graph of states, and the shortest cycle in each by breadth first search.
 *
 * A state is a node and whether it was reached by an anti-dependency; that is how two of them in a row are kept apart.
 */
#include <stdlib.h>
#include <string.h>

#include "dependency_graph.h"
#include "history.h"

#define START_STATES_TRIED 24

typedef struct Walk
{
	int		   *distance;		/* -1: not reached */
	const Edge **came_by;
	int		   *came_from;
	int		   *queue;			/* with room at both ends: steps to weightless nodes go to its front */
	int			head;
	int			tail;
} Walk;

typedef struct Search
{
	const Graph *graph;
	int			kinds;
	bool		neighbours_allowed;
	int		   *component;		/* of each state; -1: not known yet */
	int			component_count;
	Walk		walk;
} Search;

void
graph_add_edge(Graph *graph, Edge edge)
{
	graph->edges = grow(graph->edges, graph->edge_count + 1, &graph->edges_allocated, sizeof(Edge));
	graph->edges[graph->edge_count++] = edge;
}

/* A counting sort by source. */
void
graph_sort(Graph *graph)
{
	Edge	   *sorted = allocate((size_t) graph->edge_count * sizeof(Edge));
	int		   *next = allocate((size_t) (graph->node_count + 1) * sizeof(int));

	graph->first_edge = allocate((size_t) (graph->node_count + 1) * sizeof(int));
	for (int i = 0; i < graph->edge_count; i++)
		graph->first_edge[graph->edges[i].from + 1]++;
	for (int node = 0; node < graph->node_count; node++)
		graph->first_edge[node + 1] += graph->first_edge[node];
	memcpy(next, graph->first_edge, (size_t) (graph->node_count + 1) * sizeof(int));
	for (int i = 0; i < graph->edge_count; i++)
		sorted[next[graph->edges[i].from]++] = graph->edges[i];
	free(next);
	free(graph->edges);
	graph->edges = sorted;
	graph->edges_allocated = graph->edge_count;
}

/* The state that an edge leads to, or -1 if the walk may not follow it. */
static int
follow(const Search *search, int state, const Edge *edge)
{
	bool		is_anti = (edge->kind & EDGES_RW) != 0;

	if ((edge->kind & search->kinds) == 0)
		return -1;
	if (search->neighbours_allowed || !is_anti)
		return 2 * edge->to;
	return state % 2 == 1 ? -1 : 2 * edge->to + 1;
}

/* Tarjan's algorithm with a stack of its own: histories are deeper than C's. */
typedef struct Tarjan
{
	int		   *number;			/* 0: not visited */
	int		   *low;
	int		   *next_edge;
	int		   *path;			/* the states whose edges are being followed */
	int			path_length;
	int		   *stack;			/* the states that have no component yet */
	int			stack_length;
	int			visited;
} Tarjan;

static void
enter(Tarjan *tarjan, const Search *search, int state)
{
	tarjan->number[state] = tarjan->low[state] = ++tarjan->visited;
	tarjan->next_edge[state] = search->graph->first_edge[state / 2];
	tarjan->path[tarjan->path_length++] = state;
	tarjan->stack[tarjan->stack_length++] = state;
}

static void
leave(Tarjan *tarjan, Search *search, int state)
{
	tarjan->path_length--;
	if (tarjan->path_length > 0)
	{
		int			parent = tarjan->path[tarjan->path_length - 1];

		if (tarjan->low[state] < tarjan->low[parent])
			tarjan->low[parent] = tarjan->low[state];
	}
	if (tarjan->low[state] != tarjan->number[state])
		return;
	for (;;)
	{
		int			member = tarjan->stack[--tarjan->stack_length];

		search->component[member] = search->component_count;
		if (member == state)
			break;
	}
	search->component_count++;
}

static void
visit_from(Tarjan *tarjan, Search *search, int root)
{
	enter(tarjan, search, root);
	while (tarjan->path_length > 0)
	{
		int			state = tarjan->path[tarjan->path_length - 1];
		int			target;

		if (tarjan->next_edge[state] == search->graph->first_edge[state / 2 + 1])
		{
			leave(tarjan, search, state);
			continue;
		}
		target = follow(search, state, &search->graph->edges[tarjan->next_edge[state]++]);
		if (target < 0 || search->component[target] >= 0)
			continue;
		if (tarjan->number[target] == 0)
			enter(tarjan, search, target);
		else if (tarjan->number[target] < tarjan->low[state])
			tarjan->low[state] = tarjan->number[target];
	}
}

static void
find_components(Search *search)
{
	int			state_count = 2 * search->graph->node_count;
	size_t		size = (size_t) state_count * sizeof(int);
	Tarjan		tarjan = {0};

	tarjan.number = allocate(size);
	tarjan.low = allocate(size);
	tarjan.next_edge = allocate(size);
	tarjan.path = allocate(size);
	tarjan.stack = allocate(size);
	search->component = allocate(size);
	for (int state = 0; state < state_count; state++)
		search->component[state] = -1;
	for (int state = 0; state < state_count; state++)
		if (tarjan.number[state] == 0)
			visit_from(&tarjan, search, state);
	free(tarjan.number);
	free(tarjan.low);
	free(tarjan.next_edge);
	free(tarjan.path);
	free(tarjan.stack);
}

/* ---- the shortest cycle through a state ---- */

static void
make_walk(Walk *walk, int state_count)
{
	walk->distance = allocate((size_t) state_count * sizeof(int));
	walk->came_by = allocate((size_t) state_count * sizeof(Edge *));
	walk->came_from = allocate((size_t) state_count * sizeof(int));
	walk->queue = allocate((size_t) state_count * 4 * sizeof(int));
}

static void
free_walk(Walk *walk)
{
	free(walk->distance);
	free(walk->came_by);
	free(walk->came_from);
	free(walk->queue);
}

/* One step of the search; true if it closes the cycle. */
static bool
step(Search *search, int start, int state, const Edge *edge)
{
	Walk	   *walk = &search->walk;
	int			target = follow(search, state, edge);
	int			weight;

	if (target < 0 || search->component[target] != search->component[start])
		return false;
	if (target == start)
	{
		walk->came_by[start] = edge;
		walk->came_from[start] = state;
		return true;
	}
	if (walk->distance[target] >= 0)
		return false;
	weight = search->graph->weightless[edge->to] ? 0 : 1;
	walk->distance[target] = walk->distance[state] + weight;
	walk->came_by[target] = edge;
	walk->came_from[target] = state;
	if (weight == 0)
		walk->queue[--walk->head] = target;
	else
		walk->queue[walk->tail++] = target;
	return false;
}

/* The cycle's edges in order, from the way back that the walk has noted. */
static int
collect_cycle(const Walk *walk, int start, const Edge ***cycle, int *allocated)
{
	int			length = 0;
	int			state = start;

	do
	{
		*cycle = grow(*cycle, length + 1, allocated, sizeof(Edge *));
		(*cycle)[length++] = walk->came_by[state];
		state = walk->came_from[state];
	} while (state != start);
	for (int i = 0; i < length / 2; i++)
	{
		const Edge *swapped = (*cycle)[i];

		(*cycle)[i] = (*cycle)[length - 1 - i];
		(*cycle)[length - 1 - i] = swapped;
	}
	return length;
}

/* A cycle through `start`, one of the `count` states of a component; its length.  The walk never leaves the component. */
static int
shortest_cycle(Search *search, const int *states, int count, int start, const Edge ***cycle, int *allocated)
{
	const Graph *graph = search->graph;
	Walk	   *walk = &search->walk;

	for (int i = 0; i < count; i++)
		walk->distance[states[i]] = -1;
	walk->head = walk->tail = 2 * 2 * graph->node_count;
	walk->queue[walk->tail++] = start;
	walk->distance[start] = 0;
	while (walk->head < walk->tail)
	{
		int			state = walk->queue[walk->head++];

		for (int i = graph->first_edge[state / 2]; i < graph->first_edge[state / 2 + 1]; i++)
			if (step(search, start, state, &graph->edges[i]))
				return collect_cycle(walk, start, cycle, allocated);
	}
	return 0;
}

/* How many transactions a cycle has. */
static int
weight_of(const Graph *graph, const Edge **cycle, int length)
{
	int			weight = 0;

	for (int i = 0; i < length; i++)
		weight += graph->weightless[cycle[i]->to] ? 0 : 1;
	return weight;
}

static void
tell_shortest(Search *search, const int *states, int count, CycleFound found, void *context)
{
	const Edge **best = NULL;
	int			best_length = 0;
	int			tried = 0;

	for (int i = 0; i < count && tried < START_STATES_TRIED; i++)
	{
		const Edge **cycle = NULL;
		int			allocated = 0;
		int			length;

		if (search->graph->weightless[states[i] / 2])
			continue;
		tried++;
		length = shortest_cycle(search, states, count, states[i], &cycle, &allocated);
		if (length > 0 && (best == NULL || weight_of(search->graph, cycle, length) < weight_of(search->graph, best, best_length)))
		{
			free(best);
			best = cycle;
			best_length = length;
		}
		else
			free(cycle);
	}
	if (best != NULL)
		found(context, best, best_length);
	free(best);
}

void
graph_find_cycles(const Graph *graph, int kinds, bool neighbours_allowed, CycleFound found, void *context)
{
	Search		search = {.graph = graph, .kinds = kinds, .neighbours_allowed = neighbours_allowed};
	int			state_count = 2 * graph->node_count;
	int		   *first;
	int		   *members;
	int		   *next;

	find_components(&search);
	make_walk(&search.walk, state_count);

	/* The members of each component, one component after the other. */
	first = allocate((size_t) (search.component_count + 1) * sizeof(int));
	next = allocate((size_t) (search.component_count + 1) * sizeof(int));
	members = allocate((size_t) state_count * sizeof(int));
	for (int state = 0; state < state_count; state++)
		first[search.component[state] + 1]++;
	for (int i = 0; i < search.component_count; i++)
		first[i + 1] += first[i];
	memcpy(next, first, (size_t) (search.component_count + 1) * sizeof(int));
	for (int state = 0; state < state_count; state++)
		members[next[search.component[state]]++] = state;

	/* No edge leads from a node to itself, so a component of one state is no cycle. */
	for (int i = 0; i < search.component_count; i++)
		if (first[i + 1] - first[i] > 1)
			tell_shortest(&search, members + first[i], first[i + 1] - first[i], found, context);
	free_walk(&search.walk);
	free(search.component);
	free(first);
	free(next);
	free(members);
}
