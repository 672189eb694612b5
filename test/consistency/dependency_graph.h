/*
 * dependency_graph.h
 *	  A graph of who depends on whom, and the search for cycles that an isolation level forbids.
 *
 * Time flows along each edge.  An edge that is no anti-dependency says that its source had committed when its target took its
 * snapshot (or, if the target takes one per statement, before it committed); an anti-dependency says that its target committed
 * after its source took its snapshot.  So under snapshot isolation there is no cycle in which no two anti-dependencies are next
 * to each other (Fekete et al., "Making Snapshot Isolation Serializable", 2005; Cerone and Gotsman 2016): such a walk would
 * return to a moment before its start.  Under serializability there is no cycle at all.
 */
#ifndef TEST_CONSISTENCY_DEPENDENCY_GRAPH_H
#define TEST_CONSISTENCY_DEPENDENCY_GRAPH_H

#include <stdbool.h>
#include <stdint.h>

/* Bits, so that a search can name the kinds that it follows. */
typedef enum EdgeKind
{
	EDGE_WW = 1,				/* the next version of a list */
	EDGE_WR = 2,				/* read it */
	EDGE_SESSION = 4,			/* a statement of the transaction that follows */
	EDGE_REAL_TIME = 8,			/* was acknowledged before it began */
	EDGE_RW = 16,				/* read the version before it; one of the two is no whole-snapshot transaction */
	EDGE_RW_SNAPSHOT = 32,		/* the same between two transactions of REPEATABLE READ or more */
	EDGE_RW_SERIALIZABLE = 64	/* the same between two serializable ones */
} EdgeKind;

#define EDGES_RW (EDGE_RW | EDGE_RW_SNAPSHOT | EDGE_RW_SERIALIZABLE)

typedef struct Edge
{
	int			from;
	int			to;
	EdgeKind	kind;
	int64_t		key;			/* which list */
	int64_t		element;		/* which append of its source (WW, WR) or its target (RW) */
} Edge;

typedef struct Graph
{
	int			node_count;
	Edge	   *edges;
	int			edge_count;
	int			edges_allocated;
	int		   *first_edge;		/* of each node, once sorted */
	bool	   *weightless;		/* nodes that are no transactions: they don't make a cycle longer */
} Graph;

extern void graph_add_edge(Graph *graph, Edge edge);

/* To be called when all edges are there. */
extern void graph_sort(Graph *graph);

/*
 * Calls found() with a short cycle of each strongly connected part, by the edges of these kinds.  Unless neighbours are allowed, walks
 * never follow two anti-dependencies in a row, around the cycle's ends too.
 */
typedef void (*CycleFound) (void *context, const Edge **cycle, int length);

extern void graph_find_cycles(const Graph *graph, int kinds, bool neighbours_allowed, CycleFound found, void *context);

#endif							/* TEST_CONSISTENCY_DEPENDENCY_GRAPH_H */
