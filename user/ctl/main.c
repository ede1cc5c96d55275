/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vsock-relayctl: looks at a relay, and asks it to do something. main(), the options and the table
 * of objects; each object is a file of its own.
 */
#include <getopt.h>

#include "commands.h"
#include "names.h"
#include "settings.h"

static int run_version(struct ctl *ctl, int argc, char *argv[])
{
	int r = ctl_check_args(ctl, argc, argv, 0, 0, "version");

	if (r != CTL_OK)
		return r;
	if (ctl->json)
		ctl_print_json(ctl, json_pack("{s:s, s:i}", "version", VSR_VERSION, "layout",
					      VSR_ABI_VERSION));
	else
		printf("vsock-relayctl %s, map layout %d\n", VSR_VERSION, VSR_ABI_VERSION);
	return CTL_OK;
}

static int run_help(struct ctl *ctl, int argc, char *argv[]);

static const struct ctl_command version_commands[] = {
	{ "", "", "version of this program, and of the maps that it knows", NULL, run_version },
	{},
};

static const struct ctl_command help_commands[] = {
	{ "", "[OBJECT]", "this text, or the commands of an object", NULL, run_help },
	{},
};

static const struct ctl_object objects[] = {
	{ "status", "is the relay well? what has it done?", ctl_status_commands },
	{ "vm", "what is known of each VM", ctl_vm_commands },
	{ "top", "VMs as they come and go, live", ctl_top_commands },
	{ "cache", "the payload cache", ctl_cache_commands },
	{ "retry", "send a VM's content now", ctl_retry_commands },
	{ "flush", "send every content in custody now", ctl_flush_commands },
	{ "reload", "read the settings again", ctl_reload_commands },
	{ "loglevel", "what the daemon logs", ctl_loglevel_commands },
	{ "doctor", "what is wrong on this node, and what to do", ctl_doctor_commands },
	{ "maps", "the pinned BPF maps", ctl_maps_commands },
	{ "bundle", "an archive for whoever helps, without secrets", ctl_bundle_commands },
	{ "trace", "packets, connections, latencies and alarms, as they happen",
	  ctl_trace_commands },
	{ "version", "version of this program", version_commands },
	{ "help", "this text, or the commands of an object", help_commands },
};

/* ---- help ---------------------------------------------------------------------------------------- */

static bool is_single(const struct ctl_object *o)
{
	return !*o->commands[0].name;
}

static void print_usage(FILE *f)
{
	fputs("Usage: vsock-relayctl [OPTIONS] OBJECT [COMMAND] [ARGUMENTS]\n"
	      "       vsock-relayctl help [OBJECT]\n"
	      "\nObjects:\n",
	      f);
	for (size_t i = 0; i < ARRAY_SIZE(objects); i++)
		fprintf(f, "  %-10s %s\n", objects[i].name, objects[i].help);
	fputs("\nOptions:\n"
	      "  -j, --json             print JSON, with stable keys\n"
	      "  -p, --pretty           print JSON for people\n"
	      "  -s, --socket PATH      admin socket of the daemon\n"
	      "  -d, --pin-directory D  where the daemon pins its maps\n"
	      "  -c, --config FILE      settings of the daemon, for the above\n"
	      "  -n, --names FILE       names of VMs: a line \"CID NAME\" or \"NS:CID NAME\" each\n"
	      "  -h, --help             this text\n"
	      "  -V, --version          version of this program\n"
	      "\nObjects, commands and options may be shortened. Exit status: 0 done, 1 failed,\n"
	      "2 usage, 3 no daemon answers, 4 no such VM or map.\n",
	      f);
}

static void print_object(FILE *f, const struct ctl_object *o)
{
	fprintf(f, "Usage:\n");
	for (const struct ctl_command *c = o->commands; c->name; c++) {
		fprintf(f, "  vsock-relayctl %s%s%s%s%s\n      %s\n", o->name, *c->name ? " " : "",
			c->name, *c->args ? " " : "", c->args, c->help);
		if (c->more)
			fprintf(f, "%s", c->more);
	}
}

/* For completion and tests. */
static json_t *describe_objects(void)
{
	json_t *list = json_array();

	for (size_t i = 0; i < ARRAY_SIZE(objects); i++) {
		json_t *commands = json_array();

		for (const struct ctl_command *c = objects[i].commands; c->name; c++)
			json_array_append_new(commands,
					      json_pack("{s:s, s:s, s:s}", "name", c->name, "args",
							c->args, "help", c->help));
		json_array_append_new(list,
				      json_pack("{s:s, s:s, s:o}", "name", objects[i].name, "help",
						objects[i].help, "commands", commands));
	}
	return list;
}

/* ---- finding a command --------------------------------------------------------------------------- */

/* The ith name of a list, NULL behind the last. */
typedef const char *(*name_fn)(const void *list, size_t i);

static const char *object_name(const void *list _unused_, size_t i)
{
	return i < ARRAY_SIZE(objects) ? objects[i].name : NULL;
}

static const char *command_name(const void *list, size_t i)
{
	return ((const struct ctl_command *)list)[i].name;
}

/* Finds the name, or the one that it begins. Returns its index, or -CTL_USAGE having said why. */
static int find_name(const struct ctl *ctl, const char *what, const char *name, name_fn next,
		     const void *list)
{
	char matches[256] = "";
	const char *candidate;
	size_t n = 0, len = strlen(name);
	int found = -1;

	for (size_t i = 0; (candidate = next(list, i)); i++) {
		if (streq(candidate, name))
			return (int)i;
		if (len == 0 || strncmp(candidate, name, len) != 0)
			continue;
		n += (size_t)snprintf(matches + n, sizeof(matches) - MIN(n, sizeof(matches)),
				      "%s%s", n ? ", " : "", candidate);
		found = found == -1 ? (int)i : -2;
	}
	if (found >= 0)
		return found;
	if (found == -2)
		return -ctl_error(ctl, CTL_USAGE, "%s may be %s", name, matches);
	return -ctl_error(ctl, CTL_USAGE, "%s: no such %s; see vsock-relayctl help", name, what);
}

static int run_help(struct ctl *ctl, int argc, char *argv[])
{
	int r = ctl_check_args(ctl, argc, argv, 0, 1, "help [OBJECT]"), i;

	if (r != CTL_OK)
		return r;
	if (argc == 2) {
		i = find_name(ctl, "object", argv[1], object_name, NULL);
		if (i < 0)
			return -i;
		print_object(stdout, &objects[i]);
	} else if (ctl->json) {
		ctl_print_json(ctl, describe_objects());
	} else {
		print_usage(stdout);
	}
	return CTL_OK;
}

static int run(struct ctl *ctl, int argc, char *argv[])
{
	const struct ctl_object *o;
	int i;

	i = find_name(ctl, "object", argv[0], object_name, NULL);
	if (i < 0)
		return -i;
	o = &objects[i];
	if (argc > 1 &&
	    (streq(argv[1], "help") || streq(argv[1], "--help") || streq(argv[1], "-h"))) {
		print_object(stdout, o);
		return CTL_OK;
	}
	if (is_single(o))
		return o->commands[0].run(ctl, argc, argv);
	if (argc == 1) {
		/* As `vm` for `vm list`: the first command is the one that asks for nothing. */
		char *first[] = { (char *)o->commands[0].name, NULL };

		return o->commands[0].run(ctl, 1, first);
	}
	i = find_name(ctl, "command", argv[1], command_name, o->commands);
	return i < 0 ? -i : o->commands[i].run(ctl, argc - 1, argv + 1);
}

/* ---- options ------------------------------------------------------------------------------------- */

/* --json and --pretty are wanted once the rest of the line is there: they may stand anywhere before
 * a "--". Takes them out of argv, returns what is left. */
static int take_json(struct ctl *ctl, int argc, char *argv[])
{
	int n = 0;

	for (int i = 0; i < argc; i++) {
		if (streq(argv[i], "--")) {
			while (i < argc)
				argv[n++] = argv[i++];
			break;
		}
		if (streq(argv[i], "-p") || streq(argv[i], "--pretty"))
			ctl->json = ctl->pretty = true;
		else if (streq(argv[i], "-j") || streq(argv[i], "--json"))
			ctl->json = true;
		else
			argv[n++] = argv[i];
	}
	argv[n] = NULL;
	return n;
}

/* Returns an exit status, or -1: go on with the words from optind on. */
static int parse_options(struct ctl *ctl, int argc, char *argv[])
{
	static const struct option options[] = {
		{ "socket", required_argument, NULL, 's' },
		{ "pin-directory", required_argument, NULL, 'd' },
		{ "config", required_argument, NULL, 'c' },
		{ "names", required_argument, NULL, 'n' },
		{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' },
		{},
	};
	int o;

	opterr = 0;
	while ((o = getopt_long(argc, argv, "+:s:d:c:n:hV", options, NULL)) != -1) {
		switch (o) {
		case 's':
			ctl->socket = optarg;
			break;
		case 'd':
			ctl->pin_dir = optarg;
			break;
		case 'c':
			ctl->config = optarg;
			break;
		case 'n':
			ctl->names = optarg;
			break;
		case 'h':
			print_usage(stdout);
			return CTL_OK;
		case 'V':
			return run_version(ctl, 1, argv);
		case ':':
			return ctl_error(ctl, CTL_USAGE, "%s needs an argument", argv[optind - 1]);
		default:
			return ctl_error(ctl, CTL_USAGE,
					 "%s: no such option; see vsock-relayctl --help",
					 argv[optind - 1]);
		}
	}
	return -1;
}

/* What the daemon's settings say about where it is. Settings that are no good are said only where they
 * were asked for; `doctor` says it in any case. */
static int load_settings(struct ctl *ctl, struct settings_errors *errors)
{
	extern char **environ;
	char *argv[] = { (char *)"vsock-relayctl", (char *)"--config", (char *)ctl->config, NULL };
	struct settings_errors ignored = { 0 };
	int r;

	ctl->errors = errors;
	r = settings_load(ctl->config ? 3 : 1, argv, environ, &ctl->settings, errors);
	if (r == 0)
		return CTL_OK;
	if (ctl->config)
		return ctl_error(ctl, CTL_USAGE, "%s",
				 errors->n > 0 ? errors->message[0].text : strerror(-r));
	r = settings_parse(1, argv, (char *[]){ NULL }, SETTINGS_DEFAULT_FILE, NULL, 0,
			   &ctl->settings, &ignored);
	settings_errors_done(&ignored);
	return r < 0 ? ctl_error(ctl, CTL_FAILED, "%s", strerror(-r)) : CTL_OK;
}

static int find_daemon(struct ctl *ctl, struct settings_errors *errors)
{
	int status = load_settings(ctl, errors);

	if (status != CTL_OK)
		return status;
	if (!ctl->socket)
		ctl->socket = ctl->settings->admin_socket;
	if (!ctl->pin_dir)
		ctl->pin_dir = ctl->settings->pin_directory;
	if (!ctl->names)
		ctl->names = ctl->settings->vm_names;
	return CTL_OK;
}

/* For jansson: an answer that lacks what there was no memory for would look like a whole one. */
static void *allocate(size_t size)
{
	void *p = malloc(size);

	if (!p) {
		fputs("vsock-relayctl: out of memory\n", stderr);
		exit(CTL_FAILED);
	}
	return p;
}

int main(int argc, char *argv[])
{
	struct settings_errors errors = { 0 };
	struct ctl ctl = { 0 };
	int status;

	json_set_alloc_funcs(allocate, free);
	argc = take_json(&ctl, argc, argv);
	status = parse_options(&ctl, argc, argv);
	if (status >= 0)
		return status;
	if (optind == argc) {
		print_usage(stderr);
		return CTL_USAGE;
	}
	status = find_daemon(&ctl, &errors);
	if (status == CTL_OK)
		status = run(&ctl, argc - optind, argv + optind);
	if (fflush(stdout) == EOF || ferror(stdout)) {
		fprintf(stderr, "vsock-relayctl: standard output: %s\n", strerror(errno));
		status = CTL_FAILED;
	}
	settings_errors_done(&errors);
	names_free(ctl.vm_names);
	settings_free(ctl.settings);
	return status;
}
