/* SPDX-License-Identifier: Apache-2.0 */
#include "vm_json.h"

json_t *json_age(uint64_t then, uint64_t now)
{
	/* Milliseconds are enough, and short. */
	return then ? json_real((double)(usec_sub(now, then) / USEC_PER_MSEC) / 1000) : json_null();
}

static json_t *age_ns(uint64_t then, uint64_t now)
{
	return json_age(then / NSEC_PER_USEC, now);
}

static json_t *state_json(const struct vsr_vm_state *s, uint64_t now)
{
	char digest[17];

	snprintf(digest, sizeof(digest), "%016llx", (unsigned long long)s->record_digest);
	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:o, s:I, s:b, s:o, s:o, s:I}", "received",
			 (json_int_t)s->received, "accepted", (json_int_t)s->accepted, "duplicates",
			 (json_int_t)s->duplicates, "refused", (json_int_t)s->refused,
			 "record_length", (json_int_t)s->record_length, "record_digest",
			 s->record_length ? json_string(digest) : json_null(), "generation",
			 (json_int_t)s->generation, "custody", s->custody != 0, "last_accepted_age",
			 age_ns(s->last_accepted_ns, now), "last_ack_age",
			 age_ns(s->last_ack_ns, now), "debt", (json_int_t)s->debt);
}

static json_t *seen_json(const struct vsr_vm_seen *s, uint64_t now)
{
	return json_pack("{s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
			 "first_seen_age", age_ns(s->first_seen_ns, now), "last_seen_age",
			 age_ns(s->last_seen_ns, now), "connections", (json_int_t)s->connections,
			 "packets", (json_int_t)s->packets, "bytes", (json_int_t)s->bytes,
			 "bytes_known", (json_int_t)s->bytes_known, "duplicates",
			 (json_int_t)s->duplicates, "zero_length", (json_int_t)s->zero_length,
			 "bad_header", (json_int_t)s->bad_header, "too_large",
			 (json_int_t)s->too_large, "bad_packet", (json_int_t)s->bad_packet,
			 "over_budget", (json_int_t)s->over_budget, "unread_updates",
			 (json_int_t)s->unread_updates);
}

json_t *vm_json(const struct vsr_vm_id *id, const struct vsr_vm_state *state,
		const struct vsr_vm_seen *seen, json_t *live, uint64_t now)
{
	return json_pack("{s:I, s:I, s:o, s:o, s:o}", "ns", (json_int_t)id->ns, "cid",
			 (json_int_t)id->cid, "daemon",
			 state ? state_json(state, now) : json_null(), "kernel",
			 seen ? seen_json(seen, now) : json_null(), "now",
			 live ? live : json_null());
}
