/* SPDX-License-Identifier: Apache-2.0 */
/* vsock-relayctl cache, retry, flush, reload, loglevel: what is asked of the daemon. */
#include <limits.h>
#include <signal.h>
#include <stdlib.h>

#include "commands.h"

/* A request about one VM. */
static int post_vm(struct ctl *ctl, const char *page, const char *vm, const char *more)
{
	struct vsr_vm_id id;
	char request[128];
	json_t *answer;
	int r = ctl_parse_vm(ctl, vm, &id);

	if (r != CTL_OK)
		return r;
	snprintf(request, sizeof(request), "%s?cid=%u&ns=%u%s", page, id.cid, id.ns, more);
	r = ctl_post(ctl, request, &answer);
	return r == CTL_OK ? ctl_print_done(ctl, answer) : r;
}

static void print_entry(const json_t *e)
{
	char id[32], bytes[16], age[16], first[16];

	snprintf(id, sizeof(id), "%lld:%lld", ctl_int(e, "ns"), ctl_int(e, "cid"));
	printf("%-12s %5lld %8s %8s %12s  %s\n", id, ctl_int(e, "generation"),
	       ctl_bytes((double)ctl_int(e, "length"), bytes), ctl_age(ctl_find(e, "age"), age),
	       ctl_age(ctl_find(e, "first_seen_age"), first), ctl_text(e, "custody"));
}

static int run_cache_list(struct ctl *ctl, int argc, char *argv[])
{
	int r = ctl_check_args(ctl, argc, argv, 0, 0, "cache list");
	json_t *list, *e;
	char why[512];
	size_t i;

	if (r != CTL_OK)
		return r;
	r = ctl_get(ctl, "/cache.json", &list);
	if (r < 0)
		return ctl_error(ctl, CTL_NO_DAEMON, "%s", ctl_why(ctl, r, why, sizeof(why)));
	if (ctl->json) {
		ctl_print_json(ctl, list);
		return CTL_OK;
	}
	printf("%-12s %5s %8s %8s %12s  %s\n", "VM", "gen", "length", "changed", "first stored",
	       "custody");
	json_array_foreach(list, i, e) print_entry(e);
	json_decref(list);
	return CTL_OK;
}

static int run_cache_drop(struct ctl *ctl, int argc, char *argv[])
{
	bool first = argc > 1 && streq(argv[1], "--lose");
	bool lose = first || (argc > 2 && streq(argv[2], "--lose"));
	int r = ctl_check_args(ctl, argc - lose, argv, 1, 1, "cache drop CID [--lose]");

	return r == CTL_OK ? post_vm(ctl, "/drop", argv[1 + first], lose ? "&lose=1" : "") : r;
}

const struct ctl_command ctl_cache_commands[] = {
	{ "list", "", "a line for each payload in memory",
	  "      custody: raw or answered (it would be lost with its entry), none (not in custody, or\n"
	  "      on disk too), acked (kept for comparison)\n",
	  run_cache_list },
	{ "drop", "CID [--lose]", "remove a VM's payload from memory",
	  "      --lose: also if it is in custody and nowhere else; the VM's next report is then new\n",
	  run_cache_drop },
	{},
};

static int run_retry(struct ctl *ctl, int argc, char *argv[])
{
	int r = ctl_check_args(ctl, argc, argv, 1, 1, "retry CID");

	return r == CTL_OK ? post_vm(ctl, "/retry", argv[1], "") : r;
}

const struct ctl_command ctl_retry_commands[] = {
	{ "", "CID", "send a VM's content now, beside its due times",
	  "      The VM's rate limit holds. Ends a pause of the upstream.\n", run_retry },
	{},
};

static int run_flush(struct ctl *ctl, int argc, char *argv[])
{
	int r = ctl_check_args(ctl, argc, argv, 0, 0, "flush");
	json_t *answer;

	if (r == CTL_OK)
		r = ctl_post(ctl, "/flush", &answer);
	if (r != CTL_OK)
		return r;
	if (ctl->json) {
		ctl_print_json(ctl, answer);
		return CTL_OK;
	}
	printf("%lld contents are sent as soon as the upstream and the VMs' rates allow\n",
	       ctl_int(answer, "contents"));
	json_decref(answer);
	return CTL_OK;
}

const struct ctl_command ctl_flush_commands[] = {
	{ "", "", "send every content in custody now",
	  "      The VMs' rate limits hold. Ends a pause of the upstream.\n", run_flush },
	{},
};

/* The daemon at the admin socket is that process; another one is not asked. Returns CTL_OK; -1: there is
 * nobody at the socket; or says what is wrong and returns another exit status. */
static int check_pid(struct ctl *ctl, pid_t pid)
{
	json_t *status;
	json_int_t found;
	char why[512];
	int r = ctl_get(ctl, "/status.json", &status);

	if (r == -EDESTADDRREQ || r == -ENOENT || r == -ECONNREFUSED)
		return -1;
	if (r < 0)
		return ctl_error(ctl, CTL_NO_DAEMON, "%s", ctl_why(ctl, r, why, sizeof(why)));
	found = ctl_int(status, "pid");
	json_decref(status);
	if (found == pid)
		return CTL_OK;
	return ctl_error(ctl, CTL_FAILED, "the daemon at %s is process %lld, not %d: not reloaded",
			 ctl->socket, found, (int)pid);
}

/* A daemon without an admin socket, or with another one than the settings name by now: nothing but its
 * log tells what comes of it. */
static int reload_by_signal(struct ctl *ctl, pid_t pid)
{
	if (kill(pid, SIGHUP) < 0)
		return ctl_error(ctl, CTL_NO_DAEMON, "process %d: %s", (int)pid, strerror(errno));
	if (*ctl->socket)
		return ctl_error(ctl, CTL_FAILED,
				 "nobody answers at %s, which the settings name: process %d got "
				 "SIGHUP, and its log says what came of it",
				 ctl->socket, (int)pid);
	return ctl_print_done(
		ctl, json_pack("{s:s}", "done",
			       "there is no admin_socket to ask: the process got SIGHUP, and "
			       "its log says what came of it"));
}

static int parse_pid(struct ctl *ctl, int argc, char *argv[], pid_t *ret)
{
	bool given = argc > 1 && streq(argv[1], "--pid");
	int r = ctl_check_args(ctl, argc, argv, given ? 2 : 0, given ? 2 : 0, "reload [--pid PID]");
	long pid;
	char *end;

	if (r != CTL_OK || !given)
		return r;
	errno = 0;
	pid = strtol(argv[2], &end, 10);
	if (errno || *end || pid < 1 || pid > INT_MAX)
		return ctl_error(ctl, CTL_USAGE, "--pid %s: expected a process id", argv[2]);
	*ret = (pid_t)pid;
	return CTL_OK;
}

static int run_reload(struct ctl *ctl, int argc, char *argv[])
{
	pid_t pid = 0;
	int r = parse_pid(ctl, argc, argv, &pid);
	const json_t *line;
	json_t *answer;
	size_t i;

	if (r == CTL_OK && pid)
		r = check_pid(ctl, pid);
	if (r < 0)
		return reload_by_signal(ctl, pid);
	if (r == CTL_OK)
		r = ctl_post(ctl, "/reload", &answer);
	if (r != CTL_OK)
		return r;
	if (ctl->json) {
		ctl_print_json(ctl, answer);
		return CTL_OK;
	}
	json_array_foreach(json_object_get(answer, "log"), i, line)
		printf("%s\n", json_string_value(line));
	json_decref(answer);
	return CTL_OK;
}

const struct ctl_command ctl_reload_commands[] = {
	{ "", "[--pid PID]", "read the settings again, and say what came of it",
	  "      All of them are applied, or none: as SIGHUP.\n"
	  "      --pid PID: of this process and no other (for ExecReload=); one that nobody can ask,\n"
	  "      since it has no admin socket, gets SIGHUP.\n",
	  run_reload },
	{},
};

static int run_loglevel(struct ctl *ctl, int argc, char *argv[])
{
	int r = ctl_check_args(ctl, argc, argv, 0, 1, "loglevel [LEVEL]");
	char page[64] = "/loglevel";
	json_t *answer;

	if (r != CTL_OK)
		return r;
	if (argc == 2) {
		if (strspn(argv[1], "abcdefghijklmnopqrstuvwxyz") != strlen(argv[1]))
			return ctl_error(ctl, CTL_USAGE,
					 "%s: expected error, warning, notice, info or debug",
					 argv[1]);
		snprintf(page, sizeof(page), "/loglevel?level=%.32s", argv[1]);
	}
	r = ctl_post(ctl, page, &answer);
	if (r != CTL_OK)
		return r;
	if (ctl->json) {
		ctl_print_json(ctl, answer);
		return CTL_OK;
	}
	printf("%s\n", ctl_text(answer, "level"));
	json_decref(answer);
	return CTL_OK;
}

const struct ctl_command ctl_loglevel_commands[] = {
	{ "", "[LEVEL]", "say or set what is logged: error, warning, notice, info or debug",
	  "      Until the next reload, which goes back to log.level of the settings.\n",
	  run_loglevel },
	{},
};
