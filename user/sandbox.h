/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sandbox: what a relay that a guest has taken over could still ask the kernel for. A seccomp
 * filter lets the system calls through that the relay makes once it serves guests, and Landlock
 * the directories and TCP ports that its settings name. Both can only be narrowed afterwards.
 *
 * Order: sandbox_new() and the sandbox_allow_...() calls with the privileges of the start, as some
 * directories cannot be reached after the drop; then privilege_drop(); then sandbox_enter(), before
 * the first thread is started, as Landlock binds only the thread that asks and its children.
 *
 * Who needs one more system call adds it to the lists at the top of sandbox.c. One that is not
 * listed ends the process by SIGSYS; a line on stderr says which one it was, with its first
 * arguments, and the kernel's log says the same of calls that are never allowed.
 */
#ifndef VSR_SANDBOX_H
#define VSR_SANDBOX_H

#include "util.h"

struct sandbox;

/* What may be done in a directory and below it; of a file only what concerns files counts. */
enum sandbox_access {
	SANDBOX_READ,	/* list, open for reading */
	SANDBOX_WRITE,	/* besides: make, write, rename and remove files and directories */
	SANDBOX_REMOVE, /* remove files: pins, sockets of our own */
	SANDBOX_LISTEN, /* list, make and remove AF_UNIX sockets */
};

/* A sandbox without any rule. A kernel without Landlock is no error: sandbox_enter() says so.
 * Returns 0, -ENOMEM. */
int sandbox_new(struct sandbox **ret);
/* Forgets rules that are not in force yet. */
struct sandbox *sandbox_free(struct sandbox *s);
DEFINE_CLEANUP(struct sandbox, sandbox_free);

/* Allows access to path and all below it. The path is followed now: what is later put in its place
 * is something else, so allow the directory of a file that is replaced by rename(). Returns 0,
 * -errno of open() (nothing is allowed then). */
int sandbox_allow(struct sandbox *s, const char *path, enum sandbox_access access);

/* The same for what a descriptor was opened on. */
int sandbox_allow_fd(struct sandbox *s, int fd, enum sandbox_access access);

/* The same for the directory that path is in, and, if path is a link, for that of its target. */
int sandbox_allow_parent(struct sandbox *s, const char *path, enum sandbox_access access);

/* Allows TCP connections to that port; others, and listening on TCP, are refused by kernels since
 * 6.7. Returns 0, -errno. */
int sandbox_allow_connect(struct sandbox *s, uint16_t port);

/*
 * From here on for good. Needs no_new_privs. Returns 0 (*ret_why is "", or says what this kernel
 * does not have), or, if `required`, -EOPNOTSUPP with *ret_why set; -ENOMEM; another -errno of the
 * kernel. After an error the process may be half-way and must end.
 */
int sandbox_enter(struct sandbox *s, bool required, const char **ret_why);

/* What is in force, for people (`vsock-relayctl`, metrics). */
struct sandbox_state {
	bool seccomp;
	unsigned int landlock; /* ABI version in force; 0: none */
};
struct sandbox_state sandbox_state(void);

#endif
