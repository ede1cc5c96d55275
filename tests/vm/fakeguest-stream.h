/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fake guest's stream sockets: connection state, credit and shutdown as virtio 1.2 section
 * 5.10.6 has them, and jobs that send: polite ones within the peer's credit, raw ones with any
 * header and any descriptor. Nothing here waits; fg_guest_pump() does what can be done now.
 */
#ifndef FAKEGUEST_STREAM_H
#define FAKEGUEST_STREAM_H

#include <sys/random.h>
#include <time.h>

#include "fakeguest-vhost.h"

#define FG_HOST_CID	 2U
#define FG_BUF_ALLOC	 (256U * 1024)
#define FG_CONN_BUCKETS	 4096U
#define FG_PENDING_MAX	 (1U << 17)
#define FG_LOG_SIZE	 8192U
#define FG_FIRST_PORT	 1024U
#define FG_SHUTDOWN_BOTH (VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND)

enum fg_state {
	FG_CONNECTING,
	FG_OPEN,
	FG_CLOSED,
};

/* Bytes to send: a mapped file, given bytes, or a block that repeats. */
struct fg_bytes {
	uint8_t *base;
	size_t period; /* size of base */
	bool mapped;
};

struct fg_job {
	struct fg_job *next;
	bool raw;
	uint64_t total, done; /* bytes, or packets of a raw job */
	size_t desc;	      /* declared buffer size, header included, or FG_DESC_NATURAL */

	struct fg_bytes bytes; /* not raw */
	size_t chunk;

	struct fg_pkt pkt; /* raw: the header, apart from what `keep` says */
	size_t len;	   /* raw: bytes of payload that are really there */
	uint8_t fill;
	uint32_t port_step;    /* raw: added to src_port for each packet */
	bool keep_credit_info; /* raw: buf_alloc and fwd_cnt were given, do not fill them in */
};

struct fg_guest;

struct fg_conn {
	struct fg_conn *next_in_bucket, *next_active;
	struct fg_guest *guest;
	unsigned id;
	uint64_t peer_cid;
	uint32_t port, peer_port;
	enum fg_state state;
	const char *reason; /* why it is closed */
	bool hashed, active;
	uint8_t shutdown, peer_shutdown;

	uint32_t tx_cnt, peer_buf_alloc, peer_fwd_cnt;
	uint64_t sent; /* payload bytes of polite jobs that vhost was given */
	struct fg_job *jobs, **jobs_tail;

	uint32_t buf_alloc, fwd_cnt, last_fwd_cnt;
	uint8_t *rx;
	size_t rx_start, rx_end, rx_size;
	uint64_t received;
	uint64_t opened,
		granted; /* when the host answered, and gave credit: CLOCK_MONOTONIC usec */
};

enum fg_answer {
	FG_ANSWER_RST,	   /* as Linux: a packet for no connection is answered by a reset */
	FG_ANSWER_NOTHING, /* a guest that lives but says nothing */
};

struct fg_guest {
	struct fg_guest *next;
	struct fg_device *dev;
	struct fg_conn *bucket[FG_CONN_BUCKETS];
	struct fg_conn *active; /* with jobs, in the order of their turns */
	struct fg_conn *raw;	/* where packets that belong to no connection are sent from */
	uint32_t next_port;
	enum fg_answer answer;
	bool clings; /* never confirms a SHUTDOWN: the host's socket lives on for 8 s */

	struct fg_pkt *pending; /* control packets that found the ring full; ring buffer */
	unsigned pending_head, pending_tail;

	struct fg_pkt *log; /* headers received; ring buffer */
	uint64_t log_seq, log_read;

	uint64_t n_rx[8], n_tx[8]; /* by op; 0: any other */
	uint64_t rx_bytes, tx_bytes, n_orphans, n_overrun, n_pending_dropped;
};

static inline unsigned fg_op_slot(uint16_t op)
{
	return op < 8 ? op : 0;
}

/* ---- connections ------------------------------------------------------------------------- */

static inline struct fg_conn **fg_conn_bucket(struct fg_guest *g, uint32_t port)
{
	return &g->bucket[port % FG_CONN_BUCKETS];
}

static inline struct fg_conn *fg_conn_find(struct fg_guest *g, const struct fg_pkt *p)
{
	for (struct fg_conn *c = *fg_conn_bucket(g, p->dst_port); c; c = c->next_in_bucket)
		if (c->port == p->dst_port && c->peer_port == p->src_port &&
		    c->peer_cid == p->src_cid)
			return c;
	return NULL;
}

static inline void fg_conn_unhash(struct fg_conn *c)
{
	struct fg_conn **p = fg_conn_bucket(c->guest, c->port);

	if (!c->hashed)
		return;
	while (*p != c)
		p = &(*p)->next_in_bucket;
	*p = c->next_in_bucket;
	c->hashed = false;
}

static inline void fg_conn_deactivate(struct fg_conn *c)
{
	struct fg_conn **p = &c->guest->active;

	if (!c->active)
		return;
	while (*p != c)
		p = &(*p)->next_active;
	*p = c->next_active;
	c->active = false;
}

static inline void fg_conn_activate(struct fg_conn *c)
{
	struct fg_conn **p = &c->guest->active;

	if (c->active)
		return;
	while (*p)
		p = &(*p)->next_active;
	*p = c;
	c->next_active = NULL;
	c->active = true;
}

static inline void fg_bytes_release(struct fg_bytes *b)
{
	if (b->mapped)
		munmap(b->base, b->period);
	else
		free(b->base);
	*b = (struct fg_bytes){ 0 };
}

static inline void fg_job_drop(struct fg_conn *c)
{
	struct fg_job *j = c->jobs;

	c->jobs = j->next;
	if (!c->jobs)
		c->jobs_tail = &c->jobs;
	fg_bytes_release(&j->bytes);
	free(j);
}

static inline void fg_jobs_drop(struct fg_conn *c)
{
	while (c->jobs)
		fg_job_drop(c);
	fg_conn_deactivate(c);
}

/* A hostile guest does not care that its connection has ended: raw jobs go on. */
static inline void fg_jobs_drop_polite(struct fg_conn *c)
{
	while (c->jobs && !c->jobs->raw)
		fg_job_drop(c);
	if (!c->jobs)
		fg_conn_deactivate(c);
}

/* It answers nothing any more; what was received can still be read. */
static inline void fg_conn_closed(struct fg_conn *c, const char *reason)
{
	if (c->state == FG_CLOSED)
		return;
	c->state = FG_CLOSED;
	c->reason = reason;
	fg_conn_unhash(c);
	fg_jobs_drop_polite(c);
}

static inline struct fg_conn *fg_conn_free(struct fg_conn *c)
{
	if (!c)
		return NULL;
	if (c->guest) {
		fg_conn_unhash(c);
		fg_jobs_drop(c);
	}
	free(c->rx);
	free(c);
	return NULL;
}
DEFINE_CLEANUP(struct fg_conn, fg_conn_free);

/* How many bytes the peer still takes; a peer that shrank its buffer takes none. */
static inline uint32_t fg_conn_credit(const struct fg_conn *c)
{
	uint32_t in_flight = c->tx_cnt - c->peer_fwd_cnt;

	return c->peer_buf_alloc > in_flight ? c->peer_buf_alloc - in_flight : 0;
}

static inline struct fg_pkt fg_conn_pkt(const struct fg_conn *c, uint16_t op)
{
	return (struct fg_pkt){
		.src_cid = c->guest->dev->cid,
		.dst_cid = c->peer_cid,
		.src_port = c->port,
		.dst_port = c->peer_port,
		.type = VIRTIO_VSOCK_TYPE_STREAM,
		.op = op,
		.buf_alloc = c->buf_alloc,
		.fwd_cnt = c->fwd_cnt,
	};
}

/* ---- sending ----------------------------------------------------------------------------- */

static inline void fg_commit(struct fg_guest *g, const struct fg_pkt *p, size_t len, size_t total)
{
	fg_tx_commit(g->dev, p, len, total);
	g->n_tx[fg_op_slot(p->op)]++;
	g->tx_bytes += len;
}

static inline void fg_pending_flush(struct fg_guest *g)
{
	while (g->pending_tail != g->pending_head && fg_tx_reserve(g->dev, 0))
		fg_commit(g, &g->pending[g->pending_tail++ % FG_PENDING_MAX], 0, FG_DESC_NATURAL);
}

/* Sends a packet without payload, later if the ring is full now. */
static inline void fg_control(struct fg_guest *g, const struct fg_pkt *p)
{
	if (g->pending_head - g->pending_tail == FG_PENDING_MAX) {
		g->n_pending_dropped++;
		return;
	}
	g->pending[g->pending_head++ % FG_PENDING_MAX] = *p;
	fg_pending_flush(g);
}

static inline void fg_conn_control(struct fg_conn *c, uint16_t op, uint32_t flags)
{
	struct fg_pkt p = fg_conn_pkt(c, op);

	p.flags = flags;
	c->last_fwd_cnt = c->fwd_cnt;
	fg_control(c->guest, &p);
}

static inline void fg_job_add(struct fg_conn *c, struct fg_job *j)
{
	j->next = NULL;
	*c->jobs_tail = j;
	c->jobs_tail = &j->next;
	fg_conn_activate(c);
}

/* One packet of a polite job. Returns false if it must wait for credit or room. */
static inline bool fg_job_send(struct fg_conn *c, struct fg_job *j)
{
	uint64_t left = MIN(j->total - j->done, (uint64_t)fg_conn_credit(c));
	size_t n = MIN(left, (uint64_t)j->chunk);
	struct fg_pkt p = fg_conn_pkt(c, VIRTIO_VSOCK_OP_RW);
	uint8_t *at;

	if (c->state != FG_OPEN || n == 0)
		return false;
	at = fg_tx_reserve(c->guest->dev, n);
	if (!at)
		return false;
	for (size_t i = 0; i < n;) {
		size_t off = (j->done + i) % j->bytes.period;
		size_t part = MIN(n - i, j->bytes.period - off);

		memcpy(at + i, j->bytes.base + off, part);
		i += part;
	}
	p.len = (uint32_t)n;
	fg_commit(c->guest, &p, n, j->desc);
	c->tx_cnt += (uint32_t)n;
	c->last_fwd_cnt = c->fwd_cnt;
	c->sent += n;
	j->done += n;
	return true;
}

static inline bool fg_job_send_raw(struct fg_conn *c, struct fg_job *j)
{
	struct fg_pkt p = j->pkt;
	uint8_t *at = fg_tx_reserve(c->guest->dev, j->len);

	if (!at)
		return false;
	memset(at, j->fill, j->len);
	p.src_port += (uint32_t)j->done * j->port_step;
	if (!j->keep_credit_info) {
		p.buf_alloc = c->buf_alloc;
		p.fwd_cnt = c->last_fwd_cnt = c->fwd_cnt;
	}
	fg_commit(c->guest, &p, j->len, j->desc);
	if (p.op == VIRTIO_VSOCK_OP_RW)
		c->tx_cnt += p.len;
	if (p.op == VIRTIO_VSOCK_OP_SHUTDOWN)
		c->shutdown |= p.flags & FG_SHUTDOWN_BOTH;
	j->done++;
	return true;
}

/* Moves the connection's jobs on by one packet. */
static inline bool fg_conn_step(struct fg_conn *c)
{
	struct fg_job *j = c->jobs;
	bool progress = j->raw ? fg_job_send_raw(c, j) : fg_job_send(c, j);

	if (j->done == j->total)
		fg_job_drop(c);
	else if (!progress)
		return false;
	if (c->state == FG_CLOSED)
		fg_jobs_drop_polite(c);
	if (!c->jobs)
		fg_conn_deactivate(c);
	return true;
}

/* A packet of each active connection in turn, as long as one of them gets on. */
static inline bool fg_jobs_run(struct fg_guest *g)
{
	bool any = false, again = true;

	while (again && g->pending_head == g->pending_tail) {
		struct fg_conn *next;

		again = false;
		for (struct fg_conn *c = g->active; c; c = next) {
			next = c->next_active;
			again |= fg_conn_step(c);
		}
		any |= again;
	}
	return any;
}

/* ---- receiving --------------------------------------------------------------------------- */

static inline size_t fg_conn_readable(const struct fg_conn *c)
{
	return c->rx_end - c->rx_start;
}

static inline bool fg_rx_room(struct fg_conn *c, size_t n)
{
	size_t have = fg_conn_readable(c), size = c->rx_size ?: 4096;
	uint8_t *p;

	if (c->rx_end + n <= c->rx_size)
		return true;
	if (have > 0)
		memmove(c->rx, c->rx + c->rx_start, have);
	c->rx_start = 0;
	c->rx_end = have;
	while (size < have + n)
		size *= 2;
	if (size == c->rx_size)
		return true;
	p = realloc(c->rx, size);
	if (!p)
		return false;
	c->rx = p;
	c->rx_size = size;
	return true;
}

/* Once both directions are shut and all is read, the connection ends with a reset, as on Linux. */
static inline void fg_conn_finish(struct fg_conn *c)
{
	if (c->state != FG_OPEN || c->peer_shutdown != FG_SHUTDOWN_BOTH ||
	    fg_conn_readable(c) > 0 || c->guest->clings)
		return;
	fg_conn_control(c, VIRTIO_VSOCK_OP_RST, 0);
	fg_conn_closed(c, "shutdown");
}

/* n bytes of what was received have been used: the peer gets credit for them before it has used
 * up three quarters of what it knows of. */
static inline void fg_conn_consume(struct fg_conn *c, size_t n)
{
	c->rx_start += n;
	c->fwd_cnt += (uint32_t)n;
	if (c->state == FG_OPEN && n > 0 &&
	    c->fwd_cnt - c->last_fwd_cnt >= MAX(c->buf_alloc / 4, 1U))
		fg_conn_control(c, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0);
	fg_conn_finish(c);
}

static inline void fg_conn_abort(struct fg_conn *c, const char *reason)
{
	if (c->state != FG_CLOSED)
		fg_conn_control(c, VIRTIO_VSOCK_OP_RST, 0);
	fg_conn_closed(c, reason);
}

static inline void fg_conn_data(struct fg_conn *c, const struct fg_pkt *p, const uint8_t *data)
{
	if (fg_conn_readable(c) + p->len > c->buf_alloc || !fg_rx_room(c, p->len)) {
		c->guest->n_overrun++;
		fg_conn_abort(c, "overrun");
		return;
	}
	if (p->len > 0)
		memcpy(c->rx + c->rx_end, data, p->len);
	c->rx_end += p->len;
	c->received += p->len;
	c->guest->rx_bytes += p->len;
}

static inline uint64_t fg_now_usec(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static inline void fg_conn_packet(struct fg_conn *c, const struct fg_pkt *p, const uint8_t *data)
{
	c->peer_buf_alloc = p->buf_alloc;
	c->peer_fwd_cnt = p->fwd_cnt;
	if (p->op == VIRTIO_VSOCK_OP_RESPONSE && !c->opened)
		c->opened = fg_now_usec();
	if (p->buf_alloc > 0 && !c->granted)
		c->granted = fg_now_usec();
	switch (p->op) {
	case VIRTIO_VSOCK_OP_RESPONSE:
		if (c->state == FG_CONNECTING)
			c->state = FG_OPEN;
		break;
	case VIRTIO_VSOCK_OP_RST:
		fg_conn_closed(c, c->state == FG_CONNECTING	    ? "refused"
				  : c->shutdown == FG_SHUTDOWN_BOTH ? "closed"
								    : "rst");
		break;
	case VIRTIO_VSOCK_OP_RW:
		if (c->state == FG_OPEN)
			fg_conn_data(c, p, data);
		break;
	case VIRTIO_VSOCK_OP_SHUTDOWN:
		c->peer_shutdown |= p->flags & FG_SHUTDOWN_BOTH;
		fg_conn_finish(c);
		break;
	case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
		fg_conn_control(c, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0);
		break;
	case VIRTIO_VSOCK_OP_CREDIT_UPDATE:
		break;
	default:
		fg_conn_abort(c, "protocol");
	}
}

/* A packet for no connection of ours. */
static inline void fg_orphan(struct fg_guest *g, const struct fg_pkt *p)
{
	struct fg_pkt rst = {
		.src_cid = g->dev->cid,
		.dst_cid = p->src_cid,
		.src_port = p->dst_port,
		.dst_port = p->src_port,
		.type = p->type,
		.op = VIRTIO_VSOCK_OP_RST,
	};

	g->n_orphans++;
	if (p->op != VIRTIO_VSOCK_OP_RST && g->answer == FG_ANSWER_RST)
		fg_control(g, &rst);
}

static inline bool fg_receive(struct fg_guest *g)
{
	const uint8_t *data;
	struct fg_pkt p;
	bool any = false;

	while (fg_rx_next(g->dev, &p, &data) > 0) {
		struct fg_conn *c = fg_conn_find(g, &p);

		any = true;
		g->n_rx[fg_op_slot(p.op)]++;
		g->log[g->log_seq++ % FG_LOG_SIZE] = p;
		if (c && p.dst_cid == g->dev->cid)
			fg_conn_packet(c, &p, data);
		else
			fg_orphan(g, &p);
	}
	return any;
}

/* ---- guests ------------------------------------------------------------------------------ */

/* Does what can be done without waiting, then kicks once. Returns whether there may be more. */
static inline bool fg_guest_pump(struct fg_guest *g)
{
	bool again = true;

	for (unsigned i = 0; again && i < 64; i++) {
		again = fg_receive(g);
		fg_tx_reap(g->dev);
		fg_pending_flush(g);
		again |= fg_jobs_run(g);
	}
	fg_kick(g->dev);
	return again;
}

static inline uint32_t fg_guest_port(struct fg_guest *g)
{
	for (;;) {
		struct fg_conn *c;
		uint32_t port = g->next_port++;

		if (port < FG_FIRST_PORT)
			continue;
		for (c = *fg_conn_bucket(g, port); c; c = c->next_in_bucket)
			if (c->port == port)
				break;
		if (!c)
			return port;
	}
}

/* A new connection to cid:peer_port, its REQUEST on the way; port 0: any that is free. Returns 0
 * or -ENOMEM. */
static inline int fg_conn_new(struct fg_guest *g, uint32_t port, uint64_t peer_cid,
			      uint32_t peer_port, uint32_t buf_alloc, struct fg_conn **ret)
{
	static unsigned last_id;
	struct fg_conn *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	*c = (struct fg_conn){
		.guest = g,
		.id = ++last_id,
		.port = port ?: fg_guest_port(g),
		.peer_cid = peer_cid,
		.peer_port = peer_port,
		.buf_alloc = buf_alloc,
		.state = FG_CONNECTING,
		.hashed = true,
	};
	c->jobs_tail = &c->jobs;
	c->next_in_bucket = *fg_conn_bucket(g, c->port);
	*fg_conn_bucket(g, c->port) = c;
	fg_conn_control(c, VIRTIO_VSOCK_OP_REQUEST, 0);
	*ret = c;
	return 0;
}

/* Its connections must have been freed. */
static inline struct fg_guest *fg_guest_free(struct fg_guest *g)
{
	if (!g)
		return NULL;
	fg_conn_free(g->raw);
	fg_device_free(g->dev);
	free(g->pending);
	free(g->log);
	free(g);
	return NULL;
}
DEFINE_CLEANUP(struct fg_guest, fg_guest_free);

/* Errors: those of fg_device_new(). */
static inline int fg_guest_new(uint64_t cid, unsigned rx_num, unsigned tx_num,
			       struct fg_guest **ret)
{
	_cleanup_(fg_guest_freep)
	struct fg_guest *g = calloc(1, sizeof(*g));
	uint32_t random = 0;
	int r;

	if (!g)
		return -ENOMEM;
	g->pending = calloc(FG_PENDING_MAX, sizeof(*g->pending));
	g->log = calloc(FG_LOG_SIZE, sizeof(*g->log));
	g->raw = calloc(1, sizeof(*g->raw));
	if (!g->pending || !g->log || !g->raw)
		return -ENOMEM;
	g->raw->guest = g;
	g->raw->state = FG_OPEN;
	g->raw->peer_cid = FG_HOST_CID;
	g->raw->buf_alloc = FG_BUF_ALLOC;
	g->raw->jobs_tail = &g->raw->jobs;
	/* Begin anywhere, as Linux does: a request from the port of a connection that the host still
	 * remembers from an earlier life of this CID is not answered. */
	if (getrandom(&random, sizeof(random), 0) != sizeof(random))
		return -EIO;
	g->next_port = FG_FIRST_PORT + random % (1U << 30);
	r = fg_device_new(cid, rx_num, tx_num, &g->dev);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(g);
	return 0;
}

#endif
