/*
 * identity.h
 *	  The identity file: how create_cluster and join_cluster hand a new membership to the consensus worker.
 *
 * Text file "identity" in QUORUM_DIRECTORY, written to a temporary name, fsynced and renamed: cluster id, node id, node name, conninfo, and the
 * bootstrap configuration entry (CONFIG value bytes) with its slot.  Once it stands there the worker creates its journal from it.
 */
#ifndef QUORUM_IDENTITY_H
#define QUORUM_IDENTITY_H

#include "postgres.h"

#include "shared/shmem.h"

typedef struct IdentityFile
{
	uint64		cluster_id;
	uint32		node_id;
	char		node_name[NAMEDATALEN];
	char		conninfo[QUORUM_MAX_CONNINFO];
	uint64		config_slot;	/* 0 for a new cluster */
	uint32		config_length;
	char	   *config_bytes;	/* palloc'd; see member_config.h */
} IdentityFile;

extern bool identity_exists(void);
extern void identity_make_directory(void);	/* QUORUM_DIRECTORY, durably; it may be there */
extern void identity_write(const IdentityFile *identity);	/* creates the directory */
extern void identity_read(IdentityFile *identity);	/* ERRCODE_DATA_CORRUPTED if malformed */

#endif							/* QUORUM_IDENTITY_H */
