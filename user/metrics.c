/* SPDX-License-Identifier: Apache-2.0 */
#include "metrics.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/resource.h>
#include <time.h>

#include "grpc.h"

/* ---- label values, in the order of their enums ------------------------------------------------ */

static const char *const values_NONE[] = { "" };
static const char *const values_FAILED[] = { "false", "true" };
static const char *const values_RESULT[] = { "success", "failure" };
static const char *const values_LOOKUP[] = { "hit", "miss" };
static const char *const values_ACTION[] = { "ACK", "NACK" };
static const char *const values_RATE[] = { "normal", "stale_ack" };
static const char *const values_PLACE[] = { "kernel", "daemon" };
static const char *const values_BPF_MODE[] = { "kernel", "user" };
static const char *const values_SANDBOX[] = { "seccomp", "landlock" };
static const char *const values_LISTENER[] = { "vsock", "hybrid" };
static const char *const values_SEM[] = { "concurrency_limit", "context_canceled", "unknown" };
static const char *const values_OUTCOME[] = { "accepted", "duplicate", "suppressed", "refused" };
static const char *const values_REMOVAL[] = {
	"acked", "dropped", "slots", "bytes", "ttl", "damaged"
};
static const char *const values_UNKEPT[] = { "bytes", "silent", "off" };
static const char *const values_ENDED[] = { "acked",   "superseded", "nacked", "rejected",
					    "max_age", "slots",	     "bytes",  "ttl",
					    "lost",    "operator",   "damaged" };
static const char *const values_ACK_OUTCOME[] = { "settled", "stale", "unmatched" };
static const char *const values_RPC_CODE[] = {
#define X(id) #id,
	GRPC_STATUSES(X)
#undef X
};
static const char *const values_DROPPED[] = { "no_cache", "no_spool", "internal" };
static const char *const values_SPOOL_OP[] = { "write", "read", "remove", "probe" };
static const char *const values_SPOOL_STATE[] = { "ok", "full", "failed", "hangs" };
static const char *const values_CLASS[] = { "limited", "offender" };
static const char *const values_VERDICT[] = { "passed", "known", "refused" };
static const char *const values_LIMIT[] = { "zero_length",    "bad_header",    "too_large",
					    "bad_packet",     "over_budget",   "unread_updates",
					    "shared_reserve", "unknown_socket" };
static const char *const values_BPF_ERROR[] = { "no_slot", "load_failed", "event_lost",
						"vm_insert_failed" };
static const char *const values_VERSION[] = { VSR_VERSION };
static const char *const values_REASON[REASON_MAX] = {
#define X(id, name, status, offence, words) [REASON_##id] = (name),
	REASONS(X)
#undef X
};

/* ---- the registry ------------------------------------------------------------------------------ */

/* GAUGE_COUNTER: never falls, but is no whole number. */
enum kind { COUNTER, GAUGE, GAUGE_COUNTER };

union cell {
	uint64_t count; /* COUNTER */
	double level;	/* the others */
};

struct labels {
	const char *key;	   /* NULL: no label */
	const char *const *values; /* NULL among them: a hole */
	unsigned int n;
};

struct series {
	const char *name, *help;
	struct labels labels;
	enum kind kind;
	union cell *cells; /* one for each label value */
};

#define X(id, kind, name, label, values, help) \
	static union cell cells_##id[ARRAY_SIZE(values_##values)];
METRIC_SERIES(X)
#undef X

static const struct series series[METRIC_MAX] = {
#define X(id, k, n, l, v, h)                                                     \
	[METRIC_##id] = { .name = (n),                                           \
			  .help = (h),                                           \
			  .labels = { (l), values_##v, ARRAY_SIZE(values_##v) }, \
			  .kind = (k),                                           \
			  .cells = cells_##id },
	METRIC_SERIES(X)
#undef X
};

/* Upper bounds in seconds; +Inf is behind the last. */
static const double bounds_SEND[] = { 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
				      0.5,   1,	     2.5,   5,	  10,	 30,   60 };
static const double bounds_CACHE[] = { 0.01, 0.1,  1,	 10,	30,    60,    300,  900,
				       1800, 3600, 7200, 14400, 28800, 43200, 86400 };
#define BOUNDS_MAX 15
_Static_assert(ARRAY_SIZE(bounds_SEND) <= BOUNDS_MAX, "room for the buckets");
_Static_assert(ARRAY_SIZE(bounds_CACHE) <= BOUNDS_MAX, "room for the buckets");

struct distribution {
	uint64_t buckets[BOUNDS_MAX + 1]; /* not cumulated; the last is +Inf */
	uint64_t count;
	double sum; /* seconds */
};

struct histogram_series {
	const char *name, *help;
	struct labels labels;
	const double *bounds;
	unsigned int n_bounds;
	struct distribution *distributions; /* one for each label value */
};

#define X(id, name, label, values, buckets, help) \
	static struct distribution distributions_##id[ARRAY_SIZE(values_##values)];
METRIC_HISTOGRAMS(X)
#undef X

static const struct histogram_series histograms[HISTOGRAM_MAX] = {
#define X(id, n, l, v, b, h)                                                        \
	[HISTOGRAM_##id] = { .name = (n),                                           \
			     .help = (h),                                           \
			     .labels = { (l), values_##v, ARRAY_SIZE(values_##v) }, \
			     .bounds = bounds_##b,                                  \
			     .n_bounds = ARRAY_SIZE(bounds_##b),                    \
			     .distributions = distributions_##id },
	METRIC_HISTOGRAMS(X)
#undef X
};

static char prefix[METRICS_PREFIX_MAX + 1] = METRICS_PREFIX_DEFAULT;

/* ---- counting ---------------------------------------------------------------------------------- */

void metric_add_label(enum metric m, unsigned int value, uint64_t n)
{
	const struct series *s = &series[m];

	if (s->kind == COUNTER)
		s->cells[value].count += n;
	else
		s->cells[value].level += (double)n;
}

void metric_set_label(enum metric m, unsigned int value, double v)
{
	const struct series *s = &series[m];

	if (s->kind == COUNTER)
		s->cells[value].count = (uint64_t)v;
	else
		s->cells[value].level = v;
}

void metric_add(enum metric m, uint64_t n)
{
	metric_add_label(m, 0, n);
}

void metric_set(enum metric m, double value)
{
	metric_set_label(m, 0, value);
}

double metric_get(enum metric m, unsigned int label)
{
	const struct series *s = &series[m];

	return s->kind == COUNTER ? (double)s->cells[label].count : s->cells[label].level;
}

void metric_observe(enum histogram h, unsigned int label, uint64_t usec)
{
	const struct histogram_series *s = &histograms[h];
	struct distribution *d = &s->distributions[label];
	double seconds = (double)usec / (double)USEC_PER_SEC;
	unsigned int i = 0;

	while (i < s->n_bounds && seconds > s->bounds[i])
		i++;
	d->buckets[i]++;
	d->count++;
	d->sum += seconds;
}

uint64_t histogram_count(enum histogram h, unsigned int label)
{
	return histograms[h].distributions[label].count;
}

void metrics_reset(void)
{
	for (size_t i = 0; i < METRIC_MAX; i++)
		memset(series[i].cells, 0, series[i].labels.n * sizeof(union cell));
	for (size_t i = 0; i < HISTOGRAM_MAX; i++)
		memset(histograms[i].distributions, 0,
		       histograms[i].labels.n * sizeof(struct distribution));
	strcpy(prefix, METRICS_PREFIX_DEFAULT);
}

static double sum(enum metric m)
{
	double total = 0;

	for (unsigned int i = 0; i < series[m].labels.n; i++)
		total += metric_get(m, i);
	return total;
}

int64_t metrics_conservation(void)
{
	return (int64_t)(sum(METRIC_VALID) + sum(METRIC_RESTORED) - sum(METRIC_DUPLICATES) -
			 sum(METRIC_SUPPRESSED) - sum(METRIC_DROPPED) - sum(METRIC_CONTENTS_ENDED) -
			 sum(METRIC_CONTENTS_HELD));
}

/* ---- figures from elsewhere -------------------------------------------------------------------- */

static void set_all(enum metric m, const uint64_t *values)
{
	for (unsigned int i = 0; i < series[m].labels.n; i++)
		series[m].cells[i].count = values[i];
}

void metrics_set_bpf(const struct vsr_stats *s)
{
	const uint64_t verdicts[] = { s->bytes_passed, s->bytes_known, s->bytes_refused };
	const uint64_t limits[] = { s->zero_length, s->bad_header,     s->too_large,  s->bad_packet,
				    s->over_budget, s->unread_updates, s->pool_draws, s->no_conn };
	const uint64_t errors[] = { s->no_slot, s->load_failed, s->event_lost,
				    s->vm_insert_failed };

	_Static_assert(ARRAY_SIZE(verdicts) == ARRAY_SIZE(values_VERDICT), "all of them");
	_Static_assert(ARRAY_SIZE(limits) == ARRAY_SIZE(values_LIMIT), "all of them");
	_Static_assert(ARRAY_SIZE(errors) == ARRAY_SIZE(values_BPF_ERROR), "all of them");
	cells_BPF_PACKETS[0].count = s->packets;
	cells_BPF_SEEN[0].count = s->bytes;
	set_all(METRIC_BPF_BYTES, verdicts);
	set_all(METRIC_BPF_EVENTS, limits);
	set_all(METRIC_BPF_ERRORS, errors);
}

static int read_memory(void)
{
	_cleanup_fclose_ FILE *f = fopen("/proc/self/statm", "re");
	unsigned long size, resident;
	long page = sysconf(_SC_PAGESIZE);

	if (!f)
		return -errno;
	if (fscanf(f, "%lu %lu", &size, &resident) != 2)
		return -EIO;
	metric_set(METRIC_PROCESS_VSIZE, (double)size * (double)page);
	metric_set(METRIC_PROCESS_RSS, (double)resident * (double)page);
	return 0;
}

static int read_cpu(void)
{
	struct rusage u;

	if (getrusage(RUSAGE_SELF, &u) < 0)
		return -errno;
	metric_set(METRIC_PROCESS_CPU,
		   (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
			   (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6);
	return 0;
}

static int read_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	struct rlimit limit;
	double n = 0;

	if (!d)
		return -errno;
	while (readdir(d))
		n++;
	closedir(d);
	metric_set(METRIC_PROCESS_FDS, n - 3); /* less ".", ".." and the directory itself */
	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return -errno;
	metric_set(METRIC_PROCESS_MAX_FDS, (double)limit.rlim_cur);
	return 0;
}

/* Field 22 of /proc/self/stat: start time in ticks of CLOCK_BOOTTIME. */
static int read_start(void)
{
	_cleanup_fclose_ FILE *f = fopen("/proc/self/stat", "re");
	struct timespec wall, boot;
	unsigned long long ticks;

	if (!f)
		return -errno;
	/* The name in parentheses is ours, without a ')' in it. */
	if (fscanf(f,
		   "%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d "
		   "%*d %*d %*d %llu",
		   &ticks) != 1)
		return -EIO;
	clock_gettime(CLOCK_REALTIME, &wall);
	clock_gettime(CLOCK_BOOTTIME, &boot);
	metric_set(METRIC_PROCESS_START, (double)(wall.tv_sec - boot.tv_sec) +
						 (double)ticks / (double)sysconf(_SC_CLK_TCK));
	return 0;
}

int metrics_read_process(void)
{
	static int (*const figures[])(void) = { read_memory, read_cpu, read_fds, read_start };
	int first = 0;

	for (size_t i = 0; i < ARRAY_SIZE(figures); i++) {
		int r = figures[i]();

		if (r < 0 && first == 0)
			first = r;
	}
	return first;
}

/* ---- rendering --------------------------------------------------------------------------------- */

int metrics_set_prefix(const char *p)
{
	if ((!isalpha((unsigned char)p[0]) && p[0] != '_') || strlen(p) > METRICS_PREFIX_MAX)
		return -EINVAL;
	for (const char *c = p; *c; c++)
		if (!isalnum((unsigned char)*c) && *c != '_' && *c != ':')
			return -EINVAL;
	strcpy(prefix, p);
	return 0;
}

/* "<prefix>_<name>", but for complete names, and for one that the reference has without "relay",
 * which its dashboards want so. */
static void render_name(FILE *f, const char *name)
{
	size_t len = strlen(prefix);

	if (name[0] == '=') {
		fputs(name + 1, f);
		return;
	}
	if (streq(prefix, METRICS_PREFIX_REFERENCE) && streq(name, "index_acks_from_sensor_total"))
		len -= strlen("_relay");
	fprintf(f, "%.*s_%s", (int)len, prefix, name);
}

static void render_escaped(FILE *f, const char *s)
{
	for (; *s; s++)
		switch (*s) {
		case '\\':
			fputs("\\\\", f);
			break;
		case '\n':
			fputs("\\n", f);
			break;
		case '"':
			fputs("\\\"", f);
			break;
		default:
			fputc(*s, f);
		}
}

static void render_head(FILE *f, const char *name, const char *type, const char *help)
{
	fputs("# HELP ", f);
	render_name(f, name);
	fprintf(f, " %s\n# TYPE ", help);
	render_name(f, name);
	fprintf(f, " %s\n", type);
}

static void render_label(FILE *f, const char *key, const char *value)
{
	fprintf(f, "%s=\"", key);
	render_escaped(f, value);
	fputc('"', f);
}

static void render_number(FILE *f, double v)
{
	fprintf(f, "%.15g", v);
}

static void render_series(FILE *f, const struct series *s)
{
	render_head(f, s->name, s->kind == GAUGE ? "gauge" : "counter", s->help);
	for (unsigned int i = 0; i < s->labels.n; i++) {
		if (!s->labels.values[i])
			continue;
		render_name(f, s->name);
		if (s->labels.key) {
			fputc('{', f);
			render_label(f, s->labels.key, s->labels.values[i]);
			fputc('}', f);
		}
		fputc(' ', f);
		if (s->kind == COUNTER)
			fprintf(f, "%" PRIu64, s->cells[i].count);
		else
			render_number(f, s->cells[i].level);
		fputc('\n', f);
	}
}

/* The name, a suffix, and in braces the label, if there is one, and the bucket's bound. */
static void render_sample(FILE *f, const struct histogram_series *s, unsigned int label,
			  const char *suffix, const char *bound)
{
	render_name(f, s->name);
	fputs(suffix, f);
	if (!s->labels.key && !bound) {
		fputc(' ', f);
		return;
	}
	fputc('{', f);
	if (s->labels.key)
		render_label(f, s->labels.key, s->labels.values[label]);
	if (s->labels.key && bound)
		fputc(',', f);
	if (bound)
		render_label(f, "le", bound);
	fputs("} ", f);
}

static void render_distribution(FILE *f, const struct histogram_series *s, unsigned int label)
{
	const struct distribution *d = &s->distributions[label];
	uint64_t below = 0;

	for (unsigned int i = 0; i <= s->n_bounds; i++) {
		char bound[32] = "+Inf";

		if (i < s->n_bounds)
			snprintf(bound, sizeof(bound), "%.15g", s->bounds[i]);
		below += d->buckets[i];
		render_sample(f, s, label, "_bucket", bound);
		fprintf(f, "%" PRIu64 "\n", below);
	}
	render_sample(f, s, label, "_sum", NULL);
	render_number(f, d->sum);
	fputc('\n', f);
	render_sample(f, s, label, "_count", NULL);
	fprintf(f, "%" PRIu64 "\n", d->count);
}

int metrics_render(char **ret, size_t *ret_len)
{
	_cleanup_free_ char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);
	bool failed;

	if (!f)
		return -ENOMEM;
	metric_set(METRIC_BUILD_INFO, 1);
	metric_set(METRIC_CONSERVATION, (double)metrics_conservation());
	for (size_t i = 0; i < METRIC_MAX; i++)
		render_series(f, &series[i]);
	for (size_t i = 0; i < HISTOGRAM_MAX; i++) {
		const struct histogram_series *s = &histograms[i];

		render_head(f, s->name, "histogram", s->help);
		for (unsigned int l = 0; l < s->labels.n; l++)
			render_distribution(f, s, l);
	}
	failed = ferror(f);
	if (fclose(f) != 0 || failed)
		return -ENOMEM;
	*ret = TAKE_PTR(text);
	*ret_len = len;
	return 0;
}
