/* SPDX-License-Identifier: Apache-2.0 */
#include "answer.h"

static const struct {
	enum verdict verdict;
	const char *words;
} statuses[] = {
	[VSR_STATUS_ACCEPTED] = { VERDICT_DONE, "accepted: the relay has taken the report over" },
	[VSR_STATUS_NOTHING_TO_DO] = { VERDICT_DONE,
				       "nothing to do: the relay has this report already" },
	[VSR_STATUS_BUSY] = { VERDICT_RETRY, "the relay is busy" },
	[VSR_STATUS_TOO_LARGE] = { VERDICT_REFUSED,
				   "too large for the relay: raise its report limit" },
	[VSR_STATUS_MALFORMED] = { VERDICT_REFUSED,
				   "malformed: the relay cannot read this as a VMReport; compare "
				   "the versions of agent and relay, or check the file" },
	[VSR_STATUS_CID_MISMATCH] = { VERDICT_REFUSED,
				      "CID mismatch: the report names another CID than the "
				      "connection comes from; check --cid or the file" },
	[VSR_STATUS_DIGEST_MISMATCH] = { VERDICT_REFUSED,
					 "digest mismatch: the bytes changed on the way to the "
					 "relay; this is a fault of the transport or of a program" },
	[VSR_STATUS_INTERNAL] = { VERDICT_RETRY, "internal error of the relay: see its log" },
	[VSR_STATUS_REFUSED] = { VERDICT_REFUSED,
				 "refused by the relay's policy: see its log for the reason" },
	[VSR_STATUS_DEADLINE] = { VERDICT_RETRY,
				  "the relay's deadline passed before the report was complete" },
};

enum verdict answer_verdict(const struct send_result *r)
{
	switch (r->end) {
	case SEND_ANSWERED:
		return statuses[r->status].verdict;
	case SEND_CLOSED:
		return VERDICT_DONE;
	case SEND_UNREACHABLE:
	case SEND_REFUSED:
	case SEND_CUT:
	case SEND_TIMEOUT:
		return VERDICT_RETRY;
	case SEND_STOPPED:
		return VERDICT_STOPPED;
	case SEND_BAD_ANSWER:
		break;
	}
	return VERDICT_REFUSED;
}

enum exit_code answer_exit_code(const struct send_result *r)
{
	switch (answer_verdict(r)) {
	case VERDICT_DONE:
		return AGENT_EXIT_OK;
	case VERDICT_REFUSED:
		return r->end == SEND_BAD_ANSWER ? AGENT_EXIT_PROTOCOL : AGENT_EXIT_REFUSED;
	case VERDICT_RETRY:
		if (r->end == SEND_UNREACHABLE && (r->error == EAFNOSUPPORT || r->error == ENODEV))
			return AGENT_EXIT_UNAVAILABLE;
		break;
	case VERDICT_STOPPED:
		break;
	}
	return AGENT_EXIT_TEMPORARY;
}

/* Why there is no connection, where the errno's own text would lead astray. */
static const char *unreachable_words(int error)
{
	switch (error) {
	case EAFNOSUPPORT:
		return "this kernel has no AF_VSOCK (modprobe vsock)";
	case ENODEV:
		return "no vsock device leads to the host (modprobe vmw_vsock_virtio_transport; the "
		       "VM needs a vsock device)";
	case ECONNRESET:
	case ECONNREFUSED:
		return "nobody listens on that port: the relay does not run there, or is full";
	case EAGAIN:
		return "the relay's queue is full";
	default:
		return strerror(error);
	}
}

char *answer_describe(const struct send_result *r, char buf[static ANSWER_TEXT_MAX])
{
	const char *why = r->error ? strerror(r->error) : "closed";

	switch (r->end) {
	case SEND_ANSWERED:
		snprintf(buf, ANSWER_TEXT_MAX, "%s (answer %u)", statuses[r->status].words,
			 r->status);
		break;
	case SEND_CLOSED:
		snprintf(buf, ANSWER_TEXT_MAX,
			 "all %zu bytes sent and the relay closed; raw mode has no answer, so "
			 "nothing says whether it accepted them",
			 r->sent);
		break;
	case SEND_UNREACHABLE:
		snprintf(buf, ANSWER_TEXT_MAX, "the relay cannot be reached: %s",
			 unreachable_words(r->error));
		break;
	case SEND_REFUSED:
		snprintf(buf, ANSWER_TEXT_MAX,
			 "the relay is busy: it ended the connection before it took a byte (%s)",
			 why);
		break;
	case SEND_CUT:
		snprintf(
			buf, ANSWER_TEXT_MAX,
			"the connection ended without an answer after %zu bytes of the report (%s)",
			r->sent, why);
		break;
	case SEND_TIMEOUT:
		snprintf(
			buf, ANSWER_TEXT_MAX,
			r->header + r->sent > 0
				? "no answer in time, %zu bytes of the report were sent"
				: "the relay let the connection wait until the time was up, %zu bytes "
				  "were sent",
			r->sent);
		break;
	case SEND_BAD_ANSWER:
		snprintf(buf, ANSWER_TEXT_MAX,
			 "what came back is no answer of a relay: check port and address, and the "
			 "relay's version");
		break;
	case SEND_STOPPED:
		snprintf(buf, ANSWER_TEXT_MAX, "stopped by a signal");
		break;
	}
	return buf;
}
