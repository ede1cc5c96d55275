// SPDX-License-Identifier: GPL-2.0-only
/*
 * The same guests, seen by the verdict and in user space (SPEC 5: the same decisions on the same
 * input). Each script of connections, contents, edits, splits, ACKs, evictions, packing and crashes runs twice
 * through the whole daemon from accept to upstream: once with every packet shown to the verdict
 * program, compiled natively (tests/kernel.h), once without. What was sent upstream, in which order
 * and as which generation, what was answered, and what was refused must be the same.
 *
 * DIFFERENTIAL_TEST_SEED repeats a run, DIFFERENTIAL_TEST_SCRIPTS makes it longer.
 */
#include "ingest_test.h"
#include "pack.h"

#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>

#define SEED   42 /* of ingest_world */
#define LIMIT  (16 * MIB)
#define SLOTS  50
#define VMS    8
#define EVENTS 64
#define BLOCKS 16384
#include "kernel.h"

#define SCRIPTS	   150
#define STEPS	   40
#define GUESTS	   3
#define CONNS	   3
#define REPORT_MAX 150000

/* ---- ingest_bpf.h, over the maps of kernel.h ----------------------------------------------------- */

static int events_fd;

const char *ingest_bpf_why(void)
{
	return "";
}

bool ingest_bpf_maps_only(const struct ingest_bpf *b _unused_)
{
	return false;
}

struct unseen *ingest_bpf_unseen(const struct ingest_bpf *b _unused_)
{
	return NULL;
}

int ingest_bpf_attach(struct ingest_bpf *b _unused_, int fd _unused_, uint64_t cookie,
		      const struct vsr_vm_id *vm, uint32_t slot)
{
	assert_int_equal(k.cookies[slot], 0);
	k.cookies[slot] = cookie;
	k.conns[slot] = (struct vsr_conn){ .vm = *vm, .slot = slot, .fold = SEED };
	return 0;
}

int ingest_bpf_read(struct ingest_bpf *b _unused_, uint64_t cookie, struct vsr_conn *ret)
{
	const struct vsr_conn *c = bpf_map_lookup_elem(&vsr_conns, &cookie);

	if (!c)
		return -ENOENT;
	*ret = *c;
	return 0;
}

int ingest_bpf_detach(struct ingest_bpf *b, int fd _unused_, uint64_t cookie, uint32_t slot,
		      struct vsr_conn *ret_conn)
{
	int r = ingest_bpf_read(b, cookie, ret_conn);

	k.cookies[slot] = 0;
	k.grants[slot] = (struct vsr_grant){ 0 };
	return r;
}

int ingest_bpf_buf(struct ingest_bpf *b _unused_, uint32_t slot, struct vsr_buf *ret)
{
	*ret = k.bufs[slot];
	return 0;
}

void ingest_bpf_grant_set(struct ingest_bpf *b _unused_, uint32_t slot, uint64_t reservation,
			  uint64_t buffered)
{
	k.grants[slot].reservation = reservation;
	k.grants[slot].buffered = buffered;
}

void ingest_bpf_grant_match(struct ingest_bpf *b _unused_, uint32_t slot, uint64_t first,
			    uint64_t bytes)
{
	k.grants[slot].extent = first;
	k.grants[slot].extent_bytes = bytes;
}

struct vsr_pool *ingest_bpf_pool(struct ingest_bpf *b _unused_)
{
	return &k.pool;
}

int ingest_bpf_events_fd(const struct ingest_bpf *b _unused_)
{
	return events_fd;
}

int ingest_bpf_events_consume(struct ingest_bpf *b _unused_, ingest_bpf_event_cb cb, void *userdata)
{
	unsigned int n = k.n_events, i;
	struct vsr_event events[EVENTS];
	eventfd_t value;

	(void)eventfd_read(events_fd, &value);
	memcpy(events, k.events, sizeof(events));
	k.n_events = 0;
	for (i = 0; i < n; i++)
		cb(&events[i], userdata);
	return (int)n;
}

int ingest_bpf_vm_state_update(struct ingest_bpf *b _unused_, const struct vsr_vm_id *id _unused_,
			       const struct vsr_vm_state *v _unused_)
{
	return 0;
}

int ingest_bpf_vm_seen_lookup(struct ingest_bpf *b _unused_, const struct vsr_vm_id *id _unused_,
			      struct vsr_vm_seen *ret _unused_)
{
	return -ENOENT;
}

int ingest_bpf_vm_seen_update(struct ingest_bpf *b _unused_, const struct vsr_vm_id *id _unused_,
			      const struct vsr_vm_seen *v _unused_)
{
	return 0;
}

/* The sockets are AF_UNIX, and have no credit. */
int setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
	return level == AF_VSOCK ? 0 : (int)syscall(SYS_setsockopt, fd, level, name, value, len);
}

/* ---- one run of a script -------------------------------------------------------------------------- */

static uint64_t rng;

static uint32_t rnd(uint32_t n)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return (uint32_t)(rng >> 11) % n;
}

struct guest_conn {
	int fd; /* -1: none */
	uint64_t cookie;
	uint32_t cid;
	bool framed;
	uint8_t *bytes;
	size_t n, at;
};

struct run {
	struct ingest_world w;
	bool bpf;
	struct guest_conn conns[CONNS];
	struct {
		uint8_t *bytes; /* the last report that it began to send, without a header */
		size_t n;
	} last[GUESTS];
	size_t logged; /* sends */
	char *log;
	size_t log_len;
	FILE *to;
};

/* All that is to be done now. */
static void settle(struct run *r)
{
	unsigned idle = 0;
	size_t before;

	while (idle < 3) {
		before = r->w.n_sends;
		idle = sd_event_run(r->w.event, 0) > 0 ? 0 : idle + 1;
		ingest_run(r->w.ingest, clock_usec());
		relay_run(r->w.relay, clock_usec());
		idle = r->w.n_sends != before ? 0 : idle;
	}
}

/* Of a content, packed or not. */
static unsigned long long hash_of(const struct buf *b)
{
	_cleanup_free_ uint8_t *p = malloc(buf_len(b));

	assert_non_null(p);
	assert_int_equal(reader_copy(b, p, buf_len(b)), 0);
	return XXH64(p, buf_len(b), 0);
}

/* New sends, with what identifies them. */
static void log_sends(struct run *r)
{
	for (; r->logged < r->w.n_sends; r->logged++) {
		const struct upstream_send *s = r->w.sends[r->logged];

		fprintf(r->to, "send %u gen %llu: %zu bytes %016llx\n", s->vm.cid,
			(unsigned long long)s->generation, buf_len(s->payload),
			hash_of(s->payload));
	}
}

static void conn_done(struct run *r, struct guest_conn *c)
{
	settle(r);
	if (c->framed)
		fprintf(r->to, "answer to %u: %d\n", c->cid, answer_of(c->fd));
	c->fd = safe_close(c->fd);
	free(c->bytes);
	c->bytes = NULL;
	settle(r);
	log_sends(r);
}

static void set_bytes(struct run *r, unsigned guest, uint8_t *bytes, size_t n)
{
	free(r->last[guest].bytes);
	r->last[guest].bytes = bytes;
	r->last[guest].n = n;
}

/* What the guest sends next: as before, changed in one byte, or something else. */
static void next_report(struct run *r, unsigned guest)
{
	static const size_t sizes[] = { 60, 4095, 4096, 4097, 8192, 65535, 65536, 65537, 131072 };
	uint32_t cid = 100 + guest, how = rnd(10);
	size_t size = rnd(2) ? sizes[rnd(ARRAY_SIZE(sizes))] : 60 + rnd(REPORT_MAX);
	uint8_t *p;
	size_t n;

	if (r->last[guest].bytes && how < 5)
		return;
	if (r->last[guest].bytes && how < 8) {
		n = r->last[guest].n;
		/* Within the filler; an edge of a block now and then. */
		size = rnd(2) ? 12 + rnd((uint32_t)(n - 12))
			      : MIN(n - 1, MAX((size_t)12, n / 4096 * 4096 - rnd(2)));
		r->last[guest].bytes[size] ^= (uint8_t)(1 + rnd(3));
		return;
	}
	n = make_report(cid, (char)('a' + rnd(3)), size, VSR_MODE_RAW, &p);
	set_bytes(r, guest, p, n);
}

/* A guest that gets a place at once: two connections of a VM are served. */
static unsigned some_guest(const struct run *r)
{
	for (;;) {
		unsigned guest = rnd(GUESTS), open = 0;

		for (size_t i = 0; i < CONNS; i++)
			open += r->conns[i].fd >= 0 && r->conns[i].cid == 100 + guest;
		if (open < ADMISSION_SERVED_PER_VM)
			return guest;
	}
}

static void begin(struct run *r, struct guest_conn *c)
{
	unsigned guest = some_guest(r);
	socklen_t len = sizeof(c->cookie);
	int fds[2], room = 64 * (int)MIB;

	next_report(r, guest);
	*c = (struct guest_conn){ .cid = 100 + guest, .framed = rnd(2) };
	c->n = r->last[guest].n + (c->framed ? VSR_HEADER_SIZE : 0);
	c->bytes = malloc(c->n);
	assert_non_null(c->bytes);
	if (c->framed) {
		struct vsr_header h = {
			.mode = VSR_MODE_VSR1,
			.length = (uint32_t)r->last[guest].n,
			.xxh64 = XXH64(r->last[guest].bytes, r->last[guest].n, 0) ^ !rnd(20),
		};

		vsr_header_write(c->bytes, &h);
	}
	memcpy(c->bytes + c->n - r->last[guest].n, r->last[guest].bytes, r->last[guest].n);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
	assert_int_equal(getsockopt(fds[1], SOL_SOCKET, SO_COOKIE, &c->cookie, &len), 0);
	/* What the verdict passes is queued without a limit. */
	if (setsockopt(fds[0], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room)) < 0)
		skip(); /* needs CAP_NET_ADMIN */
	c->fd = fds[0];
	ingest_accepted(r->w.ingest, fds[1], true, (struct vsr_vm_id){ .cid = c->cid }, 1);
	settle(r);
}

/* One packet: the verdict sees it, and what it passes is queued. */
static void send_packet(struct run *r, struct guest_conn *c, size_t n)
{
	struct charge cost = { .truesize = (unsigned)n + 576 };
	bool pass = !r->bpf || packet_on(c->cookie, c->bytes + c->at, (uint32_t)n, cost) == SK_PASS;

	/* The relay may have closed it. */
	if (pass && send(c->fd, c->bytes + c->at, n, MSG_NOSIGNAL) < 0)
		assert_int_not_equal(errno, EAGAIN);
	if (r->bpf && k.n_events > 0)
		assert_int_equal(eventfd_write(events_fd, 1), 0);
	c->at += n;
}

static void send_some(struct run *r, struct guest_conn *c, size_t n)
{
	static const size_t most[] = { 1000, 4096, 20000, 65536 };
	size_t up_to = most[rnd(ARRAY_SIZE(most))], end = MIN(c->n, c->at + n);

	/* The relay comes in between now and then. */
	while (c->at < end) {
		send_packet(r, c, MIN(end - c->at, 1 + rnd((uint32_t)up_to)));
		if (rnd(32) == 0)
			settle(r);
	}
	settle(r);
}

/* The cache packs what it has: from now on it is compared by digests in user space too. */
static void pack(struct run *r)
{
	usleep(2); /* longer than r->w.pack */
	while (relay_pack(r->w.relay, clock_usec()))
		;
}

static void step(struct run *r)
{
	struct guest_conn *c = &r->conns[rnd(CONNS)];
	uint32_t what = rnd(12);

	if (rnd(4) == 0)
		pack(r);
	if (what == 0 && r->w.n_sends > 0) {
		log_sends(r);
		r->logged--;
		ingest_world_finish(&r->w, rnd(4) ? SEND_ACKED : SEND_FAILED);
		settle(r);
	} else if (c->fd < 0) {
		begin(r, c);
	} else if (what < 4) {
		send_some(r, c, 1 + rnd(REPORT_MAX / 3));
	} else if (what == 4) {
		/* It crashes where it is, often in its header: raw, what came is a report, valid or
		 * not. */
		if (c->at == 0 && rnd(2)) {
			send_packet(r, c, 1 + rnd((uint32_t)MIN(c->n, (size_t)VSR_HEADER_SIZE)));
			settle(r);
		}
		fprintf(r->to, "%u crashes at %zu\n", c->cid, c->at);
		c->framed = false;
		conn_done(r, c);
	} else {
		send_some(r, c, c->n);
		if (!c->framed)
			assert_int_equal(shutdown(c->fd, SHUT_WR), 0);
		conn_done(r, c);
	}
	log_sends(r);
}

static void log_metrics(struct run *r)
{
	fprintf(r->to,
		"valid %.0f, duplicates %.0f, suppressed %.0f, acked %.0f, superseded %.0f, "
		"slots %.0f, accepted bytes %.0f\n",
		metric_get(METRIC_VALID, 0),
		metric_get(METRIC_DUPLICATES, METRIC_KERNEL) +
			metric_get(METRIC_DUPLICATES, METRIC_DAEMON),
		metric_get(METRIC_SUPPRESSED, 0),
		metric_get(METRIC_CONTENTS_ENDED, METRIC_ENDED_ACKED),
		metric_get(METRIC_CONTENTS_ENDED, METRIC_ENDED_SUPERSEDED),
		metric_get(METRIC_CONTENTS_ENDED, METRIC_ENDED_SLOTS),
		metric_get(METRIC_BYTES, METRIC_BYTES_ACCEPTED));
	for (enum reason reason = 0; reason < REASON_MAX; reason++)
		if (refused(reason))
			fprintf(r->to, "refused %s: %u\n", reason_name(reason), refused(reason));
}

static double known_kernel, known_user, known_packed;

/* Runs the script and returns what came of it. */
static char *run_script(uint64_t seed, bool bpf)
{
	struct run r = { .bpf = bpf };

	rng = seed * 0x9E3779B97F4A7C15ULL | 1;
	kernel_reset();
	r.to = open_memstream(&r.log, &r.log_len);
	assert_non_null(r.to);
	ingest_world_defaults(&r.w);
	r.w.hold = true;
	r.w.slots = rnd(2) ? 2 : 100;
	r.w.suppress = rnd(2);
	r.w.keep = rnd(3) ? USEC_PER_HOUR : 0;
	r.w.pack = rnd(2);
	if (bpf) {
		r.w.bpf = (struct ingest_bpf *)&k;
		r.w.blocks = k.blocks;
		r.w.n_blocks = rnd(8) ? BLOCKS : 20;
		k.pool.limit = 64 * MIB;
	} else {
		r.w.n_blocks = rnd(8) ? BLOCKS : 20;
	}
	ingest_world_open(&r.w);
	for (size_t i = 0; i < CONNS; i++)
		r.conns[i].fd = -1;
	for (unsigned i = 0; i < STEPS && r.w.n_sends < 50; i++)
		step(&r);
	for (size_t i = 0; i < CONNS; i++)
		if (r.conns[i].fd >= 0) {
			r.conns[i].framed = false;
			conn_done(&r, &r.conns[i]);
		}
	log_metrics(&r);
	if (bpf) {
		known_kernel += metric_get(METRIC_BYTES_KNOWN, METRIC_KERNEL);
		assert_int_equal(k.stats.no_slot, 0);
	} else {
		known_user += metric_get(METRIC_BYTES_KNOWN, METRIC_DAEMON);
		if (r.w.pack > 0)
			known_packed += metric_get(METRIC_BYTES_KNOWN, METRIC_DAEMON);
	}
	ingest_world_close(&r.w);
	assert_int_equal(k.pool.drawn, 0);
	for (unsigned i = 0; i < GUESTS; i++)
		free(r.last[i].bytes);
	fclose(r.to);
	return r.log;
}

static void scripts_end_the_same_in_the_kernel_and_in_user_space(void **state _unused_)
{
	const char *given = getenv("DIFFERENTIAL_TEST_SEED");
	const char *more = getenv("DIFFERENTIAL_TEST_SCRIPTS");
	uint64_t first = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
	unsigned scripts = more ? (unsigned)strtoul(more, NULL, 0) : given ? 1 : SCRIPTS;

	print_message("# DIFFERENTIAL_TEST_SEED=%llu and the %u after it\n",
		      (unsigned long long)first, scripts - 1);
	events_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	assert_true(events_fd >= 0);
	for (uint64_t seed = first; seed < first + scripts; seed++) {
		_cleanup_free_ char *kernel = run_script(seed, true),
				    *user = run_script(seed, false);

		if (strcmp(kernel, user) != 0)
			fail_msg("DIFFERENTIAL_TEST_SEED=%llu\nwith BPF:\n%s\nwithout:\n%s",
				 (unsigned long long)seed, kernel, user);
	}
	print_message(
		"# known: %.0f bytes with BPF, %.0f without, %.0f where contents were packed\n",
		known_kernel, known_user, known_packed);
	assert_true(known_kernel > 0 && known_user > 0 && (scripts < 10 || known_packed > 0));
	close(events_fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(scripts_end_the_same_in_the_kernel_and_in_user_space),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
