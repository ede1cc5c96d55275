/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hybrid sockets (SPEC 3): AF_UNIX listeners for VMMs without vhost-vsock. When a guest connects
 * to port P of its host, Firecracker and Cloud Hypervisor connect to "<uds_path>_P": the relay
 * owns that socket, and which VM it is comes from the configuration, not from the peer.
 *
 * The VMM's directory may belong to somebody else, so nothing there is trusted: directories are
 * opened once, sockets are bound beneath the descriptor, links are not followed, and only a
 * socket that we made is removed.
 */
#ifndef VSR_HYBRID_H
#define VSR_HYBRID_H

#include "listener.h"
#include "sandbox.h"

struct hybrid;

/*
 * Opens the directories, binds what can be bound, and watches the patterns' directories for VMs
 * that come and go. To be called before privileges are dropped; s must outlive it. Returns 0;
 * -errno after it was logged: a directory is missing, a socket is somebody else's, no such group.
 */
int hybrid_new(sd_event *event, struct ingest *ingest, const struct settings *s,
	       struct hybrid **ret);
/* Stops listening and removes the sockets that are still ours. */
struct hybrid *hybrid_free(struct hybrid *h);
DEFINE_CLEANUP(struct hybrid, hybrid_free);

/* Allows what is done in the directories from now on. Returns 0, -errno. */
int hybrid_allow(const struct hybrid *h, struct sandbox *sandbox);

/* Sockets that are listened on now. */
unsigned hybrid_count(const struct hybrid *h);

#endif
