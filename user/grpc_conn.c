/* SPDX-License-Identifier: Apache-2.0 */
#include "grpc_conn.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/random.h>
#include <sys/un.h>

#include "clock.h"
#include "list.h"
#include "log.h"
#include "resolve.h"

/* One address: connect, TLS and the server's SETTINGS. */
#define ATTEMPT_LIMIT (5 * USEC_PER_SEC)
#define BACKOFF_FIRST (1 * USEC_PER_SEC)
/* A connection that ended after this much was a good one: the next is made at once. */
#define GOOD_LIFE (10 * USEC_PER_SEC)
/* How long a connection that was replaced may take to end its calls. */
#define DRAIN_LIMIT (10 * USEC_PER_SEC)
/* gRPC servers want hours at most. */
#define PING_INTERVAL_MAX (2 * USEC_PER_HOUR)
/* Files are changed one after the other: look when it has been quiet for this long. */
#define FILES_SETTLE (500 * USEC_PER_MSEC)
/* Bytes a turn: other connections have their turn, too. */
#define READ_TURN  (1 * MIB)
#define WRITE_TURN (8 * MIB)
#define IOV_MAX_   64
#define TLS_RECORD 16384

enum link_state {
	LINK_CONNECTING,
	LINK_TLS,
	LINK_HTTP2, /* until the server's SETTINGS are there */
	LINK_READY,
	LINK_DRAINING,
};

/* One connection. */
struct link {
	struct list list; /* in grpc_conn.links */
	struct grpc_conn *conn;
	enum link_state state;
	int fd;
	SSL *ssl;
	struct grpc *g;
	sd_event_source *io;
	bool pings_heeded;
	bool blocked; /* the socket takes no more just now */
	uint64_t ready_at;
	uint64_t limit; /* of the attempt or of draining; USEC_INFINITY while ready */
};

struct grpc_conn {
	struct grpc_conn_settings settings;
	struct grpc_settings grpc;
	char *host; /* of the address; for unix: the path */
	char *name; /* the server's */
	uint16_t port;
	bool is_unix;

	sd_event *event;
	sd_event_source *timer, *kick;
	grpc_conn_changed_t changed;
	void *userdata;

	struct list links;
	struct link *current; /* takes calls */
	struct link *attempt; /* is to become the current one */
	struct resolve *resolve;
	struct resolve_address addresses[RESOLVE_ADDRESSES_MAX];
	size_t n_addresses, next_address;
	unsigned int failures; /* in a row */
	uint64_t connect_at;   /* the next attempt; USEC_INFINITY: none is due */
	char said[320];	       /* the last failure that was logged */

	SSL_CTX *context;
	uint64_t files_digest;
	sd_event_source *watches[3];
	uint64_t reload_at; /* USEC_INFINITY: nothing changed */
};

static void arm(struct grpc_conn *c);
static void next_address(struct grpc_conn *c, const char *why);

/* ---- addresses -------------------------------------------------------------------------------------- */

/* Splits "host:port" or "[v6]:port"; host may be NULL. */
static int split_address(const char *address, char **ret_host, uint16_t *ret_port)
{
	const char *colon = strrchr(address, ':'), *begin = address, *end = colon;
	unsigned long port;
	char *rest, *host;

	if (!colon || colon == address || colon[1] < '0' || colon[1] > '9')
		return -EINVAL;
	errno = 0;
	port = strtoul(colon + 1, &rest, 10);
	if (errno != 0 || *rest || port == 0 || port > UINT16_MAX)
		return -EINVAL;
	if (*begin == '[') {
		begin++;
		end--;
		if (end <= begin || *end != ']')
			return -EINVAL;
	} else if (memchr(begin, ':', (size_t)(end - begin))) {
		return -EINVAL; /* an IPv6 address without brackets */
	}
	if (ret_host) {
		host = strndup(begin, (size_t)(end - begin));
		if (!host)
			return -ENOMEM;
		*ret_host = host;
	}
	*ret_port = (uint16_t)port;
	return 0;
}

static const char *unix_path(const char *address)
{
	return strncmp(address, "unix:", 5) == 0 ? address + 5 : NULL;
}

bool grpc_conn_valid_address(const char *address)
{
	const char *path = unix_path(address);
	struct sockaddr_un sun;
	uint16_t port;

	if (path)
		return *path == '/' && strlen(path) < sizeof(sun.sun_path);
	for (const char *p = address; *p; p++)
		if (*p <= ' ' || *p > '~')
			return false;
	return strlen(address) < 300 && split_address(address, NULL, &port) == 0;
}

uint16_t grpc_conn_port(const char *address)
{
	uint16_t port = 0;

	if (!unix_path(address))
		(void)split_address(address, NULL, &port);
	return port;
}

/* ---- the log ------------------------------------------------------------------------------------------ */

/* An upstream that is away fails the same way every 30 s: said once. */
static void tell_failure(struct grpc_conn *c, const char *why)
{
	if (strncmp(c->said, why, sizeof(c->said) - 1) == 0)
		return;
	snprintf(c->said, sizeof(c->said), "%s", why);
	log_warning("upstream %s: %s; will be tried again", c->settings.address, why);
}

/* ---- the end of a connection ------------------------------------------------------------------------- */

static double fraction(void)
{
	uint32_t v;

	return getrandom(&v, sizeof(v), 0) == sizeof(v) ? v / 4294967296.0 : 0.5;
}

/* Waits before the next attempt: not at all after a good connection, else longer each time; up to
 * a fifth less, so that many nodes do not come together. */
static void back_off(struct grpc_conn *c, uint64_t now)
{
	unsigned int doubled = MIN(c->failures, 6U);
	uint64_t wait = doubled ? MIN(BACKOFF_FIRST << (doubled - 1), GRPC_BACKOFF_MAX) : 0;

	c->connect_at = usec_add(now, wait - (uint64_t)((double)wait * 0.2 * fraction()));
}

static struct link *link_free(struct link *l)
{
	if (!l)
		return NULL;
	list_del(&l->list);
	sd_event_source_disable_unref(l->io);
	l->g = grpc_free(l->g);
	SSL_free(l->ssl);
	safe_close(l->fd);
	free(l);
	return NULL;
}

/* The server wants fewer pings: the next connections have half as many. */
static void heed_pings(struct link *l)
{
	struct grpc_conn *c = l->conn;

	if (!l->g || !grpc_too_many_pings(l->g) || l->pings_heeded ||
	    c->grpc.ping_interval >= PING_INTERVAL_MAX)
		return;
	l->pings_heeded = true;
	c->grpc.ping_interval *= 2;
	log_info("upstream %s: too many pings, from now on one every %llu s", c->settings.address,
		 (unsigned long long)(c->grpc.ping_interval / USEC_PER_SEC));
}

/* The connection is over; its calls are told. */
static void link_end(struct link *l, const char *why, uint64_t now)
{
	struct grpc_conn *c = l->conn;
	bool was_current = l == c->current, was_attempt = l == c->attempt;

	heed_pings(l);
	if (was_current)
		c->current = NULL;
	if (was_attempt)
		c->attempt = NULL;
	if (l->g)
		grpc_close(l->g, why, now);
	if (was_current) {
		c->failures = usec_sub(now, l->ready_at) >= GOOD_LIFE ? 0 : c->failures + 1;
		tell_failure(c, why);
		if (!c->attempt && !c->resolve)
			back_off(c, now);
	}
	link_free(l);
	if (was_current)
		c->changed(false, c->userdata);
	if (was_attempt)
		next_address(c, why);
}

/* The server says that it ends (GOAWAY), or it has been replaced: calls may end, new ones go to
 * another connection. */
static void link_drain(struct link *l, uint64_t now)
{
	struct grpc_conn *c = l->conn;

	heed_pings(l);
	l->state = LINK_DRAINING;
	l->limit = usec_add(now, DRAIN_LIMIT);
	if (l != c->current)
		return;
	c->current = NULL;
	c->failures = usec_sub(now, l->ready_at) >= GOOD_LIFE ? 0 : c->failures + 1;
	log_info("upstream %s: %s", c->settings.address, grpc_why(l->g));
	if (!c->attempt && !c->resolve)
		back_off(c, now);
	c->changed(false, c->userdata);
}

/* ---- bytes --------------------------------------------------------------------------------------------- */

/* Returns bytes, 0 at the end, -EAGAIN, or another negative errno with *why set. */
static ssize_t link_read(struct link *l, void *buf, size_t size, char *why, size_t why_size)
{
	ssize_t n;

	if (!l->ssl) {
		n = recv(l->fd, buf, size, MSG_DONTWAIT);
		if (n < 0 && errno != EAGAIN)
			snprintf(why, why_size, "%s", strerror(errno));
		return n < 0 ? -errno : n;
	}
	errno = 0;
	n = SSL_read(l->ssl, buf, (int)size);
	if (n > 0)
		return n;
	switch (SSL_get_error(l->ssl, (int)n)) {
	case SSL_ERROR_WANT_READ:
	case SSL_ERROR_WANT_WRITE:
		return -EAGAIN;
	case SSL_ERROR_ZERO_RETURN:
		return 0;
	default:
		tls_why(l->ssl, (int)n, why, why_size);
		return -EIO;
	}
}

/* OpenSSL takes one buffer; many small ones would each become a record. */
static ssize_t tls_write(struct link *l, const struct iovec *iov, size_t n, char *why,
			 size_t why_size)
{
	uint8_t record[TLS_RECORD];
	const void *p = record;
	size_t len = 0;
	int r;

	if (iov[0].iov_len >= sizeof(record)) {
		p = iov[0].iov_base;
		len = sizeof(record);
	} else {
		for (size_t i = 0; i < n && len < sizeof(record); i++) {
			size_t k = MIN(iov[i].iov_len, sizeof(record) - len);

			memcpy(record + len, iov[i].iov_base, k);
			len += k;
		}
	}
	errno = 0;
	r = SSL_write(l->ssl, p, (int)len);
	if (r > 0)
		return r;
	switch (SSL_get_error(l->ssl, r)) {
	case SSL_ERROR_WANT_READ:
	case SSL_ERROR_WANT_WRITE:
		return -EAGAIN;
	default:
		tls_why(l->ssl, r, why, why_size);
		return -EIO;
	}
}

static ssize_t link_write(struct link *l, struct iovec *iov, size_t n, char *why, size_t why_size)
{
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = n };
	ssize_t r;

	if (l->ssl)
		return tls_write(l, iov, n, why, why_size);
	r = sendmsg(l->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (r < 0 && errno != EAGAIN)
		snprintf(why, why_size, "%s", strerror(errno));
	return r < 0 ? -errno : r;
}

/* Writes what there is. Returns 0, or a negative errno with *why set. */
static int link_flush(struct link *l, uint64_t now, char *why, size_t why_size)
{
	struct iovec iov[IOV_MAX_];
	size_t n, total = 0;
	ssize_t sent;

	l->blocked = false;
	while ((n = grpc_output(l->g, iov, ARRAY_SIZE(iov))) > 0) {
		sent = link_write(l, iov, n, why, why_size);
		if (sent == -EAGAIN) {
			l->blocked = true;
			break;
		}
		if (sent < 0)
			return (int)sent;
		grpc_sent(l->g, (size_t)sent, now);
		total += (size_t)sent;
		if (total >= WRITE_TURN) {
			l->blocked = true; /* EPOLLOUT gives us the next turn */
			break;
		}
	}
	return 0;
}

static int link_take(struct link *l, uint64_t now, char *why, size_t why_size)
{
	static uint8_t buf[64 * KIB];
	size_t total = 0;
	ssize_t n;
	int r;

	while (total < READ_TURN) {
		n = link_read(l, buf, sizeof(buf), why, why_size);
		if (n == -EAGAIN)
			return 0;
		if (n < 0)
			return (int)n;
		if (n == 0) {
			snprintf(why, why_size, "%s",
				 *grpc_why(l->g) ? grpc_why(l->g)
						 : "connection closed by the server");
			return -ECONNRESET;
		}
		r = grpc_input(l->g, buf, (size_t)n, now);
		if (r < 0) {
			snprintf(why, why_size, "%s", grpc_why(l->g));
			link_flush(l, now, (char[64]){ 0 }, 64); /* our GOAWAY, if it goes */
			return r;
		}
		total += (size_t)n;
		/* That was all; what comes now, epoll tells. */
		if (!l->ssl && (size_t)n < sizeof(buf))
			return 0;
	}
	grpc_conn_kick(l->conn); /* the rest may lie in OpenSSL's buffer */
	return 0;
}

/* ---- the states of a connection ----------------------------------------------------------------------- */

static int begin_http2(struct link *l, uint64_t now)
{
	l->state = LINK_HTTP2;
	return grpc_new(&l->conn->grpc, now, &l->g);
}

static int link_connected(struct link *l, uint64_t now, char *why, size_t why_size)
{
	struct grpc_conn *c = l->conn;
	int error = 0;
	socklen_t len = sizeof(error);

	if (getsockopt(l->fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
		error = errno;
	if (error != 0) {
		snprintf(why, why_size, "%s", strerror(error));
		return -error;
	}
	if (c->settings.plaintext)
		return begin_http2(l, now);
	l->state = LINK_TLS;
	return tls_connection_new(c->context, l->fd, c->name, &l->ssl);
}

/* Returns 0 also while the handshake goes on. */
static int link_handshake(struct link *l, uint64_t now, char *why, size_t why_size)
{
	int r;

	errno = 0;
	l->blocked = false;
	r = SSL_do_handshake(l->ssl);
	if (r == 1 && !tls_is_h2(l->ssl)) {
		snprintf(why, why_size, "the server does not agree to HTTP/2 (ALPN)");
		return -EPROTO;
	}
	if (r == 1)
		return begin_http2(l, now);
	switch (SSL_get_error(l->ssl, r)) {
	case SSL_ERROR_WANT_WRITE:
		l->blocked = true;
		return 0;
	case SSL_ERROR_WANT_READ:
		return 0;
	default:
		tls_why(l->ssl, r, why, why_size);
		return -EIO;
	}
}

static void link_became_ready(struct link *l, uint64_t now)
{
	struct grpc_conn *c = l->conn;
	struct link *old = c->current;

	l->state = LINK_READY;
	l->limit = USEC_INFINITY;
	l->ready_at = now;
	c->attempt = NULL;
	c->current = l;
	c->connect_at = USEC_INFINITY;
	c->said[0] = '\0';
	log_info("upstream %s: connected%s%s", c->settings.address, l->ssl ? ", " : ", plaintext",
		 l->ssl ? SSL_get_version(l->ssl) : "");
	if (old) {
		old->state = LINK_DRAINING;
		old->limit = usec_add(now, DRAIN_LIMIT);
	}
	c->changed(true, c->userdata);
}

/* Whatever may happen on a connection now. Returns 0, or a negative errno with *why set. */
static int link_service(struct link *l, uint64_t now, char *why, size_t why_size)
{
	int r = 0;

	if (l->limit <= now) {
		snprintf(why, why_size,
			 l->state == LINK_DRAINING ? "took too long to end" : "no answer in time");
		return -ETIMEDOUT;
	}
	if (l->state == LINK_TLS)
		r = link_handshake(l, now, why, why_size);
	if (r < 0 || !l->g)
		return r;
	r = link_take(l, now, why, why_size);
	if (r == 0) {
		r = grpc_run(l->g, now);
		if (r < 0)
			snprintf(why, why_size, "%s", grpc_why(l->g));
	}
	if (r == 0 && l->state == LINK_HTTP2 && grpc_ready(l->g))
		link_became_ready(l, now);
	if (r == 0)
		r = link_flush(l, now, why, why_size);
	if (r == 0 && grpc_draining(l->g) && l->state != LINK_DRAINING)
		link_drain(l, now);
	if (r == 0 && l->state == LINK_DRAINING && grpc_calls(l->g) == 0) {
		snprintf(why, why_size, "drained");
		r = -ESHUTDOWN;
	}
	return r;
}

static void watch_socket(struct link *l)
{
	uint32_t events = EPOLLIN;

	if (l->state == LINK_CONNECTING)
		events = EPOLLOUT;
	else if (l->blocked)
		events |= EPOLLOUT;
	sd_event_source_set_io_events(l->io, events);
}

static void serve(struct link *l, int r, char *why, uint64_t now)
{
	if (r == 0)
		r = link_service(l, now, why, 256);
	if (r == 0)
		watch_socket(l);
	else
		link_end(l, *why ? why : strerror(-r), now);
}

static int on_link(sd_event_source *source _unused_, int fd _unused_, uint32_t events _unused_,
		   void *userdata)
{
	struct link *l = userdata;
	struct grpc_conn *c = l->conn;
	uint64_t now = clock_usec();
	char why[256] = "";
	int r = 0;

	if (l->state == LINK_CONNECTING)
		r = link_connected(l, now, why, sizeof(why));
	serve(l, r, why, now);
	arm(c);
	return 0;
}

/* ---- attempts ------------------------------------------------------------------------------------------ */

static int link_connect(struct link *l, const struct resolve_address *a)
{
	int one = 1;

	l->fd = socket(a->sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (l->fd < 0)
		return -errno;
	if (a->sa.ss_family != AF_UNIX)
		setsockopt(l->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (connect(l->fd, (const struct sockaddr *)&a->sa, a->len) < 0 && errno != EINPROGRESS)
		return -errno;
	return sd_event_add_io(l->conn->event, &l->io, l->fd, EPOLLOUT, on_link, l);
}

static int link_new(struct grpc_conn *c, const struct resolve_address *a, uint64_t now)
{
	struct link *l = calloc(1, sizeof(*l));
	int r;

	if (!l)
		return -ENOMEM;
	l->conn = c;
	l->fd = -1;
	l->limit = usec_add(now, ATTEMPT_LIMIT);
	list_init(&l->list);
	r = link_connect(l, a);
	if (r < 0) {
		link_free(l);
		return r;
	}
	list_add_last(&c->links, &l->list);
	c->attempt = l;
	return 0;
}

/* Tries the next address; after the last one, waits. why: the last failure. */
static void next_address(struct grpc_conn *c, const char *why)
{
	uint64_t now = clock_usec();

	while (!c->attempt && c->next_address < c->n_addresses) {
		int r = link_new(c, &c->addresses[c->next_address++], now);

		if (r < 0)
			why = strerror(-r);
	}
	if (c->attempt)
		return;
	c->failures++;
	tell_failure(c, why);
	back_off(c, now);
}

static void on_resolved(const struct resolve_address *addresses, size_t n, const char *why,
			void *userdata)
{
	struct grpc_conn *c = userdata;
	char text[128];

	memcpy(c->addresses, addresses, n * sizeof(*addresses));
	c->n_addresses = n;
	c->next_address = 0;
	snprintf(text, sizeof(text), "name: %s", why);
	next_address(c, text);
	/* It is freed in the next turn: here it is still at work. */
	grpc_conn_kick(c);
}

static void begin_attempt(struct grpc_conn *c)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	int r;

	c->connect_at = USEC_INFINITY;
	c->n_addresses = c->next_address = 0;
	if (c->is_unix) {
		snprintf(sun.sun_path, sizeof(sun.sun_path), "%s", c->host);
		memcpy(&c->addresses[0].sa, &sun, sizeof(sun));
		c->addresses[0].len = sizeof(sun);
		c->n_addresses = 1;
		next_address(c, "");
		return;
	}
	c->resolve = resolve_free(c->resolve);
	r = resolve_new(c->event, c->host, c->port, on_resolved, c, &c->resolve);
	if (r < 0)
		next_address(c, strerror(-r));
}

/* ---- certificate files ----------------------------------------------------------------------------- */

static int on_files(sd_event_source *source _unused_, const struct inotify_event *event _unused_,
		    void *userdata)
{
	struct grpc_conn *c = userdata;

	c->reload_at = usec_add(clock_usec(), FILES_SETTLE);
	arm(c);
	return 0;
}

/* A set that does not fit together is not taken: the old one stays. */
static void reload_files(struct grpc_conn *c, uint64_t now)
{
	SSL_CTX *context;
	uint64_t digest;

	c->reload_at = USEC_INFINITY;
	if (tls_context_new(&c->settings.tls, &context, &digest) < 0) {
		log_warning("upstream %s: the TLS files are not taken; the old ones stay",
			    c->settings.address);
		return;
	}
	if (digest == c->files_digest) {
		SSL_CTX_free(context);
		return;
	}
	SSL_CTX_free(c->context);
	c->context = context;
	c->files_digest = digest;
	log_info("upstream %s: new TLS files", c->settings.address);
	/* What was refused for the old ones is worth a try at once. */
	c->failures = 0;
	if (!c->attempt && !c->resolve)
		c->connect_at = now;
}

/* Directories are watched, not files: Kubernetes swaps a link in them. */
static int watch_files(struct grpc_conn *c)
{
	const struct tls_files *t = &c->settings.tls;
	const char *const paths[] = { t->ca, t->certificate, t->key };

	for (size_t i = 0; i < ARRAY_SIZE(paths); i++) {
		const char *slash = strrchr(paths[i], '/');
		char dir[4096];
		int r;

		if (!slash)
			continue;
		snprintf(dir, sizeof(dir), "%.*s", (int)MAX(slash - paths[i], (ptrdiff_t)1),
			 paths[i]);
		r = sd_event_add_inotify(c->event, &c->watches[i], dir,
					 IN_CLOSE_WRITE | IN_MOVED_TO | IN_CREATE | IN_ONLYDIR,
					 on_files, c);
		if (r < 0)
			return log_error_errno(r, "cannot watch %s", dir);
	}
	return 0;
}

static int start_tls(struct grpc_conn *c)
{
	int r;

	if (c->settings.plaintext)
		return 0;
	r = watch_files(c);
	return r < 0 ? r : tls_context_new(&c->settings.tls, &c->context, &c->files_digest);
}

/* ---- time ------------------------------------------------------------------------------------------ */

static void arm(struct grpc_conn *c)
{
	uint64_t next = MIN(c->connect_at, c->reload_at);

	list_for_each(n, &c->links) {
		const struct link *l = list_entry(n, struct link, list);

		next = MIN(next, l->limit);
		if (l->g)
			next = MIN(next, grpc_next_event(l->g));
	}
	sd_event_source_set_time(c->timer, next);
	sd_event_source_set_enabled(c->timer,
				    next == USEC_INFINITY ? SD_EVENT_OFF : SD_EVENT_ONESHOT);
}

/* Everything that is due, and what calls have left to be sent. */
static void turn(struct grpc_conn *c)
{
	uint64_t now = clock_usec();

	if (c->n_addresses > 0 || c->connect_at != USEC_INFINITY)
		c->resolve = resolve_free(c->resolve);
	list_for_each_safe(n, &c->links) {
		struct link *l = list_entry(n, struct link, list);
		char why[256] = "";

		if (l->state != LINK_CONNECTING || l->limit <= now)
			serve(l, 0, why, now);
	}
	if (c->reload_at <= now)
		reload_files(c, now);
	if (c->connect_at <= now)
		begin_attempt(c);
	arm(c);
}

static int on_timer(sd_event_source *source _unused_, uint64_t usec _unused_, void *userdata)
{
	turn(userdata);
	return 0;
}

static int on_kick(sd_event_source *source _unused_, void *userdata)
{
	turn(userdata);
	return 0;
}

void grpc_conn_kick(struct grpc_conn *c)
{
	sd_event_source_set_enabled(c->kick, SD_EVENT_ONESHOT);
}

/* ---- calls -------------------------------------------------------------------------------------------- */

bool grpc_conn_ready(const struct grpc_conn *c)
{
	return c->current != NULL;
}

int grpc_conn_call(struct grpc_conn *c, const struct grpc_request *request, uint64_t now,
		   struct grpc_call **ret)
{
	int r;

	if (!c->current)
		return -ENOTCONN;
	r = grpc_call_start(c->current->g, request, now, ret);
	if (r == 0)
		grpc_conn_kick(c);
	return r;
}

/* ---- life ---------------------------------------------------------------------------------------------- */

static int read_address(struct grpc_conn *c)
{
	const char *path = unix_path(c->settings.address);
	const char *name = c->settings.server_name;

	if (!grpc_conn_valid_address(c->settings.address))
		return -EINVAL;
	c->is_unix = path != NULL;
	if (path)
		c->host = strdup(path);
	else if (split_address(c->settings.address, &c->host, &c->port) < 0)
		return -ENOMEM;
	c->name = strdup(*name ? name : path ? "localhost" : c->host ? c->host : "");
	return c->host && c->name ? 0 : -ENOMEM;
}

static int start(struct grpc_conn *c)
{
	int r;

	r = read_address(c);
	if (r < 0)
		return r;
	c->grpc = (struct grpc_settings){
		.scheme = c->settings.plaintext ? "http" : "https",
		.authority = c->is_unix || *c->settings.server_name ? c->name : c->settings.address,
		.user_agent = c->settings.user_agent,
		.metadata = c->settings.metadata,
		.n_metadata = c->settings.n_metadata,
		.ping_interval = c->settings.ping_interval,
		.ping_timeout = c->settings.ping_timeout,
	};
	r = start_tls(c);
	if (r < 0)
		return r;
	r = sd_event_add_time(c->event, &c->timer, CLOCK_BOOTTIME, USEC_INFINITY, 1, on_timer, c);
	if (r >= 0)
		r = sd_event_add_defer(c->event, &c->kick, on_kick, c);
	return r < 0 ? r : 0;
}

int grpc_conn_new(sd_event *event, const struct grpc_conn_settings *s, grpc_conn_changed_t changed,
		  void *userdata, struct grpc_conn **ret)
{
	_cleanup_(grpc_conn_freep)
	struct grpc_conn *c = NULL;
	int r;

	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->settings = *s;
	c->changed = changed;
	c->userdata = userdata;
	c->event = sd_event_ref(event);
	c->reload_at = USEC_INFINITY;
	list_init(&c->links);
	r = start(c);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(c); /* connect_at is 0: at once */
	return 0;
}

struct grpc_conn *grpc_conn_free(struct grpc_conn *c)
{
	struct link *l;

	if (!c)
		return NULL;
	c->current = c->attempt = NULL;
	while ((l = list_first_entry(&c->links, struct link, list))) {
		if (l->g)
			grpc_close(l->g, "the relay stops", clock_usec());
		link_free(l);
	}
	resolve_free(c->resolve);
	for (size_t i = 0; i < ARRAY_SIZE(c->watches); i++)
		sd_event_source_disable_unref(c->watches[i]);
	sd_event_source_disable_unref(c->timer);
	sd_event_source_disable_unref(c->kick);
	SSL_CTX_free(c->context);
	sd_event_unref(c->event);
	free(c->host);
	free(c->name);
	free(c);
	return NULL;
}
