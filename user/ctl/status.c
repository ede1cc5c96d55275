/* SPDX-License-Identifier: Apache-2.0 */
/* vsock-relayctl status. */
#include "commands.h"
#include "maps.h"

static void print_checks(const json_t *s)
{
	const json_t *k;
	size_t i;

	json_array_foreach(json_object_get(s, "checks"), i, k)
		printf("  %-4s %-11s %s\n", ctl_true(k, "good") ? "ok" : "BAD", ctl_text(k, "name"),
		       ctl_text(k, "says"));
}

static void print_vsock(const json_t *s)
{
	const char *mode = ctl_text(s, "listen.ns_mode");
	const json_t *l;
	size_t i;

	if (!ctl_true(s, "listen.vsock") && !json_array_size(ctl_find(s, "listen.listeners")))
		return;
	if (streq(mode, "none"))
		printf("  vsock       a kernel without network namespaces for it\n");
	else
		printf("  vsock       ns_mode %s\n", mode);
	json_array_foreach(ctl_find(s, "listen.listeners"), i, l)
		printf("    VMs %lld:*  port %lld inside %s, ns_mode %s\n", ctl_int(l, "namespace"),
		       ctl_int(l, "port"), ctl_text(l, "netns"), ctl_text(l, "ns_mode"));
}

static void print_live(const json_t *s)
{
	char a[16], b[16], c[16];

	printf("vsock-relayd %s, process %lld, up %s: %s\n", ctl_text(s, "version"),
	       ctl_int(s, "pid"), ctl_age(ctl_find(s, "uptime"), a),
	       ctl_true(s, "ready") ? "ready" : "NOT READY");
	print_checks(s);
	printf("\n  verdict     %s\n",
	       streq(ctl_text(s, "bpf_mode"), "kernel") ? "BPF, in the kernel" : "user space");
	print_vsock(s);
	printf("  upstream    %s, %s%s\n", ctl_text(s, "upstream.kind"),
	       ctl_true(s, "upstream.ready") ? "connected" : "not connected",
	       ctl_true(s, "upstream.paused") ? ", paused: it refuses everything" : "");
	printf("  VMs         %lld\n", ctl_int(s, "vms"));
	printf("  reports     %lld received, %lld valid, %lld duplicates, %lld suppressed, %lld "
	       "refused\n",
	       ctl_int(s, "reports.received"), ctl_int(s, "reports.valid"),
	       ctl_int(s, "reports.duplicates"), ctl_int(s, "reports.suppressed"),
	       ctl_int(s, "reports.refused"));
	printf("  contents    %lld in custody, %lld being sent, %lld await their ACK; oldest %s; "
	       "%lld ACKed\n",
	       ctl_int(s, "contents.held"), ctl_int(s, "contents.in_flight"),
	       ctl_int(s, "contents.awaiting_ack"), ctl_age(ctl_find(s, "contents.oldest_age"), a),
	       ctl_int(s, "contents.acked"));
	printf("  cache       %lld of %lld slots, %s of %s; kept after their ACK: %lld\n",
	       ctl_int(s, "cache.slots_used"), ctl_int(s, "cache.slots"),
	       ctl_bytes((double)ctl_int(s, "cache.bytes"), a),
	       ctl_bytes((double)ctl_int(s, "cache.capacity_bytes"), b),
	       ctl_int(s, "cache.kept_after_ack"));
	printf("  admission   %lld of %lld places, %lld wait; %s of %s reserved, debt %s\n",
	       ctl_int(s, "admission.places_used"), ctl_int(s, "admission.places"),
	       ctl_int(s, "admission.waiting"),
	       ctl_bytes((double)ctl_int(s, "admission.reserved_bytes"), a),
	       ctl_bytes((double)ctl_int(s, "admission.budget_bytes"), b),
	       ctl_bytes((double)ctl_int(s, "admission.debt_bytes"), c));
	printf("  log         %s and graver\n", ctl_text(s, "log_level"));
}

static int run_status(struct ctl *ctl, int argc, char *argv[])
{
	int r = ctl_check_args(ctl, argc, argv, 0, 0, "status"), m;
	char why[512] = "", why_maps[512] = "";
	json_t *daemon = NULL;
	uint32_t layout = 0;

	if (r != CTL_OK)
		return r;
	r = ctl_get(ctl, "/status.json", &daemon);
	if (r < 0)
		ctl_why(ctl, r, why, sizeof(why));
	m = maps_layout(ctl->pin_dir, &layout);
	if (m < 0)
		maps_why(ctl->pin_dir, m, why_maps, sizeof(why_maps));
	else
		snprintf(why_maps, sizeof(why_maps), "pinned at %s, layout %u%s", ctl->pin_dir,
			 layout,
			 layout == VSR_ABI_VERSION ? "" : ", which this program does not know");
	if (ctl->json) {
		ctl_print_json(ctl,
			       json_pack("{s:b, s:s?, s:o?, s:{s:s, s:b, s:o, s:s}}", "running",
					 r == 0, "why", r < 0 ? why : NULL, "daemon", daemon,
					 "maps", "directory", ctl->pin_dir, "pinned", m == 0,
					 "layout", m == 0 ? json_integer(layout) : json_null(),
					 "says", why_maps));
		return r == 0 ? CTL_OK : CTL_NO_DAEMON;
	}
	if (r == 0)
		print_live(daemon);
	else
		printf("vsock-relayd: %s\n", why);
	printf("  maps        %s\n", why_maps);
	json_decref(daemon);
	return r == 0 ? CTL_OK : CTL_NO_DAEMON;
}

const struct ctl_command ctl_status_commands[] = {
	{ "", "", "is the relay well? what has it done?", NULL, run_status },
	{},
};
