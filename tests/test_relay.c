/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The relay's core (SPEC 2, 5, 6, 7): each test is named after its rule; the clock and the upstream
 * are fake. The last test is an hour of random life, with invariants after each step; its first
 * seed is printed; VSR_SEED=n runs one again, VSR_SEEDS=n that many from it on.
 */
#include <xxhash.h>

#include "pack.h"
#include "relay_test.h"

#define MIN1   USEC_PER_MIN
#define FLIGHT 32

/* ---- an upstream that does what the test says -------------------------------------------------- */

struct fake {
	struct upstream up;
	bool busy;
	struct upstream_send *sends[FLIGHT]; /* under way, oldest first */
	size_t n_sends;
	size_t started;	      /* ever */
	uint64_t acked[1000]; /* newest generation ACKed, by CID */
};

static int fake_send(struct upstream *u, struct upstream_send *s)
{
	struct fake *f = container_of(u, struct fake, up);

	if (f->busy)
		return -EBUSY;
	assert_true(f->n_sends < RELAY_IN_FLIGHT_MAX);
	for (size_t i = 0; i < f->n_sends; i++)
		assert_false(vm_id_equal(f->sends[i]->vm, s->vm));
	assert_true(s->vm.cid < ARRAY_SIZE(f->acked));
	assert_true(s->generation > f->acked[s->vm.cid]); /* nothing twice, nothing older */
	f->sends[f->n_sends++] = s;
	f->started++;
	return 0;
}

static const struct upstream_ops fake_ops = { .name = "fake", .send = fake_send };

/* Ends send number i of those under way. */
static void finish(struct fake *f, size_t i, enum send_result result, uint64_t now)
{
	struct upstream_send *s = f->sends[i];

	assert_true(i < f->n_sends);
	if (result == SEND_ACKED)
		f->acked[s->vm.cid] = MAX(f->acked[s->vm.cid], s->generation);
	f->n_sends--;
	memmove(&f->sends[i], &f->sends[i + 1], (f->n_sends - i) * sizeof(f->sends[0]));
	s->done(s, result, now);
}

/* ---- the world ---------------------------------------------------------------------------------- */

struct world {
	struct relay_settings s;
	struct vm_table *vms;
	struct fake up;
	struct relay *r;
	uint64_t now;
	unsigned observed;
	/* what decided() said */
	unsigned decided;
	enum reason reason;
	/* of the reports to come */
	bool framed;
	uint64_t fake_digest; /* 0: the true one */
	uint32_t ns;	      /* whose VMs vm_of() has */
};

static void on_observed(const struct vm *vm, void *userdata)
{
	assert_non_null(vm);
	((struct world *)userdata)->observed++;
}

static struct relay_settings defaults(void)
{
	return settings_with(48 * HOUR);
}

static const struct bucket_rate one_a_minute = { .interval = MIN1, .burst = 1 };

static void world_open(struct world *w, struct relay_settings s, struct bucket_rate rate)
{
	memset(w, 0, sizeof(*w));
	metrics_reset();
	w->now = T0;
	w->s = s;
	w->framed = true;
	w->up.up.ops = &fake_ops;
	w->up.up.ready = true;
	assert_int_equal(vm_table_new(VM_TABLE_MAX, unlimited, rate, &w->vms), 0);
	assert_int_equal(relay_new(&s, w->vms, &w->up.up, half, NULL, &w->r), 0);
	relay_observe(w->r, on_observed, w);
}

static struct relay_figures figures(const struct world *w)
{
	struct relay_figures f;

	relay_figures(w->r, w->now, &f);
	return f;
}

/* Nothing got lost uncounted. */
static void check(const struct world *w)
{
	struct relay_figures f = figures(w);

	metric_set(METRIC_CONTENTS_HELD, (double)f.held);
	assert_int_equal(metrics_conservation(), 0);
	assert_int_equal(f.in_flight, w->up.n_sends);
	assert_true(f.in_flight <= RELAY_IN_FLIGHT_MAX);
	assert_true(f.awaiting <= f.held);
	assert_int_equal(f.oldest == 0 && f.held == 0, f.held == 0);
}

static void world_close(struct world *w)
{
	check(w);
	w->r = relay_free(w->r);
	for (struct vm *vm = vm_table_next(w->vms, NULL); vm; vm = vm_table_next(w->vms, vm)) {
		assert_null(vm->custody);
		assert_null(vm->in_flight);
		assert_null(vm->acks);
	}
	/* The upstream outlives the relay, and its sends end after it. */
	while (w->up.n_sends > 0)
		finish(&w->up, 0, SEND_ACKED, w->now);
	w->vms = vm_table_free(w->vms);
}

static struct vm *vm_of(struct world *w, uint32_t cid)
{
	struct vm *vm;

	assert_int_equal(vm_table_obtain(w->vms, (struct vsr_vm_id){ .ns = w->ns, .cid = cid },
					 w->now, &vm),
			 0);
	return vm;
}

static struct buf *content(char what)
{
	return content_sized(what, 5000);
}

/* Not the XXH64, but it names the content as well. */
static uint64_t name_of(const struct buf *b)
{
	return ~digest_of(b);
}

static void on_decided(struct relay_report *report, enum reason reason, uint64_t now)
{
	struct world *w = *(struct world **)(report + 1);

	assert_int_equal(now, w->now);
	w->decided++;
	w->reason = reason;
}

/* A report with its world behind it, for on_decided(). */
struct submission {
	struct relay_report report;
	struct world *w;
};

static int submit_buf(struct world *w, uint32_t cid, struct buf *b, struct submission *sub,
		      enum relay_verdict *ret)
{
	unsigned n = fail_at;
	struct vm *vm;

	fail_at = 0; /* not of the test's own allocations */
	vm = vm_of(w, cid);
	fail_at = n;
	*sub = (struct submission){
		.report = { .vm = vm,
			    .content = b,
			    .digest = w->fake_digest ?: digest_of(b),
			    .xxh64 = name_of(b),
			    .framed = w->framed,
			    .vm_id = "vm",
			    .vm_id_len = 2,
			    .decided = on_decided },
		.w = w,
	};
	return relay_submit(w->r, &sub->report, w->now, ret);
}

/* What becomes of a report of this VM: a verdict, or a negative errno. What is due is then done,
 * as the daemon does at the end of each turn. */
static int submit(struct world *w, uint32_t cid, char what)
{
	_cleanup_(buf_unrefp)
	struct buf *b = content(what);
	enum relay_verdict verdict = RELAY_NEW;
	struct submission sub;
	int r = submit_buf(w, cid, b, &sub, &verdict);

	assert_int_not_equal(r, -EINPROGRESS); /* sub would be gone */
	relay_run(w->r, w->now);
	check(w);
	return r < 0 ? r : (int)verdict;
}

static enum relay_verdict known(struct world *w, uint32_t cid, char what)
{
	_cleanup_(buf_unrefp)
	struct buf *b = content(what);
	enum relay_verdict verdict = RELAY_ACCEPTED;

	assert_int_equal(relay_known(w->r, vm_of(w, cid), buf_len(b), digest_of(b), NULL,
				     METRIC_KERNEL, w->now, &verdict),
			 0);
	check(w);
	return verdict;
}

static enum relay_verdict offer(struct world *w, uint32_t cid, char what)
{
	_cleanup_(buf_unrefp)
	struct buf *b = content(what);
	enum relay_verdict verdict =
		relay_offer(w->r, vm_of(w, cid), buf_len(b), name_of(b), w->now);

	check(w);
	return verdict;
}

static void end(struct world *w, enum send_result result)
{
	finish(&w->up, 0, result, w->now);
	relay_run(w->r, w->now);
	check(w);
}

static void run_at(struct world *w, uint64_t now)
{
	assert_true(now >= w->now);
	w->now = now;
	relay_run(w->r, now);
	check(w);
}

/* Delivered and ACKed at once. */
static void deliver(struct world *w, uint32_t cid, char what)
{
	assert_int_equal(submit(w, cid, what), RELAY_ACCEPTED);
	assert_int_equal(w->up.n_sends, 1);
	end(w, SEND_ACKED);
	assert_null(vm_of(w, cid)->custody);
}

/* ---- generations and custody ---------------------------------------------------------------------- */

static void custody_begins_with_the_acceptance_and_ends_with_the_ack(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), unlimited);
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	assert_int_equal(vm_of(&w, 7)->generation, 1);
	assert_int_equal(vm_of(&w, 7)->last_accepted, T0);
	assert_int_equal(figures(&w).held, 1);
	assert_int_equal(figures(&w).awaiting, 1);
	assert_int_equal(figures(&w).cache.slots_used, 1);
	assert_true(w.observed > 0);
	w.now += SEC;
	assert_int_equal(figures(&w).oldest, SEC);
	end(&w, SEND_ACKED);
	assert_int_equal(figures(&w).held, 0);
	assert_int_equal(figures(&w).oldest, 0);
	assert_int_equal(figures(&w).cache.slots_used, 0);
	assert_int_equal(vm_of(&w, 7)->last_ack, T0 + SEC);
	assert_int_equal(ended(METRIC_ENDED_ACKED), 1);
	assert_int_equal(metric_get(METRIC_CACHE_REMOVALS, METRIC_REMOVED_ACKED), 1);
	assert_int_equal(metric_get(METRIC_SEND_ATTEMPTS, METRIC_SUCCESS), 1);
	world_close(&w);
}

static void every_acceptance_is_a_generation_a_reforward_too(void **state _unused_)
{
	struct relay_settings s = defaults();
	struct world w;

	s.suppress_unchanged = false;
	world_open(&w, s, unlimited);
	for (uint64_t generation = 1; generation <= 3; generation++) {
		deliver(&w, 7, 'a');
		assert_int_equal(vm_of(&w, 7)->generation, generation);
	}
	assert_int_equal(w.up.started, 3);
	world_close(&w);
}

static void newer_content_supersedes_older(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), one_a_minute);
	deliver(&w, 7, 'a');
	assert_int_equal(submit(&w, 7, 'b'), RELAY_ACCEPTED);
	assert_int_equal(submit(&w, 7, 'c'), RELAY_ACCEPTED);
	assert_int_equal(figures(&w).held, 1);
	assert_int_equal(ended(METRIC_ENDED_SUPERSEDED), 1);
	/* What goes out with the next token is the newest. */
	run_at(&w, T0 + MIN1);
	assert_int_equal(w.up.n_sends, 1);
	assert_int_equal(w.up.sends[0]->generation, 3);
	assert_int_equal(*buf_data(w.up.sends[0]->payload), 'c');
	end(&w, SEND_ACKED);
	assert_int_equal(w.up.started, 2);
	world_close(&w);
}

static void late_result_of_older_content_does_not_end_newer(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), unlimited);
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	assert_int_equal(submit(&w, 7, 'b'), RELAY_ACCEPTED);
	assert_int_equal(w.up.n_sends, 1); /* one a VM */
	end(&w, SEND_ACKED);
	assert_int_equal(figures(&w).held, 1);
	assert_int_equal(ended(METRIC_ENDED_ACKED), 0);
	assert_int_equal(submit(&w, 7, 'b'), RELAY_DUPLICATE);
	/* The newer one went out as soon as the older was back. */
	assert_int_equal(w.up.n_sends, 1);
	assert_int_equal(w.up.sends[0]->generation, 2);
	end(&w, SEND_ACKED);
	assert_int_equal(ended(METRIC_ENDED_ACKED), 1);
	world_close(&w);
}

static void a_send_keeps_its_payload_whatever_becomes_of_custody(void **state _unused_)
{
	struct relay_settings s = defaults();
	struct world w;

	s.custody_max_age = MIN1;
	world_open(&w, s, unlimited);
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	run_at(&w, T0 + MIN1);
	assert_int_equal(figures(&w).held, 0);
	assert_int_equal(*buf_data(w.up.sends[0]->payload), 'a');
	end(&w, SEND_ACKED);
	assert_int_equal(ended(METRIC_ENDED_ACKED), 0);
	assert_int_equal(ended(METRIC_ENDED_MAX_AGE), 1);
	world_close(&w);
}

static void custody_ends_at_exactly_custody_max_age(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), unlimited);
	w.up.busy = true;
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	run_at(&w, T0 + 24 * HOUR - 1);
	assert_int_equal(figures(&w).held, 1);
	run_at(&w, T0 + 24 * HOUR);
	assert_int_equal(figures(&w).held, 0);
	assert_int_equal(figures(&w).cache.slots_used, 0);
	assert_int_equal(ended(METRIC_ENDED_MAX_AGE), 1);
	/* No timer outlives custody. */
	w.up.busy = false;
	run_at(&w, w.now + HOUR);
	assert_int_equal(w.up.started, 0);
	world_close(&w);
}

static void a_lost_cache_entry_ends_custody_with_its_reason(void **state _unused_)
{
	struct relay_settings s = defaults();
	struct world w;

	s.cache.slots = 1;
	s.cache.ttl = HOUR;
	world_open(&w, s, unlimited);
	w.up.busy = true;
	w.framed = false;
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	assert_int_equal(submit(&w, 8, 'a'), RELAY_ACCEPTED);
	assert_int_equal(ended(METRIC_ENDED_SLOTS), 1);
	assert_null(vm_of(&w, 7)->custody);
	assert_null(vm_of(&w, 7)->acks);
	run_at(&w, T0 + HOUR);
	run_at(&w, T0 + 2 * HOUR);
	assert_int_equal(ended(METRIC_ENDED_TTL), 1);
	assert_int_equal(figures(&w).held, 0);

	s.cache = (struct cache_limits){ .slots = 10, .bytes = 9 * 4096, .ttl = HOUR };
	assert_int_equal(relay_set(w.r, &s, w.now), 0);
	for (uint32_t cid = 7; cid < 12; cid++)
		assert_int_equal(submit(&w, cid, 'b'), RELAY_ACCEPTED);
	assert_int_equal(ended(METRIC_ENDED_BYTES), 1);
	assert_null(vm_of(&w, 7)->custody);
	world_close(&w);
}

static void framed_content_is_never_lost_to_another_vm(void **state _unused_)
{
	struct relay_settings s = defaults();
	struct world w;

	s.cache.slots = 1;
	world_open(&w, s, unlimited);
	w.up.busy = true;
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	assert_int_equal(submit(&w, 8, 'a'), -ENOSPC);
	w.framed = false;
	assert_int_equal(submit(&w, 8, 'a'), -ENOSPC);
	assert_int_equal(metric_get(METRIC_DROPPED, METRIC_DROPPED_NO_CACHE), 2);
	/* But for its own VM's newer content it goes. */
	assert_int_equal(submit(&w, 7, 'b'), RELAY_ACCEPTED);
	assert_int_equal(ended(METRIC_ENDED_SUPERSEDED), 1);
	world_close(&w);
}

/* A framed agent that hears "nothing to do" of content that came raw counts on it from then on. */
static void a_framed_repeat_of_raw_content_protects_it(void **state _unused_)
{
	struct relay_settings s = defaults();
	struct world w;

	s.cache.slots = 1;
	for (int offered = 0; offered < 2; offered++) {
		world_open(&w, s, unlimited);
		w.framed = false;
		assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
		w.framed = true;
		if (offered)
			assert_int_equal(offer(&w, 7, 'a'), RELAY_DUPLICATE);
		else
			assert_int_equal(submit(&w, 7, 'a'), RELAY_DUPLICATE);
		w.framed = false;
		assert_int_equal(submit(&w, 8, 'a'), -ENOSPC);
		assert_non_null(vm_of(&w, 7)->custody);
		world_close(&w);
	}
}

static void auto_slots_are_there_with_the_vm_that_needs_them(void **state _unused_)
{
	struct relay_settings s = defaults();
	struct world w;

	s.slots_auto = true;
	s.cache.slots = 3;
	world_open(&w, s, unlimited);
	w.up.busy = true;
	for (uint32_t cid = 3; cid < 13; cid++)
		assert_int_equal(submit(&w, cid, 'a'), RELAY_ACCEPTED);
	assert_int_equal(figures(&w).cache.slots, 10);
	assert_int_equal(figures(&w).held, 10);
	world_close(&w);
}

/* ---- dedup ---------------------------------------------------------------------------------------- */

static void duplicate_of_content_in_custody_adds_nothing(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), unlimited);
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	assert_int_equal(submit(&w, 7, 'a'), RELAY_DUPLICATE);
	assert_int_equal(known(&w, 7, 'a'), RELAY_DUPLICATE);
	assert_int_equal(offer(&w, 7, 'a'), RELAY_DUPLICATE);
	assert_int_equal(metric_get(METRIC_DUPLICATES, METRIC_DAEMON), 2);
	assert_int_equal(metric_get(METRIC_DUPLICATES, METRIC_KERNEL), 1);
	assert_int_equal(metric_get(METRIC_VALID, 0), 4);
	assert_int_equal(vm_of(&w, 7)->generation, 1);
	assert_int_equal(vm_of(&w, 7)->duplicates, 3);
	assert_int_equal(w.up.started, 1);
	/* Another VM's equal content is none. */
	assert_int_equal(known(&w, 8, 'a'), RELAY_NEW);
	assert_int_equal(offer(&w, 8, 'a'), RELAY_NEW);
	assert_int_equal(submit(&w, 8, 'a'), RELAY_ACCEPTED);
	world_close(&w);
}

static void what_is_new_is_not_counted_before_it_is_read(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), unlimited);
	assert_int_equal(known(&w, 7, 'a'), RELAY_NEW);
	assert_int_equal(offer(&w, 7, 'a'), RELAY_NEW);
	assert_int_equal(metric_get(METRIC_VALID, 0), 0);
	world_close(&w);
}

static void known_digest_under_another_header_is_a_digest_mismatch(void **state _unused_)
{
	_cleanup_(buf_unrefp)
	struct buf *b = content('a');
	enum relay_verdict verdict = RELAY_ACCEPTED;
	uint64_t name = name_of(b);
	struct world w;

	world_open(&w, defaults(), unlimited);
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	assert_int_equal(relay_known(w.r, vm_of(&w, 7), buf_len(b), digest_of(b), &name,
				     METRIC_KERNEL, w.now, &verdict),
			 0);
	assert_int_equal(verdict, RELAY_DUPLICATE);
	name++;
	assert_int_equal(relay_known(w.r, vm_of(&w, 7), buf_len(b), digest_of(b), &name,
				     METRIC_KERNEL, w.now, &verdict),
			 -EBADMSG);
	world_close(&w);
}

/* A raw report, of which nobody has asked for the XXH64. */
static int submit_unnamed(struct world *w, uint32_t cid, struct buf *b, struct submission *sub)
{
	enum relay_verdict verdict = RELAY_NEW;
	int r;

	*sub = (struct submission){
		.report = {
			.vm = vm_of(w, cid),
			.content = b,
			.digest = digest_of(b),
			.xxh64_unknown = true,
			.decided = on_decided,
		},
		.w = w,
	};
	r = relay_submit(w->r, &sub->report, w->now, &verdict);
	relay_run(w->r, w->now);
	check(w);
	return r < 0 ? r : (int)verdict;
}

static void an_offer_finds_raw_content_that_is_in_memory(void **state _unused_)
{
	_cleanup_(buf_unrefp)
	struct buf *b = content('a');
	uint64_t name = XXH64(buf_data(b), buf_len(b), 0), other = name + 1;
	enum relay_verdict verdict = RELAY_ACCEPTED;
	struct submission sub;
	struct world w;

	world_open(&w, defaults(), unlimited);
	assert_int_equal(submit_unnamed(&w, 7, b, &sub), RELAY_ACCEPTED);
	assert_int_equal(submit_unnamed(&w, 7, b, &sub), RELAY_DUPLICATE);
	assert_int_equal(relay_offer(w.r, vm_of(&w, 7), buf_len(b), other, w.now), RELAY_NEW);
	assert_int_equal(relay_offer(w.r, vm_of(&w, 7), buf_len(b), name, w.now), RELAY_DUPLICATE);
	assert_int_equal(relay_known(w.r, vm_of(&w, 7), buf_len(b), digest_of(b), &other,
				     METRIC_KERNEL, w.now, &verdict),
			 -EBADMSG);
	world_close(&w);
}

static void raw_content_is_named_before_it_goes(void **state _unused_)
{
	_cleanup_(buf_unrefp)
	struct buf *b = content('a');
	uint64_t name = XXH64(buf_data(b), buf_len(b), 0);
	struct relay_settings s = defaults();
	struct submission sub;
	struct world w;

	for (int slots = 0; slots < 2; slots++) {
		s.cache.slots = 100 * slots;
		world_open(&w, s, unlimited);
		assert_int_equal(submit_unnamed(&w, 7, b, &sub),
				 slots ? RELAY_ACCEPTED : -EINPROGRESS);
		end(&w, SEND_ACKED);
		assert_int_equal(relay_offer(w.r, vm_of(&w, 7), buf_len(b), ~name, w.now),
				 RELAY_NEW);
		assert_int_equal(relay_offer(w.r, vm_of(&w, 7), buf_len(b), name, w.now),
				 RELAY_SUPPRESSED);
		world_close(&w);
	}
}

static void length_counts_beside_the_digest(void **state _unused_)
{
	_cleanup_(buf_unrefp)
	struct buf *b = content('a');
	enum relay_verdict verdict = RELAY_ACCEPTED;
	struct world w;

	world_open(&w, defaults(), unlimited);
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	assert_int_equal(relay_known(w.r, vm_of(&w, 7), buf_len(b) + 1, digest_of(b), NULL,
				     METRIC_KERNEL, w.now, &verdict),
			 0);
	assert_int_equal(verdict, RELAY_NEW);
	assert_int_equal(relay_offer(w.r, vm_of(&w, 7), buf_len(b) - 1, name_of(b), w.now),
			 RELAY_NEW);
	world_close(&w);
}

static void acked_content_is_suppressed_until_the_refresh_interval(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), unlimited);
	deliver(&w, 7, 'a');
	w.now = T0 + 24 * HOUR - 1;
	assert_int_equal(submit(&w, 7, 'a'), RELAY_SUPPRESSED);
	assert_int_equal(known(&w, 7, 'a'), RELAY_SUPPRESSED);
	assert_int_equal(offer(&w, 7, 'a'), RELAY_SUPPRESSED);
	assert_int_equal(metric_get(METRIC_SUPPRESSED, 0), 3);
	w.now = T0 + 24 * HOUR;
	assert_int_equal(offer(&w, 7, 'a'), RELAY_NEW);
	assert_int_equal(known(&w, 7, 'a'), RELAY_NEW);
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	assert_int_equal(vm_of(&w, 7)->generation, 2);
	world_close(&w);
}

static void refresh_interval_0_never_refreshes(void **state _unused_)
{
	struct relay_settings s = defaults();
	struct world w;

	s.refresh_interval = 0;
	world_open(&w, s, unlimited);
	deliver(&w, 7, 'a');
	w.now += 23 * HOUR;
	assert_int_equal(submit(&w, 7, 'a'), RELAY_SUPPRESSED);
	world_close(&w);
}

/* How custody of content of VM 7 ends, each but by an ACK. */
static void lose_by_age(struct world *w)
{
	run_at(w, w->now + 24 * HOUR);
}

static void lose_by_slots(struct world *w)
{
	for (uint32_t cid = 8; cid < 11; cid++)
		assert_int_equal(submit(w, cid, 'x'), RELAY_ACCEPTED);
}

static void lose_by_ttl(struct world *w)
{
	for (unsigned i = 0; i < 5; i++)
		run_at(w, w->now + 5 * HOUR);
}

static void acked_content_is_new_again_where_nothing_is_suppressed(void **state _unused_)
{
	struct relay_settings s = defaults();
	struct world w;

	s.suppress_unchanged = false;
	world_open(&w, s, unlimited);
	deliver(&w, 3, 'a');
	assert_int_equal(offer(&w, 3, 'a'), RELAY_NEW);
	assert_int_equal(known(&w, 3, 'a'), RELAY_NEW);
	deliver(&w, 3, 'a');
	assert_int_equal(w.up.started, 2);
	world_close(&w);
}

static void only_an_ack_leaves_the_digest_of_record(void **state _unused_)
{
	static void (*const lose[])(struct world *) = { lose_by_age, lose_by_slots, lose_by_ttl };
	static const enum metric_ended how[] = { METRIC_ENDED_MAX_AGE, METRIC_ENDED_SLOTS,
						 METRIC_ENDED_TTL };

	for (size_t i = 0; i < ARRAY_SIZE(lose); i++) {
		struct relay_settings s = defaults();
		struct world w;

		s.cache.slots = 3;
		if (lose[i] == lose_by_ttl)
			s.cache.ttl = 10 * HOUR;
		world_open(&w, s, unlimited);
		w.framed = false;
		/* An ACK of the same content long ago does not count either. */
		deliver(&w, 7, 'b');
		deliver(&w, 7, 'a');
		w.up.busy = true;
		assert_int_equal(submit(&w, 7, 'b'), RELAY_ACCEPTED);
		lose[i](&w);
		assert_int_equal(ended(how[i]), 1);
		assert_false(vm_of(&w, 7)->has_record);
		assert_int_equal(known(&w, 7, 'b'), RELAY_NEW);
		assert_int_equal(submit(&w, 7, 'b'), RELAY_ACCEPTED);
		world_close(&w);
	}
}

static void the_record_is_of_the_last_content_alone(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), unlimited);
	deliver(&w, 7, 'a');
	deliver(&w, 7, 'b');
	/* 'a' was ACKed too, but it is not what the upstream has now. */
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	world_close(&w);
}

static void equal_digest_of_other_bytes_is_new_content_if_cached(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), unlimited);
	w.up.busy = true;
	w.fake_digest = 42;
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	assert_int_equal(submit(&w, 7, 'b'), RELAY_ACCEPTED);
	assert_int_equal(submit(&w, 7, 'b'), RELAY_DUPLICATE);
	assert_int_equal(vm_of(&w, 7)->generation, 2);
	world_close(&w);
}

static void dedup_bytes_decides_nothing_by_digest_alone(void **state _unused_)
{
	struct relay_settings s = defaults();
	struct world w;

	s.dedup_bytes = true;
	world_open(&w, s, unlimited);
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	assert_int_equal(known(&w, 7, 'a'), RELAY_NEW);
	assert_int_equal(offer(&w, 7, 'a'), RELAY_NEW);
	/* The bytes are there to compare. */
	assert_int_equal(submit(&w, 7, 'a'), RELAY_DUPLICATE);
	end(&w, SEND_ACKED);
	/* Now they are gone. */
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	world_close(&w);
}

static void what_was_acked_and_kept_is_there_to_compare(void **state _unused_)
{
	struct relay_settings s = defaults();
	struct world w;

	s.dedup_bytes = true;
	s.cache.keep = 24 * HOUR;
	world_open(&w, s, unlimited);
	deliver(&w, 7, 'a');
	assert_int_equal(figures(&w).cache.kept, 1);
	assert_int_equal(figures(&w).cache.slots_used, 0);
	assert_int_equal(metric_get(METRIC_CACHE_REMOVALS, METRIC_REMOVED_ACKED), 1);
	assert_int_equal(submit(&w, 7, 'a'), RELAY_SUPPRESSED);
	/* Another content under the same digest is not taken for it. */
	w.fake_digest = digest_bytes(SEED, "a", 1);
	deliver(&w, 7, 'a');
	assert_int_equal(submit(&w, 7, 'b'), RELAY_ACCEPTED);
	world_close(&w);
}

static void kept_content_is_forwarded_again_where_unchanged_says_so(void **state _unused_)
{
	struct relay_settings s = defaults();
	struct world w;

	s.suppress_unchanged = false;
	s.cache.keep = 24 * HOUR;
	world_open(&w, s, unlimited);
	deliver(&w, 7, 'a');
	assert_int_equal(known(&w, 7, 'a'), RELAY_NEW);
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	assert_int_equal(figures(&w).cache.kept, 0);
	assert_int_equal(figures(&w).cache.slots_used, 1);
	assert_int_equal(vm_of(&w, 7)->generation, 2);
	assert_int_equal(w.up.n_sends, 1);
	end(&w, SEND_ACKED);
	assert_int_equal(figures(&w).cache.kept, 1);
	world_close(&w);
}

/* A repeat is a use: a VM that reports on keeps its content for as long as it does. */
static void kept_content_goes_24_h_after_its_vm_was_heard_last(void **state _unused_)
{
	struct relay_settings s = defaults();
	struct world w;

	s.cache.keep = 24 * HOUR;
	s.cache.ttl = 4 * HOUR; /* a sweep every 2 h */
	s.refresh_interval = 0;
	world_open(&w, s, unlimited);
	deliver(&w, 7, 'a');
	for (unsigned i = 0; i < 10; i++) {
		run_at(&w, w.now + 4 * HOUR);
		assert_int_equal(i % 2 ? known(&w, 7, 'a') : offer(&w, 7, 'a'), RELAY_SUPPRESSED);
	}
	run_at(&w, w.now + 22 * HOUR);
	assert_int_equal(figures(&w).cache.kept, 1);
	for (unsigned i = 0; i < 3; i++)
		run_at(&w, w.now + 2 * HOUR);
	assert_int_equal(figures(&w).cache.kept, 0);
	assert_int_equal(metric_get(METRIC_CACHE_KEPT_REMOVALS, METRIC_UNKEPT_SILENT), 1);
	world_close(&w);
}

static void a_reload_that_keeps_nothing_frees_what_was_kept(void **state _unused_)
{
	struct relay_settings s = defaults();
	struct world w;

	s.cache.keep = 24 * HOUR;
	world_open(&w, s, unlimited);
	deliver(&w, 7, 'a');
	s.cache.keep = 0;
	assert_int_equal(relay_set(w.r, &s, w.now), 0);
	assert_int_equal(figures(&w).cache.bytes, 0);
	assert_int_equal(metric_get(METRIC_CACHE_KEPT_REMOVALS, METRIC_UNKEPT_OFF), 1);
	/* The digest of record stays. */
	assert_int_equal(submit(&w, 7, 'a'), RELAY_SUPPRESSED);
	world_close(&w);
}

/* ---- packed contents ------------------------------------------------------------------------------ */

static void pack_all(struct world *w)
{
	for (unsigned i = 0; relay_pack(w->r, w->now); i++)
		assert_true(i < 1000);
	check(w);
}

static void packed_content_is_resent_and_recognised_like_any(void **state _unused_)
{
	_cleanup_(buf_unrefp)
	struct buf *b = content('a');
	struct relay_settings s = defaults();

	s.cache.pack = 5 * SEC;
	for (int bytes = 0; bytes < 2; bytes++) {
		struct world w;

		s.dedup_bytes = bytes;
		world_open(&w, s, unlimited);
		assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
		end(&w, SEND_FAILED);
		assert_int_equal(relay_pack_due(w.r), T0 + 5 * SEC);
		run_at(&w, T0 + 5 * SEC);
		pack_all(&w);
		assert_int_equal(figures(&w).cache.packed, 1);
		assert_int_equal(relay_pack_due(w.r), USEC_INFINITY);
		assert_int_equal(submit(&w, 7, 'a'), RELAY_DUPLICATE);
		run_at(&w, T0 + 30 * SEC);
		assert_int_equal(w.up.n_sends, 1);
		assert_true(buf_packed(w.up.sends[0]->payload));
		assert_true(content_equal(w.up.sends[0]->payload, b));
		end(&w, SEND_ACKED);
		assert_int_equal(ended(METRIC_ENDED_ACKED), 1);
		world_close(&w);
	}
}

static void dedup_bytes_unpacks_to_compare(void **state _unused_)
{
	struct relay_settings s = defaults();
	struct world w;

	s.cache.pack = SEC;
	s.dedup_bytes = true;
	world_open(&w, s, unlimited);
	w.up.busy = true;
	w.fake_digest = 42;
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	run_at(&w, T0 + SEC);
	pack_all(&w);
	assert_int_equal(submit(&w, 7, 'b'), RELAY_ACCEPTED);
	assert_int_equal(vm_of(&w, 7)->generation, 2);
	world_close(&w);
}

static void packed_raw_content_is_named_before_it_goes(void **state _unused_)
{
	_cleanup_(buf_unrefp)
	struct buf *b = content('a');
	uint64_t name = XXH64(buf_data(b), buf_len(b), 0);
	struct relay_settings s = defaults();
	struct submission sub;
	struct world w;

	s.cache.pack = 5 * SEC;
	s.cache.keep = 48 * HOUR;
	world_open(&w, s, unlimited);
	assert_int_equal(submit_unnamed(&w, 7, b, &sub), RELAY_ACCEPTED);
	end(&w, SEND_ACKED);
	run_at(&w, T0 + 5 * SEC);
	pack_all(&w);
	assert_int_equal(figures(&w).cache.packed, 1);
	s.cache.keep = 0;
	assert_int_equal(relay_set(w.r, &s, w.now), 0);
	assert_int_equal(figures(&w).cache.packed, 0);
	assert_int_equal(relay_offer(w.r, vm_of(&w, 7), buf_len(b), name, w.now), RELAY_SUPPRESSED);
	world_close(&w);
}

/* What malloc adds to a small object at most. */
#define MALLOC_MORE 16

static void an_idle_vm_costs_less_than_512_bytes_besides_its_content(void **state _unused_)
{
	/* Both maps have at most two buckets an element. */
	size_t maps = 2 * 2 * sizeof(void *);

	print_message("record %zu, entry %zu\n", sizeof(struct vm), sizeof(struct cache_entry));
	assert_true(sizeof(struct vm) + sizeof(struct cache_entry) + 2 * MALLOC_MORE + maps < 512);
}

static void damaged_content_ends_custody_and_is_counted(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), unlimited);
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	end(&w, SEND_DAMAGED);
	assert_int_equal(ended(METRIC_ENDED_DAMAGED), 1);
	assert_int_equal(metric_get(METRIC_CACHE_REMOVALS, METRIC_REMOVED_DAMAGED), 1);
	assert_int_equal(figures(&w).held, 0);
	assert_int_equal(figures(&w).cache.slots_used, 0);
	/* It is lost: the same report is new. */
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	/* The damage of an older content says nothing about the newer. */
	assert_int_equal(submit(&w, 7, 'b'), RELAY_ACCEPTED);
	end(&w, SEND_DAMAGED);
	assert_int_equal(ended(METRIC_ENDED_DAMAGED), 1);
	assert_int_equal(figures(&w).held, 1);
	world_close(&w);
}

/* ---- rate limit ----------------------------------------------------------------------------------- */

static void a_limited_report_waits_for_the_token_and_is_counted_once(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), one_a_minute);
	deliver(&w, 7, 'a');
	w.now += 10 * SEC;
	assert_int_equal(submit(&w, 7, 'b'), RELAY_ACCEPTED);
	assert_int_equal(w.up.n_sends, 0);
	assert_int_equal(relay_next_event(w.r), T0 + MIN1);
	run_at(&w, T0 + MIN1 - 1);
	assert_int_equal(w.up.n_sends, 0);
	run_at(&w, T0 + MIN1);
	assert_int_equal(w.up.n_sends, 1);
	assert_int_equal(metric_get(METRIC_RATE_LIMITED, METRIC_RATE_NORMAL), 1);
	/* Nobody else is limited by it. */
	assert_int_equal(submit(&w, 8, 'b'), RELAY_ACCEPTED);
	assert_int_equal(w.up.n_sends, 2);
	world_close(&w);
}

static void a_content_is_counted_as_limited_once_however_often_it_is(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), one_a_minute);
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	end(&w, SEND_FAILED);
	for (unsigned minute = 1; minute < 5; minute++) {
		run_at(&w, T0 + minute * MIN1 - SEC); /* due, and no token */
		assert_int_equal(w.up.n_sends, 0);
		run_at(&w, T0 + minute * MIN1);
		if (w.up.n_sends > 0)
			end(&w, SEND_FAILED);
	}
	assert_int_equal(w.up.started, 4); /* at 0, 60, 120 (due 90) and 180 s */
	assert_int_equal(metric_get(METRIC_RATE_LIMITED, METRIC_RATE_STALE_ACK), 1);
	world_close(&w);
}

static void limited_without_an_ack_for_4_h_is_stale_ack(void **state _unused_)
{
	struct relay_settings s = defaults();
	struct world w;

	s.retry.base = (int64_t)(100 * HOUR);
	world_open(&w, s, one_a_minute);
	/* never an ACK */
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	end(&w, SEND_FAILED);
	assert_int_equal(submit(&w, 7, 'b'), RELAY_ACCEPTED);
	assert_int_equal(metric_get(METRIC_RATE_LIMITED, METRIC_RATE_STALE_ACK), 1);
	run_at(&w, T0 + MIN1);
	end(&w, SEND_ACKED);
	/* The last ACK exactly 4 h ago, and a moment longer. */
	w.now += 4 * HOUR - SEC;
	assert_int_equal(submit(&w, 7, 'c'), RELAY_ACCEPTED);
	w.now += SEC;
	end(&w, SEND_FAILED);
	assert_int_equal(submit(&w, 7, 'd'), RELAY_ACCEPTED);
	assert_int_equal(metric_get(METRIC_RATE_LIMITED, METRIC_RATE_NORMAL), 1);
	w.now++;
	assert_int_equal(submit(&w, 7, 'e'), RELAY_ACCEPTED);
	assert_int_equal(metric_get(METRIC_RATE_LIMITED, METRIC_RATE_STALE_ACK), 2);
	world_close(&w);
}

static void a_token_comes_back_only_when_nothing_can_have_been_delivered(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), one_a_minute);
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	end(&w, SEND_NOT_DELIVERED);
	assert_int_equal(submit(&w, 7, 'b'), RELAY_ACCEPTED);
	assert_int_equal(w.up.n_sends, 1);
	end(&w, SEND_FAILED);
	assert_int_equal(submit(&w, 7, 'c'), RELAY_ACCEPTED);
	assert_int_equal(w.up.n_sends, 0);
	assert_int_equal(metric_get(METRIC_SEND_ATTEMPTS, METRIC_FAILURE), 2);
	world_close(&w);
}

static void an_upstream_that_takes_nothing_costs_no_token_and_no_resend(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), one_a_minute);
	w.up.busy = true;
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	for (unsigned i = 0; i < 100; i++)
		run_at(&w, relay_next_event(w.r));
	assert_true(w.now < T0 + MIN1);
	assert_true(w.now > T0 + SEC); /* it is not asked all the time */
	w.up.busy = false;
	run_at(&w, relay_next_event(w.r));
	assert_int_equal(w.up.n_sends, 1);
	assert_int_equal(metric_get(METRIC_RESENDS, 0), 0);
	assert_int_equal(metric_get(METRIC_RATE_LIMITED, METRIC_RATE_STALE_ACK), 0);
	world_close(&w);
}

/* ---- sends ---------------------------------------------------------------------------------------- */

static void eight_in_flight_and_one_per_vm(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), unlimited);
	for (uint32_t cid = 3; cid < 23; cid++)
		assert_int_equal(submit(&w, cid, 'a'), RELAY_ACCEPTED);
	assert_int_equal(w.up.n_sends, RELAY_IN_FLIGHT_MAX);
	/* Newer content of one in flight waits for it, of one that waits takes its turn. */
	assert_int_equal(submit(&w, 3, 'b'), RELAY_ACCEPTED);
	assert_int_equal(submit(&w, 11, 'b'), RELAY_ACCEPTED);
	assert_int_equal(w.up.n_sends, RELAY_IN_FLIGHT_MAX);
	/* The others go in the order in which they came. */
	for (uint32_t cid = 12; cid < 23; cid++) {
		end(&w, SEND_ACKED);
		assert_int_equal(w.up.n_sends, RELAY_IN_FLIGHT_MAX);
	}
	while (w.up.n_sends > 0)
		end(&w, SEND_ACKED);
	assert_int_equal(figures(&w).held, 0);
	assert_int_equal(w.up.started, 20 + 1); /* the first of VM 11 was never sent */
	assert_int_equal(ended(METRIC_ENDED_SUPERSEDED), 2);
	world_close(&w);
}

static void a_failed_send_is_retried_at_30_90_180_and_300_s(void **state _unused_)
{
	static const uint64_t due[] = { 30, 90, 180, 300 };
	struct world w;

	world_open(&w, defaults(), unlimited);
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	end(&w, SEND_NOT_DELIVERED);
	for (size_t i = 0; i < ARRAY_SIZE(due); i++) {
		run_at(&w, T0 + due[i] * SEC - 1);
		assert_int_equal(w.up.n_sends, 0);
		run_at(&w, T0 + due[i] * SEC);
		assert_int_equal(w.up.n_sends, 1);
		end(&w, i % 2 ? SEND_FAILED : SEND_NOT_DELIVERED);
	}
	assert_int_equal(metric_get(METRIC_RESENDS, 0), 4);
	assert_int_equal(figures(&w).cache.hits, 4);
	assert_int_equal(figures(&w).awaiting, 1);
	run_at(&w, T0 + 450 * SEC);
	end(&w, SEND_ACKED);
	assert_int_equal(figures(&w).held, 0);
	world_close(&w);
}

static void a_retry_that_comes_due_in_flight_goes_out_when_it_is_back(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), unlimited);
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	run_at(&w, T0 + 100 * SEC); /* 30 and 90 were missed: one send */
	assert_int_equal(w.up.started, 1);
	end(&w, SEND_NOT_DELIVERED);
	assert_int_equal(w.up.started, 2);
	end(&w, SEND_NOT_DELIVERED);
	assert_int_equal(w.up.started, 2);
	/* ... but not when it was ACKed. */
	run_at(&w, T0 + 180 * SEC);
	assert_int_equal(w.up.started, 3);
	run_at(&w, T0 + 300 * SEC);
	end(&w, SEND_ACKED);
	assert_int_equal(w.up.started, 3);
	world_close(&w);
}

static void delivered_is_no_ack_where_acks_come_apart(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), unlimited);
	w.up.up.acks_apart = true;
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	end(&w, SEND_DELIVERED);
	assert_int_equal(figures(&w).held, 1);
	assert_int_equal(metric_get(METRIC_SEND_ATTEMPTS, METRIC_SUCCESS), 1);
	run_at(&w, T0 + 30 * SEC);
	assert_int_equal(w.up.n_sends, 1);
	world_close(&w);
}

static void with_eight_unsettled_sends_the_next_waits(void **state _unused_)
{
	struct relay_settings s = defaults();
	struct world w;

	s.retry.base = (int64_t)SEC;
	world_open(&w, s, unlimited);
	w.up.up.acks_apart = true;
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	for (unsigned i = 0; i < TRACKER_SENDS; i++) {
		while (w.up.n_sends == 0)
			run_at(&w, relay_next_event(w.r));
		end(&w, SEND_DELIVERED);
	}
	run_at(&w, T0 + TRACKER_REMEMBER - 1);
	assert_int_equal(w.up.n_sends, 0);
	run_at(&w, T0 + TRACKER_REMEMBER);
	assert_int_equal(w.up.n_sends, 1);
	world_close(&w);
}

/* ---- without a cache ------------------------------------------------------------------------------ */

static struct relay_settings no_slots(void)
{
	struct relay_settings s = defaults();

	s.cache.slots = 0;
	return s;
}

static void without_slots_the_answer_waits_for_the_send(void **state _unused_)
{
	static const struct {
		enum send_result result;
		enum reason reason;
		enum relay_verdict again;
	} cases[] = {
		{ SEND_ACKED, REASON_NONE, RELAY_SUPPRESSED },
		{ SEND_FAILED, REASON_NO_CACHE, RELAY_NEW },
		{ SEND_NOT_DELIVERED, REASON_NO_CACHE, RELAY_NEW },
	};
	_cleanup_(buf_unrefp)
	struct buf *b = content('a');

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		enum relay_verdict verdict;
		struct submission sub;
		struct world w;

		world_open(&w, no_slots(), unlimited);
		assert_int_equal(submit_buf(&w, 7, b, &sub, &verdict), -EINPROGRESS);
		check(&w);
		assert_int_equal(figures(&w).held, 1);
		assert_int_equal(w.decided, 0);
		end(&w, cases[i].result);
		assert_int_equal(w.decided, 1);
		assert_int_equal(w.reason, cases[i].reason);
		assert_int_equal(figures(&w).held, 0);
		assert_int_equal(known(&w, 7, 'a'), cases[i].again);
		/* Nothing is kept, so nothing is sent again. */
		run_at(&w, T0 + HOUR);
		assert_int_equal(w.up.started, 1);
		world_close(&w);
	}
}

static void without_slots_what_cannot_be_sent_at_once_is_dropped(void **state _unused_)
{
	_cleanup_(buf_unrefp)
	struct buf *b = content('a');
	enum relay_verdict verdict;
	struct submission sub[RELAY_IN_FLIGHT_MAX];
	struct world w;

	world_open(&w, no_slots(), one_a_minute);
	assert_int_equal(submit_buf(&w, 7, b, &sub[0], &verdict), -EINPROGRESS);
	assert_int_equal(submit(&w, 7, 'b'), -ENOSPC); /* in flight */
	end(&w, SEND_ACKED);
	assert_int_equal(submit(&w, 7, 'b'), -ENOSPC); /* no token */
	w.up.busy = true;
	assert_int_equal(submit(&w, 8, 'b'), -ENOSPC);
	w.up.busy = false;
	for (uint32_t i = 0; i < RELAY_IN_FLIGHT_MAX; i++) /* VM 8 has its token back */
		assert_int_equal(submit_buf(&w, 8 + i, b, &sub[i], &verdict), -EINPROGRESS);
	assert_int_equal(submit(&w, 100, 'b'), -ENOSPC);
	assert_int_equal(metric_get(METRIC_DROPPED, METRIC_DROPPED_NO_CACHE), 4);
	while (w.up.n_sends > 0)
		end(&w, SEND_ACKED);
	assert_int_equal(w.decided, 1 + RELAY_IN_FLIGHT_MAX);
	world_close(&w);
}

static void a_connection_that_left_is_not_told(void **state _unused_)
{
	_cleanup_(buf_unrefp)
	struct buf *b = content('a');
	enum relay_verdict verdict;
	struct submission sub;
	struct world w;

	world_open(&w, no_slots(), unlimited);
	assert_int_equal(submit_buf(&w, 7, b, &sub, &verdict), -EINPROGRESS);
	relay_forget(w.r, &sub.report);
	relay_forget(w.r, &sub.report); /* harmless */
	memset(&sub, 0xff, sizeof(sub));
	end(&w, SEND_ACKED);
	assert_int_equal(w.decided, 0);
	assert_int_equal(ended(METRIC_ENDED_ACKED), 1);
	assert_int_equal(known(&w, 7, 'a'), RELAY_SUPPRESSED);
	world_close(&w);
}

static void newer_content_sent_without_a_cache_ends_older_custody(void **state _unused_)
{
	_cleanup_(buf_unrefp)
	struct buf *b = content('b');
	struct relay_settings s = defaults();
	enum relay_verdict verdict;
	struct submission sub;
	struct world w;

	world_open(&w, s, unlimited);
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	end(&w, SEND_NOT_DELIVERED);
	s = no_slots();
	assert_int_equal(relay_set(w.r, &s, w.now), 0);
	assert_int_equal(figures(&w).held, 1); /* a reload ends no custody */
	assert_int_equal(submit_buf(&w, 7, b, &sub, &verdict), -EINPROGRESS);
	end(&w, SEND_ACKED);
	assert_int_equal(figures(&w).held, 0);
	assert_int_equal(ended(METRIC_ENDED_SUPERSEDED), 1);
	assert_int_equal(known(&w, 7, 'b'), RELAY_SUPPRESSED);
	/* The older one is not sent over it. */
	run_at(&w, T0 + HOUR);
	assert_int_equal(w.up.started, 2);
	world_close(&w);
}

static void older_content_sent_without_a_cache_is_not_the_record(void **state _unused_)
{
	_cleanup_(buf_unrefp)
	struct buf *b = content('a');
	struct relay_settings s = defaults();
	enum relay_verdict verdict;
	struct submission sub;
	struct world w;

	world_open(&w, no_slots(), unlimited);
	assert_int_equal(submit_buf(&w, 7, b, &sub, &verdict), -EINPROGRESS);
	assert_int_equal(relay_set(w.r, &s, w.now), 0);
	assert_int_equal(submit(&w, 7, 'b'), RELAY_ACCEPTED);
	end(&w, SEND_ACKED);
	assert_int_equal(w.decided, 1);
	assert_int_equal(submit(&w, 7, 'b'), RELAY_DUPLICATE);
	assert_int_equal(submit(&w, 7, 'a'), RELAY_ACCEPTED);
	world_close(&w);
}

/* ---- what upstreams say ----------------------------------------------------------------------------- */

static void contents_wait_for_an_upstream_that_is_not_there(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), one_a_minute);
	w.up.up.ready = false;
	for (uint32_t cid = 3; cid < 33; cid++)
		assert_int_equal(submit(&w, cid, 'a'), RELAY_ACCEPTED);
	run_at(&w, w.now + HOUR);
	assert_int_equal(w.up.started, 0);
	assert_true(metric_get(METRIC_REPORTS_SENT, METRIC_SENT_FAILED) == 0);
	w.up.up.ready = true;
	run_at(&w, w.now);
	for (size_t left = 30; left > 0; left--) {
		assert_int_equal(w.up.n_sends, MIN(left, (size_t)RELAY_IN_FLIGHT_MAX));
		end(&w, SEND_ACKED);
	}
	assert_true(ended(METRIC_ENDED_ACKED) == 30);
	world_close(&w);
}

static void what_did_not_leave_goes_again_at_once_but_once(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), one_a_minute);
	assert_int_equal(submit(&w, 3, 'a'), RELAY_ACCEPTED);
	end(&w, SEND_AGAIN);
	assert_int_equal(w.up.started, 2); /* with the token that it gave back */
	end(&w, SEND_AGAIN);
	assert_int_equal(w.up.started, 2); /* a server that refuses for ever is no busy loop */
	run_at(&w, T0 + 30 * SEC);
	assert_int_equal(w.up.started, 3);
	end(&w, SEND_ACKED);
	assert_null(vm_of(&w, 3)->custody);
	world_close(&w);
}

static void an_upstream_that_refuses_all_is_probed_at_30_s_doubling_to_10_min(void **state _unused_)
{
	static const uint64_t waits[] = { 30, 60, 120, 240, 480, 600, 600 };
	struct world w;

	world_open(&w, defaults(), one_a_minute);
	assert_int_equal(submit(&w, 3, 'a'), RELAY_ACCEPTED);
	assert_int_equal(submit(&w, 4, 'b'), RELAY_ACCEPTED);
	end(&w, SEND_REFUSED);
	assert_true(figures(&w).paused);
	end(&w, SEND_REFUSED); /* it was under way: no second step */
	assert_int_equal(submit(&w, 5, 'c'), RELAY_ACCEPTED);
	for (size_t i = 0; i < ARRAY_SIZE(waits); i++) {
		size_t had = w.up.started;

		run_at(&w, w.now + waits[i] * SEC - 1);
		assert_int_equal(w.up.started, had);
		assert_int_equal(relay_next_event(w.r), w.now + 1);
		run_at(&w, w.now + 1);
		assert_int_equal(w.up.started, had + 1); /* one, token or not */
		run_at(&w, w.now + SEC);
		assert_int_equal(w.up.started, had + 1);
		run_at(&w, w.now); /* and its end counts from when it ends */
		end(&w, i % 2 ? SEND_REFUSED : SEND_FAILED);
		assert_true(figures(&w).paused);
	}
	run_at(&w, w.now + 600 * SEC);
	end(&w, SEND_ACKED);
	assert_false(figures(&w).paused);
	run_at(&w, w.now + 30 * SEC);
	assert_int_equal(w.up.n_sends, 2); /* the others go on where they were */
	world_close(&w);
}

/* It needs a connection, its VM's last send has to be over, and the upstream has to take it. */
static void a_probe_that_cannot_go_yet_is_tried_again_soon(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), one_a_minute);
	assert_int_equal(submit(&w, 3, 'a'), RELAY_ACCEPTED);
	assert_int_equal(submit(&w, 4, 'b'), RELAY_ACCEPTED);
	finish(&w.up, 1, SEND_REFUSED, w.now);
	assert_true(figures(&w).paused);
	assert_int_equal(relay_drop(w.r, vm_of(&w, 4), true, w.now), 0);
	w.up.up.ready = false;
	run_at(&w, T0 + 30 * SEC);
	assert_true(relay_next_event(w.r) > w.now);
	w.up.up.ready = true;
	run_at(&w, T0 + 30 * SEC);
	assert_true(relay_next_event(w.r) > w.now);
	assert_int_equal(w.up.started, 2);
	end(&w, SEND_FAILED);
	w.up.busy = true;
	run_at(&w, T0 + 40 * SEC);
	assert_true(relay_next_event(w.r) > w.now);
	w.up.busy = false;
	/* Not even a token is needed, of which there is none before a minute is over. */
	run_at(&w, T0 + 50 * SEC);
	assert_int_equal(w.up.started, 3);
	end(&w, SEND_ACKED);
	assert_false(figures(&w).paused);
	assert_int_equal(figures(&w).held, 0);
	world_close(&w);
}

static void due_times_stand_still_in_a_pause(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), unlimited);
	assert_int_equal(submit(&w, 3, 'a'), RELAY_ACCEPTED);
	run_at(&w, T0 + 10 * SEC);
	end(&w, SEND_REFUSED);	   /* 20 s before its retry is due */
	run_at(&w, T0 + 25 * SEC); /* before the probe */
	relay_resume(w.r, w.now);
	run_at(&w, T0 + 45 * SEC - 1);
	assert_int_equal(w.up.started, 1);
	run_at(&w, T0 + 45 * SEC);
	assert_int_equal(w.up.started, 2);
	world_close(&w);
}

static void a_reload_ends_a_pause(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), unlimited);
	assert_int_equal(submit(&w, 3, 'a'), RELAY_ACCEPTED);
	end(&w, SEND_REFUSED);
	assert_int_equal(submit(&w, 4, 'b'), RELAY_ACCEPTED);
	assert_int_equal(w.up.n_sends, 0);
	assert_int_equal(relay_set(w.r, &w.s, w.now), 0);
	run_at(&w, w.now);
	assert_int_equal(w.up.n_sends, 1);
	world_close(&w);
}

static void an_operator_s_retry_goes_out_beside_the_due_times(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), unlimited);
	assert_int_equal(relay_retry(w.r, vm_of(&w, 3), w.now), -ENOENT);
	assert_int_equal(submit(&w, 3, 'a'), RELAY_ACCEPTED);
	end(&w, SEND_FAILED);
	run_at(&w, T0 + 10 * SEC);
	assert_int_equal(w.up.started, 1);
	assert_int_equal(relay_due(w.r, vm_of(&w, 3)), T0 + 30 * SEC);
	assert_int_equal(relay_retry(w.r, vm_of(&w, 3), w.now), 0);
	assert_int_equal(w.up.started, 2);
	end(&w, SEND_FAILED);
	assert_int_equal(relay_due(w.r, vm_of(&w, 3)), T0 + 30 * SEC);
	run_at(&w, T0 + 30 * SEC);
	assert_int_equal(w.up.started, 3);
	world_close(&w);
}

static void a_flush_ends_a_pause_and_sends_all(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), unlimited);
	assert_int_equal(relay_flush(w.r, w.now), 0);
	assert_int_equal(submit(&w, 3, 'a'), RELAY_ACCEPTED);
	end(&w, SEND_REFUSED);
	assert_int_equal(submit(&w, 4, 'b'), RELAY_ACCEPTED);
	assert_int_equal(w.up.n_sends, 0);
	assert_int_equal(relay_flush(w.r, w.now), 2);
	assert_int_equal(w.up.n_sends, 2);
	assert_false(figures(&w).paused);
	world_close(&w);
}

static void an_operator_s_drop_loses_content_only_if_he_says_so(void **state _unused_)
{
	struct relay_settings s = defaults();
	struct world w;

	s.cache.keep = HOUR;
	world_open(&w, s, unlimited);
	assert_int_equal(relay_drop(w.r, vm_of(&w, 3), true, w.now), -ENOENT);
	assert_int_equal(submit(&w, 3, 'a'), RELAY_ACCEPTED);
	end(&w, SEND_FAILED);
	assert_int_equal(relay_drop(w.r, vm_of(&w, 3), false, w.now), -EBUSY);
	assert_int_equal(figures(&w).held, 1);
	assert_int_equal(relay_drop(w.r, vm_of(&w, 3), true, w.now), 0);
	assert_int_equal(figures(&w).held, 0);
	assert_int_equal(ended(METRIC_ENDED_OPERATOR), 1);
	run_at(&w, T0 + HOUR / 2);
	assert_int_equal(w.up.started, 1);
	/* The same report is new. */
	assert_int_equal(submit(&w, 3, 'a'), RELAY_ACCEPTED);
	end(&w, SEND_ACKED);
	/* What is kept after its ACK is lost to nobody. */
	assert_int_equal(figures(&w).cache.kept, 1);
	assert_int_equal(relay_drop(w.r, vm_of(&w, 3), false, w.now), 0);
	assert_int_equal(figures(&w).cache.kept, 0);
	assert_int_equal(relay_drop(w.r, vm_of(&w, 3), false, w.now), -ENOENT);
	world_close(&w);
}

static void without_slots_a_report_is_the_probe(void **state _unused_)
{
	struct relay_settings s = defaults();
	struct submission sub;
	enum relay_verdict verdict;
	struct buf *b = content('a');
	struct world w;

	s.cache.slots = 0;
	world_open(&w, s, unlimited);
	assert_int_equal(submit_buf(&w, 3, b, &sub, &verdict), -EINPROGRESS);
	end(&w, SEND_REFUSED);
	assert_int_equal(submit_buf(&w, 3, b, &sub, &verdict), -ENOSPC);
	run_at(&w, w.now + 30 * SEC);
	assert_int_equal(submit_buf(&w, 3, b, &sub, &verdict), -EINPROGRESS);
	end(&w, SEND_ACKED);
	assert_int_equal(submit_buf(&w, 4, b, &sub, &verdict), -EINPROGRESS);
	end(&w, SEND_ACKED);
	buf_unref(b);
	world_close(&w);
}

static void content_is_dropped_after_three_rejections(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), unlimited);
	assert_int_equal(submit(&w, 3, 'a'), RELAY_ACCEPTED);
	end(&w, SEND_REJECTED);
	run_at(&w, T0 + 30 * SEC);
	end(&w, SEND_FAILED); /* of another kind: no rejection */
	run_at(&w, T0 + 90 * SEC);
	end(&w, SEND_REJECTED);
	run_at(&w, T0 + 180 * SEC);
	assert_non_null(vm_of(&w, 3)->custody);
	end(&w, SEND_REJECTED);
	assert_null(vm_of(&w, 3)->custody);
	assert_true(ended(METRIC_ENDED_REJECTED) == 1);
	/* Newer content starts anew, and the same is new. */
	assert_int_equal(submit(&w, 3, 'a'), RELAY_ACCEPTED);
	end(&w, SEND_REJECTED);
	assert_non_null(vm_of(&w, 3)->custody);
	world_close(&w);
}

static void say(struct world *w, bool nack, const char *resource, const char *reason)
{
	struct upstream_ack ack = { .nack = nack,
				    .resource = resource,
				    .resource_len = strlen(resource),
				    .reason = reason };

	w->up.up.on_ack(&ack, w->up.up.userdata, w->now);
	relay_run(w->r, w->now);
	check(w);
}

static double outcome(enum metric_ack_outcome o)
{
	return metric_get(METRIC_ACK_OUTCOMES, o);
}

static void an_ack_on_its_own_ends_custody_of_what_it_settles(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), unlimited);
	w.up.up.acks_apart = true;
	assert_int_equal(submit(&w, 3, 'a'), RELAY_ACCEPTED);
	say(&w, false, "vm:3", ""); /* overtakes the end of the call */
	assert_null(vm_of(&w, 3)->custody);
	end(&w, SEND_DELIVERED);
	assert_true(ended(METRIC_ENDED_ACKED) == 1);
	assert_int_equal(relay_next_event(w.r) > w.now + 20 * HOUR, 1); /* nothing is left behind */
	say(&w, false, "vm:3", "");					/* once more */
	say(&w, false, "99", "");					/* of nobody */
	say(&w, false, "vm:3:extra", "");				/* no CID */
	assert_true(outcome(METRIC_ACK_SETTLED) == 1 && outcome(METRIC_ACK_UNMATCHED) == 3);
	assert_true(metric_get(METRIC_ACKS_RECEIVED, 0) == 4);
	world_close(&w);
}

static void a_late_ack_of_older_content_does_not_end_newer(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), unlimited);
	w.up.up.acks_apart = true;
	assert_int_equal(submit(&w, 3, 'a'), RELAY_ACCEPTED);
	end(&w, SEND_DELIVERED);
	assert_int_equal(submit(&w, 3, 'b'), RELAY_ACCEPTED);
	end(&w, SEND_DELIVERED);
	say(&w, false, "3", "");
	assert_non_null(vm_of(&w, 3)->custody);
	say(&w, false, "3", "");
	assert_null(vm_of(&w, 3)->custody);
	world_close(&w);
}

static void an_ack_for_another_vm_id_is_stale(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), unlimited);
	w.up.up.acks_apart = true;
	assert_int_equal(submit(&w, 3, 'a'), RELAY_ACCEPTED);
	end(&w, SEND_DELIVERED);
	say(&w, false, "other:3", "");
	assert_true(outcome(METRIC_ACK_STALE) == 1);
	assert_non_null(vm_of(&w, 3)->custody);
	world_close(&w);
}

static void only_permanent_nacks_end_custody(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults(), unlimited);
	w.up.up.acks_apart = true;
	assert_int_equal(submit(&w, 3, 'a'), RELAY_ACCEPTED);
	end(&w, SEND_DELIVERED);
	say(&w, true, "vm:3", "try again");
	assert_non_null(vm_of(&w, 3)->custody);
	run_at(&w, T0 + 30 * SEC);
	assert_int_equal(w.up.started, 2);
	end(&w, SEND_DELIVERED);
	say(&w, true, "vm:3", "unsupported action");
	assert_null(vm_of(&w, 3)->custody);
	assert_true(ended(METRIC_ENDED_NACKED) == 1);
	run_at(&w, w.now + HOUR);
	assert_int_equal(w.up.started, 2);
	assert_true(metric_get(METRIC_UPSTREAM_ACKS, METRIC_NACK) == 2);
	world_close(&w);
}

static void acks_by_cid_compare_nothing_else(void **state _unused_)
{
	struct relay_settings s = defaults();
	struct world w;

	s.acks_by_cid = true;
	world_open(&w, s, unlimited);
	w.up.up.acks_apart = true;
	assert_int_equal(submit(&w, 3, 'a'), RELAY_ACCEPTED);
	end(&w, SEND_DELIVERED);
	say(&w, false, "someone-else:3", "");
	assert_int_equal(outcome(METRIC_ACK_SETTLED), 1);
	assert_int_equal(figures(&w).held, 0);
	world_close(&w);
}

/* There several VMs may have one CID, as the upstream sees it. */
static void in_another_namespace_acks_name_vms_by_vm_id(void **state _unused_)
{
	struct relay_settings s = defaults();
	struct world w;

	s.ns = 7;
	world_open(&w, s, unlimited);
	w.up.up.acks_apart = true;
	assert_int_equal(submit(&w, 3, 'a'), RELAY_ACCEPTED); /* of namespace 0 */
	end(&w, SEND_DELIVERED);
	say(&w, false, "3", "");
	say(&w, false, "vm:3", "");
	assert_true(outcome(METRIC_ACK_UNMATCHED) == 2);
	world_close(&w);
}

/* One relay with listeners inside other namespaces. All these reports claim the vm_id "vm". */
static void an_ack_that_could_be_of_two_namespaces_settles_nothing(void **state _unused_)
{
	struct relay_settings s = defaults();
	struct world w;

	s.several_ns = true;
	world_open(&w, s, unlimited);
	w.up.up.acks_apart = true;
	/* The only one with this vm_id, whatever its CID. */
	w.ns = 7;
	assert_int_equal(submit(&w, 3, 'a'), RELAY_ACCEPTED);
	end(&w, SEND_DELIVERED);
	say(&w, false, "3", ""); /* no VM of namespace 0 */
	assert_non_null(vm_of(&w, 3)->custody);
	say(&w, false, "vm:3", "");
	assert_null(vm_of(&w, 3)->custody);
	/* Namespace 0: by CID. */
	w.ns = 0;
	assert_int_equal(submit(&w, 3, 'b'), RELAY_ACCEPTED);
	end(&w, SEND_DELIVERED);
	say(&w, false, "3", "");
	assert_null(vm_of(&w, 3)->custody);
	/* The same CID and vm_id in both. */
	assert_int_equal(submit(&w, 3, 'c'), RELAY_ACCEPTED);
	end(&w, SEND_DELIVERED);
	w.ns = 7;
	assert_int_equal(submit(&w, 3, 'c'), RELAY_ACCEPTED);
	end(&w, SEND_DELIVERED);
	say(&w, false, "3", "");
	say(&w, false, "vm:3", "");
	assert_non_null(vm_of(&w, 3)->custody);
	w.ns = 0;
	assert_non_null(vm_of(&w, 3)->custody);
	assert_true(outcome(METRIC_ACK_UNMATCHED) == 3);
	assert_true(outcome(METRIC_ACK_SETTLED) == 2);
	world_close(&w);
}

/* ---- settings, memory, end ------------------------------------------------------------------------ */

static void bad_settings_are_refused_and_the_old_ones_stay(void **state _unused_)
{
	struct relay_settings bad = defaults();
	struct relay *r = NULL;
	struct world w;

	world_open(&w, defaults(), unlimited);
	bad.retry.factor = 0;
	bad.suppress_unchanged = false;
	assert_int_equal(relay_set(w.r, &bad, w.now), -EINVAL);
	assert_int_equal(relay_new(&bad, w.vms, &w.up.up, half, NULL, &r), -EINVAL);
	assert_null(r);
	deliver(&w, 7, 'a');
	assert_int_equal(submit(&w, 7, 'a'), RELAY_SUPPRESSED);
	world_close(&w);
}

static void submit_survives_every_failing_allocation(void **state _unused_)
{
	static const char what[] = "abca";

	/* Each run fails one allocation further on; the last one finds none to fail. */
	for (unsigned n = 1;; n++) {
		unsigned done = 0;
		struct world w;

		world_open(&w, defaults(), unlimited);
		deliver(&w, 3, 'z');
		fail_at = n;
		for (size_t i = 0; i < sizeof(what) - 1; i++) {
			_cleanup_(buf_unrefp)
			struct buf *b = NULL;
			enum relay_verdict verdict = RELAY_NEW;
			struct submission sub;
			unsigned left = fail_at;
			int r;

			fail_at = 0;
			b = content(what[i]);
			fail_at = left;
			r = submit_buf(&w, 7, b, &sub, &verdict);
			assert_true(r == 0 || r == -ENOMEM);
			done += r == 0;
			relay_run(w.r, w.now);
			check(&w);
		}
		if (fail_at > 0)
			n = UINT32_MAX;
		fail_at = 0;
		/* What was accepted is delivered, if a moment later. */
		for (unsigned i = 0; figures(&w).held > 0; i++) {
			assert_true(i < 20);
			run_at(&w, w.now + SEC);
			while (w.up.n_sends > 0)
				end(&w, SEND_ACKED);
		}
		assert_true(done >= 3);
		assert_int_equal(submit(&w, 7, 'd'), RELAY_ACCEPTED);
		world_close(&w);
		if (n == UINT32_MAX)
			break;
		assert_true(n < 1000);
	}
}

/* The kept content of record gives way to newer content, which there is then no memory to send: nobody
 * can say any more what offers call the record, until a report brings its name. */
static void a_record_whose_bytes_are_gone_is_named_by_its_next_report(void **state _unused_)
{
	_cleanup_(buf_unrefp)
	struct buf *a = NULL;
	_cleanup_(buf_unrefp)
	struct buf *b = NULL;
	struct relay_settings s = defaults();
	bool seen = false;
	uint64_t name;

	if (!failures_reach_us())
		skip();
	a = content('a');
	b = content('b');
	name = name_of(a);
	s.cache.keep = 48 * HOUR;
	for (unsigned n = 1; !seen; n++) {
		enum relay_verdict verdict = RELAY_NEW;
		struct submission sub;
		struct world w;
		int r;

		assert_true(n < 1000);
		world_open(&w, s, unlimited);
		assert_int_equal(submit_unnamed(&w, 7, a, &sub), RELAY_ACCEPTED);
		end(&w, SEND_ACKED);
		assert_int_equal(figures(&w).cache.kept, 1);
		fail_at = n;
		r = submit_unnamed(&w, 7, b, &sub);
		fail_at = 0;
		if (r == -ENOMEM && figures(&w).cache.kept == 0) {
			seen = true;
			assert_int_equal(figures(&w).held, 0);
			assert_int_equal(offer(&w, 7, 'a'), RELAY_NEW);
			assert_int_equal(relay_known(w.r, vm_of(&w, 7), buf_len(a), digest_of(a),
						     &name, METRIC_KERNEL, w.now, &verdict),
					 0);
			assert_int_equal(verdict, RELAY_NEW);
			/* By its digest it is known. */
			assert_int_equal(known(&w, 7, 'a'), RELAY_SUPPRESSED);
			assert_int_equal(submit(&w, 7, 'a'), RELAY_SUPPRESSED);
			assert_int_equal(offer(&w, 7, 'a'), RELAY_SUPPRESSED);
			/* And what found no memory was never taken. */
			assert_int_equal(submit(&w, 7, 'b'), RELAY_ACCEPTED);
		}
		world_close(&w);
	}
}

static void sends_may_end_after_the_relay(void **state _unused_)
{
	_cleanup_(buf_unrefp)
	struct buf *b = content('a');
	enum relay_verdict verdict;
	struct submission sub;
	struct world w;

	world_open(&w, defaults(), unlimited);
	for (uint32_t cid = 3; cid < 20; cid++)
		assert_int_equal(submit(&w, cid, 'a'), RELAY_ACCEPTED);
	world_close(&w);
	world_open(&w, no_slots(), unlimited);
	assert_int_equal(submit_buf(&w, 7, b, &sub, &verdict), -EINPROGRESS);
	world_close(&w);
	assert_int_equal(w.decided, 0);
}

/* ---- an hour of life ------------------------------------------------------------------------------- */

#define LIFE_VMS  500
#define LIFE_SUBS 64

static uint64_t rng;

static uint32_t rnd(uint32_t n)
{
	rng = rng * 6364136223846793005 + 1442695040888963407;
	return (uint32_t)((rng >> 33) % n);
}

struct life {
	struct world w;
	struct submission subs[LIFE_SUBS]; /* in progress, without a cache */
	struct buf *contents[4];
};

static void life_report(struct life *l)
{
	uint32_t cid = 3 + rnd(rnd(4) ? 20 : LIFE_VMS); /* some come often */
	struct buf *b = l->contents[rnd(ARRAY_SIZE(l->contents))];
	enum relay_verdict verdict = RELAY_NEW;
	uint64_t name = name_of(b);
	struct submission *sub = NULL;
	int r;

	switch (rnd(4)) {
	case 0:
		if (relay_offer(l->w.r, vm_of(&l->w, cid), buf_len(b), name, l->w.now) != RELAY_NEW)
			return;
		break;
	case 1:
		r = relay_known(l->w.r, vm_of(&l->w, cid), buf_len(b), digest_of(b),
				rnd(2) ? &name : NULL, METRIC_KERNEL, l->w.now, &verdict);
		assert_int_equal(r, 0);
		if (verdict != RELAY_NEW)
			return;
		break;
	default:
		break;
	}
	for (size_t i = 0; i < LIFE_SUBS && !sub; i++)
		if (!l->subs[i].report.waits_for)
			sub = &l->subs[i];
	assert_non_null(sub);
	l->w.framed = rnd(2);
	r = submit_buf(&l->w, cid, b, sub, &verdict);
	assert_true(r == 0 || r == -EINPROGRESS || r == -ENOSPC);
	assert_int_equal(r == -EINPROGRESS, sub->report.waits_for != NULL);
	if (r == 0)
		assert_int_not_equal(verdict, RELAY_NEW);
	if (r == 0 && verdict != RELAY_SUPPRESSED)
		assert_non_null(vm_of(&l->w, cid)->custody);
}

/* An ACK or NACK on the stream: of whom, and for which of his contents, is anybody's guess. */
static void life_ack(struct life *l)
{
	static const char *const reasons[] = { "try again", "", TRACKER_REASON_RATE,
					       "unsupported action" };
	uint32_t cid = 3 + rnd(rnd(4) ? 20 : LIFE_VMS);
	bool nack = rnd(4) == 0;
	char resource[40];

	snprintf(resource, sizeof(resource), rnd(8) ? "vm:%u" : rnd(2) ? "%u" : "other:%u", cid);
	say(&l->w, nack, resource, nack ? reasons[rnd(ARRAY_SIZE(reasons))] : "");
}

static void life_leave(struct life *l)
{
	struct submission *sub = &l->subs[rnd(LIFE_SUBS)];

	relay_forget(l->w.r, &sub->report);
}

static void life_reload(struct life *l)
{
	static const size_t slots[] = { 0, 1, 5, 50, 100, 100, 100 };
	struct relay_settings s = defaults();

	s.cache.slots = slots[rnd(ARRAY_SIZE(slots))];
	s.cache.bytes = (uint64_t)(10 + rnd(500)) * 8192;
	s.cache.ttl = (1 + rnd(60)) * MIN1;
	s.slots_auto = s.cache.slots && rnd(3) == 0;
	s.custody_max_age = (1 + rnd(60)) * MIN1;
	s.suppress_unchanged = rnd(2);
	s.refresh_interval = rnd(2) ? rnd(30) * MIN1 : 0;
	s.dedup_bytes = rnd(4) == 0;
	s.retry.exponential = rnd(2);
	assert_int_equal(relay_set(l->w.r, &s, l->w.now), 0);
}

/* Where ACKs come apart, a call's success is none. */
static void life_finish(struct life *l, enum send_result result)
{
	struct world *w = &l->w;

	if (result == SEND_ACKED && w->up.up.acks_apart)
		result = SEND_DELIVERED;
	finish(&w->up, rnd((uint32_t)w->up.n_sends), result, w->now);
}

static void life_step(struct life *l)
{
	static const enum send_result results[] = { SEND_ACKED,	  SEND_ACKED,	      SEND_ACKED,
						    SEND_FAILED,  SEND_NOT_DELIVERED, SEND_AGAIN,
						    SEND_REJECTED };
	struct world *w = &l->w;
	uint32_t what = rnd(100);

	if (what < 45)
		life_report(l);
	else if (what < 70 && w->up.n_sends > 0)
		life_finish(l, results[rnd(ARRAY_SIZE(results))]);
	else if (what < 80)
		life_ack(l);
	else if (what < 82)
		w->up.busy = !w->up.busy;
	else if (what < 83)
		life_leave(l);
	else if (what < 84 && rnd(5) == 0)
		life_reload(l);
	else
		w->now += rnd(rnd(20) ? SEC : 20 * SEC);
	/* The daemon does what is due after whatever happened; a long sweep in several turns. */
	for (unsigned turns = 0; turns == 0 || relay_next_event(w->r) <= w->now; turns++) {
		assert_true(turns < 10);
		relay_run(w->r, w->now);
	}
	check(w);
}

static size_t held_by_vms(const struct world *w)
{
	size_t n = 0;

	for (const struct vm *vm = vm_table_next(w->vms, NULL); vm; vm = vm_table_next(w->vms, vm))
		n += vm->custody != NULL;
	return n;
}

static size_t waiting_subs(const struct life *l)
{
	size_t n = 0;

	for (size_t i = 0; i < LIFE_SUBS; i++)
		n += l->subs[i].report.waits_for != NULL;
	return n;
}

static void live(uint64_t seed)
{
	struct relay_settings s = defaults();
	struct life *l = allocate(sizeof(*l));
	struct world *w = &l->w;

	assert_non_null(l);
	memset(l, 0, sizeof(*l));
	rng = seed;
	for (size_t i = 0; i < ARRAY_SIZE(l->contents); i++)
		l->contents[i] = content_sized((char)('a' + i), 1 + rnd(9000));
	s.cache.keep = rnd(2) ? 24 * HOUR : 0;
	world_open(w, s, rnd(2) ? one_a_minute : unlimited);
	w->up.up.acks_apart = rnd(2);
	while (w->now < T0 + HOUR) {
		life_step(l);
		if (rnd(100) == 0)
			assert_true(held_by_vms(w) + w->up.n_sends >= figures(w).held);
	}
	/* In the end everything is delivered, or ends by its age: nothing hangs. */
	w->up.busy = false;
	w->up.up.acks_apart = false;
	s = defaults();
	assert_int_equal(relay_set(w->r, &s, w->now), 0);
	while (figures(w).held > 0) {
		while (w->up.n_sends > 0)
			finish(&w->up, 0, SEND_ACKED, w->now);
		assert_true(w->now < T0 + 30 * HOUR);
		if (figures(w).held > 0)
			run_at(w, relay_next_event(w->r));
		check(w);
	}
	assert_int_equal(held_by_vms(w), 0);
	assert_int_equal(waiting_subs(l), 0);
	world_close(w);
	for (size_t i = 0; i < ARRAY_SIZE(l->contents); i++)
		buf_unref(l->contents[i]);
	free(l);
}

static void an_hour_of_random_life_keeps_the_books(void **state _unused_)
{
	const char *one = getenv("VSR_SEED"), *many = getenv("VSR_SEEDS");
	uint64_t seed = one ? strtoull(one, NULL, 0) : (uint64_t)time(NULL);
	unsigned n = many ? (unsigned)strtoul(many, NULL, 0) : one ? 1 : 20;

	assert_true(n > 0);
	print_message("first seed %llu, %u seeds\n", (unsigned long long)seed, n);
	for (unsigned i = 0; i < n; i++)
		live(seed + i);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(custody_begins_with_the_acceptance_and_ends_with_the_ack),
		cmocka_unit_test(every_acceptance_is_a_generation_a_reforward_too),
		cmocka_unit_test(newer_content_supersedes_older),
		cmocka_unit_test(late_result_of_older_content_does_not_end_newer),
		cmocka_unit_test(a_send_keeps_its_payload_whatever_becomes_of_custody),
		cmocka_unit_test(custody_ends_at_exactly_custody_max_age),
		cmocka_unit_test(a_lost_cache_entry_ends_custody_with_its_reason),
		cmocka_unit_test(framed_content_is_never_lost_to_another_vm),
		cmocka_unit_test(a_framed_repeat_of_raw_content_protects_it),
		cmocka_unit_test(auto_slots_are_there_with_the_vm_that_needs_them),
		cmocka_unit_test(duplicate_of_content_in_custody_adds_nothing),
		cmocka_unit_test(what_is_new_is_not_counted_before_it_is_read),
		cmocka_unit_test(known_digest_under_another_header_is_a_digest_mismatch),
		cmocka_unit_test(an_offer_finds_raw_content_that_is_in_memory),
		cmocka_unit_test(raw_content_is_named_before_it_goes),
		cmocka_unit_test(length_counts_beside_the_digest),
		cmocka_unit_test(acked_content_is_suppressed_until_the_refresh_interval),
		cmocka_unit_test(refresh_interval_0_never_refreshes),
		cmocka_unit_test(acked_content_is_new_again_where_nothing_is_suppressed),
		cmocka_unit_test(only_an_ack_leaves_the_digest_of_record),
		cmocka_unit_test(the_record_is_of_the_last_content_alone),
		cmocka_unit_test(equal_digest_of_other_bytes_is_new_content_if_cached),
		cmocka_unit_test(dedup_bytes_decides_nothing_by_digest_alone),
		cmocka_unit_test(what_was_acked_and_kept_is_there_to_compare),
		cmocka_unit_test(kept_content_is_forwarded_again_where_unchanged_says_so),
		cmocka_unit_test(kept_content_goes_24_h_after_its_vm_was_heard_last),
		cmocka_unit_test(a_reload_that_keeps_nothing_frees_what_was_kept),
		cmocka_unit_test(packed_content_is_resent_and_recognised_like_any),
		cmocka_unit_test(packed_raw_content_is_named_before_it_goes),
		cmocka_unit_test(dedup_bytes_unpacks_to_compare),
		cmocka_unit_test(an_idle_vm_costs_less_than_512_bytes_besides_its_content),
		cmocka_unit_test(damaged_content_ends_custody_and_is_counted),
		cmocka_unit_test(a_limited_report_waits_for_the_token_and_is_counted_once),
		cmocka_unit_test(a_content_is_counted_as_limited_once_however_often_it_is),
		cmocka_unit_test(limited_without_an_ack_for_4_h_is_stale_ack),
		cmocka_unit_test(a_token_comes_back_only_when_nothing_can_have_been_delivered),
		cmocka_unit_test(an_upstream_that_takes_nothing_costs_no_token_and_no_resend),
		cmocka_unit_test(eight_in_flight_and_one_per_vm),
		cmocka_unit_test(a_failed_send_is_retried_at_30_90_180_and_300_s),
		cmocka_unit_test(a_retry_that_comes_due_in_flight_goes_out_when_it_is_back),
		cmocka_unit_test(delivered_is_no_ack_where_acks_come_apart),
		cmocka_unit_test(with_eight_unsettled_sends_the_next_waits),
		cmocka_unit_test(without_slots_the_answer_waits_for_the_send),
		cmocka_unit_test(without_slots_what_cannot_be_sent_at_once_is_dropped),
		cmocka_unit_test(a_connection_that_left_is_not_told),
		cmocka_unit_test(newer_content_sent_without_a_cache_ends_older_custody),
		cmocka_unit_test(older_content_sent_without_a_cache_is_not_the_record),
		cmocka_unit_test(contents_wait_for_an_upstream_that_is_not_there),
		cmocka_unit_test(what_did_not_leave_goes_again_at_once_but_once),
		cmocka_unit_test(an_upstream_that_refuses_all_is_probed_at_30_s_doubling_to_10_min),
		cmocka_unit_test(a_probe_that_cannot_go_yet_is_tried_again_soon),
		cmocka_unit_test(due_times_stand_still_in_a_pause),
		cmocka_unit_test(a_reload_ends_a_pause),
		cmocka_unit_test(an_operator_s_retry_goes_out_beside_the_due_times),
		cmocka_unit_test(a_flush_ends_a_pause_and_sends_all),
		cmocka_unit_test(an_operator_s_drop_loses_content_only_if_he_says_so),
		cmocka_unit_test(without_slots_a_report_is_the_probe),
		cmocka_unit_test(content_is_dropped_after_three_rejections),
		cmocka_unit_test(an_ack_on_its_own_ends_custody_of_what_it_settles),
		cmocka_unit_test(a_late_ack_of_older_content_does_not_end_newer),
		cmocka_unit_test(an_ack_for_another_vm_id_is_stale),
		cmocka_unit_test(only_permanent_nacks_end_custody),
		cmocka_unit_test(acks_by_cid_compare_nothing_else),
		cmocka_unit_test(in_another_namespace_acks_name_vms_by_vm_id),
		cmocka_unit_test(an_ack_that_could_be_of_two_namespaces_settles_nothing),
		cmocka_unit_test(bad_settings_are_refused_and_the_old_ones_stay),
		cmocka_unit_test(submit_survives_every_failing_allocation),
		cmocka_unit_test(a_record_whose_bytes_are_gone_is_named_by_its_next_report),
		cmocka_unit_test(sends_may_end_after_the_relay),
		cmocka_unit_test(an_hour_of_random_life_keeps_the_books),
	};

	/* Many seeds are a suite of their own. */
	if (getenv("VSR_SEEDS"))
		cmocka_set_test_filter("an_hour_*");
	return cmocka_run_group_tests(tests, NULL, NULL);
}
