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

struct settings;
struct settings_errors;
struct names;

struct ctl {
	bool json;	     /* --json: one JSON value on stdout */
	bool pretty;	     /* --pretty: JSON for people; json is set too */
	const char *socket;  /* of the daemon: --socket, else as the settings say; "" is none */
	const char *pin_dir; /* --pin-directory, likewise */
	const char *config;  /* --config: the daemon's settings file; NULL: the default one */
	const char *names;   /* --names, likewise; "" is none */
	struct settings *settings;	/* never NULL: the defaults if the file is no good */
	struct settings_errors *errors; /* what was wrong with it */
	struct names *vm_names;		/* loaded when first asked for (names.h) */
	uint64_t names_at;		/* when; 0: never */
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

/* ---- the daemon ---------------------------------------------------------------------------------- */

/* GETs a page. Returns 0, or negative errno of client.h with nothing said: no daemon, or none that
 * answers. */
int ctl_get(const struct ctl *ctl, const char *page, json_t **ret);

/* Why ctl_get() failed, for people, with what to do about it. Returns buf. */
const char *ctl_why(const struct ctl *ctl, int r, char *buf, size_t size);

/* POSTs a request. Returns CTL_OK with its answer in *ret, or says what went wrong and returns
 * another exit status. */
int ctl_post(const struct ctl *ctl, const char *page, json_t **ret);

/* What POST answered in "done"; text or the JSON itself. Takes the reference over. Returns CTL_OK. */
int ctl_print_done(const struct ctl *ctl, json_t *answer);

/* ---- VMs ----------------------------------------------------------------------------------------- */

/* Reads "CID", "NS:CID" or a name. Returns CTL_OK, or says why not. */
int ctl_parse_vm(struct ctl *ctl, const char *text, struct vsr_vm_id *ret);

/* The VM's name, NULL: it has none. It stays until ctl_names_refresh(). */
const char *ctl_vm_name(struct ctl *ctl, struct vsr_vm_id id);
/* For commands that go on: names are looked for again if the known ones are 2 s old. */
void ctl_names_refresh(struct ctl *ctl);

/* All VMs, or one (only != NULL), as vm_json.h has them, with "name" and "state" besides: from the
 * daemon, or if none answers from the pinned maps, of which a line on stderr then tells.
 * Returns CTL_OK, or says what went wrong and returns another exit status. */
int ctl_vms(struct ctl *ctl, const struct vsr_vm_id *only, json_t **ret);
/* The same, saying nothing: returns 0; 1: from the maps, and why the daemon did not answer; negative
 * errno, and why not. */
int ctl_vms_from(struct ctl *ctl, const struct vsr_vm_id *only, json_t **ret, char *why,
		 size_t size);

/* The array in another order; takes the reference over and returns one. */
json_t *ctl_sorted(json_t *list, int (*compare)(const void *a, const void *b));

/* ---- text ---------------------------------------------------------------------------------------- */

/* "12 s", "3 min", "5 h", "2 d"; "-" for null. */
const char *ctl_age(const json_t *seconds, char buf[static 16]);
/* "512", "1.2K", "34M". */
const char *ctl_bytes(double n, char buf[static 16]);

/* Numbers and texts of objects, with defaults where there is none: nested keys as "a.b". */
json_int_t ctl_int(const json_t *object, const char *path);
const char *ctl_text(const json_t *object, const char *path); /* "-" if there is none */
bool ctl_true(const json_t *object, const char *path);
const json_t *ctl_find(const json_t *object, const char *path); /* NULL */

#endif
