/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Invented reports with the shape and the sizes of real ones (SPEC 3: 0.6 to 2.6 KB a package,
 * 2.5 MB for a large VM): a map of packages, and for each an environment that lists repositories.
 */
#ifndef VSR_TEST_SYNTHETIC_H
#define VSR_TEST_SYNTHETIC_H

#include "wire.h"

/* A report that begins with index_report{vsock_cid, vm_id}; both have a fixed width, so that they
 * can be patched in place to make many distinct reports of one. */
#define SYNTHETIC_VM_ID "vm-0000000000000000"

static inline void synthetic_package(struct wire *entry, struct wire *pkg, struct wire *sub,
				     unsigned i)
{
	wire_stringf(pkg, 1, "%u", i);
	wire_stringf(pkg, 2, "%s-package-%u%s", i % 3 ? "lib" : "python3", i,
		     i % 5 ? "" : "-devel");
	wire_stringf(pkg, 3, "%u:%u.%u.%u-%u.el9_%u.1", i % 2, i % 9, i % 31, i % 7, i % 400,
		     i % 6);
	wire_string(sub, 1, "rpm");
	wire_tag(sub, 2, 2);
	wire_varint(sub, 4);
	wire_raw(sub, "\x01\x02\x03\x04", 4);
	wire_message(pkg, 4, sub);
	wire_string(pkg, 6, "binary");
	wire_stringf(sub, 1, "s%u", i);
	wire_stringf(sub, 2, "package-%u", i);
	wire_stringf(sub, 3, "%u.%u.%u-%u.el9", i % 9, i % 31, i % 7, i % 400);
	wire_string(sub, 6, "source");
	wire_message(pkg, 7, sub);
	wire_string(pkg, 8, "sqlite:var/lib/rpm");
	wire_stringf(pkg, 9, "hash:sha256:%064x|key:199e2f91fd431d51", i * 2654435761U);
	wire_string(pkg, 11, "x86_64");
	wire_string(pkg, 12, "cpe:2.3:o:redhat:enterprise_linux:9:*:baseos:*:*:*:*:*");
	wire_stringf(entry, 1, "%u", i);
	wire_message(entry, 2, pkg);
}

static inline void synthetic_environment(struct wire *entry, struct wire *env, struct wire *sub,
					 unsigned i, unsigned repositories)
{
	wire_string(sub, 1, "sqlite:var/lib/rpm");
	wire_stringf(sub, 2, "sha256:%064x", 7U);
	wire_string(sub, 3, "1");
	for (unsigned r = 0; r < repositories; r++)
		wire_stringf(sub, 4, "%08x-3f1c-4c0e-9d55-%012x", r * 2654435761U, r + i % 4);
	wire_message(env, 1, sub);
	wire_stringf(entry, 1, "%u", i);
	wire_message(entry, 2, env);
}

/* Writes a report of so many packages, each with an environment of so many repositories: with 12
 * of them a package takes 1.1 KB, with 45 it takes 2.4 KB. */
static inline void synthetic_report(struct wire *w, const char *cid, unsigned packages,
				    unsigned repositories)
{
	_cleanup_wire_ struct wire contents = {}, entry = {}, msg = {}, sub = {}, v4 = {},
				   index = {};

	for (unsigned i = 0; i < packages; i++) {
		synthetic_package(&entry, &msg, &sub, i);
		wire_message(&contents, 5, &entry);
		synthetic_environment(&entry, &msg, &sub, i, repositories);
		wire_message(&contents, 8, &entry);
	}
	wire_string(&v4, 1, "/v4/vm/synthetic");
	wire_string(&v4, 2, "IndexFinished");
	wire_int(&v4, 3, 1);
	wire_message(&v4, 5, &contents);
	wire_string(&index, 1, cid);
	wire_string(&index, 3, SYNTHETIC_VM_ID);
	wire_message(&index, 2, &v4);
	wire_message(w, 1, &index);
	wire_int(&sub, 1, 1);
	wire_string(&sub, 2, "9.4");
	wire_int(&sub, 3, 1);
	wire_int(&sub, 4, 1);
	wire_message(w, 2, &sub);
}

#endif
