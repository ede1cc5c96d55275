/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the packages may come from: the enabled sources of apt, and those of dnf and yum.
 */
#ifndef VSR_AGENT_REPOSITORIES_H
#define VSR_AGENT_REPOSITORIES_H

#include "inventory.h"
#include "rootfs.h"

/*
 * Each of these adds the enabled repositories in the len bytes of text. What is damaged is passed
 * over; so is what exceeds INVENTORY_REPOSITORIES_MAX. User names, passwords and queries in URIs
 * are left out: they are secrets. Return 0, -ENOMEM.
 */
int repositories_parse_list(struct inventory *inv, const char *text, size_t len); /* apt's *.list */
int repositories_parse_sources(struct inventory *inv, const char *text, size_t len); /* *.sources */
int repositories_parse_repo(struct inventory *inv, const char *text, size_t len); /* dnf's *.repo */

/* Adds RHEL's own repository, by the CPE in inv->os, then reads all the files below etc/apt and
 * etc/yum.repos.d; those that cannot be read are passed over. Returns 0, -ENOMEM. */
int repositories_read(struct inventory *inv, const struct rootfs *root);

#endif
