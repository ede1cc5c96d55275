/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For LD_PRELOAD: each place of the program that calls the system, the allocator or a library that
 * may fail gets a failure once, the first time that it is reached. The places that had theirs are
 * marked in a file, so that a program that is run again and again gets further each time
 * (tests/lib/faults.py). What libraries call among themselves is left alone.
 *
 *   VSR_FAULTS_PROGRAM  what to run so; its children are other programs, and spared
 *   VSR_FAULTS_MARKS    the file, one byte for each byte of the program's code: 0, or 1 + the
 *                       function's place in BY_HAND and faults.list
 *   VSR_FAULTS_ERRNO    what system calls say, EIO
 *   VSR_FAULTS_LIMIT    at most so many failures in a run
 *   VSR_FAULTS_SPARE    functions whose names begin so never fail
 *
 * Arguments are passed on in registers, whatever their types: eight words are more than any of the
 * functions has, and those that take a format are written out.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <microhttpd.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <ares.h>
#include <jansson.h>
#include <nghttp2/nghttp2.h>

/* How the functions say that they failed. */
#define SYSTEM	 (errno = system_errno, -1L)
#define NOTHING	 (errno = system_errno, 0L) /* NULL, or false */
#define MEMORY	 (errno = ENOMEM, 0L)
#define NEGATIVE (-(long)ENOMEM)
#define BPF	 (errno = system_errno, -(long)system_errno)
#define POSITIVE ((long)EAGAIN)

/* Those that take a format, a list that ends somewhere, or a reference over: written out below. */
#define BY_HAND(X)   \
	X(asprintf)  \
	X(vasprintf) \
	X(json_pack) X(json_array_append_new) X(json_object_set_new) X(MHD_start_daemon)

#define X(name, ...) F_##name,
enum function {
	BY_HAND(X)
#include "faults.list"
		F_MAX
};
#undef X

#define X(name, ...) #name,
static const char *const names[] = { BY_HAND(X)
#include "faults.list"
};
#undef X

typedef long (*any_function)(long, long, long, long, long, long, long, long);

static any_function real[F_MAX];
static unsigned char *marks;
static const char *code, *code_end;
static int system_errno = EIO;
static int left = INT_MAX;
static const char *spare;
static bool over;

static void on_exit_begin(void)
{
	over = true; /* what a build with COV=1 writes now is not the program's */
}

static bool fails(const char *caller, enum function f)
{
	static bool registered;

	if (!marks || over || caller < code || caller >= code_end)
		return false;
	if (spare && strncmp(names[f], spare, strlen(spare)) == 0)
		return false;
	if (!__atomic_exchange_n(&registered, true, __ATOMIC_RELAXED))
		atexit(on_exit_begin);
	if (__atomic_load_n(&marks[caller - code], __ATOMIC_RELAXED) ||
	    __atomic_fetch_sub(&left, 1, __ATOMIC_RELAXED) <= 0)
		return false;
	return !__atomic_exchange_n(&marks[caller - code], 1 + f, __ATOMIC_RELAXED);
}

/* Other libraries may begin before we do. */
static any_function find(enum function f)
{
	if (!real[f])
		real[f] = (any_function)dlsym(RTLD_NEXT, names[f]);
	return real[f];
}

#define CALLER ((const char *)__builtin_return_address(0))

#define X(name, failure)                                                                 \
	long wrap_##name(long, long, long, long, long, long, long, long) __asm__(#name); \
	long wrap_##name(long a, long b, long c, long d, long e, long f, long g, long h) \
	{                                                                                \
		if (fails(CALLER, F_##name))                                             \
			return failure;                                                  \
		return find(F_##name)(a, b, c, d, e, f, g, h);                           \
	}
#include "faults.list"
#undef X

int asprintf(char **ret, const char *format, ...)
{
	va_list ap;
	int r;

	if (fails(CALLER, F_asprintf))
		return SYSTEM;
	va_start(ap, format);
	r = vasprintf(ret, format, ap);
	va_end(ap);
	return r;
}

int vasprintf(char **ret, const char *format, va_list ap)
{
	if (fails(CALLER, F_vasprintf))
		return SYSTEM;
	return ((int (*)(char **, const char *, va_list))dlsym(RTLD_NEXT, "vasprintf"))(ret, format,
											ap);
}

/* What was to be taken over is let go in any case. */
json_t *json_pack(const char *format, ...)
{
	json_t *j;
	va_list ap;

	va_start(ap, format);
	j = ((json_t * (*)(json_error_t *, size_t, const char *, va_list))
		     dlsym(RTLD_NEXT, "json_vpack_ex"))(NULL, 0, format, ap);
	va_end(ap);
	if (fails(CALLER, F_json_pack)) {
		json_decref(j);
		return NULL;
	}
	return j;
}

int json_array_append_new(json_t *array, json_t *value)
{
	if (fails(CALLER, F_json_array_append_new)) {
		json_decref(value);
		return -1;
	}
	return (int)find(F_json_array_append_new)((long)array, (long)value, 0, 0, 0, 0, 0, 0);
}

int json_object_set_new(json_t *object, const char *key, json_t *value)
{
	if (fails(CALLER, F_json_object_set_new)) {
		json_decref(value);
		return -1;
	}
	return (int)find(F_json_object_set_new)((long)object, (long)key, (long)value, 0, 0, 0, 0,
						0);
}

struct MHD_Daemon *MHD_start_daemon(unsigned int flags, uint16_t port, MHD_AcceptPolicyCallback apc,
				    void *apc_cls, MHD_AccessHandlerCallback dh, void *dh_cls, ...)
{
	struct MHD_Daemon *d;
	va_list ap;

	if (fails(CALLER, F_MHD_start_daemon))
		return NULL;
	va_start(ap, dh_cls);
	d = ((struct MHD_Daemon * (*)(unsigned int, uint16_t, MHD_AcceptPolicyCallback, void *,
				      MHD_AccessHandlerCallback, void *, va_list))
		     dlsym(RTLD_NEXT, "MHD_start_daemon_va"))(flags, port, apc, apc_cls, dh, dh_cls,
							      ap);
	va_end(ap);
	return d;
}

static int find_code(struct dl_phdr_info *info, size_t size, void *userdata)
{
	(void)size;
	(void)userdata;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *p = &info->dlpi_phdr[i];

		if (p->p_type == PT_LOAD && (p->p_flags & PF_X)) {
			code = (const char *)info->dlpi_addr;
			code_end = code + p->p_vaddr + p->p_memsz;
		}
	}
	return 1; /* the first is the program */
}

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("VSR_FAULTS_MARKS"), *program = getenv("VSR_FAULTS_PROGRAM");
	const char *number = getenv("VSR_FAULTS_ERRNO"), *limit = getenv("VSR_FAULTS_LIMIT");
	char self[4096] = "";
	void *p;
	int fd;

	/* All now: there is no looking for them in a sandbox. */
	for (int i = 0; i < F_MAX; i++)
		find(i);
	if (!path || !program || readlink("/proc/self/exe", self, sizeof(self) - 1) < 0 ||
	    strcmp(self, program) != 0)
		return;
	if (number)
		system_errno = atoi(number);
	spare = getenv("VSR_FAULTS_SPARE");
	if (limit)
		left = atoi(limit);
	dl_iterate_phdr(find_code, NULL);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || ftruncate(fd, code_end - code) < 0)
		abort();
	p = mmap(NULL, code_end - code, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		abort();
	close(fd);
	marks = p;
}
