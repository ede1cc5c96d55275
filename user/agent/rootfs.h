/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads files of the machine that is being inventoried: "/" or, with --root, a tree that lies
 * below another directory. Links inside such a tree are resolved inside it where the kernel can
 * (openat2, Linux 5.6).
 */
#ifndef VSR_AGENT_ROOTFS_H
#define VSR_AGENT_ROOTFS_H

#include "util.h"

struct rootfs {
	const char *path;
	int fd;
};

/* path must outlive root. Returns 0, or a negative errno of open(2). */
int rootfs_open(const char *path, struct rootfs *ret);
void rootfs_close(struct rootfs *root);
bool rootfs_is_system(const struct rootfs *root);

/*
 * Reads the whole regular file name, a path without leading slash, into memory that the caller
 * frees; a NUL follows the last byte. Returns 0, -EFBIG (longer than max bytes), -EINVAL (no
 * regular file), -ENOMEM, or a negative errno of open(2) and read(2).
 */
int rootfs_read(const struct rootfs *root, const char *name, size_t max, char **ret,
		size_t *ret_len);

/* 1 if name exists (links followed), 0 if not, or a negative errno. */
int rootfs_exists(const struct rootfs *root, const char *name);

/*
 * The names in the directory, sorted bytewise, without those that begin with a dot; the caller
 * frees them with rootfs_names_free(). Returns 0, -E2BIG (more than max names), -ENOMEM, or a
 * negative errno of open(2) and readdir(3).
 */
int rootfs_list(const struct rootfs *root, const char *name, size_t max, char ***ret,
		size_t *ret_n);
void rootfs_names_free(char **names, size_t n);

/* 1 if name is a directory, 0 if it is something else or missing. */
int rootfs_is_directory(const struct rootfs *root, const char *name);

#endif
