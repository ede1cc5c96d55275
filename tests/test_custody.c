/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Custody with a store (SPEC 2, 7): it begins when the content is durable, and what is durable stays
 * until something newer is, or custody ends. Clock, upstream and store are fake. The last test is
 * random life that is killed at any time: what was answered must be in the store or upstream. Its
 * first seed is printed; VSR_SEED=n runs one again, VSR_SEEDS=n that many from it on.
 */
#include "relay_test.h"

#define MANY 64
#define VMS  4

/* ---- a store and an upstream that do what the test says -------------------------------------------- */

struct file {
	struct store_content content;
	struct buf *payload;
	bool durable, dropped;
};

struct fake_store {
	struct store store;
	int refuses; /* what write() returns; 0: takes it */
	struct store_write *writes[MANY];
	size_t n_writes;
	struct store_read *reads[MANY];
	size_t n_reads;
	struct file files[MANY];
	size_t n_files;
};

static struct file *find(struct fake_store *f, struct vsr_vm_id id, uint64_t generation)
{
	for (size_t i = 0; i < f->n_files; i++)
		if (vm_id_equal(f->files[i].content.vm, id) &&
		    f->files[i].content.generation == generation)
			return &f->files[i];
	return NULL;
}

static void remove_file(struct fake_store *f, struct file *file)
{
	buf_unref(file->payload);
	*file = f->files[--f->n_files];
}

static int store_write(struct store *store, struct store_write *w)
{
	struct fake_store *f = container_of(store, struct fake_store, store);
	struct file *file;

	assert_true(store->ready || f->refuses);
	if (f->refuses)
		return f->refuses;
	assert_int_equal(w->content.length, buf_len(w->payload));
	file = find(f, w->content.vm, w->content.generation);
	assert_null(file);
	assert_true(f->n_files < MANY && f->n_writes < MANY);
	f->files[f->n_files++] =
		(struct file){ .content = w->content, .payload = buf_ref(w->payload) };
	f->writes[f->n_writes++] = w;
	return 0;
}

static int store_read(struct store *store, struct store_read *rd)
{
	struct fake_store *f = container_of(store, struct fake_store, store);
	const struct file *file = find(f, rd->vm, rd->generation);

	if (!file)
		return -ENOENT;
	assert_true(file->durable && f->n_reads < RELAY_IN_FLIGHT_MAX);
	f->reads[f->n_reads++] = rd;
	return 0;
}

static void store_drop(struct store *store, struct vsr_vm_id vm, uint64_t first, uint64_t last)
{
	struct fake_store *f = container_of(store, struct fake_store, store);

	for (size_t i = f->n_files; i-- > 0;) {
		struct file *file = &f->files[i];

		if (!vm_id_equal(file->content.vm, vm) || file->content.generation < first ||
		    file->content.generation > last)
			continue;
		if (file->durable)
			remove_file(f, file);
		else
			file->dropped = true;
	}
}

static uint64_t store_newest(const struct store *store, struct vsr_vm_id vm)
{
	const struct fake_store *f = container_of(store, const struct fake_store, store);
	uint64_t newest = 0;

	for (size_t i = 0; i < f->n_files; i++)
		if (vm_id_equal(f->files[i].content.vm, vm))
			newest = MAX(newest, f->files[i].content.generation);
	return newest;
}

static const struct store_ops store_ops = {
	.write = store_write,
	.read = store_read,
	.drop = store_drop,
	.newest = store_newest,
};

/* The oldest write ends: the worker's queue is first in, first out. */
static void written(struct fake_store *f, int result, uint64_t now)
{
	struct store_write *w = f->writes[0];
	struct file *file = find(f, w->content.vm, w->content.generation);

	assert_true(f->n_writes > 0);
	f->n_writes--;
	memmove(f->writes, f->writes + 1, f->n_writes * sizeof(f->writes[0]));
	file->durable = true;
	if (result < 0 || file->dropped)
		remove_file(f, file);
	w->done(w, result, now);
}

static void was_read(struct fake_store *f, int result, uint64_t now)
{
	struct store_read *rd = f->reads[0];
	const struct file *file = find(f, rd->vm, rd->generation);

	assert_true(f->n_reads > 0);
	f->n_reads--;
	memmove(f->reads, f->reads + 1, f->n_reads * sizeof(f->reads[0]));
	if (result == 0 && !file)
		result = -ENOENT;
	rd->done(rd, result, result == 0 ? file->payload : NULL, now);
}

struct fake_upstream {
	struct upstream up;
	struct upstream_send *sends[RELAY_IN_FLIGHT_MAX];
	size_t n_sends, started;
	char last; /* what was sent last */
};

static int fake_send(struct upstream *u, struct upstream_send *s)
{
	struct fake_upstream *f = container_of(u, struct fake_upstream, up);

	assert_true(f->n_sends < RELAY_IN_FLIGHT_MAX);
	f->sends[f->n_sends++] = s;
	f->started++;
	f->last = (char)buf_data(s->payload)[0];
	return 0;
}

static const struct upstream_ops upstream_ops = { .name = "fake", .send = fake_send };

/* ---- the world ------------------------------------------------------------------------------------- */

struct world {
	struct vm_table *vms;
	struct fake_upstream up;
	struct fake_store store;
	struct relay *r;
	struct relay_settings settings;
	uint64_t now;
};

struct sub {
	struct relay_report report;
	unsigned decided;
	enum reason reason;
	enum relay_verdict verdict;
	int result;
	bool left;
};

static struct relay_settings defaults(void)
{
	return settings_with(4 * HOUR);
}

static void start(struct world *w)
{
	assert_int_equal(vm_table_new(VM_TABLE_MAX, unlimited, unlimited, &w->vms), 0);
	assert_int_equal(relay_new(&w->settings, w->vms, &w->up.up, half, NULL, &w->r), 0);
	relay_set_store(w->r, &w->store.store);
}

static void world_open(struct world *w, struct relay_settings s)
{
	memset(w, 0, sizeof(*w));
	metrics_reset();
	w->now = T0;
	w->settings = s;
	w->up.up.ops = &upstream_ops;
	w->up.up.ready = true;
	w->store.store.ops = &store_ops;
	w->store.store.ready = true;
	start(w);
}

static struct relay_figures figures(const struct world *w)
{
	struct relay_figures f;

	relay_figures(w->r, w->now, &f);
	return f;
}

static void check(const struct world *w)
{
	struct relay_figures f = figures(w);

	metric_set(METRIC_CONTENTS_HELD, (double)f.held);
	assert_int_equal(metrics_conservation(), 0);
	assert_int_equal(f.in_flight, w->up.n_sends + w->store.n_reads);
	assert_int_equal(f.storing, w->store.n_writes);
	assert_true(f.unspooled <= f.held);
}

static void run(struct world *w)
{
	relay_run(w->r, w->now);
	check(w);
}

/* The process ends: what the disk has stays. */
static void die(struct world *w)
{
	w->r = relay_free(w->r);
	while (w->up.n_sends > 0) {
		struct upstream_send *s = w->up.sends[--w->up.n_sends];

		s->done(s, SEND_FAILED, w->now);
	}
	while (w->store.n_reads > 0)
		was_read(&w->store, 0, w->now);
	while (w->store.n_writes > 0)
		written(&w->store, -EIO, w->now);
	w->vms = vm_table_free(w->vms);
}

static void world_close(struct world *w)
{
	check(w);
	die(w);
	while (w->store.n_files > 0)
		remove_file(&w->store, &w->store.files[0]);
}

static struct vm *vm_of(struct world *w, uint32_t cid)
{
	unsigned int n = fail_at;
	struct vm *vm;

	fail_at = 0;
	assert_int_equal(vm_table_obtain(w->vms, (struct vsr_vm_id){ .cid = cid }, w->now, &vm), 0);
	fail_at = n;
	return vm;
}

static struct buf *content(char what)
{
	return content_sized(what, 3000);
}

static void on_decided(struct relay_report *report, enum reason reason, uint64_t now)
{
	struct sub *s = container_of(report, struct sub, report);

	assert_true(now > 0 && !s->left);
	s->decided++;
	s->reason = reason;
	s->verdict = report->verdict;
}

static int submit(struct world *w, struct sub *s, uint32_t cid, char what, bool framed)
{
	struct buf *b = content(what);

	*s = (struct sub){
		.report = { .vm = vm_of(w, cid),
			    .content = b,
			    .digest = digest_of(b),
			    .xxh64 = ~digest_of(b),
			    .framed = framed,
			    .vm_id = "vm",
			    .vm_id_len = 2,
			    .decided = on_decided },
		.verdict = RELAY_NEW,
	};
	s->result = relay_submit(w->r, &s->report, w->now, &s->verdict);
	buf_unref(b);
	s->report.content = NULL;
	check(w);
	return s->result;
}

static void write_ends(struct world *w, int result)
{
	written(&w->store, result, w->now);
	run(w);
}

static void read_ends(struct world *w, int result)
{
	was_read(&w->store, result, w->now);
	run(w);
}

static void send_ends(struct world *w, enum send_result result)
{
	struct upstream_send *s = w->up.sends[0];

	assert_true(w->up.n_sends > 0);
	w->up.n_sends--;
	memmove(w->up.sends, w->up.sends + 1, w->up.n_sends * sizeof(w->up.sends[0]));
	s->done(s, result, w->now);
	run(w);
}

static void run_at(struct world *w, uint64_t now)
{
	assert_true(now >= w->now);
	w->now = now;
	run(w);
}

static void assert_decided(const struct sub *s, enum reason reason, enum relay_verdict verdict)
{
	assert_int_equal(s->decided, 1);
	assert_int_equal(s->reason, reason);
	if (reason == REASON_NONE)
		assert_int_equal(s->verdict, verdict);
}

/* Accepted and durable, not sent yet. */
static void accept(struct world *w, uint32_t cid, char what)
{
	struct sub s;

	assert_int_equal(submit(w, &s, cid, what, true), -EINPROGRESS);
	written(&w->store, 0, w->now);
	assert_decided(&s, REASON_NONE, RELAY_ACCEPTED);
	check(w);
}

static enum relay_verdict offer(struct world *w, uint32_t cid, char what)
{
	struct buf *b = content(what);
	enum relay_verdict v = relay_offer(w->r, vm_of(w, cid), buf_len(b), ~digest_of(b), w->now);

	buf_unref(b);
	return v;
}

static enum relay_verdict known(struct world *w, uint32_t cid, char what, bool framed)
{
	struct buf *b = content(what);
	uint64_t xxh64 = ~digest_of(b);
	enum relay_verdict v;

	assert_int_equal(relay_known(w->r, vm_of(w, cid), buf_len(b), digest_of(b),
				     framed ? &xxh64 : NULL, METRIC_KERNEL, w->now, &v),
			 0);
	buf_unref(b);
	return v;
}

/* ---- custody begins -------------------------------------------------------------------------------- */

static void custody_begins_when_the_content_is_durable(void **state _unused_)
{
	struct world w;
	struct sub s;

	for (int framed = 0; framed < 2; framed++) {
		world_open(&w, defaults());
		assert_int_equal(submit(&w, &s, 3, 'a', framed), -EINPROGRESS);
		run(&w);
		assert_int_equal(figures(&w).held, 1);
		assert_null(vm_of(&w, 3)->custody);
		assert_int_equal(w.up.started, 0);
		assert_int_equal(s.decided, 0);
		write_ends(&w, 0);
		assert_decided(&s, REASON_NONE, RELAY_ACCEPTED);
		assert_int_equal(figures(&w).unspooled, 0);
		assert_int_equal(w.up.started, 1);
		send_ends(&w, SEND_ACKED);
		assert_int_equal(ended(METRIC_ENDED_ACKED), 1);
		assert_int_equal(w.store.n_files, 0);
		world_close(&w);
	}
}

static void a_repeat_of_what_is_being_stored_waits_for_the_same_result(void **state _unused_)
{
	struct sub s[3];
	struct world w;

	world_open(&w, defaults());
	for (size_t i = 0; i < 3; i++)
		assert_int_equal(submit(&w, &s[i], 3, 'a', i != 1), -EINPROGRESS);
	assert_int_equal(w.store.n_writes, 1);
	assert_int_equal(figures(&w).held, 3);
	/* What is not read could not wait. */
	assert_int_equal(offer(&w, 3, 'a'), RELAY_NEW);
	assert_int_equal(known(&w, 3, 'a', true), RELAY_NEW);
	write_ends(&w, 0);
	assert_decided(&s[0], REASON_NONE, RELAY_ACCEPTED);
	assert_decided(&s[1], REASON_NONE, RELAY_DUPLICATE);
	assert_decided(&s[2], REASON_NONE, RELAY_DUPLICATE);
	assert_int_equal(metric_get(METRIC_DUPLICATES, METRIC_DAEMON), 2);
	assert_int_equal(offer(&w, 3, 'a'), RELAY_DUPLICATE);
	world_close(&w);

	world_open(&w, defaults());
	for (size_t i = 0; i < 3; i++)
		assert_int_equal(submit(&w, &s[i], 3, 'a', i != 1), -EINPROGRESS);
	w.store.store.ready = false;
	write_ends(&w, -ENOSPC);
	assert_decided(&s[0], REASON_NO_SPOOL, RELAY_NEW);
	assert_decided(&s[1], REASON_NONE, RELAY_ACCEPTED); /* raw: held in memory */
	assert_decided(&s[2], REASON_NO_SPOOL, RELAY_NEW);
	assert_int_equal(metric_get(METRIC_DROPPED, METRIC_DROPPED_NO_SPOOL), 2);
	assert_int_equal(metric_get(METRIC_UNSPOOLED, 0), 1);
	assert_int_equal(figures(&w).unspooled, 1);
	world_close(&w);
}

static void older_content_that_comes_again_behind_newer_is_new(void **state _unused_)
{
	struct sub s[2];
	struct world w;

	world_open(&w, defaults());
	accept(&w, 3, 'a');
	assert_int_equal(submit(&w, &s[0], 3, 'b', true), -EINPROGRESS);
	assert_int_equal(known(&w, 3, 'a', false), RELAY_NEW);
	assert_int_equal(submit(&w, &s[1], 3, 'a', true), -EINPROGRESS);
	write_ends(&w, 0);
	write_ends(&w, 0);
	assert_decided(&s[1], REASON_NONE, RELAY_ACCEPTED);
	assert_int_equal(ended(METRIC_ENDED_SUPERSEDED), 2);
	while (w.up.n_sends > 0)
		send_ends(&w, SEND_ACKED);
	assert_int_equal(w.up.last, 'a');
	assert_int_equal(w.store.n_files, 0);
	world_close(&w);
}

static void older_content_stays_until_the_newer_is_durable(void **state _unused_)
{
	struct world w;
	struct sub s;

	world_open(&w, defaults());
	w.up.up.ready = false;
	accept(&w, 3, 'a');
	assert_int_equal(submit(&w, &s, 3, 'b', true), -EINPROGRESS);
	assert_int_equal(w.store.n_files, 2);
	assert_int_equal(ended(METRIC_ENDED_SUPERSEDED), 0);
	write_ends(&w, 0);
	assert_int_equal(w.store.n_files, 1);
	assert_int_equal(w.store.files[0].content.generation, 2);
	assert_int_equal(ended(METRIC_ENDED_SUPERSEDED), 1);
	/* And stays if that fails. */
	assert_int_equal(submit(&w, &s, 3, 'c', true), -EINPROGRESS);
	write_ends(&w, -EIO);
	assert_int_equal(w.store.files[0].content.generation, 2);
	assert_non_null(vm_of(&w, 3)->custody);
	world_close(&w);
}

static void an_ack_for_the_old_while_the_new_is_stored_ends_the_old_alone(void **state _unused_)
{
	struct world w;
	struct sub s;

	world_open(&w, defaults());
	accept(&w, 3, 'a');
	run(&w);
	assert_int_equal(submit(&w, &s, 3, 'b', true), -EINPROGRESS);
	send_ends(&w, SEND_ACKED);
	assert_int_equal(ended(METRIC_ENDED_ACKED), 1);
	assert_int_equal(w.store.n_files, 1);
	write_ends(&w, 0);
	assert_decided(&s, REASON_NONE, RELAY_ACCEPTED);
	assert_int_equal(w.up.last, 'b');
	send_ends(&w, SEND_ACKED);
	assert_int_equal(ended(METRIC_ENDED_ACKED), 2);
	assert_int_equal(w.store.n_files, 0);
	world_close(&w);
}

static void a_connection_that_left_does_not_end_what_is_stored(void **state _unused_)
{
	struct world w;
	struct sub s;

	world_open(&w, defaults());
	assert_int_equal(submit(&w, &s, 3, 'a', true), -EINPROGRESS);
	relay_forget(w.r, &s.report);
	s.left = true;
	write_ends(&w, 0);
	assert_int_equal(s.decided, 0);
	assert_non_null(vm_of(&w, 3)->custody);
	world_close(&w);
}

/* ---- a disk that takes nothing ------------------------------------------------------------------------ */

static void while_the_store_takes_nothing_framed_reports_are_refused(void **state _unused_)
{
	static const int refusals[] = { -EIO, -ENOSPC, -EBUSY };
	struct world w;
	struct sub s;

	for (size_t i = 0; i < ARRAY_SIZE(refusals); i++) {
		world_open(&w, defaults());
		accept(&w, 3, 'a');
		w.store.refuses = refusals[i];
		assert_int_equal(submit(&w, &s, 3, 'b', true), -EAGAIN);
		assert_int_equal(submit(&w, &s, 4, 'b', true), -EAGAIN);
		assert_int_equal(metric_get(METRIC_DROPPED, METRIC_DROPPED_NO_SPOOL), 2);
		/* Nothing was evicted, and what is durable is still known. */
		assert_int_equal(figures(&w).held, 1);
		assert_int_equal(submit(&w, &s, 3, 'a', true), 0);
		assert_int_equal(s.verdict, RELAY_DUPLICATE);
		world_close(&w);
	}
}

static void raw_reports_are_held_in_memory_and_stored_when_there_is_room(void **state _unused_)
{
	struct world w;
	struct sub s;

	world_open(&w, defaults());
	w.up.up.ready = false;
	w.store.refuses = -EIO;
	w.store.store.ready = false;
	assert_int_equal(submit(&w, &s, 3, 'a', false), 0);
	assert_int_equal(s.verdict, RELAY_ACCEPTED);
	assert_int_equal(metric_get(METRIC_UNSPOOLED, 0), 1);
	/* A framed agent would take "it is here" for durable. */
	assert_int_equal(offer(&w, 3, 'a'), RELAY_NEW);
	assert_int_equal(known(&w, 3, 'a', true), RELAY_NEW);
	assert_int_equal(submit(&w, &s, 3, 'a', true), -EAGAIN);
	assert_int_equal(known(&w, 3, 'a', false), RELAY_DUPLICATE);
	assert_int_equal(figures(&w).unspooled, 1);
	run_at(&w, T0 + HOUR);
	assert_int_equal(w.store.n_writes, 0);
	w.store.refuses = 0;
	w.store.store.ready = true;
	run(&w);
	assert_int_equal(w.store.n_writes, 1);
	assert_int_equal(w.store.files[0].content.age, HOUR);
	assert_int_equal(w.store.files[0].content.generation, 1);
	write_ends(&w, 0);
	assert_int_equal(figures(&w).unspooled, 0);
	assert_int_equal(offer(&w, 3, 'a'), RELAY_DUPLICATE);
	/* It may leave memory now, and custody goes on. */
	run_at(&w, T0 + 9 * HOUR);
	assert_int_equal(figures(&w).cache.slots_used, 0);
	assert_int_equal(figures(&w).held, 1);
	world_close(&w);
}

static void what_the_store_refuses_again_stays_in_memory_until_it_takes_it(void **state _unused_)
{
	struct world w;
	struct sub s;

	world_open(&w, defaults());
	w.up.up.ready = false;
	w.store.refuses = -EIO;
	assert_int_equal(submit(&w, &s, 3, 'a', false), 0);
	run(&w);
	assert_int_equal(w.store.n_writes, 0);
	assert_int_equal(figures(&w).unspooled, 1);
	w.store.refuses = 0;
	run(&w);
	assert_int_equal(w.store.n_writes, 1);
	write_ends(&w, -EIO);
	assert_int_equal(figures(&w).unspooled, 1);
	assert_int_equal(w.store.n_writes, 1); /* once more */
	/* What cannot be read any more is in no custody. */
	write_ends(&w, -EBADMSG);
	assert_int_equal(ended(METRIC_ENDED_DAMAGED), 1);
	assert_int_equal(figures(&w).held, 0);
	assert_int_equal(figures(&w).unspooled, 0);
	assert_int_equal(w.store.n_files, 0);
	world_close(&w);
}

static void accept_without_disk_accepts_framed_reports_too(void **state _unused_)
{
	struct relay_settings settings = defaults();
	struct world w;
	struct sub s;

	settings.accept_without_disk = true;
	world_open(&w, settings);
	w.store.refuses = -EIO;
	w.store.store.ready = false;
	assert_int_equal(submit(&w, &s, 3, 'a', true), 0);
	assert_int_equal(s.verdict, RELAY_ACCEPTED);
	assert_int_equal(offer(&w, 3, 'a'), RELAY_DUPLICATE);
	w.store.refuses = 0;
	assert_int_equal(figures(&w).unspooled, 1);
	/* Also one whose write fails. */
	w.store.store.ready = true;
	run(&w);
	assert_int_equal(submit(&w, &s, 4, 'b', true), -EINPROGRESS);
	write_ends(&w, 0);
	w.store.store.ready = false;
	write_ends(&w, -EIO);
	assert_decided(&s, REASON_NONE, RELAY_ACCEPTED);
	assert_int_equal(figures(&w).unspooled, 1);
	world_close(&w);
}

static void memory_alone_does_not_cost_what_is_durable(void **state _unused_)
{
	struct world w;
	struct sub s;

	world_open(&w, defaults());
	w.up.up.ready = false;
	accept(&w, 3, 'a');
	w.store.refuses = -EIO;
	w.store.store.ready = false;
	assert_int_equal(submit(&w, &s, 3, 'b', false), 0);
	assert_int_equal(ended(METRIC_ENDED_SUPERSEDED), 1);
	/* Were it killed now, the older one would be delivered. */
	assert_int_equal(w.store.n_files, 1);
	w.store.refuses = 0;
	w.store.store.ready = true;
	run(&w);
	write_ends(&w, 0);
	assert_int_equal(w.store.n_files, 1);
	assert_int_equal(w.store.files[0].content.generation, 2);
	world_close(&w);
}

static void after_10_s_it_counts_as_if_the_disk_had_failed(void **state _unused_)
{
	struct sub framed, raw, later;
	struct world w;

	world_open(&w, defaults());
	w.up.up.ready = false;
	assert_int_equal(submit(&w, &framed, 3, 'a', true), -EINPROGRESS);
	assert_int_equal(submit(&w, &raw, 4, 'a', false), -EINPROGRESS);
	run(&w);
	assert_int_equal(relay_next_event(w.r), T0 + RELAY_STORE_DEADLINE);
	run_at(&w, T0 + RELAY_STORE_DEADLINE - 1);
	assert_int_equal(framed.decided + raw.decided, 0);
	run_at(&w, T0 + RELAY_STORE_DEADLINE);
	assert_decided(&framed, REASON_NO_SPOOL, RELAY_NEW);
	assert_decided(&raw, REASON_NONE, RELAY_ACCEPTED);
	assert_int_equal(figures(&w).unspooled, 1);
	assert_int_equal(figures(&w).held, 1);
	/* The agent comes again while the write still hangs. */
	assert_int_equal(submit(&w, &later, 3, 'a', true), -EINPROGRESS);
	assert_int_equal(w.store.n_writes, 3);
	write_ends(&w, 0); /* nobody's any more */
	assert_int_equal(w.store.n_files, 2);
	write_ends(&w, 0);
	assert_int_equal(figures(&w).unspooled, 0);
	write_ends(&w, 0);
	assert_decided(&later, REASON_NONE, RELAY_ACCEPTED);
	assert_int_equal(figures(&w).held, 2);
	assert_int_equal(w.store.n_files, 2);
	world_close(&w);
}

static void a_directory_that_vanished_makes_memory_all_there_is(void **state _unused_)
{
	struct relay_settings settings = defaults();
	struct world w;

	settings.cache.slots = 1;
	world_open(&w, settings);
	w.up.up.ready = false;
	accept(&w, 3, 'a'); /* pushed out of memory by the next */
	accept(&w, 4, 'b');
	while (w.store.n_files > 0)
		remove_file(&w.store, &w.store.files[0]);
	w.store.store.on_lost(w.store.store.userdata, w.now);
	assert_int_equal(ended(METRIC_ENDED_LOST), 1);
	assert_int_equal(figures(&w).unspooled, 1);
	run(&w);
	write_ends(&w, 0);
	assert_int_equal(figures(&w).unspooled, 0);
	assert_int_equal(w.store.files[0].content.vm.cid, 4);
	world_close(&w);
}

static void whatever_memory_has_is_written_again_into_a_new_directory(void **state _unused_)
{
	struct world w;
	struct sub s;

	world_open(&w, defaults());
	w.up.up.ready = false;
	accept(&w, 3, 'a');
	assert_int_equal(submit(&w, &s, 4, 'b', false), -EINPROGRESS);
	write_ends(&w, 0);
	w.store.refuses = -EIO;
	assert_int_equal(submit(&w, &s, 5, 'c', false), 0); /* was not durable before, either */
	assert_int_equal(figures(&w).unspooled, 1);
	while (w.store.n_files > 0)
		remove_file(&w.store, &w.store.files[0]);
	w.store.store.on_lost(w.store.store.userdata, w.now);
	assert_int_equal(figures(&w).unspooled, 3);
	w.store.refuses = 0;
	run(&w);
	assert_int_equal(w.store.n_writes, 3);
	while (w.store.n_writes > 0)
		write_ends(&w, 0);
	assert_int_equal(figures(&w).unspooled, 0);
	assert_int_equal(figures(&w).held, 3);
	assert_int_equal(w.store.n_files, 3);
	world_close(&w);
}

static void an_operator_s_drop_of_what_is_durable_costs_memory_alone(void **state _unused_)
{
	struct world w;

	world_open(&w, defaults());
	w.up.up.ready = false;
	accept(&w, 3, 'a');
	assert_int_equal(relay_drop(w.r, vm_of(&w, 3), false, w.now), 0);
	assert_int_equal(figures(&w).cache.slots_used, 0);
	assert_int_equal(relay_drop(w.r, vm_of(&w, 3), false, w.now), -ENOENT);
	assert_int_equal(figures(&w).held, 1);
	assert_int_equal(w.store.n_files, 1);
	assert_int_equal(relay_drop(w.r, vm_of(&w, 3), true, w.now), 0);
	assert_int_equal(figures(&w).held, 0);
	assert_int_equal(ended(METRIC_ENDED_OPERATOR), 1);
	assert_int_equal(w.store.n_files, 0);
	world_close(&w);
}

/* ---- payloads that are not in memory ------------------------------------------------------------------- */

static void what_is_not_in_memory_is_read_before_it_is_sent(void **state _unused_)
{
	struct relay_settings settings = defaults();
	struct world w;

	settings.cache.slots = 0;
	world_open(&w, settings);
	accept(&w, 3, 'a');
	run(&w);
	assert_int_equal(w.up.started, 0);
	assert_int_equal(w.store.n_reads, 1);
	read_ends(&w, 0);
	assert_int_equal(w.up.last, 'a');
	send_ends(&w, SEND_FAILED);
	assert_int_equal(figures(&w).cache.misses, 0); /* the first send is no look-up */
	run_at(&w, T0 + 30 * SEC);
	read_ends(&w, 0);
	assert_int_equal(w.up.started, 2);
	assert_int_equal(figures(&w).cache.misses, 1);
	send_ends(&w, SEND_ACKED);
	assert_int_equal(w.store.n_files, 0);
	world_close(&w);
}

static void a_read_that_fails_is_tried_again_and_damage_ends_custody(void **state _unused_)
{
	static const int lost[] = { -ENOENT, -EBADMSG };
	struct relay_settings settings = defaults();
	struct world w;
	struct sub s;

	settings.cache.slots = 0;
	for (size_t i = 0; i < ARRAY_SIZE(lost); i++) {
		world_open(&w, settings);
		accept(&w, 3, 'a');
		run(&w);
		read_ends(&w, -EIO);
		assert_int_equal(w.store.n_reads, 0);
		run_at(&w, T0 + 5 * SEC);
		assert_int_equal(w.store.n_reads, 1);
		read_ends(&w, lost[i]);
		assert_int_equal(ended(METRIC_ENDED_LOST), 1);
		/* The same report is new. */
		assert_int_equal(submit(&w, &s, 3, 'a', true), -EINPROGRESS);
		world_close(&w);
	}
}

static void a_file_that_is_gone_ends_custody_of_what_was_there_alone(void **state _unused_)
{
	struct relay_settings settings = defaults();
	struct world w;

	settings.cache.slots = 0;
	world_open(&w, settings);
	w.up.up.ready = false;
	accept(&w, 3, 'a');
	remove_file(&w.store, &w.store.files[0]);
	assert_int_equal(figures(&w).held, 1);
	w.up.up.ready = true;
	run(&w);
	assert_int_equal(ended(METRIC_ENDED_LOST), 1);
	assert_int_equal(figures(&w).held, 0);
	assert_int_equal(w.up.started, 0);
	world_close(&w);
}

static void content_superseded_while_it_is_read_is_not_sent(void **state _unused_)
{
	struct relay_settings settings = defaults();
	struct world w;

	settings.cache.slots = 0;
	world_open(&w, settings);
	accept(&w, 3, 'a');
	run(&w);
	accept(&w, 3, 'b');
	read_ends(&w, 0); /* its file is gone, too */
	assert_int_equal(w.up.started, 0);
	read_ends(&w, 0);
	assert_int_equal(w.up.started, 1);
	assert_int_equal(w.up.last, 'b');
	/* An upstream that went away meanwhile gets it when it is back. */
	send_ends(&w, SEND_FAILED);
	run_at(&w, T0 + 30 * SEC);
	w.up.up.ready = false;
	read_ends(&w, 0);
	run_at(&w, T0 + 31 * SEC);
	assert_int_equal(w.up.started, 1);
	w.up.up.ready = true;
	run(&w);
	read_ends(&w, 0);
	assert_int_equal(w.up.started, 2);
	world_close(&w);
}

/* ---- a restart ------------------------------------------------------------------------------------------- */

static void restore_all(struct world *w)
{
	for (size_t i = 0; i < w->store.n_files; i++)
		assert_int_equal(relay_restore(w->r, &w->store.files[i].content, w->now), 0);
	check(w);
}

static void restored_contents_are_in_custody_with_their_age(void **state _unused_)
{
	struct world w;
	struct sub s;

	world_open(&w, defaults());
	w.up.up.ready = false;
	accept(&w, 3, 'a');
	die(&w);
	metrics_reset();
	start(&w);
	/* The machine was started a minute ago. */
	w.now = USEC_PER_MIN;
	w.store.files[0].content.age = 2 * HOUR;
	restore_all(&w);
	assert_int_equal(metric_get(METRIC_RESTORED, 0), 1);
	assert_int_equal(figures(&w).held, 1);
	assert_int_equal(figures(&w).oldest, 2 * HOUR);
	assert_int_equal(relay_restore(w.r, &w.store.files[0].content, w.now), -EEXIST);
	/* It is the VM's content of record. */
	assert_int_equal(submit(&w, &s, 3, 'a', true), 0);
	assert_int_equal(s.verdict, RELAY_DUPLICATE);
	/* Nothing counts as sent. */
	w.up.up.ready = true;
	run(&w);
	read_ends(&w, 0);
	send_ends(&w, SEND_FAILED);
	assert_true(relay_next_event(w.r) <= 22 * HOUR + USEC_PER_MIN);
	run_at(&w, 22 * HOUR + USEC_PER_MIN - 1);
	assert_int_equal(figures(&w).held, 1);
	run_at(&w, 22 * HOUR + USEC_PER_MIN);
	assert_int_equal(ended(METRIC_ENDED_MAX_AGE), 1);
	while (w.store.n_reads > 0)
		read_ends(&w, 0);
	assert_int_equal(w.store.n_files, 0);
	world_close(&w);
}

static void generations_go_on_where_the_store_is(void **state _unused_)
{
	struct world w;
	struct sub s;

	world_open(&w, defaults());
	w.up.up.ready = false;
	accept(&w, 3, 'a');
	/* As if it could not be removed: a new record must not begin below it. */
	w.store.files[0].content.generation = 77;
	die(&w);
	metrics_reset();
	start(&w);
	assert_int_equal(submit(&w, &s, 3, 'b', true), -EINPROGRESS);
	write_ends(&w, 0);
	assert_int_equal(w.store.n_files, 1);
	assert_int_equal(w.store.files[0].content.generation, 78);
	world_close(&w);
}

static void without_memory_nothing_is_lost_or_taken_twice(void **state _unused_)
{
	/* Each allocation fails once: reports are refused or put off, and the books are right. */
	for (unsigned int n = 1; n < 40; n++) {
		struct relay_settings settings = defaults();
		struct sub a, b, raw;
		struct world w;

		settings.cache.slots = n % 2;
		world_open(&w, settings);
		(void)vm_of(&w, 3);
		(void)vm_of(&w, 4);
		fail_at = n;
		(void)submit(&w, &a, 3, 'a', true);
		(void)submit(&w, &b, 3, 'b', true);
		while (w.store.n_writes > 0)
			write_ends(&w, 0);
		w.store.refuses = -EIO;
		w.store.store.ready = false;
		(void)submit(&w, &raw, 4, 'c', false);
		w.store.refuses = 0;
		w.store.store.ready = true;
		for (unsigned int i = 0; i < 10; i++) {
			run_at(&w, w.now + SEC);
			while (w.store.n_writes > 0)
				write_ends(&w, 0);
			while (w.store.n_reads > 0)
				read_ends(&w, 0);
			while (w.up.n_sends > 0)
				send_ends(&w, SEND_ACKED);
		}
		fail_at = 0;
		if (a.result == -EINPROGRESS)
			assert_int_equal(a.decided, 1);
		if (b.result == -EINPROGRESS)
			assert_int_equal(b.decided, 1);
		assert_int_equal(figures(&w).held, 0);
		assert_int_equal(w.store.n_files, 0);
		world_close(&w);
	}
}

/* ---- random life that is killed ---------------------------------------------------------------------------- */

struct life {
	struct world w;
	struct sub subs[MANY];
	size_t n_subs;
	/* By VM: contents are numbered in the order in which they came; the number is in them. */
	unsigned char newest[VMS], promised[VMS], upstream[VMS];
	unsigned char of[MANY]; /* of each submission */
};

static uint64_t random_state;

static unsigned int rnd(unsigned int n)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (unsigned int)(random_state >> 33) % n;
}

/* What was answered is upstream, or would be found by the next start, or something newer is. */
static void life_promises(struct life *l)
{
	for (uint32_t i = 0; i < VMS; i++) {
		const struct file *newest = NULL;
		unsigned char found = l->upstream[i];

		for (size_t n = 0; n < l->w.store.n_files; n++) {
			const struct file *f = &l->w.store.files[n];

			if (f->content.vm.cid == 3 + i && f->durable &&
			    (!newest || f->content.generation > newest->content.generation))
				newest = f;
		}
		if (newest)
			found = MAX(found, buf_data(newest->payload)[0]);
		if (found < l->promised[i])
			print_message("VM %u: promised %u, found %u, came %u\n", i + 3,
				      l->promised[i], found, l->newest[i]);
		assert_true(found >= l->promised[i]);
	}
}

static void life_report(struct life *l)
{
	uint32_t i = rnd(VMS);
	struct sub *s = &l->subs[l->n_subs];

	if (l->n_subs == MANY || l->newest[i] == UINT8_MAX)
		return;
	if (l->newest[i] == 0 || rnd(3) > 0)
		l->newest[i]++;
	l->of[l->n_subs++] = l->newest[i];
	(void)submit(&l->w, s, 3 + i, (char)l->newest[i], rnd(3) > 0);
	if (s->result == 0 && s->report.framed)
		l->promised[i] = l->newest[i];
}

/* Answers that have been given since. */
static void life_answers(struct life *l)
{
	for (size_t n = 0; n < l->n_subs; n++) {
		uint32_t i = l->subs[n].report.vm->node.id.cid - 3;

		if (l->subs[n].decided == 1 && l->subs[n].reason == REASON_NONE &&
		    l->subs[n].report.framed)
			l->promised[i] = MAX(l->promised[i], l->of[n]);
	}
}

static void life_send_ends(struct life *l)
{
	static const enum send_result results[] = { SEND_ACKED, SEND_ACKED, SEND_FAILED,
						    SEND_NOT_DELIVERED };
	const struct upstream_send *s = l->w.up.sends[0];
	enum send_result result = results[rnd(ARRAY_SIZE(results))];

	if (l->w.up.n_sends == 0)
		return;
	if (result == SEND_ACKED) {
		uint32_t i = s->vm.cid - 3;

		/* Never older over newer. */
		if (buf_data(s->payload)[0] < l->upstream[i])
			print_message("VM %u: %u over %u\n", i + 3, buf_data(s->payload)[0],
				      l->upstream[i]);
		assert_true(buf_data(s->payload)[0] >= l->upstream[i]);
		l->upstream[i] = buf_data(s->payload)[0];
	}
	send_ends(&l->w, result);
}

static void life_kill(struct life *l)
{
	struct fake_store *f = &l->w.store;

	die(&l->w);
	l->n_subs = 0;
	metrics_reset();
	start(&l->w);
	f->refuses = 0;
	f->store.ready = true;
	/* As the scan does: the newest of each VM. */
	for (size_t i = f->n_files; i-- > 0;)
		if (store_newest(&f->store, f->files[i].content.vm) !=
		    f->files[i].content.generation)
			remove_file(f, &f->files[i]);
	restore_all(&l->w);
}

static void life_step(struct life *l)
{
	struct world *w = &l->w;

	switch (rnd(12)) {
	case 0 ... 3:
		life_report(l);
		break;
	case 4 ... 6:
		if (w->store.n_writes > 0)
			write_ends(w, rnd(8) > 0 ? 0 : -EIO);
		break;
	case 7:
		if (w->store.n_reads > 0)
			read_ends(w, rnd(8) > 0 ? 0 : -EIO);
		break;
	case 8:
		life_send_ends(l);
		break;
	case 9:
		run_at(w, w->now + (rnd(4) > 0 ? SEC : 12 * SEC));
		break;
	case 10:
		w->store.refuses = rnd(3) > 0 ? 0 : -EIO;
		w->store.store.ready = !w->store.refuses;
		w->up.up.ready = rnd(4) > 0;
		break;
	default:
		if (rnd(10) == 0)
			life_kill(l);
	}
	life_answers(l);
	life_promises(l);
}

static void live(uint64_t seed)
{
	struct relay_settings settings = defaults();
	struct life l = { 0 };

	random_state = seed * 0x9e3779b97f4a7c15 + 1;
	settings.cache.slots = rnd(4);
	world_open(&l.w, settings);
	for (unsigned int i = 0; i < 400; i++)
		life_step(&l);
	/* In the end all is delivered. */
	l.w.store.refuses = 0;
	l.w.store.store.ready = l.w.up.up.ready = true;
	for (unsigned int i = 0; i < 200 && figures(&l.w).held > 0; i++) {
		run_at(&l.w, l.w.now + 20 * SEC);
		while (l.w.store.n_writes > 0)
			write_ends(&l.w, 0);
		while (l.w.store.n_reads > 0)
			read_ends(&l.w, 0);
		while (l.w.up.n_sends > 0) {
			const struct upstream_send *s = l.w.up.sends[0];

			l.upstream[s->vm.cid - 3] = buf_data(s->payload)[0];
			send_ends(&l.w, SEND_ACKED);
		}
	}
	life_promises(&l);
	assert_int_equal(figures(&l.w).held, 0);
	for (uint32_t i = 0; i < VMS; i++)
		assert_true(l.upstream[i] >= l.promised[i]);
	world_close(&l.w);
}

static void what_was_answered_survives_a_kill_at_any_time(void **state _unused_)
{
	const char *one = getenv("VSR_SEED"), *many = getenv("VSR_SEEDS");
	uint64_t first = one ? strtoull(one, NULL, 10) : (uint64_t)time(NULL);
	unsigned long n = many ? strtoul(many, NULL, 10) : one ? 1 : 300;

	print_message("first seed %llu, %lu seeds\n", (unsigned long long)first, n);
	for (unsigned long i = 0; i < n; i++)
		live(first + i);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(custody_begins_when_the_content_is_durable),
		cmocka_unit_test(a_repeat_of_what_is_being_stored_waits_for_the_same_result),
		cmocka_unit_test(older_content_that_comes_again_behind_newer_is_new),
		cmocka_unit_test(older_content_stays_until_the_newer_is_durable),
		cmocka_unit_test(an_ack_for_the_old_while_the_new_is_stored_ends_the_old_alone),
		cmocka_unit_test(a_connection_that_left_does_not_end_what_is_stored),
		cmocka_unit_test(while_the_store_takes_nothing_framed_reports_are_refused),
		cmocka_unit_test(raw_reports_are_held_in_memory_and_stored_when_there_is_room),
		cmocka_unit_test(what_the_store_refuses_again_stays_in_memory_until_it_takes_it),
		cmocka_unit_test(accept_without_disk_accepts_framed_reports_too),
		cmocka_unit_test(memory_alone_does_not_cost_what_is_durable),
		cmocka_unit_test(after_10_s_it_counts_as_if_the_disk_had_failed),
		cmocka_unit_test(a_directory_that_vanished_makes_memory_all_there_is),
		cmocka_unit_test(whatever_memory_has_is_written_again_into_a_new_directory),
		cmocka_unit_test(an_operator_s_drop_of_what_is_durable_costs_memory_alone),
		cmocka_unit_test(what_is_not_in_memory_is_read_before_it_is_sent),
		cmocka_unit_test(a_read_that_fails_is_tried_again_and_damage_ends_custody),
		cmocka_unit_test(a_file_that_is_gone_ends_custody_of_what_was_there_alone),
		cmocka_unit_test(content_superseded_while_it_is_read_is_not_sent),
		cmocka_unit_test(restored_contents_are_in_custody_with_their_age),
		cmocka_unit_test(generations_go_on_where_the_store_is),
		cmocka_unit_test(without_memory_nothing_is_lost_or_taken_twice),
		cmocka_unit_test(what_was_answered_survives_a_kill_at_any_time),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
