/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes at all: the validator and protobuf-c agree on them, but for the differences that
 * user/report.h documents (report_oracle.h). The corpus is in tests/fuzz/corpus/report.
 */
#include "check.h"
#include "report_oracle.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *problem = oracle_check(data, size, 42);

	if (problem) {
		fprintf(stderr, "fuzz_report: %s\n", problem);
		abort();
	}
	return 0;
}
