/* SPDX-License-Identifier: Apache-2.0 */
#include "client.h"

#include <sys/socket.h>
#include <sys/un.h>

static int dial(const char *path)
{
	const struct timeval patience = { .tv_sec = CLIENT_TIMEOUT_S };
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	_cleanup_close_ int fd = -1;

	if (strlen(path) >= sizeof(un.sun_path))
		return -ENAMETOOLONG;
	strcpy(un.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)) < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&un, sizeof(un)) < 0)
		return errno == EAGAIN ? -ETIMEDOUT : -errno; /* its backlog is full */
	return TAKE_FD(fd);
}

static int send_all(int fd, const char *text, size_t len)
{
	while (len > 0) {
		ssize_t n = send(fd, text, len, MSG_NOSIGNAL);

		if (n < 0)
			return errno == EAGAIN ? -ETIMEDOUT : -errno;
		text += n;
		len -= (size_t)n;
	}
	return 0;
}

static int receive_all(int fd, char **ret, size_t *ret_len)
{
	_cleanup_free_ char *text = NULL;
	size_t len = 0, size = 0;

	for (;;) {
		ssize_t n;

		if (size - len < 4096) {
			char *larger;

			if (size > CLIENT_ANSWER_MAX)
				return -EFBIG;
			larger = realloc(text, 2 * size + 65536);
			if (!larger)
				return -ENOMEM;
			text = larger;
			size = 2 * size + 65536;
		}
		n = recv(fd, text + len, size - len - 1, 0);
		if (n < 0)
			return errno == EAGAIN ? -ETIMEDOUT : -errno;
		if (n == 0)
			break;
		len += (size_t)n;
	}
	text[len] = '\0';
	*ret = TAKE_PTR(text);
	*ret_len = len;
	return 0;
}

/* Leaves the body alone in *text. Returns the status, -EPROTO. */
static int take_body(char *text, size_t len)
{
	char *body = strstr(text, "\r\n\r\n");
	unsigned int status;

	if (sscanf(text, "HTTP/1.%*1[01] %3u", &status) != 1 || !body)
		return -EPROTO;
	body += strlen("\r\n\r\n");
	memmove(text, body, len - (size_t)(body - text) + 1);
	return (int)status;
}

int client_request(const char *path, const char *method, const char *page, char **ret)
{
	_cleanup_free_ char *request = NULL, *text = NULL;
	_cleanup_close_ int fd = -1;
	size_t size = 0;
	int len, r;

	len = asprintf(&request, "%s %s HTTP/1.0\r\nHost: localhost\r\n%s\r\n", method, page,
		       streq(method, "POST") ? "Content-Length: 0\r\n" : "");
	if (len < 0) {
		request = NULL;
		return -ENOMEM;
	}
	fd = dial(path);
	if (fd < 0)
		return fd;
	r = send_all(fd, request, (size_t)len);
	if (r == 0)
		r = receive_all(fd, &text, &size);
	if (r < 0)
		return r;
	r = take_body(text, size);
	if (r >= 0)
		*ret = TAKE_PTR(text);
	return r;
}
