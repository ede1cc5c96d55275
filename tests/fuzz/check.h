/* SPDX-License-Identifier: Apache-2.0 */
/* What all fuzzers have: assertions, whatever the build's flags say of assert(), and options. */
#ifndef TESTS_FUZZ_CHECK_H
#define TESTS_FUZZ_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(expr)                                                                \
	do {                                                                       \
		if (!(expr)) {                                                     \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #expr); \
			abort();                                                   \
		}                                                                  \
	} while (0)

/* ASan asks for this: a small quarantine stays in the processor's cache and costs no page faults,
 * and of a stack at each malloc() only the nearest frames are kept. A third more inputs a second. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "quarantine_size_mb=1:malloc_context_size=4";
}

#endif
