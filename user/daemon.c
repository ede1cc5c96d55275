/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon.h"

#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <systemd/sd-event.h>

#include "admin.h"
#include "clock.h"
#include "control.h"
#include "disk.h"
#include "hybrid.h"
#include "ingest.h"
#include "lock.h"
#include "log.h"
#include "log_journal.h"
#include "metrics.h"
#include "netns.h"
#include "privilege.h"
#include "probe.h"
#include "relay.h"
#include "sandbox.h"
#include "spool.h"
#include "upstream_file.h"
#include "upstream_grpc.h"

/* Jobs of the disk worker: every send under way, and as many again, and the spool's. */
#define DISK_QUEUE (2 * RELAY_IN_FLIGHT_MAX + SPOOL_JOBS_MAX)
/* Retries of a kernel without AF_VSOCK (SPEC 3, address). */
#define VSOCK_RETRY_FIRST (1 * USEC_PER_SEC)
#define VSOCK_RETRY_MAX	  (5 * USEC_PER_MIN)
/* How often a stop looks whether all is done. */
#define STOP_LOOK (50 * USEC_PER_MSEC)
/* Receive memory that was not used for so long goes back to the system: a report every 144 s needs
 * none that is warm. */
#define TRIM_INTERVAL (5 * USEC_PER_SEC)
/* cache.slots: auto (SPEC 4). */
#define SLOTS_AUTO_MIN 100

struct daemon {
	struct daemon_args args;
	struct settings *settings; /* in force */
	struct settings *started;  /* at the start: the listeners refer to them */
	sd_event *event;
	int run_lock, pin_lock, state_lock;
	bool has_identity; /* else we stay who we are */
	struct privilege_identity identity;
	struct disk *disk;
	bool disk_hangs;     /* said so */
	struct spool *spool; /* NULL: no state directory */
	bool serving;	     /* privileges are dropped, and what was kept is in custody again */
	struct upstream *upstream;
	struct vm_table *vms;
	struct admission *admission;
	struct relay *relay;
	struct ingest_bpf *bpf;
	struct match_table *matches;
	struct ingest *ingest;
	struct probes *probes;
	struct list vsocks;	 /* all listeners on vsock */
	bool vsock;		 /* that of listen.port is among them */
	enum netns_mode ns_mode; /* of our own network namespace */
	struct control_listener inside[SETTINGS_LISTENERS_MAX];
	size_t n_inside;
	struct hybrid *hybrid;
	struct control *control;
	struct admin *admin;
	sd_event_source *post, *timer, *pack, *disk_source, *vsock_retry;
	uint64_t trim_at; /* when memory that nobody used goes back */
	uint64_t vsock_retry_after;
	uint64_t stop_at; /* 0: runs */
	int result;
};

/* ---- settings for the parts ---------------------------------------------------------------------- */

static struct admission_settings admission_of(const struct settings *s)
{
	return (struct admission_settings){
		.places = s->admission.places,
		.waiting = s->admission.waiting,
		.wait = s->admission.wait_usec,
		.budget = s->memory_budget,
		.report_limit = s->report.max_bytes,
	};
}

static struct ingest_settings ingest_of(const struct settings *s)
{
	return (struct ingest_settings){
		.max_report = (uint32_t)s->report.max_bytes,
		.deadline = s->report.deadline_usec,
		.idle = s->report.idle_usec,
		.allow_reserved_cids = s->allow_reserved_cids,
		.bpf_required = s->bpf == SETTINGS_BPF_REQUIRED,
	};
}

static struct relay_settings relay_of(const struct settings *s)
{
	struct relay_settings r = {
		.dedup_bytes = s->dedup == SETTINGS_DEDUP_BYTES,
		.suppress_unchanged = s->unchanged == SETTINGS_UNCHANGED_SUPPRESS,
		.refresh_interval = s->refresh_interval_usec,
		.stale_ack = s->rate.stale_ack_threshold_usec,
		.custody_max_age = s->custody_max_age_usec,
		.ns = s->ns,
		.several_ns = s->listeners.n > 0,
		.acks_by_cid = s->upstream.grpc.ack_names == SETTINGS_ACK_NAMES_CID,
		.accept_without_disk = s->accept_without_disk,
		.slots_auto = s->cache.slots == SETTINGS_SLOTS_AUTO,
		.cache = { .slots = s->cache.slots == SETTINGS_SLOTS_AUTO ? SLOTS_AUTO_MIN
									  : s->cache.slots,
			   .bytes = s->cache.bytes,
			   .ttl = s->cache.ttl_usec,
			   .keep = s->cache.keep_acked ? VM_IDLE_USEC : 0,
			   .pack = s->cache.compress_after_usec },
		.retry = tracker_defaults,
	};

	r.retry.base = (int64_t)s->retry.base_usec;
	r.retry.exponential = s->retry.mode == SETTINGS_RETRY_EXPONENTIAL;
	r.retry.factor = s->retry.factor;
	r.retry.cap = s->retry.cap_usec;
	r.retry.jitter = s->retry.jitter_percent / 100;
	r.retry.permanent = (const char *const *)s->retry.permanent_nacks.word;
	r.retry.n_permanent = s->retry.permanent_nacks.n;
	return r;
}

static struct bucket_rate grants_of(const struct settings *s)
{
	return bucket_rate_per(s->admission.grant_rate, USEC_PER_SEC, s->admission.grant_burst);
}

static struct bucket_rate reports_of(const struct settings *s)
{
	return bucket_rate_per(s->rate.reports_per_minute, USEC_PER_MIN, 1);
}

void daemon_set_log(const struct settings *s)
{
	bool journal = s->log_format == SETTINGS_LOG_AUTO && log_journal_is_ours();

	log_set_level(s->log_level);
	log_set_format(s->log_format == SETTINGS_LOG_JSON ? LOG_FORMAT_JSON : LOG_FORMAT_TEXT);
	log_set_sink(journal ? log_journal_send : NULL);
}

static struct spool_limits spool_of(const struct settings *s)
{
	return (struct spool_limits){
		.max_files = s->spool.max_files,
		.max_bytes = s->spool.max_bytes,
	};
}

/* ---- the turn of the loop ------------------------------------------------------------------------- */

/* The VM is gone, or has read all that was queued before the probe. */
static void on_probe(struct vsr_vm_id id, uint64_t debt, enum probe_result result, void *userdata)
{
	struct daemon *d = userdata;
	struct vm *vm = vm_table_find(d->vms, id);

	if (!vm || result == PROBE_SILENT)
		return;
	/* What came after the probe is not answered by it. */
	if (result == PROBE_GONE || vm->debt == debt)
		admission_vm_gone(d->admission, vm);
}

static void probe_debtors(struct daemon *d, uint64_t now)
{
	struct vm *vm;

	while ((vm = admission_debt_probe(d->admission, d->settings->ns, now)))
		probe_start(d->probes, vm->node.id, vm->debt);
}

/* Reports that cannot be written stay in custody; that the disk hangs is said once. Returns when
 * to look again. */
static uint64_t watch_disk(struct daemon *d, uint64_t now)
{
	const struct settings *s = d->settings;
	bool hangs;

	if (!d->disk)
		return USEC_INFINITY;
	hangs = disk_busy_for(d->disk) > DISK_DEADLINE;
	if (hangs && !d->disk_hangs)
		log_error(
			"%s: the disk has not answered for %llu s; reports are held until it does",
			d->spool ? s->state_directory : s->upstream.file_directory,
			DISK_DEADLINE / USEC_PER_SEC);
	else if (!hangs && d->disk_hangs)
		log_notice("the disk answers again");
	d->disk_hangs = hangs;
	return disk_pending(d->disk) > 0 ? usec_add(now, DISK_DEADLINE) : USEC_INFINITY;
}

/* Contents that stay are compressed when there is nothing else to do. Returns when to look again. */
static uint64_t start_packing(struct daemon *d, uint64_t now)
{
	uint64_t due = relay_pack_due(d->relay);
	int enabled = SD_EVENT_OFF;

	sd_event_source_get_enabled(d->pack, &enabled);
	if (enabled != SD_EVENT_OFF)
		return USEC_INFINITY;
	if (due > now)
		return due;
	sd_event_source_set_enabled(d->pack, SD_EVENT_ON);
	return USEC_INFINITY;
}

static int on_pack(sd_event_source *source, void *userdata)
{
	struct daemon *d = userdata;

	if (!relay_pack(d->relay, clock_usec()))
		sd_event_source_set_enabled(source, SD_EVENT_OFF);
	return 0;
}

/* Returns when to look again. */
static uint64_t trim_pool(struct daemon *d, uint64_t now)
{
	if (now >= d->trim_at) {
		buf_pool_trim();
		d->trim_at = usec_add(now, TRIM_INTERVAL);
	}
	return buf_pool_bytes() > 0 ? d->trim_at : USEC_INFINITY;
}

/* The spool before the relay, which may write what waits, and again behind it, as it may have
 * dropped some. Returns when to look again. */
static uint64_t run_relay(struct daemon *d, uint64_t now)
{
	uint64_t next = watch_disk(d, now);

	if (d->spool && d->serving)
		spool_run(d->spool, d->disk_hangs, now);
	relay_run(d->relay, now);
	if (d->spool && d->serving) {
		spool_run(d->spool, d->disk_hangs, now);
		next = MIN(next, spool_next_event(d->spool));
	}
	return MIN(next, relay_next_event(d->relay));
}

/* After whatever happened: who can go on now goes on. */
static void turn(struct daemon *d)
{
	uint64_t now = clock_usec(), next;
	struct admission_figures a;

	admission_figures(d->admission, &a);
	if (a.debtors > 0)
		listener_look(&d->vsocks);
	ingest_run(d->ingest, now);
	next = run_relay(d, now);
	probe_debtors(d, now);
	next = MIN(next, admission_next_event(d->admission, now));
	next = MIN(next, start_packing(d, now));
	next = MIN(next, trim_pool(d, now));
	sd_event_source_set_time(d->timer, next);
	sd_event_source_set_enabled(d->timer,
				    next == USEC_INFINITY ? SD_EVENT_OFF : SD_EVENT_ONESHOT);
}

static int on_post(sd_event_source *source _unused_, void *userdata)
{
	turn(userdata);
	return 0;
}

static int on_timer(sd_event_source *source _unused_, uint64_t usec _unused_,
		    void *userdata _unused_)
{
	return 0; /* on_post() does what is due */
}

static int on_disk(sd_event_source *source _unused_, int fd _unused_, uint32_t revents _unused_,
		   void *userdata)
{
	struct daemon *d = userdata;

	disk_dispatch(d->disk);
	return 0;
}

/* ---- what people see ------------------------------------------------------------------------------- */

static void on_vm_changed(const struct vm *vm, void *userdata)
{
	struct daemon *d = userdata;
	struct vsr_vm_state state;

	vm_export(vm, &state);
	ingest_bpf_vm_state_update(d->bpf, &vm->node.id, &state);
}

/* vsr_vm_state outlives us, and its counters go on. */
static bool vm_before(struct vsr_vm_id id, struct vsr_vm_state *ret, void *userdata)
{
	struct daemon *d = userdata;

	return ingest_bpf_vm_state_lookup(d->bpf, &id, ret) == 0;
}

static void notify_status(const struct daemon *d)
{
	sd_notifyf(0, "STATUS=%s; %s; %u hybrid sockets; upstream %s",
		   !list_empty(&d->vsocks) ? "listening on vsock"
		   : d->vsock_retry	   ? "waiting for a kernel with AF_VSOCK"
					   : "no vsock listener",
		   ingest_bpf_active(d->ingest) ? "BPF" : "user-space mode",
		   d->hybrid ? hybrid_count(d->hybrid) : 0, d->upstream->ops->name);
}

static void refresh_sandbox(void)
{
	struct sandbox_state s = sandbox_state();

	metric_set_label(METRIC_SANDBOX, METRIC_SECCOMP, s.seccomp);
	metric_set_label(METRIC_SANDBOX, METRIC_LANDLOCK, s.landlock);
}

static void refresh_bpf(const struct daemon *d)
{
	bool bpf = ingest_bpf_active(d->ingest);
	struct match_figures m;
	struct vsr_stats stats;

	metric_set_label(METRIC_BPF_MODE, METRIC_BPF_KERNEL, bpf);
	metric_set_label(METRIC_BPF_MODE, METRIC_BPF_USER, !bpf);
	if (d->bpf && ingest_bpf_stats(d->bpf, &stats) == 0)
		metrics_set_bpf(&stats);
	metric_set(METRIC_MEMORY_SHARED, (double)ingest_pool_drawn(d->ingest));
	match_table_figures(d->matches, &m);
	metric_set(METRIC_MATCH_BLOCKS, (double)m.blocks_used);
	metric_set(METRIC_MATCH_BLOCKS_LIMIT, (double)m.blocks);
	metric_set(METRIC_MEMORY_PINNED, (double)m.pinned);
}

static void refresh_spool(const struct daemon *d, const struct relay_figures *r)
{
	struct spool_figures s;

	metric_set(METRIC_UNSPOOLED_NOW, (double)r->unspooled);
	if (!d->spool)
		return;
	spool_figures(d->spool, &s);
	for (unsigned state = 0; state < SPOOL_STATE_MAX; state++)
		metric_set_label(METRIC_SPOOL_STATE, state, s.state == state);
	metric_set(METRIC_SPOOL_FILES, (double)s.files);
	metric_set(METRIC_SPOOL_BYTES, (double)s.bytes);
	metric_set(METRIC_SPOOL_FILES_LIMIT, d->settings->spool.max_files);
	metric_set(METRIC_SPOOL_BYTES_LIMIT, (double)d->settings->spool.max_bytes);
}

/* Gauges are set when somebody asks. */
static void refresh_metrics(void *userdata)
{
	struct daemon *d = userdata;
	uint64_t now = clock_usec();
	struct admission_figures a;
	struct relay_figures r;

	admission_figures(d->admission, &a);
	metric_set(METRIC_SEM_HOLDING, a.places_used);
	metric_set(METRIC_SEM_QUEUE, a.waiting);
	metric_set(METRIC_PLACES, a.places);
	metric_set_label(METRIC_PLACES_CLASS, METRIC_CLASS_LIMITED, a.limited_places);
	metric_set_label(METRIC_PLACES_CLASS, METRIC_CLASS_OFFENDER, a.offender_places);
	metric_set(METRIC_MEMORY_BUDGET, (double)a.budget);
	metric_set(METRIC_MEMORY_RESERVED, (double)a.reserved);
	metric_set(METRIC_MEMORY_DEBT, (double)a.debt);
	metric_set(METRIC_VMS_DEBT, a.debtors);
	metric_set(METRIC_MEMORY_IDLE, (double)buf_pool_bytes());
	metric_set_label(METRIC_LISTENERS, METRIC_VSOCK, (double)(d->vsock + d->n_inside));
	metric_set_label(METRIC_LISTENERS, METRIC_HYBRID, d->hybrid ? hybrid_count(d->hybrid) : 0);
	relay_figures(d->relay, now, &r);
	refresh_spool(d, &r);
	metric_set(METRIC_CONTENTS_HELD, (double)r.held);
	metric_set(METRIC_CONTENTS_IN_FLIGHT, (double)r.in_flight);
	metric_set(METRIC_CONTENTS_AWAITING_ACK, (double)r.awaiting);
	metric_set(METRIC_UPSTREAM_READY, d->upstream->ready);
	metric_set(METRIC_UPSTREAM_PAUSED, r.paused);
	metric_set(METRIC_OLDEST_UNACKED, (double)r.oldest / USEC_PER_SEC);
	metric_set(METRIC_CACHE_SLOTS_USED, (double)r.cache.slots_used);
	metric_set(METRIC_CACHE_SLOTS, (double)r.cache.slots);
	metric_set(METRIC_CACHE_BYTES, (double)r.cache.bytes);
	metric_set(METRIC_CACHE_KEPT, (double)r.cache.kept);
	metric_set(METRIC_CACHE_KEPT_BYTES, (double)r.cache.kept_bytes);
	metric_set(METRIC_CACHE_PACKED, (double)r.cache.packed);
	metric_set(METRIC_CACHE_PACKED_BYTES, (double)r.cache.packed_bytes);
	metric_set(METRIC_CACHE_PACKED_LENGTH, (double)r.cache.packed_length);
	metric_set(METRIC_CACHE_BYTES_LIMIT, (double)d->settings->cache.bytes);
	metric_set_label(METRIC_CACHE_LOOKUPS, METRIC_HIT, (double)r.cache.hits);
	metric_set_label(METRIC_CACHE_LOOKUPS, METRIC_MISS, (double)r.cache.misses);
	metric_set(METRIC_VMS, (double)vm_table_count(d->vms));
	refresh_bpf(d);
	refresh_sandbox();
	metrics_read_process();
}

static void control_state(void *userdata, struct control_state *ret)
{
	const struct daemon *d = userdata;
	struct spool_figures spool = { 0 };

	if (d->spool)
		spool_figures(d->spool, &spool);
	*ret = (struct control_state){
		.settings = d->settings,
		.vsock = d->vsock,
		.ns_mode = netns_mode_name(d->ns_mode),
		.inside = d->inside,
		.n_inside = d->n_inside,
		.hybrid = d->hybrid != NULL,
		.n_hybrid = d->hybrid ? hybrid_count(d->hybrid) : 0,
		.stopping = d->stop_at != 0,
		.disk_hangs = d->disk_hangs,
		.spool = d->spool ? spool_state_name(spool.state) : NULL,
		.spool_why = spool.state == SPOOL_FAILED ? strerror(spool.error) : NULL,
	};
}

/* ---- signals ---------------------------------------------------------------------------------------- */

/* What is being received, stored, sent or removed. */
static bool is_busy(const struct daemon *d, const struct relay_figures *r)
{
	struct spool_figures s = { 0 };

	if (d->spool && d->serving)
		spool_figures(d->spool, &s);
	return ingest_busy(d->ingest) > 0 || r->in_flight > 0 || r->storing > 0 || s.busy > 0;
}

static void tell_what_is_left(const struct daemon *d, const struct relay_figures *r)
{
	size_t lost = d->spool ? r->unspooled : r->held;

	if (ingest_busy(d->ingest) > 0)
		log_warning("%u connections are cut: shutdown_grace is over",
			    ingest_busy(d->ingest));
	if (lost > 0)
		log_warning("%zu reports were not delivered; their VMs will send them again", lost);
	if (r->held > lost)
		log_info("%zu reports are in the state directory until the next start",
			 r->held - lost);
}

static int on_stop_look(sd_event_source *source, uint64_t usec _unused_, void *userdata)
{
	struct daemon *d = userdata;
	struct relay_figures r;
	uint64_t now = clock_usec();

	/* A report that was accepted a moment ago may not be on its way yet. */
	run_relay(d, now);
	relay_figures(d->relay, now, &r);
	if (now < d->stop_at && is_busy(d, &r)) {
		sd_event_source_set_time_relative(source, STOP_LOOK);
		sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
		return 0;
	}
	tell_what_is_left(d, &r);
	return sd_event_exit(d->event, 0);
}

static void stop_listening(struct daemon *d)
{
	listener_free_all(&d->vsocks);
	d->vsock = false;
	d->n_inside = 0;
}

static int on_terminate(sd_event_source *source _unused_, const struct signalfd_siginfo *si,
			void *userdata)
{
	struct daemon *d = userdata;
	int r;

	if (d->stop_at)
		return 0;
	log_info("signal %u: no new connections; reports in progress are finished", si->ssi_signo);
	sd_notify(0, "STOPPING=1");
	d->stop_at = usec_add(clock_usec(), d->settings->shutdown_grace_usec);
	stop_listening(d);
	d->hybrid = hybrid_free(d->hybrid);
	d->vsock_retry = sd_event_source_disable_unref(d->vsock_retry);
	ingest_stop(d->ingest);
	r = sd_event_add_time_relative(d->event, NULL, CLOCK_BOOTTIME, 0, 0, on_stop_look, d);
	if (r < 0) {
		/* Nobody would look again. */
		log_error_errno(r, "reports in progress are not waited for");
		return sd_event_exit(d->event, 0);
	}
	return 0;
}

static void log_refused(const char *key, bool needs_restart, const char *old_value,
			const char *new_value, void *arg _unused_)
{
	if (needs_restart)
		log_error("reload: %s needs a restart (%s -> %s)", key, old_value, new_value);
}

static void log_applied(const char *key, bool needs_restart _unused_, const char *old_value,
			const char *new_value, void *arg _unused_)
{
	log_info("reload: %s: %s -> %s", key, old_value, new_value);
}

static int apply(struct daemon *d, const struct settings *s)
{
	struct admission_settings a = admission_of(s);
	struct ingest_settings i = ingest_of(s);
	struct relay_settings r = relay_of(s);
	struct spool_limits limits = spool_of(s);
	int result;

	result = admission_set(d->admission, &a);
	if (result < 0)
		return result;
	result = relay_set(d->relay, &r, clock_usec());
	if (result < 0) {
		/* All of it or nothing. */
		a = admission_of(d->settings);
		(void)admission_set(d->admission, &a);
		return result;
	}
	if (d->spool)
		spool_set_limits(d->spool, &limits);
	ingest_set(d->ingest, &i);
	vm_table_set_rates(d->vms, grants_of(s), reports_of(s));
	daemon_set_log(s);
	(void)admin_reload(d->admin);
	return 0;
}

/* Returns 0, or negative errno: nothing was changed. */
static int reload(struct daemon *d)
{
	_cleanup_(settings_freep)
	struct settings *s = NULL;
	struct settings_errors errors = { 0 };
	int r;

	r = settings_load(d->args.argc, d->args.argv, d->args.envp, &s, &errors);
	settings_errors_log(&errors, "reload: ");
	settings_errors_done(&errors);
	if (r == 0)
		r = settings_reload_diff(d->settings, s, log_refused, NULL);
	if (r == 0)
		r = apply(d, s);
	if (r < 0 && r != -EINVAL)
		log_error_errno(r, "reload");
	if (r != 0) {
		log_error("reload refused, the settings stay as they were");
		return r < 0 ? r : -EINVAL;
	}
	(void)settings_reload_diff(d->settings, s, log_applied, NULL);
	if (d->settings != d->started)
		settings_free(d->settings);
	d->settings = TAKE_PTR(s);
	/* Contents that smaller limits have dropped: malloc would keep what is free below a block in use. */
	buf_pool_trim();
	malloc_trim(0);
	log_info("reloaded");
	return 0;
}

/* The same for SIGHUP and for whoever asks over the admin socket: the service manager is told. */
static int reload_and_notify(void *userdata)
{
	int r;
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts); /* sd_notify(3): not the core's clock */
	sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%llu",
		   ts.tv_sec * USEC_PER_SEC + ts.tv_nsec / NSEC_PER_USEC);
	r = reload(userdata);
	sd_notify(0, "READY=1");
	return r;
}

static int on_reload(sd_event_source *source _unused_, const struct signalfd_siginfo *si _unused_,
		     void *userdata)
{
	(void)reload_and_notify(userdata);
	return 0;
}

static int add_signals(struct daemon *d)
{
	static const struct {
		int signo;
		sd_event_signal_handler_t handler;
	} signals[] = {
		{ SIGTERM, on_terminate },
		{ SIGINT, on_terminate },
		{ SIGHUP, on_reload },
	};
	sigset_t set;
	int r = 0;

	sigemptyset(&set);
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
		sigaddset(&set, signals[i].signo);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return -errno;
	signal(SIGPIPE, SIG_IGN);
	for (size_t i = 0; r >= 0 && i < ARRAY_SIZE(signals); i++)
		r = sd_event_add_signal(d->event, NULL, signals[i].signo, signals[i].handler, d);
	return r;
}

/* ---- start ------------------------------------------------------------------------------------------ */

static int serve_vsock(struct daemon *d, int fd, uint32_t ns)
{
	int r = listener_vsock_new(d->event, d->ingest, fd, ns, &d->vsocks);

	if (r < 0) {
		close(fd);
		return log_error_errno(r, "vsock listener");
	}
	return 0;
}

/* where: " inside /run/netns/x", or "". */
static int explain_bind(uint32_t port, const char *where, enum netns_mode mode, int r)
{
	if (r == -EADDRINUSE && *where && mode == NETNS_GLOBAL)
		return log_error_errno(
			r,
			"vsock port %u%s; this namespace is in ns_mode global, where "
			"ports are those of all global ones: make it while "
			"net.vsock.child_ns_mode is local",
			port, where);
	if (r == -EADDRINUSE)
		return log_error_errno(r,
				       "vsock port %u%s; another program listens there, stop it or "
				       "set %s",
				       port, where, *where ? "port of listeners" : "listen.port");
	if (r == -EACCES)
		return log_error_errno(r,
				       "vsock port %u%s; ports below 1024 need "
				       "CAP_NET_BIND_SERVICE",
				       port, where);
	return log_error_errno(r, "vsock port %u%s", port, where);
}

static void tell_ns_mode(enum netns_mode mode)
{
	static const char *const says[] = {
		[NETNS_NONE] =
			"this kernel has no vsock network namespaces: a listener sees every VM",
		[NETNS_UNKNOWN] = "vsock ns_mode cannot be read: /proc/sys/net is hidden",
		[NETNS_GLOBAL] =
			"vsock ns_mode of the relay's network namespace is global: VMs whose "
			"VMM runs in a global one are seen",
		[NETNS_LOCAL] = "vsock ns_mode of the relay's network namespace is local: only VMs "
				"whose VMM runs in it are seen",
	};

	log_info("%s", says[mode]);
}

/* The listener of listen.port. -EAFNOSUPPORT is not logged. */
static int listen_here(struct daemon *d)
{
	const struct settings *s = d->settings;
	int fd, r;

	r = listener_vsock_open(s->listen.port, s->listen.backlog, &fd);
	if (r == -EAFNOSUPPORT)
		return r;
	if (r < 0)
		return explain_bind(s->listen.port, "", d->ns_mode, r);
	r = serve_vsock(d, fd, s->ns);
	if (r < 0)
		return r;
	d->vsock = true;
	log_info("listening on vsock port %u", s->listen.port);
	return 0;
}

static int listen_inside(struct daemon *d, const struct settings_listener *l)
{
	const struct settings *s = d->settings;
	uint32_t port = settings_listener_port(s, l);
	_cleanup_free_ char *where = NULL;
	struct netns netns = { .mode = NETNS_NONE };
	const char *why = "";
	int fd, r;

	if (asprintf(&where, " inside %s", l->netns) < 0) {
		where = NULL;
		return log_error_errno(-ENOMEM, "listeners");
	}
	r = netns_listen(l->netns, port, s->listen.backlog, &fd, &netns, &why);
	if (r == -EAFNOSUPPORT)
		return r;
	if (r == NETNS_NOT_ENTERED) {
		log_error(
			"listeners: network namespace %s: %s; make it before the relay starts, or "
			"take it out of listeners",
			l->netns, why);
		return -ENOENT;
	}
	if (r < 0)
		return explain_bind(port, where, netns.mode, r);
	r = serve_vsock(d, fd, l->ns);
	if (r < 0)
		return r;
	d->inside[d->n_inside++] = (struct control_listener){ l, netns };
	log_info("listening on vsock port %u%s, ns_mode %s, for VMs %u:*", port, where,
		 netns_mode_name(netns.mode), l->ns);
	if (netns.mode == NETNS_GLOBAL)
		log_warning("listeners: %s is in ns_mode global: VMs of every global namespace can "
			    "connect there, and are then %u:CID",
			    l->netns, l->ns);
	return 0;
}

/* Where vsock knows no namespaces every VM reaches listen.port, and would get another id by
 * connecting elsewhere. */
static int leave_out_inside(const struct settings *s)
{
	const char *advice = s->listen.vsock ? "all VMs reach listen.port"
					     : "set listen.vsock: true, which all VMs reach";

	if (s->listen.vsock || s->hybrid.n_sockets > 0) {
		log_warning(
			"listeners are left out, as this kernel has no vsock network namespaces "
			"(they came with Linux 7.0): %s",
			advice);
		return 0;
	}
	log_error("listeners: this kernel has no vsock network namespaces (they came with Linux "
		  "7.0): %s",
		  advice);
	return -EOPNOTSUPP;
}

/* All listeners on vsock. Returns 0; -EAFNOSUPPORT (not logged): this kernel has no AF_VSOCK, and
 * nothing is listened on; what else is wrong. */
static int listen_vsock(struct daemon *d)
{
	const struct settings *s = d->settings;
	int r = s->listen.vsock ? listen_here(d) : 0;

	if (r < 0)
		return r;
	d->ns_mode = netns_mode();
	/* Without a socket of ours the module may not be there yet: a listener inside would be
	 * the first to load it. */
	if (!s->listen.vsock && s->listeners.n > 0) {
		r = listener_vsock_probe();
		if (r < 0)
			return r;
		d->ns_mode = netns_mode();
	}
	tell_ns_mode(d->ns_mode);
	if (s->listeners.n > 0 && d->ns_mode == NETNS_NONE)
		return leave_out_inside(s);
	if (s->listeners.n > 0 && d->ns_mode == NETNS_UNKNOWN) {
		log_error(
			"listeners: whether this kernel has vsock network namespaces cannot be seen, "
			"as /proc/sys/net is hidden; with systemd: ProcSubset=all");
		return -EOPNOTSUPP;
	}
	for (size_t i = 0; r == 0 && i < s->listeners.n; i++)
		r = listen_inside(d, &s->listeners.item[i]);
	return r;
}

static int begin_service(struct daemon *d);

static int on_vsock_retry(sd_event_source *source, uint64_t usec _unused_, void *userdata)
{
	struct daemon *d = userdata;
	int r;

	metric_inc(METRIC_LISTEN_RETRIES);
	r = listen_vsock(d);
	if (r == -EAFNOSUPPORT) {
		d->vsock_retry_after = MIN(2 * d->vsock_retry_after, VSOCK_RETRY_MAX);
		sd_event_source_set_time_relative(source, d->vsock_retry_after);
		sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
		return 0;
	}
	if (r == 0)
		r = begin_service(d);
	d->vsock_retry = sd_event_source_disable_unref(source);
	if (r < 0) {
		d->result = r;
		return sd_event_exit(d->event, r);
	}
	notify_status(d);
	return 0;
}

/* Opens the vsock listeners. A kernel without AF_VSOCK may get it when a module is loaded: that is
 * waited for, but only as long as we still have the privileges to bind and to enter namespaces. */
static int start_vsock(struct daemon *d)
{
	const struct settings *s = d->settings;
	int r;

	if (!s->listen.vsock && s->listeners.n == 0)
		return 0;
	r = listen_vsock(d);
	if (r != -EAFNOSUPPORT)
		return r;
	if (s->hybrid.n_sockets > 0) {
		log_warning("this kernel has no AF_VSOCK: only hybrid sockets are served; load the "
			    "vsock module and restart for the rest");
		return 0;
	}
	log_warning("this kernel has no AF_VSOCK: load the vsock module; will be tried again");
	d->vsock_retry_after = VSOCK_RETRY_FIRST;
	r = sd_event_add_time_relative(d->event, &d->vsock_retry, CLOCK_BOOTTIME,
				       d->vsock_retry_after, 0, on_vsock_retry, d);
	return r < 0 ? log_error_errno(r, "timer") : 0;
}

static int take_lock(const char *directory, int *ret_fd)
{
	pid_t holder = 0;
	int r;

	r = lock_acquire(directory, ret_fd, &holder);
	if (r == -EWOULDBLOCK)
		return log_error_errno(r, "%s is in use by another vsock-relayd, process %d",
				       directory, (int)holder);
	return r < 0 ? log_error_errno(r, "cannot lock %s", directory) : 0;
}

static int start_grpc(struct daemon *d)
{
	const struct settings *s = d->settings;
	struct upstream_grpc_settings g = {
		.conn = { .address = s->upstream.grpc.address,
			  .plaintext = s->upstream.grpc.plaintext,
			  .tls = { .ca = s->upstream.grpc.ca,
				   .certificate = s->upstream.grpc.certificate,
				   .key = s->upstream.grpc.key },
			  .server_name = s->upstream.grpc.server_name,
			  .ping_interval = s->upstream.grpc.keepalive_usec,
			  .ping_timeout = s->upstream.grpc.keepalive_timeout_usec },
		.communicate = s->upstream.grpc.acks == SETTINGS_ACKS_COMMUNICATE,
		.node_name = s->node_name,
	};
	int r;

	if (s->upstream.grpc.plaintext)
		log_warning("upstream.grpc.plaintext: reports are sent unencrypted to %s",
			    s->upstream.grpc.address);
	r = upstream_grpc_new(d->event, &g, &d->upstream);
	return r < 0 ? log_error_errno(r, "upstream.grpc") : 0;
}

static int start_disk(struct daemon *d)
{
	const struct settings *s = d->settings;
	int r;

	if (s->upstream.kind != SETTINGS_UPSTREAM_FILE && !*s->state_directory)
		return 0;
	r = disk_new(DISK_QUEUE, &d->disk);
	if (r == 0)
		r = sd_event_add_io(d->event, &d->disk_source, disk_fd(d->disk), EPOLLIN, on_disk,
				    d);
	return r < 0 ? log_error_errno(r, "disk worker") : 0;
}

/* Its directory first, which the lock lies in. A disk that takes not even that has no second relay
 * on it that could do harm. */
static int start_spool(struct daemon *d)
{
	const struct privilege_identity *id = d->has_identity ? &d->identity : NULL;
	struct spool_limits limits = spool_of(d->settings);
	const char *dir = d->settings->state_directory;
	int r;

	if (!*dir)
		return 0;
	r = spool_open(dir, id, &limits, d->disk, &d->spool);
	/* Made here it would be ours, and not the service user's. */
	if (r == 0 && access(dir, F_OK) == 0)
		r = take_lock(dir, &d->state_lock);
	return r == -EROFS || r == -ENOSPC ? 0 : r;
}

static int start_file(struct daemon *d)
{
	const char *dir = d->settings->upstream.file_directory;
	_cleanup_close_ int fd = -1;
	int r;

	/* Who writes to it is the service user. */
	r = privilege_make_directory(AT_FDCWD, dir, 0750,
				     d->has_identity ? d->identity.uid : (uid_t)-1,
				     d->has_identity ? d->identity.gid : (gid_t)-1, &fd);
	if (r == -ENOENT) {
		log_error(
			"upstream.file.directory %s: only its last part is made at the start, and "
			"what it should be in is not there: make that, or name another directory",
			dir);
		return -ENOENT;
	}
	if (r < 0)
		return log_error_errno(r, "upstream.file.directory %s", dir);
	r = upstream_file_new(d->disk, fd, &d->upstream);
	if (r < 0)
		return log_error_errno(r, "upstream");
	TAKE_FD(fd);
	return 0;
}

static int start_upstream(struct daemon *d)
{
	return d->settings->upstream.kind == SETTINGS_UPSTREAM_GRPC ? start_grpc(d) : start_file(d);
}

/* Locks the pin directory if it is there: not every system has a BPF file system, and then nothing
 * is shared either. */
static int lock_pins(struct daemon *d)
{
	const char *dir = d->settings->pin_directory;

	return d->pin_lock < 0 && access(dir, F_OK) == 0 ? take_lock(dir, &d->pin_lock) : 0;
}

static uint32_t blocks_of(const struct settings *s)
{
	return (uint32_t)(s->cache.bytes / VSR_BLOCK_SIZE);
}

/* As far as bpf and the kernel allow: the verdict; else maps for people; else nothing. */
static int load_bpf(struct daemon *d, uint64_t seed)
{
	const struct settings *s = d->settings;
	struct ingest_bpf_settings b = {
		.seed = seed,
		.report_limit = s->report.max_bytes,
		.slots = s->admission.places,
		.vms = VM_TABLE_MAX,
		.blocks = blocks_of(s),
		.pool_limit = admission_reserve(d->admission),
		.pin_dir = s->pin_directory,
		.pin_uid = d->has_identity ? d->identity.uid : (uid_t)-1,
		.pin_gid = d->has_identity ? d->identity.gid : (gid_t)-1,
		.maps_only =
			s->bpf == SETTINGS_BPF_OFF || (!s->listen.vsock && s->listeners.n == 0),
	};
	int r;

	r = ingest_bpf_new(&b, &d->bpf);
	if (r == 0 || b.maps_only)
		return 0;
	if (s->bpf == SETTINGS_BPF_REQUIRED)
		return log_error_errno(r, "bpf: required, but %s", ingest_bpf_why());
	log_warning("vsock reports are checked in user space: %s", ingest_bpf_why());
	b.maps_only = true;
	if (ingest_bpf_new(&b, &d->bpf) < 0)
		log_info("no maps to inspect either: %s", ingest_bpf_why());
	return 0;
}

static int start_bpf(struct daemon *d, uint64_t seed)
{
	int r;

	r = lock_pins(d);
	if (r == -EWOULDBLOCK)
		return r;
	r = load_bpf(d, seed);
	if (r < 0)
		return r;
	/* The directory may be new. */
	r = lock_pins(d);
	return r == -EWOULDBLOCK ? r : 0;
}

static double random_fraction(void *userdata _unused_)
{
	uint32_t v;

	return getrandom(&v, sizeof(v), 0) == sizeof(v) ? v / 4294967296.0 : 0.5;
}

static int start_core(struct daemon *d)
{
	struct admission_settings a = admission_of(d->settings);
	struct relay_settings rs = relay_of(d->settings);
	int r;

	r = vm_table_new(VM_TABLE_MAX, grants_of(d->settings), reports_of(d->settings), &d->vms);
	if (r == 0)
		r = admission_new(d->vms, &a, &d->admission);
	if (r == 0)
		r = relay_new(&rs, d->vms, d->upstream, random_fraction, NULL, &d->relay);
	if (r == 0 && d->spool)
		relay_set_store(d->relay, spool_store(d->spool));
	return r < 0 ? log_error_errno(r, "cannot start") : 0;
}

/* The digests of cached blocks: where the verdict reads them, or in memory of ours. */
static int start_matches(struct daemon *d)
{
	bool bpf = d->bpf && !ingest_bpf_maps_only(d->bpf);
	uint64_t *blocks = NULL;
	uint32_t n = blocks_of(d->settings);
	int r;

	if (bpf)
		blocks = ingest_bpf_blocks(d->bpf, &n);
	r = match_table_new(blocks, n, &d->matches);
	if (r == 0)
		relay_set_matches(d->relay, d->matches);
	return r;
}

static int start_ingest(struct daemon *d, uint64_t seed)
{
	struct ingest_settings s = ingest_of(d->settings);
	struct ingest_parts parts = {
		.event = d->event,
		.vms = d->vms,
		.admission = d->admission,
		.relay = d->relay,
		.bpf = d->bpf,
		.seed = seed,
		.durable = d->spool,
		.places = d->settings->admission.places,
	};
	int r;

	if (d->bpf) {
		relay_observe(d->relay, on_vm_changed, d);
		vm_table_remember(d->vms, vm_before, d);
	}
	r = start_matches(d);
	if (r == 0)
		r = ingest_new(&s, &parts, &d->ingest);
	if (r == 0)
		r = probes_new(d->event, on_probe, d, &d->probes);
	return r < 0 ? log_error_errno(r, "ingest") : 0;
}

static int add_sources(struct daemon *d)
{
	int r;

	r = sd_event_default(&d->event);
	if (r >= 0)
		r = add_signals(d);
	if (r >= 0)
		r = sd_event_set_watchdog(d->event, true);
	if (r >= 0)
		r = sd_event_add_time(d->event, &d->timer, CLOCK_BOOTTIME, USEC_INFINITY,
				      10 * USEC_PER_MSEC, on_timer, d);
	if (r >= 0)
		r = sd_event_add_defer(d->event, &d->pack, on_pack, d);
	if (r >= 0)
		r = sd_event_source_set_priority(d->pack, SD_EVENT_PRIORITY_IDLE);
	if (r >= 0)
		r = sd_event_source_set_enabled(d->pack, SD_EVENT_OFF);
	return r < 0 ? log_error_errno(r, "event loop") : 0;
}

/* Whom to become; looked up first, as what is made before the drop is made for this user. Sockets
 * of VMs that come later are given to hybrid.group by whoever we are then. */
static int find_identity(struct daemon *d)
{
	const struct settings *s = d->settings;
	char self[16];
	int r;

	d->has_identity = *s->user || *s->hybrid.group;
	if (!d->has_identity)
		return 0;
	snprintf(self, sizeof(self), "%u", getuid());
	r = privilege_resolve(*s->user ? s->user : self, s->group, &d->identity);
	if (r == 0 && *s->hybrid.group)
		r = privilege_add_group(&d->identity, s->hybrid.group);
	return r < 0 ? log_error_errno(r, "user %s, group %s, hybrid.group %s", s->user, s->group,
				       s->hybrid.group)
		     : 0;
}

/* Files that are read again later; "" where there is none. NULL-terminated. */
struct later_files {
	const char *path[7];
};

static struct later_files later_files(const struct settings *s)
{
	bool tls = s->upstream.kind == SETTINGS_UPSTREAM_GRPC && !s->upstream.grpc.plaintext;

	return (struct later_files){ {
		s->file,
		tls ? s->upstream.grpc.ca : "",
		tls ? s->upstream.grpc.certificate : "",
		tls ? s->upstream.grpc.key : "",
		s->metrics.certificate,
		s->metrics.key,
	} };
}

/* What is needed later must be there for the service user now, and not fail in a week. */
static int check_access(const struct daemon *d)
{
	const struct settings *s = d->settings;
	bool grpc = s->upstream.kind == SETTINGS_UPSTREAM_GRPC;
	struct later_files files = later_files(s);
	const char *path;
	int r;

	r = privilege_check_readable(files.path, &path);
	if (r < 0)
		return log_error_errno(r, "%s cannot be read by the user of the service", path);
	/* A disk that is read-only or full just now does not keep us from starting. */
	if (!grpc && access(s->upstream.file_directory, W_OK | X_OK) < 0 && errno == EACCES)
		return log_error_errno(
			errno,
			"upstream.file.directory %s cannot be written by the user of "
			"the service",
			s->upstream.file_directory);
	return 0;
}

/* ---- the sandbox: all that is opened from now on ---- */

/* A file that is not there now is not looked for later. */
static int allow_if_there(struct sandbox *s, const char *path, enum sandbox_access access)
{
	int r = *path ? sandbox_allow_parent(s, path, access) : 0;

	return r == -ENOENT ? 0 : r;
}

/* c-ares reads resolv.conf, hosts and others for each question, and they are replaced by renaming.
 * It asks by TCP too. */
static int allow_resolver(struct sandbox *s)
{
	int r = allow_if_there(s, "/etc/resolv.conf", SANDBOX_READ);

	if (r == 0)
		r = allow_if_there(s, "/etc/hosts", SANDBOX_READ);
	return r < 0 ? r : sandbox_allow_connect(s, 53);
}

static int allow_grpc(const struct settings *settings, struct sandbox *s)
{
	uint16_t port = grpc_conn_port(settings->upstream.grpc.address);
	int r;

	if (port == 0)
		return 0;
	r = sandbox_allow_connect(s, port);
	return r < 0 ? r : allow_resolver(s);
}

/* If the state directory vanishes it is made again: possible where the one above it is the service
 * user's own, which is then allowed instead. */
static int allow_state(const struct daemon *d, struct sandbox *s)
{
	const char *dir = d->settings->state_directory;
	_cleanup_free_ char *above = NULL;
	uid_t uid = d->has_identity ? d->identity.uid : geteuid();
	struct stat st;

	if (asprintf(&above, "%s/..", dir) < 0) {
		above = NULL;
		return -ENOMEM;
	}
	if (stat(above, &st) == 0 && st.st_uid == uid && uid != 0)
		dir = above;
	return sandbox_allow(s, dir, SANDBOX_WRITE);
}

static int allow(const struct daemon *d, struct sandbox *s)
{
	const struct settings *settings = d->settings;
	struct later_files files = later_files(settings);
	int r = 0;

	/* a reload, also by a file that is not there yet */
	if (!*settings->file)
		r = allow_if_there(s, SETTINGS_DEFAULT_FILE, SANDBOX_READ);
	for (size_t i = 0; r == 0 && files.path[i]; i++)
		r = allow_if_there(s, files.path[i], SANDBOX_READ);
	if (r < 0)
		return r;
	/* reports */
	r = settings->upstream.kind == SETTINGS_UPSTREAM_GRPC
		    ? allow_grpc(settings, s)
		    : sandbox_allow(s, settings->upstream.file_directory, SANDBOX_WRITE);
	if (r == 0 && d->spool)
		r = allow_state(d, s);
	if (r == 0 && d->hybrid)
		r = hybrid_allow(d->hybrid, s);
	/* the end: what the start made is removed */
	if (r == 0)
		r = allow_if_there(s, settings->admin_socket, SANDBOX_REMOVE);
	if (r == 0 && d->bpf)
		r = sandbox_allow(s, settings->pin_directory, SANDBOX_REMOVE);
	return r;
}

static int enter_sandbox(const struct daemon *d, struct sandbox *s)
{
	bool required = d->settings->sandbox == SETTINGS_SANDBOX_REQUIRED;
	const char *why = "";
	int r;

	if (!s)
		return 0;
	r = sandbox_enter(s, required, &why);
	if (r < 0)
		return log_error_errno(r, "sandbox%s%s", *why ? ": required, but " : "", why);
	if (*why)
		log_warning("sandbox: %s", why);
	return 0;
}

static int drop_privileges(struct daemon *d)
{
	_cleanup_(sandbox_freep)
	struct sandbox *s = NULL;
	int r = 0;

	/* The service user need not be able to reach all of it. */
	if (d->settings->sandbox != SETTINGS_SANDBOX_OFF) {
		r = sandbox_new(&s);
		if (r == 0)
			r = allow(d, s);
		if (r < 0)
			return log_error_errno(r, "sandbox");
	}
	r = privilege_drop(d->has_identity ? &d->identity : NULL, d->settings->core_dumps);
	if (r < 0)
		return log_error_errno(r, "cannot drop privileges");
	r = enter_sandbox(d, s);
	return r < 0 ? r : check_access(d);
}

static int start_admin(struct daemon *d)
{
	struct control_parts parts = {
		.vms = d->vms,
		.admission = d->admission,
		.relay = d->relay,
		.ingest = d->ingest,
		.bpf = d->bpf,
		.upstream = d->upstream,
		.state = control_state,
		.refresh = refresh_metrics,
		.reload = reload_and_notify,
		.userdata = d,
	};
	struct admin_settings s = {
		.metrics = &d->started->metrics.listen,
		.certificate = d->started->metrics.certificate,
		.key = d->started->metrics.key,
		.socket = d->started->admin_socket,
		.give_group = d->has_identity,
		.gid = d->identity.gid,
		.pages = control_pages,
		.n_pages = control_n_pages,
	};
	int r;

	metrics_set_prefix(d->settings->metrics.prefix);
	r = control_new(&parts, &d->control);
	s.userdata = d->control;
	if (r == 0)
		r = admin_new(d->event, &s, &d->admin);
	return r < 0 ? log_error_errno(r, "metrics.listen or admin_socket") : 0;
}

static int on_restored(const struct store_content *content, void *userdata)
{
	struct daemon *d = userdata;

	return relay_restore(d->relay, content, clock_usec());
}

/* What an earlier process accepted and did not deliver is in custody again. */
static int restore(struct daemon *d)
{
	int r = d->spool ? spool_scan(d->spool, on_restored, d) : 0;

	return r < 0 ? log_error_errno(r, "state_directory %s", d->settings->state_directory) : 0;
}

/* The last steps of a start. While a kernel without AF_VSOCK is waited for, with privileges that
 * the bind will need, nobody is listened to (SPEC 3), so they wait too. */
static int begin_service(struct daemon *d)
{
	int r;

	r = start_admin(d);
	if (r == 0)
		r = drop_privileges(d);
	if (r == 0)
		r = restore(d);
	d->serving = r == 0;
	return r;
}

int daemon_new(const struct daemon_args *args, struct settings *settings, struct daemon **ret)
{
	_cleanup_(daemon_freep)
	struct daemon *d = NULL;
	uint64_t seed;
	int r;

	d = calloc(1, sizeof(*d));
	if (!d) {
		settings_free(settings);
		return log_error_errno(-ENOMEM, "cannot start");
	}
	d->args = *args;
	d->settings = d->started = settings;
	d->run_lock = d->pin_lock = d->state_lock = -1;
	list_init(&d->vsocks);
	if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
		return log_error_errno(errno, "no random numbers");
	/* Who needs privileges comes first. */
	if ((r = add_sources(d)) < 0 ||
	    (r = take_lock(settings->run_directory, &d->run_lock)) < 0 ||
	    (r = find_identity(d)) < 0 || (r = start_disk(d)) < 0 || (r = start_spool(d)) < 0)
		return r;
	if (d->spool)
		seed = spool_seed(d->spool);
	if ((r = start_upstream(d)) < 0 || (r = start_core(d)) < 0 ||
	    (r = start_bpf(d, seed)) < 0 || (r = start_ingest(d, seed)) < 0 ||
	    (r = start_vsock(d)) < 0)
		return r;
	if (settings->hybrid.n_sockets > 0) {
		r = hybrid_new(d->event, d->ingest, settings, &d->hybrid);
		if (r < 0)
			return r;
	}
	if (!d->vsock_retry) {
		r = begin_service(d);
		if (r < 0)
			return r;
	}
	r = sd_event_add_post(d->event, &d->post, on_post, d);
	if (r < 0)
		return log_error_errno(r, "event loop");
	*ret = TAKE_PTR(d);
	return 0;
}

int daemon_run(struct daemon *d)
{
	int r;

	turn(d);
	log_info("vsock-relayd %s is ready: %s, upstream %s", VSR_VERSION,
		 ingest_bpf_active(d->ingest) ? "BPF looks at vsock streams"
					      : "streams are checked in user space",
		 d->upstream->ops->name);
	notify_status(d);
	sd_notify(0, "READY=1");
	r = sd_event_loop(d->event);
	if (r < 0 && d->result == 0)
		log_error_errno(r, "event loop");
	return r;
}

struct daemon *daemon_free(struct daemon *d)
{
	if (!d)
		return NULL;
	d->post = sd_event_source_disable_unref(d->post);
	d->admin = admin_free(d->admin);
	d->control = control_free(d->control);
	d->hybrid = hybrid_free(d->hybrid);
	stop_listening(d);
	d->ingest = ingest_free(d->ingest);
	d->probes = probes_free(d->probes);
	d->disk_source = sd_event_source_disable_unref(d->disk_source);
	/* Sends under way are finished: their done() needs relay and upstream. */
	d->disk = disk_free(d->disk, DISK_DEADLINE);
	d->relay = relay_free(d->relay);
	if (d->upstream)
		d->upstream = d->upstream->ops->free(d->upstream);
	d->spool = spool_free(d->spool);
	d->admission = admission_free(d->admission);
	d->vms = vm_table_free(d->vms);
	d->matches = match_table_free(d->matches);
	d->bpf = ingest_bpf_free(d->bpf);
	d->vsock_retry = sd_event_source_disable_unref(d->vsock_retry);
	d->timer = sd_event_source_disable_unref(d->timer);
	d->pack = sd_event_source_disable_unref(d->pack);
	d->pin_lock = safe_close(d->pin_lock);
	d->state_lock = safe_close(d->state_lock);
	d->run_lock = safe_close(d->run_lock);
	d->event = sd_event_unref(d->event);
	if (d->settings != d->started)
		settings_free(d->settings);
	settings_free(d->started);
	free(d);
	return NULL;
}
