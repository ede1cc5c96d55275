/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For LD_PRELOAD: each place of the program that calls the system, the allocator or a library that
 * may fail gets a failure once, the first time that it is reached. The places that had theirs are
 * marked in a file, so that a program that is run again and again gets further each time
 * (tests/lib/faults.py). What libraries call among themselves is left alone.
 *
 *   VSR_FAULTS_PROGRAM  what to run so; its children are other programs, and spared
 *   VSR_FAULTS_MARKS    the file, one byte for each byte of the program's code: 0, or 1 + the
 *                       function's place in the list below
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
#define POSITIVE ((long)EAGAIN)

#define FUNCTIONS(X)                                                                                                                                                                                                        \
	X(malloc, MEMORY)                                                                                                                                                                                                   \
	X(calloc, MEMORY) X(realloc, MEMORY) X(open, SYSTEM) X(openat, SYSTEM) X(read, SYSTEM) X(                                                                                                                           \
		pread,                                                                                                                                                                                                      \
		SYSTEM) X(write,                                                                                                                                                                                            \
			  SYSTEM) X(pwrite,                                                                                                                                                                                 \
				    SYSTEM) X(writev,                                                                                                                                                                       \
					      SYSTEM) X(send,                                                                                                                                                               \
							SYSTEM) X(sendto,                                                                                                                                                   \
								  SYSTEM) X(sendmsg,                                                                                                                                        \
									    SYSTEM) X(recv,                                                                                                                                 \
										      SYSTEM)                                                                                                                               \
		X(recvmsg, SYSTEM) X(socket, SYSTEM) X(bind, SYSTEM) X(listen, SYSTEM) X(connect, SYSTEM) X(accept4, SYSTEM) X(poll, SYSTEM) X(ioctl, SYSTEM) X(getsockopt, SYSTEM) X(                                      \
			setsockopt,                                                                                                                                                                                         \
			SYSTEM) X(getsockname, SYSTEM) X(getpeername, SYSTEM)                                                                                                                                               \
			X(fstat, SYSTEM) X(stat, SYSTEM) X(lstat, SYSTEM) X(fstatat, SYSTEM) X(mkdir, SYSTEM) X(mkdirat, SYSTEM) X(unlink, SYSTEM) X(unlinkat, SYSTEM) X(renameat, SYSTEM) X(                               \
				fsync, SYSTEM) X(fchown,                                                                                                                                                                    \
						 SYSTEM) X(fchownat,                                                                                                                                                        \
							   SYSTEM) X(lchown,                                                                                                                                                \
								     SYSTEM) X(fchmod,                                                                                                                                      \
									       SYSTEM) X(chmod,                                                                                                                             \
											 SYSTEM)                                                                                                                            \
				X(flock, SYSTEM) X(fcntl, SYSTEM) X(access, SYSTEM) X(statfs, SYSTEM) X(fstatfs, SYSTEM) X(fstatvfs, SYSTEM) X(ftruncate, SYSTEM) X(dup2, SYSTEM) X(dup3, SYSTEM) X(pipe2, SYSTEM) X(       \
					eventfd, SYSTEM) X(signalfd,                                                                                                                                                        \
							   SYSTEM) X(mmap,                                                                                                                                                  \
								     SYSTEM) X(mremap,                                                                                                                                      \
									       SYSTEM) X(prctl,                                                                                                                             \
											 SYSTEM)                                                                                                                            \
					X(setresuid, SYSTEM) X(setresgid, SYSTEM) X(setgroups, SYSTEM) X(getresuid, SYSTEM) X(getresgid, SYSTEM) X(getgroups, SYSTEM) X(                                                    \
						setns, SYSTEM) X(sigaction,                                                                                                                                                 \
								 SYSTEM) X(sigprocmask,                                                                                                                                     \
									   SYSTEM) X(uname,                                                                                                                                 \
										     SYSTEM)                                                                                                                                \
						X(getrlimit, SYSTEM) X(setrlimit, SYSTEM) X(getrusage, SYSTEM) X(syscall, SYSTEM) X(gethostname, SYSTEM) X(                                                                 \
							getrandom, SYSTEM) X(tcgetattr,                                                                                                                                     \
									     SYSTEM) X(tcsetattr, SYSTEM)                                                                                                                   \
							X(fflush, SYSTEM) X(waitpid, SYSTEM) X(fopen, NOTHING) X(fdopen, NOTHING) X(opendir, NOTHING) X(fdopendir, NOTHING) X(                                              \
								readdir,                                                                                                                                                    \
								NOTHING) X(open_memstream,                                                                                                                                  \
									   MEMORY) X(fmemopen,                                                                                                                              \
										     MEMORY) X(realpath,                                                                                                                    \
											       NOTHING) X(reallocarray, MEMORY)                                                                                             \
								X(strdup, MEMORY) X(strndup, MEMORY) X(pthread_create, POSITIVE) X(pthread_mutex_init, POSITIVE) X(                                                         \
									pthread_cond_init,                                                                                                                                  \
									POSITIVE) X(pthread_condattr_init, POSITIVE) X(posix_spawnp,                                                                                        \
														       POSITIVE) X(getpwnam_r,                                                                              \
																   POSITIVE) X(getpwuid_r,                                                                  \
																	       POSITIVE) X(getgrnam_r,                                                      \
																			   POSITIVE) X(getgrouplist,                                        \
																				       SYSTEM) X(posix_spawnattr_init,                      \
																						 POSITIVE) X(posix_spawn_file_actions_init, \
																							     POSITIVE)                      \
									X(sd_event_default, NEGATIVE) X(sd_event_add_io, NEGATIVE) X(sd_event_add_time, NEGATIVE) X(                                                        \
										sd_event_add_time_relative,                                                                                                                 \
										NEGATIVE) X(sd_event_add_signal, NEGATIVE) X(sd_event_add_defer,                                                                            \
															     NEGATIVE) X(sd_event_add_post,                                                                 \
																	 NEGATIVE)                                                                          \
										X(sd_event_add_inotify, NEGATIVE) X(sd_event_set_watchdog, NEGATIVE) X(sd_event_source_set_priority, NEGATIVE) X(                           \
											sd_journal_sendv,                                                                                                                   \
											NEGATIVE) X(MHD_create_response_from_buffer,                                                                                        \
												    MEMORY) X(MHD_add_response_header,                                                                                      \
													      MEMORY) X(MHD_queue_response, MEMORY)                                                                         \
											X(MHD_get_daemon_info,                                                                                                              \
											  MEMORY) X(MHD_add_connection,                                                                                                     \
												    MEMORY) X(MHD_get_connection_info,                                                                                      \
													      MEMORY) X(SSL_CTX_new, MEMORY)                                                                                \
												X(SSL_new, MEMORY) X(SSL_set_fd, MEMORY) X(SSL_set1_host, MEMORY) X(                                                        \
													SSL_set_alpn_protos,                                                                                                \
													POSITIVE) X(SSL_CTX_use_certificate,                                                                                \
														    MEMORY) X(SSL_CTX_use_PrivateKey,                                                                       \
															      MEMORY) X(SSL_CTX_set_alpn_protos, POSITIVE)                                                  \
													X(BIO_new_mem_buf, MEMORY) X(cap_get_proc, MEMORY) X(cap_init, MEMORY) X(                                           \
														cap_set_proc,                                                                                               \
														SYSTEM) X(cap_get_bound, SYSTEM) X(cap_drop_bound, SYSTEM)                                                  \
														X(cap_get_flag,                                                                                             \
														  SYSTEM) X(cap_reset_ambient,                                                                              \
															    SYSTEM) X(cap_get_ambient,                                                                      \
																      SYSTEM) X(cap_compare, SYSTEM)                                                        \
															X(json_object, MEMORY) X(json_array, MEMORY) X(                                                     \
																json_string, MEMORY) X(json_integer,                                                        \
																		       MEMORY) X(json_dumps,                                                \
																				 MEMORY) X(json_loads,                                      \
																					   MEMORY)                                          \
																X(json_array_append_new,                                                                    \
																  SYSTEM) X(json_object_set_new,                                                            \
																	    SYSTEM) X(yaml_parser_initialize,                                               \
																		      MEMORY) X(XXH64_createState, MEMORY)                                  \
																	X(ZSTD_createCCtx,                                                                  \
																	  MEMORY) X(ZSTD_createDCtx,                                                        \
																		    MEMORY) X(ares_init_options,                                            \
																			      ARES_ENOMEM) X(nghttp2_session_callbacks_new,                 \
																					     NGHTTP2_ERR_NOMEM)                             \
																		X(nghttp2_session_client_new,                                               \
																		  NGHTTP2_ERR_NOMEM) X(nghttp2_submit_settings,                             \
																				       NGHTTP2_ERR_NOMEM)                                   \
																			X(nghttp2_submit_ping,                                              \
																			  NGHTTP2_ERR_NOMEM) X(nghttp2_submit_request,                      \
																					       NGHTTP2_ERR_NOMEM)                           \
																				X(nghttp2_submit_rst_stream,                                \
																				  NGHTTP2_ERR_NOMEM)                                        \
																					X(nghttp2_session_mem_recv,                         \
																					  NGHTTP2_ERR_NOMEM)                                \
																						X(nghttp2_session_send,                     \
																						  NGHTTP2_ERR_NOMEM)

/* Those that are written out below. */
#define BY_HAND(X) X(asprintf, ) X(vasprintf, ) X(json_pack, ) X(MHD_start_daemon, )

enum function {
#define X(name, failure) F_##name,
	FUNCTIONS(X) BY_HAND(X)
#undef X
		F_MAX
};

const char *const vsr_fault_names[] = {
#define X(name, failure) #name,
	FUNCTIONS(X) BY_HAND(X)
#undef X
		NULL
};

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
	if (spare && strncmp(vsr_fault_names[f], spare, strlen(spare)) == 0)
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
		real[f] = (any_function)dlsym(RTLD_NEXT, vsr_fault_names[f]);
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
FUNCTIONS(X)
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

json_t *json_pack(const char *format, ...)
{
	json_t *j;
	va_list ap;

	if (fails(CALLER, F_json_pack))
		return NULL;
	va_start(ap, format);
	j = ((json_t * (*)(json_error_t *, size_t, const char *, va_list))
		     dlsym(RTLD_NEXT, "json_vpack_ex"))(NULL, 0, format, ap);
	va_end(ap);
	return j;
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
