/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A drop cannot be undone, so each one happens in a child. As root the children become another
 * user; without, they prove that the drop is harmless.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "privilege.h"

#define SKIPPED 77

/* Steps that a child took before it failed; it leaves with the number of the one that did. */
#define STEP(n, condition)        \
	do {                      \
		if (!(condition)) \
			_exit(n); \
	} while (0)

static void in_child(void (*f)(void))
{
	pid_t child = fork();
	int status;

	if (child == 0) {
		f();
		_exit(0);
	}
	assert_true(child > 0);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == SKIPPED)
		skip();
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void needs_root(void)
{
	if (geteuid() != 0)
		_exit(SKIPPED);
}

/* The line of /proc/self/status that begins with name, behind it. */
static bool status_is(const char *name, const char *value)
{
	_cleanup_fclose_ FILE *f = fopen("/proc/self/status", "re");
	size_t n = strlen(name);
	char line[512];

	while (f && fgets(line, sizeof(line), f)) {
		if (strncmp(line, name, n) != 0 || line[n] != ':')
			continue;
		line[strcspn(line, "\n")] = '\0';
		return streq(line + n + 1 + strspn(line + n + 1, " \t"), value);
	}
	return false;
}

static void become_nobody(void)
{
	struct privilege_identity id;

	needs_root();
	STEP(1, privilege_resolve("65534", "65534", &id) == 0);
	STEP(2, privilege_drop(&id, false) == 0);
	STEP(3, status_is("Uid", "65534\t65534\t65534\t65534"));
	STEP(4, status_is("Gid", "65534\t65534\t65534\t65534"));
	STEP(5, status_is("CapInh", "0000000000000000"));
	STEP(6, status_is("CapPrm", "0000000000000000"));
	STEP(7, status_is("CapEff", "0000000000000000"));
	STEP(8, status_is("CapBnd", "0000000000000000"));
	STEP(9, status_is("CapAmb", "0000000000000000"));
	STEP(10, status_is("NoNewPrivs", "1"));
}

static void test_after_the_drop_the_kernel_shows_no_privilege(void **state)
{
	(void)state;
	in_child(become_nobody);
}

/* As in /proc/self/status, before the drop and after it. */
static void tell_state(void)
{
	struct privilege_state p;
	char text[17];

	needs_root();
	STEP(1, privilege_state(&p) == 0);
	STEP(2, p.uid == 0 && p.effective != 0 && p.bounding != 0);
	snprintf(text, sizeof(text), "%016" PRIx64, p.bounding);
	STEP(3, status_is("CapBnd", text));
	snprintf(text, sizeof(text), "%016" PRIx64, p.effective);
	STEP(4, status_is("CapEff", text));
	become_nobody();
	STEP(20, privilege_state(&p) == 0);
	STEP(21, p.uid == 65534 && p.gid == 65534 && p.no_new_privs);
	STEP(22, !(p.effective | p.permitted | p.inheritable | p.bounding | p.ambient));
	snprintf(text, sizeof(text), "%d", p.seccomp);
	STEP(23, status_is("Seccomp", text));
}

static void test_the_state_is_told_as_the_kernel_has_it(void **state)
{
	(void)state;
	in_child(tell_state);
}

static void come_back(void)
{
	become_nobody();
	STEP(20, setuid(0) < 0);
	STEP(21, setgid(0) < 0);
	STEP(22, setgroups(0, NULL) < 0);
	STEP(23, chown("/", 0, 0) < 0);
}

static void test_there_is_no_way_back(void **state)
{
	(void)state;
	in_child(come_back);
}

static void drop_twice(void)
{
	struct privilege_identity id;

	become_nobody();
	STEP(20, privilege_resolve("65534", "65534", &id) == 0);
	STEP(21, privilege_drop(&id, false) == 0);
	STEP(22, privilege_drop(NULL, false) == 0);
}

static void test_the_drop_may_be_repeated(void **state)
{
	(void)state;
	in_child(drop_twice);
}

static void drop_root_but_stay(void)
{
	needs_root();
	STEP(1, privilege_drop(NULL, false) == 0);
	STEP(2, geteuid() == 0);
	STEP(3, status_is("CapEff", "0000000000000000"));
	STEP(4, status_is("CapBnd", "0000000000000000"));
	STEP(5, setuid(65534) < 0);
}

static void test_who_stays_root_has_no_capability_left(void **state)
{
	(void)state;
	in_child(drop_root_but_stay);
}

static void drop_without_privilege(void)
{
	struct privilege_identity id;

	if (geteuid() == 0)
		STEP(1, setgroups(0, NULL) == 0 && setresgid(65534, 65534, 65534) == 0 &&
				setresuid(65534, 65534, 65534) == 0);
	STEP(2, privilege_drop(NULL, false) == 0);
	STEP(3, status_is("NoNewPrivs", "1"));
	id = (struct privilege_identity){ .uid = geteuid(), .gid = getegid() };
	STEP(4, privilege_drop(&id, false) == 0);
	id.uid = geteuid() + 1;
	STEP(5, privilege_drop(&id, false) == -EPERM);
}

static void test_without_privilege_it_is_harmless_and_another_user_is_refused(void **state)
{
	(void)state;
	in_child(drop_without_privilege);
}

static void limit_cores(void)
{
	struct rlimit core;

	STEP(1, privilege_drop(NULL, false) == 0);
	STEP(2, getrlimit(RLIMIT_CORE, &core) == 0);
	STEP(3, core.rlim_cur == 0 && core.rlim_max == 0);
}

static void test_no_core_dump_holds_a_report(void **state)
{
	(void)state;
	in_child(limit_cores);
}

static void replace_groups(void)
{
	struct privilege_identity id;
	gid_t groups[8];
	gid_t many[] = { 1, 2, 3 };

	needs_root();
	STEP(1, setgroups(3, many) == 0);
	STEP(2, privilege_resolve("4242", "4243", &id) == 0);
	STEP(3, id.n_groups == 0);
	STEP(4, privilege_add_group(&id, "777") == 0);
	STEP(5, privilege_add_group(&id, "777") == 0);
	STEP(6, privilege_drop(&id, false) == 0);
	STEP(7, getgroups(8, groups) == 1 && groups[0] == 777);
	STEP(8, getegid() == 4243);
}

static void test_groups_of_who_started_it_are_given_up(void **state)
{
	(void)state;
	in_child(replace_groups);
}

static void *wait_on(void *mutex)
{
	pthread_mutex_lock(mutex);
	return NULL;
}

static void drop_with_threads(void)
{
	pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	pthread_t thread;

	pthread_mutex_lock(&mutex);
	STEP(1, pthread_create(&thread, NULL, wait_on, &mutex) == 0);
	STEP(2, privilege_drop(NULL, false) == -EBUSY);
	STEP(3, status_is("NoNewPrivs", "0"));
	pthread_mutex_unlock(&mutex);
	pthread_join(thread, NULL);
}

static void test_threads_that_would_keep_their_privileges_are_refused(void **state)
{
	(void)state;
	in_child(drop_with_threads);
}

static void test_users_and_groups_are_names_or_numbers(void **state)
{
	static const char *const no_numbers[] = {
		"",	      "-1",	    "+1",
		" 1",	      "1x",	    "0x1",
		"4294967295", "4294967296", "99999999999999999999"
	};
	struct privilege_identity id = { .uid = 42 };

	(void)state;
	assert_int_equal(privilege_resolve("root", "", &id), 0);
	assert_int_equal(id.uid, 0);
	assert_int_equal(id.gid, 0);
	assert_true(id.n_groups >= 1);
	assert_int_equal(privilege_resolve("0", "", &id), 0);
	assert_int_equal(privilege_resolve("root", "12", &id), 0);
	assert_int_equal(id.gid, 12);

	id.uid = 42;
	assert_int_equal(privilege_resolve("no-such-user", "", &id), -ESRCH);
	assert_int_equal(privilege_resolve("3999999999", "", &id), -ESRCH);
	assert_int_equal(privilege_resolve("4294967295", "0", &id), -ESRCH);
	assert_int_equal(privilege_resolve("root", "no-such-group", &id), -ENOENT);
	/* No numbers, so names that nobody has. */
	for (size_t i = 0; i < ARRAY_SIZE(no_numbers); i++) {
		assert_int_equal(privilege_resolve(no_numbers[i], "0", &id), -ESRCH);
		assert_int_equal(privilege_resolve("root", no_numbers[i], &id),
				 *no_numbers[i] ? -ENOENT : 0);
		id.uid = 42;
	}
	assert_int_equal(id.uid, 42);
	assert_int_equal(privilege_resolve("3999999999", "3999999999", &id), 0);
	assert_int_equal(id.uid, 3999999999);
	assert_int_equal(privilege_add_group(&id, "no-such-group"), -ENOENT);
}

static void test_supplementary_groups_are_bounded(void **state)
{
	struct privilege_identity id;
	char gid[16];

	(void)state;
	assert_int_equal(privilege_resolve("3999999999", "1", &id), 0);
	for (int i = 0; i < PRIVILEGE_GROUPS_MAX; i++) {
		snprintf(gid, sizeof(gid), "%d", 1000 + i);
		assert_int_equal(privilege_add_group(&id, gid), 0);
	}
	assert_int_equal(privilege_add_group(&id, "5000"), -E2BIG);
	assert_int_equal(privilege_add_group(&id, "1000"), 0);
}

static void read_as_nobody(void)
{
	char dir[] = "/tmp/vsr-privilege-XXXXXX", path[64];
	const char *paths[] = { "", "/", path, NULL };
	const char *bad = NULL;
	int fd;

	needs_root();
	STEP(101, mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/secret", dir);
	STEP(102, chmod(dir, 0755) == 0);
	fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	STEP(103, fd >= 0);
	if (fork() == 0) {
		STEP(104, privilege_check_readable(paths, &bad) == 0 && !bad);
		become_nobody();
		STEP(105, privilege_check_readable(paths, &bad) == -EACCES && bad == path);
		_exit(0);
	}
	wait(&fd);
	unlink(path);
	rmdir(dir);
	_exit(WIFEXITED(fd) ? WEXITSTATUS(fd) : 1);
}

static void test_what_the_service_user_cannot_read_is_named(void **state)
{
	static const char *const missing[] = { "/", "/nonexistent/x", NULL };
	const char *bad = NULL;

	(void)state;
	assert_int_equal(privilege_check_readable(missing, &bad), -ENOENT);
	assert_string_equal(bad, "/nonexistent/x");
	in_child(read_as_nobody);
}

/* In a directory that is ours: who may not give it to root makes none. */
static void give_to_root(const char *dir)
{
	int fd = -1;

	if (geteuid() == 0)
		become_nobody();
	STEP(110, chdir(dir) == 0);
	STEP(111, privilege_make_directory(AT_FDCWD, "new", 0700, 0, 0, &fd) == -EPERM && fd == -1);
	STEP(112, access("new", F_OK) < 0 && errno == ENOENT);
	/* Ours, and it stays so. */
	STEP(113, privilege_make_directory(AT_FDCWD, "new", 0700, (uid_t)-1, (gid_t)-1, &fd) == 0);
	STEP(114, privilege_make_directory(AT_FDCWD, "new", 0700, 0, 0, &fd) == 0);
	STEP(115, symlink("new", "link") == 0);
	STEP(116, privilege_make_directory(AT_FDCWD, "link", 0700, 0, 0, &fd) == 0);
	STEP(117,
	     privilege_make_directory(open(".", O_RDONLY), "link", 0700, 0, 0, &fd) == -ENOTDIR);
	STEP(118, privilege_make_directory(AT_FDCWD, "no/new", 0700, 0, 0, &fd) == -ENOENT);
	_exit(0);
}

static void test_a_directory_that_cannot_be_given_away_is_not_left_behind(void **state _unused_)
{
	char dir[] = "/tmp/vsr-privilege-XXXXXX";
	int status, at;
	pid_t child;

	assert_non_null(mkdtemp(dir));
	assert_int_equal(chmod(dir, 0777), 0);
	child = fork();
	if (child == 0)
		give_to_root(dir);
	assert_int_equal(waitpid(child, &status, 0), child);
	at = open(dir, O_RDONLY | O_DIRECTORY);
	unlinkat(at, "link", 0);
	unlinkat(at, "new", AT_REMOVEDIR);
	close(at);
	assert_int_equal(rmdir(dir), 0);
	assert_int_equal(status, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_after_the_drop_the_kernel_shows_no_privilege),
		cmocka_unit_test(test_the_state_is_told_as_the_kernel_has_it),
		cmocka_unit_test(test_there_is_no_way_back),
		cmocka_unit_test(test_the_drop_may_be_repeated),
		cmocka_unit_test(test_who_stays_root_has_no_capability_left),
		cmocka_unit_test(test_without_privilege_it_is_harmless_and_another_user_is_refused),
		cmocka_unit_test(test_no_core_dump_holds_a_report),
		cmocka_unit_test(test_groups_of_who_started_it_are_given_up),
		cmocka_unit_test(test_threads_that_would_keep_their_privileges_are_refused),
		cmocka_unit_test(test_users_and_groups_are_names_or_numbers),
		cmocka_unit_test(test_supplementary_groups_are_bounded),
		cmocka_unit_test(test_what_the_service_user_cannot_read_is_named),
		cmocka_unit_test(test_a_directory_that_cannot_be_given_away_is_not_left_behind),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
