/* SPDX-License-Identifier: Apache-2.0 */
#include "listener.h"

#include <linux/vm_sockets.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "log.h"

#define ACCEPTS_PER_TURN 64
/* How long accepting rests when there are no descriptors or memory. */
#define REST_USEC (100 * USEC_PER_MSEC)
/* On vsock: that of listen, and those inside other namespaces. */
#define LISTENERS_MAX (1 + SETTINGS_LISTENERS_MAX)

struct listener {
	struct list node; /* vsock: in *all */
	const struct list *all;
	struct ingest *ingest;
	sd_event_source *source, *rest;
	const struct settings_uids *uids;
	int fd;
	bool starved; /* said already that accept() fails */
	struct vsr_vm_id id;
};

int listener_vsock_open(uint32_t port, uint32_t backlog, int *ret_fd)
{
	struct sockaddr_vm sa = {
		.svm_family = AF_VSOCK,
		.svm_cid = VMADDR_CID_ANY,
		.svm_port = port,
	};
	_cleanup_close_ int fd = -1;
	uint64_t zero = 0;

	fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	/* The minimum first: it is 128 by default and would clamp the size. 0 and nothing between
	 * 1 and 64 KiB: a few bytes of credit reset the connection (KERNEL.md 3). */
	if (setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_BUFFER_MIN_SIZE, &zero, sizeof(zero)) < 0 ||
	    setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE, &zero, sizeof(zero)) < 0 ||
	    bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 || listen(fd, (int)backlog) < 0)
		return -errno;
	*ret_fd = TAKE_FD(fd);
	return 0;
}

int listener_vsock_probe(void)
{
	_cleanup_close_ int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

	return fd < 0 ? -errno : 0;
}

static bool uid_allowed(int fd, const struct settings_uids *uids)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (uids->any)
		return true;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return false;
	for (uint32_t i = 0; i < uids->n; i++)
		if (uids->uid[i] == cred.uid)
			return true;
	return false;
}

static void accepted(struct listener *l, int fd, const struct sockaddr_vm *sa)
{
	struct vsr_vm_id id = l->id;

	if (l->all) {
		id.cid = sa->svm_cid;
		ingest_accepted(l->ingest, fd, true, id, sa->svm_port);
	} else if (!uid_allowed(fd, l->uids)) {
		ingest_rejected(l->ingest, fd, id, REASON_PEER_UID);
	} else {
		ingest_accepted(l->ingest, fd, false, id, 0);
	}
}

/* A VM's connections all come to one listener, but which of them a debt belongs to is not
 * remembered: the backlog is empty when all are. `empty` is known to be; may be NULL. */
static void look_but_for(const struct list *all, const struct listener *empty)
{
	struct pollfd p[LISTENERS_MAX];
	struct ingest *ingest = NULL;
	nfds_t n = 0;

	list_for_each(node, all) {
		const struct listener *l = container_of(node, struct listener, node);

		ingest = l->ingest;
		if (l != empty)
			p[n++] = (struct pollfd){ .fd = l->fd, .events = POLLIN };
	}
	if (ingest && (n == 0 || poll(p, n, 0) == 0))
		ingest_backlog_empty(ingest);
}

/* First in each turn; but where the backlog was not emptied, only after everybody else who is
 * ready had a turn: or a guest that connects faster than it is refused would stop all reading. */
static void set_turn(struct listener *l, bool emptied)
{
	sd_event_source_set_priority(l->source, emptied ? SD_EVENT_PRIORITY_IMPORTANT
							: SD_EVENT_PRIORITY_NORMAL);
}

static int on_rested(sd_event_source *source _unused_, uint64_t usec _unused_, void *userdata)
{
	struct listener *l = userdata;

	sd_event_source_set_enabled(l->source, SD_EVENT_ON);
	return 0;
}

/* Out of descriptors or memory: connections wait in the backlog. The listener stays readable, so
 * that without a rest nobody would come to give anything back. */
static void take_rest(struct listener *l, int error)
{
	if (!l->starved)
		log_error_errno(error, "cannot accept connections for now");
	l->starved = true;
	sd_event_source_set_enabled(l->source, SD_EVENT_OFF);
	sd_event_source_set_time_relative(l->rest, REST_USEC);
	sd_event_source_set_enabled(l->rest, SD_EVENT_ONESHOT);
}

static int on_listener(sd_event_source *source _unused_, int listen_fd, uint32_t revents _unused_,
		       void *userdata)
{
	struct listener *l = userdata;

	for (unsigned i = 0; i < ACCEPTS_PER_TURN; i++) {
		struct sockaddr_vm sa = { 0 };
		socklen_t len = sizeof(sa);
		int fd = accept4(listen_fd, l->all ? (struct sockaddr *)&sa : NULL,
				 l->all ? &len : NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd >= 0) {
			l->starved = false;
			accepted(l, fd, &sa);
			continue;
		}
		if (errno == EAGAIN) {
			set_turn(l, true);
			if (l->all)
				look_but_for(l->all, l);
			return 0;
		}
		if (errno == EINTR || errno == ECONNABORTED || errno == ECONNRESET)
			continue;
		take_rest(l, errno);
		return 0;
	}
	set_turn(l, false);
	return 0;
}

void listener_look(const struct list *all)
{
	look_but_for(all, NULL);
}

void listener_free_all(struct list *all)
{
	list_for_each_safe(n, all)
		listener_free(container_of(n, struct listener, node));
}

struct listener *listener_free(struct listener *l)
{
	if (!l)
		return NULL;
	list_del(&l->node);
	sd_event_source_disable_unref(l->rest);
	sd_event_source_disable_unref(l->source);
	safe_close(l->fd);
	free(l);
	return NULL;
}

static int listener_new(sd_event *event, struct ingest *ingest, int fd, struct vsr_vm_id id,
			struct listener **ret)
{
	_cleanup_(listener_freep)
	struct listener *l = NULL;
	int r;

	l = calloc(1, sizeof(*l));
	if (!l)
		return -ENOMEM;
	list_init(&l->node);
	l->ingest = ingest;
	l->fd = -1;
	l->id = id;
	r = sd_event_add_io(event, &l->source, fd, EPOLLIN, on_listener, l);
	if (r >= 0)
		r = sd_event_source_set_priority(l->source, SD_EVENT_PRIORITY_IMPORTANT);
	if (r >= 0)
		r = sd_event_add_time(event, &l->rest, CLOCK_BOOTTIME, USEC_INFINITY, 0, on_rested,
				      l);
	if (r >= 0)
		r = sd_event_source_set_enabled(l->rest, SD_EVENT_OFF);
	if (r < 0)
		return r;
	l->fd = fd;
	*ret = TAKE_PTR(l);
	return 0;
}

int listener_vsock_new(sd_event *event, struct ingest *ingest, int fd, uint32_t ns,
		       struct list *all)
{
	struct listener *l;
	int r = listener_new(event, ingest, fd, (struct vsr_vm_id){ .ns = ns }, &l);

	if (r < 0)
		return r;
	l->all = all;
	list_add_last(all, &l->node);
	return 0;
}

int listener_unix_new(sd_event *event, struct ingest *ingest, int fd, struct vsr_vm_id id,
		      const struct settings_uids *uids, struct listener **ret)
{
	struct listener *l;
	int r = listener_new(event, ingest, fd, id, &l);

	if (r < 0)
		return r;
	l->uids = uids;
	*ret = l;
	return 0;
}
