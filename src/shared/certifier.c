/*
 * certifier.c
 *	  The verdict over an entry, from the log alone.  Process: consensus worker (any program: this file is pure C).
 *
 * Must never look at anything but its arguments: every node has to come to the same verdict, at each replay.
 *
 * Invariants
 *	 1. last_index is the index of the last entry with verdict APPLY, last_origin and last_incarnation are its author.
 *	 2. last_other_index is that of the last such entry of any other author; it is smaller than last_index, or both are 0.
 */
#include "shared/certifier.h"

uint64_t
certify(Certifier *certifier, uint64_t index, uint32_t origin, uint64_t incarnation, uint64_t base)
{
	bool		same_author = certifier->last_origin == origin && certifier->last_incarnation == incarnation;
	uint64_t	last_of_others = same_author ? certifier->last_other_index : certifier->last_index;

	/* No author can have seen its own entry or a later one: such a base is made up, and would hide conflicts. */
	if (base >= index)
		return index;
	if (last_of_others > base)
		return last_of_others;
	if (!same_author)
	{
		certifier->last_other_index = certifier->last_index;
		certifier->last_origin = origin;
		certifier->last_incarnation = incarnation;
	}
	certifier->last_index = index;
	return 0;
}
