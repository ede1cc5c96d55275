// SPDX-License-Identifier: Apache-2.0
/*
 * include/vsr_abi.h as the BPF object has it (its BTF, which bpftool prints by) against what the
 * C compiler of user space makes of it: each struct, each member's offset and size, and that the
 * table below leaves no member out. Needs no privilege.
 */
#include <setjmp.h>
#include <stdarg.h>

#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <cmocka.h>

#include "ingest.skel.h"
#include "util.h"
#include "vsr_abi.h"

struct member {
	const char *of, *name;
	size_t offset, size;
};

#define M(type, m)                                                                 \
	{                                                                          \
#type, #m, offsetof(struct type, m), sizeof(((struct type *)0)->m) \
	}

static const struct member members[] = {
	M(vsr_vm_id, ns),
	M(vsr_vm_id, cid),
	M(vsr_conn, vm),
	M(vsr_conn, slot),
	M(vsr_conn, flags),
	M(vsr_conn, seen),
	M(vsr_conn, passed),
	M(vsr_conn, known),
	M(vsr_conn, refused),
	M(vsr_conn, packets),
	M(vsr_conn, packets_queued),
	M(vsr_conn, pool_share),
	M(vsr_conn, first_ns),
	M(vsr_conn, last_ns),
	M(vsr_conn, header),
	M(vsr_conn, header_len),
	M(vsr_conn, mode),
	M(vsr_conn, frame_len),
	M(vsr_conn, payload),
	M(vsr_conn, fold),
	M(vsr_conn, matched),
	M(vsr_conn, match_left),
	M(vsr_grant, reservation),
	M(vsr_grant, buffered),
	M(vsr_grant, extent),
	M(vsr_grant, extent_bytes),
	M(vsr_buf, block),
	M(vsr_buf, diverged),
	M(vsr_pool, limit),
	M(vsr_pool, drawn),
	M(vsr_vm_seen, first_seen_ns),
	M(vsr_vm_seen, last_seen_ns),
	M(vsr_vm_seen, connections),
	M(vsr_vm_seen, packets),
	M(vsr_vm_seen, bytes),
	M(vsr_vm_seen, bytes_known),
	M(vsr_vm_seen, duplicates),
	M(vsr_vm_seen, zero_length),
	M(vsr_vm_seen, bad_header),
	M(vsr_vm_seen, too_large),
	M(vsr_vm_seen, bad_packet),
	M(vsr_vm_seen, over_budget),
	M(vsr_vm_seen, unread_updates),
	M(vsr_vm_state, received),
	M(vsr_vm_state, accepted),
	M(vsr_vm_state, duplicates),
	M(vsr_vm_state, refused),
	M(vsr_vm_state, record_length),
	M(vsr_vm_state, record_digest),
	M(vsr_vm_state, generation),
	M(vsr_vm_state, custody),
	M(vsr_vm_state, pad),
	M(vsr_vm_state, last_accepted_ns),
	M(vsr_vm_state, last_ack_ns),
	M(vsr_vm_state, debt),
	M(vsr_stats, packets),
	M(vsr_stats, bytes),
	M(vsr_stats, bytes_passed),
	M(vsr_stats, bytes_known),
	M(vsr_stats, bytes_refused),
	M(vsr_stats, zero_length),
	M(vsr_stats, bad_header),
	M(vsr_stats, too_large),
	M(vsr_stats, bad_packet),
	M(vsr_stats, over_budget),
	M(vsr_stats, unread_updates),
	M(vsr_stats, pool_draws),
	M(vsr_stats, no_conn),
	M(vsr_stats, no_slot),
	M(vsr_stats, load_failed),
	M(vsr_stats, event_lost),
	M(vsr_stats, vm_insert_failed),
	M(vsr_abi_info, version),
	M(vsr_abi_info, pad),
};

#define S(type)                            \
	{                                  \
#type, sizeof(struct type) \
	}

static const struct {
	const char *name;
	size_t size;
} structs[] = {
	S(vsr_vm_id),	S(vsr_conn),	 S(vsr_grant), S(vsr_buf),	S(vsr_pool),
	S(vsr_vm_seen), S(vsr_vm_state), S(vsr_stats), S(vsr_abi_info),
};

/* What bpftool map dump shows of each map; the two others have no BTF (SPEC 11). */
static const struct {
	const char *map, *key, *value;
} maps[] = {
	{ "vsr_conns", "__u64", "vsr_conn" },
	{ "vsr_grants", "__u32", "vsr_grant" },
	{ "vsr_bufs", "__u32", "vsr_buf" },
	{ "vsr_pool", "__u32", "vsr_pool" },
	{ "vsr_blocks", "__u32", "__u64" },
	{ "vsr_vms", "vsr_vm_id", "vsr_vm_seen" },
	{ "vsr_vm_state", "vsr_vm_id", "vsr_vm_state" },
	{ "vsr_stats", "__u32", "vsr_stats" },
	{ "vsr_abi", "__u32", "vsr_abi_info" },
};

static struct ingest_bpf *skel;
static struct btf *btf;

static int open_object(void **state _unused_)
{
	skel = ingest_bpf__open();
	btf = skel ? bpf_object__btf(skel->obj) : NULL;
	return btf ? 0 : -1;
}

static int close_object(void **state _unused_)
{
	ingest_bpf__destroy(skel);
	return 0;
}

static const struct btf_type *find_struct(const char *name)
{
	int id = btf__find_by_name_kind(btf, name, BTF_KIND_STRUCT);

	if (id < 0)
		fail_msg("struct %s is not in the object's BTF", name);
	return btf__type_by_id(btf, id);
}

static void every_struct_has_the_same_size_and_number_of_members(void **state _unused_)
{
	size_t i, j, n;

	for (i = 0; i < ARRAY_SIZE(structs); i++) {
		const struct btf_type *t = find_struct(structs[i].name);

		for (j = 0, n = 0; j < ARRAY_SIZE(members); j++)
			n += streq(members[j].of, structs[i].name);
		assert_int_equal(t->size, structs[i].size);
		assert_int_equal(btf_vlen(t), n);
	}
}

static void every_member_has_the_same_offset_and_size(void **state _unused_)
{
	size_t i;
	int j;

	for (i = 0; i < ARRAY_SIZE(members); i++) {
		const struct btf_type *t = find_struct(members[i].of);
		const struct btf_member *m = btf_members(t);

		for (j = 0; j < btf_vlen(t); j++, m++)
			if (streq(btf__name_by_offset(btf, m->name_off), members[i].name))
				break;
		if (j == btf_vlen(t))
			fail_msg("%s.%s is not in BTF", members[i].of, members[i].name);
		assert_int_equal(btf_member_bit_offset(t, j), members[i].offset * 8);
		assert_int_equal(btf__resolve_size(btf, m->type), members[i].size);
	}
}

static void every_map_is_typed_for_bpftool(void **state _unused_)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(maps); i++) {
		struct bpf_map *m = bpf_object__find_map_by_name(skel->obj, maps[i].map);
		const struct btf_type *key, *value;

		assert_non_null(m);
		key = btf__type_by_id(btf, bpf_map__btf_key_type_id(m));
		value = btf__type_by_id(btf, bpf_map__btf_value_type_id(m));
		assert_string_equal(btf__name_by_offset(btf, key->name_off), maps[i].key);
		assert_string_equal(btf__name_by_offset(btf, value->name_off), maps[i].value);
		assert_int_equal(btf__resolve_size(btf, bpf_map__btf_value_type_id(m)),
				 bpf_map__value_size(m));
	}
}

static void maps_have_the_types_of_the_contract(void **state _unused_)
{
	static const struct {
		const char *map;
		enum bpf_map_type type;
		uint32_t flags;
	} contract[] = {
		{ "vsr_socks", BPF_MAP_TYPE_SOCKHASH, 0 },
		{ "vsr_conns", BPF_MAP_TYPE_HASH, 0 },
		{ "vsr_grants", BPF_MAP_TYPE_ARRAY, BPF_F_MMAPABLE },
		{ "vsr_bufs", BPF_MAP_TYPE_ARRAY, 0 },
		{ "vsr_pool", BPF_MAP_TYPE_ARRAY, BPF_F_MMAPABLE },
		{ "vsr_blocks", BPF_MAP_TYPE_ARRAY, BPF_F_MMAPABLE },
		{ "vsr_vms", BPF_MAP_TYPE_LRU_HASH, 0 },
		{ "vsr_vm_state", BPF_MAP_TYPE_LRU_HASH, 0 },
		{ "vsr_events", BPF_MAP_TYPE_RINGBUF, 0 },
		{ "vsr_stats", BPF_MAP_TYPE_PERCPU_ARRAY, 0 },
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(contract); i++) {
		struct bpf_map *m = bpf_object__find_map_by_name(skel->obj, contract[i].map);

		assert_non_null(m);
		assert_int_equal(bpf_map__type(m), contract[i].type);
		assert_int_equal(bpf_map__map_flags(m), contract[i].flags);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_struct_has_the_same_size_and_number_of_members),
		cmocka_unit_test(every_member_has_the_same_offset_and_size),
		cmocka_unit_test(every_map_is_typed_for_bpftool),
		cmocka_unit_test(maps_have_the_types_of_the_contract),
	};

	return cmocka_run_group_tests(tests, open_object, close_object);
}
