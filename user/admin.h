/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon over HTTP: pages on an address and on an AF_UNIX socket. What a page says is its
 * function's (user/control.c); who may see it is decided here. libmicrohttpd runs on the daemon's
 * event loop, in no thread of its own; it parses, we answer.
 *
 * Whoever can connect can cost little: at most ADMIN_CONNECTIONS at a time and listener, 16 KiB
 * of request each, and one that says nothing for ADMIN_TIMEOUT_S seconds is closed.
 */
#ifndef VSR_ADMIN_H
#define VSR_ADMIN_H

#include <sys/types.h>
#include <systemd/sd-event.h>

#include "settings.h"

#define ADMIN_CONNECTIONS 16
#define ADMIN_TIMEOUT_S	  5

enum admin_access {
	ADMIN_OPEN,    /* GET and HEAD, on both */
	ADMIN_PRIVATE, /* GET and HEAD, on the socket alone: it names VMs */
	/* POST without a body, on the socket alone, and for root, the daemon's own user and the
	 * socket's group only (SO_PEERCRED) */
	ADMIN_WRITE,
};

struct admin_request;
/* The value of a key of the query, as in "?cid=42"; NULL: not there. */
const char *admin_query(const struct admin_request *q, const char *key);

struct admin_page {
	const char *path;
	enum admin_access access;
	const char *type; /* ADMIN_TEXT... */
	/* Writes the page. Returns the HTTP status, or -errno: 500. */
	int (*answer)(const struct admin_request *q, FILE *f, void *userdata);
};
#define ADMIN_TEXT    "text/plain; charset=utf-8"
#define ADMIN_METRICS "text/plain; version=0.0.4; charset=utf-8"
#define ADMIN_JSON    "application/json"

struct admin_settings {
	const struct settings_address *metrics; /* NULL or not enabled: none. Port 0: any */
	const char *certificate, *key;		/* PEM files for that address; NULL or "": HTTP */
	const char *socket;			/* path of the AF_UNIX socket; NULL or "": none */
	bool give_group;			/* the socket is given to the group `gid` */
	gid_t gid;
	const struct admin_page *pages; /* must live as long as the admin */
	size_t n_pages;
	void *userdata;
};

struct admin;

/* Listens and serves; with neither address nor socket it does nothing. A socket that nobody
 * listens on any more is replaced, a file that is no socket never. To be called before the drop
 * of privileges if the address or the directory needs them.
 * Returns 0; -EADDRINUSE: somebody listens there; -EEXIST: the path is no socket; -ENAMETOOLONG,
 * -EINVAL: no such path or host, or no certificate and key (logged); -EKEYREJECTED: they are no
 * pair; -ENOMEM; and what socket, bind, listen, chown, open return. */
int admin_new(sd_event *event, const struct admin_settings *s, struct admin **ret);
/* Closes all connections, and removes the socket if it is still ours. */
struct admin *admin_free(struct admin *a);
DEFINE_CLEANUP(struct admin, admin_free);

/* Reads certificate and key again. What is wrong is logged, and the old ones stay in use; connections
 * of the address end. Returns 0 (also without TLS), negative errno as above. */
int admin_reload(struct admin *a);

/* The port that the address got; 0 if there is none. */
uint16_t admin_port(const struct admin *a);

#endif
