/* SPDX-License-Identifier: Apache-2.0 */
#include "rpm.h"

#include "command.h"
#include "text.h"

#define OUTPUT_MAX (64 * MIB)
#define TIME_MAX   (1 * USEC_PER_MIN)

enum field {
	FIELD_NAME,
	FIELD_EPOCH,
	FIELD_VERSION,
	FIELD_RELEASE,
	FIELD_ARCH,
	FIELD_SOURCE,
	FIELD_BASIC_MAX,
	/* not known to each rpm */
	FIELD_MODULE = FIELD_BASIC_MAX,
	FIELD_DIGEST_ALGORITHM,
	FIELD_DIGEST,
	FIELD_SIGNATURE,
	FIELD_MAX,
};

#define FORMAT_BASIC "%{NAME}\\t%{EPOCH}\\t%{VERSION}\\t%{RELEASE}\\t%{ARCH}\\t%{SOURCERPM}"
#define FORMAT_MORE                                                          \
	"\\t%{MODULARITYLABEL}\\t%{PAYLOADDIGESTALGO}\\t%{PAYLOADDIGEST}\\t" \
	"%|SIGPGP?{%{SIGPGP:pgpsig}}:{%{RSAHEADER:pgpsig}}|"

/* PGPHASHALGO_SHA256 of rpm. */
#define DIGEST_SHA256 "8"

/* What rpm writes for a tag that the package has not. */
static bool is_none(struct text v)
{
	return v.n == 0 || text_is(v, "(none)");
}

/* Splits a line at its tabs. Returns the number of fields, or 0 if it is no line of ours. */
static size_t split(struct text line, struct text fields[static FIELD_MAX])
{
	size_t count = 0;
	bool more = true;

	while (more) {
		struct text field = line;

		more = text_split(line, '\t', &field, &line);
		if (count == FIELD_MAX || field.n > INVENTORY_FIELD_MAX)
			return 0;
		fields[count++] = field;
	}
	return count == FIELD_BASIC_MAX || count == FIELD_MAX ? count : 0;
}

static const char *build_version(struct arena *a, const struct text *f)
{
	bool epoch = !is_none(f[FIELD_EPOCH]) && !text_is(f[FIELD_EPOCH], "0");

	return arena_printf(a, "%.*s%s%.*s-%.*s", epoch ? (int)f[FIELD_EPOCH].n : 0,
			    f[FIELD_EPOCH].s, epoch ? ":" : "", (int)f[FIELD_VERSION].n,
			    f[FIELD_VERSION].s, (int)f[FIELD_RELEASE].n, f[FIELD_RELEASE].s);
}

/* name-version-release.src.rpm: sets the source of *p where the name is of that form. */
static int build_source(struct arena *a, struct text v, struct package *p)
{
	static const char suffix[] = ".src.rpm";
	const char *release, *version;

	if (is_none(v))
		return 0;
	if (v.n > strlen(suffix) && memcmp(v.s + v.n - strlen(suffix), suffix, strlen(suffix)) == 0)
		v.n -= strlen(suffix);
	release = memrchr(v.s, '-', v.n);
	version = release ? memrchr(v.s, '-', release - v.s) : NULL;
	if (!version || version == v.s || version + 1 == release || release + 1 == v.s + v.n)
		return 0;
	p->source = arena_text(a, v.s, version - v.s);
	p->source_version = arena_text(a, version + 1, v.s + v.n - (version + 1));
	return p->source && p->source_version ? 0 : -ENOMEM;
}

/* name:stream:version:context:arch, of which the scanner wants the first two. */
static const char *build_module(struct arena *a, struct text v)
{
	struct text name, stream, rest;

	if (is_none(v) || !text_split(v, ':', &name, &rest) ||
	    !text_split(rest, ':', &stream, &rest))
		return "";
	return arena_text(a, v.s, stream.s + stream.n - v.s);
}

static bool is_hex(struct text v)
{
	for (size_t i = 0; i < v.n; i++)
		if (!strchr("0123456789abcdef", v.s[i]) || v.s[i] == '\0')
			return false;
	return v.n > 0;
}

/* "RSA/SHA256, <date>, Key ID 199e2f91fd431d51": the id. */
static struct text key_id(struct text signature)
{
	static const char label[] = "Key ID ";
	const char *p = memmem(signature.s, signature.n, label, strlen(label));
	struct text id = {};

	if (p) {
		id.s = p + strlen(label);
		id.n = signature.s + signature.n - id.s;
	}
	return id;
}

/* The scanner tells by the signing key whose package it is; the form is that of a URL's query. */
static const char *build_hint(struct arena *a, const struct text *f)
{
	struct text digest = f[FIELD_DIGEST], key = key_id(f[FIELD_SIGNATURE]);
	bool has_digest = text_is(f[FIELD_DIGEST_ALGORITHM], DIGEST_SHA256) && is_hex(digest);
	bool has_key = is_hex(key);

	return arena_printf(a, "%s%.*s%s%s%.*s", has_digest ? "hash=sha256%3A" : "",
			    has_digest ? (int)digest.n : 0, has_digest ? digest.s : "",
			    has_digest && has_key ? "&" : "", has_key ? "key=" : "",
			    has_key ? (int)key.n : 0, has_key ? key.s : "");
}

static int parse_package(struct inventory *inv, struct text line, const char *db)
{
	struct text f[FIELD_MAX] = {};
	struct package p = { .db = db, .module = "", .repository_hint = "" };
	struct arena *a = inv->arena;
	size_t count = split(line, f);
	int r;

	if (count == 0 || is_none(f[FIELD_NAME]) || is_none(f[FIELD_VERSION]) ||
	    is_none(f[FIELD_RELEASE])) {
		inv->skipped++;
		return 0;
	}
	if (text_is(f[FIELD_NAME], "gpg-pubkey"))
		return 0;
	p.name = arena_text(a, f[FIELD_NAME].s, f[FIELD_NAME].n);
	p.version = build_version(a, f);
	p.arch = is_none(f[FIELD_ARCH]) ? "" : arena_text(a, f[FIELD_ARCH].s, f[FIELD_ARCH].n);
	r = build_source(a, f[FIELD_SOURCE], &p);
	if (r < 0)
		return r;
	if (count == FIELD_MAX) {
		p.module = build_module(a, f[FIELD_MODULE]);
		p.repository_hint = build_hint(a, f);
	}
	if (!p.name || !p.version || !p.arch || !p.module || !p.repository_hint)
		return -ENOMEM;
	return inventory_add_package(inv, &p);
}

int rpm_parse(struct inventory *inv, const char *text, size_t len, const char *db)
{
	struct text rest = { text, len };
	int r;

	while (rest.n > 0) {
		struct text line = text_next_line(&rest);

		if (line.n == 0)
			continue;
		r = parse_package(inv, line, db);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Where the database is. The directory that the others link to comes first. */
static int find_database(struct arena *arena, const struct rootfs *root, const char **ret_dir,
			 const char **ret_db)
{
	static const char *const dirs[] = { "usr/lib/sysimage/rpm", "usr/share/rpm",
					    "var/lib/rpm" };
	static const struct {
		const char *kind, *file;
	} kinds[] = {
		{ "sqlite", "rpmdb.sqlite" },
		{ "ndb", "Packages.db" },
		{ "bdb", "Packages" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(dirs); i++)
		for (size_t k = 0; k < ARRAY_SIZE(kinds); k++) {
			const char *file = arena_printf(arena, "%s/%s", dirs[i], kinds[k].file);

			if (!file)
				return -ENOMEM;
			if (rootfs_exists(root, file) <= 0)
				continue;
			*ret_dir = dirs[i];
			*ret_db = arena_printf(arena, "%s:%s", kinds[k].kind, dirs[i]);
			return *ret_db ? 0 : -ENOMEM;
		}
	return -ENOENT;
}

static int query(const char *command, const char *dbpath, const char *format, int stop_fd,
		 char **ret, size_t *ret_len)
{
	/* posix_spawn() does not write to them. */
	char *with_path[] = { (char *)command,
			      (char *)"--dbpath",
			      (char *)dbpath,
			      (char *)"-qa",
			      (char *)"--qf",
			      (char *)format,
			      NULL };
	char *without[] = { (char *)command, (char *)"-qa", (char *)"--qf", (char *)format, NULL };

	return command_run(dbpath ? with_path : without, OUTPUT_MAX, TIME_MAX, stop_fd, ret,
			   ret_len);
}

int rpm_read(struct inventory *inv, const struct rootfs *root, const char *command, int stop_fd)
{
	const char *dir, *db, *dbpath = NULL;
	_cleanup_free_ char *text = NULL;
	size_t len;
	int r;

	r = find_database(inv->arena, root, &dir, &db);
	if (r < 0)
		return r;
	if (!rootfs_is_system(root)) {
		dbpath = arena_printf(inv->arena, "%s/%s", root->path, dir);
		if (!dbpath)
			return -ENOMEM;
	}
	r = query(command, dbpath, FORMAT_BASIC FORMAT_MORE "\\n", stop_fd, &text, &len);
	if (r == -EIO) /* an rpm that does not know one of the tags says so and ends */
		r = query(command, dbpath, FORMAT_BASIC "\\n", stop_fd, &text, &len);
	if (r < 0)
		return r == -ENOENT ? -ENOPKG : r;
	return rpm_parse(inv, text, len, db);
}
