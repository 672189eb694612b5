/*
 * generation.h
 *	  The generation of a cluster: how often, where and by whom it was continued with quorum.force_new_cluster().
 *
 * A cluster begins with generation 0.  Each call on a survivor of a lost majority adds an entry with a random branch number, and the list of entries
 * is part of the configuration from then on: members.h has it in force, new members get it with their bootstrap.  So of two nodes of one
 * cluster it can be told whether they belong together (the same list), whether one was left behind (its list is the beginning of the other's), or whether
 * both were continued apart from each other.  Node ids and log indexes mean nothing across such a border.
 */
#ifndef QUORUM_GENERATION_H
#define QUORUM_GENERATION_H

#include "postgres.h"

#include "lib/stringinfo.h"
#include "utils/timestamp.h"

#define GENERATION_KEPT 8			/* older entries are only counted */
#define GENERATION_TEXT_BYTES 1536	/* of the text form, its end included */

/* Relative to QUORUM_DIRECTORY. */
#define GENERATION_REQUEST_FILE "force_new_cluster" /* a backend asks the consensus worker for that generation */
#define GENERATION_SUCCESSOR_FILE "left_behind" /* the generation that goes on without this node; with it, the node takes part in nothing */

typedef struct GenerationEntry
{
	uint64		branch;			/* random; never 0 */
	uint64		slot;			/* of its configuration entry; 0 in a request */
	TimestampTz forced_at;
	char		node_name[NAMEDATALEN]; /* the survivor */
} GenerationEntry;

typedef struct ClusterGeneration
{
	uint32		number;			/* 0: never forced */
	GenerationEntry entries[GENERATION_KEPT];	/* the last ones, in order; Min(number, GENERATION_KEPT) of them */
} ClusterGeneration;

typedef enum GenerationRelation
{
	GENERATION_SAME,
	GENERATION_OLDER,			/* the first was continued by the second */
	GENERATION_NEWER,
	GENERATION_APART			/* neither, or so long ago that it can't be told */
} GenerationRelation;

extern GenerationRelation generation_compare(const ClusterGeneration *first, const ClusterGeneration *second);

/* NULL: number 0, or no longer kept. */
extern const GenerationEntry *generation_entry(const ClusterGeneration *generation, uint32 number);

/* Adds an entry with a new branch, drawn here. */
extern void generation_add(ClusterGeneration *generation, const char *node_name);

/* "the cluster was continued without this node by …": the first step from `own` to `successor`.  palloc'd. */
extern char *generation_explain(const ClusterGeneration *own, const ClusterGeneration *successor);

/* Bytes: u32 number; per kept entry u64 branch, u64 slot, u64 forced_at, u8 length and node name.  Numbers big endian. */
extern void generation_encode(const ClusterGeneration *generation, StringInfo buffer);
extern Size generation_decode(ClusterGeneration *generation, const char *bytes, Size length);	/* bytes used; 0: malformed */

/* The same in hexadecimal digits, for the handshake; the empty text is number 0. */
extern void generation_to_text(const ClusterGeneration *generation, char *text);	/* GENERATION_TEXT_BYTES */
extern bool generation_from_text(ClusterGeneration *generation, const char *text);	/* false: malformed */

typedef enum GenerationFileState
{
	GENERATION_FILE_ABSENT,
	GENERATION_FILE_VALID,
	GENERATION_FILE_MALFORMED
} GenerationFileState;

/* Durable when it returns. */
extern void generation_file_write(const char *name, const ClusterGeneration *generation);
extern void generation_file_remove(const char *name);
extern GenerationFileState generation_file_read(const char *name, ClusterGeneration *generation);

#endif							/* QUORUM_GENERATION_H */
