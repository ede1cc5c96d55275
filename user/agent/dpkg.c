/* SPDX-License-Identifier: Apache-2.0 */
#include "dpkg.h"

#include "text.h"

#define STATUS_MAX	(64 * MIB) /* ten times that of a desktop with 5000 packages */
#define STATUS_FILE_MAX (1 * MIB)
#define STATUS_FILES	INVENTORY_PACKAGES_MAX

enum field { FIELD_PACKAGE, FIELD_STATUS, FIELD_VERSION, FIELD_ARCH, FIELD_SOURCE, FIELD_MAX };

static const char *const field_names[FIELD_MAX] = {
	[FIELD_PACKAGE] = "Package",   [FIELD_STATUS] = "Status", [FIELD_VERSION] = "Version",
	[FIELD_ARCH] = "Architecture", [FIELD_SOURCE] = "Source",
};

struct stanza {
	struct text fields[FIELD_MAX];
	bool any;     /* it has at least one line */
	bool damaged; /* a wanted field twice, too long or continued */
	bool wanted;  /* the last field seen is one of fields */
};

static void stanza_line(struct stanza *st, struct text line)
{
	struct text name, value;

	st->any = true;
	if (text_is_blank(line.s[0])) {
		/* None of the wanted fields has more than one line. */
		st->damaged |= st->wanted;
		return;
	}
	st->wanted = false;
	if (!text_split(line, ':', &name, &value))
		return;
	for (enum field f = 0; f < FIELD_MAX; f++) {
		if (!text_is_nocase(name, field_names[f]))
			continue;
		st->wanted = true;
		value = text_trim(value);
		if (st->fields[f].s || value.n > INVENTORY_FIELD_MAX)
			st->damaged = true;
		st->fields[f] = value;
	}
}

static bool is_installed(struct text status, bool optional)
{
	struct text state;

	if (!status.s)
		return optional;
	text_next_word(&status); /* what the administrator wants */
	text_next_word(&status); /* whether it needs a reinstallation */
	state = text_next_word(&status);
	/* Pending triggers are no reason to leave a package out: its files are there, and the
	 * inventory would flap while apt works. */
	return text_is(state, "installed") || text_is(state, "triggers-awaited") ||
	       text_is(state, "triggers-pending");
}

/* "name (version)", or the name alone when the source has the binary's version. */
static void split_source(struct text source, struct text *ret_name, struct text *ret_version)
{
	struct text rest = source, name = text_next_word(&rest);

	*ret_name = name;
	if (rest.n > 2 && rest.s[0] == '(' && rest.s[rest.n - 1] == ')')
		*ret_version = text_trim((struct text){ rest.s + 1, rest.n - 2 });
}

static int add_stanza(struct inventory *inv, const struct stanza *st, const char *db,
		      bool status_optional)
{
	const struct text *f = st->fields;
	/* The field is left out where the source package has the binary's name (Debian policy
	 * 5.6.1). */
	struct text source = f[FIELD_PACKAGE], source_version = f[FIELD_VERSION];
	struct package p = { .db = db };

	if (!st->any)
		return 0;
	if (!st->damaged && f[FIELD_PACKAGE].n > 0 &&
	    !is_installed(f[FIELD_STATUS], status_optional))
		return 0;
	if (st->damaged || f[FIELD_PACKAGE].n == 0 || f[FIELD_VERSION].n == 0) {
		inv->skipped++;
		return 0;
	}
	if (f[FIELD_SOURCE].n > 0)
		split_source(f[FIELD_SOURCE], &source, &source_version);

	p.name = arena_text(inv->arena, f[FIELD_PACKAGE].s, f[FIELD_PACKAGE].n);
	p.version = arena_text(inv->arena, f[FIELD_VERSION].s, f[FIELD_VERSION].n);
	p.arch = arena_text(inv->arena, f[FIELD_ARCH].s, f[FIELD_ARCH].n);
	p.source = arena_text(inv->arena, source.s, source.n);
	p.source_version = arena_text(inv->arena, source_version.s, source_version.n);
	if (!p.name || !p.version || !p.arch || !p.source || !p.source_version)
		return -ENOMEM;
	return inventory_add_package(inv, &p);
}

int dpkg_parse(struct inventory *inv, const char *text, size_t len, const char *db,
	       bool status_optional)
{
	struct text rest = { text, len };
	struct stanza st = {};
	int r;

	while (rest.n > 0) {
		struct text line = text_next_line(&rest);

		if (text_trim(line).n > 0) {
			stanza_line(&st, line);
			continue;
		}
		r = add_stanza(inv, &st, db, status_optional);
		if (r < 0)
			return r;
		st = (struct stanza){};
	}
	return add_stanza(inv, &st, db, status_optional);
}

static int read_status(struct inventory *inv, const struct rootfs *root)
{
	_cleanup_free_ char *text = NULL;
	size_t len;
	int r;

	r = rootfs_read(root, DPKG_STATUS, STATUS_MAX, &text, &len);
	if (r < 0)
		return r;
	return dpkg_parse(inv, text, len, DPKG_STATUS, false);
}

static int read_status_file(struct inventory *inv, const struct rootfs *root, const char *name)
{
	_cleanup_free_ char *text = NULL;
	const char *db;
	size_t len;
	int r;

	db = arena_printf(inv->arena, "%s/%s", DPKG_STATUS_DIR, name);
	if (!db)
		return -ENOMEM;
	r = rootfs_read(root, db, STATUS_FILE_MAX, &text, &len);
	if (r == -ENOMEM)
		return r;
	if (r < 0) {
		inv->skipped++;
		return 0;
	}
	return dpkg_parse(inv, text, len, db, true);
}

static int read_status_dir(struct inventory *inv, const struct rootfs *root)
{
	char **names;
	size_t n;
	int r;

	r = rootfs_list(root, DPKG_STATUS_DIR, STATUS_FILES, &names, &n);
	if (r < 0)
		return r;
	for (size_t i = 0; i < n && r >= 0; i++) {
		size_t len = strlen(names[i]);

		/* Lists of files lie beside the packages. */
		if (len > 8 && streq(names[i] + len - 8, ".md5sums"))
			continue;
		r = read_status_file(inv, root, names[i]);
	}
	rootfs_names_free(names, n);
	return r;
}

int dpkg_read(struct inventory *inv, const struct rootfs *root)
{
	int status, dir;

	status = read_status(inv, root);
	if (status < 0 && status != -ENOENT)
		return status;
	dir = read_status_dir(inv, root);
	if (dir < 0 && dir != -ENOENT && dir != -ENOTDIR)
		return dir;
	return status < 0 && dir < 0 ? -ENOENT : 0;
}
