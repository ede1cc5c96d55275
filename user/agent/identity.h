/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who this VM is: its CID on the host, and an id that tells it from others.
 */
#ifndef VSR_AGENT_IDENTITY_H
#define VSR_AGENT_IDENTITY_H

#include "rootfs.h"

#define IDENTITY_CID_MAX 11 /* ten digits and the NUL */
#define IDENTITY_ID_MAX	 128

/* Asks the kernel for the own CID. Returns 0, -EADDRNOTAVAIL (the kernel has no CID: no vsock
 * device in this VM), or a negative errno of open(2) and ioctl(2) on /dev/vsock. */
int identity_own_cid(uint32_t *ret);

/*
 * Fills id with /sys/class/dmi/id/product_uuid in lower case, which only root may read, or else
 * with /etc/machine-id. Returns 0, -ENOENT (neither can be read).
 */
int identity_vm_id(const struct rootfs *root, char id[static IDENTITY_ID_MAX]);

#endif
