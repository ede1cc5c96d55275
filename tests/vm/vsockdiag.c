/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vsockdiag: what is left of AF_VSOCK sockets, as one line of JSON:
 *
 *   {"total":2,"counts":[{"state":"LISTEN","port":818,"n":1},...],"refs":{"vsock":7,...}}
 *
 * counts: sockets in the tables of SOCK_DIAG (module vsock_diag) by state and local port. A socket
 * leaves those tables when its peer shuts down, while the kernel may hold it on. refs are the
 * modules' reference counts: an open AF_VSOCK socket holds two of `vsock`, one for its file and one
 * for itself (sk_prot_alloc() in net/core/sock.c); the latter stays while the kernel holds the
 * socket, for instance because its packets still wait in a guest's queue.
 */
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/vm_sockets_diag.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "util.h"

#define MAX_COUNTS 4096U

struct count {
	uint8_t state;
	uint32_t port;
	unsigned n;
};

struct counts {
	struct count of[MAX_COUNTS];
	unsigned n, total;
};

static void count_socket(struct counts *c, const struct vsock_diag_msg *m)
{
	unsigned i = 0;

	c->total++;
	while (i < c->n && (c->of[i].state != m->vdiag_state || c->of[i].port != m->vdiag_src_port))
		i++;
	if (i == MAX_COUNTS)
		return; /* in the total all the same */
	if (i == c->n)
		c->of[c->n++] =
			(struct count){ .state = m->vdiag_state, .port = m->vdiag_src_port };
	c->of[i].n++;
}

static int ask(int fd)
{
	struct {
		struct nlmsghdr h;
		struct vsock_diag_req req;
	} q = {
		.h = { .nlmsg_len = sizeof(q),
		       .nlmsg_type = SOCK_DIAG_BY_FAMILY,
		       .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP },
		.req = { .sdiag_family = AF_VSOCK, .vdiag_states = UINT32_MAX },
	};

	return send(fd, &q, sizeof(q), 0) < 0 ? -errno : 0;
}

/* Returns 1 at the end of the dump, 0 if there is more, or a negative errno. */
static int take_messages(struct counts *c, const void *buf, size_t len)
{
	for (const struct nlmsghdr *h = buf; NLMSG_OK(h, len); h = NLMSG_NEXT(h, len)) {
		if (h->nlmsg_type == NLMSG_DONE)
			return 1;
		if (h->nlmsg_type == NLMSG_ERROR)
			return ((const struct nlmsgerr *)NLMSG_DATA(h))->error ?: -EIO;
		if (h->nlmsg_type == SOCK_DIAG_BY_FAMILY &&
		    h->nlmsg_len >= NLMSG_LENGTH(sizeof(struct vsock_diag_msg)))
			count_socket(c, NLMSG_DATA(h));
	}
	return 0;
}

static int dump(struct counts *c)
{
	_cleanup_close_ int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
	struct timeval timeout = { .tv_sec = 5 };
	uint64_t buf[4096];
	int r;

	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	r = ask(fd);
	while (r == 0) {
		ssize_t n = recv(fd, buf, sizeof(buf), 0);

		r = n < 0 ? -errno : n == 0 ? -EIO : take_messages(c, buf, (size_t)n);
	}
	return MIN(r, 0);
}

static const char *state_name(uint8_t state)
{
	static const char *const name[] = {
		[TCP_ESTABLISHED] = "ESTABLISHED",
		[TCP_SYN_SENT] = "SYN_SENT",
		[TCP_CLOSE] = "CLOSE",
		[TCP_LISTEN] = "LISTEN",
		[TCP_CLOSING] = "CLOSING",
	};

	return state < ARRAY_SIZE(name) && name[state] ? name[state] : "OTHER";
}

/* A module that is not loaded has no count: -1. */
static int module_refs(const char *module)
{
	_cleanup_fclose_ FILE *f = NULL;
	char path[128];
	int n;

	snprintf(path, sizeof(path), "/sys/module/%s/refcnt", module);
	f = fopen(path, "re");
	return f && fscanf(f, "%d", &n) == 1 ? n : -1;
}

int main(void)
{
	static const char *const modules[] = { "vsock", "vmw_vsock_virtio_transport_common",
					       "vsock_loopback", "vhost_vsock" };
	static struct counts c;
	int r = dump(&c);

	if (r < 0) {
		fprintf(stderr, "vsockdiag: %s (is the module vsock_diag loaded?)\n", strerror(-r));
		return EXIT_FAILURE;
	}
	printf("{\"total\":%u,\"counts\":[", c.total);
	for (unsigned i = 0; i < c.n; i++)
		printf("%s{\"state\":\"%s\",\"port\":%u,\"n\":%u}", i > 0 ? "," : "",
		       state_name(c.of[i].state), c.of[i].port, c.of[i].n);
	printf("],\"refs\":{");
	for (unsigned i = 0; i < ARRAY_SIZE(modules); i++)
		printf("%s\"%s\":%d", i > 0 ? "," : "", modules[i], module_refs(modules[i]));
	puts("}}");
	return EXIT_SUCCESS;
}
