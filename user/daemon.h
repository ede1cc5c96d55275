/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon: puts the parts together on one event loop, and takes them apart again. What it
 * decides itself is only the order: what needs a capability comes before the drop of privileges,
 * and who is used outlives who uses it.
 */
#ifndef VSR_DAEMON_H
#define VSR_DAEMON_H

#include "settings.h"

struct daemon;

/* How the settings came to be, for a reload. */
struct daemon_args {
	int argc;
	char *const *argv;
	char *const *envp;
};

/* Level, format and sink of the log, as the settings say. */
void daemon_set_log(const struct settings *s);

/* Sets everything up to the point where reports are accepted. settings are taken over in any
 * case. What fails is logged. Returns 0; -EWOULDBLOCK: another instance runs (exit 75); another
 * negative errno. */
int daemon_new(const struct daemon_args *args, struct settings *settings, struct daemon **ret);

/* Runs until SIGTERM or SIGINT, and then on to the end of the reports in progress, at most
 * shutdown_grace. Returns 0 or a negative errno of the loop. */
int daemon_run(struct daemon *d);

struct daemon *daemon_free(struct daemon *d);
DEFINE_CLEANUP(struct daemon, daemon_free);

#endif
