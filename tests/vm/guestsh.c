/* SPDX-License-Identifier: Apache-2.0 */
/*
 * guestsh: what tests need inside a real guest.
 *
 *   guestsh serve PORT
 *       A shell for the host. Each connection to the vsock PORT brings one line for sh -c; its
 *       output goes back as it comes, behind it a last line: "exit STATUS". Says "guestsh listens"
 *       when it does.
 *
 *   guestsh send FILE [port=818] [chunk=65536] [limit=ALL] [frame=raw|vsr1] [end=half|hold]
 *       Sends FILE to the host by writes of chunk bytes, only the first limit bytes of the stream.
 *       end: half-close and wait for the peer's close, or say "sent" and hold the connection. Says
 *       how many bytes the kernel took, and the error that ended it. Exit status 0: all of them.
 */
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <linux/vm_sockets.h>
#include <xxhash.h>

#include "util.h"
#include "vsr_frame.h"

#define LINE_MAX_BYTES 65536U

/* ---- serve --------------------------------------------------------------------------------- */

/* Reads up to the end of the line. Returns false if there is no whole one. */
static bool read_line(int fd, char *line, size_t max)
{
	size_t n = 0;

	while (n < max) {
		ssize_t got = read(fd, line + n, 1);

		if (got <= 0)
			return false;
		if (line[n] == '\n') {
			line[n] = '\0';
			return true;
		}
		n++;
	}
	return false;
}

static int run_shell(int fd, const char *line)
{
	int status;
	pid_t pid = fork();

	if (pid < 0)
		return 126;
	if (pid == 0) {
		dup2(fd, STDOUT_FILENO);
		dup2(fd, STDERR_FILENO);
		execl("/bin/sh", "sh", "-c", line, NULL);
		_exit(127);
	}
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return 126;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int serve_one(int fd)
{
	static char line[LINE_MAX_BYTES];

	signal(SIGCHLD, SIG_DFL);
	if (!read_line(fd, line, sizeof(line)))
		return 1;
	dprintf(fd, "\nexit %d\n", run_shell(fd, line));
	return 0;
}

static int serve(unsigned int port)
{
	struct sockaddr_vm vm = {
		.svm_family = AF_VSOCK,
		.svm_cid = VMADDR_CID_ANY,
		.svm_port = port,
	};
	int listener = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (listener < 0 || bind(listener, (struct sockaddr *)&vm, sizeof(vm)) < 0 ||
	    listen(listener, 16) < 0) {
		perror("guestsh");
		return 1;
	}
	signal(SIGCHLD, SIG_IGN); /* the kernel reaps */
	puts("guestsh listens");
	fflush(stdout);
	for (;;) {
		int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

		if (fd < 0)
			continue;
		if (fork() == 0)
			_exit(serve_one(fd));
		close(fd);
	}
}

/* ---- send ---------------------------------------------------------------------------------- */

struct options {
	const char *file;
	unsigned int port;
	size_t chunk, limit;
	uint32_t frame; /* enum vsr_mode */
	bool hold;
};

/* The stream: header, if there is one, and payload. Returns NULL where there is no such file. */
static uint8_t *read_stream(const struct options *o, size_t *ret_len)
{
	size_t head = o->frame == VSR_MODE_RAW ? 0 : VSR_HEADER_SIZE;
	_cleanup_close_ int fd = open(o->file, O_RDONLY | O_CLOEXEC);
	_cleanup_free_ uint8_t *stream = NULL;
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return NULL;
	stream = malloc(head + st.st_size);
	if (!stream || read(fd, stream + head, st.st_size) != st.st_size)
		return NULL;
	if (head > 0)
		vsr_header_write(stream, &(struct vsr_header){
						 .mode = o->frame,
						 .length = st.st_size,
						 .xxh64 = XXH64(stream + head, st.st_size, 0),
					 });
	*ret_len = head + st.st_size;
	return TAKE_PTR(stream);
}

/* Returns how many bytes the kernel took; fewer than len: errno says why. */
static size_t write_chunks(int fd, const uint8_t *stream, size_t len, size_t chunk)
{
	size_t sent = 0;

	while (sent < len) {
		ssize_t n = send(fd, stream + sent, MIN(chunk, len - sent), MSG_NOSIGNAL);

		if (n < 0)
			break;
		sent += n;
	}
	return sent;
}

static int send_file(const struct options *o)
{
	struct sockaddr_vm vm = {
		.svm_family = AF_VSOCK,
		.svm_cid = VMADDR_CID_HOST,
		.svm_port = o->port,
	};
	_cleanup_close_ int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
	_cleanup_free_ uint8_t *stream = NULL;
	size_t len = 0, sent;
	char byte;

	stream = read_stream(o, &len);
	if (!stream || fd < 0 || connect(fd, (struct sockaddr *)&vm, sizeof(vm)) < 0) {
		perror("guestsh");
		return 1;
	}
	len = MIN(len, o->limit);
	sent = write_chunks(fd, stream, len, o->chunk);
	printf("sent %zu of %zu bytes%s%s\n", sent, len, sent < len ? ": " : "",
	       sent < len ? strerror(errno) : "");
	fflush(stdout);
	while (o->hold)
		pause();
	if (sent == len && shutdown(fd, SHUT_WR) == 0)
		while (recv(fd, &byte, sizeof(byte), 0) > 0)
			;
	return sent == len ? 0 : 1;
}

static bool parse_option(struct options *o, const char *word)
{
	const char *value = strchr(word, '=');

	if (!value++)
		return false;
	if (strncmp(word, "port=", 5) == 0)
		o->port = strtoul(value, NULL, 10);
	else if (strncmp(word, "chunk=", 6) == 0)
		o->chunk = strtoul(value, NULL, 10);
	else if (strncmp(word, "limit=", 6) == 0)
		o->limit = strtoul(value, NULL, 10);
	else if (streq(word, "frame=raw"))
		o->frame = VSR_MODE_RAW;
	else if (streq(word, "frame=vsr1"))
		o->frame = VSR_MODE_VSR1;
	else if (streq(word, "end=half"))
		o->hold = false;
	else if (streq(word, "end=hold"))
		o->hold = true;
	else
		return false;
	return o->chunk > 0;
}

int main(int argc, char *argv[])
{
	struct options o = {
		.port = 818,
		.chunk = 65536,
		.limit = SIZE_MAX,
		.frame = VSR_MODE_RAW,
	};
	bool understood = argc > 2;

	if (argc == 3 && streq(argv[1], "serve"))
		return serve(strtoul(argv[2], NULL, 10));
	for (int i = 3; i < argc; i++)
		understood &= parse_option(&o, argv[i]);
	if (!understood || !streq(argv[1], "send")) {
		fputs("usage: guestsh serve PORT | guestsh send FILE [KEY=VALUE]...\n", stderr);
		return 64;
	}
	o.file = argv[2];
	return send_file(&o);
}
