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

static void world_open_match(struct world *w, uint64_t reserved, struct match *match)
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
				     (struct vsr_vm_id){ .cid = 42 }, 3, reserved, match),
			 0);
}

static void world_open(struct world *w, uint64_t reserved)
{
	world_open_match(w, reserved, NULL);
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
	struct report_error whole = {}, error = {};
	uint64_t digest = 0, xxh64 = 0;

	assert_int_equal(look(w), STREAM_ENDED); /* and goes on saying so */
	assert_int_equal(stream_length(&w->s), n);
	if (stream_unread(&w->s)) {
		assert_int_equal(stream_digest(&w->s, &digest), 0);
		assert_int_equal(digest, digest_bytes(SEED, payload, n));
	}
	assert_int_equal(stream_take(&w->s, &w->reason), 0);
	assert_int_equal(stream_take(&w->s, &w->reason), 0);
	assert_int_equal(buf_len(w->s.buf), n);
	assert_memory_equal(buf_data(w->s.buf), payload, n);
	assert_int_equal(stream_xxh64(&w->s, &xxh64),
			 stream_framed(&w->s) || w->config.xxh64_of_raw);
	assert_int_equal(xxh64,
			 stream_framed(&w->s) || w->config.xxh64_of_raw ? XXH64(payload, n, 0) : 0);
	assert_int_equal(stream_validate(&w->s, 1, &error, NULL),
			 report_validate(payload, n, 1, &whole, NULL));
	assert_int_equal(error.offset, whole.offset);
	assert_string_equal(error.what ?: "", whole.what ?: "");
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

/* ---- comparison with cached content -------------------------------------------------------------- */

/* The cache's part: a content that streams are compared with. */
static struct match *match_of(struct match_table *t, const uint8_t *p, size_t n)
{
	_cleanup_(buf_unrefp)
	struct buf *b = NULL;
	struct match *m;

	assert_int_equal(buf_new(n, &b), 0);
	memcpy(buf_tail(b), p, n);
	buf_advance(b, n);
	buf_seal(b);
	m = match_new(t, b, digest_bytes(SEED, p, n), NULL);
	assert_non_null(m);
	return m;
}

/* The cache keeps it packed from now on: nobody can have its bytes for a comparison. */
static int unpack(const struct buf *packed, uint8_t *to, size_t n)
{
	memcpy(to, buf_data(packed), n);
	return 0;
}

static struct match *packed_match_of(struct match_table *t, const uint8_t *p, size_t n)
{
	_cleanup_free_ uint64_t *blocks = calloc(n / VSR_BLOCK_SIZE + 1, sizeof(*blocks));
	_cleanup_(buf_unrefp)
	struct buf *b = NULL;
	struct match *m;
	uint64_t digest;

	assert_non_null(blocks);
	assert_int_equal(buf_new(n, &b), 0);
	memcpy(buf_tail(b), p, n);
	buf_advance(b, n);
	buf_seal(b);
	digest = digest_blocks(SEED, p, n, blocks);
	m = match_new(t, b, digest, blocks);
	assert_non_null(m);
	match_pack(m, b, unpack);
	assert_null(match_content(m));
	return m;
}

static int table_new(void **state)
{
	return match_table_new(NULL, 1 << 16, (struct match_table **)state);
}

static int table_free(void **state)
{
	struct match_figures f;

	match_table_figures(*state, &f);
	assert_int_equal(f.pinned, 0);
	*state = match_table_free(*state);
	return 0;
}

static void assert_blocks(const uint64_t *blocks, const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n / VSR_BLOCK_SIZE; i++)
		assert_int_equal(blocks[i], XXH64(p + i * VSR_BLOCK_SIZE, VSR_BLOCK_SIZE, SEED));
}

/* Sends the n bytes at p in this mode, to a stream that is compared with `content`: it ends with
 * exactly these bytes, and where they equal the content they were not kept. */
static void assert_compared(struct match_table *t, const uint8_t *content, size_t content_len,
			    const uint8_t *p, size_t n, uint32_t mode, size_t chunk, bool packed)
{
	struct match *m = packed ? packed_match_of(t, content, content_len)
				 : match_of(t, content, content_len);
	/* Bytes of a block that is not whole yet are believed. */
	size_t believed = packed ? VSR_BLOCK_SIZE - 1 : 0;
	_cleanup_free_ uint8_t *f = frame(VSR_MODE_VSR1, p, n);
	size_t header = mode == VSR_MODE_RAW ? 0 : VSR_HEADER_SIZE, same = 0;
	bool repeat = n == content_len && memcmp(p, content, n) == 0;
	struct world w;

	while (same < MIN(n, content_len) && p[same] == content[same])
		same++;
	world_open_match(&w, 2 * MAX_BYTES, m);
	assert_true(feed(&w, f + VSR_HEADER_SIZE - header, header + n, chunk) <= STREAM_ENDED);
	if (mode == VSR_MODE_RAW)
		half_close(&w);
	assert_int_equal(look_all(&w), STREAM_ENDED);
	assert_int_equal(stream_repeats(&w.s), repeat);
	assert_int_equal(stream_unread(&w.s), repeat);
	assert_true(w.s.seen.known + 65536 >= header + same);
	assert_true(w.s.seen.known <= header + same + believed);
	assert_int_equal(w.s.received, header + n);
	if (same == n)
		assert_null(w.s.buf);
	assert_payload(&w, p, n);
	if (repeat && !packed)
		assert_ptr_equal(w.s.buf, match_content(m)); /* no second copy */
	else
		assert_blocks(stream_blocks(&w.s), p, n);
	world_close(&w);
	match_uncache(m);
}

static const size_t chunks[] = { 1000, 4096, 65536 };

static void compare_in_all_modes(struct match_table *t, const uint8_t *content, size_t content_len,
				 const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < ARRAY_SIZE(chunks); i++) {
		if (n > 100000 && chunks[i] < 65536)
			continue;
		for (int packed = 0; packed < 2; packed++) {
			assert_compared(t, content, content_len, p, n, VSR_MODE_RAW, chunks[i],
					packed);
			assert_compared(t, content, content_len, p, n, VSR_MODE_VSR1, chunks[i],
					packed);
		}
	}
}

static void a_repeat_is_not_kept(void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		_cleanup_free_ uint8_t *p = some_bytes(sizes[i]);

		compare_in_all_modes(*state, p, sizes[i], p, sizes[i]);
	}
}

static void one_changed_byte_restores_what_was_not_kept(void **state)
{
	static const size_t at[] = { 0, 1, 15, 16, 4095, 4096, 65535, 65536, 500000 };

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++)
		for (size_t e = 0; e <= ARRAY_SIZE(at); e++) {
			size_t n = sizes[i], where = e < ARRAY_SIZE(at) ? at[e] : n - 1;
			_cleanup_free_ uint8_t *p = some_bytes(n), *q = some_bytes(n);

			if (where >= n)
				continue;
			q[where] ^= 2;
			compare_in_all_modes(*state, p, n, q, n);
		}
}

static void shorter_longer_and_zeros_are_other_content(void **state)
{
	static const size_t by[] = { 1, 16, 4096, 70000 };

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++)
		for (size_t e = 0; e < ARRAY_SIZE(by); e++) {
			size_t n = sizes[i];
			_cleanup_free_ uint8_t *p = some_bytes(n + by[e]);

			compare_in_all_modes(*state, p, n, p, n + by[e]);
			compare_in_all_modes(*state, p, n + by[e], p, n);
			memset(p + n, 0, by[e]);
			compare_in_all_modes(*state, p, n, p, n + by[e]);
		}
}

static void what_is_compared_costs_nothing_until_the_cache_lets_go(void **state)
{
	enum { N = 300000 };
	_cleanup_free_ uint8_t *p = some_bytes(N + 1);
	struct match *m = match_of(*state, p, N);
	struct world w;

	world_open_match(&w, 1000, m);
	assert_int_equal(feed(&w, p, N - 1, 65536), STREAM_MORE);
	assert_int_equal(look_all(&w), STREAM_MORE);
	assert_int_equal(stream_charge(&w.s), 0);
	match_uncache(m);
	assert_in_range(stream_charge(&w.s), N, N + VSR_BLOCK_SIZE);
	assert_in_range(stream_pinned(&w.s), N, N + VSR_BLOCK_SIZE);
	/* It is what the stream is made of when it differs at last. */
	stream_reserve(&w.s, 2 * N);
	p[N - 1] ^= 1;
	assert_int_equal(feed(&w, p + N - 1, 1, 1), STREAM_MORE);
	assert_int_equal(stream_pinned(&w.s), 0);
	half_close(&w);
	assert_int_equal(look_all(&w), STREAM_ENDED);
	assert_payload(&w, p, N);
	world_close(&w);
}

static void a_difference_that_cannot_be_paid_is_over_budget(void **state)
{
	enum { N = 300000 };
	_cleanup_free_ uint8_t *p = some_bytes(N);
	struct match *m = match_of(*state, p, N);
	struct world w;

	for (unsigned reserve = 0; reserve < 2; reserve++) {
		enum stream_state state_now;

		world_open_match(&w, 1000, m);
		w.pool.limit = reserve ? MIB : 0;
		assert_int_equal(feed(&w, p, 200000, 65536), STREAM_MORE);
		assert_int_equal(look_all(&w), STREAM_MORE);
		state_now = feed(&w, (const uint8_t *)"other", 5, 5);
		if (reserve) {
			assert_int_equal(state_now, STREAM_MORE);
			assert_in_range(w.s.share, 200005 - 1000, 200005 - 1000 + 65536);
		} else {
			assert_refused(&w, state_now, REASON_OVER_BUDGET);
		}
		world_close(&w);
	}
	match_uncache(m);
}

static int unpack_some(const struct buf *packed _unused_, uint8_t *to, size_t n)
{
	_cleanup_free_ uint8_t *p = some_bytes(n);

	memcpy(to, p, n);
	return 0;
}

static int unpack_nothing(const struct buf *packed _unused_, uint8_t *to _unused_,
			  size_t n _unused_)
{
	return -EIO;
}

static void content_that_is_packed_meanwhile_restores_the_beginning(void **state)
{
	enum { N = 200000 };
	_cleanup_free_ uint8_t *p = some_bytes(N);
	_cleanup_(buf_unrefp)
	struct buf *packed = NULL;

	assert_int_equal(buf_new(1, &packed), 0);
	buf_seal(packed);
	for (unsigned good = 0; good < 2; good++) {
		struct match *m = match_of(*state, p, N);
		enum stream_state state_now;
		struct world w;

		world_open_match(&w, MIB, m);
		assert_int_equal(feed(&w, p, N / 2, 65536), STREAM_MORE);
		assert_int_equal(look_all(&w), STREAM_MORE);
		match_pack(m, packed, good ? unpack_some : unpack_nothing);
		state_now = feed(&w, p + N / 2, N / 2, 65536);
		if (good) {
			assert_int_equal(state_now, STREAM_MORE);
			half_close(&w);
			assert_int_equal(look_all(&w), STREAM_ENDED);
			assert_payload(&w, p, N);
		} else {
			assert_refused(&w, state_now, REASON_INTERNAL);
		}
		world_close(&w);
		/* One that is packed already is not compared with here. */
		world_open_match(&w, MIB, m);
		assert_null(w.s.match);
		world_close(&w);
		match_uncache(m);
	}
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

#define match_test(f) cmocka_unit_test_setup_teardown(f, table_new, table_free)

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
		match_test(a_repeat_is_not_kept),
		match_test(one_changed_byte_restores_what_was_not_kept),
		match_test(shorter_longer_and_zeros_are_other_content),
		match_test(what_is_compared_costs_nothing_until_the_cache_lets_go),
		match_test(a_difference_that_cannot_be_paid_is_over_budget),
		match_test(content_that_is_packed_meanwhile_restores_the_beginning),
		cmocka_unit_test(a_turn_ends_after_a_while_and_a_frame_at_its_last_byte),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
