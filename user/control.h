/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What operators see and do: the pages behind user/admin.h, and through them vsock-relayctl.
 *
 *   /metrics                          Prometheus' text                         everybody
 *   /healthz                          "ok": the event loop turns               everybody
 *   /readyz                           200 or 503; a line for each check        everybody
 *   /status.json                      all figures; no VM is named              everybody
 *   /vms.json[?cid=N[&ns=N]]          what is known of each VM                 socket
 *   /cache.json                       entries of the payload cache             socket
 *   POST /retry?cid=N[&ns=N]          sends the VM's content now               socket, see admin.h
 *   POST /flush                       sends every content in custody now
 *   POST /drop?cid=N[&ns=N][&lose=1]  removes the VM's cache entry
 *   POST /reload                      as SIGHUP; says what came of it
 *   POST /loglevel[?level=NAME]       says or sets what is logged
 *
 * The keys of the JSON are an interface (docs/operating.md). Times are ages in seconds, null where
 * there is none.
 */
#ifndef VSR_CONTROL_H
#define VSR_CONTROL_H

#include "admin.h"
#include "admission.h"
#include "ingest.h"
#include "netns.h"
#include "relay.h"

/* A listener inside another network namespace. */
struct control_listener {
	const struct settings_listener *settings;
	struct netns netns;
};

/* What the daemon is told about when a page is asked for. */
struct control_state {
	const struct settings *settings;       /* in force */
	bool vsock;			       /* listens on vsock, on listen.port */
	const char *ns_mode;		       /* of our own network namespace (user/netns.h) */
	const struct control_listener *inside; /* those of settings->listeners that are served */
	size_t n_inside;
	bool hybrid; /* serves hybrid sockets, of which there may be none now */
	unsigned n_hybrid;
	bool stopping;
	bool disk_hangs;
	const char *spool; /* "ok" or what is wrong with it, in a word; NULL: no state directory */
	const char *spool_why; /* in words; may be NULL */
};

/* All of it must outlive the control; bpf may be NULL. */
struct control_parts {
	struct vm_table *vms;
	struct admission *admission;
	struct relay *relay;
	struct ingest *ingest;
	struct ingest_bpf *bpf;
	struct upstream *upstream;
	void (*state)(void *userdata, struct control_state *ret);
	/* Sets the metrics that are not counted as things happen. */
	void (*refresh)(void *userdata);
	/* Reads the settings again; logs what comes of it. Returns 0, negative errno. */
	int (*reload)(void *userdata);
	void *userdata;
};

struct control;

/* Returns 0, -ENOMEM. */
int control_new(const struct control_parts *parts, struct control **ret);
struct control *control_free(struct control *c);
DEFINE_CLEANUP(struct control, control_free);

/* For admin_new(): the pages, whose userdata is the control. */
extern const struct admin_page control_pages[];
extern const size_t control_n_pages;

#endif
