/*
 * node_check.h
 *	  What the cluster functions check of a node before they believe it: its name, its conninfo, and where that leads.
 *
 * Process: client backends.  Every function raises an error with SQLSTATE and HINT if something is wrong.
 */
#ifndef QUORUM_NODE_CHECK_H
#define QUORUM_NODE_CHECK_H

#include "postgres.h"

#include "cluster/peer_query.h"
#include "shared/shmem.h"

/* 55000 if the library is not preloaded: there is no shared memory then, and nothing else may be called. */
extern void require_shared_state(void);

/* 55000 unless this node is a member of a cluster and its consensus worker knows; fills in *identity. */
extern void require_membership(NodeIdentity *identity);

/* Does this instance have an identity, whether its consensus worker knows or not? */
extern bool has_identity_file(void);

/* 55000 if this instance has an identity already. */
extern void refuse_if_member(void);

/* 42602 unless it consists of 1 to 63 of a-z, 0-9, _ and -, and starts with a letter or digit. */
extern void check_node_name(const char *node_name);

/*
 * 22023 unless libpq can parse it, it says a host, and it holds no password.  `parameter` is the name of the argument that it came in.
 */
extern void check_conninfo(const char *conninfo, const char *parameter);

/* One running instance, and no other, has this text: not its clone, nor itself after a restart.  palloc'd. */
extern char *own_instance_id(void);

/*
 * The server there is a primary, its database holds the extension, and the role that we are there is a member of `role`
 * (quorum_peer or quorum_admin).  `target` is for messages.
 */
extern void check_is_quorum_node(PeerConnection *peer, const char *target, const char *role);

/* 22023 unless that conninfo, tried from here, leads to the instance with that id; on connecting see peer_connect(). */
extern void check_leads_to_instance(const char *conninfo, const char *target, const char *instance_id);

#endif							/* QUORUM_NODE_CHECK_H */
