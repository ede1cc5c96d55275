/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the number of VMs does to the core: CPU time per report of looking up, taking into custody,
 * sending and ACKing, retrying and sweeping, and the memory of a VM, for 100 to 10000 of them. No
 * sockets, no disk: an upstream that ACKs. VMs take turns, so that each finds the CPU's caches full
 * of others. Prints JSON.
 *
 * cpu_ns: per report, in a tight loop, of "delivered": looked up, taken into custody, sent, ACKed,
 * kept, all VMs with one of two buffers; "repeated": offered again; "retried"; "swept": expired. There
 * 100 VMs lie in the nearest cache, and what grows is how many of the processor's caches miss.
 * "per_report": delivered and swept once, with a buffer of its own (2000 bytes), as every report of the
 * daemon has. "bookkeeping": offered, delivered and swept once, without a buffer, each with nothing in the
 * processor's caches: so it is on a node, where VMs run between two reports.
 *
 * longest_pack_slice_us: CPU time of the longest turn of the event loop that packs what stays.
 *
 * With --check it prints TAP instead: whether bookkeeping costs 10000 VMs as much as 100, how much memory
 * an idle one takes, and how long a slice is.
 */
#include <malloc.h>
#include <time.h>

#include "../synthetic.h"
#include "relay.h"

#define MAX_VMS 10000
#define REPORTS 20000 /* a measurement */
#define COLD	100   /* one in emptied caches */
#define OTHER	(48 * MIB)
#define STRIDE	7919 /* prime: the next VM is not the next in memory */
#define REPEATS 5
#define LENGTH	2000

static const uint32_t counts[] = { 100, 1000, MAX_VMS };

/* ---- an upstream that ACKs when it is told ------------------------------------------------------- */

static struct upstream_send *sends[RELAY_IN_FLIGHT_MAX];
static size_t n_sends;

static int take(struct upstream *u _unused_, struct upstream_send *s)
{
	sends[n_sends++] = s;
	return 0;
}

static const struct upstream_ops ops = { .name = "bench", .send = take };

static void finish(enum send_result result, uint64_t now)
{
	while (n_sends > 0) {
		struct upstream_send *s = sends[--n_sends];

		s->done(s, result, now);
	}
}

/* ---- the world ----------------------------------------------------------------------------------- */

struct world {
	struct upstream up;
	struct vm_table *vms;
	struct match_table *matches;
	struct relay *relay;
	uint64_t now;
	uint32_t n;
	struct buf *shared[2];
};

static _noreturn_ void die(const char *what)
{
	fprintf(stderr, "scale: %s\n", what);
	exit(1);
}

static double half(void *userdata _unused_)
{
	return 0.5;
}

static struct buf *content(uint8_t byte)
{
	struct buf *b;

	if (buf_new(LENGTH, &b) < 0)
		die("no memory");
	memset(buf_tail(b), byte, LENGTH);
	buf_advance(b, LENGTH);
	buf_seal(b);
	return b;
}

static void world_open(struct world *w, uint32_t n)
{
	struct relay_settings s = {
		.suppress_unchanged = true,
		.refresh_interval = 24 * USEC_PER_HOUR,
		.stale_ack = 4 * USEC_PER_HOUR,
		.custody_max_age = 24 * USEC_PER_HOUR,
		.cache = { .slots = MAX_VMS,
			   .bytes = 512 * MIB,
			   .ttl = 4 * USEC_PER_HOUR,
			   .pack = 5 * USEC_PER_SEC,
			   .keep = VM_IDLE_USEC },
		.retry = tracker_defaults,
	};

	*w = (struct world){ .up = { .ops = &ops, .ready = true }, .n = n };
	w->now = 1000 * USEC_PER_HOUR;
	if (vm_table_new(VM_TABLE_MAX, (struct bucket_rate){ 0 }, (struct bucket_rate){ 0 },
			 &w->vms) < 0 ||
	    match_table_new(NULL, 0, &w->matches) < 0 ||
	    relay_new(&s, w->vms, &w->up, half, NULL, &w->relay) < 0)
		die("no memory");
	relay_set_matches(w->relay, w->matches);
	for (uint8_t i = 0; i < 2; i++)
		w->shared[i] = content(i);
}

static void world_close(struct world *w)
{
	relay_free(w->relay);
	finish(SEND_ACKED, w->now);
	match_table_free(w->matches);
	vm_table_free(w->vms);
	for (int i = 0; i < 2; i++)
		buf_unref(w->shared[i]);
}

static struct vm *vm_of(struct world *w, uint32_t i)
{
	struct vm *vm;

	if (vm_table_obtain(w->vms, (struct vsr_vm_id){ .cid = 3 + i }, w->now, &vm) < 0)
		die("no VM record");
	return vm;
}

/* A changed report of VM i; round makes it differ from the VM's last one. */
static void report(struct world *w, uint32_t i, uint32_t round, struct buf *b)
{
	struct relay_report r = {
		.vm = vm_of(w, i),
		.content = b,
		.digest = round,
		.xxh64 = round,
		.framed = true,
		.vm_id = "vm",
		.vm_id_len = 2,
	};
	enum relay_verdict verdict;

	if (relay_submit(w->relay, &r, w->now, &verdict) < 0 || verdict != RELAY_ACCEPTED)
		die("a report was not accepted");
}

/* ---- figures ------------------------------------------------------------------------------------- */

static double cpu_nsec(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

enum figure { DELIVERED, REPEATED, RETRIED, SWEPT, PER_REPORT, BOOKKEEPING, FIGURES };
static const char *const names[FIGURES] = { "delivered", "repeated",   "retried",
					    "swept",	 "per_report", "bookkeeping" };

/* New content: custody, send, ACK, kept. */
static double deliver(struct world *w, uint32_t *round, bool own)
{
	double start = cpu_nsec();

	for (uint32_t k = 0; k < REPORTS; k++) {
		uint32_t i = k % w->n;
		struct buf *b;

		if (i == 0)
			++*round;
		b = own ? content((uint8_t)*round) : w->shared[*round % 2];
		report(w, i, *round, b);
		relay_run(w->relay, w->now);
		finish(SEND_ACKED, w->now);
		if (own)
			buf_unref(b);
		w->now += USEC_PER_MSEC;
	}
	return (cpu_nsec() - start) / REPORTS;
}

/* The same content, offered: a look-up. */
static double repeat(struct world *w, uint32_t round)
{
	double start = cpu_nsec();

	for (uint32_t k = 0; k < REPORTS; k++) {
		if (relay_offer(w->relay, vm_of(w, k % w->n), LENGTH, round, w->now) !=
		    RELAY_SUPPRESSED)
			die("a repeat was not recognised");
		relay_run(w->relay, w->now);
		w->now += USEC_PER_MSEC;
	}
	return (cpu_nsec() - start) / REPORTS;
}

/* All VMs have content in custody, and no send succeeds: what a retry costs. */
static double retry(struct world *w, uint32_t *round)
{
	/* Few enough not to expire. */
	double start, sent = 0, wanted = MIN(20 * w->n, REPORTS / 4U);

	++*round;
	for (uint32_t i = 0; i < w->n; i++) {
		report(w, i, *round, w->shared[*round % 2]);
		relay_run(w->relay, w->now);
		finish(SEND_FAILED, w->now);
		w->now += 10 * USEC_PER_MSEC;
	}
	start = cpu_nsec();
	while (sent < wanted) {
		w->now = MAX(w->now, relay_next_event(w->relay));
		relay_run(w->relay, w->now);
		sent += (double)n_sends;
		finish(SEND_FAILED, w->now);
	}
	return (cpu_nsec() - start) / sent;
}

/* They expire: what a sweep costs for each, the end of custody included. */
static double sweep(struct world *w)
{
	struct relay_figures f;
	double start, turns = 0;
	size_t before;

	relay_figures(w->relay, w->now, &f);
	before = f.cache.slots_used;
	w->now += 5 * USEC_PER_HOUR;
	w->up.ready = false;
	start = cpu_nsec();
	do {
		w->now += 1;
		relay_run(w->relay, w->now);
		relay_figures(w->relay, w->now, &f);
		turns++;
	} while (f.cache.slots_used > 0);
	w->up.ready = true;
	if (turns > (double)before / 16 + 2)
		die("a sweep never ends");
	return (cpu_nsec() - start) / (double)before;
}

/* ---- packing ------------------------------------------------------------------------------------- */

#define PACKED 50 /* contents, of which every tenth is of the largest size and cannot be packed */

static struct buf *large_content(uint32_t i)
{
	_cleanup_wire_ struct wire w = { 0 };
	size_t n = 16 * MIB;
	uint64_t x = i + 1;
	struct buf *b;

	if (i % 10 != 9) {
		synthetic_report(&w, "1000", 1100, 49);
		n = w.len;
	}
	if (buf_new(n, &b) < 0)
		die("no memory");
	if (w.len > 0)
		memcpy(buf_tail(b), w.data, n);
	for (size_t at = w.len; at < n; at++) {
		x = x * 6364136223846793005ULL + 1;
		buf_tail(b)[at] = (uint8_t)(x >> 56);
	}
	buf_advance(b, n);
	buf_seal(b);
	return b;
}

/* The most CPU time, in usec, that one turn of the event loop takes for packing what stays: this long
 * a report may wait for it. Of several passes the least: a first touch of new memory, or whoever else
 * has the processor's caches, is no property of the slice. */
static double longest_slice(size_t *ret_slices)
{
	double least = 1e18;

	for (int pass = 0; pass < 3; pass++) {
		double longest = 0;
		struct world w;
		bool more = true;

		world_open(&w, PACKED);
		for (uint32_t i = 0; i < PACKED; i++) {
			struct buf *b = large_content(i);

			report(&w, i, 1, b);
			buf_unref(b);
			relay_run(w.relay, w.now);
			finish(SEND_FAILED, w.now);
		}
		w.now += USEC_PER_HOUR;
		for (*ret_slices = 0; more; ++*ret_slices) {
			double start = cpu_nsec();

			more = relay_pack(w.relay, w.now);
			longest = MAX(longest, cpu_nsec() - start);
		}
		world_close(&w);
		least = MIN(least, longest / 1e3);
	}
	if (*ret_slices < PACKED)
		die("nothing was packed");
	return least;
}

/* ---- in caches that are full of other things ----------------------------------------------------- */

/* A node's processors run its VMs in between: of the relay's memory nothing is left in their caches, nor
 * in those of translated addresses. */
static void empty_caches(void)
{
	static uint8_t *other;

	if (!other)
		other = calloc(1, OTHER);
	if (!other)
		die("no memory");
	for (size_t i = 0; i < OTHER; i += 64)
		((volatile uint8_t *)other)[i]++;
}

static double wall_nsec(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
	const double *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

/* The median is blind to whoever else gets the processor in between. */
static double median(double *values, size_t n)
{
	qsort(values, n, sizeof(*values), by_value);
	return values[n / 2];
}

/* A report of 2000 bytes as an agent offers it: the offer, custody, the send and its ACK. */
static double deliver_cold(struct world *w, uint32_t *round)
{
	static double taken[COLD];

	for (uint32_t k = 0; k < COLD; k++) {
		uint32_t i = k * STRIDE % w->n;
		double start;

		++*round;
		empty_caches();
		start = wall_nsec();
		if (relay_offer(w->relay, vm_of(w, i), LENGTH, *round, w->now) != RELAY_NEW)
			die("an offer was not taken");
		report(w, i, *round, w->shared[*round % 2]);
		relay_run(w->relay, w->now);
		finish(SEND_ACKED, w->now);
		taken[k] = wall_nsec() - start;
		w->now += USEC_PER_MSEC;
	}
	return median(taken, COLD);
}

/* All of them expire; what that costs for each. */
static double sweep_cold(struct world *w)
{
	static double taken[MAX_VMS];
	struct relay_figures f;
	size_t n = 0;

	w->now += 5 * USEC_PER_HOUR;
	w->up.ready = false;
	for (;;) {
		size_t before;
		double start;

		relay_figures(w->relay, w->now, &f);
		before = f.cache.slots_used;
		if (before == 0 || n == COLD)
			break;
		empty_caches();
		w->now++;
		start = wall_nsec();
		relay_run(w->relay, w->now);
		taken[n] = wall_nsec() - start;
		relay_figures(w->relay, w->now, &f);
		if (f.cache.slots_used < before)
			taken[n++] /= (double)(before - f.cache.slots_used);
	}
	w->up.ready = true;
	return median(taken, n);
}

/* All have content in custody that cannot be sent. */
static void hold(struct world *w, uint32_t *round)
{
	++*round;
	for (uint32_t i = 0; i < w->n; i++) {
		report(w, i, *round, w->shared[*round % 2]);
		relay_run(w->relay, w->now);
		finish(SEND_FAILED, w->now);
	}
}

static double bookkeeping(uint32_t n)
{
	uint32_t round = 0;
	struct world w;
	double ns;

	world_open(&w, n);
	deliver(&w, &round, false);
	ns = deliver_cold(&w, &round);
	hold(&w, &round);
	ns += sweep_cold(&w);
	world_close(&w);
	return ns;
}

static void measure(uint32_t n, bool cold, double figures[FIGURES])
{
	uint32_t round = 0;
	struct world w;
	double own, swept;

	world_open(&w, n);
	deliver(&w, &round, false); /* warm */
	figures[DELIVERED] = MIN(figures[DELIVERED], deliver(&w, &round, false));
	own = deliver(&w, &round, true);
	figures[REPEATED] = MIN(figures[REPEATED], repeat(&w, round));
	figures[RETRIED] = MIN(figures[RETRIED], retry(&w, &round));
	swept = sweep(&w);
	figures[SWEPT] = MIN(figures[SWEPT], swept);
	figures[PER_REPORT] = MIN(figures[PER_REPORT], own + swept);
	world_close(&w);
	if (cold)
		figures[BOOKKEEPING] = MIN(figures[BOOKKEEPING], bookkeeping(n));
}

static size_t allocated(void)
{
	struct mallinfo2 m = mallinfo2();

	return m.uordblks + m.hblkhd;
}

/* Bytes that a VM costs which is idle: its record and its share of the maps; with its last report
 * kept, also the cache's entry and what belongs to the content, but for the pages of the report. */
static double idle_vm_bytes(uint32_t n, bool kept)
{
	size_t before = allocated(), after;
	uint32_t round = 0;
	struct world w;

	world_open(&w, n);
	for (uint32_t i = 0; i < n; i++) {
		struct buf *b = content(1);

		report(&w, i, ++round, b);
		buf_unref(b);
		relay_run(w.relay, w.now);
		finish(SEND_ACKED, w.now);
		if (!kept)
			relay_drop(w.relay, vm_of(&w, i), false, w.now);
	}
	after = allocated();
	world_close(&w);
	return (double)(after - before) / n;
}

/* What belongs to a content and not to the VM: its buffer's name and what matches it. */
static double content_bytes(uint32_t n)
{
	static struct match *matches[MAX_VMS];
	struct match_table *t = NULL;
	size_t before, after;

	if (match_table_new(NULL, 0, &t) < 0)
		die("no memory");
	before = allocated();
	for (uint32_t i = 0; i < n; i++) {
		struct buf *b = content(1);

		matches[i] = match_new(t, b, 1, NULL);
		buf_unref(b);
	}
	after = allocated();
	for (uint32_t i = 0; i < n; i++)
		match_uncache(matches[i]);
	match_table_free(t);
	return (double)(after - before) / n;
}

#define IDLE_VM_MAX 512	 /* bytes, beside its content */
#define RATIO_MAX   1.5	 /* of 10000 VMs to 100 */
#define SLICE_MAX   5000 /* usec that a report may wait for packing */

static int check(void)
{
	double idle = idle_vm_bytes(MAX_VMS, true) - content_bytes(MAX_VMS);
	double few = 1e18, many = 1e18;
	bool small = idle < IDLE_VM_MAX, same, quick;
	size_t slices;
	double slice = longest_slice(&slices);

	for (int i = 0; i < REPEATS; i++) {
		few = MIN(few, bookkeeping(counts[0]));
		many = MIN(many, bookkeeping(MAX_VMS));
	}
	same = many <= RATIO_MAX * few;
	quick = slice <= SLICE_MAX;
	printf("1..3\n%sok 1 - an idle VM takes %.0f bytes besides its content, below %d\n",
	       small ? "" : "not ", idle, IDLE_VM_MAX);
	printf("%sok 2 - the bookkeeping of a report takes %.0f ns with %u VMs, %.0f with %u: %.2f "
	       "times, at most %.1f\n",
	       same ? "" : "not ", many, MAX_VMS, few, counts[0], many / few, RATIO_MAX);
	printf("%sok 3 - the longest of %zu slices of packing takes %.0f us of CPU time, at most %d\n",
	       quick ? "" : "not ", slices, slice, SLICE_MAX);
	return !small || !same || !quick;
}

static void print_memory(void)
{
	double record = idle_vm_bytes(MAX_VMS, false), kept = idle_vm_bytes(MAX_VMS, true);
	double of_content = content_bytes(MAX_VMS);

	printf("{\"idle_vm_bytes\": {\"record\": %.0f, \"with_entry\": %.0f, "
	       "\"besides_of_content\": %.0f}, ",
	       record, kept - of_content, of_content);
}

int main(int argc, char **argv)
{
	double figures[ARRAY_SIZE(counts)][FIGURES];
	size_t slices;

	if (argc > 1 && streq(argv[1], "--check"))
		return check();
	print_memory();
	for (size_t c = 0; c < ARRAY_SIZE(counts); c++)
		for (size_t f = 0; f < FIGURES; f++)
			figures[c][f] = 1e18;
	/* The least of several, in turns: others use this machine too. */
	for (int r = 0; r < REPEATS; r++)
		for (size_t c = 0; c < ARRAY_SIZE(counts); c++)
			measure(counts[c], r < 2, figures[c]);
	printf("\"cpu_ns\": {");
	for (size_t f = 0; f < FIGURES; f++) {
		printf("%s\"%s\": {", f ? ", " : "", names[f]);
		for (size_t c = 0; c < ARRAY_SIZE(counts); c++)
			printf("\"%u\": %.0f, ", counts[c], figures[c][f]);
		printf("\"ratio\": %.2f}", figures[ARRAY_SIZE(counts) - 1][f] / figures[0][f]);
	}
	printf("}, \"longest_pack_slice_us\": %.0f}\n", longest_slice(&slices));
	return 0;
}
