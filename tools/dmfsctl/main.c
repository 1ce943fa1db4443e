/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dmfsctl: dmsetup's command language for a mounted dmfs (dmfsctl.h).
 *
 *   dmfsctl [-m MOUNT] [OPTIONS] COMMAND [ARGUMENTS]
 *
 * Called as dmsetup it is the same, called as dmstats it is `dmfsctl stats`.  Exit status: 0, or 1 if something failed.
 */
#include <errno.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>

#include "dmfsctl.h"
#include "fields.h"
#include "show.h"
#include "stats.h"

struct options opt;
const char *ctl_program;

/* --- the commands ----------------------------------------------------------------------- */

static bool cmd_help(int argc, char **argv);

static const struct command {
	const char *name, *usage;
	int min, max; /* arguments; max -1: any number */
	bool each;    /* it is run for each argument in turn */
	bool (*fn)(int argc, char **argv);
} commands[] = {
	{"help", "[-c|-C|--columns]", 0, 0, false, cmd_help},
	{"create",
	 "<dev_name>\n"
	 "\t    [-j|--major <major> -m|--minor <minor>]\n"
	 "\t    [-U|--uid <uid>] [-G|--gid <gid>] [-M|--mode <octal_mode>]\n"
	 "\t    [-u|--uuid <uuid>] [-r|--readonly]\n"
	 "\t    [-n|--notable|--table <table>|<table_file>]\n"
	 "\tcreate --concise [<concise_device_spec_list>]",
	 0, 2, false, cmd_create},
	{"remove", "[--deferred] [-f|--force] [--retry] <device>...", 0, -1, true, cmd_remove},
	{"remove_all", "[--deferred] [-f|--force]", 0, 0, false, cmd_remove_all},
	{"suspend", "[--noflush] [--nolockfs] <device>...", 0, -1, true, cmd_suspend},
	{"resume", "[--noflush] [--nolockfs] <device>...", 0, -1, true, cmd_resume},
	{"load", "<device> [-r|--readonly] [--table <table>|<table_file>]", 0, 2, false, cmd_load},
	{"clear", "<device>...", 0, -1, true, cmd_clear},
	{"reload", "<device> [-r|--readonly] [--table <table>|<table_file>]", 0, 2, false, cmd_load},
	{"wipe_table", "[-f|--force] [--noflush] [--nolockfs] <device>...", 0, -1, true, cmd_wipe_table},
	{"rename", "<device> [--setuuid] <new_name_or_uuid>", 1, 2, false, cmd_rename},
	{"message", "<device> <sector> <message>", 2, -1, false, cmd_message},
	{"ls", "[--target <target_type>] [--exec <command>] [-o <options>] [--tree]", 0, 0, false, cmd_ls},
	{"info", "[-c|-C|--columns] [--inactive] [--count <cnt>] [--interval <seconds>] [<device>...]", 0, -1, true,
	 cmd_info},
	{"deps", "[-o <options>] [--inactive] [<device>...]", 0, -1, true, cmd_deps},
	{"stats", "<command> [<options>] [<device>...]", 0, -1, false, cmd_stats},
	{"status", "[<device>...] [--inactive] [--noflush] [--target <target_type>]", 0, -1, true, cmd_status},
	{"table", "[<device>...] [--concise] [--inactive] [--target <target_type>]", 0, -1, true, cmd_table},
	{"wait", "<device> [<event_nr>] [--noflush]\n\twait --progress <device>", 0, 2, false, cmd_wait},
	{"mknodes", "[<device>...]", 0, -1, true, cmd_mknodes},
	{"mangle", "[<device>...]", 0, -1, true, cmd_mangle},
	{"target-version", "[<target>...]", 1, -1, true, cmd_target_version},
	{"targets", "", 0, 0, false, cmd_targets},
	{"version", "", 0, 0, false, cmd_version},
	{"top", "[--interval <seconds>] [--count <cnt>]", 0, 0, false, cmd_top},
	{"graph", "", 0, 0, false, cmd_graph},
	{"losetup", "[-r|--readonly] <device>...", 0, -1, true, cmd_losetup},
	{"udevcreatecookie", "", 0, 0, false, cmd_udevcreatecookie},
	{"udevreleasecookie", "[<cookie>]", 0, 1, false, cmd_udevreleasecookie},
	{"udevflags", "<cookie>", 1, 1, false, cmd_udevflags},
	{"udevcomplete", "<cookie>", 1, 1, false, cmd_udevcomplete},
	{"udevcookies", "", 0, 0, false, cmd_udevcookies},
	{"udevcomplete_all", "[<age_in_minutes>]", 0, 1, false, cmd_udevcomplete_all},
	{"setgeometry", "<device> <cyl> <head> <sect> <start>", 5, 5, false, cmd_setgeometry},
};

static void usage(FILE *to)
{
	fprintf(to,
		"Usage:\n\n%s\n"
		"        %s\n"
		"        [--version] [-h|--help [-c|-C|--columns]]\n"
		"        [-v|--verbose] [-f|--force] [--manglename {none|hex|auto}]\n"
		"        [-r|--readonly] [--noflush] [--nolockfs] [--inactive]\n"
		"        [-y|--yes] [--retry] [-c|-C|--columns] [-o <fields>]\n"
		"        [-O|--sort <sort_fields>] [-S|--select <selection>]\n"
		"        [--nameprefixes] [--noheadings] [--separator <separator>]\n\n",
		ctl_program, "[-m|--mount <mountpoint>]");
	for (unsigned i = 0; i < G_N_ELEMENTS(commands); i++)
		fprintf(to, "\t%s %s\n", commands[i].name, commands[i].usage);
	fputs("\n"
	      "<mountpoint> is by default $DMFS_MOUNT, or the only dmfs that is mounted.\n"
	      "<device> may be device name or (if only one) -u <uuid> or -j <major> -m <minor>\n"
	      "After the command word -m is --minor.\n"
	      "<fields> are comma-separated.  Use 'help -c' for list.\n"
	      "<concise_device_spec_list> has single-device entries separated by semi-colons:\n"
	      "    <name>,<uuid>,<minor>,<flags>,<table>\n"
	      "        where <flags> is 'ro' or 'rw' (the default) and any of <uuid>, <minor>\n"
	      "        and <flags> may be empty. Separate extra table lines with commas.\n"
	      "    E.g.: dev1,,,,0 100 linear disk.img 0,100 100 error;dev2,,,ro,0 1 error\n"
	      "Table_file contents may be supplied on stdin.\n"
	      "Options of deps and ls are: devno, devname, blkdevname.\n"
	      "Tree specific options are: ascii, utf, vt100; compact, inverted, notrunc;\n"
	      "                           blkdevname, [no]device, active, open, rw and uuid.\n\n",
	      to);
}

static bool cmd_help(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	usage(stderr);
	if (opt.columns)
		report_help(&device_report_type, true, false, stderr);
	return true;
}

static const struct command *find_command(const char *name)
{
	for (unsigned i = 0; i < G_N_ELEMENTS(commands); i++)
		if (!strcmp(commands[i].name, name))
			return &commands[i];
	return NULL;
}

/* --- the mount ------------------------------------------------------------------------------- */

const char *ctl_root(void)
{
	static char *root;
	static bool looked;

	if (!looked) {
		g_autoptr(GError) err = NULL;

		looked = true;
		root = tree_find_mount(opt.mount, &err);
		if (!root)
			say("%s: no dmfs to work on: %s", ctl_program, err->message);
	}
	return root;
}

/* --- running ------------------------------------------------------------------------------------ */

static bool run(const struct command *c, int argc, char **argv)
{
	do {
		if (!c->fn(argc, argv))
			return false;
		argc--;
	} while (c->each && argc > 0 && *++argv);
	return true;
}

/*
 * Once, or as often as --count says, an --interval apart; for ever with --interval alone.  Reports in columns have an
 * empty line between them.
 */
static bool run_repeatedly(const struct command *c, int argc, char **argv)
{
	int64_t left = opt.count >= 0 ? opt.count : opt.interval > 0 ? 0 : 1;
	bool ok, forever = !left;

	for (;;) {
		ok = run(c, argc, argv);
		if (!ok)
			say("Command failed.");
		finish_columns();
		if (!ok || (!forever && !--left))
			return ok;
		fflush(stdout);
		if (!stats_interval(opt.interval > 0 ? opt.interval : 1))
			return false;
		if (opt.columns)
			putchar('\n');
	}
}

/* These do so themselves. */
static bool repeats(const struct command *c)
{
	return c->fn == cmd_stats || c->fn == cmd_top;
}

/* -o belongs to the columns of info and stats, to the tree, or to what names devices. */
static bool check_options(const struct command *c)
{
	if (!opt.options || opt.columns || c->fn == cmd_stats)
		return !opt.tree || check_tree_options();
	return opt.tree ? check_tree_options() : check_naming();
}

static int dispatch(void)
{
	char **words = (char **)opt.words->pdata;
	int argc = (int)opt.words->len - 2; /* the command and the NULL */
	const struct command *c;
	bool ok;

	if (opt.help)
		return !cmd_help(0, NULL);
	if (opt.version)
		return !cmd_version(0, NULL);
	if (!words[0]) {
		usage(stderr);
		return 1;
	}
	c = find_command(words[0]);
	if (!c) {
		say("Unknown command.");
		usage(stderr);
		return 1;
	}
	if (!check_options(c)) {
		say("Couldn't process command line.");
		return 1;
	}
	if (argc < c->min || (c->max >= 0 && argc > c->max)) {
		say("Incorrect number of arguments.");
		usage(stderr);
		return 1;
	}
	if (!repeats(c))
		return !run_repeatedly(c, argc, words + 1);
	ok = run(c, argc, words + 1);
	if (!ok)
		say("Command failed.");
	return !ok;
}

int main(int argc, char **argv)
{
	int status;

	setlocale(LC_CTYPE, "");
	setlocale(LC_MESSAGES, "");
	ctl_program = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
	if (options_parse(&opt, argc, argv)) {
		if (!strcmp(ctl_program, "dmstats"))
			g_ptr_array_insert(opt.words, 0, "stats");
		status = dispatch();
	} else {
		say("Couldn't process command line.");
		status = 1;
	}
	options_clear(&opt);
	if (fflush(stdout) || ferror(stdout)) {
		say("%s: writing: %s", ctl_program, g_strerror(errno));
		status = 1;
	}
	return status;
}
