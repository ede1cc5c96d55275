/* SPDX-License-Identifier: Apache-2.0 */
#include "discovery.h"

#define NAMES_MAX 10000

struct names {
	char **names;
	size_t n;
};

static void names_done(struct names *l)
{
	rootfs_names_free(l->names, l->n);
}

static bool has_suffix(const char *s, const char *suffix)
{
	size_t n = strlen(s), m = strlen(suffix);

	return n > m && streq(s + n - m, suffix);
}

/* Whether the list has the certificate of the key: N.pem for N-key.pem. */
static bool has_certificate(const struct names *l, const char *key)
{
	size_t base = strlen(key) - strlen("-key.pem");

	for (size_t i = 0; i < l->n; i++)
		if (strncmp(l->names[i], key, base) == 0 && streq(l->names[i] + base, ".pem"))
			return true;
	return false;
}

enum activation discovery_activation(const struct rootfs *root)
{
	_cleanup_(names_done)
	struct names l = {};

	if (rootfs_list(root, "etc/pki/entitlement", NAMES_MAX, &l.names, &l.n) < 0)
		return ACTIVATION_UNKNOWN;
	for (size_t i = 0; i < l.n; i++)
		if (has_suffix(l.names[i], "-key.pem") && has_certificate(&l, l.names[i]))
			return ACTIVATION_ACTIVE;
	return ACTIVATION_INACTIVE;
}

/* Returns 1 if dir holds a directory whose name contains part, 0 if not, or a negative errno. */
static int has_directory(const struct rootfs *root, const char *dir, const char *part)
{
	_cleanup_(names_done)
	struct names l = {};
	int r;

	r = rootfs_list(root, dir, NAMES_MAX, &l.names, &l.n);
	if (r < 0)
		return r;
	for (size_t i = 0; i < l.n; i++) {
		_cleanup_free_ char *path = NULL;

		if (!strstr(l.names[i], part))
			continue;
		if (asprintf(&path, "%s/%s", dir, l.names[i]) < 0) {
			path = NULL;
			return -ENOMEM;
		}
		if (rootfs_is_directory(root, path))
			return 1;
	}
	return 0;
}

/* The same for a file with that suffix. */
static int has_file(const struct rootfs *root, const char *dir, const char *suffix)
{
	_cleanup_(names_done)
	struct names l = {};
	int r;

	r = rootfs_list(root, dir, NAMES_MAX, &l.names, &l.n);
	if (r < 0)
		return r;
	for (size_t i = 0; i < l.n; i++)
		if (has_suffix(l.names[i], suffix))
			return 1;
	return 0;
}

enum dnf_metadata discovery_dnf_metadata(const struct rootfs *root)
{
	int repositories = has_file(root, "etc/yum.repos.d", ".repo");
	int dnf4 = has_directory(root, "var/cache/dnf", "-rpms-");
	int dnf5 = has_directory(root, "var/cache/libdnf5", "");

	if (repositories < 0)
		return DNF_METADATA_UNKNOWN;
	if (repositories == 0)
		return DNF_METADATA_UNAVAILABLE;
	if (dnf4 > 0 || dnf5 > 0)
		return DNF_METADATA_AVAILABLE;
	return dnf4 < 0 && dnf5 < 0 ? DNF_METADATA_UNKNOWN : DNF_METADATA_UNAVAILABLE;
}
