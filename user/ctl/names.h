/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names of VMs, for people: from a file, and from the command lines of QEMU processes (`guest-cid=`
 * and `-name`). The file wins. Nothing but what is shown depends on them.
 */
#ifndef VSR_CTL_NAMES_H
#define VSR_CTL_NAMES_H

#include "settings.h"
#include "util.h"
#include "vsr_abi.h"

#define NAMES_LEN_MAX 63

struct names {
	struct name {
		struct vsr_vm_id id;
		char text[NAMES_LEN_MAX + 1];
	} * entries;
	size_t n;
};

/* Reads a file of lines "CID NAME" or "NS:CID NAME"; '#' begins a comment. ns: of lines without one.
 * Returns 0; -EINVAL with *ret_line: the line that is no such line; -ENOMEM; -errno of open(). */
int names_read_file(struct names *names, const char *path, uint32_t ns, size_t *ret_line);

/* Adds a name from the arguments of a process, each NUL-terminated, if it is a QEMU with a
 * vhost-vsock device and a name, and the VM has none yet. Returns whether it did; -ENOMEM. */
int names_add_command_line(struct names *names, const char *args, size_t len, uint32_t ns);

/* The same for all processes of this machine, below proc ("/proc"): the VM of one that is in the
 * network namespace of one of `listeners` is that one's, all others are of ns. What cannot be read is
 * left out. */
void names_scan_processes(struct names *names, const char *proc, uint32_t ns,
			  const struct settings_listeners *listeners);

/* The VM's name; NULL: it has none. */
const char *names_find(const struct names *names, struct vsr_vm_id id);
/* The VM of that name. Returns 0; -ENOENT; -ENOTUNIQ: several have it. */
int names_lookup(const struct names *names, const char *text, struct vsr_vm_id *ret);

struct names *names_free(struct names *names);
DEFINE_CLEANUP(struct names, names_free);

/* Reads "CID" or "NS:CID". Returns 0, -EINVAL. */
int names_parse_id(const char *text, size_t len, uint32_t ns, struct vsr_vm_id *ret);

#endif
