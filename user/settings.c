/* SPDX-License-Identifier: Apache-2.0 */
#include <ctype.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <sys/stat.h>

#include "grpc_conn.h"
#include "log.h"
#include "settings.h"
#include "settings_kind.h"
#include "spool_file.h"
#include "vsr_abi.h"
#include "yaml_tree.h"

#define HOUR USEC_PER_HOUR
#define DAY  (24 * HOUR)
#define YEAR (365 * DAY)
#define GIB  (1024 * MIB)

#define ENV_PREFIX    "VSOCK_RELAY_"
#define NAME_MAX_LEN  64
#define HELP_COLUMNS  80
#define HELP_INDENT   8
#define QUOTE_COLUMNS 60

/* ---- values that are more than a number ---- */

static const struct settings_choice bpf_choices[] = {
	{ "auto", SETTINGS_BPF_AUTO },
	{ "required", SETTINGS_BPF_REQUIRED },
	{ "off", SETTINGS_BPF_OFF },
	{},
};

static const struct settings_choice sandbox_choices[] = {
	{ "auto", SETTINGS_SANDBOX_AUTO },
	{ "required", SETTINGS_SANDBOX_REQUIRED },
	{ "off", SETTINGS_SANDBOX_OFF },
	{},
};

static const struct settings_choice dedup_choices[] = {
	{ "digest", SETTINGS_DEDUP_DIGEST },
	{ "bytes", SETTINGS_DEDUP_BYTES },
	{},
};

static const struct settings_choice unchanged_choices[] = {
	{ "forward", SETTINGS_UNCHANGED_FORWARD },
	{ "suppress", SETTINGS_UNCHANGED_SUPPRESS },
	{},
};

static const struct settings_choice retry_choices[] = {
	{ "linear", SETTINGS_RETRY_LINEAR },
	{ "exponential", SETTINGS_RETRY_EXPONENTIAL },
	{},
};

static const struct settings_choice upstream_choices[] = {
	{ "file", SETTINGS_UPSTREAM_FILE },
	{ "grpc", SETTINGS_UPSTREAM_GRPC },
	{},
};

static const struct settings_choice acks_choices[] = {
	{ "communicate", SETTINGS_ACKS_COMMUNICATE },
	{ "response", SETTINGS_ACKS_RESPONSE },
	{},
};

static const struct settings_choice ack_names_choices[] = {
	{ "vm_id", SETTINGS_ACK_NAMES_VM_ID },
	{ "cid", SETTINGS_ACK_NAMES_CID },
	{},
};

static const struct settings_choice log_choices[] = {
	{ "error", LOG_ERR }, { "warning", LOG_WARNING }, { "notice", LOG_NOTICE },
	{ "info", LOG_INFO }, { "debug", LOG_DEBUG },	  {},
};

static const struct settings_choice format_choices[] = {
	{ "auto", SETTINGS_LOG_AUTO },
	{ "text", SETTINGS_LOG_TEXT },
	{ "json", SETTINGS_LOG_JSON },
	{},
};

static bool all_of(const char *text, const char *also, size_t max)
{
	size_t n = strlen(text);

	for (size_t i = 0; i < n; i++)
		if (!isalnum((unsigned char)text[i]) && !strchr(also, text[i]))
			return false;
	return n <= max;
}

/* A name or number of a user or group, or none. */
static bool valid_account(const char *text)
{
	return all_of(text, "_.-", 32) && text[0] != '-';
}

/* It goes into an HTTP header: no space, no control character. */
static bool valid_node_name(const char *text)
{
	return all_of(text, "_.-", 253);
}

static bool valid_metric_prefix(const char *text)
{
	return *text && all_of(text, "_:", 128) && !isdigit((unsigned char)*text);
}

static bool valid_path_or_none(const char *text)
{
	return !*text || settings_valid_path(text);
}

/* A host name or address, or none. */
static bool valid_server_name(const char *text)
{
	return all_of(text, "_.-:", 253);
}

/* Where the TLS files of the reference's pods are. */
#define CERTS "/run/secrets/stackrox.io/certs/"

/* ---- the table ---- */

/* The offset of a member; does not compile if the member is not of that type. */
#define OFFSET(type, member)                                                                      \
	(offsetof(struct settings, member) +                                                      \
	 0 * sizeof(char[__builtin_types_compatible_p(type,                                       \
						      __typeof__(((struct settings *)0)->member)) \
				 ? 1                                                              \
				 : -1]))

#define KIND(k, name_, type, member, def_) \
	.name = name_, .kind = k, .offset = OFFSET(type, member), .def = def_
#define BOUNDED(k, name_, type, member, def_, min_, max_) \
	KIND(k, name_, type, member, def_), .min = min_, .max = max_

#define BOOL(name, member, def)		  KIND(KIND_BOOL, name, bool, member, def)
#define MODE(name, member, def)		  KIND(KIND_MODE, name, uint32_t, member, def)
#define UINT(name, member, def, min, max) BOUNDED(KIND_UINT, name, uint32_t, member, def, min, max)
#define NUMBER(name, member, def, min, max) \
	BOUNDED(KIND_NUMBER, name, double, member, def, min, max)
#define SIZE(name, member, def, min, max) BOUNDED(KIND_SIZE, name, uint64_t, member, def, min, max)
#define SIZE_KIB(name, member, def, min, max) \
	BOUNDED(KIND_KIB, name, uint64_t, member, def, min, max)
#define DURATION(name, member, def, min, max) \
	BOUNDED(KIND_DURATION, name, uint64_t, member, def, min, max)
#define CHOICE(name, member, type, def, list) \
	KIND(KIND_CHOICE, name, type, member, def), .choices = list
#define TEXT(name, member, def, valid_, expects_) \
	KIND(KIND_TEXT, name, char *, member, def), .valid = valid_, .expects = expects_

#define ACCOUNT(name, member)                 \
	TEXT(name, member, "", valid_account, \
	     "a name or number of at most 32 characters, or nothing")

#define RELOAD	.needs_restart = false
#define RESTART .needs_restart = true

/*
 * RESTART is what cannot change under a running daemon: sockets, BPF programs and the sizes of
 * their maps, directories, the user, and what identifies a VM.
 */
static const struct settings_row rows[] = {
	{ UINT("namespace", ns, "0", 0, UINT32_MAX), RESTART,
	  .help = "Number of the vsock namespace that this relay serves: the first half of every "
		  "VM id, but for those of listeners. 0 is the initial namespace." },
	{ TEXT("node_name", node_name, "", valid_node_name,
	       "at most 253 letters, digits, '.', '-' or '_'"),
	  .env_ref = "ROX_NODE_NAME", RESTART,
	  .help = "Name of this node in the log and upstream. Empty: the host's name." },

	{ BOOL("listen.vsock", listen.vsock, "true"), RESTART, .help = "Listen on AF_VSOCK." },
	{ UINT("listen.port", listen.port, "818", 1, UINT32_MAX - 1),
	  .env_ref = "ROX_VIRTUAL_MACHINES_VSOCK_PORT", RESTART,
	  .help = "The vsock port; also the number behind the path of a hybrid socket." },
	{ UINT("listen.backlog", listen.backlog, "4096", 1, 65535), RESTART,
	  .help = "Connections that the kernel holds until they are accepted." },
	{ KIND(KIND_LISTENERS, "listeners", struct settings_listeners, listeners, ""), RESTART,
	  .help = "Listeners on vsock inside other network namespaces, for VMs whose VMM runs in one "
		  "with ns_mode local (Linux 7.0 and later). In the file a list of {netns: PATH, "
		  "namespace: N} or {netns: PATH, namespace: N, port: PORT}; elsewhere N=PATH or "
		  "N:PORT=PATH, separated by commas. PATH is the namespace's file, such as "
		  "/run/netns/NAME or /proc/PID/ns/net, entered once, at the start; N is the first "
		  "half of these VMs' ids; the port is listen.port unless said." },

	{ KIND(KIND_SOCKETS, "hybrid.sockets", struct settings_hybrid *, hybrid.sockets, ""),
	  RESTART,
	  .help = "AF_UNIX sockets for VMMs without vhost-vsock (Firecracker, Cloud Hypervisor). "
		  "In the file a list of {path: PATH, cid: CID} and {pattern: PATH}; elsewhere "
		  "CID=PATH or PATTERN, separated by commas. PATH is the VMM's own socket: the "
		  "relay listens on PATH_<listen.port>. A pattern holds {cid} in the place of the "
		  "VM's CID, and its directory is watched for new VMs." },
	{ MODE("hybrid.mode", hybrid.mode, "0660"), RESTART,
	  .help = "File mode of the hybrid sockets." },
	{ ACCOUNT("hybrid.group", hybrid.group), RESTART,
	  .help = "Group of the hybrid sockets. Empty: left as it is." },
	{ KIND(KIND_UIDS, "hybrid.allowed_uids", struct settings_uids, hybrid.allowed_uids, "0"),
	  RESTART,
	  .help = "User ids of the VMMs that may connect to hybrid sockets; any: no check." },

	{ CHOICE("bpf", bpf, enum settings_bpf, "auto", bpf_choices), RESTART,
	  .help = "Receive through BPF. auto: where the kernel can, else in user space, by the "
		  "same rules; required: refuse to start without; off: in user space." },
	{ TEXT("pin_directory", pin_directory, VSR_PIN_DIR, settings_valid_path,
	       "an absolute path on a BPF file system"),
	  RESTART,
	  .help = "Where the BPF maps are pinned for people to read. One relay per directory." },
	{ TEXT("run_directory", run_directory, "/run/vsock-relay", settings_valid_path,
	       "an absolute path"),
	  RESTART, .help = "Holds the lock of the one relay that uses it." },

	{ SIZE_KIB("report.max_kib", report.max_bytes, "16384", 1, 65536),
	  .env_ref = "ROX_VIRTUAL_MACHINES_VSOCK_CONN_MAX_SIZE_KB", RESTART,
	  .help = "Longest report in KiB: exactly this is accepted, one byte more refused." },
	{ DURATION("report.deadline", report.deadline_usec, "10s", 10 * USEC_PER_MSEC, HOUR),
	  RELOAD, .help = "Time for a whole report, from the moment the guest may send." },
	{ DURATION("report.idle", report.idle_usec, "5s", 10 * USEC_PER_MSEC, HOUR), RELOAD,
	  .help = "Longest pause between two bytes of a report." },

	{ UINT("admission.places", admission.places, "50", 1, 1024),
	  .env_ref = "ROX_VIRTUAL_MACHINES_MAX_CONCURRENT_VSOCK_CONNECTIONS", RESTART,
	  .help = "Reports that are received at the same time." },
	{ DURATION("admission.wait", admission.wait_usec, "5s", 0, HOUR),
	  .env_ref = "ROX_VIRTUAL_MACHINES_VSOCK_CONCURRENCY_TIMEOUT", RELOAD,
	  .help = "How long a connection waits for a place and memory before it is closed." },
	{ UINT("admission.waiting", admission.waiting, "256", 1, 65536), RELOAD,
	  .help = "Connections that wait, of all VMs together." },
	{ NUMBER("admission.grant_rate", admission.grant_rate, "1", 0, 1000000), .unit = "/s",
	  RELOAD,
	  .help = "Reports per second that one VM may begin in the long run; 0: unlimited." },
	{ UINT("admission.grant_burst", admission.grant_burst, "5", 1, 1000000), RELOAD,
	  .help = "Reports that one VM may begin before admission.grant_rate holds it back." },

	{ SIZE("memory.budget", memory_budget, "256MiB", MIB, 1024 * GIB), RESTART,
	  .help = "Memory for all reports being received: the kernel's queues and the daemon's "
		  "buffers together. At least twice (report.max_kib + 1 MiB)." },
	{ BOOL("allow_reserved_cids", allow_reserved_cids, "false"), RELOAD,
	  .help = "Accept reports from CIDs 0, 1 and 2 (hypervisor, loopback, host): for tests." },

	{ UINT("cache.slots", cache.slots, "100", 0, 16384), .word = "auto",
	  .word_value = SETTINGS_SLOTS_AUTO, .env_ref = "ROX_VM_INDEX_REPORT_RELAY_CACHE_SLOTS",
	  RELOAD,
	  .help = "VMs whose last report is kept for resending; auto: as many as VMs seen, at "
		  "least 100; 0: no cache." },
	{ DURATION("cache.ttl", cache.ttl_usec, "4h", 10 * USEC_PER_MSEC, YEAR),
	  .env_ref = "ROX_VM_INDEX_REPORT_RELAY_CACHE_TTL", RELOAD,
	  .help = "How long a report is kept after its content last changed." },
	{ SIZE("cache.bytes", cache.bytes, "512MiB", MIB, 64 * GIB), RESTART,
	  .help = "Memory for kept reports, oldest out first. At least report.max_kib." },
	{ BOOL("cache.keep_acked", cache.keep_acked, "true"), RELOAD,
	  .help = "Keep a VM's last report after its delivery too, as far as cache.bytes has room "
		  "and until the VM was silent for 24 h: its repeats are then recognised in the "
		  "kernel, packet by packet." },
	{ DURATION("cache.compress_after", cache.compress_after_usec, "5s", 0, YEAR), RELOAD,
	  .help = "Compress what has been in the cache for so long and was not reported again, when "
		  "there is nothing else to do; 0: never." },

	{ CHOICE("dedup", dedup, enum settings_dedup, "digest", dedup_choices), RELOAD,
	  .help = "How a repeated report is recognised. digest: by its length and digest; bytes: "
		  "by comparing every byte with the report that is kept." },
	{ CHOICE("unchanged", unchanged, enum settings_unchanged, NULL, unchanged_choices),
	  .def_for = { [SETTINGS_UPSTREAM_FILE] = "suppress",
		       [SETTINGS_UPSTREAM_GRPC] = "forward" },
	  RELOAD,
	  .help = "A report that equals the VM's last delivered one. forward: deliver it again; "
		  "suppress: drop it." },
	{ DURATION("refresh_interval", refresh_interval_usec, "24h", 0, YEAR), RELOAD,
	  .help = "With unchanged: suppress, deliver it nevertheless when the last delivery is "
		  "that old; 0: never." },

	{ NUMBER("rate.reports_per_minute", rate.reports_per_minute, NULL, 0, 1000000),
	  .def_for = { [SETTINGS_UPSTREAM_FILE] = "0", [SETTINGS_UPSTREAM_GRPC] = "1" },
	  .env_ref = "ROX_VM_RELAY_MAX_REPORTS_PER_MINUTE", RELOAD,
	  .help = "Reports per VM that go upstream in a minute, the newest content only; 0: "
		  "unlimited." },
	{ DURATION("rate.stale_ack_threshold", rate.stale_ack_threshold_usec, "4h", 0, YEAR),
	  .env_ref = "ROX_VM_RELAY_STALE_ACK_THRESHOLD", RELOAD,
	  .help = "A limited report counts as stale_ack when the VM's last ACK is that old." },
	{ DURATION("custody_max_age", custody_max_age_usec, "24h", USEC_PER_SEC, YEAR), RELOAD,
	  .help = "Accepted content that nobody has taken by then is given up, and counted." },

	{ TEXT("state_directory", state_directory, "", valid_path_or_none,
	       "an absolute path, or nothing"),
	  RESTART,
	  .help = "Where accepted reports are kept until they are delivered, so that they survive "
		  "a restart: a report is accepted when it is on the disk. The service user's, "
		  "writable by nobody else; made if it is missing. One relay per directory. Empty: "
		  "accepted reports are kept in memory and end with the process." },
	{ UINT("spool.max_files", spool.max_files, "16384", 1, 16384), RELOAD,
	  .help = "With state_directory: VMs whose report it may hold." },
	{ SIZE("spool.max_bytes", spool.max_bytes, "2GiB", MIB, 64 * GIB), RELOAD,
	  .help = "With state_directory: bytes that its reports may take. At least "
		  "report.max_kib and 4 KiB." },
	{ BOOL("accept_without_disk", accept_without_disk, "false"), RELOAD,
	  .help = "With state_directory, while it takes nothing (full, failed, hanging): accept "
		  "framed reports nevertheless, in memory. Otherwise they are answered busy, and "
		  "only raw ones are held in memory." },

	{ DURATION("retry.base", retry.base_usec, "30s", USEC_PER_MSEC, DAY),
	  .instead_of_none = USEC_PER_MIN, .env_ref = "ROX_NODE_SCANNING_ACK_DEADLINE_BASE", RELOAD,
	  .help = "First step of the retries of what was not ACKed." },
	{ CHOICE("retry.mode", retry.mode, enum settings_retry_mode, "linear", retry_choices),
	  RELOAD,
	  .help = "linear: the nth step is n times retry.base; exponential: each step is "
		  "retry.factor times the one before." },
	{ NUMBER("retry.factor", retry.factor, "2", 1, 100), RELOAD,
	  .help = "With retry.mode: exponential, the growth of the steps." },
	{ DURATION("retry.cap", retry.cap_usec, "30m", USEC_PER_MSEC, DAY), RELOAD,
	  .help = "With retry.mode: exponential, the longest step." },
	{ NUMBER("retry.jitter", retry.jitter_percent, "10", 0, 100), .unit = "%", RELOAD,
	  .help = "With retry.mode: exponential, how far a step is varied at random, in percent." },

	{ KIND(KIND_WORDS, "retry.permanent_nacks", struct settings_words, retry.permanent_nacks,
	       "missing scanner index data,unsupported action"),
	  RELOAD,
	  .help = "Reasons of NACKs that end the duty to deliver a report. After any other one it is "
		  "sent again when it is due. Compared whole; separated by commas, or a list in the "
		  "file." },

	{ CHOICE("upstream.kind", upstream.kind, enum settings_upstream, "file", upstream_choices),
	  RESTART,
	  .help = "Where reports go. file: the newest report of each VM, in a directory; grpc: to a "
		  "server that speaks the reference's protocol." },
	{ TEXT("upstream.file.directory", upstream.file_directory, "/var/lib/vsock-relay/reports",
	       settings_valid_path, "an absolute path"),
	  RESTART, .help = "Directory of upstream.kind: file; a report is <namespace>-<cid>.pb." },
	{ TEXT("upstream.grpc.address", upstream.grpc.address, "sensor.stackrox.svc:443",
	       grpc_conn_valid_address, "host:port, [IPv6]:port or unix:/path"),
	  .env_ref = "ROX_SENSOR_ENDPOINT", RESTART,
	  .help = "The server of upstream.kind: grpc. A name may have several addresses." },
	{ CHOICE("upstream.grpc.acks", upstream.grpc.acks, enum settings_acks, "communicate",
		 acks_choices),
	  RESTART,
	  .help = "What ends the relay's duty to deliver a report. communicate: an ACK on a stream "
		  "of its own; response: the success of the call." },
	{ CHOICE("upstream.grpc.ack_names", upstream.grpc.ack_names, enum settings_ack_names,
		 "vm_id", ack_names_choices),
	  RELOAD,
	  .help = "What tells VMs apart in ACKs. vm_id: the vm_id that the report claimed, where the "
		  "ACK has one, and the CID; cid: the CID alone, for servers that put something "
		  "else before it. CIDs are those of namespace 0: in another one only vm_id will "
		  "do." },
	{ BOOL("upstream.grpc.plaintext", upstream.grpc.plaintext, "false"), RESTART,
	  .help = "Connect without TLS: anybody on the way can read and alter the reports." },
	{ TEXT("upstream.grpc.server_name", upstream.grpc.server_name, "", valid_server_name,
	       "a host name or address, or nothing"),
	  RESTART,
	  .help = "Name that the server's certificate must have. Empty: the host of "
		  "upstream.grpc.address." },
	{ TEXT("upstream.grpc.ca", upstream.grpc.ca, CERTS "ca.pem", settings_valid_path,
	       "an absolute path"),
	  .env_ref = "ROX_MTLS_CA_FILE", RESTART,
	  .help = "CA certificates (PEM) that the server's must come from. The directory is "
		  "watched, and new files are used without a restart." },
	{ TEXT("upstream.grpc.certificate", upstream.grpc.certificate, CERTS "cert.pem",
	       valid_path_or_none, "an absolute path, or nothing"),
	  .env_ref = "ROX_MTLS_CERT_FILE", RESTART,
	  .help = "Certificate of this relay (PEM), for servers that ask for one. Empty: none." },
	{ TEXT("upstream.grpc.key", upstream.grpc.key, CERTS "key.pem", valid_path_or_none,
	       "an absolute path, or nothing"),
	  .env_ref = "ROX_MTLS_KEY_FILE", RESTART,
	  .help = "Key of upstream.grpc.certificate (PEM, without a password). A pair that does "
		  "not match is not used." },
	{ DURATION("upstream.grpc.keepalive", upstream.grpc.keepalive_usec, "10s", GRPC_PING_LEAST,
		   DAY),
	  RESTART,
	  .help = "Silence of the server, while calls are open, until it is pinged. Doubled when "
		  "the server finds that too often." },
	{ DURATION("upstream.grpc.keepalive_timeout", upstream.grpc.keepalive_timeout_usec, "40s",
		   USEC_PER_SEC, HOUR),
	  RESTART, .help = "Time for the answer to a ping; then the connection is given up." },

	{ KIND(KIND_ADDRESS, "metrics.listen", struct settings_address, metrics.listen,
	       "127.0.0.1:9818"),
	  .env_ref = "ROX_METRICS_PORT", RESTART, .help = "Address of /metrics." },
	{ TEXT("metrics.prefix", metrics.prefix, "vsock_relay", valid_metric_prefix,
	       "a Prometheus name: letters, digits, '_' or ':', not beginning with a digit"),
	  RESTART,
	  .help = "Prefix of the metrics' names; rox_compliance_virtual_machine_relay keeps the "
		  "reference relay's dashboards working." },

	{ TEXT("metrics.certificate", metrics.certificate, "", valid_path_or_none,
	       "an absolute path, or nothing"),
	  RESTART,
	  .help = "Certificate (PEM) of metrics.listen, which then speaks HTTPS alone; a reload reads "
		  "it again. Empty: HTTP." },
	{ TEXT("metrics.key", metrics.key, "", valid_path_or_none, "an absolute path, or nothing"),
	  RESTART, .help = "Key of metrics.certificate (PEM, without a password)." },

	{ TEXT("admin_socket", admin_socket, "/run/vsock-relay/admin.sock", valid_path_or_none,
	       "an absolute path, or nothing"),
	  RESTART, .help = "AF_UNIX socket of vsock-relayctl. Empty: none." },
	{ TEXT("vm_names", vm_names, "", valid_path_or_none, "an absolute path, or nothing"),
	  RELOAD,
	  .help = "File with names of VMs, a line 'CID NAME' or 'NAMESPACE:CID NAME' each, for "
		  "vsock-relayctl; the relay itself does not read it." },
	{ ACCOUNT("user", user), RESTART,
	  .help = "Service user that the daemon becomes once its sockets and BPF programs are "
		  "set up. Empty: it stays who started it." },
	{ ACCOUNT("group", group), RESTART,
	  .help = "Group of the service user. Empty: the user's own." },
	{ CHOICE("sandbox", sandbox, enum settings_sandbox, "auto", sandbox_choices), RESTART,
	  .help = "After the start, only the system calls (seccomp) and the directories and TCP "
		  "ports (Landlock) that the relay needs. auto: as far as the kernel can, with a "
		  "warning otherwise; required: refuse to start without; off: for debuggers." },
	{ BOOL("core_dumps", core_dumps, "false"), RESTART,
	  .help = "Whether a crash may leave a core dump, which would hold reports. The limit of "
		  "its size is whoever's who starts the daemon." },
	{ DURATION("shutdown_grace", shutdown_grace_usec, "10s", 0, HOUR), RELOAD,
	  .help = "After SIGTERM, time for reports that are being received." },
	{ CHOICE("log.level", log_level, int, "info", log_choices), RELOAD,
	  .help = "What is logged: this and everything graver." },
	{ CHOICE("log.format", log_format, enum settings_log, "auto", format_choices), RELOAD,
	  .help = "text: a line; json: an object a line; auto: entries with fields in the journal "
		  "where standard error is the journal, else text." },
};

#define N_ROWS ARRAY_SIZE(rows)

/* ---- where a value comes from, and what is wrong with it ---- */

enum source {
	SOURCE_DEFAULT,
	SOURCE_FILE,
	SOURCE_ENV,
	SOURCE_ENV_REF,
	SOURCE_FLAG,
};

struct origin {
	enum source source;
	size_t line, column;
};

struct loader {
	struct settings *s;
	struct settings_errors *errors;
	const char *file;	  /* name for messages and the daemon; NULL: the default one */
	const char *flag[N_ROWS]; /* values on the command line */
	struct origin origin[N_ROWS];
	bool no_memory;
};

static _printf_(3, 4) void message(struct loader *ld, bool warning, const char *fmt, ...)
{
	struct settings_errors *e = ld->errors;
	va_list ap;
	char *text;
	int n;

	if (!warning)
		e->n_errors++;
	if (e->n == SETTINGS_MESSAGES_MAX) {
		e->n_left_off++;
		return;
	}
	va_start(ap, fmt);
	n = vasprintf(&text, fmt, ap);
	va_end(ap);
	if (n < 0) {
		ld->no_memory = true;
		return;
	}
	e->message[e->n].warning = warning;
	e->message[e->n++].text = text;
}

/* Enough was said: what a hostile file makes us do is bounded. */
static bool gives_up(const struct loader *ld)
{
	return ld->no_memory || ld->errors->n_left_off > 0;
}

void settings_errors_log(const struct settings_errors *errors, const char *prefix)
{
	for (size_t i = 0; i < errors->n; i++)
		log_write(errors->message[i].warning ? LOG_WARNING : LOG_ERR, "%s%s", prefix,
			  errors->message[i].text);
	if (errors->n_left_off > 0)
		log_error("%sand more; %zu are shown", prefix, errors->n);
}

void settings_errors_done(struct settings_errors *errors)
{
	for (size_t i = 0; i < errors->n; i++)
		free(errors->message[i].text);
	*errors = (struct settings_errors){};
}

struct quoted {
	char text[QUOTE_COLUMNS + sizeof("''...")];
};

/* Text from outside, fit for one line of a log. */
static struct quoted quote(const char *text)
{
	struct quoted q;
	size_t n = 0;

	q.text[n++] = '\'';
	for (; *text && n <= QUOTE_COLUMNS; text++)
		q.text[n++] = isprint((unsigned char)*text) ? *text : '?';
	snprintf(q.text + n, sizeof(q.text) - n, "%s'", *text ? "..." : "");
	return q;
}

/* "report.deadline" as "VSOCK_RELAY_REPORT_DEADLINE". */
static void name_env(const char *name, char *buf, size_t size)
{
	snprintf(buf, size, ENV_PREFIX "%s", name);
	for (char *p = buf; *p; p++)
		*p = *p == '.' ? '_' : (char)toupper((unsigned char)*p);
}

/* The same as "--report-deadline". */
static void name_flag(const char *name, char *buf, size_t size)
{
	snprintf(buf, size, "--%s", name);
	for (char *p = buf; *p; p++)
		if (*p == '.' || *p == '_')
			*p = '-';
}

struct place {
	char text[NAME_MAX_LEN + 512];
};

static struct place place_in_file(const struct loader *ld, size_t line, size_t column)
{
	struct place p;

	snprintf(p.text, sizeof(p.text), "%.500s:%zu:%zu", ld->file, line, column);
	return p;
}

/* Where row i has (or would have) its value from. */
static struct place place_of(const struct loader *ld, size_t i, const struct origin *origin)
{
	char name[NAME_MAX_LEN];
	struct place p;

	switch (origin->source) {
	case SOURCE_FILE:
		return place_in_file(ld, origin->line, origin->column);
	case SOURCE_ENV:
		name_env(rows[i].name, name, sizeof(name));
		snprintf(p.text, sizeof(p.text), "environment %s", name);
		return p;
	case SOURCE_ENV_REF:
		snprintf(p.text, sizeof(p.text), "environment %s", rows[i].env_ref);
		return p;
	case SOURCE_FLAG:
		name_flag(rows[i].name, name, sizeof(name));
		snprintf(p.text, sizeof(p.text), "flag %s", name);
		return p;
	default:
		snprintf(p.text, sizeof(p.text), "default");
		return p;
	}
}

static void bad_value(struct loader *ld, size_t i, struct origin origin, const char *what)
{
	char expects[256];

	message(ld, false, "%s: %s: %s; expected %s", place_of(ld, i, &origin).text, rows[i].name,
		what, settings_kind_expects(&rows[i], expects, sizeof(expects)));
}

static void set_value(struct loader *ld, size_t i, const char *text, struct origin origin)
{
	int r = settings_kind_parse(&rows[i], text, ld->s);

	if (r == -ENOMEM)
		ld->no_memory = true;
	else if (r < 0)
		bad_value(ld, i, origin, quote(text).text);
	else
		ld->origin[i] = origin;
}

/* ---- the file ---- */

static struct origin origin_of(const struct yaml_tree *node)
{
	return (struct origin){ SOURCE_FILE, node->line, node->column };
}

/* The texts of a map by their keys, in the order of keys (NULL-terminated); NULL where one is not
 * there. Returns false, and has said so, if it holds anything else. */
static bool map_texts(struct loader *ld, size_t i, const struct yaml_tree *item,
		      const char *const *keys, const char **texts)
{
	for (size_t k = 0; item->kind == YAML_MAP && k < item->n_children; k += 2) {
		const char *key = item->children[k]->text;
		const struct yaml_tree *value = item->children[k + 1];
		size_t n = 0;

		while (keys[n] && !streq(keys[n], key))
			n++;
		if (!keys[n] || texts[n] || value->kind != YAML_SCALAR) {
			bad_value(ld, i, origin_of(item->children[k]), quote(key).text);
			return false;
		}
		texts[n] = value->text;
	}
	return true;
}

static void item_added(struct loader *ld, size_t i, const struct yaml_tree *item, int r,
		       const char *text)
{
	if (r == -ENOMEM)
		ld->no_memory = true;
	else if (r < 0)
		bad_value(ld, i, origin_of(item), quote(text).text);
}

/* {path, cid} or {pattern} of hybrid.sockets. */
static void set_socket(struct loader *ld, size_t i, const struct yaml_tree *item)
{
	static const char *const keys[] = { "path", "pattern", "cid", NULL };
	const char *texts[ARRAY_SIZE(keys)] = {};
	const char *path, *pattern, *cid_text;
	uint32_t cid = 0;

	if (!map_texts(ld, i, item, keys, texts))
		return;
	path = texts[0];
	pattern = texts[1];
	cid_text = texts[2];
	if (pattern ? path || cid_text : !path || !cid_text) {
		bad_value(ld, i, origin_of(item), "neither {path, cid} nor {pattern}");
		return;
	}
	if (cid_text && settings_parse_cid(cid_text, &cid) < 0) {
		bad_value(ld, i, origin_of(item), quote(cid_text).text);
		return;
	}
	item_added(ld, i, item,
		   settings_sockets_add(&rows[i], ld->s, pattern ? pattern : path, cid),
		   pattern ? pattern : path);
}

/* {netns, namespace[, port]} of listeners. */
static void set_listener(struct loader *ld, size_t i, const struct yaml_tree *item)
{
	static const char *const keys[] = { "netns", "namespace", "port", NULL };
	static const char digits[] = "0123456789";
	const char *texts[ARRAY_SIZE(keys)] = {};
	_cleanup_free_ char *text = NULL;

	if (!map_texts(ld, i, item, keys, texts))
		return;
	if (!texts[0] || !texts[1]) {
		bad_value(ld, i, origin_of(item), "not {netns, namespace}, or with a port");
		return;
	}
	for (size_t k = 1; k <= 2; k++) {
		if (texts[k] && texts[k][strspn(texts[k], digits)]) {
			bad_value(ld, i, origin_of(item), quote(texts[k]).text);
			return;
		}
	}
	if (asprintf(&text, "%s%s%s=%s", texts[1], texts[2] ? ":" : "", texts[2] ?: "", texts[0]) <
	    0) {
		text = NULL;
		ld->no_memory = true;
		return;
	}
	item_added(ld, i, item, settings_listeners_add(&rows[i], ld->s, text), text);
}

static void set_items(struct loader *ld, size_t i, const struct yaml_tree *list)
{
	for (size_t k = 0; k < list->n_children && !gives_up(ld); k++) {
		if (rows[i].kind == KIND_SOCKETS)
			set_socket(ld, i, list->children[k]);
		else
			set_listener(ld, i, list->children[k]);
	}
	ld->origin[i] = origin_of(list);
}

/* A list of plain values is the same as the values in one line. */
static void set_list(struct loader *ld, size_t i, const struct yaml_tree *list)
{
	char text[SETTINGS_WORDS_MAX * (SETTINGS_WORD_MAX_LEN + 1) + 1] = "";
	size_t n = 0;

	for (size_t k = 0; k < list->n_children; k++) {
		const struct yaml_tree *item = list->children[k];

		if (item->kind != YAML_SCALAR || strchr(item->text, ',') || !*item->text ||
		    n + strlen(item->text) + 2 > sizeof(text)) {
			bad_value(ld, i, origin_of(item), "this item does not fit");
			return;
		}
		n += (size_t)snprintf(text + n, sizeof(text) - n, "%s%s", k ? "," : "", item->text);
	}
	set_value(ld, i, text, origin_of(list));
}

static void set_node(struct loader *ld, size_t i, const struct yaml_tree *value)
{
	if (value->kind == YAML_LIST &&
	    (rows[i].kind == KIND_SOCKETS || rows[i].kind == KIND_LISTENERS))
		set_items(ld, i, value);
	else if (value->kind == YAML_LIST &&
		 (rows[i].kind == KIND_UIDS || rows[i].kind == KIND_WORDS))
		set_list(ld, i, value);
	else if (value->kind != YAML_SCALAR)
		bad_value(ld, i, origin_of(value), "not a single value");
	else if (yaml_tree_is_null(value))
		bad_value(ld, i, origin_of(value), "no value (leave the key out for its default)");
	else
		set_value(ld, i, value->text, origin_of(value));
}

static bool is_section(const char *name)
{
	size_t n = strlen(name);

	for (size_t i = 0; i < N_ROWS; i++)
		if (strncmp(rows[i].name, name, n) == 0 && rows[i].name[n] == '.')
			return true;
	return false;
}

static bool find_row(const char *name, size_t *ret)
{
	for (size_t i = 0; i < N_ROWS; i++) {
		if (streq(rows[i].name, name)) {
			*ret = i;
			return true;
		}
	}
	return false;
}

/* The keys and sections directly below a prefix ("cache." or ""), for the text of an error. */
static void list_keys(const char *prefix, char *buf, size_t size)
{
	size_t n_prefix = strlen(prefix), n = 0, n_last = 0;
	const char *last = "";

	buf[0] = '\0';
	for (size_t i = 0; i < N_ROWS && n < size; i++) {
		const char *key = rows[i].name + n_prefix;
		size_t n_key;

		if (strncmp(rows[i].name, prefix, n_prefix) != 0)
			continue;
		n_key = strcspn(key, ".");
		/* Rows of a section stand together. */
		if (n_key == n_last && strncmp(key, last, n_key) == 0)
			continue;
		n += (size_t)snprintf(buf + n, size - n, "%s%.*s", n ? ", " : "", (int)n_key, key);
		last = key;
		n_last = n_key;
	}
}

static void unknown_key(struct loader *ld, const struct yaml_tree *key, const char *prefix)
{
	char known[512];

	list_keys(prefix, known, sizeof(known));
	message(ld, false, "%s: unknown key %s%s%.*s; expected one of: %s",
		place_in_file(ld, key->line, key->column).text, quote(key->text).text,
		*prefix ? " in " : "", (int)(*prefix ? strlen(prefix) - 1 : 0), prefix, known);
}

/* Whether the same key stands before the kth of a map. Called for known keys only: with more than
 * a bounded number of repeats the loader has given up. */
static bool is_repeat(const struct yaml_tree *map, size_t k)
{
	for (size_t j = 0; j < k; j += 2)
		if (streq(map->children[j]->text, map->children[k]->text))
			return true;
	return false;
}

static void set_map(struct loader *ld, const struct yaml_tree *map, const char *prefix);

static void set_section(struct loader *ld, const struct yaml_tree *value, const char *name)
{
	char prefix[NAME_MAX_LEN + 1];

	snprintf(prefix, sizeof(prefix), "%s.", name);
	if (value->kind == YAML_MAP) {
		set_map(ld, value, prefix);
	} else if (!yaml_tree_is_null(value)) {
		char known[512];

		list_keys(prefix, known, sizeof(known));
		message(ld, false, "%s: %s: not a section; expected keys below it: %s",
			place_in_file(ld, value->line, value->column).text, name, known);
	}
}

/* Depth is that of the table: what is not in it is not followed. */
static void set_map(struct loader *ld, const struct yaml_tree *map, const char *prefix)
{
	for (size_t k = 0; k < map->n_children && !gives_up(ld); k += 2) {
		const struct yaml_tree *key = map->children[k], *value = map->children[k + 1];
		char name[NAME_MAX_LEN];
		size_t i;
		bool is_row, fits;

		fits = (size_t)snprintf(name, sizeof(name), "%s%s", prefix, key->text) <
		       sizeof(name);
		is_row = fits && !strchr(key->text, '.') && find_row(name, &i);
		if (!is_row && (!fits || !is_section(name) || strchr(key->text, '.')))
			unknown_key(ld, key, prefix);
		else if (is_repeat(map, k))
			message(ld, false, "%s: %s stands here a second time; expected once",
				place_in_file(ld, key->line, key->column).text, name);
		else if (is_row)
			set_node(ld, i, value);
		else
			set_section(ld, value, name);
	}
}

static void read_yaml(struct loader *ld, const char *yaml, size_t len)
{
	_cleanup_(yaml_tree_freep)
	struct yaml_tree *tree = NULL;
	struct yaml_tree_error error;
	int r;

	r = yaml_tree_parse(yaml, len, &tree, &error);
	if (r == -ENOMEM) {
		ld->no_memory = true;
		return;
	}
	if (r < 0) {
		message(ld, false, "%s: %s", place_in_file(ld, error.line, error.column).text,
			error.text);
		return;
	}
	if (!tree || yaml_tree_is_null(tree))
		return;
	if (tree->kind == YAML_MAP)
		set_map(ld, tree, "");
	else
		message(ld, false, "%s: not settings; expected lines of the form KEY: VALUE",
			place_in_file(ld, tree->line, tree->column).text);
}

/* ---- the environment ---- */

/* The value of "NAME=value"; NULL if it has another name. Empty is the same as not set: manifests
 * often carry variables that nobody filled in. */
static const char *env_value(const char *entry, const char *name)
{
	size_t n = strlen(name);

	if (strncmp(entry, name, n) != 0 || entry[n] != '=' || !entry[n + 1])
		return NULL;
	return entry + n + 1;
}

static void set_from_env(struct loader *ld, char *const envp[], size_t i, const char *name,
			 enum source source)
{
	for (char *const *e = envp; *e; e++) {
		const char *value = env_value(*e, name);

		if (value) {
			set_value(ld, i, value, (struct origin){ .source = source });
			return;
		}
	}
}

/* Our own name wins over the reference's. */
static void read_env(struct loader *ld, char *const envp[])
{
	for (size_t i = 0; *envp && i < N_ROWS && !gives_up(ld); i++) {
		char name[NAME_MAX_LEN];

		if (rows[i].env_ref)
			set_from_env(ld, envp, i, rows[i].env_ref, SOURCE_ENV_REF);
		name_env(rows[i].name, name, sizeof(name));
		set_from_env(ld, envp, i, name, SOURCE_ENV);
	}
}

/* Kubernetes sets such variables in every pod for a Service named "vsock-relay...". */
static bool is_service_variable(const char *name, size_t n)
{
	static const char *const parts[] = { "_SERVICE_HOST", "_SERVICE_PORT", "_PORT_" };

	for (size_t i = 0; i < ARRAY_SIZE(parts); i++)
		if (memmem(name, n, parts[i], strlen(parts[i])))
			return true;
	return n >= 5 && memcmp(name + n - 5, "_PORT", 5) == 0;
}

/* A misspelt variable is no error, since the environment is shared, but it is worth a line. */
static void warn_about_env(struct loader *ld, char *const envp[])
{
	for (char *const *e = envp; *e && !gives_up(ld); e++) {
		size_t n = strcspn(*e, "=");
		bool known = false;

		if (strncmp(*e, ENV_PREFIX, strlen(ENV_PREFIX)) != 0 || is_service_variable(*e, n))
			continue;
		for (size_t i = 0; i < N_ROWS && !known; i++) {
			char name[NAME_MAX_LEN];

			name_env(rows[i].name, name, sizeof(name));
			known = strlen(name) == n && strncmp(name, *e, n) == 0;
		}
		if (!known) {
			_cleanup_free_ char *name = strndup(*e, n);

			message(ld, true, "environment %s: no such setting, ignored",
				name ? quote(name).text : "?");
		}
	}
}

/* ---- the command line ---- */

/* The row whose flag is the first n bytes of arg. */
static bool find_flag(const char *arg, size_t n, size_t *ret)
{
	for (size_t i = 0; i < N_ROWS; i++) {
		char flag[NAME_MAX_LEN];

		name_flag(rows[i].name, flag, sizeof(flag));
		if (strlen(flag) == n && strncmp(arg, flag, n) == 0) {
			*ret = i;
			return true;
		}
	}
	return false;
}

/* One of --help, --version, --check-config. */
static bool read_action(struct loader *ld, const char *arg)
{
	if (streq(arg, "--help") || streq(arg, "-h"))
		ld->s->action = SETTINGS_HELP;
	else if (streq(arg, "--version") || streq(arg, "-V"))
		ld->s->action = SETTINGS_VERSION;
	else if (streq(arg, "--check-config"))
		ld->s->action = SETTINGS_CHECK;
	else
		return false;
	return true;
}

/* Reads argv[k] and what belongs to it; returns how many arguments that were. */
static int read_argument(struct loader *ld, char *const argv[], int k)
{
	const char *arg = argv[k], *equals = strchr(arg, '='), *value = equals ? equals + 1 : NULL;
	size_t n = equals ? (size_t)(equals - arg) : strlen(arg), i = 0;
	bool is_config = (n == 8 && strncmp(arg, "--config", n) == 0) || streq(arg, "-c");
	const char **slot;
	int used = 1;

	if (read_action(ld, arg))
		return 1;
	if (!is_config && !find_flag(arg, n, &i)) {
		message(ld, false, "flag %s: unknown; --help lists them", quote(arg).text);
		return 1;
	}
	if (!value && !is_config && rows[i].kind == KIND_BOOL) {
		value = "true";
	} else if (!value) {
		value = argv[k + 1];
		used = 2;
	}
	slot = is_config ? &ld->file : &ld->flag[i];
	if (!value) {
		message(ld, false, "flag %s: expected a value behind it", quote(arg).text);
		return 1;
	}
	if (*slot)
		message(ld, false, "flag %.*s: given a second time; expected once", (int)n, arg);
	*slot = value;
	return used;
}

static void read_flags(struct loader *ld, int argc, char *const argv[])
{
	for (int k = 1; k < argc && !gives_up(ld);)
		k += read_argument(ld, argv, k);
}

static void set_flags(struct loader *ld)
{
	for (size_t i = 0; i < N_ROWS; i++)
		if (ld->flag[i])
			set_value(ld, i, ld->flag[i], (struct origin){ .source = SOURCE_FLAG });
}

/* ---- defaults and what must fit together ---- */

static void set_defaults(struct loader *ld)
{
	static const struct origin origin = { .source = SOURCE_DEFAULT };

	for (size_t i = 0; i < N_ROWS; i++)
		if (ld->origin[i].source == SOURCE_DEFAULT && rows[i].def)
			set_value(ld, i, rows[i].def, origin);
	/* The upstream is known now, by default or not. */
	for (size_t i = 0; i < N_ROWS; i++)
		if (ld->origin[i].source == SOURCE_DEFAULT && !rows[i].def)
			set_value(ld, i, rows[i].def_for[ld->s->upstream.kind], origin);
}

/* Blames the first of two keys that somebody set. */
static _printf_(4, 5) void conflict(struct loader *ld, const char *key, const char *other,
				    const char *fmt, ...)
{
	_cleanup_free_ char *text = NULL;
	size_t i = 0, j = 0;
	va_list ap;
	int n;

	find_row(key, &i);
	find_row(other, &j);
	if (ld->origin[i].source == SOURCE_DEFAULT)
		i = j;
	va_start(ap, fmt);
	n = vasprintf(&text, fmt, ap);
	va_end(ap);
	if (n < 0) {
		text = NULL;
		ld->no_memory = true;
		return;
	}
	message(ld, false, "%s: %s", place_of(ld, i, &ld->origin[i]).text, text);
}

static void check_memory(struct loader *ld)
{
	const struct settings *s = ld->s;
	uint64_t least = 2 * (s->report.max_bytes + MIB);

	if (s->memory_budget < least)
		conflict(ld, "memory.budget", "report.max_kib",
			 "memory.budget: too small for report.max_kib: %llu; expected at least "
			 "%lluKiB, twice (report.max_kib + 1 MiB)",
			 s->report.max_bytes / KIB, least / KIB);
	if (s->cache.slots > 0 && s->cache.bytes < s->report.max_bytes)
		conflict(ld, "cache.bytes", "report.max_kib",
			 "cache.bytes: too small for report.max_kib: %llu; expected at least "
			 "%lluKiB, so that every report fits (or cache.slots: 0)",
			 s->report.max_bytes / KIB, s->report.max_bytes / KIB);
	if (*s->state_directory && s->spool.max_bytes < s->report.max_bytes + SPOOL_HEADER_SIZE)
		conflict(ld, "spool.max_bytes", "report.max_kib",
			 "spool.max_bytes: too small for report.max_kib: %llu; expected at least "
			 "%lluKiB, so that every report fits",
			 s->report.max_bytes / KIB,
			 (s->report.max_bytes + SPOOL_HEADER_SIZE) / KIB);
}

static void check_times(struct loader *ld)
{
	const struct settings *s = ld->s;

	if (s->report.idle_usec > s->report.deadline_usec)
		conflict(ld, "report.idle", "report.deadline",
			 "report.idle: longer than report.deadline, so it would never act; "
			 "expected at most as long");
	if (s->retry.mode == SETTINGS_RETRY_EXPONENTIAL && s->retry.base_usec > s->retry.cap_usec)
		conflict(ld, "retry.cap", "retry.base",
			 "retry.cap: shorter than retry.base; expected at least as long");
}

/* Listeners inside other network namespaces: one number stands for one namespace, or two VMs would
 * be one. */
static void check_inside(struct loader *ld)
{
	const struct settings *s = ld->s;

	for (size_t i = 0; i < s->listeners.n && !gives_up(ld); i++) {
		const struct settings_listener *a = &s->listeners.item[i];

		if (a->ns == s->ns)
			conflict(ld, "listeners", "namespace",
				 "listeners: number %" PRIu32 " of %s is that of namespace, which "
				 "the relay's other VMs have; expected another one",
				 a->ns, quote(a->netns).text);
		for (size_t j = 0; j < i && !gives_up(ld); j++) {
			const struct settings_listener *b = &s->listeners.item[j];

			if (a->ns == b->ns)
				conflict(ld, "listeners", "listeners",
					 "listeners: number %" PRIu32 " stands there twice; "
					 "expected once: it tells VMs of the same CID apart",
					 a->ns);
			else if (streq(a->netns, b->netns))
				conflict(ld, "listeners", "listeners",
					 "listeners: %s stands there twice; expected once",
					 quote(a->netns).text);
		}
	}
}

static void check_listeners(struct loader *ld)
{
	const struct settings *s = ld->s;

	if (!s->listen.vsock && s->listeners.n == 0 && s->hybrid.n_sockets == 0)
		conflict(ld, "listen.vsock", "hybrid.sockets",
			 "listen.vsock: false, and hybrid.sockets is empty, and so is listeners: "
			 "nothing to listen on; expected one of them");
	check_inside(ld);
	for (size_t i = 0; i < s->hybrid.n_sockets && !gives_up(ld); i++) {
		const struct settings_hybrid *a = &s->hybrid.sockets[i];

		if (!a->is_pattern && a->cid <= 2 && !s->allow_reserved_cids)
			conflict(ld, "hybrid.sockets", "hybrid.sockets",
				 "hybrid.sockets: CID %" PRIu32 " is reserved; expected 3 or more "
				 "(or allow_reserved_cids: true)",
				 a->cid);
		for (size_t j = 0; j < i && !gives_up(ld); j++) {
			const struct settings_hybrid *b = &s->hybrid.sockets[j];

			if (streq(a->path, b->path))
				conflict(ld, "hybrid.sockets", "hybrid.sockets",
					 "hybrid.sockets: %s stands there twice; expected once",
					 quote(a->path).text);
			else if (!a->is_pattern && a->cid == b->cid)
				conflict(ld, "hybrid.sockets", "hybrid.sockets",
					 "hybrid.sockets: CID %" PRIu32 " stands there twice; "
					 "expected once: it identifies the VM",
					 a->cid);
		}
	}
}

static void check_upstream(struct loader *ld)
{
	const struct settings *s = ld->s;

	if (s->upstream.kind != SETTINGS_UPSTREAM_GRPC)
		return;
	if (s->report.max_bytes > GRPC_MESSAGE_MAX)
		conflict(ld, "report.max_kib", "upstream.kind",
			 "report.max_kib: too long for upstream.kind: grpc; expected at most %llu, "
			 "the longest message",
			 GRPC_MESSAGE_MAX / KIB);
	if (s->upstream.grpc.acks == SETTINGS_ACKS_COMMUNICATE &&
	    s->upstream.grpc.ack_names == SETTINGS_ACK_NAMES_CID) {
		if (s->ns != 0)
			conflict(ld, "upstream.grpc.ack_names", "namespace",
				 "upstream.grpc.ack_names: cid, but namespace is %" PRIu32
				 ", where VMs of other namespaces have the same CIDs; expected "
				 "vm_id (or upstream.grpc.acks: response)",
				 s->ns);
		else if (s->listeners.n > 0)
			conflict(ld, "upstream.grpc.ack_names", "listeners",
				 "upstream.grpc.ack_names: cid, but VMs of several namespaces "
				 "(listeners) may have the same CID; expected vm_id (or "
				 "upstream.grpc.acks: response)");
	}
	if (!s->upstream.grpc.plaintext && !*s->upstream.grpc.certificate != !*s->upstream.grpc.key)
		conflict(ld, "upstream.grpc.key", "upstream.grpc.certificate",
			 "upstream.grpc.key: set without upstream.grpc.certificate, or the other "
			 "way round; expected both or none");
}

static void check_metrics(struct loader *ld)
{
	const struct settings *s = ld->s;

	if (!*s->metrics.certificate != !*s->metrics.key)
		conflict(ld, "metrics.key", "metrics.certificate",
			 "metrics.key: set without metrics.certificate, or the other way round; "
			 "expected both or none");
}

static void check_user(struct loader *ld)
{
	if (*ld->s->group && !*ld->s->user)
		conflict(ld, "group", "user",
			 "group: set without user, so it would not be used; expected both");
}

/* ---- loading ---- */

static int begin(struct loader *ld, int argc, char *const argv[], struct settings_errors *errors)
{
	*errors = (struct settings_errors){};
	ld->errors = errors;
	ld->s = calloc(1, sizeof(*ld->s));
	if (!ld->s)
		return -ENOMEM;
	read_flags(ld, argc, argv);
	return 0;
}

static int finish(struct loader *ld, struct settings **ret)
{
	_cleanup_(settings_freep)
	struct settings *s = TAKE_PTR(ld->s);

	if (ld->no_memory)
		return -ENOMEM;
	if (ld->errors->n_errors > 0)
		return -EINVAL;
	*ret = TAKE_PTR(s);
	return 0;
}

static bool wants_settings(const struct loader *ld)
{
	return ld->s->action == SETTINGS_RUN || ld->s->action == SETTINGS_CHECK;
}

/* All sources, the weakest first; yaml is NULL if there is no file. */
static void read_all(struct loader *ld, char *const envp[], const char *yaml, size_t len)
{
	if (yaml)
		read_yaml(ld, yaml, len);
	read_env(ld, envp);
	warn_about_env(ld, envp);
	set_flags(ld);
	set_defaults(ld);
	ld->s->file = strdup(yaml ? ld->file : "");
	if (!ld->s->file)
		ld->no_memory = true;
	/* A value that was not understood is not compared with others. */
	if (ld->errors->n_errors > 0 || ld->no_memory)
		return;
	check_memory(ld);
	check_times(ld);
	check_listeners(ld);
	check_upstream(ld);
	check_metrics(ld);
	check_user(ld);
}

int settings_parse(int argc, char *const argv[], char *const envp[], const char *file,
		   const char *yaml, size_t len, struct settings **ret,
		   struct settings_errors *errors)
{
	struct loader ld = {};
	int r;

	r = begin(&ld, argc, argv, errors);
	if (r < 0)
		return r;
	if (wants_settings(&ld)) {
		ld.file = file;
		read_all(&ld, envp, yaml, len);
	}
	return finish(&ld, ret);
}

/* Reads a regular file of bounded size. Returns 0, -ENOENT, -EISDIR (no regular file), -EFBIG,
 * -ENOMEM, and what open() and read() return. */
static int read_file(const char *path, char **ret, size_t *ret_len)
{
	_cleanup_free_ char *text = malloc(SETTINGS_FILE_MAX + 1);
	_cleanup_close_ int fd = -1;
	struct stat st;
	size_t len = 0;

	if (!text)
		return -ENOMEM;
	/* O_NONBLOCK: a FIFO must not stop us before it is found not to be a file. */
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EISDIR;
	while (len <= SETTINGS_FILE_MAX) {
		ssize_t n = read(fd, text + len, SETTINGS_FILE_MAX + 1 - len);

		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		len += (size_t)n;
	}
	if (len > SETTINGS_FILE_MAX)
		return -EFBIG;
	*ret = TAKE_PTR(text);
	*ret_len = len;
	return 0;
}

/* The text of the configuration file, NULL if the default one is missing. */
static void load_file(struct loader *ld, char **ret, size_t *ret_len)
{
	const char *path = ld->file ? ld->file : SETTINGS_DEFAULT_FILE;
	int r;

	r = read_file(path, ret, ret_len);
	if (r == -ENOMEM)
		ld->no_memory = true;
	else if (r == -EISDIR)
		message(ld, false, "%.500s: not a regular file; expected one", path);
	else if (r == -EFBIG)
		message(ld, false, "%.500s: too long; expected at most %llu KiB", path,
			SETTINGS_FILE_MAX / KIB);
	else if (r < 0 && (r != -ENOENT || ld->file))
		message(ld, false, "%.500s: cannot be read: %s", path, strerror(-r));
	ld->file = path;
}

int settings_load(int argc, char *const argv[], char *const envp[], struct settings **ret,
		  struct settings_errors *errors)
{
	_cleanup_free_ char *yaml = NULL;
	struct loader ld = {};
	size_t len = 0;
	int r;

	r = begin(&ld, argc, argv, errors);
	if (r < 0)
		return r;
	if (wants_settings(&ld)) {
		load_file(&ld, &yaml, &len);
		read_all(&ld, envp, yaml, len);
	}
	return finish(&ld, ret);
}

struct settings *settings_free(struct settings *s)
{
	if (!s)
		return NULL;
	for (size_t i = 0; i < N_ROWS; i++)
		settings_kind_done(&rows[i], s);
	free(s->file);
	free(s);
	return NULL;
}

/* ---- what else the table tells ---- */

char *settings_value(const struct settings *s, size_t i)
{
	return i < N_ROWS ? settings_kind_format(&rows[i], s) : NULL;
}

int settings_reload_diff(const struct settings *old, const struct settings *new, settings_diff_fn f,
			 void *arg)
{
	int n = 0;

	for (size_t i = 0; i < N_ROWS; i++) {
		_cleanup_free_ char *a = settings_value(old, i), *b = settings_value(new, i);

		if (!a || !b)
			return -ENOMEM;
		if (streq(a, b))
			continue;
		if (rows[i].needs_restart)
			n++;
		if (f)
			f(rows[i].name, rows[i].needs_restart, a, b, arg);
	}
	return n;
}

bool settings_key(size_t i, struct settings_key_info *ret)
{
	if (i >= N_ROWS)
		return false;
	*ret = (struct settings_key_info){
		.name = rows[i].name,
		.def = rows[i].def ? rows[i].def : rows[i].def_for[SETTINGS_UPSTREAM_FILE],
		.help = rows[i].help,
		.env_ref = rows[i].env_ref ? rows[i].env_ref : "",
		.needs_restart = rows[i].needs_restart,
	};
	name_env(rows[i].name, ret->env, sizeof(ret->env));
	name_flag(rows[i].name, ret->flag, sizeof(ret->flag));
	settings_kind_expects(&rows[i], ret->expects, sizeof(ret->expects));
	return true;
}

/* Words of text in lines of HELP_COLUMNS, indented. */
static void print_wrapped(FILE *out, const char *text)
{
	size_t column = 0;

	while (*text) {
		size_t n = strcspn(text, " ");

		if (column > 0 && column + 1 + n > HELP_COLUMNS) {
			fputc('\n', out);
			column = 0;
		}
		if (column == 0)
			column = (size_t)fprintf(out, "%*s%.*s", HELP_INDENT, "", (int)n, text);
		else
			column += (size_t)fprintf(out, " %.*s", (int)n, text);
		text += n + strspn(text + n, " ");
	}
	fputc('\n', out);
}

static void print_key(FILE *out, const struct settings_key_info *key)
{
	_cleanup_free_ char *facts = NULL;

	fprintf(out, "  %s=VALUE\n", key->flag);
	print_wrapped(out, key->help);
	if (asprintf(&facts, "Expects %s. Default: %s. Change: %s. Environment: %s%s%s.",
		     key->expects, *key->def ? key->def : "empty",
		     key->needs_restart ? "restart" : "reload", key->env,
		     *key->env_ref ? " or " : "", key->env_ref) < 0)
		facts = NULL;
	else
		print_wrapped(out, facts);
}

void settings_help(FILE *out)
{
	struct settings_key_info key;

	fputs("Usage: vsock-relayd [OPTION]...\n"
	      "Receives inventory reports of virtual machines over AF_VSOCK and forwards them.\n"
	      "\n"
	      "  -c, --config=FILE\n"
	      "        Settings in YAML; default " SETTINGS_DEFAULT_FILE "\n"
	      "        (which may be missing).\n"
	      "  --check-config\n"
	      "        Check the settings, say what is wrong with them, and exit: 0 or 78.\n"
	      "  -h, --help\n"
	      "  -V, --version\n"
	      "\n"
	      "Every setting is a key of the file (a flag's dashes are its dots and\n"
	      "underscores), an environment variable and a flag. Flags win over environment\n"
	      "over file over defaults. SIGHUP reads all of it again; what needs a restart is\n"
	      "refused then, and nothing is changed.\n"
	      "\n",
	      out);
	for (size_t i = 0; settings_key(i, &key); i++)
		print_key(out, &key);
}
