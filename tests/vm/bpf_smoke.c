// SPDX-License-Identifier: Apache-2.0
/*
 * Zero-credit accept with the verdict program, over AF_VSOCK on loopback, without the daemon: for
 * every size and every way to write and to end, BPF saw all bytes, its digest is libxxhash's, and
 * what was read is what was sent. Then what is special to AF_VSOCK: detach of a live socket, a
 * peer that leaves before the attach, the reserve, unread credit updates.
 *
 *     tests/vm/boot.py --modules loopback --bin build/tests/vm/bpf_smoke -- bpf_smoke
 *
 * Prints TAP; exit status 1 if a test failed. Needs root, a BPF file system at /sys/fs/bpf and
 * vsock_loopback.
 */
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <time.h>

#include <linux/vm_sockets.h>

#include "digest.h"
#include "ingest_bpf.h"
#include "vsr_frame.h"

#define PORT	 5818
#define SEED	 0xa4093822299f31d0ULL
#define LIMIT	 (16 * MIB)
#define CREDIT	 (256 * KIB)
#define GENEROUS (64 * MIB)
#define WAIT_MS	 20000
#define SLOT	 3

enum ending { CLOSE, HALF_CLOSE, FULL_SHUTDOWN };

struct sender {
	const uint8_t *p;
	size_t n, write; /* bytes in all, bytes a write */
	enum ending ending;
	pthread_t thread;
	int fd;
	volatile size_t sent;
};

static struct ingest_bpf *bpf;
static int listener;
static int test_number, failures;

static void result(bool ok, const char *name, const char *detail)
{
	printf("%sok %d - %s%s%s\n", ok ? "" : "not ", ++test_number, name, detail[0] ? ": " : "",
	       detail);
	failures += !ok;
}

static uint8_t *pattern(size_t n)
{
	uint8_t *p = malloc(n + VSR_HEADER_SIZE);
	uint64_t x = n * 2654435761U + 1;
	size_t i;

	if (!p)
		abort();
	for (i = 0; i < n + VSR_HEADER_SIZE; i++) {
		x = x * 6364136223846793005ULL + 1;
		p[i] = x >> 56;
	}
	p[0] = p[VSR_HEADER_SIZE] = 1;
	return p;
}

/* ---- both ends ---------------------------------------------------------------------------------- */

static int set_u64(int fd, int option, uint64_t v)
{
	return setsockopt(fd, AF_VSOCK, option, &v, sizeof(v)) < 0 ? -errno : 0;
}

/* Accepted sockets inherit the listener's sizes: they advertise no credit at all. */
static int listen_at_zero_credit(void)
{
	struct sockaddr_vm a = { .svm_family = AF_VSOCK,
				 .svm_cid = VMADDR_CID_ANY,
				 .svm_port = PORT };
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || set_u64(fd, SO_VM_SOCKETS_BUFFER_MIN_SIZE, 0) < 0 ||
	    set_u64(fd, SO_VM_SOCKETS_BUFFER_SIZE, 0) < 0 ||
	    bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, 16) < 0)
		return -errno;
	return fd;
}

static int connect_to_listener(void)
{
	struct sockaddr_vm a = { .svm_family = AF_VSOCK,
				 .svm_cid = VMADDR_CID_LOCAL,
				 .svm_port = PORT };
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0)
		return -errno;
	return fd;
}

static void *send_all(void *arg)
{
	struct sender *s = arg;

	while (s->sent < s->n) {
		ssize_t k =
			send(s->fd, s->p + s->sent, MIN(s->n - s->sent, s->write), MSG_NOSIGNAL);

		if (k <= 0)
			break;
		s->sent += k;
	}
	if (s->ending == HALF_CLOSE)
		shutdown(s->fd, SHUT_WR);
	else if (s->ending == FULL_SHUTDOWN)
		shutdown(s->fd, SHUT_RDWR);
	else
		s->fd = safe_close(s->fd);
	return NULL;
}

static int accept_one(uint64_t *ret_cookie)
{
	struct pollfd p = { .fd = listener, .events = POLLIN };
	socklen_t len = sizeof(*ret_cookie);
	int fd;

	if (poll(&p, 1, WAIT_MS) != 1)
		return -ETIMEDOUT;
	fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_COOKIE, ret_cookie, &len) < 0)
		return -errno;
	return fd;
}

static uint32_t meminfo(int fd, int which)
{
	uint32_t m[9] = {};
	socklen_t len = sizeof(m);

	(void)getsockopt(fd, SOL_SOCKET, SO_MEMINFO, m, &len);
	return m[which];
}

/* Starts a sender, accepts it, attaches it. The sender has been trying to send all along. */
static int begin(struct sender *s, uint64_t reservation, uint64_t *ret_cookie)
{
	static const struct vsr_vm_id vm = { .cid = VMADDR_CID_LOCAL };
	int fd, r;

	s->fd = connect_to_listener();
	if (s->fd < 0 || pthread_create(&s->thread, NULL, send_all, s) != 0)
		return -EIO;
	fd = accept_one(ret_cookie);
	if (fd < 0)
		return fd;
	ingest_bpf_grant_set(bpf, SLOT, reservation, 0);
	r = ingest_bpf_attach(bpf, fd, *ret_cookie, &vm, SLOT);
	if (r == 0)
		r = set_u64(fd, SO_VM_SOCKETS_BUFFER_SIZE, CREDIT);
	if (r < 0) {
		printf("# begin: %s (%s)\n", strerror(-r), ingest_bpf_why());
		close(fd);
		return r;
	}
	return fd;
}

static void end(struct sender *s, int fd, uint64_t cookie, struct vsr_conn *ret)
{
	close(fd);
	pthread_join(s->thread, NULL);
	s->fd = safe_close(s->fd);
	(void)ingest_bpf_detach(bpf, -1, cookie, SLOT, ret);
	__atomic_fetch_sub(&ingest_bpf_pool(bpf)->drawn, ret->pool_share, __ATOMIC_RELAXED);
}

/*
 * Reads to the end by the two rules of DESIGN 2: never more than was passed and not yet read; the
 * stream is complete when the peer has shut down and all that was seen has been read. Returns the
 * bytes read, negative errno.
 */
static ssize_t read_to_end(int fd, uint64_t cookie, uint8_t *to, size_t room, struct vsr_conn *ret)
{
	struct pollfd p = { .fd = fd, .events = POLLIN | POLLRDHUP };
	size_t got = 0;

	for (;;) {
		bool hup;
		int r;

		if (poll(&p, 1, WAIT_MS) <= 0)
			return -ETIMEDOUT;
		hup = p.revents & POLLRDHUP;
		r = ingest_bpf_read(bpf, cookie, ret);
		if (r < 0)
			return r;
		if (ret->flags & VSR_CONN_REFUSED)
			return -EPROTO;
		if (ret->passed > got) {
			ssize_t k = recv(fd, to + got, MIN(room - got, ret->passed - got),
					 MSG_DONTWAIT);

			if (k < 0 && errno != EAGAIN)
				return -errno;
			got += k > 0 ? k : 0;
		} else if (hup && got == ret->seen) {
			return got;
		}
		if (got == room)
			return got;
	}
}

/* ---- tests -------------------------------------------------------------------------------------- */

static const char *const endings[] = { "close", "half-close", "shutdown" };

static void stream(size_t n, size_t write, enum ending ending, uint32_t mode)
{
	size_t header = mode == VSR_MODE_RAW ? 0 : VSR_HEADER_SIZE, all = n + header;
	_cleanup_free_ uint8_t *p = pattern(n), *got = malloc(all + 1);
	struct sender s = { .p = p, .n = all, .write = write, .ending = ending };
	struct vsr_header h = { .mode = mode, .length = n };
	struct vsr_conn c = {}, last = {};
	char name[160], why[200] = "";
	struct vsr_buf buf = {};
	uint64_t cookie = 0, bpf_digest, own;
	ssize_t k;
	int fd;

	snprintf(name, sizeof(name), "%s of %zu bytes in writes of %zu, %s",
		 header ? "frame" : "raw stream", n, write, endings[ending]);
	if (header)
		vsr_header_write(p, &h);
	fd = begin(&s, GENEROUS, &cookie);
	if (fd < 0) {
		result(false, name, strerror(-fd));
		return;
	}
	k = read_to_end(fd, cookie, got, all + 1, &c);
	(void)ingest_bpf_buf(bpf, SLOT, &buf);
	end(&s, fd, cookie, &last);

	bpf_digest = digest_finish_partial(SEED, c.fold, c.payload, buf.block);
	own = digest_bytes(SEED, p + header, n);
	if (k < 0)
		snprintf(why, sizeof(why), "read: %s, flags %#x, seen %llu", strerror((int)-k),
			 c.flags, c.seen);
	else if (c.seen != all || c.passed != all || (size_t)k != all || s.sent != all)
		snprintf(why, sizeof(why), "sent %zu, seen %llu, passed %llu, read %zd", s.sent,
			 c.seen, c.passed, k);
	else if (memcmp(p, got, all) != 0)
		snprintf(why, sizeof(why), "content differs");
	else if (bpf_digest != own || c.payload != n)
		snprintf(why, sizeof(why), "digest differs");
	else if ((c.flags & ~VSR_CONN_HALF) !=
		 (header ? VSR_CONN_HEADER_DONE | VSR_CONN_FRAME_DONE : 0))
		snprintf(why, sizeof(why), "flags %#x", c.flags);
	result(!why[0], name, why);
}

/* Zero credit until then: however long the daemon takes, nothing arrives before the attach. */
static void late_attach_misses_nothing(void)
{
	_cleanup_free_ uint8_t *p = pattern(MIB), *got = malloc(MIB + 1);
	struct sender s = { .p = p, .n = MIB, .write = 65536, .ending = CLOSE };
	static const struct vsr_vm_id vm = { .cid = VMADDR_CID_LOCAL };
	struct vsr_conn c = {};
	uint64_t cookie;
	ssize_t k = -1;
	int fd;

	s.fd = connect_to_listener();
	pthread_create(&s.thread, NULL, send_all, &s);
	fd = accept_one(&cookie);
	usleep(500 * 1000);
	ingest_bpf_grant_set(bpf, SLOT, GENEROUS, 0);
	if (ingest_bpf_attach(bpf, fd, cookie, &vm, SLOT) == 0) {
		set_u64(fd, SO_VM_SOCKETS_BUFFER_SIZE, CREDIT);
		k = read_to_end(fd, cookie, got, MIB + 1, &c);
	}
	end(&s, fd, cookie, &c);
	result(k == (ssize_t)MIB && c.seen == MIB && memcmp(p, got, MIB) == 0,
	       "attach half a second after the accept misses nothing", "");
}

/* The slot is free when detach returns, though the guest goes on sending. */
static void detach_of_a_live_socket_ends_all_verdicts(void)
{
	_cleanup_free_ uint8_t *p = pattern(16 * MIB);
	struct sender s = { .p = p, .n = 16 * MIB, .write = 1000, .ending = CLOSE };
	struct vsr_conn c = {}, after = {};
	struct vsr_stats before, later;
	struct vsr_buf buf, again;
	uint64_t cookie;
	char why[200];
	int fd, r;

	fd = begin(&s, GENEROUS, &cookie);
	if (fd < 0) {
		result(false, "detach of a live socket ends all verdicts", strerror(-fd));
		return;
	}
	do
		r = ingest_bpf_read(bpf, cookie, &c);
	while (r == 0 && c.seen < 100000);
	r = ingest_bpf_detach(bpf, fd, cookie, SLOT, &c);
	ingest_bpf_buf(bpf, SLOT, &buf);
	ingest_bpf_stats(bpf, &before);
	usleep(300 * 1000);
	ingest_bpf_buf(bpf, SLOT, &again);
	ingest_bpf_stats(bpf, &later);
	snprintf(why, sizeof(why), "seen %llu, sent %zu in the end", c.seen, s.sent);
	result(r == 0 && c.seen >= 100000 && memcmp(&buf, &again, sizeof(buf)) == 0 &&
		       before.packets == later.packets && before.no_conn == later.no_conn,
	       "detach of a live socket ends all verdicts", why);
	/* Credit is flow control again: what the guest can still queue is bounded by it. */
	result(s.sent <= c.seen + 2 * CREDIT,
	       "a detached socket is under the flow control of its credit", "");
	end(&s, fd, cookie, &after);
	result(ingest_bpf_conns_count(bpf) == 0, "nothing is left in vsr_conns", "");
}

static void peer_that_left_is_enotconn(void)
{
	static const struct vsr_vm_id vm = { .cid = VMADDR_CID_LOCAL };
	struct pollfd p = { .events = POLLRDHUP };
	uint64_t cookie;
	int c = connect_to_listener(), fd = accept_one(&cookie), r;

	close(c);
	p.fd = fd;
	(void)poll(&p, 1, WAIT_MS);
	r = ingest_bpf_attach(bpf, fd, cookie, &vm, SLOT);
	result(r == -ENOTCONN && ingest_bpf_conns_count(bpf) == 0,
	       "a peer that left before the attach is ENOTCONN", ingest_bpf_why());
	close(fd);
}

/* Nobody reads: BPF stops at the reservation and what the reserve has, at what the kernel charges. */
static void reservation_bounds_what_is_queued(size_t write, uint64_t reservation)
{
	_cleanup_free_ uint8_t *p = pattern(8 * MIB);
	struct sender s = { .p = p, .n = 8 * MIB, .write = write, .ending = HALF_CLOSE };
	struct vsr_conn c = {};
	uint64_t cookie;
	uint32_t rmem;
	char name[100], why[200];
	int fd, i;

	snprintf(name, sizeof(name),
		 "reservation of %llu KiB bounds writes of %zu that nobody reads",
		 (unsigned long long)reservation >> 10, write);
	__atomic_store_n(&ingest_bpf_pool(bpf)->limit, 100000, __ATOMIC_RELAXED);
	fd = begin(&s, reservation, &cookie);
	if (fd < 0) {
		result(false, name, strerror(-fd));
		return;
	}
	for (i = 0; i < WAIT_MS && !(c.flags & VSR_CONN_REFUSED); i++) {
		usleep(1000);
		ingest_bpf_read(bpf, cookie, &c);
	}
	rmem = meminfo(fd, 0);
	end(&s, fd, cookie, &c);
	snprintf(why, sizeof(why), "flags %#x, passed %llu in %llu packets, rmem %u, share %llu",
		 c.flags, c.passed, c.packets_queued, rmem, c.pool_share);
	result((c.flags & VSR_CONN_HALF) && (c.flags & VSR_CONN_REFUSED) == VSR_CONN_OVER_BUDGET &&
		       rmem + VSR_PACKET_OVERHEAD * c.packets_queued <= reservation + 100000 &&
		       c.pool_share <= 100000 &&
		       __atomic_load_n(&ingest_bpf_pool(bpf)->drawn, __ATOMIC_RELAXED) == 0,
	       name, why);
}

/*
 * A polite peer of loopback that writes byte by byte for long looks like one that does not read
 * its updates: one worker serves both directions and takes the packets first, so their updates
 * (896 bytes each) pile up behind them. Printed as a fact, not tested: a guest has a queue of its
 * own for each direction.
 */
static void report_unread_updates(size_t n)
{
	_cleanup_free_ uint8_t *p = pattern(n), *got = malloc(n + 1);
	struct sender s = { .p = p, .n = n, .write = 1, .ending = CLOSE };
	struct vsr_conn c = {};
	uint32_t most = 0;
	uint64_t cookie;
	int fd = begin(&s, GENEROUS, &cookie), i;

	for (i = 0; fd >= 0 && i < WAIT_MS * 10 && c.seen < n && !(c.flags & VSR_CONN_REFUSED);
	     i++) {
		most = MAX(most, meminfo(fd, 2));
		if (ingest_bpf_read(bpf, cookie, &c) < 0)
			break;
	}
	if (fd >= 0)
		end(&s, fd, cookie, &c);
	printf("# %zu writes of 1 byte: flags %#x, seen %llu, most wmem seen %u\n", n, c.flags,
	       c.seen, most);
}

static void streams(void)
{
	static const size_t sizes[] = { 1, 10, 4095, 4096, 4097, 65535, 65536, 65537, 450000, MIB };
	static const size_t writes[] = { 1000, 65536, 300000 };
	size_t i, j;

	for (i = 0; i < ARRAY_SIZE(sizes); i++)
		for (j = 0; j < ARRAY_SIZE(writes); j++) {
			enum ending e = (i + j) % 3;

			stream(sizes[i], writes[j], e, VSR_MODE_RAW);
			stream(sizes[i], writes[j], (e + 1) % 3, VSR_MODE_VSR1);
		}
	for (i = 0; i < 3; i++) {
		stream(450, 1, i, VSR_MODE_RAW);
		stream(300, 1, i, VSR_MODE_VSR2);
	}
	stream(LIMIT, 65536, CLOSE, VSR_MODE_RAW);
	stream(LIMIT, 65536, HALF_CLOSE, VSR_MODE_VSR1);
}

int main(void)
{
	struct ingest_bpf_settings s = { .seed = SEED,
					 .report_limit = LIMIT,
					 .slots = 8,
					 .vms = 64,
					 .blocks = 1024,
					 .pin_dir = VSR_PIN_DIR,
					 .pin_uid = -1,
					 .pin_gid = -1 };
	struct vsr_stats st = {};
	struct utsname u;
	char detail[200];
	int r;

	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	alarm(600);
	uname(&u);
	printf("# kernel %s\n", u.release);
	/* EBUSY: mounted already. */
	(void)mount("bpf", "/sys/fs/bpf", "bpf", 0, NULL);
	r = ingest_bpf_new(&s, &bpf);
	if (r < 0) {
		printf("not ok 1 - load: %s: %s\n1..1\n", strerror(-r), ingest_bpf_why());
		return 1;
	}
	listener = listen_at_zero_credit();
	if (listener < 0) {
		printf("not ok 1 - listen: %s\n1..1\n", strerror(-listener));
		return 1;
	}

	streams();
	late_attach_misses_nothing();
	peer_that_left_is_enotconn();
	detach_of_a_live_socket_ends_all_verdicts();
	reservation_bounds_what_is_queued(1, 256 * KIB);
	reservation_bounds_what_is_queued(1000, 256 * KIB);
	reservation_bounds_what_is_queued(65536, MIB);
	report_unread_updates(2000);
	report_unread_updates(20000);

	ingest_bpf_stats(bpf, &st);
	snprintf(detail, sizeof(detail), "%llu packets, %llu bytes", st.packets, st.bytes);
	result((st.no_slot | st.load_failed | st.event_lost | st.vm_insert_failed | st.no_conn |
		st.zero_length | st.bad_header | st.bad_packet | st.too_large) == 0,
	       "counters that must stay zero", detail);
	ingest_bpf_free(bpf);
	printf("1..%d\n", test_number);
	return failures != 0;
}
