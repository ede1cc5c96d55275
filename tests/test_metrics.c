/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>
#include <sys/wait.h>
#include <time.h>

#include "cache.h"
#include "metrics.h"

static int fresh(void **state)
{
	(void)state;
	metrics_reset();
	return 0;
}

static char *render(void)
{
	char *text;
	size_t len;

	assert_int_equal(metrics_render(&text, &len), 0);
	assert_int_equal(strlen(text), len);
	return text;
}

/* Whether the text has this line. */
static bool has(const char *line)
{
	_cleanup_free_ char *text = render();
	size_t len = strlen(line);

	for (const char *p = text; (p = strstr(p, line)); p++)
		if ((p == text || p[-1] == '\n') && p[len] == '\n')
			return true;
	return false;
}

static void assert_has(const char *line)
{
	if (!has(line))
		fail_msg("no line '%s'", line);
}

static void counters_count(void **state)
{
	(void)state;
	assert_has("vsock_relay_connections_accepted_total 0");
	metric_inc(METRIC_CONNECTIONS_ACCEPTED);
	metric_add(METRIC_CONNECTIONS_ACCEPTED, 41);
	assert_has("vsock_relay_connections_accepted_total 42");
	assert_has("# TYPE vsock_relay_connections_accepted_total counter");
}

static void counters_are_exact_beyond_what_a_double_holds(void **state)
{
	(void)state;
	metric_add_label(METRIC_BYTES, METRIC_BYTES_ACCEPTED, 9007199254740993ULL);
	assert_has("vsock_relay_report_bytes_total{outcome=\"accepted\"} 9007199254740993");
}

static void gauges_are_set(void **state)
{
	(void)state;
	metric_set(METRIC_OLDEST_UNACKED, 1.5);
	metric_set(METRIC_CACHE_BYTES, 536870912);
	assert_has("vsock_relay_oldest_unacked_age_seconds 1.5");
	assert_has("vsock_relay_cache_bytes 536870912");
	assert_has("# TYPE vsock_relay_cache_bytes gauge");
}

static void every_reason_of_a_refusal_is_a_series_from_the_start(void **state)
{
	(void)state;
	for (enum reason r = REASON_NONE + 1; r < REASON_MAX; r++) {
		char line[128];

		snprintf(line, sizeof(line), "vsock_relay_reports_refused_total{reason=\"%s\"} 0",
			 reason_name(r));
		assert_has(line);
	}
	assert_false(has("vsock_relay_reports_refused_total{reason=\"none\"} 0"));
	metric_inc_label(METRIC_REFUSED, REASON_TOO_LARGE);
	assert_has("vsock_relay_reports_refused_total{reason=\"too_large\"} 1");
}

/* The last value of each enum is the last of its names, so none of them has shifted. */
static void label_values_are_those_of_their_enums(void **state)
{
	static const struct {
		enum metric metric;
		unsigned int value;
		const char *line;
	} last[] = {
		{ METRIC_REPORTS_SENT, METRIC_SENT_FAILED,
		  "index_reports_sent_total{failed=\"true\"}" },
		{ METRIC_SEND_ATTEMPTS, METRIC_FAILURE,
		  "index_report_send_attempts_total{result=\"failure\"}" },
		{ METRIC_SEM_FAILURES, METRIC_SEM_UNKNOWN,
		  "sem_acquisition_failures_total{reason=\"unknown\"}" },
		{ METRIC_RATE_LIMITED, METRIC_RATE_STALE_ACK,
		  "reports_rate_limited_total{reason=\"stale_ack\"}" },
		{ METRIC_UPSTREAM_ACKS, METRIC_NACK,
		  "index_acks_from_sensor_total{action=\"NACK\"}" },
		{ METRIC_CACHE_LOOKUPS, METRIC_MISS,
		  "index_report_cache_lookups_total{result=\"miss\"}" },
		{ METRIC_DUPLICATES, METRIC_DAEMON, "duplicates_total{place=\"daemon\"}" },
		{ METRIC_DROPPED, METRIC_DROPPED_INTERNAL,
		  "reports_dropped_total{reason=\"internal\"}" },
		{ METRIC_CONTENTS_ENDED, METRIC_ENDED_OPERATOR,
		  "contents_ended_total{how=\"operator\"}" },
		{ METRIC_BYTES, METRIC_BYTES_REFUSED, "report_bytes_total{outcome=\"refused\"}" },
		{ METRIC_CACHE_REMOVALS, METRIC_REMOVED_TTL,
		  "cache_removals_total{reason=\"ttl\"}" },
		{ METRIC_PLACES_CLASS, METRIC_CLASS_OFFENDER,
		  "places_used_by_class{class=\"offender\"}" },
		{ METRIC_LISTENERS, METRIC_HYBRID, "listeners{kind=\"hybrid\"}" },
		{ METRIC_BPF_MODE, METRIC_BPF_USER, "bpf_mode{mode=\"user\"}" },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(last); i++) {
		char line[128];

		metric_set_label(last[i].metric, last[i].value, 7);
		snprintf(line, sizeof(line), "vsock_relay_%s 7", last[i].line);
		assert_has(line);
		assert_int_equal(metric_get(last[i].metric, last[i].value), 7);
	}
}

static void removals_go_by_the_cache_s_own_reasons(void **state)
{
	(void)state;
	for (enum cache_end why = 0; why < CACHE_END_MAX; why++) {
		char line[128];

		metric_set_label(METRIC_CACHE_REMOVALS, why, 3);
		snprintf(line, sizeof(line), "vsock_relay_cache_removals_total{reason=\"%s\"} 3",
			 cache_end_name(why));
		assert_has(line);
	}
}

static void buckets_are_cumulated_and_include_their_bound(void **state)
{
	(void)state;
	metric_observe(HISTOGRAM_SEND_DURATION, METRIC_SUCCESS, 1000);	   /* 1 ms: the first */
	metric_observe(HISTOGRAM_SEND_DURATION, METRIC_SUCCESS, 1001);	   /* the second */
	metric_observe(HISTOGRAM_SEND_DURATION, METRIC_SUCCESS, 60000000); /* 60 s: the last */
	metric_observe(HISTOGRAM_SEND_DURATION, METRIC_SUCCESS, 60000001); /* beyond */
#define SEND "vsock_relay_index_report_send_duration_seconds"
	assert_has(SEND "_bucket{result=\"success\",le=\"0.001\"} 1");
	assert_has(SEND "_bucket{result=\"success\",le=\"0.0025\"} 2");
	assert_has(SEND "_bucket{result=\"success\",le=\"30\"} 2");
	assert_has(SEND "_bucket{result=\"success\",le=\"60\"} 3");
	assert_has(SEND "_bucket{result=\"success\",le=\"+Inf\"} 4");
	assert_has(SEND "_count{result=\"success\"} 4");
	assert_has(SEND "_sum{result=\"success\"} 120.002002");
	assert_has(SEND "_count{result=\"failure\"} 0");
	assert_int_equal(histogram_count(HISTOGRAM_SEND_DURATION, METRIC_SUCCESS), 4);
}

static void cache_times_reach_24_hours(void **state)
{
	(void)state;
	metric_observe(HISTOGRAM_CACHE_RESIDENCY, 0, 24 * USEC_PER_HOUR);
	metric_observe(HISTOGRAM_CACHE_LIFETIME, 0, 25 * USEC_PER_HOUR);
	assert_has("vsock_relay_index_report_cache_residency_seconds_bucket{le=\"43200\"} 0");
	assert_has("vsock_relay_index_report_cache_residency_seconds_bucket{le=\"86400\"} 1");
	assert_has("vsock_relay_index_report_cache_lifetime_seconds_bucket{le=\"86400\"} 0");
	assert_has("vsock_relay_index_report_cache_lifetime_seconds_bucket{le=\"+Inf\"} 1");
	assert_has("vsock_relay_index_report_cache_residency_seconds_sum 86400");
}

/* SPEC 10: names marked as the reference's, exactly. */
static void names_are_the_reference_s(void **state)
{
	static const char *const names[] = {
		"connections_accepted_total",
		"index_reports_received_total",
		"index_reports_mismatching_vsock_cid_total",
		"index_reports_sent_total",
		"index_report_send_attempts_total",
		"index_report_send_duration_seconds",
		"sem_acquisition_failures_total",
		"sem_holding_size",
		"sem_queue_size",
		"retry_attempts_total",
		"reports_rate_limited_total",
		"acks_received_total",
		"index_report_cache_slots_used",
		"index_report_cache_slots_capacity",
		"index_report_cache_residency_seconds",
		"index_report_cache_lifetime_seconds",
		"index_report_cache_lookups_total",
	};
	_cleanup_free_ char *ours = NULL, *theirs = NULL;

	(void)state;
	ours = render();
	assert_int_equal(metrics_set_prefix(METRICS_PREFIX_REFERENCE), 0);
	theirs = render();
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		char type[128];

		snprintf(type, sizeof(type), "# TYPE vsock_relay_%s ", names[i]);
		assert_non_null(strstr(ours, type));
		snprintf(type, sizeof(type), "# TYPE rox_compliance_virtual_machine_relay_%s ",
			 names[i]);
		assert_non_null(strstr(theirs, type));
	}
	assert_non_null(
		strstr(ours, "\nvsock_relay_index_acks_from_sensor_total{action=\"ACK\"} 0"));
	assert_non_null(strstr(theirs,
			       "\nrox_compliance_virtual_machine_index_acks_from_sensor_total"
			       "{action=\"ACK\"} 0"));
	assert_null(strstr(theirs, "relay_index_acks_from_sensor_total"));
}

static void prefix_must_be_a_metric_name(void **state)
{
	char longest[METRICS_PREFIX_MAX + 2];

	(void)state;
	assert_int_equal(metrics_set_prefix(""), -EINVAL);
	assert_int_equal(metrics_set_prefix("1st"), -EINVAL);
	assert_int_equal(metrics_set_prefix("a-b"), -EINVAL);
	assert_int_equal(metrics_set_prefix("a b"), -EINVAL);
	memset(longest, 'a', sizeof(longest));
	longest[METRICS_PREFIX_MAX + 1] = '\0';
	assert_int_equal(metrics_set_prefix(longest), -EINVAL);
	longest[METRICS_PREFIX_MAX] = '\0';
	assert_int_equal(metrics_set_prefix(longest), 0);
	assert_int_equal(metrics_set_prefix("my_node"), 0);
	assert_has("my_node_sem_queue_size 0");
}

static void contents_are_conserved(void **state)
{
	(void)state;
	metric_add(METRIC_VALID, 10);
	assert_int_equal(metrics_conservation(), 10);
	metric_inc_label(METRIC_DUPLICATES, METRIC_KERNEL);
	metric_inc_label(METRIC_DUPLICATES, METRIC_DAEMON);
	metric_inc(METRIC_SUPPRESSED);
	metric_inc_label(METRIC_DROPPED, METRIC_DROPPED_NO_CACHE);
	metric_add_label(METRIC_CONTENTS_ENDED, METRIC_ENDED_ACKED, 2);
	metric_add_label(METRIC_CONTENTS_ENDED, METRIC_ENDED_SUPERSEDED, 2);
	metric_set(METRIC_CONTENTS_HELD, 2);
	assert_int_equal(metrics_conservation(), 0);
	assert_has("vsock_relay_conservation_difference 0");
	metric_inc_label(METRIC_CONTENTS_ENDED, METRIC_ENDED_SLOTS);
	assert_has("vsock_relay_conservation_difference -1");
}

static void figures_of_bpf_go_where_they_belong(void **state)
{
	const struct vsr_stats s = {
		.packets = 1,
		.bytes = 2,
		.bytes_passed = 3,
		.bytes_known = 4,
		.bytes_refused = 5,
		.zero_length = 6,
		.bad_header = 7,
		.too_large = 8,
		.bad_packet = 9,
		.over_budget = 10,
		.unread_updates = 11,
		.pool_draws = 12,
		.no_conn = 13,
		.no_slot = 14,
		.load_failed = 15,
		.event_lost = 16,
		.vm_insert_failed = 17,
	};
	static const char *const lines[] = {
		"packets_total 1",
		"seen_bytes_total 2",
		"verdict_bytes_total{verdict=\"passed\"} 3",
		"verdict_bytes_total{verdict=\"known\"} 4",
		"verdict_bytes_total{verdict=\"refused\"} 5",
		"limits_total{limit=\"zero_length\"} 6",
		"limits_total{limit=\"bad_header\"} 7",
		"limits_total{limit=\"too_large\"} 8",
		"limits_total{limit=\"bad_packet\"} 9",
		"limits_total{limit=\"over_budget\"} 10",
		"limits_total{limit=\"unread_updates\"} 11",
		"limits_total{limit=\"shared_reserve\"} 12",
		"limits_total{limit=\"unknown_socket\"} 13",
		"errors_total{error=\"no_slot\"} 14",
		"errors_total{error=\"load_failed\"} 15",
		"errors_total{error=\"event_lost\"} 16",
		"errors_total{error=\"vm_insert_failed\"} 17",
	};

	(void)state;
	metrics_set_bpf(&s);
	for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
		char line[128];

		snprintf(line, sizeof(line), "vsock_relay_bpf_%s", lines[i]);
		assert_has(line);
	}
}

static void process_figures_are_plausible(void **state)
{
	double fds;
	int fd;

	(void)state;
	assert_int_equal(metrics_read_process(), 0);
	assert_true(metric_get(METRIC_PROCESS_RSS, 0) > 100e3);
	assert_true(metric_get(METRIC_PROCESS_VSIZE, 0) >= metric_get(METRIC_PROCESS_RSS, 0));
	assert_true(metric_get(METRIC_PROCESS_CPU, 0) > 0);
	assert_true(metric_get(METRIC_PROCESS_MAX_FDS, 0) > 2);
	assert_true((double)time(NULL) - metric_get(METRIC_PROCESS_START, 0) >= -1);
	assert_true((double)time(NULL) - metric_get(METRIC_PROCESS_START, 0) < 600);

	fds = metric_get(METRIC_PROCESS_FDS, 0);
	fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	metrics_read_process();
	assert_true(metric_get(METRIC_PROCESS_FDS, 0) == fds + 1);
	safe_close(fd);
}

static void build_info_names_the_version(void **state)
{
	(void)state;
	assert_has("vsock_relay_build_info{version=\"" VSR_VERSION "\"} 1");
}

/* promtool reads the text from a pipe, and complains on its own standard error. */
static int promtool(const char *text)
{
	int fds[2], status;
	pid_t pid;

	assert_int_equal(pipe(fds), 0);
	pid = fork();
	if (pid == 0) {
		dup2(fds[0], STDIN_FILENO);
		close(fds[0]);
		close(fds[1]);
		execlp("promtool", "promtool", "check", "metrics", NULL);
		_exit(127);
	}
	close(fds[0]);
	assert_int_equal(write(fds[1], text, strlen(text)), strlen(text));
	close(fds[1]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void promtool_finds_nothing_to_complain_about(void **state)
{
	_cleanup_free_ char *ours = NULL, *theirs = NULL;
	int r;

	(void)state;
	metrics_read_process();
	metric_observe(HISTOGRAM_SEND_DURATION, METRIC_FAILURE, 12345);
	ours = render();
	r = promtool(ours);
	if (r == 127)
		fail_msg("promtool is not installed");
	assert_int_equal(r, 0);
	metrics_set_prefix(METRICS_PREFIX_REFERENCE);
	theirs = render();
	assert_int_equal(promtool(theirs), 0);
	/* And it would complain. */
	assert_int_not_equal(promtool("# HELP a b\n# TYPE a counter\na 1\n"), 0);
}

/* ---- the specification's list ------------------------------------------------------------------ */

static void assert_series(const char *text, const char *name, const char *type, const char *label,
			  const char *value)
{
	bool histogram = streq(type, "histogram");
	char line[512];

	snprintf(line, sizeof(line), "\n# TYPE %s %s\n", name, type);
	if (!strstr(text, line))
		fail_msg("missing: %s", line + 1);
	if (streq(label, "-"))
		snprintf(line, sizeof(line), "\n%s%s", name, histogram ? "_bucket{le=\"" : " ");
	else if (streq(value, "*"))
		snprintf(line, sizeof(line), "\n%s{%s=\"", name, label);
	else
		snprintf(line, sizeof(line), "\n%s%s{%s=\"%s\"%s", name, histogram ? "_bucket" : "",
			 label, value, histogram ? ",le=" : "} ");
	if (!strstr(text, line))
		fail_msg("missing: %s", line + 1);
}

static void assert_metric(const char *text, const char *name, const char *type, const char *label,
			  const char *values)
{
	char copy[256], *rest = copy;

	snprintf(copy, sizeof(copy), "%s", values);
	for (char *value; (value = strsep(&rest, "|"));)
		assert_series(text, name, type, label, value);
}

static void every_metric_of_the_specification_is_there_with_its_labels(void **state)
{
	_cleanup_free_ char *ours = NULL, *theirs = NULL;
	_cleanup_fclose_ FILE *f = fopen("tests/spec-metrics.txt", "re");
	unsigned int n = 0, n_theirs = 0;
	char line[512];

	(void)state;
	assert_non_null(f);
	ours = render();
	metrics_set_prefix(METRICS_PREFIX_REFERENCE);
	theirs = render();
	while (fgets(line, sizeof(line), f)) {
		char name[128], type[16], label[32], values[256], reference[128], full[256];
		int fields = sscanf(line, "%127s %15s %31s %255s = %127s", name, type, label,
				    values, reference);

		if (*line == '#')
			continue;
		assert_true(fields >= 4);
		snprintf(full, sizeof(full), "%s%s", *name == '=' ? "" : "vsock_relay_",
			 name + (*name == '='));
		assert_metric(ours, full, type, label, values);
		if (fields == 5)
			assert_metric(theirs, reference, type, label, values);
		n++;
		n_theirs += fields == 5;
	}
	assert_true(n > 30 && n_theirs == 18);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(counters_count, fresh),
		cmocka_unit_test_setup(counters_are_exact_beyond_what_a_double_holds, fresh),
		cmocka_unit_test_setup(gauges_are_set, fresh),
		cmocka_unit_test_setup(every_reason_of_a_refusal_is_a_series_from_the_start, fresh),
		cmocka_unit_test_setup(label_values_are_those_of_their_enums, fresh),
		cmocka_unit_test_setup(removals_go_by_the_cache_s_own_reasons, fresh),
		cmocka_unit_test_setup(buckets_are_cumulated_and_include_their_bound, fresh),
		cmocka_unit_test_setup(cache_times_reach_24_hours, fresh),
		cmocka_unit_test_setup(names_are_the_reference_s, fresh),
		cmocka_unit_test_setup(prefix_must_be_a_metric_name, fresh),
		cmocka_unit_test_setup(contents_are_conserved, fresh),
		cmocka_unit_test_setup(figures_of_bpf_go_where_they_belong, fresh),
		cmocka_unit_test_setup(process_figures_are_plausible, fresh),
		cmocka_unit_test_setup(build_info_names_the_version, fresh),
		cmocka_unit_test_setup(every_metric_of_the_specification_is_there_with_its_labels,
				       fresh),
		cmocka_unit_test_setup(promtool_finds_nothing_to_complain_about, fresh),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
