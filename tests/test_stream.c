/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stream without BPF (hybrid sockets, user-space mode), over socket pairs: protocol, limits and
 * memory (SPEC 3). What BPF sees is tested in tests/test_verdict.c and in VMs.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <xxhash.h>

#include "clock.h"
#include "digest.h"
#include "stream.h"

#define SEED	  0x1234567890abcdef
#define MAX_BYTES (4 * MIB)

struct world {
	struct vsr_pool pool;
	struct stream_config config;
	struct stream s;
	int ours, theirs;
	enum reason reason;
};

static void world_open(struct world *w, uint64_t reserved)
{
	int fds[2];

	memset(w, 0, sizeof(*w));
	w->config = (struct stream_config){
		.pool = &w->pool,
		.seed = SEED,
		.max_report = MAX_BYTES,
	};
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
	w->ours = fds[0];
	w->theirs = fds[1];
	assert_int_equal(stream_open(&w->s, &w->config, w->ours, false,
				     (struct vsr_vm_id){ .cid = 42 }, 3, reserved),
			 0);
}

static void world_close(struct world *w)
{
	stream_close(&w->s);
	stream_close(&w->s); /* harmless */
	assert_int_equal(w->pool.drawn, 0);
	close(w->ours);
	if (w->theirs >= 0)
		close(w->theirs);
}

static enum stream_state look(struct world *w)
{
	return stream_look(&w->s, &w->reason);
}

/* Sends all of it, a chunk at a time, and looks after each. Returns the first state that is not
 * STREAM_MORE, or STREAM_MORE. */
static enum stream_state feed(struct world *w, const void *data, size_t n, size_t chunk)
{
	const uint8_t *p = data;

	while (n > 0) {
		ssize_t sent = send(w->theirs, p, MIN(n, chunk), MSG_NOSIGNAL);
		enum stream_state state = look(w);

		if (state != STREAM_MORE)
			return state;
		if (sent > 0) {
			p += sent;
			n -= (size_t)sent;
		}
	}
	return STREAM_MORE;
}

/* Looks until all that was sent is read. */
static enum stream_state look_all(struct world *w)
{
	enum stream_state state;
	uint64_t before;

	do {
		before = w->s.read;
		state = look(w);
	} while (state == STREAM_MORE && w->s.read > before);
	return state;
}

static void half_close(struct world *w)
{
	assert_int_equal(shutdown(w->theirs, SHUT_WR), 0);
}

static uint8_t *some_bytes(size_t n)
{
	uint8_t *p = malloc(MAX(n, 1U));

	assert_non_null(p);
	for (size_t i = 0; i < n; i++)
		p[i] = (uint8_t)(i * 7 + i / 251 + 10);
	return p;
}

/* The payload with a header before it; the caller frees it. */
static uint8_t *frame(uint32_t mode, const uint8_t *payload, size_t n)
{
	struct vsr_header h = { .mode = mode,
				.length = (uint32_t)n,
				.xxh64 = XXH64(payload, n, 0) };
	uint8_t *p = malloc(VSR_HEADER_SIZE + n);

	assert_non_null(p);
	vsr_header_write(p, &h);
	memcpy(p + VSR_HEADER_SIZE, payload, n);
	return p;
}

/* The stream has ended with exactly this payload. */
static void assert_payload(struct world *w, const uint8_t *payload, size_t n)
{
	uint64_t digest = 0;

	assert_int_equal(look(w), STREAM_ENDED); /* and goes on saying so */
	assert_int_equal(stream_length(&w->s), n);
	assert_int_equal(stream_digest(&w->s, &digest), 0);
	assert_int_equal(digest, digest_bytes(SEED, payload, n));
	assert_int_equal(stream_take(&w->s, &w->reason), 0);
	assert_int_equal(stream_take(&w->s, &w->reason), 0);
	assert_int_equal(buf_len(w->s.buf), n);
	assert_memory_equal(buf_data(w->s.buf), payload, n);
	assert_int_equal(stream_xxh64(&w->s), XXH64(payload, n, 0));
	assert_int_equal(stream_digest(&w->s, &digest), 0);
	assert_int_equal(digest, digest_bytes(SEED, payload, n));
	assert_true(n == 0 || stream_last_byte(&w->s) > 0);
	assert_true(stream_last_byte(&w->s) <= clock_usec());
}

static const size_t sizes[] = { 1, 10, 15, 16, 17, 4095, 4096, 4097, 65535, 65536, 65537, 1000000 };

static void raw_is_all_bytes_until_the_end(void **state _unused_)
{
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++)
		for (unsigned close_it = 0; close_it < 2; close_it++) {
			_cleanup_free_ uint8_t *p = some_bytes(sizes[i]);
			struct world w;

			world_open(&w, 2 * MAX_BYTES);
			assert_int_equal(feed(&w, p, sizes[i], 65536), STREAM_MORE);
			assert_int_equal(look_all(&w), STREAM_MORE);
			if (close_it)
				w.theirs = safe_close(w.theirs);
			else
				half_close(&w);
			assert_int_equal(look(&w), STREAM_ENDED);
			assert_int_equal(stream_mode(&w.s), VSR_MODE_RAW);
			assert_payload(&w, p, sizes[i]);
			world_close(&w);
		}
}

static void a_frame_is_complete_at_its_length(void **state _unused_)
{
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		_cleanup_free_ uint8_t *p = some_bytes(sizes[i]);
		_cleanup_free_ uint8_t *f = frame(VSR_MODE_VSR1, p, sizes[i]);
		struct vsr_header h;
		struct world w;

		world_open(&w, 2 * MAX_BYTES);
		assert_int_equal(feed(&w, f, VSR_HEADER_SIZE + sizes[i] - 1, 65536), STREAM_MORE);
		assert_int_equal(look_all(&w), STREAM_MORE);
		/* Its last byte, and later ones, which nobody looks at. */
		assert_int_equal(send(w.theirs, f + VSR_HEADER_SIZE + sizes[i] - 1, 1, 0), 1);
		assert_int_equal(send(w.theirs, "later", 5, 0), 5);
		assert_int_equal(look(&w), STREAM_ENDED);
		assert_int_equal(stream_mode(&w.s), VSR_MODE_VSR1);
		stream_header(&w.s, &h);
		assert_int_equal(h.xxh64, XXH64(p, sizes[i], 0));
		assert_int_equal(w.s.read, VSR_HEADER_SIZE + sizes[i]);
		assert_payload(&w, p, sizes[i]);
		world_close(&w);
	}
}

static void bytes_may_come_in_any_pieces(void **state _unused_)
{
	enum { N = 200 };
	_cleanup_free_ uint8_t *p = some_bytes(N);

	for (uint32_t mode = VSR_MODE_RAW; mode <= VSR_MODE_VSR1; mode++)
		for (size_t chunk = 1; chunk < 40; chunk++) {
			_cleanup_free_ uint8_t *f =
				mode == VSR_MODE_RAW ? some_bytes(N) : frame(mode, p, N);
			size_t n = N + (mode == VSR_MODE_RAW ? 0 : VSR_HEADER_SIZE);
			enum stream_state came;
			struct world w;

			world_open(&w, MIB);
			came = feed(&w, f, n, chunk);
			if (mode == VSR_MODE_RAW) {
				assert_int_equal(came, STREAM_MORE);
				half_close(&w);
				assert_int_equal(look(&w), STREAM_ENDED);
			} else {
				assert_int_equal(came, STREAM_ENDED);
			}
			assert_payload(&w, p, N);
			world_close(&w);
		}
}

static void an_offer_is_told_once_with_its_header(void **state _unused_)
{
	enum { N = 5000 };
	_cleanup_free_ uint8_t *p = some_bytes(N);
	_cleanup_free_ uint8_t *f = frame(VSR_MODE_VSR2, p, N);
	struct vsr_header h;
	struct world w;

	world_open(&w, MIB);
	assert_int_equal(feed(&w, f, VSR_HEADER_SIZE - 1, 65536), STREAM_MORE);
	assert_int_equal(feed(&w, f + VSR_HEADER_SIZE - 1, 1, 1), STREAM_OFFER);
	stream_header(&w.s, &h);
	assert_int_equal(h.mode, VSR_MODE_VSR2);
	assert_int_equal(h.length, N);
	assert_int_equal(look(&w), STREAM_MORE);
	assert_int_equal(feed(&w, f + VSR_HEADER_SIZE, N, 65536), STREAM_ENDED);
	assert_payload(&w, p, N);
	world_close(&w);
}

static void an_offer_with_its_payload_behind_it_is_told_first(void **state _unused_)
{
	enum { N = 5000 };
	_cleanup_free_ uint8_t *p = some_bytes(N);
	_cleanup_free_ uint8_t *f = frame(VSR_MODE_VSR2, p, N);
	struct world w;

	world_open(&w, MIB);
	assert_int_equal(feed(&w, f, VSR_HEADER_SIZE + N, 65536), STREAM_OFFER);
	assert_int_equal(w.s.read, VSR_HEADER_SIZE);
	assert_int_equal(look(&w), STREAM_ENDED);
	assert_payload(&w, p, N);
	world_close(&w);
}

static void nothing_is_a_report_too(void **state _unused_)
{
	static const uint32_t modes[] = { VSR_MODE_RAW, VSR_MODE_VSR1, VSR_MODE_VSR2 };

	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		_cleanup_free_ uint8_t *f = frame(modes[i], (const uint8_t *)"", 0);
		struct world w;

		world_open(&w, MIB);
		if (modes[i] == VSR_MODE_RAW)
			half_close(&w);
		else
			assert_int_equal(feed(&w, f, VSR_HEADER_SIZE, 65536),
					 modes[i] == VSR_MODE_VSR2 ? STREAM_OFFER : STREAM_ENDED);
		assert_int_equal(look(&w), STREAM_ENDED);
		assert_payload(&w, (const uint8_t *)"", 0);
		world_close(&w);
	}
}

static void assert_refused(struct world *w, enum stream_state state, enum reason reason)
{
	assert_int_equal(state, STREAM_REFUSED);
	assert_string_equal(reason_name(w->reason), reason_name(reason));
}

static void bad_header_is_refused_at_the_byte_that_says_so(void **state _unused_)
{
	static const char *const bad[] = { "VX", "VSx", "VSR3", "VSR\n", "V\1" };

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		size_t n = strlen(bad[i]);
		struct world w;

		world_open(&w, MIB);
		assert_int_equal(feed(&w, bad[i], n - 1, 1), STREAM_MORE);
		assert_refused(&w, feed(&w, bad[i] + n - 1, 1, 1), REASON_BAD_HEADER);
		world_close(&w);

		/* With more behind it. */
		world_open(&w, MIB);
		assert_int_equal(send(w.theirs, bad[i], n, 0), n);
		assert_int_equal(send(w.theirs, "0123456789abcdef", 16, 0), 16);
		assert_refused(&w, look(&w), REASON_BAD_HEADER);
		world_close(&w);
	}
}

static void a_header_that_is_cut_is_bad(void **state _unused_)
{
	_cleanup_free_ uint8_t *f = frame(VSR_MODE_VSR1, (const uint8_t *)"x", 1);

	for (size_t n = 1; n < VSR_HEADER_SIZE; n++) {
		struct world w;

		world_open(&w, MIB);
		assert_int_equal(feed(&w, f, n, 65536), STREAM_MORE);
		half_close(&w);
		assert_refused(&w, look(&w), REASON_BAD_HEADER);
		world_close(&w);
	}
}

static void a_frame_that_is_cut_is_aborted(void **state _unused_)
{
	_cleanup_free_ uint8_t *p = some_bytes(100);
	_cleanup_free_ uint8_t *f = frame(VSR_MODE_VSR1, p, 100);

	for (size_t n = VSR_HEADER_SIZE; n < VSR_HEADER_SIZE + 100; n++) {
		struct world w;

		world_open(&w, MIB);
		assert_int_equal(feed(&w, f, n, 65536), STREAM_MORE);
		half_close(&w);
		assert_refused(&w, look(&w), REASON_ABORTED);
		world_close(&w);
	}
}

static void a_reset_is_no_end(void **state _unused_)
{
	struct world w;

	world_open(&w, MIB);
	/* A peer that closes with our bytes unread resets the connection. */
	assert_int_equal(send(w.ours, "x", 1, 0), 1);
	assert_int_equal(feed(&w, "0123456789", 10, 10), STREAM_MORE);
	w.theirs = safe_close(w.theirs);
	assert_refused(&w, look(&w), REASON_ABORTED);
	world_close(&w);
}

static void exactly_the_limit_is_accepted_and_one_byte_more_refused(void **state _unused_)
{
	_cleanup_free_ uint8_t *p = some_bytes(MAX_BYTES + 1);
	_cleanup_free_ uint8_t *f = frame(VSR_MODE_VSR1, p, MAX_BYTES);
	_cleanup_free_ uint8_t *f_more = frame(VSR_MODE_VSR1, p, MAX_BYTES + 1);
	struct world w;

	world_open(&w, 2 * MAX_BYTES);
	assert_int_equal(feed(&w, p, MAX_BYTES, 65536), STREAM_MORE);
	half_close(&w);
	assert_int_equal(look_all(&w), STREAM_ENDED);
	assert_payload(&w, p, MAX_BYTES);
	world_close(&w);

	world_open(&w, 2 * MAX_BYTES);
	assert_int_equal(feed(&w, p, MAX_BYTES, 65536), STREAM_MORE);
	assert_int_equal(look_all(&w), STREAM_MORE);
	assert_refused(&w, feed(&w, p + MAX_BYTES, 1, 1), REASON_TOO_LARGE);
	world_close(&w);

	world_open(&w, 2 * MAX_BYTES);
	assert_int_equal(feed(&w, f, VSR_HEADER_SIZE + MAX_BYTES, 65536), STREAM_ENDED);
	assert_payload(&w, p, MAX_BYTES);
	world_close(&w);

	/* A frame says so in its header. */
	world_open(&w, 2 * MAX_BYTES);
	assert_refused(&w, feed(&w, f_more, VSR_HEADER_SIZE, 65536), REASON_TOO_LARGE);
	assert_int_equal(w.s.read, VSR_HEADER_SIZE);
	world_close(&w);
}

/* ---- memory ---------------------------------------------------------------------------------------- */

static void a_reservation_is_good_to_its_last_byte(void **state _unused_)
{
	enum { RESERVED = 300000 };
	_cleanup_free_ uint8_t *p = some_bytes(RESERVED + 1);
	struct world w;

	world_open(&w, RESERVED);
	assert_int_equal(feed(&w, p, RESERVED, 65536), STREAM_MORE);
	assert_int_equal(look_all(&w), STREAM_MORE);
	assert_int_equal(w.s.read, RESERVED);
	assert_int_equal(look(&w), STREAM_MORE); /* nothing more came: nothing to refuse */
	half_close(&w);
	assert_int_equal(look(&w), STREAM_ENDED);
	assert_payload(&w, p, RESERVED);
	world_close(&w);

	world_open(&w, RESERVED);
	assert_int_equal(feed(&w, p, RESERVED, 65536), STREAM_MORE);
	assert_int_equal(look_all(&w), STREAM_MORE);
	assert_refused(&w, feed(&w, p + RESERVED, 1, 1), REASON_OVER_BUDGET);
	world_close(&w);
}

static void beyond_it_the_shared_reserve_is_drawn_on_and_given_back(void **state _unused_)
{
	enum { RESERVED = 100000, N = 350000 };
	_cleanup_free_ uint8_t *p = some_bytes(N);
	struct world w, other;

	world_open(&w, RESERVED);
	world_open(&other, RESERVED);
	w.pool.limit = 400000;
	other.config.pool = &w.pool;
	assert_int_equal(feed(&w, p, N, 65536), STREAM_MORE);
	assert_int_equal(look_all(&w), STREAM_MORE);
	assert_true(w.pool.drawn >= N - RESERVED && w.pool.drawn <= w.pool.limit);
	/* What one has drawn is not there for another. */
	assert_refused(&other, feed(&other, p, N, 65536), REASON_OVER_BUDGET);
	stream_close(&other.s);
	half_close(&w);
	assert_int_equal(look_all(&w), STREAM_ENDED);
	assert_payload(&w, p, N);
	world_close(&w);
	world_close(&other);
}

static void a_larger_reservation_holds_from_now_on(void **state _unused_)
{
	enum { N = 350000 };
	_cleanup_free_ uint8_t *p = some_bytes(N);
	struct world w;

	world_open(&w, 1000);
	assert_int_equal(feed(&w, p, 1000, 1000), STREAM_MORE);
	assert_int_equal(stream_charge(&w.s), 1000);
	stream_reserve(&w.s, N);
	assert_int_equal(feed(&w, p + 1000, N - 1000, 65536), STREAM_MORE);
	half_close(&w);
	assert_int_equal(look_all(&w), STREAM_ENDED);
	assert_payload(&w, p, N);
	world_close(&w);
}

static void nothing_received_costs_no_buffer(void **state _unused_)
{
	struct world w;

	world_open(&w, MIB);
	assert_int_equal(stream_charge(&w.s), 0);
	assert_true(stream_wants_input(&w.s));
	assert_int_equal(stream_last_byte(&w.s), 0);
	world_close(&w);
}

/* ---- turns ----------------------------------------------------------------------------------------- */

/* A socket pair whose buffers take all of it at once. */
static void send_at_once(struct world *w, const uint8_t *p, size_t n)
{
	int size = 8 * (int)MIB;

	if (setsockopt(w->theirs, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0)
		skip(); /* needs CAP_NET_ADMIN */
	assert_int_equal(send(w->theirs, p, n, 0), n);
}

static void a_turn_ends_after_a_while_and_a_frame_at_its_last_byte(void **state _unused_)
{
	/* Of each of these the last byte is read as a turn ends. */
	for (size_t n = MIB; n <= 3 * MIB; n += MIB) {
		_cleanup_free_ uint8_t *p = some_bytes(n);
		_cleanup_free_ uint8_t *f = frame(VSR_MODE_VSR1, p, n);
		unsigned looks = 1;
		struct world w;

		world_open(&w, 2 * MAX_BYTES);
		send_at_once(&w, f, VSR_HEADER_SIZE + n);
		while (look(&w) == STREAM_MORE)
			looks++;
		/* No event comes after the last byte, so that look has to say it. */
		assert_in_range(looks, n / (2 * MIB), n / MIB);
		assert_int_equal(w.s.read, VSR_HEADER_SIZE + n);
		assert_payload(&w, p, n);
		world_close(&w);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(raw_is_all_bytes_until_the_end),
		cmocka_unit_test(a_frame_is_complete_at_its_length),
		cmocka_unit_test(bytes_may_come_in_any_pieces),
		cmocka_unit_test(an_offer_is_told_once_with_its_header),
		cmocka_unit_test(an_offer_with_its_payload_behind_it_is_told_first),
		cmocka_unit_test(nothing_is_a_report_too),
		cmocka_unit_test(bad_header_is_refused_at_the_byte_that_says_so),
		cmocka_unit_test(a_header_that_is_cut_is_bad),
		cmocka_unit_test(a_frame_that_is_cut_is_aborted),
		cmocka_unit_test(a_reset_is_no_end),
		cmocka_unit_test(exactly_the_limit_is_accepted_and_one_byte_more_refused),
		cmocka_unit_test(a_reservation_is_good_to_its_last_byte),
		cmocka_unit_test(beyond_it_the_shared_reserve_is_drawn_on_and_given_back),
		cmocka_unit_test(a_larger_reservation_holds_from_now_on),
		cmocka_unit_test(nothing_received_costs_no_buffer),
		cmocka_unit_test(a_turn_ends_after_a_while_and_a_frame_at_its_last_byte),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
