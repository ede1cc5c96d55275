/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names to addresses, on the event loop (c-ares): a resolver that never answers stops nothing but
 * the one look-up, which ends after RESOLVE_LIMIT.
 */
#ifndef VSR_RESOLVE_H
#define VSR_RESOLVE_H

#include <sys/socket.h>
#include <systemd/sd-event.h>

#include "util.h"

#define RESOLVE_ADDRESSES_MAX 16
#define RESOLVE_LIMIT	      (10 * USEC_PER_SEC)

struct resolve_address {
	struct sockaddr_storage sa;
	socklen_t len;
};

/* The answer: n addresses in the order in which to try them; 0 and why not, in words. Called from
 * the event loop, never from within resolve_new(). */
typedef void (*resolve_done_t)(const struct resolve_address *addresses, size_t n, const char *why,
			       void *userdata);

struct resolve;

/* Looks up a name or numeric address; /etc/resolv.conf and /etc/hosts are read anew each time.
 * Returns 0, -ENOMEM, -EINVAL (c-ares cannot work here), or what sd-event returns. */
int resolve_new(sd_event *event, const char *host, uint16_t port, resolve_done_t done,
		void *userdata, struct resolve **ret);
/* Also ends a look-up that is under way: done() is not called then. Not from within done(). */
struct resolve *resolve_free(struct resolve *r);
DEFINE_CLEANUP(struct resolve, resolve_free);

#endif
