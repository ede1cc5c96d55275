/* SPDX-License-Identifier: Apache-2.0 */
#include "unseen.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "unseen.skel.h"
#include "vsr_unseen.h"

/* Sockets of one read(). */
#define AT_ONCE 64

struct unseen {
	struct unseen_bpf *skel;
	struct bpf_link *link;
};

int unseen_new(int socks_fd, struct unseen **ret)
{
	_cleanup_(unseen_freep)
	struct unseen *u = NULL;
	union bpf_iter_link_info info = { .map = { .map_fd = (uint32_t)socks_fd } };
	LIBBPF_OPTS(bpf_iter_attach_opts, opts, .link_info = &info, .link_info_len = sizeof(info));

	u = calloc(1, sizeof(*u));
	if (!u)
		return -ENOMEM;
	u->skel = unseen_bpf__open_and_load();
	if (!u->skel)
		return -errno;
	u->link = bpf_program__attach_iter(u->skel->progs.vsr_unseen, &opts);
	if (!u->link)
		return -errno;
	*ret = TAKE_PTR(u);
	return 0;
}

struct unseen *unseen_free(struct unseen *u)
{
	if (!u)
		return NULL;
	bpf_link__destroy(u->link);
	unseen_bpf__destroy(u->skel);
	free(u);
	return NULL;
}

int unseen_look(struct unseen *u, unseen_cb cb, void *userdata)
{
	_cleanup_close_ int fd = bpf_iter_create(bpf_link__fd(u->link));
	struct vsr_unseen seen[AT_ONCE];
	ssize_t n;

	if (fd < 0)
		return -errno;
	/* The kernel hands out whole records: it never splits what one program run has written. */
	while ((n = read(fd, seen, sizeof(seen))) > 0)
		for (size_t i = 0; i < (size_t)n / sizeof(seen[0]); i++)
			if (seen[i].references > UNSEEN_BUSY_REFERENCES)
				cb(seen[i].cookie, seen[i].references - UNSEEN_IDLE_REFERENCES,
				   userdata);
	return n < 0 ? -errno : 0;
}
