/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vsock-relayctl: what its commands share. A command stands in a table (struct ctl_command) of its
 * object (struct ctl_object), whose table is in main.c: `vsock-relayctl OBJECT COMMAND`. Both may be
 * shortened as long as they are unique. Help, usage errors and the list for completion come from
 * the tables.
 *
 * Every command prints text, or with --json one JSON value, whose keys are stable: they are an
 * interface, and a test holds them. A command prints by ctl_print_json() and stdio on stdout;
 * errors go through ctl_error(), which knows where they belong.
 */
#ifndef VSR_CTL_H
#define VSR_CTL_H

#include <jansson.h>

#include "util.h"
#include "vsr_abi.h"

/* Exit statuses; stable. */
enum ctl_exit {
	CTL_OK = 0,
	CTL_FAILED = 1,	   /* it was tried and failed, or `doctor` found something */
	CTL_USAGE = 2,	   /* the command line makes no sense */
	CTL_NO_DAEMON = 3, /* no daemon answers, and nothing else could be shown */
	CTL_NOT_FOUND = 4, /* no such VM or map */
};

struct ctl_names;

struct ctl {
	bool json;	     /* --json: one JSON value on stdout */
	bool pretty;	     /* --pretty: JSON for people; json is set too */
	const char *socket;  /* of the daemon: --socket, else the settings', else the default */
	const char *pin_dir; /* --pin-directory, likewise */
	const char *config;  /* --config: the daemon's settings file */
	const char *names;   /* --names, else the settings' vm_names; "" is none */
	struct ctl_names *vm_names; /* loaded when first asked for */
};

struct ctl_command {
	const char *name; /* "" if the object has this one command; NULL ends the table */
	const char *args; /* "CID", "[FILE]"; "" for none */
	const char *help; /* one line */
	const char *more; /* more of it, may be NULL */
	/* argv[0] is the command's name; returns an enum ctl_exit. */
	int (*run)(struct ctl *ctl, int argc, char *argv[]);
};

struct ctl_object {
	const char *name;
	const char *help; /* one line */
	const struct ctl_command *commands;
};

/* Prints the value as the options say, with a newline, and flushes; takes the reference over. */
void ctl_print_json(const struct ctl *ctl, json_t *value);

/* Says what went wrong: on stderr, or with --json as {"error": "..."} on stdout. Returns code. */
int ctl_error(const struct ctl *ctl, int code, const char *fmt, ...) _printf_(3, 4);

/* The command takes min to max arguments behind its name. Returns CTL_OK, or says the usage and
 * returns CTL_USAGE. */
int ctl_check_args(const struct ctl *ctl, int argc, char *argv[], int min, int max,
		   const char *usage);

#endif
