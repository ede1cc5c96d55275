/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What vsock-relayctl, or anybody else on the admin socket, asks for: any query to any page that
 * reads one. HTTP itself is libmicrohttpd's. What must hold: a page that answers well is JSON, one
 * that does not says why in a line; only /drop takes content, and only that of the VM it names. The
 * first byte is the page; then keys and values, each behind a byte 0.
 */
#include <jansson.h>
#include <microhttpd.h>

#include "control.h"
#include "log.h"
#include "world.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define PAIRS_MAX 8

struct admin_request {
	char text[4096];
	const char *key[PAIRS_MAX], *value[PAIRS_MAX];
	size_t n;
};

const char *admin_query(const struct admin_request *q, const char *key)
{
	for (size_t i = 0; i < q->n; i++)
		if (streq(q->key[i], key))
			return q->value[i];
	return NULL;
}

static void split(struct admin_request *q, const uint8_t *data, size_t size)
{
	char *p = q->text, *end = q->text + size;

	memcpy(q->text, data, size);
	*end = '\0';
	for (q->n = 0; q->n < PAIRS_MAX && p < end; q->n++) {
		q->key[q->n] = p;
		p += strlen(p) + 1;
		q->value[q->n] = p <= end ? p : end;
		p += p <= end ? strlen(p) + 1 : 0;
	}
}

static void no_state(void *userdata _unused_, struct control_state *ret)
{
	static const struct settings settings;

	ret->settings = &settings;
}

static int no_reload(void *userdata _unused_)
{
	return 0;
}

static void nothing(void *userdata _unused_)
{
}

/* Status and figures take no query, and more than this world has. */
static bool is_asked(const char *path)
{
	return !streq(path, "/status.json") && !streq(path, "/metrics");
}

static void check_answer(const struct admin_page *page, int status, const char *text, size_t len)
{
	CHECK(status >= 200 && status < 600);
	CHECK(len > 0 && text[len - 1] == '\n' && strlen(text) == len);
	if (status == MHD_HTTP_OK && streq(page->type, ADMIN_JSON)) {
		json_t *json = json_loadb(text, len, 0, NULL);

		CHECK(json);
		json_decref(json);
	}
}

static void check_loss(const struct world *w, const struct admin_page *page,
		       const struct admin_request *q)
{
	const char *cid = admin_query(q, "cid");

	for (uint32_t i = 0; i < WORLD_VMS; i++)
		if (!w->vm[i]->custody) {
			CHECK(streq(page->path, "/drop") && cid && admin_query(q, "lose"));
			CHECK(strtoull(cid, NULL, 10) == WORLD_CID + i);
		}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct upstream up;
	static struct world w;
	struct control_parts parts = { .state = no_state, .refresh = nothing, .reload = no_reload };
	struct control *c;
	struct admin_request q;
	const struct admin_page *page;
	char *text = NULL;
	size_t len = 0;
	FILE *f;
	int r;

	if (size == 0 || size > sizeof(q.text))
		return 0;
	page = &control_pages[data[0] % control_n_pages];
	if (!is_asked(page->path))
		return 0;
	split(&q, data + 1, size - 1);
	log_set_level(LOG_ERR);
	if (!w.relay)
		world_new(&w, &up);
	parts.vms = w.vms;
	parts.relay = w.relay;
	parts.upstream = &up;
	CHECK(control_new(&parts, &c) == 0);
	f = open_memstream(&text, &len);
	CHECK(f);
	r = page->answer(&q, f, c);
	fclose(f);
	check_answer(page, r, text, len);
	check_loss(&w, page, &q);
	free(text);
	control_free(c);
	/* Who only looked, or was refused, has changed nothing. */
	if (page->access == ADMIN_WRITE && r == MHD_HTTP_OK)
		world_done(&w);
	return 0;
}
