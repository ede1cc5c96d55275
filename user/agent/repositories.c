/* SPDX-License-Identifier: Apache-2.0 */
#include "repositories.h"

#include "text.h"

#define FILE_MAX  (1 * MIB)
#define FILES_MAX 1024

static bool is_false(struct text v)
{
	return text_is_nocase(v, "0") || text_is_nocase(v, "no") || text_is_nocase(v, "false") ||
	       text_is_nocase(v, "off") || text_is_nocase(v, "disable") ||
	       text_is_nocase(v, "without");
}

/* The URI without user, password and query. */
static const char *clean_uri(struct arena *a, struct text uri)
{
	const char *host, *query, *end, *at;

	if (uri.n == 0)
		return "";
	query = memchr(uri.s, '?', uri.n);
	if (query)
		uri.n = query - uri.s;
	host = memmem(uri.s, uri.n, "://", 3);
	if (!host)
		return arena_text(a, uri.s, uri.n);
	host += 3;
	end = uri.s + uri.n;
	at = memchr(host, '/', end - host);
	at = memrchr(host, '@', (at ? at : end) - host);
	if (!at)
		return arena_text(a, uri.s, uri.n);
	return arena_printf(a, "%.*s%.*s", (int)(host - uri.s), uri.s, (int)(end - (at + 1)),
			    at + 1);
}

static int add(struct inventory *inv, const char *name, struct text uri)
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
static int add_apt(struct inventory *inv, struct text uri, struct text suite,
		   struct text components)
{
	do {
		struct text component = text_next_word(&components);
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

static int parse_list_line(struct inventory *inv, struct text line)
{
	struct text options, uri, suite, comment;

	text_split(line, '#', &line, &comment);
	line = text_trim(line);
	if (!text_is(text_next_word(&line), "deb"))
		return 0;
	if (line.n > 0 && line.s[0] == '[') {
		if (!text_split(line, ']', &options, &line))
			return 0;
		line = text_trim(line);
	}
	uri = text_next_word(&line);
	suite = text_next_word(&line);
	return uri.n > 0 && suite.n > 0 ? add_apt(inv, uri, suite, line) : 0;
}

int repositories_parse_list(struct inventory *inv, const char *text, size_t len)
{
	struct text rest = { text, len };
	int r = 0;

	while (rest.n > 0 && r >= 0)
		r = parse_list_line(inv, text_next_line(&rest));
	return r;
}

struct apt_stanza {
	struct text types, uris, suites, components;
	bool disabled;
};

static int add_apt_stanza(struct inventory *inv, const struct apt_stanza *st)
{
	struct text types = st->types, uris, suites;
	bool binary = false;
	int r;

	while (types.n > 0)
		binary |= text_is_nocase(text_next_word(&types), "deb");
	if (!binary || st->disabled)
		return 0;
	for (uris = st->uris; uris.n > 0;) {
		struct text uri = text_next_word(&uris);

		for (suites = st->suites; suites.n > 0;) {
			r = add_apt(inv, uri, text_next_word(&suites), st->components);
			if (r < 0)
				return r;
		}
		if (inv->n_repositories == INVENTORY_REPOSITORIES_MAX)
			return 0;
	}
	return 0;
}

/* Of fields that go on over more lines (keys, lists of URIs) the first line counts. */
static void apt_stanza_line(struct apt_stanza *st, struct text line)
{
	struct text name, value;

	if (line.s[0] == '#' || text_is_blank(line.s[0]) || !text_split(line, ':', &name, &value))
		return;
	value = text_trim(value);
	if (text_is_nocase(name, "Types"))
		st->types = value;
	else if (text_is_nocase(name, "URIs"))
		st->uris = value;
	else if (text_is_nocase(name, "Suites"))
		st->suites = value;
	else if (text_is_nocase(name, "Components"))
		st->components = value;
	else if (text_is_nocase(name, "Enabled"))
		st->disabled = is_false(value);
}

int repositories_parse_sources(struct inventory *inv, const char *text, size_t len)
{
	struct text rest = { text, len };
	struct apt_stanza st = {};
	int r;

	while (rest.n > 0) {
		struct text line = text_next_line(&rest);

		if (text_trim(line).n > 0) {
			apt_stanza_line(&st, line);
			continue;
		}
		r = add_apt_stanza(inv, &st);
		if (r < 0)
			return r;
		st = (struct apt_stanza){};
	}
	return add_apt_stanza(inv, &st);
}

struct dnf_section {
	struct text id, baseurl, metalink, mirrorlist;
	bool disabled;
};

static int add_dnf_section(struct inventory *inv, const struct dnf_section *s)
{
	struct text uri = s->baseurl.n > 0    ? s->baseurl
			  : s->metalink.n > 0 ? s->metalink
					      : s->mirrorlist;

	if (s->id.n == 0 || s->id.n > INVENTORY_FIELD_MAX || s->disabled ||
	    text_is_nocase(s->id, "main"))
		return 0;
	return add(inv, arena_text(inv->arena, s->id.s, s->id.n), text_next_word(&uri));
}

static void dnf_section_line(struct dnf_section *s, struct text line)
{
	struct text name, value;

	if (line.n == 0 || line.s[0] == '#' || text_is_blank(line.s[0]) ||
	    !text_split(line, '=', &name, &value))
		return;
	name = text_trim(name);
	value = text_trim(value);
	if (text_is_nocase(name, "baseurl"))
		s->baseurl = value;
	else if (text_is_nocase(name, "metalink"))
		s->metalink = value;
	else if (text_is_nocase(name, "mirrorlist"))
		s->mirrorlist = value;
	else if (text_is_nocase(name, "enabled"))
		s->disabled = is_false(value);
}

int repositories_parse_repo(struct inventory *inv, const char *text, size_t len)
{
	struct text rest = { text, len };
	struct dnf_section s = {};
	int r;

	while (rest.n > 0) {
		struct text line = text_next_line(&rest), id = {}, behind;

		if (line.n == 0 || line.s[0] != '[') {
			dnf_section_line(&s, line);
			continue;
		}
		r = add_dnf_section(inv, &s);
		if (r < 0)
			return r;
		text_split((struct text){ line.s + 1, line.n - 1 }, ']', &id, &behind);
		s = (struct dnf_section){ .id = text_trim(id) };
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
