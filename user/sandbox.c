/* SPDX-License-Identifier: Apache-2.0 */
#include "sandbox.h"

#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/landlock.h>
#include <linux/sockios.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>

/* Instrumented builds ask for more: the sanitizers' own work, reports, and the leak check, which
 * stops the process by ptrace from a clone of it. */
#ifndef __has_feature /* clang's way to say it */
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || \
	__has_feature(address_sanitizer)
#define SANITIZED true
#else
#define SANITIZED false
#endif

/* ---- the system calls ------------------------------------------------------------------------- */

/*
 * Any arguments. From traces of the suites host, daemon and upstream and of the VM suites; then
 * what libc, libsystemd, libmicrohttpd, c-ares and OpenSSL take instead on other versions and
 * machines. What is not used on a machine costs nothing.
 */
static const int plain[] = {
	/* memory */
	SCMP_SYS(brk),
	SCMP_SYS(madvise),
	SCMP_SYS(mremap),
	SCMP_SYS(munmap),
	/* threads: the disk worker */
	SCMP_SYS(futex),
	SCMP_SYS(get_robust_list),
	SCMP_SYS(gettid),
	SCMP_SYS(membarrier),
	SCMP_SYS(rseq),
	SCMP_SYS(sched_getaffinity),
	SCMP_SYS(sched_yield),
	SCMP_SYS(set_robust_list),
	SCMP_SYS(set_tid_address),
	/* the event loop */
	SCMP_SYS(epoll_create1),
	SCMP_SYS(epoll_ctl),
	SCMP_SYS(epoll_pwait),
	SCMP_SYS(epoll_pwait2),
	SCMP_SYS(epoll_wait),
	SCMP_SYS(eventfd2),
	SCMP_SYS(inotify_add_watch),
	SCMP_SYS(inotify_init1),
	SCMP_SYS(inotify_rm_watch),
	SCMP_SYS(poll),
	SCMP_SYS(ppoll),
	SCMP_SYS(signalfd4),
	SCMP_SYS(timerfd_create),
	SCMP_SYS(timerfd_gettime),
	SCMP_SYS(timerfd_settime),
	/* time and chance */
	SCMP_SYS(clock_getres),
	SCMP_SYS(clock_gettime),
	SCMP_SYS(clock_nanosleep),
	SCMP_SYS(getrandom),
	SCMP_SYS(gettimeofday),
	SCMP_SYS(nanosleep),
	SCMP_SYS(time),
	/* descriptors and files; Landlock says which */
	SCMP_SYS(access),
	SCMP_SYS(chmod),
	SCMP_SYS(close),
	SCMP_SYS(close_range),
	SCMP_SYS(dup),
	SCMP_SYS(dup3),
	SCMP_SYS(faccessat),
	SCMP_SYS(faccessat2),
	SCMP_SYS(fadvise64),
	SCMP_SYS(fallocate),
	SCMP_SYS(fchmod),
	SCMP_SYS(fchmodat),
	SCMP_SYS(fchown),
	SCMP_SYS(fchownat),
	SCMP_SYS(fcntl),
	SCMP_SYS(fdatasync),
	SCMP_SYS(flock),
	SCMP_SYS(fstat),
	SCMP_SYS(fstatfs),
	SCMP_SYS(fsync),
	SCMP_SYS(ftruncate),
	SCMP_SYS(getdents64),
	SCMP_SYS(lseek),
	SCMP_SYS(lstat),
	SCMP_SYS(mkdir),
	SCMP_SYS(memfd_create), /* libsystemd: long lines for the journal */
	SCMP_SYS(mkdirat),
	SCMP_SYS(newfstatat),
	SCMP_SYS(open),
	SCMP_SYS(openat),
	SCMP_SYS(pread64),
	SCMP_SYS(preadv),
	SCMP_SYS(pwrite64),
	SCMP_SYS(pwritev),
	SCMP_SYS(read),
	SCMP_SYS(readlink),
	SCMP_SYS(readlinkat),
	SCMP_SYS(readv),
	SCMP_SYS(rename),
	SCMP_SYS(renameat),
	SCMP_SYS(renameat2),
	SCMP_SYS(rmdir),
	SCMP_SYS(stat),
	SCMP_SYS(statfs),
	SCMP_SYS(statx),
	SCMP_SYS(umask),
	SCMP_SYS(unlink),
	SCMP_SYS(unlinkat),
	SCMP_SYS(write),
	SCMP_SYS(writev),
	/* sockets; socket() itself is below */
	SCMP_SYS(accept),
	SCMP_SYS(accept4),
	SCMP_SYS(bind),
	SCMP_SYS(connect),
	SCMP_SYS(getpeername),
	SCMP_SYS(getsockname),
	SCMP_SYS(getsockopt),
	SCMP_SYS(listen),
	SCMP_SYS(recvfrom),
	SCMP_SYS(recvmmsg),
	SCMP_SYS(recvmsg),
	SCMP_SYS(sendmmsg),
	SCMP_SYS(sendmsg),
	SCMP_SYS(sendto),
	SCMP_SYS(setsockopt),
	SCMP_SYS(shutdown),
	/* who and how much; nothing of it changes anything */
	SCMP_SYS(getegid),
	SCMP_SYS(geteuid),
	SCMP_SYS(getgid),
	SCMP_SYS(getpid),
	SCMP_SYS(getrlimit),
	SCMP_SYS(getrusage),
	SCMP_SYS(getuid),
	SCMP_SYS(sysinfo),
	SCMP_SYS(uname),
	/* signals and the end */
	SCMP_SYS(exit),
	SCMP_SYS(exit_group),
	SCMP_SYS(restart_syscall),
	SCMP_SYS(rt_sigprocmask),
	SCMP_SYS(rt_sigreturn),
	SCMP_SYS(sigaltstack),
};

/* Only with such an argument: (argument & mask) == value. Several lines of one call: any of them. */
struct argument {
	int nr;
	unsigned int arg;
	uint64_t mask, value;
};

#define EXACTLY UINT32_MAX

static const struct argument restricted[] = {
	/* What guests, upstreams, name servers, systemd and operators are reached by. */
	{ SCMP_SYS(socket), 0, EXACTLY, AF_UNIX },
	{ SCMP_SYS(socket), 0, EXACTLY, AF_INET },
	{ SCMP_SYS(socket), 0, EXACTLY, AF_INET6 },
	{ SCMP_SYS(socket), 0, EXACTLY, AF_VSOCK },
	{ SCMP_SYS(ioctl), 1, EXACTLY, FIONBIO },
	{ SCMP_SYS(ioctl), 1, EXACTLY, FIONREAD },
	{ SCMP_SYS(ioctl), 1, EXACTLY, SIOCOUTQ },
	{ SCMP_SYS(ioctl), 1, EXACTLY, TCGETS }, /* libc: is this stream a terminal? */
	/* The verdict's maps: entries come and go, maps and programs do not. */
	{ SCMP_SYS(bpf), 0, EXACTLY, BPF_MAP_LOOKUP_ELEM },
	{ SCMP_SYS(bpf), 0, EXACTLY, BPF_MAP_UPDATE_ELEM },
	{ SCMP_SYS(bpf), 0, EXACTLY, BPF_MAP_DELETE_ELEM },
	{ SCMP_SYS(bpf), 0, EXACTLY, BPF_MAP_GET_NEXT_KEY },
	{ SCMP_SYS(bpf), 0, EXACTLY, BPF_OBJ_GET_INFO_BY_FD },
	{ SCMP_SYS(bpf), 0, EXACTLY, BPF_ITER_CREATE }, /* a look through the one that is loaded */
	/* No memory becomes code. */
	{ SCMP_SYS(mmap), 2, PROT_EXEC, 0 },
	{ SCMP_SYS(mprotect), 2, PROT_EXEC, 0 },
	/* Threads, no processes. */
	{ SCMP_SYS(clone), 0, CLONE_VM | CLONE_THREAD | CLONE_NEWUSER, CLONE_VM | CLONE_THREAD },
	{ SCMP_SYS(prctl), 0, EXACTLY, PR_SET_NAME },
	{ SCMP_SYS(prctl), 0, EXACTLY, PR_GET_NO_NEW_PRIVS },
	/* Limits are read, of this process. */
	{ SCMP_SYS(prlimit64), 2, UINT64_MAX, 0 },
};

/* Refused with an error, as their callers have another way. */
static const struct {
	int nr;
	int error;
} refused[] = {
	/* Its flags are in memory, where no filter sees them; libc then takes clone(). */
	{ SCMP_SYS(clone3), ENOSYS },
};

/* Not even for the time that a message takes: what makes a foothold more than one. */
static const int deadly[] = {
	SCMP_SYS(execve),
	SCMP_SYS(execveat),
	SCMP_SYS(fork),
	SCMP_SYS(init_module),
	SCMP_SYS(finit_module),
	SCMP_SYS(io_uring_setup),
	SCMP_SYS(kexec_load),
	SCMP_SYS(mount),
	SCMP_SYS(open_by_handle_at),
	SCMP_SYS(perf_event_open),
	SCMP_SYS(pidfd_getfd),
	SCMP_SYS(process_vm_readv),
	SCMP_SYS(process_vm_writev),
	SCMP_SYS(ptrace),
	SCMP_SYS(setns),
	SCMP_SYS(unshare),
	SCMP_SYS(userfaultfd),
	SCMP_SYS(vfork),
};

/* Instrumented builds alone. They run no program either: reports have addresses, not names. */
static const int sanitizers[] = {
	SCMP_SYS(arch_prctl),	SCMP_SYS(clone),  SCMP_SYS(getdents),  SCMP_SYS(getppid),
	SCMP_SYS(kill),		SCMP_SYS(mmap),	  SCMP_SYS(mprotect),  SCMP_SYS(pipe),
	SCMP_SYS(pipe2),	SCMP_SYS(prctl),  SCMP_SYS(prlimit64), SCMP_SYS(ptrace),
	SCMP_SYS(rt_sigaction), SCMP_SYS(tgkill), SCMP_SYS(wait4),
};

/* ---- a call that is not allowed ----------------------------------------------------------------- */

#define NAMES_MAX 512 /* system call numbers; above 450 today */
static char *names[NAMES_MAX];
static bool with_level; /* the journal reads lines with a level */

static void resolve_names(void)
{
	for (int i = 0; i < NAMES_MAX; i++)
		if (!names[i])
			names[i] = seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, i);
	with_level = getenv("JOURNAL_STREAM");
}

static uint64_t argument(const ucontext_t *context, size_t i)
{
#if defined(__x86_64__)
	static const int registers[] = { REG_RDI, REG_RSI, REG_RDX };

	return (uint64_t)context->uc_mcontext.gregs[registers[i]];
#elif defined(__aarch64__)
	return context->uc_mcontext.regs[i];
#else
	(void)context, (void)i;
	return 0;
#endif
}

static char *put_text(char *to, const char *text)
{
	while (*text)
		*to++ = *text++;
	return to;
}

static char *put_number(char *to, uint64_t v, unsigned int base)
{
	char digits[24], *p = digits + sizeof(digits);

	*--p = '\0';
	do
		*--p = "0123456789abcdef"[v % base];
	while ((v /= base) > 0);
	return put_text(to, p);
}

/* In a signal handler: no printf() here. SIGSYS is blocked meanwhile and back at its default, so
 * the next call that is not allowed kills, and nothing returns to who asked. */
static void on_sigsys(int signo _unused_, siginfo_t *info, void *context)
{
	char line[256], *p = line;
	int nr = info->si_syscall;

	if (with_level)
		p = put_text(p, "<2>");
	p = put_text(p, "sandbox: system call ");
	p = put_number(p, (uint64_t)nr, 10);
	p = put_text(p, " (");
	p = put_text(p, nr >= 0 && nr < NAMES_MAX && names[nr] ? names[nr] : "unknown");
	for (size_t i = 0; i < 3; i++) {
		p = put_text(p, i ? ", 0x" : " 0x");
		p = put_number(p, argument(context, i), 16);
	}
	p = put_text(p, ") is not allowed, the relay ends; see docs/security.md\n");
	(void)!write(STDERR_FILENO, line, (size_t)(p - line));
	for (;;)
		syscall(SYS_personality, 0xffffffff);
}

static int catch_sigsys(void)
{
	struct sigaction action = {
		.sa_sigaction = on_sigsys,
		.sa_flags = SA_SIGINFO | (int)SA_RESETHAND,
	};

	sigemptyset(&action.sa_mask);
	return sigaction(SIGSYS, &action, NULL) < 0 ? -errno : 0;
}

/* ---- the filter --------------------------------------------------------------------------------- */

static int add_argument(scmp_filter_ctx f, const struct argument *a)
{
	/* The kernel itself looks at 32 bits of most of these; a comparison of 64 would let
	 * through, or stop, what it does not see. */
	return seccomp_rule_add(f, SCMP_ACT_ALLOW, a->nr, 1,
				SCMP_CMP64(a->arg, SCMP_CMP_MASKED_EQ, a->mask, a->value));
}

/* Only to ourselves: abort() and raise(). Nobody may take SIGSYS away from us, or block it: the
 * kernel kills where it cannot deliver. */
static int add_signals(scmp_filter_ctx f)
{
	int r;

	r = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1,
			     SCMP_A0_64(SCMP_CMP_EQ, (uint64_t)getpid(), 0));
	/* "Not 31" would let 31 with bits above the 32nd through, and the kernel sees 31. */
	if (r == 0)
		r = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(rt_sigaction), 1,
				     SCMP_A0_64(SCMP_CMP_LT, SIGSYS, 0));
	/* libc's own, with the first thread */
	for (uint64_t signo = SIGSYS + 1; r == 0 && signo <= SIGSYS + 2; signo++)
		r = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(rt_sigaction), 1,
				     SCMP_A0_64(SCMP_CMP_EQ, signo, 0));
	return r;
}

static int add_sanitizers(scmp_filter_ctx f)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(sanitizers); i++)
		r = seccomp_rule_add(f, SCMP_ACT_ALLOW, sanitizers[i], 0);
	return r;
}

static bool is_sanitizers(int nr)
{
	for (size_t i = 0; SANITIZED && i < ARRAY_SIZE(sanitizers); i++)
		if (sanitizers[i] == nr)
			return true;
	return false;
}

static int add_rules(scmp_filter_ctx f)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(plain); i++)
		r = seccomp_rule_add(f, SCMP_ACT_ALLOW, plain[i], 0);
	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(restricted); i++)
		if (!is_sanitizers(restricted[i].nr))
			r = add_argument(f, &restricted[i]);
	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(refused); i++)
		r = seccomp_rule_add(f, SCMP_ACT_ERRNO((uint16_t)refused[i].error), refused[i].nr,
				     0);
	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(deadly); i++)
		if (!is_sanitizers(deadly[i]))
			r = seccomp_rule_add(f, SCMP_ACT_KILL_PROCESS, deadly[i], 0);
	if (r == 0)
		r = SANITIZED ? add_sanitizers(f) : add_signals(f);
	return r;
}

static int load_filter(void)
{
	scmp_filter_ctx f = seccomp_init(SCMP_ACT_TRAP);
	int r;

	if (!f)
		return -ENOMEM;
	r = seccomp_attr_set(f, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	if (r == 0)
		r = seccomp_attr_set(f, SCMP_FLTATR_CTL_TSYNC, 1);
	/* A tree instead of a list: a call costs the same wherever it stands. */
	if (r == 0)
		r = seccomp_attr_set(f, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	if (r == 0)
		r = add_rules(f);
	if (r == 0)
		r = seccomp_load(f);
	seccomp_release(f);
	return r;
}

/* ---- Landlock ----------------------------------------------------------------------------------- */

/* As of ABI 6 (Linux 6.12); Debian 12's header knows ABI 2. A kernel takes a longer structure than
 * its own if the rest is 0. */
struct ruleset {
	uint64_t fs, net, scoped;
};
struct net_rule {
	uint64_t access, port;
};
#define RULE_NET_PORT	2
#define FS_TRUNCATE	(1ULL << 14)
#define FS_IOCTL_DEV	(1ULL << 15)
#define NET_BIND_TCP	(1ULL << 0)
#define NET_CONNECT_TCP (1ULL << 1)
#define SCOPED_ABSTRACT (1ULL << 0)
#define SCOPED_SIGNAL	(1ULL << 1)
#define ABI_MAX		6
#define FS_UP_TO(bit)	(2 * (bit)-1)
#define OF_FILES                                                      \
	(LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_WRITE_FILE | \
	 LANDLOCK_ACCESS_FS_READ_FILE | FS_TRUNCATE | FS_IOCTL_DEV)

static const struct ruleset handled[ABI_MAX + 1] = {
	[1] = { .fs = FS_UP_TO(LANDLOCK_ACCESS_FS_MAKE_SYM) },
	[2] = { .fs = FS_UP_TO(LANDLOCK_ACCESS_FS_REFER) },
	[3] = { .fs = FS_UP_TO(FS_TRUNCATE) },
	[4] = { .fs = FS_UP_TO(FS_TRUNCATE), .net = NET_BIND_TCP | NET_CONNECT_TCP },
	[5] = { .fs = FS_UP_TO(FS_IOCTL_DEV), .net = NET_BIND_TCP | NET_CONNECT_TCP },
	[6] = { .fs = FS_UP_TO(FS_IOCTL_DEV),
		.net = NET_BIND_TCP | NET_CONNECT_TCP,
		.scoped = SCOPED_ABSTRACT | SCOPED_SIGNAL },
};

#define READ (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)

static const uint64_t rights[] = {
	[SANDBOX_READ] = READ,
	[SANDBOX_WRITE] = READ | LANDLOCK_ACCESS_FS_WRITE_FILE | FS_TRUNCATE |
			  LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_MAKE_DIR |
			  LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_REMOVE_DIR |
			  LANDLOCK_ACCESS_FS_REFER,
	[SANDBOX_REMOVE] = LANDLOCK_ACCESS_FS_REMOVE_FILE,
	[SANDBOX_LISTEN] = LANDLOCK_ACCESS_FS_READ_DIR | LANDLOCK_ACCESS_FS_MAKE_SOCK |
			   LANDLOCK_ACCESS_FS_REMOVE_FILE,
};

struct sandbox {
	unsigned int abi; /* 0: no Landlock */
	struct ruleset handled;
	int ruleset_fd;
};

static struct sandbox_state in_force;

/* Who listens on an abstract socket outside, as systemd may for sd_notify(), must be reachable. */
static struct ruleset handled_by(unsigned int abi)
{
	const char *notify = getenv("NOTIFY_SOCKET");
	struct ruleset r = handled[abi];

	if (notify && *notify == '@')
		r.scoped &= ~SCOPED_ABSTRACT;
	return r;
}

int sandbox_new(struct sandbox **ret)
{
	struct sandbox *s = calloc(1, sizeof(*s));
	long abi;

	if (!s)
		return -ENOMEM;
	abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
	s->ruleset_fd = -1;
	if (abi > 0) {
		s->abi = (unsigned int)MIN(abi, (long)ABI_MAX);
		s->handled = handled_by(s->abi);
		s->ruleset_fd = (int)syscall(SYS_landlock_create_ruleset, &s->handled,
					     sizeof(s->handled), 0);
		if (s->ruleset_fd < 0)
			s->abi = 0;
	}
	*ret = s;
	return 0;
}

struct sandbox *sandbox_free(struct sandbox *s)
{
	if (s)
		safe_close(s->ruleset_fd);
	free(s);
	return NULL;
}

int sandbox_allow_fd(struct sandbox *s, int fd, enum sandbox_access access)
{
	struct landlock_path_beneath_attr rule = { .parent_fd = fd };
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (s->abi == 0)
		return 0;
	rule.allowed_access = rights[access] & s->handled.fs;
	if (!S_ISDIR(st.st_mode))
		rule.allowed_access &= OF_FILES;
	if (rule.allowed_access == 0)
		return 0;
	return syscall(SYS_landlock_add_rule, s->ruleset_fd, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) <
			       0
		       ? -errno
		       : 0;
}

int sandbox_allow(struct sandbox *s, const char *path, enum sandbox_access access)
{
	_cleanup_close_ int fd = open(path, O_PATH | O_CLOEXEC);

	return fd < 0 ? -errno : sandbox_allow_fd(s, fd, access);
}

static int allow_directory_of(struct sandbox *s, const char *path, enum sandbox_access access)
{
	const char *slash = strrchr(path, '/');
	_cleanup_free_ char *dir = NULL;

	if (!slash)
		return sandbox_allow(s, ".", access);
	dir = strndup(path, MAX((size_t)(slash - path), (size_t)1));
	return dir ? sandbox_allow(s, dir, access) : -ENOMEM;
}

int sandbox_allow_parent(struct sandbox *s, const char *path, enum sandbox_access access)
{
	_cleanup_free_ char *target = NULL;
	int r;

	r = allow_directory_of(s, path, access);
	if (r < 0)
		return r;
	target = realpath(path, NULL);
	return target ? allow_directory_of(s, target, access) : 0;
}

int sandbox_allow_connect(struct sandbox *s, uint16_t port)
{
	struct net_rule rule = { .access = NET_CONNECT_TCP, .port = port };

	if (!(s->handled.net & NET_CONNECT_TCP))
		return 0;
	return syscall(SYS_landlock_add_rule, s->ruleset_fd, RULE_NET_PORT, &rule, 0) < 0 ? -errno
											  : 0;
}

/* Read for the process' own figures, and by libsystemd to spread timers. Landlock knows files by
 * their inode, and those of /proc last only as long as somebody has them open: these stay open. */
static int allow_proc(struct sandbox *s)
{
	static const char *const paths[] = { "/proc/self", "/proc/sys/kernel/random/boot_id" };
	static int fds[] = { -1, -1 };
	int r = 0;

	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(paths); i++) {
		if (fds[i] < 0)
			fds[i] = open(paths[i], O_PATH | O_CLOEXEC);
		if (fds[i] >= 0)
			r = sandbox_allow_fd(s, fds[i], SANDBOX_READ);
	}
	return r;
}

#ifdef VSR_COVERAGE
/* COV=1: where this process writes at its end what ran of it. */
static int allow_counts(struct sandbox *s)
{
	return sandbox_allow(s, VSR_COVERAGE, SANDBOX_WRITE);
}
#else
static int allow_counts(struct sandbox *s _unused_)
{
	return 0;
}
#endif

/* ---- from here on ------------------------------------------------------------------------------- */

/* Returns 0, or -EOPNOTSUPP: not in this kernel; -errno. */
static int enter_landlock(struct sandbox *s)
{
	int r;

	if (s->abi == 0)
		return -EOPNOTSUPP;
	tzset(); /* reads /etc/localtime once */
	r = allow_proc(s);
	if (r == 0)
		r = allow_counts(s);
	if (r < 0)
		return r;
	if (syscall(SYS_landlock_restrict_self, s->ruleset_fd, 0) < 0)
		return -errno;
	s->ruleset_fd = safe_close(s->ruleset_fd);
	in_force.landlock = s->abi;
	return 0;
}

static int enter_seccomp(void)
{
	int r;

	/* Without filters (CONFIG_SECCOMP_FILTER) the first of these says EINVAL. */
	if (prctl(PR_GET_SECCOMP) < 0)
		return -EOPNOTSUPP;
	resolve_names();
	r = catch_sigsys();
	if (r == 0)
		r = load_filter();
	/* libseccomp says ECANCELED for what the kernel refused, and keeps errno. */
	if (r == -EINVAL || (r == -ECANCELED && (errno == EINVAL || errno == ENOSYS)))
		return -EOPNOTSUPP;
	in_force.seccomp = r == 0;
	return r;
}

int sandbox_enter(struct sandbox *s, bool required, const char **ret_why)
{
	int landlock, seccomp;

	landlock = enter_landlock(s);
	if (landlock < 0 && landlock != -EOPNOTSUPP)
		return landlock;
	seccomp = enter_seccomp();
	if (seccomp < 0 && seccomp != -EOPNOTSUPP)
		return seccomp;
	*ret_why = seccomp < 0 && landlock < 0 ? "this kernel has neither seccomp filters nor "
						 "Landlock"
		   : seccomp < 0	       ? "this kernel has no seccomp filters"
		   : landlock < 0	       ? "this kernel has no Landlock"
					       : "";
	return required && **ret_why ? -EOPNOTSUPP : 0;
}

struct sandbox_state sandbox_state(void)
{
	return in_force;
}
