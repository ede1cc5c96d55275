/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl.h"

#include <stdarg.h>

#include "client.h"
#include "clock.h"
#include "maps.h"
#include "names.h"
#include "settings.h"

/* VMs come and go while a command runs; looking at all processes takes some milliseconds. */
#define NAMES_AGE_USEC (2 * USEC_PER_SEC)

void ctl_print_json(const struct ctl *ctl, json_t *value)
{
	size_t flags = JSON_ENCODE_ANY | JSON_REAL_PRECISION(12) |
		       (ctl->pretty ? JSON_INDENT(4) : JSON_COMPACT);

	if (!value || json_dumpf(value, stdout, flags) < 0) {
		/* Half an answer is no answer. */
		fputs("vsock-relayctl: the answer cannot be written as JSON\n", stderr);
		exit(CTL_FAILED);
	}
	putchar('\n');
	fflush(stdout);
	json_decref(value);
}

int ctl_error(const struct ctl *ctl, int code, const char *fmt, ...)
{
	_cleanup_free_ char *text = NULL;
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) < 0)
		text = NULL;
	va_end(ap);
	if (ctl->json)
		ctl_print_json(ctl, json_pack("{s:s}", "error", text ? text : "out of memory"));
	else
		fprintf(stderr, "vsock-relayctl: %s\n", text ? text : "out of memory");
	return code;
}

int ctl_check_args(const struct ctl *ctl, int argc, char *argv[], int min, int max,
		   const char *usage)
{
	if (argc - 1 > max)
		return ctl_error(ctl, CTL_USAGE, "%s: one argument too many; usage: %s",
				 argv[max + 1], usage);
	if (argc - 1 < min)
		return ctl_error(ctl, CTL_USAGE, "an argument is missing; usage: %s", usage);
	return CTL_OK;
}

/* ---- the daemon ---------------------------------------------------------------------------------- */

int ctl_get(const struct ctl *ctl, const char *page, json_t **ret)
{
	_cleanup_free_ char *body = NULL;
	json_t *value;
	int status;

	if (!*ctl->socket)
		return -EDESTADDRREQ;
	status = client_request(ctl->socket, "GET", page, &body);
	if (status < 0)
		return status;
	value = status == 200 ? json_loads(body, JSON_DECODE_ANY, NULL) : NULL;
	if (!value)
		return -EPROTO;
	*ret = value;
	return 0;
}

const char *ctl_why(const struct ctl *ctl, int r, char *buf, size_t size)
{
	switch (r) {
	case -EDESTADDRREQ:
		snprintf(buf, size, "the settings name no admin_socket; set it, or use --socket");
		break;
	case -ENOENT:
		snprintf(
			buf, size,
			"no daemon runs (there is no %s): systemctl start vsock-relayd, or --socket",
			ctl->socket);
		break;
	case -ECONNREFUSED:
		snprintf(buf, size,
			 "the daemon is dead, its socket %s was left behind: see its log, then "
			 "systemctl restart vsock-relayd",
			 ctl->socket);
		break;
	case -EACCES:
	case -EPERM:
		snprintf(buf, size, "%s is for root and the relay's group: try sudo", ctl->socket);
		break;
	case -ETIMEDOUT:
		snprintf(
			buf, size,
			"the daemon at %s does not answer within %d s: its event loop hangs, or it "
			"is stopped",
			ctl->socket, CLIENT_TIMEOUT_S);
		break;
	case -EPROTO:
		snprintf(
			buf, size,
			"what answers at %s is no vsock-relayd of this version; this program is %s",
			ctl->socket, VSR_VERSION);
		break;
	default:
		snprintf(buf, size, "%s: %s", ctl->socket, strerror(-r));
	}
	return buf;
}

int ctl_post(const struct ctl *ctl, const char *page, json_t **ret)
{
	_cleanup_free_ char *body = NULL;
	json_t *value;
	char why[512];
	int status;

	status = *ctl->socket ? client_request(ctl->socket, "POST", page, &body) : -EDESTADDRREQ;
	if (status < 0)
		return ctl_error(ctl, CTL_NO_DAEMON, "%s", ctl_why(ctl, status, why, sizeof(why)));
	value = json_loads(body, 0, NULL);
	if (status == 200 && value) {
		*ret = value;
		return CTL_OK;
	}
	if (json_object_get(value, "log") && !ctl->json) {
		const json_t *line;
		size_t i;

		json_array_foreach(json_object_get(value, "log"), i, line)
			fprintf(stderr, "%s\n", json_string_value(line));
	}
	if (ctl->json && value) {
		ctl_print_json(ctl, value);
	} else {
		body[strcspn(body, "\n")] = '\0';
		ctl_error(ctl, CTL_FAILED, "%s", value ? ctl_text(value, "error") : body);
		json_decref(value);
	}
	return status == 404 ? CTL_NOT_FOUND : CTL_FAILED;
}

int ctl_print_done(const struct ctl *ctl, json_t *answer)
{
	if (ctl->json) {
		ctl_print_json(ctl, answer);
		return CTL_OK;
	}
	printf("%s\n", ctl_text(answer, "done"));
	json_decref(answer);
	return CTL_OK;
}

/* ---- VMs ----------------------------------------------------------------------------------------- */

static void say_bad_names(const struct ctl *ctl, int r, size_t line)
{
	if (r == -EINVAL)
		fprintf(stderr,
			"vsock-relayctl: %s:%zu: expected \"CID NAME\" or \"NS:CID NAME\"\n",
			ctl->names, line);
	else
		fprintf(stderr, "vsock-relayctl: %s: %s\n", ctl->names, strerror(-r));
}

static const struct names *vm_names(struct ctl *ctl)
{
	static const struct names none;
	uint32_t ns = ctl->settings->ns;
	size_t line = 0;
	int r = 0;

	if (ctl->vm_names)
		return ctl->vm_names;
	ctl->vm_names = calloc(1, sizeof(*ctl->vm_names));
	if (!ctl->vm_names) {
		fputs("vsock-relayctl: names of VMs: out of memory\n", stderr);
		return &none;
	}
	if (*ctl->names)
		r = names_read_file(ctl->vm_names, ctl->names, ns, &line);
	if (r < 0 && !ctl->names_at)
		say_bad_names(ctl, r, line); /* once */
	names_scan_processes(ctl->vm_names, "/proc", ns, &ctl->settings->listeners);
	ctl->names_at = clock_usec();
	return ctl->vm_names;
}

const char *ctl_vm_name(struct ctl *ctl, struct vsr_vm_id id)
{
	return names_find(vm_names(ctl), id);
}

void ctl_names_refresh(struct ctl *ctl)
{
	if (usec_sub(clock_usec(), ctl->names_at) >= NAMES_AGE_USEC)
		ctl->vm_names = names_free(ctl->vm_names);
}

int ctl_parse_vm(struct ctl *ctl, const char *text, struct vsr_vm_id *ret)
{
	int r;

	if (names_parse_id(text, strlen(text), ctl->settings->ns, ret) == 0)
		return CTL_OK;
	r = names_lookup(vm_names(ctl), text, ret);
	if (r == -ENOTUNIQ)
		return ctl_error(ctl, CTL_USAGE, "%s: several VMs have this name; use the CID",
				 text);
	if (r < 0)
		return ctl_error(ctl, CTL_USAGE, "%s: expected CID, NAMESPACE:CID or a name", text);
	return CTL_OK;
}

/* One word for where the VM's content is. */
static const char *vm_state(const json_t *vm)
{
	if (ctl_true(vm, "now.in_flight"))
		return "sending";
	if (ctl_int(vm, "now.connections") > 0)
		return "receiving";
	if (ctl_int(vm, "now.waiting") > 0)
		return "waiting";
	if (ctl_true(vm, "daemon.custody"))
		return "custody";
	if (json_is_number(ctl_find(vm, "daemon.last_ack_age")) &&
	    ctl_int(vm, "daemon.record_length") > 0)
		return "acked";
	if (ctl_int(vm, "daemon.accepted") > 0)
		return "ended";
	if (ctl_int(vm, "daemon.refused") > 0)
		return "refused";
	return "seen";
}

static void decorate(struct ctl *ctl, json_t *vm)
{
	const struct vsr_vm_id id = { .ns = (uint32_t)ctl_int(vm, "ns"),
				      .cid = (uint32_t)ctl_int(vm, "cid") };
	const char *name = ctl_vm_name(ctl, id);

	json_object_set_new(vm, "name", name ? json_string(name) : json_null());
	json_object_set_new(vm, "state", json_string(vm_state(vm)));
}

static int compare_vms(const void *a, const void *b)
{
	const json_t *x = *(json_t *const *)a, *y = *(json_t *const *)b;
	json_int_t dx = ctl_int(x, "ns"), dy = ctl_int(y, "ns");

	if (dx == dy) {
		dx = ctl_int(x, "cid");
		dy = ctl_int(y, "cid");
	}
	return (dx > dy) - (dx < dy);
}

json_t *ctl_sorted(json_t *list, int (*compare)(const void *a, const void *b))
{
	size_t n = json_array_size(list), i;
	json_t **items = calloc(n + 1, sizeof(*items)), *sorted = json_array(), *item;

	if (!items || !sorted) {
		free(items);
		json_decref(sorted);
		return list;
	}
	json_array_foreach(list, i, item) items[i] = item;
	qsort(items, n, sizeof(*items), compare);
	for (i = 0; i < n; i++)
		json_array_append(sorted, items[i]);
	free(items);
	json_decref(list);
	return sorted;
}

int ctl_vms_from(struct ctl *ctl, const struct vsr_vm_id *only, json_t **ret, char *why,
		 size_t size)
{
	char page[64] = "/vms.json", why_daemon[512], why_maps[512];
	json_t *list = NULL, *vm;
	size_t i;
	int r, m = 0;

	if (only)
		snprintf(page, sizeof(page), "/vms.json?cid=%u&ns=%u", only->cid, only->ns);
	r = ctl_get(ctl, page, &list);
	if (r < 0) {
		list = json_array();
		m = maps_vms(ctl->pin_dir, only, list);
		ctl_why(ctl, r, why_daemon, sizeof(why_daemon));
		snprintf(why, size, "%s%s%s", why_daemon, m < 0 ? "; and " : "",
			 m < 0 ? maps_why(ctl->pin_dir, m, why_maps, sizeof(why_maps)) : "");
	}
	if (m < 0) {
		json_decref(list);
		return m;
	}
	json_array_foreach(list, i, vm) decorate(ctl, vm);
	*ret = ctl_sorted(list, compare_vms);
	return r < 0;
}

int ctl_vms(struct ctl *ctl, const struct vsr_vm_id *only, json_t **ret)
{
	char why[1024];
	int r = ctl_vms_from(ctl, only, ret, why, sizeof(why));

	if (r < 0)
		return ctl_error(ctl, CTL_NO_DAEMON, "%s", why);
	if (r > 0 && !ctl->json)
		fprintf(stderr, "vsock-relayctl: %s\nFrom the maps at %s:\n", why, ctl->pin_dir);
	return CTL_OK;
}

/* ---- text ---------------------------------------------------------------------------------------- */

const json_t *ctl_find(const json_t *object, const char *path)
{
	char key[64];
	const char *dot;

	while (object && (dot = strchr(path, '.'))) {
		snprintf(key, sizeof(key), "%.*s", (int)(dot - path), path);
		object = json_object_get(object, key);
		path = dot + 1;
	}
	return json_object_get(object, path);
}

json_int_t ctl_int(const json_t *object, const char *path)
{
	const json_t *v = ctl_find(object, path);

	return json_is_real(v) ? (json_int_t)json_real_value(v) : json_integer_value(v);
}

const char *ctl_text(const json_t *object, const char *path)
{
	return json_string_value(ctl_find(object, path)) ?: "-";
}

bool ctl_true(const json_t *object, const char *path)
{
	return json_is_true(ctl_find(object, path));
}

const char *ctl_age(const json_t *seconds, char buf[static 16])
{
	double s = json_number_value(seconds);

	if (!json_is_number(seconds))
		snprintf(buf, 16, "-");
	else if (s < 120)
		snprintf(buf, 16, "%.0f s", s);
	else if (s < 120 * 60)
		snprintf(buf, 16, "%.0f min", s / 60);
	else if (s < 48 * 3600)
		snprintf(buf, 16, "%.0f h", s / 3600);
	else
		snprintf(buf, 16, "%.0f d", MIN(s / 86400, 1e6));
	return buf;
}

const char *ctl_bytes(double n, char buf[static 16])
{
	static const char units[] = "KMGTPE";
	size_t u = 0;

	if (n < 1000) {
		snprintf(buf, 16, "%.0f", n);
		return buf;
	}
	for (n /= 1024; n >= 999.5 && u + 2 < sizeof(units); n /= 1024)
		u++;
	snprintf(buf, 16, n < 9.95 ? "%.1f%c" : "%.0f%c", n, units[u]);
	return buf;
}
