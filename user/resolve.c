/* SPDX-License-Identifier: Apache-2.0 */
#include "resolve.h"

#include <ares.h>
#include <netinet/in.h>
#include <sys/epoll.h>

#define TRY_TIMEOUT_MS 2000
#define TRIES	       3
/* Sockets of c-ares at a time: one a server and protocol. */
#define SOCKETS_MAX 16

struct watch {
	int fd;
	sd_event_source *source; /* NULL: free */
};

struct resolve {
	sd_event *event;
	ares_channel channel;
	struct watch watches[SOCKETS_MAX];
	sd_event_source *timer; /* c-ares' own, or to say what came out */
	uint64_t deadline;	/* CLOCK_BOOTTIME */
	bool known;
	struct resolve_address addresses[RESOLVE_ADDRESSES_MAX];
	size_t n;
	const char *why;
	resolve_done_t done;
	void *userdata;
};

static uint64_t now_of(const struct resolve *r)
{
	uint64_t now = 0;

	sd_event_now(r->event, CLOCK_BOOTTIME, &now);
	return now;
}

/* When to look again: c-ares' next timeout, our limit, or at once when all is known. */
static void arm(struct resolve *r)
{
	uint64_t now = now_of(r), next = r->deadline;
	struct timeval tv, *left = r->known ? NULL : ares_timeout(r->channel, NULL, &tv);

	if (left)
		next = MIN(next, usec_add(now, (uint64_t)left->tv_sec * USEC_PER_SEC +
						       (uint64_t)left->tv_usec));
	sd_event_source_set_time(r->timer, r->known ? now : next);
	sd_event_source_set_enabled(r->timer, SD_EVENT_ONESHOT);
}

static int on_socket(sd_event_source *source _unused_, int fd, uint32_t events, void *userdata)
{
	struct resolve *r = userdata;
	bool failed = events & (EPOLLERR | EPOLLHUP);

	ares_process_fd(r->channel, events & EPOLLIN || failed ? fd : ARES_SOCKET_BAD,
			events & EPOLLOUT || failed ? fd : ARES_SOCKET_BAD);
	arm(r);
	return 0;
}

/* c-ares says which of its sockets it waits for. One without a watch times out. */
static void on_watch(void *userdata, ares_socket_t fd, int readable, int writable)
{
	struct resolve *r = userdata;
	uint32_t events = (readable ? EPOLLIN : 0) | (writable ? EPOLLOUT : 0);
	struct watch *w = NULL;

	for (size_t i = 0; i < SOCKETS_MAX && !w; i++)
		if (r->watches[i].source && r->watches[i].fd == fd)
			w = &r->watches[i];
	if (w && events == 0) {
		w->source = sd_event_source_disable_unref(w->source);
	} else if (w) {
		sd_event_source_set_io_events(w->source, events);
	} else if (events != 0) {
		for (size_t i = 0; i < SOCKETS_MAX && !w; i++)
			if (!r->watches[i].source)
				w = &r->watches[i];
		if (!w)
			return;
		w->fd = fd;
		if (sd_event_add_io(r->event, &w->source, fd, events, on_socket, r) < 0)
			w->source = NULL;
	}
}

static void on_answer(void *userdata, int status, int timeouts _unused_, struct ares_addrinfo *ai)
{
	struct resolve *r = userdata;

	if (status == ARES_EDESTRUCTION)
		return;
	for (const struct ares_addrinfo_node *n = ai ? ai->nodes : NULL;
	     n && r->n < RESOLVE_ADDRESSES_MAX; n = n->ai_next) {
		struct resolve_address *a = &r->addresses[r->n];

		if (n->ai_addrlen > sizeof(a->sa))
			continue;
		memcpy(&a->sa, n->ai_addr, n->ai_addrlen);
		a->len = n->ai_addrlen;
		r->n++;
	}
	if (ai)
		ares_freeaddrinfo(ai);
	r->why = r->n > 0 ? "" : status == ARES_SUCCESS ? "no address" : ares_strerror(status);
	r->known = true;
}

static int on_timer(sd_event_source *source _unused_, uint64_t usec _unused_, void *userdata)
{
	struct resolve *r = userdata;

	if (!r->known)
		ares_process_fd(r->channel, ARES_SOCKET_BAD, ARES_SOCKET_BAD);
	if (!r->known && now_of(r) >= r->deadline) {
		r->known = true;
		r->why = "no answer in time";
	}
	if (r->known)
		r->done(r->addresses, r->n, r->why, r->userdata);
	else
		arm(r);
	return 0;
}

static int start(struct resolve *r, const char *host, uint16_t port)
{
	struct ares_options options = {
		.timeout = TRY_TIMEOUT_MS,
		.tries = TRIES,
		.sock_state_cb = on_watch,
		.sock_state_cb_data = r,
	};
	struct ares_addrinfo_hints hints = {
		.ai_family = AF_UNSPEC,
		.ai_socktype = SOCK_STREAM,
		.ai_flags = ARES_AI_NUMERICSERV,
	};
	char service[8];
	int result;

	result = ares_init_options(&r->channel, &options,
				   ARES_OPT_TIMEOUTMS | ARES_OPT_TRIES | ARES_OPT_SOCK_STATE_CB);
	if (result != ARES_SUCCESS) {
		r->channel = NULL;
		return result == ARES_ENOMEM ? -ENOMEM : -EINVAL;
	}
	snprintf(service, sizeof(service), "%u", port);
	ares_getaddrinfo(r->channel, host, service, &hints, on_answer, r);
	return 0;
}

int resolve_new(sd_event *event, const char *host, uint16_t port, resolve_done_t done,
		void *userdata, struct resolve **ret)
{
	_cleanup_(resolve_freep)
	struct resolve *r = NULL;
	int result;

	r = calloc(1, sizeof(*r));
	if (!r)
		return -ENOMEM;
	r->event = sd_event_ref(event);
	r->done = done;
	r->userdata = userdata;
	r->deadline = usec_add(now_of(r), RESOLVE_LIMIT);
	result = sd_event_add_time(event, &r->timer, CLOCK_BOOTTIME, r->deadline, 1, on_timer, r);
	if (result < 0)
		return result;
	result = ares_library_init(ARES_LIB_INIT_ALL);
	if (result != ARES_SUCCESS)
		return -EINVAL;
	result = start(r, host, port);
	if (result < 0)
		return result;
	arm(r);
	*ret = TAKE_PTR(r);
	return 0;
}

struct resolve *resolve_free(struct resolve *r)
{
	if (!r)
		return NULL;
	if (r->channel)
		ares_destroy(r->channel);
	for (size_t i = 0; i < SOCKETS_MAX; i++)
		sd_event_source_disable_unref(r->watches[i].source);
	sd_event_source_disable_unref(r->timer);
	sd_event_unref(r->event);
	free(r);
	return NULL;
}
