/* SPDX-License-Identifier: Apache-2.0 */
/* The commands of each object, for the table in main.c. */
#ifndef VSR_CTL_COMMANDS_H
#define VSR_CTL_COMMANDS_H

#include "ctl.h"

extern const struct ctl_command ctl_status_commands[]; /* status.c */
extern const struct ctl_command ctl_vm_commands[];     /* vms.c */
extern const struct ctl_command ctl_top_commands[];    /* top.c */
extern const struct ctl_command ctl_cache_commands[];  /* act.c, as the next four */
extern const struct ctl_command ctl_retry_commands[];
extern const struct ctl_command ctl_flush_commands[];
extern const struct ctl_command ctl_reload_commands[];
extern const struct ctl_command ctl_loglevel_commands[];
extern const struct ctl_command ctl_doctor_commands[]; /* doctor.c */
extern const struct ctl_command ctl_maps_commands[];   /* maps.c */
extern const struct ctl_command ctl_bundle_commands[]; /* bundle.c */
extern const struct ctl_command ctl_trace_commands[];  /* ctl_trace.c */

#endif
