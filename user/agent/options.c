/* SPDX-License-Identifier: Apache-2.0 */
#include "options.h"

#include <getopt.h>
#include <linux/vm_sockets.h>

#include "duration.h"
#include "inventory.h"
#include "log.h"

#define PORT_DEFAULT 818

static const char help[] =
	"Usage: vsock-agent [OPTION]...\n"
	"\n"
	"Reports what is installed in this virtual machine to the vsock-relayd of its host.\n"
	"Reads dpkg's or rpm's database, builds a VMReport, and sends it over AF_VSOCK now and\n"
	"then for ever; or once, with --once.\n"
	"\n"
	"When:\n"
	"  --once                 send one report and exit\n"
	"  --interval DURATION    time between reports, 5 % more or less (default 4h)\n"
	"  --start-within DURATION\n"
	"                         the first report is sent at a random time within this one, so\n"
	"                         that VMs that start together do not report together\n"
	"                         (default 20m, at most the interval; 0: at once)\n"
	"\n"
	"Where to, and how:\n"
	"  --host-cid N           CID of the host (default 2)\n"
	"  --port N               port of the relay (default 818)\n"
	"  --unix PATH            connect to this AF_UNIX socket instead: that of a relay's hybrid\n"
	"                         listener, as tests and bridges do; needs --cid\n"
	"  --mode MODE            vsr2 (default): offer first, the relay may decline at once;\n"
	"                         vsr1: header and report together;\n"
	"                         raw: the report alone, for relays that know no frames; there is\n"
	"                         no answer then, and nothing says whether it was accepted\n"
	"  --timeout DURATION     of one attempt, from connect to answer (default 30s)\n"
	"  --retries N            attempts after the first one, when the relay is busy or away\n"
	"                         (default: 5 with --once, else until the next report is due);\n"
	"                         the waits between them double from 1s to 5m\n"
	"\n"
	"What to report:\n"
	"  --root DIR             the machine whose files lie below DIR (default /)\n"
	"  --rpm-command PROGRAM  what to call as rpm (default rpm)\n"
	"  --cid N                own CID (default: ask the kernel)\n"
	"  --vm-id ID             id of this VM (default: product_uuid, which only root may read,\n"
	"                         or machine-id)\n"
	"  --file FILE            send the bytes of FILE as they are\n"
	"  --synthetic N          N invented packages, for tests and benchmarks\n"
	"  --seed N               other ones with another seed (default 1)\n"
	"\n"
	"Look instead of sending:\n"
	"  --print                write the report as text to standard output\n"
	"  --dump FILE            write the report's bytes to FILE; - is standard output\n"
	"\n"
	"  --verbose              say more\n"
	"  --version              say the version and exit\n"
	"  --help                 this text\n"
	"\n"
	"Durations are written as in Go: 4h, 1m30s, 250ms.\n"
	"\n"
	"Exit codes: 0 delivered or nothing to do; 64 usage; 65 the relay refused the report; 66\n"
	"nothing to report from; 69 no vsock here; 70 internal error; 74 cannot write; 75 temporary\n"
	"(busy, unreachable, cut): try later; 76 what answers is no relay.\n";

enum {
	OPT_ONCE = 256,
	OPT_INTERVAL,
	OPT_START_WITHIN,
	OPT_HOST_CID,
	OPT_PORT,
	OPT_UNIX,
	OPT_MODE,
	OPT_TIMEOUT,
	OPT_RETRIES,
	OPT_ROOT,
	OPT_RPM_COMMAND,
	OPT_CID,
	OPT_VM_ID,
	OPT_FILE,
	OPT_SYNTHETIC,
	OPT_SEED,
	OPT_PRINT,
	OPT_DUMP,
	OPT_VERBOSE,
	OPT_VERSION,
	OPT_HELP,
};

static const struct option long_options[] = {
	{ "once", no_argument, NULL, OPT_ONCE },
	{ "interval", required_argument, NULL, OPT_INTERVAL },
	{ "start-within", required_argument, NULL, OPT_START_WITHIN },
	{ "host-cid", required_argument, NULL, OPT_HOST_CID },
	{ "port", required_argument, NULL, OPT_PORT },
	{ "unix", required_argument, NULL, OPT_UNIX },
	{ "mode", required_argument, NULL, OPT_MODE },
	{ "timeout", required_argument, NULL, OPT_TIMEOUT },
	{ "retries", required_argument, NULL, OPT_RETRIES },
	{ "root", required_argument, NULL, OPT_ROOT },
	{ "rpm-command", required_argument, NULL, OPT_RPM_COMMAND },
	{ "cid", required_argument, NULL, OPT_CID },
	{ "vm-id", required_argument, NULL, OPT_VM_ID },
	{ "file", required_argument, NULL, OPT_FILE },
	{ "synthetic", required_argument, NULL, OPT_SYNTHETIC },
	{ "seed", required_argument, NULL, OPT_SEED },
	{ "print", no_argument, NULL, OPT_PRINT },
	{ "dump", required_argument, NULL, OPT_DUMP },
	{ "verbose", no_argument, NULL, OPT_VERBOSE },
	{ "version", no_argument, NULL, OPT_VERSION },
	{ "help", no_argument, NULL, OPT_HELP },
	{},
};

static const char *name_of(int option)
{
	for (const struct option *o = long_options; o->name; o++)
		if (o->val == option)
			return o->name;
	return "?";
}

static bool parse_number(int option, const char *s, uint64_t max, uint64_t *ret)
{
	unsigned long long n;
	char *rest;

	errno = 0;
	n = strtoull(s, &rest, 10);
	if (s[0] < '0' || s[0] > '9' || *rest || errno || n > max) {
		log_error("--%s: %s is no number from 0 to %llu", name_of(option), s,
			  (unsigned long long)max);
		return false;
	}
	*ret = n;
	return true;
}

static bool parse_u32(int option, const char *s, uint32_t max, uint32_t *ret)
{
	uint64_t n;

	if (!parse_number(option, s, max, &n))
		return false;
	*ret = n;
	return true;
}

static bool parse_duration(int option, const char *s, bool zero_allowed, uint64_t *ret)
{
	uint64_t usec;

	if (duration_parse(s, &usec) < 0 || (usec == 0 && !zero_allowed)) {
		log_error("--%s: %s is no %sduration such as 4h, 1m30s or 250ms", name_of(option),
			  s, zero_allowed ? "" : "positive ");
		return false;
	}
	*ret = usec;
	return true;
}

static bool parse_mode(const char *s, uint32_t *ret)
{
	if (streq(s, "vsr2"))
		*ret = VSR_MODE_VSR2;
	else if (streq(s, "vsr1"))
		*ret = VSR_MODE_VSR1;
	else if (streq(s, "raw"))
		*ret = VSR_MODE_RAW;
	else {
		log_error("--mode: %s is none of vsr2, vsr1, raw", s);
		return false;
	}
	return true;
}

/* Options with one value that is taken as it is, and those without. */
static bool take_plain(int option, const char *value, struct options *o)
{
	switch (option) {
	case OPT_ONCE:
		o->once = true;
		return true;
	case OPT_PRINT:
		o->print = true;
		return true;
	case OPT_VERBOSE:
		o->verbose = true;
		return true;
	case OPT_UNIX:
		o->relay.unix_path = value;
		return true;
	case OPT_ROOT:
		o->root = value;
		return true;
	case OPT_RPM_COMMAND:
		o->rpm_command = value;
		return true;
	case OPT_VM_ID:
		o->vm_id = value;
		return true;
	case OPT_FILE:
		o->file = value;
		return true;
	case OPT_DUMP:
		o->dump = value;
		return true;
	}
	return false;
}

static bool take_parsed(int option, const char *value, struct options *o)
{
	switch (option) {
	case OPT_INTERVAL:
		return parse_duration(option, value, false, &o->interval);
	case OPT_START_WITHIN:
		return parse_duration(option, value, true, &o->start_within);
	case OPT_TIMEOUT:
		return parse_duration(option, value, false, &o->timeout);
	case OPT_HOST_CID:
		return parse_u32(option, value, VMADDR_CID_ANY - 1, &o->relay.cid);
	case OPT_PORT:
		return parse_u32(option, value, VMADDR_PORT_ANY - 1, &o->relay.port);
	case OPT_RETRIES:
		return parse_u32(option, value, 1000000, &o->retries);
	case OPT_CID:
		o->cid_given = true;
		return parse_u32(option, value, UINT32_MAX, &o->cid);
	case OPT_SYNTHETIC:
		o->synthetic_given = true;
		return parse_u32(option, value, INVENTORY_PACKAGES_MAX, &o->synthetic);
	case OPT_SEED:
		return parse_number(option, value, UINT64_MAX, &o->seed);
	case OPT_MODE:
		return parse_mode(value, &o->mode);
	}
	return false; /* getopt_long() has said what is wrong */
}

static bool check(const struct options *o)
{
	if (o->file && o->synthetic_given)
		log_error("--file and --synthetic exclude each other");
	else if (o->relay.unix_path && !o->cid_given && !o->file)
		log_error("--unix needs --cid: a socket of the host knows no CID of this VM");
	else if (o->root[0] != '/')
		log_error("--root: %s is no absolute path", o->root);
	else
		return true;
	return false;
}

enum options_result options_parse(int argc, char *argv[], struct options *ret)
{
	struct options o = {
		.interval = 4 * USEC_PER_HOUR,
		.start_within = 20 * USEC_PER_MIN,
		.relay = { .cid = VMADDR_CID_HOST, .port = PORT_DEFAULT },
		.mode = VSR_MODE_VSR2,
		.timeout = 30 * USEC_PER_SEC,
		.retries = OPTIONS_RETRIES_DEFAULT,
		.root = "/",
		.rpm_command = "rpm",
		.seed = 1,
	};
	int option;

	optind = 0; /* tests parse more than once */
	while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
		if (option == OPT_HELP || option == OPT_VERSION) {
			fputs(option == OPT_HELP ? help : "vsock-agent " VSR_VERSION "\n", stdout);
			return OPTIONS_HELP;
		}
		if (!take_plain(option, optarg, &o) && !take_parsed(option, optarg, &o))
			return OPTIONS_INVALID;
	}
	if (optind < argc) {
		log_error("%s: vsock-agent takes options only, see --help", argv[optind]);
		return OPTIONS_INVALID;
	}
	if (!check(&o))
		return OPTIONS_INVALID;
	o.start_within = MIN(o.start_within, o.interval);
	*ret = o;
	return OPTIONS_RUN;
}
