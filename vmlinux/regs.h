/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * vmlinux.h is that of an amd64 kernel. CO-RE finds fields where the running kernel has them, also on
 * another machine, but what a machine alone has must be declared: on arm64 the registers that a probe
 * sees, which bpf_tracing.h reads as struct user_pt_regs (the kernel's asm/ptrace.h for user space).
 */
#ifndef VSR_VMLINUX_REGS_H
#define VSR_VMLINUX_REGS_H

#include "vmlinux.h"

#ifdef __TARGET_ARCH_arm64
struct user_pt_regs {
	__u64 regs[31];
	__u64 sp;
	__u64 pc;
	__u64 pstate;
};
#endif

#endif
