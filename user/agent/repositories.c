/* SPDX-License-Identifier: Apache-2.0 */
#include "repositories.h"

#include <strings.h>

#define FILE_MAX  (1 * MIB)
#define FILES_MAX 1024

struct value {
	const char *s;
	size_t n;
};

static bool is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r';
}

static struct value trim(const char *s, size_t n)
{
	for (; n > 0 && is_blank(s[0]); n--)
		s++;
	while (n > 0 && is_blank(s[n - 1]))
		n--;
	return (struct value){ s, n };
}

/* Cuts the first word off *v. */
static struct value next_word(struct value *v)
{
	struct value word = { v->s, 0 };

	while (word.n < v->n && !is_blank(v->s[word.n]))
		word.n++;
	*v = trim(v->s + word.n, v->n - word.n);
	return word;
}

static bool value_is(struct value v, const char *word)
{
	return v.n == strlen(word) && strncasecmp(v.s, word, v.n) == 0;
}

static bool is_false(struct value v)
{
	return value_is(v, "0") || value_is(v, "no") || value_is(v, "false") ||
	       value_is(v, "off") || value_is(v, "disable") || value_is(v, "without");
}

/* Cuts the first line, without its end, off the text. */
static struct value next_line(const char **text, size_t *len)
{
	const char *newline = memchr(*text, '\n', *len);
	size_t n = newline ? (size_t)(newline - *text) : *len;
	struct value line = { *text, n };

	n += newline ? 1 : 0;
	*text += n;
	*len -= n;
	return line;
}

/* The URI without user, password and query. */
static const char *clean_uri(struct arena *a, struct value uri)
{
	const char *host = memmem(uri.s, uri.n, "://", 3), *end, *at;
	const char *query = memchr(uri.s, '?', uri.n);

	if (query)
		uri.n = query - uri.s;
	if (!host)
		return arena_text(a, uri.s, uri.n);
	host += 3;
	end = uri.s + uri.n;
	if (host > end)
		return "";
	at = memchr(host, '/', end - host);
	at = memrchr(host, '@', (at ? at : end) - host);
	if (!at)
		return arena_text(a, uri.s, uri.n);
	return arena_printf(a, "%.*s%.*s", (int)(host - uri.s), uri.s, (int)(end - (at + 1)),
			    at + 1);
}

static int add(struct inventory *inv, const char *name, struct value uri)
{
	struct repository r = { .name = name };
	int e;

	if (uri.n > INVENTORY_FIELD_MAX)
		return 0;
	r.uri = clean_uri(inv->arena, uri);
	if (!r.name || !r.uri)
		return -ENOMEM;
	e = inventory_add_repository(inv, &r);
	return e == -E2BIG ? 0 : e;
}

/* One repository for each component, as apt fetches them; a suite with a path has none. */
static int add_apt(struct inventory *inv, struct value uri, struct value suite,
		   struct value components)
{
	do {
		struct value component = next_word(&components);
		const char *name;
		int r;

		if (suite.n > INVENTORY_FIELD_MAX || component.n > INVENTORY_FIELD_MAX)
			return 0;
		name = arena_printf(inv->arena, "%.*s%s%.*s", (int)suite.n, suite.s,
				    component.n > 0 ? "/" : "", (int)component.n, component.s);
		r = add(inv, name, uri);
		if (r < 0)
			return r;
	} while (components.n > 0);
	return 0;
}

int repositories_parse_list(struct inventory *inv, const char *text, size_t len)
{
	while (len > 0) {
		struct value line = next_line(&text, &len), uri, suite;
		const char *comment = memchr(line.s, '#', line.n);
		int r;

		line = trim(line.s, comment ? (size_t)(comment - line.s) : line.n);
		if (!value_is(next_word(&line), "deb"))
			continue;
		if (line.n > 0 && line.s[0] == '[') {
			const char *end = memchr(line.s, ']', line.n);

			if (!end)
				continue;
			line = trim(end + 1, line.s + line.n - (end + 1));
		}
		uri = next_word(&line);
		suite = next_word(&line);
		if (uri.n == 0 || suite.n == 0)
			continue;
		r = add_apt(inv, uri, suite, line);
		if (r < 0)
			return r;
	}
	return 0;
}

struct apt_stanza {
	struct value types, uris, suites, components;
	bool disabled;
};

static int add_apt_stanza(struct inventory *inv, const struct apt_stanza *st)
{
	struct value types = st->types, uris, suites;
	bool binary = false;
	int r;

	while (types.n > 0)
		binary |= value_is(next_word(&types), "deb");
	if (!binary || st->disabled)
		return 0;
	for (uris = st->uris; uris.n > 0;) {
		struct value uri = next_word(&uris);

		for (suites = st->suites; suites.n > 0;) {
			r = add_apt(inv, uri, next_word(&suites), st->components);
			if (r < 0)
				return r;
		}
		if (inv->n_repositories == INVENTORY_REPOSITORIES_MAX)
			return 0;
	}
	return 0;
}

/* deb822. Of fields that go on over more lines (keys, lists of URIs) the first line counts. */
int repositories_parse_sources(struct inventory *inv, const char *text, size_t len)
{
	struct apt_stanza st = {};
	int r;

	while (len > 0) {
		struct value line = next_line(&text, &len), value;
		struct value field;
		const char *colon;

		if (trim(line.s, line.n).n == 0) {
			r = add_apt_stanza(inv, &st);
			if (r < 0)
				return r;
			st = (struct apt_stanza){};
			continue;
		}
		colon = memchr(line.s, ':', line.n);
		if (line.s[0] == '#' || is_blank(line.s[0]) || !colon)
			continue;
		field = (struct value){ line.s, colon - line.s };
		value = trim(colon + 1, line.s + line.n - (colon + 1));
		if (value_is(field, "Types"))
			st.types = value;
		else if (value_is(field, "URIs"))
			st.uris = value;
		else if (value_is(field, "Suites"))
			st.suites = value;
		else if (value_is(field, "Components"))
			st.components = value;
		else if (value_is(field, "Enabled"))
			st.disabled = is_false(value);
	}
	return add_apt_stanza(inv, &st);
}

struct dnf_section {
	struct value id, baseurl, metalink, mirrorlist;
	bool disabled;
};

static int add_dnf_section(struct inventory *inv, const struct dnf_section *s)
{
	struct value uri = s->baseurl.n > 0    ? s->baseurl
			   : s->metalink.n > 0 ? s->metalink
					       : s->mirrorlist;

	if (s->id.n == 0 || s->id.n > INVENTORY_FIELD_MAX || s->disabled || value_is(s->id, "main"))
		return 0;
	return add(inv, arena_text(inv->arena, s->id.s, s->id.n), next_word(&uri));
}

int repositories_parse_repo(struct inventory *inv, const char *text, size_t len)
{
	struct dnf_section s = {};
	int r;

	while (len > 0) {
		struct value line = next_line(&text, &len), value;
		const char *equals, *bracket;
		struct value name;

		if (line.n > 0 && line.s[0] == '[') {
			r = add_dnf_section(inv, &s);
			if (r < 0)
				return r;
			bracket = memchr(line.s, ']', line.n);
			s = (struct dnf_section){};
			if (bracket)
				s.id = trim(line.s + 1, bracket - (line.s + 1));
			continue;
		}
		equals = memchr(line.s, '=', line.n);
		if (line.n == 0 || line.s[0] == '#' || is_blank(line.s[0]) || !equals)
			continue;
		name = trim(line.s, equals - line.s);
		value = trim(equals + 1, line.s + line.n - (equals + 1));
		if (value_is(name, "baseurl"))
			s.baseurl = value;
		else if (value_is(name, "metalink"))
			s.metalink = value;
		else if (value_is(name, "mirrorlist"))
			s.mirrorlist = value;
		else if (value_is(name, "enabled"))
			s.disabled = is_false(value);
	}
	return add_dnf_section(inv, &s);
}

typedef int (*parse_fn)(struct inventory *inv, const char *text, size_t len);

static int read_file(struct inventory *inv, const struct rootfs *root, const char *name,
		     parse_fn parse)
{
	_cleanup_free_ char *text = NULL;
	size_t len;
	int r;

	r = rootfs_read(root, name, FILE_MAX, &text, &len);
	if (r < 0)
		return r == -ENOMEM ? r : 0;
	return parse(inv, text, len);
}

static bool has_suffix(const char *s, const char *suffix)
{
	size_t n = strlen(s), m = strlen(suffix);

	return n > m && streq(s + n - m, suffix);
}

static int read_dir(struct inventory *inv, const struct rootfs *root, const char *dir,
		    const char *suffix, parse_fn parse)
{
	char **names;
	size_t n;
	int r;

	r = rootfs_list(root, dir, FILES_MAX, &names, &n);
	if (r < 0)
		return r == -ENOMEM ? r : 0;
	for (size_t i = 0; i < n && r >= 0; i++) {
		const char *path;

		if (!has_suffix(names[i], suffix))
			continue;
		path = arena_printf(inv->arena, "%s/%s", dir, names[i]);
		r = path ? read_file(inv, root, path, parse) : -ENOMEM;
	}
	rootfs_names_free(names, n);
	return r;
}

static int add_rhel(struct inventory *inv)
{
	const struct repository rhel = {
		.name = inv->os.cpe_name,
		.key = REPOSITORY_KEY_RHEL,
		.cpe = inv->os.cpe_name,
	};

	if (!streq(inv->os.id, "rhel") || inv->os.cpe_name[0] == '\0')
		return 0;
	return inventory_add_repository(inv, &rhel);
}

int repositories_read(struct inventory *inv, const struct rootfs *root)
{
	int r;

	r = add_rhel(inv);
	if (r >= 0)
		r = read_file(inv, root, "etc/apt/sources.list", repositories_parse_list);
	if (r >= 0)
		r = read_dir(inv, root, "etc/apt/sources.list.d", ".list", repositories_parse_list);
	if (r >= 0)
		r = read_dir(inv, root, "etc/apt/sources.list.d", ".sources",
			     repositories_parse_sources);
	if (r >= 0)
		r = read_dir(inv, root, "etc/yum.repos.d", ".repo", repositories_parse_repo);
	return r;
}
