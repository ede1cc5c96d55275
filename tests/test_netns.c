/* SPDX-License-Identifier: Apache-2.0 */
/* What needs a kernel with vsock namespaces is in tests/lib/netns.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "netns.h"

/* A port that nobody else of this machine is likely to have; above those that need a capability. */
#define PORT (600000 + (uint32_t)getpid())

static ino_t inode_of(const char *path)
{
	struct stat st;

	assert_int_equal(stat(path, &st), 0);
	return st.st_ino;
}

static void what_is_no_network_namespace_is_not_entered(void **state _unused_)
{
	static const struct {
		const char *path, *why;
	} cases[] = {
		{ "/proc/self/nothing", "No such file or directory" },
		{ "/proc/self/status", "it is not a network namespace" },
		{ "/proc/self/ns/mnt", "it is not a network namespace" },
	};
	ino_t before = inode_of("/proc/self/ns/net");

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct netns netns = { .inode = 7 };
		const char *why = "";
		int fd = -1;

		assert_int_equal(netns_listen(cases[i].path, PORT, 1, &fd, &netns, &why),
				 NETNS_NOT_ENTERED);
		assert_string_equal(why, cases[i].why);
		assert_int_equal(fd, -1);
		assert_int_equal(netns.inode, 7);
		assert_int_equal(inode_of("/proc/self/ns/net"), before);
	}
}

/* In a namespace of its own until it is killed. */
static pid_t start_elsewhere(void)
{
	int ready[2];
	char c = 0;
	pid_t pid;

	assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		c = unshare(CLONE_NEWNET) == 0;
		(void)!write(ready[1], &c, 1);
		for (;;)
			pause();
	}
	assert_int_equal(read(ready[0], &c, 1), 1);
	close(ready[0]);
	close(ready[1]);
	if (!c) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		return -1;
	}
	return pid;
}

static void another_one_is_entered_and_left_again(void **state _unused_)
{
	ino_t before = inode_of("/proc/self/ns/net");
	struct netns netns = { .inode = 0 };
	pid_t pid = start_elsewhere();
	const char *why = "";
	char path[64];
	int fd = -1, r;

	if (pid < 0)
		skip(); /* not root */
	snprintf(path, sizeof(path), "/proc/%d/ns/net", (int)pid);
	r = netns_listen(path, PORT, 1, &fd, &netns, &why);
	assert_int_equal(inode_of("/proc/self/ns/net"), before);
	if (r != NETNS_NOT_ENTERED) {
		assert_int_equal(netns.inode, inode_of(path));
		assert_int_not_equal(netns.inode, before);
	}
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	/* A sandbox may let us make namespaces and not enter them; a kernel may have no AF_VSOCK. */
	if (r == -EAFNOSUPPORT || r == NETNS_NOT_ENTERED)
		skip();
	assert_int_equal(r, 0);
	safe_close(fd);
}

static void every_mode_has_a_name(void **state _unused_)
{
	assert_string_equal(netns_mode_name(NETNS_NONE), "none");
	assert_string_equal(netns_mode_name(NETNS_UNKNOWN), "unknown");
	assert_string_equal(netns_mode_name(NETNS_GLOBAL), "global");
	assert_string_equal(netns_mode_name(NETNS_LOCAL), "local");
	/* What it is here, this machine decides. */
	assert_in_range(netns_mode(), NETNS_NONE, NETNS_LOCAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_no_network_namespace_is_not_entered),
		cmocka_unit_test(another_one_is_entered_and_left_again),
		cmocka_unit_test(every_mode_has_a_name),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
