/* SPDX-License-Identifier: Apache-2.0 */
#include "upstream.h"

#include "log.h"

void upstream_log_damaged(const struct upstream_send *s)
{
	log_write_about(LOG_ERR,
			&(struct log_about){
				.vm = &s->vm, .reason = "damaged", .generation = s->generation },
			"report of VM %u:%u: its compressed copy in memory is damaged, which says "
			"that this machine's memory or vsock-relayd itself has a fault",
			s->vm.ns, s->vm.cid);
}
