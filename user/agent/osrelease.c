/* SPDX-License-Identifier: Apache-2.0 */
#include "osrelease.h"

#include <stdio.h>

#define FILE_MAX  (64 * KIB)
#define VALUE_MAX 1024

void osrelease_init(struct osrelease *os)
{
	*os = (struct osrelease){ "", "", "", "", "", "", "" };
}

static const char **field_of(struct osrelease *os, const char *name, size_t len)
{
	const struct {
		const char *name;
		const char **field;
	} fields[] = {
		{ "ID", &os->id },
		{ "NAME", &os->name },
		{ "VERSION", &os->version },
		{ "VERSION_ID", &os->version_id },
		{ "VERSION_CODENAME", &os->version_codename },
		{ "PRETTY_NAME", &os->pretty_name },
		{ "CPE_NAME", &os->cpe_name },
	};

	for (size_t i = 0; i < ARRAY_SIZE(fields); i++)
		if (strlen(fields[i].name) == len && memcmp(fields[i].name, name, len) == 0)
			return fields[i].field;
	return NULL;
}

static bool is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '\f' || c == '\v';
}

/*
 * Undoes the shell's quoting of the n bytes at s: quoted parts may follow each other, as in
 * 'it'\''s'. Writes at most VALUE_MAX bytes to out. Returns their number, or -E2BIG.
 */
static ssize_t unquote(const char *s, size_t n, char *out)
{
	char quote = 0;
	size_t len = 0;

	for (size_t i = 0; i < n; i++) {
		char c = s[i];

		if (quote == 0 && (c == '"' || c == '\'')) {
			quote = c;
			continue;
		}
		if (quote && c == quote) {
			quote = 0;
			continue;
		}
		if (quote == 0 && is_blank(c))
			break; /* what follows the word is none of its value */
		if (c == '\\' && quote != '\'' && i + 1 < n &&
		    (quote == 0 || strchr("\"\\$`", s[i + 1])))
			c = s[++i];
		if (len == VALUE_MAX)
			return -E2BIG;
		out[len++] = c;
	}
	return len;
}

static int parse_line(struct arena *arena, const char *line, size_t n, struct osrelease *os)
{
	const char **field, *equals;
	char value[VALUE_MAX], *copy;
	ssize_t len;

	for (; n > 0 && is_blank(line[0]); n--)
		line++;
	equals = memchr(line, '=', n);
	if (!equals || line[0] == '#')
		return 0;
	field = field_of(os, line, equals - line);
	if (!field)
		return 0;
	len = unquote(equals + 1, line + n - (equals + 1), value);
	if (len < 0)
		return 0;
	copy = arena_text(arena, value, len);
	if (!copy)
		return -ENOMEM;
	*field = copy;
	return 0;
}

int osrelease_parse(struct arena *arena, const char *text, size_t len, struct osrelease *os)
{
	while (len > 0) {
		const char *newline = memchr(text, '\n', len);
		size_t n = newline ? (size_t)(newline - text) : len;
		int r;

		r = parse_line(arena, text, n, os);
		if (r < 0)
			return r;
		n += newline ? 1 : 0;
		text += n;
		len -= n;
	}
	return 0;
}

int osrelease_read(struct arena *arena, const struct rootfs *root, struct osrelease *os)
{
	_cleanup_free_ char *text = NULL;
	size_t len;
	int r;

	r = rootfs_read(root, "etc/os-release", FILE_MAX, &text, &len);
	if (r == -ENOENT)
		r = rootfs_read(root, "usr/lib/os-release", FILE_MAX, &text, &len);
	if (r < 0)
		return r;
	return osrelease_parse(arena, text, len, os);
}
