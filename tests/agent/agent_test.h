/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tests of the agent share: inventories without error handling, and trees of files.
 */
#ifndef VSR_AGENT_TEST_H
#define VSR_AGENT_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <ftw.h>
#include <sys/stat.h>

#include "agent/inventory.h"
#include "agent/rootfs.h"

_unused_ static struct inventory *new_inventory(void)
{
	struct inventory *inv = NULL;

	assert_int_equal(inventory_new(&inv), 0);
	return inv;
}

/* The package of that name; fails the test if there is none. */
_unused_ static const struct package *find_package(const struct inventory *inv, const char *name)
{
	for (size_t i = 0; i < inv->n_packages; i++)
		if (streq(inv->packages[i].name, name))
			return &inv->packages[i];
	fail_msg("no package %s", name);
	return NULL;
}

/* A new directory to build a tree in; remove_tree() ends it and frees the name. */
_unused_ static char *new_tree(void)
{
	char *path = strdup("/tmp/vsr-agent-test-XXXXXX");

	assert_non_null(path);
	assert_non_null(mkdtemp(path));
	return path;
}

_unused_ static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st, (void)type, (void)ftw;
	return remove(path);
}

_unused_ static void remove_tree(char *path)
{
	assert_int_equal(nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
	free(path);
}

/* Makes all directories of tree/name, and name itself if it ends with a slash. */
_unused_ static void make_dirs(const char *tree, const char *name)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/%s", tree, name);
	for (char *p = path + strlen(tree) + 1; (p = strchr(p, '/')); p++) {
		*p = '\0';
		mkdir(path, 0755);
		*p = '/';
	}
}

_unused_ static void write_bytes(const char *tree, const char *name, const void *data, size_t n)
{
	char path[512];
	FILE *f;

	make_dirs(tree, name);
	snprintf(path, sizeof(path), "%s/%s", tree, name);
	f = fopen(path, "we");
	assert_non_null(f);
	assert_int_equal(fwrite(data, 1, n, f), n);
	assert_int_equal(fclose(f), 0);
}

_unused_ static void write_text(const char *tree, const char *name, const char *text)
{
	write_bytes(tree, name, text, strlen(text));
}

_unused_ static struct rootfs open_tree(const char *tree)
{
	struct rootfs root;

	assert_int_equal(rootfs_open(tree, &root), 0);
	return root;
}

#endif
