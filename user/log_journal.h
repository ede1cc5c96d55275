/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The journal as the log's sink: MESSAGE and PRIORITY, and what an event is about as fields of its
 * own, so that `journalctl VSR_VM=0:42` finds it:
 *
 *   VSR_VM          "NAMESPACE:CID"
 *   VSR_NS, VSR_CID the same, apart
 *   VSR_REASON      why, as the `reason` label of the metrics says it
 *   VSR_GENERATION  of the VM's content
 *   VSR_HELD_BACK   events of this VM and reason that were not logged
 */
#ifndef VSR_LOG_JOURNAL_H
#define VSR_LOG_JOURNAL_H

#include "log.h"

/* Whether standard error is connected to the journal, as systemd says in JOURNAL_STREAM. */
bool log_journal_is_ours(void);

/* A log_sink_t. Returns 0, or negative errno of sd_journal_sendv(). */
int log_journal_send(const struct log_entry *e);

#endif
