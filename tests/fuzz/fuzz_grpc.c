/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The gRPC core, from the frames of a hostile server. The input is what the server sends, cut into
 * pieces; between them the clock moves, output is taken or not, and calls are started and
 * cancelled, as the bytes before each piece say. What must hold:
 *
 *  - each call ends at most once, and all have ended when the connection was closed;
 *  - output is made of whole pieces, bounded, and the same bytes until they are reported sent;
 *  - a server that says nothing sensible is never a successful one: OK has a message.
 */
#include "check.h"
#include "grpc.h"

#define CALLS	    16
#define PAYLOAD	    70000
#define QUEUED_MOST (3 * MIB)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What is read into here must be readable. */
static volatile uint8_t sink;

struct fuzz_call {
	struct grpc_call *call; /* NULL: not under way */
	bool started, done, unary;
};

struct fuzz {
	struct grpc *g;
	struct buf *payload;
	struct fuzz_call calls[CALLS];
	size_t n_calls;
	uint64_t now;
	bool over;
};

static void on_done(struct grpc_call *call, const struct grpc_result *r, void *userdata,
		    uint64_t now _unused_)
{
	struct fuzz_call *c = userdata;

	CHECK(c->started && !c->done && c->call == call);
	CHECK(r->status < GRPC_STATUS_MAX);
	CHECK(strlen(r->message) < 1024);
	CHECK(r->status != GRPC_OK || !c->unary || r->response || r->response_len == 0);
	CHECK(!(r->status == GRPC_OK && r->undelivered));
	if (r->response_len > 0)
		sink = r->response[r->response_len - 1];
	c->done = true;
	c->call = NULL;
}

static void on_message(struct grpc_call *call, const uint8_t *data, size_t len, void *userdata,
		       uint64_t now _unused_)
{
	struct fuzz_call *c = userdata;

	CHECK(!c->done && c->call == call);
	CHECK(len <= GRPC_MESSAGE_MAX);
	if (len > 0 && data[0] == '!') {
		c->done = true;
		c->call = NULL;
		grpc_call_cancel(call);
	}
}

static void start(struct fuzz *f, bool unary)
{
	struct fuzz_call *c = &f->calls[f->n_calls];
	struct grpc_request request = {
		.path = "/a.B/C",
		.payload = unary ? f->payload : NULL,
		.timeout = unary ? 5 * USEC_PER_SEC : USEC_INFINITY,
		.message = unary ? NULL : on_message,
		.done = on_done,
		.userdata = c,
	};

	if (f->n_calls == CALLS)
		return;
	c->unary = unary;
	if (grpc_call_start(f->g, &request, f->now, &c->call) < 0)
		return;
	c->started = true;
	f->n_calls++;
}

static void cancel(struct fuzz *f, size_t i)
{
	struct fuzz_call *c = &f->calls[i % CALLS];

	if (!c->call)
		return;
	c->done = true;
	grpc_call_cancel(c->call);
	c->call = NULL;
}

static void take_output(struct fuzz *f, size_t most)
{
	struct iovec iov[64];
	size_t n = grpc_output(f->g, iov, ARRAY_SIZE(iov)), total = 0;

	for (size_t i = 0; i < n; i++) {
		CHECK(iov[i].iov_len > 0);
		sink = ((const uint8_t *)iov[i].iov_base)[iov[i].iov_len - 1];
		total += iov[i].iov_len;
	}
	CHECK(total <= QUEUED_MOST);
	grpc_sent(f->g, MIN(total, most), f->now);
}

static void act(struct fuzz *f, uint8_t what)
{
	switch (what & 7) {
	case 0:
		start(f, true);
		break;
	case 1:
		start(f, false);
		break;
	case 2:
		cancel(f, what >> 3);
		break;
	case 3:
		f->now += (uint64_t)(what >> 3) * USEC_PER_SEC;
		break;
	case 4:
		take_output(f, what >> 3);
		break;
	default:
		take_output(f, SIZE_MAX);
		break;
	}
	if (!f->over)
		f->over = grpc_run(f->g, f->now) < 0;
	CHECK(f->over || grpc_next_event(f->g) == 0 || grpc_next_event(f->g) > f->now);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct grpc_settings settings = {
		.scheme = "http",
		.authority = "a:1",
		.user_agent = "f",
		.ping_interval = GRPC_PING_INTERVAL,
		.ping_timeout = GRPC_PING_TIMEOUT,
	};
	static struct buf *payload;
	struct fuzz f = { .now = 1000 * USEC_PER_SEC };

	if (!payload) {
		CHECK(buf_new(PAYLOAD, &payload) == 0);
		memset(buf_tail(payload), 'x', PAYLOAD);
		buf_advance(payload, PAYLOAD);
		buf_seal(payload);
	}
	f.payload = payload;
	CHECK(grpc_new(&settings, f.now, &f.g) == 0);
	start(&f, true);
	start(&f, false);
	take_output(&f, SIZE_MAX);
	/* Seeds are plain streams of a server: most pieces are long, and nothing happens between. */
	while (size > 0 && !f.over) {
		size_t n = MIN(size, (size_t)4096);

		if (data[0] == 0xfe && size > 3) {
			act(&f, data[1]);
			n = MIN(size - 3, (size_t)data[2]);
			data += 3;
			size -= 3;
		}
		f.over = grpc_input(f.g, data, n, f.now) < 0;
		data += n;
		size -= n;
		take_output(&f, SIZE_MAX);
	}
	grpc_close(f.g, "over", f.now);
	CHECK(grpc_calls(f.g) == 0);
	for (size_t i = 0; i < f.n_calls; i++)
		CHECK(f.calls[i].done);
	grpc_free(f.g);
	return 0;
}
