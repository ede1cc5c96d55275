/* SPDX-License-Identifier: Apache-2.0 */
#include "credit.h"

#include <linux/vm_sockets.h>
#include <poll.h>
#include <sys/socket.h>

#include "pool.h"
#include "unseen.h"

/* Half of the reserve is for those who outgrow their reservation, half for credit; a connection gets
 * at most half of what is left of that. */
#define HALF 2

struct credit credit_choose(struct vsr_pool *pool, uint64_t most)
{
	uint64_t keep = __atomic_load_n(&pool->limit, __ATOMIC_RELAXED) / HALF;
	uint64_t room = usec_sub(pool_left(pool), keep), least = unseen_most(CREDIT_LEAST);

	for (uint64_t bytes = most; bytes > CREDIT_LEAST; bytes /= 2) {
		uint64_t cost = unseen_most(bytes);

		if (cost <= room / HALF && pool_draw(pool, cost))
			return (struct credit){ .bytes = bytes, .drawn = cost };
	}
	if (least <= room && pool_draw(pool, least))
		return (struct credit){ .bytes = CREDIT_LEAST, .drawn = least };
	return (struct credit){ .bytes = CREDIT_LEAST, .charged = least };
}

int credit_raise(int fd, uint64_t bytes)
{
	/* The maximum first: the size is clamped to it. */
	if (setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_BUFFER_MAX_SIZE, &bytes, sizeof(bytes)) < 0 ||
	    setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE, &bytes, sizeof(bytes)) < 0)
		return -errno;
	return 0;
}

void credit_give_back(struct credit *c, struct vsr_pool *pool)
{
	pool_give_back(pool, c->drawn);
	c->drawn = 0;
	c->charged = 0;
}

/* The peer sends no more and receives no more, was reset, or is gone: the kernel has done with it
 * (virtio_transport_do_close()). Nothing is sent by a send() of nothing; it says EPIPE to who may
 * not send. */
static bool peer_ended(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLRDHUP };

	if (poll(&p, 1, 0) < 0)
		return false;
	if (p.revents & (POLLERR | POLLHUP))
		return true;
	return (p.revents & POLLRDHUP) && send(fd, NULL, 0, MSG_DONTWAIT | MSG_NOSIGNAL) < 0;
}

bool credit_end(int fd)
{
	uint64_t zero = 0;

	if (peer_ended(fd))
		return true;
	/* The smallest size is 0 since the listener said so. */
	(void)setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE, &zero, sizeof(zero));
	return false;
}
