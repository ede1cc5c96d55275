/* SPDX-License-Identifier: Apache-2.0 */
/* `vsock-relayctl trace`: attaches, waits, and prints what user/flow.c makes of it (docs/tracing.md). */
#include <getopt.h>
#include <signal.h>
#include <sys/random.h>
#include <time.h>

#include "bpf_why.h"
#include "commands.h"
#include "duration.h"
#include "flow.h"
#include "ingest_bpf.h"
#include "settings.h"
#include "trace.h"
#include "trace_show.h"

/* How long a look for events lasts, and so what may pass between a signal and the end. */
#define POLL_MSEC 100ULL
/* vsr_stats is read so often. */
#define STATS_USEC     (500 * USEC_PER_MSEC)
#define BUFFER_KIB_MAX (1024 * 1024)

#define OPTIONS_TEXT "[--cid CID] [--port N] [--duration D] [--buffer KIB]"

#define OPTIONS_HELP                                                                      \
	"      --cid CID     only what is from or to this CID, or the VM of that name\n"  \
	"      --port N      only what is from or to this port\n"                         \
	"      --duration D  end after this time (10s, 5m), else with Ctrl-C\n"           \
	"      --buffer KIB  of kernel memory for what is not printed yet (8192); what\n" \
	"                    finds no room there is lost, which is counted and said\n"

struct options {
	struct trace_settings trace;
	uint64_t count;	   /* lines; UINT64_MAX: all */
	uint64_t duration; /* usec; USEC_INFINITY: until a signal */
};

/* The histograms, and what they need. */
enum { LATENCY_RESPONSE, LATENCY_ACCEPT, LATENCY_CREDIT, LATENCY_CUSTODY, LATENCY_MAX };
static const struct {
	const char *name, *words;
	unsigned part;
	const char *unseen;
} latencies[LATENCY_MAX] = {
	[LATENCY_RESPONSE] = { "request_to_response", "REQUEST to RESPONSE", TRACE_PACKETS, NULL },
	[LATENCY_ACCEPT] = { "request_to_accept", "REQUEST to accept()", TRACE_ACCEPTS,
			     "accept() cannot be seen" },
	[LATENCY_CREDIT] = { "request_to_credit", "REQUEST to the first credit", TRACE_PACKETS,
			     NULL },
	[LATENCY_CUSTODY] = { "last_byte_to_accepted", "last byte to accepted", TRACE_CUSTODY,
			      "no vsock-relayd with probes runs" },
};

struct run {
	struct ctl *ctl;
	const struct options *o;
	struct trace *trace;
	struct flow_table *flows; /* NULL: not wanted */
	void (*event)(struct run *r, const struct vsr_trace_event *e);
	struct show how;
	uint64_t lines;
	uint64_t lost;	 /* said so far */
	uint64_t end_ns; /* what is later is not shown; CLOCK_BOOTTIME */
	struct log2hist latency[LATENCY_MAX];
	bool watch_stats, stats_known;
	struct vsr_stats stats;
	uint32_t stats_id;
	uint64_t next_stats;
};

static volatile sig_atomic_t stop;

static void on_signal(int signo _unused_)
{
	stop = 1;
}

static uint64_t boot_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (uint64_t)ts.tv_sec * USEC_PER_SEC * NSEC_PER_USEC + (uint64_t)ts.tv_nsec;
}

static uint64_t now_usec(void)
{
	return boot_ns(CLOCK_BOOTTIME) / NSEC_PER_USEC;
}

static bool enough(const struct run *r)
{
	return r->lines >= r->o->count;
}

/* The relay's namespace is meant: what is traced does not say which one. */
static const char *vm_name(uint32_t cid, void *userdata)
{
	struct ctl *ctl = userdata;

	return ctl_vm_name(ctl, (struct vsr_vm_id){ .ns = ctl->settings->ns, .cid = cid });
}

/* ---- what is printed ------------------------------------------------------------------------- */

static void print_flow(struct run *r, const struct flow *f)
{
	if (enough(r))
		return;
	r->lines++;
	if (r->ctl->json)
		ctl_print_json(r->ctl, show_flow_json(f, &r->how));
	else
		show_flow(stdout, f, &r->how);
}

static void print_alarm(struct run *r, const struct alarm *a)
{
	if (enough(r))
		return;
	r->lines++;
	if (r->ctl->json)
		ctl_print_json(r->ctl, show_alarm_json(a, &r->how));
	else
		show_alarm(stdout, a, &r->how);
}

static void on_packet(struct run *r, const struct vsr_trace_event *e)
{
	if (enough(r))
		return;
	r->lines++;
	if (r->ctl->json)
		ctl_print_json(r->ctl, show_packet_json(e, &r->how));
	else
		show_packet(stdout, e, &r->how);
}

static void on_flow(struct run *r, const struct vsr_trace_event *e)
{
	struct flow_news news;

	if (flow_observe(r->flows, e, &news) < 0)
		return;
	if (news.displaced)
		print_flow(r, news.displaced);
	if (news.ended)
		print_flow(r, news.flow);
}

static void on_alarm(struct run *r, const struct vsr_trace_event *e)
{
	struct alarm alarms[ALARMS_OF_EVENT];
	struct flow_news news;
	size_t n;

	if (flow_observe(r->flows, e, &news) < 0)
		return;
	n = alarms_of_event(e, &news, alarms);
	for (size_t i = 0; i < n; i++)
		print_alarm(r, &alarms[i]);
}

static void on_latency(struct run *r, const struct vsr_trace_event *e)
{
	struct flow_news news;
	const struct flow *f;
	uint64_t since;

	if (flow_observe(r->flows, e, &news) < 0 || !news.flow)
		return;
	f = news.flow;
	since = usec_sub(e->ns, f->first_ns) / NSEC_PER_USEC;
	if (news.responded)
		log2hist_add(&r->latency[LATENCY_RESPONSE], since);
	if (news.accepted)
		log2hist_add(&r->latency[LATENCY_ACCEPT], since);
	if (news.credited)
		log2hist_add(&r->latency[LATENCY_CREDIT], since);
	if (news.custody)
		log2hist_add(&r->latency[LATENCY_CUSTODY],
			     usec_sub(e->ns, f->last_byte_ns) / NSEC_PER_USEC);
}

static void print_open_flow(const struct flow *f, void *userdata)
{
	print_flow(userdata, f);
}

static void print_latency(struct run *r)
{
	for (size_t i = 0; i < LATENCY_MAX; i++) {
		const char *unseen =
			trace_parts(r->trace) & latencies[i].part ? NULL : latencies[i].unseen;

		if (r->ctl->json)
			ctl_print_json(r->ctl, show_histogram_json(latencies[i].name,
								   &r->latency[i], unseen));
		else
			show_histogram(stdout, latencies[i].words, &r->latency[i], unseen);
	}
}

/* ---- the loop -------------------------------------------------------------------------------- */

static void say_lost(struct run *r)
{
	uint64_t lost = trace_lost(r->trace);

	if (lost == r->lost)
		return;
	if (r->ctl->json)
		ctl_print_json(r->ctl, json_pack("{s:s, s:I}", "event", "lost", "count",
						 (json_int_t)(lost - r->lost)));
	else
		fprintf(stderr, "vsock-relayctl: %llu events lost: a larger --buffer, or --cid\n",
			(unsigned long long)(lost - r->lost));
	r->lost = lost;
}

/* The verdict's counters. Another map is that of a new start, which began with zeros. */
static void look_at_stats(struct run *r)
{
	struct alarm alarms[ALARMS_OF_STATS];
	struct vsr_stats stats;
	uint32_t id;
	size_t n;

	if (ingest_bpf_stats_pinned(r->ctl->pin_dir, &stats, &id) < 0)
		return;
	if (r->stats_known && id != r->stats_id)
		memset(&r->stats, 0, sizeof(r->stats));
	n = alarms_of_stats(&r->stats, &stats, boot_ns(CLOCK_BOOTTIME), alarms);
	for (size_t i = 0; i < n; i++)
		print_alarm(r, &alarms[i]);
	r->stats = stats;
	r->stats_id = id;
	r->stats_known = true;
}

static void begin_stats(struct run *r)
{
	int result = ingest_bpf_stats_pinned(r->ctl->pin_dir, &r->stats, &r->stats_id);

	r->watch_stats = true;
	r->stats_known = result == 0;
	if (result == -EPROTONOSUPPORT)
		fprintf(stderr,
			"vsock-relayctl: verdict errors cannot be seen: %s/vsr_stats is of "
			"another version\n",
			r->ctl->pin_dir);
	else if (result < 0)
		fprintf(stderr,
			"vsock-relayctl: verdict errors cannot be seen before a daemon has "
			"pinned its maps: %s/vsr_stats: %s\n",
			r->ctl->pin_dir, strerror(-result));
	r->next_stats = usec_add(now_usec(), STATS_USEC);
}

/* What comes after the end is not shown, or a flood would keep the end from coming. */
static int on_event(const struct vsr_trace_event *e, void *userdata)
{
	struct run *r = userdata;

	if (stop)
		r->end_ns = MIN(r->end_ns, boot_ns(CLOCK_BOOTTIME));
	if (e->ns > r->end_ns || enough(r) || ferror(stdout))
		return -ECANCELED;
	ctl_names_refresh(r->ctl);
	r->event(r, e);
	return 0;
}

static int loop(struct run *r)
{
	uint64_t end = usec_add(now_usec(), r->o->duration), now;
	int n;

	r->end_ns = end > UINT64_MAX / NSEC_PER_USEC ? UINT64_MAX : end * NSEC_PER_USEC;
	do {
		now = now_usec();
		n = trace_poll(r->trace,
			       (int)MIN(POLL_MSEC, usec_sub(end, now) / USEC_PER_MSEC + 1),
			       on_event, r);
		if (n < 0 && n != -EINTR && n != -ECANCELED)
			return ctl_error(r->ctl, CTL_FAILED, "ring buffer: %s", strerror(-n));
		say_lost(r);
		if (r->watch_stats && now >= r->next_stats) {
			look_at_stats(r);
			r->next_stats = usec_add(now, STATS_USEC);
		}
		fflush(stdout);
	} while (!stop && n != -ECANCELED && !enough(r) && !ferror(stdout) && now < end);

	/* What was under way. */
	r->end_ns = MIN(r->end_ns, boot_ns(CLOCK_BOOTTIME));
	trace_poll(r->trace, 0, on_event, r);
	say_lost(r);
	if (r->watch_stats)
		look_at_stats(r);
	return CTL_OK;
}

/* ---- options --------------------------------------------------------------------------------- */

static int parse_number(const struct ctl *ctl, const char *name, const char *text, uint64_t max,
			uint64_t *ret)
{
	char *end;
	uint64_t v;

	errno = 0;
	v = strtoull(text, &end, 10);
	if (errno || *end || *text < '0' || *text > '9' || v > max)
		return ctl_error(ctl, CTL_USAGE, "--%s %s: not a number from 0 to %llu", name, text,
				 (unsigned long long)max);
	*ret = v;
	return CTL_OK;
}

static int parse_ops(const struct ctl *ctl, const char *text, uint32_t *ret)
{
	const char *bad;

	if (show_ops_parse(text, ret, &bad) == 0)
		return CTL_OK;
	return ctl_error(ctl, CTL_USAGE,
			 "--op %.*s: no such operation; there are request, response, rst, "
			 "shutdown, rw, credit_update, credit_request",
			 (int)strcspn(bad, ","), bad);
}

static int parse_duration(const struct ctl *ctl, const char *text, uint64_t *ret)
{
	if (duration_parse(text, ret) == 0)
		return CTL_OK;
	return ctl_error(ctl, CTL_USAGE, "--duration %s: not a duration such as 10s or 1m30s",
			 text);
}

/* A VM may be named, too. */
static int parse_cid(struct ctl *ctl, const char *text, uint64_t *ret)
{
	struct vsr_vm_id id;
	int r;

	if (!*text || text[strspn(text, "0123456789")] == '\0')
		return parse_number(ctl, "cid", text, UINT32_MAX, ret);
	r = ctl_parse_vm(ctl, text, &id);
	if (r == CTL_OK)
		*ret = id.cid;
	return r;
}

static int parse_option(struct ctl *ctl, int option, struct options *o)
{
	uint64_t v = 0;
	int r;

	switch (option) {
	case 'c':
		r = parse_cid(ctl, optarg, &v);
		o->trace.by_cid = true;
		o->trace.cid = (uint32_t)v;
		return r;
	case 'p':
		r = parse_number(ctl, "port", optarg, UINT32_MAX, &v);
		o->trace.by_port = true;
		o->trace.port = (uint32_t)v;
		return r;
	case 'o':
		return parse_ops(ctl, optarg, &o->trace.ops);
	case 'n':
		return parse_number(ctl, "count", optarg, UINT64_MAX, &o->count);
	case 'd':
		return parse_duration(ctl, optarg, &o->duration);
	case 'b':
		r = parse_number(ctl, "buffer", optarg, BUFFER_KIB_MAX, &v);
		o->trace.ring_bytes = (uint32_t)(v * KIB);
		return r;
	default:
		return CTL_USAGE;
	}
}

/* ops, count: whether the command has these options. */
static int parse_options(struct ctl *ctl, int argc, char *argv[], bool ops, bool count,
			 struct options *o)
{
	static const struct option all[] = {
		{ "op", required_argument, NULL, 'o' },
		{ "count", required_argument, NULL, 'n' },
		{ "cid", required_argument, NULL, 'c' },
		{ "port", required_argument, NULL, 'p' },
		{ "duration", required_argument, NULL, 'd' },
		{ "buffer", required_argument, NULL, 'b' },
		{},
	};
	const struct option *options = ops ? all : count ? all + 1 : all + 2;
	int option, r;

	*o = (struct options){
		.trace = { .ring_bytes = TRACE_RING_BYTES },
		.count = UINT64_MAX,
		.duration = USEC_INFINITY,
	};
	optind = 0; /* anew: main() has used it */
	opterr = 0;
	while ((option = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		if (option == ':')
			return ctl_error(ctl, CTL_USAGE, "%s needs an argument", argv[optind - 1]);
		if (option == '?')
			return ctl_error(ctl, CTL_USAGE, "%s: no such option of trace %s",
					 argv[optind - 1], argv[0]);
		r = parse_option(ctl, option, o);
		if (r != CTL_OK)
			return r;
	}
	if (optind < argc)
		return ctl_error(ctl, CTL_USAGE, "%s: trace %s takes options only", argv[optind],
				 argv[0]);
	return CTL_OK;
}

/* ---- commands -------------------------------------------------------------------------------- */

static int begin(struct run *r, const char *name)
{
	const struct sigaction on = { .sa_handler = on_signal };
	const char *note;
	uint64_t seed = 0;

	if (trace_new(&r->o->trace, &r->trace) < 0)
		return ctl_error(r->ctl, CTL_FAILED, "cannot trace: %s", bpf_why());
	if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed) ||
	    flow_table_new(FLOW_TABLE_MAX, seed, &r->flows) < 0)
		return ctl_error(r->ctl, CTL_FAILED, "cannot trace: out of memory");
	for (size_t i = 0; (note = trace_note(r->trace, i)); i++)
		fprintf(stderr, "vsock-relayctl: %s\n", note);
	sigaction(SIGINT, &on, NULL);
	sigaction(SIGTERM, &on, NULL);
	r->how = (struct show){
		.clock = (int64_t)(boot_ns(CLOCK_REALTIME) - boot_ns(CLOCK_BOOTTIME)),
		.name = vm_name,
		.userdata = r->ctl,
	};
	fprintf(stderr, "tracing %s; Ctrl-C ends\n", name);
	return CTL_OK;
}

static int run_events(struct ctl *ctl, int argc, char *argv[], unsigned parts, bool ops,
		      void (*event)(struct run *r, const struct vsr_trace_event *e))
{
	_cleanup_(flow_table_freep)
	struct flow_table *flows = NULL;
	_cleanup_(trace_freep)
	struct trace *trace = NULL;
	struct options o;
	struct run r = { .ctl = ctl, .o = &o, .event = event };
	int status;

	status = parse_options(ctl, argc, argv, ops, event != on_latency, &o);
	if (status != CTL_OK)
		return status;
	o.trace.parts = parts;
	status = begin(&r, argv[0]);
	trace = r.trace;
	flows = r.flows;
	if (status != CTL_OK)
		return status;
	if (event == on_alarm)
		begin_stats(&r);
	status = loop(&r);
	if (event == on_flow)
		flow_foreach_open(flows, print_open_flow, &r);
	if (event == on_latency)
		print_latency(&r);
	if (!ctl->json)
		fprintf(stderr, "%llu events seen, %llu lost\n",
			(unsigned long long)trace_seen(trace), (unsigned long long)r.lost);
	return status;
}

static int run_packets(struct ctl *ctl, int argc, char *argv[])
{
	return run_events(ctl, argc, argv, TRACE_PACKETS, true, on_packet);
}

static int run_flows(struct ctl *ctl, int argc, char *argv[])
{
	return run_events(ctl, argc, argv,
			  TRACE_PACKETS | TRACE_ACCEPTS | TRACE_VANISHED | TRACE_CUSTODY, false,
			  on_flow);
}

static int run_latency(struct ctl *ctl, int argc, char *argv[])
{
	return run_events(ctl, argc, argv, TRACE_PACKETS | TRACE_ACCEPTS | TRACE_CUSTODY, false,
			  on_latency);
}

static int run_alarms(struct ctl *ctl, int argc, char *argv[])
{
	return run_events(ctl, argc, argv, TRACE_PACKETS | TRACE_RAW_READS | TRACE_VANISHED, false,
			  on_alarm);
}

const struct ctl_command ctl_trace_commands[] = {
	{ "packets", "[--op OP,...] [--count N] " OPTIONS_TEXT,
	  "every vsock packet: time, CIDs and ports, operation, length, flags, credit",
	  "      --op OP,...   only request, response, rst, shutdown, rw, credit_update,\n"
	  "                    credit_request\n"
	  "      --count N     end after so many lines\n" OPTIONS_HELP,
	  run_packets },
	{ "flows", "[--count N] " OPTIONS_TEXT,
	  "a line for each connection at its end: duration, bytes, packets, credit stalls, who "
	  "ended it and how",
	  "      --count N     end after so many lines\n" OPTIONS_HELP, run_flows },
	{ "latency", OPTIONS_TEXT,
	  "histograms at the end: request to response, to accept(), to the first credit, last "
	  "byte to accepted",
	  OPTIONS_HELP, run_latency },
	{ "alarms", "[--count N] " OPTIONS_TEXT,
	  "zero-length packets, resets by cause, credit violations, reads past the verdict, "
	  "verdict errors",
	  "      --count N     end after so many lines\n" OPTIONS_HELP, run_alarms },
	{},
};
