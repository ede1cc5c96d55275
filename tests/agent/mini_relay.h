/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A relay of a few lines on an AF_UNIX socket, for the tests of the agent: a thread that serves
 * one connection after the other by a function of the test.
 */
#ifndef VSR_MINI_RELAY_H
#define VSR_MINI_RELAY_H

#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "agent_test.h"
#include "vsr_frame.h"

struct mini_relay {
	/* set by the test */
	void (*serve)(struct mini_relay *m, int fd);
	const uint32_t *answers; /* for the functions of this file */
	/* read by the test after mini_relay_stop() */
	unsigned int connections;
	uint8_t header[VSR_HEADER_SIZE];
	uint8_t *payload;
	size_t payload_len;
	/* its own */
	char *tree, path[100];
	int listen_fd;
	pthread_t thread;
};

static void *mini_relay_main(void *p)
{
	struct mini_relay *m = p;

	for (;;) {
		int fd = accept4(m->listen_fd, NULL, NULL, SOCK_CLOEXEC);

		if (fd < 0)
			return NULL;
		m->connections++;
		m->serve(m, fd);
		close(fd);
	}
}

static void mini_relay_listen(struct mini_relay *m, int backlog)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	m->tree = new_tree();
	snprintf(m->path, sizeof(m->path), "%s/relay", m->tree);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", m->path);
	m->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_true(m->listen_fd >= 0);
	assert_int_equal(bind(m->listen_fd, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(m->listen_fd, backlog), 0);
}

_unused_ static void mini_relay_start(struct mini_relay *m)
{
	mini_relay_listen(m, 8);
	assert_int_equal(pthread_create(&m->thread, NULL, mini_relay_main, m), 0);
}

_unused_ static void mini_relay_stop(struct mini_relay *m)
{
	/* accept() then says EINVAL. */
	shutdown(m->listen_fd, SHUT_RDWR);
	pthread_join(m->thread, NULL);
	close(m->listen_fd);
	remove_tree(m->tree);
}

_unused_ static void mini_relay_done(struct mini_relay *m)
{
	free(m->payload);
	m->payload = NULL;
	m->payload_len = 0;
}

/* Reads n bytes, or as many as come before the end. Returns their number. */
_unused_ static size_t read_up_to(int fd, void *data, size_t n)
{
	size_t len = 0;

	while (len < n) {
		ssize_t r = recv(fd, (uint8_t *)data + len, n - len, 0);

		if (r <= 0)
			break;
		len += r;
	}
	return len;
}

_unused_ static void send_answer(int fd, uint32_t status)
{
	uint8_t answer[VSR_ANSWER_SIZE];

	vsr_answer_write(answer, status);
	(void)!send(fd, answer, sizeof(answer), MSG_NOSIGNAL);
}

/* Reads the header and the payload that it announces. */
_unused_ static void read_payload(struct mini_relay *m, int fd)
{
	struct vsr_header h;

	vsr_header_read(m->header, &h);
	free(m->payload);
	m->payload = malloc(h.length + 1);
	m->payload_len = m->payload ? read_up_to(fd, m->payload, h.length) : 0;
}

/* Serves as a relay does that gives the answers in their order: to an offer, then to its
 * payload if the former was 100. */
_unused_ static void serve_answers(struct mini_relay *m, int fd)
{
	struct vsr_header h;
	uint32_t status;

	if (read_up_to(fd, m->header, sizeof(m->header)) != sizeof(m->header))
		return;
	vsr_header_read(m->header, &h);
	if (h.mode == VSR_MODE_VSR2) {
		status = *m->answers++;
		send_answer(fd, status);
		if (status != VSR_STATUS_GO_ON) {
			/* What comes after a final answer is the payload that must not come. */
			free(m->payload);
			m->payload = malloc(64);
			m->payload_len = m->payload ? read_up_to(fd, m->payload, 64) : 0;
			return;
		}
	}
	read_payload(m, fd);
	send_answer(fd, *m->answers++);
}

#endif
