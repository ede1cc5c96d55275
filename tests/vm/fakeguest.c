/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fakeguest: guests without virtual machines. Each one is a /dev/vhost-vsock device that this
 * program drives itself, so to the host it is a VM with its own CID: polite or hostile, any packet,
 * any descriptor, in a test VM that needs vhost_vsock.ko and no KVM.
 *
 *   fakeguest [-c COMMAND]... [-s]
 *
 * runs the commands given by -c (a failing one ends it with status 1), then those on standard
 * input, one a line, until `quit` or end of file; with -s it serves its bridges until a signal.
 * Every command is answered by one line of JSON: {"ok":true,...} or {"ok":false,"error":"..."}.
 * Times are milliseconds; every command that waits takes timeout= (default 10000). A command is
 * words: positional ones first, then key=value. CONN is the number that connect returned.
 *
 * Guests
 *   guest CID [rx=128] [tx=512] [answer=rst|nothing] [clings=1]
 *       Starts a guest. rx, tx: ring sizes, powers of two. answer: what it says to a packet for
 *       no connection, such as a connect() from the host. clings: it never confirms that the host
 *       has closed, so the kernel there keeps the socket for 8 s.
 *   gone CID                 closes the device at once, in mid-flight: the VM has vanished
 *   rxstop CID               stops reading: returns when vhost has not one receive buffer left
 *   rxstep CID N             gives it N buffers more (after rxstop) -> received
 *   rxstart CID              reads again
 *   packets CID [max=N]      headers received since the last time, oldest first -> packets:
 *                            [seq, op, src_port, dst_port, len, flags, buf_alloc, fwd_cnt]
 *   stats CID                packets by op, bytes, what is on its way, what vhost got wrong
 *
 * Connections
 *   connect CID PORT [dst=2] [src=PORT] [buf=262144] [async=1]
 *       -> conn, or error "refused" (reset), "timeout" (then the connection is reset). buf: the
 *       credit that we give. async: returns while it is connecting.
 *   connectmany CID PORT N [...]  N at once -> conns, open, refused, connecting
 *   conn CONN                state, credit, counters -> state, reason, free, peer_buf_alloc,
 *                            peer_fwd_cnt, tx_cnt, sent, queued, readable, received, ...;
 *                            opened, granted: when it was answered and got credit (usec)
 *   wait CONN open|closed|shutdown|sent|credit|data
 *       open: answered; shutdown: the peer sends no more; sent: no job left and vhost has read it
 *       all; credit: the peer takes at least a byte. Error "timeout", or the reason of its end.
 *   recv CONN N              waits for N bytes, or the end -> data (hex), eof, state
 *   shutdown CONN [flags=3]  1: receives no more, 2: sends no more; after what is being sent
 *   close CONN               shutdown 3, waits for the peer's reset, as close() in a guest's kernel
 *   rst CONN                 resets, dropping what is not sent yet
 *   forget CONN              frees its number; resets it if it is alive
 *
 * Sending
 *   send CONN file=PATH | hex=BYTES | pattern=SEED len=N  [off=0] [len=ALL] [chunk=65536] [desc=N]
 *        [async=1]
 *       Within the peer's credit; returns when vhost has read all -> sent. error "timeout" drops
 *       the rest. chunk: payload of a packet; desc: payload that its descriptor has room for.
 *       pattern: see pattern() in tests/lib/fakeguest.py.
 *   rw CONN [len=0] [hdrlen=LEN] [desc=LEN | total=N] [count=1] [fill=120] [async=1] [HEADER]
 *       Raw packets, whatever the credit. hdrlen: header's length; total: size of the buffer with
 *       its header, smaller ones cut it. HEADER overrides a field: op= type= flags= src_cid=
 *       dst_cid= src_port= dst_port= buf_alloc= fwd_cnt=. -> sent, drained (vhost has read it all).
 *   pkt CID [step=0] [...]   the same from no connection; step: added to src_port each time
 *   creditrequest CONN N     N credit requests
 *
 * Bridge
 *   bridge CID PORT PATH [dst=2]
 *       Listens on the unix socket PATH and carries each connection to dst:PORT, from guest CID:
 *       both directions, credit, half-close, reset. Serves while it waits for commands.
 *
 *   quit
 */
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#include "fakeguest-stream.h"

#define MAX_GUESTS	64U
#define MAX_CONNS	(1U << 20)
#define MAX_LINKS	256U
#define MAX_WORDS	32U
#define LINE_MAX_BYTES	(1U << 20)
#define RECV_MAX	(1U << 20)
#define TIMEOUT_DEFAULT 10000U
/* How often vhost is asked whether it threw packets away (fg_tx_sync()). */
#define SYNC_MSEC    20
#define NOBODYS_PORT 0xfffffff0U
/* How long a bridge waits for the host to answer a connection. */
#define LINK_CONNECT_MSEC 10000U
#define PATTERN_PERIOD	  65521U

/* One unix connection and the vsock connection it is carried by. */
struct link {
	struct link *next;
	struct fg_conn *conn;
	int fd;
	uint64_t connect_by; /* now_msec() */
	bool eof;	     /* the unix side sends no more */
	bool hup;	     /* the unix side is gone */
	bool wr_shut;	     /* told the unix side that the host sends no more */
	bool rd_shut;	     /* ... receives no more */
};

struct bridge {
	struct bridge *next;
	struct fg_guest *guest;
	uint64_t dst;
	uint32_t port;
	char *path;
	int fd;
	struct link *links;
	unsigned n_links;
};

struct program {
	struct fg_guest *guests;
	unsigned n_guests;
	struct fg_conn **conns; /* by id */
	size_t n_conns;
	struct bridge *bridges;
	struct pollfd *fds;
	size_t n_fds, max_fds;
	char *line; /* input not yet handled */
	size_t line_len;
	int signals; /* signalfd: SIGTERM and SIGINT end the program */
	bool input_ended, quit, stopped;
};

static uint64_t now_msec(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* ---- answers ------------------------------------------------------------------------------- */

static int _printf_(1, 2) answer(const char *fmt, ...)
{
	va_list ap;

	fputs("{\"ok\":true", stdout);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	fputs("}\n", stdout);
	return 0;
}

static int _printf_(2, 3) answer_error(const char *error, const char *fmt, ...)
{
	va_list ap;

	printf("{\"ok\":false,\"error\":\"%s\"", error);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	fputs("}\n", stdout);
	return -1;
}

#define answer_ok() answer("%s", "")
#define fail(error) answer_error(error, "%s", "")

static int fail_errno(int r)
{
	return fail(strerror(-r));
}

/* ---- lookups ------------------------------------------------------------------------------- */

static struct fg_guest *find_guest(struct program *p, uint64_t cid)
{
	for (struct fg_guest *g = p->guests; g; g = g->next)
		if (g->dev->cid == cid)
			return g;
	return NULL;
}

static struct fg_conn *find_conn(struct program *p, uint64_t id)
{
	return id < p->n_conns ? p->conns[id] : NULL;
}

static int remember_conn(struct program *p, struct fg_conn *c)
{
	if (c->id >= p->n_conns) {
		size_t n = MAX(1024U, c->id * 2);
		struct fg_conn **conns;

		if (c->id >= MAX_CONNS)
			return -ENOSPC;
		conns = realloc(p->conns, n * sizeof(*conns));
		if (!conns)
			return -ENOMEM;
		memset(conns + p->n_conns, 0, (n - p->n_conns) * sizeof(*conns));
		p->conns = conns;
		p->n_conns = n;
	}
	p->conns[c->id] = c;
	return 0;
}

static void forget_conn(struct program *p, struct fg_conn *c)
{
	if (c->id < p->n_conns)
		p->conns[c->id] = NULL;
	fg_conn_free(c);
}

static int new_conn(struct program *p, struct fg_guest *g, uint32_t src, uint64_t dst,
		    uint32_t port, uint32_t buf, struct fg_conn **ret)
{
	struct fg_conn *c;
	int r;

	r = fg_conn_new(g, src, dst, port, buf, &c);
	if (r < 0)
		return r;
	r = remember_conn(p, c);
	if (r < 0) {
		fg_conn_abort(c, "internal");
		fg_conn_free(c);
		return r;
	}
	*ret = c;
	return 0;
}

/* ---- bridge -------------------------------------------------------------------------------- */

static bool unix_hung_up(int fd)
{
	struct pollfd p = { .fd = fd };

	return poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR));
}

static size_t unix_readable(int fd)
{
	int n;

	return ioctl(fd, FIONREAD, &n) < 0 || n < 0 ? 0 : (size_t)n;
}

static void link_shutdown(struct link *l, uint32_t flags)
{
	flags |= l->conn->shutdown;
	if (l->conn->state != FG_OPEN || flags == l->conn->shutdown)
		return;
	l->conn->shutdown = (uint8_t)flags;
	fg_conn_control(l->conn, VIRTIO_VSOCK_OP_SHUTDOWN, flags);
}

/* The unix side ended its stream: a close() ends both directions, a shutdown() one. */
static void link_ended(struct link *l)
{
	l->eof = true;
	l->hup |= unix_hung_up(l->fd);
	link_shutdown(l, l->hup ? FG_SHUTDOWN_BOTH : VIRTIO_VSOCK_SHUTDOWN_SEND);
}

/* From the unix socket straight into the ring, as far as the host's credit goes. */
static void link_upstream(struct link *l)
{
	struct fg_conn *c = l->conn;

	while (!l->eof && c->state == FG_OPEN) {
		size_t max = MIN(fg_conn_credit(c), FG_PAYLOAD_MAX);
		uint8_t *at = max > 0 ? fg_tx_reserve(c->guest->dev, max) : NULL;
		struct fg_pkt pkt = fg_conn_pkt(c, VIRTIO_VSOCK_OP_RW);
		ssize_t n;

		if (!at) {
			/* It may be gone without a byte more to say: no credit is needed for that. */
			if (unix_hung_up(l->fd) && unix_readable(l->fd) == 0)
				link_ended(l);
			return;
		}
		n = recv(l->fd, at, max, MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n <= 0) {
			link_ended(l);
			return;
		}
		pkt.len = (uint32_t)n;
		fg_commit(c->guest, &pkt, (size_t)n, FG_DESC_NATURAL);
		c->tx_cnt += (uint32_t)n;
		c->sent += (uint64_t)n;
	}
}

static void link_downstream(struct link *l)
{
	struct fg_conn *c = l->conn;

	while (fg_conn_readable(c) > 0) {
		ssize_t n = send(l->fd, c->rx + c->rx_start, fg_conn_readable(c),
				 MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n < 0) { /* nobody reads it */
			l->hup = true;
			link_shutdown(l, FG_SHUTDOWN_BOTH);
			n = (ssize_t)fg_conn_readable(c);
		}
		fg_conn_consume(c, (size_t)n);
	}
	if ((c->peer_shutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) && !l->wr_shut) {
		shutdown(l->fd, SHUT_WR);
		l->wr_shut = true;
	}
	if ((c->peer_shutdown & VIRTIO_VSOCK_SHUTDOWN_RCV) && !l->rd_shut) {
		shutdown(l->fd, SHUT_RD);
		l->rd_shut = true;
	}
}

/* Returns false when the link has ended. */
static bool link_pump(struct link *l)
{
	if (l->conn->state == FG_CONNECTING && now_msec() > l->connect_by)
		fg_conn_abort(l->conn, "timeout");
	link_upstream(l);
	if (l->eof && !l->hup && unix_hung_up(l->fd)) {
		l->hup = true;
		link_shutdown(l, FG_SHUTDOWN_BOTH);
	}
	link_downstream(l);
	return l->conn->state != FG_CLOSED || (fg_conn_readable(l->conn) > 0 && !l->hup);
}

static struct link *link_free(struct program *p, struct link *l)
{
	safe_close(l->fd);
	fg_conn_abort(l->conn, "bridge");
	forget_conn(p, l->conn);
	free(l);
	return NULL;
}

static void bridge_accept(struct program *p, struct bridge *b)
{
	while (b->n_links < MAX_LINKS) {
		struct link *l;
		int fd = accept4(b->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd < 0)
			return;
		l = calloc(1, sizeof(*l));
		if (!l || new_conn(p, b->guest, 0, b->dst, b->port, FG_BUF_ALLOC, &l->conn) < 0) {
			free(l);
			safe_close(fd);
			return;
		}
		l->fd = fd;
		l->connect_by = now_msec() + LINK_CONNECT_MSEC;
		l->next = b->links;
		b->links = l;
		b->n_links++;
	}
}

static void bridge_pump(struct program *p, struct bridge *b)
{
	struct link **at = &b->links;

	bridge_accept(p, b);
	while (*at) {
		struct link *l = *at;

		if (link_pump(l)) {
			at = &l->next;
			continue;
		}
		*at = l->next;
		b->n_links--;
		link_free(p, l);
	}
}

static struct bridge *bridge_free(struct program *p, struct bridge *b)
{
	while (b->links) {
		struct link *l = b->links;

		b->links = l->next;
		link_free(p, l);
	}
	safe_close(b->fd);
	unlink(b->path);
	free(b->path);
	free(b);
	return NULL;
}

/* ---- the loop ------------------------------------------------------------------------------ */

/* Returns whether there may be more to do at once. */
static bool pump_all(struct program *p)
{
	bool again = false;

	for (struct fg_guest *g = p->guests; g; g = g->next)
		again |= fg_guest_pump(g);
	for (struct bridge *b = p->bridges; b; b = b->next) {
		bridge_pump(p, b);
		again |= fg_guest_pump(b->guest);
	}
	return again;
}

static void poll_add(struct program *p, int fd, short events)
{
	if (p->n_fds == p->max_fds) {
		size_t n = MAX((size_t)64, p->max_fds * 2);
		struct pollfd *fds = realloc(p->fds, n * sizeof(*fds));

		if (!fds)
			return; /* polled again within SYNC_MSEC at the latest */
		p->fds = fds;
		p->max_fds = n;
	}
	p->fds[p->n_fds++] = (struct pollfd){ .fd = fd, .events = events };
}

static void poll_links(struct program *p, const struct bridge *b)
{
	for (struct link *l = b->links; l; l = l->next) {
		bool out = fg_conn_readable(l->conn) > 0;
		bool in = !l->eof && l->conn->state == FG_OPEN && fg_conn_credit(l->conn) > 0;

		/* Nothing to ask for and unread bytes: a hangup would only spin until there is
		 * credit, and credit wakes us by the guest's eventfd. */
		if (l->hup || (!in && !out && !l->eof && unix_readable(l->fd) > 0))
			continue;
		poll_add(p, l->fd, (short)((in ? POLLIN : 0) | (out ? POLLOUT : 0)));
	}
}

static void drain_eventfd(int fd)
{
	uint64_t n;

	while (read(fd, &n, sizeof(n)) == sizeof(n))
		;
}

/* Sleeps until something may have changed, at most max_msec (-1: no limit). with_input: also
 * standard input, which is p->fds[0] then. */
static void wait_events(struct program *p, int max_msec, bool with_input)
{
	bool on_the_way = false;
	int r;

	p->n_fds = 0;
	if (with_input)
		poll_add(p, STDIN_FILENO, POLLIN);
	for (struct fg_guest *g = p->guests; g; g = g->next) {
		poll_add(p, g->dev->call, POLLIN);
		on_the_way |= fg_tx_outstanding(g->dev) > 0;
	}
	for (struct bridge *b = p->bridges; b; b = b->next) {
		if (b->n_links < MAX_LINKS)
			poll_add(p, b->fd, POLLIN);
		poll_links(p, b);
		on_the_way |= b->n_links > 0;
	}
	if (on_the_way && (max_msec < 0 || max_msec > SYNC_MSEC))
		max_msec = SYNC_MSEC;
	poll_add(p, p->signals, POLLIN);
	r = poll(p->fds, p->n_fds, max_msec);
	if (r > 0 && p->fds[p->n_fds - 1].revents)
		p->stopped = true;
	for (struct fg_guest *g = p->guests; g; g = g->next) {
		if (r == 0)
			fg_tx_sync(g->dev);
		drain_eventfd(g->dev->call);
	}
}

typedef bool (*condition_t)(const void *arg);

/* Lets all guests run until the condition holds. Returns false after timeout_msec. */
static bool wait_until(struct program *p, condition_t done, const void *arg, uint64_t timeout_msec)
{
	uint64_t now = now_msec(), deadline = now + timeout_msec;

	for (;;) {
		bool again = pump_all(p);

		if (done(arg))
			return true;
		now = now_msec();
		if (now >= deadline || p->stopped)
			return false;
		wait_events(p, again ? 0 : (int)MIN(deadline - now, (uint64_t)1000), false);
	}
}

/* ---- the words of a command ------------------------------------------------------------------ */

struct words {
	char *word[MAX_WORDS];
	unsigned n;
	unsigned n_positional; /* word[0] is the command */
};

static bool parse_u64(const char *s, uint64_t *ret)
{
	char *end;

	if (*s < '0' || *s > '9')
		return false;
	errno = 0;
	*ret = strtoull(s, &end, 0);
	return errno == 0 && *end == 0;
}

static const char *word_value(const struct words *w, const char *key)
{
	size_t len = strlen(key);

	for (unsigned i = w->n_positional; i < w->n; i++)
		if (strncmp(w->word[i], key, len) == 0 && w->word[i][len] == '=')
			return w->word[i] + len + 1;
	return NULL;
}

/* Values were checked by words_valid(): what is no number here was meant as text. */
static uint64_t word_number(const struct words *w, const char *key, uint64_t otherwise)
{
	const char *s = word_value(w, key);
	uint64_t n;

	return s && parse_u64(s, &n) ? n : otherwise;
}

static uint64_t word_at(const struct words *w, unsigned i)
{
	uint64_t n;

	return i < w->n_positional && parse_u64(w->word[i], &n) ? n : UINT64_MAX;
}

static uint64_t word_timeout(const struct words *w)
{
	return word_number(w, "timeout", TIMEOUT_DEFAULT);
}

/* keys: "name name=" separated by blanks; a trailing '=' says that the value may be any text. */
static bool key_known(const char *keys, const char *word, size_t len, bool *ret_text)
{
	const char *k = keys;

	while (*k) {
		size_t n = strcspn(k, " ");
		bool text = n > 0 && k[n - 1] == '=';

		if (n - text == len && strncmp(k, word, len) == 0) {
			*ret_text = text;
			return true;
		}
		k += n + strspn(k + n, " ");
	}
	return false;
}

static bool words_valid(struct words *w, const char *keys)
{
	uint64_t n;

	w->n_positional = 0;
	while (w->n_positional < w->n && !strchr(w->word[w->n_positional], '='))
		w->n_positional++;
	for (unsigned i = w->n_positional; i < w->n; i++) {
		size_t len = strcspn(w->word[i], "=");
		bool text = false;

		if (w->word[i][len] != '=' ||
		    !(key_known(keys, w->word[i], len, &text) ||
		      key_known("timeout async", w->word[i], len, &text)) ||
		    (!text && !parse_u64(w->word[i] + len + 1, &n)))
			return false;
	}
	return true;
}

/* ---- commands: guests ------------------------------------------------------------------------ */

static int cmd_guest(struct program *p, const struct words *w)
{
	uint64_t cid = word_at(w, 1);
	const char *how = word_value(w, "answer") ?: "rst";
	struct fg_guest *g;
	int r;

	if (p->n_guests == MAX_GUESTS)
		return fail("too many guests");
	if (!streq(how, "rst") && !streq(how, "nothing"))
		return fail("answer is rst or nothing");
	r = fg_guest_new(cid, (unsigned)word_number(w, "rx", 128),
			 (unsigned)word_number(w, "tx", 512), &g);
	if (r < 0)
		return fail_errno(r);
	g->answer = streq(how, "rst") ? FG_ANSWER_RST : FG_ANSWER_NOTHING;
	g->clings = word_number(w, "clings", 0) != 0;
	g->next = p->guests;
	p->guests = g;
	p->n_guests++;
	return answer(",\"cid\":%" PRIu64, cid);
}

static void remove_bridges(struct program *p, const struct fg_guest *g)
{
	struct bridge **at = &p->bridges;

	while (*at) {
		struct bridge *b = *at;

		if (b->guest != g) {
			at = &b->next;
			continue;
		}
		*at = b->next;
		bridge_free(p, b);
	}
}

static void remove_guest(struct program *p, struct fg_guest *g)
{
	struct fg_guest **at = &p->guests;

	/* The device first: the host must see a VM that vanished, not connections that ended. */
	g->dev->fd = safe_close(g->dev->fd);
	remove_bridges(p, g);
	for (size_t i = 0; i < p->n_conns; i++)
		if (p->conns[i] && p->conns[i]->guest == g)
			forget_conn(p, p->conns[i]);
	while (*at != g)
		at = &(*at)->next;
	*at = g->next;
	p->n_guests--;
	fg_guest_free(g);
}

static int cmd_gone(struct program *p, const struct words *w)
{
	struct fg_guest *g = find_guest(p, word_at(w, 1));

	if (!g)
		return fail("no such guest");
	remove_guest(p, g);
	return answer_ok();
}

static bool rx_exhausted(const void *arg)
{
	const struct fg_guest *g = arg;

	return fg_rx_posted(g->dev) == 0;
}

/* Buffers cannot be taken back from vhost. So we make it use them up: every request to a port
 * that nobody listens on comes back as a reset. */
static int cmd_rxstop(struct program *p, const struct words *w)
{
	struct fg_guest *g = find_guest(p, word_at(w, 1));
	struct fg_pkt pkt;

	if (!g)
		return fail("no such guest");
	g->dev->rx_running = false;
	pump_all(p);
	pkt = fg_conn_pkt(g->raw, VIRTIO_VSOCK_OP_REQUEST);
	pkt.dst_port = NOBODYS_PORT;
	for (unsigned n = fg_rx_posted(g->dev); n > 0; n--) {
		pkt.src_port = n;
		fg_control(g, &pkt);
	}
	if (!wait_until(p, rx_exhausted, g, word_timeout(w)))
		return fail("timeout");
	return answer_ok();
}

static int cmd_rxstep(struct program *p, const struct words *w)
{
	struct fg_guest *g = find_guest(p, word_at(w, 1));
	uint64_t n = word_at(w, 2), before;
	bool all;

	if (!g)
		return fail("no such guest");
	if (g->dev->rx_running || n > g->dev->rx.vring.num)
		return fail("only after rxstop, at most as many as the ring has");
	before = g->log_seq;
	fg_rx_fill(g->dev, (unsigned)n);
	all = wait_until(p, rx_exhausted, g, word_timeout(w));
	return answer(",\"received\":%" PRIu64 ",\"all\":%s", g->log_seq - before,
		      all ? "true" : "false");
}

static int cmd_rxstart(struct program *p, const struct words *w)
{
	struct fg_guest *g = find_guest(p, word_at(w, 1));

	if (!g)
		return fail("no such guest");
	g->dev->rx_running = true;
	fg_rx_fill(g->dev, g->dev->rx.vring.num);
	pump_all(p);
	return answer_ok();
}

static int cmd_packets(struct program *p, const struct words *w)
{
	struct fg_guest *g = find_guest(p, word_at(w, 1));
	uint64_t max = word_number(w, "max", FG_LOG_SIZE), lost = 0;
	const char *sep = "";

	if (!g)
		return fail("no such guest");
	pump_all(p);
	if (g->log_seq - g->log_read > FG_LOG_SIZE) {
		lost = g->log_seq - FG_LOG_SIZE - g->log_read;
		g->log_read += lost;
	}
	printf("{\"ok\":true,\"lost\":%" PRIu64 ",\"packets\":[", lost);
	for (; g->log_read < g->log_seq && max-- > 0; g->log_read++) {
		const struct fg_pkt *q = &g->log[g->log_read % FG_LOG_SIZE];

		printf("%s[%" PRIu64 ",%u,%u,%u,%u,%u,%u,%u]", sep, g->log_read, q->op, q->src_port,
		       q->dst_port, q->len, q->flags, q->buf_alloc, q->fwd_cnt);
		sep = ",";
	}
	puts("]}");
	return 0;
}

static void print_ops(const char *name, const uint64_t n[static 8])
{
	static const char *const op[] = {
		"other",    "request", "response",	"rst",
		"shutdown", "rw",      "credit_update", "credit_request"
	};

	printf(",\"%s\":{", name);
	for (unsigned i = 0; i < ARRAY_SIZE(op); i++)
		printf("%s\"%s\":%" PRIu64, i > 0 ? "," : "", op[i], n[i]);
	putchar('}');
}

static int cmd_stats(struct program *p, const struct words *w)
{
	struct fg_guest *g = find_guest(p, word_at(w, 1));

	if (!g)
		return fail("no such guest");
	pump_all(p);
	fg_tx_sync(g->dev);
	printf("{\"ok\":true,\"cid\":%" PRIu64, g->dev->cid);
	print_ops("rx", g->n_rx);
	print_ops("tx", g->n_tx);
	printf(",\"rx_bytes\":%" PRIu64 ",\"tx_bytes\":%" PRIu64 ",\"orphans\":%" PRIu64
	       ",\"overrun\":%" PRIu64 ",\"malformed\":%" PRIu64 ",\"dropped\":%" PRIu64
	       ",\"tx_outstanding\":%u,\"tx_pending\":%u,\"rx_posted\":%u}\n",
	       g->rx_bytes, g->tx_bytes, g->n_orphans, g->n_overrun, g->dev->n_malformed,
	       g->n_pending_dropped, fg_tx_outstanding(g->dev), g->pending_head - g->pending_tail,
	       fg_rx_posted(g->dev));
	return 0;
}

/* ---- commands: connections ------------------------------------------------------------------- */

static bool conn_answered(const void *arg)
{
	const struct fg_conn *c = arg;

	return c->state != FG_CONNECTING;
}

static int connect_from(struct program *p, const struct words *w, struct fg_conn **ret)
{
	struct fg_guest *g = find_guest(p, word_at(w, 1));
	uint64_t port = word_at(w, 2);

	if (!g || port > UINT32_MAX)
		return -EINVAL;
	return new_conn(p, g, (uint32_t)word_number(w, "src", 0),
			word_number(w, "dst", FG_HOST_CID), (uint32_t)port,
			(uint32_t)word_number(w, "buf", FG_BUF_ALLOC), ret);
}

static int cmd_connect(struct program *p, const struct words *w)
{
	struct fg_conn *c;
	int r;

	r = connect_from(p, w, &c);
	if (r < 0)
		return fail_errno(r);
	if (word_number(w, "async", 0) == 0) {
		const char *error = NULL;

		if (!wait_until(p, conn_answered, c, word_timeout(w)))
			error = "timeout";
		else if (c->state == FG_CLOSED)
			error = c->reason;
		if (error) {
			fg_conn_abort(c, "timeout");
			forget_conn(p, c);
			return fail(error);
		}
	}
	return answer(",\"conn\":%u,\"src_port\":%u,\"buf_alloc\":%u", c->id, c->port,
		      c->peer_buf_alloc);
}

struct many {
	struct fg_conn **conns;
	uint64_t n;
};

static uint64_t many_in_state(const struct many *m, enum fg_state state)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < m->n; i++)
		n += m->conns[i]->state == state;
	return n;
}

static bool many_answered(const void *arg)
{
	return many_in_state(arg, FG_CONNECTING) == 0;
}

static int cmd_connectmany(struct program *p, const struct words *w)
{
	struct many m = { 0 };
	_cleanup_free_ struct fg_conn **conns = NULL;
	uint64_t n = word_at(w, 3);

	if (n == 0 || n > MAX_CONNS)
		return fail("how many?");
	conns = m.conns = calloc(n, sizeof(*m.conns));
	if (!m.conns)
		return fail_errno(-ENOMEM);
	for (; m.n < n; m.n++) {
		int r = connect_from(p, w, &m.conns[m.n]);

		if (r < 0)
			return fail_errno(r);
	}
	if (word_number(w, "async", 0) == 0)
		wait_until(p, many_answered, &m, word_timeout(w));
	printf("{\"ok\":true,\"open\":%" PRIu64 ",\"refused\":%" PRIu64 ",\"connecting\":%" PRIu64
	       ",\"conns\":[",
	       many_in_state(&m, FG_OPEN), many_in_state(&m, FG_CLOSED),
	       many_in_state(&m, FG_CONNECTING));
	for (uint64_t i = 0; i < n; i++)
		printf("%s%u", i > 0 ? "," : "", m.conns[i]->id);
	puts("]}");
	return 0;
}

static const char *state_name(const struct fg_conn *c)
{
	static const char *const name[] = { "connecting", "open", "closed" };

	return name[c->state];
}

static uint64_t conn_queued(const struct fg_conn *c)
{
	uint64_t n = 0;

	for (const struct fg_job *j = c->jobs; j; j = j->next)
		n += j->total - j->done;
	return n;
}

static int cmd_conn(struct program *p, const struct words *w)
{
	struct fg_conn *c = find_conn(p, word_at(w, 1));

	if (!c)
		return fail("no such connection");
	pump_all(p);
	return answer(",\"state\":\"%s\",\"reason\":\"%s\",\"cid\":%" PRIu64
		      ",\"src_port\":%u,\"free\":%u,\"peer_buf_alloc\":%u,\"peer_fwd_cnt\":%u"
		      ",\"tx_cnt\":%u,\"sent\":%" PRIu64 ",\"queued\":%" PRIu64
		      ",\"shutdown\":%u,\"peer_shutdown\":%u,\"readable\":%zu,\"received\":%" PRIu64
		      ",\"buf_alloc\":%u,\"fwd_cnt\":%u,\"opened\":%" PRIu64
		      ",\"granted\":%" PRIu64,
		      state_name(c), c->reason ?: "", c->guest->dev->cid, c->port,
		      fg_conn_credit(c), c->peer_buf_alloc, c->peer_fwd_cnt, c->tx_cnt, c->sent,
		      conn_queued(c), c->shutdown, c->peer_shutdown, fg_conn_readable(c),
		      c->received, c->buf_alloc, c->fwd_cnt, c->opened, c->granted);
}

static bool conn_closed(const void *arg)
{
	const struct fg_conn *c = arg;

	return c->state == FG_CLOSED;
}

static bool conn_peer_ended(const void *arg)
{
	const struct fg_conn *c = arg;

	return conn_closed(c) || (c->peer_shutdown & VIRTIO_VSOCK_SHUTDOWN_SEND);
}

static bool conn_sent(const void *arg)
{
	const struct fg_conn *c = arg;

	return !c->jobs && c->guest->pending_head == c->guest->pending_tail &&
	       fg_tx_outstanding(c->guest->dev) == 0;
}

static bool conn_has_credit(const void *arg)
{
	const struct fg_conn *c = arg;

	return conn_closed(c) || (c->state == FG_OPEN && fg_conn_credit(c) > 0);
}

static bool conn_has_data(const void *arg)
{
	return conn_peer_ended(arg) || fg_conn_readable(arg) > 0;
}

static int cmd_wait(struct program *p, const struct words *w)
{
	static const struct {
		const char *name;
		condition_t done;
		bool end_is_fine;
	} what[] = {
		{ "open", conn_answered, false },      { "closed", conn_closed, true },
		{ "shutdown", conn_peer_ended, true }, { "sent", conn_sent, true },
		{ "credit", conn_has_credit, false },  { "data", conn_has_data, true },
	};
	struct fg_conn *c = find_conn(p, word_at(w, 1));

	if (!c)
		return fail("no such connection");
	for (size_t i = 0; i < ARRAY_SIZE(what); i++) {
		if (w->n_positional < 3 || !streq(w->word[2], what[i].name))
			continue;
		if (!wait_until(p, what[i].done, c, word_timeout(w)))
			return fail("timeout");
		if (c->state == FG_CLOSED && !what[i].end_is_fine)
			return fail(c->reason);
		return answer(",\"state\":\"%s\",\"reason\":\"%s\"", state_name(c),
			      c->reason ?: "");
	}
	return fail("wait for what?");
}

struct wanted {
	const struct fg_conn *conn;
	uint64_t n;
};

static bool conn_has_wanted(const void *arg)
{
	const struct wanted *wanted = arg;

	return conn_peer_ended(wanted->conn) || fg_conn_readable(wanted->conn) >= wanted->n;
}

static int cmd_recv(struct program *p, const struct words *w)
{
	struct fg_conn *c = find_conn(p, word_at(w, 1));
	struct wanted wanted = { .conn = c, .n = word_at(w, 2) };
	uint64_t n;
	bool eof;

	if (!c)
		return fail("no such connection");
	if (wanted.n > RECV_MAX)
		return fail("how many?");
	wait_until(p, conn_has_wanted, &wanted, word_timeout(w));
	n = MIN((uint64_t)fg_conn_readable(c), wanted.n);
	eof = conn_peer_ended(c) && fg_conn_readable(c) == n;
	fputs("{\"ok\":true,\"data\":\"", stdout);
	for (uint64_t i = 0; i < n; i++)
		printf("%02x", c->rx[c->rx_start + i]);
	fg_conn_consume(c, n);
	pump_all(p);
	printf("\",\"eof\":%s,\"state\":\"%s\",\"reason\":\"%s\"}\n", eof ? "true" : "false",
	       state_name(c), c->reason ?: "");
	return 0;
}

static int cmd_rst(struct program *p, const struct words *w)
{
	struct fg_conn *c = find_conn(p, word_at(w, 1));

	if (!c)
		return fail("no such connection");
	fg_conn_abort(c, "reset");
	if (!wait_until(p, conn_sent, c, word_timeout(w)))
		return fail("timeout");
	return answer_ok();
}

static int cmd_forget(struct program *p, const struct words *w)
{
	struct fg_conn *c = find_conn(p, word_at(w, 1));

	if (!c)
		return fail("no such connection");
	fg_conn_abort(c, "forgotten");
	forget_conn(p, c);
	pump_all(p);
	return answer_ok();
}

/* ---- commands: sending ------------------------------------------------------------------------- */

static int bytes_of_file(const char *path, struct fg_bytes *ret)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	void *base;

	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	if (st.st_size == 0)
		return -ENODATA;
	base = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (base == MAP_FAILED)
		return -errno;
	*ret = (struct fg_bytes){ .base = base, .period = (size_t)st.st_size, .mapped = true };
	return 0;
}

static int bytes_of_hex(const char *hex, struct fg_bytes *ret)
{
	size_t n = strlen(hex) / 2;
	_cleanup_free_ uint8_t *base = NULL;

	if (n == 0 || strlen(hex) % 2 != 0)
		return -EINVAL;
	base = malloc(n);
	if (!base)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		char two[3] = { hex[2 * i], hex[2 * i + 1], 0 }, *end;

		base[i] = (uint8_t)strtoul(two, &end, 16);
		if (*end || two[0] == '-' || two[0] == '+')
			return -EINVAL;
	}
	*ret = (struct fg_bytes){ .base = TAKE_PTR(base), .period = n };
	return 0;
}

/* xorshift32 bytes with a prime period: no block of 4 KiB is like another one. */
static int bytes_of_pattern(uint64_t seed, struct fg_bytes *ret)
{
	uint32_t x = (uint32_t)seed * 2654435761U + 1;
	uint8_t *base = malloc(PATTERN_PERIOD);

	if (!base)
		return -ENOMEM;
	x = x ?: 1;
	for (size_t i = 0; i < PATTERN_PERIOD; i++) {
		x ^= x << 13;
		x ^= x >> 17;
		x ^= x << 5;
		base[i] = (uint8_t)(x >> 24);
	}
	*ret = (struct fg_bytes){ .base = base, .period = PATTERN_PERIOD };
	return 0;
}

static int bytes_of(const struct words *w, struct fg_bytes *ret)
{
	if (word_value(w, "file"))
		return bytes_of_file(word_value(w, "file"), ret);
	if (word_value(w, "hex"))
		return bytes_of_hex(word_value(w, "hex"), ret);
	if (word_value(w, "pattern"))
		return bytes_of_pattern(word_number(w, "pattern", 0), ret);
	return -EINVAL;
}

static size_t word_total(const struct words *w)
{
	if (word_value(w, "total"))
		return word_number(w, "total", 0);
	if (word_value(w, "desc"))
		return FG_HDR_SIZE + word_number(w, "desc", 0);
	return FG_DESC_NATURAL;
}

static struct fg_job *job_new(const struct words *w)
{
	struct fg_job *j = calloc(1, sizeof(*j));

	if (j)
		j->desc = word_total(w);
	return j;
}

static int send_job(const struct words *w, struct fg_job **ret)
{
	_cleanup_free_ struct fg_job *j = job_new(w);
	uint64_t off = word_number(w, "off", 0), all;
	int r;

	if (!j)
		return -ENOMEM;
	j->chunk = word_number(w, "chunk", FG_PAYLOAD_MAX);
	if (j->chunk == 0 || j->chunk > FG_PAYLOAD_MAX)
		return -EINVAL;
	if (j->desc != FG_DESC_NATURAL && j->desc < FG_HDR_SIZE + j->chunk)
		return -EINVAL;
	r = bytes_of(w, &j->bytes);
	if (r < 0)
		return r;
	/* A pattern goes on for ever, anything else ends. The job's position starts at off. */
	all = word_value(w, "pattern") ? UINT64_MAX : j->bytes.period;
	j->done = off;
	j->total = off + word_number(w, "len", all - off);
	if (off > all || j->total < off || j->total > all || j->total == UINT64_MAX) {
		fg_bytes_release(&j->bytes);
		return -ERANGE;
	}
	*ret = TAKE_PTR(j);
	return 0;
}

static bool conn_sent_or_closed(const void *arg)
{
	return conn_closed(arg) || conn_sent(arg);
}

static int cmd_send(struct program *p, const struct words *w)
{
	struct fg_conn *c = find_conn(p, word_at(w, 1));
	struct fg_job *j;
	uint64_t before;
	bool in_time;
	int r;

	if (!c)
		return fail("no such connection");
	if (c->state == FG_CLOSED)
		return answer_error(c->reason, ",\"sent\":0");
	r = send_job(w, &j);
	if (r < 0)
		return fail_errno(r);
	before = c->sent;
	fg_job_add(c, j);
	if (word_number(w, "async", 0) != 0) {
		pump_all(p);
		return answer_ok();
	}
	in_time = wait_until(p, conn_sent_or_closed, c, word_timeout(w));
	if (c->state == FG_CLOSED)
		return answer_error(c->reason, ",\"sent\":%" PRIu64, c->sent - before);
	if (!in_time) {
		fg_jobs_drop(c);
		return answer_error("timeout", ",\"sent\":%" PRIu64, c->sent - before);
	}
	return answer(",\"sent\":%" PRIu64, c->sent - before);
}

static int raw_job(const struct fg_conn *c, const struct words *w, struct fg_job **ret)
{
	uint64_t len = word_number(w, "len", 0);
	struct fg_job *j;

	if (len > FG_PAYLOAD_MAX + FG_HDR_SIZE)
		return -EINVAL;
	j = job_new(w);
	if (!j)
		return -ENOMEM;
	j->raw = true;
	j->len = len;
	j->total = word_number(w, "count", 1);
	j->fill = (uint8_t)word_number(w, "fill", 'x');
	j->port_step = (uint32_t)word_number(w, "step", 0);
	j->keep_credit_info = word_value(w, "buf_alloc") || word_value(w, "fwd_cnt");
	j->pkt = fg_conn_pkt(c, (uint16_t)word_number(w, "op", VIRTIO_VSOCK_OP_RW));
	j->pkt.len = (uint32_t)word_number(w, "hdrlen", len);
	j->pkt.src_cid = word_number(w, "src_cid", j->pkt.src_cid);
	j->pkt.dst_cid = word_number(w, "dst_cid", j->pkt.dst_cid);
	j->pkt.src_port = (uint32_t)word_number(w, "src_port", j->pkt.src_port);
	j->pkt.dst_port = (uint32_t)word_number(w, "dst_port", j->pkt.dst_port);
	j->pkt.type = (uint16_t)word_number(w, "type", j->pkt.type);
	j->pkt.flags = (uint32_t)word_number(w, "flags", 0);
	j->pkt.buf_alloc = (uint32_t)word_number(w, "buf_alloc", j->pkt.buf_alloc);
	j->pkt.fwd_cnt = (uint32_t)word_number(w, "fwd_cnt", j->pkt.fwd_cnt);
	*ret = j;
	return 0;
}

static uint64_t last_job_done(const struct fg_conn *c)
{
	const struct fg_job *j = c->jobs;

	while (j->next)
		j = j->next;
	return j->done;
}

static int run_raw(struct program *p, const struct words *w, struct fg_conn *c, struct fg_job *j)
{
	uint64_t want = j->total;
	bool drained;

	fg_job_add(c, j);
	if (word_number(w, "async", 0) != 0) {
		pump_all(p);
		return answer_ok();
	}
	drained = wait_until(p, conn_sent, c, word_timeout(w));
	if (!drained && c->jobs) {
		uint64_t sent = last_job_done(c);

		fg_jobs_drop(c);
		return answer_error("timeout", ",\"sent\":%" PRIu64, sent);
	}
	return answer(",\"sent\":%" PRIu64 ",\"drained\":%s", want, drained ? "true" : "false");
}

static int cmd_rw(struct program *p, const struct words *w)
{
	struct fg_conn *c = find_conn(p, word_at(w, 1));
	struct fg_job *j;
	int r;

	if (!c)
		return fail("no such connection");
	r = raw_job(c, w, &j);
	if (r < 0)
		return fail_errno(r);
	return run_raw(p, w, c, j);
}

static int cmd_pkt(struct program *p, const struct words *w)
{
	struct fg_guest *g = find_guest(p, word_at(w, 1));
	struct fg_job *j;
	int r;

	if (!g)
		return fail("no such guest");
	r = raw_job(g->raw, w, &j);
	if (r < 0)
		return fail_errno(r);
	return run_raw(p, w, g->raw, j);
}

static int control_job(const struct fg_conn *c, const struct words *w, uint16_t op, uint64_t count,
		       uint32_t flags, struct fg_job **ret)
{
	int r;

	r = raw_job(c, w, ret);
	if (r < 0)
		return r;
	(*ret)->pkt.op = op;
	(*ret)->pkt.flags = flags;
	(*ret)->total = count;
	return 0;
}

static int cmd_creditrequest(struct program *p, const struct words *w)
{
	struct fg_conn *c = find_conn(p, word_at(w, 1));
	uint64_t n = word_at(w, 2);
	struct fg_job *j;
	int r;

	if (!c || n == UINT64_MAX)
		return fail("no such connection, or how many?");
	r = control_job(c, w, VIRTIO_VSOCK_OP_CREDIT_REQUEST, n, 0, &j);
	if (r < 0)
		return fail_errno(r);
	return run_raw(p, w, c, j);
}

static int cmd_shutdown(struct program *p, const struct words *w)
{
	struct fg_conn *c = find_conn(p, word_at(w, 1));
	uint32_t flags = (uint32_t)word_number(w, "flags", FG_SHUTDOWN_BOTH);
	struct fg_job *j;
	int r;

	if (!c)
		return fail("no such connection");
	r = control_job(c, w, VIRTIO_VSOCK_OP_SHUTDOWN, 1, flags, &j);
	if (r < 0)
		return fail_errno(r);
	return run_raw(p, w, c, j);
}

static int cmd_close(struct program *p, const struct words *w)
{
	struct fg_conn *c = find_conn(p, word_at(w, 1));
	struct fg_job *j;
	int r;

	if (!c)
		return fail("no such connection");
	if (c->state == FG_OPEN && c->shutdown != FG_SHUTDOWN_BOTH) {
		r = control_job(c, w, VIRTIO_VSOCK_OP_SHUTDOWN, 1, FG_SHUTDOWN_BOTH, &j);
		if (r < 0)
			return fail_errno(r);
		fg_job_add(c, j);
	}
	if (!wait_until(p, conn_closed, c, word_timeout(w)))
		return fail("timeout");
	return answer(",\"reason\":\"%s\"", c->reason);
}

/* ---- commands: bridge ------------------------------------------------------------------------ */

static int bridge_listen(const char *path)
{
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	if (fd < 0)
		return -errno;
	if (strlen(path) >= sizeof(a.sun_path))
		return -ENAMETOOLONG;
	strcpy(a.sun_path, path);
	unlink(path);
	if (bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, 128) < 0)
		return -errno;
	return TAKE_FD(fd);
}

static int cmd_bridge(struct program *p, const struct words *w)
{
	struct fg_guest *g = find_guest(p, word_at(w, 1));
	uint64_t port = word_at(w, 2);
	struct bridge *b;

	if (!g || port > UINT32_MAX || w->n_positional < 4)
		return fail("bridge CID PORT PATH");
	b = calloc(1, sizeof(*b));
	if (!b)
		return fail_errno(-ENOMEM);
	b->path = strdup(w->word[3]);
	b->fd = b->path ? bridge_listen(b->path) : -ENOMEM;
	if (b->fd < 0) {
		int r = b->fd;

		free(b->path);
		free(b);
		return fail_errno(r);
	}
	b->guest = g;
	b->port = (uint32_t)port;
	b->dst = word_number(w, "dst", FG_HOST_CID);
	b->next = p->bridges;
	p->bridges = b;
	return answer_ok();
}

static int cmd_quit(struct program *p, const struct words *w _unused_)
{
	p->quit = true;
	return answer_ok();
}

/* ---- reading commands -------------------------------------------------------------------------- */

#define HEADER_KEYS "op type flags src_cid dst_cid src_port dst_port buf_alloc fwd_cnt"
#define RAW_KEYS    "len hdrlen desc total count fill step " HEADER_KEYS

static const struct command {
	const char *name;
	const char *keys;
	int (*run)(struct program *p, const struct words *w);
} commands[] = {
	{ "guest", "rx tx answer= clings", cmd_guest },
	{ "gone", "", cmd_gone },
	{ "rxstop", "", cmd_rxstop },
	{ "rxstep", "", cmd_rxstep },
	{ "rxstart", "", cmd_rxstart },
	{ "packets", "max", cmd_packets },
	{ "stats", "", cmd_stats },
	{ "connect", "src dst buf", cmd_connect },
	{ "connectmany", "dst buf", cmd_connectmany },
	{ "conn", "", cmd_conn },
	{ "wait", "", cmd_wait },
	{ "recv", "", cmd_recv },
	{ "shutdown", "flags", cmd_shutdown },
	{ "close", "", cmd_close },
	{ "rst", "", cmd_rst },
	{ "forget", "", cmd_forget },
	{ "send", "file= hex= pattern off len chunk desc", cmd_send },
	{ "rw", RAW_KEYS, cmd_rw },
	{ "pkt", RAW_KEYS, cmd_pkt },
	{ "creditrequest", "", cmd_creditrequest },
	{ "bridge", "dst", cmd_bridge },
	{ "quit", "", cmd_quit },
};

/* Returns 0, or -1 when the answer was an error. */
static int run_line(struct program *p, char *line)
{
	struct words w = { 0 };
	char *save = NULL;
	int r = 0;

	for (char *s = strtok_r(line, " \t\r\n", &save); s; s = strtok_r(NULL, " \t\r\n", &save)) {
		if (w.n == MAX_WORDS) {
			r = fail("too many words");
			fflush(stdout);
			return r;
		}
		w.word[w.n++] = s;
	}
	if (w.n == 0)
		return 0;
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
		if (!streq(w.word[0], commands[i].name))
			continue;
		r = words_valid(&w, commands[i].keys) ? commands[i].run(p, &w)
						      : fail("bad word or key");
		fflush(stdout);
		return r;
	}
	r = fail("no such command");
	fflush(stdout);
	return r;
}

static void read_input(struct program *p)
{
	ssize_t n;

	if (p->line_len == LINE_MAX_BYTES) {
		fail("line too long");
		p->input_ended = true;
		return;
	}
	n = read(STDIN_FILENO, p->line + p->line_len, LINE_MAX_BYTES - p->line_len);
	if (n > 0)
		p->line_len += (size_t)n;
	else if (n == 0 || (errno != EAGAIN && errno != EINTR))
		p->input_ended = true;
}

/* Runs the first whole line of the input; false if there is none. */
static bool run_input(struct program *p)
{
	char *end = memchr(p->line, '\n', p->line_len);
	_cleanup_free_ char *line = NULL;
	size_t used;

	if (!end)
		return false;
	used = (size_t)(end - p->line) + 1;
	line = strndup(p->line, used - 1);
	p->line_len -= used;
	memmove(p->line, end + 1, p->line_len);
	if (line)
		run_line(p, line);
	return true;
}

static void serve(struct program *p, bool with_input)
{
	while (!p->quit && !p->stopped) {
		bool again = pump_all(p);

		if (with_input && run_input(p))
			continue;
		if (with_input && p->input_ended)
			return;
		wait_events(p, again ? 0 : -1, with_input);
		if (with_input && p->n_fds > 0 && p->fds[0].revents)
			read_input(p);
	}
}

static void program_clear(struct program *p)
{
	while (p->guests)
		remove_guest(p, p->guests);
	free(p->conns);
	free(p->fds);
	free(p->line);
	safe_close(p->signals);
}

static int run_options(struct program *p, int argc, char **argv, bool *ret_serve)
{
	int o;

	while ((o = getopt(argc, argv, "c:s")) >= 0) {
		if (o == 'c' && run_line(p, optarg) < 0)
			return -1;
		if (o == 's')
			*ret_serve = true;
		if (o == '?')
			return -1;
	}
	return 0;
}

int main(int argc, char **argv)
{
	_cleanup_(program_clear)
	struct program p = { .signals = -1 };
	bool only_serve = false;
	sigset_t ends;

	sigemptyset(&ends);
	sigaddset(&ends, SIGTERM);
	sigaddset(&ends, SIGINT);
	sigprocmask(SIG_BLOCK, &ends, NULL);
	p.signals = signalfd(-1, &ends, SFD_CLOEXEC);
	signal(SIGPIPE, SIG_IGN);
	p.line = malloc(LINE_MAX_BYTES);
	if (p.signals < 0 || !p.line || run_options(&p, argc, argv, &only_serve) < 0)
		return EXIT_FAILURE;
	serve(&p, !only_serve);
	return EXIT_SUCCESS;
}
