/*
 * certified_keys.h
 *	  The keys that the current transaction will be certified by.  Process: client backend.
 */
#ifndef QUORUM_CERTIFIED_KEYS_H
#define QUORUM_CERTIFIED_KEYS_H

#include "postgres.h"

#include "lib/stringinfo.h"
#include "storage/itemptr.h"

#include "shared/certifier.h"

typedef struct CertifiedKey
{
	uint64		hash;
	uint64		base;
	CertifierMode mode;
	int			nest_level;		/* of the subtransaction that holds the lock; a savepoint that is rolled back takes it back */
	uint32		place;			/* in the order in which they were taken */
	/* for messages */
	uint64		table_id;
	Oid			relid;			/* InvalidOid: a key of no table */
	Oid			index;			/* InvalidOid: the table as a whole */
	ItemPointerData tid;		/* of a row that has the key, invalid: none */
} CertifiedKey;

/* Registers the subtransaction callback; call in _PG_init. */
extern void certified_keys_init(void);

/* A lock that is held from now on.  `row` NULL: none. */
extern void certified_keys_add_lock(uint64 hash, CertifierMode mode, uint64 table_id, Oid relid, Oid index, ItemPointer row);

/* SERIALIZABLE: what was read, of a row or key (hash), or of a table. */
extern void certified_keys_add_read(uint64 hash, uint64 table_id, Oid relid, Oid index);
extern void certified_keys_add_table_read(uint64 table_id, Oid relid);

/* A key of no table, of the commit that is being prepared: an epoch's mark or guard (shared/token_epochs.h). */
extern void certified_keys_add_epoch(uint64 hash, CertifierMode mode, uint64 base);

/* The transaction may hold a lock of this replicated table, or of any of them. */
extern void certified_keys_note_table(Oid relid);
extern void certified_keys_note_all_tables(void);

/* Appends all keys to a write set; returns how many, and the base of them all, which is not above highest_base. */
extern uint32 certified_keys_encode(StringInfo payload, uint64 highest_base, uint64 *base);

/* A key by its number in what was encoded last; NULL: there is none. */
extern const CertifiedKey *certified_keys_get(uint32 number);

extern void certified_keys_reset(void);	/* end of transaction; the memory goes with it */

#endif							/* QUORUM_CERTIFIED_KEYS_H */
