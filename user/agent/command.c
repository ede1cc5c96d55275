/* SPDX-License-Identifier: Apache-2.0 */
#include "command.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include "clock.h"
#include "log.h"

#define FIRST_ROOM (64 * KIB)
#define WAIT_STEP  (10 * USEC_PER_MSEC)

/* The environment, but for the language: what is written is to be parsed. */
static char **command_environment(void)
{
	size_t n = 0, out = 0;
	char **env;

	while (environ[n])
		n++;
	env = calloc(n + 2, sizeof(*env));
	if (!env)
		return NULL;
	for (size_t i = 0; i < n; i++)
		if (strncmp(environ[i], "LC_", 3) != 0 && strncmp(environ[i], "LANG", 4) != 0)
			env[out++] = environ[i];
	env[out] = (char *)"LC_ALL=C";
	return env;
}

/* Its output is ours, and nothing else that we have open. Returns an errno, or 0. */
static int redirect(posix_spawn_file_actions_t *actions, int out_fd)
{
	int r;

	r = posix_spawn_file_actions_addopen(actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
	if (r == 0)
		r = posix_spawn_file_actions_adddup2(actions, out_fd, STDOUT_FILENO);
	if (r == 0 && log_level() < LOG_DEBUG)
		r = posix_spawn_file_actions_addopen(actions, STDERR_FILENO, "/dev/null", O_WRONLY,
						     0);
	return r;
}

/* In a process group of its own, so that its children can be ended with it. */
static int spawn(char *const argv[], int out_fd, pid_t *ret)
{
	_cleanup_free_ char **env = command_environment();
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t none;
	int r;

	if (!env)
		return -ENOMEM;
	sigemptyset(&none);
	r = posix_spawn_file_actions_init(&actions);
	if (r != 0)
		return -r;
	r = redirect(&actions, out_fd);
	if (r != 0) {
		posix_spawn_file_actions_destroy(&actions);
		return -r;
	}
	/* (glibc's functions for attributes do not fail.) */
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
	posix_spawnattr_setpgroup(&attributes, 0);
	posix_spawnattr_setsigmask(&attributes, &none);
	r = posix_spawnp(ret, argv[0], &actions, &attributes, argv, env);
	posix_spawnattr_destroy(&attributes);
	posix_spawn_file_actions_destroy(&actions);
	return -r;
}

/* Reads fd to its end into *data, which the caller frees whatever happens. */
static int read_all(int fd, size_t max, uint64_t deadline, int stop_fd, char **data, size_t *len)
{
	struct pollfd fds[] = {
		{ .fd = fd, .events = POLLIN },
		{ .fd = stop_fd, .events = POLLIN },
	};
	size_t room = 0;

	for (;;) {
		ssize_t n;

		if (*len == room) {
			char *bigger;

			room = MIN(room ? room * 2 : (size_t)FIRST_ROOM, max + 1);
			bigger = *len < room ? realloc(*data, room + 1) : NULL;
			if (!bigger)
				return *len < room ? -ENOMEM : -EFBIG;
			*data = bigger;
		}
		n = poll(fds, ARRAY_SIZE(fds), clock_poll_timeout(deadline));
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0 && fds[1].revents)
			return -ECANCELED;
		if (clock_now() >= deadline)
			return -ETIMEDOUT;
		if (n <= 0)
			continue;
		n = read(fd, *data + *len, room - *len);
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n == 0)
			return 0;
		*len += n > 0 ? n : 0;
		if (*len > max)
			return -EFBIG;
	}
}

/*
 * Waits for the end of pid, whose output has ended already, and for no longer than deadline. It
 * stays to be reaped, so that its id remains that of its group.
 */
static int wait_end(pid_t pid, uint64_t deadline)
{
	for (;;) {
		siginfo_t info = {};

		if (waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) < 0 && errno != EINTR)
			return -errno;
		if (info.si_pid == pid) {
			if (info.si_code != CLD_EXITED)
				return -EIO;
			/* 127 is how posix_spawn() may say that there is no such program. */
			return info.si_status == 0 ? 0 : info.si_status == 127 ? -ENOENT : -EIO;
		}
		if (clock_now() >= deadline)
			return -ETIMEDOUT;
		usleep(WAIT_STEP);
	}
}

int command_run(char *const argv[], size_t max, uint64_t timeout, int stop_fd, char **ret,
		size_t *ret_len)
{
	uint64_t deadline = usec_add(clock_now(), timeout);
	_cleanup_free_ char *data = NULL;
	_cleanup_close_ int out = -1, in = -1;
	size_t len = 0;
	pid_t pid;
	int fds[2], r;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return -errno;
	in = fds[0];
	out = fds[1];
	r = spawn(argv, out, &pid);
	if (r < 0)
		return r;
	out = safe_close(out);
	r = read_all(in, max, deadline, stop_fd, &data, &len);
	if (r == 0)
		r = wait_end(pid, deadline);
	/* What it left behind in its group ends too. */
	kill(-pid, SIGKILL);
	waitpid(pid, NULL, 0);
	if (r < 0)
		return r;
	data[len] = '\0';
	*ret = TAKE_PTR(data);
	*ret_len = len;
	return 0;
}
