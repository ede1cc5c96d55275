/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hybrid sockets (SPEC 3): the relay owns "<uds>_PORT" in directories that may belong to somebody
 * else. Each test has a directory of its own and the event loop behind it; some need root.
 */
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "hybrid.h"
#include "ingest_test.h"

#define PORT "818"

struct world {
	struct ingest_world in;
	char dir[64];
	struct settings *settings;
	struct hybrid *hybrid;
};

static int world_setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));

	assert_non_null(w);
	ingest_world_defaults(&w->in);
	ingest_world_open(&w->in);
	strcpy(w->dir, "/tmp/test_hybrid.XXXXXX");
	assert_non_null(mkdtemp(w->dir));
	*state = w;
	return 0;
}

static int world_teardown(void **state)
{
	struct world *w = *state;
	char command[100];

	w->hybrid = hybrid_free(w->hybrid);
	settings_free(w->settings);
	ingest_world_close(&w->in);
	snprintf(command, sizeof(command), "rm -rf %s", w->dir);
	assert_int_equal(system(command), 0);
	free(w);
	return 0;
}

static const char *path(const struct world *w, const char *name)
{
	static char paths[4][200];
	static unsigned next;
	char *p = paths[next++ % ARRAY_SIZE(paths)];

	snprintf(p, sizeof(paths[0]), "%s/%s", w->dir, name);
	return p;
}

/* Starts with these hybrid settings; a %s in it is the directory. Returns what hybrid_new() says. */
static int start(struct world *w, const char *yaml)
{
	char *argv[] = { (char *)"vsock-relayd", NULL }, *envp[] = { NULL };
	struct settings_errors errors = { 0 };
	char text[1000];
	int r;

	snprintf(text, sizeof(text), yaml, w->dir);
	settings_free(w->settings);
	w->settings = NULL;
	r = settings_parse(1, argv, envp, "test", text, strlen(text), &w->settings, &errors);
	settings_errors_log(&errors, "");
	settings_errors_done(&errors);
	assert_int_equal(r, 0);
	return hybrid_new(w->in.event, w->in.ingest, w->settings, &w->hybrid);
}

static const char single[] = "hybrid: { sockets: [ { path: %s/vm.sock, cid: 42 } ] }";
static const char in_name[] = "hybrid: { sockets: [ { pattern: '%s/vm-{cid}.sock' } ] }";
static const char in_dir[] = "hybrid: { sockets: [ { pattern: '%s/vm-{cid}/run/v.sock' } ] }";

static void make_dir(const struct world *w, const char *name)
{
	assert_int_equal(mkdir(path(w, name), 0755), 0);
}

static void make_file(const struct world *w, const char *name)
{
	int fd = open(path(w, name), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	close(fd);
}

static bool exists(const struct world *w, const char *name)
{
	struct stat st;

	return lstat(path(w, name), &st) == 0;
}

static struct stat stat_of(const struct world *w, const char *name)
{
	struct stat st;

	assert_int_equal(lstat(path(w, name), &st), 0);
	return st;
}

/* A socket bound there; with listens somebody accepts on it. */
static int make_socket(const struct world *w, const char *name, bool listens)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	strcpy(sa.sun_path, path(w, name));
	assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	if (listens)
		assert_int_equal(listen(fd, 1), 0);
	return fd;
}

/* Returns the connected socket, or -errno. */
static int try_connect(const struct world *w, const char *name)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	assert_true(fd >= 0);
	strcpy(sa.sun_path, path(w, name));
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
		int r = -errno;

		close(fd);
		return r;
	}
	return fd;
}

/* A report of this CID, sent to this socket, is accepted. */
static void assert_serves(struct world *w, const char *name, uint32_t cid)
{
	static char what = 'a';
	_cleanup_free_ uint8_t *p = NULL;
	size_t n = make_report(cid, what++, 200, VSR_MODE_VSR1, &p);
	int fd = try_connect(w, name), status;

	assert_true(fd >= 0);
	assert_int_equal(send(fd, p, n, 0), n);
	TURN_UNTIL(&w->in, (status = answer_of(fd)) != -EAGAIN);
	assert_int_equal(status, VSR_STATUS_ACCEPTED);
	close(fd);
}

/* ---- a single path ----------------------------------------------------------------------------------- */

static void the_relay_owns_the_path_with_the_port(void **state)
{
	struct world *w = *state;

	assert_int_equal(start(w, single), 0);
	assert_int_equal(hybrid_count(w->hybrid), 1);
	assert_serves(w, "vm.sock_" PORT, 42);
	assert_false(exists(w, "vm.sock"));
	w->hybrid = hybrid_free(w->hybrid);
	assert_false(exists(w, "vm.sock_" PORT));
}

static void mode_is_0660_or_as_set_whatever_the_umask(void **state)
{
	struct world *w = *state;
	mode_t old = umask(0077);

	assert_int_equal(start(w, single), 0);
	assert_int_equal(stat_of(w, "vm.sock_" PORT).st_mode, S_IFSOCK | 0660);
	assert_int_equal(umask(old), 0077); /* it is the disk worker's too */
	w->hybrid = hybrid_free(w->hybrid);
	assert_int_equal(
		start(w, "hybrid: { mode: 0600, sockets: [ { path: %s/vm.sock, cid: 42 } ] }"), 0);
	assert_int_equal(stat_of(w, "vm.sock_" PORT).st_mode, S_IFSOCK | 0600);
}

static void group_is_as_set(void **state)
{
	struct world *w = *state;

	if (geteuid() != 0)
		skip();
	assert_int_equal(
		start(w, "hybrid: { group: daemon, sockets: [ { path: %s/vm.sock, cid: 42 } ] }"),
		0);
	assert_int_equal(stat_of(w, "vm.sock_" PORT).st_gid, 1);
	w->hybrid = hybrid_free(w->hybrid);
	assert_int_equal(
		start(w, "hybrid: { group: nobodys, sockets: [ { path: %s/vm.sock, cid: 42 } ] }"),
		-ENOENT);
}

static void a_missing_directory_is_an_error(void **state)
{
	struct world *w = *state;

	assert_int_equal(start(w, "hybrid: { sockets: [ { path: %s/no/vm.sock, cid: 42 } ] }"),
			 -ENOENT);
	assert_int_equal(start(w, "hybrid: { sockets: [ { pattern: '%s/no/vm-{cid}' } ] }"),
			 -ENOENT);
	assert_null(w->hybrid);
}

static void a_stale_socket_of_ours_is_replaced(void **state)
{
	struct world *w = *state;

	close(make_socket(w, "vm.sock_" PORT, true));
	assert_int_equal(start(w, single), 0);
	assert_serves(w, "vm.sock_" PORT, 42);
}

static void a_socket_that_somebody_listens_on_is_left_alone(void **state)
{
	struct world *w = *state;
	int fd = make_socket(w, "vm.sock_" PORT, true), theirs;
	ino_t ino = stat_of(w, "vm.sock_" PORT).st_ino;

	assert_int_equal(start(w, single), -EADDRINUSE);
	assert_int_equal(stat_of(w, "vm.sock_" PORT).st_ino, ino);
	theirs = try_connect(w, "vm.sock_" PORT);
	/* The relay's look may be in the backlog, and fill it; but it is there. */
	assert_true(theirs >= 0 || theirs == -EAGAIN);
	safe_close(theirs);
	close(fd);
}

static void a_listener_with_a_full_backlog_is_no_stale_socket(void **state)
{
	struct world *w = *state;
	int fd = make_socket(w, "vm.sock_" PORT, true), fds[10];
	size_t n = 0;

	while ((fds[n] = try_connect(w, "vm.sock_" PORT)) >= 0)
		assert_true(++n < ARRAY_SIZE(fds));
	assert_int_equal(fds[n], -EAGAIN);
	assert_int_equal(start(w, single), -EADDRINUSE);
	assert_true(exists(w, "vm.sock_" PORT));
	while (n > 0)
		close(fds[--n]);
	close(fd);
}

static void a_stale_socket_of_another_user_is_left_alone(void **state)
{
	struct world *w = *state;

	if (geteuid() != 0)
		skip();
	close(make_socket(w, "vm.sock_" PORT, true));
	assert_int_equal(chown(path(w, "vm.sock_" PORT), 12345, 12345), 0);
	assert_int_equal(start(w, single), -EADDRINUSE);
	assert_true(exists(w, "vm.sock_" PORT));
	/* The service's user is us too, after the drop of privileges. */
	assert_int_equal(chown(path(w, "vm.sock_" PORT), 65534, 65534), 0);
	assert_int_equal(
		start(w, "user: nobody\nhybrid: { sockets: [ { path: %s/vm.sock, cid: 42 } ] }"),
		0);
	assert_int_equal(stat_of(w, "vm.sock_" PORT).st_uid, 0);
}

static void files_and_links_are_left_alone(void **state)
{
	struct world *w = *state;
	struct stat st;

	make_file(w, "vm.sock_" PORT);
	assert_int_equal(start(w, single), -EADDRINUSE);
	assert_true(S_ISREG(stat_of(w, "vm.sock_" PORT).st_mode));
	assert_int_equal(unlink(path(w, "vm.sock_" PORT)), 0);

	make_dir(w, "vm.sock_" PORT);
	assert_int_equal(start(w, single), -EADDRINUSE);
	assert_int_equal(rmdir(path(w, "vm.sock_" PORT)), 0);

	/* A link to a stale socket, one to a file, one to nothing. */
	close(make_socket(w, "stale", true));
	make_file(w, "file");
	st = stat_of(w, "file");
	for (unsigned i = 0; i < 3; i++) {
		static const char *const to[] = { "stale", "file", "nothing" };

		assert_int_equal(symlink(to[i], path(w, "vm.sock_" PORT)), 0);
		assert_int_equal(start(w, single), -EADDRINUSE);
		assert_true(S_ISLNK(stat_of(w, "vm.sock_" PORT).st_mode));
		assert_int_equal(unlink(path(w, "vm.sock_" PORT)), 0);
	}
	assert_true(exists(w, "stale"));
	assert_int_equal(stat_of(w, "file").st_mode, st.st_mode);
	assert_false(exists(w, "nothing"));
}

static void what_is_not_ours_any_more_is_not_removed(void **state)
{
	struct world *w = *state;
	int fd;

	assert_int_equal(start(w, single), 0);
	assert_int_equal(unlink(path(w, "vm.sock_" PORT)), 0);
	fd = make_socket(w, "vm.sock_" PORT, true);
	w->hybrid = hybrid_free(w->hybrid);
	assert_true(exists(w, "vm.sock_" PORT));
	close(fd);
}

static void only_allowed_users_may_connect(void **state)
{
	struct world *w = *state;
	char yaml[200];
	int fd;

	if (geteuid() != 0)
		skip();
	assert_int_equal(start(w, "hybrid: { allowed_uids: [ 12345 ], "
				  "sockets: [ { path: %s/vm.sock, cid: 42 } ] }"),
			 0);
	fd = try_connect(w, "vm.sock_" PORT);
	assert_true(fd >= 0);
	TURN_UNTIL(&w->in, closed(fd));
	assert_int_equal(refused(REASON_PEER_UID), 1);
	assert_int_equal(vm_table_count(w->in.vms), 0);
	close(fd);
	w->hybrid = hybrid_free(w->hybrid);
	snprintf(yaml, sizeof(yaml),
		 "hybrid: { allowed_uids: [ 12345, %u ], "
		 "sockets: [ { path: %%s/vm.sock, cid: 42 } ] }",
		 geteuid());
	assert_int_equal(start(w, yaml), 0);
	assert_serves(w, "vm.sock_" PORT, 42);
}

/* ---- patterns ------------------------------------------------------------------------------------------ */

static void vms_come_and_go_by_the_name_of_their_socket(void **state)
{
	struct world *w = *state;
	int vmm;

	close(make_socket(w, "vm-3.sock", true)); /* is there before us */
	assert_int_equal(start(w, in_name), 0);
	assert_int_equal(hybrid_count(w->hybrid), 1);
	assert_serves(w, "vm-3.sock_" PORT, 3);
	vmm = make_socket(w, "vm-4294967294.sock", true);
	TURN_UNTIL(&w->in, hybrid_count(w->hybrid) == 2);
	assert_serves(w, "vm-4294967294.sock_" PORT, 4294967294);
	/* What the relay makes itself is no VM. */
	ingest_world_settle(&w->in);
	assert_int_equal(hybrid_count(w->hybrid), 2);

	assert_int_equal(unlink(path(w, "vm-3.sock")), 0);
	TURN_UNTIL(&w->in, hybrid_count(w->hybrid) == 1);
	assert_false(exists(w, "vm-3.sock_" PORT));
	close(make_socket(w, "vm-3.sock", true));
	TURN_UNTIL(&w->in, hybrid_count(w->hybrid) == 2);
	assert_serves(w, "vm-3.sock_" PORT, 3);
	close(vmm);
	w->hybrid = hybrid_free(w->hybrid);
	assert_false(exists(w, "vm-3.sock_" PORT));
	assert_true(exists(w, "vm-3.sock"));
}

static void vms_come_and_go_by_the_name_of_their_directory(void **state)
{
	struct world *w = *state;

	assert_int_equal(start(w, in_dir), 0);
	assert_int_equal(hybrid_count(w->hybrid), 0);
	make_dir(w, "new");
	make_dir(w, "new/run");
	assert_int_equal(rename(path(w, "new"), path(w, "vm-42")), 0);
	TURN_UNTIL(&w->in, hybrid_count(w->hybrid) == 1);
	assert_serves(w, "vm-42/run/v.sock_" PORT, 42);
	assert_int_equal(unlink(path(w, "vm-42/run/v.sock_" PORT)), 0);
	assert_int_equal(rmdir(path(w, "vm-42/run")), 0);
	assert_int_equal(rmdir(path(w, "vm-42")), 0);
	TURN_UNTIL(&w->in, hybrid_count(w->hybrid) == 0);
}

static void a_directory_in_a_vms_directory_may_come_later(void **state)
{
	struct world *w = *state;

	assert_int_equal(start(w, in_dir), 0);
	make_dir(w, "vm-42");
	ingest_world_settle(&w->in);
	assert_int_equal(hybrid_count(w->hybrid), 0);
	make_dir(w, "vm-42/run"); /* nobody tells, it is looked for */
	TURN_UNTIL(&w->in, hybrid_count(w->hybrid) == 1);
	assert_serves(w, "vm-42/run/v.sock_" PORT, 42);
}

static void a_directory_that_was_replaced_is_another_vms(void **state)
{
	struct world *w = *state;

	make_dir(w, "vm-42");
	make_dir(w, "vm-42/run");
	assert_int_equal(start(w, in_dir), 0);
	make_dir(w, "new");
	make_dir(w, "new/run");
	assert_int_equal(rename(path(w, "vm-42"), path(w, "old")), 0);
	assert_int_equal(rename(path(w, "new"), path(w, "vm-42")), 0);
	TURN_UNTIL(&w->in, exists(w, "vm-42/run/v.sock_" PORT));
	assert_int_equal(hybrid_count(w->hybrid), 1);
	assert_false(exists(w, "old/run/v.sock_" PORT));
	assert_serves(w, "vm-42/run/v.sock_" PORT, 42);
}

static void a_socket_that_was_removed_is_made_again(void **state)
{
	struct world *w = *state;

	make_dir(w, "vm-42");
	make_dir(w, "vm-42/run");
	assert_int_equal(start(w, in_dir), 0);
	assert_int_equal(unlink(path(w, "vm-42/run/v.sock_" PORT)), 0);
	TURN_UNTIL(&w->in, exists(w, "vm-42/run/v.sock_" PORT));
	assert_serves(w, "vm-42/run/v.sock_" PORT, 42);
}

static void only_canonical_cids_of_guests_are_names_of_vms(void **state)
{
	static const char *const names[] = {
		"vm-0.sock",	       "vm-1.sock",   "vm-2.sock",     "vm-4294967295.sock",
		"vm-4294967296.sock",  "vm-042.sock", "vm-+42.sock",   "vm- 42.sock",
		"vm-42x.sock",	       "vm-.sock",    "vm-42.sock~",   "xvm-42.sock",
		"vm-99999999999.sock", "vm-4 2.sock", "vm-42.sock_99", "vm-sock",
	};
	struct world *w = *state;

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		make_file(w, names[i]);
	assert_int_equal(start(w, in_name), 0);
	ingest_world_settle(&w->in);
	assert_int_equal(hybrid_count(w->hybrid), 0);
}

static void links_beneath_the_directory_are_not_followed(void **state)
{
	struct world *w = *state;

	make_dir(w, "elsewhere");
	make_dir(w, "elsewhere/run");
	make_dir(w, "vm-42");
	make_dir(w, "watched");
	assert_int_equal(symlink("../elsewhere", path(w, "watched/vm-43")), 0);
	make_dir(w, "watched/vm-44");
	assert_int_equal(symlink("../../elsewhere/run", path(w, "watched/vm-44/run")), 0);
	make_dir(w, "watched/vm-45");
	make_dir(w, "watched/vm-45/run");
	assert_int_equal(
		start(w, "hybrid: { sockets: [ { pattern: '%s/watched/vm-{cid}/run/v' } ] }"), 0);
	ingest_world_settle(&w->in);
	assert_int_equal(hybrid_count(w->hybrid), 1);
	assert_false(exists(w, "elsewhere/run/v_" PORT));
	assert_serves(w, "watched/vm-45/run/v_" PORT, 45);
}

static void foreign_things_in_a_vms_directory_are_left_alone(void **state)
{
	struct world *w = *state;
	int fd;

	make_dir(w, "vm-42");
	make_dir(w, "vm-42/run");
	fd = make_socket(w, "vm-42/run/v.sock_" PORT, true);
	make_dir(w, "vm-43");
	make_dir(w, "vm-43/run");
	make_file(w, "vm-43/run/v.sock_" PORT);
	make_dir(w, "vm-44");
	make_dir(w, "vm-44/run");
	assert_int_equal(start(w, in_dir), 0);
	assert_int_equal(hybrid_count(w->hybrid), 1);
	assert_serves(w, "vm-44/run/v.sock_" PORT, 44);
	/* It is looked for again: as soon as the name is free, it is ours. */
	assert_int_equal(unlink(path(w, "vm-43/run/v.sock_" PORT)), 0);
	TURN_UNTIL(&w->in, hybrid_count(w->hybrid) == 2);
	w->hybrid = hybrid_free(w->hybrid);
	assert_true(exists(w, "vm-42/run/v.sock_" PORT));
	close(fd);
}

static void a_vm_that_cannot_be_served_is_logged_once(void **state)
{
	struct world *w = *state;
	_cleanup_fclose_ FILE *f = tmpfile();
	int was = dup(STDERR_FILENO);
	char line[1000];
	unsigned n = 0;

	assert_non_null(f);
	make_file(w, "vm-42.sock");
	make_file(w, "vm-42.sock_" PORT);
	assert_true(dup2(fileno(f), STDERR_FILENO) >= 0);
	assert_int_equal(start(w, in_name), 0);
	for (uint32_t i = 0; i < 5; i++) { /* each makes it look again */
		char name[32];

		snprintf(name, sizeof(name), "vm-%u.sock", 100 + i);
		make_file(w, name);
		TURN_UNTIL(&w->in, hybrid_count(w->hybrid) == i + 1);
	}
	assert_true(dup2(was, STDERR_FILENO) >= 0);
	close(was);
	rewind(f);
	while (fgets(line, sizeof(line), f))
		n += strstr(line, "cannot listen for VM 42") != NULL;
	assert_int_equal(n, 1);
}

static void many_vms_at_once_are_all_served(void **state)
{
	struct world *w = *state;
	uint64_t until = clock_usec() + PATIENCE;

	assert_int_equal(start(w, in_name), 0);
	for (uint32_t i = 0; i < 100; i++) {
		char name[32];

		snprintf(name, sizeof(name), "vm-%u.sock", 1000 + i);
		make_file(w, name);
	}
	while (hybrid_count(w->hybrid) < 100) {
		assert_true(clock_usec() < until);
		ingest_world_turn(&w->in, 10 * USEC_PER_MSEC);
	}
	assert_serves(w, "vm-1099.sock_" PORT, 1099);
}

/* ---- the listener --------------------------------------------------------------------------------------- */

/* While connections come without end, other things on the loop have their turns. */
static int count_turn(sd_event_source *source _unused_, int fd _unused_, uint32_t revents _unused_,
		      void *userdata)
{
	(*(unsigned *)userdata)++;
	return 0;
}

static void a_full_backlog_does_not_stop_the_loop(void **state)
{
	struct world *w = *state;
	sd_event_source *source;
	unsigned turns = 0;
	int fds[2];

	assert_int_equal(start(w, single), 0);
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(write(fds[1], "", 1), 1);
	assert_true(sd_event_add_io(w->in.event, &source, fds[0], POLLIN, count_turn, &turns) >= 0);
	for (unsigned i = 0; i < 40; i++) {
		/* More than are accepted in a turn. */
		for (unsigned n = 0; n < 100; n++) {
			int fd = try_connect(w, "vm.sock_" PORT);

			safe_close(fd);
		}
		ingest_world_turn(&w->in, 0);
	}
	assert_true(turns >= 10);
	sd_event_source_disable_unref(source);
	close(fds[0]);
	close(fds[1]);
}

static void without_descriptors_the_listener_rests(void **state)
{
	struct world *w = *state;
	_cleanup_fclose_ FILE *f = tmpfile();
	int was = dup(STDERR_FILENO), fd, hogs[256];
	struct rlimit limit, low;
	unsigned n = 0, said = 0;
	uint64_t start_at;
	char line[1000];

	assert_non_null(f);
	/* It accepts, and says EMFILE after that: the connection is gone. */
	if (strstr(getenv("LD_PRELOAD") ?: "", "valgrind")) {
		/* skip() does not return, so nothing is cleaned up. */
		fclose(TAKE_PTR(f));
		close(was);
		skip();
	}
	assert_int_equal(start(w, single), 0);
	fd = try_connect(w, "vm.sock_" PORT);
	assert_true(fd >= 0);
	assert_true(dup2(fileno(f), STDERR_FILENO) >= 0);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	low = (struct rlimit){ .rlim_cur = 100, .rlim_max = limit.rlim_max };
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
	while (n < ARRAY_SIZE(hogs) && (hogs[n] = dup(fd)) >= 0)
		n++;
	assert_true(n < ARRAY_SIZE(hogs));
	/* The loop waits for time, and is not woken again and again. */
	start_at = clock_usec();
	for (unsigned i = 0; i < 20 && clock_usec() - start_at < USEC_PER_SEC; i++)
		ingest_world_turn(&w->in, USEC_PER_SEC);
	assert_true(clock_usec() - start_at >= 500 * USEC_PER_MSEC);
	while (n > 0)
		close(hogs[--n]);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	TURN_UNTIL(&w->in, ingest_connections(w->in.ingest) == 1);
	assert_true(dup2(was, STDERR_FILENO) >= 0);
	close(was);
	close(fd);
	rewind(f);
	while (fgets(line, sizeof(line), f))
		said += strstr(line, "cannot accept connections") != NULL;
	assert_int_equal(said, 1);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, world_setup, world_teardown)
	const struct CMUnitTest tests[] = {
		TEST(the_relay_owns_the_path_with_the_port),
		TEST(mode_is_0660_or_as_set_whatever_the_umask),
		TEST(group_is_as_set),
		TEST(a_missing_directory_is_an_error),
		TEST(a_stale_socket_of_ours_is_replaced),
		TEST(a_socket_that_somebody_listens_on_is_left_alone),
		TEST(a_listener_with_a_full_backlog_is_no_stale_socket),
		TEST(a_stale_socket_of_another_user_is_left_alone),
		TEST(files_and_links_are_left_alone),
		TEST(what_is_not_ours_any_more_is_not_removed),
		TEST(only_allowed_users_may_connect),
		TEST(vms_come_and_go_by_the_name_of_their_socket),
		TEST(vms_come_and_go_by_the_name_of_their_directory),
		TEST(a_directory_in_a_vms_directory_may_come_later),
		TEST(a_directory_that_was_replaced_is_another_vms),
		TEST(a_socket_that_was_removed_is_made_again),
		TEST(only_canonical_cids_of_guests_are_names_of_vms),
		TEST(links_beneath_the_directory_are_not_followed),
		TEST(foreign_things_in_a_vms_directory_are_left_alone),
		TEST(a_vm_that_cannot_be_served_is_logged_once),
		TEST(many_vms_at_once_are_all_served),
		TEST(a_full_backlog_does_not_stop_the_loop),
		TEST(without_descriptors_the_listener_rests),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
