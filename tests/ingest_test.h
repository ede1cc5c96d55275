/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For tests of what hangs on the event loop: ingest with its parts behind it, an upstream that does
 * what the test says, and reports to send.
 */
#ifndef VSR_INGEST_TEST_H
#define VSR_INGEST_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <xxhash.h>

#include "clock.h"
#include "ingest.h"
#include "metrics.h"

/* What a test waits for at most; only a failure takes so long. */
#define PATIENCE (30 * USEC_PER_SEC)

struct ingest_world {
	sd_event *event;
	struct vm_table *vms;
	struct admission *admission;
	struct relay *relay;
	struct ingest *ingest;
	struct upstream up;
	struct upstream_send *sends[64]; /* with hold: under way */
	size_t n_sends;
	bool hold;	      /* sends do not end by themselves */
	unsigned descriptors; /* open before */
	struct match_table *matches;
	/* change before ingest_world_open() */
	struct ingest_bpf *bpf; /* whose blocks are at `blocks`; NULL: user-space mode */
	uint64_t *blocks;
	uint32_t n_blocks;
	bool suppress;
	uint64_t keep; /* contents after their ACK, usec */
	uint64_t pack; /* idle contents, usec; 0: never */
	struct admission_settings admission_settings;
	struct ingest_settings settings;
	size_t slots; /* of the cache */
};

static inline int ingest_world_send(struct upstream *u, struct upstream_send *s)
{
	struct ingest_world *w = container_of(u, struct ingest_world, up);

	assert_true(w->n_sends < ARRAY_SIZE(w->sends));
	w->sends[w->n_sends++] = s;
	return 0;
}

static inline double ingest_world_random(void *userdata _unused_)
{
	return 0.5;
}

static inline void ingest_world_defaults(struct ingest_world *w)
{
	*w = (struct ingest_world){
		.admission_settings = admission_defaults,
		.settings = { .max_report = 16 * MIB, .deadline = PATIENCE, .idle = PATIENCE },
		.slots = 100,
	};
	w->admission_settings.wait = PATIENCE;
}

/* Descriptors of this process. */
static inline unsigned count_descriptors(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned n = 0;

	assert_non_null(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static inline void ingest_world_open(struct ingest_world *w)
{
	static const struct upstream_ops ops = { .name = "test", .send = ingest_world_send };
	struct relay_settings rs = {
		.custody_max_age = USEC_PER_HOUR,
		.suppress_unchanged = w->suppress,
		.cache = { .slots = w->slots,
			   .bytes = 64 * MIB,
			   .ttl = USEC_PER_HOUR,
			   .keep = w->keep,
			   .pack = w->pack },
		.retry = tracker_defaults,
	};
	struct bucket_rate unlimited = { 0 };
	struct ingest_parts parts;

	metrics_reset();
	w->descriptors = count_descriptors();
	w->up.ops = &ops;
	w->up.ready = true;
	assert_true(sd_event_new(&w->event) >= 0);
	assert_int_equal(vm_table_new(VM_TABLE_MAX, unlimited, unlimited, &w->vms), 0);
	assert_int_equal(admission_new(w->vms, &w->admission_settings, &w->admission), 0);
	assert_int_equal(relay_new(&rs, w->vms, &w->up, ingest_world_random, NULL, &w->relay), 0);
	assert_int_equal(match_table_new(w->blocks, w->n_blocks, &w->matches), 0);
	relay_set_matches(w->relay, w->matches);
	parts = (struct ingest_parts){
		.event = w->event,
		.bpf = w->bpf,
		.vms = w->vms,
		.admission = w->admission,
		.relay = w->relay,
		.seed = 42,
		.places = w->admission_settings.places,
	};
	assert_int_equal(ingest_new(&w->settings, &parts, &w->ingest), 0);
}

static inline void ingest_world_finish(struct ingest_world *w, enum send_result result)
{
	struct upstream_send *s;

	assert_true(w->n_sends > 0);
	s = w->sends[0];
	w->n_sends--;
	memmove(&w->sends[0], &w->sends[1], w->n_sends * sizeof(w->sends[0]));
	s->done(s, result, clock_usec());
}

/* A turn of the loop as the daemon makes it, waiting at most `wait` usec for something to do. */
static inline void ingest_world_turn(struct ingest_world *w, uint64_t wait)
{
	assert_true(sd_event_run(w->event, wait) >= 0);
	ingest_run(w->ingest, clock_usec());
	relay_run(w->relay, clock_usec());
	while (!w->hold && w->n_sends > 0)
		ingest_world_finish(w, SEND_ACKED);
}

/* Turns until nothing has happened for a moment. */
static inline void ingest_world_settle(struct ingest_world *w)
{
	for (unsigned i = 0; i < 20; i++)
		ingest_world_turn(w, USEC_PER_MSEC);
}

/* Turns until the condition holds. */
#define TURN_UNTIL(w, condition)                                    \
	do {                                                        \
		uint64_t until = clock_usec() + PATIENCE;           \
		while (!(condition)) {                              \
			assert_true(clock_usec() < until);          \
			ingest_world_turn((w), 10 * USEC_PER_MSEC); \
		}                                                   \
	} while (0)

static inline void ingest_world_close(struct ingest_world *w)
{
	struct admission_figures a;
	struct relay_figures r;

	relay_figures(w->relay, clock_usec(), &r);
	metric_set(METRIC_CONTENTS_HELD, (double)r.held);
	assert_int_equal(metrics_conservation(), 0);
	w->ingest = ingest_free(w->ingest);
	admission_figures(w->admission, &a);
	assert_int_equal(a.places_used, 0);
	assert_int_equal(a.waiting, 0);
	assert_int_equal(a.reserved, 0);
	w->relay = relay_free(w->relay);
	while (w->n_sends > 0)
		ingest_world_finish(w, SEND_ACKED);
	w->matches = match_table_free(w->matches);
	w->admission = admission_free(w->admission);
	w->vms = vm_table_free(w->vms);
	w->event = sd_event_unref(w->event);
	/* The test has closed its ends. */
	assert_int_equal(count_descriptors(), w->descriptors);
}

static inline unsigned refused(enum reason reason)
{
	return (unsigned)metric_get(METRIC_REFUSED, reason);
}

/* ---- reports --------------------------------------------------------------------------------------- */

/* A valid VMReport of this CID of about `size` bytes, with the header before it if mode is framed.
 * Returns how long it is; the caller frees it. Reports with different `what` differ. */
static inline size_t make_report(uint32_t cid, char what, size_t size, uint32_t mode, uint8_t **ret)
{
	char digits[12];
	size_t n_digits = (size_t)snprintf(digits, sizeof(digits), "%u", cid), n;
	size_t filler = MAX(size, 20U) - 20;
	uint8_t *p = malloc(size + 100), *q = p + VSR_HEADER_SIZE;

	assert_non_null(p);
	*q++ = 0x0a; /* index_report */
	*q++ = (uint8_t)(n_digits + 2);
	*q++ = 0x0a; /* vsock_cid */
	*q++ = (uint8_t)n_digits;
	memcpy(q, digits, n_digits);
	q += n_digits;
	*q++ = 0x7a; /* field 15, which no schema knows */
	for (n = filler; n > 0x7f; n >>= 7)
		*q++ = (uint8_t)(n | 0x80);
	*q++ = (uint8_t)n;
	memset(q, what, filler);
	q += filler;
	n = (size_t)(q - p) - VSR_HEADER_SIZE;
	if (mode == VSR_MODE_RAW) {
		memmove(p, p + VSR_HEADER_SIZE, n);
	} else {
		struct vsr_header h = {
			.mode = mode,
			.length = (uint32_t)n,
			.xxh64 = XXH64(p + VSR_HEADER_SIZE, n, 0),
		};

		vsr_header_write(p, &h);
		n += VSR_HEADER_SIZE;
	}
	*ret = p;
	return n;
}

/* What came as an answer on this (non-blocking) socket: a status; -EAGAIN: nothing yet; -ENODATA:
 * it was closed without one. */
static inline int answer_of(int fd)
{
	uint8_t answer[VSR_ANSWER_SIZE];
	uint32_t status = 0;
	ssize_t n = recv(fd, answer, sizeof(answer), MSG_DONTWAIT | MSG_WAITALL);

	if (n < 0)
		return errno == EAGAIN ? -EAGAIN : -ENODATA;
	if (n == 0)
		return -ENODATA;
	assert_int_equal(n, sizeof(answer));
	assert_int_equal(vsr_answer_read(answer, &status), 0);
	return (int)status;
}

/* Whether the relay has closed it, without an answer (left). */
static inline bool closed(int fd)
{
	char byte;
	ssize_t n = recv(fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK);

	return n == 0 || (n < 0 && errno != EAGAIN);
}

#endif
