/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the number of VMs does to the core: time per report of looking up, taking into custody, sending
 * and ACKing, and sweeping, and the memory of a VM, for 100 to 10000 of them. No disk: an upstream that
 * takes all and ACKs. Prints JSON.
 *
 * per_report_ns: each step as a report meets it, with what comes between two steps of the daemon:
 *
 *   idle_node      somebody else used the processor's caches. So it is on a node: 10000 VMs that report
 *                  every 4 h are a report every 1.4 s (100 VMs: every 2.4 min), and in between VMs run.
 *   back_to_back   nothing but other small reports: 20 KB come over a socket, are read into a buffer of
 *                  their own, hashed and validated, as fast as they can. Then the 100 KB of bookkeeping
 *                  that 100 VMs have stay in the processor's second cache, those of 10000 VMs (10 MB) in
 *                  none that is fast: this ratio is the memory's more than ours.
 *
 * All VMs have 20 KB in custody, sent and not ACKed. A report replaces that: "lookup": its VM's record,
 * its offer; "insert": it is taken into custody; "tracker": it is sent, and an ACK for the one before
 * comes over the other call; "sweep": what expires, a VM's share. Medians of several runs in turns, less
 * what reading the clock takes. What the system takes to give payloads' memory back is not in it.
 *
 * tight_loop_ns, the least of several: "delivered": looked up, taken into custody, sent, ACKed, kept, all
 * VMs with one of two buffers; "repeated": offered again; "retried"; "swept": expired. There 100 VMs lie
 * in the nearest cache, and what grows is how many of the processor's caches miss.
 *
 * longest_pack_slice_us: CPU time of the longest turn of the event loop that packs what stays.
 *
 * With --check it prints TAP instead: whether on an idle node each step and all of them cost 10000 VMs as
 * much as 100 (the least of up to three measurements), how much memory an idle VM takes, and how long a
 * slice is.
 */
#include <malloc.h>
#include <sys/socket.h>
#include <time.h>

#include "../synthetic.h"
#include "digest.h"
#include "relay.h"
#include "report.h"

#define MAX_VMS 10000
#define REPORTS 20000 /* a measurement */
#define OTHER	(48 * MIB)
#define STRIDE	7919 /* prime: the next VM is not the next in memory */
#define REPEATS 5
#define LENGTH	2000

#define SMALL_PACKAGES	   22
#define SMALL_REPOSITORIES 12
#define MET		   1000 /* reports, of which each step is timed */
#define MET_COLD	   50	/* the same in emptied caches */

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

static void world_open_with(struct world *w, uint32_t n, int64_t retry_base)
{
	struct relay_settings s = {
		.suppress_unchanged = true,
		.refresh_interval = 24 * USEC_PER_HOUR,
		.stale_ack = 4 * USEC_PER_HOUR,
		.custody_max_age = 24 * USEC_PER_HOUR,
		.cache = { .slots = MAX_VMS,
			   .bytes = 1024 * MIB,
			   .ttl = 4 * USEC_PER_HOUR,
			   .pack = 5 * USEC_PER_SEC,
			   .keep = VM_IDLE_USEC },
		.retry = tracker_defaults,
	};

	s.retry.base = retry_base;
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

static void world_open(struct world *w, uint32_t n)
{
	world_open_with(w, n, tracker_defaults.base);
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

enum figure { DELIVERED, REPEATED, RETRIED, SWEPT, FIGURES };
static const char *const names[FIGURES] = { "delivered", "repeated", "retried", "swept" };

/* New content: custody, send, ACK, kept. */
static double deliver(struct world *w, uint32_t *round)
{
	double start = cpu_nsec();

	for (uint32_t k = 0; k < REPORTS; k++) {
		uint32_t i = k % w->n;

		if (i == 0)
			++*round;
		report(w, i, *round, w->shared[*round % 2]);
		relay_run(w->relay, w->now);
		finish(SEND_ACKED, w->now);
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

/* ---- as a report meets them ---------------------------------------------------------------------- */

enum step { LOOKUP, INSERT, TRACKER, SWEEP, TOTAL, STEPS };
static const char *const step_names[STEPS] = { "lookup", "insert", "tracker", "sweep", "total" };

/* A small report as the daemon gets it: over a socket of its own, read into a buffer of its own, hashed
 * and validated. */
static struct buf *receive_a_report(void)
{
	static struct wire w;
	struct buf *b;
	int fd[2];
	ssize_t n;

	if (w.len == 0)
		synthetic_report(&w, "1000", SMALL_PACKAGES, SMALL_REPOSITORIES);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd) < 0 ||
	    send(fd[0], w.data, w.len, 0) != (ssize_t)w.len || shutdown(fd[0], SHUT_WR) < 0 ||
	    buf_new(16 * MIB, &b) < 0)
		die("a report cannot be sent");
	while ((n = recv(fd[1], buf_tail(b), buf_room(b), 0)) > 0)
		buf_advance(b, (size_t)n);
	close(fd[0]);
	close(fd[1]);
	buf_seal(b);
	if (digest_bytes(1, buf_data(b), buf_len(b)) == 0 ||
	    report_validate(buf_data(b), buf_len(b), 1000, NULL, NULL) < 0)
		die("a report is not valid");
	return b;
}

/* What comes between two steps. */
static void pause_for(bool cold)
{
	if (cold)
		empty_caches();
	else
		buf_unref(receive_a_report());
}

/* What reading the clock twice takes then. */
static double clock_cost(bool cold)
{
	static double taken[MET_COLD];

	for (size_t i = 0; i < MET_COLD; i++) {
		double start;

		pause_for(cold);
		start = wall_nsec();
		taken[i] = wall_nsec() - start;
	}
	return median(taken, MET_COLD);
}

static void ack(struct world *w, uint32_t i)
{
	char resource[32];
	struct upstream_ack a = { .resource = resource };

	a.resource_len = (size_t)snprintf(resource, sizeof(resource), "vm:%u", 3 + i);
	w->up.on_ack(&a, w->up.userdata, w->now);
}

static void send_all(struct world *w)
{
	relay_run(w->relay, w->now);
	finish(SEND_DELIVERED, w->now);
}

/* All have content in custody that was sent and is not ACKed. */
static void hold(struct world *w, uint32_t *round)
{
	++*round;
	for (uint32_t i = 0; i < w->n; i++) {
		struct buf *b = receive_a_report();

		report(w, i, *round, b);
		buf_unref(b);
		send_all(w);
	}
}

/* The steps of one VM's report, which replaces what it has in custody. */
static void time_report(struct world *w, uint32_t i, uint32_t round, bool cold, double taken[SWEEP])
{
	_cleanup_(buf_unrefp)
	struct buf *b = receive_a_report(), *old = NULL;
	double start;

	pause_for(cold);
	start = wall_nsec();
	if (relay_offer(w->relay, vm_of(w, i), LENGTH, round, w->now) != RELAY_NEW)
		die("an offer was not taken");
	taken[LOOKUP] = wall_nsec() - start;

	old = buf_ref(cache_peek(relay_cache(w->relay), vm_of(w, i)->node.id)->content);
	pause_for(cold);
	start = wall_nsec();
	report(w, i, round, b);
	taken[INSERT] = wall_nsec() - start;

	pause_for(cold);
	start = wall_nsec();
	send_all(w);
	taken[TRACKER] = wall_nsec() - start;
	pause_for(cold);
	start = wall_nsec();
	ack(w, i);
	taken[TRACKER] += wall_nsec() - start;
}

static void time_reports(struct world *w, uint32_t *round, bool cold, double steps[STEPS])
{
	static double taken[SWEEP][MET];
	uint32_t n = cold ? MET_COLD : MET;

	for (uint32_t k = 0; k < n; k++) {
		double one[SWEEP];

		++*round;
		time_report(w, *round * STRIDE % w->n, *round, cold, one);
		for (enum step s = 0; s < SWEEP; s++)
			taken[s][k] = one[s];
		w->now += USEC_PER_MSEC;
	}
	for (enum step s = 0; s < SWEEP; s++)
		steps[s] = median(taken[s], n);
}

/* References to all contents of the cache, or an end of them. */
static void keep_contents(struct world *w, bool keep)
{
	static struct buf *contents[MAX_VMS];
	static size_t n;
	const struct cache_entry *e = NULL;

	while (keep && (e = cache_next(relay_cache(w->relay), e)))
		contents[n++] = buf_ref(e->content);
	while (!keep && n > 0)
		buf_unref(contents[--n]);
}

/* All expire, some in each turn of the loop: a VM's share. */
static double time_sweep(struct world *w, uint32_t *round, bool cold)
{
	static double taken[MAX_VMS];
	struct relay_figures f;
	size_t n = 0;

	for (uint32_t done = 0; done < MIN(10 * w->n, (uint32_t)MAX_VMS); done += w->n) {
		/* That sends are forgotten is no part of it. */
		w->now += TRACKER_REMEMBER;
		relay_run(w->relay, w->now);
		w->now += 5 * USEC_PER_HOUR;
		w->up.ready = false;
		keep_contents(w, true);
		relay_figures(w->relay, w->now, &f);
		while (f.cache.slots_used > 0) {
			size_t before = f.cache.slots_used;
			double start;

			/* Many VMs have more turns than are needed. */
			if (n < MET_COLD)
				pause_for(cold);
			w->now++;
			start = wall_nsec();
			relay_run(w->relay, w->now);
			if (n < MET_COLD)
				taken[n] = wall_nsec() - start;
			relay_figures(w->relay, w->now, &f);
			if (n < MET_COLD && f.cache.slots_used < before)
				taken[n++] /= (double)(before - f.cache.slots_used);
		}
		keep_contents(w, false);
		w->up.ready = true;
		hold(w, round);
	}
	return median(taken, n);
}

/* Nanoseconds of each step for few VMs and for many. */
static void per_report(bool cold, double ret[2][STEPS])
{
	static const uint32_t ids[2] = { 100, MAX_VMS };
	static double all[2][STEPS][REPEATS];
	double cost = clock_cost(cold);
	struct world w[2];
	uint32_t round[2] = { 0 };

	for (int i = 0; i < 2; i++) {
		/* No retry falls into a sweep. */
		world_open_with(&w[i], ids[i], 12 * (int64_t)USEC_PER_HOUR);
		w[i].up.acks_apart = true;
		hold(&w[i], &round[i]);
	}
	for (int r = 0; r < REPEATS; r++)
		for (int i = 0; i < 2; i++) {
			double steps[STEPS];

			time_reports(&w[i], &round[i], cold, steps);
			steps[LOOKUP] -= cost;
			steps[INSERT] -= cost;
			steps[TRACKER] -= 2 * cost;
			steps[SWEEP] = time_sweep(&w[i], &round[i], cold);
			for (enum step s = 0; s < TOTAL; s++)
				all[i][s][r] = steps[s];
		}
	for (int i = 0; i < 2; i++) {
		ret[i][TOTAL] = 0;
		for (enum step s = 0; s < TOTAL; s++) {
			ret[i][s] = median(all[i][s], REPEATS);
			ret[i][TOTAL] += ret[i][s];
		}
		world_close(&w[i]);
	}
}

/* ---- in a tight loop ----------------------------------------------------------------------------- */

static void measure(uint32_t n, double figures[FIGURES])
{
	uint32_t round = 0;
	struct world w;

	world_open(&w, n);
	deliver(&w, &round); /* warm */
	figures[DELIVERED] = MIN(figures[DELIVERED], deliver(&w, &round));
	figures[REPEATED] = MIN(figures[REPEATED], repeat(&w, round));
	figures[RETRIED] = MIN(figures[RETRIED], retry(&w, &round));
	figures[SWEPT] = MIN(figures[SWEPT], sweep(&w));
	world_close(&w);
}

/* ---- memory -------------------------------------------------------------------------------------- */

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
#define ATTEMPTS    3	 /* while others use the memory, what misses more caches suffers more */

static bool ok(int number, bool good)
{
	printf("%sok %d - ", good ? "" : "not ", number);
	return good;
}

static double ratio_of(double ns[2][STEPS], enum step s)
{
	return ns[1][s] / ns[0][s];
}

/* The least of each step's ratios, measured again while one is above what is allowed. */
static void least_ratios(double ret[2][STEPS])
{
	per_report(true, ret);
	for (int n = 1; n < ATTEMPTS; n++) {
		double again[2][STEPS];
		bool above = false;

		for (enum step s = 0; s < STEPS; s++)
			above |= ratio_of(ret, s) > RATIO_MAX;
		if (!above)
			break;
		per_report(true, again);
		for (enum step s = 0; s < STEPS; s++) {
			if (ratio_of(again, s) >= ratio_of(ret, s))
				continue;
			ret[0][s] = again[0][s];
			ret[1][s] = again[1][s];
		}
	}
}

static int check(void)
{
	double idle = idle_vm_bytes(MAX_VMS, true) - content_bytes(MAX_VMS), ns[2][STEPS];
	size_t slices;
	double slice = longest_slice(&slices);
	bool good;

	printf("1..%d\n", 2 + STEPS);
	good = ok(1, idle < IDLE_VM_MAX);
	printf("an idle VM takes %.0f bytes besides its content, below %d\n", idle, IDLE_VM_MAX);
	good &= ok(2, slice <= SLICE_MAX);
	printf("the longest of %zu slices of packing takes %.0f us of CPU time, at most %d\n",
	       slices, slice, SLICE_MAX);
	least_ratios(ns);
	for (enum step s = 0; s < STEPS; s++) {
		double ratio = ratio_of(ns, s);

		good &= ok(3 + (int)s, ratio <= RATIO_MAX);
		printf("%s of a report on an idle node takes %.0f ns with %u VMs, %.0f with 100: "
		       "%.2f times, at most %.1f\n",
		       step_names[s], ns[1][s], MAX_VMS, ns[0][s], ratio, RATIO_MAX);
	}
	return !good;
}

static void print_per_report(const char *name, bool cold)
{
	double ns[2][STEPS];

	per_report(cold, ns);
	printf("\"%s\": {", name);
	for (enum step s = 0; s < STEPS; s++)
		printf("%s\"%s\": {\"100\": %.0f, \"%u\": %.0f, \"ratio\": %.2f}", s ? ", " : "",
		       step_names[s], ns[0][s], MAX_VMS, ns[1][s], ratio_of(ns, s));
	printf("}");
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
			measure(counts[c], figures[c]);
	printf("\"per_report_ns\": {");
	print_per_report("idle_node", true);
	printf(", ");
	print_per_report("back_to_back", false);
	printf("}, \"tight_loop_ns\": {");
	for (size_t f = 0; f < FIGURES; f++) {
		printf("%s\"%s\": {", f ? ", " : "", names[f]);
		for (size_t c = 0; c < ARRAY_SIZE(counts); c++)
			printf("\"%u\": %.0f, ", counts[c], figures[c][f]);
		printf("\"ratio\": %.2f}", figures[ARRAY_SIZE(counts) - 1][f] / figures[0][f]);
	}
	printf("}, \"longest_pack_slice_us\": %.0f}\n", longest_slice(&slices));
	return 0;
}
