// SPDX-License-Identifier: Apache-2.0
/*
 * Loads the BPF programs on the running kernel and holds the verifier's work against the budget of
 * tests/verdict_budget.h. Prints TAP. Needs root; exit status 1 if a program does not load or breaks the budget.
 */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <sys/utsname.h>

#include "../verdict_budget.h"
#include "ingest.skel.h"
#include "unseen.skel.h"
#include "util.h"

static int verified(struct bpf_program *prog)
{
	struct bpf_prog_info info = {};
	uint32_t size = sizeof(info);
	int r;

	r = bpf_obj_get_info_by_fd(bpf_program__fd(prog), &info, &size);
	if (r < 0)
		return r;
	printf("# %s: %u bytes of BPF, %u of machine code\n", bpf_program__name(prog),
	       info.xlated_prog_len, info.jited_prog_len);
	return (int)info.verified_insns;
}

int main(void)
{
	struct ingest_bpf *skel;
	struct unseen_bpf *unseen;
	struct utsname u;
	int n, r;

	uname(&u);
	printf("1..3\n# kernel %s\n", u.release);
	skel = ingest_bpf__open();
	r = skel ? ingest_bpf__load(skel) : -errno;
	if (r < 0) {
		printf("not ok 1 - verdict program loads: %s\nnot ok 2 - verifier budget\n"
		       "not ok 3 - iterator\n",
		       strerror(-r));
		return 1;
	}
	printf("ok 1 - verdict program loads\n");

	n = verified(skel->progs.vsr_ingest);
	ingest_bpf__destroy(skel);
	printf("%sok 2 - verifier budget: vsr_ingest takes %d of %d instructions\n",
	       n > 0 && n <= VERDICT_INSTRUCTIONS_MAX ? "" : "not ", n, VERDICT_INSTRUCTIONS_MAX);

	unseen = unseen_bpf__open_and_load();
	printf("%sok 3 - iterator over the sockets loads\n", unseen ? "" : "not ");
	unseen_bpf__destroy(unseen);
	return n > 0 && n <= VERDICT_INSTRUCTIONS_MAX && unseen ? 0 : 1;
}
