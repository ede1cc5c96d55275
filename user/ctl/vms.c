/* SPDX-License-Identifier: Apache-2.0 */
/* vsock-relayctl vm: list and show. */
#include "commands.h"

static void print_row(const json_t *vm)
{
	char id[32], accepted[16], acked[16];

	snprintf(id, sizeof(id), "%lld:%lld", ctl_int(vm, "ns"), ctl_int(vm, "cid"));
	printf("%-12s %-15.15s %-9s %5lld %8s %8s %5lld %5lld %5lld\n", id, ctl_text(vm, "name"),
	       ctl_text(vm, "state"), ctl_int(vm, "daemon.generation"),
	       ctl_age(ctl_find(vm, "daemon.last_accepted_age"), accepted),
	       ctl_age(ctl_find(vm, "daemon.last_ack_age"), acked), ctl_int(vm, "daemon.received"),
	       ctl_int(vm, "daemon.duplicates"), ctl_int(vm, "daemon.refused"));
}

static int run_list(struct ctl *ctl, int argc, char *argv[])
{
	int r = ctl_check_args(ctl, argc, argv, 0, 0, "vm list");
	json_t *list, *vm;
	size_t i;

	if (r != CTL_OK)
		return r;
	r = ctl_vms(ctl, NULL, &list);
	if (r != CTL_OK)
		return r;
	if (ctl->json) {
		ctl_print_json(ctl, list);
		return CTL_OK;
	}
	printf("%-12s %-15s %-9s %5s %8s %8s %5s %5s %5s\n", "VM", "name", "state", "gen",
	       "accepted", "ACKed", "recv", "dup", "refus");
	json_array_foreach(list, i, vm) print_row(vm);
	json_decref(list);
	return CTL_OK;
}

static void print_number(const char *label, const json_t *vm, const char *kernel,
			 const char *daemon)
{
	const json_t *k = kernel ? ctl_find(vm, kernel) : NULL;
	const json_t *d = daemon ? ctl_find(vm, daemon) : NULL;
	char kt[32] = "-", dt[32] = "-";

	if (json_is_integer(k))
		snprintf(kt, sizeof(kt), "%lld", json_integer_value(k));
	if (json_is_integer(d))
		snprintf(dt, sizeof(dt), "%lld", json_integer_value(d));
	printf("  %-28s %16s %16s\n", label, kt, dt);
}

static void print_counters(const json_t *vm)
{
	static const struct {
		const char *label, *kernel, *daemon;
	} rows[] = {
		{ "connections with bytes", "kernel.connections", NULL },
		{ "packets", "kernel.packets", NULL },
		{ "bytes", "kernel.bytes", NULL },
		{ "bytes dropped as known", "kernel.bytes_known", NULL },
		{ "reports received", NULL, "daemon.received" },
		{ "reports accepted", NULL, "daemon.accepted" },
		{ "duplicates", "kernel.duplicates", "daemon.duplicates" },
		{ "refused", NULL, "daemon.refused" },
		{ "  zero_length", "kernel.zero_length", NULL },
		{ "  bad_header", "kernel.bad_header", NULL },
		{ "  too_large", "kernel.too_large", NULL },
		{ "  bad_packet", "kernel.bad_packet", NULL },
		{ "  over_budget", "kernel.over_budget", NULL },
		{ "  unread_updates", "kernel.unread_updates", NULL },
		{ "debt, bytes", NULL, "daemon.debt" },
	};

	printf("\n  %-28s %16s %16s\n", "counted by", "the kernel", "the daemon");
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		print_number(rows[i].label, vm, rows[i].kernel, rows[i].daemon);
}

static void print_age(const char *label, const json_t *age)
{
	char buf[16];

	printf("  %-17s %s%s\n", label, ctl_age(age, buf), json_is_number(age) ? " ago" : "");
}

static void print_vm(const json_t *vm)
{
	bool named = json_is_string(ctl_find(vm, "name"));
	char buf[16];

	printf("VM %lld:%lld%s%s%s\n", ctl_int(vm, "ns"), ctl_int(vm, "cid"), named ? " (" : "",
	       named ? ctl_text(vm, "name") : "", named ? ")" : "");
	printf("  %-17s %s\n", "state", ctl_text(vm, "state"));
	printf("  %-17s %lld\n", "generation", ctl_int(vm, "daemon.generation"));
	printf("  %-17s %s\n", "custody", ctl_true(vm, "daemon.custody") ? "yes" : "no");
	print_age("last accepted", ctl_find(vm, "daemon.last_accepted_age"));
	print_age("last ACK", ctl_find(vm, "daemon.last_ack_age"));
	if (ctl_int(vm, "daemon.record_length") > 0)
		printf("  %-17s %lld bytes, digest %s\n", "content of record",
		       ctl_int(vm, "daemon.record_length"), ctl_text(vm, "daemon.record_digest"));
	else
		printf("  %-17s none\n", "content of record");
	print_age("first packet", ctl_find(vm, "kernel.first_seen_age"));
	print_age("last packet", ctl_find(vm, "kernel.last_seen_age"));
	if (json_is_object(ctl_find(vm, "now"))) {
		printf("  %-17s %lld with a place, %lld waiting\n", "connections now",
		       ctl_int(vm, "now.connections"), ctl_int(vm, "now.waiting"));
		if (json_is_number(ctl_find(vm, "now.next_retry_in")))
			printf("  %-17s in %s\n", "next retry",
			       ctl_age(ctl_find(vm, "now.next_retry_in"), buf));
		if (ctl_true(vm, "now.offender"))
			printf("  %-17s its last connection was an offence: the next waits last\n",
			       "offender");
	}
	print_counters(vm);
}

static int run_show(struct ctl *ctl, int argc, char *argv[])
{
	int r = ctl_check_args(ctl, argc, argv, 1, 1, "vm show CID");
	struct vsr_vm_id id;
	json_t *list;

	if (r == CTL_OK)
		r = ctl_parse_vm(ctl, argv[1], &id);
	if (r == CTL_OK)
		r = ctl_vms(ctl, &id, &list);
	if (r != CTL_OK)
		return r;
	if (json_array_size(list) == 0)
		r = ctl_error(ctl, CTL_NOT_FOUND, "nothing is known of VM %u:%u", id.ns, id.cid);
	else if (ctl->json)
		ctl_print_json(ctl, json_incref(json_array_get(list, 0)));
	else
		print_vm(json_array_get(list, 0));
	json_decref(list);
	return r;
}

const struct ctl_command ctl_vm_commands[] = {
	{ "list", "", "a line for each VM",
	  "      states: waiting, receiving, sending; custody (to be delivered), acked, ended (without\n"
	  "      an ACK), refused, seen\n",
	  run_list },
	{ "show", "CID", "all that is known of one VM; CID, NAMESPACE:CID or its name", NULL,
	  run_show },
	{},
};
