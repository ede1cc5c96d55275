/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vsock-relayctl top: a screen that is drawn anew each second. The terminal is driven with the few
 * ECMA-48 sequences that all of them know; no line is longer than the screen is wide.
 */
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <termios.h>

#include "clock.h"
#include "commands.h"

#define ROWS_MAX    512
#define COLUMNS_MAX 512

enum { KEY_RATE, KEY_BYTES, KEY_RECEIVED, KEY_DUPLICATES, KEY_REFUSED, KEY_SEEN, KEY_NAME, KEY_VM };
static const struct {
	const char *name, *title;
} keys[] = {
	[KEY_RATE] = { "rate", "B/s" },		 [KEY_BYTES] = { "bytes", "bytes" },
	[KEY_RECEIVED] = { "received", "recv" }, [KEY_DUPLICATES] = { "duplicates", "dup" },
	[KEY_REFUSED] = { "refused", "refus" },	 [KEY_SEEN] = { "seen", "seen" },
	[KEY_NAME] = { "name", "name" },	 [KEY_VM] = { "vm", "VM" },
};

struct top {
	struct ctl *ctl;
	bool screen; /* a terminal, drawn over and over */
	size_t key;
	bool reverse;
	unsigned int count; /* refreshes left; 0: without end */
	uint64_t interval;
	json_t *before; /* "NS:CID" to bytes, at the last refresh */
	uint64_t before_at;
	int columns, rows;
	int line; /* next to be drawn */
	struct termios terminal;
};

static volatile sig_atomic_t stop;
static const struct top *sorting; /* qsort() passes nothing along */

static void on_signal(int signo)
{
	stop = stop || signo != SIGWINCH;
}

/* ---- figures ------------------------------------------------------------------------------------- */

static double sort_value(const json_t *vm, size_t key)
{
	static const char *const paths[] = {
		[KEY_RATE] = "bytes_per_second",    [KEY_BYTES] = "kernel.bytes",
		[KEY_RECEIVED] = "daemon.received", [KEY_DUPLICATES] = "daemon.duplicates",
		[KEY_REFUSED] = "daemon.refused",
	};
	const json_t *seen;

	if (key < ARRAY_SIZE(paths))
		return json_number_value(ctl_find(vm, paths[key]));
	/* The latest first. */
	seen = ctl_find(vm, "kernel.last_seen_age");
	return json_is_number(seen) ? -json_number_value(seen) : -1e12;
}

static int compare(const void *a, const void *b)
{
	const json_t *x = *(json_t *const *)a, *y = *(json_t *const *)b;
	double dx, dy;
	int r;

	if (sorting->key == KEY_NAME)
		r = strcmp(ctl_text(x, "name"), ctl_text(y, "name"));
	else if (sorting->key == KEY_VM)
		r = 0;
	else {
		dx = sort_value(x, sorting->key);
		dy = sort_value(y, sorting->key);
		r = (dx < dy) - (dx > dy);
	}
	if (r == 0)
		r = ctl_int(x, "ns") < ctl_int(y, "ns") ? -1
		    : ctl_int(x, "ns") > ctl_int(y, "ns")
			    ? 1
			    : (ctl_int(x, "cid") > ctl_int(y, "cid")) -
				      (ctl_int(x, "cid") < ctl_int(y, "cid"));
	return sorting->reverse ? -r : r;
}

/* Adds "bytes_per_second" since the last refresh; null at the first, and where nothing counts. */
static void add_rates(struct top *t, json_t *list)
{
	uint64_t now = clock_usec();
	double seconds = (double)usec_sub(now, t->before_at) / USEC_PER_SEC;
	json_t *counts = json_object(), *vm;
	size_t i;

	json_array_foreach(list, i, vm)
	{
		const json_t *bytes = ctl_find(vm, "kernel.bytes"), *old;
		json_t *rate = json_null();
		char id[32];

		snprintf(id, sizeof(id), "%lld:%lld", ctl_int(vm, "ns"), ctl_int(vm, "cid"));
		old = json_object_get(t->before, id);
		if (json_is_integer(bytes)) {
			json_int_t n = json_integer_value(bytes), o = json_integer_value(old);

			json_object_set_new(counts, id, json_integer(n));
			if (t->before && seconds > 0)
				rate = json_real(n > o ? (double)(n - o) / seconds : 0);
		}
		json_object_set_new(vm, "bytes_per_second", rate);
	}
	json_decref(t->before);
	t->before = counts;
	t->before_at = now;
}

/* ---- the screen ---------------------------------------------------------------------------------- */

/* One line, cut at the width of the screen; nothing below its last row. */
static _printf_(3, 4) void put(struct top *t, bool inverse, const char *fmt, ...)
{
	char text[COLUMNS_MAX + 1];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (n < 0 || (t->screen && t->line >= t->rows))
		return;
	if (!t->screen) {
		printf("%s\n", text);
		return;
	}
	printf("\033[%d;1H%s%.*s%s\033[K", ++t->line, inverse ? "\033[7m" : "", t->columns, text,
	       inverse ? "\033[0m" : "");
}

static void draw_status(struct top *t, const json_t *s, bool from_maps, const char *why)
{
	char a[16], b[16];

	if (!s) {
		put(t, false, "%s", why);
		put(t, false, "%s%s", from_maps ? "From the maps at " : "",
		    from_maps ? t->ctl->pin_dir : "");
		put(t, false, "%s", "");
		return;
	}
	put(t, false, "vsock-relayd %s, up %s, %s; verdict in %s; upstream %s%s%s",
	    ctl_text(s, "version"), ctl_age(ctl_find(s, "uptime"), a),
	    ctl_true(s, "ready") ? "ready" : "NOT READY",
	    streq(ctl_text(s, "bpf_mode"), "kernel") ? "the kernel" : "user space",
	    ctl_text(s, "upstream.kind"), ctl_true(s, "upstream.ready") ? "" : " AWAY",
	    ctl_true(s, "upstream.paused") ? " PAUSED" : "");
	put(t, false, "reports: %lld valid, %lld duplicate, %lld suppressed, %lld refused",
	    ctl_int(s, "reports.valid"), ctl_int(s, "reports.duplicates"),
	    ctl_int(s, "reports.suppressed"), ctl_int(s, "reports.refused"));
	put(t, false, "places %lld/%lld, %lld wait; custody %lld, oldest %s; cache %lld/%lld, %s",
	    ctl_int(s, "admission.places_used"), ctl_int(s, "admission.places"),
	    ctl_int(s, "admission.waiting"), ctl_int(s, "contents.held"),
	    ctl_age(ctl_find(s, "contents.oldest_age"), a), ctl_int(s, "cache.slots_used"),
	    ctl_int(s, "cache.slots"), ctl_bytes((double)ctl_int(s, "cache.bytes"), b));
}

static void draw_vm(struct top *t, const json_t *vm)
{
	char id[32], rate[16] = "-", bytes[16] = "-", seen[16];
	const json_t *per_second = ctl_find(vm, "bytes_per_second");
	const json_t *n = ctl_find(vm, "kernel.bytes");

	snprintf(id, sizeof(id), "%lld:%lld", ctl_int(vm, "ns"), ctl_int(vm, "cid"));
	if (json_is_number(per_second))
		ctl_bytes(json_number_value(per_second), rate);
	if (json_is_number(n))
		ctl_bytes(json_number_value(n), bytes);
	put(t, false, "%-12s %-14.14s %-9s %6s %6s %5lld %5lld %5lld %7s", id, ctl_text(vm, "name"),
	    ctl_text(vm, "state"), rate, bytes, ctl_int(vm, "daemon.received"),
	    ctl_int(vm, "daemon.duplicates"), ctl_int(vm, "daemon.refused"),
	    ctl_age(ctl_find(vm, "kernel.last_seen_age"), seen));
}

/* A title, with a mark if it is the one that is sorted by. */
static const char *title(const struct top *t, size_t key, char buf[static 16])
{
	snprintf(buf, 16, "%s%s", t->key == key ? t->reverse ? "^" : "*" : "", keys[key].title);
	return buf;
}

static void draw(struct top *t, const json_t *status, const json_t *list, bool from_maps,
		 const char *why)
{
	char k[KEY_VM + 1][16];
	const json_t *vm;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(k); i++)
		title(t, i, k[i]);
	t->line = 0;
	draw_status(t, status, from_maps, why);
	put(t, true, "%-12s %-14s %-9s %6s %6s %5s %5s %5s %7s", k[KEY_VM], k[KEY_NAME], "state",
	    k[KEY_RATE], k[KEY_BYTES], k[KEY_RECEIVED], k[KEY_DUPLICATES], k[KEY_REFUSED],
	    k[KEY_SEEN]);
	json_array_foreach(list, i, vm)
	{
		if (t->screen && t->line >= t->rows - 1)
			break;
		draw_vm(t, vm);
	}
	if (t->screen) {
		printf("\033[J");
		t->line = t->rows - 1;
		put(t, true, "q quit  s sort: %s  r reverse  space now   %zu VMs%s",
		    keys[t->key].name, json_array_size(list),
		    i < json_array_size(list) ? ", not all are shown" : "");
	}
	fflush(stdout);
}

static void measure(struct top *t)
{
	struct winsize w = { 0 };

	t->columns = 80;
	t->rows = 24;
	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 0 && w.ws_row > 0) {
		t->columns = MIN(w.ws_col, COLUMNS_MAX);
		t->rows = MIN(w.ws_row, ROWS_MAX);
	}
}

/* Returns CTL_OK, or says why there is nothing to show. */
static int refresh(struct top *t)
{
	json_t *status = NULL, *list = NULL;
	char why[1024] = "";
	int r;

	ctl_names_refresh(t->ctl);
	r = ctl_vms_from(t->ctl, NULL, &list, why, sizeof(why));
	if (r < 0 && !t->screen)
		return ctl_error(t->ctl, CTL_NO_DAEMON, "%s", why);
	if (r < 0)
		list = json_array();
	if (r == 0 && ctl_get(t->ctl, "/status.json", &status) < 0)
		status = NULL;
	add_rates(t, list);
	sorting = t;
	list = ctl_sorted(list, compare);
	if (t->ctl->json) {
		ctl_print_json(t->ctl, json_pack("{s:o?, s:o}", "status", status, "vms", list));
		return CTL_OK;
	}
	measure(t);
	draw(t, status, list, r == 1, why);
	json_decref(status);
	json_decref(list);
	return CTL_OK;
}

/* ---- keys ---------------------------------------------------------------------------------------- */

/* Waits for the next refresh or a key. Returns false: quit. */
static bool wait_key(struct top *t)
{
	struct pollfd p = { .fd = STDIN_FILENO, .events = POLLIN };
	uint64_t until = usec_add(t->before_at, t->interval), now = clock_usec();
	char c;

	if (!t->screen) {
		usleep((useconds_t)usec_sub(until, now));
		return !stop;
	}
	if (poll(&p, 1, (int)(usec_sub(until, now) / USEC_PER_MSEC)) <= 0)
		return !stop; /* a signal, such as SIGWINCH, draws anew */
	if (read(STDIN_FILENO, &c, 1) != 1)
		return false;
	switch (c) {
	case 'q':
	case 'Q':
		return false;
	case 's':
		t->key = (t->key + 1) % ARRAY_SIZE(keys);
		break;
	case 'S':
		t->key = (t->key + ARRAY_SIZE(keys) - 1) % ARRAY_SIZE(keys);
		break;
	case 'r':
		t->reverse = !t->reverse;
		break;
	}
	return !stop;
}

static void screen_begin(struct top *t)
{
	struct sigaction sa = { .sa_handler = on_signal };
	struct termios raw;

	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGWINCH, &sa, NULL); /* ends a wait */
	if (!t->screen)
		return;
	tcgetattr(STDIN_FILENO, &t->terminal);
	raw = t->terminal;
	raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
	tcsetattr(STDIN_FILENO, TCSANOW, &raw);
	printf("\033[?1049h\033[?25l\033[2J");
}

static void screen_end(struct top *t)
{
	if (!t->screen)
		return;
	/* Keys first: who sees the old screen again may type at once. */
	tcsetattr(STDIN_FILENO, TCSANOW, &t->terminal);
	printf("\033[?25h\033[?1049l");
	fflush(stdout);
}

static int parse_key(const char *text, size_t *ret)
{
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
		if (streq(keys[i].name, text)) {
			*ret = i;
			return 0;
		}
	return -EINVAL;
}

/* Returns CTL_OK, or says what is wrong. */
static int parse(struct top *t, int argc, char *argv[], bool *ret_counted)
{
	for (int i = 1; i < argc; i += 2) {
		const char *option = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
		double number;
		char *end;

		number = strtod(value, &end);
		if (streq(option, "-s") || streq(option, "--sort")) {
			if (parse_key(value, &t->key) == 0)
				continue;
			return ctl_error(t->ctl, CTL_USAGE,
					 "%s: expected rate, bytes, received, duplicates, refused, "
					 "seen, name or vm",
					 value);
		}
		if (!streq(option, "-i") && !streq(option, "-n"))
			return ctl_error(t->ctl, CTL_USAGE, "%s: top takes -i, -n and -s", option);
		if (!*value || *end || !(number >= 0.1) || number > 86400)
			return ctl_error(t->ctl, CTL_USAGE,
					 "%s %s: expected a number from 0.1 to 86400", option,
					 value);
		if (streq(option, "-i"))
			t->interval = (uint64_t)(number * USEC_PER_SEC);
		else
			t->count = (unsigned int)MAX(number, 1);
		*ret_counted = *ret_counted || streq(option, "-n");
	}
	return CTL_OK;
}

static int run_top(struct ctl *ctl, int argc, char *argv[])
{
	struct top t = { .ctl = ctl, .interval = USEC_PER_SEC };
	bool counted = false;
	int r = parse(&t, argc, argv, &counted);

	if (r != CTL_OK)
		return r;
	t.screen = !ctl->json && isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
	if (!t.screen && !counted)
		t.count = 1;
	screen_begin(&t);
	do
		r = refresh(&t);
	while (r == CTL_OK && (!t.count || --t.count > 0) && wait_key(&t));
	screen_end(&t);
	json_decref(t.before);
	return r;
}

const struct ctl_command ctl_top_commands[] = {
	{ "", "[-i SECONDS] [-n TIMES] [-s KEY]", "VMs as they come and go, live",
	  "      Keys: q quits, s and S choose what is sorted by, r reverses, space refreshes.\n"
	  "      -s KEY: rate, bytes, received, duplicates, refused, seen, name, vm.\n"
	  "      Not on a terminal, or with --json: TIMES snapshots, one by default.\n",
	  run_top },
	{},
};
