/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The messages that are exchanged with the upstream, byte for byte (SPEC 8): the numbers are a
 * contract with programs that we do not build.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sensor/compliance.pb-c.h"
#include "sensor/virtual_machine_index_report.pb-c.h"
#include "util.h"

static const ProtobufCFieldDescriptor *field(const ProtobufCMessageDescriptor *d, const char *name)
{
	const ProtobufCFieldDescriptor *f =
		protobuf_c_message_descriptor_get_field_by_name(d, name);

	assert_non_null(f);
	return f;
}

static void an_ack_is_read_by_its_numbers(void **state _unused_)
{
	/* action absent (ACK), message_type 2, resource_id, within field 5 */
	static const uint8_t ack[] = { 0x2a, 0x0a, 0x10, 0x02, 0x1a, 0x06,
				       'v',  'm',  ':',	 '1',  '0',  '0' };
	/* action 1, message_type 2, resource_id, reason */
	static const uint8_t nack[] = { 0x2a, 0x0c, 0x08, 0x01, 0x10, 0x02, 0x1a,
					0x01, '7',  0x22, 0x03, 'w',  'h',  'y' };
	Sensor__MsgToCompliance *m;

	m = sensor__msg_to_compliance__unpack(NULL, sizeof(ack), ack);
	assert_non_null(m);
	assert_int_equal(m->msg_case, SENSOR__MSG_TO_COMPLIANCE__MSG_COMPLIANCE_ACK);
	assert_int_equal(m->compliance_ack->action, SENSOR__COMPLIANCE_ACK__ACTION__ACK);
	assert_int_equal(m->compliance_ack->message_type,
			 SENSOR__COMPLIANCE_ACK__MESSAGE_TYPE__VM_INDEX_REPORT);
	assert_string_equal(m->compliance_ack->resource_id, "vm:100");
	sensor__msg_to_compliance__free_unpacked(m, NULL);

	m = sensor__msg_to_compliance__unpack(NULL, sizeof(nack), nack);
	assert_non_null(m);
	assert_int_equal(m->compliance_ack->action, SENSOR__COMPLIANCE_ACK__ACTION__NACK);
	assert_string_equal(m->compliance_ack->resource_id, "7");
	assert_string_equal(m->compliance_ack->reason, "why");
	sensor__msg_to_compliance__free_unpacked(m, NULL);
}

static void other_messages_on_the_stream_are_no_ack(void **state _unused_)
{
	static const uint8_t config[] = { 0x0a, 0x02, 0x08, 0x01 };
	Sensor__MsgToCompliance *m =
		sensor__msg_to_compliance__unpack(NULL, sizeof(config), config);

	assert_non_null(m);
	assert_int_equal(m->msg_case, SENSOR__MSG_TO_COMPLIANCE__MSG__NOT_SET);
	sensor__msg_to_compliance__free_unpacked(m, NULL);
}

/* The accepted bytes are the request (SPEC 3): the two messages must stay the same. */
static void the_request_has_the_form_of_a_report(void **state _unused_)
{
	const ProtobufCMessageDescriptor *request =
		&sensor__upsert_virtual_machine_index_report_request__descriptor;
	const ProtobufCMessageDescriptor *report = &virtualmachine__v1__vmreport__descriptor;

	assert_int_equal(request->n_fields, report->n_fields);
	for (unsigned int i = 0; i < request->n_fields; i++) {
		assert_int_equal(request->fields[i].id, report->fields[i].id);
		assert_string_equal(request->fields[i].name, report->fields[i].name);
		assert_ptr_equal(request->fields[i].descriptor, report->fields[i].descriptor);
	}
}

static void numbers_are_the_reference_s(void **state _unused_)
{
	assert_int_equal(field(&sensor__upsert_virtual_machine_index_report_response__descriptor,
			       "success")
				 ->id,
			 1);
	assert_int_equal(field(&sensor__msg_from_compliance__descriptor, "node")->id, 1);
	assert_int_equal(field(&sensor__msg_to_compliance__descriptor, "compliance_ack")->id, 5);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_ack_is_read_by_its_numbers),
		cmocka_unit_test(other_messages_on_the_stream_are_no_ack),
		cmocka_unit_test(the_request_has_the_form_of_a_report),
		cmocka_unit_test(numbers_are_the_reference_s),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
