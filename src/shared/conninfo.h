/*
 * conninfo.h
 *	  Connection strings of members, as far as they may be shown.  Any process; pure but for palloc.
 */
#ifndef QUORUM_CONNINFO_H
#define QUORUM_CONNINFO_H

#include "postgres.h"

/*
 * The connection string without its secrets (every option that libpq itself hides: password, sslpassword), in keyword form and
 * palloc'd.  A string that libpq cannot parse gives "(malformed)": nothing of it can be told from a password.
 */
extern char *conninfo_for_display(const char *conninfo);

/* Can libpq parse it, and is it a connection string at all?  (Its own complaint may quote the password, so it is not handed on.) */
extern bool conninfo_is_valid(const char *conninfo);

#endif							/* QUORUM_CONNINFO_H */
