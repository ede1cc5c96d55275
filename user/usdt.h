/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon's probes for bpftrace, perf, bcc and our own `vsock-relayctl trace` (USDT, provider
 * `vsock_relay`). Each is one nop and a note in the ELF file (section .note.stapsdt) until somebody
 * attaches: no call, no branch, no I/O, so they stand in the core too. docs/tracing.md has an
 * example for each.
 *
 * Name and arguments are an interface: append, never change.
 *
 *   received   ns cid port bytes framed        a report has come in whole; now it is judged
 *   accepted   ns cid port generation bytes    custody has begun (SPEC 2)
 *   duplicate  ns cid port bytes offer         it is known: nothing to do. offer 1: known by its
 *                                              header, so that it was never received
 *   refused    ns cid reason detail            a connection is refused: strings, the reason as in
 *                                              the metrics; detail may be NULL
 *   sent       ns cid generation bytes         handed to the upstream
 *   retried    ns cid generation bytes         the same, and not for the first time: comes right
 *                                              after its `sent`
 *   acked      ns cid generation               the upstream has taken this generation
 *
 *   ns, cid (u32)    the VM
 *   port (u32)       of its connection; 0 on a hybrid socket
 *   generation (u64) one acceptance, numbered per VM; 0: of content that was never in custody
 *   bytes (u64)      of the payload
 */
#ifndef VSR_USDT_H
#define VSR_USDT_H

#include <sys/sdt.h>

#include "vsr_abi.h"

#define USDT_RECEIVED(vm, port, bytes, framed)                                    \
	DTRACE_PROBE5(vsock_relay, received, (vm).ns, (vm).cid, (uint32_t)(port), \
		      (uint64_t)(bytes), (uint32_t)(framed))
#define USDT_ACCEPTED(vm, port, generation, bytes)                                \
	DTRACE_PROBE5(vsock_relay, accepted, (vm).ns, (vm).cid, (uint32_t)(port), \
		      (uint64_t)(generation), (uint64_t)(bytes))
#define USDT_DUPLICATE(vm, port, bytes, offer)                                     \
	DTRACE_PROBE5(vsock_relay, duplicate, (vm).ns, (vm).cid, (uint32_t)(port), \
		      (uint64_t)(bytes), (uint32_t)(offer))
#define USDT_REFUSED(vm, reason, detail) \
	DTRACE_PROBE4(vsock_relay, refused, (vm).ns, (vm).cid, (reason), (detail))
#define USDT_SENT(vm, generation, bytes)                                            \
	DTRACE_PROBE4(vsock_relay, sent, (vm).ns, (vm).cid, (uint64_t)(generation), \
		      (uint64_t)(bytes))
#define USDT_RETRIED(vm, generation, bytes)                                            \
	DTRACE_PROBE4(vsock_relay, retried, (vm).ns, (vm).cid, (uint64_t)(generation), \
		      (uint64_t)(bytes))
#define USDT_ACKED(vm, generation) \
	DTRACE_PROBE3(vsock_relay, acked, (vm).ns, (vm).cid, (uint64_t)(generation))

#endif
