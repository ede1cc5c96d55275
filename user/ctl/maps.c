/* SPDX-License-Identifier: Apache-2.0 */
#include "maps.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "clock.h"
#include "commands.h"
#include "vm_json.h"

/* Keys of an LRU map may come and go while we walk: at most so many steps. */
#define STEPS_MAX (4U << 20)

static const char *const names[] = { "vsr_socks", "vsr_conns",	  "vsr_grants", "vsr_bufs",
				     "vsr_pool",  "vsr_blocks",	  "vsr_events", "vsr_stats",
				     "vsr_vms",	  "vsr_vm_state", "vsr_abi" };

static int open_map(const char *dir, const char *name)
{
	char path[4096];
	int fd;

	if (snprintf(path, sizeof(path), "%s/%s", dir, name) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	fd = bpf_obj_get(path);
	return fd < 0 ? -errno : fd;
}

static int map_info(int fd, struct bpf_map_info *ret)
{
	uint32_t len = sizeof(*ret);

	memset(ret, 0, sizeof(*ret));
	return bpf_obj_get_info_by_fd(fd, ret, &len) < 0 ? -errno : 0;
}

int maps_layout(const char *dir, uint32_t *ret)
{
	_cleanup_close_ int abi = -1, vms = -1;
	struct bpf_map_info info;
	uint8_t value[256] = { 0 };
	uint32_t zero = 0, version = 0;
	int r;

	vms = open_map(dir, "vsr_vms");
	if (vms < 0)
		return vms;
	abi = open_map(dir, "vsr_abi");
	if (abi >= 0) {
		r = map_info(abi, &info);
		if (r < 0)
			return r;
		/* Whatever its layout was, it began with the version. */
		if (info.key_size == sizeof(zero) && info.value_size >= sizeof(version) &&
		    info.value_size <= sizeof(value) && bpf_map_lookup_elem(abi, &zero, value) == 0)
			memcpy(&version, value, sizeof(version));
	} else if (abi != -ENOENT) {
		return abi;
	}
	*ret = version;
	return 0;
}

/* The map, if it has our layout. */
static int open_known(const char *dir, const char *name, uint32_t value_size)
{
	_cleanup_close_ int fd = open_map(dir, name);
	struct bpf_map_info info;
	int r;

	if (fd < 0)
		return fd;
	r = map_info(fd, &info);
	if (r < 0)
		return r;
	if (info.key_size != sizeof(struct vsr_vm_id) || info.value_size != value_size)
		return -EPROTO;
	return TAKE_FD(fd);
}

struct pinned {
	int vms, state;
	uint64_t now;
};

static void add_vm(const struct pinned *p, const struct vsr_vm_id *id, json_t *list)
{
	struct vsr_vm_state state;
	struct vsr_vm_seen seen;
	bool has_state = bpf_map_lookup_elem(p->state, id, &state) == 0;
	bool has_seen = bpf_map_lookup_elem(p->vms, id, &seen) == 0;

	if (has_state || has_seen)
		json_array_append_new(list, vm_json(id, has_state ? &state : NULL,
						    has_seen ? &seen : NULL, NULL, p->now));
}

/* The VMs of one map, but for those that `not_in` has too. */
static void walk(const struct pinned *p, int fd, int not_in, json_t *list)
{
	struct vsr_vm_state buffer[2]; /* room for a value of either map */
	struct vsr_vm_id id, next, *previous = NULL;

	_Static_assert(sizeof(buffer) >= sizeof(struct vsr_vm_seen), "room");
	for (unsigned int n = 0; n < STEPS_MAX && bpf_map_get_next_key(fd, previous, &next) == 0;
	     n++) {
		id = next;
		previous = &id;
		if (not_in < 0 || bpf_map_lookup_elem(not_in, &id, buffer) < 0)
			add_vm(p, &id, list);
	}
}

int maps_vms(const char *dir, const struct vsr_vm_id *only, json_t *list)
{
	_cleanup_close_ int vms = -1, state = -1;
	struct pinned p = { .now = clock_usec() };
	uint32_t layout;
	int r;

	r = maps_layout(dir, &layout);
	if (r < 0)
		return r;
	if (layout != VSR_ABI_VERSION)
		return -EPROTO;
	p.vms = vms = open_known(dir, "vsr_vms", sizeof(struct vsr_vm_seen));
	if (vms < 0)
		return vms;
	p.state = state = open_known(dir, "vsr_vm_state", sizeof(struct vsr_vm_state));
	if (state < 0)
		return state;
	if (only) {
		add_vm(&p, only, list);
		return 0;
	}
	walk(&p, state, -1, list);
	walk(&p, vms, state, list);
	return 0;
}

int maps_describe(const char *dir, json_t *list)
{
	uint32_t layout;
	int r = maps_layout(dir, &layout);

	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(names); i++) {
		_cleanup_close_ int fd = open_map(dir, names[i]);
		struct bpf_map_info info;
		const char *type;

		if (fd == -ENOENT)
			continue;
		r = fd < 0 ? fd : map_info(fd, &info);
		if (r < 0)
			break;
		type = libbpf_bpf_map_type_str((enum bpf_map_type)info.type);
		json_array_append_new(list, json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:b}", "name",
						      names[i], "type", type ? type : "unknown",
						      "id", (json_int_t)info.id, "key_size",
						      (json_int_t)info.key_size, "value_size",
						      (json_int_t)info.value_size, "max_entries",
						      (json_int_t)info.max_entries, "survives",
						      streq(names[i], "vsr_vms") ||
							      streq(names[i], "vsr_vm_state") ||
							      streq(names[i], "vsr_abi")));
	}
	return r;
}

const char *maps_why(const char *dir, int r, char *buf, size_t size)
{
	uint32_t layout = 0;

	switch (r) {
	case -ENOENT:
		snprintf(buf, size, "no maps are pinned at %s", dir);
		break;
	case -EPERM:
	case -EACCES:
		snprintf(buf, size, "the maps at %s are root's: try sudo", dir);
		break;
	case -EPROTO:
		(void)maps_layout(dir, &layout);
		snprintf(buf, size,
			 "the maps at %s have layout %u, and this program knows %d: use the "
			 "vsock-relayctl of the daemon that made them, or bpftool map dump pinned "
			 "%s/vsr_vms",
			 dir, layout, VSR_ABI_VERSION, dir);
		break;
	default:
		snprintf(buf, size, "the maps at %s: %s", dir, strerror(-r));
	}
	return buf;
}

static void print_maps(const char *dir, uint32_t layout, const json_t *list)
{
	size_t i;
	json_t *m;

	printf("Pinned at %s, layout %u%s\n\n%-14s %-14s %6s %6s %9s %7s  %s\n", dir, layout,
	       layout == VSR_ABI_VERSION ? "" : " (this program knows another)", "map", "type",
	       "key", "value", "entries", "id", "survives a restart");
	json_array_foreach(list, i, m)
		printf("%-14s %-14s %6lld %6lld %9lld %7lld  %s\n", ctl_text(m, "name"),
		       ctl_text(m, "type"), ctl_int(m, "key_size"), ctl_int(m, "value_size"),
		       ctl_int(m, "max_entries"), ctl_int(m, "id"),
		       ctl_true(m, "survives") ? "yes" : "no");
	printf("\nbpftool map dump pinned %s/vsr_vms    shows what is in one\n", dir);
}

static int run_maps(struct ctl *ctl, int argc, char *argv[])
{
	int r = ctl_check_args(ctl, argc, argv, 0, 0, "maps");
	json_t *list;
	uint32_t layout;
	char why[512];

	if (r != CTL_OK)
		return r;
	r = maps_layout(ctl->pin_dir, &layout);
	list = json_array();
	if (r == 0)
		r = maps_describe(ctl->pin_dir, list);
	if (r < 0) {
		json_decref(list);
		return ctl_error(ctl, r == -ENOENT ? CTL_NOT_FOUND : CTL_FAILED, "%s",
				 maps_why(ctl->pin_dir, r, why, sizeof(why)));
	}
	if (ctl->json) {
		ctl_print_json(ctl, json_pack("{s:s, s:I, s:i, s:o}", "directory", ctl->pin_dir,
					      "layout", (json_int_t)layout, "layout_known",
					      VSR_ABI_VERSION, "maps", list));
		return CTL_OK;
	}
	print_maps(ctl->pin_dir, layout, list);
	json_decref(list);
	return CTL_OK;
}

const struct ctl_command ctl_maps_commands[] = {
	{ "", "", "where the BPF maps are pinned, and their layout", NULL, run_maps },
	{},
};
