/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The framed mode's header, from hostile bytes. The input is a limit, the sizes of packets, and
 * the bytes of a stream. What must hold, however the stream is cut into packets:
 *
 *  - the verdict's state machine, which sees one byte at a time, comes to what reading the header
 *    at once says (include/vsr_frame.h), as the daemon does without BPF: same mode, same length,
 *    refused at the same byte for the same reason;
 *  - no more payload is counted than the limit and the frame allow, and no byte twice;
 *  - what was read as a header or an answer is written back as the same bytes.
 */
#include "../../bpf/verdict.bpf.h"
#include "check.h"
#include "util.h"

#define PACKETS 8

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* One packet, as the verdict takes it. */
static uint32_t packet(struct vsr_conn *c, const uint8_t *p, size_t len, uint64_t limit)
{
	uint32_t flag, payload;
	size_t i = 0;

	for (; i < len && verdict_in_header(c); i++) {
		flag = verdict_header_byte(c, p[i], limit);
		if (c->mode == VSR_MODE_RAW)
			break;
		if (flag != 0 && flag != VSR_CONN_HEADER_DONE)
			return flag;
	}
	flag = verdict_payload(c, len - i, limit, &payload);
	if (flag)
		return flag;
	CHECK(payload <= len - i);
	c->payload += payload;
	return 0;
}

static uint32_t stream(struct vsr_conn *c, const uint8_t *sizes, const uint8_t *p, size_t len,
		       uint64_t limit)
{
	for (size_t i = 0; len > 0; i++) {
		size_t n = MIN((size_t)sizes[i % PACKETS] + 1, len);
		uint32_t flag = packet(c, p, n, limit);

		if (flag)
			return flag;
		p += n;
		len -= n;
	}
	return 0;
}

/* What reading the header at once says. */
static uint32_t expected(const uint8_t *p, size_t len, uint64_t limit, uint64_t *ret_payload)
{
	struct vsr_header h;

	*ret_payload = 0;
	if (len == 0)
		return 0;
	if (p[0] != 'V') {
		*ret_payload = len;
		return len > limit ? VSR_CONN_TOO_LARGE : 0;
	}
	if (!vsr_magic_possible(p, MIN(len, (size_t)VSR_MAGIC_SIZE)))
		return VSR_CONN_BAD_HEADER;
	if (len < VSR_HEADER_SIZE)
		return 0;
	vsr_header_read(p, &h);
	*ret_payload = MIN((uint64_t)h.length, len - VSR_HEADER_SIZE);
	return h.length > limit ? VSR_CONN_TOO_LARGE : 0;
}

static void check_header(const struct vsr_conn *c, const uint8_t *p)
{
	uint8_t again[VSR_HEADER_SIZE];
	struct vsr_header h;

	vsr_header_read(p, &h);
	CHECK(c->mode == h.mode);
	CHECK(c->frame_len == h.length);
	CHECK(memcmp(c->header, p, VSR_HEADER_SIZE) == 0);
	vsr_header_write(again, &h);
	CHECK(memcmp(again, p, VSR_HEADER_SIZE) == 0);
	CHECK(!!verdict_frame_done(c) == (c->payload == h.length));
}

static void check_answer(const uint8_t *p)
{
	uint8_t again[VSR_ANSWER_SIZE];
	uint32_t status = 12345;

	if (vsr_answer_read(p, &status) < 0) {
		CHECK(status == 12345);
		return;
	}
	vsr_answer_write(again, status);
	CHECK(memcmp(again, p, VSR_ANSWER_SIZE) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vsr_conn c = {};
	const uint8_t *sizes;
	uint64_t limit, payload;
	uint32_t flag;

	if (size < 4 + PACKETS)
		return 0;
	limit = vsr_get_be32(data);
	sizes = data + 4;
	data += 4 + PACKETS;
	size -= 4 + PACKETS;

	flag = stream(&c, sizes, data, size, limit);
	CHECK(flag == expected(data, size, limit, &payload));
	CHECK(c.header_len <= VSR_HEADER_SIZE);
	CHECK(c.payload <= limit);
	if (flag == 0) {
		CHECK(c.payload == payload);
		if (size >= VSR_HEADER_SIZE && data[0] == 'V')
			check_header(&c, data);
	}
	if (size >= VSR_ANSWER_SIZE)
		check_answer(data);
	return 0;
}
