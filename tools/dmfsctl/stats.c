/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * stats: regions made, listed, read and removed, as dmstats does, over the
 * devices' @stats_ messages.
 *
 * A region belongs to the program that made it (ours are "dmstats", so that dmstats and we see each other's);
 * --programid and --allprograms reach the others'.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "dmfsctl.h"
#include "stats.h"
#include "stats_report.h"

#define PROGRAM "dmstats"

/* --- messages --------------------------------------------------------------------------- */

int stats_message(const char *device, char **reply, const char *format, ...)
{
	g_autofree char *words = NULL, *text = NULL;
	va_list ap;

	va_start(ap, format);
	words = g_strdup_vprintf(format, ap);
	va_end(ap);
	text = g_strdup_printf("0 %s", words);
	return tree_message(ctl_root(), device, text, reply);
}

GPtrArray *stats_regions(const char *device, const char *program, int *error)
{
	g_autofree char *reply = NULL;
	g_auto(GStrv) lines = NULL;
	GPtrArray *list;

	*error = stats_message(device, &reply, "@stats_list");
	if (*error)
		return NULL;
	list = g_ptr_array_new_with_free_func((GDestroyNotify)region_free);
	lines = g_strsplit(reply, "\n", -1);
	for (unsigned i = 0; lines[i]; i++) {
		struct region *r = region_parse(lines[i]);

		if (r)
			g_ptr_array_add(list, r);
	}
	regions_group(list);
	for (unsigned i = 0; program && i < list->len;)
		if (strcmp(((struct region *)list->pdata[i])->program, program))
			g_ptr_array_remove_index(list, i);
		else
			i++;
	return list;
}

int stats_sample(const char *device, struct region *r)
{
	g_autofree char *reply = NULL;
	GPtrArray *areas;
	int error = stats_message(device, &reply, "@stats_print %u", r->id);

	if (error)
		return error;
	areas = areas_parse(reply);
	if (!areas)
		return -EIO;
	if (r->areas)
		g_ptr_array_free(r->areas, TRUE);
	r->areas = areas;
	return 0;
}

bool stats_interval(double seconds)
{
	static int timer = -1;
	uint64_t expired;

	if (timer < 0) {
		struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
		struct itimerspec every = {t, t};

		timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
		if (timer < 0 || timerfd_settime(timer, 0, &every, NULL))
			return say("timerfd: %s", g_strerror(errno));
	}
	return read(timer, &expired, sizeof expired) == sizeof expired;
}

/* --- which devices and regions ------------------------------------------------------------- */

const char *stats_program(void)
{
	if (opt.allprograms || (opt.programid && !*opt.programid))
		return NULL;
	return opt.programid ? opt.programid : PROGRAM;
}

bool stats_each_device(char **argv, bool all, const char *what, bool (*fn)(const char *))
{
	bool ok = true;
	g_autoptr(GPtrArray) names = NULL;
	int error = 0;

	if (!ctl_root())
		return false;
	for (; *argv || named_by_option(); argv++) {
		AUTO_IDENT id = {0};
		struct device *d;

		if (!ident_need(named_by_option() ? NULL : *argv, &id))
			return false;
		d = id.name ? device_get(id.name, &error) : NULL;
		if (!d)
			return what ? ioctl_failed(what, &id, -ENXIO) : say("Device does not exist.");
		device_free(d);
		if (!fn(id.name))
			return false;
		if (named_by_option() || !argv[1])
			return true;
	}
	if (!all && !opt.alldevices)
		return say("Please specify device(s) or use --alldevices.");
	names = tree_devices(ctl_root(), &error);
	for (unsigned i = 0; names && i < names->len; i++)
		ok &= fn(names->pdata[i]);
	return names ? ok : say("%s: %s", ctl_root(), g_strerror(-error));
}

bool stats_message_failed(const char *device, int error)
{
	ioctl_failed_on("message", device, NULL, -1, error);
	show_error_file(device);
	return false;
}

/* Runs a function for the regions of a device that --regionid or --allregions say. */
static bool each_region(const char *device, bool (*fn)(const char *, struct region *), const char *missing)
{
	int error;
	g_autoptr(GPtrArray) list = stats_regions(device, stats_program(), &error);
	bool found = opt.allregions;

	if (!list)
		return stats_message_failed(device, error);
	for (unsigned i = 0; i < list->len; i++) {
		struct region *r = list->pdata[i];

		if (!opt.allregions && opt.regionid != r->id)
			continue;
		found = true;
		if (!fn(device, r))
			return false;
	}
	return found || say(missing, (int)opt.regionid);
}

static bool regions_given(const char *complaint)
{
	return opt.allregions || opt.regionid >= 0 || say("%s", complaint);
}

/* --- create ------------------------------------------------------------------------------------ */

struct wanted {
	guint64 start, length, step; /* sectors; step 0: areas */
	guint64 areas;
	char *options, *aux;
};

static struct wanted wanted;
static GArray *made; /* the numbers of the regions that were, on this device */

static bool take_size(const char *text, const char *what, guint64 *out)
{
	return !text || size_parse(text, out) || say("Invalid %s argument: \"%s\"", what, text);
}

static bool take_wanted(void)
{
	g_autofree char *bounds = NULL;
	bool precise = opt.precise;

	if (opt.areas && opt.areasize)
		return say("Please specify one of --areas and --areasize.");
	if (opt.alias && opt.nogroup)
		return say("Cannot set alias with --nogroup.");
	if (opt.programid && !*opt.programid && !opt.force)
		return say("Creating a region with no program id requires --force.");
	if (!stats_alias_good(opt.alias))
		return false;
	wanted.areas = 1;
	if (!take_size(opt.start, "start", &wanted.start) || !take_size(opt.length, "length", &wanted.length) ||
	    !take_size(opt.areasize, "areasize", &wanted.step) || !take_size(opt.areas, "areas", &wanted.areas))
		return false;
	if (opt.bounds && !bounds_parse(opt.bounds, &precise, &bounds))
		return say("Invalid histogram description: %s", opt.bounds);
	if (opt.areas && !wanted.areas)
		return say("Invalid areas argument: \"%s\"", opt.areas);
	wanted.options = g_strdup_printf(" %d%s%s%s", precise + !!bounds, precise ? " precise_timestamps" : "",
					 bounds ? " histogram:" : "", bounds ? bounds : "");
	wanted.aux = opt.userdata ? tree_quote(opt.userdata) : NULL;
	return true;
}

static bool create_region(const char *device, guint64 start, guint64 length)
{
	g_autofree char *reply = NULL, *step = NULL, *program = NULL;
	guint64 id, areas = wanted.step ? (length + wanted.step - 1) / wanted.step : wanted.areas;
	int error;

	step = wanted.step ? g_strdup_printf("%" G_GUINT64_FORMAT, wanted.step)
			   : g_strdup_printf("/%" G_GUINT64_FORMAT, wanted.areas);
	program = opt.programid ? tree_quote(*opt.programid ? opt.programid : "-") : g_strdup(PROGRAM);
	error = stats_message(device, &reply, "@stats_create %" G_GUINT64_FORMAT "+%" G_GUINT64_FORMAT " %s%s %s %s",
			      start, length, step, wanted.options[1] == '0' ? "" : wanted.options, program,
			      wanted.aux && *wanted.aux ? wanted.aux : "-");
	if (error) {
		stats_message_failed(device, error);
		return say("%s: Could not create statistics region.", device);
	}
	printf("%s: Created new region with %" G_GUINT64_FORMAT " area(s) as region ID %s\n", device, areas,
	       g_strchomp(reply));
	id = g_ascii_strtoull(reply, NULL, 10);
	g_array_append_val(made, id);
	return true;
}

/* The regions of --segments are a group. */
static bool group_made(const char *device)
{
	g_autoptr(GString) text = g_string_new(NULL);

	for (guint i = 0; i < made->len; i++)
		g_string_append_printf(text, "%s%" G_GUINT64_FORMAT, i ? "," : "", g_array_index(made, guint64, i));
	if (!made->len || stats_group_regions(device, text->str, opt.alias, NULL) < 0)
		return say("Failed to create group for regions %s.", text->str);
	printf("Grouped regions %s as group ID %" G_GUINT64_FORMAT "%s%s\n", text->str, g_array_index(made, guint64, 0),
	       opt.alias ? " with alias " : "", opt.alias ? opt.alias : "");
	return true;
}

/* One region, or with --segments one for each line of the table. */
static bool create_regions(const char *device)
{
	g_autofree char *path = tree_path(ctl_root(), device, "table"), *text = NULL;
	g_auto(GStrv) lines = NULL;
	guint64 size = 0;
	int error = tree_read(path, &text);

	if (error)
		return ioctl_failed_on("table", device, NULL, -1, error);
	if (!made)
		made = g_array_new(FALSE, FALSE, sizeof(guint64));
	g_array_set_size(made, 0);
	lines = g_strsplit(text, "\n", -1);
	for (unsigned i = 0; lines[i]; i++) {
		char *end;
		guint64 start = g_ascii_strtoull(lines[i], &end, 10), length = g_ascii_strtoull(end, NULL, 10);

		if (!*lines[i])
			continue;
		size = start + length;
		if (opt.segments && !create_region(device, start, length))
			return false;
	}
	if (opt.segments)
		return opt.nogroup || group_made(device);
	return create_region(device, wanted.start, wanted.length ? wanted.length : size);
}

static bool stats_create(int argc, char **argv)
{
	(void)argc;
	return take_wanted() && stats_each_device(argv, false, "table", create_regions);
}

/* --- delete, clear, print --------------------------------------------------------------------------- */

/* With the first region of a group the group goes; another one is taken out of its group. */
static bool delete_region(const char *device, struct region *r)
{
	g_autofree char *reply = NULL;
	int error;

	if (r->group >= 0 && !r->members && !opt.allregions && !stats_leave_group(device, r))
		return say("Could not remove region ID from group ID");
	error = stats_message(device, &reply, "@stats_delete %u", r->id);
	return !error || stats_message_failed(device, error) || say("Could not delete statistics region");
}

static bool delete_regions(const char *device)
{
	return each_region(device, delete_region, "Region ID %d does not exist\nCould not delete statistics region");
}

static bool stats_delete(int argc, char **argv)
{
	(void)argc;
	if (opt.groupid >= 0 && opt.regionid >= 0)
		return say("Please use one of --regionid and --groupid.");
	if (opt.groupid >= 0)
		return stats_each_device(argv, false, "message", stats_delete_group);
	return regions_given("Please specify a --regionid or --groupid, or use --allregions.") &&
	       stats_each_device(argv, false, "message", delete_regions);
}

static bool clear_region(const char *device, struct region *r)
{
	g_autofree char *reply = NULL;
	int error = stats_message(device, &reply, "@stats_clear %u", r->id);

	return !error || stats_message_failed(device, error);
}

static bool clear_regions(const char *device)
{
	return each_region(device, clear_region, "No such region: %d.");
}

static bool stats_clear(int argc, char **argv)
{
	(void)argc;
	return regions_given("Please specify a --regionid or use --allregions.") &&
	       stats_each_device(argv, true, "message", clear_regions);
}

static bool print_region(const char *device, struct region *r)
{
	g_autofree char *reply = NULL;
	int error = stats_message(device, &reply, opt.clear ? "@stats_print_clear %u" : "@stats_print %u", r->id);

	if (error)
		return stats_message_failed(device, error);
	fputs(reply, stdout);
	return true;
}

static bool print_regions(const char *device)
{
	return each_region(device, print_region, "No such region: %d.\nCould not print statistics region.");
}

static bool stats_print(int argc, char **argv)
{
	(void)argc;
	return regions_given("Please specify a --regionid or use --allregions.") &&
	       stats_each_device(argv, true, "message", print_regions);
}

/* --- list, report ------------------------------------------------------------------------------------- */

static GPtrArray *samples; /* of struct sample, of this round */
static GHashTable *before; /* of the last round */
static bool sampling;

static bool collect(const char *device)
{
	int error;
	g_autoptr(GPtrArray) list = stats_regions(device, stats_program(), &error);

	if (!list)
		return stats_message_failed(device, error);
	for (unsigned i = 0; i < list->len; i++) {
		struct region *r = list->pdata[i];

		if (opt.regionid >= 0 && !opt.allregions && opt.regionid != r->id)
			continue;
		if (opt.groupid >= 0 && opt.groupid != r->group)
			continue;
		error = sampling ? stats_sample(device, r) : 0;
		if (error == -ENOENT) /* it was deleted just now */
			continue;
		if (error)
			return stats_message_failed(device, error);
		samples_add(samples, device, r, before);
		list->pdata[i] = NULL; /* the samples have it now */
	}
	return true;
}

static bool round_of_samples(char **argv)
{
	samples = samples_new();
	return stats_each_device(argv, true, NULL, collect);
}

/* What --area, --region and --group say; -v goes before them.  One region is no group. */
static struct shown to_show(bool listing)
{
	opt.group &= opt.regionid < 0;
	if (opt.regionid >= 0 && !opt.area && !opt.region)
		return (struct shown){!listing || opt.verbose, true, false, listing && !opt.verbose};
	if ((opt.area || opt.region || opt.group) && !(listing && opt.verbose))
		return (struct shown){opt.area, opt.region, opt.group, true};
	return listing && !opt.verbose ? (struct shown){false, true, true, true}
				       : (struct shown){true, true, true, false};
}

static bool check_units(void)
{
	return units_valid(opt.units) || say("Invalid --units argument.");
}

static bool stats_list(int argc, char **argv)
{
	struct shown shown = to_show(true);

	(void)argc;
	sampling = opt.verbose;
	return check_units() && round_of_samples(argv) && samples_list(samples, &shown, opt.verbose);
}

static void keep_round(void)
{
	if (before)
		g_hash_table_destroy(before);
	before = samples_table(samples);
}

/* Rates need two samples, an interval apart. */
static bool stats_report(int argc, char **argv)
{
	double interval = opt.interval > 0 ? opt.interval : 1;
	int64_t count = opt.count < 0 ? (opt.interval > 0 ? 0 : 1) : opt.count;
	struct shown shown = to_show(false);

	(void)argc;
	sampling = true;
	if (!check_units() || !round_of_samples(argv))
		return false;
	keep_round();
	for (int64_t i = 0; !count || i < count; i++) {
		if (!stats_interval(interval) || !round_of_samples(argv))
			return false;
		if (i)
			putchar('\n');
		if (!samples_report(samples, &shown, interval))
			return false;
		fflush(stdout);
		keep_round();
	}
	return true;
}

/* --- the commands ---------------------------------------------------------------------------------------- */

static bool stats_help(int argc, char **argv);

static const struct {
	const char *name, *usage;
	bool (*fn)(int, char **);
} commands[] = {
	{"help", "", stats_help},
	{"clear", "[--allregions|--regionid <id>] [<device>...]", stats_clear},
	{"create",
	 "[--start <start>] [--length <len>]\n\t    [--areas <nr_areas>|--areasize <size>] [--segments]\n"
	 "\t    [--alias <name>|--nogroup] [--programid <id>] [--userdata <data>]\n"
	 "\t    [--bounds <histogram_boundaries>] [--precise]\n"
	 "\t    {--alldevices|<device>...}",
	 stats_create},
	{"delete", "{--allregions|--regionid <id>|--groupid <id>} {--alldevices|<device>...}", stats_delete},
	{"group", "--regions <regions> [--alias <name>] {--alldevices|<device>...}", stats_group},
	{"list",
	 "[-v] [--area] [--region] [--group] [--histogram] [--notimesuffix]\n\t     [--units <u>] [-o <fields>] "
	 "[<device>...]",
	 stats_list},
	{"print", "[--clear] {--allregions|--regionid <id>} [<device>...]", stats_print},
	{"report",
	 "[--interval <seconds>] [--count <cnt>] [--area] [--region] [--group]\n"
	 "\t    [--histogram [--relative]] [--notimesuffix] [--units <u>] [-o <fields>] [-O|--sort <sort_fields>]\n"
	 "\t    [-S|--select <selection>] [--nameprefixes]\n\t    [--noheadings] [--separator <separator>] [<device>...]",
	 stats_report},
	{"ungroup", "--groupid <id> {--alldevices|<device>...}", stats_ungroup},
	{"version", "", cmd_version},
};

static void stats_usage(void)
{
	fprintf(stderr, "Usage:\n\n%s stats [--programid <id>|--allprograms]\n\n", ctl_program);
	for (unsigned i = 0; i < G_N_ELEMENTS(commands); i++)
		fprintf(stderr, "\t%s %s\n", commands[i].name, commands[i].usage);
	fputc('\n', stderr);
}

static bool stats_help(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	stats_usage();
	if (opt.columns)
		samples_help();
	return true;
}

bool cmd_stats(int argc, char **argv)
{
	for (unsigned i = 0; argc && i < G_N_ELEMENTS(commands); i++)
		if (!strcmp(commands[i].name, argv[0]))
			return commands[i].fn(argc - 1, argv + 1);
	say(argc ? "Unknown stats command." : "Incorrect number of arguments.");
	stats_usage();
	exit(1);
}
