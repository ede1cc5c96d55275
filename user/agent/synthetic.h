/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Invented inventories for tests and benchmarks, shaped as those of real RHEL guests: names and
 * versions that repeat in part, hashes that do not, environments that name many repositories.
 */
#ifndef VSR_AGENT_SYNTHETIC_H
#define VSR_AGENT_SYNTHETIC_H

#include "inventory.h"

/*
 * Fills the empty inv with n packages. Each takes 0.6 to 2.6 KB of the report. The same n and
 * seed give the same inventory on every machine; the first packages do not depend on n.
 * Returns 0, -E2BIG (n is above INVENTORY_PACKAGES_MAX), -ENOMEM.
 */
int synthetic_fill(struct inventory *inv, size_t n, uint64_t seed);

#endif
