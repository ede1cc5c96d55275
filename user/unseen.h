/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packets that wait in a vsock socket's own queue although the verdict runs on it: those without
 * payload, which wake nobody, and whatever came behind them. The kernel charges them to no socket
 * and SO_MEMINFO does not show them; but each holds a reference on its socket, and an iterator
 * over vsr_socks (bpf/unseen.bpf.c) reads how many there are.
 *
 * Loading needs capabilities; looking needs none.
 */
#ifndef VSR_UNSEEN_USER_H
#define VSR_UNSEEN_USER_H

#include "util.h"

/* What such a packet costs the kernel at most: a descriptor of 64 KiB, its sk_buff, and what
 * allocating it in pages adds (66432 bytes of truesize; 66.3 KB of MemAvailable measured). */
#define UNSEEN_PACKET_COST (66 * KIB)
/* The kernel resets the connection rather than queue more packets than credit / this:
 * SKB_TRUESIZE(0) on amd64, virtio_transport_inc_rx_pkt(). */
#define UNSEEN_PACKET_CREDIT 576
/* References of an attached socket without such packets: the open file, the table of connected
 * sockets, and the iterator itself (docs/kernel-facts.md, unseen_packets)... */
#define UNSEEN_IDLE_REFERENCES 3
/* ... and a few that come and go with a packet under way: 5 were seen at most. So few packets cannot
 * be told from nothing. */
#define UNSEEN_BUSY_REFERENCES 8

/* Bytes of kernel memory that a guest with that much credit can keep without being seen. */
static inline uint64_t unseen_most(uint64_t credit)
{
	return credit / UNSEEN_PACKET_CREDIT * UNSEEN_PACKET_COST;
}

struct unseen;

/* socks_fd: the map vsr_socks. Returns 0, -ENOMEM, or what the kernel says that knows no such
 * iterator (before 5.10) or does not let us load it. */
int unseen_new(int socks_fd, struct unseen **ret);
struct unseen *unseen_free(struct unseen *u);
DEFINE_CLEANUP(struct unseen, unseen_free);

/* packets: those in the queue of the socket with this cookie, more than can be a packet under way. */
typedef void (*unseen_cb)(uint64_t cookie, uint32_t packets, void *userdata);

/* Looks at all sockets in the map, and calls cb for those with such packets. cb must not look
 * itself. Returns 0 or -errno. */
int unseen_look(struct unseen *u, unseen_cb cb, void *userdata);

#endif
