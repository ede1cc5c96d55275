/* SPDX-License-Identifier: Apache-2.0 */
#include <arpa/inet.h>
#include <ctype.h>
#include <inttypes.h>
#include <sys/un.h>

#include "duration.h"
#include "settings_kind.h"

#define CID_PLACEHOLDER "{cid}"

static void *field_of(const struct settings_row *row, const struct settings *s)
{
	return (char *)s + row->offset;
}

/* ---- numbers ---- */

/* All of text as digits of a base up to 10. */
static int parse_digits(const char *text, unsigned int base, uint64_t *ret)
{
	uint64_t v = 0;

	if (!*text)
		return -EINVAL;
	for (; *text; text++) {
		if (*text < '0' || *text >= (char)('0' + base))
			return -EINVAL;
		if (__builtin_mul_overflow(v, base, &v) ||
		    __builtin_add_overflow(v, (uint64_t)(*text - '0'), &v))
			return -EINVAL;
	}
	*ret = v;
	return 0;
}

static bool in_range(const struct settings_row *row, uint64_t v)
{
	return v >= row->min && v <= row->max;
}

static int parse_bool(const char *text, bool *ret)
{
	static const char *const yes[] = { "true", "yes", "on", "1" };
	static const char *const no[] = { "false", "no", "off", "0" };

	for (size_t i = 0; i < ARRAY_SIZE(yes); i++) {
		if (streq(text, yes[i])) {
			*ret = true;
			return 0;
		}
		if (streq(text, no[i])) {
			*ret = false;
			return 0;
		}
	}
	return -EINVAL;
}

static int parse_uint(const struct settings_row *row, const char *text, uint32_t *ret)
{
	uint64_t v;

	if (row->word && streq(text, row->word)) {
		*ret = row->word_value;
		return 0;
	}
	if (parse_digits(text, 10, &v) < 0 || !in_range(row, v))
		return -EINVAL;
	*ret = (uint32_t)v;
	return 0;
}

static int parse_mode(const char *text, uint32_t *ret)
{
	uint64_t v;

	if (parse_digits(text, 8, &v) < 0 || v > 0777)
		return -EINVAL;
	*ret = (uint32_t)v;
	return 0;
}

/* Digits with at most one point: no sign, no exponent, no "inf". */
static int parse_number(const struct settings_row *row, const char *text, double *ret)
{
	size_t digits = strspn(text, "0123456789"), n = digits;
	char *end;
	double v;

	if (digits > 0 && text[n] == '.') {
		digits = strspn(text + n + 1, "0123456789");
		n += 1 + digits;
	}
	if (digits == 0 || n > 40)
		return -EINVAL;
	if (text[n] && (!row->unit || !streq(text + n, row->unit)))
		return -EINVAL;
	v = strtod(text, &end);
	if (end != text + n || v < (double)row->min || v > (double)row->max)
		return -EINVAL;
	*ret = v;
	return 0;
}

static int parse_duration(const struct settings_row *row, const char *text, uint64_t *ret)
{
	int64_t v;

	if (duration_parse_signed(text, &v) < 0)
		return -EINVAL;
	if (v <= 0 && row->instead_of_none) {
		*ret = row->instead_of_none;
		return 0;
	}
	if (v < 0 || !in_range(row, (uint64_t)v))
		return -EINVAL;
	*ret = (uint64_t)v;
	return 0;
}

static const struct {
	const char *name;
	unsigned int shift;
} size_units[] = { { "GiB", 30 }, { "MiB", 20 }, { "KiB", 10 }, { "", 0 } };

static int parse_size(const struct settings_row *row, const char *text, uint64_t *ret)
{
	size_t n = strspn(text, "0123456789");
	char digits[24];
	uint64_t v;

	if (n >= sizeof(digits))
		return -EINVAL;
	memcpy(digits, text, n);
	digits[n] = '\0';
	if (parse_digits(digits, 10, &v) < 0)
		return -EINVAL;
	for (size_t i = 0; i < ARRAY_SIZE(size_units); i++) {
		if (!streq(text + n, size_units[i].name))
			continue;
		if (v > UINT64_MAX >> size_units[i].shift)
			return -EINVAL;
		v <<= size_units[i].shift;
		if (!in_range(row, v))
			return -EINVAL;
		*ret = v;
		return 0;
	}
	return -EINVAL;
}

static int parse_kib(const struct settings_row *row, const char *text, uint64_t *ret)
{
	uint64_t v;

	if (parse_digits(text, 10, &v) < 0 || !in_range(row, v))
		return -EINVAL;
	*ret = v * KIB;
	return 0;
}

static void format_size(uint64_t v, FILE *out)
{
	for (size_t i = 0; i < ARRAY_SIZE(size_units); i++) {
		unsigned int shift = size_units[i].shift;

		if (v >> shift << shift != v || (v == 0 && shift > 0))
			continue;
		fprintf(out, "%" PRIu64 "%s", v >> shift, size_units[i].name);
		return;
	}
}

/* The shorter of two forms that both read back to the same value. */
static void format_number(double v, FILE *out)
{
	char buf[400];

	for (int precision = 0; precision <= 20; precision++) {
		snprintf(buf, sizeof(buf), "%.*f", precision, v);
		if (strtod(buf, NULL) == v)
			break;
	}
	fputs(buf, out);
}

/* ---- words ---- */

static int parse_choice(const struct settings_row *row, const char *text, int *ret)
{
	for (const struct settings_choice *c = row->choices; c->name; c++) {
		if (streq(text, c->name)) {
			*ret = c->value;
			return 0;
		}
	}
	return -EINVAL;
}

static const char *choice_name(const struct settings_row *row, int value)
{
	for (const struct settings_choice *c = row->choices; c->name; c++)
		if (c->value == value)
			return c->name;
	return "";
}

static int parse_text(const struct settings_row *row, const char *text, char **ret)
{
	char *copy;

	if (!row->valid(text))
		return -EINVAL;
	copy = strdup(text);
	if (!copy)
		return -ENOMEM;
	free(*ret);
	*ret = copy;
	return 0;
}

bool settings_valid_path(const char *text)
{
	if (text[0] != '/' || strlen(text) > 4000)
		return false;
	for (const char *p = text; *p; p++) {
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			return false;
		if (strncmp(p, "/..", 3) == 0 && (p[3] == '/' || p[3] == '\0'))
			return false;
	}
	return true;
}

/* ---- network addresses ---- */

static bool is_off(const char *text)
{
	return streq(text, "") || streq(text, "off") || streq(text, "disabled");
}

static int parse_port(const char *text, uint16_t *ret)
{
	uint64_t v;

	if (parse_digits(text, 10, &v) < 0 || v < 1 || v > UINT16_MAX)
		return -EINVAL;
	*ret = (uint16_t)v;
	return 0;
}

/* "[2001:db8::1]", "192.0.2.1" or "" in n bytes at text, into host without brackets. */
static int parse_host(const char *text, size_t n, char *host, size_t size)
{
	struct in6_addr addr;
	bool v6 = n >= 2 && text[0] == '[' && text[n - 1] == ']';

	if (v6) {
		text++;
		n -= 2;
	}
	if (n >= size)
		return -EINVAL;
	memcpy(host, text, n);
	host[n] = '\0';
	if (n == 0 && !v6)
		return 0;
	return inet_pton(v6 ? AF_INET6 : AF_INET, host, &addr) == 1 ? 0 : -EINVAL;
}

/* HOST:PORT, :PORT (every address, as the reference's default has it), PORT (loopback), off. */
static int parse_address(const char *text, struct settings_address *ret)
{
	struct settings_address a = { .enabled = true };
	const char *colon = strrchr(text, ':');

	if (is_off(text)) {
		*ret = (struct settings_address){ .enabled = false };
		return 0;
	}
	if (parse_port(colon ? colon + 1 : text, &a.port) < 0)
		return -EINVAL;
	if (!colon)
		snprintf(a.host, sizeof(a.host), "127.0.0.1");
	else if (parse_host(text, (size_t)(colon - text), a.host, sizeof(a.host)) < 0)
		return -EINVAL;
	*ret = a;
	return 0;
}

static void format_address(const struct settings_address *a, FILE *out)
{
	if (!a->enabled)
		fputs("off", out);
	else if (strchr(a->host, ':'))
		fprintf(out, "[%s]:%u", a->host, a->port);
	else
		fprintf(out, "%s:%u", a->host, a->port);
}

/* ---- lists ---- */

/* The next item of a comma-separated list, NULL behind the last; *rest is cut up on the way. */
static char *next_item(char **rest)
{
	return *rest && **rest ? strsep(rest, ",") : NULL;
}

static int parse_uids(const char *text, struct settings_uids *ret)
{
	struct settings_uids uids = { .any = streq(text, "any") };
	_cleanup_free_ char *copy = strdup(text);
	char *rest = copy, *item;

	if (!copy)
		return -ENOMEM;
	while (!uids.any && (item = next_item(&rest))) {
		uint64_t v;

		/* (uid_t) -1 is nobody's: it means "leave as it is" to the kernel. */
		if (uids.n == SETTINGS_UIDS_MAX || parse_digits(item, 10, &v) < 0 ||
		    v >= UINT32_MAX)
			return -EINVAL;
		uids.uid[uids.n++] = (uint32_t)v;
	}
	if (!uids.any && uids.n == 0)
		return -EINVAL;
	*ret = uids;
	return 0;
}

static void format_uids(const struct settings_uids *uids, FILE *out)
{
	if (uids->any)
		fputs("any", out);
	for (uint32_t i = 0; i < uids->n; i++)
		fprintf(out, "%s%" PRIu32, i ? "," : "", uids->uid[i]);
}

static void words_done(struct settings_words *w)
{
	for (size_t i = 0; i < w->n; i++)
		free(w->word[i]);
	*w = (struct settings_words){};
}

static bool valid_word(const char *text)
{
	size_t n = strlen(text);

	for (size_t i = 0; i < n; i++)
		if (!isprint((unsigned char)text[i]))
			return false;
	return n > 0 && n <= SETTINGS_WORD_MAX_LEN && text[0] != ' ' && text[n - 1] != ' ';
}

static int parse_words(const char *text, struct settings_words *ret)
{
	_cleanup_(words_done)
	struct settings_words words = {};
	_cleanup_free_ char *copy = strdup(text);
	char *rest = copy, *item;

	if (!copy)
		return -ENOMEM;
	while ((item = next_item(&rest))) {
		if (words.n == SETTINGS_WORDS_MAX || !valid_word(item))
			return -EINVAL;
		words.word[words.n] = strdup(item);
		if (!words.word[words.n])
			return -ENOMEM;
		words.n++;
	}
	words_done(ret);
	*ret = words;
	words = (struct settings_words){};
	return 0;
}

static void format_words(const struct settings_words *words, FILE *out)
{
	for (size_t i = 0; i < words->n; i++)
		fprintf(out, "%s%s", i ? "," : "", words->word[i]);
}

/* KIND_SOCKETS: a list that lies across two fields of struct settings. */
struct sockets {
	struct settings_hybrid *item;
	size_t n;
};

_Static_assert(offsetof(struct settings, hybrid.n_sockets) -
			       offsetof(struct settings, hybrid.sockets) ==
		       offsetof(struct sockets, n),
	       "settings_kind.c takes the list and its length as one");

int settings_parse_cid(const char *text, uint32_t *ret)
{
	uint64_t v;

	/* 0 is the hypervisor and 2^32 - 1 means any. */
	if (parse_digits(text, 10, &v) < 0 || v < 1 || v >= UINT32_MAX)
		return -EINVAL;
	*ret = (uint32_t)v;
	return 0;
}

static bool valid_socket_path(const char *path, bool is_pattern)
{
	const char *at = strstr(path, CID_PLACEHOLDER);
	/* The longest CID, and "_" with the longest port behind the path; the VMM has to connect. */
	size_t len = strlen(path) + strlen("_4294967294") + 1;

	if (is_pattern)
		len += strlen("4294967294") - strlen(CID_PLACEHOLDER);
	if (!settings_valid_path(path) || len > sizeof(((struct sockaddr_un *)NULL)->sun_path))
		return false;
	/* A comma separates sockets where they are written in one line. */
	if (path[strlen(path) - 1] == '/' || strchr(path, ','))
		return false;
	if (!is_pattern)
		return !at;
	return at && !strstr(at + 1, CID_PLACEHOLDER);
}

static int sockets_add(struct sockets *list, const char *path, uint32_t cid)
{
	struct settings_hybrid *p;
	char *copy;

	if (!valid_socket_path(path, cid == 0))
		return -EINVAL;
	if (list->n == SETTINGS_SOCKETS_MAX)
		return -E2BIG;
	p = reallocarray(list->item, list->n + 1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	list->item = p;
	copy = strdup(path);
	if (!copy)
		return -ENOMEM;
	p[list->n++] = (struct settings_hybrid){ .path = copy, .is_pattern = cid == 0, .cid = cid };
	return 0;
}

int settings_sockets_add(const struct settings_row *row, struct settings *s, const char *path,
			 uint32_t cid)
{
	return sockets_add(field_of(row, s), path, cid);
}

static void sockets_done(struct sockets *list)
{
	for (size_t i = 0; i < list->n; i++)
		free(list->item[i].path);
	free(list->item);
	*list = (struct sockets){};
}

/* "CID=/path,/pattern/{cid}/x,..."; "" is an empty list. */
static int parse_sockets(const char *text, struct sockets *ret)
{
	_cleanup_(sockets_done)
	struct sockets list = {};
	_cleanup_free_ char *copy = strdup(text);
	char *rest = copy, *item;

	if (!copy)
		return -ENOMEM;
	while ((item = next_item(&rest))) {
		uint32_t cid = 0;
		int r;

		if (item[0] != '/') {
			char *number = strsep(&item, "=");

			if (!item || settings_parse_cid(number, &cid) < 0)
				return -EINVAL;
		}
		r = sockets_add(&list, item, cid);
		if (r < 0)
			return r == -E2BIG ? -EINVAL : r;
	}
	sockets_done(ret);
	*ret = list;
	list = (struct sockets){};
	return 0;
}

/* KIND_LISTENERS */
static int listeners_add(struct settings_listeners *list, const char *text)
{
	_cleanup_free_ char *copy = strdup(text);
	uint64_t ns, port = 0;
	struct settings_listener *p;
	char *path = copy, *number, *port_text;

	if (!copy)
		return -ENOMEM;
	port_text = strsep(&path, "=");
	number = strsep(&port_text, ":");
	/* A comma separates listeners where they are written in one line. */
	if (!path || !settings_valid_path(path) || strchr(path, ','))
		return -EINVAL;
	/* 0 is the initial namespace; the last port means any. */
	if (parse_digits(number, 10, &ns) < 0 || ns < 1 || ns > UINT32_MAX)
		return -EINVAL;
	if (port_text && (parse_digits(port_text, 10, &port) < 0 || port < 1 || port >= UINT32_MAX))
		return -EINVAL;
	if (list->n == SETTINGS_LISTENERS_MAX)
		return -E2BIG;
	p = reallocarray(list->item, list->n + 1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	list->item = p;
	path = strdup(path);
	if (!path)
		return -ENOMEM;
	p[list->n++] = (struct settings_listener){
		.netns = path,
		.ns = (uint32_t)ns,
		.port = (uint32_t)port,
	};
	return 0;
}

int settings_listeners_add(const struct settings_row *row, struct settings *s, const char *text)
{
	return listeners_add(field_of(row, s), text);
}

static void listeners_done(struct settings_listeners *list)
{
	for (size_t i = 0; i < list->n; i++)
		free(list->item[i].netns);
	free(list->item);
	*list = (struct settings_listeners){};
}

/* "7=/path,8:819=/path"; "" is an empty list. */
static int parse_listeners(const char *text, struct settings_listeners *ret)
{
	_cleanup_(listeners_done)
	struct settings_listeners list = {};
	_cleanup_free_ char *copy = strdup(text);
	char *rest = copy, *item;

	if (!copy)
		return -ENOMEM;
	while ((item = next_item(&rest))) {
		int r = listeners_add(&list, item);

		if (r < 0)
			return r == -E2BIG ? -EINVAL : r;
	}
	listeners_done(ret);
	*ret = list;
	list = (struct settings_listeners){};
	return 0;
}

static void format_listeners(const struct settings_listeners *list, FILE *out)
{
	for (size_t i = 0; i < list->n; i++) {
		const struct settings_listener *l = &list->item[i];

		fprintf(out, "%s%" PRIu32, i ? "," : "", l->ns);
		if (l->port)
			fprintf(out, ":%" PRIu32, l->port);
		fprintf(out, "=%s", l->netns);
	}
}

static void format_sockets(const struct sockets *list, FILE *out)
{
	for (size_t i = 0; i < list->n; i++) {
		if (i > 0)
			fputc(',', out);
		if (!list->item[i].is_pattern)
			fprintf(out, "%" PRIu32 "=", list->item[i].cid);
		fputs(list->item[i].path, out);
	}
}

/* ---- all kinds ---- */

int settings_kind_parse(const struct settings_row *row, const char *text, struct settings *s)
{
	void *field = field_of(row, s);

	switch (row->kind) {
	case KIND_BOOL:
		return parse_bool(text, field);
	case KIND_UINT:
		return parse_uint(row, text, field);
	case KIND_MODE:
		return parse_mode(text, field);
	case KIND_NUMBER:
		return parse_number(row, text, field);
	case KIND_DURATION:
		return parse_duration(row, text, field);
	case KIND_SIZE:
		return parse_size(row, text, field);
	case KIND_KIB:
		return parse_kib(row, text, field);
	case KIND_CHOICE:
		return parse_choice(row, text, field);
	case KIND_TEXT:
		return parse_text(row, text, field);
	case KIND_ADDRESS:
		return parse_address(text, field);
	case KIND_UIDS:
		return parse_uids(text, field);
	case KIND_WORDS:
		return parse_words(text, field);
	case KIND_SOCKETS:
		return parse_sockets(text, field);
	case KIND_LISTENERS:
		return parse_listeners(text, field);
	}
	return -EINVAL;
}

static void format_field(const struct settings_row *row, const void *field, FILE *out)
{
	char duration[DURATION_TEXT_MAX];
	uint32_t u;

	switch (row->kind) {
	case KIND_BOOL:
		fputs(*(const bool *)field ? "true" : "false", out);
		break;
	case KIND_UINT:
		u = *(const uint32_t *)field;
		if (row->word && u == row->word_value)
			fputs(row->word, out);
		else
			fprintf(out, "%" PRIu32, u);
		break;
	case KIND_MODE:
		fprintf(out, "%04" PRIo32, *(const uint32_t *)field);
		break;
	case KIND_NUMBER:
		format_number(*(const double *)field, out);
		break;
	case KIND_DURATION:
		fputs(duration_format(*(const uint64_t *)field, duration), out);
		break;
	case KIND_SIZE:
		format_size(*(const uint64_t *)field, out);
		break;
	case KIND_KIB:
		fprintf(out, "%llu", *(const uint64_t *)field / KIB);
		break;
	case KIND_CHOICE:
		fputs(choice_name(row, *(const int *)field), out);
		break;
	case KIND_TEXT:
		fputs(*(char *const *)field, out);
		break;
	case KIND_ADDRESS:
		format_address(field, out);
		break;
	case KIND_UIDS:
		format_uids(field, out);
		break;
	case KIND_WORDS:
		format_words(field, out);
		break;
	case KIND_SOCKETS:
		format_sockets(field, out);
		break;
	case KIND_LISTENERS:
		format_listeners(field, out);
		break;
	}
}

char *settings_kind_format(const struct settings_row *row, const struct settings *s)
{
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);
	bool failed;

	if (!out)
		return NULL;
	format_field(row, field_of(row, s), out);
	failed = ferror(out);
	if (fclose(out) != 0 || failed) {
		free(text);
		return NULL;
	}
	return text;
}

static void expects_choice(const struct settings_row *row, FILE *out)
{
	for (const struct settings_choice *c = row->choices; c->name; c++)
		fprintf(out, "%s%s", c == row->choices ? "" : c[1].name ? ", " : " or ", c->name);
}

static void expects_duration(const struct settings_row *row, FILE *out)
{
	char min[DURATION_TEXT_MAX], max[DURATION_TEXT_MAX];

	fprintf(out, "a duration such as 4h, 1m30s or 250ms, from %s to %s",
		duration_format(row->min, min), duration_format(row->max, max));
	if (row->instead_of_none)
		fprintf(out, " (0 or negative: %s)", duration_format(row->instead_of_none, min));
}

static void expects_size(const struct settings_row *row, FILE *out)
{
	fputs("a size in bytes or with KiB, MiB or GiB, from ", out);
	format_size(row->min, out);
	fputs(" to ", out);
	format_size(row->max, out);
}

static void expects_field(const struct settings_row *row, FILE *out)
{
	switch (row->kind) {
	case KIND_BOOL:
		fputs("true or false", out);
		break;
	case KIND_UINT:
		fprintf(out, "a whole number from %" PRIu64 " to %" PRIu64, row->min, row->max);
		if (row->word)
			fprintf(out, ", or %s", row->word);
		break;
	case KIND_MODE:
		fputs("an octal file mode from 0000 to 0777", out);
		break;
	case KIND_NUMBER:
		fprintf(out, "a number from %" PRIu64 " to %" PRIu64, row->min, row->max);
		break;
	case KIND_DURATION:
		expects_duration(row, out);
		break;
	case KIND_SIZE:
		expects_size(row, out);
		break;
	case KIND_KIB:
		fprintf(out, "a whole number of KiB from %" PRIu64 " to %" PRIu64, row->min,
			row->max);
		break;
	case KIND_CHOICE:
		expects_choice(row, out);
		break;
	case KIND_TEXT:
		fputs(row->expects, out);
		break;
	case KIND_ADDRESS:
		fputs("IP:PORT such as 127.0.0.1:9818 or [::1]:9818, PORT (loopback), :PORT "
		      "(every address), or off",
		      out);
		break;
	case KIND_UIDS:
		fprintf(out, "a list of at most %d numeric user ids, or any", SETTINGS_UIDS_MAX);
		break;
	case KIND_WORDS:
		fprintf(out, "a list of at most %d texts of at most %d characters, without comma",
			SETTINGS_WORDS_MAX, SETTINGS_WORD_MAX_LEN);
		break;
	case KIND_SOCKETS:
		fprintf(out,
			"at most %d sockets, each an absolute path with its CID, or a pattern that "
			"holds {cid} once; paths of at most 96 bytes (patterns 91), without comma",
			SETTINGS_SOCKETS_MAX);
		break;
	case KIND_LISTENERS:
		fprintf(out,
			"at most %d listeners, each the absolute path of a network namespace, "
			"without comma, with the namespace's number (1 or more) and perhaps a port",
			SETTINGS_LISTENERS_MAX);
		break;
	}
}

char *settings_kind_expects(const struct settings_row *row, char *buf, size_t size)
{
	_cleanup_fclose_ FILE *out = fmemopen(buf, size, "w");

	snprintf(buf, size, "something else");
	if (out)
		expects_field(row, out);
	return buf;
}

void settings_kind_done(const struct settings_row *row, struct settings *s)
{
	void *field = field_of(row, s);

	if (row->kind == KIND_SOCKETS)
		sockets_done(field);
	if (row->kind == KIND_LISTENERS)
		listeners_done(field);
	if (row->kind == KIND_WORDS)
		words_done(field);
	if (row->kind == KIND_TEXT) {
		free(*(char **)field);
		*(char **)field = NULL;
	}
}
