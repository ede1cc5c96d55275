/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dropping privileges (SPEC 9, DESIGN 2): loading BPF, binding port 818 and opening directories
 * need them, serving hostile guests must not have them.
 */
#ifndef VSR_PRIVILEGE_H
#define VSR_PRIVILEGE_H

#include <sys/types.h>

#include "util.h"

#define PRIVILEGE_GROUPS_MAX 64

/* Whom to become. */
struct privilege_identity {
	uid_t uid;
	gid_t gid;
	gid_t groups[PRIVILEGE_GROUPS_MAX]; /* the account's supplementary groups */
	int n_groups;
};

/*
 * Looks up a user and a group by name or number. group "" is the user's own; a number without an
 * account needs a group. To be done before the drop: it may read files and load libraries.
 * Returns 0, -ESRCH (no such user, or a number without account and group), -ENOENT (no such
 * group), -E2BIG (more groups than fit), -ENOMEM, and what the name service returns.
 */
int privilege_resolve(const char *user, const char *group, struct privilege_identity *ret);

/* Adds a supplementary group by name or number: that of hybrid sockets, which are given to it
 * after the drop too. Returns 0 (also if it is there), -ENOENT, -E2BIG, -ENOMEM. */
int privilege_add_group(struct privilege_identity *id, const char *group);

/*
 * Becomes id (NULL: stays who we are), and whoever that is, gives up every capability in every
 * set, the way to new ones (no_new_privs) and, unless core_dumps, core dumps, which would hold
 * reports. Then reads all of it back. May be called again. Without the privilege to do so the bounding set stays as
 * it is, which no_new_privs makes meaningless, and id must be who we are.
 *
 * Capabilities belong to threads: to be called before the first one is started.
 *
 * Returns 0; -EBUSY: there is more than one thread, nothing was changed; -EPERM: not ours to do;
 * -ENOTRECOVERABLE: what was read back is not what was asked for; -ENOMEM. After an error the
 * process may be half-way and must end.
 */
int privilege_drop(const struct privilege_identity *id, bool core_dumps);

/* What the calling process is and may, as /proc/self/status has it: the kernel's own account. */
struct privilege_state {
	uid_t uid; /* effective */
	gid_t gid;
	uint64_t inheritable, permitted, effective, bounding, ambient; /* capability sets */
	bool no_new_privs;
	int seccomp; /* 0: none, 2: a filter */
};

/* Returns 0, -errno of open(), -EBADMSG (a line is missing). */
int privilege_state(struct privilege_state *ret);

/*
 * Makes a directory and gives it to uid and gid (-1: whom it would belong to anyway), or takes the
 * one that is there as it is. Beneath another directory no link is followed; at a path (at is
 * AT_FDCWD) the administrator may have made one. What cannot be given away is removed again: the
 * next start would take it for somebody else's. Returns 0 with a descriptor of the caller's, or
 * -errno of mkdir(), open(), fchown().
 */
int privilege_make_directory(int at, const char *name, mode_t mode, uid_t uid, gid_t gid, int *ret);

/*
 * Opens every path of a NULL-terminated list for reading (a directory: for listing) and closes
 * it: what a reload will need must be readable now, right after the drop, and not fail in a
 * week. "" is skipped. Returns 0, or the -errno of open() with *ret_path set to the path.
 */
int privilege_check_readable(const char *const *paths, const char **ret_path);

#endif
