/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A stand-in for the kernel, with which ingest.bpf.c compiles as an ordinary program:
 * tests/test_verdict.c includes it and runs the verdict on packets that it makes up, since sk_skb
 * has no BPF_PROG_TEST_RUN. The test defines the functions that are only declared here.
 */
#ifndef VSR_NATIVE_H
#define VSR_NATIVE_H

#include <linux/bpf.h>

#define SETTING volatile
#define SEC(name)
#define __ksym
#define __weak
#undef __noinline
#undef __always_inline
#define __noinline	  __attribute__((noinline))
#define __always_inline	  inline __attribute__((always_inline))
#define __uint(name, val) int(*name)[val]
#define __type(name, val) __typeof__(val) *name

/* Those fields of the kernel's own types that the program reads. */
struct sock {
	struct {
		struct {
			int counter;
		} rmem_alloc;
	} sk_backlog;
	struct {
		struct {
			int counter;
		} refs;
	} sk_wmem_alloc;
};

struct sk_buff {
	unsigned int truesize;
	struct sock *sk;
};

void *bpf_map_lookup_elem(void *map, const void *key);
long bpf_map_update_elem(void *map, const void *key, const void *value, __u64 flags);
long bpf_skb_load_bytes(const struct __sk_buff *skb, __u32 off, void *to, __u32 len);
__u64 bpf_get_socket_cookie(struct __sk_buff *skb);
__u64 bpf_ktime_get_boot_ns(void);
void *bpf_ringbuf_reserve(void *ringbuf, __u64 size, __u64 flags);
void bpf_ringbuf_submit(void *data, __u64 flags);

#define bpf_loop(n, callback, ctx, flags)                          \
	do {                                                       \
		__u32 _i;                                          \
		for (_i = 0; _i < (n) && !callback(_i, ctx); _i++) \
			;                                          \
		(void)(flags);                                     \
	} while (0)

#endif
