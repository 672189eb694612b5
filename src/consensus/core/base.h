/*
 * base.h
 *	  What the core needs to know of a log whose slots up to a base are gone: the configuration and the origins, as bytes.
 *
 * Made without a core by whoever compacts the log, or by a donor for a node that is too far behind; taken by paxos_restore_base.
 * Both are functions of the chosen slots 1 … base_slot alone, so every node makes the same bytes.
 *
 * Bytes, all numbers big endian: u8 version (1), u64 base_slot, u64 slot of the configuration, the configuration as paxos_config_encode
 * writes it, the origins as paxos_origins_encode writes them, CRC32C of everything before.
 */
#ifndef PAXOS_BASE_H
#define PAXOS_BASE_H

#include "origins.h"

/* config: the one in force for slot base_slot + 1, with the slot it was chosen in. */
extern size_t paxos_base_size(const PaxosConfig *config, const PaxosOrigins *origins);
extern size_t paxos_base_encode(PaxosSlot base_slot, const PaxosConfig *config, const PaxosOrigins *origins,
								uint8_t *buffer, size_t capacity);	/* 0: does not fit */

/* Validates.  `origins` is initialised, and replaced; false: malformed or of an unknown version, nothing changed. */
extern bool paxos_base_decode(PaxosSlot *base_slot, PaxosConfig *config, PaxosOrigins *origins, const uint8_t *bytes, size_t length);

#endif							/* PAXOS_BASE_H */
