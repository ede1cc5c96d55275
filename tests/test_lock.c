/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "lock.h"

struct place {
	char dir[64], lock[128];
};

static int set_up(void **state)
{
	struct place *p = calloc(1, sizeof(*p));

	if (!p)
		return -1;
	snprintf(p->dir, sizeof(p->dir), "/tmp/vsr-lock-XXXXXX");
	if (!mkdtemp(p->dir))
		return -1;
	snprintf(p->lock, sizeof(p->lock), "%s/%s", p->dir, LOCK_FILE);
	*state = p;
	return 0;
}

static int tear_down(void **state)
{
	struct place *p = *state;

	unlink(p->lock);
	rmdir(p->dir);
	free(p);
	return 0;
}

static void test_a_second_instance_is_refused_and_told_the_holder(void **state)
{
	struct place *p = *state;
	_cleanup_close_ int fd = -1;
	int second = -1;
	pid_t holder = 0;

	assert_int_equal(lock_acquire(p->dir, &fd, &holder), 0);
	assert_true(fd >= 0);
	assert_int_equal(holder, 0);
	assert_int_equal(lock_acquire(p->dir, &second, &holder), -EWOULDBLOCK);
	assert_int_equal(second, -1);
	assert_int_equal(holder, getpid());
}

static void test_the_pid_stands_in_the_file(void **state)
{
	struct place *p = *state;
	_cleanup_close_ int fd = -1;
	_cleanup_fclose_ FILE *f = NULL;
	pid_t holder, pid = 0;

	/* A longer number of an earlier holder leaves nothing behind. */
	f = fopen(p->lock, "we");
	assert_non_null(f);
	fputs("1234567890123\n", f);
	fclose(f);
	assert_int_equal(lock_acquire(p->dir, &fd, &holder), 0);
	f = fopen(p->lock, "re");
	assert_non_null(f);
	assert_int_equal(fscanf(f, "%d", &pid), 1);
	assert_int_equal(pid, getpid());
}

static void test_closing_the_descriptor_ends_the_lock(void **state)
{
	struct place *p = *state;
	_cleanup_close_ int second = -1;
	int fd = -1;
	pid_t holder;

	assert_int_equal(lock_acquire(p->dir, &fd, &holder), 0);
	close(fd);
	assert_int_equal(lock_acquire(p->dir, &second, &holder), 0);
}

static void test_a_killed_holder_leaves_no_lock(void **state)
{
	struct place *p = *state;
	_cleanup_close_ int fd = -1;
	pid_t child, holder = 0;
	int ready[2], status;
	char byte;

	assert_int_equal(pipe(ready), 0);
	child = fork();
	if (child == 0) {
		int mine;

		if (lock_acquire(p->dir, &mine, &holder) == 0 && write(ready[1], "x", 1) == 1)
			sleep(60);
		_exit(1);
	}
	assert_true(child > 0);
	close(ready[1]);
	assert_int_equal(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	assert_int_equal(lock_acquire(p->dir, &fd, &holder), -EWOULDBLOCK);
	assert_int_equal(holder, child);
	kill(child, SIGKILL);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(lock_acquire(p->dir, &fd, &holder), 0);
}

static void test_a_missing_directory_is_made_and_a_missing_parent_is_an_error(void **state)
{
	struct place *p = *state;
	_cleanup_close_ int fd = -1;
	char dir[80], file[160], deep[160];
	pid_t holder;

	snprintf(dir, sizeof(dir), "%s/run", p->dir);
	snprintf(file, sizeof(file), "%s/%s", dir, LOCK_FILE);
	snprintf(deep, sizeof(deep), "%s/none/run", p->dir);
	assert_int_equal(lock_acquire(dir, &fd, &holder), 0);
	unlink(file);
	rmdir(dir);
	assert_int_equal(lock_acquire(deep, &fd, &holder), -ENOENT);
}

static void test_what_others_put_in_the_place_of_the_file_is_not_followed(void **state)
{
	struct place *p = *state;
	char target[80];
	pid_t holder;
	int fd = -1;

	snprintf(target, sizeof(target), "%s/target", p->dir);
	assert_int_equal(symlink(target, p->lock), 0);
	assert_int_equal(lock_acquire(p->dir, &fd, &holder), -ELOOP);
	assert_int_equal(access(target, F_OK), -1);
	unlink(p->lock);

	assert_int_equal(mkfifo(p->lock, 0600), 0);
	assert_int_equal(lock_acquire(p->dir, &fd, &holder), -EISDIR);
	unlink(p->lock);

	assert_int_equal(mkdir(p->lock, 0700), 0);
	assert_int_equal(lock_acquire(p->dir, &fd, &holder), -EISDIR);
	rmdir(p->lock);
	assert_int_equal(fd, -1);
}

/* What happens on a BPF file system mounted in a namespace of our own: 0, 77 if that is not ours
 * to do, else the step that went wrong. */
static int lock_on_bpf(const char *dir)
{
	pid_t holder = 0;
	int fd, second;

	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("bpf", dir, "bpf", 0, NULL) < 0)
		return 77;
	if (lock_acquire(dir, &fd, &holder) != 0)
		return 1;
	if (lock_acquire(dir, &second, &holder) != -EWOULDBLOCK)
		return 2;
	if (holder != getpid())
		return 3;
	close(fd);
	return lock_acquire(dir, &fd, &holder) == 0 ? 0 : 4;
}

static void test_a_directory_of_pinned_maps_is_locked_itself(void **state)
{
	struct place *p = *state;
	pid_t child = fork();
	int status;

	if (child == 0)
		_exit(lock_on_bpf(p->dir));
	assert_true(child > 0);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 77)
		skip();
	assert_int_equal(WEXITSTATUS(status), 0);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_a_second_instance_is_refused_and_told_the_holder),
		TEST(test_the_pid_stands_in_the_file),
		TEST(test_closing_the_descriptor_ends_the_lock),
		TEST(test_a_killed_holder_leaves_no_lock),
		TEST(test_a_missing_directory_is_made_and_a_missing_parent_is_an_error),
		TEST(test_what_others_put_in_the_place_of_the_file_is_not_followed),
		TEST(test_a_directory_of_pinned_maps_is_locked_itself),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
