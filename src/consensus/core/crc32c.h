/*
 * crc32c.h
 *	  CRC-32C (Castagnoli) for frames.  The core may not use Postgres' implementation.
 */
#ifndef PAXOS_CRC32C_H
#define PAXOS_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Of the whole buffer, with the usual initial value and final inversion: of "123456789" it is 0xE3069283. */
extern uint32_t crc32c_compute(const uint8_t *bytes, size_t length);

#endif							/* PAXOS_CRC32C_H */
