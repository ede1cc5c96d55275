/* SPDX-License-Identifier: Apache-2.0 */
#include "rootfs.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>

int rootfs_open(const char *path, struct rootfs *ret)
{
	int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	ret->path = path;
	ret->fd = fd;
	return 0;
}

void rootfs_close(struct rootfs *root)
{
	root->fd = safe_close(root->fd);
}

bool rootfs_is_system(const struct rootfs *root)
{
	return streq(root->path, "/");
}

static int open_below(const struct rootfs *root, const char *name, int flags)
{
	/* A FIFO must not stop us; openat2() refuses the flag beside O_PATH, which never waits. */
	int all = flags | O_CLOEXEC | (flags & O_PATH ? 0 : O_NONBLOCK);
	struct open_how how = { .flags = all, .resolve = RESOLVE_IN_ROOT };
	int fd;

	if (!rootfs_is_system(root)) {
		fd = syscall(SYS_openat2, root->fd, name, &how, sizeof(how));
		if (fd >= 0)
			return fd;
		if (errno != ENOSYS)
			return -errno;
	}
	fd = openat(root->fd, name, all);
	return fd < 0 ? -errno : fd;
}

int rootfs_read(const struct rootfs *root, const char *name, size_t max, char **ret,
		size_t *ret_len)
{
	_cleanup_close_ int fd = -1;
	_cleanup_free_ char *data = NULL;
	size_t len = 0, room = 0;
	struct stat st;

	fd = open_below(root, name, O_RDONLY);
	if (fd < 0)
		return fd;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EINVAL;

	for (;;) {
		ssize_t n;

		/* Files of sysfs claim 4096 bytes and others may grow while they are read. */
		if (len == room) {
			char *bigger;

			room = room ? room * 2 : MAX((size_t)st.st_size, (size_t)4096);
			room = MIN(room, max + 1);
			bigger = len < room ? realloc(data, room + 1) : NULL;
			if (!bigger)
				return len < room ? -ENOMEM : -EFBIG;
			data = bigger;
		}
		n = read(fd, data + len, room - len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		len += n;
		if (len > max)
			return -EFBIG;
	}
	data[len] = '\0';
	*ret = TAKE_PTR(data);
	*ret_len = len;
	return 0;
}

int rootfs_exists(const struct rootfs *root, const char *name)
{
	_cleanup_close_ int fd = open_below(root, name, O_PATH);

	if (fd >= 0)
		return 1;
	return fd == -ENOENT || fd == -ENOTDIR ? 0 : fd;
}

int rootfs_is_directory(const struct rootfs *root, const char *name)
{
	_cleanup_close_ int fd = open_below(root, name, O_PATH | O_DIRECTORY);

	return fd >= 0;
}

void rootfs_names_free(char **names, size_t n)
{
	for (size_t i = 0; i < n; i++)
		free(names[i]);
	free(names);
}

static void closedirp(DIR **d)
{
	if (*d)
		closedir(*d);
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Adds to *names, which the caller frees whatever happens. */
static int read_names(DIR *dir, size_t max, char ***names, size_t *n)
{
	size_t room = 0;

	for (;;) {
		struct dirent *entry;

		errno = 0;
		entry = readdir(dir);
		if (!entry)
			return -errno;
		if (entry->d_name[0] == '.')
			continue;
		if (*n == max)
			return -E2BIG;
		if (*n == room) {
			char **bigger;

			room = room ? room * 2 : 64;
			bigger = reallocarray(*names, room, sizeof(*bigger));
			if (!bigger)
				return -ENOMEM;
			*names = bigger;
		}
		(*names)[*n] = strdup(entry->d_name);
		if (!(*names)[*n])
			return -ENOMEM;
		(*n)++;
	}
}

int rootfs_list(const struct rootfs *root, const char *name, size_t max, char ***ret, size_t *ret_n)
{
	_cleanup_(closedirp)
	DIR *dir = NULL;
	_cleanup_close_ int fd = -1;
	char **names = NULL;
	size_t n = 0;
	int r;

	fd = open_below(root, name, O_RDONLY | O_DIRECTORY);
	if (fd < 0)
		return fd;
	dir = fdopendir(fd);
	if (!dir)
		return -errno;
	TAKE_FD(fd);

	r = read_names(dir, max, &names, &n);
	if (r < 0) {
		rootfs_names_free(names, n);
		return r;
	}
	if (n > 0)
		qsort(names, n, sizeof(*names), compare_names);
	*ret = names;
	*ret_n = n;
	return 0;
}
