/*
 * change_order.c
 *	  In which order a transaction has changed its rows; see change_order.h.  Process: client backend.
 *
 * Free places are counted in a Fenwick tree, 1-based: tree[i] is the number of free places in (i - lowbit(i), i].
 */
#include "postgres.h"

#include "capture/change_order.h"

/* Returns the place, 0-based, that has `places_before` free ones before it, and takes it. */
static uint32
take_place(uint32 *tree, uint32 size, uint32 top_bit, uint32 places_before)
{
	uint32		place = 0;

	for (uint32 step = top_bit; step > 0; step >>= 1)
		if (place + step <= size && tree[place + step] <= places_before)
		{
			place += step;
			places_before -= tree[place];
		}
	for (uint32 i = place + 1; i <= size; i += i & -i)
		tree[i]--;
	return place;
}

uint32 *
order_by_places(uint32 count, uint32 (*places_before) (uint32 number))
{
	uint32	   *tree = palloc_extended((Size) (count + 1) * sizeof(uint32), MCXT_ALLOC_HUGE);
	uint32	   *order = palloc_extended((Size) count * sizeof(uint32), MCXT_ALLOC_HUGE);
	uint32		top_bit = 1;

	while (top_bit <= count / 2)
		top_bit *= 2;
	for (uint32 i = 1; i <= count; i++)
		tree[i] = i & -i;
	for (uint32 i = 0; i < count; i++)
		order[take_place(tree, count, top_bit, Min(places_before(i), count - i - 1))] = i;
	pfree(tree);
	return order;
}
