/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loaded into a relay by LD_PRELOAD: leaks 64 KiB with each descriptor that is closed, so with each
 * connection, and a descriptor with each sixteenth. For tests/vm/soak.py, which has to find both.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LEAK_BYTES   (64U * 1024)
#define LEAK_FD_EACH 16U

int close(int fd)
{
	static unsigned int closed;
	void *volatile leaked = malloc(LEAK_BYTES);

	if (leaked)
		memset(leaked, 1, LEAK_BYTES);
	if (__atomic_add_fetch(&closed, 1, __ATOMIC_RELAXED) % LEAK_FD_EACH == 0)
		(void)eventfd(0, EFD_CLOEXEC);
	return (int)syscall(SYS_close, fd);
}
