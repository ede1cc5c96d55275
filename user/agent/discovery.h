/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the receiver wants to know about a RHEL guest besides its packages: whether it is
 * activated, and whether dnf has the metadata that tell which repository a package is from.
 */
#ifndef VSR_AGENT_DISCOVERY_H
#define VSR_AGENT_DISCOVERY_H

#include "inventory.h"
#include "rootfs.h"

/* ACTIVE: etc/pki/entitlement holds a certificate N.pem with its key N-key.pem. Not known where
 * the directory cannot be read. */
enum activation discovery_activation(const struct rootfs *root);

/* AVAILABLE: etc/yum.repos.d holds a .repo file, and the cache of dnf 4 (a directory with -rpms-
 * in its name) or dnf 5 a repository. Not known where repositories or caches cannot be read. */
enum dnf_metadata discovery_dnf_metadata(const struct rootfs *root);

#endif
