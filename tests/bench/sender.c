/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sends invented reports of many VMs over their hybrid sockets, one after the other: of one
 * payload of 2.5 MB it makes as many distinct ones as wanted, by writing the VM's CID and a
 * number into it.
 *
 *   sender raw|vsr1|vsr2 SOCKETS FIRST_CID COUNT NUMBER [OUTPUT]
 *
 * A report for each of COUNT CIDs (of four digits) to SOCKETS/vm-<cid>_818; NUMBER makes them
 * differ from those of the last call. With OUTPUT it waits until each is there as
 * OUTPUT/0-<cid>.pb before it sends the next; else they come as fast as they are taken. Prints the
 * length of a report and the CPU time used. Fails if one is not taken, waiting for at most
 * TIMEOUT_S for anything.
 */
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <xxhash.h>

#include "../synthetic.h"
#include "vsr_frame.h"

#define PACKAGES     1100
#define REPOSITORIES 49 /* with these a report has 2.5 MB */
#define ANY_CID	     "1000"
#define TIMEOUT_S    20
#define POLL_USEC    300

static _noreturn_ void die(const char *what)
{
	perror(what);
	exit(1);
}

static int connect_to(const char *dir, unsigned cid)
{
	struct timeval limit = { .tv_sec = TIMEOUT_S };
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) < 0)
		die("socket");
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s/vm-%u_818", dir, cid);
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		die(sa.sun_path);
	return fd;
}

static void send_all(int fd, const uint8_t *p, size_t n)
{
	while (n > 0) {
		ssize_t sent = send(fd, p, MIN(n, 65536UL), MSG_NOSIGNAL);

		if (sent < 0)
			die("send");
		p += sent;
		n -= sent;
	}
}

static uint32_t answer(int fd)
{
	uint8_t p[VSR_ANSWER_SIZE];
	uint32_t status;

	if (recv(fd, p, sizeof(p), MSG_WAITALL) != sizeof(p) || vsr_answer_read(p, &status) < 0)
		die("answer");
	return status;
}

static void send_report(int fd, uint32_t mode, const struct wire *w)
{
	struct vsr_header h = { .mode = mode, .length = w->len };
	uint8_t header[VSR_HEADER_SIZE];
	uint32_t status = VSR_STATUS_GO_ON;

	if (mode == VSR_MODE_RAW) {
		send_all(fd, w->data, w->len);
		return;
	}
	h.xxh64 = XXH64(w->data, w->len, 0);
	vsr_header_write(header, &h);
	send_all(fd, header, sizeof(header));
	if (mode == VSR_MODE_VSR2)
		status = answer(fd);
	if (status == VSR_STATUS_GO_ON) {
		send_all(fd, w->data, w->len);
		status = answer(fd);
	}
	if (status != VSR_STATUS_ACCEPTED) {
		fprintf(stderr, "answered %u\n", status);
		exit(1);
	}
}

/* Whether the file is the whole report: its length, and its beginning, which holds the number. */
static bool is_stored(const char *path, const struct wire *w)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	uint8_t head[64];
	struct stat st;

	return fd >= 0 && fstat(fd, &st) == 0 && (size_t)st.st_size == w->len &&
	       pread(fd, head, sizeof(head), 0) == sizeof(head) &&
	       memcmp(head, w->data, sizeof(head)) == 0;
}

static void wait_stored(const char *output, unsigned cid, const struct wire *w)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/0-%u.pb", output, cid);
	for (unsigned i = 0; !is_stored(path, w); i++) {
		if (i > TIMEOUT_S * 1000000 / POLL_USEC) {
			fprintf(stderr, "%s: not stored in time\n", path);
			exit(1);
		}
		usleep(POLL_USEC);
	}
}

/* The place of a text of fixed width, which is there once. */
static char *find(const struct wire *w, const char *text)
{
	char *at = memmem(w->data, w->len, text, strlen(text));

	if (!at)
		abort();
	return at;
}

/* Writes over a text, without its NUL. */
static void patch(char *at, const char *text)
{
	memcpy(at, text, strlen(text));
}

int main(int argc, char **argv)
{
	_cleanup_wire_ struct wire w = {};
	unsigned first, count, number;
	char text[32], *cid_at, *id_at;
	struct timespec cpu;
	uint32_t mode;

	if (argc != 6 && argc != 7) {
		fputs("usage: sender raw|vsr1|vsr2 SOCKETS FIRST_CID COUNT NUMBER [OUTPUT]\n",
		      stderr);
		return 2;
	}
	mode = streq(argv[1], "vsr2")	? VSR_MODE_VSR2
	       : streq(argv[1], "vsr1") ? VSR_MODE_VSR1
					: VSR_MODE_RAW;
	first = strtoul(argv[3], NULL, 10);
	count = strtoul(argv[4], NULL, 10);
	number = strtoul(argv[5], NULL, 10);
	if (first < 1000 || first + count > 10000) {
		fputs("CIDs must have four digits\n", stderr);
		return 2;
	}

	synthetic_report(&w, ANY_CID, PACKAGES, REPOSITORIES);
	cid_at = find(&w, "\x0a\x04" ANY_CID) + 2;
	id_at = find(&w, SYNTHETIC_VM_ID);
	for (unsigned i = 0; i < count; i++) {
		int fd = connect_to(argv[2], first + i);

		snprintf(text, sizeof(text), "%u", first + i);
		patch(cid_at, text);
		snprintf(text, sizeof(text), "vm-%08u%08u", number, first + i);
		patch(id_at, text);
		send_report(fd, mode, &w);
		close(fd);
		if (argc == 7)
			wait_stored(argv[6], first + i, &w);
	}
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
	printf("{\"bytes\": %zu, \"cpu_ms\": %.1f}\n", w.len,
	       (double)cpu.tv_sec * 1e3 + (double)cpu.tv_nsec / 1e6);
	return 0;
}
