/* SPDX-License-Identifier: Apache-2.0 */
#include "vmmap.h"

#include "vsr_digest.h"

#define BUCKETS_MIN 64

static size_t slot_of(struct vsr_vm_id id, size_t mask)
{
	/* CIDs are often consecutive and namespaces few: the avalanche spreads both. */
	return vsr_xxh_avalanche((uint64_t)id.ns << 32 | id.cid) & mask;
}

int vmmap_init(struct vmmap *m)
{
	struct vmmap_node **buckets = calloc(BUCKETS_MIN, sizeof(*buckets));

	if (!buckets)
		return -ENOMEM;
	*m = (struct vmmap){ .buckets = buckets, .mask = BUCKETS_MIN - 1 };
	return 0;
}

void vmmap_done(struct vmmap *m)
{
	free(m->buckets);
	*m = (struct vmmap){ 0 };
}

struct vmmap_node *vmmap_find(const struct vmmap *m, struct vsr_vm_id id)
{
	struct vmmap_node *node = m->buckets[slot_of(id, m->mask)];

	while (node && !vm_id_equal(node->id, id))
		node = node->next;
	return node;
}

static void link_node(struct vmmap_node **buckets, size_t mask, struct vmmap_node *node)
{
	struct vmmap_node **bucket = &buckets[slot_of(node->id, mask)];

	node->next = *bucket;
	*bucket = node;
}

static void grow(struct vmmap *m)
{
	size_t size = 2 * (m->mask + 1);
	struct vmmap_node **buckets = calloc(size, sizeof(*buckets));

	if (!buckets)
		return;
	for (size_t i = 0; i <= m->mask; i++)
		for (struct vmmap_node *node = m->buckets[i], *next; node; node = next) {
			next = node->next;
			link_node(buckets, size - 1, node);
		}
	free(m->buckets);
	m->buckets = buckets;
	m->mask = size - 1;
}

void vmmap_add(struct vmmap *m, struct vmmap_node *node, struct vsr_vm_id id)
{
	if (m->n > m->mask)
		grow(m);
	node->id = id;
	link_node(m->buckets, m->mask, node);
	m->n++;
}

void vmmap_remove(struct vmmap *m, struct vmmap_node *node)
{
	struct vmmap_node **p = &m->buckets[slot_of(node->id, m->mask)];

	while (*p != node)
		p = &(*p)->next;
	*p = node->next;
	node->next = NULL;
	m->n--;
}

struct vmmap_node *vmmap_next(const struct vmmap *m, const struct vmmap_node *node)
{
	size_t i = 0;

	if (node) {
		if (node->next)
			return node->next;
		i = slot_of(node->id, m->mask) + 1;
	}
	for (; i <= m->mask; i++)
		if (m->buckets[i])
			return m->buckets[i];
	return NULL;
}
