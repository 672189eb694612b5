/*
 * change_order.h
 *	  In which order a transaction has changed its rows, from the order in which the changes were captured.  Process: client backend.
 *
 * AFTER ROW triggers fire when a statement ends, so a statement that runs within another one (in a trigger or a function) is captured before what
 * is left of the outer one, whether its changes came before or after those.  Neither the order of capture nor the command ids tell (an
 * outer statement keeps its command id while inner ones go by).  What tells: when an inner statement has been captured, the rows that the
 * server has counted and that are not captured yet belong to outer statements, and were changed before it.  Hence each change keeps that
 * number, and its place in the write set is the first free one that leaves so many free places before it.
 */
#ifndef QUORUM_CHANGE_ORDER_H
#define QUORUM_CHANGE_ORDER_H

#include "postgres.h"

/* places_before(i): how many free places the change that was captured as number i leaves before it.  Returns the changes' numbers in their order, palloc'd. */
extern uint32 *order_by_places(uint32 count, uint32 (*places_before) (uint32 number));

#endif							/* QUORUM_CHANGE_ORDER_H */
