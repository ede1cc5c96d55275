/* SPDX-License-Identifier: Apache-2.0 */
#include "control.h"

#include <inttypes.h>
#include <jansson.h>
#include <microhttpd.h>

#include "clock.h"
#include "log.h"
#include "metrics.h"
#include "privilege.h"
#include "sandbox.h"
#include "vm_json.h"

struct control {
	struct control_parts parts;
	uint64_t started;
};

static struct control_state state_of(const struct control *c)
{
	struct control_state s = { 0 };

	c->parts.state(c->parts.userdata, &s);
	return s;
}

/* Writes the value, and drops the reference. Returns status, or -ENOMEM. */
static int write_json(FILE *f, json_t *value, unsigned int status)
{
	int r = value ? json_dumpf(value, f, JSON_COMPACT | JSON_REAL_PRECISION(12)) : -1;

	json_decref(value);
	return r < 0 || putc('\n', f) == EOF ? -ENOMEM : (int)status;
}

/* ---- is it well? --------------------------------------------------------------------------------- */

struct check {
	bool good;
	char says[160];
};

static struct check check_listening(const struct control_state *s)
{
	struct check k = { .good = !s->stopping && (s->vsock || s->n_inside || s->hybrid) };
	FILE *f;

	if (s->stopping)
		snprintf(k.says, sizeof(k.says), "the relay stops");
	else if (!k.good)
		snprintf(k.says, sizeof(k.says), "no socket is listened on");
	else if ((f = fmemopen(k.says, sizeof(k.says), "w"))) {
		if (s->vsock)
			fprintf(f, "vsock port %u", s->settings->listen.port);
		if (s->n_inside)
			fprintf(f, "%s%zu network namespaces", s->vsock ? ", " : "", s->n_inside);
		if (s->hybrid)
			fprintf(f, "%s%u hybrid sockets", s->vsock || s->n_inside ? ", " : "",
				s->n_hybrid);
		fclose(f);
	}
	return k;
}

/* Usable, or room to hold what comes until it is. */
static struct check check_upstream(const struct control *c, const struct control_state *s)
{
	const struct upstream *u = c->parts.upstream;
	const char *why = !u->ready ? "not connected" : NULL;
	struct relay_figures r;
	struct check k;
	bool room;

	relay_figures(c->parts.relay, clock_usec(), &r);
	if (r.paused)
		why = "refuses everything";
	else if (s->disk_hangs)
		why = "the disk does not answer";
	room = s->spool ? streq(s->spool, "ok")
			: r.cache.slots_used < r.cache.slots &&
				  r.cache.bytes < s->settings->cache.bytes;
	k.good = !why || room;
	if (!why)
		snprintf(k.says, sizeof(k.says), "%s", u->ops->name);
	else
		snprintf(k.says, sizeof(k.says), "%s %s, %s; held: %zu of %zu slots", u->ops->name,
			 why, room ? "room to hold more" : "and no room to hold more",
			 r.cache.slots_used, r.cache.slots);
	return k;
}

static struct check check_spool(const struct control_state *s)
{
	struct check k = { .good = !s->spool || streq(s->spool, "ok") };

	snprintf(k.says, sizeof(k.says), "%s%s%s", s->spool ?: "no state directory",
		 s->spool && s->spool_why ? ": " : "", s->spool ? s->spool_why ?: "" : "");
	return k;
}

enum { CHECK_LISTENING, CHECK_UPSTREAM, CHECK_SPOOL, CHECK_MAX };
static const char *const check_names[CHECK_MAX] = {
	[CHECK_LISTENING] = "listening",
	[CHECK_UPSTREAM] = "upstream",
	[CHECK_SPOOL] = "spool",
};

/* Returns whether all is well. */
static bool check_all(const struct control *c, const struct control_state *s,
		      struct check ret[static CHECK_MAX])
{
	bool good = true;

	ret[CHECK_LISTENING] = check_listening(s);
	ret[CHECK_UPSTREAM] = check_upstream(c, s);
	ret[CHECK_SPOOL] = check_spool(s);
	for (size_t i = 0; i < CHECK_MAX; i++)
		good = good && ret[i].good;
	return good;
}

static int answer_health(const struct admin_request *q _unused_, FILE *f, void *userdata _unused_)
{
	/* Whoever reads this was answered by the loop. */
	return fputs("ok\n", f) < 0 ? -ENOMEM : MHD_HTTP_OK;
}

static int answer_ready(const struct admin_request *q _unused_, FILE *f, void *userdata)
{
	struct control *c = userdata;
	struct control_state s = state_of(c);
	struct check checks[CHECK_MAX];
	bool good = check_all(c, &s, checks);

	fprintf(f, "%s\n", good ? "ready" : "not ready");
	for (size_t i = 0; i < CHECK_MAX; i++)
		fprintf(f, "%s %s: %s\n", checks[i].good ? "[+]" : "[-]", check_names[i],
			checks[i].says);
	return good ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE;
}

/* ---- figures ------------------------------------------------------------------------------------- */

static int answer_metrics(const struct admin_request *q _unused_, FILE *f, void *userdata)
{
	struct control *c = userdata;
	_cleanup_free_ char *text = NULL;
	size_t len;
	int r;

	c->parts.refresh(c->parts.userdata);
	r = metrics_render(&text, &len);
	if (r < 0)
		return r;
	return fwrite(text, 1, len, f) == len ? MHD_HTTP_OK : -ENOMEM;
}

static json_t *checks_json(const struct check checks[static CHECK_MAX])
{
	json_t *list = json_array();

	for (size_t i = 0; i < CHECK_MAX; i++)
		json_array_append_new(list,
				      json_pack("{s:s, s:b, s:s}", "name", check_names[i], "good",
						checks[i].good, "says", checks[i].says));
	return list;
}

static json_int_t total(enum metric m, unsigned int n)
{
	double sum = 0;

	for (unsigned int i = 0; i < n; i++)
		sum += metric_get(m, i);
	return (json_int_t)sum;
}

static json_t *reports_json(void)
{
	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "connections",
			 total(METRIC_CONNECTIONS_ACCEPTED, 1), "received",
			 total(METRIC_REPORTS_RECEIVED, 1), "valid", total(METRIC_VALID, 1),
			 "duplicates", total(METRIC_DUPLICATES, METRIC_DAEMON + 1), "suppressed",
			 total(METRIC_SUPPRESSED, 1), "dropped",
			 total(METRIC_DROPPED, METRIC_DROPPED_INTERNAL + 1), "refused",
			 total(METRIC_REFUSED, REASON_MAX));
}

static json_t *contents_json(const struct relay_figures *r)
{
	return json_pack("{s:I, s:I, s:I, s:f, s:I, s:I}", "held", (json_int_t)r->held, "in_flight",
			 (json_int_t)r->in_flight, "awaiting_ack", (json_int_t)r->awaiting,
			 "oldest_age", (double)(r->oldest / USEC_PER_MSEC) / 1000, "acked",
			 (json_int_t)metric_get(METRIC_CONTENTS_ENDED, METRIC_ENDED_ACKED),
			 "conservation_difference", (json_int_t)metrics_conservation());
}

static json_t *admission_json(const struct control *c)
{
	struct admission_figures a;

	admission_figures(c->parts.admission, &a);
	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "places", (json_int_t)a.places,
			 "places_used", (json_int_t)a.places_used, "waiting", (json_int_t)a.waiting,
			 "budget_bytes", (json_int_t)a.budget, "reserved_bytes",
			 (json_int_t)a.reserved, "debt_bytes", (json_int_t)a.debt, "debtors",
			 (json_int_t)a.debtors);
}

static json_t *listen_json(const struct control_state *s)
{
	json_t *inside = json_array();

	for (size_t i = 0; i < s->n_inside; i++) {
		const struct settings_listener *l = s->inside[i].settings;

		json_array_append_new(inside,
				      json_pack("{s:I, s:s, s:I, s:s, s:I}", "namespace",
						(json_int_t)l->ns, "netns", l->netns, "port",
						(json_int_t)settings_listener_port(s->settings, l),
						"ns_mode", netns_mode_name(s->inside[i].netns.mode),
						"inode", (json_int_t)s->inside[i].netns.inode));
	}
	return json_pack("{s:b, s:I, s:s, s:o, s:I}", "vsock", s->vsock, "port",
			 (json_int_t)s->settings->listen.port, "ns_mode", s->ns_mode, "listeners",
			 inside, "hybrid_sockets", (json_int_t)s->n_hybrid);
}

static json_t *capabilities_json(uint64_t set)
{
	char text[17];

	snprintf(text, sizeof(text), "%016" PRIx64, set);
	return json_string(text);
}

/* What this process may still do, as the kernel has it. NULL: it does not say. */
static json_t *sandbox_json(void)
{
	struct privilege_state p;

	if (privilege_state(&p) < 0)
		return NULL;
	return json_pack("{s:I, s:I, s:{s:o, s:o, s:o, s:o, s:o}, s:b, s:i, s:i}", "uid",
			 (json_int_t)p.uid, "gid", (json_int_t)p.gid, "capabilities", "effective",
			 capabilities_json(p.effective), "permitted",
			 capabilities_json(p.permitted), "inheritable",
			 capabilities_json(p.inheritable), "bounding",
			 capabilities_json(p.bounding), "ambient", capabilities_json(p.ambient),
			 "no_new_privs", p.no_new_privs, "seccomp", p.seccomp, "landlock",
			 (int)sandbox_state().landlock);
}

static json_t *status_json(struct control *c)
{
	struct control_state s = state_of(c);
	const struct settings *set = s.settings;
	uint64_t now = clock_usec();
	struct check checks[CHECK_MAX];
	struct relay_figures r;
	bool good;

	c->parts.refresh(c->parts.userdata);
	good = check_all(c, &s, checks);
	relay_figures(c->parts.relay, now, &r);
	return json_pack("{s:s, s:i, s:o, s:b, s:o, s:s, s:o, s:o?, s:{s:s, s:b, s:b}, s:o, s:o, "
			 "s:{s:I, s:I, s:I, s:I, s:I}, s:o, s:s?, s:I, s:s, s:s, s:i, s:s}",
			 "version", VSR_VERSION, "pid", (int)getpid(), "uptime",
			 json_age(c->started, now), "ready", good, "checks", checks_json(checks),
			 "bpf_mode", ingest_bpf_active(c->parts.ingest) ? "kernel" : "user",
			 "listen", listen_json(&s), "sandbox", sandbox_json(), "upstream", "kind",
			 c->parts.upstream->ops->name, "ready", c->parts.upstream->ready, "paused",
			 r.paused, "reports", reports_json(), "contents", contents_json(&r),
			 "cache", "slots", (json_int_t)r.cache.slots, "slots_used",
			 (json_int_t)r.cache.slots_used, "bytes", (json_int_t)r.cache.bytes,
			 "capacity_bytes", (json_int_t)set->cache.bytes, "kept_after_ack",
			 (json_int_t)r.cache.kept, "admission", admission_json(c), "spool", s.spool,
			 "vms", (json_int_t)vm_table_count(c->parts.vms), "log_level",
			 log_level_name(log_level()), "pin_directory", set->pin_directory, "layout",
			 VSR_ABI_VERSION, "settings_file", set->file);
}

static int answer_status(const struct admin_request *q _unused_, FILE *f, void *userdata)
{
	return write_json(f, status_json(userdata), MHD_HTTP_OK);
}

/* ---- VMs ----------------------------------------------------------------------------------------- */

static json_t *live_json(const struct control *c, const struct vm *vm, uint64_t now)
{
	uint64_t due = relay_due(c->parts.relay, vm);

	return json_pack("{s:i, s:i, s:b, s:o, s:I, s:b, s:o}", "connections", (int)vm->served,
			 "waiting", (int)vm->waiting, "in_flight", vm->in_flight != NULL,
			 "next_retry_in",
			 due == USEC_INFINITY
				 ? json_null()
				 : json_real((double)(usec_sub(due, now) / USEC_PER_MSEC) / 1000),
			 "last_length", (json_int_t)vm->last_length, "offender", vm->offence,
			 "last_used_age", json_age(vm->last_used, now));
}

static json_t *describe_vm(const struct control *c, const struct vm *vm, uint64_t now)
{
	struct vsr_vm_state state;
	struct vsr_vm_seen seen;
	bool has_seen =
		c->parts.bpf && ingest_bpf_vm_seen_lookup(c->parts.bpf, &vm->node.id, &seen) == 0;

	vm_export(vm, &state);
	return vm_json(&vm->node.id, &state, has_seen ? &seen : NULL, live_json(c, vm, now), now);
}

struct unknown_vms {
	const struct control *c;
	json_t *list;
	uint64_t now;
};

/* A VM that only the kernel's map remembers. */
static void describe_unknown(const struct vsr_vm_id *id, const struct vsr_vm_seen *seen,
			     void *userdata)
{
	struct unknown_vms *u = userdata;
	struct vsr_vm_state state;

	if (vm_table_find(u->c->parts.vms, *id))
		return;
	json_array_append_new(u->list,
			      vm_json(id,
				      ingest_bpf_vm_state_lookup(u->c->parts.bpf, id, &state) == 0
					      ? &state
					      : NULL,
				      seen, NULL, u->now));
}

/* Reads a number of the query. Returns 0; -ENOENT: not there; -EINVAL: no such number. */
static int query_number(const struct admin_request *q, const char *key, uint32_t *ret)
{
	const char *text = admin_query(q, key);
	unsigned long long v;
	char *end;

	if (!text)
		return -ENOENT;
	errno = 0;
	v = strtoull(text, &end, 10);
	if (errno || end == text || *end || v > UINT32_MAX || *text == '-' || *text == '+')
		return -EINVAL;
	*ret = (uint32_t)v;
	return 0;
}

/* The VM of ?cid=N&ns=N; without ns that of the settings. Returns 0; -ENOENT: no cid is given;
 * -EINVAL. */
static int query_vm(const struct control *c, const struct admin_request *q, struct vsr_vm_id *ret)
{
	struct vsr_vm_id id = { .ns = state_of(c).settings->ns };
	int r = query_number(q, "cid", &id.cid);

	if (r < 0)
		return r;
	r = query_number(q, "ns", &id.ns);
	if (r == -EINVAL)
		return r;
	*ret = id;
	return 0;
}

static int says(FILE *f, unsigned int status, const char *text)
{
	return write_json(f, json_pack("{s:s}", status < 300 ? "done" : "error", text), status);
}

static int answer_vms(const struct admin_request *q, FILE *f, void *userdata)
{
	struct control *c = userdata;
	struct unknown_vms unknown = { .c = c, .now = clock_usec() };
	struct vsr_vm_id only;
	int r = query_vm(c, q, &only);

	if (r == -EINVAL)
		return says(f, MHD_HTTP_BAD_REQUEST, "cid and ns are numbers");
	unknown.list = json_array();
	for (struct vm *vm = NULL; (vm = vm_table_next(c->parts.vms, vm));)
		if (r < 0 || (vm->node.id.ns == only.ns && vm->node.id.cid == only.cid))
			json_array_append_new(unknown.list, describe_vm(c, vm, unknown.now));
	if (c->parts.bpf && r < 0) {
		ingest_bpf_vms_foreach(c->parts.bpf, describe_unknown, &unknown);
	} else if (c->parts.bpf) {
		struct vsr_vm_seen seen;

		if (ingest_bpf_vm_seen_lookup(c->parts.bpf, &only, &seen) == 0)
			describe_unknown(&only, &seen, &unknown);
	}
	return write_json(f, unknown.list, MHD_HTTP_OK);
}

static json_t *entry_json(const struct cache_entry *e, uint64_t now)
{
	static const char *const holds[CACHE_HOLD_MAX] = {
		[CACHE_HOLD_NONE] = "none",
		[CACHE_HOLD_RAW] = "raw",
		[CACHE_HOLD_ANSWERED] = "answered",
		[CACHE_HOLD_KEPT] = "acked",
	};

	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:s, s:o, s:o}", "ns",
			 (json_int_t)e->by_id.id.ns, "cid", (json_int_t)e->by_id.id.cid,
			 "generation", (json_int_t)e->generation, "length",
			 (json_int_t)buf_len(e->content), "cost", (json_int_t)buf_cost(e->content),
			 "custody", holds[e->hold], "age", json_age(e->updated, now),
			 "first_seen_age", json_age(e->first_seen, now));
}

/* Entries from oldest to newest change, then what is kept after its ACK. */
static int answer_cache(const struct admin_request *q _unused_, FILE *f, void *userdata)
{
	struct control *c = userdata;
	const struct cache *cache = relay_cache(c->parts.relay);
	uint64_t now = clock_usec();
	json_t *list = json_array();

	for (const struct cache_entry *e = NULL; (e = cache_next(cache, e));)
		json_array_append_new(list, entry_json(e, now));
	for (struct vm *vm = NULL; (vm = vm_table_next(c->parts.vms, vm));) {
		const struct cache_entry *e = cache_known(cache, vm->node.id);

		if (e && e->hold == CACHE_HOLD_KEPT)
			json_array_append_new(list, entry_json(e, now));
	}
	return write_json(f, list, MHD_HTTP_OK);
}

/* ---- requests ------------------------------------------------------------------------------------ */

/* The record that a request names. Returns 0, or a status with the answer written. */
static int requested_vm(struct control *c, const struct admin_request *q, FILE *f, struct vm **ret)
{
	struct vsr_vm_id id;
	struct vm *vm;

	if (query_vm(c, q, &id) < 0)
		return says(f, MHD_HTTP_BAD_REQUEST, "expected cid=NUMBER, and maybe ns=NUMBER");
	vm = vm_table_find(c->parts.vms, id);
	if (!vm)
		return says(f, MHD_HTTP_NOT_FOUND, "no such VM");
	*ret = vm;
	return 0;
}

static int answer_retry(const struct admin_request *q, FILE *f, void *userdata)
{
	struct control *c = userdata;
	struct vm *vm;
	int r = requested_vm(c, q, f, &vm);

	if (r != 0)
		return r;
	r = relay_retry(c->parts.relay, vm, clock_usec());
	if (r == -ENOENT)
		return says(f, MHD_HTTP_NOT_FOUND, "nothing of this VM is in custody");
	if (r < 0)
		return r;
	log_info("asked to send the content of VM %u:%u again", vm->node.id.ns, vm->node.id.cid);
	return says(f, MHD_HTTP_OK,
		    vm->in_flight ? "it is being sent"
				  : "it is sent as soon as the upstream and the VM's rate allow");
}

static int answer_flush(const struct admin_request *q _unused_, FILE *f, void *userdata)
{
	struct control *c = userdata;
	size_t n = relay_flush(c->parts.relay, clock_usec());

	log_info("asked to send all contents in custody: %zu", n);
	return write_json(
		f, json_pack("{s:s, s:I}", "done", "contents are sent", "contents", (json_int_t)n),
		MHD_HTTP_OK);
}

static int answer_drop(const struct admin_request *q, FILE *f, void *userdata)
{
	struct control *c = userdata;
	bool lose = admin_query(q, "lose") != NULL;
	struct vm *vm;
	int r = requested_vm(c, q, f, &vm);

	if (r != 0)
		return r;
	r = relay_drop(c->parts.relay, vm, lose, clock_usec());
	if (r == -ENOENT)
		return says(f, MHD_HTTP_NOT_FOUND, "the cache has nothing of this VM");
	if (r == -EBUSY)
		return says(f, MHD_HTTP_CONFLICT,
			    "it is in custody and nowhere else: it would be lost");
	log_notice("asked to drop the cache entry of VM %u:%u", vm->node.id.ns, vm->node.id.cid);
	return says(f, MHD_HTTP_OK, "dropped");
}

static int answer_reload(const struct admin_request *q _unused_, FILE *f, void *userdata)
{
	struct control *c = userdata;
	_cleanup_free_ char *text = NULL;
	json_t *lines = json_array();
	size_t len;
	FILE *copy;
	char *rest;
	int r;

	copy = open_memstream(&text, &len);
	if (!copy)
		return -ENOMEM;
	log_copy_to(copy);
	r = c->parts.reload(c->parts.userdata);
	log_copy_to(NULL);
	if (fclose(copy) != 0)
		return -ENOMEM;
	rest = text;
	for (char *line; (line = strsep(&rest, "\n"));)
		if (*line)
			json_array_append_new(lines, json_string(line) ?: json_string("?"));
	return write_json(f,
			  json_pack("{s:s, s:o}", r < 0 ? "error" : "done",
				    r < 0 ? "reload refused" : "reloaded", "log", lines),
			  r < 0 ? MHD_HTTP_CONFLICT : MHD_HTTP_OK);
}

static int answer_loglevel(const struct admin_request *q, FILE *f, void *userdata _unused_)
{
	const char *name = admin_query(q, "level"), *before = log_level_name(log_level());
	int level = name ? log_level_from_name(name) : log_level();

	if (level < 0)
		return says(f, MHD_HTTP_BAD_REQUEST,
			    "expected error, warning, notice, info or debug");
	log_set_level(level);
	if (name)
		log_write(MIN(level, LOG_NOTICE), "asked to log from level %s on; it was %s",
			  log_level_name(level), before);
	return write_json(f,
			  json_pack("{s:s, s:s}", "level", log_level_name(level), "before", before),
			  MHD_HTTP_OK);
}

/* ---- life ---------------------------------------------------------------------------------------- */

const struct admin_page control_pages[] = {
	{ "/metrics", ADMIN_OPEN, ADMIN_METRICS, answer_metrics },
	{ "/healthz", ADMIN_OPEN, ADMIN_TEXT, answer_health },
	{ "/readyz", ADMIN_OPEN, ADMIN_TEXT, answer_ready },
	{ "/status.json", ADMIN_OPEN, ADMIN_JSON, answer_status },
	{ "/vms.json", ADMIN_PRIVATE, ADMIN_JSON, answer_vms },
	{ "/cache.json", ADMIN_PRIVATE, ADMIN_JSON, answer_cache },
	{ "/retry", ADMIN_WRITE, ADMIN_JSON, answer_retry },
	{ "/flush", ADMIN_WRITE, ADMIN_JSON, answer_flush },
	{ "/drop", ADMIN_WRITE, ADMIN_JSON, answer_drop },
	{ "/reload", ADMIN_WRITE, ADMIN_JSON, answer_reload },
	{ "/loglevel", ADMIN_WRITE, ADMIN_JSON, answer_loglevel },
};
const size_t control_n_pages = ARRAY_SIZE(control_pages);

int control_new(const struct control_parts *parts, struct control **ret)
{
	struct control *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	c->parts = *parts;
	c->started = clock_usec();
	*ret = c;
	return 0;
}

struct control *control_free(struct control *c)
{
	free(c);
	return NULL;
}
