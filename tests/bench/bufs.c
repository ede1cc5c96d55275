/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What memory for a report costs: CPU time of receiving 2.5 MB from an AF_UNIX socket, by where
 * the memory comes from. Prints one line of JSON. The comment in user/buf.c rests on it.
 */
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#include "buf.h"

#define LENGTH	  2500000UL
#define CAPACITY  (16 * MIB)
#define HUGE	  (2 * MIB)
#define AHEAD	  (512 * KIB)
#define AT_ONCE	  (256 * KIB)
#define ROUNDS	  200
#define WARM_UP	  5
#define TIMEOUT_S 120

static double cpu_usec(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

_noreturn_ static void die(const char *what)
{
	perror(what);
	exit(EXIT_FAILURE);
}

static size_t receive(int fd, uint8_t *p, size_t n)
{
	ssize_t got = recv(fd, p, MIN(n, AT_ONCE), 0);

	if (got <= 0)
		die("recv");
	return (size_t)got;
}

static uint8_t *map(size_t size)
{
	uint8_t *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		die("mmap");
	return p;
}

static void fill(int fd, uint8_t *p)
{
	for (size_t n = 0; n < LENGTH;)
		n += receive(fd, p + n, LENGTH - n);
}

static void one_buffer(int fd)
{
	static uint8_t *p;

	if (!p)
		p = map(CAPACITY);
	fill(fd, p);
}

static void fresh(int fd)
{
	uint8_t *p = map(CAPACITY);

	madvise(p, CAPACITY, MADV_NOHUGEPAGE);
	fill(fd, p);
	munmap(p, CAPACITY);
}

static void populated(int fd)
{
	uint8_t *p = map(CAPACITY);
	size_t ahead = 0;

	madvise(p, CAPACITY, MADV_NOHUGEPAGE);
	for (size_t n = 0; n < LENGTH;) {
		if (n + AT_ONCE > ahead) {
			madvise(p + ahead, AHEAD, MADV_POPULATE_WRITE);
			ahead += AHEAD;
		}
		n += receive(fd, p + n, LENGTH - n);
	}
	munmap(p, CAPACITY);
}

/* Huge pages only for what is filled entirely, so that none has to be cut. */
static void huge(int fd)
{
	uint8_t *p = map(CAPACITY + HUGE), *aligned;

	aligned = (uint8_t *)(((uintptr_t)p + HUGE - 1) / HUGE * HUGE);
	madvise(p, CAPACITY + HUGE, MADV_NOHUGEPAGE);
	madvise(aligned, LENGTH / HUGE * HUGE, MADV_HUGEPAGE);
	fill(fd, aligned);
	munmap(p, CAPACITY + HUGE);
}

static void doubling(int fd)
{
	size_t size = 64 * KIB;
	uint8_t *p = malloc(size);

	for (size_t n = 0; n < LENGTH;) {
		if (n == size) {
			size *= 2;
			p = realloc(p, size);
		}
		if (!p)
			die("realloc");
		n += receive(fd, p + n, MIN(size, LENGTH) - n);
	}
	free(p);
}

static void recycled(int fd)
{
	_cleanup_(buf_unrefp)
	struct buf *b = NULL;

	if (buf_new(CAPACITY, &b) < 0)
		die("buf_new");
	for (size_t n = 0; n < LENGTH;) {
		size_t got = receive(fd, buf_tail(b), LENGTH - n);

		buf_advance(b, got);
		n += got;
	}
	buf_seal(b);
}

static pid_t start_sender(int fd, size_t reports)
{
	static uint8_t payload[64 * KIB];
	pid_t pid = fork();

	if (pid != 0)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	memset(payload, 7, sizeof(payload));
	for (size_t left = reports * LENGTH; left > 0;) {
		ssize_t sent = send(fd, payload, MIN(left, sizeof(payload)), MSG_NOSIGNAL);

		if (sent < 0)
			_exit(EXIT_FAILURE);
		left -= (size_t)sent;
	}
	_exit(EXIT_SUCCESS);
}

int main(void)
{
	static const struct {
		const char *name;
		void (*run)(int fd);
	} ways[] = {
		{ "one_warm_buffer", one_buffer }, { "fresh", fresh },
		{ "populated_ahead", populated },  { "huge_pages", huge },
		{ "malloc_doubling", doubling },   { "recycled", recycled },
	};
	int sv[2];

	alarm(TIMEOUT_S);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
		die("socketpair");
	start_sender(sv[1], ARRAY_SIZE(ways) * (WARM_UP + ROUNDS));
	close(sv[1]);
	printf("{\"bytes\": %lu", LENGTH);
	for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
		double before = 0;

		for (size_t n = 0; n < WARM_UP + ROUNDS; n++) {
			if (n == WARM_UP)
				before = cpu_usec();
			ways[i].run(sv[0]);
		}
		printf(", \"%s_cpu_us\": %.0f", ways[i].name, (cpu_usec() - before) / ROUNDS);
	}
	puts("}");
	wait(NULL);
	return EXIT_SUCCESS;
}
