/* SPDX-License-Identifier: Apache-2.0 */
#include "grpc.h"

#include <inttypes.h>
#include <nghttp2/nghttp2.h>

#include "list.h"
#include "pack.h"

#define PREFIX_SIZE  5 /* of a gRPC message: compressed flag, length */
#define FRAME_HEADER 9
#define METADATA_MAX 8
#define MESSAGE_TEXT 256  /* of grpc-message, as it is kept */
#define CONTROL_RING 8192 /* bytes of output that are no payload */
#define PIECES_MAX   128
/* Longer DATA frames than the default spare headers; control frames wait behind what is queued. */
#define DATA_FRAME_MAX	(64 * KIB)
#define IN_KEPT		(64 * KIB)
#define QUEUED_MAX	(1 * MIB)
#define HEADER_LIST_MAX (16 * KIB)

/* A piece of output: the next len bytes of the control ring, or of a payload. */
struct piece {
	struct buf *payload; /* a reference; NULL: of the ring */
	uint8_t *unpacked;   /* of a packed payload: the bytes, which are the piece's own */
	const uint8_t *data;
	size_t len;
};

/* What the last block of headers said. */
struct block {
	bool has_status;
	enum grpc_status status;
	char message[MESSAGE_TEXT];
};

struct grpc_call {
	struct list list; /* in grpc.calls, then in grpc.finished */
	struct grpc *g;
	struct grpc_request request;
	int32_t stream;
	uint64_t deadline;
	size_t offset;	       /* bytes of prefix and payload that are queued */
	struct reader *reader; /* of a packed payload, once its first byte is needed */
	bool data_queued;      /* of these, any */
	uint64_t data_at;      /* where the first lies in the output */
	bool server_ended;     /* its last frame came */
	bool closed;	       /* the stream is gone */
	bool over;	       /* result is known */
	int http_status;       /* 0: no headers yet */
	bool is_grpc;	       /* by its content type */
	struct block block;

	/* the message that comes in */
	uint8_t prefix[PREFIX_SIZE];
	size_t n_prefix;
	uint8_t *in;
	size_t in_len, in_allocated, in_need;
	size_t n_messages; /* complete ones */

	enum grpc_status status;
	bool undelivered, damaged;
	char text[MESSAGE_TEXT];
};

struct grpc {
	struct grpc_settings settings;
	nghttp2_session *session;
	struct list calls, finished;
	size_t n_calls;
	bool ready, draining, too_many_pings;
	int32_t last_stream; /* of GOAWAY */
	char why[MESSAGE_TEXT];
	uint64_t now;	   /* as callbacks know it */
	unsigned int busy; /* within nghttp2 */

	/* output, first in first out */
	struct piece pieces[PIECES_MAX];
	size_t first_piece, n_pieces;
	uint8_t ring[CONTROL_RING];
	size_t ring_first, ring_len;
	uint64_t queued, sent; /* bytes so far */

	uint64_t last_read, last_ping;
	uint64_t calls_since; /* when the oldest of an unbroken row of calls began */
	bool ping_open;
};

const char *grpc_status_name(enum grpc_status status)
{
	static const char *const names[] = {
#define X(id) [GRPC_##id] = #id,
		GRPC_STATUSES(X)
#undef X
	};

	return (unsigned int)status < ARRAY_SIZE(names) ? names[status] : "?";
}

/* ---- output -------------------------------------------------------------------------------------- */

static struct piece *piece_at(struct grpc *g, size_t i)
{
	return &g->pieces[(g->first_piece + i) % PIECES_MAX];
}

static size_t ring_room(const struct grpc *g)
{
	return CONTROL_RING - g->ring_len;
}

static bool has_room(const struct grpc *g, size_t control)
{
	return g->n_pieces + 2 <= PIECES_MAX && ring_room(g) >= control &&
	       g->queued - g->sent < QUEUED_MAX;
}

static void push_control(struct grpc *g, const uint8_t *data, size_t len)
{
	struct piece *last = g->n_pieces ? piece_at(g, g->n_pieces - 1) : NULL;

	for (size_t i = 0; i < len; i++)
		g->ring[(g->ring_first + g->ring_len + i) % CONTROL_RING] = data[i];
	g->ring_len += len;
	g->queued += len;
	if (last && !last->payload)
		last->len += len;
	else
		*piece_at(g, g->n_pieces++) = (struct piece){ .len = len };
}

/* unpacked: where the bytes are if the payload is packed, else NULL. */
static void push_payload(struct grpc *g, struct buf *payload, size_t offset, uint8_t *unpacked,
			 size_t len)
{
	*piece_at(g, g->n_pieces++) = (struct piece){
		.payload = buf_ref(payload),
		.unpacked = unpacked,
		.data = unpacked ?: buf_data(payload) + offset,
		.len = len,
	};
	g->queued += len;
}

/* nghttp2 has bytes of any frame but DATA. */
static ssize_t on_send(nghttp2_session *session _unused_, const uint8_t *data, size_t len,
		       int flags _unused_, void *userdata)
{
	struct grpc *g = userdata;
	size_t n = MIN(len, ring_room(g));

	if (n == 0 || !has_room(g, n))
		return NGHTTP2_ERR_WOULDBLOCK;
	push_control(g, data, n);
	return (ssize_t)n;
}

static size_t unsent(const struct grpc_call *call)
{
	return PREFIX_SIZE + buf_len(call->request.payload) - call->offset;
}

/* How much the next DATA frame takes of the message; it is not read here, see on_send_data(). */
static ssize_t on_data_wanted(nghttp2_session *session, int32_t stream, uint8_t *to _unused_,
			      size_t len, uint32_t *flags, nghttp2_data_source *source _unused_,
			      void *userdata _unused_)
{
	const struct grpc_call *call = nghttp2_session_get_stream_user_data(session, stream);
	size_t n;

	if (!call)
		return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
	if (!call->request.payload)
		return NGHTTP2_ERR_DEFERRED;
	n = MIN(len, unsent(call));
	*flags |= NGHTTP2_DATA_FLAG_NO_COPY;
	if (n == unsent(call))
		*flags |= NGHTTP2_DATA_FLAG_EOF;
	return (ssize_t)n;
}

static ssize_t on_data_length(nghttp2_session *session _unused_, uint8_t frame_type _unused_,
			      int32_t stream _unused_, int32_t session_window,
			      int32_t stream_window, uint32_t max_frame, void *userdata _unused_)
{
	int64_t n = MIN(session_window, stream_window);

	n = MIN(n, (int64_t)max_frame);
	return (ssize_t)MIN(n, (int64_t)DATA_FRAME_MAX);
}

static void end_call(struct grpc_call *call, enum grpc_status status, bool undelivered,
		     const char *text);

/* The next len bytes of a packed payload, which are the caller's. Or ends the call, and returns
 * NULL. */
static uint8_t *unpack(struct grpc_call *call, size_t len)
{
	_cleanup_free_ uint8_t *data = malloc(len);
	int r = data ? 0 : -ENOMEM;

	if (r == 0 && !call->reader)
		r = reader_new(call->request.payload, &call->reader);
	if (r == 0)
		r = reader_read(call->reader, data, len);
	if (r == 0)
		return TAKE_PTR(data);
	call->damaged = r == -EBADMSG;
	if (call->damaged)
		end_call(call, GRPC_DATA_LOSS, false, "the compressed report is damaged");
	else
		end_call(call, GRPC_RESOURCE_EXHAUSTED, false, "no memory to unpack the report");
	return NULL;
}

static int on_send_data(nghttp2_session *session _unused_, nghttp2_frame *frame,
			const uint8_t *header, size_t len, nghttp2_data_source *source _unused_,
			void *userdata)
{
	struct grpc *g = userdata;
	struct grpc_call *call =
		nghttp2_session_get_stream_user_data(g->session, frame->hd.stream_id);
	uint8_t prefix[PREFIX_SIZE] = { 0 }, *unpacked = NULL;
	size_t n;

	if (!call)
		return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
	if (!has_room(g, FRAME_HEADER + PREFIX_SIZE))
		return NGHTTP2_ERR_WOULDBLOCK;
	n = call->offset < PREFIX_SIZE ? MIN(len, PREFIX_SIZE - call->offset) : 0;
	if (len > n && buf_packed(call->request.payload)) {
		unpacked = unpack(call, len - n);
		if (!unpacked)
			return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
	}
	if (!call->data_queued) {
		call->data_queued = true;
		call->data_at = g->queued;
	}
	push_control(g, header, FRAME_HEADER);
	if (call->offset < PREFIX_SIZE) {
		uint32_t length = (uint32_t)buf_len(call->request.payload);

		for (int i = 0; i < 4; i++)
			prefix[1 + i] = (uint8_t)(length >> (24 - 8 * i));
		push_control(g, prefix + call->offset, n);
	}
	if (len > n)
		push_payload(g, call->request.payload, call->offset + n - PREFIX_SIZE, unpacked,
			     len - n);
	call->offset += len;
	return 0;
}

/* Lets nghttp2 turn what it has into output. An error here is one of memory: it comes up again with
 * the next input. */
static void produce(struct grpc *g)
{
	g->busy++;
	nghttp2_session_send(g->session);
	g->busy--;
}

size_t grpc_output(struct grpc *g, struct iovec *iov, size_t n)
{
	size_t ring_at = g->ring_first, used = 0;

	produce(g);
	for (size_t i = 0; i < g->n_pieces && used < n; i++) {
		const struct piece *p = piece_at(g, i);
		size_t before_end = MIN(p->len, CONTROL_RING - ring_at);

		if (p->payload) {
			iov[used++] = (struct iovec){ (void *)p->data, p->len };
			continue;
		}
		iov[used++] = (struct iovec){ g->ring + ring_at, before_end };
		ring_at = (ring_at + p->len) % CONTROL_RING;
		if (before_end == p->len)
			continue;
		if (used == n)
			break;
		iov[used++] = (struct iovec){ g->ring, p->len - before_end };
	}
	return used;
}

static void drop_first_piece(struct grpc *g)
{
	buf_unref(piece_at(g, 0)->payload);
	free(piece_at(g, 0)->unpacked);
	g->first_piece = (g->first_piece + 1) % PIECES_MAX;
	g->n_pieces--;
}

void grpc_sent(struct grpc *g, size_t n, uint64_t now)
{
	g->now = now;
	g->sent += n;
	while (n > 0) {
		struct piece *p = piece_at(g, 0);
		size_t k = MIN(n, p->len);

		if (p->payload) {
			p->data += k;
		} else {
			g->ring_first = (g->ring_first + k) % CONTROL_RING;
			g->ring_len -= k;
		}
		p->len -= k;
		n -= k;
		if (p->len == 0)
			drop_first_piece(g);
	}
}

/* ---- the end of a call ------------------------------------------------------------------------------ */

static void call_free(struct grpc_call *call)
{
	list_del(&call->list);
	reader_free(call->reader);
	buf_unref(call->request.payload);
	free(call->in);
	free(call);
}

/* One line of printable ASCII. */
static void copy_text(char *to, size_t size, const char *from)
{
	size_t n = 0;

	for (; *from && n + 1 < size; from++)
		to[n++] = *from >= ' ' && *from <= '~' ? *from : '?';
	to[n] = '\0';
}

/* Takes the call off the connection; its stream, if there is more to it, is reset. */
static void detach(struct grpc_call *call)
{
	struct grpc *g = call->g;
	bool we_ended = nghttp2_session_get_stream_local_close(g->session, call->stream) == 1;

	nghttp2_session_set_stream_user_data(g->session, call->stream, NULL);
	/* Out of memory here ends the connection soon enough. */
	if (!call->closed && !(call->server_ended && we_ended))
		nghttp2_submit_rst_stream(g->session, NGHTTP2_FLAG_NONE, call->stream,
					  NGHTTP2_CANCEL);
	list_move_last(&g->finished, &call->list);
	g->n_calls--;
	call->over = true;
}

static void end_call(struct grpc_call *call, enum grpc_status status, bool undelivered,
		     const char *text)
{
	if (call->over)
		return;
	call->status = status;
	call->undelivered = undelivered;
	copy_text(call->text, sizeof(call->text), text);
	detach(call);
}

/* Whether none of the call's DATA can have left. */
static bool nothing_sent(const struct grpc_call *call)
{
	return !call->data_queued || call->g->sent <= call->data_at;
}

/* Tells whose calls are over, outside of nghttp2: they may start new ones. */
static void report(struct grpc *g)
{
	struct grpc_call *call;

	while ((call = list_first_entry(&g->finished, struct grpc_call, list))) {
		struct grpc_result result = {
			.status = call->status,
			.message = call->text,
			.undelivered = call->undelivered,
			.damaged = call->damaged,
		};

		if (call->status == GRPC_OK && call->request.payload) {
			result.response = call->in;
			result.response_len = call->in_len;
		}
		list_del(&call->list);
		if (call->request.done)
			call->request.done(call, &result, call->request.userdata, g->now);
		call_free(call);
	}
}

void grpc_call_cancel(struct grpc_call *call)
{
	struct grpc *g;

	if (!call)
		return;
	g = call->g;
	call->request.done = NULL;
	if (!call->over)
		detach(call);
	/* Else report() frees it: somebody further up still looks at it. */
	if (g->busy == 0)
		call_free(call);
}

/* ---- messages coming in ------------------------------------------------------------------------- */

/* How the call ends that sent something else than gRPC messages. Returns false. */
static bool bad_message(struct grpc_call *call, enum grpc_status status, const char *text)
{
	end_call(call, status, false, text);
	return false;
}

static bool begin_message(struct grpc_call *call)
{
	size_t length = 0;

	for (int i = 1; i < PREFIX_SIZE; i++)
		length = length << 8 | call->prefix[i];
	if (call->prefix[0] != 0)
		return bad_message(call, GRPC_INTERNAL,
				   "compressed message, which was not asked for");
	if (call->request.payload && call->n_messages > 0)
		return bad_message(call, GRPC_INTERNAL, "more than one message in the answer");
	if (length > GRPC_MESSAGE_MAX)
		return bad_message(call, GRPC_RESOURCE_EXHAUSTED, "message too large");
	call->in_len = 0;
	call->in_need = length;
	return true;
}

/* Makes room for n more bytes of the message: doubled, so that a length that only is announced
 * costs nothing. */
static bool make_room(struct grpc_call *call, size_t n)
{
	size_t need = call->in_len + n, allocated = MAX(call->in_allocated, (size_t)256);
	uint8_t *in;

	if (need <= call->in_allocated)
		return true;
	while (allocated < need)
		allocated *= 2;
	in = realloc(call->in, allocated);
	if (!in)
		return bad_message(call, GRPC_RESOURCE_EXHAUSTED, "no memory for the answer");
	call->in = in;
	call->in_allocated = allocated;
	return true;
}

/* Returns whether the call goes on. */
static bool end_message(struct grpc_call *call)
{
	call->n_prefix = 0;
	call->n_messages++;
	if (call->request.message)
		call->request.message(call, call->in, call->in_len, call->request.userdata,
				      call->g->now);
	/* A stream lives long: it does not keep the memory of one long message. */
	if (!call->request.payload && call->in_allocated > IN_KEPT) {
		free(call->in);
		call->in = NULL;
		call->in_allocated = 0;
	}
	return !call->over;
}

static void take_data(struct grpc_call *call, const uint8_t *data, size_t len)
{
	while (len > 0) {
		size_t n;

		if (call->n_prefix < PREFIX_SIZE) {
			call->prefix[call->n_prefix++] = *data++;
			len--;
			if (call->n_prefix < PREFIX_SIZE)
				continue;
			if (!begin_message(call))
				return;
		}
		n = MIN(len, call->in_need - call->in_len);
		if (!make_room(call, n))
			return;
		if (n > 0)
			memcpy(call->in + call->in_len, data, n);
		call->in_len += n;
		data += n;
		len -= n;
		if (call->in_len == call->in_need && !end_message(call))
			return;
	}
}

/* ---- headers coming in -------------------------------------------------------------------------- */

static int hex(uint8_t c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* grpc-message: percent-encoded; what is no encoding stays as it is. */
static void decode_message(char *to, size_t size, const uint8_t *s, size_t len)
{
	size_t n = 0;

	for (size_t i = 0; i < len && n + 1 < size; i++) {
		uint8_t c = s[i];

		if (c == '%' && i + 2 < len && hex(s[i + 1]) >= 0 && hex(s[i + 2]) >= 0) {
			c = (uint8_t)(hex(s[i + 1]) << 4 | hex(s[i + 2]));
			i += 2;
		}
		to[n++] = c >= ' ' && c <= '~' ? (char)c : '?';
	}
	to[n] = '\0';
}

static int parse_number(const uint8_t *s, size_t len, size_t max_len)
{
	int n = 0;

	if (len == 0 || len > max_len)
		return -1;
	for (size_t i = 0; i < len; i++) {
		if (s[i] < '0' || s[i] > '9')
			return -1;
		n = n * 10 + (s[i] - '0');
	}
	return n;
}

static bool is_grpc_type(const uint8_t *s, size_t len)
{
	static const char type[] = "application/grpc";
	size_t n = sizeof(type) - 1;

	return len >= n && memcmp(s, type, n) == 0 && (len == n || s[n] == '+' || s[n] == ';');
}

static bool is_header(const uint8_t *name, size_t len, const char *expected)
{
	return len == strlen(expected) && memcmp(name, expected, len) == 0;
}

static struct grpc_call *call_of(struct grpc *g, int32_t stream)
{
	return nghttp2_session_get_stream_user_data(g->session, stream);
}

static int on_begin_headers(nghttp2_session *session _unused_, const nghttp2_frame *frame,
			    void *userdata)
{
	struct grpc_call *call = call_of(userdata, frame->hd.stream_id);

	if (call)
		call->block = (struct block){ 0 };
	return 0;
}

static int on_header(nghttp2_session *session _unused_, const nghttp2_frame *frame,
		     const uint8_t *name, size_t name_len, const uint8_t *value, size_t len,
		     uint8_t flags _unused_, void *userdata)
{
	struct grpc_call *call = call_of(userdata, frame->hd.stream_id);
	int n;

	if (!call)
		return 0;
	if (is_header(name, name_len, ":status")) {
		call->http_status = MAX(parse_number(value, len, 3), 0);
	} else if (is_header(name, name_len, "content-type")) {
		call->is_grpc = is_grpc_type(value, len);
	} else if (is_header(name, name_len, "grpc-status")) {
		n = parse_number(value, len, 4);
		call->block.has_status = true;
		call->block.status =
			n >= 0 && n < GRPC_STATUS_MAX ? (enum grpc_status)n : GRPC_UNKNOWN;
	} else if (is_header(name, name_len, "grpc-message")) {
		decode_message(call->block.message, sizeof(call->block.message), value, len);
	}
	return 0;
}

/* What an answer means that does not come from a gRPC server, but from something before it. */
static enum grpc_status status_of_http(int http_status)
{
	switch (http_status) {
	case 400:
		return GRPC_INTERNAL;
	case 401:
		return GRPC_UNAUTHENTICATED;
	case 403:
		return GRPC_PERMISSION_DENIED;
	case 404:
		return GRPC_UNIMPLEMENTED;
	case 429:
	case 502:
	case 503:
	case 504:
		return GRPC_UNAVAILABLE;
	default:
		return GRPC_UNKNOWN;
	}
}

static void end_by_http(struct grpc_call *call)
{
	char text[64];

	if (call->http_status == 200 && call->is_grpc)
		snprintf(text, sizeof(text), "the answer ended without a status");
	else
		snprintf(text, sizeof(text), "answer is not gRPC: HTTP status %d",
			 call->http_status);
	end_call(call, status_of_http(call->http_status), false, text);
}

/* The server has said everything. */
static void end_by_status(struct grpc_call *call)
{
	const struct block *b = &call->block;

	if (!call->is_grpc || !b->has_status)
		end_by_http(call);
	else if (b->status != GRPC_OK)
		end_call(call, b->status, false, b->message);
	else if (call->n_prefix > 0)
		end_call(call, GRPC_INTERNAL, false, "the answer ends within a message");
	else if (call->request.payload && call->n_messages == 0)
		end_call(call, GRPC_INTERNAL, false, "status OK without a message");
	else
		end_call(call, GRPC_OK, false, b->message);
}

static void take_headers(struct grpc_call *call, bool end)
{
	call->server_ended = end;
	if (end) {
		end_by_status(call);
	} else if (call->http_status >= 100 && call->http_status < 200) {
		call->http_status = 0; /* not the answer yet */
		call->is_grpc = false;
	} else if (call->http_status != 200 || !call->is_grpc) {
		end_by_http(call); /* its body is nothing for us */
	}
}

/* ---- frames -------------------------------------------------------------------------------------- */

static void take_goaway(struct grpc *g, const nghttp2_goaway *goaway)
{
	char debug[128] = "";

	decode_message(debug, MIN(sizeof(debug), goaway->opaque_data_len + 1), goaway->opaque_data,
		       goaway->opaque_data_len);
	g->draining = true;
	g->last_stream = goaway->last_stream_id;
	if (goaway->error_code == NGHTTP2_ENHANCE_YOUR_CALM && streq(debug, "too_many_pings"))
		g->too_many_pings = true;
	snprintf(g->why, sizeof(g->why), "GOAWAY: %s%s%s",
		 nghttp2_http2_strerror(goaway->error_code), *debug ? ", " : "", debug);
}

static int on_frame(nghttp2_session *session _unused_, const nghttp2_frame *frame, void *userdata)
{
	struct grpc *g = userdata;
	bool end = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;
	struct grpc_call *call;

	switch (frame->hd.type) {
	case NGHTTP2_SETTINGS:
		/* nghttp2 takes nothing but the server's own for the first frame, so not an ACK. */
		g->ready = true;
		break;
	case NGHTTP2_GOAWAY:
		take_goaway(g, &frame->goaway);
		break;
	case NGHTTP2_HEADERS:
		call = call_of(g, frame->hd.stream_id);
		if (call)
			take_headers(call, end);
		break;
	case NGHTTP2_DATA:
		call = call_of(g, frame->hd.stream_id);
		if (call && end) {
			call->server_ended = true;
			call->block.has_status = false;
			end_by_status(call);
		}
		break;
	}
	return 0;
}

static int on_data(nghttp2_session *session _unused_, uint8_t flags _unused_, int32_t stream,
		   const uint8_t *data, size_t len, void *userdata)
{
	struct grpc_call *call = call_of(userdata, stream);

	if (call)
		take_data(call, data, len);
	return 0;
}

static enum grpc_status status_of_reset(uint32_t code)
{
	switch (code) {
	case NGHTTP2_REFUSED_STREAM:
		return GRPC_UNAVAILABLE;
	case NGHTTP2_CANCEL:
		return GRPC_CANCELLED;
	case NGHTTP2_ENHANCE_YOUR_CALM:
		return GRPC_RESOURCE_EXHAUSTED;
	case NGHTTP2_INADEQUATE_SECURITY:
		return GRPC_PERMISSION_DENIED;
	case NGHTTP2_STREAM_CLOSED:
	case NGHTTP2_HTTP_1_1_REQUIRED:
		return GRPC_UNKNOWN;
	default:
		return GRPC_INTERNAL;
	}
}

/* A stream that ended without a status: reset by the server, by nghttp2 (the server broke a rule),
 * or closed because GOAWAY's last id is below it. */
static int on_stream_close(nghttp2_session *session _unused_, int32_t stream, uint32_t code,
			   void *userdata)
{
	struct grpc *g = userdata;
	struct grpc_call *call = call_of(g, stream);
	bool refused = code == NGHTTP2_REFUSED_STREAM;
	char text[96];

	if (!call)
		return 0;
	call->closed = true;
	if (refused && g->draining && stream > g->last_stream)
		snprintf(text, sizeof(text), "%.80s", g->why);
	else
		snprintf(text, sizeof(text), "stream was reset: %s", nghttp2_http2_strerror(code));
	end_call(call, status_of_reset(code), refused || nothing_sent(call), text);
	return 0;
}

/* nghttp2's own words on what the server did wrong. */
static int on_error(nghttp2_session *session _unused_, int code _unused_, const char *text,
		    size_t len _unused_, void *userdata)
{
	struct grpc *g = userdata;

	if (!*g->why)
		copy_text(g->why, sizeof(g->why), text);
	return 0;
}

static int on_invalid_frame(nghttp2_session *session _unused_, const nghttp2_frame *frame _unused_,
			    int code, void *userdata)
{
	struct grpc *g = userdata;

	if (!*g->why)
		copy_text(g->why, sizeof(g->why), nghttp2_strerror(code));
	return 0;
}

/* Whether nghttp2 has given the connection up: -EPROTO. It wants no more input either after the
 * server's GOAWAY, once nothing is open; that is no error. */
static int check(const struct grpc *g)
{
	if (nghttp2_session_want_read(g->session) || (g->draining && g->n_calls == 0))
		return 0;
	return -EPROTO;
}

int grpc_input(struct grpc *g, const void *data, size_t len, uint64_t now)
{
	ssize_t n;

	g->now = now;
	if (len > 0) {
		g->last_read = now;
		g->ping_open = false;
	}
	g->busy++;
	n = nghttp2_session_mem_recv(g->session, data, len);
	g->busy--;
	/* nghttp2 gives up when its GOAWAY has become output, not before. */
	produce(g);
	report(g);
	if (n == NGHTTP2_ERR_NOMEM)
		return -ENOMEM;
	if (n >= 0 && check(g) == 0)
		return 0;
	if (!*g->why)
		snprintf(g->why, sizeof(g->why), "the server broke a rule of HTTP/2");
	return -EPROTO;
}

/* ---- calls ----------------------------------------------------------------------------------------- */

static void format_timeout(char *buf, size_t size, uint64_t timeout)
{
	/* At most 8 digits. */
	if (timeout < 100 * USEC_PER_SEC)
		snprintf(buf, size, "%" PRIu64 "u", timeout);
	else
		snprintf(buf, size, "%lluS", MIN(timeout / USEC_PER_SEC, 99999999ULL));
}

static nghttp2_nv header(const char *name, const char *value)
{
	return (nghttp2_nv){ (uint8_t *)name, (uint8_t *)value, strlen(name), strlen(value),
			     NGHTTP2_NV_FLAG_NONE };
}

static int submit(struct grpc *g, struct grpc_call *call)
{
	const struct grpc_settings *s = &g->settings;
	nghttp2_data_provider provider = { .read_callback = on_data_wanted };
	nghttp2_nv nv[8 + METADATA_MAX];
	char timeout[16];
	size_t n = 0;

	nv[n++] = header(":method", "POST");
	nv[n++] = header(":scheme", s->scheme);
	nv[n++] = header(":path", call->request.path);
	nv[n++] = header(":authority", s->authority);
	if (call->request.timeout != USEC_INFINITY) {
		format_timeout(timeout, sizeof(timeout), call->request.timeout);
		nv[n++] = header("grpc-timeout", timeout);
	}
	nv[n++] = header("te", "trailers");
	nv[n++] = header("content-type", "application/grpc");
	nv[n++] = header("user-agent", s->user_agent);
	for (size_t i = 0; i < s->n_metadata; i++)
		nv[n++] = header(s->metadata[i].name, s->metadata[i].value);
	return nghttp2_submit_request(g->session, NULL, nv, n, &provider, call);
}

int grpc_call_start(struct grpc *g, const struct grpc_request *request, uint64_t now,
		    struct grpc_call **ret)
{
	struct grpc_call *call;
	int32_t stream;

	if (request->payload && buf_len(request->payload) > GRPC_MESSAGE_MAX)
		return -EMSGSIZE;
	if (g->draining || !nghttp2_session_check_request_allowed(g->session))
		return -EPIPE;
	call = calloc(1, sizeof(*call));
	if (!call)
		return -ENOMEM;
	call->g = g;
	call->request = *request;
	call->deadline = usec_add(now, request->timeout);
	list_init(&call->list);
	stream = submit(g, call);
	if (stream < 0) {
		free(call);
		return stream == NGHTTP2_ERR_NOMEM ? -ENOMEM : -EPIPE;
	}
	call->stream = stream;
	if (request->payload)
		buf_ref(request->payload);
	list_add_last(&g->calls, &call->list);
	if (g->n_calls++ == 0)
		g->calls_since = now;
	*ret = call;
	return 0;
}

/* ---- time ------------------------------------------------------------------------------------------ */

/* When the next ping goes out, or the answer to the last one is overdue. */
static uint64_t ping_event(const struct grpc *g)
{
	uint64_t next;

	if (g->ping_open)
		return usec_add(g->last_ping, g->settings.ping_timeout);
	if (g->n_calls == 0 || !g->ready)
		return USEC_INFINITY;
	next = usec_add(MAX(g->last_read, g->calls_since), g->settings.ping_interval);
	return MAX(next, g->last_ping ? usec_add(g->last_ping, GRPC_PING_LEAST) : 0);
}

int grpc_run(struct grpc *g, uint64_t now)
{
	g->now = now;
	list_for_each_safe(n, &g->calls) {
		struct grpc_call *call = container_of(n, struct grpc_call, list);

		if (call->deadline <= now)
			end_call(call, GRPC_DEADLINE_EXCEEDED, nothing_sent(call),
				 "no answer in time");
	}
	report(g);
	if (check(g) < 0)
		return -EPROTO;
	if (ping_event(g) > now)
		return 0;
	if (g->ping_open) {
		snprintf(g->why, sizeof(g->why), "no answer to a ping");
		return -ETIMEDOUT;
	}
	if (nghttp2_submit_ping(g->session, NGHTTP2_FLAG_NONE, NULL) == 0)
		g->ping_open = true;
	g->last_ping = now;
	return 0;
}

uint64_t grpc_next_event(const struct grpc *g)
{
	uint64_t next = ping_event(g);

	/* Calls can end while output is made, too: nobody was told yet. */
	if (!list_empty(&g->finished))
		return 0;
	list_for_each(n, &g->calls)
		next = MIN(next, container_of(n, struct grpc_call, list)->deadline);
	return next;
}

/* ---- life ------------------------------------------------------------------------------------------ */

bool grpc_ready(const struct grpc *g)
{
	return g->ready;
}

bool grpc_draining(const struct grpc *g)
{
	return g->draining;
}

size_t grpc_calls(const struct grpc *g)
{
	return g->n_calls;
}

bool grpc_too_many_pings(const struct grpc *g)
{
	return g->too_many_pings;
}

const char *grpc_why(const struct grpc *g)
{
	return g->why;
}

void grpc_close(struct grpc *g, const char *why, uint64_t now)
{
	struct grpc_call *call;

	g->now = now;
	g->draining = true;
	while ((call = list_first_entry(&g->calls, struct grpc_call, list)))
		end_call(call, GRPC_UNAVAILABLE, nothing_sent(call), why);
	report(g);
}

static int new_session(struct grpc *g)
{
	nghttp2_session_callbacks *c;
	int r;

	r = nghttp2_session_callbacks_new(&c);
	if (r < 0)
		return r;
	nghttp2_session_callbacks_set_send_callback(c, on_send);
	nghttp2_session_callbacks_set_send_data_callback(c, on_send_data);
	nghttp2_session_callbacks_set_data_source_read_length_callback(c, on_data_length);
	nghttp2_session_callbacks_set_on_begin_headers_callback(c, on_begin_headers);
	nghttp2_session_callbacks_set_on_header_callback(c, on_header);
	nghttp2_session_callbacks_set_on_frame_recv_callback(c, on_frame);
	nghttp2_session_callbacks_set_on_data_chunk_recv_callback(c, on_data);
	nghttp2_session_callbacks_set_on_stream_close_callback(c, on_stream_close);
	nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(c, on_invalid_frame);
	nghttp2_session_callbacks_set_error_callback2(c, on_error);
	r = nghttp2_session_client_new(&g->session, c, g);
	nghttp2_session_callbacks_del(c);
	return r;
}

int grpc_new(const struct grpc_settings *s, uint64_t now, struct grpc **ret)
{
	static const nghttp2_settings_entry entries[] = {
		{ NGHTTP2_SETTINGS_ENABLE_PUSH, 0 },
		{ NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, HEADER_LIST_MAX },
	};
	_cleanup_(grpc_freep)
	struct grpc *g = NULL;

	if (s->n_metadata > METADATA_MAX)
		return -EINVAL;
	g = calloc(1, sizeof(*g));
	if (!g)
		return -ENOMEM;
	list_init(&g->calls);
	list_init(&g->finished);
	g->settings = *s;
	g->settings.ping_interval = MAX(s->ping_interval, GRPC_PING_LEAST);
	g->now = g->last_read = now;
	if (new_session(g) < 0 || nghttp2_submit_settings(g->session, NGHTTP2_FLAG_NONE, entries,
							  ARRAY_SIZE(entries)) < 0)
		return -ENOMEM;
	*ret = TAKE_PTR(g);
	return 0;
}

struct grpc *grpc_free(struct grpc *g)
{
	if (!g)
		return NULL;
	list_for_each_safe(n, &g->calls)
		call_free(container_of(n, struct grpc_call, list));
	list_for_each_safe(n, &g->finished)
		call_free(container_of(n, struct grpc_call, list));
	while (g->n_pieces > 0)
		drop_first_piece(g);
	nghttp2_session_del(g->session);
	free(g);
	return NULL;
}
