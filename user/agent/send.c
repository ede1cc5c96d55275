/* SPDX-License-Identifier: Apache-2.0 */
#include "send.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <linux/vm_sockets.h>
#include <xxhash.h>

#include "clock.h"

struct attempt {
	int fd, stop_fd;
	uint64_t deadline;
	uint8_t answer[VSR_ANSWER_SIZE];
	size_t answered; /* bytes in answer */
	bool framed;
	struct send_result *result;
};

/* Ends the attempt. Returns -1, for the caller to return. */
static int end(struct attempt *a, enum send_end how, int error)
{
	a->result->end = how;
	a->result->error = error;
	return -1;
}

static bool nothing_sent(const struct attempt *a)
{
	return a->result->header == 0 && a->result->sent == 0;
}

/* The connection is gone. */
static int lost(struct attempt *a, int error)
{
	return end(a, nothing_sent(a) ? SEND_REFUSED : SEND_CUT, error);
}

/* Waits until fd has one of events, or is gone. Returns them, or -1. */
static int wait_for(struct attempt *a, short events)
{
	struct pollfd fds[] = {
		{ .fd = a->fd, .events = events },
		{ .fd = a->stop_fd, .events = POLLIN },
	};

	for (;;) {
		int n = poll(fds, ARRAY_SIZE(fds), clock_poll_timeout(a->deadline));

		if (n < 0 && errno != EINTR)
			return end(a, SEND_CUT, errno);
		if (n > 0 && fds[1].revents)
			return end(a, SEND_STOPPED, 0);
		if (n > 0 && fds[0].revents)
			return fds[0].revents;
		if (clock_now() >= a->deadline)
			return end(a, SEND_TIMEOUT, ETIMEDOUT);
	}
}

static int open_socket(struct attempt *a, const struct relay_address *relay)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	struct sockaddr_vm vm = {
		.svm_family = AF_VSOCK,
		.svm_cid = relay->cid,
		.svm_port = relay->port,
	};
	struct sockaddr *address = (struct sockaddr *)&vm;
	socklen_t size = sizeof(vm);

	if (relay->unix_path) {
		if (strlen(relay->unix_path) >= sizeof(un.sun_path))
			return -ENAMETOOLONG;
		strcpy(un.sun_path, relay->unix_path);
		address = (struct sockaddr *)&un;
		size = sizeof(un);
	}
	a->fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (a->fd < 0)
		return -errno;
	if (connect(a->fd, address, size) < 0)
		return -errno;
	return 0;
}

static bool is_connected(const struct attempt *a)
{
	struct sockaddr_storage peer;
	socklen_t size = sizeof(peer);

	return getpeername(a->fd, (struct sockaddr *)&peer, &size) == 0;
}

static int connect_relay(struct attempt *a, const struct relay_address *relay)
{
	socklen_t size = sizeof(int);
	int r, error = 0;

	r = open_socket(a, relay);
	if (r == -EINPROGRESS) {
		if (wait_for(a, POLLOUT) < 0) {
			/* At zero credit a connection is there long before one can write to it. */
			if (a->result->end == SEND_TIMEOUT && !is_connected(a))
				a->result->end = SEND_UNREACHABLE;
			return -1;
		}
		if (getsockopt(a->fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
			error = errno;
		r = -error;
	}
	return r < 0 ? end(a, SEND_UNREACHABLE, -r) : 0;
}

/* Reads what there is of the answer. Returns 1 when it is complete, 0 if not yet, or -1. */
static int read_answer(struct attempt *a)
{
	while (a->answered < sizeof(a->answer)) {
		ssize_t n =
			recv(a->fd, a->answer + a->answered, sizeof(a->answer) - a->answered, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return 0;
		if (n < 0)
			return lost(a, errno);
		if (n == 0)
			return lost(a, 0);
		a->answered += n;
	}
	if (vsr_answer_read(a->answer, &a->result->status) < 0)
		return end(a, SEND_BAD_ANSWER, EPROTO);
	return 1;
}

/*
 * Sends n bytes and counts them in *sent. An answer may come before the last byte: the relay has
 * decided, nobody reads the rest. Returns 0 when all went out, 1 when the answer is there, or -1.
 */
static int send_bytes(struct attempt *a, const uint8_t *data, size_t n, size_t *sent)
{
	while (n > 0) {
		int events = wait_for(a, POLLOUT | (a->framed ? POLLIN : 0));
		ssize_t out;
		int r;

		if (events < 0)
			return -1;
		if (a->framed && events & (POLLIN | POLLERR | POLLHUP)) {
			r = read_answer(a);
			if (r != 0)
				return r;
		}
		out = send(a->fd, data, n, MSG_NOSIGNAL);
		if (out < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (out < 0) {
			int error = errno;

			/* The last word of the relay may still wait to be read. */
			r = a->framed ? read_answer(a) : 0;
			return r == 0 ? lost(a, error) : r;
		}
		data += out;
		n -= out;
		*sent += out;
	}
	return 0;
}

/* For a socket in error from which nothing can be read: polling on would spin. */
static int in_error(struct attempt *a)
{
	socklen_t size = sizeof(int);
	int error = 0;

	if (getsockopt(a->fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
		error = errno;
	return lost(a, error);
}

static int wait_answer(struct attempt *a)
{
	for (;;) {
		int events = wait_for(a, POLLIN), r;

		if (events < 0)
			return -1;
		r = read_answer(a);
		if (r != 0)
			return r;
		if (events & POLLERR)
			return in_error(a);
	}
}

/* An answer is complete: go on only after 100, which only an offer may get. */
static int take_answer(struct attempt *a, bool to_offer)
{
	if (a->result->status == VSR_STATUS_GO_ON && to_offer) {
		a->answered = 0;
		return 0;
	}
	if (a->result->status > VSR_STATUS_DEADLINE)
		return end(a, SEND_BAD_ANSWER, EPROTO);
	return end(a, SEND_ANSWERED, 0);
}

static int send_framed(struct attempt *a, uint32_t mode, const uint8_t *data, uint32_t len)
{
	const struct vsr_header header = {
		.mode = mode,
		.length = len,
		.xxh64 = XXH64(data, len, 0),
	};
	uint8_t bytes[VSR_HEADER_SIZE];
	int r;

	vsr_header_write(bytes, &header);
	r = send_bytes(a, bytes, sizeof(bytes), &a->result->header);
	if (r == 0 && mode == VSR_MODE_VSR2) {
		r = wait_answer(a);
		if (r > 0)
			r = take_answer(a, true);
	}
	if (r == 0)
		r = send_bytes(a, data, len, &a->result->sent);
	if (r == 0)
		r = wait_answer(a);
	return r > 0 ? take_answer(a, false) : r;
}

/* The half-close ends the report; the relay's close says that it read it, no more. */
static int send_raw(struct attempt *a, const uint8_t *data, uint32_t len)
{
	uint8_t byte;
	int r;

	r = send_bytes(a, data, len, &a->result->sent);
	if (r < 0)
		return r;
	if (shutdown(a->fd, SHUT_WR) < 0)
		return lost(a, errno);
	for (;;) {
		int events = wait_for(a, POLLIN);
		ssize_t n;

		if (events < 0)
			return -1;
		n = recv(a->fd, &byte, sizeof(byte), 0);
		if (n == 0)
			return end(a, SEND_CLOSED, 0);
		if (n > 0)
			return end(a, SEND_BAD_ANSWER, EPROTO);
		if (errno != EAGAIN && errno != EINTR)
			return lost(a, errno);
		if (events & POLLERR)
			return in_error(a);
	}
}

void send_report(const struct relay_address *relay, uint32_t mode, const uint8_t *data,
		 uint32_t len, uint64_t timeout, int stop_fd, struct send_result *ret)
{
	struct attempt a = {
		.fd = -1,
		.stop_fd = stop_fd,
		.deadline = usec_add(clock_now(), timeout),
		.framed = mode != VSR_MODE_RAW,
		.result = ret,
	};

	*ret = (struct send_result){};
	if (connect_relay(&a, relay) == 0) {
		if (a.framed)
			send_framed(&a, mode, data, len);
		else
			send_raw(&a, data, len);
	}
	safe_close(a.fd);
}
