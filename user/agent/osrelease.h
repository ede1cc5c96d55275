/* SPDX-License-Identifier: Apache-2.0 */
/*
 * os-release(5): which distribution this is.
 */
#ifndef VSR_AGENT_OSRELEASE_H
#define VSR_AGENT_OSRELEASE_H

#include "arena.h"
#include "rootfs.h"

struct osrelease {
	const char *id;
	const char *name;
	const char *version;
	const char *version_id;
	const char *version_codename;
	const char *pretty_name;
	const char *cpe_name;
};

/* All fields "". */
void osrelease_init(struct osrelease *os);

/*
 * Reads the assignments in the len bytes of text: values bare, in single or in double quotes,
 * with shell's escapes; the last assignment of a name counts. Lines that are no assignment and
 * names that are not wanted are passed over; a value longer than 1024 bytes, too. *os keeps what
 * is not assigned. Returns 0, -ENOMEM.
 */
int osrelease_parse(struct arena *arena, const char *text, size_t len, struct osrelease *os);

/* Reads etc/os-release or usr/lib/os-release. Returns 0, -ENOENT (neither is there), or a
 * negative errno of rootfs_read() and osrelease_parse(). */
int osrelease_read(struct arena *arena, const struct rootfs *root, struct osrelease *os);

#endif
