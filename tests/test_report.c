/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <cmocka.h>

#include "fuzz/report_oracle.h"
#include "synthetic.h"

#define CID	42
#define MUTANTS 20000

/* Every report is validated at the end of an allocation of its own length, so that ASan sees a
 * read beyond it, and held against protobuf-c on the way. */
static int validate_as(const struct wire *w, uint32_t cid, struct report_error *error,
		       struct report_info *ret)
{
	uint8_t *copy = malloc(w->len);
	const char *problem;
	int r;

	assert_true(w->len == 0 || copy);
	if (w->len > 0)
		memcpy(copy, w->data, w->len);
	problem = oracle_check(copy, w->len, cid);
	if (problem)
		fail_msg("%s", problem);
	r = report_validate(copy, w->len, cid, error, NULL);
	free(copy);
	if (ret && r == 0)
		assert_int_equal(report_validate(w->data, w->len, cid, NULL, ret), 0);
	return r;
}

static int validate(const struct wire *w)
{
	return validate_as(w, CID, NULL, NULL);
}

static void assert_malformed(const struct wire *w, const char *what)
{
	struct report_error error = {};

	assert_int_equal(validate_as(w, CID, &error, NULL), -EBADMSG);
	assert_string_equal(error.what, what);
}

/* index_report{vsock_cid}, and what comes behind it is the test's. */
static void begin(struct wire *w)
{
	_cleanup_wire_ struct wire index = {};

	wire_string(&index, 1, "42");
	wire_message(w, 1, &index);
}

/* A report whose index_report has this vsock_cid. */
static int validate_cid(const void *cid, size_t len, uint32_t peer_cid)
{
	_cleanup_wire_ struct wire w = {}, index = {};

	wire_bytes(&index, 1, cid, len);
	wire_message(&w, 1, &index);
	return validate_as(&w, peer_cid, NULL, NULL);
}

/* ---- the CID ---- */

static void empty_report_is_a_cid_mismatch(void **state _unused_)
{
	struct report_error error = {};

	assert_int_equal(report_validate(NULL, 0, CID, &error, NULL), -ESRCH);
	assert_string_equal(error.what, "missing");
	assert_string_equal(error.claimed_cid, "");
	assert_int_equal(report_reason(-ESRCH), REASON_CID_MISMATCH);
	assert_int_equal(report_reason(-EBADMSG), REASON_MALFORMED);
	assert_int_equal(report_reason(0), REASON_NONE);
}

static void missing_index_report_or_vsock_cid_is_a_cid_mismatch(void **state _unused_)
{
	_cleanup_wire_ struct wire only_discovered = {}, no_cid = {}, m = {};

	wire_message(&only_discovered, 2, &m);
	assert_int_equal(validate(&only_discovered), -ESRCH);
	wire_string(&m, 3, "vm");
	wire_message(&no_cid, 1, &m);
	assert_int_equal(validate(&no_cid), -ESRCH);
}

static void cid_is_the_peers_in_canonical_decimal(void **state _unused_)
{
	static const char *const others[] = { "",	    "4",    "43",
					      "420",	    "042",  "+42",
					      "-42",	    " 42",  "42 ",
					      "0x2a",	    "4 2",  "42.0",
					      "4294967338", "42\n", "\xd9\xa4\xd9\xa2" };

	assert_int_equal(validate_cid("42", 2, 42), 0);
	assert_int_equal(validate_cid("0", 1, 0), 0);
	assert_int_equal(validate_cid("4294967295", 10, UINT32_MAX), 0);
	assert_int_equal(validate_cid("42\0", 3, 42), -ESRCH);
	assert_int_equal(validate_cid("42\0x", 4, 42), -ESRCH);
	for (size_t i = 0; i < ARRAY_SIZE(others); i++)
		assert_int_equal(validate_cid(others[i], strlen(others[i]), 42), -ESRCH);
}

static void claimed_cid_is_given_for_the_log_cut_and_printable(void **state _unused_)
{
	_cleanup_wire_ struct wire w = {}, index = {};
	struct report_error error = {};

	wire_string(&index, 1, "4\n\x1b[2J0123456789abcdef");
	wire_message(&w, 1, &index);
	assert_int_equal(validate_as(&w, CID, &error, NULL), -ESRCH);
	assert_string_equal(error.claimed_cid, "4??[2J012345678");
}

static void vsock_cid_may_follow_any_other_field(void **state _unused_)
{
	_cleanup_wire_ struct wire w = {}, index = {}, m = {};

	wire_message(&w, 2, &m);
	wire_message(&index, 2, &m);
	wire_string(&index, 3, "vm");
	wire_string(&index, 1, "42");
	wire_message(&w, 1, &index);
	assert_int_equal(validate(&w), 0);
}

static void second_index_report_is_malformed(void **state _unused_)
{
	_cleanup_wire_ struct wire same = {}, empty = {}, overlong = {}, apart = {}, m = {};

	begin(&same);
	begin(&same);
	assert_malformed(&same, "repeated");

	begin(&empty);
	wire_message(&empty, 1, &m);
	assert_malformed(&empty, "repeated");

	for (unsigned n = 2; n <= 5; n++) {
		overlong.len = 0;
		begin(&overlong);
		wire_varint_n(&overlong, 1 << 3 | 2, n);
		wire_varint(&overlong, 0);
		assert_malformed(&overlong, "repeated");
	}

	begin(&apart);
	wire_message(&apart, 2, &m);
	wire_string(&apart, 77, "unknown");
	begin(&apart);
	assert_malformed(&apart, "repeated");
}

static void second_vsock_cid_is_malformed(void **state _unused_)
{
	_cleanup_wire_ struct wire w = {}, index = {};

	for (unsigned tag_len = 1; tag_len <= 5; tag_len++) {
		w.len = 0;
		wire_string(&index, 1, "42");
		wire_string(&index, 3, "vm");
		wire_varint_n(&index, 1 << 3 | 2, tag_len);
		wire_varint(&index, 2);
		wire_raw(&index, tag_len % 2 ? "42" : "43", 2);
		wire_message(&w, 1, &index);
		assert_malformed(&w, "repeated");
	}
}

static void first_field_one_counts_however_its_tag_is_written(void **state _unused_)
{
	for (unsigned n = 1; n <= 5; n++) {
		_cleanup_wire_ struct wire w = {}, index = {};

		wire_varint_n(&index, 1 << 3 | 2, n);
		wire_varint_n(&index, 2, n);
		wire_raw(&index, "42", 2);
		wire_varint_n(&w, 1 << 3 | 2, n);
		wire_varint_n(&w, index.len, n);
		wire_raw(&w, index.data, index.len);
		assert_int_equal(validate(&w), 0);
		assert_int_equal(validate_as(&w, 43, NULL, NULL), -ESRCH);
	}
}

static void index_report_and_vsock_cid_have_a_length_or_are_malformed(void **state _unused_)
{
	static const struct {
		unsigned wire_type;
		const char *what;
	} types[] = { { 0, "wrong wire type" },	  { 1, "wrong wire type" },
		      { 3, "unknown wire type" }, { 4, "unknown wire type" },
		      { 5, "wrong wire type" },	  { 6, "unknown wire type" },
		      { 7, "unknown wire type" } };

	for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
		_cleanup_wire_ struct wire outer = {}, inner = {}, index = {};

		/* 8 bytes that end a varint at once, and are a fixed64, or a fixed32 and a field */
		begin(&outer);
		wire_tag(&outer, 1, types[i].wire_type);
		wire_raw(&outer, "\x01\x00\x00\x00\x50\x00\x50\x00", 8);
		assert_malformed(&outer, types[i].what);

		wire_string(&index, 1, "42");
		wire_tag(&index, 1, types[i].wire_type);
		wire_raw(&index, "\x01\x00\x00\x00\x50\x00\x50\x00", 8);
		wire_message(&inner, 1, &index);
		assert_malformed(&inner, types[i].what);
	}
}

/* A reader that keeps 32 bits of the tag, or 32 of the number, would find a field 1 in these. */
static void field_one_cannot_hide_above_the_bits_of_a_tag(void **state _unused_)
{
	static const uint64_t tags[] = { 1ULL << 32 | 10, 1ULL << 34 | 10, 1ULL << 35 | 10,
					 1ULL << 61 | 10, 1ULL << 63 | 10 };

	for (size_t i = 0; i < ARRAY_SIZE(tags); i++) {
		_cleanup_wire_ struct wire w = {};

		begin(&w);
		wire_varint(&w, tags[i]);
		wire_varint(&w, 0);
		assert_malformed(&w, "bad tag");
	}
}

/* ---- tags, numbers, lengths ---- */

static void field_numbers_are_1_to_2_to_the_29_minus_1(void **state _unused_)
{
	static const struct {
		uint64_t number;
		bool valid;
	} numbers[] = { { 0, false },
			{ 15, true },
			{ 16, true },
			{ 19000, true },
			{ (1 << 29) - 1, true },
			{ 1 << 29, false },
			{ (1ULL << 32) - 1, false } };

	for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
		_cleanup_wire_ struct wire w = {};

		begin(&w);
		wire_string(&w, numbers[i].number, "x");
		assert_int_equal(validate(&w), numbers[i].valid ? 0 : -EBADMSG);
	}
}

static void tag_of_six_bytes_is_malformed(void **state _unused_)
{
	_cleanup_wire_ struct wire w = {};

	begin(&w);
	wire_varint_n(&w, 2 << 3 | 2, 6);
	wire_varint(&w, 0);
	assert_malformed(&w, "bad tag");
}

static void length_has_at_most_five_bytes_and_31_bits(void **state _unused_)
{
	_cleanup_wire_ struct wire five = {}, six = {}, dropped = {};

	begin(&five);
	wire_tag(&five, 2, 2);
	wire_varint_n(&five, 0, 5);
	assert_int_equal(validate(&five), 0);

	begin(&six);
	wire_tag(&six, 2, 2);
	wire_varint_n(&six, 0, 6);
	assert_malformed(&six, "bad length");

	/* 2^32: a reader that keeps 32 bits of it would read on at once */
	begin(&dropped);
	wire_tag(&dropped, 2, 2);
	wire_varint(&dropped, 1ULL << 32);
	assert_malformed(&dropped, "bad length");
}

static void length_beyond_the_message_around_it_is_malformed(void **state _unused_)
{
	static const uint64_t lengths[] = { 4, 5, 127, 128, 16384 * KIB, INT32_MAX };

	for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
		_cleanup_wire_ struct wire w = {}, index = {};

		/* the report goes on behind the message that is too short for its field */
		wire_string(&index, 1, "42");
		wire_tag(&index, 3, 2);
		wire_varint(&index, lengths[i]);
		wire_raw(&index, "abc", 3);
		wire_message(&w, 1, &index);
		wire_string(&w, 99, "and so on");
		assert_malformed(&w, "longer than the message around it");
	}
}

static void report_cut_at_any_byte_is_judged_as_protobuf_c_does(void **state _unused_)
{
	_cleanup_wire_ struct wire w = {};
	size_t len;

	synthetic_report(&w, "42", 2, 2);
	assert_int_equal(validate(&w), 0);
	len = w.len;
	for (w.len = 0; w.len < len; w.len++)
		validate(&w);
	/* of all of them only the empty one, and index_report without discovered_data, are whole */
	w.len = len - 1;
	assert_malformed(&w, "longer than the message around it");
	w.len = 1;
	assert_malformed(&w, "bad length");
}

/* ---- values ---- */

static void varint_has_at_most_ten_bytes_and_64_bits(void **state _unused_)
{
	static const struct {
		const char *bytes;
		bool valid;
	} values[] = {
		{ "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", true },
		{ "\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", true },
		{ "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", false },
		{ "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", false },
		{ "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x80\x01", false },
		{ "\xff", false },
	};

	for (size_t i = 0; i < ARRAY_SIZE(values); i++) {
		_cleanup_wire_ struct wire unknown = {}, known = {}, m = {};
		int expected = values[i].valid ? 0 : -EBADMSG;

		begin(&unknown);
		wire_tag(&unknown, 50, 0);
		wire_raw(&unknown, values[i].bytes, strlen(values[i].bytes));
		assert_int_equal(validate(&unknown), expected);

		begin(&known);
		wire_tag(&m, 1, 0);
		wire_raw(&m, values[i].bytes, strlen(values[i].bytes));
		wire_message(&known, 2, &m);
		assert_int_equal(validate(&known), expected);
	}
}

/* Wraps the content of m, a message of type NormalizedVersion, into a report. */
static void wrap_normalized_version(struct wire *w, struct wire *m)
{
	/* index_report.index_v4.contents.packages[].value.normalized_version */
	static const unsigned path[] = { 4, 2, 5, 5, 2 };
	_cleanup_wire_ struct wire inner = {};

	for (size_t i = 0; i < ARRAY_SIZE(path); i++) {
		wire_message(&inner, path[i], m);
		wire_raw(m, inner.data, inner.len);
		inner.len = 0;
	}
	wire_string(m, 1, "42");
	wire_message(w, 1, m);
}

static void repeated_numbers_are_read_packed_and_not(void **state _unused_)
{
	static const struct {
		const char *bytes;
		size_t len;
		bool valid;
	} fields[] = {
		{ "\x10\x01\x10\x02", 4, true },
		{ "\x12\x00", 2, true },
		{ "\x12\x03\x01\x80\x01", 5, true },
		{ "\x10\x01\x12\x01\x02\x10\x03", 7, true },
		{ "\x12\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 12, true },
		{ "\x12\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", 12, false },
		{ "\x12\x0b\xff\xff\xff\xff\xff\xff\xff\xff\xff\x80\x00", 13, false },
		{ "\x12\x02\x01\x80", 4, false },
		{ "\x12\x03\x01\x02", 4, false },
		{ "\x15\x00\x00\x00\x00", 5, false },
		{ "\x11\x00\x00\x00\x00\x00\x00\x00\x00", 9, false },
	};

	for (size_t i = 0; i < ARRAY_SIZE(fields); i++) {
		_cleanup_wire_ struct wire w = {}, m = {};

		wire_raw(&m, fields[i].bytes, fields[i].len);
		wrap_normalized_version(&w, &m);
		assert_int_equal(validate(&w), fields[i].valid ? 0 : -EBADMSG);
	}
}

static void enum_values_without_a_name_are_allowed(void **state _unused_)
{
	_cleanup_wire_ struct wire w = {}, m = {};
	struct report_info info = {};

	begin(&w);
	wire_int(&m, 1, 77);
	wire_int(&m, 3, -1);
	wire_message(&w, 2, &m);
	assert_int_equal(validate_as(&w, CID, NULL, &info), 0);
	assert_int_equal(info.detected_os, 77);
}

static void unknown_fields_of_every_wire_type_are_allowed_anywhere(void **state _unused_)
{
	_cleanup_wire_ struct wire w = {}, m = {}, fields = {};

	wire_int(&fields, 100, 1);
	wire_string(&fields, 14, "\xff not UTF-8, which nobody asked of it");
	wire_tag(&fields, 15, 1);
	wire_raw(&fields, "\xff\xff\xff\xff\xff\xff\xff\xff", 8);
	wire_tag(&fields, 16, 5);
	wire_raw(&fields, "\xff\xff\xff\xff", 4);

	wire_raw(&m, fields.data, fields.len);
	wrap_normalized_version(&w, &m);
	wire_raw(&w, fields.data, fields.len);
	assert_int_equal(validate(&w), 0);

	for (unsigned cut = 1; cut <= 4; cut++) {
		w.len--;
		assert_malformed(&w, "cut");
	}
}

static void value_beyond_the_message_around_it_is_malformed(void **state _unused_)
{
	static const struct {
		const char *bytes;
		size_t len;
		const char *what;
	} fields[] = {
		{ "\x79\0\0\0\0\0\0\0", 8, "cut" }, /* field 15, fixed64 */
		{ "\x7d\0\0\0", 4, "cut" },	    /* field 15, fixed32 */
		{ "\x78\x80", 2, "bad varint" },    { "\x7a\x80", 2, "bad length" },
		{ "\x80", 1, "bad tag" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(fields); i++) {
		_cleanup_wire_ struct wire w = {}, m = {};

		begin(&w);
		wire_raw(&m, fields[i].bytes, fields[i].len);
		wire_message(&w, 2, &m);
		wire_raw(&w, "\x0a\x00\x78\x01\x78\x01\x78\x01\x78\x01", 10);
		assert_malformed(&w, fields[i].what);
	}
}

static void groups_are_malformed_as_for_protobuf_c(void **state _unused_)
{
	_cleanup_wire_ struct wire w = {};

	begin(&w);
	wire_tag(&w, 100, 3);
	wire_tag(&w, 100, 4);
	assert_malformed(&w, "unknown wire type");
}

static void raw_report_never_begins_with_V(void **state _unused_)
{
	_cleanup_wire_ struct wire w = {};

	wire_raw(&w, "VSR1", 4);
	assert_malformed(&w, "unknown wire type");
}

static void numbers_of_discovered_data_are_taken_as_receivers_take_them(void **state _unused_)
{
	_cleanup_wire_ struct wire w = {}, m = {};
	struct report_info info = {};

	begin(&w);
	wire_int(&m, 1, 5);
	wire_int(&m, 1, 1);
	wire_string(&m, 2, "8.1");
	wire_string(&m, 2, "9.4");
	wire_message(&w, 2, &m);
	wire_message(&w, 2, &m);
	assert_int_equal(validate_as(&w, CID, NULL, &info), 0);
	assert_int_equal(info.detected_os, 1);
	assert_int_equal(info.os_version_len, 3);
	assert_memory_equal(info.os_version, "9.4", 3);
}

static void info_says_what_the_report_claims(void **state _unused_)
{
	_cleanup_wire_ struct wire w = {};
	struct report_info info = {};

	synthetic_report(&w, "42", 30, 3);
	assert_int_equal(validate_as(&w, CID, NULL, &info), 0);
	assert_int_equal(info.packages, 30);
	assert_int_equal(info.packages_deprecated, 0);
	assert_int_equal(info.vm_id_len, strlen(SYNTHETIC_VM_ID));
	assert_memory_equal(info.vm_id, SYNTHETIC_VM_ID, info.vm_id_len);
	assert_int_equal(info.vsock_cid_len, 2);
	assert_memory_equal(info.vsock_cid, "42", 2);
	assert_int_equal(info.detected_os, VIRTUALMACHINE__V1__DETECTED_OS__RHEL);
}

static void info_is_untouched_when_the_report_is_refused(void **state _unused_)
{
	struct report_info info, before;

	memset(&info, 0x5a, sizeof(info));
	memcpy(&before, &info, sizeof(info));
	assert_int_equal(report_validate((const uint8_t *)"\x0a", 1, CID, NULL, &info), -EBADMSG);
	assert_int_equal(report_validate((const uint8_t *)"\x0a\x00", 2, CID, NULL, &info), -ESRCH);
	assert_memory_equal(&info, &before, sizeof(info));
}

/* ---- the schema: the same rule for each field of each message type ---- */

struct path {
	const ProtobufCMessageDescriptor *desc;
	unsigned fields[16];
	unsigned depth;
};

/* A way from VMReport to every message type that it can hold. */
static size_t all_messages(struct path *paths, size_t max)
{
	size_t n = 1;

	paths[0] = (struct path){ .desc = &virtualmachine__v1__vmreport__descriptor };
	for (size_t i = 0; i < n; i++)
		for (unsigned f = 0; f < paths[i].desc->n_fields; f++) {
			const ProtobufCFieldDescriptor *field = &paths[i].desc->fields[f];
			bool known = field->type != PROTOBUF_C_TYPE_MESSAGE;

			for (size_t k = 0; k < n; k++)
				known = known || paths[k].desc == field->descriptor;
			if (known)
				continue;
			assert_true(n < max && paths[i].depth < ARRAY_SIZE(paths[i].fields));
			paths[n] = paths[i];
			paths[n].desc = field->descriptor;
			paths[n].fields[paths[n].depth++] = field->id;
			n++;
		}
	return n;
}

/* A report that holds the message in m at the end of the path, and nothing else but its CID;
 * without the CID if the message is VMReport or IndexReport itself. */
static void wrap(struct wire *w, const struct path *path, struct wire *m)
{
	_cleanup_wire_ struct wire inner = {};

	for (unsigned i = path->depth; i-- > 0;) {
		if (i == 0 && path->fields[0] == 1 && path->depth > 1)
			wire_string(m, 1, "42");
		wire_message(&inner, path->fields[i], m);
		wire_raw(m, inner.data, inner.len);
		inner.len = 0;
	}
	if (path->depth > 0 && path->fields[0] == 2)
		begin(m);
	wire_raw(w, m->data, m->len);
}

/* For each field of each message type: put() writes it, and check() gets the report around it. */
static void for_each_field(void (*put)(struct wire *m, const ProtobufCFieldDescriptor *field),
			   void (*check)(const struct wire *w, const struct path *path,
					 const ProtobufCFieldDescriptor *field))
{
	struct path paths[32];
	size_t n = all_messages(paths, ARRAY_SIZE(paths));

	assert_true(n >= 16);
	for (size_t i = 0; i < n; i++)
		for (unsigned f = 0; f < paths[i].desc->n_fields; f++) {
			_cleanup_wire_ struct wire w = {}, m = {};

			put(&m, &paths[i].desc->fields[f]);
			wrap(&w, &paths[i], &m);
			check(&w, &paths[i], &paths[i].desc->fields[f]);
		}
}

static void put_latin1(struct wire *m, const ProtobufCFieldDescriptor *field)
{
	if (field->type == PROTOBUF_C_TYPE_STRING)
		wire_string(m, field->id, "a long name, pass\xe9");
}

static void check_latin1(const struct wire *w, const struct path *path,
			 const ProtobufCFieldDescriptor *field)
{
	struct report_error error = {};

	if (field->type != PROTOBUF_C_TYPE_STRING)
		return;
	assert_int_equal(validate_as(w, CID, &error, NULL), -EBADMSG);
	assert_string_equal(error.what, "string is not UTF-8");
	assert_string_equal(error.message, path->desc->name);
	assert_int_equal(error.field, field->id);
	assert_int_equal(w->data[error.offset], field->id << 3 | 2);
}

static void every_string_must_be_utf8(void **state _unused_)
{
	for_each_field(put_latin1, check_latin1);
}

static void put_fixed32(struct wire *m, const ProtobufCFieldDescriptor *field)
{
	wire_tag(m, field->id, 5);
	wire_raw(m, "\0\0\0\0", 4);
}

static bool has_length(const ProtobufCFieldDescriptor *field)
{
	return field->type == PROTOBUF_C_TYPE_STRING || field->type == PROTOBUF_C_TYPE_MESSAGE;
}

static void put_varint_for_length(struct wire *m, const ProtobufCFieldDescriptor *field)
{
	wire_int(m, field->id, 0);
}

static void put_length_for_varint(struct wire *m, const ProtobufCFieldDescriptor *field)
{
	wire_string(m, field->id, "");
}

static void check_fixed32(const struct wire *w, const struct path *path _unused_,
			  const ProtobufCFieldDescriptor *field _unused_)
{
	assert_malformed(w, "wrong wire type");
}

static void check_varint(const struct wire *w, const struct path *path _unused_,
			 const ProtobufCFieldDescriptor *field)
{
	if (has_length(field))
		assert_malformed(w, "wrong wire type");
}

static void check_length(const struct wire *w, const struct path *path _unused_,
			 const ProtobufCFieldDescriptor *field)
{
	if (!has_length(field) && field->label != PROTOBUF_C_LABEL_REPEATED)
		assert_malformed(w, "wrong wire type");
}

static void every_field_must_have_its_wire_type(void **state _unused_)
{
	for_each_field(put_fixed32, check_fixed32);
	for_each_field(put_varint_for_length, check_varint);
	for_each_field(put_length_for_varint, check_length);
}

/* ---- nesting ---- */

/* VMReport{index_report{vsock_cid, index_v4{contents{packages{value{source{source...}}}}}}} with
 * the innermost message at this depth (at least 5, the package). */
static void nest(struct wire *w, unsigned depth)
{
	static const struct path package = {
		.fields = { 1, 2, 5, 5, 2 },
		.depth = 5,
	};
	_cleanup_wire_ struct wire m = {}, outer = {};

	for (; depth > 5; depth--) {
		wire_message(&outer, 7, &m);
		wire_raw(&m, outer.data, outer.len);
		outer.len = 0;
	}
	wrap(w, &package, &m);
}

static void messages_nest_100_deep_and_no_deeper(void **state _unused_)
{
	_cleanup_wire_ struct wire at = {}, over = {}, far = {};

	nest(&at, REPORT_DEPTH_MAX);
	assert_int_equal(validate(&at), 0);
	nest(&over, REPORT_DEPTH_MAX + 1);
	assert_malformed(&over, "nested too deep");
	nest(&far, 3000);
	assert_malformed(&far, "nested too deep");
}

static void depth_counts_nesting_not_messages(void **state _unused_)
{
	_cleanup_wire_ struct wire w = {}, m = {};

	begin(&w);
	for (unsigned i = 0; i < 1000; i++)
		wire_message(&w, 2, &m);
	assert_int_equal(validate(&w), 0);
}

/* ---- UTF-8 ---- */

/* All sequences of 1 to 3 bytes, and of 4 with the edges of the last two. */
static void utf8_is_what_decoding_says(void **state _unused_)
{
	static const uint8_t edges[] = { 0x00, 0x41, 0x7f, 0x80, 0xbf, 0xc0, 0xff };
	uint8_t s[4];

	for (unsigned v = 0; v < 1 << 16; v++) {
		s[0] = v >> 8;
		s[1] = v;
		for (size_t n = 0; n <= 2; n++)
			assert_int_equal(utf8_valid(s, n), oracle_utf8(s, n));
		for (size_t i = 0; i < ARRAY_SIZE(edges); i++)
			for (size_t k = 0; k < ARRAY_SIZE(edges); k++) {
				s[2] = edges[i];
				s[3] = edges[k];
				assert_int_equal(utf8_valid(s, 3), oracle_utf8(s, 3));
				assert_int_equal(utf8_valid(s, 4), oracle_utf8(s, 4));
			}
	}
}

static void one_bad_byte_is_found_wherever_it_is(void **state _unused_)
{
	for (size_t len = 1; len <= 80; len++)
		for (size_t at = 0; at < len; at++)
			for (unsigned tail = 0; tail <= 8; tail += 8) {
				_cleanup_wire_ struct wire w = {}, m = {};
				char s[80];

				memset(s, 'a', len);
				s[at] = '\x80';
				begin(&w);
				wire_bytes(&m, 2, s, len);
				wire_message(&w, 2, &m);
				if (tail)
					wire_string(&w, 50, "\xff\xff\xff\xff\xff\xff");
				assert_malformed(&w, "string is not UTF-8");
			}
}

static void ascii_of_any_length_is_accepted_beside_high_bytes(void **state _unused_)
{
	for (size_t len = 0; len <= 80; len++)
		for (unsigned tail = 0; tail <= 8; tail += 8) {
			_cleanup_wire_ struct wire w = {}, m = {};
			char s[80];

			memset(s, '\x7f', len);
			begin(&w);
			wire_bytes(&m, 2, s, len);
			wire_message(&w, 2, &m);
			if (tail)
				wire_bytes(&w, 50, "\xff\xff\xff\xff\xff\xff", 6);
			assert_int_equal(validate(&w), 0);
		}
}

static void unicode_is_accepted_at_every_offset(void **state _unused_)
{
	static const char *const texts[] = { "é", "→", "🐧", "\xf4\x8f\xbf\xbf", "\xed\x9f\xbf" };

	for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
		for (int before = 0; before < 20; before++)
			for (int after = 0; after < 20; after += 7) {
				_cleanup_wire_ struct wire w = {}, m = {};

				begin(&w);
				wire_stringf(&m, 2, "%*s%s%*s", before, "", texts[i], after, "");
				wire_message(&w, 2, &m);
				assert_int_equal(validate(&w), 0);
			}
}

/* ---- the whole ---- */

static void large_report_is_valid_and_takes_a_fraction_of_unpacking_it(void **state _unused_)
{
	_cleanup_wire_ struct wire w = {};
	clock_t ours, theirs, begin_at;

#ifndef __OPTIMIZE__
	skip(); /* a build for coverage: protobuf-c's library is optimised and counts nothing */
#endif
	synthetic_report(&w, "42", 1100, 49);
	assert_in_range(w.len, 2400 * KIB, 2600 * KIB);
	assert_int_equal(validate(&w), 0);

	begin_at = clock();
	for (unsigned i = 0; i < 5; i++)
		assert_int_equal(report_validate(w.data, w.len, CID, NULL, NULL), 0);
	ours = clock() - begin_at;
	begin_at = clock();
	for (unsigned i = 0; i < 5; i++) {
		Virtualmachine__V1__VMReport *m =
			virtualmachine__v1__vmreport__unpack(NULL, w.len, w.data);

		assert_non_null(m);
		virtualmachine__v1__vmreport__free_unpacked(m, NULL);
	}
	theirs = clock() - begin_at;
	assert_true(2 * ours < theirs);
}

static uint64_t next_random(uint64_t *state)
{
	/* https://prng.di.unimi.it/splitmix64.c */
	uint64_t z = *state += 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

/* One change of those that hurt parsers: a bit, a byte, a special byte, one more, one less. */
static void mutate(struct wire *w, uint64_t *state)
{
	static const uint8_t special[] = { 0x00, 0x01, 0x07, 0x0a, 0x12, 0x7f, 0x80, 0xff };
	size_t at = next_random(state) % w->len;
	uint64_t v = next_random(state);

	switch (v >> 32 & 7) {
	case 0:
	case 1:
		w->data[at] ^= 1 << (v & 7);
		break;
	case 2:
		w->data[at] = v;
		break;
	case 3:
	case 4:
		w->data[at] = special[v % ARRAY_SIZE(special)];
		break;
	case 5:
		w->data[at]++;
		break;
	case 6:
		w->data[at]--;
		break;
	case 7:
		memmove(w->data + at, w->data + at + 1, w->len - at - 1);
		w->data[w->len - 1] = v;
		break;
	}
}

static void mutated_reports_are_judged_as_protobuf_c_does(void **state _unused_)
{
	_cleanup_wire_ struct wire original = {}, mutant = {};
	struct timespec ts;
	const char *s = getenv("SEED");
	uint64_t seed, random;

	clock_gettime(CLOCK_REALTIME, &ts);
	seed = s ? strtoull(s, NULL, 0) : (uint64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
	print_message("SEED=%llu\n", (unsigned long long)seed);
	random = seed;

	synthetic_report(&original, "42", 1, 1);
	for (unsigned i = 0; i < MUTANTS; i++) {
		unsigned changes = 1 + next_random(&random) % 3;

		mutant.len = 0;
		wire_raw(&mutant, original.data, original.len);
		while (changes-- > 0)
			mutate(&mutant, &random);
		validate(&mutant);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(empty_report_is_a_cid_mismatch),
		cmocka_unit_test(missing_index_report_or_vsock_cid_is_a_cid_mismatch),
		cmocka_unit_test(cid_is_the_peers_in_canonical_decimal),
		cmocka_unit_test(claimed_cid_is_given_for_the_log_cut_and_printable),
		cmocka_unit_test(vsock_cid_may_follow_any_other_field),
		cmocka_unit_test(second_index_report_is_malformed),
		cmocka_unit_test(second_vsock_cid_is_malformed),
		cmocka_unit_test(first_field_one_counts_however_its_tag_is_written),
		cmocka_unit_test(index_report_and_vsock_cid_have_a_length_or_are_malformed),
		cmocka_unit_test(field_one_cannot_hide_above_the_bits_of_a_tag),
		cmocka_unit_test(field_numbers_are_1_to_2_to_the_29_minus_1),
		cmocka_unit_test(tag_of_six_bytes_is_malformed),
		cmocka_unit_test(length_has_at_most_five_bytes_and_31_bits),
		cmocka_unit_test(length_beyond_the_message_around_it_is_malformed),
		cmocka_unit_test(report_cut_at_any_byte_is_judged_as_protobuf_c_does),
		cmocka_unit_test(varint_has_at_most_ten_bytes_and_64_bits),
		cmocka_unit_test(repeated_numbers_are_read_packed_and_not),
		cmocka_unit_test(enum_values_without_a_name_are_allowed),
		cmocka_unit_test(unknown_fields_of_every_wire_type_are_allowed_anywhere),
		cmocka_unit_test(value_beyond_the_message_around_it_is_malformed),
		cmocka_unit_test(groups_are_malformed_as_for_protobuf_c),
		cmocka_unit_test(raw_report_never_begins_with_V),
		cmocka_unit_test(numbers_of_discovered_data_are_taken_as_receivers_take_them),
		cmocka_unit_test(info_says_what_the_report_claims),
		cmocka_unit_test(info_is_untouched_when_the_report_is_refused),
		cmocka_unit_test(every_string_must_be_utf8),
		cmocka_unit_test(every_field_must_have_its_wire_type),
		cmocka_unit_test(messages_nest_100_deep_and_no_deeper),
		cmocka_unit_test(depth_counts_nesting_not_messages),
		cmocka_unit_test(utf8_is_what_decoding_says),
		cmocka_unit_test(one_bad_byte_is_found_wherever_it_is),
		cmocka_unit_test(ascii_of_any_length_is_accepted_beside_high_bytes),
		cmocka_unit_test(unicode_is_accepted_at_every_offset),
		cmocka_unit_test(large_report_is_valid_and_takes_a_fraction_of_unpacking_it),
		cmocka_unit_test(mutated_reports_are_judged_as_protobuf_c_does),
	};

	return cmocka_run_group_tests_name("report", tests, NULL, NULL);
}
