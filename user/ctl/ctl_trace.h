/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VSR_CTL_CTL_TRACE_H
#define VSR_CTL_CTL_TRACE_H

#include "ctl.h"

/* `vsock-relayctl trace packets|flows|latency|alarms`: docs/tracing.md. */
extern const struct ctl_command trace_commands[];

#endif
