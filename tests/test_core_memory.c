/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The core when memory runs out: each of its allocations fails once, and nothing is lost, torn or
 * told as a success. (The relay and the cache have such tests of their own.)
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "failing_malloc.h"

#include "admission.h"
#include "cache.h"
#include "extent.h"
#include "flow.h"
#include "grpc.h"
#include "grpc_conn.h"
#include "heap.h"
#include "ingest.h"
#include "listener.h"
#include "match.h"
#include "pack.h"
#include "relay.h"
#include "resolve.h"
#include "sandbox.h"
#include "tls.h"
#include "trace.h"
#include "tracker.h"
#include "unseen.h"
#include "vm.h"
#include "yaml_tree.h"

#define NOW  (1000 * USEC_PER_HOUR)
#define SIZE (200 * KIB)

/* Runs it with the first, the second, ... allocation failing, until there are no more. */
static void survives(int (*scenario)(void))
{
	unsigned int n;

	if (!failures_reach_us())
		skip();
	for (n = 1;; n++) {
		bool failed;
		int r;

		fail_at = n;
		r = scenario();
		failed = fail_at == 0;
		fail_at = 0;
		if (!failed) {
			assert_int_equal(r, 0);
			break;
		}
		assert_true(r == 0 || r == -ENOMEM);
	}
	assert_true(n > 1);
}

static struct buf *filled(uint8_t with)
{
	struct buf *b = NULL;

	if (buf_new(SIZE, &b) < 0)
		return NULL;
	memset(buf_tail(b), with, SIZE);
	buf_advance(b, SIZE);
	buf_seal(b);
	return b;
}

static double half(void *userdata _unused_)
{
	return 0.5;
}

/* A table, and a VM in it. */
static int one_vm(struct vm_table **ret_vms, struct vm **ret)
{
	static const struct bucket_rate unlimited;
	int r = vm_table_new(10, unlimited, unlimited, ret_vms);

	return r < 0 ? r : vm_table_obtain(*ret_vms, (struct vsr_vm_id){ .cid = 3 }, NOW, ret);
}

static int places(void)
{
	_cleanup_(vm_table_freep)
	struct vm_table *vms = NULL;
	_cleanup_(admission_freep)
	struct admission *a = NULL;
	struct vm *vm;
	int r;

	r = one_vm(&vms, &vm);
	if (r < 0)
		return r;
	return admission_new(vms, &admission_defaults, &a);
}

static void vms_and_places(void **state _unused_)
{
	survives(places);
}

static int retries(void)
{
	_cleanup_(vm_table_freep)
	struct vm_table *vms = NULL;
	_cleanup_(tracker_freep)
	struct tracker *t = NULL;
	uint64_t send, until;
	struct vm *vm;
	int r;

	r = one_vm(&vms, &vm);
	if (r < 0)
		return r;
	r = tracker_new(&tracker_defaults, half, NULL, &t);
	if (r < 0)
		return r;
	r = tracker_want(t, vm, 1, NOW);
	if (r < 0)
		return r;
	r = tracker_send(t, vm, 5, NOW, &send, &until);
	tracker_end(t, vm);
	return r;
}

static void the_tracker(void **state _unused_)
{
	survives(retries);
}

static int matching(void)
{
	static uint64_t blocks[256];
	_cleanup_(match_table_freep)
	struct match_table *t = NULL;
	_cleanup_(match_unrefp)
	struct match *m = NULL;
	_cleanup_(buf_unrefp)
	struct buf *content = filled('x');
	int r;

	if (!content)
		return -ENOMEM;
	r = match_table_new(blocks, ARRAY_SIZE(blocks), &t);
	if (r < 0)
		return r;
	m = match_new(t, content, 1, blocks);
	if (!m)
		return -ENOMEM;
	match_uncache(match_ref(m));
	match_unref(match_ref(m));
	return 0;
}

static int relaying(void)
{
	const struct relay_settings settings = {
		.cache = { .slots = 10, .bytes = MIB, .ttl = USEC_PER_HOUR },
		.retry = tracker_defaults,
	};
	static const struct bucket_rate unlimited;
	_cleanup_(vm_table_freep)
	struct vm_table *vms = NULL;
	_cleanup_(relay_freep)
	struct relay *relay = NULL;
	struct upstream up = { 0 };
	int r;

	r = vm_table_new(10, unlimited, unlimited, &vms);
	if (r < 0)
		return r;
	r = relay_new(&settings, vms, &up, half, NULL, &relay);
	assert_int_equal(!relay, r < 0);
	return r;
}

static void the_relay(void **state _unused_)
{
	survives(relaying);
}

static void contents_to_compare_with(void **state _unused_)
{
	survives(matching);
}

static int extents(void)
{
	_cleanup_(extent_space_freep)
	struct extent_space *s = NULL;
	struct extent *a = NULL, *b = NULL;
	int r;

	r = extent_space_new(100, &s);
	if (r < 0)
		return r;
	r = extent_take(s, 10, &a);
	if (r == 0)
		r = extent_take(s, 20, &b);
	extent_give_back(s, a);
	extent_give_back(s, b);
	assert_int_equal(extent_taken(s), 0);
	return r;
}

static void extents_of_the_block_digests(void **state _unused_)
{
	survives(extents);
}

static int tracing(void)
{
	_cleanup_(flow_table_freep)
	struct flow_table *t = NULL;
	const struct vsr_trace_event e = {
		.kind = VSR_TRACE_PACKET,
		.op = VSR_OP_REQUEST,
		.src_cid = 42,
		.src_port = 1024,
		.dst_cid = 2,
		.dst_port = 818,
		.ns = 1,
	};
	struct flow_news news;
	int r;

	r = flow_table_new(10, 1, &t);
	if (r < 0)
		return r;
	return flow_observe(t, &e, &news);
}

static void flows_of_a_trace(void **state _unused_)
{
	survives(tracing);
}

static int packing(void)
{
	_cleanup_(packer_freep)
	struct packer *p = NULL;
	_cleanup_(reader_freep)
	struct reader *reader = NULL;
	_cleanup_(buf_unrefp)
	struct buf *content = filled('p'), *packed = NULL;
	static uint8_t back[SIZE];
	int r;

	if (!content)
		return -ENOMEM;
	r = packer_new(&p);
	if (r < 0)
		return r;
	r = packer_begin(p, content);
	while (r == 0)
		r = packer_step(p, 64 * KIB, &packed);
	if (r == 1) {
		r = reader_new(packed, &reader);
		if (r == 0)
			r = reader_read(reader, back, SIZE);
		if (r == 0)
			assert_memory_equal(back, buf_data(content), SIZE);
		if (r == 0)
			r = reader_copy(packed, back, SIZE);
		/* Without memory to look, they are not said to be equal. */
		if (r == 0 && !content_equal(packed, content))
			r = -ENOMEM;
		if (r == 0 && !content_equal(content, packed))
			r = -ENOMEM;
	}
	return r;
}

static void packed_contents(void **state _unused_)
{
	survives(packing);
}

static int sorting(void)
{
	static struct heap_node nodes[100];
	struct heap h = { 0 };
	int r = 0;

	for (size_t i = 0; i < ARRAY_SIZE(nodes) && r == 0; i++) {
		heap_node_init(&nodes[i]);
		r = heap_set(&h, &nodes[i], 1000 - i);
	}
	heap_done(&h);
	return r;
}

static void times_in_a_heap(void **state _unused_)
{
	survives(sorting);
}

static int mapping(void)
{
	static struct vmmap_node nodes[3000];
	struct vmmap m;
	int r;

	r = vmmap_init(&m);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < ARRAY_SIZE(nodes); i++)
		vmmap_add(&m, &nodes[i], (struct vsr_vm_id){ .cid = i });
	/* A map that could not grow is slower, and complete. */
	for (uint32_t i = 0; i < ARRAY_SIZE(nodes); i++)
		assert_ptr_equal(vmmap_find(&m, (struct vsr_vm_id){ .cid = i }), &nodes[i]);
	vmmap_done(&m);
	return 0;
}

static void vms_by_id(void **state _unused_)
{
	survives(mapping);
}

static int reading_yaml(void)
{
	static const char text[] = "a: [1, 'two', {b: ~}]\nc: {d: e, f: [g]}\n";
	_cleanup_(yaml_tree_freep)
	struct yaml_tree *t = NULL;
	struct yaml_tree_error error;

	return yaml_tree_parse(text, strlen(text), &t, &error);
}

static void a_configuration_file(void **state _unused_)
{
	survives(reading_yaml);
}

static unsigned int calls_done;

static void on_done(struct grpc_call *call _unused_, const struct grpc_result *r _unused_,
		    void *userdata _unused_, uint64_t now _unused_)
{
	calls_done++;
}

static int calling(void)
{
	static const struct grpc_settings settings = {
		.scheme = "http",
		.authority = "a:1",
		.user_agent = "t",
		.ping_interval = GRPC_PING_INTERVAL,
		.ping_timeout = GRPC_PING_TIMEOUT,
	};
	_cleanup_(grpc_freep)
	struct grpc *g = NULL;
	_cleanup_(buf_unrefp)
	struct buf *payload = filled('c');
	struct grpc_request request = {
		.path = "/a.B/C",
		.payload = payload,
		.timeout = USEC_PER_SEC,
		.done = on_done,
	};
	struct grpc_call *call;
	struct iovec iov[8];
	unsigned int before = calls_done, started = 0;
	int r;

	if (!payload)
		return -ENOMEM;
	r = grpc_new(&settings, NOW, &g);
	if (r < 0)
		return r;
	r = grpc_call_start(g, &request, NOW, &call);
	started += r == 0;
	(void)grpc_output(g, iov, ARRAY_SIZE(iov));
	grpc_close(g, "over", NOW);
	/* Who was told that his call began is told how it ended. */
	assert_int_equal(calls_done - before, started);
	return r == -EPIPE ? -ENOMEM : r;
}

static void a_call_upstream(void **state _unused_)
{
	survives(calling);
}

/* systemd's rule: a destructor takes NULL, and so a variable that was never set. */
static void a_destructor_takes_nothing(void **state _unused_)
{
	_cleanup_(admission_freep)
	_unused_ struct admission *a = NULL;
	_cleanup_(cache_freep)
	_unused_ struct cache *c = NULL;
	_cleanup_(extent_space_freep)
	_unused_ struct extent_space *e = NULL;
	_cleanup_(flow_table_freep)
	_unused_ struct flow_table *f = NULL;
	_cleanup_(grpc_freep)
	_unused_ struct grpc *g = NULL;
	_cleanup_(grpc_conn_freep)
	_unused_ struct grpc_conn *gc = NULL;
	_cleanup_(ingest_freep)
	_unused_ struct ingest *i = NULL;
	_cleanup_(listener_freep)
	_unused_ struct listener *l = NULL;
	_cleanup_(match_table_freep)
	_unused_ struct match_table *mt = NULL;
	_cleanup_(match_unrefp)
	_unused_ struct match *m = NULL;
	_cleanup_(packer_freep)
	_unused_ struct packer *p = NULL;
	_cleanup_(reader_freep)
	_unused_ struct reader *rd = NULL;
	_cleanup_(relay_freep)
	_unused_ struct relay *r = NULL;
	_cleanup_(resolve_freep)
	_unused_ struct resolve *rs = NULL;
	_cleanup_(sandbox_freep)
	_unused_ struct sandbox *s = NULL;
	_cleanup_(tls_context_freep)
	_unused_ SSL_CTX *tls = NULL;
	_cleanup_(trace_freep)
	_unused_ struct trace *t = NULL;
	_cleanup_(tracker_freep)
	_unused_ struct tracker *tr = NULL;
	_cleanup_(unseen_freep)
	_unused_ struct unseen *u = NULL;
	_cleanup_(vm_table_freep)
	_unused_ struct vm_table *v = NULL;
	_cleanup_(yaml_tree_freep)
	_unused_ struct yaml_tree *y = NULL;

	assert_null(admission_free(NULL));
	assert_null(cache_free(NULL));
	assert_null(extent_space_free(NULL));
	assert_null(flow_table_free(NULL));
	assert_null(grpc_free(NULL));
	assert_null(match_table_free(NULL));
	assert_null(match_unref(NULL));
	assert_null(packer_free(NULL));
	assert_null(reader_free(NULL));
	assert_null(relay_free(NULL));
	assert_null(tracker_free(NULL));
	assert_null(vm_table_free(NULL));
	assert_null(yaml_tree_free(NULL));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(vms_and_places),
		cmocka_unit_test(the_tracker),
		cmocka_unit_test(the_relay),
		cmocka_unit_test(contents_to_compare_with),
		cmocka_unit_test(extents_of_the_block_digests),
		cmocka_unit_test(flows_of_a_trace),
		cmocka_unit_test(packed_contents),
		cmocka_unit_test(times_in_a_heap),
		cmocka_unit_test(vms_by_id),
		cmocka_unit_test(a_configuration_file),
		cmocka_unit_test(a_call_upstream),
		cmocka_unit_test(a_destructor_takes_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
