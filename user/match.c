/* SPDX-License-Identifier: Apache-2.0 */
#include "match.h"

#include "extent.h"
#include "metrics.h"

struct match_table {
	uint64_t *blocks; /* vsr_blocks, or own */
	uint64_t *own;
	uint32_t n;
	struct extent_space *space;
	uint64_t pinned;
};

struct match {
	struct match_table *table;
	unsigned refs;
	bool cached;
	struct extent *extent; /* NULL: none, or none needed */
	bool comparable;       /* by the verdict */
	struct buf *content;   /* packed, with unpack */
	match_unpack_t unpack;
	uint64_t length, digest;
};

int match_table_new(uint64_t *blocks, uint32_t n, struct match_table **ret)
{
	_cleanup_(match_table_freep)
	struct match_table *t = calloc(1, sizeof(*t));
	int r;

	if (!t)
		return -ENOMEM;
	if (!blocks && n > 0) {
		t->own = calloc(n, sizeof(*t->own));
		if (!t->own)
			return -ENOMEM;
	}
	t->blocks = blocks ?: t->own;
	t->n = n;
	r = extent_space_new(t->n, &t->space);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(t);
	return 0;
}

struct match_table *match_table_free(struct match_table *t)
{
	if (!t)
		return NULL;
	extent_space_free(t->space);
	free(t->own);
	free(t);
	return NULL;
}

void match_table_figures(const struct match_table *t, struct match_figures *ret)
{
	*ret = (struct match_figures){
		.blocks = t->n,
		.blocks_used = extent_taken(t->space),
		.pinned = t->pinned,
	};
}

/* Puts the digests where the verdict finds them. The grant that points there is published later,
 * with a barrier (ingest_bpf_grant_match()). */
static bool publish(struct match *m, const uint64_t *blocks)
{
	struct match_table *t = m->table;
	uint32_t n = (uint32_t)(m->length / VSR_BLOCK_SIZE);

	if (!t->blocks || !blocks)
		return false;
	/* Content below one block has only a tail, which the daemon compares. */
	if (n == 0)
		return true;
	if (extent_take(t->space, n, &m->extent) < 0) {
		metric_inc(METRIC_MATCH_NO_ROOM);
		return false;
	}
	memcpy(t->blocks + extent_first(m->extent), blocks, n * sizeof(*blocks));
	return true;
}

struct match *match_new(struct match_table *t, struct buf *content, uint64_t digest,
			const uint64_t *blocks)
{
	struct match *m = calloc(1, sizeof(*m));

	if (!m)
		return NULL;
	m->table = t;
	m->refs = 1;
	m->cached = true;
	m->content = buf_ref(content);
	m->length = buf_len(content);
	m->digest = digest;
	m->comparable = publish(m, blocks);
	return m;
}

struct match *match_ref(struct match *m)
{
	if (m)
		m->refs++;
	return m;
}

struct match *match_unref(struct match *m)
{
	if (!m || --m->refs > 0)
		return NULL;
	if (!m->cached)
		m->table->pinned -= match_cost(m);
	extent_give_back(m->table->space, m->extent);
	buf_unref(m->content);
	free(m);
	return NULL;
}

struct match *match_uncache(struct match *m)
{
	if (!m)
		return NULL;
	m->cached = false;
	m->table->pinned += match_cost(m);
	return match_unref(m);
}

bool match_cached(const struct match *m)
{
	return m->cached;
}

void match_pack(struct match *m, struct buf *packed, match_unpack_t unpack)
{
	struct buf *before = m->content;

	m->content = buf_ref(packed);
	m->unpack = unpack;
	buf_unref(before);
}

uint64_t match_length(const struct match *m)
{
	return m->length;
}

uint64_t match_digest(const struct match *m)
{
	return m->digest;
}

size_t match_cost(const struct match *m)
{
	return buf_cost(m->content);
}

bool match_extent(const struct match *m, uint64_t *ret_first)
{
	if (!m->comparable)
		return false;
	*ret_first = m->extent ? extent_first(m->extent) : 0;
	return true;
}

const uint64_t *match_blocks(const struct match *m)
{
	return m->extent ? m->table->blocks + extent_first(m->extent) : NULL;
}

struct buf *match_content(const struct match *m)
{
	return m->unpack ? NULL : m->content;
}

int match_copy(const struct match *m, uint8_t *to, size_t n)
{
	if (m->unpack)
		return m->unpack(m->content, to, n);
	memcpy(to, buf_data(m->content), n);
	return 0;
}
