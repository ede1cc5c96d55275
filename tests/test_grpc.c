/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The gRPC core against nghttp2's own server side, without sockets: each test is named after the
 * rule that it proves. What a hostile server sends that nghttp2 would not, is injected as bytes.
 *
 * VSR_CORPUS=DIRECTORY writes what the server sent in each test there: seeds for the fuzzer.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <malloc.h>
#include <nghttp2/nghttp2.h>

#include "grpc.h"
#include "packed.h"

#define MSEC USEC_PER_MSEC
#define SEC  USEC_PER_SEC
#define T0   (1000 * SEC)

#define PATH_UNARY  "/test.Service/Unary"
#define PATH_STREAM "/test.Service/Stream"

/* ---- memory that runs out ------------------------------------------------------------------------ */

/* The compiler must not see that these are malloc and calloc, or it makes ours call itself. */
static void *(*volatile allocate)(size_t size) = malloc;
static long fail_at = -1;    /* so many allocations succeed; negative: all */
static bool client_runs;     /* the server's memory does not run out */
static unsigned int n_fresh; /* buffers that began as small as they are for an incoming message */

/* A function of the core: only here do allocations fail. */
#define CORE(expr)                        \
	({                                \
		__typeof__(expr) _result; \
		client_runs = true;       \
		_result = (expr);         \
		client_runs = false;      \
		_result;                  \
	})

static bool runs_out(void)
{
	return client_runs && fail_at >= 0 && fail_at-- == 0;
}

void *calloc(size_t n, size_t size)
{
	void *p = runs_out() ? NULL : allocate(MAX(n * size, (size_t)1));

	return p ? memset(p, 0, n * size) : NULL;
}

void *realloc(void *old, size_t size)
{
	void *p = runs_out() ? NULL : allocate(MAX(size, (size_t)1));

	n_fresh += client_runs && !old && size == 256;
	if (p && old)
		memcpy(p, old, MIN(malloc_usable_size(old), size));
	if (p)
		free(old);
	return p;
}

/* valgrind puts its own calloc in the place of ours. */
static bool failures_reach_us(void)
{
	void *(*volatile allocate_zeroed)(size_t, size_t) = calloc;
	void *p;

	fail_at = 0;
	p = CORE(allocate_zeroed(1, 1));
	fail_at = -1;
	free(p);
	return !p;
}

static void *mem_malloc(size_t size, void *userdata _unused_)
{
	return runs_out() ? NULL : allocate(size);
}

static void mem_free(void *p, void *userdata _unused_)
{
	free(p);
}

static void *mem_calloc(size_t n, size_t size, void *userdata _unused_)
{
	return calloc(n, size);
}

static void *mem_realloc(void *p, size_t size, void *userdata _unused_)
{
	return realloc(p, size);
}

/* In the place of the library's: what the core allocates through nghttp2 fails, too. */
int nghttp2_session_client_new(nghttp2_session **ret, const nghttp2_session_callbacks *callbacks,
			       void *userdata)
{
	static nghttp2_mem mem = { NULL, mem_malloc, mem_free, mem_calloc, mem_realloc };

	return nghttp2_session_client_new3(ret, callbacks, userdata, NULL, &mem);
}

/* ---- the server ---------------------------------------------------------------------------------- */

#define STREAMS	    64
#define HEADERS_MAX 2048

struct stream {
	int32_t id;
	char headers[HEADERS_MAX]; /* "name: value\n" */
	uint8_t *body;
	size_t body_len, body_max;
	bool ended;
	int reset; /* RST_STREAM's code, -1: none */
	/* the answer */
	uint8_t *answer;
	size_t answer_len, answer_sent;
	bool answer_ends; /* with trailers */
	const char *status, *message;
	bool has_answered;
};

struct call_log {
	struct grpc_call *call;
	int done;
	enum grpc_status status;
	char message[256];
	bool undelivered, damaged;
	uint8_t response[64];
	size_t response_len;
	size_t n_messages;
	char messages[256]; /* joined by '|' */
	bool cancel_on_message;
	struct call_log *cancels; /* when this one is done */
};

struct world {
	struct grpc *g;
	nghttp2_session *server;
	uint64_t now;
	struct stream streams[STREAMS];
	size_t n_streams;
	size_t pings, goaways;
	size_t chunk;		  /* bytes a turn; 0: all */
	int result;		  /* of grpc_input() and grpc_run() */
	bool hold;		  /* the client's output is not taken */
	const void *seen_payload; /* address within iovecs that was asked for */
	const uint8_t *payload;
	size_t payload_len, payload_pieces;
	FILE *corpus;
};

static struct world *current;

static struct stream *find(struct world *w, int32_t id)
{
	for (size_t i = 0; i < w->n_streams; i++)
		if (w->streams[i].id == id)
			return &w->streams[i];
	return NULL;
}

static int s_begin(nghttp2_session *s _unused_, const nghttp2_frame *f, void *userdata)
{
	struct world *w = userdata;

	if (f->hd.type == NGHTTP2_HEADERS && !find(w, f->hd.stream_id)) {
		assert_true(w->n_streams < STREAMS);
		w->streams[w->n_streams++] = (struct stream){ .id = f->hd.stream_id, .reset = -1 };
	}
	return 0;
}

static int s_header(nghttp2_session *s _unused_, const nghttp2_frame *f, const uint8_t *name,
		    size_t name_len, const uint8_t *value, size_t len, uint8_t flags _unused_,
		    void *userdata)
{
	struct stream *st = find(userdata, f->hd.stream_id);
	size_t n = strlen(st->headers);

	snprintf(st->headers + n, HEADERS_MAX - n, "%.*s: %.*s\n", (int)name_len, name, (int)len,
		 value);
	return 0;
}

static int s_data(nghttp2_session *s _unused_, uint8_t flags _unused_, int32_t id,
		  const uint8_t *data, size_t len, void *userdata)
{
	struct stream *st = find(userdata, id);

	if (st->body_len + len > st->body_max) {
		uint8_t *body;

		st->body_max = 2 * (st->body_len + len);
		body = malloc(st->body_max);
		assert_non_null(body);
		if (st->body)
			memcpy(body, st->body, st->body_len);
		free(st->body);
		st->body = body;
	}
	memcpy(st->body + st->body_len, data, len);
	st->body_len += len;
	return 0;
}

static int s_frame(nghttp2_session *s _unused_, const nghttp2_frame *f, void *userdata)
{
	struct world *w = userdata;
	struct stream *st = find(w, f->hd.stream_id);

	if (f->hd.type == NGHTTP2_PING && !(f->hd.flags & NGHTTP2_FLAG_ACK))
		w->pings++;
	if (f->hd.type == NGHTTP2_GOAWAY)
		w->goaways++;
	if (st && f->hd.type == NGHTTP2_RST_STREAM)
		st->reset = (int)f->rst_stream.error_code;
	if (st && f->hd.flags & NGHTTP2_FLAG_END_STREAM)
		st->ended = true;
	return 0;
}

static nghttp2_nv nv(const char *name, const char *value)
{
	return (nghttp2_nv){ (uint8_t *)name, (uint8_t *)value, strlen(name), strlen(value), 0 };
}

static ssize_t s_answer(nghttp2_session *s, int32_t id, uint8_t *to, size_t len, uint32_t *flags,
			nghttp2_data_source *source, void *userdata _unused_)
{
	struct stream *st = source->ptr;
	size_t n = MIN(len, st->answer_len - st->answer_sent);

	if (n == 0 && !st->answer_ends)
		return NGHTTP2_ERR_DEFERRED;
	if (n > 0)
		memcpy(to, st->answer + st->answer_sent, n);
	st->answer_sent += n;
	if (st->answer_ends && st->answer_sent == st->answer_len) {
		*flags |= NGHTTP2_DATA_FLAG_EOF;
		if (st->status) {
			nghttp2_nv trailers[] = { nv("grpc-status", st->status),
						  nv("grpc-message", st->message) };

			*flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
			nghttp2_submit_trailer(s, id, trailers, *st->message ? 2 : 1);
		}
	}
	return (ssize_t)n;
}

/* ---- both together --------------------------------------------------------------------------------- */

static void note_payload(struct world *w, const struct iovec *iov, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		const uint8_t *p = iov[i].iov_base;

		if (w->payload && p >= w->payload && p < w->payload + w->payload_len)
			w->payload_pieces++;
	}
}

static bool to_server(struct world *w)
{
	struct iovec iov[8];
	size_t n, sent = 0;

	if (w->hold)
		return false;
	n = CORE(grpc_output(w->g, iov, ARRAY_SIZE(iov)));
	note_payload(w, iov, n);
	for (size_t i = 0; i < n; i++) {
		size_t len = w->chunk ? MIN(w->chunk - sent, iov[i].iov_len) : iov[i].iov_len;

		if (nghttp2_session_want_read(w->server) || nghttp2_session_want_write(w->server))
			nghttp2_session_mem_recv(w->server, iov[i].iov_base, len);
		sent += len;
		if (w->chunk && sent == w->chunk)
			break;
	}
	if (sent > 0)
		grpc_sent(w->g, sent, w->now);
	return n > 0;
}

/* Bytes as from the server. */
static void feed(struct world *w, const void *data, size_t len)
{
	const uint8_t *p = data;
	size_t step = w->chunk ? w->chunk : MAX(len, (size_t)1);

	if (w->corpus)
		fwrite(data, 1, len, w->corpus);
	for (; len > 0 && w->result == 0; p += MIN(step, len), len -= MIN(step, len))
		w->result = CORE(grpc_input(w->g, p, MIN(step, len), w->now));
}

static bool to_client(struct world *w)
{
	const uint8_t *data;
	ssize_t n = nghttp2_session_mem_send(w->server, &data);

	if (n > 0)
		feed(w, data, (size_t)n);
	return n > 0;
}

/* Until both have said all. */
static void pump(struct world *w)
{
	for (int i = 0; i < 2000000; i++) {
		bool more = to_server(w);

		if (!(to_client(w) || more) || w->result < 0)
			return;
	}
	fail_msg("the two never come to rest");
}

static void later(struct world *w, uint64_t usec)
{
	w->now += usec;
	if (w->result == 0)
		w->result = CORE(grpc_run(w->g, w->now));
	pump(w);
}

static nghttp2_session *server_new(struct world *w, const nghttp2_settings_entry *entries, size_t n,
				   bool manual_windows)
{
	nghttp2_session_callbacks *c;
	nghttp2_session *s;
	nghttp2_option *option;

	nghttp2_session_callbacks_new(&c);
	nghttp2_session_callbacks_set_on_begin_headers_callback(c, s_begin);
	nghttp2_session_callbacks_set_on_header_callback(c, s_header);
	nghttp2_session_callbacks_set_on_data_chunk_recv_callback(c, s_data);
	nghttp2_session_callbacks_set_on_frame_recv_callback(c, s_frame);
	nghttp2_option_new(&option);
	nghttp2_option_set_no_auto_window_update(option, manual_windows);
	nghttp2_session_server_new2(&s, c, w, option);
	nghttp2_option_del(option);
	nghttp2_session_callbacks_del(c);
	nghttp2_submit_settings(s, 0, entries, n);
	return s;
}

static const struct grpc_metadata node = { "rox-compliance-nodename", "node-1" };
static const struct grpc_settings settings = {
	.scheme = "http",
	.authority = "sensor:443",
	.user_agent = "vsock-relayd/test",
	.metadata = &node,
	.n_metadata = 1,
	.ping_interval = GRPC_PING_INTERVAL,
	.ping_timeout = GRPC_PING_TIMEOUT,
};

static int open_with(struct world *w, const nghttp2_settings_entry *entries, size_t n, bool manual)
{
	const char *dir = getenv("VSR_CORPUS");
	static unsigned int number;
	int r;

	memset(w, 0, sizeof(*w));
	current = w;
	w->now = T0;
	r = CORE(grpc_new(&settings, w->now, &w->g));
	if (r < 0)
		return r;
	w->server = server_new(w, entries, n, manual);
	if (dir) {
		char path[512];

		snprintf(path, sizeof(path), "%s/world%02u", dir, number++);
		w->corpus = fopen(path, "w");
	}
	return 0;
}

static void world_open(struct world *w)
{
	assert_int_equal(open_with(w, NULL, 0, false), 0);
	pump(w);
	assert_true(grpc_ready(w->g));
}

static void world_close(struct world *w)
{
	if (w->g) {
		grpc_close(w->g, "test is over", w->now);
		assert_int_equal(grpc_calls(w->g), 0);
	}
	w->g = grpc_free(w->g);
	nghttp2_session_del(w->server);
	for (size_t i = 0; i < w->n_streams; i++) {
		free(w->streams[i].body);
		free(w->streams[i].answer);
	}
	if (w->corpus)
		fclose(w->corpus);
	current = NULL;
}

/* ---- calls ---- */

static void on_done(struct grpc_call *call _unused_, const struct grpc_result *r, void *userdata,
		    uint64_t now)
{
	struct call_log *log = userdata;

	assert_int_equal(now, current->now);
	log->done++;
	log->call = NULL;
	log->status = r->status;
	log->undelivered = r->undelivered;
	log->damaged = r->damaged;
	snprintf(log->message, sizeof(log->message), "%s", r->message);
	log->response_len = r->response_len;
	if (r->response)
		memcpy(log->response, r->response, MIN(r->response_len, sizeof(log->response)));
	if (log->cancels)
		grpc_call_cancel(log->cancels->call);
}

static void on_message(struct grpc_call *call, const uint8_t *data, size_t len, void *userdata,
		       uint64_t now _unused_)
{
	struct call_log *log = userdata;
	size_t n = strlen(log->messages);

	log->n_messages++;
	snprintf(log->messages + n, sizeof(log->messages) - n, "%.*s|", (int)len,
		 len ? (const char *)data : "");
	if (log->cancel_on_message)
		grpc_call_cancel(call);
}

static struct buf *payload_of(size_t len)
{
	struct buf *b = NULL;

	assert_int_equal(buf_new(len + 1, &b), 0);
	for (size_t i = 0; i < len; i++)
		buf_tail(b)[i] = (uint8_t)(i * 7 + i / 251);
	buf_advance(b, len);
	buf_seal(b);
	return b;
}

static int call_with(struct world *w, struct call_log *log, struct buf *payload, uint64_t timeout)
{
	struct grpc_request request = {
		.path = PATH_UNARY,
		.payload = payload,
		.timeout = timeout,
		.done = on_done,
		.userdata = log,
	};

	*log = (struct call_log){ .status = GRPC_STATUS_MAX };
	w->payload = buf_packed(payload) ? NULL : buf_data(payload);
	w->payload_len = buf_len(payload);
	return CORE(grpc_call_start(w->g, &request, w->now, &log->call));
}

/* A unary call with a payload of len bytes and 5 s; *log must outlive it. */
static void call(struct world *w, struct call_log *log, size_t len)
{
	struct buf *payload = payload_of(len);

	assert_int_equal(call_with(w, log, payload, 5 * SEC), 0);
	buf_unref(payload);
	pump(w);
	assert_int_equal(log->done, 0);
}

static int start_stream(struct world *w, struct call_log *log)
{
	struct grpc_request request = {
		.path = PATH_STREAM,
		.timeout = USEC_INFINITY,
		.message = on_message,
		.done = on_done,
		.userdata = log,
	};

	*log = (struct call_log){ .status = GRPC_STATUS_MAX };
	return CORE(grpc_call_start(w->g, &request, w->now, &log->call));
}

/* ---- answers ---- */

static struct stream *last(struct world *w)
{
	assert_true(w->n_streams > 0);
	return &w->streams[w->n_streams - 1];
}

static void answer_add(struct stream *st, const void *data, size_t len)
{
	uint8_t *answer = malloc(st->answer_len + len + 1);

	assert_non_null(answer);
	if (st->answer)
		memcpy(answer, st->answer, st->answer_len);
	memcpy(answer + st->answer_len, data, len);
	free(st->answer);
	st->answer = answer;
	st->answer_len += len;
}

static void message_add(struct stream *st, const char *text)
{
	uint32_t len = (uint32_t)strlen(text);
	uint8_t prefix[5] = { 0, (uint8_t)(len >> 24), (uint8_t)(len >> 16), (uint8_t)(len >> 8),
			      (uint8_t)len };

	answer_add(st, prefix, sizeof(prefix));
	answer_add(st, text, len);
}

/* Headers and whatever was added, without an end. */
static void answer(struct world *w, struct stream *st)
{
	nghttp2_nv headers[] = { nv(":status", "200"), nv("content-type", "application/grpc") };
	nghttp2_data_provider provider = { { .ptr = st }, s_answer };

	if (st->has_answered)
		nghttp2_session_resume_data(w->server, st->id);
	else
		nghttp2_submit_response(w->server, st->id, headers, 2, &provider);
	st->has_answered = true;
	pump(w);
}

static void answer_end(struct world *w, struct stream *st, const char *status, const char *message)
{
	st->answer_ends = true;
	st->status = status;
	st->message = message;
	answer(w, st);
}

/* Headers alone end the stream. */
static void headers_only(struct world *w, struct stream *st, const nghttp2_nv *headers, size_t n)
{
	nghttp2_submit_headers(w->server, NGHTTP2_FLAG_END_STREAM, st->id, NULL, headers, n, NULL);
	pump(w);
}

static void trailers_only(struct world *w, struct stream *st, const char *status,
			  const char *message)
{
	nghttp2_nv headers[] = { nv(":status", "200"), nv("content-type", "application/grpc"),
				 nv("grpc-status", status), nv("grpc-message", message) };

	headers_only(w, st, headers, *message ? 4 : 3);
}

static void assert_result(const struct call_log *log, enum grpc_status status, bool undelivered)
{
	assert_int_equal(log->done, 1);
	assert_string_equal(grpc_status_name(log->status), grpc_status_name(status));
	assert_int_equal(log->undelivered, undelivered);
}

/* A call still goes through. */
static void assert_usable(struct world *w)
{
	struct call_log log;

	call(w, &log, 10);
	message_add(last(w), "ok");
	answer_end(w, last(w), "0", "");
	assert_result(&log, GRPC_OK, false);
}

static bool body_is(const struct stream *st, size_t len)
{
	if (st->body_len != len + 5 || st->body[0] != 0)
		return false;
	if (((size_t)st->body[1] << 24 | (size_t)st->body[2] << 16 | (size_t)st->body[3] << 8 |
	     st->body[4]) != len)
		return false;
	for (size_t i = 0; i < len; i++)
		if (st->body[5 + i] != (uint8_t)(i * 7 + i / 251))
			return false;
	return st->ended;
}

/* ---- unary calls ------------------------------------------------------------------------------------ */

static void a_call_says_who_where_and_how_long(void **state _unused_)
{
	struct world w;
	struct call_log log;

	world_open(&w);
	call(&w, &log, 1000);
	assert_string_equal(last(&w)->headers, ":method: POST\n"
					       ":scheme: http\n"
					       ":path: " PATH_UNARY "\n"
					       ":authority: sensor:443\n"
					       "grpc-timeout: 5000000u\n"
					       "te: trailers\n"
					       "content-type: application/grpc\n"
					       "user-agent: vsock-relayd/test\n"
					       "rox-compliance-nodename: node-1\n");
	assert_true(body_is(last(&w), 1000));
	message_add(last(&w), "\x08\x01");
	answer_end(&w, last(&w), "0", "");
	assert_result(&log, GRPC_OK, false);
	assert_int_equal(log.response_len, 2);
	assert_memory_equal(log.response, "\x08\x01", 2);
	assert_int_equal(last(&w)->reset, -1);
	world_close(&w);
}

static void long_timeouts_are_sent_in_seconds(void **state _unused_)
{
	struct buf *payload = payload_of(1);
	struct world w;
	struct call_log log;

	world_open(&w);
	assert_int_equal(call_with(&w, &log, payload, 2 * USEC_PER_HOUR), 0);
	pump(&w);
	assert_non_null(strstr(last(&w)->headers, "grpc-timeout: 7200S\n"));
	buf_unref(payload);
	world_close(&w);
}

/* Every size around the sizes of frames and windows, the payload never copied. */
static void payloads_arrive_whole_and_are_not_copied(void **state _unused_)
{
	static const size_t sizes[] = { 0,     1,	11,	  16379,	   16380,
					16384, 65529,	65530,	  65531,	   65535,
					70000, 2500000, 16 * MIB, GRPC_MESSAGE_MAX };

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		struct call_log log;
		struct world w;

		world_open(&w);
		call(&w, &log, sizes[i]);
		assert_true(body_is(last(&w), sizes[i]));
		assert_true(sizes[i] == 0 || w.payload_pieces > 0);
		message_add(last(&w), "x");
		answer_end(&w, last(&w), "0", "");
		assert_result(&log, GRPC_OK, false);
		world_close(&w);
	}
}

/* Frames, windows and pieces of a packed payload: it arrives as it was. */
static void packed_payloads_arrive_unpacked(void **state _unused_)
{
	static const size_t sizes[] = { 8192, 16379, 65530, 65531, 70000, 2500000, 16 * MIB };
	static const size_t chunks[] = { 0, 1000 };

	for (size_t i = 0; i < 2 * ARRAY_SIZE(sizes); i++) {
		size_t size = sizes[i / 2];
		struct buf *payload = payload_of(size), *packed = pack_in_steps(payload, MIB);
		struct call_log log;
		struct world w;

		assert_non_null(packed);
		assert_int_equal(open_with(&w, NULL, 0, false), 0);
		w.chunk = chunks[i % 2];
		pump(&w);
		assert_int_equal(call_with(&w, &log, packed, 5 * SEC), 0);
		buf_unref(payload);
		buf_unref(packed);
		pump(&w);
		assert_true(body_is(last(&w), size));
		message_add(last(&w), "x");
		answer_end(&w, last(&w), "0", "");
		assert_result(&log, GRPC_OK, false);
		assert_false(log.damaged);
		world_close(&w);
	}
}

/* The request never gets to its end, whatever the receiver saw of it, and the connection lives. */
static void a_damaged_payload_is_never_delivered(void **state _unused_)
{
	struct buf *payload = payload_of(300000), *packed = pack_in_steps(payload, MIB);
	size_t len;

	buf_stored(packed, &len);
	len -= sizeof(uint64_t); /* XXH64, behind the frame */
	for (size_t i = 1; i < 4; i++) {
		struct buf *bad = with_damage(packed, len * i / 3 - 1);
		struct call_log log;
		struct world w;

		world_open(&w);
		assert_int_equal(call_with(&w, &log, bad, 5 * SEC), 0);
		buf_unref(bad);
		pump(&w);
		later(&w, 0);
		assert_result(&log, GRPC_DATA_LOSS, false);
		assert_true(log.damaged);
		assert_false(last(&w)->ended);
		assert_int_not_equal(last(&w)->reset, -1);
		assert_usable(&w);
		world_close(&w);
	}
	buf_unref(payload);
	buf_unref(packed);
}

static void payloads_arrive_whole_byte_by_byte(void **state _unused_)
{
	struct call_log log;
	struct world w;

	assert_int_equal(open_with(&w, NULL, 0, false), 0);
	w.chunk = 1;
	pump(&w);
	call(&w, &log, 70000);
	assert_true(body_is(last(&w), 70000));
	message_add(last(&w), "x");
	answer_end(&w, last(&w), "0", "");
	assert_result(&log, GRPC_OK, false);
	world_close(&w);
}

static void a_payload_is_released_with_its_call(void **state _unused_)
{
	struct buf *payload = payload_of(100000);
	struct call_log log;
	struct world w;

	world_open(&w);
	w.hold = true;
	assert_int_equal(call_with(&w, &log, payload, 5 * SEC), 0);
	pump(&w);
	later(&w, 5 * SEC); /* with pieces of it still queued */
	assert_result(&log, GRPC_DEADLINE_EXCEEDED, true);
	world_close(&w);
	/* ASan and valgrind see whether a reference is left. */
	assert_null(buf_unref(payload));
}

static void a_message_over_the_limit_is_refused_before_it_is_sent(void **state _unused_)
{
	struct buf *payload = payload_of(GRPC_MESSAGE_MAX + 1);
	struct call_log log;
	struct world w;

	world_open(&w);
	assert_int_equal(call_with(&w, &log, payload, SEC), -EMSGSIZE);
	buf_unref(payload);
	assert_usable(&w);
	world_close(&w);
}

static void several_calls_end_in_any_order(void **state _unused_)
{
	struct call_log log[8];
	struct world w;

	world_open(&w);
	for (size_t i = 0; i < 8; i++)
		call(&w, &log[i], 100000 + i);
	for (size_t i = 0; i < 8; i++) {
		size_t k = (i * 5 + 3) % 8;

		assert_true(body_is(&w.streams[k], 100000 + k));
		message_add(&w.streams[k], "x");
		answer_end(&w, &w.streams[k], "0", "");
		assert_result(&log[k], GRPC_OK, false);
		assert_int_equal(grpc_calls(w.g), 7 - i);
	}
	world_close(&w);
}

/* ---- how calls end ------------------------------------------------------------------------------------ */

static void every_status_comes_through(void **state _unused_)
{
	for (int trailers = 0; trailers < 2; trailers++)
		for (int i = 1; i < GRPC_STATUS_MAX; i++) {
			struct call_log log;
			struct world w;
			char status[12];

			snprintf(status, sizeof(status), "%d", i);
			world_open(&w);
			call(&w, &log, 100);
			if (trailers)
				trailers_only(&w, last(&w), status, "why%20not%3F");
			else
				answer_end(&w, last(&w), status, "why%20not%3F");
			assert_result(&log, (enum grpc_status)i, false);
			assert_string_equal(log.message, "why not?");
			assert_usable(&w);
			world_close(&w);
		}
}

static void statuses_that_are_none_are_unknown(void **state _unused_)
{
	static const char *const statuses[] = { "17", "99999", "-1", "1x", "", "0x0" };

	for (size_t i = 0; i < ARRAY_SIZE(statuses); i++) {
		struct call_log log;
		struct world w;

		world_open(&w);
		call(&w, &log, 100);
		trailers_only(&w, last(&w), statuses[i], "");
		assert_result(&log, GRPC_UNKNOWN, false);
		world_close(&w);
	}
}

static void messages_are_decoded_and_made_printable(void **state _unused_)
{
	static const struct {
		const char *sent, *read;
	} cases[] = {
		{ "plain", "plain" },
		{ "%41%62%7a", "Abz" },
		{ "%", "%" },
		{ "%4", "%4" },
		{ "%zz%41", "%zzA" },
		{ "%-1%4-", "%-1%4-" },
		{ "a%0Ab%1b%00c", "a?b??c" },
		{ "\xc3\xa4%c3%A4", "????" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct call_log log;
		struct world w;

		world_open(&w);
		call(&w, &log, 100);
		trailers_only(&w, last(&w), "14", cases[i].sent);
		assert_string_equal(log.message, cases[i].read);
		world_close(&w);
	}
}

static void a_long_message_is_cut(void **state _unused_)
{
	char text[4001];
	struct call_log log;
	struct world w;

	memset(text, 'x', 4000);
	text[4000] = '\0';
	world_open(&w);
	call(&w, &log, 100);
	trailers_only(&w, last(&w), "14", text);
	assert_result(&log, GRPC_UNAVAILABLE, false);
	assert_true(strlen(log.message) > 100 && strlen(log.message) < 400);
	world_close(&w);
}

static void ok_needs_exactly_one_whole_message(void **state _unused_)
{
	struct call_log log;
	struct world w;

	world_open(&w);
	call(&w, &log, 100); /* none */
	answer_end(&w, last(&w), "0", "");
	assert_result(&log, GRPC_INTERNAL, false);

	call(&w, &log, 100); /* none, trailers only */
	trailers_only(&w, last(&w), "0", "");
	assert_result(&log, GRPC_INTERNAL, false);

	call(&w, &log, 100); /* two */
	message_add(last(&w), "one");
	message_add(last(&w), "two");
	answer_end(&w, last(&w), "0", "");
	assert_result(&log, GRPC_INTERNAL, false);

	call(&w, &log, 100); /* within the prefix */
	answer_add(last(&w), "\0\0\0", 3);
	answer_end(&w, last(&w), "0", "");
	assert_result(&log, GRPC_INTERNAL, false);

	call(&w, &log, 100); /* within the message */
	answer_add(last(&w), "\0\0\0\0\5abcd", 9);
	answer_end(&w, last(&w), "0", "");
	assert_result(&log, GRPC_INTERNAL, false);

	call(&w, &log, 100); /* an empty one is one */
	message_add(last(&w), "");
	answer_end(&w, last(&w), "0", "");
	assert_result(&log, GRPC_OK, false);
	assert_int_equal(log.response_len, 0);
	world_close(&w);
}

static void a_compressed_message_is_refused(void **state _unused_)
{
	struct call_log log;
	struct world w;

	world_open(&w);
	call(&w, &log, 100);
	answer_add(last(&w), "\1\0\0\0\1x", 6);
	answer(&w, last(&w));
	assert_result(&log, GRPC_INTERNAL, false);
	assert_int_equal(last(&w)->reset, NGHTTP2_CANCEL);
	assert_usable(&w);
	world_close(&w);
}

static void an_answer_over_the_limit_is_refused_by_its_length(void **state _unused_)
{
	struct call_log log;
	struct world w;

	world_open(&w);
	call(&w, &log, 100);
	answer_add(last(&w), "\0\1\200\0\1", 5); /* 24 MiB + 1 */
	answer(&w, last(&w));
	assert_result(&log, GRPC_RESOURCE_EXHAUSTED, false);

	call(&w, &log, 100);
	answer_add(last(&w), "\0\1\200\0\0", 5); /* 24 MiB: taken */
	for (size_t i = 0; i < 24; i++) {
		static const uint8_t mib[MIB];

		answer_add(last(&w), mib, sizeof(mib));
	}
	answer_end(&w, last(&w), "0", "");
	assert_result(&log, GRPC_OK, false);
	assert_int_equal(log.response_len, GRPC_MESSAGE_MAX);
	world_close(&w);
}

static void an_answer_that_is_no_grpc_is_read_by_its_http_status(void **state _unused_)
{
	static const struct {
		const char *http, *type;
		enum grpc_status status;
	} cases[] = {
		{ "200", "text/html", GRPC_UNKNOWN },
		{ "200", "application/grpcx", GRPC_UNKNOWN },
		{ "200", "application/xhtml+xml", GRPC_UNKNOWN },
		{ "099", "application/grpc", GRPC_UNKNOWN },
		{ "400", "text/html", GRPC_INTERNAL },
		{ "401", "text/html", GRPC_UNAUTHENTICATED },
		{ "403", "text/html", GRPC_PERMISSION_DENIED },
		{ "404", "application/grpc", GRPC_UNIMPLEMENTED },
		{ "429", "text/html", GRPC_UNAVAILABLE },
		{ "502", "text/html", GRPC_UNAVAILABLE },
		{ "503", "text/html", GRPC_UNAVAILABLE },
		{ "504", "text/html", GRPC_UNAVAILABLE },
		{ "500", "text/html", GRPC_UNKNOWN },
		{ "302", "text/html", GRPC_UNKNOWN },
	};

	for (int body = 0; body < 2; body++)
		for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
			struct call_log log;
			struct world w;
			nghttp2_nv headers[2] = { nv(":status", cases[i].http),
						  nv("content-type", cases[i].type) };

			world_open(&w);
			call(&w, &log, 100);
			nghttp2_submit_headers(w.server, body ? 0 : NGHTTP2_FLAG_END_STREAM,
					       last(&w)->id, NULL, headers, 2, NULL);
			pump(&w);
			assert_result(&log, cases[i].status, false);
			assert_usable(&w);
			world_close(&w);
		}
}

static void other_grpc_content_types_are_taken(void **state _unused_)
{
	static const char *const types[] = { "application/grpc+proto",
					     "application/grpc;charset=x" };

	for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
		struct call_log log;
		struct world w;
		nghttp2_nv headers[] = { nv(":status", "200"), nv("content-type", types[i]),
					 nv("grpc-status", "5") };

		world_open(&w);
		call(&w, &log, 100);
		headers_only(&w, last(&w), headers, 3);
		assert_result(&log, GRPC_NOT_FOUND, false);
		world_close(&w);
	}
}

static void informational_answers_are_skipped(void **state _unused_)
{
	nghttp2_nv hints[] = { nv(":status", "103") };
	struct call_log log;
	struct world w;

	world_open(&w);
	call(&w, &log, 100);
	for (int i = 0; i < 3; i++)
		nghttp2_submit_headers(w.server, 0, last(&w)->id, NULL, hints, 1, NULL);
	message_add(last(&w), "x");
	answer_end(&w, last(&w), "0", "");
	assert_result(&log, GRPC_OK, false);
	world_close(&w);
}

static void an_end_without_a_status_is_a_failure(void **state _unused_)
{
	nghttp2_nv no_status[] = { nv(":status", "200"), nv("content-type", "application/grpc") };
	struct call_log log;
	struct world w;

	world_open(&w);
	call(&w, &log, 100);
	message_add(last(&w), "x");
	answer_end(&w, last(&w), NULL, ""); /* the last DATA ends the stream */
	assert_result(&log, GRPC_UNKNOWN, false);
	call(&w, &log, 100);
	headers_only(&w, last(&w), no_status, 2);
	assert_result(&log, GRPC_UNKNOWN, false);
	assert_usable(&w);
	world_close(&w);
}

/* The server answers before it has read the request: that is the end of the call, and of the
 * request's stream. */
static void an_early_answer_ends_the_request(void **state _unused_)
{
	const nghttp2_settings_entry small[] = { { NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 1000 } };
	struct call_log log;
	struct world w;

	assert_int_equal(open_with(&w, small, 1, true), 0);
	pump(&w);
	call(&w, &log, 100000);
	assert_int_equal(last(&w)->body_len, 1000);
	trailers_only(&w, last(&w), "8", "full");
	assert_result(&log, GRPC_RESOURCE_EXHAUSTED, false);
	assert_int_equal(last(&w)->reset, NGHTTP2_CANCEL);
	assert_int_equal(w.result, 0);
	world_close(&w);
}

static void resets_have_their_status(void **state _unused_)
{
	static const struct {
		uint32_t code;
		enum grpc_status status;
	} cases[] = {
		{ NGHTTP2_NO_ERROR, GRPC_INTERNAL },
		{ NGHTTP2_PROTOCOL_ERROR, GRPC_INTERNAL },
		{ NGHTTP2_INTERNAL_ERROR, GRPC_INTERNAL },
		{ NGHTTP2_FLOW_CONTROL_ERROR, GRPC_INTERNAL },
		{ NGHTTP2_CANCEL, GRPC_CANCELLED },
		{ NGHTTP2_ENHANCE_YOUR_CALM, GRPC_RESOURCE_EXHAUSTED },
		{ NGHTTP2_INADEQUATE_SECURITY, GRPC_PERMISSION_DENIED },
		{ NGHTTP2_STREAM_CLOSED, GRPC_UNKNOWN },
		{ NGHTTP2_HTTP_1_1_REQUIRED, GRPC_UNKNOWN },
		{ 0x12345, GRPC_INTERNAL },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct call_log log;
		struct world w;

		world_open(&w);
		call(&w, &log, 100);
		nghttp2_submit_rst_stream(w.server, 0, last(&w)->id, cases[i].code);
		pump(&w);
		assert_result(&log, cases[i].status, false);
		assert_usable(&w);
		world_close(&w);
	}
}

static void a_refused_stream_was_not_delivered(void **state _unused_)
{
	struct call_log log;
	struct world w;

	world_open(&w);
	call(&w, &log, 100);
	nghttp2_submit_rst_stream(w.server, 0, last(&w)->id, NGHTTP2_REFUSED_STREAM);
	pump(&w);
	assert_result(&log, GRPC_UNAVAILABLE, true);
	assert_usable(&w);
	world_close(&w);
}

static void a_reset_before_the_first_data_was_not_delivered(void **state _unused_)
{
	const nghttp2_settings_entry closed[] = { { NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 0 } };
	struct call_log log;
	struct world w;

	assert_int_equal(open_with(&w, closed, 1, true), 0);
	pump(&w);
	call(&w, &log, 100);
	assert_int_equal(last(&w)->body_len, 0);
	nghttp2_submit_rst_stream(w.server, 0, last(&w)->id, NGHTTP2_INTERNAL_ERROR);
	pump(&w);
	assert_result(&log, GRPC_INTERNAL, true);
	world_close(&w);
}

/* ---- the connection ends --------------------------------------------------------------------------- */

static void goaway_lets_calls_below_its_last_id_end_well(void **state _unused_)
{
	struct call_log low, high, none;
	struct buf *payload = payload_of(1);
	struct world w;

	world_open(&w);
	call(&w, &low, 100);
	call(&w, &high, 100);
	nghttp2_submit_goaway(w.server, 0, w.streams[0].id, NGHTTP2_NO_ERROR,
			      (const uint8_t *)"bye\n", 4);
	pump(&w);
	assert_result(&high, GRPC_UNAVAILABLE, true);
	assert_string_equal(high.message, "GOAWAY: NO_ERROR, bye?");
	assert_int_equal(low.done, 0);
	assert_true(grpc_draining(w.g));
	assert_false(grpc_too_many_pings(w.g));
	assert_int_equal(call_with(&w, &none, payload, SEC), -EPIPE);
	message_add(&w.streams[0], "x");
	answer_end(&w, &w.streams[0], "0", "");
	assert_result(&low, GRPC_OK, false);
	assert_int_equal(grpc_calls(w.g), 0);
	assert_int_equal(w.result, 0); /* no error: it is over */
	buf_unref(payload);
	world_close(&w);
}

/* A graceful stop: first with the highest id there is, then with the last one. */
static void goaway_may_come_twice(void **state _unused_)
{
	struct call_log log[2];
	struct world w;

	world_open(&w);
	call(&w, &log[0], 100);
	call(&w, &log[1], 100);
	nghttp2_submit_shutdown_notice(w.server);
	pump(&w);
	assert_true(grpc_draining(w.g));
	assert_int_equal(log[1].done, 0);
	nghttp2_submit_goaway(w.server, 0, w.streams[0].id, NGHTTP2_NO_ERROR, NULL, 0);
	pump(&w);
	assert_int_equal(log[0].done, 0);
	assert_result(&log[1], GRPC_UNAVAILABLE, true);
	world_close(&w);
	assert_result(&log[0], GRPC_UNAVAILABLE, false);
}

static void goaway_without_any_call_is_no_error(void **state _unused_)
{
	struct world w;

	world_open(&w);
	nghttp2_submit_goaway(w.server, 0, 0, NGHTTP2_NO_ERROR, NULL, 0);
	pump(&w);
	assert_true(grpc_draining(w.g));
	assert_int_equal(w.result, 0);
	assert_int_equal(grpc_run(w.g, w.now), 0);
	world_close(&w);
}

static void too_many_pings_are_told_apart(void **state _unused_)
{
	struct world w;

	world_open(&w);
	nghttp2_submit_goaway(w.server, 0, 0, NGHTTP2_ENHANCE_YOUR_CALM,
			      (const uint8_t *)"too_many_pings", 14);
	pump(&w);
	assert_true(grpc_too_many_pings(w.g));
	world_close(&w);

	world_open(&w);
	nghttp2_submit_goaway(w.server, 0, 0, NGHTTP2_ENHANCE_YOUR_CALM,
			      (const uint8_t *)"too_many_calls", 14);
	pump(&w);
	assert_true(grpc_draining(w.g));
	assert_false(grpc_too_many_pings(w.g));
	world_close(&w);
}

/* The server may still refuse a call that its GOAWAY let live; then that is not GOAWAY's doing. */
static void a_call_refused_after_goaway_says_which_of_the_two_it_was(void **state _unused_)
{
	struct call_log log;
	struct world w;

	world_open(&w);
	call(&w, &log, 100);
	nghttp2_submit_goaway(w.server, 0, last(&w)->id, NGHTTP2_NO_ERROR, NULL, 0);
	pump(&w);
	assert_int_equal(log.done, 0);
	nghttp2_submit_rst_stream(w.server, 0, last(&w)->id, NGHTTP2_REFUSED_STREAM);
	pump(&w);
	assert_result(&log, GRPC_UNAVAILABLE, true);
	assert_string_equal(log.message, "stream was reset: REFUSED_STREAM");
	world_close(&w);
}

/* What is broken after that is only what follows from it. */
static void the_first_reason_is_the_one_that_is_told(void **state _unused_)
{
	static const struct {
		const char *bytes;
		size_t len;
	} cases[] = {
		{ "\0\0\4\3\0\0\0\0\0\0\0\0\0", 13 }, /* RST_STREAM of stream 0 */
		{ "\0\0\1\1\4\0\0\0\1\377", 10 },     /* headers that cannot be decoded */
		{ "\0\0\5\1\4\0\0\0\1\0\1x\1y", 14 }, /* HEADERS without :status */
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct call_log log;
		struct world w;

		world_open(&w);
		call(&w, &log, 100);
		nghttp2_submit_goaway(w.server, 0, last(&w)->id, NGHTTP2_NO_ERROR,
				      (const uint8_t *)"bye", 3);
		pump(&w);
		feed(&w, cases[i].bytes, cases[i].len);
		assert_string_equal(grpc_why(w.g), "GOAWAY: NO_ERROR, bye");
		world_close(&w);
		assert_int_equal(log.done, 1);
	}
}

static void a_reason_is_told_as_one_printable_line(void **state _unused_)
{
	char why[1000] = "broken\n\x7f pipe ", shown[256];
	struct call_log log;
	struct world w;
	size_t n;

	n = strlen(why);
	memset(why + n, 'x', sizeof(why) - n - 1);
	snprintf(shown, sizeof(shown), "broken?? pipe %s", why + n);
	world_open(&w);
	call(&w, &log, 100);
	grpc_close(w.g, why, w.now);
	assert_result(&log, GRPC_UNAVAILABLE, false);
	assert_string_equal(log.message, shown);
	world_close(&w);
}

/* As when the daemon gives up: who asked is gone by then. ASan sees what is left over. */
static void a_freed_connection_frees_its_calls_and_tells_nobody(void **state _unused_)
{
	struct buf *payload = payload_of(100000), *packed = pack_in_steps(payload, MIB);
	struct buf *bad = with_damage(packed, 0);
	struct call_log open, over;
	struct iovec iov[8];
	struct world w;

	world_open(&w);
	assert_int_equal(call_with(&w, &open, payload, 5 * SEC), 0);
	assert_int_equal(call_with(&w, &over, bad, 5 * SEC), 0);
	assert_true(grpc_output(w.g, iov, ARRAY_SIZE(iov)) > 0);
	assert_int_equal(grpc_calls(w.g), 1);
	/* It ended while output was made: to be told at once. */
	assert_int_equal(grpc_next_event(w.g), 0);
	w.g = grpc_free(w.g);
	assert_int_equal(open.done + over.done, 0);
	world_close(&w);
	buf_unref(payload);
	buf_unref(packed);
	buf_unref(bad);
}

static void names_and_metadata_have_their_bounds(void **state _unused_)
{
	struct grpc_metadata many[9];
	struct grpc_settings s = settings;
	struct grpc *g = NULL;

	assert_string_equal(grpc_status_name(GRPC_STATUS_MAX), "?");
	for (size_t i = 0; i < ARRAY_SIZE(many); i++)
		many[i] = node;
	s.metadata = many;
	s.n_metadata = ARRAY_SIZE(many);
	assert_int_equal(grpc_new(&s, T0, &g), -EINVAL);
	assert_null(g);
	s.n_metadata--;
	assert_int_equal(grpc_new(&s, T0, &g), 0);
	grpc_free(g);
}

static void a_lost_connection_tells_what_may_have_arrived(void **state _unused_)
{
	struct call_log sent, queued;
	struct buf *payload = payload_of(100);
	struct world w;

	world_open(&w);
	call(&w, &sent, 100);
	w.hold = true;
	assert_int_equal(call_with(&w, &queued, payload, 5 * SEC), 0);
	pump(&w);
	grpc_close(w.g, "connection reset by peer", w.now);
	assert_result(&sent, GRPC_UNAVAILABLE, false);
	assert_string_equal(sent.message, "connection reset by peer");
	assert_result(&queued, GRPC_UNAVAILABLE, true);
	buf_unref(payload);
	world_close(&w);
}

/* DATA's first byte is the frame's header: as soon as it is out, the rest may follow. */
static void written_means_that_a_byte_of_data_is_out(void **state _unused_)
{
	struct buf *payload = payload_of(100);

	for (int more = 0; more < 2; more++) {
		struct call_log log;
		struct iovec iov[4];
		struct world w;
		size_t control, n;

		world_open(&w);
		assert_int_equal(call_with(&w, &log, payload, 5 * SEC), 0);
		n = grpc_output(w.g, iov, ARRAY_SIZE(iov));
		assert_true(n >= 2);
		/* HEADERS, then DATA's header of 9 bytes and gRPC's of 5, then the payload. */
		control = iov[0].iov_len - 14;
		grpc_sent(w.g, control + (size_t)more, w.now);
		grpc_close(w.g, "gone", w.now);
		assert_result(&log, GRPC_UNAVAILABLE, more == 0);
		world_close(&w);
	}
	buf_unref(payload);
}

static void a_peer_that_speaks_something_else_is_an_error(void **state _unused_)
{
	static const char *const greetings[] = { "HTTP/1.1 400 Bad Request\r\n\r\n",
						 "SSH-2.0-OpenSSH_9.2p1\r\n",
						 "\x15\x03\x01\x00\x02\x02\x46\x00\x00\x00\x00" };

	for (size_t i = 0; i < ARRAY_SIZE(greetings); i++) {
		struct call_log log;
		struct buf *payload = payload_of(1);
		struct world w;

		assert_int_equal(open_with(&w, NULL, 0, false), 0);
		assert_int_equal(call_with(&w, &log, payload, SEC), 0);
		feed(&w, greetings[i], MAX(strlen(greetings[i]), (size_t)11));
		assert_int_equal(w.result, -EPROTO);
		assert_true(*grpc_why(w.g) != '\0');
		assert_false(grpc_ready(w.g));
		buf_unref(payload);
		world_close(&w);
		assert_result(&log, GRPC_UNAVAILABLE, true);
	}
}

/* The answer to our SETTINGS says nothing about the server's own. */
static void a_connection_begins_with_the_settings_of_the_server(void **state _unused_)
{
	static const uint8_t ack[] = { 0, 0, 0, 4, 1, 0, 0, 0, 0 };
	struct call_log log;
	struct world w;

	assert_int_equal(open_with(&w, NULL, 0, false), 0);
	assert_int_equal(start_stream(&w, &log), 0);
	/* Until then, silence is not the silence of a gRPC server. */
	assert_int_equal(grpc_next_event(w.g), USEC_INFINITY);
	feed(&w, ack, sizeof(ack));
	assert_int_equal(w.result, -EPROTO);
	assert_false(grpc_ready(w.g));
	world_close(&w);
}

static void unknown_frames_are_ignored(void **state _unused_)
{
	static const uint8_t unknown[] = { 0,	0, 3, 0xfa, 0xff, 0, 0, 0, 0, 'x', 'y',
					   'z', 0, 0, 0,    0x42, 0, 0, 0, 0, 1 };
	struct call_log log;
	struct world w;

	world_open(&w);
	call(&w, &log, 100);
	feed(&w, unknown, sizeof(unknown));
	message_add(last(&w), "x");
	answer_end(&w, last(&w), "0", "");
	assert_result(&log, GRPC_OK, false);
	world_close(&w);
}

/* Frames that break HTTP/2 end the connection, or the one stream; never more than that happens. */
static void frames_that_break_the_rules_end_it(void **state _unused_)
{
	static const struct {
		const char *bytes;
		size_t len;
		bool stream_only;
	} cases[] = {
		{ "\0\0\4\3\0\0\0\0\0\0\0\0\0", 13, false },	      /* RST_STREAM of stream 0 */
		{ "\0\0\3\3\0\0\0\0\1\0\0\0", 12, false },	      /* RST_STREAM of 3 bytes */
		{ "\0\0\4\10\0\0\0\0\0\0\0\0\0", 13, false },	      /* WINDOW_UPDATE by 0 */
		{ "\0\0\4\10\0\0\0\0\0\177\377\377\377", 13, false }, /* a window too large */
		{ "\0\0\0\0\0\0\0\0\0", 9, false },		      /* DATA of stream 0 */
		{ "\0\0\1\1\4\0\0\0\11x", 10, false },	      /* HEADERS of an idle stream */
		{ "\0\0\4\5\4\0\0\0\1\0\0\0\2", 13, false },  /* PUSH_PROMISE, which is off */
		{ "\0\0\1\6\0\0\0\0\0x", 10, false },	      /* PING of a byte */
		{ "\377\377\377\0\0\0\0\0\1", 9, false },     /* a frame of 16 MB */
		{ "\0\0\1\1\4\0\0\0\1\377", 10, false },      /* headers that cannot be decoded */
		{ "\0\0\1\11\4\0\0\0\1x", 10, false },	      /* CONTINUATION of nothing */
		{ "\0\0\1\0\0\0\0\0\1x", 10, false },	      /* DATA before the headers */
		{ "\0\0\4\10\0\0\0\0\1\0\0\0\0", 13, false }, /* and of a stream */
		{ "\0\0\4\10\0\0\0\0\1\177\377\377\377", 13, true }, /* its window */
		{ "\0\0\5\1\4\0\0\0\1\0\1x\1y", 14, true },	     /* HEADERS without :status */
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct call_log log;
		struct world w;

		world_open(&w);
		call(&w, &log, 100);
		feed(&w, cases[i].bytes, cases[i].len);
		pump(&w);
		if (cases[i].stream_only) {
			later(&w, 0);
			assert_int_equal(w.result, 0);
			assert_int_equal(log.done, 1);
			assert_true(log.status != GRPC_OK);
		} else {
			assert_int_equal(w.result, -EPROTO);
			assert_int_equal(grpc_run(w.g, w.now), -EPROTO); /* and stays so */
		}
		world_close(&w);
		assert_int_equal(log.done, 1);
	}
}

static void a_flood_of_pings_is_bounded(void **state _unused_)
{
	static const uint8_t ping[17] = { 0, 0, 8, 6 };
	struct world w;
	size_t i;

	world_open(&w);
	w.hold = true; /* and it reads no answer */
	for (i = 0; i < 100000 && w.result == 0; i++)
		feed(&w, ping, sizeof(ping));
	assert_int_equal(w.result, -EPROTO);
	assert_true(i < 10000);
	world_close(&w);
}

/* ---- flow control -------------------------------------------------------------------------------------- */

static void a_window_of_0_holds_the_payload_until_it_opens(void **state _unused_)
{
	const nghttp2_settings_entry closed[] = { { NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 0 } };
	const nghttp2_settings_entry open[] = { { NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 1 << 20 } };
	struct call_log log;
	struct world w;

	assert_int_equal(open_with(&w, closed, 1, false), 0);
	pump(&w);
	call(&w, &log, 100000);
	assert_int_equal(last(&w)->body_len, 0);
	nghttp2_submit_settings(w.server, 0, open, 1);
	pump(&w);
	assert_true(body_is(last(&w), 100000));
	message_add(last(&w), "x");
	answer_end(&w, last(&w), "0", "");
	assert_result(&log, GRPC_OK, false);
	world_close(&w);
}

static void tiny_windows_and_frames_carry_it_bit_by_bit(void **state _unused_)
{
	const nghttp2_settings_entry tiny[] = { { NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 3 } };
	struct call_log log;
	struct world w;

	assert_int_equal(open_with(&w, tiny, 1, true), 0);
	pump(&w);
	call(&w, &log, 1000);
	for (size_t had = 0; !last(&w)->ended;) {
		size_t n = last(&w)->body_len - had;

		assert_in_range(n, 1, 3);
		had += n;
		nghttp2_session_consume_connection(w.server, n);
		nghttp2_submit_window_update(w.server, 0, last(&w)->id, (int32_t)n);
		pump(&w);
	}
	assert_true(body_is(last(&w), 1000));
	world_close(&w);
}

static void large_frames_are_used_where_allowed(void **state _unused_)
{
	const nghttp2_settings_entry large[] = {
		{ NGHTTP2_SETTINGS_MAX_FRAME_SIZE, 1 << 20 },
		{ NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 1 << 24 },
	};
	struct call_log log;
	struct world w;

	assert_int_equal(open_with(&w, large, 2, false), 0);
	nghttp2_session_set_local_window_size(w.server, 0, 0, 1 << 24);
	pump(&w);
	call(&w, &log, 5000000);
	assert_true(body_is(last(&w), 5000000));
	/* 16 KiB frames would be 306 of them. */
	assert_true(w.payload_pieces < 120);
	world_close(&w);
}

/* What the server does not read is not piled up here. */
static void output_is_bounded_and_other_calls_pass(void **state _unused_)
{
	const nghttp2_settings_entry wide[] = { { NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 1 << 30 } };
	struct call_log log[2];
	struct buf *payload = payload_of(16 * MIB);
	struct iovec iov[256];
	struct world w;
	size_t n, total = 0;

	assert_int_equal(open_with(&w, wide, 1, false), 0);
	nghttp2_session_set_local_window_size(w.server, 0, 0, 1 << 30);
	pump(&w);
	assert_int_equal(call_with(&w, &log[0], payload, 5 * SEC), 0);
	assert_int_equal(call_with(&w, &log[1], payload, 5 * SEC), 0);
	for (int i = 0; i < 10; i++) {
		n = grpc_output(w.g, iov, ARRAY_SIZE(iov));
		total = 0;
		for (size_t k = 0; k < n; k++)
			total += iov[k].iov_len;
		assert_true(total > 0 && total <= 3 * MIB);
	}
	pump(&w);
	assert_true(body_is(&w.streams[0], 16 * MIB));
	assert_true(body_is(&w.streams[1], 16 * MIB));
	buf_unref(payload);
	world_close(&w);
}

static void requests_without_room_in_the_output_wait_and_come_whole(void **state _unused_)
{
	char paths[60][300];
	struct call_log log;
	struct iovec iov[8];
	const uint8_t *first;
	struct world w;
	size_t n;

	world_open(&w);
	w.hold = true;
	for (size_t i = 0; i < ARRAY_SIZE(paths); i++) {
		struct grpc_request request = {
			.path = paths[i],
			.timeout = USEC_INFINITY,
			.done = on_done,
			.userdata = &log,
		};
		struct grpc_call *c;

		/* Characters that the compression of headers makes no shorter. */
		memset(paths[i], '^', sizeof(paths[i]));
		n = (size_t)sprintf(paths[i], "/%zu.", i);
		paths[i][n] = '^';
		paths[i][sizeof(paths[i]) - 1] = '\0';
		assert_int_equal(grpc_call_start(w.g, &request, w.now, &c), 0);
		n = grpc_output(w.g, iov, ARRAY_SIZE(iov));
	}
	/* The output is full, up to the ring's end and from its start: half of the requests wait. */
	assert_int_equal(n, 2);
	assert_true(iov[0].iov_len + iov[1].iov_len < sizeof(paths) / 2);
	first = iov[0].iov_base;
	w.hold = false;
	w.chunk = 1000;
	assert_true(to_server(&w));
	/* Who takes one piece at a time gets the first one. */
	assert_int_equal(grpc_output(w.g, iov, 1), 1);
	assert_ptr_equal(iov[0].iov_base, first + 1000);
	pump(&w);
	assert_int_equal(w.n_streams, ARRAY_SIZE(paths));
	for (size_t i = 0; i < ARRAY_SIZE(paths); i++)
		assert_non_null(strstr(w.streams[i].headers, paths[i]));
	log = (struct call_log){ 0 };
	world_close(&w);
	assert_int_equal(log.done, ARRAY_SIZE(paths));
}

static void a_call_cancelled_while_its_data_waits_for_room_sends_no_more(void **state _unused_)
{
	const nghttp2_settings_entry wide[] = { { NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 1 << 30 } };
	struct buf *payload = payload_of(16 * MIB);
	struct call_log log[2];
	struct iovec iov[256];
	struct world w;

	assert_int_equal(open_with(&w, wide, 1, false), 0);
	nghttp2_session_set_local_window_size(w.server, 0, 0, 1 << 30);
	pump(&w);
	for (size_t i = 0; i < 2; i++)
		assert_int_equal(call_with(&w, &log[i], payload, 5 * SEC), 0);
	assert_true(grpc_output(w.g, iov, ARRAY_SIZE(iov)) > 0);
	for (size_t i = 0; i < 2; i++)
		grpc_call_cancel(log[i].call);
	pump(&w);
	for (size_t i = 0; i < 2; i++) {
		assert_true(w.streams[i].body_len < 3 * MIB);
		assert_false(w.streams[i].ended);
		assert_int_not_equal(w.streams[i].reset, -1);
		assert_int_equal(log[i].done, 0);
	}
	assert_usable(&w);
	buf_unref(payload);
	world_close(&w);
}

static void calls_beyond_what_the_server_allows_wait_for_their_turn(void **state _unused_)
{
	const nghttp2_settings_entry one[] = { { NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 1 } };
	struct call_log log[3];
	struct world w;

	assert_int_equal(open_with(&w, one, 1, false), 0);
	pump(&w);
	for (size_t i = 0; i < 3; i++)
		call(&w, &log[i], 100);
	assert_int_equal(w.n_streams, 1);
	message_add(last(&w), "x");
	answer_end(&w, last(&w), "0", "");
	assert_result(&log[0], GRPC_OK, false);
	assert_int_equal(w.n_streams, 2);
	/* The third never gets its turn, and that is told. */
	later(&w, 5 * SEC);
	assert_result(&log[1], GRPC_DEADLINE_EXCEEDED, false);
	assert_result(&log[2], GRPC_DEADLINE_EXCEEDED, true);
	assert_int_equal(w.n_streams, 2);
	assert_usable(&w);
	world_close(&w);
}

/* ---- deadlines and pings --------------------------------------------------------------------------- */

static void a_call_ends_at_its_deadline(void **state _unused_)
{
	struct call_log log;
	struct world w;

	world_open(&w);
	call(&w, &log, 100);
	assert_int_equal(grpc_next_event(w.g), T0 + 5 * SEC);
	later(&w, 5 * SEC - 1);
	assert_int_equal(log.done, 0);
	later(&w, 1);
	assert_result(&log, GRPC_DEADLINE_EXCEEDED, false);
	assert_int_equal(last(&w)->reset, NGHTTP2_CANCEL);
	/* The answer that comes after all is nobody's. */
	message_add(last(&w), "x");
	answer_end(&w, last(&w), "0", "");
	assert_int_equal(log.done, 1);
	assert_usable(&w);
	world_close(&w);
}

static void a_deadline_with_a_closed_window_was_not_delivered(void **state _unused_)
{
	const nghttp2_settings_entry closed[] = { { NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 0 } };
	struct call_log log;
	struct world w;

	assert_int_equal(open_with(&w, closed, 1, true), 0);
	pump(&w);
	call(&w, &log, 100);
	later(&w, 5 * SEC);
	assert_result(&log, GRPC_DEADLINE_EXCEEDED, true);
	world_close(&w);
}

static void silence_is_pinged_while_a_call_is_open(void **state _unused_)
{
	struct call_log log;
	struct world w;

	world_open(&w);
	later(&w, 60 * SEC);
	assert_int_equal(w.pings, 0); /* no call: nobody to worry about */
	assert_int_equal(grpc_next_event(w.g), USEC_INFINITY);
	assert_int_equal(start_stream(&w, &log), 0);
	pump(&w);
	later(&w, 10 * SEC - 1);
	assert_int_equal(w.pings, 0);
	later(&w, 1);
	assert_int_equal(w.pings, 1);
	assert_int_equal(w.result, 0);
	later(&w, 10 * SEC);
	assert_int_equal(w.pings, 2);
	/* What is read puts the next ping off. */
	later(&w, 9 * SEC);
	message_add(last(&w), "x");
	answer(&w, last(&w));
	later(&w, 9 * SEC);
	assert_int_equal(w.pings, 2);
	later(&w, 1 * SEC);
	assert_int_equal(w.pings, 3);
	world_close(&w);
}

static void pings_keep_their_distance(void **state _unused_)
{
	struct grpc_settings often = settings;
	struct call_log log;
	struct world w;

	often.ping_interval = 1 * MSEC;
	memset(&w, 0, sizeof(w));
	current = &w;
	w.now = T0;
	assert_int_equal(grpc_new(&often, w.now, &w.g), 0);
	w.server = server_new(&w, NULL, 0, false);
	assert_int_equal(start_stream(&w, &log), 0);
	pump(&w);
	for (int i = 0; i < 1000; i++) {
		later(&w, 100 * MSEC);
		if (i % 10 == 0) { /* what is read does not bring them closer */
			message_add(last(&w), "x");
			answer(&w, last(&w));
		}
	}
	assert_true(w.pings <= 100 / 5);
	world_close(&w);
}

static void a_ping_without_an_answer_ends_the_connection(void **state _unused_)
{
	struct call_log log;
	struct world w;

	world_open(&w);
	assert_int_equal(start_stream(&w, &log), 0);
	pump(&w);
	w.hold = true;
	later(&w, 10 * SEC);
	assert_int_equal(grpc_input(w.g, "", 0, w.now), 0); /* no sign of life */
	assert_int_equal(grpc_next_event(w.g), w.now + 40 * SEC);
	later(&w, 40 * SEC - 1);
	assert_int_equal(w.result, 0);
	later(&w, 1);
	assert_int_equal(w.result, -ETIMEDOUT);
	assert_string_equal(grpc_why(w.g), "no answer to a ping");
	world_close(&w);
	assert_result(&log, GRPC_UNAVAILABLE, true);
}

/* ---- streams ------------------------------------------------------------------------------------------- */

static void a_stream_brings_messages_until_its_status(void **state _unused_)
{
	for (size_t chunk = 0; chunk < 4; chunk++) {
		struct call_log log;
		struct world w;

		world_open(&w);
		w.chunk = chunk;
		assert_int_equal(start_stream(&w, &log), 0);
		pump(&w);
		assert_null(strstr(last(&w)->headers, "grpc-timeout"));
		assert_false(last(&w)->ended);
		message_add(last(&w), "one");
		message_add(last(&w), "");
		message_add(last(&w), "three");
		answer(&w, last(&w));
		assert_string_equal(log.messages, "one||three|");
		later(&w, USEC_PER_HOUR);
		message_add(last(&w), "late");
		answer_end(&w, last(&w), "14", "restart");
		assert_string_equal(log.messages, "one||three|late|");
		assert_result(&log, GRPC_UNAVAILABLE, false);
		world_close(&w);
	}
}

static void a_stream_may_end_with_ok(void **state _unused_)
{
	struct call_log log;
	struct world w;

	world_open(&w);
	assert_int_equal(start_stream(&w, &log), 0);
	pump(&w);
	answer_end(&w, last(&w), "0", "");
	assert_result(&log, GRPC_OK, false);
	assert_int_equal(last(&w)->reset, NGHTTP2_CANCEL); /* our side of it */
	world_close(&w);
}

static void a_cancelled_call_is_never_done(void **state _unused_)
{
	struct call_log stream, unary, within;
	struct world w;

	world_open(&w);
	assert_int_equal(start_stream(&w, &stream), 0);
	call(&w, &unary, 100);
	grpc_call_cancel(stream.call);
	grpc_call_cancel(unary.call);
	assert_int_equal(grpc_calls(w.g), 0);
	pump(&w);
	assert_int_equal(w.streams[0].reset, NGHTTP2_CANCEL);
	assert_int_equal(w.streams[1].reset, NGHTTP2_CANCEL);
	/* Also from within its own message, with more of them behind it. */
	assert_int_equal(start_stream(&w, &within), 0);
	within.cancel_on_message = true;
	pump(&w);
	message_add(last(&w), "one");
	message_add(last(&w), "two");
	answer(&w, last(&w));
	assert_int_equal(within.n_messages, 1);
	assert_int_equal(stream.done + unary.done + within.done, 0);
	assert_usable(&w);
	world_close(&w);
}

static void a_stream_does_not_keep_the_memory_of_a_long_message(void **state _unused_)
{
	static char text[100001];
	struct call_log log;
	unsigned int before;
	struct world w;

	/* Where ours are not called, they count nothing. */
	if (!failures_reach_us())
		skip();
	memset(text, 'x', sizeof(text) - 1);
	world_open(&w);
	assert_int_equal(start_stream(&w, &log), 0);
	pump(&w);
	message_add(last(&w), text);
	answer(&w, last(&w));
	assert_int_equal(log.n_messages, 1);
	before = n_fresh;
	message_add(last(&w), "a");
	answer(&w, last(&w));
	assert_int_equal(n_fresh, before + 1);
	/* A short one's is kept. */
	message_add(last(&w), "b");
	answer(&w, last(&w));
	assert_int_equal(n_fresh, before + 1);
	assert_int_equal(log.n_messages, 3);
	world_close(&w);
}

/* Two calls end at once, and whoever is told first cancels the other one. */
static void a_call_that_is_over_can_be_cancelled_until_it_is_told(void **state _unused_)
{
	nghttp2_nv headers[] = { nv(":status", "200"), nv("content-type", "application/grpc"),
				 nv("grpc-status", "5") };
	uint8_t both[1000];
	struct call_log log[2];
	const uint8_t *data;
	struct world w;
	size_t len = 0;
	ssize_t n;

	world_open(&w);
	for (size_t i = 0; i < 2; i++)
		call(&w, &log[i], 100);
	log[0].cancels = &log[1];
	for (size_t i = 0; i < 2; i++)
		nghttp2_submit_headers(w.server, NGHTTP2_FLAG_END_STREAM, w.streams[i].id, NULL,
				       headers, ARRAY_SIZE(headers), NULL);
	while ((n = nghttp2_session_mem_send(w.server, &data)) > 0) {
		assert_true(len + (size_t)n <= sizeof(both));
		memcpy(both + len, data, (size_t)n);
		len += (size_t)n;
	}
	feed(&w, both, len);
	assert_result(&log[0], GRPC_NOT_FOUND, false);
	assert_int_equal(log[1].done, 0);
	assert_int_equal(grpc_calls(w.g), 0);
	assert_usable(&w);
	world_close(&w);
}

/* A call that is cancelled before it ever got onto the wire. */
static void a_waiting_call_can_be_cancelled(void **state _unused_)
{
	const nghttp2_settings_entry none[] = { { NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 0 } };
	const nghttp2_settings_entry some[] = { { NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 9 } };
	struct call_log log;
	struct world w;

	assert_int_equal(open_with(&w, none, 1, false), 0);
	pump(&w);
	call(&w, &log, 100);
	grpc_call_cancel(log.call);
	nghttp2_submit_settings(w.server, 0, some, 1);
	pump(&w);
	assert_int_equal(w.n_streams, 0);
	assert_int_equal(log.done, 0);
	assert_usable(&w);
	world_close(&w);
}

/* done() starts the next call, as the relay does. */
struct chain {
	struct world *w;
	struct buf *payload;
	int left, ended;
};

static void on_chain_done(struct grpc_call *c _unused_, const struct grpc_result *r _unused_,
			  void *userdata, uint64_t now)
{
	struct chain *chain = userdata;
	struct grpc_request request = {
		.path = PATH_UNARY,
		.payload = chain->payload,
		.timeout = SEC,
		.done = on_chain_done,
		.userdata = chain,
	};
	struct grpc_call *next;

	chain->ended++;
	if (chain->left-- > 0 && grpc_call_start(chain->w->g, &request, now, &next) == -EPIPE)
		chain->left = 0;
}

static void done_may_start_the_next_call(void **state _unused_)
{
	struct chain chain = { .left = 5, .payload = payload_of(10) };
	struct world w;

	world_open(&w);
	chain.w = &w;
	on_chain_done(NULL, NULL, &chain, w.now);
	pump(&w);
	for (int i = 0; i < 5; i++)
		trailers_only(&w, last(&w), "14", "");
	assert_int_equal(w.n_streams, 5);
	assert_int_equal(chain.ended, 6);
	/* Not even when the connection goes away: it starts nothing any more. */
	chain.left = 5;
	on_chain_done(NULL, NULL, &chain, w.now);
	grpc_close(w.g, "gone", w.now);
	assert_int_equal(chain.ended, 8);
	world_close(&w);
	buf_unref(chain.payload);
}

/* ---- memory -------------------------------------------------------------------------------------------- */

/* Everything above in small, while the nth allocation fails: no crash, no leak, and whatever was
 * started ends once. Returns whether the allocation was reached. */
static bool scene(long nth)
{
	struct call_log unary, stream;
	struct buf *payload = payload_of(100000);
	bool started, streaming;
	struct world w;

	fail_at = nth;
	if (open_with(&w, NULL, 0, false) < 0) {
		fail_at = -1;
		buf_unref(payload);
		return true;
	}
	started = call_with(&w, &unary, payload, 5 * SEC) == 0;
	streaming = start_stream(&w, &stream) == 0;
	pump(&w);
	for (size_t i = 0; i < w.n_streams && w.result == 0; i++) {
		message_add(&w.streams[i], "hello");
		answer_end(&w, &w.streams[i], "0", "");
	}
	later(&w, 10 * SEC);
	grpc_close(w.g, "over", w.now);
	assert_int_equal(started && unary.done != 1, 0);
	assert_int_equal(streaming && stream.done != 1, 0);
	if (fail_at >= 0) {
		fail_at = -1;
		assert_true(started && streaming);
		assert_int_equal(unary.status, GRPC_OK);
		world_close(&w);
		buf_unref(payload);
		return false;
	}
	world_close(&w);
	buf_unref(payload);
	return true;
}

static void no_memory_is_an_error_at_any_place(void **state _unused_)
{
	long n = 0;

	if (!failures_reach_us())
		skip();
	while (scene(n))
		n++;
	assert_true(n > 20);
}

/* A call whose packed payload cannot be unpacked says so, and the connection lives. */
static void no_memory_to_unpack_ends_the_one_call(void **state _unused_)
{
	struct buf *payload, *packed;
	unsigned int seen = 0;
	bool reached = true;

	if (!failures_reach_us())
		skip();
	payload = payload_of(100000);
	packed = pack_in_steps(payload, MIB);
	for (long n = 0; reached; n++) {
		struct call_log log;
		struct world w;
		bool started;

		world_open(&w);
		fail_at = n;
		started = call_with(&w, &log, packed, 5 * SEC) == 0;
		pump(&w);
		reached = fail_at < 0;
		fail_at = -1;
		later(&w, 0);
		if (started && streq(log.message, "no memory to unpack the report")) {
			assert_result(&log, GRPC_RESOURCE_EXHAUSTED, false);
			assert_false(log.damaged);
			assert_false(last(&w)->ended);
			assert_usable(&w);
			seen++;
		}
		world_close(&w);
	}
	assert_true(seen > 0);
	buf_unref(payload);
	buf_unref(packed);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_call_says_who_where_and_how_long),
		cmocka_unit_test(long_timeouts_are_sent_in_seconds),
		cmocka_unit_test(payloads_arrive_whole_and_are_not_copied),
		cmocka_unit_test(packed_payloads_arrive_unpacked),
		cmocka_unit_test(a_damaged_payload_is_never_delivered),
		cmocka_unit_test(payloads_arrive_whole_byte_by_byte),
		cmocka_unit_test(a_payload_is_released_with_its_call),
		cmocka_unit_test(a_message_over_the_limit_is_refused_before_it_is_sent),
		cmocka_unit_test(several_calls_end_in_any_order),
		cmocka_unit_test(every_status_comes_through),
		cmocka_unit_test(statuses_that_are_none_are_unknown),
		cmocka_unit_test(messages_are_decoded_and_made_printable),
		cmocka_unit_test(a_long_message_is_cut),
		cmocka_unit_test(ok_needs_exactly_one_whole_message),
		cmocka_unit_test(a_compressed_message_is_refused),
		cmocka_unit_test(an_answer_over_the_limit_is_refused_by_its_length),
		cmocka_unit_test(an_answer_that_is_no_grpc_is_read_by_its_http_status),
		cmocka_unit_test(other_grpc_content_types_are_taken),
		cmocka_unit_test(informational_answers_are_skipped),
		cmocka_unit_test(an_end_without_a_status_is_a_failure),
		cmocka_unit_test(an_early_answer_ends_the_request),
		cmocka_unit_test(resets_have_their_status),
		cmocka_unit_test(a_refused_stream_was_not_delivered),
		cmocka_unit_test(a_reset_before_the_first_data_was_not_delivered),
		cmocka_unit_test(goaway_lets_calls_below_its_last_id_end_well),
		cmocka_unit_test(goaway_may_come_twice),
		cmocka_unit_test(goaway_without_any_call_is_no_error),
		cmocka_unit_test(too_many_pings_are_told_apart),
		cmocka_unit_test(a_call_refused_after_goaway_says_which_of_the_two_it_was),
		cmocka_unit_test(the_first_reason_is_the_one_that_is_told),
		cmocka_unit_test(a_reason_is_told_as_one_printable_line),
		cmocka_unit_test(a_freed_connection_frees_its_calls_and_tells_nobody),
		cmocka_unit_test(names_and_metadata_have_their_bounds),
		cmocka_unit_test(a_lost_connection_tells_what_may_have_arrived),
		cmocka_unit_test(written_means_that_a_byte_of_data_is_out),
		cmocka_unit_test(a_peer_that_speaks_something_else_is_an_error),
		cmocka_unit_test(a_connection_begins_with_the_settings_of_the_server),
		cmocka_unit_test(unknown_frames_are_ignored),
		cmocka_unit_test(frames_that_break_the_rules_end_it),
		cmocka_unit_test(a_flood_of_pings_is_bounded),
		cmocka_unit_test(a_window_of_0_holds_the_payload_until_it_opens),
		cmocka_unit_test(tiny_windows_and_frames_carry_it_bit_by_bit),
		cmocka_unit_test(large_frames_are_used_where_allowed),
		cmocka_unit_test(output_is_bounded_and_other_calls_pass),
		cmocka_unit_test(requests_without_room_in_the_output_wait_and_come_whole),
		cmocka_unit_test(a_call_cancelled_while_its_data_waits_for_room_sends_no_more),
		cmocka_unit_test(calls_beyond_what_the_server_allows_wait_for_their_turn),
		cmocka_unit_test(a_call_ends_at_its_deadline),
		cmocka_unit_test(a_deadline_with_a_closed_window_was_not_delivered),
		cmocka_unit_test(silence_is_pinged_while_a_call_is_open),
		cmocka_unit_test(pings_keep_their_distance),
		cmocka_unit_test(a_ping_without_an_answer_ends_the_connection),
		cmocka_unit_test(a_stream_brings_messages_until_its_status),
		cmocka_unit_test(a_stream_may_end_with_ok),
		cmocka_unit_test(a_cancelled_call_is_never_done),
		cmocka_unit_test(a_stream_does_not_keep_the_memory_of_a_long_message),
		cmocka_unit_test(a_call_that_is_over_can_be_cancelled_until_it_is_told),
		cmocka_unit_test(a_waiting_call_can_be_cancelled),
		cmocka_unit_test(done_may_start_the_next_call),
		cmocka_unit_test(no_memory_is_an_error_at_any_place),
		cmocka_unit_test(no_memory_to_unpack_ends_the_one_call),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
