// SPDX-License-Identifier: GPL-2.0-only
/*
 * The verdict program, compiled natively over bpf/native.h, and what it needs of the kernel: maps,
 * packets, events. One program that includes it is GPL-2.0-only, since this includes the program's
 * source. It defines SEED, LIMIT, SLOTS, VMS, EVENTS and BLOCKS, the sizes of the maps, before.
 */
#ifndef VSR_TEST_KERNEL_H
#define VSR_TEST_KERNEL_H

#include "../bpf/ingest.bpf.c"
#include "util.h"

/* One packet; the program sees ctx and what bpf_cast_to_kern_ctx() makes of it. */
struct native_skb {
	struct __sk_buff ctx;
	struct sk_buff kern;
	struct sock sk;
	const uint8_t *data;
	uint64_t cookie;
	bool unreadable;
};

static struct {
	struct vsr_conn conns[SLOTS];
	uint64_t cookies[SLOTS]; /* 0: nothing is attached there */
	struct vsr_grant grants[SLOTS];
	struct vsr_buf bufs[SLOTS];
	struct vsr_pool pool;
	uint64_t blocks[BLOCKS];
	struct vsr_stats stats;
	struct {
		bool used;
		struct vsr_vm_id id;
		struct vsr_vm_seen seen;
	} vms[VMS];
	struct vsr_event events[EVENTS];
	unsigned int n_events, room;
	uint64_t now;
	bool vms_full;
} k;

void *bpf_cast_to_kern_ctx(void *obj)
{
	return &container_of((struct __sk_buff *)obj, struct native_skb, ctx)->kern;
}

static void *find_vm(const struct vsr_vm_id *id)
{
	size_t i;

	for (i = 0; i < VMS; i++)
		if (k.vms[i].used && memcmp(&k.vms[i].id, id, sizeof(*id)) == 0)
			return &k.vms[i].seen;
	return NULL;
}

void *bpf_map_lookup_elem(void *map, const void *key)
{
	uint32_t index;
	uint64_t cookie;

	if (map == &vsr_conns) {
		memcpy(&cookie, key, sizeof(cookie));
		for (index = 0; index < SLOTS; index++)
			if (k.cookies[index] == cookie)
				return &k.conns[index];
		return NULL;
	}
	memcpy(&index, key, sizeof(index));
	if (map == &vsr_stats)
		return &k.stats;
	if (map == &vsr_pool)
		return &k.pool;
	if (map == &vsr_grants)
		return index < SLOTS ? &k.grants[index] : NULL;
	if (map == &vsr_bufs)
		return index < SLOTS ? &k.bufs[index] : NULL;
	if (map == &vsr_vms)
		return find_vm(key);
	assert_ptr_equal(map, &vsr_blocks);
	return index < BLOCKS ? &k.blocks[index] : NULL;
}

long bpf_map_update_elem(void *map, const void *key, const void *value, __u64 flags)
{
	size_t i;

	assert_ptr_equal(map, &vsr_vms);
	assert_int_equal(flags, BPF_NOEXIST);
	for (i = 0; i < VMS && !k.vms_full; i++)
		if (!k.vms[i].used) {
			k.vms[i].used = true;
			memcpy(&k.vms[i].id, key, sizeof(k.vms[i].id));
			memcpy(&k.vms[i].seen, value, sizeof(k.vms[i].seen));
			return 0;
		}
	return -ENOMEM;
}

long bpf_skb_load_bytes(const struct __sk_buff *skb, __u32 off, void *to, __u32 len)
{
	const struct native_skb *n = container_of(skb, const struct native_skb, ctx);

	if (n->unreadable || len == 0 || off > skb->len || len > skb->len - off)
		return -EFAULT;
	memcpy(to, n->data + off, len);
	return 0;
}

__u64 bpf_get_socket_cookie(struct __sk_buff *skb)
{
	return container_of(skb, struct native_skb, ctx)->cookie;
}

__u64 bpf_ktime_get_boot_ns(void)
{
	return ++k.now;
}

void *bpf_ringbuf_reserve(void *ringbuf, __u64 size, __u64 flags)
{
	assert_ptr_equal(ringbuf, &vsr_events);
	assert_int_equal(size, sizeof(struct vsr_event));
	assert_int_equal(flags, 0);
	return k.n_events < k.room ? &k.events[k.n_events] : NULL;
}

void bpf_ringbuf_submit(void *data, __u64 flags)
{
	assert_ptr_equal(data, &k.events[k.n_events]);
	assert_int_equal(flags, 0);
	k.n_events++;
}

static void kernel_reset(void)
{
	memset(&k, 0, sizeof(k));
	k.room = EVENTS;
	vsr_seed = SEED;
	vsr_report_limit = LIMIT;
}

/* What the kernel charges for a packet and its socket, in bytes. */
struct charge {
	int rmem, wmem;
	unsigned int truesize;
};

/* One packet on the socket with this cookie. Returns SK_PASS or SK_DROP. */
static int packet_on(uint64_t cookie, const void *data, uint32_t len, struct charge c)
{
	struct native_skb n = { .ctx.len = len, .data = data, .cookie = cookie };

	n.kern.truesize = c.truesize;
	n.kern.sk = &n.sk;
	n.sk.sk_backlog.rmem_alloc.counter = c.rmem;
	n.sk.sk_wmem_alloc.refs.counter = c.wmem + 1;
	return vsr_ingest(&n.ctx);
}

#endif
