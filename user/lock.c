/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include "lock.h"

/* "1: FLOCK  ADVISORY  WRITE 1234 00:1b:5678 0 EOF": the kernel's own word, where st_dev is the
 * number it prints (not on btrfs or overlayfs) and the pid is of our namespace. */
static pid_t holder_from_kernel(int fd)
{
	_cleanup_fclose_ FILE *f = fopen("/proc/locks", "re");
	unsigned long inode;
	unsigned int major_nr, minor_nr;
	struct stat st;
	char line[256];
	pid_t pid;

	if (!f || fstat(fd, &st) < 0)
		return 0;
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%*d: FLOCK %*s WRITE %d %x:%x:%lu", &pid, &major_nr, &minor_nr,
			   &inode) != 4)
			continue;
		if (pid > 0 && inode == st.st_ino && major_nr == major(st.st_dev) &&
		    minor_nr == minor(st.st_dev))
			return pid;
	}
	return 0;
}

/* What the holder wrote about itself. */
static pid_t holder_from_file(int fd)
{
	char text[24];
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
	pid_t pid;

	if (n <= 0)
		return 0;
	text[n] = '\0';
	return sscanf(text, "%d", &pid) == 1 && pid > 0 ? pid : 0;
}

static pid_t find_holder(int fd)
{
	pid_t pid = holder_from_kernel(fd);

	return pid > 0 ? pid : holder_from_file(fd);
}

static int write_pid(int fd)
{
	char text[24];
	int n = snprintf(text, sizeof(text), "%d\n", getpid());

	if (ftruncate(fd, 0) < 0)
		return -errno;
	if (pwrite(fd, text, (size_t)n, 0) != n)
		return errno ? -errno : -EIO;
	return 0;
}

static int open_directory(const char *directory, int *ret)
{
	int fd;

	if (mkdir(directory, 0755) < 0 && errno != EEXIST)
		return -errno;
	fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	*ret = fd;
	return 0;
}

static int open_file(int dir, int *ret)
{
	_cleanup_close_ int fd = -1;
	struct stat st;

	/* O_NONBLOCK: somebody may have put a FIFO there. */
	fd = openat(dir, LOCK_FILE, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0644);
	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EISDIR;
	*ret = TAKE_FD(fd);
	return 0;
}

int lock_acquire(const char *directory, int *ret_fd, pid_t *ret_holder)
{
	_cleanup_close_ int dir = -1, file = -1;
	struct statfs fs;
	bool is_bpf;
	int r;

	r = open_directory(directory, &dir);
	if (r < 0)
		return r;
	if (fstatfs(dir, &fs) < 0)
		return -errno;
	is_bpf = fs.f_type == BPF_FS_MAGIC;
	if (!is_bpf) {
		r = open_file(dir, &file);
		if (r < 0)
			return r;
	}
	if (flock(is_bpf ? dir : file, LOCK_EX | LOCK_NB) < 0) {
		r = -errno;
		if (r == -EWOULDBLOCK)
			*ret_holder = find_holder(is_bpf ? dir : file);
		return r;
	}
	if (!is_bpf) {
		r = write_pid(file);
		if (r < 0)
			return r;
	}
	*ret_fd = is_bpf ? TAKE_FD(dir) : TAKE_FD(file);
	return 0;
}
