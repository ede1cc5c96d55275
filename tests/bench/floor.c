/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The least that anybody could do: receives the same bytes as the daemon over the same kind of
 * sockets, each report into one buffer, and writes it to a file, or sends it on. No framing, no
 * validation, no digest, no cache, no limits. What the daemon costs is given as a multiple of this.
 *
 *   floor [--fresh] [--durable] SOCKETS FIRST_CID COUNT OUTPUT
 *   floor [--fresh] --send SOCKETS FIRST_CID COUNT PORT
 *   floor --discard SOCKETS FIRST_CID COUNT -
 *
 * Listens on SOCKETS/vm-<cid>_818 for COUNT CIDs, writes OUTPUT/0-<cid>.pb until it is told to
 * end by SIGTERM. With --durable a file is replaced atomically and survives a power loss, as the
 * daemon's `file` upstream promises; without, it is just written. With --send the bytes go into one
 * TCP connection to that port of the loopback. With --discard they are received through a window of
 * 64 KiB and forgotten. All reports go through the same memory, unless --fresh gives each its own,
 * as one that keeps reports must. SOCKETS "vsock" is port 818 of AF_VSOCK, for one VM.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "util.h"

#define BUFFER	(16 * MIB)
#define WINDOW	(64 * KIB)
#define MAX_VMS 1024

static _noreturn_ void die(const char *what)
{
	perror(what);
	exit(1);
}

static int listen_on_vsock(void)
{
	struct sockaddr_vm sa = { .svm_family = AF_VSOCK,
				  .svm_cid = VMADDR_CID_ANY,
				  .svm_port = 818 };
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 || listen(fd, 4096) < 0)
		die("vsock");
	return fd;
}

static int listen_on(const char *dir, unsigned cid)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		die("socket");
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s/vm-%u_818", dir, cid);
	if (bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 || listen(fd, 4096) < 0)
		die(sa.sun_path);
	return fd;
}

static size_t receive(int fd, uint8_t *buf)
{
	size_t len = 0;

	for (;;) {
		ssize_t n = recv(fd, buf + len, BUFFER - len, 0);

		if (n < 0)
			die("recv");
		if (n == 0)
			return len;
		len += n;
	}
}

static void discard(int fd, uint8_t *buf)
{
	ssize_t n;

	while ((n = recv(fd, buf, WINDOW, 0)) > 0)
		;
	if (n < 0)
		die("recv");
}

static void write_all(int fd, const uint8_t *buf, size_t len)
{
	while (len > 0) {
		ssize_t n = write(fd, buf, len);

		if (n < 0)
			die("write");
		buf += n;
		len -= n;
	}
}

static void store(int dir, unsigned cid, const uint8_t *buf, size_t len, bool durable)
{
	char name[32], tmp[40];
	int fd;

	snprintf(name, sizeof(name), "0-%u.pb", cid);
	snprintf(tmp, sizeof(tmp), ".%s.tmp", name);
	fd = openat(dir, durable ? tmp : name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
	if (fd < 0)
		die(name);
	write_all(fd, buf, len);
	if (durable && (fsync(fd) < 0 || renameat(dir, tmp, dir, name) < 0 || fsync(dir) < 0))
		die(name);
	close(fd);
}

static int connect_to(const char *port)
{
	struct sockaddr_in sa = {
		.sin_family = AF_INET,
		.sin_port = htons((uint16_t)strtoul(port, NULL, 10)),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		die(port);
	return fd;
}

static uint8_t *buffer_new(void)
{
	void *p = mmap(NULL, BUFFER, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		die("mmap");
	return p;
}

/* Whether the next argument is this option, which is then taken. */
static bool take_option(int *argc, char ***argv, const char *option)
{
	if (*argc < 2 || !streq((*argv)[1], option))
		return false;
	(*argv)++;
	(*argc)--;
	return true;
}

int main(int argc, char **argv)
{
	bool fresh = take_option(&argc, &argv, "--fresh");
	bool durable = take_option(&argc, &argv, "--durable");
	bool sends = take_option(&argc, &argv, "--send");
	bool discards = take_option(&argc, &argv, "--discard");
	static struct pollfd fds[MAX_VMS];
	unsigned first, count;
	uint8_t *buf;
	int out;

	if (argc != 5) {
		fputs("usage: floor [--fresh] [--durable] SOCKETS FIRST_CID COUNT OUTPUT\n"
		      "       floor [--fresh] --send SOCKETS FIRST_CID COUNT PORT\n"
		      "       floor --discard SOCKETS FIRST_CID COUNT -\n",
		      stderr);
		return 2;
	}
	first = strtoul(argv[2], NULL, 10);
	count = MIN(strtoul(argv[3], NULL, 10), (unsigned long)MAX_VMS);
	out = discards ? 0
	      : sends  ? connect_to(argv[4])
		       : open(argv[4], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (out < 0)
		die(argv[4]);
	buf = buffer_new();
	for (unsigned i = 0; i < count; i++)
		fds[i] = (struct pollfd){ .fd = streq(argv[1], "vsock")
							? listen_on_vsock()
							: listen_on(argv[1], first + i),
					  .events = POLLIN };
	puts("ready");
	fflush(stdout);

	while (poll(fds, count, -1) > 0)
		for (unsigned i = 0; i < count; i++)
			if (fds[i].revents) {
				int fd = accept4(fds[i].fd, NULL, NULL, SOCK_CLOEXEC);
				size_t len;

				if (fd < 0)
					die("accept4");
				if (discards) {
					discard(fd, buf);
					close(fd);
					continue;
				}
				len = receive(fd, buf);
				if (sends)
					write_all(out, buf, len);
				else
					store(out, first + i, buf, len, durable);
				close(fd);
				if (fresh) {
					munmap(buf, BUFFER);
					buf = buffer_new();
				}
			}
	die("poll");
}
