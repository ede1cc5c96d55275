/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Listening sockets: AF_VSOCK with zero credit (KERNEL.md 3), and what accepting from any of
 * them takes. Accepting comes first in each turn of the loop, at most 64 a turn, so that a
 * backlog never fills while reports are read.
 */
#ifndef VSR_LISTENER_H
#define VSR_LISTENER_H

#include <systemd/sd-event.h>

#include "ingest.h"
#include "list.h"
#include "settings.h"

struct listener;

/* Opens, binds to VMADDR_CID_ANY and listens. Accepted sockets advertise zero credit.
 * Returns 0; -EAFNOSUPPORT: the kernel has no AF_VSOCK (yet); -EADDRINUSE; -EACCES: a port below
 * 1024 needs CAP_NET_BIND_SERVICE; what else the calls return. */
int listener_vsock_open(uint32_t port, uint32_t backlog, int *ret_fd);

/* Whether this kernel has AF_VSOCK; loads its module where the kernel does so on demand. Returns 0,
 * -EAFNOSUPPORT. */
int listener_vsock_probe(void);

/* Accepts from fd (taken over) on vsock for ingest: the peer's CID identifies the VM in namespace
 * ns. all: the list of all vsock listeners, which it joins, and which must outlive it. Returns 0,
 * -ENOMEM, or what sd-event says (fd is then still the caller's). */
int listener_vsock_new(sd_event *event, struct ingest *ingest, int fd, uint32_t ns,
		       struct list *all);

/* The same for an AF_UNIX socket, for one VM. Only peers with an allowed uid are accepted; uids
 * must outlive the listener. */
int listener_unix_new(sd_event *event, struct ingest *ingest, int fd, struct vsr_vm_id id,
		      const struct settings_uids *uids, struct listener **ret);

/* Tells ingest if no vsock connection waits to be accepted at this moment, in no listener of the
 * list. To be called while a VM has debt: what is accepted later was requested after all that is
 * closed now, and can end it (admission_backlog_empty()). accept() alone says so too late, after
 * the connection itself. */
void listener_look(const struct list *all);

/* Ends all listeners of a list. */
void listener_free_all(struct list *all);

struct listener *listener_free(struct listener *l);
DEFINE_CLEANUP(struct listener, listener_free);

#endif
