/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads docs/settings.md and the example configuration from the current directory, which is the
 * project's. With VSR_UPDATE_DOCS=1 the table in docs/settings.md is written anew.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <syslog.h>

#include "failing_malloc.h"
#include "log.h"
#include "settings.h"
#include "tracker.h"
#include "yaml_tree.h"

#define DOCS	"docs/settings.md"
#define EXAMPLE "scripts/deploy/vsock-relayd.example.yaml"

#define ARGS_MAX 16

/* What a load gave, and what it was given. */
struct load {
	char *argv[ARGS_MAX + 1];
	char *envp[ARGS_MAX + 1];
	int argc, n_env;
	struct settings *s;
	struct settings_errors errors;
	int r;
};

static void arg(struct load *l, const char *text)
{
	if (l->argc == 0)
		l->argv[l->argc++] = (char *)"vsock-relayd";
	assert_true(l->argc < ARGS_MAX);
	l->argv[l->argc++] = (char *)text;
}

static void env(struct load *l, const char *text)
{
	assert_true(l->n_env < ARGS_MAX);
	l->envp[l->n_env++] = (char *)text;
}

static void parse_n(struct load *l, const char *yaml, size_t len)
{
	l->r = settings_parse(l->argc, l->argv, l->envp, "relayd.yaml", yaml, len, &l->s,
			      &l->errors);
}

static void parse(struct load *l, const char *yaml)
{
	parse_n(l, yaml, yaml ? strlen(yaml) : 0);
}

static void done(struct load *l)
{
	settings_free(l->s);
	settings_errors_done(&l->errors);
	*l = (struct load){};
}

static void assert_good(const struct load *l)
{
	if (l->r != 0) {
		settings_errors_log(&l->errors, "");
		fail_msg("refused");
	}
	assert_int_equal(l->errors.n, 0);
}

/* Refused with just this error. */
static void assert_error(const struct load *l, const char *text)
{
	assert_int_equal(l->r, -EINVAL);
	assert_null(l->s);
	assert_int_equal(l->errors.n_errors, 1);
	assert_int_equal(l->errors.n, 1);
	if (strncmp(l->errors.message[0].text, text, strlen(text)) != 0)
		fail_msg("\"%s\" is not \"%s...\"", l->errors.message[0].text, text);
}

static void refuses(const char *yaml, const char *text)
{
	struct load l = {};

	parse(&l, yaml);
	assert_error(&l, text);
	done(&l);
}

static size_t key_index(const char *name)
{
	struct settings_key_info key;

	for (size_t i = 0; settings_key(i, &key); i++)
		if (streq(key.name, name))
			return i;
	fail_msg("no key %s", name);
	return 0;
}

static void assert_value(const struct load *l, const char *name, const char *value)
{
	_cleanup_free_ char *text = settings_value(l->s, key_index(name));

	assert_non_null(text);
	assert_string_equal(text, value);
}

/* The file's text gives that value. */
static void gives(const char *yaml, const char *name, const char *value)
{
	struct load l = {};

	parse(&l, yaml);
	assert_good(&l);
	assert_value(&l, name, value);
	done(&l);
}

/* ---- sources ---- */

static void test_defaults_are_those_of_the_specification(void **state)
{
	struct load l = {};
	const struct settings *s;

	(void)state;
	parse(&l, NULL);
	assert_good(&l);
	s = l.s;
	assert_int_equal(s->action, SETTINGS_RUN);
	assert_string_equal(s->file, "");
	assert_int_equal(s->listen.port, 818);
	assert_int_equal(s->listen.backlog, 4096);
	assert_int_equal(s->hybrid.mode, 0660);
	assert_int_equal(s->bpf, SETTINGS_BPF_AUTO);
	assert_string_equal(s->pin_directory, "/sys/fs/bpf/vsock_relay");
	assert_int_equal(s->report.max_bytes, 16384 * 1024);
	assert_int_equal(s->report.deadline_usec, 10 * USEC_PER_SEC);
	assert_int_equal(s->report.idle_usec, 5 * USEC_PER_SEC);
	assert_int_equal(s->admission.places, 50);
	assert_int_equal(s->admission.wait_usec, 5 * USEC_PER_SEC);
	assert_int_equal(s->admission.waiting, 256);
	assert_true(s->admission.grant_rate == 1);
	assert_int_equal(s->admission.grant_burst, 5);
	assert_int_equal(s->memory_budget, 256 * MIB);
	assert_false(s->allow_reserved_cids);
	assert_int_equal(s->cache.slots, 100);
	assert_int_equal(s->cache.ttl_usec, 4 * USEC_PER_HOUR);
	assert_int_equal(s->cache.bytes, 512 * MIB);
	assert_int_equal(s->refresh_interval_usec, 24 * USEC_PER_HOUR);
	assert_int_equal(s->rate.stale_ack_threshold_usec, 4 * USEC_PER_HOUR);
	assert_int_equal(s->custody_max_age_usec, 24 * USEC_PER_HOUR);
	assert_int_equal(s->retry.base_usec, 30 * USEC_PER_SEC);
	assert_int_equal(s->retry.mode, SETTINGS_RETRY_LINEAR);
	assert_int_equal(s->retry.cap_usec, 30 * USEC_PER_MIN);
	assert_true(s->retry.jitter_percent == 10);
	assert_string_equal(s->metrics.prefix, "vsock_relay");
	assert_int_equal(s->log_level, LOG_INFO);
	done(&l);
}

static void test_with_the_file_upstream_unchanged_is_suppressed_and_rate_unlimited(void **state)
{
	struct load l = {};

	(void)state;
	parse(&l, "upstream: {kind: file}\n");
	assert_good(&l);
	assert_int_equal(l.s->unchanged, SETTINGS_UNCHANGED_SUPPRESS);
	assert_true(l.s->rate.reports_per_minute == 0);
	done(&l);
}

static void test_with_the_grpc_upstream_unchanged_is_forwarded_and_rate_is_one(void **state)
{
	struct load l = {};

	(void)state;
	parse(&l, "upstream: {kind: grpc}\n");
	assert_good(&l);
	assert_int_equal(l.s->unchanged, SETTINGS_UNCHANGED_FORWARD);
	assert_true(l.s->rate.reports_per_minute == 1);
	assert_int_equal(l.s->upstream.grpc.acks, SETTINGS_ACKS_COMMUNICATE);
	assert_false(l.s->upstream.grpc.plaintext);
	done(&l);
}

static void test_flags_win_over_environment_over_file_over_defaults(void **state)
{
	static const char *const expected[] = { "4h", "1h", "2h", "3h" };

	(void)state;
	for (size_t n = 0; n < ARRAY_SIZE(expected); n++) {
		struct load l = {};

		if (n >= 2)
			env(&l, "VSOCK_RELAY_CACHE_TTL=2h");
		if (n >= 3)
			arg(&l, "--cache-ttl=3h");
		parse(&l, n >= 1 ? "cache: {ttl: 1h}\n" : NULL);
		assert_good(&l);
		assert_value(&l, "cache.ttl", expected[n]);
		done(&l);
	}
}

static void test_every_key_is_set_by_file_environment_and_flag(void **state)
{
	struct settings_key_info key;

	(void)state;
	for (size_t i = 0; settings_key(i, &key); i++) {
		_cleanup_free_ char *bad_env = NULL, *bad_flag = NULL;
		struct load l = {};

		/* No kind of value takes a control character. */
		assert_true(asprintf(&bad_env, "%s=\x01", key.env) > 0);
		assert_true(asprintf(&bad_flag, "%s=\x01", key.flag) > 0);
		env(&l, bad_env);
		arg(&l, bad_flag);
		parse(&l, NULL);
		assert_int_equal(l.r, -EINVAL);
		assert_int_equal(l.errors.n, 2);
		assert_non_null(strstr(l.errors.message[0].text, key.env));
		assert_non_null(strstr(l.errors.message[0].text, key.expects));
		assert_non_null(strstr(l.errors.message[1].text, key.flag));
		done(&l);
	}
}

static void test_every_default_is_read_back_from_its_text(void **state)
{
	struct settings_key_info key;

	(void)state;
	for (size_t i = 0; settings_key(i, &key); i++) {
		_cleanup_free_ char *flag = NULL;
		struct load l = {};

		assert_true(asprintf(&flag, "%s=%s", key.flag, key.def) > 0);
		arg(&l, flag);
		parse(&l, NULL);
		assert_good(&l);
		assert_value(&l, key.name, key.def);
		done(&l);
	}
}

static void test_the_references_environment_names_are_honoured(void **state)
{
	static const struct {
		const char *env, *key, *value;
	} names[] = {
		{ "ROX_VIRTUAL_MACHINES_VSOCK_PORT=819", "listen.port", "819" },
		{ "ROX_VIRTUAL_MACHINES_MAX_CONCURRENT_VSOCK_CONNECTIONS=7", "admission.places",
		  "7" },
		{ "ROX_VIRTUAL_MACHINES_VSOCK_CONCURRENCY_TIMEOUT=6s", "admission.wait", "6s" },
		{ "ROX_VIRTUAL_MACHINES_VSOCK_CONN_MAX_SIZE_KB=4096", "report.max_kib", "4096" },
		{ "ROX_VM_RELAY_MAX_REPORTS_PER_MINUTE=0.5", "rate.reports_per_minute", "0.5" },
		{ "ROX_VM_RELAY_STALE_ACK_THRESHOLD=1h", "rate.stale_ack_threshold", "1h" },
		{ "ROX_VM_INDEX_REPORT_RELAY_CACHE_SLOTS=5", "cache.slots", "5" },
		{ "ROX_VM_INDEX_REPORT_RELAY_CACHE_TTL=1m30s", "cache.ttl", "1m30s" },
		{ "ROX_NODE_SCANNING_ACK_DEADLINE_BASE=1s", "retry.base", "1s" },
		{ "ROX_SENSOR_ENDPOINT=sensor.acs.svc:8443", "upstream.grpc.address",
		  "sensor.acs.svc:8443" },
		{ "ROX_MTLS_CA_FILE=/certs/ca", "upstream.grpc.ca", "/certs/ca" },
		{ "ROX_MTLS_CERT_FILE=/certs/cert", "upstream.grpc.certificate", "/certs/cert" },
		{ "ROX_MTLS_KEY_FILE=/certs/key", "upstream.grpc.key", "/certs/key" },
		{ "ROX_NODE_NAME=node-1", "node_name", "node-1" },
		{ "ROX_METRICS_PORT=:9090", "metrics.listen", ":9090" },
		{ "ROX_METRICS_PORT=disabled", "metrics.listen", "off" },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		struct load l = {};

		env(&l, names[i].env);
		parse(&l, NULL);
		assert_good(&l);
		assert_value(&l, names[i].key, names[i].value);
		done(&l);
	}
}

static void test_a_bad_value_names_the_variable_that_it_came_from(void **state)
{
	struct load l = {};

	(void)state;
	env(&l, "ROX_VIRTUAL_MACHINES_VSOCK_PORT=:818");
	parse(&l, NULL);
	assert_error(&l, "environment ROX_VIRTUAL_MACHINES_VSOCK_PORT: listen.port: ':818'; ");
	done(&l);
}

static void test_our_own_variable_wins_over_the_references(void **state)
{
	struct load l = {};

	(void)state;
	env(&l, "VSOCK_RELAY_LISTEN_PORT=1");
	env(&l, "ROX_VIRTUAL_MACHINES_VSOCK_PORT=2");
	parse(&l, NULL);
	assert_good(&l);
	assert_int_equal(l.s->listen.port, 1);
	done(&l);
}

static void test_an_empty_variable_is_not_set(void **state)
{
	struct load l = {};

	(void)state;
	env(&l, "VSOCK_RELAY_LISTEN_PORT=");
	env(&l, "ROX_METRICS_PORT=");
	parse(&l, NULL);
	assert_good(&l);
	assert_int_equal(l.s->listen.port, 818);
	assert_true(l.s->metrics.listen.enabled);
	done(&l);
}

static void test_a_misspelt_variable_is_a_warning_and_those_of_kubernetes_are_not(void **state)
{
	struct load l = {};

	(void)state;
	env(&l, "VSOCK_RELAY_PORT=tcp://10.0.0.1:9818");
	env(&l, "VSOCK_RELAY_SERVICE_HOST=10.0.0.1");
	env(&l, "VSOCK_RELAY_PORT_9818_TCP_ADDR=10.0.0.1");
	env(&l, "VSOCK_RELAY_CACHE_TTLS=1h");
	env(&l, "VSOCK_RELAYS=1h");
	parse(&l, NULL);
	assert_int_equal(l.r, 0);
	assert_int_equal(l.errors.n, 1);
	assert_int_equal(l.errors.n_errors, 0);
	assert_true(l.errors.message[0].warning);
	assert_non_null(strstr(l.errors.message[0].text, "VSOCK_RELAY_CACHE_TTLS"));
	done(&l);
}

static void test_a_bad_value_is_an_error_even_where_a_flag_overrides_it(void **state)
{
	struct load l = {};

	(void)state;
	arg(&l, "--cache-ttl=1h");
	parse(&l, "cache:\n  ttl: never\n");
	assert_error(&l, "relayd.yaml:2:8: cache.ttl: 'never'; expected a duration such as 4h");
	done(&l);
}

/* ---- the file ---- */

static void test_an_error_names_file_line_column_and_what_was_expected(void **state)
{
	(void)state;
	refuses("listen:\n  port: 0\n",
		"relayd.yaml:2:9: listen.port: '0'; expected a whole number from 1 to "
		"4294967294");
	refuses("# a comment\n\nbpf:    maybe\n",
		"relayd.yaml:3:9: bpf: 'maybe'; expected auto, required or off");
	refuses("cache: {slots: 5, slot: 6}\n",
		"relayd.yaml:1:19: unknown key 'slot' in cache; expected one of: slots, ttl, "
		"bytes");
	refuses("nonsense: 1\n", "relayd.yaml:1:1: unknown key 'nonsense'; expected one of: "
				 "namespace, ");
	refuses("upstream:\n  file:\n    dir: /x\n",
		"relayd.yaml:3:5: unknown key 'dir' in upstream.file; expected one of: "
		"directory");
	refuses("cache.ttl: 1h\n", "relayd.yaml:1:1: unknown key 'cache.ttl'");
	refuses("cache: 1h\n", "relayd.yaml:1:8: cache: not a section; expected keys below "
			       "it: slots, ttl, bytes");
	refuses("bpf: {mode: off}\n", "relayd.yaml:1:6: bpf: not a single value");
	refuses("bpf: [off]\n", "relayd.yaml:1:6: bpf: not a single value");
	refuses("- bpf\n", "relayd.yaml:1:1: not settings; expected lines of the form");
	refuses("bpf\n", "relayd.yaml:1:1: not settings; expected lines of the form");
}

static void test_a_repeated_key_is_an_error(void **state)
{
	(void)state;
	refuses("bpf: off\nbpf: off\n",
		"relayd.yaml:2:1: bpf stands here a second time; expected once");
	refuses("cache: {ttl: 1h}\nbpf: off\ncache: {slots: 1}\n",
		"relayd.yaml:3:1: cache stands here a second time; expected once");
	refuses("hybrid: {sockets: [{path: /a, cid: 3, path: /b}]}\n",
		"relayd.yaml:1:39: hybrid.sockets: 'path'");
}

static void test_a_key_without_value_is_an_error_and_an_empty_section_is_not(void **state)
{
	struct load l = {};

	(void)state;
	refuses("user:\n", "relayd.yaml:1:6: user: no value (leave the key out for its "
			   "default)");
	refuses("user: ~\n", "relayd.yaml:1:7: user: no value");
	parse(&l, "user: \"\"\ncache:\nrate: ~\nlisten: {}\n");
	assert_good(&l);
	done(&l);
}

static void test_an_empty_file_is_all_defaults(void **state)
{
	static const char *const empty[] = {
		"", "\n\n", "# nothing\n", "---\n", "--- ~\n", "{}\n"
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(empty); i++)
		gives(empty[i], "listen.port", "818");
}

static void test_what_is_not_yaml_is_named_with_its_place(void **state)
{
	(void)state;
	refuses("a: b: c\n", "relayd.yaml:1:5: not YAML: ");
	refuses("bpf: off\n\tlisten: 1\n", "relayd.yaml:2:1: not YAML: ");
	refuses("bpf: off\nuser: \xff\n", "relayd.yaml:2:7: not YAML: ");
	refuses("bpf: 'off\n", "relayd.yaml:");
	refuses("bpf: [off\n", "relayd.yaml:");
	refuses("[bpf]: off\n", "relayd.yaml:1:1: a key is a plain word");
}

static void test_anchors_aliases_tags_and_second_documents_are_refused(void **state)
{
	(void)state;
	refuses("user: &a x\n", "relayd.yaml:1:7: anchors");
	refuses("user: *a\n", "relayd.yaml:1:7: aliases");
	refuses("user: !!str x\n", "relayd.yaml:1:7: tags");
	refuses("cache: &a {}\n", "relayd.yaml:1:8: anchors");
	refuses("hybrid: {sockets: &a []}\n", "relayd.yaml:1:19: anchors");
	refuses("bpf: off\n---\nbpf: off\n", "relayd.yaml:2:1: a second document");
}

static void test_depth_and_number_of_values_are_bounded(void **state)
{
	_cleanup_free_ char *many = malloc(SETTINGS_FILE_MAX + 1);
	struct load l = {};

	(void)state;
	refuses("a: [[[[[[[x]]]]]]]\n", "relayd.yaml:1:1: unknown key 'a'");
	refuses("a: [[[[[[[[x]]]]]]]]\n", "relayd.yaml:1:11: nested too deep");

	assert_non_null(many);
	memset(many, '[', SETTINGS_FILE_MAX);
	parse_n(&l, many, SETTINGS_FILE_MAX);
	assert_error(&l, "relayd.yaml:1:9: nested too deep");
	done(&l);

	for (size_t i = 0; i < SETTINGS_FILE_MAX; i++)
		many[i] = i % 2 ? 'x' : ',';
	many[0] = '[';
	parse_n(&l, many, SETTINGS_FILE_MAX);
	assert_int_equal(l.r, -EINVAL);
	assert_non_null(strstr(l.errors.message[0].text, "too many values"));
	done(&l);
}

static void test_a_zero_byte_ends_no_value(void **state)
{
	struct load l = {};

	(void)state;
	refuses("user: \"a\\0b\"\n", "relayd.yaml:1:7: a value holds a zero byte");
	parse_n(&l, "user: a\0b\n", 10);
	assert_int_equal(l.r, -EINVAL);
	done(&l);
}

static void test_errors_are_collected_up_to_a_bound(void **state)
{
	char yaml[4096] = "";
	struct load l = {};

	(void)state;
	parse(&l, "bpf: x\nlisten: {port: y}\ndedup: z\n");
	assert_int_equal(l.r, -EINVAL);
	assert_int_equal(l.errors.n, 3);
	assert_int_equal(l.errors.n_errors, 3);
	done(&l);

	for (int i = 0; i < 100; i++)
		snprintf(yaml + strlen(yaml), sizeof(yaml) - strlen(yaml), "key%d: 1\n", i);
	parse(&l, yaml);
	assert_int_equal(l.r, -EINVAL);
	assert_int_equal(l.errors.n, SETTINGS_MESSAGES_MAX);
	assert_true(l.errors.n_left_off >= 1);
	assert_int_equal(l.errors.n_errors, l.errors.n + l.errors.n_left_off);
	done(&l);
}

static char heard[2000];

static int hear(const struct log_entry *e)
{
	snprintf(heard + strlen(heard), sizeof(heard) - strlen(heard), "%d %s\n", e->level,
		 e->message);
	return 0;
}

static void test_messages_are_logged_a_line_each(void **state)
{
	struct load l = {};

	(void)state;
	env(&l, "VSOCK_RELAY_X=1");
	parse(&l, "bpf: x\nuser:\n");
	log_set_sink(hear);
	heard[0] = '\0';
	settings_errors_log(&l.errors, "");
	l.errors.n_left_off = 1;
	settings_errors_log(&l.errors, "reload: ");
	log_set_sink(NULL);
	assert_string_equal(
		heard, "3 relayd.yaml:1:6: bpf: 'x'; expected auto, required or off\n"
		       "3 relayd.yaml:2:6: user: no value (leave the key out for its default); "
		       "expected a name or number of at most 32 characters, or nothing\n"
		       "4 environment 'VSOCK_RELAY_X': no such setting, ignored\n"
		       "3 reload: relayd.yaml:1:6: bpf: 'x'; expected auto, required or off\n"
		       "3 reload: relayd.yaml:2:6: user: no value (leave the key out for its "
		       "default); expected a name or number of at most 32 characters, or nothing\n"
		       "4 reload: environment 'VSOCK_RELAY_X': no such setting, ignored\n"
		       "3 reload: and more; 3 are shown\n");
	done(&l);
}

static void test_text_from_outside_is_shown_short_and_printable(void **state)
{
	char yaml[400] = "bpf: \"\\e[31m";
	struct load l = {};

	(void)state;
	memset(yaml + strlen(yaml), 'x', 300);
	strcpy(yaml + 312, "\"\n");
	parse(&l, yaml);
	assert_int_equal(l.r, -EINVAL);
	assert_non_null(strstr(l.errors.message[0].text, "'?[31mxxx"));
	assert_non_null(strstr(l.errors.message[0].text, "xxx...'; expected"));
	assert_true(strlen(l.errors.message[0].text) < 200);
	done(&l);
}

/* ---- kinds of values ---- */

static void test_sizes_have_units_and_bounds(void **state)
{
	(void)state;
	gives("memory: {budget: 1GiB}\n", "memory.budget", "1GiB");
	gives("memory: {budget: 65536KiB}\n", "memory.budget", "64MiB");
	gives("memory: {budget: 100000000}\n", "memory.budget", "100000000");
	refuses("memory: {budget: 1GB}\n", "relayd.yaml:1:18: memory.budget: '1GB'; expected "
					   "a size in bytes or with KiB, MiB or GiB, from "
					   "1MiB to 1024GiB");
	refuses("memory: {budget: -1}\n", "relayd.yaml:1:18: memory.budget: '-1'");
	refuses("memory: {budget: 1.5GiB}\n", "relayd.yaml:1:18: memory.budget: '1.5GiB'");
	refuses("memory: {budget: 18446744073709551615GiB}\n", "relayd.yaml:1:18: memory.budget:");
	refuses("memory: {budget: 99999999999999999999999}\n", "relayd.yaml:1:18: memory.budget:");
	refuses("memory: {budget: MiB}\n", "relayd.yaml:1:18: memory.budget:");
}

static void test_numbers_are_plain_decimals_within_bounds(void **state)
{
	static const char *const bad[] = { "-1", "+1", "1e3", "0x10", "inf", "nan",
					   ".5", "1.", "1,5", "1 ",   "1/m", "1000001" };

	(void)state;
	gives("admission: {grant_rate: 0.25}\n", "admission.grant_rate", "0.25");
	gives("admission: {grant_rate: 2/s}\n", "admission.grant_rate", "2");
	gives("retry: {jitter: 12.5%}\n", "retry.jitter", "12.5");
	gives("rate: {reports_per_minute: 1.0}\n", "rate.reports_per_minute", "1");
	gives("rate: {reports_per_minute: 0.1}\n", "rate.reports_per_minute", "0.1");
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		char yaml[80];

		snprintf(yaml, sizeof(yaml), "admission: {grant_rate: \"%s\"}\n", bad[i]);
		refuses(yaml, "relayd.yaml:1:25: admission.grant_rate: '");
	}
}

static void test_a_retry_base_that_is_not_positive_means_a_minute(void **state)
{
	(void)state;
	gives("retry: {base: 0}\n", "retry.base", "1m");
	gives("retry: {base: 0s}\n", "retry.base", "1m");
	gives("retry: {base: -30s}\n", "retry.base", "1m");
	gives("retry: {base: 1s}\n", "retry.base", "1s");
	refuses("cache: {ttl: -4h}\n", "relayd.yaml:1:14: cache.ttl: '-4h'");
}

static void test_cache_slots_are_a_number_or_auto(void **state)
{
	struct load l = {};

	(void)state;
	parse(&l, "cache: {slots: auto}\n");
	assert_good(&l);
	assert_int_equal(l.s->cache.slots, SETTINGS_SLOTS_AUTO);
	done(&l);
	gives("cache: {slots: 0}\n", "cache.slots", "0");
	refuses("cache: {slots: 4294967295}\n", "relayd.yaml:1:16: cache.slots:");
	refuses("cache: {slots: some}\n", "relayd.yaml:1:16: cache.slots: 'some'; expected a "
					  "whole number from 0 to 16384, or auto");
}

static void test_words_of_yaml_for_true_and_false_are_taken(void **state)
{
	static const char *const yes[] = { "true", "yes", "on", "1", "'true'" };
	static const char *const no[] = { "false", "no", "off", "0" };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(yes) + ARRAY_SIZE(no); i++) {
		bool value = i < ARRAY_SIZE(yes);
		char yaml[80];

		snprintf(yaml, sizeof(yaml), "allow_reserved_cids: %s\n",
			 value ? yes[i] : no[i - ARRAY_SIZE(yes)]);
		gives(yaml, "allow_reserved_cids", value ? "true" : "false");
	}
	refuses("allow_reserved_cids: maybe\n",
		"relayd.yaml:1:22: allow_reserved_cids: 'maybe'; expected true or false");
}

static void test_addresses_are_numeric_and_a_port_alone_is_loopback(void **state)
{
	static const char *const bad[] = { "0",
					   "65536",
					   "localhost:80",
					   "1.2.3:80",
					   "::1:9818x",
					   "[::1]",
					   "[1.2.3.4]:80",
					   "[]:80",
					   "1.2.3.4:",
					   "1.2.3.4:0",
					   ":",
					   "2001:db8::1:80",
					   "tcp://1.2.3.4:80",
					   "[::1:80" };
	struct load l = {};

	(void)state;
	gives("metrics: {listen: '9818'}\n", "metrics.listen", "127.0.0.1:9818");
	gives("metrics: {listen: '[::1]:80'}\n", "metrics.listen", "[::1]:80");
	gives("metrics: {listen: ':80'}\n", "metrics.listen", ":80");
	gives("metrics: {listen: 192.0.2.1:80}\n", "metrics.listen", "192.0.2.1:80");
	gives("metrics: {listen: off}\n", "metrics.listen", "off");
	parse(&l, "metrics: {listen: '[2001:db8::1]:80'}\n");
	assert_good(&l);
	assert_string_equal(l.s->metrics.listen.host, "2001:db8::1");
	assert_int_equal(l.s->metrics.listen.port, 80);
	done(&l);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		char yaml[80];

		snprintf(yaml, sizeof(yaml), "metrics: {listen: '%s'}\n", bad[i]);
		refuses(yaml, "relayd.yaml:1:19: metrics.listen: '");
	}
}

static void test_paths_are_absolute_and_never_go_up(void **state)
{
	(void)state;
	gives("run_directory: /run/..x/y\n", "run_directory", "/run/..x/y");
	refuses("run_directory: run\n", "relayd.yaml:1:16: run_directory: 'run'; expected an "
					"absolute path");
	refuses("run_directory: \"\"\n", "relayd.yaml:1:16: run_directory: ''");
	refuses("run_directory: /run/../etc\n", "relayd.yaml:1:16: run_directory:");
	refuses("run_directory: /run/..\n", "relayd.yaml:1:16: run_directory:");
	refuses("run_directory: \"/run\\n\"\n", "relayd.yaml:1:16: run_directory: '/run?'");
	gives("admin_socket: ''\n", "admin_socket", "");
}

static void test_a_metric_prefix_is_a_prometheus_name(void **state)
{
	(void)state;
	gives("metrics: {prefix: rox_compliance_virtual_machine_relay}\n", "metrics.prefix",
	      "rox_compliance_virtual_machine_relay");
	refuses("metrics: {prefix: 1x}\n", "relayd.yaml:1:19: metrics.prefix: '1x'; expected a "
					   "Prometheus name");
	refuses("metrics: {prefix: a-b}\n", "relayd.yaml:1:19: metrics.prefix:");
	refuses("metrics: {prefix: ''}\n", "relayd.yaml:1:19: metrics.prefix:");
}

static void test_permanent_nacks_are_a_list_of_texts(void **state)
{
	struct load l = {};

	(void)state;
	parse(&l, "");
	assert_int_equal(l.s->retry.permanent_nacks.n, tracker_defaults.n_permanent);
	for (size_t i = 0; i < tracker_defaults.n_permanent; i++)
		assert_string_equal(l.s->retry.permanent_nacks.word[i],
				    tracker_defaults.permanent[i]);
	done(&l);
	parse(&l, "retry: {permanent_nacks: [go away, 'no: never']}\n");
	assert_int_equal(l.s->retry.permanent_nacks.n, 2);
	assert_string_equal(l.s->retry.permanent_nacks.word[1], "no: never");
	done(&l);
	gives("retry: {permanent_nacks: 'go away,never'}\n", "retry.permanent_nacks",
	      "go away,never");
	gives("retry: {permanent_nacks: []}\n", "retry.permanent_nacks", "");
	refuses("retry: {permanent_nacks: ['a,b']}\n",
		"relayd.yaml:1:27: retry.permanent_nacks: this item does not fit");
	refuses("retry: {permanent_nacks: ['']}\n",
		"relayd.yaml:1:27: retry.permanent_nacks: this item does not fit");
	refuses("retry: {permanent_nacks: \"a\\tb\"}\n", "relayd.yaml:1:26: retry.permanent_nacks");
	refuses("retry: {permanent_nacks: 'a, b'}\n", "relayd.yaml:1:26: retry.permanent_nacks");
	refuses("retry: {permanent_nacks: [a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q]}\n",
		"relayd.yaml:1:26: retry.permanent_nacks");
}

static void test_acks_by_cid_alone_do_not_go_with_a_namespace(void **state)
{
	(void)state;
	refuses("namespace: 3\nupstream: {kind: grpc, grpc: {ack_names: cid}}\n",
		"relayd.yaml:2:42: upstream.grpc.ack_names: cid, but namespace is 3");
	refuses("listeners: [{netns: /a, namespace: 3}]\nupstream: {kind: grpc, grpc: {ack_names: "
		"cid}}\n",
		"relayd.yaml:2:42: upstream.grpc.ack_names: cid, but VMs of several namespaces");
	gives("upstream: {kind: grpc, grpc: {ack_names: cid}}\n", "upstream.grpc.ack_names", "cid");
	gives("namespace: 3\nupstream: {kind: grpc, grpc: {ack_names: cid, acks: response}}\n",
	      "upstream.grpc.ack_names", "cid");
}

static void test_uids_are_a_list_or_any(void **state)
{
	struct load l = {};

	(void)state;
	parse(&l, "hybrid: {allowed_uids: [0, 64055]}\n");
	assert_good(&l);
	assert_int_equal(l.s->hybrid.allowed_uids.n, 2);
	assert_int_equal(l.s->hybrid.allowed_uids.uid[1], 64055);
	assert_false(l.s->hybrid.allowed_uids.any);
	done(&l);
	gives("hybrid: {allowed_uids: any}\n", "hybrid.allowed_uids", "any");
	gives("hybrid: {allowed_uids: '1,2'}\n", "hybrid.allowed_uids", "1,2");
	refuses("hybrid: {allowed_uids: []}\n", "relayd.yaml:1:24: hybrid.allowed_uids: ''");
	refuses("hybrid: {allowed_uids: [any, 3]}\n", "relayd.yaml:1:24: hybrid.allowed_uids");
	refuses("hybrid: {allowed_uids: [4294967295]}\n", "relayd.yaml:1:24: hybrid.allowed_uids");
	refuses("hybrid: {allowed_uids: [[1]]}\n",
		"relayd.yaml:1:25: hybrid.allowed_uids: this item does not fit");
	refuses("hybrid: {allowed_uids: [root]}\n", "relayd.yaml:1:24: hybrid.allowed_uids");
}

static void test_hybrid_sockets_are_paths_with_a_cid_or_patterns(void **state)
{
	struct load l = {};

	(void)state;
	parse(&l, "hybrid:\n"
		  "  sockets:\n"
		  "    - {path: /run/vm1/v.sock, cid: 42}\n"
		  "    - pattern: /run/vms/{cid}/vsock.sock\n"
		  "    - cid: 4294967294\n"
		  "      path: /run/vm2/v.sock\n");
	assert_good(&l);
	assert_int_equal(l.s->hybrid.n_sockets, 3);
	assert_string_equal(l.s->hybrid.sockets[0].path, "/run/vm1/v.sock");
	assert_int_equal(l.s->hybrid.sockets[0].cid, 42);
	assert_false(l.s->hybrid.sockets[0].is_pattern);
	assert_true(l.s->hybrid.sockets[1].is_pattern);
	assert_value(&l, "hybrid.sockets",
		     "42=/run/vm1/v.sock,/run/vms/{cid}/vsock.sock,4294967294=/run/vm2/v.sock");
	done(&l);

	arg(&l, "--hybrid-sockets");
	arg(&l, "42=/run/vm1/v.sock,/run/vms/{cid}/vsock.sock");
	parse(&l, "hybrid: {sockets: [{path: /overridden, cid: 7}]}\n");
	assert_good(&l);
	assert_int_equal(l.s->hybrid.n_sockets, 2);
	assert_string_equal(l.s->hybrid.sockets[1].path, "/run/vms/{cid}/vsock.sock");
	done(&l);
}

static void test_bad_hybrid_sockets_are_named_with_their_place(void **state)
{
	static const char *const bad[] = {
		"{path: /a}",
		"{cid: 3}",
		"{path: /a, cid: 3, pattern: '/{cid}'}",
		"{pattern: '/{cid}', cid: 3}",
		"{}",
		"/a",
		"{path: a, cid: 3}",
		"{path: /a, cid: 0}",
		"{path: /a, cid: 4294967295}",
		"{path: /a, cid: x}",
		"{path: '/{cid}', cid: 3}",
		"{path: /a/, cid: 3}",
		"{path: '/a,b', cid: 3}",
		"{pattern: /a}",
		"{pattern: '/{cid}/{cid}'}",
		"{pattern: '/../{cid}'}",
	};
	static const char *const bad_lines[] = { "/a", "3=a", "=/a", "3", "x=/a", "0=/a", "3=" };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		char yaml[300];

		snprintf(yaml, sizeof(yaml), "hybrid:\n  sockets:\n    - %s\n", bad[i]);
		refuses(yaml, "relayd.yaml:3:7: hybrid.sockets: ");
	}
	refuses("hybrid: {sockets: [{path: [a], cid: 3}]}\n",
		"relayd.yaml:1:21: hybrid.sockets: 'path'");
	refuses("hybrid: {sockets: [{uds: a, cid: 3}]}\n",
		"relayd.yaml:1:21: hybrid.sockets: 'uds'");
	for (size_t i = 0; i < ARRAY_SIZE(bad_lines); i++) {
		struct load l = {};

		arg(&l, "--hybrid-sockets");
		arg(&l, bad_lines[i]);
		parse(&l, NULL);
		assert_error(&l, "flag --hybrid-sockets: hybrid.sockets: '");
		done(&l);
	}
}

static void test_the_vmm_can_connect_to_every_hybrid_socket(void **state)
{
	(void)state;
	/* sun_path has 108 bytes: "_", ten digits of a port and the zero leave 96; the longest CID
	 * is five bytes longer than its placeholder. */
	for (int n = 95; n <= 97; n++) {
		char flag[160], value[160];
		struct load l = {};

		snprintf(flag, sizeof(flag), "--hybrid-sockets=3=/%0*d", n - 1, 0);
		arg(&l, flag);
		parse(&l, NULL);
		assert_int_equal(l.r, n <= 96 ? 0 : -EINVAL);
		done(&l);

		snprintf(value, sizeof(value), "--hybrid-sockets=/{cid}/%0*d", n - 5 - 7, 0);
		arg(&l, value);
		parse(&l, NULL);
		assert_int_equal(l.r, n <= 96 ? 0 : -EINVAL);
		done(&l);
	}
}

static void test_hybrid_sockets_are_bounded_in_number(void **state)
{
	char *yaml = NULL;
	size_t size;
	FILE *out = open_memstream(&yaml, &size);
	struct load l = {};

	(void)state;
	assert_non_null(out);
	fputs("hybrid:\n  sockets:\n", out);
	for (int i = 0; i < 1025; i++)
		fprintf(out, "    - {path: /run/%d, cid: %d}\n", i, i + 3);
	fclose(out);
	parse(&l, yaml);
	assert_error(&l, "relayd.yaml:1027:7: hybrid.sockets: '/run/1024'; expected at most 1024");
	done(&l);
	free(yaml);
}

/* ---- what must fit together ---- */

static void test_the_budget_is_at_least_twice_the_maximum(void **state)
{
	struct load l = {};

	(void)state;
	refuses("memory:\n  budget: 34815KiB\n",
		"relayd.yaml:2:11: memory.budget: too small for report.max_kib: 16384; "
		"expected at least 34816KiB, twice (report.max_kib + 1 MiB)");
	gives("memory: {budget: 34816KiB}\n", "memory.budget", "34MiB");

	/* The key that somebody set is blamed. */
	env(&l, "VSOCK_RELAY_REPORT_MAX_KIB=65536");
	parse(&l, "memory: {budget: 130MiB}\n");
	assert_good(&l);
	done(&l);
	env(&l, "VSOCK_RELAY_REPORT_MAX_KIB=65536");
	parse(&l, "memory: {budget: 129MiB}\n");
	assert_error(&l, "relayd.yaml:1:18: memory.budget: too small");
	done(&l);
}

static void test_the_cache_holds_the_longest_report(void **state)
{
	(void)state;
	refuses("cache: {bytes: 15MiB}\n", "relayd.yaml:1:16: cache.bytes: too small for "
					   "report.max_kib: 16384; expected at least 16384KiB");
	gives("cache: {bytes: 15MiB, slots: 0}\n", "cache.bytes", "15MiB");
}

static void test_the_idle_limit_is_not_above_the_deadline(void **state)
{
	(void)state;
	refuses("report: {idle: 11s}\n",
		"relayd.yaml:1:16: report.idle: longer than report.deadline");
	refuses("report: {deadline: 4s}\n",
		"relayd.yaml:1:20: report.idle: longer than report.deadline");
	gives("report: {idle: 10s}\n", "report.idle", "10s");
}

static void test_an_exponential_retry_begins_below_its_cap(void **state)
{
	(void)state;
	refuses("retry: {mode: exponential, cap: 10s}\n",
		"relayd.yaml:1:33: retry.cap: shorter than retry.base");
	gives("retry: {mode: linear, cap: 10s}\n", "retry.cap", "10s");
}

static void test_there_is_something_to_listen_on(void **state)
{
	(void)state;
	refuses("listen: {vsock: false}\n",
		"relayd.yaml:1:17: listen.vsock: false, and hybrid.sockets is empty");
	gives("listen: {vsock: false}\nhybrid: {sockets: [{path: /a, cid: 3}]}\n", "listen.vsock",
	      "false");
	gives("listen: {vsock: false}\nlisteners: [{netns: /a, namespace: 3}]\n", "listen.vsock",
	      "false");
}

static void test_a_cid_and_a_path_stand_for_one_vm(void **state)
{
	(void)state;
	refuses("hybrid: {sockets: [{path: /a, cid: 3}, {path: /b, cid: 3}]}\n",
		"relayd.yaml:1:19: hybrid.sockets: CID 3 stands there twice");
	refuses("hybrid: {sockets: [{path: /a, cid: 3}, {path: /a, cid: 4}]}\n",
		"relayd.yaml:1:19: hybrid.sockets: '/a' stands there twice");
	refuses("hybrid: {sockets: [{path: /a, cid: 2}]}\n",
		"relayd.yaml:1:19: hybrid.sockets: CID 2 is reserved");
	gives("allow_reserved_cids: true\nhybrid: {sockets: [{path: /a, cid: 2}]}\n",
	      "hybrid.sockets", "2=/a");
}

static void test_listeners_are_namespaces_with_a_number(void **state)
{
	struct load l = {};

	(void)state;
	parse(&l, "listen: {port: 900}\n"
		  "listeners:\n"
		  "  - {netns: /run/netns/a, namespace: 7}\n"
		  "  - port: 819\n"
		  "    namespace: 4294967295\n"
		  "    netns: /proc/1/ns/net\n");
	assert_good(&l);
	assert_int_equal(l.s->listeners.n, 2);
	assert_string_equal(l.s->listeners.item[0].netns, "/run/netns/a");
	assert_int_equal(l.s->listeners.item[0].ns, 7);
	assert_int_equal(settings_listener_port(l.s, &l.s->listeners.item[0]), 900);
	assert_int_equal(settings_listener_port(l.s, &l.s->listeners.item[1]), 819);
	assert_value(&l, "listeners", "7=/run/netns/a,4294967295:819=/proc/1/ns/net");
	done(&l);

	arg(&l, "--listeners=7=/run/netns/a,4294967295:819=/proc/1/ns/net");
	parse(&l, "listeners: [{netns: /overridden, namespace: 1}]\n");
	assert_good(&l);
	assert_int_equal(l.s->listeners.n, 2);
	assert_value(&l, "listeners", "7=/run/netns/a,4294967295:819=/proc/1/ns/net");
	done(&l);
}

static void test_bad_listeners_are_named_with_their_place(void **state)
{
	static const char *const bad[] = {
		"{netns: /a}",
		"{namespace: 3}",
		"{}",
		"/a",
		"{netns: a, namespace: 3}",
		"{netns: /../a, namespace: 3}",
		"{netns: '/a,b', namespace: 3}",
		"{netns: /a, namespace: 0}",
		"{netns: /a, namespace: 4294967296}",
		"{netns: /a, namespace: x}",
		"{netns: /a, namespace: '7:8'}",
		"{netns: /a, namespace: '7=/b'}",
		"{netns: /a, namespace: 7, port: 0}",
		"{netns: /a, namespace: 7, port: 4294967295}",
		"{netns: /a, namespace: 7, port: [1]}",
		"{netns: /a, namespace: 7, cid: 3}",
	};
	static const char *const flags[] = { "/a", "x=/a", "7", "7:=/a", "7:818", "7=", "0=/a" };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		char yaml[256];

		snprintf(yaml, sizeof(yaml), "listeners:\n  - %s\n", bad[i]);
		refuses(yaml, "relayd.yaml:2:");
	}
	for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
		struct load l = {};

		arg(&l, "--listeners");
		arg(&l, flags[i]);
		parse(&l, NULL);
		assert_error(&l, "flag --listeners: listeners: '");
		done(&l);
	}
	refuses("listeners: [{netns: /a, namespace: x}]\n",
		"relayd.yaml:1:13: listeners: 'x'; expected at most 16 listeners");
}

static void test_listeners_are_bounded_in_number(void **state)
{
	char yaml[4096];
	size_t n = (size_t)snprintf(yaml, sizeof(yaml), "listeners:\n");

	(void)state;
	for (int i = 1; i <= SETTINGS_LISTENERS_MAX + 1; i++)
		n += (size_t)snprintf(yaml + n, sizeof(yaml) - n,
				      "  - {netns: /run/netns/%d, namespace: %d}\n", i, i);
	refuses(yaml, "relayd.yaml:18:5: listeners: '17=/run/netns/17'; expected at most 16");
}

static void test_a_number_stands_for_one_namespace(void **state)
{
	(void)state;
	refuses("listeners: [{netns: /a, namespace: 3}, {netns: /b, namespace: 3}]\n",
		"relayd.yaml:1:12: listeners: number 3 stands there twice");
	refuses("listeners: [{netns: /a, namespace: 3}, {netns: /a, namespace: 4}]\n",
		"relayd.yaml:1:12: listeners: '/a' stands there twice");
	refuses("namespace: 3\nlisteners: [{netns: /a, namespace: 3}]\n",
		"relayd.yaml:2:12: listeners: number 3 of '/a' is that of namespace");
}

static void test_a_group_needs_a_user(void **state)
{
	(void)state;
	refuses("group: vsock-relay\n", "relayd.yaml:1:8: group: set without user");
	gives("user: vsock-relay\ngroup: vsock-relay\n", "group", "vsock-relay");
}

static void test_the_address_of_a_server_is_one(void **state)
{
	static const char *const good[] = { "a:1", "sensor.stackrox.svc:443", "127.0.0.1:65535",
					    "[::1]:8443", "unix:/run/sensor.sock" };
	static const char *const bad[] = { "a",	   ":1",    "a:",	 "a:0",	   "a:65536",
					   "a:1x", "::1:5", "[]:5",	 "[::1:5", "a b:1",
					   "a:+1", "a: 1",  "unix:sock", "unix:",  "http://a:1" };
	char yaml[128];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		snprintf(yaml, sizeof(yaml), "upstream: {grpc: {address: '%s'}}\n", good[i]);
		gives(yaml, "upstream.grpc.address", good[i]);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		snprintf(yaml, sizeof(yaml), "upstream: {grpc: {address: '%s'}}\n", bad[i]);
		refuses(yaml, "relayd.yaml:1:28: upstream.grpc.address: ");
	}
}

static void test_certificate_and_key_are_set_together(void **state)
{
	(void)state;
	refuses("upstream: {kind: grpc, grpc: {key: ''}}\n",
		"relayd.yaml:1:36: upstream.grpc.key: set without");
	refuses("upstream: {kind: grpc, grpc: {certificate: ''}}\n",
		"relayd.yaml:1:44: upstream.grpc.key: set without");
	gives("upstream: {kind: grpc, grpc: {certificate: '', key: ''}}\n", "upstream.grpc.key",
	      "");
	gives("upstream: {kind: grpc, grpc: {plaintext: true, key: ''}}\n", "upstream.grpc.key",
	      "");
	gives("upstream: {grpc: {key: ''}}\n", "upstream.grpc.key", "");
}

static void test_reports_fit_into_a_message(void **state)
{
	(void)state;
	refuses("report: {max_kib: 24577}\nupstream: {kind: grpc}\n",
		"relayd.yaml:1:19: report.max_kib: too long for upstream.kind: grpc");
	gives("report: {max_kib: 24576}\nupstream: {kind: grpc}\n", "report.max_kib", "24576");
	gives("report: {max_kib: 24577}\n", "report.max_kib", "24577");
}

/* ---- the command line ---- */

static void test_flags_take_their_value_behind_equals_or_as_the_next_word(void **state)
{
	struct load l = {};

	(void)state;
	arg(&l, "--listen-port=5");
	arg(&l, "--report-idle");
	arg(&l, "1s");
	arg(&l, "--allow-reserved-cids");
	arg(&l, "--listen-vsock=true");
	arg(&l, "--user=");
	parse(&l, "user: somebody\n");
	assert_good(&l);
	assert_int_equal(l.s->listen.port, 5);
	assert_int_equal(l.s->report.idle_usec, USEC_PER_SEC);
	assert_true(l.s->allow_reserved_cids);
	assert_string_equal(l.s->user, "");
	done(&l);
}

static void expect_flag_error(const char *a, const char *b, const char *text)
{
	struct load l = {};

	arg(&l, a);
	if (b)
		arg(&l, b);
	parse(&l, NULL);
	assert_error(&l, text);
	done(&l);
}

static void test_bad_flags_are_named(void **state)
{
	(void)state;
	expect_flag_error("--nonsense=1", NULL, "flag '--nonsense=1': unknown; --help lists them");
	expect_flag_error("nonsense", NULL, "flag 'nonsense': unknown");
	expect_flag_error("--listen.port=1", NULL, "flag '--listen.port=1': unknown");
	expect_flag_error("-x", NULL, "flag '-x': unknown");
	expect_flag_error("--help=yes", NULL, "flag '--help=yes': unknown");
	expect_flag_error("--listen-port", NULL, "flag '--listen-port': expected a value");
	expect_flag_error("--config", NULL, "flag '--config': expected a value");
	expect_flag_error("-c", NULL, "flag '-c': expected a value");
	expect_flag_error("--listen-port=1", "--listen-port=2",
			  "flag --listen-port: given a second time");
	expect_flag_error("--listen-port=0", NULL, "flag --listen-port: listen.port: '0'");
}

static void test_the_action_is_what_the_command_line_asks_for(void **state)
{
	static const struct {
		const char *flag;
		enum settings_action action;
	} actions[] = {
		{ "--help", SETTINGS_HELP },	      { "-h", SETTINGS_HELP },
		{ "--version", SETTINGS_VERSION },    { "-V", SETTINGS_VERSION },
		{ "--check-config", SETTINGS_CHECK },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(actions); i++) {
		struct load l = {};

		arg(&l, actions[i].flag);
		parse(&l, NULL);
		assert_good(&l);
		assert_int_equal(l.s->action, actions[i].action);
		done(&l);
	}
}

static void test_help_is_given_whatever_the_file_says_and_check_config_is_not(void **state)
{
	struct load l = {};

	(void)state;
	arg(&l, "--help");
	parse(&l, "nonsense: 1\n");
	assert_good(&l);
	done(&l);
	arg(&l, "--check-config");
	parse(&l, "nonsense: 1\n");
	assert_error(&l, "relayd.yaml:1:1: unknown key");
	done(&l);
}

static void test_help_tells_all_of_every_key_in_80_columns(void **state)
{
	_cleanup_free_ char *text = NULL;
	struct settings_key_info key;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	(void)state;
	assert_non_null(out);
	settings_help(out);
	fclose(out);
	for (size_t i = 0; settings_key(i, &key); i++) {
		assert_non_null(strstr(text, key.flag));
		assert_non_null(strstr(text, key.env));
		assert_non_null(strstr(text, key.env_ref));
	}
	for (const char *line = text; *line; line += strcspn(line, "\n") + 1)
		assert_true(strcspn(line, "\n") <= 80);
}

static void test_names_of_keys_variables_and_flags_differ(void **state)
{
	struct settings_key_info a, b;

	(void)state;
	for (size_t i = 0; settings_key(i, &a); i++) {
		for (size_t j = 0; j < i && settings_key(j, &b); j++) {
			assert_string_not_equal(a.name, b.name);
			assert_string_not_equal(a.env, b.env);
			assert_string_not_equal(a.flag, b.flag);
			if (*a.env_ref)
				assert_string_not_equal(a.env_ref, b.env_ref);
		}
	}
}

/* ---- files ---- */

static void write_file(const char *path, const char *text, size_t n)
{
	FILE *f = fopen(path, "we");

	assert_non_null(f);
	assert_int_equal(fwrite(text, 1, n, f), n);
	assert_int_equal(fclose(f), 0);
}

static void load_path(struct load *l, const char *path)
{
	arg(l, "--config");
	arg(l, path);
	l->r = settings_load(l->argc, l->argv, l->envp, &l->s, &l->errors);
}

static void test_the_named_file_is_read_and_must_be_there(void **state)
{
	char dir[] = "/tmp/vsr-settings-XXXXXX", path[64];
	struct load l = {};

	(void)state;
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/a.yaml", dir);

	load_path(&l, path);
	assert_int_equal(l.r, -EINVAL);
	assert_non_null(strstr(l.errors.message[0].text, "a.yaml: cannot be read: No such file"));
	done(&l);

	write_file(path, "bpf: off\n", 9);
	load_path(&l, path);
	assert_good(&l);
	assert_int_equal(l.s->bpf, SETTINGS_BPF_OFF);
	assert_string_equal(l.s->file, path);
	done(&l);

	unlink(path);
	load_path(&l, dir);
	assert_int_equal(l.r, -EINVAL);
	assert_non_null(strstr(l.errors.message[0].text, "not a regular file"));
	done(&l);
	rmdir(dir);
}

static void test_a_file_beyond_the_bound_is_refused_unread(void **state)
{
	_cleanup_free_ char *text = malloc(SETTINGS_FILE_MAX + 1);
	char path[] = "/tmp/vsr-settings-XXXXXX";
	_cleanup_close_ int fd = mkstemp(path);
	struct load l = {};

	(void)state;
	assert_true(fd >= 0);
	assert_non_null(text);
	memset(text, '\n', SETTINGS_FILE_MAX + 1);
	write_file(path, text, SETTINGS_FILE_MAX);
	load_path(&l, path);
	assert_good(&l);
	done(&l);

	write_file(path, text, SETTINGS_FILE_MAX + 1);
	load_path(&l, path);
	assert_int_equal(l.r, -EINVAL);
	assert_non_null(strstr(l.errors.message[0].text, "too long; expected at most 256 KiB"));
	done(&l);
	unlink(path);
}

/* ---- reload ---- */

struct differences {
	char text[512];
};

static void note_difference(const char *key, bool needs_restart, const char *old_value,
			    const char *new_value, void *arg)
{
	struct differences *d = arg;
	size_t n = strlen(d->text);

	snprintf(d->text + n, sizeof(d->text) - n, "%s%s %s>%s;", needs_restart ? "!" : "", key,
		 old_value, new_value);
}

static void expect_differences(const char *old_yaml, const char *new_yaml, int n, const char *text)
{
	struct differences d = {};
	struct load a = {}, b = {};

	parse(&a, old_yaml);
	parse(&b, new_yaml);
	assert_good(&a);
	assert_good(&b);
	assert_int_equal(settings_reload_diff(a.s, b.s, note_difference, &d), n);
	assert_string_equal(d.text, text);
	assert_int_equal(settings_reload_diff(a.s, b.s, NULL, NULL), n);
	done(&a);
	done(&b);
}

static void test_a_reload_names_every_changed_key_that_needs_a_restart(void **state)
{
	(void)state;
	expect_differences("bpf: off\n", "bpf: off\n", 0, "");
	expect_differences("", "cache: {ttl: 1h}\nlog: {level: debug}\n", 0,
			   "cache.ttl 4h>1h;log.level info>debug;");
	expect_differences("", "cache: {ttl: 1h}\nlisten: {port: 819}\nuser: x\n", 2,
			   "!listen.port 818>819;cache.ttl 4h>1h;!user >x;");
	expect_differences("hybrid: {sockets: [{path: /a, cid: 3}]}\n",
			   "hybrid: {sockets: [{path: /a, cid: 4}]}\n", 1,
			   "!hybrid.sockets 3=/a>4=/a;");
	/* Written otherwise, but the same. */
	expect_differences("cache: {ttl: 4h, bytes: 524288KiB}\n", "retry: {base: 30000ms}\n", 0,
			   "");
}

static void test_what_a_reload_may_not_change_is_what_the_specification_says(void **state)
{
	static const char *const restart[] = { "listen.port",	 "listeners",
					       "hybrid.sockets", "bpf",
					       "pin_directory",	 "upstream.file.directory",
					       "user",		 "admission.places",
					       "report.max_kib" };
	struct settings_key_info key;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(restart); i++) {
		assert_true(settings_key(key_index(restart[i]), &key));
		assert_true(key.needs_restart);
	}
}

/* ---- documents ---- */

static char *read_text(const char *path)
{
	FILE *f = fopen(path, "re");
	char *text = NULL;
	size_t size = 0;
	ssize_t n;

	if (!f)
		fail_msg("%s: %m; tests run in the project's directory", path);
	n = getdelim(&text, &size, '\0', f);
	fclose(f);
	assert_true(n > 0);
	return text;
}

/* Markdown takes <x> for HTML and | for the end of a cell. */
static void write_cell(FILE *out, const char *text)
{
	for (; *text; text++) {
		if (*text == '<')
			fputs("&lt;", out);
		else if (*text == '|')
			fputs("\\|", out);
		else
			fputc(*text, out);
	}
}

static void write_row(FILE *out, const struct settings_key_info *key)
{
	fprintf(out, "| `%s` | ", key->name);
	if (*key->def)
		fprintf(out, "`%s`", key->def);
	fprintf(out, " | %s | ", key->needs_restart ? "restart" : "reload");
	write_cell(out, key->help);
	fputs(" Expects ", out);
	write_cell(out, key->expects);
	fprintf(out, ". | `%s`", key->env);
	if (*key->env_ref)
		fprintf(out, "<br>`%s`", key->env_ref);
	fprintf(out, " | `%s` |\n", key->flag);
}

#define TABLE_BEGIN "<!-- keys: written by tests/test_settings.c -->\n"
#define TABLE_END   "<!-- end of keys -->\n"

static char *table_text(void)
{
	struct settings_key_info key;
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	assert_non_null(out);
	fputs("| Key | Default | Change | Meaning | Environment | Flag |\n"
	      "| --- | --- | --- | --- | --- | --- |\n",
	      out);
	for (size_t i = 0; settings_key(i, &key); i++)
		write_row(out, &key);
	fclose(out);
	return text;
}

static void test_the_documented_table_is_the_table_in_the_code(void **state)
{
	_cleanup_free_ char *docs = read_text(DOCS), *table = table_text();
	char *begin = strstr(docs, TABLE_BEGIN), *end = strstr(docs, TABLE_END);

	(void)state;
	assert_non_null(begin);
	assert_non_null(end);
	begin += strlen(TABLE_BEGIN);
	assert_true(begin <= end);
	if (getenv("VSR_UPDATE_DOCS")) {
		FILE *f = fopen(DOCS, "we");

		assert_non_null(f);
		fprintf(f, "%.*s%s%s", (int)(begin - docs), docs, table, end);
		assert_int_equal(fclose(f), 0);
		return;
	}
	if ((size_t)(end - begin) != strlen(table) || memcmp(begin, table, strlen(table)) != 0)
		fail_msg("%s is not what the code says: run this test with VSR_UPDATE_DOCS=1",
			 DOCS);
}

static void test_the_example_is_valid_and_all_defaults(void **state)
{
	struct differences d = {};
	struct load example = {}, none = {};

	(void)state;
	load_path(&example, EXAMPLE);
	assert_good(&example);
	parse(&none, NULL);
	assert_good(&none);
	settings_reload_diff(none.s, example.s, note_difference, &d);
	assert_string_equal(d.text, "");
	done(&example);
	done(&none);
}

/* The node of a key such as "upstream.file.directory". */
static const struct yaml_tree *find_key(const struct yaml_tree *map, const char *name)
{
	size_t n = strcspn(name, ".");

	for (size_t k = 0; k < map->n_children; k += 2) {
		const struct yaml_tree *key = map->children[k];

		if (strlen(key->text) != n || strncmp(key->text, name, n) != 0)
			continue;
		return name[n] ? find_key(map->children[k + 1], name + n + 1) : key;
	}
	return NULL;
}

static bool has_comment_above(const char *text, size_t line)
{
	for (size_t i = 1; i + 1 < line; i++)
		text += strcspn(text, "\n") + 1;
	return text[strspn(text, " ")] == '#';
}

static void test_the_example_explains_every_key(void **state)
{
	_cleanup_free_ char *text = read_text(EXAMPLE);
	_cleanup_(yaml_tree_freep)
	struct yaml_tree *tree = NULL;
	struct yaml_tree_error error;
	struct settings_key_info key;

	(void)state;
	assert_int_equal(yaml_tree_parse(text, strlen(text), &tree, &error), 0);
	for (size_t i = 0; settings_key(i, &key); i++) {
		const struct yaml_tree *node = find_key(tree, key.name);

		if (!node)
			fail_msg("%s lacks %s", EXAMPLE, key.name);
		if (!has_comment_above(text, node->line))
			fail_msg("%s:%zu: no comment above %s", EXAMPLE, node->line, key.name);
	}
}

/* Whichever allocation fails: no settings are half of what was asked for. */
static void test_without_memory_there_are_no_settings(void **state)
{
	void *volatile p;
	unsigned int n;

	(void)state;
	/* valgrind puts its own calloc in the place of ours. */
	fail_at = 1;
	p = calloc(1, 1);
	fail_at = 0;
	free(p);
	if (p)
		skip();
	for (n = 1;; n++) {
		struct load l = {};
		bool failed;

		arg(&l, "--cache-ttl=3h");
		env(&l, "VSOCK_RELAY_LISTEN_PORT=900");
		fail_at = n;
		parse(&l, "bpf: off\nlisteners: [{netns: /run/netns/a, namespace: 3}]\n"
			  "hybrid: {sockets: [{path: /run/a, cid: 3}, {path: /run/b, cid: 4}]}\n");
		failed = fail_at == 0;
		fail_at = 0;
		if (failed) {
			assert_int_equal(l.r, -ENOMEM);
			assert_null(l.s);
		} else {
			assert_good(&l);
		}
		done(&l);
		if (!failed)
			break;
	}
	assert_true(n > 5);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_without_memory_there_are_no_settings),
		cmocka_unit_test(test_defaults_are_those_of_the_specification),
		cmocka_unit_test(
			test_with_the_file_upstream_unchanged_is_suppressed_and_rate_unlimited),
		cmocka_unit_test(
			test_with_the_grpc_upstream_unchanged_is_forwarded_and_rate_is_one),
		cmocka_unit_test(test_flags_win_over_environment_over_file_over_defaults),
		cmocka_unit_test(test_every_key_is_set_by_file_environment_and_flag),
		cmocka_unit_test(test_every_default_is_read_back_from_its_text),
		cmocka_unit_test(test_the_references_environment_names_are_honoured),
		cmocka_unit_test(test_a_bad_value_names_the_variable_that_it_came_from),
		cmocka_unit_test(test_our_own_variable_wins_over_the_references),
		cmocka_unit_test(test_an_empty_variable_is_not_set),
		cmocka_unit_test(
			test_a_misspelt_variable_is_a_warning_and_those_of_kubernetes_are_not),
		cmocka_unit_test(test_a_bad_value_is_an_error_even_where_a_flag_overrides_it),
		cmocka_unit_test(test_an_error_names_file_line_column_and_what_was_expected),
		cmocka_unit_test(test_a_repeated_key_is_an_error),
		cmocka_unit_test(test_a_key_without_value_is_an_error_and_an_empty_section_is_not),
		cmocka_unit_test(test_an_empty_file_is_all_defaults),
		cmocka_unit_test(test_what_is_not_yaml_is_named_with_its_place),
		cmocka_unit_test(test_anchors_aliases_tags_and_second_documents_are_refused),
		cmocka_unit_test(test_depth_and_number_of_values_are_bounded),
		cmocka_unit_test(test_a_zero_byte_ends_no_value),
		cmocka_unit_test(test_errors_are_collected_up_to_a_bound),
		cmocka_unit_test(test_messages_are_logged_a_line_each),
		cmocka_unit_test(test_text_from_outside_is_shown_short_and_printable),
		cmocka_unit_test(test_sizes_have_units_and_bounds),
		cmocka_unit_test(test_numbers_are_plain_decimals_within_bounds),
		cmocka_unit_test(test_a_retry_base_that_is_not_positive_means_a_minute),
		cmocka_unit_test(test_cache_slots_are_a_number_or_auto),
		cmocka_unit_test(test_words_of_yaml_for_true_and_false_are_taken),
		cmocka_unit_test(test_addresses_are_numeric_and_a_port_alone_is_loopback),
		cmocka_unit_test(test_paths_are_absolute_and_never_go_up),
		cmocka_unit_test(test_a_metric_prefix_is_a_prometheus_name),
		cmocka_unit_test(test_uids_are_a_list_or_any),
		cmocka_unit_test(test_permanent_nacks_are_a_list_of_texts),
		cmocka_unit_test(test_acks_by_cid_alone_do_not_go_with_a_namespace),
		cmocka_unit_test(test_hybrid_sockets_are_paths_with_a_cid_or_patterns),
		cmocka_unit_test(test_bad_hybrid_sockets_are_named_with_their_place),
		cmocka_unit_test(test_the_vmm_can_connect_to_every_hybrid_socket),
		cmocka_unit_test(test_hybrid_sockets_are_bounded_in_number),
		cmocka_unit_test(test_the_budget_is_at_least_twice_the_maximum),
		cmocka_unit_test(test_the_cache_holds_the_longest_report),
		cmocka_unit_test(test_the_idle_limit_is_not_above_the_deadline),
		cmocka_unit_test(test_an_exponential_retry_begins_below_its_cap),
		cmocka_unit_test(test_there_is_something_to_listen_on),
		cmocka_unit_test(test_a_cid_and_a_path_stand_for_one_vm),
		cmocka_unit_test(test_listeners_are_namespaces_with_a_number),
		cmocka_unit_test(test_bad_listeners_are_named_with_their_place),
		cmocka_unit_test(test_listeners_are_bounded_in_number),
		cmocka_unit_test(test_a_number_stands_for_one_namespace),
		cmocka_unit_test(test_a_group_needs_a_user),
		cmocka_unit_test(test_the_address_of_a_server_is_one),
		cmocka_unit_test(test_certificate_and_key_are_set_together),
		cmocka_unit_test(test_reports_fit_into_a_message),
		cmocka_unit_test(test_flags_take_their_value_behind_equals_or_as_the_next_word),
		cmocka_unit_test(test_bad_flags_are_named),
		cmocka_unit_test(test_the_action_is_what_the_command_line_asks_for),
		cmocka_unit_test(test_help_is_given_whatever_the_file_says_and_check_config_is_not),
		cmocka_unit_test(test_help_tells_all_of_every_key_in_80_columns),
		cmocka_unit_test(test_names_of_keys_variables_and_flags_differ),
		cmocka_unit_test(test_the_named_file_is_read_and_must_be_there),
		cmocka_unit_test(test_a_file_beyond_the_bound_is_refused_unread),
		cmocka_unit_test(test_a_reload_names_every_changed_key_that_needs_a_restart),
		cmocka_unit_test(test_what_a_reload_may_not_change_is_what_the_specification_says),
		cmocka_unit_test(test_the_documented_table_is_the_table_in_the_code),
		cmocka_unit_test(test_the_example_is_valid_and_all_defaults),
		cmocka_unit_test(test_the_example_explains_every_key),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
