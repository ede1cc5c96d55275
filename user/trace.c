// SPDX-License-Identifier: Apache-2.0
#include "trace.h"

#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <dirent.h>
#include <stdarg.h>

#include "bpf_why.h"
#include "trace.skel.h"

#define COMMON_MODULE "vmw_vsock_virtio_transport_common"
#define DAEMON	      "vsock-relayd"

#define RING_BYTES_MAX (1U << 30)
#define LINKS_MAX      32
#define NOTES_MAX      8
#define NOTE_LEN       192

struct trace {
	struct trace_settings s;
	struct trace_bpf *skel;
	struct btf *vmlinux; /* the kernel's types, once they were needed */
	struct bpf_link *links[LINKS_MAX];
	size_t n_links;
	struct ring_buffer *ring;
	trace_event_cb cb; /* during trace_poll() */
	void *userdata;
	unsigned parts; /* attached */
	char notes[NOTES_MAX][NOTE_LEN];
	size_t n_notes;
};

_printf_(2, 3) static void note(struct trace *t, const char *fmt, ...)
{
	va_list ap;

	if (t->n_notes == NOTES_MAX)
		return;
	va_start(ap, fmt);
	vsnprintf(t->notes[t->n_notes++], NOTE_LEN, fmt, ap);
	va_end(ap);
}

/* Takes the link over, or says why there is none. */
static int keep(struct trace *t, struct bpf_link *link)
{
	if (!link)
		return -errno;
	if (t->n_links == LINKS_MAX) {
		bpf_link__destroy(link);
		return -E2BIG;
	}
	t->links[t->n_links++] = link;
	return 0;
}

/* ---- what this kernel has -------------------------------------------------------------------- */

/* Whether the module's own types name this one: the programs that end on a function find it there,
 * and the load of all of them fails if one does not. */
static bool module_has(struct trace *t, const char *module, const char *name, uint32_t kind)
{
	struct btf *btf;
	bool has;

	if (!t->vmlinux)
		t->vmlinux = btf__load_vmlinux_btf();
	btf = t->vmlinux ? btf__load_module_btf(module, t->vmlinux) : NULL;
	has = btf && btf__find_by_name_kind(btf, name, kind) > 0;
	btf__free(btf);
	return has;
}

static void want_function(struct trace *t, unsigned part, struct bpf_program *prog,
			  const char *module, const char *function, const char *what)
{
	bool has = (t->s.parts & part) && module_has(t, module, function, BTF_KIND_FUNC);

	if ((t->s.parts & part) && !has)
		note(t, "%s cannot be seen: no BTF of %s() in module %s", what, function, module);
	bpf_program__set_autoload(prog, has);
	t->parts |= has ? part : 0;
}

/* ---- load and attach --------------------------------------------------------------------------- */

static uint32_t ring_size(uint32_t wanted)
{
	uint32_t bytes = (uint32_t)sysconf(_SC_PAGESIZE);

	while (bytes < wanted)
		bytes *= 2;
	return bytes;
}

static int configure(struct trace *t)
{
	struct trace_bpf *k = t->skel;
	const struct trace_settings *s = &t->s;

	k->rodata->filter_cid = s->by_cid;
	k->rodata->filter_port = s->by_port;
	k->rodata->filter_ops = s->ops != 0;
	k->rodata->cid = s->cid;
	k->rodata->port = s->port;
	k->rodata->ops = s->ops;
	t->parts = TRACE_PACKETS;
	want_function(t, TRACE_ACCEPTS, k->progs.trace_accept, "vsock", "vsock_accept", "accept()");
	want_function(t, TRACE_RAW_READS, k->progs.trace_raw_read, COMMON_MODULE,
		      "virtio_transport_stream_dequeue", "reads past the verdict");
	want_function(t, TRACE_VANISHED, k->progs.trace_vanished, "vhost_vsock",
		      "vhost_vsock_reset_orphans", "the connections of VMs that end");
	want_function(t, TRACE_VANISHED, k->progs.trace_vm_end, "vhost_vsock",
		      "vhost_vsock_dev_release", "VMs that end");
	bpf_program__set_autoload(k->progs.trace_custody, s->parts & TRACE_CUSTODY);
	return bpf_map__set_max_entries(k->maps.vsr_trace, ring_size(s->ring_bytes));
}

static int load(struct trace *t)
{
	int r = trace_bpf__load(t->skel);

	if (r == -EPERM)
		return bpf_fail(r, "not allowed: tracing needs root (%s)",
				*bpf_heard() ? bpf_heard() : strerror(-r));
	if (r < 0)
		return bpf_fail(r == -ENOMEM ? r : -EOPNOTSUPP, "this kernel cannot do it: %s (%s)",
				*bpf_heard() ? bpf_heard() : "no message", strerror(-r));
	return 0;
}

static int attach_incoming(struct trace *t)
{
	int r = keep(t, bpf_program__attach(t->skel->progs.trace_recv));

	if (r == -ENOENT)
		return bpf_fail(r, "no vsock packets in this kernel: module " COMMON_MODULE
				   " is not loaded; `modprobe vhost_vsock` on a host of VMs, "
				   "`modprobe vsock_loopback` for CID 1");
	if (r < 0)
		return bpf_fail(r, "tracepoint virtio_transport_recv_pkt: %s", strerror(-r));
	return 0;
}

static void attach_transports(struct trace *t)
{
	int host, guest;

	if (module_has(t, COMMON_MODULE, "virtio_vsock_pkt", BTF_KIND_STRUCT)) {
		note(t, "packets to guests cannot be seen: in this kernel they are no socket "
			"buffers (before Linux 6.3)");
		return;
	}
	host = keep(t, bpf_program__attach_kprobe(t->skel->progs.trace_send_to_guest, false,
						  "vhost_transport_send_pkt"));
	guest = keep(t, bpf_program__attach_kprobe(t->skel->progs.trace_send_to_host, false,
						   "virtio_transport_send_pkt"));
	if (host == 0 || guest == 0)
		return;
	if (host == -ENOENT)
		note(t, "only loopback is seen: neither vhost_vsock (a host of VMs) nor "
			"vmw_vsock_virtio_transport (a guest) is loaded; `modprobe vhost_vsock`");
	else
		note(t,
		     "packets to guests cannot be seen: kprobe of vhost_transport_send_pkt(): "
		     "%s",
		     strerror(-host));
}

/* Programs that end on a function: those that were loaded. */
static int attach_functions(struct trace *t)
{
	struct bpf_program *progs[] = {
		t->skel->progs.trace_accept,
		t->skel->progs.trace_raw_read,
		t->skel->progs.trace_vanished,
		t->skel->progs.trace_vm_end,
	};

	for (size_t i = 0; i < ARRAY_SIZE(progs); i++) {
		int r;

		if (!bpf_program__autoload(progs[i]))
			continue;
		r = keep(t, bpf_program__attach(progs[i]));
		if (r < 0)
			return bpf_fail(r, "%s: %s", bpf_program__section_name(progs[i]),
					strerror(-r));
	}
	return 0;
}

static bool is_daemon(const char *pid)
{
	char path[64], comm[32] = "";
	_cleanup_fclose_ FILE *f = NULL;

	if (strspn(pid, "0123456789") != strlen(pid))
		return false;
	snprintf(path, sizeof(path), "/proc/%.20s/comm", pid);
	f = fopen(path, "re");
	return f && fgets(comm, sizeof(comm), f) && streq(comm, DAEMON "\n");
}

static void attach_daemons(struct trace *t)
{
	const char *error = "no " DAEMON " runs";
	struct dirent *entry;
	DIR *proc;

	if (!(t->s.parts & TRACE_CUSTODY))
		return;
	proc = opendir("/proc");
	while (proc && (entry = readdir(proc))) {
		char exe[64];
		int r;

		if (!is_daemon(entry->d_name))
			continue;
		snprintf(exe, sizeof(exe), "/proc/%.20s/exe", entry->d_name);
		r = keep(t,
			 bpf_program__attach_usdt(t->skel->progs.trace_custody, atoi(entry->d_name),
						  exe, "vsock_relay", "accepted", NULL));
		if (r == 0)
			t->parts |= TRACE_CUSTODY;
		else
			error = r == -ENOENT ? "the " DAEMON " that runs has no probes"
					     : strerror(-r);
	}
	if (proc)
		closedir(proc);
	if (!(t->parts & TRACE_CUSTODY))
		note(t, "when a report is accepted cannot be seen: %s", error);
}

static int on_event(void *ctx, void *data, size_t size)
{
	struct trace *t = ctx;

	return size >= sizeof(struct vsr_trace_event) ? t->cb(data, t->userdata) : 0;
}

static int start(struct trace *t)
{
	int r;

	t->skel = trace_bpf__open();
	if (!t->skel)
		return bpf_fail(-errno, "open of the BPF object: %s",
				*bpf_heard() ? bpf_heard() : strerror(errno));
	r = configure(t);
	if (r < 0)
		return bpf_fail(r, "size of the ring buffer: %s", strerror(-r));
	r = load(t);
	if (r < 0)
		return r;
	t->ring = ring_buffer__new(bpf_map__fd(t->skel->maps.vsr_trace), on_event, t, NULL);
	if (!t->ring)
		return bpf_fail(-errno, "ring buffer: %s", strerror(errno));
	r = attach_incoming(t);
	if (r < 0)
		return r;
	attach_transports(t);
	r = attach_functions(t);
	if (r < 0)
		return r;
	attach_daemons(t);
	return 0;
}

int trace_new(const struct trace_settings *s, struct trace **ret)
{
	_cleanup_(trace_freep)
	struct trace *t = NULL;
	int r;

	if (s->ring_bytes > RING_BYTES_MAX)
		return bpf_fail(-EINVAL, "ring buffer: %u bytes are above %u", s->ring_bytes,
				RING_BYTES_MAX);
	t = calloc(1, sizeof(*t));
	if (!t)
		return bpf_fail(-ENOMEM, "memory");
	t->s = *s;
	bpf_hear_begin();
	r = start(t);
	bpf_hear_end();
	if (r < 0)
		return r;
	*ret = TAKE_PTR(t);
	return 0;
}

struct trace *trace_free(struct trace *t)
{
	if (!t)
		return NULL;
	for (size_t i = 0; i < t->n_links; i++)
		bpf_link__destroy(t->links[i]);
	ring_buffer__free(t->ring);
	trace_bpf__destroy(t->skel);
	btf__free(t->vmlinux);
	free(t);
	return NULL;
}

const char *trace_note(const struct trace *t, size_t i)
{
	return i < t->n_notes ? t->notes[i] : NULL;
}

unsigned trace_parts(const struct trace *t)
{
	return t->parts;
}

int trace_poll(struct trace *t, int timeout_ms, trace_event_cb cb, void *userdata)
{
	t->cb = cb;
	t->userdata = userdata;
	return ring_buffer__poll(t->ring, timeout_ms);
}

uint64_t trace_seen(const struct trace *t)
{
	return __atomic_load_n(&t->skel->bss->seen, __ATOMIC_RELAXED);
}

uint64_t trace_lost(const struct trace *t)
{
	return __atomic_load_n(&t->skel->bss->lost, __ATOMIC_RELAXED);
}
