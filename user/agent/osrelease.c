/* SPDX-License-Identifier: Apache-2.0 */
#include "osrelease.h"

#include "text.h"

#define OSRELEASE_MAX (64 * KIB)
#define VALUE_MAX     1024

void osrelease_init(struct osrelease *os)
{
	*os = (struct osrelease){ "", "", "", "", "", "", "" };
}

static const char **field_of(struct osrelease *os, struct text name)
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
		if (text_is(name, fields[i].name))
			return fields[i].field;
	return NULL;
}

/*
 * Undoes the shell's quoting: quoted parts may follow each other, as in 'it'\''s'. Writes at most
 * VALUE_MAX bytes to out. Returns their number, or -E2BIG.
 */
static ssize_t unquote(struct text t, char out[static VALUE_MAX])
{
	char quote = 0;
	size_t len = 0;

	for (size_t i = 0; i < t.n; i++) {
		char c = t.s[i];

		if (quote == 0 && (c == '"' || c == '\'')) {
			quote = c;
			continue;
		}
		if (quote && c == quote) {
			quote = 0;
			continue;
		}
		if (quote == 0 && text_is_blank(c))
			break; /* what follows the word is none of its value */
		if (c == '\\' && quote != '\'' && i + 1 < t.n &&
		    (quote == 0 || strchr("\"\\$`", t.s[i + 1])))
			c = t.s[++i];
		if (len == VALUE_MAX)
			return -E2BIG;
		out[len++] = c;
	}
	return len;
}

static int parse_assignment(struct arena *arena, struct text line, struct osrelease *os)
{
	char value[VALUE_MAX], *copy;
	struct text name, quoted;
	const char **field;
	ssize_t len;

	if (!text_split(line, '=', &name, &quoted))
		return 0;
	field = field_of(os, name);
	if (!field)
		return 0;
	len = unquote(quoted, value);
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
	struct text rest = { text, len };
	int r;

	while (rest.n > 0) {
		r = parse_assignment(arena, text_trim(text_next_line(&rest)), os);
		if (r < 0)
			return r;
	}
	return 0;
}

int osrelease_read(struct arena *arena, const struct rootfs *root, struct osrelease *os)
{
	_cleanup_free_ char *text = NULL;
	size_t len;
	int r;

	r = rootfs_read(root, "etc/os-release", OSRELEASE_MAX, &text, &len);
	if (r == -ENOENT)
		r = rootfs_read(root, "usr/lib/os-release", OSRELEASE_MAX, &text, &len);
	if (r < 0)
		return r;
	return osrelease_parse(arena, text, len, os);
}
