/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dmfs-zone COMMAND: files that are zoned disks, and what may be done with zones; and the metadata of the target zoned.
 */
#include <locale.h>
#include <string.h>

#include "../common/commands.h"
#include "../common/fail.h"
#include "dm.h"
#include "zone.h"

enum kind { FORMAT = 1, RANGE = 2, DM_FORMAT = 4, DM_CHECK = 8, DM_REPAIR = 16 };

#define MAX_DEVS 255

static const struct command {
	struct usage use;
	enum kind kind;
} commands[] = {
    {{"format", "FILE", 1, 1}, FORMAT},
    {{"report", "FILE|IMAGE", 1, 1}, RANGE},
    {{"capacity", "FILE|IMAGE", 1, 1}, RANGE},
    {{"reset", "FILE|IMAGE", 1, 1}, RANGE},
    {{"open", "FILE|IMAGE", 1, 1}, RANGE},
    {{"close", "FILE|IMAGE", 1, 1}, RANGE},
    {{"finish", "FILE|IMAGE", 1, 1}, RANGE},
    {{"dm-format", "FILE...", 1, MAX_DEVS}, DM_FORMAT},
    {{"dm-check", "FILE...", 1, MAX_DEVS}, DM_CHECK},
    {{"dm-repair", "FILE...", 1, MAX_DEVS}, DM_REPAIR},
};

static int run(const struct command *c, char **args, const struct options *o, GError **err)
{
	unsigned n = g_strv_length(args);

	switch (c->kind) {
	case FORMAT:
		return format_file(args[0], o, err);
	case RANGE:
		return zone_command(c->use.name, args[0], o, err);
	case DM_FORMAT:
		return dm_format(args, n, o, err);
	default:
		return dm_check(args, n, c->kind == DM_REPAIR, err);
	}
}

/* --- the command line ---------------------------------------------------------------------------- */

static gboolean take_bool(const gchar *name, const gchar *value, gpointer data, GError **err)
{
	struct options *o = data;

	if (!strcmp(name, "--constrained-reads"))
		o->constrained_reads = true;
	else
		o->force = true;
	return TRUE;
}

static int parse(int *argc, char ***argv, struct options *o, GError **err)
{
	const GOptionEntry entries[] = {
	    {"mount", 'm', 0, G_OPTION_ARG_FILENAME, &o->mount, "The dmfs ($DMFS_MOUNT, or the only one)", "DIR"},
	    {"size", 's', 0, G_OPTION_ARG_STRING, &o->size, "format: of the file (what it is)", "BYTES"},
	    {"zone-size", 'z', 0, G_OPTION_ARG_STRING, &o->zone_size, "format: a power of two, 4K and more", "BYTES"},
	    {"zone-capacity", 0, 0, G_OPTION_ARG_STRING, &o->capacity, "format: of a sequential zone (its size)",
	     "BYTES"},
	    {"conventional", 'C', 0, G_OPTION_ARG_INT, &o->conventional, "format: how many zones, the first, are (0)",
	     "N"},
	    {"model", 0, 0, G_OPTION_ARG_STRING, &o->model, "format: host-managed, or host-aware", "MODEL"},
	    {"max-open", 0, 0, G_OPTION_ARG_INT, &o->max_open, "format: zones at most (0: any number)", "N"},
	    {"max-active", 0, 0, G_OPTION_ARG_INT, &o->max_active, "format: zones at most (0: any number)", "N"},
	    {"block-size", 'b', 0, G_OPTION_ARG_INT, &o->block_size, "format: logical blocks (512)", "BYTES"},
	    {"constrained-reads", 0, G_OPTION_FLAG_NO_ARG, G_OPTION_ARG_CALLBACK, take_bool,
	     "format: reads beyond a write pointer fail (they give zeroes)", NULL},
	    {"force", 'f', G_OPTION_FLAG_NO_ARG, G_OPTION_ARG_CALLBACK, take_bool, "format: whatever is there", NULL},
	    {"offset", 'o', 0, G_OPTION_ARG_STRING, &o->offset, "The first sector (0)", "SECTOR"},
	    {"length", 'l', 0, G_OPTION_ARG_STRING, &o->length, "How much (to the end)", "SECTORS"},
	    {"count", 'c', 0, G_OPTION_ARG_INT, &o->count, "How many zones (all)", "N"},
	    {"seq", 0, 0, G_OPTION_ARG_INT, &o->reserved_seq, "dm-format: sequential zones kept for reclaim (16)", "N"},
	    {"label", 0, 0, G_OPTION_ARG_STRING, &o->label, "dm-format: (dmz-FILE)", "TEXT"},
	    {"dm-version", 0, 0, G_OPTION_ARG_INT, &o->version, "dm-format: of the metadata, 1 or 2 (2)", "N"},
	    {0},
	};
	GOptionGroup *group = g_option_group_new("main", "", "", o, NULL);
	g_autoptr(GOptionContext) context =
	    g_option_context_new("format FILE | report|capacity|reset|open|close|finish FILE|IMAGE|NAME | "
				 "dm-format|dm-check|dm-repair FILE...");

	g_option_group_add_entries(group, entries);
	g_option_context_set_main_group(context, group);
	g_option_context_set_summary(context, "Zoned disks that are files.");
	return g_option_context_parse(context, argc, argv, err) ? 0 : -EINVAL;
}

/* Nothing is accepted and then ignored. */
static int check_options(const struct command *c, const struct options *o, GError **err)
{
	const struct {
		bool given;
		enum kind allowed;
		const char *what;
	} rules[] = {
	    {o->size || o->zone_size || o->capacity || o->conventional || o->model || o->max_open || o->max_active ||
		 o->block_size || o->constrained_reads,
	     FORMAT,
	     "--size, --zone-size, --zone-capacity, --conventional, --model, --max-open, --max-active, --block-size, "
	     "--constrained-reads: only for format"},
	    {o->force, FORMAT, "--force: only for format"},
	    {o->offset || o->length || o->count || o->mount, RANGE,
	     "--offset, --length, --count, --mount: only for report, capacity, reset, open, close and finish"},
	    {o->reserved_seq || o->label || o->version, DM_FORMAT, "--seq, --label, --dm-version: only for dm-format"},
	    {o->count < 0, 0, "--count: a number"},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(rules); i++)
		if (rules[i].given && !(rules[i].allowed & c->kind))
			return fail(err, EINVAL, "%s", rules[i].what);
	return 0;
}

int main(int argc, char **argv)
{
	g_autofree struct options *o = g_new0(struct options, 1);
	g_autoptr(GError) err = NULL;
	const struct command *c;
	int r;

	setlocale(LC_ALL, "");
	r = parse(&argc, &argv, o, &err);
	c = r ? NULL : find_command("dmfs-zone", commands, G_N_ELEMENTS(commands), sizeof *commands,
			     "format, report, capacity, reset, open, close, finish, dm-format, dm-check or dm-repair", argc, argv, &err);
	if (!r)
		r = c ? check_options(c, o, &err) : -EINVAL;
	if (!r)
		r = run(c, argv + 2, o, &err);
	g_free(o->mount);
	g_free(o->size);
	g_free(o->zone_size);
	g_free(o->capacity);
	g_free(o->model);
	g_free(o->offset);
	g_free(o->length);
	g_free(o->label);
	if (err)
		say_error("dmfs-zone", err->message);
	return exit_status(r);
}
