/*
 * list_internal.h
 *	  What the two halves of the list-append checker share.
 */
#ifndef TEST_CONSISTENCY_LIST_INTERNAL_H
#define TEST_CONSISTENCY_LIST_INTERNAL_H

#include "history.h"

typedef struct Append
{
	int64_t		element;
	int			transaction;	/* index in the history */
	int			list;
	int			position;		/* in the version order, -1: not in it */
	bool		is_followed;	/* by another of the same transaction to the same list */
} Append;

typedef struct Read
{
	const Operation *operation;
	int			transaction;
	int			list;
	int			external_count; /* without the reader's own appends */
	bool		is_broken;		/* makes no sense by itself, left out of everything else */
} Read;

typedef struct List
{
	int64_t		key;
	int64_t    *elements;		/* the version order */
	int			length;
	int			longest_read;	/* which read that is, if length > 0 */
	bool		has_final_read;
} List;

typedef struct Lists
{
	const History *history;
	Report	   *report;
	bool		real_time;
	List	   *lists;
	int			list_count;
	int			lists_allocated;
	Append	   *appends;		/* in the order of the history */
	int			append_count;
	int			appends_allocated;
	Read	   *reads;
	int			read_count;
	int			reads_allocated;
	Map			list_of_key;
	Map			append_of_element;
	bool	   *has_taken_effect;	/* of each transaction: one of its appends is in a version order */
} Lists;

extern void check_list_cycles(Lists *lists);

#endif							/* TEST_CONSISTENCY_LIST_INTERNAL_H */
