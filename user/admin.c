/* SPDX-License-Identifier: Apache-2.0 */
#include "admin.h"

#include <arpa/inet.h>
#include <microhttpd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "log.h"
#include "tls.h"

#define BACKLOG	       64
#define REQUEST_MEMORY (16 * KIB)
#define SOCKET_MODE    0660
/* Of GnuTLS, which libmicrohttpd uses. */
#define TLS_PRIORITIES "SECURE128:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"
#define GROUPS_MAX     256

/* One listening socket with its HTTP daemon. */
struct server {
	struct admin *admin;
	sd_event *event; /* the admin's */
	struct MHD_Daemon *http;
	sd_event_source *io;	/* the epoll descriptor that the HTTP daemon waits on */
	sd_event_source *timer; /* when it wants to run without input */
	bool full;		/* had all its connections when it ran last */
	bool private;		/* the AF_UNIX socket */
	struct tls_pair pair;	/* with texts: HTTPS */
};

enum { SERVER_ADDRESS, SERVER_SOCKET, SERVER_MAX };

struct admin {
	struct admin_settings settings;
	struct server servers[SERVER_MAX];
	uint16_t port;
	char *path;	 /* of the socket that we bound, or NULL */
	struct stat own; /* that socket, to know it again */
};

/* ---- answers ----------------------------------------------------------------------------------- */

struct answer {
	unsigned int status;
	const char *type;
	const char *allow; /* methods, if this one is not */
	char *text;	   /* freed by libmicrohttpd */
	size_t len;
};

struct admin_request {
	struct MHD_Connection *connection;
};

const char *admin_query(const struct admin_request *q, const char *key)
{
	return MHD_lookup_connection_value(q->connection, MHD_GET_ARGUMENT_KIND, key);
}

static int answer_text(unsigned int status, const char *text, struct answer *ret)
{
	char *line;
	int n = asprintf(&line, "%s\n", text);

	if (n < 0)
		return -ENOMEM;
	*ret = (struct answer){ status, ADMIN_TEXT, NULL, line, (size_t)n };
	return 0;
}

static int answer_page(struct server *s, const struct admin_page *page,
		       struct MHD_Connection *connection, struct answer *ret)
{
	const struct admin_request q = { .connection = connection };
	struct answer answer = { .type = page->type };
	FILE *f = open_memstream(&answer.text, &answer.len);
	int r;

	if (!f)
		return -ENOMEM;
	r = page->answer(&q, f, s->admin->settings.userdata);
	if (fclose(f) != 0 && r >= 0)
		r = -ENOMEM;
	if (r < 0) {
		free(answer.text);
		return answer_text(MHD_HTTP_INTERNAL_SERVER_ERROR, strerror(-r), ret);
	}
	answer.status = (unsigned int)r;
	*ret = answer;
	return 0;
}

/* The page that this listener has at the path. */
static const struct admin_page *find_page(const struct server *s, const char *path)
{
	const struct admin_settings *settings = &s->admin->settings;

	for (size_t i = 0; i < settings->n_pages; i++) {
		const struct admin_page *page = &settings->pages[i];

		if (streq(path, page->path) && (s->private || page->access == ADMIN_OPEN))
			return page;
	}
	return NULL;
}

static bool has_group(int fd, gid_t gid)
{
	gid_t groups[GROUPS_MAX];
	socklen_t len = sizeof(groups);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &len) < 0)
		return false;
	for (size_t i = 0; i < len / sizeof(gid_t); i++)
		if (groups[i] == gid)
			return true;
	return false;
}

/* The socket's mode says the same; this holds also if somebody has changed it. */
static bool may_write(const struct server *s, struct MHD_Connection *connection)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
	struct ucred peer;
	socklen_t len = sizeof(peer);
	const struct admin *a = s->admin;

	if (!info || getsockopt(info->connect_fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0)
		return false;
	if (peer.uid == 0 || peer.uid == geteuid())
		return true;
	return a->settings.give_group &&
	       (peer.gid == a->settings.gid || has_group(info->connect_fd, a->settings.gid));
}

/* ---- libmicrohttpd ----------------------------------------------------------------------------- */

static enum MHD_Result queue(struct MHD_Connection *connection, const struct answer *answer)
{
	struct MHD_Response *response;
	enum MHD_Result result;

	response =
		MHD_create_response_from_buffer(answer->len, answer->text, MHD_RESPMEM_MUST_FREE);
	if (!response) {
		free(answer->text);
		return MHD_NO;
	}
	MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, answer->type);
	MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
	if (answer->allow)
		MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, answer->allow);
	result = MHD_queue_response(connection, answer->status, response);
	MHD_destroy_response(response);
	return result;
}

/* What is wrong with a request before its page is asked. Returns 0: nothing; 1: *ret says it;
 * negative errno. */
static int refuse(struct server *s, struct MHD_Connection *connection,
		  const struct admin_page *page, const char *method, struct answer *ret)
{
	bool read = streq(method, MHD_HTTP_METHOD_GET) || streq(method, MHD_HTTP_METHOD_HEAD);
	bool write = page && page->access == ADMIN_WRITE;
	int r;

	if (write ? !streq(method, MHD_HTTP_METHOD_POST) : !read) {
		r = answer_text(MHD_HTTP_METHOD_NOT_ALLOWED,
				write ? "POST only" : "GET and HEAD only", ret);
		ret->allow = write ? "POST" : "GET, HEAD";
		return r < 0 ? r : 1;
	}
	if (!page) {
		r = answer_text(MHD_HTTP_NOT_FOUND, "not found", ret);
		return r < 0 ? r : 1;
	}
	if (write && !may_write(s, connection)) {
		r = answer_text(MHD_HTTP_FORBIDDEN,
				"for root, the user and the group of the relay only", ret);
		return r < 0 ? r : 1;
	}
	return 0;
}

/* Called for the header of a request, with *state NULL, and again when its body, if any, has been
 * read. MHD_NO closes the connection. */
static enum MHD_Result on_request(void *userdata, struct MHD_Connection *connection,
				  const char *path, const char *method,
				  const char *version _unused_, const char *body _unused_,
				  size_t *body_len, void **state)
{
	static char seen;
	struct server *s = userdata;
	const struct admin_page *page = find_page(s, path);
	struct answer answer = { 0 };
	int r;

	if (!*state) {
		*state = &seen;
		/* Refused at once: the body is not waited for, the connection ends. */
		r = refuse(s, connection, page, method, &answer);
		if (r < 0)
			return MHD_NO;
		/* A HEAD or GET is answered in the second call, as libmicrohttpd wants it, so that
		 * the connection goes on. */
		if (r > 0 && !streq(method, MHD_HTTP_METHOD_GET) &&
		    !streq(method, MHD_HTTP_METHOD_HEAD))
			return queue(connection, &answer);
		free(answer.text);
		return MHD_YES;
	}
	if (*body_len > 0) /* nobody needs one */
		return MHD_NO;
	r = refuse(s, connection, page, method, &answer);
	if (r == 0)
		r = answer_page(s, page, connection, &answer);
	return r < 0 ? MHD_NO : queue(connection, &answer);
}

static bool is_full(const struct server *s)
{
	const union MHD_DaemonInfo *info =
		MHD_get_daemon_info(s->http, MHD_DAEMON_INFO_CURRENT_CONNECTIONS);

	return info && info->num_connections >= ADMIN_CONNECTIONS;
}

static int arm(struct server *s)
{
	MHD_UNSIGNED_LONG_LONG timeout_ms;
	bool was_full = s->full;

	s->full = is_full(s);
	if (was_full && !s->full)
		/* With all connections taken libmicrohttpd stops listening, and begins again only
		 * with the next run after one ended; nothing else would wake it up for that. */
		timeout_ms = 0;
	else if (MHD_get_timeout(s->http, &timeout_ms) != MHD_YES)
		return sd_event_source_set_enabled(s->timer, SD_EVENT_OFF);
	if (sd_event_source_set_time_relative(s->timer, timeout_ms * USEC_PER_MSEC) < 0)
		return -EINVAL;
	return sd_event_source_set_enabled(s->timer, SD_EVENT_ONESHOT);
}

static int run(struct server *s)
{
	return MHD_run(s->http) == MHD_YES ? arm(s) : -EIO;
}

static int on_io(sd_event_source *source _unused_, int fd _unused_, uint32_t events _unused_,
		 void *userdata)
{
	return run(userdata);
}

static int on_timer(sd_event_source *source _unused_, uint64_t usec _unused_, void *userdata)
{
	return run(userdata);
}

/* Takes fd over, also on failure: libmicrohttpd closes it with its daemon. */
static int server_start(struct server *s, int fd)
{
	const union MHD_DaemonInfo *info;
	struct MHD_OptionItem tls[] = {
		{ MHD_OPTION_HTTPS_MEM_CERT, 0, s->pair.certificate },
		{ MHD_OPTION_HTTPS_MEM_KEY, 0, s->pair.key },
		{ MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)TLS_PRIORITIES },
		{ MHD_OPTION_END, 0, NULL },
	};
	int r;

	if (!s->pair.certificate)
		tls[0] = (struct MHD_OptionItem){ MHD_OPTION_END, 0, NULL };
	s->http = MHD_start_daemon(MHD_USE_EPOLL | (s->pair.certificate ? MHD_USE_TLS : 0), 0, NULL,
				   NULL, on_request, s, MHD_OPTION_LISTEN_SOCKET, fd,
				   MHD_OPTION_CONNECTION_LIMIT, (unsigned int)ADMIN_CONNECTIONS,
				   MHD_OPTION_CONNECTION_TIMEOUT, (unsigned int)ADMIN_TIMEOUT_S,
				   MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)REQUEST_MEMORY,
				   MHD_OPTION_ARRAY, tls, MHD_OPTION_END);
	if (!s->http)
		return -ENOMEM;
	info = MHD_get_daemon_info(s->http, MHD_DAEMON_INFO_EPOLL_FD);
	if (!info)
		return -EOPNOTSUPP;
	r = sd_event_add_io(s->event, &s->io, info->epoll_fd, EPOLLIN, on_io, s);
	if (r < 0)
		return r;
	r = sd_event_add_time_relative(s->event, &s->timer, CLOCK_MONOTONIC, 0, 0, on_timer, s);
	return r < 0 ? r : arm(s);
}

static void server_stop(struct server *s)
{
	s->io = sd_event_source_disable_unref(s->io);
	s->timer = sd_event_source_disable_unref(s->timer);
	if (s->http)
		MHD_stop_daemon(s->http);
	s->http = NULL;
}

/* ---- listening --------------------------------------------------------------------------------- */

union address {
	struct sockaddr sa;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
	struct sockaddr_un un;
};

/* "" is every address of both families, where there is IPv6. */
static int parse_address(const struct settings_address *a, union address *ret, socklen_t *ret_len)
{
	union address addr = { 0 };

	if (inet_pton(AF_INET, a->host, &addr.in.sin_addr) == 1) {
		addr.in.sin_family = AF_INET;
		addr.in.sin_port = htons(a->port);
		*ret_len = sizeof(addr.in);
	} else if (!*a->host || inet_pton(AF_INET6, a->host, &addr.in6.sin6_addr) == 1) {
		addr.in6.sin6_family = AF_INET6;
		addr.in6.sin6_port = htons(a->port);
		*ret_len = sizeof(addr.in6);
	} else {
		return -EINVAL;
	}
	*ret = addr;
	return 0;
}

static int listen_at(const union address *addr, socklen_t len)
{
	_cleanup_close_ int fd = -1;
	const int yes = 1, no = 0;

	fd = socket(addr->sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (addr->sa.sa_family != AF_UNIX &&
	    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) < 0)
		return -errno;
	if (addr->sa.sa_family == AF_INET6 &&
	    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof(no)) < 0)
		return -errno;
	if (bind(fd, &addr->sa, len) < 0 || listen(fd, BACKLOG) < 0)
		return -errno;
	return TAKE_FD(fd);
}

static int listen_tcp(struct admin *a, const struct settings_address *address)
{
	struct settings_address any4 = *address;
	union address addr;
	socklen_t len;
	int fd, r;

	r = parse_address(address, &addr, &len);
	if (r < 0)
		return r;
	fd = listen_at(&addr, len);
	if (fd == -EAFNOSUPPORT && !*address->host) {
		strcpy(any4.host, "0.0.0.0");
		(void)parse_address(&any4, &addr, &len);
		fd = listen_at(&addr, len);
	}
	if (fd < 0)
		return fd;
	len = sizeof(addr);
	if (getsockname(fd, &addr.sa, &len) < 0) {
		r = -errno;
		safe_close(fd);
		return r;
	}
	a->port = ntohs(addr.sa.sa_family == AF_INET ? addr.in.sin_port : addr.in6.sin6_port);
	return fd;
}

/* Removes a socket that nobody listens on. Returns 0 when the path is free now. */
static int remove_stale(const union address *addr, socklen_t len)
{
	_cleanup_close_ int fd = -1;
	struct stat st;

	if (lstat(addr->un.sun_path, &st) < 0)
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(st.st_mode))
		return -EEXIST;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, &addr->sa, len) == 0 || errno != ECONNREFUSED)
		return -EADDRINUSE;
	return unlink(addr->un.sun_path) < 0 ? -errno : 0;
}

static int listen_unix(struct admin *a, const char *path)
{
	union address addr = { .un.sun_family = AF_UNIX };
	socklen_t len = sizeof(addr.un);
	mode_t mask;
	int fd;

	if (strlen(path) >= sizeof(addr.un.sun_path))
		return -ENAMETOOLONG;
	strcpy(addr.un.sun_path, path);
	/* The mode from the very first moment; no other thread of ours makes files now. */
	mask = umask(0777 & ~SOCKET_MODE);
	fd = listen_at(&addr, len);
	if (fd == -EADDRINUSE) {
		int r = remove_stale(&addr, len);

		fd = r < 0 ? r : listen_at(&addr, len);
	}
	umask(mask);
	if (fd < 0)
		return fd;
	a->path = strdup(path);
	if (!a->path || lstat(path, &a->own) < 0 ||
	    (a->settings.give_group && lchown(path, (uid_t)-1, a->settings.gid) < 0)) {
		int r = a->path ? -errno : -ENOMEM;

		safe_close(fd);
		return r;
	}
	return fd;
}

static void remove_own_socket(const struct admin *a)
{
	struct stat st;

	if (a->path && lstat(a->path, &st) == 0 && st.st_dev == a->own.st_dev &&
	    st.st_ino == a->own.st_ino)
		(void)unlink(a->path);
}

static bool has_tls(const struct admin_settings *s)
{
	return s->certificate && *s->certificate;
}

int admin_new(sd_event *event, const struct admin_settings *s, struct admin **ret)
{
	_cleanup_(admin_freep)
	struct admin *a = calloc(1, sizeof(*a));
	int fd, r;

	if (!a)
		return -ENOMEM;
	a->settings = *s;
	for (size_t i = 0; i < SERVER_MAX; i++) {
		a->servers[i].admin = a;
		a->servers[i].event = event;
	}
	a->servers[SERVER_SOCKET].private = true;
	if (s->metrics && s->metrics->enabled) {
		if (has_tls(s)) {
			r = tls_pair_read(s->certificate, s->key, &a->servers[SERVER_ADDRESS].pair);
			if (r < 0)
				return r;
		}
		fd = listen_tcp(a, s->metrics);
		r = fd < 0 ? fd : server_start(&a->servers[SERVER_ADDRESS], fd);
		if (r < 0)
			return r;
	}
	if (s->socket && *s->socket) {
		fd = listen_unix(a, s->socket);
		r = fd < 0 ? fd : server_start(&a->servers[SERVER_SOCKET], fd);
		if (r < 0)
			return r;
	}
	*ret = TAKE_PTR(a);
	return 0;
}

struct admin *admin_free(struct admin *a)
{
	if (!a)
		return NULL;
	for (size_t i = 0; i < SERVER_MAX; i++) {
		server_stop(&a->servers[i]);
		tls_pair_done(&a->servers[i].pair);
	}
	remove_own_socket(a);
	free(a->path);
	free(a);
	return NULL;
}

int admin_reload(struct admin *a)
{
	struct server *s = &a->servers[SERVER_ADDRESS];
	struct tls_pair pair = { 0 };
	int fd, r;

	if (!s->http || !has_tls(&a->settings))
		return 0;
	r = tls_pair_read(a->settings.certificate, a->settings.key, &pair);
	if (r < 0)
		return r;
	if (streq(pair.certificate, s->pair.certificate) && streq(pair.key, s->pair.key)) {
		tls_pair_done(&pair);
		return 0;
	}
	/* The socket goes on listening, so nobody who connects now is turned away. */
	fd = MHD_quiesce_daemon(s->http);
	server_stop(s);
	tls_pair_done(&s->pair);
	s->pair = pair;
	r = server_start(s, fd);
	if (r == 0)
		log_info("metrics.listen: new certificate and key");
	return r;
}

uint16_t admin_port(const struct admin *a)
{
	return a->port;
}
