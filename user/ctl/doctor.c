/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vsock-relayctl doctor: what is wrong on this node, and what to do. It finds out by doing what the
 * daemon does: the BPF program is loaded (and thrown away), the port is bound, the upstream dialled.
 */
#include "doctor.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <netdb.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/capability.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/vfs.h>

#include <linux/vm_sockets.h>

#include "commands.h"
#include "ingest_bpf.h"
#include "log.h"
#include "maps.h"
#include "netns.h"
#include "settings.h"
#include "tls.h"

#define DIAL_TIMEOUT_MS 3000

struct examination {
	struct ctl *ctl;
	const json_t *status; /* of the running daemon, or NULL */
	json_t *list;
	unsigned int problems;
};

static _printf_(5, 6) void found(struct examination *x, const char *name, const char *result,
				 const char *advice, const char *fmt, ...)
{
	char says[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(says, sizeof(says), fmt, ap);
	va_end(ap);
	/* Whatever a file or the kernel said. */
	for (char *p = says; *p; p++)
		if ((unsigned char)*p < 0x20 || (unsigned char)*p >= 0x7f)
			*p = '?';
	x->problems += streq(result, "problem");
	json_array_append_new(x->list, json_pack("{s:s, s:s, s:s, s:s?}", "name", name, "result",
						 result, "says", says, "advice", advice));
}

#define OK(name, ...)		   found(x, name, "ok", NULL, __VA_ARGS__)
#define NOTE(name, advice, ...)	   found(x, name, "note", advice, __VA_ARGS__)
#define PROBLEM(name, advice, ...) found(x, name, "problem", advice, __VA_ARGS__)
#define SKIPPED(name, ...)	   found(x, name, "skipped", NULL, __VA_ARGS__)

static bool read_word(const char *path, char *buf, size_t size)
{
	_cleanup_fclose_ FILE *f = fopen(path, "re");

	if (!f || !fgets(buf, (int)size, f))
		return false;
	buf[strcspn(buf, "\n")] = '\0';
	return true;
}

/* ---- the daemon and its settings ----------------------------------------------------------------- */

static void examine_settings(struct examination *x)
{
	const struct settings_errors *e = x->ctl->errors;

	if (e->n_errors > 0)
		PROBLEM("settings",
			"correct the file; vsock-relayd --check-config shows all errors", "%s",
			e->message[0].text);
	else if (*x->ctl->settings->file)
		OK("settings", "%s is good%s%s", x->ctl->settings->file, e->n ? ", but " : "",
		   e->n ? e->message[0].text : "");
	else
		OK("settings", "no file, all defaults");
}

static void examine_daemon(struct examination *x, int r)
{
	const json_t *check;
	char why[512];
	size_t i;

	if (r == -ENOENT) {
		NOTE("daemon", "systemctl start vsock-relayd", "no daemon runs: there is no %s",
		     x->ctl->socket);
		return;
	}
	if (r < 0) {
		PROBLEM("daemon",
			r == -ECONNREFUSED ? "journalctl -u vsock-relayd says why it ended" : NULL,
			"%s", ctl_why(x->ctl, r, why, sizeof(why)));
		return;
	}
	if (streq(ctl_text(x->status, "version"), VSR_VERSION))
		OK("daemon", "version %s, process %lld", VSR_VERSION, ctl_int(x->status, "pid"));
	else
		NOTE("daemon", "restart it after an upgrade: systemctl restart vsock-relayd",
		     "version %s runs, this program is %s", ctl_text(x->status, "version"),
		     VSR_VERSION);
	json_array_foreach(json_object_get(x->status, "checks"), i, check)
	{
		char name[64];

		snprintf(name, sizeof(name), "ready: %s", ctl_text(check, "name"));
		if (ctl_true(check, "good"))
			OK(name, "%s", ctl_text(check, "says"));
		else
			PROBLEM(name, "the log says more: journalctl -u vsock-relayd", "%s",
				ctl_text(check, "says"));
	}
}

/* ---- the kernel ---------------------------------------------------------------------------------- */

bool doctor_kernel_release(const char *release, const char **ret_says)
{
	unsigned int major = 0, minor = 0, patch = 0, version;

	*ret_says = "vsock and sockmap are expected to work together";
	if (sscanf(release, "%u.%u.%u", &major, &minor, &patch) < 2)
		return true;
	version = major * 1000000 + minor * 1000 + MIN(patch, 999U);
	if (version < 6004000) {
		*ret_says = "before 6.4: sockmap does not know vsock; all is checked in user space";
		return true;
	}
	if (version < 6012005) {
		*ret_says = "6.4 to 6.12.4: a vsock stream in a sockmap stalls after 256 KiB "
			    "(CVE-2024-50169), or its data is not seen";
		return false;
	}
	return true;
}

static void examine_kernel(struct examination *x)
{
	const char *says;
	struct utsname u;

	if (uname(&u) < 0)
		return;
	if (doctor_kernel_release(u.release, &says) || x->ctl->settings->bpf == SETTINGS_BPF_OFF ||
	    !x->ctl->settings->listen.vsock)
		OK("kernel", "Linux %s: %s", u.release, says);
	else
		PROBLEM("kernel", "set bpf: off, or install a newer kernel (6.12.5 or later)",
			"Linux %s: %s", u.release, says);
}

static void examine_btf(struct examination *x)
{
	if (access("/sys/kernel/btf/vmlinux", R_OK) == 0)
		OK("BTF", "/sys/kernel/btf/vmlinux is there");
	else
		PROBLEM("BTF",
			"a kernel with CONFIG_DEBUG_INFO_BTF; without it all is checked in user space",
			"/sys/kernel/btf/vmlinux: %s", strerror(errno));
}

static void examine_bpffs(struct examination *x)
{
	_cleanup_free_ char *parent = strdup(x->ctl->pin_dir);
	char *slash = parent ? strrchr(parent, '/') : NULL;
	uint32_t layout;
	struct statfs fs;
	char why[512];
	int r;

	if (!slash || slash == parent)
		return;
	*slash = '\0';
	if (statfs(parent, &fs) < 0 || fs.f_type != BPF_FS_MAGIC) {
		PROBLEM("BPF file system", "mount -t bpf bpf /sys/fs/bpf", "%s is none", parent);
		return;
	}
	OK("BPF file system", "mounted at %s", parent);
	r = maps_layout(x->ctl->pin_dir, &layout);
	if (r == 0 && layout == VSR_ABI_VERSION)
		OK("pinned maps", "layout %u", layout);
	else if (r == 0)
		NOTE("pinned maps", "the next start of this version's daemon replaces them",
		     "layout %u, this program knows %d", layout, VSR_ABI_VERSION);
	else if (r == -ENOENT)
		OK("pinned maps", "none yet");
	else
		NOTE("pinned maps", NULL, "%s", maps_why(x->ctl->pin_dir, r, why, sizeof(why)));
}

/* The very program, with maps for one connection, and nothing pinned. */
static void examine_load(struct examination *x)
{
	const struct ingest_bpf_settings s = {
		.report_limit = MIB,
		.slots = 1,
		.vms = 1,
		.blocks = 1,
		.pool_limit = MIB,
		.pin_uid = (uid_t)-1,
		.pin_gid = (gid_t)-1,
	};
	struct ingest_bpf *b = NULL;
	int r;

	if (x->ctl->settings->bpf == SETTINGS_BPF_OFF) {
		SKIPPED("BPF program", "bpf: off");
		return;
	}
	r = ingest_bpf_new(&s, &b);
	if (r == 0)
		OK("BPF program", "this kernel takes it");
	else if (r == -EPERM)
		PROBLEM("BPF program",
			"run doctor as root; in a container allow bpf() and CAP_BPF, CAP_NET_ADMIN",
			"not permitted: %s", ingest_bpf_why());
	else
		PROBLEM("BPF program",
			"a newer kernel; until then bpf: auto checks in user space, by the same rules",
			"%s", ingest_bpf_why());
	ingest_bpf_free(b);
}

static void examine_capabilities(struct examination *x)
{
	static const struct {
		cap_value_t value;
		const char *name;
	} wanted[] = {
		{ CAP_BPF, "CAP_BPF" },
		{ CAP_NET_ADMIN, "CAP_NET_ADMIN" },
		{ CAP_NET_BIND_SERVICE, "CAP_NET_BIND_SERVICE" },
		{ CAP_SETUID, "CAP_SETUID" },
		{ CAP_SETGID, "CAP_SETGID" },
	};
	char missing[128] = "";
	size_t n = 0;

	for (size_t i = 0; i < ARRAY_SIZE(wanted); i++)
		if (cap_get_bound(wanted[i].value) != 1)
			n += (size_t)snprintf(missing + n, sizeof(missing) - n, "%s%s",
					      n ? ", " : "", wanted[i].name);
	if (n > 0)
		PROBLEM("capabilities", "add them to the container or unit", "cannot be had: %s",
			missing);
	else if (geteuid() != 0)
		NOTE("capabilities", "run doctor as root to look at what the daemon may do",
		     "this is user %u", geteuid());
	else
		OK("capabilities", "all that a start needs; the daemon drops them after it");
}

/* ---- vsock --------------------------------------------------------------------------------------- */

static void examine_vsock(struct examination *x)
{
	_cleanup_close_ int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (!x->ctl->settings->listen.vsock) {
		SKIPPED("AF_VSOCK", "listen.vsock: false");
		return;
	}
	if (fd < 0) {
		PROBLEM("AF_VSOCK",
			"modprobe vhost_vsock, and /etc/modules-load.d for the next boot",
			"this kernel has it not: %s", strerror(errno));
		return;
	}
	OK("AF_VSOCK", "there");
	if (access("/dev/vhost-vsock", F_OK) == 0)
		OK("vhost-vsock", "/dev/vhost-vsock is there: QEMU's guests can connect");
	else if (access("/sys/module/vmw_vsock_virtio_transport", F_OK) == 0)
		NOTE("vhost-vsock", "modprobe vhost_vsock if this machine has guests of its own",
		     "this machine is a guest itself, and has no /dev/vhost-vsock");
	else
		PROBLEM("vhost-vsock",
			"modprobe vhost_vsock (QEMU); Firecracker and Cloud Hypervisor use "
			"hybrid.sockets instead",
			"no /dev/vhost-vsock: no guest can connect");
}

static int bind_port(uint32_t port)
{
	const struct sockaddr_vm a = { .svm_family = AF_VSOCK,
				       .svm_cid = VMADDR_CID_ANY,
				       .svm_port = port };
	_cleanup_close_ int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	return bind(fd, (const struct sockaddr *)&a, sizeof(a)) < 0 ? -errno : 0;
}

static void examine_port(struct examination *x)
{
	uint32_t port = x->ctl->settings->listen.port;
	int r;

	if (!x->ctl->settings->listen.vsock) {
		SKIPPED("port", "listen.vsock: false");
		return;
	}
	r = bind_port(port);
	if (r == -EADDRINUSE && ctl_true(x->status, "listen.vsock"))
		OK("port", "the daemon listens on vsock port %u", port);
	else if (r == -EADDRINUSE)
		PROBLEM("port", "ss --vsock -l -p names who has it; stop that, or set listen.port",
			"vsock port %u is taken", port);
	else if (r == -EACCES)
		NOTE("port", "run doctor as root", "vsock port %u needs CAP_NET_BIND_SERVICE",
		     port);
	else if (r < 0)
		PROBLEM("port", NULL, "vsock port %u: %s", port, strerror(-r));
	else if (x->status)
		PROBLEM("port", "restart the daemon: systemctl restart vsock-relayd",
			"the daemon runs, but nobody listens on vsock port %u", port);
	else
		OK("port", "vsock port %u is free", port);
}

static void examine_namespaces(struct examination *x)
{
	const char *mode = netns_mode_name(netns_mode());
	char child[32] = "?";

	if (netns_mode() == NETNS_NONE) {
		OK("namespaces", "this kernel has no vsock network namespaces (they came with "
				 "Linux 7.0): a listener sees every VM");
		return;
	}
	if (netns_mode() == NETNS_UNKNOWN) {
		NOTE("namespaces", NULL, "vsock ns_mode cannot be read: /proc/sys/net is hidden");
		return;
	}
	(void)read_word("/proc/sys/net/vsock/child_ns_mode", child, sizeof(child));
	if (netns_mode() == NETNS_GLOBAL)
		OK("namespaces",
		   "ns_mode is global: a listener here sees every VM whose VMM runs in a global "
		   "network namespace; new ones will be %s",
		   child);
	else
		NOTE("namespaces",
		     "for VMs of other namespaces see the setting listeners; KubeVirt's guests are "
		     "all CID 3",
		     "ns_mode is %s: a listener here sees only VMs of this network namespace",
		     mode);
}

/* The running daemon's listener with that number, or NULL. */
static const json_t *listener_of(const struct examination *x, uint32_t ns)
{
	const json_t *item;
	size_t i;

	json_array_foreach(ctl_find(x->status, "listen.listeners"), i, item)
	{
		if (ctl_int(item, "namespace") == (long long)ns)
			return item;
	}
	return NULL;
}

static void examine_listener(struct examination *x, const struct settings_listener *l)
{
	const json_t *now = x->status ? listener_of(x, l->ns) : NULL;
	struct stat st;
	char name[32];

	snprintf(name, sizeof(name), "listener %u", l->ns);
	if (netns_mode() == NETNS_NONE)
		NOTE(name, "take it out of listeners, or boot Linux 7.0 or later",
		     "left out: this kernel has no vsock network namespaces");
	else if (stat(l->netns, &st) < 0)
		PROBLEM(name, "make it before the daemon starts, or take it out of listeners",
			"network namespace %s: %s", l->netns, strerror(errno));
	else if (now && ctl_int(now, "inode") != (long long)st.st_ino)
		PROBLEM(name, "restart the daemon: systemctl restart vsock-relayd",
			"%s is another network namespace than the one that the daemon listens in",
			l->netns);
	else if (now && streq(ctl_text(now, "ns_mode"), "global"))
		NOTE(name, "make the namespace while net.vsock.child_ns_mode is local",
		     "vsock port %lld inside %s, whose ns_mode is global: VMs of every global "
		     "namespace can connect there",
		     ctl_int(now, "port"), l->netns);
	else if (now)
		OK(name, "the daemon listens on vsock port %lld inside %s, ns_mode local",
		   ctl_int(now, "port"), l->netns);
	else if (x->status)
		PROBLEM(name, "restart the daemon: systemctl restart vsock-relayd",
			"the daemon runs, but does not listen inside %s", l->netns);
	else
		OK(name, "%s is there", l->netns);
}

static void examine_listeners(struct examination *x)
{
	const struct settings_listeners *list = &x->ctl->settings->listeners;

	for (size_t i = 0; i < list->n; i++)
		examine_listener(x, &list->item[i]);
}

/* ---- what the running daemon may still do ---- */

#define NO_CAPABILITIES "0000000000000000"

static bool has_set(const json_t *status, const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "sandbox.capabilities.%s", name);
	return !streq(ctl_text(status, path), NO_CAPABILITIES);
}

static void examine_privileges(struct examination *x)
{
	static const char *const sets[] = { "effective", "permitted", "inheritable", "ambient" };
	long long uid = ctl_int(x->status, "sandbox.uid");
	char held[128] = "";
	size_t n = 0;

	for (size_t i = 0; i < ARRAY_SIZE(sets); i++)
		if (has_set(x->status, sets[i]))
			n += (size_t)snprintf(held + n, sizeof(held) - n, "%s%s", n ? ", " : "",
					      sets[i]);
	if (n > 0 || !ctl_true(x->status, "sandbox.no_new_privs"))
		PROBLEM("privileges", "report this: the daemon drops them before it serves guests",
			"process %lld of user %lld has capabilities (%s)%s",
			ctl_int(x->status, "pid"), uid, n ? held : "none",
			ctl_true(x->status, "sandbox.no_new_privs") ? ""
								    : ", and can get new ones");
	else if (uid == 0)
		PROBLEM("privileges", "set user: to a service user, such as vsock-relay",
			"the daemon has no capabilities, but is root, who owns most files");
	else if (has_set(x->status, "bounding"))
		NOTE("privileges", "start it as root or with CAP_SETPCAP to have it empty",
		     "user %lld, no capabilities, no new privileges; the bounding set is not "
		     "empty, which means nothing then",
		     uid);
	else
		OK("privileges",
		   "user %lld; effective, permitted, inheritable, ambient and bounding set are "
		   "empty; no new privileges",
		   uid);
}

static void examine_sandbox(struct examination *x)
{
	bool seccomp = ctl_int(x->status, "sandbox.seccomp") == 2;
	long long landlock = ctl_int(x->status, "sandbox.landlock");

	if (!x->status || !json_is_object(ctl_find(x->status, "sandbox"))) {
		SKIPPED("privileges", x->status ? "the daemon does not say" : "no daemon runs");
		SKIPPED("sandbox", x->status ? "the daemon does not say" : "no daemon runs");
		return;
	}
	examine_privileges(x);
	if (seccomp && landlock > 0)
		OK("sandbox", "seccomp filter; Landlock ABI %lld", landlock);
	else if (x->ctl->settings->sandbox == SETTINGS_SANDBOX_OFF)
		NOTE("sandbox", "set sandbox: auto", "sandbox: off%s",
		     seccomp ? ", but a seccomp filter of who started it" : "");
	else if (seccomp)
		NOTE("sandbox", "a kernel with CONFIG_SECURITY_LANDLOCK, and landlock in lsm=",
		     "seccomp filter, no Landlock: files are protected by their owners alone");
	else
		PROBLEM("sandbox",
			"a kernel with CONFIG_SECCOMP_FILTER; sandbox: required "
			"refuses to start without",
			"no seccomp filter; Landlock ABI %lld", landlock);
}

/* ---- the upstream -------------------------------------------------------------------------------- */

static int dial(const struct sockaddr *addr, socklen_t len)
{
	_cleanup_close_ int fd =
		socket(addr->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct pollfd p = { .events = POLLOUT };
	socklen_t size = sizeof(int);
	int error = 0;

	if (fd < 0)
		return -errno;
	if (connect(fd, addr, len) == 0)
		return 0;
	if (errno != EINPROGRESS)
		return -errno;
	p.fd = fd;
	if (poll(&p, 1, DIAL_TIMEOUT_MS) <= 0)
		return -ETIMEDOUT;
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
		return -errno;
	return -error;
}

/* host:port, [IPv6]:port or unix:/path, as the settings have checked. Says what went wrong in
 * *ret_why. */
static int dial_address(const char *address, const char **ret_why)
{
	const struct addrinfo hints = { .ai_socktype = SOCK_STREAM };
	_cleanup_free_ char *host = strdup(address);
	struct addrinfo *list = NULL;
	char *port;
	int r;

	if (!host)
		return -ENOMEM;
	if (strncmp(address, "unix:", 5) == 0) {
		struct sockaddr_un un = { .sun_family = AF_UNIX };

		snprintf(un.sun_path, sizeof(un.sun_path), "%s", address + 5);
		r = dial((struct sockaddr *)&un, sizeof(un));
		*ret_why = strerror(-r);
		return r;
	}
	port = strrchr(host, ':');
	if (!port)
		return -EINVAL;
	*port++ = '\0';
	if (*host == '[')
		host[strlen(host) - 1] = '\0';
	r = getaddrinfo(host + (*host == '['), port, &hints, &list);
	if (r != 0) {
		*ret_why = gai_strerror(r);
		return -EHOSTUNREACH;
	}
	r = -EHOSTUNREACH;
	for (struct addrinfo *a = list; a && r < 0; a = a->ai_next)
		r = dial(a->ai_addr, a->ai_addrlen);
	freeaddrinfo(list);
	*ret_why = strerror(-r);
	return r;
}

static char tls_said[512];

static int hear_tls(const struct log_entry *e)
{
	snprintf(tls_said, sizeof(tls_said), "%s", e->message);
	return 0;
}

static void examine_tls(struct examination *x)
{
	const struct settings *s = x->ctl->settings;
	const struct tls_files files = { .ca = s->upstream.grpc.ca,
					 .certificate = s->upstream.grpc.certificate,
					 .key = s->upstream.grpc.key };
	SSL_CTX *c = NULL;
	uint64_t digest;
	int r;

	tls_said[0] = '\0';
	log_set_sink(hear_tls);
	r = tls_context_new(&files, &c, &digest);
	log_set_sink(NULL);
	if (r < 0)
		PROBLEM("upstream TLS", "see upstream.grpc.ca, certificate and key of the settings",
			"%s", *tls_said ? tls_said : strerror(-r));
	else
		OK("upstream TLS", "CA, certificate and key can be read, and fit");
	tls_context_free(c);
}

static void examine_grpc(struct examination *x)
{
	const char *address = x->ctl->settings->upstream.grpc.address, *why = "";

	if (!x->ctl->settings->upstream.grpc.plaintext)
		examine_tls(x);
	if (dial_address(address, &why) < 0)
		PROBLEM("upstream",
			"is it up? does a firewall or NetworkPolicy stand between? see "
			"upstream.grpc.address",
			"cannot connect to %s: %s", address, why);
	else
		OK("upstream", "%s takes connections", address);
}

static void examine_file(struct examination *x)
{
	const char *directory = x->ctl->settings->upstream.file_directory;
	struct stat st;

	if (stat(directory, &st) < 0) {
		NOTE("upstream", "it is made at the start if its parent is there", "%s: %s",
		     directory, strerror(errno));
		return;
	}
	if (!S_ISDIR(st.st_mode))
		PROBLEM("upstream", "set upstream.file.directory", "%s is no directory", directory);
	else if (access(directory, W_OK) < 0 && errno != EACCES)
		PROBLEM("upstream", "see to the disk", "%s: %s", directory, strerror(errno));
	else
		OK("upstream", "directory %s, of user %u", directory, st.st_uid);
}

json_t *doctor_examine(struct ctl *ctl, unsigned int *ret_problems)
{
	struct examination examination = { .ctl = ctl, .list = json_array() };
	struct examination *x = &examination;
	json_t *status = NULL;
	int r = ctl_get(ctl, "/status.json", &status);

	x->status = status;
	examine_settings(x);
	examine_daemon(x, r);
	examine_kernel(x);
	examine_vsock(x);
	examine_namespaces(x);
	examine_port(x);
	examine_listeners(x);
	examine_sandbox(x);
	examine_capabilities(x);
	examine_btf(x);
	examine_bpffs(x);
	examine_load(x);
	if (ctl->settings->upstream.kind == SETTINGS_UPSTREAM_GRPC)
		examine_grpc(x);
	else
		examine_file(x);
	json_decref(status);
	*ret_problems = x->problems;
	return x->list;
}

static int run_doctor(struct ctl *ctl, int argc, char *argv[])
{
	int r = ctl_check_args(ctl, argc, argv, 0, 0, "doctor");
	unsigned int problems;
	json_t *list, *item;
	size_t i;

	if (r != CTL_OK)
		return r;
	list = doctor_examine(ctl, &problems);
	if (ctl->json) {
		ctl_print_json(ctl, json_pack("{s:I, s:o}", "problems", (json_int_t)problems,
					      "checks", list));
		return problems ? CTL_FAILED : CTL_OK;
	}
	json_array_foreach(list, i, item)
	{
		printf("%-8s %-16s %s\n", ctl_text(item, "result"), ctl_text(item, "name"),
		       ctl_text(item, "says"));
		if (json_is_string(ctl_find(item, "advice")))
			printf("%-8s %-16s -> %s\n", "", "", ctl_text(item, "advice"));
	}
	printf("\n%u problem%s\n", problems, problems == 1 ? "" : "s");
	json_decref(list);
	return problems ? CTL_FAILED : CTL_OK;
}

const struct ctl_command ctl_doctor_commands[] = {
	{ "", "", "what is wrong on this node, and what to do",
	  "      As root: it loads the BPF program and binds the port as the daemon does, and lets go\n"
	  "      of both. Exit status 1 if it found a problem.\n",
	  run_doctor },
	{},
};
