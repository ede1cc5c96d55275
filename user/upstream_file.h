/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The `file` upstream (SPEC section 8): a directory with each VM's newest report as
 * <ns>-<cid>.pb, replaced atomically and fsynced by the disk worker. That is its ACK.
 */
#ifndef VSR_UPSTREAM_FILE_H
#define VSR_UPSTREAM_FILE_H

#include "disk.h"
#include "upstream.h"

/* dir_fd is the open directory; it is taken over. The worker must outlive the upstream.
 * Returns 0 or -ENOMEM (dir_fd is then still the caller's). */
int upstream_file_new(struct disk *disk, int dir_fd, struct upstream **ret);

#endif
