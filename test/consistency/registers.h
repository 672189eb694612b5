/*
 * registers.h
 *	  The checker of register histories: are they linearizable?
 */
#ifndef TEST_CONSISTENCY_REGISTERS_H
#define TEST_CONSISTENCY_REGISTERS_H

#include "history.h"

extern void check_registers(const History *history, Report *report);

#endif							/* TEST_CONSISTENCY_REGISTERS_H */
