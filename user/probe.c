/* SPDX-License-Identifier: Apache-2.0 */
#include "probe.h"

#include <linux/vm_sockets.h>
#include <sys/epoll.h>
#include <sys/socket.h>

/* Nobody listens there in a guest: it answers with a reset. */
#define PROBE_PORT (VMADDR_PORT_ANY - 1)

struct probe {
	struct probes *all;
	struct vsr_vm_id vm;
	uint64_t debt;
	int fd; /* -1: free */
	sd_event_source *io;
};

struct probes {
	sd_event *event;
	probe_cb cb;
	void *userdata;
	struct probe probe[PROBES_MAX];
};

static void probe_end(struct probe *p)
{
	p->io = sd_event_source_disable_unref(p->io);
	p->fd = safe_close(p->fd);
}

static enum probe_result result_of(int error)
{
	switch (error) {
	case ENODEV:
		return PROBE_GONE;
	case 0: /* somebody listens there */
	case ECONNRESET:
		return PROBE_READ;
	default:
		return PROBE_SILENT;
	}
}

/* The descriptor is kept until the kernel has said something, at the latest after 2 s: closed
 * earlier, its request would stay queued for a guest that does not read. */
static int on_probe(sd_event_source *source _unused_, int fd, uint32_t revents _unused_,
		    void *userdata)
{
	struct probe *p = userdata;
	int error = EIO;
	socklen_t len = sizeof(error);

	getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len);
	probe_end(p);
	p->all->cb(p->vm, p->debt, result_of(error), p->all->userdata);
	return 0;
}

int probe_start(struct probes *all, struct vsr_vm_id vm, uint64_t debt)
{
	struct sockaddr_vm sa = {
		.svm_family = AF_VSOCK,
		.svm_cid = vm.cid,
		.svm_port = PROBE_PORT,
	};
	struct probe *p = NULL;
	int r;

	for (size_t i = 0; i < PROBES_MAX && !p; i++)
		if (all->probe[i].fd < 0)
			p = &all->probe[i];
	if (!p)
		return -EBUSY;
	p->fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (p->fd < 0)
		return -errno;
	p->vm = vm;
	p->debt = debt;
	r = connect(p->fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 ? errno : 0;
	if (r == EINPROGRESS) {
		r = sd_event_add_io(all->event, &p->io, p->fd, EPOLLOUT, on_probe, p);
		if (r < 0)
			probe_end(p);
		return r < 0 ? r : 0;
	}
	probe_end(p);
	all->cb(vm, debt, result_of(r), all->userdata);
	return 0;
}

int probes_new(sd_event *event, probe_cb cb, void *userdata, struct probes **ret)
{
	struct probes *all = calloc(1, sizeof(*all));

	if (!all)
		return -ENOMEM;
	all->event = event;
	all->cb = cb;
	all->userdata = userdata;
	for (size_t i = 0; i < PROBES_MAX; i++) {
		all->probe[i].all = all;
		all->probe[i].fd = -1;
	}
	*ret = all;
	return 0;
}

struct probes *probes_free(struct probes *all)
{
	if (!all)
		return NULL;
	for (size_t i = 0; i < PROBES_MAX; i++)
		probe_end(&all->probe[i]);
	free(all);
	return NULL;
}
