/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Commands that print the devices: info, status, table, deps, ls. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "concise.h"
#include "dmfsctl.h"
#include "fields.h"
#include "show.h"

/* What `info -c` gathers. */
static struct report *columns;

/* --- which devices ----------------------------------------------------------------------- */

/*
 * Runs show() for the device that was named, or for all.  how is what is said of one that is not there: the ioctl that
 * would have failed, or NULL for "Device does not exist."
 */
static bool for_devices(char **argv, const char *how, bool (*show)(struct device *, bool several), bool several)
{
	AUTO_IDENT id = {0};
	g_autoptr(GPtrArray) list = NULL;
	struct device *d = NULL;
	int error = -ENXIO;
	bool ok = true;

	switch (ident_find(*argv, &id)) {
	case IDENT_BAD:
		return false;
	case IDENT_OK:
		if (id.name)
			d = device_get(id.name, &error);
		if (!d && !how)
			return say("Device does not exist.");
		if (!d)
			return ioctl_failed(how, &id, error);
		ok = show(d, several);
		device_free(d);
		return ok;
	case IDENT_NONE:
		break;
	}
	list = device_list(!columns);
	if (!list)
		return false;
	if (!list->len && !opt.select)
		puts("No devices found");
	for (unsigned i = 0; ok && i < list->len; i++)
		ok = show(list->pdata[i], true);
	return ok;
}

/* --- status and table ---------------------------------------------------------------------- */

struct target_line {
	guint64 start, length;
	const char *type, *rest;
};

/* Cuts "START LENGTH TYPE REST" up in place. */
static bool cut_line(char *line, struct target_line *t)
{
	char *p;

	t->start = g_ascii_strtoull(line, &p, 10);
	t->length = g_ascii_strtoull(p, &p, 10);
	t->type = g_strchug(p);
	p += strcspn(p, " ");
	if (!*t->type)
		return false;
	if (*p)
		*p++ = '\0';
	t->rest = p;
	for (size_t len = strlen(p); len && p[len - 1] == ' ' && !(len > 1 && p[len - 2] == '\\'); len--)
		p[len - 1] = '\0'; /* but for a quoted one, which is a word's */
	return true;
}

bool target_is(const char *type)
{
	return !opt.target || !strcmp(type, opt.target);
}

bool has_target(const struct device *d)
{
	g_autofree char *path = tree_path(ctl_root(), d->name, opt.inactive ? "inactive" : "table"), *text = NULL;
	g_auto(GStrv) lines = NULL;
	struct target_line t;

	if (!opt.target)
		return true;
	if (tree_read(path, &text))
		return false;
	lines = tree_lines(text);
	for (unsigned i = 0; lines[i]; i++)
		if (cut_line(lines[i], &t) && target_is(t.type))
			return true;
	return false;
}

/* Whether a target's line has a key in it, which dmfs shows as zeros. */
static bool hides_a_key(const struct target_line *t)
{
	g_auto(GStrv) words = tree_words(t->rest);
	unsigned n = g_strv_length(words);

	if (!strcmp(t->type, "crypt"))
		return n > 1 && *words[1] != ':' && *words[1] != '-';
	for (unsigned i = 0; !strcmp(t->type, "integrity") && i < n; i++)
		if (strchr(words[i], ':') && strchr(strchr(words[i], ':') + 1, ':'))
			return true;
	return false;
}

static void concise_head(const struct device *d, GString *out)
{
	if (out->len)
		g_string_append_c(out, ';');
	concise_append(out, d->name);
	g_string_append_c(out, ',');
	concise_append(out, d->uuid);
	g_string_append_printf(out, ",%u,%s", d->minor, d->readonly ? "ro" : "rw");
}

/* All devices of a `table --concise`, until finish_concise(). */
static GString *concise;

static bool print_targets(struct device *d, char *text, bool several, bool table)
{
	g_auto(GStrv) lines = tree_lines(text);
	g_autoptr(GString) out = g_string_new(NULL);
	bool found = false, brief = table && opt.concise;
	struct target_line t;

	for (unsigned i = 0; lines[i]; i++) {
		g_autofree char *line = NULL;

		if (!cut_line(lines[i], &t) || !target_is(t.type))
			continue;
		if (table && opt.showkeys && hides_a_key(&t))
			return say("--showkeys: dmfs does not tell the keys of %s: they would be zeros", d->shown);
		found = true;
		line = g_strdup_printf("%" G_GUINT64_FORMAT " %" G_GUINT64_FORMAT " %s %s", t.start, t.length, t.type, t.rest);
		if (brief) {
			g_string_append_c(out, ',');
			concise_append(out, line);
		} else {
			if (several && !opt.verbose)
				g_string_append_printf(out, "%s: ", d->shown);
			g_string_append_printf(out, "%s\n", line);
		}
	}
	if (!found && opt.target)
		return true;
	if (brief) {
		concise_head(d, concise);
		g_string_append(concise, out->str);
		return true;
	}
	if (!found)
		g_string_append_printf(out, several && !opt.verbose ? "%s: \n" : "\n", d->shown);
	if (opt.verbose)
		printf("%s\n", d->info);
	fputs(out->str, stdout);
	if (opt.verbose && several)
		putchar('\n');
	return true;
}

static bool print_file(struct device *d, const char *file, bool several, bool table)
{
	g_autofree char *path = tree_path(ctl_root(), d->name, file), *text = NULL;
	int error = tree_read(path, &text);

	if (error)
		return ioctl_failed_on("table", d->name, NULL, -1, error);
	return print_targets(d, text, several, table);
}

static bool show_status(struct device *d, bool several)
{
	g_autofree char *text = NULL;
	int error;

	if (!opt.inactive && opt.noflush)
		return print_file(d, "status", several, false);
	error = opt.inactive ? device_inactive(d->name, "status", &text) : device_flushed_status(d->name, &text);
	if (error)
		return ioctl_failed_on("table", d->name, NULL, -1, error);
	return print_targets(d, text, several, false);
}

static bool show_table(struct device *d, bool several)
{
	return print_file(d, opt.inactive ? "inactive" : "table", several, true);
}

static bool several_named;

static bool is_several(int argc)
{
	several_named |= argc > 1;
	return several_named;
}

bool cmd_status(int argc, char **argv)
{
	return for_devices(argv, NULL, show_status, is_several(argc));
}

bool cmd_table(int argc, char **argv)
{
	if (opt.concise && !concise)
		concise = g_string_new(NULL);
	if (!for_devices(argv, "table", show_table, is_several(argc)))
		return false;
	if (opt.concise && argc <= 1 && concise->len)
		puts(concise->str);
	if (opt.concise && argc <= 1)
		g_string_truncate(concise, 0);
	return true;
}

/* --- info ------------------------------------------------------------------------------------ */

static bool show_device(struct device *d, bool several)
{
	(void)several;
	if (columns)
		report_add(columns, d);
	else
		printf("%s\n", d->info);
	return true;
}

bool show_info(const char *name)
{
	int error;
	struct device *d = device_get(name, &error);

	if (!d)
		return say("Device does not exist.");
	printf("%s\n", d->info);
	device_free(d);
	return true;
}

bool cmd_info(int argc, char **argv)
{
	(void)argc;
	if (opt.columns && !columns) {
		enum report_made made = fields_report(&columns, true);

		if (made != REPORT_OK)
			exit(made == REPORT_HELPED ? 0 : 1);
	}
	return for_devices(argv, NULL, show_device, false);
}

bool finish_columns(void)
{
	if (columns) {
		report_print(columns, stdout);
		report_free(columns);
		columns = NULL;
	}
	return true;
}

/* --- deps ---------------------------------------------------------------------------------------- */

enum naming { NAME_DEVNO, NAME_DEVNAME, NAME_BLKDEVNAME };

static enum naming naming;

/* -o, for the commands that name devices: of several ways the last one counts. */
bool check_naming(void)
{
	g_auto(GStrv) words = g_strsplit(opt.options ? opt.options : "devno", ",", -1);

	for (unsigned i = 0; words[i]; i++)
		if (!strcmp(words[i], "devno"))
			naming = NAME_DEVNO;
		else if (!strcmp(words[i], "devname"))
			naming = NAME_DEVNAME;
		else if (!strcmp(words[i], "blkdevname"))
			naming = NAME_BLKDEVNAME;
		else
			return say("Option not recognised: %s.", words[i]);
	return true;
}

static void print_dep(const struct dep *dep)
{
	g_autofree char *name = NULL;

	if (naming == NAME_DEVNO && dep->minor >= 0) {
		printf(" (%d, %d)", dep->major, dep->minor);
		return;
	}
	if (!dep->mapped)
		name = block_name(dep->major, dep->minor);
	printf(" (%s)", name ? name : dep->shown);
}

static bool show_deps(struct device *d, bool several)
{
	g_autoptr(GPtrArray) inactive = opt.inactive ? device_inactive_deps(d) : NULL;
	GPtrArray *deps = inactive ? inactive : device_deps(d);

	if (opt.verbose)
		printf("%s\n", d->info);
	if (several && !opt.verbose)
		printf("%s: ", d->shown);
	printf("%u dependencies\t:", deps->len);
	for (unsigned i = 0; i < deps->len; i++)
		print_dep(deps->pdata[i]);
	putchar('\n');
	if (several && opt.verbose)
		putchar('\n');
	return true;
}

bool cmd_deps(int argc, char **argv)
{
	return for_devices(argv, "deps", show_deps, is_several(argc));
}

/* --- ls ------------------------------------------------------------------------------------------ */

static bool run_for(const char *name)
{
	g_auto(GStrv) words = g_strsplit_set(opt.exec, " \t", -1);
	g_autoptr(GPtrArray) argv = g_ptr_array_new();
	g_autofree char *path = tree_path(ctl_root(), name, "image");
	pid_t pid;

	for (unsigned i = 0; words[i]; i++)
		if (*words[i])
			g_ptr_array_add(argv, words[i]);
	g_ptr_array_add(argv, path);
	g_ptr_array_add(argv, NULL);
	fflush(stdout);
	pid = fork();
	if (pid < 0)
		return say("fork: %s", g_strerror(errno));
	if (!pid) {
		execvp(argv->pdata[0], (char **)argv->pdata);
		say("%s: %s", (char *)argv->pdata[0], g_strerror(errno));
		_exit(127);
	}
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	return true;
}

static bool show_name(struct device *d, bool several)
{
	(void)several;
	if (!has_target(d))
		return true;
	if (opt.exec)
		return run_for(d->name);
	if (opt.target)
		printf("%s\t(0, %u)\n", d->shown, d->minor);
	else if (naming == NAME_DEVNO)
		printf("%s\t(0:%u)\n", d->shown, d->minor);
	else
		printf("%s\t(%s)\n", d->shown, d->shown);
	return true;
}

bool cmd_ls(int argc, char **argv)
{
	static char *none[] = {NULL};

	(void)argc;
	(void)argv;
	if (opt.exec && !opt.exec[strspn(opt.exec, " \t")])
		return false;
	if (opt.tree && !opt.target && !opt.exec)
		return cmd_tree();
	return for_devices(none, NULL, show_name, true);
}
