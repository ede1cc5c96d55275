/* SPDX-License-Identifier: Apache-2.0 */
/* A real client over loopback and over the AF_UNIX socket, while the loop runs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "admin.h"
#include "clock.h"
#include "log.h"

#define PATIENCE (30 * USEC_PER_SEC)

struct fixture {
	sd_event *event;
	struct admin *admin;
	struct settings_address address;
	struct admin_settings settings;
	char dir[32], path[64];
	unsigned int asked, done;
	int fails; /* what a page returns */
};

static int page(const struct admin_request *q, FILE *file, void *userdata)
{
	struct fixture *f = userdata;

	fprintf(file, "asked %u, cid %s\n", ++f->asked, admin_query(q, "cid") ?: "none");
	return f->fails ? f->fails : 200;
}

static int act(const struct admin_request *q, FILE *file, void *userdata)
{
	struct fixture *f = userdata;

	fprintf(file, "{\"done\":%u,\"cid\":%s}\n", ++f->done, admin_query(q, "cid") ?: "null");
	return f->fails ? f->fails : 200;
}

static const struct admin_page pages[] = {
	{ "/open", ADMIN_OPEN, ADMIN_METRICS, page },
	{ "/private", ADMIN_PRIVATE, ADMIN_JSON, page },
	{ "/act", ADMIN_WRITE, ADMIN_JSON, act },
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	strcpy(f->dir, "/tmp/test_admin.XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->path, sizeof(f->path), "%s/admin.sock", f->dir);
	f->address = (struct settings_address){ .enabled = true, .host = "127.0.0.1" };
	f->settings = (struct admin_settings){ .metrics = &f->address,
					       .socket = f->path,
					       .pages = pages,
					       .n_pages = ARRAY_SIZE(pages),
					       .userdata = f };
	assert_int_equal(sd_event_new(&f->event), 0);
	*state = f;
	return 0;
}

static int start(void **state)
{
	struct fixture *f;

	setup(state);
	f = *state;
	if (geteuid() == 0) {
		f->settings.give_group = true;
		f->settings.gid = 77;
	}
	assert_int_equal(admin_new(f->event, &f->settings, &f->admin), 0);
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	admin_free(f->admin);
	sd_event_unref(f->event);
	unlink(f->path);
	assert_int_equal(rmdir(f->dir), 0);
	free(f);
	return 0;
}

/* ---- the client, in a thread of its own ---------------------------------------------------------- */

struct exchange {
	const struct fixture *f;
	bool local; /* over the AF_UNIX socket */
	const char *request;
	char answer[65536];
	size_t len;
	bool ended; /* the server closed */
	atomic_bool done;
};

static int dial(const struct fixture *f, bool local)
{
	struct timeval patience = { .tv_sec = 15 };
	struct sockaddr_in in = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
				  .sin_port = htons(admin_port(f->admin)) };
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	int fd = socket(local ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(un.sun_path, f->path);
	assert_true(fd >= 0);
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)), 0);
	if ((local ? connect(fd, (struct sockaddr *)&un, sizeof(un))
		   : connect(fd, (struct sockaddr *)&in, sizeof(in))) < 0)
		return safe_close(fd);
	return fd;
}

static void *talk(void *arg)
{
	struct exchange *x = arg;
	int fd = dial(x->f, x->local);
	ssize_t n = -1;

	if (fd >= 0 && send(fd, x->request, strlen(x->request), MSG_NOSIGNAL) >= 0)
		while ((n = recv(fd, x->answer + x->len, sizeof(x->answer) - 1 - x->len, 0)) > 0)
			x->len += (size_t)n;
	x->ended = n == 0;
	safe_close(fd);
	atomic_store(&x->done, true);
	return NULL;
}

static void run_until(struct fixture *f, atomic_bool *done)
{
	uint64_t deadline = clock_usec() + PATIENCE;

	while (!atomic_load(done)) {
		if (clock_usec() > deadline)
			fail_msg("no end of it");
		assert_true(sd_event_run(f->event, 10 * USEC_PER_MSEC) >= 0);
	}
}

/* One request; the connection ends after it, by the header or by the server's patience. */
static struct exchange *exchange(struct fixture *f, bool local, const char *request)
{
	static struct exchange x;
	pthread_t thread;

	memset(&x, 0, sizeof(x));
	x.f = f;
	x.local = local;
	x.request = request;
	assert_int_equal(pthread_create(&thread, NULL, talk, &x), 0);
	run_until(f, &x.done);
	assert_int_equal(pthread_join(thread, NULL), 0);
	return &x;
}

static const char *get(struct fixture *f, bool local, const char *path)
{
	char request[256];

	snprintf(request, sizeof(request),
		 "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", path);
	return exchange(f, local, request)->answer;
}

static void assert_begins(const char *answer, const char *with)
{
	if (strncmp(answer, with, strlen(with)) != 0)
		fail_msg("'%s' does not begin with '%s'", answer, with);
}

static void assert_contains(const char *answer, const char *what)
{
	if (!strstr(answer, what))
		fail_msg("'%s' is not in '%s'", what, answer);
}

/* ---- what is served ------------------------------------------------------------------------------ */

static void open_pages_are_served_on_both(void **state)
{
	struct fixture *f = *state;

	for (int local = 0; local < 2; local++) {
		const char *answer = get(f, local, "/open");

		assert_begins(answer, "HTTP/1.1 200 ");
		assert_contains(answer, "\r\nContent-Type: text/plain; version=0.0.4; "
					"charset=utf-8\r\n");
		assert_contains(answer, local ? "\r\n\r\nasked 2" : "\r\n\r\nasked 1");
	}
}

static void a_page_says_its_status(void **state)
{
	struct fixture *f = *state;
	const char *answer;

	f->fails = 503;
	answer = get(f, false, "/open");
	assert_begins(answer, "HTTP/1.1 503 ");
	assert_contains(answer, "\r\n\r\nasked 1");
	f->fails = -ENOMEM;
	answer = get(f, false, "/open");
	assert_begins(answer, "HTTP/1.1 500 ");
	assert_contains(answer, "\r\n\r\nCannot allocate memory\n");
}

static void private_pages_are_served_on_the_socket_alone(void **state)
{
	struct fixture *f = *state;
	const char *answer = get(f, true, "/private?cid=42");

	assert_begins(answer, "HTTP/1.1 200 ");
	assert_contains(answer, "\r\nContent-Type: application/json\r\n");
	assert_contains(answer, "\r\n\r\nasked 1, cid 42\n");
	assert_begins(get(f, false, "/private"), "HTTP/1.1 404 ");
	assert_int_equal(f->asked, 1);
}

static const char *post(struct fixture *f, bool local, const char *path, const char *body)
{
	static char request[256];

	snprintf(
		request, sizeof(request),
		"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n%s",
		path, strlen(body), body);
	return exchange(f, local, request)->answer;
}

static void acts_are_posts_on_the_socket_alone(void **state)
{
	struct fixture *f = *state;
	const char *answer = post(f, true, "/act?cid=7", "");

	assert_begins(answer, "HTTP/1.1 200 ");
	assert_contains(answer, "\r\n\r\n{\"done\":1,\"cid\":7}\n");
	answer = get(f, true, "/act?cid=7");
	assert_begins(answer, "HTTP/1.1 405 ");
	assert_contains(answer, "\r\nAllow: POST\r\n");
	assert_begins(post(f, false, "/act?cid=7", ""), "HTTP/1.1 405 ");
	assert_begins(get(f, false, "/act?cid=7"), "HTTP/1.1 404 ");
	/* None of them has a body. */
	assert_null(strstr(post(f, true, "/act?cid=7", "hello"), " 200 "));
	f->fails = 409;
	assert_begins(post(f, true, "/act", ""), "HTTP/1.1 409 ");
	assert_int_equal(f->done, 2);
}

/* Runs the exchange as another user, in a process of its own. */
static const char *post_as(struct fixture *f, uid_t uid, gid_t gid, gid_t also)
{
	static char answer[4096];
	atomic_bool done = false;
	int fds[2];
	ssize_t n, len = 0;
	pid_t pid;

	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		static const char request[] = "POST /act HTTP/1.1\r\nHost: x\r\nConnection: close"
					      "\r\nContent-Length: 0\r\n\r\n";
		int fd;

		if (setgroups(also ? 1 : 0, &also) < 0 || setresgid(gid, gid, gid) < 0 ||
		    setresuid(uid, uid, uid) < 0)
			_exit(1);
		fd = dial(f, true);
		if (fd < 0 || send(fd, request, strlen(request), MSG_NOSIGNAL) < 0)
			_exit(2);
		while ((n = recv(fd, answer, sizeof(answer), 0)) > 0)
			if (write(fds[1], answer, (size_t)n) != n)
				_exit(3);
		_exit(0);
	}
	close(fds[1]);
	assert_int_equal(fcntl(fds[0], F_SETFL, O_NONBLOCK), 0);
	while (!atomic_load(&done)) {
		assert_true(sd_event_run(f->event, 10 * USEC_PER_MSEC) >= 0);
		n = read(fds[0], answer + len, sizeof(answer) - 1 - (size_t)len);
		len += MAX(n, 0);
		atomic_store(&done, n == 0);
	}
	answer[len] = '\0';
	close(fds[0]);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	return answer;
}

static void acts_are_for_root_and_the_relays_own(void **state)
{
	struct fixture *f = *state;

	if (geteuid() != 0)
		skip();
	/* Whatever the modes let through. */
	assert_int_equal(chmod(f->dir, 0755), 0);
	assert_int_equal(chmod(f->path, 0666), 0);
	assert_begins(post_as(f, 0, 0, 0), "HTTP/1.1 200 ");
	assert_begins(post_as(f, 4321, 4321, 0), "HTTP/1.1 403 ");
	assert_begins(post_as(f, 4321, 77, 0), "HTTP/1.1 200 ");
	assert_begins(post_as(f, 4321, 4321, 77), "HTTP/1.1 200 ");
	assert_begins(post_as(f, 4321, 4321, 78), "HTTP/1.1 403 ");
	assert_int_equal(f->done, 3);
}

static void other_paths_are_not_found(void **state)
{
	struct fixture *f = *state;

	assert_begins(get(f, false, "/"), "HTTP/1.1 404 ");
	assert_begins(get(f, false, "/open/"), "HTTP/1.1 404 ");
	assert_begins(get(f, true, "/../etc/passwd"), "HTTP/1.1 404 ");
}

static void query_is_ignored(void **state)
{
	assert_begins(get(*state, false, "/open?verbose=1"), "HTTP/1.1 200 ");
}

static void head_has_no_body(void **state)
{
	const char *answer = exchange(*state, false,
				      "HEAD /open HTTP/1.1\r\nHost: x\r\n"
				      "Connection: close\r\n\r\n")
				     ->answer;

	assert_begins(answer, "HTTP/1.1 200 ");
	assert_contains(answer, "\r\nContent-Length: 18\r\n");
	assert_null(strstr(answer, "\r\n\r\nasked"));
}

static void nothing_but_get_and_head(void **state)
{
	static const char *const methods[] = { "POST", "PUT", "DELETE", "OPTIONS", "BREW" };

	for (size_t i = 0; i < ARRAY_SIZE(methods); i++) {
		char request[256];
		const struct exchange *x;

		snprintf(request, sizeof(request),
			 "%s /open HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
			 methods[i]);
		x = exchange(*state, false, request);
		assert_begins(x->answer, "HTTP/1.1 405 ");
		assert_contains(x->answer, "\r\nAllow: GET, HEAD\r\n");
		assert_true(x->ended);
	}
}

static void several_requests_on_one_connection(void **state)
{
	const char *answer = exchange(*state, false,
				      "GET /open HTTP/1.1\r\nHost: x\r\n\r\n"
				      "GET /none HTTP/1.1\r\nHost: x\r\n\r\n"
				      "GET /open HTTP/1.1\r\nHost: x\r\n"
				      "Connection: close\r\n\r\n")
				     ->answer;

	assert_begins(answer, "HTTP/1.1 200 ");
	assert_contains(answer, "HTTP/1.1 404 ");
	assert_contains(strstr(answer, "HTTP/1.1 404 "), "HTTP/1.1 200 ");
}

/* ---- who misbehaves ------------------------------------------------------------------------------ */

static void garbage_ends_the_connection(void **state)
{
	static char large[20000];
	const struct exchange *x = exchange(*state, false, "\x16\x03\x01 nonsense\r\n\r\n");

	assert_true(x->ended || x->len == 0);
	assert_null(strstr(x->answer, " 200 "));
	/* A header beyond what a connection may cost. */
	memset(large, 'a', sizeof(large) - 1);
	memcpy(large, "GET /", 5);
	x = exchange(*state, false, large);
	assert_null(strstr(x->answer, " 200 "));
	assert_contains(get(*state, false, "/open"), "\nasked ");
}

/* More silent clients than connections: the rest waits, and is served when they are given up. */
static void silent_clients_hold_nobody_up_for_long(void **state)
{
	struct fixture *f = *state;
	int fds[ADMIN_CONNECTIONS + 4];
	uint64_t begin = clock_usec();

	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		fds[i] = dial(f, false);
		assert_true(fds[i] >= 0);
		if (i % 2)
			assert_int_equal(send(fds[i], "GET /", 5, MSG_NOSIGNAL), 5);
	}
	assert_contains(get(f, true, "/open"), "\nasked "); /* the other listener */
	assert_contains(get(f, false, "/open"), "\nasked ");
	assert_true(clock_usec() - begin > ADMIN_TIMEOUT_S * USEC_PER_SEC / 2);
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		safe_close(fds[i]);
}

static void idle_server_does_not_spin(void **state)
{
	struct fixture *f = *state;
	unsigned int turns = 0;

	get(f, false, "/open");
	for (uint64_t end = clock_usec() + 300 * USEC_PER_MSEC; clock_usec() < end; turns++)
		assert_true(sd_event_run(f->event, 50 * USEC_PER_MSEC) >= 0);
	assert_in_range(turns, 1, 30);
}

/* ---- sockets ------------------------------------------------------------------------------------- */

static void socket_is_for_owner_and_group(void **state)
{
	struct fixture *f = *state;
	struct stat st;

	assert_int_equal(stat(f->path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0660);
	assert_int_equal(st.st_gid, geteuid() == 0 ? 77 : getegid());
}

static void socket_in_use_is_an_error(void **state)
{
	struct fixture *f = *state;
	struct admin_settings s = { .socket = f->path };
	struct settings_address taken = { .enabled = true, .host = "127.0.0.1" };
	struct admin *second = NULL;

	assert_int_equal(admin_new(f->event, &s, &second), -EADDRINUSE);
	taken.port = admin_port(f->admin);
	s = (struct admin_settings){ .metrics = &taken };
	assert_int_equal(admin_new(f->event, &s, &second), -EADDRINUSE);
	assert_null(second);
	assert_int_equal(access(f->path, F_OK), 0);
	assert_contains(get(f, true, "/open"), "\nasked ");
}

static void socket_left_behind_is_replaced(void **state)
{
	struct fixture *f = *state;
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(un.sun_path, f->path);
	assert_int_equal(bind(fd, (struct sockaddr *)&un, sizeof(un)), 0);
	safe_close(fd);
	assert_int_equal(admin_new(f->event, &f->settings, &f->admin), 0);
	assert_contains(get(f, true, "/open"), "\nasked ");
}

static void file_that_is_no_socket_is_left_alone(void **state)
{
	struct fixture *f = *state;
	int fd = open(f->path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	safe_close(fd);
	assert_int_equal(admin_new(f->event, &f->settings, &f->admin), -EEXIST);
	assert_int_equal(access(f->path, F_OK), 0);
}

static void own_socket_is_removed_at_the_end(void **state)
{
	struct fixture *f = *state;

	f->admin = admin_free(f->admin);
	assert_int_equal(access(f->path, F_OK), -1);
}

static void socket_of_somebody_else_stays_at_the_end(void **state)
{
	struct fixture *f = *state;
	int fd;

	unlink(f->path);
	fd = open(f->path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	safe_close(fd);
	f->admin = admin_free(f->admin);
	assert_int_equal(access(f->path, F_OK), 0);
}

static void bad_address_is_an_error(void **state)
{
	struct fixture *f = *state;
	char path[200];

	strcpy(f->address.host, "localhost");
	assert_int_equal(admin_new(f->event, &f->settings, &f->admin), -EINVAL);
	memset(path, 'x', sizeof(path));
	path[sizeof(path) - 1] = '\0';
	f->settings = (struct admin_settings){ .socket = path };
	assert_int_equal(admin_new(f->event, &f->settings, &f->admin), -ENAMETOOLONG);
}

static void every_address_serves_loopback_too(void **state)
{
	struct fixture *f = *state;

	*f->address.host = '\0';
	assert_int_equal(admin_new(f->event, &f->settings, &f->admin), 0);
	assert_contains(get(f, false, "/open"), "\nasked ");
}

static void nothing_to_listen_on_is_fine(void **state)
{
	struct fixture *f = *state;

	f->address.enabled = false;
	f->settings.socket = "";
	assert_int_equal(admin_new(f->event, &f->settings, &f->admin), 0);
	assert_int_equal(admin_port(f->admin), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define SERVED(test) cmocka_unit_test_setup_teardown(test, start, teardown)
#define ALONE(test)  cmocka_unit_test_setup_teardown(test, setup, teardown)
		SERVED(open_pages_are_served_on_both),
		SERVED(a_page_says_its_status),
		SERVED(private_pages_are_served_on_the_socket_alone),
		SERVED(acts_are_posts_on_the_socket_alone),
		SERVED(acts_are_for_root_and_the_relays_own),
		SERVED(other_paths_are_not_found),
		SERVED(query_is_ignored),
		SERVED(head_has_no_body),
		SERVED(nothing_but_get_and_head),
		SERVED(several_requests_on_one_connection),
		SERVED(garbage_ends_the_connection),
		SERVED(silent_clients_hold_nobody_up_for_long),
		SERVED(idle_server_does_not_spin),
		SERVED(socket_is_for_owner_and_group),
		SERVED(socket_in_use_is_an_error),
		ALONE(socket_left_behind_is_replaced),
		ALONE(file_that_is_no_socket_is_left_alone),
		SERVED(own_socket_is_removed_at_the_end),
		SERVED(socket_of_somebody_else_stays_at_the_end),
		ALONE(bad_address_is_an_error),
		ALONE(every_address_serves_loopback_too),
		ALONE(nothing_to_listen_on_is_fine),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
