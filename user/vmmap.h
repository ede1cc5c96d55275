/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hash table from struct vsr_vm_id to an element that holds a vmmap_node. Intrusive: adding
 * cannot fail (only growing allocates, and a table that cannot grow gets slower, not wrong).
 *
 * The hash is a fixed mix without a secret: the host, not the guest, chooses CIDs and namespace
 * numbers, so nobody hostile can pick keys that collide.
 */
#ifndef VSR_VMMAP_H
#define VSR_VMMAP_H

#include <linux/types.h>

#include "util.h"
#include "vsr_abi.h"

struct vmmap_node {
	struct vsr_vm_id id;
	struct vmmap_node *next;
};

struct vmmap {
	struct vmmap_node **buckets;
	size_t n;    /* elements */
	size_t mask; /* number of buckets - 1, a power of two less one */
};

static inline bool vm_id_equal(struct vsr_vm_id a, struct vsr_vm_id b)
{
	return a.ns == b.ns && a.cid == b.cid;
}

/* An empty map. Returns 0, -ENOMEM. */
int vmmap_init(struct vmmap *m);
/* Frees the table, not the elements. A map that is all zero may be given. */
void vmmap_done(struct vmmap *m);

/* The node with this id, or NULL. */
struct vmmap_node *vmmap_find(const struct vmmap *m, struct vsr_vm_id id);

/* Adds the node under the id; there must be none with that id yet. */
void vmmap_add(struct vmmap *m, struct vmmap_node *node, struct vsr_vm_id id);

/* Takes out the node, which must be in this map. */
void vmmap_remove(struct vmmap *m, struct vmmap_node *node);

/* All nodes in no particular order: pass NULL for the first; returns NULL behind the last. The
 * map must not change in between, except that one may remove `node` after fetching the next. */
struct vmmap_node *vmmap_next(const struct vmmap *m, const struct vmmap_node *node);

/* The element that holds the node, or NULL for NULL. */
#define vmmap_entry(node, type, member)                             \
	({                                                          \
		struct vmmap_node *_map_n = (node);                 \
		(type *)element_of(_map_n, offsetof(type, member)); \
	})

#endif
