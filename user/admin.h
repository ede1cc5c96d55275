/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the daemon says about itself over HTTP: /metrics and /healthz on an address and on an
 * AF_UNIX socket, /status.json on that socket alone, since it names VMs and the socket has
 * permissions. Read only: GET and HEAD. libmicrohttpd runs on the daemon's event loop, in no
 * thread of its own; it parses, we answer.
 *
 * Whoever can connect can cost little: at most ADMIN_CONNECTIONS at a time and listener, 16 KiB
 * of request each, and one that says nothing for ADMIN_TIMEOUT_S seconds is closed.
 */
#ifndef VSR_ADMIN_H
#define VSR_ADMIN_H

#include <systemd/sd-event.h>

#include "settings.h"

#define ADMIN_CONNECTIONS 16
#define ADMIN_TIMEOUT_S	  5

struct admin_settings {
	const struct settings_address *metrics; /* NULL or not enabled: none. Port 0: any */
	const char *socket;			/* path of the AF_UNIX socket; NULL or "": none */
	/* Called before each rendering of the metrics, to set what is not counted as it happens. */
	void (*refresh)(void *userdata);
	/* What is wrong, in one line, or NULL. Without this function all is well. */
	const char *(*health)(void *userdata);
	/* Writes the status as JSON. Returns 0 or -errno. Without this function there is none. */
	int (*status)(FILE *f, void *userdata);
	void *userdata;
};

struct admin;

/* Listens and serves; with neither address nor socket it does nothing. A socket that nobody
 * listens on any more is replaced, a file that is no socket never. To be called before the drop
 * of privileges if the address or the directory needs them.
 * Returns 0; -EADDRINUSE: somebody listens there; -EEXIST: the path is no socket; -ENAMETOOLONG,
 * -EINVAL: no such path or host; -ENOMEM; and what socket, bind, listen return. */
int admin_new(sd_event *event, const struct admin_settings *s, struct admin **ret);
/* Closes all connections, and removes the socket if it is still ours. */
struct admin *admin_free(struct admin *a);
DEFINE_CLEANUP(struct admin, admin_free);

/* The port that the address got; 0 if there is none. */
uint16_t admin_port(const struct admin *a);

#endif
