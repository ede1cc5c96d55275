// SPDX-License-Identifier: Apache-2.0
#include "bpf_why.h"

#include <bpf/libbpf.h>
#include <stdarg.h>

static char why[512];
static char heard[384];
static libbpf_print_fn_t print_before;

int bpf_fail(int r, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	return r;
}

const char *bpf_why(void)
{
	return why;
}

_printf_(2, 0) static int hear(enum libbpf_print_level level, const char *fmt, va_list ap)
{
	const char *prefix = "libbpf: ";
	char line[sizeof(heard)];

	if (level != LIBBPF_WARN || heard[0])
		return 0;
	vsnprintf(line, sizeof(line), fmt, ap);
	line[strcspn(line, "\n")] = '\0';
	snprintf(heard, sizeof(heard), "%s",
		 strncmp(line, prefix, strlen(prefix)) == 0 ? line + strlen(prefix) : line);
	return 0;
}

void bpf_hear_begin(void)
{
	heard[0] = '\0';
	print_before = libbpf_set_print(hear);
}

void bpf_hear_end(void)
{
	libbpf_set_print(print_before);
}

const char *bpf_heard(void)
{
	return heard;
}
