/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One relay per directory (SPEC 9): a lock that the kernel ends with its holder, however that
 * ends. Two relays on one run directory or one set of pinned maps would undo each other's work.
 */
#ifndef VSR_LOCK_H
#define VSR_LOCK_H

#include <sys/types.h>

#include "util.h"

#define LOCK_FILE "vsock-relayd.lock"

/*
 * Locks the directory, making it (mode 0755, its parent must be there) if it is missing. The lock
 * is on LOCK_FILE in it, into which our pid is written for people; a BPF file system holds no
 * such file, so there the directory itself is locked. *ret_fd is close-on-exec and holds the lock
 * until it is closed; the file stays behind, since removing it would race with the next holder.
 *
 * Returns 0; -EWOULDBLOCK: another holds it, and *ret_holder is its pid, 0 if that cannot be
 * found out; -ENOTDIR, -ELOOP (LOCK_FILE is a link), -EISDIR (or no regular file), -ENOENT,
 * -EACCES, -EROFS, and what else mkdir(), open(), write() return.
 */
int lock_acquire(const char *directory, int *ret_fd, pid_t *ret_holder);

#endif
