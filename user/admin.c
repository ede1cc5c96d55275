/* SPDX-License-Identifier: Apache-2.0 */
#include "admin.h"

#include <arpa/inet.h>
#include <microhttpd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "metrics.h"

#define BACKLOG	       64
#define REQUEST_MEMORY (16 * KIB)
#define SOCKET_MODE    0660

/* One listening socket with its HTTP daemon. */
struct server {
	struct admin *admin;
	struct MHD_Daemon *http;
	sd_event_source *io;	/* the epoll descriptor that the HTTP daemon waits on */
	sd_event_source *timer; /* when it wants to run without input */
	bool full;		/* had all its connections when it ran last */
	bool private;		/* may say what VMs there are */
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
	char *text; /* freed by libmicrohttpd */
	size_t len;
};

#define TYPE_TEXT    "text/plain; charset=utf-8"
#define TYPE_METRICS "text/plain; version=0.0.4; charset=utf-8"
#define TYPE_JSON    "application/json"

static int answer_text(unsigned int status, const char *text, struct answer *ret)
{
	char *line;
	int n = asprintf(&line, "%s\n", text);

	if (n < 0)
		return -ENOMEM;
	*ret = (struct answer){ status, TYPE_TEXT, line, (size_t)n };
	return 0;
}

static int answer_metrics(struct server *s, struct answer *ret)
{
	const struct admin_settings *settings = &s->admin->settings;
	struct answer answer = { .status = MHD_HTTP_OK, .type = TYPE_METRICS };
	int r;

	if (settings->refresh)
		settings->refresh(settings->userdata);
	r = metrics_render(&answer.text, &answer.len);
	if (r < 0)
		return r;
	*ret = answer;
	return 0;
}

static int answer_health(struct server *s, struct answer *ret)
{
	const struct admin_settings *settings = &s->admin->settings;
	const char *wrong = settings->health ? settings->health(settings->userdata) : NULL;

	return wrong ? answer_text(MHD_HTTP_SERVICE_UNAVAILABLE, wrong, ret)
		     : answer_text(MHD_HTTP_OK, "ok", ret);
}

static int answer_status(struct server *s, struct answer *ret)
{
	const struct admin_settings *settings = &s->admin->settings;
	struct answer answer = { .status = MHD_HTTP_OK, .type = TYPE_JSON };
	FILE *f;
	int r;

	if (!s->private || !settings->status)
		return answer_text(MHD_HTTP_NOT_FOUND, "not found", ret);
	f = open_memstream(&answer.text, &answer.len);
	if (!f)
		return -ENOMEM;
	r = settings->status(f, settings->userdata);
	if (fclose(f) != 0 && r == 0)
		r = -ENOMEM;
	if (r < 0) {
		free(answer.text);
		return r;
	}
	*ret = answer;
	return 0;
}

static int answer_path(struct server *s, const char *path, struct answer *ret)
{
	static const struct {
		const char *path;
		int (*answer)(struct server *s, struct answer *ret);
	} paths[] = {
		{ "/metrics", answer_metrics },
		{ "/healthz", answer_health },
		{ "/status.json", answer_status },
	};

	for (size_t i = 0; i < ARRAY_SIZE(paths); i++)
		if (streq(path, paths[i].path))
			return paths[i].answer(s, ret);
	return answer_text(MHD_HTTP_NOT_FOUND, "not found", ret);
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
	if (answer->status == MHD_HTTP_METHOD_NOT_ALLOWED)
		MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
	result = MHD_queue_response(connection, answer->status, response);
	MHD_destroy_response(response);
	return result;
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
	struct answer answer;
	int r;

	if (!streq(method, MHD_HTTP_METHOD_GET) && !streq(method, MHD_HTTP_METHOD_HEAD)) {
		/* Answered at once: the body is not waited for, the connection ends. */
		r = answer_text(MHD_HTTP_METHOD_NOT_ALLOWED, "GET and HEAD only", &answer);
		return r < 0 ? MHD_NO : queue(connection, &answer);
	}
	if (!*state) {
		*state = &seen;
		return MHD_YES;
	}
	if (*body_len > 0) /* a GET with a body: nobody needs that */
		return MHD_NO;
	r = answer_path(s, path, &answer);
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
static int server_start(struct server *s, sd_event *event, int fd)
{
	const union MHD_DaemonInfo *info;
	int r;

	s->http =
		MHD_start_daemon(MHD_USE_EPOLL, 0, NULL, NULL, on_request, s,
				 MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT,
				 (unsigned int)ADMIN_CONNECTIONS, MHD_OPTION_CONNECTION_TIMEOUT,
				 (unsigned int)ADMIN_TIMEOUT_S, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
				 (size_t)REQUEST_MEMORY, MHD_OPTION_END);
	if (!s->http)
		return -ENOMEM;
	info = MHD_get_daemon_info(s->http, MHD_DAEMON_INFO_EPOLL_FD);
	if (!info)
		return -EOPNOTSUPP;
	r = sd_event_add_io(event, &s->io, info->epoll_fd, EPOLLIN, on_io, s);
	if (r < 0)
		return r;
	r = sd_event_add_time_relative(event, &s->timer, CLOCK_MONOTONIC, 0, 0, on_timer, s);
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
	if (!a->path || lstat(path, &a->own) < 0) {
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

int admin_new(sd_event *event, const struct admin_settings *s, struct admin **ret)
{
	_cleanup_(admin_freep)
	struct admin *a = calloc(1, sizeof(*a));
	int fd, r;

	if (!a)
		return -ENOMEM;
	a->settings = *s;
	for (size_t i = 0; i < SERVER_MAX; i++)
		a->servers[i].admin = a;
	a->servers[SERVER_SOCKET].private = true;
	if (s->metrics && s->metrics->enabled) {
		fd = listen_tcp(a, s->metrics);
		r = fd < 0 ? fd : server_start(&a->servers[SERVER_ADDRESS], event, fd);
		if (r < 0)
			return r;
	}
	if (s->socket && *s->socket) {
		fd = listen_unix(a, s->socket);
		r = fd < 0 ? fd : server_start(&a->servers[SERVER_SOCKET], event, fd);
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
	for (size_t i = 0; i < SERVER_MAX; i++)
		server_stop(&a->servers[i]);
	remove_own_socket(a);
	free(a->path);
	free(a);
	return NULL;
}

uint16_t admin_port(const struct admin *a)
{
	return a->port;
}
