/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small things that every file of user/ uses. The house style is systemd's: negative errno,
 * ret_ parameters untouched on failure, destructors that accept NULL and return NULL.
 */
#ifndef VSR_UTIL_H
#define VSR_UTIL_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define _cleanup_(f)	     __attribute__((cleanup(f)))
#define _printf_(fmt, first) __attribute__((format(printf, fmt, first)))
#define _unused_	     __attribute__((unused))
#define _noreturn_	     __attribute__((noreturn))

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b)                                  \
	({                                         \
		__typeof__(a) _min_a = (a);        \
		__typeof__(b) _min_b = (b);        \
		_min_a < _min_b ? _min_a : _min_b; \
	})
#define MAX(a, b)                                  \
	({                                         \
		__typeof__(a) _max_a = (a);        \
		__typeof__(b) _max_b = (b);        \
		_max_a > _max_b ? _max_a : _max_b; \
	})
#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

/* What stands offset bytes before the member, or NULL for NULL: container_of() where there may be
 * none. A function, so that who calls it has one thing to test, the result. */
static inline void *element_of(const void *member, size_t offset)
{
	return member ? (char *)member - offset : NULL;
}

/* Times are uint64_t microseconds of CLOCK_BOOTTIME, unless a name says otherwise. */
#define USEC_PER_MSEC 1000ULL
#define USEC_PER_SEC  1000000ULL
#define USEC_PER_MIN  (60 * USEC_PER_SEC)
#define USEC_PER_HOUR (60 * USEC_PER_MIN)
#define NSEC_PER_USEC 1000ULL
#define USEC_INFINITY UINT64_MAX

#define KIB 1024ULL
#define MIB (1024 * KIB)

/* a + b, or USEC_INFINITY where that would wrap. */
static inline uint64_t usec_add(uint64_t a, uint64_t b)
{
	return a > USEC_INFINITY - b ? USEC_INFINITY : a + b;
}

/* a - b, or 0 where b is later. */
static inline uint64_t usec_sub(uint64_t a, uint64_t b)
{
	return a > b ? a - b : 0;
}

static inline bool streq(const char *a, const char *b)
{
	return strcmp(a, b) == 0;
}

/* Returns the value of *p and leaves NULL behind: hands ownership out of a _cleanup_ variable. */
#define TAKE_PTR(p)                        \
	({                                 \
		__typeof__(p) _take = (p); \
		(p) = NULL;                \
		_take;                     \
	})

#define TAKE_FD(fd)               \
	({                        \
		int _take = (fd); \
		(fd) = -1;        \
		_take;            \
	})

/* Closes fd if it is one, keeps errno, returns -1. */
static inline int safe_close(int fd)
{
	if (fd >= 0) {
		int saved = errno;

		close(fd);
		errno = saved;
	}
	return -1;
}

static inline void freep(void *p)
{
	free(*(void **)p);
}

static inline void closep(int *fd)
{
	*fd = safe_close(*fd);
}

static inline void fclosep(FILE **f)
{
	if (*f)
		fclose(*f);
}

#define _cleanup_free_	 _cleanup_(freep)
#define _cleanup_close_	 _cleanup_(closep)
#define _cleanup_fclose_ _cleanup_(fclosep)

/* Defines what _cleanup_ needs for a destructor that accepts NULL: nameP(type **). */
#define DEFINE_CLEANUP(type, destructor)           \
	static inline void destructor##p(type **p) \
	{                                          \
		if (*p)                            \
			*p = destructor(*p);       \
	}                                          \
	struct vsr_cleanup_##destructor /* takes the semicolon */

#endif
