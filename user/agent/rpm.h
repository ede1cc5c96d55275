/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rpm's database, read by the rpm command: its formats (Berkeley DB, ndb, sqlite) are rpm's own
 * affair.
 */
#ifndef VSR_AGENT_RPM_H
#define VSR_AGENT_RPM_H

#include "inventory.h"
#include "rootfs.h"

/*
 * Adds the packages among the lines in the len bytes of text, each of them the six or ten fields of
 * the query formats in rpm.c between tabs. Keys that rpm lists as packages (gpg-pubkey) are left out. A line
 * with too few or too many fields, one longer than INVENTORY_FIELD_MAX, or without name or
 * version, is skipped and counted in inv->skipped. Returns 0, -E2BIG (too many packages),
 * -ENOMEM.
 */
int rpm_parse(struct inventory *inv, const char *text, size_t len, const char *db);

/*
 * Runs command as rpm on the database below root, for at most a minute; stop_fd as for
 * command_run(). Returns 0, -ENOENT (no rpm database here), -ENOPKG (there is one, but no such
 * command), or a negative errno of command_run() and rpm_parse().
 */
int rpm_read(struct inventory *inv, const struct rootfs *root, const char *command, int stop_fd);

#endif
