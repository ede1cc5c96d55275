// SPDX-License-Identifier: Apache-2.0
/*
 * The wrapper and the loaded program on the running kernel. A host has no vsock peer to talk to,
 * so the streams come over TCP on loopback, which sockmap serves by the same code; what is special
 * to AF_VSOCK is tested in VMs (tests/vm/bpf_smoke.c). Needs root, and a kernel with BPF; skipped
 * without. Pins go to a BPF file system of its own, in a private mount namespace.
 */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <bpf/bpf.h>
#include <cmocka.h>

#include "digest.h"
#include "ingest_bpf.h"
#include "vsr_frame.h"

#define SEED	 0x13198a2e03707344ULL
#define LIMIT	 (1 << 20)
#define NOBODY	 65534
#define WAIT_MS	 10000
#define GENEROUS (64 * MIB)

static char bpffs[] = "/tmp/vsr-test-XXXXXX";
static char pin_dir[64];
static bool can;
static uint32_t events[16];

static struct ingest_bpf_settings settings(void)
{
	return (struct ingest_bpf_settings){
		.seed = SEED,
		.report_limit = LIMIT,
		.slots = 4,
		.vms = 64,
		.blocks = 1024,
		.pool_limit = 1 << 20,
		.pin_dir = pin_dir,
		.pin_uid = -1,
		.pin_gid = -1,
	};
}

static struct ingest_bpf *must_load(const struct ingest_bpf_settings *s)
{
	struct ingest_bpf *b = NULL;
	int r;

	if (!can)
		skip();
	r = ingest_bpf_new(s, &b);
	if (r < 0)
		fail_msg("%s: %s", strerror(-r), ingest_bpf_why());
	return b;
}

static bool is_pinned(const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", pin_dir, name);
	return access(path, F_OK) == 0;
}

static const char *const kept[] = { "vsr_vms", "vsr_vm_state", "vsr_abi" };
static const char *const fleeting[] = { "vsr_socks", "vsr_conns",  "vsr_grants", "vsr_bufs",
					"vsr_pool",  "vsr_blocks", "vsr_events", "vsr_stats" };

/* A connected pair over loopback: [0] was accepted. */
struct pair {
	int fd[2];
	uint64_t cookie;
};

static struct pair connect_pair(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET };
	socklen_t len = sizeof(a), cookie_len = sizeof(uint64_t);
	struct pair p;
	int one = 1;
	int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	assert_int_equal(bind(l, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(l, 1), 0);
	assert_int_equal(getsockname(l, (struct sockaddr *)&a, &len), 0);
	p.fd[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(setsockopt(p.fd[1], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)), 0);
	assert_int_equal(connect(p.fd[1], (struct sockaddr *)&a, sizeof(a)), 0);
	p.fd[0] = accept4(l, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	assert_true(p.fd[0] >= 0);
	assert_int_equal(getsockopt(p.fd[0], SOL_SOCKET, SO_COOKIE, &p.cookie, &cookie_len), 0);
	close(l);
	return p;
}

static void close_pair(struct pair *p)
{
	p->fd[0] = safe_close(p->fd[0]);
	p->fd[1] = safe_close(p->fd[1]);
}

static const struct vsr_vm_id vm42 = { .ns = 7, .cid = 42 };

static void on_event(const struct vsr_event *e, void *userdata)
{
	assert_ptr_equal(userdata, events);
	if (e->kind < ARRAY_SIZE(events))
		events[e->kind]++;
}

/* Sends all of p and reads it at the other end, never more than BPF passed. */
static void transfer(struct ingest_bpf *b, struct pair *pair, const uint8_t *p, size_t n)
{
	_cleanup_free_ uint8_t *got = malloc(n);
	size_t sent = 0, read_ = 0;
	struct vsr_conn c;

	assert_non_null(got);
	while (read_ < n) {
		struct pollfd fd = { .fd = pair->fd[0], .events = POLLIN };

		if (sent < n) {
			ssize_t k = send(pair->fd[1], p + sent, MIN(n - sent, 30000UL),
					 MSG_DONTWAIT | MSG_NOSIGNAL);

			sent += k > 0 ? k : 0;
		}
		assert_true(poll(&fd, 1, WAIT_MS) > 0);
		assert_int_equal(ingest_bpf_read(b, pair->cookie, &c), 0);
		if (c.passed > read_) {
			ssize_t k = recv(pair->fd[0], got + read_, c.passed - read_, MSG_DONTWAIT);

			read_ += k > 0 ? k : 0;
		}
	}
	assert_memory_equal(got, p, n);
}

static uint8_t *pattern(size_t n)
{
	uint8_t *p = malloc(n);
	uint64_t x = n * 2654435761U + 1;
	size_t i;

	assert_non_null(p);
	for (i = 0; i < n; i++) {
		x = x * 6364136223846793005ULL + 1;
		p[i] = x >> 56;
	}
	p[0] = 1;
	return p;
}

static uint64_t digest_from(struct ingest_bpf *b, const struct vsr_conn *c)
{
	struct vsr_buf buf;

	assert_int_equal(ingest_bpf_buf(b, c->slot, &buf), 0);
	return digest_finish_partial(SEED, c->fold, c->payload, buf.block);
}

/* ---- streams ------------------------------------------------------------------------------------ */

static void loaded_program_hashes_and_passes_a_raw_stream(void **state _unused_)
{
	static const size_t sizes[] = { 1, 10, 4095, 4096, 4097, 65535, 65536, 65537, LIMIT };
	struct ingest_bpf_settings s = settings();
	_cleanup_(ingest_bpf_freep)
	struct ingest_bpf *b = must_load(&s);
	uint64_t total = 0;
	struct vsr_stats st;
	struct vsr_vm_seen vm;
	struct vsr_conn c;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		_cleanup_free_ uint8_t *p = pattern(sizes[i]);
		struct pair pair = connect_pair();

		ingest_bpf_grant_set(b, 2, GENEROUS, 0);
		assert_int_equal(ingest_bpf_attach(b, pair.fd[0], pair.cookie, &vm42, 2), 0);
		assert_int_equal(ingest_bpf_conns_count(b), 1);
		transfer(b, &pair, p, sizes[i]);
		assert_int_equal(ingest_bpf_read(b, pair.cookie, &c), 0);
		assert_int_equal(c.seen, sizes[i]);
		assert_int_equal(c.payload, sizes[i]);
		assert_int_equal(c.mode, VSR_MODE_RAW);
		assert_int_equal(c.flags, 0);
		assert_int_equal(digest_from(b, &c), digest_bytes(SEED, p, sizes[i]));
		total += sizes[i];
		close_pair(&pair);
		assert_int_equal(ingest_bpf_detach(b, -1, pair.cookie, 2, &c), 0);
		assert_int_equal(c.seen, sizes[i]);
		assert_int_equal(ingest_bpf_detach(b, -1, pair.cookie, 2, &c), -ENOENT);
		assert_int_equal(ingest_bpf_read(b, pair.cookie, &c), -ENOENT);
		assert_int_equal(ingest_bpf_conns_count(b), 0);
	}

	assert_int_equal(ingest_bpf_stats(b, &st), 0);
	assert_int_equal(st.bytes, total);
	assert_int_equal(st.bytes_passed, total);
	assert_int_equal(st.no_slot | st.load_failed | st.event_lost | st.vm_insert_failed, 0);
	assert_int_equal(ingest_bpf_vm_seen_lookup(b, &vm42, &vm), 0);
	assert_int_equal(vm.bytes, total);
	assert_int_equal(vm.connections, ARRAY_SIZE(sizes));
}

static void loaded_program_reads_frames_and_wakes_the_daemon(void **state _unused_)
{
	struct vsr_header h = { .mode = VSR_MODE_VSR2, .length = 10000, .xxh64 = 5 };
	struct ingest_bpf_settings s = settings();
	_cleanup_(ingest_bpf_freep)
	struct ingest_bpf *b = must_load(&s);
	_cleanup_free_ uint8_t *p = pattern(VSR_HEADER_SIZE + 10000);
	struct pair pair = connect_pair();
	struct pollfd fd = { .fd = ingest_bpf_events_fd(b), .events = POLLIN };
	struct vsr_conn c;

	memset(events, 0, sizeof(events));
	ingest_bpf_grant_set(b, 0, GENEROUS, 0);
	assert_int_equal(ingest_bpf_attach(b, pair.fd[0], pair.cookie, &vm42, 0), 0);
	assert_int_equal(ingest_bpf_attach(b, pair.fd[0], pair.cookie, &vm42, 0), -EEXIST);
	vsr_header_write(p, &h);
	transfer(b, &pair, p, VSR_HEADER_SIZE);
	assert_int_equal(poll(&fd, 1, WAIT_MS), 1);
	assert_int_equal(ingest_bpf_events_consume(b, on_event, events), 1);
	assert_int_equal(events[VSR_EVENT_HEADER], 1);

	assert_int_equal(send(pair.fd[1], p + VSR_HEADER_SIZE, 10000, MSG_NOSIGNAL), 10000);
	assert_int_equal(poll(&fd, 1, WAIT_MS), 1);
	assert_int_equal(ingest_bpf_events_consume(b, on_event, events), 1);
	assert_int_equal(events[VSR_EVENT_FRAME], 1);
	assert_int_equal(ingest_bpf_read(b, pair.cookie, &c), 0);
	assert_int_equal(c.flags, VSR_CONN_HEADER_DONE | VSR_CONN_FRAME_DONE);
	assert_int_equal(c.frame_len, 10000);
	assert_memory_equal(c.header, p, VSR_HEADER_SIZE);
	assert_int_equal(digest_from(b, &c), digest_bytes(SEED, p + VSR_HEADER_SIZE, 10000));
	close_pair(&pair);
	assert_int_equal(ingest_bpf_detach(b, -1, pair.cookie, 0, NULL), 0);
}

/* The kernel's own figures: truesize and what waits in the receive queue. */
static void loaded_program_charges_what_the_kernel_charges(void **state _unused_)
{
	struct ingest_bpf_settings s = settings();
	_cleanup_(ingest_bpf_freep)
	struct ingest_bpf *b = must_load(&s);
	_cleanup_free_ uint8_t *p = pattern(LIMIT);
	struct pair pair = connect_pair();
	struct pollfd fd = { .fd = ingest_bpf_events_fd(b), .events = POLLIN };
	struct vsr_conn c;
	size_t sent = 0;
	int i;

	memset(events, 0, sizeof(events));
	ingest_bpf_grant_set(b, 1, 200000, 50000);
	__atomic_store_n(&ingest_bpf_pool(b)->limit, 30000, __ATOMIC_RELAXED);
	assert_int_equal(ingest_bpf_attach(b, pair.fd[0], pair.cookie, &vm42, 1), 0);
	for (i = 0; i < 1000 && !events[VSR_EVENT_OVER_BUDGET]; i++) {
		ssize_t k = send(pair.fd[1], p + sent, 1000, MSG_DONTWAIT | MSG_NOSIGNAL);

		sent += k > 0 ? k : 0;
		(void)poll(&fd, 1, 2);
		assert_true(ingest_bpf_events_consume(b, on_event, events) >= 0);
	}
	assert_int_equal(events[VSR_EVENT_HALF], 1);
	assert_int_equal(events[VSR_EVENT_OVER_BUDGET], 1);
	assert_int_equal(ingest_bpf_read(b, pair.cookie, &c), 0);
	assert_int_equal(c.flags, VSR_CONN_HALF | VSR_CONN_OVER_BUDGET);
	/* 180000 bytes in all, at no less than 1000 + 512 + 2048 a packet. */
	assert_in_range(c.passed, 1000, 180000 / 3560 * 1000);
	assert_in_range(c.pool_share, 1, 30000);
	assert_int_equal(__atomic_load_n(&ingest_bpf_pool(b)->drawn, __ATOMIC_RELAXED),
			 c.pool_share);
	close_pair(&pair);
	assert_int_equal(ingest_bpf_detach(b, -1, pair.cookie, 1, &c), 0);
}

static void socket_whose_peer_left_is_told_from_a_kernel_that_cannot(void **state _unused_)
{
	struct ingest_bpf_settings s = settings();
	_cleanup_(ingest_bpf_freep)
	struct ingest_bpf *b = must_load(&s);
	struct pair pair = connect_pair();
	struct pollfd fd = { .fd = pair.fd[0], .events = POLLRDHUP };
	_cleanup_close_ int vsock = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

	pair.fd[1] = safe_close(pair.fd[1]);
	assert_int_equal(poll(&fd, 1, WAIT_MS), 1);
	assert_int_equal(ingest_bpf_attach(b, pair.fd[0], pair.cookie, &vm42, 0), -ENOTCONN);
	assert_int_equal(ingest_bpf_conns_count(b), 0);
	close_pair(&pair);

	/* The nearest to it that every kernel with AF_VSOCK has: a socket that sockmap refuses. */
	if (vsock >= 0) {
		assert_int_equal(ingest_bpf_attach(b, vsock, 1, &vm42, 0), -EOPNOTSUPP);
		assert_string_not_equal(ingest_bpf_why(), "");
		assert_int_equal(ingest_bpf_conns_count(b), 0);
		/* The round trip through the socket's lock works on it. */
		assert_int_equal(ingest_bpf_detach(b, vsock, 1, 0, NULL), -ENOENT);
	}
	assert_int_equal(ingest_bpf_attach(b, 0, 1, &vm42, s.slots), -EINVAL);
}

/* ---- privileges --------------------------------------------------------------------------------- */

/* Runs f in a child as nobody, without capabilities. Returns its exit status. */
static int as_nobody(int (*f)(void *), void *arg)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		if (setresgid(NOBODY, NOBODY, NOBODY) < 0 || setresuid(NOBODY, NOBODY, NOBODY) < 0)
			_exit(99);
		alarm(30);
		_exit(f(arg));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static int whole_connection(void *arg)
{
	struct ingest_bpf *b = arg;
	struct vsr_vm_state st = { .received = 1 };
	struct pair pair = connect_pair();
	struct vsr_conn c = {};
	struct vsr_stats stats;
	struct vsr_buf buf;
	int i;

	memset(events, 0, sizeof(events));
	ingest_bpf_grant_set(b, 0, GENEROUS, 0);
	if (ingest_bpf_attach(b, pair.fd[0], pair.cookie, &vm42, 0) < 0)
		return 1;
	if (send(pair.fd[1], "VSR1\0\0\0\1--------x", 17, MSG_NOSIGNAL) != 17)
		return 2;
	for (i = 0; i < WAIT_MS && c.seen < 17; i++, usleep(1000))
		if (ingest_bpf_read(b, pair.cookie, &c) < 0)
			return 3;
	if (c.payload != 1 || ingest_bpf_events_consume(b, on_event, events) != 1)
		return 4;
	if (ingest_bpf_buf(b, 0, &buf) < 0 || buf.block[0] != 'x')
		return 5;
	if (ingest_bpf_stats(b, &stats) < 0 || stats.packets < 1)
		return 6;
	if (ingest_bpf_vm_state_update(b, &vm42, &st) < 0)
		return 7;
	if (recv(pair.fd[0], &buf, 17, MSG_DONTWAIT) != 17)
		return 8;
	close_pair(&pair);
	if (ingest_bpf_detach(b, -1, pair.cookie, 0, &c) < 0)
		return 9;
	/* And the end of the service: the pins that do not stay are removed. */
	ingest_bpf_free(b);
	return is_pinned("vsr_conns") ? 10 : 0;
}

static void no_capability_is_needed_after_the_load(void **state _unused_)
{
	struct ingest_bpf_settings s = settings();
	_cleanup_(ingest_bpf_freep)
	struct ingest_bpf *b = NULL;
	struct vsr_vm_state st;

	s.pin_uid = s.pin_gid = NOBODY;
	b = must_load(&s);
	assert_int_equal(chmod(bpffs, 0755), 0);
	assert_int_equal(as_nobody(whole_connection, b), 0);
	assert_int_equal(ingest_bpf_vm_state_lookup(b, &vm42, &st), 0);
	assert_int_equal(st.received, 1);
}

static int load_fails_with_eperm(void *arg)
{
	struct ingest_bpf *b = NULL;

	return ingest_bpf_new(arg, &b) == -EPERM && !b && ingest_bpf_why()[0] ? 0 : 1;
}

static void forbidden_bpf_is_eperm_with_a_reason(void **state _unused_)
{
	struct ingest_bpf_settings s = settings();

	if (!can)
		skip();
	s.pin_dir = NULL;
	assert_int_equal(as_nobody(load_fails_with_eperm, &s), 0);
	s.maps_only = true;
	assert_int_equal(as_nobody(load_fails_with_eperm, &s), 0);
}

/* ---- pins --------------------------------------------------------------------------------------- */

static void stop_leaves_only_the_maps_that_survive_a_restart(void **state _unused_)
{
	struct ingest_bpf_settings s = settings();
	_cleanup_(ingest_bpf_freep)
	struct ingest_bpf *b = must_load(&s);
	struct stat st;
	size_t i;

	assert_int_equal(stat(pin_dir, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0700);
	for (i = 0; i < ARRAY_SIZE(fleeting); i++)
		assert_true(is_pinned(fleeting[i]));
	for (i = 0; i < ARRAY_SIZE(kept); i++)
		assert_true(is_pinned(kept[i]));
	b = ingest_bpf_free(b);
	for (i = 0; i < ARRAY_SIZE(fleeting); i++)
		assert_false(is_pinned(fleeting[i]));
	for (i = 0; i < ARRAY_SIZE(kept); i++)
		assert_true(is_pinned(kept[i]));
}

/* Writes an entry, restarts with s, says whether the entry is still there. */
static bool survives(const struct ingest_bpf_settings *s, void (*meanwhile)(void))
{
	struct ingest_bpf_settings first = settings();
	_cleanup_(ingest_bpf_freep)
	struct ingest_bpf *b = must_load(&first);
	struct vsr_vm_state v = { .received = 12345 }, found = {};
	int r;

	assert_int_equal(ingest_bpf_vm_state_update(b, &vm42, &v), 0);
	b = ingest_bpf_free(b);
	if (meanwhile)
		meanwhile();
	b = must_load(s);
	r = ingest_bpf_vm_state_lookup(b, &vm42, &found);
	assert_true(r == -ENOENT || found.received == 12345);
	return r == 0;
}

static void other_abi_version(void)
{
	struct vsr_abi_info info = { .version = VSR_ABI_VERSION + 1 };
	uint32_t zero = 0;
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/vsr_abi", pin_dir);
	fd = bpf_obj_get(path);
	assert_true(fd >= 0);
	assert_int_equal(bpf_map_update_elem(fd, &zero, &info, BPF_ANY), 0);
	close(fd);
}

static void no_abi_version(void)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/vsr_abi", pin_dir);
	assert_int_equal(unlink(path), 0);
}

static void maps_of_the_same_layout_are_re_used_others_are_replaced(void **state _unused_)
{
	struct ingest_bpf_settings same = settings(), larger = settings(), user = settings();

	larger.vms *= 2;
	user.maps_only = true;
	assert_true(survives(&same, NULL));
	assert_true(survives(&user, NULL));
	assert_false(survives(&larger, NULL));
	assert_false(survives(&same, other_abi_version));
	assert_false(survives(&same, no_abi_version));
	assert_true(survives(&same, NULL));
}

static void pins_of_a_killed_daemon_are_replaced(void **state _unused_)
{
	struct ingest_bpf_settings s = settings();
	_cleanup_(ingest_bpf_freep)
	struct ingest_bpf *killed = must_load(&s), *b = NULL;
	struct bpf_map_info info = {};
	uint32_t size = sizeof(info);
	char path[128];
	int fd;

	s.slots = 3;
	b = must_load(&s);
	snprintf(path, sizeof(path), "%s/vsr_conns", pin_dir);
	fd = bpf_obj_get(path);
	assert_true(fd >= 0);
	assert_int_equal(bpf_obj_get_info_by_fd(fd, &info, &size), 0);
	assert_int_equal(info.max_entries, 3);
	close(fd);
}

static void user_space_mode_has_only_the_maps_for_people(void **state _unused_)
{
	struct ingest_bpf_settings s = settings();
	_cleanup_(ingest_bpf_freep)
	struct ingest_bpf *b = NULL;
	struct vsr_vm_seen v = { .bytes = 99 }, found;
	struct vsr_stats st;
	size_t i;

	s.maps_only = true;
	b = must_load(&s);
	assert_true(ingest_bpf_maps_only(b));
	for (i = 0; i < ARRAY_SIZE(kept); i++)
		assert_true(is_pinned(kept[i]));
	assert_true(is_pinned("vsr_stats"));
	assert_false(is_pinned("vsr_socks"));
	assert_false(is_pinned("vsr_conns"));
	assert_int_equal(ingest_bpf_vm_seen_update(b, &vm42, &v), 0);
	assert_int_equal(ingest_bpf_vm_seen_lookup(b, &vm42, &found), 0);
	assert_int_equal(found.bytes, 99);
	assert_int_equal(ingest_bpf_stats(b, &st), 0);

	b = ingest_bpf_free(b);
	s.maps_only = false;
	b = must_load(&s);
	assert_int_equal(ingest_bpf_vm_seen_update(b, &vm42, &v), -EBUSY);
}

static void count_vm(const struct vsr_vm_id *id, const struct vsr_vm_seen *v, void *userdata)
{
	assert_int_equal(v->bytes, id->cid);
	(*(unsigned int *)userdata)++;
}

static void all_vms_are_listed(void **state _unused_)
{
	struct ingest_bpf_settings s = settings();
	_cleanup_(ingest_bpf_freep)
	struct ingest_bpf *b = NULL;
	unsigned int seen = 0;
	uint32_t cid;

	s.maps_only = true;
	s.pin_dir = NULL;
	s.vms = 4096; /* an LRU map evicts before it is quite full */
	b = must_load(&s);
	for (cid = 100; cid < 120; cid++) {
		struct vsr_vm_id id = { .cid = cid };
		struct vsr_vm_seen v = { .bytes = cid };

		assert_int_equal(ingest_bpf_vm_seen_update(b, &id, &v), 0);
	}
	assert_int_equal(ingest_bpf_vms_foreach(b, count_vm, &seen), 20);
	assert_int_equal(seen, 20);
}

static void place_without_bpf_file_system_is_named(void **state _unused_)
{
	struct ingest_bpf_settings s = settings();
	struct ingest_bpf *b = NULL;

	if (!can)
		skip();
	s.pin_dir = "/tmp/no-such-place/vsock_relay";
	assert_int_equal(ingest_bpf_new(&s, &b), -EOPNOTSUPP);
	s.pin_dir = "/tmp/vsock_relay";
	assert_int_equal(ingest_bpf_new(&s, &b), -EOPNOTSUPP);
	assert_non_null(strstr(ingest_bpf_why(), "BPF file system"));
	assert_null(b);
}

static void settings_out_of_range_are_refused(void **state _unused_)
{
	struct ingest_bpf_settings s = settings();
	struct ingest_bpf *b = NULL;

	s.slots = 0;
	assert_int_equal(ingest_bpf_new(&s, &b), -EINVAL);
	s = settings();
	s.vms = 0;
	assert_int_equal(ingest_bpf_new(&s, &b), -EINVAL);
	s = settings();
	s.blocks = 0;
	assert_int_equal(ingest_bpf_new(&s, &b), -EINVAL);
	s = settings();
	s.report_limit = 1ULL << 33;
	assert_int_equal(ingest_bpf_new(&s, &b), -EINVAL);
	assert_null(b);
	assert_null(ingest_bpf_free(NULL));
}

/* ---- frame -------------------------------------------------------------------------------------- */

static int make_place(void **state _unused_)
{
	struct ingest_bpf_settings s = settings();
	struct ingest_bpf *b = NULL;
	int r;

	if (!mkdtemp(bpffs))
		return -1;
	snprintf(pin_dir, sizeof(pin_dir), "%s/vsock_relay", bpffs);
	if (geteuid() != 0 || unshare(CLONE_NEWNS) < 0 ||
	    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("bpf", bpffs, "bpf", 0, NULL) < 0) {
		printf("# skipped: needs root and a BPF file system\n");
		return 0;
	}
	s.pin_dir = NULL;
	r = ingest_bpf_new(&s, &b);
	if (r == -EPERM || r == -EOPNOTSUPP)
		printf("# skipped: %s\n", ingest_bpf_why());
	else
		can = true;
	ingest_bpf_free(b);
	return 0;
}

static int remove_place(void **state _unused_)
{
	(void)umount2(bpffs, MNT_DETACH);
	(void)rmdir(bpffs);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(loaded_program_hashes_and_passes_a_raw_stream),
		cmocka_unit_test(loaded_program_reads_frames_and_wakes_the_daemon),
		cmocka_unit_test(loaded_program_charges_what_the_kernel_charges),
		cmocka_unit_test(socket_whose_peer_left_is_told_from_a_kernel_that_cannot),
		cmocka_unit_test(no_capability_is_needed_after_the_load),
		cmocka_unit_test(forbidden_bpf_is_eperm_with_a_reason),
		cmocka_unit_test(stop_leaves_only_the_maps_that_survive_a_restart),
		cmocka_unit_test(maps_of_the_same_layout_are_re_used_others_are_replaced),
		cmocka_unit_test(pins_of_a_killed_daemon_are_replaced),
		cmocka_unit_test(user_space_mode_has_only_the_maps_for_people),
		cmocka_unit_test(all_vms_are_listed),
		cmocka_unit_test(place_without_bpf_file_system_is_named),
		cmocka_unit_test(settings_out_of_range_are_refused),
	};

	return cmocka_run_group_tests(tests, make_place, remove_place);
}
