/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fake guest's device: /dev/vhost-vsock driven from user space. This process's own memory is
 * registered as the guest's, with two vrings in it (virtio 1.2, sections 2.7 and 5.10). No VM, no
 * KVM: vhost cannot tell. This file moves packets; fakeguest-stream.h gives them a meaning.
 *
 * vhost handles the transmit ring strictly in order, so descriptors and payload memory are plain
 * ring allocators. A packet that it rejects (descriptor shorter than a header, or than hdr.len
 * says) is dropped without ever being marked used (drivers/vhost/vsock.c, "Faulted on pkt"): its
 * space comes back with the next used packet, or by asking the kernel how far it has read.
 */
#ifndef FAKEGUEST_VHOST_H
#define FAKEGUEST_VHOST_H

#include <endian.h>
#include <fcntl.h>
#include <linux/vhost.h>
#include <linux/virtio_ring.h>
#include <linux/virtio_vsock.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "util.h"

#define FG_HDR_SIZE sizeof(struct virtio_vsock_hdr)
/* What a Linux guest offers to receive into, and the most that vhost takes from one packet. */
#define FG_RX_PAYLOAD  4096U
#define FG_RX_SIZE     (FG_HDR_SIZE + FG_RX_PAYLOAD)
#define FG_PAYLOAD_MAX 65536U
#define FG_TX_AREA     (2 * MIB)
/* Zeros that lengthen a descriptor beyond its packet; never written, so they cost no memory. */
#define FG_PAD_SIZE	(256 * KIB)
#define FG_GPA_BASE	0x10000000ULL
#define FG_RING_MAX	4096U
#define FG_DESC_NATURAL SIZE_MAX

/* One packet's header in CPU byte order. */
struct fg_pkt {
	uint64_t src_cid, dst_cid;
	uint32_t src_port, dst_port, len;
	uint16_t type, op;
	uint32_t flags, buf_alloc, fwd_cnt;
};

struct fg_ring {
	struct vring vring;
	uint16_t avail; /* next index of ours, published by fg_ring_publish() */
	uint16_t used;	/* how far we have read the device's answers */
	int kick;
	bool dirty; /* published since the last kick */
};

/* A packet on its way: what it occupies until vhost has read it. */
struct fg_inflight {
	uint16_t head;
	uint16_t descs;
	uint64_t area_end;
};

struct fg_device {
	int fd;
	int call; /* one eventfd for both rings and for errors: only a wake-up */
	uint64_t cid;

	uint8_t *mem;
	size_t mem_size;
	uint8_t *rx_bufs, *tx_area, *pad;

	struct fg_ring rx, tx;

	uint16_t *rx_free; /* stack of descriptors that vhost does not hold */
	unsigned n_rx_free;
	bool rx_running; /* buffers go back to vhost as soon as they are read */
	int rx_current;	 /* the one handed out by fg_rx_next(), or -1 */

	struct fg_inflight *inflight; /* ring of tx.vring.num, oldest at inflight_tail */
	uint32_t inflight_head, inflight_tail;
	uint16_t desc_next;
	unsigned descs_used;
	uint64_t area_head, area_tail; /* monotonic; modulo FG_TX_AREA */
	size_t reserved;

	uint64_t n_malformed; /* answers of the host that make no sense: dropped and counted */
};

static inline void fg_pkt_encode(const struct fg_pkt *p, struct virtio_vsock_hdr *h)
{
	*h = (struct virtio_vsock_hdr){
		.src_cid = htole64(p->src_cid),
		.dst_cid = htole64(p->dst_cid),
		.src_port = htole32(p->src_port),
		.dst_port = htole32(p->dst_port),
		.len = htole32(p->len),
		.type = htole16(p->type),
		.op = htole16(p->op),
		.flags = htole32(p->flags),
		.buf_alloc = htole32(p->buf_alloc),
		.fwd_cnt = htole32(p->fwd_cnt),
	};
}

static inline void fg_pkt_decode(const void *from, struct fg_pkt *ret)
{
	struct virtio_vsock_hdr h;

	memcpy(&h, from, sizeof(h));
	*ret = (struct fg_pkt){
		.src_cid = le64toh(h.src_cid),
		.dst_cid = le64toh(h.dst_cid),
		.src_port = le32toh(h.src_port),
		.dst_port = le32toh(h.dst_port),
		.len = le32toh(h.len),
		.type = le16toh(h.type),
		.op = le16toh(h.op),
		.flags = le32toh(h.flags),
		.buf_alloc = le32toh(h.buf_alloc),
		.fwd_cnt = le32toh(h.fwd_cnt),
	};
}

static inline uint64_t fg_gpa(const struct fg_device *d, const void *p)
{
	return FG_GPA_BASE + (uint64_t)((const uint8_t *)p - d->mem);
}

static inline void fg_ring_put(struct fg_ring *r, uint16_t head)
{
	r->vring.avail->ring[r->avail % r->vring.num] = htole16(head);
	r->avail++;
	__atomic_store_n(&r->vring.avail->idx, htole16(r->avail), __ATOMIC_RELEASE);
	r->dirty = true;
}

/* The next answer of the device; false if there is none. */
static inline bool fg_ring_get(struct fg_ring *r, uint32_t *ret_id, uint32_t *ret_len)
{
	struct vring_used_elem *e;

	if (le16toh(__atomic_load_n(&r->vring.used->idx, __ATOMIC_ACQUIRE)) == r->used)
		return false;
	e = (struct vring_used_elem *)&r->vring.used->ring[r->used % r->vring.num];
	*ret_id = le32toh(e->id);
	*ret_len = le32toh(e->len);
	r->used++;
	return true;
}

/* Tells vhost about everything published since the last time. One kick costs up to 1 ms under
 * TCG, so callers publish a batch first. */
static inline void fg_kick(struct fg_device *d)
{
	struct fg_ring *rings[] = { &d->rx, &d->tx };
	uint64_t one = 1;

	for (size_t i = 0; i < ARRAY_SIZE(rings); i++)
		if (rings[i]->dirty && write(rings[i]->kick, &one, sizeof(one)) == sizeof(one))
			rings[i]->dirty = false;
}

/* Gives vhost up to max of the receive buffers that it does not hold. */
static inline void fg_rx_fill(struct fg_device *d, unsigned max)
{
	while (d->n_rx_free > 0 && max-- > 0) {
		uint16_t i = d->rx_free[--d->n_rx_free];

		d->rx.vring.desc[i] = (struct vring_desc){
			.addr = htole64(fg_gpa(d, d->rx_bufs + i * FG_RX_SIZE)),
			.len = htole32(FG_RX_SIZE),
			.flags = htole16(VRING_DESC_F_WRITE),
		};
		fg_ring_put(&d->rx, i);
	}
}

/* How many receive buffers vhost still holds. */
static inline unsigned fg_rx_posted(const struct fg_device *d)
{
	return d->rx.vring.num - d->n_rx_free;
}

/* The buffer of the last fg_rx_next() has been read. */
static inline void fg_rx_done(struct fg_device *d)
{
	if (d->rx_current < 0)
		return;
	d->rx_free[d->n_rx_free++] = (uint16_t)d->rx_current;
	d->rx_current = -1;
	if (d->rx_running)
		fg_rx_fill(d, 1);
}

/* The next packet from the host, its payload valid until fg_rx_done(). Returns 1, or 0 if there
 * is none. Nonsense from the host is counted and skipped. */
static inline int fg_rx_next(struct fg_device *d, struct fg_pkt *ret_pkt, const uint8_t **ret_data)
{
	uint32_t id, len;

	fg_rx_done(d);
	while (fg_ring_get(&d->rx, &id, &len)) {
		const uint8_t *buf;

		if (id >= d->rx.vring.num || fg_rx_posted(d) == 0) {
			d->n_malformed++;
			continue;
		}
		d->rx_current = (int)id;
		buf = d->rx_bufs + id * FG_RX_SIZE;
		if (len >= FG_HDR_SIZE && len <= FG_RX_SIZE) {
			fg_pkt_decode(buf, ret_pkt);
			if (ret_pkt->len <= len - FG_HDR_SIZE) {
				*ret_data = buf + FG_HDR_SIZE;
				return 1;
			}
		}
		d->n_malformed++;
		fg_rx_done(d);
	}
	return 0;
}

static inline unsigned fg_tx_outstanding(const struct fg_device *d)
{
	return d->inflight_head - d->inflight_tail;
}

static inline void fg_tx_release_oldest(struct fg_device *d)
{
	struct fg_inflight *f = &d->inflight[d->inflight_tail++ % d->tx.vring.num];

	d->descs_used -= f->descs;
	d->area_tail = f->area_end;
}

/* Takes back the space of packets that vhost has read. */
static inline void fg_tx_reap(struct fg_device *d)
{
	uint32_t id, len;

	while (fg_ring_get(&d->tx, &id, &len)) {
		uint32_t i;

		for (i = d->inflight_tail; i != d->inflight_head; i++)
			if (d->inflight[i % d->tx.vring.num].head == id)
				break;
		if (i == d->inflight_head) {
			d->n_malformed++;
			continue;
		}
		while (d->inflight_tail != i + 1)
			fg_tx_release_oldest(d);
	}
}

/* Also takes back packets that vhost read and threw away. The ioctl waits for vhost's ring lock,
 * so what it has read by then it has also handled. */
static inline void fg_tx_sync(struct fg_device *d)
{
	struct vhost_vring_state s = { .index = 1 };
	uint16_t unread;

	fg_tx_reap(d);
	if (fg_tx_outstanding(d) == 0 || ioctl(d->fd, VHOST_GET_VRING_BASE, &s) < 0)
		return;
	fg_tx_reap(d);
	unread = (uint16_t)(d->tx.avail - (uint16_t)s.num);
	while (fg_tx_outstanding(d) > unread)
		fg_tx_release_oldest(d);
}

/* Room for a packet of up to max payload bytes. Returns where the payload goes (then
 * fg_tx_commit()), or NULL while the ring or its memory is full. */
static inline uint8_t *fg_tx_reserve(struct fg_device *d, size_t max)
{
	size_t need = FG_HDR_SIZE + max;
	uint64_t head = d->area_head;

	if (fg_tx_outstanding(d) == 0)
		head = d->area_head = d->area_tail = 0;
	if (FG_TX_AREA - head % FG_TX_AREA < need)
		head += FG_TX_AREA - head % FG_TX_AREA;
	if (head + need - d->area_tail > FG_TX_AREA || d->descs_used + 2 > d->tx.vring.num ||
	    fg_tx_outstanding(d) == d->tx.vring.num)
		return NULL;
	d->area_head = head;
	d->reserved = max;
	return d->tx_area + head % FG_TX_AREA + FG_HDR_SIZE;
}

static inline uint16_t fg_tx_desc(struct fg_device *d, const void *p, size_t len, bool more)
{
	uint16_t i = d->desc_next;

	d->desc_next = (uint16_t)((i + 1) % d->tx.vring.num);
	d->tx.vring.desc[i] = (struct vring_desc){
		.addr = htole64(fg_gpa(d, p)),
		.len = htole32((uint32_t)len),
		.flags = htole16(more ? VRING_DESC_F_NEXT : 0),
		.next = htole16(d->desc_next),
	};
	return i;
}

/* Sends the reserved packet with len bytes of payload behind the header. total is the size of
 * the buffer that the guest declares, header included; FG_DESC_NATURAL: just what there is. */
static inline void fg_tx_commit(struct fg_device *d, const struct fg_pkt *p, size_t len,
				size_t total)
{
	uint8_t *at = d->tx_area + d->area_head % FG_TX_AREA;
	size_t have = FG_HDR_SIZE + len;
	struct fg_inflight *f = &d->inflight[d->inflight_head % d->tx.vring.num];

	if (total == FG_DESC_NATURAL)
		total = have;
	fg_pkt_encode(p, (struct virtio_vsock_hdr *)at);
	d->area_head += have;
	f->area_end = d->area_head;
	f->head = fg_tx_desc(d, at, MIN(total, have), total > have);
	f->descs = 1;
	if (total > have) {
		fg_tx_desc(d, d->pad, MIN(total - have, FG_PAD_SIZE), false);
		f->descs = 2;
	}
	d->descs_used += f->descs;
	d->inflight_head++;
	fg_ring_put(&d->tx, f->head);
}

/* Closing it is what a vanished VM is to the host. */
static inline struct fg_device *fg_device_free(struct fg_device *d)
{
	if (!d)
		return NULL;
	safe_close(d->fd);
	safe_close(d->call);
	safe_close(d->rx.kick);
	safe_close(d->tx.kick);
	if (d->mem)
		munmap(d->mem, d->mem_size);
	free(d->rx_free);
	free(d->inflight);
	free(d);
	return NULL;
}
DEFINE_CLEANUP(struct fg_device, fg_device_free);

static inline size_t fg_page_align(size_t n)
{
	return (n + 4095) & ~(size_t)4095;
}

static inline int fg_device_memory(struct fg_device *d, unsigned rx_num, unsigned tx_num)
{
	size_t rx_ring = fg_page_align(vring_size(rx_num, 64));
	size_t tx_ring = fg_page_align(vring_size(tx_num, 64));
	size_t rx_bufs = fg_page_align(rx_num * FG_RX_SIZE);
	uint8_t *p;

	d->mem_size = rx_ring + tx_ring + rx_bufs + FG_TX_AREA + FG_PAD_SIZE;
	p = mmap(NULL, d->mem_size, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return -errno;
	d->mem = p;
	vring_init(&d->rx.vring, rx_num, p, 64);
	vring_init(&d->tx.vring, tx_num, p + rx_ring, 64);
	d->rx_bufs = p + rx_ring + tx_ring;
	d->tx_area = d->rx_bufs + rx_bufs;
	d->pad = d->tx_area + FG_TX_AREA;

	d->rx_free = calloc(rx_num, sizeof(*d->rx_free));
	d->inflight = calloc(tx_num, sizeof(*d->inflight));
	if (!d->rx_free || !d->inflight)
		return -ENOMEM;
	for (unsigned i = 0; i < rx_num; i++)
		d->rx_free[d->n_rx_free++] = (uint16_t)i;
	return 0;
}

static inline int fg_device_map(struct fg_device *d)
{
	union {
		struct vhost_memory m;
		uint8_t room[sizeof(struct vhost_memory) + sizeof(struct vhost_memory_region)];
	} table = { .m = { .nregions = 1 } };

	table.m.regions[0] = (struct vhost_memory_region){
		.guest_phys_addr = FG_GPA_BASE,
		.memory_size = d->mem_size,
		.userspace_addr = (uintptr_t)d->mem,
	};
	return ioctl(d->fd, VHOST_SET_MEM_TABLE, &table) < 0 ? -errno : 0;
}

static inline int fg_device_ring(struct fg_device *d, unsigned index, struct fg_ring *r)
{
	struct vhost_vring_state num = { .index = index, .num = r->vring.num };
	struct vhost_vring_state base = { .index = index };
	struct vhost_vring_addr addr = {
		.index = index,
		.desc_user_addr = (uintptr_t)r->vring.desc,
		.avail_user_addr = (uintptr_t)r->vring.avail,
		.used_user_addr = (uintptr_t)r->vring.used,
	};
	struct vhost_vring_file kick = { .index = index };
	struct vhost_vring_file call = { .index = index, .fd = d->call };

	r->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (r->kick < 0)
		return -errno;
	kick.fd = r->kick;
	if (ioctl(d->fd, VHOST_SET_VRING_NUM, &num) < 0 ||
	    ioctl(d->fd, VHOST_SET_VRING_BASE, &base) < 0 ||
	    ioctl(d->fd, VHOST_SET_VRING_ADDR, &addr) < 0 ||
	    ioctl(d->fd, VHOST_SET_VRING_KICK, &kick) < 0 ||
	    ioctl(d->fd, VHOST_SET_VRING_CALL, &call) < 0)
		return -errno;
	return 0;
}

static inline int fg_device_run(struct fg_device *d)
{
	int on = 1;

	if (ioctl(d->fd, VHOST_VSOCK_SET_GUEST_CID, &d->cid) < 0 ||
	    ioctl(d->fd, VHOST_VSOCK_SET_RUNNING, &on) < 0)
		return -errno;
	return 0;
}

static inline bool fg_ring_size_ok(unsigned num)
{
	return num >= 2 && num <= FG_RING_MAX && (num & (num - 1)) == 0;
}

/* A running guest with this CID. Ring sizes are powers of two. Returns 0; -EINVAL for a size or a
 * CID that vhost does not take, -EADDRINUSE for one that is taken, -ENOMEM, or the errno of
 * opening /dev/vhost-vsock. */
static inline int fg_device_new(uint64_t cid, unsigned rx_num, unsigned tx_num,
				struct fg_device **ret)
{
	_cleanup_(fg_device_freep)
	struct fg_device *d = NULL;
	uint64_t features = 1ULL << VIRTIO_F_VERSION_1;
	int r;

	if (!fg_ring_size_ok(rx_num) || !fg_ring_size_ok(tx_num))
		return -EINVAL;
	d = calloc(1, sizeof(*d));
	if (!d)
		return -ENOMEM;
	*d = (struct fg_device){
		.cid = cid,
		.call = -1,
		.rx.kick = -1,
		.tx.kick = -1,
		.rx_current = -1,
		.rx_running = true,
		.fd = open("/dev/vhost-vsock", O_RDWR | O_CLOEXEC),
	};
	if (d->fd < 0)
		return -errno;
	d->call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (d->call < 0)
		return -errno;
	r = fg_device_memory(d, rx_num, tx_num);
	if (r < 0)
		return r;
	if (ioctl(d->fd, VHOST_SET_OWNER) < 0 || ioctl(d->fd, VHOST_SET_FEATURES, &features) < 0)
		return -errno;
	r = fg_device_map(d);
	if (r >= 0)
		r = fg_device_ring(d, 0, &d->rx);
	if (r >= 0)
		r = fg_device_ring(d, 1, &d->tx);
	if (r >= 0)
		r = fg_device_run(d);
	if (r < 0)
		return r;
	fg_rx_fill(d, rx_num);
	fg_kick(d);
	*ret = TAKE_PTR(d);
	return 0;
}

#endif
