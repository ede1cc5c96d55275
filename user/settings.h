/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Settings of the daemon (SPEC 9). One table in settings.c names every key with its type, default,
 * bounds, environment variables and whether a reload may change it; the YAML reader, the
 * environment, the flags, --help, the texts of errors, the difference for a reload and
 * docs/settings.md all come from that table. The daemon reads the plain struct below.
 *
 * Flags win over environment over file over defaults. A bad value is an error even where a
 * stronger source overrides it: it would surface at the worst time, when that one goes away.
 */
#ifndef VSR_SETTINGS_H
#define VSR_SETTINGS_H

#include "util.h"

#define SETTINGS_DEFAULT_FILE "/etc/vsock-relay/vsock-relayd.yaml"
/* A configuration file beyond this is refused unread. */
#define SETTINGS_FILE_MAX (256 * KIB)

/* What the command line asks for. */
enum settings_action {
	SETTINGS_RUN,
	SETTINGS_CHECK,	  /* --check-config: the settings are good, say so and exit 0 */
	SETTINGS_HELP,	  /* --help: nothing but the action is set */
	SETTINGS_VERSION, /* --version: nothing but the action is set */
};

enum settings_bpf {
	SETTINGS_BPF_AUTO,     /* use it where it works, else user space, said once */
	SETTINGS_BPF_REQUIRED, /* refuse to start without */
	SETTINGS_BPF_OFF,
};

enum settings_sandbox {
	SETTINGS_SANDBOX_AUTO,	   /* what the kernel has, said if it is not all */
	SETTINGS_SANDBOX_REQUIRED, /* refuse to start without */
	SETTINGS_SANDBOX_OFF,
};

enum settings_dedup {
	SETTINGS_DEDUP_DIGEST, /* a report may be called a duplicate by its digest alone */
	SETTINGS_DEDUP_BYTES,  /* only by comparing every byte */
};

enum settings_unchanged {
	SETTINGS_UNCHANGED_FORWARD,  /* ACKed content that comes again is a new generation */
	SETTINGS_UNCHANGED_SUPPRESS, /* it is dropped until refresh_interval has passed */
};

enum settings_retry_mode {
	SETTINGS_RETRY_LINEAR,
	SETTINGS_RETRY_EXPONENTIAL,
};

enum settings_acks {
	SETTINGS_ACKS_COMMUNICATE, /* come on a stream of their own */
	SETTINGS_ACKS_RESPONSE,	   /* a call's success is the ACK */
};

enum settings_ack_names {
	SETTINGS_ACK_NAMES_VM_ID, /* with the CID, where the ACK has one */
	SETTINGS_ACK_NAMES_CID,	  /* alone */
};

enum settings_upstream {
	SETTINGS_UPSTREAM_FILE,
	SETTINGS_UPSTREAM_GRPC,
	SETTINGS_UPSTREAM_MAX,
};

enum settings_log {
	SETTINGS_LOG_AUTO, /* the journal's fields where standard error is the journal, else text */
	SETTINGS_LOG_TEXT,
	SETTINGS_LOG_JSON,
};

/* cache.slots: as many as VMs seen, at least 100. */
#define SETTINGS_SLOTS_AUTO UINT32_MAX

/*
 * One hybrid AF_UNIX listener. path is the VMM's own socket ("uds_path"), to which the relay
 * appends "_<listen.port>" as Firecracker and Cloud Hypervisor do when their guest connects. With
 * is_pattern it holds "{cid}" exactly once, in one component: the CID stands there in decimal,
 * and the directory above that component is watched for new VMs.
 */
struct settings_hybrid {
	char *path;
	bool is_pattern;
	uint32_t cid; /* 0 for a pattern */
};

/* A listener inside another network namespace, whose VMs are those of namespace number ns. */
#define SETTINGS_LISTENERS_MAX 16
struct settings_listener {
	char *netns; /* a file of that namespace, such as /run/netns/NAME */
	uint32_t ns;
	uint32_t port; /* 0: listen.port */
};

struct settings_listeners {
	size_t n;
	struct settings_listener *item;
};

#define SETTINGS_UIDS_MAX 64
struct settings_uids {
	bool any;
	uint32_t n;
	uint32_t uid[SETTINGS_UIDS_MAX];
};

/* A list of texts without commas. */
#define SETTINGS_WORDS_MAX    16
#define SETTINGS_WORD_MAX_LEN 128
struct settings_words {
	size_t n;
	char *word[SETTINGS_WORDS_MAX];
};

struct settings_address {
	bool enabled;
	char host[46]; /* numeric IPv4 or IPv6 without brackets; "" is every address */
	uint16_t port;
};

/* Times are in usec, sizes in bytes. Strings are never NULL; "" is "not set". */
struct settings {
	enum settings_action action;
	char *file; /* the configuration file that was read; "" if the default one is missing */

	uint32_t ns;	 /* namespace: first part of every VM id */
	char *node_name; /* "" is the host's name */

	struct {
		bool vsock;
		uint32_t port;
		uint32_t backlog;
	} listen;
	struct settings_listeners listeners;

	struct {
		struct settings_hybrid *sockets;
		size_t n_sockets;
		uint32_t mode;
		char *group; /* "" leaves the group as it is */
		struct settings_uids allowed_uids;
	} hybrid;

	enum settings_bpf bpf;
	char *pin_directory;
	char *run_directory; /* holds the lock of the one instance */

	struct {
		uint64_t max_bytes; /* exactly this many payload bytes are accepted */
		uint64_t deadline_usec;
		uint64_t idle_usec;
	} report;

	struct {
		uint32_t places;
		uint64_t wait_usec;
		uint32_t waiting;
		double grant_rate; /* per VM and second; 0 is unlimited */
		uint32_t grant_burst;
	} admission;

	uint64_t memory_budget;
	bool allow_reserved_cids;

	struct {
		uint32_t slots; /* 0: no cache; or SETTINGS_SLOTS_AUTO */
		uint64_t ttl_usec;
		uint64_t bytes;
		bool keep_acked;
		uint64_t compress_after_usec; /* 0: never */
	} cache;

	enum settings_dedup dedup;
	enum settings_unchanged unchanged;
	uint64_t refresh_interval_usec; /* 0: never */

	struct {
		double reports_per_minute; /* per VM; 0 is unlimited */
		uint64_t stale_ack_threshold_usec;
	} rate;

	uint64_t custody_max_age_usec;

	char *state_directory; /* "" is none: custody is memory */
	bool accept_without_disk;
	struct {
		uint32_t max_files;
		uint64_t max_bytes;
	} spool;

	struct {
		uint64_t base_usec; /* never 0 */
		enum settings_retry_mode mode;
		double factor;
		uint64_t cap_usec;
		double jitter_percent;
		struct settings_words permanent_nacks;
	} retry;

	struct {
		enum settings_upstream kind;
		char *file_directory;
		struct {
			char *address;
			enum settings_acks acks;
			enum settings_ack_names ack_names;
			bool plaintext;
			char *server_name;	      /* "" is the address's host */
			char *ca, *certificate, *key; /* the latter two may be "" */
			uint64_t keepalive_usec, keepalive_timeout_usec;
		} grpc;
	} upstream;

	struct {
		struct settings_address listen;
		char *prefix;
		char *certificate, *key; /* both "": no TLS */
	} metrics;

	char *admin_socket; /* "" is none */
	char *user;	    /* name or number; "" stays who started it */
	char *group;	    /* "" is the user's own */
	enum settings_sandbox sandbox;
	bool core_dumps;
	uint64_t shutdown_grace_usec;
	char *vm_names; /* file of names for people; "" is none */
	int log_level;	/* LOG_ERR to LOG_DEBUG of syslog.h */
	enum settings_log log_format;
};

/* What is wrong, one line each, in the order found: "FILE:LINE:COLUMN: KEY: what; expected ...". */
#define SETTINGS_MESSAGES_MAX 20
struct settings_errors {
	size_t n; /* messages held */
	struct {
		bool warning; /* worth a line, no reason to stop */
		char *text;
	} message[SETTINGS_MESSAGES_MAX];
	size_t n_errors; /* that are no warnings, also those beyond the bound */
	size_t n_left_off;
};

/* Logs the messages, a line each behind `prefix`, and how many were left off. */
void settings_errors_log(const struct settings_errors *errors, const char *prefix);

/* Frees the texts; the struct itself is the caller's and is empty afterwards. */
void settings_errors_done(struct settings_errors *errors);

/*
 * Reads the command line (argv[0] is skipped), the file that it names or the default one, and the
 * environment (NULL-terminated "NAME=value"), and checks all of it. Used again, with the same
 * argv and envp, for a reload. A missing default file is the same as an empty one.
 *
 * Returns 0 (*errors may hold warnings; look at (*ret)->action), -EINVAL (*errors says why: print
 * the lines and exit 78, or keep the old settings), -ENOMEM.
 */
int settings_load(int argc, char *const argv[], char *const envp[], struct settings **ret,
		  struct settings_errors *errors);

/*
 * The same without I/O: yaml is the file's text (len bytes, no NUL needed), file its name for the
 * errors. What --config says is not followed.
 */
int settings_parse(int argc, char *const argv[], char *const envp[], const char *file,
		   const char *yaml, size_t len, struct settings **ret,
		   struct settings_errors *errors);

struct settings *settings_free(struct settings *s);
DEFINE_CLEANUP(struct settings, settings_free);

/*
 * Compares settings in force with those of a reload. For every key that differs f, if not NULL,
 * is called with its name and both values as text. Returns the number of differing keys that need
 * a restart: above 0 the reload is to be refused whole, and f was told which. -ENOMEM.
 */
typedef void (*settings_diff_fn)(const char *key, bool needs_restart, const char *old_value,
				 const char *new_value, void *arg);
int settings_reload_diff(const struct settings *old, const struct settings *new, settings_diff_fn f,
			 void *arg);

/* Writes the text of --help. */
void settings_help(FILE *out);

/* The table, for documentation and tests: fills *ret for key number i, false behind the last. */
struct settings_key_info {
	const char *name;    /* "report.deadline" */
	const char *def;     /* as written in the file */
	const char *help;    /* one or more sentences */
	const char *env_ref; /* the reference relay's variable, "" if none */
	char env[64];	     /* "VSOCK_RELAY_REPORT_DEADLINE" */
	char flag[64];	     /* "--report-deadline" */
	bool needs_restart;
	char expects[256]; /* "a duration such as 4h, 1m30s or 250ms, from 10ms to 1h" */
};
bool settings_key(size_t i, struct settings_key_info *ret);

/* The vsock port of a listener. */
static inline uint32_t settings_listener_port(const struct settings *s,
					      const struct settings_listener *l)
{
	return l->port ?: s->listen.port;
}

/* The value of key number i in force, as it would be written on the command line; NULL if there is
 * no memory or no such key. The caller frees it. */
char *settings_value(const struct settings *s, size_t i);

#endif
