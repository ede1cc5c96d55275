/* SPDX-License-Identifier: Apache-2.0 */
#include "reason.h"

static const struct {
	const char *name;
	const char *words;
	enum vsr_status status;
	bool offence;
} reasons[REASON_MAX] = { [REASON_NONE] = { "none", "none", VSR_STATUS_ACCEPTED, false },
#define X(id, n, s, o, w) \
	[REASON_##id] = { .name = (n), .words = (w), .status = (s), .offence = (o) },
			  REASONS(X)
#undef X
};

const char *reason_name(enum reason r)
{
	return reasons[r].name;
}

const char *reason_words(enum reason r)
{
	return reasons[r].words;
}

enum vsr_status reason_status(enum reason r)
{
	return reasons[r].status;
}

bool reason_is_offence(enum reason r)
{
	return reasons[r].offence;
}
