/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dpkg's database: /var/lib/dpkg/status (deb822 stanzas), and status.d with one file a package,
 * which images without dpkg have.
 */
#ifndef VSR_AGENT_DPKG_H
#define VSR_AGENT_DPKG_H

#include "inventory.h"
#include "rootfs.h"

#define DPKG_STATUS	"var/lib/dpkg/status"
#define DPKG_STATUS_DIR "var/lib/dpkg/status.d"

/*
 * Adds the installed packages among the stanzas in the len bytes of text. A stanza counts as
 * installed if the third word of its Status is installed, triggers-awaited or triggers-pending;
 * without a Status only if status_optional is set. A stanza that names its package or version
 * not at all, twice, or in more than INVENTORY_FIELD_MAX bytes, is skipped and counted in
 * inv->skipped. Returns 0, -E2BIG (too many packages), -ENOMEM.
 */
int dpkg_parse(struct inventory *inv, const char *text, size_t len, const char *db,
	       bool status_optional);

/* Returns 0, -ENOENT (no such database here), or a negative errno of dpkg_parse(), rootfs_read()
 * and rootfs_list(). */
int dpkg_read(struct inventory *inv, const struct rootfs *root);

#endif
