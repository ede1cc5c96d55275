/* SPDX-License-Identifier: Apache-2.0 */
#include "stream.h"

#include <linux/sock_diag.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <sys/socket.h>

#include "clock.h"
#include "compare.h"
#include "ingest_bpf.h"
#include "pool.h"

/* Bytes of one recv(), or copied at once: looked at while they are in the CPU's cache. */
#define READ_CHUNK (128 * KIB)
/* Bytes read before the loop turns to somebody else. */
#define READ_TURN MIB
/* Of a recv() whose bytes are only compared: they stay in the CPU's cache. */
#define WINDOW (64 * KIB)
/* Drawn from the shared reserve at a time. */
#define POOL_STEP (64 * KIB)

/* What is compared in user space is read here: by all streams, one after the other. */
static uint8_t window[WINDOW];

int socket_memory(int fd, uint32_t *ret_rmem, uint32_t *ret_wmem)
{
	uint32_t info[SK_MEMINFO_VARS];
	socklen_t len = sizeof(info);

	if (getsockopt(fd, SOL_SOCKET, SO_MEMINFO, info, &len) < 0)
		return -errno;
	*ret_rmem = info[SK_MEMINFO_RMEM_ALLOC];
	*ret_wmem = info[SK_MEMINFO_WMEM_ALLOC];
	return 0;
}

/* In user space: with the content's bytes, or as long as the cache has none with the digests of its
 * blocks. */
static void compare_with(struct stream *s, struct match *match)
{
	uint64_t extent;

	if (!match ||
	    (!match_content(match) && (!match_extent(match, &extent) ||
				       compare_new(match, s->config->seed, &s->compare) < 0)))
		return;
	s->match = match_ref(match);
}

int stream_open(struct stream *s, const struct stream_config *config, int fd, bool vsock,
		struct vsr_vm_id vm, uint32_t slot, uint64_t reserved, struct match *match)
{
	uint64_t extent = 0;
	int r;

	*s = (struct stream){
		.config = config,
		.fd = fd,
		.vsock = vsock,
		.slot = slot,
		.reserved = reserved,
		.seen = { .vm = vm, .slot = slot },
	};
	digest_init(&s->digest, config->seed);
	if (!vsock || !config->bpf)
		compare_with(s, match);
	else if (match && match_extent(match, &extent))
		s->match = match_ref(match);
	if (!vsock)
		return 0;
	if (config->bpf) {
		socklen_t len = sizeof(s->cookie);

		r = getsockopt(fd, SOL_SOCKET, SO_COOKIE, &s->cookie, &len) < 0 ? -errno : 0;
		ingest_bpf_grant_set(config->bpf, slot, reserved, 0);
		ingest_bpf_grant_match(config->bpf, slot, extent,
				       s->match ? match_length(s->match) : 0);
		if (r == 0)
			r = ingest_bpf_attach(config->bpf, fd, s->cookie, &vm, slot);
		if (r < 0) {
			stream_close(s);
			return r;
		}
		s->bpf = config->bpf;
		s->attached = true;
	}
	s->credit = credit_choose(config->pool, s->attached ? CREDIT_MOST : CREDIT_MOST_USER);
	stream_reserve(s, reserved);
	r = credit_raise(fd, s->credit.bytes);
	if (r < 0) {
		stream_close(s);
		stream_end_credit(s);
	}
	return r;
}

/* Bytes of the stream, header included, that belong to the report; unknown (all) in raw mode. */
static uint64_t frame_end(const struct stream *s)
{
	return stream_framed(s) ? VSR_HEADER_SIZE + s->seen.frame_len : UINT64_MAX;
}

static uint64_t header_size(const struct stream *s)
{
	return stream_framed(s) ? VSR_HEADER_SIZE : 0;
}

static bool wants_xxh64(const struct stream *s)
{
	return stream_framed(s) || s->config->xxh64_of_raw;
}

static bool diverged(const struct stream *s)
{
	return s->seen.flags & VSR_CONN_DIVERGED;
}

/* What the daemon holds of the reservation: what is kept of the stream, or will be as soon as it is
 * read, or else a content that is there for this comparison alone; and what it may not be able to
 * see. */
static size_t buffered(const struct stream *s)
{
	uint64_t kept = s->buf ? s->read : diverged(s) ? s->seen.known : 0;

	return MAX(kept, stream_pinned(s)) + s->credit.charged;
}

/* Tells the verdict, which itself charges what it dropped as known, once the stream differs. */
static void publish(struct stream *s, size_t more)
{
	uint64_t known = diverged(s) ? s->seen.known : 0;

	if (s->attached)
		ingest_bpf_grant_set(s->bpf, s->slot, s->reserved, buffered(s) + more - known);
}

/* Looks at what was read and not looked at yet, as soon as it is known where the payload begins. */
static void look_at_read(struct stream *s)
{
	uint64_t header = header_size(s), from = MAX(s->looked_at, header);
	const uint8_t *p = buf_data(s->buf) + from - header;

	if (s->seen.mode == VSR_MODE_UNKNOWN || s->read <= from)
		return;
	digest_update(&s->digest, p, s->read - from);
	if (wants_xxh64(s))
		XXH64_update(s->xxh64, p, s->read - from);
	report_check_more(&s->check, s->read - header);
	s->looked_at = s->read;
}

/* The next n bytes of the beginning of the stream are these. */
static void restored(struct stream *s, const void *p, uint64_t n)
{
	memcpy(buf_tail(s->buf), p, n);
	buf_advance(s->buf, n);
	s->read += n;
	look_at_read(s);
}

static int restore_equal(struct stream *s, uint64_t n)
{
	const struct buf *content = match_content(s->match);
	int r;

	for (uint64_t at = 0, part; content && at < n; at += part) {
		part = MIN(n - at, (uint64_t)READ_CHUNK);
		restored(s, buf_data(content) + at, part);
	}
	if (content)
		return 0;
	r = match_copy(s->match, buf_tail(s->buf), n);
	if (r == 0) {
		buf_advance(s->buf, n);
		s->read += n;
		look_at_read(s);
	}
	return r;
}

/*
 * The beginning of the stream, which nobody kept, comes into the empty buffer: what equals the
 * cached content. In BPF mode, and of packed content, that is known of whole blocks; the bytes that filled a
 * part of the next one are in a buffer of their own.
 */
static int restore_payload(struct stream *s, uint64_t n)
{
	uint64_t equal = MIN(n, s->seen.matched);
	struct vsr_buf blocks;
	int r;

	if (s->compare)
		equal -= equal % VSR_BLOCK_SIZE;
	r = restore_equal(s, equal);
	if (r < 0 || n == equal)
		return r;
	if (s->compare) {
		restored(s, compare_partial(s->compare), n - equal);
		return 0;
	}
	r = ingest_bpf_buf(s->bpf, s->slot, &blocks);
	if (r == 0)
		restored(s, diverged(s) ? blocks.diverged : blocks.block, n - equal);
	return r;
}

static int restore(struct stream *s)
{
	uint64_t n = MIN(s->seen.known, frame_end(s)), header = header_size(s);
	int r = 0;

	if (n == 0)
		return 0;
	s->read = 0;
	if (n < header) {
		restored(s, s->seen.header, n);
	} else {
		s->read = header;
		r = restore_payload(s, n - header);
	}
	return r;
}

/* Makes the buffer, which begins with what was not kept so far. Nothing is compared any more.
 * Returns 0, -ENOMEM, -ENOBUFS: the beginning cannot be had. */
static int need_buffer(struct stream *s)
{
	size_t max = stream_framed(s) ? frame_end(s)
				      : (uint64_t)s->config->max_report + VSR_HEADER_SIZE + 1;
	int r;

	if (s->buf)
		return 0;
	s->xxh64 = s->xxh64 ?: XXH64_createState();
	s->blocks = s->blocks ?: malloc((max / VSR_BLOCK_SIZE + 1) * sizeof(*s->blocks));
	if (!s->xxh64 || !s->blocks)
		return -ENOMEM;
	XXH64_reset(s->xxh64, 0);
	digest_keep_blocks(&s->digest, s->blocks);
	r = buf_new(max, &s->buf);
	if (r < 0)
		return r;
	report_check_begin(&s->check, buf_data(s->buf), max);
	if (restore(s) < 0) {
		s->buf = buf_unref(s->buf);
		return -ENOBUFS;
	}
	s->compare = compare_free(s->compare);
	s->match = match_unref(s->match);
	return 0;
}

/* What may be a header is read by itself, and then makes room: the payload begins a page. */
static size_t header_apart(struct stream *s, size_t n)
{
	if (s->seen.mode == VSR_MODE_RAW || s->read > VSR_HEADER_SIZE)
		return n;
	if (s->read == VSR_HEADER_SIZE) {
		buf_restart(s->buf);
		return n;
	}
	return MIN(n, VSR_HEADER_SIZE - s->read);
}

static ssize_t receive_to(struct stream *s, uint8_t *to, size_t n)
{
	ssize_t got;

	do
		got = recv(s->fd, to, n, MSG_DONTWAIT);
	while (got < 0 && errno == EINTR);
	/* ENOBUFS is not ours: the kernel has reset a guest that sent more than its credit allowed
	 * (virtio_transport_recv_enqueue()). */
	if (got < 0)
		return errno == ENOBUFS ? -ECONNRESET : -errno;
	s->received += (uint64_t)got;
	s->read += (uint64_t)got;
	return got;
}

/* Reads up to n bytes to the buffer's tail. Returns bytes, 0 at the end of the stream, -errno. */
static ssize_t receive(struct stream *s, size_t n)
{
	ssize_t got;
	int r;

	r = need_buffer(s);
	if (r < 0)
		return r;
	n = header_apart(s, n);
	n = MIN(n, buf_room(s->buf));
	n = MIN(n, READ_CHUNK);
	/* Before it grows: BPF may charge too much for a moment, never too little. */
	publish(s, n);
	got = receive_to(s, buf_tail(s->buf), n);
	if (got > 0)
		buf_advance(s->buf, (size_t)got);
	publish(s, 0);
	return got;
}

/* Why there is no report, when there were no bytes of it to be had. */
static enum reason reason_of(int r)
{
	switch (r) {
	case -ENOMEM:
	case -ENOBUFS:
		return REASON_INTERNAL;
	case -ENOSPC:
		return REASON_OVER_BUDGET;
	default:
		return REASON_ABORTED;
	}
}

/* What an end here means: NONE where a raw report may end. A header that is cut is bad, also behind its
 * magic, from which on the verdict knows the mode already: user space knows it at the last byte. */
static enum reason reason_of_end(const struct stream *s)
{
	if (s->seen.header_len > 0 && s->seen.header_len < VSR_HEADER_SIZE)
		return REASON_BAD_HEADER;
	return stream_framed(s) ? REASON_ABORTED : REASON_NONE;
}

static enum stream_state refuse(enum reason reason, enum reason *ret_reason)
{
	*ret_reason = reason;
	return STREAM_REFUSED;
}

/* ---- with BPF --------------------------------------------------------------------------------- */

static enum reason reason_of_flags(uint32_t flags)
{
	static const struct {
		uint32_t flag;
		enum reason reason;
	} map[] = {
		{ VSR_CONN_ZERO_LENGTH, REASON_ZERO_LENGTH },
		{ VSR_CONN_BAD_PACKET, REASON_BAD_PACKET },
		{ VSR_CONN_BAD_HEADER, REASON_BAD_HEADER },
		{ VSR_CONN_TOO_LARGE, REASON_TOO_LARGE },
		{ VSR_CONN_UNREAD_UPDATES, REASON_UNREAD_UPDATES },
		{ VSR_CONN_OVER_BUDGET, REASON_OVER_BUDGET },
	};

	for (size_t i = 0; i < ARRAY_SIZE(map); i++)
		if (flags & map[i].flag)
			return map[i].reason;
	return REASON_NONE;
}

/* Bytes that BPF passed and that belong to the report, not read yet. How many it dropped before is
 * certain only once it has said that the stream differs. */
static uint64_t owed(const struct stream *s)
{
	uint64_t known = s->seen.known, end = MIN(known + s->seen.passed, frame_end(s));
	uint64_t have = known + s->received;

	if (s->match && !diverged(s))
		return 0;
	return end > have ? end - have : 0;
}

static int read_owed(struct stream *s, uint64_t most)
{
	uint64_t n = MIN(owed(s), most);

	while (n > 0) {
		ssize_t got = receive(s, n);

		if (got <= 0)
			return got < 0 ? (int)got : -EAGAIN;
		look_at_read(s);
		n -= (uint64_t)got;
	}
	return 0;
}

static enum stream_state look_bpf(struct stream *s, enum reason *ret_reason)
{
	struct pollfd p = { .fd = s->fd, .events = POLLRDHUP };
	enum reason reason;
	bool closed;
	int r;

	/* In this order: the kernel shows a packet to BPF before the close that follows it. */
	if (poll(&p, 1, 0) < 0)
		return refuse(REASON_INTERNAL, ret_reason);
	closed = p.revents & (POLLRDHUP | POLLHUP);
	if (ingest_bpf_read(s->bpf, s->cookie, &s->seen) < 0)
		return refuse(REASON_INTERNAL, ret_reason);

	reason = reason_of_flags(s->seen.flags);
	if (reason != REASON_NONE)
		return refuse(reason, ret_reason);
	if (p.revents & POLLERR)
		return refuse(REASON_ABORTED, ret_reason);

	s->ended = s->seen.flags & VSR_CONN_FRAME_DONE;
	if (!s->ended && closed) {
		reason = reason_of_end(s);
		if (reason != REASON_NONE)
			return refuse(reason, ret_reason);
		s->ended = true;
	}
	if (s->ended)
		return STREAM_ENDED;
	if (s->seen.mode == VSR_MODE_VSR2 && (s->seen.flags & VSR_CONN_HEADER_DONE) &&
	    !s->offer_told) {
		s->offer_told = true;
		return STREAM_OFFER;
	}
	if (stream_wants_input(s)) {
		r = read_owed(s, READ_TURN);
		if (r < 0 && r != -EAGAIN)
			return refuse(reason_of(r), ret_reason);
	}
	return STREAM_MORE;
}

/* Whether there are bytes that BPF never passed: a recv() that owes nothing must find nothing. */
static bool bypassed(const struct stream *s)
{
	uint8_t byte;

	return s->seen.passed == s->received && recv(s->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
}

/* Whether a raw stream has gone on after its end: the kernel takes data from a guest that has said
 * that it sends no more, and BPF hashes it. (A frame's later bytes are not hashed.) */
static bool went_on(const struct stream *s)
{
	struct vsr_conn now;

	return !stream_framed(s) && ingest_bpf_read(s->bpf, s->cookie, &now) == 0 &&
	       now.seen != s->seen.seen;
}

/* All bytes are here, so libxxhash can say whether BPF hashed them as they are. */
static int confirm_digest(const struct stream *s)
{
	uint64_t digest;
	int r;

	r = stream_digest(s, &digest);
	if (r < 0)
		return r;
	return digest == digest_final(&s->digest) ? 0 : -EPROTO;
}

static int take_bpf(struct stream *s, enum reason *ret_reason)
{
	int r;

	r = read_owed(s, READ_TURN);
	if (r == 0 && owed(s) > 0)
		return -EINPROGRESS;
	if (r < 0 && r != -EAGAIN) {
		*ret_reason = reason_of(r);
		return -EPROTO;
	}
	if (r == -EAGAIN ||
	    s->received + s->seen.known + s->seen.refused < MIN(s->seen.seen, frame_end(s)))
		return -EAGAIN;
	if (bypassed(s)) {
		*ret_reason = went_on(s) ? REASON_AFTER_END : REASON_BYPASS;
		return -EPROTO;
	}
	if (!s->buf && stream_repeats(s) && match_content(s->match))
		return 0;
	r = need_buffer(s);
	if (r < 0) {
		*ret_reason = REASON_INTERNAL;
		return -EPROTO;
	}
	look_at_read(s);
	r = confirm_digest(s);
	if (r < 0)
		*ret_reason = went_on(s) ? REASON_AFTER_END : REASON_KERNEL_DIGEST;
	return r;
}

/* ---- without BPF ------------------------------------------------------------------------------ */

/* The first bytes tell the mode, as in the verdict. The n bytes at p are the last that were read;
 * as long as the mode is not known no more than a header's. */
static enum reason parse_header(struct stream *s, const uint8_t *p, size_t n)
{
	struct vsr_conn *c = &s->seen;
	struct vsr_header h;

	if (c->mode != VSR_MODE_UNKNOWN || n == 0)
		return REASON_NONE;
	if (c->header_len == 0 && p[0] != 'V') {
		c->mode = VSR_MODE_RAW;
		return REASON_NONE;
	}
	memcpy(c->header + c->header_len, p, n);
	c->header_len += (uint32_t)n;
	if (c->header_len < VSR_HEADER_SIZE)
		return vsr_magic_possible(c->header, c->header_len) ? REASON_NONE
								    : REASON_BAD_HEADER;
	vsr_header_read(c->header, &h);
	if (h.mode == VSR_MODE_UNKNOWN)
		return REASON_BAD_HEADER;
	c->mode = h.mode;
	c->frame_len = h.length;
	c->flags |= VSR_CONN_HEADER_DONE;
	return h.length > s->config->max_report ? REASON_TOO_LARGE : REASON_NONE;
}

/* Bytes to ask for next: never beyond the header before it was read, nor beyond the frame. */
static size_t next_read(const struct stream *s)
{
	if (s->seen.mode == VSR_MODE_UNKNOWN)
		return VSR_HEADER_SIZE - s->read;
	return MIN(s->match ? WINDOW : READ_CHUNK, frame_end(s) - s->read);
}

static bool draw(struct stream *s, uint64_t n)
{
	if (!pool_draw(s->config->pool, n))
		return false;
	s->share += n;
	return true;
}

/* How many of n more bytes may be taken in; 0: none. As the verdict does it: the reservation
 * first, to its last byte, and then the shared reserve. What is only compared costs nothing. */
static size_t afford(struct stream *s, size_t n)
{
	uint64_t used = buffered(s), have = s->reserved + s->share;

	if (s->match)
		return n;
	if (used < have)
		return MIN(n, have - used);
	n = MIN(n, POOL_STEP);
	return draw(s, n) ? n : 0;
}

/* The same for the n bytes that a stream has brought so far which is to be kept from now on. */
static bool afford_all(struct stream *s, uint64_t n)
{
	uint64_t have = s->reserved + s->share;

	n += s->credit.charged;
	return n <= have || draw(s, n - have);
}

/* What the next bytes are that cannot be afforded: as recv(), but it takes none. */
static ssize_t peek(const struct stream *s)
{
	uint8_t byte;
	ssize_t n = recv(s->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

	return n < 0 ? -errno : n;
}

static bool frame_complete(const struct stream *s)
{
	return stream_framed(s) && s->read == frame_end(s);
}

/* recv() says the end, also when a VM vanished in mid-report (vhost_vsock_reset_orphans() in
 * drivers/vhost/vsock.c): only the socket's error tells. */
static bool cut_off(const struct stream *s)
{
	socklen_t len = sizeof(int);
	int error = 0;

	return getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0 || error != 0;
}

/* The stream ended after what was read. */
static enum reason end_of_stream(struct stream *s)
{
	enum reason reason = cut_off(s) ? REASON_ABORTED : reason_of_end(s);

	s->ended = reason == REASON_NONE;
	return reason;
}

static bool take_in(struct stream *s, const uint8_t *p, size_t n, enum reason *ret_reason)
{
	*ret_reason = parse_header(s, p, n);
	if (*ret_reason != REASON_NONE)
		return false;
	if (s->seen.mode == VSR_MODE_RAW && s->read > s->config->max_report) {
		*ret_reason = REASON_TOO_LARGE;
		return false;
	}
	return true;
}

static void count_packet(struct stream *s, size_t n)
{
	s->seen.seen += n;
	s->seen.passed = s->seen.seen - s->seen.known;
	s->seen.packets++;
	s->seen.last_ns = clock_usec() * NSEC_PER_USEC;
}

/* Whether the n bytes in the window, the last that were read, equal the content. Those of the header
 * are kept anyway. */
static bool window_equals(struct stream *s, size_t n)
{
	const struct buf *content = match_content(s->match);
	uint64_t begin = s->read - n, header = header_size(s);
	uint64_t skip = begin < header ? MIN(header - begin, n) : 0;
	uint64_t at = begin + skip - header;

	if (s->seen.mode == VSR_MODE_UNKNOWN || skip == n)
		return true;
	if (s->compare)
		return compare_more(s->compare, window + skip, n - skip);
	/* The cache may have compressed it meanwhile. */
	return content && at + (n - skip) <= match_length(s->match) &&
	       memcmp(buf_data(content) + at, window + skip, n - skip) == 0;
}

/* The n bytes in the window are the first that differ: from now on everything is kept. */
static int keep_window(struct stream *s, size_t n)
{
	uint64_t all = s->read;
	int r;

	if (!afford_all(s, all))
		return -ENOSPC;
	s->seen.flags |= VSR_CONN_DIVERGED;
	r = need_buffer(s);
	if (r < 0)
		return r;
	memcpy(buf_tail(s->buf), window, n);
	buf_advance(s->buf, n);
	s->read = all;
	return 0;
}

/* What was read into the window is dropped, or kept. */
static int compare_window(struct stream *s, size_t n)
{
	if (!window_equals(s, n))
		return keep_window(s, n);
	s->seen.known += n;
	s->seen.matched = s->seen.known - MIN(s->seen.known, header_size(s));
	return 0;
}

static enum stream_state look_user(struct stream *s, enum reason *ret_reason)
{
	uint64_t turn_end = s->read + READ_TURN;

	while (!frame_complete(s) && s->read < turn_end) {
		size_t n = afford(s, next_read(s));
		bool compare = s->match;
		ssize_t got = n == 0 ? peek(s) : compare ? receive_to(s, window, n) : receive(s, n);
		int r = 0;

		if (got == -EAGAIN)
			break;
		if (got < 0)
			return refuse(reason_of((int)got), ret_reason);
		if (got == 0) {
			*ret_reason = end_of_stream(s);
			if (*ret_reason != REASON_NONE)
				return STREAM_REFUSED;
			break;
		}
		if (n == 0)
			return refuse(REASON_OVER_BUDGET, ret_reason);
		if (!take_in(s, compare ? window : buf_tail(s->buf) - got, (size_t)got, ret_reason))
			return STREAM_REFUSED;
		if (compare)
			r = compare_window(s, (size_t)got);
		count_packet(s, (size_t)got);
		if (r < 0)
			return refuse(reason_of(r), ret_reason);
		if (s->buf)
			look_at_read(s);
		if (s->seen.mode == VSR_MODE_VSR2 && !s->offer_told) {
			s->offer_told = true;
			return STREAM_OFFER;
		}
	}
	s->ended = s->ended || frame_complete(s);
	s->seen.payload = s->read - header_size(s);
	return s->ended ? STREAM_ENDED : STREAM_MORE;
}

/* ---- both ------------------------------------------------------------------------------------- */

enum stream_state stream_look(struct stream *s, enum reason *ret_reason)
{
	if (s->ended)
		return STREAM_ENDED;
	return s->attached ? look_bpf(s, ret_reason) : look_user(s, ret_reason);
}

int stream_take(struct stream *s, enum reason *ret_reason)
{
	int r;

	if (s->sealed)
		return 0;
	if (s->attached) {
		r = take_bpf(s, ret_reason);
		if (r < 0)
			return r;
	}
	if (!s->buf && stream_repeats(s) && match_content(s->match)) {
		s->buf = buf_ref(match_content(s->match));
		s->sealed = true;
		return 0;
	}
	r = need_buffer(s);
	if (r < 0) {
		*ret_reason = REASON_INTERNAL;
		return -EPROTO;
	}
	if (stream_framed(s) && s->read == VSR_HEADER_SIZE)
		buf_restart(s->buf); /* an empty payload */
	look_at_read(s);
	buf_seal(s->buf);
	s->sealed = true;
	return 0;
}

bool stream_unread(const struct stream *s)
{
	return !s->sealed && (s->attached ? s->read == 0 : stream_repeats(s));
}

bool stream_repeats(const struct stream *s)
{
	uint64_t digest;

	if (!s->match || diverged(s) || stream_length(s) != match_length(s->match))
		return false;
	if (s->compare)
		return compare_complete(s->compare);
	/* BPF has compared whole blocks; what came behind the last one, the digest tells. */
	return !s->attached || (stream_digest(s, &digest) == 0 && digest == match_digest(s->match));
}

bool stream_wants_input(const struct stream *s)
{
	return !s->attached || (s->seen.flags & VSR_CONN_HALF);
}

size_t stream_pinned(const struct stream *s)
{
	return s->match && !match_cached(s->match) ? match_cost(s->match) : 0;
}

uint64_t stream_charge(const struct stream *s)
{
	uint32_t rmem = 0, wmem = 0;

	if (s->vsock)
		socket_memory(s->fd, &rmem, &wmem);
	return buffered(s) + rmem + wmem + s->seen.packets_queued * VSR_PACKET_OVERHEAD;
}

void stream_reserve(struct stream *s, uint64_t reserved)
{
	s->reserved = reserved;
	publish(s, 0);
}

uint32_t stream_mode(const struct stream *s)
{
	return s->seen.mode;
}

void stream_header(const struct stream *s, struct vsr_header *ret)
{
	vsr_header_read(s->seen.header, ret);
}

uint64_t stream_length(const struct stream *s)
{
	return stream_framed(s) ? s->seen.frame_len : s->seen.payload;
}

int stream_digest(const struct stream *s, uint64_t *ret)
{
	struct vsr_buf blocks;
	int r;

	if (!s->attached) {
		*ret = stream_repeats(s) ? match_digest(s->match) : digest_final(&s->digest);
		return 0;
	}
	r = ingest_bpf_buf(s->bpf, s->slot, &blocks);
	if (r < 0)
		return r;
	*ret = digest_finish_partial(s->config->seed, s->seen.fold, s->seen.payload, blocks.block);
	return 0;
}

bool stream_xxh64(const struct stream *s, uint64_t *ret)
{
	if (!wants_xxh64(s))
		return false;
	/* With match the payload is cached content, and was not looked at. */
	*ret = s->match ? XXH64(buf_data(s->buf), buf_len(s->buf), 0) : XXH64_digest(s->xxh64);
	return true;
}

int stream_validate(struct stream *s, uint32_t peer_cid, struct report_error *error,
		    struct report_info *ret)
{
	if (s->match)
		return report_validate(buf_data(s->buf), buf_len(s->buf), peer_cid, error, ret);
	return report_check_end(&s->check, buf_len(s->buf), peer_cid, error, ret);
}

const uint64_t *stream_blocks(const struct stream *s)
{
	return s->match ? match_blocks(s->match) : s->blocks;
}

uint64_t stream_last_byte(const struct stream *s)
{
	return s->seen.last_ns / NSEC_PER_USEC;
}

void stream_close(struct stream *s)
{
	if (s->attached) {
		struct vsr_conn last;

		/* The share as of the last verdict: after the detach nothing draws any more. */
		if (ingest_bpf_detach(s->bpf, s->fd, s->cookie, s->slot, &last) == 0)
			s->share = last.pool_share;
		s->attached = false;
	}
	if (s->config)
		pool_give_back(s->config->pool, s->share);
	s->share = 0;
	s->buf = buf_unref(s->buf);
	s->compare = compare_free(s->compare);
	s->match = match_unref(s->match);
	XXH64_freeState(s->xxh64);
	s->xxh64 = NULL;
	free(s->blocks);
	s->blocks = NULL;
}

bool stream_end_credit(struct stream *s)
{
	credit_give_back(&s->credit, s->config->pool);
	s->credit.bytes = 0;
	return credit_end(s->fd);
}
