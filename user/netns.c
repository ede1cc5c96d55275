/* SPDX-License-Identifier: Apache-2.0 */
#include "netns.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>

#include "listener.h"

/* /proc/sys/net shows who reads it its own network namespace. */
#define SYSCTLS "/proc/sys/net"
#define NS_MODE SYSCTLS "/vsock/ns_mode"

const char *netns_mode_name(enum netns_mode mode)
{
	static const char *const names[] = {
		[NETNS_NONE] = "none",
		[NETNS_UNKNOWN] = "unknown",
		[NETNS_GLOBAL] = "global",
		[NETNS_LOCAL] = "local",
	};

	return names[mode];
}

enum netns_mode netns_mode(void)
{
	_cleanup_close_ int fd = open(NS_MODE, O_RDONLY | O_CLOEXEC);
	char text[16] = "";

	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		return access(SYSCTLS, X_OK) == 0 ? NETNS_NONE : NETNS_UNKNOWN;
	return strncmp(text, "local", strlen("local")) == 0 ? NETNS_LOCAL : NETNS_GLOBAL;
}

static int not_entered(const char **ret_why)
{
	*ret_why = errno == EINVAL  ? "it is not a network namespace"
		   : errno == EPERM ? "entering it needs CAP_SYS_ADMIN"
				    : strerror(errno);
	return NETNS_NOT_ENTERED;
}

int netns_listen(const char *path, uint32_t port, uint32_t backlog, int *ret_fd, struct netns *ret,
		 const char **ret_why)
{
	_cleanup_close_ int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	/* O_NONBLOCK: a FIFO there must not stop the start. */
	_cleanup_close_ int there = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;
	int r;

	if (home < 0 || there < 0 || fstat(there, &st) < 0 || setns(there, CLONE_NEWNET) < 0)
		return not_entered(ret_why);
	*ret = (struct netns){ .mode = netns_mode(), .inode = st.st_ino };
	r = listener_vsock_open(port, backlog, ret_fd);
	if (setns(home, CLONE_NEWNET) < 0) {
		if (r == 0)
			safe_close(*ret_fd);
		return -ENOTRECOVERABLE;
	}
	return r;
}
