/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Settings from any bytes: the file, and behind a byte 0xff (which no YAML in UTF-8 holds) one
 * value of the environment. What is accepted must say the same when it is written out and read
 * again; what is refused must say why, in lines fit for a log.
 */
#include "check.h"
#include "settings.h"

static void check_messages(const struct settings_errors *errors)
{
	for (size_t i = 0; i < errors->n; i++) {
		const char *text = errors->message[i].text;

		CHECK(*text);
		for (; *text; text++)
			CHECK((unsigned char)*text >= 0x20);
	}
}

/* Every value as a flag gives the same settings. */
static void check_round_trip(const struct settings *s)
{
	struct settings_key_info key;
	struct settings_errors errors;
	struct settings *again = NULL;
	char *argv[130] = { (char *)"vsock-relayd" };
	char *envp[] = { NULL };
	int argc = 1;

	for (size_t i = 0; settings_key(i, &key); i++) {
		char *value = settings_value(s, i), *flag;

		CHECK(value && argc < (int)ARRAY_SIZE(argv) - 1);
		CHECK(asprintf(&flag, "%s=%s", key.flag, value) >= 0);
		argv[argc++] = flag;
		free(value);
	}
	CHECK(settings_parse(argc, argv, envp, NULL, NULL, 0, &again, &errors) == 0);
	CHECK(settings_reload_diff(s, again, NULL, NULL) == 0);
	for (int i = 1; i < argc; i++)
		free(argv[i]);
	settings_free(again);
	settings_errors_done(&errors);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const names[] = {
		"VSOCK_RELAY_HYBRID_SOCKETS",	   "ROX_METRICS_PORT",
		"VSOCK_RELAY_MEMORY_BUDGET",	   "VSOCK_RELAY_CACHE_TTL",
		"VSOCK_RELAY_HYBRID_ALLOWED_UIDS", "ROX_VM_RELAY_MAX_REPORTS_PER_MINUTE"
	};
	const uint8_t *mark = size ? memchr(data, 0xff, size) : NULL;
	size_t len = mark ? (size_t)(mark - data) : size, rest = size - len;
	char *argv[] = { (char *)"vsock-relayd", NULL }, *envp[] = { NULL, NULL };
	struct settings_errors errors;
	struct settings *s = NULL;
	int r;

	if (size > SETTINGS_FILE_MAX)
		return 0;
	if (rest >= 2)
		CHECK(asprintf(&envp[0], "%s=%.*s", names[mark[1] % ARRAY_SIZE(names)],
			       (int)(rest - 2), (const char *)mark + 2) >= 0);
	r = settings_parse(1, argv, envp, "fuzz.yaml", (const char *)data, len, &s, &errors);
	check_messages(&errors);
	if (r == 0)
		check_round_trip(s);
	else
		CHECK(r == -EINVAL && !s && errors.n_errors > 0);
	settings_free(s);
	settings_errors_done(&errors);
	free(envp[0]);
	return 0;
}
