// SPDX-License-Identifier: Apache-2.0
/*
 * What the verdict costs on the running kernel: its instructions on the verifier, and its time for
 * 64 KiB, from the kernel's own statistics of the program (sk_skb has no BPF_PROG_TEST_RUN). The packets
 * come over TCP on loopback, which sockmap serves by the same code, in sends of 64 KiB; "hashed": nothing
 * to compare with; "compared": equal to what the cache has. The floor is libxxhash on the same blocks.
 *
 * Prints JSON; with --check TAP, held against tests/verdict_budget.h. Needs root.
 */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>

#include <bpf/bpf.h>
#include <xxhash.h>

#include "../verdict_budget.h"
#include "digest.h"
#include "ingest_bpf.h"

#define SEED	0x13198a2e03707344ULL
#define PACKET	(64 * KIB)
#define STREAM	(15 * MIB)
#define ROUNDS	5
#define WAIT_MS 10000

static _noreturn_ void die(const char *what)
{
	fprintf(stderr, "verdict: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* ---- the program ---------------------------------------------------------------------------------- */

/* The loaded verdict among our descriptors: the wrapper hides it. */
static int find_program(struct bpf_prog_info *ret)
{
	for (int fd = 3; fd < 256; fd++) {
		struct bpf_prog_info info = { 0 };
		uint32_t size = sizeof(info);

		if (bpf_obj_get_info_by_fd(fd, &info, &size) == 0 &&
		    streq(info.name, "vsr_ingest") && info.verified_insns > 0) {
			*ret = info;
			return fd;
		}
	}
	errno = ENOENT;
	die("the verdict's program");
}

struct cost {
	double ns, runs;
};

static struct cost cost_of(int prog)
{
	struct bpf_prog_info info = { 0 };
	uint32_t size = sizeof(info);

	if (bpf_obj_get_info_by_fd(prog, &info, &size) < 0)
		die("statistics");
	return (struct cost){ (double)info.run_time_ns, (double)info.run_cnt };
}

/* ---- a stream -------------------------------------------------------------------------------------- */

struct pair {
	int accepted, peer;
	uint64_t cookie;
};

static struct pair connect_pair(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET };
	socklen_t len = sizeof(a), cookie_len = sizeof(uint64_t);
	int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), size = 4 * (int)MIB;
	struct pair p;

	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (l < 0 || bind(l, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(l, 1) < 0 ||
	    getsockname(l, (struct sockaddr *)&a, &len) < 0)
		die("listen");
	p.peer = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	(void)setsockopt(l, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
	if (p.peer < 0 || connect(p.peer, (struct sockaddr *)&a, sizeof(a)) < 0)
		die("connect");
	p.accepted = accept4(l, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (p.accepted < 0 ||
	    getsockopt(p.accepted, SOL_SOCKET, SO_COOKIE, &p.cookie, &cookie_len) < 0)
		die("accept");
	close(l);
	return p;
}

/* Never more than was passed, as the daemon does. */
static void read_passed(struct pair *p, const struct vsr_conn *c, uint64_t *at)
{
	static uint8_t into[256 * KIB];
	ssize_t n;

	while (*at < c->passed) {
		n = recv(p->accepted, into, MIN(sizeof(into), c->passed - *at), MSG_DONTWAIT);
		if (n <= 0)
			break;
		*at += (uint64_t)n;
	}
}

static void stream(struct ingest_bpf *b, const uint8_t *bytes, bool compare)
{
	struct pair p = connect_pair();
	uint64_t sent = 0, read_ = 0;
	struct vsr_conn c = { 0 };
	const struct vsr_vm_id vm = { .cid = 42 };

	ingest_bpf_grant_set(b, 0, 256 * MIB, 0);
	ingest_bpf_grant_match(b, 0, 0, compare ? STREAM : 0);
	if (ingest_bpf_attach(b, p.accepted, p.cookie, &vm, 0) < 0)
		die(ingest_bpf_why());
	for (int idle = 0; c.seen < STREAM && idle < WAIT_MS;) {
		ssize_t n = sent < STREAM ? send(p.peer, bytes + sent, MIN(PACKET, STREAM - sent),
						 MSG_DONTWAIT | MSG_NOSIGNAL)
					  : 0;

		sent += n > 0 ? (uint64_t)n : 0;
		if (ingest_bpf_read(b, p.cookie, &c) < 0)
			die("the connection's entry");
		read_passed(&p, &c, &read_);
		if (n <= 0)
			idle += poll(NULL, 0, 1) == 0;
	}
	if (c.seen != STREAM || (compare && c.passed > 0)) {
		errno = EIO;
		die(compare ? "a stream that is known" : "a stream");
	}
	close(p.accepted);
	close(p.peer);
	(void)ingest_bpf_detach(b, -1, p.cookie, 0, NULL);
}

/* ---- figures --------------------------------------------------------------------------------------- */

static double now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* Nanoseconds for 64 KiB: the least of several streams, since others use this machine too. */
static double floor_ns(const uint8_t *bytes)
{
	double least = 1e18;
	uint64_t sum = 0;

	for (int r = 0; r < ROUNDS; r++) {
		double start = now_ns();

		for (size_t i = 0; i < STREAM; i += VSR_BLOCK_SIZE)
			sum += XXH64(bytes + i, VSR_BLOCK_SIZE, SEED);
		least = MIN(least, now_ns() - start);
	}
	if (sum == 0)
		die("hashes");
	return least * (double)PACKET / (double)STREAM;
}

static double verdict_ns(struct ingest_bpf *b, int prog, const uint8_t *bytes, bool compare,
			 double *ret_packet)
{
	double least = 1e18;

	for (int r = 0; r < ROUNDS; r++) {
		struct cost before = cost_of(prog), after;

		stream(b, bytes, compare);
		after = cost_of(prog);
		least = MIN(least, after.ns - before.ns);
		*ret_packet = (double)STREAM / (after.runs - before.runs);
	}
	return least * (double)PACKET / (double)STREAM;
}

static uint8_t *content(void)
{
	uint8_t *p = malloc(STREAM);
	uint64_t x = 1;

	if (!p)
		die("memory");
	for (size_t i = 0; i < STREAM; i++) {
		x = x * 6364136223846793005ULL + 1;
		p[i] = (uint8_t)(x >> 56);
	}
	p[0] = 1; /* raw */
	return p;
}

int main(int argc, char **argv)
{
	bool check = argc > 1 && streq(argv[1], "--check");
	struct ingest_bpf_settings s = { .seed = SEED,
					 .report_limit = STREAM,
					 .slots = 2,
					 .vms = 16,
					 .blocks = STREAM / VSR_BLOCK_SIZE,
					 .pool_limit = MIB,
					 .pin_uid = (uid_t)-1,
					 .pin_gid = (gid_t)-1 };
	_cleanup_(ingest_bpf_freep)
	struct ingest_bpf *b = NULL;
	_cleanup_free_ uint8_t *bytes = content();
	double floor, hashed, compared, packet, packet_compared, times;
	struct bpf_prog_info info;
	bool few, quick;
	int prog, r, stats;
	uint32_t n;

	r = ingest_bpf_new(&s, &b);
	stats = r < 0 ? -1 : bpf_enable_stats(BPF_STATS_RUN_TIME);
	if (stats < 0) {
		if (check && (r == -EPERM || r == -EOPNOTSUPP)) {
			printf("1..0 # SKIP %s\n", ingest_bpf_why());
			return 0;
		}
		errno = r < 0 ? -r : errno;
		die(r < 0 ? ingest_bpf_why() : "statistics of BPF");
	}
	prog = find_program(&info);
	(void)digest_blocks(SEED, bytes, STREAM, ingest_bpf_blocks(b, &n));
	floor = floor_ns(bytes);
	hashed = verdict_ns(b, prog, bytes, false, &packet);
	compared = verdict_ns(b, prog, bytes, true, &packet_compared);
	floor = MIN(floor, floor_ns(bytes));
	times = MAX(hashed, compared) / floor;
	few = info.verified_insns <= VERDICT_INSTRUCTIONS_MAX;
	quick = times <= VERDICT_TIME_MAX;
	close(stats);
	if (check) {
		printf("1..2\n%sok 1 - the verdict takes %u instructions of the verifier's, at most %d\n",
		       few ? "" : "not ", info.verified_insns, VERDICT_INSTRUCTIONS_MAX);
		printf("%sok 2 - the verdict takes %.0f ns for 64 KiB that are new, %.0f for known ones, "
		       "%.1f times libxxhash's %.0f, at most %.1f\n",
		       quick ? "" : "not ", hashed, compared, times, floor, VERDICT_TIME_MAX);
		return !few || !quick;
	}
	printf("{\"instructions\": %u, \"instructions_max\": %d, \"ns_per_64_kib\": {\"hashed\": %.0f, "
	       "\"compared\": %.0f, \"libxxhash\": %.0f}, \"bytes_per_packet\": {\"hashed\": %.0f, "
	       "\"compared\": %.0f}, \"times_libxxhash\": %.2f, \"times_max\": %.1f, \"met\": %s}\n",
	       info.verified_insns, VERDICT_INSTRUCTIONS_MAX, hashed, compared, floor, packet,
	       packet_compared, times, VERDICT_TIME_MAX, few && quick ? "true" : "false");
	return 0;
}
