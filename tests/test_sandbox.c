/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a process in the sandbox can still ask for. There is no way out of one, so each is entered
 * in a child; a pipe catches what the child says when it is killed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "sandbox.h"

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

/* COV=1: _exit() would not write down what ran. */
#ifdef VSR_COVERAGE
extern void __gcov_dump(void);
#else
static void __gcov_dump(void)
{
}
#endif

/* Steps that a child took before it failed; it leaves with the number of the one that did. */
#define STEP(n, condition)        \
	do {                      \
		if (!(condition)) \
			_exit(n); \
	} while (0)

static char top[] = "/tmp/vsr-sandbox-XXXXXX";
static char said[1024];

static const char *in(const char *name)
{
	static char path[4][128];
	static unsigned int n;

	n = (n + 1) % ARRAY_SIZE(path);
	snprintf(path[n], sizeof(path[n]), "%s/%s", top, name);
	return path[n];
}

/* valgrind makes system calls of its own within our process. */
static bool under_valgrind(void)
{
	const char *preload = getenv("LD_PRELOAD");

	return preload && strstr(preload, "vgpreload");
}

/* Runs f in a child; returns its status of waitpid() and leaves in `said` what it wrote to stderr. */
static int run(void (*f)(void))
{
	ssize_t n, len = 0;
	int status, fds[2];
	pid_t child;

	if (under_valgrind())
		skip();
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	child = fork();
	if (child == 0) {
		dup2(fds[1], STDERR_FILENO);
		f();
		__gcov_dump();
		_exit(0);
	}
	close(fds[1]);
	while ((n = read(fds[0], said + len, sizeof(said) - 1 - (size_t)len)) > 0)
		len += n;
	said[len] = '\0';
	close(fds[0]);
	assert_int_equal(waitpid(child, &status, 0), child);
	return status;
}

static void works(void (*f)(void))
{
	int status = run(f);

	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
		fail_msg("status %#x: %s", status, said);
}

/* It dies, and says by which call. */
static void dies(void (*f)(void), const char *name)
{
	int status = run(f);

	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGSYS);
	if (*name && !strstr(said, name))
		fail_msg("'%s' is not in: %s", name, said);
}

static void enter(void)
{
	struct sandbox *s;
	const char *why = NULL;

	STEP(200, prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	STEP(201, sandbox_new(&s) == 0);
	STEP(202, sandbox_allow(s, in("read"), SANDBOX_READ) == 0);
	STEP(203, sandbox_allow(s, in("write"), SANDBOX_WRITE) == 0);
	STEP(204, sandbox_allow(s, in("remove"), SANDBOX_REMOVE) == 0);
	STEP(205, sandbox_allow(s, in("listen"), SANDBOX_LISTEN) == 0);
	STEP(206, sandbox_allow_parent(s, in("config/link"), SANDBOX_READ) == 0);
	STEP(207, sandbox_allow(s, in("none"), SANDBOX_READ) == -ENOENT);
	STEP(208, sandbox_enter(s, false, &why) == 0 && why);
	sandbox_free(s);
}

/* ---- system calls ------------------------------------------------------------------------------ */

static void state_is_shown(void)
{
	struct sandbox_state before = sandbox_state(), after;
	char line[256];
	bool found = false;
	FILE *f;

	STEP(1, !before.seccomp && before.landlock == 0);
	enter();
	after = sandbox_state();
	STEP(2, after.seccomp);
	f = fopen("/proc/self/status", "re");
	STEP(3, f);
	while (fgets(line, sizeof(line), f))
		found |= streq(line, "Seccomp:\t2\n");
	STEP(4, found);
	fclose(f);
}

static void test_the_filter_is_in_force_and_says_so(void **state _unused_)
{
	works(state_is_shown);
}

static void executes(void)
{
	char *argv[] = { (char *)"true", NULL };

	enter();
	execve("/bin/true", argv, argv + 1);
}

static void executes_a_descriptor(void)
{
	char *argv[] = { (char *)"true", NULL };
	int fd = open("/bin/true", O_PATH | O_CLOEXEC);

	enter();
	syscall(SYS_execveat, fd, "", argv, argv + 1, AT_EMPTY_PATH);
}

static void test_nothing_is_executed(void **state _unused_)
{
	dies(executes, "");
	dies(executes_a_descriptor, "");
}

static void packet_socket(void)
{
	enter();
	(void)!socket(AF_PACKET, SOCK_RAW, 0);
}

static void usual_sockets(void)
{
	static const int families[] = { AF_UNIX, AF_INET, AF_INET6 };

	enter();
	for (size_t i = 0; i < ARRAY_SIZE(families); i++) {
		int fd = socket(families[i], SOCK_STREAM | SOCK_CLOEXEC, 0);

		STEP((int)i + 1, fd >= 0 || errno == EAFNOSUPPORT);
	}
}

static void test_sockets_are_of_the_families_that_the_relay_speaks(void **state _unused_)
{
	works(usual_sockets);
	dies(packet_socket, "(socket 0x11, 0x3, 0x0)");
}

/* Sanitizers do these themselves, so their build does not have this test; suite unit has. */
#if !SANITIZED
static void makes_code(void)
{
	void *p;

	enter();
	p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	STEP(1, p != MAP_FAILED);
	mprotect(p, 4096, PROT_READ | PROT_EXEC);
}

static void maps_code(void)
{
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

	enter();
	mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
}

static void forks(void)
{
	enter();
	if (fork() == 0)
		_exit(0);
}

static void signals_others(void)
{
	enter();
	syscall(SYS_tgkill, getppid(), getppid(), 0);
}

static void ignores_sigsys(void)
{
	enter();
	signal(SIGSYS, SIG_IGN);
}

static void ignores_sigsys_with_upper_bits(void)
{
	struct {
		void (*handler)(int);
		unsigned long flags;
		void (*restorer)(void);
		uint64_t mask;
	} ignore = { .handler = SIG_IGN };

	enter();
	syscall(SYS_rt_sigaction, (1ULL << 32) | SIGSYS, &ignore, NULL, 8);
}

static void test_no_code_process_or_signal_to_others_is_made(void **state _unused_)
{
	dies(makes_code, "(mprotect ");
	dies(maps_code, "(mmap ");
	dies(forks, "");
	dies(signals_others, "getppid");
	dies(ignores_sigsys, "(rt_sigaction 0x1f");
	dies(ignores_sigsys_with_upper_bits, "(rt_sigaction 0x10000001f");
}
#endif

static void blocks_sigsys(void)
{
	sigset_t set;

	enter();
	sigfillset(&set);
	sigprocmask(SIG_SETMASK, &set, NULL);
	syscall(SYS_personality, 0);
}

static void test_who_blocks_the_signal_dies_without_a_word(void **state _unused_)
{
	dies(blocks_sigsys, "");
	assert_string_equal(said, "");
}

static void *asks(void *arg)
{
	syscall(SYS_personality, 0xabc);
	return arg;
}

static void thread_asks(void)
{
	pthread_t thread;

	enter();
	if (pthread_create(&thread, NULL, asks, NULL) == 0)
		pthread_join(thread, NULL);
}

static void test_threads_are_bound_too(void **state _unused_)
{
	dies(thread_asks, "(personality 0xabc,");
}

static void aborts(void)
{
	enter();
	abort();
}

static void test_a_failed_assertion_is_still_seen_as_such(void **state _unused_)
{
	int status = run(aborts);

	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGABRT);
}

/* ---- files -------------------------------------------------------------------------------------- */

static int opens(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0600);

	if (fd < 0)
		return -errno;
	close(fd);
	return 0;
}

static int listens(const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), r;

	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
	r = bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 ? -errno : 0;
	close(fd);
	return r;
}

static void needs_landlock(void)
{
	if (sandbox_state().landlock == 0)
		_exit(0);
}

static void uses_files(void)
{
	enter();
	needs_landlock();
	STEP(1, opens("/", O_RDONLY) == -EACCES);
	STEP(2, opens("/etc/passwd", O_RDONLY) == -EACCES);
	STEP(3, opens(in("other"), O_WRONLY | O_CREAT) == -EACCES);

	STEP(10, opens(in("read/file"), O_RDONLY) == 0);
	STEP(11, opens(in("read"), O_RDONLY | O_DIRECTORY) == 0);
	STEP(12, opens(in("read/file"), O_WRONLY) == -EACCES);
	STEP(13, opens(in("read/new"), O_WRONLY | O_CREAT) == -EACCES);
	STEP(14, unlink(in("read/file")) < 0 && errno == EACCES);
	STEP(15, listens(in("read/socket")) == -EACCES);

	STEP(20, opens(in("write/new"), O_WRONLY | O_CREAT | O_TRUNC) == 0);
	STEP(21, rename(in("write/new"), in("write/newer")) == 0);
	STEP(22, mkdir(in("write/aside"), 0700) == 0);
	STEP(23, unlink(in("write/newer")) == 0 && rmdir(in("write/aside")) == 0);

	STEP(30, opens(in("remove/file"), O_RDONLY) == -EACCES);
	STEP(31, unlink(in("remove/file")) == 0);

	STEP(40, listens(in("listen/socket")) == 0);
	STEP(41, unlink(in("listen/socket")) == 0);
	STEP(42, opens(in("listen/new"), O_WRONLY | O_CREAT) == -EACCES);

	/* a link and what it points to, and whatever replaces them */
	STEP(50, opens(in("config/link"), O_RDONLY) == 0);
	STEP(51, opens(in("target/file"), O_RDONLY) == 0);

	STEP(60, opens("/proc/self/statm", O_RDONLY) == 0);
	STEP(61, opens("/proc/1/environ", O_RDONLY) == -EACCES);
}

static void test_files_are_reached_where_the_settings_say(void **state _unused_)
{
	works(uses_files);
}

static int connects(uint16_t port)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), r;

	sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	r = connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 ? -errno : 0;
	close(fd);
	return r;
}

static void uses_ports(void)
{
	struct sockaddr_in any = { .sin_family = AF_INET };
	struct sandbox *s;
	const char *why;

	STEP(200, prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	STEP(201, sandbox_new(&s) == 0);
	STEP(202, sandbox_allow_connect(s, 1) == 0);
	STEP(203, sandbox_enter(s, false, &why) == 0);
	sandbox_free(s);
	if (sandbox_state().landlock < 4)
		_exit(0);
	STEP(1, connects(1) == -ECONNREFUSED);
	STEP(2, connects(2) == -EACCES);
	STEP(3, bind(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), (struct sockaddr *)&any,
		     sizeof(any)) < 0 &&
			errno == EACCES);
}

static void test_only_the_upstreams_port_is_connected_to(void **state _unused_)
{
	works(uses_ports);
}

/* ---- all ---------------------------------------------------------------------------------------- */

static void make_file(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	close(fd);
}

static int make_files(void **state _unused_)
{
	static const char *const dirs[] = {
		"read", "write", "remove", "listen", "config", "target"
	};

	if (!mkdtemp(top))
		return -1;
	for (size_t i = 0; i < ARRAY_SIZE(dirs); i++)
		if (mkdir(in(dirs[i]), 0700) < 0)
			return -1;
	make_file(in("read/file"));
	make_file(in("remove/file"));
	make_file(in("target/file"));
	return symlink(in("target/file"), in("config/link"));
}

static int remove_files(void **state _unused_)
{
	static const char *const names[] = { "read/file", "target/file", "config/link" };
	static const char *const dirs[] = {
		"read", "write", "remove", "listen", "config", "target"
	};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		unlink(in(names[i]));
	unlink(in("remove/file"));
	for (size_t i = 0; i < ARRAY_SIZE(dirs); i++)
		rmdir(in(dirs[i]));
	return rmdir(top);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_filter_is_in_force_and_says_so),
		cmocka_unit_test(test_nothing_is_executed),
		cmocka_unit_test(test_sockets_are_of_the_families_that_the_relay_speaks),
#if !SANITIZED
		cmocka_unit_test(test_no_code_process_or_signal_to_others_is_made),
#endif
		cmocka_unit_test(test_who_blocks_the_signal_dies_without_a_word),
		cmocka_unit_test(test_threads_are_bound_too),
		cmocka_unit_test(test_a_failed_assertion_is_still_seen_as_such),
		cmocka_unit_test(test_files_are_reached_where_the_settings_say),
		cmocka_unit_test(test_only_the_upstreams_port_is_connected_to),
	};

	return cmocka_run_group_tests(tests, make_files, remove_files);
}
