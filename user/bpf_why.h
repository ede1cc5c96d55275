/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Why a wrapper of a BPF object failed: one line for people, beside the errno. libbpf explains
 * itself on stderr only, so what it would print while an object is loaded is caught here.
 * One thread at a time.
 */
#ifndef VSR_BPF_WHY_H
#define VSR_BPF_WHY_H

#include "util.h"

/* Remembers the line, and returns r. */
int bpf_fail(int r, const char *fmt, ...) _printf_(2, 3);

/* The line of the last bpf_fail(); "" if there was none. Static storage, until the next one. */
const char *bpf_why(void);

/* From here to bpf_hear_end() libbpf prints nothing, and its first warning is kept: the first
 * failure is the cause of the others. Not to be nested. */
void bpf_hear_begin(void);
void bpf_hear_end(void);

/* That warning, one line without libbpf's prefix; "" if there was none. Static storage, until the
 * next bpf_hear_begin(). */
const char *bpf_heard(void);

#endif
