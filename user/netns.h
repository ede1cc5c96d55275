/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Network namespaces that vsock knows of since Linux 7.0. Each is in one of two modes, chosen when
 * it is made (net.vsock.child_ns_mode of its parent): in `global` it shares CIDs and ports with
 * every other global one, the initial one among them; in `local` it has its own, and reaches
 * nobody outside. A socket belongs for good to the namespace that it was made in, and so do the
 * sockets that it accepts (docs/kernel-facts.md).
 */
#ifndef VSR_NETNS_H
#define VSR_NETNS_H

#include "util.h"

enum netns_mode {
	NETNS_NONE,    /* this kernel has none: every listener sees every VM */
	NETNS_UNKNOWN, /* /proc/sys/net is hidden from us */
	NETNS_GLOBAL,
	NETNS_LOCAL,
};

/* "none", "unknown", "global", "local". */
const char *netns_mode_name(enum netns_mode mode);

/* The one that a file stands for, at this moment. */
struct netns {
	enum netns_mode mode;
	uint64_t inode; /* which one it is: as long as somebody is in it, no other one has it */
};

/* The mode of the network namespace that the calling thread is in. "none" too while the vsock
 * module is not loaded. */
enum netns_mode netns_mode(void);

/*
 * Opens a listener as listener_vsock_open() does, in the network namespace of the file `path`
 * (/run/netns/NAME, /proc/PID/ns/net). The calling thread enters it for as long as that takes,
 * which needs CAP_SYS_ADMIN; the listener needs none afterwards, and keeps the namespace alive.
 *
 * Returns 0 with the namespace; what listener_vsock_open() says, *ret set too;
 * NETNS_NOT_ENTERED (a positive number) with *ret_why: the file cannot be opened, is no network
 * namespace, or may not be entered; -ENOTRECOVERABLE: there is no way back, the process must end.
 */
#define NETNS_NOT_ENTERED 1
int netns_listen(const char *path, uint32_t port, uint32_t backlog, int *ret_fd, struct netns *ret,
		 const char **ret_why);

#endif
