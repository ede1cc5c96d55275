/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an upstream says on its stream of ACKs, from any bytes: the message, whom it names, and what
 * that does to contents in custody. What must hold: only an ACK, or a NACK for good, ends custody,
 * of one VM at most, and that one is named by its canonical CID and by no vm_id but its own. Behind a
 * first byte that is even stands a message; behind an odd one a resource, which goes into one.
 */
#include "../../user/upstream_grpc.c"

#include "world.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool seen_ack, seen_nack;
static char seen_resource[4096], seen_reason[4096];
static void (*relay_on_ack)(const struct upstream_ack *ack, void *userdata, uint64_t now);

static void listen_in(const struct upstream_ack *ack, void *userdata, uint64_t now)
{
	CHECK(strlen(ack->resource) == ack->resource_len);
	seen_nack = ack->nack;
	seen_ack = !ack->nack;
	snprintf(seen_resource, sizeof(seen_resource), "%s", ack->resource);
	snprintf(seen_reason, sizeof(seen_reason), "%s", ack->reason);
	relay_on_ack(ack, userdata, now);
}

/* Said in another way than user/tracker.c says it: all resources that may end this VM's custody. */
static bool may_name(size_t vm, const char *resource)
{
	char text[64];

	snprintf(text, sizeof(text), "%zu", WORLD_CID + vm);
	if (streq(resource, text))
		return true;
	/* A report without a vm_id is named by any. */
	if (!*world_ids[vm]) {
		const char *colon = strrchr(resource, ':');

		return colon && colon != resource && streq(colon + 1, text) &&
		       strchr(resource, ':') == colon;
	}
	snprintf(text, sizeof(text), "%s:%zu", world_ids[vm], WORLD_CID + vm);
	return streq(resource, text);
}

static bool is_named(void)
{
	for (size_t i = 0; i < WORLD_VMS; i++)
		if (may_name(i, seen_resource))
			return true;
	return false;
}

static void check_ends(const struct world *w)
{
	size_t ended = 0;

	for (size_t i = 0; i < WORLD_VMS; i++) {
		if (w->vm[i]->custody)
			continue;
		ended++;
		CHECK(may_name(i, seen_resource));
		CHECK(seen_ack ||
		      (seen_nack && (streq(seen_reason, "unsupported action") ||
				     streq(seen_reason, "missing scanner index data"))));
		CHECK(w->vm[i]->has_record == seen_ack);
	}
	CHECK(ended <= 1);
	CHECK(!(seen_ack && ended == 0 && is_named()));
}

/* A message with this resource; the caller frees it. */
static uint8_t *message_of(const uint8_t *text, size_t size, bool nack, size_t *ret_len)
{
	Sensor__MsgToCompliance m = SENSOR__MSG_TO_COMPLIANCE__INIT;
	Sensor__ComplianceACK ack = SENSOR__COMPLIANCE_ACK__INIT;
	char *resource = strndup((const char *)text, size);
	uint8_t *packed;

	CHECK(resource);
	ack.action =
		nack ? SENSOR__COMPLIANCE_ACK__ACTION__NACK : SENSOR__COMPLIANCE_ACK__ACTION__ACK;
	ack.message_type = SENSOR__COMPLIANCE_ACK__MESSAGE_TYPE__VM_INDEX_REPORT;
	ack.resource_id = resource;
	ack.reason = (char *)"unsupported action";
	m.msg_case = SENSOR__MSG_TO_COMPLIANCE__MSG_COMPLIANCE_ACK;
	m.compliance_ack = &ack;
	*ret_len = sensor__msg_to_compliance__get_packed_size(&m);
	packed = malloc(*ret_len);
	CHECK(packed);
	sensor__msg_to_compliance__pack(&m, packed);
	free(resource);
	return packed;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct upstream_grpc u = { .communicate = true };
	static struct world w;
	uint8_t *packed = NULL;
	size_t len;

	if (size == 0 || size > 4000)
		return 0;
	seen_ack = seen_nack = false;
	*seen_resource = *seen_reason = '\0';
	if (!w.relay) {
		world_new(&w, &u.upstream);
		relay_on_ack = u.upstream.on_ack;
		u.upstream.on_ack = listen_in;
	}
	len = size - 1;
	if (data[0] & 1)
		packed = message_of(data + 1, size - 1, data[0] & 2, &len);
	on_message(NULL, packed ? packed : data + 1, len, &u, WORLD_NOW);
	check_ends(&w);
	/* Nobody was named: all is as it was. */
	if (is_named())
		world_done(&w);
	free(packed);
	return 0;
}
